//! `faultbox test`: select, run, report.

use std::hash::{BuildHasher, Hasher};
use std::path::Path;

use nix::unistd::AccessFlags;
use serde_json::json;

use super::args::{Format, Network, TestArgs};
use super::exit::Exit;
use super::problem::Problem;
use super::progress::Progress;
use super::{load, output, select};
use crate::plan::{TestDecl, TestKind};
use crate::report::{RunReport, Style, human, json as json_report, junit, text};
use crate::run::{self, RunOptions};

/// Runs the command.
///
/// # Errors
/// A spec or a selection that cannot be used, a machine that cannot run it, a report that cannot be written.
pub fn run(args: &TestArgs) -> Result<Exit, Problem> {
    let spec = load(&args.spec)?;
    let selected = select::select(&args.spec, spec.tests(), &args.tests)?;
    let written = [
        ("--output", args.output.as_ref()),
        ("--junit", args.junit.as_ref()),
    ];
    output::distinct(written, Some(&spec))?;
    if args.list {
        let list = list(args, &selected);
        output::stdout(&list)?;
        if let Some(path) = &args.output {
            output::file("--output", path, &list)?;
        }
        return Ok(Exit::Passed);
    }
    if selected.is_empty() {
        return Err(Problem::usage(
            format!("{} declares no test", args.spec.display()),
            "a test is a top-level `def test_x():`, scenario(fn), fault_scenario(…) or a cell of a fault_matrix(…)",
        ));
    }
    if let Some(dir) = &args.keep_logs {
        keepable(dir)?;
    }
    let options = RunOptions {
        spec: args.spec.clone(),
        tests: selected.iter().map(|t| t.name.clone()).collect(),
        jobs: args.jobs,
        seed: args.seed.unwrap_or_else(random_seed),
        runs: args.runs,
        fail_fast: args.fail_fast,
        keep_logs: args.keep_logs.clone(),
        host_network: args.network == Network::Host,
        verbose: args.verbose,
        trace: false,
        budgets: args.budgets.clone(),
        bench: None,
    };
    let total = selected.len() * args.runs as usize;
    let style = Style::stderr();
    // Shown first, so that a run that does not come to its end can be repeated too.
    output::stderr(&format!(
        "{}: {}, seed {}\n",
        args.spec.display(),
        text::count(total as u64, "test"),
        options.seed
    ));
    let progress = Progress::new(total, style);
    let report = run::run(&spec, &options, &progress);
    progress.end();
    let report = report?;
    deliver(args, &report)
}

/// The folder for logs, made if it is missing: found out now, not after the first test.
fn keepable(dir: &Path) -> Result<(), Problem> {
    let refuse = |why: &dyn std::fmt::Display| {
        Problem::environment(
            format!("--keep-logs {}: {why}", dir.display()),
            "name a folder that can be written",
        )
    };
    std::fs::create_dir_all(dir).map_err(|e| refuse(&e))?;
    nix::unistd::access(dir, AccessFlags::W_OK).map_err(|e| refuse(&e.desc().to_lowercase()))
}

/// Hands the report to everybody who asked for it. One place that cannot take it does not keep it from the others.
fn deliver(args: &TestArgs, report: &RunReport) -> Result<Exit, Problem> {
    let render = |style: &Style| match args.format {
        Format::Human => human::render(report, style, args.verbose),
        Format::Json => json_report::render(report),
    };
    let mut exit = Exit::of_run(report);
    let mut deliver = |result: Result<(), Problem>| {
        if let Err(problem) = result {
            output::stderr(&problem.render(&Style::stderr()));
            exit = exit.and(problem.exit);
        }
    };
    deliver(output::stdout(&render(&Style::stdout())));
    if let Some(path) = &args.output {
        deliver(output::file("--output", path, &render(&Style::PLAIN)));
    }
    if let Some(path) = &args.junit {
        deliver(
            junit::render(report)
                .map_err(|e| Problem::new(Exit::Internal, format!("--junit: {e}"), None))
                .and_then(|xml| output::file("--junit", path, &xml)),
        );
    }
    Ok(exit)
}

/// A seed that is unlikely to come twice, short enough to be typed, and exact in every JSON reader.
pub fn random_seed() -> u64 {
    // The standard library keys its hash maps from the system's entropy.
    let hash = std::hash::RandomState::new().build_hasher().finish();
    hash & u64::from(u32::MAX)
}

/// What a test is, in a word.
pub fn kind(decl: &TestDecl) -> &'static str {
    match decl.kind {
        TestKind::Function => "function",
        TestKind::Scenario => "scenario",
        TestKind::FaultScenario => "fault_scenario",
        TestKind::Baseline { .. } => "baseline",
        TestKind::Cell { .. } => "cell",
    }
}

/// One test as `--list` and `check` give it in JSON.
pub fn describe(decl: &TestDecl) -> serde_json::Value {
    let (scenario, fault) = match &decl.kind {
        TestKind::Baseline { scenario, .. } => (Some(scenario), None),
        TestKind::Cell {
            scenario, fault, ..
        } => (Some(scenario), Some(fault)),
        _ => (None, None),
    };
    json!({
        "name": decl.name,
        "kind": kind(decl),
        "scenario": scenario,
        "fault": fault,
        "timeout_ms": decl.timeout.as_secs_f64() * 1e3,
        "file": decl.pos.file,
        "line": decl.pos.line,
    })
}

/// Names in a column with what each is behind it.
pub fn names(tests: &[&TestDecl]) -> String {
    let width = tests
        .iter()
        .map(|t| text::columns(&t.name))
        .max()
        .unwrap_or(0);
    let line = |t: &&TestDecl| {
        let pad = width - text::columns(&t.name);
        format!("{}{:pad$}  {}\n", t.name, "", kind(t))
    };
    tests.iter().map(line).collect()
}

fn list(args: &TestArgs, tests: &[&TestDecl]) -> String {
    match args.format {
        Format::Human => names(tests),
        Format::Json => {
            let tests: Vec<_> = tests.iter().map(|t| describe(t)).collect();
            let spec = args.spec.display().to_string();
            format!("{:#}\n", json!({"schema": 1, "spec": spec, "tests": tests}))
        }
    }
}
