//! What can be matched in HTTP/2 and gRPC and what can be done to it: the tables, and rules compiled from them.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use faultbox_contract::doc::{Class, common};
use faultbox_contract::{
    ActionDoc, Arg, ArgError, ArmedRule, CheckedRule, Dialect, Glob, Kind, ParamDoc, ProtocolDoc,
};
use faultbox_engine::web::{check_method, encode_body, encode_json, globs, text_map, words};
use serde_json::json;

use crate::codec::hpack::Field;
use crate::codec::{ERROR_CODES, code};
use crate::status::{self, Status};
use crate::steps;

/// Which of the two names the interface was declared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// Any HTTP/2; gRPC requests are told by their content type.
    Http2,
    /// gRPC.
    Grpc,
}

// A 1xx status is never a final answer.
const STATUS: Kind = Kind::Int(200, 999);

const PATH: ParamDoc = ParamDoc::opt(
    "path",
    Kind::Glob(Dialect::HttpPath),
    "the path without the query string, as sent",
);
const AUTHORITY: ParamDoc = ParamDoc::opt(
    "authority",
    Kind::Glob(Dialect::TextNoCase),
    "the :authority (or Host), with or without its port",
);
const HEADER: ParamDoc = ParamDoc::opt(
    "header",
    Kind::GlobMap,
    "request header fields (metadata) by name (case ignored)",
);
const MESSAGES: ParamDoc = ParamDoc::opt(
    "messages",
    Kind::Int(0, i64::MAX),
    "act in mid-stream: so many messages pass in a direction, the next one meets the rule",
);
const CODE: ParamDoc = ParamDoc::opt(
    "code",
    Kind::Code,
    "the gRPC status by name or number (default UNAVAILABLE)",
);
const DETAILS: ParamDoc = ParamDoc::opt(
    "details",
    Kind::List,
    "google.rpc error details, e.g. [{\"@type\": \"google.rpc.RetryInfo\", \"retryDelay\": \"1s\"}]",
);
const METADATA: ParamDoc = ParamDoc::opt(
    "metadata",
    Kind::TextMap,
    "trailers beside the status, e.g. {\"grpc-retry-pushback-ms\": \"50\"}",
);
const HEADERS: ParamDoc = ParamDoc::opt("headers", Kind::TextMap, "header fields of the answer");

const RESPONSE: ActionDoc = ActionDoc {
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
    summary: "this plain HTTP answer, instead of the server's",
};

const DROP: ActionDoc = ActionDoc {
    name: "drop",
    class: Class::Terminal,
    matched: true,
    params: &[ParamDoc::opt(
        "rst",
        Kind::Choice(ERROR_CODES),
        "the code of the RST_STREAM (default INTERNAL_ERROR)",
    )],
    summary: "the stream is reset (RST_STREAM), the connection lives on; the request never reaches the server",
};

const TRUNCATE: ActionDoc = ActionDoc {
    name: "truncate",
    class: Class::Terminal,
    matched: true,
    params: &[ParamDoc::req(
        "bytes",
        Kind::Int(0, i64::MAX),
        "how many bytes of the reply's DATA still arrive",
    )],
    summary: "the reply's DATA is cut after that many bytes and the stream reset",
};

/// The face of `http2`.
pub static HTTP2: ProtocolDoc = ProtocolDoc {
    name: "http2",
    aliases: &["h2", "h2c"],
    summary: "HTTP/2 in clear text: prior knowledge and h2c upgrade; streams, trailers, flow control",
    matchers: &[
        ParamDoc::opt(
            "method",
            Kind::Glob(Dialect::Text),
            "the request's method (case ignored); a pattern that begins with \"/\" is a gRPC method",
        ),
        PATH,
        AUTHORITY,
        HEADER,
        MESSAGES,
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
                    "the text in the body {\"error\": …} (default: the status in words), or the grpc-message",
                ),
                ParamDoc::opt("body", Kind::Body, "the answer's body instead"),
                HEADERS,
                CODE,
                DETAILS,
                METADATA,
            ],
            summary: "an error answer: to a gRPC request its status in trailers, to any other an HTTP status; the request never reaches the server",
        },
        RESPONSE,
        common::DELAY,
        DROP,
        common::RESET,
        TRUNCATE,
        common::THROTTLE,
        common::CORRUPT,
    ],
    steps: steps::HTTP2_DOCS,
};

