//! What a proxy adds to a request.

use std::time::{Duration, Instant};

use faultbox_contract::Meter;

/// The proxy's own share of one request's time: from a request's first byte read to its first byte written upstream, plus the
/// same for the reply. Time that a rule injected is taken out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Added(Duration);

impl Added {
    /// Adds one way's share: from `read` until now, less what was `injected` meanwhile.
    pub fn way(&mut self, read: Instant, injected: Duration) {
        self.0 += read.elapsed().saturating_sub(injected);
    }

    /// Adds one way's share that was measured elsewhere.
    pub fn span(&mut self, took: Duration, injected: Duration) {
        self.0 += took.saturating_sub(injected);
    }

    /// Hands the sum in.
    pub fn record(self, meter: &Meter) {
        meter.record(self.0);
    }
}
