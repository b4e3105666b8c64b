//! What a spec's tests ask of the running test, in which order, and how they end.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Recorder, toys};
use faultbox::events::Untold;
use faultbox::plan::report::Blame;
use faultbox::plan::{Dest, FaultPart, IoUring, Launch, Outcome, ServiceDecl, TestKind};
use faultbox::spec::{BodyVerdict, Host, LoadedSpec, PlanPorts, Transcript};
use faultbox_contract::Response;

/// Keeps the files of a spec while it is used.
struct Spec {
    loaded: LoadedSpec,
    _folder: tempfile::TempDir,
}

fn load_files(files: &[(&str, &str)]) -> Spec {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let path = folder.path().join(files[0].0);
    let loaded = LoadedSpec::load_with(&path, Arc::new(PlanPorts::default()), toys)
        .unwrap_or_else(|e| panic!("{:#?}", e.diagnostics));
    Spec {
        loaded,
        _folder: folder,
    }
}

const TOPOLOGY: &str = r#"
db = service("db", "/bin/true", interface("pg", "postgres", 5432), ops={"wal": op(["write", "fsync"], path="**/pg_wal/**")})
api = service("api", "/bin/true", interface("http", "http", 8080), depends_on=[db])
"#;

fn load(text: &str) -> Spec {
    load_files(&[("spec.star", &format!("{TOPOLOGY}{text}"))])
}

fn run(spec: &Spec, test: &str, host: &Arc<Recorder>) -> (BodyVerdict, Transcript) {
    let transcript = Transcript::default();
    let verdict = spec.loaded.run(test, host.clone(), &transcript);
    (verdict, transcript)
}

#[track_caller]
fn passes(spec: &Spec, test: &str) -> Arc<Recorder> {
    let host = Arc::new(Recorder::default());
    let (verdict, _) = run(spec, test, &host);
    assert_eq!(verdict.outcome, Outcome::Passed, "{:#?}", verdict.reason);
    host
}

fn names(spec: &Spec) -> Vec<&str> {
    spec.loaded
        .tests()
        .iter()
        .map(|t| t.name.as_str())
        .collect()
}

/// The page that the language is made for, letter for letter where it gives letters.
const PAGE: &str = r#"
db = service("db", "/bin/true", interface("pg", "postgres", 5432))
api = service("api", "/bin/true", interface("http", "http", 8080))

def create_order():
    return api.http.post(path="/orders", body={"item": 1})

def get_order():
    return api.http.get(path="/orders/1")

scenario(create_order)
scenario(get_order)

# Syscall level: affects ALL writes by the db process
disk_error = fault_assumption("disk_error",
target = db,
write = deny("EIO"),
)
# Protocol level: affects only INSERT queries to the orders table
insert_fail = fault_assumption("insert_fail",
target = db.pg,
rules = [error(query="INSERT INTO orders*", message="disk full")],
)

# Syscall-level: DB disk is slow
db_slow = fault_assumption("db_slow",
    target = db,
    write = delay("500ms"),
)
# Protocol-level: upstream rate limits POST requests
rate_limited = fault_assumption("rate_limited",
    target = api.http,
    rules = [response(method="POST", path="/orders*", status=429)],
)
# Combined: both active simultaneously
degraded = fault_assumption("degraded",
    faults = [db_slow, rate_limited],
    description = "upstream rate-limited AND local disk slow",
)
# Use in a matrix alongside individual faults
fault_matrix(
    scenarios = [create_order, get_order],
    faults = [db_slow, rate_limited, degraded],
    overrides = {
        (create_order, rate_limited): lambda r: assert_eq(r.status, 429),
        (create_order, degraded): lambda r: assert_eq(r.status, 429),
        (get_order, db_slow): lambda r: assert_true(r.duration_ms > 400),
    },
)
"#;

#[test]
fn the_page() {
    let spec = load_files(&[("faultbox.star", PAGE)]);
    assert_eq!(
        names(&spec),
        [
            "create_order",
            "get_order",
            "matrix_create_order_baseline",
            "matrix_get_order_baseline",
            "matrix_create_order_db_slow",
            "matrix_create_order_rate_limited",
            "matrix_create_order_degraded",
            "matrix_get_order_db_slow",
            "matrix_get_order_rate_limited",
            "matrix_get_order_degraded",
        ]
    );
    let cell = &spec.loaded.tests()[4];
    assert_eq!(
        cell.baseline.as_deref(),
        Some("matrix_create_order_baseline")
    );
    assert_eq!(
        cell.kind,
        TestKind::Cell {
            matrix: 0,
            scenario: "create_order".into(),
            fault: "db_slow".into()
        }
    );
    assert_eq!(cell.timeout, Duration::from_secs(30));
    assert_eq!(spec.loaded.matrices()[0].faults.len(), 3);

    // Both parts of a composed assumption are armed before the scenario runs, and lifted after it.
    let host = Arc::new(Recorder::default());
    host.reply(
        "POST",
        Response {
            status: 200,
            ok: true,
            ..Response::default()
        },
    );
    host.reply(
        "post(",
        Response {
            status: 429,
            ..Response::default()
        },
    );
    let (verdict, transcript) = run(&spec, "matrix_create_order_degraded", &host);
    assert_eq!(verdict.outcome, Outcome::Passed, "{:#?}", verdict.reason);
    assert_eq!(transcript.assertions.load(Ordering::Relaxed), 1);
    assert_eq!(verdict.result["status"], 429);
    assert_eq!(
        host.calls(),
        [
            r#"arm degraded [db: write=delay("500ms"); api.http: response(method="POST", path="/orders*", status=429)]"#,
            r#"api.http.post(path="/orders", body={"item":1})"#,
            "lift degraded",
        ]
    );

    // The override asserts, and its failure points at the spec.
    let (verdict, _) = run(&spec, "matrix_get_order_db_slow", &Arc::default());
    assert_eq!(verdict.outcome, Outcome::Failed);
    let reason = verdict.reason.unwrap();
    assert_eq!(reason.actual.as_deref(), Some("False"));
    let location = reason.location.unwrap();
    assert_eq!(
        location.line.trim(),
        "(get_order, db_slow): lambda r: assert_true(r.duration_ms > 400),"
    );
    let underlined: String = location
        .line
        .chars()
        .skip(location.pos.column as usize - 1)
        .take(location.width as usize)
        .collect();
    assert_eq!(underlined, "assert_true(r.duration_ms > 400)");
    assert!(spec.loaded.declared_syscalls("db").contains("pwritev2"));
    assert!(!spec.loaded.declared_syscalls("db").contains("fsync"));
}

