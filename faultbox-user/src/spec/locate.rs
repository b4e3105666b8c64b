//! From an error to the token of the spec that it is about, and the words a person reads.

use std::ops::Range;
use std::sync::Arc;

use faultbox_contract::rule::nearest_hint;
use starlark::ErrorKind;
use starlark::codemap::{CodeMap, FileSpan};
use starlark::docs::{DocItem, DocMember, DocParams};
use starlark::environment::Globals;

use super::builtins::unsupported;
use super::context::why_missing;
use super::diagnostic::Diagnostic;
use super::excerpt;
use super::problem::{Kind, Place, Problem, problem_of};
use super::tokens::{ArgToken, CallTokens, element, entry};
use crate::plan::report::{Blame, Location, Outcome, Reason};
use crate::plan::{SpecPos, report};

/// What the names of the shipped files begin with.
pub const SHIPPED: &str = "@faultbox/";

/// Is it one of the user's own files? Shipped files and Rust frames are not where an error is to be looked for.
pub fn is_user_file(name: &str) -> bool {
    !name.starts_with(SHIPPED) && !name.ends_with(".rs")
}

/// A byte range of a file.
#[derive(Debug, Clone)]
pub struct Spot {
    file: CodeMap,
    range: Range<usize>,
}

impl Spot {
    /// All of a span.
    pub fn of(site: &FileSpan) -> Spot {
        let (begin, end) = (site.span.begin().get(), site.span.end().get());
        Spot {
            file: site.file.clone(),
            range: begin as usize..end as usize,
        }
    }

    /// Where it begins.
    pub fn pos(&self) -> SpecPos {
        let source = self.file.source();
        let before = &source[..self.range.start.min(source.len())];
        let line_start = before.rfind('\n').map_or(0, |n| n + 1);
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        SpecPos {
            file: self.file.filename().to_owned(),
            line: number(before.matches('\n').count() + 1),
            column: number(before[line_start..].chars().count() + 1),
        }
    }

    /// The line it begins on, with what to underline: no further than that line goes.
    pub fn location(&self) -> Location {
        let source = self.file.source();
        let start = self.range.start.min(source.len());
        let line_start = source[..start].rfind('\n').map_or(0, |n| n + 1);
        let line_end = source[start..]
            .find('\n')
            .map_or(source.len(), |n| start + n);
        let end = self.range.end.clamp(start, line_end);
        let width = source[start..end].chars().count().max(1);
        report::Location {
            pos: self.pos(),
            line: source[line_start..line_end].to_owned(),
            width: u32::try_from(width).unwrap_or(u32::MAX),
        }
    }

    /// A diagnostic about it.
    pub fn diagnostic(&self, problem: &Problem) -> Diagnostic {
        Diagnostic {
            message: problem.message.clone(),
            help: problem.help.clone(),
            file: self.file.filename().to_owned(),
            source: Arc::from(self.file.source()),
            span: self.range.clone(),
            label: problem.label.to_owned(),
        }
    }
}

/// Where a call stands.
pub fn pos_of(site: &FileSpan) -> SpecPos {
    Spot::of(site).pos()
}

/// The token that `place` names, of the call at `site`; the call's function if it cannot be found (arguments passed by `**kwargs`).
pub fn spot(place: &Place, site: &FileSpan) -> Spot {
    if let Place::Elsewhere(site, place) = place {
        return spot(place, site);
    }
    let whole = Spot::of(site);
    let text = site.source_span();
    if let Place::Attribute(name) = place {
        let found = text.rfind(&format!(".{name}"));
        return found.map_or(whole.clone(), |at| Spot {
            range: whole.range.start + at + 1..whole.range.start + at + 1 + name.len(),
            ..whole
        });
    }
    let Some(tokens) = CallTokens::scan(text) else {
        return whole;
    };
    let within = |range: Range<usize>| Spot {
        file: whole.file.clone(),
        range: whole.range.start + range.start..whole.range.start + range.end,
    };
    let keyword = |arg: &ArgToken| arg.name.as_ref().map(|(_, r)| r.clone());
    let range = match place {
        Place::Whole => return whole,
        Place::Call | Place::Attribute(_) | Place::Elsewhere(..) => None,
        Place::Keyword(name) => tokens.named(name).and_then(keyword),
        Place::Param(name) => param(&tokens, text, name).map(|a| a.value.clone()),
        Place::Positional(n) => tokens.positional(*n).map(|a| a.value.clone()),
        Place::Entry(name, n) => param(&tokens, text, name)
            .map(|a| entry(text, a.value.clone(), *n).unwrap_or(a.value.clone())),
        Place::Item(name, n) => param(&tokens, text, name)
            .map(|a| element(text, a.value.clone(), *n).unwrap_or(a.value.clone())),
    };
    within(range.unwrap_or(tokens.callee.clone()))
}

