//! The addresses that a worker hands out while its spec loads.
//!
//! Neither free ports nor proxies come from the range that the kernel gives to outgoing connections (ip(7), ip_local_port_range, 32768 to 60999
//! by default): a port that is free at load must still be free when its service starts.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use faultbox_contract::Transport;

use crate::spec::Ports;

/// Where services' free ports come from: below the ephemeral range.
const FREE: std::ops::Range<u16> = 20_000..32_768;
/// Where proxies listen: above it, where hardly anybody declares a port.
const PROXIES: std::ops::Range<u16> = 61_000..65_535;

/// Real addresses on loopback; the proxies' sockets are bound at once and kept until they are taken.
#[derive(Debug)]
pub struct LocalPorts {
    inner: Mutex<Inner>,
    certificates: PathBuf,
}

/// The bound sockets of one proxy, non-blocking, on one port number: those that its protocol's transport needs.
#[derive(Debug)]
pub struct Sockets {
    /// For byte streams.
    pub listener: Option<TcpListener>,
    /// The same on IPv6, where the machine has it: a socket may be of that family alone (IPV6_V6ONLY, ipv6(7)), and then cannot be led to an
    /// IPv4 address.
    pub listener_v6: Option<TcpListener>,
    /// For datagrams.
    pub datagrams: Option<UdpSocket>,
}

impl Sockets {
    fn bind(port: u16, transport: Transport) -> io::Result<Sockets> {
        let addr = (Ipv4Addr::LOCALHOST, port);
        let listener = match transport.has_tcp() {
            true => Some(TcpListener::bind(addr)?),
            false => None,
        };
        // With port 0, the kernel has chosen the listener's; the other socket must have the same.
        let addr = match &listener {
            Some(listener) => listener.local_addr()?,
            None => addr.into(),
        };
        let datagrams = match transport.has_udp() {
            true => Some(UdpSocket::bind(addr)?),
            false => None,
        };
        let listener_v6 = match &listener {
            Some(_) => on_ipv6(addr.port())?,
            None => None,
        };
        for listener in listener.iter().chain(&listener_v6) {
            listener.set_nonblocking(true)?;
        }
        if let Some(datagrams) = &datagrams {
            datagrams.set_nonblocking(true)?;
        }
        Ok(Sockets {
            listener,
            listener_v6,
            datagrams,
        })
    }

