//! A bench as one page that needs nothing else: curves and blocks as inline SVG.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

use super::analysis::{Bench, Finding};
use super::document::{Baseline, Change, block_quantile};
use super::judge::{Judged, Standing, us};
use super::stats::LEVEL;
use super::text::{title, told, trial_said};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 280.0;
/// Room for the labels of the axes: left, right, top, bottom.
const MARGIN: [f64; 4] = [64.0, 12.0, 10.0, 36.0];

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:72em;margin:2em auto;padding:0 1em;color:#1b1f24;background:#fff}\
h1{font-size:1.4em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse;margin:.5em 0}\
td,th{border:1px solid #d0d7de;padding:.2em .7em;text-align:right}td:first-child,th:first-child{text-align:left}\
.held{color:#1a7f37}.broken{color:#cf222e;font-weight:bold}.open{color:#9a6700}figure{display:inline-block;margin:.5em 1em .5em 0}\
figcaption{font-size:.9em;color:#57606a}svg text{font:11px system-ui,sans-serif;fill:#57606a}.grid{stroke:#eaeef2}\
.c0{color:#0969da;stroke:#0969da;fill:#0969da}.c1{color:#bc4c00;stroke:#bc4c00;fill:#bc4c00}\
.c2{color:#8250df;stroke:#8250df;fill:#8250df}.c3{color:#1a7f37;stroke:#1a7f37;fill:#1a7f37}\
.curve{fill:none;stroke-width:1.5}.before{stroke-dasharray:5 4;stroke-opacity:.6}.dot{stroke:none;fill-opacity:.7}";

/// The whole page.
pub fn render(bench: &Bench, judged: &[Judged], baseline: Option<&Baseline>) -> String {
    let mut out = String::new();
    let title = format!("faultbox bench {}", bench.spec);
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{0}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{0}</h1>\n",
        escape(&title)
    );
    let _ = writeln!(
        out,
        "<p>{}</p>\n<p>Blocks of both sides in turns; intervals hold the true value with {:.0} %; seed {}; faultbox {}.</p>",
        escape(&bench.machine.line()),
        LEVEL * 100.0,
        bench.seed,
        env!("CARGO_PKG_VERSION"),
    );
    if let Some(trial) = &bench.plan.trial {
        let _ = writeln!(
            out,
            "<p class=\"broken\">{}</p>",
            escape(&trial_said(trial))
        );
    }
    if !judged.is_empty() {
        out.push_str("<h2>Budgets</h2>\n<table>\n<tr><th>subject</th><th>budget</th><th></th><th>why</th></tr>\n");
        for judged in judged {
            let class = match judged.standing {
                Standing::Held => "held",
                Standing::Broken => "broken",
                Standing::Undecided => "open",
            };
            let _ = writeln!(
                out,
                "<tr><td>{}</td><td>{}</td><td class=\"{class}\">{}</td><td>{}</td></tr>",
                escape(&judged.subject),
                escape(&judged.budget),
                judged.standing.name(),
                escape(&judged.why)
            );
        }
        out.push_str("</table>\n");
    }
    if let Some(baseline) = baseline {
        changed(&mut out, &baseline.changes(bench), &baseline.caveats(bench));
    }
    for findings in bench.groups() {
        group(&mut out, findings, baseline);
    }
    if !bench.skipped.is_empty() {
        out.push_str("<h2>Not measured</h2>\n<ul>\n");
        for skipped in &bench.skipped {
            let _ = writeln!(
                out,
                "<li>{}: {}</li>",
                escape(&skipped.name),
                escape(&skipped.reason)
            );
        }
        out.push_str("</ul>\n");
    }
    for note in &bench.notes {
        let _ = writeln!(out, "<p>{}</p>", escape(note));
    }
    out.push_str("</body>\n</html>\n");
    out
}

/// One subject, or the states of a service: a table and two pictures.
fn group(out: &mut String, group: &[Finding], baseline: Option<&Baseline>) {
    let _ = writeln!(out, "<h2>{}</h2>", escape(&title(group)));
    let mut said: Vec<String> = vec![];
    for finding in group {
        if let Some(trapped) = &finding.trapped {
            said.push(format!(
                "<p>trapped where unmatched or armed: {}</p>",
                escape(trapped)
            ));
        }
        if let Some(error) = &finding.error {
            said.push(format!(
                "<p class=\"broken\">not measured to the end: {}</p>",
                escape(error)
            ));
        }
    }
    said.dedup();
    out.push_str(&said.join("\n"));
    let with_blocks: Vec<&Finding> = group.iter().filter(|f| !f.blocks.is_empty()).collect();
    if with_blocks.is_empty() {
        return;
    }
    let names = group[0].subject.sides();
    let (head, other) = match group[0].subject.state {
        None => ("us", names[1]),
        Some(_) => ("state, us", "in it"),
    };
    let _ = writeln!(
        out,
        "<table>\n<tr><th>{head}</th><th>{}</th><th>{other}</th><th>added</th><th>between</th><th>noise</th></tr>",
        names[0]
    );
    for (finding, row) in with_blocks
        .iter()
        .flat_map(|f| f.rows.iter().map(move |row| (f, row)))
    {
        let (added, between) = match &row.added {
            Some(a) => (us(a.value), format!("{} to {}", us(a.low), us(a.high))),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let state = match &finding.subject.state {
            None => String::new(),
            Some(state) => format!("{} ", state.state.name()),
        };
        let _ = writeln!(
            out,
            "<tr><td>{state}{}</td><td>{}</td><td>{}</td><td>{added}</td><td>{between}</td><td>{}</td></tr>",
            row.quantile.name(),
            us(row.base),
            us(row.other),
            row.noise
                .map_or("-".to_owned(), |n| format!("&plusmn;{}", us(n))),
        );
    }
    out.push_str("</table>\n");
    // From outside above; here what it took, what went wrong, and what the proxy or the supervisor measured of itself.
    out.push_str("<ul>\n");
    for line in told(&with_blocks) {
        let _ = writeln!(out, "<li>{}</li>", escape(&line));
    }
    out.push_str("</ul>\n");
    curves(out, &with_blocks, baseline);
    scatter(out, &with_blocks);
    out.push('\n');
}

/// What has changed since the baseline, and what makes that worth less.
fn changed(out: &mut String, changes: &[Change], caveats: &[String]) {
    if changes.is_empty() && caveats.is_empty() {
        return;
    }
    out.push_str("<h2>Against the baseline</h2>\n");
    for caveat in caveats {
        let _ = writeln!(out, "<p class=\"open\">{}</p>", escape(caveat));
    }
    if changes.is_empty() {
        return;
    }
    out.push_str("<table>\n<tr><th>added, us</th><th>before</th><th>now</th><th>change</th><th>between</th><th></th></tr>\n");
    for change in changes {
        let difference = change.difference();
        let (class, word) = match (change.is_real(), difference.value > 0.0) {
            (false, _) => ("", "none seen"),
            (true, true) => ("broken", "slower"),
            (true, false) => ("held", "faster"),
        };
        let _ = writeln!(
            out,
            "<tr><td>{} {}</td><td>{}</td><td>{}</td><td>{}</td><td>{} to {}</td><td class=\"{class}\">{word}</td></tr>",
            escape(&change.subject),
            change.quantile.name(),
            us(change.before.value),
            us(change.now.value),
            us(difference.value),
            us(difference.low),
            us(difference.high),
        );
    }
    out.push_str("</table>\n");
}

/// A picture's frame: where values come to lie.
struct Frame {
    x: (f64, f64),
    /// Decades.
    y: (f64, f64),
}

impl Frame {
    /// Around these latencies, in whole decades of nanoseconds.
    fn new(x: (f64, f64), values: impl Iterator<Item = f64>) -> Frame {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|v| v.is_finite() && *v > 0.0) {
            low = low.min(value.log10());
            high = high.max(value.log10());
        }
        let y = match low <= high {
            true => (low.floor(), high.ceil().max(low.floor() + 1.0)),
            false => (3.0, 4.0),
        };
        Frame {
            x: (x.0, x.1.max(x.0 + 1e-9)),
            y,
        }
    }

    fn x(&self, value: f64) -> f64 {
        let share = (value - self.x.0) / (self.x.1 - self.x.0);
        MARGIN[0] + share * (WIDTH - MARGIN[0] - MARGIN[1])
    }

    fn y(&self, ns: f64) -> f64 {
        let share = (ns.max(1.0).log10() - self.y.0) / (self.y.1 - self.y.0);
        HEIGHT - MARGIN[3] - share * (HEIGHT - MARGIN[2] - MARGIN[3])
    }

    /// Opens the picture, with a line for each decade and for each of `ticks` below.
    fn open(&self, out: &mut String, ticks: &[(f64, String)]) {
        let _ = write!(
            out,
            "<figure><svg width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">"
        );
        let (left, right) = (MARGIN[0], WIDTH - MARGIN[1]);
        for decade in self.y.0 as i32..=self.y.1 as i32 {
            let y = self.y(10f64.powi(decade));
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{left}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 6.0,
                y + 4.0,
                decade_name(decade)
            );
        }
        for (value, name) in ticks {
            let (x, bottom) = (self.x(*value), HEIGHT - MARGIN[3]);
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{}\" x2=\"{x:.1}\" y2=\"{bottom}\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
                MARGIN[2],
                bottom + 16.0
            );
        }
    }
}

/// A decade of nanoseconds as a label.
fn decade_name(decade: i32) -> String {
    match decade {
        ..3 => format!("{} ns", 10u64.pow(decade.max(0) as u32)),
        3..6 => format!("{} us", 10u64.pow(decade as u32 - 3)),
        6..9 => format!("{} ms", 10u64.pow(decade as u32 - 6)),
        _ => format!("{} s", 10u64.pow(decade as u32 - 9)),
    }
}

/// A side of a picture: what it is called, and its colour's class.
struct Series {
    name: String,
    class: usize,
    /// Of the baseline.
    before: bool,
}

/// The sides of a group: what is common to all of its findings, then what each is about.
fn series(findings: &[&Finding]) -> Vec<Series> {
    let base = findings.iter().take(1).map(|f| f.subject.sides()[0]);
    let others = findings.iter().map(|f| f.subject.sides()[1]);
    let names = base.chain(others).enumerate();
    names
        .map(|(class, name)| Series {
            name: name.to_owned(),
            class,
            before: false,
        })
        .collect()
}

fn close(out: &mut String, caption: &str, series: &[Series]) {
    let legend: Vec<String> = series
        .iter()
        .map(|s| {
            let dashes = if s.before { " (dashed)" } else { "" };
            format!(
                "<span class=\"c{}\">{}{dashes}</span>",
                s.class,
                escape(&s.name)
            )
        })
        .collect();
    let _ = writeln!(
        out,
        "</svg><figcaption>{caption}; {}</figcaption></figure>",
        legend.join(", ")
    );
}

/// Latency by the share of calls that took longer: as far to the right as there are calls to say it. The baseline's are dashed.
fn curves(out: &mut String, findings: &[&Finding], baseline: Option<&Baseline>) {
    let mut sides = series(findings);
    let mut latencies: Vec<Histogram<u64>> = findings
        .iter()
        .take(1)
        .map(|f| f.latency(true))
        .chain(findings.iter().map(|f| f.latency(false)))
        .collect();
    if let Some(baseline) = baseline {
        for (at, finding) in findings.iter().enumerate() {
            let names = finding.subject.sides();
            for (place, name) in names.into_iter().enumerate().skip(at.min(1)) {
                let Some(latency) = baseline.latency(&finding.subject, name) else {
                    continue;
                };
                latencies.push(latency);
                sides.push(Series {
                    name: format!("{name} before"),
                    class: if place == 0 { 0 } else { at + 1 },
                    before: true,
                });
            }
        }
    }
    // Each as far as its own calls go.
    let reach = |h: &Histogram<u64>| (h.len().max(2) as f64).log10();
    let longest = latencies.iter().map(reach).fold(0.0, f64::max);
    let points = |h: &Histogram<u64>| -> Vec<(f64, f64)> {
        (0..=100)
            // Nines: 1 is 90 %, 2 is 99 %.
            .map(|i| reach(h) * f64::from(i) / 100.0)
            .map(|nines| {
                let share = 1.0 - 10f64.powf(-nines);
                (nines, h.value_at_quantile(share) as f64)
            })
            .collect()
    };
    let curves: Vec<_> = latencies.iter().map(points).collect();
    let all = curves.iter().flatten().map(|(_, ns)| *ns);
    let frame = Frame::new((0.0, longest), all);
    let names = [
        (0.301, "p50"),
        (1.0, "p90"),
        (2.0, "p99"),
        (3.0, "p99.9"),
        (4.0, "p99.99"),
    ];
    let ticks: Vec<(f64, String)> = names
        .into_iter()
        .filter(|(nines, _)| *nines <= longest)
        .map(|(nines, name)| (nines, name.to_owned()))
        .collect();
    frame.open(out, &ticks);
    for (points, side) in curves.iter().zip(&sides) {
        let path: Vec<String> = points
            .iter()
            .map(|(nines, ns)| format!("{:.1},{:.1}", frame.x(*nines), frame.y(*ns)))
            .collect();
        let before = if side.before { " before" } else { "" };
        let _ = write!(
            out,
            "<polyline class=\"c{} curve{before}\" points=\"{}\"/>",
            side.class,
            path.join(" ")
        );
    }
    close(out, "latency by percentile, all blocks", &sides);
}

/// Each block's p50 and p99 by when it was taken: a drift, or a neighbour that woke up, shows.
fn scatter(out: &mut String, findings: &[&Finding]) {
    let sides = series(findings);
    let end = findings
        .iter()
        .filter_map(|f| f.blocks.last())
        .map(|b| (b.start + b.took).as_secs_f64())
        .fold(1e-3, f64::max);
    let quantiles = [0.5, 0.99];
    // The base's blocks are the same in all findings of a group.
    let blocks = || {
        findings.iter().enumerate().flat_map(|(at, f)| {
            let mine = f.blocks.iter().filter(move |b| at == 0 || !b.base);
            mine.map(move |b| (b, if b.base { 0 } else { at + 1 }))
        })
    };
    let values = || {
        blocks()
            .flat_map(|(b, class)| quantiles.map(|q| (b, class, q, block_quantile(b, q))))
            .filter(|(.., ns)| ns.is_finite())
    };
    let frame = Frame::new((0.0, end), values().map(|(.., ns)| ns));
    let ticks: Vec<(f64, String)> = (0..=4)
        .map(|i| end * f64::from(i) / 4.0)
        .map(|s| (s, format!("{s:.1} s")))
        .collect();
    frame.open(out, &ticks);
    for (block, class, quantile, ns) in values() {
        let (x, y) = (frame.x(block.start.as_secs_f64()), frame.y(ns));
        let side = escape(&sides[class].name);
        let radius = if quantile == 0.5 { 3.5 } else { 2.0 };
        let _ = write!(
            out,
            "<circle class=\"dot c{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"><title>{side} p{:.0}: {} us</title></circle>",
            quantile * 100.0,
            us(ns)
        );
    }
    close(out, "blocks by time: p50 large, p99 small", &sides);
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::analysis::tests::{in_state, subject as api, taken};
    use super::super::document;
    use super::super::document::tests::bench;
    use super::super::drive::Taken;
    use super::super::plan::State;
    use super::*;

    #[test]
    fn a_page_that_needs_nothing_else() {
        let mut bench = bench(300);
        bench.spec = "<script>.star".to_owned();
        let page = render(&bench, &[], None);
        assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
        assert!(page.contains("&lt;script&gt;.star") && !page.contains("<script"));
        assert_eq!(page.matches("<svg").count(), 2);
        assert_eq!(page.matches("<polyline").count(), 2);
        assert_eq!(page.matches("<circle").count(), 2 * 48);
        assert!(page.contains(">p99.9<") && page.contains(">100 us<"));
        for said in [
            "inside api.http, by the proxy's own clock: p50 20.0",
            "faultbox: 50.0 us of CPU a call, direct 20.0",
            "8 MiB",
            "throughput: 10000 answered a second",
            "generator: 20.0 us of CPU",
        ] {
            assert!(page.contains(said), "{said}");
        }
        for outside in ["src=", "href=", "url(", "@import", "NaN", "inf"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn a_trial_failures_and_blocks_that_overran_are_on_the_page() {
        let mut bench = bench(0);
        bench.plan.trial = Some(super::super::plan::Trial::Null);
        let side = &mut bench.subjects[0].sides[0];
        (side.failed, side.overloaded) = (7, 2);
        side.errors = vec![("ECONNREFUSED".to_owned(), 7)];
        let page = render(&bench, &[], None);
        for said in [
            "TRIAL (null)",
            "7 of 24000 calls failed: ECONNREFUSED",
            "the rate was not kept in 2 blocks",
        ] {
            assert!(page.contains(said), "{said}");
        }
    }

    #[test]
    fn what_was_not_measured_has_no_picture() {
        let mut bench = bench(0);
        let taken = Taken {
            error: Some("every call failed: ECONNREFUSED".to_owned()),
            ..Taken::default()
        };
        bench.subjects = vec![Finding::of(api(), taken, 1, 2)];
        let page = render(&bench, &[], None);
        assert!(page.contains("ECONNREFUSED") && !page.contains("<svg"));
    }

    #[test]
    fn a_baseline_is_drawn_into_the_same_picture() {
        let text = document::render(&bench(100), &[], &[]);
        let before = document::Baseline::read(&text).unwrap();
        let mut now = bench(400);
        now.machine.cores = 64;
        let page = render(&now, &[], Some(&before));
        assert_eq!(page.matches("<svg").count(), 2);
        assert_eq!(page.matches("<polyline").count(), 4);
        assert_eq!(page.matches("curve before").count(), 2);
        for said in [
            "direct before (dashed)",
            "mediated before (dashed)",
            "cores: 64, before 2",
            "<td>api.http p50</td>",
            "slower",
        ] {
            assert!(page.contains(said), "{said}");
        }
    }

    #[test]
    fn states_share_their_pictures() {
        let mut bench = bench(0);
        bench.subjects.clear();
        for (state, added) in State::ALL.into_iter().zip([1, 20, 30]) {
            let finding = Finding::of(in_state(state), taken(12, added), 1, 2);
            bench.subjects.push(finding);
        }
        let page = render(&bench, &[], None);
        assert_eq!(page.matches("<svg").count(), 2);
        assert_eq!(page.matches("<polyline").count(), 4);
        // 24 blocks of each of the four sides, two points each.
        assert_eq!(page.matches("<circle").count(), 4 * 24 * 2);
        assert!(page.contains("<td>unmatched p50</td>") && page.contains("class=\"c3\">armed"));
    }
}
