//! Real clients, as scripts that a test runs.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where `cargo xtask test` has put the drivers of other languages.
pub fn folder() -> PathBuf {
    std::env::var_os("FAULTBOX_CLIENTS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/clients"),
        PathBuf::from,
    )
}

/// Is nothing missing? If packages are, the test is left out where FAULTBOX_SKIP_REAL=1 asks for that, and says so loudly.
///
/// # Panics
/// Some are missing, and nobody has asked for that.
pub fn complete(missing: &[&str]) -> bool {
    if missing.is_empty() {
        return true;
    }
    let how = format!("apt-get install {}", missing.join(" "));
    if std::env::var_os("FAULTBOX_SKIP_REAL").is_some_and(|v| v == "1") {
        eprintln!("SKIPPED, NOT PASSED: real clients and servers are missing; {how}");
        return false;
    }
    panic!("real clients and servers are missing: {how} (or skip with FAULTBOX_SKIP_REAL=1)");
}

/// Runs a client, which has nothing to read, to its end; what it printed.
///
/// # Panics
/// It cannot be started, or fails.
pub fn run(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let out = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{shown}: {e}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        out.status.success(),
        "{shown}: {}\n{}{}",
        out.status,
        text(&out.stdout),
        text(&out.stderr)
    );
    text(&out.stdout)
}

/// Runs a client that connects, says "ready" and waits for a line; calls `arm` then, and returns what it printed after that.
///
/// # Panics
/// It does not do so, or fails.
pub fn faulted(command: &mut Command, arm: impl FnOnce()) -> String {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{shown}: {e}"));
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut before = String::new();
    loop {
        match lines.next() {
            Some(Ok(line)) if line == "ready" => break,
            Some(Ok(line)) => before += &line,
            end => panic!("{shown} ended early: {before} {end:?}"),
        }
    }
    arm();
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"\n").expect("the client reads");
    drop(stdin);
    let after: Vec<String> = lines.map_while(Result::ok).collect();
    let status = child.wait().expect("the client ends");
    assert!(status.success(), "{shown}: {status}\n{}", after.join("\n"));
    after.join("\n")
}
