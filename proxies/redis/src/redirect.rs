//! Where a cluster sends its clients, rewritten so that they come through the proxy that stands before that node: redirections, and what
//! CLUSTER SLOTS, SHARDS and NODES list.

use std::net::{IpAddr, SocketAddr};

use faultbox_contract::Addresses;
use memchr::memchr;

use crate::value::Value;

/// The longest redirection that is rewritten: a host name has at most 255 bytes.
const LONGEST: usize = 512;

/// What the front of a reply is.
#[derive(Debug, PartialEq, Eq)]
pub enum Redirect {
    /// Not enough to tell.
    More,
    /// Nothing to rewrite.
    No,
    /// This instead of so many bytes.
    To(usize, Vec<u8>),
}

/// Looks at the front of a reply: "-MOVED 3999 127.0.0.1:6381" or "-ASK …" (cluster specification, "Redirection and resharding").
/// An empty host means the one that the client is connected to, which is `own`.
pub fn redirect(buf: &[u8], addresses: &Addresses, own: IpAddr) -> Redirect {
    let begins = |word: &[u8]| buf.starts_with(&word[..word.len().min(buf.len())]);
    if addresses.is_empty() || !(begins(b"-MOVED ") || begins(b"-ASK ")) {
        return Redirect::No;
    }
    let seen = &buf[..buf.len().min(LONGEST)];
    let Some(end) = memchr(b'\n', seen) else {
        return match buf.len() < LONGEST {
            true => Redirect::More,
            false => Redirect::No,
        };
    };
    let line = seen[..end].strip_suffix(b"\r").unwrap_or(&seen[..end]);
    let rewritten = || {
        let line = std::str::from_utf8(line).ok()?;
        let (head, node) = line.rsplit_once(' ')?;
        let (host, port) = node.rsplit_once(':')?;
        let own = own.to_string();
        let host = if host.is_empty() { &own } else { host };
        let to = addresses.reach(host, port.parse().ok()?)?;
        // IPv6 goes without brackets here, as servers write it.
        Some(format!("{head} {}:{}\r\n", to.ip(), to.port()))
    };
    match rewritten() {
        Some(line) => Redirect::To(end + 1, line.into_bytes()),
        None => Redirect::No,
    }
}

/// The longest list of nodes that is rewritten: one of a thousand nodes has some 200 KB.
pub const LONGEST_LIST: usize = 1 << 20;

/// A list of a cluster's nodes, by how it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// CLUSTER SLOTS: ranges, each with its nodes as `[host, port, id, …]`.
    Slots,
    /// CLUSTER SHARDS: maps, in which nodes have an `ip`, an `endpoint` and ports.
    Shards,
    /// CLUSTER NODES, REPLICAS, SLAVES: a line of text per node.
    Nodes,
}

impl Listing {
    /// What the subcommand of CLUSTER asks for.
    pub fn of(subcommand: &[u8]) -> Option<Listing> {
        let is = |word: &str| subcommand.eq_ignore_ascii_case(word.as_bytes());
        match () {
            () if is("SLOTS") => Some(Listing::Slots),
            () if is("SHARDS") => Some(Listing::Shards),
            () if is("NODES") || is("REPLICAS") || is("SLAVES") => Some(Listing::Nodes),
            () => None,
        }
    }
}

/// Puts the proxies' addresses into a list; was there anything to change?
pub fn rewrite(listing: Listing, list: &mut Value, addresses: &Addresses, own: IpAddr) -> bool {
    let led = Led { addresses, own };
    match listing {
        Listing::Slots => {
            let ranges = items(list).iter_mut();
            let nodes = ranges.flat_map(|range| items(range).iter_mut().skip(2));
            nodes.fold(false, |changed, node| led.slot(items(node)) | changed)
        }
        Listing::Shards => {
            let mut changed = false;
            for shard in items(list) {
                for nodes in fields(shard).into_iter().filter(|(n, _)| *n == b"nodes") {
                    let nodes = items(nodes.1).iter_mut();
                    changed |= nodes.fold(false, |c, node| led.shard(fields(node)) | c);
                }
            }
            changed
        }
        Listing::Nodes => match list {
            Value::Array(lines) => lines.iter_mut().fold(false, |c, l| led.lines(l) | c),
            text => led.lines(text),
        },
    }
}

/// Where nodes lead to.
struct Led<'a> {
    addresses: &'a Addresses,
    own: IpAddr,
}

