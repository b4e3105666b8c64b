//! The command line as types. The doc comments are the help texts.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bench::plan::Trial;
use crate::report::Budget;
use crate::workload::{MAX_CALLERS, MAX_RATE};

/// Fault injection for services: run a spec's tests under syscall and protocol faults
#[derive(Debug, Parser)]
#[command(
    name = "faultbox",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the tests of a spec
    Test(TestArgs),
    /// Show what a command, or the services of a spec, call, open and connect to
    Trace(TraceArgs),
    /// Measure what faultbox adds to the interfaces of a spec
    Bench(BenchArgs),
    /// Load and plan a spec without starting any process
    Check(CheckArgs),
    /// Show what can be faulted and sent, per protocol
    Protocols(ProtocolsArgs),
    /// Show what this machine allows, and what is lost without it
    Doctor(DoctorArgs),
    /// Write a starter spec that loads and passes
    Init(InitArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Runs one test; reads its job from standard input
    #[command(name = "__worker", hide = true)]
    Worker,
    /// Joins a cgroup and becomes another program
    #[command(name = "__enter", hide = true)]
    Enter {
        /// The cgroup's folder
        cgroup: PathBuf,
        /// The program's path, its name and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Makes one kind of system call many times and prints what one takes
    #[command(name = "__spin", hide = true)]
    Spin {
        /// Which
        call: String,
        /// How often
        count: u64,
    },
    /// Runs a mock service
    #[command(name = "__mock", hide = true)]
    Mock {
        /// The file with what it answers
        plan: PathBuf,
    },
    /// Removes what a run that was killed has left
    #[command(name = "__janitor", hide = true)]
    Janitor {
        /// The run's folder
        dir: PathBuf,
    },
}

/// Where services and proxies listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// A network namespace per test where the kernel allows it; tests then run in parallel
    Auto,
    /// The host's network; tests run one at a time
    Host,
}

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Text for a person
    Human,
    /// One JSON document
    Json,
}

