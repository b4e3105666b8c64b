//! `faultbox doctor`: what this machine allows, what is lost without it, and how to get it.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde_json::json;

use super::args::{DoctorArgs, Format};
use super::exit::Exit;
use super::output;
use super::problem::Problem;
use crate::plan::Outcome;
use crate::report::{Style, text};
use crate::run::isolation::cgroup;
use crate::run::tracer::{self, Feature, Kernel};
use crate::sys::probe;

/// One thing that a machine may or may not allow.
#[derive(Debug, Clone)]
pub struct Capability {
    /// What it is called.
    pub name: &'static str,
    /// Is faultbox of no use for syscall faults without it?
    pub essential: bool,
    /// Is it there?
    pub ok: bool,
    /// What was seen: a value, or the error.
    pub detail: String,
    /// What does not work without it.
    pub lost: &'static str,
    /// How to get it.
    pub fix: &'static str,
}

/// Runs the command.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(args: &DoctorArgs) -> Result<Exit, Problem> {
    let found = probe_all();
    match args.format {
        Format::Human => output::stdout(&render(&kernel(), &found, &Style::stdout()))?,
        Format::Json => {
            let list: Vec<_> = found
                .iter()
                .map(|c| {
                    json!({
                        "name": c.name,
                        "ok": c.ok,
                        "essential": c.essential,
                        "detail": c.detail,
                        "lost": c.lost,
                        "fix": c.fix,
                    })
                })
                .collect();
            let document = json!({
                "schema": 1,
                "kernel": kernel(),
                "ok": healthy(&found),
                "capabilities": list,
            });
            output::stdout(&format!("{document:#}\n"))?;
        }
    }
    Ok(if healthy(&found) {
        Exit::Passed
    } else {
        Exit::Environment
    })
}

/// Is everything essential there?
pub fn healthy(found: &[Capability]) -> bool {
    found.iter().all(|c| c.ok || !c.essential)
}

/// The findings as text.
pub fn render(kernel: &str, found: &[Capability], style: &Style) -> String {
    let mut out = format!("{kernel}\n\n");
    let width = found.iter().map(|c| c.name.len()).max().unwrap_or(0);
    for c in found {
        let word = match (c.ok, c.essential) {
            (true, _) => style.outcome(Outcome::Passed, "     ok"),
            (false, true) => style.outcome(Outcome::Failed, "MISSING"),
            (false, false) => style.outcome(Outcome::Invalid, "missing"),
        };
        let line = format!("{word}  {:<width$}  {}", c.name, c.detail);
        let _ = writeln!(out, "{}", line.trim_end());
        if c.ok {
            continue;
        }
        for (head, words) in [("lost", c.lost), ("fix", c.fix)] {
            let room = style.width.saturating_sub(15).max(20);
            for (i, line) in text::wrap(words, room).iter().enumerate() {
                let head = if i == 0 {
                    format!("{head}:")
                } else {
                    String::new()
                };
                let _ = writeln!(out, "         {head:<6}{line}");
            }
        }
    }
    out.push('\n');
    out.push_str(if !healthy(found) {
        "something essential is missing: syscall faults cannot work here\n"
    } else if found.iter().all(|c| c.ok) {
        "everything is there\n"
    } else {
        "everything essential is there\n"
    });
    out
}

/// The kernel's release and machine, on which most of the rest depends.
fn kernel() -> String {
    match nix::sys::utsname::uname() {
        Ok(u) => format!(
            "{} {} {}",
            u.sysname().to_string_lossy(),
            u.release().to_string_lossy(),
            u.machine().to_string_lossy()
        ),
        Err(e) => format!("unknown kernel ({})", e.desc()),
    }
}

fn probe_all() -> Vec<Capability> {
    vec![
        capability(
            "/proc",
            true,
            fs::read_to_string("/proc/self/status").map(|_| ()),
            "everything: processes are found, looked at and cleaned up by it",
            "mount -t proc proc /proc; in a sandbox, one that shows the processes started in it",
        ),
        capability(
            "seccomp user notification",
            true,
            probe::user_notification(),
            "all syscall faults",
            "Linux 5.0 or later with CONFIG_SECCOMP_FILTER; in a container, a seccomp profile that allows seccomp(2) (Docker: --security-opt seccomp=unconfined)",
        ),
        capability(
            "seccomp SYNC_WAKE_UP",
            false,
            probe::sync_wake_up(),
            "speed: a trapped call costs about 30 us instead of 5 us",
            "Linux 6.6 or later",
        ),
        capability(
            "seccomp WAIT_KILLABLE_RECV",
            false,
            probe::wait_killable_recv(),
            "steadiness under signals: a Go program's preemption signals make it repeat trapped calls",
            "Linux 5.19 or later",
        ),
        capability(
            "seccomp TSYNC_ESRCH",
            false,
            probe::tsync_esrch(),
            "arming a running process with several threads; filters are installed before exec instead",
            "Linux 5.7 or later",
        ),
        with_detail(
            capability(
                "ptrace of own children",
                false,
                probe::ptrace_child(),
                "arming when a fault is applied: the filter for a test's declared faults is installed before exec instead, and services pay for it from their start",
                "sysctl kernel.yama.ptrace_scope=1 (or 0); in a container, --cap-add SYS_PTRACE",
            ),
            sysctl("kernel/yama/ptrace_scope").map(|v| format!("yama ptrace_scope {v}")),
        ),
        capability(
            "pidfd_getfd",
            true,
            probe::pidfd_getfd(),
            "all syscall faults: the supervisor cannot take the listener of a filter",
            "Linux 5.6 or later; in a container, --cap-add SYS_PTRACE or a seccomp profile that allows it",
        ),
        with_detail(
            capability(
                "user namespaces",
                false,
                probe::user_namespace(),
                "network namespaces for users without privilege",
                "sysctl user.max_user_namespaces=10000, and where they exist kernel.unprivileged_userns_clone=1 (Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu)",
            ),
            sysctl("user/max_user_namespaces").map(|v| format!("at most {v}")),
        ),
        capability(
            "network namespaces",
            false,
            probe::network_namespace(),
            "tests in parallel: they share the host's ports and run one at a time",
            "run as root, or with CAP_SYS_ADMIN and CAP_NET_ADMIN; as a user without either, allow user namespaces (above)",
        ),
        cgroup(),
        bpf(),
        types(),
    ]
}

