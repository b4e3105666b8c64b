//! A running test, as the language sees it.

mod cut;
mod kernel;
mod managed;
mod way;

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use faultbox_contract::{Arg, ArmedRule, CheckedStep, Response, trigger::seed_of};
use serde_json::{Value, json};

use super::fleet::{self, Fleet};
use super::mocks::Calls;
use super::procs;
use super::services::health::{Checker, CommandSetting};
use super::supervisor::cut::Muted;
use super::supervisor::{ArmedSyscall, Mechanism};
use super::tracer::{Feature, Watch};
use crate::events::EventLog;
use crate::plan::report::Blame;
use crate::plan::{
    CallCount, FaultPart, FaultReport, FaultSet, MeterSnapshot, Reason, SyscallAction, Topology,
};
use crate::spec::{ArmId, Host, HostError, ProcessFault};
use crate::verdict::FaultUse;

use cut::Severance;
pub use kernel::introduce;
pub use managed::Managed;
pub use way::Bypass;

/// How much longer than its own time-out a step may take before it is given up: the drivers keep their own time.
const STEP_GRACE: Duration = Duration::from_secs(2);

/// One test's services, proxies and faults.
pub struct TestHost {
    test: String,
    seed: u64,
    topology: Arc<Topology>,
    events: Arc<EventLog>,
    runtime: tokio::runtime::Handle,
    services: Vec<Arc<Managed>>,
    fleet: Fleet,
    /// The kernel's side, or why there is none.
    watch: Result<Arc<Watch>, String>,
    /// What of it could not be attached, and why.
    missing: Vec<(Feature, String)>,
    checker: Checker,
    calls: Vec<Arc<Calls>>,
    next: AtomicU64,
    armed: Mutex<Vec<Armed>>,
    bypass: RwLock<Bypass>,
    /// The sockets that cuts mute.
    muted: Arc<Muted>,
    /// What the user should know of how things were done.
    notes: Mutex<Vec<String>>,
}

/// One application of a fault; kept after it was lifted, for its counts.
struct Armed {
    id: ArmId,
    name: String,
    parts: Arc<Vec<ArmedPart>>,
    armed_us: u64,
    lifted: bool,
}

struct ArmedPart {
    origin: String,
    target: String,
    service: usize,
    kind: Kind,
}

enum Kind {
    Syscall(Arc<ArmedSyscall>, Mechanism),
    Cut(Arc<Severance>),
    Protocol(Arc<ArmedRule>, Arc<faultbox_contract::RuleSet>),
}

impl ArmedPart {
    fn hits(&self, watch: Option<&Watch>) -> u64 {
        match &self.kind {
            // A rule may have been the kernel's before it became the supervisor's.
            Kind::Syscall(rule, _) => rule.hits() + watch.map_or(0, |w| w.refusals(rule.id)),
            Kind::Cut(cut) => cut.hits(watch),
            Kind::Protocol(rule, _) => rule.hits(),
        }
    }
}

/// What a [`TestHost`] is made of.
pub struct Parts {
    /// The test's name.
    pub test: String,
    /// The seed of its draws.
    pub seed: u64,
    /// The services as declared.
    pub topology: Arc<Topology>,
    /// The test's events.
    pub events: Arc<EventLog>,
    /// Where proxies, steps and probes run.
    pub runtime: tokio::runtime::Handle,
    /// The services that run on this machine.
    pub services: Vec<Arc<Managed>>,
    /// The running proxies.
    pub fleet: Fleet,
    /// The kernel's side, or why there is none.
    pub watch: Result<Arc<Watch>, String>,
    /// What of it could not be attached, and why.
    pub missing: Vec<(Feature, String)>,
    /// For `restart()`.
    pub checker: Checker,
    /// The calls that mocks have had.
    pub calls: Vec<Arc<Calls>>,
}

impl TestHost {
    /// A test whose services are about to start.
    pub fn new(parts: Parts) -> TestHost {
        TestHost {
            test: parts.test,
            seed: parts.seed,
            topology: parts.topology,
            events: parts.events,
            runtime: parts.runtime,
            services: parts.services,
            fleet: parts.fleet,
            watch: parts.watch,
            missing: parts.missing,
            checker: parts.checker,
            calls: parts.calls,
            next: AtomicU64::new(1),
            armed: Mutex::default(),
            bypass: RwLock::default(),
            muted: Arc::default(),
            notes: Mutex::default(),
        }
    }

