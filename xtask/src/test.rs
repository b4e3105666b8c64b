//! `cargo xtask test`: everything, against real servers and clients.

use std::io::{BufRead, BufReader};
use std::ops::AddAssign;
use std::process::{Command, Stdio};

use crate::{Error, Result, clients, run, setup, specs};

/// How many tests passed and failed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Passed.
    pub passed: u64,
    /// Failed.
    pub failed: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// A test that failed, as cargo finds it again.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failed {
    /// What selects its program: `-p faultbox-redis --test tls`.
    target: String,
    name: String,
}

/// So many failed tests may run again: more of them are no accident of this machine.
const AGAIN: usize = 3;

/// Installs what is missing and runs everything.
pub fn run() -> Result {
    setup::for_tests()?;
    let clients = clients::install()?;
    specs::build()?;
    say_what_is_left_out();

    let mut cargo = run::cargo();
    cargo
        .args(["test", "--workspace", "--no-fail-fast"])
        .env("FAULTBOX_CLIENTS", &clients);
    let (mut tally, failed, succeeded) = cargo_test(cargo)?;
    if !succeeded && tally.failed == 0 {
        println!("cargo test failed without a failed test: something did not build or crashed");
        tally.failed = 1;
    }
    let unstable = alone(&failed, &mut tally, &clients)?;
    tally += specs::examples()?;

    say_what_is_left_out();
    for test in &unstable {
        println!(
            "UNSTABLE: {} ({}) failed, and passed when it ran alone: it, or what it tests, has a race. Its first failure is above",
            test.name, test.target
        );
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally.failed == 0)
}

/// Runs failed tests once more, each alone: what fails only beside others has a race to be found, and is named at the end; what fails
/// again is broken. Returns those that passed.
fn alone(failed: &[Failed], tally: &mut Tally, clients: &std::path::Path) -> Result<Vec<Failed>> {
    // A program that crashed fails without naming its test; nothing is known of those it did not come to.
    if failed.len() > AGAIN || tally.failed != failed.len() as u64 {
        return Ok(vec![]);
    }
    let mut unstable = vec![];
    for test in failed {
        println!("\n{} failed; once more, alone:", test.name);
        let mut cargo = run::cargo();
        cargo
            .arg("test")
            .args(test.target.split_whitespace())
            .args(["--", "--exact", &test.name])
            .env("FAULTBOX_CLIENTS", clients);
        let (again, _, succeeded) = cargo_test(cargo)?;
        if succeeded && again.passed == 1 {
            tally.failed -= 1;
            tally.passed += 1;
            unstable.push(test.clone());
        }
    }
    Ok(unstable)
}

fn say_what_is_left_out() {
    if run::is_root() {
        return;
    }
    println!(
        "
  !! NOT RUN AS ROOT. Left out, each test saying so itself:
  !!   - services as another user (`user=`)
  !!   - cgroups, where this user has none delegated
  !!   - network namespaces, where the kernel lets only root make them
  !!   - arming another user's process, or any where Yama forbids ptrace
  !! `sudo --preserve-env=PATH cargo xtask test` runs everything.
"
    );
}

/// Runs cargo test, shows all that it says, adds up its result lines and collects the tests that failed.
fn cargo_test(mut command: Command) -> Result<(Tally, Vec<Failed>, bool)> {
    run::say(&command);
    // One pipe for what the tests print and for what cargo says of them, or their order would be lost.
    let (reader, writer) = std::io::pipe().map_err(|e| run::cannot_run(&command, &e))?;
    let ours = writer
        .try_clone()
        .map_err(|e| run::cannot_run(&command, &e))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(ours)
        .spawn()
        .map_err(|e| run::cannot_run(&command, &e))?;
    // It holds the writing ends, and reading would never end.
    drop(command);
    let (mut tally, mut failures) = (Tally::default(), Failures::default());
    let mut reader = BufReader::new(reader);
    let mut line = vec![];
    // Bytes, not lines of text: a test may print anything.
    while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&line);
        print!("{text}");
        tally += result_line(&text);
        failures.line(&text);
        line.clear();
    }
    let status = child
        .wait()
        .map_err(|e| Error::new(format!("cargo test: {e}")))?;
    Ok((tally, failures.found, status.success()))
}

/// Collects failed tests from what cargo test prints.
#[derive(Debug, Default)]
struct Failures {
    /// Within the list of names that ends a program's output.
    listing: bool,
    /// Names of a program that cargo has not named yet.
    names: Vec<String>,
    found: Vec<Failed>,
}

impl Failures {
    fn line(&mut self, line: &str) {
        let line = line.trim_end_matches(['\r', '\n']);
        if line == "failures:" {
            // It comes twice, first above what the tests said; the last one counts.
            self.listing = true;
            self.names.clear();
        } else if line.starts_with("test result: ") {
            self.listing = false;
        } else if self.listing {
            self.names
                .extend(line.strip_prefix("    ").map(str::to_owned));
        } else if let Some(target) = target(line) {
            let names = self.names.drain(..);
            self.found.extend(names.map(|name| Failed {
                target: target.to_owned(),
                name,
            }));
        }
    }
}

/// "error: test failed, to rerun pass `-p faultbox-redis --test tls`", in colour or not.
fn target(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("test failed, to rerun pass `")?;
    rest.split_once('`').map(|(target, _)| target)
}

/// "test result: ok. 5 passed; 0 failed; 0 ignored; …"
fn result_line(line: &str) -> Tally {
    let Some(rest) = line.strip_prefix("test result: ") else {
        return Tally::default();
    };
    let count = |word: &str| {
        rest.split([';', '.'])
            .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
            .unwrap_or(0)
    };
    Tally {
        passed: count("passed"),
        failed: count("failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted() {
        let line = "test result: FAILED. 5 passed; 12 failed; 3 ignored; 0 measured; 0 filtered out; finished in 1.20s\n";
        let tally = Tally {
            passed: 5,
            failed: 12,
        };
        assert_eq!(result_line(line), tally);
        assert_eq!(result_line("5 passed; 12 failed"), Tally::default());
    }

    #[test]
    fn failed_tests_are_found_with_their_program() {
        let said = "\
running 3 tests
test good ... ok
test first ... FAILED
test deep::second ... FAILED

failures:

---- first stdout ----
    indented, and no name
failures:
    said by the test itself

failures:
    deep::second
    first

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s

error: test failed, to rerun pass `-p faultbox-redis --test tls`
     Running unittests src/lib.rs (target/debug/deps/faultbox_sql)
test result: ok. 18 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.11s
error: 1 target failed:
    `-p faultbox-redis --test tls`
";
        let mut failures = Failures::default();
        said.lines().for_each(|line| failures.line(line));
        let failed = |name: &str| Failed {
            target: "-p faultbox-redis --test tls".to_owned(),
            name: name.to_owned(),
        };
        assert_eq!(failures.found, [failed("deep::second"), failed("first")]);
    }
}
