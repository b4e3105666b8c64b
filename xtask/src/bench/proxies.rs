//! What a proxy adds, next to what the barest relay and other proxies add.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::lab::{Lab, Relay, load};
use super::peers::Peer;
use super::stats::Samples;
use super::table::{Goal, Table, show};
use super::{BLOCKS, number, usage};
use crate::json::Json;
use crate::{Error, Result};

/// Connections, requests per block over all of them, and the load generator's pace. In a closed loop of 64 connections all that has
/// a CPU is busy, and latency is but throughput turned over; at a rate that leaves the CPUs time it is what a client waits.
const SETTINGS: [(u64, u64, Option<&str>); 3] = [
    (1, 4_000, None),
    (64, 20_000, None),
    (64, 4_000, Some("2000/s")),
];
/// Connections that are open and say nothing: of this process, which may have 1024 descriptors.
const IDLE: usize = 1000;
const SETTLES: Duration = Duration::from_secs(1);
/// p50 through the proxy per p50 through the bare relay.
const LIKE_A_RELAY: Goal = Goal::AtMost(1.3);
/// What the slowest hundredth may wait longer than without a proxy.
const TAIL: Goal = Goal::AtMost(1000.0);
/// What a run may hold with as many idle connections, in MiB.
const MEMORY: Goal = Goal::AtMost(64.0);

/// One way to a server.
struct Side {
    name: String,
    addr: SocketAddr,
    /// The processes that are in between.
    pids: Vec<u32>,
    /// Is it Faultbox's? Only those have goals.
    ours: bool,
}

/// Where [`sides`] puts the way without a proxy, and the one through the bare relay.
const DIRECT: usize = 0;
const RELAY: usize = 1;

/// All ways to the server whose addresses the lab calls `BENCH_<variable>`.
fn sides(lab: &Lab, variable: &str, relay: &Relay, peers: &[Peer]) -> Result<Vec<Side>> {
    let proxied = format!("BENCH_{variable}");
    let side = |name: &str, addr, pids, ours| Side {
        name: name.to_owned(),
        addr,
        pids,
        ours,
    };
    let direct = lab.quiet.addr(&format!("{proxied}_DIRECT"))?;
    let mut sides = vec![
        side("direct", direct, vec![], false),
        side("bare splice relay", relay.addr, vec![relay.pid()], false),
        side(
            "proxy, nothing armed",
            lab.quiet.addr(&proxied)?,
            lab.quiet.pids(),
            true,
        ),
        side(
            "proxy, 20 rules armed, none matching",
            lab.rules.addr(&proxied)?,
            lab.rules.pids(),
            true,
        ),
    ];
    sides.extend(
        peers
            .iter()
            .map(|peer| side(peer.kind.name(), peer.addr, vec![peer.pid()], false)),
    );
    Ok(sides)
}

/// GET over keep-alive connections.
pub fn http(lab: &Lab, table: &mut Table) -> Result<()> {
    let sides = sides(lab, "HTTP", &lab.http_relay, &lab.http_peers)?;
    compare("http", &["/"], &sides, table)
}

/// SELECT 1 as a simple query.
pub fn postgres(lab: &Lab, table: &mut Table) -> Result<()> {
    let sides = sides(lab, "PG", &lab.postgres_relay, &lab.postgres_peers)?;
    compare("postgres", &[], &sides, table)
}

/// GET of a small value.
pub fn redis(lab: &Lab, table: &mut Table) -> Result<()> {
    let sides = sides(lab, "REDIS", &lab.redis_relay, &lab.redis_peers)?;
    compare("redis", &[], &sides, table)
}

/// What one side's blocks gave.
#[derive(Default)]
struct Seen {
    p50: Samples,
    p99: Samples,
    per_s: Samples,
    /// CPU time per request, in microseconds.
    cpu: Samples,
}

fn compare(protocol: &str, after: &[&str], sides: &[Side], table: &mut Table) -> Result<()> {
    for (connections, requests, pace) in SETTINGS {
        let mut seen: Vec<Seen> = sides.iter().map(|_| Seen::default()).collect();
        for block in 0..BLOCKS {
            for turn in 0..sides.len() {
                // Every side is first once in a while.
                let i = (turn + block) % sides.len();
                let (side, seen) = (&sides[i], &mut seen[i]);
                let addr = side.addr.to_string();
                let (connections, requests) = (connections.to_string(), requests.to_string());
                let mut args = vec![protocol, &addr];
                args.extend(after);
                args.extend([connections.as_str(), requests.as_str()]);
                args.extend(pace);
                let before = usage::cpu(&side.pids);
                let report = load(&args)?;
                let took = usage::cpu(&side.pids) - before;
                seen.p50.push(number(&report, &["p50_us"])?);
                seen.p99.push(number(&report, &["p99_us"])?);
                seen.per_s.push(number(&report, &["per_s"])?);
                // Those before the measurement cost, too; they are few.
                seen.cpu.push(took / 1e3 / number(&report, &["requests"])?);
            }
        }
        let at = match (connections, pace) {
            (1, _) => "1 in flight".to_owned(),
            (n, None) => format!("{n} connections"),
            (n, Some(pace)) => format!("{n} connections, {pace}"),
        };
        rows(&format!("{protocol}, {at}"), sides, &seen, table);
    }
    Ok(())
}

