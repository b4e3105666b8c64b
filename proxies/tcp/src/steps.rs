//! The steps of specs: one exchange on a connection of its own.

use std::io;
use std::time::Instant;

use faultbox_contract::{Arg, CheckedStep, Endpoint, Kind, ParamDoc, Response, StepDoc};
use faultbox_engine::{errno_name, open};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The table.
pub const DOCS: &[StepDoc] = &[StepDoc {
    name: "send",
    params: &[
        ParamDoc::req("data", Kind::Bytes, "what to send"),
        ParamDoc::opt(
            "expect",
            Kind::ChoiceOrInt(&["line", "eof"]),
            "what to read: a line (default), so many bytes, or all until the server closes",
        ),
        ParamDoc::opt(
            "timeout",
            Kind::Duration,
            "the longest the whole exchange may take (default 30s)",
        ),
    ],
    variadic: false,
    summary: "sends, then reads; `.data` is the text read, without the line's end. With expect=\"line\" text that has no line end gets one",
}];

/// The most that a step reads.
const MAX_READ: usize = 64 << 20;

/// How much to read.
#[derive(Clone, Copy, PartialEq)]
enum Expect {
    Line,
    Bytes(usize),
    Eof,
}

/// Sends, and reads what is expected.
pub async fn send(endpoint: &Endpoint, call: &CheckedStep) -> Response {
    let expect = match call.get("expect") {
        Some(Arg::Int(n)) => Expect::Bytes(usize::try_from(*n).unwrap_or(usize::MAX)),
        Some(Arg::Str(word)) if word == "eof" => Expect::Eof,
        _ => Expect::Line,
    };
    let data = match call.get("data") {
        Some(Arg::Bytes(bytes)) => bytes.clone(),
        other => {
            let mut text = other.and_then(Arg::as_str).unwrap_or_default().to_owned();
            if expect == Expect::Line && !text.ends_with('\n') {
                text.push('\n');
            }
            text.into_bytes()
        }
    };
    let mut read = vec![];
    let mut start = Instant::now();
    let limit = call.timeout();
    let outcome = tokio::time::timeout(limit, async {
        let stream = open(endpoint, &[]).await?;
        start = Instant::now();
        exchange(stream, &data, expect, &mut read).await
    })
    .await;
    let (code, error) = match outcome {
        Ok(Ok(true)) => (String::new(), String::new()),
        Ok(Ok(false)) => (
            "EOF".into(),
            "the connection was closed before what was expected had come".into(),
        ),
        Ok(Err(e)) => (errno_name(&e), e.to_string()),
        Err(_) => (
            "ETIMEDOUT".into(),
            format!(
                "not complete within {}",
                faultbox_contract::duration::show(limit)
            ),
        ),
    };
    let duration = start.elapsed();
    if expect == Expect::Line {
        while read.last().is_some_and(|b| matches!(b, b'\r' | b'\n')) {
            read.pop();
        }
    }
    let body = String::from_utf8_lossy(&read).into_owned();
    Response {
        ok: error.is_empty(),
        code,
        data: Value::from(body.as_str()),
        body,
        error,
        duration,
        ..Response::default()
    }
}

/// Returns whether all that was expected has come.
async fn exchange(
    mut stream: tokio::net::TcpStream,
    data: &[u8],
    expect: Expect,
    read: &mut Vec<u8>,
) -> io::Result<bool> {
    let (mut from, mut to) = stream.split();
    let reading = async {
        let mut scanned = 0;
        loop {
            match expect {
                Expect::Line => {
                    if let Some(end) = read[scanned..].iter().position(|b| *b == b'\n') {
                        read.truncate(scanned + end + 1);
                        return Ok(true);
                    }
                    scanned = read.len();
                }
                Expect::Bytes(n) => {
                    if read.len() >= n {
                        read.truncate(n);
                        return Ok(true);
                    }
                }
                Expect::Eof => {}
            }
            if read.len() >= MAX_READ {
                return Err(io::Error::other("more than the 64 MiB that a step keeps"));
            }
            if from.read_buf(read).await? == 0 {
                return Ok(expect == Expect::Eof);
            }
        }
    };
    let mut reading = std::pin::pin!(reading);
    let writing = async {
        let sent = to.write_all(data).await;
        // A server that answers at the end of its input needs to see that end.
        if expect == Expect::Eof {
            let _ = to.shutdown().await;
        }
        sent
    };
    tokio::select! {
        // A server may answer, and even close, before it has read everything.
        biased;
        done = &mut reading => done,
        // If the write fails, the read says why.
        _ = writing => reading.await,
    }
}

/// A server that accepts is ready.
///
/// # Errors
/// Why it does not.
pub async fn ready(endpoint: Endpoint) -> Result<(), String> {
    match tokio::time::timeout(endpoint.attempt, open(&endpoint, &[])).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("connecting takes too long".into()),
    }
}
