//! Markdown tables of everything: one of what was measured, what came out and what the goal is, and one for each comparison of many with
//! the same.

use std::fmt;

use super::stats::Samples;

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
    grids: Vec<Grid>,
}

/// Many things, each measured in the same respects.
#[derive(Debug)]
struct Grid {
    title: String,
    head: &'static [&'static str],
    lines: Vec<Vec<String>>,
}

#[derive(Debug)]
struct Row {
    what: String,
    figure: String,
    noise: String,
    goal: String,
    verdict: &'static str,
}

/// What a figure is compared with.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// At least so much.
    AtLeast(f64),
    /// At most so much.
    AtMost(f64),
    /// Within these bounds.
    Between(f64, f64),
    /// Nothing: it is there to compare with.
    None,
}

impl Goal {
    fn held(self, value: f64) -> Option<bool> {
        match self {
            Goal::AtLeast(least) => Some(value >= least),
            Goal::AtMost(most) => Some(value <= most),
            Goal::Between(least, most) => Some((least..=most).contains(&value)),
            Goal::None => None,
        }
    }
}

impl Table {
    /// Adds a row; `unit` follows the figure ("µs", "×"), `details` says in absolute numbers what it is made of.
    pub fn row(
        &mut self,
        what: impl Into<String>,
        samples: &Samples,
        unit: &str,
        goal: Goal,
        details: &str,
    ) {
        let value = samples.median();
        let mut figure = format!("{} {unit}", show(value)).trim_end().to_owned();
        if !details.is_empty() {
            figure = format!("{figure} ({details})");
        }
        let goal_text = match goal {
            Goal::AtLeast(least) => format!("≥ {} {unit}", show(least)),
            Goal::AtMost(most) => format!("≤ {} {unit}", show(most)),
            Goal::Between(least, most) => format!("{} to {} {unit}", show(least), show(most)),
            Goal::None => String::new(),
        };
        self.rows.push(Row {
            what: what.into(),
            figure,
            noise: match samples.noise() {
                noise if noise.is_finite() => format!("±{:.1} %", noise * 100.0),
                _ => String::new(),
            },
            goal: goal_text.trim_end().to_owned(),
            verdict: match goal.held(value) {
                Some(true) => "held",
                Some(false) => "**missed**",
                None => "",
            },
        });
    }
}

impl Table {
    /// Adds a comparison: the first cell of each line says what it is about, the others follow `head`.
    pub fn grid(
        &mut self,
        title: impl Into<String>,
        head: &'static [&'static str],
        lines: Vec<Vec<String>>,
    ) {
        self.grids.push(Grid {
            title: title.into(),
            head,
            lines,
        });
    }
}

/// A figure with its noise, for the cell of a grid.
pub fn with_noise(samples: &Samples) -> String {
    let noise = samples.noise();
    let shown = show(samples.median());
    match noise.is_finite() {
        true => format!("{shown} ±{:.0} %", noise * 100.0),
        false => shown,
    }
}

/// Three significant digits are more than such a measurement has.
pub fn show(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| what | figure | noise | goal | |")?;
        writeln!(f, "|---|---|---|---|---|")?;
        for row in &self.rows {
            writeln!(
                f,
                "| {} | {} | {} | {} | {} |",
                row.what, row.figure, row.noise, row.goal, row.verdict
            )?;
        }
        for grid in &self.grids {
            writeln!(f, "\n| {} | {} |", grid.title, grid.head.join(" | "))?;
            writeln!(f, "|---{}|", "|---".repeat(grid.head.len()))?;
            for line in &grid.lines {
                writeln!(f, "| {} |", line.join(" | "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_follows_the_rows() {
        let mut table = Table::default();
        let samples: Samples = [10.0, 10.0, 12.0].into_iter().collect();
        table.row("p50", &samples, "µs", Goal::None, "");
        table.grid(
            "http",
            &["p50", "p99"],
            vec![vec!["direct".into(), with_noise(&samples), show(1.0)]],
        );
        let text = table.to_string();
        let expected = "\n\n| http | p50 | p99 |\n|---|---|---|\n| direct | 10.0 ±5 % | 1.00 |\n";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn a_row_is_judged_by_its_median() {
        let mut table = Table::default();
        let samples: Samples = [1.2, 1.3, 9.0].into_iter().collect();
        table.row("p50", &samples, "×", Goal::AtMost(1.3), "");
        table.row("p99", &samples, "µs", Goal::AtLeast(1.4), "1 → 2");
        table.row("relay", &samples, "µs", Goal::None, "");
        let text = table.to_string();
        assert!(text.contains("| p50 | 1.30 × | ±"), "{text}");
        assert!(text.contains("| ≤ 1.30 × | held |"), "{text}");
        assert!(text.contains("1.30 µs (1 → 2)"), "{text}");
        assert!(text.contains("**missed**"), "{text}");
        assert!(text.lines().last().unwrap().ends_with("|  |  |"), "{text}");
    }
}
