//! The steps of specs: one request on a connection of its own, or on the one that the caller has kept.

use std::io;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use faultbox_contract::{ArgError, CheckedStep, Endpoint, Kind, ParamDoc, Response, StepDoc};
use faultbox_engine::web::{encode_body, encode_json, reason, target, text_map};
use faultbox_engine::{errno_name, is_quiet, open, send};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::codec::{Body, HeadSearch, Look, RequestKind, with_reply};

const PARAMS: &[ParamDoc] = &[
    ParamDoc::opt(
        "path",
        Kind::Text,
        "the path, with or without a query string (default \"/\")",
    ),
    ParamDoc::opt(
        "body",
        Kind::Body,
        "the body; a dict or a list is sent as JSON",
    ),
    ParamDoc::opt("json", Kind::Json, "a body to be sent as JSON"),
    ParamDoc::opt("headers", Kind::TextMap, "header fields of the request"),
    ParamDoc::opt(
        "query",
        Kind::TextMap,
        "parameters, percent-encoded and added to the path",
    ),
    ParamDoc::opt(
        "timeout",
        Kind::Duration,
        "the longest to wait for the whole reply (default 30s)",
    ),
];

const fn doc(name: &'static str, summary: &'static str) -> StepDoc {
    StepDoc {
        name,
        params: PARAMS,
        variadic: false,
        summary,
    }
}

/// The table.
pub const DOCS: &[StepDoc] = &[
    doc(
        "get",
        "GET; `.data` is the body, decoded if it is JSON; redirects are not followed",
    ),
    doc("post", "POST; as get"),
    doc("put", "PUT; as get"),
    doc("delete", "DELETE; as get"),
    doc("patch", "PATCH; as get"),
    doc("head", "HEAD; the reply has no body"),
    doc("options", "OPTIONS; as get"),
];

/// The largest reply body that a step keeps. A spec looks at bodies; to move bulk data, let a service do it.
const MAX_BODY: usize = 64 << 20;

/// Carries out one step.
///
/// # Errors
/// A path or header that cannot be sent, or two bodies.
pub async fn step(endpoint: Endpoint, call: CheckedStep) -> Result<Response, ArgError> {
    let method = call.step.name.to_ascii_uppercase();
    let request = encode(&endpoint, &method, &call)?;
    let endpoint = match text_map("headers", call.get("headers"))?
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("connection"))
    {
        // What becomes of the connection is the spec's affair.
        true => Endpoint {
            kept: None,
            ..endpoint
        },
        false => endpoint,
    };
    Ok(exchange(&endpoint, &method, &request, call.timeout()).await)
}

/// Any reply below 500 to `GET /` says that the server is ready.
///
/// # Errors
/// Why it is not, yet.
pub async fn ready(endpoint: Endpoint) -> Result<(), String> {
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nUser-Agent: faultbox\r\nAccept: */*\r\n{}\r\n",
        host_field(&endpoint),
        match endpoint.kept {
            Some(_) => "",
            None => "Connection: close\r\n",
        }
    );
    let reply = exchange(&endpoint, "GET", request.as_bytes(), endpoint.attempt).await;
    match reply.status {
        200..=499 => Ok(()),
        0 => Err(reply.error),
        status => Err(format!("GET / answered {status} {}", reason(status as u16))),
    }
}

fn host_field(endpoint: &Endpoint) -> String {
    let host = &endpoint.host;
    match (endpoint.addr.port(), &endpoint.tls) {
        (80, None) | (443, Some(_)) => host.clone(),
        (port, _) if host.contains(':') && !host.starts_with('[') => format!("[{host}]:{port}"),
        (port, _) => format!("{host}:{port}"),
    }
}

/// The request as bytes.
fn encode(endpoint: &Endpoint, method: &str, call: &CheckedStep) -> Result<Vec<u8>, ArgError> {
    let target = target(call)?;
    let (kind, body) = match (call.get("body"), call.get("json")) {
        (Some(_), Some(_)) => {
            return Err(
                ArgError::new("json", "`body` and `json` exclude each other")
                    .hint("leave one of them out"),
            );
        }
        (Some(body), None) => encode_body(body),
        (None, Some(json)) => encode_json(&json.to_json()),
        (None, None) => (None, vec![]),
    };
    let mut headers = text_map("headers", call.get("headers"))?;
    let given = |headers: &[(String, String)], name: &str| {
        headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name))
    };
    for framing in ["content-length", "transfer-encoding"] {
        if given(&headers, framing) {
            return Err(ArgError::new(
                "headers",
                format!("`{framing}` follows from the body and cannot be set"),
            )
            .hint("to send malformed HTTP, declare a tcp interface and use send(data=…)"));
        }
    }
    let mut defaults = vec![
        ("Host", host_field(endpoint)),
        ("User-Agent", "faultbox".into()),
        ("Accept", "*/*".into()),
    ];
    if endpoint.kept.is_none() {
        defaults.push(("Connection", "close".into()));
    }
    if let Some(kind) = kind {
        defaults.push(("Content-Type", kind.into()));
    }
    if !body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH") {
        defaults.push(("Content-Length", body.len().to_string()));
    }
    defaults.retain(|(name, _)| !given(&headers, name));
    let mut out = format!("{method} {target} HTTP/1.1\r\n").into_bytes();
    headers.splice(0..0, defaults.into_iter().map(|(n, v)| (n.to_owned(), v)));
    for (name, value) in &headers {
        out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&body);
    Ok(out)
}

/// A reply while it arrives.
#[derive(Default)]
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Another request may follow on its connection (RFC 9112, 9.3).
    persists: bool,
}

