//! The reply side: takes the turns that the request side queued, in order, and finds where each of the broker's responses ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use faultbox_contract::ArmedRule;
use faultbox_engine::{Added, End, Inbox, Origin, Throttle, forward, gone, send, serve_delays};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::advertised;
use crate::answer;
use crate::codec::schema::{self, FETCH};
use crate::codec::{self, Reply, SIZE};
use crate::judge;
use crate::link::{Expected, Front, Link, Plan, Purpose, Turn};
use crate::proxy::{MOST_HELD, Shared};
use crate::rules::{Action, KafkaRule};

/// How the reply side ended.
#[derive(Debug)]
pub enum ReplyEnd {
    /// The broker closed, and its FIN was passed on.
    Closed,
    /// The connection is to be closed in good order after what has been sent.
    Linger,
    /// Either side is gone, or a rule says so.
    Reset,
}

/// Ends the reply side.
type Ended<T> = Result<T, ReplyEnd>;

/// The reply side's state.
pub struct Replies<'a> {
    origin: &'a Origin,
    link: &'a Link,
    shared: &'a Shared,
    inbox: Inbox,
    /// The first bytes of the inbox, on their way to the client.
    ready: usize,
    read: Instant,
    /// The measurements of the responses whose heads are among the ready bytes.
    unsent: Vec<(Added, Instant)>,
}

/// How a response is to go out.
#[derive(Default)]
struct Way {
    throttle: Option<Throttle>,
    truncate: Option<u64>,
    reset: bool,
    close: bool,
    injected: Duration,
}

