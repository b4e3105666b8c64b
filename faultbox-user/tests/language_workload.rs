//! `workload(...)` against a host that answers at once: who is called how often, and what is counted.

mod common;

use std::sync::Arc;

use common::{Recorder, toys};
use faultbox::plan::Outcome;
use faultbox::spec::{BodyVerdict, LoadedSpec, PlanPorts, Transcript};
use faultbox_contract::Response;

const TOPOLOGY: &str = r#"
db = service("db", "/bin/true", interface("pg", "postgres", 5432))
api = service("api", "/bin/true", interface("http", "http", 8080))

def total(r):
    return [sum_of([t.count for t in r.timeline]), sum_of([t.errors for t in r.timeline])]

def sum_of(numbers):
    n = 0
    for x in numbers:
        n += x
    return n
"#;

fn load(text: &str) -> (LoadedSpec, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spec.star");
    std::fs::write(&path, format!("{TOPOLOGY}{text}")).unwrap();
    let loaded = LoadedSpec::load_with(&path, Arc::new(PlanPorts::default()), toys)
        .unwrap_or_else(|e| panic!("{:#?}", e.diagnostics));
    (loaded, folder)
}

fn run(text: &str, host: Recorder) -> (BodyVerdict, Arc<Recorder>) {
    let (spec, _folder) = load(text);
    let host = Arc::new(host);
    let verdict = spec.run("test_it", host.clone(), &Transcript::default());
    (verdict, host)
}

#[track_caller]
fn passes(text: &str, host: Recorder) -> (BodyVerdict, Arc<Recorder>) {
    let (verdict, host) = run(text, host);
    assert_eq!(verdict.outcome, Outcome::Passed, "{:#?}", verdict.reason);
    (verdict, host)
}

/// A host whose `/bad` answers 503 and whose `/refused` cannot be reached.
fn failing() -> Recorder {
    let host = Recorder::default();
    host.reply(
        "\"/bad\"",
        Response {
            ok: false,
            status: 503,
            ..Response::default()
        },
    );
    host.reply(
        "\"/refused\"",
        Response::failure("ECONNREFUSED", "nobody listens"),
    );
    host
}

#[test]
fn callers_of_a_closed_loop_overlap() {
    // Each call waits until three are in flight: it would hang if they came one after the other. The load lasts until the last caller has
    // had a turn on a loaded machine, too; the pause keeps the others from calling without end meanwhile.
    passes(
        r#"
def meet():
    r = api.get(path="/meet")
    sleep("500ms")
    return r

def test_it():
    r = workload(meet, connections=3, duration="5s")
    assert_true(r.ok >= 3)
    assert_eq(r.failed, 0)
    assert_eq(r.offered, None)
"#,
        Recorder::meeting(3),
    );
    passes(
        r#"
def test_it():
    path = "/meet"
    r = workload(lambda: [api.get(path=path), sleep("500ms")][0], connections=3, duration="5s")
    assert_true(r.ok >= 3)
"#,
        Recorder::meeting(3),
    );
}

#[test]
fn an_open_loop_accounts_for_every_call_that_was_due() {
    let (verdict, host) = passes(
        r#"
def get():
    return api.get(path="/x")

def test_it():
    r = workload(get, rate=200, duration="500ms", interval="100ms")
    assert_eq(r.count, 100)
    assert_eq(r.offered, 200)
    assert_eq(r.ok + r.unsent, 100)
    assert_eq(len(r.timeline), 5)
    assert_eq([t.start for t in r.timeline], [0.0, 0.1, 0.2, 0.3, 0.4])
    assert_eq([t.count for t in r.timeline], [20, 20, 20, 20, 20])
    assert_true(all([t.time >= r.began for t in r.timeline]))
    assert_true(r.p50 <= r.p90 and r.p90 <= r.p99 and r.p99 <= r.p99_9 and r.p99_9 <= r.max)
    print(r)
    return r
"#,
        Recorder::default(),
    );
    let sent = host.calls().len() as u64;
    let result = &verdict.result;
    assert_eq!(result["count"], 100);
    assert_eq!(
        sent,
        result["count"].as_u64().unwrap() - result["unsent"].as_u64().unwrap()
    );
    assert_eq!(result["timeline"].as_array().unwrap().len(), 5);
}

