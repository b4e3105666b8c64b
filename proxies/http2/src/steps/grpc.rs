//! gRPC calls.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use faultbox_contract::{Arg, ArgError, CheckedStep, Endpoint, Response};
use faultbox_engine::web::text_map;
use h2::Reason;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions,
};
use serde_json::Value;

use super::client::{Broken, Reply, exchange};
use super::plain::build;
use super::reflection::{self, Unknown, framed, unframe};
use crate::status;

/// Carries out one call.
///
/// # Errors
/// A method that is none, a body that the method does not take, descriptors that cannot be read.
pub async fn call(endpoint: Endpoint, call: CheckedStep) -> Result<Response, ArgError> {
    let start = Instant::now();
    let limit = call.timeout();
    let method = call.text_of("method").unwrap_or_default();
    let (service, name) = split(method)?;
    let metadata = text_map("metadata", call.get("metadata"))?;
    let known = match call.text_of("descriptors") {
        Some(path) => Ok(Ok(from_file(path)?)),
        None => tokio::time::timeout(limit, reflection::describe(&endpoint, service)).await,
    };
    let body = call.get("body").map(Arg::to_json).unwrap_or(Value::Null);
    let descriptor = match known {
        Ok(Ok(pool)) => Some(find(&pool, service, name)?),
        // Without a message there is nothing to encode, and the server says for itself that it has no such method.
        Ok(Err(Unknown::NotTold(_))) if is_empty(&body) => None,
        Ok(Err(Unknown::NotTold(why))) => {
            return Err(ArgError::new(
                "method",
                format!("what `{method}` takes is not known: {why}"),
            )
            .hint("give descriptors=\"file\", from protoc --include_imports --descriptor_set_out=file, or let the server offer reflection"));
        }
        Ok(Err(Unknown::Broken(broken))) => {
            return Ok(failed(Outcome::of(&broken), Value::Null, start));
        }
        Err(_) => return Ok(failed(Outcome::late(limit), Value::Null, start)),
    };
    let messages = encode(descriptor.as_ref(), body)?;
    let left = limit.saturating_sub(start.elapsed());
    let mut headers = vec![
        ("content-type".to_owned(), "application/grpc".to_owned()),
        ("te".into(), "trailers".into()),
        ("user-agent".into(), "faultbox".into()),
        ("grpc-timeout".into(), grpc_timeout(left)),
    ];
    headers.extend(metadata);
    let target = format!("/{service}/{name}");
    let request = build(&endpoint, "POST", &target, &headers)
        .map_err(|e| ArgError::new("metadata", format!("it cannot be sent: {e}")))?;
    let mut reply = Reply::default();
    let start = Instant::now();
    let outcome = match tokio::time::timeout(
        left,
        exchange(&endpoint, request, messages, &mut reply),
    )
    .await
    {
        Ok(Ok(())) => Outcome::read(&reply),
        // A status that has come counts, whatever became of the stream.
        Ok(Err(_)) if reply.field("grpc-status").is_some() => Outcome::read(&reply),
        Ok(Err(broken)) => Outcome::of(&broken),
        Err(_) => Outcome::late(limit),
    };
    let streams = descriptor.as_ref().is_some_and(|d| d.is_server_streaming());
    let data = match decode(descriptor.map(|d| d.output()), &reply.body) {
        Ok(mut messages) if !streams => match messages.pop() {
            Some(one) => one,
            None => Value::Null,
        },
        Ok(messages) => messages.into(),
        Err(why) => {
            let mut broken = failed(Outcome::new(13, why), Value::Null, start);
            broken.headers = reply.headers;
            return Ok(broken);
        }
    };
    let mut response = failed(outcome, data, start);
    response.headers = reply.headers;
    Ok(response)
}

/// Health says SERVING, or the server answers anything at all in gRPC's words (not every server has the health service).
///
/// # Errors
/// Why it is not ready, yet.
pub async fn ready(endpoint: Endpoint) -> Result<(), String> {
    let headers = [
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "faultbox"),
    ]
    .map(|(n, v)| (n.to_owned(), v.to_owned()));
    let request = build(&endpoint, "POST", "/grpc.health.v1.Health/Check", &headers)
        .map_err(|e| e.to_string())?;
    let mut reply = Reply::default();
    let asked = exchange(&endpoint, request, framed(&[]), &mut reply);
    match tokio::time::timeout(endpoint.attempt, asked).await {
        Err(_) => return Err("no answer in time".into()),
        Ok(Err(broken)) if reply.field("grpc-status").is_none() => return Err(broken.describe().1),
        Ok(_) => {}
    }
    match reply.field("grpc-status") {
        Some("0") => {
            // HealthCheckResponse.status = SERVING (grpc/health/v1/health.proto).
            let message = unframe(&mut BytesMut::from(&reply.body[..])).unwrap_or_default();
            match &message[..] {
                [0x08, 1] => Ok(()),
                _ => Err("grpc.health.v1 does not say SERVING".into()),
            }
        }
        Some(_) => Ok(()),
        None => Err(format!("HTTP {} without a grpc-status", reply.status)),
    }
}

/// What came of a call.
struct Outcome {
    code: u32,
    error: String,
}

impl Outcome {
    fn new(code: u32, error: impl Into<String>) -> Outcome {
        Outcome {
            code,
            error: error.into(),
        }
    }

    /// The status that a complete reply carries; without one, what its HTTP status means ("HTTP to gRPC Status Code Mapping").
    fn read(reply: &Reply) -> Outcome {
        if let Some(code) = reply.field("grpc-status").and_then(|c| c.parse().ok()) {
            let message = reply.field("grpc-message").unwrap_or_default();
            return Outcome::new(code, status::percent_decode(message.as_bytes()));
        }
        let code = match reply.status {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502..=504 => 14,
            _ => 2,
        };
        Outcome::new(code, format!("HTTP {} without a grpc-status", reply.status))
    }