/// Why a reply is not whole.
enum Broken {
    Io(io::Error),
    /// The server closed before the reply was complete.
    Eof,
    Malformed(&'static str),
    TooLarge,
}

async fn exchange(endpoint: &Endpoint, method: &str, request: &[u8], limit: Duration) -> Response {
    let mut reply = Reply::default();
    let mut start = Instant::now();
    let outcome = tokio::time::timeout(limit, async {
        let mut stream = match endpoint.take_kept("").filter(is_quiet) {
            Some(stream) => stream,
            None => open(endpoint, &["http/1.1"]).await.map_err(Broken::Io)?,
        };
        start = Instant::now();
        receive(&mut stream, method, request, &mut reply).await?;
        if reply.persists {
            endpoint.keep("", stream);
        }
        Ok(())
    })
    .await;
    let (code, error) = match outcome {
        Ok(Ok(())) if (200..400).contains(&reply.status) => (String::new(), String::new()),
        Ok(Ok(())) => (
            reply.status.to_string(),
            format!("{} {}", reply.status, reason(reply.status))
                .trim_end()
                .to_owned(),
        ),
        Ok(Err(Broken::Io(e))) => (errno_name(&e), e.to_string()),
        Ok(Err(Broken::Eof)) if reply.status == 0 => (
            "EOF".into(),
            "the connection was closed before an answer".into(),
        ),
        Ok(Err(Broken::Eof)) => (
            "EOF".into(),
            "the connection was closed in the middle of the answer".into(),
        ),
        Ok(Err(Broken::Malformed(why))) => (
            "EPROTO".into(),
            format!("the answer is not HTTP/1.x: {why}"),
        ),
        Ok(Err(Broken::TooLarge)) => (
            "EMSGSIZE".into(),
            "the answer's body is larger than the 64 MiB that a step keeps".into(),
        ),
        Err(_) => (
            "ETIMEDOUT".into(),
            format!(
                "no complete answer within {}",
                faultbox_contract::duration::show(limit)
            ),
        ),
    };
    let body = String::from_utf8_lossy(&reply.body).into_owned();
    Response {
        ok: error.is_empty(),
        status: reply.status.into(),
        code,
        data: decode(&body),
        body,
        headers: reply.headers,
        error,
        duration: start.elapsed(),
    }
}

/// JSON if it is JSON, else the text itself; null without a body.
fn decode(body: &str) -> Value {
    if body.is_empty() {
        return Value::Null;
    }
    serde_json::from_str(body).unwrap_or_else(|_| Value::from(body))
}

/// Sends the request and reads the reply, both at once: a server may answer before it has read all of a body.
async fn receive(
    stream: &mut TcpStream,
    method: &str,
    request: &[u8],
    reply: &mut Reply,
) -> Result<(), Broken> {
    let (mut from, to) = stream.split();
    let mut reading = std::pin::pin!(read_reply(&mut from, method, reply));
    tokio::select! {
        biased;
        done = &mut reading => return done,
        // A failed write is not the outcome: the reply may be on its way, and if not, the read fails too.
        _ = send(to.as_ref(), request) => {}
    }
    reading.await
}

async fn read_reply(
    from: &mut tokio::net::tcp::ReadHalf<'_>,
    method: &str,
    reply: &mut Reply,
) -> Result<(), Broken> {
    let kind = match method {
        "HEAD" => RequestKind::Head,
        _ => RequestKind::Other,
    };
    let mut bytes = BytesMut::with_capacity(16 << 10);
    let mut search = HeadSearch::default();
    let info = loop {
        match search.reply(&bytes, kind, Look::Whole) {
            Ok(Some(info)) if info.is_interim() => bytes.advance(info.len),
            Ok(Some(info)) => break info,
            Ok(None) => {
                if from.read_buf(&mut bytes).await.map_err(Broken::Io)? == 0 {
                    return Err(Broken::Eof);
                }
            }
            Err(malformed) => return Err(Broken::Malformed(malformed.0)),
        }
    };
    reply.status = info.status;
    let read = with_reply(&bytes[..info.len], |head, _| {
        let text = |h: &httparse::Header<'_>| {
            (
                h.name.to_owned(),
                String::from_utf8_lossy(h.value).into_owned(),
            )
        };
        (head.version, head.headers.iter().map(text).collect())
    });
    let version;
    (version, reply.headers) = read.ok().flatten().unwrap_or_default();
    bytes.advance(info.len);
    let mut body = Body::new(info.framing);
    loop {
        let kept = &mut reply.body;
        let n = body
            .advance(&bytes, |range| kept.extend_from_slice(&bytes[range]))
            .map_err(|m| Broken::Malformed(m.0))?;
        bytes.advance(n);
        if body.is_done() {
            let closes = |(name, value): &(String, String)| {
                let mut options = value.split(',').map(str::trim);
                name.eq_ignore_ascii_case("connection")
                    && options.any(|o| o.eq_ignore_ascii_case("close"))
            };
            // 101 has made something else of the connection.
            reply.persists = version == Some(1)
                && bytes.is_empty()
                && reply.status != 101
                && !reply.headers.iter().any(closes);
            return Ok(());
        }
        if reply.body.len() > MAX_BODY {
            return Err(Broken::TooLarge);
        }
        bytes.reserve(64 << 10);
        match from.read_buf(&mut bytes).await {
            Ok(0) if body.is_until_close() => return Ok(()),
            Ok(0) => return Err(Broken::Eof),
            Ok(_) => {}
            Err(e) => return Err(Broken::Io(e)),
        }
    }
}
