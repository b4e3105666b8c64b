//! Real clients against real servers, directly and through the proxy: what they print must be the same. Then what they make of
//! faults.

#[path = "support/real.rs"]
mod programs;
mod support;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use faultbox_contract::{Arg, Endpoint, Kept, Protocol};
use faultbox_engine::testing::Harness;
use programs::{
    Server, battery, etcd, etcdctl, faults, grpcio, nghttpd, nghttpx, python, run, skip,
};
use support::{int, text};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

/// What `say` prints is the same through the proxy as directly, and the proxy has nothing to remark.
async fn same(
    protocol: &'static dyn Protocol,
    server: &Server,
    lines: usize,
    say: impl Fn(SocketAddr) -> String + Send + 'static,
) -> Harness {
    let proxy = Harness::start(protocol, server.addr);
    let (direct, through) = (server.addr, proxy.addr);
    let (direct, through) = tokio::task::spawn_blocking(move || (say(direct), say(through)))
        .await
        .unwrap();
    assert_eq!(direct, through);
    assert!(direct.lines().count() >= lines, "{direct}");
    assert_eq!(proxy.events.all().len(), 0, "{:?}", proxy.events.all());
    assert!(proxy.meter.count() > 0);
    proxy
}

#[tokio::test]
async fn grpcio_lives_as_ever() {
    if skip(&["grpcio"]) {
        return;
    }
    let server = grpcio("grpcio-battery");
    let say = |addr| battery("grpcio_client.py", addr);
    let proxy = same(faultbox_http2::grpc(), &server, 17, say).await;
    assert!(proxy.meter.count() > 300);
}

#[tokio::test]
async fn grpc_js_lives_as_ever() {
    if skip(&["grpcio", "grpc-js"]) {
        return;
    }
    let server = grpcio("grpc-js-battery");
    let say = |addr| battery("grpc_js.js", addr);
    same(faultbox_http2::grpc(), &server, 13, say).await;
}

/// Rules that match nothing leave a client alone, too: its header blocks are read now.
#[tokio::test]
async fn grpcio_does_not_notice_rules_for_others() {
    if skip(&["grpcio"]) {
        return;
    }
    let server = grpcio("grpcio-others");
    let proxy = Harness::start(faultbox_http2::grpc(), server.addr);
    proxy.arm("error", &[("method", text("/other.Svc/*"))]);
    proxy.arm(
        "drop",
        &[
            ("method", text("/test.Svc/*")),
            ("messages", int(1_000_000)),
        ],
    );
    let (direct, through) = (server.addr, proxy.addr);
    let say = |addr| battery("grpcio_client.py", addr);
    let (direct, through) = tokio::task::spawn_blocking(move || (say(direct), say(through)))
        .await
        .unwrap();
    assert_eq!(direct, through);
    assert_eq!(proxy.events.all().len(), 0, "{:?}", proxy.events.all());
}

/// The same faults for every client, armed on its live connection.
fn arm(proxy: &Harness) {
    let method = |name: &str| ("method", text(&format!("/test.Svc/{name}")));
    proxy.arm("error", &[method("Create")]);
    proxy.arm("error", &[method("Retried"), ("times", int(2))]);
    proxy.arm(
        "error",
        &[
            method("Busy"),
            ("code", text("RESOURCE_EXHAUSTED")),
            ("message", text("größer als 100 %")),
        ],
    );
    proxy.arm("drop", &[method("Dropped")]);
    let long = Arg::Duration(Duration::from_secs(120));
    proxy.arm("delay", &[method("Delayed"), ("delay", long)]);
    proxy.arm(
        "error",
        &[
            method("Broken"),
            ("messages", int(4)),
            ("code", text("DATA_LOSS")),
            ("message", text("torn")),
        ],
    );
}

