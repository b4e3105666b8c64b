//! What the two directions of one connection tell each other.
//!
//! The request side decides what each request gets and queues it as a [`Turn`]; the reply side takes the turns in order: a broker
//! answers the requests of one connection in the order in which they came, and so does the proxy, whoever answers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use faultbox_contract::{ArmedRule, Meter};
use faultbox_engine::{Added, Origin};
use tokio::sync::Notify;

use crate::codec::Struct;
use crate::lose::Loss;

/// How many requests of one connection may wait for their responses before reading more of them pauses: clients keep 5 to 100 under
/// way, and so many entries cost nothing.
const LONGEST_QUEUE: usize = 4096;

/// What comes next on the way to the client.
#[derive(Debug)]
pub enum Turn {
    /// The broker's response to a request of the client's.
    Reply(Expected),
    /// The broker's response to a question of ours, which the client does not see.
    Own {
        /// What it repeats.
        correlation: i32,
        /// What it is for.
        purpose: Purpose,
    },
    /// A rule's answer.
    Answer(Bytes),
    /// An answer made of what a question of ours has brought to light.
    Lost(Arc<Loss>),
    /// An orderly close.
    Close,
    /// A reset.
    Reset,
}

/// Why the proxy has asked the broker something.
#[derive(Debug, Clone)]
pub enum Purpose {
    /// A record was sent again; what the broker says to that concerns nobody.
    Again,
    /// Where do these partitions' logs end?
    Ends(Arc<Loss>),
    /// What are the topics called?
    Names(i16),
}

/// A response to come.
#[derive(Debug)]
pub struct Expected {
    /// What it repeats of its request.
    pub correlation: i32,
    /// Which request it answers.
    pub api: i16,
    /// In which version.
    pub version: i16,
    /// What rules make of it.
    pub plan: Option<Box<Plan>>,
    /// When the request was read, what rules added before it was sent, and when it was sent.
    pub read: Instant,
    /// See [`Expected::read`].
    pub injected: Duration,
    /// See [`Expected::read`].
    pub sent: Option<Instant>,
}

/// What rules that have fired make of a response.
#[derive(Debug, Default)]
pub struct Plan {
    /// Answers of theirs for parts of the request that the broker has not seen.
    pub merge: Vec<Struct>,
    /// The same for records that were lost.
    pub lost: Option<Arc<Loss>>,
    /// Topics that the broker lists because its version cannot be asked for none.
    pub only_merged: bool,
    /// Is the response judged by rules, because the request did not say enough?
    pub judge: bool,
    /// Cut it after so many bytes.
    pub truncate: Option<u64>,
    /// The rules that change how it flows.
    pub modifiers: Vec<Arc<ArmedRule>>,
    /// Which bytes of its body are inverted.
    pub corrupt: Vec<u64>,
}

impl Expected {
    /// What the way to the broker has cost; `None` while the request has not been sent.
    pub fn added(&self) -> Option<Added> {
        let mut added = Added::default();
        let took = self.sent?.saturating_duration_since(self.read);
        added.span(took, self.injected);
        Some(added)
    }
}

/// The state that both directions share. Both run in one task; the lock is never contended and never held across a wait.
#[derive(Debug, Default)]
pub struct Link {
    state: Mutex<State>,
    /// Wakes the reply side.
    to_replies: Notify,
    /// Wakes the request side.
    to_requests: Notify,
}

#[derive(Debug, Default)]
struct State {
    turns: VecDeque<Turn>,
    raw: bool,
    replies_over: bool,
    client_id: Bytes,
    asked: i32,
    /// How often the broker has told the topics' names.
    told_names: u64,
}

