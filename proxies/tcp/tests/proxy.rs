//! The proxy between a scripted client and a scripted server, and the step through it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faultbox_contract::{Arg, Endpoint, Response};
use faultbox_engine::reset;
use faultbox_engine::testing::{Harness, free_addr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(30);

async fn rig() -> (TcpListener, Harness) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Harness::start(faultbox_tcp::protocol(), listener.local_addr().unwrap());
    (listener, proxy)
}

async fn connect(listener: &TcpListener, proxy: &Harness) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(proxy.addr).await.unwrap();
    let (server, _) = timeout(DEADLINE, listener.accept()).await.unwrap().unwrap();
    (client, server)
}

async fn passes(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    from.write_all(bytes).await.unwrap();
    hears(to, bytes).await;
}

async fn hears(from: &mut TcpStream, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    timeout(DEADLINE, from.read_exact(&mut got))
        .await
        .expect("the bytes must come")
        .unwrap();
    assert_eq!(got, bytes);
}

async fn silent(from: &TcpStream) {
    let mut byte = [0];
    let peeked = timeout(Duration::from_millis(150), from.peek(&mut byte)).await;
    assert!(peeked.is_err(), "expected silence, got {peeked:?}");
}

async fn drain(from: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut all = vec![];
    let end = timeout(DEADLINE, from.read_to_end(&mut all))
        .await
        .expect("the stream must end");
    (all, end.err().map(|e| e.kind()))
}

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

