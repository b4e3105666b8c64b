// kafkajs. Arguments: port, "battery" or "faults", a prefix for the topics' names.
const { Kafka, CompressionTypes, logLevel } = require("kafkajs");

const [port, mode, prefix] = process.argv.slice(2);
const kafka = new Kafka({
  clientId: "kafkajs",
  brokers: [`127.0.0.1:${port}`],
  logLevel: logLevel.NOTHING,
  retry: { initialRetryTime: 50, retries: 8 },
});
const PATIENCE = 60_000;
const topic = (name) => `${prefix}-${name}`;
const say = (...words) => console.log(words.map((w) => (typeof w === "string" ? w : JSON.stringify(w))).join(" "));

async function create(...names) {
  const admin = kafka.admin();
  await admin.connect();
  await admin.createTopics({ topics: names.map((name) => ({ topic: topic(name), numPartitions: 1 })), waitForLeaders: true });
  await admin.disconnect();
}

// Sends one after another; each one's offset, or its error's type.
async function send(name, values, { key, acks = -1, ...more } = {}) {
  const producer = kafka.producer(more);
  await producer.connect();
  const told = [];
  for (const value of values) {
    try {
      const [sent] = await producer.send({ topic: topic(name), acks, messages: [{ key, value, partition: 0 }], compression: more.compression });
      told.push(sent ? Number(sent.baseOffset) : null);
    } catch (e) {
      told.push(e.type || (e.cause && e.cause.type) || e.name);
    }
  }
  await producer.disconnect();
  return told;
}

// Waits for this, but no longer.
async function within(promise, patience) {
  let timer;
  await Promise.race([promise, new Promise((resolve) => { timer = setTimeout(resolve, patience); })]);
  clearTimeout(timer);
}

// The first n records' values in a group of their own, or fewer if no more come. So many of them do come for sure, however slow the machine
// is; the patience is for those after them.
async function read(name, n, patience = PATIENCE, sure = n) {
  const groupId = `${prefix}-${name}-${Math.random()}`;
  const consumer = kafka.consumer({ groupId, sessionTimeout: 6000, heartbeatInterval: 500, rebalanceTimeout: 6000, maxWaitTimeInMs: 200 });
  await consumer.connect();
  await consumer.subscribe({ topic: topic(name), fromBeginning: true });
  const values = [];
  let joined;
  const assigned = new Promise((resolve) => { joined = resolve; });
  consumer.on(consumer.events.GROUP_JOIN, joined);
  let some, enough;
  const surely = new Promise((resolve) => { some = resolve; });
  const done = new Promise((resolve) => { enough = resolve; });
  await consumer.run({
    eachMessage: async ({ message }) => {
      values.push(message.value.toString());
      if (values.length >= sure) some();
      if (values.length >= n) enough();
    },
  });
  await assigned;
  await within(surely, PATIENCE);
  await within(done, patience);
  await consumer.disconnect();
  return values;
}

async function battery() {
  await create("plain", "codecs");
  say("plain", await send("plain", ["a", "b"]), await read("plain", 2));
  say("gzip", await send("codecs", ["x".repeat(500), "y".repeat(500)], { compression: CompressionTypes.GZIP }));
  say("codecs", (await read("codecs", 2)).map((v) => v.length));
  say("acks 1", await send("plain", ["c"], { acks: 1 }));
  say("acks 0", await send("plain", ["d"], { acks: 0 }));
  say("all", await read("plain", 4));
  const admin = kafka.admin();
  await admin.connect();
  say("topics", (await admin.listTopics()).filter((t) => t.startsWith(prefix)).map((t) => t.slice(prefix.length)).sort());
  say("offsets", (await admin.fetchTopicOffsets(topic("plain"))).map((p) => [p.partition, p.high, p.low]));
  const cluster = await admin.describeCluster();
  say("cluster", cluster.brokers.length);
  await admin.disconnect();
}

async function faults() {
  await create("lost", "leader", "large", "unseen");
  await send("unseen", ["old"]);
  console.log("ready");
  await new Promise((resolve) => process.stdin.once("data", resolve));
  process.stdin.pause();
  say("lost", await send("lost", ["1", "2", "3", "4"]), await read("lost", 4, 3000, 2));
  say("leader", await send("leader", ["1"]), await read("leader", 1));
  say("large", await send("large", ["1"]));
  setTimeout(() => send("unseen", ["new"]), 25_000);
  say("unseen", await read("unseen", 1));
}

({ battery, faults })[mode]().catch((e) => { console.log(`failed ${e.name}: ${e.message}`); process.exitCode = 1; });
