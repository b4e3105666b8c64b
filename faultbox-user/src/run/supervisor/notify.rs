//! The notify loop: one thread per service that answers its trapped calls.
//!
//! Between the receipt of a call and its answer nothing blocks, logs or (unless a rule's filter has to look at the process)
//! allocates. Delays are absolute deadlines in [`Loop::sleeping`], served by the same poll that waits for calls.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use faultbox_contract::Meter;
use serde_json::{Map, Value};

use crate::events::EventLog;
use crate::plan::{IoUring, SyscallAction};
use crate::sys::hurry::raise;
use crate::sys::seccomp::{Answer, Listener, Notification};
use crate::sys::wake::{PollSet, Waker, exact_timers, this_thread};
use crate::sys::{names, procfs};

use super::call::Call;
use super::decide::{Decision, Table, decide};
use super::{ArmedSyscall, ProcessTree};

/// What the loop and those who command it share.
pub(super) struct Shared {
    pub(super) service: String,
    pub(super) tree: ProcessTree,
    pub(super) io_uring: IoUring,
    pub(super) log: Arc<EventLog>,
    pub(super) meter: Arc<Meter>,
    pub(super) table: ArcSwap<Table>,
    commands: Mutex<VecDeque<Command>>,
    waker: Waker,
    /// Why a rule could not be held against a call, if that has happened.
    blind: OnceLock<String>,
    /// How many calls sleep in a delay.
    sleeping: AtomicUsize,
    running: AtomicBool,
}

/// What the loop can be told.
enum Command {
    /// Serve these listeners too.
    Add(Vec<Listener>),
    /// Send these threads' sleeping calls back to be made again; a ptrace interrupt is pending on each.
    Requeue(Vec<i32>, SyncSender<()>),
    /// These calls have been let through before, and come again: thread, number, arguments.
    Decided(Vec<(i32, i64, [u64; 6])>),
    /// From now on, keep in mind of which threads calls are received.
    Watch(SyncSender<()>),
    /// Tell them, once nothing waits to be received.
    Heard(SyncSender<HashSet<i32>>),
    /// Forget them.
    Unwatch,
    /// Close all listeners.
    Release(SyncSender<()>),
    /// Cut short what sleeps on this rule.
    Lift(u64, SyncSender<()>),
    /// End.
    Stop,
}

/// How long a command may take to be carried out. The loop never blocks, so past this it is dead or starved.
const COMMAND_DEADLINE: Duration = Duration::from_secs(5);

impl Shared {
    pub(super) fn new(
        service: &str,
        tree: ProcessTree,
        io_uring: IoUring,
        log: Arc<EventLog>,
        waker: Waker,
    ) -> Shared {
        Shared {
            service: service.to_owned(),
            tree,
            io_uring,
            log,
            meter: Arc::default(),
            table: ArcSwap::default(),
            commands: Mutex::default(),
            waker,
            blind: OnceLock::new(),
            sleeping: AtomicUsize::new(0),
            running: AtomicBool::new(false),
        }
    }

    fn command(&self, command: Command) {
        self.commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(command);
        self.waker.wake();
    }

    fn command_and_wait(&self, make: impl FnOnce(SyncSender<()>) -> Command) -> bool {
        self.ask(make).is_some()
    }

    /// The loop's answer; `None` if it has none, or is dead.
    fn ask<T>(&self, make: impl FnOnce(SyncSender<T>) -> Command) -> Option<T> {
        let (tell, told) = sync_channel(1);
        self.command(make(tell));
        let deadline = Instant::now() + COMMAND_DEADLINE;
        while self.running.load(Ordering::Acquire) && Instant::now() < deadline {
            match told.recv_timeout(Duration::from_millis(50)) {
                Ok(answer) => return Some(answer),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return None,
            }
        }
        None
    }

    /// Has the loop keep in mind of which threads it receives calls; `false` if it is dead.
    pub(super) fn watch(&self) -> bool {
        self.command_and_wait(Command::Watch)
    }

