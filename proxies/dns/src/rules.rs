//! What can be matched on a DNS query and what can be done to it.

use std::any::Any;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use faultbox_contract::doc::{Class, common};
use faultbox_contract::rule::nearest_hint;
use faultbox_contract::{
    ActionDoc, Arg, ArgError, ArmedRule, CheckedRule, Dialect, Glob, Kind, ParamDoc, ProtocolDoc,
};
use serde_json::Value;

use crate::answer::{self, Answer, Carrier, Reply};
use crate::codec::{Query, put_name};
use crate::{records, steps};

/// The longest text of an extended error: it must fit into a datagram.
const LONGEST_MESSAGE: usize = 256;
/// RFC 2181, section 8.
const LONGEST_TTL: i64 = i32::MAX as i64;
/// What an answer may be kept for, unless the rule says otherwise: long enough to be used, short enough to be over with the test.
const USUAL_TTL: i64 = 60;
/// The most bytes of one answer's records: a message has 65 535 in all.
const MOST_BYTES: usize = 60_000;

/// DNS' face.
pub static DOC: ProtocolDoc = ProtocolDoc {
    name: "dns",
    aliases: &[],
    summary: "DNS over UDP and over TCP, on the same port",
    matchers: &[
        ParamDoc::opt(
            "name",
            Kind::Glob(Dialect::TextNoCase),
            "the name asked for; `*` crosses dots, as in *.example.com",
        ),
        ParamDoc::opt(
            "type",
            Kind::Code,
            "the type asked for: \"A\", \"AAAA\", 65",
        ),
    ],
    actions: &[
        ActionDoc {
            name: "error",
            class: Class::Terminal,
            matched: true,
            params: &[
                ParamDoc::opt(
                    "code",
                    Kind::Code,
                    "the response code (default \"SERVFAIL\"; \"NXDOMAIN\", \"REFUSED\", …)",
                ),
                ParamDoc::opt(
                    "message",
                    Kind::Text,
                    "text of an extended error, for clients with EDNS",
                ),
            ],
            summary: "an empty reply with this response code; the query never reaches the server",
        },
        ActionDoc {
            name: "response",
            class: Class::Terminal,
            matched: true,
            params: &[
                ParamDoc::req(
                    "records",
                    Kind::List,
                    "addresses, \"MX 10 mail.example.com\", or dicts of type, data, name, ttl; those of the type asked for are sent",
                ),
                ParamDoc::opt(
                    "ttl",
                    Kind::Int(0, LONGEST_TTL),
                    "how many seconds the answer may be kept (default 60)",
                ),
            ],
            summary: "these records; the query never reaches the server",
        },
        ActionDoc {
            summary: "the query is held, then goes on; later ones overtake it",
            ..common::DELAY
        },
        ActionDoc {
            name: "drop",
            class: Class::Terminal,
            matched: true,
            params: &[],
            summary: "no reply: the client waits until its own time-out",
        },
        ActionDoc {
            name: "truncate",
            class: Class::Terminal,
            matched: true,
            params: &[],
            summary: "over UDP, an empty reply that says it was cut, so that the client asks again over TCP; TCP is left alone",
        },
    ],
    steps: steps::DOCS,
};

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Served by the engine.
    Delay,
    /// No reply.
    Drop,
    /// This reply.
    Reply(Reply),
    /// A reply that is cut.
    Truncate,
}

/// A rule in the shape in which the proxy asks it.
#[derive(Debug)]
pub struct DnsRule {
    name: Option<Glob>,
    kind: Option<u16>,
    /// What happens when it fires.
    pub action: Action,
}

impl DnsRule {
    /// The compiled form of an armed rule of this protocol.
    pub fn of(rule: &ArmedRule) -> Option<&DnsRule> {
        rule.compiled.downcast_ref()
    }

    /// Does it select this query?
    pub fn matches(&self, query: &Query, carrier: Carrier) -> bool {
        let possible = self.action != Action::Truncate || carrier == Carrier::Datagram;
        possible
            && self.kind.is_none_or(|kind| kind == query.kind)
            && self
                .name
                .as_ref()
                .is_none_or(|glob| glob.matches(&query.name))
    }
}

/// Turns a checked rule into a [`DnsRule`].
///
/// # Errors
/// An unknown type or response code, or records that cannot be written.
pub fn compile(rule: &CheckedRule) -> Result<Arc<dyn Any + Send + Sync>, ArgError> {
    let kind = rule.text_of("type").map(read_type).transpose()?;
    let action = match rule.action.name {
        "drop" => Action::Drop,
        "truncate" => Action::Truncate,
        "error" => Action::Reply(Reply {
            code: rule
                .text_of("code")
                .map_or(Ok(answer::SERVFAIL), read_code)?,
            answers: vec![],
            message: rule.text_of("message").map(read_message).transpose()?,
        }),
        "response" => Action::Reply(Reply {
            answers: read_records(rule.get("records"), rule.int_of("ttl").unwrap_or(USUAL_TTL))?,
            ..Reply::default()
        }),
        _ => Action::Delay,
    };
    Ok(Arc::new(DnsRule {
        name: rule.text_of("name").map(read_name).transpose()?,
        kind,
        action,
    }))
}

