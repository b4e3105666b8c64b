//! Bytes that nobody has thought of, in both directions: with no rule armed they pass unchanged; with rules armed every session still
//! ends; nothing panics.

use faultbox_dns::{codec, protocol};
use faultbox_engine::testing::fuzz;
use proptest::collection::vec;
use proptest::prelude::*;

/// Pieces of messages and bytes of none.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        6 => proptest::sample::select(PIECES).prop_map(<[u8]>::to_vec),
        1 => vec(any::<u8>(), 0..20),
    ];
    vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

/// A stream of messages, cut anywhere; some are not what their length says.
fn chunks() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let framed = prop_oneof![
        5 => message().prop_map(|m| codec::framed(&m)),
        1 => message(),
    ];
    (vec(framed, 0..5), vec(1..30usize, 1..20)).prop_map(|(messages, sizes)| {
        let all = messages.concat();
        let (mut at, mut chunks) = (0, vec![]);
        for size in sizes.iter().cycle() {
            if at >= all.len() {
                break;
            }
            let end = (at + size).min(all.len());
            chunks.push(all[at..end].to_vec());
            at = end;
        }
        chunks
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn without_rules_streams_pass_unchanged(client in chunks(), server in chunks()) {
        fuzz::body(protocol(), &fuzz::encode(0, &client, &server));
    }

    #[test]
    fn rules_that_never_match_change_nothing(client in chunks(), server in chunks()) {
        let (said, answered) = (client.concat(), server.concat());
        let heard = fuzz::session(protocol(), client, server, |proxy| {
            fuzz::arm(proxy, ("error", &[("name", "never.example")]));
        });
        prop_assert_eq!(heard.server, (said, true));
        prop_assert_eq!(heard.client, (answered, true));
    }

    #[test]
    fn with_rules_every_session_ends(client in chunks(), server in chunks(), which in 0..RULES.len()) {
        fuzz::session(protocol(), client, server, |proxy| fuzz::arm(proxy, RULES[which]));
    }

    #[test]
    fn without_rules_datagrams_pass_unchanged(client in vec(message(), 0..20), server in vec(message(), 0..20)) {
        fuzz::body(protocol(), &fuzz::encode(fuzz::DATAGRAMS, &client, &server));
    }

    /// No rule touches what is no query, so the end comes through.
    #[test]
    fn datagrams_of_any_kind_do_no_harm(client in vec(message(), 0..20), server in vec(message(), 0..20), which in 0..RULES.len()) {
        fuzz::datagrams(protocol(), &client, &server, |proxy| fuzz::arm(proxy, RULES[which]));
    }
}

#[test]
fn the_corpus_passes() {
    assert!(fuzz::corpus(protocol()) > 0);
}

const RULES: &[(&str, &[(&str, &str)])] = &[
    ("error", &[]),
    ("error", &[("name", "a"), ("code", "NXDOMAIN")]),
    (
        "response",
        &[("type", "A"), ("records", r#"["192.0.2.1"]"#)],
    ),
    ("delay", &[("delay", "1ms")]),
    ("drop", &[("name", "a")]),
    ("truncate", &[]),
];

const PIECES: &[&[u8]] = &[
    b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00",
    b"\x00\x02\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01",
    b"\x00\x03\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00",
    b"\x01a\x00\x00\x01\x00\x01",
    b"\x01a\xc0\x0c\x00\x1c\x00\x01",
    b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x05\x00\x04\x01\x02\x03\x04",
    b"\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x00",
    b"\x00\x00\x29\xff\xff\x00\x00\x00\x00\x00\x0c\x00\x0a\x00\x08abcdefgh",
];
