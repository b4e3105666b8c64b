//! Bytes that nobody has thought of, in both directions at once, through whole sessions: with no rule armed they pass unchanged;
//! with rules armed every session still ends; nothing panics.

use faultbox_engine::testing::fuzz;
use faultbox_postgres::protocol;
use proptest::collection::vec;
use proptest::prelude::*;

/// Pieces of the protocol and bytes of none, in chunks.
fn chunks(pieces: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<Vec<u8>>> {
    let piece = prop_oneof![
        8 => proptest::sample::select(pieces).prop_map(<[u8]>::to_vec),
        1 => vec(any::<u8>(), 0..30),
    ];
    let chunk = vec(piece, 0..8).prop_map(|pieces| pieces.concat());
    vec(chunk, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn without_rules_everything_passes_unchanged(client in chunks(CLIENT), server in chunks(SERVER)) {
        fuzz::body(protocol(), &fuzz::encode(0, &client, &server));
    }

    #[test]
    fn with_rules_every_session_ends(client in chunks(CLIENT), server in chunks(SERVER), which in 0..RULES.len()) {
        fuzz::session(protocol(), client, server, |proxy| fuzz::arm(proxy, RULES[which]));
    }
}

#[test]
fn the_corpus_passes() {
    assert!(fuzz::corpus(protocol()) > 0);
}

/// Rules with numbers as text.
const RULES: &[(&str, &[(&str, &str)])] = &[
    ("error", &[("verb", "SELECT")]),
    ("error", &[("code", "57P01")]),
    ("response", &[]),
    ("delay", &[("delay", "1ms")]),
    ("drop", &[("verb", "COPY")]),
    ("reset", &[("verb", "SELECT")]),
    ("truncate", &[("bytes", "7")]),
    ("throttle", &[("rate", "100KB/s")]),
    ("corrupt", &[("offset", "1")]),
];

const HELLO: &[u8] = b"\0\0\0\x12\0\x03\0\0user\0ann\0\0";
const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x01\0\0\0\x02Z\0\0\0\x05I";

const CLIENT: &[&[u8]] = &[
    HELLO,
    HELLO,
    HELLO,
    b"\0\0\0\x08\x04\xd2\x16\x2f",
    b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x01\0\0\0\x02",
    b"Q\0\0\0\x0dSELECT 1\0",
    b"Q\0\0\0\x16COPY t FROM STDIN\0",
    b"Q\0\0\0\x13DEALLOCATE ALL\0",
    b"P\0\0\0\x10\0SELECT 1\0\0\0",
    b"B\0\0\0\x0c\0\0\0\0\0\0\0\0",
    b"D\0\0\0\x06P\0",
    b"D\0\0\0\x06S\0",
    b"E\0\0\0\x09\0\0\0\0\0",
    b"E\0\0\0\x09\0\0\0\0\x01",
    b"C\0\0\0\x06P\0",
    b"S\0\0\0\x04",
    b"H\0\0\0\x04",
    b"F\0\0\0\x0e\0\0\0\x01\0\0\0\0\0\0",
    b"d\0\0\0\x05x",
    b"c\0\0\0\x04",
    b"f\0\0\0\x05\0",
    b"p\0\0\0\x05\0",
    b"X\0\0\0\x04",
    b"Q\x3f\xff\xff\xff",
    b"B\0\0\0\x05\x01",
];

const SERVER: &[&[u8]] = &[
    WELCOME,
    WELCOME,
    WELCOME,
    b"N",
    b"S",
    b"1\0\0\0\x04",
    b"2\0\0\0\x04",
    b"3\0\0\0\x04",
    b"T\0\0\0\x06\0\0",
    b"T\0\0\0\x06\0\x09",
    b"n\0\0\0\x04",
    b"t\0\0\0\x06\0\0",
    b"D\0\0\0\x0b\0\x01\0\0\0\x01x",
    b"D\0\0\0\x08\0\x09\xff\xff",
    b"C\0\0\0\x0dSELECT 1\0",
    b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I",
    b"I\0\0\0\x04",
    b"s\0\0\0\x04",
    b"E\0\0\0\x0cC42601\0\0",
    b"N\0\0\0\x05\0",
    b"A\0\0\0\x0a\0\0\0\x01a\0",
    b"S\0\0\0\x08a\0b\0",
    b"G\0\0\0\x07\0\0\0",
    b"H\0\0\0\x07\0\0\0",
    b"W\0\0\0\x07\0\0\0",
    b"d\0\0\0\x05x",
    b"c\0\0\0\x04",
    b"V\0\0\0\x08\xff\xff\xff\xff",
    b"Z\0\0\0\x05I",
    b"Z\0\0\0\x05T",
    b"Z\0\0\0\x05E",
    b"D\x3f\xff\xff\xff",
];
