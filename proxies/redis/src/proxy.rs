//! The proxy: two directions of one connection, walking along the bytes by [`crate::session`] and carrying out what rules say.

use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use faultbox_contract::rule::Fired;
use faultbox_contract::{ArmedRule, ProxyHost};
use faultbox_engine::{
    Added, Conn, Ending, Inbox, Origin, Times, both, close, finish, gone, send, send_front,
    send_front_watching, serve_delays,
};
use serde_json::{Value as Json, json};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::Notify;

use crate::codec::{Malformed, put_command};
use crate::effects::{Corrupt, Effects};
use crate::rules::{Action, Command, Compiled};
use crate::session::{Replies, Reply, Request, Requests, Session, Step, Verdict};

/// The most characters of a command's arguments that an event shows.
const SHOWN: usize = 200;

/// Runs the proxy until dropped.
pub async fn serve(host: ProxyHost) {
    faultbox_engine::serve(host, handle).await;
}

/// How a direction ended.
type End = Ending;

/// One connection.
struct Link<'a> {
    origin: &'a Origin,
    session: Mutex<Session>,
    /// Wakes the server's direction: an answer of ours is in the queue, or nothing will come any more.
    ours: Notify,
    /// Wakes the client's direction when answers have left a full queue.
    room: Notify,
    times: Mutex<Times>,
}

async fn handle(mut conn: Conn) {
    let end = {
        let link = Link {
            origin: &conn.origin,
            session: Mutex::default(),
            ours: Notify::new(),
            room: Notify::new(),
            times: Mutex::default(),
        };
        let (client_in, client_out) = conn.client.split();
        let (server_in, server_out) = conn.upstream.split();
        let up = link.up(client_in, server_out);
        let down = link.down(server_in, client_out);
        let end = both(up, down, || {
            link.session().abandon();
            link.room.notify_one();
        })
        .await;
        link.times().flush(&conn.origin.host.meter);
        end
    };
    finish(conn, end).await;
}

