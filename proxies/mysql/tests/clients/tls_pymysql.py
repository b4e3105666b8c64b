"""PyMySQL over TLS. Usage: tls_pymysql.py PORT CA"""
import sys
import pymysql

port, ca = int(sys.argv[1]), sys.argv[2]
settings = dict(host="127.0.0.1", port=port, user="plain", password="secret", database="pymysql", autocommit=True,
                ssl_ca=ca, ssl_verify_cert=True, ssl_verify_identity=True)
db = pymysql.connect(**settings)
cursor = db.cursor()
cursor.execute("SHOW STATUS LIKE 'Ssl_version'")
print(cursor.fetchone()[1])
cursor.execute("SELECT REPEAT('x', 4000000)")
print(len(cursor.fetchone()[0]))
try:
    cursor.execute("INSERT INTO orders VALUES (1)")
except pymysql.MySQLError as e:
    print(type(e).__name__, *e.args)
