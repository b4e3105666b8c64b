//! Listening, accepting, and which protocol a connection gets.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use faultbox_contract::ArgError;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::calls::Calls;
use crate::functions::Functions;
use crate::plan::{Face, Plan};
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
        let serving = serving(face, listener, calls, functions.clone())
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
    listener: TcpListener,
    calls: Calls,
    functions: Functions,
) -> Result<Serving, Mistake> {
    Ok(match face.protocol.as_str() {
        "http" => {
            let routes = Arc::new(Routes::new(http::Http, face, functions)?);
            Box::pin(accept(listener, move |stream| {
                http::serve(stream, routes.clone(), calls.clone())
            }))
        }
        "redis" => {
            let routes = Arc::new(Routes::new(redis::Redis, face, functions)?);
            let server = redis::Server::new(routes, calls);
            Box::pin(accept(listener, move |stream| server.clone().serve(stream)))
        }
        "kafka" => {
            let routes = Arc::new(Routes::new(kafka::Kafka, face, functions)?);
            let server = kafka::Server::new(routes, calls, face.advertised);
            Box::pin(accept(listener, move |stream| server.clone().serve(stream)))
        }
        "grpc" => {
            let script = grpc::Grpc::open(face.descriptors.as_deref()).map_err(Mistake::of_face)?;
            let routes = Arc::new(Routes::new(script, face, functions)?);
            let server = grpc::Server::new(routes, calls);
            Box::pin(accept(listener, move |stream| server.clone().serve(stream)))
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

async fn accept<F, Fut>(listener: TcpListener, serve: F)
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream));
            }
            // EMFILE and its kin (accept(2)): the connection stays queued, and trying again at once would spin.
            Err(_) => tokio::time::sleep(REST).await,
        }
    }
}
