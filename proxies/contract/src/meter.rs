//! What the mediation itself costs, measured where it happens.

use std::sync::Mutex;
use std::time::Duration;

use hdrhistogram::Histogram;

/// A latency histogram that any thread may record into; nanoseconds, 1 ns to 60 s, three significant digits.
#[derive(Debug)]
pub struct Meter(Mutex<Histogram<u64>>);

impl Default for Meter {
    fn default() -> Self {
        Meter(Mutex::new(
            Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds are valid"),
        ))
    }
}

impl Meter {
    /// Records one measurement; values past 60 s count as 60 s.
    pub fn record(&self, took: Duration) {
        self.record_n(took, 1);
    }

    /// Records the same for `n` requests that went through together.
    pub fn record_n(&self, took: Duration, n: u64) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.lock().saturating_record_n(ns, n);
    }

    /// How many measurements there are.
    pub fn count(&self) -> u64 {
        self.lock().len()
    }

    /// The histogram as (nanoseconds, count) pairs, lossless for merging: what travels between processes.
    pub fn snapshot(&self) -> Vec<(u64, u64)> {
        self.lock()
            .iter_recorded()
            .map(|v| (v.value_iterated_to(), v.count_at_value()))
            .collect()
    }

    /// Adds a [`snapshot`](Meter::snapshot).
    pub fn merge(&self, pairs: &[(u64, u64)]) {
        let mut histogram = self.lock();
        for (value, count) in pairs {
            histogram.saturating_record_n(*value, *count);
        }
    }

    /// The value in nanoseconds at `quantile` (0..=1); 0 when empty.
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        self.lock().value_at_quantile(quantile)
    }

    /// The largest value in nanoseconds; 0 when empty.
    pub fn max_ns(&self) -> u64 {
        self.lock().max()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Histogram<u64>> {
        // A histogram is valid after any panic: recording is the only write.
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_merge() {
        let (a, b) = (Meter::default(), Meter::default());
        for us in 1..=1000 {
            a.record(Duration::from_micros(us));
        }
        b.merge(&a.snapshot());
        b.merge(&a.snapshot());
        assert_eq!(b.count(), 2000);
        let p50 = b.quantile_ns(0.5) as f64;
        assert!((p50 / 500_000.0 - 1.0).abs() < 0.01, "{p50}");
    }
}
