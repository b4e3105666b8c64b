//! `cargo xtask test`: everything, against real servers and clients.

use std::io::{BufRead, BufReader};
use std::ops::AddAssign;
use std::process::Stdio;

use crate::{Result, clients, run, setup, specs};

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

/// Installs what is missing and runs everything.
pub fn run() -> Result {
    setup::for_tests()?;
    let clients = clients::install()?;
    specs::build()?;
    say_what_is_left_out();

    let mut cargo = run::cargo();
    cargo
        .args(["test", "--workspace", "--no-fail-fast"])
        .env("FAULTBOX_CLIENTS", clients);
    let (mut tally, succeeded) = cargo_test(cargo)?;
    if !succeeded && tally.failed == 0 {
        println!("cargo test failed without a failed test: something did not build or crashed");
        tally.failed = 1;
    }
    tally += specs::examples()?;

    say_what_is_left_out();
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally.failed == 0)
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

/// Runs cargo test, shows all that it says, and adds up its result lines.
fn cargo_test(mut command: std::process::Command) -> Result<(Tally, bool)> {
    run::say(&command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| run::cannot_run(&command, &e))?;
    let mut tally = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        let mut reader = BufReader::new(stdout);
        let mut line = vec![];
        // Bytes, not lines of text: a test may print anything.
        while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line);
            print!("{text}");
            tally += result_line(&text);
            line.clear();
        }
    }
    let status = child.wait().map_err(|e| run::cannot_run(&command, &e))?;
    Ok((tally, status.success()))
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
}
