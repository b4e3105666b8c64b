//! Whole runs of the command: what is on which stream, in which file, and what the process ends with.

mod support;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::golden;

/// A folder with one spec in it.
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

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_faultbox"));
        command
            .args(args)
            .current_dir(self.dir())
            .stdin(Stdio::null())
            .env("LANG", "C.UTF-8");
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs `faultbox test` with these flags and checks the exit code.
    fn test(&self, exit: i32, args: &[&str]) -> Output {
        let output = self.run(&[&["test"], args].concat());
        assert_eq!(
            output.status.code(),
            Some(exit),
            "{args:?}\n--- stdout\n{}--- stderr\n{}",
            out(&output),
            err(&output)
        );
        output
    }
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

const PASSES: &str = "def test_ok():\n    assert_eq(1, 1)\n    return {\"answer\": 42}\n";
const FAILS: &str =
    "def test_bad():\n    print(\"so far\")\n    assert_eq(1, 2, \"one is not two\")\n";

/// Everything a plan can hold, on services that are never started.
const PLAN: &str = r#"
db = service("db", "sh", interface("sql", "tcp", 5432), args=["-c", "sleep 60"])
api = service("api", "sh", interface("http", "http", 8080), interface("admin", "tcp", 8081, proxy=False),
    args=["-c", "sleep 60"], depends_on=[db])

disk_error = fault_assumption("disk_error", target=db, write=deny("EIO"))
rate_limited = fault_assumption("rate_limited", target=api.http, rules=[response(path="/orders*", status=429)])

def create_order():
    return api.post(path="/orders")

def get_order():
    return api.get(path="/orders/1")

def smoke():
    assert_true(True)

scenario(smoke)
fault_scenario("create_on_a_bad_disk", scenario=create_order, faults=disk_error, expect=expect_error(status=503))
fault_matrix(scenarios=[create_order, get_order], faults=[disk_error, rate_limited], exclude=[(get_order, disk_error)])

def test_plain():
    assert_true(True)
"#;

#[test]
fn exit_codes_of_whole_runs() {
    Spec::new(PASSES).test(0, &[]);
    Spec::new(FAILS).test(1, &[]);
    Spec::new("def test_x():\n    fail(\"no\")\n").test(1, &[]);
    Spec::new("def test_x(:\n").test(2, &[]);
    Spec::new("x = 1\n").test(2, &[]);
    Spec::new(PASSES).test(2, &["--test", "test_ko"]);
    Spec::new("s = service(\"s\", \"no-such-program-anywhere\")\ndef test_x():\n    pass\n")
        .test(3, &[]);
    Spec::new("def test_x():\n    halt(\"not today\")\n").test(4, &[]);
}

#[test]
fn a_spec_error_names_its_place_and_prints_no_report() {
    let spec = Spec::new(
        "s = service(\"s\", \"sh\")\nf = fault_assumption(\"f\", target=s, write=deny(\"EIOO\"))\ndef test_x():\n    pass\n",
    );
    for args in [&[][..], &["--format", "json"], &["--list"]] {
        let output = spec.test(2, args);
        assert_eq!(out(&output), "");
        let text = err(&output);
        assert!(text.contains("faultbox.star:2:"), "{text}");
        assert!(text.contains("EIOO") && text.contains("EIO"), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
    }
    let output = spec.run(&["check", "--format", "json"]);
    assert_eq!(output.status.code(), Some(2));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["ok"], false);
    assert_eq!(document["diagnostics"][0]["line"], 2);
}

#[test]
fn list_names_every_test_and_what_it_is() {
    let spec = Spec::new(PLAN);
    golden("list.txt", &out(&spec.test(0, &["--list"])));
    let some = out(&spec.test(
        0,
        &["--list", "--test", "*_order_disk_error", "--test", "smoke"],
    ));
    let names: Vec<&str> = some.lines().filter_map(|l| l.split(' ').next()).collect();
    assert_eq!(names, ["smoke", "matrix_create_order_disk_error"]);
    let json = out(&spec.test(0, &["--list", "--format", "json"]));
    let document: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(document["tests"].as_array().unwrap().len(), 8);
}

