//! What goes to the server in place of a request that a rule answers.

use bytes::BytesMut;

use super::{Expected, Injected, Instead, Prepared, Request, Session, Verdict, Want, take_flag};
use crate::answer::returns_rows;
use crate::codec::{self, com};
use crate::errors;
use crate::rules::Error;
use faultbox_engine::Effects;
use faultbox_sql::Cache;

use crate::corrupt::Corrupt;

/// The most characters of a message that a SIGNAL takes in every server (MySQL's MESSAGE_TEXT has 128).
const SIGNAL_TEXT: usize = 128;

/// The statement that makes the server itself raise this error, without having done anything.
fn signal(error: &Error) -> String {
    // Plain characters only: the statement must mean the same in every character set and mode, and in one of them a backslash escapes.
    // The client gets the real text.
    let plain = |c: char| c.is_ascii() && !c.is_ascii_control() && c != '\\';
    let text: String = error
        .message
        .chars()
        .take(SIGNAL_TEXT)
        .map(|c| if plain(c) { c } else { '?' })
        .collect();
    let text = text.replace('\'', "''");
    format!(
        "/* faultbox: a rule denied a statement */ SIGNAL SQLSTATE '{}' SET MYSQL_ERRNO = {}, MESSAGE_TEXT = '{text}'",
        error.sqlstate, error.code
    )
}

impl Session {
    /// Puts what a decision about `request` means in the queue, whose answer begins with packet `seq`. With `Some`, these bytes go to
    /// the server in place of the request.
    pub(super) fn decide(
        &mut self,
        request: &Request,
        id: Option<u32>,
        verdict: Verdict,
        effects: Option<Box<Effects<Corrupt>>>,
        expected: Expected,
        cache: &Cache,
    ) -> Option<BytesMut> {
        let mut out = BytesMut::new();
        let mut before = 0;
        if !matches!(verdict, Verdict::Pass)
            && let Request::Execute(prepared) = request
        {
            before += u8::from(forget_long_data(&mut out, prepared, id));
        }
        let commits = matches!(verdict, Verdict::Abort(_));
        let what = match verdict {
            Verdict::Pass => {
                self.push(Expected {
                    effects,
                    ..expected
                });
                return None;
            }
            Verdict::Deny(error) | Verdict::Abort(error) => {
                if commits || errors::rolls_back(error.code) {
                    // Whatever completion_type says, the real error starts no new transaction and ends no session.
                    codec::put_command(
                        &mut out,
                        com::QUERY,
                        &self.argument("ROLLBACK AND NO CHAIN NO RELEASE"),
                    );
                    before += 1;
                }
                codec::put_command(&mut out, com::QUERY, &self.argument(&signal(&error)));
                Injected::Error(error)
            }
            Verdict::Answer(rows) => {
                codec::put_command(
                    &mut out,
                    com::QUERY,
                    &self.argument("DO 0 /* faultbox: a rule answered a statement */"),
                );
                let returns = request
                    .sql()
                    .is_some_and(|sql| returns_rows(sql.units(cache)));
                match request {
                    Request::Execute(prepared) => Injected::Binary(rows, prepared.clone(), returns),
                    _ => Injected::Text(rows, returns),
                }
            }
        };
        self.push(Expected {
            want: Want::One,
            instead: Some(Box::new(Instead {
                what,
                before,
                seq: 1,
            })),
            effects,
            request: true,
            then: None,
        });
        Some(out)
    }

    /// The argument of a COM_QUERY: without attributes, if the client sends any.
    fn argument(&self, sql: &str) -> Vec<u8> {
        let mut argument = vec![];
        if self.has(codec::caps::QUERY_ATTRIBUTES) {
            // No parameters, in one set of them.
            argument.extend([0, 1]);
        }
        argument.extend(sql.as_bytes());
        argument
    }
}

/// Values that came ahead of an execution belong to it: without it the next one's would be appended to them.
fn forget_long_data(out: &mut BytesMut, prepared: &Prepared, id: Option<u32>) -> bool {
    let (true, Some(id)) = (take_flag(&prepared.long_data), id) else {
        return false;
    };
    codec::put_command(out, com::STMT_RESET, &id.to_le_bytes());
    true
}
