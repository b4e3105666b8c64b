// node-postgres over TLS. Usage: node tls.js PORT CA
const { Client } = require("pg");
const { readFileSync } = require("fs");
const [port, ca] = [Number(process.argv[2]), readFileSync(process.argv[3])];

async function open(extra) {
  // An address is no name to ask for (SNI); Node verifies the certificate against the host all the same.
  const db = new Client({ host: "127.0.0.1", port, database: "postgres", ssl: { ca, rejectUnauthorized: true }, ...extra });
  await db.connect();
  return db;
}

(async () => {
  const db = await open({ user: "postgres" });
  console.log((await db.query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")).rows[0].ssl);
  const bound = await open({ user: "scram_user", password: "secret", enableChannelBinding: true });
  console.log("scram ok");
  await bound.end();
  console.log((await db.query("SELECT repeat('x', 4000000) AS x")).rows[0].x.length);
  try {
    await db.query("INSERT INTO orders VALUES ($1)", [1]);
  } catch (e) {
    console.log(e.constructor.name, e.code, e.message);
  }
  await db.end();
})();
