//! One test in a process of its own: isolation, services, body, verdict.
//!
//! The main thread becomes the [nursery](super::services::nursery); a second thread conducts the test; the body runs on a third, which is simply
//! left behind when it does not end in time.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Read};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use faultbox_contract::SourceLookup;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::certificates::Certificates;
use super::fleet::{Fleet, LocalPorts, Sources, Threads};
use super::host::{self, Managed, Parts, TestHost};
use super::isolation::{Network, cgroup, netns};
use super::janitor::note_network;
use super::mocks::{self, Mocks};
use super::procs;
use super::services::env::Marks;
use super::services::health::Checker;
use super::services::logs::{self, Log};
use super::services::nursery::{self, Nursery};
use super::services::service::Surroundings;
use super::services::{Service, user};
use super::startup;
use super::tracer::activity::{self, Tally};
use super::tracer::{Feature, Watch};
use super::wire::{Job, Message, Order, write_line};
use crate::bench::{self, plan::Plan};
use crate::events::{Asked, EventLog, Losses, Sink, Untold};
use crate::plan::report::Blame;
use crate::plan::{Launch, LogTail, Outcome, Reason, TestDecl, TestKind, TestReport, Topology};
use crate::spec::{BodyVerdict, Host, HostError, LoadedSpec, Transcript};
use crate::sys::descriptors;
use crate::verdict::{self, Ending, Evidence};

/// Specs recurse through helpers and lambdas; the interpreter's frames are large. Only what is touched costs memory.
pub(super) const BODY_STACK: usize = 64 << 20;
/// How long what services have left may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How many lines of a log a report shows.
const TAIL_LINES: usize = 20;

/// The process's main function.
pub fn main() -> ExitCode {
    let order = match read_order() {
        Ok(order) => order,
        Err(e) => {
            eprintln!("faultbox worker: this command is for faultbox itself: {e}");
            return ExitCode::from(70);
        }
    };
    match order {
        Order::Probe(network) => {
            let refusal = netns::enter(network).err().map(|e| e.to_string());
            match write_line(io::stdout(), &Message::Probe(refusal)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::from(70),
            }
        }
        Order::Run(job) => work(*job),
    }
}

/// Reads the first line, through the buffer that all of the process share: what follows belongs to another reader.
fn read_order() -> io::Result<Order> {
    let mut line = vec![];
    io::stdin().lock().read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}

fn work(job: Job) -> ExitCode {
    let began = Instant::now();
    descriptors::lift_limit();
    if let Err(e) = isolate(&job) {
        return send_report(&failed(&job, began, e));
    }
    let (nursery, ward) = match nursery::new() {
        Ok(pair) => pair,
        Err(e) => {
            let reason = Reason::new(format!("cannot make a pipe: {e}"), Blame::Environment);
            return send_report(&failed(&job, began, reason));
        }
    };
    let (stop, handle) = (Arc::<StopFlag>::default(), nursery.clone());
    listen_for_stop(stop.clone());
    let conductor = std::thread::Builder::new()
        .name("conductor".to_owned())
        .spawn(move || {
            let _close = CloseOnDrop(handle.clone());
            Conductor::new(&job, began, handle, stop).conduct()
        });
    let report = match conductor {
        Ok(thread) => {
            ward.run();
            thread.join()
        }
        Err(e) => {
            eprintln!("faultbox worker: cannot start a thread: {e}");
            return ExitCode::from(70);
        }
    };
    match report {
        Ok(report) => send_report(&report),
        // The panic's text is on standard error, which the runner keeps.
        Err(_) => ExitCode::from(70),
    }
}

/// Closes the nursery however the conductor ends, so that the main thread ends too.
struct CloseOnDrop(Nursery);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn send_report(report: &TestReport) -> ExitCode {
    match write_line(io::stdout(), &Message::Report(Box::new(report.clone()))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("faultbox worker: cannot report: {e}");
            ExitCode::from(70)
        }
    }
}

