//! What no real server would do, or not on demand: TLS, garbage, dying in mid-reply. The server here is a script.

use std::net::SocketAddr;
use std::time::Duration;

use faultbox_contract::Arg;
use faultbox_engine::testing::{Harness, PATIENCE};
use faultbox_postgres::protocol;
use serde_json::Value::Null;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SSL_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x2f";
const HELLO: &[u8] = b"\0\0\0\x12\0\x03\0\0user\0ann\0\0";
const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x01\0\0\0\x02Z\0\0\0\x05I";

/// A server that reads exactly what it is told, answers, and goes on; then it closes.
async fn scripted(script: Vec<(&'static [u8], &'static [u8])>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let script = script.clone();
            tokio::spawn(async move {
                for (expected, answer) in script {
                    let mut got = vec![0; expected.len()];
                    if stream.read_exact(&mut got).await.is_err() || got != expected {
                        return;
                    }
                    stream.write_all(answer).await.unwrap();
                }
            });
        }
    });
    addr
}

/// Says each part after the answer before it has come; then reads to the end.
async fn talk(proxy: &Harness, script: &[(&[u8], &[u8])]) {
    let mut stream = TcpStream::connect(proxy.addr).await.unwrap();
    let talk = async {
        for (said, answer) in script {
            stream.write_all(said).await.unwrap();
            let mut got = vec![0; answer.len()];
            stream.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, answer);
        }
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    };
    tokio::time::timeout(PATIENCE, talk)
        .await
        .expect("an answer");
}

#[tokio::test]
async fn encrypted_connections_pass_and_an_armed_rule_over_them_is_reported_once() {
    let script: Vec<(&[u8], &[u8])> = vec![
        (SSL_REQUEST, b"S"),
        (b"\x16\x03\x01 hello", b"\x16\x03\x03 done"),
        (b"Q\0\0", b"anything"),
    ];
    let proxy = Harness::start(protocol(), scripted(script.clone()).await);
    talk(&proxy, &script).await;
    assert_eq!(proxy.events.all().len(), 0);
    proxy.arm("drop", &[]);
    talk(&proxy, &script).await;
    talk(&proxy, &script).await;
    let degraded = proxy.degradations();
    assert_eq!(degraded.len(), 1, "{degraded:?}");
    assert!(degraded[0].contains("sslmode=disable"));
    assert_eq!(proxy.fired(), 0);
}

#[tokio::test]
async fn a_refused_encryption_goes_on_in_the_clear() {
    let script: Vec<(&[u8], &[u8])> = vec![
        (b"\0\0\0\x08\x04\xd2\x16\x30", b"N"),
        (SSL_REQUEST, b"N"),
        (HELLO, WELCOME),
        (
            b"Q\0\0\0\x0dSELECT 1\0",
            b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I",
        ),
    ];
    let proxy = Harness::start(protocol(), scripted(script.clone()).await);
    let rule = proxy.arm(
        "delay",
        &[
            ("query", Arg::Str("SELECT *".into())),
            ("user", Arg::Str("ann".into())),
            ("delay", Arg::Int(0)),
        ],
    );
    talk(&proxy, &script).await;
    assert_eq!((rule.hits(), proxy.degradations().len()), (1, 0));
}

#[tokio::test]
async fn what_is_not_the_protocol_passes_and_is_reported_once() {
    for script in [
        vec![
            (&b"GET / HTTP/1.1\r\n\r\n"[..], &b"HTTP/1.1 400\r\n\r\n"[..]),
            (b"more", b"and more"),
        ],
        vec![
            (HELLO, WELCOME),
            (b"Q\xff\xff\xff\xffSELECT", b"E\0\0\0\x05\0"),
            (b"more", b"and more"),
        ],
        vec![
            (HELLO, WELCOME),
            (b"S\0\0\0\x04", b"\xffwhat"),
            (b"more", b"and more"),
        ],
        vec![(HELLO, b"D\0\0\0\x04")],
        vec![(SSL_REQUEST, b"?!"), (b"more", b"and more")],
    ] {
        let proxy = Harness::start(protocol(), scripted(script.clone()).await);
        proxy.arm("reset", &[]);
        talk(&proxy, &script).await;
        assert_eq!(
            proxy.degradations().len(),
            1,
            "{script:?}: {:?}",
            proxy.degradations()
        );
        assert_eq!(proxy.fired(), 0);
    }
}

#[tokio::test]
async fn a_server_that_dies_in_mid_reply_dies_in_mid_reply() {
    let script: Vec<(&[u8], &[u8])> = vec![
        (HELLO, WELCOME),
        (b"Q\0\0\0\x0dSELECT 1\0", b"D\0\0\x01\0partial"),
    ];
    let proxy = Harness::start(protocol(), scripted(script.clone()).await);
    talk(&proxy, &script).await;
    assert_eq!(proxy.events.all().len(), 0);
}

