//! One stream, and what rules have made of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use faultbox_contract::ArmedRule;
use faultbox_contract::rule::Fired;
use faultbox_engine::Added;

use super::Way;
use crate::codec::hpack::Field;
use crate::rules::{Answer, View};

/// A stream that the client has opened.
#[derive(Debug, Default)]
pub struct Stream {
    /// Its number at the server; 0 while the server has not heard of it. It differs from the client's if a later stream has overtaken
    /// this one: numbers must grow (RFC 9113, section 5.1.1).
    pub server_id: u32,
    /// Has the source's last frame gone by, each way?
    pub done: [bool; 2],
    /// Has a rule ended it? What either side still says is kept from the other.
    pub ours: bool,
    /// Has the reply's head, or its replacement, gone to the client?
    pub replied: bool,
    /// What WINDOW_UPDATEs for this stream the client has sent.
    pub credit: i64,
    /// What the way to the server has cost.
    pub added: Added,
    /// Set if rules have anything to do with it.
    pub special: Option<Box<Special>>,
}

impl Stream {
    /// The rules' part of it, made on first use.
    pub fn special(&mut self) -> &mut Special {
        self.special.get_or_insert_default()
    }

    /// Does anything wait in this direction?
    pub fn waits(&self, way: Way) -> bool {
        self.special.as_ref().is_some_and(|s| s.lane(way).waits())
    }
}

/// What rules need to know of a stream, and what waits in it.
#[derive(Debug, Default)]
pub struct Special {
    /// The request's fields.
    pub view: View,
    /// Is it gRPC?
    pub grpc: bool,
    /// When the request was read.
    pub read: Option<Instant>,
    /// What delays have added to the request.
    pub injected: Duration,
    /// Rules that act in mid-stream: their ids, and after how many messages.
    pub watch: Vec<(u64, u64)>,
    /// Replaces the server's answer.
    pub replace: Option<Arc<Answer>>,
    /// Cut the reply's DATA after so many more bytes.
    pub truncate: Option<u64>,
    /// Has the reply been cut, with the end of it still waiting?
    pub cut: bool,
    /// Offsets into the reply's payload still to come, to be inverted.
    pub corrupt: Vec<u64>,
    /// Limits the rate of the reply.
    pub pacer: Option<Pacer>,
    lanes: [Lane; 2],
}

impl Special {
    /// One direction.
    pub fn lane(&self, way: Way) -> &Lane {
        &self.lanes[way as usize]
    }

    /// One direction.
    pub fn lane_mut(&mut self, way: Way) -> &mut Lane {
        &mut self.lanes[way as usize]
    }
}

/// One direction of a stream.
#[derive(Debug, Default)]
pub struct Lane {
    /// The delay that holds it.
    pub hold: Option<u64>,
    /// What has fired, to be carried out when the delay is over.
    pub fate: Option<Fired>,
    /// What a delay holds, oldest first.
    pub queue: VecDeque<Item>,
    /// What a throttle holds, oldest first.
    pub paced: VecDeque<Item>,
    /// Where its messages begin.
    pub messages: Messages,
}

impl Lane {
    /// Does anything wait here?
    pub fn waits(&self) -> bool {
        self.hold.is_some() || !self.queue.is_empty() || !self.paced.is_empty()
    }
}

/// A frame that waits.
#[derive(Debug)]
pub enum Item {
    /// A header block, decoded: by the time it goes on, the tables have moved on.
    Block {
        /// Its fields.
        fields: Vec<Field>,
        /// Dependency and weight.
        priority: Option<[u8; 5]>,
        /// Does the stream end with it?
        end: bool,
    },
    /// DATA without its padding.
    Data {
        /// The content.
        content: Bytes,
        /// Does the stream end with it?
        end: bool,
    },
    /// RST_STREAM.
    Reset(u32),
    /// WINDOW_UPDATE.
    Window(u32),
}

impl Item {
    /// What it takes of flow control windows, and of memory.
    pub fn weight(&self) -> usize {
        match self {
            Item::Data { content, .. } => content.len(),
            _ => 0,
        }
    }
}

/// Finds the messages in a direction's DATA: gRPC's length-prefixed ones; elsewhere every frame counts as one.
#[derive(Debug, Default)]
pub struct Messages {
    /// How many have begun.
    pub begun: u64,
    prefix: [u8; 5],
    have: usize,
    left: u64,
}

