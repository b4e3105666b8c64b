//! A bench for a person.

use comfy_table::{CellAlignment, Table, presets};

use super::analysis::{Bench, Finding, Side};
use super::document::Change;
use super::judge::{Judged, Standing, us};
use super::plan::Trial;
use super::stats::{Interval, LEVEL};
use crate::plan::Outcome;
use crate::report::budget::Quantile;
use crate::report::{Style, text};

/// The whole report.
pub fn render(
    bench: &Bench,
    judged: &[Judged],
    changes: &[Change],
    caveats: &[String],
    style: &Style,
) -> String {
    let mut page = Page {
        style,
        out: String::new(),
    };
    page.line(&bench.machine.line());
    page.prose(
        "",
        &format!(
            "blocks of both sides in turns; intervals hold the true value with {:.0} %",
            LEVEL * 100.0
        ),
    );
    if let Some(trial) = &bench.plan.trial {
        page.prose("", &trial_said(trial));
    }
    for group in bench.groups() {
        page.group(group);
    }
    if !bench.skipped.is_empty() {
        page.heading("not measured");
        for skipped in &bench.skipped {
            page.prose("  ", &format!("{}: {}", skipped.name, skipped.reason));
        }
    }
    page.changes(changes, caveats);
    if !judged.is_empty() {
        page.heading("budgets");
        for judged in judged {
            let name = judged.standing.name();
            let word = match judged.standing {
                Standing::Held => style.outcome(Outcome::Passed, name),
                Standing::Broken => style.red(&name.to_uppercase()),
                Standing::Undecided => style.outcome(Outcome::Inconclusive, name),
            };
            page.line(&format!("{} {}: {word}", judged.subject, judged.budget));
            page.prose("  ", &judged.why);
        }
    }
    for note in &bench.notes {
        page.gap();
        page.prose("note: ", note);
    }
    page.gap();
    page.line(&format!(
        "{} in {}, seed {}",
        text::count(bench.subjects.len() as u64, "subject"),
        text::millis(bench.duration_ms),
        bench.seed
    ));
    page.out
}

struct Page<'a> {
    style: &'a Style,
    out: String,
}

/// "55.0 to 66.0".
fn range(interval: &Interval) -> String {
    format!("{} to {}", us(interval.low), us(interval.high))
}

