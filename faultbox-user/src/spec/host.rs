//! What the language needs from a running test.

use faultbox_contract::{CheckedStep, Response};

use crate::events::EventLog;
use crate::plan::{CallCount, FaultSet, report::Blame};

/// A fault in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ArmId(pub u64);

/// What a spec can do to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessFault {
    /// SIGSTOP to the whole tree.
    Pause,
    /// SIGCONT to the whole tree.
    Resume,
    /// SIGKILL to the whole tree.
    Kill,
    /// Stop it as at the end of a test, then start it again and wait until it is ready.
    Restart,
}

/// Something that the running test refused or could not do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct HostError {
    /// A lower-case fragment.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// Whose doing it is.
    pub blame: Blame,
}

/// What a host says that has nothing to do with the kernel's tracer.
fn blind() -> HostError {
    HostError {
        message: "the kernel's tracer shows nothing here".into(),
        help: None,
        blame: Blame::Environment,
    }
}

/// A running test, as the language sees it. All calls may block and may come from several threads at once.
pub trait Host: Send + Sync {
    /// Puts a fault in force; it is, when this returns.
    ///
    /// # Errors
    /// It cannot be enforced: the test ends as an error, never as a pass.
    fn arm(&self, fault: &FaultSet) -> Result<ArmId, HostError>;

    /// Lifts exactly what [`arm`](Host::arm) applied; calls that sleep on it go on at once.
    fn lift(&self, id: ArmId);

    /// How often the fault has fired and decided so far; stays readable after it was lifted.
    fn hits(&self, id: ArmId) -> u64;

    /// Sends one operation through the interface (and its proxy).
    ///
    /// # Errors
    /// A misuse; what goes wrong on the wire is a [`Response`].
    fn step(
        &self,
        service: &str,
        interface: &str,
        call: CheckedStep,
    ) -> Result<Response, HostError>;

    /// Does something to a service's processes.
    ///
    /// # Errors
    /// It is not running, or does not come back.
    fn process(&self, service: &str, what: ProcessFault) -> Result<(), HostError>;

    /// The process id of a service, while it runs.
    fn pid(&self, service: &str) -> Option<i32>;

    /// Why the kernel's tracer does not show events of this type (one of `crate::events::FROM_KERNEL`) here, if it does not.
    ///
    /// # Errors
    /// As an error that can be shown.
    fn observes(&self, _kind: &str) -> Result<(), HostError> {
        Err(blind())
    }

    /// What a service has called so far, the most called first.
    ///
    /// # Errors
    /// The kernel does not count here, or there is no such service on this machine.
    fn calls(&self, service: &str) -> Result<Vec<CallCount>, HostError> {
        let _ = service;
        Err(blind())
    }

    /// Makes every system call of a service an event, or no longer.
    ///
    /// # Errors
    /// As [`calls`](Host::calls).
    fn stream_calls(&self, service: &str, on: bool) -> Result<(), HostError> {
        let _ = (service, on);
        Err(blind())
    }

    /// The test's events.
    fn events(&self) -> &EventLog;
}
