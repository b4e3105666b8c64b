//! `faultbox trace`: what a command, or the services of a spec, do.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::args::{Format, TraceArgs};
use super::exit::Exit;
use super::problem::Problem;
use super::progress::Progress;
use super::{load, output, select, test};
use crate::plan::{Activity, Outcome};
use crate::report::trace::{TraceReport, human, json};
use crate::report::{Style, text};
use crate::run::trace::{self, Traced};
use crate::run::tracer::debug;
use crate::run::{self, RunOptions};
use crate::sys::path::is_program;

/// Runs the command; its exit code is that of what was traced.
///
/// # Errors
/// Wrong use, a machine on which nothing can be traced, a summary that cannot be written.
pub fn run(args: &TraceArgs) -> Result<ExitCode, Problem> {
    let (report, exit) = match &args.spec {
        Some(spec) => of_spec(args, spec)?,
        None => of_command(args)?,
    };
    deliver(args, &report)?;
    Ok(exit)
}

fn deliver(args: &TraceArgs, report: &TraceReport) -> Result<(), Problem> {
    let render = |style: &Style| match args.format {
        Format::Human => human(report, style, args.verbose),
        Format::Json => json(report),
    };
    match (&args.output, args.format) {
        (Some(path), _) => {
            let text = render(&Style::PLAIN);
            output::file("--output", path, &text).inspect_err(|_| output::stderr(&text))
        }
        (None, Format::Json) => output::stdout(&render(&Style::PLAIN)),
        // Standard output is the command's.
        (None, Format::Human) if args.spec.is_none() => {
            output::stderr(&render(&Style::stderr()));
            Ok(())
        }
        (None, Format::Human) => output::stdout(&render(&Style::stdout())),
    }
}

fn of_command(args: &TraceArgs) -> Result<(TraceReport, ExitCode), Problem> {
    let Some(name) = args.command.first() else {
        return Err(Problem::usage(
            "there is nothing to trace",
            "name a command (`faultbox trace -- sort big.txt`) or a spec (`--spec faultbox.star`)",
        ));
    };
    let program = find(name).ok_or_else(|| {
        let path = Path::new(name);
        if path.components().count() > 1 && path.exists() {
            let what = match path.is_dir() {
                true => "is a folder",
                false => "is not executable",
            };
            return Problem::environment(
                format!("{} {what}", path.display()),
                "name a program that can be run",
            );
        }
        Problem::environment(
            format!("there is no program `{}`", Path::new(name).display()),
            "give its path, or the name of a program that is in PATH",
        )
    })?;
    let written = [
        ("--output", args.output.as_ref()),
        ("--events", args.events.as_ref()),
    ];
    output::distinct(written, None)?;
    let events = args.events.as_deref().map(create).transpose()?;
    let traced = trace::trace(Traced {
        program: &program,
        command: &args.command,
        own_stdout: args.format == Format::Human || args.output.is_some(),
        events,
        listener: (args.verbose > 1).then(|| {
            let tell = |line: String| output::stderr(&format!("kernel: {}\n", text::clean(&line)));
            Box::new(tell) as debug::Listener
        }),
    })?;
    let words: Vec<String> = args
        .command
        .iter()
        .map(|word| text::shell(&word.to_string_lossy()))
        .collect();
    let report = TraceReport {
        what: words.join(" "),
        end: traced.end.unwrap_or_else(|| "exit 0".to_owned()),
        status: Some(traced.status),
        duration_ms: traced.took.as_secs_f64() * 1e3,
        services: BTreeMap::from([("command".to_owned(), traced.activity)]),
        cost: traced.cost,
        notes: traced.notes,
    };
    Ok((report, ExitCode::from(traced.status)))
}

fn create(path: &Path) -> Result<File, Problem> {
    File::create(path).map_err(|e| {
        Problem::environment(
            format!("--events {} cannot be written: {e}", path.display()),
            "name a file in a folder that exists and may be written",
        )
    })
}

/// As execvp(3) looks for it.
fn find(name: &OsString) -> Option<PathBuf> {
    let written = Path::new(name);
    if written.components().count() > 1 || written.is_absolute() {
        return std::path::absolute(written)
            .ok()
            .filter(|path| is_program(path));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|path| is_program(path))
        .and_then(|path| std::path::absolute(path).ok())
}

fn of_spec(args: &TraceArgs, path: &Path) -> Result<(TraceReport, ExitCode), Problem> {
    let spec = load(path)?;
    output::distinct([("--output", args.output.as_ref())], Some(&spec))?;
    let selected = select::select(path, spec.tests(), &args.tests)?;
    if selected.is_empty() {
        return Err(Problem::usage(
            format!("{} declares no test", path.display()),
            "services are traced while a test runs them",
        ));
    }
    // First: where nothing can be traced, no test need run.
    let cost = trace::gauge()?;
    let options = RunOptions {
        spec: path.to_owned(),
        tests: selected.iter().map(|t| t.name.clone()).collect(),
        seed: test::random_seed(),
        runs: 1,
        trace: true,
        verbose: args.verbose,
        ..RunOptions::default()
    };
    let progress = Progress::new(selected.len(), Style::stderr());
    let run = run::run(&spec, &options, &progress);
    progress.end();
    let run = run?;
    let mut services: BTreeMap<String, Activity> = BTreeMap::new();
    for (name, activity) in run.tests.iter().flat_map(|t| &t.activity) {
        services.entry(name.clone()).or_default().merge(activity);
    }
    let outcomes: Vec<String> = Outcome::ALL
        .into_iter()
        .map(|outcome| (run.count(outcome), outcome.name()))
        .filter(|(n, _)| *n > 0)
        .map(|(n, name)| format!("{n} {name}"))
        .collect();
    let report = TraceReport {
        what: path.display().to_string(),
        end: outcomes.join(", "),
        status: None,
        duration_ms: run.duration_ms,
        services,
        cost,
        notes: run.notes.clone(),
    };
    Ok((report, Exit::of_run(&run).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_does() {
        let found = |name: &str| find(&OsString::from(name));
        assert!(found("sh").is_some_and(|p| p.is_absolute()));
        assert_eq!(found("/bin/sh"), Some(PathBuf::from("/bin/sh")));
        assert_eq!(found("/etc/passwd"), None, "not executable");
        assert_eq!(found("no-such-program-anywhere"), None);
    }
}