/// A pattern may end in the root's dot; names are shown without it.
fn read_name(pattern: &str) -> Result<Glob, ArgError> {
    let bare = match pattern.strip_suffix('.') {
        Some(bare) if !bare.is_empty() && !bare.ends_with('\\') => bare,
        _ => pattern,
    };
    Glob::new(bare, Dialect::TextNoCase).map_err(|e| ArgError::new("name", e))
}

/// The number of a type.
///
/// # Errors
/// There is no such type.
pub fn read_type(text: &str) -> Result<u16, ArgError> {
    records::type_number(text).ok_or_else(|| {
        ArgError::new("type", format!("`{text}` is no record type"))
            .hint(nearest_hint(&text.to_uppercase(), records::WRITABLE))
    })
}

fn read_code(text: &str) -> Result<u16, ArgError> {
    answer::code_number(text).ok_or_else(|| {
        ArgError::new("code", format!("`{text}` is no response code"))
            .hint(nearest_hint(&text.to_uppercase(), &answer::code_names()))
    })
}

fn read_message(text: &str) -> Result<String, ArgError> {
    match text.len() <= LONGEST_MESSAGE {
        true => Ok(text.to_owned()),
        false => Err(ArgError::new(
            "message",
            format!("`message` has more than {LONGEST_MESSAGE} bytes"),
        )),
    }
}

fn read_records(records: Option<&Arg>, ttl: i64) -> Result<Vec<Answer>, ArgError> {
    let wrong = |e: String| ArgError::new("records", format!("`records`: {e}"));
    let Some(Arg::Json(Value::Array(items))) = records else {
        return Err(wrong("expected a list".into()));
    };
    let mut answers = vec![];
    // Behind a CNAME stands what its target has, as in any server's answer.
    let mut owner = None;
    let mut size = 0;
    for item in items {
        let answer = read_record(item, &owner, ttl).map_err(wrong)?;
        size += answer.data.len() + answer.owner.as_ref().map_or(2, Vec::len) + 10;
        if answer.kind == records::CNAME {
            owner = Some(answer.data.clone());
        }
        answers.push(answer);
    }
    if size > MOST_BYTES {
        return Err(wrong(format!("more than {MOST_BYTES} bytes in one reply")));
    }
    Ok(answers)
}

fn read_record(item: &Value, owner: &Option<Vec<u8>>, ttl: i64) -> Result<Answer, String> {
    match item {
        Value::String(text) => {
            let (kind, data) = split_record(text)?;
            Ok(Answer {
                owner: owner.clone(),
                kind,
                ttl: u32::try_from(ttl).unwrap_or(0),
                data: records::encode(kind, data)?,
            })
        }
        Value::Object(map) => {
            const KEYS: &[&str] = &["type", "data", "name", "ttl"];
            if let Some(key) = map.keys().find(|k| !KEYS.contains(&k.as_str())) {
                return Err(format!(
                    "a record has no `{key}`; it has {}",
                    KEYS.join(", ")
                ));
            }
            let data = map
                .get("data")
                .and_then(Value::as_str)
                .ok_or("a record needs `data`, a string")?;
            let kind = match map.get("type") {
                None => split_record(data)?.0,
                Some(kind) => kind
                    .as_str()
                    .and_then(records::type_number)
                    .ok_or_else(|| format!("{kind} is no record type"))?,
            };
            let owner = match map.get("name") {
                None => owner.clone(),
                Some(name) => {
                    let name = name.as_str().ok_or("`name` is a string")?;
                    let mut wire = vec![];
                    put_name(name, &mut wire)?;
                    Some(wire)
                }
            };
            let ttl = match map.get("ttl") {
                None => ttl,
                Some(ttl) => ttl
                    .as_i64()
                    .filter(|t| (0..=LONGEST_TTL).contains(t))
                    .ok_or("`ttl` is a number of seconds")?,
            };
            Ok(Answer {
                owner,
                kind,
                ttl: u32::try_from(ttl).unwrap_or(0),
                data: records::encode(kind, data)?,
            })
        }
        other => Err(format!("{other} is no record: write a string or a dict")),
    }
}

/// An address says its type itself; other data stands behind the name of its type.
fn split_record(text: &str) -> Result<(u16, &str), String> {
    if text.parse::<Ipv4Addr>().is_ok() {
        return Ok((records::A, text));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Ok((records::AAAA, text));
    }
    text.split_once(' ')
        .and_then(|(kind, data)| Some((records::type_number(kind)?, data)))
        .ok_or_else(|| format!("`{text}` has no type: write \"MX 10 mail.example.com\""))
}
