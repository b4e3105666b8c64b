//! Putting a listener filter into running processes.
//!
//! See the module documentation of [`super`] for the sequence. Everything here runs on one short-lived thread, the tracer:
//! whatever it still traces when it ends, by return or by panic, the kernel lets go.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::plan::IoUring;
use crate::sys::hurry::Hurry;
use crate::sys::ptrace::{self, Injection, Stop};
use crate::sys::seccomp::{self, Listener};
use crate::sys::{memory, names, pidfd, procfs, wake};

use super::ArmError;
use super::asleep::Asleep;
use super::notify::Shared;

/// By when every process must stand still. Generous: threads of an overloaded machine need CPU time to stop.
const DEADLINE: Duration = Duration::from_secs(10);

/// After how long without progress threads in uninterruptible sleep are left to be covered by TSYNC. A thread on its way to
/// a stop needs microseconds of CPU; one in 'D' state is in the kernel and makes no new call before it traps.
const GRACE: Duration = Duration::from_millis(30);

/// How long a listener that was closed may live on: a process that this one is just starting holds copies of all our
/// descriptors until it calls exec.
const LINGERING: Duration = Duration::from_secs(5);

/// One traced thread.
#[derive(Debug)]
struct Thread {
    tgid: i32,
    stopped: bool,
    /// Left asleep in a call that does not bear interruption. TSYNC covers it.
    resting: bool,
}

/// Calls that an interruption would change, by a name of this architecture or not: the kernel never restarts the first of them
/// (signal(7)), and the others end with a part of what they were to move.
const UNBEARABLE: [&str; 21] = [
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "semop",
    "semtimedop",
    "io_getevents",
    "io_pgetevents",
    "rt_sigtimedwait",
    "write",
    "writev",
    "pwritev",
    "pwritev2",
    "sendto",
    "sendmsg",
    "sendmmsg",
    "sendfile",
    "splice",
    "recvfrom",
    "recvmsg",
    "recvmmsg",
    "vmsplice",
];

/// How far a look at the threads goes: reading /proc costs ten times what asking ptrace does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Those that did not stand still at the last look.
    AtTheMoving,
    /// The same, and have they died?
    ForTheDead,
    /// All.
    Everywhere,
}

/// The threads that the calling thread traces.
#[derive(Debug, Default)]
struct Tracees {
    threads: BTreeMap<i32, Thread>,
    /// The calls in which a thread may be left asleep. None when widening: a thread that wakes while no listener serves its
    /// old filter would get ENOSYS.
    restful: Vec<i64>,
}

/// Stops the service's tree, installs a filter for `numbers` in each of its processes, calls `in_force` with the listeners
/// while everything still stands, and lets go. The loop's listeners for what is `trapped` already are closed in between.
///
/// # Errors
/// Nothing is in force then. A failure when some processes are armed and others are not kills the service.
pub(super) fn install(
    shared: &Shared,
    numbers: &BTreeSet<i64>,
    trapped: &BTreeSet<i64>,
    in_force: &mut (dyn FnMut(Vec<Listener>) + Send),
) -> Result<(), ArmError> {
    let _hurry = Hurry::begin();
    std::thread::scope(|scope| {
        let tracer = std::thread::Builder::new()
            .name("faultbox-arm".to_owned())
            .spawn_scoped(scope, || {
                wake::exact_timers();
                trace(shared, numbers, trapped, in_force)
            })
            .map_err(|e| ArmError::new(format!("cannot start a thread to arm faults: {e}")))?;
        tracer
            .join()
            .unwrap_or_else(|_| Err(ArmError::new("arming failed by a defect of its own")))
    })
}

