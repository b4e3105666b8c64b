// mysql2 over TLS. Usage: node tls_mysql2.js PORT CA
const mysql = require("mysql2/promise");
const { readFileSync } = require("fs");
const [port, ca] = [Number(process.argv[2]), readFileSync(process.argv[3])];

(async () => {
  const db = await mysql.createConnection({ host: "localhost", port, user: "plain", password: "secret", database: "mysql2", ssl: { ca, rejectUnauthorized: true } });
  console.log((await db.query("SHOW STATUS LIKE 'Ssl_version'"))[0][0].Value);
  console.log((await db.query("SELECT REPEAT('x', 4000000) AS x"))[0][0].x.length);
  try {
    await db.execute("INSERT INTO orders VALUES (?)", [1]);
  } catch (e) {
    console.log(e.code, e.errno, e.sqlMessage);
  }
  await db.end();
})();
