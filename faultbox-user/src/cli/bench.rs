//! `faultbox bench`: plan, measure, conclude.

use super::args::BenchArgs;
use super::exit::Exit;
use super::problem::Problem;
use super::progress::Progress;
use super::test::random_seed;
use super::{load, output};
use crate::bench::analysis::{Bench, Finding, Side};
use crate::bench::document::{self, Baseline};
use crate::bench::drive::Measured;
use crate::bench::judge::{self, Standing};
use crate::bench::plan::{Plan, Skipped, Wish};
use crate::bench::{html, text};
use crate::plan::{Outcome, TestReport};
use crate::report::budget::{Budget, Measure, Quantile};
use crate::report::{RunReport, Style, text as words};
use crate::run::{self, RunOptions};
use crate::workload::{DEFAULT_CALLERS, Shape};

/// Runs the command.
///
/// # Errors
/// A spec, a name or a baseline that cannot be used, nothing to measure, a machine that cannot run it, a report that cannot be written.
pub fn run(args: &BenchArgs) -> Result<Exit, Problem> {
    let spec = load(&args.spec)?;
    let written = [
        ("--html", args.html.as_ref()),
        ("--json", args.json.as_ref()),
    ];
    output::distinct(written, Some(&spec))?;
    // Before anything is measured: a long bench must not end with a report that nobody can have.
    for (flag, path) in written {
        path.map_or(Ok(()), |path| output::writable(flag, path))?;
    }
    if let Some(budget) = args.budgets.iter().find(|b| never_decided(b)) {
        return Err(Problem::usage(
            format!(
                "--budget {}: a maximum is a single call, of which nothing can be concluded from outside",
                budget.text
            ),
            "name p50, p90, p99 or p99_9; `faultbox test --overhead-budget` judges a maximum by the proxies' own clock",
        ));
    }
    let wish = Wish {
        names: args.interfaces.clone(),
        shape: shape(args),
        duration: args.duration,
        syscalls: args.syscalls.clone(),
        trial: args.trial,
    };
    let (plan, mut skipped) =
        Plan::of(&spec, &wish).map_err(|e| Problem::usage(e.message, e.help))?;
    if plan.subjects.is_empty() {
        return Err(nothing(args, &skipped));
    }
    // Before anything is measured: a long bench must not end with a file that could never be read.
    let baseline = args.compare.as_ref().map(|path| {
        let refuse = |why: String| {
            Problem::usage(
                format!("--compare {}: {why}", path.display()),
                "name a file that `faultbox bench --json FILE` has written",
            )
        };
        Baseline::open(path).map_err(refuse)
    });
    let baseline = baseline.transpose()?;
    let options = RunOptions {
        spec: args.spec.clone(),
        tests: vec![plan.decl().name],
        jobs: Some(1),
        seed: args.seed.unwrap_or_else(random_seed),
        runs: 1,
        bench: Some(plan.clone()),
        ..RunOptions::default()
    };
    output::stderr(&format!(
        "{}: {}, {} of load, seed {}\n",
        args.spec.display(),
        words::count(plan.subjects.len() as u64, "subject"),
        words::millis(plan.duration().as_secs_f64() * 1e3),
        options.seed
    ));
    let progress = Progress::new(1, Style::stderr());
    let report = run::run(&spec, &options, &progress);
    progress.end();
    let report = report?;
    let measured = measured(&report)?;
    let seed = options.seed;
    let mut subjects = vec![];
    for (subject, taken) in plan.subjects.iter().cloned().zip(measured.subjects) {
        match taken.unavailable {
            Some(reason) => skipped.push(Skipped {
                name: subject.label(),
                reason,
            }),
            None => {
                let cores = measured.machine.cores;
                subjects.push(Finding::of(subject, taken, seed, cores));
            }
        }
    }
    let bench = Bench {
        spec: report.spec.clone(),
        seed,
        duration_ms: report.duration_ms,
        machine: measured.machine,
        subjects,
        skipped,
        notes: [notes(&report), plan.lengthened()].concat(),
        plan,
    };
    deliver(args, &bench, baseline.as_ref())
}

/// A budget that no bench could ever judge.
fn never_decided(budget: &Budget) -> bool {
    budget.measure == Measure::Added && budget.quantile == Quantile::Max
}

