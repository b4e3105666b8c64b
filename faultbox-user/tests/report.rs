//! The reports of a run made by hand, in which every outcome occurs.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use faultbox::cli::exit::Exit;
use faultbox::plan::report::Blame;
use faultbox::plan::{
    FaultReport, Location, LogTail, MeterSnapshot, Outcome, Reason, SpecPos, TestDecl, TestKind,
    TestReport,
};
use faultbox::report::{MatrixLayout, RunReport, Style, human, json, junit};
use serde_json::json;
use support::golden;

fn pos(line: u32, column: u32) -> SpecPos {
    SpecPos {
        file: "orders.star".into(),
        line,
        column,
    }
}

fn decl(name: &str, kind: TestKind) -> TestDecl {
    TestDecl {
        name: name.into(),
        kind,
        timeout: Duration::from_secs(30),
        baseline: None,
        require_faults_fire: false,
        pos: pos(1, 1),
    }
}

fn report(name: &str, outcome: Outcome, ms: f64) -> TestReport {
    TestReport {
        name: name.into(),
        outcome,
        reason: None,
        duration_ms: ms,
        body_ms: ms / 2.0,
        seed: 42,
        faults: vec![],
        assertions: 1,
        result: json!(null),
        prints: vec![],
        notes: vec![],
        logs: vec![],
        interfaces: vec![],
        syscalls: vec![],
        activity: BTreeMap::new(),
    }
}

fn fault(name: &str, target: &str, action: &str, hits: u64) -> FaultReport {
    FaultReport {
        name: name.into(),
        target: target.into(),
        action: action.into(),
        hits,
        matched: hits,
        shadowed: 0,
        mechanism: "proxy".into(),
        armed_us: 35,
    }
}

fn cell(scenario: &str, fault: &str) -> TestDecl {
    decl(
        &format!("matrix_{scenario}_{fault}"),
        TestKind::Cell {
            matrix: 0,
            scenario: scenario.into(),
            fault: fault.into(),
        },
    )
}

fn baseline(scenario: &str) -> TestDecl {
    decl(
        &format!("matrix_{scenario}_baseline"),
        TestKind::Baseline {
            matrix: 0,
            scenario: scenario.into(),
        },
    )
}

