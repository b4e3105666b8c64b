"""psycopg 2 (libpq, simple protocol). Usage: psycopg2_client.py PORT battery|faults"""
import hashlib, io, select, sys, threading, time
import psycopg2, psycopg2.extras

port, mode = int(sys.argv[1]), sys.argv[2]


def connect():
    return psycopg2.connect(host="127.0.0.1", port=port, user="postgres", dbname="psycopg2", sslmode="prefer")


def show(name, *values):
    print(name, *map(repr, values), flush=True)


def attempt(name, call):
    try:
        show(name, "ok", call())
    except psycopg2.Error as e:
        show(name, type(e).__module__ + "." + type(e).__name__, e.pgcode, (e.diag.message_primary or "").strip())


def battery():
    db = connect()
    db.autocommit = True
    cur = db.cursor()
    cur.execute("DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, name text)")
    cur.executemany("INSERT INTO t VALUES (%s, %s)", [(i, "näme %d" % i) for i in range(50)])
    cur.execute("SELECT 1, 2.5::numeric, 'x''y', NULL, ARRAY[1,2], now() > '2000-01-01'; SELECT count(*), min(name) FROM t")
    show("multi", cur.fetchall())
    psycopg2.extras.execute_values(cur, "INSERT INTO t VALUES %s", [(i, "v") for i in range(100, 200)])
    cur.copy_expert("COPY t FROM STDIN", io.StringIO("".join("%d\tcopied\n" % i for i in range(1000, 3000))))
    out = io.StringIO()
    cur.copy_expert("COPY (SELECT * FROM t ORDER BY id) TO STDOUT", out)
    show("copy", hashlib.md5(out.getvalue().encode()).hexdigest())
    attempt("bad copy", lambda: cur.copy_expert("COPY t FROM STDIN", io.StringIO("1\tdup\n")))
    cur.execute("SELECT repeat('ab', 25 * 1024 * 1024)")
    big = cur.fetchone()[0]
    show("big out", len(big), hashlib.md5(big.encode()).hexdigest())
    cur.execute("SELECT md5(%s), length(%s)", (big, big[:10]))
    show("big in", cur.fetchone())
    db.autocommit = False
    with db.cursor(name="server_side") as named:
        named.itersize = 7
        named.execute("SELECT id FROM t ORDER BY id")
        show("cursor", sum(row[0] for row in named))
    db.commit()
    attempt("unique", lambda: cur.execute("INSERT INTO t VALUES (1, 'again')"))
    attempt("aborted", lambda: cur.execute("SELECT 1"))
    db.rollback()
    db.autocommit = True
    other = connect()
    other.autocommit = True
    cur.execute("LISTEN news")
    other.cursor().execute("NOTIFY news, 'hello'")
    select.select([db], [], [], 20)
    db.poll()
    show("notify", [(n.channel, n.payload) for n in db.notifies])
    pid = db.get_backend_pid()

    def cancel():
        # A request that comes before the statement is lost.
        watch = other.cursor()
        for _ in range(600):
            watch.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'", [pid])
            if watch.fetchone():
                break
            time.sleep(0.05)
        db.cancel()

    threading.Thread(target=cancel).start()
    attempt("cancel", lambda: cur.execute("SELECT pg_sleep(30)"))
    cur.execute("SELECT 'after cancel'")
    show("last", cur.fetchone(), cur.statusmessage)


def faults():
    db = connect()
    db.autocommit = True
    cur = db.cursor()
    cur.execute("DROP TABLE IF EXISTS orders; CREATE TABLE orders (id int)")
    print("ready", flush=True)
    sys.stdin.readline()
    attempt("autocommit", lambda: cur.execute("INSERT INTO orders VALUES (1)"))
    attempt("copy", lambda: cur.copy_expert("COPY orders FROM STDIN", io.StringIO("1\n")))
    attempt("several", lambda: cur.execute("INSERT INTO public.orders VALUES (2); SELECT 1"))
    cur.execute("SELECT count(*) FROM orders")
    show("after", cur.fetchone())
    db.autocommit = False
    cur.execute("SELECT 1")
    attempt("in transaction", lambda: cur.execute("insert  into orders values (3)"))
    attempt("aborted", lambda: cur.execute("SELECT 1"))
    cur2 = db.cursor()
    db.commit()
    show("status", db.get_transaction_status())
    db.autocommit = True
    cur2.execute("BEGIN")
    attempt("in transaction", lambda: cur2.execute("INSERT INTO orders VALUES (4)"))
    cur2.execute("COMMIT")
    show("commit says", cur2.statusmessage)
    cur2.execute("SELECT count(*) FROM orders")
    show("rows", cur2.fetchone())


{"battery": battery, "faults": faults}[mode]()
