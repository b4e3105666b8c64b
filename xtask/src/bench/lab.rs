//! What is measured: the same services natively, under strace, and held by `faultbox test` in several states. All of them are alive
//! at the same time, so that blocks of measurements can take turns.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::peers::{Peer, kinds};
use super::usage;
use crate::json::Json;
use crate::{Error, Result};
use crate::{run, specs};

/// Longer than anything here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program that serves, relays and loads.
pub fn tool() -> Command {
    Command::new(tool_path())
}

/// Where it is.
pub fn tool_path() -> String {
    let path = specs::dist("faultbox-bench");
    path.display().to_string()
}

/// Everything that is alive.
pub struct Lab {
    /// Without anybody watching.
    pub native_server: Native,
    pub native_postgres: Native,
    /// Under strace, which injects a fault that never comes.
    pub strace_server: Native,
    pub strace_postgres: Native,
    /// Under libfiu, which injects a fault that never comes.
    pub fiu_server: Native,
    /// Under the barest supervisor of trapped calls.
    pub notified_server: Native,
    /// `faultbox test`, nothing armed.
    pub quiet: Held,
    /// `faultbox test`, faults on calls armed whose path never matches.
    pub calls: Held,
    /// `faultbox test`, a fault on calls armed whose counter never gets there.
    pub counted: Held,
    /// `faultbox test`, rules armed that the load does not match.
    pub rules: Held,
    /// Other ways to `quiet`'s servers.
    pub ways: Vec<Ways>,
}

/// What else stands in front of one of the servers.
pub struct Ways {
    pub to: &'static Server,
    pub relay: Relay,
    pub peers: Vec<Peer>,
}

/// A server that proxies are measured with.
pub struct Server {
    /// As the table calls it.
    pub name: &'static str,
    /// What it speaks.
    pub protocol: &'static str,
    /// The spec tells its addresses as `BENCH_<variable>` and `BENCH_<variable>_DIRECT`.
    pub variable: &'static str,
    /// The load: what `faultbox-bench` is told before the address, and what after it.
    pub load: (&'static [&'static str], &'static [&'static str]),
}

const fn canned(
    name: &'static str,
    protocol: &'static str,
    variable: &'static str,
    load: &'static [&'static str],
) -> Server {
    Server {
        name,
        protocol,
        variable,
        load: (load, &[]),
    }
}

/// GET over keep-alive connections, SELECT 1 as a simple query, GET of a small value; then exchanges that are known beforehand.
pub const SERVERS: &[Server] = &[
    Server {
        name: "http",
        protocol: "http",
        variable: "HTTP",
        load: (&["http"], &["/"]),
    },
    canned("postgres", "postgres", "PG", &["postgres"]),
    canned("redis", "redis", "REDIS", &["redis"]),
    canned("http2", "http2", "HTTP2", &["canned", "http2"]),
    canned("grpc", "grpc", "GRPC", &["canned", "grpc"]),
    canned("mysql", "mysql", "MYSQL", &["canned", "mysql"]),
    canned(
        "kafka, produce",
        "kafka",
        "PRODUCE",
        &["canned", "kafka-produce"],
    ),
    canned("kafka, fetch", "kafka", "FETCH", &["canned", "kafka-fetch"]),
];

impl Lab {
    /// Starts it all.
    pub fn open() -> Result<Lab> {
        let quiet = Held::start("quiet")?;
        let ways = |to: &'static Server| -> Result<Ways> {
            let upstream = quiet.addr(&format!("BENCH_{}_DIRECT", to.variable))?;
            let peer = |kind: &_| Peer::start(*kind, to, upstream);
            Ok(Ways {
                to,
                relay: Relay::start(upstream)?,
                peers: kinds(to.protocol).iter().map(peer).collect::<Result<_>>()?,
            })
        };
        Ok(Lab {
            native_server: Native::server("native", &[])?,
            native_postgres: Native::postgres("native", &[])?,
            strace_server: Native::server("strace", &STRACE)?,
            strace_postgres: Native::postgres("strace", &STRACE)?,
            fiu_server: Native::server("fiu", &FIU)?,
            notified_server: Native::server("notified", &[&tool_path(), "notified", "--"])?,
            ways: SERVERS.iter().map(ways).collect::<Result<_>>()?,
            calls: Held::start("calls")?,
            counted: Held::start("counted")?,
            rules: Held::start("rules")?,
            quiet,
        })
    }

    /// Ends it all; the reports of the runs, in the order of the fields.
    pub fn close(self) -> Result<[Json; 4]> {
        Ok([
            self.quiet.finish()?,
            self.calls.finish()?,
            self.counted.finish()?,
            self.rules.finish()?,
        ])
    }
}

/// Stops at every call that moves bytes out, as the fault does, and injects what never comes: the loads make fewer calls than
/// `when=` waits for, which is as far as strace counts.
const STRACE: [&str; 8] = [
    "strace",
    "-f",
    "-qq",
    "-o",
    "/dev/null",
    "--trace=write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg",
    "-e",
    "inject=write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg:error=EIO:when=65535",
];

