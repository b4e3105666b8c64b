"""A small service that calls another by HTTP/2, with curl: `curl.py PORT VARIABLE`.

GET /ask?path=... sends a request to the address that the environment has under this name, and says what curl printed: the reply's head
and body, or curl's exit status. With type=..., the request is a POST of that content type.
"""

import http.server
import os
import subprocess
import sys
import urllib.parse


def ask(query):
    command = ["curl", "--silent", "--include", "--http2-prior-knowledge", "--max-time", "20"]
    if "type" in query:
        command += ["--header", "content-type: " + query["type"][0], "--header", "te: trailers", "--data-binary", ""]
    command.append("http://" + os.environ[sys.argv[2]] + query["path"][0])
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    return ran.stdout if ran.returncode == 0 else b"exit %d" % ran.returncode


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        body = ask(urllib.parse.parse_qs(url.query)) if url.path == "/ask" else b"ok"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
