#!/usr/bin/env python3
"""Passes every GET on to a server over TLS, whose certificate it verifies. Usage: https_client.py PORT URL CA"""
import ssl
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, url, ca = sys.argv[1:4]
context = ssl.create_default_context(cafile=ca)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            with urllib.request.urlopen(url.rstrip("/") + self.path, context=context, timeout=30) as reply:
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
