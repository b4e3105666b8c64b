//! HTTP/1.1: `"GET /orders/*": reply(status=200, json=...)`.

mod server;

use std::sync::Arc;

use faultbox_contract::{Arg, ArgError, Dialect, Glob, Kind, ParamDoc, RuleSpec};
use faultbox_engine::web::check_method;
use faultbox_http::rules::{self, Action, Answer, HttpRule};
use serde_json::{Map, Value, json};

use crate::script::Script;

pub(crate) use server::serve;

/// The protocol's part of a route.
#[derive(Debug)]
pub struct Http;

/// `"GET /orders/*"`, or a path for every method.
#[derive(Debug)]
pub struct Pattern {
    method: Option<Glob>,
    path: Glob,
}

/// A whole request.
#[derive(Debug)]
pub struct Request {
    /// As sent.
    pub method: String,
    /// As sent, without the query.
    pub path: String,
    query: String,
    headers: Vec<(String, String)>,
    /// Without its framing.
    pub body: Vec<u8>,
}

static KEYWORDS: &[ParamDoc] = &[
    ParamDoc::opt(
        "status",
        Kind::Int(200, 999),
        "the status code (default 200)",
    ),
    ParamDoc::opt(
        "body",
        Kind::Body,
        "the body; a dict or a list is sent as JSON",
    ),
    ParamDoc::opt("json", Kind::Json, "the body, as JSON"),
    ParamDoc::opt("headers", Kind::TextMap, "header fields"),
];

impl Script for Http {
    type Pattern = Pattern;
    type Request = Request;
    type Reply = Arc<Answer>;

    fn name(&self) -> &'static str {
        "http"
    }

    fn shorthand(&self) -> Option<&'static str> {
        Some("body")
    }

    fn keywords(&self) -> &'static [ParamDoc] {
        KEYWORDS
    }

    fn pattern(&self, text: &str) -> Result<Pattern, ArgError> {
        let wrong = |message: String| {
            ArgError::new("", message)
                .hint("a route is written \"GET /orders/*\", or \"/health\" for every method")
        };
        let (method, path) = match text.split_once(' ') {
            Some((method, path)) => (Some(method), path.trim_start()),
            None => (None, text),
        };
        if text.starts_with('/') && method.is_some() {
            return Err(wrong(format!("the path of `{text}` has a space")));
        }
        if !path.starts_with(['/', '*']) {
            return Err(wrong(format!("`{text}` has no path that begins with `/`")));
        }
        if path.contains(' ') {
            return Err(wrong(format!("the path of `{text}` has a space")));
        }
        // A "?" would be a glob's, and match a query string never: paths are matched without it.
        if path.contains('?') {
            return Err(ArgError::new("", format!("`{text}`: a route's path has no `?`"))
                .hint("routes look at the path without the query string; a function sees `request.query`"));
        }
        if let Some(method) = method {
            check_method("", method)?;
        }
        let glob = |text, dialect| Glob::new(text, dialect).map_err(wrong);
        Ok(Pattern {
            method: method.map(|m| glob(m, Dialect::TextNoCase)).transpose()?,
            path: glob(path, Dialect::HttpPath)?,
        })
    }

    fn reply(&self, args: Vec<(String, Arg)>) -> Result<Arc<Answer>, ArgError> {
        // A reply is what a `response` rule sends: one table of what HTTP can send, and one encoder.
        let checked = rules::DOC.check_rule(&RuleSpec {
            action: "response".into(),
            args,
        })?;
        let compiled = rules::compile(&checked)?;
        match compiled.downcast_ref::<HttpRule>().map(|r| &r.action) {
            Some(Action::Answer { answer, .. }) => Ok(answer.clone()),
            _ => Err(ArgError::new("status", "this is no reply")),
        }
    }

    fn selects(&self, pattern: &Pattern, request: &Request) -> bool {
        let method = pattern.method.as_ref().is_none_or(|m| {
            // A server that answers GET answers HEAD (RFC 9110, 9.3.2).
            m.matches(&request.method) || (request.method == "HEAD" && m.matches("GET"))
        });
        method && pattern.on_path(request)
    }
}

