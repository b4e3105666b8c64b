//! What becomes of an answer's bytes, as real drivers see it: their own errors, and a server that is left with nothing open.

mod support;

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faultbox_contract::Arg;
use faultbox_engine::testing::{Harness, PATIENCE, eventually};
use support::{Server, faulted, server, skip};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error, NoTls, SimpleQueryMessage};
use tokio_stream::StreamExt;

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

fn proxy(server: &Server) -> Harness {
    Harness::start(faultbox_postgres::protocol(), server.addr)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// A client of the crate tokio_postgres, and what drives its connection: the one says that the connection is gone, the other why.
async fn connect(proxy: &Harness) -> (Client, JoinHandle<Result<(), Error>>) {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(proxy.addr.port());
    config.user("postgres").dbname("tokio");
    let (client, connection) = config.connect(NoTls).await.unwrap();
    (client, tokio::spawn(connection))
}

/// Why the driver took its connection for lost.
async fn end_of(connection: JoinHandle<Result<(), Error>>) -> String {
    let ended = tokio::time::timeout(PATIENCE, connection).await;
    match ended.expect("the connection ends").unwrap() {
        Ok(()) => "in good order".into(),
        Err(e) if e.is_closed() => "closed".into(),
        Err(e) => match e.source().and_then(|s| s.downcast_ref::<io::Error>()) {
            Some(e) => format!("{:?}", e.kind()),
            None => e.to_string(),
        },
    }
}

/// Past the proxy: a number.
async fn number(server: &Arc<Server>, sql: &str) -> i64 {
    let (server, sql) = (server.clone(), sql.to_owned());
    let said = blocking(move || server.psql("tokio", &sql)).await;
    said.trim().parse().unwrap()
}

/// Waits until the server has no such session: it notices that its client is gone a little after the client does.
async fn none(server: &Arc<Server>, which: &str) {
    let deadline = Instant::now() + PATIENCE;
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE {which}");
    while number(server, &sql).await != 0 {
        assert!(Instant::now() < deadline, "there is one still: {which}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether the statement has run differs, and so does what the driver's socket says; what is left in the server does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_the_drivers_own_and_leaves_no_transaction() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = proxy(&server);
    let (setup, _) = connect(&proxy).await;
    setup
        .batch_execute(
            "DROP TABLE IF EXISTS lost; DROP SEQUENCE IF EXISTS asked; \
             CREATE TABLE lost (id int); CREATE SEQUENCE asked",
        )
        .await
        .unwrap();
    let mut ran = 0;
    for (action, bytes, why, runs) in [
        ("drop", None, "closed", false),
        ("reset", None, "ConnectionReset", false),
        ("truncate", Some(0), "closed", true),
        // In mid-message: the driver complains of bytes that are left.
        ("truncate", Some(3), "Other", true),
        ("truncate", Some(400), "Other", true),
    ] {
        for extended in [false, true] {
            let case = format!("{action} {bytes:?}, extended: {extended}");
            let (client, connection) = connect(&proxy).await;
            let pid = client.query_one("SELECT pg_backend_pid()", &[]).await;
            let pid: i32 = pid.unwrap().get(0);
            client
                .batch_execute("BEGIN; INSERT INTO lost VALUES (1)")
                .await
                .unwrap();
            let mut args = vec![("query", text("SELECT nextval*"))];
            args.extend(bytes.map(|b| ("bytes", Arg::Int(b))));
            let rule = proxy.arm(action, &args);
            // A sequence moves for good: it tells whether the statement has run.
            let sql = "SELECT nextval('asked'), repeat('x', 1000)";
            let asked = async {
                match extended {
                    true => client.query(sql, &[]).await.map(drop),
                    false => client.simple_query(sql).await.map(drop),
                }
            };
            let asked = tokio::time::timeout(PATIENCE, asked).await;
            let error = asked.expect("it does not hang").unwrap_err();
            assert!(error.is_closed() && client.is_closed(), "{case}: {error:?}");
            assert_eq!(end_of(connection).await, why, "{case}");
            assert_eq!((rule.hits(), rule.matched()), (1, 1), "{case}");
            proxy.rules.lift(rule.id);
            none(&server, &format!("pid = {pid}")).await;
            ran += i64::from(runs);
            let calls = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM asked";
            assert_eq!(number(&server, calls).await, ran, "{case}");
        }
    }
    assert_eq!(number(&server, "SELECT count(*) FROM lost").await, 0);
    assert_eq!(proxy.fired(), 10);
    assert_eq!(proxy.degradations(), [""; 0]);
}

/// Values that are no longer what the server sent, in either format, and a session that goes on: nothing but the byte is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_byte_is_the_callers_and_the_session_goes_on() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = proxy(&server);
    let (client, _) = connect(&proxy).await;
    client
        .batch_execute(
            "DROP TABLE IF EXISTS words; CREATE TABLE words (id int, word text); \
             INSERT INTO words VALUES (1, 'abcdef')",
        )
        .await
        .unwrap();
    let select = client.prepare("SELECT id, word FROM words").await.unwrap();
    client
        .batch_execute("BEGIN; INSERT INTO words VALUES (2, 'more')")
        .await
        .unwrap();
    let corrupt = |offset: i64| {
        let args = [("table", text("words")), ("offset", Arg::Int(offset))];
        proxy.arm("corrupt", &args)
    };

    // In binary, an integer is just another one.
    let rule = corrupt(3);
    let rows = client.query(&select, &[]).await.unwrap();
    assert_eq!(rows[0].get::<_, i32>(0), 0xfe);
    assert_eq!(rows[0].get::<_, &str>(1), "abcdef");
    assert_eq!(rows[1].get::<_, i32>(0), 2);
    assert_eq!(rule.hits(), 1);
    proxy.rules.lift(rule.id);

    let rule = corrupt(6);
    let rows = client.query(&select, &[]).await.unwrap();
    assert_eq!(rows[0].get::<_, i32>(0), 1);
    let error = rows[0].try_get::<_, &str>(1).unwrap_err();
    assert!(
        error
            .source()
            .is_some_and(|s| s.is::<std::str::Utf8Error>()),
        "{error:?}"
    );
    assert_eq!(rows[1].get::<_, &str>(1), "more");
    assert_eq!(rule.hits(), 1);
    proxy.rules.lift(rule.id);

    // As text, a digit is no digit any more. Past the values stands the command's tag.
    for (offset, said) in [
        (0, "error deserializing column 0"),
        (99, "error parsing response from server"),
    ] {
        let rule = corrupt(offset);
        let error = match client.simple_query("SELECT id FROM words").await {
            Ok(messages) => match &messages[1] {
                SimpleQueryMessage::Row(row) => row.try_get(0).unwrap_err(),
                other => panic!("{other:?}"),
            },
            Err(error) => error,
        };
        assert!(error.to_string().starts_with(said), "{error}");
        assert_eq!(rule.hits(), 1);
        proxy.rules.lift(rule.id);
    }

    let rule = corrupt(2);
    let copied = client.copy_out("COPY words TO STDOUT").await.unwrap();
    let chunks: Result<Vec<_>, _> = copied.collect().await;
    assert_eq!(chunks.unwrap().concat(), b"1\t\x9ebcdef\n2\tmore\n");
    assert_eq!(rule.hits(), 1);
    proxy.rules.lift(rule.id);

    // The transaction is none the worse.
    client.batch_execute("COMMIT").await.unwrap();
    let words = "SELECT count(*) FROM words WHERE word IN ('abcdef', 'more')";
    assert_eq!(number(&server, words).await, 2);
    assert_eq!(proxy.fired(), 5);
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
    let server = server();
    let proxy = proxy(&server);
    let (client, _) = connect(&proxy).await;
    let sql = format!("SELECT repeat('x', {SIZE})");
    let throttle = |rate: &str| {
        let args = [("query", text("SELECT repeat*")), ("rate", text(rate))];
        proxy.arm("throttle", &args)
    };

    let rule = throttle("64KB/s");
    let start = Instant::now();
    let row = client.query_one(&sql, &[]).await.unwrap();
    assert!(start.elapsed() >= least(SIZE), "{:?}", start.elapsed());
    assert_eq!(row.get::<_, &str>(0), "x".repeat(SIZE as usize));
    assert_eq!((rule.hits(), rule.matched()), (1, 1));
    proxy.rules.lift(rule.id);

    // At this rate it would take eleven minutes. Another session has its answer meanwhile; and without the rule, the rest comes at once.
    let rule = throttle("100B/s");
    let slow = client.query_one(&sql, &[]);
    let meanwhile = async {
        eventually("the slow one is answered", || rule.hits() == 1).await;
        let (other, _) = connect(&proxy).await;
        let row = other.query_one("SELECT 1", &[]).await.unwrap();
        let at_once: i32 = row.get(0);
        proxy.rules.lift(rule.id);
        at_once
    };
    let both = async { tokio::join!(biased; meanwhile, slow) };
    let (at_once, slow) = tokio::time::timeout(PATIENCE, both).await.expect("lifted");
    assert_eq!(at_once, 1);
    assert_eq!(slow.unwrap().get::<_, &str>(0), "x".repeat(SIZE as usize));
    assert_eq!(proxy.fired(), 2);
    assert_eq!(proxy.degradations(), [""; 0]);
}

/// Every field of an error that a rule words, as the driver tells them apart.
#[tokio::test(flavor = "multi_thread")]
async fn an_errors_detail_and_hint_are_read_back() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = proxy(&server);
    let (client, _) = connect(&proxy).await;
    let (detail, hint) = ("Key (id)=(1) is kept elsewhere.", "größer: try 100 % less");
    let worded = |verb: &str, severity: &str, code: &str| {
        let args = [
            ("verb", text(verb)),
            ("code", text(code)),
            ("severity", text(severity)),
            ("message", text("not today")),
            ("detail", text(detail)),
            ("hint", text(hint)),
        ];
        proxy.arm("error", &args)
    };
    let check = |error: Error, severity: &str, code: &str| {
        let said = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
        assert_eq!((said.severity(), said.code().code()), (severity, code));
        assert_eq!(said.message(), "not today");
        assert_eq!((said.detail(), said.hint()), (Some(detail), Some(hint)));
    };
    let rule = worded("SELECT", "ERROR", "unique_violation");
    check(
        client.query("SELECT 1", &[]).await.unwrap_err(),
        "ERROR",
        "23505",
    );
    check(
        client.simple_query("SELECT 1").await.unwrap_err(),
        "ERROR",
        "23505",
    );
    assert_eq!(rule.hits(), 2);
    proxy.rules.lift(rule.id);
    // The server's own errors have none of it.
    let error = client.query("SELECT 1/0", &[]).await.unwrap_err();
    let said = error.as_db_error().unwrap();
    assert_eq!(
        (said.code().code(), said.detail(), said.hint()),
        ("22012", None, None)
    );

    let rule = worded("CONNECT", "FATAL", "too_many_connections");
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(proxy.addr.port());
    let refused = config.user("postgres").dbname("tokio").connect(NoTls).await;
    check(refused.err().expect("no login"), "FATAL", "53300");
    assert_eq!(rule.hits(), 1);
    proxy.rules.lift(rule.id);
    // Of two fields, those that are left out are not there, rather than empty.
    let args = [("verb", text("SELECT")), ("hint", text(hint))];
    let rule = proxy.arm("error", &args);
    let error = client.query("SELECT 1", &[]).await.unwrap_err();
    let said = error.as_db_error().unwrap();
    assert_eq!((said.detail(), said.hint()), (None, Some(hint)));
    assert_eq!(rule.hits(), 1);
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
    proxy.arm("corrupt", &[("query", text("SELECT 'text'"))]);
    // The last byte of an integer in binary, and past the end of one in text: there, the command's tag.
    let number = ("query", text("SELECT 1 AS number"));
    proxy.arm("corrupt", &[number, ("offset", Arg::Int(3))]);
    let slow = ("query", text("SELECT repeat('slow'*"));
    proxy.arm("throttle", &[slow, ("rate", text("64KB/s"))]);
    for (query, message) in [
        ("INSERT INTO lost VALUES ($1)", "not this one"),
        ("DELETE FROM lost", "nor this one"),
    ] {
        let args = [
            ("query", text(query)),
            ("code", text("check_violation")),
            ("message", text(message)),
            ("detail", text("It is kept elsewhere.")),
            ("hint", text("größer")),
        ];
        proxy.arm("error", &args);
    }
}

/// The answers' bytes in a client: the script's output line by line, and which rules fired, in order.
async fn exact(script: &'static str, expected: &[&str], fired: &[&str]) {
    if skip() {
        return;
    }
    let server = server();
    let proxy = Arc::new(proxy(&server));
    let arming = proxy.clone();
    let output = blocking(move || faulted(script, "bytes", arming.addr, || arm(&arming))).await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines, expected, "\n{output}");
    let events = proxy.events.of_kind("proxy");
    let actions: Vec<_> = events.iter().map(|e| e.fields["action"].as_str()).collect();
    let fired: Vec<_> = fired.iter().copied().map(Some).collect();
    assert_eq!(actions, fired);
    let database = script.split('_').next().unwrap_or_default();
    let open = format!("datname = '{database}' AND xact_start IS NOT NULL");
    none(&server, &open).await;
    assert_eq!(proxy.degradations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn psycopg3_meets_answers_that_are_cut_slow_and_wrong() {
    let lost = "psycopg.OperationalError' None ''";
    let lost: Vec<String> = ["dropped", "reset", "cut", "cut short"]
        .iter()
        .flat_map(|name| [format!("{name} '{lost}"), "lost True 'UNKNOWN'".into()])
        .collect();
    let mut expected: Vec<&str> = lost.iter().map(String::as_str).collect();
    expected.extend([
        "rows (0,)",
        "SELECT 'text' 'UnicodeDecodeError'",
        "SELECT 1 AS number 'ok' (1,)",
        "SELECT 'text' 'UnicodeDecodeError'",
        "SELECT 1 AS number 'ok' (254,)",
        "goes on False 'INTRANS' 'COMMIT'",
        "rows (1,)",
        "slow True True",
        "worded 'CheckViolation' '23514' 'ERROR' 'ERROR' 'not this one' 'It is kept elsewhere.' 'größer'",
        "worded 'CheckViolation' '23514' 'ERROR' 'ERROR' 'nor this one' 'It is kept elsewhere.' 'größer'",
    ]);
    let fired = [
        "drop", "reset", "truncate", "truncate", "corrupt", "corrupt", "corrupt", "corrupt",
        "throttle", "error", "error",
    ];
    exact("psycopg3_client.py", &expected, &fired).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asyncpgs_pool_meets_answers_that_are_cut_and_wrong() {
    let lost = ["dropped", "reset", "cut", "cut short"]
        .map(|name| format!("{name} 'asyncpg.exceptions.ConnectionDoesNotExistError' '08003'"));
    let mut expected: Vec<&str> = lost.iter().map(String::as_str).collect();
    expected.extend([
        "rows 0",
        "text 'UnicodeDecodeError'",
        "number 254",
        "rows 1",
        "worded 'CheckViolationError' '23514' 'nor this one' 'It is kept elsewhere.' 'größer'",
    ]);
    let fired = [
        "drop", "reset", "truncate", "truncate", "corrupt", "corrupt", "error",
    ];
    exact("asyncpg_client.py", &expected, &fired).await;
}
