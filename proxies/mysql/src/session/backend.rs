//! The walk along what the server says: which answer each packet belongs to, and what the client gets of it.

use std::sync::Arc;

use bytes::Bytes;

use super::{Injected, Phase, Prepared, Session, Want};
use crate::codec::{self, Column, HEADER, Header, MAX_PAYLOAD, Malformed, caps, status};
use crate::corrupt::Piece;

/// Enough of an OK to see its status, and the schema that it may tell.
const OK: usize = HEADER + 512;
/// The longest greeting: a version of 60 bytes, a plugin's name of 64, and 60 more.
const GREETING: usize = 1024;
/// The longest definition of a column that is looked at: six names of 64 characters, or an alias of 256, and metadata.
const DEFINITION: usize = 16 << 10;

/// What the walk along a server's bytes has come to.
#[derive(Debug)]
pub enum Step {
    /// More bytes are needed to go on.
    More,
    /// These many bytes go on unchanged.
    Pass(usize),
    /// These many bytes go on, under the effects of the answer at the front of the queue: so many of them are a header, and with
    /// them a message begins that holds this.
    Affected(usize, usize, Option<Piece>),
    /// These many bytes are replaced.
    Replace(usize, Bytes),
    /// As [`Step::Replace`], and the connection ends with it.
    Last(Bytes),
    /// Everything goes on unseen from here.
    Raw,
}

/// The walk along what the server says.
#[derive(Debug, Default)]
pub struct Backend {
    /// What is left of a packet whose beginning has been dealt with.
    rest: usize,
    /// Does the message go on in the next packet?
    continued: bool,
    /// What becomes of the rest of the message.
    fate: Fate,
    /// The answer that a message completes leaves the queue when the message's last byte has been dealt with.
    completes: bool,
    at: At,
    /// The columns of the rows that come, as far as somebody wants to know.
    columns: Vec<Column>,
    current: Arc<Vec<Column>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Fate {
    #[default]
    Pass,
    Affected,
    Dropped,
}

/// Where in an answer the walk stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum At {
    #[default]
    First,
    /// Definitions of columns; so many to come.
    Columns(u64),
    /// The EOF behind them.
    ColumnsEnd,
    Rows,
    /// Definitions of a prepared statement's parameters, then of its columns.
    Params(u16, u16),
    ParamsEnd(u16),
    PreparedColumns(u16),
    PreparedEnd,
}

/// What is known about binary rows.
struct Known<'a> {
    prepared: Option<&'a Prepared>,
    /// Must their columns' definitions be read?
    wanted: bool,
}

/// What one packet means for the answer that it belongs to.
enum Meaning {
    /// More of it follows.
    More(Piece),
    /// It is complete.
    Complete,
}

impl Backend {
    /// Looks at the front of `buf`.
    ///
    /// # Errors
    /// Bytes that are not this protocol, or an answer to nothing that was asked; the caller goes on raw.
    pub fn next(&mut self, buf: &[u8], session: &mut Session) -> Result<Step, Malformed> {
        let dropping = self.fate == Fate::Dropped && (self.rest > 0 || self.continued);
        if session.raw.is_some() && !dropping {
            return Ok(Step::Raw);
        }
        if self.rest == 0 && !self.continued && self.completes {
            self.completes = false;
            session.pop();
        }
        if buf.is_empty() {
            return Ok(Step::More);
        }
        if self.rest > 0 {
            let n = self.rest.min(buf.len());
            self.rest -= n;
            return Ok(self.go_on(n, 0));
        }
        if session.phase == Phase::Greeting {
            greets(buf)?;
        }
        let Some(header) = codec::header(buf) else {
            return Ok(Step::More);
        };
        if self.continued {
            self.continued = header.len == MAX_PAYLOAD;
            self.rest = header.len;
            return Ok(self.go_on(HEADER, HEADER));
        }
        let total = HEADER + header.len;
        let need = total.min(self.need(buf, header, session));
        let Some(payload) = buf.get(HEADER..need) else {
            return Ok(Step::More);
        };
        let here = total.min(buf.len());
        let whole = need == total;
        let step = match session.phase {
            Phase::Greeting => Self::greeting(payload, session)?,
            _ => None,
        };
        let step = match step {
            Some(()) => {
                self.fate = Fate::Pass;
                Step::Pass(here)
            }
            None => self.message(header, payload, whole, here, session)?,
        };
        self.rest = total - here;
        self.continued = header.len == MAX_PAYLOAD;
        Ok(step)
    }

