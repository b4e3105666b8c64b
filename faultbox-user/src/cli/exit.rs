//! Exit codes: what a script may rely on. `docs/cli.md` lists them.

use std::process::ExitCode;

use crate::plan::report::Blame;
use crate::plan::{Outcome, TestReport};
use crate::report::RunReport;
use crate::report::budget::{self, Judged, Standing};

/// How the command ended.
///
/// When several apply, the first of this list wins: `Interrupted`, `Internal`, `Failed`, `Usage`, `Environment`, `Undecided`, `Passed`.
/// An interrupted run has not said all; after a defect of our own nothing else that was said can be relied upon; a test that failed
/// is a finding whatever else was missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Every test passed.
    Passed = 0,
    /// A test failed, timed out, was bypassed, or could not be carried out for a reason that lies in the spec or its services; or faultbox
    /// itself cost more than its budget.
    Failed = 1,
    /// The command line or the spec is wrong; nothing was run.
    Usage = 2,
    /// The environment lacks something: a binary, a privilege, a server, room on the disk.
    Environment = 3,
    /// Nothing failed, but something says nothing: invalid, inconclusive, or halted; or a budget for which nothing was measured.
    Undecided = 4,
    /// A defect of Faultbox itself; EX_SOFTWARE of sysexits(3).
    Internal = 70,
    /// SIGINT or SIGTERM ended the run; 128 + SIGINT, as shells have it.
    Interrupted = 130,
}

impl Exit {
    /// Every code, in the order of their numbers.
    pub const ALL: [Exit; 7] = [
        Exit::Passed,
        Exit::Failed,
        Exit::Usage,
        Exit::Environment,
        Exit::Undecided,
        Exit::Internal,
        Exit::Interrupted,
    ];

    /// The number.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The one of two that the process ends with.
    pub fn and(self, other: Exit) -> Exit {
        let rank = |exit: Exit| match exit {
            Exit::Interrupted => 0,
            Exit::Internal => 1,
            Exit::Failed => 2,
            Exit::Usage => 3,
            Exit::Environment => 4,
            Exit::Undecided => 5,
            Exit::Passed => 6,
        };
        if rank(other) < rank(self) {
            other
        } else {
            self
        }
    }

    /// What one test contributes.
    pub fn of_test(test: &TestReport) -> Exit {
        match test.outcome {
            Outcome::Passed => Exit::Passed,
            Outcome::Failed | Outcome::Timeout | Outcome::Bypassed => Exit::Failed,
            Outcome::Error => match test.reason.as_ref().map(|r| r.blame) {
                Some(Blame::Test) => Exit::Failed,
                Some(Blame::Environment) => Exit::Environment,
                // An error that cannot say whose doing it is, is ours.
                Some(Blame::Internal) | None => Exit::Internal,
            },
            Outcome::Invalid | Outcome::Inconclusive | Outcome::Halted => Exit::Undecided,
            Outcome::Interrupted => Exit::Interrupted,
        }
    }

    /// What one budget contributes. One that nothing was measured for says nothing.
    pub fn of_budget(judged: &Judged) -> Exit {
        match judged.standing {
            Standing::Held => Exit::Passed,
            Standing::Broken => Exit::Failed,
            Standing::Unmeasured => Exit::Undecided,
        }
    }

    /// What a whole run ends with.
    pub fn of_run(report: &RunReport) -> Exit {
        let cut_short = if report.interrupted {
            Exit::Interrupted
        } else {
            Exit::Passed
        };
        report
            .tests
            .iter()
            .map(Exit::of_test)
            .chain(budget::judge(report).iter().map(Exit::of_budget))
            .fold(cut_short, Exit::and)
    }

    /// What a run that could not be carried out ends with.
    pub fn of_blame(blame: Blame) -> Exit {
        match blame {
            Blame::Test => Exit::Usage,
            Blame::Environment => Exit::Environment,
            Blame::Internal => Exit::Internal,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}
