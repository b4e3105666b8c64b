//! The two directions of a connection whose messages a proxy walks along: how they end, and what becomes of the sockets then.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::WriteHalf;

use crate::conn::Conn;
use crate::pump::End;
use crate::socket::{linger, reset, send};

/// How a direction ended that rules may end, too. `X` is the protocol's own way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending<X = Infallible> {
    /// The source closed its side, and the FIN was passed on.
    Closed,
    /// The source was reset.
    SourceGone,
    /// The sink takes no more; what it said before may still be under way.
    SinkGone,
    /// A rule loses the connection: FIN, behind these bytes.
    Lost(Bytes),
    /// A rule resets the connection.
    Reset,
    /// The connection goes on otherwise.
    Other(X),
}

impl<X> From<End> for Ending<X> {
    fn from(end: End) -> Ending<X> {
        match end {
            End::Closed => Ending::Closed,
            End::SourceGone => Ending::SourceGone,
            End::SinkGone => Ending::SinkGone,
        }
    }
}

impl<X> Ending<X> {
    /// A rule loses the connection, with nothing said.
    pub fn lost() -> Ending<X> {
        Ending::Lost(Bytes::new())
    }

    /// Is there a side left that may have something to say?
    fn leaves_the_other(&self) -> bool {
        matches!(self, Ending::Closed | Ending::SinkGone)
    }

    /// What both came to, when this one ended first.
    fn then(self, second: Ending<X>) -> Ending<X> {
        match (self, second) {
            (Ending::SinkGone, Ending::Closed) => Ending::SinkGone,
            (_, second) => second,
        }
    }
}

/// Runs both directions, which go on until something ends them, until both are done, or one has ended the connection. `unanswered` is called once nothing more will come from
/// the server: nobody has to wait for answers then.
pub async fn both<X>(
    up: impl Future<Output = Result<Infallible, Ending<X>>>,
    down: impl Future<Output = Result<Infallible, Ending<X>>>,
    unanswered: impl FnOnce(),
) -> Ending<X> {
    let up = async {
        let Err(end) = up.await;
        end
    };
    let down = async {
        let Err(end) = down.await;
        end
    };
    let (mut up, mut down) = (pin!(up), pin!(down));
    tokio::select! {
        end = &mut up => match end.leaves_the_other() {
            true => end.then(down.await),
            false => end,
        },
        end = &mut down => match end.leaves_the_other() {
            true => {
                unanswered();
                end.then(up.await)
            }
            false => end,
        },
    }
}

/// Passes a FIN on.
pub async fn close<X>(to: &mut WriteHalf<'_>) -> Ending<X> {
    match to.shutdown().await {
        Ok(()) => Ending::Closed,
        Err(_) => Ending::SinkGone,
    }
}

/// Closes both sides as the ending wants it.
pub async fn finish<X>(conn: Conn, ending: Ending<X>) {
    match ending {
        Ending::Closed | Ending::Other(_) => {}
        Ending::SourceGone | Ending::SinkGone | Ending::Reset => {
            reset(conn.client);
            reset(conn.upstream);
        }
        Ending::Lost(last) => {
            // The server sees its client vanish, as it would; the client reads to the end what was sent before.
            drop(conn.upstream);
            if send(&conn.client, &last).await.is_ok() {
                linger(conn.client).await;
            }
        }
    }
}