/// The argument that fills the parameter `name`: by keyword, or by the position that the builtin's signature gives it.
fn param<'t>(tokens: &'t CallTokens, text: &str, name: &str) -> Option<&'t ArgToken> {
    tokens.named(name).or_else(|| {
        let callee = &text[tokens.callee.clone()];
        let n = positions_of(callee)?.iter().position(|p| p == name)?;
        tokens.positional(n)
    })
}

/// The positional parameters of a builtin, in order.
fn positions_of(callee: &str) -> Option<Vec<String>> {
    let params = params_of(super::builtins::globals(), callee)?;
    Some(
        params
            .pos_only
            .iter()
            .chain(&params.pos_or_named)
            .map(|p| p.name.clone())
            .collect(),
    )
}

fn params_of(globals: &Globals, name: &str) -> Option<DocParams> {
    let value = globals.iter().find(|(n, _)| *n == name)?.1;
    match value.to_value().documentation() {
        DocItem::Member(DocMember::Function(f)) => Some(f.params),
        _ => None,
    }
}

/// An error put into words, with its place.
pub fn explain(error: &starlark::Error) -> (Problem, Option<Spot>) {
    let sites: Vec<&FileSpan> = error
        .span()
        .into_iter()
        .chain(
            error
                .call_stack()
                .frames
                .iter()
                .rev()
                .filter_map(|f| f.location.as_ref()),
        )
        .collect();
    let site = sites
        .iter()
        .find(|s| is_user_file(s.filename()))
        .or(sites.first())
        .copied();
    let problem = match problem_of(error) {
        Some(problem) => problem.clone(),
        None => translate(error),
    };
    let spot = match (&problem.place, site) {
        (Place::Elsewhere(there, place), _) => Some(spot(place, there)),
        (place, Some(site)) => Some(spot(place, site)),
        (_, None) => None,
    };
    (problem, spot)
}

/// Puts Starlark's own errors into our form: a lower-case fragment, the hint apart, the token named.
fn translate(error: &starlark::Error) -> Problem {
    let text = error.without_diagnostic().to_string();
    let quoted: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
    match error.kind() {
        ErrorKind::Fail(message) => Problem::assertion(message.to_string().trim().to_owned()),
        ErrorKind::StackOverflow(_) => Problem::call("the call stack overflows")
            .help("is a function calling itself without end?"),
        ErrorKind::Function(_) => function_error(&text, &quoted),
        // Only loading is cancelled, and only for this; a test that loops meets its time-out.
        _ if text == "Evaluation cancelled" => Problem::new(
            Place::Whole,
            "the spec loops for ever as it loads".to_owned(),
        )
        .help("it was stopped after 20 million steps: what waits or repeats belongs into a test"),
        _ if text.starts_with("Found `")
            || text.starts_with("Missing ")
            || text.starts_with("Wrong number of positional arguments") =>
        {
            function_error(&text, &quoted)
        }
        _ if text.starts_with("Type of parameter `") && quoted.len() == 3 => Problem::param(
            quoted[0],
            format!("`{}`: expected {}, got {}", quoted[0], quoted[1], quoted[2]),
        ),
        _ if text.contains("has no attribute `") && quoted.len() >= 2 => why_missing(quoted[1])
            // Only these note why; what another kind of value lacks is no business of the last note.
            .filter(|_| {
                matches!(
                    quoted[0],
                    "service" | "interface" | "tls_cert" | "Response" | "fault"
                )
            })
            .map(|p| Problem {
                place: Place::Attribute(quoted[1].to_owned()),
                ..p
            })
            .unwrap_or_else(|| Problem {
                place: Place::Attribute(quoted[1].to_owned()),
                ..plain(&text)
            }),
        _ => plain(&text),
    }
}

fn function_error(text: &str, quoted: &[&str]) -> Problem {
    // A function of the spec is named with its file in front.
    let function = text.rsplit("for call to ").next().unwrap_or_default();
    let function = function.rsplit('.').next().unwrap_or(function);
    if text.starts_with("Found `") {
        let keyword = quoted.first().copied().unwrap_or_default();
        let known: Vec<String> = params_of(super::builtins::globals(), function)
            .map(|p| {
                p.pos_or_named
                    .iter()
                    .chain(&p.named_only)
                    .map(|p| p.name.clone())
                    .collect()
            })
            .unwrap_or_default();
        let names: Vec<&str> = known.iter().map(String::as_str).collect();
        let problem = Problem::keyword(keyword, format!("`{function}` has no keyword `{keyword}`"))
            .label("unknown keyword");
        return if names.is_empty() {
            problem
        } else {
            problem.help(nearest_hint(keyword, &names))
        };
    }
    if text.starts_with("Missing")
        && let Some(missing) = quoted.first()
    {
        let function = function.trim_matches('`');
        return Problem::call(format!("`{function}` needs `{missing}`"));
    }
    if text.contains("expected 0, got ") {
        return Problem::new(
            Place::Positional(0),
            "only keyword arguments are taken here".to_owned(),
        )
        .help("say what it is, such as query=\"INSERT*\" or path=\"/x\"");
    }
    if text.contains("extra positional") {
        let most = params_of(super::builtins::globals(), function)
            .map(|p| p.pos_only.len() + p.pos_or_named.len());
        return match most {
            Some(most) => Problem::new(
                Place::Positional(most),
                format!("`{function}` takes at most {most} positional arguments"),
            )
            .help("give the others by keyword"),
            None => plain(text),
        };
    }
    plain(text)
}