/// The rows of one setting.
fn rows(at: &str, sides: &[Side], seen: &[Seen], table: &mut Table) {
    let (direct, relay) = (&seen[DIRECT], &seen[RELAY]);
    let beyond = |side: &Samples, base: &Samples| side.per(base, |side, base| side - base);
    let share = |side: &Samples, base: &Samples| side.per(base, |side, base| side / base);
    for (i, (side, seen)) in sides.iter().zip(seen).enumerate() {
        let who = format!("{at}, {}", side.name);
        match i {
            DIRECT => continue,
            RELAY => table.row(
                format!("{who}: p50 added"),
                &beyond(&seen.p50, &direct.p50),
                "µs",
                Goal::None,
                &format!(
                    "{} µs, direct {}; p99 {}, direct {}",
                    show(seen.p50.median()),
                    show(direct.p50.median()),
                    show(seen.p99.median()),
                    show(direct.p99.median())
                ),
            ),
            _ => {
                table.row(
                    format!("{who}: p50 of the relay's"),
                    &share(&seen.p50, &relay.p50),
                    "×",
                    if side.ours { LIKE_A_RELAY } else { Goal::None },
                    &format!(
                        "{} µs, {} added",
                        show(seen.p50.median()),
                        show(beyond(&seen.p50, &direct.p50).median())
                    ),
                );
                table.row(
                    format!("{who}: p99 added"),
                    &beyond(&seen.p99, &direct.p99),
                    "µs",
                    if side.ours { TAIL } else { Goal::None },
                    &format!("{} µs", show(seen.p99.median())),
                );
            }
        }
        table.row(
            format!("{who}: requests/s of direct"),
            &share(&seen.per_s, &direct.per_s),
            "×",
            Goal::None,
            &format!(
                "{} requests/s, direct {}; {} µs of CPU each",
                show(seen.per_s.median()),
                show(direct.per_s.median()),
                show(seen.cpu.median())
            ),
        );
    }
}

/// Memory while a thousand connections are open and say nothing. To Redis, which has neither a thread nor a process for each.
pub fn idle(lab: &Lab, table: &mut Table) -> Result<()> {
    for side in sides(lab, "REDIS", &lab.redis_relay, &lab.redis_peers)? {
        if side.pids.is_empty() {
            continue;
        }
        let before = usage::memory(&side.pids);
        let open = |_| TcpStream::connect(side.addr);
        let held: std::io::Result<Vec<TcpStream>> = (0..IDLE).map(open).collect();
        let held = held.map_err(|e| Error::new(format!("{}: {e}", side.addr)))?;
        // The last of them has its way to the server by then.
        std::thread::sleep(SETTLES);
        let after = usage::memory(&side.pids);
        drop(held);
        std::thread::sleep(SETTLES);
        let megabytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        table.row(
            format!("{IDLE} idle connections, {}: memory", side.name),
            &[megabytes(after)].into_iter().collect(),
            "MiB",
            if side.ours { MEMORY } else { Goal::None },
            &format!(
                "{} before, {} KiB a connection",
                show(megabytes(before)),
                show(megabytes(after.saturating_sub(before)) * 1024.0 / IDLE as f64)
            ),
        );
    }
    Ok(())
}

/// What the proxies measured of themselves.
pub fn own_share(quiet: &Json, rules: &Json, table: &mut Table) {
    for (what, report) in [("nothing armed", quiet), ("20 rules armed", rules)] {
        let interfaces = report.get("overhead").and_then(|o| o.get("interfaces"));
        for interface in interfaces.map(Json::list).unwrap_or_default() {
            let (Ok(p50), Ok(p99), Ok(requests)) = (
                number(interface, &["added_us", "p50"]),
                number(interface, &["added_us", "p99"]),
                number(interface, &["requests"]),
            ) else {
                continue;
            };
            let name = interface
                .get("interface")
                .and_then(Json::text)
                .unwrap_or("?");
            table.row(
                format!("{name}, the proxy's own share as the report tells it, {what}: p50"),
                &[p50].into_iter().collect(),
                "µs",
                Goal::None,
                &format!("p99 {} µs, {requests} requests", show(p99)),
            );
        }
    }
}
