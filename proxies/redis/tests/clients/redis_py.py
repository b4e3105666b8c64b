"""redis-py. Usage: redis_py.py battery|faults|answers|cluster PORT PROTOCOL [CA]: with the file of an authority, over TLS that it verifies."""
import hashlib, sys, threading, time
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

mode, port, protocol = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
tls = dict(ssl=True, ssl_cert_reqs="required", ssl_ca_certs=sys.argv[4], ssl_check_hostname=True) if sys.argv[4:] else {}


def connect(**kw):
    kw.setdefault("retry", Retry(NoBackoff(), 0))
    kw.setdefault("socket_timeout", 30)
    return redis.Redis(host="127.0.0.1", port=port, protocol=protocol, **tls, **kw)


def show(name, *values):
    print(name, *map(repr, values), flush=True)


def attempt(name, call):
    try:
        show(name, "ok", call())
    except (redis.ConnectionError, redis.TimeoutError) as e:
        # A reply that says so, or the driver's own words for what the socket said.
        show(name, type(e).__name__, *([str(e)] if name in ("loading", "noauth") else []))
    except redis.RedisError as e:
        show(name, type(e).__name__, str(e))


def digest(data):
    return len(data), hashlib.md5(data).hexdigest()


def battery():
    r = connect()
    r.flushall()
    show("strings", r.set("k", "v"), r.get("k"), r.get("none"), r.set("k", "w", nx=True), r.incr("n"), r.mget("k", "n", "none"))
    show("types", r.hset("h", mapping={"a": 1, "b": 2.5}), r.hgetall("h"), r.sadd("s", 1, 2), sorted(r.smembers("s")))
    show("sorted", r.zadd("z", {"a": 1, "b": 2.5}), r.zrange("z", 0, -1, withscores=True), r.zscore("z", "b"), r.zscore("z", "c"))
    show("streams", r.xadd("x", {"f": "v"}, id="1-1"), r.xread({"x": "0"}), r.xlen("x"))
    show("binary", r.set(b"\x00\r\n", b"\xff\r\n+OK\r\n"), r.get(b"\x00\r\n"))
    attempt("wrong type", lambda: r.lpush("k", 1))
    attempt("unknown", lambda: r.execute_command("NOSUCH", "a"))
    show("eval", r.eval("return {1, 'two', {ARGV[1]}, redis.status_reply('FINE')}", 1, "k", "x"))
    attempt("script error", lambda: r.eval("return redis.error_reply('CODE gone')", 0))
    pipe = r.pipeline(transaction=False)
    for i in range(10000):
        pipe.set("p%d" % i, i)
        pipe.get("p%d" % i)
    got = pipe.execute()
    show("pipeline", len(got), all(got[0::2]), sum(map(int, got[1::2])))
    with r.pipeline() as tx:
        tx.multi()
        tx.set("t", 1).incr("t").lrange("l", 0, -1).hgetall("h")
        show("transaction", tx.execute())
    with r.pipeline() as tx:
        tx.watch("t")
        r.set("t", 5)
        tx.multi()
        tx.incr("t")
        attempt("watched", tx.execute)
    big = bytes(range(256)) * (100 * 4096)
    r.set("big", big)
    show("big", digest(r.get("big")), r.strlen("big"))
    r.delete("big")
    one = r.client()
    show("many", one.rpush("l", *range(50000)), sum(map(int, one.lrange("l", 0, -1))))

    waiting = connect()
    threading.Timer(0.3, lambda: r.rpush("q", "late")).start()
    show("blocking", waiting.blpop("q", timeout=20), waiting.blpop("q", timeout=1))

    ps = r.pubsub()
    ps.subscribe("a", "b")
    ps.psubscribe("p*")
    confirmed = [ps.get_message(timeout=20) for _ in range(3)]
    show("subscribed", [(m["type"], m["channel"], m["data"]) for m in confirmed])
    for i in range(200):
        r.publish(["a", "b", "p1"][i % 3], i)
    seen = [ps.get_message(timeout=20) for _ in range(200)]
    show("messages", len(seen), sum(int(m["data"]) for m in seen), sorted({m["type"] for m in seen}))
    ps.ping("hello")
    show("pong", ps.get_message(timeout=20))
    ps.unsubscribe()
    ps.punsubscribe()
    ended = [ps.get_message(timeout=20) for _ in range(3)]
    show("unsubscribed", sorted((m["type"], m["channel"]) for m in ended), ended[-1]["data"])
    ps.close()

    raw = connect().client()
    c = raw.connection
    c.send_command("CLIENT", "REPLY", "OFF")
    c.send_command("SET", "quiet", 1)
    c.send_command("CLIENT", "REPLY", "ON")
    show("reply on", c.read_response())
    c.send_command("CLIENT", "REPLY", "SKIP")
    c.send_command("GET", "quiet")
    c.send_command("INCR", "quiet")
    show("reply skip", c.read_response())
    c.send_command("MONITOR")
    show("monitor", c.read_response())
    r.get("watched-by-monitor")
    line = c.read_response()
    while b"watched-by-monitor" not in line:
        line = c.read_response()
    show("monitored", b'"GET"' in line)
    c.send_command("RESET")
    show("reset", c.read_response())
    show("config", r.config_set("maxmemory-policy", "noeviction"), r.config_get("maxmemory-policy"))
    show("rest", r.type("l"), r.object("encoding", "n"), r.scan_iter(match="p99*", count=5000).__class__.__name__, len(list(r.scan_iter(match="p99*", count=5000))))


