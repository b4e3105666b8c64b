//! The whole command where ptrace is refused: filters before exec for what the spec names, a clear error for the rest.

#[path = "supervisor/harness.rs"]
mod harness;

use std::path::Path;
use std::process::Command;

use harness::{Built, build_go, compile_c, scratch};
use serde_json::Value;

/// Runs `faultbox test` on `spec` under a filter that refuses ptrace(2).
fn run(spec: &str) -> (i32, Value, String) {
    run_without(libc::SYS_ptrace, spec)
}

/// Runs `faultbox test` on `spec` under a filter that refuses `call`.
fn run_without(call: libc::c_long, spec: &str) -> (i32, Value, String) {
    let (dir, launcher) = (scratch(), compile_c("refuse.c", &[]));
    let output = faultbox_without(&launcher, call, spec, dir.path())
        .args(["test", "--seed", "1", "--format", "json"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let document = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {:?}\n{stderr}", output.status));
    (output.status.code().unwrap_or(-1), document, stderr)
}

/// The command, under a filter by which the launcher refuses `call`, beside this spec.
fn faultbox_without(launcher: &Path, call: libc::c_long, spec: &str, dir: &Path) -> Command {
    std::fs::write(dir.join("faultbox.star"), spec).unwrap();
    let mut command = Command::new(launcher);
    command
        .arg(call.to_string())
        .arg(env!("CARGO_BIN_EXE_faultbox"))
        .current_dir(dir);
    command
}

/// A service that writes to a file and says on standard output when the outcome changes.
fn service(name: &str, program: &Path) -> String {
    format!(
        "{name} = service({name:?}, {program:?}, args=[\"data\"], observe=[\"stdout\"])\n",
        program = program.display().to_string()
    )
}

fn programs() -> Vec<(&'static str, Built)> {
    let mut programs = vec![
        ("dynamic", compile_c("write.c", &[])),
        ("static", compile_c("write.c", &["-static"])),
    ];
    programs.extend(build_go("write.go").map(|path| ("go", path)));
    programs
}

#[test]
fn declared_faults_fire_through_a_filter_before_exec() {
    for (kind, program) in programs() {
        let (code, document, stderr) = run(&format!(
            r#"
{}
disk_error = fault_assumption("disk_error", target = svc, write = deny("EIO", path = "**/data"))

def said(text, count = 1):
    assert_eventually(type = "stdout", within = "20s", where = lambda e: text in e.line.lower())

def test_disk():
    said("ok")
    fault(disk_error, run = lambda: said("input/output error"))
    # It is lifted: the outcome changes back.
    assert_eventually(within = "20s", where = lambda e: e.type == "stdout" and len(events(type = "stdout")) >= 3)
    return [e.line for e in events(type = "stdout")]
"#,
            service("svc", &program)
        ));
        assert_eq!(code, 0, "{kind}: {document:#}\n{stderr}");
        let test = &document["tests"][0];
        let fault = &test["faults"][0];
        assert_eq!(
            fault["mechanism"], "seccomp filter before exec",
            "{kind}: {document:#}"
        );
        assert!(fault["hits"].as_u64().unwrap() > 0, "{kind}: {document:#}");
        assert_eq!(test["result"][0], "ok", "{kind}");
        said_first(&stderr, "ptrace is refused here (operation not permitted)");
        assert_eq!(test["result"][2], "ok", "{kind}");
        assert!(
            document["overhead"]["syscalls"][0]["trapped"]
                .as_u64()
                .unwrap()
                > 0
        );
    }
}

#[test]
fn a_fault_that_the_filter_does_not_cover_is_a_clear_error() {
    let program = compile_c("write.c", &[]);
    // The name is put together at run time, so that the spec's text does not show it.
    let (code, document, stderr) = run(&format!(
        r#"
{}
disk_error = fault_assumption("disk_error", target = svc, write = deny("EIO", path = "**/data"))

def test_other():
    assert_eventually(type = "stdout", within = "20s")
    fault(svc, run = lambda: None, **{{"fch" + "mod": deny("EIO")}})
"#,
        service("svc", &program)
    ));
    let test = &document["tests"][0];
    assert_eq!(code, 3, "{document:#}\n{stderr}");
    assert_eq!(test["outcome"], "error", "{document:#}");
    let reason = test["reason"].as_str().unwrap();
    assert!(
        reason.contains("ptrace of process")
            && reason.contains("is refused")
            && reason.contains("does not cover fchmod"),
        "{reason}"
    );
    let details = test["details"].to_string();
    assert!(
        details.contains("CAP_SYS_PTRACE") && details.contains("fault_assumption"),
        "{details}"
    );
}

/// What is missing is told before the first test, and in the report.
fn said_first(stderr: &str, what: &str) {
    let (said, first) = (stderr.find(what), stderr.find("] "));
    assert!(said.is_some() && said < first, "{stderr}");
}

#[test]
fn without_seccomp_what_works_works_and_the_rest_is_told_first() {
    let program = compile_c("write.c", &[]);
    let (code, document, stderr) = run_without(
        libc::SYS_seccomp,
        &format!(
            r#"
{}
disk_error = fault_assumption("disk_error", target = svc, write = deny("EIO"))

def test_plain():
    assert_eventually(type = "stdout", within = "20s")

def test_faulted():
    fault(disk_error, run = lambda: None)
"#,
            service("svc", &program)
        ),
    );
    assert_eq!(code, 3, "{document:#}\n{stderr}");
    assert_eq!(document["tests"][0]["outcome"], "passed", "{document:#}");
    assert_eq!(document["tests"][1]["outcome"], "error", "{document:#}");
    let lack = "system-call faults cannot be put in force here (seccomp user notification: operation not permitted)";
    said_first(&stderr, lack);
    assert!(document["notes"].to_string().contains(lack), "{document:#}");
}

/// A service that has a filter from its start is never native, and one that has none cannot be given one: the bench says so, and
/// measures what is left.
#[test]
fn the_bench_tells_what_it_cannot_measure() {
    const WEB: &str = r#"
web = service("web", "sh", interface("http", "http", 0),
    args = ["-c", "exec python3 -m http.server --bind 127.0.0.1 $FAULTBOX_WEB_HTTP_PORT"],
    healthcheck = ready(timeout="60s"),
)
"#;
    let declared = "full = fault_assumption(\"full\", target=web, write=deny(\"EIO\"))\n";
    let filtered = "ptrace is refused here, so web has a filter from its start";
    for (more, states, why) in [
        (declared, &["traced", "unmatched", "armed"][..], filtered),
        ("", &["unmatched", "armed"], "is refused"),
    ] {
        let (dir, launcher) = (scratch(), compile_c("refuse.c", &[]));
        let spec = format!("{WEB}{more}");
        let output = faultbox_without(&launcher, libc::SYS_ptrace, &spec, dir.path())
            .args(["bench", "--syscalls=write", "--duration", "600ms"])
            .args(["--json", "bench.json"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        let document = std::fs::read(dir.join("bench.json")).unwrap();
        let document: Value = serde_json::from_slice(&document).unwrap();
        let skipped = document["skipped"].as_array().unwrap();
        for state in states {
            let name = format!("web.http {state}");
            let one = skipped.iter().find(|s| s["name"] == name.as_str());
            let reason = one.map(|s| s["reason"].to_string()).unwrap_or_default();
            assert!(reason.contains(why), "{name}: {document:#}");
        }
        assert!(said.contains("not measured"), "{said}");
        // What needs no filter is measured.
        let subjects = document["subjects"].as_array().unwrap();
        let mediated = subjects.iter().find(|s| s["name"] == "web.http");
        assert!(
            mediated.is_some_and(|s| s["other"]["count"].as_u64() > Some(0)),
            "{document:#}"
        );
    }
}
