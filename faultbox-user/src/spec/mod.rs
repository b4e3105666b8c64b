//! The spec language: Starlark with Faultbox's builtins.

mod builtins;
mod context;
mod convert;
pub mod diagnostic;
pub mod docs;
mod excerpt;
mod faults;
mod files;
mod generate;
pub mod host;
mod load;
mod locate;
mod needs;
mod params;
mod problem;
mod required;
mod run;
mod stdlib;
mod syscalls;
mod tokens;
mod values;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use context::Registry;
pub use diagnostic::{Diagnostic, SpecError};
pub use files::SpecFiles;
pub use host::{ArmId, Host, HostError, ProcessFault};
pub use required::Need;
pub use syscalls::{FAMILIES, named as system_calls};

use faultbox_contract::Transport;

use context::World;
use needs::Needs;
use required::Definitions;

use crate::events::Asked;
use crate::plan::report::Outcome;
use crate::plan::{FaultPart, Reason, TestDecl, Topology};
use crate::report::MatrixLayout;
use crate::workload::{Line, Shape};

/// Hands out addresses and places while a spec loads.
pub trait Ports: Send + Sync {
    /// A port that is free on loopback for TCP and UDP alike, for `port=0`.
    ///
    /// # Errors
    /// None is left, or binding is refused.
    fn free(&self) -> std::io::Result<u16>;

    /// Where the proxy of `interface` (of `service`) will listen, with the sockets that its protocol's transport needs.
    ///
    /// # Errors
    /// None is left, or binding is refused.
    fn proxy(
        &self,
        service: &str,
        interface: &str,
        transport: Transport,
    ) -> std::io::Result<SocketAddr>;

    /// The folder in which the certificates of `tls_cert()` will stand.
    fn certificates(&self) -> PathBuf;
}

/// Addresses for looking at a plan: nothing is bound, nothing will run.
#[derive(Debug, Default)]
pub struct PlanPorts(std::sync::atomic::AtomicU16);

impl Ports for PlanPorts {
    fn free(&self) -> std::io::Result<u16> {
        // 49152 is where the dynamic ports begin (RFC 6335, section 6).
        Ok(49152 + self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 16000)
    }

    fn proxy(
        &self,
        _service: &str,
        _interface: &str,
        _transport: Transport,
    ) -> std::io::Result<SocketAddr> {
        Ok(SocketAddr::from(([127, 0, 0, 1], self.free()?)))
    }

    fn certificates(&self) -> PathBuf {
        std::env::temp_dir().join("faultbox/tls")
    }
}

/// A loaded, checked and frozen spec.
pub struct LoadedSpec {
    world: World,
    topology: Topology,
    tests: Vec<TestDecl>,
    matrices: Vec<MatrixLayout>,
    notes: Vec<String>,
    needs: Needs,
    definitions: Definitions,
    files: SpecFiles,
}

/// A declared load.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkloadDecl {
    /// Unique among the workloads.
    pub name: String,
    /// Who calls, and when.
    pub shape: Shape,
    /// For how long, if it says.
    pub duration: Option<Duration>,
    /// Service and interface that it is about, if it is about one.
    pub target: Option<(String, String)>,
}

/// How a test's code ended, before baselines and required faults are considered.
#[derive(Debug, Clone)]
pub struct BodyVerdict {
    /// Passed, Failed, Error or Halted.
    pub outcome: Outcome,
    /// Why, unless it passed.
    pub reason: Option<Reason>,
    /// What the test function returned, as JSON.
    pub result: serde_json::Value,
    /// How long the body took, services' start and stop not counted.
    pub took: Duration,
}

/// What a test has said so far; readable at any time, so that a test that is cancelled keeps it.
#[derive(Debug, Default)]
pub struct Transcript {
    /// What it printed.
    pub prints: std::sync::Mutex<Vec<String>>,
    /// How many assertions were evaluated.
    pub assertions: std::sync::atomic::AtomicU64,
    /// It asked for events.
    pub asked_events: std::sync::atomic::AtomicBool,
    /// Events about system calls are among them.
    pub asked_calls: std::sync::atomic::AtomicBool,
    /// It asked how often which system call was made.
    pub asked_counts: std::sync::atomic::AtomicBool,
    /// The events that its questions may have meant, if it were known what these lack.
    untold: std::sync::Mutex<crate::events::Untold>,
    /// Where it is now: shown when it is cancelled.
    pub position: std::sync::Mutex<Option<crate::plan::SpecPos>>,
}

