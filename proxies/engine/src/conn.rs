//! One client's connection, with the upstream connection that belongs to it.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use faultbox_contract::{ArmedRule, ProxyEvent, ProxyHost};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::tls::{self, Secured, Settings};

/// A client, its upstream, and where the client comes from. TCP_NODELAY is set on both sides.
#[derive(Debug)]
pub struct Conn {
    /// The accepted side.
    pub client: TcpStream,
    /// The dialled side.
    pub upstream: TcpStream,
    /// Where the client comes from, and what the proxy runs with.
    pub origin: Origin,
}

/// What is known about a connection, or a flow of datagrams, besides its bytes.
pub struct Origin {
    /// What the proxy runs with.
    pub host: Arc<ProxyHost>,
    /// The client's address.
    pub peer: SocketAddr,
    pub(crate) tls: Option<Arc<Settings>>,
    pub(crate) secured: Secured,
    /// Does it send datagrams? They have look-ups of their own.
    datagrams: bool,
    source: OnceLock<Option<String>>,
}

impl Origin {
    pub(crate) fn new(
        host: Arc<ProxyHost>,
        peer: SocketAddr,
        tls: Option<Arc<Settings>>,
    ) -> Origin {
        Origin {
            host,
            peer,
            tls,
            secured: Secured::default(),
            datagrams: false,
            source: OnceLock::new(),
        }
    }

    pub(crate) fn of_datagrams(host: Arc<ProxyHost>, peer: SocketAddr) -> Origin {
        Origin {
            datagrams: true,
            ..Origin::new(host, peer, None)
        }
    }

    /// Does the interface have TLS?
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Has TLS been taken off, and was the client shown another certificate than the server's own? Then nothing that binds what
    /// is said to the certificate can hold (RFC 5929, tls-server-end-point).
    pub fn shows_other_certificate(&self) -> bool {
        self.secured.other_certificate()
    }

    /// Dials the upstream once more, for the same client. If the connection had TLS, it has it again, and the stream is plain.
    ///
    /// # Errors
    /// What connect(2) says, or that the handshake failed.
    pub async fn redial(&self) -> io::Result<TcpStream> {
        tls::redial(self).await
    }

    /// The service that the connection comes from; `None` for the test itself. Looked up on first use, then remembered.
    pub fn source(&self) -> Option<&str> {
        self.source
            .get_or_init(|| match self.datagrams {
                true => self.host.sources.datagram_source_of(self.peer),
                false => self.host.sources.source_of(self.peer),
            })
            .as_deref()
    }

    /// Does the rule's `source=` let it act on this connection? Looks the source up only if the rule has one.
    pub fn admits(&self, rule: &ArmedRule) -> bool {
        match &rule.rule.source {
            None => true,
            Some(wanted) => self.source() == Some(wanted.as_str()),
        }
    }

    /// Records that the traffic was not understood and is forwarded raw from here on. `side` is "client" or "upstream".
    pub fn degraded(&self, side: &str, reason: &str) {
        self.host.sink.emit(ProxyEvent {
            kind: "proxy_degraded",
            fields: json!({"side": side, "reason": reason, "peer": self.peer.to_string()}),
        });
    }

    /// Records that a rule which matches a request, of these fields, does not answer it, and why; the request goes on as it is.
    pub fn unanswered(&self, rule: &ArmedRule, reason: &str, fields: Value) {
        let mut event = json!({
            "fault": rule.fault,
            "rule": rule.rule.text,
            "action": rule.rule.action.name,
            "reason": reason,
        });
        if let (Some(event), Value::Object(fields)) = (event.as_object_mut(), fields) {
            event.extend(fields);
            if let Some(label) = &rule.rule.label {
                event.insert("label".into(), label.as_str().into());
            }
        }
        self.host.sink.emit(ProxyEvent {
            kind: "proxy_unanswered",
            fields: event,
        });
    }
}

impl std::fmt::Debug for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {}", self.peer, self.host.interface)
    }
}
