//! Addresses in the kernel's shape.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use faultbox_ebpf_common::Address;

/// The addresses that lead to this one. To connect to "any address" is to connect to this machine (Linux; RFC 1122 section 3.2.1.3
/// forbids it on the wire only).
pub fn ways_to(ip: IpAddr) -> Vec<IpAddr> {
    match ip.to_canonical() {
        IpAddr::V4(Ipv4Addr::LOCALHOST | Ipv4Addr::UNSPECIFIED) => vec![
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        ],
        IpAddr::V6(Ipv6Addr::LOCALHOST | Ipv6Addr::UNSPECIFIED) => vec![
            IpAddr::V6(Ipv6Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ],
        other => vec![other],
    }
}

/// An address in the kernel's shape.
pub(super) fn address(addr: SocketAddr, proto: u32) -> Address {
    Address {
        ip: words(addr.ip()),
        port: addr.port().into(),
        proto,
    }
}

/// Four words in network byte order, IPv4 mapped.
pub(super) fn words(ip: IpAddr) -> [u32; 4] {
    let bytes = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    std::array::from_fn(|i| {
        u32::from_ne_bytes([
            bytes[4 * i],
            bytes[4 * i + 1],
            bytes[4 * i + 2],
            bytes[4 * i + 3],
        ])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_several_names() {
        let ways = |ip: &str| ways_to(ip.parse().unwrap()).len();
        assert_eq!(
            (
                ways("127.0.0.1"),
                ways("127.0.0.2"),
                ways("::1"),
                ways("10.0.0.1")
            ),
            (2, 1, 2, 1)
        );
    }
}
