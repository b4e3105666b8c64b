//! The walk along what the server says: which answer each message belongs to, and what the client gets of it.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;

use super::{Instead, Raw, Session, Want};
use crate::codec::{self, HEAD, HEADER, Malformed, Side};

/// What the walk along a server's bytes has come to.
#[derive(Debug)]
pub enum Reply {
    /// More bytes are needed to go on.
    More,
    /// These many bytes go on unchanged.
    Pass(usize),
    /// These many bytes go on, under the effects of the answer at the front of the queue.
    Affected(usize),
    /// These many bytes are replaced.
    Replace(usize, Bytes),
    /// This is sent, and the connection ends with it.
    Last(Bytes),
    /// Everything goes on unseen from here.
    Raw,
}

/// The walk along what the server says.
#[derive(Debug, Default)]
pub struct Backend {
    /// What is left of a message whose beginning has been dealt with.
    rest: usize,
    rest_affected: bool,
    rest_dropped: bool,
    /// The answer that a message completes leaves the queue when the message's last byte has been dealt with.
    completes: bool,
}

impl Backend {
    /// Looks at the front of `buf`.
    ///
    /// # Errors
    /// Bytes that are not protocol 3, or an answer to nothing that was asked; the caller goes on raw.
    pub fn next(&mut self, buf: &[u8], session: &mut Session) -> Result<Reply, Malformed> {
        if session.raw.is_some() && !(self.rest_dropped && self.rest > 0) {
            return Ok(Reply::Raw);
        }
        if self.rest == 0 && self.completes {
            self.completes = false;
            session.pop();
        }
        if buf.is_empty() {
            return Ok(Reply::More);
        }
        if self.rest > 0 {
            let n = self.rest.min(buf.len());
            self.rest -= n;
            return Ok(match (self.rest_dropped, self.rest_affected) {
                (true, _) => Reply::Replace(n, Bytes::new()),
                (_, true) => Reply::Affected(n),
                _ => Reply::Pass(n),
            });
        }
        if session.awaiting_encryption {
            return self.encryption(buf[0], session);
        }
        let Some(header) = codec::header(buf, Side::Backend)? else {
            return Ok(Reply::More);
        };
        let need = match header.tag {
            b'E' | b'T' | b'K' | b'S' | b'Z' | b'3' | b'I' => header.total.min(HEAD),
            _ => HEADER,
        };
        let Some(head) = buf.get(..need) else {
            return Ok(Reply::More);
        };
        let here = header.total.min(buf.len());
        self.rest = header.total - here;
        let whole = (need == header.total).then(|| &head[HEADER..]);
        self.message(header.tag, whole, here, session)
    }

    /// The server's one byte in answer to an SSLRequest or a GSSENCRequest.
    fn encryption(&mut self, answer: u8, session: &mut Session) -> Result<Reply, Malformed> {
        match answer {
            b'N' => {
                session.awaiting_encryption = false;
                Ok(Reply::Pass(1))
            }
            b'S' | b'G' => {
                session.awaiting_encryption = false;
                session.raw = Some(Raw::Encrypted);
                Ok(Reply::Raw)
            }
            // A server that is full or in the middle of starting answers with an ErrorResponse and closes.
            b'E' => {
                session.awaiting_encryption = false;
                session.raw = Some(Raw::Cancel);
                Ok(Reply::Raw)
            }
            other => Err(Malformed(format!(
                "0x{other:02x} in answer to an encryption request"
            ))),
        }
    }

    fn message(
        &mut self,
        tag: u8,
        body: Option<&[u8]>,
        here: usize,
        session: &mut Session,
    ) -> Result<Reply, Malformed> {
        (self.rest_affected, self.rest_dropped) = (false, false);
        // What may come at any time: notices, notifications, parameters.
        match (tag, body) {
            (b'S', Some(body)) => {
                let (name, value) = codec::parameter_status(body)?;
                if name == b"application_name" {
                    session.facts.application_name = String::from_utf8_lossy(value).into_owned();
                }
                return Ok(Reply::Pass(here));
            }
            (b'A' | b'N' | b'S', _) => return Ok(Reply::Pass(here)),
            _ => {}
        }
        session.drop_copy_ends();
        let Some(front) = session.queue.front() else {
            // What the server says before it closes an idle session (57P01, idle timeouts).
            return match tag {
                b'E' => Ok(Reply::Pass(here)),
                _ => Err(Malformed(format!(
                    "a message '{}' that answers nothing that was asked",
                    tag as char
                ))),
            };
        };
        let affected = front.effects.is_some();
        let reply = match (front.instead.as_deref(), tag) {
            // On the way to the error that follows, the ROLLBACK that stands for a denied COMMIT.
            (Some(Instead::Error(_)), b'1' | b'2' | b'3' | b'C')
                if matches!(front.want, Want::Execute) =>
            {
                self.rest_dropped = true;
                return Ok(Reply::Replace(here, Bytes::new()));
            }
            // What was denied has failed, or was rolled back.
            (Some(Instead::Error(error)), b'E' | b'C') => {
                self.rest_dropped = true;
                let bytes = error.message.clone();
                if error.fatal {
                    return Ok(Reply::Last(bytes));
                }
                Some(bytes)
            }
            (Some(Instead::Simple(rows, command)), b'I') => {
                self.rest_dropped = true;
                Some(rows.simple(command).freeze())
            }
            (Some(Instead::Extended(rows, command, portal)), b'3') => {
                self.rest_dropped = true;
                let columns = portal.columns().filter(|c| !c.is_empty());
                Some(rows.extended(command, columns.as_deref()).freeze())
            }
            _ => None,
        };
        let answered = reply.is_some();
        self.complete(tag, body, session, answered)?;
        self.rest_affected = affected && !answered;
        Ok(match reply {
            Some(bytes) => Reply::Replace(here, bytes),
            None if affected => Reply::Affected(here),
            None => Reply::Pass(here),
        })
    }

