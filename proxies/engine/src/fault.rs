//! Faults that mean the same on every protocol.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faultbox_contract::ArmedRule;
use tokio::net::TcpStream;

use crate::socket::{gone, send};
use crate::timer;

/// Serves the delays that fired on one request, one after another; each ends when its rule is lifted. `since` is when the request
/// was read: what the proxy has spent on it by now is part of the first delay, not on top of it. Returns the time injected.
pub async fn serve_delays(delays: &[Arc<ArmedRule>], since: Instant) -> Duration {
    if delays.is_empty() {
        return Duration::ZERO;
    }
    let start = Instant::now();
    let mut at = since;
    for rule in delays {
        let how_long = rule
            .rule
            .get("delay")
            .and_then(faultbox_contract::Arg::as_duration)
            .unwrap_or_default();
        // A deadline past what the clock can hold is as good as for ever; lifting the rule still ends it.
        match at.checked_add(how_long) {
            Some(deadline) => tokio::select! {
                () = timer::sleep_until(deadline) => at = deadline,
                () = rule.until_lifted() => at = Instant::now(),
            },
            None => {
                rule.until_lifted().await;
                at = Instant::now();
            }
        }
    }
    start.elapsed()
}

/// How often a throttled transfer writes: small enough to look smooth, large enough not to burn the CPU.
const PACE: Duration = Duration::from_millis(20);

/// A limit on the rate of one transfer: the sum of the slowest rule's steps. A rule that is lifted stops counting.
#[derive(Debug, Default)]
pub struct Throttle {
    rules: Vec<Arc<ArmedRule>>,
    /// When the next byte may go out.
    next: Option<Instant>,
}

impl Throttle {
    /// The throttle rules (those with `rate=`) among `modifiers`; `None` if there is none.
    pub fn of(modifiers: &[Arc<ArmedRule>]) -> Option<Throttle> {
        let rules: Vec<_> = modifiers
            .iter()
            .filter(|r| r.rule.int_of("rate").is_some())
            .cloned()
            .collect();
        (!rules.is_empty()).then_some(Throttle { rules, next: None })
    }

    /// Adds rules that fired later on the same transfer.
    pub fn add(&mut self, more: Throttle) {
        self.rules.extend(more.rules);
    }

    /// Is no rule left that limits anything?
    pub fn is_over(&mut self) -> bool {
        self.rules.retain(|r| !r.is_lifted());
        self.rules.is_empty()
    }

    /// Writes all of `bytes` at the lowest of the rates, or freely once every rule is lifted.
    ///
    /// # Errors
    /// What write(2) says; `ConnectionReset` when the reader is gone while the transfer rests.
    pub async fn send(&mut self, to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.is_over();
            let Some(slowest) = self
                .rules
                .iter()
                .min_by_key(|r| r.rule.int_of("rate"))
                .cloned()
            else {
                return send(to, bytes).await;
            };
            let rate = slowest.rule.int_of("rate").unwrap_or(1).max(1) as u128;
            let at_once = (rate * PACE.as_nanos() / 1_000_000_000).max(1);
            let n = usize::try_from(at_once)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            let now = Instant::now();
            let due = self.next.map_or(now, |next| next.max(now));
            if due > now {
                tokio::select! {
                    () = timer::sleep_until(due) => {}
                    () = slowest.until_lifted() => { self.next = None; continue; }
                    () = gone(to) => return Err(io::ErrorKind::ConnectionReset.into()),
                }
            }
            send(to, &bytes[..n]).await?;
            bytes = &bytes[n..];
            let cost = (n as u128 * 1_000_000_000).div_ceil(rate);
            self.next = Some(due + Duration::from_nanos(u64::try_from(cost).unwrap_or(u64::MAX)));
        }
        Ok(())
    }
}
