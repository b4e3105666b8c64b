//! tonic as the client: the same answers through the proxy as directly, and faults as its own `Status`.

#[allow(dead_code)]
#[path = "support/real.rs"]
mod programs;
mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use faultbox_contract::Arg;
use faultbox_engine::testing::{Harness, eventually};
use http::uri::PathAndQuery;
use programs::{grpcio, skip};
use support::{int, text};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::metadata::{KeyAndValueRef, MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// Longer than any call takes on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// What tonic takes by default, and no more: 4 MiB.
const LARGE: usize = 4 << 20;

/// Messages as they are: the server echoes bytes.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(src.copy_to_bytes(src.remaining())))
    }
}

/// What a generated client would be.
#[derive(Clone)]
struct Svc(Grpc<Channel>);

impl Svc {
    async fn connect(addr: SocketAddr) -> Svc {
        let channel = Channel::from_shared(format!("http://{addr}")).unwrap();
        Svc(Grpc::new(channel.connect().await.unwrap()))
    }

    async fn ready(&mut self) {
        self.0.ready().await.unwrap();
    }

    async fn unary(
        &mut self,
        method: &str,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Status> {
        self.ready().await;
        self.0.unary(request, path(method), Raw).await
    }

    /// The same of plain bytes.
    async fn call(&mut self, method: &str, body: &str) -> Result<String, Status> {
        let reply = self.unary(method, Request::new(owned(body))).await?;
        Ok(String::from_utf8_lossy(reply.get_ref()).into_owned())
    }

    async fn server_streaming(
        &mut self,
        method: &str,
        body: &str,
    ) -> Result<Streaming<Bytes>, Status> {
        self.ready().await;
        let request = Request::new(owned(body));
        let reply = self.0.server_streaming(request, path(method), Raw).await?;
        Ok(reply.into_inner())
    }

    async fn client_streaming(
        &mut self,
        method: &str,
        messages: Vec<Bytes>,
    ) -> Result<Response<Bytes>, Status> {
        self.ready().await;
        let request = Request::new(tokio_stream::iter(messages));
        self.0.client_streaming(request, path(method), Raw).await
    }

    async fn streaming(
        &mut self,
        method: &str,
        messages: Vec<Bytes>,
    ) -> Result<Streaming<Bytes>, Status> {
        self.ready().await;
        let request = Request::new(tokio_stream::iter(messages));
        let reply = self.0.streaming(request, path(method), Raw).await?;
        Ok(reply.into_inner())
    }
}

fn path(method: &str) -> PathAndQuery {
    format!("/test.Svc/{method}").parse().unwrap()
}

fn owned(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// All messages of a stream, by their sizes, then how it ended: its trailers or its status.
async fn drain(mut stream: Streaming<Bytes>) -> String {
    let mut sizes = vec![];
    loop {
        match stream.message().await {
            Ok(Some(message)) => sizes.push(message.len()),
            Ok(None) => {
                let trailers = stream.trailers().await.unwrap().unwrap_or_default();
                return format!("{sizes:?} {}", ours(&trailers));
            }
            Err(status) => return format!("{sizes:?} {}", shown(&status)),
        }
    }
}

/// The metadata that the tests have sent or the server has added on purpose, in order.
fn ours(map: &MetadataMap) -> String {
    let mut all: Vec<String> = map
        .iter()
        .map(|entry| match entry {
            KeyAndValueRef::Ascii(k, v) => format!("{k}={v:?}"),
            KeyAndValueRef::Binary(k, v) => format!("{k}={:?}", v.to_bytes().unwrap()),
        })
        .filter(|e| e.contains("x-") || e.starts_with("why"))
        .collect();
    all.sort();
    all.join(" ")
}

fn shown(status: &Status) -> String {
    format!(
        "{:?} {:?} {}",
        status.code(),
        status.message(),
        ours(status.metadata())
    )
}

fn outcome(result: Result<String, Status>) -> String {
    result.unwrap_or_else(|status| shown(&status))
}

/// What tonic says to all sorts of calls, a line each.
async fn battery(addr: SocketAddr) -> Vec<String> {
    tokio::time::timeout(3 * DEADLINE, everything(addr))
        .await
        .expect("it does not hang")
}

async fn everything(addr: SocketAddr) -> Vec<String> {
    let mut svc = Svc::connect(addr).await;
    let mut said = vec![];

    let mut request = Request::new(owned("hello"));
    request
        .metadata_mut()
        .insert("x-text", "some words".parse().unwrap());
    let binary = MetadataValue::from_bytes(&[0, 255, 7]);
    request.metadata_mut().insert_bin("x-some-bin", binary);
    let reply = svc.unary("Unary", request).await.unwrap();
    said.push(format!(
        "unary {:?} {}",
        reply.get_ref(),
        ours(reply.metadata())
    ));

    let large: Bytes = (0..LARGE).map(|i| (i % 251) as u8).collect();
    let reply = svc.unary("Unary", Request::new(large.clone())).await;
    said.push(format!("large {}", *reply.unwrap().get_ref() == large));
    let larger = Bytes::from(vec![7; LARGE + 1]);
    let refused = svc.unary("Unary", Request::new(larger)).await.unwrap_err();
    said.push(format!("too large {}", shown(&refused)));

    let stream = svc.server_streaming("Stream", "20 100000").await.unwrap();
    said.push(format!("stream {}", drain(stream).await));
    let none = svc.server_streaming("Stream", "0 0").await.unwrap();
    said.push(format!("no message {}", drain(none).await));

    let messages = vec![Bytes::from(vec![1; 10_000]); 100];
    let sum = svc.client_streaming("Collect", messages.clone()).await;
    said.push(format!("collect {:?}", sum.unwrap().get_ref()));
    let chat = svc.streaming("Chat", messages).await.unwrap();
    said.push(format!("chat {}", drain(chat).await));

    // The server answers with its trailers alone.
    said.push(format!("fail {}", outcome(svc.call("Fail", "").await)));
    said.push(format!("none {}", outcome(svc.call("None", "").await)));

    let mut slow = Request::new(owned("30"));
    slow.set_timeout(Duration::from_millis(300));
    let late = svc.unary("Slow", slow).await.unwrap_err();
    // The server's clock or tonic's own, whichever is first.
    let over = matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled);
    said.push(format!("deadline {over}"));

    let mut endless = svc.server_streaming("Endless", "").await.unwrap();
    for _ in 0..3 {
        assert!(endless.message().await.unwrap().is_some());
    }
    drop(endless);
    said.push(format!(
        "after a cancellation {}",
        outcome(svc.call("Unary", "on").await)
    ));

    let calls: Vec<_> = (0..50)
        .map(|i| {
            let mut svc = svc.clone();
            tokio::spawn(async move { svc.call("Unary", &i.to_string()).await.unwrap() })
        })
        .collect();
    for (i, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap(), i.to_string());
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_through_the_proxy_as_directly() {
    if skip(&["grpcio"]) {
        return;
    }
    let server = grpcio("tonic-battery");
    let proxy = Harness::start(faultbox_http2::grpc(), server.addr);
    let direct = battery(server.addr).await;
    let idle = battery(proxy.addr).await;
    assert_eq!(direct, idle);
    for (line, part) in [
        (
            0,
            r#"unary b"hello" initial-x-some-bin=b"\0\xff\x07" initial-x-text="some words" trailing-x-some-bin"#,
        ),
        (1, "large true"),
        (2, "OutOfRange"),
        (
            7,
            r#"fail FailedPrecondition "größer als 100 %" why-bin=b"\0\xff""#,
        ),
        (8, "none Unimplemented"),
        (9, "deadline true"),
    ] {
        assert!(direct[line].contains(part), "{}", direct[line]);
    }
    // The last are counted when their answers have gone.
    eventually("every call is counted", || proxy.meter.count() > 60).await;
    // What the proxy reads more closely once rules are armed must not show either.
    let other = proxy.arm("error", &[("method", text("/other.Svc/*"))]);
    proxy.arm(
        "drop",
        &[
            ("method", text("/test.Svc/*")),
            ("messages", int(1_000_000)),
        ],
    );
    assert_eq!(battery(proxy.addr).await, direct);
    assert_eq!(other.matched(), 0);
    assert_eq!(proxy.events.all().len(), 0, "{:?}", proxy.events.all());
}

/// Rules are armed on a live channel.
#[tokio::test(flavor = "multi_thread")]
async fn faults_arrive_as_its_own_status() {
    if skip(&["grpcio"]) {
        return;
    }
    let server = grpcio("tonic-faults");
    let proxy = Harness::start(faultbox_http2::grpc(), server.addr);
    let mut svc = Svc::connect(proxy.addr).await;
    assert_eq!(svc.call("Unary", "before").await.unwrap(), "before");

    let method = |name: &str| ("method", text(&format!("/test.Svc/{name}")));
    proxy.arm("error", &[method("Create")]);
    let status = svc.call("Create", "").await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "fault injected")
    );

