//! The walk along what the client says: which bytes are a request, and what becomes of them.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::BytesMut;

use super::{Expected, Instead, Portal, Prepared, Raw, Request, Session, Verdict, Want};
use faultbox_engine::Effects;
use faultbox_sql::{Cache, Dialect, Named, Sql, begins_named, named};

use crate::answer::Command;
use crate::codec::{self, HEAD, HEADER, Malformed, Object, Side, Startup};
use crate::effects::Corrupt;
use crate::rules::{Error, Facts};

/// The name that the server's log shows for what a rule denied: it is no statement, so the server refuses it unparsed.
const DENIED_QUERY: &str = "faultbox: a rule denied this statement";
/// The portal whose Execute stands for a denied one; it never exists.
const DENIED_PORTAL: &str = "faultbox: a rule denied this statement";
/// What stands for a denied COMMIT.
const DENIED_COMMIT: &str = "ROLLBACK /* faultbox: a rule denied this statement */";
/// The prepared statement and the portal of a [`DENIED_COMMIT`] in the extended protocol: no names of a client's.
const ROLLBACK: &str = "faultbox: ROLLBACK";
/// How many portals of one session are remembered; PostgreSQL drops them at the end of a transaction, and so does the queue.
const PORTALS: usize = 4096;
/// Enough of a Query to see whether it begins with PREPARE or DEALLOCATE.
const GLIMPSE: usize = 96;

/// What the walk along a client's bytes has come to.
#[derive(Debug)]
pub enum Step {
    /// More bytes are needed to go on.
    More,
    /// These many bytes go on unchanged.
    Pass(usize),
    /// These many bytes are dropped.
    Discard(usize),
    /// A request, of which these many bytes are here: call [`Frontend::decide`] before going on.
    Request(Request, usize),
    /// An encryption request of these many bytes: it goes on, and the server's answer decides what follows.
    Encryption(usize),
    /// Everything goes on unseen from here.
    Raw,
}

/// The walk along what the client says.
#[derive(Debug, Default)]
pub struct Frontend {
    /// Has the session begun?
    begun: bool,
    /// What is left of a message whose beginning has been dealt with, and whether it is dropped.
    rest: usize,
    discard: bool,
    /// The message that a [`Step::Request`] is about.
    pending: Option<Pending>,
    statements: HashMap<Box<[u8]>, Arc<Prepared>>,
    portals: HashMap<Box<[u8]>, Portal>,
    /// What the pending message does with prepared statements by name, once it has gone to the server.
    named: Vec<Named>,
}

#[derive(Debug)]
struct Pending {
    here: usize,
    total: usize,
}

impl Frontend {
    /// Looks at the front of `buf`. `armed` says whether a rule wants to see requests.
    ///
    /// # Errors
    /// Bytes that are not protocol 3; the caller goes on raw.
    pub fn next(
        &mut self,
        buf: &[u8],
        session: &mut Session,
        armed: bool,
    ) -> Result<Step, Malformed> {
        // The rest of a message that is dropped is dropped whatever happens: the server has had something in its place.
        if session.raw.is_some() && !(self.discard && self.rest > 0) {
            return Ok(Step::Raw);
        }
        if buf.is_empty() {
            return Ok(Step::More);
        }
        if self.rest > 0 {
            let n = self.rest.min(buf.len());
            self.rest -= n;
            return Ok(if self.discard {
                Step::Discard(n)
            } else {
                Step::Pass(n)
            });
        }
        self.discard = false;
        if !self.begun {
            return self.startup(buf, session, armed);
        }
        let Some(header) = codec::header(buf, Side::Frontend)? else {
            return Ok(Step::More);
        };
        // What must be there before the message can be dealt with; the rest of it follows unseen.
        let need = match header.tag {
            b'P' | b'B' | b'C' | b'D' | b'E' => header.total.min(HEAD),
            b'Q' if armed => header.total.min(HEAD),
            b'Q' => {
                let glimpse = header.total.min(HEADER + GLIMPSE);
                let begins = buf.get(HEADER..glimpse).is_some_and(begins_named);
                header.total.min(if begins { HEAD } else { glimpse })
            }
            _ => HEADER,
        };
        let Some(head) = buf.get(..need) else {
            return Ok(Step::More);
        };
        let here = header.total.min(buf.len());
        if let Some(request) = self.message(header.tag, &head[HEADER..], session, armed)? {
            self.pending = Some(Pending {
                here,
                total: header.total,
            });
            return Ok(Step::Request(request, here));
        }
        self.rest = header.total - here;
        Ok(Step::Pass(here))
    }