/// The face of `grpc`.
pub static GRPC: ProtocolDoc = ProtocolDoc {
    name: "grpc",
    aliases: &[],
    summary: "gRPC over HTTP/2 in clear text: unary and streaming calls, metadata, trailers",
    matchers: &[
        ParamDoc::opt(
            "method",
            Kind::Glob(Dialect::Text),
            "the full method, \"/pkg.Svc/Method\"; `*` matches anything",
        ),
        PATH,
        AUTHORITY,
        HEADER,
        MESSAGES,
    ],
    actions: &[
        ActionDoc {
            name: "error",
            class: Class::Terminal,
            matched: true,
            params: &[
                CODE,
                ParamDoc::opt("message", Kind::Text, "the grpc-message"),
                DETAILS,
                METADATA,
            ],
            summary: "this status, UNAVAILABLE unless code= says otherwise, in trailers only; the call never reaches the server",
        },
        RESPONSE,
        common::DELAY,
        DROP,
        common::RESET,
        TRUNCATE,
        common::THROTTLE,
        common::CORRUPT,
    ],
    steps: steps::GRPC_DOCS,
};

/// A rule in the shape in which the proxy asks it.
#[derive(Debug)]
pub struct Http2Rule {
    method: Option<Method>,
    path: Option<Glob>,
    authority: Option<Glob>,
    header: Vec<(String, Glob)>,
    /// Act in mid-stream, when so many messages have passed.
    pub messages: Option<u64>,
    /// What happens when it fires.
    pub action: Action,
}

#[derive(Debug)]
enum Method {
    Http(Glob),
    Grpc(Glob),
}

/// What a rule does.
#[derive(Debug, Clone)]
pub enum Action {
    /// A delay or a throttle: their numbers stand in the rule itself.
    Engine,
    /// An error: in gRPC's words to gRPC, in HTTP's to the rest.
    Error {
        /// For a gRPC request, and on every grpc interface.
        status: Arc<Status>,
        /// For any other; `None` on a grpc interface.
        plain: Option<Arc<Answer>>,
    },
    /// This answer.
    Answer {
        /// What to answer.
        answer: Arc<Answer>,
        /// Does the server handle the request first?
        after: bool,
    },
    /// RST_STREAM with this code.
    Drop(u32),
    /// Reset the connection.
    Reset,
    /// Cut the reply's DATA after so many bytes.
    Truncate(u64),
    /// Invert the byte at this offset of the reply's payload.
    Corrupt(u64),
}

/// A plain HTTP answer that a rule gives.
#[derive(Debug, PartialEq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The header fields, `:status` first.
    pub fields: Vec<Field>,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    fn new(status: u16, headers: Vec<(String, String)>, body: Vec<u8>) -> Answer {
        let mut fields = vec![Field::new(":status", status.to_string())];
        // RFC 9113, section 8.2: names are in lower case.
        fields.extend(
            headers
                .into_iter()
                .map(|(n, v)| Field::new(n.to_ascii_lowercase(), v)),
        );
        if !matches!(status, 204 | 304) {
            fields.push(Field::new("content-length", body.len().to_string()));
        }
        Answer {
            status,
            fields,
            body: if matches!(status, 204 | 304) {
                Bytes::new()
            } else {
                body.into()
            },
        }
    }
}

/// What a request shows to the matchers.
#[derive(Debug, Clone, Default)]
pub struct View {
    fields: Vec<Field>,
}

impl View {
    /// A view of a request's decoded fields.
    pub fn new(fields: Vec<Field>) -> View {
        View { fields }
    }

