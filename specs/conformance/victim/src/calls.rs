//! The syscalls themselves, by libc's thin wrappers or raw, so that the name a spec faults is the syscall that is made.

mod members;

use std::ffi::CString;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::http::Query;

/// The name of an I/O error's errno, for the errnos that the conformance specs inject or provoke; the number for others.
pub fn errno_name(error: &io::Error) -> String {
    const NAMES: &[(i32, &str)] = &[
        (libc::EIO, "EIO"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::ENOENT, "ENOENT"),
        (libc::EACCES, "EACCES"),
        (libc::EPERM, "EPERM"),
        (libc::EROFS, "EROFS"),
        (libc::EDQUOT, "EDQUOT"),
        (libc::EMFILE, "EMFILE"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::EPIPE, "EPIPE"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::EBUSY, "EBUSY"),
        (libc::EEXIST, "EEXIST"),
        (libc::EXDEV, "EXDEV"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ECONNREFUSED, "ECONNREFUSED"),
        (libc::ECONNRESET, "ECONNRESET"),
        (libc::ECONNABORTED, "ECONNABORTED"),
        (libc::ETIMEDOUT, "ETIMEDOUT"),
        (libc::ENETUNREACH, "ENETUNREACH"),
        (libc::EHOSTUNREACH, "EHOSTUNREACH"),
        (libc::EADDRINUSE, "EADDRINUSE"),
        (libc::ENOTCONN, "ENOTCONN"),
    ];
    match error.raw_os_error() {
        Some(code) => NAMES
            .iter()
            .find(|(n, _)| *n == code)
            .map_or_else(|| format!("errno {code}"), |(_, name)| (*name).to_owned()),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "EOF".into(),
        None => error.to_string(),
    }
}

/// Turns a syscall's return value into a result.
fn check(ret: i64) -> Result<i64, String> {
    if ret < 0 {
        Err(errno_name(&io::Error::last_os_error()))
    } else {
        Ok(ret)
    }
}

fn c_path(query: &Query, name: &str) -> Result<CString, String> {
    CString::new(query.need(name)?).map_err(|_| "EINVAL".into())
}