/// Never injects, either.
const FIU: [&str; 4] = [
    "fiu-run",
    "-x",
    "-c",
    "enable_random name=posix/io/rw/pwrite,probability=0",
];

/// A program that may have as many descriptors as a thousand connections take: a relay has six for each. The shell becomes the program.
pub fn roomy(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"ulimit -n 16384 2>/dev/null; exec "$0" "$@""#])
        .arg(program);
    command
}

/// A process that ends with its owner.
pub struct Running(Child);

impl Running {
    /// Its id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Has it ended, or does it by then?
    fn ended_by(&mut self, deadline: Instant) -> bool {
        while Instant::now() < deadline {
            if self.0.try_wait().is_ok_and(|ended| ended.is_some()) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended_by(Instant::now() + Duration::from_millis(1)) {
            return;
        }
        // SIGINT first: PostgreSQL then stops fast and gives back its shared memory, and a run cleans up.
        run::quietly("kill", &["-INT", &self.0.id().to_string()]);
        if !self.ended_by(Instant::now() + Duration::from_secs(10)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Starts a process.
pub fn start(command: &mut Command, output: Stdio) -> Result<Running> {
    run::say(command);
    command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(Stdio::inherit())
        .spawn()
        .map(Running)
        .map_err(|e| run::cannot_run(command, &e))
}

/// A server, a bare relay in front of it.
pub struct Relay {
    pub addr: SocketAddr,
    process: Running,
}

impl Relay {
    /// Whose CPU time and memory are the relay's.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn start(upstream: SocketAddr) -> Result<Relay> {
        let addr = free()?;
        let args = ["relay", &addr.to_string(), &upstream.to_string()];
        let process = start(roomy(tool_path()).args(args), Stdio::null())?;
        await_listener(addr)?;
        Ok(Relay { addr, process })
    }
}

/// A service that is started without `faultbox test`, perhaps under a tracer.
pub struct Native {
    pub addr: SocketAddr,
    kind: Kind,
    scratch: PathBuf,
    process: Running,
}

enum Kind {
    Server,
    Node,
    Redis,
    Postgres,
}

impl Native {
    /// The HTTP server that measures from the inside, too.
    pub fn server(name: &str, under: &[&str]) -> Result<Native> {
        let tool = tool_path();
        Native::start(
            Kind::Server,
            name,
            under,
            Path::new(&tool),
            |command, addr, _| {
                command.args(["lab", name]).arg(super::dir()).env(
                    format!("FAULTBOX_{}_HTTP_ADDR", name.to_uppercase()),
                    addr.to_string(),
                );
            },
        )
    }

    /// An HTTP server in JavaScript.
    pub fn node(name: &str, under: &[&str]) -> Result<Native> {
        let script = run::root().join("xtask/bench/specs/http.js");
        Native::start(
            Kind::Node,
            name,
            under,
            Path::new("node"),
            |command, addr, _| {
                command.arg(script).arg(addr.port().to_string());
            },
        )
    }

    /// PostgreSQL, as the example has it.
    pub fn postgres(name: &str, under: &[&str]) -> Result<Native> {
        let script = run::root().join("specs/examples/orders/postgres.sh");
        let native = Native::start(
            Kind::Postgres,
            name,
            under,
            &script,
            |command, addr, scratch| {
                command
                    .env("FAULTBOX_DB_PG_PORT", addr.port().to_string())
                    .env("TMPDIR", scratch)
                    .stderr(Stdio::null());
            },
        )?;
        // It listens before it takes sessions.
        let port = native.addr.port().to_string();
        wait_until(&format!("PostgreSQL is ready on port {port}"), || {
            run::quietly("pg_isready", &["-h", "127.0.0.1", "-p", &port])
        })?;
        Ok(native)
    }

    /// Redis, without anything on disk.
    pub fn redis(name: &str, under: &[&str]) -> Result<Native> {
        let program = Path::new("redis-server");
        Native::start(
            Kind::Redis,
            name,
            under,
            program,
            |command, addr, scratch| {
                command
                    .args(["--bind", "127.0.0.1", "--save", "", "--port"])
                    .arg(addr.port().to_string())
                    .arg("--dir")
                    .arg(scratch);
            },
        )
    }

    /// Its process's id, if it is under nothing.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Starts it, `under` the command that these words begin.
    fn start(
        kind: Kind,
        name: &str,
        under: &[&str],
        program: &Path,
        tell: impl FnOnce(&mut Command, SocketAddr, &Path),
    ) -> Result<Native> {
        let mut command = match under {
            [] => Command::new(program),
            [tracer, args @ ..] => {
                let mut command = Command::new(tracer);
                command.args(args).arg(program);
                command
            }
        };
        let addr = free()?;
        let scratch = format!(
            "faultbox-bench-{}-{name}-{}",
            std::process::id(),
            addr.port()
        );
        let scratch = std::env::temp_dir().join(scratch);
        std::fs::create_dir_all(&scratch)
            .map_err(|e| Error::new(format!("{}: {e}", scratch.display())))?;
        tell(&mut command, addr, &scratch);
        let process = start(&mut command, Stdio::null())?;
        let native = Native {
            addr,
            kind,
            scratch,
            process,
        };
        await_listener(addr)?;
        Ok(native)
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // Not by the child's id: that may be a tracer's, which blocks signals, and whose end would leave the server running.
        let port = self.addr.port();
        match self.kind {
            Kind::Server | Kind::Node => drop(get(self.addr, "/quit")),
            Kind::Redis => {
                run::quietly(
                    "redis-cli",
                    &["-p", &port.to_string(), "shutdown", "nosave"],
                );
            }
            Kind::Postgres => {
                // Its first line is the server's process id.
                let pidfile = format!("postgres-{port}/data/postmaster.pid");
                let told = std::fs::read_to_string(self.scratch.join(pidfile)).unwrap_or_default();
                if let Some(pid) = told.lines().next() {
                    run::quietly("kill", &["-INT", pid]);
                }
            }
        }
        self.process
            .ended_by(Instant::now() + Duration::from_secs(10));
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

/// A test of `specs/hold.star` that waits in its scenario.
pub struct Held {
    name: &'static str,
    process: Running,
    known: Json,
    report: PathBuf,
}

impl Held {
    fn start(name: &'static str) -> Result<Held> {
        let note = super::dir().join(format!("{name}.note"));
        let report = super::dir().join(format!("{name}.json"));
        let _ = std::fs::remove_file(&note);
        let output =
            File::create(&report).map_err(|e| Error::new(format!("{}: {e}", report.display())))?;
        let mut command = roomy(specs::dist("faultbox"));
        command.current_dir(run::root()).args([
            "test",
            "xtask/bench/specs/hold.star",
            "--test",
            name,
            "--network",
            "host",
            "--format",
            "json",
        ]);
        let mut process = start(&mut command, output.into())?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(known) = std::fs::read_to_string(&note)
                .ok()
                .and_then(|text| Json::parse(&text))
            {
                return Ok(Held {
                    name,
                    process,
                    known,
                    report,
                });
            }
            if Instant::now() > deadline
                || process.ended_by(Instant::now() + Duration::from_millis(20))
            {
                return Err(Error::new(format!(
                    "`{}` did not get there; see {}",
                    run::show(&command),
                    report.display()
                )));
            }
        }
    }

    /// The run and its worker, in which the proxies are.
    pub fn pids(&self) -> Vec<u32> {
        usage::family(self.process.pid())
    }

    /// Where something listens, by the name of the variable that tells it to the services.
    pub fn addr(&self, variable: &str) -> Result<SocketAddr> {
        self.known
            .get(variable)
            .and_then(Json::text)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Error::new(format!("`{}` did not tell {variable}", self.name)))
    }

    /// Lets the test go on to its end, and reads its report.
    fn finish(mut self) -> Result<Json> {
        // The test that this lets go may stop the service before it has answered; whether it did let go shows below.
        let _ = get(self.addr("FAULTBOX_CTL_HTTP_ADDR")?, "/release");
        self.process.ended_by(Instant::now() + PATIENCE);
        let text = std::fs::read_to_string(&self.report).unwrap_or_default();
        passed(&text).map_err(|why| Error::new(format!("{}: {why}", self.report.display())))
    }
}

/// A report in which everything passed.
pub fn passed(text: &str) -> std::result::Result<Json, String> {
    let report = Json::parse(text).ok_or("there is no report")?;
    for test in report.get("tests").map(Json::list).unwrap_or_default() {
        if test.get("outcome").and_then(Json::text) != Some("passed") {
            return Err(format!(
                "{:?}: {:?}: {:?}",
                test.get("name"),
                test.get("outcome"),
                test.get("reason")
            ));
        }
    }
    Ok(report)
}

/// Runs a load to its end and reads its report.
pub fn load(args: &[&str]) -> Result<Json> {
    let mut command = tool();
    let output = command
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| run::cannot_run(&command, &e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Json::parse(&text).ok_or_else(|| {
        Error::new(format!(
            "`{}` gave no report ({})",
            run::show(&command),
            output.status
        ))
    })
}

/// Asks a lab for something.
pub fn get(addr: SocketAddr, target: &str) -> Result<Json> {
    let failed = |why: String| Error::new(format!("http://{addr}{target}: {why}"));
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(addr)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET {target} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"
        )?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(reply)
    };
    let reply = ask().map_err(|e| failed(e.to_string()))?;
    let body = reply.split_once("\r\n\r\n").map(|(_, body)| body);
    match (reply.split(' ').nth(1), body.and_then(Json::parse)) {
        (Some("200"), Some(json)) => Ok(json),
        _ => Err(failed(reply)),
    }
}

/// A loopback address that is free now.
pub fn free() -> Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .map_err(|e| Error::new(format!("no free port: {e}")))
}

/// Waits until something listens there.
pub fn await_listener(addr: SocketAddr) -> Result<()> {
    wait_until(&format!("somebody listens on {addr}"), || {
        TcpStream::connect(addr).is_ok()
    })
}

fn wait_until(what: &str, so: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        if Instant::now() > deadline {
            return Err(Error::new(format!("waited in vain until {what}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