impl Transcript {
    /// What nobody could tell when it asked.
    pub fn untold(&self) -> crate::events::Untold {
        *self
            .untold
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Notes what nobody could tell this time.
    pub fn note_untold(&self, untold: crate::events::Untold) {
        let mut all = self
            .untold
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *all = all.max(untold);
    }

    /// What the test has asked for so far.
    pub fn asked(&self) -> Asked {
        use std::sync::atomic::Ordering::Relaxed;
        Asked {
            events: self.asked_events.load(Relaxed),
            calls: self.asked_calls.load(Relaxed),
            counts: self.asked_counts.load(Relaxed),
        }
    }
}

impl LoadedSpec {
    /// Loads a spec and everything it loads, and checks all that can be checked without running anything.
    ///
    /// # Errors
    /// Every misuse, each with its place and what to do.
    pub fn load(path: &Path, ports: Arc<dyn Ports>) -> Result<LoadedSpec, SpecError> {
        LoadedSpec::load_with(path, ports, load::fleet)
    }

    /// The same with other protocols than the fleet's.
    ///
    /// # Errors
    /// As [`load`](LoadedSpec::load).
    pub fn load_with(
        path: &Path,
        ports: Arc<dyn Ports>,
        registry: Registry,
    ) -> Result<LoadedSpec, SpecError> {
        load::load(path, None, ports, registry)
    }

    /// Loads a spec anew from the text that it had when it was planned: the files may have been edited since, or have been a pipe.
    ///
    /// # Errors
    /// As [`load`](LoadedSpec::load).
    pub fn load_planned(
        path: &Path,
        files: SpecFiles,
        ports: Arc<dyn Ports>,
    ) -> Result<LoadedSpec, SpecError> {
        load::load(path, Some(files), ports, load::fleet)
    }

    /// The text that this was loaded from.
    pub fn files(&self) -> &SpecFiles {
        &self.files
    }

    /// The services.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The tests, in the order declared; of a matrix: all baselines, then the cells row by row.
    pub fn tests(&self) -> &[TestDecl] {
        &self.tests
    }

    /// The matrices' axes.
    pub fn matrices(&self) -> &[MatrixLayout] {
        &self.matrices
    }

    /// Things the user should know that are no error.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The declared loads, in the order declared.
    pub fn workloads(&self) -> Vec<WorkloadDecl> {
        let declared = self.world.declared();
        let decl = |w: &context::WorkloadEntry| WorkloadDecl {
            name: w.name.clone(),
            shape: w.shape,
            duration: w.duration,
            target: w.target.clone(),
        };
        declared.workloads.iter().map(decl).collect()
    }

    /// The types of events that a test may ask for and only the kernel's tracer sees: what need be streamed out of the kernel.
    pub fn streams(&self) -> &BTreeSet<&'static str> {
        &self.needs.streams
    }

    /// May a test ask how often services make which system call?
    pub fn counts_calls(&self) -> bool {
        self.needs.counts_calls
    }

    /// May a test drop packets between services?
    pub fn cuts_packets(&self) -> bool {
        self.needs.cuts_packets
    }

    /// What the code of a test plainly calls and only the kernel's tracer can do: without it the test can only end in an error.
    pub fn required(&self, test: &str) -> BTreeSet<Need> {
        let declared = self.world.declared();
        let Some(entry) = declared.tests.iter().find(|t| t.decl.name == test) else {
            return BTreeSet::new();
        };
        let body = &entry.body;
        let functions = [
            Some(body.code),
            body.setup,
            body.expect.as_ref().map(|e| e.0),
        ];
        let names: Vec<String> = functions
            .into_iter()
            .flatten()
            .filter_map(|id| declared.functions.get(&id.0))
            // A function shows as its signature.
            .filter_map(|function| {
                let signature = function.value().to_str();
                let name = signature.split('(').next()?;
                Some(needs::words(name).last()?.1.to_owned())
            })
            .collect();
        let mut needs = self.definitions.needs(names.iter().map(String::as_str));
        let cuts = body.faults.iter().flat_map(|f| &f.parts);
        if cuts
            .into_iter()
            .any(|part| matches!(part, FaultPart::Cut { rule, .. } if rule.probability.is_some()))
        {
            needs.insert(Need::Loss);
        }
        needs
    }

