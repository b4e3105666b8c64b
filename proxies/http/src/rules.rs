//! What can be matched in HTTP and what can be done to it: the tables, and rules compiled from them.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use faultbox_contract::doc::{Class, common};
use faultbox_contract::{
    ActionDoc, Arg, ArgError, ArmedRule, CheckedRule, Dialect, Glob, Kind, ParamDoc, ProtocolDoc,
};
use serde_json::json;

use crate::codec::split_target;
use crate::steps;
use faultbox_engine::web::{
    check_method, encode_body, encode_json, globs, reason, text_map, words,
};

/// How much of a request's body the matchers look at.
pub const BODY_WINDOW: usize = 64 << 10;

// A 1xx status is never a final answer.
const STATUS: Kind = Kind::Int(200, 999);

const HEADERS: ParamDoc = ParamDoc::opt("headers", Kind::TextMap, "header fields of the answer");

/// HTTP's face.
pub static DOC: ProtocolDoc = ProtocolDoc {
    name: "http",
    aliases: &["http1"],
    summary: "HTTP/1.1: keep-alive, pipelining, chunked bodies, upgrades, Expect",
    matchers: &[
        ParamDoc::opt(
            "method",
            Kind::Glob(Dialect::TextNoCase),
            "the request's method",
        ),
        ParamDoc::opt(
            "path",
            Kind::Glob(Dialect::HttpPath),
            "the path without the query string, as sent or percent-decoded",
        ),
        ParamDoc::opt(
            "host",
            Kind::Glob(Dialect::TextNoCase),
            "the Host header, with or without its port",
        ),
        ParamDoc::opt(
            "query",
            Kind::GlobMapOrGlob,
            "parameters by name, decoded; or the whole query string as sent",
        ),
        ParamDoc::opt(
            "header",
            Kind::GlobMap,
            "request header fields by name (case ignored)",
        ),
        ParamDoc::opt(
            "body",
            Kind::Glob(Dialect::Text),
            "the first 64 KiB of the request's body",
        ),
        ParamDoc::opt(
            "request_body",
            Kind::Glob(Dialect::Text),
            "the same as `body`, for rules where `body` is the answer's",
        ),
    ],
    actions: &[
        ActionDoc {
            name: "error",
            class: Class::Terminal,
            matched: true,
            params: &[
                ParamDoc::opt("status", STATUS, "the status code (default 500)"),
                ParamDoc::opt(
                    "message",
                    Kind::Text,
                    "the text in the body {\"error\": …} (default: the status in words)",
                ),
                ParamDoc::opt("body", Kind::Body, "the answer's body instead"),
                HEADERS,
            ],
            summary: "an error answer; the request never reaches the server",
        },
        ActionDoc {
            name: "response",
            class: Class::Terminal,
            matched: true,
            params: &[
                ParamDoc::opt("status", STATUS, "the status code (default 200)"),
                ParamDoc::opt(
                    "body",
                    Kind::Body,
                    "the answer's body; a dict or a list is sent as JSON",
                ),
                ParamDoc::opt("json", Kind::Json, "the answer's body, as JSON"),
                HEADERS,
                ParamDoc::opt(
                    "when",
                    Kind::Choice(&["before", "after"]),
                    "\"before\" (default): the server never sees the request; \"after\": it handles it, and its answer is replaced",
                ),
            ],
            summary: "this answer, instead of the server's",
        },
        common::DELAY,
        ActionDoc {
            name: "drop",
            class: Class::Terminal,
            matched: true,
            params: &[],
            summary: "the connection is closed without an answer; the request never reaches the server",
        },
        common::RESET,
        ActionDoc {
            name: "truncate",
            class: Class::Terminal,
            matched: true,
            params: &[ParamDoc::req(
                "bytes",
                Kind::Int(0, i64::MAX),
                "how many bytes of the reply's body still arrive",
            )],
            summary: "the reply's body is cut after that many bytes and the connection closed",
        },
        common::THROTTLE,
        common::CORRUPT,
    ],
    steps: steps::DOCS,
};

