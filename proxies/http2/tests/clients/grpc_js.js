// @grpc/grpc-js's ordinary life, or what it makes of faults: `grpc_js.js PORT battery|faults|replies`.
'use strict';
const grpc = require('@grpc/grpc-js');

const [port, mode] = process.argv.slice(2);
const policy = {
  methodConfig: [{
    name: [{ service: 'test.Svc', method: 'Retried' }],
    retryPolicy: { maxAttempts: 4, initialBackoff: '0.05s', maxBackoff: '0.2s', backoffMultiplier: 2, retryableStatusCodes: ['UNAVAILABLE'] },
  }],
};
const client = new grpc.Client(`127.0.0.1:${port}`, grpc.credentials.createInsecure(), {
  'grpc.max_receive_message_length': -1,
  'grpc.max_send_message_length': -1,
  'grpc.service_config': JSON.stringify(policy),
  'grpc.keepalive_time_ms': 100,
  'grpc.keepalive_permit_without_calls': 1,
});
const same = (x) => x;
const in60s = () => ({ deadline: Date.now() + 60000 });
const code = (e) => grpc.status[e.code];

function unary(method, message, { metadata = new grpc.Metadata(), options = in60s() } = {}) {
  return new Promise((resolve) => {
    let headers;
    const call = client.makeUnaryRequest('/test.Svc/' + method, same, same, Buffer.from(message), metadata, options,
      (error, reply) => { call.reply = reply; call.failure = error; });
    call.on('metadata', (m) => { headers = m; });
    call.on('status', (status) => setImmediate(() => resolve({ status, headers, error: call.failure, reply: call.reply })));
  });
}

function streaming(method, message, each = () => {}, options = in60s()) {
  return new Promise((resolve) => {
    const got = [];
    const call = client.makeServerStreamRequest('/test.Svc/' + method, same, same, Buffer.from(message), new grpc.Metadata(), options);
    call.on('data', (m) => { got.push(m.length); each(call); });
    call.on('error', () => {});
    call.on('status', (status) => setImmediate(() => resolve({ status, got })));
  });
}

const kept = (m) => Object.entries(m.getMap()).filter(([k]) => k.includes('x-')).map(([k, v]) => `${k}=${v.toString('hex')}`).sort().join(' ');
const sum = (list) => list.reduce((a, b) => a + b, 0);

async function battery() {
  console.log('unary', String((await unary('Unary', 'hello')).reply));
  const metadata = new grpc.Metadata();
  metadata.add('x-plain', 'a b');
  metadata.add('x-raw-bin', Buffer.from([0, 1, 255]));
  const r = await unary('Unary', 'm', { metadata });
  console.log('metadata', String(r.reply), kept(r.headers), kept(r.status.metadata), r.status.code);
  const big = Buffer.alloc(4 << 20, 'abc');
  console.log('4 MB', (await unary('Unary', big)).reply.equals(big));
  let s = await streaming('Stream', '1000 100');
  console.log('server streaming', s.got.length, sum(s.got), s.status.code);
  s = await streaming('Stream', '20 300000');
  console.log('large messages', s.got.length, sum(s.got), s.status.code);
  console.log('client streaming', await new Promise((resolve, reject) => {
    const call = client.makeClientStreamRequest('/test.Svc/Collect', same, same, new grpc.Metadata(), in60s(), (e, m) => (e ? reject(e) : resolve(String(m))));
    for (let i = 0; i < 500; i++) call.write(Buffer.alloc(1000));
    call.end();
  }));
  console.log('both', await new Promise((resolve, reject) => {
    const call = client.makeBidiStreamRequest('/test.Svc/Chat', same, same, new grpc.Metadata(), in60s());
    let n = 0;
    call.on('data', () => { n++; if (n < 200) call.write(Buffer.from(`${n}`)); else call.end(); });
    call.on('error', reject);
    call.on('end', () => resolve(n));
    call.write(Buffer.from('0'));
  }));
  let f = await unary('Fail', '');
  console.log('fails', code(f.error), f.error.details, f.error.metadata.get('why-bin')[0].toString('hex'));
  console.log('no such method', code((await unary('None', '')).error));
  console.log('deadline', code((await unary('Slow', '20', { options: { deadline: Date.now() + 300 } })).error));
  s = await streaming('Endless', '', (call) => call.cancel());
  console.log('cancelled', code(s.status));
  const many = await Promise.all([...Array(200).keys()].map((i) => unary('Unary', `${i}`)));
  console.log('many at once', many.every((m, i) => String(m.reply) === `${i}`));
  await new Promise((r) => setTimeout(r, 400));
  console.log('after pings', String((await unary('Unary', 'alive')).reply));
}

