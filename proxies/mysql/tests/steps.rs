//! The steps and the readiness probe, against a real MariaDB and through the proxy.

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faultbox_contract::{Arg, Endpoint, Response};
use faultbox_engine::testing::kept::{Session, caller_keeps_its_session};
use faultbox_engine::testing::{Harness, free_addr};
use faultbox_mysql::protocol;
use serde_json::{Value, json};
use support::{server, skip};

fn endpoint(addr: SocketAddr, env: &[(&str, &str)]) -> Endpoint {
    let env = env.iter().map(|(k, v)| ((*k).into(), (*v).into()));
    Endpoint {
        kept: None,
        addr,
        host: "localhost".into(),
        env: Arc::new(env.collect::<BTreeMap<_, _>>()),
        attempt: Duration::from_secs(30),
        addresses: Arc::default(),
        tls: None,
    }
}

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

async fn step(
    addr: SocketAddr,
    name: &str,
    positional: Vec<Arg>,
    keywords: &[(&str, Arg)],
) -> Response {
    let keywords = keywords
        .iter()
        .map(|(n, a)| ((*n).to_owned(), a.clone()))
        .collect();
    let call = protocol()
        .doc()
        .check_step(name, positional, keywords)
        .unwrap();
    let env = [("MYSQL_DATABASE", "steps")];
    protocol().step(endpoint(addr, &env), call).await.unwrap()
}

