//! Real clients talk to mocks: what a mock says must be what their drivers expect of the real server.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use faultbox_contract::Arg;
use faultbox_engine::testing::{PATIENCE, clients, free_addr};
use faultbox_engine::tls::mint::Authority;
use faultbox_mocks::Plan;
use faultbox_mocks::plan::{Answer, Answers, Certificate, End, Face, Reply, Route};

/// What timeout(1) is told: longer than any script takes on a loaded machine.
const DEADLINE: &[&str] = &["--kill-after=5", "240"];

/// Is the driver there? If not, and nobody has promised that it would be, the test is left out, and says so loudly.
fn there(driver: &str) -> bool {
    if std::env::var_os("FAULTBOX_SKIP_REAL").is_some_and(|v| v == "1") {
        eprintln!("SKIPPED, NOT PASSED: FAULTBOX_SKIP_REAL=1, nothing was proved with {driver}");
        return false;
    }
    let python = std::fs::read_dir(clients::folder().join("venv/lib"));
    let found = python
        .into_iter()
        .flatten()
        .flatten()
        .map(|p| p.path().join("site-packages").join(driver))
        .chain([clients::folder().join("node_modules").join(driver)])
        .any(|p| p.exists());
    if !found {
        let promised = ["CI", "FAULTBOX_CLIENTS"];
        let promised = promised.iter().any(|v| std::env::var_os(v).is_some());
        assert!(
            !promised,
            "{driver} is missing in {}",
            clients::folder().display()
        );
        eprintln!("SKIPPED, NOT PASSED: {driver} is missing (cargo xtask test installs it)");
    }
    found
}

/// A mock with one interface; it ends with the test's process.
struct Mock {
    addr: SocketAddr,
    calls: PathBuf,
    _folder: tempfile::TempDir,
}

impl Mock {
    fn start(protocol: &str, routes: Vec<(&str, Vec<(&str, Arg)>)>) -> Mock {
        Mock::with(protocol, routes, None, None)
    }

    fn with(
        protocol: &str,
        routes: Vec<(&str, Vec<(&str, Arg)>)>,
        descriptors: Option<PathBuf>,
        certificate: Option<Certificate>,
    ) -> Mock {
        let folder = tempfile::tempdir().unwrap();
        let addr = free_addr();
        let calls = folder.path().join("calls");
        let routes = routes
            .into_iter()
            .map(|(pattern, args)| Route {
                pattern: pattern.to_owned(),
                answers: Answers {
                    list: vec![Answer::Reply(Reply {
                        args: args.into_iter().map(|(n, a)| (n.to_owned(), a)).collect(),
                    })],
                    end: End::Last,
                },
            })
            .collect();
        let face = Face {
            name: protocol.to_owned(),
            protocol: protocol.to_owned(),
            addr,
            advertised: addr,
            routes,
            default: None,
            descriptors,
            certificate,
        };
        faultbox_mocks::check(&face).unwrap();
        let plan = Plan {
            faces: vec![face],
            calls: calls.clone(),
            functions: None,
        };
        // What travels to a mock's process is this text.
        let plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(faultbox_mocks::run(plan)).unwrap();
        });
        let deadline = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(addr).is_err() {
            assert!(Instant::now() < deadline, "the mock does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Mock {
            addr,
            calls,
            _folder: folder,
        }
    }

    /// The calls recorded so far.
    fn calls(&self) -> Vec<serde_json::Value> {
        std::fs::read_to_string(&self.calls)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Runs a client's script to its end; what it printed. Its first arguments are `args`, with the port for `PORT`.
    fn run(&self, script: &str, args: &[&str]) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/clients")
            .join(script);
        let mut command = Command::new("timeout");
        command.args(DEADLINE);
        match script.ends_with(".js") {
            true => command
                .arg("node")
                .env("NODE_PATH", clients::folder().join("node_modules")),
            false => command.arg(clients::folder().join("venv/bin/python")),
        };
        let port = self.addr.port().to_string();
        command.arg(path);
        command.args(
            args.iter()
                .map(|a| if *a == "PORT" { port.as_str() } else { a }),
        );
        clients::run(&mut command)
    }
}

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

#[test]
fn redis_py_uses_a_mock_in_both_versions_of_resp() {
    if there("redis") {
        let mock = Mock::start(
            "redis",
            vec![("GET fixed", vec![("value", text("always"))])],
        );
        for version in ["2", "3"] {
            assert_eq!(mock.run("redis_py.py", &["PORT", version]), "ok\n");
        }
        assert!(
            mock.calls()
                .iter()
                .any(|c| c["command"] == "HSET" && c["key"] == "h")
        );
    }
}

