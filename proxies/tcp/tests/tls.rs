//! TLS on the interface, between OpenSSL's own client and server: `openssl s_client`, `openssl s_server`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use faultbox_contract::tls::{Identity, Verify};
use faultbox_contract::{Arg, Endpoint, Tls};
use faultbox_engine::testing::{Harness, PATIENCE, free_addr};
use faultbox_engine::tls::mint::Authority;
use tempfile::TempDir;

/// Is openssl there? A missing one fails the test, unless skipping was asked for.
fn installed() -> bool {
    let there = Command::new("openssl").arg("version").output().is_ok();
    let skip = std::env::var_os("FAULTBOX_SKIP_REAL").is_some_and(|v| v == "1");
    assert!(there || skip, "openssl is missing: apt-get install openssl");
    if !there {
        eprintln!("SKIPPED, NOT PASSED: openssl is missing");
    }
    there
}

struct Server {
    child: Child,
    addr: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An authority whose certificate stands in a file, for OpenSSL.
struct Lab {
    authority: Authority,
    dir: TempDir,
}

impl Lab {
    fn new() -> Lab {
        let (authority, dir) = (Authority::new().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(dir.path().join("ca.pem"), &authority.identity().chain).unwrap();
        Lab { authority, dir }
    }

    fn leaf(&self) -> Identity {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        self.authority.issue(&names).unwrap()
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn tls(&self) -> Tls {
        Tls {
            shown: self.leaf(),
            issuer: Some(self.authority.identity().clone()),
            verify: Verify::Against(self.authority.identity().chain.clone()),
            names: vec!["localhost".into(), "127.0.0.1".into()],
            client: None,
        }
    }

    /// Writes a certificate and its key; their paths.
    fn files(&self, name: &str, identity: &Identity) -> [String; 2] {
        let paths = [
            self.path(&format!("{name}.pem")),
            self.path(&format!("{name}.key")),
        ];
        std::fs::write(&paths[0], &identity.chain).unwrap();
        std::fs::write(&paths[1], &identity.key).unwrap();
        paths
    }

    /// A certificate that has expired, of the same authority; made by OpenSSL, with its own idea of one.
    fn expired(&self) -> Identity {
        let [cert, key] = ["expired.pem", "expired.key"].map(|n| self.path(n));
        let [ca, ca_key] = self.files("authority", self.authority.identity());
        let script = format!(
            "openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -keyout {key} -out {cert}.csr &&
             printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\n' > {cert}.ext &&
             openssl x509 -req -in {cert}.csr -CA {ca} -CAkey {ca_key} -set_serial 7 -days -1 -extfile {cert}.ext -out {cert}"
        );
        let out = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        Identity {
            chain: std::fs::read_to_string(cert).unwrap(),
            key: std::fs::read_to_string(key).unwrap(),
        }
    }

    /// `openssl s_server`, which turns every line around (-rev).
    fn server(&self, identity: &Identity, args: &[&str]) -> Server {
        let addr = free_addr();
        let [cert, key] = self.files("server", identity);
        let child = Command::new("openssl")
            .args(["s_server", "-rev", "-quiet", "-accept", &addr.to_string()])
            .args(["-cert", &cert, "-key", &key])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(addr).is_err() {
            assert!(Instant::now() < deadline, "s_server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Server { child, addr }
    }

    /// `openssl s_client`, which verifies, says these lines, and prints what it hears. It ends when it has heard as many lines.
    fn client(&self, addr: SocketAddr, lines: &[&str], args: &[&str]) -> Output {
        let ca = self.path("ca.pem");
        let mut child = Command::new("timeout")
            .args([
                "60",
                "openssl",
                "s_client",
                "-quiet",
                "-no_ign_eof",
                "-verify_return_error",
            ])
            .args([
                "-connect",
                &addr.to_string(),
                "-servername",
                "localhost",
                "-verify_hostname",
                "localhost",
            ])
            .args(["-CAfile", &ca])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut heard = vec![];
        for line in lines {
            if stdin.write_all(format!("{line}\n").as_bytes()).is_err() {
                break;
            }
        }
        while heard.iter().filter(|b| **b == b'\n').count() < lines.len() {
            let mut chunk = [0; 4096];
            match stdout.read(&mut chunk) {
                Ok(n @ 1..) => heard.extend_from_slice(&chunk[..n]),
                _ => break,
            }
        }
        // The end of its input is the end of it (-no_ign_eof).
        drop(stdin);
        let mut out = child.wait_with_output().unwrap();
        out.stdout = heard;
        out
    }
}

fn proxy(upstream: SocketAddr, tls: Tls) -> Harness {
    Harness::start_with(faultbox_tcp::protocol(), upstream, Some(Arc::new(tls)))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_talks_to_openssl_and_rules_see_the_plain_text() {
    if !installed() {
        return;
    }
    let lab = Arc::new(Lab::new());
    for version in ["-tls1_3", "-tls1_2"] {
        let server = lab.server(&lab.leaf(), &[]);
        let proxy = proxy(server.addr, lab.tls());
        let (at, lab2) = (proxy.addr, lab.clone());
        let out = blocking(move || lab2.client(at, &["hello", "faultbox"], &[version])).await;
        assert_eq!(
            text(&out.stdout),
            "olleh\nxobtluaf\n",
            "{}",
            text(&out.stderr)
        );
        assert_eq!(proxy.events.all().len(), 0);
        // A byte of the text, not of a record: TLS would have refused that.
        proxy.arm(
            "corrupt",
            &[
                ("prefix", Arg::Str("wro*".into())),
                ("direction", Arg::Str("up".into())),
            ],
        );
        let (at, lab2) = (proxy.addr, lab.clone());
        let out = blocking(move || lab2.client(at, &["wrong"], &[version])).await;
        assert_eq!(out.stdout, b"gnor\x88\n", "{}", text(&out.stderr));
        assert_eq!(proxy.fired(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_has_expired_for_the_client_too() {
    if !installed() {
        return;
    }
    let lab = Arc::new(Lab::new());
    let server = lab.server(&lab.expired(), &[]);
    let proxy = proxy(server.addr, lab.tls());
    let mut said = vec![];
    for at in [server.addr, proxy.addr] {
        let lab = lab.clone();
        let out = blocking(move || lab.client(at, &["hello"], &[])).await;
        assert_eq!(text(&out.stdout), "");
        let stderr = text(&out.stderr);
        let why = stderr.lines().find(|l| l.starts_with("verify error:"));
        said.push(why.unwrap_or_else(|| panic!("{stderr}")).to_owned());
    }
    assert_eq!(said[0], said[1]);
    assert!(said[0].contains("certificate has expired"), "{said:?}");
    let events = proxy.events.of_kind("proxy_tls_untrusted");
    assert_eq!(events.len(), 1);
    let error = events[0].fields["error"].as_str().unwrap();
    assert!(error.contains("expired"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_wants_a_client_certificate_gets_it() {
    if !installed() {
        return;
    }
    let lab = Arc::new(Lab::new());
    let ca = lab.path("ca.pem");
    let wants = ["-Verify", "1", "-CAfile", &ca, "-verify_return_error"];
    let server = lab.server(&lab.leaf(), &wants);
    let client = lab.authority.issue(&["app".into()]).unwrap();
    let known = proxy(
        server.addr,
        Tls {
            client: Some(client),
            ..lab.tls()
        },
    );
    let (at, lab2) = (known.addr, lab.clone());
    let out = blocking(move || lab2.client(at, &["hello"], &[])).await;
    assert_eq!(text(&out.stdout), "olleh\n", "{}", text(&out.stderr));
    let unknown = proxy(server.addr, lab.tls());
    let (at, lab2) = (unknown.addr, lab.clone());
    let out = blocking(move || lab2.client(at, &["hello"], &[])).await;
    assert_eq!(text(&out.stdout), "");
    let events = unknown.events.of_kind("proxy_tls_failed");
    let errors: Vec<_> = events
        .iter()
        .map(|e| e.fields["error"].to_string())
        .collect();
    assert!(
        errors.iter().any(|e| e.contains("certificate_required")),
        "{errors:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_and_probes_speak_tls() {
    if !installed() {
        return;
    }
    let lab = Lab::new();
    let server = lab.server(&lab.leaf(), &[]);
    let proxy = proxy(server.addr, lab.tls());
    let endpoint = |addr| Endpoint {
        kept: None,
        addr,
        host: "localhost".into(),
        env: Arc::default(),
        attempt: Duration::from_secs(30),
        tls: Some(Arc::new(lab.tls())),
        addresses: std::sync::Arc::default(),
    };
    let protocol = faultbox_tcp::protocol();
    protocol.ready(endpoint(server.addr)).await.unwrap();
    let call = protocol
        .doc()
        .check_step("send", vec![Arg::Str("step".into())], vec![])
        .unwrap();
    let response = protocol.step(endpoint(proxy.addr), call).await.unwrap();
    assert_eq!(
        (response.ok, response.body.as_str()),
        (true, "pets"),
        "{response:?}"
    );
}
