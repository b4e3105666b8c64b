//! The proxy between a scripted client and a scripted server: which bytes each side sees.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use faultbox_contract::Arg;
use faultbox_engine::reset;
use faultbox_engine::testing::{Harness, alone, peak_memory};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(30);
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

struct Rig {
    listener: TcpListener,
    proxy: Harness,
}

/// Both ends of one connection.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Rig {
    async fn new() -> Rig {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Harness::start(faultbox_http::protocol(), listener.local_addr().unwrap());
        Rig { listener, proxy }
    }

    async fn connect(&self) -> Pair {
        let client = TcpStream::connect(self.proxy.addr).await.unwrap();
        let server = self.accept().await;
        Pair { client, server }
    }

    async fn accept(&self) -> TcpStream {
        timeout(DEADLINE, self.listener.accept())
            .await
            .expect("the proxy must dial")
            .unwrap()
            .0
    }
}

async fn say(to: &mut TcpStream, bytes: impl AsRef<[u8]>) {
    to.write_all(bytes.as_ref()).await.unwrap();
}

/// Exactly these bytes come next.
async fn hears(from: &mut TcpStream, bytes: impl AsRef<[u8]>) {
    let mut got = vec![0; bytes.as_ref().len()];
    timeout(DEADLINE, from.read_exact(&mut got))
        .await
        .unwrap_or_else(|_| panic!("expected {:?}", String::from_utf8_lossy(bytes.as_ref())))
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&got),
        String::from_utf8_lossy(bytes.as_ref())
    );
}

/// Reads to the end; the error with which it ended, if it did.
async fn drain(from: &mut TcpStream) -> (String, Option<ErrorKind>) {
    let mut all = vec![];
    let end = timeout(DEADLINE, from.read_to_end(&mut all))
        .await
        .expect("the stream must end");
    (
        String::from_utf8_lossy(&all).into_owned(),
        end.err().map(|e| e.kind()),
    )
}

/// Nothing comes for a little while.
async fn silent(from: &TcpStream) {
    let mut byte = [0];
    let peeked = timeout(Duration::from_millis(150), from.peek(&mut byte)).await;
    assert!(peeked.is_err(), "expected silence, got {peeked:?}");
}

/// A reply's head and body, by its Content-Length.
async fn reply(from: &mut TcpStream) -> (String, String) {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(DEADLINE, from.read_u8()).await.expect("a reply");
        head.push(
            byte.unwrap_or_else(|e| panic!("{e} after {:?}", String::from_utf8_lossy(&head))),
        );
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .find_map(|l| l.strip_prefix("Content-Length: "))
        .map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    timeout(DEADLINE, from.read_exact(&mut body))
        .await
        .expect("a body")
        .unwrap();
    (head, String::from_utf8(body).unwrap())
}

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: svc:80\r\n\r\n")
}

fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: svc:80\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn keep_alive_and_pipelining_pass_and_are_measured() {
    let rig = Rig::new().await;
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    for path in ["/a", "/b"] {
        say(&mut client, get(path)).await;
        hears(&mut server, get(path)).await;
        say(&mut server, OK).await;
        hears(&mut client, OK).await;
    }
    let three = [get("/1"), post("/2", "body"), get("/3")].concat();
    say(&mut client, &three).await;
    hears(&mut server, &three).await;
    say(&mut server, [OK, OK, OK].concat()).await;
    hears(&mut client, [OK, OK, OK].concat()).await;
    assert_eq!(rig.proxy.meter.count(), 5);
    assert_eq!(rig.proxy.events.all().len(), 0);
}

#[tokio::test]
async fn a_rule_armed_on_a_kept_alive_connection_sees_the_next_request() {
    let rig = Rig::new().await;
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    say(&mut client, post("/orders", "1")).await;
    hears(&mut server, post("/orders", "1")).await;
    say(&mut server, OK).await;
    hears(&mut client, OK).await;

    let rule = rig.proxy.arm(
        "error",
        &[("method", text("post")), ("path", text("/orders*"))],
    );
    say(&mut client, post("/orders/7", "2")).await;
    let (head, body) = reply(&mut client).await;
    assert!(
        head.starts_with("HTTP/1.1 500 Internal Server Error\r\n"),
        "{head}"
    );
    assert!(
        head.contains("Content-Type: application/json\r\n"),
        "{head}"
    );
    assert!(!head.contains("Connection:"), "{head}");
    assert_eq!(body, r#"{"error":"Internal Server Error"}"#);
    silent(&server).await;

    // Other requests, and the connection, are unharmed.
    say(&mut client, get("/orders")).await;
    hears(&mut server, get("/orders")).await;
    say(&mut server, OK).await;
    hears(&mut client, OK).await;

    rig.proxy.rules.lift(rule.id);
    say(&mut client, post("/orders", "3")).await;
    hears(&mut server, post("/orders", "3")).await;
    assert_eq!(rule.hits(), 1);
    let events = rig.proxy.events.of_kind("proxy");
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].fields["path"], "/orders/7");
    assert_eq!(events[0].fields["method"], "POST");
}