fn shape(args: &BenchArgs) -> Option<Shape> {
    match (args.rate, args.connections) {
        (Some(rate), callers) => Some(Shape::Open {
            rate,
            callers: callers.unwrap_or(DEFAULT_CALLERS),
        }),
        (None, Some(callers)) => Some(Shape::Closed { callers }),
        (None, None) => None,
    }
}

fn nothing(args: &BenchArgs, skipped: &[Skipped]) -> Problem {
    let message = format!("{} has nothing to measure", args.spec.display());
    let why: Vec<String> = skipped
        .iter()
        .map(|s| format!("{}: {}", s.name, s.reason))
        .collect();
    let help = match why.as_slice() {
        [] => "declare a service with an interface, or a load: workload(\"name\", fn, rate=)"
            .to_owned(),
        why => why.join("; "),
    };
    Problem::usage(message, help)
}

/// What the worker has sent, unless it could not do its work.
fn measured(report: &RunReport) -> Result<Measured, Problem> {
    let test = report.tests.first();
    match test {
        Some(test) if test.outcome == Outcome::Passed => {
            serde_json::from_value(test.result.clone()).map_err(|e| {
                Problem::new(
                    Exit::Internal,
                    format!("what was measured cannot be read: {e}"),
                    None,
                )
            })
        }
        Some(test) => Err(failed(test)),
        None => Err(Problem::new(
            Exit::Interrupted,
            "the bench was interrupted",
            None,
        )),
    }
}

/// The topology did not come up, or something else kept it from measuring.
fn failed(test: &TestReport) -> Problem {
    let message = match &test.reason {
        Some(reason) => reason.message.clone(),
        None => format!("the bench ended as {}", test.outcome.name()),
    };
    let logs: Vec<String> = test
        .logs
        .iter()
        // Who interrupts knows why.
        .filter(|l| !l.lines.is_empty() && test.outcome != Outcome::Interrupted)
        .map(|l| format!("log of {}: {}", l.service, l.lines.join(" | ")))
        .collect();
    let help = test.reason.as_ref().and_then(|r| r.help.clone());
    let help: Vec<String> = help.into_iter().chain(logs).collect();
    let help = (!help.is_empty()).then(|| words::cut(&words::clean(&help.join("; ")), 1000));
    Problem::new(Exit::of_test(test), message, help)
}

fn notes(report: &RunReport) -> Vec<String> {
    let of_tests = report.tests.iter().flat_map(|t| &t.notes);
    // What a spec tests, or does not, is none of a bench's concern.
    let run = report.notes.iter().filter(|n| !n.contains("no test"));
    run.chain(of_tests).cloned().collect()
}

/// Hands the report to everybody who asked for it. One place that cannot take it does not keep it from the others.
fn deliver(args: &BenchArgs, bench: &Bench, baseline: Option<&Baseline>) -> Result<Exit, Problem> {
    let judged = judge::judge(bench, &args.budgets);
    let changes = baseline.map_or_else(Vec::new, |b| b.changes(bench));
    let caveats = baseline.map_or_else(Vec::new, |b| b.caveats(bench));
    let verdicts = judged.iter().map(|j| match j.standing {
        Standing::Held => Exit::Passed,
        Standing::Broken => Exit::Failed,
        Standing::Undecided => Exit::Undecided,
    });
    // Calls that fail are not what was to be measured, however many of them were quick.
    let failed = |s: &Finding| s.error.is_some() || s.sides.iter().any(Side::is_broken);
    let errors = bench.subjects.iter().map(|s| match failed(s) {
        true => Exit::Failed,
        false => Exit::Passed,
    });
    // Every subject turned out to be one that this machine cannot have.
    let nothing = bench.subjects.is_empty().then_some(Exit::Undecided);
    let all = verdicts.chain(errors).chain(nothing);
    let mut exit = all.fold(Exit::Passed, Exit::and);
    let mut deliver = |result: Result<(), Problem>| {
        if let Err(problem) = result {
            output::stderr(&problem.render(&Style::stderr()));
            exit = exit.and(problem.exit);
        }
    };
    let style = Style::stdout();
    deliver(output::stdout(&text::render(
        bench, &judged, &changes, &caveats, &style,
    )));
    if let Some(path) = &args.json {
        let json = document::render(bench, &judged, &changes);
        deliver(output::file("--json", path, &json));
    }
    if let Some(path) = &args.html {
        let page = html::render(bench, &judged, baseline);
        deliver(output::file("--html", path, &page));
    }
    Ok(exit)
}
