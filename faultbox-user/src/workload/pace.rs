//! When the next call is due.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Load, Shape};

/// Hands out turns to the callers of one load.
#[derive(Debug)]
pub struct Pace {
    load: Load,
    start: Instant,
    end: Instant,
    taken: AtomicU64,
    stopped: AtomicBool,
}

/// One call's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// When it should begin; its latency counts from here.
    pub due: Instant,
}

impl Pace {
    /// A load that begins at `start`.
    pub fn new(load: Load, start: Instant) -> Pace {
        Pace {
            load,
            start,
            end: start + load.duration,
            taken: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        }
    }

    /// When it began.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// When calls are begun no more.
    pub fn end(&self) -> Instant {
        self.end
    }

    /// The next turn; `None` when the load is over.
    pub fn next(&self) -> Option<Turn> {
        self.next_at(Instant::now())
    }

    fn next_at(&self, now: Instant) -> Option<Turn> {
        // What is due and could not begin by the end never does: who waits for a dead service must not wait for ever.
        if now >= self.end || self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        let turn = self.taken.fetch_add(1, Ordering::Relaxed);
        let due = match self.load.shape {
            Shape::Closed { .. } => now.max(self.start),
            Shape::Open { rate, .. } => self.start + offset(turn, rate),
        };
        (due < self.end).then_some(Turn { due })
    }

    /// Takes a turn whatever the time is.
    #[cfg(test)]
    pub(super) fn take_one(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends the load for all callers.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Was it ended before its time?
    pub fn was_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The turns of an open loop that nobody took, by when they were due. Meaningful once all callers have ended.
    pub fn left(&self) -> impl Iterator<Item = Instant> + '_ {
        let rate = self.load.shape.rate();
        let first = self.taken.load(Ordering::Relaxed);
        (first..)
            .map_while(move |turn| Some(self.start + offset(turn, rate?)))
            .take_while(|due| *due < self.end)
    }
}

/// When the turn of this number is due, from the beginning.
pub(super) fn offset(turn: u64, rate: f64) -> Duration {
    // No load lasts as long (`spec::params::LONGEST`), and a moment cannot hold much more.
    const FAR: Duration = Duration::from_secs(1000 * 24 * 3600);
    Duration::try_from_secs_f64(turn as f64 / rate).map_or(FAR, |due| due.min(FAR))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(shape: Shape) -> Load {
        Load::new(shape, Duration::from_secs(1))
    }

    #[test]
    fn an_open_loop_is_due_whether_or_not_anybody_comes() {
        let start = Instant::now();
        let shape = Shape::Open {
            rate: 4.0,
            callers: 1,
        };
        let pace = Pace::new(load(shape), start);
        let late = start + Duration::from_millis(990);
        let due: Vec<u128> = std::iter::from_fn(|| pace.next_at(late))
            .map(|turn| (turn.due - start).as_millis())
            .collect();
        assert_eq!(due, [0, 250, 500, 750]);
        assert_eq!(pace.left().count(), 0);
    }

    #[test]
    fn what_nobody_began_by_the_end_is_left() {
        let start = Instant::now();
        let shape = Shape::Open {
            rate: 10.0,
            callers: 1,
        };
        let pace = Pace::new(load(shape), start);
        assert!(pace.next_at(start).is_some());
        assert_eq!(pace.next_at(start + Duration::from_secs(1)), None);
        let left: Vec<u128> = pace.left().map(|due| (due - start).as_millis()).collect();
        assert_eq!(left, [100, 200, 300, 400, 500, 600, 700, 800, 900]);
    }

    #[test]
    fn a_closed_loop_is_due_at_once_until_the_end() {
        let start = Instant::now();
        let pace = Pace::new(load(Shape::Closed { callers: 2 }), start);
        let later = start + Duration::from_millis(300);
        assert_eq!(pace.next_at(later), Some(Turn { due: later }));
        pace.stop();
        assert_eq!(pace.next_at(later), None);
        assert_eq!(pace.left().count(), 0);
    }
}
