//! The tables by which a protocol describes itself: `faultbox protocols` prints them, the language checks against them.

use std::time::Duration;

use crate::args::Arg;
use crate::duration;
use crate::glob::{Dialect, Glob};

/// A protocol's whole face: what can be matched, what can be done to it, what a spec can send through it.
#[derive(Debug)]
pub struct ProtocolDoc {
    /// The name in `interface(name, protocol, port)`, lower case.
    pub name: &'static str,
    /// Other names that mean the same, e.g. "postgresql".
    pub aliases: &'static [&'static str],
    /// One line.
    pub summary: &'static str,
    /// Keywords that select requests; every action with [`ActionDoc::matched`] takes them all.
    pub matchers: &'static [ParamDoc],
    /// What a rule can do.
    pub actions: &'static [ActionDoc],
    /// What a spec can send.
    pub steps: &'static [StepDoc],
}

/// How an action combines with others that fire on the same request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Every delay that fires is served, before anything else.
    Delay,
    /// Decides the request; the most recently armed one wins and the others are shown as shadowed.
    Terminal,
    /// Changes how the bytes flow; all that fire apply, oldest first.
    Modifier,
}

/// One action: `error`, `response`, `delay`, `drop`, `reset`, …
#[derive(Debug)]
pub struct ActionDoc {
    /// The builtin's name in the language.
    pub name: &'static str,
    /// How it combines.
    pub class: Class,
    /// Does it take the protocol's matchers?
    pub matched: bool,
    /// Its own keywords.
    pub params: &'static [ParamDoc],
    /// What the *client* sees, one line.
    pub summary: &'static str,
}

/// One keyword of an action, a matcher, or a step.
#[derive(Debug)]
pub struct ParamDoc {
    /// The keyword.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// Is leaving it out an error?
    pub required: bool,
    /// What it means, one line.
    pub doc: &'static str,
}

impl ParamDoc {
    /// An optional keyword.
    pub const fn opt(name: &'static str, kind: Kind, doc: &'static str) -> ParamDoc {
        ParamDoc {
            name,
            kind,
            required: false,
            doc,
        }
    }

    /// A keyword that must be given.
    pub const fn req(name: &'static str, kind: Kind, doc: &'static str) -> ParamDoc {
        ParamDoc {
            name,
            kind,
            required: true,
            doc,
        }
    }
}

/// One operation a spec may send: `db.pg.query(sql=…)`.
#[derive(Debug)]
pub struct StepDoc {
    /// The method's name.
    pub name: &'static str,
    /// Its keywords; positional arguments fill them in this order.
    pub params: &'static [ParamDoc],
    /// Does it take any number of positional arguments after its own (`command("HSET", "k", …)`)? They arrive as one list named "args".
    pub variadic: bool,
    /// What it sends and what `.data` holds, one line.
    pub summary: &'static str,
}

/// The values a keyword takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A string.
    Text,
    /// The path of a file; of a step's, a relative one is meant from the spec's folder.
    File,
    /// A string or a number, kept as text: SQLSTATEs, codes.
    Code,
    /// An integer within bounds, both included.
    Int(i64, i64),
    /// `True` or `False`.
    Bool,
    /// "500ms", or a number of seconds.
    Duration,
    /// "64kbit", "10KB/s".
    Rate,
    /// A string or bytes.
    Bytes,
    /// Anything JSON can hold.
    Json,
    /// Anything JSON can hold, or bytes: a value of a binary-safe protocol.
    JsonOrBytes,
    /// A string, bytes, or (as JSON) a dict or list: a message body.
    Body,
    /// A glob in this dialect.
    Glob(Dialect),
    /// A dict of names to globs, e.g. `header={"X-Tenant": "a*"}`.
    GlobMap,
    /// A dict of names to globs, or one glob on the whole text.
    GlobMapOrGlob,
    /// A dict of names to strings.
    TextMap,
    /// A list of anything: SQL parameters, rows.
    List,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An integer in bounds, or one of these words: `expect="line"`.
    ChoiceOrInt(&'static [&'static str]),
}

