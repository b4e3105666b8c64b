//! From blocks to conclusions.

use faultbox_contract::Meter;
use hdrhistogram::Histogram;

use super::drive::{Block, Idling, Taken};
use super::plan::{Plan, Skipped, Subject};
use super::stats::{self, Amount, Interval, Pair, Pairs};
use crate::bench::machine::Machine;
use crate::plan::MeterSnapshot;
use crate::report::budget::Quantile;
use crate::workload::Shape;

/// A whole bench, ready to be shown.
#[derive(Debug, Clone)]
pub struct Bench {
    /// The spec as the user named it.
    pub spec: String,
    /// The seed of what the spec draws, and of the bootstrap.
    pub seed: u64,
    /// Wall time.
    pub duration_ms: f64,
    /// How it was planned.
    pub plan: Plan,
    /// Where it ran.
    pub machine: Machine,
    /// In the order of the plan.
    pub subjects: Vec<Finding>,
    /// What was not measured, and why.
    pub skipped: Vec<Skipped>,
    /// Said once.
    pub notes: Vec<String>,
}

/// What was found about one subject.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What was driven.
    pub subject: Subject,
    /// In the order of [`Quantile::ALL`].
    pub rows: Vec<Row>,
    /// Answered calls a second, other by base.
    pub throughput: Option<Interval>,
    /// Faultbox's CPU time per call, other by base: the generator's is in both, the proxy's or the supervisor's in one.
    pub own_cpu: Option<Interval>,
    /// CPU time per call in microseconds, base and other: faultbox's, then each service's.
    pub cpu: Vec<Spent>,
    /// What the proxies, or the supervisor, measured of themselves.
    pub inside: Vec<Inside>,
    /// What the generator itself takes and could do at most; `None` if not a single call was made.
    pub generator: Option<Generator>,
    /// Calls by side: base, other.
    pub sides: [Side; 2],
    /// The blocks.
    pub blocks: Vec<Block>,
    /// Which system calls were trapped, and why those.
    pub trapped: Option<String>,
    /// Why there are none, or not all.
    pub error: Option<String>,
}

/// A quantile of the latency, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Which one.
    pub quantile: Quantile,
    /// Without what is measured: around the proxy, or of the native service. NaN without a call.
    pub base: f64,
    /// With it; NaN without a call.
    pub other: f64,
    /// What that added; `None` if there are too few calls or blocks to say.
    pub added: Option<Interval>,
    /// How far the base differs from itself in the same bench: what no verdict can go below. Half of an interval.
    pub noise: Option<f64>,
}

/// What a process took.
#[derive(Debug, Clone, PartialEq)]
pub struct Spent {
    /// "faultbox", or the service.
    pub name: String,
    /// Microseconds of CPU per call, base.
    pub base_us: f64,
    /// Microseconds of CPU per call, other.
    pub other_us: f64,
    /// The most memory seen after a block, in bytes.
    pub memory: u64,
}

/// The generator of the calls: its own share of what was measured, and its ceiling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Generator {
    /// CPU time a call of the base, in microseconds: all of it is the generator's.
    pub cpu_us: f64,
    /// The median latency of the base, in microseconds. As much of it as the CPU time is the generator's, at most.
    pub base_p50_us: f64,
    /// Calls a second that this CPU time allows on all cores, if nothing else ran.
    pub most: f64,
    /// With calls that do nothing.
    pub idling: Option<Idling>,
}

impl Generator {
    fn of(cpu: &[Spent], base_p50: f64, idling: Option<Idling>, cores: usize) -> Option<Generator> {
        let cpu_us = cpu.first()?.base_us;
        (cpu_us.is_finite() && cpu_us > 0.0).then_some(Generator {
            cpu_us,
            base_p50_us: base_p50 / 1e3,
            most: cores as f64 * 1e6 / cpu_us,
            idling,
        })
    }

    /// The share of the base's median that is the generator's CPU time, at most.
    pub fn share(&self) -> f64 {
        (self.cpu_us / self.base_p50_us).min(1.0)
    }
}

/// A proxy's or a supervisor's own measure.
#[derive(Debug, Clone)]
pub struct Inside {
    /// "db.pg" for a proxy, "db" for a supervisor.
    pub name: String,
    /// Requests, or trapped calls.
    pub requests: u64,
    /// Nanoseconds, in the order of [`Quantile::ALL`].
    pub added: Vec<u64>,
}

