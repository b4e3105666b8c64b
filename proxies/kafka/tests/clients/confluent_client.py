"""librdkafka through its Python binding. Arguments: port, "battery", "cluster", "faults", "bytes" or "denied", a prefix for the topics' names, and
for TLS the file of the authority."""

import sys
import time

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

PORT, MODE, PREFIX = sys.argv[1:4]
CLUSTER = {"bootstrap.servers": f"127.0.0.1:{PORT}", "client.id": "confluent"}
if sys.argv[4:]:
    CLUSTER |= {"security.protocol": "ssl", "ssl.ca.location": sys.argv[4], "ssl.endpoint.identification.algorithm": "https"}
PATIENCE = 60


def topic(name):
    return f"{PREFIX}-{name}"


def create(*names, partitions=1):
    admin = AdminClient(CLUSTER)
    for created in admin.create_topics([NewTopic(topic(n), partitions, 1) for n in names]).values():
        created.result(PATIENCE)


def producer(**more):
    return Producer({**CLUSTER, "linger.ms": 0, "message.timeout.ms": 30000, **{k.replace("_", "."): v for k, v in more.items()}})


def send(p, name, values, partition=0, **more):
    """Sends one after another; each one's offset, or its error's name."""
    told = []
    for value in values:
        p.produce(topic(name), value, partition=partition, on_delivery=lambda e, m: told.append(e.name() if e else m.offset()), **more)
        p.flush(PATIENCE)
    return told


def read(name, n, patience=PATIENCE, late=None, sure=0, **more):
    """The first n records' values, or fewer if no more come; or the error's name. `sure` of them do come, however slow the machine is;
    `patience` is for those after them. `late` is sent when nothing has come for 10 s."""
    c = Consumer({**CLUSTER, "group.id": f"{PREFIX}-reader", "enable.auto.commit": False, "auto.offset.reset": "earliest", **{k.replace("_", "."): v for k, v in more.items()}})
    c.assign([TopicPartition(topic(name), 0, 0)])
    values = []
    start = since = time.time()
    try:
        while len(values) < n and time.time() < since + (PATIENCE if len(values) < sure else patience):
            message = c.poll(0.2)
            if message is None:
                if late and time.time() > start + 10:
                    send(producer(), name, [late])
                    late = None
                continue
            if message.error():
                return message.error().name()
            values.append(message.value().decode())
            since = time.time()
        return values, c.position(c.assignment())[0].offset
    finally:
        c.close()


def group_read(name, n):
    c = Consumer({**CLUSTER, "group.id": f"{PREFIX}-group", "session.timeout.ms": 6000, "auto.offset.reset": "earliest", "enable.auto.commit": False})
    c.subscribe([topic(name)])
    found = []
    end = time.time() + PATIENCE
    while len(found) < n and time.time() < end:
        message = c.poll(0.2)
        if message is not None and not message.error():
            found.append(message)
    if found:
        c.commit(asynchronous=False)
    committed = sorted((p.partition, p.offset) for p in c.committed(c.assignment(), PATIENCE))
    c.close()
    return sorted(m.value().decode() for m in found), committed


def battery():
    create("plain", "codecs", "acks", "idempotent", "transactional")
    create("group", partitions=3)
    topics = AdminClient(CLUSTER).list_topics(timeout=PATIENCE).topics
    print("topics", sorted((t.removeprefix(PREFIX), len(m.partitions)) for t, m in topics.items() if t.startswith(PREFIX)))
    print("plain", send(producer(), "plain", ["a", "b", "c"], key="k", headers={"h": b"1"}), read("plain", 3))
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"]:
        p = producer(compression_type=codec, linger_ms=50)
        for i in range(200):
            p.produce(topic("codecs"), f"{codec} {i} " + "x" * 100, key=str(i), partition=0)
        print("left", p.flush(PATIENCE))
    values, offset = read("codecs", 1000)
    print("codecs", len(values), offset, values[0][:8], values[-1][:8], values[::250][2][:12])
    for acks in ["all", "1"]:
        print("acks", acks, send(producer(acks=acks), "acks", ["x", "y"]))
    quick = producer(acks="0")
    for i in range(50):
        quick.produce(topic("acks"), f"quick {i}", partition=0)
    print("acks 0 left", quick.flush(PATIENCE))
    values, offset = read("acks", 54)
    print("acks 0", len(values), values[4], values[53], offset)
    print("idempotent", send(producer(enable_idempotence=True), "idempotent", ["1", "2", "3"]), read("idempotent", 3))
    large = "L" * 900_000
    print("large", send(producer(), "plain", [large]), [len(v) for v in read("plain", 4)[0]])
    for i in range(3):
        send(producer(), "group", [f"{i} one", f"{i} two"], partition=i)
    print("group", group_read("group", 6))
    send(producer(), "group", ["more"], partition=1)
    print("group again", group_read("group", 1))
    try:
        p = producer(transactional_id=f"{PREFIX}-tx", transaction_timeout_ms=60000)
        p.init_transactions(PATIENCE)
        for words, commit in [(["t1", "t2"], True), (["no"], False), (["t3"], True)]:
            p.begin_transaction()
            for word in words:
                p.produce(topic("transactional"), word, partition=0)
            p.flush(PATIENCE)
            p.commit_transaction(PATIENCE) if commit else p.abort_transaction(PATIENCE)
        print("transactions", read("transactional", 3, isolation_level="read_committed")[0])
    except KafkaException as e:
        print("transactions", e.args[0].name())


