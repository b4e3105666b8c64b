//! A real PostgreSQL, and the clients that drive it.

// Each test binary uses its part of this.
#![allow(dead_code)]

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use faultbox_contract::tls::Identity;
pub use faultbox_engine::testing::clients::run;
use faultbox_engine::testing::{clients, free_addr};

/// Debian's place for PostgreSQL 15.
pub const BIN: &str = "/usr/lib/postgresql/15/bin";
/// Where Debian's libpostgresql-jdbc-java puts the driver.
const JDBC: &str = "/usr/share/java/postgresql.jar";
/// nobody: a server refuses to run as root.
const UID: &str = "65534";

/// A server on a free port of loopback; stopped and removed when the last test that uses it is done, or when the test dies.
pub struct Server {
    /// Where it listens.
    pub addr: SocketAddr,
    folder: PathBuf,
    guard: Child,
}

static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());

/// Should tests against real servers be skipped? Says so, loudly.
pub fn skip() -> bool {
    let skip = std::env::var_os("FAULTBOX_SKIP_REAL").is_some_and(|v| v == "1");
    if skip {
        eprintln!("SKIPPED: FAULTBOX_SKIP_REAL=1, nothing was proved against a real PostgreSQL");
    }
    skip
}

/// The server, shared by the tests that run at the same time.
pub fn server() -> Arc<Server> {
    let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = shared.upgrade() {
        return server;
    }
    let server = Arc::new(Server::start(&[]));
    *shared = Arc::downgrade(&server);
    server
}

impl Server {
    /// A server of the test's own that offers TLS, with a certificate that it has signed itself.
    pub fn with_tls() -> Server {
        Server::start_with(&["-c", "ssl=on"], None, None)
    }

    /// The same with this certificate.
    pub fn with_certificate(identity: &Identity) -> Server {
        Server::start_with(&["-c", "ssl=on"], Some(identity), None)
    }

    /// A standby of the test's own, which waits for a primary that never comes; these statements, a line each, have been run in its database
    /// "psql" before.
    pub fn standby(setup: &str) -> Server {
        Server::start_with(&[], None, Some(setup))
    }

    fn start(settings: &[&str]) -> Server {
        Server::start_with(settings, None, None)
    }

    fn start_with(settings: &[&str], identity: Option<&Identity>, standby: Option<&str>) -> Server {
        assert!(
            Path::new(BIN).join("initdb").exists(),
            "{BIN}/initdb is missing: apt-get install postgresql-15 (or FAULTBOX_SKIP_REAL=1)"
        );
        let root = run(Command::new("id").arg("-u")).trim() == "0";
        let folder = PathBuf::from(
            run(Command::new("mktemp").args(["-d", "/tmp/faultbox-pg-XXXXXX"])).trim(),
        );
        let user = |program: &str| {
            let mut command;
            if root {
                command = Command::new("setpriv");
                command.args(["--reuid", UID, "--regid", UID, "--clear-groups", program]);
            } else {
                command = Command::new(program);
            }
            command.current_dir(&folder);
            command
        };
        if root {
            run(Command::new("chown").arg(UID).arg(&folder));
        }
        run(user(&format!("{BIN}/initdb")).args([
            "-A",
            "trust",
            "-U",
            "postgres",
            "-N",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "-D",
            "data",
        ]));
        if let Some(identity) = identity {
            let (cert, key) = (
                folder.join("data/server.crt"),
                folder.join("data/server.key"),
            );
            std::fs::write(&cert, &identity.chain).expect("the certificate can be written");
            std::fs::write(&key, &identity.key).expect("the key can be written");
            if root {
                run(Command::new("chown").arg(UID).arg(&cert).arg(&key));
            }
            run(Command::new("chmod").arg("600").arg(&key));
        } else if !settings.is_empty() {
            run(user("openssl").args([
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
                "-keyout",
                "data/server.key",
                "-out",
                "data/server.crt",
            ]));
            run(user("chmod").args(["600", "data/server.key"]));
        }
        let hba = "host all scram_user 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n";
        std::fs::write(folder.join("data/pg_hba.conf"), hba).expect("pg_hba.conf can be written");
        if let Some(setup) = standby {
            single(
                user,
                "postgres",
                "CREATE DATABASE psql\nCREATE ROLE scram_user\n",
            );
            single(user, "psql", setup);
            run(user("touch").arg("data/standby.signal"));
        }
        let addr = free_addr();
        // The shell ends the server when this process closes the pipe, whichever way it ends.
        let script = format!(
            "{BIN}/postgres -D data -p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off \
             -c log_statement=all -c log_line_prefix='' -c max_prepared_transactions=4 {} >log 2>&1 & server=$!; cat >/dev/null; \
             kill -QUIT $server; wait $server; rm -rf data",
            addr.port(),
            settings.join(" ")
        );
        let guard = user("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .spawn()
            .expect("sh starts");
        let server = Server {
            addr,
            folder,
            guard,
        };
        let deadline = Instant::now() + Duration::from_secs(90);
        while !server.psql_try("postgres", "SELECT 1") {
            assert!(
                Instant::now() < deadline,
                "the server is not ready: {}",
                server.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        if standby.is_some() {
            return server;
        }
        for database in [
            "psql", "pgbench", "tokio", "psycopg2", "psycopg3", "asyncpg", "node", "jdbc",
        ] {
            server.psql("postgres", &format!("CREATE DATABASE {database}"));
        }
        server.psql("postgres", "CREATE ROLE scram_user LOGIN PASSWORD 'secret'");
        server
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.join("log")).unwrap_or_default())
            .into_owned()
    }

    fn psql_try(&self, database: &str, sql: &str) -> bool {
        psql_command(self.addr, database)
            .args(["-c", sql])
            .output()
            .is_ok_and(|o| o.status.success())
    }

    /// Runs SQL directly, past the proxy.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        run(psql_command(self.addr, database).args(["-c", sql]))
    }
}

