//! TLS between a proxy and its two sides.
//!
//! The proxy terminates the client's TLS and has its own with the server, so that rules act on the plain text between. A protocol notices
//! nothing of it: what it gets are plain TCP sockets, whose far ends are moved through TLS by a [bridge]. A protocol that begins in
//! plain text and upgrades calls [`upgrade`] at that point, and [`connect`] in its client for specs.
//!
//! The server is handshaken with first, with the name (SNI) and the protocols (ALPN) that the client asked for, so that the client gets what
//! the server chose. If the server refuses, the client is refused in the same words; if its certificate is not what it should be,
//! the client is shown one that is wrong in the same way, and does what it would have done.

mod bridge;
mod hello;
pub mod mint;
mod session;
mod settings;
mod verify;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use faultbox_contract::{Endpoint, EventSink, ProxyEvent, ProxyHost, Tls};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::Accepted;
use rustls::{
    ALL_VERSIONS, AlertDescription, ClientConnection, ProtocolVersion, ServerConnection,
    SupportedProtocolVersion, version,
};
use serde_json::json;
use tokio::net::TcpStream;

use crate::conn::{Conn, Origin};
use crate::pump::pump;
use crate::socket::{dial, gone, linger, reset, send};
use bridge::{Bridge, Cuts, Side, refuse};
use hello::{Beginning, Hello};
use session::{Broken, Session};
pub use settings::{Settings, check_certificates, check_identity};
use verify::Flaw;

/// What is known of one connection's TLS.
#[derive(Debug, Default)]
pub(crate) struct Secured {
    /// Set once the client's side is plain.
    with: OnceLock<(Hello, Arc<Cuts>)>,
    /// Was the server shown to the client under another certificate than its own?
    other_certificate: OnceLock<bool>,
}

/// Takes TLS off both sides: what comes back is plain. `None` if there is nothing left to do: a handshake failed, and both sides know; or
/// the client speaks no TLS after all, and everything has been forwarded raw to the end of the connection.
///
/// On an interface without TLS, this returns the connection as it is.
pub async fn upgrade(conn: Conn) -> Option<Conn> {
    upgrade_after(conn, vec![]).await
}

/// The same for a client whose first words in TLS have been read already, as far as `seen` goes.
pub async fn upgrade_after(conn: Conn, seen: Vec<u8>) -> Option<Conn> {
    let Some(settings) = conn.origin.tls.clone() else {
        return Some(conn);
    };
    let Conn {
        client,
        upstream,
        origin,
    } = conn;
    let (accepted, hello, rest) = match hello::read(&client, &upstream, seen).await {
        Beginning::Tls(accepted, hello, rest) => (accepted, hello, rest),
        Beginning::Gone => {
            reset(client);
            reset(upstream);
            return None;
        }
        Beginning::Other(seen, why) => {
            if let Some(why) = why {
                origin.degraded(
                    "client",
                    &format!("the interface has tls=, but this is no TLS: {why}; forwarded unseen"),
                );
            }
            // What the server says to that is for the client to read.
            let _ = send(&upstream, &seen).await;
            pump(client, upstream, None).await;
            return None;
        }
    };
    let cuts = Arc::<Cuts>::default();
    let secured = tokio::select! {
        secured = secure(upstream, &settings, &hello, &origin) => secured,
        () = gone(&client) => return None,
    };
    let (session, flaw) = match secured {
        Ok(secured) => secured,
        Err(broken) => {
            failed(&origin, "upstream", &hello, &broken.to_string());
            match broken {
                Broken::Reset => reset(client),
                Broken::Closed => linger(client).await,
                Broken::Alert(alert) => refuse(client, alert.into()).await,
                Broken::Ours(_) => {
                    refuse(client, AlertDescription::HandshakeFailure.into()).await;
                }
            }
            return None;
        }
    };
    let chosen = Chosen::of(&session);
    let theirs = certificate(&session);
    let accept = accept(client, *accepted, &rest, &settings, flaw, chosen);
    let client = tokio::select! {
        accepted = accept => match accepted {
            Ok(session) => session,
            Err(why) => {
                failed(&origin, "client", &hello, &why);
                reset(session.wire);
                return None;
            }
        },
        () = over(&session.wire) => {
            failed(&origin, "upstream", &hello, &Broken::Closed.to_string());
            return None;
        }
    };
    let same = flaw.is_none() && settings.leaf().ok() == theirs;
    let _ = origin.secured.other_certificate.set(!same);
    let client = start(client, Side::Client, &cuts, &origin).await?;
    let upstream = start(session, Side::Upstream, &cuts, &origin).await?;
    let _ = origin.secured.with.set((hello, cuts));
    Some(Conn {
        client,
        upstream,
        origin,
    })
}

