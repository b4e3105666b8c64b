//! The proxy: two directions of one connection, walking along the bytes by [`crate::session`] and carrying out what rules say.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use faultbox_contract::rule::Fired;
use faultbox_contract::{ArmedRule, ProxyEvent, ProxyHost};
use faultbox_engine::{
    Added, Conn, Effects, Ending, Inbox, Origin, Times, both, close, finish, gone, send,
    send_front, send_front_watching, serve_delays,
};
use faultbox_sql::{Cache, Unit, event_fields, unanswerable};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::Notify;

use crate::answer::name;
use crate::codec::{CancelKey, Malformed};
use crate::effects::Corrupt;
use crate::encryption::negotiate;
use crate::rules::{Action, Compiled, Error};
use crate::session::{Backend, Frontend, Raw, Reply, Request, Session, Step, Verdict, Want};

/// What the connections of one proxy share.
#[derive(Default)]
struct Shared {
    cache: Cache,
    /// Sessions that a delay holds, by what cancels them.
    held: Mutex<HashMap<CancelKey, Arc<Notify>>>,
    /// Has it been said that rules cannot act on encrypted traffic?
    said_encrypted: AtomicBool,
}

/// Runs the proxy until dropped.
pub async fn serve(host: ProxyHost) {
    let shared = Arc::new(Shared::default());
    faultbox_engine::serve_upgrading(host, move |conn| {
        let shared = shared.clone();
        async move {
            if let Some((conn, begun)) = negotiate(conn).await {
                handle(conn, begun, shared).await;
            }
        }
    })
    .await;
}

/// How a direction ended.
type End = Ending;

/// One connection.
struct Link<'a> {
    shared: &'a Shared,
    origin: &'a Origin,
    session: Mutex<Session>,
    /// Wakes the client's direction when the server has answered an encryption request, or the answer came to nothing.
    answered: Notify,
    /// Wakes the client's direction when answers have left a full queue.
    room: Notify,
    times: Mutex<Times>,
}

