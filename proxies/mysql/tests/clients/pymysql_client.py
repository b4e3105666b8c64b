"""PyMySQL (pure Python, text protocol). Usage: pymysql_client.py PORT battery|faults|bytes"""
import hashlib, sys, tempfile, threading, time
import pymysql
from pymysql.constants import CLIENT

port, mode = int(sys.argv[1]), sys.argv[2]


def connect(**more):
    settings = dict(host="127.0.0.1", port=port, user="root", database="pymysql", ssl_disabled=True, autocommit=True, local_infile=True,
                    client_flag=CLIENT.MULTI_STATEMENTS, max_allowed_packet=1 << 28, charset="utf8mb4")
    return pymysql.connect(**{**settings, **more})


def show(name, *values):
    print(name, *map(repr, values), flush=True)


def attempt(name, call):
    try:
        show(name, "ok", call())
    except (pymysql.Error, OSError) as e:
        show(name, type(e).__module__ + "." + type(e).__name__, *e.args)


def query(db, sql, args=None):
    with db.cursor() as cur:
        cur.execute(sql, args)
        return cur.fetchall()


def battery():
    db = connect()
    query(db, "DROP TABLE IF EXISTS t")
    query(db, "CREATE TABLE t (id int PRIMARY KEY, name varchar(100), b longblob)")
    with db.cursor() as cur:
        cur.executemany("INSERT INTO t (id, name) VALUES (%s, %s)", [(i, "näme %d" % i) for i in range(300)])
        show("many", cur.rowcount)
        cur.execute("SELECT 1; INSERT INTO t (id) VALUES (1000), (1001); SELECT 'x', NULL; DO 1")
        results = [cur.fetchall()]
        while cur.nextset():
            results.append((cur.fetchall(), cur.rowcount))
        show("multi", results)
        query(db, "DROP PROCEDURE IF EXISTS p")
        query(db, "CREATE PROCEDURE p(n int) BEGIN SELECT n; SELECT count(*) FROM t WHERE id < n; SELECT 'end'; END")
        cur.callproc("p", (100,))
        results = [cur.fetchall()]
        while cur.nextset():
            results.append(cur.fetchall())
        show("procedure", results)
    show("types", query(db, "SELECT 1, 2.50, 1e0, NULL, DATE'2024-02-29', TIMESTAMP'2024-02-29 01:02:03.5', TIME'-30:00:00', b'101', '{}'"))
    big = query(db, "SELECT repeat('ab', 25 * 1024 * 1024)")[0][0]
    show("big out", len(big), hashlib.md5(big.encode()).hexdigest())
    show("big in", query(db, "SELECT sha2(%s, 256), length(%s) > 0", (big, "x")))
    edge = "x" * (0xffffff - len("\x03SELECT length('')"))
    show("edge", query(db, "SELECT length('" + edge + "')"))
    exact = query(db, "SELECT repeat('y', 16777210)")[0][0]
    show("edge out", len(exact))
    with tempfile.NamedTemporaryFile("w", suffix=".csv") as f:
        f.writelines("%d,loaded %d\n" % (i, i) for i in range(2000, 32000))
        f.flush()
        with db.cursor() as cur:
            show("load", cur.execute("LOAD DATA LOCAL INFILE %s INTO TABLE t FIELDS TERMINATED BY ',' (id, name)", (f.name,)))
    attempt("no file", lambda: query(db, "LOAD DATA LOCAL INFILE '/no/such/file' INTO TABLE t"))
    show("loaded", query(db, "SELECT count(*), min(name), max(id) FROM t"))
    attempt("unique", lambda: query(db, "INSERT INTO t (id) VALUES (1)"))
    attempt("syntax", lambda: query(db, "SELEC 1"))
    attempt("no table", lambda: query(db, "SELECT * FROM nothing"))
    db.begin()
    query(db, "INSERT INTO t (id) VALUES (50000)")
    db.rollback()
    show("rolled back", query(db, "SELECT count(*) FROM t WHERE id = 50000"))
    unbuffered = pymysql.cursors.SSCursor(db)
    unbuffered.execute("SELECT id FROM t ORDER BY id")
    show("streamed", sum(row[0] for row in unbuffered))
    unbuffered.close()
    db.select_db("mysql")
    show("database", query(db, "SELECT database()"))
    db.ping()
    other = connect()
    thread = db.thread_id()

    def kill():
        # A KILL that comes before the statement is lost.
        asleep = "SELECT count(*) FROM information_schema.processlist WHERE id = %d AND state = 'User sleep'" % thread
        for _ in range(600):
            if query(other, asleep) == ((1,),):
                break
            time.sleep(0.05)
        query(other, "KILL QUERY %d" % thread)

    killer = threading.Thread(target=kill)
    killer.start()
    attempt("kill query", lambda: query(db, "SELECT SLEEP(30)"))
    killer.join()
    query(other, "KILL %d" % thread)
    try:
        query(db, "SELECT 1")
    except pymysql.err.OperationalError as e:
        # Whether the end of the stream or a reset is seen first is chance, so the text is, too.
        show("killed", e.args[0])
    attempt("wrong password", lambda: connect(user="plain", password="wrong"))
    show("native", query(connect(user="plain", password="secret"), "SELECT current_user()"))
    show("ed25519", query(connect(user="edward", password="secret"), "SELECT current_user()"))
    other.close()


