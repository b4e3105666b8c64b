//! The report for a person: the matrix, an explanation of everything that did not pass, counts, and what the mediation cost.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::budget::{self, Standing};
use super::matrix::{Grid, grids};
use super::overhead::{self, Cost};
use super::{RunReport, Seen, Style, table, text};
use crate::plan::{FaultReport, Location, LogTail, Outcome, Reason, TestKind, TestReport};

/// Log lines shown per failing test, over all its services: with the rest of an explanation they fit on one screen.
const LOG_LINES: usize = 10;
/// Services whose logs are shown per failing test; those that ended by themselves come first.
const LOGS: usize = 4;
/// Printed lines shown per failing test.
const PRINT_LINES: usize = 5;
/// Lines of an expected or actual value that did not fit beside each other.
const VALUE_LINES: usize = 3;
/// Faults shown per failing test.
const FAULTS: usize = 6;
/// Columns of a rule's text: a whole body may stand in it.
const ACTION: usize = 300;
/// Tests named per fault that never fired, and per note.
const NAMES: usize = 3;
/// Faults that never fired shown without `-v`: a large matrix has one for most of its cells.
const SILENT: usize = 10;
/// Columns of a line where no terminal limits it: enough for any sentence, and a value of a megabyte stays out of a build's log.
const LINE: usize = 2000;

/// The whole report. `verbose` adds the faults of tests that passed, and how each fault was enforced.
pub fn render(report: &RunReport, style: &Style, verbose: u8) -> String {
    let mut page = Page {
        report,
        style,
        verbose,
        out: String::new(),
    };
    if style.seen != Seen::Nothing {
        page.out.push('\n');
    }
    page.tests();
    for grid in grids(report) {
        page.grid(&grid);
    }
    let wrong: Vec<_> = report
        .tests
        .iter()
        .filter(|t| t.outcome != Outcome::Passed)
        .collect();
    for test in &wrong {
        page.explain(test);
    }
    page.silent_faults();
    page.notes();
    page.overhead();
    page.budgets();
    page.summary();
    page.out
}

/// How a test is called in one line: its name, and for a cell what it crosses.
pub fn title(report: &RunReport, test: &TestReport) -> String {
    let mut title = text::clean(&test.name);
    match report.decl(&test.name).map(|d| &d.kind) {
        Some(TestKind::Cell {
            scenario, fault, ..
        }) => {
            let (scenario, fault) = (text::clean(scenario), text::clean(fault));
            let _ = write!(title, " ({scenario} x {fault})");
        }
        Some(TestKind::Baseline { scenario, .. }) => {
            let _ = write!(title, " ({} without faults)", text::clean(scenario));
        }
        _ => {}
    }
    if report.tests.iter().filter(|t| t.name == test.name).count() > 1 {
        let _ = write!(title, " with seed {}", test.seed);
    }
    title
}

struct Page<'a> {
    report: &'a RunReport,
    style: &'a Style,
    verbose: u8,
    out: String,
}

