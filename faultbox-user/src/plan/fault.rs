//! Faults as values, before anything is armed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use faultbox_contract::{CheckedRule, Glob, TriggerSpec};

use super::SpecPos;

/// One named fault with all that it composes: what `fault_assumption(...)` is, and what a direct `fault(...)` call makes.
#[derive(Debug, Clone)]
pub struct FaultSet {
    /// The assumption's name; a direct call gets one from its target and keywords, e.g. "db.write".
    pub name: String,
    /// All active together, in the order written; children of `faults=` are flattened in.
    pub parts: Vec<FaultPart>,
    /// Free text.
    pub description: String,
    /// Where it was made.
    pub pos: SpecPos,
}

impl FaultSet {
    /// The syscall rules that target `service`.
    pub fn syscall_rules<'a>(
        &'a self,
        service: &'a str,
    ) -> impl Iterator<Item = &'a Arc<SyscallRule>> {
        self.parts.iter().filter_map(move |p| match p {
            FaultPart::Syscall {
                service: s, rule, ..
            } if s == service => Some(rule),
            _ => None,
        })
    }
}

/// One rule on one target.
#[derive(Debug, Clone)]
pub enum FaultPart {
    /// A syscall fault on a service.
    Syscall {
        /// The target.
        service: String,
        /// The rule.
        rule: Arc<SyscallRule>,
        /// The assumption that contributed it: the set's own name, or that of a composed child.
        origin: String,
    },
    /// Packets between two services that do not arrive.
    Cut {
        /// Which, and what becomes of them.
        rule: Arc<CutDecl>,
        /// The assumption that contributed it.
        origin: String,
    },
    /// A protocol rule on an interface.
    Protocol {
        /// The target's service.
        service: String,
        /// The target.
        interface: String,
        /// The rule.
        rule: Arc<CheckedRule>,
        /// The assumption that contributed it.
        origin: String,
    },
}

/// `partition(a, b)`, `packet_loss(a, b, probability=)`.
#[derive(Debug, Clone, PartialEq)]
pub struct CutDecl {
    /// The two services.
    pub ends: (String, String),
    /// The flows that it concerns, as (sender, receiver).
    pub flows: Vec<(String, String)>,
    /// The chance that a packet is lost; `None`: every packet is.
    pub probability: Option<f64>,
    /// New connections are refused, existing ones reset, instead of going silent.
    pub reject: bool,
    /// As a person writes it.
    pub text: String,
}

impl CutDecl {
    /// Does it concern what `from` sends to `to`?
    pub fn cuts(&self, from: &str, to: &str) -> bool {
        self.flows.iter().any(|(f, t)| f == from && t == to)
    }
}

/// One keyword of a syscall fault: `write=deny("EIO", path="/data/**")`.
#[derive(Debug, Clone)]
pub struct SyscallRule {
    /// The keyword: a family ("write"), a syscall ("pwrite64") or an op ("wal").
    pub key: String,
    /// The kernel's names of all syscalls it stands for, unique, on this architecture.
    pub syscalls: Vec<&'static str>,
    /// What happens.
    pub action: SyscallAction,
    /// When it fires.
    pub trigger: TriggerSpec,
    /// Glob on the resolved absolute path; calls whose object has no path do not match.
    pub path: Option<Glob>,
    /// The kind of object behind the descriptor; calls without a descriptor do not match.
    pub on: Option<FdClass>,
    /// The peer of a connect, a send or a receive; calls without a peer do not match.
    pub dest: Option<Dest>,
    /// What `connect=deny` does to connections that exist already.
    pub existing: Existing,
    /// Its name in reports.
    pub label: Option<String>,
    /// As a person writes it: `write=deny("EIO")`.
    pub text: String,
}

/// What a syscall fault does.
#[derive(Debug, Clone, PartialEq)]
pub enum SyscallAction {
    /// The call fails with this errno and has no effect.
    Deny {
        /// The positive errno.
        errno: i32,
        /// Its name.
        name: &'static str,
    },
    /// The call is held for `duration`, give or take up to `jitter` (uniform, drawn from the seed), then runs.
    Delay {
        /// How long.
        duration: Duration,
        /// The largest deviation either way.
        jitter: Duration,
    },
    /// Calls it matches are not faulted by faults applied earlier.
    Allow,
    /// The call runs on a socket that nothing reaches any more: a part of a cut, which no spec writes.
    Mute,
}

/// The kind of object behind a file descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FdClass {
    /// A regular file, a directory or a block device.
    File,
    /// Any socket.
    Socket,
    /// A pipe or FIFO.
    Pipe,
    /// A terminal.
    Tty,
    /// Anything else: eventfd, epoll, other character devices.
    Other,
}

/// Which peers `dest=` selects.
#[derive(Debug, Clone, PartialEq)]
pub enum Dest {
    /// Any of these exact addresses: a service's or an interface's, real and proxied.
    Addrs(Vec<SocketAddr>),
    /// Any address in this block.
    Cidr {
        /// The network's address.
        net: std::net::IpAddr,
        /// The prefix length.
        prefix: u8,
    },
}

impl Dest {
    /// Is `peer` selected? IPv4-mapped IPv6 addresses count as IPv4.
    pub fn contains(&self, peer: SocketAddr) -> bool {
        use std::net::IpAddr;
        let ip = peer.ip().to_canonical();
        match self {
            Dest::Addrs(addrs) => addrs
                .iter()
                .any(|a| a.port() == peer.port() && a.ip().to_canonical() == ip),
            Dest::Cidr { net, prefix } => match (net, ip) {
                (IpAddr::V4(net), IpAddr::V4(ip)) => {
                    u32::from(*net).checked_shr(32 - u32::from(*prefix))
                        == u32::from(ip).checked_shr(32 - u32::from(*prefix))
                }
                (IpAddr::V6(net), IpAddr::V6(ip)) => {
                    u128::from(*net).checked_shr(128 - u32::from(*prefix))
                        == u128::from(ip).checked_shr(128 - u32::from(*prefix))
                }
                _ => false,
            },
        }
    }
}

/// `existing=`: what `connect=deny` does to connections that exist when it is armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// They live on.
    #[default]
    Keep,
    /// They are severed.
    Reset,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dest_blocks() {
        let block = Dest::Cidr {
            net: "10.1.0.0".parse().unwrap(),
            prefix: 16,
        };
        assert!(block.contains("10.1.2.3:80".parse().unwrap()));
        assert!(block.contains("[::ffff:10.1.2.3]:80".parse().unwrap()));
        assert!(!block.contains("10.2.2.3:80".parse().unwrap()));
        assert!(
            Dest::Cidr {
                net: "0.0.0.0".parse().unwrap(),
                prefix: 0
            }
            .contains("1.2.3.4:5".parse().unwrap())
        );
        let exact = Dest::Addrs(vec!["127.0.0.1:80".parse().unwrap()]);
        assert!(
            exact.contains("[::ffff:127.0.0.1]:80".parse().unwrap())
                && !exact.contains("127.0.0.1:81".parse().unwrap())
        );
    }
}
