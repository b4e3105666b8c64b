//! Forwarding raw bytes.

use std::time::Instant;

use faultbox_contract::Meter;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::inbox::Inbox;
use crate::socket::{reset, send, send_watching};

/// How one direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The source closed its side and the FIN was passed on.
    Closed,
    /// The source was reset: nobody is left to read what the sink still says.
    SourceGone,
    /// The sink takes no more. What it said before may still be on its way to the source.
    SinkGone,
}

/// Forwards raw bytes in both directions until both sides are done. A FIN passes as a FIN, a reset as a reset; what one side said
/// before it died still reaches the other. With a `meter`, each batch's time between its read and its write is recorded.
pub async fn pump(mut client: TcpStream, mut upstream: TcpStream, meter: Option<&Meter>) {
    let was_reset = {
        let (cr, cw) = client.split();
        let (ur, uw) = upstream.split();
        let (mut requests, mut replies) = (Inbox::default(), Inbox::default());
        let mut up = std::pin::pin!(forward(cr, uw, &mut requests, true, meter));
        let mut down = std::pin::pin!(forward(ur, cw, &mut replies, false, meter));
        tokio::select! {
            end = &mut up => match end {
                End::SourceGone => true,
                End::SinkGone => { down.await; true }
                End::Closed => down.await != End::Closed,
            },
            end = &mut down => match end {
                End::SourceGone => true,
                End::SinkGone => { up.await; true }
                End::Closed => up.await != End::Closed,
            },
        }
    };
    if was_reset {
        reset(client);
        reset(upstream);
    }
}

/// Forwards one direction: first what the inbox already holds, then what comes, until `from` closes or either side is gone.
/// `watch` says whether a reset of `from` is to be noticed while `to` does not read; that is for the client's side, whose
/// vanishing must tear the upstream's side down. What a dying upstream said last, on the other hand, is worth delivering.
pub async fn forward(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    inbox: &mut Inbox,
    watch: bool,
    meter: Option<&Meter>,
) -> End {
    loop {
        if inbox.bytes.is_empty() {
            match inbox.fill(&mut from).await {
                Ok(0) => {
                    return match to.shutdown().await {
                        Ok(()) => End::Closed,
                        Err(_) => End::SinkGone,
                    };
                }
                Ok(_) => {}
                Err(_) => return End::SourceGone,
            }
        }
        let read = meter.map(|_| Instant::now());
        let sent = if watch {
            send_watching(to.as_ref(), &inbox.bytes, from.as_ref()).await
        } else {
            send(to.as_ref(), &inbox.bytes).await
        };
        if let Err(e) = sent {
            return if e.kind() == std::io::ErrorKind::ConnectionAborted {
                End::SourceGone
            } else {
                End::SinkGone
            };
        }
        if let (Some(meter), Some(read)) = (meter, read) {
            meter.record(read.elapsed());
        }
        inbox.bytes.clear();
    }
}
