//! When a matching call fires: counters first, then a draw.
//!
//! The draw depends on the seed and on how many calls this one fault has matched so far, never on thread timing or on other
//! faults: same spec, same seed, same decisions.

use std::sync::atomic::{AtomicU64, Ordering};

/// The common keywords `nth after every times probability`, as a plain value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TriggerSpec {
    /// Only the n-th matching call (1-based).
    pub nth: Option<u64>,
    /// All matching calls past the n-th.
    pub after: Option<u64>,
    /// Every n-th matching call (counted from `after` when both are given).
    pub every: Option<u64>,
    /// At most n times in all.
    pub times: Option<u64>,
    /// Chance in 0..=1 that a call which the counters let through fires.
    pub probability: Option<f64>,
}

impl TriggerSpec {
    /// Does nothing narrow this trigger: does every matching call fire?
    pub fn is_always(&self) -> bool {
        *self == TriggerSpec::default()
    }

    /// Why no call can ever fire, if none can: `nth` names a call that the other counters exclude.
    pub fn never(&self) -> Option<String> {
        let nth = self.nth?;
        let past = self.after.unwrap_or(0);
        if nth <= past {
            return Some(format!(
                "call {nth} is among the {past} that `after` lets pass, so this never fires"
            ));
        }
        let every = self.every?.max(1);
        (!(nth - past).is_multiple_of(every)).then(|| {
            format!("call {nth} is none of those that `every={every}` takes, so this never fires")
        })
    }
}

/// A trigger in force: the value plus its counters.
#[derive(Debug)]
pub struct Trigger {
    spec: TriggerSpec,
    seed: u64,
    matched: AtomicU64,
    fired: AtomicU64,
}

impl Trigger {
    /// `seed` is [`seed_of`] the run's seed, the test's name and the fault's own key.
    pub fn new(spec: TriggerSpec, seed: u64) -> Trigger {
        Trigger {
            spec,
            seed,
            matched: AtomicU64::new(0),
            fired: AtomicU64::new(0),
        }
    }

    /// Counts one matching call and says whether it fires. Never blocks or allocates.
    pub fn decide(&self) -> bool {
        let n = self.matched.fetch_add(1, Ordering::Relaxed) + 1;
        let spec = &self.spec;
        let past = spec.after.unwrap_or(0);
        let counters = spec.nth.is_none_or(|want| n == want)
            && n > past
            && spec
                .every
                .is_none_or(|every| (n - past).is_multiple_of(every.max(1)));
        if !counters || spec.probability.is_some_and(|p| draw(self.seed, n) >= p) {
            return false;
        }
        match spec.times {
            None => {
                self.fired.fetch_add(1, Ordering::Relaxed);
                true
            }
            Some(limit) => self
                .fired
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |fired| {
                    (fired < limit).then_some(fired + 1)
                })
                .is_ok(),
        }
    }

    /// How many calls have matched so far, fired or not.
    pub fn matched(&self) -> u64 {
        self.matched.load(Ordering::Relaxed)
    }

    /// How many have fired.
    pub fn fired(&self) -> u64 {
        self.fired.load(Ordering::Relaxed)
    }
}

/// A number in 0..1 for the n-th call under `seed`.
fn draw(seed: u64, n: u64) -> f64 {
    // 53 bits: the mantissa of an f64.
    (mix(seed ^ mix(n)) >> 11) as f64 / (1u64 << 53) as f64
}

/// One seed from the run's seed and the names that identify a decision; stable across versions, platforms and runs.
pub fn seed_of(seed: u64, names: &[&str]) -> u64 {
    let mut hash = mix(seed);
    for name in names {
        for byte in name.bytes().chain([0xff]) {
            hash = mix(hash ^ u64::from(byte));
        }
    }
    hash
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_exclude_each_other_are_found() {
        let spec = |nth, after, every| TriggerSpec {
            nth,
            after,
            every,
            ..TriggerSpec::default()
        };
        assert_eq!(spec(Some(4), Some(3), None).never(), None);
        assert_eq!(spec(Some(5), Some(1), Some(2)).never(), None);
        assert_eq!(spec(None, Some(3), Some(2)).never(), None);
        assert!(spec(Some(3), Some(3), None).never().is_some());
        assert!(spec(Some(4), Some(1), Some(2)).never().is_some());
        // Every spec that is let through does fire.
        for (nth, after, every) in [(4, Some(3), None), (5, Some(1), Some(2))] {
            let trigger = Trigger::new(spec(Some(nth), after, every), 1);
            assert_eq!((0..10).filter(|_| trigger.decide()).count(), 1);
        }
    }

    fn fires(spec: TriggerSpec, seed: u64, calls: usize) -> Vec<usize> {
        let trigger = Trigger::new(spec, seed);
        (1..=calls).filter(|_| trigger.decide()).collect()
    }

    #[test]
    fn counters() {
        let spec = TriggerSpec::default;
        assert_eq!(
            fires(
                TriggerSpec {
                    nth: Some(3),
                    ..spec()
                },
                0,
                10
            ),
            [3]
        );
        assert_eq!(
            fires(
                TriggerSpec {
                    after: Some(7),
                    ..spec()
                },
                0,
                10
            ),
            [8, 9, 10]
        );
        assert_eq!(
            fires(
                TriggerSpec {
                    every: Some(4),
                    ..spec()
                },
                0,
                10
            ),
            [4, 8]
        );
        assert_eq!(
            fires(
                TriggerSpec {
                    times: Some(2),
                    ..spec()
                },
                0,
                10
            ),
            [1, 2]
        );
        assert_eq!(
            fires(
                TriggerSpec {
                    after: Some(2),
                    every: Some(3),
                    times: Some(2),
                    ..spec()
                },
                0,
                20
            ),
            [5, 8]
        );
    }

    #[test]
    fn draws_repeat_by_seed_and_hit_their_rate() {
        let spec = TriggerSpec {
            probability: Some(0.2),
            ..TriggerSpec::default()
        };
        let seed = seed_of(42, &["test_a", "disk"]);
        assert_eq!(
            fires(spec.clone(), seed, 1000),
            fires(spec.clone(), seed, 1000)
        );
        assert_ne!(
            fires(spec.clone(), seed, 1000),
            fires(spec.clone(), seed_of(43, &["test_a", "disk"]), 1000)
        );
        let hits = fires(spec, seed, 100_000).len();
        assert!((19_000..21_000).contains(&hits), "{hits}");
        assert_eq!(
            fires(
                TriggerSpec {
                    probability: Some(0.0),
                    ..TriggerSpec::default()
                },
                seed,
                1000
            )
            .len(),
            0
        );
        assert_eq!(
            fires(
                TriggerSpec {
                    probability: Some(1.0),
                    ..TriggerSpec::default()
                },
                seed,
                1000
            )
            .len(),
            1000
        );
    }

    #[test]
    fn names_do_not_run_together() {
        assert_ne!(seed_of(1, &["ab", "c"]), seed_of(1, &["a", "bc"]));
    }
}