    /// The first field of this name; empty if there is none.
    pub fn get(&self, name: &str) -> &[u8] {
        self.fields
            .iter()
            .find(|f| f.name == name.as_bytes())
            .map_or(b"", |f| &f.value)
    }

    /// The same, as text for people.
    pub fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(self.get(name)).into_owned()
    }

    /// The path, without the query string.
    pub fn path(&self) -> &[u8] {
        let target = self.get(":path");
        target.split(|b| *b == b'?').next().unwrap_or(target)
    }

    /// Is it a gRPC request, by its content type ("application/grpc", with or without "+proto" and the like)?
    pub fn is_grpc(&self) -> bool {
        self.get("content-type")
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    }

    /// Is it a step's own question for descriptors, which no rule is to see?
    pub fn is_own_reflection(&self) -> bool {
        self.get("user-agent") == steps::REFLECTION_AGENT.as_bytes()
            && self.path().starts_with(b"/grpc.reflection.")
    }

    fn authority(&self) -> &[u8] {
        match self.get(":authority") {
            b"" => self.get("host"),
            authority => authority,
        }
    }
}

impl Http2Rule {
    /// The compiled form of an armed rule of this protocol.
    pub fn of(rule: &ArmedRule) -> Option<&Http2Rule> {
        rule.compiled.downcast_ref()
    }

    /// Do its matchers, all of them, select this request?
    pub fn matches(&self, view: &View) -> bool {
        self.method.as_ref().is_none_or(|m| match m {
            Method::Http(glob) => glob.matches_bytes(view.get(":method")),
            Method::Grpc(glob) => glob.matches_bytes(view.path()),
        }) && self
            .path
            .as_ref()
            .is_none_or(|g| g.matches_bytes(view.path()))
            && self.authority.as_ref().is_none_or(|g| {
                let whole = view.authority();
                g.matches_bytes(whole) || g.matches_bytes(without_port(whole))
            })
            && self.header.iter().all(|(name, glob)| {
                view.fields
                    .iter()
                    .any(|f| f.name == name.as_bytes() && glob.matches_bytes(&f.value))
            })
    }
}

fn without_port(authority: &[u8]) -> &[u8] {
    match authority.iter().rposition(|b| *b == b':') {
        Some(colon) if authority[colon + 1..].iter().all(u8::is_ascii_digit) => &authority[..colon],
        _ => authority,
    }
}

/// Turns a checked rule into an [`Http2Rule`].
///
/// # Errors
/// A pattern that no request can match, an unknown status code, keywords that exclude each other, fields that cannot be sent.
pub fn compile(
    rule: &CheckedRule,
    flavour: Flavour,
) -> Result<Arc<dyn Any + Send + Sync>, ArgError> {
    let glob = |name: &str, dialect| {
        rule.text_of(name)
            .map(|p| Glob::new(p, dialect).map_err(|e| ArgError::new(name, e)))
            .transpose()
    };
    let method = match rule.text_of("method") {
        None => None,
        Some(pattern) if flavour == Flavour::Grpc || pattern.starts_with('/') => {
            check_slash("method", pattern, "a gRPC method")?;
            glob("method", Dialect::Text)?.map(Method::Grpc)
        }
        Some(pattern) => {
            check_method("method", pattern)?;
            glob("method", Dialect::TextNoCase)?.map(Method::Http)
        }
    };
    if let Some(path) = rule.text_of("path") {
        check_slash("path", path, "a request's path")?;
    }
    let mut header = match rule.get("header") {
        Some(map) => globs("header", map)?,
        None => vec![],
    };
    for (name, _) in &mut header {
        name.make_ascii_lowercase();
    }
    let messages = rule.int_of("messages").map(|n| n.max(0) as u64);
    if messages.is_some() && rule.action.name == "response" {
        return Err(ArgError::new(
            "messages",
            "a response cannot begin in the middle of a stream",
        )
        .hint("error(messages=…) ends the stream with a status"));
    }
    let count = |name| rule.int_of(name).unwrap_or(0).max(0) as u64;
    let action = match rule.action.name {
        "error" => error(rule, flavour)?,
        "response" => Action::Answer {
            answer: Arc::new(plain_answer(rule, false)?),
            after: rule.text_of("when") == Some("after"),
        },
        "drop" => Action::Drop(match rule.text_of("rst") {
            Some(name) => ERROR_CODES
                .iter()
                .position(|c| *c == name)
                .map_or(code::INTERNAL_ERROR, |i| i as u32),
            None => code::INTERNAL_ERROR,
        }),
        "reset" => Action::Reset,
        "truncate" => Action::Truncate(count("bytes")),
        "corrupt" => Action::Corrupt(count("offset")),
        _ => Action::Engine,
    };
    Ok(Arc::new(Http2Rule {
        method,
        path: glob("path", Dialect::HttpPath)?,
        authority: glob("authority", Dialect::TextNoCase)?,
        header,
        messages,
        action,
    }))
}

