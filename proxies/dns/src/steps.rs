//! The steps of specs: one question, as a stub resolver asks it.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use faultbox_contract::{
    Arg, ArgError, CheckedStep, Endpoint, Kind, ParamDoc, Response, StepDoc, duration,
};
use faultbox_engine::{dial, errno_name};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;

use crate::answer::{code_name, code_number};
use crate::codec::{self, HEADER, Reader};
use crate::records::{self, Record};
use crate::rules::read_type;

/// The table.
pub const DOCS: &[StepDoc] = &[StepDoc {
    name: "query",
    params: &[
        ParamDoc::req("name", Kind::Text, "the name to ask for"),
        ParamDoc::opt("type", Kind::Code, "the record type (default \"A\")"),
        ParamDoc::opt(
            "transport",
            Kind::Choice(&["udp", "tcp"]),
            "where the question goes first (default \"udp\"); a reply that was cut is asked for again over TCP",
        ),
        ParamDoc::opt("dnssec", Kind::Bool, "ask for signatures, too"),
        ParamDoc::opt(
            "timeout",
            Kind::Duration,
            "the longest it may all take (default 5s); nothing is sent twice",
        ),
    ],
    variadic: false,
    summary: "asks once; `.data` is the answer's records as a list of dicts of name, type, ttl, data; `.code` is \"NXDOMAIN\", \"SERVFAIL\", …",
}];

/// What resolvers wait for one reply (resolv.conf(5)).
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest reply that we take in a datagram.
const SIZE: u16 = 1232;

/// A reply as the step reads it.
struct Answered {
    flags: u16,
    code: u16,
    answers: Vec<Record>,
}

/// Asks once.
///
/// # Errors
/// A name or a type that cannot be asked for.
pub async fn query(endpoint: Endpoint, call: CheckedStep) -> Result<Response, ArgError> {
    let name = call.text_of("name").unwrap_or(".");
    let kind = call.text_of("type").map_or(Ok(records::A), read_type)?;
    let dnssec = call.get("dnssec") == Some(&Arg::Bool(true));
    let limit = call
        .get("timeout")
        .and_then(Arg::as_duration)
        .unwrap_or(PATIENCE);
    let question = Question {
        name,
        kind,
        class: codec::IN,
        recurse: true,
        dnssec,
    };
    let message = question.ask().map_err(|e| ArgError::new("name", e))?;
    let mut transport = call.text_of("transport").unwrap_or("udp");
    let start = Instant::now();
    let outcome = tokio::time::timeout(limit, async {
        if transport == "udp" {
            let reply = over_udp(endpoint.addr, &message).await?;
            if reply.flags & codec::TC == 0 {
                return Ok(reply);
            }
            transport = "tcp";
        }
        over_tcp(endpoint.addr, &message).await
    })
    .await;
    let duration = start.elapsed();
    Ok(match outcome {
        Ok(Ok(reply)) => shown(&reply, transport, duration),
        Ok(Err(e)) if e.kind() == io::ErrorKind::InvalidData => Response {
            duration,
            ..Response::failure("EPROTO", e.to_string())
        },
        Ok(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Response {
            duration,
            ..Response::failure("EOF", "the connection was closed before the reply had come")
        },
        Ok(Err(e)) => Response {
            duration,
            ..Response::failure(errno_name(&e), e.to_string())
        },
        Err(_) => Response {
            duration,
            ..Response::failure(
                "ETIMEDOUT",
                format!("no reply within {}", duration::show(limit)),
            )
        },
    })
}

fn shown(reply: &Answered, transport: &str, duration: Duration) -> Response {
    let ok = reply.code == 0;
    let code = code_name(reply.code);
    let lines: Vec<String> = reply
        .answers
        .iter()
        .map(|r| {
            let kind = records::type_name(r.kind);
            format!("{} {} {kind} {}", r.name, r.ttl, r.data)
        })
        .collect();
    let data: Vec<Value> = reply
        .answers
        .iter()
        .map(|r| {
            json!({"name": r.name, "type": records::type_name(r.kind), "ttl": r.ttl, "data": r.data})
        })
        .collect();
    let flags: Vec<&str> = [
        (codec::AA, "aa"),
        (codec::TC, "tc"),
        (codec::RD, "rd"),
        (codec::RA, "ra"),
        (codec::AD, "ad"),
        (codec::CD, "cd"),
    ]
    .iter()
    .filter(|(bit, _)| reply.flags & bit != 0)
    .map(|(_, name)| *name)
    .collect();
    Response {
        ok,
        error: match ok {
            true => String::new(),
            false => format!("the server answered {code}"),
        },
        code: match ok {
            true => String::new(),
            false => code,
        },
        body: lines.join("\n"),
        data: Value::Array(data),
        headers: vec![
            ("flags".into(), flags.join(" ")),
            ("transport".into(), transport.into()),
        ],
        duration,
        ..Response::default()
    }
}

/// A transaction's number that nobody can guess (RFC 5452, section 4.3).
fn fresh_id() -> u16 {
    RandomState::new().build_hasher().finish() as u16
}

/// What is asked.
struct Question<'a> {
    name: &'a str,
    kind: u16,
    class: u16,
    /// May the server ask others for the answer?
    recurse: bool,
    /// Are signatures wanted?
    dnssec: bool,
}

