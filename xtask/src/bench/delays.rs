//! How exact a delay of a millisecond is, as its victim sees it.

use super::lab::{Lab, get, load};
use super::stats::Samples;
use super::table::{Goal, Table, show};
use super::{BLOCKS, number};
use crate::Result;

/// Per block; a millisecond each.
const DELAYED: u64 = 400;
const PLAIN: u64 = 2_000;
/// Before each request, delayed or not. After a millisecond without work a CPU takes tens of microseconds longer to wake: a
/// request that was held meets a sleeping server, and so must one that was not, or the difference is more than the delay.
const PAUSE: &str = "1000us";

/// Within 5 % of a millisecond.
const EXACT: Goal = Goal::Between(0.95, 1.05);

/// The delay of a call and the delay of a request, each less what the same takes without it, at the same pace.
pub fn measure(lab: &Lab, table: &mut Table) -> Result<()> {
    let (plain, slow) = (lab.native_server.addr, lab.rules.addr("BENCH_HTTP_DIRECT")?);
    let mut call = Delay::default();
    let proxy = lab.rules.addr("BENCH_HTTP")?.to_string();
    let mut request = Delay::default();
    for _ in 0..BLOCKS {
        call.add(
            &get(plain, &format!("/times?file=plain&calls={PLAIN}"))?,
            &get(slow, &format!("/times?file=delayed&calls={DELAYED}"))?,
        )?;
        let paced = |path| load(&["http", &proxy, path, "1", &DELAYED.to_string(), PAUSE]);
        request.add(&paced("/")?, &paced("/slow")?)?;
    }
    call.rows("delay(\"1ms\") of a call", table);
    request.rows("delay(delay=\"1ms\") of an HTTP request", table);
    Ok(())
}

#[derive(Default)]
struct Delay {
    p50: Samples,
    p99: Samples,
    base: Samples,
}

impl Delay {
    fn add(&mut self, plain: &crate::json::Json, slow: &crate::json::Json) -> Result<()> {
        let base = number(plain, &["p50_us"])?;
        self.base.push(base);
        self.p50.push((number(slow, &["p50_us"])? - base) / 1e3);
        self.p99.push((number(slow, &["p99_us"])? - base) / 1e3);
        Ok(())
    }

    fn rows(&self, what: &str, table: &mut Table) {
        let base = format!("without it {} µs", show(self.base.median()));
        table.row(format!("{what}: p50"), &self.p50, "ms", EXACT, &base);
        table.row(format!("{what}: p99"), &self.p99, "ms", Goal::None, "");
    }
}
