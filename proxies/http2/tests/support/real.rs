//! Real servers and the programs that drive them.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub use faultbox_engine::testing::clients::run;
use faultbox_engine::testing::{clients, free_addr};

/// How to have what is missing.
const HOW: &str = "apt-get install nghttp2-client nghttp2-server nghttp2-proxy etcd-server etcd-client curl nodejs, and the drivers of xtask/src/clients.rs \
                   in the folder that FAULTBOX_CLIENTS names (cargo xtask test does all of it; FAULTBOX_SKIP_REAL=1 skips)";

/// Should a test that needs these programs be skipped? Says so, loudly. Panics if they are missing and nobody asked for skipping.
pub fn skip(needs: &[&str]) -> bool {
    if std::env::var_os("FAULTBOX_SKIP_REAL").is_some_and(|v| v == "1") {
        eprintln!(
            "SKIPPED, NOT PASSED: FAULTBOX_SKIP_REAL=1, nothing was proved against {needs:?}"
        );
        return true;
    }
    let missing: Vec<&&str> = needs.iter().filter(|need| !there(need)).collect();
    if missing.is_empty() {
        return false;
    }
    let must = ["CI", "FAULTBOX_CLIENTS"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    assert!(!must, "missing: {missing:?}; {HOW}");
    eprintln!("SKIPPED, NOT PASSED: missing: {missing:?}; {HOW}");
    true
}

fn there(need: &str) -> bool {
    match need {
        "grpcio" => {
            clients::folder().join("venv/bin/python").exists() && {
                let mut python = python();
                python.args(["-c", "import grpc, grpc_health, grpc_reflection"]);
                quiet(&mut python)
            }
        }
        "grpc-js" => {
            clients::folder()
                .join("node_modules/@grpc/grpc-js")
                .exists()
                && quiet(Command::new("node").arg("--version"))
        }
        name => quiet(program(name).arg("--version")) || quiet(program(name).arg("version")),
    }
}

fn quiet(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// A program by its name. Debian keeps some servers out of a plain user's PATH.
pub fn program(name: &str) -> Command {
    let aside = Path::new("/usr/sbin").join(name);
    if aside.exists() {
        Command::new(aside)
    } else {
        Command::new(name)
    }
}

/// The interpreter that has grpcio.
pub fn python() -> Command {
    Command::new(clients::folder().join("venv/bin/python"))
}

fn script(name: &str) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(name);
    let mut command = if name.ends_with(".js") {
        let mut node = Command::new("node");
        node.env("NODE_PATH", clients::folder().join("node_modules"));
        node
    } else {
        python()
    };
    command.arg(path);
    command
}

/// A client's own battery.
pub fn battery(name: &str, addr: SocketAddr) -> String {
    run(script(name).arg(addr.port().to_string()).arg("battery"))
}

/// Runs a client's script in this mode, calls `arm` when it says that it is ready, and returns what it printed after that.
pub fn faults(name: &str, mode: &str, addr: SocketAddr, arm: impl FnOnce()) -> String {
    let mut command = script(name);
    clients::faulted(command.arg(addr.port().to_string()).arg(mode), arm)
}

/// A server that ends with the test, whichever way the test ends.
pub struct Server {
    pub addr: SocketAddr,
    pub folder: PathBuf,
    child: Child,
    /// What it is itself a front of.
    _behind: Option<Box<Server>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn scratch(name: &str) -> PathBuf {
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// grpcio's server.
pub fn grpcio(name: &str) -> Server {
    let mut child = script("server.py")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe"))
        .read_line(&mut line)
        .expect("the server says its port");
    let port: u16 = line.trim().parse().expect("a port");
    Server {
        addr: SocketAddr::from(([127, 0, 0, 1], port)),
        folder: scratch(name),
        child,
        _behind: None,
    }
}

fn listening(mut child: Child, addr: SocketAddr, folder: PathBuf) -> Server {
    let deadline = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect(addr).is_err() {
        if let Ok(Some(status)) = child.try_wait() {
            panic!("the server exited with {status}");
        }
        assert!(Instant::now() < deadline, "the server does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Server {
        addr,
        folder,
        child,
        _behind: None,
    }
}

/// nghttpd over a folder with a small page, which pushes its style sheet, and a large file.
pub fn nghttpd(name: &str) -> Server {
    let folder = scratch(name);
    std::fs::write(folder.join("index.html"), "<h1>hello</h1>\n").unwrap();
    std::fs::write(folder.join("style.css"), "h1 { color: red }\n").unwrap();
    let big: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(folder.join("big"), big).unwrap();
    let addr = free_addr();
    let child = program("nghttpd")
        .args([
            "--no-tls",
            "--address=127.0.0.1",
            "--push=/index.html=/style.css",
        ])
        .arg("--trailer=x-trailer: yes")
        .arg(format!("--htdocs={}", folder.display()))
        .arg(addr.port().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("nghttpd starts");
    listening(child, addr, folder)
}

/// nghttpx in front of nghttpd: it grants upgrades to h2c, which nghttpd does not.
pub fn nghttpx(name: &str) -> Server {
    let behind = nghttpd(&format!("{name}-behind"));
    let addr = free_addr();
    let child = program("nghttpx")
        .arg(format!("--frontend=127.0.0.1,{};no-tls", addr.port()))
        .arg(format!(
            "--backend=127.0.0.1,{};;proto=h2",
            behind.addr.port()
        ))
        .args([
            "--workers=1",
            "--errorlog-file=/dev/null",
            "--conf=/dev/null",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("nghttpx starts");
    let mut server = listening(child, addr, scratch(name));
    server._behind = Some(Box::new(behind));
    server
}

/// One member of etcd.
pub fn etcd(name: &str) -> Server {
    let folder = scratch(name);
    let (addr, peers) = (free_addr(), free_addr());
    let (client_url, peer_url) = (format!("http://{addr}"), format!("http://{peers}"));
    let log = std::fs::File::create(folder.join("log")).unwrap();
    let child = program("etcd")
        .arg("--data-dir")
        .arg(folder.join("data"))
        .args([
            "--listen-client-urls",
            &client_url,
            "--advertise-client-urls",
            &client_url,
        ])
        .args([
            "--listen-peer-urls",
            &peer_url,
            "--initial-advertise-peer-urls",
            &peer_url,
        ])
        .args(["--initial-cluster", &format!("default={peer_url}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("etcd starts");
    let server = listening(child, addr, folder);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !quiet(etcdctl(server.addr).args(["endpoint", "health"])) {
        assert!(Instant::now() < deadline, "etcd is not healthy");
        std::thread::sleep(Duration::from_millis(100));
    }
    server
}

/// etcd's client, of API version 3.
pub fn etcdctl(addr: SocketAddr) -> Command {
    let mut command = program("etcdctl");
    command
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints=http://{addr}"))
        .arg("--command-timeout=30s");
    command
}