/// A rule in the shape in which the proxy asks it.
#[derive(Debug)]
pub struct HttpRule {
    matchers: Matchers,
    /// What happens when it fires.
    pub action: Action,
}

#[derive(Debug, Default)]
struct Matchers {
    method: Option<Glob>,
    path: Option<Glob>,
    host: Option<Glob>,
    query: Option<QueryMatcher>,
    header: Vec<(String, Glob)>,
    body: Option<Glob>,
}

#[derive(Debug)]
enum QueryMatcher {
    Whole(Glob),
    Named(Vec<(String, Glob)>),
}

/// What a rule does.
#[derive(Debug, Clone)]
pub enum Action {
    /// Served by the engine: `delay`, `throttle`.
    Engine,
    /// An answer of the rule's own.
    Answer {
        /// What to answer.
        answer: Arc<Answer>,
        /// Does the server handle the request first?
        after: bool,
    },
    /// Close without an answer.
    Drop,
    /// Reset the connection.
    Reset,
    /// Cut the reply's body after so many bytes.
    Truncate(u64),
    /// Invert the byte at this offset of the reply's body.
    Corrupt(u64),
}

/// An answer that a rule gives.
#[derive(Debug, PartialEq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    /// The answer's bytes. `head` leaves the body out as a reply to HEAD does; `close` announces that the connection ends.
    pub fn encode(&self, head: bool, close: bool, http10: bool) -> Vec<u8> {
        self.parts(head, close, http10).0
    }

    /// The answer's bytes, and where among them its body begins.
    pub fn parts(&self, head: bool, close: bool, http10: bool) -> (Vec<u8>, usize) {
        let mut out = Vec::with_capacity(256 + self.body.len());
        let line = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        out.extend_from_slice(line.as_bytes());
        for (name, value) in &self.headers {
            out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        let bodiless = matches!(self.status, 204 | 304);
        if !bodiless {
            out.extend_from_slice(format!("Content-Length: {}\r\n", self.body.len()).as_bytes());
        }
        if close {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if http10 {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        out.extend_from_slice(b"\r\n");
        let body = out.len();
        if !head && !bodiless {
            out.extend_from_slice(&self.body);
        }
        (out, body)
    }
}

/// What a request shows to the matchers.
#[derive(Debug)]
pub struct View<'a> {
    /// The method as sent.
    pub method: &'a str,
    /// The path as sent, without the query string.
    pub path: &'a str,
    query: &'a str,
    headers: &'a [httparse::Header<'a>],
    body: &'a [u8],
}

impl<'a> View<'a> {
    /// A view of a parsed head and the first bytes of its body.
    pub fn new<'b: 'a>(request: &'a httparse::Request<'_, 'b>, body: &'a [u8]) -> View<'a> {
        let (path, query) = split_target(request.path.unwrap_or("/"));
        View {
            method: request.method.unwrap_or(""),
            path,
            query,
            headers: request.headers,
            body,
        }
    }
}

impl HttpRule {
    /// The compiled form of an armed rule of this protocol.
    pub fn of(rule: &ArmedRule) -> Option<&HttpRule> {
        rule.compiled.downcast_ref()
    }

    /// Does it look at the request's body?
    pub fn needs_body(&self) -> bool {
        self.matchers.body.is_some()
    }

    /// Do its matchers, all of them, select this request? `with_body` is false while the body has not been read.
    pub fn matches(&self, view: &View<'_>, with_body: bool) -> bool {
        let m = &self.matchers;
        m.method.as_ref().is_none_or(|g| g.matches(view.method))
            && m.path.as_ref().is_none_or(|g| {
                g.matches(view.path)
                    || (view.path.contains('%')
                        && g.matches_bytes(&percent_decode(view.path, false)))
            })
            && m.host.as_ref().is_none_or(|g| host_matches(g, view))
            && m.query
                .as_ref()
                .is_none_or(|q| query_matches(q, view.query))
            && m.header.iter().all(|(name, glob)| {
                view.headers
                    .iter()
                    .any(|h| h.name.eq_ignore_ascii_case(name) && glob.matches_bytes(h.value))
            })
            && (!with_body || m.body.as_ref().is_none_or(|g| g.matches_bytes(view.body)))
    }
}