/// Two scenarios, three faults, one cell excluded, and plain tests for the outcomes that no cell has.
fn every_outcome() -> RunReport {
    let mut run = RunReport {
        spec: "orders.star".into(),
        seed: 42,
        duration_ms: 12_345.6,
        matrices: vec![MatrixLayout {
            scenarios: vec!["create_order".into(), "get_order".into()],
            faults: vec!["disk_error".into(), "insert_fail".into(), "degraded".into()],
            baseline: true,
        }],
        notes: vec!["tests ran one at a time: network namespaces are not allowed here".into()],
        ..RunReport::default()
    };
    let mut add = |decl: TestDecl, test: TestReport| {
        run.plan.push(decl);
        run.tests.push(test);
    };

    add(
        baseline("create_order"),
        report("matrix_create_order_baseline", Outcome::Passed, 310.0),
    );

    let mut test = report("matrix_get_order_baseline", Outcome::Failed, 95.0);
    test.reason = Some(Reason {
        message: "create_order did not answer 200".into(),
        expected: Some("[200, 201, 202, 203, 204, 205, 206, 301, 302, 303, 304, 307]".into()),
        actual: Some("{\"status\": 500,\n \"body\": \"internal\"}".into()),
        location: None,
        help: None,
        blame: Blame::Test,
    });
    add(baseline("get_order"), test);

    let mut test = report("matrix_create_order_disk_error", Outcome::Failed, 1234.0);
    test.reason = Some(Reason {
        message: "assert_eq failed: the client must see the error".into(),
        expected: Some("503".into()),
        actual: Some("200".into()),
        location: Some(Location {
            pos: pos(42, 9),
            line: "        assert_eq(r.status, 503, \"the client must see the error\")".into(),
            width: 57,
        }),
        help: None,
        blame: Blame::Test,
    });
    test.faults = vec![FaultReport {
        matched: 15,
        shadowed: 3,
        mechanism: "seccomp notification (armed while running)".into(),
        armed_us: 4321,
        ..fault("disk_error", "db", "write=deny(\"EIO\")", 12)
    }];
    test.logs = vec![
        LogTail {
            service: "orders".into(),
            lines: (1..=20)
                .map(|i| format!("request {i}\tok \x1b[31mred\x1b[0m"))
                .collect(),
            ended: None,
        },
        LogTail {
            service: "db".into(),
            lines: vec!["PANIC: could not write to file: Input/output error".into()],
            ended: Some("killed by SIGABRT".into()),
        },
    ];
    test.prints = vec!["about to create".into(), "created".into()];
    test.notes = vec!["db restarted once".into()];
    test.interfaces = vec![MeterSnapshot {
        name: "db.pg".into(),
        protocol: "postgres".into(),
        pairs: (1..=100).map(|us| (us * 1000, 1)).collect(),
    }];
    test.syscalls = vec![MeterSnapshot {
        name: "db".into(),
        protocol: String::new(),
        pairs: vec![(5_000, 90), (8_000, 9), (250_000, 1)],
    }];
    add(cell("create_order", "disk_error"), test);

    let mut test = report("matrix_create_order_insert_fail", Outcome::Passed, 220.0);
    test.faults = vec![fault(
        "insert_fail",
        "db.pg",
        "error(query=\"INSERT INTO orders*\", message=\"disk full\")",
        1,
    )];
    test.notes = vec![
        "no assertion was evaluated".into(),
        "fault `x` never fired".into(),
    ];
    test.prints = vec!["inserted".into()];
    test.interfaces = vec![MeterSnapshot {
        name: "db.pg".into(),
        protocol: "postgres".into(),
        pairs: (1..=100).map(|us| (us * 1000, 1)).collect(),
    }];
    add(cell("create_order", "insert_fail"), test);

    let mut test = report("matrix_create_order_degraded", Outcome::Timeout, 30_000.0);
    test.reason = Some(Reason {
        location: Some(Location {
            pos: pos(17, 5),
            line: "\treturn orders.post(path=\"/orders\")".into(),
            width: 33,
        }),
        help: Some(
            "raise timeout= of the matrix, or look at the logs for what it waits for".into(),
        ),
        ..Reason::new("did not end within 30s", Blame::Test)
    });
    test.faults = vec![
        fault("db_slow", "db", "write=delay(\"500ms\")", 61),
        FaultReport {
            matched: 4,
            ..fault(
                "rate_limited",
                "orders.http",
                "response(method=\"POST\", nth=5, status=429)",
                0,
            )
        },
    ];
    add(cell("create_order", "degraded"), test);

    let mut test = report("matrix_get_order_disk_error", Outcome::Invalid, 80.0);
    test.reason = Some(Reason::new(
        "its baseline matrix_get_order_baseline failed",
        Blame::Test,
    ));
    add(cell("get_order", "disk_error"), test);

    let mut test = report("matrix_get_order_insert_fail", Outcome::Bypassed, 70.0);
    test.reason = Some(Reason::new("insert_fail never fired", Blame::Test));
    test.faults = vec![fault(
        "insert_fail",
        "db.pg",
        "error(query=\"INSERT INTO orders*\", message=\"disk full\")",
        0,
    )];
    add(cell("get_order", "insert_fail"), test);

    let mut test = report("test_needs_redis", Outcome::Error, 3.2);
    test.reason = Some(Reason {
        help: Some("install it, or give its path as binary=".into()),
        ..Reason::new(
            "service cache: redis-server is not on PATH",
            Blame::Environment,
        )
    });
    add(decl("test_needs_redis", TestKind::Function), test);

    let mut test = report("never_two", Outcome::Inconclusive, 40.0);
    test.reason = Some(Reason::new(
        "assert_never cannot be decided: 17 events were lost",
        Blame::Test,
    ));
    add(decl("never_two", TestKind::Scenario), test);

    let mut test = report("test_only_on_sunday", Outcome::Halted, 0.4);
    test.reason = Some(Reason::new("halted: not a sunday", Blame::Test));
    add(decl("test_only_on_sunday", TestKind::Function), test);

    add(
        decl("test's last", TestKind::FaultScenario),
        report("test's last", Outcome::Interrupted, 10.0),
    );
    run
}

