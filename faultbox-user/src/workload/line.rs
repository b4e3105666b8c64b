//! A load that is put on in blocks: one schedule, and one set of callers with their connections, for all of them.
//!
//! The line's own clock advances in its blocks only. A block of an open loop ends when its span is over and what was due in it has been answered.
//! If that takes longer than calls usually do, something stalls, and the block goes on with the schedule until nobody waits any more: what
//! was due during the stall is made late and timed from when it was due. If that takes longer than the line can afford, calls are
//! begun no more, and those that were due by the last answer are unsent. Either way the block overran.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::pace::offset;
use super::{Done, Load, Shape, Summary, Tally, Turn, Turns};
use crate::sys::wake::exact_timers;

/// The shortest wait for the last answers of a block that is called a stall.
const PATIENCE: Duration = Duration::from_millis(10);
/// How much longer than the usual call it must be.
const UNUSUAL: u32 = 3;
/// How often it is looked whether a stall is over.
const LOOK: Duration = Duration::from_millis(1);

thread_local! {
    /// Where this caller waits.
    static SEAT: Arc<Condvar> = Arc::default();
}

/// Where a line's schedule stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// The line's own clock.
    clock: Duration,
    /// Turns so far.
    taken: u64,
}

/// One side's load; see the module.
#[derive(Debug)]
pub struct Line {
    shape: Shape,
    inner: Mutex<Inner>,
    /// The conductor waits here for answers.
    answered: Condvar,
}

#[derive(Debug)]
struct Inner {
    /// At the opening of the block.
    position: Position,
    start: Instant,
    /// Nothing is due from here on.
    end: Instant,
    /// Turns are handed out.
    open: bool,
    over: bool,
    /// When the calls were due that are being made.
    flying: Vec<Instant>,
    /// Who has nothing to do. The last to come is the first to go, so that no more connections are used than calls overlap.
    idle: Vec<Arc<Condvar>>,
    tally: Option<Tally>,
    /// How long a call usually takes.
    usual: Duration,
}

/// What came of a block.
#[derive(Debug)]
pub struct Blocked {
    /// Its calls.
    pub summary: Summary,
    /// By how much it was longer than it should have been: a stall, or calls that were too many.
    pub overrun: Duration,
}

enum Next {
    Now(Turn),
    At(Instant),
    Never,
}

impl Inner {
    /// When the next turn of an open loop is due.
    fn due(&self, rate: f64) -> Instant {
        self.start + offset(self.position.taken, rate).saturating_sub(self.position.clock)
    }

    fn next(&self, shape: Shape, now: Instant) -> Next {
        if !self.open {
            return Next::Never;
        }
        match shape {
            Shape::Closed { .. } if now < self.end => Next::Now(Turn {
                due: now.max(self.start),
            }),
            Shape::Closed { .. } => Next::Never,
            Shape::Open { rate, .. } => match self.due(rate) {
                due if due >= self.end => Next::Never,
                due if due > now => Next::At(due),
                due => Next::Now(Turn { due }),
            },
        }
    }

    /// Since when the call has been waited for that has been longest; `None` if nobody waits for anything.
    fn oldest(&self, shape: Shape, now: Instant) -> Option<Instant> {
        let next = shape.rate().map(|rate| self.due(rate));
        let next = next.filter(|due| *due < self.end && *due <= now);
        self.flying.iter().copied().chain(next).min()
    }

    fn wake(&self) {
        if let Some(seat) = self.idle.last() {
            seat.notify_one();
        }
    }
}

impl Line {
    /// A line at the beginning of its schedule.
    pub fn new(shape: Shape) -> Line {
        let now = Instant::now();
        Line {
            shape,
            inner: Mutex::new(Inner {
                position: Position::default(),
                start: now,
                end: now,
                open: false,
                over: false,
                flying: vec![],
                idle: vec![],
                tally: None,
                usual: Duration::ZERO,
            }),
            answered: Condvar::new(),
        }
    }

    /// Where the schedule stands. Between blocks only.
    pub fn position(&self) -> Position {
        self.inner().position
    }

    /// Goes on from another place of the schedule. Between blocks only.
    pub fn seek(&self, position: Position) {
        self.inner().position = position;
    }

    /// Was it ended?
    pub fn is_over(&self) -> bool {
        self.inner().over
    }

