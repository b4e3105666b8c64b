//! When a service counts as ready. Every check goes straight to the service, never through its proxy.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use faultbox_contract::{Endpoint, duration};
use faultbox_engine::tls;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::nursery::{Exit, Nursery, Recipe};
use super::service::Service;
use super::user::Account;
use crate::plan::report::Blame;
use crate::plan::{Health, Reason, ServiceDecl, Topology};
use crate::run::certificates::Certificates;
use crate::run::{fleet, procs};

/// The longest single attempt: a server that hangs on one connection may well answer the next.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The pause after the first failed attempt; it grows by half each time, up to [`SLOWEST`].
const FASTEST: Duration = Duration::from_millis(1);
/// See [`FASTEST`].
const SLOWEST: Duration = Duration::from_millis(50);

/// What checks need.
#[derive(Clone)]
pub struct Checker {
    /// Runs the protocols' own probes.
    pub runtime: tokio::runtime::Handle,
    /// To tell a proxy's address from the real one.
    pub topology: Arc<Topology>,
    /// What interfaces with TLS show and trust.
    pub certificates: Arc<Certificates>,
    /// Starts commands.
    pub nursery: Nursery,
    /// A folder for the output of commands.
    pub scratch: PathBuf,
    /// Says that nobody waits any more.
    pub cancelled: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// What the commands of `cmd(...)` run with: the service's own.
pub struct CommandSetting<'a> {
    /// The environment.
    pub env: &'a [(String, String)],
    /// The user.
    pub account: Option<&'a Account>,
}

