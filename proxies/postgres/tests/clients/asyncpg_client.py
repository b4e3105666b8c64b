"""asyncpg (binary extended protocol, Flush and Sync of its own). Usage: asyncpg_client.py PORT battery|faults|bytes"""
import asyncio, hashlib, io, sys
import asyncpg

port, mode = int(sys.argv[1]), sys.argv[2]


def connect():
    return asyncpg.connect(host="127.0.0.1", port=port, user="postgres", database="asyncpg")


def show(name, *values):
    print(name, *map(repr, values), flush=True)


async def attempt(name, call):
    try:
        show(name, "ok", await call)
    except asyncpg.PostgresError as e:
        show(name, type(e).__module__ + "." + type(e).__name__, e.sqlstate, e.args[0])


async def battery():
    db = await connect()
    await db.execute("DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, name text)")
    await db.executemany("INSERT INTO t VALUES ($1, $2)", [(i, "näme %d" % i) for i in range(300)])
    show("row", tuple(await db.fetchrow("SELECT count(*), min(name) FROM t WHERE id < $1", 100)))
    show("types", tuple(await db.fetchrow("SELECT 1::int8, 2.5::numeric, $1::text, NULL, ARRAY[1,2], '2024-01-01'::date", "x'y")))
    await db.copy_records_to_table("t", records=[(i, "copied") for i in range(1000, 3000)])
    out = io.BytesIO()
    await db.copy_from_query("SELECT * FROM t ORDER BY id", output=out)
    show("copy", hashlib.md5(out.getvalue()).hexdigest())
    await attempt("bad copy", db.copy_records_to_table("t", records=[(1, "dup")]))
    big = await db.fetchval("SELECT repeat('ab', 25 * 1024 * 1024)")
    show("big out", len(big), hashlib.md5(big.encode()).hexdigest())
    show("big in", await db.fetchval("SELECT md5($1)", big))
    async with db.transaction():
        show("cursor", sum([r[0] async for r in db.cursor("SELECT id FROM t ORDER BY id", prefetch=7)]))
    await attempt("unique", db.execute("INSERT INTO t VALUES ($1, 'again')", 1))
    news = asyncio.get_running_loop().create_future()
    await db.add_listener("news", lambda _c, _pid, channel, payload: news.set_result((channel, payload)))
    other = await connect()
    await other.execute("NOTIFY news, 'hello'")
    show("notify", await asyncio.wait_for(news, 20))
    try:
        await db.execute("SELECT pg_sleep(30)", timeout=0.3)
    except asyncio.TimeoutError as e:
        show("cancel", type(e).__name__)
    show("last", await db.fetchval("SELECT 'after cancel'"))


async def faults():
    pool = await asyncpg.create_pool(host="127.0.0.1", port=port, user="postgres", database="asyncpg", min_size=1, max_size=1)
    async with pool.acquire() as db:
        await db.execute("DROP TABLE IF EXISTS orders; CREATE TABLE orders (id int)")
        insert = await db.prepare("INSERT INTO orders VALUES ($1) RETURNING id")
        show("before", await insert.fetchval(1))
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        await attempt("prepared before", insert.fetchval(2))
        await attempt("simple", db.execute("INSERT INTO orders VALUES (3)"))
        await attempt("many", db.executemany("INSERT INTO orders VALUES ($1)", [(4,), (5,)]))
        await attempt("copy", db.copy_records_to_table("orders", records=[(6,)]))
        tx = db.transaction()
        await tx.start()
        await attempt("in transaction", insert.fetchval(7))
        await attempt("aborted", db.fetchval("SELECT 1"))
        show("commit says", await db.execute("COMMIT"))
        show("rows", await db.fetchval("SELECT count(*) FROM orders"))


async def answers():
    """A pool of one: a connection that is lost must not be handed out again."""
    pool = await asyncpg.create_pool(host="127.0.0.1", port=port, user="postgres", database="asyncpg", min_size=1, max_size=1)
    await pool.execute("DROP TABLE IF EXISTS lost; CREATE TABLE lost (id int)")
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    for name in ["dropped", "reset", "cut", "cut short"]:
        async with pool.acquire() as db:
            await db.execute("BEGIN; INSERT INTO lost VALUES (1)")
            try:
                show(name, "ok", await db.fetchrow("SELECT '%s', repeat('x', 1000)" % name))
            except asyncpg.PostgresError as e:
                show(name, type(e).__module__ + "." + type(e).__name__, e.sqlstate)
    show("rows", await pool.fetchval("SELECT count(*) FROM lost"))
    async with pool.acquire() as db, db.transaction():
        await db.execute("INSERT INTO lost VALUES (2)")
        try:
            show("text", "ok", await db.fetchval("SELECT 'text'"))
        except ValueError as e:
            show("text", type(e).__name__)
        show("number", await db.fetchval("SELECT 1 AS number"))
    show("rows", await pool.fetchval("SELECT count(*) FROM lost"))
    try:
        await pool.execute("DELETE FROM lost")
    except asyncpg.PostgresError as e:
        show("worded", type(e).__name__, e.sqlstate, e.message, e.detail, e.hint)


asyncio.run({"battery": battery, "faults": faults, "bytes": answers}[mode]())
