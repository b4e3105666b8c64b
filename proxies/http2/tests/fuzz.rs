//! Bytes that nobody has thought of, in both directions at once, through whole sessions: with no rule armed they pass unchanged;
//! valid streams do so too under rules that match nothing; with rules that match every session still ends; nothing panics.

use faultbox_engine::testing::fuzz;
use faultbox_http2::{grpc, http2};
use proptest::collection::vec;
use proptest::prelude::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// POST / with a content type, and fields that go into the table.
const REQUEST: &[u8] = b"\x83\x86\x84\x5f\x10application/grpc\x40\x01a\x03xyz\xbe";
/// The same from the table.
const AGAIN: &[u8] = b"\x83\x86\x84\xbf\xbe";
const REPLY: &[u8] = b"\x88\x5f\x10application/grpc\x40\x01b\x02zz";
const TRAILERS: &[u8] = b"\x40\x0bgrpc-status\x010";

/// A field that takes a table's place, or not.
fn field() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(b"\x40\x02no\x01x".to_vec()),
        Just(b"\x00\x02no\x01x".to_vec()),
        Just(b"\x10\x02no\x01x".to_vec()),
        Just(b"\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff".to_vec()),
        Just(b"\x88".to_vec()),
    ]
}

/// One valid exchange on a stream: what the client sends, what the server sends.
fn exchange() -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<Vec<u8>>)> {
    let data = || vec(vec(any::<u8>(), 0..300), 0..5);
    (vec(field(), 0..4), data(), data(), any::<[bool; 6]>()).prop_map(
        |(fields, up, down, [padded, split, cancel, ping, priority, interim])| {
            let mut block = REQUEST.to_vec();
            block.extend(fields.concat());
            let mut client = vec![];
            let mut lead = vec![];
            let mut flags = 0;
            if padded {
                lead.push(3);
                flags |= 8;
            }
            if priority {
                lead.extend([0, 0, 0, 0, 15]);
                flags |= 0x20;
            }
            let at = if split { 7 } else { block.len() };
            lead.extend(&block[..at]);
            if padded {
                lead.extend([0; 3]);
            }
            client.push(frame(1, flags | if split { 0 } else { 4 }, 1, &lead));
            if split {
                client.push(frame(9, 4, 1, &block[at..]));
            }
            for chunk in &up {
                if padded {
                    let mut payload = vec![2];
                    payload.extend(chunk);
                    payload.extend([0, 0]);
                    client.push(frame(0, 8, 1, &payload));
                } else {
                    client.push(frame(0, 0, 1, chunk));
                }
            }
            if ping {
                client.push(frame(6, 0, 0, b"12345678"));
                client.push(frame(8, 0, 0, &[0, 0, 1, 0]));
                client.push(frame(0xbe, 3, 1, b"of an extension"));
            }
            client.push(if cancel {
                frame(3, 0, 1, &[0, 0, 0, 8])
            } else {
                frame(0, 1, 1, b"")
            });
            let mut server = vec![];
            if interim {
                server.push(frame(1, 4, 1, b"\x08\x03103"));
            }
            server.push(frame(1, 4, 1, REPLY));
            for chunk in &down {
                server.push(frame(0, 0, 1, chunk));
            }
            server.push(frame(1, 5, 1, TRAILERS));
            (client, server)
        },
    )
}

/// Writes stream numbers into frames, and cuts the bytes.
fn stream_of(exchanges: Vec<Vec<Vec<u8>>>, lead: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
    let mut bytes = lead.to_vec();
    bytes.extend(frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]));
    bytes.extend(frame(4, 1, 0, &[]));
    for (exchange, n) in exchanges.into_iter().zip(0u32..) {
        for mut frame in exchange {
            // Frames of the connection stay there.
            if frame[8] == 1 {
                frame[5..9].copy_from_slice(&(2 * n + 1).to_be_bytes());
            }
            bytes.extend(frame);
        }
    }
    cut(&bytes, cuts)
}

