//! Asking the rules, and carrying out what they say.

use std::sync::Arc;

use bytes::Bytes;
use faultbox_contract::ArmedRule;
use faultbox_contract::rule::Fired;
use serde_json::{Value, json};

use super::frames::is_final;
use super::stream::Pacer;
use super::{Body, Delay, End, Session, Way};
use crate::codec::hpack::Field;
use crate::codec::{self, code};
use crate::rules::{Action, Answer, Flavour, Http2Rule, View};
use crate::status;

/// What becomes of a new request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Pass,
    /// A rule has answered it, or ended more than that.
    Answered,
    /// A delay holds it.
    Held,
}

impl Session<'_> {
    /// Asks every rule about a new request. `end` says that the client has said all of it.
    pub(super) fn judge(&mut self, own: u32, fields: &[Field], end: bool) -> Fate {
        let fired = self.select(own, fields);
        if fired.is_empty() {
            return Fate::Pass;
        }
        if !fired.delays.is_empty() {
            self.hold(Way::Up, own, fired);
            return Fate::Held;
        }
        // What a rule answers depends on whether the client has more to say.
        if let Some(stream) = self.streams.get_mut(&own) {
            stream.done[Way::Up as usize] = end;
        }
        self.decide(own, &fired);
        match self.streams.get_mut(&own) {
            Some(stream) if !stream.ours && self.end.is_none() => {
                stream.done[Way::Up as usize] = false;
                Fate::Pass
            }
            _ => Fate::Answered,
        }
    }

    /// Which rules fire on a new request, and which wait for its messages: that, the stream remembers.
    pub(super) fn select(&mut self, own: u32, fields: &[Field]) -> Fired {
        let view = View::new(fields.to_vec());
        if view.is_own_reflection() {
            return Fired::default();
        }
        let grpc = self.flavour == Flavour::Grpc || view.is_grpc();
        let origin = self.origin;
        let rules = &origin.host.rules;
        let selects = |rule: &ArmedRule, mid: bool| {
            Http2Rule::of(rule).is_some_and(|r| r.messages.is_some() == mid && r.matches(&view))
                && origin.admits(rule)
        };
        let fired = rules.evaluate_with(
            |rule| selects(rule, false),
            &*origin.host.sink,
            || shown(&view, grpc),
            |rule| outcome(rule, grpc),
        );
        let watch: Vec<(u64, u64)> = rules
            .load()
            .iter()
            .filter(|rule| selects(rule, true))
            .filter_map(|rule| Some((rule.id, Http2Rule::of(rule)?.messages?)))
            .collect();
        if !fired.is_empty() || !watch.is_empty() {
            let read = self.read;
            if let Some(stream) = self.streams.get_mut(&own) {
                let special = stream.special();
                special.view = view;
                special.grpc = grpc;
                special.read = Some(read);
                special.watch = watch;
            }
        }
        fired
    }

    /// Asks the rules that wait for this message: so many have passed in its direction.
    pub(super) fn judge_message(&mut self, way: Way, own: u32, passed: u64) {
        let Some(special) = self.special(own) else {
            return;
        };
        let mut asked = vec![];
        special.watch.retain(|(id, after)| {
            let now = *after == passed;
            if now {
                asked.push(*id);
            }
            !now
        });
        let (view, grpc) = (special.view.clone(), special.grpc);
        let fired = self.origin.host.rules.evaluate_with(
            |rule| asked.contains(&rule.id),
            &*self.origin.host.sink,
            || {
                let mut fields = shown(&view, grpc);
                fields["messages"] = passed.into();
                fields
            },
            |rule| outcome(rule, grpc),
        );
        if !fired.delays.is_empty() {
            self.hold(way, own, fired);
        } else if !fired.is_empty() {
            self.decide(own, &fired);
        }
    }

    /// Delays hold this direction of the stream; what else has fired comes after them.
    pub(super) fn hold(&mut self, way: Way, own: u32, fired: Fired) {
        let token = self.next_token;
        self.next_token += 1;
        self.delays.push(Delay {
            token,
            rules: fired.delays.clone(),
            since: self.read,
        });
        self.holds.insert(token, (own, way));
        if let Some(special) = self.special(own) {
            let lane = special.lane_mut(way);
            lane.hold = Some(token);
            lane.fate = Some(fired);
        }
    }

    /// Carries out what has fired, delays apart.
    pub(super) fn decide(&mut self, own: u32, fired: &Fired) {
        let Some(special) = self.special(own) else {
            return;
        };
        let throttles: Vec<Arc<ArmedRule>> = fired
            .modifiers
            .iter()
            .filter(|r| r.rule.int_of("rate").is_some())
            .cloned()
            .collect();
        if !throttles.is_empty() {
            match &mut special.pacer {
                Some(pacer) => pacer.add(throttles),
                None => special.pacer = Some(Pacer::new(throttles)),
            }
        }
        let actions = fired.modifiers.iter().chain(&fired.terminal);
        for action in actions.filter_map(|r| Some(Http2Rule::of(r)?.action.clone())) {
            let Some(special) = self.special(own) else {
                return;
            };
            match action {
                Action::Engine => {}
                Action::Corrupt(offset) => special.corrupt.push(offset),
                Action::Truncate(bytes) => special.truncate = Some(bytes),
                Action::Answer {
                    answer,
                    after: true,
                } => special.replace = Some(answer),
                Action::Answer { answer, .. } => self.answer(own, &answer),
                Action::Error { status, plain } => {
                    let replied = self.streams.get(&own).is_some_and(|s| s.replied);
                    let grpc = self.special(own).is_some_and(|s| s.grpc);
                    match plain {
                        Some(answer) if !grpc && !replied => self.answer(own, &answer),
                        Some(_) if !grpc => self.drop_stream(own, code::INTERNAL_ERROR),
                        _ if replied => self.last_words(own, &status.trailers(), Bytes::new()),
                        _ => self.last_words(own, &status.trailers_only(), Bytes::new()),
                    }
                }
                Action::Drop(code) => self.drop_stream(own, code),
                Action::Reset => {
                    self.record_answered(own);
                    self.end = Some(End::Reset);
                    return;
                }
            }
        }
    }

    /// Is this the reply that a rule replaces?
    pub(super) fn answers(&mut self, own: u32, fields: &[Field]) -> bool {
        is_final(fields) && self.special(own).is_some_and(|s| s.replace.is_some())
    }

    /// The server has handled the request: now comes the rule's answer instead of its own.
    pub(super) fn replace(&mut self, own: u32) {
        if let Some(answer) = self.special(own).and_then(|s| s.replace.take()) {
            self.answer(own, &answer);
        }
    }

    fn answer(&mut self, own: u32, answer: &Answer) {
        let head = self
            .special(own)
            .is_some_and(|s| s.view.get(":method") == b"HEAD");
        let body = if head {
            Bytes::new()
        } else {
            answer.body.clone()
        };
        self.last_words(own, &answer.fields, body);
    }

    /// Says the last that the client hears of this stream, and tells the server that nobody listens any more.
    fn last_words(&mut self, own: u32, fields: &[Field], body: Bytes) {
        self.record_answered(own);
        let said_all = self.said_all(own);
        self.put_fields(Way::Down, own, fields, body.is_empty(), None);
        if !body.is_empty() {
            self.bodies.push_back(Body {
                stream: own,
                rest: body,
                sent: 0,
                reset: !said_all,
            });
        } else if !said_all {
            // RFC 9113, section 8.1: the answer is complete, the rest of the request is not wanted.
            codec::put_rst_stream(&mut self.side_mut(Way::Down).late, own, code::NO_ERROR);
        }
        self.cut(own);
    }

    fn drop_stream(&mut self, own: u32, code: u32) {
        self.record_answered(own);
        codec::put_rst_stream(&mut self.side_mut(Way::Down).late, own, code);
        self.cut(own);
    }

    /// Has the client said all of its request?
    fn said_all(&mut self, own: u32) -> bool {
        self.streams.get(&own).is_some_and(|s| {
            s.done[Way::Up as usize]
                || s.special.as_ref().is_some_and(|special| {
                    use super::stream::Item::{Block, Data};
                    matches!(
                        special.lane(Way::Up).queue.back(),
                        Some(Block { end: true, .. } | Data { end: true, .. })
                    )
                })
        })
    }

    /// Ends a stream at the server, if it knows of it, and keeps back from now on what either side still says in it.
    pub(super) fn cut(&mut self, own: u32) {
        let said_all = self.said_all(own);
        let Some(stream) = self.streams.get_mut(&own) else {
            return;
        };
        let id = stream.server_id;
        let over = stream.done == [true; 2];
        stream.done[Way::Up as usize] |= said_all;
        if id == 0 {
            // The request's block never reaches the server.
            self.withhold(Way::Up);
        } else if !over {
            codec::put_rst_stream(&mut self.side_mut(Way::Up).late, id, code::CANCEL);
        }
        self.discard(own);
    }

    /// From here on the blocks of this direction are written anew: one is kept back, or comes in another order.
    pub(super) fn withhold(&mut self, way: Way) {
        self.side_mut(way).recode = true;
        self.touched = true;
    }

    /// A request that a rule answers counts, less what the rule itself has added.
    pub(super) fn record_answered(&mut self, own: u32) {
        let meter = &self.origin.host.meter;
        if let Some(stream) = self.streams.get_mut(&own)
            && !stream.replied
            && let Some(special) = &stream.special
        {
            let mut added = stream.added;
            if stream.server_id == 0
                && let Some(read) = special.read
            {
                added.way(read, special.injected);
            }
            added.record(meter);
        }
    }

    /// Sends of the rules' bodies what the client's windows allow.
    pub(super) fn pump_bodies(&mut self) {
        for _ in 0..self.bodies.len() {
            let Some(mut body) = self.bodies.pop_front() else {
                return;
            };
            let Some(stream) = self.streams.get(&body.stream) else {
                continue;
            };
            let allowed = self
                .window
                .min(self.initial_window + stream.credit - body.sent);
            let n = usize::try_from(allowed).unwrap_or(0).min(body.rest.len());
            let wanted = !stream.done[Way::Up as usize];
            if n > 0 {
                let chunk = body.rest.split_to(n);
                let end = body.rest.is_empty();
                let late = &mut self.side_mut(Way::Down).late;
                codec::put_data(late, body.stream, &chunk, end);
                if end && body.reset && wanted {
                    codec::put_rst_stream(late, body.stream, code::NO_ERROR);
                }
                self.window -= n as i64;
                self.debt += n;
                body.sent += n as i64;
            }
            if !body.rest.is_empty() {
                self.bodies.push_back(body);
            }
        }
    }
}

/// A request as events show it.
fn shown(view: &View, grpc: bool) -> Value {
    let path = String::from_utf8_lossy(view.path()).into_owned();
    if grpc {
        json!({"method": path})
    } else {
        json!({"method": view.text(":method"), "path": path})
    }
}

/// What a rule makes of a request, for events.
fn outcome(rule: &ArmedRule, grpc: bool) -> Value {
    match Http2Rule::of(rule).map(|r| &r.action) {
        Some(Action::Error {
            plain: Some(answer),
            ..
        }) if !grpc => json!({"status": answer.status}),
        Some(Action::Error { status, .. }) => json!({"code": status::name(status.code)}),
        Some(Action::Answer { answer, .. }) => json!({"status": answer.status}),
        Some(Action::Drop(code)) => {
            json!({"rst": codec::ERROR_CODES.get(*code as usize).copied().unwrap_or_default()})
        }
        _ => Value::Null,
    }
}
