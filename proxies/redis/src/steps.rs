//! The client for specs: the commands that a user would type first, any other, `subscribe`, and the readiness probe.
//!
//! A step is one command on a connection of its own, or on the one that the caller has kept, and sends nothing that was not asked
//! for, so that `nth=` counts what the spec wrote: no HELLO, no CLIENT SETINFO, and AUTH or SELECT only where there is a password or
//! a database.

use std::io;
use std::time::Instant;

use faultbox_contract::{Arg, ArgError, CheckedStep, Endpoint, Kind, ParamDoc, Response, StepDoc};
use faultbox_engine::{is_quiet, open};
use serde_json::Value as Json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::codec::{Reader, put_command};
use crate::value::Value;

const KEY: ParamDoc = ParamDoc::req("key", Kind::Text, "the key");
const ARGS: ParamDoc = ParamDoc::opt(
    "args",
    Kind::List,
    "any number of positional arguments, strings or numbers",
);
const TIMEOUT: ParamDoc = ParamDoc::opt(
    "timeout",
    Kind::Duration,
    "default \"30s\"; a step that passes it has code \"ETIMEDOUT\"",
);
const USER: ParamDoc = ParamDoc::opt(
    "user",
    Kind::Text,
    "default: the service's REDIS_USERNAME, or \"default\"",
);
const PASSWORD: ParamDoc = ParamDoc::opt(
    "password",
    Kind::Text,
    "default: the service's REDIS_PASSWORD or VALKEY_PASSWORD",
);
const DB: ParamDoc = ParamDoc::opt(
    "db",
    Kind::Int(0, i32::MAX as i64),
    "the database to SELECT; default 0",
);
const PROTOCOL: ParamDoc = ParamDoc::opt(
    "protocol",
    Kind::Int(2, 3),
    "3 says HELLO 3 first, so that .data has RESP3's types; default 2",
);

/// A step with the keywords that all have behind its own.
macro_rules! step {
    ($name:literal, [$($param:expr),*], $variadic:literal, $summary:literal) => {
        StepDoc {
            name: $name,
            params: &[$($param,)* TIMEOUT, USER, PASSWORD, DB, PROTOCOL],
            variadic: $variadic,
            summary: $summary,
        }
    };
}

/// What a spec can send.
pub const STEPS: &[StepDoc] = &[
    step!(
        "get",
        [KEY],
        false,
        "GET; .data is the value, None if there is none"
    ),
    step!(
        "set",
        [
            KEY,
            ParamDoc::req("value", Kind::Bytes, "the value"),
            ParamDoc::opt("ex", Kind::Int(1, i64::MAX), "seconds to live")
        ],
        false,
        "SET; .data is \"OK\""
    ),
    step!(
        "del",
        [KEY, ARGS],
        true,
        "DEL of one key or more; .data is how many there were"
    ),
    step!(
        "delete",
        [KEY, ARGS],
        true,
        "the same as del, which Starlark reserves: db.redis.del(…) does not parse"
    ),
    step!(
        "incr",
        [
            KEY,
            ParamDoc::opt("by", Kind::Int(i64::MIN, i64::MAX), "INCRBY instead")
        ],
        false,
        "INCR; .data is the new value"
    ),
    step!(
        "lpush",
        [KEY, ARGS],
        true,
        "LPUSH key value…; .data is the list's length"
    ),
    step!(
        "rpush",
        [KEY, ARGS],
        true,
        "RPUSH key value…; .data is the list's length"
    ),
    step!(
        "lrange",
        [
            KEY,
            ParamDoc::opt("start", Kind::Int(i64::MIN, i64::MAX), "default 0"),
            ParamDoc::opt(
                "stop",
                Kind::Int(i64::MIN, i64::MAX),
                "default -1, the last"
            )
        ],
        false,
        "LRANGE; .data is a list"
    ),
    step!(
        "keys",
        [ParamDoc::opt("pattern", Kind::Text, "default \"*\"")],
        false,
        "KEYS; .data is a list"
    ),
    step!("ping", [], false, "PING; .data is \"PONG\""),
    step!(
        "command",
        [ARGS],
        true,
        "any command: command(\"HSET\", \"k\", \"f\", 1); .data is the reply"
    ),
    step!(
        "subscribe",
        [
            ParamDoc::req("channel", Kind::Text, "the channel"),
            ParamDoc::opt(
                "n",
                Kind::Int(1, 1 << 20),
                "how many messages to wait for; default 1"
            )
        ],
        false,
        "SUBSCRIBE; .data is a list of n messages"
    ),
];

/// The longest reply that a step takes; past it the spec, not the server, would be what is slow.
const LONGEST: usize = 256 << 20;

