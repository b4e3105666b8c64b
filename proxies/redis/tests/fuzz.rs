//! Bytes that nobody has thought of, in both directions at once, through whole sessions: with no rule armed they pass unchanged;
//! with rules armed every session still ends; nothing panics.

use faultbox_engine::testing::fuzz;
use faultbox_redis::protocol;
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

    /// The same cut into single bytes: whatever is cut, nothing is lost.
    #[test]
    fn byte_by_byte_too(client in chunks(CLIENT), server in chunks(SERVER)) {
        let bytes = |chunks: Vec<Vec<u8>>| chunks.concat().into_iter().take(300).map(|b| vec![b]).collect::<Vec<_>>();
        fuzz::body(protocol(), &fuzz::encode(0, &bytes(client), &bytes(server)));
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
    ("error", &[("command", "SET")]),
    ("error", &[("key", "k*")]),
    ("error", &[("command", "EXEC"), ("message", "READONLY no")]),
    ("response", &[("value", "x")]),
    ("response", &[("command", "GET"), ("value", "1")]),
    ("delay", &[("delay", "1ms")]),
    ("drop", &[("args", "*k*")]),
    ("reset", &[("command", "PING")]),
    ("truncate", &[("bytes", "7")]),
    ("throttle", &[("rate", "100KB/s")]),
    ("corrupt", &[("offset", "1")]),
];

const CLIENT: &[&[u8]] = &[
    b"*1\r\n$4\r\nPING\r\n",
    b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
    b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\n\r\n*1\r\n",
    b"*3\r\n$3\r\nset\r\n$1\r\nk\r\n",
    b"$1\r\nv\r\n",
    b"*1\r\n$5\r\nMULTI\r\n",
    b"*1\r\n$4\r\nEXEC\r\n",
    b"*1\r\n$7\r\nDISCARD\r\n",
    b"*3\r\n$9\r\nSUBSCRIBE\r\n$1\r\na\r\n$1\r\nb\r\n",
    b"*1\r\n$11\r\nUNSUBSCRIBE\r\n",
    b"PSUBSCRIBE p*\r\n",
    b"HELLO 3\r\n",
    b"RESET\r\n",
    b"CLIENT REPLY OFF\r\n",
    b"*3\r\n$6\r\nclient\r\n$5\r\nreply\r\n$4\r\nskip\r\n",
    b"CLIENT REPLY ON\r\n",
    b"ASKING\n",
    b"MONITOR\n",
    b"CONFIG SET k v\n",
    b"EVAL \"return 1\" 1 k\r\n",
    b"PSYNC ? -1\r\n",
    b"*0\r\n",
    b"*-1\r\n\r\n",
    b"\r\n",
    b"*2\r\n$3\r\nGET\r\n$2147483647\r\n",
    b"*1\r\n$-1\r\n",
    b"'\n",
];

const SERVER: &[&[u8]] = &[
    b"+OK\r\n",
    b"+PONG\r\n",
    b"+QUEUED\r\n",
    b"+RESET\r\n",
    b"-ERR no\r\n",
    b"-MOVED 1 127.0.0.1:7000\r\n",
    b":1\r\n",
    b"$-1\r\n",
    b"$4\r\n\r\n:1\r\n",
    b"*-1\r\n",
    b"*2\r\n+OK\r\n$1\r\nx\r\n",
    b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n",
    b"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n",
    b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nm\r\n",
    b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:9223372036854775807\r\n",
    b">2\r\n$10\r\ninvalidate\r\n_\r\n",
    b"%1\r\n+proto\r\n:3\r\n",
    b"~1\r\n#t\r\n",
    b"|1\r\n+a\r\n:1\r\n",
    b",1.5\r\n",
    b"=5\r\ntxt:a\r\n",
    b"+1700000000.1 [0 x] \"PING\"\r\n",
    b"*9223372036854775807\r\n",
    b"$9223372036854775807\r\n",
    b"%9223372036854775807\r\n",
];
