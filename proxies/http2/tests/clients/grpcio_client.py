"""grpcio's ordinary life, or what it makes of faults: `grpcio_client.py PORT battery|faults|replies`."""

import json
import sys
import time
from concurrent import futures

import grpc

port, mode = sys.argv[1:]
POLICY = {
    "methodConfig": [
        {
            "name": [{"service": "test.Svc", "method": "Retried"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.service_config", json.dumps(POLICY)),
    ("grpc.keepalive_time_ms", 100),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)
PATIENCE = 60


def unary(method):
    return channel.unary_unary("/test.Svc/" + method)


def stream(method):
    return channel.unary_stream("/test.Svc/" + method)


def outcome(run):
    try:
        return run()
    except grpc.RpcError as e:
        trailing = [(k, v) for k, v in e.trailing_metadata() or ()]
        return (e.code().name, e.details(), trailing)


def kept(metadata):
    return sorted((k, v) for k, v in metadata if "x-" in k)


def battery():
    print("unary", unary("Unary")(b"hello", timeout=PATIENCE))
    print("empty", unary("Unary")(b"", timeout=PATIENCE))
    sent = [("x-plain", "a b"), ("x-raw-bin", b"\x00\x01\xff"), ("x-plain", "again")]
    reply, call = unary("Unary").with_call(b"m", metadata=sent, timeout=PATIENCE)
    print("metadata", reply, kept(call.initial_metadata()), kept(call.trailing_metadata()), call.code().name)
    big = bytes(range(256)) * (4 << 12)
    print("4 MB", unary("Unary")(big, timeout=PATIENCE) == big)
    print("gzip", unary("Unary")(big, timeout=PATIENCE, compression=grpc.Compression.Gzip) == big)
    print("big metadata", len(unary("Unary").with_call(b"", metadata=[("x-big", "y" * 4000)], timeout=PATIENCE)[1].trailing_metadata()))
    replies = list(stream("Stream")(b"1000 100", timeout=PATIENCE))
    print("server streaming", len(replies), sum(map(len, replies)))
    replies = list(stream("Stream")(b"20 300000", timeout=PATIENCE))
    print("large messages", len(replies), sum(map(len, replies)))
    collect = channel.stream_unary("/test.Svc/Collect")
    print("client streaming", collect((b"x" * 1000 for _ in range(1000)), timeout=PATIENCE))
    print("no message at all", collect(iter(()), timeout=PATIENCE))
    chat = channel.stream_stream("/test.Svc/Chat")
    print("both", sum(1 for _ in chat((b"%d" % i for i in range(300)), timeout=PATIENCE)))
    print("fails", outcome(lambda: unary("Fail")(b"", timeout=PATIENCE)))
    print("no such method", outcome(lambda: channel.unary_unary("/test.Svc/None")(b"", timeout=PATIENCE)))
    print("deadline", outcome(lambda: unary("Slow")(b"20", timeout=0.3))[0])
    endless = stream("Endless")(b"", timeout=PATIENCE)
    print("first", next(endless))
    endless.cancel()
    print("cancelled", outcome(lambda: [None for _ in endless])[0])
    with futures.ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda i: unary("Unary")(b"%d" % i, timeout=PATIENCE), range(300)))
    print("many at once", replies == [b"%d" % i for i in range(300)])
    time.sleep(0.5)
    print("after pings", unary("Unary")(b"alive", timeout=PATIENCE))


def faults():
    unary("Unary")(b"warm", timeout=PATIENCE)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        unary("Create")(b"x", timeout=PATIENCE)
    except grpc.RpcError as e:
        print("create", isinstance(e, grpc.RpcError), e.code() is grpc.StatusCode.UNAVAILABLE, e.details())
    print("other", unary("Unary")(b"works", timeout=PATIENCE))
    print("retried", unary("Retried")(b"in the end", timeout=PATIENCE))
    print("busy", outcome(lambda: unary("Busy")(b"", timeout=PATIENCE))[:2])
    print("dropped", outcome(lambda: unary("Dropped")(b"", timeout=PATIENCE))[0])
    # Long enough for the request to be on its way.
    print("delayed", outcome(lambda: unary("Delayed")(b"", timeout=5))[0])
    got = []

    def broken():
        for message in stream("Broken")(b"10 5000", timeout=PATIENCE):
            got.append(len(message))

    print("broken", outcome(broken)[:2], got)
    held = unary("Delayed").future(b"", timeout=PATIENCE)
    print("meanwhile", [unary("Unary")(b"%d" % i, timeout=PATIENCE) for i in range(3)], held.done())
    held.cancel()
    print("held", held.code().name)
    chat = channel.stream_stream("/test.Svc/Chat")
    print("afterwards", sum(len(m) for m in chat((b"x" * 50000 for _ in range(50)), timeout=PATIENCE)))


def replies():
    unary("Unary")(b"warm", timeout=PATIENCE)
    print("ready", flush=True)
    sys.stdin.readline()
    got = []

    def streamed(method, request, timeout=PATIENCE):
        got.clear()
        for message in stream(method)(request, timeout=timeout):
            got.append(len(message))

    # How many of the three that arrive are handed on before the reset is heard of, is chance.
    print("truncated", outcome(lambda: streamed("Broken", b"10 5000"))[0], got == [5002, 5002, 5002][: len(got)])
    print("corrupted", unary("Create")(b"hello", timeout=PATIENCE))
    start = time.monotonic()
    big = bytes(range(256)) * 200
    print("throttled", unary("Retried")(big, timeout=PATIENCE) == big, time.monotonic() - start >= 0.4)
    # A minute's worth: some of it comes.
    print("deadline", outcome(lambda: streamed("Stream", b"1200 5000", 5))[0], 0 < len(got) < 1200)
    for status, method in [(503, "Busy"), (403, "Dropped"), (404, "Delayed")]:
        print(status, outcome(lambda: unary(method)(b"", timeout=PATIENCE))[0])
    chat = channel.stream_stream("/test.Svc/Chat")
    print(500, outcome(lambda: list(chat(iter([b"x"] * 3), timeout=PATIENCE)))[0])
    print("reset", outcome(lambda: unary("Fail")(b"", timeout=PATIENCE))[0])
    alive = unary("Unary")(b"alive", timeout=PATIENCE, wait_for_ready=True)
    print("afterwards", alive, outcome(lambda: unary("Fail")(b"", timeout=PATIENCE))[0])


{"battery": battery, "faults": faults, "replies": replies}[mode]()
