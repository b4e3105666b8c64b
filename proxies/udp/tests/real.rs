//! Clients in other languages against a server in another language, directly and through the proxy: what they print must be the same.
//!
//! Needs python3 and node. A missing one fails the test and names the package; FAULTBOX_SKIP_REAL=1 skips instead, loudly.

use std::io::BufRead;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use faultbox_contract::Arg;
use faultbox_engine::testing::{Harness, clients, eventually, free_addr};

/// Is everything that a test needs installed? Panics, with the packages to install, unless skipping was asked for.
fn installed(needs: &[&str]) -> bool {
    let works = |need: &&str| {
        let mut command = Command::new(need);
        command.arg("--version");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|s| s.success())
    };
    let missing: Vec<&str> = needs
        .iter()
        .copied()
        .filter(|need| !works(need))
        .map(|need| if need == "node" { "nodejs" } else { need })
        .collect();
    clients::complete(&missing)
}

/// A server in Python that sends everything back, and "twice" twice.
struct Server {
    child: Child,
    addr: SocketAddr,
}

const SERVER: &str = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1], flush=True)
while True:
    data, peer = s.recvfrom(65536)
    for _ in range(2 if data == b"twice" else 1):
        s.sendto(data, peer)
"#;

impl Server {
    fn start() -> Server {
        let mut child = Command::new("python3")
            .args(["-c", SERVER])
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .expect("it says its port");
        let port: u16 = line.trim().parse().expect("a port");
        Server {
            child,
            addr: ([127, 0, 0, 1], port).into(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const PYTHON: &str = r#"
import select, socket, sys
addr = ("127.0.0.1", int(sys.argv[1]))
wait = float(sys.argv[2])

def talk(s, words, send):
    for word in words:
        send(word)
        try:
            print(word[:20], s.recv(65536) == word)
        except OSError as e:
            print(word[:20], type(e).__name__)

sizes = [b"", b"x", b"y" * 1472, b"z" * 9000, b"w" * 65507]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(wait)
talk(s, sizes, lambda word: s.sendto(word, addr))
c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
c.settimeout(wait)
c.connect(addr)
talk(c, sizes, c.send)
c.send(b"twice")
for _ in range(2):
    try:
        print(c.recv(100))
    except OSError as e:
        print(type(e).__name__)
many = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(50)]
for i, m in enumerate(many):
    m.settimeout(wait)
    m.sendto(b"%d" % i, addr)
heard = 0
for i, m in enumerate(many):
    try:
        data, peer = m.recvfrom(100)
        heard += data == b"%d" % i and peer == addr
    except OSError:
        pass
print("each client its own reply:", heard)
try:
    c.send(b"w" * 65508)
except OSError as e:
    print(e.strerror)
"#;

const NODE: &str = r#"
const dgram = require('dgram');
const port = Number(process.argv[1]), wait = 1000 * Number(process.argv[2]);
const once = (s, send) => new Promise(done => {
    const timer = setTimeout(() => { s.removeAllListeners(); done('timeout'); }, wait);
    s.once('message', (m, from) => { clearTimeout(timer); s.removeAllListeners(); done(`${m.length} bytes from our peer: ${from.port === port}`); });
    s.once('error', e => { clearTimeout(timer); s.removeAllListeners(); done(e.code); });
    send();
});
(async () => {
    const s = dgram.createSocket('udp4');
    for (const n of [0, 1, 1472, 9000, 65507])
        console.log(n, await once(s, () => s.send(Buffer.alloc(n, 'a'), port, '127.0.0.1')));
    s.close();
    const c = dgram.createSocket('udp4');
    await new Promise(done => c.connect(port, '127.0.0.1', done));
    console.log('connected', await once(c, () => c.send('hello')));
    c.close();
})();
"#;

async fn run(program: &str, args: &[&str], addr: SocketAddr, wait: &str) -> String {
    let mut command = Command::new(program);
    command.args(args).arg(addr.port().to_string()).arg(wait);
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .expect("the client starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{errors}");
    String::from_utf8_lossy(&output.stdout)
        .replace(&addr.port().to_string(), "PORT")
        .to_owned()
}

async fn python(addr: SocketAddr, wait: &str) -> String {
    run("python3", &["-c", PYTHON], addr, wait).await
}

async fn node(addr: SocketAddr, wait: &str) -> String {
    run("node", &["-e", NODE], addr, wait).await
}

const GENEROUS: &str = "30";
/// For clients that wait in vain, too: what does come must come within it.
const SHORT: &str = "5";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_the_same_as_without_the_proxy() {
    if !installed(&["python3", "node"]) {
        return;
    }
    let server = Server::start();
    let proxy = Harness::start(faultbox_udp::protocol(), server.addr);
    // A rule that never matches makes the proxy look at everything.
    for armed in [false, true] {
        if armed {
            proxy.arm("drop", &[("prefix", Arg::Str("never".into()))]);
        }
        let direct = python(server.addr, GENEROUS).await;
        assert!(direct.contains("each client its own reply: 50"), "{direct}");
        assert_eq!(python(proxy.addr, GENEROUS).await, direct);
        let direct = node(server.addr, GENEROUS).await;
        assert!(direct.contains("65507 bytes"), "{direct}");
        assert_eq!(node(proxy.addr, GENEROUS).await, direct);
    }
    assert_eq!(proxy.events.all().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_loss_as_time_outs() {
    if !installed(&["python3", "node"]) {
        return;
    }
    let server = Server::start();
    let proxy = Harness::start(faultbox_udp::protocol(), server.addr);
    proxy.arm("drop", &[("prefix", Arg::Str("{y,twi,aaaa}".into()))]);
    let (by_python, by_node) = tokio::join!(python(proxy.addr, SHORT), node(proxy.addr, SHORT));
    // An unconnected and a connected socket, one datagram of the five each, and both of "twice".
    let lost = by_python.matches("TimeoutError").count();
    assert_eq!(lost, 4, "{by_python}");
    assert_eq!(by_node.matches("timeout").count(), 3, "{by_node}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_a_dead_server_as_without_the_proxy() {
    if !installed(&["python3", "node"]) {
        return;
    }
    let addr = free_addr();
    let proxy = Harness::start(faultbox_udp::protocol(), addr);
    const ASK: &str = r#"
import socket, sys
c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
c.settimeout(float(sys.argv[2]))
c.connect(("127.0.0.1", int(sys.argv[1])))
c.send(b"x")
try:
    print(c.recv(100))
except OSError as e:
    print(type(e).__name__)
"#;
    let direct = run("python3", &["-c", ASK], addr, GENEROUS).await;
    assert_eq!(direct, "ConnectionRefusedError\n");
    // Passing it on takes a raw socket, which only CAP_NET_RAW (13) gives.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let caps = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let may = u64::from_str_radix(caps.unwrap().trim(), 16).unwrap() >> 13 & 1 == 1;
    let wait = if may { GENEROUS } else { SHORT };
    let seen = run("python3", &["-c", ASK], proxy.addr, wait).await;
    assert_eq!(seen, if may { direct } else { "TimeoutError\n".into() });
    eventually("it is recorded either way", || {
        !proxy.events.of_kind("proxy_dial_failed").is_empty()
    })
    .await;
}

/// What Python's socket makes of datagrams that do not come as they were sent: each line is a question and what was heard.
async fn under(proxy: &Harness, script: &'static str) -> String {
    const HEAD: &str = r#"
import socket, sys, time
addr = ("127.0.0.1", int(sys.argv[1]))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(float(sys.argv[2]))
s.connect(addr)
def hear():
    try:
        return s.recv(65536)
    except OSError as e:
        return type(e).__name__
"#;
    let script = format!("{HEAD}{script}");
    run("python3", &["-c", &script], proxy.addr, GENEROUS).await
}

fn rig() -> Option<(Server, Harness)> {
    if !installed(&["python3"]) {
        return None;
    }
    let server = Server::start();
    let proxy = Harness::start(faultbox_udp::protocol(), server.addr);
    Some((server, proxy))
}

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_datagram_is_overtaken_and_a_client_may_give_up() {
    let Some((_server, proxy)) = rig() else {
        return;
    };
    let rule = proxy.arm(
        "delay",
        &[("prefix", text("slow")), ("delay", text("300ms"))],
    );
    let seen = under(
        &proxy,
        r#"
start = time.monotonic()
s.send(b"slow")
s.send(b"quick")
print(hear(), hear(), time.monotonic() - start >= 0.3)
"#,
    )
    .await;
    assert_eq!(seen, "b'quick' b'slow' True\n");
    assert_eq!(rule.hits(), 1);
    proxy.rules.lift(rule.id);

    let rule = proxy.arm("delay", &[("delay", text("1h")), ("times", Arg::Int(1))]);
    let seen = under(
        &proxy,
        r#"
s.settimeout(0.3)
s.send(b"once")
print(hear())
s.settimeout(30)
s.send(b"again")
print(hear())
"#,
    )
    .await;
    assert_eq!(seen, "TimeoutError\nb'again'\n");
    assert_eq!((rule.matched(), rule.hits()), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_is_heard_as_often_as_it_arrives() {
    let Some((_server, proxy)) = rig() else {
        return;
    };
    let ask = r#"
for word in [b"a", b"b", b"end"]:
    s.send(word)
heard = []
while not heard or heard[-1] != b"end":
    heard.append(hear())
print(b" ".join(heard))
"#;
    // A request that arrives twice is answered twice; a reply is one to begin with.
    for (direction, copies) in [("up", 2), ("down", 3)] {
        let rule = proxy.arm(
            "duplicate",
            &[
                ("prefix", text("b")),
                ("direction", text(direction)),
                ("copies", Arg::Int(copies)),
            ],
        );
        let b = " b".repeat(1 + copies as usize);
        assert_eq!(under(&proxy, ask).await, format!("b'a{b} end'\n"));
        assert_eq!(rule.hits(), 1, "{direction}");
        proxy.rules.lift(rule.id);
    }
    assert_eq!(under(&proxy, ask).await, "b'a b end'\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reordered_datagram_is_heard_behind_others_or_late() {
    let Some((_server, proxy)) = rig() else {
        return;
    };
    let ask = r#"
for word in [b"1", b"2", b"3", b"4"]:
    s.send(word)
print(b" ".join(hear() for _ in range(4)))
"#;
    for (direction, past, order) in [
        ("up", 1, "2 1 3 4"),
        ("up", 2, "2 3 1 4"),
        ("up", 3, "2 3 4 1"),
        ("down", 2, "2 3 1 4"),
    ] {
        let rule = proxy.arm(
            "reorder",
            &[
                ("nth", Arg::Int(1)),
                ("past", Arg::Int(past)),
                ("within", text("1h")),
                ("direction", text(direction)),
            ],
        );
        assert_eq!(under(&proxy, ask).await, format!("b'{order}'\n"));
        assert_eq!((rule.matched(), rule.hits()), (4, 1));
        proxy.rules.lift(rule.id);
    }
    let rule = proxy.arm("reorder", &[("within", text("300ms"))]);
    let seen = under(
        &proxy,
        r#"
start = time.monotonic()
s.send(b"alone")
print(hear(), time.monotonic() - start >= 0.3)
"#,
    )
    .await;
    assert_eq!(seen, "b'alone' True\n");
    assert_eq!(rule.hits(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corrupted_and_truncated_datagrams_are_heard_so() {
    let Some((_server, proxy)) = rig() else {
        return;
    };
    let ask = r#"
for word in [b"abcd", b"ab", b""]:
    s.send(word)
    print(hear())
"#;
    // The checksum fits, or the kernel would keep it back.
    let rule = proxy.arm("corrupt", &[("offset", Arg::Int(2))]);
    assert_eq!(under(&proxy, ask).await, "b'ab\\x9cd'\nb'ab'\nb''\n");
    assert_eq!(rule.hits(), 3);
    proxy.rules.lift(rule.id);
    let rule = proxy.arm(
        "truncate",
        &[("bytes", Arg::Int(3)), ("times", Arg::Int(1))],
    );
    assert_eq!(under(&proxy, ask).await, "b'abc'\nb'ab'\nb''\n");
    assert_eq!(rule.hits(), 1);
    proxy.rules.lift(rule.id);
    // An empty datagram is one, too.
    let rule = proxy.arm(
        "truncate",
        &[("bytes", Arg::Int(0)), ("direction", text("up"))],
    );
    assert_eq!(under(&proxy, ask).await, "b''\nb''\nb''\n");
    assert_eq!(rule.hits(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_throttled_client_waits_for_each_datagram() {
    let Some((_server, proxy)) = rig() else {
        return;
    };
    let rule = proxy.arm("throttle", &[("rate", text("10KB/s"))]);
    let seen = under(
        &proxy,
        r#"
start = time.monotonic()
for _ in range(3):
    s.send(b"x" * 1000)
print([len(hear()) for _ in range(3)], time.monotonic() - start >= 0.3)
"#,
    )
    .await;
    assert_eq!(seen, "[1000, 1000, 1000] True\n");
    // Once per client.
    assert_eq!((rule.matched(), rule.hits()), (1, 1));
}
