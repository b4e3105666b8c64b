//! A proxy under test: rules to arm, events to look at. Compiled only with the feature `testing`.

pub mod clients;
pub mod fuzz;
pub mod kept;

use std::future::Future;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use faultbox_contract::{
    Address, Addresses, Arg, ArgError, ArmedRule, EventSink, Lanes, Meter, Protocol, ProxyEvent,
    ProxyHost, RuleSet, RuleSpec, SourceLookup, Tls, Transport,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

/// Runs the test of this full name (`tests::x`, without the file's) in a process of its own, because memory and descriptors are
/// counted per process and other tests run in this one. True in there; false here, once it has passed.
///
/// # Panics
/// It fails there, or there is no test of that name.
pub fn alone(test: &str) -> bool {
    const ALONE: &str = "FAULTBOX_TEST_ALONE";
    if std::env::var(ALONE).is_ok_and(|name| name == test) {
        return true;
    }
    let output = std::env::current_exe().and_then(|exe| {
        std::process::Command::new(exe)
            .args([test, "--exact", "--nocapture"])
            .env(ALONE, test)
            .output()
    });
    let output = output.expect("a test binary can start itself");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{test} alone: {}\n{said}\n{errors}",
        output.status
    );
    // What it skipped for want of something.
    eprint!("{errors}");
    false
}

/// The most memory that this process has ever had resident, in bytes (proc_pid_status(5), VmHWM).
///
/// # Panics
/// There is no /proc.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .expect("the kernel counts resident memory");
    kib << 10
}

/// Longer than anything that must happen takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until this is so: what a proxy records of an exchange may come after its client has had the answer, and after it is gone.
///
/// # Panics
/// If it is not so within [`PATIENCE`].
pub async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// An address of loopback that is free for TCP and UDP, for a server that binds it itself, or for nobody to listen there. It lies below
/// the ports that the kernel hands out, so that nobody is given it meanwhile: neither as one to listen on nor as one to dial from (a
/// socket of a program that shares its ports may even be given the very one that it sends to).
///
/// # Panics
/// If there is none.
pub fn free_addr() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that run side by side begin far from each other.
    let start = 10_000 + (std::process::id().wrapping_mul(101) % 20_000) as u16;
    for _ in 0..1_000 {
        let port = start + NEXT.fetch_add(1, Ordering::Relaxed);
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        if UdpSocket::bind(addr).is_ok() && TcpListener::bind(addr).is_ok() {
            return addr;
        }
    }
    panic!("no port is free for both");
}

/// The events that a proxy has emitted.
#[derive(Debug, Default)]
pub struct Events(Mutex<Vec<ProxyEvent>>);

impl Events {
    /// All of them, in order.
    pub fn all(&self) -> Vec<ProxyEvent> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Those of one kind.
    pub fn of_kind(&self, kind: &str) -> Vec<ProxyEvent> {
        let mut events = self.all();
        events.retain(|e| e.kind == kind);
        events
    }
}

impl EventSink for Events {
    fn emit(&self, event: ProxyEvent) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(event);
    }
}

/// Says that every connection comes from one service, and counts how often it was asked.
#[derive(Debug, Default)]
pub struct FixedSource {
    name: Option<String>,
    /// How many look-ups there were.
    pub asked: AtomicU64,
}

impl SourceLookup for FixedSource {
    fn source_of(&self, _: SocketAddr) -> Option<String> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.name.clone()
    }

    fn datagram_source_of(&self, peer: SocketAddr) -> Option<String> {
        self.source_of(peer)
    }
}

/// Sockets on loopback, on one port number.
struct Bound {
    addr: SocketAddr,
    listener: Option<Arc<TcpListener>>,
    datagrams: Option<Arc<UdpSocket>>,
}

