//! What a mock answers, as the spec wrote it: plain values that travel from the worker to the mock's own process.

use std::net::SocketAddr;
use std::path::PathBuf;

use faultbox_contract::Arg;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// All that a mock's process is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Its interfaces. All listen before the first accepts, and the last one listens last.
    pub faces: Vec<Face>,
    /// The file that gets a line for each call.
    pub calls: PathBuf,
    /// The socket behind which the spec's functions are, if any route has one.
    pub functions: Option<PathBuf>,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Face {
    /// Its name in the spec.
    pub name: String,
    /// The protocol's canonical name.
    pub protocol: String,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Where its clients reach it: what it tells them where a protocol has servers say so.
    pub advertised: SocketAddr,
    /// In the order written: the first that matches answers.
    pub routes: Vec<Route>,
    /// What answers where no route matches.
    pub default: Option<Answers>,
    /// A file with a set of descriptors (gRPC).
    pub descriptors: Option<PathBuf>,
    /// What it shows its clients, if it speaks TLS.
    pub certificate: Option<Certificate>,
}

/// A certificate, as files (PEM).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The certificate, and what leads from it to its authority.
    pub cert: PathBuf,
    /// The key that belongs to it.
    pub key: PathBuf,
}

/// A pattern, and what answers the requests that match it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// As written.
    pub pattern: String,
    /// What answers.
    pub answers: Answers,
}

/// One answer after another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    /// The first request gets the first, the second the second, …. Never empty.
    pub list: Vec<Answer>,
    /// What comes after the last.
    pub end: End,
}

/// What comes after the last answer of a sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It repeats.
    #[default]
    Last,
    /// The first comes again.
    Cycle,
    /// As if the route were not there.
    Default,
}

/// What answers one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Always the same.
    Reply(Reply),
    /// A function of the spec, by its number.
    Function(usize),
}

/// A reply as written: `reply(status=201, json={...}, delay="50ms")`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// Its keywords.
    #[serde(with = "wire")]
    pub args: Vec<(String, Arg)>,
}

/// Arguments as JSON: an object of `{"bytes": […]}` for what JSON has no name for.
mod wire {
    use super::{Arg, Value};
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Wire {
        Plain(Value),
        Bytes(Vec<u8>),
        Service(String),
    }

    pub(super) fn serialize<S: Serializer>(
        args: &[(String, Arg)],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let wire: Vec<(&str, Wire)> = args
            .iter()
            .map(|(name, arg)| {
                let wire = match arg {
                    Arg::Bytes(bytes) => Wire::Bytes(bytes.clone()),
                    Arg::Service(name) => Wire::Service(name.clone()),
                    other => Wire::Plain(other.to_json()),
                };
                (name.as_str(), wire)
            })
            .collect();
        wire.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<(String, Arg)>, D::Error> {
        let wire: Vec<(String, Wire)> = Vec::deserialize(from)?;
        wire.into_iter()
            .map(|(name, wire)| {
                let arg = match wire {
                    Wire::Bytes(bytes) => Arg::Bytes(bytes),
                    Wire::Service(name) => Arg::Service(name),
                    Wire::Plain(value) => plain(value).ok_or_else(|| {
                        D::Error::custom(format!("`{name}` is a number that is none"))
                    })?,
                };
                Ok((name, arg))
            })
            .collect()
    }

    fn plain(value: Value) -> Option<Arg> {
        Some(match value {
            Value::Null => Arg::None,
            Value::Bool(b) => Arg::Bool(b),
            Value::String(s) => Arg::Str(s),
            Value::Number(n) => match n.as_i64() {
                Some(i) => Arg::Int(i),
                // As a float it would lose its last digits.
                None if n.is_u64() => Arg::Json(n.into()),
                None => Arg::Float(n.as_f64()?),
            },
            list @ (Value::Array(_) | Value::Object(_)) => Arg::Json(list),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_reply_survives_the_way() {
        let reply = Reply {
            args: vec![
                ("status".into(), Arg::Int(201)),
                ("json".into(), Arg::Json(json!({"a": [1, null]}))),
                ("large".into(), Arg::Json(json!(u64::MAX))),
                ("body".into(), Arg::Bytes(vec![0, 255])),
                ("delay".into(), Arg::Float(0.5)),
                ("value".into(), Arg::None),
                ("on".into(), Arg::Bool(true)),
            ],
        };
        let text = serde_json::to_string(&reply).unwrap();
        assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), reply);
    }
}
