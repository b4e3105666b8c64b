//! A network namespace per worker, so that every test may use the same fixed ports.

use std::io;
use std::os::fd::AsRawFd;

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// Which network a worker lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The host's: one test at a time.
    Host,
    /// A namespace of its own (needs CAP_SYS_ADMIN, and CAP_NET_ADMIN for its loopback).
    Own,
    /// A namespace of its own inside a user namespace of its own, in which only the user itself exists.
    OwnAsUser,
}

/// Enters the network. The process must have one thread only: a user namespace is for whole processes (unshare(2)).
///
/// # Errors
/// The kernel refuses; says which step.
pub fn enter(network: Network) -> io::Result<()> {
    let step =
        |what: &str, e: io::Error| io::Error::new(e.kind(), format!("{what}: {}", os_text(&e)));
    match network {
        Network::Host => return Ok(()),
        Network::Own => unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|e| step("unshare(CLONE_NEWNET)", e.into()))?,
        Network::OwnAsUser => {
            let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
                .map_err(|e| step("unshare(CLONE_NEWUSER|CLONE_NEWNET)", e.into()))?;
            // user_namespaces(7): without setgroups denied, an unprivileged process may not write gid_map.
            std::fs::write("/proc/self/setgroups", "deny")
                .map_err(|e| step("/proc/self/setgroups", e))?;
            std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))
                .map_err(|e| step("/proc/self/uid_map", e))?;
            std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
                .map_err(|e| step("/proc/self/gid_map", e))?;
        }
    }
    loopback_up().map_err(|e| step("bring up lo", e))
}

/// Makes TCP in this network come back within a second once packets arrive again, however long they did not: its retransmissions are
/// never further apart than that. Connections give up about as late as ever, because they may try more often. Concerns sockets made
/// from now on; where the kernel lacks the setting (before Linux 6.15), a connection needs as long to come back as it was cut off.
///
/// # Errors
/// The settings cannot be written.
pub fn recover_quickly() -> io::Result<()> {
    let ipv4 = std::path::Path::new("/proc/sys/net/ipv4");
    std::fs::write(ipv4.join("tcp_rto_max_ms"), "1000")?;
    // The most that they may be (u8, tcp(7)): 255 and 127 seconds then.
    std::fs::write(ipv4.join("tcp_retries2"), "255")?;
    std::fs::write(ipv4.join("tcp_syn_retries"), "127")
}

/// Whether this process can give its workers a namespace by privilege alone.
#[derive(Debug, PartialEq, Eq)]
pub enum Privilege {
    /// It can.
    Whole,
    /// It can make one, and not set it up: why.
    Half(String),
    /// It cannot even make one.
    None,
}

/// Tried on a thread that ends at once: network namespaces are per thread.
pub fn privilege() -> Privilege {
    let tried = std::thread::spawn(|| {
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            return Privilege::None;
        }
        match loopback_up() {
            Ok(()) => Privilege::Whole,
            Err(e) => Privilege::Half(format!("bring up lo: {}", os_text(&e))),
        }
    });
    tried.join().unwrap_or(Privilege::None)
}

fn os_text(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(errno) => nix::errno::Errno::from_raw(errno).desc().to_lowercase(),
        None => e.to_string(),
    }
}

/// Sets IFF_UP on `lo` by one rtnetlink(7) request: RTM_NEWLINK with an ifinfomsg, acknowledged by an nlmsgerr.
fn loopback_up() -> io::Result<()> {
    const RTM_NEWLINK: u16 = libc::RTM_NEWLINK;
    let index = nix::net::if_::if_nametoindex("lo")? as i32;
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let up = libc::IFF_UP as u32;
    let mut request = Vec::with_capacity(32);
    request.extend(32u32.to_ne_bytes());
    request.extend(RTM_NEWLINK.to_ne_bytes());
    request.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    request.extend(1u32.to_ne_bytes()); // sequence number
    request.extend(0u32.to_ne_bytes()); // port id: the kernel's own
    request.extend([libc::AF_UNSPEC as u8, 0, 0, 0]);
    request.extend(index.to_ne_bytes());
    request.extend(up.to_ne_bytes());
    request.extend(up.to_ne_bytes());
    send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut reply = [0u8; 128];
    let n = recv(netlink.as_raw_fd(), &mut reply, MsgFlags::empty())?;
    let error = reply
        .get(16..20)
        .filter(|_| n >= 20)
        .and_then(|b| Some(i32::from_ne_bytes(b.try_into().ok()?)));
    match error {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::Error::other("the kernel's answer is cut short")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_namespace_has_a_loopback_of_its_own() {
        if privilege() != Privilege::Whole {
            eprintln!("SKIPPED: needs CAP_SYS_ADMIN and CAP_NET_ADMIN");
            return;
        }
        let outside = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = outside.local_addr().unwrap();
        std::thread::spawn(move || {
            enter(Network::Own).unwrap();
            let inside = std::net::TcpListener::bind(addr).unwrap();
            std::net::TcpStream::connect(addr).unwrap();
            inside.accept().unwrap();
        })
        .join()
        .unwrap();
    }
}
