//! The request side: finds each request, asks the rules about it, and sends it on or keeps it from the server.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Buf;
use faultbox_contract::RuleSet;
use faultbox_contract::rule::Fired;
use faultbox_engine::{Added, End, Inbox, Origin, forward, gone, send_watching, serve_delays};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::codec::{Body, Framing, HeadSearch, Look, RequestInfo, RequestKind, with_request};
use crate::link::{Expected, Link, Turn};
use crate::rules::{Action, BODY_WINDOW, HttpRule, View};

/// The most bytes of one request, framing included, that are held for the body matchers: the window, with room for a chunked
/// body's framing. A body in tiny chunks is judged by what this holds.
const MOST_HELD: usize = 8 * BODY_WINDOW;

/// How the request side ended.
#[derive(Debug)]
pub enum RequestEnd {
    /// The client closed its side, and the FIN was passed on.
    Closed,
    /// Nothing more of this client is to be read; the reply side ends the connection.
    Refused,
    /// The client was reset.
    ClientGone,
    /// The upstream takes no more.
    UpstreamGone,
    /// The upstream closed while a request was held.
    Redial,
}

/// What is to happen to the request at the front.
#[derive(Debug)]
enum Fate {
    Forward(Box<Expected>),
    Refuse { turn: Turn, drain: bool },
}

/// The state that outlives a redial.
#[derive(Debug, Default)]
pub struct Requests {
    inbox: Inbox,
    search: HeadSearch,
    /// The first bytes of the inbox, on their way to the upstream.
    ready: usize,
    /// Of an incomplete head, the bytes that the upstream has already: with no rule armed nothing is held back, so that the
    /// server's own time-outs see what the client does. `ready` is 0 then.
    early: usize,
    /// A request that was held until the upstream had gone: its head and its fate.
    held: Option<(RequestInfo, Fate)>,
}

/// Ends the request side.
type Ended<T> = Result<T, RequestEnd>;

impl Requests {
    /// Runs until the client, the upstream or a rule ends it.
    pub async fn run(
        &mut self,
        origin: &Origin,
        link: &Link,
        mut from: ReadHalf<'_>,
        mut to: WriteHalf<'_>,
    ) -> RequestEnd {
        match self.until_raw(origin, link, &mut from, &mut to).await {
            Err(end) => end,
            Ok(()) => match forward(from, to, &mut self.inbox, true, None).await {
                End::Closed => RequestEnd::Closed,
                End::SourceGone => RequestEnd::ClientGone,
                End::SinkGone => RequestEnd::UpstreamGone,
            },
        }
    }

    /// Handles requests until the traffic is no longer looked at.
    async fn until_raw(
        &mut self,
        origin: &Origin,
        link: &Link,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
    ) -> Ended<()> {
        let mut read = Instant::now();
        loop {
            let (info, fate) = match self.held.take() {
                Some(held) => held,
                None => {
                    if link.is_raw() {
                        self.flush(link, from, to).await?;
                        self.inbox.bytes.advance(std::mem::take(&mut self.early));
                        return Ok(());
                    }
                    let bytes = &self.inbox.bytes[self.ready..];
                    let info = match self.search.request(bytes, look(origin)) {
                        Ok(Some(info)) => info,
                        Ok(None) => {
                            self.flush(link, from, to).await?;
                            self.send_early(origin, from, to).await?;
                            let filled = tokio::select! {
                                biased;
                                filled = self.inbox.fill(from) => filled,
                                // The reply side may have stopped looking.
                                () = link.woken() => continue,
                            };
                            read = Instant::now();
                            self.filled(filled, from, to).await?;
                            continue;
                        }
                        Err(malformed) => {
                            link.degrade(origin, "client", malformed.0);
                            continue;
                        }
                    };
                    tokio::select! {
                        biased;
                        () = link.room() => {}
                        () = gone(from.as_ref()) => return Err(RequestEnd::ClientGone),
                    }
                    let fate = self.judge(&info, read, origin, link, from, to).await?;
                    (info, fate)
                }
            };
            match fate {
                Fate::Forward(expected) => {
                    let upgrade = expected.upgrade;
                    link.push(Turn::Reply(expected));
                    let early = std::mem::take(&mut self.early);
                    self.inbox.bytes.advance(early);
                    self.ready += info.len - early;
                    self.pass_body(info.framing, origin, link, from, to).await?;
                    if upgrade {
                        self.flush(link, from, to).await?;
                        let left = tokio::select! {
                            left = link.left_http() => left,
                            () = gone(from.as_ref()) => return Err(RequestEnd::ClientGone),
                        };
                        if left {
                            link.go_raw();
                        }
                    }
                }
                Fate::Refuse { turn, drain } => {
                    link.push(turn);
                    if !drain {
                        return Err(RequestEnd::Refused);
                    }
                    self.inbox.bytes.advance(info.len);
                    self.drain_body(info.framing, link, from, to).await?;
                }
            }
            if self.inbox.bytes.len() > self.ready {
                // A pipelined request that is in the inbox already begins to wait here, not when it was read.
                read = Instant::now();
            }
        }
    }