    /// Takes a note for the test's report; a second one of the same words is none.
    fn note(&self, text: String) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if !notes.contains(&text) {
            notes.push(text);
        }
    }

    /// What the user should know of how things were done.
    pub fn notes(&self) -> Vec<String> {
        self.notes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The services that run on this machine.
    pub fn services(&self) -> &[Arc<Managed>] {
        &self.services
    }

    /// Starts one service and waits until it is ready.
    ///
    /// # Errors
    /// It cannot be started, ends, or is not ready in time.
    pub fn bring_up(&self, managed: &Managed) -> Result<(), Reason> {
        managed.start(&self.events)?;
        self.wait_ready(managed)
    }

    fn wait_ready(&self, managed: &Managed) -> Result<(), Reason> {
        let began = Instant::now();
        let decl = managed.service.decl();
        self.checker.wait(
            decl,
            Some(&managed.service),
            &CommandSetting {
                env: &managed.env,
                account: managed.account.as_ref(),
            },
        )?;
        if let Some(watch) = self.watch() {
            // A server declared by its IPv4 address may listen on IPv6 as well, and clients that say "localhost" may try that first.
            for interface in decl.interfaces.iter().filter(|i| i.addr.ip().is_loopback()) {
                let other = SocketAddr::from((Ipv6Addr::LOCALHOST, interface.addr.port()));
                if interface.addr.is_ipv4() && procs::listens_on_ipv6(interface.addr.port()) {
                    let _ = watch.interface(&decl.name, interface, other);
                }
            }
        }
        self.events.record(
            "service_ready",
            Some(&decl.name),
            json!({"duration_ms": began.elapsed().as_secs_f64() * 1e3}),
        );
        Ok(())
    }

    /// Checks readiness.
    pub fn checker(&self) -> &Checker {
        &self.checker
    }

    /// Lifts everything that is still in force.
    pub fn lift_all(&self) {
        let ids: Vec<ArmId> = self
            .armed()
            .iter()
            .filter(|a| !a.lifted)
            .map(|a| a.id)
            .collect();
        for id in ids {
            self.lift(id);
        }
    }

    /// What came of every fault, in the order armed.
    pub fn fault_reports(&self) -> Vec<FaultReport> {
        let armed = self.armed();
        armed
            .iter()
            .flat_map(|set| {
                set.parts.iter().map(|part| {
                    let (action, matched, shadowed, mechanism) = match &part.kind {
                        Kind::Cut(cut) => (
                            cut.decl.text.clone(),
                            part.hits(self.watch()),
                            0,
                            cut.mechanism(),
                        ),
                        Kind::Syscall(rule, mechanism) => (
                            rule.rule.text.clone(),
                            rule.trigger.matched()
                                + self.watch().map_or(0, |w| w.refusals(rule.id)),
                            rule.shadowed(),
                            match mechanism {
                                Mechanism::InKernel => "eBPF (connect)",
                                Mechanism::Armed => "seccomp notification (armed while running)",
                                Mechanism::BeforeExec => "seccomp filter before exec",
                            },
                        ),
                        Kind::Protocol(rule, _) => (
                            rule.rule.text.clone(),
                            rule.matched(),
                            rule.shadowed(),
                            "proxy",
                        ),
                    };
                    FaultReport {
                        name: part.origin.clone(),
                        target: part.target.clone(),
                        action,
                        hits: part.hits(self.watch()),
                        matched,
                        shadowed,
                        mechanism: mechanism.to_owned(),
                        armed_us: set.armed_us,
                    }
                })
            })
            .collect()
    }

    /// How often each rule of each assumption has fired over the whole test, for the verdict; exceptions (`allow()`) do not fire.
    pub fn fault_uses(&self) -> Vec<FaultUse> {
        let mut uses: Vec<FaultUse> = vec![];
        for part in self.armed().iter().flat_map(|set| set.parts.iter()) {
            if matches!(&part.kind, Kind::Syscall(rule, _) if rule.rule.action == SyscallAction::Allow)
            {
                continue;
            }
            let rule = match &part.kind {
                Kind::Cut(cut) => &cut.decl.text,
                Kind::Syscall(rule, _) => &rule.rule.text,
                Kind::Protocol(rule, _) => &rule.rule.text,
            };
            let hits = part.hits(self.watch());
            // An assumption that is applied again is the same one.
            let same = |u: &&mut FaultUse| {
                u.name == part.origin && u.target == part.target && u.rule == *rule
            };
            match uses.iter_mut().find(same) {
                Some(seen) => seen.hits += hits,
                None => uses.push(FaultUse {
                    name: part.origin.clone(),
                    rule: rule.clone(),
                    target: part.target.clone(),
                    hits,
                }),
            }
        }
        uses
    }

    /// Why a fault that was in force was not enforced, if that has happened.
    pub fn unenforced(&self) -> Option<String> {
        self.services
            .iter()
            .find_map(|managed| managed.unenforced())
    }

    /// This test's part of the kernel's tables, if there is one.
    pub fn watch(&self) -> Option<&Watch> {
        self.watch.as_deref().ok()
    }

    /// Why there is no part of the kernel's tables, if there is none.
    pub fn blind(&self) -> Option<String> {
        self.watch.as_ref().err().cloned()
    }

    /// Takes the test's services out of the kernel's tables.
    pub fn withdraw(&self) {
        if let Ok(watch) = &self.watch {
            watch.withdraw();
        }
    }

    /// What the proxies have cost.
    pub fn interface_meters(&self) -> Vec<MeterSnapshot> {
        self.fleet.meters()
    }

    /// What the supervisors have cost.
    pub fn syscall_meters(&self) -> Vec<MeterSnapshot> {
        self.services.iter().filter_map(|m| m.meter()).collect()
    }

    fn armed(&self) -> MutexGuard<'_, Vec<Armed>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn managed(&self, service: &str) -> Result<(usize, &Arc<Managed>), HostError> {
        self.services
            .iter()
            .enumerate()
            .find(|(_, m)| m.name() == service)
            .ok_or_else(|| {
                let remote = self.topology.service(service).is_some();
                HostError {
                    message: if remote {
                        format!("service `{service}` is remote: its processes are out of reach")
                    } else {
                        format!("there is no service `{service}`")
                    },
                    help: None,
                    blame: Blame::Test,
                }
            })
    }

    /// Turns a fault into rules with ids and triggers; everything that can be refused without touching a service is refused here.
    fn prepare(&self, fault: &FaultSet) -> Result<Vec<ArmedPart>, HostError> {
        fault
            .parts
            .iter()
            .enumerate()
            .map(|(index, part)| {
                let id = self.next.fetch_add(1, Ordering::Relaxed);
                let seed = seed_of(
                    self.seed,
                    &[&self.test, &fault.name, &index.to_string()],
                );
                match part {
                    FaultPart::Syscall {
                        service,
                        rule,
                        origin,
                    } => {
                        let (at, _) = self.managed(service)?;
                        let armed = ArmedSyscall::new(id, origin.clone(), rule.clone(), seed);
                        Ok(ArmedPart {
                            origin: origin.clone(),
                            target: service.clone(),
                            service: at,
                            // Replaced by the truth once it is in force.
                            kind: Kind::Syscall(Arc::new(armed), Mechanism::Armed),
                        })
                    }
                    FaultPart::Cut { rule, origin } => {
                        self.cuttable(rule)?;
                        Ok(ArmedPart {
                            origin: origin.clone(),
                            target: format!("{}, {}", rule.ends.0, rule.ends.1),
                            service: usize::MAX,
                            kind: Kind::Cut(Arc::new(Severance::new(id, rule.clone(), seed))),
                        })
                    }
                    FaultPart::Protocol {
                        service,
                        interface,
                        rule,
                        origin,
                    } => {
                        let target = format!("{service}.{interface}");
                        let refuse = |message: String, help: Option<String>| HostError {
                            message,
                            help,
                            blame: Blame::Test,
                        };
                        let decl = self
                            .topology
                            .service(service)
                            .and_then(|s| s.interface(interface))
                            .ok_or_else(|| refuse(format!("there is no interface {target}"), None))?;
                        let rules = self.fleet.rules(service, interface).ok_or_else(|| {
                            refuse(
                                format!("{target} has no proxy, so no protocol rule can be put in force on it"),
                                Some("remove `proxy=False` from the interface".into()),
                            )
                        })?;
                        let protocol = fleet::protocol(decl.protocol).ok_or_else(|| {
                            refuse(format!("protocol {} is not in the fleet", decl.protocol), None)
                        })?;
                        let compiled = protocol
                            .compile(rule)
                            .map_err(|e| refuse(format!("{}: {}", rule.text, e.message), e.hint))?;
                        let armed =
                            ArmedRule::new(id, origin.clone(), rule.clone(), compiled, seed);
                        Ok(ArmedPart {
                            origin: origin.clone(),
                            target,
                            service: usize::MAX,
                            kind: Kind::Protocol(Arc::new(armed), rules.clone()),
                        })
                    }
                }
            })
            .collect()
    }

    fn lift_part(&self, part: &ArmedPart) {
        match &part.kind {
            Kind::Syscall(rule, _) => {
                if let Some(watch) = self.watch() {
                    watch.admit(rule.id);
                }
                self.services[part.service].lift(rule.id);
            }
            Kind::Cut(cut) => self.heal(cut),
            Kind::Protocol(rule, rules) => rules.lift(rule.id),
        }
    }

    fn restart(&self, managed: &Managed) -> Result<(), HostError> {
        let refuse = |reason: Reason| HostError {
            message: reason.message,
            help: reason.help,
            blame: reason.blame,
        };
        {
            let mut supervision = managed.supervision();
            managed.service.stop();
            // Dropped only now: the processes that depend on its answers are gone.
            let before = supervision.current.take();
            let blind = before.and_then(|supervisor| supervisor.blindness());
            supervision.unenforced = supervision.unenforced.take().or(blind);
        }
        managed.start(&self.events).map_err(refuse)?;
        self.cut_again(managed.name())?;
        self.wait_ready(managed).map_err(refuse)
    }
}

