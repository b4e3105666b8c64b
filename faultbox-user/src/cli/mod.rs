//! The command line: arguments, exit codes, and which module does what.

pub mod args;
mod bench;
mod check;
pub mod doctor;
pub mod exit;
mod init;
pub mod output;
pub mod problem;
mod progress;
pub mod protocols;
mod select;
mod test;
mod trace;

use std::panic;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser};

use crate::report::Style;
use crate::run;
use crate::spec::{LoadedSpec, PlanPorts};
use args::{Cli, Command};
use exit::Exit;
use problem::Problem;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    guard(dispatch)
}

/// Runs a command so that a panic, on whatever thread, is told as what it is: our bug. One that reaches this thread ends the process
/// with [`Exit::Internal`].
pub fn guard(command: fn() -> ExitCode) -> ExitCode {
    panic::set_hook(Box::new(|panic| output::stderr(&bug(panic))));
    panic::catch_unwind(command).unwrap_or_else(|_| Exit::Internal.into())
}

fn dispatch() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for; everything else is wrong use.
            let text = error.render().to_string();
            return if error.use_stderr() {
                output::stderr(&text);
                Exit::Usage.into()
            } else {
                finish(output::stdout(&text).map(|()| Exit::Passed))
            };
        }
    };
    finish(match &cli.command {
        Command::Test(args) => test::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Check(args) => check::run(args),
        Command::Protocols(args) => protocols::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Init(args) => init::run(args),
        Command::Completions(args) => {
            // Not all of the generators leave hidden commands out.
            let cli = Cli::command();
            let shown = cli.get_subcommands().filter(|c| !c.is_hide_set());
            let mut cli = clap::Command::new("faultbox")
                .version(env!("CARGO_PKG_VERSION"))
                .subcommands(shown.cloned());
            let mut script = vec![];
            clap_complete::generate(args.shell, &mut cli, "faultbox", &mut script);
            output::stdout(&String::from_utf8_lossy(&script)).map(|()| Exit::Passed)
        }
        Command::Trace(args) => match trace::run(args) {
            Ok(exit) => return exit,
            Err(problem) => Err(problem),
        },
        Command::Worker => return run::worker_main(),
        Command::Enter { cgroup, command } => return run::enter_main(cgroup, command),
        Command::Spin { call, count } => return run::spin_main(call, *count),
        Command::Mock { plan } => return run::mock_main(plan),
        Command::Janitor { dir } => return run::janitor_main(dir),
    })
}

fn finish(result: Result<Exit, Problem>) -> ExitCode {
    match result {
        Ok(exit) => exit.into(),
        Err(problem) => {
            output::stderr(&problem.render(&Style::stderr()));
            problem.exit.into()
        }
    }
}

/// What a panic tells the user: that it is not their doing, where it happened, and what helps to mend it.
fn bug(panic: &panic::PanicHookInfo<'_>) -> String {
    let payload = panic.payload();
    let what = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let place = panic
        .location()
        .map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    format!(
        "error: this is a bug in faultbox {}: {what} ({place})\n  help: please report it at {}/issues with the spec and the seed\n",
        env!("CARGO_PKG_VERSION"),
        env!("CARGO_PKG_REPOSITORY"),
    )
}

/// Loads a spec to look at its plan: nothing is bound, nothing is started.
fn load(path: &Path) -> Result<LoadedSpec, Problem> {
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Problem::usage(
                format!("there is no spec {}", path.display()),
                "name one (`faultbox test path/to/spec.star`), or write a starter with `faultbox init`",
            ));
        }
        Ok(meta) if meta.is_dir() => {
            return Err(Problem::usage(
                format!("{} is a folder, not a spec", path.display()),
                format!("did you mean {}?", path.join("faultbox.star").display()),
            ));
        }
        // Whatever else keeps it from being read, the loader says.
        _ => {}
    }
    Ok(LoadedSpec::load(path, Arc::new(PlanPorts::default()))?)
}
