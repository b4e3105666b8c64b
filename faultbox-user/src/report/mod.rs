//! Readers of a finished run: terminal, JSON, JUnit.

pub mod budget;
mod crossing;
pub mod human;
pub mod json;
pub mod junit;
pub mod matrix;
pub mod overhead;
pub mod style;
mod table;
pub mod text;
pub mod trace;

use crate::plan::{Outcome, TestDecl, TestKind, TestReport};

pub use budget::Budget;
pub use style::{Seen, Style};

/// A whole run, ready to be shown.
#[derive(Debug, Clone, Default)]
pub struct RunReport {
    /// The spec as the user named it.
    pub spec: String,
    /// The run's seed.
    pub seed: u64,
    /// Wall time.
    pub duration_ms: f64,
    /// The tests that were selected, in the order declared.
    pub plan: Vec<TestDecl>,
    /// One report per selected test (and run), in the same order.
    pub tests: Vec<TestReport>,
    /// The matrices, so that a table can be drawn.
    pub matrices: Vec<MatrixLayout>,
    /// Said once per run: why tests ran one at a time, which mechanism was in use, ….
    pub notes: Vec<String>,
    /// Was the run cut short by a signal?
    pub interrupted: bool,
    /// What the mediation was allowed to cost.
    pub budgets: Vec<Budget>,
}

impl RunReport {
    /// The declaration of the test called `name`.
    pub fn decl(&self, name: &str) -> Option<&TestDecl> {
        self.plan.iter().find(|t| t.name == name)
    }

    /// How many tests ended so.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.tests.iter().filter(|t| t.outcome == outcome).count()
    }
}

/// One place of a matrix in one run.
#[derive(Debug, Clone, Copy)]
pub struct MatrixRow<'a> {
    /// The row.
    pub scenario: &'a str,
    /// The column; `None` is the baseline.
    pub fault: Option<&'a str>,
    /// What came of it.
    pub test: &'a TestReport,
}

/// Every report that belongs to a matrix, in the order of the reports.
pub fn matrix_rows(report: &RunReport) -> impl Iterator<Item = MatrixRow<'_>> {
    report.tests.iter().filter_map(|test| {
        let (scenario, fault) = match &report.decl(&test.name)?.kind {
            TestKind::Baseline { scenario, .. } => (scenario, None),
            TestKind::Cell {
                scenario, fault, ..
            } => (scenario, Some(fault.as_str())),
            _ => return None,
        };
        Some(MatrixRow {
            scenario,
            fault,
            test,
        })
    })
}

/// The axes of one matrix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MatrixLayout {
    /// The rows.
    pub scenarios: Vec<String>,
    /// The columns, baseline not counted.
    pub faults: Vec<String>,
    /// Is there a baseline column?
    pub baseline: bool,
}

/// Told about a run while it goes on.
pub trait RunObserver: Send + Sync {
    /// What this machine keeps the run from doing, before the first test.
    fn limited(&self, what: &str);
    /// A line of the log of the programs in the kernel.
    fn kernel_said(&self, line: &str);
    /// A test's worker has been started.
    fn started(&self, test: &str);
    /// A test has ended.
    fn finished(&self, report: &TestReport);
}