fn trace(
    shared: &Shared,
    numbers: &BTreeSet<i64>,
    trapped: &BTreeSet<i64>,
    in_force: &mut (dyn FnMut(Vec<Listener>) + Send),
) -> Result<(), ArmError> {
    let widening = !trapped.is_empty();
    let refuse_bypasses = shared.io_uring != IoUring::Allow;
    let program = {
        let numbers: Vec<i64> = numbers.iter().copied().collect();
        seccomp::listener_program(&numbers, refuse_bypasses)
            .map_err(|e| ArmError::new(e.to_string()))?
    };
    let mut deadline = Instant::now() + DEADLINE;
    let mut tracees = Tracees::default();
    if !widening {
        tracees.restful = UNBEARABLE
            .into_iter()
            .filter_map(names::syscall_number)
            .filter(|nr| !numbers.contains(nr))
            .collect();
    }
    let asleep = widening.then(|| Asleep::before(shared, trapped));
    tracees.stop_all(shared, deadline)?;
    let let_through = asleep.map_or_else(Vec::new, |asleep| asleep.still(&tracees.stopped()));
    let (ready, late) = tracees.processes();
    if ready.is_empty() && late.is_empty() {
        return Err(ArmError::new(format!(
            "service `{}` has no running process to put a fault on",
            shared.service
        ))
        .help("arm the fault before the service ends, or restart it first"));
    }
    // From the first filter on none can come into being.
    if refuse_bypasses && !widening {
        for tgid in ready.keys().chain(&late) {
            if let Some(what) = procfs::io_uring(*tgid) {
                return Err(ArmError::new(format!(
                    "process {tgid} ({}) of service `{}` uses io_uring ({what}), which no syscall fault can see",
                    procfs::name(*tgid),
                    shared.service
                ))
                .help("start the service with io_uring=\"deny\", so that it falls back to system calls, or with io_uring=\"allow\" if what goes through the ring may escape the fault"));
            }
        }
    }
    if widening && !shared.release() {
        return Err(ArmError::new(format!(
            "the supervisor of service `{}` does not answer",
            shared.service
        )));
    }
    // A process whose filter has no listener any more would get ENOSYS for what it traps.
    let fail = |mut error: ArmError, half_done: bool| {
        if half_done {
            shared.kill_service();
            error.message += "; the service was half armed and had to be killed";
        }
        Err(error)
    };
    let mut listeners = vec![];
    for (tgid, threads) in &ready {
        let armed = match arm_process(*tgid, threads, &program, widening) {
            Err(Unarmed::Diverged) => tracees
                .all_threads(*tgid, shared, deadline)
                .map_err(Unarmed::Before)
                .and_then(|threads| arm_each(&threads, &program)),
            armed => armed,
        };
        match armed {
            Ok(listener) => listeners.extend(listener),
            Err(unarmed) => {
                let (error, installed) = unarmed.explain(*tgid);
                return fail(error, widening || installed || !listeners.is_empty());
            }
        }
    }
    shared.decided(let_through);
    in_force(listeners);
    tracees.detach_stopped();
    // The parents of vfork(2), which cannot stop before their child lets them go; they trap before their next call.
    for tgid in late {
        loop {
            tracees.sweep(shared, Look::ForTheDead);
            let threads = tracees.stopped_threads(tgid);
            if !threads.is_empty() {
                let armed = match arm_process(tgid, &threads, &program, widening) {
                    Err(Unarmed::Diverged) => arm_each(&threads, &program),
                    armed => armed,
                };
                match armed {
                    Ok(listeners) => in_force(listeners),
                    Err(unarmed) => return fail(unarmed.explain(tgid).0, true),
                }
                break;
            }
            if procfs::live_thread(tgid).is_none() {
                break;
            }
            if shared.holds_calls() {
                // A child of vfork(2) may sleep in a delay of ours, and its parent as long as it does.
                deadline = deadline.max(Instant::now() + DEADLINE);
            }
            if Instant::now() > deadline {
                return fail(ArmError::new(format!(
                    "process {tgid} ({}) of service `{}` sleeps uninterruptibly and cannot be stopped",
                    procfs::name(tgid),
                    shared.service
                )).help("a parent of vfork(2) sleeps until its child calls exec; a call on a dead disk or network file system until that answers"), true);
            }
            ptrace::pause();
        }
        tracees.detach_stopped();
    }
    tracees.detach_stopped();
    Ok(())
}

impl Tracees {
    /// Seizes and stops every thread of the tree, and of what it forks meanwhile. Returns when all stand still, but for
    /// those that sleep uninterruptibly.
    fn stop_all(&mut self, shared: &Shared, deadline: Instant) -> Result<(), ArmError> {
        loop {
            self.seize_new(shared)?;
            self.rouse_one_each();
            self.settle(shared, deadline)?;
            // Everything stands. Has something new appeared before it did, or something come loose by exec(2)?
            let appeared = self.seize_new(shared)?;
            let changed = self.sweep(shared, Look::Everywhere);
            if appeared == 0 && changed == 0 {
                return Ok(());
            }
        }
    }

