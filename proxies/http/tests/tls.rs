//! TLS on the interface: real clients that verify what they are shown, nginx behind, and rules that see the requests.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use faultbox_contract::tls::{Identity, Verify};
use faultbox_contract::{Arg, Endpoint, Tls};
use faultbox_engine::testing::{Harness, PATIENCE, free_addr};
use faultbox_engine::tls::mint::Authority;

/// Is a program that a test runs there? A missing one fails the test, unless skipping was asked for.
fn installed(programs: &[(&str, &[&str])]) -> bool {
    let missing: Vec<_> = programs
        .iter()
        .filter(|(program, args)| {
            let mut command = Command::new(program);
            command
                .args(*args)
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            !command.status().is_ok_and(|s| s.success())
        })
        .map(|(program, args)| format!("{program} {}", args.join(" ")))
        .collect();
    if missing.is_empty() {
        return true;
    }
    let skip = std::env::var_os("FAULTBOX_SKIP_REAL").is_some_and(|v| v == "1");
    assert!(
        skip,
        "missing: {missing:?} (cargo xtask test installs them; FAULTBOX_SKIP_REAL=1 skips)"
    );
    eprintln!("SKIPPED, NOT PASSED: {missing:?} are missing");
    false
}

const NGINX: (&str, &[&str]) = ("/usr/sbin/nginx", &["-v"]);
const CURL: (&str, &[&str]) = ("curl", &["--version"]);
const REQUESTS: (&str, &[&str]) = ("python3", &["-c", "import requests"]);
const NODE: (&str, &[&str]) = ("node", &["--version"]);