async fn handle(mut conn: Conn, begun: BytesMut, shared: Arc<Shared>) {
    let end = {
        let link = Link {
            shared: &shared,
            origin: &conn.origin,
            session: Mutex::default(),
            answered: Notify::new(),
            room: Notify::new(),
            times: Mutex::default(),
        };
        let (client_in, client_out) = conn.client.split();
        let (server_in, server_out) = conn.upstream.split();
        let up = link.up(client_in, server_out, begun);
        let down = link.down(server_in, client_out);
        let end = both(up, down, || {
            link.answered.notify_one();
            link.session().queue.clear();
            link.room.notify_one();
        })
        .await;
        // What stays unanswered was a request all the same.
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

    /// A batch has gone to the server.
    fn sent(&self, read: Instant, injected: Duration) {
        let asked = self.session().asked;
        self.times().sent(asked, read, injected);
    }

    /// A batch has gone to the client; with `slowed`, its time is a rule's.
    fn answered(&self, read: Instant, slowed: bool) {
        let done = self.session().done;
        let meter = &self.origin.host.meter;
        self.times().answered(done, read, slowed, meter);
    }

    fn armed(&self) -> bool {
        !self.origin.host.rules.is_empty()
    }

    /// Not understood: both directions go on raw, and the run hears of it once.
    fn degrade(&self, side: &str, why: &Malformed) {
        let mut session = self.session();
        if session.raw.is_none() {
            session.raw = Some(Raw::Degraded);
            session.awaiting_encryption = false;
            self.origin
                .degraded(side, &format!("{}; forwarded unseen from here on", why.0));
        }
    }

    /// Rules that are armed over traffic that cannot be read never fire: that must not go unsaid.
    fn check_readable(&self) {
        let encrypted = self.session().raw == Some(Raw::Encrypted);
        if encrypted && self.armed() && !self.shared.said_encrypted.swap(true, Ordering::Relaxed) {
            self.origin.degraded(
                "client",
                "client and server have agreed on encryption, so that rules on this interface cannot act; \
                 give the interface tls=tls_cert(), or use sslmode=disable in the client",
            );
        }
    }

    /// SCRAM with channel binding (RFC 5929, tls-server-end-point) holds the client to the certificate that it was shown: if that is not
    /// the server's, the server refuses a right password. Returns what is known then: `None` when there is nothing more to look for.
    fn check_binding(&self, message: &[u8]) -> Option<bool> {
        let Some(body) = message.strip_prefix(b"p") else {
            return Some(false);
        };
        let body = body.get(4..).unwrap_or_default();
        if body.starts_with(b"SCRAM-SHA-256-PLUS\0") {
            self.origin.host.sink.emit(ProxyEvent {
                kind: "proxy_tls_binding",
                fields: json!({
                    "peer": self.origin.peer.to_string(),
                    "error": "the client binds its password to the certificate it was shown (channel binding), which is not the server's",
                    "help": "let both show the same: give the server this tls_cert's .cert and .key, or tls_cert(cert=, key=) the server's; or use channel_binding=disable in the client",
                }),
            });
        }
        None
    }

    /// Client to server.
    async fn up(
        &self,
        mut client: ReadHalf<'_>,
        mut server: WriteHalf<'_>,
        begun: BytesMut,
    ) -> Result<Infallible, End> {
        let mut inbox = Inbox::default();
        let mut frontend = Frontend::default();
        let mut is_bound = self.origin.shows_other_certificate().then_some(false);
        let mut at_hand = !begun.is_empty();
        inbox.bytes = begun;
        loop {
            let filled = match std::mem::take(&mut at_hand) {
                true => Ok(inbox.bytes.len()),
                false => inbox.fill(&mut client).await,
            };
            match filled {
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
                    Ok(Step::Pass(n)) => {
                        if is_bound == Some(false) {
                            is_bound = self.check_binding(&inbox.bytes[at..at + n]);
                        }
                        at += n;
                    }
                    Ok(Step::Raw) => {
                        self.check_readable();
                        self.cancel();
                        at = inbox.bytes.len();
                        break;
                    }
                    Ok(Step::Discard(n)) => {
                        send_front_watching(server.as_ref(), &mut inbox.bytes, at, client.as_ref())
                            .await?;
                        let _ = inbox.bytes.split_to(n);
                        at = 0;
                    }
                    Ok(Step::Encryption(n)) => {
                        send_front_watching(
                            server.as_ref(),
                            &mut inbox.bytes,
                            at + n,
                            client.as_ref(),
                        )
                        .await?;
                        at = 0;
                        // What follows means one thing or another by the server's answer. A client that gives up meanwhile is
                        // noticed by the other direction when the server closes, or here when it is reset.
                        tokio::select! {
                            () = self.answered.notified() => {}
                            () = gone(client.as_ref()) => return Err(End::SourceGone),
                        }
                        let mut session = self.session();
                        if session.awaiting_encryption {
                            // The server has closed instead; whatever else the client says is between the two.
                            session.awaiting_encryption = false;
                            session.raw = Some(Raw::Degraded);
                        }
                    }
                    Ok(Step::Request(request, n)) => {
                        let fired = self.evaluate(&request);
                        if fired.is_empty() {
                            let mut session = self.session();
                            frontend.decide(
                                request,
                                Verdict::Pass,
                                None,
                                &mut session,
                                &self.shared.cache,
                            );
                            at += n;
                            continue;
                        }
                        send_front_watching(server.as_ref(), &mut inbox.bytes, at, client.as_ref())
                            .await?;
                        at = 0;
                        let held = Instant::now();
                        let cancelled = match self.hold(&fired, read, client.as_ref()).await {
                            Ok(cancelled) => cancelled,
                            Err(end) => return Err(end),
                        };
                        injected += held.elapsed();
                        let verdict = match self.decide(&request, &fired, cancelled) {
                            Ok(verdict) => verdict,
                            Err(end) => {
                                let mut added = Added::default();
                                added.way(read, injected);
                                added.record(&self.origin.host.meter);
                                return Err(end);
                            }
                        };
                        let effects = effects(&fired);
                        let replaced = {
                            let mut session = self.session();
                            frontend.decide(
                                request,
                                verdict,
                                effects,
                                &mut session,
                                &self.shared.cache,
                            )
                        };
                        match replaced {
                            None => at = n,
                            Some(instead) => {
                                let _ = inbox.bytes.split_to(n);
                                if send(server.as_ref(), &instead).await.is_err() {
                                    return Err(End::SinkGone);
                                }
                            }
                        }
                    }
                    Err(why) => self.degrade("client", &why),
                }
            }
            send_front_watching(server.as_ref(), &mut inbox.bytes, at, client.as_ref()).await?;
            self.sent(read, injected);
        }
    }

    /// Server to client.
    async fn down(
        &self,
        mut server: ReadHalf<'_>,
        mut client: WriteHalf<'_>,
    ) -> Result<Infallible, End> {
        let mut inbox = Inbox::default();
        let mut backend = Backend::default();
        loop {
            let filled = inbox.fill(&mut server).await;
            if !matches!(filled, Ok(1..)) {
                // What it said before it closed or died still arrives, be it half a message.
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
                let (reply, mut effects) = {
                    let mut session = self.session();
                    let waiting = session.awaiting_encryption;
                    let mut reply = backend.next(&inbox.bytes[at..], &mut session);
                    while let Ok(Reply::Pass(n)) = reply
                        && session.awaiting_encryption == waiting
                    {
                        at += n;
                        reply = backend.next(&inbox.bytes[at..], &mut session);
                    }
                    if waiting && !session.awaiting_encryption {
                        self.answered.notify_one();
                    }
                    let effects = match reply {
                        Ok(Reply::Affected(_) | Reply::Replace(..)) => {
                            session.queue.front_mut().and_then(|e| e.effects.take())
                        }
                        _ => None,
                    };
                    (reply, effects)
                };
                match reply {
                    Ok(Reply::More) => break,
                    Ok(Reply::Pass(n)) => at += n,
                    Ok(Reply::Raw) => {
                        self.check_readable();
                        at = inbox.bytes.len();
                        break;
                    }
                    Ok(Reply::Affected(n)) => {
                        send_front(client.as_ref(), &mut inbox.bytes, at).await?;
                        at = 0;
                        slowed = true;
                        let mut part = inbox.bytes.split_to(n);
                        affected(&client, &mut part, effects.as_deref_mut()).await?;
                    }
                    Ok(Reply::Replace(n, bytes)) => {
                        send_front(client.as_ref(), &mut inbox.bytes, at).await?;
                        at = 0;
                        let _ = inbox.bytes.split_to(n);
                        slowed |= effects.is_some();
                        let mut part = BytesMut::from(bytes);
                        affected(&client, &mut part, effects.as_deref_mut()).await?;
                    }
                    Ok(Reply::Last(bytes)) => {
                        send_front(client.as_ref(), &mut inbox.bytes, at).await?;
                        return Err(End::Lost(bytes));
                    }
                    Err(why) => {
                        self.degrade("upstream", &why);
                        self.answered.notify_one();
                    }
                }
                if let Some(effects) = effects
                    && let Some(front) = self.session().queue.front_mut()
                {
                    front.effects = Some(effects);
                }
            }
            send_front(client.as_ref(), &mut inbox.bytes, at).await?;
            self.answered(read, slowed);
            self.room.notify_one();
        }
    }

    /// Asks the rules about one request.
    fn evaluate(&self, request: &Request) -> Fired {
        let (facts, failed) = {
            let session = self.session();
            // In a transaction that has failed, the server refuses every statement but its end without looking further.
            let settled = !session
                .queue
                .iter()
                .any(|e| matches!(e.want, Want::Query | Want::Sync | Want::Execute));
            (session.facts.clone(), settled && session.status == b'E')
        };
        let sql = request.sql();
        let units = sql.map(|sql| sql.units(&self.shared.cache).clone());
        let ends = |verb: &str| matches!(verb, "COMMIT" | "ROLLBACK" | "PREPARE");
        if failed && !units.iter().flat_map(|u| u.iter()).any(|u| ends(u.verb())) {
            return Fired::default();
        }
        let host = &self.origin.host;
        let fields = || event_fields(&facts.user, &facts.database, sql);
        let matches = |rule: &ArmedRule| {
            let Some(c) = compiled(rule) else {
                return false;
            };
            let meant = match request {
                Request::Login => c.matches_login(&facts),
                _ => c.matches(rule.id, &facts, units.as_deref()),
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
            Some(Action::Error(error)) => json!({"code": error.code}),
            _ => Value::Null,
        };
        host.rules
            .evaluate_with(matches, &*host.sink, fields, outcome)
    }

    /// Serves the delays; true if a CancelRequest for this session ended them.
    async fn hold(&self, fired: &Fired, since: Instant, client: &TcpStream) -> Result<bool, End> {
        if fired.delays.is_empty() {
            return Ok(false);
        }
        let key = self.session().key.clone();
        // Of this delay alone: a cancel that comes as it ends must not cut the next one short.
        let cancelled = Arc::new(Notify::new());
        let _held = key.map(|key| Held::new(self.shared, key, cancelled.clone()));
        tokio::select! {
            _ = serve_delays(&fired.delays, since) => Ok(false),
            () = cancelled.notified() => Ok(true),
            () = gone(client) => Err(End::SourceGone),
        }
    }

    /// What becomes of the request; an end if it ends the connection.
    fn decide(&self, request: &Request, fired: &Fired, cancelled: bool) -> Result<Verdict, End> {
        let units = || request.sql().map(|sql| sql.units(&self.shared.cache));
        let deny = |error, commits| match commits {
            true => Ok(Verdict::Abort(error)),
            false => Ok(Verdict::Deny(error)),
        };
        if cancelled {
            // What the server says when a statement is cancelled while it runs.
            let message = "canceling statement due to user request";
            let error = Error::new("ERROR", "57014", message, None, None);
            let commits = units()
                .and_then(|u| u.iter().next())
                .is_some_and(Unit::commits);
            return deny(Arc::new(error), commits);
        }
        let rule = fired.terminal.as_deref().and_then(compiled);
        match rule.map(|rule| (rule, &rule.action)) {
            // Who is refused is told so and shown out. The server never hears of it.
            Some((_, Action::Error(error))) if matches!(request, Request::Login) => {
                Err(End::Lost(error.message.clone()))
            }
            Some((rule, Action::Error(error))) => {
                let unit = units().and_then(|u| rule.first(u));
                let about = unit.and_then(|unit| error.about(&name(unit)));
                let error = about.map_or_else(|| error.clone(), Arc::new);
                deny(error, unit.is_some_and(Unit::commits))
            }
            Some((_, Action::Response(rows))) => Ok(Verdict::Answer(rows.clone())),
            Some((_, Action::Drop)) => Err(End::lost()),
            Some((_, Action::Reset)) => Err(End::Reset),
            _ => Ok(Verdict::Pass),
        }
    }

    /// If this connection is a CancelRequest for a session that a delay holds, ends that delay.
    fn cancel(&self) {
        let session = self.session();
        if let (Some(Raw::Cancel), Some(key)) = (session.raw, &session.key) {
            let held = self
                .shared
                .held
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(cancelled) = held.get(key) {
                cancelled.notify_one();
            }
        }
    }
}

/// A session that a delay holds, for as long as it does.
struct Held<'a> {
    shared: &'a Shared,
    key: CancelKey,
}

impl<'a> Held<'a> {
    fn new(shared: &'a Shared, key: CancelKey, cancelled: Arc<Notify>) -> Held<'a> {
        let mut held = shared.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert(key.clone(), cancelled);
        drop(held);
        Held { shared, key }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self
            .shared
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        held.remove(&self.key);
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

/// Sends a part of an answer that is under effects.
async fn affected(
    client: &WriteHalf<'_>,
    part: &mut BytesMut,
    effects: Option<&mut Effects<Corrupt>>,
) -> Result<(), End> {
    let Some(effects) = effects else {
        return send(client.as_ref(), part).await.map_err(|_| End::SinkGone);
    };
    effects.corrupt(|walk| walk.pass(part));
    match effects.send(client.as_ref(), part).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(End::lost()),
        Err(_) => Err(End::SinkGone),
    }
}
