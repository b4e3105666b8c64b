//! One Starlark heap, several threads, one at a time.
//!
//! The branches of `parallel()` run on threads of their own but share the heap of the test that called it, because they are closures
//! over its values. Starlark's heap is not thread-safe; whoever holds the baton may touch it, nobody else.

use std::sync::{Condvar, Mutex, PoisonError};

use starlark::environment::Module;
use starlark::values::Value;

/// Held by the one thread that may execute Starlark.
#[derive(Debug)]
pub struct Baton {
    held: Mutex<bool>,
    freed: Condvar,
}

impl Baton {
    /// A baton in the hands of its maker.
    pub fn held() -> Baton {
        Baton {
            held: Mutex::new(true),
            freed: Condvar::new(),
        }
    }

    /// Waits for the baton and takes it.
    pub fn take(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        while *held {
            held = self
                .freed
                .wait(held)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *held = true;
    }

    /// Puts the baton down.
    pub fn put(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.freed.notify_one();
    }

    /// Puts the baton down while `work` runs, and takes it again, also when `work` panics. `work` must not touch the heap.
    pub fn without<R>(&self, work: impl FnOnce() -> R) -> R {
        struct Retake<'a>(&'a Baton);
        impl Drop for Retake<'_> {
            fn drop(&mut self) {
                self.0.take();
            }
        }
        self.put();
        let _retake = Retake(self);
        work()
    }
}

/// The stack of a branch: deep recursion ends at Starlark's own limit, well before this.
const BRANCH_STACK: usize = 64 << 20;

/// What crosses to a branch's thread and back.
struct Crossing<T>(T);

// SAFETY: see `run_branches`, the only maker of this type.
unsafe impl<T> Send for Crossing<T> {}

/// Calls `run` for each function, each on a thread of its own, and returns the results in order. The caller holds the baton; it is
/// put down while the branches run, and each branch holds it whenever `run` executes. `run` may put it down by [`Baton::without`].
///
/// # Errors
/// No thread could be started; the branches that were started have ended by then.
pub fn run_branches<'v, R>(
    baton: &Baton,
    module: &Module<'v>,
    functions: &[Value<'v>],
    run: impl Fn(&Module<'v>, Value<'v>) -> R + Sync,
) -> std::io::Result<Vec<R>> {
    let run = &run;
    std::thread::scope(|scope| {
        let mut threads = vec![];
        let mut refused = None;
        for function in functions {
            let crossing = Crossing((module, *function));
            // SAFETY of the crossings: `&Module<'v>`, `Value<'v>` and R (which may hold values of the same heap) are not `Send`
            // because the heap behind them uses unsynchronised interior mutability. Here every access to it happens between
            // `take` and `put` of one baton: the caller holds it on entry and puts it down before it waits for the branches; a
            // branch touches values only between its own `take` and `put`; and the mutex inside the baton orders each holder's
            // accesses before the next holder's. Nothing in the heap belongs to a thread: its chunks are reference-counted
            // atomically, because frozen heaps cross threads, and Starlark's thread-locals are a recursion counter, a guard
            // against cyclic printing, both empty between calls, and a cache of free chunks, owned by its thread. The garbage
            // collector, which would move values under another branch's feet, is disabled on every evaluator of a running
            // test. The scope keeps `module` and the functions alive until all branches have ended.
            let started = std::thread::Builder::new()
                .name("branch".into())
                .stack_size(BRANCH_STACK)
                .spawn_scoped(scope, move || {
                    // Named whole, so that the closure captures the crossing and not the fields inside it.
                    let crossing = crossing;
                    let Crossing((module, function)) = crossing;
                    struct Put<'a>(&'a Baton);
                    impl Drop for Put<'_> {
                        fn drop(&mut self) {
                            self.0.put();
                        }
                    }
                    baton.take();
                    let _put = Put(baton);
                    Crossing(run(module, function))
                });
            match started {
                Ok(thread) => threads.push(thread),
                Err(e) => {
                    refused = Some(e);
                    break;
                }
            }
        }
        let ended: Vec<_> = baton.without(|| threads.into_iter().map(|t| t.join()).collect());
        let results = ended
            .into_iter()
            .map(|end| match end {
                Ok(Crossing(result)) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect();
        match refused {
            None => Ok(results),
            Some(e) => Err(e),
        }
    })
}
