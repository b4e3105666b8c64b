//! Connections: commands in, answers out, MULTI, blocking commands, messages of channels.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use faultbox_redis::codec::{Front, Malformed, front};
use faultbox_redis::commands::{full_name, keys};
use faultbox_redis::rules::Command;
use faultbox_redis::value::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::Instant;

use super::pubsub::Hub;
use super::store::{Answer, Db, bulk, count, int, is, ok, wrong_number};
use super::{Redis, describe, lists, sorted};
use crate::calls::Calls;
use crate::script::Routes;

/// The largest command that is taken: what a test sends is small; a bound there must be.
const LARGEST: usize = 64 << 20;
/// How many databases there are, as in a server that nobody has configured.
const DATABASES: i64 = 16;
/// How many messages wait for a connection that does not read them.
const UNREAD: usize = 16 << 10;
/// What the mock says it is: new enough that drivers ask for all they know.
const VERSION: &str = "7.4.0";

/// What all connections share.
pub(crate) struct Server {
    routes: Arc<Routes<Redis>>,
    calls: Calls,
    dbs: Mutex<HashMap<i64, Db>>,
    hub: Mutex<Hub>,
    /// Something was pushed onto a list: blocking commands look again.
    pushed: Notify,
    connections: AtomicU64,
}

/// A command with what the table knows of it.
pub(super) fn command(args: Vec<Vec<u8>>) -> Command {
    let name = full_name(
        args.first().map(Vec::as_slice).unwrap_or_default(),
        args.get(1).map(Vec::as_slice),
    );
    let keys = keys(&name, &args, args.len())
        .into_iter()
        .filter(|at| *at < args.len())
        .collect();
    Command { name, args, keys }
}

/// One connection.
struct Session {
    server: Arc<Server>,
    id: u64,
    resp: u8,
    db: i64,
    name: Vec<u8>,
    /// The commands queued since MULTI.
    queued: Option<Vec<Command>>,
    /// One of them was refused when it was queued.
    dirty: bool,
    /// The watched keys with their versions.
    watched: Vec<(i64, Vec<u8>, u64)>,
    messages: Sender<Value>,
    /// The connection ends after this answer.
    over: bool,
}

impl Server {
    /// A server with an empty keyspace.
    pub(crate) fn new(routes: Arc<Routes<Redis>>, calls: Calls) -> Arc<Server> {
        Arc::new(Server {
            routes,
            calls,
            dbs: Mutex::default(),
            hub: Mutex::default(),
            pushed: Notify::new(),
            connections: AtomicU64::new(1),
        })
    }

    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_db<R>(&self, db: i64, work: impl FnOnce(&mut Db) -> R) -> R {
        let mut dbs = self.dbs.lock().unwrap_or_else(PoisonError::into_inner);
        work(dbs.entry(db).or_default())
    }

    /// Serves one connection until it ends.
    pub(crate) async fn serve(self: Arc<Server>, mut stream: TcpStream) {
        let (messages, mut inbox) = channel(UNREAD);
        let mut session = Session {
            id: self.connections.fetch_add(1, Ordering::Relaxed),
            server: self.clone(),
            resp: 2,
            db: 0,
            name: vec![],
            queued: None,
            dirty: false,
            watched: vec![],
            messages,
            over: false,
        };
        session.converse(&mut stream, &mut inbox).await;
        self.hub().forget(session.id);
        faultbox_engine::linger(stream).await;
    }
}

/// Sends answers, and takes in meanwhile what comes: a client that sends a whole pipeline before it reads must not wait for us, nor we
/// for it.
async fn send(stream: &mut TcpStream, out: &[u8], buffer: &mut BytesMut) -> std::io::Result<()> {
    let (mut from, mut to) = stream.split();
    let mut at = 0;
    let mut open = true;
    while at < out.len() {
        tokio::select! {
            biased;
            written = to.write(&out[at..]) => at += written?,
            read = from.read_buf(buffer), if open && buffer.len() <= LARGEST => {
                open = matches!(read, Ok(1..));
            }
        }
    }
    Ok(())
}