impl Page<'_> {
    fn line(&mut self, line: &str) {
        self.out.push_str(line.trim_end());
        self.out.push('\n');
    }

    fn gap(&mut self) {
        if !self.out.ends_with("\n\n") {
            self.out.push('\n');
        }
    }

    fn heading(&mut self, words: &str) {
        self.gap();
        let words = self.style.bold(&text::clean(words));
        self.line(&words);
    }

    fn prose(&mut self, indent: &str, words: &str) {
        let room = self.style.width.saturating_sub(indent.len()).max(20);
        for (i, line) in text::wrap(&text::clean(words), room).iter().enumerate() {
            match i {
                0 => self.line(&format!("{indent}{line}")),
                _ => self.line(&format!("{:1$}{line}", "", indent.len())),
            }
        }
    }

    fn table(&mut self, header: &[&str], rows: Vec<Vec<String>>) {
        let mut table = Table::new();
        table.load_preset(match self.style.unicode {
            true => presets::UTF8_FULL_CONDENSED,
            false => presets::ASCII_FULL_CONDENSED,
        });
        table.set_width(u16::try_from(self.style.width).unwrap_or(u16::MAX));
        table.set_header(header.to_vec());
        table.add_rows(rows);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let table = table.to_string();
        self.line(&table);
    }

    /// One subject, or the states of a service in one table.
    fn group(&mut self, group: &[Finding]) {
        self.heading(&title(group));
        let with_blocks = || group.iter().filter(|f| !f.blocks.is_empty());
        if let Some(first) = with_blocks().find_map(|f| f.blocks.first()) {
            let blocks = with_blocks().map(|f| f.blocks.len() as u64);
            let blocks = blocks.max().unwrap_or(0) / 2 * (1 + with_blocks().count() as u64);
            let span = text::millis(first.took.as_secs_f64() * 1e3);
            self.line(&format!("  {} of {span}", text::count(blocks, "block")));
        }
        let mut trapped: Vec<&str> = group.iter().filter_map(|f| f.trapped.as_deref()).collect();
        trapped.dedup();
        for trapped in trapped {
            self.prose(
                "  ",
                &format!("trapped where unmatched or armed: {trapped}"),
            );
        }
        let mut errors: Vec<&str> = group.iter().filter_map(|f| f.error.as_deref()).collect();
        errors.dedup();
        for error in errors {
            self.prose("  ", &format!("not measured to the end: {error}"));
        }
        if with_blocks().next().is_none() {
            return;
        }
        let names = group[0].subject.sides();
        let (header, other) = match group[0].subject.state {
            None => ("us", names[1]),
            Some(_) => ("state, us", "in it"),
        };
        let rows = with_blocks().flat_map(|f| f.rows.iter().map(move |row| (f, row)));
        let rows = rows.map(|(finding, row)| {
            let (added, between) = match &row.added {
                Some(added) => (us(added.value), range(added)),
                // A maximum is one call.
                None => match row.quantile {
                    Quantile::Max => (us(row.other - row.base), "-".to_owned()),
                    _ => ("?".to_owned(), "too few calls".to_owned()),
                },
            };
            let quantile = row.quantile.name();
            vec![
                match &finding.subject.state {
                    None => quantile.to_owned(),
                    Some(state) => format!("{} {quantile}", state.state.name()),
                },
                us(row.base),
                us(row.other),
                added,
                between,
                row.noise.map_or("-".to_owned(), |n| format!("+-{}", us(n))),
            ]
        });
        self.table(
            &[header, names[0], other, "added", "between", "noise"],
            rows.collect(),
        );
        for line in told(&with_blocks().collect::<Vec<_>>()) {
            self.prose("  ", &line);
        }
    }

    fn changes(&mut self, changes: &[Change], caveats: &[String]) {
        if changes.is_empty() && caveats.is_empty() {
            return;
        }
        self.heading("against the baseline");
        if !changes.is_empty() {
            let rows = changes.iter().map(|change| {
                let difference = change.difference();
                vec![
                    format!(
                        "{} {}",
                        text::clean(&change.subject),
                        change.quantile.name()
                    ),
                    us(change.before.value),
                    us(change.now.value),
                    us(difference.value),
                    range(&difference),
                    match (change.is_real(), difference.value > 0.0) {
                        (false, _) => "none seen".to_owned(),
                        (true, true) => "SLOWER".to_owned(),
                        (true, false) => "faster".to_owned(),
                    },
                ]
            });
            self.table(
                &["added, us", "before", "now", "change", "between", ""],
                rows.collect(),
            );
        }
        for caveat in caveats {
            self.prose("  ", caveat);
        }
    }
}

/// That a bench is of an effect that was put in.
pub(super) fn trial_said(trial: &Trial) -> String {
    format!(
        "TRIAL ({trial}): the bench is tried out with an effect of a known size; its figures are nobody's cost and no baseline"
    )
}

/// What is told of the subjects of a group beside their quantiles, a line each.
pub(super) fn told(findings: &[&Finding]) -> Vec<String> {
    let mut lines = vec![];
    for finding in findings {
        below(finding, &mut lines);
    }
    // The native side of all states is the same.
    for (at, finding) in findings.iter().enumerate() {
        let sides = finding.sides.iter().zip(finding.subject.sides());
        for (side, name) in sides.skip(at.min(1)) {
            of_side(side, name, &mut lines);
        }
    }
    lines
}

