"""kafka-python. Arguments: port, "battery" or "faults", a prefix for the topics' names."""

import sys
import threading
import time

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import KafkaError

PORT, MODE, PREFIX = sys.argv[1:4]
CLUSTER = {"bootstrap_servers": f"127.0.0.1:{PORT}", "client_id": "kafka-python"}
PATIENCE = 60


def topic(name):
    return f"{PREFIX}-{name}"


def create(*names):
    admin = KafkaAdminClient(**CLUSTER)
    admin.create_topics([NewTopic(topic(n), 1, 1) for n in names])
    admin.close()


def send(name, values, key=None, **more):
    p = KafkaProducer(**CLUSTER, **more)
    told = []
    for value in values:
        try:
            told.append(p.send(topic(name), value.encode(), partition=0, key=key).get(PATIENCE).offset)
        except KafkaError as e:
            told.append(type(e).__name__)
    p.close()
    return told


def read(name, n, patience=PATIENCE, late=None, sure=0):
    """`sure` of the n records do come, however slow the machine is; `patience` is for those after them."""
    partition = TopicPartition(topic(name), 0)
    c = KafkaConsumer(**CLUSTER, auto_offset_reset="earliest")
    c.assign([partition])
    values = []
    if late:
        # After the first fetch, which the rule is for.
        threading.Timer(10, send, [name, [late]]).start()
    since = time.time()
    try:
        while len(values) < n and time.time() < since + (PATIENCE if len(values) < sure else patience):
            for records in c.poll(200, max_records=1).values():
                values.extend(record.value.decode() for record in records)
                since = time.time()
        return values, c.position(partition)
    except KafkaError as e:
        return type(e).__name__
    finally:
        c.close()


def battery():
    create("plain", "codecs", "idempotent")
    print("plain", send("plain", ["a", "b"]), read("plain", 2))
    print("gzip", send("codecs", ["x" * 500] * 2, compression_type="gzip"), [len(v) for v in read("codecs", 2)[0]])
    print("idempotent", send("idempotent", ["1", "2"], enable_idempotence=True))
    for acks in [0, 1]:
        print("acks", acks, send("plain", ["c"], acks=acks, enable_idempotence=False))
    print("all", read("plain", 4))
    c = KafkaConsumer(**CLUSTER)
    print("partitions", c.partitions_for_topic(topic("plain")), c.end_offsets([TopicPartition(topic("plain"), 0)])[TopicPartition(topic("plain"), 0)])
    c.close()


def faults():
    create("lost", "leader", "large", "unseen")
    send("unseen", ["old"])
    print("ready", flush=True)
    sys.stdin.readline()
    print("lost", send("lost", ["1", "2", "3", "4"], enable_idempotence=True), read("lost", 4, 3, sure=2))
    print("leader", send("leader", ["1"]), read("leader", 1))
    print("large", send("large", ["1"]))
    print("unseen", read("unseen", 1, late="new"))


{"battery": battery, "faults": faults}[MODE]()
