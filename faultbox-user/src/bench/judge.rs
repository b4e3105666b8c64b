//! Whether a bench keeps its budgets, as far as the machine lets that be told.

use super::analysis::{Bench, Finding};
use super::stats::{Interval, LEVEL};
use crate::report::Budget;
use crate::report::budget::{Measure, Quantile};

/// How a budget stands for one subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The whole interval is within it, and so is the noise.
    Held,
    /// The whole interval is beyond it, by more than the noise.
    Broken,
    /// Neither can be said.
    Undecided,
}

impl Standing {
    /// Its name in every report.
    pub fn name(self) -> &'static str {
        match self {
            Standing::Held => "held",
            Standing::Broken => "broken",
            Standing::Undecided => "not decidable",
        }
    }
}

/// A budget with what came of it for one subject.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// As written.
    pub budget: String,
    /// "db.pg", or a workload's name.
    pub subject: String,
    /// How it stands.
    pub standing: Standing,
    /// Why.
    pub why: String,
}

/// Judges every budget on every subject.
pub fn judge(bench: &Bench, budgets: &[Budget]) -> Vec<Judged> {
    let subjects = &bench.subjects;
    let one = |budget: &Budget, finding: &Finding| {
        let (standing, why) = standing(budget, finding);
        Judged {
            budget: budget.text.clone(),
            subject: finding.subject.label(),
            standing,
            why,
        }
    };
    let mut all = vec![];
    for budget in budgets {
        let concerned = subjects.iter().filter(|s| match budget.measure {
            Measure::Added => true,
            Measure::Decision => s.trapped.is_some(),
        });
        let before = all.len();
        all.extend(concerned.map(|subject| one(budget, subject)));
        if all.len() == before {
            // A budget that concerns nothing must not look as if it held.
            all.push(Judged {
                budget: budget.text.clone(),
                subject: "-".to_owned(),
                standing: Standing::Undecided,
                why: match budget.measure {
                    Measure::Added => "nothing was measured".to_owned(),
                    Measure::Decision => {
                        "no system call was trapped; --syscalls would trap some".to_owned()
                    }
                },
            });
        }
    }
    all
}

/// By the supervisor's own clock, which no other process disturbs as it does the calls.
fn decision(budget: &Budget, finding: &Finding) -> (Standing, String) {
    let at = Quantile::ALL.iter().position(|q| *q == budget.quantile);
    let measured = at.and_then(|at| {
        let inside = finding.inside.first()?;
        Some((inside, *inside.added.get(at)?))
    });
    let Some((inside, ns)) = measured else {
        return (
            Standing::Undecided,
            "none of its calls was trapped".to_owned(),
        );
    };
    // Fewer calls than that have no such quantile: it would be the longest of them.
    let beyond = inside.requests as f64 * (1.0 - budget.quantile.share());
    if budget.quantile != Quantile::Max && beyond < 1.0 {
        return (
            Standing::Undecided,
            format!(
                "only {} calls were trapped, too few for {}; give it a longer --duration",
                inside.requests,
                budget.quantile.name()
            ),
        );
    }
    let why = format!(
        "{} of {} trapped calls is {} us",
        budget.quantile.name(),
        inside.requests,
        us(ns as f64)
    );
    match budget.allows(ns) {
        true => (Standing::Held, why),
        false => (Standing::Broken, why),
    }
}

fn standing(budget: &Budget, finding: &Finding) -> (Standing, String) {
    let undecided = |why: String| (Standing::Undecided, why);
    if let Some(error) = &finding.error {
        return undecided(error.clone());
    }
    for (side, name) in finding.sides.iter().zip(finding.subject.sides()) {
        if side.fails() {
            let kind = side.errors.first().map_or("", |(kind, _)| kind);
            return undecided(format!(
                "{} of {} {name} calls failed ({kind}): their latencies say nothing",
                side.failed, side.count
            ));
        }
    }
    if budget.measure == Measure::Decision {
        return decision(budget, finding);
    }
    if budget.quantile == Quantile::Max {
        return undecided(
            "a maximum is a single call, of which nothing can be concluded".to_owned(),
        );
    }
    let row = finding.rows.iter().find(|r| r.quantile == budget.quantile);
    let Some(added) = row.and_then(|r| r.added) else {
        return undecided(format!(
            "too few calls or blocks for {}; give it a longer --duration",
            budget.quantile.name()
        ));
    };
    // What the base differs from itself by could be the whole of what was found.
    let Some(noise) = row.and_then(|r| r.noise) else {
        return undecided(format!(
            "too few calls or blocks to know the noise of {}; give it a longer --duration",
            budget.quantile.name()
        ));
    };
    let said = format!("{}, noise +-{} us", shown(&added), us(noise));
    let limit = budget.limit.as_nanos() as f64;
    if added.high < 0.0 {
        undecided(format!(
            "{said}: nothing of what is measured makes calls faster, so something else on this machine did"
        ))
    } else if added.high < limit && noise < limit {
        (Standing::Held, said)
    } else if added.low > limit && added.value - noise > limit {
        (Standing::Broken, said)
    } else {
        undecided(format!(
            "{said}: on which side of the limit it lies cannot be told on this machine"
        ))
    }
}

