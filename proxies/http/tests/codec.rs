//! Framing does not depend on how the bytes are cut into pieces.

use std::time::Duration;

use faultbox_contract::Arg;
use faultbox_engine::testing::Harness;
use faultbox_http::codec::{Body, Framing, HeadSearch, Look, Malformed, RequestKind, split_target};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Where each message begins and what its payload is, found by feeding the stream in pieces that end at `cuts`.
fn walk(
    stream: &[u8],
    cuts: &[usize],
    replies: bool,
    look: Look,
) -> Result<Vec<(usize, Vec<u8>)>, Malformed> {
    let mut messages = vec![];
    let (mut at, mut start) = (0, 0);
    let mut search = HeadSearch::default();
    let mut body: Option<Body> = None;
    let mut payload = vec![];
    let mut ends: Vec<usize> = cuts.iter().map(|c| c % (stream.len() + 1)).collect();
    ends.push(stream.len());
    ends.sort_unstable();
    for end in ends {
        loop {
            if let Some(current) = &mut body {
                let input = &stream[at..end];
                at += current.advance(input, |range| payload.extend_from_slice(&input[range]))?;
                if !current.is_done() {
                    break;
                }
                messages.push((start, std::mem::take(&mut payload)));
                body = None;
            }
            start = at;
            let found = if replies {
                search
                    .reply(&stream[at..end], RequestKind::Other, look)?
                    .map(|i| (i.len, i.framing))
            } else {
                search
                    .request(&stream[at..end], look)?
                    .map(|i| (i.len, i.framing))
            };
            let Some((len, framing)) = found else { break };
            at += len;
            body = Some(Body::new(framing));
        }
    }
    assert_eq!(at, stream.len(), "the whole stream belongs to messages");
    Ok(messages)
}

