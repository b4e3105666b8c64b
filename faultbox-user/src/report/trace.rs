//! What `faultbox trace` says: what was called, opened and connected to, and what watching it cost.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Style, table, text};
use crate::plan::{Activity, FileUse, PeerUse, TraceCost};

/// A trace, ready to be shown.
#[derive(Debug)]
pub struct TraceReport {
    /// The command or the spec, as the user wrote it.
    pub what: String,
    /// How it ended: "exit 0", "SIGKILL", "3 tests, 3 passed".
    pub end: String,
    /// The command's status as a shell has it; `None` for a spec.
    pub status: Option<u8>,
    /// Wall time in milliseconds.
    pub duration_ms: f64,
    /// What each service did; a command is called "command".
    pub services: BTreeMap<String, Activity>,
    /// What being watched cost, if that could be measured.
    pub cost: Option<TraceCost>,
    /// What could not be watched, and the like.
    pub notes: Vec<String>,
}

/// Rows shown per table: what is beyond is shown with `-v`, and in the JSON.
const CALLS: usize = 20;
/// See [`CALLS`].
const FILES: usize = 10;
/// See [`CALLS`].
const PEERS: usize = 10;
/// See [`CALLS`].
const PROGRAMS: usize = 10;

/// For a person; `verbose` shows every row.
pub fn human(report: &TraceReport, style: &Style, verbose: u8) -> String {
    let most = |rows| if verbose > 0 { usize::MAX } else { rows };
    let mut out = format!(
        "{}: {}, {}\n",
        style.bold(&text::clean(&report.what)),
        report.end,
        text::millis(report.duration_ms)
    );
    for (name, activity) in &report.services {
        if report.services.len() > 1 || report.status.is_none() {
            let _ = writeln!(out, "\n{}", style.bold(&text::clean(name)));
        }
        calls(&mut out, activity, style, most(CALLS));
        files(&mut out, activity, style, most(FILES));
        peers(&mut out, activity, style, most(PEERS));
        processes(&mut out, activity, most(PROGRAMS));
        lost(&mut out, activity);
    }
    let _ = writeln!(out, "\n{}", overhead(report));
    for note in &report.notes {
        let _ = writeln!(out, "note: {}", text::clean(note));
    }
    out
}

fn calls(out: &mut String, activity: &Activity, style: &Style, most: usize) {
    let total: u64 = activity.calls.iter().map(|c| c.count).sum();
    if total == 0 {
        out.push_str("no system call\n");
        return;
    }
    let mut table = table::new(style);
    table.set_header([
        "system call",
        "calls",
        "failed",
        "ms",
        "us: p50",
        "p99",
        "max",
    ]);
    for call in activity.calls.iter().take(most) {
        table.add_row([
            call.name.clone(),
            call.count.to_string(),
            call.errors.to_string(),
            format!("{:.2}", call.total_ns as f64 / 1e6),
            text::micros(call.quantile_ns(0.5)),
            text::micros(call.quantile_ns(0.99)),
            text::micros(call.quantile_ns(1.0)),
        ]);
    }
    table::right(&mut table, 1);
    let _ = writeln!(out, "{table}");
    rest(out, activity.calls.len(), most, "system call");
}

fn files(out: &mut String, activity: &Activity, style: &Style, most: usize) {
    let mut files: Vec<(&str, FileUse)> = activity
        .files
        .iter()
        .map(|(path, seen)| (path.as_str(), *seen))
        .collect();
    if files.is_empty() {
        return;
    }
    files.sort_by_key(|(path, f)| (std::cmp::Reverse(f.opened + f.failed), *path));
    let mut table = table::new(style);
    table.set_header(["file", "opened", "failed"]);
    for (path, seen) in files.iter().take(most) {
        table.add_row([
            text::clean(path),
            seen.opened.to_string(),
            seen.failed.to_string(),
        ]);
    }
    table::right(&mut table, 1);
    let _ = writeln!(out, "{table}");
    rest(out, files.len(), most, "file");
}

fn peers(out: &mut String, activity: &Activity, style: &Style, most: usize) {
    let mut peers: Vec<(&str, PeerUse)> = activity
        .peers
        .iter()
        .map(|(peer, seen)| (peer.as_str(), *seen))
        .collect();
    if peers.is_empty() {
        return;
    }
    peers.sort_by_key(|(peer, p)| (std::cmp::Reverse(p.connected + p.failed), *peer));
    let mut table = table::new(style);
    table.set_header(["connected to", "times", "failed", "bytes out", "bytes in"]);
    for (peer, seen) in peers.iter().take(most) {
        table.add_row([
            (*peer).to_owned(),
            seen.connected.to_string(),
            seen.failed.to_string(),
            seen.sent_bytes.to_string(),
            seen.received_bytes.to_string(),
        ]);
    }
    table::right(&mut table, 1);
    let _ = writeln!(out, "{table}");
    rest(out, peers.len(), most, "address");
}

fn rest(out: &mut String, all: usize, shown: usize, noun: &str) {
    if all > shown {
        let more = (all - shown) as u64;
        let noun = match (more, noun) {
            (1, noun) => noun.to_owned(),
            (_, "address") => "addresses".to_owned(),
            (_, noun) => format!("{noun}s"),
        };
        let _ = writeln!(out, "and {more} more {noun} (-v shows all)");
    }
}

