//! What /proc tells about processes: who carries a run's marker, who descends from whom, who holds a socket.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The environment variable that every process of a run carries: how the janitor finds what escaped from every tree.
pub const RUN_MARKER: &str = "FAULTBOX_RUN";
/// Which worker of the run a process belongs to.
pub const WORKER_MARKER: &str = "FAULTBOX_WORKER";
/// Which service a process belongs to; set for services only.
pub const SERVICE_MARKER: &str = "FAULTBOX_SERVICE";

/// The fields of /proc/PID/stat (proc_pid_stat(5)) that tell a process's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// One letter; Z is a zombie, X is dead.
    pub state: char,
    /// The parent.
    pub ppid: i32,
    /// The process group.
    pub pgrp: i32,
    /// Start time in clock ticks since boot: with the pid, identifies a process for good.
    pub start: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // The second field is the command in parentheses and may itself contain spaces and parentheses.
        let rest = &text[text.rfind(')')? + 2..];
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let ppid = fields.next()?.parse().ok()?;
        let pgrp = fields.next()?.parse().ok()?;
        // Fields 6 to 21 lie between the process group (5) and the start time (22).
        let start = fields.nth(16)?.parse().ok()?;
        Some(Stat {
            state,
            ppid,
            pgrp,
            start,
        })
    }

    /// Does it still run (or sleep, or is stopped)?
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// A process's place; `None` once it is gone.
pub fn stat(pid: i32) -> Option<Stat> {
    Stat::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name of a process, as `ps` shows it.
pub fn name(pid: i32) -> Option<String> {
    Some(
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .ok()?
            .trim_end()
            .to_owned(),
    )
}

/// Every process there is.
pub fn all() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return vec![];
    };
    entries
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// Does the process carry all of these `NAME=value` strings in its environment? Zombies carry nothing.
pub fn carries(pid: i32, marks: &[String]) -> bool {
    let Ok(environ) = std::fs::read(format!("/proc/{pid}/environ")) else {
        return false;
    };
    marks
        .iter()
        .all(|mark| environ.split(|b| *b == 0).any(|e| e == mark.as_bytes()))
}

/// Every process but this one that carries all of `marks`.
pub fn marked(marks: &[String]) -> Vec<i32> {
    let own = std::process::id() as i32;
    all()
        .into_iter()
        .filter(|pid| *pid != own && carries(*pid, marks))
        .collect()
}

/// The network namespace of a process, as the kernel names it ("net:[4026531840]").
pub fn network(pid: i32) -> Option<String> {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    Some(link.to_string_lossy().into_owned())
}

/// Every process in one of these network namespaces; nothing is ever found in this process's own.
pub fn in_networks(names: &[String]) -> Vec<i32> {
    let own = network(std::process::id() as i32);
    if names.is_empty() || own.is_none() {
        return vec![];
    }
    all()
        .into_iter()
        .filter(|pid| network(*pid).is_some_and(|n| Some(&n) != own.as_ref() && names.contains(&n)))
        .collect()
}

/// The live processes below this one. As it is a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER), none of what it started gets out of here.
pub fn below_own() -> Vec<i32> {
    let table: HashMap<i32, Stat> = all()
        .into_iter()
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .collect();
    let mut below = HashSet::from([std::process::id() as i32]);
    close_downwards(&mut below, &table);
    below.remove(&(std::process::id() as i32));
    below
        .into_iter()
        .filter(|pid| table.get(pid).is_some_and(Stat::is_alive))
        .collect()
}

