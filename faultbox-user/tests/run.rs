//! The run end to end: how tests, services and the run itself begin and end, and that nothing is left behind.

#[path = "run/harness.rs"]
mod harness;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use faultbox::events::types;
use faultbox::run::procs;
use harness::{Bench, assert_empty, assert_gone};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Three trees: a plain process, one with children, and a daemon that left its parent and session.
const TREES: &str = r#"
plain = service("plain", "/bin/sleep", args=["300"])
family = service("family", "/bin/sh", args=["-c", "sleep 300 & sleep 300"])
daemon = service("daemon", "/bin/sh", args=["-c", "setsid sleep 300 & exit 0"])
def test_long():
    sleep("100s")
def test_ok():
    assert_true(True)
def test_bad():
    assert_eq(1, 2)
"#;
/// How many processes of services that is.
const PROCESSES: usize = 5;

#[test]
fn nothing_is_left_after_success_and_failure() {
    let bench = Bench::new(TREES);
    let report = bench.run(&["--test", "test_ok", "--test", "test_bad"]);
    report.expect("test_ok", "passed");
    report.expect("test_bad", "failed");
    assert_eq!(report.code, Some(1), "{report:?}");
}

#[test]
fn nothing_is_left_after_ctrl_c() {
    let bench = Bench::new(TREES);
    let mut run = bench.start(&["--test", "test_long", "--test", "test_ok"]);
    let traces = run.traces(PROCESSES);
    run.signal(Signal::SIGINT);
    let report = run.finish();
    assert_eq!(report.code, Some(130), "{report:?}");
    report.expect("test_long", "interrupted");
    assert_eq!(report.doc["interrupted"], true);
    assert_gone(&traces, &bench.tmp());
}

#[test]
fn a_second_signal_does_not_wait() {
    let bench = Bench::new(
        r#"
service("stubborn", "/bin/sh", args=["-c", "trap 'touch asked' TERM; touch deaf; while :; do sleep 0.1; done"], stop_timeout="300s")
def test_long():
    sleep("100s")
"#,
    );
    let mut run = bench.start(&[]);
    let traces = run.traces(1);
    // Not before the shell is deaf, and the second not before the first has been seen: two that wait are one.
    bench.made("deaf");
    run.signal(Signal::SIGTERM);
    bench.made("asked");
    assert!(run.child.try_wait().unwrap().is_none(), "it must ask first");
    run.signal(Signal::SIGTERM);
    let report = run.finish();
    assert_eq!(report.code, Some(130), "{report:?}");
    report.expect("test_long", "interrupted");
    assert_gone(&traces, &bench.tmp());
}

#[test]
fn nothing_is_left_when_the_runner_is_killed() {
    let bench = Bench::new(TREES);
    let mut run = bench.start(&["--test", "test_long"]);
    let traces = run.traces(PROCESSES);
    run.signal(Signal::SIGKILL);
    assert_eq!(run.finish().code, None);
    assert_gone(&traces, &bench.tmp());
}

#[test]
fn a_killed_worker_is_one_failed_test() {
    let bench = Bench::new(TREES);
    let mut run = bench.start(&["--test", "test_long", "--test", "test_ok", "--jobs", "1"]);
    let traces = run.traces(PROCESSES);
    traces.kill_workers();
    let report = run.finish();
    report.expect("test_long", "error");
    assert!(report.reason("test_long").contains("SIGKILL"), "{report:?}");
    report.expect("test_ok", "passed");
    assert_gone(&traces, &bench.tmp());
}

#[test]
fn nothing_is_left_by_a_plain_user() {
    let Some(bench) = Bench::as_nobody(TREES) else {
        return;
    };
    let report = bench.run(&["--test", "test_ok", "--test", "test_bad"]);
    report.expect("test_ok", "passed");
    report.expect("test_bad", "failed");
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let mut run = bench.start(&["--test", "test_long"]);
        let traces = run.traces(PROCESSES);
        run.signal(signal);
        run.finish();
        assert_gone(&traces, &bench.tmp());
    }
}

/// A process that has left its parent, its session and its environment, beside one that says when it may end.
const GHOST: &str = r#"
gate = service("gate", "/bin/sh", args=["-c", "env -i setsid sleep 300 & while [ ! -e go ]; do sleep 0.02; done; echo go; exec sleep 300"], observe=["stdout"])
def body():
    assert_eventually(type="stdout", line="go", within="50s")