    fn go_on(&self, n: usize, header: usize) -> Step {
        match self.fate {
            Fate::Pass => Step::Pass(n),
            Fate::Affected => Step::Affected(n, header, None),
            Fate::Dropped => Step::Replace(n, Bytes::new()),
        }
    }

    /// How much of a packet must be there to know what it means.
    fn need(&self, buf: &[u8], header: Header, session: &Session) -> usize {
        if session.phase == Phase::Greeting {
            return GREETING;
        }
        let one = HEADER + 1;
        let Some(first) = buf.get(HEADER) else {
            return one;
        };
        match self.at {
            _ if *first == 0xff => OK,
            At::Columns(_) | At::PreparedColumns(_) => DEFINITION,
            At::Rows if !ends_rows(*first, header, session) => one,
            At::Params(..) => one,
            _ => OK,
        }
    }

    /// The server's first packet: a greeting, or an ERR that refuses the connection.
    fn greeting(payload: &[u8], session: &mut Session) -> Result<Option<()>, Malformed> {
        if payload.first() != Some(&0xff) {
            session.greeted(&codec::greeting(payload)?);
        }
        Ok(Some(()))
    }

    fn message(
        &mut self,
        header: Header,
        payload: &[u8],
        whole: bool,
        here: usize,
        session: &mut Session,
    ) -> Result<Step, Malformed> {
        self.fate = Fate::Pass;
        let first = payload.first().copied();
        if first == Some(0xff) && codec::err(payload)?.code == codec::PROGRESS {
            return Ok(Step::Pass(here));
        }
        let Some(front) = session.queue.front_mut() else {
            // What the server says before it closes an idle session: it shuts down, the session is killed or has timed out.
            return match first {
                Some(0xff) => Ok(Step::Pass(here)),
                _ => codec::malformed("a packet that answers nothing that was asked"),
            };
        };
        if let Some(instead) = &mut front.instead {
            self.fate = Fate::Dropped;
            if instead.before > 0 {
                instead.before -= 1;
                note(payload, session);
                return Ok(Step::Replace(here, Bytes::new()));
            }
            note(payload, session);
            self.completes = true;
            return Ok(
                injected(session).map_or(Step::Replace(here, Bytes::new()), |reply| match reply {
                    (bytes, false) => Step::Replace(here, bytes),
                    (bytes, true) => Step::Last(bytes),
                }),
            );
        }
        let want = front.want.clone();
        let (affected, corrupts) = match &front.effects {
            Some(effects) => (true, effects.corrupts()),
            None => (false, false),
        };
        let meaning = match want {
            Want::One => self.one(payload, session)?,
            Want::Login => self.login(payload, session)?,
            Want::Prepare(prepared) => self.prepare(payload, whole, &prepared, session)?,
            Want::Fields => match first {
                Some(0xff) => self.failed(session),
                Some(0xfe) if ends_rows(0xfe, header, session) => self.complete(session),
                _ => Meaning::More(Piece::Other),
            },
            Want::Fetch(prepared) => {
                self.current = prepared.map(|p| p.columns()).unwrap_or_default();
                self.at = At::Rows;
                self.rows(header, payload, true, session)?
            }
            Want::Text => self.results(header, payload, None, session)?,
            Want::Binary(prepared) => {
                let known = Known {
                    prepared: prepared.as_deref(),
                    wanted: corrupts && whole,
                };
                self.results(header, payload, Some(known), session)?
            }
        };
        let piece = match meaning {
            Meaning::More(piece) => piece,
            Meaning::Complete => {
                self.completes = true;
                self.at = At::First;
                Piece::Last
            }
        };
        if affected {
            self.fate = Fate::Affected;
            return Ok(Step::Affected(here, HEADER, Some(piece)));
        }
        Ok(Step::Pass(here))
    }

    fn complete(&mut self, session: &mut Session) -> Meaning {
        session.then();
        Meaning::Complete
    }

