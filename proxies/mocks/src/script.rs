//! Routes made ready: which answer a request gets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use faultbox_contract::rule::nearest_hint;
use faultbox_contract::{Arg, ArgError, Kind, ParamDoc};
use serde_json::Value;

use crate::functions::Functions;
use crate::plan::{Answer, Answers, End, Face, Reply};

/// The keyword that replies of every protocol take.
pub const DELAY: ParamDoc = ParamDoc::opt(
    "delay",
    Kind::Duration,
    "how long the request waits for its answer",
);

/// The name of an argument that stands for the whole of a reply: its keyword is the protocol's [`shorthand`](Script::shorthand).
pub const SHORTHAND: &str = "";

/// What a protocol adds to the idea of a route.
pub trait Script: Send + Sync + 'static {
    /// A pattern made ready.
    type Pattern: Send + Sync;
    /// A request, as patterns see it.
    type Request: ?Sized + Sync;
    /// A reply made ready.
    type Reply: Send + Sync;

    /// The protocol's name.
    fn name(&self) -> &'static str;

    /// The keyword that a value means which is no `reply()`: `"GET k": "v"`.
    fn shorthand(&self) -> Option<&'static str>;

    /// The keywords of `reply()` besides `delay`.
    fn keywords(&self) -> &'static [ParamDoc];

    /// Reads a pattern.
    ///
    /// # Errors
    /// It is none; `arg` of the error means nothing.
    fn pattern(&self, text: &str) -> Result<Self::Pattern, ArgError>;

    /// Makes a reply ready whose keywords have been accepted, one by one.
    ///
    /// # Errors
    /// Keywords that exclude each other, or what the protocol cannot send.
    fn reply(&self, args: Vec<(String, Arg)>) -> Result<Self::Reply, ArgError>;

    /// Can the pattern's requests be answered so?
    ///
    /// # Errors
    /// They cannot.
    fn fits(&self, pattern: &Self::Pattern, reply: &Self::Reply) -> Result<(), ArgError> {
        let _ = (pattern, reply);
        Ok(())
    }

    /// Does the pattern select this request?
    fn selects(&self, pattern: &Self::Pattern, request: &Self::Request) -> bool;
}

/// A reply and how long it takes.
pub struct Ready<R> {
    /// What is sent.
    pub reply: R,
    /// After this long.
    pub delay: Duration,
}

enum Step<R> {
    Reply(Arc<Ready<R>>),
    Function(usize),
}

struct Sequence<R> {
    steps: Vec<Step<R>>,
    end: End,
    asked: AtomicU64,
}

impl<R> Sequence<R> {
    /// What answers now; `None` once it is over.
    fn next(&self) -> Option<&Step<R>> {
        let n = self.asked.fetch_add(1, Ordering::Relaxed);
        let len = self.steps.len() as u64;
        let at = match self.end {
            _ if n < len => n,
            End::Last => len - 1,
            End::Cycle => n % len,
            End::Default => return None,
        };
        self.steps.get(usize::try_from(at).ok()?)
    }
}

/// The routes of one interface.
pub struct Routes<S: Script> {
    script: S,
    routes: Vec<(String, S::Pattern, Sequence<S::Reply>)>,
    default: Option<Sequence<S::Reply>>,
    functions: Functions,
}

/// What has been found for a request.
pub struct Found<R> {
    /// The pattern of the route that answers; `None`: the default, or nothing.
    pub route: Option<String>,
    /// The reply; `None`: the protocol's own.
    pub reply: Option<Arc<Ready<R>>>,
    /// Why there is no reply although there should be one: the spec's function failed.
    pub failed: Option<String>,
}

/// Where in a face a mistake is.
#[derive(Debug, Clone, PartialEq)]
pub struct Mistake {
    /// The route, by its place; `None`: the default, or the interface itself.
    pub route: Option<usize>,
    /// Which of its answers; `None`: its pattern.
    pub answer: Option<usize>,
    /// What is wrong.
    pub error: ArgError,
}

impl Mistake {
    /// One that concerns the whole interface.
    pub fn of_face(error: ArgError) -> Mistake {
        Mistake {
            route: None,
            answer: None,
            error,
        }
    }
}

impl<S: Script> Routes<S> {
    /// Makes routes ready.
    ///
    /// # Errors
    /// A pattern or a reply that is none.
    pub fn new(script: S, face: &Face, functions: Functions) -> Result<Routes<S>, Mistake> {
        let mut routes = vec![];
        for (at, route) in face.routes.iter().enumerate() {
            let mistake = |(answer, error)| Mistake {
                route: Some(at),
                answer,
                error,
            };
            let pattern = script
                .pattern(&route.pattern)
                .map_err(|e| mistake((None, e)))?;
            let sequence = sequence(&script, &route.answers).map_err(mistake)?;
            for (n, step) in sequence.steps.iter().enumerate() {
                if let Step::Reply(ready) = step {
                    script
                        .fits(&pattern, &ready.reply)
                        .map_err(|e| mistake((Some(n), e)))?;
                }
            }
            routes.push((route.pattern.clone(), pattern, sequence));
        }
        let default = face
            .default
            .as_ref()
            .map(|answers| sequence(&script, answers))
            .transpose()
            .map_err(|(answer, error)| Mistake {
                route: None,
                answer,
                error,
            })?;
        Ok(Routes {
            script,
            routes,
            default,
            functions,
        })
    }

