//! The proxy in front of a scripted server, driven by the step and by bytes.

mod support;

use std::time::{Duration, Instant};

use faultbox_contract::Arg;
use faultbox_dns::codec;
use faultbox_engine::testing::free_addr;
use serde_json::json;
use support::{DEADLINE, Rig, endpoint, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

const TCP: (&str, &str) = ("transport", "tcp");

fn records(items: serde_json::Value) -> Arg {
    Arg::Json(items)
}

#[tokio::test]
async fn without_rules_the_server_answers() {
    let rig = Rig::new().await;
    for transport in ["udp", "tcp"] {
        let r = rig
            .query("www.example.com", &[("transport", text(transport))])
            .await;
        assert!(r.ok, "{r:?}");
        assert_eq!(
            r.data,
            json!([{"name": "www.example.com", "type": "A", "ttl": 30, "data": "203.0.113.7"}])
        );
        assert_eq!(r.body, "www.example.com 30 A 203.0.113.7");
    }
    assert_eq!(rig.asked(), ["udp www.example.com", "tcp www.example.com"]);
    // One query and one reply over UDP; a query and its reply, in as many pieces as it came, over TCP.
    assert!(rig.proxy.meter.count() >= 4);
    assert_eq!(rig.proxy.events.all().len(), 0);
}

#[tokio::test]
async fn errors_by_name_type_and_code() {
    let rig = Rig::new().await;
    let plain = rig.proxy.arm("error", &[("name", text("broken.*"))]);
    rig.proxy.arm(
        "error",
        &[
            ("name", text("*.GONE.example.")),
            ("code", text("nxdomain")),
        ],
    );
    rig.proxy.arm(
        "error",
        &[
            ("type", text("AAAA")),
            ("code", Arg::Int(5)),
            ("message", text("no IPv6")),
        ],
    );
    for transport in ["udp", "tcp"] {
        let t = ("transport", text(transport));
        let code = async |name, kind| {
            let r = rig.query(name, &[t.clone(), ("type", text(kind))]).await;
            (r.ok, r.code)
        };
        assert_eq!(
            code("Broken.example", "A").await,
            (false, "SERVFAIL".into())
        );
        assert_eq!(
            code("a.b.gone.example", "A").await,
            (false, "NXDOMAIN".into())
        );
        assert_eq!(code("gone.example", "A").await, (true, "".into()));
        assert_eq!(code("x.example", "AAAA").await, (false, "REFUSED".into()));
        assert_eq!(code("x.example", "A").await, (true, "".into()));
    }
    assert_eq!(plain.hits(), 2);
    // What a rule answers never reaches the server.
    assert_eq!(
        rig.asked(),
        [
            "udp gone.example",
            "udp x.example",
            "tcp gone.example",
            "tcp x.example"
        ]
    );
    let events = rig.proxy.events.of_kind("proxy");
    assert_eq!(events.len(), 6);
    let fields = &events[0].fields;
    assert_eq!(
        [
            &fields["name"],
            &fields["type"],
            &fields["code"],
            &fields["transport"]
        ],
        ["Broken.example", "A", "SERVFAIL", "udp"]
    );
}

#[tokio::test]
async fn answers_of_the_type_asked_for() {
    let rig = Rig::new().await;
    rig.proxy.arm(
        "response",
        &[
            ("name", text("a.example")),
            (
                "records",
                records(json!(["192.0.2.1", "2001:db8::1", "MX 10 mail.example", {"type": "TXT", "data": "hi there", "ttl": 5}])),
            ),
        ],
    );
    rig.proxy.arm(
        "response",
        &[
            ("name", text("alias.example")),
            (
                "records",
                records(json!(["CNAME real.example", "192.0.2.9"])),
            ),
            ("ttl", Arg::Int(1)),
        ],
    );
    let data = async |name, kind| rig.query(name, &[("type", text(kind))]).await.data;
    let one = |kind: &str, ttl: u32, data: &str| json!([{"name": "a.example", "type": kind, "ttl": ttl, "data": data}]);
    assert_eq!(data("a.example", "A").await, one("A", 60, "192.0.2.1"));
    assert_eq!(
        data("a.example", "AAAA").await,
        one("AAAA", 60, "2001:db8::1")
    );
    assert_eq!(
        data("a.example", "MX").await,
        one("MX", 60, "10 mail.example")
    );
    assert_eq!(data("a.example", "TXT").await, one("TXT", 5, "hi there"));
    assert_eq!(data("a.example", "NS").await, json!([]));
    assert_eq!(
        data("alias.example", "A").await,
        json!([
            {"name": "alias.example", "type": "CNAME", "ttl": 1, "data": "real.example"},
            {"name": "real.example", "type": "A", "ttl": 1, "data": "192.0.2.9"},
        ])
    );
}

#[tokio::test]
async fn what_does_not_fit_comes_over_tcp() {
    let rig = Rig::new().await;
    let many: Vec<String> = (0..200).map(|i| format!("192.0.2.{i}")).collect();
    let rule = rig
        .proxy
        .arm("response", &[("records", records(json!(many)))]);
    let r = rig.query("big.example", &[]).await;
    assert_eq!(r.data.as_array().unwrap().len(), 200);
    assert_eq!(r.headers[1].1, "tcp");
    assert_eq!(rule.hits(), 2);
}

#[tokio::test]
async fn truncate_makes_clients_ask_again() {
    let rig = Rig::new().await;
    let rule = rig.proxy.arm("truncate", &[]);
    let r = rig.query("a.example", &[]).await;
    assert!(r.ok && r.headers[1].1 == "tcp", "{r:?}");
    // TCP does not count: it could not be truncated.
    assert_eq!((rule.matched(), rule.hits()), (1, 1));
    assert_eq!(rig.asked(), ["tcp a.example"]);
}

#[tokio::test]
async fn lost_queries_are_waited_for() {
    let rig = Rig::new().await;
    let rule = rig.proxy.arm("drop", &[("nth", Arg::Int(1))]);
    let short = ("timeout", text("200ms"));
    let r = rig.query("a.example", std::slice::from_ref(&short)).await;
    assert_eq!((r.ok, r.code.as_str()), (false, "ETIMEDOUT"));
    assert!(rig.query("a.example", &[]).await.ok);
    rig.proxy.rules.lift(rule.id);
    rig.proxy.arm("drop", &[]);
    let r = rig.query("a.example", &[short, (TCP.0, text(TCP.1))]).await;
    assert_eq!((r.ok, r.code.as_str()), (false, "ETIMEDOUT"));
    assert_eq!(rig.asked(), ["udp a.example"]);
}

#[tokio::test]
async fn delayed_queries_hold_nobody_up() {
    let rig = Rig::new().await;
    let slow = rig
        .proxy
        .arm("delay", &[("name", text("slow.*")), ("delay", text("1h"))]);
    rig.proxy.arm(
        "delay",
        &[("name", text("late.*")), ("delay", text("200ms"))],
    );
    let start = Instant::now();
    assert!(rig.query("late.example", &[]).await.ok);
    assert!(start.elapsed() >= Duration::from_millis(200));

    // On one TCP connection.
    let mut stream = TcpStream::connect(rig.proxy.addr).await.unwrap();
    stream.write_all(&asking(1, "slow.example")).await.unwrap();
    stream.write_all(&asking(2, "late.example")).await.unwrap();
    stream.write_all(&asking(3, "quick.example")).await.unwrap();
    assert_eq!(reply_id(&mut stream).await, 3);
    assert_eq!(reply_id(&mut stream).await, 2);
    rig.proxy.rules.lift(slow.id);
    assert_eq!(reply_id(&mut stream).await, 1);
}

/// A question for A, behind its length.
fn asking(id: u16, name: &str) -> Vec<u8> {
    let mut message = vec![];
    for word in [id, codec::RD, 1, 0, 0, 0] {
        message.extend(word.to_be_bytes());
    }
    codec::put_name(name, &mut message).unwrap();
    message.extend([0, 1, 0, 1]);
    codec::framed(&message)
}

async fn reply_id(stream: &mut TcpStream) -> u16 {
    let read = async {
        let n = stream.read_u16().await.unwrap();
        let mut reply = vec![0; usize::from(n)];
        stream.read_exact(&mut reply).await.unwrap();
        assert!(reply[2] & 0x80 != 0);
        u16::from_be_bytes([reply[0], reply[1]])
    };
    timeout(DEADLINE, read).await.expect("a reply must come")
}

#[tokio::test]
async fn our_answers_stand_between_the_server_s_and_not_inside() {
    let rig = Rig::new().await;
    rig.proxy.arm("error", &[("name", text("no.*"))]);
    let mut stream = TcpStream::connect(rig.proxy.addr).await.unwrap();
    let mut all = vec![];
    for id in 0..200 {
        let name = if id % 3 == 0 {
            "no.example"
        } else {
            "yes.example"
        };
        all.extend(asking(id, name));
    }
    // Cut where it hurts.
    for chunk in all.chunks(37) {
        stream.write_all(chunk).await.unwrap();
    }
    let mut ids = vec![];
    for _ in 0..200 {
        ids.push(reply_id(&mut stream).await);
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..200).collect::<Vec<_>>());
    assert_eq!(rig.asked().len(), 133);
    stream.shutdown().await.unwrap();
    let mut rest = vec![];
    timeout(DEADLINE, stream.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_rule_armed_in_mid_message_acts_on_the_next() {
    let rig = Rig::new().await;
    let mut stream = TcpStream::connect(rig.proxy.addr).await.unwrap();
    let first = asking(1, "a.example");
    stream.write_all(&first[..10]).await.unwrap();
    while rig.proxy.meter.count() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rig.proxy.arm("error", &[]);
    stream.write_all(&first[10..]).await.unwrap();
    stream.write_all(&asking(2, "a.example")).await.unwrap();
    let mut ids = [reply_id(&mut stream).await, reply_id(&mut stream).await];
    ids.sort_unstable();
    assert_eq!(ids, [1, 2]);
    assert_eq!(rig.asked(), ["tcp a.example"]);
    assert_eq!(rig.proxy.fired(), 1);
}

#[tokio::test]
async fn what_is_no_dns_passes_and_is_recorded_once() {
    let (udp, tcp) = support::both().await;
    let proxy = faultbox_engine::testing::Harness::start(
        faultbox_dns::protocol(),
        udp.local_addr().unwrap(),
    );
    proxy.arm("error", &[]);
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(proxy.addr).await.unwrap();
    let mut buffer = [0; 64];
    for word in [
        &b"hello"[..],
        b"",
        b"\xff\xff\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c",
    ] {
        client.send(word).await.unwrap();
        let got = timeout(DEADLINE, udp.recv_from(&mut buffer)).await;
        let (n, _) = got.unwrap().unwrap();
        assert_eq!(&buffer[..n], word);
    }
    assert_eq!(proxy.degradations(), [r#""client": "too short""#]);

    let mut client = TcpStream::connect(proxy.addr).await.unwrap();
    let (mut server, _) = timeout(DEADLINE, tcp.accept()).await.unwrap().unwrap();
    // A whole message that is none, one that would be answered, and one that never ends: all raw from the first on.
    let mut said = codec::framed(b"hello");
    said.extend(asking(1, "a.example"));
    said.extend(b"\xff\xffabc");
    client.write_all(&said).await.unwrap();
    let mut heard = vec![0; said.len()];
    timeout(DEADLINE, server.read_exact(&mut heard))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(heard, said);
    assert_eq!(proxy.degradations().len(), 2);
    assert_eq!(proxy.fired(), 0);
}

#[tokio::test]
async fn sources_and_misuse() {
    let rig = Rig::new().await;
    rig.proxy.arm("error", &[("source", text("other"))]);
    assert!(rig.query("a.example", &[]).await.ok);
    rig.proxy.arm("error", &[("source", text("api"))]);
    assert_eq!(rig.query("a.example", &[]).await.code, "SERVFAIL");

    let protocol = faultbox_dns::protocol();
    let refusal = |action: &str, args: &[(&str, Arg)]| {
        let spec = faultbox_contract::RuleSpec {
            action: action.into(),
            args: args
                .iter()
                .map(|(n, a)| ((*n).to_owned(), a.clone()))
                .collect(),
        };
        let checked = protocol.doc().check_rule(&spec).unwrap();
        let error = protocol.compile(&checked).unwrap_err();
        (error.message, error.hint.unwrap_or_default())
    };
    let (message, hint) = refusal("error", &[("code", text("NXDOMIAN"))]);
    assert_eq!(message, "`NXDOMIAN` is no response code");
    assert!(hint.starts_with("did you mean `NXDOMAIN`?"), "{hint}");
    assert_eq!(
        refusal("drop", &[("type", text("AAAAA"))]).0,
        "`AAAAA` is no record type"
    );
    for (items, part) in [
        (json!(["www"]), "`www` has no type"),
        (json!([{"type": "A"}]), "needs `data`"),
        (json!([{"type": "A", "data": "::1"}]), "no IPv4 address"),
        (json!([{"data": "192.0.2.1", "tll": 1}]), "has no `tll`"),
        (json!([7]), "7 is no record"),
    ] {
        let (message, _) = refusal("response", &[("records", records(items))]);
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test]
async fn ready_when_something_answers() {
    let rig = Rig::new().await;
    let protocol = faultbox_dns::protocol();
    assert_eq!(protocol.ready(endpoint(rig.proxy.addr)).await, Ok(()));
    assert!(protocol.ready(endpoint(free_addr())).await.is_err());
}

#[tokio::test]
async fn not_ready_while_nothing_is_implemented() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = server.local_addr().unwrap();
    let answers = async {
        let mut buffer = [0; 512];
        loop {
            let (n, from) = server.recv_from(&mut buffer).await.unwrap();
            // QR, and the code NOTIMP.
            buffer[2] |= 0x80;
            buffer[3] = buffer[3] & 0xf0 | 4;
            server.send_to(&buffer[..n], from).await.unwrap();
        }
    };
    let ready = tokio::select! {
        ready = faultbox_dns::protocol().ready(endpoint(addr)) => ready,
        () = answers => unreachable!(),
    };
    assert_eq!(ready, Err("the server does not answer queries".into()));
}
