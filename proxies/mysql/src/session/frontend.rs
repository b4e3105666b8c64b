//! The walk along what the client says: which bytes are a request, and what becomes of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use faultbox_engine::Effects;
use faultbox_sql::{Cache, Named, Sql, begins_named, named};

use super::{Expected, Phase, Prepared, Raw, Request, Session, Then, Verdict, Want};
use crate::codec::{self, HEAD, HEADER, Hello, MAX_PAYLOAD, Malformed, com};
use crate::corrupt::Corrupt;
use crate::rules::Facts;

/// Enough of a statement to see USE, KILL or SET sql_mode in it.
const GLIMPSE: usize = 1024;
/// The longest answer to a greeting that is read: names have at most 128 bytes, connection attributes 64 KiB.
const HELLO: usize = 128 << 10;

/// What the walk along a client's bytes has come to.
#[derive(Debug)]
pub enum Step {
    /// More bytes are needed to go on.
    More,
    /// These many bytes go on unchanged.
    Pass(usize),
    /// These many bytes are dropped.
    Discard(usize),
    /// These go to the server in place of what was dropped.
    Instead(BytesMut),
    /// A request, of which these many bytes are here: call [`Frontend::decide`] before going on.
    Request(Request, usize),
    /// A request to encrypt of these many bytes: TLS begins right behind it.
    StartTls(usize),
    /// Everything goes on unseen from here.
    Raw,
}

/// The walk along what the client says.
#[derive(Debug, Default)]
pub struct Frontend {
    /// What is left of a packet whose beginning has been dealt with.
    rest: usize,
    /// Does the message go on in the next packet?
    continued: bool,
    /// Is what is left of the message dropped?
    discard: bool,
    /// What goes to the server when it is.
    instead: Option<BytesMut>,
    /// The number of the message's last packet so far.
    seq: u8,
    /// The message that a [`Step::Request`] is about.
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    here: usize,
    total: usize,
    expected: Expected,
    /// The prepared statement's id, as the client names it.
    id: Option<u32>,
    /// The types of its parameters, if they came with it.
    types: Option<Box<[u8]>>,
    /// The message as it has to be for a server that has never seen the types.
    patched: Option<BytesMut>,
    /// Can the server not understand it without them, and they cannot be put in?
    lost: bool,
    /// What it does with prepared statements by name.
    named: Vec<Named>,
}

impl Frontend {
    /// Looks at the front of `buf`. `armed` says whether a rule wants to see requests.
    ///
    /// # Errors
    /// Bytes that are not this protocol; the caller goes on raw.
    pub fn next(
        &mut self,
        buf: &[u8],
        session: &mut Session,
        armed: bool,
    ) -> Result<Step, Malformed> {
        if self.rest == 0
            && !self.continued
            && let Some(instead) = self.instead.take()
        {
            self.discard = false;
            // The answer's numbers go on from the request's.
            if let Some(expected) = session.queue.back_mut()
                && let Some(replaced) = &mut expected.instead
            {
                replaced.seq = self.seq.wrapping_add(1);
            }
            return Ok(Step::Instead(instead));
        }
        // What is dropped is dropped whatever happens: the server gets something in its place.
        if session.raw.is_some() && !self.discard {
            return Ok(Step::Raw);
        }
        if buf.is_empty() {
            return Ok(Step::More);
        }
        if self.rest > 0 {
            let n = self.rest.min(buf.len());
            self.rest -= n;
            return Ok(self.go_on(n));
        }
        let Some(header) = codec::header(buf) else {
            return Ok(Step::More);
        };
        if self.continued {
            self.packet(header.len, header.seq);
            self.rest = header.len;
            return Ok(self.go_on(HEADER));
        }
        if session.infile {
            // An empty packet ends the file.
            session.infile = header.len > 0;
            self.packet(header.len, header.seq);
            self.rest = header.len;
            return Ok(Step::Pass(HEADER));
        }
        match session.phase {
            Phase::Greeting => codec::malformed("a client that speaks before the server does"),
            Phase::Hello => self.hello(buf, header, session, armed),
            Phase::Login => self.login(buf, header),
            Phase::Commands if session.authenticating && header.seq > 0 => self.login(buf, header),
            Phase::Commands => self.command(buf, header, session, armed),
        }
    }

