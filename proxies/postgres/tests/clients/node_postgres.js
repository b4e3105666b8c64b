// node-postgres (pg). Usage: node node_postgres.js PORT battery|faults; NODE_PATH names the modules.
const { Client, Pool } = require("pg");
const { createHash } = require("crypto");
const [port, mode] = [Number(process.argv[2]), process.argv[3]];
const config = { host: "127.0.0.1", port, user: "postgres", database: "node" };
const show = (name, ...values) => console.log(name, ...values.map((v) => JSON.stringify(v)));
const attempt = async (name, promise) => {
  try {
    show(name, "ok", (await promise).rows);
  } catch (e) {
    show(name, e.constructor.name, e.code, e.message, e.severity);
  }
};

async function battery() {
  const db = new Client(config);
  await db.connect();
  await db.query("DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, name text)");
  for (let i = 0; i < 50; i++) await db.query("INSERT INTO t VALUES ($1, $2)", [i, `näme ${i}`]);
  const named = { name: "by-id", text: "SELECT * FROM t WHERE id = $1" };
  for (let i = 0; i < 5; i++) show("named", (await db.query({ ...named, values: [i] })).rows);
  const queued = await Promise.all([1, 2, 3, 4].map((i) => db.query("SELECT $1::int * 2 AS n", [i])));
  show("queued", queued.map((r) => r.rows[0].n));
  show("types", (await db.query("SELECT 1::int8 a, 2.5::numeric b, NULL c, ARRAY[1,2] d, '{\"k\":1}'::jsonb e")).rows);
  const big = (await db.query("SELECT repeat('ab', 25 * 1024 * 1024) AS big")).rows[0].big;
  show("big out", big.length, createHash("md5").update(big).digest("hex"));
  show("big in", (await db.query("SELECT md5($1)", [big])).rows);
  await attempt("unique", db.query("INSERT INTO t VALUES (1, 'again')"));
  await db.query("BEGIN");
  await attempt("bad", db.query("SELECT $1::int", ["x"]));
  await attempt("aborted", db.query("SELECT 1"));
  show("rollback", (await db.query("ROLLBACK")).command);
  const other = new Client(config);
  await other.connect();
  const news = new Promise((done) => db.on("notification", (n) => done([n.channel, n.payload])));
  await db.query("LISTEN news");
  await other.query("NOTIFY news, 'hello'");
  show("notify", await news);
  // A request that comes before the statement is lost.
  const cancel = async () => {
    const asleep = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'PgSleep'";
    for (let i = 0; i < 600 && !(await other.query(asleep, [db.processID])).rowCount; i++) await new Promise((done) => setTimeout(done, 50));
  };
  const cancelled = cancel();
  await attempt("cancel", db.query("SELECT pg_sleep(30)"));
  show("last", (await db.query("SELECT 'after cancel' AS x")).rows);
  await cancelled;
  await Promise.all([db.end(), other.end()]);
}

async function faults() {
  const pool = new Pool({ ...config, max: 1 });
  await pool.query("DROP TABLE IF EXISTS orders; CREATE TABLE orders (id int)");
  const insert = (i) => ({ name: "insert", text: "INSERT INTO orders VALUES ($1)", values: [i] });
  await pool.query(insert(1));
  console.log("ready");
  await new Promise((done) => process.stdin.once("data", done));
  await attempt("prepared before", pool.query(insert(2)));
  await attempt("simple", pool.query("INSERT INTO orders VALUES (3)"));
  const db = await pool.connect();
  await db.query("BEGIN");
  await attempt("in transaction", db.query(insert(4)));
  await attempt("aborted", db.query("SELECT 1"));
  show("commit says", (await db.query("COMMIT")).command);
  show("rows", (await db.query("SELECT count(*)::int AS n FROM orders")).rows);
  db.release();
  await pool.end();
  process.stdin.destroy();
}

({ battery, faults })[mode]().catch((e) => {
  console.error(e);
  process.exit(1);
});
