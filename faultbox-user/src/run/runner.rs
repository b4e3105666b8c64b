//! The runner: which worker runs when, and what becomes of it.
//!
//! One thread decides everything; it starts the workers, too, because a worker dies with the *thread* that started it. Readers of the workers'
//! output and the signal reader only send it words.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::home::{Home, own_binary};
use super::isolation::netns::{self, Privilege};
use super::isolation::{Network, cgroup};
use super::janitor::network_of;
use super::services::logs::file_name;
use super::tracer::{self, Feature, Kernel};
use super::wire::{Job, Message, Order, write_line};
use super::{RunError, RunOptions, internal, preflight, procs};
use crate::plan::report::Blame;
use crate::plan::{Launch, Outcome, Reason, TestDecl, TestReport};
use crate::report::{RunObserver, RunReport};
use crate::spec::LoadedSpec;
use crate::sys::signals::Signals;
use crate::verdict;

/// How much longer than the sum of its own time-outs a worker may take before it counts as hung.
const WORKER_GRACE: Duration = Duration::from_secs(60);
/// How much longer than its services' stop time-outs an interrupted worker may take.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// How long what a dead worker left may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Runs the selected tests.
///
/// # Errors
/// See [`super::run`].
pub fn run(
    spec: &LoadedSpec,
    options: &RunOptions,
    observer: &dyn RunObserver,
) -> Result<RunReport, RunError> {
    let began = Instant::now();
    preflight::check(spec.topology())?;
    let items = plan(spec, options)?;
    let exe = own_binary();
    let mut notes = spec.notes().to_vec();
    let (network, note) = choose_network(spec, options, &exe);
    let jobs = if network == Network::Host {
        1
    } else {
        options
            .jobs
            .or_else(|| std::thread::available_parallelism().map(Into::into).ok())
            .unwrap_or(1)
            .max(1)
    };
    let mut limits = preflight::limits(spec);
    limits.extend(note.filter(|_| items.len() > 1));
    for limit in &limits {
        observer.limited(limit);
    }
    notes.extend(limits);
    // Before the first process: from here on a signal stops gracefully.
    let signals = Signals::install(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])
        .map_err(|e| internal(format!("cannot handle signals: {e}")))?;
    let home = Home::create(&exe)?;
    let mut wanted = match options.trace {
        true => Feature::ALL.to_vec(),
        false => tracer::needed(spec),
    };
    // A bench that compares with and without it turns it on and off.
    let lent = options.bench.as_ref().filter(|plan| plan.traces());
    let lent = lent.map(|_| Feature::Calls);
    wanted.extend(lent.filter(|f| !wanted.contains(f)));
    let (words, inbox) = channel();
    let listener = (options.verbose > 1).then(|| {
        let told = words.clone();
        Box::new(move |line| drop(told.send(Word::Kernel(line)))) as tracer::debug::Listener
    });
    let kernel = tracer::load(home.cgroup.as_deref(), jobs, &wanted, lent, listener);
    notes.extend(tracer::notes(&kernel));
    let told = words.clone();
    signals
        .follow(move |_| told.send(Word::Signal).is_ok())
        .map_err(|e| internal(format!("cannot handle signals: {e}")))?;
    let mut runner = Runner {
        spec,
        options,
        observer,
        exe,
        network,
        jobs,
        home,
        kernel,
        items,
        workers: HashMap::new(),
        words,
        inbox,
        next_worker: 0,
        interrupted: false,
        stopping: false,
        notes,
    };
    runner.drive();
    // Programs let go of the cgroup before the janitor removes it.
    runner.kernel = Err("the run is over".to_owned());
    runner.notes.extend(runner.home.close());
    drop(signals);
    Ok(runner.finish(began))
}

/// What a worker has written to its standard error; the end of it, if it is long.
fn last_words(scratch: &Path) -> String {
    let said = std::fs::read(scratch.join("worker.stderr")).unwrap_or_default();
    let said = String::from_utf8_lossy(&said[said.len().saturating_sub(4096)..]);
    said.trim().to_owned()
}

/// One test to run once.
struct Item {
    test: TestDecl,
    seed: u64,
    /// A baseline that was not selected, run only because its cells mean nothing without it.
    hidden: bool,
    baseline: Option<usize>,
    state: State,
}

impl Item {
    /// A report of a test that no worker reported on.
    fn unreported(&self, outcome: Outcome, reason: Reason, took: Duration) -> TestReport {
        TestReport::bare(self.test.name.clone(), self.seed, outcome, reason, took)
    }
}

