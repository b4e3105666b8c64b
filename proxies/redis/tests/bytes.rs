//! What becomes of a reply's bytes, as real drivers see it: their own errors, and connections that go on where they should.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use faultbox_contract::Arg;
use faultbox_engine::testing::{Harness, PATIENCE};
use redis::{Client, Commands, Connection, ErrorKind, Value};
use support::{Dialogue, Server, client, servers};

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Every server that is there, in turn, each with a proxy in front, and both versions of the protocol.
async fn each(test: impl Fn(SocketAddr, &Harness, &'static str) + Send + Sync + Copy + 'static) {
    for (name, binary) in servers() {
        for version in ["resp2", "resp3"] {
            let binary = binary.clone();
            let server = blocking(move || Server::start(&binary, &[])).await;
            let proxy = Arc::new(Harness::start(faultbox_redis::protocol(), server.addr));
            let (addr, at) = (server.addr, proxy.clone());
            println!("{name} {version}");
            blocking(move || test(addr, &at, version)).await;
            assert_eq!(proxy.degradations(), [""; 0], "{name} {version}");
            blocking(move || drop(server)).await;
        }
    }
}

fn connect(addr: SocketAddr, version: &str) -> Connection {
    let client = Client::open(format!("redis://{addr}/?protocol={version}")).unwrap();
    let connection = client.get_connection().unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection
}

/// Which connection of the server's it is.
fn id(c: &mut Connection) -> i64 {
    redis::cmd("CLIENT").arg("ID").query(c).unwrap()
}

/// A reply of any kind with a wrong byte in it is what the caller sees; what comes after it is the next command's.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_byte_is_the_callers_and_the_connection_goes_on() {
    each(|direct, proxy, version| {
        let mut c = connect(proxy.addr, version);
        let _: () = c.mset(&[("k", "abcdef"), ("other", "as it was")]).unwrap();
        let _: () = c.set("n", 41).unwrap();
        let _: () = c.hset("h", "field", "value").unwrap();
        let _: () = c.zadd("z", "a", 1.5).unwrap();
        let connection = id(&mut c);
        let corrupt = |command: &str, offset: i64| {
            let args = [("command", text(command)), ("offset", Arg::Int(offset))];
            proxy.arm("corrupt", &args)
        };

        let get = corrupt("GET", 2);
        let raw: Vec<u8> = c.get("k").unwrap();
        assert_eq!(raw, b"ab\x9cdef");
        let error = c.get::<_, String>("k").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Parse, "{error}");
        // Of a pipeline, the replies of the others are theirs.
        let mut pipe = redis::pipe();
        pipe.cmd("STRLEN").arg("k").cmd("GET").arg("k");
        pipe.cmd("MGET").arg("k").arg("other");
        let (len, raw, both): (i64, Vec<u8>, Vec<String>) = pipe.query(&mut c).unwrap();
        assert_eq!((len, &raw[..]), (6, &b"ab\x9cdef"[..]));
        assert_eq!(both, ["abcdef", "as it was"]);
        assert_eq!((get.hits(), get.matched()), (3, 3));
        proxy.rules.lift(get.id);

        // A number stays one, and the server has counted right.
        let incr = corrupt("INCR", 1);
        let told: i64 = redis::cmd("INCR").arg("n").query(&mut c).unwrap();
        assert_eq!((told, incr.hits()), (47, 1));
        proxy.rules.lift(incr.id);
        let counted: i64 = c.get("n").unwrap();
        assert_eq!(counted, 42);

        // RESP3 has a type for floats and one for maps, RESP2 says both in strings.
        let zscore = corrupt("ZSCORE", 0);
        let score = redis::cmd("ZSCORE")
            .arg("z")
            .arg("a")
            .query::<Value>(&mut c);
        match version {
            "resp3" => assert_eq!(score.unwrap(), Value::Double(8.5)),
            _ => assert_eq!(score.unwrap(), Value::BulkString(b"\xce.5".to_vec())),
        }
        assert_eq!(zscore.hits(), 1);
        proxy.rules.lift(zscore.id);
        let hgetall = corrupt("HGETALL", 5);
        let map: Vec<(String, Vec<u8>)> = c.hgetall("h").unwrap();
        assert_eq!(map, [("field".to_owned(), b"\x89alue".to_vec())]);
        assert_eq!(hgetall.hits(), 1);
        proxy.rules.lift(hgetall.id);

        // What is no text any more, the driver does not take for an error of the server's; it does not get past it on that connection.
        let lpush = corrupt("LPUSH", 0);
        let mut other = connect(proxy.addr, version);
        let error = other.lpush::<_, _, i64>("k", 1).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Parse, None));
        assert_eq!(lpush.hits(), 1);
        proxy.rules.lift(lpush.id);
        let error = c.lpush::<_, _, i64>("k", 1).unwrap_err();
        assert_eq!(error.code(), Some("WRONGTYPE"));

        assert_eq!(id(&mut c), connection);
        assert_eq!(proxy.fired(), 7);
        let mut past = connect(direct, version);
        assert_eq!(past.get::<_, String>("k").unwrap(), "abcdef");
    })
    .await;
}

