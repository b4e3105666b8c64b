"""asyncpg (TLS by Python's own ssl) over TLS. Usage: tls_asyncpg.py PORT CA"""
import asyncio, ssl, sys
import asyncpg

port, ca = sys.argv[1:3]


async def main():
    how = dict(host="127.0.0.1", port=int(port), database="postgres", ssl=ssl.create_default_context(cafile=ca))
    db = await asyncpg.connect(user="postgres", **how)
    print(str(await db.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")).lower())
    await (await asyncpg.connect(user="scram_user", password="secret", **how)).close()
    print("scram ok")
    print(len(await db.fetchval("SELECT repeat('x', 4000000)")))
    try:
        await db.execute("INSERT INTO orders VALUES ($1)", 1)
    except asyncpg.PostgresError as e:
        print(f"{type(e).__module__}.{type(e).__name__} {e.sqlstate} {e}")


asyncio.run(main())
