//! The steps of specs, the readiness probe, and what the tables refuse.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faultbox_contract::{Arg, ArgError, Endpoint, Kept, Response, RuleSpec};
use faultbox_engine::testing::free_addr;
use faultbox_engine::{is_quiet, reset};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(30);

fn endpoint(addr: SocketAddr) -> Endpoint {
    Endpoint {
        kept: None,
        addr,
        host: "localhost".into(),
        env: Arc::new(BTreeMap::new()),
        attempt: DEADLINE,
        addresses: Arc::default(),
        tls: None,
    }
}

async fn step(addr: SocketAddr, name: &str, args: &[(&str, Arg)]) -> Result<Response, ArgError> {
    let protocol = faultbox_http::protocol();
    let keywords = args
        .iter()
        .map(|(n, a)| ((*n).to_owned(), a.clone()))
        .collect();
    let call = protocol.doc().check_step(name, vec![], keywords)?;
    timeout(DEADLINE, protocol.step(endpoint(addr), call))
        .await
        .expect("a step ends")
}

/// What a scripted server does with its one connection after it has read `expects` bytes' worth of request.
enum Then {
    Say(&'static str),
    SayAndClose(&'static str),
    Reset,
    Nothing,
}

/// Serves one connection and returns what the client sent.
async fn once(then: Then) -> (SocketAddr, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let got = read_request(&mut socket).await;
        match then {
            Then::Say(text) => {
                socket.write_all(text.as_bytes()).await.unwrap();
                // Wait for the client, which must know by itself that the reply is complete.
                let _ = timeout(DEADLINE, socket.read(&mut [0; 16])).await;
            }
            Then::SayAndClose(text) => socket.write_all(text.as_bytes()).await.unwrap(),
            Then::Reset => reset(socket),
            Then::Nothing => {
                let _ = timeout(DEADLINE, socket.read(&mut [0; 16])).await;
            }
        }
        got
    });
    (addr, serving)
}

/// Head and, by Content-Length, body.
async fn read_request(socket: &mut TcpStream) -> String {
    let mut got = String::new();
    loop {
        if let Some((head, body)) = got.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|l| l.strip_prefix("Content-Length: "))
                .map_or(0, |n| n.parse().unwrap());
            if body.len() >= length {
                return got;
            }
        }
        let mut bytes = [0; 1024];
        let n = socket.read(&mut bytes).await.unwrap();
        assert_ne!(n, 0, "the request ended early: {got}");
        got.push_str(&String::from_utf8_lossy(&bytes[..n]));
    }
}

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

fn dict(value: serde_json::Value) -> Arg {
    Arg::Json(value)
}

#[tokio::test]
async fn requests_say_what_they_were_told() {
    let ok = "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 8\r\n\r\n{\"id\":7}";
    let (addr, serving) = once(Then::Say(ok)).await;
    let reply = step(
        addr,
        "post",
        &[
            ("path", text("/orders é?x=1")),
            ("json", dict(json!({"sku": "a"}))),
            (
                "headers",
                dict(json!({"X-Tenant": "acme", "accept": "text/plain"})),
            ),
            ("query", dict(json!({"q": "a b&c"}))),
        ],
    )
    .await
    .unwrap();
    assert!(reply.ok);
    assert_eq!(
        (reply.status, reply.code.as_str(), reply.error.as_str()),
        (201, "", "")
    );
    assert_eq!(reply.data, json!({"id": 7}));
    assert_eq!(reply.body, "{\"id\":7}");
    let values: Vec<_> = reply
        .headers
        .iter()
        .filter(|(n, _)| n == "X-A")
        .map(|(_, v)| v.as_str())
        .collect();
    assert_eq!(values, ["1", "2"]);
    assert_eq!(
        serving.await.unwrap(),
        format!(
            "POST /orders%20%C3%A9?x=1&q=a%20b%26c HTTP/1.1\r\nHost: localhost:{}\r\nUser-Agent: faultbox\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: 11\r\nX-Tenant: acme\r\naccept: text/plain\r\n\r\n{{\"sku\":\"a\"}}",
            addr.port()
        )
    );
}

