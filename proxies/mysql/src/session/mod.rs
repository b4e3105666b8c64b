//! One session: what the client has asked and the server has yet to answer.
//!
//! Both directions walk their bytes packet by packet. [`Frontend`] puts an [`Expected`] in the queue for every command that gets an
//! answer; [`Backend`] takes it off when the answer is complete. That queue is why an injected answer comes in its place, behind the
//! answers to what was pipelined before it, and it is kept whether a rule is armed or not: a rule may be armed while a connection is
//! in the middle of anything.
//!
//! A request that a rule denies is *replaced* on its way to the server by a SIGNAL of the same error, and the server's answer to that
//! is replaced on its way back. So the session's diagnostics (SHOW WARNINGS, @@error_count) are as they would be, and an error that
//! rolls the transaction back is preceded by a ROLLBACK. So is any error of a COMMIT: one that has failed leaves no transaction to go
//! on with.

mod backend;
mod frontend;
mod replace;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

pub use backend::{Backend, Step as Answer};
pub use frontend::{Frontend, Step};

use faultbox_engine::Effects;
use faultbox_sql::{Dialect, Modes, Sql};

use crate::answer::Rows;
use crate::codec::{Column, Greeting, Login, PrepareOk, caps, status};
use crate::corrupt::Corrupt;
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
    /// How far the session has come.
    pub phase: Phase,
    /// Does the server wait for the file of a LOAD DATA LOCAL? Then what the client says is that.
    pub infile: bool,
    /// Does the client still have to prove who it is, after a COM_CHANGE_USER?
    authenticating: bool,
    /// Is the connection not, or no longer, readable? Bytes are forwarded unseen.
    pub raw: Option<Raw>,
    /// Who the session belongs to.
    pub facts: Facts,
    /// What the server can do, then what both can.
    pub capabilities: u64,
    /// What `KILL` names.
    pub thread: u32,
    /// The status as the server last told it.
    pub status: u16,
    /// The session whose statement the server has killed for this one, until that is dealt with.
    pub killed: Option<u32>,
    /// Has the client set ANSI_QUOTES? MariaDB tells by its status, too.
    ansi_quotes: bool,
    statements: HashMap<u32, Arc<Prepared>>,
    last_prepared: Option<Arc<Prepared>>,
    /// What SQL's own PREPARE has given names to.
    named: HashMap<String, Arc<Sql>>,
}

/// How far a session has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// The server speaks first.
    #[default]
    Greeting,
    /// The client answers.
    Hello,
    /// Both exchange what the authentication plugin wants, until the server's OK or ERR.
    Login,
    /// The client sends commands.
    Commands,
}

/// Why a connection's bytes are forwarded unseen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Raw {
    /// Encrypted.
    Encrypted,
    /// Compressed.
    Compressed,
    /// A replica reads the binary log, or a clone the data: a stream without requests.
    Stream,
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
    /// Is it something that rules can act on?
    request: bool,
    /// What is true of the session once the server has said OK.
    then: Option<Box<Then>>,
}

/// What was asked; which says what the answer looks like.
#[derive(Debug, Clone)]
pub enum Want {
    /// One packet.
    One,
    /// OK, ERR, the request for a file, or rows as text; and more of these while MORE_RESULTS is set.
    Text,
    /// The same with binary rows.
    Binary(Option<Arc<Prepared>>),
    /// Rows of a cursor, up to EOF or ERR.
    Fetch(Option<Arc<Prepared>>),
    /// Definitions of columns, up to EOF or ERR.
    Fields,
    /// What answers a COM_STMT_PREPARE.
    Prepare(Arc<Prepared>),
    /// What the authentication plugin wants, up to OK or ERR.
    Login,
}

/// What is true of the session once the server has said OK.
#[derive(Debug)]
enum Then {
    Database(String),
    Login(Facts),
    Reset,
    /// This session's statement is killed.
    Killed(u32),
}

/// What a client gets instead of the server's answer.
#[derive(Debug)]
pub struct Instead {
    /// The answer.
    what: Injected,
    /// How many answers of the server's come before the one that it replaces.
    before: u8,
    /// The number of its first packet.
    seq: u8,
}

#[derive(Debug)]
enum Injected {
    Error(Arc<Error>),
    /// Rows, and does the statement return any?
    Text(Arc<Rows>, bool),
    Binary(Arc<Rows>, Arc<Prepared>, bool),
}

