//! Whole runs: arming, an empty test, a matrix.

use std::process::{Command, Stdio};
use std::time::Instant;

use super::lab::passed;
use super::stats::Samples;
use super::table::{Goal, Table, show};
use super::{BLOCKS, number};
use crate::json::Json;
use crate::{Error, Result};
use crate::{run, specs};

/// What a test may take beyond what its scenario does, in milliseconds.
const CELL: Goal = Goal::AtMost(150.0);

/// From fault() to in force in 50 busy threads, and whether any of their calls was lost.
pub fn arming(table: &mut Table) -> Result<()> {
    let (report, _) = test("arming", &["--jobs", "1", "--runs", &BLOCKS.to_string()])?;
    let (mut first, mut second) = (Samples::new(), Samples::new());
    let (mut lost, mut done, mut refused) = (0.0, 0.0, 0.0);
    for run in tests(&report) {
        let armed = run.get("faults").map(Json::list).unwrap_or_default();
        for (fault, samples) in armed.iter().zip([&mut first, &mut second]) {
            samples.push(number(fault, &["armed_us"])? / 1e3);
        }
        for odd in ["strange", "lost", "failed"] {
            lost += number(run, &["result", odd])?;
        }
        done += number(run, &["result", "done"])?;
        refused += number(run, &["result", "refused"])?;
    }
    for (what, samples) in [("first filter", &first), ("widened by a second", &second)] {
        table.row(
            format!("fault() to in force, 50 busy threads, {what}"),
            samples,
            "ms",
            Goal::AtMost(25.0),
            &format!("at most {}", show(samples.max())),
        );
    }
    table.row(
        "calls lost or answered otherwise meanwhile",
        &[lost].into_iter().collect(),
        "",
        Goal::AtMost(0.0),
        &format!("{done} done, {refused} refused"),
    );
    Ok(())
}

/// A test without services.
pub fn empty(table: &mut Table) -> Result<()> {
    let mut walls = Samples::new();
    for _ in 0..BLOCKS {
        walls.push(test("empty", &[])?.1);
    }
    table.row("an empty test, the whole command", &walls, "ms", CELL, "");
    Ok(())
}

/// Thirty cells, two at a time.
pub fn matrix(table: &mut Table) -> Result<()> {
    let (mut shares, mut cells) = (Samples::new(), Samples::new());
    let mut total = Samples::new();
    for _ in 0..3 {
        let (report, wall) = test("matrix", &["--jobs", "2"])?;
        let mut scenarios = 0.0;
        let mut count = 0.0;
        for cell in tests(&report) {
            // A scenario returns its only step's response.
            let own = number(cell, &["result", "duration_ms"])?;
            cells.push(number(cell, &["duration_ms"])? - own);
            scenarios += own;
            count += 1.0;
        }
        total.push(wall);
        shares.push((wall - scenarios / 2.0) / count);
    }
    table.row(
        "30-cell matrix, --jobs 2: wall time per cell beyond its scenario",
        &shares,
        "ms",
        CELL,
        &format!("{} ms in all", show(total.median())),
    );
    table.row(
        "... one cell's duration beyond its scenario, two at a time",
        &cells,
        "ms",
        CELL,
        &format!("at most {}", show(cells.max())),
    );
    Ok(())
}

/// Runs a spec of ours; its report, and the milliseconds it took.
fn test(spec: &str, args: &[&str]) -> Result<(Json, f64)> {
    let mut command = Command::new(specs::dist("faultbox"));
    command
        .current_dir(run::root())
        .args(["test", &format!("xtask/bench/specs/{spec}.star")])
        .args(["--format", "json"])
        .args(args);
    run::say(&command);
    let began = Instant::now();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| run::cannot_run(&command, &e))?;
    let wall = began.elapsed().as_secs_f64() * 1e3;
    let report = passed(&String::from_utf8_lossy(&output.stdout))
        .map_err(|why| Error::new(format!("`{}`: {why}", run::show(&command))))?;
    Ok((report, wall))
}

fn tests(report: &Json) -> &[Json] {
    report.get("tests").map(Json::list).unwrap_or_default()
}