/// Dials the upstream once more, for a client whose TLS, if any, is off already: the new connection is plain, too.
///
/// # Errors
/// What connect(2) says, or that the handshake failed.
pub(crate) async fn redial(origin: &Origin) -> io::Result<TcpStream> {
    let upstream = dial(origin.host.upstream).await?;
    let (Some(settings), Some((hello, cuts))) = (&origin.tls, origin.secured.with.get()) else {
        return Ok(upstream);
    };
    match secure(upstream, settings, hello, origin).await {
        Ok((session, _)) => bridge(session, Side::Upstream, cuts, origin).start().await,
        Err(broken) => {
            failed(origin, "upstream", hello, &broken.to_string());
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
}

/// Dials an endpoint for a step or a probe. If its interface has TLS, the handshake is done, and what comes back is plain.
///
/// # Errors
/// What connect(2) says, or why the handshake failed.
pub async fn open(endpoint: &Endpoint, alpn: &[&str]) -> io::Result<TcpStream> {
    let stream = dial(endpoint.addr).await?;
    match &endpoint.tls {
        None => Ok(stream),
        Some(tls) => connect(stream, tls, &endpoint.host, alpn).await,
    }
}

/// Handshakes with a server as its client; what comes back is plain. `host` is the name to ask for.
///
/// # Errors
/// Why the handshake failed: the system's error for a reset, `InvalidData` for the rest.
pub async fn connect(
    stream: TcpStream,
    tls: &Arc<Tls>,
    host: &str,
    alpn: &[&str],
) -> io::Result<TcpStream> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let settings = Settings::client_only(tls).map_err(invalid)?;
    let addr = stream.peer_addr()?;
    let alpn: Vec<Vec<u8>> = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let session = greet(stream, &settings, Some(host), ALL_VERSIONS, &alpn)
        .await
        .map_err(|broken| match broken {
            Broken::Reset => io::Error::from_raw_os_error(libc::ECONNRESET),
            broken => invalid(format!("TLS with the server failed: {broken}")),
        })?;
    let chain = chain(&session);
    settings
        .check(&chain, Some(host), Some(addr))
        .map_err(|(_, text)| invalid(text))?;
    let bridge = Bridge {
        session,
        side: Side::Upstream,
        cuts: Arc::default(),
        report: Box::new(|_| {}),
    };
    bridge.start().await
}

/// Handshakes with a client as its server; what comes back is plain. Of the protocols that the client offers (ALPN), it gets the first of
/// `alpn` that is among them.
///
/// # Errors
/// Why the handshake failed, which the client has been told, or that no loopback connection for the plain text could be had.
pub async fn terminate(
    stream: TcpStream,
    settings: &Settings,
    alpn: &[&str],
) -> io::Result<TcpStream> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let mut config = settings.server(None, ALL_VERSIONS).map_err(invalid)?;
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let conn = ServerConnection::new(Arc::new(config)).map_err(|e| invalid(e.to_string()))?;
    let session = shake_hands(Session::new(conn, stream), &[])
        .await
        .map_err(invalid)?;
    let bridge = Bridge {
        session,
        side: Side::Client,
        cuts: Arc::default(),
        report: Box::new(|_| {}),
    };
    bridge.start().await
}

/// Handshakes with the server for a client, and looks at its certificate.
async fn secure(
    upstream: TcpStream,
    settings: &Settings,
    hello: &Hello,
    origin: &Origin,
) -> Result<(Session, Option<Flaw>), Broken> {
    let asked = hello.server_name.as_deref();
    let session = greet(upstream, settings, asked, &hello.versions, &hello.alpn).await?;
    let addr: SocketAddr = origin.host.upstream;
    match settings.check(&chain(&session), asked, Some(addr)) {
        Ok(()) => Ok((session, None)),
        Err((flaw, text)) => {
            if settings.first(&text) {
                emit(
                    &*origin.host.sink,
                    "proxy_tls_untrusted",
                    json!({"upstream": addr.to_string(), "error": text,
                        "help": "clients are shown a certificate that is wrong in the same way; tls_cert(verify=...) says what is trusted"}),
                );
            }
            Ok((session, Some(flaw)))
        }
    }
}

async fn greet(
    stream: TcpStream,
    settings: &Settings,
    host: Option<&str>,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[Vec<u8>],
) -> Result<Session, Broken> {
    let name = host
        .and_then(|host| ServerName::try_from(host.to_owned()).ok())
        // Without a name none is sent; rustls takes the address as the sign for that.
        .or_else(|| Some(ServerName::IpAddress(stream.peer_addr().ok()?.ip().into())))
        .ok_or(Broken::Reset)?;
    let config = settings.client(versions, alpn).map_err(Broken::Ours)?;
    let conn = ClientConnection::new(config, name).map_err(Broken::Ours)?;
    let mut session = Session::new(conn, stream);
    session.handshake(&[]).await?;
    Ok(session)
}