enum State {
    Pending,
    Running,
    Done(Box<TestReport>),
    /// Stopped before it had anything to say.
    Dropped,
}

/// The items in the order of the plan, once per seed.
fn plan(spec: &LoadedSpec, options: &RunOptions) -> Result<Vec<Item>, RunError> {
    let mut items: Vec<Item> = vec![];
    if let Some(bench) = &options.bench {
        items.push(Item {
            test: bench.decl(),
            seed: options.seed,
            hidden: false,
            baseline: None,
            state: State::Pending,
        });
        return Ok(items);
    }
    for run in 0..options.runs.max(1) {
        let seed = options.seed.wrapping_add(u64::from(run));
        let first = items.len();
        let mut selected: Vec<(&TestDecl, bool)> = vec![];
        for name in &options.tests {
            let test = spec
                .tests()
                .iter()
                .find(|t| t.name == *name)
                .ok_or_else(|| internal(format!("the spec has no test `{name}`")))?;
            selected.push((test, false));
        }
        let implied: Vec<&TestDecl> = spec
            .tests()
            .iter()
            .filter(|t| {
                selected
                    .iter()
                    .any(|(s, _)| s.baseline.as_ref() == Some(&t.name))
                    && selected.iter().all(|(s, _)| s.name != t.name)
            })
            .collect();
        // Baselines first: other tests need not wait for them, but their cells do.
        for (test, hidden) in implied.into_iter().map(|t| (t, true)).chain(selected) {
            items.push(Item {
                test: test.clone(),
                seed,
                hidden,
                baseline: None,
                state: State::Pending,
            });
        }
        for at in first..items.len() {
            let baseline = items[at].test.baseline.clone();
            items[at].baseline = baseline
                .and_then(|name| (first..items.len()).find(|i| items[*i].test.name == name));
        }
    }
    Ok(items)
}

/// The best network that tests can have here, and why it is not a better one.
fn choose_network(
    spec: &LoadedSpec,
    options: &RunOptions,
    exe: &Path,
) -> (Network, Option<String>) {
    let one_at_a_time = |why: &str| {
        (
            Network::Host,
            Some(format!(
                "tests run one at a time in the host's network: {why}"
            )),
        )
    };
    if options.host_network {
        return one_at_a_time("asked for");
    }
    if let Some(remote) = spec
        .topology()
        .services
        .iter()
        .find(|s| s.launch == Launch::Remote)
    {
        return one_at_a_time(&format!("service `{}` is remote", remote.name));
    }
    match netns::privilege() {
        Privilege::Whole => return (Network::Own, None),
        // A user namespace would do, and take away what privilege there is: eBPF's, for one.
        Privilege::Half(why) => {
            return one_at_a_time(&format!(
                "a network of their own cannot be set up without CAP_NET_ADMIN ({why})"
            ));
        }
        Privilege::None => {}
    }
    if let Some(service) = spec.topology().services.iter().find(|s| s.user.is_some()) {
        return one_at_a_time(&format!(
            "service `{}` runs as another user, who would not exist in a user namespace",
            service.name
        ));
    }
    match probe(exe, Network::OwnAsUser) {
        Ok(()) => (Network::OwnAsUser, None),
        Err(why) => one_at_a_time(&format!(
            "no privilege, and no user namespace either ({why})"
        )),
    }
}

/// Tries in a process of its own: a user namespace can only be entered by a whole process.
fn probe(exe: &Path, network: Network) -> Result<(), String> {
    let mut child = Command::new(exe)
        .arg("__worker")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| e.to_string())?;
    if let Some(stdin) = child.stdin.take() {
        let _ = write_line(stdin, &Order::Probe(network));
    }
    let mut answer = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        let _ = stdout.read_to_string(&mut answer);
    }
    let _ = child.wait();
    match serde_json::from_str(&answer) {
        Ok(Message::Probe(None)) => Ok(()),
        Ok(Message::Probe(Some(why))) => Err(why),
        _ => Err("the probe died".to_owned()),
    }
}

enum Word {
    Said(u64, Message),
    /// The worker's standard output has ended.
    Ended(u64),
    /// What a program in the kernel says.
    Kernel(String),
    Signal,
}

struct Worker {
    item: usize,
    child: Child,
    /// Closing it asks the worker to stop.
    stdin: Option<ChildStdin>,
    scratch: PathBuf,
    cgroup: Option<PathBuf>,
    ring: Option<u32>,
    report: Option<Box<TestReport>>,
    began: Instant,
    deadline: Instant,
    hung: bool,
}