/// Runs a client's script in this mode, `arm`s when it is ready, and compares what it prints then and how many rules have fired.
async fn faulted(
    script: &'static str,
    mode: &'static str,
    arm: impl FnOnce(&Harness) + Send + 'static,
    expected: &[&str],
    fired: usize,
) {
    let server = grpcio(&format!("{script}-{mode}"));
    let proxy = Arc::new(Harness::start(faultbox_http2::grpc(), server.addr));
    let arming = proxy.clone();
    let output =
        tokio::task::spawn_blocking(move || faults(script, mode, arming.addr, || arm(&arming)))
            .await
            .unwrap();
    assert_eq!(output.lines().collect::<Vec<_>>(), expected, "\n{output}");
    assert_eq!(proxy.degradations(), Vec::<String>::new());
    assert_eq!(proxy.fired(), fired);
}

#[tokio::test]
async fn grpcio_raises_its_own_errors() {
    if skip(&["grpcio"]) {
        return;
    }
    faulted(
        "grpcio_client.py",
        "faults",
        arm,
        &[
            "create True True fault injected",
            "other b'works'",
            "retried b'in the end'",
            "busy ('RESOURCE_EXHAUSTED', 'größer als 100 %')",
            "dropped INTERNAL",
            "delayed DEADLINE_EXCEEDED",
            "broken ('DATA_LOSS', 'torn') [5002, 5002, 5002, 5002]",
            "meanwhile [b'0', b'1', b'2'] False",
            "held CANCELLED",
            "afterwards 2500000",
        ],
        8,
    )
    .await;
}

#[tokio::test]
async fn grpc_js_raises_its_own_errors() {
    if skip(&["grpcio", "grpc-js"]) {
        return;
    }
    faulted(
        "grpc_js.js",
        "faults",
        arm,
        &[
            "create UNAVAILABLE fault injected",
            "other works",
            "retried in the end",
            "busy RESOURCE_EXHAUSTED größer als 100 %",
            "dropped INTERNAL",
            "delayed DEADLINE_EXCEEDED",
            "broken DATA_LOSS torn 5002,5002,5002,5002",
            "meanwhile 0,1,2 false",
            "held CANCELLED",
            "afterwards 50 2500140",
        ],
        8,
    )
    .await;
}

/// What is done to replies, and answers in plain HTTP, on the client's live connection.
fn arm_replies(proxy: &Harness) {
    let method = |name: &str| ("method", text(&format!("/test.Svc/{name}")));
    // Three messages of 5 + 5002 bytes and the beginning of a fourth.
    let bytes = int(3 * 5007 + 100);
    proxy.arm("truncate", &[method("Broken"), ("bytes", bytes)]);
    proxy.arm("corrupt", &[method("Create"), ("offset", int(1))]);
    proxy.arm(
        "throttle",
        &[
            ("path", text("/test.Svc/{Retried,Stream}")),
            ("rate", text("100KB/s")),
        ],
    );
    for (name, status) in [
        ("Busy", 503),
        ("Dropped", 403),
        ("Delayed", 404),
        ("Chat", 500),
    ] {
        proxy.arm("response", &[method(name), ("status", int(status))]);
    }
    proxy.arm("reset", &[method("Fail"), ("times", int(1))]);
}

/// In the names of gRPC's own page, "HTTP to gRPC Status Code Mapping".
#[tokio::test]
async fn grpcio_makes_its_own_of_what_is_done_to_replies() {
    if skip(&["grpcio"]) {
        return;
    }
    faulted(
        "grpcio_client.py",
        "replies",
        arm_replies,
        &[
            "truncated INTERNAL True",
            "corrupted b'h\\x9allo'",
            "throttled True True",
            "deadline DEADLINE_EXCEEDED True",
            "503 UNAVAILABLE",
            "403 PERMISSION_DENIED",
            "404 UNIMPLEMENTED",
            "500 UNKNOWN",
            "reset UNAVAILABLE",
            "afterwards b'alive' FAILED_PRECONDITION",
        ],
        9,
    )
    .await;
}

