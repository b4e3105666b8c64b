//! Frame by frame, with a hand-written client and a hand-written server: what the proxy makes of numbers, tables and broken traffic.

mod support;

use std::time::Duration;

use faultbox_contract::Arg;
use faultbox_engine::testing::Harness;
use support::raw::{Frame, Raw, frame, literal};
use support::{int, text};
use tokio::net::TcpListener;

/// A client and a server that have greeted each other through the proxy.
struct Pair {
    proxy: Harness,
    client: Raw,
    server: Raw,
}

async fn unsettled() -> Pair {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Harness::start(faultbox_http2::http2(), listener.local_addr().unwrap());
    let client = Raw::connect(proxy.addr, &[]).await;
    let (stream, _) = listener.accept().await.unwrap();
    let mut server = Raw::of(stream);
    server.preface().await;
    Pair {
        proxy,
        client,
        server,
    }
}

async fn pair() -> Pair {
    let mut pair = unsettled().await;
    pair.server.say(&frame(4, 0, 0, &[])).await;
    pair
}

/// A delay that only lifting its rule ends.
const HOLD: (&str, Arg) = ("delay", Arg::Duration(Duration::from_secs(600)));

fn headers(stream: u32, payload: &[u8]) -> Frame {
    Frame {
        kind: 1,
        flags: 5,
        stream,
        payload: payload.to_vec(),
    }
}

#[tokio::test]
async fn nothing_is_said_before_the_servers_settings() {
    let mut pair = unsettled().await;
    pair.proxy.arm("drop", &[]);
    pair.client.get(1, "/", &[]).await;
    while pair.proxy.fired() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    pair.server.say(&frame(4, 0, 0, &[])).await;
    assert_eq!(pair.client.any().await.kind, 4, "SETTINGS come first");
    let rst = pair.client.next().await;
    assert_eq!(
        (rst.kind, rst.stream, &rst.payload[..]),
        (3, 1, &[0, 0, 0, 2][..])
    );
}

#[tokio::test]
async fn blocks_are_written_anew_once_one_is_kept_back() {
    let mut pair = pair().await;
    // What goes into the client's table, verbatim.
    let mut first = vec![0x82, 0x86, 0x84, 0x40, 1, b'k'];
    first.extend([1, b'v']);
    pair.client.say(&frame(1, 5, 1, &first)).await;
    assert_eq!(pair.server.next().await, headers(1, &first));
    let rule = pair.proxy.arm(
        "drop",
        &[("header", Arg::Json(serde_json::json!({"k": "w"})))],
    );
    pair.client
        .say(&frame(1, 5, 3, &[0x82, 0x86, 0x84, 0x7e, 1, b'w']))
        .await;
    assert_eq!(pair.client.next().await.kind, 3);
    // k: w and k: v, from a table whose newest entry the server has never seen.
    pair.client
        .say(&frame(1, 5, 5, &[0x82, 0x86, 0x84, 0xbe]))
        .await;
    assert_eq!(pair.client.next().await.kind, 3);
    pair.proxy.rules.lift(rule.id);
    pair.client
        .say(&frame(1, 5, 7, &[0x82, 0x86, 0x84, 0xbe, 0xbf]))
        .await;
    let mut expected = vec![0x20, 0x82, 0x86, 0x84];
    expected.extend(literal("k", "w"));
    expected.extend(literal("k", "v"));
    assert_eq!(pair.server.next().await, headers(7, &expected));
    // The next one needs not say again that the table is gone.
    pair.client
        .say(&frame(1, 5, 9, &[0x82, 0x86, 0x84, 0xbf]))
        .await;
    let mut expected = vec![0x82, 0x86, 0x84];
    expected.extend(literal("k", "v"));
    assert_eq!(pair.server.next().await, headers(9, &expected));
}

