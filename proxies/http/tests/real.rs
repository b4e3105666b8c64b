//! Real clients against real servers, directly and through the proxy: what they print must be the same.
//!
//! Needs nginx, curl, python3 with requests, and node. A missing one fails the test and names the package; FAULTBOX_SKIP_REAL=1
//! skips instead, loudly.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use faultbox_contract::Arg;
use faultbox_engine::testing::{Harness, PATIENCE, alone, clients, free_addr, peak_memory};
use serde_json::json;

/// Is everything that a test needs installed? Panics, with the packages to install, unless skipping was asked for.
fn installed(needs: &[&str]) -> bool {
    let missing: Vec<&str> = needs
        .iter()
        .copied()
        .filter(|need| !works(need))
        .map(|need| match need {
            "requests" => "python3-requests",
            "node" => "nodejs",
            other => other,
        })
        .collect();
    clients::complete(&missing)
}

fn works(need: &str) -> bool {
    let mut command = match need {
        "requests" => {
            let mut c = Command::new("python3");
            c.args(["-c", "import requests"]);
            c
        }
        "nginx" => {
            let mut c = Command::new(nginx_path());
            c.arg("-v");
            c
        }
        other => {
            let mut c = Command::new(other);
            c.arg("--version");
            c
        }
    };
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// Debian keeps it out of a plain user's PATH.
fn nginx_path() -> &'static str {
    if Path::new("/usr/sbin/nginx").exists() {
        "/usr/sbin/nginx"
    } else {
        "nginx"
    }
}