    /// What a broken stream means ("Errors" of gRPC over HTTP/2).
    fn of(broken: &Broken) -> Outcome {
        let code = match broken {
            Broken::Reset(Reason::CANCEL) => 1,
            Broken::Reset(Reason::REFUSED_STREAM) => 14,
            Broken::Reset(Reason::ENHANCE_YOUR_CALM) => 8,
            Broken::Reset(Reason::INADEQUATE_SECURITY) => 7,
            Broken::Reset(_) | Broken::Malformed(_) => 13,
            Broken::TooLarge => 8,
            Broken::Io(_) | Broken::Eof | Broken::GoAway(_) => 14,
        };
        Outcome::new(code, broken.describe().1)
    }

    fn late(limit: Duration) -> Outcome {
        let limit = faultbox_contract::duration::show(limit);
        Outcome::new(4, format!("no complete answer within {limit}"))
    }
}

fn failed(outcome: Outcome, data: Value, start: Instant) -> Response {
    let ok = outcome.code == 0;
    Response {
        ok,
        status: outcome.code.into(),
        code: if ok {
            String::new()
        } else {
            status::name(outcome.code)
        },
        body: if data.is_null() {
            String::new()
        } else {
            data.to_string()
        },
        data,
        headers: vec![],
        error: match outcome.error {
            error if !ok && error.is_empty() => status::name(outcome.code),
            error => error,
        },
        duration: start.elapsed(),
    }
}

/// "/pkg.Svc/Method" in its two parts.
fn split(method: &str) -> Result<(&str, &str), ArgError> {
    method
        .strip_prefix('/')
        .and_then(|m| m.split_once('/'))
        .filter(|(service, name)| !service.is_empty() && !name.is_empty() && !name.contains('/'))
        .ok_or_else(|| {
            ArgError::new("method", format!("`{method}` is not a full method"))
                .hint("it is written \"/package.Service/Method\"")
        })
}

fn from_file(path: &str) -> Result<DescriptorPool, ArgError> {
    let refuse = |why: String| {
        ArgError::new("descriptors", format!("{path}: {why}"))
            .hint("it is made by protoc --include_imports --descriptor_set_out=file")
    };
    let bytes = std::fs::read(path).map_err(|e| refuse(e.to_string()))?;
    DescriptorPool::decode(&*bytes).map_err(|e| refuse(e.to_string()))
}

fn find(pool: &DescriptorPool, service: &str, name: &str) -> Result<MethodDescriptor, ArgError> {
    let Some(found) = pool.get_service_by_name(service) else {
        let known: Vec<_> = pool.services().map(|s| s.full_name().to_owned()).collect();
        return Err(
            ArgError::new("method", format!("there is no service `{service}`"))
                .hint(format!("there are {}", known.join(", "))),
        );
    };
    let method = found.methods().find(|m| m.name() == name);
    method.ok_or_else(|| {
        let known: Vec<_> = found.methods().map(|m| m.name().to_owned()).collect();
        ArgError::new(
            "method",
            format!("service `{service}` has no method `{name}`"),
        )
        .hint(format!("its methods are {}", known.join(", ")))
    })
}

fn is_empty(body: &Value) -> bool {
    match body {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// The request's messages with their prefixes.
fn encode(method: Option<&MethodDescriptor>, body: Value) -> Result<Bytes, ArgError> {
    let Some(method) = method else {
        return Ok(framed(&[]));
    };
    let bodies = match body {
        Value::Array(list) if method.is_client_streaming() => list,
        Value::Null => vec![Value::Object(serde_json::Map::new())],
        one => vec![one],
    };
    let mut out = BytesMut::new();
    for body in bodies {
        let message = DynamicMessage::deserialize(method.input(), body).map_err(|e| {
            ArgError::new("body", format!("`body`: {e}")).hint(format!(
                "`{}` has the fields {}",
                method.input().full_name(),
                fields(&method.input())
            ))
        })?;
        out.extend_from_slice(&framed(&message.encode_to_vec()));
    }
    Ok(out.freeze())
}

fn fields(message: &MessageDescriptor) -> String {
    let names: Vec<_> = message.fields().map(|f| f.json_name().to_owned()).collect();
    names.join(", ")
}

/// The reply's messages as protobuf's JSON, with default values shown and 64-bit integers as numbers.
fn decode(kind: Option<MessageDescriptor>, body: &[u8]) -> Result<Vec<Value>, String> {
    let Some(kind) = kind else {
        return Ok(vec![]);
    };
    let options = SerializeOptions::new()
        .skip_default_fields(false)
        .stringify_64_bit_integers(false);
    let mut buffer = BytesMut::from(body);
    let mut messages = vec![];
    while let Some(bytes) = unframe(&mut buffer) {
        let message = DynamicMessage::decode(kind.clone(), bytes)
            .map_err(|e| format!("the answer is not a {}: {e}", kind.full_name()))?;
        messages.push(
            message
                .serialize_with_options(serde_json::value::Serializer, &options)
                .map_err(|e| format!("the answer cannot be shown: {e}"))?,
        );
    }
    Ok(messages)
}

/// A deadline as gRPC writes it: at most eight digits and a unit.
fn grpc_timeout(left: Duration) -> String {
    match u32::try_from(left.as_millis()) {
        Ok(ms) if ms < 100_000_000 => format!("{}m", ms.max(1)),
        _ => format!("{}S", left.as_secs().min(99_999_999)),
    }
}
