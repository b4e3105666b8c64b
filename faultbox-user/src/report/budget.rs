//! What the mediation of a run may cost: `added_p99<1ms`, judged by what proxies and supervisors measured of themselves.

use std::cmp::Reverse;
use std::time::Duration;

use faultbox_contract::duration;
use serde_json::{Value, json};

use super::overhead::{self, Cost};
use super::{RunReport, text};

/// What may be written, for who wrote something else.
const FORM: &str = "write MEASURE_QUANTILE<LIMIT: added (a request's way through a proxy) or decision (a trapped system call), then p50, p90, p99, p99_9 or max, \
                    then a duration, as in added_p99<1ms or decision_p50<50us";

/// A limit on a quantile of a cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// As written, without blanks.
    pub text: String,
    /// What is measured.
    pub measure: Measure,
    /// Which of the measurements counts.
    pub quantile: Quantile,
    /// What it must stay under.
    pub limit: Duration,
    /// The limit itself is within it (`<=`).
    pub inclusive: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// What a proxy adds to a request.
    Added,
    /// How long a supervisor takes to decide a trapped system call.
    Decision,
}

/// Which of many measurements counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quantile {
    /// The median.
    P50,
    /// Nine tenths are at most this.
    P90,
    /// 99 % are at most this.
    P99,
    /// 99.9 % are at most this.
    P99_9,
    /// All are at most this.
    Max,
}

impl Quantile {
    /// All of them, in ascending order.
    pub const ALL: [Quantile; 5] = [
        Quantile::P50,
        Quantile::P90,
        Quantile::P99,
        Quantile::P99_9,
        Quantile::Max,
    ];

    /// Its name in budgets and reports.
    pub fn name(self) -> &'static str {
        match self {
            Quantile::P50 => "p50",
            Quantile::P90 => "p90",
            Quantile::P99 => "p99",
            Quantile::P99_9 => "p99_9",
            Quantile::Max => "max",
        }
    }

    /// The share of measurements at or below it.
    pub fn share(self) -> f64 {
        match self {
            Quantile::P50 => 0.5,
            Quantile::P90 => 0.9,
            Quantile::P99 => 0.99,
            Quantile::P99_9 => 0.999,
            Quantile::Max => 1.0,
        }
    }

    fn of(self, cost: &Cost) -> u64 {
        match self {
            Quantile::P50 => cost.p50,
            Quantile::P90 => cost.p90,
            Quantile::P99 => cost.p99,
            Quantile::P99_9 => cost.p99_9,
            Quantile::Max => cost.max,
        }
    }
}

impl Budget {
    /// Reads `added_p99<1ms`.
    ///
    /// # Errors
    /// What is wrong with it, and what is allowed.
    pub fn parse(text: &str) -> Result<Budget, String> {
        let text: String = text.split_whitespace().collect();
        let Some((left, right)) = text.split_once('<') else {
            return Err(format!("there is no `<` in it; {FORM}"));
        };
        let (inclusive, limit) = match right.strip_prefix('=') {
            Some(limit) => (true, limit),
            None => (false, right),
        };
        let (measure, quantile) = left.split_once('_').unwrap_or((left, ""));
        let measure = match measure {
            "added" => Measure::Added,
            "decision" => Measure::Decision,
            other => return Err(format!("`{other}` is not measured; {FORM}")),
        };
        let quantile = Quantile::ALL
            .into_iter()
            .find(|q| q.name() == quantile)
            .ok_or_else(|| format!("`{quantile}` is no quantile; {FORM}"))?;
        let limit = duration::parse_duration(limit)?;
        if limit.is_zero() {
            return Err(format!("nothing costs less than no time; {FORM}"));
        }
        Ok(Budget {
            measure,
            quantile,
            limit,
            inclusive,
            text,
        })
    }

    /// Is `ns` nanoseconds within it?
    pub fn allows(&self, ns: u64) -> bool {
        let (took, limit) = (u128::from(ns), self.limit.as_nanos());
        took < limit || self.inclusive && took == limit
    }
}

/// How a budget stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Everything stayed within it.
    Held,
    /// Something went over it.
    Broken,
    /// Nothing went through what it is about.
    Unmeasured,
}

impl Standing {
    /// Its name in every report.
    pub fn name(self) -> &'static str {
        match self {
            Standing::Held => "held",
            Standing::Broken => "broken",
            Standing::Unmeasured => "unmeasured",
        }
    }
}

/// A budget with what came of it.
#[derive(Debug, Clone)]
pub struct Judged<'a> {
    /// The budget.
    pub budget: &'a Budget,
    /// How it stands.
    pub standing: Standing,
    /// Each interface or service, the worst first.
    pub measured: Vec<Measured>,
}

