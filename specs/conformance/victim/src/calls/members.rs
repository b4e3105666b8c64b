//! Members of the syscall families for which libc has no wrapper, or one that makes another call: made raw.

use std::ffi::CString;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use libc::{c_long, c_void};

use super::{c_path, check, errno_name, file, in_child};
use crate::http::Query;

/// The number of a call by its kernel name, of those that `make` knows and this architecture has.
fn number(op: &str) -> Option<c_long> {
    #[cfg(target_arch = "x86_64")]
    match op {
        "open" => return Some(libc::SYS_open),
        "creat" => return Some(libc::SYS_creat),
        "lstat" => return Some(libc::SYS_lstat),
        "sys_stat" => return Some(libc::SYS_stat),
        "sys_fork" => return Some(libc::SYS_fork),
        "vfork" => return Some(libc::SYS_vfork),
        _ => {}
    }
    Some(match op {
        "openat2" => libc::SYS_openat2,
        "newfstatat" => libc::SYS_newfstatat,
        "fstat" => libc::SYS_fstat,
        "statx" => libc::SYS_statx,
        "renameat" => libc::SYS_renameat,
        "preadv2" => libc::SYS_preadv2,
        "msync" => libc::SYS_msync,
        "sync" => libc::SYS_sync,
        "close" => libc::SYS_close,
        "close_range" => libc::SYS_close_range,
        "accept" => libc::SYS_accept,
        "accept4" => libc::SYS_accept4,
        "listen" => libc::SYS_listen,
        "socket" => libc::SYS_socket,
        "sendto" => libc::SYS_sendto,
        "sendmsg" => libc::SYS_sendmsg,
        "sendmmsg" => libc::SYS_sendmmsg,
        "recvfrom" => libc::SYS_recvfrom,
        "recvmsg" => libc::SYS_recvmsg,
        "recvmmsg" => libc::SYS_recvmmsg,
        "execveat" => libc::SYS_execveat,
        "clone" => libc::SYS_clone,
        "clone3" => libc::SYS_clone3,
        _ => return None,
    })
}

/// Makes one call.
pub fn make(op: &str, query: &Query) -> Result<i64, String> {
    let nr = number(op).ok_or_else(|| format!("unknown op {op}"))?;
    match op {
        "open" | "creat" | "openat2" | "lstat" | "sys_stat" | "newfstatat" | "statx"
        | "renameat" => by_path(op, nr, query),
        "fstat" | "preadv2" | "msync" | "sync" | "close" | "close_range" => {
            by_descriptor(op, nr, query)
        }
        "accept" | "accept4" | "listen" | "socket" => passive(op, nr),
        "execveat" => in_child(|| {
            let (path, none) = (CString::from(c"/bin/true"), ptr::null::<c_void>());
            let argv = [path.as_ptr(), ptr::null()];
            // SAFETY: the path and the list of arguments end with NUL and outlive the call; an empty environment may be null.
            check(unsafe {
                libc::syscall(nr, libc::AT_FDCWD, path.as_ptr(), argv.as_ptr(), none, 0)
            })
        }),
        "sys_fork" | "vfork" | "clone" | "clone3" => fork(op, nr),
        _ => message(op, nr, query),
    }
}

fn by_path(op: &str, nr: c_long, query: &Query) -> Result<i64, String> {
    let path = c_path(query, "path")?;
    let (p, at) = (path.as_ptr(), libc::AT_FDCWD);
    let to = c_path(query, "to").unwrap_or_default();
    if query.get("create").is_some() {
        drop(file(query, libc::O_WRONLY)?);
    }
    let (flags, mode) = (libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC, 0o644);
    // struct open_how (linux/openat2.h): flags, mode, resolve.
    let how = [flags as u64, mode as u64, 0];
    // No architecture's struct stat or struct statx is larger.
    let mut out = [0u64; 64];
    let into = out.as_mut_ptr();
    // SAFETY: every pointer is to a NUL-terminated string, or to a structure of the size that the call expects, and outlives the call.
    let ret = check(unsafe {
        match op {
            "open" => libc::syscall(nr, p, flags, mode),
            "creat" => libc::syscall(nr, p, mode),
            "openat2" => libc::syscall(nr, at, p, how.as_ptr(), size_of_val(&how)),
            "newfstatat" => libc::syscall(nr, at, p, into, 0),
            "statx" => libc::syscall(nr, at, p, 0, libc::STATX_BASIC_STATS, into),
            "renameat" => libc::syscall(nr, at, p, at, to.as_ptr()),
            _ => libc::syscall(nr, p, into),
        }
    })?;
    if matches!(op, "open" | "creat" | "openat2") {
        // SAFETY: the kernel has just given us this descriptor.
        drop(unsafe { OwnedFd::from_raw_fd(ret as i32) });
    }
    Ok(0)
}

