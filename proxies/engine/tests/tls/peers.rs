//! A TLS client and a TLS server on blocking sockets, each with settings of its own: nothing of the proxy's own code.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use faultbox_contract::Tls;
use faultbox_contract::tls::{Identity, Verify};
use faultbox_engine::testing::Harness;
use faultbox_engine::tls::mint::Authority;
use faultbox_engine::{pump, serve};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};

pub type Server = StreamOwned<ServerConnection, TcpStream>;
pub type Client = StreamOwned<ClientConnection, TcpStream>;

/// Nothing here takes as long; a peer that waits longer waits for ever.
const DEADLINE: Duration = Duration::from_secs(30);

pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| Authority::new().unwrap())
}

pub fn leaf(name: &str) -> Identity {
    authority()
        .issue(&[name.to_owned(), "127.0.0.1".to_owned()])
        .unwrap()
}

fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(Result::unwrap)
        .collect()
}

/// A server's settings, with this certificate.
pub fn server_config(identity: &Identity) -> ServerConfig {
    ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            chain(&identity.chain),
            PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap(),
        )
        .unwrap()
}

/// A client's settings: it trusts the authority and nobody else.
pub fn client_config() -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for anchor in chain(&authority().identity().chain) {
        roots.add(anchor).unwrap();
    }
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// What the proxy works with: a leaf of the same authority, which the server must have, too.
pub fn tls() -> Tls {
    Tls {
        shown: leaf("localhost"),
        issuer: Some(authority().identity().clone()),
        verify: Verify::Against(authority().identity().chain.clone()),
        names: vec!["localhost".into(), "127.0.0.1".into()],
        client: None,
    }
}

/// A proxy without a protocol.
pub fn proxy(upstream: SocketAddr, tls: Tls) -> Harness {
    Harness::run_with(upstream, Some(Arc::new(tls)), |host| {
        serve(host, |conn| pump(conn.client, conn.upstream, None))
    })
}

/// Serves one connection in a thread of its own.
pub fn serve_one<T: Send + 'static>(
    config: ServerConfig,
    work: impl FnOnce(Server) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let conn = ServerConnection::new(Arc::new(config)).unwrap();
        work(StreamOwned::new(conn, deadline(socket)))
    });
    (addr, serving)
}

/// A client of `addr`, before its handshake.
pub fn client(addr: SocketAddr, config: ClientConfig, name: &str) -> Client {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let conn = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(conn, deadline(TcpStream::connect(addr).unwrap()))
}

fn deadline(socket: TcpStream) -> TcpStream {
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.set_write_timeout(Some(DEADLINE)).unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

/// How a stream ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// With a close_notify.
    Notified,
    /// With a FIN alone.
    Truncated,
    /// With a RST.
    Reset,
}

/// Reads to the end.
pub fn hear(stream: &mut impl Read) -> (Vec<u8>, Ending) {
    let mut heard = vec![];
    let ending = match stream.read_to_end(&mut heard) {
        Ok(_) => Ending::Notified,
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ending::Truncated,
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ending::Reset,
        Err(e) => panic!("{e:?} after {} bytes", heard.len()),
    };
    (heard, ending)
}

/// Says that no more will be said, as TLS does, and closes that side.
pub fn say_goodbye_server(stream: &mut Server) {
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).unwrap();
    }
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    stream.sock.shutdown(Shutdown::Write).unwrap();
}

/// The same of a client.
pub fn say_goodbye_client(stream: &mut Client) {
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).unwrap();
    }
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    stream.sock.shutdown(Shutdown::Write).unwrap();
}

/// Closes with a RST.
pub fn cut_off(socket: TcpStream) {
    nix::sys::socket::setsockopt(
        &socket,
        nix::sys::socket::sockopt::Linger,
        &libc::linger {
            l_onoff: 1,
            l_linger: 0,
        },
    )
    .unwrap();
}