    fn failed(&mut self, session: &mut Session) -> Meaning {
        if let Some(front) = session.queue.front_mut() {
            front.then = None;
        }
        Meaning::Complete
    }

    /// One packet, whatever it is: OK, EOF, ERR, or the text of COM_STATISTICS.
    fn one(&mut self, payload: &[u8], session: &mut Session) -> Result<Meaning, Malformed> {
        note(payload, session);
        Ok(match payload.first() {
            Some(0xff) => self.failed(session),
            _ => self.complete(session),
        })
    }

    fn login(&mut self, payload: &[u8], session: &mut Session) -> Result<Meaning, Malformed> {
        match payload.first() {
            Some(0x00) => {
                session.authenticating = false;
                if session.phase == Phase::Login {
                    session.logged_in();
                }
                note(payload, session);
                Ok(self.complete(session))
            }
            Some(0xff) => {
                session.authenticating = false;
                Ok(self.failed(session))
            }
            // A switch of plugins, or more data.
            _ => Ok(Meaning::More(Piece::Other)),
        }
    }

    fn results(
        &mut self,
        header: Header,
        payload: &[u8],
        binary: Option<Known>,
        session: &mut Session,
    ) -> Result<Meaning, Malformed> {
        match self.at {
            At::First => match payload.first() {
                Some(0x00) => self.end(
                    codec::ok(payload, session.capabilities)?.status,
                    payload,
                    session,
                ),
                Some(0xff) => Ok(self.failed(session)),
                Some(0xfb) => {
                    session.infile = true;
                    Ok(Meaning::More(Piece::Other))
                }
                _ => {
                    let (count, follow) = codec::column_count(payload, session.capabilities)?;
                    self.columns.clear();
                    let cached = binary.as_ref().and_then(|b| b.prepared);
                    self.current = cached.map(Prepared::columns).unwrap_or_default();
                    self.at = match (follow, session.has(caps::DEPRECATE_EOF)) {
                        (true, _) => At::Columns(count),
                        (false, true) => At::Rows,
                        (false, false) => At::ColumnsEnd,
                    };
                    Ok(Meaning::More(Piece::Other))
                }
            },
            At::Columns(left) => {
                if binary.as_ref().is_some_and(|b| b.wanted) {
                    self.columns
                        .push(codec::column(payload, session.capabilities)?);
                }
                self.at = match (left - 1, session.has(caps::DEPRECATE_EOF)) {
                    (0, true) => At::Rows,
                    (0, false) => At::ColumnsEnd,
                    (left, _) => At::Columns(left),
                };
                if left == 1 && !self.columns.is_empty() {
                    self.current = Arc::new(std::mem::take(&mut self.columns));
                }
                Ok(Meaning::More(Piece::Other))
            }
            At::ColumnsEnd => {
                if payload.first() == Some(&0xff) {
                    return Ok(self.failed(session));
                }
                let status = codec::eof(payload)?;
                session.status = status;
                self.at = At::Rows;
                // The rows stay with the cursor until they are fetched.
                if status & status::CURSOR_EXISTS != 0 {
                    return self.end(status, payload, session);
                }
                Ok(Meaning::More(Piece::Other))
            }
            _ => self.rows(header, payload, binary.is_some(), session),
        }
    }

    fn rows(
        &mut self,
        header: Header,
        payload: &[u8],
        binary: bool,
        session: &mut Session,
    ) -> Result<Meaning, Malformed> {
        match payload.first() {
            Some(0xff) => Ok(self.failed(session)),
            Some(0xfe) if ends_rows(0xfe, header, session) => {
                let status = match session.has(caps::DEPRECATE_EOF) {
                    true => codec::ok(payload, session.capabilities)?.status,
                    false => codec::eof(payload)?,
                };
                self.end(status, payload, session)
            }
            _ if binary => Ok(Meaning::More(Piece::BinaryRow(self.current.clone()))),
            _ => Ok(Meaning::More(Piece::TextRow)),
        }
    }

    /// The end of one result, perhaps not of the last.
    fn end(
        &mut self,
        status: u16,
        payload: &[u8],
        session: &mut Session,
    ) -> Result<Meaning, Malformed> {
        note(payload, session);
        session.status = status;
        self.at = At::First;
        if status & status::MORE_RESULTS != 0 {
            return Ok(Meaning::More(Piece::Other));
        }
        Ok(self.complete(session))
    }

