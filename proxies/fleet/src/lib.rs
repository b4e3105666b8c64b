//! The registry of protocols. Adding one is a crate beside this one and a line in [`all`].

use std::sync::LazyLock;

use faultbox_contract::Protocol;

/// Every protocol, in the order in which they are listed to people.
pub fn all() -> &'static [&'static dyn Protocol] {
    static ALL: LazyLock<Vec<&'static dyn Protocol>> = LazyLock::new(|| {
        vec![
            faultbox_http::protocol(),
            faultbox_http2::http2(),
            faultbox_http2::grpc(),
            faultbox_postgres::protocol(),
            faultbox_mysql::protocol(),
            faultbox_kafka::protocol(),
            faultbox_redis::protocol(),
            faultbox_tcp::protocol(),
            faultbox_udp::protocol(),
            faultbox_dns::protocol(),
        ]
    });
    &ALL
}

/// The protocol with this name or alias.
pub fn find(name: &str) -> Option<&'static dyn Protocol> {
    all()
        .iter()
        .copied()
        .find(|p| p.doc().name == name || p.doc().aliases.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_and_aliases_are_unique_and_found() {
        let mut seen = HashSet::new();
        for protocol in all() {
            let doc = protocol.doc();
            for name in doc.aliases.iter().chain([&doc.name]) {
                assert!(seen.insert(*name), "{name} is taken twice");
                assert_eq!(*name, name.to_lowercase());
                assert_eq!(find(name).unwrap().doc().name, doc.name);
            }
        }
        assert!(find("gopher").is_none());
    }

    #[test]
    fn every_entry_is_documented() {
        for protocol in all() {
            let doc = protocol.doc();
            let params = doc
                .actions
                .iter()
                .flat_map(|a| a.params)
                .chain(doc.steps.iter().flat_map(|s| s.params))
                .chain(doc.matchers);
            assert!(!doc.summary.is_empty());
            assert!(doc.actions.iter().all(|a| !a.summary.is_empty()));
            assert!(doc.steps.iter().all(|s| !s.summary.is_empty()));
            for param in params {
                assert!(!param.doc.is_empty(), "{}: {}", doc.name, param.name);
            }
        }
    }
}
