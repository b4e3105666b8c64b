// ioredis. Usage: ioredis.js battery|faults|answers PORT
const Redis = require("ioredis");
const readline = require("readline");
const crypto = require("crypto");
const [mode, port] = [process.argv[2], Number(process.argv[3])];

const connect = (options = {}) => {
  const r = new Redis({ host: "127.0.0.1", port, retryStrategy: () => 50, maxRetriesPerRequest: 2, ...options });
  r.on("error", () => {});
  return r;
};
const show = (name, ...values) => console.log(name, ...values.map((v) => JSON.stringify(v)));
const attempt = async (name, call) => {
  try {
    show(name, "ok", await call());
  } catch (e) {
    show(name, e.name, e.message);
  }
};
const line = () =>
  new Promise((resolve) => {
    const lines = readline.createInterface({ input: process.stdin });
    lines.once("line", () => (lines.close(), resolve()));
  });

async function battery() {
  const r = connect();
  await r.flushall();
  show("strings", await r.set("k", "v"), await r.get("k"), await r.get("none"), await r.incr("n"));
  show("types", await r.hset("h", { a: 1, b: 2 }), await r.hgetall("h"), await r.zadd("z", 1, "a"), await r.zrange("z", 0, -1, "WITHSCORES"));
  await attempt("wrong type", () => r.lpush("k", 1));
  const pipe = r.pipeline();
  for (let i = 0; i < 10000; i++) pipe.incrby("sum", i);
  const got = await pipe.exec();
  show("pipeline", got.length, got[9999]);
  show("transaction", await r.multi().set("t", 1).incr("t").get("none").exec());
  await attempt("aborted", () => r.multi().set("t").incr("t").exec());
  const many = await Promise.all(Array.from({ length: 500 }, (_, i) => r.echo("e" + i)));
  show("auto pipelining", many.length, many[499]);
  const big = crypto.createHash("sha512").update("x").digest().toString("hex").repeat(80000);
  await r.set("big", big);
  show("big", (await r.get("big")) === big);
  show("script", await r.eval("return {KEYS[1], ARGV[1], 3}", 1, "k", "a"));
  const sub = connect();
  show("subscribed", await sub.subscribe("a", "b"), await sub.psubscribe("p*"));
  let sum = 0;
  const done = new Promise((resolve) => {
    let n = 0;
    const take = (m) => ((sum += Number(m)), ++n === 300 && resolve());
    sub.on("message", (_, m) => take(m));
    sub.on("pmessage", (_p, _c, m) => take(m));
  });
  for (let i = 0; i < 300; i++) r.publish(["a", "b", "p1"][i % 3], i);
  await done;
  show("messages", sum, await sub.unsubscribe("a"), await sub.punsubscribe("p*"), await sub.unsubscribe("b"));
  const waiting = connect();
  setTimeout(() => r.rpush("q", "late"), 300);
  show("blocking", await waiting.blpop("q", 20));
  const monitor = await r.monitor();
  const watched = new Promise((resolve) => monitor.on("monitor", (_t, args) => args[1] === "watched" && resolve(args)));
  await r.get("watched");
  show("monitor", await watched);
  for (const c of [monitor, waiting, sub, r]) c.disconnect();
}

async function faults() {
  const r = connect();
  let reconnects = 0;
  const failover = connect({ reconnectOnError: (e) => (e.message.startsWith("READONLY") ? 2 : false) });
  failover.on("connect", () => reconnects++);
  const replies = connect();
  await r.flushall();
  await Promise.all([failover.get("k"), replies.get("k")]);
  // Not before: the time that connecting takes would count.
  replies.options.commandTimeout = 1000;
  console.log("ready");
  await line();
  await attempt("set", () => r.set("k", 1));
  await attempt("get", () => r.get("k"));
  const results = await r.pipeline().get("a").set("b", 1).get("c").exec();
  show("pipeline", results.map(([e, v]) => (e ? e.message : v)));
  await attempt("transaction", () => r.multi().incr("n").set("b", 1).exec());
  await attempt("nothing ran", () => r.mget("n", "b"));
  // The first is READONLY; the driver reconnects and sends it again.
  await attempt("readonly", () => failover.lpush("l", 1));
  show("connections", reconnects);
  await attempt("dropped", () => replies.incr("k"));
  await attempt("after the drop", () => replies.get("k"));
  for (const c of [r, failover, replies]) c.disconnect();
}

async function answers() {
  const r = connect();
  let connections = 0;
  await r.flushall();
  await r.mset("k", "abcdef", "n", 40, "big", "slow".repeat(16384));
  await r.hset("h", "f", "value");
  r.on("connect", () => connections++);
  console.log("ready");
  await line();
  // The driver reconnects and sends again what it has no reply to: of these, the first is cut twice and has run three times.
  await attempt("cut", () => r.incr("n"));
  await attempt("cut short", () => r.strlen("k"));
  await attempt("reset", () => r.append("k", "g"));
  show("connections", connections);
  show("so far", await r.mget("n", "k"));
  show("bytes", await r.hgetBuffer("h", "f"));
  show("number", await r.decr("n"), await r.mget("n"));
  const start = performance.now();
  const value = await r.substr("big", 0, -1);
  show("slow", value === "slow".repeat(16384), performance.now() - start >= 1000);
  r.disconnect();
}

// A command whose reply never comes would keep the process alive.
({ battery, faults, answers })[mode]().then(() => process.exit(0));