/// Sends one command on a connection of its own.
///
/// # Errors
/// A `command` without a name, a list or dict among its arguments.
pub async fn step(endpoint: Endpoint, call: CheckedStep) -> Result<Response, ArgError> {
    let args = plan(&call)?;
    let start = Instant::now();
    let timeout = call.timeout();
    let done = tokio::time::timeout(timeout, run(&endpoint, &call, &args)).await;
    let mut response = match done {
        Ok(Ok(value)) => Response {
            ok: true,
            body: match value.to_json() {
                Json::String(text) => text,
                other => other.to_string(),
            },
            data: value.to_json(),
            ..Response::default()
        },
        Ok(Err(failure)) => failure,
        Err(_) => Response::failure("ETIMEDOUT", format!("no reply within {timeout:?}")),
    };
    response.duration = start.elapsed();
    Ok(response)
}

/// Asks PING.
///
/// # Errors
/// What the server or the network says. A server that wants a password which the service's environment does not give is up: it
/// answers, and to whom is not its readiness.
pub async fn ready(endpoint: Endpoint) -> Result<(), String> {
    let probe = async {
        let mut session = Session::open(&endpoint, None).await?;
        session.ask(&[b"PING".to_vec()]).await?;
        session.keep(&endpoint);
        Ok::<(), Response>(())
    };
    match tokio::time::timeout(endpoint.attempt, probe).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) if e.code == "NOAUTH" => Ok(()),
        Ok(Err(e)) if e.error.starts_with(&e.code) => Err(e.error),
        Ok(Err(e)) => Err(format!("{}: {}", e.code, e.error)),
        Err(_) => Err(format!("no answer to PING within {:?}", endpoint.attempt)),
    }
}

/// The command that a step sends.
fn plan(call: &CheckedStep) -> Result<Vec<Vec<u8>>, ArgError> {
    let text = |name: &str| match call.get(name) {
        Some(Arg::Bytes(bytes)) => bytes.clone(),
        Some(arg) => match arg.to_json() {
            Json::String(text) => text.into_bytes(),
            other => other.to_string().into_bytes(),
        },
        None => vec![],
    };
    let list = || match call.get("args") {
        Some(Arg::Json(Json::Array(args))) => args.iter().map(argument).collect(),
        _ => Ok(vec![]),
    };
    let word = |word: &str| word.as_bytes().to_vec();
    let given = |name: &str, default: &str| match call.get(name) {
        Some(_) => text(name),
        None => word(default),
    };
    Ok(match call.step.name {
        "set" => match call.get("ex") {
            Some(_) => vec![
                word("SET"),
                text("key"),
                text("value"),
                word("EX"),
                text("ex"),
            ],
            None => vec![word("SET"), text("key"), text("value")],
        },
        "incr" => match call.get("by") {
            Some(_) => vec![word("INCRBY"), text("key"), text("by")],
            None => vec![word("INCR"), text("key")],
        },
        "lrange" => vec![
            word("LRANGE"),
            text("key"),
            given("start", "0"),
            given("stop", "-1"),
        ],
        "keys" => vec![word("KEYS"), given("pattern", "*")],
        "subscribe" => vec![word("SUBSCRIBE"), text("channel")],
        "ping" => vec![word("PING")],
        "command" => {
            let args: Vec<Vec<u8>> = list()?;
            if args.is_empty() {
                return Err(ArgError::new("args", "`command` needs the command's name")
                    .hint("for example command(\"HSET\", \"k\", \"f\", 1)"));
            }
            args
        }
        name => {
            let name = if name == "delete" { "DEL" } else { name };
            let mut args = vec![word(&name.to_ascii_uppercase()), text("key")];
            args.extend(list()?);
            args
        }
    })
}

fn argument(value: &Json) -> Result<Vec<u8>, ArgError> {
    match value {
        Json::String(text) => Ok(text.clone().into_bytes()),
        Json::Number(n) => Ok(n.to_string().into_bytes()),
        other => Err(ArgError::new(
            "args",
            format!("an argument of a command is text or a number, not {other}"),
        )
        .hint("what a command takes of lists and booleans depends on the command; write it out")),
    }
}

async fn run(endpoint: &Endpoint, call: &CheckedStep, args: &[Vec<u8>]) -> Result<Value, Response> {
    let mut session = Session::open(endpoint, Some(call)).await?;
    let reply = session.ask(args).await?;
    if call.step.name != "subscribe" {
        if !changes_session(args) {
            session.keep(endpoint);
        }
        return Ok(reply);
    }
    let wanted = call.get("n").and_then(Arg::as_int).unwrap_or(1) as usize;
    let mut messages = vec![];
    while messages.len() < wanted {
        if let Value::Array(parts) | Value::Push(parts) = session.read().await?
            && let [Value::Bulk(kind), _, message] = &parts[..]
            && kind == b"message"
        {
            messages.push(message.clone());
        }
    }
    Ok(Value::Array(messages))
}