    /// Waits until all that is seized stands still, but for what sleeps uninterruptibly. The threads need the CPU more than
    /// we do: between looks this sleeps.
    fn settle(&mut self, shared: &Shared, deadline: Instant) -> Result<(), ArmError> {
        let mut progress = Instant::now();
        for round in 0u32.. {
            let look = if round % 32 == 31 {
                Look::ForTheDead
            } else {
                Look::AtTheMoving
            };
            if self.sweep(shared, look) > 0 {
                progress = Instant::now();
            }
            let mut waiting = self
                .threads
                .iter()
                .filter(|(_, t)| !t.stopped && !t.resting)
                .map(|(tid, _)| *tid);
            let Some(first) = waiting.next() else {
                break;
            };
            let uninterruptible =
                |tid: i32| matches!(procfs::state(tid), None | Some('D' | 'Z' | 'X'));
            if progress.elapsed() > GRACE && uninterruptible(first) && waiting.all(uninterruptible)
            {
                break;
            }
            if Instant::now() > deadline {
                return Err(ArmError::new(format!(
                    "thread {first} ({}) of service `{}` did not stop within {} s",
                    procfs::name(first),
                    shared.service,
                    DEADLINE.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    /// Somebody in each process has to install the filter.
    fn rouse_one_each(&mut self) {
        let active: BTreeSet<i32> = self
            .threads
            .values()
            .filter(|t| !t.resting)
            .map(|t| t.tgid)
            .collect();
        let mut roused = BTreeSet::new();
        for (tid, thread) in &mut self.threads {
            if !active.contains(&thread.tgid) && roused.insert(thread.tgid) {
                thread.resting = false;
                let _ = ptrace::interrupt(*tid);
            }
        }
    }

    /// Seizes what is not yet; says how many that were.
    fn seize_new(&mut self, shared: &Shared) -> Result<usize, ArmError> {
        let mut processes: BTreeSet<i32> = (shared.tree)().into_iter().collect();
        // A child may have left the tree that the service's cgroup shows, but not our tracing.
        processes.extend(self.threads.values().map(|t| t.tgid));
        let mut seized = 0;
        for tgid in processes {
            // New threads of a seized thread come in seized, so this ends.
            loop {
                let mut new = 0;
                for tid in procfs::threads(tgid) {
                    if !self.threads.contains_key(&tid) && self.seize(tid, tgid, shared)? {
                        new += 1;
                    }
                }
                seized += new;
                if new == 0 {
                    break;
                }
            }
        }
        Ok(seized)
    }

    fn seize(&mut self, tid: i32, tgid: i32, shared: &Shared) -> Result<bool, ArmError> {
        let mut resting = false;
        let added = match ptrace::seize(tid) {
            Ok(()) => {
                resting = procfs::sleeping_in(tid).is_some_and(|call| self.restful.contains(&call));
                resting || ptrace::interrupt(tid).is_ok()
            }
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) || procfs::is_dead(tid) => false,
            Err(_) if procfs::is_io_worker(tid) => false,
            Err(e) => {
                let tracer = procfs::tracer(tid).unwrap_or(0);
                if tracer != wake::this_thread() {
                    if procfs::is_dead(tid) {
                        return Ok(false);
                    }
                    return Err(refused(tgid, tracer, &e, &shared.service));
                }
                true // the child of a seized thread
            }
        };
        if added {
            self.threads.insert(
                tid,
                Thread {
                    tgid,
                    stopped: false,
                    resting,
                },
            );
        }
        Ok(added)
    }

    /// Looks at every thread once, and says how many have newly come to stand or gone. Those that sleep in a delay are
    /// sent back, so that they can stand.
    fn sweep(&mut self, shared: &Shared, look: Look) -> usize {
        let mut changed = 0;
        let mut spawned = vec![];
        let mut waiting = vec![];
        self.threads.retain(|tid, thread| {
            if thread.stopped && look != Look::Everywhere {
                return true;
            }
            match ptrace::stop(*tid) {
                Some(Stop::Trap) => {
                    if !thread.stopped {
                        changed += 1;
                        let _ = ptrace::hide_interruption(*tid);
                    }
                    thread.stopped = true;
                    thread.resting = false;
                }
                Some(Stop::Spawned(child)) => {
                    spawned.push(child);
                    changed += 1;
                    thread.stopped = false;
                    let _ = ptrace::resume_to_trap(*tid, 0);
                }
                // Delivered as if we were not there: a handler's frame is set up, a stop or death begins. Our trap follows.
                Some(Stop::Signal(signal)) => {
                    thread.stopped = false;
                    let _ = ptrace::resume_to_trap(*tid, signal);
                }
                Some(Stop::Syscall) => {
                    thread.stopped = false;
                    let _ = ptrace::resume_to_trap(*tid, 0);
                }
                None => {
                    if look != Look::AtTheMoving && procfs::is_dead(*tid) {
                        changed += 1;
                        return false;
                    }
                    changed += usize::from(thread.stopped);
                    thread.stopped = false;
                    if !thread.resting {
                        waiting.push(*tid);
                    }
                }
            }
            true
        });
        for child in spawned {
            if let Ok(tgid) = procfs::tgid(child) {
                self.threads.entry(child).or_insert(Thread {
                    tgid,
                    stopped: false,
                    resting: false,
                });
            }
        }
        if !waiting.is_empty() {
            shared.requeue(&waiting);
        }
        changed
    }

    /// The processes with at least one stopped thread, with those threads; and those without.
    fn processes(&self) -> (BTreeMap<i32, Vec<i32>>, Vec<i32>) {
        let all: BTreeSet<i32> = self.threads.values().map(|t| t.tgid).collect();
        let mut ready = BTreeMap::new();
        let mut late = vec![];
        for tgid in all {
            let threads = self.stopped_threads(tgid);
            if threads.is_empty() {
                late.push(tgid);
            } else {
                ready.insert(tgid, threads);
            }
        }
        (ready, late)
    }

    /// All threads of a process, those that were left asleep too: each has to be armed by itself.
    fn all_threads(
        &mut self,
        tgid: i32,
        shared: &Shared,
        deadline: Instant,
    ) -> Result<Vec<i32>, ArmError> {
        for (tid, thread) in &mut self.threads {
            if thread.tgid == tgid && thread.resting {
                thread.resting = false;
                let _ = ptrace::interrupt(*tid);
            }
        }
        self.settle(shared, deadline)?;
        let moving = self
            .threads
            .iter()
            .find(|(_, t)| t.tgid == tgid && !t.stopped);
        match moving {
            None => Ok(self.stopped_threads(tgid)),
            Some((tid, _)) => Err(ArmError::new(format!(
                "thread {tid} of process {tgid} ({}) sleeps uninterruptibly, and cannot be covered by what is done to the others: they have filters of their own",
                procfs::name(tgid)
            ))),
        }
    }

    fn stopped_threads(&self, tgid: i32) -> Vec<i32> {
        self.threads
            .iter()
            .filter(|(_, t)| t.tgid == tgid && t.stopped)
            .map(|(tid, _)| *tid)
            .collect()
    }

    fn stopped(&self) -> BTreeSet<i32> {
        let stopped = self.threads.iter().filter(|(_, t)| t.stopped);
        stopped.map(|(tid, _)| *tid).collect()
    }

    fn detach_stopped(&mut self) {
        self.threads.retain(|tid, thread| {
            if thread.stopped {
                let _ = ptrace::detach(*tid);
            }
            !thread.stopped
        });
    }
}

fn refused(tgid: i32, tracer: i32, error: &io::Error, service: &str) -> ArmError {
    let name = procfs::name(tgid);
    if tracer != 0 {
        return ArmError::new(format!(
            "process {tgid} ({name}) of service `{service}` is already traced by process {tracer} ({})",
            procfs::name(tracer)
        ))
        .help("detach the debugger; a process has one tracer at a time");
    }
    ArmError {
        message: format!("ptrace of process {tgid} ({name}) of service `{service}` is refused: {error}"),
        help: Some("declare the fault with fault_assumption(...), which a filter before exec then covers; or run as root or with CAP_SYS_PTRACE, or lower kernel.yama.ptrace_scope; `faultbox doctor` tells more".to_owned()),
        refused: true,
    }
}

/// Why a process is not armed.
enum Unarmed {
    /// Its threads have filters of their own, different ones: each must get ours by itself.
    Diverged,
    /// The filter could not be put there.
    Failed(Failure),
    /// The same, for one thread of several.
    Partly(Failure),
    /// It was not even tried.
    Before(ArmError),
}

impl Unarmed {
    /// For the user; and is there a filter whose calls nobody will answer?
    fn explain(self, tgid: i32) -> (ArmError, bool) {
        match self {
            Unarmed::Diverged => (Failure::Kernel("seccomp", libc::ESRCH).explain(tgid), false),
            Unarmed::Failed(failure) => {
                let installed = matches!(failure, Failure::Installed(..));
                (failure.explain(tgid), installed)
            }
            Unarmed::Partly(failure) => (failure.explain(tgid), true),
            Unarmed::Before(error) => (error, false),
        }
    }
}

/// Installs the program in each of these threads.
fn arm_each(threads: &[i32], program: &[libc::sock_filter]) -> Result<Vec<Listener>, Unarmed> {
    let mut listeners = vec![];
    for tid in threads {
        match inject(*tid, program, 0) {
            Ok(listener) => listeners.push(listener),
            // The thread may have died of a signal to all of them.
            Err(Failure::Around(..)) if procfs::is_dead(*tid) => {}
            Err(failure) if listeners.is_empty() => return Err(Unarmed::Failed(failure)),
            Err(failure) => return Err(Unarmed::Partly(failure)),
        }
    }
    Ok(listeners)
}

/// Installs the program in one process, all of whose threads that matter stand still. None if the process died meanwhile.
fn arm_process(
    tgid: i32,
    threads: &[i32],
    program: &[libc::sock_filter],
    widening: bool,
) -> Result<Vec<Listener>, Unarmed> {
    // A thread that waits in a call is in no one's critical section (rseq(2) forbids calls there).
    let tid = threads
        .iter()
        .copied()
        .find(|tid| ptrace::in_syscall(*tid))
        .or(threads.first().copied());
    let Some(tid) = tid else {
        return Ok(vec![]);
    };
    let deadline = Instant::now() + LINGERING;
    let mut outcome = inject(tid, program, libc::SECCOMP_FILTER_FLAG_TSYNC);
    while widening
        && matches!(outcome, Err(Failure::Kernel("seccomp", libc::EBUSY)))
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(1));
        outcome = inject(tid, program, libc::SECCOMP_FILTER_FLAG_TSYNC);
    }
    match outcome {
        Ok(listener) => Ok(vec![listener]),
        Err(Failure::Kernel("seccomp", libc::ESRCH)) => Err(Unarmed::Diverged),
        // What our own doing has killed is no process that has come to its end.
        Err(failure @ (Failure::Killed | Failure::Installed(..))) => Err(Unarmed::Failed(failure)),
        Err(_) if procfs::live_thread(tgid).is_none() => Ok(vec![]),
        Err(failure) => Err(Unarmed::Failed(failure)),
    }
}

/// Why an injection came to nothing.
enum Failure {
    /// The kernel refused this injected call with this errno.
    Kernel(&'static str, i32),
    /// Something around it failed.
    Around(&'static str, io::Error),
    /// The same, with the filter in place already.
    Installed(&'static str, io::Error),
    /// The thread, which has a filter of its own, died of a call that it was made to make.
    Killed,
}

impl Failure {
    fn explain(self, tgid: i32) -> ArmError {
        let name = procfs::name(tgid);
        match self {
            Failure::Kernel("seccomp", libc::EBUSY) => ArmError::new(format!(
                "process {tgid} ({name}) already has a seccomp listener of its own, and the kernel allows one"
            ))
            .help("turn off the sandbox that it puts itself into, or put the fault on another process"),
            Failure::Kernel(call, errno) => ArmError::new(format!(
                "process {tgid} ({name}) cannot be given a filter: {call}: {}",
                io::Error::from_raw_os_error(errno)
            ))
            .help(match errno {
                libc::ENOMEM | libc::EAGAIN => {
                    "the process is made to call this itself, and has no memory left for it: raise its limits (`ulimit -v`, its cgroup's memory.max)"
                }
                _ => {
                    "the process is made to call this itself, and something refuses it: turn off the sandbox that it puts itself into (or have that allow mmap, munmap and seccomp), look at the security module of this machine (SELinux, AppArmor), or put the fault on another process"
                }
            }),
            Failure::Killed => ArmError::new(format!(
                "process {tgid} ({name}) died while it was given a filter: it has one of its own, which kills it for the calls that this takes (mmap, seccomp)"
            ))
            .help("turn off the sandbox that it puts itself into, have it refuse with an errno instead, or put the fault on another process"),
            Failure::Around(step, error) | Failure::Installed(step, error) => ArmError::new(format!(
                "process {tgid} ({name}) cannot be given a filter: {step}: {error}"
            )),
        }
    }
}

/// Makes one thread install the filter and hands its listener over.
fn inject(tid: i32, program: &[libc::sock_filter], sync: u64) -> Result<Listener, Failure> {
    let around = |step| move |e| Failure::Around(step, e);
    let installed = |step| move |e| Failure::Installed(step, e);
    // Of the thread: the process' first may be gone, and its descriptors with it.
    let pidfd = pidfd::open_thread(tid).map_err(around("pidfd_open"))?;
    let filtered = procfs::is_filtered(tid);
    let site = ptrace::syscall_site(tid).map_err(around("find a system call instruction"))?;
    let mut injection = Injection::begin(tid, site).map_err(around("ptrace"))?;
    // The program gets a page of its own. Below the stack pointer there may be nothing (a fresh stack) or somebody else's
    // memory (goroutine stacks are a few kilobytes of heap), and what is above may be read by a garbage collector.
    let code = seccomp::program_bytes(program);
    let fprog_len = seccomp::fprog(0, 0).len();
    let len = (fprog_len + code.len()) as u64;
    let result = map_by(&mut injection, len).and_then(|page| {
        let mut bytes = seccomp::fprog(program.len(), page + fprog_len as u64).to_vec();
        bytes.extend(code);
        let fd = memory::write_all(tid, page, &bytes)
            .map_err(around("write its memory"))
            .and_then(|()| install_by(&mut injection, page, sync));
        let unmapped = injection.call(libc::SYS_munmap, [page, len, 0, 0, 0]);
        let fd = fd?;
        let copy = pidfd::get_fd(pidfd.as_fd(), fd).map_err(installed("pidfd_getfd"));
        unmapped.map_err(installed("munmap"))?;
        injection
            .call(libc::SYS_close, [fd as u64, 0, 0, 0, 0])
            .map_err(installed("close"))?;
        copy
    });
    let ended = injection.end();
    let fd = match result {
        Err(Failure::Around(..) | Failure::Installed(..)) if filtered && procfs::is_dead(tid) => {
            return Err(Failure::Killed);
        }
        result => result?,
    };
    ended.map_err(installed("ptrace"))?;
    Ok(Listener::new(fd))
}

/// Has the thread map memory of its own.
fn map_by(injection: &mut Injection, len: u64) -> Result<u64, Failure> {
    let (protection, kind) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    let args = [0, len, protection as u64, kind as u64, u64::MAX];
    let address = injection
        .call(libc::SYS_mmap, args)
        .map_err(|e| Failure::Around("mmap", e))?;
    // The last page of the address space is for errors.
    if (-4095..0).contains(&address) {
        return Err(Failure::Kernel("mmap", -address as i32));
    }
    Ok(address as u64)
}

/// Calls seccomp(2) in the thread, with the best flags that this kernel has and no more privilege than needed.
fn install_by(injection: &mut Injection, fprog: u64, sync: u64) -> Result<i32, Failure> {
    let around = |e| Failure::Around("seccomp", e);
    let mut result = i64::from(-libc::EINVAL);
    for flags in seccomp::LISTENER_FLAGS {
        let args = [
            u64::from(libc::SECCOMP_SET_MODE_FILTER),
            flags | sync,
            fprog,
            0,
            0,
        ];
        result = injection.call(libc::SYS_seccomp, args).map_err(around)?;
        if result == i64::from(-libc::EACCES) {
            // Without CAP_SYS_ADMIN a process may filter itself only if exec can never raise its privileges again.
            let args = [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0];
            injection.call(libc::SYS_prctl, args).map_err(around)?;
            let args = [
                u64::from(libc::SECCOMP_SET_MODE_FILTER),
                flags | sync,
                fprog,
                0,
                0,
            ];
            result = injection.call(libc::SYS_seccomp, args).map_err(around)?;
        }
        if result != i64::from(-libc::EINVAL) {
            break;
        }
    }
    i32::try_from(result)
        .ok()
        .filter(|fd| *fd >= 0)
        .ok_or(Failure::Kernel("seccomp", -result as i32))
}