/// Paths begin with "/" (RFC 9113, section 8.3.1), or are "*".
fn check_slash(keyword: &str, pattern: &str, what: &str) -> Result<(), ArgError> {
    if pattern.starts_with(|c: char| c.is_alphanumeric()) {
        let message = format!("`{keyword}`: `{pattern}` can match nothing: {what} begins with `/`");
        return Err(ArgError::new(keyword, message).hint(format!("did you mean `/{pattern}`?")));
    }
    Ok(())
}

fn error(rule: &CheckedRule, flavour: Flavour) -> Result<Action, ArgError> {
    let code = match rule.text_of("code") {
        Some(text) => status::code_of(text)?,
        None => status::UNAVAILABLE,
    };
    let message = rule.text_of("message").unwrap_or(match flavour {
        Flavour::Grpc => "fault injected",
        Flavour::Http2 => "",
    });
    let details = match rule.get("details") {
        Some(Arg::Json(details)) => details.as_array().cloned().unwrap_or_default(),
        _ => vec![],
    };
    let metadata = text_map("metadata", rule.get("metadata"))?;
    if let Some((name, _)) = metadata
        .iter()
        .find(|(n, _)| n.to_ascii_lowercase().starts_with("grpc-status") || n == "grpc-message")
    {
        return Err(ArgError::new(
            "metadata",
            format!("`{name}` follows from `code`, `message` and `details`"),
        ));
    }
    Ok(Action::Error {
        status: Arc::new(Status::new(code, message, &details, metadata)?),
        plain: match flavour {
            Flavour::Grpc => None,
            Flavour::Http2 => Some(Arc::new(plain_answer(rule, true)?)),
        },
    })
}

/// The HTTP answer that an `error` or a `response` rule describes.
fn plain_answer(rule: &CheckedRule, is_error: bool) -> Result<Answer, ArgError> {
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
    let (kind, body) = match (rule.get("body"), rule.get("json")) {
        (Some(body), _) => encode_body(body),
        (None, Some(json)) => encode_json(&json.to_json()),
        (None, None) if is_error => {
            let message = rule.text_of("message").map(Cow::from);
            let message = message.unwrap_or_else(|| words(status));
            encode_json(&json!({ "error": message }))
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
    // RFC 9113, section 8.2.2: fields of the connection make a response malformed.
    if let Some((name, _)) = headers.iter().find(|(n, _)| is_framing(n)) {
        return Err(ArgError::new(
            "headers",
            format!("`{name}` cannot be set on an HTTP/2 answer"),
        ));
    }
    let typed = headers
        .iter()
        .any(|(n, _)| n.eq_ignore_ascii_case("content-type"));
    if let Some(kind) = kind.filter(|_| !typed) {
        headers.push(("content-type".into(), kind.into()));
    }
    Ok(Answer::new(status, headers, body))
}

/// Fields that HTTP/2 forbids, or that follow from the body.
pub fn is_framing(name: &str) -> bool {
    [
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "proxy-connection",
        "upgrade",
    ]
    .iter()
    .any(|n| name.eq_ignore_ascii_case(n))
}