    /// Keeps the queue: does this message belong to the answer at its front, and complete it?
    fn complete(
        &mut self,
        tag: u8,
        body: Option<&[u8]>,
        session: &mut Session,
        answered: bool,
    ) -> Result<(), Malformed> {
        let Some(front) = session.queue.front() else {
            return Ok(());
        };
        let fits = match (&front.want, tag) {
            (Want::Session, b'K') => {
                session.key = body.map(Into::into);
                return Ok(());
            }
            (Want::Session, b'Z') | (Want::Query | Want::Sync, b'Z') => {
                session.copy_in = false;
                session.status = body.and_then(|b| b.first()).copied().unwrap_or_default();
                true
            }
            (Want::Session, b'R' | b'v' | b'E') => return Ok(()),
            (Want::Query, b'G' | b'W') => {
                self.copy_in(session);
                return Ok(());
            }
            (Want::Query, b'C' | b'D' | b'T' | b'I' | b'E' | b'H' | b'd' | b'c' | b'V') => {
                return Ok(());
            }
            // A commit that fails (deferred constraints) answers to the Sync.
            (Want::Sync, b'E') => return Ok(()),
            (Want::Parse, b'1') | (Want::Bind, b'2') | (Want::Close, b'3') => true,
            (Want::Describe(_), b't') => return Ok(()),
            (Want::Describe(described), b'T' | b'n') => {
                let columns = match (tag, body) {
                    (b'T', Some(body)) => Some(codec::row_description(body)?),
                    (b'T', None) => None,
                    _ => Some(vec![]),
                };
                if let Some(described) = described {
                    *described.lock().unwrap_or_else(PoisonError::into_inner) =
                        columns.map(Arc::new);
                }
                true
            }
            (Want::Execute, b'C' | b'I' | b's') => {
                session.copy_in = false;
                true
            }
            (Want::Execute, b'3') => answered,
            (Want::Execute, b'G' | b'W') => {
                self.copy_in(session);
                return Ok(());
            }
            (Want::Execute, b'D' | b'H' | b'd' | b'c') => return Ok(()),
            (Want::Parse | Want::Bind | Want::Close | Want::Describe(_) | Want::Execute, b'E') => {
                self.failed(session);
                return Ok(());
            }
            _ => false,
        };
        if !fits {
            return Err(Malformed(format!(
                "a message '{}' where the answer to {:?} was due",
                tag as char, front.want
            )));
        }
        // With its last byte the answer leaves the queue; until then its effects still apply.
        self.completes = true;
        Ok(())
    }

    /// A message of the extended protocol has failed: nothing up to the next Sync gets an answer.
    fn failed(&mut self, session: &mut Session) {
        session.copy_in = false;
        let sync = session
            .queue
            .iter()
            .position(|e| matches!(e.want, Want::Sync));
        // The one at the front is completed by this very message.
        let keep = sync.unwrap_or(session.queue.len());
        let skipped = session.queue.drain(1.min(keep)..keep);
        session.done += skipped.filter(|e| e.is_request()).count() as u64;
        session.skipping |= sync.is_none();
        self.completes = true;
    }

    /// The server takes COPY data from here on: it ignores the Syncs that are already under way.
    fn copy_in(&mut self, session: &mut Session) {
        let end = session
            .queue
            .iter()
            .position(|e| matches!(e.want, Want::CopyEnd));
        session.copy_in = end.is_none();
        let mut i = 0..end.unwrap_or(usize::MAX);
        session
            .queue
            .retain(|e| i.next().is_none() || !matches!(e.want, Want::Sync));
    }
}
