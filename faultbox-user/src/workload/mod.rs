//! Load: when the next call is due, and what came of all of them. What is called is the caller's affair.
//!
//! An open loop calls at a rate, whether or not earlier calls have been answered; the latency of a call counts from the moment it was due, so that
//! a stall is seen by every call that fell into it and not only by the one that waited (coordinated omission). A closed loop calls
//! as soon as the call before has been answered.

pub mod line;
pub mod pace;
pub mod tally;

use std::cell::RefCell;
use std::time::{Duration, Instant};

use faultbox_contract::Kept;
use serde::{Deserialize, Serialize};

use crate::sys::names::errno;
use crate::sys::wake::exact_timers;

pub use line::Line;
pub use pace::{Pace, Turn};
pub use tally::{Slot, Summary, Tally};

/// Who calls, and when.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// So many calls a second, however long each takes.
    Open {
        /// Calls a second; above zero.
        rate: f64,
        /// The most calls at the same time; those due beyond wait, and their wait counts.
        callers: usize,
    },
    /// So many callers, each of which calls again when it has been answered.
    Closed {
        /// At least one.
        callers: usize,
    },
}

impl Shape {
    /// How many callers there are at most.
    pub fn callers(self) -> usize {
        match self {
            Shape::Open { callers, .. } | Shape::Closed { callers } => callers,
        }
    }

    /// The rate asked for.
    pub fn rate(self) -> Option<f64> {
        match self {
            Shape::Open { rate, .. } => Some(rate),
            Shape::Closed { .. } => None,
        }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Shape::Open { rate, .. } => write!(f, "{rate} a second"),
            Shape::Closed { callers: 1 } => f.write_str("one after the other"),
            Shape::Closed { callers } => write!(f, "{callers} at a time"),
        }
    }
}

/// A load to put on something.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Who calls, and when.
    pub shape: Shape,
    /// For how long calls are begun; those in flight at its end are waited for.
    pub duration: Duration,
    /// How long an entry of the timeline is.
    pub interval: Duration,
}

/// Between starting the callers and the first turn, so that the first calls are not late.
pub const LEAD: Duration = Duration::from_millis(5);
/// The most callers of one load: each is a thread.
pub const MAX_CALLERS: usize = 1024;
/// The callers of an open loop that does not say: enough for a stall of some tenths of a second at a few hundred calls a second.
pub const DEFAULT_CALLERS: usize = 64;
/// The highest rate that can be asked for; no generator here gets near it.
pub const MAX_RATE: f64 = 1e6;
/// The most entries of a timeline.
const MAX_SLOTS: u32 = 1000;

impl Load {
    /// A load whose timeline has some fifty entries, none shorter than a tenth of a second.
    pub fn new(shape: Shape, duration: Duration) -> Load {
        let interval = (duration / 50)
            .clamp(Duration::from_millis(100), Duration::from_secs(1))
            .max(Load::shortest_interval(duration));
        Load {
            shape,
            duration,
            interval,
        }
    }

    /// How many callers there are: no more than calls.
    pub fn callers(&self) -> usize {
        let most = self.shape.callers();
        match self.shape.rate() {
            Some(rate) => {
                let calls = (rate * self.duration.as_secs_f64()).ceil();
                most.min(calls as usize).max(1)
            }
            None => most,
        }
    }

    /// The shortest that an interval of a timeline over this duration may be.
    pub fn shortest_interval(duration: Duration) -> Duration {
        (duration / MAX_SLOTS).max(Duration::from_millis(1))
    }
}

/// What came of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// It succeeded.
    Ok,
    /// It failed; by what name failures of its kind are counted.
    Failed(String),
    /// It failed because nobody answered: refused, cut off, not in time.
    Unanswered(String),
}

/// Hands out turns to callers, and hears what came of them.
pub trait Turns: Sync {
    /// The next turn; `None` when the load is over.
    fn next(&self) -> Option<Turn>;
    /// Writes down what came of one.
    fn record(&self, turn: &Turn, began: Instant, ended: Instant, done: Done);
    /// Ends the load for all callers.
    fn stop(&self);
}

/// A load that is put on once.
#[derive(Debug)]
pub struct Once {
    pace: Pace,
    tally: Tally,
}