impl Kind {
    /// What the values are called in messages and on the page that `faultbox protocols` prints.
    pub fn describe(&self) -> String {
        match self {
            Kind::Text => "string".into(),
            Kind::File => "path of a file".into(),
            Kind::Code => "string or int".into(),
            Kind::Int(i64::MIN, i64::MAX) => "int".into(),
            Kind::Int(low, i64::MAX) => format!("int of at least {low}"),
            Kind::Int(low, high) => format!("int in {low}..{high}"),
            Kind::Bool => "bool".into(),
            Kind::Duration => "duration (\"500ms\", \"2s\", or seconds)".into(),
            Kind::Rate => "rate (\"64kbit\", \"10KB/s\")".into(),
            Kind::Bytes => "string or bytes".into(),
            Kind::Json => "any JSON value".into(),
            Kind::JsonOrBytes => "any JSON value, or bytes".into(),
            Kind::Body => "string, bytes, dict or list".into(),
            Kind::Glob(Dialect::Path) => "path glob".into(),
            Kind::Glob(Dialect::HttpPath) => "HTTP path glob".into(),
            Kind::Glob(Dialect::TextNoCase) => "glob (case ignored)".into(),
            Kind::Glob(Dialect::Text) => "glob".into(),
            Kind::GlobMap => "dict of name to glob".into(),
            Kind::GlobMapOrGlob => "glob, or dict of name to glob".into(),
            Kind::TextMap => "dict of name to string".into(),
            Kind::List => "list".into(),
            Kind::Choice(words) => words
                .iter()
                .map(|w| format!("\"{w}\""))
                .collect::<Vec<_>>()
                .join(" | "),
            Kind::ChoiceOrInt(words) => format!(
                "{} | int",
                words
                    .iter()
                    .map(|w| format!("\"{w}\""))
                    .collect::<Vec<_>>()
                    .join(" | ")
            ),
        }
    }

    /// Checks a value and brings it into the kind's own shape (durations become [`Arg::Duration`], rates [`Arg::Int`] bytes per
    /// second, codes [`Arg::Str`]). [`Arg::None`] passes: it means "left out".
    ///
    /// # Errors
    /// Says what was expected and what came, as a lower-case fragment.
    pub fn check(&self, arg: Arg) -> Result<Arg, String> {
        let wrong = |arg: &Arg| {
            Err(format!(
                "expected {}, got {}",
                self.describe(),
                arg.type_name()
            ))
        };
        match (self, arg) {
            (_, Arg::None) => Ok(Arg::None),
            (Kind::Text | Kind::File | Kind::Code, a @ Arg::Str(_)) => Ok(a),
            (Kind::Code, Arg::Int(i)) => Ok(Arg::Str(i.to_string())),
            (Kind::Int(low, high), Arg::Int(i)) if (*low..=*high).contains(&i) => Ok(Arg::Int(i)),
            (Kind::Int(..), Arg::Int(i)) => Err(format!("expected {}, got {i}", self.describe())),
            (Kind::Int(..), Arg::Json(serde_json::Value::Number(n))) => {
                Err(format!("expected {}, got {n}", self.describe()))
            }
            (Kind::Bool, a @ Arg::Bool(_)) => Ok(a),
            (Kind::Duration, Arg::Str(s)) => duration::parse_duration(&s).map(Arg::Duration),
            (Kind::Duration, Arg::Int(i)) => duration::seconds(i as f64).map(Arg::Duration),
            (Kind::Duration, Arg::Float(f)) => duration::seconds(f).map(Arg::Duration),
            (Kind::Duration, a @ Arg::Duration(_)) => Ok(a),
            (Kind::Rate, Arg::Str(s)) => {
                duration::parse_rate(&s).map(|r| Arg::Int(i64::try_from(r).unwrap_or(i64::MAX)))
            }
            (Kind::Bytes, a @ (Arg::Str(_) | Arg::Bytes(_))) => Ok(a),
            (Kind::Json, Arg::Bytes(_) | Arg::Service(_)) => Err("expected any JSON value".into()),
            (Kind::Json, a) => Ok(a),
            (Kind::JsonOrBytes, Arg::Service(_)) => Err("expected any JSON value, or bytes".into()),
            (Kind::JsonOrBytes, a) => Ok(a),
            (Kind::Body, a @ (Arg::Str(_) | Arg::Bytes(_) | Arg::Json(_))) => Ok(a),
            (Kind::Glob(dialect), Arg::Str(s)) => Glob::new(&s, *dialect).map(|_| Arg::Str(s)),
            (Kind::GlobMapOrGlob, Arg::Str(s)) => Glob::new(&s, Dialect::Text).map(|_| Arg::Str(s)),
            (Kind::GlobMap | Kind::GlobMapOrGlob, Arg::Json(serde_json::Value::Object(map))) => {
                for (name, value) in &map {
                    let pattern = value
                        .as_str()
                        .ok_or_else(|| format!("the value of `{name}` must be a string"))?;
                    Glob::new(pattern, Dialect::Text)?;
                }
                Ok(Arg::Json(map.into()))
            }
            (Kind::TextMap, Arg::Json(serde_json::Value::Object(map))) => {
                match map.iter().find(|(_, v)| !v.is_string()) {
                    Some((name, _)) => Err(format!("the value of `{name}` must be a string")),
                    None => Ok(Arg::Json(map.into())),
                }
            }
            (Kind::List, a @ Arg::Json(serde_json::Value::Array(_))) => Ok(a),
            (Kind::Choice(words) | Kind::ChoiceOrInt(words), Arg::Str(s)) => {
                if words.contains(&s.as_str()) {
                    Ok(Arg::Str(s))
                } else {
                    Err(format!("expected {}, got \"{s}\"", self.describe()))
                }
            }
            (Kind::ChoiceOrInt(_), Arg::Int(i)) if i >= 0 => Ok(Arg::Int(i)),
            (_, arg) => wrong(&arg),
        }
    }
}