/// `faultbox test`
#[derive(Debug, Args)]
pub struct TestArgs {
    /// The spec file
    #[arg(value_name = "SPEC", default_value = "faultbox.star")]
    pub spec: PathBuf,
    /// Only tests with this name, or whose name matches this glob; may be repeated
    #[arg(long = "test", value_name = "PATTERN")]
    pub tests: Vec<String>,
    /// Tests run at the same time [default: number of cores]
    #[arg(long, value_name = "N", value_parser = positive_usize)]
    pub jobs: Option<usize>,
    /// Seed of every random decision [default: a random one, shown]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Run each test this often, with seeds counting up
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// How the report is written
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Human)]
    pub format: Format,
    /// Also write the report to a file
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Also write a JUnit XML report to a file
    #[arg(long, value_name = "FILE", conflicts_with = "list")]
    pub junit: Option<PathBuf>,
    /// List the selected tests instead of running them
    #[arg(long)]
    pub list: bool,
    /// Stop after the first test that does not pass
    #[arg(long)]
    pub fail_fast: bool,
    /// Keep the services' whole logs as DIR/TEST/SERVICE.log
    #[arg(long, value_name = "DIR")]
    pub keep_logs: Option<PathBuf>,
    /// Fail if faultbox itself was slower, e.g. added_p99<1ms (proxies) or decision_p99<50us (system
    /// calls); may be repeated
    #[arg(long = "overhead-budget", value_name = "BUDGET", value_parser = Budget::parse)]
    pub budgets: Vec<Budget>,
    /// Where services and proxies listen
    #[arg(long, value_name = "MODE", value_enum, default_value_t = Network::Auto)]
    pub network: Network,
    /// Show every test's faults, how each is enforced, and how long it took to be in force; twice: also what the programs in the kernel decide
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// `faultbox trace`
#[derive(Debug, Args)]
#[command(
    override_usage = "faultbox trace [OPTIONS] -- COMMAND...\n       faultbox trace [OPTIONS] --spec SPEC"
)]
pub struct TraceArgs {
    /// Trace the services of a spec while its tests run
    #[arg(long, value_name = "SPEC", conflicts_with = "command")]
    pub spec: Option<PathBuf>,
    /// With --spec: only tests with this name, or whose name matches this glob; may be repeated
    #[arg(long = "test", value_name = "PATTERN", requires = "spec")]
    pub tests: Vec<String>,
    /// How the summary is written
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Human)]
    pub format: Format,
    /// Write the summary to a file
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write every system call, opened file, connection and process to a file, as lines of JSON
    #[arg(long, value_name = "FILE", conflicts_with = "spec")]
    pub events: Option<PathBuf>,
    /// Show every row of every table; twice: also, as it happens, what the programs in the kernel decide
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `faultbox bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The spec file
    #[arg(value_name = "SPEC", default_value = "faultbox.star")]
    pub spec: PathBuf,
    /// Only this interface (db.pg) or declared workload; may be repeated
    #[arg(long = "interface", value_name = "NAME")]
    pub interfaces: Vec<String>,
    /// Calls a second, whatever the answers do [default: what the workload says]
    #[arg(long, value_name = "N", value_parser = rate)]
    pub rate: Option<f64>,
    /// Calls at the same time [default: what the workload says, or 1; 64 with --rate]
    #[arg(long, value_name = "N", value_parser = callers)]
    pub connections: Option<usize>,
    /// For how long each is measured, 1.2s at least [default: what its workload says, or 10s]
    #[arg(long, value_name = "DURATION", value_parser = span)]
    pub duration: Option<Duration>,
    /// Fail if this does not hold, e.g. added_p99<1ms; may be repeated
    #[arg(long = "budget", value_name = "BUDGET", value_parser = Budget::parse)]
    pub budgets: Vec<Budget>,
    /// Also measure each service natively, traced, and with system calls trapped (a family, or one) [default CALLS: what the spec's faults name]
    #[arg(
        long,
        value_name = "CALLS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = ""
    )]
    pub syscalls: Option<String>,
    /// Show what has changed since an earlier --json FILE
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// Also write a page with pictures
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Also write all figures, with the latencies as HdrHistogram logs
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Seed of the spec's draws and of the bootstrap [default: a random one, shown]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Tries the bench itself out with an effect of a known size: null, or delay=300us
    #[arg(long, value_name = "TRIAL", value_parser = Trial::parse, hide = true)]
    pub trial: Option<Trial>,
}

/// `faultbox check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The spec file
    #[arg(value_name = "SPEC", default_value = "faultbox.star")]
    pub spec: PathBuf,
    /// How the plan is written
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Human)]
    pub format: Format,
}

/// `faultbox protocols`
#[derive(Debug, Args)]
pub struct ProtocolsArgs {
    /// One protocol in full
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
}

/// `faultbox doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// How the findings are written
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Human)]
    pub format: Format,
}

/// `faultbox init`
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The folder to write faultbox.star to; made if it is not there
    #[arg(value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
}

/// `faultbox completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    pub shell: clap_complete::Shell,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= MAX_RATE => Ok(rate),
        _ => Err(format!(
            "calls a second are a number above 0 and at most {MAX_RATE}"
        )),
    }
}

fn callers(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if (1..=MAX_CALLERS).contains(&n) => Ok(n),
        _ => Err(format!("calls at a time are between 1 and {MAX_CALLERS}")),
    }
}

/// A duration that a bench can take.
fn span(text: &str) -> Result<Duration, String> {
    let span = faultbox_contract::duration::parse_duration(text)?;
    let (least, most) = (Duration::from_millis(100), Duration::from_secs(24 * 3600));
    match (least..=most).contains(&span) {
        true => Ok(span),
        false => Err("a bench takes between 100ms and 24h for each".into()),
    }
}

fn positive_usize(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) => Err("it must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(e) => Err(e.to_string()),
    }
}
