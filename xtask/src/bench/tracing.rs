//! What being traced costs: servers natively, under `faultbox trace`, under strace, and beside bpftrace.
//!
//! One service at a time, unlike everything else here: while anybody traces system calls, every process of the machine pays for a part of
//! it, so a native run beside a traced one would not be native, and one that is traced beside others would pay for theirs.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::lab::{Native, Running, get, start, tool_path};
use super::stats::Samples;
use super::syscalls::{CALLS, CALLS_TRACED, bench, tps};
use super::table::{Goal, Table, show};
use super::{BLOCKS, number};
use crate::{Error, Result, run, specs};

/// What a traced service keeps of its native speed.
const KEPT: Goal = Goal::AtLeast(0.97);
/// What a call takes longer, in nanoseconds.
const ADDED: Goal = Goal::AtMost(150.0);

/// How a service is traced.
#[derive(Clone, Copy)]
enum Way<'a> {
    /// By the command that these words begin; by nobody without any.
    Under(&'a [&'a str]),
    /// By bpftrace, which selects it on its own.
    Bpftrace,
}

impl<'a> Way<'a> {
    fn under(self) -> &'a [&'a str] {
        match self {
            Way::Under(words) => words,
            Way::Bpftrace => &[],
        }
    }

    /// What has to run beside the service that `filter` selects, as bpftrace puts it.
    fn beside(self, filter: &str) -> Result<Option<Running>> {
        let Way::Bpftrace = self else {
            return Ok(None);
        };
        let script = format!(
            "tracepoint:raw_syscalls:sys_enter /{filter}/ {{ @at[tid] = nsecs; }}
             tracepoint:raw_syscalls:sys_exit /@at[tid]/ {{
                 @took[args->id] = hist(nsecs - @at[tid]);
                 if (args->ret < 0) {{ @failed[args->id] = count(); }}
                 delete(@at[tid]);
             }}"
        );
        let mut command = Command::new("bpftrace");
        command.args(["-o", "/dev/null", "-e", &script]);
        let running = start(&mut command, Stdio::null())?;
        // It compiles, then attaches.
        std::thread::sleep(Duration::from_secs(2));
        Ok(Some(running))
    }
}

/// Does bpftrace run here? It needs more of a kernel and of its own LLVM than we do.
fn has_bpftrace() -> bool {
    let runs = run::quietly("bpftrace", &["-e", "BEGIN { exit(); }"]);
    if !runs {
        println!("bpftrace does not run here: its rows are left out");
    }
    runs
}

/// What is measured of each side: a call of a busy loop, and how many requests a second servers answer.
#[derive(Default)]
struct Side {
    getpid_us: Samples,
    pwrite_us: Samples,
    node: Samples,
    redis: Samples,
    select: Samples,
    tpcb: Samples,
}

impl Side {
    fn add(&mut self, name: &str, way: Way<'_>, calls: u64) -> Result<()> {
        let this = |native: &Native| format!("pid == {}", native.pid());
        {
            let server = Native::server(name, way.under())?;
            let _beside = way.beside(&this(&server))?;
            for (call, samples) in [
                ("getpid", &mut self.getpid_us),
                ("pwrite", &mut self.pwrite_us),
            ] {
                let report = get(server.addr, &format!("/{call}?calls={calls}"))?;
                samples.push(number(&report, &["per_call_us"])?);
            }
        }
        {
            let server = Native::node(name, way.under())?;
            let _beside = way.beside(&this(&server))?;
            self.node.push(wrk(server.addr)?);
        }
        {
            let redis = Native::redis(name, way.under())?;
            let _beside = way.beside(&this(&redis))?;
            self.redis.push(redis_benchmark(redis.addr)?);
        }
        let postgres = Native::postgres(name, way.under())?;
        // Each session is a process.
        let _beside = way.beside("comm == \"postgres\"")?;
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

/// Requests per second of a server that wrk loads over 64 connections, after as long to get warm: a server in JavaScript is compiled while
/// it runs.
fn wrk(server: SocketAddr) -> Result<f64> {
    let url = format!("http://{server}/");
    let mut rate = f64::NAN;
    for _ in 0..2 {
        let mut command = Command::new("wrk");
        command.args(["-t", "1", "-c", "64", "-d", "1s", &url]);
        let output = command
            .output()
            .map_err(|e| run::cannot_run(&command, &e))?;
        let text = String::from_utf8_lossy(&output.stdout);
        rate = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Requests/sec:"))
            .and_then(|number| number.trim().parse().ok())
            .ok_or_else(|| Error::new(format!("wrk told no rate: {text}")))?;
    }
    Ok(rate)
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
    let mut ways = vec![
        ("native", Way::Under(&[]), CALLS),
        ("traced", Way::Under(&traced), CALLS),
        ("streamed", Way::Under(&streamed), CALLS),
        ("nothing", Way::Under(&nothing), CALLS),
        ("strace", Way::Under(&strace), CALLS_TRACED),
    ];
    if has_bpftrace() {
        ways.push(("bpftrace", Way::Bpftrace, CALLS));
    }
    let mut sides: Vec<Side> = ways.iter().map(|_| Side::default()).collect();
    let mut beside = Samples::default();
    for block in 0..BLOCKS {
        beside.push(bystander(&trace)?);
        for turn in 0..ways.len() {
            let i = (turn + block) % ways.len();
            let (name, way, calls) = ways[i];
            sides[i].add(name, way, calls)?;
        }
    }
    let [native, others @ ..] = &sides[..] else {
        return Err(Error::new("nothing was measured"));
    };
    let names = [
        "traced",
        "traced, every event streamed",
        "programs that do nothing at the same tracepoints",
        "strace -f -c",
        "bpftrace, a histogram per call",
    ];
    for (side, name) in others.iter().zip(names) {
        let (kept, added) = match name {
            "traced" => (KEPT, ADDED),
            _ => (Goal::None, Goal::None),
        };
        for (call, side, native) in [
            ("getpid", &side.getpid_us, &native.getpid_us),
            ("pwrite", &side.pwrite_us, &native.pwrite_us),
        ] {
            table.row(
                format!("{call} loop, {name}: added to a call"),
                &side.per(native, |side, native| (side - native) * 1e3),
                "ns",
                added,
                &format!(
                    "{} µs a call, native {}",
                    show(side.median()),
                    show(native.median())
                ),
            );
        }
        for (what, unit, side, native) in [
            (
                "HTTP server in Node under wrk, 64 connections",
                "requests/s",
                &side.node,
                &native.node,
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