#[tokio::test]
async fn injected_answers_keep_the_order_of_pipelined_requests() {
    let rig = Rig::new().await;
    rig.proxy.arm(
        "response",
        &[
            ("path", text("/x")),
            ("status", Arg::Int(429)),
            ("body", text("slow down")),
        ],
    );
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    say(
        &mut client,
        [get("/1"), post("/x", "secret"), get("/2")].concat(),
    )
    .await;
    hears(&mut server, [get("/1"), get("/2")].concat()).await;
    silent(&client).await;
    say(&mut server, OK).await;
    hears(&mut client, OK).await;
    let (head, body) = reply(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 429 Too Many Requests\r\n"));
    assert_eq!(body, "slow down");
    say(&mut server, OK).await;
    hears(&mut client, OK).await;
}

#[tokio::test]
async fn every_matcher_selects() {
    let rig = Rig::new().await;
    let dict = |v: serde_json::Value| Arg::Json(v);
    let matching = "PUT /caf%C3%A9/1?name=a+b%21&x=1 HTTP/1.1\r\nHost: Api.Local:81\r\nX-Tenant: acme-7\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"sku\r\n3\r\n\":1\r\n0\r\n\r\n";
    for (name, yes, no) in [
        ("method", text("P?T"), text("GET")),
        ("path", text("/café/*"), text("/tea/*")),
        ("path", text("/caf%C3%A9/1"), text("/caf%C3%A9")),
        ("host", text("api.local"), text("*.example")),
        ("host", text("api.local:81"), text("api.local:80")),
        (
            "query",
            dict(json!({"name": "a b!", "x": "?"})),
            dict(json!({"name": "a b!", "y": "*"})),
        ),
        ("query", text("name=*&x=1"), text("x=1")),
        (
            "header",
            dict(json!({"x-tenant": "acme-*"})),
            dict(json!({"x-tenant": "other"})),
        ),
        ("request_body", text("\\{\"sku\":*"), text("sku*")),
    ] {
        for (pattern, fires) in [(yes, true), (no, false)] {
            let rule = rig.proxy.arm("error", &[(name, pattern.clone())]);
            let Pair {
                mut client,
                mut server,
            } = rig.connect().await;
            say(&mut client, matching).await;
            if fires {
                let (head, _) = reply(&mut client).await;
                assert!(head.starts_with("HTTP/1.1 500"), "{name} {pattern:?}");
                silent(&server).await;
            } else {
                hears(&mut server, matching).await;
            }
            assert_eq!(rule.hits(), u64::from(fires), "{name} {pattern:?}");
            rig.proxy.rules.lift(rule.id);
        }
    }
}

#[tokio::test]
async fn a_body_matcher_holds_64_kib_and_streams_the_rest() {
    let rig = Rig::new().await;
    rig.proxy.arm("drop", &[("body", text("*needle*"))]);
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    let body = [&"a".repeat(1 << 20), "needle"].concat();
    let request = post("/big", &body);
    let expected = request.clone();
    let sending = tokio::spawn(async move {
        say(&mut client, request).await;
        client
    });
    hears(&mut server, expected).await;
    let mut client = sending.await.unwrap();
    say(&mut server, OK).await;
    hears(&mut client, OK).await;

    say(&mut client, post("/small", "a needle")).await;
    assert_eq!(drain(&mut client).await, (String::new(), None));
    assert_eq!(drain(&mut server).await, (String::new(), None));
}

#[tokio::test]
async fn expect_continue_with_an_injected_answer_does_not_hang() {
    let rig = Rig::new().await;
    let rule = rig.proxy.arm(
        "error",
        &[("status", Arg::Int(503)), ("message", text("later"))],
    );
    let head = "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    say(&mut client, head).await;
    let (got, body) = reply(&mut client).await;
    assert!(got.starts_with("HTTP/1.1 503"));
    assert!(got.contains("Connection: close\r\n"), "{got}");
    assert_eq!(body, r#"{"error":"later"}"#);
    assert_eq!(drain(&mut client).await, (String::new(), None));
    assert_eq!(drain(&mut server).await, (String::new(), None));
    rig.proxy.rules.lift(rule.id);

    // With a rule that must see the body, the proxy says "100 Continue", once.
    let rule = rig.proxy.arm("error", &[("request_body", text("bad"))]);
    for (sent, fires) in [("abc", false), ("bad", true)] {
        let Pair {
            mut client,
            mut server,
        } = rig.connect().await;
        say(&mut client, head).await;
        hears(&mut client, "HTTP/1.1 100 Continue\r\n\r\n").await;
        say(&mut client, sent).await;
        if fires {
            assert!(reply(&mut client).await.0.starts_with("HTTP/1.1 500"));
            silent(&server).await;
        } else {
            hears(&mut server, [head, sent].concat()).await;
            say(&mut server, "HTTP/1.1 100 Continue\r\n\r\n").await;
            say(&mut server, OK).await;
            hears(&mut client, OK).await;
        }
    }
    rig.proxy.rules.lift(rule.id);

    // Without rules, the server's own word passes.
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    say(&mut client, head).await;
    hears(&mut server, head).await;
    say(&mut server, "HTTP/1.1 100 Continue\r\n\r\n").await;
    hears(&mut client, "HTTP/1.1 100 Continue\r\n\r\n").await;
    say(&mut client, "abc").await;
    hears(&mut server, "abc").await;
    say(&mut server, OK).await;
    hears(&mut client, OK).await;
}

#[tokio::test]
async fn responses_replace_the_servers_answer_afterwards() {
    let rig = Rig::new().await;
    rig.proxy.arm(
        "response",
        &[
            ("path", text("/pay")),
            ("status", Arg::Int(502)),
            ("json", Arg::Json(json!({"lost": true}))),
            ("headers", Arg::Json(json!({"X-Fault": "1"}))),
            ("when", text("after")),
        ],
    );
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    say(&mut client, [post("/pay", "5"), get("/next")].concat()).await;
    hears(&mut server, [post("/pay", "5"), get("/next")].concat()).await;
    silent(&client).await;
    say(
        &mut server,
        "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    )
    .await;
    let (head, body) = reply(&mut client).await;
    assert!(
        head.starts_with("HTTP/1.1 502 Bad Gateway\r\nX-Fault: 1\r\n"),
        "{head}"
    );
    assert_eq!(body, r#"{"lost":true}"#);
    say(&mut server, OK).await;
    hears(&mut client, OK).await;
}

#[tokio::test]
async fn head_requests_get_heads() {
    let rig = Rig::new().await;
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    let head = "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n";
    let long = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
    say(&mut client, head).await;
    hears(&mut server, head).await;
    say(&mut server, [long.as_bytes(), OK].concat()).await;
    hears(&mut client, long).await;
    // What follows the head is not this reply's body.
    hears(&mut client, OK).await;

    rig.proxy.arm("response", &[("body", text("12345"))]);
    say(&mut client, head).await;
    hears(
        &mut client,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 5\r\n\r\n",
    )
    .await;
    silent(&client).await;
}

#[tokio::test]
async fn drop_closes_without_an_answer_and_reset_resets() {
    let rig = Rig::new().await;
    rig.proxy.arm("drop", &[("path", text("/drop"))]);
    rig.proxy.arm("reset", &[("path", text("/reset"))]);
    for (path, end) in [
        ("/drop", None),
        ("/reset", Some(ErrorKind::ConnectionReset)),
    ] {
        let Pair {
            mut client,
            mut server,
        } = rig.connect().await;
        say(&mut client, [get("/first"), post(path, "unseen")].concat()).await;
        hears(&mut server, get("/first")).await;
        say(&mut server, OK).await;
        // The reply that was owed arrives first.
        hears(&mut client, OK).await;
        assert_eq!(drain(&mut client).await, (String::new(), end), "{path}");
        assert_eq!(drain(&mut server).await.0, "", "{path}");
    }
}

#[tokio::test]
async fn replies_are_truncated_corrupted_and_throttled() {
    let rig = Rig::new().await;
    let chunked =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n4\r\nefgh\r\n0\r\n\r\n";

    let rule = rig.proxy.arm("truncate", &[("bytes", Arg::Int(6))]);
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    say(&mut client, get("/")).await;
    hears(&mut server, get("/")).await;
    say(&mut server, chunked).await;
    let whole = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n4\r\nef";
    assert_eq!(drain(&mut client).await, (whole.to_owned(), None));
    rig.proxy.rules.lift(rule.id);

    let rule = rig.proxy.arm("corrupt", &[("offset", Arg::Int(5))]);
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    say(&mut client, get("/")).await;
    hears(&mut server, get("/")).await;
    say(&mut server, chunked).await;
    let mut expected = chunked.as_bytes().to_vec();
    let at = expected.iter().rposition(|b| *b == b'f').unwrap();
    expected[at] ^= 0xff;
    let mut got = vec![0; expected.len()];
    timeout(DEADLINE, client.read_exact(&mut got))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(got, expected);
    rig.proxy.rules.lift(rule.id);

    let rule = rig.proxy.arm("throttle", &[("rate", text("1KB/s"))]);
    let start = Instant::now();
    say(&mut client, get("/")).await;
    hears(&mut server, get("/")).await;
    let body = "x".repeat(300);
    let slow = format!("HTTP/1.1 200 OK\r\nContent-Length: 300\r\n\r\n{body}");
    say(&mut server, &slow).await;
    hears(&mut client, &slow).await;
    assert!(
        start.elapsed() >= Duration::from_millis(280),
        "{:?}",
        start.elapsed()
    );
    // A lifted throttle lets the rest go at once.
    let huge = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{}",
        "y".repeat(100_000)
    );
    say(&mut client, get("/")).await;
    hears(&mut server, get("/")).await;
    say(&mut server, &huge).await;
    hears(&mut client, &huge[..100]).await;
    rig.proxy.rules.lift(rule.id);
    hears(&mut client, &huge[100..]).await;
}

#[tokio::test]
async fn answers_of_rules_are_corrupted_and_throttled_as_replies_are() {
    let rig = Rig::new().await;
    rig.proxy.arm("corrupt", &[("offset", Arg::Int(1))]);
    rig.proxy.arm("throttle", &[("rate", text("1KB/s"))]);
    let body = "x".repeat(300);
    for when in ["before", "after"] {
        let rule = rig
            .proxy
            .arm("response", &[("body", text(&body)), ("when", text(when))]);
        let Pair {
            mut client,
            mut server,
        } = rig.connect().await;
        let start = Instant::now();
        say(&mut client, get("/")).await;
        if when == "after" {
            hears(&mut server, get("/")).await;
            say(&mut server, OK).await;
        }
        let mut got = vec![];
        while !got.ends_with(b"x".repeat(298).as_slice()) {
            got.push(client.read_u8().await.unwrap());
        }
        let payload = &got[got.len() - 300..];
        assert_eq!(payload[..2], [b'x', b'x' ^ 0xff]);
        assert!(start.elapsed() >= Duration::from_millis(280), "{when}");
        rig.proxy.rules.lift(rule.id);
    }
}

#[tokio::test]
async fn what_rules_do_to_a_reply_they_do_to_the_stream_that_it_opens() {
    let rig = Rig::new().await;
    let ask = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let switch =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let opened = async || {
        let mut pair = rig.connect().await;
        say(&mut pair.client, ask).await;
        hears(&mut pair.server, ask).await;
        say(&mut pair.server, switch).await;
        hears(&mut pair.client, switch).await;
        pair
    };
    let rule = rig.proxy.arm("truncate", &[("bytes", Arg::Int(3))]);
    let mut pair = opened().await;
    say(&mut pair.server, "ab").await;
    hears(&mut pair.client, "ab").await;
    say(&mut pair.server, "cd").await;
    assert_eq!(drain(&mut pair.client).await, ("c".to_owned(), None));
    rig.proxy.rules.lift(rule.id);

    let rule = rig.proxy.arm("corrupt", &[("offset", Arg::Int(2))]);
    let mut pair = opened().await;
    say(&mut pair.server, "ab").await;
    hears(&mut pair.client, "ab").await;
    say(&mut pair.server, "cd").await;
    assert_eq!(pair.client.read_u8().await.unwrap(), b'c' ^ 0xff);
    say(&mut pair.server, "ef").await;
    hears(&mut pair.client, "def").await;
    say(&mut pair.client, "up").await;
    hears(&mut pair.server, "up").await;
    rig.proxy.rules.lift(rule.id);

    let rule = rig.proxy.arm("throttle", &[("rate", text("1KB/s"))]);
    let mut pair = opened().await;
    let start = Instant::now();
    let slow = "x".repeat(300);
    say(&mut pair.server, &slow).await;
    hears(&mut pair.client, &slow).await;
    assert!(start.elapsed() >= Duration::from_millis(250));
    rig.proxy.rules.lift(rule.id);
    let fast = "y".repeat(100_000);
    say(&mut pair.server, &fast).await;
    hears(&mut pair.client, &fast).await;
    drop(pair.server);
    assert_eq!(drain(&mut pair.client).await, (String::new(), None));
    assert_eq!(rig.proxy.degradations(), [""; 0]);
}

#[tokio::test]
async fn delays_hold_the_request_and_end_when_lifted() {
    let rig = Rig::new().await;
    let rule = rig.proxy.arm(
        "delay",
        &[("path", text("/search*")), ("delay", text("200ms"))],
    );
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    let start = Instant::now();
    say(&mut client, get("/search?q=1")).await;
    hears(&mut server, get("/search?q=1")).await;
    assert!(
        start.elapsed() >= Duration::from_millis(195),
        "{:?}",
        start.elapsed()
    );
    say(&mut server, OK).await;
    hears(&mut client, OK).await;
    // Injected time is not the proxy's own: what is left of the whole, which the machine may stretch. A delay counts from when the
    // request was read, and what the proxy spends before it begins to serve it is its own all the same: half of it is left for that.
    let rest = start.elapsed() - Duration::from_millis(100);
    rig.proxy.rules.lift(rule.id);
    assert_own_share(&rig.proxy, rest);

    let rule = rig.proxy.arm("delay", &[("delay", text("1h"))]);
    say(&mut client, get("/")).await;
    silent(&server).await;
    rig.proxy.rules.lift(rule.id);
    hears(&mut server, get("/")).await;
    say(&mut server, OK).await;
    hears(&mut client, OK).await;

    // A delay is served even if the request then never reaches the server.
    rig.proxy.arm("delay", &[("delay", text("100ms"))]);
    rig.proxy.arm("error", &[]);
    let start = Instant::now();
    say(&mut client, get("/")).await;
    assert!(reply(&mut client).await.0.starts_with("HTTP/1.1 500"));
    assert!(start.elapsed() >= Duration::from_millis(95));
}

#[tokio::test]
async fn a_server_that_closes_its_idle_side_during_a_delay_is_dialled_again() {
    let rig = Rig::new().await;
    let rule = rig.proxy.arm("delay", &[("delay", text("1h"))]);
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    say(&mut client, [post("/", "a"), get("/b")].concat()).await;
    silent(&server).await;
    say(
        &mut server,
        "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    drop(server);
    silent(&client).await;
    rig.proxy.rules.lift(rule.id);
    let mut server = rig.accept().await;
    hears(&mut server, [post("/", "a"), get("/b")].concat()).await;
    say(&mut server, [OK, OK].concat()).await;
    hears(&mut client, [OK, OK].concat()).await;
}

#[tokio::test]
async fn upgrades_become_tunnels_and_refused_ones_stay_http() {
    let rig = Rig::new().await;
    let ask = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    say(&mut client, ask).await;
    hears(&mut server, ask).await;
    say(&mut server, OK).await;
    hears(&mut client, OK).await;
    let rule = rig.proxy.arm("error", &[("path", text("/x"))]);
    say(&mut client, get("/x")).await;
    assert!(reply(&mut client).await.0.starts_with("HTTP/1.1 500"));
    rig.proxy.rules.lift(rule.id);
    say(&mut client, ask).await;
    hears(&mut server, ask).await;
    let switch =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    say(&mut server, [switch.as_bytes(), b"\x81\x02hi"].concat()).await;
    hears(&mut client, [switch.as_bytes(), b"\x81\x02hi"].concat()).await;
    say(&mut client, b"\x81\x82\0\0\0\0yo\r\n\r\n").await;
    hears(&mut server, b"\x81\x82\0\0\0\0yo\r\n\r\n").await;
    client.shutdown().await.unwrap();
    assert_eq!(drain(&mut server).await, (String::new(), None));
    say(&mut server, b"\x88\0").await;
    drop(server);
    assert_eq!(drain(&mut client).await.0.len(), "\u{fffd}\0".len());
    assert_eq!(rig.proxy.degradations(), [""; 0]);

    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    let connect = "CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n";
    say(&mut client, connect).await;
    hears(&mut server, connect).await;
    say(&mut server, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await;
    hears(&mut client, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await;
    say(&mut client, b"\x16\x03\x01").await;
    hears(&mut server, b"\x16\x03\x01").await;
}

#[tokio::test]
async fn half_close_and_replies_that_end_with_the_connection_pass() {
    let rig = Rig::new().await;
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    say(&mut client, get("/")).await;
    client.shutdown().await.unwrap();
    assert_eq!(drain(&mut server).await, (get("/"), None));
    say(&mut server, "HTTP/1.0 200 OK\r\n\r\nsome").await;
    hears(&mut client, "HTTP/1.0 200 OK\r\n\r\nsome").await;
    say(&mut server, "thing").await;
    drop(server);
    assert_eq!(drain(&mut client).await, ("thing".to_owned(), None));
}

#[tokio::test]
async fn a_dying_upstream_looks_as_it_does_without_the_proxy() {
    let rig = Rig::new().await;
    let part = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart";
    for (resets, end) in [(true, Some(ErrorKind::ConnectionReset)), (false, None)] {
        for part in [part, "HTTP/1.1 20", ""] {
            let Pair {
                mut client,
                mut server,
            } = rig.connect().await;
            say(&mut client, get("/")).await;
            hears(&mut server, get("/")).await;
            say(&mut server, part).await;
            if resets {
                tokio::time::sleep(Duration::from_millis(50)).await;
                reset(server);
            } else {
                drop(server);
            }
            assert_eq!(drain(&mut client).await, (part.to_owned(), end));
        }
    }
    drop(rig.listener);
    let mut client = TcpStream::connect(rig.proxy.addr).await.unwrap();
    assert_eq!(drain(&mut client).await.1, Some(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_client_that_vanishes_takes_the_upstream_side_with_it() {
    let rig = Rig::new().await;
    rig.proxy
        .arm("delay", &[("path", text("/slow")), ("delay", text("1h"))]);
    for path in ["/", "/slow"] {
        let Pair {
            mut client,
            mut server,
        } = rig.connect().await;
        say(&mut client, get(path)).await;
        if path == "/" {
            hears(&mut server, get(path)).await;
        } else {
            silent(&server).await;
        }
        reset(client);
        assert_eq!(drain(&mut server).await.1, Some(ErrorKind::ConnectionReset));
    }
}

#[tokio::test]
async fn what_is_not_http_passes_raw_and_is_recorded_once() {
    let rig = Rig::new().await;
    rig.proxy.arm("error", &[]);
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    say(&mut client, b"\x16\x03\x01hello").await;
    hears(&mut server, b"\x16\x03\x01hello").await;
    say(&mut server, b"\x16\x03\x03back").await;
    hears(&mut client, b"\x16\x03\x03back").await;
    say(&mut client, get("/")).await;
    hears(&mut server, get("/")).await;
    drop(server);
    assert_eq!(drain(&mut client).await, (String::new(), None));
    assert_eq!(rig.proxy.degradations().len(), 1);

    // A server that answers something else, in the middle of a kept-alive connection.
    let rig = Rig::new().await;
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    say(&mut client, get("/")).await;
    hears(&mut server, get("/")).await;
    say(&mut server, [OK, b"\0\0garbage"].concat()).await;
    hears(&mut client, [OK, b"\0\0garbage"].concat()).await;
    say(&mut client, "anything\0").await;
    hears(&mut server, "anything\0").await;
    assert_eq!(
        rig.proxy.degradations(),
        ["\"upstream\": \"not HTTP/1.0 or HTTP/1.1\""]
    );
    // Broken chunks, both ways.
    let rig = Rig::new().await;
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    let bad = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    say(&mut client, bad).await;
    hears(&mut server, bad).await;
    let bad = "HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcdefgh";
    say(&mut server, bad).await;
    hears(&mut client, bad).await;
    assert_eq!(rig.proxy.degradations().len(), 1);
}

#[tokio::test]
async fn a_large_request_that_the_server_must_not_see_is_drained() {
    let rig = Rig::new().await;
    rig.proxy.arm("error", &[("path", text("/upload"))]);
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    let head = "POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let sending = tokio::spawn(async move {
        say(&mut client, head).await;
        let chunk = format!("10000\r\n{}\r\n", "z".repeat(0x10000));
        for _ in 0..64 {
            say(&mut client, &chunk).await;
        }
        say(&mut client, "0\r\nX-T: 1\r\n\r\n").await;
        client
    });
    let mut client = sending.await.unwrap();
    assert!(reply(&mut client).await.0.starts_with("HTTP/1.1 500"));
    say(&mut client, get("/next")).await;
    hears(&mut server, get("/next")).await;
}

#[tokio::test]
async fn source_is_looked_up_once_and_only_when_asked_for() {
    let rig = Rig::new().await;
    let asked = || {
        rig.proxy
            .sources
            .asked
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    rig.proxy.arm("error", &[("path", text("/never"))]);
    say(&mut client, get("/")).await;
    hears(&mut server, get("/")).await;
    say(&mut server, OK).await;
    hears(&mut client, OK).await;
    assert_eq!(asked(), 0);
    rig.proxy.arm("error", &[("source", text("billing"))]);
    rig.proxy
        .arm("response", &[("source", Arg::Service("api".into()))]);
    for _ in 0..3 {
        say(&mut client, get("/")).await;
        assert!(reply(&mut client).await.0.starts_with("HTTP/1.1 200"));
    }
    assert_eq!(asked(), 1);
}

#[tokio::test]
async fn ambiguous_requests_go_to_the_server_as_they_are_and_are_recorded() {
    for request in [
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;e\nab\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    ] {
        let rig = Rig::new().await;
        // It must not see a request in what follows the ambiguous one, whichever end that has.
        let rule = rig.proxy.arm("error", &[("path", text("/smuggled"))]);
        let Pair {
            mut client,
            mut server,
        } = rig.connect().await;
        let all = format!("{request}{}", get("/smuggled"));
        say(&mut client, &all).await;
        hears(&mut server, &all).await;
        say(
            &mut server,
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        )
        .await;
        drop(server);
        let (heard, end) = drain(&mut client).await;
        assert!(
            heard.starts_with("HTTP/1.1 400") && end.is_none(),
            "{heard}"
        );
        assert_eq!(
            (rig.proxy.degradations().len(), rule.hits()),
            (1, 0),
            "{request}"
        );
    }
}

#[tokio::test]
async fn an_incomplete_head_is_held_only_while_a_rule_might_want_it() {
    let rig = Rig::new().await;
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    // In pieces, with the end of one request and the beginning of the next in one of them.
    say(&mut client, "POST /a HT").await;
    hears(&mut server, "POST /a HT").await;
    say(&mut client, "TP/1.1\r\nContent-Length: 2\r\n\r\nab\r\nGET").await;
    hears(&mut server, "TP/1.1\r\nContent-Length: 2\r\n\r\nab\r\nGET").await;
    // Too late for the request whose beginning is out.
    let rule = rig.proxy.arm("error", &[]);
    say(&mut client, " /b HTTP").await;
    hears(&mut server, " /b HTTP").await;
    say(&mut client, "/1.1\r\n\r\n").await;
    hears(&mut server, "/1.1\r\n\r\n").await;
    say(&mut server, [OK, OK].concat()).await;
    hears(&mut client, [OK, OK].concat()).await;
    say(&mut client, "GET /c HT").await;
    silent(&server).await;
    say(&mut client, "TP/1.1\r\n\r\n").await;
    assert!(reply(&mut client).await.0.starts_with("HTTP/1.1 500"));
    assert_eq!((rule.matched(), rig.proxy.meter.count()), (1, 3));
    // The server's own time-out for heads passes, and so do a FIN and garbage in the middle of one.
    rig.proxy.rules.lift(rule.id);
    say(&mut client, "GET /d").await;
    hears(&mut server, "GET /d").await;
    say(
        &mut server,
        "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    assert!(reply(&mut client).await.0.starts_with("HTTP/1.1 408"));
    say(&mut client, "\0\0").await;
    hears(&mut server, "\0\0").await;
    client.shutdown().await.unwrap();
    assert_eq!(drain(&mut server).await, (String::new(), None));
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    say(&mut client, "GET /e").await;
    hears(&mut server, "GET /e").await;
    client.shutdown().await.unwrap();
    assert_eq!(drain(&mut server).await, (String::new(), None));
}

/// No request has cost the proxy more than `rest`, which is what a request took without the time that a rule injected. Compared with
/// what was measured here and not with a figure, because a busy machine stretches both.
fn assert_own_share(proxy: &Harness, rest: Duration) {
    let own = Duration::from_nanos(proxy.meter.max_ns());
    // The meter keeps three digits.
    assert!(own <= rest + rest / 500, "{own:?} of {rest:?}");
}

#[tokio::test]
async fn every_request_is_counted_and_what_rules_inject_is_not_added() {
    let rig = Rig::new().await;
    for (action, path, args) in [
        ("error", "/error", vec![]),
        ("response", "/after", vec![("when", text("after"))]),
        ("truncate", "/cut", vec![("bytes", Arg::Int(1))]),
        ("drop", "/drop", vec![]),
    ] {
        rig.proxy
            .arm(action, &[args, vec![("path", text(path))]].concat());
    }
    let slow = ("delay", text("400ms"));
    rig.proxy.arm("delay", &[("path", text("/error")), slow]);
    let Pair {
        mut client,
        mut server,
    } = rig.connect().await;
    let start = Instant::now();
    say(&mut client, get("/error")).await;
    assert!(reply(&mut client).await.0.starts_with("HTTP/1.1 500"));
    let rest = start.elapsed() - Duration::from_millis(200);
    assert_eq!(rig.proxy.meter.count(), 1);
    assert_own_share(&rig.proxy, rest);
    say(&mut client, [get("/"), get("/after"), get("/cut")].concat()).await;
    hears(&mut server, [get("/"), get("/after"), get("/cut")].concat()).await;
    say(&mut server, [OK, OK, OK].concat()).await;
    drain(&mut client).await;
    let mut pair = rig.connect().await;
    say(&mut pair.client, get("/drop")).await;
    drain(&mut pair.client).await;
    // No reply ever comes.
    let mut pair = rig.connect().await;
    say(&mut pair.client, get("/lost")).await;
    hears(&mut pair.server, get("/lost")).await;
    drop(pair.server);
    drain(&mut pair.client).await;
    drop(pair.client);
    timeout(DEADLINE, async {
        while rig.proxy.meter.count() < 6 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("six requests");
    assert_eq!(rig.proxy.meter.count(), 6);
}

#[tokio::test]
async fn events_say_what_was_injected() {
    let rig = Rig::new().await;
    rig.proxy.arm(
        "error",
        &[("status", Arg::Int(503)), ("label", text("down"))],
    );
    rig.proxy.arm("delay", &[("delay", text("20ms"))]);
    let mut pair = rig.connect().await;
    say(&mut pair.client, get("/a?b")).await;
    reply(&mut pair.client).await;
    let events = rig.proxy.events.of_kind("proxy");
    let shown: Vec<_> = events
        .iter()
        .map(|e| {
            json!([
                e.fields["action"],
                e.fields["path"],
                e.fields["status"],
                e.fields["delay_ms"],
                e.fields["label"]
            ])
        })
        .collect();
    assert_eq!(
        shown,
        [
            json!(["delay", "/a", null, 20, null]),
            json!(["error", "/a", 503, null, "down"])
        ]
    );
}

#[tokio::test]
async fn injected_answers_that_nobody_reads_take_little_memory() {
    if !alone("injected_answers_that_nobody_reads_take_little_memory") {
        return;
    }
    let rig = Rig::new().await;
    let body = "x".repeat(1 << 20);
    rig.proxy.arm("response", &[("body", text(&body))]);
    let Pair { mut client, .. } = rig.connect().await;
    let before = peak_memory();
    // As many as are taken before back-pressure sets in; each answer has 1 MiB.
    let requests = get("/").repeat(1000);
    let _ = timeout(
        Duration::from_millis(700),
        client.write_all(requests.as_bytes()),
    )
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let grown = peak_memory().saturating_sub(before);
    assert!(grown < 64 << 20, "memory grew by {} MiB", grown >> 20);
}