#[tokio::test]
async fn replies_of_every_framing_are_read() {
    for (reply, close, status, body) in [
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x\r\nllo\r\n0\r\nT: 1\r\n\r\n",
            false,
            200,
            "hello",
        ),
        ("HTTP/1.0 200 OK\r\n\r\nto the end", true, 200, "to the end"),
        ("HTTP/1.1 204 No Content\r\n\r\n", false, 204, ""),
        (
            "HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
            false,
            302,
            "",
        ),
    ] {
        let then = if close {
            Then::SayAndClose(reply)
        } else {
            Then::Say(reply)
        };
        let (addr, _serving) = once(then).await;
        let got = step(addr, "get", &[]).await.unwrap();
        assert_eq!(
            (got.ok, got.status, got.body.as_str()),
            (true, status, body),
            "{got:?}"
        );
    }
    let (addr, _serving) = once(Then::Say("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")).await;
    assert!(step(addr, "head", &[]).await.unwrap().ok);
}

#[tokio::test]
async fn failures_are_values() {
    let (addr, _s) = once(Then::Say(
        "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nslow",
    ))
    .await;
    let got = step(addr, "get", &[]).await.unwrap();
    assert_eq!((got.ok, got.status, got.code.as_str()), (false, 429, "429"));
    assert_eq!(
        (got.error.as_str(), got.data),
        ("429 Too Many Requests", json!("slow"))
    );

    let (addr, _s) = once(Then::SayAndClose(
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart",
    ))
    .await;
    let got = step(addr, "get", &[]).await.unwrap();
    assert_eq!(
        (got.ok, got.status, got.code.as_str(), got.body.as_str()),
        (false, 200, "EOF", "part")
    );

    for (then, code) in [
        (Then::SayAndClose(""), "EOF"),
        (Then::Reset, "ECONNRESET"),
        (Then::Nothing, "ETIMEDOUT"),
        (Then::SayAndClose("SSH-2.0-x\r\n"), "EPROTO"),
    ] {
        // Only what never comes is waited for in vain.
        let patience = text(if code == "ETIMEDOUT" { "300ms" } else { "30s" });
        let (addr, _s) = once(then).await;
        let got = step(addr, "get", &[("timeout", patience)]).await.unwrap();
        assert_eq!(
            (got.ok, got.status, got.code.as_str()),
            (false, 0, code),
            "{got:?}"
        );
        assert!(!got.error.is_empty());
    }
    let refused = step(free_addr(), "get", &[]).await.unwrap();
    assert_eq!(refused.code, "ECONNREFUSED");
}

#[tokio::test]
async fn a_large_body_does_not_deadlock_with_an_early_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket
            .write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            .await
            .unwrap();
        // Never reads.
        std::future::pending::<()>().await;
    });
    let body = Arg::Bytes(vec![0; 32 << 20]);
    let got = step(addr, "put", &[("body", body)]).await.unwrap();
    assert_eq!(got.status, 413);
}

#[tokio::test]
async fn ready_means_any_answer_below_500() {
    let protocol = faultbox_http::protocol();
    for (reply, ready) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", true),
        (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
            false,
        ),
    ] {
        let (addr, _serving) = once(Then::Say(reply)).await;
        assert_eq!(
            protocol.ready(endpoint(addr)).await.is_ok(),
            ready,
            "{reply}"
        );
    }
    let (addr, _serving) = once(Then::Nothing).await;
    let short = Endpoint {
        attempt: Duration::from_millis(500),
        ..endpoint(addr)
    };
    let error = protocol.ready(short).await.unwrap_err();
    assert!(error.contains("500ms"), "{error}");
}

#[tokio::test]
async fn misuse_of_steps_is_an_error_that_names_the_argument() {
    let addr = "127.0.0.1:9".parse().unwrap();
    for (args, arg) in [
        (vec![("path", text("orders"))], "path"),
        (vec![("path", text("http://x/"))], "path"),
        (vec![("body", text("a")), ("json", dict(json!({})))], "json"),
        (vec![("headers", dict(json!({"a b": "c"})))], "headers"),
        (
            vec![("headers", dict(json!({"A": "b\r\nC: d"})))],
            "headers",
        ),
        (
            vec![("headers", dict(json!({"content-length": "3"})))],
            "headers",
        ),
        (vec![("pth", text("/"))], "pth"),
    ] {
        let error = step(addr, "post", &args).await.unwrap_err();
        assert_eq!(error.arg.as_deref(), Some(arg), "{error}");
    }
}