impl Link<'_> {
    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Not understood: goes on raw, and the run hears of it once. What the client has asked before it stopped making sense is still
    /// answered in its order; when it is the server that makes none, there is no order left to keep.
    fn degrade(&self, side: &str, why: &Malformed) {
        let mut session = self.session();
        let known = session.raw_client || session.raw_server;
        session.raw_client = true;
        if known || side == "upstream" {
            session.abandon();
        }
        if known {
            return;
        }
        self.origin
            .degraded(side, &format!("{}; forwarded unseen from here on", why.0));
    }

    /// Client to server.
    async fn up(
        &self,
        mut client: ReadHalf<'_>,
        mut server: WriteHalf<'_>,
    ) -> Result<Infallible, End> {
        let mut inbox = Inbox::default();
        let mut requests = Requests::default();
        loop {
            match inbox.fill(&mut client).await {
                Ok(0) => {
                    // The beginning of a command that will never be whole.
                    let rest = inbox.bytes.len();
                    send_front_watching(server.as_ref(), &mut inbox.bytes, rest, client.as_ref())
                        .await?;
                    return Err(close(&mut server).await);
                }
                Ok(_) => {}
                Err(_) => return Err(End::SourceGone),
            }
            let read = Instant::now();
            let mut injected = Duration::ZERO;
            // How far the walk has come; what is behind it waits to be sent in one write.
            let mut at = 0;
            loop {
                match self.walk(&mut requests, &inbox.bytes, &mut at) {
                    Ok(Walked::Through) => break,
                    Ok(Walked::Full) => {
                        send_front_watching(server.as_ref(), &mut inbox.bytes, at, client.as_ref())
                            .await?;
                        at = 0;
                        tokio::select! {
                            () = self.room.notified() => {}
                            () = gone(client.as_ref()) => return Err(End::SourceGone),
                        }
                    }
                    Ok(Walked::Discard(n)) => {
                        send_front_watching(server.as_ref(), &mut inbox.bytes, at, client.as_ref())
                            .await?;
                        let _ = inbox.bytes.split_to(n);
                        at = 0;
                    }
                    Ok(Walked::Endless(why)) => {
                        let _ = send_front_watching(
                            server.as_ref(),
                            &mut inbox.bytes,
                            at,
                            client.as_ref(),
                        )
                        .await;
                        self.origin.degraded(
                            "client",
                            &format!(
                                "{}; closed, because where a refused command ends is unknown",
                                why.0
                            ),
                        );
                        return Err(End::lost());
                    }
                    Ok(Walked::Request(request)) => {
                        let fired = self.evaluate(&request.command);
                        if !fired.is_empty() {
                            send_front_watching(
                                server.as_ref(),
                                &mut inbox.bytes,
                                at,
                                client.as_ref(),
                            )
                            .await?;
                            at = 0;
                            // What is held back is no longer on its way, and what came before it is.
                            self.times()
                                .sent(self.session().asked, read, Duration::ZERO);
                        }
                        let held = Instant::now();
                        tokio::select! {
                            _ = serve_delays(&fired.delays, read) => {}
                            () = gone(client.as_ref()) => return Err(End::SourceGone),
                        }
                        injected += held.elapsed();
                        let verdict = match verdict(&fired) {
                            Ok(verdict) => verdict,
                            Err(end) => {
                                let mut added = Added::default();
                                added.way(read, injected);
                                added.record(&self.origin.host.meter);
                                return Err(end);
                            }
                        };
                        let decided = requests.decide(
                            &request,
                            verdict,
                            effects(&fired),
                            &mut self.session(),
                        );
                        match decided {
                            Err(why) => self.degrade("client", &why),
                            Ok(decided) if decided.forward => at += decided.len,
                            Ok(decided) => {
                                let _ = inbox.bytes.split_to(decided.len);
                                self.ours.notify_one();
                                if let Some(replaced) = decided.replaced {
                                    let mut bytes = vec![];
                                    put_command(&mut bytes, replaced);
                                    if send(server.as_ref(), &bytes).await.is_err() {
                                        return Err(End::SinkGone);
                                    }
                                }
                            }
                        }
                    }
                    Err(why) => self.degrade("client", &why),
                }
            }
            send_front_watching(server.as_ref(), &mut inbox.bytes, at, client.as_ref()).await?;
            let asked = self.session().asked;
            self.times().sent(asked, read, injected);
        }
    }

    /// Walks on from `at` until something has to be done.
    fn walk(
        &self,
        requests: &mut Requests,
        bytes: &[u8],
        at: &mut usize,
    ) -> Result<Walked, Malformed> {
        let mut session = self.session();
        let rules = &self.origin.host.rules;
        let interested = |name: &str| rules.load().iter().any(|rule| may_mean(rule, name));
        let armed: Option<&dyn Fn(&str) -> bool> = match rules.is_empty() {
            true => None,
            false => Some(&interested),
        };
        loop {
            if session.is_full() {
                return Ok(Walked::Full);
            }
            match requests.next(&bytes[*at..], &mut session, armed)? {
                Step::More => return Ok(Walked::Through),
                Step::Pass(n) => *at += n,
                Step::Raw => {
                    *at = bytes.len();
                    return Ok(Walked::Through);
                }
                Step::Discard(n) => return Ok(Walked::Discard(n)),
                Step::Endless(why) => return Ok(Walked::Endless(why)),
                Step::Request(request) => return Ok(Walked::Request(Box::new(request))),
            }
        }
    }

    /// Server to client.
    async fn down(
        &self,
        mut server: ReadHalf<'_>,
        mut client: WriteHalf<'_>,
    ) -> Result<Infallible, End> {
        let mut inbox = Inbox::default();
        let host = &self.origin.host;
        let mut replies = Replies::new(host.addresses.clone(), host.upstream.ip());
        loop {
            let filled = tokio::select! {
                filled = inbox.fill(&mut server) => Some(filled),
                () = self.ours.notified() => None,
            };
            let read = Instant::now();
            let slowed = match self.pass_on(&mut inbox.bytes, &mut replies, &client).await {
                Ok(slowed) => slowed,
                Err(end) => return Err(end),
            };
            let (done, asked) = {
                let session = self.session();
                (session.done, session.asked)
            };
            self.times()
                .answered(done.min(asked), read, slowed, &self.origin.host.meter);
            self.room.notify_one();
            if matches!(filled, None | Some(Ok(1..))) {
                continue;
            }
            // What it said before it closed or died still arrives, be it half a message.
            let rest = inbox.bytes.len();
            send_front(client.as_ref(), &mut inbox.bytes, rest).await?;
            return match filled {
                Some(Err(_)) => Err(End::SourceGone),
                _ => Err(close(&mut client).await),
            };
        }
    }

    /// Passes on what has come, and what is ours and due. Was it slowed down by a rule?
    async fn pass_on(
        &self,
        bytes: &mut BytesMut,
        replies: &mut Replies,
        client: &WriteHalf<'_>,
    ) -> Result<bool, End> {
        let mut at = 0;
        let mut slowed = false;
        loop {
            // What is under effects leaves the queue's front for the time of the writing.
            let (reply, mut effects) = {
                let mut session = self.session();
                let mut reply = replies.next(&bytes[at..], &mut session);
                while let Ok(Reply::Pass(n)) = reply {
                    at += n;
                    reply = replies.next(&bytes[at..], &mut session);
                }
                let front = session.queue.front_mut();
                let effects = match reply {
                    Ok(Reply::Affected(_) | Reply::Replace(..)) => {
                        front.and_then(|e| e.effects.take())
                    }
                    _ => None,
                };
                (reply, effects)
            };
            match reply {
                Ok(Reply::More) => break,
                Ok(Reply::Raw) => {
                    at = bytes.len();
                    break;
                }
                Ok(Reply::Pass(n)) => at += n,
                Ok(Reply::Affected(n)) => {
                    send_front(client.as_ref(), bytes, at).await?;
                    at = 0;
                    slowed = true;
                    let mut part = bytes.split_to(n);
                    affected(client, &mut part, effects.as_deref_mut()).await?;
                }
                Ok(Reply::Replace(n, instead)) => {
                    send_front(client.as_ref(), bytes, at).await?;
                    at = 0;
                    let _ = bytes.split_to(n);
                    slowed |= effects.is_some();
                    let mut part = BytesMut::from(&instead[..]);
                    affected(client, &mut part, effects.as_deref_mut()).await?;
                }
                Err(why) => self.degrade("upstream", &why),
            }
            if let Some(effects) = effects
                && let Some(front) = self.session().queue.front_mut()
            {
                front.effects = Some(effects);
            }
        }
        send_front(client.as_ref(), bytes, at).await?;
        Ok(slowed)
    }

    /// Asks the rules about one command.
    fn evaluate(&self, command: &Command) -> Fired {
        let matches = |rule: &ArmedRule| {
            rule.compiled
                .downcast_ref::<Compiled>()
                .is_some_and(|c| c.matches(command))
                && self.origin.admits(rule)
        };
        let host = &self.origin.host;
        let fields = || {
            let args = command.args[1..].join(&b' ');
            let args: String = String::from_utf8_lossy(&args[..args.len().min(4 * SHOWN)])
                .chars()
                .take(SHOWN)
                .collect();
            let mut fields = json!({"command": command.name, "args": args});
            if let (Some(key), Some(fields)) = (command.keys.first(), fields.as_object_mut()) {
                let key = String::from_utf8_lossy(&command.args[*key]);
                fields.insert(
                    "key".into(),
                    key.chars().take(SHOWN).collect::<String>().into(),
                );
            }
            fields
        };
        let outcome = |rule: &ArmedRule| match action(rule) {
            Some(Action::Error(error)) => json!({"code": error.code()}),
            _ => Json::Null,
        };
        host.rules
            .evaluate_with(matches, &*host.sink, fields, outcome)
    }
}