/// All blocks of one side.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Side {
    /// Calls.
    pub count: u64,
    /// Calls that failed.
    pub failed: u64,
    /// By kind, the most frequent first.
    pub errors: Vec<(String, u64)>,
    /// Answered calls a second.
    pub rate: f64,
    /// Calls that were due and never begun; they count as failed, too.
    pub unsent: u64,
    /// Blocks in which the generator could not keep the rate.
    pub overloaded: u64,
    /// Those of them that took longer than planned.
    pub overran: u64,
}

impl Bench {
    /// Findings that share their base: the states of a service. All others are alone.
    pub fn groups(&self) -> impl Iterator<Item = &[Finding]> {
        self.subjects
            .chunk_by(|a, b| a.subject.is_beside(&b.subject))
    }
}

impl Finding {
    /// Concludes from what was taken on a machine with so many cores.
    pub fn of(subject: Subject, taken: Taken, seed: u64, cores: usize) -> Finding {
        let Taken {
            blocks,
            inside,
            generator,
            trapped,
            error,
            unavailable: _,
        } = taken;
        let neighbours = neighbours(&blocks);
        let latencies: Vec<Pair> = neighbours
            .iter()
            .map(|(base, other)| Pair {
                base: base.pairs.clone(),
                other: other.pairs.clone(),
            })
            .collect();
        let shares = Quantile::ALL.map(Quantile::share);
        let compared = stats::compare(&latencies, &shares, seed);
        let itself = stats::compare(&with_itself(&blocks), &shares, seed);
        let rows = (0..shares.len())
            .map(|i| Row {
                quantile: Quantile::ALL[i],
                base: compared.base[i],
                other: compared.other[i],
                added: compared.added[i],
                noise: itself.added[i].map(|i| i.noise()),
            })
            .collect();
        let per = |pick: &dyn Fn(&Block) -> Amount| {
            let pairs: Vec<_> = neighbours.iter().map(|(d, m)| (pick(d), pick(m))).collect();
            stats::ratio(&pairs, seed)
        };
        let cpu = spent(&blocks);
        Finding {
            generator: Generator::of(&cpu, compared.base[0], generator, cores),
            rows,
            throughput: match subject.shape {
                // The rate of an open loop is what was asked for.
                Shape::Open { .. } => None,
                Shape::Closed { .. } => per(&|b| Amount {
                    of: b.answered() as f64,
                    per: b.took.as_secs_f64(),
                }),
            },
            own_cpu: per(&|b| Amount {
                of: b.own.cpu.as_secs_f64(),
                per: b.made() as f64,
            }),
            cpu,
            inside: inside.iter().map(Inside::of).collect(),
            sides: [true, false].map(|base| Side::of(&blocks, base)),
            subject,
            blocks,
            trapped,
            error,
        }
    }

    /// All latencies of one side.
    pub fn latency(&self, base: bool) -> Histogram<u64> {
        let mut all = Histogram::new(3).expect("three digits are valid");
        for block in self.blocks.iter().filter(|b| b.base == base) {
            for (ns, n) in &block.pairs {
                // A histogram that grows takes every value.
                let _ = all.record_n(*ns, *n);
            }
        }
        all
    }
}

/// Each block beside the one that was taken just before or after it on the other side: base, other.
fn neighbours(blocks: &[Block]) -> Vec<(&Block, &Block)> {
    let pair = |two: &'_ [Block]| match two[0].base {
        true => (0, 1),
        false => (1, 0),
    };
    blocks
        .chunks_exact(2)
        .filter(|two| two[0].base != two[1].base)
        .map(|two| {
            let (base, other) = pair(two);
            (&two[base], &two[other])
        })
        .collect()
}

/// The base's blocks paired with each other: what a comparison of the same with the same gives here. The first of a pair is now the base and now
/// the other, so that a drift cancels as it does in the real comparison.
fn with_itself(blocks: &[Block]) -> Vec<Pair> {
    let own: Vec<&Pairs> = blocks.iter().filter(|b| b.base).map(|b| &b.pairs).collect();
    own.chunks_exact(2)
        .enumerate()
        .map(|(i, two)| {
            let (base, other) = match i % 2 {
                0 => (two[0], two[1]),
                _ => (two[1], two[0]),
            };
            Pair {
                base: base.clone(),
                other: other.clone(),
            }
        })
        .collect()
}