    fn startup(
        &mut self,
        buf: &[u8],
        session: &mut Session,
        armed: bool,
    ) -> Result<Step, Malformed> {
        if session.awaiting_encryption {
            return Ok(Step::More);
        }
        let Some((packet, len)) = codec::startup(buf)? else {
            return Ok(Step::More);
        };
        match packet {
            Startup::Ssl | Startup::GssEnc => {
                session.awaiting_encryption = true;
                Ok(Step::Encryption(len))
            }
            Startup::Cancel(key) => {
                session.key = Some(key);
                session.raw = Some(Raw::Cancel);
                Ok(Step::Raw)
            }
            Startup::DirectTls => {
                session.raw = Some(Raw::Encrypted);
                Ok(Step::Raw)
            }
            Startup::Session(parameters) => {
                let get = |name: &str| {
                    let found = parameters.iter().find(|(n, _)| n == name);
                    found.map(|(_, value)| value.clone())
                };
                let user = get("user").unwrap_or_default();
                session.facts = Facts {
                    database: get("database").unwrap_or_else(|| user.clone()),
                    application_name: get("application_name").unwrap_or_default(),
                    user,
                };
                self.begun = true;
                if armed {
                    self.pending = Some(Pending {
                        here: len,
                        total: len,
                    });
                    return Ok(Step::Request(Request::Login, len));
                }
                session.expect(Want::Session);
                Ok(Step::Pass(len))
            }
        }
    }

    /// Deals with one message; a request that rules may act on is returned instead.
    fn message(
        &mut self,
        tag: u8,
        body: &[u8],
        session: &mut Session,
        armed: bool,
    ) -> Result<Option<Request>, Malformed> {
        match tag {
            b'S' if session.copy_in => return Ok(None),
            b'S' => {
                session.skipping = false;
                session.expect(Want::Sync);
                return Ok(None);
            }
            b'c' | b'f' => {
                if session.copy_in {
                    session.copy_in = false;
                } else {
                    session.expect(Want::CopyEnd);
                }
                return Ok(None);
            }
            _ if session.skipping => return Ok(None),
            _ => {}
        }
        match tag {
            b'Q' => {
                let text = codec::query(body);
                // Of a string of several statements any may be one, which is looked for where somebody wants to know.
                let several = || armed && memchr::memchr2(b';', b'/', text).is_some();
                let named = match begins_named(text) || several() {
                    true => named(&String::from_utf8_lossy(text), Dialect::Postgres),
                    false => vec![],
                };
                if armed {
                    let sql = Sql::new(text, Dialect::Postgres)
                        .cut(HEADER + body.len() >= HEAD)
                        .running(self.run(&named));
                    self.named = named;
                    return Ok(Some(Request::Simple(sql)));
                }
                self.keep(named);
                session.expect(Want::Query);
            }
            b'F' if armed => return Ok(Some(Request::Function)),
            b'F' => session.expect(Want::Query),
            b'P' => {
                let (name, text) = codec::parse(body)?;
                self.statements
                    .insert(name.into(), Arc::new(Prepared::new(text)));
                session.expect(Want::Parse);
            }
            b'B' => {
                let bind = codec::bind(body)?;
                if self.portals.len() >= PORTALS || session.is_idle() && session.status == b'I' {
                    self.portals.clear();
                }
                let portal = Portal {
                    statement: self.statements.get(bind.statement).cloned(),
                    described: Arc::default(),
                    formats: bind.formats,
                    executed: false,
                };
                self.portals.insert(bind.portal.into(), portal);
                session.expect(Want::Bind);
            }
            b'C' => {
                match codec::object(body)? {
                    Object::Statement(name) => drop(self.statements.remove(name)),
                    Object::Portal(name) => drop(self.portals.remove(name)),
                }
                session.expect(Want::Close);
            }
            b'D' => {
                let described = match codec::object(body)? {
                    Object::Statement(name) => {
                        self.statements.get(name).map(|s| s.described.clone())
                    }
                    Object::Portal(name) => self.portals.get(name).map(|p| p.described.clone()),
                };
                session.expect(Want::Describe(described));
            }
            b'E' => {
                // Fetching more of a portal's rows is not another execution.
                let portal = self.portals.get_mut(codec::execute(body)?);
                let Some(portal) = portal.filter(|p| !p.executed) else {
                    session.expect(Want::Execute);
                    return Ok(None);
                };
                // Without a rule it is looked at only for what it does with names.
                let named = portal.statement.as_ref().map(|s| s.named.clone());
                let named = named.unwrap_or_default();
                if !armed {
                    self.keep(named);
                    session.expect(Want::Execute);
                    return Ok(None);
                }
                portal.executed = true;
                let mut portal = portal.clone();
                let runs = self.run(&named);
                if let (Some(statement), false) = (&portal.statement, runs.is_empty()) {
                    let text = statement.sql.text().into_owned();
                    let sql = Sql::new(text.as_bytes(), Dialect::Postgres).running(runs);
                    portal.statement = Some(Arc::new(Prepared {
                        sql: Arc::new(sql),
                        described: statement.described.clone(),
                        named: vec![],
                    }));
                }
                self.named = named;
                return Ok(Some(Request::Execute(portal)));
            }
            // Flush, Terminate, COPY data, and what belongs to authentication: nothing is answered to these by themselves.
            _ => {}
        }
        Ok(None)
    }