struct Nginx {
    child: Child,
    addr: SocketAddr,
    dir: tempfile::TempDir,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// nginx over TLS, HTTP/1.1 and HTTP/2, with this certificate.
fn nginx(identity: &Identity) -> Nginx {
    let dir = tempfile::tempdir().unwrap();
    let addr = free_addr();
    let d = dir.path().display();
    std::fs::write(dir.path().join("cert.pem"), &identity.chain).unwrap();
    std::fs::write(dir.path().join("key.pem"), &identity.key).unwrap();
    std::fs::create_dir(dir.path().join("www")).unwrap();
    std::fs::write(
        dir.path().join("www/large"),
        "0123456789abcdef".repeat(1 << 18),
    )
    .unwrap();
    let root =
        std::fs::read_to_string("/proc/self/status").is_ok_and(|s| s.contains("\nUid:\t0\t"));
    let user = if root { "user root;" } else { "" };
    let config = format!(
        "{user} daemon off; master_process off; pid {d}/pid; error_log {d}/error.log;
         events {{ worker_connections 256; }}
         http {{
           access_log off; client_max_body_size 0;
           client_body_temp_path {d}/body; proxy_temp_path {d}/proxy; fastcgi_temp_path {d}/fcgi;
           uwsgi_temp_path {d}/uwsgi; scgi_temp_path {d}/scgi;
           server {{
             listen {addr} ssl http2; ssl_certificate {d}/cert.pem; ssl_certificate_key {d}/key.pem; root {d}/www;
             ssl_protocols TLSv1.2 TLSv1.3;
             location /about {{ return 200 \"$server_protocol $ssl_protocol $ssl_server_name\\n\"; }}
           }}
         }}"
    );
    std::fs::write(dir.path().join("nginx.conf"), config).unwrap();
    let child = Command::new(NGINX.0)
        .arg("-p")
        .arg(dir.path())
        .arg("-e")
        .arg(dir.path().join("error.log"))
        .arg("-c")
        .arg(dir.path().join("nginx.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(addr).is_err() {
        let log = || std::fs::read_to_string(dir.path().join("error.log"));
        assert!(
            Instant::now() < deadline,
            "nginx does not listen: {:?}",
            log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Nginx { child, addr, dir }
}

/// nginx, a proxy in front of it with the same certificate, and the authority as a file.
struct Lab {
    runtime: tokio::runtime::Runtime,
    nginx: Nginx,
    harness: Harness,
    tls: Arc<Tls>,
    ca: PathBuf,
}

fn lab() -> Lab {
    let authority = Authority::new().unwrap();
    let identity = authority
        .issue(&["localhost".into(), "127.0.0.1".into()])
        .unwrap();
    let nginx = nginx(&identity);
    let ca = nginx.dir.path().join("ca.pem");
    std::fs::write(&ca, &authority.identity().chain).unwrap();
    let tls = Arc::new(Tls {
        shown: identity,
        issuer: Some(authority.identity().clone()),
        verify: Verify::Against(authority.identity().chain.clone()),
        names: vec!["localhost".into(), "127.0.0.1".into()],
        client: None,
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let harness = {
        let _inside = runtime.enter();
        Harness::start_with(faultbox_http::protocol(), nginx.addr, Some(tls.clone()))
    };
    Lab {
        runtime,
        nginx,
        harness,
        tls,
        ca,
    }
}

impl Lab {
    fn unexpected(&self) -> Vec<String> {
        let events = self.harness.events.all();
        let others = events.iter().filter(|e| e.kind != "proxy");
        others
            .map(|e| format!("{}: {}", e.kind, e.fields))
            .collect()
    }

    fn ca(&self) -> &str {
        self.ca.to_str().unwrap()
    }

    fn too_many(&self) {
        self.harness.arm(
            "response",
            &[
                ("path", Arg::Str("/limited*".into())),
                ("status", Arg::Int(429)),
            ],
        );
    }
}

/// Runs a program to its end; what it printed.
fn run(program: &str, args: &[&str], input: &str) -> String {
    let mut child = Command::new("timeout")
        .args(["120", program])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let out = child.wait_with_output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(
        out.status.success(),
        "{program}: {}\n{}{}",
        out.status,
        text(&out.stdout),
        text(&out.stderr)
    );
    text(&out.stdout)
}

#[test]
fn curl_verifies_and_rules_see_its_requests() {
    if !installed(&[NGINX, CURL]) {
        return;
    }
    let lab = lab();
    lab.too_many();
    let curl = |at: SocketAddr, args: &[&str]| {
        let url = |path: &str| format!("https://localhost:{}{path}", at.port());
        let fixed = ["-sS", "--http1.1", "--cacert", lab.ca(), "--max-time", "60"];
        let (about, large) = (url("/about"), url("/large"));
        let mut all = fixed.to_vec();
        all.extend(args);
        all.extend([
            "-w",
            "%{http_code} %{num_connects} %{size_download}\n",
            &about,
            &large,
        ]);
        run("curl", &all, "")
    };
    for args in [&[][..], &["--tlsv1.3"][..], &["--tls-max", "1.2"][..]] {
        let direct = curl(lab.nginx.addr, args);
        assert_eq!(direct, curl(lab.harness.addr, args));
        // On one connection, and to the server's name.
        assert!(
            direct.contains(" localhost\n") && direct.ends_with("200 0 4194304\n"),
            "{}",
            &direct[direct.len() - 100..]
        );
    }
    let limited = format!("https://localhost:{}/limited/1", lab.harness.addr.port());
    let status = run(
        "curl",
        &[
            "-sS",
            "--http1.1",
            "--cacert",
            lab.ca(),
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            &limited,
        ],
        "",
    );
    assert_eq!(status, "429");
    assert_eq!(lab.harness.fired(), 1);
    assert_eq!(lab.unexpected(), [""; 0]);
}

#[test]
fn requests_and_node_verify_too() {
    if !installed(&[NGINX, REQUESTS, NODE]) {
        return;
    }
    let lab = lab();
    lab.too_many();
    let base = format!("https://localhost:{}", lab.harness.addr.port());
    let python = "import sys, requests\nbase, ca = sys.argv[1:]\ns = requests.Session()\nfor path in ['/about', '/large', '/limited/2']:\n    r = s.get(base + path, verify=ca, timeout=60)\n    print(r.status_code, len(r.content))\n";
    let said = run("python3", &["-", &base, lab.ca()], python);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert!(
        lines[0].starts_with("200 ") && lines[1] == "200 4194304" && lines[2].starts_with("429 "),
        "{said}"
    );
    let node = "const https = require('https'), fs = require('fs');\nconst [base, ca] = process.argv.slice(2);\nconst agent = new https.Agent({ keepAlive: true, ca: fs.readFileSync(ca) });\nconst get = (path) => new Promise((ok, no) => https.get(base + path, { agent }, (r) => { let n = 0; r.on('data', (c) => (n += c.length)); r.on('end', () => ok(`${r.statusCode} ${n}`)); }).on('error', no));\n(async () => { for (const path of ['/about', '/large', '/limited/3']) console.log(await get(path)); agent.destroy(); })();\n";
    let said = run("node", &["-", &base, lab.ca()], node);
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines.len() == 3 && lines[1] == "200 4194304" && lines[2].starts_with("429 "),
        "{said}"
    );
    assert_eq!(lab.harness.fired(), 2);
    assert_eq!(lab.unexpected(), [""; 0]);
}

#[test]
fn a_client_that_prefers_http2_gets_it_and_is_forwarded_unseen() {
    if !installed(&[NGINX, CURL]) {
        return;
    }
    let lab = lab();
    let about = format!("https://localhost:{}/about", lab.harness.addr.port());
    let said = run(
        "curl",
        &[
            "-sS",
            "--http2",
            "--cacert",
            lab.ca(),
            "--max-time",
            "60",
            &about,
        ],
        "",
    );
    assert!(said.starts_with("HTTP/2.0 TLSv1.3"), "{said}");
    assert_eq!(lab.harness.degradations().len(), 1);
}

#[test]
fn a_client_without_tls_hears_nginx() {
    if !installed(&[NGINX, CURL]) {
        return;
    }
    let lab = lab();
    let about = format!("http://localhost:{}/about", lab.harness.addr.port());
    let said = run("curl", &["-sS", "--max-time", "60", &about], "");
    assert!(
        said.contains("The plain HTTP request was sent to HTTPS port"),
        "{said}"
    );
    assert_eq!(lab.harness.degradations().len(), 1);
}

#[test]
fn steps_and_probes_speak_tls() {
    if !installed(&[NGINX]) {
        return;
    }
    let lab = lab();
    lab.too_many();
    let endpoint = |addr| Endpoint {
        kept: None,
        addr,
        host: "localhost".into(),
        env: Arc::default(),
        attempt: Duration::from_secs(30),
        tls: Some(lab.tls.clone()),
        addresses: std::sync::Arc::default(),
    };
    let protocol = faultbox_http::protocol();
    let get = |path: &str| {
        let call = protocol
            .doc()
            .check_step("get", vec![Arg::Str(path.into())], vec![])
            .unwrap();
        lab.runtime
            .block_on(protocol.step(endpoint(lab.harness.addr), call))
            .unwrap()
    };
    lab.runtime
        .block_on(protocol.ready(endpoint(lab.nginx.addr)))
        .unwrap();
    let about = get("/about");
    assert_eq!(
        (about.status, about.body.as_str()),
        (200, "HTTP/1.1 TLSv1.3 localhost\n")
    );
    assert_eq!(get("/large").body.len(), 4 << 20);
    assert_eq!(get("/limited/4").status, 429);
    assert_eq!(lab.unexpected(), [""; 0]);
}

/// An upstream that closes an idle connection while a rule holds the next request: the request goes to a new connection, over TLS again.
#[test]
fn a_held_request_is_dialled_anew_over_tls() {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ServerConfig, ServerConnection, StreamOwned};
    use std::io::Read;
    if !installed(&[CURL]) {
        return;
    }
    let authority = Authority::new().unwrap();
    let identity = authority.issue(&["localhost".into()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &authority.identity().chain).unwrap();
    let config = Arc::new(
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(identity.chain.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap(),
            )
            .unwrap(),
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap();
    let tls = Arc::new(Tls {
        verify: Verify::Against(authority.identity().chain.clone()),
        shown: identity,
        issuer: None,
        names: vec!["localhost".into()],
        client: None,
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let harness = {
        let _inside = runtime.enter();
        Harness::start_with(faultbox_http::protocol(), upstream, Some(tls))
    };
    harness.arm(
        "delay",
        &[
            ("path", Arg::Str("/held".into())),
            // Long enough for the server's closing to be seen.
            ("delay", Arg::Str("10s".into())),
        ],
    );
    let events = harness.events.clone();
    let serving = std::thread::spawn(move || {
        let accept = || {
            let (socket, _) = listener.accept().unwrap();
            StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), socket)
        };
        let hear = |stream: &mut StreamOwned<ServerConnection, TcpStream>| {
            let mut head = vec![];
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            String::from_utf8(head).unwrap()
        };
        let mut first = accept();
        hear(&mut first);
        first
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nold\n")
            .unwrap();
        first.flush().unwrap();
        while events.of_kind("proxy").is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        first.conn.send_close_notify();
        first.flush().unwrap();
        drop(first);
        let mut second = accept();
        let head = hear(&mut second);
        second
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnew\n")
            .unwrap();
        second.flush().unwrap();
        (head, second.conn.server_name().map(str::to_owned))
    });
    let base = format!("https://localhost:{}", harness.addr.port());
    let said = run(
        "curl",
        &[
            "-sS",
            "--http1.1",
            "--cacert",
            ca.to_str().unwrap(),
            "--max-time",
            "60",
            &format!("{base}/free"),
            &format!("{base}/held"),
        ],
        "",
    );
    assert_eq!(said, "old\nnew\n");
    let (head, name) = serving.join().unwrap();
    assert!(head.starts_with("GET /held "), "{head}");
    assert_eq!(name.as_deref(), Some("localhost"));
}
