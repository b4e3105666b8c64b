//! `faultbox bench` as a user runs it: what it measures, what it writes, how it ends. Not how long anything took.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// An HTTP server that every machine with Python has, and loads on it.
const SPEC: &str = r#"
api = service("api", "sh", interface("http", "http", 0), interface("raw", "tcp", 0),
    args = ["-c", "exec python3 -m http.server --bind 127.0.0.1 $FAULTBOX_API_HTTP_PORT"],
    healthcheck = ready(interface="http", timeout="60s"),
)

def get():
    return api.http.get(path="/")

def lost():
    return api.http.get(path="/lost")

workload("gets", get, connections=2)
workload("lost", lost, rate=50)

def test_get():
    for _ in range(3):
        assert_eq(get().status, 200)
"#;

struct Spec(tempfile::TempDir);

impl Spec {
    fn new(text: &str) -> Spec {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("faultbox.star"), text).unwrap();
        Spec(dir)
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    /// Runs `faultbox bench` with these flags and checks the exit code.
    #[track_caller]
    fn bench(&self, exits: &[i32], args: &[&str]) -> Output {
        self.command(&["bench"], exits, args)
    }

    #[track_caller]
    fn command(&self, command: &[&str], exits: &[i32], args: &[&str]) -> Output {
        let output = Command::new(env!("CARGO_BIN_EXE_faultbox"))
            .args(command)
            .args(args)
            .current_dir(self.dir())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.code().is_some_and(|c| exits.contains(&c)),
            "{args:?}: {:?}\n--- stdout\n{}--- stderr\n{}",
            output.status,
            out(&output),
            err(&output)
        );
        output
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.dir().join(name)).unwrap()).unwrap()
    }
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Says so, loudly, where there is none.
fn python() -> bool {
    let found = Command::new("python3").arg("--version").output().is_ok();
    if !found {
        eprintln!("NOT TESTED: python3 is not installed");
    }
    found
}

