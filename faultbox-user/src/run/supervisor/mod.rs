//! Syscall faults by seccomp user notification: arming and widening of running processes, decisions, counters.
//!
//! README.md beside this file tells a maintainer how it works.

mod arming;
mod asleep;
mod call;
pub mod cut;
mod decide;
mod notify;
pub mod sever;
pub mod sockets;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use faultbox_contract::trigger::seed_of;
use faultbox_contract::{Meter, Trigger};

use crate::events::EventLog;
use crate::plan::{IoUring, SyscallRule};
use crate::sys::names;
use crate::sys::seccomp::{BYPASSES, Listener};
use crate::sys::wake::Waker;

pub use self::decide::Rehearsal;
use self::decide::Table;
use self::notify::Shared;

/// A syscall rule in force.
#[derive(Debug)]
pub struct ArmedSyscall {
    /// Unique within the test; grows with every arming, so that "most recently applied" is "largest id".
    pub id: u64,
    /// The fault's name, for events.
    pub fault: String,
    /// The rule.
    pub rule: Arc<SyscallRule>,
    /// When it fires.
    pub trigger: Trigger,
    /// For [`SyscallAction::Mute`](crate::plan::SyscallAction::Mute): the cut that keeps the sockets.
    cut: Option<Arc<cut::Cut>>,
    seed: u64,
    shadowed: AtomicU64,
}

impl ArmedSyscall {
    /// `seed` as for [`Trigger::new`].
    pub fn new(id: u64, fault: String, rule: Arc<SyscallRule>, seed: u64) -> ArmedSyscall {
        let trigger = Trigger::new(rule.trigger.clone(), seed);
        ArmedSyscall {
            id,
            fault,
            rule,
            trigger,
            cut: None,
            seed,
            shadowed: AtomicU64::new(0),
        }
    }

    /// The same with the cut that sockets belong to which it mutes.
    #[must_use]
    pub fn of_cut(mut self, cut: &Arc<cut::Cut>) -> ArmedSyscall {
        self.cut = Some(cut.clone());
        self
    }

    /// How many calls it has decided or delayed.
    pub fn hits(&self) -> u64 {
        // In this order: a call that is decided between the two looks must not count as shadowed before it has fired.
        let shadowed = self.shadowed();
        self.trigger.fired().saturating_sub(shadowed)
    }

    /// How many calls it would have decided had no later fault done so.
    pub fn shadowed(&self) -> u64 {
        self.shadowed.load(Ordering::Relaxed)
    }

    fn count_shadowed(&self) {
        self.shadowed.fetch_add(1, Ordering::Relaxed);
    }

    /// How long a delay lasts for the call that has just matched: uniform in `duration` ± `jitter`, by the seed and the
    /// number of that call.
    fn jittered(&self, duration: Duration, jitter: Duration) -> Duration {
        if jitter.is_zero() {
            return duration;
        }
        let call = self.trigger.matched().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // 53 bits: the mantissa of an f64.
        let draw = (seed_of(self.seed ^ call, &["jitter"]) >> 11) as f64 / (1u64 << 53) as f64;
        let deviation = jitter.mul_f64((2.0 * draw - 1.0).abs());
        if draw < 0.5 {
            duration.saturating_sub(deviation)
        } else {
            duration.saturating_add(deviation)
        }
    }
}

/// How a syscall fault came into force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// The kernel refuses by itself, without a word to us.
    InKernel,
    /// A filter put into the running process by ptrace.
    Armed,
    /// A filter that the process installed before exec, because ptrace is refused here.
    BeforeExec,
}

/// Why a fault could not be put in force.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ArmError {
    /// What went wrong, a lower-case fragment.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The machine refuses ptrace: an environment problem, not the spec's.
    pub refused: bool,
}

impl ArmError {
    fn new(message: impl Into<String>) -> ArmError {
        ArmError {
            message: message.into(),
            help: None,
            refused: false,
        }
    }

    fn help(mut self, help: &str) -> ArmError {
        self.help = Some(help.to_owned());
        self
    }
}