impl Page<'_> {
    fn line(&mut self, line: &str) {
        self.out.push_str(line.trim_end());
        self.out.push('\n');
    }

    /// A blank line, unless the page is empty or has one.
    fn gap(&mut self) {
        let blank = matches!(self.out.as_str(), "" | "\n") || self.out.ends_with("\n\n");
        if !blank {
            self.out.push('\n');
        }
    }

    /// A line of foreign text behind an indentation, cut to the terminal.
    fn foreign(&mut self, indent: &str, line: &str) {
        let room = if self.style.cut {
            self.style.width.saturating_sub(text::columns(indent))
        } else {
            LINE
        };
        let line = text::cut(&text::clean(line), room.max(10));
        self.line(&format!("{indent}{line}"));
    }

    /// Our own prose, wrapped, its first line behind `head` and the rest indented as deep.
    fn prose(&mut self, head: &str, words: &str) {
        let indent = text::columns(head);
        let room = self.style.width.saturating_sub(indent).max(20);
        for (i, line) in text::wrap(&text::clean(words), room).iter().enumerate() {
            if i == 0 {
                self.line(&format!("{head}{line}"));
            } else {
                self.line(&format!("{:indent$}{line}", ""));
            }
        }
    }

    fn heading(&mut self, words: &str) {
        self.gap();
        let words = self.style.bold(words);
        self.line(&words);
    }

    /// One line per test; a matrix is shown as a table instead, unless its faults are asked for. What the reader has just seen go
    /// by in the same place is not told again.
    fn tests(&mut self) {
        let in_matrix = |test: &TestReport| {
            matches!(
                self.report.decl(&test.name).map(|d| &d.kind),
                Some(TestKind::Cell { .. } | TestKind::Baseline { .. })
            )
        };
        let shown: Vec<&TestReport> = self
            .report
            .tests
            .iter()
            .filter(|t| self.verbose > 0 || !in_matrix(t) && !self.style.seen.shows(t.outcome))
            .collect();
        for test in shown {
            let word = format!("{:>12}", test.outcome.name());
            let word = self.style.outcome(test.outcome, &word);
            let title = title(self.report, test);
            self.line(&format!(
                "{word}  {:>9}  {title}",
                text::millis(test.duration_ms)
            ));
            if self.verbose > 0 && test.outcome == Outcome::Passed {
                self.faults(test, "              ");
                for note in &test.notes {
                    self.prose("              note: ", note);
                }
                for line in &test.prints {
                    self.foreign("              | ", line);
                }
            }
        }
    }

    fn grid(&mut self, grid: &Grid) {
        let (rows, columns) = (grid.rows.len(), grid.faults.len());
        let which = if self.report.matrices.len() > 1 {
            format!("matrix {}", grid.matrix + 1)
        } else {
            "matrix".to_owned()
        };
        self.heading(&format!(
            "{which}: {} x {}",
            text::count(rows as u64, "scenario"),
            text::count(columns as u64, "fault"),
        ));
        let table = super::crossing::Crossing::of(grid).fit(self.style.width);
        for piece in table {
            let mut table = table::new(self.style);
            table.set_header(piece.header);
            table.add_rows(piece.rows);
            self.line(&table.to_string());
        }
    }

    /// Everything about one test that did not pass, on at most a screen; its first three lines already say what went wrong.
    fn explain(&mut self, test: &TestReport) {
        self.gap();
        let head = format!("{} {}", test.outcome.name(), title(self.report, test));
        let head = self.style.outcome(test.outcome, &head);
        self.line(&format!("{head}, {}", text::millis(test.duration_ms)));
        match &test.reason {
            Some(reason) => self.reason(reason),
            None => self.line("  no reason was given"),
        }
        self.faults(test, "  ");
        self.logs(&test.logs);
        self.prints(&test.prints);
        for note in &test.notes {
            self.prose("  note: ", note);
        }
        let command = text::rerun(&self.report.spec, &test.name, test.seed);
        // Never wrapped: it is there to be copied.
        let command = self.style.bold(&command);
        self.line(&format!("  rerun: {command}"));
    }

    fn reason(&mut self, reason: &Reason) {
        let mut lines = reason.message.lines();
        let first = text::clean(lines.next().unwrap_or_default());
        if self.style.cut {
            // Cutting would lose the cause; a terminal's own wrapping would lose the indentation.
            let room = self.style.width.saturating_sub(2);
            let wrapped = text::wrap(&first, room);
            for line in wrapped.iter().take(VALUE_LINES) {
                self.line(&format!("  {}", text::cut(line, room)));
            }
        } else {
            self.line(&format!("  {}", text::cut(&first, LINE)));
        }
        let compared = match (&reason.expected, &reason.actual) {
            (Some(expected), Some(actual)) => Some(format!("expected {expected}, got {actual}")),
            (Some(expected), None) => Some(format!("expected {expected}")),
            (None, Some(actual)) => Some(format!("got {actual}")),
            (None, None) => None,
        };
        if let Some(compared) = compared {
            let one_line = !compared.contains('\n');
            if one_line && text::columns(&compared) + 2 <= self.style.width {
                self.foreign("  ", &compared);
            } else {
                for (what, value) in [("expected", &reason.expected), ("got", &reason.actual)] {
                    if let Some(value) = value {
                        self.value(what, value);
                    }
                }
            }
        }
        for line in lines.take(VALUE_LINES) {
            self.foreign("  ", line);
        }
        if let Some(location) = &reason.location {
            self.location(location);
        }
        if let Some(help) = &reason.help {
            self.prose("  help: ", help);
        }
    }

    fn value(&mut self, what: &str, value: &str) {
        let lines: Vec<&str> = value.lines().collect();
        self.foreign(
            &format!("  {what:<9}"),
            lines.first().copied().unwrap_or(""),
        );
        for line in lines.iter().skip(1).take(VALUE_LINES) {
            self.foreign("           ", line);
        }
        if lines.len() > VALUE_LINES + 1 {
            let more = lines.len() - VALUE_LINES - 1;
            self.line(&format!(
                "           ... {} more",
                text::count(more as u64, "line")
            ));
        }
    }

    fn location(&mut self, location: &Location) {
        let number = location.pos.line.to_string();
        let pad = " ".repeat(number.len());
        self.line(&format!("  {pad}--> {}", location.pos));
        // Tabs are widened, so the caret is placed by what is shown, not by the column.
        let part = |from: u32, to: u32| {
            let chars = location.line.chars().skip(from as usize);
            text::clean(&chars.take((to - from) as usize).collect::<String>())
        };
        let start = location.pos.column.saturating_sub(1);
        let end = start.saturating_add(location.width.max(1));
        let (mut before, marked) = (part(0, start), part(start, end));
        let after = part(end, u32::MAX);
        let room = if self.style.cut {
            self.style.width.saturating_sub(5 + number.len()).max(10)
        } else {
            usize::MAX
        };
        // A line that is too long loses its beginning rather than what is underlined.
        if text::columns(&before) + text::columns(&marked) > room {
            while !before.is_empty() && text::columns(&before) + 3 > room / 2 {
                before.remove(0);
            }
            before.insert_str(0, "...");
        }
        let indent = text::columns(&before);
        let carets = text::columns(&marked).clamp(1, room.saturating_sub(indent).max(1));
        let line = text::cut(&format!("{before}{marked}{after}"), room);
        self.line(&format!("  {number} | {line}"));
        let carets = self.style.red(&"^".repeat(carets));
        self.line(&format!("  {pad} | {:indent$}{carets}", ""));
    }

    fn faults(&mut self, test: &TestReport, indent: &str) {
        if test.faults.is_empty() {
            return;
        }
        for fault in test.faults.iter().take(FAULTS) {
            let mut facts = vec![hits(fault)];
            if fault.shadowed > 0 {
                facts.push(format!("shadowed {} times", fault.shadowed));
            }
            if fault.hits == 0 && fault.matched > 0 && fault.shadowed == 0 {
                facts.push(format!("matched {} times", fault.matched));
            }
            if self.verbose > 0 {
                facts.push(format!(
                    "{}, in force after {}",
                    fault.mechanism,
                    text::millis(fault.armed_us as f64 / 1e3)
                ));
            }
            let what = format!(
                "{} on {}, {}: {}",
                fault.name,
                fault.target,
                facts.join(", "),
                text::cut(&fault.action, ACTION),
            );
            self.prose(&format!("{indent}fault: "), &what);
        }
        if test.faults.len() > FAULTS {
            let more = test.faults.len() - FAULTS;
            self.line(&format!(
                "{indent}... {} more",
                text::count(more as u64, "fault")
            ));
        }
    }

    fn logs(&mut self, logs: &[LogTail]) {
        let mut shown: Vec<&LogTail> = logs
            .iter()
            .filter(|l| l.ended.is_some() || !l.lines.is_empty())
            .collect();
        let more = shown.len().saturating_sub(LOGS);
        if more > 0 {
            shown.sort_by_key(|l| l.ended.is_none());
            shown.truncate(LOGS);
        }
        let with_lines = shown.iter().filter(|l| !l.lines.is_empty()).count();
        for log in &shown {
            let service = text::clean(&log.service);
            let ended = log
                .ended
                .as_ref()
                .map_or_else(String::new, |e| format!(" ({})", text::clean(e)));
            if log.lines.is_empty() {
                self.line(&format!("  log of {service}{ended}: empty"));
                continue;
            }
            self.line(&format!("  log of {service}{ended}:"));
            let share = (LOG_LINES / with_lines).max(2);
            let first = log.lines.len().saturating_sub(share);
            for line in &log.lines[first..] {
                self.foreign("    | ", line);
            }
        }
        if more > 0 {
            let more = text::count(more as u64, "log");
            self.line(&format!(
                "  ... {more} more; --keep-logs DIR keeps them all"
            ));
        }
    }

    fn prints(&mut self, prints: &[String]) {
        if prints.is_empty() {
            return;
        }
        self.line("  printed:");
        let lines: Vec<&str> = prints.iter().flat_map(|p| p.lines()).collect();
        let first = lines.len().saturating_sub(PRINT_LINES);
        for line in &lines[first..] {
            self.foreign("    | ", line);
        }
    }

    /// A fault that never fired has tested nothing: each is named once, with the tests in which it stayed silent. Those that fired in no
    /// test at all come first: they are the likeliest mistakes.
    fn silent_faults(&mut self) {
        #[derive(Default)]
        struct Silence<'a> {
            tests: Vec<&'a str>,
            of: usize,
        }
        let mut faults: BTreeMap<(&str, &str, &str), Silence> = BTreeMap::new();
        for test in &self.report.tests {
            // A test that did not get that far says nothing about its faults.
            if matches!(test.outcome, Outcome::Invalid | Outcome::Interrupted) {
                continue;
            }
            let mut told: BTreeMap<_, u64> = BTreeMap::new();
            for fault in &test.faults {
                let key = (&*fault.name, &*fault.target, &*fault.action);
                *told.entry(key).or_default() += fault.hits;
            }
            for (key, hits) in told {
                let silence = faults.entry(key).or_default();
                silence.of += 1;
                if hits == 0 {
                    silence.tests.push(&test.name);
                }
            }
        }
        let mut silent: Vec<_> = faults
            .into_iter()
            .filter(|(_, silence)| !silence.tests.is_empty())
            .collect();
        if silent.is_empty() {
            return;
        }
        silent.sort_by_key(|(_, silence)| silence.tests.len() < silence.of);
        self.heading("faults that never fired");
        let shown = if self.verbose > 0 {
            silent.len()
        } else {
            SILENT
        };
        for ((name, target, action), silence) in silent.iter().take(shown) {
            let (n, of) = (silence.tests.len(), silence.of);
            let share = match n {
                1 if of == 1 => "in its only test".to_owned(),
                n if n == of => format!("in any of its {of} tests"),
                _ => format!("in {n} of its {of} tests"),
            };
            let tests = if self.verbose > 0 {
                silence.tests.join(", ")
            } else {
                names(&silence.tests)
            };
            let mut words = format!("{name} on {target}, {share}: {tests}");
            // An assumption's rule stands in the spec under its name; one without a name has only its text.
            if n == of || self.verbose > 0 {
                let _ = write!(words, "; {}", text::cut(action, ACTION));
            }
            self.prose("  ", &words);
        }
        if silent.len() > shown {
            self.line(&format!("  and {} more (-v)", silent.len() - shown));
        }
    }

    fn notes(&mut self) {
        let mut notes: Vec<(&str, Vec<&str>)> = vec![];
        let mut add = |note, test: Option<_>| match notes.iter_mut().find(|(n, _)| *n == note) {
            Some((_, tests)) => tests.extend(test),
            None => notes.push((note, test.into_iter().collect())),
        };
        for note in &self.report.notes {
            add(note, None);
        }
        // The notes of the others stand with their explanations, or with -v beside each test.
        if self.verbose == 0 {
            let passed = self
                .report
                .tests
                .iter()
                .filter(|t| t.outcome == Outcome::Passed);
            for test in passed {
                // A run says this for each test; `silent_faults` has said it for all, with the tests' names.
                let said = |n: &str| n.starts_with("fault") && n.ends_with(" never fired");
                for note in test.notes.iter().filter(|n| !said(n)) {
                    add(note, Some(&*test.name));
                }
            }
        }
        if notes.is_empty() {
            return;
        }
        self.gap();
        for (note, tests) in notes {
            let tests = match tests.len() {
                0 => String::new(),
                1 => format!(" (in {})", tests[0]),
                n => format!(" (in {n} tests: {})", names(&tests)),
            };
            self.prose("note: ", &format!("{note}{tests}"));
        }
    }

    fn overhead(&mut self) {
        if self.report.tests.is_empty() {
            return;
        }
        self.heading("overhead");
        let interfaces = overhead::interfaces(self.report);
        if interfaces.is_empty() {
            self.line("no request was passed on by a proxy and answered");
        } else {
            let mut table = table::new(self.style);
            table.set_header([
                "interface",
                "protocol",
                "requests",
                "added us: p50",
                "p90",
                "p99",
                "max",
            ]);
            for cost in &interfaces {
                let mut row = vec![cost.name.clone(), cost.protocol.clone()];
                row.extend(numbers(cost));
                table.add_row(row);
            }
            table::right(&mut table, 2);
            self.line(&table.to_string());
        }
        let syscalls = overhead::syscalls(self.report);
        if syscalls.is_empty() {
            self.line("no syscall was trapped");
        } else {
            let mut table = table::new(self.style);
            table.set_header([
                "service",
                "trapped calls",
                "decision us: p50",
                "p90",
                "p99",
                "max",
            ]);
            for cost in &syscalls {
                let mut row = vec![cost.name.clone()];
                row.extend(numbers(cost));
                table.add_row(row);
            }
            table::right(&mut table, 1);
            self.line(&table.to_string());
        }
    }

    fn budgets(&mut self) {
        if self.report.budgets.is_empty() {
            return;
        }
        self.heading("overhead budget");
        for judged in budget::judge(self.report) {
            let word = judged.standing.name();
            let word = match judged.standing {
                Standing::Held => self.style.outcome(Outcome::Passed, word),
                Standing::Broken => self.style.red(&word.to_uppercase()),
                Standing::Unmeasured => self.style.outcome(Outcome::Inconclusive, word),
            };
            self.line(&format!("{}: {word}", judged.budget.text));
            for line in judged.lines() {
                self.prose("  ", &line);
            }
        }
    }

    fn summary(&mut self) {
        self.gap();
        let total = text::count(self.report.tests.len() as u64, "test");
        let mut parts = vec![];
        for outcome in Outcome::ALL {
            let n = self.report.count(outcome);
            if n > 0 {
                parts.push((format!("{n} {}", outcome.name()), Some(outcome)));
            }
        }
        if parts.is_empty() {
            parts.push(("none ran".to_owned(), None));
        }
        parts.push((
            format!("in {}", text::millis(self.report.duration_ms)),
            None,
        ));
        parts.push((format!("seed {}", self.report.seed), None));
        if self.report.interrupted {
            parts.push(("interrupted".to_owned(), None));
        }
        // Filled by what is seen; colours take no columns.
        let mut line = format!("{total}: ");
        let indent = line.len();
        let mut used = indent;
        let last = parts.len() - 1;
        for (i, (part, outcome)) in parts.iter().enumerate() {
            let comma = if i == last { "" } else { ", " };
            if used > indent && used + part.len() + 1 > self.style.width {
                self.line(&line);
                line = " ".repeat(indent);
                used = indent;
            }
            used += part.len() + comma.len();
            match outcome {
                Some(outcome) => line.push_str(&self.style.outcome(*outcome, part)),
                None => line.push_str(part),
            }
            line.push_str(comma);
        }
        self.line(&line);
    }
}

/// The first of several names.
fn names(all: &[&str]) -> String {
    let mut list = all[..all.len().min(NAMES)].join(", ");
    if all.len() > NAMES {
        let _ = write!(list, " and {} more", all.len() - NAMES);
    }
    list
}

fn hits(fault: &FaultReport) -> String {
    match fault.hits {
        0 => "never fired".to_owned(),
        n => text::count(n, "hit"),
    }
}

fn numbers(cost: &Cost) -> Vec<String> {
    let quantiles = [cost.p50, cost.p90, cost.p99, cost.max];
    std::iter::once(cost.count.to_string())
        .chain(quantiles.map(text::micros))
        .collect()
}
