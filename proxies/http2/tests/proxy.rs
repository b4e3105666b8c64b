//! Rules as a client of another make sees them: the h2 crate on both sides, through the proxy.

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use faultbox_contract::Arg;
use faultbox_engine::testing::Harness;
use h2::Reason;
use support::{Lab, code_of, int, text};

const CREATE: &str = "/orders.OrderService/Create";
const LIST: &str = "/orders.OrderService/List";
/// A delay that only lifting its rule ends.
const LONG: Arg = Arg::Duration(Duration::from_secs(600));

#[tokio::test]
async fn without_rules_everything_passes() {
    let lab = Lab::grpc().await;
    let client = lab.client().await;
    let reply = client.call(CREATE, &[b"one"], true).await.unwrap();
    assert_eq!((reply.status, reply.code()), (200, "0"));
    assert_eq!(reply.messages(), [b"one"]);
    assert_eq!(reply.trailer("x-echo-bin"), "AAEC");
    for size in [0, 1, 70_000, 4 << 20] {
        let body = vec![b'x'; size];
        let reply = client
            .call(LIST, &[&body, b"two", &body], true)
            .await
            .unwrap();
        assert_eq!(reply.messages(), [&body[..], b"two", &body]);
    }
    assert_eq!(
        lab.proxy.events.all().len(),
        0,
        "{:?}",
        lab.proxy.events.all()
    );
    assert_eq!(lab.proxy.meter.count(), 5);
}

/// The row of the user's page.
#[tokio::test]
async fn error_is_unavailable_and_never_reaches_the_server() {
    let lab = Lab::grpc().await;
    let client = lab.client().await;
    client.call(CREATE, &[b"one"], true).await.unwrap();
    let rule = lab.proxy.arm("error", &[("method", text(CREATE))]);
    let reply = client.call(CREATE, &[b"two"], true).await.unwrap();
    assert_eq!((reply.status, reply.code()), (200, "14"));
    assert!(reply.trailers_only);
    // Another method on the same connection, whose header table has lost a block on the way.
    let reply = client.call(LIST, &[b"three"], true).await.unwrap();
    assert_eq!(
        (reply.code(), reply.messages()),
        ("0", vec![b"three".to_vec()])
    );
    lab.proxy.rules.lift(rule.id);
    for i in 0..20 {
        let body = format!("four {i}");
        let reply = client.call(CREATE, &[body.as_bytes()], true).await.unwrap();
        assert_eq!(reply.messages(), [body.as_bytes()]);
        assert_eq!(reply.header("x-path"), CREATE);
    }
    assert_eq!(rule.hits(), 1);
    let seen = lab.server.requests();
    assert_eq!(seen.iter().filter(|p| *p == CREATE).count(), 21);
    let events = lab.proxy.events.all();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0].fields["method"], CREATE);
    assert_eq!(events[0].fields["code"], "UNAVAILABLE");
    assert_eq!(lab.proxy.meter.count(), 23);
}

#[tokio::test]
async fn codes_messages_details_and_metadata() {
    let lab = Lab::grpc().await;
    let client = lab.client().await;
    let details = serde_json::json!([{"@type": "google.rpc.RetryInfo", "retryDelay": "1s"}]);
    lab.proxy.arm(
        "error",
        &[
            ("code", text("RESOURCE_EXHAUSTED")),
            ("message", text("100 % full\n")),
            ("details", Arg::Json(details)),
            (
                "metadata",
                Arg::Json(serde_json::json!({"Retry-After-Ms": "7"})),
            ),
        ],
    );
    let reply = client.call(CREATE, &[b"x"], true).await.unwrap();
    assert_eq!(reply.code(), "8");
    assert_eq!(reply.header("grpc-message"), "100 %25 full%0A");
    assert_eq!(reply.header("retry-after-ms"), "7");
    assert!(!reply.header("grpc-status-details-bin").is_empty());
    lab.proxy.arm("error", &[("code", int(5))]);
    assert_eq!(
        client.call(CREATE, &[b"x"], true).await.unwrap().code(),
        "5"
    );
}

