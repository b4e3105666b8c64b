//! The proxy in front of real servers, driven by real clients: invisible without rules, exact with them.

mod support;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faultbox_contract::{Arg, ArmedRule, Endpoint, Kept};
use faultbox_engine::testing::{Harness, PATIENCE, alone, eventually, free_addr, peak_memory};
use serde_json::json;
use support::{Dialogue, Server, cli, client, run, servers};

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

fn proxy(server: &Server) -> Harness {
    Harness::start(faultbox_redis::protocol(), server.addr)
}

fn error(proxy: &Harness, command: &str, message: &str) -> Arc<ArmedRule> {
    proxy.arm(
        "error",
        &[("command", text(command)), ("message", text(message))],
    )
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Every server that is there, in turn, each with a proxy in front.
async fn each(mut test: impl AsyncFnMut(&str, &Server, &Arc<Harness>)) {
    for (name, binary) in servers() {
        let server = blocking(move || Server::start(&binary, &[])).await;
        let proxy = Arc::new(proxy(&server));
        test(name, &server, &proxy).await;
        assert_eq!(proxy.degradations(), [""; 0], "{name}");
    }
}

/// A client's own battery prints the same through the proxy as directly.
async fn same(script: &'static str, more: &'static [&'static str]) {
    each(async |name, server, proxy| {
        let battery = |addr: SocketAddr| {
            blocking(move || {
                let mut command = client(script)?;
                let port = addr.port().to_string();
                Some(run(command.args(["battery", &port]).args(more)))
            })
        };
        let (direct, through) = (battery(server.addr).await, battery(proxy.addr).await);
        assert_eq!(direct, through, "{name}");
        let Some(said) = through else { return };
        assert!(said.lines().count() > 12, "{name}: {said}");
        assert_eq!(proxy.events.all().len(), 0, "{:?}", proxy.events.all());
        assert!(proxy.meter.count() > 1000);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_py_passes_in_resp2() {
    same("redis_py.py", &["2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_py_passes_in_resp3() {
    same("redis_py.py", &["3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ioredis_passes() {
    same("ioredis.js", &[]).await;
}

/// What the drivers' fault scripts expect to be armed.
fn arm_all(proxy: &Harness) {
    proxy.arm("error", &[("command", text("SET"))]);
    error(
        proxy,
        "SADD",
        "OOM command not allowed when used memory > 'maxmemory'.",
    );
    error(
        proxy,
        "HSET",
        "LOADING Redis is loading the dataset in memory",
    );
    error(proxy, "ZADD", "BUSY Redis is busy running a script.");
    error(proxy, "APPEND", "NOAUTH Authentication required.");
    error(proxy, "GETRANGE", "MOVED 12706 127.0.0.1:7001");
    proxy.arm(
        "error",
        &[
            ("command", text("LPUSH")),
            (
                "message",
                text("READONLY You can't write against a read only replica."),
            ),
            ("times", Arg::Int(1)),
        ],
    );
    proxy.arm(
        "response",
        &[("command", text("LLEN")), ("value", Arg::Int(7))],
    );
    proxy.arm(
        "response",
        &[
            ("command", text("HRANDFIELD")),
            ("value", Arg::Json(json!({"a": true}))),
        ],
    );
    proxy.arm("reset", &[("command", text("PERSIST"))]);
    proxy.arm(
        "truncate",
        &[("command", text("EXPIRE")), ("bytes", Arg::Int(0))],
    );
    proxy.arm("drop", &[("command", text("INCR")), ("key", text("k"))]);
    proxy.arm(
        "delay",
        &[("command", text("BRPOP")), ("delay", text("300ms"))],
    );
}

/// Errors arrive in a client as its own: the script's output, line by line.
async fn exact(script: &'static str, more: &'static [&'static str], expected: &[&str]) {
    each(async |name, _, proxy| {
        let port = proxy.addr.port().to_string();
        let arming = proxy.clone();
        let said = blocking(move || {
            let command = client(script)?;
            let mut args = vec!["faults", &port];
            args.extend(more);
            let mut dialogue = Dialogue::start(command, &args);
            dialogue.until_ready();
            arm_all(&arming);
            dialogue.go_on();
            Some(dialogue.rest())
        })
        .await;
        let Some(said) = said else { return };
        assert_eq!(said, expected, "{name}:\n{}", said.join("\n"));
    })
    .await;
}

/// What redis-py makes of it, in RESP2 and RESP3 alike but for one value that they know under different types.
fn redis_py(map: &'static str) -> Vec<&'static str> {
    vec![
        "set 'ResponseError' 'injected error'",
        "get 'ok' None",
        "setex 'ok' True",
        "pipeline [None, 'ResponseError', None]",
        "transaction 'ResponseError' 'Command # 2 (SET b 1) of pipeline caused error: injected error'",
        "nothing ran 'ok' [None, None]",
        "readonly 'ReadOnlyError' \"You can't write against a read only replica.\"",
        "oom 'OutOfMemoryError' \"command not allowed when used memory > 'maxmemory'.\"",
        "loading 'BusyLoadingError' 'Redis is loading the dataset in memory'",
        "busy 'ResponseError' 'BUSY Redis is busy running a script.'",
        "noauth 'AuthenticationError' 'Authentication required.'",
        "moved 'MovedError' '12706 127.0.0.1:7001'",
        "value 'ok' 7",
        map,
        "reset 'ConnectionError'",
        "after the reset 'ok' b'1'",
        "cut 'ConnectionError'",
        "dropped 'TimeoutError'",
        "blocked and delayed 'ok' None",
        "at last 'ok' True",
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_py_errors_in_resp2() {
    let expected = redis_py("map 'ok' [b'a', 1]");
    exact("redis_py.py", &["2"], &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_py_errors_in_resp3() {
    let expected = redis_py("map 'ok' {b'a': True}");
    exact("redis_py.py", &["3"], &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ioredis_errors() {
    let expected = [
        r#"set "ReplyError" "ERR injected error""#,
        r#"get "ok" null"#,
        r#"pipeline [null,"ERR injected error",null]"#,
        r#"transaction "ReplyError" "EXECABORT Transaction discarded because of previous errors.""#,
        r#"nothing ran "ok" [null,null]"#,
        r#"readonly "ok" 1"#,
        "connections 2",
        r#"dropped "Error" "Command timed out""#,
        r#"after the drop "Error" "Command timed out""#,
    ];
    exact("ioredis.js", &[], &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_row_in_redis_cli() {
    each(async |name, server, proxy| {
        let rule = proxy.arm("error", &[("command", text("SET"))]);
        let (addr, direct) = (proxy.addr, server.addr);
        let said = blocking(move || {
            cli(direct, &["SET", "k", "before"]);
            [
                cli(addr, &["SET", "k", "v"]),
                cli(addr, &["GET", "k"]),
                cli(addr, &["SETEX", "k2", "100", "v"]),
                cli(direct, &["GET", "k"]),
            ]
        })
        .await;
        assert_eq!(
            said.map(|s| s.trim().to_owned()),
            ["ERR injected error", "before", "OK", "before"],
            "{name}"
        );
        assert_eq!(rule.hits(), 1);
        let event = &proxy.events.of_kind("proxy")[0].fields;
        assert_eq!(
            (&event["command"], &event["key"], &event["code"]),
            (&json!("SET"), &json!("k"), &json!("ERR"))
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_benchmark_in_pipelines() {
    each(async |name, _, proxy| {
        // Rules that mean nothing of what it sends.
        for armed in [false, true] {
            if armed {
                for i in 0..20 {
                    error(proxy, "CONFIG SET", &format!("ERR {i}"));
                }
            }
            let port = proxy.addr.port().to_string();
            let said = blocking(move || {
                run(Command::new("redis-benchmark")
                    .args([
                        "-h",
                        "127.0.0.1",
                        "-p",
                        &port,
                        "-q",
                        "-n",
                        "20000",
                        "-P",
                        "100",
                    ])
                    .args(["-t", "ping,set,get,incr,lpush,lrange_100,mset", "-c", "20"]))
            })
            .await;
            assert!(
                said.matches("requests per second").count() >= 7,
                "{name}: {said}"
            );
        }
        assert!(proxy.meter.count() >= 280_000, "{}", proxy.meter.count());
        assert_eq!(proxy.fired(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_cli_pipe_mode_and_a_big_value_in_flat_memory() {
    if !alone("redis_cli_pipe_mode_and_a_big_value_in_flat_memory") {
        return;
    }
    each(async |name, _, proxy| {
        // A rule on another command must not make it hold the value back.
        error(proxy, "GETDEL", "ERR no");
        let port = proxy.addr.port();
        let before = peak_memory();
        // The value goes in by redis-cli's -x, and out into a file that is compared.
        let script = format!(
            "set -e; f=$(mktemp); head -c 100000000 /dev/zero | tr '\\0' x >$f; \
             redis-cli -p {port} -x SET big <$f; \
             redis-cli -p {port} --raw GET big | head -c 100000000 | cmp - $f && echo same; \
             seq 1 50000 | sed 's/.*/SET pipe:& &/' | redis-cli -p {port} --pipe; rm -f $f"
        );
        let said = blocking(move || run(Command::new("sh").args(["-c", &script]))).await;
        assert!(said.starts_with("OK\nsame\n"), "{name}: {said}");
        assert!(said.contains("errors: 0, replies: 50000"), "{name}: {said}");
        let grown = peak_memory().saturating_sub(before);
        // A proxy that held the value would need 100 MB.
        assert!(
            grown < 64 << 20,
            "{name}: memory grew by {} MiB",
            grown >> 20
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_blocking_command_stalls_nobody_else() {
    each(async |name, server, proxy| {
        let rule = proxy.arm(
            "delay",
            &[("command", text("BLPOP")), ("delay", text("600s"))],
        );
        let (addr, direct) = (proxy.addr, server.addr);
        let start = Instant::now();
        let blocked = tokio::task::spawn_blocking(move || cli(addr, &["BLPOP", "q", "0"]));
        eventually("the command is delayed", || rule.hits() > 0).await;
        let pong = blocking(move || cli(addr, &["PING"])).await;
        assert_eq!(pong.trim(), "PONG");
        // It has not waited for the other.
        assert!(start.elapsed() < Duration::from_secs(300), "{name}");
        // Lifted, it goes on and blocks in the server as it would.
        proxy.rules.lift(rule.id);
        blocking(move || cli(direct, &["RPUSH", "q", "v"])).await;
        assert_eq!(blocked.await.unwrap(), "q\nv\n", "{name}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dying_server_looks_the_same() {
    for (name, binary) in servers() {
        let server = blocking(move || Server::start(&binary, &[])).await;
        let proxy = proxy(&server);
        let addr = proxy.addr;
        // A client that blocks when the server dies.
        let blocked = tokio::task::spawn_blocking(move || {
            let out = Command::new("redis-cli")
                .args(["-p", &addr.port().to_string(), "BLPOP", "q", "0"])
                .output();
            out.map(|o| String::from_utf8_lossy(&[o.stdout, o.stderr].concat()).into_owned())
        });
        blocking(move || {
            let deadline = Instant::now() + PATIENCE;
            while !server
                .cli(&["INFO", "clients"])
                .contains("blocked_clients:1")
            {
                assert!(Instant::now() < deadline, "{name}: nobody blocks");
                std::thread::sleep(Duration::from_millis(20));
            }
            drop(server);
        })
        .await;
        let said = blocked.await.unwrap().unwrap();
        assert!(
            said.contains("Server closed") || said.contains("reset"),
            "{name}: {said}"
        );
        let refused = blocking(move || {
            let port = addr.port().to_string();
            Command::new("redis-cli")
                .args(["-p", &port, "PING"])
                .output()
        })
        .await
        .unwrap();
        let said = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
        assert!(!said.contains("PONG"), "{name}: {said}");
    }
}

/// Two nodes that know each other and share the slots.
fn cluster(binary: &std::path::Path) -> [Server; 2] {
    let start = || {
        let bus = free_addr().port().to_string();
        let settings = ["--cluster-enabled", "yes", "--cluster-port", &bus];
        (Server::start(binary, &settings), bus)
    };
    let ((a, _), (b, bus)) = (start(), start());
    a.cli(&["CLUSTER", "ADDSLOTSRANGE", "0", "8191"]);
    b.cli(&["CLUSTER", "ADDSLOTSRANGE", "8192", "16383"]);
    let port = b.addr.port().to_string();
    a.cli(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
    let deadline = Instant::now() + PATIENCE;
    let ready = |node: &Server| node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
    while !(ready(&a) && ready(&b)) {
        assert!(Instant::now() < deadline, "the nodes do not meet");
        std::thread::sleep(Duration::from_millis(50));
    }
    [a, b]
}

/// A cluster's client asks one node where the others are, and goes through the proxy of each.
#[tokio::test(flavor = "multi_thread")]
async fn a_clusters_client_goes_past_no_proxy() {
    for (name, binary) in servers() {
        let nodes = blocking(move || cluster(&binary)).await;
        let proxies =
            Harness::start_cluster(faultbox_redis::protocol(), &[nodes[0].addr, nodes[1].addr]);
        let ports = proxies.iter().map(|p| p.addr.port().to_string());
        let ports: Vec<String> = ports.collect();
        for version in ["2", "3"] {
            let port = ports[0].clone();
            let said = blocking(move || {
                Some(run(client("redis_py.py")?.args(["cluster", &port, version])))
            });
            let Some(said) = said.await else { return };
            let lines: Vec<&str> = said.lines().collect();
            let mut known: Vec<&str> = lines[0].split(' ').skip(1).collect();
            known.sort_unstable();
            let mut expected: Vec<&str> = ports.iter().map(String::as_str).collect();
            expected.sort_unstable();
            assert_eq!(known, expected, "{name}");
            assert_eq!(
                lines[1..],
                ["set 200", "got True", "shards 2 True"],
                "{name}"
            );
        }
        for proxy in &proxies {
            assert!(proxy.meter.count() > 100, "{name}: it went past a proxy");
            assert_eq!(proxy.events.all().len(), 0, "{:?}", proxy.events.all());
        }
        // redis-cli follows MOVED, and prints CLUSTER NODES as it hears them.
        let addr = proxies[0].addr;
        let said = blocking(move || {
            let set = (0..20).map(|i| cli(addr, &["-c", "SET", &format!("k{i}"), "v"]));
            let set: Vec<String> = set.collect();
            (set, cli(addr, &["CLUSTER", "NODES"]))
        });
        let (set, listed) = said.await;
        assert!(set.iter().all(|s| s == "OK\n"), "{name}: {set:?}");
        for port in &ports {
            assert!(listed.contains(&format!("127.0.0.1:{port}@")), "{listed}");
        }
        blocking(move || drop(nodes)).await;
    }
}

/// A caller that goes on calling uses its connection again, unless a command failed or left the session other than it found it.
#[tokio::test(flavor = "multi_thread")]
async fn callers_keep_their_connections() {
    each(async |name, server, _| {
        let redis = faultbox_redis::protocol();
        let caller = Endpoint {
            addr: server.addr,
            host: "localhost".into(),
            env: Arc::default(),
            attempt: Duration::from_secs(30),
            addresses: Arc::default(),
            tls: None,
            kept: Some(Kept::default()),
        };
        let command = async |args: &[&str]| {
            let args = args.iter().map(|a| text(a)).collect();
            let call = redis.doc().check_step("command", args, vec![]).unwrap();
            redis.step(caller.clone(), call).await.unwrap()
        };
        let made = async || {
            let stats = command(&["INFO", "stats"]).await.body;
            let line = stats
                .lines()
                .find_map(|l| l.strip_prefix("total_connections_received:"));
            line.unwrap().parse::<u64>().unwrap()
        };
        let first = made().await;
        redis.ready(caller.clone()).await.unwrap();
        assert!(command(&["SET", "kept", "1"]).await.ok, "{name}");
        assert_eq!(made().await, first, "{name}");
        assert!(command(&["SELECT", "1"]).await.ok, "{name}");
        assert_eq!(made().await, first + 1, "{name}");
        assert!(!command(&["NO-SUCH-COMMAND"]).await.ok, "{name}");
        assert_eq!(made().await, first + 2, "{name}");
    })
    .await;
}
