//! Sockets that hear nothing: a filter that drops every packet that arrives (socket(7), SO_ATTACH_FILTER).
//!
//! For TCP that is a cut in one direction: what arrives is dropped before TCP sees it, so it is neither acknowledged nor answered, and
//! is sent again once the filter is gone.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::socket::option;

/// `BPF_RET | BPF_K` of linux/filter.h: with 0, nothing of the packet is kept.
const DROP: libc::sock_filter = libc::sock_filter {
    code: 0x06,
    jt: 0,
    jf: 0,
    k: 0,
};

fn set(socket: BorrowedFd<'_>, option: libc::c_int, value: &[u8]) -> io::Result<()> {
    // SAFETY: the value and its length describe readable memory.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    match rc {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// From now on nothing arrives.
///
/// # Errors
/// As setsockopt(2).
pub fn mute(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut program = [DROP];
    let filter = libc::sock_fprog {
        len: 1,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: all bytes of the structure are initialized but its padding, which the kernel does not read.
    let bytes = unsafe {
        std::slice::from_raw_parts((&raw const filter).cast::<u8>(), size_of_val(&filter))
    };
    set(socket, libc::SO_ATTACH_FILTER, bytes)
}

/// What arrives is heard again.
///
/// # Errors
/// As setsockopt(2).
pub fn unmute(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SO_DETACH_FILTER, &0i32.to_ne_bytes())
}

/// How many packets this socket has dropped in its life; 0 where the kernel does not say (SO_MEMINFO, before Linux 4.12).
pub fn dropped(socket: BorrowedFd<'_>) -> u64 {
    /// SK_MEMINFO_DROPS of linux/sock_diag.h.
    const DROPS: usize = 8;
    let mut values = [0u32; DROPS + 1];
    match option(socket, libc::SOL_SOCKET, SO_MEMINFO, &mut values) {
        true => values[DROPS].into(),
        false => 0,
    }
}

/// asm-generic/socket.h.
const SO_MEMINFO: libc::c_int = 55;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    #[test]
    fn a_muted_socket_hears_later() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let (mut accepted, _) = server.accept().unwrap();
        mute(accepted.as_fd()).unwrap();
        client.write_all(b"x").unwrap();
        accepted
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let mut byte = [0];
        assert_eq!(
            accepted.read(&mut byte).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        // Who delivers a packet on a loaded machine may have its turn later.
        let deadline = Instant::now() + Duration::from_secs(60);
        while dropped(accepted.as_fd()) == 0 {
            assert!(Instant::now() < deadline, "nothing is ever dropped");
            std::thread::sleep(Duration::from_millis(1));
        }
        unmute(accepted.as_fd()).unwrap();
        accepted
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        accepted.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }
}