fn below(finding: &Finding, lines: &mut Vec<String>) {
    let names = finding.subject.sides();
    let state = match &finding.subject.state {
        None => String::new(),
        Some(state) => format!("{}, ", state.state.name()),
    };
    let [base, other] = &finding.sides;
    match (&finding.throughput, finding.subject.shape.rate()) {
        (Some(ratio), _) => lines.push(format!(
            "{state}throughput: {:.0} answered a second, {} {:.0}: {}",
            other.rate,
            names[0],
            base.rate,
            times(ratio)
        )),
        (None, Some(rate)) => lines.push(format!(
            "{state}answered a second: {:.1}, {} {:.1}, of {rate} asked for",
            other.rate, names[0], base.rate
        )),
        (None, None) => {}
    }
    for spent in &finding.cpu {
        let ratio = match (&finding.own_cpu, spent.name.as_str()) {
            (Some(ratio), "faultbox") => format!(" (with the generator): {}", times(ratio)),
            _ => String::new(),
        };
        lines.push(format!(
            "{state}{}: {:.1} us of CPU a call, {} {:.1}{ratio}; {} MiB",
            spent.name,
            spent.other_us,
            names[0],
            spent.base_us,
            spent.memory >> 20
        ));
    }
    if let Some(generator) = &finding.generator {
        let idling = match &generator.idling {
            Some(idling) => format!(
                "; with calls that do nothing {:.0} a second, {:.1} us each",
                idling.rate, idling.cpu_us
            ),
            None => String::new(),
        };
        lines.push(format!(
            "{state}generator: {:.1} us of CPU a {} call, at most {:.0} % of its p50; not more than {:.0} calls a second on all cores{idling}",
            generator.cpu_us,
            names[0],
            generator.share() * 100.0,
            generator.most
        ));
    }
    let (clock, one) = match finding.subject.state {
        None => ("proxy", "request"),
        Some(_) => ("supervisor", "trapped call"),
    };
    for inside in &finding.inside {
        let quantiles: Vec<String> = Quantile::ALL
            .iter()
            .zip(&inside.added)
            .map(|(q, ns)| format!("{} {}", q.name(), text::micros(*ns)))
            .collect();
        lines.push(format!(
            "{state}inside {}, by the {clock}'s own clock: {} us, {}",
            inside.name,
            quantiles.join(", "),
            text::count(inside.requests, one)
        ));
    }
}

fn of_side(side: &Side, name: &str, lines: &mut Vec<String>) {
    if side.failed > 0 {
        let kinds: Vec<String> = side
            .errors
            .iter()
            .take(3)
            .map(|(kind, n)| format!("{kind} ({n})"))
            .collect();
        lines.push(format!(
            "{name}: {} of {} failed: {}",
            side.failed,
            text::count(side.count, "call"),
            kinds.join(", ")
        ));
    }
    if side.overloaded > 0 {
        let longer = match side.overran {
            0 => String::new(),
            n => format!(", of which {n} took longer than planned because calls stalled"),
        };
        lines.push(format!(
            "{name}: the rate was not kept in {}{longer}; more callers (--connections) or a lower --rate would tell more",
            text::count(side.overloaded, "block")
        ));
    }
}

/// What a subject is, or the states of a service are together.
pub(super) fn title(group: &[Finding]) -> String {
    let subject = &group[0].subject;
    let protocol = match subject.protocol.as_str() {
        "" => String::new(),
        protocol => format!(" ({protocol})"),
    };
    let (name, shape) = (&subject.name, subject.shape);
    let Some(state) = &subject.state else {
        return format!("{name}{protocol}: {}, {shape}", subject.what);
    };
    let names = group.iter().filter_map(|f| f.subject.state.as_ref());
    let names: Vec<&str> = names.map(|s| s.state.name()).collect();
    format!(
        "{name}{protocol}: {} around the proxy, {shape}; {} native, {}",
        state.request,
        state.service,
        names.join(", ")
    )
}