def faults():
    db = connect()
    for table in ["orders", "stock", "twice", "archive", "ledger"]:
        query(db, "DROP TABLE IF EXISTS %s" % table)
        query(db, "CREATE TABLE %s (id int PRIMARY KEY) ENGINE=InnoDB" % table)
    print("ready", flush=True)
    sys.stdin.readline()
    attempt("duplicate", lambda: query(db, "INSERT INTO orders VALUES (1)"))
    show("warnings", query(db, "SHOW WARNINGS"), query(db, "SELECT @@error_count, @@warning_count"))
    attempt("wait", lambda: query(db, "UPDATE orders SET id = 2"))
    db.begin()
    query(db, "INSERT INTO ledger VALUES (10)")
    attempt("in transaction, duplicate", lambda: query(db, "INSERT INTO orders VALUES (11)"))
    attempt("in transaction, wait", lambda: query(db, "UPDATE orders SET id = 2"))
    show("goes on", query(db, "SELECT @@in_transaction"))
    db.commit()
    show("kept", query(db, "SELECT id FROM ledger"))
    query(db, "SET completion_type = 'CHAIN'")
    db.begin()
    query(db, "INSERT INTO ledger VALUES (20)")
    attempt("in transaction, deadlock", lambda: query(db, "INSERT INTO stock VALUES (21)"))
    show("is over", query(db, "SELECT @@in_transaction"))
    query(db, "SET completion_type = 'NO_CHAIN'")
    db.commit()
    show("rolled back", query(db, "SELECT id FROM ledger"))

    def retry():
        for tries in range(1, 10):
            try:
                db.begin()
                query(db, "INSERT INTO ledger VALUES (30)")
                query(db, "INSERT INTO twice VALUES (31)")
                db.commit()
                return tries
            except pymysql.err.OperationalError as e:
                if e.args[0] != 1213:
                    raise
        return "never"

    show("retried", retry(), query(db, "SELECT id FROM ledger"), query(db, "SELECT id FROM twice"))
    attempt("read only", lambda: query(db, "DELETE FROM archive"))
    attempt("rows", lambda: query(db, "SELECT name, n FROM people"))
    attempt("no rows", lambda: query(db, "UPDATE people SET n = 1"))
    attempt("several", lambda: query(db, "INSERT INTO ledger VALUES (40); INSERT INTO orders VALUES (41)"))
    show("none of them", query(db, "SELECT count(*) FROM ledger WHERE id = 40"))
    attempt("too many", lambda: connect(user="plain", password="secret"))
    attempt("lost", lambda: query(db, "SELECT 'lost'"))
    db.ping(reconnect=True)
    attempt("shutdown", lambda: query(db, "SELECT 'shutdown'"))
    db.ping(reconnect=True)
    show("after", query(db, "SELECT count(*) FROM ledger"))


def answers():
    db = connect()
    query(db, "DROP TABLE IF EXISTS gone")
    query(db, "CREATE TABLE gone (id int) ENGINE=InnoDB")
    print("ready", flush=True)
    sys.stdin.readline()
    for name in ["dropped", "reset", "cut", "cut short"]:
        lost = connect(autocommit=False)
        query(lost, "INSERT INTO gone VALUES (1)")
        try:
            show(name, "ok", query(lost, "SELECT '%s', repeat('x', 1000)" % name))
        except pymysql.Error as e:
            show(name, type(e).__module__ + "." + type(e).__name__, e.args[0], lost.open)
    # Where a value cannot be read, the driver leaves the rest of its answer unread: that connection is of no more use.
    for sql in ["SELECT 'text'", "SELECT 1 AS number"]:
        try:
            show(sql, "ok", query(connect(), sql))
        except ValueError as e:
            show(sql, type(e).__name__)
    show("rows", query(db, "SELECT count(*) FROM gone"))
    start = time.monotonic()
    value = query(db, "SELECT repeat('slow', 16384)")[0][0]
    took = time.monotonic() - start
    show("slow", value == "slow" * 16384, took >= 1)


{"battery": battery, "faults": faults, "bytes": answers}[mode]()
