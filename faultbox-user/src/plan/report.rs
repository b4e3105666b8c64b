//! What a test reports: the one value that travels from the worker to the run, and that every report reads.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Activity, SpecPos};

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All that it asserts holds.
    Passed,
    /// Something it asserts does not hold.
    Failed,
    /// It could not be carried out: a service did not start, a fault could not be enforced, the spec raised.
    Error,
    /// It did not end in time.
    Timeout,
    /// It passed, but a required fault never fired.
    Bypassed,
    /// Its baseline failed, so it says nothing.
    Invalid,
    /// What was seen is not enough to decide.
    Inconclusive,
    /// The spec ended it with `halt()`.
    Halted,
    /// The run was interrupted.
    Interrupted,
}

impl Outcome {
    /// Every outcome, in the order reports list them.
    pub const ALL: [Outcome; 9] = [
        Outcome::Passed,
        Outcome::Failed,
        Outcome::Error,
        Outcome::Timeout,
        Outcome::Bypassed,
        Outcome::Invalid,
        Outcome::Inconclusive,
        Outcome::Halted,
        Outcome::Interrupted,
    ];

    /// The outcome's name in every report.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Passed => "passed",
            Outcome::Failed => "failed",
            Outcome::Error => "error",
            Outcome::Timeout => "timeout",
            Outcome::Bypassed => "bypassed",
            Outcome::Invalid => "invalid",
            Outcome::Inconclusive => "inconclusive",
            Outcome::Halted => "halted",
            Outcome::Interrupted => "interrupted",
        }
    }
}

/// Whose doing an [`Outcome::Error`] is: it decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Blame {
    /// The spec or the services under test.
    Test,
    /// The environment: a missing binary, privilege or server.
    Environment,
    /// Faultbox itself.
    Internal,
}

/// Everything one test has to say.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TestReport {
    /// The test's name.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, unless it passed.
    pub reason: Option<Reason>,
    /// Wall time, services included.
    pub duration_ms: f64,
    /// Wall time of the body alone.
    pub body_ms: f64,
    /// The seed of its draws.
    pub seed: u64,
    /// Every fault that was armed, in that order.
    pub faults: Vec<FaultReport>,
    /// How many assertions were evaluated.
    pub assertions: u64,
    /// What the test function returned, as JSON.
    pub result: Value,
    /// What it printed.
    pub prints: Vec<String>,
    /// Things the user should know that are no failure: a baseline without assertion, a keyword without effect here, ….
    pub notes: Vec<String>,
    /// The last lines of each service's log; filled unless the test passed.
    pub logs: Vec<LogTail>,
    /// Added time of the proxies, per interface.
    pub interfaces: Vec<MeterSnapshot>,
    /// Decision time of the supervisor, per service.
    pub syscalls: Vec<MeterSnapshot>,
    /// What each service did, if the run was to tell.
    #[serde(default)]
    pub activity: BTreeMap<String, Activity>,
}

impl TestReport {
    /// Of a test that did not get as far as its services, or that no worker reported on.
    pub fn bare(
        name: String,
        seed: u64,
        outcome: Outcome,
        reason: Reason,
        took: Duration,
    ) -> TestReport {
        TestReport {
            name,
            outcome,
            reason: Some(reason),
            duration_ms: took.as_secs_f64() * 1e3,
            body_ms: 0.0,
            seed,
            faults: vec![],
            assertions: 0,
            result: Value::Null,
            prints: vec![],
            notes: vec![],
            logs: vec![],
            interfaces: vec![],
            syscalls: vec![],
            activity: BTreeMap::new(),
        }
    }
}

/// Why a test did not pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reason {
    /// One line.
    pub message: String,
    /// What was expected, if it was a comparison.
    pub expected: Option<String>,
    /// What came instead.
    pub actual: Option<String>,
    /// Where in the spec.
    pub location: Option<Location>,
    /// What to do about it.
    pub help: Option<String>,
    /// Whose doing it is.
    pub blame: Blame,
}

impl Reason {
    /// A reason of one line.
    pub fn new(message: impl Into<String>, blame: Blame) -> Reason {
        Reason {
            message: message.into(),
            expected: None,
            actual: None,
            location: None,
            help: None,
            blame,
        }
    }
}

/// A spec line with what to underline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// Where.
    pub pos: SpecPos,
    /// The line's text.
    pub line: String,
    /// How many characters to underline from the position's column.
    pub width: u32,
}

/// One armed fault and what came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FaultReport {
    /// The assumption's name.
    pub name: String,
    /// "db" or "db.pg".
    pub target: String,
    /// `write=deny("EIO")` or `error(query="INSERT*")`.
    pub action: String,
    /// How often it fired and decided.
    pub hits: u64,
    /// How often its matchers selected a call, fired or not.
    pub matched: u64,
    /// How often it would have decided had no later fault done so.
    pub shadowed: u64,
    /// How it is enforced: "seccomp notification (armed while running)", "seccomp filter before exec", "proxy".
    pub mechanism: String,
    /// From the call of `fault()` to in force.
    pub armed_us: u64,
}

/// The end of a service's log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogTail {
    /// The service.
    pub service: String,
    /// Its last lines, each cut to a sane length.
    pub lines: Vec<String>,
    /// How it ended, if it ended by itself: "exited with status 1", "killed by SIGSEGV".
    pub ended: Option<String>,
}

/// A histogram on its way between processes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MeterSnapshot {
    /// "db.pg" for an interface, "db" for a service.
    pub name: String,
    /// The protocol; empty for a service.
    pub protocol: String,
    /// (nanoseconds, count) pairs.
    pub pairs: Vec<(u64, u64)>,
}
