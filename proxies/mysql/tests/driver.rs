//! The crate `mysql_async` as the client: the same answers through the proxy as directly, and the errors of rules as its own.

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use faultbox_contract::Arg;
use faultbox_engine::testing::Harness;
use mysql_async::prelude::{Query, Queryable, WithParams};
use mysql_async::{
    Conn, Error, InfileData, IsolationLevel, OptsBuilder, Pool, PoolConstraints, PoolOpts, Row,
    TxOpts, Value, params,
};
use support::{skip, with_database};

/// Larger than a packet: both ends must put it together (manual, "Sending More Than 16Mb").
const BIG: usize = 17 << 20;
/// Longer than any answer takes on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

fn opts(addr: SocketAddr, database: &str) -> OptsBuilder {
    let pool = PoolOpts::default().with_constraints(PoolConstraints::new(1, 4).unwrap());
    OptsBuilder::default()
        .ip_or_hostname(addr.ip().to_string())
        .tcp_port(addr.port())
        .user(Some("root"))
        .db_name(Some(database))
        .max_allowed_packet(Some(256 << 20))
        .pool_opts(pool)
        // It would ask a server on loopback for its socket, and go there.
        .prefer_socket(false)
}

/// An error as the crate tells it apart.
fn shown(error: &Error) -> String {
    match error {
        Error::Server(e) => format!("server {} {} {}", e.code, e.state, e.message),
        Error::Io(_) => "io".into(),
        Error::Driver(e) => format!("driver {e}"),
        other => format!("other {other}"),
    }
}

/// What the crate says to all sorts of statements, a line each.
async fn battery(addr: SocketAddr) -> Result<Vec<String>, Error> {
    tokio::time::timeout(3 * DEADLINE, everything(addr))
        .await
        .expect("it does not hang")
}

