//! `faultbox trace`, and what its figures are worth: every call is counted or told to be lost.

use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use faultbox::events::{Lost, Sink};
use faultbox::run::isolation::cgroup;
use faultbox::run::tracer::{self, Feature, Watch};
use serde_json::Value;

const FAULTBOX: &str = env!("CARGO_BIN_EXE_faultbox");

/// Says loudly why a test cannot run here; on CI it must.
fn traces() -> bool {
    let output = faultbox(&["doctor", "--format", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let capable =
        |name: &str| {
            report["capabilities"].as_array().unwrap().iter().any(|c| {
                c["name"].as_str().unwrap().to_lowercase().contains(name) && c["ok"] == true
            })
        };
    let can = capable("bpf") && capable("cgroup");
    if !can {
        assert!(std::env::var_os("CI").is_none(), "{report:#}");
        eprintln!("SKIPPED, NOT PASSED: nothing can be traced here");
    }
    can
}

fn faultbox(args: &[&str]) -> Output {
    Command::new(FAULTBOX)
        .args(args)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Traces a command; its summary, and what it wrote itself.
fn trace(command: &[&str]) -> (Value, Output) {
    let mut args = vec!["trace", "--format", "json", "--"];
    args.extend(command);
    let output = faultbox(&args);
    let summary = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    (summary, output)
}

fn call<'a>(summary: &'a Value, name: &str) -> &'a Value {
    summary["services"]["command"]["calls"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["name"] == name)
        .unwrap_or(&Value::Null)
}

#[test]
fn a_command_is_summed_up_and_keeps_its_status() {
    if !traces() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("read me");
    std::fs::write(&file, "text").unwrap();
    let name = file.to_str().unwrap();
    let script = "cat \"$1\" \"$1\" \"$1.not\"; cat \"$1\" >/dev/null; exit 3";
    let (summary, output) = trace(&["sh", "-c", script, "sh", name]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(summary["status"], 3);
    assert_eq!(summary["end"], "exit 3");
    // Its own output is kept apart from the document.
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("texttext"));
    let did = &summary["services"]["command"];
    assert_eq!(did["files"][name]["opened"], 3, "{summary:#}");
    assert_eq!(did["files"][format!("{name}.not")]["failed"], 1);
    let cats: u64 = did["programs"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(path, _)| path.ends_with("/cat"))
        .map(|(_, n)| n.as_u64().unwrap())
        .sum();
    assert_eq!(cats, 2);
    assert!(did["processes"].as_u64().unwrap() >= 1);
    assert_eq!(
        did["lost"],
        serde_json::json!({"records": 0, "calls": 0, "paths": 0})
    );
    let opened = call(&summary, "openat");
    assert!(opened["errors"].as_u64().unwrap() >= 1);
    assert!(opened["us"]["p50"].as_f64().unwrap() > 0.0);
    assert!(summary["overhead"]["call_ns"].as_f64().is_some());
}

#[test]
fn every_call_is_counted() {
    if !traces() {
        return;
    }
    let (summary, _) = trace(&[FAULTBOX, "__spin", "getppid", "123456"]);
    assert_eq!(call(&summary, "getppid")["count"], 123_456, "{summary:#}");
    assert_eq!(call(&summary, "getppid")["errors"], 0);
}

#[test]
fn two_runs_do_not_see_each_other() {
    if !traces() {
        return;
    }
    let count = |calls: &'static str| {
        std::thread::spawn(move || {
            let (summary, _) = trace(&[FAULTBOX, "__spin", "getppid", calls]);
            call(&summary, "getppid")["count"].to_string()
        })
    };
    let (one, two) = (count("200001"), count("300001"));
    assert_eq!(one.join().unwrap(), "200001");
    assert_eq!(two.join().unwrap(), "300001");
}

#[test]
fn connections_are_told_with_their_bytes() {
    if !traces() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let mut text = [0; 5];
        listener.accept().unwrap().0.read_exact(&mut text).unwrap();
        text
    });
    // It waits for the server's end of the connection: only a connection that both have closed is told with its bytes, and the server
    // may have its turn after the command has ended.
    let script = "exec 3<>/dev/tcp/${1%:*}/${1#*:} && printf hello >&3 && ! read -r _ <&3";
    let (summary, output) = trace(&["bash", "-c", script, "bash", &addr]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(server.join().unwrap(), *b"hello");
    let peer = &summary["services"]["command"]["connections"][&addr];
    assert_eq!(
        (&peer["connected"], &peer["sent_bytes"]),
        (&Value::from(1), &Value::from(5)),
        "{summary:#}"
    );
}

#[test]
fn a_signal_is_its_status_and_output_passes_through() {
    if !traces() {
        return;
    }
    let output = faultbox(&["trace", "--", "sh", "-c", "echo out; kill -TERM $$"]);
    assert_eq!(output.status.code(), Some(128 + 15));
    assert_eq!(output.stdout, b"out\n");
    let summary = String::from_utf8_lossy(&output.stderr);
    assert!(summary.contains("SIGTERM"), "{summary}");
    assert!(summary.contains("overhead: "), "{summary}");
}