/// A scratch file, opened before the call under test. O_CLOEXEC, append.
fn file(query: &Query, flags: i32) -> Result<OwnedFd, String> {
    let path = c_path(query, "path")?;
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    let fd = check(i64::from(unsafe {
        libc::open(
            path.as_ptr(),
            flags | libc::O_CREAT | libc::O_CLOEXEC,
            0o644,
        )
    }))?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Makes one call.
pub fn make(op: &str, query: &Query) -> Result<i64, String> {
    const DATA: &[u8; 8] = b"faultbox";
    let data = DATA.as_ptr().cast();
    let iov = libc::iovec {
        iov_base: DATA.as_ptr().cast_mut().cast(),
        iov_len: DATA.len(),
    };
    let mut buffer = [0u8; 8];
    let into = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let n = DATA.len();
    match op {
        "write" | "pwrite64" | "writev" | "pwritev" | "pwritev2" => {
            let f = file(query, libc::O_WRONLY)?;
            let fd = f.as_raw_fd();
            // SAFETY: `data` and `iov` point at DATA, which is static, with its true length.
            check(unsafe {
                match op {
                    "write" => libc::write(fd, data, n) as i64,
                    "pwrite64" => libc::pwrite(fd, data, n, 0) as i64,
                    "writev" => libc::writev(fd, &iov, 1) as i64,
                    "pwritev" => libc::pwritev(fd, &iov, 1, 0) as i64,
                    _ => libc::pwritev2(fd, &iov, 1, 0, 0) as i64,
                }
            })
        }
        "read" | "pread64" | "readv" | "preadv" => {
            let f = file(query, libc::O_RDONLY)?;
            let fd = f.as_raw_fd();
            // SAFETY: `buffer` and `into` are valid for 8 bytes and live until the call returns.
            check(unsafe {
                match op {
                    "read" => libc::read(fd, buffer.as_mut_ptr().cast(), 8) as i64,
                    "pread64" => libc::pread(fd, buffer.as_mut_ptr().cast(), 8, 0) as i64,
                    "readv" => libc::readv(fd, &into, 1) as i64,
                    _ => libc::preadv(fd, &into, 1, 0) as i64,
                }
            })
        }
        "fsync" | "fdatasync" | "syncfs" | "sync_file_range" | "ftruncate" | "fallocate" => {
            let f = file(query, libc::O_WRONLY)?;
            let fd = f.as_raw_fd();
            // SAFETY: these calls take nothing but an open descriptor and numbers.
            check(i64::from(unsafe {
                match op {
                    "fsync" => libc::fsync(fd),
                    "fdatasync" => libc::fdatasync(fd),
                    "syncfs" => libc::syncfs(fd),
                    "sync_file_range" => {
                        libc::sync_file_range(fd, 0, 0, libc::SYNC_FILE_RANGE_WRITE)
                    }
                    "ftruncate" => libc::ftruncate(fd, 0),
                    _ => libc::fallocate(fd, 0, 0, 16),
                }
            }))
        }
        "openat" => file(query, libc::O_WRONLY).map(|_| 0),
        "rename" | "renameat2" | "unlink" | "unlinkat" | "mkdir" | "mkdirat" | "rmdir" | "stat"
        | "truncate" | "link" => by_path(op, query),
        "sendfile" => {
            let (from, to) = (file(query, libc::O_RDWR)?, file(query, libc::O_RDWR)?);
            // SAFETY: two open descriptors and no offset pointer.
            check(unsafe {
                libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), std::ptr::null_mut(), 0)
            } as i64)
        }
        "pipe_write" => {
            let mut fds = [0; 2];
            // SAFETY: `fds` is valid for two descriptors, which we then own.
            let (_read, write) = unsafe {
                check(i64::from(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC)))?;
                (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
            };
            // SAFETY: `data` points at DATA with its true length.
            check(unsafe { libc::write(write.as_raw_fd(), data, n) } as i64)
        }
        "connect" => {
            let addr: SocketAddr = query
                .need("addr")?
                .parse()
                .map_err(|_| "EINVAL".to_owned())?;
            TcpStream::connect(addr)
                .map(|_| 0)
                .map_err(|e| errno_name(&e))
        }
        "bind" => TcpListener::bind("127.0.0.1:0")
            .map(|_| 0)
            .map_err(|e| errno_name(&e)),
        "fork" => in_child(|| Ok(0)),
        "exec" => std::process::Command::new("/bin/true")
            .status()
            .map(|s| i64::from(s.code().unwrap_or(-1)))
            .map_err(|e| errno_name(&e)),
        "getrandom" => {
            // SAFETY: `buffer` is valid for 8 bytes.
            check(unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), 8, 0) } as i64)
        }
        "io_uring_setup" => {
            let mut params = [0u8; 120];
            // SAFETY: struct io_uring_params is 120 bytes (linux/io_uring.h); the descriptor, if any, is closed at once.
            let fd =
                check(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) })?;
            // SAFETY: the kernel has just given us this descriptor.
            drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
            Ok(0)
        }
        "tty_write" => {
            let (mut controller, mut terminal) = (-1, -1);
            let none = std::ptr::null_mut::<libc::c_char>();
            // SAFETY: both descriptors are valid to write to, and then ours; name, settings and size may be null.
            let (_controller, terminal) = unsafe {
                let (c, t) = (&raw mut controller, &raw mut terminal);
                check(i64::from(libc::openpty(
                    c,
                    t,
                    none,
                    std::ptr::null(),
                    std::ptr::null(),
                )))?;
                (
                    OwnedFd::from_raw_fd(controller),
                    OwnedFd::from_raw_fd(terminal),
                )
            };
            // SAFETY: `data` points at DATA with its true length.
            check(unsafe { libc::write(terminal.as_raw_fd(), data, n) } as i64)
        }
        _ => members::make(op, query),
    }
}

