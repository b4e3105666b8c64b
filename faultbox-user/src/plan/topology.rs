//! Services and interfaces as declared.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use faultbox_mocks::plan::Face;

use super::{CertificateDecl, SpecPos};

/// All services of a spec, in the order declared, with what they share. Names are unique.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    /// The services.
    pub services: Vec<Arc<ServiceDecl>>,
    /// The certificates of the spec's `tls_cert(...)`, in the order declared.
    pub certificates: Vec<CertificateDecl>,
}

impl Topology {
    /// The service called `name`.
    pub fn service(&self, name: &str) -> Option<&Arc<ServiceDecl>> {
        self.services.iter().find(|s| s.name == name)
    }

    /// The services in an order in which each stands after all it depends on; services that are free of each other keep the order declared.
    /// `depends_on` has been checked for cycles and unknown names at load.
    pub fn start_order(&self) -> Vec<Arc<ServiceDecl>> {
        fn visit(
            topology: &Topology,
            service: &Arc<ServiceDecl>,
            order: &mut Vec<Arc<ServiceDecl>>,
        ) {
            if order.iter().any(|s| s.name == service.name) {
                return;
            }
            for name in &service.depends_on {
                if let Some(dependency) = topology.service(name) {
                    visit(topology, dependency, order);
                }
            }
            order.push(service.clone());
        }
        let mut order = vec![];
        for service in &self.services {
            visit(self, service, &mut order);
        }
        order
    }

    /// The variables that every service receives: `FAULTBOX_<SERVICE>_<INTERFACE>_{HOST,PORT,ADDR}` for each declared interface, and `_CA`, the file of
    /// the authority to trust, where it has TLS.
    /// A service sees its own interfaces at their real addresses (it has to listen there), all others where consumers reach them.
    pub fn env_for(&self, consumer: &str) -> BTreeMap<String, String> {
        let mut env = BTreeMap::new();
        for service in &self.services {
            for interface in &service.interfaces {
                let addr = if service.name == consumer {
                    interface.addr
                } else {
                    interface.consumer_addr()
                };
                let stem = format!(
                    "FAULTBOX_{}_{}",
                    env_name(&service.name),
                    env_name(&interface.name)
                );
                env.insert(format!("{stem}_HOST"), addr.ip().to_string());
                env.insert(format!("{stem}_PORT"), addr.port().to_string());
                env.insert(format!("{stem}_ADDR"), addr.to_string());
                let certificate = interface.tls.and_then(|id| self.certificates.get(id));
                if let Some(ca) = certificate.and_then(|c| c.ca.as_ref()) {
                    env.insert(format!("{stem}_CA"), ca.to_string_lossy().into_owned());
                }
            }
        }
        env
    }
}

/// A name as it stands in an environment variable: upper case, everything but letters and digits as `_`.
pub fn env_name(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        })
        .collect()
}

/// One service.
#[derive(Debug, Clone)]
pub struct ServiceDecl {
    /// Unique in the spec.
    pub name: String,
    /// How it comes to be.
    pub launch: Launch,
    /// Its interfaces, in the order declared.
    pub interfaces: Vec<InterfaceDecl>,
    /// Its arguments, without argv[0].
    pub args: Vec<String>,
    /// What the spec adds to its environment.
    pub env: BTreeMap<String, String>,
    /// Where it runs, absolute; by default the spec's folder.
    pub cwd: PathBuf,
    /// The services that must be ready before it starts.
    pub depends_on: Vec<String>,
    /// When it counts as ready; `None`: as soon as it runs.
    pub health: Option<Health>,
    /// Named operations: `ops={"wal": op([...], path=)}`.
    pub ops: BTreeMap<String, OpDecl>,
    /// Streams whose lines become events: "stdout", "stderr".
    pub observe: Vec<String>,
    /// The signal that asks it to stop.
    pub stop_signal: i32,
    /// How long it has before SIGKILL.
    pub stop_timeout: Duration,
    /// The user it runs as (name or number); `None`: the user who runs faultbox.
    pub user: Option<String>,
    /// What becomes of its use of io_uring, which no syscall fault can see.
    pub io_uring: IoUring,
    /// Where it was declared.
    pub pos: SpecPos,
}

