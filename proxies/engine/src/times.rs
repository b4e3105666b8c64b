//! What a proxy has added to the requests of one connection that are under way.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use faultbox_contract::Meter;

use crate::added::Added;

/// Requests are counted by who walks along the bytes; this keeps what each has cost until its answer has come.
#[derive(Debug, Default)]
pub struct Times {
    /// Of each batch that went to the server: how many requests, and what the way there added to each.
    sent: VecDeque<(u64, Added)>,
    asked: u64,
    recorded: u64,
}

impl Times {
    /// A batch that was read at `read` has gone to the server; `asked` requests have gone in all.
    pub fn sent(&mut self, asked: u64, read: Instant, injected: Duration) {
        if asked > self.asked {
            let mut added = Added::default();
            added.way(read, injected);
            self.sent.push_back((asked - self.asked, added));
            self.asked = asked;
        }
    }

    /// A batch that was read at `read` has gone to the client; `done` requests are answered in all. With `slowed`, its time is a rule's.
    pub fn answered(&mut self, done: u64, read: Instant, slowed: bool, meter: &Meter) {
        while self.recorded < done
            && let Some(mut added) = self.pop()
        {
            if !slowed {
                added.way(read, Duration::ZERO);
            }
            added.record(meter);
        }
    }

    /// Records what stays unanswered: it was a request all the same.
    pub fn flush(&mut self, meter: &Meter) {
        while let Some(added) = self.pop() {
            added.record(meter);
        }
    }

    /// The next request that is not recorded yet.
    fn pop(&mut self) -> Option<Added> {
        let (left, added) = self.sent.front_mut()?;
        let added = *added;
        *left -= 1;
        if *left == 0 {
            self.sent.pop_front();
        }
        self.recorded += 1;
        Some(added)
    }
}
