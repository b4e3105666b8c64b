//! gRPC: `"/orders.OrderService/Get": reply(body={"id": 1})`, with the types of a descriptor set; health and reflection of its own.

mod health;
mod reflection;
mod server;

use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use faultbox_contract::rule::nearest;
use faultbox_contract::{Arg, ArgError, Dialect, Glob, Kind, ParamDoc};
use faultbox_engine::web::text_map;
use faultbox_http2::status::{self, Status};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, SerializeOptions};
use serde_json::Value;

use crate::script::Script;

pub(crate) use server::Server;

/// The protocol's part of a route, with the types that it knows.
#[derive(Debug, Default)]
pub struct Grpc {
    pool: Option<DescriptorPool>,
}

/// `"/pkg.Service/Method"`, or a glob on that.
#[derive(Debug)]
pub struct Pattern {
    glob: Glob,
    /// The method that it means, if it means one that is known.
    method: Option<MethodDescriptor>,
}

/// A call, as patterns see it.
#[derive(Debug)]
pub struct Request {
    /// "/pkg.Service/Method".
    pub method: String,
}

/// A reply made ready, as far as it can be without its method.
#[derive(Debug)]
pub struct Reply {
    messages: Messages,
    status: Status,
    /// Metadata before the messages.
    headers: Vec<(String, String)>,
}

#[derive(Debug)]
enum Messages {
    /// In JSON, of the method's type.
    Json(Vec<Value>),
    /// Encoded already.
    Raw(Vec<u8>),
    /// An error needs none.
    None,
}

/// What the server tells of a call.
pub(crate) const CALL_FIELDS: &[&str] = &[
    "method", "metadata", "json", "messages", "size", "code", "status",
];

static KEYWORDS: &[ParamDoc] = &[
    ParamDoc::opt(
        "body",
        Kind::Json,
        "the message, as a dict; of a method that streams, a list of them",
    ),
    ParamDoc::opt("raw", Kind::Bytes, "the message, encoded already"),
    ParamDoc::opt(
        "code",
        Kind::Code,
        "an error's code by name or number, e.g. \"UNAVAILABLE\"",
    ),
    ParamDoc::opt("message", Kind::Text, "an error's text"),
    ParamDoc::opt("details", Kind::List, "an error's details (google.rpc)"),
    ParamDoc::opt("headers", Kind::TextMap, "metadata before the message"),
    ParamDoc::opt("trailers", Kind::TextMap, "metadata after it"),
];

impl Grpc {
    /// With the types in this file, if there is one.
    ///
    /// # Errors
    /// It cannot be read, or holds no descriptor set.
    pub fn open(descriptors: Option<&Path>) -> Result<Grpc, ArgError> {
        let Some(path) = descriptors else {
            return Ok(Grpc::default());
        };
        let refuse = |why: String| {
            ArgError::new("descriptors", format!("{}: {why}", path.display()))
                .hint("it is made by protoc --include_imports --descriptor_set_out=FILE")
        };
        let bytes = std::fs::read(path).map_err(|e| refuse(e.to_string()))?;
        let pool = DescriptorPool::decode(&*bytes).map_err(|e| refuse(e.to_string()))?;
        Ok(Grpc { pool: Some(pool) })
    }

    /// What is known of a method.
    fn method(&self, path: &str) -> Option<MethodDescriptor> {
        let (service, name) = path.strip_prefix('/')?.split_once('/')?;
        let service = self.pool.as_ref()?.get_service_by_name(service)?;
        service.methods().find(|m| m.name() == name)
    }

