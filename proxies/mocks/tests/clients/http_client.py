"""Uses a mock with http.client, urllib and curl: `http_client.py PORT`."""
import http.client
import json
import subprocess
import sys
import urllib.error
import urllib.request

port = int(sys.argv[1])
base = f"http://127.0.0.1:{port}"
with urllib.request.urlopen(base + "/orders/7?full=1") as r:
    assert r.status == 200 and json.load(r) == {"id": 7} and r.headers["Content-Type"] == "application/json"
try:
    urllib.request.urlopen(base + "/nowhere")
    raise SystemExit("there is no such route")
except urllib.error.HTTPError as e:
    assert e.code == 404, e
c = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
for i in range(3):
    # One connection for all: bodies with a length, in chunks, and none.
    body = [b"a" * 1000, iter([b"x" * 70000, b"y"]), None][i]
    c.request("POST", "/upload", body=body, encode_chunked=i == 1, headers={"Transfer-Encoding": "chunked"} if i == 1 else {})
    r = c.getresponse()
    assert r.status == 201 and r.read() == b"", r.status
c.request("HEAD", "/orders/1")
r = c.getresponse()
assert r.status == 200 and r.headers["Content-Length"] == "8" and r.read() == b""
c.close()
# curl waits for "100 Continue" before it sends a large body.
out = subprocess.run(
    ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Expect: 100-continue", "--data-binary", "@-", base + "/upload"],
    input=b"z" * (2 << 20), capture_output=True, check=True, timeout=60)
assert out.stdout == b"201", out.stdout
out = subprocess.run(["curl", "-sS", "--http1.0", base + "/orders/1", base + "/orders/2"], capture_output=True, check=True, timeout=60)
assert out.stdout == b'{"id":7}' * 2, out.stdout
print("ok")