/// While the process has one thread only.
fn isolate(job: &Job) -> Result<(), Reason> {
    let refuse = |what: &str, e: io::Error| {
        Reason::new(format!("the worker cannot {what}: {e}"), Blame::Environment)
    };
    netns::enter(job.network).map_err(|e| refuse("have a network namespace of its own", e))?;
    if job.network != Network::Host {
        // For who cleans up after a killed worker; a disk too full for it is no reason not to run.
        let _ = note_network(&job.scratch);
    }
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|e| refuse("tie its life to the run's", e.into()))?;
    // The runner may have died before that.
    if std::os::unix::process::parent_id() != job.runner as u32 {
        return Err(Reason::new("the run is gone", Blame::Environment));
    }
    nix::sys::prctl::set_child_subreaper(true).map_err(|e| refuse("become a subreaper", e.into()))
}

/// Set when the run wants this test to end.
#[derive(Default)]
pub struct StopFlag {
    set: AtomicBool,
    /// Who waits for the body.
    waiter: Mutex<Option<Sender<Word>>>,
}

impl StopFlag {
    pub(super) fn is_set(&self) -> bool {
        self.set.load(Ordering::Relaxed)
    }

    fn raise(&self) {
        self.set.store(true, Ordering::Relaxed);
        if let Some(waiter) = &*self.lock() {
            let _ = waiter.send(Word::Stop);
        }
    }

