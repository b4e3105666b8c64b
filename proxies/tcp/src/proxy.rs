//! One connection: the engine's forwarding, with the rules asked about every batch of bytes.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use faultbox_contract::ArmedRule;
use faultbox_contract::rule::Fired;
use faultbox_engine::{
    Conn, Inbox, Origin, Throttle, gone, linger, reset, send, send_watching, serve_delays,
};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::rules::{Action, Direction, PREFIX_WINDOW, TcpRule};

/// How one direction ended.
enum End {
    /// The FIN was passed on.
    Closed,
    /// The source was reset, or a rule resets the connection.
    Reset,
    /// The sink takes no more; what it said before may still be on its way.
    SinkGone,
    /// A rule has cut the stream.
    Cut,
}

/// What both directions of a connection know.
#[derive(Default)]
struct Shared {
    /// The client's first bytes.
    prefix: Vec<u8>,
    /// The rules that have been asked and are not asked again. All but delays are asked once per connection, so that what they
    /// do depends on the order of connections and not on how the stream happens to be cut into batches.
    asked: HashSet<(u64, Option<Direction>)>,
    /// The drop rules that have fired: black holes, until they are lifted.
    holes: Vec<Arc<ArmedRule>>,
}

/// Serves one connection to its end.
pub async fn run(conn: Conn) {
    let Conn {
        mut client,
        mut upstream,
        origin,
    } = conn;
    let shared = Mutex::new(Shared::default());
    let end = {
        let (cr, cw) = client.split();
        let (ur, uw) = upstream.split();
        let way = |direction| Way {
            origin: &origin,
            shared: &shared,
            direction,
            throttle: None,
            limit: None,
            corrupt: vec![],
        };
        let (mut up_way, mut down_way) = (way(Direction::Up), way(Direction::Down));
        let mut up = std::pin::pin!(up_way.run(cr, uw));
        let mut down = std::pin::pin!(down_way.run(ur, cw));
        let (first, rest) = tokio::select! {
            end = &mut up => match end {
                End::Closed | End::SinkGone => (end, Some(down.await)),
                _ => (end, None),
            },
            end = &mut down => match end {
                End::Closed | End::SinkGone => (end, Some(up.await)),
                _ => (end, None),
            },
        };
        match (first, rest) {
            (End::Cut, _) | (_, Some(End::Cut)) => End::Cut,
            (End::Closed, Some(End::Closed)) => End::Closed,
            _ => End::Reset,
        }
    };
    match end {
        End::Cut => {
            tokio::join!(linger(client), linger(upstream));
        }
        End::Closed => {}
        End::Reset | End::SinkGone => {
            reset(client);
            reset(upstream);
        }
    }
}

/// One direction.
struct Way<'a> {
    origin: &'a Origin,
    shared: &'a Mutex<Shared>,
    direction: Direction,
    throttle: Option<Throttle>,
    /// How many bytes may still pass.
    limit: Option<u64>,
    /// How many bytes pass before each byte that is to be inverted.
    corrupt: Vec<u64>,
}

