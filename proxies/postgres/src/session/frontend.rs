//! The walk along what the client says: which bytes are a request, and what becomes of them.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::BytesMut;

use super::{Expected, Instead, Portal, Prepared, Raw, Request, Session, Verdict, Want};
use faultbox_engine::Effects;
use faultbox_sql::{Cache, Dialect, Sql};

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
/// Enough of a Query to see "DEALLOCATE PREPARE name;" or "DISCARD ALL": identifiers have at most 63 bytes.
const DEALLOCATE: usize = 96;

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
            b'Q' => header.total.min(HEADER + DEALLOCATE),
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
                self.deallocated(body);
                if armed {
                    return Ok(Some(Request::Simple(Sql::new(
                        codec::query(body),
                        Dialect::Postgres,
                    ))));
                }
                session.expect(Want::Query);
            }
            b'F' if armed => return Ok(Some(Request::Function)),
            b'F' => session.expect(Want::Query),
            b'P' => {
                let (name, text) = codec::parse(body)?;
                let prepared = Prepared {
                    sql: Sql::new(text, Dialect::Postgres),
                    described: Arc::default(),
                };
                self.statements.insert(name.into(), Arc::new(prepared));
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
                match portal.filter(|p| armed && !p.executed) {
                    Some(portal) => {
                        portal.executed = true;
                        return Ok(Some(Request::Execute(portal.clone())));
                    }
                    None => session.expect(Want::Execute),
                }
            }
            // Flush, Terminate, COPY data, and what belongs to authentication: nothing is answered to these by themselves.
            _ => {}
        }
        Ok(None)
    }

    /// The SQL command DEALLOCATE drops prepared statements without a Close: drivers use it, and names would pile up.
    fn deallocated(&mut self, body: &[u8]) {
        if self.statements.is_empty() {
            return;
        }
        let text = codec::query(body).trim_ascii();
        let word = |w: &[u8]| text.len() >= w.len() && text[..w.len()].eq_ignore_ascii_case(w);
        if word(b"DISCARD ALL") || word(b"DEALLOCATE ALL") {
            self.statements.clear();
        } else if word(b"DEALLOCATE") {
            let mut name = text["DEALLOCATE".len()..].trim_ascii();
            if name.len() > 7 && name[..7].eq_ignore_ascii_case(b"PREPARE") {
                name = name[7..].trim_ascii();
            }
            let name = name.strip_suffix(b";").unwrap_or(name).trim_ascii();
            let quoted = name.strip_prefix(b"\"").and_then(|n| n.strip_suffix(b"\""));
            let name = quoted.map_or_else(|| name.to_ascii_lowercase(), <[u8]>::to_vec);
            self.statements.remove(&name[..]);
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
