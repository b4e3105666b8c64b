//! One session: what the client has asked and the server has yet to answer.
//!
//! Both directions walk their bytes message by message. [`Requests`] puts an [`Expected`] in the queue for every command that gets a
//! reply; [`Replies`] takes it off when the reply is complete. That queue is why an injected answer comes in its place, behind the
//! replies to what was pipelined before it, and it is kept whether a rule is armed or not: a rule may be armed while a connection is
//! in the middle of anything.
//!
//! A command that a rule answers never reaches the server. Where the server's own state depends on that command having been there (it
//! counts towards a transaction, or it is the one that CLIENT REPLY SKIP or ASKING is about), another goes in its place that does
//! nothing, and what the server says to that is replaced: so it is the server that answers EXECABORT, and nothing of this has to be
//! imitated.

mod replies;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

pub use replies::{Replies, Reply};
pub use requests::{Request, Requests, Step};

use crate::effects::Effects;
use crate::redirect::Listing;
use crate::rules::Error;
use crate::value::Value;

/// How many answers of ours may be outstanding before reading more commands pauses. Far more than any pipeline leaves unread; few
/// enough that a client which never reads costs some 100 MB at most. Replies of the server are counted, not kept.
const MOST_AHEAD: usize = 1 << 20;

/// What both directions of a connection know.
#[derive(Debug)]
pub struct Session {
    /// Replies to come, in order.
    pub queue: VecDeque<Expected>,
    /// How many commands that get a reply have been put in the queue, and how many have left it.
    pub asked: u64,
    /// See [`Session::asked`].
    pub done: u64,
    /// The client's bytes are not, or no longer, commands.
    pub raw_client: bool,
    /// The server's bytes are not, or no longer, replies.
    pub raw_server: bool,
    /// The version of RESP that the server speaks at this point of its replies.
    pub version: u8,
    /// What the client said about replies, at this point of its commands.
    silence: Silence,
    /// The transaction that is being queued, at this point of its commands.
    transaction: Option<Transaction>,
    /// The last command is about the next one (ASKING, CLIENT CACHING).
    about_next: bool,
    /// How many transactions have begun.
    transactions: u64,
    /// Subscriptions, at this point of the replies.
    channels: i64,
    patterns: i64,
    shards: i64,
    /// Is MONITOR's stream running, at this point of the replies?
    monitoring: bool,
}

impl Default for Session {
    fn default() -> Session {
        Session {
            queue: VecDeque::new(),
            asked: 0,
            done: 0,
            raw_client: false,
            raw_server: false,
            version: 2,
            silence: Silence::None,
            transaction: None,
            about_next: false,
            transactions: 0,
            channels: 0,
            patterns: 0,
            shards: 0,
            monitoring: false,
        }
    }
}

/// What CLIENT REPLY has set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// ON.
    None,
    /// SKIP: the next command gets no reply.
    Next,
    /// OFF.
    All,
}

/// What is known of a transaction between MULTI and EXEC.
#[derive(Debug, Default)]
struct Transaction {
    /// Which one.
    id: u64,
    /// How many commands have been queued.
    queued: usize,
    /// What the client gets in the place of their results.
    results: Vec<(usize, Arc<Value>)>,
}

/// A reply to come.
#[derive(Debug)]
pub struct Expected {
    /// What was asked.
    pub want: Want,
    /// What the client gets instead of the server's reply, or with [`Want::Ours`] as the only one.
    pub instead: Option<Instead>,
    /// What is done to the reply on its way.
    pub effects: Option<Box<Effects>>,
}

/// What was asked.
#[derive(Debug, PartialEq)]
pub enum Want {
    /// So many commands with one reply each.
    Plain(u64),
    /// Nothing of the server: the answer is ours.
    Ours,
    /// MULTI; which transaction it begins.
    Multi(u64),
    /// EXEC, and what the client gets in place of single results.
    Exec(Vec<(usize, Arc<Value>)>),
    /// HELLO.
    Hello,
    /// A list of a cluster's nodes.
    Nodes(Listing),
    /// RESET.
    Reset,
    /// MONITOR.
    Monitor,
    /// SUBSCRIBE and its kin: a message per channel; `None`: as many as there are subscriptions of that kind, at least one.
    Topics(Topic, bool, Option<u64>),
}

/// What is subscribed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// A channel.
    Channel,
    /// A pattern.
    Pattern,
    /// A shard channel.
    Shard,
}

/// What a client gets instead of the server's reply.
#[derive(Debug, Clone)]
pub enum Instead {
    /// This.
    Value(Arc<Value>),
    /// Nothing.
    Nothing,
}

/// What a rule decided about a command.
#[derive(Debug, Default)]
pub enum Verdict {
    /// It goes to the server.
    #[default]
    Pass,
    /// The client gets this error.
    Deny(Arc<Error>),
    /// The client gets this value.
    Answer(Arc<Value>),
    /// The client gets nothing.
    Drop,
}

impl Session {
    fn push(&mut self, expected: Expected) {
        self.asked += 1;
        self.queue.push_back(expected);
    }

    /// One more command with one reply.
    fn push_plain(&mut self) {
        self.asked += 1;
        match self.queue.back_mut() {
            Some(Expected {
                want: Want::Plain(n),
                instead: None,
                effects: None,
            }) => *n += 1,
            _ => self.queue.push_back(Expected {
                want: Want::Plain(1),
                instead: None,
                effects: None,
            }),
        }
    }

    /// The command at the front is answered.
    fn pop(&mut self) {
        self.done += 1;
        match self.queue.front_mut() {
            Some(Expected {
                want: Want::Plain(n @ 2..),
                ..
            }) => *n -= 1,
            _ => {
                self.queue.pop_front();
            }
        }
    }

    /// Is the client so far ahead that its next commands have to wait?
    pub fn is_full(&self) -> bool {
        !self.raw_client && self.queue.len() >= MOST_AHEAD
    }

    /// Nobody will answer any more.
    pub fn abandon(&mut self) {
        self.queue.clear();
        self.raw_server = true;
    }

    fn is_subscribed(&self) -> bool {
        self.channels > 0 || self.patterns > 0 || self.shards > 0
    }

    /// RESET, at this point of the replies.
    fn reset(&mut self) {
        self.version = 2;
        self.monitoring = false;
        (self.channels, self.patterns, self.shards) = (0, 0, 0);
    }

    fn count(&mut self, topic: Topic) -> i64 {
        match topic {
            Topic::Channel => self.channels,
            Topic::Pattern => self.patterns,
            Topic::Shard => self.shards,
        }
    }

    /// A subscription was confirmed or ended; `total` is what the message says: channels and patterns together, or shard channels.
    fn confirmed(&mut self, topic: Topic, total: i64) {
        match topic {
            Topic::Channel => self.channels = total.saturating_sub(self.patterns),
            Topic::Pattern => self.patterns = total.saturating_sub(self.channels),
            Topic::Shard => self.shards = total,
        }
    }
}