#[tokio::test]
async fn grpc_js_makes_its_own_of_what_is_done_to_replies() {
    if skip(&["grpcio", "grpc-js"]) {
        return;
    }
    faulted(
        "grpc_js.js",
        "replies",
        arm_replies,
        &[
            "truncated INTERNAL true",
            "corrupted 689a6c6c6f",
            "throttled true true",
            "deadline DEADLINE_EXCEEDED true",
            "503 UNAVAILABLE",
            "403 PERMISSION_DENIED",
            "404 UNIMPLEMENTED",
            "500 UNKNOWN",
            "reset UNAVAILABLE",
            "afterwards alive FAILED_PRECONDITION",
        ],
        9,
    )
    .await;
}

fn endpoint(proxy: &Harness) -> Endpoint {
    Endpoint {
        kept: None,
        addr: proxy.addr,
        host: "127.0.0.1".into(),
        env: Arc::default(),
        attempt: Duration::from_secs(30),
        addresses: std::sync::Arc::default(),
        tls: None,
    }
}

/// A caller that goes on calling uses its connection again, until that breaks.
#[tokio::test(flavor = "multi_thread")]
async fn callers_keep_their_connections() {
    if skip(&["grpcio"]) {
        return;
    }
    let server = grpcio("grpcio-kept");
    let upstream = server.addr;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = listener.local_addr().unwrap();
    // A task per connection that was made.
    let made = Arc::new(Mutex::new(vec![]));
    let made_here = made.clone();
    let accepting = tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(upstream).await.unwrap();
            let relaying = async move { copy_bidirectional(&mut client, &mut server).await };
            made_here.lock().unwrap().push(tokio::spawn(relaying));
        }
    });
    let grpc = faultbox_http2::grpc();
    let caller = Endpoint {
        addr: relay,
        host: "127.0.0.1".into(),
        env: Arc::default(),
        attempt: Duration::from_secs(60),
        addresses: Arc::default(),
        tls: None,
        kept: Some(Kept::default()),
    };
    for connections in 1..=3 {
        for _ in 0..3 {
            assert_eq!(grpc.ready(caller.clone()).await, Ok(()));
            assert_eq!(made.lock().unwrap().len(), connections);
        }
        let last = made.lock().unwrap()[connections - 1].abort_handle();
        last.abort();
        // Its sockets are closed when it has ended.
        while !last.is_finished() {
            tokio::task::yield_now().await;
        }
    }
    accepting.abort();
}

/// The steps of specs, against a server that has reflection (v1alpha) and health.
#[tokio::test]
async fn steps_ask_grpcio_for_its_types() {
    if skip(&["grpcio"]) {
        return;
    }
    let server = grpcio("grpcio-steps");
    let proxy = Harness::start(faultbox_http2::grpc(), server.addr);
    let grpc = faultbox_http2::grpc();
    let endpoint = endpoint(&proxy);
    assert_eq!(grpc.ready(endpoint.clone()).await, Ok(()));
    let call = |method: &str, body: serde_json::Value| {
        let keywords = vec![
            ("method".to_owned(), text(method)),
            ("body".to_owned(), Arg::Json(body)),
        ];
        let step = grpc.doc().check_step("call", vec![], keywords).unwrap();
        grpc.step(endpoint.clone(), step)
    };
    let check = "/grpc.health.v1.Health/Check";
    // A rule that hits everything does not hit the question for types.
    let rule = proxy.arm("error", &[("nth", int(1))]);
    let reply = call(check, serde_json::json!({})).await.unwrap();
    assert_eq!(
        (reply.ok, reply.status, &*reply.code),
        (false, 14, "UNAVAILABLE")
    );
    let reply = call(check, serde_json::json!({"service": ""}))
        .await
        .unwrap();
    assert_eq!(
        (reply.ok, reply.data),
        (true, serde_json::json!({"status": "SERVING"}))
    );
    assert_eq!((rule.matched(), rule.hits()), (2, 1));
    let reply = call(check, serde_json::json!({"service": "other"}))
        .await
        .unwrap();
    assert_eq!((&*reply.code, reply.status), ("NOT_FOUND", 5));
    let refused = call(check, serde_json::json!({"serwice": "x"}))
        .await
        .unwrap_err();
    assert!(refused.hint.unwrap().contains("service"));
    let refused = call("/grpc.health.v1.Health/Czech", serde_json::json!({}))
        .await
        .unwrap_err();
    assert!(refused.hint.unwrap().contains("Check"));
    let reply = call("/test.Svc/None", serde_json::json!({})).await.unwrap();
    assert_eq!(reply.code, "UNIMPLEMENTED");
    assert!(
        call("/test.Svc/Unary", serde_json::json!({"a": 1}))
            .await
            .is_err()
    );
}

