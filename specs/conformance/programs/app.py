"""One request, one call: what the standard library makes of a failed system call. Answers {"failure": ""} or the exception as Python shows it."""

import http.server
import json
import os
import socket
import urllib.parse
import urllib.request


def write(q):
    with open(q["path"], "wb", buffering=0) as file:
        file.write(b"x")


def fsync(q):
    with open(q["path"], "wb") as file:
        os.fsync(file.fileno())


def connect(q):
    host, port = q["addr"].rsplit(":", 1)
    socket.create_connection((host, int(port))).close()


def get(q):
    with urllib.request.urlopen(f"http://{q['addr']}/health") as reply:
        reply.read()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        failure = ""
        if url.path == "/do":
            query = dict(urllib.parse.parse_qsl(url.query))
            try:
                {"write": write, "fsync": fsync, "connect": connect, "get": get}[query["op"]](query)
            except Exception as e:
                failure = f"{type(e).__name__}: {e}"
        body = json.dumps({"failure": failure}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


address = ("127.0.0.1", int(os.environ["FAULTBOX_APP_HTTP_PORT"]))
http.server.ThreadingHTTPServer(address, Handler).serve_forever()