    fn go_on(&self, n: usize) -> Step {
        match self.discard {
            true => Step::Discard(n),
            false => Step::Pass(n),
        }
    }

    fn packet(&mut self, len: usize, seq: u8) {
        self.continued = len == MAX_PAYLOAD;
        self.seq = seq;
    }

    fn hello(
        &mut self,
        buf: &[u8],
        header: codec::Header,
        session: &mut Session,
        armed: bool,
    ) -> Result<Step, Malformed> {
        // Of TLS, the sequence number goes on from the request's; otherwise it is 1.
        if header.len > HELLO || header.seq == 0 {
            return codec::malformed(format!(
                "an answer to the greeting of {} bytes with number {}",
                header.len, header.seq
            ));
        }
        let total = HEADER + header.len;
        let Some(payload) = buf.get(HEADER..total) else {
            return Ok(Step::More);
        };
        match codec::hello(payload)? {
            Hello::Ssl => {
                session.raw = Some(Raw::Encrypted);
                Ok(Step::StartTls(total))
            }
            Hello::Session(login) => {
                session.hello(&login);
                self.packet(header.len, header.seq);
                if armed {
                    self.pending = Some(Pending::new(total, total, Expected::of(Want::Login)));
                    return Ok(Step::Request(Request::Login, total));
                }
                session.expect(Want::Login);
                Ok(Step::Pass(total))
            }
        }
    }

    /// What an authentication plugin says.
    fn login(&mut self, buf: &[u8], header: codec::Header) -> Result<Step, Malformed> {
        if header.seq == 0 {
            return codec::malformed("a command before the server has accepted the login");
        }
        self.packet(header.len, header.seq);
        let total = HEADER + header.len;
        let here = total.min(buf.len());
        self.rest = total - here;
        Ok(Step::Pass(here))
    }

    fn command(
        &mut self,
        buf: &[u8],
        header: codec::Header,
        session: &mut Session,
        armed: bool,
    ) -> Result<Step, Malformed> {
        if header.seq != 0 || header.len == 0 {
            return codec::malformed(format!(
                "a packet of {} bytes with number {} where a command begins",
                header.len, header.seq
            ));
        }
        let total = HEADER + header.len;
        let Some(&command) = buf.get(HEADER) else {
            return Ok(Step::More);
        };
        // What must be there before the message can be dealt with; the rest of it follows unseen.
        let need = match command {
            com::QUERY if armed => total.min(HEAD),
            com::QUERY => {
                let glimpse = total.min(HEADER + GLIMPSE);
                let payload = buf.get(HEADER..glimpse).unwrap_or_default();
                let text = codec::query(payload, session.capabilities);
                total.min(if text.is_ok_and(begins_named) {
                    HEAD
                } else {
                    glimpse
                })
            }
            com::STMT_PREPARE | com::INIT_DB | com::CHANGE_USER => total.min(HEAD),
            com::STMT_EXECUTE | com::MARIADB_BULK_EXECUTE => {
                self.needed(buf, session, total, armed)
            }
            com::STMT_CLOSE | com::STMT_SEND_LONG_DATA | com::STMT_FETCH => total.min(HEADER + 9),
            _ => HEADER + 1,
        };
        let Some(payload) = buf.get(HEADER..need) else {
            return Ok(Step::More);
        };
        self.packet(header.len, header.seq);
        let here = total.min(buf.len());
        let step = self.dispatch(command, payload, here, total, session, armed)?;
        if !matches!(step, Step::Request(..)) {
            self.rest = total - here;
        }
        Ok(step)
    }

    /// How much of an execution must be there: up to its types, or all of it if types have to be put in.
    fn needed(&self, buf: &[u8], session: &Session, total: usize, armed: bool) -> usize {
        let id = codec::statement_id(buf.get(HEADER..).unwrap_or_default());
        let owed = id.is_ok_and(|id| session.statement(id).is_some_and(|s| s.owed().is_some()));
        if owed {
            return total;
        }
        // A byte of NULLs for eight parameters, four of type for each: for the most that there can be, 65535.
        match armed {
            true => total.min(HEAD),
            false => total.min(HEADER + 5),
        }
    }