    fn tell(&self, waiter: Sender<Word>) {
        let mut slot = self.lock();
        if self.is_set() {
            let _ = waiter.send(Word::Stop);
        }
        *slot = Some(waiter);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Sender<Word>>> {
        self.waiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the conductor hears while a body runs.
enum Word {
    Body(Box<BodyVerdict>),
    Panicked(String),
    Stop,
}

/// Anything on standard input, its end included, asks to stop.
fn listen_for_stop(flag: Arc<StopFlag>) {
    std::thread::spawn(move || {
        let _ = io::stdin().lock().read(&mut [0; 16]);
        flag.raise();
    });
}

/// A report of a test that did not get as far as its services.
fn failed(job: &Job, began: Instant, reason: Reason) -> TestReport {
    let took = began.elapsed();
    TestReport::bare(job.test.clone(), job.seed, Outcome::Error, reason, took)
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

struct Conductor<'a> {
    job: &'a Job,
    began: Instant,
    nursery: Nursery,
    stop: Arc<StopFlag>,
    events: Arc<EventLog>,
    transcript: Arc<Transcript>,
    /// The types of events that are streamed out of the kernel.
    streams: BTreeSet<&'static str>,
    /// What services did, if the run is to tell.
    tally: Option<Arc<Tally>>,
}

impl<'a> Conductor<'a> {
    fn new(job: &'a Job, began: Instant, nursery: Nursery, stop: Arc<StopFlag>) -> Conductor<'a> {
        Conductor {
            job,
            began,
            nursery,
            stop,
            events: Arc::new(EventLog::spilling_to(&job.scratch)),
            transcript: Arc::default(),
            streams: BTreeSet::new(),
            tally: None,
        }
    }

    fn conduct(mut self) -> TestReport {
        if self.job.files.cut_packets() && self.job.network != Network::Host {
            // Best effort: without it, healing takes longer. Before the first socket is made: those of proxies are made as the spec is read.
            let _ = netns::recover_quickly();
        }
        let ports = Arc::new(LocalPorts::new(
            std::process::id(),
            self.job.scratch.join("tls"),
        ));
        let files = self.job.files.clone();
        let spec = match LoadedSpec::load_planned(&self.job.spec, files, ports.clone()) {
            Ok(spec) => Arc::new(spec),
            Err(e) => {
                let message = e.diagnostics.first().map_or_else(
                    || "the spec cannot be loaded".to_owned(),
                    |d| format!("the spec no longer loads: {}: {}", d.file, d.message),
                );
                return failed(self.job, self.began, Reason::new(message, Blame::Test));
            }
        };
        let named = || spec.tests().iter().find(|t| t.name == self.job.test);
        let bench = self.job.bench.as_ref().map(Plan::decl);
        let Some(test) = bench.or_else(|| named().cloned()) else {
            let reason = Reason::new(
                format!("the spec no longer declares `{}`", self.job.test),
                Blame::Test,
            );
            return failed(self.job, self.began, reason);
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().min(4)))
            .thread_name("steps")
            .enable_all()
            .build();
        let (runtime, threads) = match runtime.and_then(|r| Ok((r, Threads::start()?))) {
            Ok(both) => both,
            Err(e) => {
                let reason = Reason::new(format!("cannot start threads: {e}"), Blame::Environment);
                return failed(self.job, self.began, reason);
            }
        };
        self.streams = spec.streams().clone();
        if self.job.trace {
            let wanted = self.streams.iter().copied().collect();
            self.tally = Some(Arc::new(Tally::new(Some((self.events.clone(), wanted)))));
            self.streams.extend(activity::STREAMS);
        }
        let report = match self.prepare(&spec, &ports, runtime.handle(), &threads) {
            Ok(host) => self.carry_out(&spec, &test, Arc::new(host)),
            Err(reason) => failed(self.job, self.began, reason),
        };
        // Steps and proxies that still run end with the process; waiting for them would be waiting for a hung test.
        runtime.shutdown_background();
        report
    }

    /// Starts the proxies and gathers what every service is started with.
    fn prepare(
        &self,
        spec: &Arc<LoadedSpec>,
        ports: &LocalPorts,
        runtime: &tokio::runtime::Handle,
        threads: &Threads,
    ) -> Result<TestHost, Reason> {
        let topology = Arc::new(spec.topology().clone());
        let sources = Arc::new(Sources::default());
        let lookup: Arc<dyn SourceLookup> = sources.clone();
        let watch = self.watch(&topology);
        if let (Ok(_), Err(why)) = (&self.job.kernel, &watch) {
            let note = format!(
                "a test could not use eBPF ({why}): services reach proxies by the addresses that the spec gives them"
            );
            let _ = write_line(io::stdout(), &Message::Note(note));
        }
        let redirected = watch.as_ref().is_ok_and(|w| w.has(Feature::Dial));
        let certificates = Certificates::make(&topology, &self.job.scratch.join("tls"))
            .map(Arc::new)
            .map_err(|e| Reason::new(format!("certificates: {e}"), Blame::Environment))?;
        let fleet = Fleet::start(
            threads,
            &topology,
            ports,
            &self.events,
            &lookup,
            redirected,
            &certificates,
        )
        .map_err(|e| Reason::new(e, Blame::Internal))?;
        let mut services = vec![];
        let mut mocks = Mocks::new(&self.job.scratch);
        for decl in topology.start_order() {
            if decl.launch != Launch::Remote {
                let decl = mocks
                    .equip(decl, spec, &self.transcript, &self.events)
                    .map_err(|e| Reason::new(e, Blame::Environment))?;
                services.push(Arc::new(self.outfit(spec, &topology, decl)?));
            }
        }
        sources.set(services.iter().map(|m| m.service.clone()).collect());
        if let Ok(watch) = &watch {
            host::introduce(watch, &topology, &services)
                .map_err(|e| Reason::new(e, Blame::Environment))?;
            sources.watched_by(watch);
        }
        let all_logs: Vec<Arc<Log>> = services.iter().map(|m| m.service.log().clone()).collect();
        let calls = mocks.calls();
        mocks::follow(calls.clone());
        logs::follow(all_logs.clone(), Arc::default());
        self.nursery.every_tick(move || {
            for log in &all_logs {
                log.trim();
            }
        });
        let stop = self.stop.clone();
        Ok(TestHost::new(Parts {
            test: self.job.test.clone(),
            seed: self.job.seed,
            topology: topology.clone(),
            events: self.events.clone(),
            runtime: runtime.clone(),
            services,
            fleet,
            watch,
            missing: self
                .job
                .kernel
                .as_ref()
                .map_or_else(|_| vec![], |share| share.missing.clone()),
            calls,
            checker: Checker {
                runtime: runtime.clone(),
                topology,
                certificates,
                nursery: self.nursery.clone(),
                scratch: self.job.scratch.clone(),
                cancelled: Arc::new(move || stop.is_set()),
            },
        }))
    }

    /// This test's part of the kernel's tables, or why there is none.
    fn watch(&self, topology: &Topology) -> Result<Arc<Watch>, String> {
        let share = self.job.kernel.as_ref().map_err(Clone::clone)?;
        let sink: Arc<dyn Sink> = match &self.tally {
            Some(tally) => tally.clone(),
            None => self.events.clone(),
        };
        let names: Vec<&str> = topology.services.iter().map(|s| s.name.as_str()).collect();
        Watch::adopt(share, self.job.worker, &names, &self.streams, sink)
    }

    fn outfit(
        &self,
        spec: &LoadedSpec,
        topology: &Topology,
        decl: Arc<crate::plan::ServiceDecl>,
    ) -> Result<Managed, Reason> {
        let environment = |what: String| Reason::new(what, Blame::Environment);
        let account = decl
            .user
            .as_deref()
            .map(user::resolve)
            .transpose()
            .map_err(|e| environment(format!("service `{}`: {e}", decl.name)))?;
        let tmp = self.job.scratch.join("tmp");
        make_tmp(&tmp).map_err(|e| environment(format!("{}: {e}", tmp.display())))?;
        let marks = Marks {
            run: self.job.run.clone(),
            worker: self.job.worker,
        };
        let env = super::services::env::build(
            std::env::vars_os()
                .filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?))),
            topology,
            &decl,
            account.as_ref(),
            &tmp,
            &marks,
        );
        let log = Log::create(
            &self.job.logs,
            &self.job.scratch,
            &decl.name,
            &decl.observe,
            &self.events,
        )
        .map_err(|e| {
            environment(format!(
                "the log of service `{}` in {}: {e}",
                decl.name,
                self.job.logs.display()
            ))
        })?;
        let cgroup = self.job.cgroup.as_ref().and_then(|parent| {
            let path = parent.join(logs::file_name(&decl.name));
            cgroup::create(&path).ok().map(|()| path)
        });
        let listen = match decl.launch {
            Launch::Mock { .. } => None,
            _ => listener_before_exec(spec, &decl.name),
        };
        let service = Service::new(
            decl.clone(),
            Surroundings {
                account: account.clone(),
                env: env.clone(),
                cgroup,
                log: Arc::new(log),
                marks,
            },
            self.nursery.clone(),
            self.events.clone(),
        )
        .ok_or_else(|| environment(format!("service `{}`: its binary was not found", decl.name)))?;
        Ok(Managed::new(Arc::new(service), env, account, listen))
    }