    proxy.arm("error", &[method("Retried"), ("times", int(2))]);
    for _ in 0..2 {
        let status = svc.call("Retried", "").await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
    }
    assert_eq!(
        svc.call("Retried", "in the end").await.unwrap(),
        "in the end"
    );

    // Every code is tonic's own, by number and by name.
    for number in 1..=16 {
        let busy = proxy.arm("error", &[method("Busy"), ("code", int(number))]);
        let status = svc.call("Busy", "").await.unwrap_err();
        assert_eq!(status.code(), Code::from(number as i32), "{number}");
        proxy.rules.lift(busy.id);
    }
    let words = "größer als 100 %";
    proxy.arm(
        "error",
        &[
            method("Busy"),
            ("code", text("RESOURCE_EXHAUSTED")),
            ("message", text(words)),
        ],
    );
    let status = svc.call("Busy", "").await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::ResourceExhausted, words)
    );
    assert_eq!(status.details(), b"");

    proxy.arm("drop", &[method("Dropped")]);
    let status = svc.call("Dropped", "").await.unwrap_err();
    // tonic tells nothing more apart when a stream is reset before its answer begins.
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unknown, "transport error")
    );
    assert!(
        format!("{status:?}").contains("INTERNAL_ERROR"),
        "{status:?}"
    );

    let long = Arg::Duration(2 * DEADLINE);
    proxy.arm("delay", &[method("Delayed"), ("delay", long)]);
    let mut request = Request::new(Bytes::new());
    request.set_timeout(Duration::from_millis(300));
    let status = svc.unary("Delayed", request).await.unwrap_err();
    // tonic's own clock ends the call, and says so by this code.
    assert_eq!(
        (status.code(), status.message()),
        (Code::Cancelled, "Timeout expired")
    );

    proxy.arm(
        "error",
        &[
            method("Broken"),
            ("messages", int(4)),
            ("code", text("DATA_LOSS")),
            ("message", text("torn")),
        ],
    );
    let broken = svc.server_streaming("Broken", "50 5000").await.unwrap();
    assert_eq!(
        drain(broken).await,
        r#"[5002, 5002, 5002, 5002] DataLoss "torn" "#
    );

    // Other methods of the same connection go on.
    let chat = svc.streaming("Chat", vec![Bytes::from_static(b"abc"); 3]);
    assert_eq!(drain(chat.await.unwrap()).await, "[3, 3, 3] ");
    assert_eq!(proxy.degradations(), [""; 0]);
}

