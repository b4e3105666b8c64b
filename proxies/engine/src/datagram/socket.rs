//! Reading and writing many datagrams by one system call.

use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt, sockopt};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::arena::{Arena, BATCH, Outbox, SLOT};

/// What a socket may hold for us. The kernel's default of 208 KiB is some 250 small datagrams, which come within 5 ms at the rates
/// that UDP services see; a proxy that sleeps longer than that must not lose any. A limit, not an allocation.
const RECEIVE_BUFFER: usize = 8 << 20;
/// A send that fails reports the error of an earlier datagram and clears it (udp(7)); this many may be waiting.
const PENDING_ERRORS: usize = 64;

/// Lets the socket hold as much as the system allows.
pub(super) fn enlarge(socket: &std::net::UdpSocket) {
    // Beyond net.core.rmem_max only with CAP_NET_ADMIN (socket(7)); up to it, for anybody.
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER);
    }
}

/// Asks for an error queue, which tells of which client an ICMP error is (ip(7), IP_RECVERR).
pub(super) fn want_errors(socket: &std::net::UdpSocket) {
    let _ = setsockopt(socket, sockopt::Ipv4RecvErr, &true);
}

/// The next client whose port is closed, by the error queue; `None` when the queue is empty.
pub(super) fn refused_peer(socket: &UdpSocket) -> Option<SocketAddr> {
    let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in);
    let mut byte = [0u8; 1];
    loop {
        let mut iov = [io::IoSliceMut::new(&mut byte)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message =
            recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags).ok()?;
        let refused = message.cmsgs().ok()?.any(|c| {
            matches!(c, ControlMessageOwned::Ipv4RecvErr(e, _) if e.ee_errno == libc::ECONNREFUSED as u32)
        });
        if let (true, Some(address)) = (refused, message.address) {
            return Some(SocketAddr::V4(SocketAddrV4::new(
                address.ip(),
                address.port(),
            )));
        }
    }
}

/// Fills the arena with the datagrams that are waiting.
///
/// # Errors
/// `WouldBlock` when there are none; else an error of an earlier send, which this call has cleared.
pub(super) fn receive(socket: &UdpSocket, arena: &mut Arena) -> io::Result<()> {
    // One interest at a time: tokio's try_io takes no combination. An error without data makes the socket just as ready.
    match socket.try_io(Interest::READABLE, || fill(socket, arena)) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            socket.try_io(Interest::ERROR, || fill(socket, arena))
        }
        outcome => outcome,
    }
}

fn fill(socket: &UdpSocket, arena: &mut Arena) -> io::Result<()> {
    arena.filled = 0;
    let asked = arena.expected;
    // Only what is asked for is filled in: a batch's headers and names are 7 KiB, which a single datagram need not pay for.
    let mut iovs = [MaybeUninit::<libc::iovec>::uninit(); BATCH];
    let mut names = [MaybeUninit::<libc::sockaddr_storage>::uninit(); BATCH];
    let mut headers = [MaybeUninit::<libc::mmsghdr>::uninit(); BATCH];
    for (i, slot) in arena.bytes.chunks_exact_mut(SLOT).take(asked).enumerate() {
        iovs[i].write(libc::iovec {
            iov_base: slot.as_mut_ptr().cast(),
            iov_len: slot.len(),
        });
        // SAFETY: all-zero bytes are a valid value of this plain C structure (null pointers, lengths of 0).
        let header = headers[i].write(unsafe { zeroed() });
        header.msg_hdr.msg_iov = iovs[i].as_mut_ptr();
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_name = names[i].as_mut_ptr().cast();
        header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    }
    // SAFETY: each of the first `asked` headers points to one iovec over a distinct slot of `arena.bytes` and to one name, all of which
    // outlive the call and whose lengths are given; a null time-out is allowed (recvmmsg(2)).
    let n = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr().cast(),
            asked as libc::c_uint,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    for i in 0..n {
        // SAFETY: of the first `n` headers, all of which were written above, the kernel has set the length.
        let header = unsafe { headers[i].assume_init_ref() };
        arena.lengths[i] = header.msg_len as usize;
        arena.peers[i] = address_of(&names[i], header.msg_hdr.msg_namelen);
    }
    arena.filled = n;
    arena.expected = expect(asked, n);
    Ok(())
}

/// How many datagrams to ask for after so many came of those that were asked for: many more if there were enough, and one more than came if
/// not.
fn expect(asked: usize, came: usize) -> usize {
    match came < asked {
        true => came + 1,
        false => (asked * 4).min(BATCH),
    }
}

/// What became of a send.
pub(super) struct Sent<T> {
    /// How it went in the end.
    pub(super) outcome: io::Result<T>,
    /// An error of an earlier datagram that was reported meanwhile.
    pub(super) refused: Option<io::Error>,
}

/// Does this error speak of an earlier datagram, by way of ICMP?
fn is_earlier(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EPROTO)
    )
}

