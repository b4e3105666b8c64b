"""Uses a mock with grpcio, its types learnt by reflection: `grpcio.py PORT`."""
import sys

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

channel = grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}")
status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60).status
assert status == health_pb2.HealthCheckResponse.SERVING, status
database = ProtoReflectionDescriptorDatabase(channel)
assert list(database.get_services()) == ["orders.OrderService"]
pool = descriptor_pool.DescriptorPool(database)
service = pool.FindServiceByName("orders.OrderService")


def call(name, many=False, **fields):
    method = service.methods_by_name[name]
    ask = message_factory.GetMessageClass(method.input_type)
    answer = message_factory.GetMessageClass(method.output_type)
    make = channel.unary_stream if many else channel.unary_unary
    stub = make(f"/orders.OrderService/{name}", request_serializer=ask.SerializeToString, response_deserializer=answer.FromString)
    return stub(ask(**fields), timeout=60)


order = call("Get", id=5)
assert (order.id, order.item) == (7, "tea"), order
assert [o.id for o in call("Watch", many=True, count=2)] == [1, 2]
try:
    call("Create", item="tea")
    raise SystemExit("it is there already")
except grpc.RpcError as e:
    assert (e.code(), e.details()) == (grpc.StatusCode.ALREADY_EXISTS, "é is there"), e
stub = channel.unary_unary("/orders.OrderService/Delete")
try:
    stub(b"", timeout=60)
    raise SystemExit("there is no such method")
except grpc.RpcError as e:
    assert e.code() == grpc.StatusCode.UNIMPLEMENTED, e
print("ok")
