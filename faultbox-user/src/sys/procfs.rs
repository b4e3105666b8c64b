//! What /proc tells about other processes (proc(5)).

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The threads of process `pid`; none if it is gone.
pub fn threads(pid: i32) -> Vec<i32> {
    numbers_in(format!("/proc/{pid}/task")).unwrap_or_default()
}

/// The open descriptors of process or thread `pid`.
///
/// # Errors
/// The process is gone, or hides them from us.
pub fn fds(pid: i32) -> io::Result<Vec<i32>> {
    numbers_in(format!("/proc/{pid}/fd"))
}

/// An io_uring instance that process `pid` holds, in words; `None` if it has none.
pub fn io_uring(pid: i32) -> Option<String> {
    let task = live_thread(pid).unwrap_or(pid);
    let ring = |fd: &i32| {
        FdLink::new(task, *fd)
            .read()
            .is_ok_and(|to| to.as_os_str() == "anon_inode:[io_uring]")
    };
    if let Some(fd) = fds(task).unwrap_or_default().into_iter().find(ring) {
        return Some(format!("descriptor {fd}"));
    }
    // Its poller goes on without the descriptor (IORING_SETUP_SQPOLL); without one, a ring stands still unless it is entered.
    let worker = threads(pid).into_iter().find(|tid| is_io_worker(*tid))?;
    Some(format!("thread {worker} ({})", name(worker)))
}

/// Is `tid` one of the kernel's own threads in a process that uses io_uring? It makes no calls, and cannot be traced.
pub fn is_io_worker(tid: i32) -> bool {
    // PF_IO_WORKER (include/linux/sched.h).
    const IO_WORKER: u32 = 0x10;
    let Ok(stat) = fs::read_to_string(format!("/proc/{tid}/stat")) else {
        return false;
    };
    // After the name: state ppid pgrp session tty_nr tpgid flags.
    let flags = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(6)?.parse::<u32>().ok());
    flags.is_some_and(|flags| flags & IO_WORKER != 0)
}

fn numbers_in(dir: String) -> io::Result<Vec<i32>> {
    Ok(fs::read_dir(dir)?
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect())
}

/// The value of `key` in /proc/`tid`/status.
pub fn status_field(tid: i32, key: &str) -> io::Result<String> {
    let status = fs::read_to_string(format!("/proc/{tid}/status"))?;
    status
        .lines()
        .find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim().to_owned()))
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

fn status_number(tid: i32, key: &str) -> io::Result<i32> {
    status_field(tid, key)?
        .parse()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// The process that thread `tid` belongs to.
///
/// # Errors
/// Not found if it is gone.
pub fn tgid(tid: i32) -> io::Result<i32> {
    status_number(tid, "Tgid")
}

/// Who traces thread `tid`; 0 for nobody.
///
/// # Errors
/// Not found if it is gone.
pub fn tracer(tid: i32) -> io::Result<i32> {
    status_number(tid, "TracerPid")
}

/// The state letter of thread `tid` ('R', 'S', 'D', 'T', 't', 'Z', 'X'); `None` if it is gone.
pub fn state(tid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).ok()?;
    // The name stands in parentheses and may itself hold parentheses and spaces.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Is there no such thread any more, or nothing but its zombie?
pub fn is_dead(tid: i32) -> bool {
    matches!(state(tid), None | Some('Z' | 'X'))
}

/// A thread of process `pid` that is alive; `None` if the process has ended. Its first thread may be gone long before the others, and
/// takes what /proc/`pid`/fd and pidfds show with it.
pub fn live_thread(pid: i32) -> Option<i32> {
    if !is_dead(pid) {
        return Some(pid);
    }
    threads(pid).into_iter().find(|tid| !is_dead(*tid))
}

/// May what thread `tid` has open not be looked at? So it is for who is not root once the process is not dumpable
/// (PR_SET_DUMPABLE in prctl(2), proc(5)).
pub fn is_hidden(tid: i32) -> bool {
    fs::read_link(format!("/proc/{tid}/cwd"))
        .is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
}

/// Does a seccomp filter look at the calls of thread `tid`? (`Seccomp:` in proc_pid_status(5))
pub fn is_filtered(tid: i32) -> bool {
    status_field(tid, "Seccomp").is_ok_and(|mode| mode == "2")
}

/// The system call that thread `tid` sleeps in; `None` if it runs, or is not ours to see.
pub fn sleeping_in(tid: i32) -> Option<i64> {
    sleeping_call(tid).map(|(nr, _)| nr)
}

/// The same with its arguments (`syscall` in proc_pid_syscall(5)).
pub fn sleeping_call(tid: i32) -> Option<(i64, [u64; 6])> {
    let line = fs::read_to_string(format!("/proc/{tid}/syscall")).ok()?;
    let mut words = line.split(' ');
    let nr = words.next()?.parse().ok().filter(|nr| *nr >= 0)?;
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    }
    Some((nr, args))
}

/// Does a signal wait to be delivered to thread `tid`?
pub fn signal_pending(tid: i32) -> bool {
    let mask = |key| {
        status_field(tid, key)
            .ok()
            .and_then(|hex| u64::from_str_radix(&hex, 16).ok())
    };
    match (mask("SigPnd"), mask("ShdPnd"), mask("SigBlk")) {
        (Some(own), Some(shared), Some(blocked)) => (own | shared) & !blocked != 0,
        _ => false,
    }
}

