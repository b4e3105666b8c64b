//! The tests that a spec declares.

use std::time::Duration;

use super::SpecPos;

/// One test, as discovered at load.
#[derive(Debug, Clone, PartialEq)]
pub struct TestDecl {
    /// Unique: `test_x`, a scenario's name, `matrix_<scenario>_<fault>`, ….
    pub name: String,
    /// What it is.
    pub kind: TestKind,
    /// When it is cancelled.
    pub timeout: Duration,
    /// The baseline test that must pass for this one to mean anything.
    pub baseline: Option<String>,
    /// A fault that never fires turns a pass into `bypassed`.
    pub require_faults_fire: bool,
    /// Where it was declared.
    pub pos: SpecPos,
}

/// What a test is.
#[derive(Debug, Clone, PartialEq)]
pub enum TestKind {
    /// A top-level `def test_x()`.
    Function,
    /// `scenario(fn)`.
    Scenario,
    /// `fault_scenario(name, …)`.
    FaultScenario,
    /// A matrix row run without faults.
    Baseline {
        /// Which matrix, counted from 0 in the order declared.
        matrix: usize,
        /// The row.
        scenario: String,
    },
    /// One cell of a matrix.
    Cell {
        /// Which matrix.
        matrix: usize,
        /// The row.
        scenario: String,
        /// The column.
        fault: String,
    },
}