#[test]
fn misuse_of_rules_is_an_error_that_names_the_argument() {
    let protocol = faultbox_http::protocol();
    for (action, args, arg) in [
        (
            "error",
            vec![("body", text("a")), ("message", text("b"))],
            "message",
        ),
        (
            "response",
            vec![("body", text("a")), ("json", dict(json!({})))],
            "json",
        ),
        (
            "response",
            vec![("status", Arg::Int(204)), ("body", text("a"))],
            "status",
        ),
        ("response", vec![("status", Arg::Int(100))], "status"),
        ("response", vec![("when", text("during"))], "when"),
        (
            "response",
            vec![("headers", dict(json!({"Content-Length": "1"})))],
            "headers",
        ),
        (
            "error",
            vec![("headers", dict(json!({"X": "a\nb"})))],
            "headers",
        ),
        (
            "drop",
            vec![("body", text("a")), ("request_body", text("a"))],
            "request_body",
        ),
        ("drop", vec![("path", text("/a[bc"))], "path"),
        ("drop", vec![("path", text("/x?y=1"))], "path"),
        ("drop", vec![("path", text("/x?y=1&z=*"))], "path"),
        ("drop", vec![("method", text("GTE"))], "method"),
        ("drop", vec![("method", text("GET,PUT"))], "method"),
        (
            "delay",
            vec![("delay", text("1s")), ("topic", text("x"))],
            "topic",
        ),
    ] {
        let spec = RuleSpec {
            action: action.into(),
            args: args
                .iter()
                .map(|(n, a)| ((*n).to_owned(), a.clone()))
                .collect(),
        };
        let error = protocol
            .doc()
            .check_rule(&spec)
            .and_then(|rule| protocol.compile(&rule).map(|_| ()))
            .unwrap_err();
        assert_eq!(error.arg.as_deref(), Some(arg), "{action}: {error}");
    }
}

#[tokio::test]
async fn a_caller_that_keeps_its_connection_connects_again_only_if_it_must() {
    const KEPT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    const LAST: &str = "HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nok";
    const MORE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok?";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        // What each connection answers to its requests; then it is closed.
        for answers in [&[KEPT, KEPT, LAST][..], &[KEPT, MORE], &[KEPT], &[KEPT]] {
            let (mut socket, _) = listener.accept().await.unwrap();
            for answer in answers {
                let request = read_request(&mut socket).await;
                assert!(!request.contains("Connection"), "{request}");
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        }
        listener
    });
    let caller = Endpoint {
        kept: Some(Kept::default()),
        ..endpoint(addr)
    };
    let protocol = faultbox_http::protocol();
    let get = async |keywords: Vec<(String, Arg)>| {
        let call = protocol.doc().check_step("get", vec![], keywords).unwrap();
        let asked = protocol.step(caller.clone(), call);
        timeout(DEADLINE, asked).await.unwrap().unwrap()
    };
    for _ in 0..5 {
        let response = get(vec![]).await;
        assert!(response.ok, "{}", response.error);
        assert_eq!(response.body, "ok");
    }
    timeout(DEADLINE, protocol.ready(caller.clone()))
        .await
        .unwrap()
        .unwrap();
    // Closed meanwhile: the kernel knows of it before anything is sent.
    let deadline = Instant::now() + DEADLINE;
    let quiet = || {
        let kept = caller.take_kept::<TcpStream>("").unwrap();
        let quiet = is_quiet(&kept);
        caller.keep("", kept);
        quiet
    };
    while quiet() {
        assert!(Instant::now() < deadline, "the server closes");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(get(vec![]).await.ok);
    let listener = timeout(DEADLINE, serving).await.unwrap().unwrap();

    // A spec that says itself what becomes of the connection.
    let serving = tokio::spawn(async move {
        for _ in 0..2 {
            let (mut socket, _) = listener.accept().await.unwrap();
            let request = read_request(&mut socket).await;
            assert!(request.contains("connection: close"), "{request}");
            socket.write_all(KEPT.as_bytes()).await.unwrap();
        }
    });
    let headers = Arg::Json(json!({"connection": "close"}));
    for _ in 0..2 {
        assert!(get(vec![("headers".into(), headers.clone())]).await.ok);
    }
    timeout(DEADLINE, serving).await.unwrap().unwrap();
}
