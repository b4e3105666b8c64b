//! The walk along the server's bytes.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use faultbox_contract::Addresses;

use super::{Expected, Instead, Session, Topic, Want};
use crate::codec::{self, First, Malformed, Reader};
use crate::redirect::{LONGEST_LIST, Redirect, redirect, rewrite};
use crate::value::Value;

/// What the front of the server's bytes is.
#[derive(Debug)]
pub enum Reply {
    /// Not enough to tell, or nothing to say.
    More,
    /// This many bytes go to the client.
    Pass(usize),
    /// This many bytes go to the client, under the effects of the entry at the queue's front.
    Affected(usize),
    /// This goes to the client in the place of so many bytes, which may be none; under the same effects.
    Replace(usize, Vec<u8>),
    /// Everything goes to the client unseen.
    Raw,
}

/// What the current message is.
#[derive(Debug, Default)]
enum Current {
    /// Between two messages.
    #[default]
    None,
    /// The reply to what is at the queue's front; its first byte, and whether the client does without it.
    Reply { first: u8, dropped: bool },
    /// EXEC's results, one by one.
    Results(Results),
    /// The confirmation of a subscription; is it what the queue's front asks for?
    Confirmation { topic: Topic, asked: bool },
    /// A push, a message, a line of MONITOR.
    Push,
}

/// The results of a transaction some of which are replaced.
#[derive(Debug)]
struct Results {
    replaced: Vec<(usize, Arc<Value>)>,
    /// The current one, and how many there are.
    at: usize,
    count: usize,
    /// Does the current one begin here?
    begins: bool,
    /// Does the client do without it?
    dropped: bool,
}

/// The walk.
#[derive(Debug)]
pub struct Replies {
    /// Where clients reach the nodes that redirections name, and what an empty host means there.
    addresses: Arc<Addresses>,
    own: IpAddr,
    reader: Reader,
    current: Current,
    /// The entry at the front leaves the queue with the next step: until then its effects still apply.
    completes: bool,
}

/// What a message at the front is, as far as its first bytes tell.
enum Message {
    More,
    Reply,
    Push,
    Confirmation(Topic, bool),
}

impl Default for Replies {
    fn default() -> Replies {
        Replies::new(Arc::default(), Ipv4Addr::LOCALHOST.into())
    }
}

impl Replies {
    /// The beginning of a connection to a server at `own`.
    pub fn new(addresses: Arc<Addresses>, own: IpAddr) -> Replies {
        Replies {
            addresses,
            own,
            reader: Reader::default(),
            current: Current::None,
            completes: false,
        }
    }

    /// Looks at the front of `buf`.
    ///
    /// # Errors
    /// Bytes that are no reply, or a reply to nothing that was asked; the caller goes on raw.
    pub fn next(&mut self, buf: &[u8], session: &mut Session) -> Result<Reply, Malformed> {
        if self.completes {
            self.completes = false;
            session.pop();
        }
        if session.raw_server {
            return Ok(Reply::Raw);
        }
        match &mut self.current {
            Current::None => self.begin(buf, session),
            Current::Results(results) if results.begins => {
                results.begins = false;
                self.reader = Reader::new();
                let at = results.at;
                let ours = results.replaced.iter().find(|(i, _)| *i == at);
                results.dropped = ours.is_some();
                match ours {
                    Some((_, value)) => Ok(Reply::Replace(0, encoded(value, session.version))),
                    None => self.go_on(buf, session),
                }
            }
            _ => self.go_on(buf, session),
        }
    }

    /// More of the current message.
    fn go_on(&mut self, buf: &[u8], session: &mut Session) -> Result<Reply, Malformed> {
        match self.reader.skip(buf)? {
            0 => Ok(Reply::More),
            n => Ok(self.went(n, session)),
        }
    }