impl Way<'_> {
    async fn run(&mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> End {
        let mut inbox = Inbox::default();
        loop {
            match inbox.fill(&mut from).await {
                Ok(0) => {
                    return match to.shutdown().await {
                        Ok(()) => End::Closed,
                        Err(_) => End::SinkGone,
                    };
                }
                Ok(_) => {}
                Err(_) => return End::Reset,
            }
            let read = Instant::now();
            self.remember(&inbox.bytes);
            let mut injected = std::time::Duration::ZERO;
            if !self.origin.host.rules.is_empty() {
                let fired = self.evaluate(inbox.bytes.len());
                let taken = tokio::select! {
                    taken = async {
                        self.serve(&fired, read).await?;
                        self.out_of_holes().await;
                        Ok(())
                    } => taken,
                    () = gone(from.as_ref()) => return End::Reset,
                };
                match taken {
                    Ok(()) => injected = read.elapsed(),
                    Err(end) => return end,
                }
            }
            self.invert(&mut inbox.bytes);
            let cut = self.cut(&mut inbox);
            if self.throttle.as_mut().is_some_and(Throttle::is_over) {
                self.throttle = None;
            }
            let sent = match &mut self.throttle {
                Some(throttle) => throttle.send(to.as_ref(), &inbox.bytes).await,
                None if self.direction == Direction::Up => {
                    send_watching(to.as_ref(), &inbox.bytes, from.as_ref()).await
                }
                None => send(to.as_ref(), &inbox.bytes).await,
            };
            match sent {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionAborted => return End::Reset,
                Err(_) => return End::SinkGone,
            }
            if cut {
                return End::Cut;
            }
            if self.throttle.is_none() {
                let took = read.elapsed().saturating_sub(injected);
                self.origin.host.meter.record(took);
            }
            inbox.bytes.clear();
        }
    }

    fn remember(&self, bytes: &[u8]) {
        if self.direction == Direction::Up {
            let mut shared = self.lock();
            let room = PREFIX_WINDOW - shared.prefix.len();
            shared
                .prefix
                .extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    /// Asks the rules about a batch of bytes.
    fn evaluate(&self, bytes: usize) -> Fired {
        let direction = self.direction;
        let word = match direction {
            Direction::Up => "up",
            Direction::Down => "down",
        };
        self.origin.host.rules.evaluate(
            |armed| {
                let Some(rule) = TcpRule::of(armed) else {
                    return false;
                };
                let selected = rule.matches(direction, &self.lock().prefix);
                selected && self.origin.admits(armed) && self.ask(armed, rule)
            },
            &*self.origin.host.sink,
            || json!({"direction": word, "bytes": bytes}),
        )
    }

    /// Is it this rule's turn to be asked on this connection?
    fn ask(&self, armed: &ArmedRule, rule: &TcpRule) -> bool {
        let key = match rule.action {
            Action::Delay => return true,
            // These concern the connection, whichever direction they fire in.
            Action::Drop | Action::Reset => (armed.id, None),
            // These concern each direction on its own.
            _ => (armed.id, Some(self.direction)),
        };
        self.lock().asked.insert(key)
    }

    /// Does what can be done before the batch is sent, and remembers what lasts.
    async fn serve(&mut self, fired: &Fired, read: Instant) -> Result<(), End> {
        for armed in &fired.modifiers {
            if let Some(Action::Corrupt(offset)) = TcpRule::of(armed).map(|r| r.action) {
                self.corrupt.push(offset);
            }
        }
        match (&mut self.throttle, Throttle::of(&fired.modifiers)) {
            (Some(throttle), Some(more)) => throttle.add(more),
            (none @ None, some) => *none = some,
            (Some(_), None) => {}
        }
        serve_delays(&fired.delays, read).await;
        let Some(armed): Option<&Arc<ArmedRule>> = fired.terminal.as_ref() else {
            return Ok(());
        };
        match TcpRule::of(armed).map(|r| r.action) {
            Some(Action::Reset) => Err(End::Reset),
            Some(Action::Truncate(bytes)) => {
                self.limit = Some(bytes);
                Ok(())
            }
            Some(Action::Drop) => {
                self.lock().holes.push(armed.clone());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Waits until no black hole is left in this direction.
    async fn out_of_holes(&self) {
        loop {
            let hole = {
                let mut shared = self.lock();
                shared.holes.retain(|armed| !armed.is_lifted());
                let here = |armed: &&Arc<ArmedRule>| {
                    TcpRule::of(armed).is_some_and(|r| r.matches(self.direction, &shared.prefix))
                };
                shared.holes.iter().find(here).cloned()
            };
            match hole {
                Some(armed) => armed.until_lifted().await,
                None => return,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Inverts what is to be inverted in this batch, and counts the batch off the offsets still to come.
    fn invert(&mut self, bytes: &mut [u8]) {
        self.corrupt.retain_mut(|offset| {
            match usize::try_from(*offset).ok().and_then(|i| bytes.get_mut(i)) {
                Some(byte) => {
                    *byte ^= 0xff;
                    false
                }
                None => {
                    *offset -= bytes.len() as u64;
                    true
                }
            }
        });
    }

    /// Shortens the batch to what may still pass; is the stream over with it?
    fn cut(&mut self, inbox: &mut Inbox) -> bool {
        let Some(left) = &mut self.limit else {
            return false;
        };
        let n = usize::try_from(*left)
            .unwrap_or(usize::MAX)
            .min(inbox.bytes.len());
        inbox.bytes.truncate(n);
        *left -= n as u64;
        *left == 0
    }
}