/// Without reflection: the types come from a file, and nothing else is asked.
#[tokio::test]
async fn steps_take_types_from_a_file() {
    if skip(&["grpcio"]) {
        return;
    }
    let server = grpcio("grpcio-descriptors");
    let file = server.folder.join("health.pb");
    run(python()
        .args([
            "-c",
            "import sys
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
files = descriptor_pb2.FileDescriptorSet()
health_pb2.DESCRIPTOR.CopyToProto(files.file.add())
open(sys.argv[1], 'wb').write(files.SerializeToString())",
        ])
        .arg(&file));
    let proxy = Harness::start(faultbox_http2::grpc(), server.addr);
    let rule = proxy.arm("error", &[("method", text("/grpc.reflection.*"))]);
    let grpc = faultbox_http2::grpc();
    let call = |file: &str| {
        let keywords = vec![
            ("method".to_owned(), text("/grpc.health.v1.Health/Check")),
            ("descriptors".to_owned(), text(file)),
        ];
        let mut step = grpc.doc().check_step("call", vec![], keywords).unwrap();
        step.resolve_files(&server.folder);
        grpc.step(endpoint(&proxy), step)
    };
    let reply = call("health.pb").await.unwrap();
    assert_eq!(reply.data, serde_json::json!({"status": "SERVING"}));
    assert_eq!(rule.matched(), 0);
    let refused = call("none.pb").await.unwrap_err();
    assert!(refused.message.contains("none.pb"), "{refused}");
}

/// The head lines and the body that curl sees, without what changes from run to run.
fn curl(args: &[&str], addr: SocketAddr, path: &str) -> String {
    let out = run(Command::new("curl")
        .args(["--silent", "--show-error", "--include", "--max-time", "60"])
        .args(args)
        .arg(format!("http://{addr}{path}")));
    out.lines()
        .filter(|l| !l.starts_with("date:"))
        .map(|l| format!("{}\n", l.replace(&addr.to_string(), "ADDR")))
        .collect()
}

#[tokio::test]
async fn curl_by_prior_knowledge_and_by_upgrade() {
    if skip(&["curl", "nghttpd", "nghttpx"]) {
        return;
    }
    let server = nghttpx("curl");
    same(faultbox_http2::http2(), &server, 12, |addr| {
        let mut all = String::new();
        for how in ["--http2-prior-knowledge", "--http2"] {
            all += &curl(&[how], addr, "/index.html");
            all += &curl(&[how], addr, "/none");
            all += &curl(&[how, "--head"], addr, "/big");
            all += &curl(&[how, "--data-binary", "@/bin/sh"], addr, "/index.html");
        }
        // Not by upgrade: curl 7 gives up if more follows the 101 than its buffer holds, which is chance.
        let big = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "60"])
            .args(["--http2-prior-knowledge", &format!("http://{addr}/big")])
            .output()
            .unwrap();
        assert_eq!(big.stdout.len(), 3_000_000, "{big:?}");
        assert!(
            big.stdout
                .iter()
                .zip(0u32..)
                .all(|(b, i)| *b == (i % 251) as u8)
        );
        all
    })
    .await;
}

/// What nghttp prints of the frames that it hears, in an order that does not depend on chance.
fn nghttp(addr: SocketAddr, more: &[&str]) -> String {
    let out = run(Command::new("nghttp")
        .args([
            "--verbose",
            "--no-verify-peer",
            "--timeout=60",
            "--header-table-size=256",
        ])
        .args(more)
        .arg(format!("http://{addr}/index.html")));
    let changing = [" date:", " via:", " age:"];
    let mut lines: Vec<&str> = out
        .lines()
        .filter(|l| l.contains("recv (stream_id") && !changing.iter().any(|c| l.contains(c)))
        .map(|l| l.split_once("recv ").map_or(l, |(_, rest)| rest))
        .collect();
    lines.sort_unstable();
    let lines = lines.join("\n").replace(&addr.to_string(), "ADDR");
    format!("{more:?}\n{lines}\n")
}