fn cut(mut bytes: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
    let mut chunks = vec![];
    for n in cuts.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let n = (*n).min(bytes.len());
        chunks.push(bytes[..n].to_vec());
        bytes = &bytes[n..];
    }
    chunks
}

/// Pieces of the protocol and bytes of none, in chunks.
fn chunks(pieces: Vec<Vec<u8>>, lead: Vec<u8>) -> impl Strategy<Value = Vec<Vec<u8>>> {
    let piece = prop_oneof![
        12 => proptest::sample::select(pieces),
        1 => vec(any::<u8>(), 0..30),
    ];
    let chunk = vec(piece, 0..8).prop_map(|pieces| pieces.concat());
    (
        prop_oneof![9 => Just(lead), 1 => Just(vec![])],
        vec(chunk, 0..6),
    )
        .prop_map(|(lead, mut chunks)| {
            chunks.insert(0, lead);
            chunks
        })
}

fn client_pieces() -> Vec<Vec<u8>> {
    let mut pieces = vec![
        frame(4, 0, 0, &[0, 4, 0, 0, 0, 10]),
        frame(4, 0, 0, &[0, 5, 0, 1, 0, 0]),
        frame(4, 1, 0, &[]),
        frame(4, 0, 0, &[1]),
        frame(6, 0, 0, b"12345678"),
        frame(8, 0, 0, &[0, 1, 0, 0]),
        frame(9, 4, 1, REQUEST),
        frame(1, 4, 2, REQUEST),
        frame(1, 4, 1, b"\xff\xff"),
        frame(7, 0, 0, &[0; 8]),
        frame(0x20, 0, 3, b"x"),
        b"GET / HTTP/1.1\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n".to_vec(),
    ];
    for id in [1, 3, 5] {
        pieces.push(frame(1, 4, id, REQUEST));
        pieces.push(frame(1, 5, id, REQUEST));
        pieces.push(frame(1, 5, id, AGAIN));
        pieces.push(frame(1, 0, id, REQUEST));
        pieces.push(frame(9, 4, id, b"\x82"));
        pieces.push(frame(0, 0, id, b"\0\0\0\0\x03abc"));
        pieces.push(frame(0, 1, id, b"\0\0\0\0\x03ab"));
        pieces.push(frame(0, 9, id, b"\x02abc\0\0"));
        pieces.push(frame(0, 8, id, b"\xff"));
        pieces.push(frame(3, 0, id, &[0, 0, 0, 8]));
        pieces.push(frame(8, 0, id, &[0, 0, 1, 0]));
        pieces.push(frame(2, 0, id, &[0, 0, 0, 0, 1]));
    }
    pieces
}

fn server_pieces() -> Vec<Vec<u8>> {
    let mut pieces = vec![
        frame(4, 1, 0, &[]),
        frame(4, 0, 0, &[0, 5, 0, 1, 0, 0]),
        frame(6, 1, 0, b"12345678"),
        frame(7, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]),
        frame(7, 0, 0, &[0, 0, 0, 9, 0, 0, 0, 0, b'!']),
        frame(8, 0, 0, &[0, 1, 0, 0]),
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
    ];
    for id in [1, 3, 5] {
        pieces.push(frame(1, 4, id, REPLY));
        pieces.push(frame(1, 4, id, b"\x08\x03100"));
        pieces.push(frame(1, 5, id, TRAILERS));
        pieces.push(frame(1, 5, id, b"\x88\xbe"));
        pieces.push(frame(5, 4, id, b"\0\0\0\x02\x82\x84"));
        pieces.push(frame(0, 0, id, b"\0\0\0\0\x03abc\0\0\0\0\0"));
        pieces.push(frame(0, 1, id, b"xyz"));
        pieces.push(frame(0, 8, id, b"\x01x\0"));
        pieces.push(frame(3, 0, id, &[0, 0, 0, 2]));
        pieces.push(frame(8, 0, id, &[0, 0, 1, 0]));
    }
    pieces
}