fn chunked(payload: &[u8], sizes: &[usize], trailer: bool) -> Vec<u8> {
    let mut out = vec![];
    let mut rest = payload;
    for size in sizes.iter().chain([&usize::MAX]) {
        let n = (*size).clamp(1, rest.len().max(1)).min(rest.len());
        if n == 0 {
            break;
        }
        out.extend_from_slice(format!("{n:x};ext=\"a b\"\r\n").as_bytes());
        out.extend_from_slice(&rest[..n]);
        out.extend_from_slice(b"\r\n");
        rest = &rest[n..];
    }
    out.extend_from_slice(b"0\r\n");
    if trailer {
        out.extend_from_slice(b"X-Sum: 1\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// A message's bytes, head first, and its payload.
fn message(replies: bool) -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let payload = proptest::collection::vec(any::<u8>(), 0..300);
    let sizes = proptest::collection::vec(1usize..64, 0..6);
    let shape = prop_oneof![Just(0u8), Just(1), Just(2), Just(3)];
    (payload, sizes, shape).prop_map(move |(payload, sizes, shape)| {
        let mut out: Vec<u8> = match replies {
            true => b"HTTP/1.1 200 OK\r\nServer: x\r\n".to_vec(),
            false => b"POST /a?b=c HTTP/1.1\r\nHost: x\r\n".to_vec(),
        };
        match shape {
            0 => {
                out.extend_from_slice(b"Content-Length: 0\r\n\r\n");
                (out, vec![])
            }
            1 => {
                out.extend_from_slice(
                    format!("content-length: {}\r\n\r\n", payload.len()).as_bytes(),
                );
                out.extend_from_slice(&payload);
                (out, payload)
            }
            _ => {
                out.extend_from_slice(b"Transfer-Encoding: gzip, Chunked\r\n\r\n");
                out.extend_from_slice(&chunked(&payload, &sizes, shape == 3));
                (out, payload)
            }
        }
    })
}

proptest! {
    #[test]
    fn boundaries_do_not_depend_on_the_pieces(
        replies in any::<bool>(),
        requests in proptest::collection::vec(message(false), 1..5),
        answers in proptest::collection::vec(message(true), 1..5),
        cuts in proptest::collection::vec(any::<usize>(), 0..40),
    ) {
        let messages = if replies { answers } else { requests };
        let stream: Vec<u8> = messages.iter().flat_map(|(m, _)| m.clone()).collect();
        let mut start = 0;
        let mut expected = vec![];
        for (bytes, payload) in &messages {
            expected.push((start, payload.clone()));
            start += bytes.len();
        }
        let each: Vec<usize> = (0..stream.len()).collect();
        for look in [Look::Framing, Look::Whole] {
            prop_assert_eq!(&walk(&stream, &cuts, replies, look).unwrap(), &expected);
            prop_assert_eq!(&walk(&stream, &each, replies, look).unwrap(), &expected);
        }
    }

    #[test]
    fn any_bytes_are_judged_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for kind in [RequestKind::Head, RequestKind::Connect, RequestKind::Other] {
            for look in [Look::Framing, Look::Whole] {
                let _ = HeadSearch::default().reply(&bytes, kind, look);
                let _ = HeadSearch::default().request(&bytes, look);
            }
        }
        for framing in [Framing::Chunked, Framing::Length(7), Framing::UntilClose] {
            let _ = Body::new(framing).advance(&bytes, |range| assert!(range.end <= bytes.len()));
        }
    }
}

/// Lines that heads are made of, sound ones and others.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let field = prop_oneof![
        Just("Host: a"),
        Just("content-length: 12"),
        Just("Content-Length: 12, 12"),
        Just("Content-Length:"),
        Just("Content-Length: 13"),
        Just("Content-Length : 12"),
        Just("transfer-encoding: gzip, chunked"),
        Just("Transfer-Encoding: gzip"),
        Just("Connection: keep-alive, Upgrade"),
        Just("Connection: close"),
        Just("Upgrade: websocket"),
        Just("Expect: 100-continue"),
        Just(" folded"),
        Just("\tfolded: 1"),
        Just("no colon"),
        Just(": no name"),
        Just("X:"),
        Just(""),
        Just("Content-\rLength: 12"),
    ];
    let end = prop_oneof![8 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r")];
    prop_oneof![
        9 => (field, end).prop_map(|(field, end)| [field, end].concat().into_bytes()),
        1 => proptest::collection::vec(any::<u8>(), 0..20),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn a_glance_finds_what_a_close_look_finds(
        first in proptest::sample::select(vec![
            "GET / HTTP/1.1", "HEAD /a?b HTTP/1.1", "CONNECT a:1 HTTP/1.0", "POST /x HTTP/1.0", "GET  / HTTP/1.1", "GET / x HTTP/1.1",
            "G\0T / HTTP/1.1", "", "GET / HTTP/2.0", "GET /",
            "HTTP/1.1 200 OK", "HTTP/1.0 304 Not Modified", "HTTP/1.1 101", "HTTP/1.1 20", "HTTP/1.1  200 OK", "HTTP/1.1 2000",
        ]),
        end in prop_oneof![9 => Just("\r\n"), 1 => Just("\n")],
        lines in proptest::collection::vec(line(), 0..6),
        complete in any::<bool>(),
    ) {
        let mut head = [first, end].concat().into_bytes();
        head.extend(lines.concat());
        if complete {
            head.extend_from_slice(b"\r\n");
        }
        // What is no HTTP at a close look may pass at a glance; what is, is the same.
        let find = |look| HeadSearch::default().request(&head, look);
        if let Ok(found) = find(Look::Whole) {
            prop_assert_eq!(find(Look::Framing), Ok(found));
        }
        for kind in [RequestKind::Head, RequestKind::Connect, RequestKind::Other] {
            let find = |look| HeadSearch::default().reply(&head, kind, look);
            if let Ok(found) = find(Look::Whole) {
                prop_assert_eq!(find(Look::Framing), Ok(found));
            }
        }
    }
}

/// Sends `stream` in pieces that end at `cuts`, while the other end must receive exactly these bytes.
async fn passes(from: &mut TcpStream, to: &mut TcpStream, stream: &[u8], cuts: &[usize]) {
    let mut ends: Vec<usize> = cuts.iter().map(|c| c % (stream.len() + 1)).collect();
    ends.push(stream.len());
    ends.sort_unstable();
    let sending = async {
        let mut at = 0;
        for end in ends {
            from.write_all(&stream[at..end]).await.unwrap();
            at = end;
            tokio::task::yield_now().await;
        }
    };
    let receiving = async {
        let mut got = vec![0; stream.len()];
        to.read_exact(&mut got).await.unwrap();
        assert!(got == stream);
    };
    tokio::time::timeout(Duration::from_secs(30), async {
        tokio::join!(sending, receiving)
    })
    .await
    .expect("the stream must pass");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn streams_pass_the_proxy_unchanged(
        requests in proptest::collection::vec(message(false), 1..6),
        extra in 0usize..3,
        up in proptest::collection::vec(any::<usize>(), 0..12),
        down in proptest::collection::vec(any::<usize>(), 0..12),
        armed in any::<bool>(),
        answers in proptest::collection::vec(message(true), 6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let proxy = Harness::start(faultbox_http::protocol(), listener.local_addr().unwrap());
            if armed {
                // Neither selects anything, but both make the proxy look, one of them at bodies.
                proxy.arm("error", &[("path", Arg::Str("/never".into()))]);
                proxy.arm("drop", &[("body", Arg::Str("never".into()))]);
            }
            let mut client = TcpStream::connect(proxy.addr).await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            let stream: Vec<u8> = requests.iter().flat_map(|(m, _)| m.clone()).collect();
            passes(&mut client, &mut server, &stream, &up).await;
            let mut stream = vec![];
            for (message, _) in answers.iter().take(requests.len()) {
                for _ in 0..extra {
                    stream.extend_from_slice(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
                }
                stream.extend_from_slice(message);
            }
            passes(&mut server, &mut client, &stream, &down).await;
            assert_eq!(proxy.degradations(), [""; 0]);
            assert_eq!(proxy.fired(), 0);
            assert_eq!(proxy.meter.count() as usize, requests.len());
        });
    }
}

fn request(text: &str) -> Result<Option<(usize, Framing)>, Malformed> {
    Ok(HeadSearch::default()
        .request(text.as_bytes(), Look::Whole)?
        .map(|i| (i.len, i.framing)))
}

#[test]
fn requests_that_cannot_be_framed_are_malformed() {
    let head = |fields: &str| request(&format!("POST / HTTP/1.1\r\n{fields}\r\n"));
    for fields in [
        "Content-Length: 1\r\nContent-Length: 2\r\n",
        "Content-Length: +1\r\n",
        "Content-Length: 1, 2\r\n",
        "Content-Length: 99999999999999999999999\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Content-Length:\r\n",
        // Servers disagree about which of the two counts (RFC 9112, 6.1).
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "X: a\r\n Transfer-Encoding: chunked\r\n",
    ] {
        assert!(head(fields).is_err(), "{fields}");
    }
    assert_eq!(
        head("Content-Length: 5, 5\r\n").unwrap().unwrap().1,
        Framing::Length(5)
    );
    assert!(request("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
}

#[test]
fn what_contradicts_itself_is_malformed_at_a_glance_too() {
    for fields in [
        "Content-Length: 1\r\nContent-Length: 2\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "X: a\r\n Transfer-Encoding: chunked\r\n",
    ] {
        let head = format!("POST / HTTP/1.1\r\n{fields}\r\n");
        let found = HeadSearch::default().request(head.as_bytes(), Look::Framing);
        assert!(found.is_err(), "{fields}");
    }
}

#[test]
fn what_is_not_http_is_recognised_by_its_first_bytes() {
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
    ] {
        assert!(
            HeadSearch::default().request(bytes, Look::Framing).is_err(),
            "{bytes:?}"
        );
    }
    let mut endless = b"GET / HTTP/1.1\r\nX: ".to_vec();
    endless.resize(300 << 10, b'a');
    assert_eq!(
        HeadSearch::default().request(&endless, Look::Framing),
        Err(Malformed("a head of more than 256 KiB"))
    );
}

#[test]
fn bodies_follow_the_status_and_the_method() {
    let framing = |text: &str, kind| {
        HeadSearch::default()
            .reply(text.as_bytes(), kind, Look::Whole)
            .unwrap()
            .unwrap()
            .framing
    };
    let none = Framing::Length(0);
    for (text, kind, expected) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
            RequestKind::Head,
            none,
        ),
        (
            "HTTP/1.1 204 No\r\nContent-Length: 9\r\n\r\n",
            RequestKind::Other,
            none,
        ),
        (
            "HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n",
            RequestKind::Other,
            none,
        ),
        ("HTTP/1.1 100 Continue\r\n\r\n", RequestKind::Other, none),
        ("HTTP/1.1 200 OK\r\n\r\n", RequestKind::Connect, none),
        (
            "HTTP/1.1 200 OK\r\n\r\n",
            RequestKind::Other,
            Framing::UntilClose,
        ),
        (
            "HTTP/1.0 200 OK\r\n\r\n",
            RequestKind::Other,
            Framing::UntilClose,
        ),
        (
            "HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\n",
            RequestKind::Connect,
            Framing::Length(9),
        ),
    ] {
        assert_eq!(framing(text, kind), expected, "{text}");
    }
}

#[test]
fn broken_chunks_are_malformed() {
    for bytes in [
        &b"\r\n"[..],
        b"x\r\n",
        b"1x\r\naa\r\n",
        b"10000000000000000\r\n",
        b"1\r\nab\r\n",
        b"1\n",
        b"1;ext\n",
        b"1\r;ext\r\n",
        b"1\r\na\n",
        b"0\r\n\n",
        b"0\r\nX: y\n",
        b"0\r\nX: y\rz\r\n",
        b"-1\r\n",
        b"0x1\r\n",
    ] {
        assert!(
            Body::new(Framing::Chunked).advance(bytes, |_| {}).is_err(),
            "{bytes:?}"
        );
    }
}

#[test]
fn targets_in_every_form() {
    for (target, path, query) in [
        ("/a/b?c=d?e", "/a/b", "c=d?e"),
        ("/", "/", ""),
        ("http://h:1/a?b", "/a", "b"),
        ("http://h", "/", ""),
        ("http://h?x", "/", "x"),
        ("*", "*", ""),
        ("/r?u=http://x/y", "/r", "u=http://x/y"),
    ] {
        assert_eq!(split_target(target), (path, query), "{target}");
    }
}