/// The name of process `pid`, for messages: "postgres".
pub fn name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or_else(|_| "?".to_owned(), |s| s.trim_end().to_owned())
}

/// The address of the vDSO in process `pid`, by its auxiliary vector.
pub fn vdso(pid: i32) -> io::Result<u64> {
    let auxv = fs::read(format!("/proc/{pid}/auxv"))?;
    auxv.chunks_exact(16)
        .find_map(|entry| {
            let (key, value) = entry.split_at(8);
            (key == libc::AT_SYSINFO_EHDR.to_ne_bytes())
                .then(|| u64::from_ne_bytes(value.try_into().expect("8 bytes")))
        })
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

/// The executable mappings of process `pid` as (start, length), kernel pages excluded.
pub fn executable_maps(pid: i32) -> io::Result<Vec<(u64, u64)>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    Ok(maps
        .lines()
        .filter(|line| !line.ends_with("[vsyscall]"))
        .filter_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            rest.starts_with("r-x").then_some(())?;
            let (low, high) = range.split_once('-')?;
            let low = u64::from_str_radix(low, 16).ok()?;
            Some((low, u64::from_str_radix(high, 16).ok()? - low))
        })
        .collect())
}

/// The file that process `pid` has mapped where `address` is, as proc_pid_maps(5) names it; `None` if no file is.
///
/// # Errors
/// The process is gone, or hides its mappings from us.
pub fn mapped_file(pid: i32, address: u64) -> io::Result<Option<PathBuf>> {
    use std::os::unix::ffi::OsStringExt;
    let maps = fs::read(format!("/proc/{pid}/maps"))?;
    let path = maps.split(|b| *b == b'\n').find_map(|line| {
        // Range, rights, offset, device, inode; what is left is the path, behind spaces.
        let mut rest = line;
        let mut word = || {
            let start = rest.trim_ascii_start();
            let end = start.iter().position(|b| *b == b' ')?;
            rest = &start[end..];
            std::str::from_utf8(&start[..end]).ok()
        };
        let (low, high) = word()?.split_once('-')?;
        let number = |hex| u64::from_str_radix(hex, 16).ok();
        if !(number(low)?..number(high)?).contains(&address) {
            return None;
        }
        (0..4).try_for_each(|_| word().map(drop))?;
        let path = rest.trim_ascii_start();
        path.starts_with(b"/").then_some(path)
    });
    Ok(path.map(|path| {
        // A newline is written in octal there; that a file has lost its name, behind it.
        let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
        let mut name = Vec::with_capacity(path.len());
        let mut rest = path;
        while let Some((first, after)) = rest.split_first() {
            let newline = rest.starts_with(b"\\012");
            name.push(if newline { b'\n' } else { *first });
            rest = if newline { &rest[4..] } else { after };
        }
        PathBuf::from(std::ffi::OsString::from_vec(name))
    }))
}

/// /proc/`tid`/fd/`fd` on the stack: this is asked on every trapped call that a filtered rule looks at.
pub struct FdLink([u8; 48], usize);

impl FdLink {
    /// The link of descriptor `fd` of thread `tid`.
    pub fn new(tid: i32, fd: i32) -> FdLink {
        let mut buffer = [0u8; 48];
        let mut rest = &mut buffer[..];
        // Two numbers of at most 11 characters: it fits.
        let _ = write!(rest, "/proc/{tid}/fd/{fd}");
        let left = rest.len();
        FdLink(buffer, 48 - left)
    }

    /// The link's path.
    pub fn path(&self) -> &Path {
        use std::os::unix::ffi::OsStrExt;
        Path::new(std::ffi::OsStr::from_bytes(&self.0[..self.1]))
    }

    /// What the descriptor refers to: a path, or something like "socket:[123]".
    ///
    /// # Errors
    /// Not found if there is no such descriptor.
    pub fn read(&self) -> io::Result<PathBuf> {
        fs::read_link(self.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_names_its_file() {
        use std::os::fd::AsRawFd;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("a file\n(x)");
        fs::write(&path, [0; 8192]).unwrap();
        let file = fs::File::open(&path).unwrap();
        let (none, fd) = (std::ptr::null_mut(), file.as_raw_fd());
        // SAFETY: a mapping of its own, which nothing else uses.
        let at = unsafe { libc::mmap(none, 8192, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        let found = |address| mapped_file(std::process::id() as i32, address).unwrap();
        let address = at as u64;
        assert_eq!(found(address + 8191), Some(path.clone()));
        assert_ne!(found(address + 8192), Some(path.clone()));
        fs::remove_file(&path).unwrap();
        assert_eq!(found(address), Some(path));
        let local = 0;
        assert_eq!(found(&raw const local as u64), None);
        // SAFETY: as above.
        assert_eq!(unsafe { libc::munmap(at, 8192) }, 0);
    }

    #[test]
    fn knows_this_process() {
        let pid = std::process::id() as i32;
        assert!(threads(pid).contains(&pid));
        assert!(fds(pid).unwrap().contains(&1));
        assert_eq!(tgid(pid).unwrap(), pid);
        assert_eq!(tracer(pid).unwrap_or(-1), 0);
        assert!(vdso(pid).unwrap() > 0);
        assert!(!executable_maps(pid).unwrap().is_empty());
        assert!(!is_dead(pid));
        assert!(is_dead(i32::MAX));
        assert_eq!(
            FdLink::new(pid, 7).path(),
            Path::new(&format!("/proc/{pid}/fd/7"))
        );
    }
}
