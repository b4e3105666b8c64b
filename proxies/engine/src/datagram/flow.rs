//! One client address, with the upstream socket that belongs to it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use faultbox_contract::ArmedRule;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::arena::Arena;
use super::{Datagrams, STREAK, Shared, Way, socket};
use crate::conn::Origin;

/// A client, and its own way to the server. `M` is what the protocol remembers of it.
pub struct Flow<M> {
    /// Where the client is, and what the proxy runs with.
    pub origin: Origin,
    /// The protocol's own.
    pub memory: M,
    shared: Arc<Shared>,
    upstream: UdpSocket,
    /// By the clock of the proxy.
    used: AtomicU64,
    /// The upstream's refusal has been recorded.
    refused: AtomicBool,
}

impl<M: Default + Send + Sync + 'static> Flow<M> {
    pub(super) fn open(shared: &Arc<Shared>, peer: SocketAddr) -> io::Result<Flow<M>> {
        let to = shared.host.upstream;
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let upstream = std::net::UdpSocket::bind(any)?;
        // Connected, it hears of ICMP errors, and of nobody but the server (udp(7)).
        upstream.connect(to)?;
        upstream.set_nonblocking(true)?;
        socket::enlarge(&upstream);
        Ok(Flow {
            origin: Origin::of_datagrams(shared.host.clone(), peer),
            memory: M::default(),
            upstream: UdpSocket::from_std(upstream)?,
            used: AtomicU64::new(shared.clock()),
            refused: AtomicBool::new(false),
            shared: shared.clone(),
        })
    }

    pub(super) fn touch(&self) {
        self.used.store(self.shared.clock(), Ordering::Relaxed);
    }

    pub(super) fn last_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Sends one datagram, later than those that came before it or out of turn. Where the socket's buffer is full, it is sent when
    /// there is room.
    pub fn send(self: &Arc<Self>, way: Way, datagram: Vec<u8>) {
        self.touch();
        match self.try_send(way, &datagram) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let flow = self.clone();
                tokio::spawn(async move {
                    while let Err(e) = flow.try_send(way, &datagram)
                        && e.kind() == io::ErrorKind::WouldBlock
                        && flow.socket(way).writable().await.is_ok()
                    {}
                });
            }
            // What the kernel refuses to send is lost, as it would be for the sender itself.
            Err(_) | Ok(()) => {}
        }
    }

    fn try_send(&self, way: Way, datagram: &[u8]) -> io::Result<()> {
        let to = (way == Way::Down).then_some(self.origin.peer);
        let sent = socket::send_one(self.socket(way), datagram, to);
        self.notice(way, sent.refused);
        sent.outcome
    }

    /// Holds something back until the delays have passed one after another, counted from `since`, or their rules are lifted. `size`
    /// is how many bytes wait; past a limit the whole is dropped, as a network does, and that is recorded once. False if it was.
    pub fn hold(
        self: &Arc<Self>,
        delays: Vec<(Arc<ArmedRule>, Duration)>,
        since: Instant,
        size: usize,
        then: impl FnOnce(Arc<Self>) + Send + 'static,
    ) -> bool {
        let flow = self.clone();
        self.shared
            .line
            .hold(delays, since, size, Box::new(move || then(flow)))
    }

    fn socket(&self, way: Way) -> &UdpSocket {
        match way {
            Way::Up => &self.upstream,
            Way::Down => &self.shared.socket,
        }
    }

    /// Sends a batch on that was read at `read`.
    pub(super) async fn forward<H: Datagrams<Memory = M>>(
        self: &Arc<Self>,
        handler: &H,
        way: Way,
        arena: &mut Arena,
        datagrams: Range<usize>,
        read: Instant,
    ) {
        let mut out = arena.take_outbox();
        if handler.looks(self, way) {
            for i in datagrams {
                out.at(i);
                handler.handle(self, way, arena.datagram(i), read, &mut out);
            }
        } else {
            out.pass_all(datagrams);
        }
        let to = (way == Way::Down).then_some(self.origin.peer);
        let mut sent = 0;
        while sent < out.len() {
            let batch = socket::send(self.socket(way), arena, &out, sent, to);
            self.notice(way, batch.refused);
            match batch.outcome {
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.socket(way).writable().await.is_err() {
                        break;
                    }
                }
                // The datagram that the kernel refuses is lost; those behind it are not.
                Err(_) => sent += 1,
            }
        }
        if sent > 0 {
            self.origin.host.meter.record_n(read.elapsed(), sent as u64);
        }
        arena.keep_outbox(out);
    }

    /// Reads the server's datagrams for ever.
    pub(super) async fn replies<H: Datagrams<Memory = M>>(self: Arc<Self>, handler: Arc<H>) {
        loop {
            let interest = Interest::READABLE | Interest::ERROR;
            if self.upstream.ready(interest).await.is_err() {
                return;
            }
            let mut arena = self.shared.arenas.take();
            let mut streak = 0;
            loop {
                match socket::receive(&self.upstream, &mut arena) {
                    Ok(()) => {
                        let read = Instant::now();
                        self.touch();
                        self.refused.store(false, Ordering::Relaxed);
                        let all = 0..arena.len();
                        self.forward(&*handler, Way::Down, &mut arena, all, read)
                            .await;
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => self.notice(Way::Up, Some(e)),
                }
                streak += 1;
                if streak % STREAK == 0 {
                    tokio::task::yield_now().await;
                }
            }
            self.shared.arenas.give_back(arena);
        }
    }

    /// Passes the server's refusal on. A client's own refusal is found in the error queue of the clients' socket.
    fn notice(&self, way: Way, error: Option<io::Error>) {
        let Some(error) = error.filter(|_| way == Way::Up) else {
            return;
        };
        if error.kind() == io::ErrorKind::ConnectionRefused {
            self.shared
                .refuser
                .refuse(self.origin.peer, self.shared.addr);
        }
        if !self.refused.swap(true, Ordering::Relaxed) {
            self.shared.emit("proxy_dial_failed", &error);
        }
    }
}

impl<M> std::fmt::Debug for Flow<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "flow of {:?}", self.origin)
    }
}
