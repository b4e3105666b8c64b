//! Running the specs of the repository, and comparing each test's outcome with the one that stands beside the spec.
//!
//! `x.star` is judged by `x.expected`: one line per test, `<outcome> <name>`. A spec without one must pass whole.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::json::Json;
use crate::run;
use crate::test::Tally;
use crate::{Error, Result};

/// The command under test, in release: the examples name their services in target/release too.
pub fn faultbox() -> PathBuf {
    target().join("release/faultbox")
}

/// A program as users install it.
pub fn dist(program: &str) -> PathBuf {
    target().join("dist").join(program)
}

/// Where cargo builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| run::root().join("target"), PathBuf::from)
}

/// The quickstart's services.
const QUICKSTART: [&str; 2] = ["quickstart-inventory", "quickstart-orders"];

/// Builds what the tests run: in release the command and the example services, and what the conformance specs fault where cargo's tests
/// look for it.
pub fn build() -> Result<()> {
    let mut victims = run::cargo();
    victims.arg("build");
    run::must(packages(
        &mut victims,
        ["conformance-victim", "conformance-grpc"],
    ))?;
    build_release()
}

/// Builds what runs in release, all in one go: features are unified over what is built together, and what one of these crates shares with
/// another is then compiled once.
pub fn build_release() -> Result<()> {
    let mut build = run::cargo();
    build.args(["build", "--release"]);
    packages(
        &mut build,
        ["faultbox", "faultbox-instructions", "orders-service"],
    );
    run::must(packages(&mut build, QUICKSTART))
}

/// Builds the command and the quickstart's services, and nothing else: somebody waits for them.
pub fn build_quickstart() -> Result<()> {
    let mut build = run::cargo();
    build.args(["build", "--release"]);
    packages(&mut build, ["faultbox"]);
    run::must(packages(&mut build, QUICKSTART))
}

/// Builds as users install: optimised as a whole, which takes longer.
pub fn build_dist(names: &[&'static str]) -> Result<()> {
    let mut build = run::cargo();
    build.args(["build", "--profile", "dist"]);
    run::must(packages(&mut build, names.iter().copied()))
}

fn packages(build: &mut Command, names: impl IntoIterator<Item = &'static str>) -> &mut Command {
    for name in names {
        build.args(["--package", name]);
    }
    build
}

/// Runs the examples; each of their tests counts as one.
pub fn examples() -> Result<Tally> {
    let mut tally = Tally::default();
    for spec in [
        "specs/examples/quickstart/faultbox.star",
        "specs/examples/quickstart/bug.star",
        "specs/examples/orders/faultbox.star",
    ] {
        tally += check(spec)?;
    }
    Ok(tally)
}

/// Runs one spec and compares.
fn check(spec: &str) -> Result<Tally> {
    let path = run::root().join(spec);
    let expected = match std::fs::read_to_string(path.with_extension("expected")) {
        Ok(text) => Some(Expected::parse(&text)?),
        Err(_) => None,
    };
    let mut command = Command::new(faultbox());
    command
        .current_dir(run::root())
        .args(["test", spec, "--format", "json"]);
    run::say(&command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| run::cannot_run(&command, &e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let outcomes = Json::parse(&text)
        .map(|json| outcomes(&json))
        .unwrap_or_default();
    if outcomes.is_empty() {
        println!("{spec}: no report ({}):\n{text}", output.status);
        return Ok(Tally {
            passed: 0,
            failed: 1,
        });
    }
    let tally = compare(&outcomes, expected.as_ref());
    println!("{spec}: {} as expected, {} not", tally.passed, tally.failed);
    Ok(tally)
}

/// A test's name, its outcome, and why it is that.
type Outcome = (String, String, String);

fn outcomes(report: &Json) -> Vec<Outcome> {
    let text = |test: &Json, name| test.get(name).and_then(Json::text).unwrap_or("").to_owned();
    report
        .get("tests")
        .map(Json::list)
        .unwrap_or_default()
        .iter()
        .map(|test| {
            let reason = test.get("reason");
            let why = reason
                .and_then(Json::text)
                .or_else(|| reason.and_then(|r| r.get("message")).and_then(Json::text));
            let why = why.unwrap_or("").to_owned();
            (text(test, "name"), text(test, "outcome"), why)
        })
        .collect()
}

/// What `x.expected` says.
struct Expected(Vec<(String, String)>);

impl Expected {
    fn parse(text: &str) -> Result<Expected> {
        let lines = text
            .lines()
            .filter(|l| !l.is_empty() && !l.starts_with('#'));
        lines
            .map(|line| {
                let (outcome, name) = line.split_once(' ').ok_or_else(|| {
                    Error::new(format!("expected `<outcome> <test>`, not `{line}`"))
                })?;
                Ok((name.trim().to_owned(), outcome.to_owned()))
            })
            .collect::<Result<_>>()
            .map(Expected)
    }
}

fn compare(outcomes: &[Outcome], expected: Option<&Expected>) -> Tally {
    let mut tally = Tally::default();
    for (name, outcome, why) in outcomes {
        let wanted = match expected {
            None => "passed",
            Some(Expected(lines)) => lines
                .iter()
                .find(|(n, _)| n == name)
                .map_or("(not mentioned)", |(_, o)| o.as_str()),
        };
        if outcome == wanted {
            tally.passed += 1;
        } else {
            tally.failed += 1;
            println!("  {name}: {outcome}, expected {wanted}: {why}");
        }
    }
    for (name, wanted) in expected.iter().flat_map(|e| &e.0) {
        if !outcomes.iter().any(|(n, ..)| n == name) {
            tally.failed += 1;
            println!("  {name}: did not run, expected {wanted}");
        }
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_compared_both_ways() {
        let report = r#"{"tests": [{"name": "a", "outcome": "passed", "reason": null},
            {"name": "b", "outcome": "failed", "reason": {"message": "1 is not 2"}}]}"#;
        let outcomes = outcomes(&Json::parse(report).unwrap());
        assert_eq!(outcomes[1].2, "1 is not 2");
        let with = |expected: Option<&str>| {
            let expected = expected.map(|text| Expected::parse(text).unwrap());
            let tally = compare(&outcomes, expected.as_ref());
            (tally.passed, tally.failed)
        };
        assert_eq!(with(None), (1, 1));
        assert_eq!(with(Some("# both\npassed a\nfailed b\n")), (2, 0));
        assert_eq!(with(Some("passed a\nfailed b\npassed c\n")), (2, 1));
        assert_eq!(with(Some("passed a\n")), (1, 1));
        assert!(Expected::parse("passed").is_err());
    }
}
