//! Names and numbers of system calls and errors on this architecture.
//!
//! The tables are the kernel's own, so that a spec can name any call the kernel has, newer ones than the installed
//! libseccomp knows included.

#[cfg_attr(target_arch = "x86_64", path = "names/x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "names/aarch64.rs")]
mod arch;
mod common;
#[path = "names/errno.rs"]
mod errors;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("faultbox knows the system calls of x86_64 and aarch64");

/// Every system call of this architecture as (name, number), by number.
pub fn syscalls() -> impl Iterator<Item = (&'static str, i64)> {
    arch::ARCH.iter().chain(common::COMMON).copied()
}

/// The number of the system call called `name`, as the kernel spells it.
pub fn syscall_number(name: &str) -> Option<i64> {
    syscalls().find(|(n, _)| *n == name).map(|(_, nr)| nr)
}

/// The kernel's name of system call `nr`.
pub fn syscall_name(nr: i64) -> Option<&'static str> {
    syscalls().find(|(_, n)| *n == nr).map(|(name, _)| name)
}

/// Does any architecture that faultbox knows have a system call of this name? `open` is one on x86_64 and none on aarch64:
/// families list both, and a spec that names it is portable.
pub fn syscall_known_elsewhere(name: &str) -> bool {
    ELSEWHERE.binary_search(&name).is_ok()
}

/// The old calls that x86_64 has and the generic table has not, sorted.
const ELSEWHERE: &[&str] = &[
    "access",
    "alarm",
    "arch_prctl",
    "chmod",
    "chown",
    "creat",
    "dup2",
    "epoll_create",
    "epoll_wait",
    "eventfd",
    "fork",
    "futimesat",
    "getdents",
    "getpgrp",
    "inotify_init",
    "ioperm",
    "iopl",
    "lchown",
    "link",
    "lstat",
    "mkdir",
    "mknod",
    "modify_ldt",
    "open",
    "pause",
    "pipe",
    "poll",
    "readlink",
    "rename",
    "rmdir",
    "select",
    "signalfd",
    "stat",
    "symlink",
    "time",
    "unlink",
    "ustat",
    "utime",
    "utimes",
    "vfork",
];

/// The error called `name` (upper or lower case) as its positive number and its name in the manual pages' spelling.
pub fn errno(name: &str) -> Option<(i32, &'static str)> {
    errors::ERRNO
        .iter()
        .find(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(n, number)| (*number, *n))
}

/// The name of error `number`.
pub fn errno_name(number: i32) -> Option<&'static str> {
    errors::ERRNO
        .iter()
        .find(|(_, n)| *n == number)
        .map(|(name, _)| *name)
}

/// Every error's name, aliases included.
pub fn errnos() -> impl Iterator<Item = &'static str> {
    errors::ERRNO.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_agree_with_libc_and_libseccomp() {
        assert_eq!(syscall_number("read"), Some(libc::SYS_read));
        assert_eq!(syscall_number("mseal"), Some(libc::SYS_mseal));
        let mut seen = 0;
        for (name, number) in syscalls() {
            // libseccomp knows the calls of the kernel it was released for; where it knows one, it must agree.
            if let Ok(call) =
                libseccomp::ScmpSyscall::from_name_by_arch(name, libseccomp::ScmpArch::native())
                && i32::from(call) >= 0
            {
                assert_eq!(i64::from(i32::from(call)), number, "{name}");
                seen += 1;
            }
        }
        assert!(seen > 250, "{seen}");
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = syscalls().map(|(n, _)| n).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(ELSEWHERE.is_sorted());
    }

    #[test]
    fn errors_by_name_and_number() {
        assert_eq!(errno("EIO"), Some((libc::EIO, "EIO")));
        assert_eq!(errno("enospc"), Some((libc::ENOSPC, "ENOSPC")));
        assert_eq!(errno("EWOULDBLOCK"), Some((libc::EAGAIN, "EWOULDBLOCK")));
        assert_eq!(errno("ENOTSUP"), Some((libc::ENOTSUP, "ENOTSUP")));
        assert_eq!(errno("EHWPOISON"), Some((libc::EHWPOISON, "EHWPOISON")));
        assert_eq!(errno("EIOO"), None);
        assert_eq!(errno_name(libc::EAGAIN), Some("EAGAIN"));
        assert_eq!(errno_name(0), None);
    }
}