/// One test that ended so.
fn only(outcome: Outcome, blame: Option<Blame>) -> RunReport {
    let mut test = report("test_x", outcome, 1.0);
    test.reason = blame.map(|b| Reason::new("because", b));
    RunReport {
        spec: "orders.star".into(),
        plan: vec![decl("test_x", TestKind::Function)],
        tests: vec![test],
        ..RunReport::default()
    }
}

#[test]
fn human_plain() {
    let text = human::render(&every_outcome(), &Style::PLAIN, 0);
    golden("report.txt", &text);
    assert!(text.is_ascii(), "a pipe may not be able to show more");
}

#[test]
fn human_verbose() {
    golden(
        "report-verbose.txt",
        &human::render(&every_outcome(), &Style::PLAIN, 1),
    );
}

#[test]
fn human_on_a_terminal() {
    let style = Style {
        colour: true,
        unicode: true,
        width: 80,
        cut: true,
        ..Style::PLAIN
    };
    let text = human::render(&every_outcome(), &style, 0);
    golden("report-terminal.txt", &text.replace('\x1b', "<ESC>"));
    for line in text.lines().filter(|l| !l.contains("rerun: ")) {
        let mut columns = 0;
        let mut rest = line.chars();
        while let Some(c) = rest.next() {
            if c == '\x1b' {
                rest.by_ref().find(|c| *c == 'm');
            } else {
                columns += 1;
            }
        }
        assert!(columns <= 80, "{columns} columns: {line}");
    }
}

#[test]
fn no_colour_means_no_escape() {
    for unicode in [false, true] {
        let style = Style {
            colour: false,
            unicode,
            width: 80,
            cut: true,
            ..Style::PLAIN
        };
        let text = human::render(&every_outcome(), &style, 1);
        assert!(!text.contains('\x1b'));
    }
}

#[test]
fn an_explanation_begins_with_the_cause_and_fits_a_screen() {
    let run = every_outcome();
    let text = human::render(&run, &Style::PLAIN, 0);
    let lines: Vec<&str> = text.lines().collect();
    let start = lines
        .iter()
        .position(|l| l.starts_with("failed matrix_create_order_disk_error"))
        .unwrap();
    assert_eq!(
        lines[start..start + 3],
        [
            "failed matrix_create_order_disk_error (create_order x disk_error), 1.23 s",
            "  assert_eq failed: the client must see the error",
            "  expected 503, got 200",
        ]
    );
    let length = lines[start..].iter().position(|l| l.is_empty()).unwrap();
    assert!(length <= 40, "{length} lines");
}

#[test]
fn a_long_spec_line_is_shown_around_its_caret() {
    let mut run = only(Outcome::Failed, Some(Blame::Test));
    let line = format!(
        "\tcheck({}assert_eq(r.status, 503){})",
        "x, ".repeat(60),
        ", y".repeat(60)
    );
    run.tests[0].reason.as_mut().unwrap().location = Some(Location {
        pos: pos(1234, line.find("assert_eq").unwrap() as u32 + 1),
        line,
        width: 24,
    });
    let style = Style {
        cut: true,
        ..Style::PLAIN
    };
    let text = human::render(&run, &style, 0);
    let lines: Vec<&str> = text.lines().collect();
    let at = lines
        .iter()
        .position(|l| l.starts_with("  1234 | "))
        .unwrap();
    let column = lines[at + 1].find('^').unwrap();
    assert_eq!(
        &lines[at][column..column + 24],
        "assert_eq(r.status, 503)",
        "{text}"
    );
    assert_eq!(lines[at + 1].matches('^').count(), 24);
    assert!(lines[at].len() <= 80);
}

