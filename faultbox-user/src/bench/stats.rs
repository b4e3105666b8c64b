//! What can be concluded from interleaved blocks. Pure: histograms in, intervals out.
//!
//! Each pair of neighbouring blocks, one of each side, suffered from the machine alike; so pairs are what is drawn again in the
//! bootstrap, both blocks of a pair together. From a draw the quantiles are read off all its requests pooled, because a single block has too
//! few of them for a tail.

/// The share of repetitions in which the true value lies in an interval, as far as the bootstrap is right.
pub const LEVEL: f64 = 0.99;
/// How often pairs are drawn.
const DRAWS: usize = 1000;
/// Fewer pairs cannot carry an interval of [`LEVEL`]: the widest that they could give would still be too narrow.
pub const LEAST_PAIRS: usize = 6;
/// The requests that must lie beyond a quantile for it to be more than the luck of a few.
const LEAST_BEYOND: f64 = 10.0;

/// An estimate with what is known of its error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The best guess.
    pub value: f64,
    /// The true value is at least this.
    pub low: f64,
    /// And at most this.
    pub high: f64,
}

impl Interval {
    /// Half of its width: the noise.
    pub fn noise(&self) -> f64 {
        (self.high - self.low) / 2.0
    }

    /// Does it tell the value from `other`?
    pub fn excludes(&self, other: f64) -> bool {
        !(self.low..=self.high).contains(&other)
    }

    /// The difference of two independent estimates: their errors add up like the sides of a right angle.
    pub fn minus(&self, other: &Interval) -> Interval {
        let value = self.value - other.value;
        let below = (self.value - self.low).hypot(other.high - other.value);
        let above = (self.high - self.value).hypot(other.value - other.low);
        Interval {
            value,
            low: value - below,
            high: value + above,
        }
    }
}

/// Requests of one block by their latency: (nanoseconds, how many).
pub type Pairs = Vec<(u64, u64)>;

/// A block's latencies beside those of its neighbour of the other side.
#[derive(Debug, Clone, Default)]
pub struct Pair {
    /// Without what is to be judged.
    pub base: Pairs,
    /// With it.
    pub other: Pairs,
}

/// Quantiles of both sides and of what lies between, in nanoseconds; in the order asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Without.
    pub base: Vec<f64>,
    /// With.
    pub other: Vec<f64>,
    /// What was added; `None` if there are too few pairs, or too few requests beyond the quantile, to say anything.
    pub added: Vec<Option<Interval>>,
}

/// Compares two sides at `shares` (0..1 each, 1 for the maximum, which has no interval: it is a single request).
pub fn compare(pairs: &[Pair], shares: &[f64], seed: u64) -> Comparison {
    let (base, other) = (
        Pool::of(pairs.iter().map(|p| &p.base)),
        Pool::of(pairs.iter().map(|p| &p.other)),
    );
    let once = vec![1; pairs.len()];
    let (base_values, other_values) = (
        base.quantiles(&once, shares),
        other.quantiles(&once, shares),
    );
    let mut draws: Vec<Vec<f64>> = vec![Vec::with_capacity(DRAWS); shares.len()];
    if pairs.len() >= LEAST_PAIRS {
        let mut rng = Rng(seed);
        for _ in 0..DRAWS {
            let weights = rng.draw(pairs.len());
            let of = [&base, &other].map(|pool| pool.quantiles(&weights, shares));
            for (i, draws) in draws.iter_mut().enumerate() {
                draws.push(of[1][i] - of[0][i]);
            }
        }
    }
    let least = base.count().min(other.count()) as f64;
    let added = draws
        .into_iter()
        .zip(shares)
        .enumerate()
        .map(|(i, (draws, share))| {
            let enough = least * (1.0 - share) >= LEAST_BEYOND;
            enough
                .then(|| interval(other_values[i] - base_values[i], draws))
                .flatten()
        })
        .collect();
    Comparison {
        base: base_values,
        other: other_values,
        added,
    }
}

