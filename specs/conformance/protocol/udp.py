"""Two small services: `echo PORT` sends every datagram back; `asker PORT` is HTTP in front of a UDP client.

GET /ask?data=... sends the text to FAULTBOX_ECHO_RAW_ADDR, from a socket that has not been connected unless connect=1, and says what
came of it: the reply, or the name of the exception. GET /burst?words=a,b,c sends these from one socket, one after another, and says in
which order as many replies came.
"""

import http.server
import os
import socket
import sys
import urllib.parse


def echo(port):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", port))
    while True:
        data, peer = sock.recvfrom(65536)
        sock.sendto(data, peer)


def echo_addr():
    host, port = os.environ["FAULTBOX_ECHO_RAW_ADDR"].rsplit(":", 1)
    return host, int(port)


def ask(query):
    addr = echo_addr()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(float(query.get("timeout", ["20"])[0]))
        data = query["data"][0].encode()
        try:
            if "connect" in query:
                sock.connect(addr)
                sock.send(data)
            else:
                sock.sendto(data, addr)
            return sock.recv(65536)
        except OSError as e:
            return type(e).__name__.encode()


def burst(query):
    words = query["words"][0].encode().split(b",")
    heard = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(float(query.get("timeout", ["20"])[0]))
        for word in words:
            sock.sendto(word, echo_addr())
        try:
            while len(heard) < len(words):
                heard.append(sock.recv(65536))
        except OSError as e:
            heard.append(type(e).__name__.encode())
    return b",".join(heard)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        query = urllib.parse.parse_qs(url.query)
        body = {"/ask": ask, "/burst": burst}.get(url.path, lambda query: b"ok")(query)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


if sys.argv[1] == "echo":
    echo(int(sys.argv[2]))
else:
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