fn hello() -> Vec<u8> {
    [PREFACE.to_vec(), frame(4, 0, 0, &[])].concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn valid_streams_pass_however_they_are_cut(
        exchanges in vec(exchange(), 0..6),
        cuts in (vec(1usize..60, 1..8), vec(1usize..60, 1..8)),
        armed in any::<bool>(),
    ) {
        let (client, server): (Vec<_>, Vec<_>) = exchanges.into_iter().unzip();
        let client = stream_of(client, PREFACE, &cuts.0);
        let server = stream_of(server, b"", &cuts.1);
        let (said, answered) = (client.concat(), server.concat());
        let heard = fuzz::session(http2(), client, server, |proxy| if armed {
            fuzz::arm(proxy, ("error", &[("path", "/never")]));
            fuzz::arm(proxy, ("drop", &[("messages", "1"), ("method", "/never")]));
        });
        prop_assert_eq!(heard.degradations, Vec::<String>::new());
        prop_assert_eq!(heard.server, (said, true));
        prop_assert_eq!(heard.client, (answered, true));
    }

    #[test]
    fn without_rules_everything_passes_unchanged(
        client in chunks(client_pieces(), hello()),
        server in chunks(server_pieces(), frame(4, 0, 0, &[])),
    ) {
        let degraded = fuzz::body(http2(), &fuzz::encode(0, &client, &server));
        prop_assert!(degraded.len() <= 1, "{degraded:?}");
    }

    #[test]
    fn with_rules_every_session_ends(
        client in chunks(client_pieces(), hello()),
        server in chunks(server_pieces(), frame(4, 0, 0, &[])),
        which in vec(0..RULES.len(), 1..3),
    ) {
        let heard = fuzz::session(http2(), client, server, |proxy| {
            for rule in which {
                fuzz::arm(proxy, RULES[rule]);
            }
        });
        let degraded = heard.degradations;
        prop_assert!(degraded.len() <= 1, "{degraded:?}");
    }
}

#[test]
fn the_corpora_pass() {
    for protocol in [http2(), grpc()] {
        assert!(fuzz::corpus(protocol) > 0);
    }
}

/// Rules with numbers as text.
const RULES: &[(&str, &[(&str, &str)])] = &[
    ("error", &[("path", "/")]),
    ("error", &[("nth", "2")]),
    ("error", &[("messages", "1")]),
    ("response", &[("body", "hello"), ("when", "after")]),
    (
        "response",
        &[("body", "hello, hello, hello, hello"), ("every", "2")],
    ),
    ("delay", &[("delay", "2ms")]),
    ("delay", &[("delay", "2ms"), ("every", "2")]),
    ("delay", &[("delay", "1ms"), ("messages", "1")]),
    ("drop", &[("nth", "2")]),
    ("drop", &[("messages", "1")]),
    ("reset", &[("nth", "3")]),
    ("truncate", &[("bytes", "1")]),
    ("throttle", &[("rate", "10KB/s")]),
    ("corrupt", &[("offset", "1")]),
];

/// One rule, one recorded event, and what had been read so far still passes.
#[test]
fn a_continuation_flood_is_forwarded_unseen() {
    let mut client = hello();
    client.extend(frame(1, 0, 1, REQUEST));
    for _ in 0..500 {
        client.extend(frame(9, 0, 1, b""));
    }
    let chunks = cut(&client, &[1000]);
    let session = fuzz::session(http2(), chunks, vec![frame(4, 0, 0, &[])], |proxy| {
        proxy.arm("error", &[]);
    });
    assert!(session.server == (client, true));
    let degraded = session.degradations;
    assert_eq!(degraded.len(), 1);
    assert!(
        degraded[0].contains("too many CONTINUATION"),
        "{degraded:?}"
    );
}
