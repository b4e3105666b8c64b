//! A real server behind the proxy, Redis, and real clients in front: Python's sockets, which show each byte and each error by its name,
//! and redis-cli, which says what a user would read.
//!
//! Needs redis-server, redis-cli and python3. A missing one fails the test and names the package; FAULTBOX_SKIP_REAL=1 skips instead,
//! loudly.

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use faultbox_contract::Arg;
use faultbox_engine::testing::{Harness, PATIENCE, clients, eventually, free_addr};

const PACKAGES: &[(&str, &str)] = &[
    ("redis-server", "redis-server"),
    ("redis-cli", "redis-tools"),
    ("python3", "python3"),
];

/// Is everything there? Panics, with the packages to install, unless skipping was asked for.
fn installed() -> bool {
    let works = |program: &str| {
        let mut command = Command::new(program);
        command.arg("--version");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|s| s.success())
    };
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(program, _)| !works(program))
        .map(|(_, package)| *package)
        .collect();
    clients::complete(&missing)
}

/// Redis, which ends with the test.
struct Server {
    child: Child,
    addr: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start() -> Server {
        let (addr, dir) = (free_addr(), tempfile::tempdir().unwrap());
        let child = Command::new("redis-server")
            .args(["--port", &addr.port().to_string(), "--bind", "127.0.0.1"])
            .args(["--save", ""])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let server = Server {
            child,
            addr,
            _dir: dir,
        };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(addr).is_err() {
            assert!(Instant::now() < deadline, "redis-server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }
}

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

/// A server with a proxy in front, or nothing to do.
fn rig() -> Option<(Server, Harness)> {
    if !installed() {
        return None;
    }
    let server = Server::start();
    let proxy = Harness::start(faultbox_tcp::protocol(), server.addr);
    Some((server, proxy))
}

/// What a script in Python prints that has `s`, a socket connected to `addr`, `ask`, which sends a line and reads a reply of so many
/// bytes, and `name`, which runs something and names what it raises.
async fn python(addr: SocketAddr, script: &str) -> String {
    const HEAD: &str = r#"
import socket, sys, time
addr = ("127.0.0.1", int(sys.argv[1]))
s = socket.create_connection(addr, 60)
def read(n):
    got = b""
    while len(got) < n:
        more = s.recv(n - len(got))
        if not more:
            return got + b"<end>"
        got += more
    return got
def ask(line, n):
    s.sendall(line + b"\r\n")
    return read(n)
def name(run):
    try:
        return run()
    except OSError as e:
        return type(e).__name__
"#;
    // coreutils' timeout: a client that hangs is a failure with a name, not a hung test.
    let mut command = Command::new("timeout");
    command.args(["120", "python3", "-c", &format!("{HEAD}{script}")]);
    command.arg(addr.port().to_string());
    tokio::task::spawn_blocking(move || clients::run(&mut command))
        .await
        .unwrap()
}

/// What redis-cli says, in whichever way, to a command.
async fn cli(addr: SocketAddr, command: &[&str]) -> String {
    let mut cli = Command::new("timeout");
    cli.args(["120", "redis-cli", "-p", &addr.port().to_string()]);
    cli.args(command).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || cli.output()).await;
    let output = output.unwrap().expect("redis-cli starts");
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).trim_end().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_live_as_ever() {
    let Some((server, proxy)) = rig() else { return };
    const LIFE: &str = r#"
print(ask(b"PING", 7))
s.sendall(b"".join(b"SET k%d %s\r\n" % (i, b"v" * 1000) for i in range(500)))
print(read(5 * 500) == b"+OK\r\n" * 500)
s.sendall(b"GET k7\r\n" * 500)
print(len(read(1009 * 500)))
s.shutdown(socket.SHUT_WR)
print(s.recv(1))
"#;
    let direct = python(server.addr, LIFE).await;
    assert_eq!(direct, "b'+PONG\\r\\n'\nTrue\n504500\nb''\n");
    assert_eq!(python(proxy.addr, LIFE).await, direct);
    // Rules that select nothing change nothing.
    proxy.arm("reset", &[("prefix", text("AUTH"))]);
    proxy.arm("drop", &[("nth", Arg::Int(1000))]);
    assert_eq!(python(proxy.addr, LIFE).await, direct);
    assert_eq!(cli(proxy.addr, &["PING"]).await, "PONG");
    assert_eq!(proxy.fired(), 0);
}

/// The request and the reply are a batch each, and each is held.
#[tokio::test(flavor = "multi_thread")]
async fn a_delay_is_waited_for_and_the_clients_own_deadline_holds() {
    let Some((_server, proxy)) = rig() else {
        return;
    };
    let rule = proxy.arm(
        "delay",
        &[("delay", text("300ms")), ("direction", text("both"))],
    );
    let slow = r#"
start = time.monotonic()
print(ask(b"PING", 7), time.monotonic() - start >= 0.6)
"#;
    assert_eq!(python(proxy.addr, slow).await, "b'+PONG\\r\\n' True\n");
    assert_eq!(rule.hits(), 2);
    proxy.rules.lift(rule.id);

    let rule = proxy.arm("delay", &[("delay", text("1h"))]);
    let deadline = r#"
s.settimeout(0.3)
print(name(lambda: ask(b"PING", 7)))
"#;
    assert_eq!(python(proxy.addr, deadline).await, "TimeoutError\n");
    eventually("it has fired", || rule.hits() == 1).await;
    proxy.rules.lift(rule.id);
    assert_eq!(cli(proxy.addr, &["PING"]).await, "PONG");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_reply_trickles_and_is_whole() {
    let Some((_server, proxy)) = rig() else {
        return;
    };
    let rule = proxy.arm("throttle", &[("rate", text("50KB/s"))]);
    let slow = r#"
ask(b"SETRANGE big 19999 x", 8)
start = time.monotonic()
reply = ask(b"GET big", 8 + 20000 + 2)
print(len(reply), reply[-3:], time.monotonic() - start >= 0.3)
"#;
    assert_eq!(python(proxy.addr, slow).await, "20010 b'x\\r\\n' True\n");
    // Once per connection.
    assert_eq!((rule.matched(), rule.hits()), (1, 1));
    proxy.rules.lift(rule.id);

    // It would take most of a day.
    let rule = proxy.arm("throttle", &[("rate", text("1B/s"))]);
    let gives_up = r#"
s.settimeout(0.3)
print(name(lambda: ask(b"GET big", 20010)))
"#;
    assert_eq!(python(proxy.addr, gives_up).await, "TimeoutError\n");
    eventually("it has fired", || rule.hits() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_is_the_clients_own_error() {
    let Some((_server, proxy)) = rig() else {
        return;
    };
    let rule = proxy.arm("reset", &[("prefix", text("GET"))]);
    let reset = r#"
print(name(lambda: ask(b"GET k", 5)))
s = socket.create_connection(addr, 60)
print(ask(b"PING", 7))
print(name(lambda: ask(b"GET k", 5)))
"#;
    // The last connection does not begin with GET.
    assert_eq!(
        python(proxy.addr, reset).await,
        "ConnectionResetError\nb'+PONG\\r\\n'\nb'$-1\\r\\n'\n"
    );
    assert_eq!((rule.matched(), rule.hits()), (1, 1));
    proxy.rules.lift(rule.id);
    let rule = proxy.arm("reset", &[("times", Arg::Int(1))]);
    assert_eq!(
        cli(proxy.addr, &["PING"]).await,
        "Error: Connection reset by peer"
    );
    assert_eq!(cli(proxy.addr, &["PING"]).await, "PONG");
    assert_eq!(rule.hits(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_black_hole_a_client_waits_in_vain() {
    let Some((server, proxy)) = rig() else {
        return;
    };
    for (direction, done) in [("up", ""), ("down", "1"), ("both", "")] {
        let rule = proxy.arm("drop", &[("direction", text(direction))]);
        // The connection itself is made, and nobody ends it.
        let lost = r#"
s.settimeout(0.5)
print(name(lambda: ask(b"INCR DIRECTION", 4)), s.getpeername() == addr)
"#;
        let lost = lost.replace("DIRECTION", direction);
        assert_eq!(python(proxy.addr, &lost).await, "TimeoutError True\n");
        eventually("it has fired", || rule.hits() == 1).await;
        assert_eq!(rule.matched(), 1, "{direction}");
        // What the hole in the reply's way swallows, the server has done.
        let done_by_now = cli(server.addr, &["GET", direction]).await;
        assert_eq!(done_by_now, done, "{direction}");
        proxy.rules.lift(rule.id);
        // As when a route comes back: what the client said before it went is delivered.
        let deadline = Instant::now() + PATIENCE;
        while cli(server.addr, &["GET", direction]).await != "1" {
            assert!(Instant::now() < deadline, "{direction}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_black_hole_holds_arrives_when_it_is_lifted() {
    let Some((_server, proxy)) = rig() else {
        return;
    };
    let rule = proxy.arm("drop", &[]);
    let addr = proxy.addr;
    let waits = tokio::spawn(async move { python(addr, "print(ask(b'PING', 7))").await });
    eventually("the rule fires", || rule.hits() == 1).await;
    assert!(!waits.is_finished());
    proxy.rules.lift(rule.id);
    assert_eq!(waits.await.unwrap(), "b'+PONG\\r\\n'\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_reply_ends_early_and_in_good_order() {
    let Some((_server, proxy)) = rig() else {
        return;
    };
    let rule = proxy.arm("truncate", &[("bytes", Arg::Int(3))]);
    let cut = r#"
print(ask(b"PING", 7))
print(name(lambda: s.recv(1)))
"#;
    assert_eq!(python(proxy.addr, cut).await, "b'+PO<end>'\nb''\n");
    assert_eq!(
        cli(proxy.addr, &["PING"]).await,
        "Error: Server closed the connection"
    );
    assert_eq!(rule.hits(), 2);
    proxy.rules.lift(rule.id);
    let rule = proxy.arm("truncate", &[("bytes", Arg::Int(7))]);
    assert_eq!(python(proxy.addr, cut).await, "b'+PONG\\r\\n'\nb''\n");
    assert_eq!(rule.hits(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_byte_of_a_corrupted_stream_is_inverted() {
    let Some((_server, proxy)) = rig() else {
        return;
    };
    let rule = proxy.arm("corrupt", &[("offset", Arg::Int(8))]);
    let twice = r#"
print(ask(b"PING", 7), ask(b"PING", 7), ask(b"PING", 7))
"#;
    assert_eq!(
        python(proxy.addr, twice).await,
        "b'+PONG\\r\\n' b'+\\xafONG\\r\\n' b'+PONG\\r\\n'\n"
    );
    assert_eq!(rule.hits(), 1);
    proxy.rules.lift(rule.id);
    let rule = proxy.arm("corrupt", &[]);
    assert_eq!(
        cli(proxy.addr, &["PING"]).await,
        "Error: Protocol error, got \"\\xd4\" as reply type byte"
    );
    assert_eq!(rule.hits(), 1);
    proxy.rules.lift(rule.id);
    // The other way it is the server that complains.
    let rule = proxy.arm(
        "corrupt",
        &[("offset", Arg::Int(8)), ("direction", text("up"))],
    );
    // *1 $4 PING, in RESP: the eighth byte is the P.
    let said = cli(proxy.addr, &["PING"]).await;
    assert!(said.contains("ERR unknown command"), "{said}");
    assert_eq!(rule.hits(), 1);
}