async function faults() {
  await unary('Unary', 'warm');
  console.log('ready');
  await new Promise((r) => process.stdin.once('data', r));
  process.stdin.unref();
  let r = await unary('Create', 'x');
  console.log('create', code(r.error), r.error.details);
  console.log('other', String((await unary('Unary', 'works')).reply));
  console.log('retried', String((await unary('Retried', 'in the end')).reply));
  r = await unary('Busy', '');
  console.log('busy', code(r.error), r.error.details);
  console.log('dropped', code((await unary('Dropped', '')).error));
  // Long enough for the request to be on its way.
  console.log('delayed', code((await unary('Delayed', '', { options: { deadline: Date.now() + 5000 } })).error));
  const s = await streaming('Broken', '10 5000');
  console.log('broken', code(s.status), s.status.details, s.got.join());
  let held;
  let done = false;
  const ended = new Promise((resolve) => {
    held = client.makeUnaryRequest('/test.Svc/Delayed', same, same, Buffer.from(''), new grpc.Metadata(), in60s(), (e) => { done = true; resolve(code(e)); });
  });
  const quick = [];
  for (let i = 0; i < 3; i++) quick.push(String((await unary('Unary', `${i}`)).reply));
  console.log('meanwhile', quick.join(), done);
  held.cancel();
  console.log('held', await ended);
  const big = await streaming('Stream', '50 50000');
  console.log('afterwards', big.got.length, sum(big.got));
}

async function replies() {
  await unary('Unary', 'warm');
  console.log('ready');
  await new Promise((r) => process.stdin.once('data', r));
  process.stdin.unref();
  let s = await streaming('Broken', '10 5000');
  // How many of the three that arrive are handed on before the reset is heard of, is chance.
  console.log('truncated', code(s.status), s.got.length <= 3 && s.got.every((n) => n === 5002));
  console.log('corrupted', (await unary('Create', 'hello')).reply.toString('hex'));
  const start = Date.now();
  const big = Buffer.alloc(51200, 'abc');
  console.log('throttled', (await unary('Retried', big)).reply.equals(big), Date.now() - start >= 400);
  // A minute's worth: some of it comes.
  s = await streaming('Stream', '1200 5000', () => {}, { deadline: Date.now() + 5000 });
  console.log('deadline', code(s.status), s.got.length > 0 && s.got.length < 1200);
  for (const [status, method] of [[503, 'Busy'], [403, 'Dropped'], [404, 'Delayed']]) console.log(status, code((await unary(method, '')).error));
  console.log(500, await new Promise((resolve) => {
    const call = client.makeBidiStreamRequest('/test.Svc/Chat', same, same, new grpc.Metadata(), in60s());
    call.on('data', () => {});
    call.on('error', () => {});
    call.on('status', (status) => resolve(code(status)));
    for (let i = 0; i < 3; i++) call.write(Buffer.from('x'));
    call.end();
  }));
  console.log('reset', code((await unary('Fail', '')).error));
  await new Promise((resolve, reject) => client.waitForReady(Date.now() + 60000, (e) => (e ? reject(e) : resolve())));
  console.log('afterwards', String((await unary('Unary', 'alive')).reply), code((await unary('Fail', '')).error));
}

({ battery, faults, replies })[mode]().then(() => client.close(), (e) => { console.error(e); process.exit(1); });
