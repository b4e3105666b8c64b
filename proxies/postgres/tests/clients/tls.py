"""psycopg 3 over TLS. Usage: tls.py PORT CA"""
import sys
import psycopg

port, ca = sys.argv[1:3]
how = dict(host="127.0.0.1", port=port, dbname="postgres", autocommit=True, sslmode="verify-full", sslrootcert=ca)
db = psycopg.connect(user="postgres", **how)
print(str(db.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()[0]).lower())
psycopg.connect(user="scram_user", password="secret", channel_binding="require", **how).close()
print("scram ok")
print(len(db.execute("SELECT repeat('x', 4000000)").fetchone()[0]))
try:
    db.execute("INSERT INTO orders VALUES (%s)", (1,))
except psycopg.Error as e:
    print(f"{type(e).__module__}.{type(e).__name__} {e.sqlstate} {e.diag.message_primary}")
