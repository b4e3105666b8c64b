//! One vocabulary, one ordered log per test. Every report and every assertion is a reader of it.

mod losses;
mod spill;
pub mod types;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

pub use losses::{Asked, Losses, Lost, Untold};
use spill::Spill;
pub use types::FROM_KERNEL;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// 1-based, without gaps, in the order recorded.
    pub seq: u64,
    /// Since the test began.
    pub time: Duration,
    /// "service_started", "syscall", "proxy", "step", "stdout", ….
    pub kind: String,
    /// The service it is about, if any.
    pub service: Option<String>,
    /// Typed details; what is not there is `None` to a spec.
    pub fields: Map<String, Value>,
}

/// The log of one test. Recording never waits for a reader longer than it takes to push one element.
#[derive(Debug)]
pub struct EventLog {
    began: Instant,
    inner: Mutex<Inner>,
    grew: Condvar,
}

#[derive(Debug)]
struct Inner {
    /// The first `cap` events.
    events: Vec<Arc<Event>>,
    cap: usize,
    /// All later ones.
    spill: Option<Spill>,
    dir: PathBuf,
    dropped: u64,
    /// Lost before they came here.
    lost_before: Lost,
    next: u64,
}

/// What takes records as they come.
pub trait Sink: Send + Sync {
    /// Takes one; `fields` is a JSON object.
    fn record(&self, kind: &str, service: Option<&str>, fields: Value);
    /// Hears what its source has lost so far, by the source's own count.
    fn lost_before(&self, total: Lost);
}

impl Sink for EventLog {
    fn record(&self, kind: &str, service: Option<&str>, fields: Value) {
        EventLog::record(self, kind, service, fields);
    }

    fn lost_before(&self, total: Lost) {
        self.lock().lost_before = total;
    }
}

/// How many events of one test stay in memory; the ones past it go to disk. 50 000 events of some 300 bytes are 15 MiB.
const CAP: usize = 50_000;

impl Default for EventLog {
    fn default() -> Self {
        EventLog::spilling_to(&std::env::temp_dir())
    }
}

impl EventLog {
    /// An empty log that puts what memory does not hold into a file without a name in `dir`.
    pub fn spilling_to(dir: &Path) -> EventLog {
        EventLog {
            began: Instant::now(),
            inner: Mutex::new(Inner {
                events: vec![],
                cap: CAP,
                spill: None,
                dir: dir.to_owned(),
                dropped: 0,
                lost_before: Lost::default(),
                next: 0,
            }),
            grew: Condvar::new(),
        }
    }

    /// What the time of an event would be that happened now.
    pub fn now(&self) -> std::time::Duration {
        self.began.elapsed()
    }

    /// Records one event; `fields` should be a JSON object.
    pub fn record(&self, kind: &str, service: Option<&str>, fields: Value) {
        let fields = match fields {
            Value::Object(map) => map,
            Value::Null => Map::new(),
            other => Map::from_iter([("data".to_owned(), other)]),
        };
        let mut inner = self.lock();
        let event = Event {
            seq: inner.next + 1,
            // Under the lock, so that times grow as the numbers do.
            time: self.began.elapsed(),
            kind: kind.to_owned(),
            service: service.map(str::to_owned),
            fields,
        };
        // A lost event takes no number: sequence numbers have no gaps.
        if inner.push(event) {
            inner.next += 1;
        } else {
            inner.dropped += 1;
        }
        drop(inner);
        self.grew.notify_all();
    }

    /// Counts events that could not even be made.
    pub fn lose(&self, count: u64) {
        self.lock().dropped += count;
    }

    /// Everything recorded so far since the event after `seq` (0: everything), read as it is asked for: millions of events need not fit into
    /// memory, and who records does not wait for who reads.
    pub fn since(&self, seq: u64) -> impl Iterator<Item = Arc<Event>> + use<> {
        let inner = self.lock();
        let from = inner.events.partition_point(|e| e.seq <= seq);
        let found = inner.events[from..].to_vec();
        let spill = inner.spill.as_ref().filter(|_| seq < inner.next);
        let more = spill.and_then(|spill| spill.since(seq));
        found
            .into_iter()
            .chain(more.into_iter().flatten().map(Arc::new))
    }

    /// The number of the last event; 0 if there is none.
    pub fn last_seq(&self) -> u64 {
        self.lock().next
    }

    /// How many events were lost: because the disk was full, or on their way here. A run that lost any cannot claim "X never happened".
    pub fn dropped(&self) -> u64 {
        let losses = self.losses();
        losses.not_kept + losses.before.records()
    }

    /// The same by cause, and what was not counted.
    pub fn losses(&self) -> Losses {
        let inner = self.lock();
        Losses {
            not_kept: inner.dropped,
            before: inner.lost_before,
        }
    }

    /// Waits until something is recorded after `seq`, or `deadline`.
    pub fn wait_past(&self, seq: u64, deadline: Instant) {
        let mut inner = self.lock();
        while inner.next <= seq {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return;
            };
            inner = self
                .grew
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn push(&mut self, event: Event) -> bool {
        if self.events.len() < self.cap {
            self.events.push(Arc::new(event));
            return true;
        }
        if self.spill.is_none() {
            self.spill = Spill::create(&self.dir).ok();
        }
        self.spill
            .as_mut()
            .is_some_and(|spill| spill.push(&event).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn readers_see_what_came_since() {
        let log = EventLog::default();
        log.record("a", None, json!({"x": 1}));
        log.record("b", Some("db"), Value::Null);
        assert_eq!(log.since(1).count(), 1);
        assert_eq!(log.since(0).next().unwrap().fields["x"], 1);
        log.wait_past(1, Instant::now() + Duration::from_secs(5));
        let before = Instant::now();
        log.wait_past(2, before + Duration::from_millis(10));
        assert!(before.elapsed() >= Duration::from_millis(10));
    }
    #[test]
    fn events_past_the_cap_go_to_disk_and_come_back() {
        let log = EventLog::default();
        log.lock().cap = 100;
        for i in 1..=5000u64 {
            log.record("n", Some("db"), json!({"i": i, "text": "x".repeat(40)}));
        }
        assert_eq!(log.lock().events.len(), 100);
        assert_eq!(log.dropped(), 0);
        for from in [0, 1, 99, 100, 101, 1123, 1124, 1125, 4999, 5000] {
            let seen: Vec<u64> = log.since(from).map(|e| e.seq).collect();
            assert_eq!(seen, (from + 1..=5000).collect::<Vec<_>>(), "since {from}");
        }
        let last = log.since(4999).next().unwrap();
        assert_eq!(last.fields["i"], 5000);
        assert_eq!(
            (last.kind.as_str(), last.service.as_deref()),
            ("n", Some("db"))
        );
    }

    #[test]
    fn events_that_cannot_be_kept_are_counted() {
        let log = EventLog::spilling_to(Path::new("/proc/no/such/folder"));
        log.lock().cap = 1;
        for _ in 0..3 {
            log.record("n", None, Value::Null);
        }
        assert_eq!((log.since(0).count(), log.dropped()), (1, 2));
    }
}