/// What is done to replies, and answers in plain HTTP.
#[tokio::test(flavor = "multi_thread")]
async fn replies_that_are_cut_slowed_or_changed_arrive_so() {
    if skip(&["grpcio"]) {
        return;
    }
    let server = grpcio("tonic-replies");
    let proxy = Harness::start(faultbox_http2::grpc(), server.addr);
    let mut svc = Svc::connect(proxy.addr).await;
    let method = |name: &str| ("method", text(&format!("/test.Svc/{name}")));

    // Three messages of 5 + 5002 bytes and the beginning of a fourth.
    let bytes = int(3 * 5007 + 100);
    let cut = proxy.arm("truncate", &[method("Broken"), ("bytes", bytes)]);
    let mut broken = svc.server_streaming("Broken", "10 5000").await.unwrap();
    for _ in 0..3 {
        assert_eq!(broken.message().await.unwrap().unwrap().len(), 5002);
    }
    let status = broken.message().await.unwrap_err();
    // hyper hides the reset from tonic, which maps codes of HTTP/2 only where it sees them.
    assert_eq!(status.code(), Code::Unknown, "{status:?}");
    assert!(
        format!("{status:?}").contains("INTERNAL_ERROR"),
        "{status:?}"
    );
    assert_eq!(cut.hits(), 1);

    let changed = proxy.arm("corrupt", &[method("Create"), ("offset", int(4))]);
    let reply = svc.unary("Create", Request::new(owned("hello"))).await;
    assert_eq!(reply.unwrap().get_ref()[..], *b"hell\x90");
    assert_eq!(changed.hits(), 1);

    let slow = proxy.arm("throttle", &[method("Retried"), ("rate", text("100KB/s"))]);
    let start = Instant::now();
    let big = "abcd".repeat(10_000);
    assert_eq!(svc.call("Retried", &big).await.unwrap(), big);
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(slow.hits(), 1);

    for (http, code) in [
        (400, Code::Internal),
        (401, Code::Unauthenticated),
        (403, Code::PermissionDenied),
        (404, Code::Unimplemented),
        (429, Code::Unavailable),
        (500, Code::Unknown),
        (503, Code::Unavailable),
    ] {
        let rule = proxy.arm("response", &[method("Busy"), ("status", int(http))]);
        let status = svc.call("Busy", "").await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(&http.to_string()), "{status:?}");
        assert_eq!(rule.hits(), 1);
        proxy.rules.lift(rule.id);
    }
    assert_eq!(svc.call("Unary", "after").await.unwrap(), "after");
    assert_eq!(proxy.degradations(), [""; 0]);
}

