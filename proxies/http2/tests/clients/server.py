"""A grpcio server whose methods echo bytes, with the standard health service. Prints its port, then serves until its input ends."""

import sys
import time
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

LIMITS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
]


def metadata(context):
    """The client's metadata comes back, in front and behind."""
    sent = [(k, v) for k, v in context.invocation_metadata() if k.startswith("x-")]
    context.send_initial_metadata([("initial-" + k, v) for k, v in sent])
    context.set_trailing_metadata([("trailing-" + k, v) for k, v in sent])


def unary(request, context):
    metadata(context)
    return request


def slow(request, context):
    time.sleep(float(request))
    return request


def fail(request, context):
    context.set_trailing_metadata([("why-bin", b"\x00\xff")])
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "größer als 100 %")


def stream(request, context):
    metadata(context)
    count, size = map(int, request.split())
    for i in range(count):
        yield b"%d " % i + b"x" * size


def endless(request, context):
    while context.is_active():
        yield b"tick"
        time.sleep(0.01)


def collect(requests, context):
    metadata(context)
    return b"%d" % sum(len(r) for r in requests)


def chat(requests, context):
    metadata(context)
    yield from requests


class Methods(grpc.GenericRpcHandler):
    def service(self, details):
        service, _, method = details.method[1:].partition("/")
        if service != "test.Svc":
            return None
        if method in ("Unary", "Create", "Delayed", "Retried", "Dropped", "Busy"):
            return grpc.unary_unary_rpc_method_handler(unary)
        return {
            "Slow": grpc.unary_unary_rpc_method_handler(slow),
            "Fail": grpc.unary_unary_rpc_method_handler(fail),
            "Stream": grpc.unary_stream_rpc_method_handler(stream),
            "Broken": grpc.unary_stream_rpc_method_handler(stream),
            "Endless": grpc.unary_stream_rpc_method_handler(endless),
            "Collect": grpc.stream_unary_rpc_method_handler(collect),
            "Chat": grpc.stream_stream_rpc_method_handler(chat),
        }.get(method)


server = grpc.server(futures.ThreadPoolExecutor(32), options=LIMITS)
server.add_generic_rpc_handlers([Methods()])
servicer = health.HealthServicer()
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
servicer.set("", health_pb2.HealthCheckResponse.SERVING)
names = [health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
reflection.enable_server_reflection(names, server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
sys.stdin.read()
server.stop(0)
