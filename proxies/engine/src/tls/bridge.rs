//! From records to plain text and back.
//!
//! A protocol works on plain TCP sockets. A bridge moves bytes between a TLS connection and one end of a loopback connection, whose other
//! end the protocol has; how a side ends is translated faithfully:
//!
//! | on the wire | in plain |
//! |---|---|
//! | close_notify | FIN |
//! | FIN without close_notify: a truncated stream | FIN, and the other bridge of the pair leaves its close_notify out as well |
//! | RST | RST |

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::{Shutdown, shutdown};
use rustls::Error;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::session::{Session, name};
use crate::inbox::Inbox;
use crate::pump::End;
use crate::socket::{linger, reset, send, send_watching};

/// Which sides of a proxied connection have been cut off: a TCP stream that ends without TLS's own end.
#[derive(Debug, Default)]
pub(super) struct Cuts {
    client: AtomicBool,
    upstream: AtomicBool,
}

/// Which side of the proxy a bridge serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Upstream,
}

/// Where a bridge tells what went wrong.
pub(super) type Report = Box<dyn Fn(&str) + Send + Sync>;

/// A bridge, about to be run.
pub(super) struct Bridge {
    pub(super) session: Session,
    pub(super) side: Side,
    pub(super) cuts: Arc<Cuts>,
    pub(super) report: Report,
}

impl Bridge {
    /// Starts it in a task of its own, which ends when both sides have; returns the end in plain.
    pub(super) async fn start(self) -> io::Result<TcpStream> {
        let (ours, theirs) = pair().await?;
        tokio::spawn(self.run(ours));
        Ok(theirs)
    }

    async fn run(mut self, mut plain: TcpStream) {
        let early = std::mem::take(&mut self.session.early);
        // Of both directions, the one from client to server is watched: a client that vanishes must tear the upstream's side down.
        let watch_open = self.side == Side::Client;
        let end = {
            let (from, to) = plain.split();
            let mut opening = std::pin::pin!(self.opening(to, early, watch_open));
            let mut sealing = std::pin::pin!(self.sealing(from, !watch_open));
            tokio::select! {
                end = &mut opening => match end {
                    End::SourceGone => End::SourceGone,
                    End::SinkGone => { sealing.await; End::SourceGone }
                    End::Closed => sealing.await,
                },
                end = &mut sealing => match end {
                    End::SourceGone => End::SourceGone,
                    End::SinkGone => { opening.await; End::SourceGone }
                    End::Closed => opening.await,
                },
            }
        };
        match end {
            End::Closed => {}
            End::SourceGone | End::SinkGone => {
                reset(plain);
                reset(self.session.wire);
            }
        }
    }

    /// Wire to plain.
    async fn opening(&self, mut to: WriteHalf<'_>, early: Vec<u8>, watch: bool) -> End {
        let mut n = early.len();
        let mut records = early;
        records.resize(n.max(16 << 10), 0);
        let mut text = vec![];
        loop {
            let opened = self.session.open(&records[..n], &mut text);
            if !text.is_empty() {
                let sent = match watch {
                    true => send_watching(to.as_ref(), &text, &self.session.wire).await,
                    false => send(to.as_ref(), &text).await,
                };
                if let Err(e) = sent {
                    return match e.kind() {
                        io::ErrorKind::ConnectionAborted => End::SourceGone,
                        _ => End::SinkGone,
                    };
                }
                text.clear();
                // What a burst has grown goes again.
                text.shrink_to(128 << 10);
            }
            match opened {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    self.broken(&error).await;
                    self.cut();
                    break;
                }
            }
            n = match self.session.read(&mut records).await {
                Ok(0) => {
                    self.cut();
                    break;
                }
                Ok(n) => n,
                Err(_) => return End::SourceGone,
            };
            if n == records.len() && n < 256 << 10 {
                records.resize(2 * n, 0);
            }
        }
        match to.shutdown().await {
            Ok(()) => End::Closed,
            Err(_) => End::SinkGone,
        }
    }

    /// Plain to wire.
    async fn sealing(&self, mut from: ReadHalf<'_>, watch: bool) -> End {
        let wire = &self.session.wire;
        let mut inbox = Inbox::default();
        let mut records = vec![];
        loop {
            match inbox.fill(&mut from).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(_) => return End::SourceGone,
            }
            if self.session.seal(&inbox.bytes, &mut records).is_err() {
                // The connection is broken; the other direction has found that out, or will.
                return End::SinkGone;
            }
            inbox.bytes.clear();
            let sent = match watch {
                true => send_watching(wire, &records, from.as_ref()).await,
                false => send(wire, &records).await,
            };
            if let Err(e) = sent {
                return match e.kind() {
                    io::ErrorKind::ConnectionAborted => End::SourceGone,
                    _ => End::SinkGone,
                };
            }
            records.clear();
            records.shrink_to(512 << 10);
        }
        if !self.is_cut_off() {
            self.session.lock().send_close_notify();
            let rest = self.session.pending();
            if send(wire, &rest).await.is_err() {
                return End::SinkGone;
            }
        }
        match shutdown(wire.as_raw_fd(), Shutdown::Write) {
            Ok(()) => End::Closed,
            Err(_) => End::SinkGone,
        }
    }

    /// A record that is none, or an alert.
    async fn broken(&self, error: &Error) {
        match error {
            // What a peer says to a stream that was cut off is the cut's doing.
            Error::AlertReceived(_) if self.is_cut_off() => {}
            Error::AlertReceived(alert) => {
                (self.report)(&format!("it ended with the alert {}", name(*alert)));
            }
            other => (self.report)(&other.to_string()),
        }
        let alert = self.session.pending();
        let _ = send(&self.session.wire, &alert).await;
    }

    /// This side's stream has ended without its close_notify.
    fn cut(&self) {
        match self.side {
            Side::Client => self.cuts.client.store(true, Ordering::Release),
            Side::Upstream => self.cuts.upstream.store(true, Ordering::Release),
        }
    }

    /// Has the other side's?
    fn is_cut_off(&self) -> bool {
        match self.side {
            Side::Client => self.cuts.upstream.load(Ordering::Acquire),
            Side::Upstream => self.cuts.client.load(Ordering::Acquire),
        }
    }
}

/// Two ends of one loopback connection. It is TCP and no socketpair(2), because a reset has to pass.
async fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let one = TcpStream::connect(listener.local_addr()?).await?;
    let mine = one.local_addr()?;
    loop {
        let (two, peer) = listener.accept().await?;
        // Nobody else knows the port; if somebody stumbles in all the same, it is not them whom we want.
        if peer == mine {
            one.set_nodelay(true)?;
            two.set_nodelay(true)?;
            return Ok((one, two));
        }
        drop(two);
    }
}

/// Tells a peer in the middle of the handshake why it ends (RFC 8446, section 6), and closes.
pub(super) async fn refuse(wire: TcpStream, alert: u8) {
    // alert(21), TLS 1.2, length 2, fatal(2).
    let record = [21, 3, 3, 0, 2, 2, alert];
    let _ = send(&wire, &record).await;
    linger(wire).await;
}