fn capability(
    name: &'static str,
    essential: bool,
    result: io::Result<()>,
    lost: &'static str,
    fix: &'static str,
) -> Capability {
    Capability {
        name,
        essential,
        ok: result.is_ok(),
        detail: result.err().map_or_else(String::new, |e| explain(&e)),
        lost,
        fix,
    }
}

fn with_detail(mut capability: Capability, more: Option<String>) -> Capability {
    if let Some(more) = more {
        if !capability.detail.is_empty() {
            capability.detail.push_str("; ");
        }
        capability.detail.push_str(&more);
    }
    capability
}

/// "EPERM: operation not permitted".
fn explain(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(errno) => format!("{errno:?}: {}", errno.desc().to_lowercase()),
        None => error.to_string(),
    }
}

fn sysctl(name: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
    Some(text.trim().to_owned())
}

fn cgroup() -> Capability {
    let missing = || io::Error::new(io::ErrorKind::NotFound, "cgroup2 is not mounted");
    let tried = cgroup::own().ok_or_else(missing).and_then(|own| {
        let probe = own.join(format!("faultbox-doctor-{}", std::process::id()));
        cgroup::create(&probe)?;
        fs::remove_dir(&probe)?;
        // Collecting drops the trailing slash that joining an empty path leaves.
        Ok(own.components().collect::<PathBuf>())
    });
    Capability {
        name: "cgroup v2, writable",
        essential: false,
        ok: tried.is_ok(),
        detail: match &tried {
            Ok(own) => own.display().to_string(),
            Err(e) => explain(e),
        },
        lost: "certainty about processes that leave their service's tree: they are found by their environment and network instead of their cgroup",
        fix: "Linux 5.14 or later with cgroup2 mounted writable (containers: --cgroupns private and a writable /sys/fs/cgroup); without root, run inside `systemd-run --user --scope -p Delegate=yes`",
    }
}

fn bpf() -> Capability {
    let tried = try_bpf();
    Capability {
        name: "BPF",
        essential: false,
        ok: tried.is_ok(),
        detail: match tried {
            Ok(calls_at) => {
                format!("all programs load and attach; calls are seen at {calls_at}")
            }
            Err(why) => match sysctl("kernel/unprivileged_bpf_disabled") {
                Some(v) => format!("{why}; unprivileged_bpf_disabled {v}"),
                None => why,
            },
        },
        lost: "packet_loss(), and partition() of services that speak UDP; redirection of connections to proxies, so that services reach them only by the addresses that the spec gives them; counts of system calls; events about opened files, processes and connections: what a spec asks of these is an error",
        fix: "Linux 5.15 or later, as root or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and cgroup v2 (above); not under kernel lockdown in confidentiality mode",
    }
}

fn types() -> Capability {
    let known = tracer::knows_processes();
    Capability {
        name: "kernel types (BTF)",
        essential: false,
        ok: known.is_ok(),
        detail: known.err().unwrap_or_default(),
        lost: "events about processes: fork, exec, exit; the errno of connections that fail by themselves",
        fix: "a kernel built with CONFIG_DEBUG_INFO_BTF, and /sys mounted so that /sys/kernel/btf/vmlinux can be read",
    }
}

/// Loads and attaches every program, to a cgroup of its own; says where system calls are seen.
fn try_bpf() -> Result<&'static str, String> {
    if !probe::bpf_capability() {
        return Err("no CAP_BPF".to_owned());
    }
    let own = cgroup::own().ok_or("no cgroup v2")?;
    let path = own.join(format!("faultbox-doctor-bpf-{}", std::process::id()));
    cgroup::create(&path).map_err(|e| explain(&e))?;
    let loaded = Kernel::load(&path, None, 1, &Feature::ALL, None, None).and_then(|kernel| {
        let typeless = tracer::knows_processes().is_err();
        // What the supervisor does as well is no loss; what only the kernel's types are missing for stands below.
        let lost: Vec<String> = kernel
            .missing()
            .iter()
            .filter(|(f, _)| *f != Feature::Refuse && !(typeless && f.reads_types()))
            .map(|(feature, why)| format!("no {}: {why}", feature.lost()))
            .collect();
        match lost.is_empty() {
            true => Ok(kernel.calls_at()),
            false => Err(lost.join("; ")),
        }
    });
    let _ = fs::remove_dir(&path);
    loaded
}