    /// The threads that calls have been received of since [`Shared::watch`], all that waited to be received included; `None` if too many
    /// do to wait for.
    pub(super) fn heard(&self) -> Option<HashSet<i32>> {
        self.ask(Command::Heard)
    }

    /// Ends that.
    pub(super) fn unwatch(&self) {
        self.command(Command::Unwatch);
    }

    /// Serves these listeners from now on.
    pub(super) fn add(&self, listeners: Vec<Listener>) {
        self.command(Command::Add(listeners));
    }

    /// Has the calls of these threads made again, where they sleep in a delay. On each a ptrace interrupt must be pending.
    pub(super) fn requeue(&self, tids: &[i32]) {
        if self.sleeping.load(Ordering::Acquire) > 0 {
            self.command_and_wait(|done| Command::Requeue(tids.to_vec(), done));
        }
    }

    /// Lets these calls through, and does not count them, when they come again.
    pub(super) fn decided(&self, calls: Vec<(i32, i64, [u64; 6])>) {
        if !calls.is_empty() {
            self.command(Command::Decided(calls));
        }
    }

    /// A process hides what a rule asks for: the rule is not enforced on it, which the test must not pass over.
    fn note_blindness(&self, tid: i32) {
        self.blind.get_or_init(|| {
            format!(
                "a fault on service `{}` could not be enforced: process {} ({}) does not let its files and connections be seen (prctl PR_SET_DUMPABLE, or a set-uid program)",
                self.service,
                procfs::tgid(tid).unwrap_or(tid),
                procfs::name(tid),
            )
        });
    }

    /// Why a rule could not be held against a call, if that has happened.
    pub(super) fn blindness(&self) -> Option<String> {
        self.blind.get().cloned()
    }

    /// Does a delay of ours hold a call at the moment?
    pub(super) fn holds_calls(&self) -> bool {
        self.sleeping.load(Ordering::Acquire) > 0
    }

    /// Closes all listeners; `false` if the loop is dead.
    pub(super) fn release(&self) -> bool {
        self.command_and_wait(Command::Release)
    }

    /// After this nothing sleeps on the rule, and no decision that knew it is under way.
    pub(super) fn lift(&self, id: u64) {
        if self.running.load(Ordering::Acquire) {
            self.command_and_wait(|done| Command::Lift(id, done));
        }
    }

    pub(super) fn stop(&self) {
        self.command(Command::Stop);
    }