test("test_a", body=body, timeout="60s")
"#;

#[test]
fn what_has_cleaned_its_environment_is_ended_too() {
    for bench in [Some(Bench::new(GHOST)), Bench::as_nobody(GHOST)] {
        let Some(bench) = bench else { continue };
        for signal in [None, Some(Signal::SIGINT), Some(Signal::SIGKILL)] {
            let _ = fs::remove_file(bench.path("go"));
            let mut run = bench.start(&[]);
            let traces = run.traces(1);
            traces.strangers(1);
            match signal {
                Some(signal) => run.signal(signal),
                None => fs::write(bench.path("go"), "").unwrap(),
            }
            let report = run.finish();
            if signal.is_none() {
                report.expect("test_a", "passed");
            }
            assert_gone(&traces, &bench.tmp());
        }
        // A worker alone.
        let mut run = bench.start(&[]);
        let traces = run.traces(1);
        traces.strangers(1);
        traces.kill_workers();
        run.finish().expect("test_a", "error");
        assert_gone(&traces, &bench.tmp());
    }
}

#[test]
fn nothing_is_left_when_the_janitor_is_killed() {
    let bench = Bench::new(TREES);
    let mut run = bench.start(&["--test", "test_long"]);
    let traces = run.traces(PROCESSES);
    let janitor = procs::all()
        .into_iter()
        .find(|pid| {
            procs::stat(*pid).is_some_and(|s| s.ppid == run.pid())
                && fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|c| String::from_utf8_lossy(&c).contains("__janitor"))
        })
        .unwrap();
    kill(Pid::from_raw(janitor), Signal::SIGKILL).unwrap();
    run.signal(Signal::SIGINT);
    run.finish();
    assert_gone(&traces, &bench.tmp());
}

#[test]
fn services_that_do_not_come_up_say_why() {
    let bench = Bench::new(
        r#"
service("s", "/bin/sh", interface("main", "tcp", 7301), args=["-c", "echo out; echo err >&2; exit 3"], healthcheck=tcp("127.0.0.1:7301", timeout="30s"))
def test_a():
    pass
"#,
    );
    let report = bench.run(&[]);
    report.expect("test_a", "error");
    assert_eq!(
        report.reason("test_a"),
        "service `s` exited with status 3 before it was ready"
    );
    assert_eq!(report.log("test_a", "s"), ["out", "err"]);

    let bench = Bench::new(
        r#"
service("s", "/bin/sleep", interface("main", "tcp", 7301), args=["300"], healthcheck=tcp("127.0.0.1:7301", timeout="1s"))
def test_a():
    pass
"#,
    );
    let report = bench.run(&[]);
    report.expect("test_a", "error");
    assert_eq!(
        report.reason("test_a"),
        "service `s` was not ready within 1s: tcp 127.0.0.1:7301: connection refused"
    );
}

#[test]
fn a_seed_that_does_not_end_is_the_specs_fault_and_may_be_interrupted() {
    let bench = Bench::new(
        r#"
service("s", "/bin/sleep", args=["300"], seed=lambda: sleep("200s"))
test("quick", body=lambda: None, timeout="300ms")
test("patient", body=lambda: None, timeout="100s")
"#,
    );
    let report = bench.run(&["--test", "quick"]);
    report.expect("quick", "error");
    assert_eq!(
        report.reason("quick"),
        "the seed of service `s` did not end within 300ms, the test's time-out"
    );
    let mut run = bench.start(&["--test", "patient"]);
    let _running = run.traces(1);
    let began = std::time::Instant::now();
    run.signal(Signal::SIGINT);
    run.finish().expect("patient", "interrupted");
    assert!(began.elapsed().as_secs() < 60);
}

#[test]
fn missing_binaries_are_all_named_before_anything_starts() {
    let bench = Bench::new(
        r#"
service("a", "/bin/touch", args=["started"])
service("b", "./nowhere/b")
service("c", "./plain.txt")
service("d", "no-such-program-in-path")
def test_a():
    pass
"#,
    );
    fs::write(bench.path("plain.txt"), "").unwrap();
    fs::set_permissions(bench.path("plain.txt"), fs::Permissions::from_mode(0o644)).unwrap();
    let report = bench.run(&[]);
    assert_eq!(report.code, Some(3), "{report:?}");
    let said = format!("{}{}", report.doc, report.stderr);
    for what in ["./nowhere/b", "plain.txt", "no-such-program-in-path"] {
        assert!(said.contains(what), "{what}: {said}");
    }
    assert!(!bench.path("started").exists());
}

