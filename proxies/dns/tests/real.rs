//! Real clients against real servers, directly and through the proxy: what they print must be the same; with rules, what resolvers
//! make of them.
//!
//! Needs dnsmasq, named, unbound, dig, dnsperf, python3 and node. A missing one fails the test and names the package;
//! FAULTBOX_SKIP_REAL=1 skips instead, loudly.

mod support;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use faultbox_contract::Arg;
use faultbox_engine::testing::{Harness, PATIENCE, clients, free_addr};
use support::{endpoint, query_at, text};

const PACKAGES: &[(&str, &str)] = &[
    ("dnsmasq", "dnsmasq-base"),
    ("named", "bind9"),
    ("unbound", "unbound"),
    ("dig", "bind9-dnsutils"),
    ("dnsperf", "dnsperf"),
    ("python3", "python3"),
    ("node", "nodejs"),
];

/// Debian keeps servers out of a plain user's PATH.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|p| p.is_file())
}

/// Is everything that a test needs installed? Panics, with the packages to install, unless skipping was asked for.
fn installed(needs: &[&str]) -> bool {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(program, _)| needs.contains(program) && find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    clients::complete(&missing)
}

/// A server process that ends with the test.
struct Server {
    child: Child,
    addr: SocketAddr,
    dir: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn scratch(name: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

/// The zone that every server here serves, as `example.test`.
const ZONE: &str = "$ORIGIN example.test.
$TTL 300
@ SOA ns hostmaster 1 7200 900 1209600 60
@ NS ns
@ MX 10 mail
@ TXT \"v=spf1 -all\"
ns A 192.0.2.53
www A 192.0.2.80
www AAAA 2001:db8::80
mail A 192.0.2.25
alias CNAME www
_sip._udp SRV 0 5 5060 www
";

impl Server {
    fn start(
        name: &str,
        program: &str,
        configure: impl FnOnce(&Path, SocketAddr) -> Vec<String>,
    ) -> Server {
        let dir = scratch(name);
        // unbound and named share their port (SO_REUSEPORT), and so does dig, which must not be given the server's own.
        let addr = free_addr();
        let args = configure(&dir, addr);
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let mut child = Command::new(find(program).unwrap())
            .args(&args)
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let deadline = Instant::now() + PATIENCE;
        let mut probe = endpoint(addr);
        probe.attempt = Duration::from_secs(5);
        while let Err(e) = runtime.block_on(faultbox_dns::protocol().ready(probe.clone())) {
            let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
            if let Ok(Some(status)) = child.try_wait() {
                panic!("{program} exited with {status}: {}", log());
            }
            assert!(Instant::now() < deadline, "{program}: {e}: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Server { child, addr, dir }
    }

    /// Dnsmasq knows the zone, and passes all other questions on to `forward`.
    fn dnsmasq(name: &str, forward: Option<SocketAddr>) -> Server {
        Server::start(name, "dnsmasq", |dir, addr| {
            [
                "--keep-in-foreground",
                "--no-resolv",
                "--no-hosts",
                "--conf-file=/dev/null",
                "--bind-interfaces",
                "--listen-address=127.0.0.1",
                "--log-facility=-",
                "--local=/example.test/",
                "--host-record=www.example.test,192.0.2.80,2001:db8::80",
                "--host-record=mail.example.test,192.0.2.25",
                "--cname=alias.example.test,www.example.test",
                "--mx-host=example.test,mail.example.test,10",
                "--txt-record=example.test,v=spf1 -all",
                "--srv-host=_sip._udp.example.test,www.example.test,5060,0,5",
            ]
            .iter()
            .map(|s| (*s).to_owned())
            .chain([
                format!("--port={}", addr.port()),
                format!("--pid-file={}", dir.join("pid").display()),
            ])
            .chain(forward.map(|to| format!("--server={}#{}", to.ip(), to.port())))
            .collect()
        })
    }

    fn bind(name: &str) -> Server {
        let server = Server::start(name, "named", |dir, addr| {
            let d = dir.display();
            std::fs::write(dir.join("zone"), ZONE).unwrap();
            let config = format!(
                "options {{ directory \"{d}\"; pid-file \"{d}/pid\"; session-keyfile \"{d}/key\"; managed-keys-directory \"{d}\";
                 listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; allow-transfer {{ any; }}; }};
                 controls {{ }};
                 zone \"example.test\" {{ type primary; file \"{d}/zone\"; dnssec-policy default; inline-signing yes; }};",
                port = addr.port()
            );
            std::fs::write(dir.join("named.conf"), config).unwrap();
            vec!["-g".into(), "-c".into(), format!("{d}/named.conf")]
        });
        // It answers before it has loaded the zone, with SERVFAIL.
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let deadline = Instant::now() + PATIENCE;
        let loaded = || runtime.block_on(query_at(server.addr, "www.example.test", &[]));
        while !loaded().ok {
            assert!(Instant::now() < deadline, "named does not load the zone");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Unbound serves the zone from its configuration; a second one resolves through `forward`.
    fn unbound(name: &str, forward: Option<SocketAddr>) -> Server {
        Server::start(name, "unbound", |dir, addr| {
            let d = dir.display();
            let mut config = format!(
                "server:\n directory: \"{d}\"\n pidfile: \"{d}/pid\"\n username: \"\"\n chroot: \"\"\n use-syslog: no\n logfile: \"\"\n
                 interface: 127.0.0.1@{port}\n port: {port}\n do-not-query-localhost: no\n module-config: \"iterator\"\n
                 access-control: 127.0.0.0/8 allow\n local-zone: \"test.\" nodefault\n",
                port = addr.port()
            );
            match forward {
                Some(to) => config.push_str(&format!(
                    "forward-zone:\n name: \".\"\n forward-addr: {}@{}\n",
                    to.ip(),
                    to.port()
                )),
                None => {
                    config.push_str(" local-zone: \"example.test.\" static\n");
                    for line in [
                        "www.example.test. A 192.0.2.80",
                        "www.example.test. AAAA 2001:db8::80",
                        "example.test. MX 10 mail.example.test.",
                        "mail.example.test. A 192.0.2.25",
                    ] {
                        config.push_str(&format!(" local-data: \"{line}\"\n"));
                    }
                }
            }
            std::fs::write(dir.join("unbound.conf"), config).unwrap();
            vec!["-d".into(), "-c".into(), format!("{d}/unbound.conf")]
        })
    }
}

/// Runs a client to its end and returns what it prints, whatever its status.
fn client(program: &str, args: &[&str]) -> String {
    // coreutils' timeout: a client that hangs is a failure with a name, not a hung test.
    let output = Command::new("timeout")
        .arg("120")
        .arg(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_ne!(output.status.code(), Some(124), "{program} {args:?} hangs");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// dig's page, sorted, without what differs from one run to the next: numbers of transactions, times, cookies, the port.
fn dig(addr: SocketAddr, args: &[&str]) -> String {
    let port = addr.port().to_string();
    let mut all = vec!["@127.0.0.1", "-p", &port, "+tries=1", "+time=20"];
    all.extend(args);
    let mut lines: Vec<String> = client("dig", &all)
        .lines()
        .filter(|l| !l.starts_with(";; Query time") && !l.starts_with(";; WHEN"))
        .filter(|l| !l.starts_with("; COOKIE") && !l.starts_with("; <<>>"))
        .map(|l| match l.split_once(", id: ") {
            Some((head, _)) => head.to_owned(),
            None => l.replace(&port, "PORT"),
        })
        .collect();
    // Servers rotate the records of an answer from one to the next.
    lines.sort();
    lines.join("\n")
}

/// A runtime with a proxy in it.
fn proxy(upstream: SocketAddr) -> (tokio::runtime::Runtime, Harness) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let harness = {
        let _inside = runtime.enter();
        Harness::start(faultbox_dns::protocol(), upstream)
    };
    (runtime, harness)
}

/// Runs the same client directly and through the proxy, without a rule and with one that does not match, and compares.
fn same(server: SocketAddr, run: impl Fn(SocketAddr) -> String) -> String {
    let (_runtime, harness) = proxy(server);
    let direct = run(server);
    assert_eq!(direct, run(harness.addr));
    harness.arm("error", &[("name", text("never.example"))]);
    assert_eq!(direct, run(harness.addr));
    assert_eq!(harness.degradations(), [""; 0]);
    assert_eq!(harness.fired(), 0);
    direct
}

const QUESTIONS: &[&[&str]] = &[
    &["www.example.test", "A"],
    &["WWW.Example.Test", "AAAA"],
    &["www.example.test", "A", "+noedns"],
    &["www.example.test", "A", "+dnssec"],
    &["www.example.test", "A", "+tcp"],
    &["www.example.test", "A", "+tcp", "+dnssec", "+nocookie"],
    &["example.test", "MX"],
    &["example.test", "TXT"],
    &["alias.example.test", "A"],
    &["_sip._udp.example.test", "SRV"],
    &["nowhere.example.test", "A"],
    &["nowhere.example.test", "A", "+tcp"],
    &["www.example.test", "TYPE65"],
    &[
        "www.example.test",
        "A",
        "+bufsize=512",
        "+norecurse",
        "+cdflag",
    ],
    &["www.example.test", "A", "+ednsopt=65001:01020304"],
];

/// Whether a server answers does not hang on servers that it would ask: a test's network has none of the internet's.
#[test]
fn a_server_that_reaches_no_other_is_ready() {
    if !installed(&["dnsmasq", "unbound"]) {
        return;
    }
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap();
    Server::dnsmasq("alone-dnsmasq", Some(silent));
    Server::unbound("alone-unbound", Some(silent));
}

#[test]
fn dig_gets_the_same_answers() {
    if !installed(&["dnsmasq", "named", "unbound", "dig"]) {
        return;
    }
    let servers = [
        Server::dnsmasq("dig-dnsmasq", None),
        Server::bind("dig-bind"),
        Server::unbound("dig-unbound", None),
    ];
    // Once the zone is signed, its signatures stay. The keys are signed first; that all is, named says in a record of its own, by the last
    // octet (BIND 9 Administrator Reference Manual, "Private Type Records"; 0D is the algorithm of the default policy's key).
    let deadline = Instant::now() + PATIENCE;
    let signed = || {
        let zone = dig(servers[1].addr, &["example.test", "AXFR"]);
        let mut marks = zone.lines().filter(|l| l.contains("\\# 5 0D"));
        marks.next().is_some_and(|mark| mark.ends_with("0001"))
    };
    while !signed() {
        assert!(Instant::now() < deadline, "named does not sign");
        std::thread::sleep(Duration::from_millis(50));
    }
    for server in &servers {
        let all = same(server.addr, |addr| {
            let pages: Vec<String> = QUESTIONS.iter().map(|q| dig(addr, q)).collect();
            pages.join("\n")
        });
        assert!(
            all.contains("192.0.2.80") && all.contains("NXDOMAIN"),
            "{all}"
        );
    }
    // A zone transfer, and a signed reply that fits no small datagram.
    let all = same(servers[1].addr, |addr| {
        [
            dig(addr, &["example.test", "AXFR"]),
            dig(addr, &["example.test", "SOA", "+opcode=4"]),
            dig(addr, &["example.test", "DNSKEY", "+dnssec"]),
            dig(addr, &["example.test", "ANY", "+dnssec", "+bufsize=512"]),
        ]
        .join("\n")
    });
    assert!(all.contains("XFR size") && all.contains("RRSIG"), "{all}");
}

const NODE: &str = r#"
const { Resolver } = require('dns').promises;
const r = new Resolver({ timeout: 20000, tries: 1 });
r.setServers(['127.0.0.1:' + process.argv[1]]);
(async () => {
    for (const [name, type] of [['www.example.test', 'A'], ['www.example.test', 'AAAA'], ['example.test', 'MX'], ['nowhere.example.test', 'A']]) {
        try { console.log(name, type, JSON.stringify(await r.resolve(name, type))); }
        catch (e) { console.log(name, type, e.code); }
    }
})();
"#;

const PYTHON: &str = r#"
import socket, struct, sys
port = int(sys.argv[1])
def name(text):
    return b"".join(bytes([len(l)]) + l.encode() for l in text.split(".")) + b"\0"
def ask(number, text, kind):
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + name(text) + struct.pack(">2H", kind, 1)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.settimeout(20)
udp.connect(("127.0.0.1", port))
for number in range(200):
    udp.send(ask(number, "www.example.test", 1))
    print(udp.recv(4096).hex())
tcp = socket.create_connection(("127.0.0.1", port), 20)
f = tcp.makefile("rb")
questions = [ask(number, "www.example.test", 28) for number in range(50)]
tcp.sendall(b"".join(struct.pack(">H", len(q)) + q for q in questions))
replies = []
for _ in questions:
    n, = struct.unpack(">H", f.read(2))
    replies.append(f.read(n).hex())
print(sorted(replies))
tcp.shutdown(socket.SHUT_WR)
print(f.read())
"#;

#[test]
fn python_and_node_get_the_same_answers() {
    if !installed(&["dnsmasq", "named", "python3", "node"]) {
        return;
    }
    for server in [
        Server::dnsmasq("lang-dnsmasq", None),
        Server::bind("lang-bind"),
    ] {
        let seen = same(server.addr, |addr| {
            let port = addr.port().to_string();
            client("node", &["-e", NODE, &port])
        });
        assert!(
            seen.contains("192.0.2.80") && seen.contains("ENOTFOUND"),
            "{seen}"
        );
        let (_runtime, harness) = proxy(server.addr);
        let run = |addr: SocketAddr| client("python3", &["-c", PYTHON, &addr.port().to_string()]);
        let direct = run(server.addr);
        assert!(!direct.contains("Traceback"), "{direct}");
        assert_eq!(direct, run(harness.addr));
    }
}

#[test]
fn dnsperf_loses_nothing() {
    if !installed(&["named", "dnsperf"]) {
        return;
    }
    let server = Server::bind("perf-bind");
    let (_runtime, harness) = proxy(server.addr);
    let file = server.dir.join("queries");
    std::fs::write(
        &file,
        "www.example.test A\nexample.test MX\nnowhere.example.test A\n",
    )
    .unwrap();
    for (mode, count) in [("udp", "5000"), ("tcp", "1000")] {
        let port = harness.addr.port().to_string();
        let said = client(
            "dnsperf",
            &[
                "-s",
                "127.0.0.1",
                "-p",
                &port,
                "-d",
                file.to_str().unwrap(),
                "-m",
                mode,
                "-c",
                "10",
                "-n",
                count,
                "-t",
                "30",
                "-q",
                "50",
            ],
        );
        let completed = said
            .lines()
            .find(|l| l.contains("Queries completed"))
            .unwrap_or_else(|| panic!("{said}"));
        assert!(completed.contains("(100.00%)"), "{mode}: {said}");
    }
    assert_eq!(harness.degradations(), [""; 0]);
}

#[test]
fn dig_and_node_see_faults_as_their_own() {
    if !installed(&["named", "dig", "node"]) {
        return;
    }
    let server = Server::bind("fault-bind");
    let (_runtime, harness) = proxy(server.addr);
    let arm = |action: &str, args: &[(&str, Arg)]| {
        let _inside = _runtime.enter();
        harness.arm(action, args)
    };
    let node = || client("node", &["-e", NODE, &harness.addr.port().to_string()]);
    for (code, dig_word, node_word) in [
        ("NXDOMAIN", "status: NXDOMAIN", "ENOTFOUND"),
        ("SERVFAIL", "status: SERVFAIL", "ESERVFAIL"),
        ("REFUSED", "status: REFUSED", "EREFUSED"),
    ] {
        let rule = arm(
            "error",
            &[
                ("name", text("www.*")),
                ("code", text(code)),
                ("message", text("by a rule")),
            ],
        );
        for args in [
            &["www.example.test", "A"][..],
            &["www.example.test", "A", "+tcp"],
        ] {
            let page = dig(harness.addr, args);
            assert!(page.contains(dig_word), "{page}");
            assert!(page.contains("EDE: 0 (Other): (by a rule)"), "{page}");
            assert!(
                !page.contains("WARNING") && !page.contains("malformed"),
                "{page}"
            );
        }
        let page = dig(harness.addr, &["www.example.test", "A", "+noedns"]);
        assert!(page.contains(dig_word) && !page.contains("EDNS"), "{page}");
        let seen = node();
        assert!(
            seen.contains(&format!("www.example.test A {node_word}")),
            "{seen}"
        );
        assert!(seen.contains(r#"example.test MX [{"#), "{seen}");
        harness.rules.lift(rule.id);
    }
    let rule = arm(
        "response",
        &[
            ("name", text("www.example.test")),
            (
                "records",
                Arg::Json(serde_json::json!(["198.51.100.1", "2001:db8::1"])),
            ),
        ],
    );
    let seen = node();
    assert!(
        seen.contains(r#"A ["198.51.100.1"]"#) && seen.contains(r#"AAAA ["2001:db8::1"]"#),
        "{seen}"
    );
    harness.rules.lift(rule.id);
    let rule = arm("truncate", &[]);
    let page = dig(harness.addr, &["www.example.test", "A"]);
    assert!(
        page.contains("Truncated, retrying in TCP mode") && page.contains("192.0.2.80"),
        "{page}"
    );
    harness.rules.lift(rule.id);
    arm("drop", &[]);
    let port = harness.addr.port().to_string();
    let said = client(
        "dig",
        &[
            "@127.0.0.1",
            "-p",
            &port,
            "+tries=1",
            "+time=1",
            "www.example.test",
        ],
    );
    assert!(
        said.contains("timed out") || said.contains("no servers could be reached"),
        "{said}"
    );
}

/// A resolver in between, as in production: it retries over TCP after a cut reply, and passes an error of its upstream on.
#[test]
fn a_resolver_copes_as_it_would_with_a_real_server() {
    if !installed(&["named", "unbound", "dig"]) {
        return;
    }
    let server = Server::bind("resolver-bind");
    let (_runtime, harness) = proxy(server.addr);
    let resolver = Server::unbound("resolver-unbound", Some(harness.addr));
    let rule = {
        let _inside = _runtime.enter();
        harness.arm("truncate", &[("name", text("mail.*"))])
    };
    let page = dig(resolver.addr, &["mail.example.test", "A"]);
    assert!(page.contains("192.0.2.25"), "{page}");
    assert!(rule.hits() > 0);
    harness.rules.lift(rule.id);
    {
        let _inside = _runtime.enter();
        harness.arm("error", &[("name", text("www.*"))]);
        harness.arm(
            "error",
            &[("name", text("gone.*")), ("code", text("NXDOMAIN"))],
        );
    }
    let page = dig(resolver.addr, &["www.example.test", "A"]);
    assert!(page.contains("status: SERVFAIL"), "{page}");
    let page = dig(resolver.addr, &["gone.example.test", "A"]);
    assert!(page.contains("status: NXDOMAIN"), "{page}");
}

/// What dig says, with its own counts and times, when it may ask several times.
fn patient_dig(addr: SocketAddr, args: &[&str]) -> String {
    let port = addr.port().to_string();
    client("dig", &[&["@127.0.0.1", "-p", &port][..], args].concat())
}

#[test]
fn dig_waits_for_a_delayed_answer_or_asks_again() {
    if !installed(&["named", "dig"]) {
        return;
    }
    let server = Server::bind("delay-dig");
    let (runtime, harness) = proxy(server.addr);
    let delay = |args: &[(&str, Arg)]| {
        let _inside = runtime.enter();
        harness.arm("delay", args)
    };
    // By either transport it is waited for, and dig says how long it took.
    let rule = delay(&[("name", text("www.*")), ("delay", text("300ms"))]);
    for how in ["+notcp", "+tcp"] {
        let page = patient_dig(
            harness.addr,
            &["+tries=1", "+time=60", how, "www.example.test"],
        );
        let took = page
            .lines()
            .find_map(|l| l.strip_prefix(";; Query time: ")?.strip_suffix(" msec"))
            .unwrap_or_else(|| panic!("{page}"));
        // Its clock is read by the millisecond at both ends.
        assert!(took.parse::<u32>().unwrap() >= 298, "{how}: {page}");
        assert!(page.contains("192.0.2.80"), "{page}");
    }
    // What is not selected is not held: dig's least patience is enough.
    let page = patient_dig(harness.addr, &["+tries=1", "+time=20", "mail.example.test"]);
    assert!(page.contains("192.0.2.25"), "{page}");
    assert_eq!((rule.matched(), rule.hits()), (2, 2));
    harness.rules.lift(rule.id);

    // The first question is held for longer than dig waits; the second is answered.
    let long = [("delay", text("1h")), ("nth", Arg::Int(1))];
    let rule = delay(&long);
    let page = patient_dig(harness.addr, &["+tries=2", "+time=3", "www.example.test"]);
    assert!(page.contains("timed out"), "{page}");
    assert!(page.contains("192.0.2.80"), "{page}");
    assert_eq!((rule.matched(), rule.hits()), (2, 1));
    harness.rules.lift(rule.id);

    // Each try times out, and there are no others.
    let rule = delay(&long[..1]);
    let page = patient_dig(harness.addr, &["+tries=3", "+time=1", "www.example.test"]);
    assert!(page.contains("no servers could be reached"), "{page}");
    assert!(!page.contains("192.0.2.80"), "{page}");
    assert_eq!((rule.matched(), rule.hits()), (3, 3));
}

/// c-ares, which is Node's resolver: as often as it was told, then its own error.
#[test]
fn node_asks_again_or_times_out_when_answers_are_delayed() {
    if !installed(&["named", "node"]) {
        return;
    }
    let server = Server::bind("delay-node");
    let (runtime, harness) = proxy(server.addr);
    let script = r#"
const { Resolver } = require('dns').promises;
const [port, timeout, tries] = process.argv.slice(1).map(Number);
const r = new Resolver({ timeout, tries });
r.setServers(['127.0.0.1:' + port]);
const start = Date.now();
r.resolve4('www.example.test')
    .then((a) => console.log(a.join(), Date.now() - start >= 300), (e) => console.log(e.code));
"#;
    let port = harness.addr.port().to_string();
    for (args, options, said, (matched, hits)) in [
        (
            vec![("delay", text("300ms"))],
            ["60000", "1"],
            "192.0.2.80 true\n",
            (1, 1),
        ),
        // The first try is held, and the second comes through.
        (
            vec![("delay", text("1h")), ("nth", Arg::Int(1))],
            ["3000", "2"],
            "192.0.2.80 true\n",
            (2, 1),
        ),
        (
            vec![("delay", text("1h"))],
            ["300", "3"],
            "ETIMEOUT\n",
            (3, 3),
        ),
    ] {
        let rule = {
            let _inside = runtime.enter();
            harness.arm("delay", &args)
        };
        let seen = client("node", &[&["-e", script, &port][..], &options].concat());
        assert_eq!(seen, said, "{args:?}");
        assert_eq!((rule.matched(), rule.hits()), (matched, hits), "{args:?}");
        harness.rules.lift(rule.id);
    }
}