#[test]
fn an_interface_is_measured_in_balanced_blocks() {
    if !python() {
        return;
    }
    let spec = Spec::new(SPEC);
    let args = ["--interface", "api.http", "--interface", "api.raw"];
    let files = [
        "--duration",
        "1200ms",
        "--json",
        "a.json",
        "--html",
        "a.html",
    ];
    let output = spec.bench(&[0], &[&args[..], &files].concat());
    let text = out(&output);
    assert!(
        text.contains("api.http (http): GET /, one after the other"),
        "{text}"
    );
    assert!(
        text.contains("inside api.http, by the proxy's own clock"),
        "{text}"
    );
    assert!(text.contains("generator: "), "{text}");
    assert!(text.contains("api.raw: tcp has no request"), "{text}");
    let document = spec.json("a.json");
    assert_eq!(
        (&document["kind"], &document["schema"]),
        (&"bench".into(), &1.into())
    );
    let subject = &document["subjects"][0];
    let sides: Vec<&str> = subject["blocks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| b["side"].as_str().unwrap())
        .collect();
    assert_eq!(sides.len(), 24);
    assert_eq!(sides[..4], ["direct", "mediated", "mediated", "direct"]);
    assert_eq!(sides[4..8], ["mediated", "direct", "direct", "mediated"]);
    let log = subject["log"].as_str().unwrap();
    assert_eq!(log.matches("Tag=direct,").count(), 12, "{log}");
    assert_eq!(log.matches("Tag=mediated,").count(), 12, "{log}");
    // The proxy has seen the mediated calls, and no direct one; it may count one after its answer has arrived.
    let mediated = subject["other"]["count"].as_u64().unwrap();
    let inside = subject["inside"][0]["count"].as_u64().unwrap();
    assert!(
        mediated > 0 && mediated.abs_diff(inside) <= 2,
        "{mediated}, {inside}"
    );
    assert_eq!(subject["other"]["failed"], 0);
    let page = fs::read_to_string(spec.dir().join("a.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("api.http"));
    for said in [
        "inside api.http, by the proxy's own clock",
        "us of CPU a call",
        "generator: ",
    ] {
        assert!(page.contains(said), "{said}");
    }
    // The same compared with itself has no caveat.
    let again = [
        "--interface",
        "api.http",
        "--duration",
        "1200ms",
        "--compare",
        "a.json",
        "--html",
        "b.html",
    ];
    let text = out(&spec.bench(&[0], &again));
    for caveat in ["baseline ran", "in the baseline", "baseline has no"] {
        assert!(!text.contains(caveat), "{text}");
    }
    let page = fs::read_to_string(spec.dir().join("b.html")).unwrap();
    assert!(page.contains("Against the baseline") && !page.contains("baseline ran"));
    assert_eq!(page.matches("curve before").count(), 2);
}

#[test]
fn a_delay_in_the_proxy_shows_outside_and_is_judged() {
    if !python() {
        return;
    }
    let spec = Spec::new(SPEC);
    let output = spec.bench(
        &[1, 4],
        &[
            "--interface",
            "gets",
            "--duration",
            "2s",
            "--trial",
            "delay=30ms",
            "--budget",
            "added_p50<1us",
            "--json",
            "a.json",
        ],
    );
    let document = spec.json("a.json");
    assert_eq!(document["trial"], "delay=30ms");
    let p50 = &document["subjects"][0]["quantiles"]["p50"];
    // However slow the machine is, no mediated call can be quicker than the delay.
    assert!(p50["other_us"].as_f64().unwrap() >= 29_900.0, "{p50}");
    let standing = document["budgets"][0]["standing"].as_str().unwrap();
    let exit = output.status.code().unwrap();
    assert_eq!(
        (standing == "broken", standing == "not decidable"),
        (exit == 1, exit == 4)
    );
    assert!(out(&output).contains("gets added_p50<1us: "));
}

#[test]
fn the_trial_without_an_effect_goes_around_the_proxy_on_both_sides() {
    if !python() {
        return;
    }
    let spec = Spec::new(SPEC);
    let args = [
        "--interface",
        "api.http",
        "--duration",
        "1200ms",
        "--trial",
        "null",
        "--json",
        "a.json",
    ];
    spec.bench(&[0], &args);
    let subject = &spec.json("a.json")["subjects"][0];
    assert_eq!(subject["inside"], serde_json::json!([]));
    assert!(subject["other"]["count"].as_u64().unwrap() > 0);
    // What was put in is no baseline.
    let text = err(&spec.bench(&[2], &["--compare", "a.json"]));
    assert!(text.contains("it was taken with --trial null"), "{text}");
}

/// A server of Python's that tells each connection apart, and does with a request what the spec asks for.
const COUNTING: &str = r#"
import http.server, os, sys, threading, time
lock, seen = threading.Lock(), [0, 0]

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def setup(self):
        super().setup()
        with lock:
            seen[0] += 1
    def do_GET(self):
        with lock:
            seen[1] += 1
            n = seen[1]
        with open("seen", "w") as f:
            f.write("%d %d" % tuple(seen))
        if n == int(os.environ.get("STALL", 0)):
            time.sleep(1)
        if n == int(os.environ.get("DIE", 0)):
            os._exit(7)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *args):
        pass

class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
Server(("127.0.0.1", int(os.environ["FAULTBOX_API_HTTP_PORT"])), Handler).serve_forever()
"#;

/// [`COUNTING`] with this environment, and the workload `gets` on it.
fn counting(env: &str) -> Spec {
    let spec = Spec::new(&format!(
        r#"
api = service("api", "python3", interface("http", "http", 0), args = ["server.py"],
    env = {{{env}}}, healthcheck = ready(interface="http", timeout="60s"),
)
def get():
    return api.http.get(path="/")
workload("gets", get, rate=50, target=api.http)
"#
    ));
    fs::write(spec.dir().join("server.py"), COUNTING).unwrap();
    spec
}

#[test]
fn callers_keep_their_connections_from_block_to_block() {
    if !python() {
        return;
    }
    let spec = counting("");
    let args = [
        "--duration",
        "2400ms",
        "--json",
        "a.json",
        "--budget",
        "added_p50<1h",
    ];
    let text = out(&spec.bench(&[0, 4], &args));
    let seen = fs::read_to_string(spec.dir().join("seen")).unwrap();
    let (connections, calls) = seen.split_once(' ').unwrap();
    let (connections, calls): (u32, u32) = (connections.parse().unwrap(), calls.parse().unwrap());
    // 24 blocks and more of two or more calls each; a connection for each block would be as many as blocks at least.
    assert!(calls > 100 && connections < 24, "{connections} for {calls}");
    let document = spec.json("a.json");
    let subject = &document["subjects"][0];
    assert_eq!(subject["label"], "api.http (gets)");
    assert_eq!(document["budgets"][0]["subject"], "api.http (gets)");
    assert!(subject["generator"]["cpu_us"].as_f64().unwrap() > 0.0);
    assert!(subject["generator"]["idle_rate"].as_f64().unwrap() > 0.0);
    assert!(text.contains("generator: "), "{text}");
    // The mean rate is the stated one, by the side's own clock.
    for side in ["direct", "mediated"] {
        let blocks = subject["blocks"].as_array().unwrap();
        let mine: Vec<&Value> = blocks.iter().filter(|b| b["side"] == side).collect();
        let planned = mine.len() as f64 * 0.05;
        let overrun: f64 = mine
            .iter()
            .map(|b| b["overrun_ms"].as_f64().unwrap() / 1e3)
            .sum();
        let calls: u64 = mine.iter().map(|b| b["count"].as_u64().unwrap()).sum();
        let due = (planned + overrun) * 50.0;
        assert!(
            (calls as f64 - due).abs() <= 2.0,
            "{side}: {calls} of {due}"
        );
    }
}

#[test]
fn a_stall_is_seen_by_every_call_that_was_due_in_it() {
    if !python() {
        return;
    }
    let spec = counting(r#""STALL": "60""#);
    let args = [
        "--duration",
        "2400ms",
        "--connections",
        "1",
        "--rate",
        "50",
        "--json",
        "a.json",
    ];
    // The only caller of a side waits, and with it all calls that are due.
    let text = out(&spec.bench(&[0], &args));
    let document = spec.json("a.json");
    let blocks = document["subjects"][0]["blocks"].as_array().unwrap();
    let stalled = blocks.iter().max_by(|a, b| {
        let overrun = |v: &Value| v["overrun_ms"].as_f64().unwrap();
        overrun(a).total_cmp(&overrun(b))
    });
    let stalled = stalled.unwrap();
    // A second at 50 a second, and not the two or three calls of a block.
    assert!(stalled["count"].as_u64().unwrap() >= 40, "{stalled}");
    assert!(stalled["p50_us"].as_f64().unwrap() > 100_000.0, "{stalled}");
    assert_eq!(stalled["kept_rate"], false);
    assert!(text.contains("the rate was not kept in"), "{text}");
}

#[test]
fn a_service_that_dies_is_named_and_fails_the_bench() {
    if !python() {
        return;
    }
    let spec = counting(r#""DIE": "80""#);
    let files = ["--json", "a.json", "--html", "a.html"];
    let text = out(&spec.bench(&[1], &[&["--duration", "4s"][..], &files].concat()));
    let said = "api did not live to the end of the bench: it exited with status 7";
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(flat.contains(said), "{text}");
    let error = spec.json("a.json")["subjects"][0]["error"].clone();
    assert!(error.as_str().unwrap().contains(said), "{error}");
    let page = fs::read_to_string(spec.dir().join("a.html")).unwrap();
    assert!(page.contains(said), "{page}");
}

#[test]
fn a_service_is_measured_in_all_states_or_told_why_not() {
    if !python() {
        return;
    }
    let spec = Spec::new(SPEC);
    let output = spec.bench(
        &[0, 1, 3, 4],
        &[
            "--interface",
            "api.http",
            "--duration",
            "1200ms",
            "--syscalls=write",
            "--budget",
            "decision_p50<10s",
            "--json",
            "a.json",
            "--html",
            "a.html",
        ],
    );
    let (text, document) = (out(&output), spec.json("a.json"));
    let subjects = document["subjects"].as_array().unwrap();
    let skipped = document["skipped"].to_string();
    for state in ["traced", "unmatched", "armed"] {
        let sides = serde_json::json!(["native", state]);
        let Some(subject) = subjects.iter().find(|s| s["sides"] == sides) else {
            let name = format!("api.http {state}");
            assert!(skipped.contains(&name), "{state} is nowhere: {skipped}");
            eprintln!("NOT TESTED: {state} cannot be had here: {skipped}");
            continue;
        };
        assert_eq!(subject["error"], Value::Null, "{text}");
        assert_eq!(subject["blocks"].as_array().unwrap().len(), 24);
        assert_eq!(subject["other"]["failed"], 0, "{state}: {text}");
        let trapped = subject["inside"][0]["count"].as_u64().unwrap_or(0);
        assert_eq!(trapped > 0, state != "traced", "{state}: {trapped}");
        if state != "traced" {
            assert_eq!(subject["trapped"], "write (asked for)");
        }
        assert!(text.contains(&format!("{state} p50")), "{text}");
    }
    for budget in document["budgets"].as_array().unwrap() {
        assert_ne!(budget["standing"], "broken", "{budget}");
    }
    let text = err(&spec.bench(&[2], &["--syscalls=wirte"]));
    assert!(text.contains("did you mean `write`?"), "{text}");
}

#[test]
fn what_is_trapped_is_what_the_spec_declares() {
    if !python() {
        return;
    }
    let spec = Spec::new(&format!(
        "{SPEC}\nfull = fault_assumption(\"full\", target=api, fsync=deny(\"EIO\"))\n"
    ));
    let files = ["--json", "a.json", "--trial", "null"];
    let args = [
        "--interface",
        "api.http",
        "--duration",
        "600ms",
        "--syscalls",
    ];
    spec.bench(&[0, 4], &[&args[..], &files].concat());
    let document = spec.json("a.json");
    let subjects = document["subjects"].as_array().unwrap();
    for subject in subjects.iter().filter(|s| s["trapped"].is_string()) {
        let trapped = subject["trapped"].as_str().unwrap();
        assert!(
            trapped.starts_with("fsync (what the spec's faults name"),
            "{trapped}"
        );
        // The trial without an effect leaves every block native.
        assert_eq!(subject["inside"], serde_json::json!([]));
    }
}

#[test]
fn what_fails_is_not_measured_as_if_it_were_fast() {
    if !python() {
        return;
    }
    let spec = Spec::new(SPEC);
    let args = [
        "--interface",
        "lost",
        "--duration",
        "1200ms",
        "--budget",
        "added_p50<1s",
    ];
    let text = out(&spec.bench(&[1], &args));
    assert!(text.contains("every call failed: 404"), "{text}");
    assert!(text.contains("lost added_p50<1s: not decidable"), "{text}");
}

#[test]
fn what_cannot_be_measured_is_said_before_anything_runs() {
    let spec = Spec::new(SPEC);
    let text = err(&spec.bench(&[2], &["--interface", "api.htp"]));
    assert!(text.contains("did you mean api.http?"), "{text}");
    let text = err(&spec.bench(&[2], &["--interface", "api.raw"]));
    assert!(text.contains("has nothing to measure"), "{text}");
    let text = err(&spec.bench(&[2], &["--budget", "p99<1ms"]));
    assert!(text.contains("`p99` is not measured"), "{text}");
    let text = err(&spec.bench(&[2], &["--compare", "faultbox.star"]));
    assert!(text.contains("it is no JSON document"), "{text}");
    let text = err(&spec.bench(&[2], &["--compare", "nowhere.json"]));
    assert!(text.contains("it cannot be read"), "{text}");
    for (flag, value) in [
        ("--rate", "0"),
        ("--rate", "fast"),
        ("--connections", "0"),
        ("--connections", "5000"),
        ("--duration", "1ms"),
        ("--duration", "soon"),
        ("--trial", "luck"),
    ] {
        spec.bench(&[2], &[flag, value]);
    }
    let text = err(&spec.bench(&[2], &["--interface", ""]));
    assert!(text.contains("the name is empty"), "{text}");
    let text = err(&spec.bench(&[2], &["--budget", "added_max<1ms"]));
    assert!(text.contains("a maximum is a single call"), "{text}");
    // The least blocks would have to be longer.
    let slow = ["--interface", "api.http", "--rate", "0.001"];
    let text = err(&spec.bench(&[2], &slow));
    assert!(text.contains("less than one call"), "{text}");
    assert!(text.contains("--duration 24000s"), "{text}");
    for (path, why) in [("no/a.json", "no such file"), (".", "is a directory")] {
        for flag in ["--json", "--html"] {
            let text = err(&spec.bench(&[3], &[flag, path]));
            assert!(
                text.contains(why) && text.contains("nothing was run"),
                "{text}"
            );
        }
    }
    for device in ["/dev/zero", "."] {
        let text = err(&spec.bench(&[2], &["--compare", device]));
        assert!(text.contains("no regular file"), "{text}");
    }
    let fifo = spec.dir().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let text = err(&spec.bench(&[2], &["--compare", "fifo"]));
    assert!(text.contains("no regular file"), "{text}");
    let text = err(&Spec::new("x = 1\n").bench(&[2], &[]));
    assert!(
        text.contains("declare a service with an interface"),
        "{text}"
    );
}

#[test]
fn declared_loads_are_a_part_of_the_plan() {
    let spec = Spec::new(SPEC);
    let text = out(&spec.command(&["check"], &[0], &[]));
    assert!(
        text.contains("workloads\n  gets  2 at a time\n  lost  50 a second"),
        "{text}"
    );
    let text = out(&spec.command(&["check"], &[0], &["--format", "json"]));
    let plan: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(plan["workloads"][1]["rate"], 50.0);
    assert_eq!(plan["workloads"][0]["connections"], 2);
}

#[test]
fn a_test_run_that_breaks_its_budget_fails_though_its_tests_passed() {
    if !python() {
        return;
    }
    let spec = Spec::new(SPEC);
    let budgets = [
        "--overhead-budget",
        "added_max<1ns",
        "--overhead-budget",
        "added_p50<1h",
    ];
    let text = out(&spec.command(&["test"], &[1], &budgets));
    // Of how many, the report may not say yet: the proxy counts a request after its answer has arrived.
    assert!(
        text.contains("added_max<1ns: BROKEN\n  api.http: max of "),
        "{text}"
    );
    assert!(text.contains("added_p50<1h: held"), "{text}");
    assert!(text.contains("1 test: 1 passed"), "{text}");
}

#[test]
fn a_topology_that_does_not_come_up_is_told_with_its_log() {
    let spec = Spec::new(
        "x = service(\"x\", \"sh\", interface(\"http\", \"http\", 0), args=[\"-c\", \"echo no room here; exit 3\"], healthcheck=ready())\n",
    );
    let text = err(&spec.bench(&[1], &[]));
    assert!(text.contains("exited with status 3"), "{text}");
    assert!(text.contains("no room here"), "{text}");
}
