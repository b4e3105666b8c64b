//! Carrying out a plan: one worker process per test, its services, its supervisor, its proxies.

pub mod certificates;
pub mod fleet;
mod home;
pub mod host;
pub mod isolation;
pub mod janitor;
pub mod mocks;
pub mod preflight;
pub mod procs;
pub mod runner;
pub mod services;
mod startup;
pub mod supervisor;
pub mod trace;
pub mod tracer;
pub mod wire;
pub mod worker;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::bench::plan::Plan;
use crate::plan::report::Blame;
use crate::report::{Budget, RunObserver, RunReport};
use crate::spec::LoadedSpec;

/// What `faultbox test` was asked to do.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// The spec file.
    pub spec: PathBuf,
    /// The selected tests by name, in the order declared.
    pub tests: Vec<String>,
    /// Tests at the same time; `None`: as many as cores.
    pub jobs: Option<usize>,
    /// The run's seed.
    pub seed: u64,
    /// How often each test runs, with seeds `seed`, `seed + 1`, ….
    pub runs: u32,
    /// Stop after the first test that does not pass.
    pub fail_fast: bool,
    /// Where service logs are kept: `DIR/<test>/<service>.log`.
    pub keep_logs: Option<PathBuf>,
    /// Stay in the host's network namespace even where another could be had.
    pub host_network: bool,
    /// What the mediation may cost, for the report.
    pub budgets: Vec<Budget>,
    /// Measure instead of testing.
    pub bench: Option<Plan>,
    /// -v
    pub verbose: u8,
    /// Tell what each service did: [`crate::plan::TestReport::activity`].
    pub trace: bool,
}

/// Why a run could not be carried out at all.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RunError {
    /// What went wrong, a lower-case fragment.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// Decides the exit code.
    pub blame: Blame,
}

/// Runs the selected tests of `spec`, telling `observer` as they go. Returns when everything it started is gone.
///
/// # Errors
/// What is missing on this machine, said before anything starts; or a defect of our own.
pub fn run(
    spec: &LoadedSpec,
    options: &RunOptions,
    observer: &dyn RunObserver,
) -> Result<RunReport, RunError> {
    runner::run(spec, options, observer)
}

/// The body of the hidden `__worker` command: reads its job from standard input, writes messages to standard output.
pub fn worker_main() -> std::process::ExitCode {
    worker::main()
}

/// The body of the hidden `__mock` command: answers as the plan in the file says, until it is killed.
pub fn mock_main(plan: &Path) -> std::process::ExitCode {
    mocks::main(plan)
}

/// The body of the hidden `__janitor` command: waits for the run to die, then removes what it left.
pub fn janitor_main(dir: &Path) -> std::process::ExitCode {
    janitor::main(dir)
}

/// The body of the hidden `__enter` command: joins a cgroup and becomes another program.
pub fn enter_main(cgroup: &Path, command: &[OsString]) -> std::process::ExitCode {
    trace::enter(cgroup, command)
}

/// The body of the hidden `__spin` command: makes one kind of system call many times and prints what one takes.
pub fn spin_main(call: &str, count: u64) -> std::process::ExitCode {
    trace::spin(call, count)
}

fn internal(message: String) -> RunError {
    RunError {
        message,
        help: None,
        blame: Blame::Internal,
    }
}

fn environment(message: String, help: &str) -> RunError {
    RunError {
        message,
        help: Some(help.to_owned()),
        blame: Blame::Environment,
    }
}