#[tokio::test]
async fn matchers() {
    let lab = Lab::grpc().await;
    let client = lab.client().await;
    let json = |v: serde_json::Value| Arg::Json(v);
    let cases: &[(&str, Arg, bool)] = &[
        ("method", text("/orders.OrderService/*"), true),
        ("method", text("/orders.*"), true),
        ("method", text("/other.Service/*"), false),
        ("path", text("/orders.OrderService/Create"), true),
        ("path", text("/orders.OrderService"), false),
        ("authority", text("127.0.0.1"), true),
        ("authority", text("127.0.0.1:*"), true),
        ("authority", text("example.org"), false),
        ("header", json(serde_json::json!({"X-Tenant": "ac*"})), true),
        ("header", json(serde_json::json!({"x-tenant": "b*"})), false),
    ];
    for (name, value, hit) in cases {
        let rule = lab.proxy.arm("error", &[(name, value.clone())]);
        let reply = client.call(CREATE, &[b"x"], true).await.unwrap();
        assert_eq!(reply.code() == "14", *hit, "{name} {value:?}");
        lab.proxy.rules.lift(rule.id);
    }
}

#[tokio::test]
async fn a_client_that_has_more_to_say_is_told_to_stop() {
    let lab = Lab::grpc().await;
    let client = lab.client().await;
    lab.proxy.arm("error", &[("method", text(CREATE))]);
    // The client's window for the connection comes back: 40 × 60 KB would not fit into it.
    for _ in 0..40 {
        let body = vec![0; 60_000];
        let reply = client.call(CREATE, &[&body], false).await.unwrap();
        assert_eq!(reply.code(), "14");
    }
    let body = vec![1; 60_000];
    let reply = client.call(LIST, &[&body], true).await.unwrap();
    assert_eq!(reply.messages(), [&body[..]]);
}

#[tokio::test]
async fn drop_resets_the_stream_and_reset_the_connection() {
    let lab = Lab::grpc().await;
    let client = lab.client().await;
    let rule = lab.proxy.arm("drop", &[("method", text(CREATE))]);
    let error = client.call(CREATE, &[b"x"], true).await.unwrap_err();
    assert_eq!(code_of(&error), Some(Reason::INTERNAL_ERROR));
    lab.proxy.rules.lift(rule.id);
    let rule = lab.proxy.arm("drop", &[("rst", text("REFUSED_STREAM"))]);
    let error = client.call(CREATE, &[b"x"], true).await.unwrap_err();
    assert_eq!(code_of(&error), Some(Reason::REFUSED_STREAM));
    lab.proxy.rules.lift(rule.id);
    client.call(CREATE, &[b"x"], true).await.unwrap();
    lab.proxy.arm("reset", &[]);
    let error = client.call(CREATE, &[b"x"], true).await.unwrap_err();
    assert!(error.is_io(), "{error:?}");
    assert_eq!(lab.server.requests().len(), 1);
}

