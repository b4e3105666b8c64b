//! One session: what the client has asked and the server has yet to answer.
//!
//! Both directions walk their bytes message by message. [`Frontend`] puts an [`Expected`] in the queue for every message that
//! gets an answer; [`Backend`] takes it off when the answer is complete. That queue is why an injected answer comes in its
//! place, behind the answers to what was pipelined before it, and it is kept whether a rule is armed or not: a rule may be armed
//! while a connection is in the middle of anything.
//!
//! A request that a rule denies is *replaced* on its way to the server by one that fails there without doing anything, and the
//! server's answer to that is replaced on its way back. So it is the server that aborts the transaction, skips to the next Sync
//! and says in which state the session is: nothing of this has to be imitated, and it is right in pipelines of any shape.
//!
//! A COMMIT that fails leaves no failed transaction behind but none (`CommitTransactionCommand` and `AbortCurrentTransaction` in
//! xact.c). So what stands for a denied one is a ROLLBACK, and in the extended protocol after it what fails, for the skip to the Sync.

mod backend;
mod frontend;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

pub use backend::{Backend, Reply};
pub use frontend::{Frontend, Step};

use faultbox_engine::Effects;
use faultbox_sql::{Dialect, Named, Sql};

use crate::answer::{Command, Rows};
use crate::codec::{CancelKey, Column};
use crate::effects::Corrupt;
use crate::rules::{Error, Facts};

/// How many answers may be outstanding before reading more requests pauses. Far more than any client leaves unread, because the
/// server stops reading, too, once nobody takes its answers; few enough that a client which does so costs some 100 MB at most.
const MOST_AHEAD: usize = 1 << 20;

/// What both directions of a connection know.
#[derive(Debug, Default)]
pub struct Session {
    /// Answers to come, in order.
    pub queue: VecDeque<Expected>,
    /// How many requests (what rules can act on) have been put in the queue, and how many have left it.
    pub asked: u64,
    /// See [`Session::asked`].
    pub done: u64,
    /// The server ignores everything up to the next Sync: a message of the extended protocol has failed.
    skipping: bool,
    /// The server takes COPY data and ignores Sync and Flush (manual, "COPY Operations").
    copy_in: bool,
    /// Has the server said what to do with the encryption request that it was sent?
    pub awaiting_encryption: bool,
    /// Is the connection not, or no longer, plain protocol 3? Bytes are forwarded unseen.
    pub raw: Option<Raw>,
    /// Who the session belongs to.
    pub facts: Facts,
    /// What a CancelRequest for this session must show.
    pub key: Option<CancelKey>,
    /// The transaction status of the last ReadyForQuery: 'I', 'T' or 'E'; 0 before the first.
    pub status: u8,
}

/// Why a connection's bytes are forwarded unseen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Raw {
    /// Encrypted.
    Encrypted,
    /// A CancelRequest: no answer, nothing to match.
    Cancel,
    /// Not understood; recorded when it happened.
    Degraded,
}

/// An answer to come.
#[derive(Debug)]
pub struct Expected {
    /// What was asked.
    pub want: Want,
    /// What the client gets instead of the server's answer.
    pub instead: Option<Box<Instead>>,
    /// What is done to the answer on its way.
    pub effects: Option<Box<Effects<Corrupt>>>,
}

impl Expected {
    fn is_request(&self) -> bool {
        matches!(self.want, Want::Query | Want::Execute)
    }
}

/// What was asked; which says what message completes the answer.
#[derive(Debug)]
pub enum Want {
    /// The start of the session: up to the first ReadyForQuery.
    Session,
    /// A Query or a FunctionCall: up to ReadyForQuery.
    Query,
    /// ReadyForQuery.
    Sync,
    /// ParseComplete.
    Parse,
    /// BindComplete.
    Bind,
    /// CloseComplete.
    Close,
    /// RowDescription or NoData, which is kept for who will execute it.
    Describe(Option<Arc<Described>>),
    /// CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute,
    /// No answer: the end of COPY data, in its place among the requests.
    CopyEnd,
}