    /// Between two messages.
    fn begin(&mut self, buf: &[u8], session: &mut Session) -> Result<Reply, Malformed> {
        if let Some(front) = session.queue.front_mut()
            && front.want == Want::Ours
        {
            self.completes = true;
            let answer = match front.instead.take() {
                Some(Instead::Value(value)) => encoded(&value, session.version),
                _ => vec![],
            };
            return Ok(Reply::Replace(0, answer));
        }
        // The client is not understood any more; with what it had asked before answered, neither is the server.
        if session.raw_client && session.queue.is_empty() {
            session.raw_server = true;
            return Ok(Reply::Raw);
        }
        let Some(first) = buf.first().copied() else {
            return Ok(Reply::More);
        };
        let mut reader = Reader::new();
        let n = reader.skip(buf)?;
        if n == 0 {
            return Ok(Reply::More);
        }
        self.reader = reader;
        self.current = match message(first, buf, session)? {
            Message::More => return Ok(Reply::More),
            Message::Push => Current::Push,
            Message::Confirmation(topic, subscribes) => Current::Confirmation {
                topic,
                asked: matches!(
                    session.queue.front().map(|e| &e.want),
                    Some(Want::Topics(t, s, _)) if *t == topic && *s == subscribes
                ),
            },
            Message::Reply => return self.reply(first, n, buf, session),
        };
        Ok(self.went(n, session))
    }

    /// A reply begins, of which `n` bytes are here.
    fn reply(
        &mut self,
        first: u8,
        n: usize,
        buf: &[u8],
        session: &mut Session,
    ) -> Result<Reply, Malformed> {
        let Some(front) = session.queue.front_mut() else {
            if first != b'-' {
                return Err(Malformed(format!(
                    "a reply that begins with '{}', to nothing that was asked",
                    first.escape_ascii()
                )));
            }
            // What a server says unasked before it closes (too many clients, a protocol error).
            self.current = Current::Push;
            return Ok(self.went(n, session));
        };
        if let (Want::Exec(results), b'*') = (&mut front.want, first)
            && !results.is_empty()
            // Null: a watched key has changed, and nothing has run.
            && let Some((count @ 1.., at)) = codec::length(buf)?
        {
            self.current = Current::Results(Results {
                replaced: std::mem::take(results),
                at: 0,
                count: usize::try_from(count).unwrap_or(usize::MAX),
                begins: true,
                dropped: false,
            });
            return Ok(affected(at, session));
        }
        if first == b'-' && front.instead.is_none() {
            match redirect(buf, &self.addresses, self.own) {
                Redirect::No => {}
                Redirect::More => {
                    self.current = Current::None;
                    return Ok(Reply::More);
                }
                Redirect::To(n, line) => {
                    self.current = Current::None;
                    self.completes = true;
                    answered(first, session);
                    return Ok(Reply::Replace(n, line));
                }
            }
        }
        if let Want::Nodes(listing) = front.want
            && front.instead.is_none()
            && !self.addresses.is_empty()
            && first != b'-'
        {
            // What is too long, or no value, goes on as the server wrote it.
            let list = match Value::decode(buf) {
                Ok(None) if buf.len() < LONGEST_LIST => {
                    self.current = Current::None;
                    return Ok(Reply::More);
                }
                Ok(list) => list,
                Err(_) => None,
            };
            if let Some((mut list, n)) = list
                && rewrite(listing, &mut list, &self.addresses, self.own)
            {
                self.current = Current::None;
                self.completes = true;
                return Ok(Reply::Replace(n, encoded(&list, session.version)));
            }
        }
        let instead = front.instead.take();
        self.current = Current::Reply {
            first,
            dropped: instead.is_some(),
        };
        let reply = self.went(n, session);
        Ok(match instead {
            Some(Instead::Value(value)) => Reply::Replace(n, encoded(&value, session.version)),
            _ => reply,
        })
    }