fn spent(blocks: &[Block]) -> Vec<Spent> {
    let Some(first) = blocks.first() else {
        return vec![];
    };
    let reading = |block: &Block, name: Option<&str>| match name {
        None => block.own,
        Some(name) => {
            let found = block.services.iter().find(|(n, _)| n == name);
            found.map(|(_, r)| *r).unwrap_or_default()
        }
    };
    let names = first.services.iter().map(|(name, _)| Some(name.as_str()));
    std::iter::once(None)
        .chain(names)
        .map(|name| {
            let per_call = |base: bool| {
                let side = || blocks.iter().filter(|b| b.base == base);
                let cpu: f64 = side().map(|b| reading(b, name).cpu.as_secs_f64()).sum();
                // Calls that were never begun took nothing.
                cpu * 1e6 / side().map(Block::made).sum::<u64>() as f64
            };
            Spent {
                name: name.unwrap_or("faultbox").to_owned(),
                base_us: per_call(true),
                other_us: per_call(false),
                memory: blocks
                    .iter()
                    .map(|b| reading(b, name).memory)
                    .max()
                    .unwrap_or(0),
            }
        })
        .collect()
}

impl Inside {
    fn of(snapshot: &MeterSnapshot) -> Inside {
        let meter = Meter::default();
        meter.merge(&snapshot.pairs);
        Inside {
            name: snapshot.name.clone(),
            requests: meter.count(),
            added: Quantile::ALL
                .iter()
                .map(|q| match q {
                    Quantile::Max => meter.max_ns(),
                    q => meter.quantile_ns(q.share()),
                })
                .collect(),
        }
    }
}

impl Side {
    fn of(blocks: &[Block], base: bool) -> Side {
        let mut side = Side::default();
        let (mut answered, mut took) = (0, 0.0);
        for block in blocks.iter().filter(|b| b.base == base) {
            let count = block.count();
            side.count += count;
            side.failed += block.failed;
            side.overloaded += u64::from(block.overloaded);
            side.unsent += block.unsent;
            side.overran += u64::from(!block.overrun.is_zero());
            answered += block.answered();
            took += block.took.as_secs_f64();
            for (kind, n) in &block.errors {
                match side.errors.iter_mut().find(|(k, _)| k == kind) {
                    Some((_, sum)) => *sum += n,
                    None => side.errors.push((kind.clone(), *n)),
                }
            }
        }
        side.errors.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        side.rate = match took > 0.0 {
            true => answered as f64 / took,
            false => 0.0,
        };
        side
    }

    /// More of the calls that were made failed than can be overlooked: what the figures are of is not what was to be measured.
    pub fn is_broken(&self) -> bool {
        self.failed.saturating_sub(self.unsent) as f64 > self.count as f64 * 0.01
    }

