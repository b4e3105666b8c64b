//! The seam between the run and a protocol.

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::addresses::Addresses;
use crate::doc::ProtocolDoc;
use crate::kept::Kept;
use crate::lanes::Lanes;
use crate::meter::Meter;
use crate::rule::{ArgError, CheckedRule, RuleSet};
use crate::step::{CheckedStep, Response};
use crate::tls::Tls;

/// A boxed future, so that [`Protocol`] is object-safe.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A protocol: its tables, its proxy, its client. One per crate under `proxies/`, one line each in the fleet.
pub trait Protocol: Send + Sync + 'static {
    /// The tables.
    fn doc(&self) -> &'static ProtocolDoc;

    /// What carries its messages. An interface gets the sockets that this asks for, on one port number.
    fn transport(&self) -> Transport {
        Transport::Tcp
    }

    /// Turns a checked rule into what [`serve`](Protocol::serve) looks for in [`ArmedRule::compiled`](crate::ArmedRule::compiled).
    ///
    /// # Errors
    /// What the tables cannot say: an unknown SQLSTATE name, a status that has no meaning, keywords that exclude each other.
    fn compile(&self, rule: &CheckedRule) -> Result<Arc<dyn Any + Send + Sync>, ArgError>;

    /// Runs the proxy until its task is aborted. With no armed rule it forwards every byte unchanged, in order, with half-close intact.
    fn serve(&self, host: ProxyHost) -> BoxFuture<'static, ()>;

    /// Sends one operation. Anything that goes wrong on the wire is a [`Response`] with `ok == false`.
    ///
    /// # Errors
    /// A misuse that the tables cannot see, e.g. a parameter the driver cannot encode.
    fn step(
        &self,
        endpoint: Endpoint,
        call: CheckedStep,
    ) -> BoxFuture<'static, Result<Response, ArgError>>;

    /// Asks once, in the protocol's own words, whether the server is ready (`SELECT 1`, `GET /`). The caller repeats.
    fn ready(&self, endpoint: Endpoint) -> BoxFuture<'static, Result<(), String>>;
}

/// What carries a protocol's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Byte streams.
    Tcp,
    /// Datagrams.
    Udp,
    /// Both, on the same port number, as DNS does (RFC 7766).
    TcpAndUdp,
}

impl Transport {
    /// Does it need a listener?
    pub fn has_tcp(self) -> bool {
        self != Transport::Udp
    }

    /// Does it need a socket for datagrams?
    pub fn has_udp(self) -> bool {
        self != Transport::Tcp
    }
}

/// Where a step or a readiness probe goes.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The address to dial.
    pub addr: SocketAddr,
    /// The host name as declared, e.g. for an HTTP `Host` header.
    pub host: String,
    /// The service's environment: the source of default credentials (`POSTGRES_USER`, …).
    pub env: Arc<BTreeMap<String, String>>,
    /// The longest a single readiness attempt may take.
    pub attempt: Duration,
    /// Where to go for what the server advertises, so that a step takes the same way as the services' own traffic.
    pub addresses: Arc<Addresses>,
    /// Set if the interface speaks TLS: the engine's `open` sees to it, or its `tls::connect` where the protocol upgrades by itself.
    pub tls: Option<Arc<Tls>>,
    /// Set if the caller goes on calling: a step may then use the connection of the one before, and a protocol that can does. Without
    /// it, each step has a connection of its own.
    pub kept: Option<Kept>,
}

impl Endpoint {
    /// The connection that the caller has kept from an earlier step under this key, if there is one.
    pub fn take_kept<C: Any>(&self, key: &str) -> Option<C> {
        self.kept.as_ref()?.take(self.addr, key)
    }

    /// Keeps a connection for the caller's next step, or closes it.
    pub fn keep<C: Any + Send>(&self, key: &str, connection: C) {
        if let Some(kept) = &self.kept {
            kept.put(self.addr, key, connection);
        }
    }
}

/// What a proxy is given to run with.
#[derive(Clone)]
pub struct ProxyHost {
    /// "db.pg".
    pub interface: Arc<str>,
    /// Already bound to loopback and listening; `None` for a protocol whose [`Protocol::transport`] has no streams.
    pub listener: Option<Arc<TcpListener>>,
    /// The same on IPv6, for clients that speak nothing else; `None` also where there is no IPv6.
    pub listener_v6: Option<Arc<TcpListener>>,
    /// Already bound to loopback; `None` for a protocol whose [`Protocol::transport`] has no datagrams.
    pub datagrams: Option<Arc<UdpSocket>>,
    /// The service itself.
    pub upstream: SocketAddr,
    /// Set if the interface speaks TLS, which the engine then takes off and puts on again.
    pub tls: Option<Arc<Tls>>,
    /// The rules in force.
    pub rules: Arc<RuleSet>,
    /// Receives each request's added time.
    pub meter: Arc<Meter>,
    /// Receives one event per fired rule and per degradation.
    pub sink: Arc<dyn EventSink>,
    /// Tells which service a connection comes from.
    pub sources: Arc<dyn SourceLookup>,
    /// Where consumers reach what this server advertises; empty where the kernel leads connections to their proxies, and nothing
    /// need be rewritten.
    pub addresses: Arc<Addresses>,
    /// The threads that carry its connections.
    pub lanes: Lanes,
}

/// Something a proxy did or saw.
#[derive(Debug, Clone)]
pub struct ProxyEvent {
    /// The event's type: "proxy" (a rule fired), "proxy_degraded" (traffic not understood; forwarded raw from there on), …
    pub kind: &'static str,
    /// A JSON object.
    pub fields: Value,
}

/// Where events go. Must not block: a slow consumer of events never slows a service.
pub trait EventSink: Send + Sync {
    /// Takes one event.
    fn emit(&self, event: ProxyEvent);
}

/// Which service a connection comes from.
pub trait SourceLookup: Send + Sync {
    /// The service that owns the local TCP socket whose address is `peer`; `None` if it is none of them (the test itself).
    /// May read /proc: called only when a rule with `source=` is armed, at most once per connection.
    fn source_of(&self, peer: SocketAddr) -> Option<String>;

    /// The same for the UDP socket that datagrams from `peer` come from; at most once per flow.
    fn datagram_source_of(&self, peer: SocketAddr) -> Option<String>;
}