#[tokio::test]
async fn a_sensitive_field_stays_one() {
    let mut pair = pair().await;
    let rule = pair.proxy.arm("drop", &[]);
    pair.client.get(1, "/", &[]).await;
    assert_eq!(pair.client.next().await.kind, 3);
    pair.proxy.rules.lift(rule.id);
    let block = [&[0x82, 0x86, 0x84, 0x10, 1][..], b"k", &[1], b"v"].concat();
    pair.client.say(&frame(1, 5, 3, &block)).await;
    let expected = [&[0x20][..], &block].concat();
    assert_eq!(pair.server.next().await, headers(3, &expected));
}

#[tokio::test]
async fn overtaken_streams_get_new_numbers_both_ways() {
    let mut pair = pair().await;
    let rule = pair.proxy.arm("delay", &[("path", text("/slow")), HOLD]);
    pair.client.get(1, "/slow", &[]).await;
    pair.client.get(3, "/fast", &[]).await;
    let fast = pair.server.next().await;
    assert_eq!((fast.kind, fast.stream), (1, 3));
    pair.proxy.rules.lift(rule.id);
    let slow = pair.server.next().await;
    assert_eq!((slow.kind, slow.stream), (1, 5));
    // Five is taken at the server.
    pair.client.get(5, "/fast", &[]).await;
    assert_eq!(pair.server.next().await.stream, 7);
    // Each direction, each frame type.
    pair.client.window_update(5, 10).await;
    let update = pair.server.next().await;
    assert_eq!((update.kind, update.stream), (8, 7));
    pair.client.say(&frame(2, 0, 5, &[0, 0, 0, 3, 9])).await;
    let priority = pair.server.next().await;
    assert_eq!(
        (priority.kind, priority.stream, &priority.payload[..]),
        (2, 7, &[0, 0, 0, 3, 9][..])
    );
    pair.client.say(&frame(2, 0, 3, &[0x80, 0, 0, 1, 9])).await;
    let priority = pair.server.next().await;
    assert_eq!(
        (priority.stream, &priority.payload[..]),
        (3, &[0x80, 0, 0, 5, 9][..])
    );
    // Of a stream that is idle, whose number is not known yet: not passed on. PING shows that nothing came.
    pair.client.say(&frame(2, 0, 9, &[0, 0, 0, 0, 9])).await;
    pair.client.say(&frame(6, 0, 0, b"12345678")).await;
    assert_eq!(pair.server.next().await.kind, 6);
    pair.server.say(&frame(1, 4, 5, &[0x88])).await;
    pair.server.say(&frame(0, 1, 5, b"slow")).await;
    pair.server.say(&frame(1, 5, 3, &[0x89])).await;
    pair.server.say(&frame(3, 0, 7, &[0, 0, 0, 11])).await;
    let got: Vec<(u8, u32)> = {
        let mut got = vec![];
        for _ in 0..4 {
            let frame = pair.client.next().await;
            got.push((frame.kind, frame.stream));
        }
        got
    };
    assert_eq!(got, [(1, 1), (0, 1), (1, 3), (3, 5)]);
}

#[tokio::test]
async fn goaway_names_streams_as_the_client_knows_them() {
    let mut pair = pair().await;
    let rule = pair.proxy.arm("delay", &[("path", text("/slow")), HOLD]);
    pair.proxy.arm("delay", &[("path", text("/held")), HOLD]);
    pair.client.get(1, "/slow", &[]).await;
    pair.client.get(3, "/fast", &[]).await;
    pair.client.get(5, "/held", &[]).await;
    // 3 as 3, 1 as 5; 5 is not there yet.
    assert_eq!(pair.server.next().await.stream, 3);
    pair.proxy.rules.lift(rule.id);
    assert_eq!(pair.server.next().await.stream, 5);
    // The server has looked at 3, which is the client's own 3; not at 5, which is the client's 1.
    pair.server
        .say(&frame(7, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 0, b'!']))
        .await;
    let mut refused = vec![];
    loop {
        let frame = pair.client.next().await;
        match frame.kind {
            3 => {
                assert_eq!(frame.payload, [0, 0, 0, 7]);
                refused.push(frame.stream);
            }
            7 => {
                assert_eq!(frame.payload, [0, 0, 0, 3, 0, 0, 0, 0, b'!']);
                break;
            }
            kind => panic!("a frame of type {kind}"),
        }
    }
    refused.extend(pair.client.refused_before_ping(&mut pair.server).await);
    refused.sort_unstable();
    assert_eq!(refused, [1, 5]);
}