/// Adds the descendants of those in `tree`.
fn close_downwards(tree: &mut HashSet<i32>, table: &HashMap<i32, Stat>) {
    loop {
        let more: Vec<i32> = table
            .iter()
            .filter(|(pid, s)| !tree.contains(pid) && tree.contains(&s.ppid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return;
        }
        tree.extend(more);
    }
}

/// Kills every process that `find` finds, again and again until there is none (they may be forking), at most for `limit`.
/// Says whether none is left.
pub fn kill_all(limit: Duration, find: impl Fn() -> Vec<i32>) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let found = find();
        if found.is_empty() {
            return true;
        }
        for pid in found {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Kills every process that carries `marks`, and every one in these network namespaces, which is where those are that have
/// cleaned their environment. Says whether none is left.
pub fn kill_owned(marks: &[String], networks: &[String], limit: Duration) -> bool {
    kill_all(limit, || {
        let mut found = marked(marks);
        found.extend(in_networks(networks));
        found
    })
}

/// The live processes of the tree under `leader`, without a cgroup to ask: its descendants, its process group, and orphans that this
/// process has inherited as a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER) and that carry `marks`.
/// Once the leader has been reaped (`valid` is false) its number may be anybody's: then only what carries `marks` counts as a root.
pub fn descendants(leader: i32, valid: bool, marks: &[String]) -> Vec<i32> {
    let own = std::process::id() as i32;
    let table: HashMap<i32, Stat> = all()
        .into_iter()
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .collect();
    let mut tree: HashSet<i32> = table
        .iter()
        .filter(|(pid, s)| {
            let near = **pid == leader || s.pgrp == leader;
            (near && valid) || ((near || s.ppid == own) && carries(**pid, marks))
        })
        .map(|(pid, _)| *pid)
        .collect();
    close_downwards(&mut tree, &table);
    tree.into_iter()
        .filter(|pid| table.get(pid).is_some_and(Stat::is_alive))
        .collect()
}

/// The inode of the TCP socket whose own address is `local`, in this process's network namespace.
/// With `listening`, only a listener counts, and a wildcard listener counts for every address.
pub fn tcp_inode(local: SocketAddr, listening: bool) -> Option<u64> {
    sockets(["tcp", "tcp6"]).find_map(|socket| {
        let same_ip = socket.local.ip().to_canonical() == local.ip().to_canonical()
            || (listening && socket.local.ip().is_unspecified());
        // include/net/tcp_states.h: 0A is TCP_LISTEN.
        let fits =
            socket.local.port() == local.port() && same_ip && (socket.state == 0x0a) == listening;
        fits.then_some(socket.inode)
    })
}

/// Does anybody in this process's network namespace accept connections or datagrams on this port by IPv6?
pub fn listens_on_ipv6(port: u16) -> bool {
    accepts_by_ipv6(port) || waits_on_ipv6("udp6", "07", port)
}

/// Does anybody accept connections there?
pub fn accepts_by_ipv6(port: u16) -> bool {
    waits_on_ipv6("tcp6", "0A", port)
}

/// Is there a socket in this table of the network namespace, on this port and in this state (include/net/tcp_states.h: a TCP socket that
/// listens is in TCP_LISTEN, a UDP socket without a peer in TCP_CLOSE)?
fn waits_on_ipv6(table: &str, waiting: &str, port: u16) -> bool {
    let text = std::fs::read_to_string(format!("/proc/self/net/{table}")).unwrap_or_default();
    text.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace();
        let addr = fields.nth(1).and_then(parse_hex_addr);
        let waits = fields.nth(1) == Some(waiting);
        addr.is_some_and(|a| waits && a.port() == port && a.ip().to_canonical().is_ipv6())
    })
}

/// The inode of the UDP socket that datagrams from `local` come from and that datagrams to it reach: one that is bound to exactly
/// this address, or else one that is bound to its port alone, as any socket is that sends without having been bound or connected.
pub fn udp_inode(local: SocketAddr) -> Option<u64> {
    let (mut exact, mut wildcard) = (None, None);
    for socket in sockets(["udp", "udp6"]).filter(|s| s.local.port() == local.port()) {
        if socket.local.ip().to_canonical() == local.ip().to_canonical() {
            exact = exact.or(Some(socket.inode));
        } else if socket.local.ip().is_unspecified() {
            wildcard = wildcard.or(Some(socket.inode));
        }
    }
    exact.or(wildcard)
}

/// One line of /proc/net/tcp, udp and their like (proc_pid_net(5)).
struct SocketLine {
    local: SocketAddr,
    state: u8,
    inode: u64,
}