    /// Every method that is known.
    fn methods(&self) -> Vec<String> {
        self.pool
            .iter()
            .flat_map(DescriptorPool::services)
            .flat_map(|s| {
                let service = s.full_name().to_owned();
                s.methods()
                    .map(move |m| format!("/{service}/{}", m.name()))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// The messages of a reply with their prefixes.
    fn encode(&self, method: Option<&MethodDescriptor>, reply: &Reply) -> Result<Bytes, String> {
        let mut out = BytesMut::new();
        match (&reply.messages, method) {
            (Messages::None, _) => {}
            (Messages::Raw(bytes), _) => put_message(&mut out, bytes),
            (Messages::Json(_), None) => {
                return Err(
                    "the descriptors do not have this method, so its message cannot be encoded"
                        .into(),
                );
            }
            (Messages::Json(list), Some(method)) => {
                if list.len() != 1 && !method.is_server_streaming() {
                    return Err(format!(
                        "{} answers one message, and these are {}",
                        method.full_name(),
                        list.len()
                    ));
                }
                for one in list {
                    let kind = method.output();
                    let message =
                        DynamicMessage::deserialize(kind.clone(), one.clone()).map_err(|e| {
                            let fields: Vec<String> =
                                kind.fields().map(|f| f.json_name().to_owned()).collect();
                            format!(
                                "{e}; {} has the fields {}",
                                kind.full_name(),
                                fields.join(", ")
                            )
                        })?;
                    put_message(&mut out, &message.encode_to_vec());
                }
            }
        }
        Ok(out.freeze())
    }

    /// A message of a request as JSON; null where its type is not known.
    fn decode(method: Option<&MethodDescriptor>, bytes: &[u8]) -> Value {
        let options = SerializeOptions::new()
            .skip_default_fields(false)
            .stringify_64_bit_integers(false);
        method
            .and_then(|m| DynamicMessage::decode(m.input(), bytes).ok())
            .and_then(|message| {
                message
                    .serialize_with_options(serde_json::value::Serializer, &options)
                    .ok()
            })
            .unwrap_or(Value::Null)
    }
}

/// Appends a message with its prefix: not compressed, and its length.
fn put_message(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u8(0);
    out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

impl Script for Grpc {
    type Pattern = Pattern;
    type Request = Request;
    type Reply = Reply;

    fn name(&self) -> &'static str {
        "grpc"
    }

    fn shorthand(&self) -> Option<&'static str> {
        Some("body")
    }

    fn keywords(&self) -> &'static [ParamDoc] {
        KEYWORDS
    }

    fn pattern(&self, text: &str) -> Result<Pattern, ArgError> {
        let glob = Glob::new(text, Dialect::Text).map_err(|e| ArgError::new("", e))?;
        if !text.starts_with(['/', '*']) {
            return Err(
                ArgError::new("", format!("`{text}` does not begin with a `/`"))
                    .hint("a route is written \"/package.Service/Method\""),
            );
        }
        let method = self.method(text);
        let is_literal = !text.contains(['*', '?', '[', '{', '\\']);
        if self.pool.is_some() && method.is_none() && is_literal {
            let known = self.methods();
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let error = ArgError::new("", format!("the descriptors have no method `{text}`"));
            return Err(match nearest(text, &known) {
                Some(best) => error.hint(format!("did you mean `{best}`?")),
                None => error.hint(format!("they have {}", known.join(", "))),
            });
        }
        Ok(Pattern { glob, method })
    }

    fn reply(&self, args: Vec<(String, Arg)>) -> Result<Reply, ArgError> {
        let get = |name: &str| args.iter().find(|(n, _)| n == name).map(|(_, arg)| arg);
        let code = match get("code").and_then(Arg::as_str) {
            // The table of errors does not have it: it is none.
            Some("OK" | "ok" | "0") | None => 0,
            Some(text) => status::code_of(text)?,
        };
        let text = get("message").and_then(Arg::as_str).unwrap_or_default();
        if code == 0 && (get("message").is_some() || get("details").is_some()) {
            return Err(
                ArgError::new("message", "a message and details belong to an error")
                    .hint("give its code=, too"),
            );
        }
        let details = match get("details").map(Arg::to_json) {
            Some(Value::Array(list)) => list,
            _ => vec![],
        };
        let messages = match (get("body").filter(|a| **a != Arg::None), get("raw")) {
            (Some(_), Some(_)) => {
                return Err(ArgError::new("raw", "`body` and `raw` exclude each other"));
            }
            (Some(_), None) if self.pool.is_none() => {
                return Err(
                    ArgError::new("body", "a body needs the types of its method").hint(
                        "give mock_service() descriptors=, a file made by protoc --include_imports --descriptor_set_out=FILE; or raw=, the encoded message",
                    ),
                );
            }
            (Some(body), None) => match body.to_json() {
                Value::Array(list) => Messages::Json(list),
                one => Messages::Json(vec![one]),
            },
            (None, Some(Arg::Bytes(bytes))) => Messages::Raw(bytes.clone()),
            (None, Some(other)) => {
                Messages::Raw(other.as_str().unwrap_or_default().as_bytes().to_vec())
            }
            (None, None) if code == 0 => Messages::Raw(vec![]),
            (None, None) => Messages::None,
        };
        Ok(Reply {
            messages,
            status: Status::new(code, text, &details, text_map("trailers", get("trailers"))?)?,
            headers: text_map("headers", get("headers"))?,
        })
    }

    fn fits(&self, pattern: &Pattern, reply: &Reply) -> Result<(), ArgError> {
        match &pattern.method {
            Some(method) => self
                .encode(Some(method), reply)
                .map(drop)
                .map_err(|e| ArgError::new("body", format!("`body`: {e}"))),
            None => Ok(()),
        }
    }

    fn selects(&self, pattern: &Pattern, request: &Request) -> bool {
        pattern.glob.matches(&request.method)
    }
}