impl Bound {
    fn new(transport: Transport) -> Bound {
        // Another process may have just one of the two.
        for _ in 0..100 {
            let (listener, datagrams) = match transport {
                Transport::Tcp => (TcpListener::bind("127.0.0.1:0").map(Some), Ok(None)),
                Transport::Udp => (Ok(None), UdpSocket::bind("127.0.0.1:0").map(Some)),
                Transport::TcpAndUdp => {
                    let datagrams = UdpSocket::bind("127.0.0.1:0").expect("loopback can be bound");
                    let addr = datagrams
                        .local_addr()
                        .expect("a bound socket has an address");
                    (TcpListener::bind(addr).map(Some), Ok(Some(datagrams)))
                }
            };
            let (Ok(listener), Ok(datagrams)) = (listener, datagrams) else {
                continue;
            };
            let addr = match (&listener, &datagrams) {
                (Some(listener), _) => listener.local_addr(),
                (None, Some(datagrams)) => datagrams.local_addr(),
                (None, None) => continue,
            };
            return Bound {
                addr: addr.expect("a bound socket has an address"),
                listener: listener.map(Arc::new),
                datagrams: datagrams.map(Arc::new),
            };
        }
        panic!("loopback cannot be bound");
    }
}

/// A proxy that runs in the background until this is dropped.
pub struct Harness {
    /// Where clients connect.
    pub addr: SocketAddr,
    /// The rules in force.
    pub rules: Arc<RuleSet>,
    /// The added times.
    pub meter: Arc<Meter>,
    /// What was emitted.
    pub events: Arc<Events>,
    /// Who was asked for connections' sources.
    pub sources: Arc<FixedSource>,
    protocol: Option<&'static dyn Protocol>,
    next: AtomicU64,
    task: AbortHandle,
}

impl Harness {
    /// Runs `protocol`'s proxy in front of `upstream`; every connection comes from the service "api".
    ///
    /// # Panics
    /// Outside a tokio runtime, or when loopback cannot be bound.
    pub fn start(protocol: &'static dyn Protocol, upstream: SocketAddr) -> Harness {
        Harness::start_with(protocol, upstream, None)
    }

    /// The same with TLS on the interface.
    ///
    /// # Panics
    /// As [`Harness::start`].
    pub fn start_with(
        protocol: &'static dyn Protocol,
        upstream: SocketAddr,
        tls: Option<Arc<Tls>>,
    ) -> Harness {
        let bound = Bound::new(protocol.transport());
        let mut harness = Harness::run_on(bound, upstream, tls, |host| protocol.serve(host));
        harness.protocol = Some(protocol);
        harness
    }

    /// Runs `protocol`'s proxy in front of each of these servers, which advertise each other to their clients.
    ///
    /// # Panics
    /// As [`Harness::start`].
    pub fn start_cluster(
        protocol: &'static dyn Protocol,
        upstreams: &[SocketAddr],
    ) -> Vec<Harness> {
        Harness::start_cluster_with(protocol, upstreams, None)
    }

    /// The same with TLS on their interfaces.
    ///
    /// # Panics
    /// As [`Harness::start`].
    pub fn start_cluster_with(
        protocol: &'static dyn Protocol,
        upstreams: &[SocketAddr],
        tls: Option<Arc<Tls>>,
    ) -> Vec<Harness> {
        let bound: Vec<Bound> = upstreams
            .iter()
            .map(|_| Bound::new(protocol.transport()))
            .collect();
        let address = |(upstream, bound): (&SocketAddr, &Bound)| Address {
            host: upstream.ip().to_string(),
            upstream: *upstream,
            reach: bound.addr,
        };
        let addresses: Addresses = upstreams.iter().zip(&bound).map(address).collect();
        let addresses = Arc::new(addresses);
        let start = |(upstream, bound): (&SocketAddr, Bound)| {
            let mut harness = Harness::run_on(bound, *upstream, tls.clone(), |mut host| {
                host.addresses = addresses.clone();
                protocol.serve(host)
            });
            harness.protocol = Some(protocol);
            harness
        };
        upstreams.iter().zip(bound).map(start).collect()
    }

    /// Runs any proxy of byte streams in front of `upstream`.
    ///
    /// # Panics
    /// As [`Harness::start`].
    pub fn run<Fut>(upstream: SocketAddr, serve: impl FnOnce(ProxyHost) -> Fut) -> Harness
    where
        Fut: Future<Output = ()> + Send + 'static,
    {
        Harness::run_on(Bound::new(Transport::Tcp), upstream, None, serve)
    }

