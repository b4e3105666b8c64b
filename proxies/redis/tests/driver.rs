//! The crate `redis` as the client: the same answers through the proxy as directly, and the errors of rules as its own.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use faultbox_contract::Arg;
use faultbox_engine::testing::Harness;
use redis::{
    Client, Commands, Connection, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value,
};
use support::{Server, servers};

/// How many commands one pipeline has: more than any buffer between the two holds.
const MANY: usize = 10_000;
/// Longer than any answer takes on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

/// Every server that is there, in turn, each with a proxy in front, and both versions of the protocol.
async fn each(
    test: impl Fn(&str, SocketAddr, &Harness, &'static str) + Send + Sync + Copy + 'static,
) {
    for (name, binary) in servers() {
        for version in ["resp2", "resp3"] {
            let binary = binary.clone();
            let server = blocking(move || Server::start(&binary, &[])).await;
            let proxy = Arc::new(Harness::start(faultbox_redis::protocol(), server.addr));
            let (addr, at) = (server.addr, proxy.clone());
            blocking(move || test(name, addr, &at, version)).await;
            assert_eq!(proxy.degradations(), [""; 0], "{name} {version}");
            blocking(move || drop(server)).await;
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn connect(addr: SocketAddr, version: &str) -> Connection {
    let client = Client::open(format!("redis://{addr}/?protocol={version}")).unwrap();
    let connection = client.get_connection().unwrap();
    connection.set_read_timeout(Some(DEADLINE)).unwrap();
    connection
}

/// What the crate says to all sorts of commands, a line each.
fn battery(addr: SocketAddr, version: &'static str) -> RedisResult<Vec<String>> {
    let mut c = connect(addr, version);
    let mut said = vec![];
    let mut say = |what: &str, value: &dyn std::fmt::Debug| said.push(format!("{what} {value:?}"));
    let raw = |c: &mut Connection, words: &[&str]| {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query::<Value>(c)
    };
    say("flush", &raw(&mut c, &["FLUSHALL"])?);

    let binary: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    say("set", &c.set::<_, _, Value>("big", &binary)?);
    say("same", &(c.get::<_, Vec<u8>>("big")? == binary));
    say("none", &c.get::<_, Option<String>>("no such")?);
    say("incr", &c.incr::<_, _, i64>("n", 41)?);
    say("mget", &c.mget::<_, Vec<Option<String>>>(&["n", "no"])?);
    for words in [
        &["HSET", "h", "a", "1", "b", "2"][..],
        &["HGETALL", "h"],
        &["ZADD", "z", "1.5", "a"],
        &["ZSCORE", "z", "a"],
        &["SADD", "s", "a"],
        &["SMEMBERS", "s"],
        &["CONFIG", "GET", "maxmemory"],
    ] {
        say(&words.join(" "), &raw(&mut c, words)?);
    }
    for words in [
        &["LPUSH", "n", "1"][..],
        &["NO SUCH"],
        &["EVALSHA", "0", "0"],
    ] {
        let error = raw(&mut c, words).unwrap_err();
        say(&words.join(" "), &(error.kind(), error.to_string()));
    }

    let mut pipe = redis::pipe();
    for i in 0..MANY {
        pipe.cmd("SET").arg(format!("p{i}")).arg(i).ignore();
        pipe.cmd("GET").arg(format!("p{i}"));
    }
    let answers: Vec<usize> = pipe.query(&mut c)?;
    say("pipeline", &answers.into_iter().eq(0..MANY));

    let mut pipe = redis::pipe();
    pipe.atomic().incr("n", 1).get("n").set("m", "v");
    say("multi", &pipe.query::<Vec<Value>>(&mut c)?);
    let mut pipe = redis::pipe();
    pipe.atomic().incr("n", 1).cmd("LPUSH").arg("n").arg(1);
    let error = pipe.query::<Vec<Value>>(&mut c).unwrap_err();
    say("multi with an error", &(error.kind(), error.to_string()));
    let mut pipe = redis::pipe();
    pipe.atomic().cmd("SET").arg("n");
    let error = pipe.query::<Vec<Value>>(&mut c).unwrap_err();
    say("multi refused", &(error.kind(), error.to_string()));
    say("n", &c.get::<_, i64>("n")?);

    let pusher = thread::spawn(move || connect(addr, version).rpush::<_, _, i64>("q", "late"));
    say("blpop", &c.blpop::<_, (String, String)>("q", 60.0)?);
    say("pushed", &pusher.join().unwrap()?);
    say(
        "in vain",
        &c.blpop::<_, Option<(String, String)>>("q", 0.1)?,
    );

    let mut listener = connect(addr, version);
    let mut listener = listener.as_pubsub();
    listener.set_read_timeout(Some(DEADLINE))?;
    // One by one: with RESP3, the crate takes the second confirmation of a command for the answer to the next.
    listener.subscribe("news")?;
    listener.subscribe("weather")?;
    listener.psubscribe("n*")?;
    for (channel, message) in [("news", "one"), ("weather", "two"), ("nothing", "three")] {
        say("heard by", &c.publish::<_, _, i64>(channel, message)?);
    }
    for _ in 0..4 {
        let message = listener.get_message()?;
        let (from, text): (&str, String) = (message.get_channel_name(), message.get_payload()?);
        say("message", &(from, text, message.from_pattern()));
    }
    Ok(said)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_hears_the_same_through_the_proxy() {
    each(|name, direct, proxy, version| {
        let direct = battery(direct, version).unwrap();
        assert_eq!(battery(proxy.addr, version).unwrap(), direct, "{name}");
        assert!(direct.contains(&"pipeline true".to_owned()), "{direct:#?}");
        let map = direct.iter().find(|l| l.starts_with("HGETALL")).unwrap();
        assert_eq!(map.contains("map"), version == "resp3", "{map}");
        assert_eq!(proxy.events.all().len(), 0, "{:?}", proxy.events.all());
        assert!(proxy.meter.count() as usize > 2 * MANY);
    })
    .await;
}

/// What becomes of a rule's fault in the crate: its kind, its words, and whether it takes the connection for lost.
fn class(error: &RedisError) -> (ErrorKind, Option<&str>, Option<&str>, bool) {
    let lost = error.is_connection_dropped();
    (error.kind(), error.code(), error.detail(), lost)
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_arrive_as_its_own_kinds() {
    each(|name, direct, proxy, version| {
        let said = [
            (
                "SET",
                "READONLY You can't write against a read only replica.",
            ),
            ("GET", "LOADING Redis is loading the dataset in memory"),
            (
                "APPEND",
                "OOM command not allowed when used memory > 'maxmemory'.",
            ),
            ("STRLEN", "NOPERM no"),
            ("HGET", "MOVED 12706 127.0.0.1:7001"),
            ("ZADD", "ERR no"),
        ];
        for (command, message) in said {
            let args = [("command", text(command)), ("message", text(message))];
            proxy.arm("error", &args);
        }
        let mut c = connect(proxy.addr, version);
        let mut kind = |words: &[&str]| {
            let mut command = redis::cmd(words[0]);
            let answer = command.arg(&words[1..]).query::<Value>(&mut c);
            let error = answer.unwrap_err();
            let (kind, code, detail, lost) = class(&error);
            assert!(!lost, "{name} {version}: {error}");
            (
                kind,
                code.unwrap_or_default().to_owned(),
                detail.unwrap_or_default().to_owned(),
            )
        };
        let server = |kind, code: &str, detail: &str| {
            (ErrorKind::Server(kind), code.to_owned(), detail.to_owned())
        };
        assert_eq!(
            kind(&["SET", "k", "v"]),
            server(
                ServerErrorKind::ReadOnly,
                "READONLY",
                "You can't write against a read only replica."
            )
        );
        assert_eq!(
            kind(&["GET", "k"]),
            server(
                ServerErrorKind::BusyLoading,
                "LOADING",
                "Redis is loading the dataset in memory"
            )
        );
        assert_eq!(kind(&["APPEND", "k", "v"]).0, ErrorKind::Extension);
        assert_eq!(
            kind(&["STRLEN", "k"]),
            server(ServerErrorKind::NoPerm, "NOPERM", "no")
        );
        assert_eq!(
            kind(&["HGET", "k", "f"]),
            server(ServerErrorKind::Moved, "MOVED", "12706 127.0.0.1:7001")
        );
        assert_eq!(
            kind(&["ZADD", "z", "1", "a"]),
            server(ServerErrorKind::ResponseError, "ERR", "no")
        );

        // Nothing of a transaction that a rule has denied a part of is done.
        let mut pipe = redis::pipe();
        pipe.atomic().incr("n", 1).set("k", "v");
        let error = pipe.query::<Vec<Value>>(&mut c).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::ExecAbort));
        assert!(error.to_string().contains("ReadOnly: You can't"), "{error}");
        let mut past = connect(direct, version);
        assert_eq!(past.get::<_, Option<i64>>("n").unwrap(), None);
        assert_eq!(proxy.fired(), said.len() + 1, "{name} {version}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_and_a_lost_connection_are_told_apart() {
    each(|name, direct, proxy, version| {
        proxy.arm("drop", &[("command", text("INCR"))]);
        proxy.arm("reset", &[("command", text("SET"))]);
        let cut = [("command", text("DECR")), ("bytes", Arg::Int(0))];
        proxy.arm("truncate", &cut);
        let fails = |command: &str, args: &[&str], patience| {
            let mut c = connect(proxy.addr, version);
            c.set_read_timeout(Some(patience)).unwrap();
            let answer = redis::cmd(command).arg(args).query::<Value>(&mut c);
            let error = answer.unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::Io,
                "{name} {version} {command}: {error}"
            );
            (error.is_timeout(), error.is_connection_dropped())
        };
        assert_eq!(
            fails("INCR", &["k"], Duration::from_millis(300)),
            (true, false)
        );
        assert_eq!(fails("SET", &["k", "v"], DEADLINE), (false, true));
        assert_eq!(fails("DECR", &["k"], DEADLINE), (false, true));
        assert_eq!(proxy.fired(), 3, "{name} {version}");
        // Of these three, only the last has run.
        let mut past = connect(direct, version);
        assert_eq!(past.get::<_, i64>("k").unwrap(), -1);
    })
    .await;
}
