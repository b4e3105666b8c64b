//! What the two directions of one connection tell each other.
//!
//! The request side decides what each request gets and queues it as a [`Turn`]; the reply side takes the turns in order, so that
//! answers keep the order of their requests however they are pipelined.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use faultbox_contract::{ArmedRule, Meter};
use faultbox_engine::{Added, Origin};

use crate::codec::RequestKind;
use crate::rules::Answer;

/// How many requests of one connection may wait for their replies before reading more of them pauses: more than any client
/// pipelines, little enough to cost nothing.
const LONGEST_QUEUE: usize = 1024;

/// What the client gets next.
#[derive(Debug)]
pub enum Turn {
    /// The upstream's reply, or what rules make of it.
    Reply(Box<Expected>),
    /// "100 Continue", said for the server.
    Continue,
    /// A rule's answer, written out when its turn comes: many may wait, and they share one body.
    Answer {
        /// What to answer.
        answer: Arc<Answer>,
        /// Is it the answer to a HEAD?
        head: bool,
        /// Does the connection end after it?
        close: bool,
        /// Is the request HTTP/1.0?
        http10: bool,
        /// The rules that change how the answer flows.
        modifiers: Vec<Arc<ArmedRule>>,
    },
    /// An orderly close.
    Close,
    /// A reset.
    Reset,
}

/// A reply to come from the upstream.
#[derive(Debug)]
pub struct Expected {
    /// What the request's method says about it.
    pub kind: RequestKind,
    /// Did the request ask to leave HTTP?
    pub upgrade: bool,
    /// Has the proxy already said "100 Continue" for the server?
    pub continued: bool,
    /// Is the request HTTP/1.0, or its last on this connection?
    pub http10: bool,
    /// See [`Expected::http10`].
    pub keep_alive: bool,
    /// Give this answer instead.
    pub replace: Option<Arc<Answer>>,
    /// Cut the body after so many bytes.
    pub truncate: Option<u64>,
    /// The rules that change how the reply flows.
    pub modifiers: Vec<Arc<ArmedRule>>,
    /// When the request was read, what rules added before it was sent, and when it was sent.
    pub read: Instant,
    /// See [`Expected::read`].
    pub injected: Duration,
    /// See [`Expected::read`].
    pub sent: Option<Instant>,
}

impl Expected {
    /// What the way to the server has cost; `None` while the request has not been sent.
    pub fn added(&self) -> Option<Added> {
        let mut added = Added::default();
        added.span(
            self.sent?.saturating_duration_since(self.read),
            self.injected,
        );
        Some(added)
    }
}

/// The state that both directions share. Both run in one task; the lock is never contended and never held across a wait.
#[derive(Debug, Default)]
pub struct Link {
    state: Mutex<State>,
    /// There is something new for the reply side, which is polled after the request side.
    to_replies: Signal,
    /// There is something new for the request side.
    to_requests: Signal,
    /// There is, since it was polled last: see [`Link::take_untold`].
    untold: AtomicBool,
}

/// That there is something new for one side. It wakes nobody: who polls the two sides sees to it that what one says the other hears, and
/// so a request does not cost the task a second turn.
#[derive(Debug, Default)]
struct Signal(AtomicBool);

impl Signal {
    fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Waits until it is raised, and lowers it.
    async fn raised(&self) {
        poll_fn(|_| match self.0.swap(false, Ordering::Relaxed) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}

#[derive(Debug, Default)]
struct State {
    turns: VecDeque<Turn>,
    raw: bool,
    holding: bool,
    upstream_closed: bool,
    replies_over: bool,
    left_http: Option<bool>,
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is new for the request side.
    fn tell_requests(&self) {
        self.to_requests.raise();
        self.untold.store(true, Ordering::Relaxed);
    }

    /// Has the request side been told something since this was asked last? Then it has to be polled again.
    pub fn take_untold(&self) -> bool {
        self.untold.swap(false, Ordering::Relaxed)
    }

    /// Queues a turn, unless nobody takes turns any more.
    pub fn push(&self, turn: Turn) {
        let mut state = self.lock();
        if !state.replies_over {
            state.turns.push_back(turn);
        }
        drop(state);
        self.to_replies.raise();
    }

    /// Waits until the queue has room.
    pub async fn room(&self) {
        while self.lock().turns.len() >= LONGEST_QUEUE {
            self.to_requests.raised().await;
        }
    }

    /// Looks at the first turn, if there is one.
    pub fn front<T>(&self, look: impl FnOnce(Option<&mut Turn>) -> T) -> T {
        look(self.lock().turns.front_mut())
    }

    /// Takes the first turn.
    pub fn pop(&self) -> Option<Turn> {
        let mut state = self.lock();
        if state.turns.len() >= LONGEST_QUEUE {
            self.tell_requests();
        }
        state.turns.pop_front()
    }

    /// Waits for something new for the request side; may be woken for nothing.
    pub async fn woken(&self) {
        self.to_requests.raised().await;
    }

    /// Waits for something new for the reply side.
    pub async fn changed(&self) {
        self.to_replies.raised().await;
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

    /// Is the traffic no longer looked at?
    pub fn is_raw(&self) -> bool {
        self.lock().raw
    }

    /// From here on the traffic is forwarded without being looked at.
    pub fn go_raw(&self) {
        self.lock().raw = true;
        self.to_replies.raise();
        self.tell_requests();
    }

    /// The same, because `side` sent something that was not understood; recorded once per connection.
    pub fn degrade(&self, origin: &Origin, side: &str, reason: &str) {
        if !self.is_raw() {
            origin.degraded(side, reason);
        }
        self.go_raw();
    }

    /// Says whether a request is being held that the upstream has not seen.
    pub fn hold(&self, holding: bool) {
        self.lock().holding = holding;
    }

    /// The upstream has closed, or is about to. Is a request being held that it has not seen, with nothing else owed to the
    /// client? Then the client need not know: the request will go to a new connection.
    pub fn upstream_closed_while_held(&self) -> bool {
        let mut state = self.lock();
        state.upstream_closed = state.holding && state.turns.is_empty();
        state.upstream_closed
    }

    /// Is the reply side over only because the held request needs a new connection?
    pub fn is_held(&self) -> bool {
        self.lock().upstream_closed
    }

    /// Is a new upstream connection needed? Asked once: the caller sees to it.
    pub fn take_closed(&self) -> bool {
        std::mem::take(&mut self.lock().upstream_closed)
    }

    /// No more turns will be taken. The requests that were sent and stay without a reply count all the same.
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
        self.tell_requests();
    }

    /// The reply to an upgrade request has been seen: did the connection leave HTTP?
    pub fn decide(&self, left: bool) {
        self.lock().left_http = Some(left);
        self.tell_requests();
    }

    /// Waits for [`Link::decide`]; true also if there is nobody left to decide, or the traffic is raw already.
    pub async fn left_http(&self) -> bool {
        loop {
            {
                let mut state = self.lock();
                if let Some(left) = state.left_http.take() {
                    return left;
                }
                if state.raw || state.replies_over {
                    return true;
                }
            }
            self.to_requests.raised().await;
        }
    }
}
