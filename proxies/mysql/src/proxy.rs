//! The proxy: two directions of one connection, walking along the bytes by [`crate::session`] and carrying out what rules say.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use faultbox_contract::rule::Fired;
use faultbox_contract::{ArmedRule, ProxyHost};
use faultbox_engine::{
    Added, Conn, Effects, Ending, Inbox, Origin, Times, both, close, finish, gone, send,
    send_front, send_front_watching, serve_delays, tls,
};
use faultbox_sql::{Cache, Unit, event_fields, unanswerable};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::Notify;

use crate::codec::{Malformed, Reply};
use crate::corrupt::Corrupt;
use crate::rules::{Action, Compiled, Error};
use crate::session::{Answer, Backend, Frontend, Raw, Request, Session, Step, Verdict};

/// What the connections of one proxy share.
#[derive(Default)]
struct Shared {
    cache: Cache,
    /// Sessions that a delay holds, by what `KILL QUERY` names.
    held: Mutex<HashMap<u32, Arc<Notify>>>,
    /// Has it been said that rules cannot act on what cannot be read?
    said_unreadable: AtomicBool,
}

/// Runs the proxy until dropped.
pub async fn serve(host: ProxyHost) {
    let shared = Arc::new(Shared::default());
    faultbox_engine::serve_upgrading(host, move |conn| handle(conn, shared.clone())).await;
}

/// How a direction ended.
type End = Ending<StartTls>;

/// Client and server have agreed on TLS, and the interface has it; how the client's handshake begins.
#[derive(Debug, Clone, PartialEq, Eq)]
struct StartTls(Bytes);

/// One connection.
struct Link<'a> {
    shared: &'a Shared,
    origin: &'a Origin,
    session: &'a Mutex<Session>,
    /// Wakes the client's direction when answers have left a full queue.
    room: Notify,
    times: &'a Mutex<Times>,
}

async fn handle(mut conn: Conn, shared: Arc<Shared>) {
    let (session, times) = <(Mutex<Session>, Mutex<Times>)>::default();
    let (mut frontend, mut backend) = (Frontend::default(), Backend::default());
    loop {
        let (frontend, backend) = (&mut frontend, &mut backend);
        match exchange(&mut conn, &shared, &session, &times, frontend, backend).await {
            End::Other(StartTls(begun)) => {
                // The session goes on within TLS, with another answer to the greeting.
                session.lock().unwrap_or_else(PoisonError::into_inner).raw = None;
                match tls::upgrade_after(conn, begun.into()).await {
                    Some(plain) => conn = plain,
                    None => return,
                }
            }
            end => return finish(conn, end).await,
        }
    }
}

/// Serves one pair of sockets to its end.
async fn exchange(
    conn: &mut Conn,
    shared: &Shared,
    session: &Mutex<Session>,
    times: &Mutex<Times>,
    frontend: &mut Frontend,
    backend: &mut Backend,
) -> End {
    {
        let link = Link {
            shared,
            origin: &conn.origin,
            session,
            room: Notify::new(),
            times,
        };
        let (client_in, client_out) = conn.client.split();
        let (server_in, server_out) = conn.upstream.split();
        let up = link.up(client_in, server_out, frontend);
        let down = link.down(server_in, client_out, backend);
        let end = both(up, down, || {
            link.session().queue.clear();
            link.room.notify_one();
        })
        .await;
        link.times().flush(&conn.origin.host.meter);
        end
    }
}