    /// What is run by these, by name.
    fn run(&self, named: &[Named]) -> Vec<Arc<Sql>> {
        let mut runs = vec![];
        for (i, one) in named.iter().enumerate() {
            let Named::Execute(name) = one else { continue };
            // What was prepared in the same string.
            let here = named[..i].iter().rev().find_map(|n| match n {
                Named::Prepare(given, Some(text)) if given == name => Some(text),
                _ => None,
            });
            runs.extend(match here {
                Some(text) => Some(Arc::new(Sql::new(text.as_bytes(), Dialect::Postgres))),
                None => self
                    .statements
                    .get(name.as_bytes())
                    .map(|statement| statement.sql.clone()),
            });
        }
        runs
    }

    /// The names that SQL's own commands give, and take away, are those of the protocol's messages; and of drivers some drop so what they
    /// have prepared by these.
    fn keep(&mut self, named: Vec<Named>) {
        for one in named {
            match one {
                Named::Prepare(name, Some(text)) => {
                    let prepared = Arc::new(Prepared::new(text.as_bytes()));
                    self.statements.insert(name.into_bytes().into(), prepared);
                }
                Named::Deallocate(name) => drop(self.statements.remove(name.as_bytes())),
                Named::DeallocateAll => self.statements.clear(),
                Named::Prepare(_, None) | Named::Execute(_) | Named::Run(_) => {}
            }
        }
    }

    /// Carries out what was decided about the request of the last [`Step::Request`]. With `Some`, these bytes go to the server
    /// in place of the request's; with `None`, the request goes as it is.
    pub fn decide(
        &mut self,
        request: Request,
        verdict: Verdict,
        effects: Option<Box<Effects<Corrupt>>>,
        session: &mut Session,
        cache: &Cache,
    ) -> Option<BytesMut> {
        let Pending { here, total } = self.pending.take()?;
        self.rest = total - here;
        if matches!(request, Request::Login) {
            // One that is refused ends the connection.
            session.expect(Want::Session);
            return None;
        }
        let named = std::mem::take(&mut self.named);
        if matches!(verdict, Verdict::Pass) {
            self.keep(named);
        }
        let command = || {
            let units = request.sql().map(|sql| sql.units(cache));
            units.map_or_else(Command::default, |units| Command::of(units))
        };
        let verdict = match verdict {
            Verdict::Answer(_) if command().copies => Verdict::Deny(Arc::new(no_copy())),
            verdict => verdict,
        };
        let mut replaced = BytesMut::new();
        let simple = !matches!(request, Request::Execute(_));
        let instead = match verdict {
            Verdict::Pass => None,
            Verdict::Deny(error) => {
                if simple {
                    codec::put_query(&mut replaced, DENIED_QUERY);
                } else {
                    codec::put_execute(&mut replaced, DENIED_PORTAL);
                }
                Some(Instead::Error(error))
            }
            Verdict::Abort(error) => {
                if simple {
                    codec::put_query(&mut replaced, DENIED_COMMIT);
                } else {
                    codec::put_parse(&mut replaced, ROLLBACK, DENIED_COMMIT);
                    codec::put_bind(&mut replaced, ROLLBACK, ROLLBACK);
                    codec::put_execute(&mut replaced, ROLLBACK);
                    codec::put_close_statement(&mut replaced, ROLLBACK);
                    codec::put_execute(&mut replaced, DENIED_PORTAL);
                }
                Some(Instead::Error(error))
            }
            Verdict::Answer(rows) => {
                let command = command();
                if let Request::Execute(portal) = &request {
                    codec::put_close_portal(&mut replaced, DENIED_PORTAL);
                    Some(Instead::Extended(rows, command, portal.clone()))
                } else {
                    codec::put_query(&mut replaced, "");
                    Some(Instead::Simple(rows, command))
                }
            }
        };
        let denied = matches!(instead, Some(Instead::Error(_)));
        let replaces = instead.is_some();
        session.push(Expected {
            want: if simple { Want::Query } else { Want::Execute },
            instead: instead.map(Box::new),
            effects,
        });
        // The server will skip to the next Sync, so nothing before that gets an answer.
        session.skipping |= denied && !simple;
        self.discard = replaces;
        replaces.then_some(replaced)
    }
}

/// COPY hands the client over to a protocol of its own, which rows are not.
fn no_copy() -> Error {
    Error::new(
        "ERROR",
        "0A000",
        "response() cannot answer a COPY from or to the client",
        None,
        Some("match it with error(), delay(), drop() or reset() instead"),
    )
}
