//! The proxy in front of a real PostgreSQL, driven by real clients: invisible without rules, exact with them.

mod support;

use std::sync::Arc;

use faultbox_contract::{Arg, ArmedRule};
use faultbox_engine::testing::{Harness, alone, peak_memory};
use support::{Server, battery, client, faults, psql_command, server, skip};

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

fn proxy(server: &Server) -> Harness {
    Harness::start(faultbox_postgres::protocol(), server.addr)
}

/// The rule of the user's page.
fn disk_full(proxy: &Harness) -> Arc<ArmedRule> {
    proxy.arm(
        "error",
        &[
            ("query", text("INSERT INTO orders*")),
            ("code", text("disk_full")),
            ("message", text("disk full")),
        ],
    )
}

/// What COPY into the table gets, too.
fn copy_full(proxy: &Harness) -> Arc<ArmedRule> {
    proxy.arm(
        "error",
        &[
            ("verb", text("COPY")),
            ("table", text("orders")),
            ("code", Arg::Int(53100)),
            ("message", text("disk full")),
        ],
    )
}

/// A client's own battery prints the same through the proxy as directly, and nothing was degraded or faulted.
async fn same(script: &'static str) {
    if skip() {
        return;
    }
    let server = server();
    let proxy = proxy(&server);
    let (direct, through) = (server.addr, proxy.addr);
    let (direct, through) =
        tokio::task::spawn_blocking(move || (battery(script, direct), battery(script, through)))
            .await
            .unwrap();
    assert_eq!(direct, through);
    assert!(direct.lines().count() > 8, "{direct}");
    assert_eq!(proxy.events.all().len(), 0, "{:?}", proxy.events.all());
    assert!(proxy.meter.count() > 10);
    println!("{direct}");
}

