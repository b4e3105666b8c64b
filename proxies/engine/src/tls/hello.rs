//! The client's first words.

use std::io;

use rustls::server::{Accepted, Acceptor};
use rustls::{CipherSuite, SupportedProtocolVersion, version};
use tokio::net::TcpStream;

use crate::socket::heard;

/// The first byte of a TLS connection: a record of type handshake(22) (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;
/// A ClientHello has at most 64 KiB; records of few bytes each may add to that.
const MOST: usize = 256 << 10;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    /// Server Name Indication: the host name it dialled.
    pub(super) server_name: Option<String>,
    /// The protocols it offers (ALPN), best first.
    pub(super) alpn: Vec<Vec<u8>>,
    /// The versions of TLS that its cipher suites are for.
    pub(super) versions: Vec<&'static SupportedProtocolVersion>,
}

/// How a connection begins.
pub(super) enum Beginning {
    /// With a ClientHello; what has been read behind it.
    Tls(Box<Accepted>, Hello, Vec<u8>),
    /// With something else, or with the server's word: these bytes have been read, and why it is no TLS if that is worth telling.
    Other(Vec<u8>, Option<String>),
    /// The client was reset.
    Gone,
}

/// Reads the ClientHello, of which `seen` has been read before. A server that speaks or closes first ends the wait: whatever it is, it is no handshake.
pub(super) async fn read(client: &TcpStream, upstream: &TcpStream, mut seen: Vec<u8>) -> Beginning {
    let mut acceptor = Acceptor::default();
    let mut fed = 0;
    let mut buf = [0; 4096];
    loop {
        if seen.first().is_some_and(|byte| *byte != HANDSHAKE) {
            let why = format!(
                "it begins with the byte 0x{:02x}, not with a ClientHello",
                seen[0]
            );
            return Beginning::Other(seen, Some(why));
        }
        if seen.len() > MOST {
            return Beginning::Other(seen, Some("its ClientHello has no end".into()));
        }
        while fed < seen.len() {
            let mut bytes = &seen[fed..];
            if let Err(e) = acceptor.read_tls(&mut bytes) {
                return Beginning::Other(seen, Some(e.to_string()));
            }
            fed = seen.len() - bytes.len();
            match acceptor.accept() {
                Ok(Some(accepted)) => {
                    let hello = hello(&accepted);
                    return Beginning::Tls(Box::new(accepted), hello, seen.split_off(fed));
                }
                Ok(None) => {}
                Err((e, _)) => return Beginning::Other(seen, Some(e.to_string())),
            }
        }
        tokio::select! {
            biased;
            ready = client.readable() => if ready.is_err() { return Beginning::Gone; },
            () = heard(upstream) => return Beginning::Other(seen, None),
        }
        match client.try_read(&mut buf) {
            Ok(0) if seen.is_empty() => return Beginning::Other(seen, None),
            Ok(0) => {
                let why = "the client closed in the middle of its ClientHello".to_owned();
                return Beginning::Other(seen, Some(why));
            }
            Ok(n) => seen.extend_from_slice(&buf[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Beginning::Gone,
        }
    }
}

fn hello(accepted: &Accepted) -> Hello {
    let hello = accepted.client_hello();
    // The suites of TLS 1.3 are its alone (RFC 8446, appendix B.4).
    let modern = |suite: &CipherSuite| u16::from(*suite) >> 8 == 0x13;
    let suites = hello.cipher_suites();
    let mut versions = vec![];
    if suites.iter().any(modern) {
        versions.push(&version::TLS13);
    }
    // GREASE and signalling values count as old ones, and do no harm.
    if suites.iter().any(|suite| !modern(suite)) || versions.is_empty() {
        versions.push(&version::TLS12);
    }
    Hello {
        versions,
        server_name: hello.server_name().map(str::to_owned),
        alpn: hello
            .alpn()
            .map(|names| names.map(<[u8]>::to_vec).collect())
            .unwrap_or_default(),
    }
}