/// An amount, and what it is counted by: requests and seconds, seconds of CPU and requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Amount {
    /// How much.
    pub of: f64,
    /// Per what.
    pub per: f64,
}

/// How the quotient of the other side's sums stands to that of the base's: `None` of too few pairs (base, other).
pub fn ratio(pairs: &[(Amount, Amount)], seed: u64) -> Option<Interval> {
    let of = |weights: &[u32]| {
        let (mut base, mut other) = (Amount { of: 0.0, per: 0.0 }, Amount { of: 0.0, per: 0.0 });
        for ((b, o), w) in pairs.iter().zip(weights) {
            for (sum, part) in [(&mut base, b), (&mut other, o)] {
                sum.of += part.of * f64::from(*w);
                sum.per += part.per * f64::from(*w);
            }
        }
        (other.of / other.per) / (base.of / base.per)
    };
    if pairs.len() < LEAST_PAIRS {
        return None;
    }
    let value = of(&vec![1; pairs.len()]);
    let mut rng = Rng(seed);
    let draws = (0..DRAWS).map(|_| of(&rng.draw(pairs.len()))).collect();
    value.is_finite().then(|| interval(value, draws)).flatten()
}

/// What lies between the outer percentiles of the draws, widened so far that it holds the estimate.
fn interval(value: f64, mut draws: Vec<f64>) -> Option<Interval> {
    draws.retain(|d| d.is_finite());
    draws.sort_by(f64::total_cmp);
    let at = |share: f64| draws.get(((draws.len() as f64 - 1.0) * share).round() as usize);
    let tail = (1.0 - LEVEL) / 2.0;
    let (low, high) = (*at(tail)?, *at(1.0 - tail)?);
    Some(Interval {
        value,
        low: low.min(value),
        high: high.max(value),
    })
}

/// The requests of several blocks, sorted once, so that a draw only has to weigh them.
struct Pool {
    /// Nanoseconds, block, count; ascending.
    entries: Vec<(u64, u32, u64)>,
    /// Requests by block.
    counts: Vec<u64>,
}