/// What the server has chosen of what the client offered.
struct Chosen {
    version: &'static SupportedProtocolVersion,
    alpn: Option<Vec<u8>>,
}

impl Chosen {
    fn of(session: &Session) -> Chosen {
        let conn = session.lock();
        Chosen {
            version: match conn.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => &version::TLS12,
                _ => &version::TLS13,
            },
            alpn: conn.alpn_protocol().map(<[u8]>::to_vec),
        }
    }
}

/// Handshakes with the client, who gets what the server chose.
async fn accept(
    client: TcpStream,
    accepted: Accepted,
    rest: &[u8],
    settings: &Settings,
    flaw: Option<Flaw>,
    chosen: Chosen,
) -> Result<Session, String> {
    let mut config = settings.server(flaw, &[chosen.version])?;
    config.alpn_protocols.extend(chosen.alpn);
    let conn = match accepted.into_connection(Arc::new(config)) {
        Ok(conn) => conn,
        Err((error, mut alert)) => {
            let mut bytes = vec![];
            let _ = alert.write_all(&mut bytes);
            let _ = send(&client, &bytes).await;
            linger(client).await;
            return Err(error.to_string());
        }
    };
    shake_hands(Session::new(conn, client), rest).await
}

/// Goes through the handshake with a client, of whose words `rest` have been read; one that fails is taken leave of as TLS demands.
async fn shake_hands(mut session: Session, rest: &[u8]) -> Result<Session, String> {
    match session.handshake(rest).await {
        Ok(()) => Ok(session),
        Err(broken) => {
            match broken {
                Broken::Reset => reset(session.wire),
                _ => linger(session.wire).await,
            }
            Err(broken.to_string())
        }
    }
}

fn bridge(session: Session, side: Side, cuts: &Arc<Cuts>, origin: &Origin) -> Bridge {
    let (host, peer) = (origin.host.clone(), origin.peer);
    let word = match side {
        Side::Client => "client",
        Side::Upstream => "upstream",
    };
    Bridge {
        session,
        side,
        cuts: cuts.clone(),
        report: Box::new(move |error| {
            let fields = json!({"side": word, "error": error, "peer": peer.to_string()});
            emit(&*host.sink, "proxy_tls_failed", fields);
        }),
    }
}

async fn start(
    session: Session,
    side: Side,
    cuts: &Arc<Cuts>,
    origin: &Origin,
) -> Option<TcpStream> {
    match bridge(session, side, cuts, origin).start().await {
        Ok(plain) => Some(plain),
        Err(e) => {
            let fields =
                json!({"error": format!("no loopback connection for the plain text: {e}")});
            emit(&*origin.host.sink, "proxy_failed", fields);
            None
        }
    }
}

/// Completes when a side that is not read from has closed or was reset; what it says meanwhile stays unread.
async fn over(stream: &TcpStream) {
    let mut one = [0];
    if let Ok(1..) = stream.peek(&mut one).await {
        gone(stream).await;
    }
}

fn chain(session: &Session) -> Vec<CertificateDer<'static>> {
    let conn = session.lock();
    let chain = conn.peer_certificates().unwrap_or_default();
    chain.iter().map(|c| c.clone().into_owned()).collect()
}

fn certificate(session: &Session) -> Option<CertificateDer<'static>> {
    chain(session).into_iter().next()
}

fn failed(origin: &Origin, side: &str, hello: &Hello, error: &str) {
    let mut fields = json!({"side": side, "error": error, "peer": origin.peer.to_string()});
    if let Some(name) = &hello.server_name {
        fields["server_name"] = json!(name);
    }
    emit(&*origin.host.sink, "proxy_tls_failed", fields);
}

fn emit(sink: &dyn EventSink, kind: &'static str, fields: serde_json::Value) {
    sink.emit(ProxyEvent { kind, fields });
}

/// The settings of an interface that has TLS.
///
/// # Errors
/// See [`Settings::new`].
pub(crate) fn settings(host: &ProxyHost) -> Result<Option<Arc<Settings>>, String> {
    let settings = host.tls.as_ref().map(Settings::new).transpose()?;
    Ok(settings.map(Arc::new))
}

impl Secured {
    /// See [`Origin::shows_other_certificate`].
    pub(crate) fn other_certificate(&self) -> bool {
        self.other_certificate.get().copied().unwrap_or(false)
    }
}