    /// Ends the service's processes: they must not run on answers that nobody gives.
    pub(super) fn kill_service(&self) {
        for pid in (self.tree)() {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
}

/// Starts the loop's thread.
///
/// # Errors
/// The system refuses a thread.
pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<std::thread::JoinHandle<()>> {
    let shared = shared.clone();
    shared.running.store(true, Ordering::Release);
    let body = {
        let shared = shared.clone();
        move || {
            exact_timers();
            // Who has trapped waits for this thread, and the CPUs may be busy with others. SCHED_FIFO, which goes before all of them,
            // takes longer to switch to and from: half a microsecond a call, and more where CPUs are busy.
            raise(this_thread());
            let mut state = Loop::new(shared.clone());
            let ended = catch_unwind(AssertUnwindSafe(|| state.run()));
            shared.running.store(false, Ordering::Release);
            let stopped = matches!(ended, Ok(Ok(())));
            if !stopped {
                shared.kill_service();
                let why = match ended {
                    Ok(Err(e)) => e.to_string(),
                    _ => "a defect of its own".to_owned(),
                };
                shared.log.record(
                    "supervisor_failed",
                    Some(&shared.service),
                    serde_json::json!({ "error": why }),
                );
            }
        }
    };
    std::thread::Builder::new()
        .name("faultbox-notify".to_owned())
        .spawn(body)
        .inspect_err(|_| shared.running.store(false, Ordering::Release))
}

/// A call held by delays.
struct Sleeping {
    /// None while the call is on its way to be made again: that may be to another listener, and this one must close.
    listener: Option<Arc<Listener>>,
    notification: Notification,
    delays: Vec<(Arc<ArmedSyscall>, Duration)>,
    deny: Option<(Arc<ArmedSyscall>, i32)>,
    /// What the deny's event will say.
    details: Map<String, Value>,
    /// How long it took to know all this.
    decision: Duration,
    /// One of the delays has been lifted, and the deadline is not what it was.
    lifted: bool,
}

/// A call that was let through.
struct Decided {
    nr: i64,
    args: [u64; 6],
    since: Instant,
}

struct Loop {
    shared: Arc<Shared>,
    listeners: Vec<Arc<Listener>>,
    poll: PollSet,
    /// The listeners have changed since `poll` was filled.
    stale: bool,
    /// By deadline; the second number keeps equal deadlines apart.
    sleeping: BTreeMap<(Instant, u64), Sleeping>,
    next: u64,
    /// Delayed calls that were sent back to be made again, by thread, with their deadlines.
    requeued: HashMap<i32, (Instant, Sleeping)>,
    /// Calls that were let through before a stop interrupted them, by thread.
    decided: HashMap<i32, Decided>,
    /// The threads that calls have been received of, while somebody wants to know.
    heard: Option<HashSet<i32>>,
    /// Who waits to be told of them, and how many more calls may be served first.
    asked: Option<(SyncSender<HashSet<i32>>, u32)>,
    decision: Decision,
    /// How late the timer has woken this thread of late, which the next wait is shortened by.
    lateness: Duration,
}

/// From a call's trap to its receipt here, and from the answer to the program's next instruction: what a delay lasts longer
/// than its deadline says.
const TRIP: Duration = Duration::from_micros(20);

/// How many calls may come before a service is too busy to say what it waits in: more than it has threads.
const MOST_SERVED: u32 = 4096;

/// The most that a wait is shortened by: beyond it the machine is merely overloaded.
const MOST_LATENESS: Duration = Duration::from_micros(150);

impl Loop {
    fn new(shared: Arc<Shared>) -> Loop {
        Loop {
            shared,
            listeners: vec![],
            poll: PollSet::default(),
            stale: true,
            sleeping: BTreeMap::new(),
            next: 0,
            requeued: HashMap::new(),
            decided: HashMap::new(),
            heard: None,
            asked: None,
            decision: Decision::default(),
            lateness: Duration::ZERO,
        }
    }

    fn run(&mut self) -> std::io::Result<()> {
        loop {
            if self.stale {
                self.poll.clear();
                self.poll.push(self.shared.waker.as_fd());
                for listener in &self.listeners {
                    self.poll.push(listener.as_fd());
                }
                self.stale = false;
            }
            let due = self.sleeping.first_key_value().map(|((at, _), _)| *at);
            let aim = due.map(|at| at.checked_sub(self.lateness).unwrap_or(at));
            let timeout = match self.asked {
                Some(_) => Some(Duration::ZERO),
                None => aim.map(|at| at.saturating_duration_since(Instant::now())),
            };
            self.poll.wait(timeout)?;
            if let (Some(aim), Some(timeout)) = (aim, timeout)
                && !timeout.is_zero()
            {
                self.learn(aim);
            }
            self.wake_due();
            // Calls first: a command may replace the listeners that the poll was about.
            let (mut gone, mut served) = (false, 0);
            for index in 0..self.listeners.len() {
                if self.poll.readable(index + 1) {
                    served += 1;
                    gone |= !self.serve(index);
                } else if self.poll.hung_up(index + 1) {
                    gone = true;
                }
            }
            if gone {
                self.drop_dead_listeners();
            }
            self.tell_heard(served);
            if self.poll.readable(0) && self.obey() {
                return Ok(());
            }
        }
    }

    /// Answers who asked what has been heard, if so many calls were all that there was to serve.
    fn tell_heard(&mut self, served: u32) {
        let Some((tell, left)) = self.asked.take() else {
            return;
        };
        if served == 0 {
            let _ = tell.try_send(self.heard.clone().unwrap_or_default());
        } else if let Some(left) = left.checked_sub(served) {
            self.asked = Some((tell, left));
        }
    }

    /// The wait that was to end at `aim` has ended: if by the clock, how late was that?
    fn learn(&mut self, aim: Instant) {
        if let Some(late) = Instant::now().checked_duration_since(aim) {
            self.lateness = (self.lateness * 7 + late.min(MOST_LATENESS)) / 8;
        }
    }

    /// A listener hangs up when the last process under its filter is gone.
    fn drop_dead_listeners(&mut self) {
        let poll = &self.poll;
        let mut index = 0;
        self.listeners.retain(|_| {
            index += 1;
            !poll.hung_up(index)
        });
        self.stale = true;
    }

    /// Answers the next call of a listener; `false` if the listener is of no more use.
    fn serve(&mut self, index: usize) -> bool {
        let listener = self.listeners[index].clone();
        let notification = match listener.recv() {
            Ok(Some(notification)) => notification,
            Ok(None) => return true,
            Err(_) => return false,
        };
        if let Some(heard) = &mut self.heard {
            heard.insert(notification.tid);
        }
        let began = Instant::now();
        if !self.requeued.is_empty() && self.resume(index, &notification) {
            return true;
        }
        if !self.decided.is_empty() && self.is_decided(&notification) {
            let _ = listener.send(notification.id, Answer::Continue);
            self.shared.meter.record(began.elapsed());
            return true;
        }
        let table = self.shared.table.load();
        let rules = table.rules(notification.nr);
        if rules.is_empty() {
            let _ = listener.send(notification.id, Answer::Continue);
            self.shared.meter.record(began.elapsed());
            return true;
        }
        let mut call = Call::new(notification, &listener);
        decide(rules, &mut call, &mut self.decision);
        if call.is_blind() {
            self.shared.note_blindness(notification.tid);
        }
        if self.decision.is_empty() {
            let _ = listener.send(notification.id, Answer::Continue);
            self.shared.meter.record(began.elapsed());
            return true;
        }
        for rule in &self.decision.mutes {
            let socket = call
                .copy_of_fd()
                .filter(|_| listener.id_valid(notification.id));
            let muted = match (&rule.cut, socket) {
                (Some(cut), Some(socket)) => cut.mute(socket).is_ok(),
                _ => false,
            };
            // What it would come to in the end. A call that gets through is no cut.
            if !muted && self.decision.deny.is_none() {
                self.decision.deny = Some((rule.clone(), libc::ETIMEDOUT));
            }
        }
        if self.decision.delays.is_empty() {
            let answer = self.decision.deny.as_ref();
            let answer = answer.map_or(Answer::Continue, |(_, errno)| Answer::Fail(*errno));
            let _ = listener.send(notification.id, answer);
            self.shared.meter.record(began.elapsed());
            let details = details(&call);
            let shared = &self.shared;
            if let Some(rule) = &self.decision.allow {
                record(shared, rule, None, details.clone());
            }
            if let Some((rule, _)) = &self.decision.deny {
                record(shared, rule, None, details);
            }
            return true;
        }
        // The call sleeps; what is told of it meanwhile holds nobody up.
        let decision = began.elapsed();
        let total: Duration = self.decision.delays.iter().map(|(_, lasts)| *lasts).sum();
        let details = details(&call);
        let sleeping = Sleeping {
            listener: Some(listener.clone()),
            notification,
            delays: self.decision.delays.clone(),
            deny: self.decision.deny.take(),
            details: details.clone(),
            decision,
            lifted: false,
        };
        if let Some(rule) = &self.decision.allow {
            record(&self.shared, rule, None, details.clone());
        }
        for (rule, lasts) in &sleeping.delays {
            record(&self.shared, rule, Some(*lasts), details.clone());
        }
        self.sleep(began + total.saturating_sub(TRIP), sleeping);
        true
    }

    /// A call that was sent back to be made again goes on sleeping where it left off, and is not counted twice.
    fn resume(&mut self, index: usize, notification: &Notification) -> bool {
        let Some((_, before)) = self.requeued.get(&notification.tid) else {
            return false;
        };
        // A signal handler of the program may make other calls first.
        if before.notification.nr != notification.nr
            || before.notification.args != notification.args
        {
            return false;
        }
        let Some((deadline, mut sleeping)) = self.requeued.remove(&notification.tid) else {
            return false;
        };
        sleeping.listener = Some(self.listeners[index].clone());
        sleeping.notification = *notification;
        self.sleep(deadline, sleeping);
        true
    }

    /// Is it a call that was let through before, made again?
    fn is_decided(&mut self, notification: &Notification) -> bool {
        // Only the thread's next call can be: an interrupted one comes at once, if it comes.
        let Some(before) = self.decided.remove(&notification.tid) else {
            return false;
        };
        before.since.elapsed() < COMMAND_DEADLINE
            && before.nr == notification.nr
            && before.args == notification.args
    }

    fn sleep(&mut self, deadline: Instant, sleeping: Sleeping) {
        self.next += 1;
        self.sleeping.insert((deadline, self.next), sleeping);
        self.count_sleeping();
    }

    fn count_sleeping(&self) {
        self.shared
            .sleeping
            .store(self.sleeping.len(), Ordering::Release);
    }

    /// Answers every call whose delays are over.
    fn wake_due(&mut self) {
        if self.sleeping.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(entry) = self.sleeping.first_entry()
            && entry.key().0 <= now
        {
            let (deadline, _) = *entry.key();
            let sleeping = entry.remove();
            let answer = sleeping
                .deny
                .as_ref()
                .map_or(Answer::Continue, |(_, errno)| Answer::Fail(*errno));
            if let Some(listener) = &sleeping.listener {
                let _ = listener.send(sleeping.notification.id, answer);
            }
            // The decision was part of the delay; what it has waited longer than that is our doing.
            self.shared.meter.record(match sleeping.lifted {
                true => sleeping.decision,
                false => deadline.elapsed(),
            });
            if let Some((rule, _)) = &sleeping.deny {
                record(&self.shared, rule, None, sleeping.details);
            }
        }
        // What was sent back and has not come again long after its deadline never will: its thread is gone.
        self.requeued
            .retain(|_, (deadline, _)| *deadline + COMMAND_DEADLINE > now);
        self.count_sleeping();
    }

    /// Carries out the commands; `true` to end.
    fn obey(&mut self) -> bool {
        self.shared.waker.clear();
        loop {
            let command = self
                .shared
                .commands
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            match command {
                None => return false,
                Some(Command::Stop) => return true,
                Some(Command::Add(listeners)) => {
                    self.listeners.extend(listeners.into_iter().map(Arc::new));
                    self.stale = true;
                }
                Some(Command::Requeue(tids, done)) => {
                    self.requeue(&tids);
                    let _ = done.try_send(());
                }
                Some(Command::Decided(calls)) => {
                    let since = Instant::now();
                    // Those that are gone, or went on otherwise.
                    self.decided
                        .retain(|_, before| before.since.elapsed() < COMMAND_DEADLINE);
                    for (tid, nr, args) in calls {
                        // One that a delay held is not decided yet.
                        if !self.requeued.contains_key(&tid) {
                            self.decided.insert(tid, Decided { nr, args, since });
                        }
                    }
                }
                Some(Command::Watch(done)) => {
                    self.heard = Some(HashSet::new());
                    let _ = done.try_send(());
                }
                Some(Command::Heard(tell)) => self.asked = Some((tell, MOST_SERVED)),
                Some(Command::Unwatch) => self.heard = None,
                Some(Command::Release(done)) => {
                    // Sleepers hold their listener too; any left belong to threads that are gone.
                    self.sleeping.clear();
                    self.listeners.clear();
                    self.poll.clear();
                    self.stale = true;
                    self.count_sleeping();
                    let _ = done.try_send(());
                }
                Some(Command::Lift(id, done)) => {
                    self.lift(id);
                    let _ = done.try_send(());
                }
            }
        }
    }

    fn requeue(&mut self, tids: &[i32]) {
        let keys: Vec<_> = self
            .sleeping
            .iter()
            .filter(|(_, s)| tids.contains(&s.notification.tid))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            let Some(mut sleeping) = self.sleeping.remove(&key) else {
                continue;
            };
            let sent = sleeping
                .listener
                .take()
                .map(|l| l.send(sleeping.notification.id, Answer::Restart));
            if matches!(sent, Some(Ok(true))) {
                self.requeued
                    .insert(sleeping.notification.tid, (key.0, sleeping));
            }
        }
        self.count_sleeping();
    }

    fn lift(&mut self, id: u64) {
        let about = |s: &Sleeping| {
            s.delays.iter().any(|(r, _)| r.id == id)
                || s.deny.as_ref().is_some_and(|(r, _)| r.id == id)
        };
        let keys: Vec<_> = self
            .sleeping
            .iter()
            .filter(|(_, s)| about(s))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            if let Some(mut sleeping) = self.sleeping.remove(&key) {
                let deadline = without(&mut sleeping, key.0, id);
                self.sleeping.insert((deadline, key.1), sleeping);
            }
        }
        for (deadline, sleeping) in self.requeued.values_mut() {
            *deadline = without(sleeping, *deadline, id);
        }
        self.wake_due();
    }
}

