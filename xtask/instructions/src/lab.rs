//! One thread that is client, proxy and server.

use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;

use faultbox_contract::{
    Arg, ArmedRule, EventSink, Lanes, ProxyEvent, ProxyHost, RuleSet, RuleSpec, SourceLookup,
    Transport,
};

use faultbox_traffic::{Carrier, Said, Traffic};

/// Requests before the counting begins: tables are filled and buffers have grown by then.
const BEFORE: u32 = 64;
/// Requests that are counted: enough that what happens once in a while (a buffer that is allocated anew) has its share in the figure.
pub const COUNTED: u32 = 1024;
/// How often a turn of the runtime may bring nothing before the bytes are held to be lost.
const PATIENCE: u32 = 100_000;
const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Calls `work`, in a frame that callgrind is told to count.
#[inline(never)]
pub fn counted(work: impl FnOnce()) {
    work();
    // Or the call might become a jump, from which callgrind sees nothing return.
    black_box(());
}

/// Callgrind is told to begin at zero whenever this is called.
#[inline(never)]
pub fn counting_begins() {
    black_box(());
}

/// The codec alone: how many exchanges it read.
pub fn codec(traffic: &Traffic) -> u32 {
    let mut exchanges: Vec<_> = (0..BEFORE + COUNTED).map(traffic.exchange).collect();
    let (before, counted_ones) = exchanges.split_at_mut(BEFORE as usize);
    for exchange in before {
        (traffic.decode)(&exchange.0, &exchange.1);
    }
    counting_begins();
    counted(|| {
        for exchange in counted_ones {
            (traffic.decode)(black_box(&exchange.0), black_box(&exchange.1));
        }
    });
    COUNTED
}

/// The whole proxy, with as many rules armed: how many exchanges passed.
///
/// # Panics
/// Bytes change or get lost on their way, or the proxy does not understand them.
pub fn proxy(traffic: &Traffic, rules: usize) -> u32 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        match traffic.carrier {
            Carrier::Stream => streams(traffic, rules).await,
            Carrier::Datagrams => datagrams(traffic, rules).await,
        }
    });
    COUNTED
}

async fn streams(traffic: &Traffic, rules: usize) {
    let upstream = TcpListener::bind(ANY).expect("loopback");
    let address = serve(
        traffic,
        rules,
        upstream.local_addr().expect("it has an address"),
    );
    let mut client = TcpStream::connect(address).expect("the proxy listens");
    upstream.set_nonblocking(true).expect("a socket");
    let mut server = patiently(|| upstream.accept()).await.0;
    for side in [&client, &server] {
        side.set_nonblocking(true).expect("a socket");
        side.set_nodelay(true).expect("a socket");
    }
    for said in &traffic.opening {
        match said {
            Said::Client(bytes) => pass(&mut client, &mut server, bytes).await,
            Said::Server(bytes) => pass(&mut server, &mut client, bytes).await,
        }
    }
    for n in 0..BEFORE + COUNTED {
        let (request, reply) = (traffic.exchange)(n);
        if n == BEFORE {
            counting_begins();
        }
        pass(&mut client, &mut server, &request).await;
        pass(&mut server, &mut client, &reply).await;
    }
}

/// Says `bytes` on one side, and waits until they have come out on the other.
async fn pass(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    from.write_all(bytes).expect("the proxy reads");
    let mut heard = vec![0; bytes.len()];
    let mut at = 0;
    while at < bytes.len() {
        at += patiently(|| to.read(&mut heard[at..])).await;
    }
    assert!(
        heard == bytes,
        "a proxy whose rules match nothing changes nothing"
    );
}

async fn datagrams(traffic: &Traffic, rules: usize) {
    let server = UdpSocket::bind(ANY).expect("loopback");
    let address = serve(
        traffic,
        rules,
        server.local_addr().expect("it has an address"),
    );
    let client = UdpSocket::bind(ANY).expect("loopback");
    client.connect(address).expect("the proxy");
    for side in [&client, &server] {
        side.set_nonblocking(true).expect("a socket");
    }
    let mut heard = [0; 1 << 12];
    for n in 0..BEFORE + COUNTED {
        let (request, reply) = (traffic.exchange)(n);
        if n == BEFORE {
            counting_begins();
        }
        client.send(&request).expect("the proxy reads");
        let (len, flow) = patiently(|| server.recv_from(&mut heard)).await;
        assert_eq!(&heard[..len], request);
        server.send_to(&reply, flow).expect("the proxy reads");
        let len = patiently(|| client.recv(&mut heard)).await;
        assert_eq!(&heard[..len], reply);
    }
}

/// Asks a socket again, after a turn of the runtime each time, until it has something.
async fn patiently<T>(mut ask: impl FnMut() -> io::Result<T>) -> T {
    for _ in 0..PATIENCE {
        match ask() {
            Ok(got) => return got,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => tokio::task::yield_now().await,
            Err(e) => panic!("a connection ends: {e}"),
        }
    }
    panic!("what was sent does not arrive");
}

/// Starts a proxy in front of `upstream`: its address.
fn serve(traffic: &Traffic, rules: usize, upstream: SocketAddr) -> SocketAddr {
    let transport = traffic.protocol.transport();
    let datagrams = transport
        .has_udp()
        .then(|| UdpSocket::bind(ANY).expect("loopback"));
    let wanted = match (&datagrams, transport) {
        (Some(socket), Transport::TcpAndUdp) => socket.local_addr().expect("it has an address"),
        _ => ANY,
    };
    let listener = transport
        .has_tcp()
        .then(|| TcpListener::bind(wanted).expect("loopback"));
    let address = match (&listener, &datagrams) {
        (Some(listener), _) => listener.local_addr(),
        (None, Some(socket)) => socket.local_addr(),
        (None, None) => unreachable!("every transport has a socket"),
    };
    let host = ProxyHost {
        interface: "svc.test".into(),
        listener: listener.map(Arc::new),
        listener_v6: None,
        datagrams: datagrams.map(Arc::new),
        upstream,
        tls: None,
        rules: Arc::new(arm(traffic, rules)),
        meter: Arc::default(),
        sink: Arc::new(Silence),
        sources: Arc::new(Nobody),
        addresses: Arc::default(),
        lanes: Lanes::default(),
    };
    tokio::spawn(traffic.protocol.serve(host));
    address.expect("it has an address")
}

/// As many rules, none of which matches the traffic.
fn arm(traffic: &Traffic, rules: usize) -> RuleSet {
    let armed = RuleSet::default();
    for n in 0..rules {
        let spec = RuleSpec {
            action: "error".into(),
            args: vec![(traffic.matcher.to_owned(), Arg::Str((traffic.pattern)(n)))],
        };
        let rule = traffic.protocol.doc().check_rule(&spec).expect("a rule");
        let compiled = traffic.protocol.compile(&rule).expect("a rule");
        let id = n as u64 + 1;
        let rule = ArmedRule::new(id, "fault".into(), Arc::new(rule), compiled, id);
        armed.arm(Arc::new(rule));
    }
    armed
}

/// An event would mean that a rule has fired or that the traffic is not what the proxy expects, and then the figures mean nothing.
struct Silence;

impl EventSink for Silence {
    fn emit(&self, event: ProxyEvent) {
        eprintln!("error: {}: {}", event.kind, event.fields);
        std::process::exit(1);
    }
}

/// Looks up nobody: no rule has `source=`.
struct Nobody;

impl SourceLookup for Nobody {
    fn source_of(&self, _: SocketAddr) -> Option<String> {
        None
    }

    fn datagram_source_of(&self, _: SocketAddr) -> Option<String> {
        None
    }
}