#[test]
fn the_decision_table() {
    let spec = load(
        r#"
a = fault_assumption("a", target=db, write=deny("EIO"))
b = fault_assumption("b", target=db, write=deny("ENOSPC"))
c = fault_assumption("c", target=api, connect=deny("ECONNREFUSED"))
d = fault_assumption("d", target=api, connect=delay("2s"))
e = fault_assumption("e", target=db, fsync=deny("EIO"))
f = fault_assumption("f", target=db.pg, rules=[error(query="INSERT*")])
g = fault_assumption("g", target=api.http, rules=[response(path="/api/*", status=429)])
h = fault_assumption("h", target=api.http, rules=[response(path="/api/v1/orders", status=500)])
i = fault_assumption("i", target=api.http, rules=[delay(path="/search*", delay="2s")])
j = fault_assumption("j", target=db, fsync=deny("EIO", path="**/pg_wal/**"))
k = fault_assumption("k", target=db, write=deny("ENOSPC", on="file"))
l = fault_assumption("l", target=db, wal=deny("EIO"))
def test_all():
    fault_all([a, b, c, d, e, f, g, h, i, j, k, l], run=lambda: 1)
"#,
    );
    let calls = passes(&spec, "test_all").calls();
    assert_eq!(calls.len(), 24);
    assert_eq!(calls[2], r#"arm c [api: connect=deny("ECONNREFUSED")]"#);
    assert_eq!(
        calls[8],
        r#"arm i [api.http: delay(path="/search*", delay="2s")]"#
    );
    assert_eq!(calls[12], "lift l");
    assert_eq!(calls[23], "lift a");
}

#[test]
fn faults_stack_and_scopes_remove_what_they_applied() {
    let spec = load(
        r#"
slow = fault_assumption("slow", target=db, write=delay("10ms"))
def inner():
    return fault(db, write=deny("EIO"), run=lambda: db.query("SELECT 1").body)
def apply(f, fn):
    return fault(f, run=fn)
def test_nested():
    assert_eq(apply(slow, inner), "hello")
    for q in ["INSERT*", "UPDATE*"]:
        fault(db.pg, error(query=q, code=53100), delay("1ms"), run=lambda: None)
def test_raises():
    fault(slow, run=lambda: fail("no"))
def test_handles():
    h = fault_start(db, fsync=deny("EIO", nth=2, label="second"))
    g = fault_start(slow)
    assert_eq(h.hits, 10)
    fault_stop(db)
    assert_eq(g.hits, 20)
    h = fault_start(db.pg, drop(probability="20%", source=api))
    fault_stop(h)
    assert_raises(lambda: fault_stop(h), contains="stopped already")
    assert_raises(lambda: fault_stop(api), contains="no started fault is in force")
    fault_start(slow)
"#,
    );
    assert_eq!(
        passes(&spec, "test_nested").calls(),
        [
            r#"arm slow [db: write=delay("10ms")]"#,
            r#"arm db.write [db: write=deny("EIO")]"#,
            r#"db.pg.query(sql="SELECT 1")"#,
            "lift db.write",
            "lift slow",
            r#"arm db.pg.error+delay [db.pg: error(query="INSERT*", code=53100); db.pg: delay(delay="1ms")]"#,
            "lift db.pg.error+delay",
            r#"arm db.pg.error+delay [db.pg: error(query="UPDATE*", code=53100); db.pg: delay(delay="1ms")]"#,
            "lift db.pg.error+delay",
        ]
    );
    let host = Arc::new(Recorder::default());
    let (verdict, _) = run(&spec, "test_raises", &host);
    assert_eq!(verdict.outcome, Outcome::Failed);
    assert_eq!(verdict.reason.unwrap().message, "no");
    assert_eq!(
        host.calls().len(),
        2,
        "a fault is lifted when its function raises"
    );
    assert_eq!(
        passes(&spec, "test_handles").calls(),
        [
            r#"arm db.fsync [db: fsync=deny("EIO", nth=2, label="second")]"#,
            r#"arm slow [db: write=delay("10ms")]"#,
            "lift db.fsync",
            "lift slow",
            r#"arm db.pg.drop [db.pg: drop(probability="20%", source=api)]"#,
            "lift db.pg.drop",
            r#"arm slow [db: write=delay("10ms")]"#,
            // Never stopped by the spec, lifted at the test's end.
            "lift slow",
        ]
    );
}

#[test]
fn syscall_rules_mean_what_they_say() {
    /// Keeps what was armed.
    #[derive(Default)]
    struct Keep(Recorder, std::sync::Mutex<Vec<FaultPart>>);
    impl Host for Keep {
        fn arm(
            &self,
            fault: &faultbox::plan::FaultSet,
        ) -> Result<faultbox::spec::ArmId, faultbox::spec::HostError> {
            self.1.lock().unwrap().extend(fault.parts.clone());
            self.0.arm(fault)
        }
        fn lift(&self, id: faultbox::spec::ArmId) {
            self.0.lift(id);
        }
        fn hits(&self, id: faultbox::spec::ArmId) -> u64 {
            self.0.hits(id)
        }
        fn step(
            &self,
            s: &str,
            i: &str,
            c: faultbox_contract::CheckedStep,
        ) -> Result<Response, faultbox::spec::HostError> {
            self.0.step(s, i, c)
        }
        fn process(
            &self,
            s: &str,
            w: faultbox::spec::ProcessFault,
        ) -> Result<(), faultbox::spec::HostError> {
            self.0.process(s, w)
        }
        fn pid(&self, s: &str) -> Option<i32> {
            self.0.pid(s)
        }
        fn events(&self) -> &faultbox::events::EventLog {
            self.0.events()
        }
    }
    let spec = load(
        r#"
def test_x():
    fault(db,
        write=deny("enospc", exact=True, probability="1%", after=3, every=2, times=5, on="socket", dest=api),
        connect=deny("ECONNREFUSED", existing="reset", dest="10.0.0.0/8"),
        send=delay(0.5, jitter="10ms"),
        io_submit=allow(),
        wal=deny("EIO"),
        run=lambda: None)
"#,
    );
    let host = Arc::new(Keep::default());
    let verdict = spec
        .loaded
        .run("test_x", host.clone(), &Transcript::default());
    assert_eq!(verdict.outcome, Outcome::Passed, "{:#?}", verdict.reason);
    let parts = host.1.lock().unwrap();
    let rules: Vec<_> = parts
        .iter()
        .map(|p| match p {
            FaultPart::Syscall { rule, .. } => rule.clone(),
            _ => panic!("only rules on system calls were given"),
        })
        .collect();
    use faultbox::plan::{Existing, FdClass, SyscallAction};
    assert_eq!(rules[0].syscalls, ["write"]);
    assert_eq!(
        rules[0].action,
        SyscallAction::Deny {
            errno: 28,
            name: "ENOSPC"
        }
    );
    assert_eq!(rules[0].on, Some(FdClass::Socket));
    let trigger = &rules[0].trigger;
    assert_eq!(
        (
            trigger.probability,
            trigger.after,
            trigger.every,
            trigger.times
        ),
        (Some(0.01), Some(3), Some(2), Some(5))
    );
    let Some(Dest::Addrs(addrs)) = &rules[0].dest else {
        panic!("{:?}", rules[0].dest);
    };
    assert_eq!(
        addrs.len(),
        2 * 4,
        "the real address and the proxy's, by all names that this machine has"
    );
    assert_eq!(rules[1].existing, Existing::Reset);
    assert!(matches!(rules[1].dest, Some(Dest::Cidr { prefix: 8, .. })));
    assert_eq!(
        rules[2].action,
        SyscallAction::Delay {
            duration: Duration::from_millis(500),
            jitter: Duration::from_millis(10)
        }
    );
    assert_eq!(
        rules[2].syscalls,
        ["sendto", "sendmsg", "sendmmsg", "sendfile"]
    );
    assert_eq!(rules[3].action, SyscallAction::Allow);
    assert!(rules[4].syscalls.contains(&"fdatasync") && rules[4].syscalls.contains(&"writev"));
    assert!(
        rules[4]
            .path
            .as_ref()
            .unwrap()
            .matches("/var/lib/pg_wal/000")
    );
}

#[test]
fn failures_show_both_values_and_the_line() {
    let spec = load(
        r#"
def check(r):
    assert_eq(r.status,
              201, "the order must be created")
def test_helper():
    check(api.post(path="/orders"))
def test_false():
    assert_true(1 == 2)
def test_in():
    assert_in("x", ["y"])
def test_ne():
    assert_ne([1], [1])
def test_raises():
    assert_eq(assert_raises(lambda: fail("oh no"), contains="no"), "oh no")
    assert_raises(lambda: 1 // 0)
    assert_raises(lambda: 1)
def test_error():
    return {}["x"]
def test_attribute():
    return api.get(path="/").stauts
def test_step():
    db.query(sq="SELECT 1")
def test_halt():
    halt("not today")
def test_refused():
    fault(refused, run=lambda: 1)
def test_deep():
    def f(n):
        return f(n + 1)
    f(0)
refused = fault_assumption("refused", target=db, write=deny("EIO"))
"#,
    );
    let reason = |test: &str| {
        let (verdict, transcript) = run(&spec, test, &Arc::default());
        let reason = verdict.reason.expect(test);
        (verdict.outcome, reason, transcript)
    };
    let (outcome, r, transcript) = reason("test_helper");
    assert_eq!(outcome, Outcome::Failed);
    assert_eq!(r.message, "the order must be created");
    assert_eq!(
        (r.expected.as_deref(), r.actual.as_deref()),
        (Some("201"), Some("200"))
    );
    let location = r.location.unwrap();
    assert_eq!(location.line, "    assert_eq(r.status,");
    assert_eq!(
        (location.pos.line, location.pos.column, location.width),
        (6, 5, 19)
    );
    assert_eq!(transcript.assertions.load(Ordering::Relaxed), 1);
    assert_eq!(
        transcript.position.lock().unwrap().as_ref().unwrap().line,
        6
    );

    assert_eq!(reason("test_false").1.actual.as_deref(), Some("False"));
    assert_eq!(reason("test_in").1.actual.as_deref(), Some("[\"y\"]"));
    assert_eq!(
        reason("test_ne").1.expected.as_deref(),
        Some("anything but [1]")
    );
    let (_, r, transcript) = reason("test_raises");
    assert_eq!(r.message, "nothing was raised");
    assert_eq!(r.location.unwrap().pos.line, 19);
    assert_eq!(transcript.assertions.load(Ordering::Relaxed), 4);

    let (outcome, r, _) = reason("test_error");
    assert_eq!((outcome, r.blame), (Outcome::Error, Blame::Test));
    assert_eq!(r.location.unwrap().line.trim(), "return {}[\"x\"]");
    let (_, r, _) = reason("test_attribute");
    assert_eq!(r.message, "a Response has no attribute `stauts`");
    assert!(r.help.unwrap().starts_with("did you mean `status`?"));
    let (outcome, r, _) = reason("test_step");
    assert_eq!(outcome, Outcome::Error);
    assert_eq!(r.message, "step `query` has no keyword `sq`");
    let location = r.location.unwrap();
    assert_eq!((location.pos.column, location.width), (14, 2));
    let (outcome, r, _) = reason("test_halt");
    assert_eq!(
        (outcome, r.message.as_str()),
        (Outcome::Halted, "not today")
    );
    let (outcome, r, _) = reason("test_refused");
    assert_eq!((outcome, r.blame), (Outcome::Error, Blame::Environment));
    assert_eq!(r.help.as_deref(), Some("run as root"));
    let (outcome, r, _) = reason("test_deep");
    assert_eq!(outcome, Outcome::Error);
    assert_eq!(r.message, "the call stack overflows");
}

#[test]
fn expectations() {
    let spec = load(
        r#"
def get():
    return api.get(path="/x")
def none():
    pass
slow = fault_assumption("slow", target=db, write=delay("10ms"))
fault_scenario("success", scenario=get, faults=slow, expect=expect_success())
fault_scenario("error", scenario=get, faults=[slow], expect=expect_error(status=503, code="X"))
fault_scenario("within", scenario=get, expect=expect_error_within(ms=100))
fault_scenario("false", scenario=get, expect=lambda r: r.status == 503)
fault_scenario("nothing", scenario=none, expect=expect_success())
fault_scenario("hang", scenario=get, expect=expect_hang(after="40s"))
fault_scenario("plain", scenario=get, timeout="5s")
"#,
    );
    let outcome = |test: &str, status: i64| {
        let host = Arc::new(Recorder::default());
        host.reply(
            "get(",
            Response {
                ok: status < 400,
                status,
                code: "X".into(),
                ..Response::default()
            },
        );
        run(&spec, test, &host).0
    };
    use Outcome::{Failed, Passed};
    for (test, at_200, at_503) in [
        ("success", Passed, Failed),
        ("error", Failed, Passed),
        ("within", Failed, Passed),
        ("false", Failed, Passed),
        ("nothing", Failed, Failed),
        ("hang", Failed, Failed),
        ("plain", Passed, Passed),
    ] {
        assert_eq!(outcome(test, 200).outcome, at_200, "{test}");
        assert_eq!(outcome(test, 503).outcome, at_503, "{test}");
    }
    assert_eq!(outcome("error", 500).outcome, Failed);
    // Where nobody in the spec called the expectation, the place where it was given is shown.
    let location = outcome("success", 503).reason.unwrap().location.unwrap();
    assert_eq!((location.pos.line, location.width), (10, 16));
    let location = outcome("false", 200).reason.unwrap().location.unwrap();
    assert_eq!((location.pos.line, location.width), (13, 25));
    assert_eq!(
        spec.loaded.expected_hang("hang"),
        Some(Duration::from_secs(40))
    );
    assert_eq!(spec.loaded.expected_hang("plain"), None);
    let timeout = |name: &str| {
        let test = spec.loaded.tests().iter().find(|t| t.name == name);
        test.unwrap().timeout
    };
    assert_eq!(timeout("plain"), Duration::from_secs(5));
    assert!(timeout("hang") > Duration::from_secs(40));
}

#[test]
fn events_of_every_type() {
    let spec = load(
        r#"
def test_x():
    api.get(path="/a")
    db.query("SELECT 1")
    assert_eq(len(events()), 2)
    assert_eq(len(events(type="step", service="a*")), 1)
    assert_eq(len(events(service=db, method="QU*", status=1)), 1)
    assert_eq(len(events(status=2)), 0)
    e = events(where=lambda e: e.service == "db")[0]
    assert_eq((e.seq, e.type, e.method, e.status, e.missing, e.fields["status"]), (2, "step", "query", 1, None, 1))
    assert_true(e.time >= 0)
    assert_eventually(lambda e: e.method == "get")
    assert_never(type="proxy", within="1ms")
    assert_before(first={"service": "api"}, then=lambda e: e.service == "db")
def test_eventually():
    assert_eventually(type="proxy", within="1ms")
def test_never():
    api.get(path="/a")
    assert_never(type="st*")
def test_before():
    db.query("SELECT 1")
    api.get(path="/a")
    assert_before(first={"service": "api"}, then={"service": "db"})
def test_waits():
    def later():
        sleep("30ms")
        api.get(path="/late")
    parallel(later, lambda: assert_eventually(type="step", within="20s"))
"#,
    );
    passes(&spec, "test_x");
    passes(&spec, "test_waits");
    for test in ["test_eventually", "test_never", "test_before"] {
        assert_eq!(
            run(&spec, test, &Arc::default()).0.outcome,
            Outcome::Failed,
            "{test}"
        );
    }
}

/// What was lost, and files of which nobody knows the path, decide nothing.
#[test]
fn what_cannot_be_known_is_inconclusive() {
    let spec = load(
        r#"
def test_never():
    assert_never(service="db", path="/etc/shadow")
def test_never_where():
    assert_never(where=lambda e: e.type == "open" and e.path == "/etc/shadow")
def test_eventually():
    assert_eventually(service="db", path="**/shadow", within="1ms")
def test_before():
    assert_before(first={"service": "db", "path": "*/shadow"}, then={"type": "step"})
def test_list():
    events(path="/etc/sha*")
def test_another_name():
    assert_never(service="db", path="/etc/passwd")
def test_another_service():
    assert_never(service="api", path="/etc/shadow")
def test_another_field():
    assert_never(where=lambda e: e.errno == "EIO")
    assert_eq([e.written for e in events(service="db")], ["../shadow"])
def test_raises():
    assert_raises(lambda: assert_never(service="db", path="/etc/shadow"))
"#,
    );
    let unnamed = || {
        let host = Arc::new(Recorder::default());
        let fields = serde_json::json!({"written": "../shadow", "returned": 3, "pid": 7});
        host.events().record("open", Some("db"), fields);
        host
    };
    for test in [
        "test_never",
        "test_never_where",
        "test_eventually",
        "test_before",
        "test_raises",
    ] {
        let (verdict, _) = run(&spec, test, &unnamed());
        assert_eq!(verdict.outcome, Outcome::Inconclusive, "{test}");
        let message = verdict.reason.unwrap().message;
        assert!(
            message.contains("1 files were opened whose paths"),
            "{message}"
        );
    }
    for test in [
        "test_another_name",
        "test_another_service",
        "test_another_field",
    ] {
        let (verdict, transcript) = run(&spec, test, &unnamed());
        assert_eq!(
            verdict.outcome,
            Outcome::Passed,
            "{test}: {:?}",
            verdict.reason
        );
        assert_eq!(transcript.untold(), Untold::default());
    }
    // A list says nothing by itself; the verdict on the whole test does.
    let (verdict, transcript) = run(&spec, "test_list", &unnamed());
    assert_eq!(verdict.outcome, Outcome::Passed);
    assert_eq!(transcript.untold().paths, 1);

    let host = Arc::new(Recorder::default());
    host.events().lose(3);
    let reason = run(&spec, "test_never", &host).0;
    assert_eq!(reason.outcome, Outcome::Inconclusive);
    let message = reason.reason.unwrap().message;
    assert_eq!(
        message,
        "3 events were lost, so that it never happened cannot be said: 3 could not be kept"
    );
}

/// A connection that failed, and whose errno nobody could tell, may be the one that is meant, if it is connections that are asked for.
#[test]
fn an_errno_that_cannot_be_told_is_no_other() {
    let spec = load(
        r#"
def test_never_where():
    assert_never(type="connect", where=lambda e: e.errno == "ETIMEDOUT")
def test_list():
    events(type="connect", errno="E*")
def test_another_peer():
    assert_never(type="connect", errno="ETIMEDOUT", peer="10.0.0.2:*")
"#,
    );
    let failed = || {
        let host = Arc::new(Recorder::default());
        let fields = serde_json::json!({"ok": false, "peer": "10.0.0.1:9"});
        host.events().record("connect", None, fields);
        host
    };
    for (test, outcome, untold) in [
        ("test_never_where", Outcome::Inconclusive, 0),
        ("test_list", Outcome::Passed, 1),
        ("test_another_peer", Outcome::Passed, 0),
    ] {
        let (verdict, transcript) = run(&spec, test, &failed());
        assert_eq!(verdict.outcome, outcome, "{test}");
        assert_eq!(transcript.untold().errnos, untold, "{test}");
    }
}

/// A path may be meant as it was written or as what it leads to.
#[test]
fn both_paths_of_an_open_are_matched() {
    let spec = load(
        r#"
def test_x():
    assert_eventually(service="db", path="/link/f")
    assert_eventually(service="db", path="/real/*")
    assert_never(path="/other/**")
    assert_eq(len(events(path="/*/f")), 1)
"#,
    );
    let host = Arc::new(Recorder::default());
    let fields = serde_json::json!({"path": "/link/f", "resolved": "/real/f", "returned": 3});
    host.events().record("open", Some("db"), fields);
    let (verdict, _) = run(&spec, "test_x", &host);
    assert_eq!(verdict.outcome, Outcome::Passed, "{:#?}", verdict.reason);
}

/// How each test ends that is refused, and with what.
#[track_caller]
fn refused(spec: &Spec, test: &str, why: &str) {
    let reason = run(spec, test, &Arc::default()).0.reason;
    let reason = reason.unwrap_or_else(|| panic!("{test} passed"));
    assert!(reason.message.contains(why), "{test}: {reason:#?}");
}

#[test]
fn filters_that_can_never_select_are_refused() {
    let spec = load(
        r#"
told = service("told", "/bin/true", observe=["stdout"])
pay = mock_service("pay", interface("web", "http", 0))
def test_stderr(): assert_never(type="stderr")
def test_streams(): events(type="std*", service="db")
def test_other_stream(): assert_eventually(type="stderr", service=told)
def test_observed():
    assert_never(type="stdout")
    assert_never(type="std*", line="panic*")
    assert_never(where=lambda e: e.type == "stderr")
def test_field(): assert_never(type="step", line="*")
def test_fields(): assert_never(type="service_*", line="*")
def test_protocol(): assert_never(type="step", service="db", path="*")
def test_mock(): assert_called(pay.web, key="k", times=0)
def test_mock_event(): assert_never(type="mock_call", service="api", path="/x")
def test_type(): calls(pay, type="step")
def test_known():
    assert_called(pay.web, method="get", path="/x", times=0)
    assert_called(pay, status=200, times=0)
    assert_never(type="mock_call", service=pay, headers={})
    assert_never(type="step", service="api", path="/x")
    assert_never(type="{step,stdout}", line="x")
    assert_never(line="x")
"#,
    );
    passes(&spec, "test_observed");
    passes(&spec, "test_known");
    for (test, why) in [
        ("test_stderr", "nobody observes `stderr` of any service"),
        ("test_streams", "of service `db`"),
        ("test_other_stream", "of service `told`"),
        ("test_field", "no event of type `step` has a field `line`"),
        ("test_fields", "no event of type `service_*` has"),
        (
            "test_protocol",
            "no event of type `step` has a field `path`",
        ),
        ("test_mock", "no call of pay.web has a field `key`"),
        (
            "test_mock_event",
            "no event of type `mock_call` has a field `path`",
        ),
        ("test_type", "a call is an event of type `mock_call`"),
    ] {
        refused(&spec, test, why);
    }
}

#[test]
fn an_expectation_that_judges_nothing_is_refused() {
    let spec = load(
        r#"
def works(): return api.get(path="/a")
test("lazy", body=works, expect=lambda r: expect_error(status=500))
test("function", body=works, expect=lambda r: works)
test("called", body=works, expect=lambda r: expect_success()(r))
"#,
    );
    refused(
        &spec,
        "lazy",
        "the expectation returned expect_error(status=500) and judged nothing",
    );
    refused(&spec, "function", "judged nothing");
    passes(&spec, "called");
}

#[test]
fn values_reach_a_step_as_they_are_or_not_at_all() {
    let spec = load(
        r#"
def test_large(): api.post(path="/", body={"ids": [18446744073709551615, b"text"]})
def test_bytes(): api.post(path="/", body={"ids": [1, b"\xff"]})
def test_status(): fault(api.http, error(status=18446744073709551615), run=lambda: 1)
def test_too_large(): api.post(path="/", body=[18446744073709551616])
"#,
    );
    let host = passes(&spec, "test_large");
    let calls = host.calls().join("\n");
    let sent = r#"{"ids":[18446744073709551615,"text"]}"#;
    assert!(calls.contains(sent), "{calls}");
    let why = "bytes in a list or a dict must be UTF-8 text (at [\"ids\"][1])";
    refused(&spec, "test_bytes", why);
    refused(
        &spec,
        "test_too_large",
        "does not fit into 64 bits (at [0])",
    );
    let why = "expected int in 100..999, got 18446744073709551615";
    refused(&spec, "test_status", why);
}

#[test]
fn branches_overlap_and_keep_their_order() {
    let spec = load(
        r#"
def meet(n):
    def go():
        r = api.get(path="/meet")
        return [n, r.status, db.pid]
    return go
def test_meet():
    shared = []
    def note():
        for i in range(50):
            shared.append(i)
        sleep("1ms")
        shared.append(parallel(lambda: 1, lambda: 2))
        return len(shared)
    results = parallel(meet(1), meet(2), meet(3), note)
    assert_eq(results[:3], [[1, 200, 4242], [2, 200, 4242], [3, 200, 4242]])
    assert_eq(results[3], 51)
    assert_eq(shared[50], [1, 2])
    print("met", len(results))
    return results
def test_first_error():
    parallel(lambda: sleep("5ms"), lambda: fail("second"), lambda: fail("third"))
"#,
    );
    let host = Arc::new(Recorder::meeting(3));
    let (verdict, transcript) = run(&spec, "test_meet", &host);
    assert_eq!(verdict.outcome, Outcome::Passed, "{:#?}", verdict.reason);
    assert_eq!(verdict.result[2][0], 3);
    assert_eq!(*transcript.prints.lock().unwrap(), ["met 4"]);
    let (verdict, _) = run(&spec, "test_first_error", &Arc::default());
    assert_eq!(verdict.reason.unwrap().message, "second");
}

#[test]
fn many_branches_allocate_on_one_heap() {
    let spec = load(
        r#"
def work():
    out = []
    for i in range(200):
        out.append({"n": i, "text": "x" * 100 + str(i)})
        if i % 50 == 0:
            sleep(0)
    return json.encode(out)
def test_x():
    results = parallel(*[work for _ in range(16)])
    for r in results:
        assert_eq(r, results[0])
    assert_eq(len(json.decode(results[15])), 200)
"#,
    );
    passes(&spec, "test_x");
}

#[test]
fn topology() {
    let spec = load(
        r#"
free = interface("main", "tcp", 0)
web = service("web", "sh", free, interface("default", "http", 9000, proxy=False),
    args=["-p", str(free.port), 5], env={"DB": db.pg.addr, "PORT": db.pg.port, "RATE": 0.5},
    depends_on=["api"], healthcheck=ready(timeout="3s"), observe=["stdout", observe.stderr()],
    stop_signal="SIGINT", stop_timeout=5, user=1000, io_uring="allow", reuse=True,
    seed=lambda: db.exec("CREATE TABLE t (a int)"))
ext = service("ext", interface("pg", "postgresql", 5433, host="localhost"), remote=True)
far = service("far", interface("pg", "postgres", 5434), interface("admin", "http", 80, host="127.0.0.9"), remote="127.0.0.8")
near = service("near", interface("pg", "postgres", 5435), remote="localhost:5435")
missing = service(name="missing", binary="./no/such/program")
def test_x():
    assert_eq(far.pg.internal_addr, "127.0.0.8:5434")
    assert_eq(db.pg.proxy_addr, db.pg.addr)
    assert_ne(db.pg.internal_addr, db.pg.addr)
    assert_eq(db.pg.internal_addr, "127.0.0.1:5432")
    assert_eq(web.default.addr, "127.0.0.1:9000")
    assert_eq(web.get(path="/").status, 200)
    assert_eq((db.name, db.pid, web.pid), ("db", 4242, None))
    assert_true(hasattr(db, "pg") and not hasattr(db, "pgg"))
    pause(db)
    resume(db)
    kill(db)
    restart(db)
"#,
    );
    let topology = spec.loaded.topology();
    let web = topology.service("web").unwrap();
    assert_eq!(
        web.args,
        ["-p", &web.interfaces[0].addr.port().to_string(), "5"]
    );
    assert!(web.interfaces[0].addr.port() > 0);
    let proxy = topology.service("db").unwrap().interfaces[0]
        .proxy_addr
        .unwrap();
    assert_eq!(web.env["DB"], proxy.to_string());
    assert_eq!(web.env["PORT"], proxy.port().to_string());
    assert_eq!(web.env["RATE"], "0.5");
    assert_eq!(web.observe, ["stdout", "stderr"]);
    assert_eq!((web.stop_signal, web.user.as_deref()), (2, Some("1000")));
    assert_eq!(web.io_uring, IoUring::Allow);
    assert!(matches!(&web.launch, Launch::Binary { resolved: Some(p), .. } if p.is_absolute()));
    assert!(matches!(
        &topology.service("missing").unwrap().launch,
        Launch::Binary { resolved: None, .. }
    ));
    let ext = topology.service("ext").unwrap();
    assert_eq!(
        (&ext.launch, ext.interfaces[0].protocol),
        (&Launch::Remote, "postgres")
    );
    assert_eq!(ext.interfaces[0].addr.to_string(), "127.0.0.1:5433");
    let far = topology.service("far").unwrap();
    let addrs = |s: &ServiceDecl| {
        s.interfaces
            .iter()
            .map(|i| i.addr.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(addrs(far), ["127.0.0.8:5434", "127.0.0.9:80"]);
    assert_eq!(addrs(topology.service("near").unwrap()), ["127.0.0.1:5435"]);
    assert_eq!(spec.loaded.notes().len(), 1, "{:?}", spec.loaded.notes());
    assert!(spec.loaded.notes()[0].contains("reuse=True has no effect"));
    let calls = passes(&spec, "test_x").calls();
    assert_eq!(
        calls[1..],
        ["Pause db", "Resume db", "Kill db", "Restart db"]
    );

    let host = Arc::new(Recorder::default());
    let transcript = Transcript::default();
    spec.loaded
        .seed_service("web", host.clone(), &transcript)
        .unwrap();
    spec.loaded
        .seed_service("db", host.clone(), &transcript)
        .unwrap();
    assert_eq!(
        host.calls(),
        [r#"db.pg.exec(sql="CREATE TABLE t (a int)")"#]
    );
}

#[test]
fn dialect_and_loads() {
    let spec = load_files(&[
        (
            "main.star",
            r#"
load("lib.star", "db", "helper", q="query")
load("./lib.star", again="db")
load("@faultbox/recipes/postgres.star", "postgres")
load("@faultbox/recipes/http.star", "http_faults")

full = fault_assumption("full", target=db.pg, rules=[postgres.disk_full(query="INSERT*")])
cases = []
for n in range(2):
    if n:
        cases.append(n)
config = struct(path="/x", n=3)

def add(a: int, b: int = 2, *, c: int = 0) -> int:
    return a + b + c

def test_dialect():
    x = 5
    assert_eq(f"{x} is {x}", "5 is 5")
    assert_eq(add(1, c=4), 7)
    assert_eq(json.decode('{"a": [1]}')["a"], [1])
    assert_eq(config.n, 3)
    assert_eq(cases, [1])
    assert_eq(again, db)
    fault(full, run=lambda: helper(q))

test_alias = lambda: None

def test_frozen():
    cases.append(2)

def test_later():
    def nested_test_function():
        """
def test_in_a_docstring():
"""
    pass

def test_recipe_fails():
    postgres.slow(1, 2, 3)
test("named", setup=lambda: print("setup"), body=lambda: db.query("SELECT 1"), expect=lambda r: r.ok, timeout="1m")
"#,
        ),
        (
            "lib.star",
            r#"
db = service("db", "/bin/true", interface("pg", "postgres", 5432))
query = "SELECT 1"
def helper(sql):
    return db.query(sql)
def from_lib():
    return helper(query)
scenario(from_lib)
def test_not_mine():
    pass
"#,
        ),
    ]);
    assert_eq!(
        names(&spec),
        [
            "from_lib",
            "test_dialect",
            "test_alias",
            "test_frozen",
            "test_later",
            "test_recipe_fails",
            "named"
        ]
    );
    assert_eq!(
        passes(&spec, "test_dialect").calls()[0],
        r#"arm full [db.pg: error(query="INSERT*", code="53100", message="could not extend file: No space left on device")]"#
    );
    passes(&spec, "from_lib");
    let (verdict, _) = run(&spec, "test_frozen", &Arc::default());
    assert_eq!(verdict.outcome, Outcome::Error);
    let (verdict, transcript) = run(&spec, "named", &Arc::default());
    assert_eq!(verdict.outcome, Outcome::Passed, "{:?}", verdict.reason);
    assert_eq!(*transcript.prints.lock().unwrap(), ["setup"]);
    assert_eq!(transcript.assertions.load(Ordering::Relaxed), 1);
    // An error inside a shipped file is shown where the user called it.
    let (verdict, _) = run(&spec, "test_recipe_fails", &Arc::default());
    let location = verdict.reason.unwrap().location.unwrap();
    assert!(location.pos.file.ends_with("main.star"), "{location:?}");
}

#[test]
fn matrices() {
    let spec = load(
        r#"
def a():
    return api.get(path="/a")
def b():
    fail("b always raises")
x = fault_assumption("x", target=db, write=deny("EIO"))
y = fault_assumption("y", target=db, read=deny("EIO"))
fault_matrix(scenarios=[a, b], faults=[x, y], exclude=[(b, y)], default_expect=expect_success(),
    overrides={(a, y): lambda r: False}, require_faults_fire=True, timeout="3s")
fault_matrix(scenarios=[a], faults=[fault_assumption("z", faults=[x, y])], baseline=False)
"#,
    );
    assert_eq!(
        names(&spec),
        [
            "matrix_a_baseline",
            "matrix_b_baseline",
            "matrix_a_x",
            "matrix_a_y",
            "matrix_b_x",
            "matrix_a_z"
        ]
    );
    let tests = spec.loaded.tests();
    assert!(!tests[0].require_faults_fire && tests[2].require_faults_fire);
    assert_eq!(tests[5].baseline, None);
    assert_eq!(tests[2].timeout, Duration::from_secs(3));
    passes(&spec, "matrix_a_baseline");
    passes(&spec, "matrix_a_x");
    for (test, message) in [
        ("matrix_b_baseline", "b always raises"),
        ("matrix_a_y", "the expectation returned False"),
        ("matrix_b_x", "b always raises"),
    ] {
        let (verdict, _) = run(&spec, test, &Arc::default());
        assert_eq!(verdict.outcome, Outcome::Failed, "{test}");
        assert_eq!(verdict.reason.unwrap().message, message, "{test}");
    }
    let calls = passes(&spec, "matrix_a_z").calls();
    assert_eq!(
        calls[0],
        r#"arm z [db: write=deny("EIO"); db: read=deny("EIO")]"#
    );
}

/// The shipped recipes, against the protocols that ship with them.
#[test]
fn recipes_fit_the_fleet() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spec.star");
    let mut text = String::from(
        r#"
load("@faultbox/recipes/http.star", "http_faults")
api = service("api", "/bin/true", interface("http", "http", 8080))
for name in dir(http_faults):
    rule = getattr(http_faults, name)(path = "/orders/*", times = 1)
    fault_assumption("http_" + name, target = api.http, rules = [rule])
"#,
    );
    text.push_str(
        r#"
load("@faultbox/recipes/udp.star", "udp_faults")
load("@faultbox/recipes/dns.star", "dns_faults")
net = service("net", "/bin/true", interface("raw", "udp", 5353), interface("dns", "dns", 5354))
for name in dir(udp_faults):
    rule = getattr(udp_faults, name)(prefix = "x", times = 1)
    fault_assumption("udp_" + name, target = net.raw, rules = [rule])
for name in dir(dns_faults):
    rule = getattr(dns_faults, name)(name = "*.example.com", type = "A", times = 1)
    fault_assumption("dns_" + name, target = net.dns, rules = [rule])
"#,
    );
    if faultbox_fleet::find("postgres").is_some() {
        text.push_str(
            r#"
load("@faultbox/recipes/postgres.star", "postgres")
db = service("db", "/bin/true", interface("pg", "postgres", 5432))
logins = ["too_many_connections", "starting_up", "access_denied"]
for name in dir(postgres):
    to = {"user": "app"} if name in logins else {"query": "INSERT INTO orders*"}
    rule = getattr(postgres, name)(times = 1, **to)
    fault_assumption("postgres_" + name, target = db.pg, rules = [rule])
fault_assumption("standby", target = db.pg, rules = [postgres.read_only()])
load("@faultbox/recipes/mysql.star", "mysql")
my = service("my", "/bin/true", interface("main", "mysql", 3306))
fault_assumption("replica", target = my.main, rules = [mysql.read_only()])
"#,
        );
    }
    text.push_str(
        r#"
load("@faultbox/recipes/redis.star", "redis")
cache = service("cache", "/bin/true", interface("main", "redis", 6379))
for name in dir(redis):
    rule = getattr(redis, name)(key = "cart:*", times = 1)
    fault_assumption("redis_" + name, target = cache.main, rules = [rule])
"#,
    );
    std::fs::write(&path, text).unwrap();
    LoadedSpec::load(&path, Arc::new(PlanPorts::default()))
        .unwrap_or_else(|e| panic!("{:#?}", e.diagnostics));
}

#[test]
fn a_spec_can_be_shared() {
    fn shared<T: Send + Sync>() {}
    shared::<LoadedSpec>();
}