impl Link<'_> {
    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn armed(&self) -> bool {
        !self.origin.host.rules.is_empty()
    }

    /// Not understood: both directions go on raw, and the run hears of it once.
    fn degrade(&self, side: &str, why: &Malformed) {
        let mut session = self.session();
        if session.raw.is_none() {
            session.raw = Some(Raw::Degraded);
            self.origin
                .degraded(side, &format!("{}; forwarded unseen from here on", why.0));
        }
    }

    /// Rules that are armed over traffic that cannot be read never fire: that must not go unsaid.
    fn check_readable(&self) {
        let why = match self.session().raw {
            Some(Raw::Encrypted) => {
                "client and server have agreed on TLS, so that rules on this interface cannot act; \
                 give the interface tls=tls_cert(), or turn TLS off in the client (ssl-mode=DISABLED, --skip-ssl)"
            }
            Some(Raw::Compressed) => {
                "client and server have agreed on compression, so that rules on this interface cannot act; \
                 turn compression off in the client"
            }
            _ => return,
        };
        if self.armed() && !self.shared.said_unreadable.swap(true, Ordering::Relaxed) {
            self.origin.degraded("client", why);
        }
    }

    /// Client to server.
    async fn up(
        &self,
        mut client: ReadHalf<'_>,
        mut server: WriteHalf<'_>,
        frontend: &mut Frontend,
    ) -> Result<Infallible, End> {
        let mut inbox = Inbox::default();
        loop {
            match inbox.fill(&mut client).await {
                Ok(0) => {
                    // The beginning of a message that will never be whole.
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
                if self.session().is_full() {
                    send_front_watching(server.as_ref(), &mut inbox.bytes, at, client.as_ref())
                        .await?;
                    at = 0;
                    tokio::select! {
                        () = self.room.notified() => continue,
                        () = gone(client.as_ref()) => return Err(End::SourceGone),
                    }
                }
                let armed = self.armed();
                let step = {
                    let mut session = self.session();
                    frontend.next(&inbox.bytes[at..], &mut session, armed)
                };
                match step {
                    Ok(Step::More) => break,
                    Ok(Step::Pass(n)) => at += n,
                    Ok(Step::Raw) => {
                        self.check_readable();
                        at = inbox.bytes.len();
                        break;
                    }
                    // The client's handshake follows at once: the server has no say in it any more.
                    Ok(Step::StartTls(n)) if self.origin.has_tls() => {
                        send_front_watching(
                            server.as_ref(),
                            &mut inbox.bytes,
                            at + n,
                            client.as_ref(),
                        )
                        .await?;
                        return Err(End::Other(StartTls(inbox.bytes.freeze())));
                    }
                    // What follows is opaque.
                    Ok(Step::StartTls(n)) => at += n,
                    Ok(Step::Discard(n)) => {
                        send_front_watching(server.as_ref(), &mut inbox.bytes, at, client.as_ref())
                            .await?;
                        let _ = inbox.bytes.split_to(n);
                        at = 0;
                    }
                    Ok(Step::Instead(bytes)) => {
                        send_front_watching(server.as_ref(), &mut inbox.bytes, at, client.as_ref())
                            .await?;
                        at = 0;
                        if send(server.as_ref(), &bytes).await.is_err() {
                            return Err(End::SinkGone);
                        }
                    }
                    Ok(Step::Request(request, n)) => {
                        let fired = self.evaluate(&request);
                        let mut verdict = Verdict::Pass;
                        if !fired.is_empty() {
                            send_front_watching(
                                server.as_ref(),
                                &mut inbox.bytes,
                                at,
                                client.as_ref(),
                            )
                            .await?;
                            at = 0;
                            let held = Instant::now();
                            let killed = match self.hold(&fired, read, client.as_ref()).await {
                                Ok(killed) => killed,
                                Err(end) => return Err(end),
                            };
                            injected += held.elapsed();
                            verdict = match self.decide(&request, &fired, killed, &inbox.bytes) {
                                Ok(verdict) => verdict,
                                Err(end) => {
                                    let mut added = Added::default();
                                    added.way(read, injected);
                                    added.record(&self.origin.host.meter);
                                    return Err(end);
                                }
                            };
                        }
                        let replaced = {
                            let mut session = self.session();
                            let cache = &self.shared.cache;
                            frontend.decide(&request, verdict, effects(&fired), &mut session, cache)
                        };
                        if !replaced {
                            at += n;
                            continue;
                        }
                        send_front_watching(server.as_ref(), &mut inbox.bytes, at, client.as_ref())
                            .await?;
                        at = 0;
                        let _ = inbox.bytes.split_to(n);
                    }
                    Err(why) => self.degrade("client", &why),
                }
            }
            send_front_watching(server.as_ref(), &mut inbox.bytes, at, client.as_ref()).await?;
            let asked = self.session().asked;
            self.times().sent(asked, read, injected);
        }
    }

    /// Server to client.
    async fn down(
        &self,
        mut server: ReadHalf<'_>,
        mut client: WriteHalf<'_>,
        backend: &mut Backend,
    ) -> Result<Infallible, End> {
        let mut inbox = Inbox::default();
        loop {
            let filled = inbox.fill(&mut server).await;
            if !matches!(filled, Ok(1..)) {
                // What it said before it closed or died still arrives, be it half a packet.
                let rest = inbox.bytes.len();
                send_front(client.as_ref(), &mut inbox.bytes, rest).await?;
            }
            match filled {
                Ok(0) => {
                    return Err(close(&mut client).await);
                }
                Ok(_) => {}
                Err(_) => return Err(End::SourceGone),
            }
            let read = Instant::now();
            let mut at = 0;
            let mut slowed = false;
            loop {
                // What is under effects leaves the queue's front for the time of the writing.
                let (step, mut effects) = {
                    let mut session = self.session();
                    let mut step = backend.next(&inbox.bytes[at..], &mut session);
                    while let Ok(Answer::Pass(n)) = step
                        && session.killed.is_none()
                    {
                        at += n;
                        step = backend.next(&inbox.bytes[at..], &mut session);
                    }
                    if let Some(thread) = session.killed.take() {
                        self.kill(thread);
                    }
                    let effects = match step {
                        Ok(Answer::Affected(..) | Answer::Replace(..)) => {
                            session.queue.front_mut().and_then(|e| e.effects.take())
                        }
                        _ => None,
                    };
                    (step, effects)
                };
                match step {
                    Ok(Answer::More) => break,
                    Ok(Answer::Pass(n)) => {
                        at += n;
                        continue;
                    }
                    Ok(Answer::Raw) => {
                        self.check_readable();
                        at = inbox.bytes.len();
                        break;
                    }
                    Err(why) => {
                        self.degrade("upstream", &why);
                        continue;
                    }
                    Ok(other) => {
                        send_front(client.as_ref(), &mut inbox.bytes, at).await?;
                        at = 0;
                        slowed |= effects.is_some();
                        answer(other, &client, &mut inbox.bytes, effects.as_deref_mut()).await?;
                    }
                }
                if let Some(effects) = effects
                    && let Some(front) = self.session().queue.front_mut()
                {
                    front.effects = Some(effects);
                }
            }
            send_front(client.as_ref(), &mut inbox.bytes, at).await?;
            let done = self.session().done;
            let meter = &self.origin.host.meter;
            self.times().answered(done, read, slowed, meter);
            self.room.notify_one();
        }
    }

    /// Asks the rules about one request.
    fn evaluate(&self, request: &Request) -> Fired {
        let host = &self.origin.host;
        if host.rules.is_empty() {
            return Fired::default();
        }
        let facts = self.session().facts.clone();
        let sql = request.sql();
        let units = sql.map(|sql| sql.units(&self.shared.cache).clone());
        let fields = || event_fields(&facts.user, &facts.database, sql);
        let matches = |rule: &ArmedRule| {
            let Some(c) = compiled(rule) else {
                return false;
            };
            let meant = match &units {
                Some(units) => c.matches(rule.id, &facts, units),
                None => c.matches_login(&facts),
            };
            if !meant || !self.origin.admits(rule) {
                return false;
            }
            let (Action::Response(_), Some(sql), Some(units)) = (&c.action, sql, &units) else {
                return true;
            };
            match unanswerable(sql, units, c.first(units)) {
                Some(reason) => self.origin.unanswered(rule, reason, fields()),
                None => return true,
            }
            false
        };
        let outcome = |rule: &ArmedRule| match action(rule) {
            Some(Action::Error(error)) => {
                json!({"code": error.code.to_string(), "sqlstate": error.sqlstate})
            }
            _ => Value::Null,
        };
        host.rules
            .evaluate_with(matches, &*host.sink, fields, outcome)
    }

    /// Serves the delays; true if a KILL QUERY for this session ended them.
    async fn hold(&self, fired: &Fired, since: Instant, client: &TcpStream) -> Result<bool, End> {
        if fired.delays.is_empty() {
            return Ok(false);
        }
        let thread = self.session().thread;
        // Of this delay alone: a KILL that comes as it ends must not cut the next one short.
        let killed = Arc::new(Notify::new());
        let _held = Held::new(self.shared, thread, killed.clone());
        tokio::select! {
            _ = serve_delays(&fired.delays, since) => Ok(false),
            () = killed.notified() => Ok(true),
            () = gone(client) => Err(End::SourceGone),
        }
    }

    /// If a delay holds this session, ends it: the server had nothing to kill. Only now that it has answered: before, the session whose
    /// delay ends could be gone before the server looks for it.
    fn kill(&self, thread: u32) {
        if let Some(killed) = self.shared.held().get(&thread) {
            killed.notify_one();
        }
    }

    /// What becomes of the request whose bytes these are; an end if it ends the connection.
    fn decide(
        &self,
        request: &Request,
        fired: &Fired,
        killed: bool,
        bytes: &[u8],
    ) -> Result<Verdict, End> {
        let units = || request.sql().map(|sql| sql.units(&self.shared.cache));
        let deny = |error, commits| match commits {
            true => Verdict::Abort(error),
            false => Verdict::Deny(error),
        };
        let rule = fired.terminal.as_deref();
        let verdict = match rule.and_then(action) {
            // ER_QUERY_INTERRUPTED
            _ if killed => {
                let first = units().and_then(|u| u.iter().next());
                deny(
                    Arc::new(Error::of_code(1317)),
                    first.is_some_and(Unit::commits),
                )
            }
            Some(Action::Error(error)) => {
                let rule = rule.and_then(compiled);
                let unit = units().zip(rule).and_then(|(u, c)| c.first(u));
                let about = unit.and_then(|unit| error.about(unit, &self.session().facts.database));
                let error = about.map_or_else(|| error.clone(), Arc::new);
                deny(error, unit.is_some_and(Unit::commits))
            }
            Some(Action::Response(rows)) => Verdict::Answer(rows.clone()),
            Some(Action::Drop) => return Err(End::lost()),
            Some(Action::Reset) => return Err(End::Reset),
            _ => Verdict::Pass,
        };
        match (request, &verdict) {
            // Who is refused is told so and shown out. The server never hears of it.
            (Request::Login, Verdict::Deny(error) | Verdict::Abort(error)) => {
                let seq = bytes.get(3).map_or(2, |seq| seq.wrapping_add(1));
                let session = self.session();
                let mut reply = Reply::new(seq, session.capabilities, session.status);
                reply.err(error.code, &error.sqlstate, &error.message);
                Err(End::Lost(reply.out.freeze()))
            }
            _ => Ok(verdict),
        }
    }
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, HashMap<u32, Arc<Notify>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session that a delay holds, for as long as it does.
struct Held<'a> {
    shared: &'a Shared,
    thread: u32,
}