/// The keywords that every rule of every protocol takes besides its own.
pub const COMMON_PARAMS: &[ParamDoc] = &[
    ParamDoc::opt(
        "probability",
        Kind::Json,
        "chance that a matching request is hit: 0.2 or \"20%\"",
    ),
    ParamDoc::opt(
        "nth",
        Kind::Int(1, i64::MAX),
        "only the n-th matching request",
    ),
    ParamDoc::opt(
        "after",
        Kind::Int(0, i64::MAX),
        "all matching requests past the n-th",
    ),
    ParamDoc::opt(
        "every",
        Kind::Int(1, i64::MAX),
        "every n-th matching request",
    ),
    ParamDoc::opt("times", Kind::Int(1, i64::MAX), "at most n requests"),
    ParamDoc::opt("label", Kind::Text, "a name for reports"),
    ParamDoc::opt("source", Kind::Text, "only requests from this service"),
];

/// The byte-level actions that the engine gives to every protocol that lists them.
pub mod common {
    use super::{ActionDoc, Class, Duration, Kind, ParamDoc};

    /// `delay(..., delay="2s")`.
    pub const DELAY: ActionDoc = ActionDoc {
        name: "delay",
        class: Class::Delay,
        matched: true,
        params: &[ParamDoc::req(
            "delay",
            Kind::Duration,
            "how long the request is held before it goes on",
        )],
        summary: "the request is held, then goes on unchanged",
    };
    /// `reset(...)`.
    pub const RESET: ActionDoc = ActionDoc {
        name: "reset",
        class: Class::Terminal,
        matched: true,
        params: &[],
        summary: "the connection is reset (RST); the request never reaches the server",
    };
    /// `truncate(..., bytes=)`.
    pub const TRUNCATE: ActionDoc = ActionDoc {
        name: "truncate",
        class: Class::Terminal,
        matched: true,
        params: &[ParamDoc::req(
            "bytes",
            Kind::Int(0, i64::MAX),
            "how many bytes of the reply still arrive",
        )],
        summary: "the reply is cut after that many bytes and the connection closed",
    };
    /// `throttle(..., rate="64kbit")`.
    pub const THROTTLE: ActionDoc = ActionDoc {
        name: "throttle",
        class: Class::Modifier,
        matched: true,
        params: &[ParamDoc::req(
            "rate",
            Kind::Rate,
            "the reply's bytes per second at most",
        )],
        summary: "the reply trickles at this rate",
    };
    /// `corrupt(...)`.
    pub const CORRUPT: ActionDoc = ActionDoc {
        name: "corrupt",
        class: Class::Modifier,
        matched: true,
        params: &[ParamDoc::opt(
            "offset",
            Kind::Int(0, i64::MAX),
            "which byte of the reply's payload is flipped (default 0)",
        )],
        summary: "one byte of the reply's payload is inverted; its framing stays intact",
    };

    /// The longest injected delay that a table accepts by itself; longer ones are almost always a slip of the unit.
    pub const LONGEST_DELAY: Duration = Duration::from_secs(3600);
}
