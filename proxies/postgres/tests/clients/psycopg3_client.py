"""psycopg 3 (libpq, extended protocol, pipeline mode). Usage: psycopg3_client.py PORT battery|faults|bytes"""
import hashlib, sys, threading, time
import psycopg

port, mode = int(sys.argv[1]), sys.argv[2]


def connect():
    return psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="psycopg3", autocommit=True)


def show(name, *values):
    print(name, *map(repr, values), flush=True)


def attempt(name, call):
    try:
        show(name, "ok", call())
    except psycopg.Error as e:
        show(name, type(e).__module__ + "." + type(e).__name__, e.sqlstate, (e.diag.message_primary or "").strip())


def copy_in(db, sql, lines):
    with db.cursor().copy(sql) as copy:
        for line in lines:
            copy.write(line)


def battery():
    db = connect()
    db.execute("DROP TABLE IF EXISTS t")
    db.execute("CREATE TABLE t (id int PRIMARY KEY, name text)")
    cur = db.cursor()
    cur.executemany("INSERT INTO t VALUES (%s, %s)", [(i, "näme %d" % i) for i in range(300)])
    for _ in range(8):  # past the prepare threshold
        row = db.execute("SELECT count(*), min(name) FROM t WHERE id < %s", (100,)).fetchone()
    show("prepared", row)
    show("binary", db.execute("SELECT 1::int8, 2.5::numeric, %s::text, NULL, ARRAY[1,2], '2024-01-01'::date", ("x'y",), binary=True).fetchone())
    copy_in(db, "COPY t FROM STDIN", ["%d\tcopied\n" % i for i in range(1000, 3000)])
    digest = hashlib.md5()
    with cur.copy("COPY (SELECT * FROM t ORDER BY id) TO STDOUT") as copy:
        for data in copy:
            digest.update(data)
    show("copy", digest.hexdigest())
    attempt("bad copy", lambda: copy_in(db, "COPY t FROM STDIN", ["1\tdup\n"]))
    big = db.execute("SELECT repeat('ab', 25 * 1024 * 1024)").fetchone()[0]
    show("big out", len(big), hashlib.md5(big.encode()).hexdigest())
    show("big in", db.execute("SELECT md5(%s)", (big,)).fetchone())
    with db.pipeline() as pipeline:
        cursors = [db.execute("SELECT %s::int * 2", (i,)) for i in range(200)]
        pipeline.sync()
        more = db.execute("SELECT 'x'")
        show("pipeline", sum(c.fetchone()[0] for c in cursors), more.fetchone())

    def broken_pipeline():
        with db.pipeline():
            db.execute("INSERT INTO t VALUES (50000, 'rolled back')")
            db.execute("SELECT 1/0")
            db.execute("INSERT INTO t VALUES (50001, 'skipped')")

    attempt("broken pipeline", broken_pipeline)
    show("rolled back", db.execute("SELECT count(*) FROM t WHERE id >= 50000").fetchone())
    with db.transaction():
        with db.cursor(name="server_side") as named:
            named.itersize = 7
            named.execute("SELECT id FROM t ORDER BY id")
            show("cursor", sum(row[0] for row in named))

    def unique():
        with db.transaction():
            db.execute("INSERT INTO t VALUES (1, 'again')")

    attempt("unique", unique)
    other = connect()
    db.execute("LISTEN news")
    other.execute("NOTIFY news, 'hello'")
    show("notify", [(n.channel, n.payload) for n in db.notifies(timeout=20, stop_after=1)])
    pid = db.info.backend_pid

    def cancel():
        # A request that comes before the statement is lost.
        for _ in range(600):
            if other.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'", [pid]).fetchone():
                break
            time.sleep(0.05)
        db.cancel_safe()

    threading.Thread(target=cancel).start()
    attempt("cancel", lambda: db.execute("SELECT pg_sleep(30)"))
    show("last", db.execute("SELECT 'after cancel'").fetchone())