/// The first turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Front {
    /// Nothing is due.
    Nothing,
    /// A response of the broker's.
    Broker,
    /// Something that needs nothing of the broker.
    Ours,
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a turn, unless nobody takes turns any more.
    pub fn push(&self, turn: Turn) {
        let mut state = self.lock();
        if !state.replies_over {
            state.turns.push_back(turn);
        }
        drop(state);
        self.to_replies.notify_one();
    }

    /// Has the queue room? Otherwise wait for [`Link::woken`].
    pub fn has_room(&self) -> bool {
        let state = self.lock();
        state.turns.len() < LONGEST_QUEUE || state.replies_over
    }

    /// What is due.
    pub fn front(&self) -> Front {
        match self.lock().turns.front() {
            None => Front::Nothing,
            Some(Turn::Reply(_) | Turn::Own { .. }) => Front::Broker,
            Some(_) => Front::Ours,
        }
    }

    /// Takes the first turn.
    pub fn pop(&self) -> Option<Turn> {
        self.take(|turns| turns.pop_front())
    }

    /// Takes the turn of the response that repeats this number. It is the first one, unless the broker answers out of order.
    pub fn pop_reply(&self, correlation: i32) -> Option<Turn> {
        self.take(|turns| {
            let is_it = |turn: &Turn| match turn {
                Turn::Reply(expected) => expected.correlation == correlation,
                Turn::Own { correlation: c, .. } => *c == correlation,
                _ => false,
            };
            turns.remove(turns.iter().position(is_it)?)
        })
    }

    fn take(&self, take: impl FnOnce(&mut VecDeque<Turn>) -> Option<Turn>) -> Option<Turn> {
        let mut state = self.lock();
        if state.turns.len() >= LONGEST_QUEUE {
            self.to_requests.notify_one();
        }
        take(&mut state.turns)
    }

    /// Notes that the requests queued so far have been written.
    pub fn sent(&self) {
        let now = Instant::now();
        for turn in self.lock().turns.iter_mut().rev() {
            match turn {
                Turn::Reply(expected) if expected.sent.is_none() => expected.sent = Some(now),
                Turn::Reply(_) => return,
                _ => {}
            }
        }
    }

    /// Waits for something new for the request side; may be woken for nothing.
    pub async fn woken(&self) {
        self.to_requests.notified().await;
    }

    /// Waits for something new for the reply side.
    pub async fn changed(&self) {
        self.to_replies.notified().await;
    }

    /// Remembers the client's name for itself, which rules on responses may ask for. It hardly ever changes.
    pub fn note_client(&self, name: &[u8]) {
        let mut state = self.lock();
        if state.client_id != name {
            state.client_id = Bytes::copy_from_slice(name);
        }
    }

    /// The client's name for itself.
    pub fn client_id(&self) -> Bytes {
        self.lock().client_id.clone()
    }

    /// A number for a question of ours: below those that clients count up from 0.
    pub fn own_correlation(&self) -> i32 {
        let mut state = self.lock();
        state.asked = state.asked.wrapping_add(1) & i32::MAX;
        i32::MIN | state.asked
    }

    /// Is this the number of a question of ours?
    pub fn has_asked(&self, correlation: i32) -> bool {
        correlation < 0 && (1..=self.lock().asked).contains(&(correlation & i32::MAX))
    }

    /// How often the topics' names have been told.
    pub fn told_names(&self) -> u64 {
        self.lock().told_names
    }

    /// They have been told.
    pub fn tell_names(&self) {
        self.lock().told_names += 1;
        self.to_requests.notify_one();
    }

    /// Is the traffic no longer looked at?
    pub fn is_raw(&self) -> bool {
        self.lock().raw
    }

    /// From here on the traffic is forwarded without being looked at, because `side` sent something that was not understood;
    /// recorded once per connection.
    pub fn degrade(&self, origin: &Origin, side: &str, reason: &str) {
        let was = std::mem::replace(&mut self.lock().raw, true);
        if !was {
            origin.degraded(side, &format!("{reason}; forwarded unseen from here on"));
        }
        self.to_replies.notify_one();
        self.to_requests.notify_one();
    }

    /// No more turns will be taken. The requests that were sent and stay without a response count all the same.
    pub fn replies_over(&self, meter: &Meter) {
        let mut state = self.lock();
        state.replies_over = true;
        for turn in state.turns.drain(..) {
            if let Turn::Reply(expected) = turn
                && let Some(added) = expected.added()
            {
                added.record(meter);
            }
        }
        drop(state);
        self.to_requests.notify_one();
    }

    /// Will no more turns be taken?
    pub fn is_over(&self) -> bool {
        self.lock().replies_over
    }
}