    fn port(&self) -> io::Result<u16> {
        match (&self.listener, &self.datagrams) {
            (Some(listener), _) => Ok(listener.local_addr()?.port()),
            (None, Some(datagrams)) => Ok(datagrams.local_addr()?.port()),
            (None, None) => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// A listener on this port of IPv6's loopback; `None` if there is no such thing here.
///
/// # Errors
/// Somebody else has the port.
fn on_ipv6(port: u16) -> io::Result<Option<TcpListener>> {
    match TcpListener::bind((Ipv6Addr::LOCALHOST, port)) {
        Ok(listener) => Ok(Some(listener)),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(e),
        Err(_) => Ok(None),
    }
}

#[derive(Debug)]
struct Inner {
    next_free: u16,
    next_proxy: u16,
    given: HashSet<u16>,
    sockets: HashMap<SocketAddr, Sockets>,
    proxies: HashMap<(String, String), SocketAddr>,
}

impl LocalPorts {
    /// `spread` sets where the search begins, so that workers that share a network rarely try the same ports. `certificates` is
    /// the folder of the test's certificates.
    pub fn new(spread: u32, certificates: PathBuf) -> LocalPorts {
        let begin = |range: &std::ops::Range<u16>| {
            let len = u32::from(range.end - range.start);
            range.start + (spread.wrapping_mul(97) % len) as u16
        };
        LocalPorts {
            inner: Mutex::new(Inner {
                next_free: begin(&FREE),
                next_proxy: begin(&PROXIES),
                given: HashSet::new(),
                sockets: HashMap::new(),
                proxies: HashMap::new(),
            }),
            certificates,
        }
    }

    /// The sockets that were bound to `addr`.
    pub fn take(&self, addr: SocketAddr) -> Option<Sockets> {
        self.lock().sockets.remove(&addr)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tries every port of `range` once, from `*next` on; if none can be had, any that the kernel gives.
fn search(
    next: &mut u16,
    range: &std::ops::Range<u16>,
    transport: Transport,
) -> io::Result<(Sockets, u16)> {
    for _ in range.clone() {
        let port = *next;
        *next = if port + 1 >= range.end {
            range.start
        } else {
            port + 1
        };
        if let Ok(sockets) = Sockets::bind(port, transport) {
            return Ok((sockets, port));
        }
    }
    let sockets = Sockets::bind(0, transport)?;
    let port = sockets.port()?;
    Ok((sockets, port))
}

impl Ports for LocalPorts {
    fn free(&self) -> io::Result<u16> {
        let mut inner = self.lock();
        // The sockets are let go at once: the service will bind the port itself, for streams, datagrams or both.
        loop {
            let (_, port) = search(&mut inner.next_free, &FREE, Transport::TcpAndUdp)?;
            if inner.given.insert(port) {
                return Ok(port);
            }
            if inner.given.len() >= FREE.len() {
                return Err(io::Error::other("no free port is left"));
            }
        }
    }

    fn proxy(
        &self,
        service: &str,
        interface: &str,
        transport: Transport,
    ) -> io::Result<SocketAddr> {
        let mut inner = self.lock();
        let key = (service.to_owned(), interface.to_owned());
        if let Some(addr) = inner.proxies.get(&key) {
            return Ok(*addr);
        }
        let (sockets, port) = search(&mut inner.next_proxy, &PROXIES, transport)?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        inner.sockets.insert(addr, sockets);
        inner.proxies.insert(key, addr);
        Ok(addr)
    }

    fn certificates(&self) -> PathBuf {
        self.certificates.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_distinct_and_kept() {
        let ports = LocalPorts::new(7, PathBuf::new());
        let mut seen = HashSet::new();
        for _ in 0..50 {
            let port = ports.free().unwrap();
            assert!(seen.insert(port));
        }
        let tcp = Transport::Tcp;
        let a = ports.proxy("db", "pg", tcp).unwrap();
        assert_eq!(ports.proxy("db", "pg", tcp).unwrap(), a);
        let b = ports.proxy("db", "admin", tcp).unwrap();
        assert_ne!(a, b);
        // The kernel accepts connections from now on, before any proxy runs.
        std::net::TcpStream::connect(a).unwrap();
        let sockets = ports.take(a).unwrap();
        assert_eq!(sockets.listener.unwrap().local_addr().unwrap(), a);
        match sockets.listener_v6 {
            Some(listener) => assert_eq!(listener.local_addr().unwrap().port(), a.port()),
            None => eprintln!("skipped IPv6: not available here"),
        }
        assert!(sockets.datagrams.is_none());
        assert!(ports.take(a).is_none());
    }

    #[test]
    fn each_transport_gets_its_sockets_on_one_port() {
        let ports = LocalPorts::new(9, PathBuf::new());
        let both = ports.proxy("ns", "dns", Transport::TcpAndUdp).unwrap();
        let sockets = ports.take(both).unwrap();
        assert_eq!(sockets.listener.unwrap().local_addr().unwrap(), both);
        assert_eq!(sockets.datagrams.unwrap().local_addr().unwrap(), both);
        let udp = ports.proxy("ns", "raw", Transport::Udp).unwrap();
        let sockets = ports.take(udp).unwrap();
        assert!(sockets.listener.is_none());
        assert_eq!(sockets.datagrams.unwrap().local_addr().unwrap(), udp);
        // Nobody listens for streams where only datagrams are spoken.
        std::net::TcpStream::connect(udp).unwrap_err();
        let any = Sockets::bind(0, Transport::TcpAndUdp).unwrap();
        assert_eq!(
            any.port().unwrap(),
            any.datagrams.unwrap().local_addr().unwrap().port()
        );
    }
}
