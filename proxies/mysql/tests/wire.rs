//! What no real server would do, or not on demand: TLS, garbage, dying in mid-reply. The server here is a script.

use std::net::SocketAddr;

use faultbox_engine::testing::{Harness, PATIENCE};
use faultbox_mysql::protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A greeting with PROTOCOL_41, SSL, SECURE_CONNECTION and PLUGIN_AUTH.
const GREETING: &[u8] = b"\x3e\0\0\0\x0a5.7\0\x01\0\0\0abcdefgh\0\x08\x8a\x2d\x02\0\x08\0\x15\0\0\0\0\0\0\0\0\0\0ijklmnopqrst\0mysql_native\0";
/// PROTOCOL_41 and SECURE_CONNECTION: ann, without a password.
const HELLO: &[u8] =
    b"\x25\0\0\x01\0\x82\0\0\0\0\0\x01\x2d\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0ann\0\0";
const SSL_REQUEST: &[u8] =
    b"\x20\0\0\x01\0\x8a\0\0\0\0\0\x01\x2d\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const LOGGED_IN: &[u8] = b"\x07\0\0\x02\0\0\0\x02\0\0\0";
const OK: &[u8] = b"\x07\0\0\x01\0\0\0\x02\0\0\0";
const QUERY: &[u8] = b"\x09\0\0\0\x03SELECT 1";

/// A server that greets, reads exactly what it is told, answers, and goes on; then it closes.
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
        (b"", GREETING),
        (SSL_REQUEST, b""),
        (b"\x16\x03\x01 hello", b"\x16\x03\x03 done"),
        (b"\xff\xff\xff\xff\xff", b"anything"),
    ];
    let proxy = Harness::start(protocol(), scripted(script.clone()).await);
    talk(&proxy, &script).await;
    assert_eq!(proxy.events.all().len(), 0);
    proxy.arm("drop", &[]);
    talk(&proxy, &script).await;
    talk(&proxy, &script).await;
    let degraded = proxy.degradations();
    assert_eq!(degraded.len(), 1, "{degraded:?}");
    assert!(degraded[0].contains("ssl-mode=DISABLED"), "{degraded:?}");
    assert_eq!(proxy.fired(), 0);
}

#[tokio::test]
async fn what_is_not_the_protocol_passes_with_one_event() {
    for (script, why) in [
        // Another server, which the client knows.
        (
            vec![
                (&b""[..], &b"SSH-2.0-OpenSSH\r\n"[..]),
                (b"SSH-2.0-x\r\n", b"more"),
            ],
            "begins with no greeting",
        ),
        (vec![(b"", b"\x05\0\0\0\x09old\0")], "protocol version 9"),
        // A client that speaks first.
        (
            vec![(
                b"GET / HTTP/1.1\r\n\r\n",
                b"HTTP/1.1 400 Bad Request\r\n\r\n",
            )],
            "before the server does",
        ),
        // A client of before 4.1.
        (
            vec![(b"", GREETING), (b"\x08\0\0\x01\x05\0\0\0\0ann", b"\x01")],
            "4.1",
        ),
        // A command with another number than 0.
        (
            vec![
                (b"", GREETING),
                (HELLO, LOGGED_IN),
                (b"\x01\0\0\x05\x0e", b"?"),
            ],
            "where a command begins",
        ),
        (
            vec![
                (b"", GREETING),
                (HELLO, LOGGED_IN),
                (b"\x01\0\0\0\x77", b"?"),
            ],
            "unknown command",
        ),
        // An answer that nobody has asked for.
        (
            vec![(b"", GREETING), (HELLO, LOGGED_IN), (b"", OK)],
            "nothing that was asked",
        ),
    ] {
        let proxy = Harness::start(protocol(), scripted(script.clone()).await);
        talk(&proxy, &script).await;
        let degraded = proxy.degradations();
        assert_eq!(degraded.len(), 1, "{why}: {degraded:?}");
        assert!(degraded[0].contains(why), "{why}: {degraded:?}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_or_leaves_says_so_to_the_client() {
    let full = b"\x17\0\0\0\xff\x10\x04Too many connections";
    let killed = b"\x10\0\0\x01\xff\x87\x07#70100killed.";
    for script in [
        vec![(&b""[..], &full[..])],
        // An idle session is killed: nobody has asked for that error.
        vec![(b"", GREETING), (HELLO, LOGGED_IN), (b"", killed)],
        // It dies in mid-reply.
        vec![
            (b"", GREETING),
            (HELLO, LOGGED_IN),
            (QUERY, b"\x01\0\0\x01\x01\x17\0\0"),
        ],
        // A login that fails.
        vec![(b"", GREETING), (HELLO, b"\x09\0\0\x02\xff\x15\x04#28000")],
        // A plugin asks for more.
        vec![
            (b"", GREETING),
            (HELLO, b"\x07\0\0\x02\xfexyz\0ab"),
            (b"\x02\0\0\x03hi", b"\x07\0\0\x04\0\0\0\x02\0\0\0"),
            (QUERY, OK),
        ],
    ] {
        let proxy = Harness::start(protocol(), scripted(script.clone()).await);
        let rule = proxy.arm(
            "drop",
            &[("user", faultbox_contract::Arg::Str("bob".into()))],
        );
        talk(&proxy, &script).await;
        assert_eq!(proxy.events.all().len(), 0, "{:?}", proxy.events.all());
        assert_eq!(rule.matched(), 0);
    }
}

#[tokio::test]
async fn commands_in_a_pipeline_get_their_own_answers() {
    let both: &[u8] = b"\x09\0\0\0\x03SELECT 1\x01\0\0\0\x0e\x09\0\0\0\x03SELECT 2";
    // In place of the first: a DO 0; the others as they are.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Harness::start(protocol(), listener.local_addr().unwrap());
    proxy.arm(
        "response",
        &[("query", faultbox_contract::Arg::Str("SELECT 1".into()))],
    );
    let mut client = TcpStream::connect(proxy.addr).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    let exchange = async {
        server.write_all(GREETING).await.unwrap();
        client
            .read_exact(&mut vec![0; GREETING.len()])
            .await
            .unwrap();
        client.write_all(HELLO).await.unwrap();
        server.read_exact(&mut vec![0; HELLO.len()]).await.unwrap();
        server.write_all(LOGGED_IN).await.unwrap();
        client
            .read_exact(&mut vec![0; LOGGED_IN.len()])
            .await
            .unwrap();
        client.write_all(both).await.unwrap();
        let mut seen = vec![];
        while !seen.ends_with(b"SELECT 2") {
            let mut part = [0; 256];
            let n = server.read(&mut part).await.unwrap();
            assert_ne!(n, 0, "{seen:?}");
            seen.extend(&part[..n]);
        }
        assert!(seen[5..].starts_with(b"DO 0"), "{seen:?}");
        server.write_all(&[OK, OK, OK].concat()).await.unwrap();
        let mut answers = vec![];
        while !answers.ends_with(&[OK, OK].concat()) {
            let mut part = [0; 256];
            let n = client.read(&mut part).await.unwrap();
            assert_ne!(n, 0, "{answers:?}");
            answers.extend(&part[..n]);
        }
        // One column, no rows.
        assert_eq!(answers[..5], [1, 0, 0, 1, 1], "{answers:?}");
    };
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .expect("an answer");
    assert_eq!(proxy.degradations(), [""; 0]);
}
