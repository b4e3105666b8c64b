//! Telling a client that nobody listens, as the kernel would have.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, SockaddrIn, sendto};

/// RFC 792: destination unreachable, port unreachable.
const UNREACHABLE: [u8; 2] = [3, 3];
const ICMP: u8 = 1;
const UDP: u8 = 17;

/// Sends "port unreachable" in the name of the proxy's own address, if this process may send raw packets (CAP_NET_RAW).
pub(super) struct Refuser(Option<OwnedFd>);

impl Refuser {
    pub(super) fn new() -> Refuser {
        Refuser(raw_socket().ok())
    }

    /// Tells `client` that nobody listens at `proxy`: its socket, if connected, reports ECONNREFUSED (udp(7)).
    pub(super) fn refuse(&self, client: SocketAddr, proxy: SocketAddr) {
        if let (Some(socket), SocketAddr::V4(to), Some(packet)) =
            (&self.0, client, packet(client, proxy))
        {
            // A client that misses it waits for its own time-out, as with any lost packet.
            let _ = sendto(
                socket.as_raw_fd(),
                &packet,
                &SockaddrIn::from(to),
                MsgFlags::MSG_DONTWAIT,
            );
        }
    }
}

/// IPPROTO_RAW only sends, and takes packets with their IP header (raw(7)).
fn raw_socket() -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe {
        libc::socket(
            libc::AF_INET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::IPPROTO_RAW,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The message about a datagram from `client` to `proxy`, from the latter to the former. `None` but for IPv4, which is all that
/// proxies listen on.
fn packet(client: SocketAddr, proxy: SocketAddr) -> Option<Vec<u8>> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (client.ip(), proxy.ip()) else {
        return None;
    };
    // What the client sent: its IP header and the first 8 bytes behind it (RFC 792), which are its UDP header.
    let header = |protocol: u8, length: u16, source: [u8; 4], destination: [u8; 4]| {
        let mut ip = [0u8; 20];
        // Version 4, five words; identification, checksum and the outer length are the kernel's to fill in (raw(7)).
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&length.to_be_bytes());
        ip[8] = 64;
        ip[9] = protocol;
        ip[12..16].copy_from_slice(&source);
        ip[16..20].copy_from_slice(&destination);
        ip
    };
    let mut message = vec![UNREACHABLE[0], UNREACHABLE[1], 0, 0, 0, 0, 0, 0];
    message.extend(header(UDP, 28, from.octets(), to.octets()));
    message.extend(client.port().to_be_bytes());
    message.extend(proxy.port().to_be_bytes());
    message.extend([0, 8, 0, 0]);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let length = 20 + u16::try_from(message.len()).ok()?;
    let mut packet = header(ICMP, length, to.octets(), from.octets()).to_vec();
    packet.extend(message);
    Some(packet)
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_checks_out() {
        let packet = packet(
            "127.0.0.1:4000".parse().unwrap(),
            "127.0.0.2:53".parse().unwrap(),
        )
        .unwrap();
        assert_eq!(packet.len(), 56);
        // A sum over data that includes its checksum is 0 (RFC 1071).
        assert_eq!(checksum(&packet[20..]), 0);
        assert_eq!(packet[12..20], [127, 0, 0, 2, 127, 0, 0, 1]);
        assert_eq!(packet[48..52], [0x0f, 0xa0, 0, 53]);
    }
}