    fn dispatch(
        &mut self,
        command: u8,
        payload: &[u8],
        here: usize,
        total: usize,
        session: &mut Session,
        armed: bool,
    ) -> Result<Step, Malformed> {
        let pass = Ok(Step::Pass(here));
        match command {
            com::QUIT => return pass,
            com::QUERY => return self.query(payload, here, total, session, armed),
            com::INIT_DB => {
                let name = String::from_utf8_lossy(&payload[1..]).into_owned();
                let text = format!("USE `{}`", name.replace('`', "``"));
                let mut expected = Expected::of(Want::One);
                expected.then = Some(Box::new(Then::Database(name)));
                let request = Request::Query(Sql::new(text.as_bytes(), session.dialect()));
                return Ok(self.request(
                    request,
                    Pending::new(here, total, expected),
                    session,
                    armed,
                ));
            }
            com::STMT_PREPARE => {
                let prepared = Arc::new(Prepared::new(Sql::new(&payload[1..], session.dialect())));
                session.last_prepared = Some(prepared.clone());
                session.expect(Want::Prepare(prepared));
            }
            com::STMT_EXECUTE | com::MARIADB_BULK_EXECUTE => {
                return self.execute(command, payload, here, total, session, armed);
            }
            com::STMT_SEND_LONG_DATA => {
                if let Some(prepared) = session.statement(codec::statement_id(payload)?) {
                    prepared.long_data.store(true, Ordering::Relaxed);
                }
            }
            com::STMT_CLOSE => {
                session.statements.remove(&codec::statement_id(payload)?);
            }
            com::STMT_FETCH => {
                let prepared = session.statement(codec::statement_id(payload)?);
                session.expect(Want::Fetch(prepared));
            }
            com::FIELD_LIST => session.expect(Want::Fields),
            com::PROCESS_INFO => session.expect(Want::Text),
            com::CHANGE_USER => {
                let login = codec::change_user(payload, session.capabilities)?;
                let mut expected = Expected::of(Want::Login);
                expected.then = Some(Box::new(Then::Login(Facts {
                    user: login.user,
                    database: login.database,
                })));
                session.authenticating = true;
                session.push(expected);
            }
            com::RESET_CONNECTION => {
                let mut expected = Expected::of(Want::One);
                expected.then = Some(Box::new(Then::Reset));
                session.push(expected);
            }
            com::BINLOG_DUMP
            | com::BINLOG_DUMP_GTID
            | com::TABLE_DUMP
            | com::CLONE
            | com::SUBSCRIBE_GROUP_REPLICATION => session.raw = Some(Raw::Stream),
            // Everything else up to the last command of MySQL 9 is answered by one packet, be it an ERR for what is no command.
            0x00..=0x1f => session.expect(Want::One),
            other => return codec::malformed(format!("an unknown command 0x{other:02x}")),
        }
        pass
    }

    fn query(
        &mut self,
        payload: &[u8],
        here: usize,
        total: usize,
        session: &mut Session,
        armed: bool,
    ) -> Result<Step, Malformed> {
        let text = codec::query(payload, session.capabilities).or_else(|e| {
            // Cut short in the attributes: not worth the whole when nobody asks.
            if armed { Err(e) } else { Ok(&[][..]) }
        })?;
        let glimpse = Glimpse::of(&text[..text.len().min(GLIMPSE)]);
        let mut expected = Expected::of(Want::Text);
        match &glimpse {
            Glimpse::Use(database) => {
                expected.then = Some(Box::new(Then::Database(database.clone())));
            }
            Glimpse::Kill(thread) => expected.then = Some(Box::new(Then::Killed(*thread))),
            Glimpse::AnsiQuotes(on) => session.ansi_quotes = *on,
            Glimpse::Other => {}
        }
        let mut pending = Pending::new(here, total, expected);
        // Of a string of several statements any may be one, which is looked for where somebody wants to know.
        let several = || armed && text.iter().any(|b| matches!(b, b';' | b'/'));
        if begins_named(text) || several() {
            pending.named = named(&String::from_utf8_lossy(text), session.dialect());
        }
        let sql = Sql::new(if armed { text } else { &[] }, session.dialect()).cut(total > HEAD);
        let request = Request::Query(sql.running(session.run(&pending.named)));
        Ok(self.request(request, pending, session, armed))
    }

