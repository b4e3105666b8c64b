//! What processes use, as /proc tells it.

use std::path::Path;

/// These processes' CPU time so far, in nanoseconds: of all threads that are alive (proc(5), /proc/pid/schedstat).
pub fn cpu(pids: &[u32]) -> f64 {
    let threads = pids.iter().flat_map(|pid| {
        std::fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten()
    });
    threads
        .filter_map(|thread| {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<f64>().ok()
        })
        .sum()
}

/// Their resident memory, in bytes: what each has for itself, and once what is mapped from files, the program, which they share
/// (proc_pid_status(5)).
pub fn memory(pids: &[u32]) -> u64 {
    let all = pids.iter().filter_map(|pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        Some((kib("RssAnon:")? + kib("RssShmem:")?, kib("RssFile:")?))
    });
    let (own, files) = all.fold((0, 0), |(own, files), (o, f)| (own + o, files.max(f)));
    (own + files) << 10
}

/// A process and those below it that run the same program: a run and its workers, without the services.
pub fn family(pid: u32) -> Vec<u32> {
    let program = |pid: u32| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    let own = program(pid);
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        at += 1;
        let threads = std::fs::read_dir(format!("/proc/{parent}/task"));
        for thread in threads.into_iter().flatten().flatten() {
            found.extend(
                children(&thread.path())
                    .into_iter()
                    .filter(|child| program(*child) == own),
            );
        }
    }
    found
}

fn children(thread: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(thread.join("children")).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_at_work() {
        let own = [std::process::id()];
        let began = std::time::Instant::now();
        // More than once: when a thread of another test ends meanwhile, its time is gone from the sum.
        loop {
            let before = cpu(&own);
            let since = std::time::Instant::now();
            while since.elapsed().as_millis() < 30 {
                std::hint::spin_loop();
            }
            if cpu(&own) > before {
                break;
            }
            assert!(began.elapsed().as_secs() < 60, "it is never seen at work");
        }
        assert!(memory(&own) > 1 << 20);
    }

    #[test]
    fn other_programs_are_no_family() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let own = || family(std::process::id());
        let began = std::time::Instant::now();
        // The parent of an exec goes on before the kernel says of the child that it is another program.
        while own().contains(&child.id()) {
            assert!(began.elapsed().as_secs() < 60, "it counts as family");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(own().contains(&std::process::id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