#[test]
fn a_service_that_ignores_its_signal_is_killed() {
    let bench = Bench::new(
        r#"
service("s", "/bin/sh", args=["-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"], observe=["stdout"], stop_timeout="200ms")
def test_a():
    assert_eventually(type="stdout", service="s", within="25s")
"#,
    );
    let report = bench.run(&[]);
    let test = report.expect("test_a", "passed");
    assert!(test["notes"].to_string().contains("SIGTERM"), "{test}");
}

#[test]
fn floods_neither_fill_the_disk_nor_stop_the_test() {
    // One line of 600 MB without a newline, then an ordinary one.
    let bench = Bench::new(
        r#"
service("s", "/bin/sh", args=["-c", "head -c 600000000 /dev/zero; echo; echo the end; touch done; sleep 300"])
def body():
    sleep("10m")
test("test_a", body=body, timeout="10m")
"#,
    );
    let mut run = bench.start(&["--keep-logs", "logs"]);
    let traces = run.traces(1);
    bench.made("done");
    use std::os::unix::fs::MetadataExt;
    // The log is looked at from time to time, on a loaded machine later.
    let deadline = std::time::Instant::now() + harness::PATIENCE;
    loop {
        let log = fs::metadata(bench.path("logs/test_a/s.log")).unwrap();
        assert!(log.len() > 600_000_000);
        if log.blocks() * 512 <= 260 << 20 {
            break;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{} blocks",
            log.blocks()
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    run.signal(Signal::SIGINT);
    let report = run.finish();
    assert_eq!(report.log("test_a", "s"), ["the end"]);
    assert_gone(&traces, &bench.tmp());
}

#[test]
fn a_crash_during_the_test_is_an_event() {
    let bench = Bench::new(
        r#"
s = service("s", "/bin/sh", args=["-c", "echo dying; kill -SEGV $$"])
def test_a():
    assert_eventually(type="service_exited", service="s", signal="SIGSEGV", within="25s")
    fail("show the log")
"#,
    );
    let report = bench.run(&[]);
    let test = report.expect("test_a", "failed");
    assert_eq!(test["logs"][0]["ended"], "killed by SIGSEGV", "{test}");
    assert_eq!(report.log("test_a", "s")[0], "dying");
}

/// A server that says who it is, on a fixed port.
const SERVER: &str = r#"
server = service("server", "/usr/bin/python3", interface("main", "tcp", 7302),
    args=["-c", "import socketserver\nclass H(socketserver.StreamRequestHandler):\n  def handle(self):\n    for line in self.rfile: self.wfile.write(b'you said '+line)\nsocketserver.ThreadingTCPServer.allow_reuse_address=True\nsocketserver.ThreadingTCPServer(('127.0.0.1',7302),H).serve_forever()"],
    healthcheck=tcp("127.0.0.1:7302", timeout="60s"))
"#;

#[test]
fn tests_use_the_same_port_at_the_same_time() {
    let bench = Bench::new(&format!(
        "{SERVER}\n{}",
        r#"
def body():
    sleep("400ms")
    assert_eq(server.main.send(data="x\n", expect="line").body.strip(), "you said x")
def test_a():
    body()
def test_b():
    body()
"#
    ));
    let report = bench.run(&["--jobs", "2"]);
    report.expect("test_a", "passed");
    report.expect("test_b", "passed");
    let report = bench.run(&["--network", "host", "--test", "test_a"]);
    report.expect("test_a", "passed");
}

#[test]
fn a_taken_port_is_named_with_its_holder() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let bench = Bench::new(&format!(
        "service('s', '/bin/sleep', interface('main', 'tcp', {port}), args=['300'])\ndef test_a():\n    pass\n"
    ));
    let report = bench.run(&["--network", "host"]);
    report.expect("test_a", "error");
    assert!(
        report
            .reason("test_a")
            .starts_with(&format!("port {port} of s.main is already taken by `")),
        "{report:?}"
    );
    assert_eq!(report.code, Some(3));
}

#[test]
fn processes_are_paused_killed_and_restarted() {
    let bench = Bench::new(&format!(
        "{SERVER}\n{}",
        r#"
def ask(timeout="30s"):
    return server.main.send(data="x\n", expect="line", timeout=timeout)
def test_pause():
    pause(server)
    assert_true(not ask("500ms").ok)
    resume(server)
    assert_true(ask().ok)
def test_restart():
    before = server.pid
    kill(server)
    assert_true(not ask().ok)
    restart(server)
    assert_true(ask().ok)
    assert_ne(server.pid, before)
"#
    ));
    let report = bench.run(&[]);
    report.expect("test_pause", "passed");
    report.expect("test_restart", "passed");
}

#[test]
fn syscall_faults_reach_running_services_and_restarted_ones() {
    let bench = Bench::new(
        r#"
s = service("s", "/bin/sh", args=["-c", "while :; do if mkdir made 2>/dev/null; then rmdir made; echo yes; else echo no; fi; sleep 0.02; done"], observe=["stdout"])
def said(line):
    assert_eventually(type="stdout", line=line, within="60s")
def count(line):
    return len(events(type="stdout", line=line))
def more(line):
    before = count(line)
    for i in range(3000):
        if count(line) > before + 2:
            return
        sleep("20ms")
    fail("no more " + line)
def faulted():
    more("no")
    restart(s)
    more("no")
def body():
    said("yes")
    assert_eq(count("no"), 0)
    fault(s, mkdir=deny("EACCES"), run=faulted)
    more("yes")
test("test_a", body=body, timeout="5m")
"#,
    );
    let report = bench.run(&[]);
    let test = report.expect("test_a", "passed");
    let fault = &test["faults"][0];
    assert!(fault["hits"].as_u64().unwrap() > 4, "{test}");
    assert_eq!(fault["target"], "s");
    assert!(
        report.doc["overhead"]["syscalls"][0]["trapped"]
            .as_u64()
            .unwrap()
            > 0
    );
}

#[test]
fn cells_of_a_failed_baseline_are_invalid() {
    let bench = Bench::new(
        r#"
s = service("s", "/bin/sleep", args=["300"])
def broken():
    assert_eq(1, 2)
def fine():
    assert_true(True)
slow = fault_assumption("slow", target=s, write=delay("1ms"))
fault_matrix(scenarios=[broken, fine], faults=[slow])
"#,
    );
    let report = bench.run(&[]);
    report.expect("matrix_broken_baseline", "failed");
    report.expect("matrix_broken_slow", "invalid");
    assert!(
        report
            .reason("matrix_broken_slow")
            .contains("matrix_broken_baseline")
    );
    report.expect("matrix_fine_baseline", "passed");
    report.expect("matrix_fine_slow", "passed");
    // Without being selected, the baseline still decides.
    let report = bench.run(&["--test", "matrix_broken_slow"]);
    report.expect("matrix_broken_slow", "invalid");
    assert_eq!(report.doc["tests"].as_array().unwrap().len(), 1);
}

#[test]
fn runs_have_seeds_and_fail_fast_stops() {
    let bench = Bench::new(
        "def test_a():\n    assert_true(True)\ndef test_b():\n    assert_true(False)\ndef test_c():\n    assert_true(True)\n",
    );
    let report = bench.run(&["--test", "test_a", "--runs", "3", "--seed", "7"]);
    let seeds: Vec<u64> = report.doc["tests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["seed"].as_u64().unwrap())
        .collect();
    assert_eq!(seeds, [7, 8, 9]);
    let report = bench.run(&["--fail-fast", "--jobs", "1"]);
    report.expect("test_a", "passed");
    report.expect("test_b", "failed");
    assert_eq!(report.doc["tests"].as_array().unwrap().len(), 2);
    assert!(
        report.doc["notes"]
            .to_string()
            .contains("1 test was not run"),
        "{report:?}"
    );
}

#[test]
fn a_service_runs_as_its_user() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to run a service as another user");
        return;
    }
    let bench = Bench::new(
        r#"
service("s", "/bin/sh", args=["-c", "id -u; echo $USER; touch $TMPDIR/x && echo written"], user="nobody", observe=["stdout"])
def test_a():
    assert_eventually(type="stdout", line="written", within="25s")
    assert_eq([e.line for e in events(type="stdout")], ["65534", "nobody", "written"])
"#,
    );
    bench.run(&[]).expect("test_a", "passed");
}

