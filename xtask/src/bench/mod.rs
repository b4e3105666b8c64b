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

/// Runs every comparison and prints the table; with names of servers, only the proxies in front of these.
pub fn run(only: &[&str]) -> Result {
    let known: Vec<String> = lab::SERVERS
        .iter()
        .map(|s| s.variable.to_lowercase())
        .collect();
    if let Some(unknown) = only.iter().find(|name| !known.iter().any(|k| k == *name)) {
        return Err(Error::new(format!(
            "there is no server `{unknown}`: {}",
            known.join(", ")
        )));
    }
    setup::for_bench()?;
    peers::install()?;
    specs::build()?;
    let mut build = run::cargo();
    build.args(["build", "--release", "--package", "faultbox-bench"]);
    run::must(&mut build)?;
    let dir = dir();
    std::fs::create_dir_all(&dir).map_err(|e| Error::new(format!("{}: {e}", dir.display())))?;
    let load = load();
    let mut table = Table::default();
    if only.is_empty() {
        everything(&mut table)?;
    } else {
        let lab = lab::Lab::open()?;
        proxies::measure(&lab, only, &mut table)?;
        lab.close()?;
    }
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let head = format!(
        "{cores} cores, Linux {}, load {load} before and {} after; medians of {BLOCKS} interleaved blocks; noise is half the interquartile range",
        read("/proc/sys/kernel/osrelease"),
        self::load(),
    );
    let text = format!("{head}\n\n{table}");
    println!("\n{text}");
    let path = dir.join("bench.md");
    std::fs::write(&path, text).map_err(|e| Error::new(format!("{}: {e}", path.display())))?;
    println!("written to {}", path.display());
    Ok(true)
}

fn everything(table: &mut Table) -> Result<()> {
    tracing::measure(table)?;
    let lab = lab::Lab::open()?;
    syscalls::pwrite(&lab, table)?;
    syscalls::pgbench(&lab, table)?;
    delays::measure(&lab, table)?;
    proxies::measure(&lab, &[], table)?;
    proxies::idle(&lab, table)?;
    let [quiet, calls, counted, rules] = lab.close()?;
    syscalls::decisions(&calls, &counted, table);
    proxies::own_share(&quiet, &rules, table);
    runs::arming(table)?;
    runs::empty(table)?;
    runs::matrix(table)
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