fn host_matches(glob: &Glob, view: &View<'_>) -> bool {
    view.headers
        .iter()
        .filter(|h| h.name.eq_ignore_ascii_case("host"))
        .filter_map(|h| std::str::from_utf8(h.value).ok())
        .any(|host| {
            let bare = host
                .rsplit_once(':')
                .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
                .map_or(host, |(bare, _)| bare);
            glob.matches(host) || glob.matches(bare)
        })
}

fn query_matches(matcher: &QueryMatcher, query: &str) -> bool {
    match matcher {
        QueryMatcher::Whole(glob) => glob.matches(query),
        QueryMatcher::Named(wanted) => wanted.iter().all(|(name, glob)| {
            query.split('&').any(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                !pair.is_empty()
                    && percent_decode(key, true) == name.as_bytes()
                    && glob.matches_bytes(&percent_decode(value, true))
            })
        }),
    }
}

/// Decodes %XX, and `+` as a space where a form would; anything else stays as it is.
fn percent_decode(text: &str, form: bool) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|b| *b == b'%' || (form && *b == b'+')) {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |j: usize| bytes.get(j).and_then(|b| (*b as char).to_digit(16));
        match (bytes[i], hex(i + 1), hex(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                i += 2;
            }
            (b'+', ..) if form => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        i += 1;
    }
    Cow::Owned(out)
}

/// Turns a checked rule into an [`HttpRule`].
///
/// # Errors
/// Keywords that exclude each other, a path that no request can have, and header fields that could not be sent.
pub fn compile(rule: &CheckedRule) -> Result<Arc<dyn Any + Send + Sync>, ArgError> {
    let glob = |name: &str, dialect| {
        rule.text_of(name)
            .map(|p| Glob::new(p, dialect).map_err(|e| ArgError::new(name, e)))
            .transpose()
    };
    let answers = matches!(rule.action.name, "error" | "response");
    let mut body = glob("request_body", Dialect::Text)?;
    if !answers && rule.get("body").is_some() {
        if body.is_some() {
            return Err(ArgError::new(
                "request_body",
                "`body` and `request_body` mean the same here",
            )
            .hint("leave one of them out"));
        }
        body = glob("body", Dialect::Text)?;
    }
    if let Some(method) = rule.text_of("method") {
        check_method("method", method)?;
    }
    // A request's path begins with "/" (RFC 9112, section 3.2.1), or is "*" or a whole URL, which only a pattern can mean.
    if let Some(path) = rule.text_of("path")
        && path.starts_with(|c: char| c.is_alphanumeric())
        && !path.contains("://")
    {
        let message = format!("`path`: `{path}` can match no request, whose path begins with `/`");
        return Err(ArgError::new("path", message).hint(format!("did you mean `/{path}`?")));
    }
    if let Some(path) = rule.text_of("path")
        && let Some((before, query)) = with_query(path)
    {
        let message = format!(
            "`path`: `{path}` has a query string, which is no part of the path (and `?` is any one character)"
        );
        return Err(ArgError::new("path", message)
            .hint(format!("write path=\"{before}\", query=\"{query}\"")));
    }
    let matchers = Matchers {
        method: glob("method", Dialect::TextNoCase)?,
        path: glob("path", Dialect::HttpPath)?,
        host: glob("host", Dialect::TextNoCase)?,
        query: match rule.get("query") {
            Some(Arg::Str(_)) => glob("query", Dialect::Text)?.map(QueryMatcher::Whole),
            Some(other) => Some(QueryMatcher::Named(globs("query", other)?)),
            None => None,
        },
        header: match rule.get("header") {
            Some(map) => globs("header", map)?,
            None => vec![],
        },
        body,
    };
    let count = |name| rule.int_of(name).unwrap_or(0).max(0) as u64;
    let action = match rule.action.name {
        "error" | "response" => Action::Answer {
            answer: Arc::new(answer(rule)?),
            after: rule.text_of("when") == Some("after"),
        },
        "drop" => Action::Drop,
        "reset" => Action::Reset,
        "truncate" => Action::Truncate(count("bytes")),
        "corrupt" => Action::Corrupt(count("offset")),
        _ => Action::Engine,
    };
    Ok(Arc::new(HttpRule { matchers, action }))
}

