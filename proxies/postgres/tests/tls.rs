//! TLS on the interface: real clients insist on encryption, the server sees it, and the rules see the statements.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::Arc;

use faultbox_contract::tls::{Identity, Verify};
use faultbox_contract::{Arg, Endpoint, Tls};
use faultbox_engine::testing::Harness;
use faultbox_engine::tls::mint::Authority;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};
use support::{Server, skip, tls_client};

/// Is this connection encrypted, by what the server itself knows?
const SSL: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// An authority, and what a client is told of it.
struct Trust {
    authority: Authority,
    ca: tempfile::NamedTempFile,
}

impl Trust {
    fn new() -> Trust {
        let authority = Authority::new().unwrap();
        let mut ca = tempfile::NamedTempFile::new().unwrap();
        ca.write_all(authority.identity().chain.as_bytes()).unwrap();
        Trust { authority, ca }
    }

    fn leaf(&self) -> Identity {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        self.authority.issue(&names).unwrap()
    }

    fn tls(&self, shown: Identity) -> Tls {
        Tls {
            shown,
            issuer: Some(self.authority.identity().clone()),
            verify: Verify::Against(self.authority.identity().chain.clone()),
            names: vec!["127.0.0.1".into(), "localhost".into()],
            client: None,
        }
    }

    fn ca(&self) -> String {
        self.ca.path().to_str().unwrap().to_owned()
    }
}

fn proxy(upstream: SocketAddr, tls: Tls) -> Harness {
    Harness::start_with(faultbox_postgres::protocol(), upstream, Some(Arc::new(tls)))
}

fn disk_full(proxy: &Harness) {
    let text = |s: &str| Arg::Str(s.into());
    proxy.arm(
        "error",
        &[
            ("query", text("INSERT INTO orders*")),
            ("code", text("disk_full")),
            ("message", text("disk full")),
        ],
    );
}

