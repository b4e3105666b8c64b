//! TLS on the interface: real clients that verify, a server that sees it, and rules that see the statements.

mod support;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use faultbox_contract::tls::{Identity, Verify};
use faultbox_contract::{Arg, Endpoint, Tls};
use faultbox_engine::testing::Harness;
use faultbox_engine::tls::mint::Authority;
use faultbox_mysql::protocol;
use support::{Server, cli_command, skip, tls_client};

/// A server with a certificate, a proxy with the same, and the authority as a file.
struct Lab {
    server: Server,
    proxy: Harness,
    tls: Arc<Tls>,
    ca: tempfile::NamedTempFile,
}

async fn lab() -> Lab {
    let authority = Authority::new().unwrap();
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let identity: Identity = authority.issue(&names).unwrap();
    let mut ca = tempfile::NamedTempFile::new().unwrap();
    ca.write_all(authority.identity().chain.as_bytes()).unwrap();
    let tls = Arc::new(Tls {
        shown: identity.clone(),
        issuer: Some(authority.identity().clone()),
        verify: Verify::Against(authority.identity().chain.clone()),
        names: names.to_vec(),
        client: None,
    });
    let server = blocking(move || Server::with_certificate(&identity)).await;
    // A prepared statement needs its table before any rule comes into it.
    for database in ["cli", "steps", "pymysql", "mysql2"] {
        server.cli(&format!("CREATE TABLE {database}.orders (id int)"));
    }
    let proxy = Harness::start_with(protocol(), server.addr, Some(tls.clone()));
    proxy.arm(
        "error",
        &[
            ("query", Arg::Str("INSERT INTO orders*".into())),
            ("code", Arg::Int(1114)),
            ("message", Arg::Str("the table is full".into())),
        ],
    );
    Lab {
        server,
        proxy,
        tls,
        ca,
    }
}

impl Lab {
    fn ca(&self) -> String {
        self.ca.path().to_str().unwrap().to_owned()
    }

    fn unexpected(&self) -> Vec<String> {
        let events = self.proxy.events.all();
        let others = events.iter().filter(|e| e.kind != "proxy");
        others
            .map(|e| format!("{}: {}", e.kind, e.fields))
            .collect()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// The mariadb client; whether it succeeded, and all that it said.
async fn cli(addr: SocketAddr, args: &[String], sql: &str) -> (bool, String) {
    let mut command = cli_command(addr, "cli");
    command.args(args).args(["-e", sql]);
    blocking(move || {
        let out = command.output().unwrap();
        let said = [out.stdout, out.stderr].concat();
        (
            out.status.success(),
            String::from_utf8_lossy(&said).trim().to_owned(),
        )
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_own_client_verifies_and_rules_see_its_statements() {
    if skip() {
        return;
    }
    let lab = lab().await;
    let verifying = [
        format!("--ssl-ca={}", lab.ca()),
        "--ssl-verify-server-cert".to_owned(),
    ];
    let version = "SHOW STATUS LIKE 'Ssl_version'";
    let (ok, direct) = cli(lab.server.addr, &verifying, version).await;
    assert!(ok && direct.contains("TLS"), "{direct}");
    let (ok, said) = cli(lab.proxy.addr, &verifying, version).await;
    assert!(ok, "{said}");
    assert_eq!(said, direct);
    let (ok, said) = cli(lab.proxy.addr, &["--skip-ssl".to_owned()], version).await;
    assert!(ok && !said.contains("TLS"), "{said}");
    for how in [&verifying[..], &["--skip-ssl".to_owned()][..]] {
        let (ok, said) = cli(lab.proxy.addr, how, "INSERT INTO orders VALUES (1)").await;
        assert!(!ok && said.contains("the table is full"), "{said}");
    }
    assert_eq!(lab.proxy.fired(), 2);
    assert_eq!(lab.unexpected(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn drivers_verify_and_get_their_own_errors() {
    if skip() {
        return;
    }
    let lab = lab().await;
    for (script, error) in [
        ("tls_pymysql.py", "OperationalError 1114 the table is full"),
        (
            "tls_mysql2.js",
            "ER_RECORD_FILE_FULL 1114 the table is full",
        ),
    ] {
        let (port, ca) = (lab.proxy.addr.port(), lab.ca());
        let said = blocking(move || tls_client(script, port, &ca)).await;
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines[0].starts_with("TLSv1."), "{script}: {said}");
        assert_eq!(lines[1..], ["4000000", error], "{script}");
    }
    assert_eq!(lab.proxy.fired(), 2);
    assert_eq!(lab.unexpected(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_and_probes_speak_tls() {
    if skip() {
        return;
    }
    let lab = lab().await;
    let endpoint = |addr| Endpoint {
        kept: None,
        addr,
        host: "localhost".into(),
        env: Arc::new([("MYSQL_USER".to_owned(), "root".to_owned())].into()),
        attempt: std::time::Duration::from_secs(30),
        addresses: Arc::default(),
        tls: Some(lab.tls.clone()),
    };
    protocol().ready(endpoint(lab.server.addr)).await.unwrap();
    let query = |sql: &str| {
        let call = protocol()
            .doc()
            .check_step("query", vec![Arg::Str(sql.into())], vec![])
            .unwrap();
        protocol().step(endpoint(lab.proxy.addr), call)
    };
    let response = query("SHOW STATUS LIKE 'Ssl_version'").await.unwrap();
    assert!(response.body.contains("TLSv1."), "{response:?}");
    let response = query("INSERT INTO orders VALUES (1)").await.unwrap();
    assert_eq!(response.code, "1114", "{response:?}");
    assert_eq!(lab.unexpected(), [""; 0]);
}