/// Why a walk along the client's bytes stops.
enum Walked {
    /// Everything that can be told has been.
    Through,
    /// Too many answers are outstanding.
    Full,
    /// So many bytes never reach the server.
    Discard(usize),
    /// Bytes that must not reach the server, and nobody knows how many.
    Endless(Malformed),
    /// A command that a rule may mean.
    Request(Box<Request>),
}

fn may_mean(rule: &ArmedRule, name: &str) -> bool {
    rule.compiled
        .downcast_ref::<Compiled>()
        .is_some_and(|c| c.names(name))
}

fn action(rule: &ArmedRule) -> Option<&Action> {
    rule.compiled.downcast_ref::<Compiled>().map(|c| &c.action)
}

/// What becomes of the command; an end if it ends the connection.
fn verdict(fired: &Fired) -> Result<Verdict, End> {
    match fired.terminal.as_deref().and_then(action) {
        Some(Action::Error(error)) => Ok(Verdict::Deny(error.clone())),
        Some(Action::Response(value)) => Ok(Verdict::Answer(value.clone())),
        Some(Action::Drop) => Ok(Verdict::Drop),
        Some(Action::Reset) => Err(End::Reset),
        _ => Ok(Verdict::Pass),
    }
}

fn effects(fired: &Fired) -> Option<Box<Effects>> {
    let truncate = match fired.terminal.as_deref().and_then(action) {
        Some(Action::Truncate(bytes)) => Some(*bytes),
        _ => None,
    };
    Effects::new(truncate, &fired.modifiers, |rule| match action(rule) {
        Some(Action::Corrupt(offset)) => Some(Corrupt::new(*offset)),
        _ => None,
    })
}

/// Sends a part of a reply that is under effects.
async fn affected(
    client: &WriteHalf<'_>,
    part: &mut BytesMut,
    effects: Option<&mut Effects>,
) -> Result<(), End> {
    let Some(effects) = effects else {
        return send(client.as_ref(), part).await.map_err(|_| End::SinkGone);
    };
    effects.corrupt(|walk| walk.pass(part));
    match effects.send(client.as_ref(), part).await {
        Err(_) => Err(End::SinkGone),
        Ok(false) => Err(End::lost()),
        Ok(true) => Ok(()),
    }
}
