//! Machines that lack something: what a run says then, and when. Each test takes one thing away from a process of its own.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const FAULTBOX: &str = env!("CARGO_BIN_EXE_faultbox");

/// Says loudly why a test cannot run here; on CI it must.
fn can_take_away() -> bool {
    let can = nix::unistd::geteuid().is_root() && faultbox::sys::probe::bpf_capability();
    if !can {
        let why = "only root can take something away, and see what eBPF makes of it";
        assert!(std::env::var_os("CI").is_none(), "{why}");
        eprintln!("SKIPPED, NOT PASSED: {why}");
    }
    can
}

/// A folder with this spec, whose services may write there.
fn spec(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("faultbox.star"), text).unwrap();
    dir
}

/// Runs faultbox under what takes something away.
fn under(dir: &Path, deprive: &[&str], args: &[&str]) -> (Option<i32>, String) {
    let output: Output = Command::new(deprive[0])
        .args(&deprive[1..])
        .arg(FAULTBOX)
        .args(args)
        .current_dir(dir)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), said)
}

/// A mount namespace in which this is done first.
fn mounts(script: &str) -> [String; 6] {
    let script = format!("{script} && exec \"$@\"");
    ["unshare", "-m", "sh", "-ec", &script, "sh"].map(str::to_owned)
}

const PROCESSES: &str = r#"
box = service("box", "sh", args=["-c", "touch started; (true); exec sleep 60"])

def test_x():
    assert_never(type="fork", within="100ms")
"#;

#[test]
fn without_the_kernels_types_processes_are_not_seen_and_that_is_said() {
    if !can_take_away() {
        return;
    }
    let dir = spec(PROCESSES);
    let typeless = mounts("mount -t tmpfs none /sys/kernel/btf");
    let typeless: Vec<&str> = typeless.iter().map(String::as_str).collect();
    let (code, said) = under(dir.path(), &typeless, &["test"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("assert_never(type=\"fork\") needs eBPF: the kernel does not tell where"),
        "{said}"
    );
    assert!(!dir.path().join("started").exists());
    let (_, said) = under(dir.path(), &typeless, &["doctor"]);
    assert!(said.contains("missing  kernel types (BTF)"), "{said}");
    assert!(!said.contains("everything is there"), "{said}");
}

#[test]
fn without_net_admin_tests_run_in_the_hosts_network() {
    if !can_take_away() {
        return;
    }
    let dir = spec("def test_x():\n    assert_true(True)\ndef test_y():\n    assert_true(True)\n");
    let less = ["setpriv", "--bounding-set=-net_admin"];
    let (code, said) = under(dir.path(), &less, &["test"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("tests run one at a time in the host's network: a network of their own cannot be set up without CAP_NET_ADMIN"),
        "{said}"
    );
    let (_, said) = under(dir.path(), &less, &["doctor"]);
    assert!(said.contains("missing  network namespaces"), "{said}");
}

#[test]
fn what_only_ebpf_can_do_is_refused_before_a_service_starts() {
    if !can_take_away() {
        return;
    }
    let text = r#"
box = service("box", "sh", interface("one", "tcp", 7399), args=["-c", "touch started; exec sleep 60"])
other = service("other", "sh", interface("two", "tcp", 7398), args=["-c", "touch started; exec sleep 60"])

lossy = fault_assumption("lossy", faults=[packet_loss(box, other, probability=0.5)])

def files():
    assert_never(type="open", service=box)

def test_files():
    fault(box, write=deny("EIO"), run=files)

def test_counts():
    box.syscalls()

def test_loss():
    fault(lossy, run=lambda: None)

fault_scenario("declared", scenario=lambda: None, faults=[lossy])
"#;
    let dir = spec(text);
    let less = ["setpriv", "--bounding-set=-bpf,-sys_admin"];
    let (code, said) = under(dir.path(), &less, &["test"]);
    assert_eq!(code, Some(3), "{said}");
    for what in [
        "assert_never(type=\"open\") needs eBPF: no CAP_BPF",
        "syscalls() needs eBPF: no CAP_BPF",
        "packet_loss() needs eBPF: no CAP_BPF",
        "4 error",
    ] {
        assert!(said.contains(what), "{what}: {said}");
    }
    assert!(!dir.path().join("started").exists(), "{said}");
}

#[test]
fn without_proc_nothing_works_and_doctor_says_so() {
    if !can_take_away() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let blind = mounts("mount -t tmpfs none /proc");
    let blind: Vec<&str> = blind.iter().map(String::as_str).collect();
    let (code, said) = under(dir.path(), &blind, &["doctor"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("MISSING  /proc"), "{said}");
}

#[test]
fn a_flood_of_opens_is_inconclusive_and_says_why() {
    if !can_take_away() {
        return;
    }
    let text = format!(
        r#"
box = service("box", "bash", args=["-c", "for _ in 1 2 3 4 5 6 7 8; do {FAULTBOX} __spin open 30000 & done; wait; echo done; exec sleep 60"], observe=["stdout"])

def test_x():
    assert_eventually(type="stdout", line="done", within="4m")
    assert_never(type="open", path="/etc/never/there")
"#
    );
    let dir = spec(&text);
    let (code, said) = under(dir.path(), &["env"], &["test", "--network", "host"]);
    if code == Some(0) {
        eprintln!("SKIPPED, NOT PASSED: this machine reads faster than eight processes open");
        return;
    }
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("inconclusive test_x"), "{said}");
    assert!(
        said.contains("came faster than they could be read"),
        "{said}"
    );
}
