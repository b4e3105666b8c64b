//! What becomes of an answer's bytes, as real drivers see it: their own errors, and a server that is left with nothing open.

mod support;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faultbox_contract::Arg;
use faultbox_engine::testing::{Harness, PATIENCE, eventually};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Error, OptsBuilder, Row, Value};
use support::{Server, blocking, faulted, server, skip, with_database};

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

async fn connect(addr: SocketAddr, database: &str) -> Conn {
    let opts = OptsBuilder::default()
        .ip_or_hostname(addr.ip().to_string())
        .tcp_port(addr.port())
        .user(Some("root"))
        .db_name(Some(database))
        // It would ask a server on loopback for its socket, and go there.
        .prefer_socket(false);
    Conn::new(opts).await.unwrap()
}

/// Past the proxy: a number.
async fn number(server: &Arc<Server>, sql: &str) -> i64 {
    let (server, sql) = (server.clone(), sql.to_owned());
    let said = blocking(move || server.cli(&sql)).await;
    said.trim().parse().unwrap()
}

/// Waits until a query counts none: the server notices that its client is gone a little after the client does.
async fn none(server: &Arc<Server>, counting: &str) {
    let deadline = Instant::now() + PATIENCE;
    while number(server, counting).await != 0 {
        assert!(Instant::now() < deadline, "there is one still: {counting}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How the driver tells a lost connection.
fn lost(error: &Error) -> &'static str {
    match error {
        Error::Io(mysql_async::IoError::Io(e)) => match e.kind() {
            io::ErrorKind::ConnectionReset => "reset",
            io::ErrorKind::UnexpectedEof => "ended",
            io::ErrorKind::Other => "in mid-packet",
            _ => "another",
        },
        _ => "no",
    }
}

/// Whether the statement has run differs, and so does what the driver's socket says; what is left in the server does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_the_drivers_own_and_leaves_no_transaction() {
    if skip() {
        return;
    }
    let server = with_database("bytes_lost").await;
    let proxy = Harness::start(faultbox_mysql::protocol(), server.addr);
    let mut setup = connect(proxy.addr, "bytes_lost").await;
    for sql in [
        "CREATE TABLE gone (id INT) ENGINE=InnoDB",
        "CREATE SEQUENCE asked NOCACHE",
    ] {
        setup.query_drop(sql).await.unwrap();
    }
    let mut ran = 0;
    for (action, bytes, why, runs) in [
        ("drop", None, "ended", false),
        ("reset", None, "reset", false),
        ("truncate", Some(0), "ended", true),
        ("truncate", Some(3), "in mid-packet", true),
        ("truncate", Some(400), "in mid-packet", true),
    ] {
        for prepared in [false, true] {
            let case = format!("{action} {bytes:?}, prepared: {prepared}");
            let mut c = connect(proxy.addr, "bytes_lost").await;
            let id = c.id();
            let sql = "SELECT NEXTVAL(asked), REPEAT('x', 1000)";
            let statement = c.prep(sql).await.unwrap();
            c.query_drop("BEGIN").await.unwrap();
            c.query_drop("INSERT INTO gone VALUES (1)").await.unwrap();
            let mut args = vec![("query", text("SELECT nextval*"))];
            args.extend(bytes.map(|b| ("bytes", Arg::Int(b))));
            let rule = proxy.arm(action, &args);
            // A sequence moves for good: it tells whether the statement has run.
            let asked = async {
                match prepared {
                    true => c.exec_drop(&statement, ()).await,
                    false => c.query_drop(sql).await,
                }
            };
            let asked = tokio::time::timeout(PATIENCE, asked).await;
            let error = asked.expect("it does not hang").unwrap_err();
            assert_eq!(lost(&error), why, "{case}: {error:?}");
            assert_eq!((rule.hits(), rule.matched()), (1, 1), "{case}");
            proxy.rules.lift(rule.id);
            for counting in [
                format!("SELECT count(*) FROM information_schema.processlist WHERE id = {id}"),
                format!(
                    "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = {id}"
                ),
            ] {
                none(&server, &counting).await;
            }
            ran += i64::from(runs);
            let calls = "SELECT next_not_cached_value - 1 FROM bytes_lost.asked";
            assert_eq!(number(&server, calls).await, ran, "{case}");
        }
    }
    let rows = number(&server, "SELECT count(*) FROM bytes_lost.gone").await;
    assert_eq!(rows, 0);
    assert_eq!(proxy.fired(), 10);
    assert_eq!(proxy.degradations(), [""; 0]);
}

/// Values that are no longer what the server sent, as text and in binary, and a session that goes on: nothing but the byte is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_byte_is_the_callers_and_the_session_goes_on() {
    if skip() {
        return;
    }
    let server = with_database("bytes_wrong").await;
    let proxy = Harness::start(faultbox_mysql::protocol(), server.addr);
    let mut c = connect(proxy.addr, "bytes_wrong").await;
    for sql in [
        "CREATE TABLE words (id INT, word TEXT) ENGINE=InnoDB",
        "INSERT INTO words VALUES (1, 'abcdef'), (2, 'more')",
        "BEGIN",
        "INSERT INTO words VALUES (3, 'last')",
    ] {
        c.query_drop(sql).await.unwrap();
    }
    let sql = "SELECT id, word FROM words ORDER BY id";
    let statement = c.prep(sql).await.unwrap();
    let bytes = |b: &[u8]| Value::Bytes(b.to_vec());
    for (prepared, offset, id, word) in [
        (false, 0, bytes(b"\xce"), bytes(b"abcdef")),
        (false, 3, bytes(b"1"), bytes(b"ab\x9cdef")),
        (true, 0, Value::Int(0xfe), bytes(b"abcdef")),
        (true, 6, Value::Int(1), bytes(b"ab\x9cdef")),
    ] {
        let case = format!("prepared: {prepared}, {offset}");
        let args = [("table", text("words")), ("offset", Arg::Int(offset))];
        let rule = proxy.arm("corrupt", &args);
        let rows: Vec<Row> = match prepared {
            true => c.exec(&statement, ()).await.unwrap(),
            false => c.query(sql).await.unwrap(),
        };
        // What the driver's own conversions say to it.
        let fits = (
            rows[0].get_opt::<i32, _>(0).unwrap().is_ok(),
            rows[0].get_opt::<String, _>(1).unwrap().is_ok(),
        );
        assert_eq!(fits, (prepared || offset > 0, offset == 0), "{case}");
        let mut values: Vec<_> = rows.into_iter().map(Row::unwrap).collect();
        assert_eq!(values.remove(0), [id, word], "{case}");
        let ids = match prepared {
            true => [Value::Int(2), Value::Int(3)],
            false => [bytes(b"2"), bytes(b"3")],
        };
        let [two, three] = ids;
        assert_eq!(
            values,
            [vec![two, bytes(b"more")], vec![three, bytes(b"last")]]
        );
        assert_eq!(rule.hits(), 1, "{case}");
        proxy.rules.lift(rule.id);
    }
    // The transaction is none the worse.
    c.query_drop("COMMIT").await.unwrap();
    let words = "SELECT count(*) FROM bytes_wrong.words WHERE word IN ('abcdef', 'more', 'last')";
    assert_eq!(number(&server, words).await, 3);
    assert_eq!(proxy.fired(), 4);
    assert_eq!(proxy.degradations(), [""; 0]);
}