impl Once {
    /// It begins at once.
    pub fn new(load: Load) -> Once {
        let pace = Pace::new(load, Instant::now() + LEAD);
        let tally = Tally::of(load, pace.start());
        Once { pace, tally }
    }

    /// What came of it. All callers have ended.
    pub fn finish(self) -> Summary {
        let left = (!self.pace.was_stopped()).then(|| self.pace.left());
        self.tally
            .finish(left.into_iter().flatten(), self.pace.end())
    }
}

impl Turns for Once {
    fn next(&self) -> Option<Turn> {
        self.pace.next()
    }

    fn record(&self, turn: &Turn, began: Instant, ended: Instant, done: Done) {
        self.tally.record(turn, began, ended, done);
    }

    fn stop(&self) {
        self.pace.stop();
    }
}

/// Ends the load if the caller that holds it panics: nobody would hear from it again.
#[derive(Debug)]
pub struct Alarm<'a, T: Turns + ?Sized>(pub &'a T);

impl<T: Turns + ?Sized> Drop for Alarm<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

thread_local! {
    /// This caller's connections.
    static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

/// The connections that the caller on this thread keeps from call to call; `None` on a thread that is no caller's.
pub fn kept() -> Option<Kept> {
    KEPT.with_borrow(Option::clone)
}

/// Lets what this thread calls keep its connections, for as long as what is returned lives.
pub fn keeping() -> Keeping {
    KEPT.set(Some(Kept::default()));
    Keeping(())
}

/// See [`keeping`].
#[derive(Debug)]
#[must_use]
pub struct Keeping(());

impl Drop for Keeping {
    fn drop(&mut self) {
        KEPT.set(None);
    }
}

/// Makes the call of one caller, on that caller's thread.
pub type Caller<'a> = dyn Fn() -> Box<dyn FnMut() -> Done + 'a> + Sync + 'a;

/// Makes calls on a line with so many callers, each a thread that keeps its connections, until the line is over.
///
/// # Errors
/// A thread could not be started; those that were have ended by then.
pub fn man(line: &Line, callers: usize, caller: &Caller<'_>) -> std::io::Result<()> {
    std::thread::scope(|scope| {
        for i in 0..callers {
            let body = move || {
                let _alarm = Alarm(line);
                let _keeping = keeping();
                let mut call = caller();
                while let Some(turn) = line.next() {
                    let began = Instant::now();
                    let done = call();
                    line.record(&turn, began, Instant::now(), done);
                }
            };
            let started = std::thread::Builder::new()
                .name(format!("caller {i}"))
                .spawn_scoped(scope, body);
            if let Err(e) = started {
                line.stop();
                return Err(e);
            }
        }
        Ok(())
    })
}

/// What a client calls it when nobody answered, besides the names of errno(3): a stream that ended, and what drivers make of that.
const CUT_OFF: [&str; 5] = ["EOF", "08001", "08006", "2006", "2013"];

/// Does this code of a failure say that no answer came at all?
pub fn is_silence(code: &str) -> bool {
    CUT_OFF.contains(&code) || (code.starts_with('E') && errno(code).is_some())
}

thread_local! {
    /// Nobody answered the last step of this thread.
    static SILENCE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Takes note of what came back to a step of this thread: what a function raises afterwards does not tell.
pub fn heard(response: &faultbox_contract::Response) {
    SILENCE.set(!response.ok && response.status == 0 && is_silence(&response.code));
}

/// Did nobody answer this thread's last step? Asking forgets it.
pub fn was_silence() -> bool {
    SILENCE.replace(false)
}

/// Sleeps until a moment, as exactly as the kernel can: its default slack of 50 us would count as latency of every call.
pub fn sleep_until(due: Instant) {
    if due <= Instant::now() {
        return;
    }
    exact_timers();
    std::thread::sleep(due.saturating_duration_since(Instant::now()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_an_answer_and_a_refusal_is_none() {
        for code in ["ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "EOF", "08006"] {
            assert!(is_silence(code), "{code}");
        }
        for code in ["", "ERR", "EXECABORT", "53100", "READONLY", "1064"] {
            assert!(!is_silence(code), "{code}");
        }
    }
}