def faults():
    r = connect()
    r.flushall()
    r.get("warm")
    print("ready", flush=True)
    sys.stdin.readline()
    # error(command="SET") while GET works; on the connection that is in the pool.
    attempt("set", lambda: r.set("k", 1))
    attempt("get", lambda: r.get("k"))
    attempt("setex", lambda: r.setex("k", 10, 1))
    pipe = r.pipeline(transaction=False).get("a").set("b", 1).get("c")
    show("pipeline", [type(x).__name__ if isinstance(x, Exception) else x for x in pipe.execute(raise_on_error=False)])
    attempt("transaction", lambda: r.pipeline().incr("n").set("b", 1).execute())
    attempt("nothing ran", lambda: r.mget("n", "b"))
    attempt("readonly", lambda: r.lpush("l", 1))
    attempt("oom", lambda: r.sadd("s", 1))
    attempt("loading", lambda: r.hset("h", "f", 1))
    attempt("busy", lambda: r.zadd("z", {"a": 1}))
    attempt("noauth", lambda: r.append("k", 1))
    attempt("moved", lambda: r.getrange("k", 0, 1))
    attempt("value", lambda: r.llen("k"))
    attempt("map", lambda: r.execute_command("HRANDFIELD", "x"))
    attempt("reset", lambda: r.persist("k"))
    attempt("after the reset", lambda: r.get("k"))
    attempt("cut", lambda: r.expire("k", 1))
    attempt("dropped", lambda: connect(socket_timeout=1).execute_command("INCR", "k"))
    attempt("blocked and delayed", lambda: r.brpop("q", timeout=1))
    attempt("at last", r.ping)


def answers():
    r = connect()
    r.flushall()
    r.set("k", "abcdef")
    r.set("n", 40)
    r.set("big", "slow" * 16384)
    r.hset("h", "f", "value")
    print("ready", flush=True)
    sys.stdin.readline()
    # A reply that is cut belongs to a command that has run; who sends it again runs it twice.
    attempt("cut", lambda: r.incr("n"))
    attempt("cut and sent again", lambda: connect(retry=Retry(NoBackoff(), 1)).incr("n"))
    attempt("so far", lambda: r.get("n"))
    attempt("cut short", lambda: r.strlen("k"))
    attempt("cut in a value", lambda: r.getrange("big", 0, -1))
    attempt("reset and sent again", lambda: connect(retry=Retry(NoBackoff(), 1)).append("k", "g"))
    attempt("so far", lambda: r.get("k"))
    text = connect(decode_responses=True)
    connection = text.client_id()
    try:
        show("text", "ok", text.get("k"))
    except ValueError as e:
        show("text", type(e).__name__)
    show("its connection is kept", text.client_id() == connection)
    show("bytes", r.hget("h", "f"))
    show("number", r.decr("n"), r.get("n"))
    start = time.monotonic()
    value = r.substr("big", 0, -1)
    show("slow", value == b"slow" * 16384, time.monotonic() - start >= 1)


def cluster():
    r = redis.RedisCluster(host="127.0.0.1", port=port, protocol=protocol, socket_timeout=30, require_full_coverage=True)
    nodes = r.get_nodes()
    print("nodes", *(n.port for n in nodes))
    print("set", sum(r.set(f"k{i}", i) for i in range(200)))
    print("got", [int(r.get(f"k{i}")) for i in range(200)] == list(range(200)))
    shards = r.cluster_shards()
    ports = {n.get("port", n.get(b"port")) for s in shards for n in s.get("nodes", s.get(b"nodes"))}
    print("shards", len(ports), ports == {n.port for n in nodes})


globals()[mode]()
