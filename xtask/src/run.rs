//! Running other programs.

use std::ffi::OsStr;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Error, Result};

/// The repository's root.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The cargo that runs us.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Says what runs, runs it, and tells whether it succeeded.
pub fn succeeds(command: &mut Command) -> Result {
    say(command);
    let status = command
        .stdin(Stdio::null())
        .status()
        .map_err(|e| cannot_run(command, &e))?;
    Ok(status.success())
}

/// The same; a failure is an error.
pub fn must(command: &mut Command) -> Result<()> {
    match succeeds(command)? {
        true => Ok(()),
        false => Err(Error::new(format!("`{}` failed", show(command)))),
    }
}

/// What it prints, without the white space around it; a failure is an error that says what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| cannot_run(command, &e))?;
    if !output.status.success() {
        return Err(Error::new(format!("`{}` failed", show(command)))
            .help(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Prints the command as one would type it.
pub fn say(command: &Command) {
    println!("\x1b[1m$ {}\x1b[0m", show(command));
}

/// The error for a program that could not be started.
pub fn cannot_run(command: &Command, e: &std::io::Error) -> Error {
    Error::new(format!(
        "{} cannot be run: {e}",
        command.get_program().to_string_lossy()
    ))
}

/// The command as one would type it.
pub fn show(command: &Command) -> String {
    let mut line = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program())
        .to_string_lossy()
        .into_owned();
    for arg in command.get_args() {
        let arg = arg.to_string_lossy();
        // A script given as an argument is shown by its first line.
        let first = arg.lines().next().unwrap_or_default();
        let _ = match first.contains(' ') || first.len() < arg.len() {
            true => write!(line, " '{first}'"),
            false => write!(line, " {first}"),
        };
    }
    line
}

/// Is there a program of this name in PATH?
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // sbin holds servers, and is missing from a plain user's PATH.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(name).is_file())
}

/// Runs quietly: did it succeed?
pub fn quietly(program: impl AsRef<OsStr>, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// Are we root?
pub fn is_root() -> bool {
    // The owner of our own process; std has no geteuid.
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}
