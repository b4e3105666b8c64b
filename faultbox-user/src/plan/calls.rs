//! What a service did by one system call.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Counted and timed in the kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallCount {
    /// The call's name, or its number.
    pub name: String,
    /// Calls that returned.
    pub count: u64,
    /// Those that returned an error.
    pub errors: u64,
    /// The time they took together, in nanoseconds.
    pub total_ns: u64,
    /// (longest duration of the bucket in nanoseconds, count) pairs, ascending.
    pub pairs: Vec<(u64, u64)>,
}

impl CallCount {
    /// Adds the same call's figures from elsewhere.
    pub fn merge(&mut self, other: &CallCount) {
        self.count += other.count;
        self.errors += other.errors;
        self.total_ns += other.total_ns;
        let mut buckets: BTreeMap<u64, u64> = self.pairs.drain(..).collect();
        for (ns, n) in &other.pairs {
            *buckets.entry(*ns).or_default() += n;
        }
        self.pairs = buckets.into_iter().collect();
    }

    /// The time that `quantile` (0..=1) of the calls did not exceed, to the width of a bucket; 0 if there were none.
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        let total: u64 = self.pairs.iter().map(|(_, n)| n).sum();
        let rank = (quantile * total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (ns, n) in &self.pairs {
            seen += n;
            if seen >= rank {
                return *ns;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_come_from_the_buckets() {
        let calls = CallCount {
            name: "write".into(),
            count: 100,
            errors: 0,
            total_ns: 0,
            pairs: vec![(100, 98), (1_000, 1), (5_000, 1)],
        };
        let at = |q| calls.quantile_ns(q);
        assert_eq!(
            (at(0.0), at(0.5), at(0.98), at(0.99), at(1.0)),
            (100, 100, 100, 1_000, 5_000)
        );
        let none = CallCount {
            pairs: vec![],
            ..calls
        };
        assert_eq!(none.quantile_ns(0.5), 0);
    }
}