impl Led<'_> {
    /// The proxy before this node. No host, or an empty one, is the one that the client is connected to; "?" is one that the server does
    /// not know.
    fn reach(&self, host: Option<&[u8]>, port: i64) -> Option<SocketAddr> {
        let own = self.own.to_string();
        let host = match host {
            None | Some(b"") => &own,
            Some(host) => std::str::from_utf8(host).ok()?,
        };
        self.addresses.reach(host, u16::try_from(port).ok()?)
    }

    /// A node of CLUSTER SLOTS.
    fn slot(&self, node: &mut [Value]) -> bool {
        let [host, Value::Integer(port), ..] = node else {
            return false;
        };
        let Some(to) = self.reach(bytes(host), *port) else {
            return false;
        };
        *host = Value::Bulk(to.ip().to_string().into());
        *port = to.port().into();
        true
    }

    /// A node of CLUSTER SHARDS.
    fn shard(&self, mut node: Vec<(&[u8], &mut Value)>) -> bool {
        let hosts: Vec<Vec<u8>> = node
            .iter()
            .filter(|(name, _)| matches!(*name, b"endpoint" | b"ip"))
            .filter_map(|(_, value)| bytes(value).map(<[u8]>::to_vec))
            .collect();
        let reach = |port| {
            let mut known = hosts.iter().filter(|h| !h.is_empty()).peekable();
            match known.peek() {
                Some(_) => known.find_map(|host| self.reach(Some(host), port)),
                None => self.reach(None, port),
            }
        };
        let mut led = None;
        for (name, value) in &mut node {
            if let (b"port" | b"tls-port", Value::Integer(port)) = (*name, &mut **value)
                && let Some(to) = reach(*port)
            {
                *port = to.port().into();
                led = Some(to.ip());
            }
        }
        let Some(ip) = led else { return false };
        for (name, value) in node {
            if matches!(name, b"endpoint" | b"ip") {
                *value = Value::Bulk(ip.to_string().into());
            }
        }
        true
    }

    /// Lines of CLUSTER NODES: "id host:port@bus,hostname flags …".
    fn lines(&self, text: &mut Value) -> bool {
        let (Value::Bulk(text) | Value::Verbatim(_, text)) = text else {
            return false;
        };
        let mut changed = false;
        let line = |line: &[u8]| {
            let rewritten = || {
                let line = std::str::from_utf8(line).ok()?;
                let (id, rest) = line.split_once(' ')?;
                let end = rest.find(['@', ',', ' '])?;
                let (host, port) = rest[..end].rsplit_once(':')?;
                let to = self.reach(Some(host.as_bytes()), port.parse().ok()?)?;
                Some(format!("{id} {}:{}{}", to.ip(), to.port(), &rest[end..]))
            };
            match rewritten() {
                Some(line) => {
                    changed = true;
                    line.into_bytes()
                }
                None => line.to_vec(),
            }
        };
        let lines: Vec<Vec<u8>> = text.split(|b| *b == b'\n').map(line).collect();
        *text = lines.join(&b'\n');
        changed
    }
}

/// The values of a list; none, if it is no list.
fn items(value: &mut Value) -> &mut [Value] {
    match value {
        Value::Array(values) | Value::Set(values) => values,
        _ => &mut [],
    }
}

/// The fields of a map, which RESP2 writes as a list.
fn fields(value: &mut Value) -> Vec<(&[u8], &mut Value)> {
    let pair = |(name, value)| Some((bytes(name)?, value));
    match value {
        Value::Map(pairs) => {
            let pairs = pairs.iter_mut().map(|(name, value)| (&*name, value));
            pairs.filter_map(pair).collect()
        }
        Value::Array(values) => {
            let pairs = values.chunks_exact_mut(2).filter_map(|two| match two {
                [name, value] => Some((&*name, value)),
                _ => None,
            });
            pairs.filter_map(pair).collect()
        }
        _ => vec![],
    }
}