struct Runner<'a> {
    spec: &'a LoadedSpec,
    options: &'a RunOptions,
    observer: &'a dyn RunObserver,
    exe: PathBuf,
    network: Network,
    jobs: usize,
    home: Home,
    /// What the kernel sees and decides, or why it does not.
    kernel: Result<Kernel, String>,
    items: Vec<Item>,
    workers: HashMap<u64, Worker>,
    words: Sender<Word>,
    inbox: Receiver<Word>,
    next_worker: u64,
    interrupted: bool,
    /// No further test is started.
    stopping: bool,
    notes: Vec<String>,
}

impl Runner<'_> {
    fn drive(&mut self) {
        loop {
            self.start_what_can();
            if self.workers.is_empty() {
                return;
            }
            let next = self
                .workers
                .values()
                .map(|w| w.deadline)
                .min()
                .unwrap_or_else(Instant::now);
            match self
                .inbox
                .recv_timeout(next.saturating_duration_since(Instant::now()))
            {
                Ok(Word::Said(id, message)) => self.said(id, message),
                Ok(Word::Ended(id)) => self.ended(id),
                Ok(Word::Kernel(line)) => self.observer.kernel_said(&line),
                Ok(Word::Signal) => self.signalled(),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    self.kill_overdue();
                }
            }
        }
    }

    fn start_what_can(&mut self) {
        while !self.stopping && self.workers.len() < self.jobs {
            // Judging a cell invalid may end the run, so each is looked at afresh.
            let Some(at) = self.next_item() else { return };
            let verdict = self.items[at].baseline.and_then(|b| {
                let State::Done(report) = &self.items[b].state else {
                    return None;
                };
                (!verdict::baseline_holds(report.outcome))
                    .then(|| verdict::invalid(&report.name, report.outcome, report.reason.as_ref()))
            });
            match verdict {
                Some(reason) => self.done(
                    at,
                    self.items[at].unreported(Outcome::Invalid, reason, Duration::ZERO),
                ),
                None => self.start(at),
            }
        }
    }

    fn next_item(&self) -> Option<usize> {
        self.items.iter().position(|item| {
            matches!(item.state, State::Pending)
                && item
                    .baseline
                    .is_none_or(|b| matches!(self.items[b].state, State::Done(_)))
        })
    }

    fn start(&mut self, at: usize) {
        let id = self.next_worker;
        self.next_worker += 1;
        if !self.items[at].hidden {
            self.observer.started(&self.items[at].test.name);
        }
        match self.spawn(id, at) {
            Ok(worker) => {
                self.items[at].state = State::Running;
                self.workers.insert(id, worker);
            }
            Err(e) => {
                let reason = Reason::new(
                    format!("its worker cannot be started: {e}"),
                    Blame::Environment,
                );
                self.done(
                    at,
                    self.items[at].unreported(Outcome::Error, reason, Duration::ZERO),
                );
            }
        }
    }

    fn spawn(&self, id: u64, at: usize) -> io::Result<Worker> {
        let item = &self.items[at];
        let scratch = self.home.dir.join(id.to_string());
        std::fs::create_dir(&scratch)?;
        std::fs::set_permissions(&scratch, std::fs::Permissions::from_mode(0o711))?;
        let logs = match &self.options.keep_logs {
            Some(dir) => {
                let mut name = file_name(&item.test.name);
                if self.options.runs > 1 {
                    name.push_str(&format!("-seed{}", item.seed));
                }
                dir.join(name)
            }
            None => scratch.join("logs"),
        };
        std::fs::create_dir_all(&logs).map_err(|e| {
            let flag = match self.options.keep_logs {
                Some(_) => "--keep-logs ",
                None => "",
            };
            io::Error::new(e.kind(), format!("{flag}{}: {e}", logs.display()))
        })?;
        let cgroup = self
            .home
            .cgroup
            .as_ref()
            .map(|run| run.join(id.to_string()))
            .filter(|path| cgroup::create(path).is_ok());
        let ring = (0..faultbox_ebpf_common::RINGS)
            .find(|free| self.workers.values().all(|w| w.ring != Some(*free)));
        // Before the worker starts: it inherits what is shared.
        let kernel = match (&self.kernel, &cgroup) {
            (Ok(kernel), Some(_)) => kernel.share(ring),
            (Ok(_), None) => Err("the test has no cgroup of its own".to_owned()),
            (Err(why), _) => Err(why.clone()),
        };
        let mut child = Command::new(&self.exe)
            .arg("__worker")
            .env(procs::RUN_MARKER, &self.home.id)
            .env(procs::WORKER_MARKER, id.to_string())
            // Ctrl-C is the runner's to handle.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(scratch.join("worker.stderr"))?)
            .spawn()?;
        let order = Order::Run(Box::new(Job {
            spec: self.options.spec.clone(),
            files: self.spec.files().clone(),
            test: item.test.name.clone(),
            bench: self.options.bench.clone(),
            seed: item.seed,
            network: self.network,
            run: self.home.id.clone(),
            worker: id,
            scratch: scratch.clone(),
            logs,
            cgroup: cgroup.clone(),
            runner: std::process::id() as i32,
            trace: self.options.trace,
            kernel,
        }));
        let mut stdin = child.stdin.take();
        if let Some(stdin) = &mut stdin {
            // If it is dead already, its end tells.
            let _ = write_line(stdin, &order);
        }
        if let Some(stdout) = child.stdout.take() {
            let words = self.words.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines() {
                    let Ok(line) = line else { break };
                    if let Ok(message) = serde_json::from_str(&line) {
                        let _ = words.send(Word::Said(id, message));
                    }
                }
                let _ = words.send(Word::Ended(id));
            });
        }
        let began = Instant::now();
        Ok(Worker {
            item: at,
            child,
            stdin,
            scratch,
            cgroup,
            ring,
            report: None,
            began,
            deadline: began + self.budget(&item.test),
            hung: false,
        })
    }

    /// The longest that a worker which keeps its own time can take.
    fn budget(&self, test: &TestDecl) -> Duration {
        let services = &self.spec.topology().services;
        let ready: Duration = services
            .iter()
            .filter_map(|s| s.health.as_ref())
            .map(crate::plan::Health::timeout)
            .sum();
        // One after another, if each depends on the one before.
        let seeded = services.iter().filter(|s| self.spec.is_seeded(&s.name));
        let seeds: Duration = seeded.map(|_| test.timeout).sum();
        test.timeout + ready + seeds + self.stop_time() + WORKER_GRACE
    }

    fn stop_time(&self) -> Duration {
        self.spec
            .topology()
            .services
            .iter()
            .map(|s| s.stop_timeout)
            .sum::<Duration>()
            + STOP_GRACE
    }

    fn said(&mut self, id: u64, message: Message) {
        match message {
            Message::Report(report) => {
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.report = Some(report);
                }
            }
            Message::Note(note) => {
                if !self.notes.contains(&note) {
                    self.notes.push(note);
                }
            }
            Message::Probe(_) => {}
        }
    }

    fn ended(&mut self, id: u64) {
        let Some(mut worker) = self.workers.remove(&id) else {
            return;
        };
        let status = wait_or_kill(&mut worker.child);
        if worker.report.is_none() {
            // It died: whatever it started must go at once, not only at the end of the run.
            let marks = [
                format!("{}={}", procs::RUN_MARKER, self.home.id),
                format!("{}={id}", procs::WORKER_MARKER),
            ];
            if let Some(cgroup) = &worker.cgroup {
                cgroup::kill(cgroup);
            }
            let networks: Vec<String> = network_of(&worker.scratch).into_iter().collect();
            procs::kill_owned(&marks, &networks, KILL_PATIENCE);
        }
        if let Some(cgroup) = &worker.cgroup {
            cgroup::remove(cgroup, KILL_PATIENCE);
        }
        let at = worker.item;
        let mut report = match worker.report.take() {
            Some(report) => {
                // A panic, in a proxy for one, need not have kept it from a report, and must not go unsaid.
                let said = last_words(&worker.scratch);
                if !said.is_empty() {
                    let test = &self.items[at].test.name;
                    self.notes
                        .push(format!("the process of test `{test}` said: {said}"));
                }
                *report
            }
            None => self.obituary(&worker, status),
        };
        let _ = std::fs::remove_dir_all(&worker.scratch);
        report.name.clone_from(&self.items[at].test.name);
        self.done(at, report);
    }

    /// The report of a worker that died without one.
    fn obituary(&self, worker: &Worker, status: Option<ExitStatus>) -> TestReport {
        let item = &self.items[worker.item];
        if self.stopping {
            let reason = Reason::new("the run was interrupted", Blame::Environment);
            return item.unreported(Outcome::Interrupted, reason, worker.began.elapsed());
        }
        let how = match (worker.hung, status) {
            (true, _) => "hung, and was killed".to_owned(),
            (false, Some(status)) => match status.signal() {
                Some(signal) => format!(
                    "was killed by {}",
                    Signal::try_from(signal)
                        .map_or_else(|_| format!("signal {signal}"), |s| s.as_str().to_owned())
                ),
                None => format!("ended with status {}", status.code().unwrap_or(-1)),
            },
            (false, None) => "ended".to_owned(),
        };
        // Any other signal is of its own making: SIGABRT is a double panic or a stack overflow.
        let from_outside = [
            Signal::SIGKILL,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGINT,
        ];
        let killed = !worker.hung
            && status
                .and_then(|s| s.signal())
                .is_some_and(|s| from_outside.iter().any(|o| *o as i32 == s));
        let blame = if killed {
            Blame::Environment
        } else {
            Blame::Internal
        };
        let mut reason = Reason::new(
            format!("the worker process {how} before it could report"),
            blame,
        );
        let said = last_words(&worker.scratch);
        reason.help = match (said.is_empty(), killed) {
            (false, _) => Some(format!("it said: {said}")),
            (true, true) => {
                Some("something outside of faultbox killed it, e.g. for lack of memory".to_owned())
            }
            (true, false) => Some("this is a bug in faultbox: please report it".to_owned()),
        };
        item.unreported(Outcome::Error, reason, worker.began.elapsed())
    }

    fn done(&mut self, at: usize, report: TestReport) {
        let item = &mut self.items[at];
        // Fail-fast stops what runs; what it stopped has nothing to say.
        if self.stopping && !self.interrupted && report.outcome == Outcome::Interrupted {
            item.state = State::Dropped;
            return;
        }
        if !item.hidden {
            self.observer.finished(&report);
        }
        let passed = report.outcome == Outcome::Passed;
        item.state = State::Done(Box::new(report));
        if !passed && self.options.fail_fast && !self.stopping {
            self.stop_all();
        }
    }

    fn stop_all(&mut self) {
        self.stopping = true;
        let deadline = Instant::now() + self.stop_time();
        for worker in self.workers.values_mut() {
            worker.stdin = None;
            worker.deadline = worker.deadline.min(deadline);
        }
    }

    fn signalled(&mut self) {
        if self.interrupted {
            for worker in self.workers.values_mut() {
                let _ = worker.child.kill();
            }
            return;
        }
        self.interrupted = true;
        self.stop_all();
    }

    fn kill_overdue(&mut self) {
        let now = Instant::now();
        for worker in self.workers.values_mut().filter(|w| w.deadline <= now) {
            worker.hung = true;
            worker.deadline = now + KILL_PATIENCE;
            let _ = worker.child.kill();
        }
    }

    fn finish(self, began: Instant) -> RunReport {
        let mut notes = self.notes;
        let left_out = self
            .items
            .iter()
            .filter(|i| !i.hidden && !matches!(i.state, State::Done(_)))
            .count();
        if left_out > 0 {
            let why = if self.interrupted {
                "the run was interrupted"
            } else {
                "fail-fast: a test did not pass"
            };
            notes.push(match left_out {
                1 => format!("1 test was not run to its end: {why}"),
                n => format!("{n} tests were not run to their end: {why}"),
            });
        }
        let mut evidence = vec![];
        let mut tests = vec![];
        for item in self.items {
            if let State::Done(report) = item.state {
                // A hidden baseline is a control all the same.
                evidence.push((!report.faults.is_empty(), report.outcome));
                if !item.hidden {
                    tests.push(*report);
                }
            }
        }
        if !self.interrupted {
            notes.extend(verdict::suite_notes(&evidence));
        }
        let selected = |t: &&TestDecl| self.options.tests.contains(&t.name);
        RunReport {
            spec: self.options.spec.display().to_string(),
            seed: self.options.seed,
            duration_ms: began.elapsed().as_secs_f64() * 1e3,
            plan: self.spec.tests().iter().filter(selected).cloned().collect(),
            tests,
            matrices: self.spec.matrices().to_vec(),
            notes,
            interrupted: self.interrupted,
            budgets: self.options.budgets.clone(),
        }
    }
}

/// Its output has ended, so it is about to end; a worker that only closed its output is killed.
fn wait_or_kill(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_micros(200));
            }
            _ => {
                let _ = child.kill();
                return child.wait().ok();
            }
        }
    }
}
