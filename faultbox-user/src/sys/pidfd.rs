//! Process descriptors (pidfd_open(2), pidfd_getfd(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

fn owned(rc: libc::c_long) -> io::Result<OwnedFd> {
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(rc as i32) })
}

/// A descriptor of process `pid` (its thread group id).
///
/// # Errors
/// ESRCH if there is no such process, ENOSYS before Linux 5.3.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes values only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// A descriptor of the process that thread `tid` belongs to, or of the thread itself: either serves [`get_fd`].
///
/// # Errors
/// ESRCH if it is gone.
pub fn open_thread(tid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes values only.
    let thread = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, tid, libc::PIDFD_THREAD) });
    match thread {
        // PIDFD_THREAD came with 6.9.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => open(super::procfs::tgid(tid)?),
        other => other,
    }
}

/// A copy of descriptor `fd` of that process.
///
/// # Errors
/// EBADF if it has none such, EPERM if ptrace access is refused.
pub fn get_fd(pidfd: BorrowedFd<'_>, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes values only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

/// Has the process ended? Waits up to `timeout`. Unlike waitpid(2) this never mistakes a stop under ptrace (a fault is
/// being armed) for an end, nor takes that stop away from the one who waits for it: ask this first, then reap.
///
/// # Errors
/// What poll(2) says.
pub fn wait_exit(pidfd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    use nix::poll::{PollFd, PollFlags};
    let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let timeout = nix::poll::PollTimeout::try_from(millis).unwrap_or(nix::poll::PollTimeout::MAX);
    match nix::poll::poll(&mut fds, timeout) {
        Ok(n) => Ok(n > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Sends `signal` to the process.
///
/// # Errors
/// ESRCH if it has ended.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: the siginfo pointer may be null.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
