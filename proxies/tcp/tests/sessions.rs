//! Any bytes in any chunks, in both directions at once, through whole sessions: with no rule armed they pass unchanged; with rules armed
//! every session still ends; nothing panics.

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

    #[test]
    fn with_rules_every_session_ends(client in chunks(), server in chunks(), which in 0..RULES.len()) {
        fuzz::session(protocol(), client, server, |proxy| fuzz::arm(proxy, RULES[which]));
    }
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
