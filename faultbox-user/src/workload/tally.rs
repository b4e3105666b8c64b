//! What came of the calls of a load.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::{Done, Load, Turn};

/// Kinds of failure told apart; all further ones are counted together. Messages that carry an id would otherwise be a kind each.
const KINDS: usize = 32;
/// What further kinds of failure are counted under.
const OTHERS: &str = "others";
/// What a turn is counted under that nobody took by the end.
pub const UNSENT: &str = "unsent";
/// Beginning later than this after it was due, a call is late: a healthy generator is far below.
const LATE: Duration = Duration::from_millis(10);
/// The share of late calls, and of those never begun, up to which a generator has kept the rate.
const TOLERATED: f64 = 0.01;

/// Where the callers of one load write down what came of their calls.
#[derive(Debug)]
pub struct Tally {
    start: Instant,
    load: Load,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    latency: Histogram<u64>,
    failed: u64,
    unanswered: u64,
    errors: BTreeMap<String, u64>,
    slots: Vec<Part>,
    late: u64,
    lag: Duration,
    unsent: u64,
    last: Instant,
}

#[derive(Debug)]
struct Part {
    latency: Histogram<u64>,
    failed: u64,
}

/// All that can be told about a load. Latencies are in nanoseconds, from when a call was due to its answer; those of failed calls are among them.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Calls, the failed ones and the unsent ones included.
    pub count: u64,
    /// How many of them failed.
    pub failed: u64,
    /// By kind, the most frequent first.
    pub errors: Vec<(String, u64)>,
    /// The latencies of all.
    pub latency: Histogram<u64>,
    /// Calls that somebody answered, be it with an error: not those that were refused, cut off or given up, nor the unsent ones.
    pub answered: u64,
    /// Answered calls a second, from the beginning to the last answer or the end, whichever is later.
    pub rate: f64,
    /// The rate asked for, of an open loop.
    pub offered: Option<f64>,
    /// Calls that began more than 10 ms after they were due, because all callers were busy or the machine was.
    pub late: u64,
    /// The longest that a call began after it was due.
    pub lag: Duration,
    /// Calls that were due and not begun by the end: a failure each, with the time it had waited as its latency.
    pub unsent: u64,
    /// The generator of an open loop could not keep the rate: more than 1 % of the calls were late or unsent.
    pub overloaded: bool,
    /// From the beginning to the last answer or the end, whichever is later.
    pub took: Duration,
    /// What happened when, by when calls were due; without gaps.
    pub timeline: Vec<Slot>,
}

/// A stretch of a load.
#[derive(Debug, Clone)]
pub struct Slot {
    /// Since the load began.
    pub start: Duration,
    /// Calls due in it.
    pub count: u64,
    /// How many of them failed.
    pub failed: u64,
    /// Their latencies.
    pub latency: Histogram<u64>,
}

fn histogram(digits: u8) -> Histogram<u64> {
    // It grows as it must, so that only long latencies cost memory.
    Histogram::new(digits).expect("one to five digits are valid")
}

fn ns(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX).max(1)
}

impl Tally {
    /// For a load that begins at `start`.
    pub fn of(load: Load, start: Instant) -> Tally {
        let interval = load.interval.max(Duration::from_millis(1));
        let slots = load.duration.as_nanos().div_ceil(interval.as_nanos());
        let part = || Part {
            latency: histogram(2),
            failed: 0,
        };
        Tally {
            start,
            load: Load { interval, ..load },
            inner: Mutex::new(Inner {
                latency: histogram(3),
                failed: 0,
                unanswered: 0,
                errors: BTreeMap::new(),
                slots: (0..slots.max(1)).map(|_| part()).collect(),
                late: 0,
                lag: Duration::ZERO,
                unsent: 0,
                last: start,
            }),
        }
    }

    /// Writes down one call.
    pub fn record(&self, turn: &Turn, began: Instant, ended: Instant, done: Done) {
        let lag = began.saturating_duration_since(turn.due);
        let mut inner = self.inner();
        inner.lag = inner.lag.max(lag);
        inner.late += u64::from(lag > LATE);
        inner.last = inner.last.max(ended);
        self.add(&mut inner, turn.due, ended, done);
    }

    fn add(&self, inner: &mut Inner, due: Instant, ended: Instant, done: Done) {
        let latency = ns(ended.saturating_duration_since(due));
        // A histogram that grows takes every value.
        let _ = inner.latency.record(latency);
        let since = due.saturating_duration_since(self.start).as_nanos();
        let at = usize::try_from(since / self.load.interval.as_nanos()).unwrap_or(usize::MAX);
        let last = inner.slots.len() - 1;
        let part = &mut inner.slots[at.min(last)];
        let _ = part.latency.record(latency);
        inner.unanswered += u64::from(matches!(done, Done::Unanswered(_)));
        if let Done::Failed(kind) | Done::Unanswered(kind) = done {
            part.failed += 1;
            inner.failed += 1;
            let kind = match inner.errors.contains_key(&kind) || inner.errors.len() < KINDS {
                true => kind,
                false => OTHERS.to_owned(),
            };
            *inner.errors.entry(kind).or_default() += 1;
        }
    }