    /// More calls failed than a comparison of latencies can overlook.
    pub fn fails(&self) -> bool {
        self.failed as f64 > self.count as f64 * 0.01
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::cost::Reading;
    use crate::bench::plan::{Calls, Drive, InState, State};

    /// One subject's blocks as a quiet machine would give them: 100 us and up, and `added_us` on top through the proxy.
    pub fn taken(rounds: u32, added_us: u64) -> Taken {
        let mut taken = Taken::default();
        for round in 0..rounds {
            let first = round % 2 == 0;
            for (place, base) in [first, !first, !first, first].into_iter().enumerate() {
                let at = u64::from(round) * 4 + place as u64;
                // Some blocks are slower, whichever side they are of.
                let pace = 100_000 + (at * 7919 % 13) * 500;
                let extra = if base { 0 } else { added_us * 1000 };
                taken.blocks.push(Block {
                    base,
                    start: Duration::from_millis(at * 100),
                    took: Duration::from_millis(100),
                    pairs: (0..40).map(|i| (pace + i * i * 125 + extra, 25)).collect(),
                    failed: 0,
                    errors: vec![],
                    unsent: 0,
                    unanswered: 0,
                    overrun: Duration::ZERO,
                    overloaded: false,
                    own: Reading {
                        cpu: Duration::from_millis(if base { 20 } else { 50 }),
                        memory: 20 << 20,
                    },
                    services: vec![(
                        "api".to_owned(),
                        Reading {
                            cpu: Duration::from_millis(30),
                            memory: 8 << 20,
                        },
                    )],
                });
            }
        }
        taken.inside.push(MeterSnapshot {
            name: "api.http".to_owned(),
            protocol: "http".to_owned(),
            pairs: vec![(20_000, 990), (80_000, 10)],
        });
        taken
    }

    /// What is driven in tests.
    pub fn subject() -> Subject {
        Subject {
            name: "api.http".to_owned(),
            what: "GET /".to_owned(),
            protocol: "http".to_owned(),
            drive: Drive::Probe {
                service: "api".to_owned(),
                interface: "http".to_owned(),
            },
            shape: Shape::Closed { callers: 1 },
            asked: Duration::from_millis(4800),
            rounds: 12,
            block: Duration::from_millis(100),
            state: None,
        }
    }

    /// What is driven in tests of states.
    pub fn in_state(state: State) -> Subject {
        Subject {
            what: format!("GET /, api {}", state.name()),
            state: Some(InState {
                service: "api".to_owned(),
                request: "GET /".to_owned(),
                state,
                calls: Calls::Seen,
            }),
            ..subject()
        }
    }

    #[test]
    fn states_of_a_service_stand_together() {
        let mut bench = super::super::document::tests::bench(0);
        for (state, added) in State::ALL.into_iter().zip([1, 20, 30]) {
            let finding = Finding::of(in_state(state), taken(12, added), 1, 2);
            bench.subjects.push(finding);
        }
        let groups: Vec<usize> = bench.groups().map(<[Finding]>::len).collect();
        assert_eq!(groups, [1, 3]);
        assert_eq!(bench.subjects[2].subject.sides(), ["native", "unmatched"]);
        assert_eq!(bench.subjects[3].subject.label(), "api.http armed");
        let added = bench.subjects[3].rows[0].added.unwrap();
        assert!(
            added.excludes(0.0) && (added.value - 30_000.0).abs() < 5_000.0,
            "{added:?}"
        );
    }

    #[test]
    fn nothing_is_found_where_nothing_is() {
        let finding = Finding::of(subject(), taken(12, 0), 1, 2);
        for row in &finding.rows {
            let found = row.added.is_some_and(|a| a.excludes(0.0));
            assert!(!found, "{row:?}");
        }
        assert!(finding.rows[0].noise.unwrap() < 10_000.0);
        assert_eq!(finding.sides[0].count, 24_000);
        assert_eq!(finding.throughput.unwrap().value, 1.0);
    }

    #[test]
    fn what_was_added_is_found() {
        let finding = Finding::of(subject(), taken(12, 300), 1, 2);
        for row in &finding.rows[..3] {
            let added = row.added.unwrap();
            assert!(added.excludes(0.0), "{row:?}");
            assert!((added.value - 300_000.0).abs() < 15_000.0, "{row:?}");
        }
        assert_eq!(finding.rows[4].added, None, "a maximum has no interval");
        assert!((finding.own_cpu.unwrap().value - 2.5).abs() < 1e-9);
        assert_eq!(finding.cpu[0].name, "faultbox");
        let cpu = &finding.cpu[0];
        assert_eq!((cpu.base_us.round(), cpu.other_us.round()), (20.0, 50.0));
        assert_eq!(finding.cpu[1].name, "api");
        assert_eq!(finding.inside[0].requests, 1000);
        assert!(
            finding.inside[0].added[0] / 1000 == 20,
            "{:?}",
            finding.inside
        );
    }

    #[test]
    fn what_nobody_answered_is_no_throughput() {
        let mut refused = taken(12, 0);
        for block in refused.blocks.iter_mut().filter(|b| !b.base) {
            (block.failed, block.unanswered) = (500, 500);
            block.overrun = Duration::from_millis(1);
        }
        let finding = Finding::of(subject(), refused, 1, 2);
        assert_eq!(finding.throughput.unwrap().value, 0.5);
        assert_eq!(
            (finding.sides[0].rate.round(), finding.sides[1].rate.round()),
            (10_000.0, 5_000.0)
        );
        assert!(finding.sides[1].is_broken() && !finding.sides[0].is_broken());
        assert_eq!(
            (finding.sides[0].overran, finding.sides[1].overran),
            (0, 24)
        );
        // 20 us of a median of some 150.
        let generator = finding.generator.unwrap();
        assert_eq!(
            (generator.cpu_us.round(), generator.most.round()),
            (20.0, 100_000.0)
        );
        assert!(
            generator.share() > 0.05 && generator.share() < 0.2,
            "{generator:?}"
        );
    }

    #[test]
    fn no_blocks_are_no_panic() {
        let taken = Taken {
            error: Some("every call failed".to_owned()),
            ..Taken::default()
        };
        let finding = Finding::of(subject(), taken, 1, 2);
        assert!(
            finding
                .rows
                .iter()
                .all(|r| r.base.is_nan() && r.added.is_none())
        );
        assert!(finding.cpu.is_empty());
    }
}
