//! Waiting, for whoever may run on a lane.
//!
//! A runtime with timers looks at its wheel and several times at the clock whenever its thread goes to sleep or wakes up, timers or not: more
//! than a tenth of what a proxy does for a request. So the lanes' runtimes have none, and what waits there is woken from a thread that does.
//! For waits that are to be exact there is `faultbox_engine::timer`.

use std::future::Future;
use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;

/// Drives all timers, once there are runtimes without.
static CLOCK: OnceLock<Handle> = OnceLock::new();

/// From now on runtimes need no timers for [`sleep`] and [`timeout`].
///
/// # Errors
/// What epoll_create1(2), eventfd(2) or clone(2) say.
pub fn start() -> io::Result<()> {
    if CLOCK.get().is_some() {
        return Ok(());
    }
    let runtime = Builder::new_current_thread().enable_time().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("clock".to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    // Where two start it at the same time, the second one's thread has nothing to do.
    let _ = CLOCK.set(handle);
    Ok(())
}

/// Sleeps for `how_long`, rounded up to milliseconds. Before [`start`], on the timers of the runtime that it is called in.
pub async fn sleep(how_long: Duration) {
    let nap = async move { tokio::time::sleep(how_long).await };
    match CLOCK.get() {
        Some(clock) => {
            let mut nap = Nap(clock.spawn(nap));
            // The clock's thread ends with the process.
            let _ = (&mut nap.0).await;
        }
        None => nap.await,
    }
}

/// A sleep on the clock's thread, which ends with whoever waits for it.
struct Nap(JoinHandle<()>);

impl Drop for Nap {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What `work` comes to, if it does within `limit`.
pub async fn timeout<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = sleep(limit) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_runtime_without_timers_can_wait() {
        start().unwrap();
        start().unwrap();
        let runtime = Builder::new_current_thread().build().unwrap();
        let began = Instant::now();
        runtime.block_on(async {
            sleep(Duration::from_millis(20)).await;
            let never = std::future::pending::<()>();
            assert!(timeout(Duration::from_millis(20), never).await.is_none());
            let long = Duration::from_secs(3600);
            assert_eq!(timeout(long, async { 7 }).await, Some(7));
        });
        assert!(began.elapsed() >= Duration::from_millis(40));
    }
}