    /// The same with TLS on the interface.
    ///
    /// # Panics
    /// As [`Harness::start`].
    pub fn run_with<Fut>(
        upstream: SocketAddr,
        tls: Option<Arc<Tls>>,
        serve: impl FnOnce(ProxyHost) -> Fut,
    ) -> Harness
    where
        Fut: Future<Output = ()> + Send + 'static,
    {
        Harness::run_on(Bound::new(Transport::Tcp), upstream, tls, serve)
    }

    fn run_on<Fut>(
        bound: Bound,
        upstream: SocketAddr,
        tls: Option<Arc<Tls>>,
        serve: impl FnOnce(ProxyHost) -> Fut,
    ) -> Harness
    where
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (rules, meter, events) = <(Arc<RuleSet>, Arc<Meter>, Arc<Events>)>::default();
        let sources = Arc::new(FixedSource {
            name: Some("api".into()),
            ..FixedSource::default()
        });
        let host = ProxyHost {
            interface: "svc.test".into(),
            listener: bound.listener,
            listener_v6: None,
            datagrams: bound.datagrams,
            upstream,
            tls,
            rules: rules.clone(),
            meter: meter.clone(),
            sink: events.clone(),
            sources: sources.clone(),
            addresses: Arc::default(),
            lanes: Lanes::default(),
        };
        Harness {
            addr: bound.addr,
            rules,
            meter,
            events,
            sources,
            protocol: None,
            next: AtomicU64::new(1),
            task: tokio::spawn(serve(host)).abort_handle(),
        }
    }

    /// Arms a rule as the language would, through the protocol's own tables.
    ///
    /// # Panics
    /// If the protocol refuses the rule.
    pub fn arm(&self, action: &str, args: &[(&str, Arg)]) -> Arc<ArmedRule> {
        self.try_arm(action, args)
            .unwrap_or_else(|e| panic!("{e}: {:?}", e.hint))
    }

    /// The same for a rule that the protocol may refuse.
    ///
    /// # Errors
    /// Why it does.
    ///
    /// # Panics
    /// If this is no protocol's proxy.
    pub fn try_arm(&self, action: &str, args: &[(&str, Arg)]) -> Result<Arc<ArmedRule>, ArgError> {
        let protocol = self
            .protocol
            .expect("only a harness of a protocol can arm rules");
        let spec = RuleSpec {
            action: action.into(),
            args: args
                .iter()
                .map(|(n, a)| ((*n).to_owned(), a.clone()))
                .collect(),
        };
        let rule = protocol.doc().check_rule(&spec)?;
        let compiled = protocol.compile(&rule)?;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let armed = Arc::new(ArmedRule::new(
            id,
            "fault".into(),
            Arc::new(rule),
            compiled,
            id,
        ));
        self.rules.arm(armed.clone());
        Ok(armed)
    }

    /// How many rules have fired, by the events.
    pub fn fired(&self) -> usize {
        self.events.of_kind("proxy").len()
    }

    /// What was degraded, and why.
    pub fn degradations(&self) -> Vec<String> {
        self.events
            .of_kind("proxy_degraded")
            .iter()
            .map(|e| format!("{}: {}", e.fields["side"], e.fields["reason"]))
            .collect()
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Says `chunks` one after another, then closes that side, and meanwhile reads to the end: what was heard, and whether it ended in
/// good order. A chunk that nobody takes any more ends the saying.
pub async fn converse(stream: TcpStream, chunks: Vec<Vec<u8>>) -> (Vec<u8>, bool) {
    let (mut from, mut to) = stream.into_split();
    let say = async {
        for chunk in chunks {
            if to.write_all(&chunk).await.is_err() {
                return;
            }
            // So that the chunks arrive as such, more often than not.
            tokio::task::yield_now().await;
        }
        let _ = to.shutdown().await;
    };
    let hear = async {
        let mut heard = vec![];
        let orderly = from.read_to_end(&mut heard).await.is_ok();
        (heard, orderly)
    };
    tokio::join!(say, hear).1
}