#[test]
fn a_flood_still_fits_a_screen() {
    let mut run = only(Outcome::Failed, Some(Blame::Test));
    let test = &mut run.tests[0];
    let reason = test.reason.as_mut().unwrap();
    reason.message = "m\n".repeat(500);
    reason.expected = Some("e\n".repeat(500));
    reason.actual = Some("a".repeat(100_000));
    test.faults = (0..50)
        .map(|i| fault(&format!("f{i}"), "db", "fsync=deny(\"EIO\")", 1))
        .collect();
    test.prints = vec!["p\n".repeat(500); 50];
    test.logs = (0..10)
        .map(|i| LogTail {
            service: format!("s{i}"),
            lines: vec!["l".repeat(4000); 500],
            ended: None,
        })
        .collect();
    let style = Style {
        cut: true,
        ..Style::PLAIN
    };
    let text = human::render(&run, &style, 0);
    let start = text.find("failed test_x,").unwrap();
    let length = text[start..].lines().take_while(|l| !l.is_empty()).count();
    assert!(length <= 40, "{length} lines:\n{text}");
}

#[test]
fn a_wide_matrix_is_cut_into_tables_that_fit() {
    let faults: Vec<String> = (0..12).map(|i| format!("fault_number_{i}")).collect();
    let mut run = RunReport {
        spec: "wide.star".into(),
        matrices: vec![MatrixLayout {
            scenarios: vec!["create_order_with_items".into()],
            faults: faults.clone(),
            baseline: false,
        }],
        ..RunReport::default()
    };
    for fault in &faults {
        let decl = cell("create_order_with_items", fault);
        run.tests.push(report(&decl.name, Outcome::Passed, 12.0));
        run.plan.push(decl);
    }
    let text = human::render(&run, &Style::PLAIN, 0);
    golden("matrix-wide.txt", &text);
    assert!(text.lines().all(|l| l.len() <= 80));
    for fault in &faults {
        assert_eq!(text.matches(&format!("{fault} ")).count(), 1, "{fault}");
    }
}

#[test]
fn several_runs_share_a_cell() {
    let mut run = RunReport {
        spec: "runs.star".into(),
        seed: 7,
        matrices: vec![MatrixLayout {
            scenarios: vec!["create".into()],
            faults: vec!["flaky".into(), "not_selected".into()],
            baseline: true,
        }],
        plan: vec![cell("create", "flaky")],
        ..RunReport::default()
    };
    for seed in 7..10 {
        let outcome = if seed == 8 {
            Outcome::Failed
        } else {
            Outcome::Passed
        };
        run.tests.push(TestReport {
            seed,
            ..report("matrix_create_flaky", outcome, seed as f64)
        });
    }
    let text = human::render(&run, &Style::PLAIN, 0);
    assert!(
        text.contains("| create   | FAILED 1 of 3 9.0 ms |"),
        "{text}"
    );
    assert!(
        !text.contains("not_selected") && !text.contains("baseline"),
        "{text}"
    );
    assert!(
        text.contains("failed matrix_create_flaky (create x flaky) with seed 8"),
        "{text}"
    );
    assert!(
        text.contains("rerun: faultbox test runs.star --test matrix_create_flaky --seed 8"),
        "{text}"
    );
    let rows = &json::document(&run)["matrix"];
    assert_eq!(rows.as_array().unwrap().len(), 3);
}

#[test]
fn an_empty_run_says_so() {
    let run = RunReport {
        spec: "x.star".into(),
        seed: 1,
        interrupted: true,
        ..RunReport::default()
    };
    assert_eq!(
        human::render(&run, &Style::PLAIN, 0),
        "0 tests: none ran, in 0 us, seed 1, interrupted\n"
    );
}

#[test]
fn json_document() {
    let text = json::render(&every_outcome());
    golden("report.json", &text);
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&text).unwrap(),
        json::document(&every_outcome())
    );
}

fn schema() -> jsonschema::Validator {
    let text = include_str!("../../docs/report.schema.json");
    let schema = serde_json::from_str(text).unwrap();
    assert!(jsonschema::draft202012::meta::is_valid(&schema));
    jsonschema::draft202012::new(&schema).unwrap()
}