/// Lists the live processes of a service's tree (thread group ids), in any order.
pub type ProcessTree = Arc<dyn Fn() -> Vec<i32> + Send + Sync>;

/// The supervisor of one service's processes, from their launch to their end. A service that is started again gets a new one.
///
/// Drop it after the processes are gone: any that still live under a filter are killed, since nobody would answer their calls.
pub struct Supervisor {
    shared: Arc<Shared>,
    /// Held while arming: one at a time.
    arming: Mutex<Arming>,
    /// Every rule in force.
    rules: Mutex<Vec<Arc<ArmedSyscall>>>,
}

/// What has been installed so far.
struct Arming {
    /// The calls that the newest filter traps, in every process of the tree.
    trapped: BTreeSet<i64>,
    /// Does that filter date from before exec?
    before_exec: bool,
    /// A listener that no loop serves yet.
    waiting: Option<Listener>,
    thread: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A filter that was installed before exec: where ptrace is refused, or when a service is started again under faults.
#[derive(Debug)]
pub struct BeforeExec {
    /// Its listener.
    pub listener: std::os::fd::OwnedFd,
    /// The calls that it traps.
    pub numbers: Vec<i64>,
    /// The rules that are in force from the first instruction on.
    pub rules: Vec<Arc<ArmedSyscall>>,
}

/// The numbers of the calls that these rules are about, on this machine.
pub fn numbers<'a>(rules: impl IntoIterator<Item = &'a Arc<ArmedSyscall>>) -> BTreeSet<i64> {
    rules
        .into_iter()
        .flat_map(|rule| decide::numbers(rule))
        .collect()
}

impl Supervisor {
    /// Prepares supervision; starts no thread and touches no process until something is armed, unless there is a `listener`, which is
    /// served at once.
    ///
    /// # Panics
    /// When the process is out of file descriptors or threads.
    pub fn new(
        service: &str,
        tree: ProcessTree,
        io_uring: IoUring,
        log: Arc<EventLog>,
        listener: Option<BeforeExec>,
    ) -> Supervisor {
        let waker = Waker::new().expect("an eventfd can be had");
        let shared = Arc::new(Shared::new(service, tree, io_uring, log, waker));
        let mut arming = Arming {
            trapped: BTreeSet::new(),
            before_exec: listener.is_some(),
            waiting: None,
            thread: None,
        };
        let mut rules = vec![];
        if let Some(installed) = listener {
            // Before anybody answers: the program's first call meets them.
            shared.table.store(Arc::new(Table::new(&installed.rules)));
            rules = installed.rules;
            arming.trapped.extend(installed.numbers);
            arming.waiting = Some(Listener::new(installed.listener));
            arming
                .start(&shared)
                .expect("a thread can be had for the listener installed before exec");
        }
        Supervisor {
            shared,
            arming: Mutex::new(arming),
            rules: Mutex::new(rules),
        }
    }

