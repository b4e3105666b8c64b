//! Requests and replies.

use serde_json::Value;

/// A request as the handler sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// "GET"
    pub method: String,
    /// The request target without its query.
    pub path: String,
    /// What follows the `?`, as sent.
    pub query: String,
    /// The body, whole.
    pub body: Vec<u8>,
    /// May another request follow on this connection?
    pub keep_alive: bool,
}

impl Request {
    /// The value of a query parameter, decoded.
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(n, _)| *n == name)
            .map(|(_, value)| percent_decode(value))
    }
}

/// `+` is a space, `%41` is `A`; what is no such sequence stands for itself.
fn percent_decode(text: &str) -> String {
    let mut out = vec![];
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        match (first, hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = &tail[2..];
                continue;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(*byte),
        }
        rest = tail;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A reply with a JSON body.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Value,
}

impl Reply {
    /// A reply with a JSON body.
    pub fn new(status: u16, body: Value) -> Reply {
        Reply { status, body }
    }

    /// `{"error": message}`.
    pub fn error(status: u16, message: impl Into<String>) -> Reply {
        Reply::new(status, serde_json::json!({ "error": message.into() }))
    }

    /// The reply as it goes over the wire.
    pub fn encode(&self, keep_alive: bool) -> Vec<u8> {
        let body = self.body.to_string();
        let connection = if keep_alive { "keep-alive" } else { "close" };
        format!(
            "HTTP/1.1 {} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
            self.status,
            reason(self.status),
            body.len(),
        )
        .into_bytes()
    }
}

/// A request as it goes over the wire; the connection closes after its reply.
pub fn encode_request(method: &str, host: &str, target: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        507 => "Insufficient Storage",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let request = Request {
            method: "GET".into(),
            path: "/search".into(),
            query: "a=1&q=red+sh%6Fes%2&b".into(),
            body: vec![],
            keep_alive: true,
        };
        assert_eq!(request.parameter("q").as_deref(), Some("red shoes%2"));
        assert_eq!(request.parameter("b"), None);
    }
}