impl Host for TestHost {
    fn arm(&self, fault: &FaultSet) -> Result<ArmId, HostError> {
        let began = Instant::now();
        let mut parts = self.prepare(fault)?;
        // What can fail comes first, one service after another; on failure exactly what was applied is lifted.
        let mut by_service: HashMap<usize, Vec<Arc<ArmedSyscall>>> = HashMap::new();
        for part in &parts {
            if let Kind::Syscall(rule, _) = &part.kind {
                by_service
                    .entry(part.service)
                    .or_default()
                    .push(rule.clone());
            }
        }
        let mut order: Vec<usize> = by_service.keys().copied().collect();
        order.sort_unstable();
        let mut mechanisms = HashMap::new();
        for at in order {
            match self.arm_syscalls(&self.services[at], &by_service[&at]) {
                Ok(mechanism) => {
                    mechanisms.insert(at, mechanism);
                }
                Err(e) => {
                    for part in parts.iter().filter(|p| mechanisms.contains_key(&p.service)) {
                        self.lift_part(part);
                    }
                    return Err(e);
                }
            }
        }
        for (at, part) in parts.iter().enumerate() {
            let Kind::Cut(cut) = &part.kind else { continue };
            if let Err(e) = self.sever(&fault.name, cut) {
                for part in parts.iter().take(at).chain(
                    parts
                        .iter()
                        .skip(at)
                        .filter(|p| matches!(p.kind, Kind::Syscall(..))),
                ) {
                    self.lift_part(part);
                }
                return Err(e);
            }
        }
        for part in &mut parts {
            match &mut part.kind {
                Kind::Cut(_) => {}
                Kind::Syscall(_, mechanism) => *mechanism = mechanisms[&part.service],
                Kind::Protocol(rule, rules) => rules.arm(rule.clone()),
            }
        }
        let armed_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let id = ArmId(self.next.fetch_add(1, Ordering::Relaxed));
        let mut targets: Vec<&str> = vec![];
        for part in &parts {
            if !targets.contains(&part.target.as_str()) {
                targets.push(&part.target);
            }
        }
        self.events.record(
            "fault_armed",
            None,
            json!({"fault": fault.name, "targets": targets, "armed_us": armed_us}),
        );
        self.armed().push(Armed {
            id,
            name: fault.name.clone(),
            parts: Arc::new(parts),
            armed_us,
            lifted: false,
        });
        Ok(id)
    }

