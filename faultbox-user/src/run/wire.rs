//! What runner and worker say to each other: JSON lines on the worker's standard input and output.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::isolation::Network;
use super::tracer;
use crate::bench::plan::Plan;
use crate::plan::TestReport;
use crate::spec::SpecFiles;

/// The first line a worker reads. What follows on standard input is its end, or any line: both mean "stop gracefully".
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Only try whether the network can be entered.
    Probe(Network),
    /// Run one test.
    Run(Box<Job>),
}

/// One test to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The spec as the user named it; worker and runner share a working directory.
    pub spec: PathBuf,
    /// Its text as it was planned.
    pub files: SpecFiles,
    /// The test's name.
    pub test: String,
    /// Instead of a test of the spec: what to measure.
    pub bench: Option<Plan>,
    /// The seed of its draws.
    pub seed: u64,
    /// Which network to live in.
    pub network: Network,
    /// The run's id: the value of the marker in the environment of everything it starts.
    pub run: String,
    /// The worker's number, unique in the run.
    pub worker: u64,
    /// An existing folder for what nobody wants to keep.
    pub scratch: PathBuf,
    /// An existing folder for the services' logs.
    pub logs: PathBuf,
    /// An existing cgroup of its own, if the run may have any.
    pub cgroup: Option<PathBuf>,
    /// The runner's process id.
    pub runner: i32,
    /// Tell what each service did.
    pub trace: bool,
    /// The kernel's side, or why there is none.
    pub kernel: Result<tracer::Share, String>,
}

/// What a worker writes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The answer to a probe: why not, if not.
    Probe(Option<String>),
    /// Something to say once per run, however many workers say it.
    Note(String),
    /// The test's report; the last message.
    Report(Box<TestReport>),
}

/// Writes one value as one line.
///
/// # Errors
/// The pipe is closed, or a path is not UTF-8.
pub fn write_line(mut to: impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}