/// Least time that so many bytes take at a rate of 64 KB/s: the first of the steps, of 20 ms each, goes at once.
fn least(bytes: u32) -> Duration {
    Duration::from_secs(1) * bytes / 64_000 - Duration::from_millis(20)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_answer_arrives_whole_and_holds_nobody_else() {
    if skip() {
        return;
    }
    const SIZE: u32 = 64 << 10;
    let server = with_database("bytes_slow").await;
    let proxy = Harness::start(faultbox_mysql::protocol(), server.addr);
    let mut c = connect(proxy.addr, "bytes_slow").await;
    let sql = format!("SELECT REPEAT('x', {SIZE})");
    let whole = Some("x".repeat(SIZE as usize));
    let throttle = |rate: &str| {
        let args = [("query", text("SELECT repeat*")), ("rate", text(rate))];
        proxy.arm("throttle", &args)
    };
    let statement = c.prep(&sql).await.unwrap();
    for prepared in [false, true] {
        let rule = throttle("64KB/s");
        let start = Instant::now();
        let got: Option<String> = match prepared {
            true => c.exec_first(&statement, ()).await.unwrap(),
            false => c.query_first(&sql).await.unwrap(),
        };
        assert!(start.elapsed() >= least(SIZE), "{:?}", start.elapsed());
        assert_eq!(got, whole);
        assert_eq!((rule.hits(), rule.matched()), (1, 1));
        proxy.rules.lift(rule.id);
    }

    // At this rate it would take eleven minutes. Another session has its answer meanwhile; and without the rule, the rest comes at once.
    let rule = throttle("100B/s");
    let slow = c.query_first::<String, _>(&sql);
    let meanwhile = async {
        eventually("the slow one is answered", || rule.hits() == 1).await;
        let mut other = connect(proxy.addr, "bytes_slow").await;
        let at_once: Option<i32> = other.query_first("SELECT 1").await.unwrap();
        proxy.rules.lift(rule.id);
        at_once
    };
    let both = async { tokio::join!(meanwhile, slow) };
    let (at_once, slow) = tokio::time::timeout(PATIENCE, both).await.expect("lifted");
    assert_eq!(at_once, Some(1));
    assert_eq!(slow.unwrap(), whole);
    assert_eq!(proxy.fired(), 3);
    assert_eq!(proxy.degradations(), [""; 0]);
}

/// What the scripts meet.
fn arm(proxy: &Harness) {
    for (name, action, bytes) in [
        ("dropped", "drop", None),
        ("reset", "reset", None),
        ("cut", "truncate", Some(0)),
        ("cut short", "truncate", Some(400)),
    ] {
        let query = text(&format!("SELECT '{name}'*"));
        let bytes = bytes.map(|b| ("bytes", Arg::Int(b)));
        let args: Vec<_> = [("query", query)].into_iter().chain(bytes).collect();
        proxy.arm(action, &args);
    }
    for sql in ["SELECT 'text'*", "SELECT 1 AS number*"] {
        proxy.arm("corrupt", &[("query", text(sql))]);
    }
    let slow = ("query", text("SELECT repeat('slow'*"));
    proxy.arm("throttle", &[slow, ("rate", text("64KB/s"))]);
}

/// The answers' bytes in a client: the script's output line by line, and which rules fired, in order.
async fn exact(script: &'static str, database: &str, expected: &[&str], fired: &[&str]) {
    if skip() {
        return;
    }
    let server = blocking(server).await;
    let proxy = Arc::new(Harness::start(faultbox_mysql::protocol(), server.addr));
    let arming = proxy.clone();
    let output = blocking(move || faulted(script, "bytes", arming.addr, || arm(&arming))).await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines, expected, "\n{output}");
    let events = proxy.events.of_kind("proxy");
    let actions: Vec<_> = events.iter().map(|e| e.fields["action"].as_str()).collect();
    let fired: Vec<_> = fired.iter().copied().map(Some).collect();
    assert_eq!(actions, fired);
    let open = format!(
        "SELECT count(*) FROM information_schema.innodb_trx t JOIN information_schema.processlist p \
         ON t.trx_mysql_thread_id = p.id WHERE p.db = '{database}'"
    );
    none(&server, &open).await;
    assert_eq!(proxy.degradations(), [""; 0]);
}

