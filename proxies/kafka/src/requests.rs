//! The request side: finds each request, asks the rules about it, and sends it on or keeps it from the broker.

use std::io;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use faultbox_contract::clock;
use faultbox_engine::{Added, End, Inbox, Origin, forward, gone, send_watching, serve_delays};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::codec::schema::{self, METADATA, PRODUCE, SASL_HANDSHAKE};
use crate::codec::{self, Malformed, Reply, Request, RequestHead};
use crate::course::{self, Course, Go};
use crate::judge;
use crate::link::{Expected, Link, Purpose, Turn};
use crate::proxy::{MOST_HELD, Shared};
use crate::subjects;

/// How long the broker is given to say what its topics are called; the request waits meanwhile.
const NAMES_WAIT: Duration = Duration::from_secs(10);
/// The version in which they are asked for: the first in which brokers that want ids tell them.
const NAMES_VERSION: i16 = 12;
/// FETCH_SESSION_ID_NOT_FOUND: the client begins a new session, with all its partitions.
const NO_SESSION: i64 = 70;

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
}

/// Ends the request side.
type Ended<T> = Result<T, RequestEnd>;

/// The request side's state.
pub struct Requests<'a> {
    origin: &'a Origin,
    link: &'a Link,
    shared: &'a Shared,
    inbox: Inbox,
    /// The first bytes of the inbox, on their way to the broker.
    ready: usize,
    /// Of an incomplete head, the bytes that the broker has already: with no rule armed nothing is held back. `ready` is 0 then.
    early: usize,
    read: Instant,
}

impl<'a> Requests<'a> {
    /// Before the first request.
    pub fn new(origin: &'a Origin, link: &'a Link, shared: &'a Shared) -> Requests<'a> {
        Requests {
            origin,
            link,
            shared,
            inbox: Inbox::default(),
            ready: 0,
            early: 0,
            read: Instant::now(),
        }
    }

    /// Runs until the client, the broker or a rule ends it.
    pub async fn run(&mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> RequestEnd {
        match self.until_raw(&mut from, &mut to).await {
            Err(end) => end,
            Ok(()) => match forward(from, to, &mut self.inbox, true, None).await {
                End::Closed => RequestEnd::Closed,
                End::SourceGone => RequestEnd::ClientGone,
                End::SinkGone => RequestEnd::UpstreamGone,
            },
        }
    }

    /// Handles requests until the traffic is no longer looked at.
    async fn until_raw(&mut self, from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>) -> Ended<()> {
        loop {
            if self.link.is_raw() {
                self.flush(from, to).await?;
                self.inbox.bytes.advance(std::mem::take(&mut self.early));
                return Ok(());
            }
            let head = match codec::request_head(&self.inbox.bytes[self.ready..]) {
                Ok(Some(head)) => head,
                Ok(None) => {
                    self.flush(from, to).await?;
                    self.send_early(from, to).await?;
                    let filled = tokio::select! {
                        filled = self.inbox.fill(from) => filled,
                        // The reply side may have stopped looking.
                        () = self.link.woken() => continue,
                    };
                    self.filled(filled, from, to).await?;
                    continue;
                }
                Err(malformed) => {
                    self.link.degrade(self.origin, "client", malformed.0);
                    continue;
                }
            };
            if !self.link.has_room() {
                self.flush(from, to).await?;
                tokio::select! {
                    () = self.link.woken() => {}
                    () = gone(from.as_ref()) => return Err(RequestEnd::ClientGone),
                }
                continue;
            }
            self.request(head, from, to).await?;
        }
    }

    /// The head of a request is in the inbox.
    async fn request(
        &mut self,
        head: RequestHead,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
    ) -> Ended<()> {
        let name = self.ready + head.client_id.0..self.ready + head.client_id.1;
        self.link.note_client(&self.inbox.bytes[name]);
        // A rule that was armed in the middle of a head comes too late for it.
        if self.early == 0 && self.is_wanted(&head) {
            self.flush(from, to).await?;
            if head.len <= MOST_HELD {
                let message = self.whole(head.len, from, to).await?;
                return self.judge(head, message, from, to).await;
            }
            self.shared.note_large(self.origin, head.len);
        }
        if head.answered {
            self.link.push(Turn::Reply(self.expected(&head)));
        }
        if head.api == SASL_HANDSHAKE && head.version == 0 {
            // What follows are a mechanism's own tokens, framed but without a head, until the broker is content.
            let why = "authentication by SaslHandshake version 0 leaves the protocol";
            self.pass(head.len, from, to).await?;
            self.link.degrade(self.origin, "client", why);
            return Ok(());
        }
        self.pass(head.len, from, to).await
    }

    fn expected(&self, head: &RequestHead) -> Expected {
        Expected {
            correlation: head.correlation,
            api: head.api,
            version: head.version,
            plan: None,
            read: self.read,
            injected: Duration::ZERO,
            sent: None,
        }
    }

    /// Is the request to be looked at?
    fn is_wanted(&self, head: &RequestHead) -> bool {
        let name = &self.inbox.bytes[self.ready + head.client_id.0..self.ready + head.client_id.1];
        judge::concerned(self.origin, head.api, name)
            || (head.api == PRODUCE && self.shared.losses.any())
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
                self.ready = 0;
                self.send(&rest, from, to).await?;
                match to.shutdown().await {
                    Ok(()) => Err(RequestEnd::Closed),
                    Err(_) => Err(RequestEnd::UpstreamGone),
                }
            }
            Ok(_) => {
                self.read = Instant::now();
                Ok(())
            }
            Err(_) => Err(RequestEnd::ClientGone),
        }
    }

