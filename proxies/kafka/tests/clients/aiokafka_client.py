"""aiokafka, whose protocol is its own. Arguments: port, "battery", "cluster", "faults" or "bytes", a prefix for the topics' names."""

import asyncio
import sys
import time

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

PORT, MODE, PREFIX = sys.argv[1:4]
CLUSTER = {"bootstrap_servers": f"127.0.0.1:{PORT}", "client_id": "aiokafka"}
PATIENCE = 60


def topic(name):
    return f"{PREFIX}-{name}"


async def create(*names):
    admin = AIOKafkaAdminClient(**CLUSTER)
    await admin.start()
    await admin.create_topics([NewTopic(topic(n), 1, 1) for n in names])
    await admin.close()


async def send(name, values, key=None, partition=0, **more):
    p = AIOKafkaProducer(**CLUSTER, **more)
    await p.start()
    told = []
    for value in values:
        try:
            sent = await p.send_and_wait(topic(name), value.encode(), partition=partition, key=key)
            told.append(sent.offset if sent else None)
        except KafkaError as e:
            told.append(type(e).__name__)
    await p.stop()
    return told


async def send_later(name, value):
    # After the first fetch, which the rule is for.
    await asyncio.sleep(10)
    await send(name, [value])


async def read(name, n, patience=PATIENCE, late=None, partition=0, sure=0):
    """`sure` of the n records do come, however slow the machine is; `patience` is for those after them."""
    c = AIOKafkaConsumer(**CLUSTER, auto_offset_reset="earliest")
    await c.start()
    partition = TopicPartition(topic(name), partition)
    c.assign([partition])
    values = []
    if late:
        later = asyncio.create_task(send_later(name, late))
    try:
        while len(values) < n:
            async with asyncio.timeout(PATIENCE if len(values) < sure else patience):
                values.append((await c.getone()).value.decode())
    except TimeoutError:
        pass
    except KafkaError as e:
        return type(e).__name__
    finally:
        if late:
            await later
        position = await c.position(partition)
        await c.stop()
    return values, position


async def battery():
    await create("plain", "codecs")
    print("plain", await send("plain", ["a", "b"]), await read("plain", 2))
    for codec in ["gzip", "snappy", "lz4", "zstd"]:
        print(codec, await send("codecs", [codec + "x" * 200] * 3, compression_type=codec))
    values, position = await read("codecs", 12)
    print("codecs", [v[:4] for v in values], position)
    for acks in [0, 1]:
        print("acks", acks, await send("plain", ["c"], acks=acks))
    print("all", await read("plain", 4))


async def faults():
    await create("lost", "leader", "large", "unseen", "keyed")
    await send("unseen", ["old"])
    print("ready", flush=True)
    sys.stdin.readline()
    print("lost", await send("lost", ["1", "2", "3", "4"]), await read("lost", 4, 3, sure=2))
    print("leader", await send("leader", ["1"]), await read("leader", 1))
    print("large", await send("large", ["1"]))
    print("unseen", await read("unseen", 1, late="new"))
    for key in [b"bad", b"good"]:
        await send("keyed", [key.decode()], key=key)
    print("keyed", await read("keyed", 2, 5, sure=1))


async def answers():
    await create("cut", "half", "gone", "dropped", "cut-fetch", "slow", "slow-told", "wrong")
    await send("cut-fetch", ["1", "2"])
    await send("slow", ["x" * 65536])
    await send("wrong", ["1", "2"])
    print("ready", flush=True)
    sys.stdin.readline()
    # The broker has the record, the producer does not know: what it sends again is stored again.
    print("cut", await send("cut", ["1"]), await read("cut", 2))
    print("half", await send("half", ["1"]), await read("half", 2))
    # The broker has not seen it.
    print("gone", await send("gone", ["1"]), await read("gone", 2, 3, sure=1))
    print("dropped", await send("dropped", ["1"]), await read("dropped", 2, 3, sure=1))
    print("cut fetch", await read("cut-fetch", 2))
    start = time.monotonic()
    (value,), offset = await read("slow", 1)
    print("slow", value == "x" * 65536, offset, time.monotonic() - start >= 1)
    start = time.monotonic()
    told = await send("slow-told", ["1"])
    print("slow told", told, time.monotonic() - start >= 2, await read("slow-told", 2, 3, sure=1))
    print("wrong", await read("wrong", 2), await read("wrong", 2))


async def cluster():
    # Each broker leads some of the four partitions, so each is asked.
    for partition in range(4):
        told = await send("spread", ["1", "2", "3"], partition=partition, enable_idempotence=True)
        print(partition, told, await read("spread", 3, partition=partition))


asyncio.run({"battery": battery, "faults": faults, "cluster": cluster, "bytes": answers}[MODE]())