#[tokio::test]
async fn broken_traffic_ends_a_connection_that_cannot_go_raw() {
    let mut pair = pair().await;
    let rule = pair.proxy.arm("drop", &[]);
    pair.client.get(1, "/", &[]).await;
    assert_eq!(pair.client.next().await.kind, 3);
    pair.proxy.rules.lift(rule.id);
    // A CONTINUATION that continues nothing.
    pair.client.say(&frame(9, 4, 3, &[0x82])).await;
    for side in [&mut pair.client, &mut pair.server] {
        let goaway = side.next().await;
        assert_eq!(goaway.kind, 7);
        let why = String::from_utf8_lossy(&goaway.payload[8..]).into_owned();
        assert!(
            why.contains("faultbox: a CONTINUATION continues nothing"),
            "{why}"
        );
    }
    assert_eq!(
        pair.proxy.degradations().len(),
        1,
        "{:?}",
        pair.proxy.degradations()
    );
}

#[tokio::test]
async fn broken_traffic_goes_raw_with_one_event() {
    let oversized = frame(0, 0, 1, &[7; 20_000]);
    let cases: [&[u8]; 4] = [
        &oversized,
        &frame(9, 4, 1, &[0x82]),
        &frame(1, 5, 1, &[0xff, 0xff, 0xff, 0xff, 0x7f]),
        &frame(8, 0, 0, &[1]),
    ];
    for broken in cases {
        let mut pair = pair().await;
        pair.proxy.arm("error", &[("path", text("/never"))]);
        pair.client.say(broken).await;
        pair.client.say(b"and whatever follows").await;
        // The client's SETTINGS, and its acknowledgement.
        pair.server.bytes(18).await;
        assert_eq!(
            pair.server.bytes(broken.len() + 20).await,
            [broken, b"and whatever follows"].concat()
        );
        pair.server.say(b"not HTTP/2 either").await;
        let events = pair.proxy.degradations();
        assert_eq!(events.len(), 1, "{events:?}");
    }
}

#[tokio::test]
async fn data_that_a_rule_keeps_back_is_credited_to_its_sender() {
    let mut pair = pair().await;
    pair.proxy.arm("drop", &[("path", text("/up"))]);
    pair.proxy
        .arm("drop", &[("path", text("/down")), ("messages", int(1))]);
    let post = |path: &str| {
        let mut block = vec![0x83, 0x86];
        block.extend(literal(":path", path));
        block
    };
    pair.client.say(&frame(1, 4, 1, &post("/up"))).await;
    pair.client.say(&frame(0, 0, 1, &[1; 5000])).await;
    pair.client
        .say(&frame(0, 9, 1, &[&[9][..], &[2; 90], &[0; 9]].concat()))
        .await;
    assert_eq!(pair.client.next().await.kind, 3);
    let mut credited = 0;
    while credited < 5100 {
        let update = pair.client.next().await;
        assert_eq!((update.kind, update.stream), (8, 0));
        credited += u32::from_be_bytes(update.payload.try_into().unwrap());
    }
    assert_eq!(credited, 5100);

    pair.client.say(&frame(1, 5, 3, &post("/down"))).await;
    assert_eq!(pair.server.next().await.stream, 3);
    pair.server.say(&frame(1, 4, 3, &[0x88])).await;
    pair.server.say(&frame(0, 0, 3, b"passes")).await;
    pair.server.say(&frame(0, 0, 3, &[3; 700])).await;
    pair.server.say(&frame(0, 1, 3, &[3; 300])).await;
    let kinds = [
        pair.client.next().await.kind,
        pair.client.next().await.kind,
        pair.client.next().await.kind,
    ];
    assert_eq!(kinds, [1, 0, 3]);
    let mut credited = 0;
    let mut cancelled = false;
    while credited < 1000 {
        let heard = pair.server.next().await;
        match (heard.kind, heard.stream) {
            (8, 0) => credited += u32::from_be_bytes(heard.payload.try_into().unwrap()),
            (3, 3) => cancelled = heard.payload == [0, 0, 0, 8],
            other => panic!("{other:?}"),
        }
    }
    assert!(cancelled && credited == 1000);
}