/// psql with these connection settings; whether it succeeded, and all that it said.
async fn psql(proxy: &Harness, settings: &str, sql: &'static str) -> (bool, String) {
    let conninfo = format!(
        "host=127.0.0.1 port={} dbname=postgres {settings}",
        proxy.addr.port()
    );
    blocking(move || {
        let mut command = Command::new("timeout");
        command.args(["60", "psql", "-X", "-A", "-t", "-d", &conninfo, "-c", sql]);
        command.env("PGPASSWORD", "secret");
        let out = command.output().unwrap();
        let said = [out.stdout, out.stderr].concat();
        (
            out.status.success(),
            String::from_utf8_lossy(&said).trim().to_owned(),
        )
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sslmode_works_and_rules_see_the_statements() {
    if skip() {
        return;
    }
    let trust = Trust::new();
    let leaf = trust.leaf();
    let (identity, ca) = (leaf.clone(), trust.ca());
    let server = blocking(move || Server::with_certificate(&identity)).await;
    let proxy = proxy(server.addr, trust.tls(leaf));
    server.psql("postgres", "CREATE TABLE orders (id int)");
    for (settings, encrypted) in [
        ("sslmode=disable", "f"),
        ("sslmode=allow", "f"),
        ("sslmode=prefer", "t"),
        ("sslmode=require", "t"),
        ("sslmode=verify-ca", "t"),
        ("sslmode=verify-full", "t"),
        ("sslmode=verify-full gssencmode=disable", "t"),
    ] {
        let settings = format!("user=postgres {settings} sslrootcert={ca}");
        let (ok, said) = psql(&proxy, &settings, SSL).await;
        assert!(ok && said == encrypted, "{settings}: {said}");
    }
    disk_full(&proxy);
    for mode in ["disable", "require", "verify-full"] {
        let settings = format!("user=postgres sslmode={mode} sslrootcert={ca}");
        let (ok, said) = psql(&proxy, &settings, "INSERT INTO orders VALUES (1)").await;
        assert!(!ok && said.contains("disk full"), "{mode}: {said}");
        let (ok, said) = psql(&proxy, &settings, "SELECT count(*) FROM orders").await;
        assert!(ok && said == "0", "{mode}: {said}");
    }
    assert_eq!(proxy.fired(), 3);
    let others: Vec<_> = proxy
        .events
        .all()
        .into_iter()
        .filter(|e| e.kind != "proxy")
        .collect();
    assert!(others.is_empty(), "{others:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn channel_binding_holds_where_both_show_the_same_certificate() {
    if skip() {
        return;
    }
    let trust = Trust::new();
    let leaf = trust.leaf();
    let (identity, ca) = (leaf.clone(), trust.ca());
    let server = blocking(move || Server::with_certificate(&identity)).await;
    // The server's own certificate: whatever libpq is asked for works.
    let same = proxy(server.addr, trust.tls(leaf));
    for settings in [
        "sslmode=require",
        "sslmode=require channel_binding=require",
        "sslmode=require channel_binding=disable",
        "sslmode=verify-full channel_binding=require",
        "sslmode=disable",
    ] {
        let settings = format!("user=scram_user {settings} sslrootcert={ca}");
        let (ok, said) = psql(&same, &settings, "SELECT 1").await;
        assert!(ok && said == "1", "{settings}: {said}");
    }
    assert_eq!(same.events.all().len(), 0);
    // Another one of the same authority: the server takes the binding for somebody in between, which it is.
    let other = proxy(server.addr, trust.tls(trust.leaf()));
    for (settings, works) in [
        ("sslmode=require", false),
        ("sslmode=require channel_binding=require", false),
        ("sslmode=require channel_binding=disable", true),
        ("sslmode=disable", true),
    ] {
        let settings = format!("user=scram_user {settings} sslrootcert={ca}");
        let before = other.events.of_kind("proxy_tls_binding").len();
        let (ok, said) = psql(&other, &settings, "SELECT 1").await;
        assert_eq!(ok, works, "{settings}: {said}");
        let events = other.events.of_kind("proxy_tls_binding");
        assert_eq!(events.len() - before, usize::from(!works), "{settings}");
        if !works {
            assert!(
                said.contains("SCRAM channel binding check failed"),
                "{said}"
            );
            let help = events[before].fields["help"].as_str().unwrap();
            assert!(help.contains("channel_binding=disable"), "{help}");
        }
    }
    // Without a password there is nothing to bind.
    let (ok, said) = psql(&other, "user=postgres sslmode=require", SSL).await;
    assert!(ok && said == "t", "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_certificate_is_wrong_for_the_client_too() {
    if skip() {
        return;
    }
    let (trust, stranger) = (Trust::new(), Trust::new());
    let identity = stranger.leaf();
    let server = blocking(move || Server::with_certificate(&identity)).await;
    let proxy = proxy(server.addr, trust.tls(trust.leaf()));
    let ca = trust.ca();
    let verifying = format!("user=postgres sslmode=verify-full sslrootcert={ca}");
    let (ok, said) = psql(&proxy, &verifying, "SELECT 1").await;
    assert!(!ok && said.contains("certificate verify failed"), "{said}");
    let (ok, said) = psql(&proxy, "user=postgres sslmode=require", SSL).await;
    assert!(ok && said == "t", "{said}");
    let events = proxy.events.of_kind("proxy_tls_untrusted");
    assert_eq!(events.len(), 1);
    let text = events[0].fields["error"].as_str().unwrap();
    assert!(text.contains("unknown issuer"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_says_so_itself() {
    if skip() {
        return;
    }
    let trust = Trust::new();
    let server = support::server();
    let proxy = proxy(server.addr, trust.tls(trust.leaf()));
    let (ok, said) = psql(&proxy, "user=postgres sslmode=require", "SELECT 1").await;
    assert!(
        !ok && said.contains("server does not support SSL"),
        "{said}"
    );
    let (ok, said) = psql(&proxy, "user=postgres sslmode=prefer", SSL).await;
    assert!(ok && said == "f", "{said}");
    assert_eq!(proxy.events.all().len(), 0);
}

/// A driver's own life over TLS: verified, encrypted at the server, and the rule's error is its own class of error.
async fn driver(script: &'static str, class: &str) {
    if skip() {
        return;
    }
    let trust = Trust::new();
    let leaf = trust.leaf();
    let identity = leaf.clone();
    let server = blocking(move || Server::with_certificate(&identity)).await;
    server.psql("postgres", "CREATE TABLE orders (id int)");
    let proxy = proxy(server.addr, trust.tls(leaf));
    disk_full(&proxy);
    let (port, ca) = (proxy.addr.port(), trust.ca());
    let said = blocking(move || tls_client(script, port, &ca)).await;
    let lines: Vec<&str> = said.lines().collect();
    // The server's word that it is encrypted; a password that is bound to the certificate where the driver does that; a value larger than
    // any buffer; the error.
    assert_eq!(lines, ["true", "scram ok", "4000000", class], "{said}");
    assert_eq!(proxy.fired(), 1);
    let others: Vec<_> = proxy
        .events
        .all()
        .into_iter()
        .filter(|e| e.kind != "proxy")
        .collect();
    assert!(others.is_empty(), "{others:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn psycopg_over_tls() {
    driver("tls.py", "psycopg.errors.DiskFull 53100 disk full").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asyncpg_over_tls() {
    driver(
        "tls_asyncpg.py",
        "asyncpg.exceptions.DiskFullError 53100 disk full",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_postgres_over_tls() {
    driver("tls.js", "DatabaseError 53100 disk full").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jdbc_over_tls() {
    driver(
        "Tls.java",
        "org.postgresql.util.PSQLException 53100 ERROR: disk full",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_and_probes_speak_tls() {
    if skip() {
        return;
    }
    let trust = Trust::new();
    let leaf = trust.leaf();
    let identity = leaf.clone();
    let server = blocking(move || Server::with_certificate(&identity)).await;
    let proxy = proxy(server.addr, trust.tls(leaf.clone()));
    disk_full(&proxy);
    let endpoint = |addr, tls| Endpoint {
        kept: None,
        addr,
        host: "127.0.0.1".into(),
        env: Arc::default(),
        attempt: std::time::Duration::from_secs(30),
        tls: Some(Arc::new(tls)),
        addresses: std::sync::Arc::default(),
    };
    let protocol = faultbox_postgres::protocol();
    let call = |sql: &str| {
        protocol
            .doc()
            .check_step("query", vec![Arg::Str(sql.into())], vec![])
            .unwrap()
    };
    protocol
        .ready(endpoint(server.addr, trust.tls(leaf.clone())))
        .await
        .unwrap();
    let through = endpoint(proxy.addr, trust.tls(leaf.clone()));
    let response = protocol.step(through.clone(), call(SSL)).await.unwrap();
    assert_eq!(response.data[0]["ssl"], true, "{response:?}");
    let response = protocol
        .step(through, call("INSERT INTO orders VALUES (1)"))
        .await
        .unwrap();
    assert!(!response.ok);
    // Another authority is not trusted, which is the step's error, with what to look at.
    let stranger = Trust::new();
    let distrusting = endpoint(proxy.addr, stranger.tls(stranger.leaf()));
    let response = protocol.step(distrusting, call(SSL)).await.unwrap();
    assert_eq!(response.code, "08006", "{response:?}");
    assert!(response.error.contains("not trusted"), "{response:?}");
    // And a server without TLS is no server with TLS.
    let plain = support::server();
    let response = protocol
        .step(endpoint(plain.addr, trust.tls(leaf)), call(SSL))
        .await
        .unwrap();
    assert!(response.error.contains("ssl=off"), "{response:?}");
}

/// PostgreSQL 17's sslnegotiation=direct: TLS from the first byte, with the protocol's own ALPN name. The server is the least of one.
#[tokio::test(flavor = "multi_thread")]
async fn direct_negotiation_needs_no_request() {
    let trust = Trust::new();
    let leaf = trust.leaf();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![der(&leaf.chain)],
            PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = proxy(listener.local_addr().unwrap(), trust.tls(leaf));
    disk_full(&proxy);
    let serving = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), socket);
        let mut startup = [0; 23];
        stream.read_exact(&mut startup).unwrap();
        // AuthenticationOk, ReadyForQuery.
        stream
            .write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I")
            .unwrap();
        // The denied statement comes as one that is none; it gets an error, and its text is what the rule says.
        let mut tag = [0; 5];
        stream.read_exact(&mut tag).unwrap();
        let len = u32::from_be_bytes([tag[1], tag[2], tag[3], tag[4]]) as usize;
        let mut body = vec![0; len - 4];
        stream.read_exact(&mut body).unwrap();
        stream
            .write_all(b"E\0\0\0\x0cC42601\0\0Z\0\0\0\x05I")
            .unwrap();
        let _ = stream.read(&mut tag);
        (
            startup,
            String::from_utf8(body).unwrap(),
            stream.conn.alpn_protocol().map(<[u8]>::to_vec),
        )
    });
    let addr = proxy.addr;
    let mut roots = RootCertStore::empty();
    roots.add(der(&trust.authority.identity().chain)).unwrap();
    let heard = blocking(move || {
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        let name = ServerName::try_from("localhost").unwrap();
        let conn = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = StreamOwned::new(conn, std::net::TcpStream::connect(addr).unwrap());
        stream
            .write_all(b"\0\0\0\x17\0\x03\0\0user\0postgres\0\0")
            .unwrap();
        let mut greeting = [0; 15];
        stream.read_exact(&mut greeting).unwrap();
        let sql = b"INSERT INTO orders VALUES (1)\0";
        let mut query = vec![b'Q', 0, 0, 0, 4 + sql.len() as u8];
        query.extend_from_slice(sql);
        stream.write_all(&query).unwrap();
        let mut answer = vec![];
        while !answer.ends_with(b"Z\0\0\0\x05I") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        String::from_utf8_lossy(&answer).into_owned()
    })
    .await;
    assert!(
        heard.contains("53100") && heard.contains("disk full"),
        "{heard:?}"
    );
    let (startup, statement, alpn) = serving.join().unwrap();
    assert_eq!(&startup[8..], b"user\0postgres\0\0");
    assert!(statement.starts_with("faultbox"), "{statement}");
    assert_eq!(alpn.as_deref(), Some(&b"postgresql"[..]));
    assert_eq!(proxy.fired(), 1);
}