/// Calls that name their object by a path.
fn by_path(op: &str, query: &Query) -> Result<i64, String> {
    let path = c_path(query, "path")?;
    let p = path.as_ptr();
    let to = c_path(query, "to").unwrap_or_default();
    let at = libc::AT_FDCWD;
    if query.get("create").is_some() {
        drop(file(query, libc::O_WRONLY)?);
    }
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: every pointer is to a NUL-terminated string, or to a stat buffer, that outlives the call.
    check(unsafe {
        match op {
            "rename" => i64::from(libc::rename(p, to.as_ptr())),
            "renameat2" => libc::syscall(libc::SYS_renameat2, at, p, at, to.as_ptr(), 0),
            "unlink" => i64::from(libc::unlink(p)),
            "unlinkat" => i64::from(libc::unlinkat(at, p, 0)),
            "mkdir" => i64::from(libc::mkdir(p, 0o755)),
            "mkdirat" => i64::from(libc::mkdirat(at, p, 0o755)),
            "rmdir" => i64::from(libc::rmdir(p)),
            "stat" => i64::from(libc::stat(p, stat.as_mut_ptr())),
            "truncate" => i64::from(libc::truncate(p, 0)),
            _ => i64::from(libc::link(p, to.as_ptr())),
        }
    })
}

/// Runs `call` in a forked child; its errno comes back through a pipe. A child that has become another program and exits with 0 has
/// done well, too.
pub fn in_child(call: impl FnOnce() -> Result<i64, String>) -> Result<i64, String> {
    let mut fds = [0; 2];
    // SAFETY: `fds` is valid for two descriptors.
    check(i64::from(unsafe {
        libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC)
    }))?;
    // SAFETY: the child makes plain calls, writes to the pipe and leaves by _exit; glibc keeps malloc usable after fork.
    let pid = check(i64::from(unsafe { libc::fork() }))?;
    if pid == 0 {
        let text = match call() {
            Ok(ret) => format!("+{ret}"),
            Err(errno) => errno,
        };
        // SAFETY: `text` is valid for its length; _exit ends the child.
        unsafe {
            libc::write(fds[1], text.as_ptr().cast(), text.len());
            libc::_exit(0)
        }
    }
    let mut text = [0u8; 256];
    let mut status = 0;
    // SAFETY: the buffer is valid for its length; the descriptors are ours to close; `status` is a valid int.
    let n = unsafe {
        libc::close(fds[1]);
        let n = libc::read(fds[0], text.as_mut_ptr().cast(), text.len());
        libc::close(fds[0]);
        libc::waitpid(pid as i32, &mut status, 0);
        n
    };
    let text =
        String::from_utf8_lossy(text.get(..n.max(0) as usize).unwrap_or_default()).into_owned();
    match text.strip_prefix('+') {
        Some(ret) => ret.parse().map_err(|_| text.clone()),
        None if text.is_empty() && status == 0 => Ok(0),
        None if text.is_empty() => Err(format!("child ended with wait status {status}")),
        None => Err(text),
    }
}

/// Forks twice and lets the parents go, as an old-fashioned daemon does.
pub fn daemonize() {
    for _ in 0..2 {
        // SAFETY: called first thing, before any thread exists.
        match unsafe { libc::fork() } {
            0 => {
                // SAFETY: setsid takes nothing; it fails harmlessly in the second round.
                unsafe { libc::setsid() };
            }
            // SAFETY: the parent has nothing to clean up.
            _ => unsafe { libc::_exit(0) },
        }
    }
}

/// Ignores SIGTERM, so that only SIGKILL ends this process.
pub fn ignore_sigterm() {
    // SAFETY: SIG_IGN installs no handler code.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
}

/// How many seccomp filters this process carries, by /proc/self/status.
pub fn seccomp_filters() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|l| l.strip_prefix("Seccomp_filters:"))
        .and_then(|v| v.trim().parse().ok())
        .unwrap_or(-1)
}
