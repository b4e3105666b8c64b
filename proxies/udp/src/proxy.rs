//! Each datagram on its own: what the rules that fire on it make of it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use faultbox_contract::ArmedRule;
use faultbox_contract::rule::Fired;
use faultbox_engine::{Datagrams, Outbox, Way};
use serde_json::json;

use crate::rules::{Action, UdpRule};

/// What a throttled link queues, per client and direction: what home routers are known for; at 64 kbit/s it takes half a minute.
const QUEUE: usize = 256 << 10;

type Flow = faultbox_engine::Flow<Memory>;

/// The proxy has no state of its own; flows have.
pub struct Proxy;

/// What is remembered of a client.
#[derive(Default)]
pub struct Memory {
    up: Mutex<Lane>,
    down: Mutex<Lane>,
}

/// One way of a flow.
#[derive(Default)]
struct Lane {
    /// The throttles that have been asked about this flow, fired or not; they are not asked again, so that counters and
    /// probabilities count clients.
    asked: HashSet<u64>,
    /// Those that limit it.
    throttles: Vec<Arc<ArmedRule>>,
    /// When the limited link is free again.
    free: Option<Instant>,
    /// How many bytes wait for it.
    queued: usize,
    /// Datagrams that wait to be overtaken.
    behind: Vec<Behind>,
    next: u64,
}

/// One that lets others overtake it.
struct Behind {
    key: u64,
    left: usize,
    parcel: Parcel,
}

/// A datagram on its way, with how many times it arrives.
struct Parcel {
    bytes: Vec<u8>,
    copies: usize,
}

/// Where a datagram goes that is done with waiting.
enum Exit<'a> {
    /// Among its batch, in order.
    Batch(&'a mut Outbox),
    /// On its own, later.
    Late,
}

impl Memory {
    fn lane(&self, way: Way) -> MutexGuard<'_, Lane> {
        match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        }
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    /// Is there something that a datagram on which nothing fires must reckon with?
    fn is_busy(&mut self) -> bool {
        self.throttles.retain(|r| !r.is_lifted());
        !self.throttles.is_empty() || !self.behind.is_empty()
    }

    /// When a datagram of this size leaves, and the rule that says so; `Err` if the queue is full, `None` if nothing limits it.
    fn departure(&mut self, size: usize, now: Instant) -> Result<Option<Departure>, ()> {
        self.throttles.retain(|r| !r.is_lifted());
        let rate = |r: &Arc<ArmedRule>| match UdpRule::of(r).map(|r| r.action) {
            Some(Action::Throttle(rate)) => rate,
            _ => u64::MAX,
        };
        let Some(slowest) = self.throttles.iter().min_by_key(|r| rate(r)).cloned() else {
            self.free = None;
            return Ok(None);
        };
        if self.queued + size > QUEUE {
            return Err(());
        }
        let cost = (size as u128 * 1_000_000_000).div_ceil(u128::from(rate(&slowest)));
        let cost = Duration::from_nanos(u64::try_from(cost).unwrap_or(u64::MAX));
        let from = self.free.map_or(now, |free| free.max(now));
        // The last byte of a datagram arrives when all of it has been sent.
        self.free = from.checked_add(cost);
        self.queued += size;
        let wait = from.saturating_duration_since(now).saturating_add(cost);
        Ok(Some((slowest, wait)))
    }

    /// Counts one datagram that goes by; those that have been overtaken often enough come out.
    fn overtake(&mut self) -> Vec<Parcel> {
        let mut out = vec![];
        let mut i = 0;
        while i < self.behind.len() {
            self.behind[i].left -= 1;
            if self.behind[i].left == 0 {
                out.push(self.behind.remove(i).parcel);
            } else {
                i += 1;
            }
        }
        out
    }
}

type Departure = (Arc<ArmedRule>, Duration);

impl Datagrams for Proxy {
    type Memory = Memory;

    fn looks(&self, flow: &Flow, way: Way) -> bool {
        !flow.origin.host.rules.is_empty() || flow.memory.lane(way).is_busy()
    }