    fn lift(&self, id: ArmId) {
        // The supervisor's lock may be held for as long as an arming takes; the counts stay readable meanwhile.
        let (name, todo) = {
            let mut armed = self.armed();
            let Some(set) = armed.iter_mut().find(|a| a.id == id && !a.lifted) else {
                return;
            };
            set.lifted = true;
            (set.name.clone(), set.parts.clone())
        };
        for part in todo.iter() {
            self.lift_part(part);
        }
        let hits: u64 = todo.iter().map(|part| part.hits(self.watch())).sum();
        self.events
            .record("fault_lifted", None, json!({"fault": name, "hits": hits}));
    }

    fn hits(&self, id: ArmId) -> u64 {
        self.armed().iter().find(|a| a.id == id).map_or(0, |set| {
            set.parts.iter().map(|part| part.hits(self.watch())).sum()
        })
    }

    fn step(
        &self,
        service: &str,
        interface: &str,
        call: CheckedStep,
    ) -> Result<Response, HostError> {
        let refuse = |message: String, help: Option<String>| HostError {
            message,
            help,
            blame: Blame::Test,
        };
        let (decl, face) = self
            .topology
            .service(service)
            .and_then(|s| Some((s, s.interface(interface)?)))
            .ok_or_else(|| refuse(format!("there is no interface {service}.{interface}"), None))?;
        let protocol = fleet::protocol(face.protocol).ok_or_else(|| {
            refuse(
                format!("protocol {} is not in the fleet", face.protocol),
                None,
            )
        })?;
        let endpoint = self.endpoint(decl, face, call.timeout());
        let (method, limit) = (call.step.name, call.timeout());
        let mut fields = step_arguments(&call);
        let began = Instant::now();
        let response = self.runtime.block_on(async {
            tokio::time::timeout(limit + STEP_GRACE, protocol.step(endpoint, call))
                .await
                .unwrap_or_else(|_| {
                    let mut late = Response::failure(
                        "ETIMEDOUT",
                        format!(
                            "no answer within {}",
                            faultbox_contract::duration::show(limit)
                        ),
                    );
                    late.duration = began.elapsed();
                    Ok(late)
                })
        });
        let response = response.map_err(|e| refuse(e.message, e.hint))?;
        self.events.record("step", Some(service), {
            // Last, so that an argument of the same name cannot hide what came of the step.
            fields.insert("interface".into(), interface.into());
            fields.insert("method".into(), method.into());
            fields.insert("ok".into(), response.ok.into());
            fields.insert("status".into(), response.status.into());
            fields.insert("code".into(), response.code.as_str().into());
            let ms = response.duration.as_secs_f64() * 1e3;
            fields.insert("duration_ms".into(), ms.into());
            fields.into()
        });
        Ok(response)
    }

