//! The way of frames through a stream that rules have to do with: delays hold them, throttles pace them.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::frames::is_final;
use super::stream::{Item, Special};
use super::{Mark, Session, Way};
use crate::codec::{self, code};

impl Session<'_> {
    pub(super) fn special(&mut self, own: u32) -> Option<&mut Special> {
        self.streams.get_mut(&own)?.special.as_deref_mut()
    }

    /// A frame of a stream that rules have to do with.
    pub(super) fn receive(&mut self, way: Way, own: u32, item: Item) {
        // A client that gives up is not kept waiting, and the server not kept working.
        if matches!((&item, way), (Item::Reset(_), Way::Up)) {
            return self.advance(way, own, item);
        }
        let Some(special) = self.special(own) else {
            return;
        };
        let lane = special.lane_mut(way);
        if lane.hold.is_none() && lane.queue.is_empty() {
            return self.advance(way, own, item);
        }
        let weight = item.weight();
        lane.queue.push_back(item);
        self.hold_weight(way, weight);
    }

    fn hold_weight(&mut self, way: Way, weight: usize) {
        let side = self.side_mut(way);
        side.held += weight;
        side.waiting += 1;
        self.touched = true;
    }

    fn free_weight(&mut self, way: Way, weight: usize) {
        let side = self.side_mut(way);
        side.held -= weight;
        side.waiting -= 1;
    }

    /// A delay is over: what it held goes on, or meets what has fired with it.
    pub fn release(&mut self, token: u64, injected: Duration) {
        let Some((own, way)) = self.holds.remove(&token) else {
            return;
        };
        self.read = Instant::now();
        let Some(special) = self.special(own) else {
            return;
        };
        special.injected += injected;
        let lane = special.lane_mut(way);
        lane.hold = None;
        if self.asking.is_some() {
            // The request for an upgrade: who feeds the session next sees to it.
            return;
        }
        let Some(special) = self.special(own) else {
            return;
        };
        let fate = special.lane_mut(way).fate.take();
        if let Some(fired) = fate {
            self.decide(own, &fired);
        }
        while self.end.is_none() {
            let Some(special) = self.special(own) else {
                break;
            };
            let lane = special.lane_mut(way);
            if lane.hold.is_some() {
                break;
            }
            let Some(item) = lane.queue.pop_front() else {
                break;
            };
            self.free_weight(way, item.weight());
            self.advance(way, own, item);
        }
        self.settle();
    }

    /// A frame that nothing holds.
    fn advance(&mut self, way: Way, own: u32, item: Item) {
        match item {
            Item::Block {
                fields,
                priority,
                end,
            } => {
                if way == Way::Down && self.answers(own, &fields) {
                    return self.replace(own);
                }
                if way == Way::Up && self.streams.get(&own).is_some_and(|s| s.server_id == 0) {
                    self.open(own);
                    if let Some(special) = self.special(own) {
                        let (since, injected) = (special.read, special.injected);
                        let since = since.unwrap_or_else(Instant::now);
                        self.marks.push(Mark {
                            stream: own,
                            since,
                            injected,
                            reply: None,
                        });
                    }
                }
                let block = Item::Block {
                    fields,
                    priority,
                    end,
                };
                self.pace_or_put(way, own, block);
            }
            Item::Data { content, end } => self.messages(way, own, content, end),
            item => self.pace_or_put(way, own, item),
        }
    }

    /// Walks over DATA message by message, as far as rules wait for one.
    fn messages(&mut self, way: Way, own: u32, mut content: Bytes, end: bool) {
        loop {
            let Some(special) = self.special(own) else {
                // A rule has ended the stream meanwhile.
                return self.credit(way, content.len());
            };
            let grpc = special.grpc;
            let lane = special.lane_mut(way);
            if !content.is_empty() && lane.messages.at_start() {
                let passed = lane.messages.begun;
                if special.watch.iter().any(|(_, n)| *n == passed) {
                    self.judge_message(way, own, passed);
                    if self.end.is_some() {
                        return;
                    }
                    let Some(special) = self.special(own) else {
                        return self.credit(way, content.len());
                    };
                    let lane = special.lane_mut(way);
                    if lane.hold.is_some() {
                        let weight = content.len();
                        lane.queue.push_front(Item::Data { content, end });
                        return self.hold_weight(way, weight);
                    }
                }
            }
            let Some(special) = self.special(own) else {
                return;
            };
            let (n, payload) = special.lane_mut(way).messages.walk(&content, grpc);
            let mut piece = content.split_to(n);
            if way == Way::Down {
                piece = invert(special, piece, payload);
            }
            let last = content.is_empty();
            self.emit(way, own, piece, end && last);
            if last {
                return;
            }
        }
    }

    /// Lets DATA go, as far as it is not to be cut.
    fn emit(&mut self, way: Way, own: u32, mut piece: Bytes, end: bool) {
        let mut cut = None;
        if way == Way::Down
            && let Some(special) = self.special(own)
        {
            if special.cut {
                return self.credit(way, piece.len());
            }
            if let Some(left) = &mut special.truncate {
                let keep = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(piece.len());
                *left -= keep as u64;
                if keep < piece.len() {
                    special.cut = true;
                    cut = Some(piece.len() - keep);
                    piece.truncate(keep);
                }
            }
        }
        if !piece.is_empty() || end {
            let item = Item::Data {
                content: piece,
                end: end && cut.is_none(),
            };
            self.pace_or_put(way, own, item);
        }
        if let Some(rest) = cut {
            self.credit(way, rest);
            self.pace_or_put(way, own, Item::Reset(code::INTERNAL_ERROR));
        }
    }

    /// A reply that is throttled waits for its time; heads that come before any of its DATA do not.
    fn pace_or_put(&mut self, way: Way, own: u32, item: Item) {
        if way == Way::Down
            && let Some(special) = self.special(own)
            && special.pacer.is_some()
        {
            let waits = !special.lane(way).paced.is_empty();
            if waits || matches!(item, Item::Data { .. }) {
                let weight = item.weight();
                special.lane_mut(way).paced.push_back(item);
                self.hold_weight(way, weight);
                if !self.pacing.contains(&own) {
                    self.pacing.push(own);
                    self.pace(own, Instant::now());
                }
                return;
            }
        }
        self.put(way, own, item);
    }

    /// When throttled replies are to be looked at again.
    pub fn next_tick(&mut self, now: Instant) -> Option<Instant> {
        let pacing = std::mem::take(&mut self.pacing);
        let next = pacing
            .iter()
            .filter_map(|own| Some(self.special(*own)?.pacer.as_ref()?.next(now)))
            .min();
        self.pacing = pacing;
        next
    }

    /// Lets throttled replies go on as far as it is time.
    pub fn tick(&mut self, now: Instant) {
        self.read = now;
        for own in std::mem::take(&mut self.pacing) {
            self.pacing.push(own);
            self.pace(own, now);
        }
        self.settle();
    }

    fn pace(&mut self, own: u32, now: Instant) {
        while let Some(special) = self.special(own) {
            let Some(pacer) = &mut special.pacer else {
                break;
            };
            let room = pacer.allowance(now).unwrap_or(usize::MAX);
            let paced = &mut special.lane_mut(Way::Down).paced;
            let Some(front) = paced.front() else {
                break;
            };
            let size = front.weight();
            if size > 0 && room == 0 {
                return;
            }
            let Some(mut item) = paced.pop_front() else {
                break;
            };
            let mut rest = None;
            if let Item::Data { content, end } = &mut item
                && size > room
            {
                let more = Item::Data {
                    content: content.split_off(room),
                    end: std::mem::take(end),
                };
                rest = Some(more.weight());
                paced.push_front(more);
            }
            if let Some(pacer) = &mut special.pacer {
                pacer.spend(size.min(room), now);
            }
            self.free_weight(Way::Down, size);
            if let Some(weight) = rest {
                self.hold_weight(Way::Down, weight);
            }
            self.put(Way::Down, own, item);
        }
        self.pacing.retain(|p| *p != own);
    }

    /// Writes a frame.
    fn put(&mut self, way: Way, own: u32, item: Item) {
        match item {
            Item::Block {
                fields,
                priority,
                end,
            } => {
                self.put_fields(way, own, &fields, end, priority);
                if way == Way::Down && is_final(&fields) {
                    self.replied(own);
                }
                if end {
                    self.done(way, own);
                }
            }
            Item::Data { content, end } => {
                let id = self.number(way, own);
                codec::put_data(&mut self.side_mut(way).late, id, &content, end);
                if end {
                    self.done(way, own);
                }
            }
            Item::Window(more) => {
                let id = self.number(way, own);
                codec::put_window_update(&mut self.side_mut(way).late, id, more as usize);
            }
            Item::Reset(code) if way == Way::Up => {
                let id = self.number(way, own);
                if id != 0 {
                    codec::put_rst_stream(&mut self.side_mut(way).late, id, code);
                }
                self.note_unanswered(own);
                self.discard(own);
            }
            Item::Reset(code) => {
                codec::put_rst_stream(&mut self.side_mut(way).late, own, code);
                self.note_unanswered(own);
                // If it is a rule that cuts the reply, the server does not know yet.
                if self.special(own).is_some_and(|s| s.cut) {
                    self.cut(own);
                } else {
                    self.discard(own);
                }
            }
        }
    }

    /// Drops all that waits in a stream, and keeps back from now on what either side still says in it.
    pub(super) fn discard(&mut self, own: u32) {
        let Some(stream) = self.streams.get_mut(&own) else {
            return;
        };
        let special = stream.special.take();
        if !stream.ours {
            stream.ours = true;
            self.ended.push_back(own);
        }
        self.touched = true;
        if let Some(mut special) = special {
            for way in [Way::Up, Way::Down] {
                let lane = special.lane_mut(way);
                if let Some(token) = lane.hold.take() {
                    self.holds.remove(&token);
                }
                let items: Vec<Item> = lane.queue.drain(..).chain(lane.paced.drain(..)).collect();
                for item in items {
                    self.free_weight(way, item.weight());
                    self.credit(way, item.weight());
                }
            }
        }
        self.pacing.retain(|p| *p != own);
        self.trim();
    }
}

/// Inverts the bytes that corrupt rules name; the last `payload` bytes of the piece count.
fn invert(special: &mut Special, piece: Bytes, payload: usize) -> Bytes {
    if special.corrupt.is_empty() {
        return piece;
    }
    let lead = piece.len() - payload;
    let mut bytes = Vec::from(piece);
    special.corrupt.retain_mut(|offset| {
        match usize::try_from(*offset).ok().filter(|o| *o < payload) {
            Some(here) => {
                bytes[lead + here] ^= 0xff;
                false
            }
            None => {
                *offset -= payload as u64;
                true
            }
        }
    });
    bytes.into()
}