#[test]
fn failures_are_counted_by_what_they_are() {
    let (verdict, _) = passes(
        r#"
def one(path):
    # Few calls in a load that lasts until its caller has had a turn on a loaded machine, too.
    sleep("200ms")
    r = api.get(path=path)
    if path == "/odd":
        assert_eq(r.status, 201)
    if path == "/none":
        return r.data["missing"]
    if path == "/false":
        return False
    if path == "/fail":
        fail("no order")
    return r

def bad(): return one("/bad")
def refused(): return one("/refused")
def odd(): return one("/odd")
def none(): return one("/none")
def false(): return one("/false")
def failed(): return one("/fail")
def fine(): return one("/fine")

def test_it():
    kinds = {}
    for fn in [bad, refused, odd, none, false, failed, fine]:
        r = workload(fn, connections=1, duration="1s")
        assert_eq(r.failed, 0 if fn == fine else r.count)
        assert_eq(total(r), [r.count, r.failed])
        assert_eq(r.ok, r.count - r.failed)
        # Nobody answers to a call that is refused; an error is an answer.
        assert_eq(r.rate == 0, fn == refused)
        kinds[str(fn).split(".")[-1]] = list(r.errors.keys())
    return kinds
"#,
        failing(),
    );
    let kinds = &verdict.result;
    assert_eq!(kinds["bad"], serde_json::json!(["503"]));
    assert_eq!(kinds["refused"], serde_json::json!(["ECONNREFUSED"]));
    assert_eq!(kinds["false"], serde_json::json!(["returned False"]));
    assert_eq!(kinds["fine"], serde_json::json!([]));
    assert_eq!(kinds["failed"], serde_json::json!(["no order"]));
    for name in ["odd", "none"] {
        assert_eq!(kinds[name].as_array().unwrap().len(), 1, "{kinds}");
    }
}

#[test]
fn a_misuse_or_halt_ends_the_load_and_the_test() {
    let (verdict, _) = run(
        "def get(): return api.get(pth=\"/x\")\ndef test_it():\n    workload(get, connections=4, duration=\"20s\")\n",
        Recorder::default(),
    );
    assert_eq!(verdict.outcome, Outcome::Error);
    let reason = verdict.reason.unwrap();
    assert!(
        reason.message.contains("has no keyword `pth`"),
        "{reason:?}"
    );
    let (verdict, _) = run(
        "def test_it():\n    workload(lambda: halt(\"enough\"), rate=10, duration=\"20s\")\n",
        Recorder::default(),
    );
    assert_eq!(verdict.outcome, Outcome::Halted, "{:?}", verdict.reason);
}

#[test]
fn faults_are_in_force_while_it_runs_and_what_it_starts_ends_with_it() {
    let (_, host) = passes(
        r#"
def get(): return api.get(path="/x")
def leak(): fault_start(db, fsync=deny("EIO"))

def test_it():
    r = fault(db, write=deny("EIO"), run=lambda: workload(get, rate=100, duration="50ms"))
    assert_eq(r.count, 5)
    workload(leak, rate=10, duration="100ms")
    api.get(path="/after")
"#,
        Recorder::default(),
    );
    let calls = host.calls();
    assert!(calls[0].starts_with("arm"), "{calls:?}");
    let lifted = calls.iter().position(|c| c.starts_with("lift")).unwrap();
    assert!(
        calls[1..lifted].iter().all(|c| c.contains("/x")),
        "{calls:?}"
    );
    assert!(calls.last().unwrap().contains("/after"), "{calls:?}");
    assert_eq!(
        calls.iter().filter(|c| c.starts_with("arm")).count(),
        calls.iter().filter(|c| c.starts_with("lift")).count(),
        "{calls:?}"
    );
}

#[test]
fn a_load_beside_a_fault_in_parallel() {
    passes(
        r#"
def get(): return api.get(path="/x")

def disturb():
    h = fault_start(db, write=deny("EIO"))
    sleep("30ms")
    fault_stop(h)
    return "healed"

def test_it():
    r, healed = parallel(lambda: workload(get, rate=50, duration="200ms", interval="50ms"), disturb)
    assert_eq(healed, "healed")
    assert_eq(r.count, 10)
    assert_true(all([t.p99 < 20000 for t in r.timeline if t.start >= 0.1]))
"#,
        Recorder::default(),
    );
}

#[test]
fn declared_ones_are_known_by_name() {
    let (spec, _folder) = load(
        "def get(): return api.get(path=\"/x\")\nworkload(\"gets\", get, rate=20, duration=\"2s\", target=api.http)\nworkload(\"more\", get, connections=2)\ndef test_it(): pass\n",
    );
    let names: Vec<String> = spec.workloads().into_iter().map(|w| w.name).collect();
    assert_eq!(names, ["gets", "more"]);
}
