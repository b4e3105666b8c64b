//! `cargo xtask bench`: ratios, all sides of one comparison alive at the same time and measured in turns, block by block.
//!
//! [`lab`] starts what is measured; each file of legs measures one kind of thing and adds its rows to the [`Table`].

mod delays;
mod lab;
mod peers;
mod proxies;
mod runs;
mod stats;
mod syscalls;
mod table;
mod tracing;
mod usage;

use table::Table;

use crate::json::Json;
use crate::{Error, Result};
use crate::{run, setup, specs};

/// Interleaved blocks per comparison.
const BLOCKS: usize = 7;

/// What can be measured by itself, besides the proxies in front of each server.
const PARTS: [&str; 3] = ["tracing", "calls", "runs"];

/// Runs every comparison and prints the table; with names of parts, and of servers, only these.
pub fn run(only: &[&str]) -> Result {
    let servers = lab::SERVERS.iter().map(|s| s.variable.to_lowercase());
    let known: Vec<String> = PARTS
        .iter()
        .map(|p| (*p).to_owned())
        .chain(servers)
        .collect();
    if let Some(unknown) = only.iter().find(|name| !known.iter().any(|k| k == *name)) {
        return Err(Error::new(format!(
            "there is no part `{unknown}`: {}",
            known.join(", ")
        )));
    }
    setup::for_bench()?;
    peers::install()?;
    specs::build_dist(&["faultbox", "faultbox-bench"])?;
    let dir = dir();
    std::fs::create_dir_all(&dir).map_err(|e| Error::new(format!("{}: {e}", dir.display())))?;
    let load = load();
    let mut table = Table::default();
    let path = dir.join("bench.md");
    let text = |table: &Table| {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let head = format!(
            "{cores} cores, Linux {}, load {load} before and {} after; medians of {BLOCKS} interleaved blocks; noise is half the interquartile range",
            read("/proc/sys/kernel/osrelease"),
            self::load(),
        );
        format!("{head}\n\n{table}")
    };
    // Part by part: it takes long, and what was measured before anything went wrong is not lost.
    let save = |table: &Table| {
        std::fs::write(&path, text(table))
            .map_err(|e| Error::new(format!("{}: {e}", path.display())))
    };
    let measured = parts(only, &mut table, &save);
    println!("\n{}", text(&table));
    measured?;
    println!("written to {}", path.display());
    Ok(true)
}

fn parts(only: &[&str], table: &mut Table, save: &dyn Fn(&Table) -> Result<()>) -> Result<()> {
    let wanted = |part: &str| only.is_empty() || only.contains(&part);
    if wanted("tracing") {
        tracing::measure(table)?;
        save(table)?;
    }
    let servers: Vec<&str> = only
        .iter()
        .copied()
        .filter(|p| !PARTS.contains(p))
        .collect();
    if wanted("calls") || !servers.is_empty() {
        let lab = lab::Lab::open()?;
        if wanted("calls") {
            syscalls::pwrite(&lab, table)?;
            syscalls::pgbench(&lab, table)?;
            delays::measure(&lab, table)?;
            save(table)?;
        }
        if only.is_empty() || !servers.is_empty() {
            proxies::measure(&lab, &servers, table, save)?;
        }
        if only.is_empty() {
            proxies::idle(&lab, table)?;
            save(table)?;
        }
        let [quiet, calls, counted, rules] = lab.close()?;
        if wanted("calls") {
            syscalls::decisions(&calls, &counted, table);
        }
        if only.is_empty() {
            proxies::own_share(&quiet, &rules, table);
        }
    }
    if wanted("runs") {
        runs::arming(table)?;
        runs::empty(table)?;
        runs::matrix(table)?;
    }
    save(table)
}

/// Where everything goes that a benchmark writes; the specs name it too.
fn dir() -> std::path::PathBuf {
    run::root().join("target/bench")
}

fn read(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

/// The load average of the last minute.
fn load() -> String {
    let all = read("/proc/loadavg");
    all.split(' ').next().unwrap_or("?").to_owned()
}

/// A number in a report, under these names one below the other.
fn number(report: &Json, names: &[&str]) -> Result<f64> {
    let found = names.iter().try_fold(report, |at, name| at.get(name));
    match found {
        Some(Json::Number(number)) => Ok(*number),
        _ => Err(Error::new(format!(
            "the report has no `{}`: {report:?}",
            names.join(".")
        ))),
    }
}
