//! Listening, accepting, and which protocol a connection gets.

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use faultbox_contract::tls::Identity;
use faultbox_contract::{ArgError, Tls};
use faultbox_engine::tls::{self, Settings};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::calls::Calls;
use crate::functions::Functions;
use crate::plan::{Certificate, Face, Plan};
use crate::script::{Mistake, Routes};
use crate::{grpc, http, kafka, redis};

/// How many connections may wait to be accepted: more than any test opens at once, and what the kernel allows by default (listen(2)).
const BACKLOG: u32 = 4096;
/// How long accepting rests after an error such as EMFILE.
const REST: Duration = Duration::from_millis(20);

type Serving = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs a mock until it is dropped.
///
/// # Errors
/// An address that cannot be had, or a plan that makes no sense.
pub async fn run(plan: Plan) -> Result<(), String> {
    let functions = Functions::new(plan.functions.clone());
    let mut ready: Vec<(&Face, Serving)> = vec![];
    let mut sockets = vec![];
    for face in &plan.faces {
        let socket = bind(face)
            .map_err(|e| format!("{} cannot be had for {}: {e}", face.addr, face.name))?;
        sockets.push(socket);
    }
    // Only now, and in this order: whoever finds the last one listening finds them all.
    for (face, socket) in plan.faces.iter().zip(sockets) {
        let listener = socket
            .listen(BACKLOG)
            .map_err(|e| format!("cannot listen on {}: {e}", face.addr))?;
        let calls = Calls::open(&plan.calls, &face.name)
            .map_err(|e| format!("{}: {e}", plan.calls.display()))?;
        let security = face
            .certificate
            .as_ref()
            .map(|certificate| Security::of(&face.protocol, certificate))
            .transpose()
            .map_err(|e| format!("{}: {e}", face.name))?;
        let door = Door { listener, security };
        let serving = serving(face, door, calls, functions.clone())
            .map_err(|e| format!("{}: {}", face.name, e.error.message))?;
        ready.push((face, serving));
    }
    let tasks: Vec<_> = ready
        .into_iter()
        .map(|(_, serving)| tokio::spawn(serving))
        .collect();
    for task in tasks {
        task.await.map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn bind(face: &Face) -> io::Result<TcpSocket> {
    let socket = match face.addr.is_ipv4() {
        true => TcpSocket::new_v4(),
        false => TcpSocket::new_v6(),
    }?;
    // A restarted mock must not wait for the connections of the one before it (socket(7)).
    socket.set_reuseaddr(true)?;
    socket.bind(face.addr)?;
    Ok(socket)
}

fn serving(
    face: &Face,
    door: Door,
    calls: Calls,
    functions: Functions,
) -> Result<Serving, Mistake> {
    Ok(match face.protocol.as_str() {
        "http" => {
            let routes = Arc::new(Routes::new(http::Http, face, functions)?);
            Box::pin(door.accept(move |stream| http::serve(stream, routes.clone(), calls.clone())))
        }
        "redis" => {
            let routes = Arc::new(Routes::new(redis::Redis, face, functions)?);
            let server = redis::Server::new(routes, calls);
            Box::pin(door.accept(move |stream| server.clone().serve(stream)))
        }
        "kafka" => {
            let routes = Arc::new(Routes::new(kafka::Kafka, face, functions)?);
            let server = kafka::Server::new(routes, calls, face.advertised);
            Box::pin(door.accept(move |stream| server.clone().serve(stream)))
        }
        "grpc" => {
            let script = grpc::Grpc::open(face.descriptors.as_deref()).map_err(Mistake::of_face)?;
            let routes = Arc::new(Routes::new(script, face, functions)?);
            let server = grpc::Server::new(routes, calls);
            Box::pin(door.accept(move |stream| server.clone().serve(stream)))
        }
        other => {
            return Err(Mistake {
                route: None,
                answer: None,
                error: ArgError::new("", format!("protocol {other} cannot be mocked")),
            });
        }
    })
}

/// Where clients come in.
struct Door {
    listener: TcpListener,
    security: Option<Security>,
}

impl Door {
    async fn accept<F, Fut>(self, serve: F)
    where
        F: Fn(TcpStream) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    let (security, serve) = (self.security.clone(), serve.clone());
                    tokio::spawn(async move {
                        let plain = match security {
                            None => Ok(stream),
                            Some(security) => security.take_off(stream).await,
                        };
                        match plain {
                            Ok(stream) => serve(stream).await,
                            Err(e) => eprintln!("a client's TLS: {e}"),
                        }
                    });
                }
                // EMFILE and its kin (accept(2)): the connection stays queued, and trying again at once would spin.
                Err(_) => tokio::time::sleep(REST).await,
            }
        }
    }
}

/// TLS, from a client's first byte on.
#[derive(Clone)]
struct Security {
    settings: Arc<Settings>,
    /// What it speaks inside (ALPN).
    speaks: &'static [&'static str],
}

impl Security {
    fn of(protocol: &str, certificate: &Certificate) -> Result<Security, String> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
        };
        let tls = Tls {
            shown: Identity {
                chain: read(&certificate.cert)?,
                key: read(&certificate.key)?,
            },
            ..Tls::default()
        };
        Ok(Security {
            settings: Arc::new(Settings::new(&Arc::new(tls))?),
            speaks: match protocol {
                "http" => &["http/1.1"],
                "grpc" => &["h2"],
                _ => &[],
            },
        })
    }

    async fn take_off(&self, stream: TcpStream) -> io::Result<TcpStream> {
        tls::terminate(stream, &self.settings, self.speaks).await
    }
}