/// Wherever the reply is cut, the command has run, and the driver says that the connection is gone. A reset comes before.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_ends_early_takes_its_connection_with_it() {
    each(|direct, proxy, version| {
        let mut past = connect(direct, version);
        let _: () = past.set("big", "x".repeat(1000)).unwrap();
        let mut ran = 0;
        for (action, bytes) in [
            ("reset", None),
            ("truncate", Some(0)),
            // In a length, behind it, in the value, before its end.
            ("truncate", Some(2)),
            ("truncate", Some(7)),
            ("truncate", Some(500)),
            ("truncate", Some(1008)),
        ] {
            let mut args = vec![("command", text("EVAL"))];
            args.extend(bytes.map(|b| ("bytes", Arg::Int(b))));
            let rule = proxy.arm(action, &args);
            let mut c = connect(proxy.addr, version);
            let mut script = redis::cmd("EVAL");
            script.arg("redis.call('INCR', KEYS[1]) return redis.call('GET', 'big')");
            let error = script.arg(1).arg("n").query::<String>(&mut c).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "{action} {bytes:?}: {error}");
            assert!(error.is_connection_dropped(), "{action} {bytes:?}: {error}");
            assert_eq!((rule.hits(), rule.matched()), (1, 1));
            proxy.rules.lift(rule.id);
            ran += i64::from(action == "truncate");
            // The next connection is none the worse.
            let mut next = connect(proxy.addr, version);
            let n: Option<i64> = next.get("n").unwrap();
            assert_eq!(n.unwrap_or_default(), ran, "{action} {bytes:?}");
        }
        assert_eq!(proxy.fired(), 6);
    })
    .await;
}

