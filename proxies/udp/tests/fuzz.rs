//! Any datagrams, in both directions: with no rule armed they pass unchanged and in order; with rules armed the proxy stays alive.

use faultbox_engine::testing::fuzz;
use faultbox_udp::protocol;
use proptest::collection::vec;
use proptest::prelude::*;

/// Small ones mostly; there is room for all of them in any socket's buffer.
fn datagrams() -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec(vec(any::<u8>(), 0..40), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn without_rules_everything_passes_unchanged(client in datagrams(), server in datagrams()) {
        fuzz::body(protocol(), &fuzz::encode(0, &client, &server));
    }

    #[test]
    fn with_rules_the_proxy_lives(client in datagrams(), server in datagrams(), which in 0..RULES.len()) {
        fuzz::datagrams(protocol(), &client, &server, |proxy| {
            let (action, args) = RULES[which];
            let mut args = args.to_vec();
            args.push(("direction", "both"));
            fuzz::arm(proxy, (action, &args));
        });
    }
}

#[test]
fn the_corpus_passes() {
    assert!(fuzz::corpus(protocol()) > 0);
}

/// Rules with numbers as text. None touches all that is said, or the end would never come through.
const RULES: &[(&str, &[(&str, &str)])] = &[
    ("drop", &[("probability", "50%")]),
    ("delay", &[("delay", "1ms")]),
    ("delay", &[("delay", "1ms"), ("every", "2")]),
    ("duplicate", &[("copies", "3")]),
    ("reorder", &[("past", "3"), ("within", "1ms")]),
    ("truncate", &[("bytes", "3"), ("every", "2")]),
    ("corrupt", &[("offset", "2"), ("every", "2")]),
    ("throttle", &[("rate", "100KB/s")]),
];
