//! Where consumers reach what servers advertise.

use std::net::{IpAddr, SocketAddr};

/// One mediated interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The host as declared.
    pub host: String,
    /// Where the service itself listens.
    pub upstream: SocketAddr,
    /// Where consumers reach it: its proxy.
    pub reach: SocketAddr,
}

/// Every mediated interface. Protocols in which a server tells clients other servers' addresses (Kafka's metadata, Redis' MOVED)
/// put the proxies' in their place, so that clients do not go past them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses(Vec<Address>);

impl Addresses {
    /// Is there nothing to put in place of an advertised address?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where consumers reach what a server advertises as `host` and `port`; `None` if it is no mediated interface. The host may
    /// be written as declared, as an address, or, of an interface on loopback, as any loopback address or "localhost".
    pub fn reach(&self, host: &str, port: u16) -> Option<SocketAddr> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let ip: Option<IpAddr> = bare.parse().ok();
        let local = bare.eq_ignore_ascii_case("localhost") || ip.is_some_and(|ip| ip.is_loopback());
        let same = |a: &&Address| {
            a.upstream.port() == port
                && (ip == Some(a.upstream.ip())
                    || a.host.eq_ignore_ascii_case(bare)
                    || (local && a.upstream.ip().is_loopback()))
        };
        self.0.iter().find(same).map(|a| a.reach)
    }
}

impl FromIterator<Address> for Addresses {
    fn from_iter<I: IntoIterator<Item = Address>>(all: I) -> Addresses {
        Addresses(all.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertised_address_leads_to_its_proxy() {
        let address = |host: &str, upstream: &str, reach: &str| Address {
            host: host.into(),
            upstream: upstream.parse().unwrap(),
            reach: reach.parse().unwrap(),
        };
        let all: Addresses = [
            address("127.0.0.1", "127.0.0.1:9092", "127.0.0.1:40001"),
            address("broker.example", "10.0.0.7:9092", "127.0.0.1:40002"),
        ]
        .into_iter()
        .collect();
        let reach = |host, port| all.reach(host, port).map(|a| a.port());
        for local in ["127.0.0.1", "localhost", "LOCALHOST", "::1", "[::1]"] {
            assert_eq!(reach(local, 9092), Some(40001), "{local}");
        }
        assert_eq!(reach("broker.example", 9092), Some(40002));
        assert_eq!(reach("10.0.0.7", 9092), Some(40002));
        assert_eq!(reach("127.0.0.1", 9093), None);
        assert_eq!(reach("elsewhere", 9092), None);
        assert!(Addresses::default().is_empty() && !all.is_empty());
    }
}
