//! What can be known before anything starts is said before anything starts, all of it at once.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::RunError;
use super::services::user;
use crate::plan::report::Blame;
use crate::plan::{Launch, ServiceDecl, Topology};
use crate::spec::LoadedSpec;
use crate::sys::probe;

/// Checks binaries, working folders and users of every service.
///
/// # Errors
/// Everything that is missing, with the service that needs it.
pub fn check(topology: &Topology) -> Result<(), RunError> {
    let mut missing = vec![];
    let mut help: Option<String> = None;
    for service in &topology.services {
        for (problem, hint) in problems(service) {
            missing.push(format!("service `{}`: {problem}", service.name));
            help.get_or_insert(hint);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(RunError {
        message: missing.join("\n"),
        help,
        blame: Blame::Environment,
    })
}

/// What a run of this spec will lack on this machine, though some or all of its tests can do without.
pub fn limits(spec: &LoadedSpec) -> Vec<String> {
    let faulted = spec.topology().services.iter().any(|service| {
        matches!(service.launch, Launch::Binary { .. })
            && !spec.declared_syscalls(&service.name).is_empty()
    });
    if !faulted {
        return vec![];
    }
    let refused = [
        ("seccomp user notification", probe::user_notification()),
        ("pidfd_getfd", probe::pidfd_getfd()),
    ];
    for (what, tried) in refused {
        if let Err(e) = tried {
            return vec![format!(
                "system-call faults cannot be put in force here ({what}: {}), so tests that apply one will end in an error; \
                 `faultbox doctor` says how to get it",
                text(&e)
            )];
        }
    }
    match probe::ptrace_child() {
        Ok(()) => vec![],
        Err(e) => vec![format!(
            "ptrace is refused here ({}), so system-call filters are installed before exec, for the calls that the spec names",
            text(&e)
        )],
    }
}

/// The system's words without "(os error N)".
fn text(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(errno) => nix::errno::Errno::from_raw(errno).desc().to_lowercase(),
        None => e.to_string(),
    }
}

fn problems(service: &ServiceDecl) -> Vec<(String, String)> {
    let mut found = vec![];
    let Launch::Binary { written, resolved } = &service.launch else {
        return found;
    };
    match resolved {
        None if written.contains('/') => found.push((
            format!("its binary `{written}` does not exist"),
            "build it, or correct `binary=`: a relative path starts at the spec's folder"
                .to_owned(),
        )),
        None => found.push((
            format!("its binary `{written}` was not found in PATH"),
            format!("install `{written}`, or give its path"),
        )),
        Some(path) => {
            if let Some(problem) = not_runnable(path) {
                let hint = if path.is_dir() {
                    "name the program in it".to_owned()
                } else {
                    format!("make it executable: chmod +x {}", path.display())
                };
                found.push((format!("its binary {} {problem}", path.display()), hint));
            } else if let Some(interpreter) = interpreter(path)
                && let Some(problem) = not_runnable(&interpreter)
            {
                found.push((
                    format!(
                        "{}, the interpreter that its binary {} names, {problem}",
                        interpreter.display(),
                        path.display()
                    ),
                    "install it, or correct the `#!` line".to_owned(),
                ));
            }
        }
    }
    if !service.cwd.is_dir() {
        found.push((
            format!("its folder {} does not exist", service.cwd.display()),
            "create it, or correct `cwd=`".to_owned(),
        ));
    }
    if let Some(name) = &service.user {
        match user::resolve(name) {
            Err(e) => found.push((e, "create the user, or correct `user=`".to_owned())),
            Ok(account) => {
                let own = nix::unistd::geteuid();
                if !own.is_root() && own.as_raw() != account.ids.uid {
                    found.push((
                        format!("running it as user `{name}` needs root"),
                        "run faultbox as root, or leave `user=` out".to_owned(),
                    ));
                }
            }
        }
    }
    found
}

/// What a script's first line names (execve(2), "Interpreter scripts").
fn interpreter(program: &Path) -> Option<PathBuf> {
    // As much of the line as the kernel reads.
    let mut head = [0; 256];
    let mut file = std::fs::File::open(program).ok()?;
    let read = file.read(&mut head).ok()?;
    let line = head[..read].strip_prefix(b"#!")?;
    let line = line.split(|b| *b == b'\n').next()?.trim_ascii_start();
    let name = line.split(|b| matches!(b, b' ' | b'\t')).next()?;
    let name = Path::new(OsStr::from_bytes(name));
    name.is_absolute().then(|| name.to_owned())
}

fn not_runnable(path: &Path) -> Option<String> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Some("is a folder".to_owned()),
        Ok(meta) if meta.permissions().mode() & 0o111 == 0 => Some("is not executable".to_owned()),
        Ok(_) => None,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Some("does not exist".to_owned()),
        Err(e) => Some(format!("cannot be looked at: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_name_their_interpreter() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("script");
        let named = |text: &[u8]| {
            std::fs::write(&file, text).unwrap();
            interpreter(&file)
        };
        assert_eq!(named(b"#!/bin/sh\nexit"), Some("/bin/sh".into()));
        assert_eq!(
            named(b"#! /usr/bin/env python3\n"),
            Some("/usr/bin/env".into())
        );
        assert_eq!(named(b"#!relative\n"), None);
        assert_eq!(named(b"\x7fELF"), None);
        assert_eq!(named(b"#!"), None);
    }
}