/// The rules that fire in either script, in this order.
const FIRED: &[&str] = &[
    "drop", "reset", "truncate", "truncate", "corrupt", "corrupt", "throttle",
];

#[tokio::test(flavor = "multi_thread")]
async fn pymysql_meets_answers_that_are_cut_slow_and_wrong() {
    let lost = ["dropped", "reset", "cut", "cut short"]
        .map(|name| format!("{name} 'pymysql.err.OperationalError' 2013 False"));
    let mut expected: Vec<&str> = lost.iter().map(String::as_str).collect();
    expected.extend([
        "SELECT 'text' 'UnicodeDecodeError'",
        "SELECT 1 AS number 'UnicodeDecodeError'",
        "rows ((0,),)",
        "slow True True",
    ]);
    exact("pymysql_client.py", "pymysql", &expected, FIRED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql2s_pool_meets_answers_that_are_cut_slow_and_wrong() {
    let closed = r#""PROTOCOL_CONNECTION_LOST" undefined undefined "Connection lost: The server closed the connection.""#;
    let reset = r#""ECONNRESET" -104 undefined "read ECONNRESET""#;
    let lost = [
        ("dropped", closed),
        ("reset", reset),
        ("cut", closed),
        ("cut short", closed),
    ];
    let lost: Vec<String> = lost
        .iter()
        .flat_map(|(name, how)| [format!("{name} {how}"), r#"again [{"n":0}]"#.into()])
        .collect();
    let mut expected: Vec<&str> = lost.iter().map(String::as_str).collect();
    expected.extend([
        "text [{\"t\":\"\u{fffd}ext\"}]",
        r#"number [{"number":254}]"#,
        r#"rows [{"id":2}]"#,
        "slow true true",
    ]);
    exact("mysql2_client.js", "mysql2", &expected, FIRED).await;
}
