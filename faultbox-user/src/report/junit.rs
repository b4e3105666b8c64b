//! The report as JUnit XML, for the test pages of CI systems.

use std::fmt::Write as _;
use std::time::Duration;

use quick_junit::{
    NonSuccessKind, Property, Report, SerializeError, TestCase, TestCaseStatus, TestSuite,
};

use super::budget::{self, Judged, Standing};
use super::{RunReport, text};
use crate::plan::{Outcome, TestReport};

/// The document as text.
///
/// # Errors
/// The writer's; not for want of valid text: what XML cannot hold is dropped or replaced.
pub fn render(report: &RunReport) -> Result<String, SerializeError> {
    let mut suite = TestSuite::new(report.spec.as_str());
    suite.set_time(duration(report.duration_ms));
    suite.add_property(Property::new("seed", report.seed.to_string()));
    for note in &report.notes {
        suite.add_property(Property::new("note", note.as_str()));
    }
    for test in &report.tests {
        suite.add_test_case(case(report, test));
    }
    for judged in budget::judge(report) {
        suite.add_test_case(budget_case(report, &judged));
    }
    let mut document = Report::new("faultbox");
    document.set_time(duration(report.duration_ms));
    document.add_test_suite(suite);
    let text = document.to_string()?;
    // The writer lets two characters through that would make every reader refuse the whole document.
    Ok(match text.contains(|c| !is_char(c)) {
        true => text.replace(|c| !is_char(c), "\u{fffd}"),
        false => text,
    })
}

/// XML 1.0, section 2.2, production 2.
fn is_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

fn case(report: &RunReport, test: &TestReport) -> TestCase {
    let mut status = match test.outcome {
        Outcome::Passed => TestCaseStatus::success(),
        // What was asserted does not hold, or was never put to the test.
        Outcome::Failed | Outcome::Bypassed => TestCaseStatus::non_success(NonSuccessKind::Failure),
        Outcome::Error | Outcome::Timeout => TestCaseStatus::non_success(NonSuccessKind::Error),
        // It says nothing, neither good nor bad.
        Outcome::Invalid | Outcome::Inconclusive | Outcome::Halted | Outcome::Interrupted => {
            TestCaseStatus::skipped()
        }
    };
    if test.outcome != Outcome::Passed {
        let reason = test.reason.as_ref();
        let message = reason.map_or(test.outcome.name(), |r| r.message.as_str());
        status.set_message(message);
        status.set_type(test.outcome.name());
        status.set_description(description(report, test));
    }
    let mut case = TestCase::new(test.name.as_str(), status);
    case.set_classname(report.spec.as_str());
    case.set_time(duration(test.duration_ms));
    case.set_assertions(usize::try_from(test.assertions).unwrap_or(usize::MAX));
    case.add_property(Property::new("seed", test.seed.to_string()));
    for fault in &test.faults {
        case.add_property(Property::new(
            format!("fault.{}", fault.name),
            format!(
                "{} on {}: {}",
                fault.action,
                fault.target,
                text::count(fault.hits, "hit")
            ),
        ));
    }
    let out = output(test);
    if !out.is_empty() {
        // The writer drops control characters, and with a tab the words around it would run together.
        case.set_system_out(out.replace('\t', "    "));
    }
    case
}

/// A budget is a case of its own: it is about the run, not about one of its tests.
fn budget_case(report: &RunReport, judged: &Judged) -> TestCase {
    let mut status = match judged.standing {
        Standing::Held => TestCaseStatus::success(),
        Standing::Broken => TestCaseStatus::non_success(NonSuccessKind::Failure),
        Standing::Unmeasured => TestCaseStatus::skipped(),
    };
    if judged.standing != Standing::Held {
        status.set_message(judged.summary());
        status.set_type("overhead_budget");
        status.set_description(judged.lines().join("\n"));
    }
    let mut case = TestCase::new(format!("overhead budget {}", judged.budget.text), status);
    case.set_classname(report.spec.as_str());
    case
}

fn description(report: &RunReport, test: &TestReport) -> String {
    let mut out = String::new();
    if let Some(reason) = &test.reason {
        let _ = writeln!(out, "{}", reason.message);
        if let Some(expected) = &reason.expected {
            let _ = writeln!(out, "expected: {expected}");
        }
        if let Some(actual) = &reason.actual {
            let _ = writeln!(out, "actual: {actual}");
        }
        if let Some(location) = &reason.location {
            let _ = writeln!(out, "at {}: {}", location.pos, location.line.trim());
        }
        if let Some(help) = &reason.help {
            let _ = writeln!(out, "help: {help}");
        }
    }
    let _ = write!(
        out,
        "rerun: {}",
        text::rerun(&report.spec, &test.name, test.seed)
    );
    out
}

fn output(test: &TestReport) -> String {
    let mut out = String::new();
    for line in &test.prints {
        let _ = writeln!(out, "{line}");
    }
    for note in &test.notes {
        let _ = writeln!(out, "note: {note}");
    }
    for log in &test.logs {
        match &log.ended {
            Some(ended) => {
                let _ = writeln!(out, "--- {} ({ended})", log.service);
            }
            None => {
                let _ = writeln!(out, "--- {}", log.service);
            }
        }
        for line in &log.lines {
            let _ = writeln!(out, "{line}");
        }
    }
    out
}

/// A negative or endless time cannot come from a clock; it must not become a panic either.
fn duration(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default()
}