impl Question<'_> {
    /// The message.
    fn ask(&self) -> Result<Vec<u8>, String> {
        let flags = if self.recurse { codec::RD } else { 0 };
        let mut out = vec![];
        for word in [fresh_id(), flags, 1, 0, 0, 1] {
            out.extend(word.to_be_bytes());
        }
        codec::put_name(self.name, &mut out)?;
        out.extend(self.kind.to_be_bytes());
        out.extend(self.class.to_be_bytes());
        // EDNS: the root as owner, no options (RFC 6891, section 6.1.2).
        out.push(0);
        out.extend(codec::OPT.to_be_bytes());
        out.extend(SIZE.to_be_bytes());
        out.extend([0, 0]);
        out.extend((u16::from(self.dnssec) << 15).to_be_bytes());
        out.extend([0, 0]);
        Ok(out)
    }
}

fn malformed(why: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the reply is malformed: {why}"),
    )
}

/// Does `reply` answer `question`: the same number, and the same question if it repeats one?
fn answers(question: &[u8], reply: &[u8]) -> bool {
    if reply.len() < HEADER || reply[..2] != question[..2] || reply[2] & 0x80 == 0 {
        return false;
    }
    let asked = |message: &[u8]| {
        let mut reader = Reader {
            message,
            at: HEADER,
        };
        let name = reader.name().ok()?.to_ascii_lowercase();
        Some((name, reader.u16().ok()?))
    };
    let repeated = u16::from_be_bytes([reply[4], reply[5]]);
    repeated == 0 || asked(reply) == asked(question)
}

async fn over_udp(to: SocketAddr, question: &[u8]) -> io::Result<Answered> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = socket.recv(&mut buffer).await?;
        // What answers another question is not for us.
        if answers(question, &buffer[..n]) {
            return read_reply(&buffer[..n]).map_err(malformed);
        }
    }
}

async fn over_tcp(to: SocketAddr, question: &[u8]) -> io::Result<Answered> {
    let mut stream = dial(to).await?;
    stream.write_all(&codec::framed(question)).await?;
    loop {
        let length = stream.read_u16().await?;
        let mut reply = vec![0; usize::from(length)];
        stream.read_exact(&mut reply).await?;
        if answers(question, &reply) {
            return read_reply(&reply).map_err(malformed);
        }
    }
}

fn read_reply(message: &[u8]) -> Result<Answered, codec::Malformed> {
    let mut reader = Reader { message, at: 2 };
    let flags = reader.u16()?;
    let counts = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
    for _ in 0..counts[0] {
        reader.name()?;
        reader.u32()?;
    }
    let mut answers = vec![];
    for _ in 0..counts[1] {
        answers.push(records::read(&mut reader)?);
    }
    let mut code = flags & codec::RCODE;
    for _ in 0..u32::from(counts[2]) + u32::from(counts[3]) {
        let record = records::read(&mut reader)?;
        if record.kind == codec::OPT {
            // The code's upper eight bits (RFC 6891, section 6.1.3).
            code |= ((record.ttl >> 24) as u16) << 4;
        }
    }
    Ok(Answered {
        flags,
        code,
        answers,
    })
}

/// How long a server may think about the root before it is asked for its version.
const HEAD_START: Duration = Duration::from_millis(200);

/// A server that answers anything at all is ready: which names it knows is its own affair. It is asked what it can say without another
/// server, which may be out of reach: the name servers of the root, not recursively, on which every server has an opinion unless it
/// passes all on; and its version, a question that also such a one keeps to itself (RFC 4892, section 2).
///
/// # Errors
/// Why it does not.
pub async fn ready(endpoint: Endpoint) -> Result<(), String> {
    let root = is_answered(endpoint.addr, ".", records::NS, codec::IN);
    let version = async {
        tokio::time::sleep(HEAD_START).await;
        is_answered(endpoint.addr, "version.bind", records::TXT, codec::CHAOS).await
    };
    let either = async {
        tokio::select! {
            answer = root => answer,
            Ok(()) = version => Ok(()),
        }
    };
    tokio::time::timeout(endpoint.attempt, either)
        .await
        .unwrap_or_else(|_| Err("no reply".into()))
}

async fn is_answered(to: SocketAddr, name: &str, kind: u16, class: u16) -> Result<(), String> {
    let question = Question {
        name,
        kind,
        class,
        recurse: false,
        dnssec: false,
    };
    let reply = over_udp(to, &question.ask()?)
        .await
        .map_err(|e| e.to_string())?;
    match Some(reply.code) == code_number("NOTIMP") {
        true => Err("the server does not answer queries".into()),
        false => Ok(()),
    }
}