#[test]
fn json_satisfies_its_schema() {
    let schema = schema();
    for run in [
        every_outcome(),
        RunReport::default(),
        only(Outcome::Passed, None),
    ] {
        let document = json::document(&run);
        let errors: Vec<String> = schema
            .iter_errors(&document)
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{errors:#?}");
    }
}

#[test]
fn the_schema_refuses_what_is_not_a_report() {
    let schema = schema();
    let good = json::document(&every_outcome());
    type Break = fn(&mut serde_json::Value);
    let broken: [(&str, Break); 8] = [
        ("version", |d| d["schema"] = json!(2)),
        ("no seed", |d| {
            drop(d.as_object_mut().unwrap().remove("seed"))
        }),
        ("unknown outcome", |d| {
            d["tests"][0]["outcome"] = json!("green")
        }),
        ("negative hits", |d| {
            d["tests"][2]["faults"][0]["hits"] = json!(-1)
        }),
        ("unknown field", |d| d["surprise"] = json!(1)),
        ("a missing count", |d| {
            drop(d["summary"].as_object_mut().unwrap().remove("timeout"))
        }),
        ("matrix fault", |d| d["matrix"][0]["fault"] = json!(3)),
        ("quantile", |d| {
            d["overhead"]["syscalls"][0]["decision_us"]["p99"] = json!("fast")
        }),
    ];
    for (what, breaks) in broken {
        let mut document = good.clone();
        breaks(&mut document);
        assert!(!schema.is_valid(&document), "{what} was accepted");
    }
}

#[test]
fn json_merges_the_meters_of_all_tests() {
    let document = json::document(&every_outcome());
    let interface = &document["overhead"]["interfaces"][0];
    assert_eq!(interface["interface"], "db.pg");
    assert_eq!(interface["requests"], 200);
    let p50 = interface["added_us"]["p50"].as_f64().unwrap();
    assert!((p50 - 50.0).abs() < 0.5, "{p50}");
    assert_eq!(document["overhead"]["syscalls"][0]["trapped"], 100);
}

#[test]
fn junit_holds_nothing_that_xml_cannot() {
    let mut run = every_outcome();
    let odd = "a\u{fffe}b\u{ffff}c\u{1}d\u{1f600}";
    run.notes.push(odd.into());
    run.tests[0].prints.push(odd.into());
    let xml = junit::render(&run).unwrap();
    assert_eq!(xml.matches("a\u{fffd}b\u{fffd}cd\u{1f600}").count(), 2);
    assert!(!xml.contains(['\u{fffe}', '\u{ffff}']), "{xml}");
}

#[test]
fn junit_document() {
    let xml = junit::render(&every_outcome()).unwrap();
    golden("report.xml", &xml);
    assert!(!xml.contains('\x1b'), "XML 1.0 has no escape character");
}

#[test]
fn exit_codes() {
    use Outcome::*;
    for (outcome, blame, exit) in [
        (Passed, None, 0),
        (Failed, Some(Blame::Test), 1),
        (Timeout, Some(Blame::Test), 1),
        (Bypassed, Some(Blame::Test), 1),
        (Error, Some(Blame::Test), 1),
        (Error, Some(Blame::Environment), 3),
        (Error, Some(Blame::Internal), 70),
        (Error, None, 70),
        (Invalid, Some(Blame::Test), 4),
        (Inconclusive, Some(Blame::Test), 4),
        (Halted, Some(Blame::Test), 4),
        (Interrupted, None, 130),
    ] {
        let got = Exit::of_run(&only(outcome, blame)).code();
        assert_eq!(got, exit, "{outcome:?} {blame:?}");
    }
    let mut cut_short = only(Passed, None);
    cut_short.interrupted = true;
    assert_eq!(Exit::of_run(&cut_short).code(), 130);
    assert_eq!(Exit::of_run(&every_outcome()).code(), 130);
    assert_eq!(Exit::of_run(&RunReport::default()).code(), 0);
}

#[test]
fn the_graver_exit_code_wins() {
    let order = [130, 70, 1, 2, 3, 4, 0];
    let of = |code: u8| Exit::ALL.into_iter().find(|e| e.code() == code).unwrap();
    for (i, graver) in order.iter().enumerate() {
        for lesser in &order[i..] {
            assert_eq!(of(*graver).and(of(*lesser)), of(*graver));
            assert_eq!(of(*lesser).and(of(*graver)), of(*graver));
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        failure_persistence: None,
        ..Default::default()
    })]
    /// Whatever a spec or a service says, the report shows it without driving the terminal, and the caret stands under the token.
    #[test]
    fn any_text_can_be_shown(
        message in "(?s).{0,200}",
        line in "\\PC{0,60}",
        before in 0usize..80,
        width in 0u32..100,
        cut in proptest::bool::ANY,
    ) {
        let mut run = only(Outcome::Failed, Some(Blame::Test));
        let test = &mut run.tests[0];
        test.name = message.clone();
        test.prints = vec![message.clone()];
        test.logs = vec![LogTail {
            service: message.clone(),
            lines: vec![message.clone()],
            ended: Some(message.clone()),
        }];
        test.faults = vec![fault(&message, &message, &message, 0)];
        let reason = test.reason.as_mut().unwrap();
        reason.message = message.clone();
        reason.expected = Some(message.clone());
        reason.help = Some(message.clone());
        reason.location = Some(Location {
            pos: pos(7, before as u32),
            line: line.clone(),
            width,
        });
        let style = Style { cut, ..Style::PLAIN };
        let text = human::render(&run, &style, 1);
        proptest::prop_assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        let caret = text.lines().find(|l| l.trim_start().starts_with("| ") && l.ends_with('^'));
        proptest::prop_assert!(caret.is_some(), "{text}");
        junit::render(&run).unwrap();
        json::document(&run);
    }
}