/// A message of Starlark's as a lower-case fragment, with "did you mean" as the hint.
fn plain(text: &str) -> Problem {
    let text = text.strip_prefix("Parse error: ").unwrap_or(text);
    if let Some(problem) = not_yet(text) {
        return problem;
    }
    let (message, help) = match text.split_once(", did you mean ") {
        Some((message, hint)) => (message, Some(format!("did you mean {hint}"))),
        None => (text, newcomer(text).map(str::to_owned)),
    };
    let mut chars = message.chars();
    let first = chars.next().map(|c| c.to_lowercase().to_string());
    // An acronym or a type name keeps its capital.
    let lowered = match first {
        Some(first) if !chars.as_str().starts_with(char::is_uppercase) => first + chars.as_str(),
        _ => message.to_owned(),
    };
    Problem {
        help,
        place: Place::Whole,
        ..Problem::call(lowered)
    }
}

/// A name that a later version has.
fn not_yet(text: &str) -> Option<Problem> {
    let name = text.strip_prefix("Variable `")?.split('`').next()?;
    let help = unsupported::instead(name)?;
    Some(Problem {
        place: Place::Whole,
        ..Problem::call(format!("`{name}` is not yet supported"))
            .help(help)
            .label("not in this version")
    })
}

/// What to do about the mistakes of who comes from Python, or from nowhere.
fn newcomer(message: &str) -> Option<&'static str> {
    let quoted = |open: &str| {
        let rest = message.split_once(open)?.1;
        Some(rest.split(['`', '\'']).next().unwrap_or(rest))
    };
    if let Some(word) = quoted("reserved keyword `") {
        return match word {
            "assert" => {
                Some("write assert_true(...), assert_eq(actual, expected) or assert_ne(...)")
            }
            "import" | "from" => Some("other files come in by load(\"file.star\", \"name\")"),
            "while" => Some(
                "Starlark has no while: write for i in range(n), or wait with assert_eventually(...)",
            ),
            "try" | "except" | "finally" | "raise" => Some(
                "Starlark has no exceptions: a step that fails returns ok=False; assert_raises(fn) catches errors, fail(...) raises one",
            ),
            "class" => Some("Starlark has no classes: use functions, dicts and struct(...)"),
            "is" => Some("compare with == or !="),
            "with" => Some("a fault's scope is a function: fault(target, ..., run=fn)"),
            "global" | "nonlocal" => {
                Some("module values are frozen after load: return what a function finds")
            }
            _ => None,
        };
    }
    if let Some(name) = quoted("Variable `").or_else(|| quoted("variable `")) {
        return crate::sys::names::errno(name)
            .map(|_| "an errno is written in quotes, such as \"EIO\"");
    }
    if message.contains("abs are not allowed") {
        return Some("indent with spaces");
    }
    if message.contains("expected symbol ')'")
        || message.contains("expected symbol ']'")
        || message.contains("expected symbol '}'")
    {
        return Some("is a comma missing before it, or a bracket not closed?");
    }
    if message.contains("nvalid input `@`") {
        return Some("Starlark has no decorators: write scenario(fn) on a line of its own");
    }
    None
}

/// How a test ends that raised `error`.
pub fn verdict(error: &starlark::Error) -> (Outcome, Reason) {
    let (problem, spot) = explain(error);
    let (outcome, blame) = match problem.kind {
        Kind::Assertion => (Outcome::Failed, Blame::Test),
        Kind::Halt => (Outcome::Halted, Blame::Test),
        Kind::Undecided => (Outcome::Inconclusive, Blame::Environment),
        Kind::Host(blame) => (Outcome::Error, blame),
        Kind::Misuse => (Outcome::Error, Blame::Test),
    };
    let (expected, actual) = problem
        .compared
        .map(|sides| excerpt::compared(&sides.0, &sides.1))
        .unzip();
    let reason = Reason {
        message: excerpt::around(&problem.message, 0),
        expected,
        actual,
        location: spot.map(|s| s.location()),
        help: problem.help,
        blame,
    };
    (outcome, reason)
}

/// An error while a spec loads.
pub fn diagnostic(error: &starlark::Error, fallback: &FileSpan) -> Diagnostic {
    let (problem, spot) = explain(error);
    spot.unwrap_or_else(|| {
        Spot::of(&FileSpan {
            file: fallback.file.clone(),
            span: fallback.span.end_span(),
        })
    })
    .diagnostic(&problem)
}
