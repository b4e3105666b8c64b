//! TLS on the interface: real clients that verify, a server that sees it, and rules that see the commands.

mod support;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use faultbox_contract::tls::Verify;
use faultbox_contract::{Arg, Endpoint, Response, Tls};
use faultbox_engine::testing::{Harness, eventually, free_addr};
use faultbox_engine::tls::mint::Authority;
use faultbox_redis::protocol;
use support::{Server, client, run, servers};

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// A server with a certificate on a port of its own, a proxy before that with the same, and the authority as a file.
struct Lab {
    /// It answers without TLS, too.
    server: Server,
    direct: SocketAddr,
    proxy: Arc<Harness>,
    tls: Arc<Tls>,
    folder: tempfile::TempDir,
}

/// The distribution's Redis, which is built with TLS; the package of Valkey is not. `None` if it is not there.
async fn lab() -> Option<Lab> {
    let (_, binary) = servers().into_iter().find(|(name, _)| *name == "redis")?;
    let authority = Authority::new().unwrap();
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let identity = authority.issue(&names).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut files = vec![];
    for (name, text) in [
        ("ca.pem", &authority.identity().chain),
        ("cert.pem", &identity.chain),
        ("key.pem", &identity.key),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        files.push(path.to_str().unwrap().to_owned());
    }
    // The server runs as nobody.
    readable(folder.path(), 0o755);
    files.iter().for_each(|f| readable(Path::new(f), 0o644));
    let direct = free_addr();
    let server = blocking(move || {
        let port = direct.port().to_string();
        Server::start(
            &binary,
            &[
                "--tls-port",
                &port,
                "--tls-ca-cert-file",
                &files[0],
                "--tls-cert-file",
                &files[1],
                "--tls-key-file",
                &files[2],
                "--tls-auth-clients",
                "no",
            ],
        )
    })
    .await;
    let tls = Arc::new(Tls {
        shown: identity,
        issuer: Some(authority.identity().clone()),
        verify: Verify::Against(authority.identity().chain.clone()),
        names: names.to_vec(),
        client: None,
    });
    let proxy = Harness::start_with(protocol(), direct, Some(tls.clone()));
    Some(Lab {
        server,
        direct,
        proxy: Arc::new(proxy),
        tls,
        folder,
    })
}

fn readable(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

impl Lab {
    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn unexpected(&self) -> Vec<String> {
        let events = self.proxy.events.all();
        let others = events.iter().filter(|e| e.kind != "proxy");
        others
            .map(|e| format!("{}: {}", e.kind, e.fields))
            .collect()
    }

    /// What redis-cli prints, which verifies unless it is told otherwise.
    async fn cli(&self, addr: SocketAddr, how: &[&str], args: &[&str]) -> String {
        let mut command = Command::new("timeout");
        command
            .args(["60", "redis-cli", "-h", "127.0.0.1", "-p"])
            .arg(addr.port().to_string())
            .args(how)
            .args(args);
        blocking(move || {
            let out = command.output().unwrap();
            let said = [out.stdout, out.stderr].concat();
            String::from_utf8_lossy(&said).trim().to_owned()
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_own_client_verifies_and_rules_see_its_commands() {
    let Some(lab) = lab().await else { return };
    let ca = lab.ca();
    let tls = [
        "--tls",
        "--cacert",
        ca.to_str().unwrap(),
        "--sni",
        "localhost",
    ];
    let (direct, through) = (lab.direct, lab.proxy.addr);
    for addr in [direct, through] {
        assert_eq!(lab.cli(addr, &tls, &["SET", "k", "v"]).await, "OK");
        assert_eq!(lab.cli(addr, &tls, &["GET", "k"]).await, "v");
    }
    // An authority that has nothing to do with it.
    let stranger = lab.folder.path().join("stranger.pem");
    std::fs::write(&stranger, &Authority::new().unwrap().identity().chain).unwrap();
    let strange = ["--tls", "--cacert", stranger.to_str().unwrap()];
    for addr in [direct, through] {
        let said = lab.cli(addr, &strange, &["PING"]).await;
        assert!(said.contains("certificate verify failed"), "{said}");
    }
    let message = "READONLY You can't write against a read only replica.";
    lab.proxy.arm(
        "error",
        &[("command", text("SET")), ("message", text(message))],
    );
    assert_eq!(lab.cli(through, &tls, &["SET", "k", "w"]).await, message);
    assert_eq!(lab.cli(through, &tls, &["GET", "k"]).await, "v");
    lab.proxy.arm("reset", &[("command", text("DEL"))]);
    let said = lab.cli(through, &tls, &["DEL", "k"]).await;
    assert!(said.contains("Error"), "{said}");
    assert_eq!(lab.proxy.fired(), 2);
    assert_eq!(lab.server.cli(&["GET", "k"]).trim(), "v");
    // The refused client tries more than once, and may be gone before the proxy has said so of the last time.
    eventually("the refusal is recorded", || !lab.unexpected().is_empty()).await;
    let refused = lab.unexpected();
    for event in &refused {
        assert!(event.starts_with("proxy_tls_failed: "), "{event}");
        assert!(event.contains("unknown_ca"), "{event}");
    }
}

/// Its whole battery: pipelines, transactions, subscriptions, MONITOR, blocking commands.
#[tokio::test(flavor = "multi_thread")]
async fn redis_py_verifies_and_hears_the_same() {
    let Some(lab) = lab().await else { return };
    for version in ["2", "3"] {
        let battery = |addr: SocketAddr| {
            let ca = lab.ca();
            blocking(move || {
                let mut command = client("redis_py.py")?;
                let port = addr.port().to_string();
                Some(run(command.args(["battery", &port, version]).arg(ca)))
            })
        };
        let direct = battery(lab.direct).await;
        assert_eq!(battery(lab.proxy.addr).await, direct);
    }
    assert_eq!(lab.unexpected(), [""; 0]);
    assert!(lab.proxy.meter.count() > 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_tls_hears_what_the_server_says_to_that() {
    let Some(lab) = lab().await else { return };
    let direct = lab.cli(lab.direct, &[], &["PING"]).await;
    let through = lab.cli(lab.proxy.addr, &[], &["PING"]).await;
    assert_eq!(through, direct);
    assert!(!through.contains("PONG"), "{through}");
    assert_eq!(lab.proxy.degradations().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_and_probes_speak_tls() {
    let Some(lab) = lab().await else { return };
    let endpoint = |addr| Endpoint {
        kept: None,
        addr,
        host: "localhost".into(),
        env: Arc::default(),
        attempt: Duration::from_secs(30),
        addresses: Arc::default(),
        tls: Some(lab.tls.clone()),
    };
    protocol().ready(endpoint(lab.direct)).await.unwrap();
    let step = async |name: &str, args: &[&str]| -> Response {
        let args = args.iter().map(|a| text(a)).collect();
        let call = protocol().doc().check_step(name, args, vec![]).unwrap();
        protocol()
            .step(endpoint(lab.proxy.addr), call)
            .await
            .unwrap()
    };
    assert!(step("set", &["k", "v"]).await.ok);
    assert_eq!(step("get", &["k"]).await.body, "v");
    lab.proxy.arm("error", &[("command", text("GET"))]);
    let response = step("get", &["k"]).await;
    assert_eq!((response.ok, response.code.as_str()), (false, "ERR"));
    assert_eq!(lab.unexpected(), [""; 0]);
}