impl<'a> Replies<'a> {
    /// Before the first response.
    pub fn new(origin: &'a Origin, link: &'a Link, shared: &'a Shared) -> Replies<'a> {
        Replies {
            origin,
            link,
            shared,
            inbox: Inbox::default(),
            ready: 0,
            read: Instant::now(),
            unsent: vec![],
        }
    }

    /// Runs until the broker, the client or a rule ends it.
    pub async fn run(&mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> ReplyEnd {
        let end = match self.until_raw(&mut from, &mut to).await {
            Err(end) => end,
            Ok(()) => match forward(from, to, &mut self.inbox, false, None).await {
                End::Closed => ReplyEnd::Closed,
                End::SourceGone | End::SinkGone => ReplyEnd::Reset,
            },
        };
        self.link.replies_over(&self.origin.host.meter);
        end
    }

    /// Handles turns until the traffic is no longer looked at.
    async fn until_raw(&mut self, from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>) -> Ended<()> {
        loop {
            let front = self.link.front();
            match front {
                Front::Ours => {
                    self.flush(to).await?;
                    self.own_turn(to).await?;
                    continue;
                }
                Front::Nothing if self.link.is_raw() => return self.flush(to).await,
                _ => {}
            }
            match codec::reply_head(&self.inbox.bytes[self.ready..]) {
                Ok(Some((len, correlation))) => match self.link.pop_reply(correlation) {
                    Some(Turn::Reply(expected)) => self.reply(len, expected, from, to).await?,
                    Some(Turn::Own { purpose, .. }) => self.told(len, purpose, from, to).await?,
                    // There are brokers that answer what wants no answer.
                    _ if self.link.has_asked(correlation) => {
                        self.told(len, Purpose::Again, from, to).await?;
                    }
                    _ => self.pass(len, from, to).await?,
                },
                Ok(None) => {
                    self.flush(to).await?;
                    let filled = match front {
                        Front::Nothing => tokio::select! {
                            filled = self.inbox.fill(from) => filled,
                            () = self.link.changed() => continue,
                        },
                        _ => self.inbox.fill(from).await,
                    };
                    self.filled(filled, to).await?;
                }
                Err(malformed) => {
                    self.link.degrade(self.origin, "upstream", malformed.0);
                    return self.flush(to).await;
                }
            }
        }
    }

    /// A turn that needs nothing of the broker.
    async fn own_turn(&mut self, to: &WriteHalf<'_>) -> Ended<()> {
        let bytes = match self.link.pop() {
            Some(Turn::Answer(bytes)) => bytes,
            Some(Turn::Lost(loss)) => loss.tell(&self.shared.losses).encode(),
            Some(Turn::Close) => return Err(ReplyEnd::Linger),
            Some(Turn::Reset) => return Err(ReplyEnd::Reset),
            Some(Turn::Reply(_) | Turn::Own { .. }) | None => return Ok(()),
        };
        send(to.as_ref(), &bytes).await.map_err(client_gone)
    }

    /// The broker has told something that the client has not asked.
    async fn told(
        &mut self,
        len: usize,
        purpose: Purpose,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
    ) -> Ended<()> {
        self.flush(to).await?;
        let message = self.whole(len, from, to).await?;
        let learned = match purpose {
            Purpose::Again => Ok(()),
            Purpose::Ends(loss) => loss.learn(message),
            Purpose::Names(version) => {
                let metadata = match schema::api(schema::METADATA) {
                    Some(api) => Reply::decode(api, version, message),
                    None => Err(codec::Malformed("no such message")),
                };
                let learned = metadata.map(|reply| self.shared.names.learn(&reply.body));
                self.link.tell_names();
                learned
            }
        };
        if let Err(malformed) = learned {
            self.shared.note_unreadable(self.origin, malformed);
        }
        Ok(())
    }

    /// The head of a response to the client is in the inbox.
    async fn reply(
        &mut self,
        len: usize,
        mut expected: Expected,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
    ) -> Ended<()> {
        let plan = expected.plan.take();
        let addresses = &self.origin.host.addresses;
        let rewrites = !addresses.is_empty() && advertised::tells(expected.api, expected.version);
        let judges =
            expected.api == FETCH && judge::judges_fetched(self.origin, &self.link.client_id());
        let looks = plan.is_some() || rewrites || judges;
        if looks && len > MOST_HELD {
            self.shared.note_large(self.origin, len);
        }
        if !looks || len > MOST_HELD {
            if let Some(added) = expected.added() {
                self.unsent.push((added, self.read));
            }
            return self.pass(len, from, to).await;
        }
        self.flush(to).await?;
        let message = self.whole(len, from, to).await?;
        let plan = plan.map(|plan| *plan).unwrap_or_default();
        let mut way = Way {
            throttle: Throttle::of(&plan.modifiers),
            truncate: plan.truncate,
            ..Way::default()
        };
        let corrupt = plan.corrupt.clone();
        let mut message = self
            .edited(message, &expected, plan, judges, &mut way, to)
            .await?;
        if !corrupt.is_empty() {
            message = flipped(&message, &expected, &corrupt);
        }
        self.deliver(&message, expected, way, to).await
    }

    /// The response as rules and advertised addresses make it.
    async fn edited(
        &mut self,
        message: Bytes,
        expected: &Expected,
        plan: Plan,
        judges: bool,
        way: &mut Way,
        to: &WriteHalf<'_>,
    ) -> Ended<Bytes> {
        let addresses = &self.origin.host.addresses;
        let rewrites = !addresses.is_empty() && advertised::tells(expected.api, expected.version);
        if !plan.edits() && !rewrites && !judges {
            return Ok(message);
        }
        let known = schema::api(expected.api).filter(|api| api.knows(expected.version));
        let Some(api) = known else {
            self.shared
                .note_unknown(self.origin, expected.api, expected.version);
            return Ok(message);
        };
        let mut reply = match Reply::decode(api, expected.version, message.clone()) {
            Ok(reply) => reply,
            Err(malformed) => {
                self.shared.note_unreadable(self.origin, malformed);
                return Ok(message);
            }
        };
        let mut changed = rewrites && advertised::rewrite(&mut reply.body, addresses);
        if plan.only_merged
            && let Some(topics) = reply.body.list_mut("topics")
        {
            topics.clear();
        }
        changed |= plan.edits();
        if let Some(loss) = &plan.lost {
            let told = loss.tell(&self.shared.losses);
            answer::merge(&mut reply.body, told.body);
        }
        for part in plan.merge {
            answer::merge(&mut reply.body, part);
        }
        if judges || plan.judge {
            changed |= self.judge(&mut reply, way, to).await?;
        }
        Ok(match changed {
            true => reply.encode(),
            false => message,
        })
    }

    /// Asks the rules that wait for responses, and does as they say. Is the response changed?
    async fn judge(&self, reply: &mut Reply, way: &mut Way, to: &WriteHalf<'_>) -> Ended<bool> {
        if reply.api.key == FETCH && judge::brings_old(reply) {
            let old = "records of a format before Kafka 0.11 cannot be taken out of a response";
            self.shared
                .note_unreadable(self.origin, codec::Malformed(old));
            return Ok(false);
        }
        let names = &self.shared.names;
        let client_id = self.link.client_id();
        let fired = judge::reply(reply, &client_id, self.origin, names);
        way.injected = tokio::select! {
            injected = serve_delays(&fired.delays, self.read) => injected,
            () = gone(to.as_ref()) => return Err(ReplyEnd::Reset),
        };
        if let Some(more) = Throttle::of(&fired.modifiers) {
            way.throttle.get_or_insert_default().add(more);
        }
        let mut changed = false;
        let rules = fired.modifiers.iter().chain(&fired.terminal);
        for rule in rules.filter_map(|armed: &Arc<ArmedRule>| KafkaRule::of(armed)) {
            match rule.action {
                Action::Reset => way.reset = true,
                Action::Truncate(bytes) => way.truncate = Some(bytes),
                Action::Error(..) | Action::Drop | Action::Corrupt(_) => {
                    judge::act(reply, rule, names);
                    changed = true;
                }
                Action::Engine | Action::Duplicate => {}
            }
        }
        Ok(changed)
    }

    /// Sends a whole response.
    async fn deliver(
        &mut self,
        message: &[u8],
        expected: Expected,
        mut way: Way,
        to: &WriteHalf<'_>,
    ) -> Ended<()> {
        if way.reset {
            return Err(ReplyEnd::Reset);
        }
        let mut bytes = message;
        if let Some(limit) = way.truncate {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            bytes = &message[..limit.min(message.len())];
            way.close = true;
        }
        let added = expected.added();
        let sent = match &mut way.throttle {
            Some(throttle) => throttle.send(to.as_ref(), bytes).await,
            None => send(to.as_ref(), bytes).await,
        };
        if let Some(mut added) = added {
            // What a throttle costs is injected, not added.
            if way.throttle.is_none() {
                added.way(self.read, way.injected);
            }
            added.record(&self.origin.host.meter);
        }
        sent.map_err(client_gone)?;
        match way.close {
            true => Err(ReplyEnd::Linger),
            false => Ok(()),
        }
    }

    /// Sends on so many bytes, as they come.
    async fn pass(
        &mut self,
        len: usize,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
    ) -> Ended<()> {
        let mut left = len;
        loop {
            let here = left.min(self.inbox.bytes.len() - self.ready);
            self.ready += here;
            left -= here;
            if left == 0 {
                return Ok(());
            }
            self.flush(to).await?;
            let filled = self.inbox.fill(from).await;
            self.filled(filled, to).await?;
        }
    }

    /// Waits until all of a message is there, and takes it.
    async fn whole(
        &mut self,
        len: usize,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
    ) -> Ended<Bytes> {
        while self.inbox.bytes.len() < len {
            let filled = self.inbox.fill(from).await;
            self.filled(filled, to).await?;
        }
        Ok(self.inbox.bytes.split_to(len).freeze())
    }

    /// Takes the outcome of a read.
    async fn filled(
        &mut self,
        filled: std::io::Result<usize>,
        to: &mut WriteHalf<'_>,
    ) -> Ended<()> {
        match filled {
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
            let ready = std::mem::take(&mut self.ready);
            let sent = send(to.as_ref(), &self.inbox.bytes[..ready]).await;
            self.inbox.bytes.advance(ready);
            for (mut added, read) in self.unsent.drain(..) {
                added.way(read, Duration::ZERO);
                added.record(&self.origin.host.meter);
            }
            sent.map_err(client_gone)?;
        }
        Ok(())
    }
}

/// The response with these bytes of its body inverted.
fn flipped(message: &[u8], expected: &Expected, offsets: &[u64]) -> Bytes {
    let mut bytes = BytesMut::from(message);
    let tags =
        schema::api(expected.api).is_some_and(|api| api.reply_header_is_flexible(expected.version));
    // The size, the number, and the header's tagged fields, of which brokers send none.
    let body = SIZE + 4 + usize::from(tags);
    for offset in offsets {
        let at = usize::try_from(*offset)
            .ok()
            .and_then(|o| o.checked_add(body));
        if let Some(byte) = at.and_then(|at| bytes.get_mut(at)) {
            *byte ^= 0xff;
        }
    }
    bytes.freeze()
}

/// A failed write to the client: it is gone.
fn client_gone(_: std::io::Error) -> ReplyEnd {
    ReplyEnd::Reset
}