impl<'a> Held<'a> {
    fn new(shared: &'a Shared, thread: u32, killed: Arc<Notify>) -> Held<'a> {
        shared.held().insert(thread, killed);
        Held { shared, thread }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.shared.held().remove(&self.thread);
    }
}

fn compiled(rule: &ArmedRule) -> Option<&Compiled> {
    rule.compiled.downcast_ref::<Compiled>()
}

fn action(rule: &ArmedRule) -> Option<&Action> {
    compiled(rule).map(|c| &c.action)
}

fn effects(fired: &Fired) -> Option<Box<Effects<Corrupt>>> {
    let truncate = match fired.terminal.as_deref().and_then(action) {
        Some(Action::Truncate(bytes)) => Some(*bytes),
        _ => None,
    };
    Effects::new(truncate, &fired.modifiers, |rule| match action(rule) {
        Some(Action::Corrupt(offset)) => Some(Corrupt::new(*offset)),
        _ => None,
    })
}

/// Sends a part of an answer that is a rule's, or under its effects.
async fn answer(
    step: Answer,
    client: &WriteHalf<'_>,
    bytes: &mut BytesMut,
    effects: Option<&mut Effects<Corrupt>>,
) -> Result<(), End> {
    let part = match step {
        Answer::Affected(n, header, piece) => {
            let mut part = bytes.split_to(n);
            if let Some(effects) = effects {
                if let Some(piece) = &piece {
                    effects.corrupt(|walk| walk.begin(piece));
                }
                effects.corrupt(|walk| walk.pass(&mut part[header..]));
                return affected(client, &part, effects).await;
            }
            part.freeze()
        }
        Answer::Replace(n, part) => {
            let _ = bytes.split_to(n);
            if let Some(effects) = effects {
                return affected(client, &part, effects).await;
            }
            part
        }
        Answer::Last(part) => return Err(End::Lost(part)),
        Answer::More | Answer::Pass(_) | Answer::Raw => return Ok(()),
    };
    let sent = send(client.as_ref(), &part).await;
    sent.map_err(|_| End::SinkGone)
}

async fn affected(
    client: &WriteHalf<'_>,
    part: &[u8],
    effects: &mut Effects<Corrupt>,
) -> Result<(), End> {
    match effects.send(client.as_ref(), part).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(End::lost()),
        Err(_) => Err(End::SinkGone),
    }
}
