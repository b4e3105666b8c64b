//! Which calls were let through before arming stopped their threads.
//!
//! A call that the loop has let through, and that sleeps, is interrupted by the stop, made again and trapped once more. To decide about it
//! again would count it twice. But its registers do not tell it from a call that was trapped and still waited for the loop, and to let that
//! one through would let it escape. So threads are looked at before anything is stopped: who slept in a trapped call then, of whom the loop
//! has received nothing since, and who has not slept again since, sleeps in a call that was let through. Of all others the calls are decided
//! once more: counting one twice does less harm than missing one.

use std::collections::{BTreeMap, BTreeSet};

use super::notify::Shared;
use crate::sys::{procfs, ptrace};

/// Threads that slept in a trapped call when nothing was stopped yet.
pub(super) struct Asleep<'a> {
    shared: &'a Shared,
    calls: BTreeMap<i32, Call>,
}

#[derive(PartialEq, Eq)]
struct Call {
    nr: i64,
    args: [u64; 6],
    /// How often its thread has gone to sleep, this time included.
    sleeps: u64,
}

impl Asleep<'_> {
    /// Looks, before anything is stopped.
    pub(super) fn before<'a>(shared: &'a Shared, trapped: &BTreeSet<i64>) -> Asleep<'a> {
        let mut asleep = Asleep {
            shared,
            calls: BTreeMap::new(),
        };
        if !shared.watch() {
            return asleep;
        }
        let threads = (shared.tree)().into_iter().flat_map(procfs::threads);
        asleep.calls = threads
            .filter_map(|tid| Some((tid, look(tid, trapped)?)))
            .collect();
        // What waited for the loop when it was looked at has been received by now.
        asleep.drop_heard();
        asleep
    }

    /// Those of these threads, which are stopped now, that still stand in their call: thread, number, arguments.
    pub(super) fn still(mut self, stopped: &BTreeSet<i32>) -> Vec<(i32, i64, [u64; 6])> {
        if self.calls.is_empty() {
            return vec![];
        }
        self.drop_heard();
        let calls = self.calls.iter().filter(|(tid, _)| stopped.contains(tid));
        let same = |tid: i32, call: &Call| {
            // The stop is a sleep, too.
            ptrace::interrupted_call(tid) == Some((call.nr, call.args))
                && sleeps(tid) == Some(call.sleeps + 1)
        };
        calls
            .filter(|(tid, call)| same(**tid, call))
            .map(|(tid, call)| (*tid, call.nr, call.args))
            .collect()
    }

    /// Forgets the threads that the loop has received calls of.
    fn drop_heard(&mut self) {
        match self.shared.heard() {
            Some(heard) => self.calls.retain(|tid, _| !heard.contains(tid)),
            None => self.calls.clear(),
        }
    }
}

impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        self.shared.unwatch();
    }
}

fn look(tid: i32, trapped: &BTreeSet<i64>) -> Option<Call> {
    let (nr, args) = procfs::sleeping_call(tid).filter(|(nr, _)| trapped.contains(nr))?;
    let sleeps = sleeps(tid)?;
    // Is it still so? Then the count belongs to this call.
    let again = procfs::sleeping_call(tid)?;
    (again == (nr, args)).then_some(Call { nr, args, sleeps })
}

fn sleeps(tid: i32) -> Option<u64> {
    let told = procfs::status_field(tid, "voluntary_ctxt_switches").ok()?;
    told.parse().ok()
}