async fn everything(addr: SocketAddr) -> Result<Vec<String>, Error> {
    let mut said = vec![];
    let mut say = |what: &str, value: &dyn std::fmt::Debug| said.push(format!("{what} {value:?}"));
    let pool = Pool::new(opts(addr, "driver"));
    let mut c = pool.get_conn().await?;
    "DROP TABLE IF EXISTS orders".ignore(&mut c).await?;
    "CREATE TABLE orders (id INT PRIMARY KEY AUTO_INCREMENT, item TEXT, price DECIMAL(10,2), at DATETIME(3), raw BLOB)"
        .ignore(&mut c)
        .await?;

    let insert =
        "INSERT INTO orders (item, price, at, raw) VALUES (?, ?, '2026-01-01 10:00:00.125', ?)";
    let raw: Vec<u8> = (0..=255).collect();
    c.exec_drop(insert, ("größer", "19.90", &raw)).await?;
    say("inserted", &(c.affected_rows(), c.last_insert_id()));
    let many = (0..100).map(|i| (format!("item {i}"), Value::NULL, vec![i as u8]));
    c.exec_batch(insert, many).await?;
    let row: Option<(i32, String, Value, Value, Vec<u8>)> = c
        .exec_first("SELECT * FROM orders WHERE id = ?", (1,))
        .await?;
    say("row", &row);
    let count: Option<(i64, Option<String>)> = c
        .query_first("SELECT COUNT(*), MAX(price) FROM orders")
        .await?;
    say("count", &count);
    // The statement is kept, and asked again without being prepared again.
    let kept = c
        .prep("SELECT item FROM orders WHERE id BETWEEN :from AND :to ORDER BY id")
        .await?;
    for from in [1, 50, 99] {
        let items: Vec<String> = c
            .exec(&kept, params! { "from" => from, "to" => from + 2 })
            .await?;
        say("items", &items);
    }
    c.close(kept).await?;

    let mut results = c
        .query_iter("SELECT 1; SELECT 'a', NULL; DO 1; SELECT 3 WHERE FALSE")
        .await?;
    while !results.is_empty() {
        let columns = results.columns_ref().len();
        let rows: Vec<Row> = results.collect().await?;
        let values: Vec<Vec<Value>> = rows.into_iter().map(Row::unwrap).collect();
        say("result", &(columns, values));
    }
    drop(results);

    let big: Option<String> = c.exec_first("SELECT REPEAT('x', ?)", (BIG,)).await?;
    say("big row", &big.map(|b| b.len()));
    let back: Option<i64> = c
        .exec_first("SELECT LENGTH(?)", (Value::Bytes(vec![b'y'; BIG]),))
        .await?;
    say("big parameter", &back);

    for commits in [false, true] {
        let mut tx_opts = TxOpts::default();
        tx_opts.with_isolation_level(Some(IsolationLevel::Serializable));
        let mut tx = c.start_transaction(tx_opts).await?;
        tx.query_drop("UPDATE orders SET item = 'changed' WHERE id = 2")
            .await?;
        match commits {
            true => tx.commit().await?,
            false => tx.rollback().await?,
        }
        let item: Option<String> = c
            .query_first("SELECT item FROM orders WHERE id = 2")
            .await?;
        say("after a transaction", &item);
    }

    c.set_infile_handler(async {
        let parts = ["a\tb\n", "c\td\ne", "\tf\n"].map(|p| Ok(Bytes::from_static(p.as_bytes())));
        Ok(Box::pin(tokio_stream::iter(parts)) as InfileData)
    });
    "CREATE TEMPORARY TABLE loaded (x TEXT, y TEXT)"
        .ignore(&mut c)
        .await?;
    c.query_drop("LOAD DATA LOCAL INFILE 'lines' INTO TABLE loaded")
        .await?;
    say("loaded", &c.affected_rows());
    let loaded: Vec<(String, String)> = c.query("SELECT * FROM loaded").await?;
    say("loaded", &loaded);

    for wrong in [
        "SELECT * FROM none",
        "SELEC 1",
        "INSERT INTO orders (id) VALUES (1)",
    ] {
        say(wrong, &shown(&c.query_drop(wrong).await.unwrap_err()));
    }
    c.ping().await?;
    // A pool resets what it hands out again.
    c.query_drop("SET @kept = 1").await?;
    drop(c);
    let calls: Vec<_> = (0..40i64)
        .map(|i| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let asked = "SELECT ?, @kept, SLEEP(0.01)".with((i,));
                let got: Option<(i64, Option<i64>, i64)> = asked.first(&pool).await?;
                Ok::<_, Error>(got == Some((i, None, 0)))
            })
        })
        .collect();
    for call in calls {
        assert!(call.await.unwrap()?);
    }
    pool.disconnect().await?;

    for (user, password) in [("plain", "secret"), ("plain", "wrong"), ("nobody", "")] {
        let as_user = opts(addr, "driver").user(Some(user)).pass(Some(password));
        match Conn::new(as_user).await {
            Ok(mut conn) => {
                let name: Option<String> = conn.query_first("SELECT CURRENT_USER()").await?;
                say(user, &name);
                conn.disconnect().await?;
            }
            Err(e) => say(user, &shown(&e)),
        }
    }
    Ok(said)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_through_the_proxy_as_directly() {
    if skip() {
        return;
    }
    let server = with_database("driver").await;
    let proxy = Harness::start(faultbox_mysql::protocol(), server.addr);
    let direct = battery(server.addr).await.unwrap();
    let idle = battery(proxy.addr).await.unwrap();
    assert_eq!(direct, idle);
    assert!(proxy.meter.count() > 70, "{}", proxy.meter.count());
    for part in [
        "big row Some(17825792)",
        "loaded 3",
        "server 1146 42S02",
        "server 1045 28000",
        "server 1062 23000",
    ] {
        assert!(
            direct.iter().any(|line| line.contains(part)),
            "{part}: {direct:#?}"
        );
    }
    // What the proxy reads more closely once a rule is armed must not show either.
    let rule = proxy.arm("error", &[("query", text("nothing is like this"))]);
    assert_eq!(battery(proxy.addr).await.unwrap(), direct);
    assert_eq!(rule.matched(), 0);
    assert_eq!(proxy.events.all().len(), 0, "{:?}", proxy.events.all());
}