    fn process(&self, service: &str, what: ProcessFault) -> Result<(), HostError> {
        let (_, managed) = self.managed(service)?;
        if what != ProcessFault::Restart && !managed.service.is_alive() {
            let how = managed.service.ended().map_or_else(
                || "is not running".to_owned(),
                |e| format!("has ended ({e})"),
            );
            return Err(HostError {
                message: format!("service `{service}` {how}"),
                help: Some("`restart()` starts it again".into()),
                blame: Blame::Test,
            });
        }
        let before = managed.service.pid();
        let event = match what {
            ProcessFault::Pause => {
                managed.service.pause(true);
                "service_paused"
            }
            ProcessFault::Resume => {
                managed.service.pause(false);
                "service_resumed"
            }
            ProcessFault::Kill => {
                managed.service.kill();
                "service_killed"
            }
            ProcessFault::Restart => {
                self.restart(managed)?;
                "service_restarted"
            }
        };
        // One that was killed has none any more.
        let pid = managed.service.pid().or(before);
        self.events
            .record(event, Some(service), json!({"pid": pid}));
        Ok(())
    }

    fn pid(&self, service: &str) -> Option<i32> {
        self.managed(service).ok()?.1.service.pid()
    }

    fn observes(&self, kind: &str) -> Result<(), HostError> {
        let what = format!("observing events of type {kind:?}");
        let watch = self.seeing(&what, &[kernel::seen_by(kind)])?;
        kernel::streaming(watch, &what)
    }

    fn calls(&self, service: &str) -> Result<Vec<CallCount>, HostError> {
        let watch = self.seeing("syscalls()", &[Feature::Calls])?;
        self.managed(service)?;
        Ok(watch.calls(service))
    }

    fn stream_calls(&self, service: &str, on: bool) -> Result<(), HostError> {
        let watch = self.seeing("trace()", &[Feature::Calls])?;
        kernel::streaming(watch, "trace()")?;
        let (_, managed) = self.managed(service)?;
        let Some(cgroup) = managed.service.cgroup() else {
            return Ok(());
        };
        let spared = kernel::spared(managed.service.decl());
        watch
            .service(service, cgroup, on, spared)
            .map_err(|e| HostError {
                message: format!("trace() cannot be put in force: {e}"),
                help: None,
                blame: Blame::Environment,
            })
    }

    fn events(&self) -> &EventLog {
        if let Ok(watch) = &self.watch {
            watch.drain();
        }
        for managed in &self.services {
            managed.service.log().drain();
        }
        for calls in &self.calls {
            calls.drain();
        }
        &self.events
    }
}

/// How much of a text argument an event keeps: enough to tell a path or a statement, little enough for a load of bodies.
const ARGUMENT_CHARS: usize = 200;

/// A step's scalar arguments as an event shows them: `path="/orders"`, `sql="SELECT …"`.
fn step_arguments(call: &CheckedStep) -> serde_json::Map<String, Value> {
    call.args
        .iter()
        .filter_map(|(name, arg)| {
            let value = match arg {
                Arg::Str(text) => text.chars().take(ARGUMENT_CHARS).collect::<String>().into(),
                Arg::Bool(_) | Arg::Int(_) | Arg::Float(_) => arg.to_json(),
                _ => return None,
            };
            Some(((*name).to_owned(), value))
        })
        .collect()
}