/// What a text has; `None` for null and everything else.
fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::Bulk(bytes) | Value::Verbatim(_, bytes) => Some(bytes),
        Value::Simple(text) => Some(text.as_bytes()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faultbox_contract::Address;

    #[test]
    fn a_redirection_leads_to_the_nodes_proxy() {
        let addresses: Addresses = [Address {
            host: "127.0.0.1".into(),
            upstream: "127.0.0.1:7001".parse().unwrap(),
            reach: "127.0.0.1:61001".parse().unwrap(),
        }]
        .into_iter()
        .collect();
        let own = IpAddr::from([127, 0, 0, 1]);
        let look = |line: &str| redirect(line.as_bytes(), &addresses, own);
        for (line, rewritten) in [
            (
                "-MOVED 3999 127.0.0.1:7001\r\n",
                "-MOVED 3999 127.0.0.1:61001\r\n",
            ),
            (
                "-ASK 1 localhost:7001\r\n+OK\r\n",
                "-ASK 1 127.0.0.1:61001\r\n",
            ),
            ("-MOVED 1 :7001\r\n", "-MOVED 1 127.0.0.1:61001\r\n"),
        ] {
            let end = line.find('\n').unwrap() + 1;
            assert_eq!(look(line), Redirect::To(end, rewritten.into()));
            for cut in 1..end {
                assert_eq!(look(&line[..cut]), Redirect::More, "{cut}");
            }
        }
        for line in [
            "-MOVED 1 127.0.0.1:7002\r\n",
            "-ERR MOVED\r\n",
            "-MOVED\r\n",
        ] {
            assert_eq!(look(line), Redirect::No, "{line}");
        }
        let long = format!("-MOVED 1 {}", "x".repeat(LONGEST));
        assert_eq!(look(&long), Redirect::No);
        let none = Addresses::default();
        assert_eq!(redirect(b"-M", &none, own), Redirect::No);
    }

    fn two() -> (Addresses, IpAddr) {
        let node = |n: u16| Address {
            host: "127.0.0.1".into(),
            upstream: ([127, 0, 0, 1], 7000 + n).into(),
            reach: ([127, 0, 0, 1], 61000 + n).into(),
        };
        (
            [node(1), node(2)].into_iter().collect(),
            [127, 0, 0, 1].into(),
        )
    }

    /// The same list after it was rewritten; `None` if nothing was to be changed.
    fn listed(listing: Listing, version: u8, list: &str) -> Option<String> {
        let (addresses, own) = two();
        let (mut value, n) = Value::decode(list.as_bytes()).unwrap().unwrap();
        assert_eq!(n, list.len());
        rewrite(listing, &mut value, &addresses, own).then(|| {
            let mut out = vec![];
            value.encode(version, &mut out);
            String::from_utf8(out).unwrap()
        })
    }

    #[test]
    fn slots_lead_to_the_nodes_proxies() {
        // A host that is null or empty is the one that answers; a port that is nobody's stays.
        let list = "*2\r\n*4\r\n:0\r\n:5\r\n\
            *4\r\n$9\r\n127.0.0.1\r\n:7001\r\n$2\r\nid\r\n*0\r\n\
            *3\r\n$-1\r\n:7002\r\n$1\r\nx\r\n\
            *3\r\n:6\r\n:7\r\n*3\r\n$8\r\n10.0.0.1\r\n:7001\r\n$1\r\ny\r\n";
        let expected = list
            .replace(":7001\r\n$2", ":61001\r\n$2")
            .replace("$-1\r\n:7002", "$9\r\n127.0.0.1\r\n:61002");
        assert_eq!(listed(Listing::Slots, 2, list), Some(expected));
        assert_eq!(listed(Listing::Slots, 2, "*0\r\n"), None);
        assert_eq!(listed(Listing::Slots, 2, "-ERR no\r\n"), None);
        assert_eq!(listed(Listing::Slots, 2, "*1\r\n*2\r\n:1\r\n:2\r\n"), None);
    }

    #[test]
    fn shards_lead_to_the_nodes_proxies_in_both_versions() {
        let node = "$2\r\nid\r\n$1\r\nx\r\n$4\r\nport\r\n:7001\r\n$2\r\nip\r\n$9\r\n127.0.0.1\r\n\
            $8\r\nendpoint\r\n$0\r\n\r\n$4\r\nrole\r\n$6\r\nmaster\r\n";
        let shard = "$5\r\nslots\r\n*2\r\n:0\r\n:9\r\n$5\r\nnodes\r\n*1\r\n";
        let after = node
            .replace(":7001", ":61001")
            .replace("endpoint\r\n$0\r\n", "endpoint\r\n$9\r\n127.0.0.1");
        for (version, outer, inner) in [(2, "*4", "*10"), (3, "%2", "%5")] {
            let list = |node: &str| format!("*1\r\n{outer}\r\n{shard}{inner}\r\n{node}");
            assert_eq!(
                listed(Listing::Shards, version, &list(node)),
                Some(list(&after))
            );
        }
    }

    #[test]
    fn lines_of_nodes_lead_to_their_proxies() {
        let text = "a :7001@17001 myself,master - 0 0 1 connected 0-5\n\
            b 127.0.0.1:7002@17002,name slave a 0 0 1 connected\n\
            c 10.0.0.1:7001@17001 master - 0 0 1 connected\nd :0@0 master,noaddr\n";
        let after = text
            .replace("a :7001", "a 127.0.0.1:61001")
            .replace("127.0.0.1:7002", "127.0.0.1:61002");
        let bulk = |text: &str| format!("${}\r\n{text}\r\n", text.len());
        assert_eq!(listed(Listing::Nodes, 2, &bulk(text)), Some(bulk(&after)));
        let verbatim = |text: &str| format!("={}\r\ntxt:{text}\r\n", text.len() + 4);
        assert_eq!(
            listed(Listing::Nodes, 3, &verbatim(text)),
            Some(verbatim(&after))
        );
        let array = |line: &str| format!("*1\r\n{}", bulk(line));
        assert_eq!(
            listed(Listing::Nodes, 2, &array("b 127.0.0.1:7002@1 slave a")),
            Some(array("b 127.0.0.1:61002@1 slave a"))
        );
        assert_eq!(listed(Listing::Nodes, 2, &bulk("no list")), None);
    }
}