    fn execute(
        &mut self,
        command: u8,
        payload: &[u8],
        here: usize,
        total: usize,
        session: &mut Session,
        armed: bool,
    ) -> Result<Step, Malformed> {
        let id = codec::statement_id(payload)?;
        let prepared = session.statement(id);
        let expected = Expected::of(Want::Binary(prepared.clone()));
        let mut pending = Pending::new(here, total, expected);
        pending.id = Some(id);
        let Some(prepared) = prepared else {
            // Prepared out of sight, or never: the server knows.
            pending.expected.request = true;
            session.push(pending.expected);
            return Ok(Step::Pass(here));
        };
        let owes = prepared.owed().is_some();
        if armed || owes {
            let read = match command {
                com::MARIADB_BULK_EXECUTE => {
                    codec::bulk_execute(payload, prepared.params()).map(Some)
                }
                _ => codec::execute(payload, prepared.params(), session.capabilities),
            };
            // The number of parameters is not known yet in a pipeline, and a packet of nonsense is the server's to refuse.
            if let Ok(Some(execute)) = read {
                let types = &payload[execute.types.clone()];
                if !types.is_empty() {
                    pending.types = Some(types.into());
                    prepared.owed().take();
                } else if let Some(owed) = prepared.owed().clone() {
                    pending.patch(payload, &execute, &owed);
                }
            }
        }
        if !armed && !owes {
            prepared.long_data.store(false, Ordering::Relaxed);
        }
        Ok(self.request(Request::Execute(prepared), pending, session, armed || owes))
    }

    /// Hands a request out, or lets it pass if nobody asks.
    fn request(
        &mut self,
        request: Request,
        mut pending: Pending,
        session: &mut Session,
        armed: bool,
    ) -> Step {
        pending.expected.request = true;
        let here = pending.here;
        if !armed {
            session.keep(pending.named);
            session.push(pending.expected);
            return Step::Pass(here);
        }
        self.pending = Some(pending);
        Step::Request(request, here)
    }

    /// Carries out what was decided about the request of the last [`Step::Request`]; true if it is dropped, and something else goes to
    /// the server.
    pub fn decide(
        &mut self,
        request: &Request,
        verdict: Verdict,
        effects: Option<Box<Effects<Corrupt>>>,
        session: &mut Session,
        cache: &Cache,
    ) -> bool {
        let Some(pending) = self.pending.take() else {
            return false;
        };
        self.rest = pending.total - pending.here;
        let passes = matches!(verdict, Verdict::Pass);
        // ER_WRONG_ARGUMENTS is what a server says to an execution whose types it has never seen.
        let verdict = match passes && pending.lost {
            true => Verdict::Deny(Arc::new(crate::rules::Error::of_code(1210))),
            false => verdict,
        };
        if matches!(verdict, Verdict::Pass) {
            session.keep(pending.named);
        }
        let replaced = session.decide(
            request,
            pending.id,
            verdict,
            effects,
            pending.expected,
            cache,
        );
        if let Request::Execute(prepared) = request {
            if replaced.is_none() {
                prepared.long_data.store(false, Ordering::Relaxed);
                if pending.patched.is_some() {
                    prepared.owed().take();
                }
            } else if pending.types.is_some() {
                *prepared.owed() = pending.types;
            }
        }
        self.instead = replaced.or(pending.patched);
        self.discard = self.instead.is_some();
        self.discard
    }
}

impl Pending {
    fn new(here: usize, total: usize, expected: Expected) -> Pending {
        Pending {
            here,
            total,
            expected,
            id: None,
            types: None,
            patched: None,
            lost: false,
            named: vec![],
        }
    }

    /// Puts the types into an execution that comes without them.
    fn patch(&mut self, payload: &[u8], execute: &codec::Execute, types: &[u8]) {
        let len = payload.len() + types.len();
        // In a message of several packets all that follows would have to move.
        if self.here < self.total || len >= MAX_PAYLOAD {
            self.lost = true;
            return;
        }
        let mut message = payload.to_vec();
        message[execute.flag.0] = execute.flag.1;
        let at = execute.types.start;
        message.splice(at..at, types.iter().copied());
        let mut out = BytesMut::new();
        codec::packet(&mut out, &mut 0, &message);
        self.patched = Some(out);
    }
}