/// "added 61.0 us (55.0 to 66.0, 99 %)".
fn shown(added: &Interval) -> String {
    format!(
        "added {} us ({} to {}, {:.0} %)",
        us(added.value),
        us(added.low),
        us(added.high),
        LEVEL * 100.0
    )
}

/// Nanoseconds as microseconds with three digits that mean something; negative ones too.
pub fn us(ns: f64) -> String {
    if ns.is_nan() {
        return "-".to_owned();
    }
    let us = ns / 1e3;
    match us.abs() {
        a if a < 10.0 => format!("{us:.2}"),
        a if a < 100.0 => format!("{us:.1}"),
        _ => format!("{us:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::analysis::tests::{in_state, subject, taken};
    use super::super::plan::State;
    use super::*;

    fn stands(budget: &str, finding: &Finding) -> Standing {
        standing(&Budget::parse(budget).unwrap(), finding).0
    }

    #[test]
    fn a_limit_within_the_noise_is_not_decided() {
        let finding = Finding::of(subject(), taken(12, 300), 1, 2);
        assert_eq!(stands("added_p50<1ms", &finding), Standing::Held);
        assert_eq!(stands("added_p99<100us", &finding), Standing::Broken);
        assert_eq!(stands("added_p50<300us", &finding), Standing::Undecided);
        assert_eq!(stands("added_max<1ms", &finding), Standing::Undecided);
        let nothing = Finding::of(subject(), taken(12, 0), 1, 2);
        assert_eq!(stands("added_p99<1ms", &nothing), Standing::Held);
    }

    #[test]
    fn a_proxy_that_makes_calls_faster_is_noise() {
        let mut swapped = taken(12, 300);
        for block in &mut swapped.blocks {
            block.base = !block.base;
        }
        let finding = Finding::of(subject(), swapped, 1, 2);
        let (standing, why) = standing(&Budget::parse("added_p50<1ms").unwrap(), &finding);
        assert_eq!(standing, Standing::Undecided);
        assert!(why.contains("makes calls faster"), "{why}");
    }

    #[test]
    fn noise_beyond_the_limit_decides_nothing() {
        let mut finding = Finding::of(subject(), taken(12, 300), 1, 2);
        finding.rows[0].noise = Some(2e6);
        assert_eq!(stands("added_p50<1ms", &finding), Standing::Undecided);
        assert_eq!(stands("added_p50<100us", &finding), Standing::Undecided);
    }

    #[test]
    fn decisions_are_judged_where_calls_are_trapped() {
        let mut bench = super::super::document::tests::bench(0);
        let budgets = [Budget::parse("decision_p50<50us").unwrap()];
        let judged = judge(&bench, &budgets);
        assert_eq!(judged[0].standing, Standing::Undecided);
        assert!(judged[0].why.contains("--syscalls"), "{judged:?}");
        bench.subjects[0].subject = in_state(State::Armed);
        bench.subjects[0].trapped = Some("write (asked for)".to_owned());
        // 20 us by its own clock.
        assert_eq!(judge(&bench, &budgets)[0].standing, Standing::Held);
        let budgets = [Budget::parse("decision_p99_9<50us").unwrap()];
        assert_eq!(judge(&bench, &budgets)[0].standing, Standing::Broken);
        // What is added is judged of every state.
        let budgets = [Budget::parse("added_p50<1ms").unwrap()];
        let judged = judge(&bench, &budgets);
        assert_eq!(judged[0].subject, "api.http armed");
        assert_eq!(judged[0].standing, Standing::Held);
        bench.subjects.clear();
        assert!(
            judge(&bench, &budgets)[0]
                .why
                .contains("nothing was measured")
        );
    }

    #[test]
    fn too_little_is_not_judged() {
        let few = Finding::of(subject(), taken(2, 300), 1, 2);
        let (standing, why) = standing(&Budget::parse("added_p50<1ms").unwrap(), &few);
        assert_eq!(standing, Standing::Undecided);
        assert!(why.contains("longer --duration"), "{why}");
    }

    #[test]
    fn failures_are_no_fast_answers() {
        let mut taken = taken(12, 0);
        for block in &mut taken.blocks {
            block.failed = 500;
            block.errors = vec![("ECONNREFUSED".to_owned(), 500)];
        }
        let finding = Finding::of(subject(), taken, 1, 2);
        let (standing, why) = standing(&Budget::parse("added_p50<1ms").unwrap(), &finding);
        assert_eq!(standing, Standing::Undecided);
        assert!(
            why.contains("12000 of 24000 direct calls failed (ECONNREFUSED)"),
            "{why}"
        );
    }

    #[test]
    fn figures() {
        assert_eq!(us(-1234.0), "-1.23");
        assert_eq!(us(61_000.0), "61.0");
        assert_eq!(us(300_000.0), "300");
        assert_eq!(us(f64::NAN), "-");
    }
}
