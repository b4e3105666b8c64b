//! Brokers tell clients where brokers are. Where the kernel does not lead those connections to the proxies, the proxies' addresses
//! are put in the place of the brokers'.

use faultbox_contract::Addresses;

use crate::codec::schema::{
    DESCRIBE_CLUSTER, FETCH, FIND_COORDINATOR, METADATA, PRODUCE, SHARE_ACKNOWLEDGE, SHARE_FETCH,
};
use crate::codec::{Struct, Value};

/// The lists of places that responses have.
const LISTS: &[&str] = &["brokers", "coordinators", "node_endpoints"];

/// Does this response tell where brokers are?
pub fn tells(api: i16, version: i16) -> bool {
    match api {
        METADATA | FIND_COORDINATOR | DESCRIBE_CLUSTER | SHARE_FETCH | SHARE_ACKNOWLEDGE => true,
        // Hints where the leader has gone (KIP-951).
        PRODUCE => version >= 10,
        FETCH => version >= 16,
        _ => false,
    }
}

/// Puts the proxies' addresses in; was there anything to change?
pub fn rewrite(body: &mut Struct, addresses: &Addresses) -> bool {
    let mut changed = place(body, addresses);
    for list in LISTS {
        for item in body.list_mut(list).into_iter().flatten() {
            changed |= place(item, addresses);
        }
    }
    changed
}

fn place(part: &mut Struct, addresses: &Addresses) -> bool {
    let Some(port) = part.int("port").and_then(|p| u16::try_from(p).ok()) else {
        return false;
    };
    let Some(reach) = addresses.reach(&part.text("host"), port) else {
        return false;
    };
    part.set("host", Value::from(reach.ip().to_string().as_str()));
    part.set("port", i64::from(reach.port()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Reply, schema};
    use faultbox_contract::Address;

    /// The places that a response of this version has, and what they are told to be.
    fn places(body: &Struct) -> Vec<(String, i64)> {
        let lists = LISTS.iter().flat_map(|list| body.list(list));
        let all = std::iter::once(body).chain(lists);
        all.filter_map(|part| Some((part.text("host"), part.int("port")?)))
            .collect()
    }

    /// The same with a tagged field, which a message that is made here does not have: two brokers, and no rack.
    fn with_hints(reply: &Reply) -> Reply {
        let mut bytes = reply.encode().to_vec();
        assert_eq!(bytes.pop(), Some(0), "no tagged field");
        let mut hints = vec![3];
        for (host, port) in [("localhost", 9092i32), ("127.0.0.1", 9093)] {
            hints.extend(7i32.to_be_bytes());
            hints.push(host.len() as u8 + 1);
            hints.extend(host.as_bytes());
            hints.extend(port.to_be_bytes());
            hints.extend([0, 0]);
        }
        bytes.extend([1, 0, hints.len() as u8]);
        bytes.extend(hints);
        let size = bytes.len() as u32 - 4;
        bytes[..4].copy_from_slice(&size.to_be_bytes());
        Reply::decode(reply.api, reply.version, bytes.into()).unwrap()
    }

    #[test]
    fn every_response_that_tells_of_brokers_tells_of_their_proxies() {
        let proxy = Address {
            host: "broker.example".into(),
            upstream: "127.0.0.1:9092".parse().unwrap(),
            reach: "127.0.0.1:40001".parse().unwrap(),
        };
        let addresses: Addresses = [proxy].into_iter().collect();
        let mut told = vec![];
        for key in [
            METADATA,
            FIND_COORDINATOR,
            DESCRIBE_CLUSTER,
            PRODUCE,
            FETCH,
            SHARE_FETCH,
            SHARE_ACKNOWLEDGE,
        ] {
            let api = schema::api(key).unwrap();
            for version in (api.oldest..=api.newest).filter(|v| tells(key, *v)) {
                let mut reply = Reply::new(api, version, 1);
                reply.body.set("host", "broker.example");
                reply.body.set("port", 9092);
                for list in LISTS {
                    for (host, port) in [("localhost", 9092), ("127.0.0.1", 9093)] {
                        reply
                            .body
                            .push(list, version, |b| b.with("host", host).with("port", port));
                    }
                }
                if matches!(key, PRODUCE | FETCH) {
                    reply = with_hints(&reply);
                }
                let before = places(&reply.body);
                assert!(!before.is_empty(), "{api:?} {version}");
                assert!(rewrite(&mut reply.body, &addresses));
                // One that is not mediated stays where it is.
                let expected = before.into_iter().map(|place| match place.1 {
                    9092 => ("127.0.0.1".to_owned(), 40001),
                    _ => place,
                });
                let expected: Vec<_> = expected.collect();
                assert_eq!(places(&reply.body), expected, "{api:?} {version}");
                assert!(!rewrite(&mut reply.body, &addresses), "{api:?} {version}");
                told.push(key);
            }
            assert!(told.contains(&key), "{api:?}");
        }
    }
}
