//! The reply side: takes the turns that the request side queued, in order, and finds where each of the upstream's replies ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Buf;
use faultbox_contract::ArmedRule;
use faultbox_engine::{Added, End, Inbox, Origin, Throttle, forward, send};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::codec::{Body, HeadSearch, Malformed, ReplyInfo, RequestKind};
use crate::link::{Expected, Link, Turn};
use crate::requests::look;
use crate::rules::{Action, HttpRule};

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// How the reply side ended.
#[derive(Debug)]
pub enum ReplyEnd {
    /// The upstream closed, and its FIN was passed on; or it closed while a request is held for a new connection.
    Closed,
    /// The connection is to be closed in good order after what has been sent.
    Linger,
    /// Either side is gone, or a rule says so.
    Reset,
}

/// What is known of the turn at the front, without holding on to it.
enum Front {
    Nothing,
    Reply(RequestKind),
    Other,
}

/// The reply side's state.
pub struct Replies<'a> {
    origin: &'a Origin,
    link: &'a Link,
    inbox: Inbox,
    search: HeadSearch,
    /// The first bytes of the inbox, on their way to the client.
    ready: usize,
    read: Instant,
    /// The measurements of the replies whose heads are among the ready bytes.
    unsent: Vec<(Added, Instant)>,
    throttle: Option<Throttle>,
    stream: Stream,
}

/// What rules still do to what the upstream says once the connection has left HTTP: all of that is the reply's payload.
#[derive(Debug, Default)]
struct Stream {
    limit: Option<u64>,
    corrupt: Vec<u64>,
    passed: u64,
}

/// Ends the reply side.
type Ended<T> = Result<T, ReplyEnd>;