/// Errors arrive in a client as its own: the script's output, line by line.
async fn exact(script: &'static str, expected: &[&str]) {
    if skip() {
        return;
    }
    let server = server();
    let proxy = Arc::new(proxy(&server));
    let arming = proxy.clone();
    let output = tokio::task::spawn_blocking(move || {
        faults(script, arming.addr, || {
            disk_full(&arming);
            copy_full(&arming);
        })
    })
    .await
    .unwrap();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines, expected, "\n{output}");
    assert_eq!(proxy.degradations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn psycopg2_passes() {
    same("psycopg2_client.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn psycopg3_passes() {
    same("psycopg3_client.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asyncpg_passes() {
    same("asyncpg_client.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_postgres_passes() {
    same("node_postgres.js").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jdbc_passes() {
    same("Jdbc.java").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn psycopg2_errors() {
    exact(
        "psycopg2_client.py",
        &[
            "autocommit 'psycopg2.errors.DiskFull' '53100' 'disk full'",
            "copy 'psycopg2.errors.DiskFull' '53100' 'disk full'",
            "several 'psycopg2.errors.DiskFull' '53100' 'disk full'",
            "after (0,)",
            "in transaction 'psycopg2.errors.DiskFull' '53100' 'disk full'",
            "aborted 'psycopg2.errors.InFailedSqlTransaction' '25P02' 'current transaction is aborted, commands ignored until end of transaction block'",
            "status 0",
            "in transaction 'psycopg2.errors.DiskFull' '53100' 'disk full'",
            "commit says 'ROLLBACK'",
            "rows (0,)",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn psycopg3_errors() {
    exact(
        "psycopg3_client.py",
        &[
            "prepared before 'psycopg.errors.DiskFull' '53100' 'disk full'",
            "unprepared 'psycopg.errors.DiskFull' '53100' 'disk full'",
            "copy 'psycopg.errors.DiskFull' '53100' 'disk full'",
            "in transaction 'psycopg.errors.DiskFull' '53100' 'disk full'",
            "again 'psycopg.errors.DiskFull' '53100' 'disk full'",
            "aborted 'psycopg.errors.InFailedSqlTransaction' '25P02' 'current transaction is aborted, commands ignored until end of transaction block'",
            "commit says 'ROLLBACK'",
            "pipeline 'psycopg.errors.DiskFull' '53100' 'disk full'",
            "rolled back (0,)",
            "only its batch 'DiskFull'",
            "around ('before',) ('after',)",
            "rows (8,)",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asyncpg_errors() {
    exact(
        "asyncpg_client.py",
        &[
            "prepared before 'asyncpg.exceptions.DiskFullError' '53100' 'disk full'",
            "simple 'asyncpg.exceptions.DiskFullError' '53100' 'disk full'",
            "many 'asyncpg.exceptions.DiskFullError' '53100' 'disk full'",
            "copy 'asyncpg.exceptions.DiskFullError' '53100' 'disk full'",
            "in transaction 'asyncpg.exceptions.DiskFullError' '53100' 'disk full'",
            "aborted 'asyncpg.exceptions.InFailedSQLTransactionError' '25P02' 'current transaction is aborted, commands ignored until end of transaction block'",
            "commit says 'ROLLBACK'",
            "rows 1",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_postgres_errors() {
    exact(
        "node_postgres.js",
        &[
            r#"prepared before "DatabaseError" "53100" "disk full" "ERROR""#,
            r#"simple "DatabaseError" "53100" "disk full" "ERROR""#,
            r#"in transaction "DatabaseError" "53100" "disk full" "ERROR""#,
            r#"aborted "DatabaseError" "25P02" "current transaction is aborted, commands ignored until end of transaction block" "ERROR""#,
            r#"commit says "ROLLBACK""#,
            r#"rows [{"n":1}]"#,
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jdbc_errors() {
    exact(
        "Jdbc.java",
        &[
            "prepared before org.postgresql.util.PSQLException 53100 ERROR: disk full",
            "unprepared org.postgresql.util.PSQLException 53100 ERROR: disk full",
            "batch java.sql.BatchUpdateException 53100 Batch entry 0 INSERT INTO orders VALUES (('2'::int4)) was aborted: ERROR: disk full  Call getNextException to see other errors in the batch.",
            "copy org.postgresql.util.PSQLException 53100 ERROR: disk full",
            "in transaction org.postgresql.util.PSQLException 53100 ERROR: disk full",
            "aborted org.postgresql.util.PSQLException 25P02 ERROR: current transaction is aborted, commands ignored until end of transaction block",
            "commit ok null",
            "rows 3",
        ],
    )
    .await;
}

fn run(mut command: std::process::Command) -> (bool, String) {
    let out = command.output().expect("the client starts");
    let text = [out.stdout, out.stderr].concat();
    (
        out.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_and_the_servers_own_log() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = proxy(&server);
    let psql = |args: &[&str]| {
        let mut command = psql_command(proxy.addr, "psql");
        command.args(args);
        blocking(move || run(command))
    };
    let (ok, out) = psql(&[
        "-c",
        "CREATE TABLE orders (id int, note text); SELECT 'created'",
    ])
    .await;
    assert!(ok && out.contains("created"), "{out}");
    let rule = disk_full(&proxy);
    // One statement of several: none of the string reaches the server.
    let marker = "denied by the rule 4711";
    let (ok, out) = psql(&[
        "-c",
        &format!("SELECT 'first {marker}'; INSERT INTO orders VALUES (1, '{marker}')"),
    ])
    .await;
    assert!(!ok && out.contains("ERROR:  disk full"), "{out}");
    let script = format!(
        "BEGIN;\nINSERT INTO orders VALUES (1, '{marker}');\nSELECT 1;\nCOMMIT;\nSELECT 'then';"
    );
    let (ok, out) = psql(&["-v", "ON_ERROR_STOP=0", "-c", "\\echo start"]).await;
    assert!(ok, "{out}");
    let args: Vec<String> = ["-v", "ON_ERROR_STOP=0"]
        .map(String::from)
        .into_iter()
        .chain(script.lines().flat_map(|l| ["-c".to_owned(), l.to_owned()]))
        .collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (_, out) = psql(&args).await;
    let lines: Vec<&str> = out.lines().collect();
    // Standard output first, then standard error.
    assert_eq!(
        lines,
        [
            "BEGIN",
            "ROLLBACK",
            "then",
            "ERROR:  disk full",
            "ERROR:  current transaction is aborted, commands ignored until end of transaction block"
        ],
        "{out}"
    );
    assert_eq!(rule.hits(), 2);
    let log = server.log();
    assert!(log.contains("CREATE TABLE orders (id int, note text)"));
    assert!(
        !log.contains(marker),
        "a denied statement reached the server"
    );
    proxy.rules.lift(rule.id);
    let (ok, out) = psql(&[
        "-c",
        "INSERT INTO orders VALUES (7, 'x')",
        "-c",
        "SELECT sum(id) FROM orders",
    ])
    .await;
    assert!(ok && out.ends_with("7\n"), "{out}");
    assert_eq!(proxy.degradations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_in_every_protocol() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = proxy(&server);
    let pgbench = |args: &[&str]| {
        let mut command = std::process::Command::new(format!("{}/pgbench", support::BIN));
        command.args([
            "-h",
            "127.0.0.1",
            "-p",
            &proxy.addr.port().to_string(),
            "-U",
            "postgres",
        ]);
        command.args(args).arg("pgbench");
        blocking(move || run(command))
    };
    let (ok, out) = pgbench(&["-i", "-s", "1", "-q"]).await;
    assert!(ok, "{out}");
    for mode in ["simple", "extended", "prepared"] {
        let (ok, out) = pgbench(&["-M", mode, "-c", "4", "-t", "50", "-n"]).await;
        assert!(ok && out.contains("processed: 200/200"), "{mode}: {out}");
        assert!(out.contains("failed transactions: 0"), "{mode}: {out}");
    }
    assert_eq!(proxy.events.all().len(), 0, "{:?}", proxy.events.all());
    // Serialization failures are what pgbench itself retries.
    for mode in ["simple", "extended", "prepared"] {
        let rule = proxy.arm(
            "error",
            &[
                ("query", text("UPDATE pgbench_branches*")),
                ("code", text("serialization_failure")),
                ("every", Arg::Int(5)),
            ],
        );
        let (ok, out) = pgbench(&["-M", mode, "-c", "2", "-t", "50", "-n", "--max-tries=10"]).await;
        assert!(ok && out.contains("processed: 100/100"), "{mode}: {out}");
        assert!(rule.hits() >= 20, "{mode}: {}", rule.hits());
        assert!(
            out.contains("number of transactions retried: ") && !out.contains("retried: 0 "),
            "{mode}: {out}"
        );
        proxy.rules.lift(rule.id);
    }
    let sums = server.psql("pgbench", "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches), count(*) FROM pgbench_history");
    assert_eq!(sums.trim(), "t|900");
    assert_eq!(proxy.degradations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_condition_name_is_the_servers() {
    if skip() {
        return;
    }
    let server = server();
    let names: Vec<String> = faultbox_postgres::sqlstate::CONDITIONS
        .iter()
        .filter(|(code, _)| !faultbox_postgres::sqlstate::is_completion(code))
        .map(|(_, name)| format!("'{name}'"))
        .collect();
    let sql = format!(
        "DO $$ DECLARE n text; BEGIN FOREACH n IN ARRAY ARRAY[{}] LOOP \
         BEGIN RAISE EXCEPTION USING ERRCODE = n; EXCEPTION WHEN OTHERS OR query_canceled OR assert_failure THEN RAISE INFO '%=%', n, SQLSTATE; END; \
         END LOOP; END $$",
        names.join(",")
    );
    let mut command = psql_command(server.addr, "postgres");
    command.args(["-c", &sql]);
    let (ok, out) = blocking(move || run(command)).await;
    assert!(ok, "{out}");
    let mut seen = 0;
    for line in out.lines().filter_map(|l| l.strip_prefix("INFO:  ")) {
        let (name, code) = line.split_once('=').unwrap();
        assert_eq!(
            faultbox_postgres::sqlstate::resolve(name),
            Some(code),
            "{name}"
        );
        seen += 1;
    }
    assert_eq!(seen, names.len());
    // So that no client script is forgotten when another is added.
    assert!(
        client("psycopg3_client.py")
            .get_program()
            .to_string_lossy()
            .ends_with("python")
    );
}

#[tokio::test]
async fn encrypted_sessions_pass_and_say_once_that_rules_cannot_act() {
    if skip() {
        return;
    }
    let server = blocking(Server::with_tls).await;
    let proxy = proxy(&server);
    let rule = proxy.arm("error", &[]);
    let conninfo = format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres sslmode=",
        proxy.addr.port()
    );
    let psql = |mode: &str| {
        let mut command = std::process::Command::new("psql");
        let sql = "SELECT ssl, repeat('x', 300000) = repeat('x', 300000) FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        command
            .args(["-X", "-A", "-t", "-d", &format!("{conninfo}{mode}")])
            .args(["-c", sql]);
        blocking(move || run(command))
    };
    for _ in 0..2 {
        let (ok, said) = psql("require").await;
        assert!(ok && said.contains("t|t"), "{said}");
    }
    let degraded = proxy.degradations();
    assert_eq!(degraded.len(), 1, "{degraded:?}");
    assert!(degraded[0].contains("tls=tls_cert()"), "{degraded:?}");
    assert!(degraded[0].contains("sslmode=disable"), "{degraded:?}");
    assert_eq!(rule.matched(), 0);
    // And the remedy that it names works.
    let (ok, said) = psql("disable").await;
    assert!(!ok && said.contains("internal error"), "{said}");
    assert_eq!((rule.hits(), proxy.degradations().len()), (1, 1));
}

#[tokio::test]
async fn large_results_pass_in_flat_memory() {
    if !alone("large_results_pass_in_flat_memory") || skip() {
        return;
    }
    let server = server();
    let proxy = proxy(&server);
    proxy.arm("error", &[("query", text("INSERT*"))]);
    let before = peak_memory();
    // One value of 50 MB, then as much in rows.
    for sql in [
        "SELECT repeat('x', 50000000)",
        "SELECT repeat('x', 1000) FROM generate_series(1, 50000)",
    ] {
        let mut command = psql_command(proxy.addr, "postgres");
        command.args(["-o", "/dev/null", "-c", sql]);
        let (ok, said) = blocking(move || run(command)).await;
        assert!(ok, "{said}");
    }
    let grown = peak_memory().saturating_sub(before);
    assert!(grown < 32 << 20, "memory grew by {} MiB", grown >> 20);
    assert_eq!(proxy.degradations(), [""; 0]);
}

/// A client of the crate tokio_postgres, through the proxy.
async fn connect(proxy: &Harness) -> tokio_postgres::Client {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(proxy.addr.port());
    config.user("postgres").dbname("tokio");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// As after a COMMIT that fails for a deferred constraint: the transaction is over. In a simple query, prepared, and in a pipeline.
#[tokio::test(flavor = "multi_thread")]
async fn a_denied_commit_leaves_no_transaction() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = proxy(&server);
    let client = connect(&proxy).await;
    client
        .batch_execute("DROP TABLE IF EXISTS denied_commit; CREATE TABLE denied_commit (id int)")
        .await
        .unwrap();
    let commit = client.prepare("COMMIT").await.unwrap();
    let insert = client
        .prepare("INSERT INTO denied_commit VALUES (1)")
        .await
        .unwrap();
    let select = client
        .prepare("SELECT count(*) FROM denied_commit")
        .await
        .unwrap();
    let rule = proxy.arm(
        "error",
        &[("verb", text("COMMIT")), ("code", text("disk_full"))],
    );
    let sqlstate = |e: tokio_postgres::Error| e.code().map(|c| c.code().to_owned());
    for way in ["simple", "END", "extended", "pipeline"] {
        client.batch_execute("BEGIN").await.unwrap();
        let failed = match way {
            "simple" => {
                client
                    .batch_execute("INSERT INTO denied_commit VALUES (1); COMMIT")
                    .await
            }
            "END" => client.batch_execute("END").await,
            "extended" => client.execute(&commit, &[]).await.map(drop),
            _ => {
                let (first, second, third) = tokio::join!(
                    client.execute(&insert, &[]),
                    client.execute(&commit, &[]),
                    client.query_one(&select, &[]),
                );
                assert_eq!(first.unwrap(), 1);
                assert_eq!(third.unwrap().get::<_, i64>(0), 0);
                second.map(drop)
            }
        };
        assert_eq!(
            sqlstate(failed.unwrap_err()).as_deref(),
            Some("53100"),
            "{way}"
        );
        // Not "current transaction is aborted", and not within a transaction: two statements see two times.
        let row = client.query_one(&select, &[]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), 0, "{way}");
        let now = "SELECT now()::text";
        let first = client.query_one(now, &[]).await.unwrap();
        let second = client.query_one(now, &[]).await.unwrap();
        assert_ne!(
            first.get::<_, String>(0),
            second.get::<_, String>(0),
            "{way}"
        );
    }
    assert_eq!(rule.hits(), 4);
    proxy.rules.lift(rule.id);
    // What was prepared before is there still.
    client.execute(&insert, &[]).await.unwrap();
    // Two-phase commit: the first half ends the session's transaction, the second touches none.
    let rule = proxy.arm(
        "error",
        &[
            ("query", text("PREPARE TRANSACTION*")),
            ("code", text("disk_full")),
        ],
    );
    client.batch_execute("BEGIN").await.unwrap();
    client.execute(&insert, &[]).await.unwrap();
    assert!(
        client
            .batch_execute("PREPARE TRANSACTION 'x'")
            .await
            .is_err()
    );
    let row = client.query_one(&select, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 1);
    proxy.rules.lift(rule.id);
    assert_eq!(proxy.degradations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_what_the_statement_is_answered_with() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = proxy(&server);
    let client = connect(&proxy).await;
    client
        .batch_execute(
            "DROP TABLE IF EXISTS answers; CREATE TABLE answers (a int[], b bytea, t text[])",
        )
        .await
        .unwrap();
    let respond = |rows: serde_json::Value| {
        let args = [("table", text("answers")), ("rows", Arg::Json(rows))];
        proxy.arm("response", &args)
    };
    // In binary, and as psql shows it.
    let rule = respond(serde_json::json!([{"a": [1, null], "b": "\\x00ff", "t": ["x y", "z"]}]));
    let row = client
        .query_one("SELECT * FROM answers", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, Vec<Option<i32>>>("a"), [Some(1), None]);
    assert_eq!(row.get::<_, Vec<u8>>("b"), [0, 255]);
    assert_eq!(row.get::<_, Vec<String>>("t"), ["x y", "z"]);
    let python = client_of_text("SELECT a, b, t FROM answers WHERE %s", proxy.addr.port());
    let (ok, said) = blocking(move || run(python)).await;
    assert!(
        ok && said.trim() == "([1, None], b'\\x00\\xff', ['x y', 'z'])",
        "{said}"
    );
    proxy.rules.lift(rule.id);
    // What does not fit is an error, whatever the format.
    let rule = respond(serde_json::json!([{"a": ["x"]}]));
    let error = client
        .query("SELECT * FROM answers", &[])
        .await
        .unwrap_err();
    assert_eq!(error.code().map(|c| c.code()), Some("22P02"), "{error}");
    let python = client_of_text("SELECT a, b, t FROM answers WHERE %s", proxy.addr.port());
    let (ok, said) = blocking(move || run(python)).await;
    assert!(!ok && said.contains("InvalidTextRepresentation"), "{said}");
    proxy.rules.lift(rule.id);
    // No rows, of a statement that returns some, are a result all the same.
    let rule = respond(serde_json::json!([]));
    for (sql, described) in [
        ("INSERT INTO answers DEFAULT VALUES RETURNING a", true),
        ("TABLE answers", true),
        ("EXPLAIN SELECT * FROM answers", true),
        ("INSERT INTO answers DEFAULT VALUES", false),
    ] {
        let messages = client.simple_query(sql).await.unwrap();
        let rows = messages
            .iter()
            .any(|m| matches!(m, tokio_postgres::SimpleQueryMessage::RowDescription(_)));
        assert_eq!(rows, described, "{sql}: {messages:?}");
    }
    // COPY is no matter of rows, and says so; the session goes on.
    for sql in ["COPY answers TO STDOUT", "COPY answers FROM STDIN"] {
        let simple = client.simple_query(sql).await.unwrap_err();
        assert_eq!(simple.code().map(|c| c.code()), Some("0A000"), "{simple}");
    }
    let prepared = client
        .copy_out("COPY answers TO STDOUT")
        .await
        .err()
        .unwrap();
    assert_eq!(prepared.code().map(|c| c.code()), Some("0A000"));
    proxy.rules.lift(rule.id);
    assert_eq!(client.query("SELECT 1", &[]).await.unwrap().len(), 1);
    assert_eq!(proxy.degradations(), [""; 0]);
}

/// Rows for one statement of several would stand for all of them, and what an EXPLAIN ANALYZE or a cursor runs has no rows of its own: they go
/// on as they are, and the run is told.
#[tokio::test(flavor = "multi_thread")]
async fn what_rows_cannot_answer_runs_and_is_recorded() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = proxy(&server);
    let client = connect(&proxy).await;
    client
        .batch_execute("DROP TABLE IF EXISTS unanswered; CREATE TABLE unanswered (a int, b text)")
        .await
        .unwrap();
    let rows = Arg::Json(serde_json::json!([{"a": 1}]));
    let args = [
        ("query", text("SELECT 8*")),
        ("rows", rows),
        ("label", text("eight")),
    ];
    let rule = proxy.arm("response", &args);
    let values = async |sql: &str| {
        let messages = client.simple_query(sql).await.unwrap();
        let values = messages.iter().filter_map(|m| match m {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        values.collect::<Vec<_>>()
    };
    let several = "INSERT INTO unanswered VALUES (5, 'w'); SELECT 8";
    assert_eq!(values(several).await, ["8"]);
    assert_eq!(
        values("DECLARE c CURSOR WITH HOLD FOR SELECT 8; FETCH c; CLOSE c").await,
        ["8"]
    );
    assert_eq!(
        values("DECLARE d CURSOR WITH HOLD FOR SELECT 8").await,
        [""; 0]
    );
    assert_eq!(values("FETCH d").await, ["8"]);
    assert!(values("EXPLAIN ANALYZE SELECT 8").await[0].starts_with("Result"));
    assert_eq!(values("PREPARE eight AS SELECT 8").await, [""; 0]);
    assert!(values("EXPLAIN ANALYZE EXECUTE eight").await[0].starts_with("Result"));
    let long = format!("SELECT 8 /* {} */; SELECT 9", "x".repeat(1 << 20));
    assert_eq!(values(&long).await, ["8", "9"]);
    assert_eq!((rule.matched(), proxy.fired()), (0, 0));
    let recorded = proxy.events.of_kind("proxy_unanswered");
    let field = |i: usize, name: &str| recorded[i].fields[name].as_str().unwrap_or_default();
    assert_eq!(recorded.len(), 6, "{recorded:?}");
    assert_eq!((field(0, "query"), field(0, "label")), (several, "eight"));
    assert!(field(0, "rule").starts_with("response(query=\"SELECT 8*\""));
    assert!(field(0, "reason").contains("several statements"));
    assert!(field(2, "reason").contains("DECLARE CURSOR"));
    assert!(field(5, "reason").contains("too long"));
    // One statement is answered, in parentheses or behind a name, too.
    for sql in ["SELECT 8", "(SELECT 8);", "; SELECT 8 ;", "EXECUTE eight"] {
        assert_eq!(values(sql).await, ["1"], "{sql}");
    }
    assert_eq!(rule.hits(), 4);
    assert_eq!(
        client
            .query("SELECT a FROM unanswered", &[])
            .await
            .unwrap()
            .len(),
        1
    );
    assert_eq!(proxy.degradations(), [""; 0]);
}

/// The statement of a cursor and of an EXPLAIN ANALYZE is matched, and so is one in parentheses.
#[tokio::test(flavor = "multi_thread")]
async fn statements_within_statements_are_matched() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = proxy(&server);
    server.psql("psycopg3", "CREATE TABLE within (a int)");
    let rule = proxy.arm(
        "error",
        &[
            ("query", text("SELECT a FROM within*")),
            ("code", text("disk_full")),
        ],
    );
    let script = format!(
        "import psycopg\nc = psycopg.connect('host=127.0.0.1 port={} user=postgres dbname=psycopg3', autocommit=True)\n\
         for run in [lambda: c.cursor('named', withhold=True).execute('select a from within'), lambda: c.execute('(select a from within)'), \
         lambda: c.execute('explain analyze select a from within'), lambda: c.execute('explain select a from within'), \
         lambda: c.execute('copy (select a from within) to stdout')]:\n  try: run(); print('ran')\n  except psycopg.Error as e: print(e.sqlstate)",
        proxy.addr.port()
    );
    let mut python = std::process::Command::new(client("psycopg3_client.py").get_program());
    python.args(["-c", &script]);
    let (ok, said) = blocking(move || run(python)).await;
    assert!(ok, "{said}");
    let said: Vec<_> = said.lines().collect();
    assert_eq!(said, ["53100", "53100", "53100", "ran", "53100"]);
    assert_eq!(rule.hits(), 4);
}

/// psycopg 3 with a parameter, so by the extended protocol; it asks for text unless told otherwise.
fn client_of_text(sql: &str, port: u16) -> std::process::Command {
    let script = format!(
        "import psycopg; print(psycopg.connect(host='127.0.0.1', port={port}, user='postgres', dbname='tokio').execute({sql:?}, (True,)).fetchone())"
    );
    let mut command = std::process::Command::new(client("psycopg3_client.py").get_program());
    command.args(["-c", &script]);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_are_refused_and_sessions_that_are_there_go_on() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = proxy(&server);
    let before = connect(&proxy).await;
    let arm = |code: &str, message: &str| {
        let verb = ("verb", text("CONNECT"));
        let args = [verb, ("code", text(code)), ("message", text(message))];
        proxy.arm("error", &args)
    };
    let psql = |sql: &str| {
        let mut command = psql_command(proxy.addr, "psql");
        command.args(["-c", sql]);
        blocking(move || run(command))
    };
    for (code, message) in [
        ("too_many_connections", "sorry, too many clients already"),
        ("57P03", "the database system is starting up"),
        ("28P01", "password authentication failed for user \"app\""),
    ] {
        let rule = arm(code, message);
        let (ok, said) = psql("SELECT 1").await;
        assert!(
            !ok && said.contains(&format!("FATAL:  {message}")),
            "{said}"
        );
        let mut python = std::process::Command::new(client("psycopg3_client.py").get_program());
        let script = format!(
            "import asyncio, asyncpg\ntry: asyncio.run(asyncpg.connect('postgres://postgres@127.0.0.1:{}/psql?sslmode=disable'))\nexcept asyncpg.PostgresError as e: print(e.sqlstate, e)",
            proxy.addr.port()
        );
        python.args(["-c", &script]);
        let (_, said) = blocking(move || run(python)).await;
        let code = faultbox_postgres::sqlstate::resolve(code).unwrap();
        assert_eq!(said.trim(), format!("{code} {message}"));
        assert_eq!(before.query("SELECT 1", &[]).await.unwrap().len(), 1);
        assert_eq!(rule.hits(), 2);
        proxy.rules.lift(rule.id);
    }
    // Those of others, and with no rule that asks for logins everybody's, pass.
    let args = [("verb", text("CONNECT")), ("user", text("app"))];
    let other = proxy.arm("error", &args);
    let all = proxy.arm("delay", &[("delay", text("1ms"))]);
    let (ok, said) = psql("SELECT 1").await;
    assert!(ok, "{said}");
    assert_eq!((other.hits(), all.hits()), (0, 1));
    proxy.rules.lift(other.id);
    // A delayed login is a late one.
    let args = [("verb", text("CONNECT")), ("delay", text("200ms"))];
    let late = proxy.arm("delay", &args);
    let start = std::time::Instant::now();
    assert!(psql("SELECT 1").await.0);
    assert!(start.elapsed().as_millis() >= 200 && late.hits() == 1);
    assert_eq!(proxy.degradations(), [""; 0]);
}

/// The recipe of a standby refuses what a standby refuses, in the same words, and nothing else; of that a read-only session refuses all but
/// what only recovery forbids.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_server_is_the_servers() {
    if skip() {
        return;
    }
    let server = server();
    let setup = "CREATE TABLE ro (id int)\nCREATE MATERIALIZED VIEW ro_view AS SELECT * FROM ro\nCREATE TABLE ro_other (id int)\nCREATE SEQUENCE ro_seq\n";
    let standby = Server::standby(setup);
    let proxy = proxy(&server);
    server.psql("psql", &setup.trim_end().replace('\n', ";"));
    let recipes = include_str!("../../../specs/recipes/postgres.star");
    let (_, list) = recipes.split_once("_WRITES = ").unwrap();
    let (list, _) = list.split_once("\n]").unwrap();
    let (_, list) = list.split_once('[').unwrap();
    let patterns: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
    let query = format!("{{{}}}", patterns.join(","));
    let args = [("query", text(&query)), ("code", text("25006"))];
    proxy.arm("error", &args);
    let (mut refused, mut by_recovery) = (0, 0);
    let mut wrong = vec![];
    for sql in [
        "SELECT 1",
        "SELECT * FROM ro WHERE id = 1 ORDER BY id",
        "SELECT * FROM ro FOR UPDATE",
        "SELECT * FROM ro FOR NO KEY UPDATE",
        "SELECT * FROM ro FOR KEY SHARE",
        "(SELECT * FROM ro FOR UPDATE)",
        "SELECT * FROM (SELECT * FROM ro FOR UPDATE) x",
        "SELECT 5 AS a INTO zz",
        "SELECT 5 AS a INTO TEMP zz",
        "SELECT nextval('ro_seq')",
        "SELECT id, pg_catalog.nextval('ro_seq') FROM (VALUES (1)) v (id)",
        "SELECT setval('ro_seq', 3)",
        "VALUES (nextval('ro_seq'))",
        "SELECT last_value FROM ro_seq",
        "BEGIN",
        "SHOW server_version_num",
        "SET search_path = public",
        "EXPLAIN INSERT INTO ro VALUES (1)",
        "EXPLAIN ANALYZE INSERT INTO ro VALUES (1)",
        "EXPLAIN (ANALYZE, COSTS off) DELETE FROM ro",
        "EXPLAIN ANALYZE SELECT * FROM ro FOR SHARE",
        "BEGIN; DECLARE c CURSOR FOR SELECT * FROM ro",
        "BEGIN; DECLARE c CURSOR FOR SELECT * FROM ro FOR UPDATE",
        "PREPARE p AS INSERT INTO ro VALUES (1)",
        "PREPARE p AS INSERT INTO ro VALUES (1); EXECUTE p",
        "COPY ro TO STDOUT",
        "COPY (SELECT * FROM ro) TO STDOUT",
        "COPY (INSERT INTO ro VALUES (1) RETURNING id) TO STDOUT",
        // Not COPY FROM: a standby says "COPY during recovery" of it, a read-only session what the recipe does.
        "INSERT INTO ro VALUES (1)",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "WITH x AS (SELECT 1) INSERT INTO ro SELECT * FROM x",
        "WITH x AS (DELETE FROM ro RETURNING id) SELECT * FROM x",
        "WITH x AS (DELETE FROM ro RETURNING id) INSERT INTO ro_other SELECT * FROM x",
        "WITH x AS (SELECT * FROM ro FOR UPDATE) SELECT * FROM x",
        "UPDATE ro SET id = 1",
        "DELETE FROM ro",
        "MERGE INTO ro USING ro_other o ON ro.id = o.id WHEN MATCHED THEN DELETE",
        "TRUNCATE ro",
        "CREATE TABLE ro_new (id int GENERATED ALWAYS AS IDENTITY)",
        "CREATE TABLE ro_new AS SELECT 1",
        "CREATE TEMP TABLE ro_new (id int)",
        "CREATE UNIQUE INDEX ON ro (id)",
        "CREATE OR REPLACE VIEW ro_v AS SELECT 1",
        "CREATE SCHEMA ro_schema",
        "CREATE USER ro_user",
        "CREATE EXTENSION plpgsql",
        "ALTER TABLE ro ADD COLUMN a int",
        "ALTER SEQUENCE ro_seq RESTART",
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
        "ALTER SYSTEM RESET work_mem",
        "DROP TABLE ro",
        "DROP MATERIALIZED VIEW ro_view",
        "DROP OWNED BY scram_user",
        "REASSIGN OWNED BY scram_user TO postgres",
        "REFRESH MATERIALIZED VIEW ro_view",
        "GRANT SELECT ON ro TO PUBLIC",
        "GRANT pg_monitor TO scram_user",
        "REVOKE SELECT ON ro FROM PUBLIC",
        "REVOKE pg_monitor FROM scram_user",
        "COMMENT ON TABLE ro IS 'x'",
        "SECURITY LABEL ON TABLE ro IS 'x'",
        "IMPORT FOREIGN SCHEMA x FROM SERVER y INTO z",
        "VACUUM ro",
        "ANALYZE ro",
        "CLUSTER ro",
        "REINDEX TABLE ro",
        "LISTEN ro",
        "UNLISTEN ro",
        "NOTIFY ro, 'x'",
        "BEGIN; LOCK ro IN ACCESS EXCLUSIVE MODE",
        "BEGIN; LOCK ro IN ROW EXCLUSIVE MODE",
        "BEGIN; PREPARE TRANSACTION 'ro'",
        "ROLLBACK PREPARED 'ro'",
        "CHECKPOINT",
        "DISCARD ALL",
    ] {
        let ask = |addr, set: &str| {
            let mut psql = psql_command(addr, "psql");
            psql.args(["-c", set, "-c", sql]);
            async {
                let (_, said) = blocking(move || run(psql)).await;
                let error = said.lines().find(|l| l.starts_with("ERROR:"));
                error.unwrap_or_default().to_owned()
            }
        };
        let on_standby = ask(standby.addr, "SET search_path = public").await;
        let through = ask(proxy.addr, "SET search_path = public").await;
        let refuses = |said: &str| said.contains("read-only") || said.contains("recovery");
        if through != on_standby && (refuses(&through) || refuses(&on_standby)) {
            wrong.push((sql, through, on_standby));
            continue;
        }
        if on_standby.contains("during recovery") {
            by_recovery += 1;
            continue;
        }
        let in_session = ask(server.addr, "SET default_transaction_read_only = on").await;
        if on_standby.contains("read-only") || in_session.contains("read-only") {
            if in_session != on_standby {
                wrong.push((sql, in_session, on_standby));
            }
            refused += 1;
        }
    }
    println!("{refused} refused, {by_recovery} by recovery alone");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!((refused, by_recovery), (49, 9));
    assert_eq!(proxy.degradations(), [""; 0]);
}

/// SQL's own PREPARE and EXECUTE, prepared before a rule is there and after.
#[tokio::test(flavor = "multi_thread")]
async fn what_execute_runs_is_matched_by_its_text() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = proxy(&server);
    let client = connect(&proxy).await;
    client
        .batch_execute("DROP TABLE IF EXISTS named; CREATE TABLE named (id int)")
        .await
        .unwrap();
    client
        .batch_execute("PREPARE early (int) AS INSERT INTO named VALUES ($1)")
        .await
        .unwrap();
    let execute = client.prepare("EXECUTE early (7)").await.unwrap();
    let rule = proxy.arm(
        "error",
        &[
            ("query", text("*INSERT INTO named*")),
            ("code", text("disk_full")),
        ],
    );
    let table = proxy.arm(
        "error",
        &[
            ("table", text("named")),
            ("verb", text("DELETE")),
            ("code", text("23503")),
        ],
    );
    let code = |result: Result<(), tokio_postgres::Error>| {
        let error = result.err()?;
        Some(error.code().map_or("?", |c| c.code()).to_owned())
    };
    let full = Some("53100".to_owned());
    let run = async |sql: &str| code(client.batch_execute(sql).await);
    assert_eq!(run("EXECUTE early (1)").await, full);
    assert_eq!(run("SELECT 1; EXECUTE early (1)").await, full);
    assert_eq!(code(client.execute(&execute, &[]).await.map(drop)), full);
    // Preparing runs nothing, and is no match.
    assert_eq!(
        run("PREPARE late AS INSERT INTO named VALUES (2)").await,
        None
    );
    assert_eq!(run("/* x */ PREPARE gone AS DELETE FROM named").await, None);
    assert_eq!((rule.hits(), table.hits()), (3, 0));
    assert_eq!(run("EXECUTE late").await, full);
    assert_eq!(run("EXPLAIN ANALYZE EXECUTE late").await, full);
    assert_eq!(run("EXPLAIN EXECUTE late").await, None);
    assert_eq!(run("EXECUTE gone").await.as_deref(), Some("23503"));
    // A name that is forgotten means nothing any more.
    assert_eq!(run("DEALLOCATE early").await, None);
    assert_eq!(run("EXECUTE early (1)").await.as_deref(), Some("26000"));
    proxy.rules.lift(rule.id);
    // Rows in its place are those of what it runs.
    let rows = Arg::Json(serde_json::json!([{"id": 1}, {"id": 2}]));
    let args = [("table", text("named")), ("rows", rows)];
    let answer = proxy.arm("response", &args);
    assert_eq!(run("PREPARE read AS SELECT id FROM named").await, None);
    let rows = client.simple_query("EXECUTE read").await.unwrap();
    let ends = rows.last().unwrap();
    assert!(
        matches!(ends, tokio_postgres::SimpleQueryMessage::CommandComplete(2)),
        "{rows:?}"
    );
    proxy.rules.lift(answer.id);
    assert_eq!(proxy.degradations(), [""; 0]);
}