def faults():
    names = ["lost", "whole", "leader", "large", "denied", "twice", "unseen", "corrupt", "keyed", "slow", "gone"]
    create(*names)
    for name in ["unseen", "corrupt", "slow"]:
        send(producer(), name, ["old 1", "old 2"])
    send(producer(), "keyed", ["to be seen"], key="good")
    print("ready", flush=True)
    sys.stdin.readline()
    # Every second record of this topic is lost; the idempotent producer must not notice.
    p = producer(enable_idempotence=True)
    print("lost", send(p, "lost", ["1", "2", "3", "4", "5", "6"]), read("lost", 6, 3, sure=3))
    print("whole", send(producer(), "whole", ["1", "2", "3"]), read("whole", 3, 3))
    print("leader", send(producer(), "leader", ["1"]), read("leader", 1))
    print("large", send(producer(), "large", ["1"]))
    print("denied", send(producer(), "denied", ["1"]), read("denied", 1))
    print("twice", send(producer(enable_idempotence=True), "twice", ["1"]), read("twice", 2))
    print("unseen", read("unseen", 1, late="new"))
    print("corrupt", read("corrupt", 2, check_crcs=True))
    for key in ["bad", "good"]:
        send(producer(), "keyed", [f"{key} record"], key=key)
    print("keyed", read("keyed", 3, 5, sure=2))
    start = time.time()
    read("slow", 2)
    print("slow", time.time() - start >= 1)
    print("gone", send(producer(message_timeout_ms=3000), "gone", ["1"]))


def cluster():
    """What works on brokers that cannot be told to create topics: they create them when they are asked for."""
    admin = AdminClient(CLUSTER)
    print("brokers", len(admin.list_topics(timeout=PATIENCE).brokers))
    for name in ["spread", "idempotent", "transactional"]:
        admin.list_topics(topic(name), timeout=PATIENCE)
    for partition in range(4):
        print("spread", send(producer(), "spread", [f"{partition} a", f"{partition} b"], partition=partition))
    print("group", group_read("spread", 8))
    print("idempotent", send(producer(enable_idempotence=True), "idempotent", ["1", "2", "3"]), read("idempotent", 3))
    p = producer(transactional_id=f"{PREFIX}-tx", transaction_timeout_ms=60000)
    p.init_transactions(PATIENCE)
    p.begin_transaction()
    for word in ["t1", "t2"]:
        p.produce(topic("transactional"), word, partition=0)
    p.commit_transaction(PATIENCE)
    print("transaction", read("transactional", 2)[0])


def recovers(name, n):
    """All records in spite of errors: the errors' names, then the values."""
    c = Consumer({**CLUSTER, "group.id": f"{PREFIX}-reader", "enable.auto.commit": False, "auto.offset.reset": "earliest", "check.crcs": True})
    c.assign([TopicPartition(topic(name), 0, 0)])
    errors, values = [], []
    end = time.time() + PATIENCE
    while len(values) < n and time.time() < end:
        message = c.poll(0.2)
        if message is not None:
            errors.append(message.error().name()) if message.error() else values.append(message.value().decode())
    c.close()
    return errors, values


def answers():
    create("cut", "sure", "half", "gone", "dropped", "cut-fetch", "slow", "slow-told", "wrong", "told-wrong")
    send(producer(), "cut-fetch", ["1", "2"])
    send(producer(), "slow", ["x" * 65536])
    send(producer(), "wrong", ["1", "2"])
    print("ready", flush=True)
    sys.stdin.readline()
    # The broker has the record, the producer does not know: what it sends again is stored again, unless it is idempotent.
    print("cut", send(producer(), "cut", ["1"]), read("cut", 2))
    print("half", send(producer(), "half", ["1"]), read("half", 2))
    print("sure", send(producer(enable_idempotence=True), "sure", ["1", "2"]), read("sure", 3, 3, sure=2))
    # The broker has not seen it.
    print("gone", send(producer(), "gone", ["1"]), read("gone", 2, 3, sure=1))
    print("dropped", send(producer(), "dropped", ["1"]), read("dropped", 2, 3, sure=1))
    print("cut fetch", read("cut-fetch", 2))
    start = time.monotonic()
    (value,), offset = read("slow", 1)
    print("slow", value == "x" * 65536, offset, time.monotonic() - start >= 1)
    start = time.monotonic()
    told = send(producer(), "slow-told", ["1"])
    print("slow told", told, time.monotonic() - start >= 2, read("slow-told", 2, 3, sure=1))
    print("wrong", recovers("wrong", 2))
    # An answer that is no answer; the record is there.
    print("told wrong", send(producer(), "told-wrong", ["1"]), read("told-wrong", 2, 3, sure=1))
    admin = AdminClient(CLUSTER)

    def refused(name):
        try:
            for created in admin.create_topics([NewTopic(topic(name), 1, 1)]).values():
                created.result(PATIENCE)
        except KafkaException as e:
            return e.args[0]

    error = refused("words")
    print("words", error.name(), error.str())
    # The topic is there for all that.
    print("cut create", refused("cut-create").name(), topic("cut-create") in admin.list_topics(timeout=PATIENCE).topics)


def denied():
    create("plain", "denied", "large")
    print("plain", send(producer(), "plain", ["1"]), read("plain", 1))
    print("denied", send(producer(), "denied", ["1"]), read("denied", 1))
    print("large", send(producer(), "large", ["1"]))


{"battery": battery, "faults": faults, "cluster": cluster, "bytes": answers, "denied": denied}[MODE]()