/// Waits until the client has gone; what it sends meanwhile is kept.
async fn hung_up(stream: &mut TcpStream, buffer: &mut BytesMut) {
    while buffer.len() <= LARGEST && matches!(stream.read_buf(buffer).await, Ok(1..)) {}
}

/// Takes one whole command off the front of the buffer.
fn take(buffer: &mut BytesMut) -> Result<Option<Vec<Vec<u8>>>, Malformed> {
    loop {
        let (args, len) = match front(buffer)? {
            Front::More => return Ok(None),
            Front::Nothing(len) => {
                buffer.advance(len);
                continue;
            }
            Front::Inline(words, len) => (words, len),
            Front::Command(head) => {
                let mut rest = head.rest();
                let len = head.at + rest.skip(&buffer[head.at..])?;
                if !rest.is_over() {
                    return match buffer.len() > LARGEST {
                        true => Err(Malformed("a command of more than 64 MiB".into())),
                        false => Ok(None),
                    };
                }
                let mut args = vec![head.name.to_vec()];
                args.extend(
                    head.args(buffer, usize::MAX)?
                        .into_iter()
                        .map(<[u8]>::to_vec),
                );
                (args, len)
            }
        };
        buffer.advance(len);
        return Ok(Some(args));
    }
}

impl Session {
    async fn converse(&mut self, stream: &mut TcpStream, inbox: &mut Receiver<Value>) {
        let mut buffer = BytesMut::new();
        loop {
            let mut out = vec![];
            while !self.over {
                match take(&mut buffer) {
                    Ok(Some(args)) => {
                        let command = command(args);
                        let waits =
                            matches!(&*command.name, "BLPOP" | "BRPOP" | "BLMOVE" | "BRPOPLPUSH");
                        // Who has gone must not take the element that the next one waits for.
                        tokio::select! {
                            biased;
                            () = self.answer(command, &mut out) => {}
                            () = hung_up(stream, &mut buffer), if waits => return,
                        }
                    }
                    Ok(None) => break,
                    Err(e) => {
                        Value::Error(format!("ERR Protocol error: {}", e.0))
                            .encode(self.resp, &mut out);
                        self.over = true;
                    }
                }
                // A pipeline of any length must not gather its answers without end.
                if out.len() > 1 << 20
                    && send(stream, &std::mem::take(&mut out), &mut buffer)
                        .await
                        .is_err()
                {
                    return;
                }
            }
            let sent = send(stream, &out, &mut buffer).await;
            if sent.is_err() || self.over {
                return;
            }
            // What came while the answers were sent need not be waited for.
            if !out.is_empty() && !buffer.is_empty() {
                continue;
            }
            tokio::select! {
                read = stream.read_buf(&mut buffer) => match read {
                    Ok(1..) => {}
                    _ => return,
                },
                message = inbox.recv() => {
                    let mut out = vec![];
                    for message in message.into_iter().chain(std::iter::from_fn(|| inbox.try_recv().ok())) {
                        message.encode(self.resp, &mut out);
                    }
                    if stream.write_all(&out).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Answers one command: a value, or several for subscriptions.
    async fn answer(&mut self, command: Command, out: &mut Vec<u8>) {
        let name = command.name.clone();
        let values = if self.queued.is_some()
            && !matches!(
                name.as_str(),
                "EXEC" | "DISCARD" | "MULTI" | "WATCH" | "QUIT" | "RESET"
            ) {
            vec![self.queue(command)]
        } else if self.is_listening() && !allowed_while_listening(&name) {
            vec![Value::Error(format!(
                "ERR Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context",
                name.to_ascii_lowercase()
            ))]
        } else {
            self.carry_out(command, true).await
        };
        for value in values {
            let value = match self.resp {
                2 => sorted::flat(&name, value),
                _ => value,
            };
            value.encode(self.resp, out);
        }
    }

    fn is_listening(&self) -> bool {
        self.resp == 2 && self.server.hub().count(self.id) > 0
    }

    fn queue(&mut self, command: Command) -> Value {
        let known = faultbox_redis::commands::table().contains_key(command.name.as_str());
        if !known {
            self.dirty = true;
            return Value::Error(unknown(&command));
        }
        if let Some(queued) = &mut self.queued {
            queued.push(command);
        }
        Value::Simple("QUEUED".into())
    }

    /// What a route says, or else the server itself.
    async fn carry_out(&mut self, command: Command, may_block: bool) -> Vec<Value> {
        let described = describe(&command);
        let setting_up = is_housekeeping(&command.name);
        let found = self
            .server
            .routes
            .find(&command, !setting_up, || described.clone().into())
            .await;
        let scripted = match (&found.reply, &found.failed) {
            (_, Some(why)) => Some(Value::Error(format!(
                "ERR {}",
                why.replace(['\r', '\n'], " ")
            ))),
            (Some(reply), None) => reply.reply.value.clone(),
            (None, None) => None,
        };
        let delay = found.reply.as_ref().map_or(Duration::ZERO, |r| r.delay);
        // Recorded before anything is done: a blocking command is a call while it waits.
        let mut call = described;
        call.insert("route".into(), serde_json::json!(found.route));
        let words: Vec<String> = command
            .args
            .iter()
            .map(|arg| String::from_utf8_lossy(&arg[..arg.len().min(100)]).into_owned())
            .collect();
        call.insert("text".into(), words.join(" ").into());
        if let Some(Value::Error(text)) = &scripted {
            call.insert("error".into(), text.as_str().into());
        }
        self.server.calls.record(call);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        match scripted {
            Some(value) => vec![value],
            None => self.run(&command, may_block).await,
        }
    }

    /// The server itself.
    async fn run(&mut self, command: &Command, may_block: bool) -> Vec<Value> {
        let (name, args) = (command.name.as_str(), &command.args[1..]);
        if let Some(values) = self.subscriptions(name, args) {
            return values;
        }
        let answer = match name {
            "MULTI" => self.multi(),
            "EXEC" => Box::pin(self.exec()).await,
            "DISCARD" => match self.queued.take() {
                Some(_) => {
                    self.watched.clear();
                    Ok(ok())
                }
                None => Err("ERR DISCARD without MULTI".into()),
            },
            "WATCH" | "UNWATCH" => self.watch(name, args),
            "FLUSHALL" if args.len() <= 1 => {
                let mut dbs = self
                    .server
                    .dbs
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                dbs.values_mut().for_each(Db::clear);
                Ok(ok())
            }
            "BLPOP" | "BRPOP" | "BLMOVE" | "BRPOPLPUSH" => {
                self.blocking(name, args, may_block).await
            }
            _ => match self.connection(command) {
                Some(answer) => answer,
                None => {
                    let answer = self
                        .server
                        .with_db(self.db, |db| db.run(name, args))
                        .unwrap_or_else(|| Err(unknown(command)));
                    if matches!(
                        name,
                        "LPUSH"
                            | "RPUSH"
                            | "LPUSHX"
                            | "RPUSHX"
                            | "LINSERT"
                            | "LMOVE"
                            | "RPOPLPUSH"
                            | "RENAME"
                            | "RENAMENX"
                            | "COPY"
                    ) {
                        self.server.pushed.notify_waiters();
                    }
                    answer
                }
            },
        };
        vec![value(answer)]
    }

    fn multi(&mut self) -> Answer {
        if self.queued.is_some() {
            return Err("ERR MULTI calls can not be nested".into());
        }
        self.queued = Some(vec![]);
        self.dirty = false;
        Ok(ok())
    }

    async fn exec(&mut self) -> Answer {
        let Some(queued) = self.queued.take() else {
            return Err("ERR EXEC without MULTI".into());
        };
        let watched = std::mem::take(&mut self.watched);
        if self.dirty {
            return Err("EXECABORT Transaction discarded because of previous errors.".into());
        }
        let changed = watched
            .iter()
            .any(|(db, key, version)| self.server.with_db(*db, |db| db.version(key)) != *version);
        if changed {
            return Ok(Value::NullArray);
        }
        let mut answers = vec![];
        for command in queued {
            let name = command.name.clone();
            for value in self.carry_out(command, false).await {
                answers.push(match self.resp {
                    2 => sorted::flat(&name, value),
                    _ => value,
                });
            }
        }
        Ok(Value::Array(answers))
    }

    fn watch(&mut self, name: &str, args: &[Vec<u8>]) -> Answer {
        if name == "UNWATCH" {
            self.watched.clear();
            return Ok(ok());
        }
        if self.queued.is_some() {
            return Err("ERR WATCH inside MULTI is not allowed".into());
        }
        if args.is_empty() {
            return Err(wrong_number(name));
        }
        for key in args {
            let version = self.server.with_db(self.db, |db| db.version(key));
            self.watched.push((self.db, key.clone(), version));
        }
        Ok(ok())
    }

    /// Tries until there is an element, or the time is up; in a transaction once.
    async fn blocking(&mut self, name: &str, args: &[Vec<u8>], may_block: bool) -> Answer {
        let (keys, seconds) = match (name, args) {
            ("BLPOP" | "BRPOP", [keys @ .., seconds]) if !keys.is_empty() => (keys, seconds),
            ("BRPOPLPUSH", [keys @ .., seconds]) if keys.len() == 2 => (keys, seconds),
            ("BLMOVE", [keys @ .., seconds]) if keys.len() == 4 => (keys, seconds),
            _ => return Err(wrong_number(name)),
        };
        let seconds = super::store::float(seconds)
            .map_err(|_| "ERR timeout is not a float or out of range".to_owned())?;
        if seconds < 0.0 {
            return Err("ERR timeout is negative".into());
        }
        // 0 is for ever; the end of the connection ends that, too.
        let wait = Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|d| !d.is_zero());
        let deadline = wait.and_then(|wait| Instant::now().checked_add(wait));
        let db = self.db;
        loop {
            let server = self.server.clone();
            // Before it looks: what comes between looking and waiting must not be missed.
            let mut pushed = std::pin::pin!(server.pushed.notified());
            pushed.as_mut().enable();
            let found = server.with_db(db, |db| match name {
                "BLPOP" | "BRPOP" => {
                    for key in keys {
                        if let Some(v) = lists::pop_one(db, key, name == "BLPOP")? {
                            return Ok(Some(Value::Array(vec![bulk(key.clone()), bulk(v)])));
                        }
                    }
                    Ok(None)
                }
                _ => {
                    let (from_left, to_left) = match keys {
                        [_, _, from, to] => match (lists::side(from), lists::side(to)) {
                            (Some(from), Some(to)) => (from, to),
                            _ => return Err(super::store::SYNTAX.to_owned()),
                        },
                        _ => (false, true),
                    };
                    lists::shift(db, &keys[0], &keys[1], from_left, to_left)
                        .map(|v| Some(v).filter(|v| *v != Value::Null))
                }
            })?;
            if let Some(found) = found {
                if name.ends_with("MOVE") || name.ends_with("PUSH") {
                    server.pushed.notify_waiters();
                }
                return Ok(found);
            }
            let nothing = match name {
                "BLPOP" | "BRPOP" => Value::NullArray,
                _ => Value::Null,
            };
            if !may_block {
                return Ok(nothing);
            }
            match deadline {
                None => pushed.await,
                Some(deadline) => {
                    if tokio::time::timeout_at(deadline, pushed).await.is_err() {
                        return Ok(nothing);
                    }
                }
            }
        }
    }

    /// SUBSCRIBE and its kin: an answer for each channel.
    fn subscriptions(&mut self, name: &str, args: &[Vec<u8>]) -> Option<Vec<Value>> {
        let (pattern, on) = match name {
            "SUBSCRIBE" => (false, true),
            "PSUBSCRIBE" => (true, true),
            "UNSUBSCRIBE" => (false, false),
            "PUNSUBSCRIBE" => (true, false),
            _ => return None,
        };
        let word = name.to_ascii_lowercase();
        if on && args.is_empty() {
            return Some(vec![Value::Error(wrong_number(name))]);
        }
        let mut hub = self.server.hub();
        let names = match args.is_empty() {
            true => hub.of(self.id, pattern),
            false => args.to_vec(),
        };
        if names.is_empty() {
            let left = hub.count(self.id);
            return Some(vec![Value::Push(vec![
                bulk(word),
                Value::Null,
                count(left),
            ])]);
        }
        Some(
            names
                .iter()
                .map(|channel| {
                    let n = hub.change(self.id, &self.messages, channel, pattern, on);
                    Value::Push(vec![bulk(word.clone()), bulk(channel.clone()), count(n)])
                })
                .collect(),
        )
    }

    /// What concerns the connection or the server rather than keys.
    fn connection(&mut self, command: &Command) -> Option<Answer> {
        let args = &command.args[1..];
        Some(match command.name.as_str() {
            "PING" => match args {
                [] if self.is_listening() => Ok(Value::Array(vec![bulk("pong"), bulk("")])),
                [] => Ok(Value::Simple("PONG".into())),
                [text] if self.is_listening() => {
                    Ok(Value::Array(vec![bulk("pong"), bulk(text.clone())]))
                }
                [text] => Ok(bulk(text.clone())),
                _ => Err(wrong_number("ping")),
            },
            "ECHO" => match args {
                [text] => Ok(bulk(text.clone())),
                _ => Err(wrong_number("echo")),
            },
            "HELLO" => self.hello(args),
            // Nobody is kept out: whatever password a service is configured with is right.
            "AUTH" => match args.len() {
                1 | 2 => Ok(ok()),
                _ => Err(wrong_number("auth")),
            },
            "SELECT" => match args {
                [n] => match int(n) {
                    Ok(n @ 0..DATABASES) => {
                        self.db = n;
                        Ok(ok())
                    }
                    Ok(_) => Err("ERR DB index is out of range".into()),
                    Err(e) => Err(e),
                },
                _ => Err(wrong_number("select")),
            },
            "QUIT" => {
                self.over = true;
                Ok(ok())
            }
            "RESET" => {
                self.server.hub().forget(self.id);
                (self.resp, self.db, self.queued, self.name) = (2, 0, None, vec![]);
                self.watched.clear();
                Ok(Value::Simple("RESET".into()))
            }
            "PUBLISH" => match args {
                [channel, message] => Ok(count(self.server.hub().publish(channel, message))),
                _ => Err(wrong_number("publish")),
            },
            "PUBSUB CHANNELS" => {
                let channels = self.server.hub().channels();
                let mut names: Vec<Vec<u8>> = channels.into_keys().collect();
                names.retain(|n| args.get(1).is_none_or(|p| super::store::glob(p, n)));
                names.sort();
                Ok(Value::Array(names.into_iter().map(bulk).collect()))
            }
            "PUBSUB NUMSUB" => {
                let channels = self.server.hub().channels();
                Ok(Value::Array(
                    args[1..]
                        .iter()
                        .flat_map(|c| {
                            [
                                bulk(c.clone()),
                                count(channels.get(c).copied().unwrap_or_default()),
                            ]
                        })
                        .collect(),
                ))
            }
            "PUBSUB NUMPAT" => Ok(count(self.server.hub().patterns())),
            "CLIENT ID" => Ok(Value::Integer(i64::try_from(self.id).unwrap_or(i64::MAX))),
            "CLIENT GETNAME" => Ok(match self.name.is_empty() {
                true => Value::Null,
                false => bulk(self.name.clone()),
            }),
            "CLIENT SETNAME" => match args.get(1) {
                Some(name) => {
                    self.name.clone_from(name);
                    Ok(ok())
                }
                None => Err(wrong_number("client|setname")),
            },
            "CLIENT SETINFO" | "CLIENT NO-EVICT" | "CLIENT NO-TOUCH" => Ok(ok()),
            // Nothing is configured: an empty answer is what a server gives for names that it does not know.
            "CONFIG GET" => Ok(Value::Map(vec![])),
            "COMMAND" | "COMMAND DOCS" | "COMMAND INFO" | "COMMAND LIST" => {
                Ok(Value::Array(vec![]))
            }
            "COMMAND COUNT" => Ok(count(0)),
            "TIME" => {
                let ms = super::store::now();
                Ok(Value::Array(vec![
                    bulk((ms / 1000).to_string()),
                    bulk((ms % 1000 * 1000).to_string()),
                ]))
            }
            "INFO" => Ok(bulk(format!(
                "# Server\r\nredis_version:{VERSION}\r\nredis_mode:standalone\r\n# Persistence\r\nloading:0\r\n# Replication\r\nrole:master\r\nconnected_slaves:0\r\n"
            ))),
            "ROLE" => Ok(Value::Array(vec![
                bulk("master"),
                count(0),
                Value::Array(vec![]),
            ])),
            "WAIT" => Ok(count(0)),
            _ => return None,
        })
    }

    fn hello(&mut self, args: &[Vec<u8>]) -> Answer {
        let mut rest = args;
        if let [version, more @ ..] = rest {
            self.resp = match version.as_slice() {
                b"2" => 2,
                b"3" => 3,
                _ => return Err("NOPROTO unsupported protocol version".into()),
            };
            rest = more;
        }
        loop {
            match rest {
                [] => break,
                [word, _, _, more @ ..] if is(word, "AUTH") => rest = more,
                [word, name, more @ ..] if is(word, "SETNAME") => {
                    self.name.clone_from(name);
                    rest = more;
                }
                [word, ..] => {
                    return Err(format!(
                        "ERR Syntax error in HELLO option '{}'",
                        String::from_utf8_lossy(word)
                    ));
                }
            }
        }
        Ok(Value::Map(vec![
            (bulk("server"), bulk("redis")),
            (bulk("version"), bulk(VERSION)),
            (bulk("proto"), Value::Integer(self.resp.into())),
            (
                bulk("id"),
                Value::Integer(i64::try_from(self.id).unwrap_or(i64::MAX)),
            ),
            (bulk("mode"), bulk("standalone")),
            (bulk("role"), bulk("master")),
            (bulk("modules"), Value::Array(vec![])),
        ]))
    }
}

fn value(answer: Answer) -> Value {
    answer.unwrap_or_else(Value::Error)
}

/// The server's words for a command that it does not have.
fn unknown(command: &Command) -> String {
    let text = |arg: &Vec<u8>| {
        String::from_utf8_lossy(&arg[..arg.len().min(128)]).replace(['\r', '\n'], " ")
    };
    let args: Vec<String> = command.args[1..]
        .iter()
        .take(8)
        .map(|arg| format!("'{}' ", text(arg)))
        .collect();
    format!(
        "ERR unknown command '{}', with args beginning with: {}",
        text(&command.args[0]),
        args.concat()
    )
}

/// What drivers say to set a connection up: a `default=` is not for these.
fn is_housekeeping(name: &str) -> bool {
    let first = name.split(' ').next().unwrap_or(name);
    matches!(
        first,
        "HELLO"
            | "AUTH"
            | "SELECT"
            | "CLIENT"
            | "COMMAND"
            | "INFO"
            | "PING"
            | "QUIT"
            | "RESET"
            | "MULTI"
            | "EXEC"
            | "DISCARD"
            | "WATCH"
            | "UNWATCH"
            | "SUBSCRIBE"
            | "UNSUBSCRIBE"
            | "PSUBSCRIBE"
            | "PUNSUBSCRIBE"
    )
}

fn allowed_while_listening(name: &str) -> bool {
    matches!(
        name,
        "SUBSCRIBE" | "PSUBSCRIBE" | "UNSUBSCRIBE" | "PUNSUBSCRIBE" | "PING" | "QUIT" | "RESET"
    )
}
