//! Version 2 cgroups: one per service, so that a tree of processes has a name that no double fork can shed.
//!
//! `<the run's own cgroup>/faultbox-<run>/<worker>/<service>`. No controller is enabled, so the rule that inner cgroups hold no processes
//! (cgroups(7), "no internal processes") does not apply. Without permission the run works without them.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill as signal};
use nix::unistd::Pid;

/// This process's own version 2 cgroup as a folder; `None` where there is no such hierarchy.
pub fn own() -> Option<PathBuf> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let cgroup = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = locate(&mountinfo, &cgroup)?;
    path.is_dir().then_some(path)
}

/// The version 2 hierarchy may stand alone or beside version 1 (as `unified`), and what is mounted may be a part of it (proc_pid_mountinfo(5)).
fn locate(mountinfo: &str, cgroup: &str) -> Option<PathBuf> {
    let (root, mountpoint) = mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        (right.split(' ').next() == Some("cgroup2"))
            .then(|| Some((unescape(left.next()?), unescape(left.next()?))))
            .flatten()
    })?;
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    let inside = Path::new(own).strip_prefix(&root).ok()?;
    Some(Path::new(&mountpoint).join(inside))
}

/// How deep below the root of the whole hierarchy a cgroup stands that was made below this process's own; `None` inside a cgroup
/// namespace, from where the root cannot be seen (cgroup_namespaces(7)).
pub fn level(path: &Path) -> Option<u32> {
    /// The initial namespace's inode number (`PROC_CGROUP_INIT_INO` in the kernel's proc_ns.h).
    const INITIAL: &str = "cgroup:[4026531835]";
    let namespace = std::fs::read_link("/proc/self/ns/cgroup").ok()?;
    if namespace.as_os_str() != INITIAL {
        return None;
    }
    let below = path.strip_prefix(own()?).ok()?.components().count();
    let cgroup = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let above = own.split('/').filter(|part| !part.is_empty()).count();
    u32::try_from(above + below).ok()
}

/// Space, tab, newline and backslash are written in octal there.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// Creates a cgroup that processes can be put in and that can be killed; leaves nothing behind when it cannot.
///
/// # Errors
/// No permission, or a kernel without `cgroup.kill` (before 5.14).
pub fn create(path: &Path) -> io::Result<()> {
    std::fs::create_dir(path)?;
    for file in ["cgroup.procs", "cgroup.kill"] {
        if let Err(e) = std::fs::OpenOptions::new()
            .write(true)
            .open(path.join(file))
        {
            let _ = std::fs::remove_dir(path);
            return Err(e);
        }
    }
    Ok(())
}

/// The live processes in the cgroup and all below it, zombies not counted.
pub fn procs(path: &Path) -> Vec<i32> {
    let mut found: Vec<i32> = std::fs::read_to_string(path.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|l| l.parse().ok())
        .collect();
    for child in children(path) {
        found.extend(procs(&child));
    }
    found
}

/// Kills every process in the cgroup and below, forks in flight included.
pub fn kill(path: &Path) {
    if std::fs::write(path.join("cgroup.kill"), "1").is_err() {
        for pid in procs(path) {
            let _ = signal(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Kills what is in there and removes the cgroup with all below it, trying for at most `limit`: a killed process leaves its cgroup only when it
/// has let go of its memory. Says whether it is gone.
pub fn remove(path: &Path, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if remove_once(path) {
            return true;
        }
        kill(path);
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn remove_once(path: &Path) -> bool {
    for child in children(path) {
        remove_once(&child);
    }
    // Where the hierarchy is mounted read-only, even what is not there is refused (EROFS).
    std::fs::remove_dir(path).is_ok() || matches!(path.try_exists(), Ok(false))
}

fn children(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return vec![];
    };
    entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_alone_and_beside_version_1() {
        let alone = "25 1 0:23 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            locate(alone, "0::/user.slice/x.scope\n"),
            Some("/sys/fs/cgroup/user.slice/x.scope".into())
        );
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            locate(hybrid, "4:memory:/m\n0::/\n"),
            Some("/sys/fs/cgroup/uni fied/".into())
        );
        let part = "41 31 0:38 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n";
        assert_eq!(
            locate(part, "0::/docker/abc/x\n"),
            Some("/sys/fs/cgroup/x".into())
        );
        assert_eq!(locate(part, "0::/elsewhere\n"), None);
        assert_eq!(locate("", "0::/\n"), None);
    }

    #[test]
    fn what_could_not_be_made_need_not_be_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        // Mounts of a thread of its own are nobody else's.
        std::thread::spawn(move || {
            use nix::mount::{MsFlags, mount};
            use nix::sched::{CloneFlags, unshare};
            let none: Option<&str> = None;
            let mounted = unshare(CloneFlags::CLONE_NEWNS)
                .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
                .and_then(|()| mount(Some("none"), &path, Some("tmpfs"), MsFlags::MS_RDONLY, none));
            if let Err(e) = mounted {
                eprintln!("SKIPPED: no file system can be mounted here: {e}");
                return;
            }
            assert!(create(&path.join("x")).is_err());
            assert!(remove(&path.join("x"), Duration::ZERO));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_tree_is_killed_and_removed() {
        let Some(path) = own().map(|o| o.join(format!("faultbox-unit-{}", std::process::id())))
        else {
            eprintln!("SKIPPED: no cgroup v2 here");
            return;
        };
        if let Err(e) = create(&path) {
            eprintln!("SKIPPED: {}: {e}", path.display());
            return;
        }
        let service = path.join("a");
        create(&service).unwrap();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read line; sleep 60 & sleep 60"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::fs::write(service.join("cgroup.procs"), child.id().to_string()).unwrap();
        drop(child.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(60);
        while procs(&path).len() < 3 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(procs(&path).len(), 3);
        assert!(remove(&path, Duration::from_secs(60)));
        assert!(!path.exists());
        assert!(!child.wait().unwrap().success());
    }
}