/// A server process that ends with the test.
struct Server {
    child: Child,
    addr: SocketAddr,
    dir: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn started(mut child: Child, addr: SocketAddr, dir: PathBuf) -> Server {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(addr).is_err() {
        if let Ok(Some(status)) = child.try_wait() {
            let log = std::fs::read_to_string(dir.join("error.log")).unwrap_or_default();
            panic!("the server exited with {status}: {log}");
        }
        assert!(Instant::now() < deadline, "the server does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Server { child, addr, dir }
}

/// nginx with a folder that can be read and written (WebDAV PUT).
fn nginx(name: &str) -> Server {
    let dir = scratch(name);
    let addr = free_addr();
    let root = dir.join("www");
    std::fs::create_dir_all(root.join("up")).unwrap();
    std::fs::write(root.join("index.html"), "<h1>hello</h1>\n").unwrap();
    std::fs::write(root.join("text.txt"), "some text, often\n".repeat(4000)).unwrap();
    let d = dir.display();
    // Only root may name a user, and only root needs to: the workers of root would run as nobody.
    let user = if nix_is_root() { "user root;" } else { "" };
    let config = format!(
        "{user} daemon off; master_process off; pid {d}/pid; error_log {d}/error.log; worker_rlimit_nofile 1024;
         events {{ worker_connections 256; }}
         http {{
           access_log off; client_max_body_size 0; gzip on; gzip_min_length 100; gzip_types text/plain;
           types {{ text/plain txt; text/html html; }}
           client_body_temp_path {d}/body; proxy_temp_path {d}/proxy; fastcgi_temp_path {d}/fcgi;
           uwsgi_temp_path {d}/uwsgi; scgi_temp_path {d}/scgi;
           server {{ listen {addr}; root {d}/www; location /up/ {{ dav_methods PUT DELETE; }} }}
         }}"
    );
    std::fs::write(dir.join("nginx.conf"), config).unwrap();
    let child = Command::new(nginx_path())
        .args(["-p", dir.to_str().unwrap(), "-e"])
        .arg(dir.join("error.log"))
        .arg("-c")
        .arg(dir.join("nginx.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    started(child, addr, dir)
}

fn nix_is_root() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .is_ok_and(|s| s.lines().any(|l| l.starts_with("Uid:\t0\t")))
}

/// Runs a client to its end and returns what it prints.
fn client(program: &str, args: &[&str]) -> String {
    // coreutils' timeout: a client that hangs is a failure with a name, not a hung test.
    clients::run(Command::new("timeout").arg("240").arg(program).args(args))
}

/// A runtime with a proxy in it.
fn proxy(upstream: SocketAddr) -> (tokio::runtime::Runtime, Harness) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let harness = {
        let _inside = runtime.enter();
        Harness::start(faultbox_http::protocol(), upstream)
    };
    (runtime, harness)
}

/// Runs the same client directly and through the proxy, without a rule and with rules that do not match, and compares.
fn same(server: SocketAddr, run: impl Fn(&str) -> String) -> String {
    let (_runtime, harness) = proxy(server);
    let direct = run(&server.to_string());
    let through = run(&harness.addr.to_string());
    assert_eq!(direct, through);
    harness.arm("error", &[("path", Arg::Str("/never".into()))]);
    harness.arm("error", &[("request_body", Arg::Str("never".into()))]);
    let watched = run(&harness.addr.to_string());
    assert_eq!(direct, watched);
    assert_eq!(harness.degradations(), [""; 0]);
    assert_eq!(harness.fired(), 0);
    assert!(harness.meter.count() > 0);
    direct
}

#[test]
fn curl_sees_nginx_as_it_is() {
    if !installed(&["nginx", "curl"]) {
        return;
    }
    let server = nginx("curl");
    let upload = server.dir.join("upload");
    std::fs::write(&upload, "u".repeat(300_000)).unwrap();
    let upload = upload.to_str().unwrap();
    let report = "%{http_code} %{size_download} %{size_upload} %{num_connects}\n";
    same(server.addr, |at| {
        let url = |path: &str| format!("http://{at}{path}");
        let curl = |args: &[&str]| {
            let fixed = ["-sS", "--max-time", "60", "-w", report];
            client("curl", &[&fixed[..], args].concat())
        };
        let mut seen = String::new();
        // Keep-alive: the second and third request must not connect again (num_connects 0).
        let (a, b, c) = (url("/"), url("/text.txt"), url("/missing"));
        let reused = curl(&[&a, &b, &c]);
        assert_eq!(reused.matches(" 0\n").count(), 2, "{reused}");
        seen += &reused;
        // HEAD; a chunked reply; a range.
        seen += &curl(&["-I", "-o", "/dev/null", &url("/text.txt")]);
        seen += &curl(&["--compressed", &url("/text.txt")]);
        seen += &curl(&["-r", "5-20", &url("/text.txt")]);
        // Uploads: sized, chunked, with and without "100 Continue".
        let target = url("/up/file");
        for header in [
            "Expect: 100-continue",
            "Expect:",
            "Transfer-Encoding: chunked",
        ] {
            seen += &curl(&["-H", header, "-T", upload, &target]);
            let stored = curl(&[&target]);
            assert!(stored.contains(&"u".repeat(300_000)));
        }
        // An upgrade that nginx declines.
        seen += &curl(&["--http2", &url("/")]);
        seen += &curl(&["--http1.0", &url("/")]);
        seen += &curl(&["-X", "DELETE", &target]);
        seen
    });
}

#[test]
fn python_sees_nginx_as_it_is() {
    if !installed(&["nginx", "python3", "requests"]) {
        return;
    }
    let server = nginx("python");
    let script = r#"
import http.client, sys, urllib.request, requests, hashlib
at = sys.argv[1]
host, port = at.split(":")
show = lambda *a: print(*a)
c = http.client.HTTPConnection(host, int(port), timeout=30)
for method, path in [("GET", "/"), ("HEAD", "/text.txt"), ("GET", "/text.txt"), ("GET", "/missing"), ("OPTIONS", "/")]:
    c.request(method, path, headers={"Accept-Encoding": "gzip"})
    sock = c.sock
    r = c.getresponse()
    body = r.read()
    show(method, path, r.status, r.getheader("Transfer-Encoding"), r.getheader("Content-Length"), hashlib.md5(body).hexdigest())
    assert c.sock is sock or c.sock is None
c.request("PUT", "/up/chunked", body=iter([b"one", b"two" * 50000, b"three"]), encode_chunked=True)
r = c.getresponse(); show(r.status, r.read())
c.request("GET", "/up/chunked"); r = c.getresponse(); show(r.status, hashlib.md5(r.read()).hexdigest())
c.request("DELETE", "/up/chunked"); r = c.getresponse(); show(r.status, r.read())
show(urllib.request.urlopen(f"http://{at}/text.txt", timeout=30).read()[:40])
with requests.Session() as s:
    for _ in range(20):
        r = s.get(f"http://{at}/text.txt", timeout=30)
        assert r.status_code == 200 and len(r.text) == 68000
    r = s.put(f"http://{at}/up/r", data=b"x" * 100000, timeout=30); show(r.status_code)
    r = s.get(f"http://{at}/up/r", timeout=30); show(r.status_code, len(r.content))
    r = s.delete(f"http://{at}/up/r", timeout=30); show(r.status_code)
"#;
    let seen = same(server.addr, |at| client("python3", &["-c", script, at]));
    assert!(seen.contains("GET /text.txt 200 chunked None"), "{seen}");
}

const NODE_CLIENT: &str = r#"
const http = require('http');
const [host, port] = process.argv[1].split(':');
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
const sockets = new Set();
function send(method, path, { headers = {}, chunks = [], expect = false } = {}) {
  return new Promise((done, fail) => {
    const r = http.request({ host, port, method, path, agent, headers, timeout: 30000 }, (res) => {
      let n = 0;
      res.on('data', (d) => (n += d.length));
      res.on('end', () => done([method, path, res.statusCode, res.headers['transfer-encoding'], n].join(' ')));
      res.on('error', fail);
    });
    r.on('socket', (s) => sockets.add(s));
    r.on('timeout', () => fail(new Error('timeout')));
    r.on('error', fail);
    const body = () => { chunks.forEach((c) => r.write(c)); r.end(); };
    if (expect) { r.on('continue', () => { console.log('continue'); body(); }); r.flushHeaders(); } else body();
  });
}
(async () => {
  console.log(await send('GET', '/'));
  console.log(await send('HEAD', '/text.txt'));
  console.log(await send('GET', '/text.txt', { headers: { 'Accept-Encoding': 'gzip' } }));
  console.log(await send('PUT', '/up/node', { chunks: ['abc', 'def'.repeat(40000)] }));
  console.log(await send('GET', '/up/node'));
  console.log(await send('PUT', '/up/node', { headers: { Expect: '100-continue', 'Content-Length': 5 }, chunks: ['12345'], expect: true }));
  console.log(await send('GET', '/up/node'));
  console.log(await send('DELETE', '/up/node'));
  console.log('sockets', sockets.size);
  agent.destroy();
})().catch((e) => { console.error(e); process.exit(1); });
"#;

#[test]
fn node_sees_nginx_as_it_is() {
    if !installed(&["nginx", "node"]) {
        return;
    }
    let server = nginx("node");
    let seen = same(server.addr, |at| client("node", &["-e", NODE_CLIENT, at]));
    assert!(seen.contains("continue\n"), "{seen}");
    assert!(seen.contains("sockets 1\n"), "{seen}");
}

#[test]
fn websocket_upgrades_pass() {
    if !installed(&["node"]) {
        return;
    }
    let dir = scratch("websocket");
    let addr = free_addr();
    // A WebSocket server as far as the proxy can tell: the handshake, then frames, echoed as bytes.
    let server = r#"
const http = require('http'), crypto = require('crypto');
const s = http.createServer((q, r) => r.end('plain'));
s.on('upgrade', (q, socket, head) => {
  const key = crypto.createHash('sha1').update(q.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest('base64');
  socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ' + key + '\r\n\r\n\x81\x05hello', 'latin1');
  socket.write(head); socket.pipe(socket);
});
s.listen(+process.argv[1], '127.0.0.1');
"#;
    let child = Command::new("node")
        .args(["-e", server, &addr.port().to_string()])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let server = started(child, addr, dir);
    let script = r#"
const http = require('http');
const [host, port] = process.argv[1].split(':');
const r = http.request({ host, port, path: '/ws', headers: { Connection: 'Upgrade', Upgrade: 'websocket', 'Sec-WebSocket-Version': 13, 'Sec-WebSocket-Key': 'dGhlIHNhbXBsZSBub25jZQ==' } });
r.on('upgrade', (res, socket, head) => {
  let got = Buffer.from(head);
  const big = Buffer.alloc(200000, 'GET / HTTP/1.1\r\n\r\n');
  socket.on('data', (d) => {
    got = Buffer.concat([got, d]);
    if (got.length === 7 + big.length) { console.log(res.statusCode, res.headers['sec-websocket-accept'], got.subarray(0, 7), got.subarray(7).equals(big)); socket.end(); }
  });
  socket.on('close', () => console.log('closed', got.length));
  socket.write(big);
});
r.end();
"#;
    let seen = same(server.addr, |at| client("node", &["-e", script, at]));
    assert!(seen.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{seen}");
    assert!(seen.contains("true\nclosed 200007"), "{seen}");
}

fn bulk(name: &str, bytes: u64) {
    if !installed(&["nginx", "curl"]) {
        return;
    }
    let server = nginx(name);
    // Sparse: no disk is used for what is downloaded.
    let file = std::fs::File::create(server.dir.join("www/big.bin")).unwrap();
    file.set_len(bytes).unwrap();
    let (_runtime, harness) = proxy(server.addr);
    // A rule that looks at bodies must not keep more of them either.
    harness.arm("error", &[("request_body", Arg::Str("never".into()))]);
    let before = peak_memory();
    let at = harness.addr;
    let got = client(
        "curl",
        &[
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{size_download}",
            &format!("http://{at}/big.bin"),
        ],
    );
    assert_eq!(got, bytes.to_string());
    let source = server.dir.join("www/big.bin");
    let put = client(
        "curl",
        &[
            "-sS",
            "-w",
            "%{http_code} %{size_upload}",
            "-T",
            source.to_str().unwrap(),
            &format!("http://{at}/up/big.bin"),
        ],
    );
    assert_eq!(put, format!("201 {bytes}"));
    let grown = peak_memory().saturating_sub(before);
    assert!(grown < 64 << 20, "memory grew by {} MiB", grown >> 20);
}

/// A gibibyte each way: more than any buffer could hide.
#[test]
fn large_bodies_pass_in_flat_memory() {
    if !alone("large_bodies_pass_in_flat_memory") {
        return;
    }
    bulk("bulk", 1 << 30);
}

#[test]
fn clients_see_faults_as_they_would_see_the_real_thing() {
    if !installed(&["nginx", "python3", "requests", "curl", "node"]) {
        return;
    }
    let server = nginx("faults");
    let (_runtime, harness) = proxy(server.addr);
    let path = |p: &str| ("path", Arg::Str(p.into()));
    harness.arm(
        "response",
        &[
            path("/limit*"),
            ("status", Arg::Int(429)),
            ("json", Arg::Json(json!({"retry": true}))),
            ("headers", Arg::Json(json!({"Retry-After": "1"}))),
        ],
    );
    harness.arm(
        "error",
        &[
            path("/up/**"),
            ("status", Arg::Int(503)),
            ("message", Arg::Str("down".into())),
        ],
    );
    harness.arm("reset", &[path("/reset")]);
    harness.arm("drop", &[path("/drop")]);
    harness.arm("truncate", &[path("/text.txt"), ("bytes", Arg::Int(100))]);
    let script = r#"
import sys, requests
at = "http://" + sys.argv[1]
s = requests.Session()
r = s.get(at + "/limit/x", timeout=30); print(r.status_code, r.json(), r.headers["Retry-After"])
r = s.put(at + "/up/a", data=b"z" * 5_000_000, timeout=30); print(r.status_code, r.json())
r = s.put(at + "/up/b", data=iter([b"z" * 100000] * 20), timeout=30); print(r.status_code, r.json())
r = s.get(at + "/", timeout=30); print(r.status_code, r.text.strip())
for path in ["/reset", "/drop", "/text.txt"]:
    try:
        r = s.get(at + path, timeout=30, headers={"Accept-Encoding": "identity"}); print(path, r.status_code, len(r.content))
    except requests.exceptions.RequestException as e:
        print(path, type(e).__name__, "reset" if "reset by peer" in str(e) else "closed" if "closed connection" in str(e) else "short" if "IncompleteRead(100 bytes" in str(e) else e)
"#;
    let at = harness.addr.to_string();
    assert_eq!(
        client("python3", &["-c", script, &at]),
        "429 {'retry': True} 1\n503 {'error': 'down'}\n503 {'error': 'down'}\n200 <h1>hello</h1>\n\
         /reset ConnectionError reset\n/drop ConnectionError closed\n/text.txt ChunkedEncodingError short\n"
    );
    let big = server.dir.join("big");
    std::fs::write(&big, vec![b'z'; 3_000_000]).unwrap();
    // curl waits for "100 Continue" with a body of this size.
    let curl = client(
        "curl",
        &[
            "-sS",
            "--max-time",
            "30",
            "-H",
            "Expect: 100-continue",
            "-T",
            big.to_str().unwrap(),
            "-w",
            " %{http_code}",
            &format!("http://{at}/up/c"),
        ],
    );
    assert_eq!(curl, "{\"error\":\"down\"} 503");
    let node = r#"
const http = require('http');
const fails = (path, told) => http.get('http://' + process.argv[1] + path).on('error', told);
fails('/reset', (e) => {
  console.log(e.code);
  fails('/drop', (e) => console.log(e.message));
});
"#;
    assert_eq!(
        client("node", &["-e", node, &at]),
        "ECONNRESET\nsocket hang up\n"
    );
    // Nothing of what was refused has reached the server.
    assert_eq!(
        std::fs::read_dir(server.dir.join("www/up"))
            .unwrap()
            .count(),
        0
    );
}

/// Runs a client to its end, whatever that is: what it printed, and its status.
fn client_and_status(program: &str, args: &[&str]) -> String {
    let mut command = Command::new("timeout");
    let output = command.arg("240").arg(program).args(args).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    format!(
        "{} {}",
        String::from_utf8_lossy(&said).trim_end(),
        output.status
    )
}

/// A reply with one byte inverted is a reply like any other, until somebody decodes it.
#[test]
fn a_corrupted_reply_is_what_the_client_makes_of_its_bytes() {
    if !installed(&["nginx", "python3", "requests", "curl", "node"]) {
        return;
    }
    let server = nginx("corrupt");
    std::fs::write(server.dir.join("www/answer.json"), "{\"ok\": true}").unwrap();
    let (_runtime, harness) = proxy(server.addr);
    let at = harness.addr.to_string();
    let url = |path: &str| format!("http://{at}{path}");
    let rule = harness.arm("corrupt", &[("offset", Arg::Int(0))]);
    let python = r#"
import sys, http.client, requests
at = sys.argv[1]
s = requests.Session()
plain = {"Accept-Encoding": "identity"}
r = s.get(f"http://{at}/text.txt", headers=plain, timeout=60)
print(r.status_code, len(r.content), r.content[:9], r.content[1:] == (b"some text, often\n" * 4000)[1:])
try:
    s.get(f"http://{at}/answer.json", timeout=60).json()
except requests.exceptions.JSONDecodeError as e:
    print(type(e).__name__)
# The chunks of the reply are whole; what is in them is not gzip any more.
try:
    s.get(f"http://{at}/text.txt", timeout=60)
except requests.exceptions.ContentDecodingError as e:
    print(type(e).__name__, "incorrect header check" in str(e))
c = http.client.HTTPConnection(at, timeout=60)
for _ in range(2):
    c.request("GET", "/text.txt", headers=plain)
    sock = c.sock
    r = c.getresponse()
    print(r.status, r.read()[:4], c.sock is sock)
c.request("HEAD", "/text.txt")
print(c.getresponse().status)
"#;
    assert_eq!(
        client("python3", &["-c", python, &at]),
        "200 68000 b'\\x8come text' True\nJSONDecodeError\nContentDecodingError True\n\
         200 b'\\x8come' True\n200 b'\\x8come' True\n200\n"
    );
    // The rule fires on each request, and also where there is nothing to invert.
    assert_eq!((rule.matched(), rule.hits()), (6, 6));

    let fixed = ["-sS", "--max-time", "60", "-o", "/dev/null"];
    let curl = |args: &[&str]| client_and_status("curl", &[&fixed[..], args].concat());
    let said = curl(&["--compressed", &url("/text.txt")]);
    assert!(
        said.contains("curl: (61)") && said.contains("incorrect header check"),
        "{said}"
    );
    let sizes = curl(&["-w", "%{http_code} %{size_download}", &url("/text.txt")]);
    assert_eq!(sizes, "200 68000 exit status: 0");

    let node = r#"
const at = 'http://' + process.argv[1];
(async () => {
  const text = await (await fetch(at + '/text.txt', { headers: { 'Accept-Encoding': 'identity' } })).arrayBuffer();
  console.log(text.byteLength, new Uint8Array(text)[0] === (0xff ^ 's'.charCodeAt(0)));
  await (await fetch(at + '/answer.json')).json().catch((e) => console.log(e.name));
  await (await fetch(at + '/text.txt')).text().catch((e) => console.log(e.name, e.cause.code));
})();
"#;
    assert_eq!(
        client("node", &["-e", node, &at]),
        "68000 true\nSyntaxError\nTypeError Z_DATA_ERROR\n"
    );
    assert_eq!(rule.hits(), 11);
    harness.rules.lift(rule.id);

    // The last byte of all, and the one behind it.
    for (offset, same) in [(67_999, "False"), (68_000, "True")] {
        let rule = harness.arm("corrupt", &[("offset", Arg::Int(offset))]);
        let last = r#"
import sys, requests
r = requests.get(f"http://{sys.argv[1]}/text.txt", headers={"Accept-Encoding": "identity"}, timeout=60)
print(len(r.content), r.content == b"some text, often\n" * 4000)
"#;
        assert_eq!(
            client("python3", &["-c", last, &at]),
            format!("68000 {same}\n")
        );
        assert_eq!(rule.hits(), 1);
        harness.rules.lift(rule.id);
    }
    assert_eq!(harness.degradations(), [""; 0]);
}

#[test]
fn a_throttled_reply_is_waited_for_or_given_up() {
    if !installed(&["nginx", "python3", "requests", "curl", "node"]) {
        return;
    }
    let server = nginx("throttle");
    let (_runtime, harness) = proxy(server.addr);
    let at = harness.addr.to_string();
    let url = format!("http://{at}/text.txt");
    let rate = |rate: &str| harness.arm("throttle", &[("rate", Arg::Str(rate.into()))]);

    // 68 000 bytes. A client's time-out is for silence, and there is none.
    let rule = rate("100KB/s");
    let whole = r#"
import sys, time, requests
start = time.monotonic()
r = requests.get(f"http://{sys.argv[1]}/text.txt", headers={"Accept-Encoding": "identity"}, timeout=60)
print(r.text == "some text, often\n" * 4000, time.monotonic() - start >= 0.6)
"#;
    assert_eq!(client("python3", &["-c", whole, &at]), "True True\n");
    let node = r#"
const start = Date.now();
fetch('http://' + process.argv[1] + '/text.txt', { headers: { 'Accept-Encoding': 'identity' } })
  .then((r) => r.text()).then((t) => console.log(t.length, Date.now() - start >= 600));
"#;
    assert_eq!(client("node", &["-e", node, &at]), "68000 true\n");
    assert_eq!((rule.matched(), rule.hits()), (2, 2));
    harness.rules.lift(rule.id);

    // More than a minute's worth: curl's own limit ends it, with what there is by then.
    let rule = rate("1KB/s");
    let said = client_and_status("curl", &["-sS", "-o", "/dev/null", "--max-time", "2", &url]);
    assert!(
        said.contains("curl: (28)") && said.contains("out of 68000 bytes received"),
        "{said}"
    );
    let said = client_and_status(
        "curl",
        &[
            "-sS",
            "-o",
            "/dev/null",
            "--speed-limit",
            "20000",
            "--speed-time",
            "2",
            &url,
        ],
    );
    assert!(
        said.contains("curl: (28)") && said.contains("Less than 20000 bytes/sec"),
        "{said}"
    );
    assert_eq!(rule.hits(), 2);
    harness.rules.lift(rule.id);

    // The head trickles, too: a byte a second is silence for who waits for less.
    let rule = rate("1B/s");
    let silence = r#"
import sys, http.client, requests
at = sys.argv[1]
try:
    requests.get(f"http://{at}/text.txt", timeout=0.5)
except requests.exceptions.RequestException as e:
    print(type(e).__name__)
c = http.client.HTTPConnection(at, timeout=0.5)
c.request("GET", "/text.txt")
try:
    c.getresponse()
except OSError as e:
    print(type(e).__name__)
"#;
    assert_eq!(
        client("python3", &["-c", silence, &at]),
        "ReadTimeout\nTimeoutError\n"
    );
    let node = r#"
fetch('http://' + process.argv[1] + '/text.txt', { signal: AbortSignal.timeout(2000) }).catch((e) => console.log(e.name));
"#;
    assert_eq!(client("node", &["-e", node, &at]), "TimeoutError\n");
    // A client may be gone before the proxy has had its turn.
    let deadline = Instant::now() + PATIENCE;
    while rule.hits() < 3 {
        assert!(Instant::now() < deadline, "{} hits", rule.hits());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(rule.hits(), 3);
    harness.rules.lift(rule.id);
    // The clients that gave up have cost nobody else anything.
    assert_eq!(
        client(
            "curl",
            &["-sS", "-o", "/dev/null", "-w", "%{http_code}", &url]
        ),
        "200"
    );
    assert_eq!(harness.degradations(), [""; 0]);
}