#[tokio::test]
async fn server_first_and_half_close_pass() {
    let (listener, proxy) = rig().await;
    let (mut client, mut server) = connect(&listener, &proxy).await;
    passes(&mut server, &mut client, b"220 hello\r\n").await;
    client.write_all(b"bulk").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(drain(&mut server).await, (b"bulk".to_vec(), None));
    server.write_all(b"thanks").await.unwrap();
    drop(server);
    assert_eq!(drain(&mut client).await, (b"thanks".to_vec(), None));
    assert!(proxy.meter.count() > 0);

    let (client, mut server) = connect(&listener, &proxy).await;
    reset(client);
    assert_eq!(drain(&mut server).await.1, Some(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_black_hole_swallows_both_ways_and_heals() {
    let (listener, proxy) = rig().await;
    let (mut client, mut server) = connect(&listener, &proxy).await;
    passes(&mut client, &mut server, b"before").await;
    let rule = proxy.arm("drop", &[]);
    client.write_all(b"lost?").await.unwrap();
    silent(&server).await;
    server.write_all(b"me too").await.unwrap();
    silent(&client).await;
    proxy.rules.lift(rule.id);
    hears(&mut server, b"lost?").await;
    hears(&mut client, b"me too").await;
    assert_eq!(rule.hits(), 1);
}

#[tokio::test]
async fn rules_select_by_prefix_direction_and_connection() {
    let (listener, proxy) = rig().await;
    let rule = proxy.arm(
        "reset",
        &[
            ("prefix", text("AUTH b?b")),
            ("direction", text("down")),
            ("nth", Arg::Int(2)),
        ],
    );
    for (hello, resets) in [
        ("AUTH eve", false),
        ("AUTH bob 1", false),
        ("AUTH bub", true),
    ] {
        let (mut client, mut server) = connect(&listener, &proxy).await;
        for part in hello.as_bytes().chunks(3) {
            passes(&mut client, &mut server, part).await;
        }
        server.write_all(b"ok").await.unwrap();
        if resets {
            assert_eq!(drain(&mut client).await.1, Some(ErrorKind::ConnectionReset));
            assert_eq!(drain(&mut server).await.1, Some(ErrorKind::ConnectionReset));
        } else {
            hears(&mut client, b"ok").await;
            passes(&mut server, &mut client, b"more").await;
        }
    }
    assert_eq!((rule.matched(), rule.hits()), (2, 1));
    let events = proxy.events.of_kind("proxy");
    assert_eq!(events[0].fields["direction"], "down");
}

#[tokio::test]
async fn live_connections_are_truncated_and_corrupted() {
    let (listener, proxy) = rig().await;
    let (mut client, mut server) = connect(&listener, &proxy).await;
    passes(&mut server, &mut client, b"0123").await;
    proxy.arm("corrupt", &[("offset", Arg::Int(5))]);
    server.write_all(b"abcd").await.unwrap();
    hears(&mut client, b"abcd").await;
    server.write_all(b"efgh").await.unwrap();
    hears(&mut client, &[b'e', !b'f', b'g', b'h']).await;
    passes(&mut server, &mut client, b"ijkl").await;
    passes(&mut client, &mut server, b"untouched").await;

    proxy.arm("truncate", &[("bytes", Arg::Int(6))]);
    server.write_all(b"mnop").await.unwrap();
    hears(&mut client, b"mnop").await;
    server.write_all(b"qrst").await.unwrap();
    assert_eq!(drain(&mut client).await, (b"qr".to_vec(), None));
    drop(client);
    drain(&mut server).await;
}

#[tokio::test]
async fn delays_and_throttles_last_until_they_are_lifted() {
    let (listener, proxy) = rig().await;
    let (mut client, mut server) = connect(&listener, &proxy).await;
    let rule = proxy.arm("delay", &[("delay", text("100ms"))]);
    for _ in 0..2 {
        let start = Instant::now();
        passes(&mut client, &mut server, b"ping").await;
        assert!(start.elapsed() >= Duration::from_millis(95));
        passes(&mut server, &mut client, b"pong").await;
    }
    proxy.rules.lift(rule.id);
    let rule = proxy.arm(
        "throttle",
        &[("rate", text("1KB/s")), ("direction", text("up"))],
    );
    let start = Instant::now();
    passes(&mut client, &mut server, &[7; 300]).await;
    assert!(start.elapsed() >= Duration::from_millis(275));
    client.write_all(&[8; 100_000]).await.unwrap();
    silent(&client).await;
    proxy.rules.lift(rule.id);
    hears(&mut server, &[8; 100_000]).await;
    assert_eq!(rule.hits(), 1);
}

async fn step(addr: std::net::SocketAddr, keywords: &[(&str, Arg)]) -> Response {
    let protocol = faultbox_tcp::protocol();
    let keywords = keywords
        .iter()
        .map(|(n, a)| ((*n).to_owned(), a.clone()))
        .collect();
    let call = protocol.doc().check_step("send", vec![], keywords).unwrap();
    let endpoint = Endpoint {
        kept: None,
        addr,
        host: "127.0.0.1".into(),
        env: Arc::new(BTreeMap::new()),
        attempt: DEADLINE,
        addresses: Arc::default(),
        tls: None,
    };
    timeout(DEADLINE, protocol.step(endpoint, call))
        .await
        .expect("a step ends")
        .unwrap()
}

#[tokio::test]
async fn steps_send_and_expect() {
    let (listener, proxy) = rig().await;
    let addr = proxy.addr;
    let serving = tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut bytes = [0; 64];
                let n = socket.read(&mut bytes).await.unwrap();
                if bytes[..n].starts_with(b"quit") {
                    return;
                }
                socket.write_all(b"you said ").await.unwrap();
                socket.write_all(&bytes[..n]).await.unwrap();
                let _ = socket.read(&mut bytes).await;
            });
        }
    });
    let line = step(addr, &[("data", text("PING"))]).await;
    assert_eq!((line.ok, line.body.as_str()), (true, "you said PING"));
    let bytes = step(
        addr,
        &[
            ("data", Arg::Bytes(b"abc".to_vec())),
            ("expect", Arg::Int(8)),
        ],
    )
    .await;
    assert_eq!(bytes.body, "you said");
    let all = step(addr, &[("data", text("abc")), ("expect", text("eof"))]).await;
    assert_eq!((all.ok, all.body.as_str()), (true, "you said abc"));
    let closed = step(addr, &[("data", text("quit"))]).await;
    assert_eq!((closed.ok, closed.code.as_str()), (false, "EOF"));
    // Long enough for what does come.
    let never = step(
        addr,
        &[
            ("data", text("a")),
            ("expect", Arg::Int(99)),
            ("timeout", text("5s")),
        ],
    )
    .await;
    assert_eq!((never.ok, never.code.as_str()), (false, "ETIMEDOUT"));
    assert_eq!(never.body, "you said a");
    proxy.arm("reset", &[]);
    let gone = step(addr, &[("data", text("a"))]).await;
    assert_eq!(gone.code, "ECONNRESET");
    serving.abort();
    let _ = serving.await;
    let refused = step(free_addr(), &[("data", text("a"))]).await;
    assert_eq!(refused.code, "ECONNREFUSED");
}
