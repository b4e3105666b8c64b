//! `cargo xtask fuzz <protocol> [seconds]`: coverage-guided fuzzing of a protocol's proxy, beginning from its corpus.
//!
//! `fuzz/` is laid out as cargo-fuzz wants it: a target per protocol, `corpus/<protocol>/` beside. What the fuzzer finds goes into
//! `target/fuzz/`, not into the repository; a finding worth keeping is copied into the corpus, which the protocol's own tests run.

use std::process::Command;

use crate::{Error, Result};
use crate::{run, specs};

/// A minute finds what changed since the corpus was made; a night finds more.
const SECONDS: &str = "60";

/// Fuzzes one protocol.
pub fn run(protocol: &str, seconds: Option<&str>) -> Result {
    let seconds = seconds.unwrap_or(SECONDS);
    let targets = targets();
    if !targets.iter().any(|t| t == protocol) {
        return Err(Error::new(format!("there is no fuzz target `{protocol}`"))
            .help(format!("there are {}", targets.join(", "))));
    }
    if seconds.parse::<u64>().is_err() {
        return Err(Error::new(format!("`{seconds}` is no number of seconds")));
    }
    if !run::quietly("cargo", &["fuzz", "--version"]) {
        return Err(Error::new("cargo-fuzz is not installed").help(
            "cargo install --locked cargo-fuzz; it needs a C++ compiler (apt-get install g++)",
        ));
    }
    let found = specs::target().join("fuzz").join(protocol);
    std::fs::create_dir_all(&found).map_err(|e| Error::new(format!("{}: {e}", found.display())))?;
    let corpus = run::root().join("fuzz/corpus").join(protocol);
    let mut cargo = Command::new("cargo");
    // Without a sanitizer it runs on stable, and there is nothing for one to find: the proxies' only unsafe code is socket options.
    cargo
        .current_dir(run::root())
        .args([
            "fuzz",
            "run",
            "--sanitizer",
            "none",
            "--features",
            "libfuzzer",
        ])
        .arg(protocol)
        .args([&found, &corpus])
        .args(["--", "-rss_limit_mb=4096", "-timeout=60"])
        .arg(format!("-artifact_prefix={}/", found.display()))
        .arg(format!("-max_total_time={seconds}"));
    run::say(&cargo);
    run::succeeds(&mut cargo)
}

/// The protocols that have a target.
fn targets() -> Vec<String> {
    let folder = run::root().join("fuzz/fuzz_targets");
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = files
        .filter_map(|f| Some(f.file_name().to_str()?.strip_suffix(".rs")?.to_owned()))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A protocol that is fuzzed on stable is also fuzzed by coverage.
    #[test]
    fn every_protocol_has_a_target() {
        let targets = targets();
        let folders = std::fs::read_dir(run::root().join("proxies")).unwrap();
        let mut fuzzed = 0;
        for folder in folders.map(|f| f.unwrap().path()) {
            if folder.join("tests/fuzz.rs").exists() {
                let protocol = folder.file_name().unwrap().to_str().unwrap();
                assert!(targets.iter().any(|t| t == protocol), "{protocol}");
                fuzzed += 1;
            }
        }
        assert!(fuzzed >= 8, "{fuzzed}");
        // It has its crate in common with http2.
        assert!(targets.iter().any(|t| t == "grpc"), "{targets:?}");
    }

    #[test]
    fn every_target_has_a_corpus() {
        let targets = targets();
        for target in targets {
            let corpus = run::root().join("fuzz/corpus").join(&target);
            let files = std::fs::read_dir(&corpus).map(Iterator::count);
            assert!(files.is_ok_and(|n| n > 0), "{}", corpus.display());
        }
    }

    #[test]
    fn an_unknown_target_is_named_with_the_known_ones() {
        let error = run("gopher", None).unwrap_err();
        assert!(error.help.is_some_and(|h| h.contains("redis")));
    }
}
