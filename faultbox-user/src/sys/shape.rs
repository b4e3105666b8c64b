//! What the arguments of each system call mean: which is a descriptor, a path, an address.

use std::sync::LazyLock;

use super::names;

/// Where the arguments of a system call are that filters ask about.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shape {
    /// The argument that is the descriptor the call works on.
    pub fd: Option<usize>,
    /// The argument that is an address in a mapping of the file that the call works on.
    pub mapped: Option<usize>,
    /// The arguments that are paths: none, one, or both of a pair.
    pub paths: &'static [PathArg],
    /// Where a peer comes from.
    pub peer: Peer,
}

/// One path argument.
#[derive(Debug, Clone, Copy)]
pub struct PathArg {
    /// The argument that holds the folder it is relative to; `None`: the working directory.
    pub dir: Option<usize>,
    /// The argument that points to it.
    pub path: usize,
    /// Is a symbolic link at its end followed?
    pub follow: Follow,
}

/// Whether a call follows a symbolic link at the end of its path.
#[derive(Debug, Clone, Copy)]
pub enum Follow {
    /// Yes.
    Always,
    /// No.
    Never,
    /// Unless this argument has this flag (AT_SYMLINK_NOFOLLOW).
    Unless(usize, u64),
    /// If this argument has this flag (AT_SYMLINK_FOLLOW).
    If(usize, u64),
    /// By the open flags in this argument.
    Open(usize),
    /// By the flags in the `struct open_how` that this argument points to.
    OpenHow(usize),
}

/// Where a call's peer comes from.
#[derive(Debug, Clone, Copy, Default)]
pub enum Peer {
    /// It has none.
    #[default]
    None,
    /// The socket's own.
    Connected,
    /// The address at this argument, its length in the next; the socket's own if that is null.
    Address(usize),
    /// The name in the `struct msghdr` at this argument; the socket's own if that is null.
    Message(usize),
    /// The same for each of the `struct mmsghdr` at the first argument; the second says how many.
    Messages(usize, usize),
}

const NOFOLLOW: u64 = libc::AT_SYMLINK_NOFOLLOW as u64;
const SYMLINK_FOLLOW: u64 = libc::AT_SYMLINK_FOLLOW as u64;

/// A path at argument 0, relative to the working directory.
const fn cwd(follow: Follow) -> PathArg {
    PathArg {
        dir: None,
        path: 0,
        follow,
    }
}

/// A path at argument `dir + 1`, relative to the folder at `dir`.
const fn at(dir: usize, follow: Follow) -> PathArg {
    PathArg {
        dir: Some(dir),
        path: dir + 1,
        follow,
    }
}

const fn second(follow: Follow) -> PathArg {
    PathArg {
        dir: None,
        path: 1,
        follow,
    }
}

/// The paths of a call, by its name.
fn path_args(name: &str) -> &'static [PathArg] {
    use Follow::{Always, If, Never, Open, OpenHow, Unless};
    match name {
        "open" => &[const { cwd(Open(1)) }],
        "openat" => &[const { at(0, Open(2)) }],
        "openat2" => &[const { at(0, OpenHow(2)) }],
        "creat" | "stat" | "access" | "chmod" | "chown" | "truncate" | "utime" | "utimes"
        | "chdir" | "chroot" | "execve" | "statfs" | "setxattr" | "getxattr" | "listxattr"
        | "removexattr" | "uselib" | "swapon" | "swapoff" | "acct" | "umount2" => {
            &[const { cwd(Always) }]
        }
        "lstat" | "readlink" | "unlink" | "rmdir" | "mkdir" | "mknod" | "lchown" | "lsetxattr"
        | "lgetxattr" | "llistxattr" | "lremovexattr" => &[const { cwd(Never) }],
        "newfstatat" | "faccessat2" | "utimensat" | "fchmodat2" => {
            &[const { at(0, Unless(3, NOFOLLOW)) }]
        }
        "statx" | "file_getattr" | "file_setattr" | "setxattrat" | "getxattrat" | "listxattrat"
        | "removexattrat" | "open_tree" => &[const { at(0, Unless(2, NOFOLLOW)) }],
        "fchownat" | "execveat" => &[const { at(0, Unless(4, NOFOLLOW)) }],
        "name_to_handle_at" => &[const { at(0, If(4, SYMLINK_FOLLOW)) }],
        "faccessat" | "fchmodat" | "futimesat" => &[const { at(0, Always) }],
        "readlinkat" | "unlinkat" | "mkdirat" | "mknodat" => &[const { at(0, Never) }],
        "rename" => &[const { cwd(Never) }, const { second(Never) }],
        "link" => &[const { cwd(Never) }, const { second(Never) }],
        "renameat" | "renameat2" => &[const { at(0, Never) }, const { at(2, Never) }],
        "linkat" => &[
            const { at(0, If(4, SYMLINK_FOLLOW)) },
            const { at(2, Never) },
        ],
        // What a symbolic link says need not exist; the link is what the call makes.
        "symlink" => &[const { second(Never) }],
        "symlinkat" => &[const { at(1, Never) }],
        "pivot_root" => &[const { cwd(Always) }, const { second(Always) }],
        "inotify_add_watch" => &[const { second(Always) }],
        _ => &[],
    }
}