#[test]
fn check_shows_the_plan() {
    let spec = Spec::new(PLAN);
    let output = spec.run(&["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let shell = out(&output);
    // Where `sh` lives is this machine's business.
    let lines = shell.lines().map(|l| {
        if l.ends_with("/sh") {
            format!("{} .../sh\n", l.split('/').next().unwrap().trim_end())
        } else {
            format!("{l}\n")
        }
    });
    golden("check.txt", &lines.collect::<String>());
    let document: Value =
        serde_json::from_slice(&spec.run(&["check", "--format", "json"]).stdout).unwrap();
    assert_eq!(document["ok"], true);
    assert_eq!(document["services"][1]["interfaces"][1]["proxy"], false);
}

#[test]
fn json_is_one_document_and_nothing_else_is_on_standard_output() {
    let schema = serde_json::from_str(include_str!("../../docs/report.schema.json")).unwrap();
    let schema = jsonschema::draft202012::new(&schema).unwrap();
    for (text, exit) in [(PASSES, 0), (FAILS, 1)] {
        let output = Spec::new(text).test(exit, &["--format", "json", "--seed", "7"]);
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let errors: Vec<String> = schema
            .iter_errors(&document)
            .map(|e| e.to_string())
            .collect();
        assert!(errors.is_empty(), "{errors:#?}");
        assert_eq!(document["seed"], 7);
        assert_eq!(
            document["tests"][0]["outcome"],
            if exit == 0 { "passed" } else { "failed" }
        );
        assert_eq!(document["tests"][0]["assertions"], 1);
        assert!(err(&output).contains("[1/1]"), "{}", err(&output));
    }
}

#[test]
fn a_failure_is_explained_in_three_lines_and_can_be_repeated() {
    let spec = Spec::new(FAILS);
    let text = out(&spec.test(1, &["--seed", "99"]));
    let lines: Vec<&str> = text.lines().collect();
    let start = lines
        .iter()
        .position(|l| l.starts_with("failed test_bad,"))
        .unwrap();
    let head = lines[start..start + 3].join("\n");
    assert!(
        head.contains("one is not two") && head.contains("expected 2, got 1"),
        "{text}"
    );
    assert!(text.contains("faultbox.star:3:"), "{text}");
    assert!(text.contains("| so far"), "{text}");
    assert!(!text.contains('\x1b') && text.is_ascii(), "{text}");
    let rerun = lines
        .iter()
        .find_map(|l| l.trim().strip_prefix("rerun: faultbox "))
        .unwrap();
    let again = spec.run(&rerun.split(' ').collect::<Vec<_>>());
    assert_eq!(again.status.code(), Some(1));
    assert!(out(&again).contains("seed 99"));
}

#[test]
fn runs_count_seeds_up_and_a_random_seed_is_shown() {
    let spec = Spec::new(PASSES);
    let output = spec.test(0, &["--runs", "3", "--seed", "5", "--format", "json"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let seeds: Vec<u64> = document["tests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["seed"].as_u64().unwrap())
        .collect();
    assert_eq!(seeds, [5, 6, 7]);
    let seed = |output: &Output| {
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let seed = document["seed"].as_u64().unwrap();
        assert!(
            err(output).contains(&format!("seed {seed}")),
            "{}",
            err(output)
        );
        seed
    };
    let (a, b) = (
        seed(&spec.test(0, &["--format", "json"])),
        seed(&spec.test(0, &["--format", "json"])),
    );
    assert_ne!(a, b);
}

#[test]
fn reports_go_to_files_too() {
    let spec = Spec::new(FAILS);
    let output = spec.test(
        1,
        &["--format", "json", "--output", "r.json", "--junit", "r.xml"],
    );
    assert_eq!(fs::read(spec.dir().join("r.json")).unwrap(), output.stdout);
    let xml = fs::read_to_string(spec.dir().join("r.xml")).unwrap();
    assert!(
        xml.contains("<failure message=") && xml.contains("name=\"test_bad\""),
        "{xml}"
    );
}

#[test]
fn a_report_that_cannot_be_written_is_still_printed() {
    let spec = Spec::new(PASSES);
    for (flag, path) in [
        ("--output", "no/such/folder/r.json"),
        ("--output", "/dev/full"),
        ("--junit", "/dev/full"),
    ] {
        let output = spec.test(3, &["--format", "json", flag, path]);
        serde_json::from_slice::<Value>(&output.stdout).unwrap();
        let text = err(&output);
        assert!(
            text.contains(&format!("{flag} {path} cannot be written")),
            "{text}"
        );
    }
    // What one place cannot take, the others still get.
    let args = ["--output", "/dev/full", "--junit", "r.xml"];
    spec.test(3, &args);
    assert!(spec.dir().join("r.xml").is_file());
    // A failed test is a finding, whatever else went wrong.
    Spec::new(FAILS).test(1, &["--output", "/dev/full"]);
}

#[test]
fn an_interrupted_run_reports_what_it_has() {
    let spec = Spec::new("def test_a():\n    pass\n\ndef test_b():\n    sleep(\"60s\")\n");
    let mut child = spec
        .command(&["test", "--format", "json", "--jobs", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // test_a has ended when its line is there; then test_b is under way or about to be.
    let mut stderr = child.stderr.take().unwrap();
    let (mut seen, mut buffer) = (String::new(), [0; 512]);
    while !seen.contains("test_a") {
        let n = stderr.read(&mut buffer).unwrap();
        assert!(n > 0, "ended early: {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    std::thread::sleep(Duration::from_millis(300));
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let began = Instant::now();
    let mut stdout = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut stdout)
        .unwrap();
    let status = child.wait().unwrap();
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(status.code(), Some(130));
    let document: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(document["interrupted"], true);
    assert_eq!(document["summary"]["passed"], 1);
}

#[test]
fn fail_fast_stops() {
    let spec = Spec::new("def test_a():\n    fail(\"no\")\n\ndef test_b():\n    pass\n");
    let output = spec.test(1, &["--fail-fast", "--jobs", "1", "--format", "json"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["summary"]["failed"], 1);
    assert_eq!(document["summary"]["passed"], 0);
}

#[test]
fn the_starter_loads_and_passes() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("SKIPPED the_starter_loads_and_passes: it needs python3");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let spec = Spec(dir);
    assert_eq!(spec.run(&["init"]).status.code(), Some(0));
    let output = spec.test(0, &[]);
    let text = out(&output);
    assert!(text.contains("matrix: 2 scenarios x 3 faults"), "{text}");
    assert!(text.contains("9 tests: 9 passed"), "{text}");
    assert!(!text.contains("never fired"), "{text}");
}

#[test]
fn a_budget_is_read_before_anything_runs_and_judged_at_the_end() {
    let spec = Spec::new(PASSES);
    let output = spec.test(2, &["--overhead-budget", "added_p95<1ms"]);
    let text = err(&output);
    assert!(text.contains("`p95` is no quantile"), "{text}");
    assert!(text.contains("p50, p90, p99, p99_9 or max"), "{text}");
    let output = spec.test(4, &["--overhead-budget", "added_p99<1ms"]);
    let text = out(&output);
    assert!(text.contains("added_p99<1ms: unmeasured"), "{text}");
    let output = Spec::new(FAILS).test(1, &["--overhead-budget", "added_p99<1ms"]);
    assert!(out(&output).contains("unmeasured"));
}

/// What would spoil the run is said before anything starts.
#[test]
fn what_cannot_work_is_said_first() {
    use std::os::unix::fs::PermissionsExt;
    let spec = Spec::new(
        "service(\"s\", \"./tool\", interface(\"main\", \"tcp\", 0))\ndef test_it(): pass\n",
    );
    let tool = spec.dir().join("tool");
    fs::write(&tool, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    let said = err(&spec.test(3, &[]));
    assert!(
        said.contains("/no/such/interpreter, the interpreter that its binary"),
        "{said}"
    );
    let spec = Spec::new("def test_it(): pass\n");
    fs::write(spec.dir().join("file"), "").unwrap();
    let said = err(&spec.test(3, &["--keep-logs", "file/logs"]));
    assert!(said.contains("--keep-logs file/logs: "), "{said}");
}

#[test]
fn reports_show_where_large_values_differ() {
    let spec = Spec::new(
        "def test_it(): assert_eq(\"x\" * 100000 + \"left\", \"x\" * 100000 + \"right\", \"they differ\")\n",
    );
    let output = spec.test(1, &["--format", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let reason = &report["tests"][0]["details"];
    for (side, end) in [("actual", "left\""), ("expected", "right\"")] {
        let text = reason[side].as_str().unwrap();
        assert!(text.len() < 10_000 && text.ends_with(end), "{text}");
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_spec() {
    let spec = Spec::new("\u{feff}def test_it(): pass\n");
    spec.test(0, &[]);
}

/// A service that rewrites the spec and what it loads, as an editor would, before the second test is evaluated.
const EDITED: &str = r#"
load("lib.star", "answer")
editor = service("editor", "sh", args=["-c", """
    echo 'def test_b(): fail(\"edited\")' > edited.star && mv edited.star faultbox.star
    echo 'def answer(): return 1' > lib.star
    echo done
    exec sleep 60"""], observe=["stdout"])

def test_a():
    assert_eventually(type="stdout", line="done", within="10s")

def test_b():
    assert_eq(answer(), 42)
"#;

#[test]
fn every_test_evaluates_the_spec_that_was_planned() {
    let spec = Spec::new(EDITED);
    fs::write(
        spec.dir().join("lib.star"),
        "def answer():\n    return 42\n",
    )
    .unwrap();
    spec.test(0, &["--jobs", "1"]);
    let edited = fs::read_to_string(spec.dir().join("faultbox.star")).unwrap();
    assert!(edited.contains("edited"), "{edited}");
}

#[test]
fn a_spec_may_come_through_a_pipe() {
    let folder = Spec::new("");
    fs::write(folder.dir().join("lib.star"), "answer = 42\n").unwrap();
    let mut child = folder
        .command(&["test", "/dev/stdin", "--format", "json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = "load(\"lib.star\", \"answer\")\ndef test_a(): assert_eq(answer, 42)\n";
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["summary"]["passed"], 1);
}

#[test]
fn what_has_no_end_is_no_spec() {
    let spec = Spec::new("");
    for args in [["check", "/dev/zero"], ["test", "/dev/zero"]] {
        let output = spec.run(&args);
        assert_eq!(output.status.code(), Some(2), "{}", err(&output));
        assert!(err(&output).contains("it has more than 16 MiB"));
    }
}

#[test]
fn no_report_replaces_the_spec_or_another_report() {
    let spec = Spec::new("load(\"lib.star\", \"x\")\ndef test_a(): pass\n");
    let dir = spec.dir();
    fs::write(dir.join("lib.star"), "x = 1\n").unwrap();
    fs::hard_link(dir.join("faultbox.star"), dir.join("linked.star")).unwrap();
    std::os::unix::fs::symlink("lib.star", dir.join("soft.star")).unwrap();
    let spec_file = "is a file of the spec";
    let same = "--junit ./r.xml is what --output writes, too";
    for (args, why) in [
        (&["--output", "faultbox.star"][..], spec_file),
        (&["--junit", "./lib.star"], spec_file),
        (&["--output", "linked.star"], spec_file),
        (&["--list", "--output", "soft.star"], spec_file),
        (&["--output", "r.xml", "--junit", "./r.xml"], same),
    ] {
        let output = spec.test(2, args);
        assert!(err(&output).contains(why), "{}", err(&output));
        assert_eq!(out(&output), "", "nothing was run");
    }
    assert!(!dir.join("r.xml").exists());
    let trace = |args: &[&str]| {
        let output = spec.run(&[&["trace"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{}", err(&output));
        err(&output)
    };
    assert!(trace(&["--spec", "faultbox.star", "--output", "lib.star"]).contains(spec_file));
    let events = trace(&["--output", "t", "--events", "t", "--", "true"]);
    assert!(events.contains("is what --output writes, too"), "{events}");
    // Devices are not replaced.
    spec.test(0, &["--output", "/dev/null", "--junit", "/dev/null"]);
}

#[test]
fn a_list_goes_to_a_file_and_is_no_junit_report() {
    let spec = Spec::new(PLAN);
    let output = spec.test(0, &["--list", "--format", "json", "--output", "l.json"]);
    assert_eq!(fs::read(spec.dir().join("l.json")).unwrap(), output.stdout);
    let refused = spec.test(2, &["--list", "--junit", "l.xml"]);
    assert!(err(&refused).contains("--junit"), "{}", err(&refused));
    assert!(!spec.dir().join("l.xml").exists());
}
