//! The repository's verbs, the same on a laptop and in CI: `cargo xtask demo | test | tidy | fuzz | bench | vm | ebpf | instructions`.

mod bench;
mod clients;
mod demo;
mod ebpf;
mod fuzz;
mod instructions;
mod json;
mod run;
mod setup;
mod specs;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask <verb>

  demo   install what the build needs, build, and run the quickstart: two services, seven faults, one bug
  test   the same for the tests (real servers and clients), then run everything; ends with `N passed, N failed`
  tidy   check the repository's own rules
  fuzz   <protocol> [seconds]: coverage-guided fuzzing of its proxy, with cargo-fuzz
  bench  [part...]   measure: what Faultbox costs where nothing is armed, where something is, and what others cost; only these: tracing, calls, runs, or proxies in front of a server

  vm     [aarch64] [kernel]: run the specs of the kernel's side on Debian's kernel, or another, in a virtual machine of this or that processor
  ebpf   build the programs for the kernel anew, installing their compiler if it is missing; with --check, compare instead
  instructions  count the instructions of each codec, proxy and decision; --check fails where they are not the committed ones, --bless accepts them";

/// Why a verb could not do its work.
#[derive(Debug)]
struct Error {
    message: String,
    help: Option<String>,
}

impl Error {
    fn new(message: impl Into<String>) -> Error {
        Error {
            message: message.into(),
            help: None,
        }
    }

    fn help(mut self, help: impl Into<String>) -> Error {
        self.help = Some(help.into());
        self
    }
}

/// `Ok(false)`: it did its work, and the answer is no.
type Result<T = bool> = std::result::Result<T, Error>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let verdict = match words.as_slice() {
        ["demo"] => demo::run(),
        ["test"] => test::run(),
        ["tidy"] => tidy::run(),
        ["fuzz", protocol] => fuzz::run(protocol, None),
        ["fuzz", protocol, seconds] => fuzz::run(protocol, Some(seconds)),
        ["bench", only @ ..] => bench::run(only),
        ["vm"] => vm::run(None),
        ["vm", "aarch64"] => vm::on_aarch64(None),
        ["vm", "aarch64", kernel] => vm::on_aarch64(Some(kernel)),
        ["vm", kernel] => vm::run(Some(kernel)),
        ["ebpf"] => ebpf::run(false),
        ["ebpf", "--check"] => ebpf::run(true),
        ["instructions"] => instructions::run(instructions::Mode::Show),
        ["instructions", "--check"] => instructions::run(instructions::Mode::Check),
        ["instructions", "--bless"] => instructions::run(instructions::Mode::Bless),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(true)
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match verdict {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", error.message);
            if let Some(help) = error.help {
                eprintln!("help: {help}");
            }
            ExitCode::from(3)
        }
    }
}