#[test]
fn what_cannot_be_run_is_told() {
    let refused = |args: &[&str], code: i32, says: &str| {
        let output = faultbox(args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(says), "{text}");
    };
    refused(&["trace"], 2, "there is nothing to trace");
    refused(
        &["trace", "--", "no-such-program"],
        3,
        "there is no program `no-such-program`",
    );
    refused(
        &["trace", "--spec", "x.star", "--", "true"],
        2,
        "cannot be used with",
    );
    refused(&["trace", "--spec", "/no/x.star"], 2, "there is no spec");
}

#[test]
fn the_services_of_a_spec_are_told_apart() {
    if !traces() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let spec = dir.path().join("faultbox.star");
    let text = r#"
one = service("one", "sh", args=["-c", "cat /etc/passwd >/dev/null; echo up; exec sleep 60"], observe=["stdout"])
two = service("two", "sh", args=["-c", "echo up; exec sleep 60"], observe=["stdout"])

def test_both():
    assert_eventually(type="stdout", service="one", within="25s")
    assert_eventually(type="stdout", service="two", within="25s")
"#;
    std::fs::write(&spec, text).unwrap();
    let output = faultbox(&[
        "trace",
        "--format",
        "json",
        "--spec",
        spec.to_str().unwrap(),
    ]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let opened = |service: &str| &summary["services"][service]["files"]["/etc/passwd"]["opened"];
    assert_eq!(*opened("one"), 1, "{summary:#}");
    assert_eq!(*opened("two"), Value::Null);
}

/// Neither a cgroup nor what hangs on it outlives the command, even if nobody could clean up.
#[test]
fn nothing_is_left_after_sigkill() {
    if !traces() {
        return;
    }
    let Some(own) = cgroup::own() else { return };
    let mut child = Command::new(FAULTBOX)
        .args(["trace", "--", "sleep", "60"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let faultbox = child.id() as i32;
    let sleeps = || -> Option<(PathBuf, i32)> {
        groups(&own)
            .into_iter()
            .find_map(|group| Some((group.clone(), *cgroup::procs(&group).first()?)))
            .filter(|(_, pid)| {
                let status =
                    std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                status.contains(&format!("\nPPid:\t{faultbox}\n")) && status.contains("sleep")
            })
    };
    let (group, pid) = until("it sleeps in a cgroup", sleeps);
    child.kill().unwrap();
    child.wait().unwrap();
    until("its cgroup is gone", || (!group.exists()).then_some(()));
    until("its process is gone", || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
}

/// The cgroups of runs.
fn groups(own: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(own)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| {
            p.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("faultbox-"))
        })
        .collect()
}

fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Counts what arrives, and takes no more than the first before the flood is over, so that the ring overflows however slowly it comes.
#[derive(Default)]
struct Slow {
    calls: AtomicU64,
    over: AtomicBool,
}

impl Sink for Slow {
    fn record(&self, kind: &str, _: Option<&str>, _: Value) {
        assert_eq!(kind, "call");
        self.calls.fetch_add(1, Ordering::Relaxed);
        while !self.over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn lost_before(&self, _: Lost) {}
}

#[test]
fn in_a_flood_what_is_streamed_and_what_is_lost_are_all_calls() {
    if !traces() {
        return;
    }
    let Some(run) = cgroup::own().map(|o| o.join(format!("faultbox-flood-{}", std::process::id())))
    else {
        return;
    };
    let (test, service) = (run.join("0"), run.join("0/flood"));
    for path in [&run, &test, &service] {
        cgroup::create(path).unwrap();
    }
    let kernel = tracer::load(Some(&run), 1, &[Feature::Calls], None, None).unwrap();
    let sink = Arc::new(Slow::default());
    let share = kernel.share_here(0).unwrap();
    let none = std::collections::BTreeSet::new();
    let watch = Watch::adopt(&share, 0, &["flood"], &none, sink.clone()).unwrap();
    watch.service("flood", &service, true, 0).unwrap();
    let status = Command::new(FAULTBOX)
        .arg("__enter")
        .arg(&service)
        .args([FAULTBOX, FAULTBOX, "__spin", "getppid", "300000"])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    sink.over.store(true, Ordering::Relaxed);
    assert!(status.success());
    watch.drain();
    let lost = watch.lost();
    let all: u64 = watch.calls("flood").iter().map(|c| c.count).sum();
    let streamed = sink.calls.load(Ordering::Relaxed);
    cgroup::remove(&run, Duration::from_secs(10));
    assert_eq!(lost.counts(), 0);
    assert!(all > 300_000);
    assert!(
        lost.unread > 0,
        "the ring did not overflow: nothing is shown"
    );
    assert_eq!(streamed + lost.unread, all);
}
