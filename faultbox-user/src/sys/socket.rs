//! Sockets of other processes, looked at through pidfd_getfd copies.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// An IP address and port from the bytes of a sockaddr; `None` for other families and for short ones.
pub fn parse_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    match family {
        libc::AF_INET => {
            let ip: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), port))
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(ip)), port))
        }
        _ => None,
    }
}

type NameCall =
    unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn name(socket: BorrowedFd<'_>, call: NameCall) -> Option<SocketAddr> {
    let mut bytes = [0u8; 128];
    let mut len = bytes.len() as libc::socklen_t;
    // SAFETY: the buffer and its length describe writable memory.
    let rc = unsafe { call(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), &raw mut len) };
    if rc < 0 {
        return None;
    }
    parse_address(&bytes[..(len as usize).min(bytes.len())])
}

/// The connected peer; `None` if there is none, or it has no IP address.
pub fn peer(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    name(socket, libc::getpeername)
}

/// The address it is bound to; `None` if it has no IP address.
pub fn local(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    name(socket, libc::getsockname)
}

/// A number that may have any bytes.
pub(super) trait Plain {}
impl Plain for u8 {}
impl Plain for u32 {}
impl Plain for libc::c_int {}

/// Reads an option into `value`, as much as there is room for; tells whether the socket has it.
pub(super) fn option<T: Plain>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &mut [T],
) -> bool {
    let mut len = size_of_val(value) as libc::socklen_t;
    // SAFETY: the value and its length describe writable memory, of numbers that may have any bytes.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    rc == 0
}

/// A number at the level of sockets.
fn number(socket: BorrowedFd<'_>, name: libc::c_int) -> Option<libc::c_int> {
    let mut value = [0];
    option(socket, libc::SOL_SOCKET, name, &mut value).then_some(value[0])
}

/// Is it a stream socket (TCP, if it has an IP address)?
pub fn is_stream(socket: BorrowedFd<'_>) -> bool {
    number(socket, libc::SO_TYPE) == Some(libc::SOCK_STREAM)
}

/// Is it a connection that both sides hold open (tcp(7), TCP_INFO)?
pub fn is_established(socket: BorrowedFd<'_>) -> bool {
    /// TCP_ESTABLISHED of netinet/tcp.h.
    const ESTABLISHED: u8 = 1;
    // The state is the first byte of a struct tcp_info, and as much is written as there is room for.
    let mut state = [0u8];
    option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut state) && state[0] == ESTABLISHED
}

/// Does it accept connections?
pub fn is_listening(socket: BorrowedFd<'_>) -> bool {
    number(socket, libc::SO_ACCEPTCONN) == Some(1)
}

/// Severs an established TCP connection: the peer gets a reset, the owner ECONNRESET at its next call
/// (connect(2): AF_UNSPEC dissolves the association).
///
/// # Errors
/// What the kernel says.
pub fn sever(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid sockaddr, of family AF_UNSPEC.
    let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: the address and its length describe readable memory.
    let rc = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            &raw const nobody,
            size_of::<libc::sockaddr>() as libc::socklen_t,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // A socket that was merely disconnected answers ENOTCONN for ever; one whose peer has reset it reads as ended after the
    // first ECONNRESET, and that is what pools look for. ENOTCONN is the expected answer here; the flags are set all the same.
    // SAFETY: plain values.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    #[test]
    fn severed_connections_are_reset_on_both_sides() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let (mut accepted, _) = server.accept().unwrap();
        assert_eq!(peer(client.as_fd()), server.local_addr().ok());
        assert_eq!(local(client.as_fd()), client.local_addr().ok());
        assert!(is_listening(server.as_fd()) && !is_listening(client.as_fd()));
        assert!(is_stream(client.as_fd()));
        assert!(is_established(client.as_fd()) && !is_established(server.as_fd()));
        sever(client.as_fd()).unwrap();
        let mut byte = [0];
        assert_eq!(
            client.read(&mut byte).unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
        // As after a reset by the peer: the error once, then the end of the stream.
        assert_eq!(client.read(&mut byte).unwrap(), 0);
        assert_eq!(
            accepted.read(&mut byte).unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
        assert_eq!(peer(client.as_fd()), None);
    }
}
