//! Flows that are cut or lossy, and what each cut has taken of them.
//!
//! The kernel knows the newest cut of a flow only. What an older one had met when a newer took its place is kept here, and given back to it
//! when it is the newest again: it goes on counting, and drawing, where it was.

use std::collections::HashMap;

use aya::maps::MapError;
use faultbox_ebpf_common::{Cut, CutKey};

use super::watch::{Hash, withdraw, wrong};

/// A draw has 53 bits; a threshold above all draws takes every packet.
const EVERY: u64 = 1 << 53;

/// Packets from one service to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The sender.
    pub from: String,
    /// The receiver.
    pub to: String,
}

/// What happens to some flows.
#[derive(Debug, Clone)]
pub struct CutRule {
    /// Unique in the test.
    pub id: u64,
    /// The flows it concerns.
    pub flows: Vec<Flow>,
    /// The chance that a packet is lost; `None`: every packet is.
    pub probability: Option<f64>,
    /// What the draws depend on.
    pub seed: u64,
    /// New connections are refused with this errno instead of timing out.
    pub refuse: Option<i32>,
}

impl CutRule {
    fn cut(&self, before: Met) -> Cut {
        Cut {
            below: match self.probability {
                None => EVERY,
                // 53 bits: the mantissa of an f64.
                Some(p) => (p.clamp(0.0, 1.0) * EVERY as f64) as u64,
            },
            seed: self.seed,
            met: before.met,
            dropped: before.dropped,
            refuse: self.refuse.map_or(0, i32::unsigned_abs),
            ..Cut::default()
        }
    }
}

/// How many packets of a flow.
#[derive(Debug, Clone, Copy, Default)]
struct Met {
    met: u64,
    dropped: u64,
}

struct InForce {
    rule: CutRule,
    keys: Vec<CutKey>,
    /// What it had met of a flow when it was last the flow's newest.
    before: HashMap<CutKey, Met>,
}

/// The cuts of one worker.
pub(super) struct Cuts {
    kernel: Hash<CutKey, Cut>,
    /// Oldest first.
    stack: Vec<InForce>,
}

impl Cuts {
    /// None yet.
    pub(super) fn new(kernel: Hash<CutKey, Cut>) -> Cuts {
        Cuts {
            kernel,
            stack: vec![],
        }
    }

    /// Puts a cut of these flows in force.
    pub(super) fn put(&mut self, rule: CutRule, keys: Vec<CutKey>) -> Result<(), String> {
        for key in &keys {
            self.keep(*key);
        }
        let id = rule.id;
        self.stack.push(InForce {
            rule,
            keys: keys.clone(),
            before: HashMap::new(),
        });
        let done = keys.iter().try_for_each(|key| self.tell(*key));
        if done.is_err() {
            self.lift(id);
        }
        done
    }

    /// Lifts it, and says how many packets it took.
    pub(super) fn lift(&mut self, id: u64) -> u64 {
        let Some(at) = self.stack.iter().position(|c| c.rule.id == id) else {
            return 0;
        };
        let dropped = self.dropped(id);
        let newest_of: Vec<CutKey> = self.stack[at]
            .keys
            .iter()
            .copied()
            .filter(|key| self.newest(*key) == Some(at))
            .collect();
        self.stack.remove(at);
        for key in newest_of {
            // What cannot be written stays as it was, and is taken out with the worker.
            let _ = self.tell(key);
        }
        dropped
    }

    /// How many packets it has taken.
    pub(super) fn dropped(&self, id: u64) -> u64 {
        let Some(at) = self.stack.iter().position(|c| c.rule.id == id) else {
            return 0;
        };
        let cut = &self.stack[at];
        let taken = |key: &CutKey| match self.newest(*key) == Some(at) {
            true => self.kernel.get(key, 0).map_or(0, |live| live.dropped),
            false => cut.before.get(key).map_or(0, |before| before.dropped),
        };
        cut.keys.iter().map(taken).sum()
    }

    /// Takes out all flows that these services send.
    pub(super) fn withdraw(&mut self, mine: impl Fn(u32) -> bool) {
        self.stack.clear();
        withdraw(&mut self.kernel, |key: &CutKey, _| mine(key.from));
    }

    /// Which cut the kernel knows of this flow.
    fn newest(&self, key: CutKey) -> Option<usize> {
        self.stack.iter().rposition(|c| c.keys.contains(&key))
    }

    /// Remembers what the newest cut of a flow has met, before another takes its place.
    fn keep(&mut self, key: CutKey) {
        if let Some(at) = self.newest(key)
            && let Ok(live) = self.kernel.get(&key, 0)
        {
            let met = Met {
                met: live.met,
                dropped: live.dropped,
            };
            self.stack[at].before.insert(key, met);
        }
    }

    /// Tells the kernel about the newest cut of a flow.
    fn tell(&mut self, key: CutKey) -> Result<(), String> {
        let Some(at) = self.newest(key) else {
            return match self.kernel.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
                Err(e) => Err(wrong("CUTS", &e)),
            };
        };
        let newest = &self.stack[at];
        let before = newest.before.get(&key).copied().unwrap_or_default();
        self.kernel
            .insert(key, newest.rule.cut(before), 0)
            .map_err(|e| wrong("CUTS", &e))
    }
}