    /// The protocol's part.
    pub fn script(&self) -> &S {
        &self.script
    }

    /// Is there a route for this request?
    pub fn selects_any(&self, request: &S::Request) -> bool {
        self.any(|pattern| self.script.selects(pattern, request))
    }

    /// Whether any route's pattern passes `test`.
    pub fn any(&self, test: impl FnMut(&S::Pattern) -> bool) -> bool {
        let mut test = test;
        self.routes.iter().any(|(_, pattern, _)| test(pattern))
    }

    /// What answers a request. With `or_default`, that may be the default; `describe` says what a function of the spec gets to see.
    pub async fn find(
        &self,
        request: &S::Request,
        or_default: bool,
        describe: impl FnOnce() -> Value + Send,
    ) -> Found<S::Reply> {
        let mut describe = Some(describe);
        let mut shown = Value::Null;
        let routed = self
            .routes
            .iter()
            .filter(|(_, pattern, _)| self.script.selects(pattern, request))
            .map(|(text, _, sequence)| (Some(text), sequence));
        let default = self.default.as_ref().filter(|_| or_default);
        for (route, sequence) in routed.chain(default.map(|sequence| (None, sequence))) {
            let found = |reply, failed| Found {
                route: route.cloned(),
                reply,
                failed,
            };
            match sequence.next() {
                None => {}
                Some(Step::Reply(reply)) => return found(Some(reply.clone()), None),
                Some(Step::Function(id)) => {
                    if let Some(describe) = describe.take() {
                        shown = describe();
                    }
                    match self.functions.call(*id, shown.clone()).await {
                        // As if the route were not there.
                        Ok(None) => {}
                        Ok(Some(reply)) => {
                            return match ready(&self.script, &reply) {
                                Ok(reply) => found(Some(Arc::new(reply)), None),
                                Err(e) => found(
                                    None,
                                    Some(format!("what it returned is no reply: {}", e.message)),
                                ),
                            };
                        }
                        Err(why) => return found(None, Some(why)),
                    }
                }
            }
        }
        Found {
            route: None,
            reply: None,
            failed: None,
        }
    }
}

fn sequence<S: Script>(
    script: &S,
    answers: &Answers,
) -> Result<Sequence<S::Reply>, (Option<usize>, ArgError)> {
    let mut steps = vec![];
    for (at, answer) in answers.list.iter().enumerate() {
        steps.push(match answer {
            Answer::Reply(reply) => {
                Step::Reply(Arc::new(ready(script, reply).map_err(|e| (Some(at), e))?))
            }
            Answer::Function(id) => Step::Function(*id),
        });
    }
    Ok(Sequence {
        steps,
        end: answers.end,
        asked: AtomicU64::new(0),
    })
}

/// Checks a reply's keywords and makes it ready.
fn ready<S: Script>(script: &S, reply: &Reply) -> Result<Ready<S::Reply>, ArgError> {
    let known: Vec<&ParamDoc> = script.keywords().iter().chain([&DELAY]).collect();
    let mut delay = Duration::ZERO;
    let mut args = vec![];
    for (name, arg) in &reply.args {
        let name = match (name.as_str(), script.shorthand()) {
            (SHORTHAND, Some(keyword)) => keyword,
            (SHORTHAND, None) => {
                return Err(ArgError::new(
                    "",
                    format!("{} needs reply(...) here", script.name()),
                ));
            }
            (name, _) => name,
        };
        let Some(param) = known.iter().find(|p| p.name == name) else {
            let names: Vec<&str> = known.iter().map(|p| p.name).collect();
            return Err(ArgError::new(
                name,
                format!("a reply of {} has no keyword `{name}`", script.name()),
            )
            .hint(nearest_hint(name, &names)));
        };
        let value = param
            .kind
            .check(arg.clone())
            .map_err(|e| ArgError::new(name, format!("`{name}`: {e}")))?;
        match value.as_duration() {
            Some(span) if param.name == DELAY.name => delay = span,
            _ => args.push((name.to_owned(), value)),
        }
    }
    let longest = faultbox_contract::doc::common::LONGEST_DELAY;
    if delay > longest {
        return Err(ArgError::new("delay", "`delay`: it is at most an hour"));
    }
    Ok(Ready {
        reply: script.reply(args)?,
        delay,
    })
}