#[tokio::test]
async fn a_delayed_stream_is_overtaken() {
    let lab = Lab::grpc().await;
    let client = lab.client().await;
    let rule = lab
        .proxy
        .arm("delay", &[("method", text(CREATE)), ("delay", LONG)]);
    let slow = client.call(CREATE, &[b"slow"], true);
    let fast = async {
        while lab.proxy.fired() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for i in 0..5 {
            let body = format!("fast {i}");
            let reply = client.call(LIST, &[body.as_bytes()], true).await.unwrap();
            assert_eq!(reply.messages(), [body.as_bytes()]);
        }
        assert_eq!(lab.server.requests(), [LIST; 5]);
        lab.proxy.rules.lift(rule.id);
    };
    let (slow, ()) = tokio::join!(slow, fast);
    assert_eq!(slow.unwrap().messages(), [b"slow"]);
    // The numbers stay different from here on; everything goes on working.
    for i in 0..10 {
        let body = vec![i; 100_000];
        let reply = client.call(CREATE, &[&body, &body], true).await.unwrap();
        assert_eq!(reply.messages(), [&body[..], &body]);
    }
    assert_eq!(lab.proxy.degradations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_delay_takes_its_time() {
    let lab = Lab::grpc().await;
    let client = lab.client().await;
    let delay = Duration::from_millis(200);
    lab.proxy.arm("delay", &[("delay", Arg::Duration(delay))]);
    let start = Instant::now();
    client.call(CREATE, &[b"x"], true).await.unwrap();
    assert!(start.elapsed() >= delay);
}

#[tokio::test]
async fn lifting_a_delay_ends_it() {
    let lab = Lab::grpc().await;
    let client = lab.client().await;
    let rule = lab.proxy.arm(
        "delay",
        &[("delay", Arg::Duration(Duration::from_secs(600)))],
    );
    let call = client.call(CREATE, &[b"x"], true);
    let lift = async {
        while lab.proxy.fired() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        lab.proxy.rules.lift(rule.id);
    };
    let (reply, ()) = tokio::join!(call, lift);
    assert_eq!(reply.unwrap().code(), "0");
}

#[tokio::test]
async fn a_client_that_cancels_what_is_delayed_is_never_seen() {
    let lab = Lab::grpc().await;
    let client = lab.client().await;
    let rule = lab
        .proxy
        .arm("delay", &[("method", text(CREATE)), ("delay", LONG)]);
    let fired = async {
        while lab.proxy.fired() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        reply = client.call(CREATE, &[b"x"], true) => panic!("{reply:?}"),
        () = fired => {}
    }
    // Behind the RST_STREAM on the same connection.
    client.call(LIST, &[b"x"], true).await.unwrap();
    lab.proxy.rules.lift(rule.id);
    client.call(LIST, &[b"x"], true).await.unwrap();
    assert_eq!(lab.server.requests(), [LIST, LIST]);
}

#[tokio::test]
async fn faults_in_mid_stream() {
    let lab = Lab::grpc().await;
    let client = lab.client().await;
    let bodies: Vec<Vec<u8>> = (0..6u8).map(|i| vec![i; 3000 * usize::from(i)]).collect();
    let all: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
    let rule = lab.proxy.arm(
        "error",
        &[
            ("method", text(LIST)),
            ("messages", int(4)),
            ("code", text("DATA_LOSS")),
        ],
    );
    let reply = client.call_answering_last(LIST, &all).await.unwrap();
    // The request's own messages meet the rule first: the server has seen four of them.
    assert_eq!((reply.code(), reply.messages().len()), ("15", 0));
    lab.proxy.rules.lift(rule.id);

    let rule = lab.proxy.arm(
        "error",
        &[("messages", int(4)), ("code", text("DATA_LOSS"))],
    );
    let reply = client.fan_out(LIST, &bodies[5], 6).await.unwrap();
    assert!(!reply.trailers_only);
    assert_eq!(
        (reply.code(), reply.messages()),
        ("15", vec![bodies[5].clone(); 4])
    );
    assert_eq!(lab.proxy.events.all().last().unwrap().fields["messages"], 4);
    lab.proxy.rules.lift(rule.id);

    let rule = lab.proxy.arm("drop", &[("messages", int(2))]);
    let error = client.fan_out(LIST, b"abc", 6).await.unwrap_err();
    assert_eq!(code_of(&error), Some(Reason::INTERNAL_ERROR));
    lab.proxy.rules.lift(rule.id);

    let delay = Duration::from_millis(200);
    let rule = lab.proxy.arm(
        "delay",
        &[("messages", int(3)), ("delay", Arg::Duration(delay))],
    );
    let start = Instant::now();
    let reply = client.fan_out(LIST, b"abc", 6).await.unwrap();
    assert_eq!((reply.code(), reply.messages().len()), ("0", 6));
    assert!(start.elapsed() >= delay);
    assert_eq!(rule.hits(), 1);
    lab.proxy.rules.lift(rule.id);
    // What the server went on saying in the streams that were cut has been credited to it.
    for _ in 0..10 {
        let reply = client.fan_out(LIST, &[7; 60_000], 6).await.unwrap();
        assert_eq!(reply.messages().len(), 6);
    }
    assert_eq!(lab.proxy.degradations(), Vec::<String>::new());
}

#[tokio::test]
async fn truncate_throttle_and_corrupt() {
    let lab = Lab::grpc().await;
    let client = lab.client().await;
    let rule = lab.proxy.arm("corrupt", &[("offset", int(4))]);
    let reply = client.call(CREATE, &[b"abc", b"def"], true).await.unwrap();
    assert_eq!(
        reply.messages(),
        [b"abc".to_vec(), vec![b'd', b'e' ^ 0xff, b'f']]
    );
    lab.proxy.rules.lift(rule.id);

    let rule = lab.proxy.arm("truncate", &[("bytes", int(20_000))]);
    let (error, got) = client.cut(CREATE, &[5; 50_000]).await;
    assert_eq!(
        (code_of(&error), got),
        (Some(Reason::INTERNAL_ERROR), 20_000)
    );
    let reply = client.call(CREATE, &[b"short enough"], true).await.unwrap();
    assert_eq!(reply.code(), "0");
    lab.proxy.rules.lift(rule.id);

    let rule = lab.proxy.arm("throttle", &[("rate", text("100KB/s"))]);
    let start = Instant::now();
    let body = vec![9; 30_000];
    let messages = [&body[..]];
    let slow = client.call(CREATE, &messages, true);
    let other = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.ping().await;
        start.elapsed()
    };
    let (reply, other) = tokio::join!(slow, other);
    assert_eq!(reply.unwrap().messages(), [&body[..]]);
    assert!(
        start.elapsed() >= Duration::from_millis(250),
        "{:?}",
        start.elapsed()
    );
    assert!(other < start.elapsed());
    lab.proxy.rules.lift(rule.id);
    let reply = client.call(CREATE, &[&body], true).await.unwrap();
    assert_eq!(reply.messages(), [&body[..]]);
}

#[tokio::test]
async fn plain_answers_before_and_after() {
    let lab = Lab::http2().await;
    let client = lab.client().await;
    let big = "y".repeat(200_000);
    lab.proxy.arm(
        "response",
        &[
            ("path", text("/big")),
            ("status", int(503)),
            ("body", text(&big)),
        ],
    );
    lab.proxy.arm(
        "response",
        &[
            ("path", text("/after")),
            ("status", int(418)),
            ("when", text("after")),
        ],
    );
    lab.proxy.arm(
        "error",
        &[
            ("method", text("POST")),
            ("path", text("/e*")),
            ("message", text("no")),
        ],
    );
    for _ in 0..5 {
        let reply = client.request("GET", "/big", Bytes::new()).await.unwrap();
        assert_eq!((reply.status, reply.body.len()), (503, big.len()));
        // The client's window is its own again.
        let reply = client
            .request("POST", "/other", vec![1; 200_000].into())
            .await
            .unwrap();
        assert_eq!((reply.status, reply.body.len()), (200, 200_000));
    }
    let reply = client.request("HEAD", "/big", Bytes::new()).await.unwrap();
    assert_eq!((reply.status, reply.body.len()), (503, 0));
    assert_eq!(reply.header("content-length"), "200000");
    let reply = client
        .request("POST", "/after", Bytes::from_static(b"x"))
        .await
        .unwrap();
    assert_eq!((reply.status, reply.body.len()), (418, 0));
    let reply = client
        .request("POST", "/error", Bytes::new())
        .await
        .unwrap();
    assert_eq!(
        (reply.status, &reply.body[..]),
        (500, &b"{\"error\":\"no\"}"[..])
    );
    assert_eq!(
        client
            .request("GET", "/error", Bytes::new())
            .await
            .unwrap()
            .status,
        200
    );
    let seen = lab.server.requests();
    assert!(seen.contains(&"/after".to_owned()) && !seen.contains(&"/big".to_owned()));
}

#[tokio::test]
async fn on_an_http2_interface_grpc_gets_its_own_errors() {
    let lab = Lab::http2().await;
    let client = lab.client().await;
    lab.proxy.arm(
        "error",
        &[("method", text(CREATE)), ("code", text("ABORTED"))],
    );
    let reply = client.call(CREATE, &[b"x"], true).await.unwrap();
    assert_eq!((reply.status, reply.code()), (200, "10"));
    let reply = client.request("GET", CREATE, Bytes::new()).await.unwrap();
    assert_eq!(reply.status, 500);
}

#[tokio::test]
async fn a_dead_upstream_looks_dead() {
    let lab = Lab::grpc().await;
    let client = lab.client().await;
    client.call(CREATE, &[b"x"], true).await.unwrap();
    lab.server.stop();
    let error = client.call(CREATE, &[b"x"], true).await.unwrap_err();
    assert!(error.is_io() || error.is_go_away(), "{error:?}");
}

#[tokio::test]
async fn the_latest_rule_decides_and_counters_count() {
    let lab = Lab::grpc().await;
    let client = lab.client().await;
    let older = lab.proxy.arm("error", &[("code", text("ABORTED"))]);
    let newer = lab
        .proxy
        .arm("error", &[("code", text("NOT_FOUND")), ("nth", int(2))]);
    let mut codes = vec![];
    for _ in 0..3 {
        codes.push(
            client
                .call(CREATE, &[b"x"], true)
                .await
                .unwrap()
                .code()
                .to_owned(),
        );
    }
    assert_eq!(codes, ["10", "5", "10"]);
    assert_eq!((older.hits(), older.shadowed(), newer.hits()), (2, 1, 1));
}

/// nghttp2 and others credit a window only when half of it is used: what a rule sends must not starve the server's own.
#[tokio::test]
async fn a_lazy_client_is_not_starved() {
    use support::raw::{Frame, Raw};
    let lab = Lab::http2().await;
    lab.proxy.arm(
        "response",
        &[("path", text("/ours")), ("body", text(&"o".repeat(30_000)))],
    );
    // Frames of up to 64 KiB, and 60 KB of DATA in one: more than what the rule leaves of the window.
    let mut client = Raw::connect(lab.proxy.addr, &[(5, 65_536)]).await;
    client.get(1, "/ours", &[]).await;
    assert_eq!(client.data_of(1).await, 30_000);
    client
        .get(3, "/theirs", &[("x-fan-out", "1"), ("x-size", "60000")])
        .await;
    let mut got = 0;
    let mut credited = 0;
    loop {
        let Frame {
            kind,
            flags,
            payload,
            ..
        } = client.next().await;
        if kind == 0 {
            got += payload.len();
            assert!(30_000 + got <= 65_535 + credited, "the window is overdrawn");
            if 30_000 + got == 65_535 + credited {
                client.window_update(0, 65_535).await;
                credited += 65_535;
            }
        }
        if kind == 1 && flags & 1 != 0 {
            break;
        }
    }
    assert_eq!((got, credited), (60_000, 65_535));
}

/// The request that asks for h2c is HTTP/1.1, and a request all the same.
#[tokio::test]
async fn rules_see_the_request_for_an_upgrade() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    // A server that waits for its client to speak, as those do that grant upgrades; nothing may reach it.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Harness::start(faultbox_http2::http2(), listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let mut heard = vec![];
        for _ in 0..3 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read_to_end(&mut heard).await;
        }
        heard
    });
    let ask = |path: &'static str| {
        let addr = proxy.addr;
        async move {
            let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut heard = vec![];
            let orderly = stream.read_to_end(&mut heard).await.is_ok();
            (String::from_utf8_lossy(&heard).into_owned(), orderly)
        }
    };
    let delay = Duration::from_millis(200);
    proxy.arm("delay", &[("delay", Arg::Duration(delay))]);
    proxy.arm("error", &[("path", text("/error")), ("status", int(503))]);
    proxy.arm("drop", &[("path", text("/drop")), ("authority", text("a"))]);
    proxy.arm("reset", &[("path", text("/reset"))]);
    let start = Instant::now();
    let (answer, orderly) = ask("/error").await;
    assert!(orderly && start.elapsed() >= delay);
    assert!(
        answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
        "{answer}"
    );
    assert!(
        answer.ends_with("\r\n\r\n{\"error\":\"Service Unavailable\"}"),
        "{answer}"
    );
    assert_eq!(ask("/drop").await, (String::new(), true));
    let (_, orderly) = ask("/reset").await;
    assert!(!orderly);
    assert_eq!(server.await.unwrap(), b"");
    assert_eq!(proxy.fired(), 6);
}

