//! What this kernel allows, found out by doing it: in a child that is thrown away, since most of it cannot be undone.

use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};
use std::time::{Duration, Instant};

use libc::{c_int, sock_filter};

use super::pidfd;
use super::ptrace::{self, Injection, Stop};
use super::seccomp::{self, NOTIF_SET_FLAGS, SYNC_WAKE_UP};

const FLAG_TSYNC: u64 = libc::SECCOMP_FILTER_FLAG_TSYNC;
const FLAG_NEW_LISTENER: u64 = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
const FLAG_TSYNC_ESRCH: u64 = libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
const FLAG_WAIT_KILLABLE_RECV: u64 = libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;

/// Can a seccomp filter hand calls to a supervisor? (5.0)
///
/// # Errors
/// What the kernel answers.
pub fn user_notification() -> io::Result<()> {
    child(|| listener(FLAG_NEW_LISTENER).map(|_| ()))
}

/// Are signals kept from aborting a call under decision? (5.19)
///
/// # Errors
/// What the kernel answers; EINVAL from one that does not know the flag.
pub fn wait_killable_recv() -> io::Result<()> {
    child(|| listener(FLAG_NEW_LISTENER | FLAG_WAIT_KILLABLE_RECV).map(|_| ()))
}

/// Can a filter with a listener be put on all threads at once? (5.7)
///
/// # Errors
/// What the kernel answers; EINVAL from one that does not know the flag.
pub fn tsync_esrch() -> io::Result<()> {
    child(|| listener(FLAG_NEW_LISTENER | FLAG_TSYNC | FLAG_TSYNC_ESRCH).map(|_| ()))
}

/// Does the kernel switch to the supervisor directly instead of waking it on another CPU? (6.6)
///
/// # Errors
/// What the kernel answers; EINVAL from one that does not know the flag.
pub fn sync_wake_up() -> io::Result<()> {
    child(|| {
        let fd = listener(FLAG_NEW_LISTENER)?;
        // SAFETY: the request takes its argument by value, and `fd` is open.
        match unsafe { libc::ioctl(fd, NOTIF_SET_FLAGS, SYNC_WAKE_UP) } {
            0 => Ok(()),
            _ => Err(errno()),
        }
    })
}

/// May a process trace its own child and make it call the kernel?
///
/// # Errors
/// What the kernel answers; EPERM where Yama or a container forbids it.
pub fn ptrace_child() -> io::Result<()> {
    with_sleeper(|pid| {
        ptrace::seize(pid)?;
        ptrace::interrupt(pid)?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while ptrace::stop(pid) != Some(Stop::Trap) {
            if Instant::now() > deadline {
                return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
            }
            ptrace::pause();
        }
        let mut injection = Injection::begin(pid, ptrace::syscall_site(pid)?)?;
        let answer = injection.call(libc::SYS_getpid, [0; 5])?;
        injection.end()?;
        ptrace::detach(pid)?;
        if answer == i64::from(pid) {
            Ok(())
        } else {
            Err(io::Error::other("an injected getpid() gave a wrong answer"))
        }
    })
}

/// May a process take a copy of its child's descriptor? (5.6)
///
/// # Errors
/// What the kernel answers.
pub fn pidfd_getfd() -> io::Result<()> {
    // The child inherits it, under the same number.
    let shared = std::fs::File::open("/dev/null")?;
    with_sleeper(|pid| {
        let pidfd = pidfd::open(pid)?;
        pidfd::get_fd(pidfd.as_fd(), shared.as_raw_fd())?;
        Ok(())
    })
}

/// May this user make a user namespace?
///
/// # Errors
/// What the kernel answers; ENOSPC where user.max_user_namespaces is 0, EPERM where a sysctl or a container forbids it.
pub fn user_namespace() -> io::Result<()> {
    child(|| unshare(libc::CLONE_NEWUSER))
}

/// Can a test have a network namespace with a working loopback of its own, by privilege or by way of a user namespace?
///
/// # Errors
/// What the kernel answers to the second way; to the first, if one can be made by privilege and only its loopback stays down: a run
/// does not try the second then.
pub fn network_namespace() -> io::Result<()> {
    match child(|| unshare(libc::CLONE_NEWNET)) {
        Ok(()) => child(|| unshare(libc::CLONE_NEWNET).and_then(|()| loopback_up())),
        Err(_) => {
            let both = libc::CLONE_NEWUSER | libc::CLONE_NEWNET;
            child(|| unshare(both).and_then(|()| loopback_up()))
        }
    }
}

