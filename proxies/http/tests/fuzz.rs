//! Bytes that nobody has thought of, in both directions at once, through whole sessions: with no rule armed they pass unchanged;
//! with rules armed every session still ends; nothing panics.

use faultbox_engine::testing::fuzz;
use faultbox_http::protocol;
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
    ("error", &[("path", "/a")]),
    ("response", &[("body", "hello"), ("when", "after")]),
    ("response", &[("request_body", "*ab*")]),
    ("delay", &[("delay", "1ms")]),
    ("drop", &[("method", "POST")]),
    ("reset", &[("method", "HEAD")]),
    ("truncate", &[("bytes", "1")]),
    ("throttle", &[("rate", "100KB/s")]),
    ("corrupt", &[("offset", "1")]),
];

const CLIENT: &[&[u8]] = &[
    b"GET /a HTTP/1.1\r\n",
    b"HEAD / HTTP/1.1\r\n",
    b"POST /a HTTP/1.1\r\n",
    b"GET / HTTP/1.0\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n",
    b"Host: a\r\n",
    b"Content-Length: 3\r\n",
    b"Content-Length: 0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: Upgrade\r\nUpgrade: x\r\n",
    b"Connection: close\r\n",
    b"GET /a HTTP/1.1\r\n\r\n",
    b"GET /b HTTP/1.1\r\n\r\n",
    b"\r\n",
    b"\r\n",
    b"3\r\nabc\r\n",
    b"abc",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"\n",
];

const SERVER: &[&[u8]] = &[
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\n",
    b"HTTP/1.0 200 OK\r\n\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"\r\n",
    b"\r\n",
    b"3\r\nabc\r\n",
    b"abc",
    b"0\r\n\r\n",
    b"fffffffffffffff\r\n",
];
