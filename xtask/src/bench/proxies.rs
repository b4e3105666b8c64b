//! What a proxy adds, next to what the barest relay and other proxies add.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::lab::{Lab, Server, Ways, load};
use super::stats::Samples;
use super::table::{Goal, Table, show, with_noise};
use super::{BLOCKS, number, usage};
use crate::json::Json;
use crate::{Error, Result};

/// How a load comes.
#[derive(Clone, Copy)]
struct Setting {
    connections: u64,
    /// Per block, over all connections.
    requests: u64,
    /// The load generator's; at once without it.
    pace: Option<&'static str>,
}

/// In a closed loop of 64 connections all that has a CPU is busy, and latency is but throughput turned over; at a rate that leaves the
/// CPUs time it is what a client waits.
const SETTINGS: [Setting; 3] = [
    Setting {
        connections: 1,
        requests: 4_000,
        pace: None,
    },
    Setting {
        connections: 64,
        requests: 20_000,
        pace: None,
    },
    Setting {
        connections: 64,
        requests: 4_000,
        pace: Some("2000/s"),
    },
];
/// Connections that are open and say nothing: of this process, which may have 1024 descriptors.
const IDLE: usize = 1000;
const SETTLES: Duration = Duration::from_secs(1);
/// p50 through the proxy per p50 through the bare relay, with one request in flight and with many.
const ALONE: Goal = Goal::AtMost(1.2);
const AMONG_MANY: Goal = Goal::AtMost(1.3);
/// Requests per second when all CPUs are busy.
const LEAST_OF_RELAY: Goal = Goal::AtLeast(0.9);
const ABOVE_PEERS: Goal = Goal::AtLeast(1.0);
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
    /// A block has one of so many of the others' requests.
    share: u64,
}

/// Where [`sides`] puts the way without a proxy, and the one through the bare relay.
const DIRECT: usize = 0;
const RELAY: usize = 1;

/// All ways to a server.
fn sides(lab: &Lab, ways: &Ways) -> Result<Vec<Side>> {
    let proxied = format!("BENCH_{}", ways.to.variable);
    let side = |name: &str, addr, pids, ours| Side {
        name: name.to_owned(),
        addr,
        pids,
        ours,
        share: 1,
    };
    let direct = lab.quiet.addr(&format!("{proxied}_DIRECT"))?;
    let relay = &ways.relay;
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
    sides.extend(ways.peers.iter().map(|peer| Side {
        share: peer.kind.share_of_load(),
        ..side(peer.kind.name(), peer.addr, vec![peer.pid()], false)
    }));
    Ok(sides)
}

/// Every protocol, every way; with names of servers, only these.
pub fn measure(
    lab: &Lab,
    only: &[&str],
    table: &mut Table,
    save: &dyn Fn(&Table) -> Result<()>,
) -> Result<()> {
    for ways in &lab.ways {
        let name = ways.to.variable.to_lowercase();
        if !only.is_empty() && !only.contains(&name.as_str()) {
            continue;
        }
        compare(ways.to, &sides(lab, ways)?, table)?;
        save(table)?;
    }
    Ok(())
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

fn compare(server: &Server, sides: &[Side], table: &mut Table) -> Result<()> {
    let (load_of, after) = server.load;
    for setting in SETTINGS {
        let Setting {
            connections,
            requests,
            pace,
        } = setting;
        let mut seen: Vec<Seen> = sides.iter().map(|_| Seen::default()).collect();
        for block in 0..BLOCKS {
            for turn in 0..sides.len() {
                // Every side is first once in a while.
                let i = (turn + block) % sides.len();
                let (side, seen) = (&sides[i], &mut seen[i]);
                let addr = side.addr.to_string();
                let requests = requests / side.share;
                let (connections, requests) = (connections.to_string(), requests.to_string());
                let mut args = load_of.to_vec();
                args.push(&addr);
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
        report(
            &format!("{}, {at}", server.name),
            setting,
            sides,
            &seen,
            table,
        );
    }
    Ok(())
}

const HEAD: &[&str] = &[
    "p50, µs",
    "added",
    "p99, µs",
    "added",
    "requests/s",
    "of direct",
    "CPU each, µs",
];

/// What came out of one setting: the goals of ours as rows, and all sides beside each other.
fn report(at: &str, setting: Setting, sides: &[Side], seen: &[Seen], table: &mut Table) {
    let (direct, relay) = (&seen[DIRECT], &seen[RELAY]);
    let beyond = |side: &Samples, base: &Samples| side.per(base, |side, base| side - base);
    let share = |side: &Samples, base: &Samples| side.per(base, |side, base| side / base);
    let peers = sides.iter().zip(seen).skip(RELAY + 1);
    let fastest = peers
        .filter(|(side, _)| !side.ours)
        .max_by(|(_, a), (_, b)| a.per_s.median().total_cmp(&b.per_s.median()));
    let mut lines = vec![];
    for (i, (side, seen)) in sides.iter().zip(seen).enumerate() {
        let shown = |samples: &Samples, of: &str| match i {
            DIRECT => String::new(),
            _ => format!("{}{of}", show(samples.median())),
        };
        lines.push(vec![
            side.name.clone(),
            with_noise(&seen.p50),
            shown(&beyond(&seen.p50, &direct.p50), ""),
            with_noise(&seen.p99),
            shown(&beyond(&seen.p99, &direct.p99), ""),
            with_noise(&seen.per_s),
            shown(&share(&seen.per_s, &direct.per_s), " ×"),
            shown(&seen.cpu, ""),
        ]);
        if !side.ours {
            continue;
        }
        let mut goal = |what: &str, samples: Samples, unit, goal, details: String| {
            table.row(
                format!("{at}, {}: {what}", side.name),
                &samples,
                unit,
                goal,
                &details,
            );
        };
        goal(
            "p50 of the relay's",
            share(&seen.p50, &relay.p50),
            "×",
            if setting.connections == 1 {
                ALONE
            } else {
                AMONG_MANY
            },
            format!(
                "{} µs, relay {}",
                show(seen.p50.median()),
                show(relay.p50.median())
            ),
        );
        goal(
            "p99 added",
            beyond(&seen.p99, &direct.p99),
            "µs",
            TAIL,
            format!(
                "{} µs, direct {}",
                show(seen.p99.median()),
                show(direct.p99.median())
            ),
        );
        if setting.connections > 1 && setting.pace.is_none() {
            goal(
                "requests/s of the relay's",
                share(&seen.per_s, &relay.per_s),
                "×",
                LEAST_OF_RELAY,
                format!("{} requests/s", show(seen.per_s.median())),
            );
            if let Some((peer, best)) = fastest {
                goal(
                    "requests/s of the fastest peer's",
                    share(&seen.per_s, &best.per_s),
                    "×",
                    ABOVE_PEERS,
                    format!("{}, {} requests/s", peer.name, show(best.per_s.median())),
                );
            }
        }
    }
    table.grid(at, HEAD, lines);
}

/// Memory while a thousand connections are open and say nothing. To Redis, which has neither a thread nor a process for each.
pub fn idle(lab: &Lab, table: &mut Table) -> Result<()> {
    let redis = lab.ways.iter().find(|ways| ways.to.protocol == "redis");
    let redis = redis.ok_or_else(|| Error::new("there is no Redis among the servers"))?;
    for side in sides(lab, redis)? {
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