    /// Takes the outcome of a read. Passes on what there is, and the FIN, when the client has closed.
    async fn filled(
        &mut self,
        filled: io::Result<usize>,
        from: &ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
    ) -> Ended<()> {
        match filled {
            Ok(0) => {
                let mut rest = self.inbox.bytes.split();
                rest.advance(std::mem::take(&mut self.early));
                send_watching(to.as_ref(), &rest, from.as_ref())
                    .await
                    .map_err(gave_up)?;
                match to.shutdown().await {
                    Ok(()) => Err(RequestEnd::Closed),
                    Err(_) => Err(RequestEnd::UpstreamGone),
                }
            }
            Ok(_) => Ok(()),
            Err(_) => Err(RequestEnd::ClientGone),
        }
    }

    /// Sends what is ready.
    async fn flush(&mut self, link: &Link, from: &ReadHalf<'_>, to: &WriteHalf<'_>) -> Ended<()> {
        if self.ready > 0 {
            send_watching(to.as_ref(), &self.inbox.bytes[..self.ready], from.as_ref())
                .await
                .map_err(gave_up)?;
            self.inbox.bytes.advance(self.ready);
            self.ready = 0;
            link.sent();
        }
        Ok(())
    }

    /// Sends on what there is of an incomplete head, if no rule could want it back. Once some of a head is out, the rest follows.
    async fn send_early(
        &mut self,
        origin: &Origin,
        from: &ReadHalf<'_>,
        to: &WriteHalf<'_>,
    ) -> Ended<()> {
        let new = &self.inbox.bytes[self.early..];
        if !new.is_empty() && (self.early > 0 || origin.host.rules.is_empty()) {
            send_watching(to.as_ref(), new, from.as_ref())
                .await
                .map_err(gave_up)?;
            self.early = self.inbox.bytes.len();
        }
        Ok(())
    }

    /// Sends the body on as it comes.
    async fn pass_body(
        &mut self,
        framing: Framing,
        origin: &Origin,
        link: &Link,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
    ) -> Ended<()> {
        let mut body = Body::new(framing);
        loop {
            match body.advance(&self.inbox.bytes[self.ready..], |_| {}) {
                Ok(n) => self.ready += n,
                Err(malformed) => {
                    link.degrade(origin, "client", malformed.0);
                    return Ok(());
                }
            }
            if body.is_done() {
                return Ok(());
            }
            self.flush(link, from, to).await?;
            let filled = self.inbox.fill(from).await;
            self.filled(filled, from, to).await?;
        }
    }

    /// Reads and discards the body of a request that the server must not see.
    async fn drain_body(
        &mut self,
        framing: Framing,
        link: &Link,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
    ) -> Ended<()> {
        let mut body = Body::new(framing);
        loop {
            match body.advance(&self.inbox.bytes, |_| {}) {
                Ok(n) => self.inbox.bytes.advance(n),
                Err(_) => {
                    // Where the next request begins is unknown now, so the connection cannot go on.
                    link.push(Turn::Close);
                    return Err(RequestEnd::Refused);
                }
            }
            if body.is_done() {
                return Ok(());
            }
            match self.inbox.fill(from).await {
                Ok(0) => {
                    // Cut off within a body that the server must not see: only the FIN is passed on.
                    let _ = to.shutdown().await;
                    return Err(RequestEnd::Closed);
                }
                Ok(_) => {}
                Err(_) => return Err(RequestEnd::ClientGone),
            }
        }
    }

    /// Asks the rules about the request whose head is at the front, and serves its delays.
    async fn judge(
        &mut self,
        info: &RequestInfo,
        mut read: Instant,
        origin: &Origin,
        link: &Link,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
    ) -> Ended<Fate> {
        let mut expected = Box::new(Expected {
            kind: info.kind,
            upgrade: info.upgrade,
            continued: false,
            http10: info.http10,
            keep_alive: info.keep_alive,
            replace: None,
            truncate: None,
            modifiers: vec![],
            read,
            injected: Duration::ZERO,
            sent: None,
        });
        // A rule that was armed in the middle of a head comes too late for it.
        if origin.host.rules.is_empty() || self.early > 0 {
            return Ok(Fate::Forward(expected));
        }
        // Earlier requests must not wait for what happens to this one.
        self.flush(link, from, to).await?;
        link.hold(true);
        let mut body = vec![];
        let mut body_began = false;
        if self.needs_body(origin, info) {
            if info.expects_continue && self.inbox.bytes.len() == info.len {
                // The client keeps the body back until it is told to go on; the server's own word is swallowed later.
                link.push(Turn::Continue);
                expected.continued = true;
            }
            body = self.read_body(info, from).await?;
            body_began = true;
            read = Instant::now();
            expected.read = read;
        }
        body_began |= self.inbox.bytes.len() > info.len;
        let fired = self.evaluate(info, &body, origin);
        expected.injected = tokio::select! {
            injected = serve_delays(&fired.delays, read) => injected,
            () = gone(from.as_ref()) => return Err(RequestEnd::ClientGone),
        };
        link.hold(false);
        let injected = expected.injected;
        let fate = decide(info, expected, fired, body_began);
        if let Fate::Refuse { .. } = fate {
            let mut added = Added::default();
            added.way(read, injected);
            added.record(&origin.host.meter);
        }
        if link.take_closed() {
            self.held = Some((*info, fate));
            return Err(RequestEnd::Redial);
        }
        Ok(fate)
    }