impl Messages {
    /// Does the next byte begin a message?
    pub fn at_start(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    /// Walks over `content` up to the end of the current message at most: how many bytes that is, and how many of these, at the end,
    /// are payload.
    pub fn walk(&mut self, content: &[u8], grpc: bool) -> (usize, usize) {
        if content.is_empty() {
            return (0, 0);
        }
        if self.at_start() {
            self.begun += 1;
        }
        if !grpc {
            return (content.len(), content.len());
        }
        let mut lead = 0;
        if self.left == 0 {
            lead = content.len().min(5 - self.have);
            self.prefix[self.have..self.have + lead].copy_from_slice(&content[..lead]);
            self.have += lead;
            if self.have < 5 {
                return (lead, 0);
            }
            let [_, length @ ..] = self.prefix;
            self.left = u32::from_be_bytes(length).into();
        }
        let payload = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(content.len() - lead);
        self.left -= payload as u64;
        if self.left == 0 {
            self.have = 0;
        }
        (lead + payload, payload)
    }
}

/// How often a throttled stream sends: small enough to look smooth, large enough not to burn the CPU.
const PACE: Duration = Duration::from_millis(20);

/// A limit on the rate of one reply.
#[derive(Debug)]
pub struct Pacer {
    rules: Vec<Arc<ArmedRule>>,
    due: Instant,
}

impl Pacer {
    /// Limits by the slowest of these rules.
    pub fn new(rules: Vec<Arc<ArmedRule>>) -> Pacer {
        Pacer {
            rules,
            due: Instant::now(),
        }
    }

    /// Adds rules that fired later.
    pub fn add(&mut self, more: Vec<Arc<ArmedRule>>) {
        self.rules.extend(more);
    }

    /// How many bytes may go now; `None` without a limit, because every rule has been lifted.
    pub fn allowance(&mut self, now: Instant) -> Option<usize> {
        self.rules.retain(|r| !r.is_lifted());
        let rate = self.rate()?;
        if self.due > now {
            return Some(0);
        }
        let chunk = u64::try_from(u128::from(rate) * PACE.as_nanos() / 1_000_000_000);
        Some(usize::try_from(chunk.unwrap_or(u64::MAX)).map_or(usize::MAX, |n| n.max(1)))
    }

    /// So many bytes have gone.
    pub fn spend(&mut self, bytes: usize, now: Instant) {
        if let Some(rate) = self.rate() {
            let cost = (bytes as u128 * 1_000_000_000).div_ceil(u128::from(rate));
            let cost = Duration::from_nanos(u64::try_from(cost).unwrap_or(u64::MAX));
            let from = self.due.max(now.checked_sub(PACE).unwrap_or(now));
            self.due = from.checked_add(cost).unwrap_or(from);
        }
    }

    /// When to ask again: a rule that is lifted is noticed by then.
    pub fn next(&self, now: Instant) -> Instant {
        self.due.min(now + PACE)
    }

    fn rate(&self) -> Option<u64> {
        self.rules
            .iter()
            .filter_map(|r| r.rule.int_of("rate"))
            .min()
            .map(|rate| rate.max(1) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_are_found_however_they_are_cut(
            lengths in proptest::collection::vec(0usize..40, 0..12),
            cuts in proptest::collection::vec(1usize..9, 1..40),
        ) {
            let mut whole = vec![];
            for length in &lengths {
                whole.extend([0]);
                whole.extend((*length as u32).to_be_bytes());
                whole.extend(std::iter::repeat_n(7, *length));
            }
            let mut messages = Messages::default();
            let (mut at, mut payload, mut starts) = (0, 0, vec![]);
            for cut in cuts.iter().cycle() {
                if at == whole.len() {
                    break;
                }
                let end = (at + cut).min(whole.len());
                while at < end {
                    if messages.at_start() {
                        starts.push(at);
                    }
                    let (n, p) = messages.walk(&whole[at..end], true);
                    prop_assert!(n > 0 && p <= n);
                    prop_assert!(whole[at + n - p..at + n].iter().all(|b| *b == 7));
                    at += n;
                    payload += p;
                }
            }
            let mut expected = vec![];
            let mut next = 0;
            for length in &lengths {
                expected.push(next);
                next += 5 + length;
            }
            prop_assert_eq!(starts, expected);
            prop_assert_eq!(payload, lengths.iter().sum::<usize>());
            prop_assert_eq!(messages.begun, lengths.len() as u64);
            prop_assert!(messages.at_start());
        }
    }
}
