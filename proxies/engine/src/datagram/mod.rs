//! Datagrams: one socket that clients send to, and per client address a flow with an upstream socket of its own, so that each reply
//! finds its way back.
//!
//! UDP has no close, so a flow ends when it has been silent for [`IDLE`], when there are too many, or when its client's port is
//! closed. While no rule looks at them, datagrams go through in batches (recvmmsg(2), sendmmsg(2)), unread and uncopied.

mod arena;
mod flow;
mod icmp;
mod line;
mod socket;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use faultbox_contract::{ProxyEvent, ProxyHost, clock};
use serde_json::json;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

pub use arena::Outbox;
pub use flow::Flow;

use arena::{Arena, Arenas};
use icmp::Refuser;
use line::Line;

/// How long a flow may be silent in both directions: what a NAT is asked to grant at least, and more than most do (RFC 4787, REQ-5:
/// "five minutes or more"). A client that speaks again later is a new client to the server, as behind any NAT.
pub const IDLE: Duration = Duration::from_secs(300);
/// How often silent flows are looked for.
const SWEEP: Duration = Duration::from_secs(10);
/// The most flows: a client that uses a new port per request opens thousands per second. The oldest go first.
const MOST_FLOWS: usize = 4096;
/// Batches read in a row before other tasks get their turn.
const STREAK: usize = 16;

/// One way through a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// Client to server.
    Up,
    /// Server to client.
    Down,
}

/// What a protocol does with datagrams.
pub trait Datagrams: Send + Sync + 'static {
    /// What it remembers of each flow.
    type Memory: Default + Send + Sync + 'static;

    /// Does it look at datagrams that go this way now? Those it does not look at pass unchanged.
    fn looks(&self, flow: &Flow<Self::Memory>, way: Way) -> bool;

    /// One datagram, read at `read`: what is put into `out` goes on, in that order. Must not block.
    fn handle(
        &self,
        flow: &Arc<Flow<Self::Memory>>,
        way: Way,
        datagram: &[u8],
        read: Instant,
        out: &mut Outbox,
    );
}

/// What all flows of a proxy share.
struct Shared {
    host: Arc<ProxyHost>,
    /// The socket that clients send to.
    socket: UdpSocket,
    addr: SocketAddr,
    arenas: Arenas,
    line: Arc<Line>,
    refuser: Refuser,
    evicted: AtomicBool,
    began: Instant,
}

impl Shared {
    /// Milliseconds since the proxy began.
    fn clock(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn emit(&self, kind: &'static str, error: &io::Error) {
        self.host.sink.emit(ProxyEvent {
            kind,
            fields: json!({"upstream": self.host.upstream.to_string(), "error": error.to_string()}),
        });
    }
}

/// Forwards datagrams between the clients of `host.datagrams` and the upstream until it is dropped, and shows `handler` those that it
/// wants to look at.
///
/// A client whose upstream port is closed is told so, by the ICMP message that the kernel would have sent it, where this process
/// may send one (CAP_NET_RAW); where it may not, the client hears nothing.
pub async fn serve_datagrams<H: Datagrams>(host: ProxyHost, handler: H) {
    let (socket, addr) = match open(&host) {
        Ok(opened) => opened,
        Err(e) => {
            host.sink.emit(ProxyEvent {
                kind: "proxy_failed",
                fields: json!({"upstream": host.upstream.to_string(), "error": e.to_string()}),
            });
            return;
        }
    };
    let host = Arc::new(host);
    let line = Line::new(host.sink.clone());
    let shared = Arc::new(Shared {
        host,
        socket,
        addr,
        arenas: Arenas::default(),
        line: line.clone(),
        refuser: Refuser::new(),
        evicted: AtomicBool::new(false),
        began: Instant::now(),
    });
    let mut clients = Clients {
        shared: shared.clone(),
        handler: Arc::new(handler),
        flows: HashMap::new(),
        most: most_flows(),
        tasks: JoinSet::new(),
    };
    tokio::select! {
        () = line.run() => {}
        () = clients.run() => {}
    }
}

/// A tokio socket on a duplicate of the host's descriptor.
fn open(host: &ProxyHost) -> io::Result<(UdpSocket, SocketAddr)> {
    let socket = host.datagrams.as_deref().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotConnected,
            "the interface has no UDP socket",
        )
    })?;
    let socket = socket.try_clone()?;
    socket.set_nonblocking(true)?;
    socket::enlarge(&socket);
    socket::want_errors(&socket);
    let addr = socket.local_addr()?;
    Ok((UdpSocket::from_std(socket)?, addr))
}

/// As many flows as descriptors allow: half of them are left for everybody else in this process.
fn most_flows() -> usize {
    let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .unwrap_or((1024, 1024));
    usize::try_from(soft / 2)
        .unwrap_or(MOST_FLOWS)
        .clamp(16, MOST_FLOWS)
}

/// The clients' side.
struct Clients<H: Datagrams> {
    shared: Arc<Shared>,
    handler: Arc<H>,
    flows: HashMap<SocketAddr, Entry<H::Memory>>,
    most: usize,
    tasks: JoinSet<()>,
}