/// Rules are armed on a live connection, of text and of prepared statements.
#[tokio::test(flavor = "multi_thread")]
async fn errors_arrive_as_its_own() {
    if skip() {
        return;
    }
    let server = with_database("driver_faults").await;
    let proxy = Harness::start(faultbox_mysql::protocol(), server.addr);
    let mut c = Conn::new(opts(proxy.addr, "driver_faults")).await.unwrap();
    c.query_drop("CREATE TABLE orders (id INT PRIMARY KEY, n INT)")
        .await
        .unwrap();
    c.query_drop("INSERT INTO orders VALUES (1, 0), (2, 0)")
        .await
        .unwrap();
    let update = c
        .prep("UPDATE orders SET n = n + 1 WHERE id = ?")
        .await
        .unwrap();
    c.exec_drop(&update, (1,)).await.unwrap();

    // A deadlock rolls the transaction back; what the driver prepared before stays prepared.
    let deadlock = proxy.arm(
        "error",
        &[
            ("verb", text("UPDATE")),
            ("table", text("orders")),
            ("code", Arg::Int(1213)),
            ("nth", Arg::Int(2)),
        ],
    );
    let mut tx = c.start_transaction(TxOpts::default()).await.unwrap();
    tx.exec_drop(&update, (1,)).await.unwrap();
    let error = tx.exec_drop(&update, (2,)).await.unwrap_err();
    assert_eq!(
        shown(&error),
        "server 1213 40001 Deadlock found when trying to get lock; try restarting transaction"
    );
    tx.rollback().await.unwrap();
    let n: Vec<i32> = c.query("SELECT n FROM orders ORDER BY id").await.unwrap();
    assert_eq!(n, [1, 0]);
    proxy.rules.lift(deadlock.id);
    c.exec_drop(&update, (2,)).await.unwrap();

    for (code, said) in [
        ("ER_DUP_ENTRY", "server 1062 23000"),
        ("1205", "server 1205 HY000"),
        ("ER_TABLEACCESS_DENIED_ERROR", "server 1142 42000"),
        ("ER_DISK_FULL", "server 1021 HY000"),
        ("1290", "server 1290 HY000"),
    ] {
        let rule = proxy.arm(
            "error",
            &[
                ("verb", text("INSERT")),
                ("code", code.parse().map_or_else(|_| text(code), Arg::Int)),
            ],
        );
        let by_text = c
            .query_drop("INSERT INTO orders VALUES (3, 0)")
            .await
            .unwrap_err();
        let prepared = c
            .exec_drop("INSERT INTO orders VALUES (?, 0)", (3,))
            .await
            .unwrap_err();
        assert!(shown(&by_text).starts_with(said), "{by_text}");
        assert_eq!(shown(&by_text), shown(&prepared));
        proxy.rules.lift(rule.id);
    }
    let words = "größer als 100 %";
    let worded = proxy.arm(
        "error",
        &[
            ("verb", text("DELETE")),
            ("code", Arg::Int(1644)),
            ("sqlstate", text("45000")),
            ("message", text(words)),
        ],
    );
    let error = c.query_drop("DELETE FROM orders").await.unwrap_err();
    assert_eq!(shown(&error), format!("server 1644 45000 {words}"));
    proxy.rules.lift(worded.id);

    let rows = serde_json::json!([{"name": "ann", "n": 1}, {"name": null, "n": 2}]);
    proxy.arm(
        "response",
        &[("table", text("people")), ("rows", Arg::Json(rows))],
    );
    let people: Vec<(Option<String>, i64)> = c.query("SELECT name, n FROM people").await.unwrap();
    assert_eq!(people, [(Some("ann".into()), 1), (None, 2)]);

    let delay = Duration::from_millis(200);
    let slow = proxy.arm(
        "delay",
        &[
            ("query", text("SELECT 'slow'")),
            ("delay", Arg::Duration(delay)),
        ],
    );
    let since = std::time::Instant::now();
    let got: Option<String> = c.query_first("SELECT 'slow'").await.unwrap();
    assert_eq!(got.as_deref(), Some("slow"));
    assert!(since.elapsed() >= delay);
    proxy.rules.lift(slow.id);

    proxy.arm("drop", &[("query", text("SELECT 'lost'"))]);
    proxy.arm("reset", &[("query", text("SELECT 'reset'"))]);
    for query in ["SELECT 'lost'", "SELECT 'reset'"] {
        let mut c = Conn::new(opts(proxy.addr, "driver_faults")).await.unwrap();
        let error = tokio::time::timeout(DEADLINE, c.query_drop(query))
            .await
            .unwrap()
            .unwrap_err();
        assert!(
            matches!(
                error,
                Error::Io(_) | Error::Driver(mysql_async::DriverError::ConnectionClosed)
            ),
            "{query}: {error:?}"
        );
    }
    assert_eq!(proxy.degradations(), [""; 0]);
    drop(c);
}