impl ServiceDecl {
    /// The interface called `name`.
    pub fn interface(&self, name: &str) -> Option<&InterfaceDecl> {
        self.interfaces.iter().find(|i| i.name == name)
    }

    /// The interface that steps on the service itself use: its only one, or the one called "default".
    pub fn default_interface(&self) -> Option<&InterfaceDecl> {
        match self.interfaces.as_slice() {
            [only] => Some(only),
            _ => self.interface("default"),
        }
    }
}

/// What becomes of io_uring, and of the entry points of other architectures (int 0x80, x32): both would bypass a fault on a
/// system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoUring {
    /// Refused (ENOSYS) from the first syscall fault on; until then the service carries no filter at all. A ring that exists
    /// by then is an error.
    #[default]
    Auto,
    /// Refused from the start, by a static filter, so that no ring exists when a fault comes.
    Deny,
    /// Never refused: what goes through a ring escapes every syscall fault.
    Allow,
}

/// How a service comes to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Launch {
    /// A program. `resolved` is absolute when it was found; a missing one is reported when the run starts, not at load.
    Binary {
        /// As the spec wrote it.
        written: String,
        /// A path resolves against the spec's folder, a bare name through PATH.
        resolved: Option<PathBuf>,
    },
    /// Faultbox itself, in a process of its own, answers as the spec says. Syscall faults on it are load errors.
    Mock {
        /// What its interfaces answer, in their order.
        faces: Arc<Vec<Face>>,
    },
    /// It runs elsewhere; only its address is known. Syscall faults on it are load errors.
    Remote,
}

/// One interface of a service.
#[derive(Debug, Clone)]
pub struct InterfaceDecl {
    /// Unique in the service.
    pub name: String,
    /// The protocol's canonical name in the fleet.
    pub protocol: &'static str,
    /// Where the service itself listens (or, if remote, is reached). A declared port of 0 has been replaced by a free one.
    pub addr: SocketAddr,
    /// The host as written.
    pub host: String,
    /// Where its proxy listens; `None` with `proxy=False`.
    pub proxy_addr: Option<SocketAddr>,
    /// Its certificate, if it speaks TLS: its place in [`Topology::certificates`].
    pub tls: Option<usize>,
}

impl InterfaceDecl {
    /// Where consumers reach it: the proxy if there is one.
    pub fn consumer_addr(&self) -> SocketAddr {
        self.proxy_addr.unwrap_or(self.addr)
    }
}

/// A named operation: some syscalls on some paths.
#[derive(Debug, Clone, PartialEq)]
pub struct OpDecl {
    /// Families or syscalls, as written.
    pub syscalls: Vec<String>,
    /// Glob on the resolved absolute path.
    pub path: Option<String>,
}

/// When a service counts as ready.
#[derive(Debug, Clone, PartialEq)]
pub enum Health {
    /// A TCP connection succeeds.
    Tcp {
        /// Where.
        addr: String,
        /// For how long it is tried.
        timeout: Duration,
    },
    /// A GET answers with a status within these bounds (both included).
    Http {
        /// An http:// or https:// URL.
        url: String,
        /// Lowest status.
        low: u16,
        /// Highest status.
        high: u16,
        /// For how long it is tried.
        timeout: Duration,
    },
    /// The protocol's own probe on this interface.
    Ready {
        /// The interface; `None`: the only or default one.
        interface: Option<String>,
        /// For how long it is tried.
        timeout: Duration,
    },
    /// A command exits with 0.
    Cmd {
        /// argv, argv[0] resolved like a binary.
        argv: Vec<String>,
        /// For how long it is tried.
        timeout: Duration,
    },
}

impl Health {
    /// For how long it is tried.
    pub fn timeout(&self) -> Duration {
        match self {
            Health::Tcp { timeout, .. }
            | Health::Http { timeout, .. }
            | Health::Ready { timeout, .. }
            | Health::Cmd { timeout, .. } => *timeout,
        }
    }
}
