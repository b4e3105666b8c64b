"""Uses a mock as a service with redis-py would: `redis_py.py PORT RESP`."""
import sys
import threading
import time

import redis

port, protocol = int(sys.argv[1]), int(sys.argv[2])
r = redis.Redis(port=port, protocol=protocol, decode_responses=True, username="u", password="p")
r.flushall()
assert r.ping() and r.get("fixed") == "always"
assert r.set("k", "v", ex=100) and r.get("k") == "v" and 0 < r.ttl("k") <= 100
assert r.set("k", "w", nx=True) is None
assert r.incr("n", 5) == 5 and r.incrbyfloat("f", 0.5) == 0.5
assert r.hset("h", mapping={"a": 1, "b": 2}) == 2 and r.hgetall("h") == {"a": "1", "b": "2"}
assert r.rpush("l", "a", "b") == 2 and r.lrange("l", 0, -1) == ["a", "b"] and r.lpop("l") == "a"
assert r.sadd("s", "x", "y") == 2 and r.smembers("s") == {"x", "y"} and r.sismember("s", "x")
assert r.zadd("z", {"a": 1, "b": 2}) == 2
scores = [[m, s] for m, s in r.zrange("z", 0, -1, withscores=True)]
assert scores == [["a", 1.0], ["b", 2.0]], scores
assert r.zscore("z", "b") == 2.0
assert r.zpopmin("z", 2) is not None
assert sorted(r.scan_iter("*")) == sorted(r.keys("*"))
assert dict(r.hscan_iter("h")) == {"a": "1", "b": "2"}
with r.pipeline() as p:
    p.set("a", 1)
    p.incr("a")
    p.get("a")
    assert p.execute() == [True, 2, "2"]
with r.pipeline() as p:
    p.watch("a")
    r.set("a", 9)
    p.multi()
    p.get("a")
    try:
        p.execute()
        raise SystemExit("the watched key has changed")
    except redis.WatchError:
        pass
try:
    r.lpush("k", "x")
    raise SystemExit("k is a string")
except redis.ResponseError as e:
    assert str(e).startswith("WRONGTYPE"), e
try:
    r.eval("return 1", 0)
    raise SystemExit("the mock has no scripts")
except redis.ResponseError as e:
    assert "unknown command" in str(e), e
sub = r.pubsub()
sub.subscribe("news")
sub.psubscribe("n*")
while True:
    m = sub.get_message(timeout=60)
    if m["type"] == "psubscribe":
        break
assert r.publish("news", "hi") == 2
heard = sorted(sub.get_message(timeout=60)["type"] for _ in range(2))
assert heard == ["message", "pmessage"], heard
sub.close()
threading.Thread(target=lambda: (time.sleep(0.1), r.rpush("jobs", "one"))).start()
assert list(r.blpop("jobs", timeout=60)) == ["jobs", "one"]
assert r.blpop("jobs", timeout=0.1) is None
big = "x" * (1 << 20)
assert r.set("big", big) and r.get("big") == big
print("ok")