/// A passing run whose proxy took 80 us at most and whose supervisor decided nothing, under these budgets.
fn under(budgets: &[&str]) -> RunReport {
    let mut run = only(Outcome::Passed, None);
    run.budgets = budgets
        .iter()
        .map(|text| faultbox::report::Budget::parse(text).unwrap())
        .collect();
    let meter = |name: &str, us: u64| MeterSnapshot {
        name: name.into(),
        protocol: "http".into(),
        pairs: vec![(us * 1000, 100)],
    };
    run.tests[0].interfaces = vec![meter("api.http", 20), meter("db.pg", 80)];
    run
}

#[test]
fn a_budget_is_judged_by_the_worst_interface() {
    let run = under(&["added_p99<1ms", "added_p50<50us"]);
    assert_eq!(Exit::of_run(&run), Exit::Failed);
    let text = human::render(&run, &Style::PLAIN, 0);
    let (_, block) = text.split_once("\noverhead budget\n").unwrap();
    let (block, _) = block.split_once("\n\n").unwrap();
    assert_eq!(
        block,
        "added_p99<1ms: held\n  db.pg: p99 of 100 requests is 80.1 us\n\
         added_p50<50us: BROKEN\n  db.pg: p50 of 100 requests is 80.1 us"
    );
    let document = json::document(&run);
    assert!(schema().is_valid(&document));
    let budgets = &document["overhead"]["budgets"];
    assert_eq!(budgets[0]["standing"], "held");
    assert_eq!(budgets[1]["standing"], "broken");
    assert_eq!(budgets[1]["measured"][0]["name"], "db.pg");
    assert_eq!(budgets[1]["measured"][0]["held"], false);
    assert_eq!(budgets[1]["measured"][1]["held"], true);
    let xml = junit::render(&run).unwrap();
    assert!(xml.contains("tests=\"3\""), "{xml}");
    assert!(xml.contains("failures=\"1\""), "{xml}");
    assert!(xml.contains("overhead budget added_p50&lt;50us"), "{xml}");
}

#[test]
fn a_budget_that_nothing_was_measured_for_says_so() {
    let run = under(&["decision_p99<1ms"]);
    assert_eq!(Exit::of_run(&run), Exit::Undecided);
    let text = human::render(&run, &Style::PLAIN, 0);
    assert!(
        text.contains("decision_p99<1ms: unmeasured\n  no system call was trapped"),
        "{text}"
    );
    let document = json::document(&run);
    assert!(schema().is_valid(&document));
    assert_eq!(document["overhead"]["budgets"][0]["standing"], "unmeasured");
    assert!(junit::render(&run).unwrap().contains("<skipped"));
    assert_eq!(Exit::of_run(&under(&["added_max<1s"])), Exit::Passed);
}