/// A step's windows are larger than a rule's body: nothing but the proxy's own pace holds it up.
#[tokio::test]
async fn a_step_gets_the_whole_of_a_rules_body() {
    let lab = Lab::http2().await;
    let body = "y".repeat(300_000);
    lab.proxy.arm("response", &[("body", text(&body))]);
    let http2 = faultbox_http2::http2();
    let endpoint = faultbox_contract::Endpoint {
        kept: None,
        addr: lab.proxy.addr,
        host: "127.0.0.1".into(),
        env: std::sync::Arc::default(),
        attempt: Duration::from_secs(30),
        addresses: std::sync::Arc::default(),
        tls: None,
    };
    for _ in 0..10 {
        let step = http2.doc().check_step("get", vec![], vec![]).unwrap();
        let reply = http2.step(endpoint.clone(), step).await.unwrap();
        assert_eq!(
            (reply.status, reply.body.len(), &*reply.error),
            (200, body.len(), "")
        );
    }
}

#[tokio::test]
async fn slips_of_methods_are_refused_and_grpc_methods_are_none() {
    let proxy = Harness::start(faultbox_http2::http2(), "127.0.0.1:9".parse().unwrap());
    for slip in ["POTS", "GTE"] {
        let refused = proxy
            .try_arm("error", &[("method", text(slip))])
            .unwrap_err();
        assert_eq!(refused.arg.as_deref(), Some("method"), "{refused}");
    }
    for fine in ["PURGE", "get", "/shop.Orders/get"] {
        assert!(
            proxy.try_arm("error", &[("method", text(fine))]).is_ok(),
            "{fine}"
        );
    }
}
