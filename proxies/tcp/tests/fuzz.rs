//! Any bytes in any chunks, in both directions at once, through whole sessions: with no rule armed they pass unchanged, and with rules for
//! clients that begin otherwise; with rules armed every session still ends; nothing panics.

use faultbox_engine::testing::fuzz;
use faultbox_tcp::protocol;
use proptest::collection::vec;
use proptest::prelude::*;

/// From nothing to more than a socket takes at once.
fn chunks() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let sizes = prop_oneof![8 => 0..40usize, 1 => 0..5_000usize];
    let chunk = sizes.prop_flat_map(|n| vec(any::<u8>(), n));
    vec(chunk, 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn without_rules_everything_passes_unchanged(client in chunks(), server in chunks()) {
        fuzz::body(protocol(), &fuzz::encode(0, &client, &server));
    }

    /// The same cut into single bytes: whatever is cut, nothing is lost.
    #[test]
    fn byte_by_byte_too(client in chunks(), server in chunks()) {
        let bytes = |chunks: Vec<Vec<u8>>| chunks.concat().into_iter().take(300).map(|b| vec![b]).collect::<Vec<_>>();
        fuzz::body(protocol(), &fuzz::encode(0, &bytes(client), &bytes(server)));
    }

    #[test]
    fn rules_for_clients_that_begin_otherwise_change_nothing(client in chunks(), server in chunks(), which in 0..actions()) {
        // The last ones by number; see `fuzz::encode`.
        fuzz::body(protocol(), &fuzz::encode(1 + 2 * actions() + which, &client, &server));
    }

    #[test]
    fn with_rules_every_session_ends(client in chunks(), server in chunks(), which in 0..RULES.len()) {
        fuzz::session(protocol(), client, server, |proxy| fuzz::arm(proxy, RULES[which]));
    }
}

proptest! {
    // Each waits for its rule to be lifted.
    #![proptest_config(ProptestConfig { cases: 50, max_shrink_iters: 50, ..ProptestConfig::default() })]

    #[test]
    fn a_black_hole_that_is_lifted_has_changed_nothing(client in chunks(), server in chunks()) {
        let (said, answered) = (client.concat(), server.concat());
        let session = fuzz::session(protocol(), client, server, |proxy| {
            fuzz::lift_soon(proxy, &proxy.arm("drop", &[]));
        });
        prop_assert_eq!(session.server, (said, true));
        prop_assert_eq!(session.client, (answered, true));
    }
}

#[test]
fn the_corpus_passes() {
    assert!(fuzz::corpus(protocol()) > 0);
}

/// How many actions rules can have.
fn actions() -> u8 {
    u8::try_from(protocol().doc().actions.len()).expect("there are few")
}

/// Rules with numbers as text. Not drop: a black hole holds its session until it is lifted.
const RULES: &[(&str, &[(&str, &str)])] = &[
    ("delay", &[("delay", "1ms")]),
    ("delay", &[("delay", "1ms"), ("direction", "both")]),
    ("reset", &[]),
    ("reset", &[("prefix", "[a-z]*")]),
    ("truncate", &[("bytes", "7")]),
    ("truncate", &[("bytes", "7"), ("direction", "both")]),
    ("throttle", &[("rate", "1MB/s")]),
    ("corrupt", &[("offset", "1")]),
    ("corrupt", &[("offset", "30"), ("direction", "up")]),
];