def faults():
    db = connect()
    db.execute("DROP TABLE IF EXISTS orders")
    db.execute("CREATE TABLE orders (id int)")
    insert = "INSERT INTO orders VALUES (%s)"
    for i in range(8):
        db.execute(insert, (i,))
    show("prepared", db.execute("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'INSERT%'").fetchone())
    print("ready", flush=True)
    sys.stdin.readline()
    attempt("prepared before", lambda: db.execute(insert, (100,)))
    attempt("unprepared", lambda: db.execute("INSERT INTO public.orders VALUES (%s)", (101,)))
    attempt("copy", lambda: copy_in(db, "COPY orders FROM STDIN", ["1\n"]))

    def transaction():
        with db.transaction():
            db.execute("SELECT 1")
            db.execute(insert, (102,))

    attempt("in transaction", transaction)
    db.execute("BEGIN")
    attempt("again", lambda: db.execute(insert, (103,)))
    attempt("aborted", lambda: db.execute("SELECT 1"))
    show("commit says", db.execute("COMMIT").statusmessage)

    def pipeline():
        with db.pipeline():
            db.execute("CREATE TABLE gone (id int)")
            db.execute(insert, (104,))
            db.execute("CREATE TABLE skipped (id int)")

    attempt("pipeline", pipeline)
    show("rolled back", db.execute("SELECT count(*) FROM pg_tables WHERE tablename IN ('gone', 'skipped')").fetchone())
    with db.pipeline() as p:
        before = db.execute("SELECT 'before'")
        p.sync()
        # The error shows as soon as it has arrived: in execute, in sync, or only when its result is asked for.
        try:
            denied = db.execute(insert, (105,))
            p.sync()
            denied.fetchall()
        except psycopg.Error as e:
            show("only its batch", type(e).__name__)
        # Where it was in execute, the batch has no end yet; where not, this is an empty one.
        p.sync()
        after = db.execute("SELECT 'after'")
        p.sync()
        show("around", before.fetchone(), after.fetchone())
    show("rows", db.execute("SELECT count(*) FROM orders").fetchone())


def answers():
    db = connect()
    db.execute("DROP TABLE IF EXISTS lost")
    db.execute("CREATE TABLE lost (id int)")
    print("ready", flush=True)
    sys.stdin.readline()
    for name in ["dropped", "reset", "cut", "cut short"]:
        db = connect()
        db.execute("BEGIN")
        db.execute("INSERT INTO lost VALUES (1)")
        attempt(name, lambda: db.execute("SELECT '%s', repeat('x', 1000)" % name))
        show("lost", db.broken, db.info.transaction_status.name)
    db = connect()
    show("rows", db.execute("SELECT count(*) FROM lost").fetchone())
    db.execute("BEGIN")
    db.execute("INSERT INTO lost VALUES (2)")
    for binary in [False, True]:
        for sql in ["SELECT 'text'", "SELECT 1 AS number"]:
            try:
                show(sql, "ok", db.execute(sql, binary=binary).fetchone())
            except (UnicodeDecodeError, ValueError, psycopg.Error) as e:
                show(sql, type(e).__name__)
    show("goes on", db.broken, db.info.transaction_status.name, db.execute("COMMIT").statusmessage)
    show("rows", db.execute("SELECT count(*) FROM lost").fetchone())
    start = time.monotonic()
    value = db.execute("SELECT repeat('slow', 16384)").fetchone()[0]
    took = time.monotonic() - start
    show("slow", value == "slow" * 16384, took >= 1)
    for sql in ["INSERT INTO lost VALUES (%s)", "DELETE FROM lost"]:
        try:
            db.execute(sql, (3,) if "%" in sql else None)
        except psycopg.Error as e:
            d = e.diag
            show("worded", type(e).__name__, d.sqlstate, d.severity, d.severity_nonlocalized, d.message_primary, d.message_detail, d.message_hint)


{"battery": battery, "faults": faults, "bytes": answers}[mode]()