#[test]
fn a_rule_for_one_source_hits_only_that_service() {
    // The consumer is started before the server it calls: proxies are there before any service.
    let bench = Bench::new(
        r#"
consumer = service("consumer", "/bin/sh", args=["-c", "while :; do curl -s -o /dev/null -w '%{http_code}\\n' http://$FAULTBOX_API_HTTP_ADDR/; sleep 0.05; done"], observe=["stdout"])
api = service("api", "/usr/bin/python3", interface("http", "http", 7303), args=["-m", "http.server", "7303", "--bind", "127.0.0.1"],
    healthcheck=ready(), depends_on=[consumer])
def faulted():
    assert_eq(api.http.get(path="/").status, 200)
    assert_eventually(type="stdout", line="429", within="20s")
    assert_eq(api.http.get(path="/").status, 200)
def test_a():
    assert_eventually(type="stdout", line="200", within="20s")
    fault(api.http, response(path="/*", status=429, source=consumer), run=faulted)
"#,
    );
    let report = bench.run(&[]);
    let test = report.expect("test_a", "passed");
    assert_eq!(test["faults"][0]["mechanism"], "proxy");
    assert_eq!(
        report.doc["overhead"]["interfaces"][0]["interface"],
        "api.http"
    );
}

/// A server that no spec starts is reached where it is, in the host's network, and faulted on the way.
#[test]
fn a_remote_service_carries_rules() {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Ends with the test process: nothing is written, nothing waits for it.
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            if lines.by_ref().map_while(Result::ok).any(|l| l.is_empty()) {
                let _ = (&stream).write_all(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nfar",
                );
            }
        }
    });
    let bench = Bench::new(&format!(
        r#"
far = service("far", interface("http", "http", {port}), remote="127.0.0.1")
def get():
    return far.http.get(path="/orders")
def test_a():
    assert_eq(get().body, "far")
    assert_eq(fault(far.http, response(path="/orders", status=503), run=get).status, 503)
    assert_eq(get().body, "far")
def test_b():
    assert_eq(get().status, 200)
"#
    ));
    let report = bench.run(&["--jobs", "2"]);
    let test = report.expect("test_a", "passed");
    assert_eq!(test["faults"][0]["hits"], 1);
    report.expect("test_b", "passed");
    // One network for all: the run says why.
    assert!(
        report.doc["notes"].to_string().contains("remote"),
        "{report:?}"
    );
}