/// The descriptor that a call works on, by its name.
fn fd_arg(name: &str) -> Option<usize> {
    Some(match name {
        "read" | "write" | "readv" | "writev" | "pread64" | "pwrite64" | "preadv" | "pwritev"
        | "preadv2" | "pwritev2" | "recvfrom" | "recvmsg" | "recvmmsg" | "sendto" | "sendmsg"
        | "sendmmsg" | "connect" | "accept" | "accept4" | "bind" | "listen" | "shutdown"
        | "getsockname" | "getpeername" | "setsockopt" | "getsockopt" | "close" | "fsync"
        | "fdatasync" | "sync_file_range" | "syncfs" | "fstat" | "fstatfs" | "ftruncate"
        | "fallocate" | "fadvise64" | "readahead" | "lseek" | "flock" | "fcntl" | "ioctl"
        | "dup" | "dup2" | "dup3" | "fchmod" | "fchown" | "fchdir" | "fsetxattr" | "fgetxattr"
        | "flistxattr" | "fremovexattr" | "getdents" | "getdents64" | "epoll_wait"
        | "epoll_pwait" | "epoll_pwait2" | "epoll_ctl" | "vmsplice" | "cachestat"
        | "timerfd_settime" | "timerfd_gettime" | "inotify_add_watch" | "inotify_rm_watch"
        | "finit_module" => 0,
        // Where the bytes go.
        "sendfile" => 0,
        "tee" => 1,
        "splice" | "copy_file_range" => 2,
        "mmap" => 4,
        _ => return None,
    })
}

fn peer_of(name: &str) -> Peer {
    match name {
        "connect" => Peer::Address(1),
        "sendto" => Peer::Address(4),
        "sendmsg" => Peer::Message(1),
        "sendmmsg" => Peer::Messages(1, 2),
        "read" | "readv" | "recvfrom" | "recvmsg" | "recvmmsg" | "write" | "writev" | "preadv2"
        | "pwritev2" | "sendfile" | "splice" | "shutdown" | "close" | "getsockopt"
        | "setsockopt" | "getpeername" => Peer::Connected,
        _ => Peer::None,
    }
}

/// By system call number.
static SHAPES: LazyLock<Vec<Shape>> = LazyLock::new(|| {
    let mut shapes = vec![];
    for (name, number) in names::syscalls() {
        let index = number as usize;
        if shapes.len() <= index {
            shapes.resize(index + 1, Shape::default());
        }
        shapes[index] = Shape {
            fd: fd_arg(name),
            mapped: (name == "msync").then_some(0),
            paths: path_args(name),
            peer: peer_of(name),
        };
    }
    shapes
});

/// The shape of a call, by its number; that of a call without any of these if it is not known.
pub fn of_number(nr: i64) -> Shape {
    usize::try_from(nr)
        .ok()
        .and_then(|nr| SHAPES.get(nr))
        .copied()
        .unwrap_or_default()
}

impl Shape {
    /// Does the call name or hold a file?
    pub fn has_path(&self) -> bool {
        self.fd.is_some() || self.mapped.is_some() || !self.paths.is_empty()
    }

    /// Can the call have a peer?
    pub fn has_peer(&self) -> bool {
        !matches!(self.peer, Peer::None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Shape {
        of_number(names::syscall_number(name).unwrap())
    }

    #[test]
    fn every_path_argument_is_one_the_call_has() {
        for shape in SHAPES.iter() {
            for arg in shape.paths {
                assert!(arg.path < 6);
            }
        }
        assert_eq!(of("renameat2").paths.len(), 2);
        assert_eq!(of("pwrite64").fd, Some(0));
        assert!(of("sync").fd.is_none());
    }

    #[test]
    fn what_a_filter_can_ask_about() {
        assert!(of("openat").has_path() && of("fsync").has_path());
        assert!(of("msync").has_path() && !of("munmap").has_path());
        assert!(!of("sync").has_path() && !of("getpid").has_path());
        assert!(of("connect").has_peer() && !of("openat").has_peer());
        assert_eq!(of_number(-1).fd, None);
        assert!(!of_number(i64::MAX).has_path());
    }
}