/// A prepared statement.
#[derive(Debug)]
pub struct Prepared {
    /// Its text.
    pub sql: Sql,
    /// What the server has answered.
    ok: OnceLock<PrepareOk>,
    columns: OnceLock<Arc<Vec<Column>>>,
    /// The types of its parameters, if the server has never seen them: they came with an execution that a rule has answered.
    owed: Mutex<Option<Box<[u8]>>>,
    /// Does the server hold values that came by COM_STMT_SEND_LONG_DATA?
    long_data: AtomicBool,
}

impl Prepared {
    fn new(sql: Sql) -> Prepared {
        Prepared {
            sql,
            ok: OnceLock::new(),
            columns: OnceLock::new(),
            owed: Mutex::default(),
            long_data: AtomicBool::new(false),
        }
    }

    fn params(&self) -> u16 {
        self.ok.get().map_or(0, |ok| ok.params)
    }

    /// The columns of its rows, once the server has described them; none if it returns none.
    fn columns(&self) -> Arc<Vec<Column>> {
        self.columns.get().cloned().unwrap_or_default()
    }

    fn owed(&self) -> std::sync::MutexGuard<'_, Option<Box<[u8]>>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a rule can act on.
#[derive(Debug)]
pub enum Request {
    /// A COM_QUERY, or a COM_INIT_DB, which is a USE.
    Query(Sql),
    /// A COM_STMT_EXECUTE or COM_STMT_BULK_EXECUTE.
    Execute(Arc<Prepared>),
    /// A login: the session's facts are there, its rights are not.
    Login,
}

impl Request {
    /// Its text, if it has one.
    pub fn sql(&self) -> Option<&Sql> {
        match self {
            Request::Query(sql) => Some(sql),
            Request::Execute(prepared) => Some(&prepared.sql),
            Request::Login => None,
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
    /// The client gets this error from what was to commit its transaction, which is rolled back.
    Abort(Arc<Error>),
    /// The client gets these rows.
    Answer(Arc<Rows>),
}

impl Session {
    fn greeted(&mut self, greeting: &Greeting) {
        self.capabilities = greeting.capabilities;
        self.thread = greeting.thread;
        self.status = greeting.status;
        self.phase = Phase::Hello;
    }

    /// The client has said who it is.
    fn hello(&mut self, login: &Login) {
        // Of MySQL, the upper half is neither the server's nor the client's.
        self.capabilities &= login.capabilities;
        self.facts = Facts {
            user: login.user.clone(),
            database: login.database.clone(),
        };
        self.phase = Phase::Login;
    }

    fn logged_in(&mut self) {
        self.phase = Phase::Commands;
        if self.has(caps::COMPRESS | caps::ZSTD) {
            self.raw = Some(Raw::Compressed);
        }
    }

    fn has(&self, capability: u64) -> bool {
        self.capabilities & capability != 0
    }

    /// How the session's statements are to be read.
    fn dialect(&self) -> Dialect {
        Dialect::MySql(Modes {
            ansi_quotes: self.ansi_quotes || self.status & status::ANSI_QUOTES != 0,
            no_backslash_escapes: self.status & status::NO_BACKSLASH_ESCAPES != 0,
        })
    }

    fn expect(&mut self, want: Want) {
        self.push(Expected::of(want));
    }

    fn push(&mut self, expected: Expected) {
        self.asked += u64::from(expected.request);
        self.queue.push_back(expected);
    }

    fn pop(&mut self) {
        if let Some(expected) = self.queue.pop_front() {
            self.done += u64::from(expected.request);
        }
    }

    /// The server has said OK to what stands at the front of the queue.
    fn then(&mut self) {
        let then = self.queue.front_mut().and_then(|e| e.then.take());
        match then.map(|t| *t) {
            Some(Then::Database(database)) => self.facts.database = database,
            Some(Then::Login(facts)) => {
                self.facts = facts;
                self.reset();
            }
            Some(Then::Reset) => self.reset(),
            Some(Then::Killed(thread)) => self.killed = Some(thread),
            None => {}
        }
    }

    fn reset(&mut self) {
        self.statements.clear();
        self.last_prepared = None;
        self.named.clear();
        self.ansi_quotes = false;
    }

    /// Is the client so far ahead that its next messages have to wait?
    pub fn is_full(&self) -> bool {
        self.raw.is_none() && self.queue.len() >= MOST_AHEAD
    }
}

impl Expected {
    fn of(want: Want) -> Expected {
        Expected {
            want,
            instead: None,
            effects: None,
            request: false,
            then: None,
        }
    }
}

fn take_flag(flag: &AtomicBool) -> bool {
    flag.swap(false, Ordering::Relaxed)
}