fn processes(out: &mut String, activity: &Activity, most: usize) {
    let mut parts = vec![];
    if activity.forks > 0 {
        parts.push(format!("{} begun", activity.forks));
    }
    let mut programs: Vec<(&String, &u64)> = activity.programs.iter().collect();
    programs.sort_by_key(|(path, n)| (std::cmp::Reverse(**n), *path));
    for (program, n) in programs.iter().take(most) {
        parts.push(format!(
            "{} run {}",
            text::clean(program),
            text::count(**n, "time")
        ));
    }
    if programs.len() > most {
        let more = (programs.len() - most) as u64;
        parts.push(format!("{} more", text::count(more, "program")));
    }
    for (end, n) in &activity.bad_ends {
        parts.push(format!("{n} ended with {end}"));
    }
    if !parts.is_empty() {
        let _ = writeln!(out, "processes: {}", parts.join(", "));
    }
}

fn lost(out: &mut String, activity: &Activity) {
    let lost = &activity.lost;
    if lost.unread > 0 {
        let _ = writeln!(
            out,
            "lost, of all services together: {} of single events, which came faster than they could be read; the counts of system calls have them",
            text::count(lost.unread, "record")
        );
    }
    if activity.lost_paths > 0 {
        let _ = writeln!(
            out,
            "lost: the paths of {}, opened by relative paths of processes that had ended, or had left their folder, before anybody could look",
            text::count(activity.lost_paths, "file")
        );
    }
    let uncounted = [
        (lost.no_room, "the kernel's table of counts was full"),
        (
            lost.no_memory,
            "the kernel had no memory to follow their threads",
        ),
        (
            lost.not_run,
            "the kernel did not run the programs that see them",
        ),
    ];
    for (n, why) in uncounted.into_iter().filter(|(n, _)| *n > 0) {
        let calls = text::count(n, "system call");
        let _ = writeln!(
            out,
            "lost, of all services together: {calls} that nothing counted, because {why}"
        );
    }
}

/// The total in nanoseconds.
fn added_ns(report: &TraceReport) -> Option<f64> {
    let cost = report.cost?;
    Some(report.services.values().map(|a| cost.total_ns(a)).sum())
}

fn overhead(report: &TraceReport) -> String {
    let (Some(cost), Some(added)) = (report.cost, added_ns(report)) else {
        return "overhead: not known, it could not be measured here".to_owned();
    };
    let calls: u64 = report
        .services
        .values()
        .flat_map(|a| &a.calls)
        .map(|c| c.count)
        .sum();
    if !cost.can_be_told() {
        let most = cost.at_most();
        let added = report.services.values().map(|a| most.total_ns(a)).sum();
        return format!(
            "overhead: less than can be told here: at most {} more, {:.2} % of {}, if {} took {:.0} ns longer each, opening a file {:.0} ns",
            text::millis(added / 1e6),
            share(report, added),
            text::millis(report.duration_ms),
            text::count(calls, "call"),
            most.call_ns,
            most.open_ns,
        );
    }
    format!(
        "overhead: {} more, {:.2} % of {}: {} took {:.0} ns longer each, opening a file {:.0} ns (measured here, just now)",
        text::millis(added / 1e6),
        share(report, added),
        text::millis(report.duration_ms),
        text::count(calls, "call"),
        cost.call_ns,
        cost.open_ns,
    )
}

/// Percent of the wall time. Calls of several threads at once may cost more than all of it.
fn share(report: &TraceReport, added_ns: f64) -> f64 {
    added_ns / 1e4 / report.duration_ms.max(1e-3)
}

/// For a program: one document.
pub fn json(report: &TraceReport) -> String {
    let services: BTreeMap<&str, Value> = report
        .services
        .iter()
        .map(|(name, activity)| (name.as_str(), service(activity)))
        .collect();
    let overhead = report.cost.zip(added_ns(report)).map(|(cost, added)| {
        json!({
            "call_ns": cost.call_ns,
            "open_ns": cost.open_ns,
            "unsure_ns": cost.unsure_ns,
            "total_ms": added / 1e6,
            "percent": share(report, added),
        })
    });
    let document = json!({
        "schema": 1,
        "what": report.what,
        "end": report.end,
        "status": report.status,
        "duration_ms": report.duration_ms,
        "services": services,
        "overhead": overhead,
        "notes": report.notes,
    });
    format!("{document:#}\n")
}

fn service(activity: &Activity) -> Value {
    let lost = &activity.lost;
    let calls: Vec<Value> = activity
        .calls
        .iter()
        .map(|c| {
            let us = |q| c.quantile_ns(q) as f64 / 1e3;
            json!({
                "name": c.name,
                "count": c.count,
                "errors": c.errors,
                "total_ms": c.total_ns as f64 / 1e6,
                "us": {"p50": us(0.5), "p90": us(0.9), "p99": us(0.99), "max": us(1.0)},
            })
        })
        .collect();
    json!({
        "calls": calls,
        "files": activity.files,
        "other_files": activity.other_files,
        "connections": activity.peers,
        "other_connections": activity.other_peers,
        "programs": activity.programs,
        "processes": activity.forks,
        "bad_ends": activity.bad_ends,
        "lost": {
            "records": lost.unread,
            "calls": lost.counts(),
            "paths": activity.lost_paths,
        },
    })
}
