//! What processes take of the machine.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

use crate::run::services::Service;

/// CPU time and memory at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// CPU time since the process began.
    pub cpu: Duration,
    /// Bytes in memory; pages that processes share count for each of them.
    pub memory: u64,
}

/// What this process has taken, all its threads.
pub fn own() -> Reading {
    let cpu = getrusage(UsageWho::RUSAGE_SELF)
        .map(|usage| {
            let span = |t: nix::sys::time::TimeVal| {
                Duration::from_micros((t.tv_sec() * 1_000_000 + t.tv_usec()).max(0) as u64)
            };
            span(usage.user_time()) + span(usage.system_time())
        })
        .unwrap_or_default();
    Reading {
        cpu,
        memory: memory("self"),
    }
}

/// What a service has taken, its children included: from its cgroup if it has one that counts, or from each of its processes that lives.
pub fn service(service: &Service) -> Reading {
    let tree = service.tree();
    let cpu = service.cgroup().and_then(of_cgroup);
    Reading {
        cpu: cpu.unwrap_or_else(|| tree.iter().map(|pid| of_process(*pid)).sum()),
        memory: tree.iter().map(|pid| memory(&pid.to_string())).sum(),
    }
}

fn of_cgroup(path: &Path) -> Option<Duration> {
    let stat = fs::read_to_string(path.join("cpu.stat")).ok()?;
    let usage = stat.lines().find_map(|l| l.strip_prefix("usage_usec "))?;
    Some(Duration::from_micros(usage.trim().parse().ok()?))
}

/// utime and stime of /proc/PID/stat: fields 14 and 15, in clock ticks.
fn of_process(pid: i32) -> Duration {
    let read = || {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = text[text.rfind(')')? + 2..].split_ascii_whitespace();
        let user: u64 = fields.nth(11)?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        let ticks = sysconf(SysconfVar::CLK_TCK).ok()??;
        Some(Duration::from_secs_f64(
            (user + system) as f64 / ticks as f64,
        ))
    };
    read().unwrap_or_default()
}

fn memory(pid: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_something() {
        let mut x = 1u64;
        let before = own();
        while own().cpu == before.cpu {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(before.memory > 1 << 20);
        assert_eq!(of_process(-1), Duration::ZERO);
    }
}