    /// `n` bytes of the current message have been seen.
    fn went(&mut self, n: usize, session: &mut Session) -> Reply {
        let dropped = match &self.current {
            Current::Reply { dropped, .. } => *dropped,
            Current::Results(results) => results.dropped,
            _ => false,
        };
        let of_front = !matches!(
            self.current,
            Current::Push | Current::Confirmation { asked: false, .. }
        );
        if self.reader.is_over() {
            self.ended(session);
        }
        match (dropped, of_front) {
            (true, _) => Reply::Replace(n, vec![]),
            (false, true) => affected(n, session),
            (false, false) => Reply::Pass(n),
        }
    }

    /// The current message is over.
    fn ended(&mut self, session: &mut Session) {
        match &mut self.current {
            Current::Results(results) => {
                results.at += 1;
                if results.at < results.count {
                    results.begins = true;
                    return;
                }
                self.completes = true;
            }
            Current::Reply { first, dropped } => {
                self.completes = true;
                if !*dropped {
                    answered(*first, session);
                }
            }
            Current::Confirmation { topic, asked } => {
                let there_were = session.count(*topic);
                session.confirmed(*topic, self.reader.integer.unwrap_or_default());
                if let Some(Expected {
                    want: Want::Topics(_, _, left),
                    ..
                }) = session.queue.front_mut().filter(|_| *asked)
                {
                    // As many as there were, if none was named.
                    let now = left.unwrap_or(there_were.max(1) as u64) - 1;
                    *left = Some(now);
                    self.completes = now == 0;
                }
            }
            Current::Push | Current::None => {}
        }
        self.current = Current::None;
    }
}

/// Bytes of the reply to what is at the queue's front.
fn affected(n: usize, session: &Session) -> Reply {
    match session.queue.front().and_then(|e| e.effects.as_ref()) {
        Some(_) => Reply::Affected(n),
        None => Reply::Pass(n),
    }
}

fn encoded(value: &Value, version: u8) -> Vec<u8> {
    let mut out = vec![];
    value.encode(version, &mut out);
    out
}

/// What the reply to what is at the queue's front means for the session.
fn answered(first: u8, session: &mut Session) {
    match (session.queue.front().map(|e| &e.want), first) {
        (Some(Want::Hello), b'%') => session.version = 3,
        (Some(Want::Hello), b'*') => session.version = 2,
        (Some(Want::Reset), b'+') => session.reset(),
        (Some(Want::Monitor), b'+') => session.monitoring = true,
        // It never began, whatever has been queued meanwhile.
        (Some(Want::Multi(id)), b'-') => {
            let id = *id;
            session.transaction.take_if(|t| t.id == id);
        }
        _ => {}
    }
}

/// What the message at the front is.
fn message(first: u8, buf: &[u8], session: &Session) -> Result<Message, Malformed> {
    let asks_for_topics = || {
        matches!(
            session.queue.front().map(|e| &e.want),
            Some(Want::Topics(..))
        )
    };
    let may_be_push = match first {
        b'>' => true,
        b'*' => session.version == 2 && (session.is_subscribed() || asks_for_topics()),
        _ => false,
    };
    if !may_be_push {
        // "+1700000000.123456 [0 127.0.0.1:5000] \"GET\" …"; no status begins with a digit.
        return Ok(match (session.monitoring && first == b'+', buf.get(1)) {
            (true, None) => Message::More,
            (true, Some(b'0'..=b'9')) => Message::Push,
            _ => Message::Reply,
        });
    }
    Ok(match codec::first_element(buf)? {
        First::More => Message::More,
        First::Word(b"subscribe") => Message::Confirmation(Topic::Channel, true),
        First::Word(b"psubscribe") => Message::Confirmation(Topic::Pattern, true),
        First::Word(b"ssubscribe") => Message::Confirmation(Topic::Shard, true),
        First::Word(b"unsubscribe") => Message::Confirmation(Topic::Channel, false),
        First::Word(b"punsubscribe") => Message::Confirmation(Topic::Pattern, false),
        First::Word(b"sunsubscribe") => Message::Confirmation(Topic::Shard, false),
        _ if first == b'>' => Message::Push,
        First::Word(b"message" | b"pmessage" | b"smessage") => Message::Push,
        First::Word(_) | First::Other => Message::Reply,
    })
}