#[tokio::test]
async fn nghttp_by_upgrade() {
    if skip(&["nghttp", "nghttpd", "nghttpx"]) {
        return;
    }
    let server = nghttpx("nghttp-upgrade");
    same(faultbox_http2::http2(), &server, 10, |addr| {
        nghttp(addr, &["--upgrade"]) + &nghttp(addr, &["--upgrade", "--data=/bin/sh"])
    })
    .await;
}

/// Dependencies on idle streams, server push, trailers, uploads, padding.
#[tokio::test]
async fn nghttp_with_push_priorities_and_upgrade() {
    if skip(&["nghttp", "nghttpd"]) {
        return;
    }
    let server = nghttpd("nghttp");
    same(faultbox_http2::http2(), &server, 20, |addr| {
        let mut all = String::new();
        for more in [
            &[][..],
            &["--no-dep"],
            &["--multiply=20"],
            &["--data=/bin/sh"],
            &["--padding=100", "--continuation"],
        ] {
            all += &nghttp(addr, more);
        }
        all
    })
    .await;
}

#[tokio::test]
async fn h2load_with_many_streams() {
    if skip(&["h2load", "nghttpd"]) {
        return;
    }
    let server = nghttpd("h2load");
    let proxy = same(faultbox_http2::http2(), &server, 2, |addr| {
        let out = run(Command::new("h2load")
            .args(["-n", "5000", "-c", "8", "-m", "60"])
            .arg(format!("http://{addr}/index.html")));
        let keep = ["requests:", "status codes:"];
        out.lines()
            .filter(|l| keep.iter().any(|k| l.starts_with(k)))
            .map(|l| format!("{l}\n"))
            .collect()
    })
    .await;
    assert_eq!(proxy.meter.count(), 5000);
}

#[tokio::test]
async fn etcdctl_lives_as_ever_and_retries() {
    if skip(&["etcd", "etcdctl"]) {
        return;
    }
    let server = etcd("etcd");
    let proxy = same(faultbox_http2::grpc(), &server, 8, |addr| {
        let ctl = |args: &[&str]| run(etcdctl(addr).args(args));
        let big = "v".repeat(100_000);
        let mut all = ctl(&["put", "a", "1"]);
        all += &ctl(&["put", "b", &big]);
        all += &ctl(&["get", "a", "b", "--print-value-only"]);
        all += &ctl(&["get", "--prefix", "", "--keys-only"]);
        all += &ctl(&["del", "b"]);
        let watch = std::thread::spawn(move || {
            run(Command::new("timeout")
                .args(["60", "sh", "-c"])
                .arg(format!(
                    "ETCDCTL_API=3 etcdctl --endpoints=http://{addr} watch a | head -n 3"
                )))
        });
        // The watch must be there before the change; changing until it has seen one is simpler than knowing when.
        while !watch.is_finished() {
            ctl(&["put", "a", "2"]);
            std::thread::sleep(Duration::from_millis(100));
        }
        all += &watch.join().unwrap();
        // Says how long it took, too.
        ctl(&["endpoint", "health"]);
        all
    })
    .await;
    // The client of etcd tries reads again by itself.
    let rule = proxy.arm(
        "error",
        &[
            ("method", text("/etcdserverpb.KV/Range")),
            ("times", int(2)),
        ],
    );
    let addr = proxy.addr;
    let got = tokio::task::spawn_blocking(move || run(etcdctl(addr).args(["get", "a"])))
        .await
        .unwrap();
    assert_eq!(got, "a\n2\n");
    assert_eq!(rule.hits(), 2);
    let code = text("NOT_FOUND");
    proxy.arm(
        "error",
        &[
            ("method", text("/etcdserverpb.KV/Put")),
            ("code", code),
            ("message", text("no room")),
        ],
    );
    let failed =
        tokio::task::spawn_blocking(move || etcdctl(addr).args(["put", "a", "3"]).output())
            .await
            .unwrap()
            .unwrap();
    assert!(!failed.status.success());
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(
        said.contains("NotFound") && said.contains("no room"),
        "{said}"
    );
}