/// "x 0.69 (0.66 to 0.71)".
fn times(ratio: &Interval) -> String {
    format!(
        "x {:.2} ({:.2} to {:.2})",
        ratio.value, ratio.low, ratio.high
    )
}

#[cfg(test)]
mod tests {
    use super::super::analysis::tests::{in_state, taken};
    use super::super::document::Baseline;
    use super::super::document::tests::bench;
    use super::super::plan::State;
    use super::super::{document, judge};
    use super::*;
    use crate::report::Budget;

    #[test]
    fn everything_is_told() {
        let before = Baseline::read(&document::render(&bench(100), &[], &[])).unwrap();
        let now = bench(400);
        let budgets = ["added_p99<1ms", "added_p50<100us", "added_max<1ms"];
        let budgets: Vec<Budget> = budgets.iter().map(|b| Budget::parse(b).unwrap()).collect();
        let judged = judge::judge(&now, &budgets);
        let text = render(
            &now,
            &judged,
            &before.changes(&now),
            &before.caveats(&now),
            &Style::PLAIN,
        );
        for said in [
            "api.http (http): GET /, one after the other",
            "| p50   |",
            "throughput: 10000 answered a second, direct 10000: x 1.00 (1.00 to 1.00)",
            "faultbox: 50.0 us of CPU a call, direct 20.0 (with the generator): x 2.50",
            "inside api.http, by the proxy's own clock: p50 20.0",
            "not measured\n  api.raw: tcp has no request",
            "SLOWER",
            "api.http added_p99<1ms: held",
            "api.http added_p50<100us: BROKEN",
            "api.http added_max<1ms: not decidable",
            "generator: 20.0 us of CPU a direct call, at most 13 %",
            "1 subject in 4.80 s, seed 7",
        ] {
            assert!(text.contains(said), "{said:?} is not in\n{text}");
        }
        assert!(text.is_ascii());
        assert!(
            text.lines()
                .all(|l| l.len() <= 80 || l.starts_with("Linux")),
            "{text}"
        );
    }

    #[test]
    fn a_trial_and_what_went_wrong_are_told() {
        let mut bench = bench(0);
        bench.plan.trial = Some(Trial::Null);
        let side = &mut bench.subjects[0].sides[1];
        (side.failed, side.overloaded, side.overran) = (12, 3, 2);
        side.errors = vec![("ECONNRESET".to_owned(), 12)];
        let text = render(&bench, &[], &[], &[], &Style::PLAIN);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for said in [
            "TRIAL (null): the bench is tried out",
            "mediated: 12 of 24000 calls failed: ECONNRESET (12)",
            "mediated: the rate was not kept in 3 blocks, of which 2 took longer than planned",
        ] {
            assert!(text.contains(said), "{said:?} is not in\n{text}");
        }
    }

    #[test]
    fn states_are_told_in_one_table() {
        let mut bench = bench(0);
        bench.subjects.clear();
        for (state, added) in State::ALL.into_iter().zip([1, 20, 300]) {
            let mut finding = Finding::of(in_state(state), taken(12, added), 1, 2);
            if state != State::Traced {
                finding.trapped = Some("write (asked for)".to_owned());
            }
            bench.subjects.push(finding);
        }
        let text = render(&bench, &[], &[], &[], &Style::PLAIN);
        for said in [
            "api.http (http): GET / around the proxy, one after the other; api native, traced, unmatched, armed",
            "  96 blocks of 100 ms",
            "  trapped where unmatched or armed: write (asked for)",
            "| traced p50      |",
            "| armed p99_9     |",
            "unmatched, inside api.http, by the supervisor's own clock",
            "armed, api: 30.0 us of CPU a call, native 30.0; 8 MiB",
        ] {
            assert!(text.contains(said), "{said:?} is not in\n{text}");
        }
        assert_eq!(text.matches("state, us").count(), 1, "{text}");
    }
}
