//! What a proxy adds, next to what the barest relay adds.

use std::net::SocketAddr;

use super::lab::{Lab, load};
use super::stats::Samples;
use super::table::{Goal, Table, show};
use super::{BLOCKS, number};
use crate::Result;
use crate::json::Json;

/// Connections, requests per block over all of them.
const SETTINGS: [(u64, u64); 2] = [(1, 4_000), (64, 20_000)];
/// p50 through the proxy per p50 through the bare relay.
const LIKE_A_RELAY: Goal = Goal::AtMost(1.3);
/// What the slowest hundredth may wait longer than without a proxy.
const TAIL: Goal = Goal::AtMost(1000.0);

/// GET over keep-alive connections.
pub fn http(lab: &Lab, table: &mut Table) -> Result<()> {
    let sides = [
        lab.quiet.addr("BENCH_HTTP_DIRECT")?,
        lab.http_relay.addr,
        lab.quiet.addr("BENCH_HTTP")?,
        lab.rules.addr("BENCH_HTTP")?,
    ];
    compare("http", &["http"], &["/"], sides, table)
}

/// SELECT 1 as a simple query.
pub fn postgres(lab: &Lab, table: &mut Table) -> Result<()> {
    let sides = [
        lab.quiet.addr("BENCH_PG_DIRECT")?,
        lab.postgres_relay.addr,
        lab.quiet.addr("BENCH_PG")?,
        lab.rules.addr("BENCH_PG")?,
    ];
    compare("postgres", &["postgres"], &[], sides, table)
}

fn compare(
    protocol: &str,
    before: &[&str],
    after: &[&str],
    sides: [SocketAddr; 4],
    table: &mut Table,
) -> Result<()> {
    for (connections, requests) in SETTINGS {
        let mut p50 = [const { Samples::new() }; 4];
        let mut p99 = [const { Samples::new() }; 4];
        for block in 0..BLOCKS {
            for turn in 0..sides.len() {
                // Every side is first once in a while.
                let i = (turn + block) % sides.len();
                let (addr, connections, requests) = (
                    sides[i].to_string(),
                    connections.to_string(),
                    requests.to_string(),
                );
                let mut args = before.to_vec();
                args.push(&addr);
                args.extend(after);
                args.extend([connections.as_str(), requests.as_str()]);
                let report = load(&args)?;
                p50[i].push(number(&report, &["p50_us"])?);
                p99[i].push(number(&report, &["p99_us"])?);
            }
        }
        let [direct, relay, ..] = &p50;
        let beyond = |side: &Samples, base: &Samples| side.per(base, |side, base| side - base);
        let at = match connections {
            1 => "1 in flight".to_owned(),
            n => format!("{n} connections"),
        };
        table.row(
            format!("{protocol}, {at}, bare splice relay: p50 added"),
            &beyond(relay, direct),
            "µs",
            Goal::None,
            &format!(
                "{} µs, direct {}; p99 {}, direct {}",
                show(relay.median()),
                show(direct.median()),
                show(p99[1].median()),
                show(p99[0].median())
            ),
        );
        for (i, state) in [(2, "nothing armed"), (3, "rule armed, never matching")] {
            let who = format!("{protocol}, {at}, proxy, {state}");
            table.row(
                format!("{who}: p50 of the relay's"),
                &p50[i].per(relay, |ours, relay| ours / relay),
                "×",
                LIKE_A_RELAY,
                &format!(
                    "{} µs, {} added",
                    show(p50[i].median()),
                    show(beyond(&p50[i], direct).median())
                ),
            );
            table.row(
                format!("{who}: p99 added"),
                &beyond(&p99[i], &p99[0]),
                "µs",
                TAIL,
                &format!("{} µs", show(p99[i].median())),
            );
        }
    }
    Ok(())
}

/// What the proxies measured of themselves.
pub fn own_share(quiet: &Json, rules: &Json, table: &mut Table) {
    for (what, report) in [("nothing armed", quiet), ("rule armed", rules)] {
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