/// What a rule is armed with.
type Args<'a> = &'a [(&'a str, Arg)];

/// What curl says of a request by prior knowledge: what `-w` shows, its complaint, its exit status.
async fn complaint(addr: SocketAddr, more: &'static [&'static str], path: &'static str) -> String {
    tokio::task::spawn_blocking(move || {
        let out = Command::new("curl")
            .args(["--silent", "--show-error", "--http2-prior-knowledge"])
            .args(["--max-time", "60", "--output", "/dev/null"])
            .args(["--write-out", "%{http_code} %{size_download}\n"])
            .args(more)
            .arg(format!("http://{addr}{path}"))
            .output()
            .unwrap();
        let said = [out.stdout, out.stderr].concat();
        format!("{}{:?}", String::from_utf8_lossy(&said), out.status.code())
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn curl_names_faults_as_its_own_errors() {
    if skip(&["curl", "nghttpd"]) {
        return;
    }
    let server = nghttpd("curl-faults");
    let proxy = Harness::start(faultbox_http2::http2(), server.addr);
    let addr = proxy.addr;
    // How much of a reply curl still hands on when it hears of the reset is chance.
    let cases: &[(&str, Args<'_>, &str)] = &[
        (
            "truncate",
            &[("bytes", int(0))],
            "curl: (92) HTTP/2 stream 1 was not closed cleanly: INTERNAL_ERROR (err 2)\nSome(92)",
        ),
        // The whole of it: the trailers come, too.
        (
            "truncate",
            &[("bytes", int(3_000_000))],
            "200 3000000\nSome(0)",
        ),
        ("corrupt", &[("offset", int(0))], "200 3000000\nSome(0)"),
        (
            "drop",
            &[("rst", text("ENHANCE_YOUR_CALM"))],
            "curl: (92) HTTP/2 stream 1 was not closed cleanly: ENHANCE_YOUR_CALM (err 11)\nSome(92)",
        ),
        (
            "drop",
            &[("messages", int(0)), ("rst", text("CANCEL"))],
            "curl: (92) HTTP/2 stream 1 was not closed cleanly: CANCEL (err 8)\nSome(92)",
        ),
        (
            "response",
            &[("status", int(429)), ("body", text("later"))],
            "429 5\nSome(0)",
        ),
        (
            "response",
            &[("status", int(503)), ("when", text("after"))],
            "503 0\nSome(0)",
        ),
    ];
    for (action, args, expected) in cases {
        let rule = proxy.arm(action, args);
        let said = complaint(addr, &[], "/big").await;
        assert!(said.ends_with(expected), "{action} {args:?}: {said}");
        assert_eq!((rule.matched(), rule.hits()), (1, 1), "{action} {args:?}");
        proxy.rules.lift(rule.id);
        assert_eq!(complaint(addr, &[], "/big").await, "200 3000000\nSome(0)");
    }
    // Whether it is reading or acknowledging settings when it hears of a connection's end, is chance, too.
    let rule = proxy.arm("reset", &[]);
    let said = complaint(addr, &[], "/big").await;
    let reset = "failure: Connection reset by peer";
    let known = said.ends_with("Some(56)") || said.ends_with("Some(55)");
    assert!(known && said.contains(reset), "{said}");
    assert_eq!((rule.matched(), rule.hits()), (1, 1));
    assert_eq!(proxy.degradations(), [""; 0]);
}

/// nghttp shows each frame.
#[tokio::test]
async fn nghttp_hears_all_that_comes_before_the_cut() {
    if skip(&["nghttp", "nghttpd"]) {
        return;
    }
    let server = nghttpd("nghttp-cut");
    let proxy = Harness::start(faultbox_http2::http2(), server.addr);
    let rule = proxy.arm("truncate", &[("bytes", int(100_000))]);
    let mut command = Command::new("nghttp");
    command.args(["--verbose", "--null-out", "--timeout=60"]);
    command.arg(format!("http://{}/big", proxy.addr));
    let said = tokio::task::spawn_blocking(move || run(&mut command));
    let said = said.await.unwrap();
    let frames = said
        .lines()
        .filter_map(|l| l.split_once("recv DATA frame <length="));
    let lengths = frames.map(|(_, rest)| rest.split(',').next().unwrap().parse::<u64>().unwrap());
    assert_eq!(lengths.sum::<u64>(), 100_000, "{said}");
    let (_, after) = said.split_once("recv RST_STREAM frame").expect("a reset");
    assert!(after.contains("error_code=INTERNAL_ERROR"), "{said}");
    assert!(!after.contains("recv DATA"), "{said}");
    assert_eq!(rule.hits(), 1);
}

#[tokio::test]
async fn curl_waits_for_a_throttled_reply_or_gives_up() {
    if skip(&["curl", "nghttpd"]) {
        return;
    }
    let server = nghttpd("curl-throttled");
    let proxy = Harness::start(faultbox_http2::http2(), server.addr);
    let rule = proxy.arm("throttle", &[("rate", text("5MB/s"))]);
    let start = Instant::now();
    let said = complaint(proxy.addr, &[], "/big").await;
    assert_eq!(said, "200 3000000\nSome(0)");
    assert!(start.elapsed() >= Duration::from_millis(500));
    assert_eq!(rule.hits(), 1);
    proxy.rules.lift(rule.id);

    // Most of an hour's worth.
    let rule = proxy.arm("throttle", &[("rate", text("1KB/s"))]);
    for (more, complains) in [
        (&["--max-time", "2"][..], "out of 3000000 bytes received"),
        (
            &["--speed-limit", "20000", "--speed-time", "2"],
            "Less than 20000 bytes/sec",
        ),
    ] {
        let said = complaint(proxy.addr, more, "/big").await;
        // The head has come at once.
        assert!(
            said.starts_with("200 ") && said.contains("curl: (28)"),
            "{said}"
        );
        assert!(
            said.contains(complains) || said.contains("timed out"),
            "{said}"
        );
    }
    assert_eq!(rule.hits(), 2);
    assert_eq!(proxy.degradations(), [""; 0]);
}

/// Which byte is another, and that no other is.
#[tokio::test]
async fn curl_hears_a_corrupted_byte_and_a_rules_answer() {
    if skip(&["curl", "nghttpd"]) {
        return;
    }
    let server = nghttpd("curl-corrupted");
    let proxy = Harness::start(faultbox_http2::http2(), server.addr);
    let addr = proxy.addr;
    let download = move || {
        let out = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "60"])
            .args(["--http2-prior-knowledge", &format!("http://{addr}/big")])
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        out.stdout
    };
    // In a later frame than the first.
    let rule = proxy.arm("corrupt", &[("offset", int(1_234_567))]);
    let got = tokio::task::spawn_blocking(download).await.unwrap();
    assert_eq!(got.len(), 3_000_000);
    let others: Vec<usize> = (0..got.len())
        .filter(|i| got[*i] != (i % 251) as u8)
        .collect();
    assert_eq!(others, [1_234_567]);
    assert_eq!(got[1_234_567], !((1_234_567 % 251) as u8));
    assert_eq!(rule.hits(), 1);
    proxy.rules.lift(rule.id);

    proxy.arm(
        "response",
        &[
            ("status", int(503)),
            ("json", Arg::Json(serde_json::json!({"why": "full"}))),
            (
                "headers",
                Arg::Json(serde_json::json!({"Retry-After": "7"})),
            ),
        ],
    );
    let page = tokio::task::spawn_blocking(move || curl(&["--http2-prior-knowledge"], addr, "/x"));
    let page = page.await.unwrap();
    assert!(page.starts_with("HTTP/2 503"), "{page}");
    assert!(
        page.contains("\nretry-after: 7") && page.contains(r#"{"why":"full"}"#),
        "{page}"
    );
    assert_eq!(proxy.fired(), 2);
}
