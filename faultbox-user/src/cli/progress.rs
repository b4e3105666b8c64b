//! What is seen while a run goes on: a bar on a terminal, a line per test elsewhere. All of it on standard error, so that standard
//! output holds the report and nothing else.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;
use crate::plan::{Outcome, TestReport};
use crate::report::{RunObserver, Style, text};

/// Tests named beside the bar.
const NAMED: usize = 4;
/// Columns of a line where no terminal limits it: the report has the rest.
const LINE: usize = 300;

/// Shows a run's progress.
pub struct Progress {
    style: Style,
    bar: Option<ProgressBar>,
    state: Mutex<State>,
    total: usize,
}

#[derive(Default)]
struct State {
    running: Vec<String>,
    done: usize,
    wrong: usize,
}

impl Progress {
    /// For `total` tests. A terminal gets a bar, anything else plain lines.
    pub fn new(total: usize, style: Style) -> Progress {
        let bar = style.cut.then(|| {
            let target = ProgressDrawTarget::stderr();
            let bar = ProgressBar::with_draw_target(Some(total as u64), target);
            // The template is constant; should indicatif ever refuse it, its own default bar is good enough.
            let template = "[{elapsed_precise}] {bar:20} {pos}/{len} {wide_msg}";
            if let Ok(looks) = ProgressStyle::with_template(template) {
                bar.set_style(looks.progress_chars("=> "));
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Progress {
            style,
            bar,
            state: Mutex::default(),
            total,
        }
    }

    /// Takes the bar away: what follows is the report.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn show(&self, state: &State) {
        let Some(bar) = &self.bar else { return };
        let mut words = vec![];
        if state.wrong > 0 {
            words.push(format!("{} not passed;", state.wrong));
        }
        if !state.running.is_empty() {
            let named = &state.running[..state.running.len().min(NAMED)];
            words.push(format!("running {}", named.join(", ")));
            if state.running.len() > NAMED {
                words.push(format!("and {} more", state.running.len() - NAMED));
            }
        }
        bar.set_position(state.done as u64);
        bar.set_message(words.join(" "));
    }
}

impl Progress {
    /// A line above the bar.
    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::stderr(line)),
            None => output::stderr(line),
        }
    }
}

impl RunObserver for Progress {
    fn limited(&self, what: &str) {
        self.say(&format!("note: {}\n", text::clean(what)));
    }

    fn kernel_said(&self, line: &str) {
        self.say(&format!("kernel: {}\n", text::clean(line)));
    }

    fn started(&self, test: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running.push(text::clean(test));
        self.show(&state);
    }

    fn finished(&self, report: &TestReport) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let name = text::clean(&report.name);
        if let Some(i) = state.running.iter().position(|r| *r == name) {
            state.running.remove(i);
        }
        state.done += 1;
        if report.outcome != Outcome::Passed {
            state.wrong += 1;
        }
        match &self.bar {
            Some(bar) => {
                if report.outcome != Outcome::Passed {
                    let line = self.line(&state, report);
                    bar.suspend(|| output::stderr(&line));
                }
                self.show(&state);
            }
            None => output::stderr(&self.line(&state, report)),
        }
    }
}

impl Progress {
    fn line(&self, state: &State, report: &TestReport) -> String {
        let word = self
            .style
            .outcome(report.outcome, &format!("{:>12}", report.outcome.name()));
        let why = match &report.reason {
            Some(reason) if report.outcome != Outcome::Passed => {
                format!(
                    ": {}",
                    text::clean(reason.message.lines().next().unwrap_or_default())
                )
            }
            _ => String::new(),
        };
        let width = self.total.to_string().len();
        let mut rest = format!(
            "{:>9}  {}{why}",
            text::millis(report.duration_ms),
            text::clean(&report.name)
        );
        let room = if self.style.cut {
            self.style.width
        } else {
            LINE
        };
        rest = text::cut(&rest, room.saturating_sub(17 + 2 * width));
        format!("[{:>width$}/{}] {word} {rest}\n", state.done, self.total)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::plan::Reason;
    use crate::plan::report::Blame;

    fn report(outcome: Outcome, reason: Option<&str>) -> TestReport {
        TestReport {
            name: "test_pay\x1b[2J".into(),
            outcome,
            reason: reason.map(|r| Reason::new(r, Blame::Test)),
            duration_ms: 12.0,
            body_ms: 1.0,
            seed: 1,
            faults: vec![],
            assertions: 0,
            result: serde_json::Value::Null,
            prints: vec![],
            notes: vec![],
            logs: vec![],
            interfaces: vec![],
            syscalls: vec![],
            activity: BTreeMap::new(),
        }
    }

    #[test]
    fn a_line_tells_how_far_it_is_and_why_it_failed() {
        let progress = Progress::new(12, Style::PLAIN);
        let state = State {
            done: 3,
            ..State::default()
        };
        assert_eq!(
            progress.line(&state, &report(Outcome::Passed, None)),
            "[ 3/12]       passed     12 ms  test_pay\\u{1b}[2J\n"
        );
        let failed = report(Outcome::Failed, Some("expected 1\nmore"));
        assert_eq!(
            progress.line(&state, &failed),
            "[ 3/12]       failed     12 ms  test_pay\\u{1b}[2J: expected 1\n"
        );
    }

    #[test]
    fn a_line_fits_the_terminal() {
        let style = Style {
            cut: true,
            width: 60,
            ..Style::PLAIN
        };
        // Not `new`: that would draw a bar.
        let progress = Progress {
            style,
            bar: None,
            state: Mutex::default(),
            total: 1000,
        };
        let long = report(Outcome::Failed, Some(&"why ".repeat(100)));
        let line = progress.line(&State::default(), &long);
        assert!(text::columns(line.trim_end()) <= 60, "{line}");
    }

    #[test]
    fn tests_of_one_name_are_counted_apart() {
        let progress = Progress::new(2, Style::PLAIN);
        progress.started("test_pay\x1b[2J");
        progress.started("test_pay\x1b[2J");
        progress.finished(&report(Outcome::Passed, None));
        let state = progress.state.lock().unwrap();
        assert_eq!((state.running.len(), state.done, state.wrong), (1, 1, 0));
    }
}
