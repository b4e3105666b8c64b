//! The steps and the readiness probe, against a real PostgreSQL and through the proxy.

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faultbox_contract::{Arg, Endpoint, Response};
use faultbox_engine::testing::kept::{Session, caller_keeps_its_session};
use faultbox_engine::testing::{Harness, free_addr};
use faultbox_postgres::protocol;
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
    let mut keywords: Vec<_> = keywords
        .iter()
        .map(|(n, a)| ((*n).to_owned(), a.clone()))
        .collect();
    if !keywords.iter().any(|(n, _)| n == "database") {
        keywords.push(("database".into(), text("tokio")));
    }
    let call = protocol()
        .doc()
        .check_step(name, positional, keywords)
        .unwrap();
    protocol().step(endpoint(addr, &[]), call).await.unwrap()
}

async fn query(addr: SocketAddr, sql: &str, params: Value) -> Response {
    step(addr, "query", vec![text(sql), Arg::Json(params)], &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn values_keep_their_types() {
    if skip() {
        return;
    }
    let server = server();
    let response = query(
        server.addr,
        "SELECT $1::int AS i, $2::text AS t, $3::bool AS b, $4::float8 AS f, $5::jsonb AS j, $6::int[] AS a, $7::numeric AS n, $8::text AS z,
                $9::timestamptz AS ts, '2024-02-29'::date AS d, '1 day 02:00'::interval AS iv, '\\x00ff'::bytea AS by,
                'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid AS u, '10.0.0.0/8'::cidr AS c, 'NaN'::float8 AS nan, -0.00012::numeric AS small,
                ARRAY[['a','b'],['c',NULL]] AS aa, 0.1::float4 AS f4, 123456789012.5::numeric(20,4) AS big",
        json!([7, "it's", true, 0.5, {"k": [1, null]}, [1, 2], "12.50", null, "2024-05-06 07:08:09.5+02"]),
    )
    .await;
    assert!(response.ok, "{response:?}");
    assert_eq!(
        response.data,
        json!([{
            "i": 7, "t": "it's", "b": true, "f": 0.5, "j": {"k": [1, null]}, "a": [1, 2], "n": "12.50", "z": null,
            "ts": "2024-05-06 05:08:09.5+00", "d": "2024-02-29", "iv": "1 day 02:00:00", "by": "\\x00ff",
            "u": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "c": "10.0.0.0/8", "nan": "NaN", "small": "-0.00012",
            "aa": [["a", "b"], ["c", null]], "f4": 0.1, "big": "123456789012.5000"
        }])
    );
}

/// Of types that are not known here, too, the value is the text that psql shows.
#[tokio::test(flavor = "multi_thread")]
async fn values_of_any_type_are_what_psql_shows() {
    if skip() {
        return;
    }
    let server = server();
    server.psql(
        "tokio",
        "DROP TYPE IF EXISTS pair, mood; CREATE TYPE pair AS (a int, b text); CREATE TYPE mood AS ENUM ('sad', 'ok')",
    );
    for value in [
        "'[1,5)'::int4range",
        "'{[1,5),[7,9)}'::int4multirange",
        "'12.5'::money",
        "'(1.5,2)'::point",
        "'(1,1),(0,0)'::box",
        "B'101'::bit(3)",
        "B'10'::varbit",
        "'pg_class'::regclass",
        "'08:00:2b:01:02:03'::macaddr",
        "ROW(1, 'a b', NULL)",
        "ROW(1, 'x')::pair",
        "'a fat cat'::tsvector",
        "'fat & cat'::tsquery",
        "'16/B374D848'::pg_lsn",
        "'ok'::mood",
        "'$.a'::jsonpath",
        "'10:20:10,15'::pg_snapshot",
        "'-1 day +02:00'::interval",
        "'1 year -2 mons 3 days -04:05:06.7'::interval",
        "current_database()",
        "'(0,2)'::tid",
    ] {
        let shown = server.psql("tokio", &format!("SELECT {value}"));
        let response = query(
            server.addr,
            &format!("SELECT {value} AS v, 7 AS known"),
            json!([]),
        )
        .await;
        assert_eq!(
            response.data,
            json!([{"v": shown.trim_end(), "known": 7}]),
            "{value}"
        );
    }
    let arrays = "ARRAY['[1,2)'::int4range, NULL] AS ranges, ARRAY[ROW(1, 'x')::pair] AS pairs, ARRAY['sad', 'ok']::mood[] AS moods, \
                  ARRAY['12'::money] AS money, $1::int[] AS ints";
    let response = query(server.addr, &format!("SELECT {arrays}"), json!([[1, 2]])).await;
    assert_eq!(
        response.data,
        json!([{"ranges": ["[1,2)", null], "pairs": ["(1,x)"], "moods": ["sad", "ok"], "money": ["$12.00"], "ints": [1, 2]}]),
        "{response:?}"
    );
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
    assert!(
        exec("DROP TABLE IF EXISTS steps; CREATE TABLE steps (id int PRIMARY KEY)")
            .await
            .ok
    );
    assert_eq!(
        exec("INSERT INTO steps VALUES (1), (2)").await.data,
        json!({"rows_affected": 2})
    );
    let more = step(
        addr,
        "exec",
        vec![text("INSERT INTO steps VALUES ($1)"), Arg::Json(json!([3]))],
        &[],
    )
    .await;
    assert_eq!(more.data, json!({"rows_affected": 1}));
    let again = query(addr, "INSERT INTO steps VALUES (1)", none.clone()).await;
    assert_eq!((again.ok, again.code.as_str()), (false, "23505"));
    assert!(
        again.error.starts_with("duplicate key value"),
        "{}",
        again.error
    );

    let tx = async |list: Value| step(addr, "tx", vec![Arg::Json(list)], &[]).await;
    let done = tx(json!([
        "INSERT INTO steps VALUES (10)",
        ["SELECT id FROM steps WHERE id > $1 ORDER BY id", [2]]
    ]))
    .await;
    assert_eq!(
        done.data,
        json!([{"rows_affected": 1}, [{"id": 3}, {"id": 10}]])
    );
    let failed = tx(json!([
        "INSERT INTO steps VALUES (11)",
        "INSERT INTO steps VALUES (1)"
    ]))
    .await;
    assert_eq!(failed.code, "23505");
    assert_eq!(
        query(addr, "SELECT count(*) AS n FROM steps", none.clone())
            .await
            .data,
        json!([{"n": 4}])
    );

    // An armed rule hits a step like any other client.
    let rule = proxy.arm(
        "error",
        &[
            ("table", text("steps")),
            ("code", text("deadlock_detected")),
        ],
    );
    let hit = query(addr, "SELECT * FROM steps", none.clone()).await;
    assert_eq!(
        (hit.code.as_str(), hit.error.as_str()),
        ("40P01", "deadlock detected")
    );
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
        misuse("query", vec![text("SELECT $1"), Arg::Json(json!([]))])
            .await
            .contains("1 parameters, but 0")
    );
    assert!(
        misuse("tx", vec![Arg::Json(json!([5]))])
            .await
            .contains("statement 1")
    );
    let late = step(
        server.addr,
        "query",
        vec![text("SELECT pg_sleep(30)")],
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
    let env = [
        ("POSTGRES_USER", "scram_user"),
        ("POSTGRES_PASSWORD", "secret"),
        ("POSTGRES_DB", "tokio"),
    ];
    protocol().ready(endpoint(proxy.addr, &env)).await.unwrap();
    let call = protocol()
        .doc()
        .check_step(
            "query",
            vec![text("SELECT current_user AS u, current_database() AS d")],
            vec![],
        )
        .unwrap();
    let response = protocol()
        .step(endpoint(proxy.addr, &env), call)
        .await
        .unwrap();
    assert_eq!(response.data, json!([{"u": "scram_user", "d": "tokio"}]));
    let wrong = step(
        proxy.addr,
        "query",
        vec![text("SELECT 1")],
        &[("user", text("scram_user")), ("password", text("wrong"))],
    )
    .await;
    assert_eq!(wrong.code, "28P01");
    assert_eq!(proxy.degradations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_does_what_its_table_says() {
    if skip() {
        return;
    }
    let (server, none) = (server(), json!([]));
    let proxy = Harness::start(protocol(), server.addr);
    let select = "SELECT repeat('x', 1000) AS x";
    let matcher = ("query", text("SELECT repeat*"));
    let sql = async |action: &str, args: &[(&str, Arg)]| {
        let mut all = vec![matcher.clone()];
        all.extend_from_slice(args);
        let rule = proxy.arm(action, &all);
        let start = Instant::now();
        let response = query(proxy.addr, select, none.clone()).await;
        proxy.rules.lift(rule.id);
        assert_eq!(rule.hits(), 1, "{action}");
        (response, start.elapsed())
    };
    let whole = "x".repeat(1000);
    let (dropped, _) = sql("drop", &[]).await;
    assert_eq!(
        (dropped.ok, dropped.code.as_str()),
        (false, "08006"),
        "{dropped:?}"
    );
    let (reset, _) = sql("reset", &[]).await;
    assert_eq!(
        (reset.ok, reset.code.as_str()),
        (false, "ECONNRESET"),
        "{reset:?}"
    );
    let (cut, _) = sql("truncate", &[("bytes", Arg::Int(100))]).await;
    assert_eq!((cut.ok, cut.code.as_str()), (false, "08006"), "{cut:?}");
    let (late, took) = sql("delay", &[("delay", text("300ms"))]).await;
    assert_eq!(late.data, json!([{"x": whole}]));
    assert!(took >= Duration::from_millis(300));
    let (slow, took) = sql("throttle", &[("rate", text("4KB/s"))]).await;
    assert_eq!(slow.data, json!([{"x": whole}]));
    assert!(took >= Duration::from_millis(200), "{took:?}");
    let (wrong, _) = sql("corrupt", &[("offset", Arg::Int(10))]).await;
    let x = wrong.data[0]["x"].as_str().map(str::to_owned);
    assert!(x.as_deref() != Some(&whole) || !wrong.ok, "{wrong:?}");
    let (rows, _) = sql(
        "response",
        &[("rows", Arg::Json(json!([{"x": "a"}, {"x": null}])))],
    )
    .await;
    assert_eq!(rows.data, json!([{"x": "a"}, {"x": null}]));
    let (odd, _) = sql("response", &[("rows", Arg::Json(json!([{"y": 1}])))]).await;
    assert_eq!(odd.code, "22P02");
    let (fatal, _) = sql("error", &[("code", text("admin_shutdown"))]).await;
    assert_eq!(
        (fatal.ok, fatal.code.as_str()),
        (false, "57P01"),
        "{fatal:?}"
    );
    // The same in the simple protocol.
    proxy.arm(
        "response",
        &[
            matcher.clone(),
            ("rows", Arg::Json(json!([{"n": 1}, {"n": 2}]))),
        ],
    );
    let simple = step(proxy.addr, "exec", vec![text(select)], &[]).await;
    assert_eq!(simple.data, json!({"rows_affected": 2}), "{simple:?}");
    assert!(query(proxy.addr, "SELECT 1", none).await.ok);
    assert_eq!(proxy.degradations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_request_ends_an_injected_delay_as_it_would_a_slow_statement() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = Harness::start(protocol(), server.addr);
    let params = format!(
        "host=127.0.0.1 port={} user=postgres dbname=tokio sslmode=disable",
        proxy.addr.port()
    );
    let (client, connection) = tokio_postgres::connect(&params, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let prepared = client.prepare("SELECT 1 AS slow").await.unwrap();
    let rule = proxy.arm(
        "delay",
        &[("query", text("SELECT 1*")), ("delay", text("600s"))],
    );
    let cancel = client.cancel_token();
    let start = Instant::now();
    let (answer, ()) = tokio::join!(client.query(&prepared, &[]), async {
        while rule.hits() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
    });
    let error = answer.unwrap_err();
    assert_eq!(error.code().map(|c| c.code()), Some("57014"), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(300));
    proxy.rules.lift(rule.id);
    // Prepared before a rule was armed, on a connection that has been open all along; and lifted, it is as if nothing had been.
    assert_eq!(client.query(&prepared, &[]).await.unwrap().len(), 1);
    let rule = proxy.arm(
        "error",
        &[("verb", text("select")), ("code", text("40001"))],
    );
    let error = client.query(&prepared, &[]).await.unwrap_err();
    assert_eq!(
        error.code(),
        Some(&tokio_postgres::error::SqlState::T_R_SERIALIZATION_FAILURE)
    );
    assert_eq!(rule.hits(), 1);
    // What a rule at one connection holds does not hold another's.
    assert_eq!(proxy.degradations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_keep_their_connections() {
    if skip() {
        return;
    }
    let server = server();
    let session = Session {
        id: "SELECT pg_backend_pid() AS id",
        change: "SET statement_timeout = 60000",
        end: "SELECT pg_terminate_backend($ID)",
        count: "SELECT count(*) AS n FROM pg_stat_activity WHERE pid = $ID",
    };
    let endpoint = endpoint(server.addr, &[("POSTGRES_DB", "tokio")]);
    caller_keeps_its_session(protocol(), endpoint, session).await;
}