/// What a rule has sent leaves less of the client's window than the server knows of, and its DATA must be split; padding cannot be, and goes.
#[tokio::test]
async fn padded_data_is_split_where_the_window_ends() {
    const CONTENT: usize = 16_000;
    const PAD: u8 = 200;
    for special in [false, true] {
        let mut pair = pair().await;
        let body = text(&"o".repeat(30_000));
        pair.proxy
            .arm("response", &[("path", text("/ours")), ("body", body)]);
        if special {
            let rate = ("rate", text("500MB/s"));
            pair.proxy
                .arm("throttle", &[("path", text("/theirs")), rate]);
        }
        pair.client.get(1, "/ours", &[]).await;
        assert_eq!(pair.client.data_of(1).await, 30_000);
        pair.client.get(3, "/theirs", &[]).await;
        while pair.server.any().await.kind != 1 {}

        let content: Vec<u8> = (0..3 * CONTENT).map(|i| (i % 251) as u8).collect();
        pair.server.say(&frame(1, 4, 3, &[0x88])).await;
        for part in content.chunks(CONTENT) {
            let mut payload = vec![PAD];
            payload.extend(part);
            payload.extend([0; PAD as usize]);
            pair.server.say(&frame(0, 8, 3, &payload)).await;
        }
        pair.server.say(&frame(0, 1, 3, &[])).await;

        // A client that credits nothing before its window is used up.
        let mut heard: Vec<u8> = vec![];
        let (mut window, mut credited) = (65_535 - 30_000, false);
        loop {
            let Frame {
                kind,
                flags,
                payload,
                ..
            } = pair.client.next().await;
            if kind != 0 {
                continue;
            }
            assert!(payload.len() <= window, "the window is overdrawn");
            window -= payload.len();
            let pad = match flags & 8 {
                0 => 0,
                _ => usize::from(payload[0]) + 1,
            };
            heard.extend(&payload[pad.min(1)..payload.len() - pad.saturating_sub(1)]);
            if window == 0 {
                pair.client.window_update(0, 65_535).await;
                (window, credited) = (65_535, true);
            }
            if flags & 1 != 0 {
                break;
            }
        }
        assert!(
            heard == content,
            "{} bytes of {}",
            heard.len(),
            content.len()
        );
        // The server has back what it may send, padding that the client has not seen included, on the stream, too.
        let mut back = [0usize; 2];
        pair.server.say(&frame(6, 0, 0, b"a ping!!")).await;
        assert_eq!(pair.client.next().await.kind, 6);
        pair.client.say(&frame(6, 1, 0, b"a ping!!")).await;
        loop {
            let frame = pair.server.any().await;
            match frame.kind {
                6 => break,
                8 => {
                    let more = u32::from_be_bytes(frame.payload[..4].try_into().unwrap());
                    back[usize::from(frame.stream != 0)] += more as usize;
                }
                _ => {}
            }
        }
        let pad = usize::from(PAD) + 1;
        let stripped = if special { 3 * pad } else { pad };
        let connection = if credited { 65_535 - 30_000 } else { 0 };
        assert_eq!(back, [connection + stripped, stripped], "{special}");
        assert_eq!(pair.proxy.degradations(), [""; 0]);
    }
}