    fn carry_out(
        &self,
        spec: &Arc<LoadedSpec>,
        test: &TestDecl,
        host: Arc<TestHost>,
    ) -> TestReport {
        let began_body;
        let mut result = Value::Null;
        let mut body_took = Duration::ZERO;
        // What must end in an error does so before anything starts.
        let able = host.provides(&spec.required(&test.name)).map_err(refusal);
        let started = able
            .and_then(|()| startup::start(spec, &host, &self.transcript, test.timeout, &self.stop));
        let verdict = match started {
            Ok(()) => {
                began_body = Instant::now();
                let ending = self.run_body(spec, test, &host);
                body_took = began_body.elapsed();
                if let Ending::Ended(body) = &ending {
                    result = body.result.clone();
                    body_took = body.took;
                }
                host.lift_all();
                let assertions = self.transcript.assertions.load(Ordering::Relaxed);
                verdict::decide(&Evidence {
                    ending,
                    expected_hang: spec.expected_hang(&test.name),
                    faults: host.fault_uses(),
                    require_faults_fire: test.require_faults_fire,
                    assertions,
                    judged_by_expectation: spec.expected_hang(&test.name).is_some()
                        || matches!(test.kind, TestKind::Baseline { .. }),
                    // Through the host: what the kernel has lost is told when somebody looks.
                    losses: host.events().losses(),
                    untold: self.transcript.untold(),
                    asked: self.transcript.asked(),
                })
            }
            Err(_) if self.stop.is_set() => verdict::decide(&Evidence {
                ending: Ending::Interrupted,
                expected_hang: None,
                faults: vec![],
                require_faults_fire: false,
                assertions: 0,
                judged_by_expectation: true,
                losses: Losses::default(),
                untold: Untold::default(),
                asked: Asked::default(),
            }),
            Err(reason) => {
                host.lift_all();
                verdict::Verdict {
                    outcome: Outcome::Error,
                    reason: Some(reason),
                    notes: vec![],
                }
            }
        };
        let verdict = match host.unenforced() {
            // Whatever the test found, it found without the fault.
            Some(why) if verdict.outcome != Outcome::Interrupted => {
                let mut reason = Reason::new(why, Blame::Environment);
                reason.help =
                    Some("run as root, or put the fault on what lets itself be looked at".into());
                verdict::Verdict {
                    outcome: Outcome::Error,
                    reason: Some(reason),
                    notes: verdict.notes,
                }
            }
            _ => verdict,
        };
        // How services ended by themselves, before they are all stopped.
        let ended: BTreeMap<String, Option<String>> = host
            .services()
            .iter()
            .map(|m| (m.service.decl().name.clone(), m.service.ended()))
            .collect();
        let mut notes = verdict.notes;
        notes.extend(host.notes());
        notes.extend(startup::stop(&host));
        // Without a cgroup, a process that forks twice and cleans its environment belongs to no service any more.
        procs::kill_all(KILL_PATIENCE, procs::below_own);
        let activity = match (&self.tally, host.watch()) {
            (Some(tally), Some(watch)) => host
                .services()
                .iter()
                .map(|m| m.service.decl().name.clone())
                .map(|name| (name.clone(), tally.of(&name, watch)))
                .collect(),
            _ => BTreeMap::new(),
        };
        // The kernel's counts go with the test's part of the tables.
        let faults = host.fault_reports();
        host.withdraw();
        for managed in host.services() {
            if managed.service.log().trimmed() {
                notes.push(format!(
                    "the log of `{}` passed {} MiB; its beginning was dropped",
                    managed.service.decl().name,
                    logs::CAP >> 20
                ));
            }
        }
        let logs = if verdict.outcome == Outcome::Passed {
            vec![]
        } else {
            host.services()
                .iter()
                .map(|m| LogTail {
                    service: m.service.decl().name.clone(),
                    lines: m.service.log().tail(TAIL_LINES),
                    ended: ended.get(&m.service.decl().name).cloned().flatten(),
                })
                .collect()
        };
        TestReport {
            name: test.name.clone(),
            outcome: verdict.outcome,
            reason: verdict.reason,
            duration_ms: ms(self.began.elapsed()),
            body_ms: ms(body_took),
            seed: self.job.seed,
            faults,
            assertions: self.transcript.assertions.load(Ordering::Relaxed),
            result,
            prints: self
                .transcript
                .prints
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            notes,
            logs,
            interfaces: host.interface_meters(),
            syscalls: host.syscall_meters(),
            activity,
        }
    }