impl Session {
    /// What is run by these, by name.
    fn run(&self, named: &[Named]) -> Vec<Arc<Sql>> {
        let sql = |text: &str| Arc::new(Sql::new(text.as_bytes(), self.dialect()));
        let mut runs = vec![];
        for (i, one) in named.iter().enumerate() {
            let run = match one {
                Named::Run(text) => Some(sql(text)),
                Named::Execute(name) => {
                    // What was prepared in the same string.
                    let here = named[..i].iter().rev().find_map(|n| match n {
                        Named::Prepare(given, Some(text)) if given == name => Some(sql(text)),
                        _ => None,
                    });
                    here.or_else(|| self.named.get(name).cloned())
                }
                _ => None,
            };
            runs.extend(run);
        }
        runs
    }

    /// The server has names, or no longer.
    fn keep(&mut self, named: Vec<Named>) {
        for one in named {
            match one {
                Named::Prepare(name, Some(text)) => {
                    let sql = Arc::new(Sql::new(text.as_bytes(), self.dialect()));
                    self.named.insert(name, sql);
                }
                Named::Prepare(name, None) | Named::Deallocate(name) => {
                    drop(self.named.remove(&name));
                }
                Named::DeallocateAll => self.named.clear(),
                Named::Execute(_) | Named::Run(_) => {}
            }
        }
    }

    /// The prepared statement that the client means by this id.
    fn statement(&self, id: u32) -> Option<Arc<Prepared>> {
        match id {
            codec::LAST_PREPARED => self.last_prepared.clone(),
            id => self.statements.get(&id).cloned(),
        }
    }
}

/// What must be known of a statement whether a rule is armed or not.
#[derive(Debug, PartialEq, Eq)]
enum Glimpse {
    /// USE: the database changes.
    Use(String),
    /// SET … sql_mode …: may it be that it holds ANSI_QUOTES?
    AnsiQuotes(bool),
    /// KILL QUERY: the session whose statement ends.
    Kill(u32),
    Other,
}

impl Glimpse {
    fn of(text: &[u8]) -> Glimpse {
        // Nearly every statement is told by its first letter.
        if !text.first().is_some_and(|b| b" \t\r\n/uUsSkK".contains(b)) {
            return Glimpse::Other;
        }
        let text = String::from_utf8_lossy(text);
        let mut words = text
            .split([' ', '\t', '\r', '\n', ';'])
            .filter(|w| !w.is_empty());
        let first = words.next().unwrap_or_default();
        if first.eq_ignore_ascii_case("use") {
            let name = words.next().unwrap_or_default();
            let quoted = name.strip_prefix('`').and_then(|n| n.strip_suffix('`'));
            return match words.next() {
                None => Glimpse::Use(quoted.unwrap_or(name).replace("``", "`")),
                Some(_) => Glimpse::Other,
            };
        }
        if first.eq_ignore_ascii_case("kill") {
            let rest: Vec<&str> = words.collect();
            if let [.., what, thread] = rest[..]
                && what.eq_ignore_ascii_case("query")
                && let Ok(thread) = thread.parse()
            {
                return Glimpse::Kill(thread);
            }
        }
        if first.eq_ignore_ascii_case("set") {
            let lower = text.to_ascii_lowercase();
            if lower.contains("sql_mode") {
                return Glimpse::AnsiQuotes(lower.contains("ansi"));
            }
        }
        Glimpse::Other
    }
}

#[cfg(test)]
mod tests {
    use super::Glimpse;

    #[test]
    fn glimpses() {
        let of = |sql: &str| Glimpse::of(sql.as_bytes());
        assert_eq!(of("USE `shop`;"), Glimpse::Use("shop".into()));
        assert_eq!(of(" use shop"), Glimpse::Use("shop".into()));
        assert_eq!(of("use shop; select 1"), Glimpse::Other);
        assert_eq!(of("KILL QUERY 12"), Glimpse::Kill(12));
        assert_eq!(of("KILL SOFT QUERY 12"), Glimpse::Kill(12));
        assert_eq!(of("KILL 12"), Glimpse::Other);
        assert_eq!(of("SET SESSION sql_mode='ANSI'"), Glimpse::AnsiQuotes(true));
        assert_eq!(of("SET sql_mode=''"), Glimpse::AnsiQuotes(false));
        assert_eq!(of("SELECT 1"), Glimpse::Other);
    }
}