    fn prepare(
        &mut self,
        payload: &[u8],
        whole: bool,
        prepared: &Arc<Prepared>,
        session: &mut Session,
    ) -> Result<Meaning, Malformed> {
        let eof = !session.has(caps::DEPRECATE_EOF);
        let columns_from = |n: u16| match n {
            0 => At::First,
            n => At::PreparedColumns(n),
        };
        match self.at {
            At::First if payload.first() == Some(&0xff) => return Ok(self.failed(session)),
            At::First => {
                let ok = codec::prepare_ok(payload, session.capabilities)?;
                let _ = prepared.ok.set(ok);
                session.statements.insert(ok.id, prepared.clone());
                self.columns.clear();
                self.at = match (ok.metadata, ok.params) {
                    (false, _) => At::First,
                    (true, 0) => columns_from(ok.columns),
                    (true, params) => At::Params(params, ok.columns),
                };
            }
            At::Params(left, columns) => {
                self.at = match (left - 1, eof) {
                    (0, true) => At::ParamsEnd(columns),
                    (0, false) => columns_from(columns),
                    (left, _) => At::Params(left, columns),
                }
            }
            At::ParamsEnd(columns) => self.at = columns_from(columns),
            At::PreparedColumns(left) => {
                if whole {
                    self.columns
                        .push(codec::column(payload, session.capabilities)?);
                }
                self.at = match (left - 1, eof) {
                    (0, true) => At::PreparedEnd,
                    (0, false) => At::First,
                    (left, _) => At::PreparedColumns(left),
                };
                if left == 1 {
                    let _ = prepared
                        .columns
                        .set(Arc::new(std::mem::take(&mut self.columns)));
                }
            }
            _ => self.at = At::First,
        }
        match self.at {
            At::First => Ok(self.complete(session)),
            _ => Ok(Meaning::More(Piece::Other)),
        }
    }
}

/// May this be the beginning of a greeting? Whoever else speaks first must not be kept waiting for the rest of one.
fn greets(buf: &[u8]) -> Result<(), Malformed> {
    let long = buf.get(2).is_some_and(|high| *high != 0);
    match (long, buf.get(3), buf.get(4)) {
        (false, None | Some(0), None | Some(0x0a | 0xff)) => Ok(()),
        (false, None | Some(0), Some(version)) => {
            codec::malformed(format!("protocol version {version} (only 10 is known)"))
        }
        _ => codec::malformed("a server that begins with no greeting"),
    }
}

/// Is this the packet that ends rows? A row, too, may begin with 0xfe: one whose first value has more than 16 MiB, and so the packet.
fn ends_rows(first: u8, header: Header, session: &Session) -> bool {
    let longest = match session.has(caps::DEPRECATE_EOF) {
        true => MAX_PAYLOAD,
        false => 9,
    };
    first == 0xfe && header.len < longest
}

/// Keeps what an OK tells about the session.
fn note(payload: &[u8], session: &mut Session) {
    let ok = match payload.first() {
        Some(0x00) => true,
        Some(0xfe) => session.has(caps::DEPRECATE_EOF),
        _ => false,
    };
    if let (true, Ok(done)) = (ok, codec::ok(payload, session.capabilities)) {
        session.status = done.status;
        if let Some(schema) = done.schema {
            session.facts.database = schema;
        }
    }
}

/// The answer that a rule gives, and does the connection end with it?
fn injected(session: &Session) -> Option<(Bytes, bool)> {
    let (capabilities, status) = (session.capabilities, session.status);
    let instead = session.queue.front()?.instead.as_ref()?;
    let mut reply = codec::Reply::new(instead.seq, capabilities, status);
    let mut ends = false;
    match &instead.what {
        Injected::Error(error) => {
            reply.err(error.code, &error.sqlstate, &error.message);
            ends = crate::errors::closes(error.code);
        }
        Injected::Text(rows, returns) => rows.text(&mut reply, *returns),
        Injected::Binary(rows, prepared, returns) => {
            rows.binary(&mut reply, &prepared.columns(), *returns);
        }
    }
    Some((reply.out.freeze(), ends))
}