    /// Puts all of `rules` in force, or none. When it returns `Ok`, every process of the tree, every thread and every child to come is covered.
    ///
    /// Calls that wait in the kernel meanwhile (accept, a blocking read, nanosleep) are made again by the kernel, unseen by
    /// the program, and so fall under the rules too.
    ///
    /// # Errors
    /// ptrace refused and the syscalls not in the filter before exec; a process with a listener of its own; a process that cannot be stopped in time.
    pub fn arm(&self, rules: &[Arc<ArmedSyscall>]) -> Result<Mechanism, ArmError> {
        let mut arming = lock(&self.arming);
        let mut wanted = arming.trapped.clone();
        for rule in rules {
            if decide::numbers(rule).next().is_none() {
                return Err(ArmError::new(format!(
                    "`{}` names no system call of this architecture",
                    rule.rule.text
                )));
            }
            wanted.extend(decide::numbers(rule));
            if self.shared.io_uring != IoUring::Allow
                && let Some(refused) = decide::numbers(rule)
                    .filter_map(names::syscall_name)
                    .find(|name| BYPASSES.contains(name))
            {
                return Err(ArmError::new(format!(
                    "`{refused}` is refused to service `{}` while it can be faulted, so a fault on it would never be hit",
                    self.shared.service
                ))
                .help("start the service with io_uring=\"allow\" to fault it; what then goes through its rings escapes every fault"));
            }
        }
        let mechanism = if wanted.len() == arming.trapped.len() {
            if (self.shared.tree)().is_empty() {
                return Err(ArmError::new(format!(
                    "service `{}` has no running process to put a fault on",
                    self.shared.service
                ))
                .help("arm the fault before the service ends, or restart it first"));
            }
            self.put_in_force(rules);
            if arming.before_exec {
                Mechanism::BeforeExec
            } else {
                Mechanism::Armed
            }
        } else {
            arming
                .start(&self.shared)
                .map_err(|e| ArmError::new(format!("cannot start the notify thread: {e}")))?;
            let mut published = false;
            let trapped = &arming.trapped;
            let result = arming::install(&self.shared, &wanted, trapped, &mut |listeners| {
                self.shared.add(listeners);
                if !published {
                    published = true;
                    self.put_in_force(rules);
                }
            });
            if let Err(mut error) = result {
                if error.refused && !arming.trapped.is_empty() {
                    let missing: Vec<&str> = wanted
                        .difference(&arming.trapped)
                        .filter_map(|nr| names::syscall_name(*nr))
                        .collect();
                    error.message += &format!(
                        ", and the filter installed before exec does not cover {}",
                        missing.join(", ")
                    );
                }
                for rule in rules {
                    self.lift(rule.id);
                }
                return Err(error);
            }
            arming.trapped = wanted;
            arming.before_exec = false;
            Mechanism::Armed
        };
        Ok(mechanism)
    }

    /// Where threads are stopped for it, a reader that waited finds its connection reset when it goes on; one that is
    /// disturbed in its wait gets EPIPE from Linux 6.7 on.
    fn put_in_force(&self, rules: &[Arc<ArmedSyscall>]) {
        let mut all = lock(&self.rules);
        all.extend(rules.iter().cloned());
        self.shared.table.store(Arc::new(Table::new(&all)));
        drop(all);
        for rule in rules.iter().filter(|r| sever::applies(r)) {
            sever::sever(
                &self.shared.service,
                &(self.shared.tree)(),
                rule.rule.dest.as_ref(),
                &rule.fault,
                &self.shared.log,
            );
        }
    }

    /// Why a rule could not be held against a call, if that has happened: a fault that is not enforced must not go unsaid.
    pub fn blindness(&self) -> Option<String> {
        self.shared.blindness()
    }

    /// Lifts exactly the rule with this id; calls that sleep on it go on at once, and when it returns no call is decided by it any more.
    pub fn lift(&self, id: u64) {
        {
            let mut all = lock(&self.rules);
            all.retain(|rule| rule.id != id);
            self.shared.table.store(Arc::new(Table::new(&all)));
        }
        self.shared.lift(id);
    }

    /// Every rule in force, in the order applied.
    pub fn armed_syscalls(&self) -> Vec<Arc<ArmedSyscall>> {
        let mut all = lock(&self.rules).clone();
        all.sort_by_key(|rule| rule.id);
        all
    }

    /// Decision time per trapped call: from the notification's receipt to the answer, injected delays not counted.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.shared.meter
    }

    /// How many calls have been trapped.
    pub fn trapped(&self) -> u64 {
        self.shared.meter.count()
    }
}

impl Arming {
    /// Sees to it that the notify loop runs.
    fn start(&mut self, shared: &Arc<Shared>) -> std::io::Result<()> {
        if self.thread.is_none() {
            self.thread = Some(notify::start(shared)?);
        }
        shared.add(self.waiting.take().into_iter().collect());
        Ok(())
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let arming = self
            .arming
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = arming.thread.take() {
            if !arming.trapped.is_empty() {
                self.shared.kill_service();
            }
            self.shared.stop();
            let _ = thread.join();
        }
    }
}
