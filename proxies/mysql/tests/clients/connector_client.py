"""mysql-connector-python (Oracle's; prepared statements). Usage: connector_client.py PORT battery|faults"""
import hashlib, sys, tempfile
import mysql.connector as mysql

port, mode = int(sys.argv[1]), sys.argv[2]


def connect(**more):
    settings = dict(host="127.0.0.1", port=port, user="root", database="connector", ssl_disabled=True, use_pure=True,
                    autocommit=True, allow_local_infile=True, charset="utf8mb4", collation="utf8mb4_general_ci")
    return mysql.connect(**{**settings, **more})


def show(name, *values):
    print(name, *map(repr, values), flush=True)


def attempt(name, call):
    try:
        show(name, "ok", call())
    except mysql.Error as e:
        show(name, type(e).__name__, e.errno, e.sqlstate, e.msg)


def query(db, sql, args=None, prepared=False):
    cur = db.cursor(prepared=prepared)
    try:
        cur.execute(sql, args)
        return cur.fetchall() if cur.description else cur.rowcount
    finally:
        cur.close()


def battery():
    db = connect()
    query(db, "DROP TABLE IF EXISTS t")
    query(db, "CREATE TABLE t (id int PRIMARY KEY, name varchar(100), b longblob, d datetime(3), f double, n decimal(10,2))")
    cur = db.cursor(prepared=True)
    for i in range(50):
        cur.execute("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?)", (i, "näme %d" % i, b"\x00\xff" * i, "2024-02-29 01:02:03.456", i / 4, "12.50"))
    show("inserted", cur.rowcount)
    for i in range(5):
        cur.execute("SELECT * FROM t WHERE id = ?", (i,))
        show("row", cur.fetchall())
    cur.close()
    show("text", query(db, "SELECT id, name, d, f, n FROM t WHERE id < %s ORDER BY id", (3,)))
    big = "ab" * (25 * 1024 * 1024)
    show("big in", query(db, "SELECT sha2(?, 256), length(?)", (big, "x"), prepared=True))
    out = query(db, "SELECT repeat(?, ?)", ("ab", 25 * 1024 * 1024), prepared=True)[0][0]
    show("big out", len(out), hashlib.md5(out.encode()).hexdigest())
    cur = db.cursor()
    results = []
    cur.execute("SELECT 1; SELECT 2, 'x'; DO 1")
    for statement, rows in cur.fetchsets() if hasattr(cur, "fetchsets") else []:
        results.append(rows)
    show("multi", results)
    cur.close()
    attempt("unique", lambda: query(db, "INSERT INTO t (id) VALUES (?)", (1,), prepared=True))
    attempt("bad prepare", lambda: query(db, "SELEC ?", (1,), prepared=True))
    with tempfile.NamedTemporaryFile("w", suffix=".csv") as f:
        f.writelines("%d,loaded\n" % i for i in range(2000, 3000))
        f.flush()
        show("load", query(db, "LOAD DATA LOCAL INFILE '%s' INTO TABLE t FIELDS TERMINATED BY ',' (id, name)" % f.name))
    db.cmd_reset_connection()
    show("reset", query(db, "SELECT @x, database()"))
    db.cmd_change_user(username="plain", password="secret", database="mysql")
    show("changed", query(db, "SELECT current_user(), database()"))
    attempt("wrong", lambda: db.cmd_change_user(username="plain", password="wrong", database="mysql"))
    db = connect()
    show("statistics", sorted(db.cmd_statistics())[0])
    show("ping", db.is_connected())
    compressed = connect(compress=True)
    show("compressed", len(query(compressed, "SELECT repeat('ab', 100000)")[0][0]))
    compressed.close()
    db.close()


def faults():
    db = connect()
    for table in ["orders", "stock", "ledger"]:
        query(db, "DROP TABLE IF EXISTS %s" % table)
        query(db, "CREATE TABLE %s (id int PRIMARY KEY) ENGINE=InnoDB" % table)
    insert = db.cursor(prepared=True)
    query(db, "DROP TABLE IF EXISTS people")
    query(db, "CREATE TABLE people (name varchar(20), n smallint)")
    deadlock = db.cursor(prepared=True)
    deadlock.execute("INSERT INTO stock VALUES (?)", (1,))
    print("ready", flush=True)
    sys.stdin.readline()
    attempt("first execution", lambda: insert.execute("INSERT INTO orders VALUES (?)", (2,)))
    attempt("second execution", lambda: insert.execute("INSERT INTO orders VALUES (?)", (3,)))
    attempt("prepared before", lambda: deadlock.execute("INSERT INTO stock VALUES (?)", (4,)))
    db.start_transaction()
    query(db, "INSERT INTO ledger VALUES (?)", (5,), prepared=True)
    attempt("in transaction", lambda: deadlock.execute("INSERT INTO stock VALUES (?)", (6,)))
    show("is over", query(db, "SELECT @@in_transaction"))
    db.commit()
    show("rolled back", query(db, "SELECT count(*) FROM ledger"))
    cur = db.cursor(prepared=True)
    cur.execute("SELECT name, n FROM people WHERE n > ?", (0,))
    show("rows", cur.fetchall())
    cur.close()
    show("left", query(db, "SELECT id FROM stock"))


{"battery": battery, "faults": faults}[mode]()
