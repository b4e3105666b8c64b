// mysql2 (Node). Usage: node mysql2_client.js PORT battery|faults|bytes; NODE_PATH names the modules.
const mysql = require("mysql2/promise");
const { createHash } = require("crypto");
const { Readable } = require("stream");
const [port, mode] = [Number(process.argv[2]), process.argv[3]];
const config = { host: "127.0.0.1", port, user: "root", database: "mysql2", multipleStatements: true, dateStrings: true };
const show = (name, ...values) => console.log(name, ...values.map((v) => JSON.stringify(v)));
const attempt = async (name, promise) => {
  try {
    show(name, "ok", (await promise)[0]);
  } catch (e) {
    show(name, e.code, e.errno, e.sqlState, e.sqlMessage || e.message);
  }
};
const md5 = (text) => createHash("md5").update(text).digest("hex");

async function battery() {
  const db = await mysql.createConnection(config);
  await db.query("DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, name text, j json, d datetime(3))");
  for (let i = 0; i < 50; i++) await db.execute("INSERT INTO t VALUES (?, ?, ?, ?)", [i, `näme ${i}`, '{"k":1}', "2024-02-29 01:02:03.456"]);
  for (let i = 0; i < 5; i++) show("prepared", (await db.execute("SELECT * FROM t WHERE id = ?", [i]))[0]);
  const queued = await Promise.all([1, 2, 3, 4].map((i) => db.execute("SELECT ? * 2 AS n", [i])));
  show("queued", queued.map((r) => r[0][0].n));
  show("types", (await db.query("SELECT 1 a, 2.5 b, NULL c, 1e0 d, CAST(18446744073709551615 AS UNSIGNED) e"))[0]);
  show("binary types", (await db.execute("SELECT 1 a, 2.5 b, NULL c, 1e0 d, TIME'-30:00:01' e, DATE'2024-01-01' f"))[0]);
  const [results] = await db.query("SELECT 1 AS a; INSERT INTO t (id) VALUES (100); SELECT 2 AS b");
  show("multi", results[0], results[1].affectedRows, results[2]);
  await db.query("DROP PROCEDURE IF EXISTS p");
  await db.query("CREATE PROCEDURE p(IN n int) BEGIN SELECT n; SELECT count(*) AS c FROM t; END");
  show("procedure", (await db.execute("CALL p(?)", [7]))[0].slice(0, 2));
  const big = (await db.query("SELECT repeat('ab', 25 * 1024 * 1024) AS big"))[0][0].big;
  show("big out", big.length, md5(big));
  show("big in", (await db.execute("SELECT sha2(?, 256) AS m", [big]))[0]);
  const lines = Array.from({ length: 20000 }, (_, i) => `${i + 1000}\tloaded ${i}\n`).join("");
  const [loaded] = await db.query({ sql: "LOAD DATA LOCAL INFILE 'stream' INTO TABLE t (id, name)", infileStreamFactory: () => Readable.from([Buffer.from(lines)]) });
  show("load", loaded.affectedRows);
  await attempt("unique", db.execute("INSERT INTO t (id) VALUES (?)", [1]));
  await attempt("syntax", db.query("SELEC 1"));
  await attempt("bad prepare", db.execute("SELEC ?", [1]));
  await db.changeUser({ user: "plain", password: "secret", database: "mysql" });
  show("changed", (await db.query("SELECT current_user() AS u, database() AS d"))[0]);
  await db.ping();
  const compressed = await mysql.createConnection({ ...config, compress: true });
  show("compressed", (await compressed.query("SELECT repeat('ab', 100000) AS x"))[0][0].x.length);
  await compressed.end();
  await db.end();
  await attempt("wrong password", mysql.createConnection({ ...config, user: "plain", password: "wrong" }));
}

async function faults() {
  const pool = mysql.createPool({ ...config, connectionLimit: 1 });
  for (const table of ["orders", "stock", "ledger"]) {
    await pool.query(`DROP TABLE IF EXISTS ${table}; CREATE TABLE ${table} (id int PRIMARY KEY) ENGINE=InnoDB`);
  }
  await pool.query("DROP TABLE IF EXISTS people; CREATE TABLE people (name varchar(20), n smallint)");
  await pool.execute("INSERT INTO orders VALUES (?)", [1]);
  await pool.execute("SELECT name, n FROM people WHERE n > ?", [0]);
  console.log("ready");
  await new Promise((done) => process.stdin.once("data", done));
  await attempt("prepared before", pool.execute("INSERT INTO orders VALUES (?)", [2]));
  await attempt("text", pool.query("INSERT INTO orders VALUES (3)"));
  const db = await pool.getConnection();
  await db.beginTransaction();
  await db.execute("INSERT INTO ledger VALUES (?)", [4]);
  await attempt("in transaction", db.execute("INSERT INTO stock VALUES (?)", [5]));
  await db.commit();
  show("rolled back", (await db.query("SELECT id FROM ledger"))[0]);
  await attempt("rows", db.execute("SELECT name, n FROM people WHERE n > ?", [0]));
  await attempt("lost", db.query("SELECT 'lost'"));
  db.destroy();
  show("after", (await pool.query("SELECT count(*) AS n FROM orders"))[0]);
  await pool.end();
}

// A pool of one: a connection that is lost must not be handed out again.
async function answers() {
  const pool = mysql.createPool({ ...config, connectionLimit: 1 });
  await pool.query("DROP TABLE IF EXISTS gone; CREATE TABLE gone (id int) ENGINE=InnoDB");
  console.log("ready");
  await new Promise((done) => process.stdin.once("data", done));
  for (const name of ["dropped", "reset", "cut", "cut short"]) {
    const db = await pool.getConnection();
    await db.beginTransaction();
    await db.execute("INSERT INTO gone VALUES (?)", [1]);
    await attempt(name, db.execute(`SELECT '${name}', repeat('x', ?)`, [1000]));
    db.release();
    show("again", (await pool.query("SELECT count(*) AS n FROM gone"))[0]);
  }
  const db = await pool.getConnection();
  await db.beginTransaction();
  await db.execute("INSERT INTO gone VALUES (?)", [2]);
  show("text", (await db.execute("SELECT 'text' AS t"))[0]);
  show("number", (await db.execute("SELECT 1 AS number"))[0]);
  await db.commit();
  show("rows", (await db.query("SELECT id FROM gone"))[0]);
  const start = performance.now();
  const value = (await db.execute("SELECT repeat('slow', 16384) AS v"))[0][0].v;
  show("slow", value === "slow".repeat(16384), performance.now() - start >= 1000);
  db.release();
  await pool.end();
}

({ battery, faults, bytes: answers })[mode]().catch((e) => {
  console.error(e);
  process.exit(1);
});
