"""Uses mocks over TLS, whose certificates are verified: `tls.py CA HTTP_PORT REDIS_PORT KAFKA_PORT GRPC_PORT`."""
import ssl
import sys
import urllib.error
import urllib.request

import grpc
import redis
from confluent_kafka import Consumer, Producer
from grpc_health.v1 import health_pb2, health_pb2_grpc

ca = sys.argv[1]
http_port, redis_port, kafka_port, grpc_port = sys.argv[2:]

url = f"https://localhost:{http_port}/orders/7"
with urllib.request.urlopen(url, context=ssl.create_default_context(cafile=ca), timeout=60) as r:
    assert r.read() == b"seven"
try:
    urllib.request.urlopen(url, timeout=60)
    raise SystemExit("nobody vouches for that certificate")
except urllib.error.URLError as e:
    assert isinstance(e.reason, ssl.SSLCertVerificationError), e

store = redis.Redis(host="localhost", port=int(redis_port), ssl=True, ssl_ca_certs=ca)
store.set("a", "x" * 100_000)
assert len(store.get("a")) == 100_000

over_tls = {"bootstrap.servers": f"localhost:{kafka_port}", "security.protocol": "ssl", "ssl.ca.location": ca}
producer = Producer(over_tls)
producer.produce("orders", b"one")
assert producer.flush(60) == 0
consumer = Consumer(over_tls | {"group.id": "g", "auto.offset.reset": "earliest"})
consumer.subscribe(["orders"])
record = consumer.poll(60)
assert record.value() == b"one", record.error()
consumer.close()

with open(ca, "rb") as f:
    credentials = grpc.ssl_channel_credentials(f.read())
channel = grpc.secure_channel(f"localhost:{grpc_port}", credentials)
status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60).status
assert status == health_pb2.HealthCheckResponse.SERVING, status
print("ok")