/// A connection.
struct Session {
    stream: TcpStream,
    buf: Vec<u8>,
    /// Who asks for what database in which protocol: what makes it differ from others.
    key: String,
}

/// Does this command leave the connection other than it was, or unanswered? An error never does: its connection is not kept.
fn changes_session(args: &[Vec<u8>]) -> bool {
    const COMMANDS: [&str; 15] = [
        "ASKING",
        "AUTH",
        "CLIENT",
        "HELLO",
        "MONITOR",
        "MULTI",
        "PSUBSCRIBE",
        "QUIT",
        "READONLY",
        "READWRITE",
        "RESET",
        "SELECT",
        "SSUBSCRIBE",
        "SUBSCRIBE",
        "WATCH",
    ];
    let name = args.first().map(|a| a.to_ascii_uppercase());
    name.is_some_and(|name| COMMANDS.iter().any(|c| c.as_bytes() == name))
}

impl Session {
    /// Connects, and says who we are if there is anything to say.
    async fn open(endpoint: &Endpoint, call: Option<&CheckedStep>) -> Result<Session, Response> {
        let get = |keyword: &str, variables: &[&str]| {
            let given = call.and_then(|c| c.text_of(keyword)).map(str::to_owned);
            given.or_else(|| {
                let mut found = variables.iter().filter_map(|v| endpoint.env.get(*v));
                found.find(|v| !v.is_empty()).cloned()
            })
        };
        let int = |keyword: &str| call.and_then(|c| c.get(keyword)).and_then(Arg::as_int);
        let user = get("user", &["REDIS_USERNAME"]);
        let password = get("password", &["REDIS_PASSWORD", "VALKEY_PASSWORD"]);
        let key = format!("{:?}", (&user, &password, int("protocol"), int("db")));
        let kept = endpoint.take_kept::<Session>(&key);
        if let Some(session) = kept.filter(|s| s.buf.is_empty() && is_quiet(&s.stream)) {
            return Ok(session);
        }
        let stream = open(endpoint, &[]).await.map_err(|e| lost(&e))?;
        let mut session = Session {
            stream,
            buf: vec![],
            key,
        };
        if let Some(password) = password {
            let words = ["AUTH".to_owned()];
            let args: Vec<String> = words.into_iter().chain(user).chain([password]).collect();
            session.ask(&args).await?;
        }
        if int("protocol") == Some(3) {
            session.ask(&["HELLO", "3"]).await?;
        }
        if let Some(db) = int("db").filter(|db| *db != 0) {
            session.ask(&["SELECT", &db.to_string()]).await?;
        }
        Ok(session)
    }

    /// Leaves the connection to the caller's next step.
    fn keep(self, endpoint: &Endpoint) {
        endpoint.keep(&self.key.clone(), self);
    }

    /// Sends a command and reads its reply; an error is a failure.
    async fn ask(&mut self, args: &[impl AsRef<[u8]>]) -> Result<Value, Response> {
        let mut bytes = vec![];
        put_command(&mut bytes, args);
        self.stream.write_all(&bytes).await.map_err(|e| lost(&e))?;
        match self.read().await? {
            Value::Error(line) => {
                let code = line.split(' ').next().unwrap_or_default().to_owned();
                Err(Response::failure(code, line))
            }
            value => Ok(value),
        }
    }

    /// Reads one value.
    async fn read(&mut self) -> Result<Value, Response> {
        let broken = |e: String| Response::failure("EPROTO", format!("no RESP: {e}"));
        let (mut reader, mut at) = (Reader::new(), 0);
        loop {
            at += reader.skip(&self.buf[at..]).map_err(|e| broken(e.0))?;
            if reader.is_over() {
                let decoded = Value::decode(&self.buf[..at]).map_err(|e| broken(e.0))?;
                self.buf.drain(..at);
                return decoded
                    .map(|(value, _)| value)
                    .ok_or_else(|| broken("a value that ends early".into()));
            }
            if self.buf.len() > LONGEST {
                return Err(broken(format!("a reply of more than {LONGEST} bytes")));
            }
            match self.stream.read_buf(&mut self.buf).await {
                Ok(0) => {
                    return Err(Response::failure(
                        "EOF",
                        "the server closed the connection without a reply",
                    ));
                }
                Ok(_) => {}
                Err(e) => return Err(lost(&e)),
            }
        }
    }
}

fn lost(error: &io::Error) -> Response {
    Response::failure(faultbox_engine::errno_name(error), error.to_string())
}
