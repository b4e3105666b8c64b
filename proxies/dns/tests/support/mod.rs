//! A server that answers every question for A with 203.0.113.7, and remembers what it was asked.
// Not every test file uses all of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use faultbox_contract::{Arg, Endpoint, Response};
use faultbox_dns::answer::{self, Answer, Carrier, Reply};
use faultbox_dns::codec;
use faultbox_engine::testing::Harness;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

/// Generous: the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A scripted server with a proxy in front.
pub struct Rig {
    /// The proxy.
    pub proxy: Harness,
    /// "udp a.example" and so on, in the order asked.
    pub asked: Arc<Mutex<Vec<String>>>,
}

/// Both sockets on one port.
pub async fn both() -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
    panic!("no port is free for both");
}

fn respond(message: &[u8], carrier: Carrier, asked: &Mutex<Vec<String>>) -> Option<Vec<u8>> {
    let query = codec::query(message).ok()??;
    let word = match carrier {
        Carrier::Datagram => "udp",
        Carrier::Stream => "tcp",
    };
    asked.lock().unwrap().push(format!("{word} {}", query.name));
    let reply = Reply {
        answers: vec![Answer {
            owner: None,
            kind: 1,
            ttl: 30,
            data: vec![203, 0, 113, 7],
        }],
        ..Reply::default()
    };
    Some(answer::reply(&query, &reply, carrier))
}

impl Rig {
    /// Starts both.
    pub async fn new() -> Rig {
        let (udp, tcp) = both().await;
        let proxy = Harness::start(faultbox_dns::protocol(), udp.local_addr().unwrap());
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let log = asked.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 1 << 16];
            while let Ok((n, from)) = udp.recv_from(&mut buffer).await {
                if let Some(reply) = respond(&buffer[..n], Carrier::Datagram, &log) {
                    let _ = udp.send_to(&reply, from).await;
                }
            }
        });
        let log = asked.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let log = log.clone();
                tokio::spawn(async move {
                    while let Ok(n) = stream.read_u16().await {
                        let mut message = vec![0; usize::from(n)];
                        if stream.read_exact(&mut message).await.is_err() {
                            return;
                        }
                        if let Some(reply) = respond(&message, Carrier::Stream, &log) {
                            // In two pieces, so that something could come between.
                            let framed = codec::framed(&reply);
                            let _ = stream.write_all(&framed[..9]).await;
                            let _ = stream.flush().await;
                            tokio::time::sleep(Duration::from_millis(1)).await;
                            let _ = stream.write_all(&framed[9..]).await;
                        }
                    }
                });
            }
        });
        Rig { proxy, asked }
    }

    /// The step, through the proxy.
    pub async fn query(&self, name: &str, args: &[(&str, Arg)]) -> Response {
        query_at(self.proxy.addr, name, args).await
    }

    /// What the server was asked since the last time.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

/// The step, at any address.
pub async fn query_at(addr: SocketAddr, name: &str, args: &[(&str, Arg)]) -> Response {
    let endpoint = endpoint(addr);
    let protocol = faultbox_dns::protocol();
    let mut keywords = vec![("name".to_owned(), text(name))];
    keywords.extend(args.iter().map(|(n, a)| ((*n).to_owned(), a.clone())));
    if args.iter().all(|(n, _)| *n != "timeout") {
        keywords.push(("timeout".into(), text("30s")));
    }
    let call = protocol
        .doc()
        .check_step("query", vec![], keywords)
        .unwrap();
    protocol.step(endpoint, call).await.unwrap()
}

/// Where steps and probes go.
pub fn endpoint(addr: SocketAddr) -> Endpoint {
    Endpoint {
        kept: None,
        addr,
        host: "127.0.0.1".into(),
        env: Arc::new(BTreeMap::new()),
        attempt: DEADLINE,
        addresses: Arc::default(),
        tls: None,
    }
}

/// A text argument.
pub fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}