impl Pattern {
    /// Is it for this path, whatever the method?
    fn on_path(&self, request: &Request) -> bool {
        self.path.matches(&request.path) || self.path.matches_bytes(&decode(&request.path, false))
    }

    /// The methods it is for, as written; `None`: all.
    fn methods(&self) -> Option<&str> {
        self.method.as_ref().map(Glob::pattern)
    }
}

/// What [`Request::describe`] and the server tell of a call.
pub(crate) const CALL_FIELDS: &[&str] = &[
    "method", "path", "query", "headers", "body", "json", "status",
];

impl Request {
    /// As events and the spec's functions see it.
    fn describe(&self) -> Map<String, Value> {
        let mut headers = Map::new();
        for (name, value) in &self.headers {
            add(
                &mut headers,
                &name.to_ascii_lowercase(),
                value,
                |old, new| Value::from(format!("{}, {new}", old.as_str().unwrap_or_default())),
            );
        }
        let mut query = Map::new();
        for pair in self.query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let text = |part| String::from_utf8_lossy(&decode(part, true)).into_owned();
            // A parameter that comes twice is a list.
            add(
                &mut query,
                &text(name),
                &text(value),
                |old, new| match old {
                    Value::Array(mut list) => {
                        list.push(new.into());
                        Value::Array(list)
                    }
                    one => json!([one, new]),
                },
            );
        }
        let json = match self.body.len() {
            0 => Value::Null,
            n if n > crate::calls::KEPT => Value::Null,
            _ => serde_json::from_slice(&self.body).unwrap_or(Value::Null),
        };
        let mut map = Map::new();
        map.insert("method".into(), self.method.as_str().into());
        map.insert("path".into(), self.path.as_str().into());
        map.insert("query".into(), query.into());
        map.insert("headers".into(), headers.into());
        map.insert("body".into(), crate::calls::text(&self.body));
        map.insert("json".into(), json);
        map
    }
}

/// Inserts a value, or joins it with the one that is there.
fn add(map: &mut Map<String, Value>, name: &str, value: &str, join: impl Fn(Value, &str) -> Value) {
    let value = match map.remove(name) {
        Some(old) => join(old, value),
        None => value.into(),
    };
    map.insert(name.to_owned(), value);
}

/// Decodes %XX, and `+` as a space where a form would.
fn decode(text: &str, form: bool) -> Vec<u8> {
    let bytes = text.as_bytes();
    let hex = |at: usize| bytes.get(at).and_then(|b| (*b as char).to_digit(16));
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (byte, hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or(b'%'));
                at += 2;
            }
            (b'+', ..) if form => out.push(b' '),
            _ => out.push(*byte),
        }
        at += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, path: &str) -> Request {
        Request {
            method: method.into(),
            path: path.into(),
            query: "q=a+b&tag=1&tag=%32".into(),
            headers: vec![("X-A".into(), "1".into()), ("x-a".into(), "2".into())],
            body: b"{\"a\": 1}".to_vec(),
        }
    }

    #[test]
    fn patterns() {
        let selects = |pattern: &str, method: &str, path: &str| {
            Http.selects(&Http.pattern(pattern).unwrap(), &request(method, path))
        };
        assert!(selects("GET /orders/*", "GET", "/orders/1"));
        assert!(selects("GET /orders/*", "HEAD", "/orders/1"));
        assert!(!selects("GET /orders/*", "POST", "/orders/1"));
        assert!(selects("PUT /a%20b", "PUT", "/a%20b"));
        assert!(selects("/café", "PUT", "/caf%C3%A9"));
        assert!(selects("{PUT,PATCH} /x", "PATCH", "/x"));
        assert!(selects("PURGE /x", "PURGE", "/x"));
        assert!(selects("get /x", "GET", "/x"));
        for bad in [
            "POTS /x",
            "G:T /x",
            "orders",
            "GET orders",
            "GET /a?b=1",
            "GET /[",
            "/a b",
            "",
        ] {
            assert!(Http.pattern(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_functions_see() {
        let seen = request("GET", "/x").describe();
        assert_eq!(seen["query"], json!({"q": "a b", "tag": ["1", "2"]}));
        assert_eq!(seen["headers"], json!({"x-a": "1, 2"}));
        assert_eq!(seen["json"], json!({"a": 1}));
    }
}
