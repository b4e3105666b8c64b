//! What becomes of one request on which rules have fired.

use std::sync::Arc;

use faultbox_contract::ArmedRule;
use faultbox_contract::rule::Fired;
use faultbox_engine::Origin;

use crate::codec::schema::{FETCH, METADATA, PRODUCE};
use crate::codec::{Malformed, Request, Struct, Value};
use crate::judge;
use crate::link::{Plan, Turn};
use crate::lose;
use crate::proxy::Shared;
use crate::rules::{Action, KafkaRule};

/// What becomes of a request.
pub enum Course {
    /// The broker does not get it, and the connection ends with this.
    Refuse(Turn),
    /// It takes its course, changed perhaps.
    Go(Box<Go>),
}

/// A request that takes its course.
pub struct Go {
    /// What the broker gets; `None` if nothing is left.
    pub rest: Option<Request>,
    /// Is that anything different from what the client has sent?
    pub changed: bool,
    /// What the broker gets besides.
    pub again: Vec<Request>,
    /// What becomes of the response.
    pub plan: Plan,
    /// Does the connection end after it?
    pub closes: bool,
}

/// Decides. `number` gives a number to each question of the proxy's own.
///
/// # Errors
/// Records that a rule wants taken apart and that cannot be; the request goes on as it is then.
pub fn decide(
    request: &Request,
    fired: Fired,
    origin: &Origin,
    shared: &Shared,
    number: impl Fn() -> i32,
) -> Result<Course, Malformed> {
    let armed = fired.terminal.clone();
    let rule = armed.as_deref().and_then(KafkaRule::of);
    let mut go = Go {
        rest: Some(request.clone()),
        changed: false,
        again: vec![],
        plan: Plan::default(),
        closes: false,
    };
    match rule.map_or(&Action::Engine, |rule| &rule.action) {
        Action::Drop if request.api.key != PRODUCE => return Ok(Course::Refuse(Turn::Close)),
        Action::Reset => return Ok(Course::Refuse(Turn::Reset)),
        Action::Truncate(bytes) => go.plan.truncate = Some(*bytes),
        Action::Error(..) => {
            if let Some(split) = rule.and_then(|r| judge::split(request, r, &shared.names)) {
                go.changed = true;
                go.rest = split.rest;
                go.plan.merge.push(split.answer);
                // What no response can tell is told by closing, as a broker does it.
                go.closes = judge::is_unanswered(request);
            }
        }
        _ => {}
    }
    match request.api.key {
        METADATA => of_metadata(request, &mut go, origin),
        FETCH => of_fetch(&mut go, origin),
        PRODUCE => of_produce(&mut go, rule, &fired.modifiers, shared, number)?,
        _ => {}
    }
    let corrupts = |armed: &Arc<ArmedRule>| match KafkaRule::of(armed)?.action {
        Action::Corrupt(offset) => Some(offset),
        _ => None,
    };
    go.plan.corrupt = fired.modifiers.iter().filter_map(corrupts).collect();
    go.plan.modifiers = fired.modifiers;
    Ok(Course::Go(Box::new(go)))
}

/// A client needs the brokers that only the broker knows, whatever has become of the topics; and a request for all topics is
/// judged when they are known.
fn of_metadata(request: &Request, go: &mut Go, origin: &Origin) {
    if go.rest.is_none() {
        let mut rest = request.clone();
        if let Some(topics) = rest.body.list_mut("topics") {
            topics.clear();
        }
        // An empty list means none since version 1, and all before.
        go.plan.only_merged = request.version == 0;
        go.rest = Some(rest);
    }
    let later = |armed: &Arc<ArmedRule>| {
        KafkaRule::of(armed).is_some_and(|r| r.concerns(METADATA) && judge::waits(r, request))
            && origin.admits(armed)
    };
    go.plan.judge = origin.host.rules.load().iter().any(later);
}

fn of_fetch(go: &mut Go, origin: &Origin) {
    if let Some(rest) = &mut go.rest {
        if go.changed {
            // A broker that has an error to tell does not wait for records.
            rest.body.set("max_wait_ms", 0);
        }
        if needs_all_partitions(origin) && rest.body.int("session_epoch") == Some(0) {
            // No session: every request goes on naming all its partitions.
            rest.body.set("session_id", 0);
            rest.body.set("session_epoch", -1);
            go.changed = true;
        }
    }
}

/// Is a rule armed that selects fetches by what they ask for? In a fetch session (KIP-227) a request says only what has changed.
fn needs_all_partitions(origin: &Origin) -> bool {
    origin.host.rules.load().iter().any(|armed| {
        KafkaRule::of(armed)
            .is_some_and(|r| r.concerns(FETCH) && r.asks_topic() && !r.judges_fetched())
            && origin.admits(armed)
    })
}

/// Must the client give its session up first, so that its requests say what they ask for? It does so without a word to its user.
pub fn ends_session(request: &Request, origin: &Origin) -> bool {
    request.api.key == FETCH
        && request.body.int("session_epoch").is_some_and(|e| e > 0)
        && needs_all_partitions(origin)
}

fn of_produce(
    go: &mut Go,
    rule: Option<&KafkaRule>,
    modifiers: &[Arc<ArmedRule>],
    shared: &Shared,
    number: impl Fn() -> i32,
) -> Result<(), Malformed> {
    let loses = rule.filter(|r| r.action == Action::Drop);
    if let Some(part) = &go.rest
        && (loses.is_some() || shared.losses.any())
    {
        let taken = lose::take_out(part, loses, &shared.losses, &shared.names)?;
        go.changed |= taken.changed;
        go.rest = taken.request;
        go.plan.lost = taken.loss.map(Arc::new);
    }
    if let Some(part) = &go.rest {
        for armed in modifiers {
            if let Some(rule) = KafkaRule::of(armed)
                && rule.action == Action::Duplicate
            {
                go.again
                    .extend(lose::again(part, rule, &shared.names, number())?);
            }
        }
    }
    Ok(())
}

impl Plan {
    /// Is the response the broker's own, as it is?
    pub fn is_empty(&self) -> bool {
        self.merge.is_empty()
            && self.lost.is_none()
            && !self.judge
            && self.truncate.is_none()
            && self.modifiers.is_empty()
    }

    /// Does the response's content change, or depend on rules?
    pub fn edits(&self) -> bool {
        !self.merge.is_empty() || self.lost.is_some() || self.judge
    }
}

/// The question what all topics are called.
pub fn question_of_names(api: &'static crate::codec::Api, version: i16, number: i32) -> Request {
    let mut request = Request::new(api, version, number);
    if let Some(topics) = request.body.get_mut("topics") {
        // Null: all of them.
        *topics = Value::List(None);
    }
    request.body.set("allow_auto_topic_creation", 0);
    request
}

/// Joins the answers of rules to one.
pub fn joined(answers: Vec<Struct>) -> Option<Struct> {
    answers.into_iter().reduce(|mut one, other| {
        crate::answer::merge(&mut one, other);
        one
    })
}