/// What a client gets instead of the server's answer.
#[derive(Debug, Clone)]
pub enum Instead {
    /// This error in place of the server's.
    Error(Arc<Error>),
    /// These rows, as the answer to a simple query of this.
    Simple(Arc<Rows>, Command),
    /// These rows, as the answer to an Execute of this.
    Extended(Arc<Rows>, Command, Portal),
}

/// The columns that the server has described, once it has.
pub type Described = Mutex<Option<Arc<Vec<Column>>>>;

/// A prepared statement.
#[derive(Debug)]
pub struct Prepared {
    /// Its text.
    pub sql: Arc<Sql>,
    described: Arc<Described>,
    /// What it does with statements that are prepared by SQL's own commands.
    named: Vec<Named>,
}

impl Prepared {
    fn new(text: &[u8]) -> Prepared {
        let named = match faultbox_sql::begins_named(text) {
            true => faultbox_sql::named(&String::from_utf8_lossy(text), Dialect::Postgres),
            false => vec![],
        };
        Prepared {
            sql: Arc::new(Sql::new(text, Dialect::Postgres)),
            described: Arc::default(),
            named,
        }
    }
}

/// A portal: a prepared statement that is bound.
#[derive(Debug, Clone)]
pub struct Portal {
    /// What it executes; `None` if it was prepared out of sight.
    pub statement: Option<Arc<Prepared>>,
    described: Arc<Described>,
    formats: Option<Vec<u16>>,
    executed: bool,
}

impl Portal {
    /// The columns and formats of its rows, as far as the server has described them.
    fn columns(&self) -> Option<Vec<Column>> {
        let get = |d: &Described| d.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(columns) = get(&self.described) {
            return Some(columns.to_vec());
        }
        let mut columns = get(&self.statement.as_ref()?.described)?.to_vec();
        for (i, column) in columns.iter_mut().enumerate() {
            column.format = match self.formats.as_deref() {
                None | Some([]) => 0,
                Some([one]) => *one,
                Some(each) => each.get(i).copied().unwrap_or_default(),
            };
        }
        Some(columns)
    }
}

impl Session {
    fn expect(&mut self, want: Want) {
        if !self.skipping {
            self.push(Expected {
                want,
                instead: None,
                effects: None,
            });
        }
    }

    fn push(&mut self, expected: Expected) {
        self.asked += u64::from(expected.is_request());
        self.queue.push_back(expected);
    }

    fn pop(&mut self) {
        if let Some(expected) = self.queue.pop_front() {
            self.done += u64::from(expected.is_request());
        }
    }

    /// Is the client so far ahead that its next messages have to wait?
    pub fn is_full(&self) -> bool {
        self.raw.is_none() && self.queue.len() >= MOST_AHEAD
    }

    /// Is everything that was asked answered?
    pub fn is_idle(&mut self) -> bool {
        self.drop_copy_ends();
        self.queue.is_empty()
    }

    fn drop_copy_ends(&mut self) {
        while matches!(self.queue.front(), Some(e) if matches!(e.want, Want::CopyEnd)) {
            self.queue.pop_front();
        }
    }
}

/// What a rule can act on.
#[derive(Debug)]
pub enum Request {
    /// A Query.
    Simple(Sql),
    /// An Execute of a portal.
    Execute(Portal),
    /// A FunctionCall: no statement.
    Function,
    /// A login: who it is has been said, and is not proved yet.
    Login,
}

impl Request {
    /// Its text, if it has one.
    pub fn sql(&self) -> Option<&Sql> {
        match self {
            Request::Simple(sql) => Some(sql),
            Request::Execute(portal) => portal.statement.as_ref().map(|s| &*s.sql),
            Request::Function | Request::Login => None,
        }
    }
}

/// What a rule decided about a request.
#[derive(Debug, Default)]
pub enum Verdict {
    /// It goes to the server.
    #[default]
    Pass,
    /// The client gets this error.
    Deny(Arc<Error>),
    /// The client gets this error from what was to commit its transaction, which is over.
    Abort(Arc<Error>),
    /// The client gets these rows.
    Answer(Arc<Rows>),
}