/// Runs statements, a line each, without a server: what a standby holds must be there before it is one.
fn single(user: impl Fn(&str) -> Command, database: &str, statements: &str) {
    let mut command = user(&format!("{BIN}/postgres"));
    command.args(["--single", "-D", "data", database]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("postgres starts");
    let mut stdin = child.stdin.take().expect("it reads");
    stdin
        .write_all(statements.as_bytes())
        .expect("it takes statements");
    drop(stdin);
    assert!(child.wait().is_ok_and(|status| status.success()));
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// psql, unaligned, without the user's settings.
pub fn psql_command(addr: SocketAddr, database: &str) -> Command {
    let mut command = Command::new("psql");
    command.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d"]);
    command.arg(format!(
        "host={} port={} user=postgres dbname={database} sslmode=prefer",
        addr.ip(),
        addr.port()
    ));
    command
}

/// The command that runs a client's script: "psycopg3_client.py", "node_postgres.js", "Jdbc.java".
pub fn client(script: &str) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(script);
    let need = |file: PathBuf, what: &str| {
        assert!(
            file.exists(),
            "{} is missing: {what} (cargo xtask test does it; FAULTBOX_SKIP_REAL=1 skips)",
            file.display()
        );
        file
    };
    match path.extension().and_then(|e| e.to_str()) {
        Some("py") => {
            let install = "python3 -m venv $FAULTBOX_CLIENTS/venv && $FAULTBOX_CLIENTS/venv/bin/pip install psycopg2-binary 'psycopg[binary]' asyncpg";
            let mut command =
                Command::new(need(clients::folder().join("venv/bin/python"), install));
            command.arg(path);
            command
        }
        Some("js") => {
            let modules = clients::folder().join("node_modules");
            need(
                modules.join("pg"),
                "npm install --ignore-scripts --prefix $FAULTBOX_CLIENTS pg",
            );
            let mut command = Command::new("node");
            command.arg(path).env("NODE_PATH", modules);
            command
        }
        _ => {
            need(
                JDBC.into(),
                "apt-get install libpostgresql-jdbc-java openjdk-17-jdk-headless",
            );
            let mut command = Command::new("java");
            command
                .args(["-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", JDBC])
                .arg(path);
            command
        }
    }
}

/// Runs a client's script that trusts an authority; what it printed.
pub fn tls_client(script: &str, port: u16, ca: &str) -> String {
    run(client(script).arg(port.to_string()).arg(ca))
}

/// Runs a client's script to its end; what it printed.
pub fn battery(script: &str, addr: SocketAddr) -> String {
    run(client(script).arg(addr.port().to_string()).arg("battery"))
}

/// Runs a client's script, calls `arm` when it says that it is ready, and returns what it printed after that.
pub fn faults(script: &str, addr: SocketAddr, arm: impl FnOnce()) -> String {
    faulted(script, "faults", addr, arm)
}

/// The same for any part of the script that waits to be armed.
pub fn faulted(script: &str, mode: &str, addr: SocketAddr, arm: impl FnOnce()) -> String {
    let mut command = client(script);
    clients::faulted(command.arg(addr.port().to_string()).arg(mode), arm)
}