#[test]
fn two_runs_at_once_do_not_meet() {
    let bench = Bench::new(&format!(
        "{SERVER}\n{}",
        "def test_a():\n    sleep('500ms')\n    assert_eq(server.main.send(data='x\\n', expect='line').body.strip(), 'you said x')\n"
    ));
    let (one, two) = (bench.start(&[]), bench.start(&[]));
    one.finish().expect("test_a", "passed");
    two.finish().expect("test_a", "passed");
    assert_empty(&bench.tmp());
}

/// A little room is left, so that the run starts, and the service's log takes it.
#[test]
fn a_disk_that_fills_up_under_the_logs_keeps_the_verdict() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to mount a small disk");
        return;
    }
    let bench = Bench::new(
        r#"
s = service("s", "/bin/sh", args=["-c", "yes | head -c 20000000; echo done >&2; exec sleep 100"])
def test_good():
    sleep("1500ms")
    assert_true(s.pid > 0)
def test_bad():
    sleep("1500ms")
    assert_eq(1, 2)
"#,
    );
    let script = format!(
        "mount -t tmpfs -o size=3m none {tmp} && cd {dir} && exec env TMPDIR={tmp} timeout 60 {exe} test --format json --seed 1",
        tmp = bench.tmp().display(),
        dir = bench.path("").display(),
        exe = env!("CARGO_BIN_EXE_faultbox"),
    );
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let doc: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let outcomes: Vec<_> = doc["tests"].as_array().unwrap().iter().collect();
    let of = |name: &str| {
        outcomes
            .iter()
            .find(|t| t["name"] == name)
            .map(|t| t["outcome"].as_str().unwrap().to_owned())
    };
    assert_eq!(
        of("test_good").as_deref(),
        Some("passed"),
        "{doc:#}\n{said}"
    );
    assert_eq!(of("test_bad").as_deref(), Some("failed"), "{doc:#}\n{said}");
    assert_eq!(output.status.code(), Some(1));
}

