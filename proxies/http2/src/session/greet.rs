//! Before the frames: the preface, or an upgrade from HTTP/1.1. The request that asks for it is a request like any other, and will
//! be stream 1; a rule's answer to it is HTTP/1.1's, as from a server that does not grant the upgrade.

use std::time::Duration;

use bytes::Bytes;

use super::stream::Stream;
use super::{End, Mark, Next, Session, Way};
use crate::codec::hpack::Field;
use crate::codec::{Malformed, PREFACE};
use crate::rules::{Action, Http2Rule};
use crate::upgrade::{self, Upgrade};

/// The stream of the request that asked for the upgrade (RFC 7540, section 3.2).
const FIRST: u32 = 1;

impl Session<'_> {
    /// Judges what stands at the front before frames do.
    pub(super) fn greet(&mut self, way: Way, bytes: &[u8]) -> Result<Next, Malformed> {
        if way == Way::Up
            && let Some(length) = self.asking
        {
            return Ok(self.ask(length));
        }
        Ok(match self.hello.next(way, bytes)? {
            Upgrade::More => Next::More,
            Upgrade::Pass(n) => Next::Pass(n),
            Upgrade::Preface => Next::Pass(PREFACE.len()),
            Upgrade::Asked(n) => {
                self.streams.insert(FIRST, Stream::default());
                if !self.armed() {
                    return Ok(Next::Pass(n));
                }
                let fired = self.select(FIRST, &upgrade::fields(bytes));
                if fired.delays.is_empty() {
                    self.asked = Some(fired);
                } else {
                    self.hold(Way::Up, FIRST, fired);
                }
                self.asking = Some(n);
                self.ask(n)
            }
            // The client has said all of it.
            Upgrade::Switched(n) => {
                self.last_client = FIRST;
                self.last_server = FIRST;
                if let Some(stream) = self.streams.get_mut(&FIRST) {
                    stream.server_id = FIRST;
                    stream.done[Way::Up as usize] = true;
                }
                if let Some(fired) = self.asked.take() {
                    self.decide(FIRST, &fired);
                }
                Next::Pass(n)
            }
        })
    }

    /// The request goes on, or is answered, once no delay holds it.
    fn ask(&mut self, length: usize) -> Next {
        let read = self.read;
        let (since, injected) = match self.special(FIRST) {
            Some(special) if special.lane(Way::Up).hold.is_some() => return Next::More,
            Some(special) => (special.read.unwrap_or(read), special.injected),
            None => (read, Duration::ZERO),
        };
        self.asking = None;
        let fate = self
            .special(FIRST)
            .and_then(|s| s.lane_mut(Way::Up).fate.take());
        let fired = fate.or_else(|| self.asked.take());
        let action = fired
            .as_ref()
            .and_then(|f| Http2Rule::of(f.terminal.as_ref()?))
            .map(|rule| rule.action.clone());
        match action {
            Some(
                Action::Error {
                    plain: Some(answer),
                    ..
                }
                | Action::Answer {
                    answer,
                    after: false,
                },
            ) => {
                self.refuse_upgrade(&answer.fields, answer.body.clone());
            }
            Some(Action::Error {
                status,
                plain: None,
            }) => {
                self.refuse_upgrade(&status.trailers_only(), Bytes::new());
            }
            Some(Action::Drop(_)) => self.end = Some(End::Close),
            Some(Action::Reset) => self.end = Some(End::Reset),
            _ => {
                self.asked = fired;
                self.marks.push(Mark {
                    stream: FIRST,
                    since,
                    injected,
                    reply: None,
                });
                return Next::Pass(length);
            }
        }
        self.record_answered(FIRST);
        Next::More
    }

    fn refuse_upgrade(&mut self, fields: &[Field], body: Bytes) {
        let answer = upgrade::answer(fields, &body);
        self.out(Way::Down).extend_from_slice(&answer);
        self.end = Some(End::Close);
    }
}