/// Least time that so many bytes take at a rate of 64 KB/s: the first of the steps, of 20 ms each, goes at once.
fn least(bytes: u32) -> Duration {
    Duration::from_secs(1) * bytes / 64_000 - Duration::from_millis(20)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reply_arrives_whole_and_holds_nobody_else() {
    each(|direct, proxy, version| {
        const SIZE: u32 = 64 << 10;
        let whole = "x".repeat(SIZE as usize);
        let mut past = connect(direct, version);
        let _: () = past.set("big", &whole).unwrap();
        let throttle = |rate: &str| {
            let args = [("command", text("GET")), ("rate", text(rate))];
            proxy.arm("throttle", &args)
        };
        let mut c = connect(proxy.addr, version);
        let rule = throttle("64KB/s");
        let start = Instant::now();
        assert_eq!(c.get::<_, String>("big").unwrap(), whole);
        assert!(start.elapsed() >= least(SIZE), "{:?}", start.elapsed());
        assert_eq!((rule.hits(), rule.matched()), (1, 1));
        proxy.rules.lift(rule.id);

        // At this rate it would take eleven minutes. Another client has its reply meanwhile; and without the rule, the rest comes at
        // once.
        let rule = throttle("100B/s");
        let slow = thread::spawn(move || (c.get::<_, String>("big").unwrap(), c));
        let deadline = Instant::now() + PATIENCE;
        while rule.hits() == 0 {
            assert!(Instant::now() < deadline, "the slow one is not answered");
            thread::sleep(Duration::from_millis(5));
        }
        let mut other = connect(proxy.addr, version);
        assert_eq!(other.strlen::<_, u32>("big").unwrap(), SIZE);
        assert!(!slow.is_finished());
        proxy.rules.lift(rule.id);
        let (got, mut c) = slow.join().unwrap();
        assert_eq!(got, whole);
        assert_eq!(c.get::<_, String>("big").unwrap(), whole);
        assert_eq!(proxy.fired(), 2);
    })
    .await;
}

/// What the scripts meet, once each but where they say how often.
fn arm(proxy: &Harness) {
    let arm = |action: &str, command: &str, more: &[(&str, Arg)]| {
        let command = [("command", text(command))];
        proxy.arm(action, &[&command[..], more].concat());
    };
    let once = ("times", Arg::Int(1));
    arm(
        "truncate",
        "INCR*",
        &[("bytes", Arg::Int(0)), ("times", Arg::Int(2))],
    );
    arm(
        "truncate",
        "STRLEN",
        &[("bytes", Arg::Int(1)), once.clone()],
    );
    arm(
        "truncate",
        "GETRANGE",
        &[("bytes", Arg::Int(1000)), once.clone()],
    );
    arm("reset", "APPEND", std::slice::from_ref(&once));
    arm(
        "corrupt",
        "GET",
        &[("key", text("k")), ("nth", Arg::Int(2))],
    );
    arm("corrupt", "HGET", &[("offset", Arg::Int(4))]);
    arm("corrupt", "DECR*", &[]);
    arm("throttle", "SUBSTR", &[("rate", text("64KB/s"))]);
}

/// The replies' bytes in a client: the script's output line by line, and which rules fired, in order.
async fn exact(
    script: &'static str,
    more: &'static [&'static str],
    expected: &[&str],
    fired: &[&str],
) {
    for (name, binary) in servers() {
        let server = blocking(move || Server::start(&binary, &[])).await;
        let proxy = Arc::new(Harness::start(faultbox_redis::protocol(), server.addr));
        let arming = proxy.clone();
        let said = blocking(move || {
            let port = arming.addr.port().to_string();
            let mut args = vec!["answers", &port];
            args.extend(more);
            let mut dialogue = Dialogue::start(client(script)?, &args);
            dialogue.until_ready();
            arm(&arming);
            dialogue.go_on();
            Some(dialogue.rest())
        })
        .await;
        let Some(said) = said else { return };
        assert_eq!(said, expected, "{name}:\n{}", said.join("\n"));
        let events = proxy.events.of_kind("proxy");
        let actions: Vec<_> = events.iter().map(|e| e.fields["action"].as_str()).collect();
        let fired: Vec<_> = fired.iter().copied().map(Some).collect();
        assert_eq!(actions, fired, "{name}");
        assert_eq!(proxy.degradations(), [""; 0], "{name}");
        blocking(move || drop(server)).await;
    }
}

/// What redis-py makes of it, whichever the protocol.
const REDIS_PY: &[&str] = &[
    "cut 'ConnectionError'",
    "cut and sent again 'ok' 43",
    "so far 'ok' b'43'",
    "cut short 'ConnectionError'",
    "cut in a value 'ConnectionError'",
    "reset and sent again 'ok' 7",
    "so far 'ok' b'abcdefg'",
    "text 'UnicodeDecodeError'",
    "its connection is kept False",
    "bytes b'valu\\x9a'",
    "number 52 b'42'",
    "slow True True",
];
const REDIS_PY_FIRED: &[&str] = &[
    "truncate", "truncate", "truncate", "truncate", "reset", "corrupt", "corrupt", "corrupt",
    "throttle",
];

#[tokio::test(flavor = "multi_thread")]
async fn redis_py_meets_replies_that_are_cut_slow_and_wrong_in_resp2() {
    exact("redis_py.py", &["2"], REDIS_PY, REDIS_PY_FIRED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_py_meets_replies_that_are_cut_slow_and_wrong_in_resp3() {
    exact("redis_py.py", &["3"], REDIS_PY, REDIS_PY_FIRED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ioredis_meets_replies_that_are_cut_slow_and_wrong() {
    exact(
        "ioredis.js",
        &[],
        &[
            r#"cut "ok" 43"#,
            r#"cut short "ok" 6"#,
            r#"reset "ok" 7"#,
            "connections 4",
            r#"so far ["43","abcdefg"]"#,
            r#"bytes {"type":"Buffer","data":[118,97,108,117,154]}"#,
            r#"number 52 ["42"]"#,
            "slow true true",
        ],
        &[
            "truncate", "truncate", "truncate", "reset", "corrupt", "corrupt", "throttle",
        ],
    )
    .await;
}