    /// Adds it all up, at the end of the load: no call is being made. `left` are the turns that nobody took, by when they were due.
    pub fn finish(self, left: impl Iterator<Item = Instant>, end: Instant) -> Summary {
        {
            let mut inner = self.inner();
            for due in left {
                inner.unsent += 1;
                self.add(&mut inner, due, end, Done::Failed(UNSENT.to_owned()));
            }
        }
        let interval = self.load.interval;
        let inner = self
            .inner
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let took = inner.last.max(end).saturating_duration_since(self.start);
        let count = inner.latency.len();
        let answered = count - inner.unsent - inner.unanswered;
        let mut errors: Vec<(String, u64)> = inner.errors.into_iter().collect();
        errors.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        let slot = |(i, part): (usize, Part)| Slot {
            start: interval * u32::try_from(i).unwrap_or(u32::MAX),
            count: part.latency.len(),
            failed: part.failed,
            latency: part.latency,
        };
        Summary {
            count,
            failed: inner.failed,
            errors,
            answered,
            rate: answered as f64 / took.as_secs_f64(),
            offered: self.load.shape.rate(),
            late: inner.late,
            lag: inner.lag,
            unsent: inner.unsent,
            overloaded: self.load.shape.rate().is_some()
                && (inner.late + inner.unsent) as f64 > count as f64 * TOLERATED,
            took,
            timeline: inner.slots.into_iter().enumerate().map(slot).collect(),
            latency: inner.latency,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The latency in milliseconds below which this share of the calls lies; `None` of no calls.
pub fn quantile_ms(latency: &Histogram<u64>, share: f64) -> Option<f64> {
    (!latency.is_empty()).then(|| latency.value_at_quantile(share) as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::super::{Pace, Shape};
    use super::*;

    fn open(rate: f64, seconds: u64) -> (Pace, Tally) {
        let shape = Shape::Open { rate, callers: 1 };
        let load = Load {
            interval: Duration::from_secs(1),
            ..Load::new(shape, Duration::from_secs(seconds))
        };
        // Long ago, so that nothing has to be waited for.
        let start = Instant::now() - Duration::from_secs(100);
        let pace = Pace::new(load, start);
        let tally = Tally::of(load, start);
        (pace, tally)
    }

    fn finish(tally: Tally, pace: &Pace) -> Summary {
        tally.finish(pace.left(), pace.end())
    }

    fn at(pace: &Pace, ms: u64) -> Instant {
        pace.start() + Duration::from_millis(ms)
    }

    #[test]
    fn latency_counts_from_when_a_call_was_due() {
        let (pace, tally) = open(1.0, 3);
        // A stall of two seconds: the second call began only when the first was answered.
        let turn = |ms| Turn { due: at(&pace, ms) };
        tally.record(&turn(0), at(&pace, 0), at(&pace, 2000), Done::Ok);
        tally.record(&turn(1000), at(&pace, 2000), at(&pace, 2010), Done::Ok);
        tally.record(
            &turn(2000),
            at(&pace, 2010),
            at(&pace, 2015),
            Done::Failed("503".into()),
        );
        for _ in 0..3 {
            pace.take_one();
        }
        let summary = finish(tally, &pace);
        assert_eq!((summary.count, summary.failed, summary.unsent), (3, 1, 0));
        assert_eq!(summary.errors, [("503".to_owned(), 1)]);
        let slots: Vec<(u64, u64, u64)> = summary
            .timeline
            .iter()
            .map(|s| (s.count, s.failed, s.latency.max() / 1_000_000))
            .collect();
        // Two digits: 2000 ms may be told as some more.
        assert_eq!((slots[0].0, slots[0].1), (1, 0));
        assert!((2000..2050).contains(&slots[0].2), "{slots:?}");
        assert!((1010..1040).contains(&slots[1].2), "{slots:?}");
        assert_eq!(slots[2].1, 1);
        assert_eq!((summary.late, summary.overloaded), (1, true));
        assert_eq!(summary.lag, Duration::from_secs(1));
        assert_eq!(summary.rate, 1.0);
    }

    #[test]
    fn what_was_never_begun_is_a_failure_that_has_waited() {
        let (pace, tally) = open(2.0, 2);
        let summary = finish(tally, &pace);
        assert_eq!((summary.count, summary.unsent), (4, 4));
        assert_eq!(summary.errors, [(UNSENT.to_owned(), 4)]);
        assert!(summary.overloaded);
        assert_eq!(summary.rate, 0.0);
        // Three digits: 2000 ms may be told as some more.
        let max = quantile_ms(&summary.latency, 1.0).unwrap();
        assert!((2000.0..2005.0).contains(&max), "{max}");
    }

    #[test]
    fn what_nobody_answered_is_no_answer() {
        let (pace, tally) = open(3.0, 1);
        let refused = || Done::Unanswered("ECONNREFUSED".into());
        for done in [Done::Failed("500".into()), refused(), refused()] {
            let turn = pace.start();
            tally.record(&Turn { due: turn }, turn, turn, done);
            pace.take_one();
        }
        let summary = finish(tally, &pace);
        assert_eq!((summary.count, summary.failed), (3, 3));
        assert_eq!((summary.answered, summary.rate), (1, 1.0));
    }

    #[test]
    fn kinds_of_failure_are_bounded() {
        let (pace, tally) = open(1.0, 1);
        let turn = Turn { due: at(&pace, 0) };
        for i in 0..100 {
            let kind = Done::Failed(format!("no order {i}"));
            tally.record(&turn, at(&pace, 0), at(&pace, 1), kind);
        }
        pace.take_one();
        let summary = finish(tally, &pace);
        assert_eq!(summary.errors.len(), KINDS + 1);
        assert_eq!(summary.errors[0], (OTHERS.to_owned(), 100 - KINDS as u64));
    }

    #[test]
    fn nothing_has_no_quantiles() {
        assert_eq!(quantile_ms(&histogram(3), 0.5), None);
    }
}