/// Takes a lifted rule's share out of a sleeping call and returns the deadline that remains.
fn without(sleeping: &mut Sleeping, deadline: Instant, id: u64) -> Instant {
    let mut share = Duration::ZERO;
    sleeping.delays.retain(|(rule, lasts)| {
        if rule.id == id {
            share += *lasts;
            sleeping.lifted = true;
        }
        rule.id != id
    });
    if let Some((rule, _)) = &sleeping.deny
        && rule.id == id
    {
        // It was to decide after the delays, and is no longer in force.
        rule.count_shadowed();
        sleeping.deny = None;
    }
    deadline.checked_sub(share).unwrap_or(deadline)
}

/// What an event says of the call, apart from what was done to it. Paths, peers and classes only if a rule had to look.
fn details(call: &Call<'_>) -> Map<String, Value> {
    let n = &call.notification;
    let mut fields = Map::new();
    let name = names::syscall_name(n.nr).map_or_else(|| n.nr.to_string(), str::to_owned);
    fields.insert("syscall".to_owned(), name.into());
    let pid = procfs::tgid(n.tid).unwrap_or(n.tid);
    fields.insert("pid".to_owned(), pid.into());
    fields.insert("tid".to_owned(), n.tid.into());
    if let Some(class) = call.known_class() {
        fields.insert(
            "fd_class".to_owned(),
            serde_json::to_value(class).unwrap_or_default(),
        );
    }
    if let [path, ..] = call.known_paths() {
        fields.insert(
            "path".to_owned(),
            String::from_utf8_lossy(path).into_owned().into(),
        );
    }
    if let [peer, ..] = call.known_peers() {
        fields.insert("peer".to_owned(), peer.to_string().into());
    }
    fields
}

fn record(
    shared: &Shared,
    rule: &ArmedSyscall,
    lasts: Option<Duration>,
    mut fields: Map<String, Value>,
) {
    fields.insert("fault".to_owned(), rule.fault.clone().into());
    let action = match &rule.rule.action {
        SyscallAction::Deny { name, .. } => {
            fields.insert("errno".to_owned(), (*name).into());
            "deny"
        }
        SyscallAction::Delay { .. } => "delay",
        SyscallAction::Allow => "allow",
        SyscallAction::Mute => "mute",
    };
    fields.insert("action".to_owned(), action.into());
    if let Some(lasts) = lasts {
        fields.insert("delay_ms".to_owned(), (lasts.as_secs_f64() * 1e3).into());
    }
    if let Some(label) = &rule.rule.label {
        fields.insert("label".to_owned(), label.clone().into());
    }
    shared
        .log
        .record("syscall", Some(&shared.service), Value::Object(fields));
}
