//! The matrices of a run as grids of outcomes.

use super::{MatrixLayout, RunReport};
use crate::plan::{Outcome, TestKind, TestReport};

/// One place in a matrix: all runs of one test.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// The worst of its runs.
    pub outcome: Outcome,
    /// How many runs ended so.
    pub count: usize,
    /// How many runs there were.
    pub runs: usize,
    /// The longest run's wall time.
    pub duration_ms: f64,
}

/// One matrix with what came of it: only the rows and columns in which something ran.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// Which matrix, counted from 0.
    pub matrix: usize,
    /// Does it have a baseline column?
    pub baseline: bool,
    /// The fault columns.
    pub faults: Vec<String>,
    /// The rows: scenario, baseline, one cell per fault column.
    pub rows: Vec<Row>,
}

/// One scenario of a [`Grid`].
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The scenario.
    pub scenario: String,
    /// Its run without faults.
    pub baseline: Option<Cell>,
    /// One per column of the grid; `None`: excluded or not selected.
    pub cells: Vec<Option<Cell>>,
}

/// The grids of a run, in the order declared; a matrix of which nothing ran has none.
pub fn grids(report: &RunReport) -> Vec<Grid> {
    let layouts = report.matrices.iter().enumerate();
    layouts.filter_map(|(i, l)| grid(report, i, l)).collect()
}

fn grid(report: &RunReport, matrix: usize, layout: &MatrixLayout) -> Option<Grid> {
    let cell = |scenario: &str, fault: Option<&str>| {
        let decl = report.plan.iter().find(|t| match &t.kind {
            TestKind::Cell {
                matrix: m,
                scenario: s,
                fault: f,
            } => *m == matrix && s == scenario && fault == Some(f),
            TestKind::Baseline {
                matrix: m,
                scenario: s,
            } => *m == matrix && s == scenario && fault.is_none(),
            _ => false,
        })?;
        summarize(report.tests.iter().filter(|t| t.name == decl.name))
    };
    let rows: Vec<Row> = layout
        .scenarios
        .iter()
        .map(|scenario| Row {
            scenario: scenario.clone(),
            baseline: cell(scenario, None),
            cells: layout
                .faults
                .iter()
                .map(|fault| cell(scenario, Some(fault)))
                .collect(),
        })
        .filter(|row| row.baseline.is_some() || row.cells.iter().any(Option::is_some))
        .collect();
    if rows.is_empty() {
        return None;
    }
    let used: Vec<bool> = (0..layout.faults.len())
        .map(|column| rows.iter().any(|row| row.cells[column].is_some()))
        .collect();
    let keep = |cells: Vec<Option<Cell>>| {
        let kept = cells.into_iter().zip(&used).filter(|(_, used)| **used);
        kept.map(|(cell, _)| cell).collect()
    };
    Some(Grid {
        matrix,
        baseline: rows.iter().any(|row| row.baseline.is_some()),
        faults: layout
            .faults
            .iter()
            .zip(&used)
            .filter(|(_, used)| **used)
            .map(|(fault, _)| fault.clone())
            .collect(),
        rows: rows
            .into_iter()
            .map(|row| Row {
                cells: keep(row.cells),
                ..row
            })
            .collect(),
    })
}

fn summarize<'a>(runs: impl Iterator<Item = &'a TestReport>) -> Option<Cell> {
    runs.fold(None, |cell: Option<Cell>, run| {
        let Some(cell) = cell else {
            return Some(Cell {
                outcome: run.outcome,
                count: 1,
                runs: 1,
                duration_ms: run.duration_ms,
            });
        };
        let outcome = worse(cell.outcome, run.outcome);
        let before = if outcome == cell.outcome {
            cell.count
        } else {
            0
        };
        Some(Cell {
            outcome,
            count: before + usize::from(outcome == run.outcome),
            runs: cell.runs + 1,
            duration_ms: cell.duration_ms.max(run.duration_ms),
        })
    })
}

/// The one of two outcomes of the same test that a reader must hear of first.
pub fn worse(a: Outcome, b: Outcome) -> Outcome {
    let rank = |outcome: Outcome| match outcome {
        Outcome::Failed => 0,
        Outcome::Error => 1,
        Outcome::Timeout => 2,
        Outcome::Bypassed => 3,
        Outcome::Invalid => 4,
        Outcome::Inconclusive => 5,
        Outcome::Halted => 6,
        Outcome::Interrupted => 7,
        Outcome::Passed => 8,
    };
    if rank(b) < rank(a) { b } else { a }
}