    async fn send(&self, bytes: &[u8], from: &ReadHalf<'_>, to: &WriteHalf<'_>) -> Ended<()> {
        let sent = send_watching(to.as_ref(), bytes, from.as_ref()).await;
        sent.map_err(|e| match e.kind() {
            io::ErrorKind::ConnectionAborted => RequestEnd::ClientGone,
            _ => RequestEnd::UpstreamGone,
        })?;
        self.link.sent();
        Ok(())
    }

    /// Sends what is ready.
    async fn flush(&mut self, from: &ReadHalf<'_>, to: &WriteHalf<'_>) -> Ended<()> {
        if self.ready > 0 {
            let ready = std::mem::take(&mut self.ready);
            self.send(&self.inbox.bytes[..ready], from, to).await?;
            self.inbox.bytes.advance(ready);
        }
        Ok(())
    }

    /// Sends on what there is of an incomplete head, if no rule could want it back. Once some of a head is out, the rest follows.
    async fn send_early(&mut self, from: &ReadHalf<'_>, to: &WriteHalf<'_>) -> Ended<()> {
        let may =
            self.early > 0 || (self.origin.host.rules.is_empty() && !self.shared.losses.any());
        if may && self.inbox.bytes.len() > self.early {
            self.send(&self.inbox.bytes[self.early..], from, to).await?;
            self.early = self.inbox.bytes.len();
        }
        Ok(())
    }

    /// Sends on so many bytes, as they come.
    async fn pass(
        &mut self,
        len: usize,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
    ) -> Ended<()> {
        let early = std::mem::take(&mut self.early);
        self.inbox.bytes.advance(early);
        let mut left = len - early;
        loop {
            let here = left.min(self.inbox.bytes.len() - self.ready);
            self.ready += here;
            left -= here;
            if left == 0 {
                return Ok(());
            }
            self.flush(from, to).await?;
            let filled = self.inbox.fill(from).await;
            self.filled(filled, from, to).await?;
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
            self.filled(filled, from, to).await?;
        }
        Ok(self.inbox.bytes.split_to(len).freeze())
    }

    /// Asks the rules about a whole request, and does as they say.
    async fn judge(
        &mut self,
        head: RequestHead,
        message: Bytes,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
    ) -> Ended<()> {
        let request = match Request::decode(message.clone()) {
            Ok(Some(request)) => request,
            Ok(None) => {
                self.shared
                    .note_unknown(self.origin, head.api, head.version);
                return self.as_it_is(&head, &message, from, to).await;
            }
            Err(malformed) => {
                self.link.degrade(self.origin, "client", malformed.0);
                return self.as_it_is(&head, &message, from, to).await;
            }
        };
        self.learn_names(&request, from, to).await?;
        if course::ends_session(&request, self.origin) {
            let mut reply = Reply::new(request.api, request.version, request.correlation);
            reply.body.set("error_code", NO_SESSION);
            self.link.push(Turn::Answer(reply.encode()));
            return Ok(());
        }
        let fired = judge::request(&request, self.origin, &self.shared.names);
        let injected = tokio::select! {
            injected = serve_delays(&fired.delays, self.read) => injected,
            () = gone(from.as_ref()) => return Err(RequestEnd::ClientGone),
        };
        let number = || self.link.own_correlation();
        let course = course::decide(&request, fired, self.origin, self.shared, number);
        let mut expected = self.expected(&head);
        expected.injected = injected;
        match course {
            Ok(Course::Go(go)) => self.go(*go, expected, &request, &message, from, to).await,
            Ok(Course::Refuse(turn)) => {
                self.answered_here(&expected);
                self.link.push(turn);
                Err(RequestEnd::Refused)
            }
            Err(malformed) => {
                self.shared.note_unreadable(self.origin, malformed);
                self.as_it_is(&head, &message, from, to).await
            }
        }
    }

