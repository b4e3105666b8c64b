//! A real MariaDB, and the clients that drive it.

// Each test binary uses its part of this.
#![allow(dead_code)]

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use faultbox_contract::tls::Identity;
pub use faultbox_engine::testing::clients::run;
use faultbox_engine::testing::{clients, free_addr};

/// Debian's place for the server.
const SERVER_BIN: &str = "/usr/sbin/mariadbd";
/// Where Debian's libmariadb-java puts the JDBC driver.
const JDBC: &str = "/usr/share/java/mariadb-java-client.jar";
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
        eprintln!("SKIPPED: FAULTBOX_SKIP_REAL=1, nothing was proved against a real MariaDB");
    }
    skip
}

/// The server, shared by the tests that run at the same time.
pub fn server() -> Arc<Server> {
    let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = shared.upgrade() {
        return server;
    }
    let server = Arc::new(Server::start(None));
    *shared = Arc::downgrade(&server);
    server
}

/// Work that blocks, beside the test's own tasks.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// The server, with a database of one test's own.
pub async fn with_database(name: &'static str) -> Arc<Server> {
    blocking(move || {
        let server = server();
        server.cli(&format!(
            "DROP DATABASE IF EXISTS {name}; CREATE DATABASE {name}"
        ));
        server
    })
    .await
}

impl Server {
    /// A server of the test's own that offers TLS, with this certificate.
    pub fn with_certificate(identity: &Identity) -> Server {
        Server::start(Some(identity))
    }

    fn start(identity: Option<&Identity>) -> Server {
        assert!(
            Path::new(SERVER_BIN).exists(),
            "{SERVER_BIN} is missing: apt-get install mariadb-server (or FAULTBOX_SKIP_REAL=1)"
        );
        let root = run(Command::new("id").arg("-u")).trim() == "0";
        let folder = PathBuf::from(
            run(Command::new("mktemp").args(["-d", "/tmp/faultbox-mysql-XXXXXX"])).trim(),
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
            // Two installations at once would meet in /tmp: their temporary tables have the same names.
            command.env("TMPDIR", &folder);
            command
        };
        if root {
            run(Command::new("chown").arg(UID).arg(&folder));
        }
        let data = format!("--datadir={}/data", folder.display());
        run(user("mariadb-install-db").args([
            "--no-defaults",
            &data,
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ]));
        let mut tls = "";
        if let Some(identity) = identity {
            for (name, text) in [("cert.pem", &identity.chain), ("key.pem", &identity.key)] {
                std::fs::write(folder.join(name), text).expect("the certificate can be written");
            }
            tls = "--ssl-cert=\"$PWD/cert.pem\" --ssl-key=\"$PWD/key.pem\"";
        }
        let addr = free_addr();
        // The shell ends the server when this process closes the pipe, whichever way it ends.
        let script = format!(
            "{SERVER_BIN} --no-defaults --datadir=\"$PWD/data\" --socket=\"$PWD/s\" --pid-file=\"$PWD/pid\" --port={} \
             --bind-address=127.0.0.1 --innodb-buffer-pool-size=64M --innodb-flush-log-at-trx-commit=0 --log-bin=\"$PWD/data/bin\" \
             --server-id=1 --max-allowed-packet=256M --local-infile=1 --general-log=1 --general-log-file=\"$PWD/log\" \
             --character-set-server=utf8mb4 --plugin-load-add=auth_ed25519 {tls} >out 2>&1 & server=$!; cat >/dev/null; \
             kill -KILL $server; wait $server 2>/dev/null; rm -rf data",
            addr.port(),
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
        while !server.cli_try("SELECT 1") {
            assert!(
                Instant::now() < deadline,
                "the server is not ready: {}",
                server.said()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        for database in [
            "cli",
            "sbtest",
            "steps",
            "pymysql",
            "connector",
            "mysql2",
            "jdbc",
        ] {
            server.cli(&format!("CREATE DATABASE {database}"));
        }
        server.cli(
            "CREATE USER plain@'%' IDENTIFIED VIA mysql_native_password USING PASSWORD('secret'); \
             CREATE USER edward@'%' IDENTIFIED VIA ed25519 USING PASSWORD('secret'); \
             GRANT ALL ON *.* TO plain@'%', edward@'%'",
        );
        server
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.join("out")).unwrap_or_default())
            .into_owned()
    }

    /// The statements that it has seen so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.join("log")).unwrap_or_default())
            .into_owned()
    }

    fn cli_try(&self, sql: &str) -> bool {
        TcpStream::connect(self.addr).is_ok()
            && cli_command(self.addr, "mysql")
                .args(["-e", sql])
                .output()
                .is_ok_and(|o| o.status.success())
    }

    /// Runs SQL directly, past the proxy.
    pub fn cli(&self, sql: &str) -> String {
        run(cli_command(self.addr, "mysql").args(["-e", sql]))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The mariadb client, without headings and the user's settings.
pub fn cli_command(addr: SocketAddr, database: &str) -> Command {
    let mut command = Command::new("mariadb");
    command.args([
        "--no-defaults",
        "--batch",
        "--skip-column-names",
        "--user=root",
    ]);
    command.arg("--local-infile=1");
    command.arg(format!("--host={}", addr.ip()));
    command.arg(format!("--port={}", addr.port()));
    command.arg(format!("--database={database}"));
    command
}

/// The command that runs a client's script: "pymysql_client.py", "mysql2_client.js", "Jdbc.java".
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
            let install = "python3 -m venv $FAULTBOX_CLIENTS/venv && $FAULTBOX_CLIENTS/venv/bin/pip install PyMySQL[ed25519] mysql-connector-python";
            let mut command =
                Command::new(need(clients::folder().join("venv/bin/python"), install));
            command.arg(path);
            command
        }
        Some("js") => {
            let modules = clients::folder().join("node_modules");
            need(
                modules.join("mysql2"),
                "npm install --ignore-scripts --prefix $FAULTBOX_CLIENTS mysql2",
            );
            let mut command = Command::new("node");
            command.arg(path).env("NODE_PATH", modules);
            command
        }
        _ => {
            need(
                JDBC.into(),
                "apt-get install libmariadb-java default-jdk-headless",
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