/// One interface or service under a budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// "db.pg" for an interface, "db" for a service.
    pub name: String,
    /// Requests, or trapped calls.
    pub count: u64,
    /// The quantile, in nanoseconds.
    pub ns: u64,
    /// Is it within the budget?
    pub held: bool,
}

/// Judges every budget of a run.
pub fn judge(report: &RunReport) -> Vec<Judged<'_>> {
    fn of<'a>(report: &RunReport, budget: &'a Budget) -> Judged<'a> {
        let Budget {
            measure, quantile, ..
        } = budget;
        let costs = match measure {
            Measure::Added => overhead::interfaces(report),
            Measure::Decision => overhead::syscalls(report),
        };
        let mut measured: Vec<Measured> = costs
            .into_iter()
            .map(|cost| {
                let ns = quantile.of(&cost);
                Measured {
                    name: cost.name,
                    count: cost.count,
                    ns,
                    held: budget.allows(ns),
                }
            })
            .collect();
        measured.sort_by_key(|m| Reverse(m.ns));
        let standing = match measured.as_slice() {
            [] => Standing::Unmeasured,
            all if all.iter().all(|m| m.held) => Standing::Held,
            _ => Standing::Broken,
        };
        Judged {
            budget,
            standing,
            measured,
        }
    }
    report.budgets.iter().map(|b| of(report, b)).collect()
}

impl Judged<'_> {
    /// What came of it, in one line.
    pub fn summary(&self) -> String {
        let lines = self.lines();
        match lines.first() {
            Some(first) => format!("{}: {}: {first}", self.budget.text, self.standing.name()),
            None => format!("{}: {}", self.budget.text, self.standing.name()),
        }
    }

    /// Why it stands so: what went over it; if nothing did, the worst; or that nothing was measured.
    pub fn lines(&self) -> Vec<String> {
        let (quantile, one) = match self.budget.measure {
            Measure::Added => (self.budget.quantile.name(), "request"),
            Measure::Decision => (self.budget.quantile.name(), "trapped call"),
        };
        let line = |m: &Measured| {
            format!(
                "{}: {quantile} of {} is {} us",
                m.name,
                text::count(m.count, one),
                text::micros(m.ns)
            )
        };
        match self.standing {
            Standing::Unmeasured => vec![
                match self.budget.measure {
                    Measure::Added => {
                        "no request was passed on by a proxy and answered, so it cannot be judged"
                    }
                    Measure::Decision => "no system call was trapped, so it cannot be judged",
                }
                .to_owned(),
            ],
            Standing::Held => self.measured.first().map(line).into_iter().collect(),
            Standing::Broken => self.measured.iter().filter(|m| !m.held).map(line).collect(),
        }
    }

    /// The same as JSON.
    pub fn json(&self) -> Value {
        let measured = |m: &Measured| {
            json!({
                "name": m.name,
                "count": m.count,
                "value_us": m.ns as f64 / 1e3,
                "held": m.held,
            })
        };
        json!({
            "budget": self.budget.text,
            "standing": self.standing.name(),
            "limit_us": self.budget.limit.as_secs_f64() * 1e6,
            "measured": self.measured.iter().map(measured).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_written() {
        let budget = Budget::parse("added_p99 < 1ms").unwrap();
        assert_eq!(budget.text, "added_p99<1ms");
        assert_eq!(
            (budget.measure, budget.quantile, budget.limit),
            (Measure::Added, Quantile::P99, Duration::from_millis(1))
        );
        assert!(budget.allows(999_999) && !budget.allows(1_000_000));
        let budget = Budget::parse("decision_p99_9<=50us").unwrap();
        assert_eq!(
            (budget.measure, budget.quantile),
            (Measure::Decision, Quantile::P99_9)
        );
        assert!(budget.allows(50_000) && !budget.allows(50_001));
    }

    #[test]
    fn what_may_not() {
        for (bad, said) in [
            ("", "no `<`"),
            ("added_p99=1ms", "no `<`"),
            ("added<1ms", "`` is no quantile"),
            ("added_p95<1ms", "`p95` is no quantile"),
            ("latency_p99<1ms", "`latency` is not measured"),
            ("added_p99<1", "no unit"),
            ("added_p99<", "empty duration"),
            ("added_p99<0s", "no time"),
            ("added_p99<-1ms", "not a duration"),
        ] {
            let error = Budget::parse(bad).unwrap_err();
            assert!(error.contains(said), "{bad}: {error}");
        }
    }
}