/// A refused login is what a pool's caller sees, and the pool is none the worse for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_survives_faults() {
    if skip() {
        return;
    }
    let server = with_database("driver_pool").await;
    let proxy = Harness::start(faultbox_mysql::protocol(), server.addr);
    let pool = Pool::new(opts(proxy.addr, "driver_pool"));
    let refused = proxy.arm(
        "error",
        &[
            ("verb", text("CONNECT")),
            ("code", text("ER_CON_COUNT_ERROR")),
        ],
    );
    let error = pool.get_conn().await.unwrap_err();
    assert!(shown(&error).starts_with("server 1040"), "{error}");
    proxy.rules.lift(refused.id);
    proxy.arm(
        "drop",
        &[("query", text("SELECT 'lost'")), ("times", Arg::Int(4))],
    );
    for _ in 0..4 {
        "SELECT 'lost'".ignore(&pool).await.unwrap_err();
    }
    for _ in 0..8 {
        let got: Option<String> = "SELECT 'lost'".first(&pool).await.unwrap();
        assert_eq!(got.as_deref(), Some("lost"));
    }
    pool.disconnect().await.unwrap();
}

/// Whatever the code: a COMMIT that fails ends its transaction, by text and prepared.
#[tokio::test(flavor = "multi_thread")]
async fn a_denied_commit_leaves_no_transaction() {
    if skip() {
        return;
    }
    let server = with_database("driver_commit").await;
    let proxy = Harness::start(faultbox_mysql::protocol(), server.addr);
    let mut c = Conn::new(opts(proxy.addr, "driver_commit")).await.unwrap();
    c.query_drop("CREATE TABLE orders (id INT PRIMARY KEY)")
        .await
        .unwrap();
    let commit = c.prep("COMMIT").await.unwrap();
    let rule = proxy.arm(
        "error",
        &[("verb", text("COMMIT")), ("code", text("ER_DISK_FULL"))],
    );
    for (id, prepared) in [(1, false), (2, true)] {
        c.query_drop("BEGIN").await.unwrap();
        c.query_drop(format!("INSERT INTO orders VALUES ({id})"))
            .await
            .unwrap();
        let failed = match prepared {
            true => c.exec_drop(&commit, ()).await,
            false => c.query_drop("COMMIT").await,
        };
        let failed = shown(&failed.unwrap_err());
        assert!(failed.starts_with("server 1021 HY000"), "{failed}");
        // Of the transaction nothing is left: neither its rows nor itself.
        let inside: Option<u8> = c.query_first("SELECT @@in_transaction").await.unwrap();
        let rows: Option<u32> = c.query_first("SELECT count(*) FROM orders").await.unwrap();
        assert_eq!((inside, rows), (Some(0), Some(0)), "{prepared}");
    }
    assert_eq!(rule.hits(), 2);
    proxy.rules.lift(rule.id);
    // Of a string it is the first statement that a rule means: this one is in the transaction, which goes on.
    let rule = proxy.arm(
        "error",
        &[("table", text("orders")), ("code", Arg::Int(1205))],
    );
    c.query_drop("BEGIN").await.unwrap();
    let several = c.query_drop("INSERT INTO orders VALUES (3); COMMIT").await;
    assert!(several.is_err());
    let inside: Option<u8> = c.query_first("SELECT @@in_transaction").await.unwrap();
    assert_eq!(inside, Some(1));
    proxy.rules.lift(rule.id);
    assert_eq!(proxy.degradations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_diagnostics_quote_as_the_error_does() {
    if skip() {
        return;
    }
    let server = with_database("driver_diagnostics").await;
    let proxy = Harness::start(faultbox_mysql::protocol(), server.addr);
    let mut c = Conn::new(opts(proxy.addr, "driver_diagnostics"))
        .await
        .unwrap();
    let message = "Duplicate entry 'it''s' for key 'PRIMARY'";
    proxy.arm(
        "error",
        &[
            ("verb", text("INSERT")),
            ("code", text("ER_DUP_ENTRY")),
            ("message", text(message)),
        ],
    );
    let failed = c.query_drop("INSERT INTO t VALUES (1)").await.unwrap_err();
    assert_eq!(shown(&failed), format!("server 1062 23000 {message}"));
    let warnings: Vec<(String, u16, String)> = c.query("SHOW WARNINGS").await.unwrap();
    assert_eq!(warnings, [("Error".into(), 1062, message.into())]);
}

/// SQL's own PREPARE and EXECUTE, prepared before a rule is there and after.
#[tokio::test(flavor = "multi_thread")]
async fn what_execute_runs_is_matched_by_its_text() {
    if skip() {
        return;
    }
    let server = with_database("driver_named").await;
    let proxy = Harness::start(faultbox_mysql::protocol(), server.addr);
    let mut c = Conn::new(opts(proxy.addr, "driver_named")).await.unwrap();
    let mut run = async |sql: &str| match c.query_drop(sql).await {
        Ok(()) => "ok".to_owned(),
        Err(e) => shown(&e).split(' ').nth(1).unwrap_or_default().to_owned(),
    };
    assert_eq!(run("CREATE TABLE orders (id INT, note TEXT)").await, "ok");
    let early = r"PREPARE early FROM 'INSERT INTO orders VALUES (1, ''it\\''s'')'";
    assert_eq!(run(early).await, "ok");
    let rule = proxy.arm(
        "error",
        &[
            ("query", text("*INSERT INTO orders*")),
            ("code", text("ER_DISK_FULL")),
        ],
    );
    assert_eq!(run("EXECUTE early").await, "1021");
    assert_eq!(run("SELECT 1; EXECUTE early").await, "1021");
    // Preparing runs nothing, and is no match.
    let late = "PREPARE late FROM 'INSERT INTO orders VALUES (2, ?)'";
    assert_eq!(run(late).await, "ok");
    assert_eq!(rule.hits(), 2);
    assert_eq!(run("EXECUTE late USING @x").await, "1021");
    let immediate = "EXECUTE IMMEDIATE 'INSERT INTO orders VALUES (3, NULL)'";
    assert_eq!(run(immediate).await, "1021");
    // A name that is forgotten means nothing any more.
    assert_eq!(run("DEALLOCATE PREPARE early").await, "ok");
    assert_eq!(run("EXECUTE early").await, "1243");
    proxy.rules.lift(rule.id);
    // A COMMIT by a name is one.
    assert_eq!(run("PREPARE done FROM 'COMMIT'").await, "ok");
    let rule = proxy.arm(
        "error",
        &[("verb", text("COMMIT")), ("code", text("ER_DISK_FULL"))],
    );
    assert_eq!(
        run("BEGIN; INSERT INTO orders VALUES (4, NULL)").await,
        "ok"
    );
    assert_eq!(run("EXECUTE done").await, "1021");
    assert_eq!(rule.hits(), 1);
    proxy.rules.lift(rule.id);
    let rows: Option<u32> = c.query_first("SELECT count(*) FROM orders").await.unwrap();
    assert_eq!(rows, Some(0));
    assert_eq!(proxy.degradations(), [""; 0]);
}