/// A flow, and the task that reads its upstream socket.
struct Entry<M> {
    flow: Arc<Flow<M>>,
    task: tokio::task::AbortHandle,
}

impl<M> Drop for Entry<M> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<H: Datagrams> Clients<H> {
    async fn run(&mut self) {
        let mut sweep = pin!(clock::sleep(SWEEP));
        loop {
            let shared = self.shared.clone();
            tokio::select! {
                ready = shared.socket.ready(Interest::READABLE | Interest::ERROR) => match ready {
                    Ok(_) => self.drain().await,
                    Err(e) => {
                        shared.emit("proxy_failed", &e);
                        return;
                    }
                },
                () = &mut sweep => {
                    self.end_silent();
                    sweep.set(clock::sleep(SWEEP));
                }
                // Reaping keeps the set as small as the number of live flows.
                Some(_) = self.tasks.join_next() => {}
            }
        }
    }

    /// Reads until nothing is left.
    async fn drain(&mut self) {
        let shared = self.shared.clone();
        let mut arena = shared.arenas.take();
        let mut streak = 0;
        loop {
            match socket::receive(&shared.socket, &mut arena) {
                Ok(()) => self.forward(&mut arena).await,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // The error of a datagram that we sent to a client earlier: what it was about stands in the error queue.
                Err(_) => self.end_refused(),
            }
            streak += 1;
            if streak % STREAK == 0 {
                tokio::task::yield_now().await;
            }
        }
        self.end_refused();
        shared.arenas.give_back(arena);
    }

    /// Sends a batch on: each run of datagrams from one client in one go.
    async fn forward(&mut self, arena: &mut Arena) {
        let read = Instant::now();
        let mut next = 0;
        while next < arena.len() {
            let Some(peer) = arena.peer(next) else {
                next += 1;
                continue;
            };
            let run = (next..arena.len())
                .take_while(|i| arena.peer(*i) == Some(peer))
                .count();
            let datagrams = next..next + run;
            next += run;
            if let Some(flow) = self.flow(peer) {
                flow.touch();
                flow.forward(&*self.handler, Way::Up, arena, datagrams, read)
                    .await;
            }
        }
    }

    /// The client's flow, old or new.
    fn flow(&mut self, peer: SocketAddr) -> Option<Arc<Flow<H::Memory>>> {
        if let Some(entry) = self.flows.get(&peer) {
            return Some(entry.flow.clone());
        }
        if self.flows.len() >= self.most {
            self.evict("more clients at once than there may be flows");
        }
        let opened = Flow::open(&self.shared, peer).or_else(|e| match e.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => {
                // Room can be made.
                self.evict("no descriptor is left");
                Flow::open(&self.shared, peer)
            }
            _ => Err(e),
        });
        match opened {
            Ok(flow) => {
                let flow = Arc::new(flow);
                let task = self.tasks.spawn(flow.clone().replies(self.handler.clone()));
                let entry = Entry {
                    flow: flow.clone(),
                    task,
                };
                self.flows.insert(peer, entry);
                Some(flow)
            }
            Err(e) => {
                self.shared.emit("proxy_dial_failed", &e);
                None
            }
        }
    }

    /// Ends the flows that nothing has gone through for long.
    fn end_silent(&mut self) {
        let now = self.shared.clock();
        let limit = u64::try_from(IDLE.as_millis()).unwrap_or(u64::MAX);
        self.flows
            .retain(|_, entry| entry.is_held() || now - entry.flow.last_used().min(now) < limit);
    }

    /// Ends the sixteenth of the flows that was used longest ago. Says so once: a reply that is still to come on one of them is lost.
    fn evict(&mut self, why: &str) {
        if !self.shared.evicted.swap(true, Ordering::Relaxed) {
            let text = format!(
                "{why} ({}); those that were silent longest end for new ones",
                self.flows.len()
            );
            self.shared
                .emit("proxy_flow_evicted", &io::Error::other(text));
        }
        let mut used: Vec<u64> = self.flows.values().map(|e| e.flow.last_used()).collect();
        if used.is_empty() {
            return;
        }
        let nth = used.len() / 16;
        let (_, limit, _) = used.select_nth_unstable(nth);
        let limit = *limit;
        let mut surplus = nth + 1;
        self.flows.retain(|_, entry| {
            // What a rule holds back is still to come out.
            let goes = surplus > 0 && entry.flow.last_used() <= limit && !entry.is_held();
            surplus -= usize::from(goes);
            !goes
        });
    }

    /// Ends the flows of clients that are gone. With our socket to the server closed, the kernel tells the server the same if it
    /// speaks to them again.
    fn end_refused(&mut self) {
        while let Some(peer) = socket::refused_peer(&self.shared.socket) {
            self.flows.remove(&peer);
        }
    }
}

impl<M> Entry<M> {
    /// Does anybody but the table and its task hold the flow, as a delayed datagram does?
    fn is_held(&self) -> bool {
        Arc::strong_count(&self.flow) > 2
    }
}
