#!/usr/bin/env python3
"""Passes every GET on to a server over TLS, whose certificate it verifies: by the name in URL, or by NAME.

Usage: https_client.py PORT URL CA [NAME]"""
import http.client
import ssl
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, url, ca = sys.argv[1:4]
name = sys.argv[4] if len(sys.argv) > 4 else None
context = ssl.create_default_context(cafile=ca)


class Connection(http.client.HTTPSConnection):
    def connect(self):
        http.client.HTTPConnection.connect(self)
        self.sock = context.wrap_socket(self.sock, server_hostname=name or self.host)


class Https(urllib.request.HTTPSHandler):
    def https_open(self, request):
        return self.do_open(Connection, request)


opener = urllib.request.build_opener(Https())


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            with opener.open(url.rstrip("/") + self.path, timeout=30) as reply:
                status, body = reply.status, reply.read()
        except urllib.error.HTTPError as e:
            status, body = e.code, e.read()
        except OSError as e:
            status, body = 502, str(e).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
