//! Plain HTTP/2 requests.

use std::time::{Duration, Instant};

use bytes::Bytes;
use faultbox_contract::{ArgError, CheckedStep, Endpoint, Response};
use faultbox_engine::web::{encode_body, encode_json, reason, target, text_map};
use http::Request;
use serde_json::Value;

use super::client::{Reply, exchange};
use crate::rules::is_framing;

/// Carries out one step.
///
/// # Errors
/// A path or header that cannot be sent, or two bodies.
pub async fn request(endpoint: Endpoint, call: CheckedStep) -> Result<Response, ArgError> {
    let method = call.step.name.to_ascii_uppercase();
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
    if let Some((name, _)) = headers.iter().find(|(n, _)| is_framing(n)) {
        return Err(ArgError::new(
            "headers",
            format!("`{name}` cannot be set on an HTTP/2 request"),
        ));
    }
    for (name, value) in [
        ("user-agent", Some("faultbox")),
        ("accept", Some("*/*")),
        ("content-type", kind),
    ] {
        if let Some(value) = value
            && !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name))
        {
            headers.push((name.into(), value.into()));
        }
    }
    if !body.is_empty() || matches!(&*method, "POST" | "PUT" | "PATCH") {
        headers.push(("content-length".into(), body.len().to_string()));
    }
    let request = build(&endpoint, &method, &target(&call)?, &headers)
        .map_err(|e| ArgError::new("headers", format!("it cannot be sent: {e}")))?;
    Ok(run(&endpoint, request, body.into(), call.timeout()).await)
}

/// Any reply below 500 to `GET /` says that the server is ready.
///
/// # Errors
/// Why it is not, yet.
pub async fn ready(endpoint: Endpoint) -> Result<(), String> {
    let headers = [("user-agent".to_owned(), "faultbox".to_owned())];
    let request = build(&endpoint, "GET", "/", &headers).map_err(|e| e.to_string())?;
    let reply = run(&endpoint, request, Bytes::new(), endpoint.attempt).await;
    match reply.status {
        200..=499 => Ok(()),
        0 => Err(reply.error),
        status => Err(format!("GET / answered {status} {}", reason(status as u16))),
    }
}

/// A request to this endpoint.
///
/// # Errors
/// What cannot be sent.
pub fn build(
    endpoint: &Endpoint,
    method: &str,
    target: &str,
    headers: &[(String, String)],
) -> Result<Request<()>, http::Error> {
    let host = &endpoint.host;
    let authority = match endpoint.addr.port() {
        port if host.contains(':') && !host.starts_with('[') => format!("[{host}]:{port}"),
        port => format!("{host}:{port}"),
    };
    let scheme = match endpoint.tls {
        Some(_) => "https",
        None => "http",
    };
    let mut request = Request::builder()
        .method(method)
        .uri(format!("{scheme}://{authority}{target}"));
    for (name, value) in headers {
        request = request.header(name, value);
    }
    request.body(())
}

async fn run(endpoint: &Endpoint, request: Request<()>, body: Bytes, limit: Duration) -> Response {
    let mut reply = Reply::default();
    let start = Instant::now();
    let outcome = tokio::time::timeout(limit, exchange(endpoint, request, body, &mut reply)).await;
    let (code, error) = match outcome {
        Ok(Ok(())) if (200..400).contains(&reply.status) => (String::new(), String::new()),
        Ok(Ok(())) => (
            reply.status.to_string(),
            format!("{} {}", reply.status, reason(reply.status))
                .trim_end()
                .to_owned(),
        ),
        Ok(Err(broken)) => broken.describe(),
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
