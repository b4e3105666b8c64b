//! What a sleep holds open. Alone in its process, so that no other test's timers are counted.

use std::time::{Duration, Instant};

use faultbox_engine::timer::sleep_until;

/// How many timerfds this process has open.
fn timers() -> usize {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|link| link.as_os_str() == "anon_inode:[timerfd]")
        .count()
}

#[tokio::test]
async fn a_dropped_sleep_leaves_nothing_behind() {
    assert_eq!(timers(), 0);
    // A deadline so near that the timerfd is used at once, and that the first poll does not reach; again and again, because a busy
    // machine may let the deadline pass between these two lines.
    let mut sleeps = vec![];
    let mut held = 0;
    while held < 5 && sleeps.len() < 2000 {
        let mut sleep = Box::pin(sleep_until(Instant::now() + Duration::from_millis(2)));
        let _ = tokio::time::timeout(Duration::ZERO, sleep.as_mut()).await;
        sleeps.push(sleep);
        held = timers();
    }
    assert!(held > 0, "no sleep used a timer");
    drop(sleeps);
    assert_eq!(timers(), 0);
}