/// A path and the query string that somebody has written behind it: `?name=`, where a glob would have no reason for a `=`.
fn with_query(path: &str) -> Option<(&str, &str)> {
    let at = path.find('?').filter(|at| !path[..*at].ends_with('\\'))?;
    let query = &path[at + 1..];
    let name = query.split_once('=')?.0;
    let is_name = |c: char| c.is_alphanumeric() || "_-.[]".contains(c);
    (!name.is_empty() && name.chars().all(is_name)).then_some((&path[..at], query))
}

/// The answer that an `error` or a `response` rule describes.
fn answer(rule: &CheckedRule) -> Result<Answer, ArgError> {
    let is_error = rule.action.name == "error";
    let status = rule
        .int_of("status")
        .map_or(if is_error { 500 } else { 200 }, |s| s as u16);
    for other in ["json", "message"] {
        if rule.get("body").is_some() && rule.get(other).is_some() {
            return Err(
                ArgError::new(other, format!("`body` and `{other}` exclude each other"))
                    .hint("leave one of them out"),
            );
        }
    }
    // With body= as a matcher in mind, the rule would answer every request, with a pattern.
    let matchers = DOC.matchers.iter().filter(|m| m.name != "body");
    if let Some(body) = rule.text_of("body")
        && (body.starts_with('*') || body.ends_with('*'))
        && matchers.into_iter().all(|m| rule.get(m.name).is_none())
    {
        let message = format!(
            "`body` is the answer's body here, and the rule answers every request with `{body}`"
        );
        return Err(ArgError::new("body", message).hint(
            "match the request's body with request_body=; if every request is meant, say so: path=\"/**\"",
        ));
    }
    let (kind, body) = match (rule.get("body"), rule.get("json")) {
        (Some(body), _) => encode_body(body),
        (None, Some(json)) => encode_json(&json.to_json()),
        (None, None) if is_error => {
            let message = rule.text_of("message").map(Cow::from);
            encode_json(&json!({ "error": message.unwrap_or_else(|| words(status)) }))
        }
        (None, None) => (None, vec![]),
    };
    if matches!(status, 204 | 304) && !body.is_empty() && !is_error {
        return Err(ArgError::new(
            "status",
            format!("a reply with status {status} has no body"),
        )
        .hint("leave out the body, or choose another status"));
    }
    let mut headers = text_map("headers", rule.get("headers"))?;
    if let Some((name, _)) = headers.iter().find(|(n, _)| is_framing(n)) {
        return Err(ArgError::new(
            "headers",
            format!("`{name}` follows from the body and cannot be set"),
        )
        .hint("to cut a reply short, use truncate(bytes=…)"));
    }
    let typed = headers
        .iter()
        .any(|(n, _)| n.eq_ignore_ascii_case("content-type"));
    if let Some(kind) = kind.filter(|_| !typed) {
        headers.push(("Content-Type".into(), kind.into()));
    }
    Ok(Answer {
        status,
        headers,
        body,
    })
}

fn is_framing(name: &str) -> bool {
    ["content-length", "transfer-encoding", "connection"]
        .iter()
        .any(|n| name.eq_ignore_ascii_case(n))
}
