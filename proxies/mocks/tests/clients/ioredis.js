// Uses a mock as a service with ioredis would: `ioredis.js PORT`.
const assert = require('assert');
const Redis = require('ioredis');

(async () => {
  const r = new Redis(Number(process.argv[2]));
  await r.flushall();
  assert.equal(await r.get('fixed'), 'always');
  assert.equal(await r.set('k', 'v', 'EX', 100), 'OK');
  assert.equal(await r.incrby('n', 3), 3);
  await r.hset('h', { a: 1, b: 2 });
  assert.deepEqual(await r.hgetall('h'), { a: '1', b: '2' });
  assert.deepEqual(await r.multi().set('a', 1).incr('a').exec(), [[null, 'OK'], [null, 2]]);
  assert.deepEqual(await r.zadd('z', 1, 'a'), 1);
  assert.deepEqual(await r.zrange('z', 0, -1, 'WITHSCORES'), ['a', '1']);
  await assert.rejects(r.lpush('k', 'x'), /WRONGTYPE/);
  const sub = r.duplicate();
  await sub.subscribe('news');
  const heard = new Promise((ok) => sub.on('message', (c, m) => ok([c, m])));
  assert.equal(await r.publish('news', 'hi'), 1);
  assert.deepEqual(await heard, ['news', 'hi']);
  sub.disconnect();
  await r.quit();
  console.log('ok');
})().catch((e) => { console.error(e); process.exit(1); });
