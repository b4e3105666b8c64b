//! The proxy in front of a real MariaDB, driven by real clients: invisible without rules, exact with them.

mod support;

use std::fs::File;
use std::io::{Seek, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use faultbox_contract::{Arg, Endpoint, Response};
use faultbox_engine::testing::{Harness, alone, peak_memory};
use serde_json::{Value, json};
use support::{Server, battery, cli_command, faults, server, skip};

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

fn proxy(server: &Server) -> Harness {
    Harness::start(faultbox_mysql::protocol(), server.addr)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// A client's own battery prints the same through the proxy as directly, and nothing was degraded or faulted; and again with a rule
/// armed that matches nothing: what the proxy then reads more closely must not show either.
async fn same(script: &'static str) {
    if skip() {
        return;
    }
    let server = server();
    same_at(server.addr, script).await;
}

async fn same_at(direct: SocketAddr, script: &'static str) {
    let proxy = Harness::start(faultbox_mysql::protocol(), direct);
    let through = proxy.addr;
    let (direct, idle) =
        blocking(move || (battery(script, direct), battery(script, through))).await;
    assert_eq!(direct, idle);
    assert!(direct.lines().count() > 8, "{direct}");
    assert_eq!(proxy.events.all().len(), 0, "{:?}", proxy.events.all());
    assert!(proxy.meter.count() > 10);
    let rule = proxy.arm("error", &[("query", text("nothing is like this"))]);
    let armed = blocking(move || battery(script, through)).await;
    assert_eq!(direct, armed);
    assert_eq!(rule.matched(), 0);
    // Sessions that the scripts compress cannot be read, which is said once; nothing else was not understood.
    for reason in proxy.degradations() {
        assert!(reason.contains("compression"), "{reason}");
    }
}

/// What every script meets, by the table that it asks.
fn arm(proxy: &Harness) {
    let rule = |action: &str, args: &[(&str, &str)]| {
        let args = args
            .iter()
            .map(|(n, v)| (*n, v.parse().map_or_else(|_| text(v), Arg::Int)));
        proxy.arm(action, &args.collect::<Vec<_>>());
    };
    rule(
        "error",
        &[
            ("verb", "INSERT"),
            ("table", "orders"),
            ("code", "ER_DUP_ENTRY"),
        ],
    );
    rule(
        "error",
        &[("verb", "UPDATE"), ("table", "orders"), ("code", "1205")],
    );
    rule(
        "error",
        &[
            ("verb", "INSERT"),
            ("table", "stock"),
            ("code", "ER_LOCK_DEADLOCK"),
        ],
    );
    rule(
        "error",
        &[
            ("table", "twice"),
            ("verb", "INSERT"),
            ("code", "1213"),
            ("times", "2"),
        ],
    );
    rule(
        "error",
        &[
            ("table", "archive"),
            ("code", "option_prevents_statement"),
            ("message", "read only"),
        ],
    );
    rule("drop", &[("query", "SELECT 'lost'")]);
    rule(
        "error",
        &[
            ("query", "SELECT 'shutdown'"),
            ("code", "ER_SERVER_SHUTDOWN"),
        ],
    );
    rule(
        "error",
        &[
            ("verb", "CONNECT"),
            ("user", "plain"),
            ("code", "ER_CON_COUNT_ERROR"),
        ],
    );
    let rows = json!([{"name": "ann", "n": 1}, {"name": null, "n": 2}]);
    proxy.arm(
        "response",
        &[("table", text("people")), ("rows", Arg::Json(rows))],
    );
}

/// Errors arrive in a client as its own: the script's output, line by line.
async fn exact(script: &'static str, expected: &[&str]) {
    if skip() {
        return;
    }
    let server = server();
    let proxy = Arc::new(proxy(&server));
    let arming = proxy.clone();
    let output = blocking(move || faults(script, arming.addr, || arm(&arming))).await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines, expected, "\n{output}");
    assert_eq!(proxy.degradations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pymysql_passes() {
    same("pymysql_client.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connector_python_passes() {
    same("connector_client.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql2_passes() {
    same("mysql2_client.js").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jdbc_passes() {
    same("Jdbc.java").await;
}

/// The server's own messages, by the table of errors.
const DUPLICATE: &str = "Duplicate entry '?' for key '?'";
const DEADLOCK: &str = "Deadlock found when trying to get lock; try restarting transaction";
const WAIT: &str = "Lock wait timeout exceeded; try restarting transaction";

#[tokio::test(flavor = "multi_thread")]
async fn pymysql_errors() {
    let operational = |what: &str, code: u16, text: &str| {
        format!("{what} 'pymysql.err.OperationalError' {code} '{text}'")
    };
    let duplicate =
        |what: &str| format!("{what} 'pymysql.err.IntegrityError' 1062 \"{DUPLICATE}\"");
    let expected = [
        duplicate("duplicate"),
        r#"warnings (('Error', 1062, "Duplicate entry '?' for key '?'"),) ((1, 1),)"#.into(),
        operational("wait", 1205, WAIT),
        duplicate("in transaction, duplicate"),
        operational("in transaction, wait", 1205, WAIT),
        "goes on ((1,),)".into(),
        "kept ((10,),)".into(),
        operational("in transaction, deadlock", 1213, DEADLOCK),
        "is over ((0,),)".into(),
        "rolled back ((10,),)".into(),
        "retried 3 ((10,), (30,)) ((31,),)".into(),
        operational("read only", 1290, "read only"),
        "rows 'ok' (('ann', 1), (None, 2))".into(),
        "no rows 'ok' []".into(),
        duplicate("several"),
        "none of them ((0,),)".into(),
        operational("too many", 1040, "Too many connections"),
        operational("lost", 2013, "Lost connection to MySQL server during query"),
        operational("shutdown", 1053, "Server shutdown in progress"),
        "after ((2,),)".into(),
    ];
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    exact("pymysql_client.py", &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connector_python_errors() {
    let deadlock = |what: &str| format!("{what} 'InternalError' 1213 '40001' '{DEADLOCK}'");
    let duplicate = |what: &str| format!("{what} 'IntegrityError' 1062 '23000' \"{DUPLICATE}\"");
    let expected = [
        duplicate("first execution"),
        duplicate("second execution"),
        deadlock("prepared before"),
        deadlock("in transaction"),
        "is over [(0,)]".into(),
        "rolled back [(0,)]".into(),
        "rows [('ann', 1), (None, 2)]".into(),
        "left [(1,)]".into(),
    ];
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    exact("connector_client.py", &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql2_errors() {
    let duplicate = |what: &str| format!("{what} \"ER_DUP_ENTRY\" 1062 \"23000\" \"{DUPLICATE}\"");
    let expected = [
        duplicate("prepared before"),
        duplicate("text"),
        format!("in transaction \"ER_LOCK_DEADLOCK\" 1213 \"40001\" \"{DEADLOCK}\""),
        "rolled back []".into(),
        r#"rows "ok" [{"name":"ann","n":1},{"name":null,"n":2}]"#.into(),
        r#"lost "PROTOCOL_CONNECTION_LOST" undefined undefined "Connection lost: The server closed the connection.""#
            .into(),
        r#"after [{"n":1}]"#.into(),
    ];
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    exact("mysql2_client.js", &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jdbc_errors() {
    let duplicate = |what: &str| {
        format!("{what} java.sql.SQLIntegrityConstraintViolationException 1062 23000 {DUPLICATE}")
    };
    let expected = [
        duplicate("prepared before"),
        duplicate("text"),
        format!("in transaction java.sql.SQLTransactionRollbackException 1213 40001 {DEADLOCK}"),
        "rolled back [0]".into(),
        "rows ok [ann,1][null,2]".into(),
        format!("wait java.sql.SQLTransientConnectionException 1205 HY000 {WAIT}"),
        duplicate("still denied"),
    ];
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    exact("Jdbc.java", &expected).await;
}

fn run(mut command: std::process::Command) -> (bool, String) {
    let out = command.output().expect("the client starts");
    let text = [out.stdout, out.stderr].concat();
    (
        out.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// A file without a name.
fn tempfile() -> File {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    // O_TMPFILE (open(2)), which includes O_DIRECTORY.
    options.read(true).write(true).custom_flags(0o20_200_000);
    options
        .open(std::env::temp_dir())
        .expect("a temporary file")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mariadb_client_and_the_servers_own_log() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = proxy(&server);
    let cli = |sql: &str| {
        let mut command = cli_command(proxy.addr, "cli");
        // Only what is read from a file goes on after an error.
        let mut file = tempfile();
        file.write_all(sql.as_bytes()).unwrap();
        file.rewind().unwrap();
        command.args(["--force", "--comments"]).stdin(file);
        blocking(move || run(command))
    };
    let (ok, out) =
        cli("CREATE TABLE orders (id int, note text); ALTER TABLE orders FORCE; SELECT 'created';")
            .await;
    assert!(ok && out.contains("created"), "{out}");
    let rule = proxy.arm(
        "error",
        &[
            ("query", text("INSERT INTO orders*")),
            ("code", Arg::Int(1021)),
        ],
    );
    let marker = "denied by the rule 4711";
    let (_, out) = cli(&format!(
        "BEGIN; INSERT INTO orders VALUES (1, '{marker}'); SELECT 'then'; COMMIT;"
    ))
    .await;
    assert!(
        out.contains("ERROR 1021 (HY000) at line 1: Disk full") && out.contains("then"),
        "{out}"
    );
    assert_eq!(rule.hits(), 1);
    let log = server.log();
    assert!(log.contains("CREATE TABLE orders (id int, note text)"));
    assert!(
        !log.contains(marker),
        "a denied statement reached the server"
    );
    assert!(log.contains("SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1021"));
    proxy.rules.lift(rule.id);
    let (ok, out) = cli("INSERT INTO orders VALUES (7, 'x'); SELECT sum(id) FROM orders;").await;
    assert!(ok && out.ends_with("7\n"), "{out}");
    assert_eq!(proxy.degradations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sysbench_in_text_and_prepared() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = proxy(&server);
    let port = proxy.addr.port();
    let sysbench = |more: &[&str]| {
        let mut command = std::process::Command::new("sysbench");
        command.args([
            "oltp_read_write",
            "--db-driver=mysql",
            "--mysql-host=127.0.0.1",
        ]);
        command.args([
            "--mysql-user=root",
            "--mysql-db=sbtest",
            "--tables=1",
            "--table-size=500",
        ]);
        command.arg(format!("--mysql-port={port}")).args(more);
        blocking(move || run(command))
    };
    let (ok, out) = sysbench(&["prepare"]).await;
    assert!(ok, "{out}");
    for mode in ["auto", "disable"] {
        // The time only limits it.
        let (ok, out) = sysbench(&[
            "--threads=2",
            "--events=60",
            "--time=300",
            &format!("--db-ps-mode={mode}"),
            "run",
        ])
        .await;
        assert!(
            ok && out.contains("total number of events:              60"),
            "{mode}: {out}"
        );
    }
    assert_eq!(proxy.events.all().len(), 0, "{:?}", proxy.events.all());
    // Deadlocks are what sysbench itself retries.
    for mode in ["auto", "disable"] {
        let rule = proxy.arm(
            "error",
            &[
                ("query", text("UPDATE sbtest1 SET k*")),
                ("code", Arg::Int(1213)),
                ("every", Arg::Int(4)),
            ],
        );
        let (ok, out) = sysbench(&[
            "--threads=2",
            "--events=40",
            "--time=300",
            &format!("--db-ps-mode={mode}"),
            "run",
        ])
        .await;
        assert!(
            ok && out.contains("total number of events:              40"),
            "{mode}: {out}"
        );
        assert!(rule.hits() >= 10, "{mode}: {}", rule.hits());
        assert!(
            out.contains("ignored errors:                      ")
                && !out.contains("ignored errors:                      0 "),
            "{mode}: {out}"
        );
        proxy.rules.lift(rule.id);
    }
    let rows = server.cli("SELECT count(*) FROM sbtest.sbtest1");
    assert_eq!(rows.trim(), "500");
    assert_eq!(proxy.degradations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_sessions_pass_and_say_once_that_rules_cannot_act() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = proxy(&server);
    let rule = proxy.arm("error", &[]);
    let cli = |compress: bool| {
        let mut command = cli_command(proxy.addr, "cli");
        if compress {
            command.arg("--compress");
        }
        command.args(["-e", "SELECT repeat('x', 300000) = repeat('x', 300000)"]);
        blocking(move || run(command))
    };
    for _ in 0..2 {
        let (ok, said) = cli(true).await;
        assert!(ok && said.trim() == "1", "{said}");
    }
    let degraded = proxy.degradations();
    assert_eq!(degraded.len(), 1, "{degraded:?}");
    assert!(degraded[0].contains("turn compression off"), "{degraded:?}");
    assert_eq!(rule.matched(), 0);
    // And the remedy that it names works.
    let (ok, said) = cli(false).await;
    assert!(!ok && said.contains("ERROR 1105 (HY000)"), "{said}");
    assert_eq!(proxy.degradations().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_reads_the_binary_log_unseen() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = proxy(&server);
    proxy.arm("error", &[("query", text("INSERT*"))]);
    let port = proxy.addr.port();
    server.cli("FLUSH BINARY LOGS; CREATE DATABASE logged; DROP DATABASE logged");
    let mut command = std::process::Command::new("mariadb-binlog");
    command.args([
        "--no-defaults",
        "--read-from-remote-server",
        "--host=127.0.0.1",
        "--user=root",
        "--to-last-log",
    ]);
    command.arg(format!("--port={port}")).arg("bin.000001");
    let (ok, out) = blocking(move || run(command)).await;
    assert!(ok && out.contains("DATABASE logged"), "{out}");
    assert_eq!(proxy.events.all().len(), 0, "{:?}", proxy.events.all());
}

#[tokio::test(flavor = "multi_thread")]
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
        "SELECT repeat('x', 1000) FROM seq_1_to_50000",
    ] {
        let mut command = cli_command(proxy.addr, "cli");
        command.args(["--quick", "--max-allowed-packet=256M", "-e", sql]);
        command.stdout(std::process::Stdio::null());
        let (ok, said) = blocking(move || run(command)).await;
        assert!(ok, "{said}");
    }
    let grown = peak_memory().saturating_sub(before);
    assert!(grown < 32 << 20, "memory grew by {} MiB", grown >> 20);
    assert_eq!(proxy.degradations(), [""; 0]);
}

/// One statement by the protocol's own client.
async fn step(addr: SocketAddr, sql: &str, params: Value, user: &str) -> Response {
    let endpoint = Endpoint {
        kept: None,
        addr,
        host: "localhost".into(),
        env: Arc::default(),
        attempt: Duration::from_secs(30),
        addresses: Arc::default(),
        tls: None,
    };
    let mut keywords = vec![("user".to_owned(), text(user))];
    if user != "root" {
        keywords.push(("password".into(), text("secret")));
    }
    let protocol = faultbox_mysql::protocol();
    let call = protocol
        .doc()
        .check_step("exec", vec![text(sql), Arg::Json(params)], keywords)
        .unwrap();
    protocol.step(endpoint, call).await.unwrap()
}

/// Rows for one statement of several would stand for all of them: the string goes on as it is, and the run is told.
#[tokio::test(flavor = "multi_thread")]
async fn several_statements_run_and_are_recorded() {
    if skip() {
        return;
    }
    let server = server();
    let proxy = proxy(&server);
    server.cli("CREATE DATABASE several; CREATE TABLE several.t (a INT, b TEXT)");
    let args = [
        ("query", text("SELECT 8*")),
        ("rows", Arg::Json(json!([{"a": 1}]))),
    ];
    let rule = proxy.arm("response", &args);
    let python = |sql: &str| {
        let script = format!(
            "import pymysql\nfrom pymysql.constants import CLIENT\n\
             c = pymysql.connect(host='127.0.0.1', port={}, user='root', autocommit=True, client_flag=CLIENT.MULTI_STATEMENTS).cursor()\n\
             c.execute({sql:?})\nprint(c.fetchall())\nwhile c.nextset(): print(c.fetchall())",
            proxy.addr.port()
        );
        let mut command =
            std::process::Command::new(support::client("pymysql_client.py").get_program());
        command.args(["-c", &script]);
        blocking(move || run(command))
    };
    let (ok, said) = python("INSERT INTO several.t VALUES (5, 'w'); SELECT 8").await;
    assert!(ok && said.lines().last() == Some("((8,),)"), "{said}");
    let (ok, said) = python("ANALYZE FORMAT=JSON SELECT 8").await;
    assert!(ok && said.contains("query_block"), "{said}");
    assert_eq!((rule.matched(), proxy.fired()), (0, 0));
    let recorded = proxy.events.of_kind("proxy_unanswered");
    let reason = |i: usize| recorded[i].fields["reason"].to_string();
    assert_eq!(recorded.len(), 2, "{recorded:?}");
    assert!(reason(0).contains("several statements") && reason(1).contains("inside another"));
    for sql in [
        "SELECT 8;",
        "(SELECT 8)",
        "SET STATEMENT max_statement_time=9 FOR SELECT 8",
    ] {
        let (ok, said) = python(sql).await;
        assert!(ok && said.trim() == "((1,),)", "{sql}: {said}");
    }
    assert_eq!(server.cli("SELECT count(*) FROM several.t").trim(), "1");
    assert_eq!(proxy.degradations(), [""; 0]);
}

/// Oracle's MySQL speaks more than MariaDB: query attributes, optional metadata, caching_sha2_password.
#[tokio::test(flavor = "multi_thread")]
async fn oracles_mysql_passes_and_errors() {
    let Some(addr) = std::env::var("FAULTBOX_MYSQL")
        .ok()
        .map(|a| a.parse().unwrap())
    else {
        eprintln!(
            "SKIPPED: FAULTBOX_MYSQL names no MySQL, nothing was proved against Oracle's server"
        );
        return;
    };
    let none = json!([]);
    for sql in [
        "CREATE DATABASE IF NOT EXISTS pymysql",
        "CREATE DATABASE IF NOT EXISTS mysql2",
        "CREATE DATABASE IF NOT EXISTS connector",
        "CREATE USER IF NOT EXISTS plain@'%' IDENTIFIED BY 'secret', edward@'%' IDENTIFIED BY 'secret'",
        "GRANT ALL ON *.* TO plain@'%', edward@'%'",
        "DROP TABLE IF EXISTS mysql2.sums",
        "CREATE TABLE mysql2.sums (n int)",
    ] {
        let made = step(addr, sql, none.clone(), "root").await;
        assert!(made.ok, "{sql}: {made:?}");
    }
    for script in [
        "pymysql_client.py",
        "mysql2_client.js",
        "connector_client.py",
    ] {
        same_at(addr, script).await;
    }
    let proxy = Harness::start(faultbox_mysql::protocol(), addr);
    // The server has no password in its cache after this, so the next login has to send it, encrypted.
    assert!(
        step(addr, "FLUSH PRIVILEGES", none.clone(), "root")
            .await
            .ok
    );
    let sum = "INSERT INTO mysql2.sums VALUES (?)";
    for user in ["plain", "plain"] {
        let done = step(proxy.addr, sum, json!([1]), user).await;
        assert!(done.ok, "{done:?}");
    }
    proxy.arm(
        "error",
        &[("verb", text("INSERT")), ("code", Arg::Int(1213))],
    );
    let denied = step(proxy.addr, sum, json!([1]), "plain").await;
    assert_eq!(
        (denied.code.as_str(), &denied.headers[0].1[..]),
        ("1213", "40001")
    );
    let several = "START TRANSACTION; UPDATE mysql2.sums SET n = 5; INSERT INTO mysql2.sums VALUES (1); COMMIT";
    assert_eq!(
        step(proxy.addr, several, none.clone(), "root").await.code,
        "1213"
    );
    let left = step(
        proxy.addr,
        "DELETE FROM mysql2.sums WHERE n = 1",
        none,
        "root",
    )
    .await;
    assert_eq!(left.data["rows_affected"], 2);
    assert_eq!(proxy.degradations(), [""; 0]);
}
