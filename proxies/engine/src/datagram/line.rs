//! What waits: one queue per proxy, so that a thousand delayed datagrams cost one timer and none holds up another.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use faultbox_contract::{ArmedRule, EventSink, ProxyEvent};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::timer;

/// The most that may wait: a thousand of the largest datagrams, or seconds of a busy service. A network drops what it cannot hold,
/// and so does this.
const MOST_BYTES: usize = 64 << 20;
/// What a waiting datagram takes besides its bytes.
const OVERHEAD: usize = 256;
/// A delay without an end that the clock can hold: only lifting its rule ends it.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);

type Then = Box<dyn FnOnce() + Send>;

/// The queue.
pub(super) struct Line {
    queue: Mutex<Queue>,
    held: AtomicUsize,
    overflowed: AtomicBool,
    /// Something earlier has come, or a rule was lifted.
    changed: Notify,
    sink: Arc<dyn EventSink>,
}

#[derive(Default)]
struct Queue {
    waiting: HashMap<u64, Waiting>,
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    next: u64,
    /// Rules that are not watched yet.
    unwatched: Vec<Arc<ArmedRule>>,
    /// How many wait on each rule.
    watched: HashMap<u64, usize>,
}

/// One that waits for the first of its delays.
struct Waiting {
    delays: VecDeque<(Arc<ArmedRule>, Duration)>,
    size: usize,
    then: Then,
}

impl Line {
    pub(super) fn new(sink: Arc<dyn EventSink>) -> Arc<Line> {
        Arc::new(Line {
            queue: Mutex::default(),
            held: AtomicUsize::new(0),
            overflowed: AtomicBool::new(false),
            changed: Notify::new(),
            sink,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `then` when the delays have passed one after another, counted from `since`; each ends early if its rule is lifted. False if
    /// there is no room: `then` is dropped.
    pub(super) fn hold(
        &self,
        delays: Vec<(Arc<ArmedRule>, Duration)>,
        since: Instant,
        size: usize,
        then: Then,
    ) -> bool {
        let size = size + OVERHEAD;
        if self.held.fetch_add(size, Ordering::Relaxed) + size > MOST_BYTES {
            self.held.fetch_sub(size, Ordering::Relaxed);
            if !self.overflowed.swap(true, Ordering::Relaxed) {
                let error = io::Error::other(
                    "more than 64 MiB wait for their time; what comes on top is lost",
                );
                self.sink.emit(ProxyEvent {
                    kind: "proxy_overflow",
                    fields: json!({"error": error.to_string()}),
                });
            }
            return false;
        }
        let waiting = Waiting {
            delays: delays.into(),
            size,
            then,
        };
        let ready = self.lock().put(waiting, since);
        match ready {
            Some(ready) => self.release(ready),
            None => self.changed.notify_one(),
        }
        true
    }

    fn release(&self, waiting: Waiting) {
        self.held.fetch_sub(waiting.size, Ordering::Relaxed);
        (waiting.then)();
    }

    /// Serves the queue until it is dropped.
    pub(super) async fn run(self: Arc<Line>) {
        let mut watchers: JoinSet<u64> = JoinSet::new();
        loop {
            let (ready, next) = {
                let mut queue = self.lock();
                for rule in std::mem::take(&mut queue.unwatched) {
                    watchers.spawn(async move {
                        rule.until_lifted().await;
                        rule.id
                    });
                }
                queue.ready(Instant::now())
            };
            if !ready.is_empty() {
                ready.into_iter().for_each(|w| self.release(w));
                continue;
            }
            tokio::select! {
                () = async {
                    match next {
                        Some(at) => timer::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                } => {}
                () = self.changed.notified() => {}
                Some(Ok(rule)) = watchers.join_next() => {
                    let ready = self.lock().lifted(rule);
                    ready.into_iter().for_each(|w| self.release(w));
                }
            }
        }
    }
}

impl Queue {
    /// Puts one in whose next delay begins at `at`; gives it back if it has none left.
    fn put(&mut self, mut waiting: Waiting, mut at: Instant) -> Option<Waiting> {
        while let Some((rule, how_long)) = waiting.delays.front() {
            if rule.is_lifted() {
                waiting.delays.pop_front();
                at = Instant::now().max(at);
                continue;
            }
            let id = rule.id;
            let count = self.watched.entry(id).or_insert_with(|| {
                self.unwatched.push(rule.clone());
                0
            });
            *count += 1;
            let deadline = at.checked_add(*how_long).unwrap_or_else(|| at + FOR_EVER);
            let key = self.next;
            self.next += 1;
            self.due.push(Reverse((deadline, key)));
            self.waiting.insert(key, waiting);
            return None;
        }
        Some(waiting)
    }

    /// What is due by `now`, in order, and when the next one will be.
    fn ready(&mut self, now: Instant) -> (Vec<Waiting>, Option<Instant>) {
        let mut ready = vec![];
        while let Some(Reverse((at, key))) = self.due.peek().copied() {
            // One that a lifted rule has let go is no longer there.
            if self.waiting.contains_key(&key) && at > now {
                return (ready, Some(at));
            }
            self.due.pop();
            if let Some(mut waiting) = self.waiting.remove(&key) {
                waiting.delays.pop_front();
                ready.extend(self.put(waiting, at));
            }
        }
        (ready, None)
    }

    /// Lets those go that wait on this rule, in the order of their deadlines.
    fn lifted(&mut self, rule: u64) -> Vec<Waiting> {
        self.watched.remove(&rule);
        let mut keys: Vec<(Instant, u64)> = self
            .due
            .iter()
            .map(|Reverse(due)| *due)
            .filter(|(_, key)| {
                let first = self.waiting.get(key).and_then(|w| w.delays.front());
                first.is_some_and(|(r, _)| r.id == rule)
            })
            .collect();
        keys.sort_unstable();
        let now = Instant::now();
        keys.into_iter()
            .filter_map(|(_, key)| {
                let mut waiting = self.waiting.remove(&key)?;
                waiting.delays.pop_front();
                self.put(waiting, now)
            })
            .collect()
    }
}
