//! Sleeping until an instant, to the tens of microseconds.
//!
//! tokio's timer wheel turns once a millisecond and rounds up, so that its sleep of 1 ms takes about 2. Here the coarse part of a
//! wait is tokio's, on the clock's thread, the last milliseconds are a timerfd's (an hrtimer, which wakes the runtime through epoll like any socket),
//! and what is left after a wake-up that came early is spent yielding to other tasks.
//!
//! How late wake-ups come depends on the machine and its load, so it is learned: the timer is set as much early as the last
//! wake-ups were late, and a little more.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use faultbox_contract::clock;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// tokio's wheel may be late by one tick, plus the wake-up.
const COARSE_MARGIN: Duration = Duration::from_micros(2_500);
/// What the lateness of wake-ups is taken to be before the first one.
const FIRST_GUESS: u64 = 60_000;
/// Yielding for longer than this would take a CPU from the services; a machine that wakes later than that is overloaded.
const MOST: u64 = 300_000;
/// A wake-up is allowed to come so much later than usual.
const SLACK: u64 = 15_000;

/// How late wake-ups came lately, in nanoseconds.
struct Lateness(AtomicU64);

/// Shared, because it is the machine's property and not a sleeper's.
static LATENESS: Lateness = Lateness(AtomicU64::new(FIRST_GUESS));

impl Lateness {
    /// How early the timer is set.
    fn early(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed).min(MOST) + SLACK)
    }

    /// Follows the lateness upward quickly and downward slowly: yielding a little longer costs less than being late. Two sleepers
    /// that learn at once lose one of both lessons, which does no harm.
    fn learn(&self, late: Duration) {
        let late = u64::try_from(late.as_nanos()).unwrap_or(u64::MAX).min(MOST);
        let known = self.0.load(Ordering::Relaxed);
        let next = match late.checked_sub(known) {
            Some(more) => known + more / 4,
            None => known - (known - late) / 32,
        };
        self.0.store(next, Ordering::Relaxed);
    }
}

/// Sleeps until `deadline`; never ends early.
pub async fn sleep_until(deadline: Instant) {
    let left = || deadline.saturating_duration_since(Instant::now());
    if let Some(coarse) = left().checked_sub(COARSE_MARGIN) {
        clock::sleep(coarse).await;
    }
    if let Some(fine) = left()
        .checked_sub(LATENESS.early())
        .filter(|d| !d.is_zero())
    {
        let due = Instant::now() + fine;
        // Without a descriptor to spare, being late by a millisecond is better than failing.
        match timerfd_sleep(fine).await {
            Ok(()) => LATENESS.learn(due.elapsed()),
            Err(_) => clock::sleep(left()).await,
        }
    }
    while !left().is_zero() {
        tokio::task::yield_now().await;
    }
}

/// Sleeps for `how_long` on a timerfd of its own.
async fn timerfd_sleep(how_long: Duration) -> io::Result<()> {
    let fd = timerfd(how_long)?;
    // SAFETY: `register` asks that the descriptor stay the same open file while it is registered: an OwnedFd that the AsyncFd
    // owns, and nobody else knows, does.
    let timer = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
        .map_err(io::Error::from)?;
    let _expired = timer.readable().await?;
    Ok(())
}

/// A timerfd that becomes readable after `how_long`.
fn timerfd(how_long: Duration) -> io::Result<OwnedFd> {
    // SAFETY: timerfd_create takes no pointers.
    let fd = unsafe {
        libc::timerfd_create(
            libc::CLOCK_MONOTONIC,
            libc::TFD_CLOEXEC | libc::TFD_NONBLOCK,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let at = libc::itimerspec {
        it_interval: libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: libc::timespec {
            tv_sec: how_long.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: how_long.subsec_nanos().into(),
        },
    };
    // SAFETY: `at` is a valid itimerspec for the length of the call; a null old value is allowed (timerfd_settime(2)).
    let done = unsafe { libc::timerfd_settime(fd.as_raw_fd(), 0, &at, std::ptr::null_mut()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sleeps_until_the_deadline_and_not_less() {
        for us in [0, 10, 100, 1_000, 3_000, 20_000] {
            let how_long = Duration::from_micros(us);
            let start = Instant::now();
            sleep_until(start + how_long).await;
            assert!(start.elapsed() >= how_long, "{us}");
        }
    }

    #[test]
    fn lateness_is_followed_up_quickly_and_down_slowly() {
        let lateness = Lateness(AtomicU64::new(FIRST_GUESS));
        for _ in 0..100 {
            lateness.learn(Duration::from_micros(200));
        }
        assert!(lateness.early() > Duration::from_micros(200));
        lateness.learn(Duration::from_secs(1));
        assert!(lateness.early() > Duration::from_micros(220));
        assert!(lateness.early() <= Duration::from_nanos(MOST + SLACK));
        lateness.learn(Duration::ZERO);
        assert!(lateness.early() > Duration::from_micros(220));
        for _ in 0..1000 {
            lateness.learn(Duration::ZERO);
        }
        assert!(lateness.early() < Duration::from_micros(20));
    }

    #[tokio::test]
    async fn other_tasks_run_meanwhile() {
        let start = Instant::now();
        let sleepers: Vec<_> = (0..200)
            .map(|_| tokio::spawn(sleep_until(start + Duration::from_millis(50))))
            .collect();
        for sleeper in sleepers {
            sleeper.await.unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(60));
    }
}