/// The connection is lost under a call, and the channel makes another for the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_is_an_error_of_transport_and_the_channel_comes_back() {
    if skip(&["grpcio"]) {
        return;
    }
    let server = grpcio("tonic-reset");
    let proxy = Harness::start(faultbox_http2::grpc(), server.addr);
    let mut svc = Svc::connect(proxy.addr).await;
    let mut held = svc.server_streaming("Endless", "").await.unwrap();
    assert!(held.message().await.unwrap().is_some());
    proxy.arm(
        "reset",
        &[("method", text("/test.Svc/Create")), ("times", int(1))],
    );
    let status = svc.call("Create", "").await.unwrap_err();
    assert!(
        matches!(status.code(), Code::Unknown | Code::Unavailable),
        "{status:?}"
    );
    // So is everything else on the connection.
    let held = tokio::time::timeout(DEADLINE, async {
        loop {
            match held.message().await {
                Ok(Some(_)) => {}
                other => return other,
            }
        }
    });
    assert!(held.await.unwrap().is_err());
    // A call that comes before the channel has noticed is lost with the connection, too.
    let again = tokio::time::timeout(DEADLINE, async {
        loop {
            match svc.call("Create", "again").await {
                Err(status) if status.code() == Code::Cancelled => {}
                other => return other,
            }
        }
    });
    assert_eq!(again.await.unwrap().unwrap(), "again");
    assert_eq!(proxy.fired(), 1);
}