/// Is there CAP_BPF, or CAP_SYS_ADMIN, which contains it?
pub fn bpf_capability() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    const CAP_BPF: u32 = 39;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .and_then(|l| u64::from_str_radix(l.trim(), 16).ok())
        .unwrap_or(0);
    effective & (1 << CAP_BPF | 1 << CAP_SYS_ADMIN) != 0
}

/// Runs `probe` in a forked child and brings back the errno it ended with. `probe` may only make system calls: after a fork of a
/// process that may have other threads, nothing else is safe.
fn child(probe: impl FnOnce() -> Result<(), c_int>) -> io::Result<()> {
    // SAFETY: the child makes system calls only and leaves by _exit.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = probe().err().unwrap_or(0);
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let status = wait(pid)?;
            if !libc::WIFEXITED(status) {
                // Killed by a policy that does not answer with an errno.
                return Err(io::Error::from_raw_os_error(libc::EPERM));
            }
            match libc::WEXITSTATUS(status) {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }
}

/// Gives `probe` a child that does nothing, and takes it away afterwards.
fn with_sleeper(probe: impl FnOnce(libc::pid_t) -> io::Result<()>) -> io::Result<()> {
    // SAFETY: the child makes system calls only, is killed by us, and dies with us.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: system calls without memory of ours. Should the parent have died before prctl, the alarm ends the child.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong);
                libc::alarm(60);
                loop {
                    libc::pause();
                }
            }
        }
        pid => {
            let result = probe(pid);
            // SAFETY: `pid` is our child and has not been waited for, so the number is still its own.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            wait(pid)?;
            result
        }
    }
}

/// Waits until `pid` has ended; a traced child's stops are passed over.
fn wait(pid: libc::pid_t) -> io::Result<c_int> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the answer.
        match unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } {
            -1 => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            _ if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) => return Ok(status),
            _ => {}
        }
    }
}

fn errno() -> c_int {
    // SAFETY: the place is this thread's own.
    unsafe { *libc::__errno_location() }
}

fn unshare(flags: c_int) -> Result<(), c_int> {
    // SAFETY: no memory is passed.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(errno()),
    }
}

/// Installs a filter that lets everything pass; its listener stays open until the child ends.
fn listener(flags: u64) -> Result<c_int, c_int> {
    let program = [sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ALLOW,
    }];
    // SAFETY: plain values.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(errno());
    }
    match seccomp::install_here(&program, flags) {
        Ok(fd) => fd.map(IntoRawFd::into_raw_fd).ok_or(libc::EINVAL),
        Err(error) => Err(error.raw_os_error().unwrap_or(libc::EIO)),
    }
}

/// Sets the loopback interface up, which a namespace's owner may do; a security module can refuse even so.
fn loopback_up() -> Result<(), c_int> {
    // SAFETY: ifreq is plain data, and all-zero is a valid value; both requests read and write only it.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(errno());
        }
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as _;
        request.ifr_name[1] = b'o' as _;
        if libc::ioctl(socket, libc::SIOCGIFFLAGS as _, &raw mut request) != 0 {
            return Err(errno());
        }
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        if libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &raw mut request) != 0 {
            return Err(errno());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_brings_back_its_errno() {
        assert!(child(|| Ok(())).is_ok());
        let error = child(|| Err(libc::ENOSPC)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        let killed = child(|| {
            // SAFETY: ends the child, whom nobody else knows.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            Ok(())
        });
        assert_eq!(killed.unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn probing_leaves_this_process_as_it_was() {
        let namespace = || std::fs::read_link("/proc/self/ns/net").unwrap();
        let seccomp = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|l| l.starts_with("Seccomp:"));
            line.map(str::to_owned)
        };
        let before = (namespace(), seccomp());
        let _ = (
            user_notification(),
            network_namespace(),
            ptrace_child(),
            pidfd_getfd(),
        );
        assert_eq!(before, (namespace(), seccomp()));
    }
}