    fn handle(&self, flow: &Arc<Flow>, way: Way, datagram: &[u8], read: Instant, out: &mut Outbox) {
        let fired = evaluate(flow, way, datagram);
        if fired.is_empty() && !flow.memory.lane(way).is_busy() {
            out.pass();
            return;
        }
        // The only terminal rule is drop.
        if fired.terminal.is_some() {
            return;
        }
        let mut parcel = Parcel {
            bytes: datagram.to_vec(),
            copies: 1,
        };
        let mut reorder = None;
        for armed in &fired.modifiers {
            match UdpRule::of(armed).map(|r| r.action) {
                Some(Action::Corrupt(offset)) => {
                    if let Some(byte) = parcel.bytes.get_mut(offset) {
                        *byte ^= 0xff;
                    }
                }
                Some(Action::Truncate(bytes)) => parcel.bytes.truncate(bytes),
                Some(Action::Duplicate(copies)) => parcel.copies += copies,
                Some(Action::Throttle(_)) => flow.memory.lane(way).throttles.push(armed.clone()),
                Some(Action::Reorder(past, within)) => {
                    reorder = Some((armed.clone(), past, within));
                }
                _ => {}
            }
        }
        let delays: Vec<_> = fired
            .delays
            .iter()
            .filter_map(|armed| match UdpRule::of(armed)?.action {
                Action::Delay(how_long) => Some((armed.clone(), how_long)),
                _ => None,
            })
            .collect();
        if delays.is_empty() {
            onward(flow, way, parcel, reorder, Exit::Batch(out));
        } else {
            let size = parcel.bytes.len();
            flow.hold(delays, read, size, move |flow| {
                onward(&flow, way, parcel, reorder, Exit::Late);
            });
        }
    }
}

/// Asks the rules about one datagram.
fn evaluate(flow: &Flow, way: Way, datagram: &[u8]) -> Fired {
    let word = match way {
        Way::Up => "up",
        Way::Down => "down",
    };
    flow.origin.host.rules.evaluate(
        |armed| {
            let Some(rule) = UdpRule::of(armed) else {
                return false;
            };
            let selected = rule.matches(way, datagram) && flow.origin.admits(armed);
            let once = matches!(rule.action, Action::Throttle(_));
            selected && (!once || flow.memory.lane(way).asked.insert(armed.id))
        },
        &*flow.origin.host.sink,
        || json!({"direction": word, "bytes": datagram.len()}),
    )
}

/// A datagram whose delays are over: it waits to be overtaken, or goes, and so do those that it has overtaken.
fn onward(
    flow: &Arc<Flow>,
    way: Way,
    parcel: Parcel,
    reorder: Option<(Arc<ArmedRule>, usize, Duration)>,
    mut exit: Exit<'_>,
) {
    let Some((rule, past, within)) = reorder else {
        let overtaken = flow.memory.lane(way).overtake();
        for parcel in std::iter::once(parcel).chain(overtaken) {
            depart(flow, way, parcel, &mut exit);
        }
        return;
    };
    let size = parcel.bytes.len();
    let key = {
        let mut lane = flow.memory.lane(way);
        let key = lane.next;
        lane.next += 1;
        // It is overtaken by those that come later, and does not overtake those that wait already.
        lane.behind.push(Behind {
            key,
            left: past,
            parcel,
        });
        key
    };
    let waited = move |flow: &Flow| {
        let mut lane = flow.memory.lane(way);
        let at = lane.behind.iter().position(|b| b.key == key);
        at.map(|i| lane.behind.remove(i).parcel)
    };
    let held = flow.hold(vec![(rule, within)], Instant::now(), size, move |flow| {
        if let Some(parcel) = waited(&flow) {
            depart(&flow, way, parcel, &mut Exit::Late);
        }
    });
    if !held {
        // Nobody would let it out in time.
        let _lost = waited(flow);
    }
}

/// Sends a datagram and its copies, over the limited link if there is one.
fn depart(flow: &Arc<Flow>, way: Way, parcel: Parcel, exit: &mut Exit<'_>) {
    let size = parcel.bytes.len();
    for _ in 0..parcel.copies {
        let now = Instant::now();
        let departure = flow.memory.lane(way).departure(size, now);
        let bytes = parcel.bytes.clone();
        match (departure, &mut *exit) {
            (Err(()), _) => {}
            (Ok(None), Exit::Batch(out)) => out.push(bytes),
            (Ok(None), Exit::Late) => flow.send(way, bytes),
            (Ok(Some(departure)), _) => {
                let held = flow.hold(vec![departure], now, size, move |flow| {
                    flow.memory.lane(way).queued -= size;
                    flow.send(way, bytes);
                });
                if !held {
                    flow.memory.lane(way).queued -= size;
                }
            }
        }
    }
}