impl Checker {
    /// Waits until the service is ready.
    ///
    /// # Errors
    /// It ended, or was not ready in time: with the check, the time and the last error.
    pub fn wait(
        &self,
        decl: &ServiceDecl,
        service: Option<&Service>,
        setting: &CommandSetting<'_>,
    ) -> Result<(), Reason> {
        let Some(health) = &decl.health else {
            return Ok(());
        };
        let began = Instant::now();
        let deadline = began + health.timeout();
        let mut pause = FASTEST;
        let mut earlier = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = left.min(ATTEMPT);
            let mut error = match self.attempt(decl, health, limit, setting) {
                Ok(()) => {
                    // Whoever has its port answers as well as it does.
                    return match service.and_then(|s| stranger(decl, health, s)) {
                        Some(reason) => Err(reason),
                        None => Ok(()),
                    };
                }
                Err(error) => error,
            };
            if (self.cancelled)() {
                return Err(Reason::new("interrupted", Blame::Test));
            }
            if let Some(ended) = service.and_then(Service::ended) {
                let reason = Reason::new(
                    format!("service `{}` {ended} before it was ready", decl.name),
                    Blame::Test,
                );
                return Err(unless_full(reason, service));
            }
            let now = Instant::now();
            if now >= deadline {
                // An attempt that the deadline cut short only says so; the one before it knows what is wrong.
                if limit < ATTEMPT
                    && let Some(earlier) = earlier
                {
                    error = earlier;
                }
                let mut reason = Reason::new(
                    format!(
                        "service `{}` was not ready within {}: {}: {error}",
                        decl.name,
                        duration::show(health.timeout()),
                        self.describe(decl, health)
                    ),
                    Blame::Test,
                );
                reason.help = Some(format!(
                    "see the log of `{}`; a slow start may need a larger `timeout=`",
                    decl.name
                ));
                return Err(unless_full(reason, service));
            }
            earlier = Some(error);
            let until = (now + pause).min(deadline);
            match service {
                Some(service) => service.wait_change(until),
                None => std::thread::sleep(until - now),
            }
            pause = (pause * 3 / 2).min(SLOWEST);
        }
    }

    fn attempt(
        &self,
        decl: &ServiceDecl,
        health: &Health,
        limit: Duration,
        setting: &CommandSetting<'_>,
    ) -> Result<(), String> {
        // connect_timeout panics on zero, and a check deserves one honest attempt.
        let limit = limit.max(Duration::from_millis(10));
        match health {
            Health::Tcp { addr, .. } => connect(&self.direct(addr), limit).map(|_| ()),
            Health::Http { url, low, high, .. } => {
                let status = self.get(url, limit)?;
                if (*low..=*high).contains(&status) {
                    Ok(())
                } else {
                    Err(format!("status {status}"))
                }
            }
            Health::Ready { interface, .. } => {
                let interface = match interface {
                    Some(name) => decl.interface(name),
                    None => decl.default_interface(),
                }
                .ok_or("there is no interface to ask")?;
                let protocol = fleet::protocol(interface.protocol)
                    .ok_or_else(|| format!("no protocol {}", interface.protocol))?;
                let endpoint = Endpoint {
                    kept: None,
                    addr: interface.addr,
                    host: interface.host.clone(),
                    env: Arc::new(decl.env.clone()),
                    attempt: limit,
                    addresses: Arc::default(),
                    tls: self.certificates.of_probe(interface),
                };
                self.runtime.block_on(async {
                    tokio::time::timeout(limit, protocol.ready(endpoint))
                        .await
                        .unwrap_or_else(|_| {
                            Err(format!("no answer within {}", duration::show(limit)))
                        })
                })
            }
            Health::Cmd { argv, .. } => self.command(decl, argv, limit, setting),
        }
    }

    /// The check in a few words, with the address that was really asked.
    fn describe(&self, decl: &ServiceDecl, health: &Health) -> String {
        match health {
            Health::Tcp { addr, .. } => format!("tcp {}", self.direct(addr)),
            Health::Http { url, .. } => format!("GET {url}"),
            Health::Ready { interface, .. } => {
                let interface = match interface {
                    Some(name) => decl.interface(name),
                    None => decl.default_interface(),
                };
                match interface {
                    Some(i) => format!("{} at {}", i.protocol, i.addr),
                    None => "ready".to_owned(),
                }
            }
            Health::Cmd { argv, .. } => format!("`{}`", argv.join(" ")),
        }
    }

    /// The service's own address where `addr` is that of its proxy.
    fn direct(&self, addr: &str) -> String {
        let Ok(parsed) = addr.parse::<SocketAddr>() else {
            return addr.to_owned();
        };
        self.topology
            .services
            .iter()
            .flat_map(|s| &s.interfaces)
            .find(|i| i.proxy_addr == Some(parsed))
            .map_or_else(|| addr.to_owned(), |i| i.addr.to_string())
    }

    /// Sends one GET and reads the status line.
    fn get(&self, url: &str, limit: Duration) -> Result<u16, String> {
        let (rest, secure) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (rest, false),
            (_, Some(rest)) => (rest, true),
            _ => return Err("only http:// and https:// can be asked".into()),
        };
        let (authority, path) = match rest.find(['/', '?']) {
            Some(i) if rest.as_bytes()[i] == b'/' => (&rest[..i], rest[i..].to_owned()),
            Some(i) => (&rest[..i], format!("/{}", &rest[i..])),
            None => (rest, "/".to_owned()),
        };
        let with_port = if authority
            .rsplit_once(':')
            .is_some_and(|(_, p)| p.parse::<u16>().is_ok())
        {
            authority.to_owned()
        } else {
            format!("{authority}:{}", if secure { 443 } else { 80 })
        };
        let deadline = Instant::now() + limit;
        let direct = self.direct(&with_port);
        let mut stream = connect(&direct, limit)?;
        if secure {
            stream = self.encrypted(stream, &direct, limit)?;
        }
        let path = path.split('#').next().unwrap_or("/").to_owned();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: faultbox\r\nAccept: */*\r\nConnection: close\r\n\r\n")
            .map_err(|e| text(&e))?;
        let mut head = vec![];
        let mut byte = [0; 512];
        // A status line longer than this is none.
        while head.len() < 4096 && !head.contains(&b'\n') {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("no answer within {}", duration::show(limit)));
            }
            stream.set_read_timeout(Some(left)).map_err(|e| text(&e))?;
            match stream.read(&mut byte) {
                Ok(0) => break,
                Ok(n) => head.extend_from_slice(&byte[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    return Err(format!("no answer within {}", duration::show(limit)));
                }
                Err(e) => return Err(text(&e)),
            }
        }
        parse_status(&head).ok_or_else(|| {
            if head.is_empty() {
                "the connection was closed without an answer".to_owned()
            } else {
                "the answer is not HTTP".to_owned()
            }
        })
    }

    /// Does the handshake on a connection to `addr`; what comes back is plain. The certificate is not looked at: the question is whether
    /// the service answers.
    fn encrypted(
        &self,
        stream: TcpStream,
        addr: &str,
        limit: Duration,
    ) -> Result<TcpStream, String> {
        let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let mut interfaces = self.topology.services.iter().flat_map(|s| &s.interfaces);
        let tls = interfaces
            .find(|i| i.addr.to_string() == addr)
            .and_then(|i| self.certificates.of_probe(i))
            .unwrap_or_default();
        let plain = self.runtime.block_on(async {
            stream.set_nonblocking(true)?;
            let stream = tokio::net::TcpStream::from_std(stream)?;
            let handshake = tls::connect(stream, &tls, host, &["http/1.1"]);
            match tokio::time::timeout(limit, handshake).await {
                Ok(plain) => plain?.into_std(),
                Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
            }
        });
        let plain = plain.and_then(|plain| {
            plain.set_nonblocking(false)?;
            Ok(plain)
        });
        plain.map_err(|e| text(&e))
    }

    fn command(
        &self,
        decl: &ServiceDecl,
        argv: &[String],
        limit: Duration,
        setting: &CommandSetting<'_>,
    ) -> Result<(), String> {
        let program = argv.first().ok_or("the command is empty")?;
        let program = find_program(program, &decl.cwd, setting.env)
            .ok_or_else(|| format!("`{program}` was not found"))?;
        let mut output = tempfile::tempfile_in(&self.scratch).map_err(|e| text(&e))?;
        let into: Arc<OwnedFd> = Arc::new(output.try_clone().map_err(|e| text(&e))?.into());
        let (sender, ended) = channel();
        let started = self
            .nursery
            .start(
                Recipe {
                    program,
                    argv: argv.to_vec(),
                    env: setting.env.to_vec(),
                    cwd: decl.cwd.clone(),
                    stdout: into.clone(),
                    stderr: into,
                    user: setting.account.map(|a| a.ids.clone()),
                    cgroup: None,
                    io_uring: crate::plan::IoUring::Allow,
                    listen: None,
                },
                move |_, exit| {
                    let _ = sender.send(exit);
                },
            )
            .map_err(|e| e.to_string())?;
        match ended.recv_timeout(limit) {
            Ok(Exit::Status(0)) => Ok(()),
            Ok(exit) => Err(match last_line(&mut output) {
                Some(line) => format!("{exit}: {line}"),
                None => exit.to_string(),
            }),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let _ = killpg(Pid::from_raw(started.pid), Signal::SIGKILL);
                Err(format!("not done within {}", duration::show(limit)))
            }
        }
    }
}

/// A service that cannot write its log has failed for that, as far as can be known: most give up when standard output does.
fn unless_full(reason: Reason, service: Option<&Service>) -> Reason {
    let Some(folder) = service.and_then(|s| s.log().full()) else {
        return reason;
    };
    let mut full = Reason::new(
        format!(
            "the disk of {}, where services write their logs, is full: {}",
            folder.display(),
            reason.message
        ),
        Blame::Environment,
    );
    full.help =
        Some("make room there, or set TMPDIR (or --keep-logs) to a folder that has some".into());
    full
}

/// Why an answer at the interface of a `ready()` check does not count: a process that is none of the service's listens there.
fn stranger(decl: &ServiceDecl, health: &Health, service: &Service) -> Option<Reason> {
    let Health::Ready { interface, .. } = health else {
        return None;
    };
    let interface = match interface {
        Some(name) => decl.interface(name),
        None => decl.default_interface(),
    }?;
    let transport = fleet::protocol(interface.protocol)?.transport();
    let inode = match transport.has_tcp() {
        true => procs::tcp_inode(interface.addr, true)?,
        false => procs::udp_inode(interface.addr)?,
    };
    let holds = |pid: &i32| procs::holds_socket(*pid, inode);
    let tree = service.tree();
    if tree.iter().any(holds) {
        return None;
    }
    // Nobody is named where /proc does not show who it is, and then nothing is claimed.
    let holder = procs::all()
        .into_iter()
        .find(|p| holds(p) && !tree.contains(p))?;
    let name = procs::name(holder).unwrap_or_else(|| "?".to_owned());
    let mut reason = Reason::new(
        format!(
            "port {} of {}.{} is answered by `{name}` (pid {holder}), which is no process of the service",
            interface.addr.port(),
            decl.name,
            interface.name
        ),
        Blame::Test,
    );
    reason.help = Some(format!(
        "see the log of `{}`: it could hardly listen there as well; give one of the two another port",
        decl.name
    ));
    Some(reason)
}

fn connect(addr: &str, limit: Duration) -> Result<TcpStream, String> {
    let addrs = addr
        .to_socket_addrs()
        .map_err(|e| format!("{addr}: {}", text(&e)))?;
    let mut last = format!("{addr} has no address");
    for addr in addrs {
        match TcpStream::connect_timeout(&addr, limit) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = text(&e),
        }
    }
    Err(last)
}

/// The system's words without "(os error N)".
fn text(e: &std::io::Error) -> String {
    match e.raw_os_error() {
        Some(errno) => nix::errno::Errno::from_raw(errno).desc().to_lowercase(),
        None => e.to_string(),
    }
}

/// RFC 9112, section 4: "HTTP/" DIGIT "." DIGIT SP 3DIGIT.
fn parse_status(head: &[u8]) -> Option<u16> {
    let line = head.split(|b| *b == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    words.next()?.strip_prefix("HTTP/1.")?;
    let status = words.next()?;
    (status.len() == 3).then(|| status.parse().ok()).flatten()
}

/// A path is relative to the service's folder, a bare name goes through the PATH of the service's environment.
fn find_program(name: &str, cwd: &Path, env: &[(String, String)]) -> Option<PathBuf> {
    if name.contains('/') {
        let path = cwd.join(name);
        return path.is_file().then_some(path);
    }
    let path = env.iter().find(|(n, _)| n == "PATH").map(|(_, v)| v)?;
    std::env::split_paths(path)
        .map(|dir| cwd.join(dir).join(name))
        .find(|p| p.is_file())
}

fn last_line(file: &mut File) -> Option<String> {
    const MOST: u64 = 4096;
    let size = file.metadata().ok()?.len();
    file.seek(std::io::SeekFrom::Start(size.saturating_sub(MOST)))
        .ok()?;
    let mut bytes = vec![];
    file.take(MOST).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.trim_end().lines().last()?.trim();
    Some(line.chars().take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines() {
        assert_eq!(parse_status(b"HTTP/1.1 204 No Content\r\n"), Some(204));
        assert_eq!(parse_status(b"HTTP/1.0 200\r\n"), Some(200));
        assert_eq!(parse_status(b"SSH-2.0-OpenSSH\r\n"), None);
        assert_eq!(parse_status(b"HTTP/1.1 20x\r\n"), None);
        assert_eq!(parse_status(b""), None);
    }

    #[test]
    fn programs_are_found_as_a_service_would() {
        let env = vec![("PATH".to_owned(), "/nowhere:/bin".to_owned())];
        assert_eq!(
            find_program("sh", Path::new("/"), &env),
            Some("/bin/sh".into())
        );
        assert_eq!(
            find_program("bin/sh", Path::new("/"), &[]),
            Some("/bin/sh".into())
        );
        assert_eq!(find_program("sh", Path::new("/"), &[]), None);
    }
}