fn sockets(tables: [&'static str; 2]) -> impl Iterator<Item = SocketLine> {
    tables.into_iter().flat_map(|table| {
        let text = std::fs::read_to_string(format!("/proc/self/net/{table}")).unwrap_or_default();
        let lines: Vec<SocketLine> = text.lines().skip(1).filter_map(SocketLine::parse).collect();
        lines
    })
}

impl SocketLine {
    /// A socket that nobody holds any more (inode 0) is none.
    fn parse(line: &str) -> Option<SocketLine> {
        let mut fields = line.split_ascii_whitespace();
        let local = parse_hex_addr(fields.nth(1)?)?;
        let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
        let inode = fields.nth(5)?.parse().ok().filter(|inode| *inode != 0)?;
        Some(SocketLine {
            local,
            state,
            inode,
        })
    }
}

/// An address as /proc/net/tcp writes it: the words of the address in host byte order, in hex.
fn parse_hex_addr(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |i: usize| {
        Some(
            u32::from_str_radix(ip.get(i * 8..i * 8 + 8)?, 16)
                .ok()?
                .to_ne_bytes(),
        )
    };
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for i in 0..4 {
                octets[i * 4..i * 4 + 4].copy_from_slice(&word(i)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Does the process hold a descriptor of the socket with this inode?
pub fn holds_socket(pid: i32, inode: u64) -> bool {
    let want = format!("socket:[{inode}]");
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    entries.flatten().any(|e| {
        std::fs::read_link(e.path()).is_ok_and(|target| target.as_os_str() == want.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_odd_names() {
        let line = "12 (a) b (c) S 3 4 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987 1000 2 18446744073709551615 1";
        assert_eq!(
            Stat::parse(line),
            Some(Stat {
                state: 'S',
                ppid: 3,
                pgrp: 4,
                start: 987
            })
        );
        assert_eq!(
            stat(std::process::id() as i32).unwrap().ppid,
            std::os::unix::process::parent_id() as i32
        );
    }

    #[test]
    fn sockets_are_found_by_address() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(bind) else {
                eprintln!("skipped {bind}: not available here");
                continue;
            };
            let addr = listener.local_addr().unwrap();
            let client = std::net::TcpStream::connect(addr).unwrap();
            let inode = tcp_inode(client.local_addr().unwrap(), false).unwrap();
            assert!(holds_socket(std::process::id() as i32, inode));
            let listening = tcp_inode(addr, true).unwrap();
            assert_ne!(inode, listening);
            assert!(holds_socket(std::process::id() as i32, listening));
            assert_eq!(tcp_inode(client.local_addr().unwrap(), true), None);
        }
    }

    #[test]
    fn datagram_sockets_are_found_however_they_are_bound() {
        let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = receiver.local_addr().unwrap();
        for bind in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
            let Ok(sender) = std::net::UdpSocket::bind(bind) else {
                eprintln!("skipped {bind}: not available here");
                continue;
            };
            let to = match sender.local_addr().unwrap() {
                SocketAddr::V4(_) => to,
                SocketAddr::V6(_) => {
                    SocketAddr::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), to.port())
                }
            };
            sender.send_to(b"x", to).unwrap();
            let (_, from) = receiver.recv_from(&mut [0; 1]).unwrap();
            let inode = udp_inode(from).unwrap();
            let own = format!("socket:[{inode}]");
            let link = std::os::fd::AsRawFd::as_raw_fd(&sender);
            let link = std::fs::read_link(format!("/proc/self/fd/{link}")).unwrap();
            assert_eq!(link.as_os_str(), own.as_str(), "{bind}");
        }
        let inode = udp_inode(to).unwrap();
        assert!(holds_socket(std::process::id() as i32, inode));
    }

    #[test]
    fn marked_processes_are_killed() {
        let mark = format!("FAULTBOX_RUN=procs-{}", std::process::id());
        let (key, value) = mark.split_once('=').unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .env(key, value)
            .spawn()
            .unwrap();
        let marks = [mark];
        // The parent of an exec goes on before the kernel has written the new environment down.
        let deadline = Instant::now() + Duration::from_secs(60);
        while marked(&marks).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(marked(&marks), [child.id() as i32]);
        assert_eq!(
            descendants(child.id() as i32, true, &marks),
            [child.id() as i32]
        );
        assert!(below_own().contains(&(child.id() as i32)));
        // What is in this process's own network is never taken for the run's.
        let own = network(std::process::id() as i32).unwrap();
        assert_eq!(in_networks(&[own]), [0; 0]);
        assert!(kill_owned(&marks, &[], Duration::from_secs(60)));
        assert!(!child.wait().unwrap().success());
    }
}