    /// The syscalls that the declared faults of the spec may fault on `service`: what the filter before exec must cover where ptrace is refused.
    /// Faults that tests apply directly are found in the text of the spec, and counted for every service.
    pub fn declared_syscalls(&self, service: &str) -> BTreeSet<&'static str> {
        let declared = self.world.declared();
        let mut calls = self.needs.faulted.clone();
        for fault in &declared.faults {
            for rule in fault.syscall_rules(service) {
                calls.extend(rule.syscalls.iter().copied());
            }
        }
        if let Some(service) = self.topology.service(service) {
            for op in service.ops.values() {
                calls.extend(syscalls::expand_op(op));
            }
        }
        calls
    }

    /// The system calls that the faults declared for a service name, whatever calls in the code of tests add.
    pub fn faulted_syscalls(&self, service: &str) -> BTreeSet<&'static str> {
        let declared = self.world.declared();
        let rules = declared
            .faults
            .iter()
            .flat_map(|f| f.syscall_rules(service));
        rules.flat_map(|r| r.syscalls.iter().copied()).collect()
    }

    /// Calls the function of a declared workload whenever it is one of so many callers' turn, on threads of their own, until the line is
    /// over. The services are up.
    ///
    /// # Errors
    /// There is no such workload, or its function cannot be called as it is: a misuse, `halt()`, something that the host refused.
    // A Reason is large because it says much; it is made once per load at most.
    #[allow(clippy::result_large_err)]
    pub fn run_workload(
        &self,
        name: &str,
        on: (&Line, usize),
        host: Arc<dyn Host>,
        transcript: &Transcript,
    ) -> Result<(), Reason> {
        let entry = self
            .world
            .declared()
            .workloads
            .iter()
            .find(|w| w.name == name)
            .cloned();
        match entry {
            Some(entry) => run::load(&self.world, entry.code, on, host, transcript),
            None => Err(Reason::new(
                format!("the spec declares no workload `{name}`"),
                crate::plan::report::Blame::Internal,
            )),
        }
    }

    /// Calls the `seed=` function of a service that has just become ready; does nothing for a service without one.
    ///
    /// # Errors
    /// It raised.
    // A Reason is large because it says much; it is made once per test at most.
    #[allow(clippy::result_large_err)]
    pub fn seed_service(
        &self,
        service: &str,
        host: Arc<dyn Host>,
        transcript: &Transcript,
    ) -> Result<(), Reason> {
        match self.seed_of(service) {
            Some(seed) => run::call(&self.world, seed, host, transcript),
            None => Ok(()),
        }
    }

    /// Has the service a function that fills it?
    pub fn is_seeded(&self, service: &str) -> bool {
        self.seed_of(service).is_some()
    }

    fn seed_of(&self, service: &str) -> Option<context::FuncId> {
        let declared = self.world.declared();
        let service = declared.services.iter().find(|s| s.decl.name == service);
        service.and_then(|s| s.seed)
    }

    /// Calls a function that a mock's route has, on this thread, while a test may run on another.
    ///
    /// # Errors
    /// It raised, or returned what is no reply; as a text.
    pub fn answer(
        &self,
        function: usize,
        request: &serde_json::Value,
        transcript: &Transcript,
    ) -> faultbox_mocks::functions::Outcome {
        run::answer(&self.world, context::FuncId(function), request, transcript)
    }

    /// Runs one test's code on this thread: applies its faults, calls its function, judges its expectation. The services are up.
    /// Blocks as long as the test does; the caller watches the clock and simply leaves the thread behind on a time-out.
    pub fn run(&self, test: &str, host: Arc<dyn Host>, transcript: &Transcript) -> BodyVerdict {
        let entry = self
            .world
            .declared()
            .tests
            .iter()
            .find(|t| t.decl.name == test)
            .cloned();
        match entry {
            Some(entry) => run::run(&self.world, &entry.body, &entry.site, host, transcript),
            None => BodyVerdict {
                outcome: Outcome::Error,
                reason: Some(Reason::new(
                    format!("the spec has no test `{test}`"),
                    crate::plan::report::Blame::Internal,
                )),
                result: serde_json::Value::Null,
                took: Duration::ZERO,
            },
        }
    }

    /// `expect_hang(after=)`: the test passes if it is still running after this long, and fails if it has ended before.
    pub fn expected_hang(&self, test: &str) -> Option<Duration> {
        self.world
            .declared()
            .tests
            .iter()
            .find(|t| t.decl.name == test)
            .and_then(|t| t.body.hang)
    }
}
