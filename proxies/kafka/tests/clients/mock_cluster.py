"""librdkafka's mock cluster of three brokers: prints their ports and lives until its input ends."""

import sys

from confluent_kafka import Producer

cluster = Producer({"bootstrap.servers": "unused", "test.mock.num.brokers": 3})
brokers = cluster.list_topics(timeout=30).brokers.values()
print(*(broker.port for broker in brokers), flush=True)
sys.stdin.read()
