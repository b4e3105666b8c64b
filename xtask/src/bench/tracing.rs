//! What being traced costs: servers natively, under `faultbox trace`, and under strace.
//!
//! One service at a time, unlike everything else here: while anybody traces system calls, every process of the machine pays for a part of
//! it, so a native run beside a traced one would not be native, and one that is traced beside others would pay for theirs.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::lab::{Native, get, load, start, tool_path};
use super::stats::Samples;
use super::syscalls::{CALLS, CALLS_TRACED, bench, tps};
use super::table::{Goal, Table, show};
use super::{BLOCKS, number};
use crate::{Error, Result, run, specs};

/// What a traced service keeps of its native speed.
const KEPT: Goal = Goal::AtLeast(0.97);
/// What a call takes longer, in nanoseconds.
const ADDED: Goal = Goal::AtMost(150.0);

/// What is measured of each side: a call of a busy loop, and how many requests a second servers answer.
#[derive(Default)]
struct Side {
    pwrite_us: Samples,
    http: Samples,
    redis: Samples,
    select: Samples,
    tpcb: Samples,
}

impl Side {
    fn add(&mut self, name: &str, under: &[&str], calls: u64) -> Result<()> {
        {
            let server = Native::server(name, under)?;
            let report = get(server.addr, &format!("/pwrite?calls={calls}"))?;
            self.pwrite_us.push(number(&report, &["per_call_us"])?);
            let report = load(&["http", &server.addr.to_string(), "/", "64", "20000"])?;
            self.http.push(number(&report, &["per_s"])?);
        }
        {
            let redis = Native::redis(name, under)?;
            self.redis.push(redis_benchmark(redis.addr)?);
        }
        let postgres = Native::postgres(name, under)?;
        bench(postgres.addr, &["-i", "-q", "-s", "1"])?;
        for (args, samples) in [
            (&["-S", "-n", "-c", "2", "-T", "1"][..], &mut self.select),
            (&["-n", "-c", "2", "-T", "1"][..], &mut self.tpcb),
        ] {
            let output = bench(postgres.addr, args)?;
            let told = tps(&output);
            samples.push(told.ok_or_else(|| Error::new(format!("pgbench told no tps: {output}")))?);
        }
        Ok(())
    }
}

/// Requests per second, as redis-benchmark(1) tells them: a line of names, then `"GET","123.45",...`.
fn redis_benchmark(redis: SocketAddr) -> Result<f64> {
    let mut command = Command::new("redis-benchmark");
    command.args(["-t", "get", "-c", "64", "-n", "100000", "--csv", "-p"]);
    command.arg(redis.port().to_string());
    let output = command
        .output()
        .map_err(|e| run::cannot_run(&command, &e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .find_map(|line| line.strip_prefix("\"GET\",\"")?.split('"').next())
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| Error::new(format!("redis-benchmark told no rate: {text}")))
}

/// What a call takes in a process that is not traced while another one is, in microseconds.
fn bystander(trace: &[&str]) -> Result<f64> {
    let [program, args @ ..] = trace else {
        return Err(Error::new("nothing traces"));
    };
    let mut command = Command::new(program);
    command.args(args).args(["--", "sleep", "60"]);
    let _traced = start(&mut command, Stdio::null())?;
    // Its programs are attached by then.
    std::thread::sleep(Duration::from_secs(1));
    let server = Native::server("beside", &[])?;
    let report = get(server.addr, &format!("/pwrite?calls={CALLS}"))?;
    number(&report, &["per_call_us"])
}

/// Runs all of them, in turns.
pub fn measure(table: &mut Table) -> Result<()> {
    let faultbox = specs::dist("faultbox").display().to_string();
    let trace = [&faultbox, "trace", "--output", "/dev/null"];
    let traced = [&trace[..], &["--"]].concat();
    let streamed = [&trace[..], &["--events", "/dev/null", "--"]].concat();
    let tool = tool_path();
    let nothing = [&tool, "tracepoints", "--"];
    let strace = ["strace", "-f", "-c", "-o", "/dev/null"];
    let ways: [(&str, &[&str], u64); 5] = [
        ("native", &[], CALLS),
        ("traced", &traced, CALLS),
        ("streamed", &streamed, CALLS),
        ("nothing", &nothing, CALLS),
        ("strace", &strace, CALLS_TRACED),
    ];
    let mut sides: [Side; 5] = Default::default();
    let mut beside = Samples::default();
    for block in 0..BLOCKS {
        beside.push(bystander(&trace)?);
        for turn in 0..ways.len() {
            let i = (turn + block) % ways.len();
            let (name, under, calls) = ways[i];
            sides[i].add(name, under, calls)?;
        }
    }
    let [native, others @ ..] = &sides;
    let names = [
        "traced",
        "traced, every event streamed",
        "programs that do nothing at the same tracepoints",
        "strace -f -c",
    ];
    for (side, name) in others.iter().zip(names) {
        let (kept, added) = match name {
            "traced" => (KEPT, ADDED),
            _ => (Goal::None, Goal::None),
        };
        table.row(
            format!("pwrite loop, {name}: added to a call"),
            &side
                .pwrite_us
                .per(&native.pwrite_us, |side, native| (side - native) * 1e3),
            "ns",
            added,
            &format!(
                "{} µs a call, native {}",
                show(side.pwrite_us.median()),
                show(native.pwrite_us.median())
            ),
        );
        for (what, unit, side, native) in [
            (
                "HTTP server, 64 connections",
                "requests/s",
                &side.http,
                &native.http,
            ),
            (
                "redis-benchmark GET, 64 connections",
                "requests/s",
                &side.redis,
                &native.redis,
            ),
            ("pgbench SELECT only", "tps", &side.select, &native.select),
            ("pgbench TPC-B", "tps", &side.tpcb, &native.tpcb),
        ] {
            table.row(
                format!("{what}, {name}: speed of native"),
                &side.per(native, |side, native| side / native),
                "×",
                kept,
                &format!(
                    "{} {unit}, native {}",
                    show(side.median()),
                    show(native.median())
                ),
            );
        }
    }
    table.row(
        "pwrite loop of a process that nobody traces, beside a traced one: added to a call",
        &beside.per(&native.pwrite_us, |beside, native| (beside - native) * 1e3),
        "ns",
        Goal::None,
        &format!("{} µs a call", show(beside.median())),
    );
    Ok(())
}
