//! A value as a spec wrote it, before a table has given it a meaning.

use std::time::Duration;

/// One argument of a rule or a step, in the shapes that the spec language can produce.
#[derive(Debug, Clone, PartialEq)]
pub enum Arg {
    /// `None`: the same as leaving the argument out.
    None,
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// Text; durations, rates and probabilities are written as text too, and read by the table's [`Kind`](crate::Kind).
    Str(String),
    /// Raw bytes.
    Bytes(Vec<u8>),
    /// A list or a dict, as JSON.
    Json(serde_json::Value),
    /// A duration, once a table has read one.
    Duration(Duration),
    /// A service named by value, as in `source=api`.
    Service(String),
}

impl Arg {
    /// The word a message uses for this argument's type, as the language names it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Arg::None => "None",
            Arg::Bool(_) => "bool",
            Arg::Int(_) => "int",
            Arg::Float(_) => "float",
            Arg::Str(_) => "string",
            Arg::Bytes(_) => "bytes",
            Arg::Json(serde_json::Value::Array(_)) => "list",
            // Beyond what `Int` holds.
            Arg::Json(serde_json::Value::Number(_)) => "int",
            Arg::Json(_) => "dict",
            Arg::Duration(_) => "duration",
            Arg::Service(_) => "service",
        }
    }

    /// The text, if this is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Arg::Str(s) => Some(s),
            _ => None,
        }
    }

    /// The integer, if this is one.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Arg::Int(i) => Some(*i),
            _ => None,
        }
    }

    /// The duration, if a table has read one.
    pub fn as_duration(&self) -> Option<Duration> {
        match self {
            Arg::Duration(d) => Some(*d),
            _ => None,
        }
    }

    /// The argument as JSON: lists, dicts and scalars alike; bytes become text, invalid UTF-8 replaced.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value;
        match self {
            Arg::None => Value::Null,
            Arg::Bool(b) => Value::from(*b),
            Arg::Int(i) => Value::from(*i),
            Arg::Float(f) => Value::from(*f),
            Arg::Str(s) | Arg::Service(s) => Value::from(s.as_str()),
            Arg::Bytes(b) => Value::from(String::from_utf8_lossy(b).into_owned()),
            Arg::Json(v) => v.clone(),
            Arg::Duration(d) => Value::from(d.as_secs_f64()),
        }
    }
}