async fn query(addr: SocketAddr, sql: &str, params: Value) -> Response {
    step(addr, "query", vec![text(sql), Arg::Json(params)], &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn values_keep_their_types_in_both_protocols() {
    if skip() {
        return;
    }
    let server = server();
    let columns = "12.50 AS n, CAST('2024-02-29 01:02:03.5' AS datetime(1)) AS ts, DATE'2024-02-29' AS d, TIME'-30:00:01' AS t, \
                   x'00ff' AS raw, b'101' AS bit, 0.25e0 AS f, NULL AS z, 18446744073709551615 AS big, 'größe' AS s, YEAR('2024-01-01') AS y";
    let row = json!({
        "n": "12.50", "ts": "2024-02-29 01:02:03.5", "d": "2024-02-29", "t": "-30:00:01", "raw": "0x00FF", "bit": "\u{5}", "f": 0.25,
        "z": null, "big": 18_446_744_073_709_551_615u64, "s": "größe", "y": 2024
    });
    let response = query(server.addr, &format!("SELECT {columns}"), json!([])).await;
    assert_eq!(response.data, json!([row]), "{response:?}");
    let response = query(
        server.addr,
        &format!("SELECT {columns}, ? AS p1, ? AS p2, ? AS p3, ? AS p4, ? AS p5"),
        json!([7, "it's", 0.5, null, true]),
    )
    .await;
    let mut with_params = row;
    for (name, value) in [
        ("p1", json!(7)),
        ("p2", json!("it's")),
        ("p3", json!(0.5)),
        ("p4", json!(null)),
        ("p5", json!(1)),
    ] {
        with_params[name] = value;
    }
    assert_eq!(response.data, json!([with_params]), "{response:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_tx_and_errors() {
    if skip() {
        return;
    }
    let (server, none) = (server(), json!([]));
    let proxy = Harness::start(protocol(), server.addr);
    let addr = proxy.addr;
    let exec = async |sql: &str| step(addr, "exec", vec![text(sql)], &[]).await;
    let made =
        exec("DROP TABLE IF EXISTS steps; CREATE TABLE steps (id int PRIMARY KEY AUTO_INCREMENT)")
            .await;
    assert!(made.ok, "{made:?}");
    assert_eq!(
        exec("INSERT INTO steps VALUES (1), (2)").await.data,
        json!({"rows_affected": 2, "last_insert_id": 2})
    );
    let more = step(
        addr,
        "exec",
        vec![
            text("INSERT INTO steps VALUES (?)"),
            Arg::Json(json!([null])),
        ],
        &[],
    )
    .await;
    assert_eq!(more.data, json!({"rows_affected": 1, "last_insert_id": 3}));
    let again = query(addr, "INSERT INTO steps VALUES (1)", none.clone()).await;
    assert_eq!((again.ok, again.code.as_str()), (false, "1062"));
    assert!(
        again.error.starts_with("Duplicate entry '1'"),
        "{}",
        again.error
    );
    assert_eq!(again.headers, [("sqlstate".to_owned(), "23000".to_owned())]);

    let tx = async |list: Value| step(addr, "tx", vec![Arg::Json(list)], &[]).await;
    let done = tx(json!([
        "INSERT INTO steps VALUES (10)",
        ["SELECT id FROM steps WHERE id > ? ORDER BY id", [2]]
    ]))
    .await;
    assert_eq!(
        done.data,
        json!([{"rows_affected": 1, "last_insert_id": 10}, [{"id": 3}, {"id": 10}]])
    );
    let failed = tx(json!([
        "INSERT INTO steps VALUES (11)",
        "INSERT INTO steps VALUES (1)"
    ]))
    .await;
    assert_eq!(failed.code, "1062");
    assert_eq!(
        query(addr, "SELECT count(*) AS n FROM steps", none.clone())
            .await
            .data,
        json!([{"n": 4}])
    );

    // A procedure's rows, though an OK ends the answer to its CALL; in both protocols.
    let procedure = "CREATE OR REPLACE PROCEDURE listed(least INT) BEGIN \
                     SELECT 'first' AS x; SELECT id FROM steps WHERE id >= least ORDER BY id; END";
    assert!(exec(procedure).await.ok);
    for (call, params) in [
        ("CALL listed(3)", json!([])),
        ("CALL listed(?)", json!([3])),
    ] {
        let called = query(addr, call, params).await;
        assert_eq!(called.data, json!([{"id": 3}, {"id": 10}]), "{called:?}");
    }

    // An armed rule hits a step like any other client.
    let rule = proxy.arm(
        "error",
        &[("table", text("steps")), ("code", text("ER_LOCK_DEADLOCK"))],
    );
    let hit = query(addr, "SELECT * FROM steps", none.clone()).await;
    assert_eq!(hit.code.as_str(), "1213");
    assert!(hit.error.starts_with("Deadlock found"), "{}", hit.error);
    proxy.rules.lift(rule.id);
    assert!(query(addr, "SELECT * FROM steps", none).await.ok);
    assert_eq!(proxy.degradations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn misuse_is_told_apart_from_failure() {
    if skip() {
        return;
    }
    let server = server();
    let doc = protocol().doc();
    let misuse = async |name: &str, positional: Vec<Arg>| {
        let call = doc.check_step(name, positional, vec![]).unwrap();
        protocol()
            .step(endpoint(server.addr, &[]), call)
            .await
            .unwrap_err()
            .message
    };
    assert!(
        misuse("query", vec![text("SELECT ?"), Arg::Json(json!([1, 2]))])
            .await
            .contains("1 parameters, but 2")
    );
    assert!(
        misuse("tx", vec![Arg::Json(json!([5]))])
            .await
            .contains("statement 1")
    );
    let late = step(
        server.addr,
        "query",
        vec![text("SELECT sleep(30)")],
        &[("timeout", text("200ms"))],
    )
    .await;
    assert_eq!(late.code, "ETIMEDOUT");
    let nobody = free_addr();
    assert_eq!(
        step(nobody, "query", vec![text("SELECT 1")], &[])
            .await
            .code,
        "ECONNREFUSED"
    );
    assert!(
        protocol()
            .ready(endpoint(nobody, &[]))
            .await
            .unwrap_err()
            .contains("ECONNREFUSED")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_come_from_the_service_or_the_call() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = Harness::start(protocol(), server.addr);
    for brand in ["MYSQL", "MARIADB"] {
        let env = [
            (format!("{brand}_USER"), "plain"),
            (format!("{brand}_PASSWORD"), "secret"),
            (format!("{brand}_DATABASE"), "steps"),
        ];
        let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        protocol().ready(endpoint(proxy.addr, &env)).await.unwrap();
        let call = protocol()
            .doc()
            .check_step(
                "query",
                vec![text("SELECT current_user() AS u, database() AS d")],
                vec![],
            )
            .unwrap();
        let response = protocol()
            .step(endpoint(proxy.addr, &env), call)
            .await
            .unwrap();
        assert_eq!(response.data, json!([{"u": "plain@%", "d": "steps"}]));
    }
    let login = async |user: &str, password: &str| {
        let keywords = [("user", text(user)), ("password", text(password))];
        step(proxy.addr, "query", vec![text("SELECT 1")], &keywords).await
    };
    assert_eq!(login("plain", "wrong").await.code, "1045");
    let unknown = login("edward", "secret").await;
    assert!(
        unknown.error.contains("plugin client_ed25519"),
        "{unknown:?}"
    );
    assert_eq!(proxy.degradations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_does_what_its_table_says() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = Harness::start(protocol(), server.addr);
    let whole = "x".repeat(1000);
    // In the text protocol, then in the binary one.
    for (select, params) in [
        ("SELECT repeat('x', 1000) AS x", json!([])),
        ("SELECT repeat(?, 1000) AS x", json!(["x"])),
    ] {
        let sql = async |action: &str, args: &[(&str, Arg)]| {
            let mut all = vec![("query", text("SELECT repeat*"))];
            all.extend_from_slice(args);
            let rule = proxy.arm(action, &all);
            let start = Instant::now();
            let response = query(proxy.addr, select, params.clone()).await;
            proxy.rules.lift(rule.id);
            assert_eq!(rule.hits(), 1, "{action}");
            (response, start.elapsed())
        };
        let (dropped, _) = sql("drop", &[]).await;
        assert_eq!(
            (dropped.ok, dropped.code.as_str()),
            (false, "2013"),
            "{dropped:?}"
        );
        let (reset, _) = sql("reset", &[]).await;
        assert_eq!(
            (reset.ok, reset.code.as_str()),
            (false, "ECONNRESET"),
            "{reset:?}"
        );
        let (cut, _) = sql("truncate", &[("bytes", Arg::Int(100))]).await;
        assert_eq!((cut.ok, cut.code.as_str()), (false, "2013"), "{cut:?}");
        let (late, took) = sql("delay", &[("delay", text("300ms"))]).await;
        assert_eq!(late.data, json!([{"x": whole}]));
        assert!(took >= Duration::from_millis(300));
        let (slow, took) = sql("throttle", &[("rate", text("4KB/s"))]).await;
        assert_eq!(slow.data, json!([{"x": whole}]));
        assert!(took >= Duration::from_millis(200), "{took:?}");
        let (wrong, _) = sql("corrupt", &[("offset", Arg::Int(10))]).await;
        // Every x but the eleventh, which is no text any more.
        let x = wrong.data[0]["x"].as_str().unwrap_or_default();
        assert_eq!(x, format!("0x{}87{}", "78".repeat(10), "78".repeat(989)));
        let (rows, _) = sql(
            "response",
            &[("rows", Arg::Json(json!([{"x": "a"}, {"x": null}])))],
        )
        .await;
        assert_eq!(rows.data, json!([{"x": "a"}, {"x": null}]), "{rows:?}");
        let (closed, _) = sql("error", &[("code", text("ER_SERVER_SHUTDOWN"))]).await;
        assert_eq!(
            (closed.ok, closed.code.as_str()),
            (false, "1053"),
            "{closed:?}"
        );
        let rule = proxy.arm(
            "error",
            &[
                ("verb", text("CONNECT")),
                ("code", Arg::Int(1040)),
                ("user", text("ro*")),
            ],
        );
        let refused = query(proxy.addr, select, params.clone()).await;
        assert_eq!(
            (refused.code.as_str(), refused.error.as_str()),
            ("1040", "Too many connections")
        );
        proxy.rules.lift(rule.id);
    }
    let rule = proxy.arm(
        "response",
        &[
            ("query", text("SELECT ? AS a")),
            ("rows", Arg::Json(json!([{"b": 1}]))),
        ],
    );
    let odd = query(proxy.addr, "SELECT ? AS a", json!([1])).await;
    assert_eq!(odd.code, "1366", "{odd:?}");
    proxy.rules.lift(rule.id);
    assert_eq!(proxy.degradations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_query_ends_an_injected_delay_as_it_would_a_slow_statement() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = Harness::start(protocol(), server.addr);
    let rule = proxy.arm(
        "delay",
        &[
            ("query", text("SELECT connection_id() AS slow")),
            ("delay", text("600s")),
        ],
    );
    let start = Instant::now();
    // In a database of its own: the sessions of other tests, which may be doing something by the time of the KILL, are left alone.
    let database = [("database", text("killed"))];
    let create = vec![text("CREATE DATABASE killed")];
    let made = step(server.addr, "exec", create, &[]).await;
    assert!(made.ok, "{made:?}");
    let asking = step(
        proxy.addr,
        "query",
        vec![text("SELECT connection_id() AS slow")],
        &database,
    );
    let (answer, ()) = tokio::join!(asking, async {
        while rule.hits() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Whose it is: the only session of the database. It sleeps, or is about to, after its login.
        let sql = "SELECT id FROM information_schema.processlist WHERE db = 'killed'";
        let sessions = query(server.addr, sql, json!([])).await;
        let sessions = sessions.data.as_array().unwrap();
        assert_eq!(sessions.len(), 1, "{sessions:?}");
        let kill = format!("KILL QUERY {}", sessions[0]["id"]);
        let killed = step(
            proxy.addr,
            "exec",
            vec![text(&kill)],
            &[("database", text("mysql"))],
        )
        .await;
        assert!(killed.ok, "{killed:?}");
    });
    assert_eq!(answer.code, "1317", "{answer:?}");
    assert!(start.elapsed() < Duration::from_secs(300));
    proxy.rules.lift(rule.id);
    assert_eq!(proxy.degradations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_keep_their_connections() {
    if skip() {
        return;
    }
    let server = server();
    let session = Session {
        id: "SELECT CONNECTION_ID() AS id",
        change: "SET SESSION lock_wait_timeout = 60",
        end: "KILL $ID",
        count: "SELECT count(*) AS n FROM information_schema.processlist WHERE id = $ID",
    };
    let endpoint = endpoint(server.addr, &[("MYSQL_DATABASE", "steps")]);
    caller_keeps_its_session(protocol(), endpoint, session).await;
}