#[test]
fn ioredis_uses_a_mock() {
    if there("ioredis") {
        let mock = Mock::start(
            "redis",
            vec![("GET fixed", vec![("value", text("always"))])],
        );
        assert_eq!(mock.run("ioredis.js", &["PORT"]), "ok\n");
    }
}

#[test]
fn urllib_and_curl_use_a_mock() {
    if there("pip") {
        let json = Arg::Json(serde_json::json!({"id": 7}));
        let mock = Mock::start(
            "http",
            vec![
                ("GET /orders/*", vec![("json", json)]),
                ("POST /upload", vec![("status", Arg::Int(201))]),
            ],
        );
        assert_eq!(mock.run("http_client.py", &["PORT"]), "ok\n");
        let calls = mock.calls();
        let upload = calls.iter().find(|c| c["path"] == "/upload").unwrap();
        assert_eq!(
            (&upload["status"], &upload["route"]),
            (&201.into(), &"POST /upload".into())
        );
    }
}

/// The same batteries as against real brokers, but for transactions.
fn kafka(driver: &str, script: &str, lines: &[&str]) {
    if there(driver) {
        let mock = Mock::start("kafka", vec![]);
        let script = format!("../../../kafka/tests/clients/{script}");
        let said = mock.run(&script, &["PORT", "battery", "t0"]);
        for line in lines {
            assert!(said.lines().any(|l| l == *line), "no {line:?} in\n{said}");
        }
        assert!(
            mock.calls()
                .iter()
                .any(|c| c["api"] == "produce" && c["offset"] == 0)
        );
    }
}

#[test]
fn librdkafka_uses_a_mock() {
    kafka(
        "confluent_kafka",
        "confluent_client.py",
        &[
            "acks all [0, 1]",
            "idempotent [0, 1, 2] (['1', '2', '3'], 3)",
            "group again (['more'], [(0, 2), (1, 3), (2, 2)])",
        ],
    );
}

#[test]
fn kafka_python_uses_a_mock() {
    kafka(
        "kafka",
        "kafka_python_client.py",
        &[
            "plain [0, 1] (['a', 'b'], 2)",
            "all (['a', 'b', 'c', 'c'], 4)",
        ],
    );
}

#[test]
fn aiokafka_uses_a_mock() {
    kafka(
        "aiokafka",
        "aiokafka_client.py",
        &["all (['a', 'b', 'c', 'c'], 4)"],
    );
}

#[test]
fn kafkajs_uses_a_mock() {
    kafka(
        "kafkajs",
        "kafkajs_client.js",
        &["plain [0,1] [\"a\",\"b\"]", "all [\"a\",\"b\",\"c\",\"d\"]"],
    );
}

#[test]
fn grpcio_uses_a_mock() {
    if there("grpc") {
        let set =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../specs/conformance/mocks/orders.pb");
        let body = |json| vec![("body", Arg::Json(json))];
        let mock = Mock::with(
            "grpc",
            vec![
                (
                    "/orders.OrderService/Get",
                    body(serde_json::json!({"id": 7, "item": "tea"})),
                ),
                (
                    "/orders.OrderService/Watch",
                    body(serde_json::json!([{"id": 1}, {"id": 2}])),
                ),
                (
                    "/orders.OrderService/Create",
                    vec![
                        ("code", text("ALREADY_EXISTS")),
                        ("message", text("é is there")),
                    ],
                ),
            ],
            Some(set),
            None,
        );
        assert_eq!(mock.run("grpcio.py", &["PORT"]), "ok\n");
        let calls = mock.calls();
        let get = calls
            .iter()
            .find(|c| c["method"] == "/orders.OrderService/Get")
            .unwrap();
        assert_eq!(get["json"]["id"], 5);
    }
}

#[test]
fn drivers_of_all_protocols_use_mocks_over_tls() {
    if ["redis", "confluent_kafka", "grpc"].map(there) != [true; 3] {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let authority = Authority::new().unwrap();
    let ca = file("ca.pem", &authority.identity().chain);
    let shown = authority
        .issue(&["localhost".into(), "127.0.0.1".into()])
        .unwrap();
    let certificate = Certificate {
        cert: file("cert.pem", &shown.chain),
        key: file("key.pem", &shown.key),
    };
    let start = |protocol, routes| Mock::with(protocol, routes, None, Some(certificate.clone()));
    let http = start(
        "http",
        vec![("GET /orders/7", vec![("body", text("seven"))])],
    );
    let [redis, kafka, grpc] = ["redis", "kafka", "grpc"].map(|p| start(p, vec![]));
    let port = |mock: &Mock| mock.addr.port().to_string();
    let ports = [&redis, &kafka, &grpc].map(port);
    let mut args = vec![ca.to_str().unwrap(), "PORT"];
    args.extend(ports.iter().map(String::as_str));
    assert_eq!(http.run("tls.py", &args), "ok\n");
}
