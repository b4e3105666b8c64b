//! Bytes that nobody has thought of, in both directions at once, through whole sessions: with no rule armed they pass unchanged;
//! with rules armed every session still ends; nothing panics.

use faultbox_engine::testing::fuzz;
use faultbox_mysql::protocol;
use proptest::collection::vec;
use proptest::prelude::*;

/// Pieces of the protocol and bytes of none, in chunks, behind what begins a session.
fn chunks(
    first: &'static [u8],
    pieces: &'static [&'static [u8]],
) -> impl Strategy<Value = Vec<Vec<u8>>> {
    let piece = prop_oneof![
        12 => proptest::sample::select(pieces).prop_map(<[u8]>::to_vec),
        1 => vec(any::<u8>(), 0..30),
    ];
    let chunk = vec(piece, 0..8).prop_map(|pieces| pieces.concat());
    (any::<bool>(), vec(chunk, 0..6)).prop_map(move |(begins, mut chunks)| {
        if begins {
            chunks.insert(0, first.to_vec());
        }
        chunks
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn without_rules_everything_passes_unchanged(client in chunks(HELLO, CLIENT), server in chunks(WELCOME, SERVER)) {
        fuzz::body(protocol(), &fuzz::encode(0, &client, &server));
    }

    #[test]
    fn with_rules_every_session_ends(client in chunks(HELLO, CLIENT), server in chunks(WELCOME, SERVER), which in 0..RULES.len()) {
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
    ("error", &[("code", "1213")]),
    ("error", &[("code", "1053")]),
    ("error", &[("verb", "CONNECT")]),
    ("response", &[]),
    ("delay", &[("delay", "1ms")]),
    ("drop", &[("verb", "LOAD")]),
    ("reset", &[("verb", "SELECT")]),
    ("truncate", &[("bytes", "7")]),
    ("throttle", &[("rate", "100KB/s")]),
    ("corrupt", &[("offset", "1")]),
];

/// A greeting with PROTOCOL_41, SECURE_CONNECTION, PLUGIN_AUTH and nothing else; then the OK for a login.
const WELCOME: &[u8] = b"\x3e\0\0\0\x0a5.7\0\x01\0\0\0abcdefgh\0\x08\x82\x2d\x02\0\x08\0\x15\0\0\0\0\0\0\0\0\0\0ijklmnopqrst\0mysql_native\0\
    \x07\0\0\x02\0\0\0\x02\0\0\0";
/// PROTOCOL_41 and SECURE_CONNECTION: ann, without a password.
const HELLO: &[u8] =
    b"\x25\0\0\x01\0\x82\0\0\0\0\0\x01\x2d\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0ann\0\0";

const CLIENT: &[&[u8]] = &[
    b"\x09\0\0\0\x03SELECT 1",
    b"\x09\0\0\0\x03SELECT 1",
    b"\x09\0\0\0\x16SELECT ?",
    b"\x0a\0\0\0\x17\x01\0\0\0\0\x01\0\0\0",
    b"\x10\0\0\0\x17\x01\0\0\0\0\x01\0\0\0\0\x01\x01\0\x05x",
    b"\x0d\0\0\0\x17\x01\0\0\0\0\x01\0\0\0\0\0\x05",
    b"\x0a\0\0\0\x17\xff\xff\xff\xff\0\x01\0\0\0",
    b"\x08\0\0\0\x18\x01\0\0\0\0\0x",
    b"\x05\0\0\0\x19\x01\0\0\0",
    b"\x05\0\0\0\x1a\x01\0\0\0",
    b"\x09\0\0\0\x1c\x01\0\0\0\x01\0\0\0",
    b"\x09\0\0\0\xfa\x01\0\0\0\x80\0\0\0",
    b"\x05\0\0\0\x02shop",
    b"\x03\0\0\0\x04t\0",
    b"\x01\0\0\0\x0a",
    b"\x01\0\0\0\x0e",
    b"\x01\0\0\0\x09",
    b"\x01\0\0\0\x1f",
    b"\x0b\0\0\0\x11bob\0\0shop\0",
    b"\x04\0\0\x02pass",
    b"\x04\0\0\x02file",
    b"\0\0\0\x03",
    b"\x0b\0\0\0\x12\0\0\0\0\0\0\0\0\0\0",
    b"\x09\0\0\0\x03USE shop",
    b"\x0d\0\0\0\x03KILL QUERY 1",
    b"\x01\0\0\0\x01",
    b"\xff\xff\xff\0\x03SELECT",
];

const SERVER: &[&[u8]] = &[
    b"\x07\0\0\x01\0\0\0\x02\0\0\0",
    b"\x07\0\0\x01\0\0\0\x02\0\0\0",
    b"\x07\0\0\x01\0\x01\x01\x0a\0\0\0",
    b"\x01\0\0\x01\x01",
    b"\x17\0\0\x02\x03def\0\0\0\x01a\0\x0c\x3f\0\x01\0\0\0\x01\0\0\0\0\0",
    b"\x05\0\0\x03\xfe\0\0\x02\0",
    b"\x05\0\0\x03\xfe\0\0\x0a\0",
    b"\x05\0\0\x03\xfe\0\0\x42\0",
    b"\x02\0\0\x04\x011",
    b"\x03\0\0\x04\0\0\x07",
    b"\x01\0\0\x04\xfb",
    b"\x05\0\0\x01\xfbfile",
    b"\x09\0\0\x01\xff\x28\x04#42000",
    b"\x0c\0\0\x01\xff\xff\xff\x01\x01\x01\0\0\0\x02ab",
    b"\x0c\0\0\x01\0\x01\0\0\0\x01\0\x01\0\0\0\0",
    b"\x0c\0\0\x01\0\x01\0\0\0\0\0\0\0\0\0\0",
    b"\x0a\0\0\x01\xfeplugin\0ab",
    b"\x02\0\0\x01\x01x",
    b"\x07\0\0\x01\xfe\0\0\x02\0\0\0",
    b"\xff\xff\xff\x01\x01",
];