impl Pool {
    fn of<'a>(blocks: impl Iterator<Item = &'a Pairs>) -> Pool {
        let (mut entries, mut counts) = (vec![], vec![]);
        for (block, pairs) in (0u32..).zip(blocks) {
            counts.push(pairs.iter().map(|(_, n)| n).sum());
            entries.extend(pairs.iter().map(|(ns, n)| (*ns, block, *n)));
        }
        entries.sort_unstable();
        Pool { entries, counts }
    }

    fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The quantiles when each block counts as often as its weight says; NaN without any request.
    fn quantiles(&self, weights: &[u32], shares: &[f64]) -> Vec<f64> {
        let total: u64 = self
            .counts
            .iter()
            .zip(weights)
            .map(|(n, w)| n * u64::from(*w))
            .sum();
        let mut order: Vec<usize> = (0..shares.len()).collect();
        order.sort_by(|a, b| shares[*a].total_cmp(&shares[*b]));
        let mut values = vec![f64::NAN; shares.len()];
        let mut wanted = order.into_iter().peekable();
        let mut seen = 0;
        for (ns, block, n) in &self.entries {
            let n = n * u64::from(weights[*block as usize]);
            if n == 0 {
                continue;
            }
            seen += n;
            while let Some(i) = wanted.next_if(|i| seen as f64 >= shares[*i] * total as f64) {
                values[i] = *ns as f64;
            }
        }
        values
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `n` draws out of `n`, with replacement: how often each was drawn.
    fn draw(&mut self, n: usize) -> Vec<u32> {
        let mut weights = vec![0; n];
        for _ in 0..n {
            weights[(self.next() % n as u64) as usize] += 1;
        }
        weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARES: [f64; 3] = [0.5, 0.9, 0.99];

    /// A block of a long-tailed service on a machine that is slower now and then.
    fn block(rng: &mut Rng, requests: usize, drift: f64, added: f64) -> Pairs {
        let mut unit = || (rng.next() >> 11) as f64 / (1u64 << 53) as f64;
        let pace = drift * (1.0 + 0.2 * unit());
        (0..requests)
            .map(|_| {
                let us = 100.0 * pace * (1.0 - 0.4 * (1.0 - unit()).ln()) + added;
                ((us * 1e3) as u64, 1)
            })
            .collect()
    }

    fn pairs(seed: u64, n: usize, added: f64) -> Vec<Pair> {
        let mut rng = Rng(seed);
        (0..n)
            .map(|i| {
                // The machine gets slower by half while the bench runs.
                let drift = 1.0 + i as f64 / n as f64 / 2.0;
                Pair {
                    base: block(&mut rng, 200, drift, 0.0),
                    other: block(&mut rng, 200, drift, added),
                }
            })
            .collect()
    }

    #[test]
    fn the_same_twice_cannot_be_told_apart() {
        let mut found = 0;
        for seed in 0..10 {
            let comparison = compare(&pairs(seed, 12, 0.0), &SHARES, seed);
            let told = |i: &Interval| i.excludes(0.0);
            found += comparison
                .added
                .iter()
                .flatten()
                .filter(|i| told(i))
                .count();
        }
        // 30 intervals of 99 %: one may miss by luck, and bootstraps of tails are a little narrow.
        assert!(found <= 2, "{found} of 30");
    }

    #[test]
    fn three_hundred_microseconds_are_found_whatever_the_drift() {
        for seed in 0..3 {
            let comparison = compare(&pairs(seed, 12, 300.0), &SHARES, seed);
            for (share, added) in SHARES.iter().zip(&comparison.added) {
                let added = added.unwrap();
                assert!(added.low > 100_000.0, "{share}: {added:?}");
                assert!(
                    added.low < 330_000.0 && added.high > 270_000.0,
                    "{share}: {added:?}"
                );
            }
            let p50 = comparison.added[0].unwrap();
            assert!(p50.noise() < 30_000.0, "{p50:?}");
        }
    }

    #[test]
    fn quantiles_of_known_blocks() {
        let pair = Pair {
            base: vec![(10, 50), (20, 50)],
            other: vec![(30, 100)],
        };
        let comparison = compare(&[pair], &[0.5, 0.51, 1.0], 1);
        assert_eq!(comparison.base, [10.0, 20.0, 20.0]);
        assert_eq!(comparison.other, [30.0; 3]);
        assert_eq!(comparison.added, [None; 3], "one pair carries no interval");
    }

    #[test]
    fn a_tail_of_too_few_requests_says_nothing() {
        let comparison = compare(&pairs(1, 10, 0.0), &[0.5, 0.9999, 1.0], 1);
        let known: Vec<bool> = comparison.added.iter().map(Option::is_some).collect();
        assert_eq!(known, [true, false, false]);
        let nothing = compare(&[], &SHARES, 1);
        assert!(nothing.base.iter().all(|v| v.is_nan()));
    }

    #[test]
    fn the_same_seed_says_the_same() {
        let pairs = pairs(3, 10, 10.0);
        assert_eq!(compare(&pairs, &SHARES, 7), compare(&pairs, &SHARES, 7));
    }

    #[test]
    fn ratios_of_sums() {
        let amount = |of, per| Amount { of, per };
        let pairs = [(amount(100.0, 1.0), amount(50.0, 1.0)); 8];
        let half = ratio(&pairs, 1).unwrap();
        assert_eq!((half.value, half.low, half.high), (0.5, 0.5, 0.5));
        assert_eq!(ratio(&pairs[..3], 1), None);
        assert_eq!(ratio(&[(amount(0.0, 0.0), amount(0.0, 0.0)); 8], 1), None);
    }

    #[test]
    fn a_change_is_as_uncertain_as_both() {
        let interval = |value: f64, noise: f64| Interval {
            value,
            low: value - noise,
            high: value + noise,
        };
        let change = interval(10.0, 3.0).minus(&interval(4.0, 4.0));
        assert_eq!(change, interval(6.0, 5.0));
        assert!(change.excludes(0.0) && !interval(1.0, 2.0).excludes(0.0));
    }
}