/// Sends again while the call only reports earlier errors.
fn insist<T>(mut send: impl FnMut() -> io::Result<T>) -> Sent<T> {
    let mut refused = None;
    for _ in 0..PENDING_ERRORS {
        match send() {
            Err(e) if is_earlier(&e) => refused = Some(e),
            outcome => return Sent { outcome, refused },
        }
    }
    let outcome = Err(io::ErrorKind::ConnectionRefused.into());
    Sent { outcome, refused }
}

/// Sends one datagram, on an unconnected socket with an address.
pub(super) fn send_one(socket: &UdpSocket, datagram: &[u8], to: Option<SocketAddr>) -> Sent<()> {
    insist(|| {
        match to {
            Some(to) => socket.try_send_to(datagram, to),
            None => socket.try_send(datagram),
        }
        .map(|_| ())
    })
}

/// Sends what is in the outbox from the `first` on, at most a batch; returns how many.
pub(super) fn send(
    socket: &UdpSocket,
    arena: &Arena,
    out: &Outbox,
    first: usize,
    to: Option<SocketAddr>,
) -> Sent<usize> {
    let n = (out.len() - first).min(BATCH);
    if n == 1 {
        let sent = send_one(socket, out.bytes(arena, first), to);
        return Sent {
            outcome: sent.outcome.map(|()| 1),
            refused: sent.refused,
        };
    }
    let mut name = to.map(storage_of);
    insist(|| {
        socket.try_io(Interest::WRITABLE, || {
            // SAFETY: all-zero bytes are a valid value of each of these plain C structures.
            let (mut iovs, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
                unsafe { (zeroed(), zeroed()) };
            for i in 0..n {
                let bytes = out.bytes(arena, first + i);
                iovs[i] = libc::iovec {
                    iov_base: bytes.as_ptr().cast_mut().cast(),
                    iov_len: bytes.len(),
                };
                let header = &mut headers[i].msg_hdr;
                header.msg_iov = &raw mut iovs[i];
                header.msg_iovlen = 1;
                if let Some((name, length)) = &mut name {
                    header.msg_name = (&raw mut *name).cast();
                    header.msg_namelen = *length;
                }
            }
            // SAFETY: the first `n` headers point to one iovec each, over bytes that the call only reads, and to one name or
            // none; all outlive the call and their lengths are given (sendmmsg(2)).
            let sent = unsafe {
                libc::sendmmsg(
                    socket.as_fd().as_raw_fd(),
                    headers.as_mut_ptr(),
                    n as libc::c_uint,
                    libc::MSG_DONTWAIT,
                )
            };
            usize::try_from(sent).map_err(|_| io::Error::last_os_error())
        })
    })
}

/// The address in the first `length` bytes, which are all that the kernel has written; none of a connected socket's datagrams.
fn address_of(
    storage: &MaybeUninit<libc::sockaddr_storage>,
    length: libc::socklen_t,
) -> Option<SocketAddr> {
    let length = length as usize;
    if length < size_of::<libc::sa_family_t>() {
        return None;
    }
    // SAFETY: the family comes first, and has just been seen to be written.
    let family = unsafe { storage.as_ptr().cast::<libc::sa_family_t>().read() };
    match i32::from(family) {
        libc::AF_INET if length >= size_of::<libc::sockaddr_in>() => {
            // SAFETY: the kernel has written a whole sockaddr_in, and sockaddr_storage is large and aligned enough for any.
            let v4 = unsafe { &*storage.as_ptr().cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 if length >= size_of::<libc::sockaddr_in6>() => {
            // SAFETY: as above, with a sockaddr_in6.
            let v6 = unsafe { &*storage.as_ptr().cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn storage_of(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    let mut storage = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let length = match address {
        SocketAddr::V4(v4) => {
            let name = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from(*v4.ip()).to_be(),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is large and aligned enough for any socket address.
            unsafe { storage.as_mut_ptr().cast::<libc::sockaddr_in>().write(name) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let name = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: v6.ip().octets(),
                },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe {
                storage
                    .as_mut_ptr()
                    .cast::<libc::sockaddr_in6>()
                    .write(name)
            };
            size_of::<libc::sockaddr_in6>()
        }
    };
    // SAFETY: the storage was zeroed, which is a valid value, and then partly overwritten with a valid one.
    (unsafe { storage.assume_init() }, length as libc::socklen_t)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernel_s_shape() {
        for text in ["127.0.0.1:53", "[::1]:65535", "[fe80::1]:7"] {
            let address: SocketAddr = text.parse().unwrap();
            let (storage, length) = storage_of(address);
            let storage = MaybeUninit::new(storage);
            assert_eq!(address_of(&storage, length), Some(address));
            assert_eq!(address_of(&storage, 0), None);
            assert_eq!(address_of(&storage, 8), None);
        }
    }

    #[test]
    fn batches_grow_with_what_comes() {
        assert_eq!([expect(1, 1), expect(4, 4), expect(16, 16)], [4, 16, BATCH]);
        assert_eq!(
            [expect(BATCH, BATCH), expect(BATCH, 7), expect(4, 1)],
            [BATCH, 8, 2]
        );
        assert_eq!(expect(2, 1), 2);
    }
}