/// A service that gives up because it cannot print is not to blame for it.
#[test]
fn a_full_disk_under_the_logs_is_the_environments() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to mount a small disk");
        return;
    }
    let bench = Bench::new(
        r#"
s = service("s", "/bin/sh", interface("main", "tcp", 0), args=["-c", "echo ready || exit 120; exec sleep 100"], healthcheck=ready(timeout="20s"))
def test_it():
    pass
"#,
    );
    let logs = bench.path("logs");
    std::fs::create_dir(&logs).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=64k none {logs} && (dd if=/dev/zero of={logs}/rest bs=4k 2>/dev/null; cd {dir} && exec timeout 60 {exe} test --keep-logs {logs} --format json)",
        logs = logs.display(),
        dir = bench.path("").display(),
        exe = env!("CARGO_BIN_EXE_faultbox"),
    );
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .env("TMPDIR", bench.tmp())
        .output()
        .unwrap();
    let doc: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let reason = doc["tests"][0]["reason"].as_str().unwrap();
    assert!(
        reason.contains("is full: service `s` exited with status 120"),
        "{reason}"
    );
    assert_eq!(output.status.code(), Some(3), "{doc:#}");
}

/// What a filter may name is what is recorded: every event that these tests make is held against the table.
#[test]
fn events_have_the_fields_of_their_type_and_no_others() {
    let bench = Bench::new(
        r#"
web = mock_service("web", interface("http", "http", 0), routes={"/x": reply(body="y"), "/bad": lambda r: r.nothing})
store = mock_service("store", interface("redis", "redis", 0))
busy = service("busy", "/bin/sh", observe=["stdout", "stderr"],
    args=["-c", "echo out; echo err >&2; while :; do echo x > $TMPDIR/f; sleep 0.05; done"])
brief = service("brief", "/bin/sh", args=["-c", "sleep 0.2; exit 3"])
def tell():
    for e in events():
        print(json.encode([e.type, e.service, list(e.fields.keys())]))
def test_traffic():
    web.get(path="/x", query={"a": "b"}, timeout="5s")
    web.post(path="/bad", json={"a": 1})
    store.set("k", "v")
    store.command("CONFIG", "GET", "maxmemory")
    fault(web.http, error(path="/x", status=502, label="down"), run=lambda: web.get(path="/x"))
    fault(web.http, delay(path="/x", delay="1ms"), run=lambda: web.get(path="/x"))
    fault(store.redis, error(command="GET", message="ERR no"), run=lambda: store.get("k"))
    web.get(path="/y")
    tell()
def test_processes():
    assert_eventually(type="service_exited", within="20s")
    assert_eventually(type="stdout", within="20s")
    assert_eventually(type="stderr", within="20s")
    pause(busy)
    resume(busy)
    kill(busy)
    restart(busy)
    fault(busy, write=deny("EIO", on="file", label="disk"), run=lambda: assert_eventually(type="syscall", action="deny", within="20s"))
    fault(busy, open=delay("1ms", path="**/f"), run=lambda: assert_eventually(type="syscall", action="delay", within="20s"))
    tell()
"#,
    );
    let report = bench.run(&[]);
    let protocols: Vec<_> = faultbox_fleet::all().iter().map(|p| p.doc()).collect();
    let mut seen = BTreeSet::new();
    for test in ["test_traffic", "test_processes"] {
        report.expect(test, "passed");
        let printed = report.test(test)["prints"].as_array().unwrap().iter();
        // The mock's output is among it.
        for line in printed.filter(|l| l.as_str().unwrap().starts_with('[')) {
            let (kind, service, fields): (String, Option<String>, Vec<String>) =
                serde_json::from_str(line.as_str().unwrap()).unwrap();
            let spoken = match service.as_deref() {
                Some("web") => Some("http"),
                Some("store") => Some("redis"),
                _ => None,
            };
            let docs = protocols.iter().filter(|d| Some(d.name) == spoken);
            let known = types::fields(&kind, &docs.copied().collect::<Vec<_>>());
            for field in fields {
                assert!(known.contains(&field.as_str()), "{kind} has {field}");
            }
            seen.insert(kind);
        }
    }
    for kind in [
        "service_started",
        "service_ready",
        "service_exited",
        "service_paused",
        "service_resumed",
        "service_killed",
        "service_restarted",
        "fault_armed",
        "fault_lifted",
        "syscall",
        "proxy",
        "mock_call",
        "step",
        "stdout",
        "stderr",
    ] {
        assert!(seen.contains(kind), "{kind} among {seen:?}");
    }
}