    fn run_body(&self, spec: &Arc<LoadedSpec>, test: &TestDecl, host: &Arc<TestHost>) -> Ending {
        let (sender, words) = channel();
        self.stop.tell(sender.clone());
        let hang = spec.expected_hang(&test.name);
        let limit = hang.map_or(test.timeout, |after| after.min(test.timeout));
        let deadline = Instant::now() + limit;
        let (spec, name, host, transcript) = (
            spec.clone(),
            test.name.clone(),
            host.clone(),
            self.transcript.clone(),
        );
        let bench = self.job.bench.clone();
        let spawned = std::thread::Builder::new()
            .name("test".to_owned())
            .stack_size(BODY_STACK)
            .spawn(move || {
                let run = std::panic::AssertUnwindSafe(|| match bench {
                    Some(plan) => bench::drive::drive(&plan, &spec, &host, &transcript),
                    None => spec.run(&name, host, &transcript),
                });
                let word = match std::panic::catch_unwind(run) {
                    Ok(body) => Word::Body(Box::new(body)),
                    Err(panic) => Word::Panicked(panic_text(&*panic)),
                };
                let _ = sender.send(word);
            });
        if let Err(e) = spawned {
            return Ending::Crashed(format!("cannot start a thread: {e}"));
        }
        match words.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Word::Body(body)) => Ending::Ended(body),
            Ok(Word::Panicked(text)) => Ending::Crashed(text),
            Ok(Word::Stop) => Ending::Interrupted,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => match hang {
                Some(after) if after <= test.timeout => Ending::StillHanging(after),
                _ => Ending::TimedOut(
                    test.timeout,
                    self.transcript
                        .position
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .clone(),
                ),
            },
        }
    }
}

/// The syscalls that must be trapped from the first instruction on: none where a running process can be armed.
fn listener_before_exec(spec: &LoadedSpec, service: &str) -> Option<Vec<i64>> {
    let names = spec.declared_syscalls(service);
    if names.is_empty() || crate::sys::probe::ptrace_child().is_ok() {
        return None;
    }
    Some(
        names
            .into_iter()
            .filter_map(crate::sys::names::syscall_number)
            .collect(),
    )
}

fn refusal(e: HostError) -> Reason {
    let mut reason = Reason::new(e.message, e.blame);
    reason.help = e.help;
    reason
}

/// A folder for temporary files that every user may write to, as /tmp is.
fn make_tmp(path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
        Ok(()) => std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o1777)),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_else(|| "no message".to_owned())
}