impl<'a> Replies<'a> {
    /// Before the first reply.
    pub fn new(origin: &'a Origin, link: &'a Link) -> Replies<'a> {
        Replies {
            origin,
            link,
            inbox: Inbox::default(),
            search: HeadSearch::default(),
            ready: 0,
            read: Instant::now(),
            unsent: vec![],
            throttle: None,
            stream: Stream::default(),
        }
    }

    /// Runs until the upstream, the client or a rule ends it.
    pub async fn run(&mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> ReplyEnd {
        let raw = match self.until_raw(&mut from, &mut to).await {
            Ok(()) => self.shaped(&mut from, &mut to).await,
            end => end,
        };
        let end = match raw {
            Err(end) => end,
            Ok(()) => match forward(from, to, &mut self.inbox, false, None).await {
                End::Closed => ReplyEnd::Closed,
                End::SourceGone | End::SinkGone => ReplyEnd::Reset,
            },
        };
        if !matches!(end, ReplyEnd::Closed) || !self.link.is_held() {
            self.link.replies_over(&self.origin.host.meter);
        }
        end
    }

    /// Handles turns until the traffic is no longer looked at.
    async fn until_raw(&mut self, from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>) -> Ended<()> {
        loop {
            let front = self.link.front(|turn| match turn {
                None => Front::Nothing,
                Some(Turn::Reply(expected)) => Front::Reply(expected.kind),
                Some(_) => Front::Other,
            });
            let kind = match front {
                Front::Other => {
                    self.flush(to).await?;
                    self.own_turn(to).await?;
                    continue;
                }
                Front::Reply(kind) => kind,
                Front::Nothing => {
                    if self.link.is_raw() {
                        self.flush(to).await?;
                        return Ok(());
                    }
                    // The server speaks unasked, as with 408 before it closes an idle connection. A request that is held here
                    // has not reached it, so this is not the answer.
                    if self.inbox.bytes.len() > self.ready && self.link.upstream_closed_while_held()
                    {
                        self.flush(to).await?;
                        return Err(ReplyEnd::Closed);
                    }
                    RequestKind::Other
                }
            };
            let bytes = &self.inbox.bytes[self.ready..];
            match self.search.reply(bytes, kind, look(self.origin)) {
                Ok(Some(info)) => self.reply(info, from, to).await?,
                Ok(None) => {
                    self.flush(to).await?;
                    let filled = match front {
                        Front::Nothing => tokio::select! {
                            biased;
                            filled = self.inbox.fill(from) => filled,
                            () = self.link.changed() => continue,
                        },
                        _ => self.inbox.fill(from).await,
                    };
                    self.filled(filled, to).await?;
                }
                Err(malformed) => return self.degrade(malformed, to).await,
            }
        }
    }

    /// Passes on what comes after HTTP while a rule has to do with it.
    async fn shaped(&mut self, from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>) -> Ended<()> {
        loop {
            if self.stream.limit.is_some_and(|l| l <= self.stream.passed) {
                return Err(ReplyEnd::Linger);
            }
            let throttled = self.throttle.as_mut().is_some_and(|t| !t.is_over());
            if !throttled && self.stream.limit.is_none() && self.stream.corrupt.is_empty() {
                return Ok(());
            }
            if self.inbox.bytes.is_empty() {
                let filled = self.inbox.fill(from).await;
                self.filled(filled, to).await?;
            }
            let Stream {
                limit,
                corrupt,
                passed,
            } = &mut self.stream;
            let left = limit.map_or(u64::MAX, |l| l - *passed);
            let len = self.inbox.bytes.len();
            let n = usize::try_from(left).map_or(len, |left| left.min(len));
            let end = *passed + n as u64;
            for offset in corrupt.extract_if(.., |offset| *offset < end) {
                self.inbox.bytes[(offset - *passed) as usize] ^= 0xff;
            }
            *passed = end;
            self.ready = n;
            self.flush(to).await?;
        }
    }

    /// A turn that needs nothing of the upstream.
    async fn own_turn(&mut self, to: &WriteHalf<'_>) -> Ended<()> {
        match self.link.pop() {
            Some(Turn::Continue) => send(to.as_ref(), CONTINUE).await.map_err(client_gone),
            Some(Turn::Answer {
                answer,
                head,
                close,
                http10,
                modifiers,
            }) => {
                let (bytes, body) = answer.parts(head, close, http10);
                say(bytes, body, &modifiers, to).await?;
                if close { Err(ReplyEnd::Linger) } else { Ok(()) }
            }
            Some(Turn::Close) => Err(ReplyEnd::Linger),
            Some(Turn::Reset) => Err(ReplyEnd::Reset),
            Some(Turn::Reply(_)) | None => Ok(()),
        }
    }

    /// The head of a reply is in the inbox.
    async fn reply(
        &mut self,
        info: ReplyInfo,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
    ) -> Ended<()> {
        if info.is_interim() {
            let swallow = info.status == 100
                && self.link.front(|turn| match turn {
                    Some(Turn::Reply(expected)) => std::mem::take(&mut expected.continued),
                    _ => false,
                });
            if swallow {
                self.flush(to).await?;
                self.inbox.bytes.advance(info.len);
            } else {
                self.ready += info.len;
            }
            return Ok(());
        }
        // Nothing was asked: a server may still say 408 before it closes.
        let Some(Turn::Reply(mut expected)) = self.link.pop() else {
            self.ready += info.len;
            return self
                .pass_body(Body::new(info.framing), None, vec![], from, to)
                .await;
        };
        let leaves = info.leaves_http(expected.kind);
        if let Some(answer) = expected.replace.take() {
            self.flush(to).await?;
            let body = Body::new(info.framing);
            let close = leaves || body.is_until_close() || !expected.keep_alive;
            let head = expected.kind == RequestKind::Head;
            let (bytes, at) = answer.parts(head, close, expected.http10);
            if let Some(mut added) = expected.added() {
                added.way(self.read, Duration::ZERO);
                added.record(&self.origin.host.meter);
            }
            say(bytes, at, &expected.modifiers, to).await?;
            if expected.upgrade {
                self.link.decide(false);
            }
            if close {
                return Err(ReplyEnd::Linger);
            }
            self.inbox.bytes.advance(info.len);
            return self.discard_body(body, from, to).await;
        }
        self.shape(&mut expected, to).await?;
        if let Some(added) = expected.added() {
            self.unsent.push((added, self.read));
        }
        self.ready += info.len;
        let corrupt = corrupted(&expected.modifiers);
        if leaves {
            self.flush(to).await?;
            self.stream = Stream {
                limit: expected.truncate,
                corrupt,
                passed: 0,
            };
            self.link.go_raw();
            self.link.decide(true);
            return Ok(());
        }
        if expected.upgrade {
            self.link.decide(false);
        }
        let body = Body::new(info.framing);
        self.pass_body(body, expected.truncate, corrupt, from, to)
            .await?;
        if self.throttle.is_some() {
            self.flush(to).await?;
            self.throttle = None;
        }
        Ok(())
    }

    /// Sets up what changes how this reply flows.
    async fn shape(&mut self, expected: &mut Expected, to: &WriteHalf<'_>) -> Ended<()> {
        if let Some(throttle) = Throttle::of(&expected.modifiers) {
            // Earlier replies are not to trickle.
            self.flush(to).await?;
            self.throttle = Some(throttle);
        }
        Ok(())
    }

    /// Sends the body on as it comes, but no more than `limit` bytes of it, and with the bytes at `corrupt` inverted.
    async fn pass_body(
        &mut self,
        mut body: Body,
        limit: Option<u64>,
        mut corrupt: Vec<u64>,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
    ) -> Ended<()> {
        // How much of the payload has gone by.
        let mut passed = 0u64;
        loop {
            let mut flips = vec![];
            // Where in the input the limit falls.
            let mut cut = None;
            let advanced = body.advance(&self.inbox.bytes[self.ready..], |range| {
                let end = passed + range.len() as u64;
                corrupt.retain(|&offset| {
                    let here = (passed..end).contains(&offset);
                    if here {
                        flips.push(range.start + (offset - passed) as usize);
                    }
                    !here
                });
                if let Some(limit) = limit.filter(|l| *l < end && cut.is_none()) {
                    cut = Some(range.start + (limit - passed) as usize);
                }
                passed = end;
            });
            let n = match advanced {
                Ok(n) => n,
                Err(malformed) => {
                    self.link.degrade(self.origin, "upstream", malformed.0);
                    return Ok(());
                }
            };
            for flip in flips {
                self.inbox.bytes[self.ready + flip] ^= 0xff;
            }
            self.ready += cut.unwrap_or(n);
            let over = cut.is_some() || body.is_done();
            if over && limit.is_some() {
                self.flush(to).await?;
                return Err(ReplyEnd::Linger);
            }
            if over {
                return Ok(());
            }
            self.flush(to).await?;
            let filled = self.inbox.fill(from).await;
            self.filled(filled, to).await?;
        }
    }

    /// Reads and discards the body of a reply that has been replaced.
    async fn discard_body(
        &mut self,
        mut body: Body,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
    ) -> Ended<()> {
        loop {
            match body.advance(&self.inbox.bytes, |_| {}) {
                Ok(n) => self.inbox.bytes.advance(n),
                // Where the next reply begins is unknown, and this one is not to be shown.
                Err(_) => return Err(ReplyEnd::Linger),
            }
            if body.is_done() {
                return Ok(());
            }
            match self.inbox.fill(from).await {
                Ok(0) => {
                    self.inbox.bytes.clear();
                    self.filled(Ok(0), to).await?;
                }
                filled => self.filled(filled, to).await?,
            }
        }
    }

    /// Takes the outcome of a read.
    async fn filled(
        &mut self,
        filled: std::io::Result<usize>,
        to: &mut WriteHalf<'_>,
    ) -> Ended<()> {
        match filled {
            Ok(0) if self.link.upstream_closed_while_held() => Err(ReplyEnd::Closed),
            Ok(0) => {
                self.ready = self.inbox.bytes.len();
                self.flush(to).await?;
                to.shutdown().await.map_err(client_gone)?;
                Err(ReplyEnd::Closed)
            }
            Ok(_) => {
                self.read = Instant::now();
                Ok(())
            }
            Err(_) => {
                // What it said before it died still arrives.
                self.ready = self.inbox.bytes.len();
                self.flush(to).await?;
                Err(ReplyEnd::Reset)
            }
        }
    }

    /// Sends what is ready.
    async fn flush(&mut self, to: &WriteHalf<'_>) -> Ended<()> {
        if self.ready > 0 {
            let bytes = &self.inbox.bytes[..self.ready];
            let sent = match &mut self.throttle {
                Some(throttle) => throttle.send(to.as_ref(), bytes).await,
                None => send(to.as_ref(), bytes).await,
            };
            self.inbox.bytes.advance(self.ready);
            self.ready = 0;
            for (mut added, read) in self.unsent.drain(..) {
                // What a throttle costs is injected, not added.
                if self.throttle.is_none() {
                    added.way(read, Duration::ZERO);
                }
                added.record(&self.origin.host.meter);
            }
            sent.map_err(client_gone)?;
        }
        Ok(())
    }

    /// Stops looking: from here on the bytes go as they are.
    async fn degrade(&mut self, malformed: Malformed, to: &WriteHalf<'_>) -> Ended<()> {
        self.link.degrade(self.origin, "upstream", malformed.0);
        self.flush(to).await
    }
}