    /// Does any rule that could select this request look at its body?
    fn needs_body(&self, origin: &Origin, info: &RequestInfo) -> bool {
        info.framing != Framing::Length(0)
            && self
                .see(info, &[], |view| {
                    origin.host.rules.load().iter().any(|armed| {
                        HttpRule::of(armed)
                            .is_some_and(|rule| rule.needs_body() && rule.matches(view, false))
                            && origin.admits(armed)
                    })
                })
                .unwrap_or(false)
    }

    /// Reads on until the matchers' window, or the body, is full; the bytes stay in the inbox. Returns the payload.
    async fn read_body(&mut self, info: &RequestInfo, from: &mut ReadHalf<'_>) -> Ended<Vec<u8>> {
        let mut body = Body::new(info.framing);
        let mut payload = Vec::new();
        let mut seen = info.len;
        loop {
            let input = &self.inbox.bytes[seen..];
            let advanced = body.advance(input, |range| {
                let room = BODY_WINDOW - payload.len();
                let part = &input[range];
                payload.extend_from_slice(&part[..part.len().min(room)]);
            });
            match advanced {
                Ok(n) => seen += n,
                // What is wrong with it shows again, and is recorded, where the body is forwarded or drained.
                Err(_) => return Ok(payload),
            }
            if body.is_done() || payload.len() >= BODY_WINDOW || seen >= info.len + MOST_HELD {
                return Ok(payload);
            }
            match self.inbox.fill(from).await {
                // The client's FIN is read again, and passed on, after this request.
                Ok(0) => return Ok(payload),
                Ok(_) => {}
                Err(_) => return Err(RequestEnd::ClientGone),
            }
        }
    }

    fn evaluate(&self, info: &RequestInfo, body: &[u8], origin: &Origin) -> Fired {
        let rules: &Arc<RuleSet> = &origin.host.rules;
        self.see(info, body, |view| {
            rules.evaluate_with(
                |armed| {
                    HttpRule::of(armed).is_some_and(|rule| rule.matches(view, true))
                        && origin.admits(armed)
                },
                &*origin.host.sink,
                || json!({"method": view.method, "path": view.path}),
                |armed| match HttpRule::of(armed).map(|rule| &rule.action) {
                    Some(Action::Answer { answer, .. }) => json!({"status": answer.status}),
                    _ => Value::Null,
                },
            )
        })
        .unwrap_or_default()
    }

    /// Parses the head at the front once more, for the matchers.
    fn see<T>(&self, info: &RequestInfo, body: &[u8], look: impl Fn(&View<'_>) -> T) -> Option<T> {
        let head = &self.inbox.bytes[self.ready..][..info.len];
        with_request(head, |request, _| look(&View::new(request, body)))
            .ok()
            .flatten()
    }
}

/// Only a rule asks for more of a message than where it ends.
pub fn look(origin: &Origin) -> Look {
    match origin.host.rules.is_empty() {
        true => Look::Framing,
        false => Look::Whole,
    }
}

/// What the rules that fired make of a request.
fn decide(info: &RequestInfo, mut expected: Box<Expected>, fired: Fired, body_began: bool) -> Fate {
    expected.modifiers = fired.modifiers;
    let action = fired
        .terminal
        .as_deref()
        .and_then(HttpRule::of)
        .map_or(Action::Engine, |rule| rule.action.clone());
    match action {
        Action::Answer {
            answer,
            after: false,
        } => {
            // A client that was waiting to be told to go on may now send the body or leave it out; only closing is safe
            // (RFC 9110, 10.1.1).
            let kept_back =
                info.expects_continue && !body_began && info.framing != Framing::Length(0);
            let drain = info.keep_alive && !kept_back && info.kind != RequestKind::Connect;
            Fate::Refuse {
                turn: Turn::Answer {
                    answer,
                    head: info.kind == RequestKind::Head,
                    close: !drain,
                    http10: info.http10,
                    modifiers: std::mem::take(&mut expected.modifiers),
                },
                drain,
            }
        }
        Action::Answer {
            answer,
            after: true,
        } => {
            expected.replace = Some(answer);
            Fate::Forward(expected)
        }
        Action::Truncate(bytes) => {
            expected.truncate = Some(bytes);
            Fate::Forward(expected)
        }
        Action::Drop => Fate::Refuse {
            turn: Turn::Close,
            drain: false,
        },
        Action::Reset => Fate::Refuse {
            turn: Turn::Reset,
            drain: false,
        },
        Action::Engine | Action::Corrupt(_) => Fate::Forward(expected),
    }
}

/// What a failed [`send_watching`] means.
fn gave_up(error: io::Error) -> RequestEnd {
    if error.kind() == io::ErrorKind::ConnectionAborted {
        RequestEnd::ClientGone
    } else {
        RequestEnd::UpstreamGone
    }
}
