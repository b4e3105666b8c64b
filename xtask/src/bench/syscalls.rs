//! What supervision costs: a busy loop of one call, and PostgreSQL.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::lab::{Lab, get};
use super::stats::Samples;
use super::table::{Goal, Table, show};
use super::{BLOCKS, number};
use crate::json::Json;
use crate::run;
use crate::{Error, Result};

/// About a fifth of a second each.
pub const CALLS: u64 = 500_000;
const CALLS_TRAPPED: u64 = 25_000;
pub const CALLS_TRACED: u64 = 2_500;

/// What a service keeps of its native speed with nothing armed.
const UNARMED: Goal = Goal::AtLeast(0.99);

/// A busy loop of pwrite(2).
pub fn pwrite(lab: &Lab, table: &mut Table) -> Result<()> {
    let sides = [
        (lab.native_server.addr, CALLS),
        (lab.quiet.addr("BENCH_HTTP_DIRECT")?, CALLS),
        (lab.calls.addr("BENCH_HTTP_DIRECT")?, CALLS_TRAPPED),
        (lab.counted.addr("BENCH_HTTP_DIRECT")?, CALLS_TRAPPED),
        (lab.notified_server.addr, CALLS_TRAPPED),
        (lab.strace_server.addr, CALLS_TRACED),
        (lab.fiu_server.addr, CALLS),
    ];
    let [native, quiet, calls, counted, notified, strace, fiu] =
        interleaved(sides, |(addr, calls)| {
            let report = get(addr, &format!("/pwrite?calls={calls}"))?;
            number(&report, &["per_call_us"])
        })?;
    let speed = |side: &Samples| native.per(side, |native, side| native / side);
    let each = |side: &Samples| format!("{} µs a call", show(side.median()));
    table.row(
        "pwrite loop, nothing armed: speed of native",
        &speed(&quiet),
        "×",
        UNARMED,
        &format!("{}, native {}", each(&quiet), show(native.median())),
    );
    for (what, side) in [
        ("fault armed, its path never matches", &calls),
        ("fault armed, its counter never gets there", &counted),
        ("a bare loop that lets every call go on", &notified),
        ("strace -f -e inject, never injecting", &strace),
        ("libfiu, never injecting", &fiu),
    ] {
        table.row(
            format!("pwrite loop, {what}: speed of native"),
            &speed(side),
            "×",
            Goal::None,
            &each(side),
        );
    }
    Ok(())
}

/// PostgreSQL under pgbench: SELECTs, which are all socket calls, and its standard transaction, which is all fsync.
pub fn pgbench(lab: &Lab, table: &mut Table) -> Result<()> {
    let sides = [
        lab.native_postgres.addr,
        lab.quiet.addr("BENCH_PG_DIRECT")?,
        lab.calls.addr("BENCH_PG_DIRECT")?,
        lab.strace_postgres.addr,
    ];
    for side in sides {
        bench(side, &["-i", "-q", "-s", "1"])?;
    }
    for (what, args) in [
        ("SELECT only", &["-S", "-n", "-c", "2", "-T", "1"][..]),
        ("TPC-B", &["-n", "-c", "2", "-T", "1"][..]),
    ] {
        let [native, quiet, calls, strace] = interleaved(sides, |addr| {
            let output = bench(addr, args)?;
            tps(&output).ok_or_else(|| Error::new(format!("pgbench told no tps: {output}")))
        })?;
        let speed = |side: &Samples| side.per(&native, |side, native| side / native);
        for (state, side, goal) in [
            ("nothing armed", &quiet, UNARMED),
            (
                "fault on every write armed, never matching",
                &calls,
                Goal::None,
            ),
            ("strace -f -e inject, never injecting", &strace, Goal::None),
        ] {
            table.row(
                format!("pgbench {what}, {state}: speed of native"),
                &speed(side),
                "×",
                goal,
                &format!(
                    "{} tps, native {}",
                    show(side.median()),
                    show(native.median())
                ),
            );
        }
    }
    Ok(())
}

/// How long the supervisor took to decide, by its own clock.
pub fn decisions(calls: &Json, counted: &Json, table: &mut Table) {
    for (what, report) in [("path looked at", calls), ("counter only", counted)] {
        let services = report.get("overhead").and_then(|o| o.get("syscalls"));
        for service in services.map(Json::list).unwrap_or_default() {
            let name = service.get("service").and_then(Json::text).unwrap_or("?");
            let (Ok(p50), Ok(p99), Ok(trapped)) = (
                number(service, &["decision_us", "p50"]),
                number(service, &["decision_us", "p99"]),
                number(service, &["trapped"]),
            ) else {
                continue;
            };
            table.row(
                format!("decision per trapped call, {name}, {what}: p50"),
                &[p50].into_iter().collect(),
                "µs",
                Goal::AtMost(8.0),
                &format!("p99 {} µs, {trapped} calls", show(p99)),
            );
        }
    }
}

/// Measures the sides in turns; the order alternates, so that none profits from its place.
pub fn interleaved<T: Copy, const N: usize>(
    sides: [T; N],
    mut measure: impl FnMut(T) -> Result<f64>,
) -> Result<[Samples; N]> {
    let mut samples = [const { Samples::new() }; N];
    for block in 0..BLOCKS {
        let mut order: Vec<usize> = (0..N).collect();
        if block % 2 == 1 {
            order.reverse();
        }
        for i in order {
            samples[i].push(measure(sides[i])?);
        }
    }
    Ok(samples)
}

pub fn bench(addr: SocketAddr, args: &[&str]) -> Result<String> {
    let mut command = Command::new(program()?);
    command
        .args(["-h", &addr.ip().to_string(), "-p", &addr.port().to_string()])
        .args(["-U", "postgres"])
        .args(args)
        .arg("postgres");
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| run::cannot_run(&command, &e))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(Error::new(format!(
            "`{}` failed: {}",
            run::show(&command),
            text(&output.stderr)
        ))),
    }
}

/// pgbench belongs to the server's package, which Debian keeps out of PATH.
fn program() -> Result<PathBuf> {
    if run::has_program("pgbench") {
        return Ok("pgbench".into());
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    versions
        .flatten()
        .map(|version| version.path().join("bin/pgbench"))
        .find(|path| path.exists())
        .ok_or_else(|| Error::new("pgbench is not installed: apt-get install postgresql"))
}

/// The rate, without the time that connecting took.
pub fn tps(output: &str) -> Option<f64> {
    let (_, rest) = output.split_once("tps = ")?;
    rest.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_found() {
        let output =
            "latency average = 0.07 ms\ntps = 13456.70 (without initial connection time)\n";
        assert_eq!(tps(output), Some(13456.7));
        assert_eq!(tps("nothing"), None);
    }

    #[test]
    fn every_side_has_a_value_per_block() {
        let mut asked = vec![];
        let [a, b] = interleaved([1.0, 2.0], |side| {
            asked.push(side);
            Ok(side)
        })
        .unwrap();
        assert_eq!((a.median(), b.median()), (1.0, 2.0));
        assert_eq!(asked.len(), 2 * BLOCKS);
        assert_eq!(asked[..4], [1.0, 2.0, 2.0, 1.0]);
    }
}