/// Where in the payload rules want a byte inverted.
fn corrupted(modifiers: &[Arc<ArmedRule>]) -> Vec<u64> {
    let offset = |armed: &Arc<ArmedRule>| match HttpRule::of(armed)?.action {
        Action::Corrupt(offset) => Some(offset),
        _ => None,
    };
    modifiers.iter().filter_map(offset).collect()
}

/// Sends a rule's answer, whose payload begins at `body`, as other rules have it.
async fn say(
    mut bytes: Vec<u8>,
    body: usize,
    modifiers: &[Arc<ArmedRule>],
    to: &WriteHalf<'_>,
) -> Ended<()> {
    for offset in corrupted(modifiers) {
        let at = usize::try_from(offset)
            .ok()
            .and_then(|o| body.checked_add(o));
        if let Some(byte) = at.and_then(|at| bytes.get_mut(at)) {
            *byte ^= 0xff;
        }
    }
    let sent = match Throttle::of(modifiers) {
        Some(mut throttle) => throttle.send(to.as_ref(), &bytes).await,
        None => send(to.as_ref(), &bytes).await,
    };
    sent.map_err(client_gone)
}

/// A failed write to the client: it is gone.
fn client_gone(_: std::io::Error) -> ReplyEnd {
    ReplyEnd::Reset
}
