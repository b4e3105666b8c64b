//! Just enough HTTP/1.1 for one request per connection, or several on a kept one.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::calls::errno_name;

/// A request's target, taken apart.
pub struct Request {
    /// The path.
    pub path: String,
    /// The query.
    pub query: Query,
}

/// A query string.
pub struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Query {
        let pairs = text
            .split('&')
            .filter(|p| !p.is_empty())
            .map(|p| p.split_once('=').unwrap_or((p, "")));
        Query(pairs.map(|(k, v)| (decode(k), decode(v))).collect())
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// The value of `name`, or an error that a spec can read.
    pub fn need(&self, name: &str) -> Result<&str, String> {
        self.get(name)
            .ok_or_else(|| format!("missing query parameter {name}"))
    }

    /// The query without one parameter, as text.
    pub fn without(&self, name: &str) -> String {
        self.0
            .iter()
            .filter(|(n, _)| n != name)
            .map(|(n, v)| format!("{n}={}", v.replace('%', "%25").replace('&', "%26")))
            .collect::<Vec<_>>()
            .join("&")
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut i) = (vec![], 0);
    while i < bytes.len() {
        let hex = (bytes[i] == b'%')
            .then(|| {
                text.get(i + 1..i + 3)
                    .and_then(|h| u8::from_str_radix(h, 16).ok())
            })
            .flatten();
        out.push(hex.unwrap_or(if bytes[i] == b'+' { b' ' } else { bytes[i] }));
        i += if hex.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Answers requests on `stream` until the client closes it.
pub fn serve(stream: TcpStream, answer: fn(&Request) -> (u16, Value)) {
    let Ok(clone) = stream.try_clone() else {
        return;
    };
    let (mut reader, mut writer) = (BufReader::new(clone), stream);
    while let Ok(Some((line, _))) = head(&mut reader) {
        let target = line.split(' ').nth(1).unwrap_or("/");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (status, body) = answer(&Request {
            path: decode(path),
            query: Query::parse(query),
        });
        let body = body.to_string();
        let reply = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if writer.write_all(reply.as_bytes()).is_err() {
            return;
        }
    }
}

/// Reads a message head and its body: the first line, and the body's bytes. `None` at the end of the stream.
fn head(reader: &mut impl BufRead) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let (mut first, mut length) = (String::new(), 0);
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line
            .split_once(':')
            .filter(|(n, _)| n.eq_ignore_ascii_case("content-length"))
        {
            let _ = name;
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some((first.trim().to_owned(), body)))
}

/// One GET on a new connection: the status and the JSON body; an error is an errno's name.
pub fn get(addr: &str, target: &str) -> Result<(u16, Value), String> {
    let mut stream = TcpStream::connect(addr).map_err(|e| errno_name(&e))?;
    exchange(&mut stream, target)
}

/// One GET on an open connection.
pub fn exchange(stream: &mut TcpStream, target: &str) -> Result<(u16, Value), String> {
    stream
        .write_all(format!("GET {target} HTTP/1.1\r\nHost: victim\r\n\r\n").as_bytes())
        .map_err(|e| errno_name(&e))?;
    let mut reader = BufReader::new(stream);
    let (line, body) = head(&mut reader)
        .map_err(|e| errno_name(&e))?
        .ok_or("EOF")?;
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .ok_or("EPROTO")?;
    Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}
