//! The accept loop.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use faultbox_contract::{ProxyEvent, ProxyHost, Seat, clock};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::conn::{Conn, Origin};
use crate::socket::{dial, gone, reset};
use crate::tls;

/// How long accepting rests after an error such as EMFILE; doubles up to [`LONGEST_REST`] while the error lasts.
const FIRST_REST: Duration = Duration::from_millis(5);
/// Short enough that a proxy is back soon after descriptors are free again.
const LONGEST_REST: Duration = Duration::from_millis(500);

/// Accepts connections on the host's listeners, dials the upstream for each, and runs `handle` on the pair in a task of its own. On an
/// interface with TLS, what `handle` gets is plain.
///
/// Runs until it is dropped, and takes its connections with it. A client whose upstream cannot be reached is reset at once: it
/// must not look as if a server had accepted the connection and closed it in good order.
pub async fn serve<F, Fut>(host: ProxyHost, handle: F)
where
    F: Fn(Conn) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let handle = Arc::new(handle);
    serve_upgrading(host, move |conn| {
        let handle = handle.clone();
        async move {
            if let Some(conn) = tls::upgrade(conn).await {
                handle(conn).await;
            }
        }
    })
    .await;
}

/// The same for a protocol that begins in plain text and calls [`tls::upgrade`] itself, where its client and server have agreed on TLS.
pub async fn serve_upgrading<F, Fut>(host: ProxyHost, handle: F)
where
    F: Fn(Conn) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let tls = match tls::settings(&host) {
        Ok(tls) => tls,
        Err(e) => {
            emit(&host, "proxy_failed", &io::Error::other(e));
            return;
        }
    };
    let host = Arc::new(host);
    let handle = Arc::new(handle);
    let listeners = match Listeners::of(&host) {
        Ok(listeners) => listeners,
        Err(e) => {
            emit(&host, "proxy_failed", &e);
            return;
        }
    };
    let mut connections = JoinSet::new();
    let mut rest = FIRST_REST;
    loop {
        tokio::select! {
            accepted = listeners.accept() => match accepted {
                Ok((client, peer)) => {
                    rest = FIRST_REST;
                    let origin = Origin::new(host.clone(), peer, tls.clone());
                    let handle = handle.clone();
                    let carry = move |client| async move {
                        if let Some(conn) = connect(client, origin).await {
                            handle(conn).await;
                        }
                    };
                    if let Err(e) = carried(client, host.lanes.seat(), carry, &mut connections) {
                        emit(&host, "proxy_accept_failed", &e);
                    }
                }
                // The client gave up between its SYN and our accept: its business, not the listener's.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    // EMFILE, ENFILE, ENOBUFS, ENOMEM (accept(2)): the connection stays queued; trying again at once would spin.
                    if rest == FIRST_REST {
                        emit(&host, "proxy_accept_failed", &e);
                    }
                    clock::sleep(rest).await;
                    rest = (rest * 2).min(LONGEST_REST);
                }
            },
            // Reaping keeps the set as small as the number of live connections.
            Some(over) = connections.join_next() => match over {
                Ok(Ok(())) => {}
                Ok(Err(e)) => emit(&host, "proxy_accept_failed", &e),
                // To its client this looks as if the server had hung up.
                Err(panicked) => emit(&host, "proxy_failed", &io::Error::other(format!("a connection was lost: {panicked}"))),
            }
        }
    }
}

/// Where a proxy's connections come in.
struct Listeners {
    v4: TcpListener,
    v6: Option<TcpListener>,
}

impl Listeners {
    /// Tokio's, on duplicates of the host's descriptors.
    fn of(host: &ProxyHost) -> io::Result<Listeners> {
        let watched = |listener: &std::net::TcpListener| {
            let listener = listener.try_clone()?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        let v4 = host.listener.as_deref().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotConnected,
                "the interface has no TCP listener",
            )
        })?;
        Ok(Listeners {
            v4: watched(v4)?,
            v6: host.listener_v6.as_deref().map(watched).transpose()?,
        })
    }

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match &self.v6 {
            None => self.v4.accept().await,
            Some(v6) => tokio::select! {
                accepted = self.v4.accept() => accepted,
                accepted = v6.accept() => accepted,
            },
        }
    }
}

/// Has the connection carried on the thread of its seat, until it ends.
fn carried<Fut>(
    client: TcpStream,
    seat: Option<Seat>,
    carry: impl FnOnce(TcpStream) -> Fut + Send + 'static,
    connections: &mut JoinSet<io::Result<()>>,
) -> io::Result<()>
where
    Fut: Future<Output = ()> + Send,
{
    let Some(thread) = seat.as_ref().and_then(Seat::elsewhere).cloned() else {
        connections.spawn(async move {
            carry(client).await;
            drop(seat);
            Ok(())
        });
        return Ok(());
    };
    // A socket belongs to the runtime that watches it.
    let client = client.into_std()?;
    connections.spawn_on(
        async move {
            carry(TcpStream::from_std(client)?).await;
            drop(seat);
            Ok(())
        },
        &thread,
    );
    Ok(())
}

/// Dials the upstream; a client that is reset meanwhile ends the attempt.
async fn connect(client: TcpStream, origin: Origin) -> Option<Conn> {
    let _ = client.set_nodelay(true);
    let dialled = tokio::select! {
        dialled = dial(origin.host.upstream) => dialled,
        () = gone(&client) => return None,
    };
    match dialled {
        Ok(upstream) => Some(Conn {
            client,
            upstream,
            origin,
        }),
        Err(e) => {
            emit(&origin.host, "proxy_dial_failed", &e);
            reset(client);
            None
        }
    }
}

fn emit(host: &ProxyHost, kind: &'static str, error: &io::Error) {
    host.sink.emit(ProxyEvent {
        kind,
        fields: json!({"upstream": host.upstream.to_string(), "error": error.to_string()}),
    });
}