    /// Counts a request that the broker does not get.
    fn answered_here(&self, expected: &Expected) {
        let mut added = Added::default();
        added.way(expected.read, expected.injected);
        added.record(&self.origin.host.meter);
    }

    /// Sends a request on unchanged.
    async fn as_it_is(
        &mut self,
        head: &RequestHead,
        message: &[u8],
        from: &ReadHalf<'_>,
        to: &WriteHalf<'_>,
    ) -> Ended<()> {
        if head.answered {
            self.link.push(Turn::Reply(self.expected(head)));
        }
        self.send(message, from, to).await
    }

    /// Sends on what the rules have left of a request, and queues what its client gets.
    async fn go(
        &mut self,
        go: Go,
        mut expected: Expected,
        request: &Request,
        message: &[u8],
        from: &ReadHalf<'_>,
        to: &WriteHalf<'_>,
    ) -> Ended<()> {
        let answered = !judge::is_unanswered(request);
        let Go {
            rest, again, plan, ..
        } = go;
        if let Some(loss) = plan.lost.as_ref().filter(|_| answered) {
            let correlation = self.link.own_correlation();
            if let Some(question) = loss.question(correlation) {
                let purpose = Purpose::Ends(loss.clone());
                self.link.push(Turn::Own {
                    correlation,
                    purpose,
                });
                self.send(&question.encode(), from, to).await?;
            }
        }
        if let Some(rest) = rest {
            if answered {
                expected.plan = (!plan.is_empty()).then(|| Box::new(plan));
                self.link.push(Turn::Reply(expected));
            }
            match go.changed {
                true => self.send(&rest.encode(), from, to).await?,
                false => self.send(message, from, to).await?,
            }
        } else {
            self.answered_here(&expected);
            if let Some(loss) = plan.lost.filter(|_| answered) {
                self.link.push(Turn::Lost(loss));
            } else if let Some(body) = course::joined(plan.merge).filter(|_| answered) {
                let mut reply = Reply::new(request.api, request.version, request.correlation);
                reply.body = body;
                self.link.push(Turn::Answer(reply.encode()));
            }
        }
        for copy in again {
            if answered {
                self.link.push(Turn::Own {
                    correlation: copy.correlation,
                    purpose: Purpose::Again,
                });
            }
            self.send(&copy.encode(), from, to).await?;
        }
        if go.closes {
            self.link.push(Turn::Close);
            return Err(RequestEnd::Refused);
        }
        Ok(())
    }

    /// Asks the broker what its topics are called, if a rule must know that to judge this request.
    async fn learn_names(
        &mut self,
        request: &Request,
        from: &ReadHalf<'_>,
        to: &WriteHalf<'_>,
    ) -> Ended<()> {
        let names = &self.shared.names;
        if !judge::asks_topics(self.origin, request.api.key)
            || !subjects::unnamed(&request.body, names)
        {
            return Ok(());
        }
        let Some(api) = schema::api(METADATA) else {
            return Ok(());
        };
        let told = self.link.told_names();
        let correlation = self.link.own_correlation();
        self.link.push(Turn::Own {
            correlation,
            purpose: Purpose::Names(NAMES_VERSION),
        });
        let question = course::question_of_names(api, NAMES_VERSION, correlation);
        self.send(&question.encode(), from, to).await?;
        let heard = clock::timeout(NAMES_WAIT, async {
            while self.link.told_names() == told && !self.link.is_over() {
                tokio::select! {
                    () = self.link.woken() => {}
                    () = gone(from.as_ref()) => return Err(RequestEnd::ClientGone),
                }
            }
            Ok(())
        });
        match heard.await {
            Some(Ok(())) => Ok(()),
            Some(Err(end)) => Err(end),
            None => {
                let late = Malformed("the broker does not tell what its topics are called");
                self.shared.note_unreadable(self.origin, late);
                Ok(())
            }
        }
    }
}
