//! The command as a user meets it: output streams, exit codes, files.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use support::golden;

fn faultbox(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_faultbox"));
    command
        .current_dir(dir)
        .stdin(Stdio::null())
        .env_remove("NO_COLOR")
        .env("LANG", "C.UTF-8")
        .env("TERM", "xterm-256color");
    command
}

fn run(dir: &Path, args: &[&str]) -> Output {
    faultbox(dir).args(args).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Wrong use: nothing on standard output, the reason on standard error, exit code 2.
fn misuse(args: &[&str], says: &str) {
    let dir = folder();
    fs::write(dir.path().join("ok.star"), "def test_x():\n    pass\n").unwrap();
    let output = run(dir.path(), args);
    assert_eq!(code(&output), 2, "{args:?}: {}", err(&output));
    assert_eq!(out(&output), "", "{args:?}");
    let text = err(&output);
    assert!(text.contains(says), "{args:?}: {text}");
    assert!(!text.contains('\x1b'), "colour on a pipe: {text}");
}

#[test]
fn wrong_use_is_told_and_exits_with_2() {
    misuse(&[], "Usage: faultbox <COMMAND>");
    misuse(&["tset"], "similar subcommand exists: 'test'");
    misuse(&["test", "--jbos", "2"], "'--jobs'");
    misuse(&["test", "--jobs", "0"], "it must be at least 1");
    misuse(&["test", "--runs", "0"], "0 is not in 1..");
    misuse(&["test", "--seed", "-1"], "'-1' for '--seed");
    misuse(&["test", "--format", "xml"], "human, json");
    misuse(&["test", "--network", "none"], "auto, host");
    misuse(&["test"], "there is no spec faultbox.star");
    misuse(&["test", "missing.star"], "there is no spec missing.star");
    misuse(&["check", "."], ". is a folder, not a spec");
    misuse(&["protocols", "htpp"], "there is no protocol `htpp`");
    misuse(&["completions", "cmd.exe"], "possible values");
}

#[test]
fn help_and_version_go_to_standard_output() {
    let dir = folder();
    for args in [&["--help"][..], &["--version"], &["test", "--help"]] {
        let output = run(dir.path(), args);
        assert_eq!(code(&output), 0, "{args:?}");
        assert!(
            !output.stdout.is_empty() && output.stderr.is_empty(),
            "{args:?}"
        );
    }
    let help = out(&run(dir.path(), &["--help"]));
    assert!(
        !help.contains("__worker") && !help.contains("__janitor"),
        "{help}"
    );
}

#[test]
fn init_writes_a_starter_and_never_overwrites() {
    let dir = folder();
    let output = run(dir.path(), &["init"]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    golden("init.txt", &out(&output));
    let written = fs::read_to_string(dir.path().join("faultbox.star")).unwrap();
    golden("init.star", &written);

    fs::write(dir.path().join("faultbox.star"), "mine").unwrap();
    let output = run(dir.path(), &["init"]);
    assert_eq!(code(&output), 2);
    assert!(err(&output).contains("exists already"), "{}", err(&output));
    assert_eq!(
        fs::read_to_string(dir.path().join("faultbox.star")).unwrap(),
        "mine"
    );

    let output = run(dir.path(), &["init", "a/b c"]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(
        out(&output).contains("faultbox test 'a/b c/faultbox.star'"),
        "{}",
        out(&output)
    );
    assert!(dir.path().join("a/b c/faultbox.star").is_file());

    let output = run(dir.path(), &["init", "faultbox.star/x"]);
    assert_eq!(code(&output), 3);
    assert!(err(&output).contains("cannot be made"), "{}", err(&output));
}

#[test]
fn a_dangling_link_is_not_followed_by_init() {
    let dir = folder();
    std::os::unix::fs::symlink("elsewhere", dir.path().join("faultbox.star")).unwrap();
    assert_eq!(code(&run(dir.path(), &["init"])), 2);
    assert!(!dir.path().join("elsewhere").exists());
}

#[test]
fn completions_know_the_flags() {
    let dir = folder();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(dir.path(), &["completions", shell]);
        assert_eq!(code(&output), 0);
        let script = out(&output);
        assert!(script.contains("fail-fast"), "{shell}");
        // clap_complete leaves hidden commands out of what is offered for `faultbox <TAB>` only by their flag; they must not be described.
        assert!(
            !script.contains("reads its job from standard input"),
            "{shell}"
        );
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = folder();
    let mut child = faultbox(dir.path())
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert_eq!(err(&output), "");
}

#[test]
fn a_full_disk_under_standard_output_is_told() {
    let dir = folder();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = faultbox(dir.path())
        .args(["protocols"])
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(code(&output), 3);
    assert!(
        err(&output).contains("standard output cannot be written: no space left on device"),
        "{}",
        err(&output)
    );
}

/// What a spec's errors look like, in every dress, with every odd shape a span can have.
#[test]
fn diagnostics_show_the_place_and_the_help() {
    use faultbox::cli::problem::Problem;
    use faultbox::report::Style;
    use faultbox::spec::{Diagnostic, SpecError};
    let source = "db = service(\"db\", \"/usr/bin/größe\")\n\nslow = fault_assumption(\n    \"slow\",\n    target = db,\n    write = deny(\"EIO\", probabilty = \"20%\"),\n)\n";
    let diagnostic = |message: &str, span, label: &str, help: Option<&str>| Diagnostic {
        message: message.into(),
        help: help.map(str::to_owned),
        file: "orders.star".into(),
        source: source.into(),
        span,
        label: label.into(),
    };
    let at = |word: &str| {
        let start = source.find(word).unwrap();
        start..start + word.len()
    };
    let odd = source.find("öß").unwrap() + 1;
    let error = SpecError {
        diagnostics: vec![
            diagnostic(
                "`deny` has no keyword `probabilty`",
                at("probabilty"),
                "unknown keyword",
                Some(
                    "did you mean `probability`? It takes probability, nth, after, every, times, path, on, dest, exact, label",
                ),
            ),
            diagnostic("inside a character", odd..odd + 1, "here", None),
            diagnostic("past the end", 10_000..20_000, "", None),
            Diagnostic {
                source: "".into(),
                ..diagnostic(
                    "cannot be read: permission denied",
                    0..0,
                    "",
                    Some("make it readable"),
                )
            },
        ],
    };
    let problem = Problem::from(error);
    assert_eq!(problem.exit.code(), 2);
    golden("diagnostics.txt", &problem.render(&Style::PLAIN));
    let unicode = Style {
        unicode: true,
        ..Style::PLAIN
    };
    golden("diagnostics-unicode.txt", &problem.render(&unicode));
    let colour = Style {
        colour: true,
        ..unicode
    };
    assert!(problem.render(&colour).contains('\x1b'));
    assert!(!problem.render(&Style::PLAIN).contains('\x1b'));
    let json = problem.to_json();
    assert_eq!(json[0]["line"], 6);
    assert_eq!(json[0]["column"], 25);
    assert_eq!(json[0]["bytes"], 10);
    assert_eq!(json[3]["line"], serde_json::Value::Null);
}

#[test]
fn errors_of_a_run_decide_the_exit_code() {
    use faultbox::cli::problem::Problem;
    use faultbox::plan::report::Blame;
    for (blame, exit) in [
        (Blame::Test, 2),
        (Blame::Environment, 3),
        (Blame::Internal, 70),
    ] {
        let problem = Problem::from(faultbox::run::RunError {
            message: "no".into(),
            help: None,
            blame,
        });
        assert_eq!(problem.exit.code(), exit);
    }
}

/// A protocol that exists nowhere, so that the page shows every shape a table can have.
static DOC: faultbox_contract::ProtocolDoc = {
    use faultbox_contract::doc::{Class, common};
    use faultbox_contract::{ActionDoc, Dialect, Kind, ParamDoc, ProtocolDoc, StepDoc};
    ProtocolDoc {
        name: "carrier",
        aliases: &["pigeon", "rfc1149"],
        summary: "messages on foot, with a summary that is so long that it has to be broken into two lines",
        matchers: &[
            ParamDoc::opt("ring", Kind::Glob(Dialect::TextNoCase), "the ring's number"),
            ParamDoc::opt("header", Kind::GlobMap, "headers by name"),
        ],
        actions: &[
            ActionDoc {
                name: "error",
                class: Class::Terminal,
                matched: true,
                params: &[
                    ParamDoc::req("code", Kind::Int(100, 599), "what the bird says"),
                    ParamDoc::opt(
                        "when",
                        Kind::Choice(&["before", "after"]),
                        "before or after delivery",
                    ),
                ],
                summary: "the sender sees a bird with an error",
            },
            common::DELAY,
        ],
        steps: &[
            StepDoc {
                name: "send",
                params: &[ParamDoc::req("body", Kind::Body, "what is tied to the leg")],
                variadic: false,
                summary: "sends one bird",
            },
            StepDoc {
                name: "command",
                params: &[],
                variadic: true,
                summary: "says words to a bird",
            },
        ],
    }
};

#[test]
fn protocols_print_the_tables() {
    use faultbox::cli::protocols;
    golden("protocol.txt", &protocols::page(&DOC, 80));
    golden("protocols.txt", &protocols::overview(&[&DOC, &DOC], 60));
}

#[test]
fn every_protocol_of_the_registry_has_its_page() {
    let dir = folder();
    let overview = out(&run(dir.path(), &["protocols"]));
    for protocol in faultbox_fleet::all() {
        let doc = protocol.doc();
        assert!(overview.contains(doc.name), "{overview}");
        for name in doc.aliases.iter().chain([&doc.name]) {
            let output = run(dir.path(), &["protocols", name]);
            assert_eq!(code(&output), 0);
            let page = out(&output);
            let words = doc
                .matchers
                .iter()
                .map(|p| format!("  {}=  ", p.name))
                .chain(doc.actions.iter().map(|a| format!("\n  {}(", a.name)))
                .chain(doc.steps.iter().map(|s| format!("\n  {}(", s.name)));
            for word in words {
                assert!(page.contains(&word), "{word:?} is not in {page}");
            }
            assert!(page.lines().all(|l| l.chars().count() <= 80), "{page}");
        }
    }
}

#[test]
fn doctor_says_what_is_lost_and_how_to_get_it() {
    use faultbox::cli::doctor::{Capability, healthy, render};
    use faultbox::report::Style;
    let capability = |name, essential, ok, detail: &str| Capability {
        name,
        essential,
        ok,
        detail: detail.into(),
        lost: "all that a long sentence can say about what does not work on a machine without it",
        fix: "a newer kernel",
    };
    let mut found = vec![
        capability(
            "seccomp user notification",
            true,
            false,
            "ENOSYS: function not implemented",
        ),
        capability(
            "network namespaces",
            false,
            false,
            "EPERM: operation not permitted",
        ),
        capability("pidfd_getfd", true, true, ""),
    ];
    golden(
        "doctor.txt",
        &render("Linux 5.4.0 x86_64", &found, &Style::PLAIN),
    );
    assert!(!healthy(&found));
    found[0].ok = true;
    assert!(healthy(&found));
    assert!(render("", &found, &Style::PLAIN).ends_with("\neverything essential is there\n"));
}

#[test]
fn doctor_looks_at_this_machine() {
    let dir = folder();
    let output = run(dir.path(), &["doctor", "--format", "json"]);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = document["capabilities"].as_array().unwrap();
    let names: Vec<&str> = list.iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "/proc",
            "seccomp user notification",
            "seccomp SYNC_WAKE_UP",
            "seccomp WAIT_KILLABLE_RECV",
            "seccomp TSYNC_ESRCH",
            "ptrace of own children",
            "pidfd_getfd",
            "user namespaces",
            "network namespaces",
            "cgroup v2, writable",
            "BPF",
            "kernel types (BTF)",
        ]
    );
    let essential = list.iter().filter(|c| c["essential"] == true);
    let ok = essential.clone().all(|c| c["ok"] == true);
    assert!(essential.count() > 0);
    assert_eq!(document["ok"], ok);
    assert_eq!(code(&output), if ok { 0 } else { 3 });
    let text = out(&run(dir.path(), &["doctor"]));
    for name in names {
        assert!(text.contains(name), "{name} is not in {text}");
    }
}

/// `docs/cli.md` and the command's own help name the same commands and flags, and the same exit codes.
#[test]
fn the_page_names_every_flag() {
    use clap::CommandFactory;
    let page = include_str!("../../docs/cli.md");
    let cli = faultbox::cli::args::Cli::command();
    for command in cli.get_subcommands().filter(|c| !c.is_hide_set()) {
        let heading = format!("\n## `faultbox {}", command.get_name());
        let start = page
            .find(&heading)
            .unwrap_or_else(|| panic!("docs/cli.md has no section on {}", command.get_name()));
        let section = &page[start + 1..];
        let section = &section[..section.find("\n## ").unwrap_or(section.len())];
        let mut flags: Vec<String> = command
            .get_arguments()
            .filter(|a| !a.is_hide_set())
            .filter_map(|a| a.get_long().map(|l| format!("--{l}")))
            .collect();
        flags.sort();
        let mut named: Vec<String> = section
            .lines()
            .filter(|l| l.starts_with("| `"))
            .filter_map(|l| l.split('`').nth(1))
            .flat_map(|cell| cell.split([' ', ',']))
            .filter(|word| word.starts_with("--"))
            .map(str::to_owned)
            .collect();
        named.sort();
        assert_eq!(named, flags, "flags of {}", command.get_name());
        for argument in command.get_positionals() {
            let id = argument.get_value_names().unwrap()[0].as_str();
            assert!(section.contains(id), "{} of {}", id, command.get_name());
        }
    }
    for exit in faultbox::cli::exit::Exit::ALL {
        let row = format!("| {} |", exit.code());
        assert!(
            page.contains(&row),
            "docs/cli.md has no exit code {}",
            exit.code()
        );
    }
}