    /// Lets the callers make calls for `span`, and waits until what was due has been answered. `slack` is how much longer it may take
    /// before what is due is given up; what was needed is taken off it. `None` if the line was ended meanwhile.
    pub fn block(&self, span: Duration, slack: &mut Duration) -> Option<Blocked> {
        let load = Load {
            interval: span,
            ..Load::new(self.shape, span)
        };
        let mut inner = self.inner();
        let start = Instant::now();
        let planned = start + span;
        (inner.start, inner.end, inner.open) = (start, planned, true);
        inner.tally = Some(Tally::of(load, start));
        inner.wake();
        let patience = PATIENCE.max(inner.usual * UNUSUAL);
        while Instant::now() < planned && !inner.over {
            inner = self.wait_until(inner, planned);
        }
        let limit = planned + *slack;
        let drained = |inner: &Inner| match self.shape {
            Shape::Closed { .. } => inner.flying.is_empty(),
            Shape::Open { rate, .. } => inner.flying.is_empty() && inner.due(rate) >= inner.end,
        };
        loop {
            let (end, now) = (inner.end, Instant::now());
            if inner.over || drained(&inner) {
                break;
            }
            let stalled = self.shape.rate().is_some() && now >= end + patience;
            if !stalled {
                let until = match self.shape {
                    Shape::Open { .. } => end + patience,
                    Shape::Closed { .. } => now + patience,
                };
                inner = self.wait_until(inner, until);
                continue;
            }
            if now >= limit {
                // What was begun is waited for; by its own time-outs it ends.
                inner.open = false;
                while !inner.flying.is_empty() && !inner.over {
                    inner = self
                        .answered
                        .wait(inner)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                inner.end = Instant::now();
                break;
            }
            // The schedule runs on as if the span had no end, until nobody waits longer than is usual.
            inner.end = limit;
            inner.wake();
            let calm = |inner: &Inner, now: Instant| {
                let oldest = inner.oldest(self.shape, now);
                oldest.is_none_or(|due| now.saturating_duration_since(due) <= patience)
            };
            let mut now = Instant::now();
            while now < limit && !inner.over && !calm(&inner, now) {
                drop(inner);
                std::thread::sleep(LOOK);
                inner = self.inner();
                now = Instant::now();
            }
            inner.end = now.min(limit).max(end);
        }
        inner.open = false;
        let end = inner.end;
        let overrun = end.saturating_duration_since(planned);
        *slack = slack.saturating_sub(overrun);
        inner.position.clock += end.saturating_duration_since(start);
        let mut left = vec![];
        if let Some(rate) = self.shape.rate() {
            // By the clock of before: `due` counts from there.
            let clock = inner.position.clock;
            while offset(inner.position.taken, rate) < clock {
                let since = clock - offset(inner.position.taken, rate);
                left.push(end.checked_sub(since).unwrap_or(start));
                inner.position.taken += 1;
            }
        }
        let tally = inner.tally.take()?;
        if inner.over {
            return None;
        }
        let mut summary = tally.finish(left.into_iter(), end);
        if !summary.latency.is_empty() {
            inner.usual = Duration::from_nanos(summary.latency.value_at_quantile(0.5));
        }
        summary.overloaded |= !overrun.is_zero();
        Some(Blocked { summary, overrun })
    }

    fn wait_until<'a>(
        &self,
        inner: MutexGuard<'a, Inner>,
        until: Instant,
    ) -> MutexGuard<'a, Inner> {
        let left = until.saturating_duration_since(Instant::now());
        let waited = self.answered.wait_timeout(inner, left);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turns for Line {
    /// Waits for the next turn, through the pauses between blocks; it is due already. `None` when the line is over.
    fn next(&self) -> Option<Turn> {
        let seat = SEAT.with(Arc::clone);
        let mut inner = self.inner();
        inner.idle.push(seat.clone());
        loop {
            if inner.over {
                return None;
            }
            let first = inner.idle.last().is_some_and(|s| Arc::ptr_eq(s, &seat));
            let now = Instant::now();
            let next = match first {
                true => inner.next(self.shape, now),
                false => Next::Never,
            };
            inner = match next {
                Next::Now(turn) => {
                    inner.idle.pop();
                    inner.position.taken += 1;
                    inner.flying.push(turn.due);
                    inner.wake();
                    return Some(turn);
                }
                Next::At(due) => {
                    exact_timers();
                    let left = due.saturating_duration_since(Instant::now());
                    let waited = seat.wait_timeout(inner, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                Next::Never => seat.wait(inner).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn record(&self, turn: &Turn, began: Instant, ended: Instant, done: Done) {
        let mut inner = self.inner();
        if let Some(at) = inner.flying.iter().position(|due| *due == turn.due) {
            inner.flying.swap_remove(at);
        }
        if let Some(tally) = &inner.tally {
            tally.record(turn, began, ended, done);
        }
        // Before its end nobody waits for answers.
        if inner.flying.is_empty() && Instant::now() >= inner.end {
            self.answered.notify_one();
        }
    }

    fn stop(&self) {
        let mut inner = self.inner();
        inner.over = true;
        self.answered.notify_one();
        for seat in &inner.idle {
            seat.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::super::man;
    use super::*;

    const SPAN: Duration = Duration::from_millis(50);

    /// Runs blocks on a line whose callers do this.
    fn blocks(
        shape: Shape,
        n: usize,
        call: &(dyn Fn() -> Done + Sync),
        mut slack: Duration,
    ) -> Vec<Blocked> {
        let line = Line::new(shape);
        let caller = || -> Box<dyn FnMut() -> Done> { Box::new(call) };
        std::thread::scope(|scope| {
            let callers = scope.spawn(|| man(&line, shape.callers(), &caller).unwrap());
            let taken = (0..n)
                .map(|_| line.block(SPAN, &mut slack).unwrap())
                .collect();
            line.stop();
            callers.join().unwrap();
            taken
        })
    }

    #[test]
    fn the_schedule_runs_on_across_blocks() {
        let shape = Shape::Open {
            rate: 30.0,
            callers: 4,
        };
        let taken = blocks(shape, 12, &|| Done::Ok, Duration::from_secs(60));
        // One and a half calls a block: not two of each, as if every block were the first. What a busy machine makes them overrun counts.
        let overrun: Duration = taken.iter().map(|b| b.overrun).sum();
        let calls: u64 = taken.iter().map(|b| b.summary.count).sum();
        let due = ((SPAN * 12 + overrun).as_secs_f64() * 30.0).ceil() as u64;
        assert!(calls.abs_diff(due) <= 1, "{calls} of {due}");
    }

    #[test]
    fn what_is_due_during_a_stall_is_made_late_however_long_the_block_becomes() {
        let made = AtomicU64::new(0);
        let call = || {
            if made.fetch_add(1, Ordering::Relaxed) == 2 {
                std::thread::sleep(Duration::from_millis(500));
            }
            Done::Ok
        };
        let shape = Shape::Open {
            rate: 100.0,
            callers: 1,
        };
        let taken = blocks(shape, 2, &call, Duration::from_secs(60));
        let first = &taken[0];
        // Of the block itself are 5; those of the stall come on top.
        assert!(first.summary.count >= 50, "{first:?}");
        assert_eq!(first.summary.unsent, 0, "{first:?}");
        assert!(first.summary.overloaded && first.overrun >= Duration::from_millis(400));
        let waited = first.summary.latency.value_at_quantile(0.5);
        assert!(waited > 100_000_000, "{first:?}");
    }

    #[test]
    fn what_there_is_no_time_for_is_unsent() {
        let call = || {
            std::thread::sleep(Duration::from_millis(300));
            Done::Ok
        };
        let shape = Shape::Open {
            rate: 100.0,
            callers: 1,
        };
        let taken = blocks(shape, 1, &call, Duration::ZERO);
        let summary = &taken[0].summary;
        // One was made; those due by its answer are told.
        assert!(summary.unsent >= 29 && summary.overloaded, "{summary:?}");
        assert_eq!(summary.count, summary.unsent + 1);
    }

    #[test]
    fn callers_stay_and_no_more_of_them_than_calls_overlap() {
        let threads = Mutex::new(std::collections::BTreeSet::new());
        let call = || {
            let name = std::thread::current().name().unwrap().to_owned();
            threads.lock().unwrap().insert(name);
            Done::Ok
        };
        let shape = Shape::Open {
            rate: 100.0,
            callers: 32,
        };
        let taken = blocks(shape, 6, &call, Duration::from_secs(60));
        let calls: u64 = taken.iter().map(|b| b.summary.count).sum();
        let used = threads.lock().unwrap().len();
        assert!(calls >= 30 && used < 20, "{used} callers, {calls} calls");
        let closed = blocks(
            Shape::Closed { callers: 2 },
            3,
            &|| Done::Ok,
            Duration::ZERO,
        );
        assert!(closed.iter().map(|b| b.summary.count).sum::<u64>() > 0);
        assert!(closed.iter().all(|b| b.overrun.is_zero()));
    }
}