const SELECT: &[u8] = b"Q\0\0\0\x0dSELECT 1\0";
const ANSWER: &[u8] = b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";
/// What stands for a denied statement, and what a server says to it.
const DENIED: &[u8] = b"Q\0\0\0\x2bfaultbox: a rule denied this statement\0";
const REFUSED: &[u8] = b"E\0\0\0\x0cC42601\0\0Z\0\0\0\x05I";

/// Waits until so many requests have been counted, and no more.
async fn counted(proxy: &Harness, requests: u64) {
    let enough = async {
        while proxy.meter.count() < requests {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = tokio::time::timeout(PATIENCE, enough).await;
    assert_eq!(proxy.meter.count(), requests);
}

#[tokio::test]
async fn every_request_is_counted_answered_or_not() {
    let start = std::time::Instant::now();
    let two = [SELECT, SELECT].concat().leak();
    let proxy = Harness::start(
        protocol(),
        scripted(vec![
            (HELLO, WELCOME),
            (two, [ANSWER, ANSWER].concat().leak()),
            (SELECT, b""),
        ])
        .await,
    );
    // The last is never answered: the server closes.
    let answers = [ANSWER, ANSWER].concat();
    talk(&proxy, &[(HELLO, WELCOME), (two, &answers), (SELECT, b"")]).await;
    counted(&proxy, 3).await;
    // Nor is one that a rule loses, and the delay before it is no cost of the proxy's.
    let (at, pause) = (
        ("verb", Arg::Str("SELECT".into())),
        Arg::Str("300ms".into()),
    );
    proxy.arm("drop", &[]);
    proxy.arm("delay", &[at, ("delay", pause)]);
    talk(&proxy, &[(HELLO, WELCOME), (SELECT, b"")]).await;
    // It counts from when the request was read, and what the proxy spends before it begins to serve it is its own all the same: half of
    // it is left for that.
    let rest = start.elapsed() - Duration::from_millis(150);
    counted(&proxy, 4).await;
    // Compared with what was measured here, because a busy machine stretches both; the meter keeps three digits.
    let own = Duration::from_nanos(proxy.meter.max_ns());
    assert!(own <= rest + rest / 500, "{own:?} of {rest:?}");
}

#[tokio::test]
async fn events_say_what_was_asked_and_what_was_injected() {
    let proxy = Harness::start(
        protocol(),
        scripted(vec![(HELLO, WELCOME), (DENIED, REFUSED)]).await,
    );
    proxy.arm("error", &[("code", Arg::Str("disk_full".into()))]);
    proxy.arm("delay", &[("delay", Arg::Str("10ms".into()))]);
    let sql = format!("INSERT INTO orders VALUES ('{}')\0", "é".repeat(500));
    let query = [
        b"Q",
        &(sql.len() as u32 + 4).to_be_bytes()[..],
        sql.as_bytes(),
    ]
    .concat();
    let error = b"E\0\0\0\x25SERROR\0VERROR\0C53100\0Mdisk full\0\0Z\0\0\0\x05I";
    talk(&proxy, &[(HELLO, WELCOME), (&query, error)]).await;
    counted(&proxy, 1).await;
    let events = proxy.events.of_kind("proxy");
    let field = |i: usize, name: &str| events[i].fields[name].clone();
    assert_eq!((field(0, "delay_ms"), field(0, "code")), (10.into(), Null));
    assert_eq!(
        (field(1, "delay_ms"), field(1, "code")),
        (Null, "53100".into())
    );
    let shown = field(1, "query");
    assert_eq!(shown.as_str().unwrap().chars().count(), 200);
    assert!(
        shown
            .as_str()
            .unwrap()
            .starts_with("INSERT INTO orders VALUES ('éé")
    );
}

#[tokio::test]
async fn a_client_far_ahead_of_the_server_waits_and_still_sees_it_close() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Harness::start(protocol(), listener.local_addr().unwrap());
    let mut client = TcpStream::connect(proxy.addr).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(HELLO).await.unwrap();
    server.read_exact(&mut [0; 18]).await.unwrap();
    server.write_all(WELCOME).await.unwrap();
    client
        .read_exact(&mut vec![0; WELCOME.len()])
        .await
        .unwrap();
    let (mut hears, mut says) = client.into_split();
    // Twice as many Syncs as may be unanswered; the server reads and does not answer.
    let saying = tokio::spawn(async move { says.write_all(&b"S\0\0\0\x04".repeat(2 << 20)).await });
    let reading = async {
        let mut got = vec![0; 5 << 20];
        server.read_exact(&mut got).await.unwrap();
        // What else was in the same batch has passed, too.
        let more = async { while server.read(&mut got).await.unwrap() > 0 {} };
        let waits = tokio::time::timeout(Duration::from_millis(300), more).await;
        assert!(waits.is_err(), "the client must wait");
        drop(server);
        let _ = hears.read_to_end(&mut vec![]).await;
        let _ = saying.await;
    };
    tokio::time::timeout(PATIENCE, reading)
        .await
        .expect("the connection ends with the server");
}
