//! Queries in a byte stream, each behind its length. Replies may come in any order (RFC 7766, section 7), so an answer of ours goes out
//! as soon as the server's reply at hand is complete, and a delayed query lets others pass.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use faultbox_engine::{Conn, End, Inbox, Origin, reset, send, send_watching, serve_delays};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::answer::Carrier;
use crate::codec::{self, Framing};
use crate::proxy::{Fate, evaluate};

/// The most queries of one connection that may be held at once; past it, reading waits.
const MOST_HELD: usize = 1000;

/// Answers of ours on their way to the client.
#[derive(Default)]
struct Answers {
    waiting: Mutex<VecDeque<Vec<u8>>>,
    more: Notify,
}

impl Answers {
    fn put(&self, message: &[u8]) {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(codec::framed(message));
        self.more.notify_one();
    }

    fn take(&self) -> Vec<u8> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.drain(..).flatten().collect()
    }
}

/// A held query when its time has come.
struct Held {
    message: Vec<u8>,
    fate: Fate,
    query: codec::Query,
}

/// Serves one connection to its end.
pub async fn run(conn: Conn) {
    let Conn {
        mut client,
        mut upstream,
        origin,
    } = conn;
    let was_reset = {
        let (cr, cw) = client.split();
        let (ur, uw) = upstream.split();
        let answers = Answers::default();
        let mut up = std::pin::pin!(queries(cr, uw, &origin, &answers));
        let mut down = std::pin::pin!(replies(ur, cw, &origin, &answers));
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

/// Client to server.
async fn queries(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    origin: &Origin,
    answers: &Answers,
) -> End {
    let mut inbox = Inbox::default();
    let mut framing = Framing::default();
    let mut raw = false;
    let mut open = true;
    let mut held: JoinSet<Held> = JoinSet::new();
    // Queries whose delays have passed while the server has half of another message.
    let mut due: Vec<u8> = vec![];
    loop {
        if framing.at_boundary() && !due.is_empty() {
            if send(to.as_ref(), &due).await.is_err() {
                return End::SinkGone;
            }
            due.clear();
        }
        if !open && held.is_empty() {
            return match to.shutdown().await {
                Ok(()) => End::Closed,
                Err(_) => End::SinkGone,
            };
        }
        let read = tokio::select! {
            filled = inbox.fill(&mut from), if open && held.len() < MOST_HELD => match filled {
                Ok(0) => {
                    open = false;
                    None
                }
                Ok(_) => Some(Instant::now()),
                Err(_) => return End::SourceGone,
            },
            Some(one) = held.join_next() => {
                // A held query's task is never aborted and does not panic.
                let Ok(one) = one else { continue };
                if let Some(answer) = one.fate.answer(&one.query, Carrier::Stream) {
                    answers.put(&answer);
                } else if matches!(one.fate, Fate::Pass) {
                    due.extend(codec::framed(&one.message));
                }
                continue;
            }
        };
        let Some(read) = read else {
            // What is left when the client has closed is no message any more.
            if send(to.as_ref(), &inbox.bytes).await.is_err() {
                return End::SinkGone;
            }
            inbox.bytes.clear();
            continue;
        };
        let sent = if raw || origin.host.rules.is_empty() {
            // Not looked at, but counted, so that a rule armed meanwhile finds the next message.
            framing.advance(&inbox.bytes, false);
            let sent = send_watching(to.as_ref(), &inbox.bytes, from.as_ref()).await;
            inbox.bytes.clear();
            sent
        } else {
            let mut onward = vec![];
            let mut at = 0;
            while at < inbox.bytes.len() {
                let rest = &inbox.bytes[at..];
                if !framing.at_boundary() {
                    let n = framing.advance(rest, true);
                    onward.extend_from_slice(&rest[..n]);
                    at += n;
                    continue;
                }
                let Some(message) = codec::first_message(rest) else {
                    if !raw {
                        break;
                    }
                    framing.advance(rest, false);
                    onward.extend_from_slice(rest);
                    at = inbox.bytes.len();
                    break;
                };
                let whole = 2 + message.len();
                let passes = raw
                    || match judge(message, read, origin, answers, &mut held) {
                        Ok(passes) => passes,
                        Err(reason) => {
                            origin.degraded("client", reason);
                            raw = true;
                            true
                        }
                    };
                if passes {
                    onward.extend_from_slice(&rest[..whole]);
                }
                at += whole;
            }
            let _ = inbox.bytes.split_to(at);
            match onward.is_empty() {
                true => continue,
                false => send_watching(to.as_ref(), &onward, from.as_ref()).await,
            }
        };
        match sent {
            Ok(()) => origin.host.meter.record(read.elapsed()),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionAborted => return End::SourceGone,
            Err(_) => return End::SinkGone,
        }
    }
}

/// Does this message go on now?
fn judge(
    message: &[u8],
    read: Instant,
    origin: &Origin,
    answers: &Answers,
    held: &mut JoinSet<Held>,
) -> Result<bool, codec::Malformed> {
    let Some(query) = codec::query(message)? else {
        return Ok(true);
    };
    let fired = evaluate(origin, &query, Carrier::Stream);
    let fate = Fate::of(&fired);
    if fired.delays.is_empty() {
        if let Some(answer) = fate.answer(&query, Carrier::Stream) {
            answers.put(&answer);
        }
        return Ok(matches!(fate, Fate::Pass));
    }
    let message = message.to_vec();
    held.spawn(async move {
        serve_delays(&fired.delays, read).await;
        Held {
            message,
            fate,
            query,
        }
    });
    Ok(false)
}

/// Server to client, with our own answers between the server's.
async fn replies(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    origin: &Origin,
    answers: &Answers,
) -> End {
    let mut inbox = Inbox::default();
    let mut framing = Framing::default();
    loop {
        let mut closed = false;
        let mut read = None;
        tokio::select! {
            filled = inbox.fill(&mut from) => match filled {
                Ok(0) => closed = true,
                Ok(_) => read = Some(Instant::now()),
                Err(_) => return End::SourceGone,
            },
            () = answers.more.notified(), if framing.at_boundary() => {}
        }
        framing.advance(&inbox.bytes, false);
        if send(to.as_ref(), &inbox.bytes).await.is_err() {
            return End::SinkGone;
        }
        inbox.bytes.clear();
        if let Some(read) = read {
            origin.host.meter.record(read.elapsed());
        }
        if framing.at_boundary() || closed {
            let own = answers.take();
            if !own.is_empty() && send(to.as_ref(), &own).await.is_err() {
                return End::SinkGone;
            }
        }
        if closed {
            return match to.shutdown().await {
                Ok(()) => End::Closed,
                Err(_) => End::SinkGone,
            };
        }
    }
}