fn by_descriptor(op: &str, nr: c_long, query: &Query) -> Result<i64, String> {
    const PAGE: usize = 4096;
    let f = file(query, libc::O_RDWR)?;
    let fd = f.as_raw_fd();
    let mut out = [0u64; 64];
    let iov = libc::iovec {
        iov_base: out.as_mut_ptr().cast(),
        iov_len: 8,
    };
    // SAFETY: buffers are as large as said and outlive the call; a descriptor that is closed here is not ours any more; a page of
    // the file is mapped, synced and unmapped.
    unsafe {
        match op {
            "fstat" => check(libc::syscall(nr, fd, out.as_mut_ptr())),
            "preadv2" => check(libc::syscall(nr, fd, &raw const iov, 1, 0, 0, 0)),
            "msync" => {
                let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED);
                let page = libc::mmap(ptr::null_mut(), PAGE, prot, flags, fd, 0);
                let outcome = check(libc::syscall(nr, page, PAGE, libc::MS_ASYNC));
                libc::munmap(page, PAGE);
                outcome
            }
            "sync" => check(libc::syscall(nr)),
            _ => {
                let fd = libc::dup(std::os::fd::IntoRawFd::into_raw_fd(f));
                check(match op {
                    "close" => libc::syscall(nr, fd),
                    _ => libc::syscall(nr, fd, fd, 0),
                })
            }
        }
    }
}

/// Calls on a socket that waits for connections.
fn passive(op: &str, nr: c_long) -> Result<i64, String> {
    let io = |e: std::io::Error| errno_name(&e);
    if op == "socket" {
        // SAFETY: socket takes numbers.
        let fd = check(unsafe {
            libc::syscall(nr, libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0)
        })?;
        // SAFETY: the kernel has just given us this descriptor.
        drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        return Ok(0);
    }
    let listener = TcpListener::bind("127.0.0.1:0").map_err(io)?;
    let fd = listener.as_raw_fd();
    if op == "listen" {
        // SAFETY: listen takes an open descriptor and a number; a second one sets the backlog anew.
        return check(unsafe { libc::syscall(nr, fd, 1) });
    }
    let _client = TcpStream::connect(listener.local_addr().map_err(io)?).map_err(io)?;
    let none = ptr::null::<c_void>();
    // SAFETY: nobody asks for the peer's address, so both pointers are null.
    let accepted = check(unsafe { libc::syscall(nr, fd, none, none, 0) })?;
    // SAFETY: the kernel has just given us this descriptor.
    drop(unsafe { OwnedFd::from_raw_fd(accepted as i32) });
    Ok(0)
}

/// Calls that make a process. The child ends at once.
fn fork(op: &str, nr: c_long) -> Result<i64, String> {
    // struct clone_args (linux/sched.h), of version 0: the signal that tells of the child's end is the fifth.
    let mut args = [0u64; 8];
    args[4] = libc::SIGCHLD as u64;
    // SAFETY: no flag shares memory, so the child has a copy of everything and ends by _exit. vfork does share it: specs only make it
    // while it is denied.
    let pid = check(unsafe {
        match op {
            "clone" => libc::syscall(nr, libc::SIGCHLD, 0, 0, 0, 0),
            "clone3" => libc::syscall(nr, args.as_ptr(), size_of_val(&args)),
            _ => libc::syscall(nr),
        }
    })?;
    if pid == 0 {
        // SAFETY: _exit ends the child.
        unsafe { libc::_exit(0) }
    }
    // SAFETY: no status is asked for.
    check(i64::from(unsafe {
        libc::waitpid(pid as i32, ptr::null_mut(), 0)
    }))
}

/// Calls that send to the server at `addr=`, or receive its answer to a request.
fn message(op: &str, nr: c_long, query: &Query) -> Result<i64, String> {
    const REQUEST: &[u8] = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    let io = |e: std::io::Error| errno_name(&e);
    let stream = TcpStream::connect(query.need("addr")?).map_err(io)?;
    let fd = stream.as_raw_fd();
    if op.starts_with("recv") {
        // Not by the stream, which calls sendto: that is a member of the other family.
        // SAFETY: REQUEST is valid for its length.
        check(unsafe { libc::write(fd, REQUEST.as_ptr().cast(), REQUEST.len()) } as i64)?;
    }
    let mut buffer = REQUEST.to_vec();
    let (data, n) = (buffer.as_mut_ptr(), buffer.len());
    let mut iov = libc::iovec {
        iov_base: data.cast(),
        iov_len: n,
    };
    // SAFETY: all zeros is a message without a name, data or control.
    let mut messages: [libc::mmsghdr; 1] = unsafe { std::mem::zeroed() };
    messages[0].msg_hdr.msg_iov = &raw mut iov;
    messages[0].msg_hdr.msg_iovlen = 1;
    let list = messages.as_mut_ptr();
    let none = ptr::null::<c_void>();
    // SAFETY: `data` is valid for `n` bytes, `list` for one message whose only buffer is `data`; all outlive the call.
    check(unsafe {
        match op {
            "sendto" | "recvfrom" => libc::syscall(nr, fd, data, n, 0, none, none),
            "sendmsg" | "recvmsg" => libc::syscall(nr, fd, &raw mut (*list).msg_hdr, 0),
            "sendmmsg" => libc::syscall(nr, fd, list, 1, 0),
            _ => libc::syscall(nr, fd, list, 1, 0, none),
        }
    })
}
