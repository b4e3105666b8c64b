//! A service of a running test, with what supervises it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use faultbox_contract::Meter;

use crate::events::EventLog;
use crate::plan::report::Blame;
use crate::plan::{MeterSnapshot, Reason};
use crate::run::services::{Service, user};
use crate::run::supervisor::{ArmedSyscall, BeforeExec, Mechanism, Supervisor, numbers};
use crate::spec::HostError;

/// A service and what supervises it.
pub struct Managed {
    /// The service.
    pub service: Arc<Service>,
    /// What a command that checks it runs with.
    pub env: Vec<(String, String)>,
    /// The user it runs as.
    pub account: Option<user::Account>,
    /// The syscalls of the filter before exec, where ptrace is refused.
    pub listen: Option<Vec<i64>>,
    supervision: Mutex<Supervision>,
}

#[derive(Default)]
pub(super) struct Supervision {
    pub(super) current: Option<Supervisor>,
    /// The syscall rules in force, oldest first: what a restarted service is armed with again.
    pub(super) rules: Vec<Arc<ArmedSyscall>>,
    /// Those that the kernel decides by itself; they concern the service's cgroup, so a restart does not touch them.
    pub(super) in_kernel: Vec<Arc<ArmedSyscall>>,
    meters: Vec<Arc<Meter>>,
    /// Why a rule could not be enforced in an earlier life of the service.
    pub(super) unenforced: Option<String>,
}

impl Managed {
    /// A service that nothing supervises yet.
    pub fn new(
        service: Arc<Service>,
        env: Vec<(String, String)>,
        account: Option<user::Account>,
        listen: Option<Vec<i64>>,
    ) -> Managed {
        Managed {
            service,
            env,
            account,
            listen,
            supervision: Mutex::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.service.decl().name
    }

    pub(super) fn supervision(&self) -> MutexGuard<'_, Supervision> {
        self.supervision
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the process; with the rules that are in force on it, if there are some, from its first instruction on.
    ///
    /// # Errors
    /// As [`Service::start`].
    pub fn start(&self, events: &Arc<EventLog>) -> Result<(), Reason> {
        let mut supervision = self.supervision();
        let rules = supervision.rules.clone();
        let mut traps = numbers(&rules);
        traps.extend(self.listen.iter().flatten());
        let traps: Vec<i64> = traps.into_iter().collect();
        let listener = self
            .service
            .start(Some(traps.clone()).filter(|t| !t.is_empty()))?;
        // A filter before exec traps from the first instruction on, so somebody has to answer from now on, too.
        if let Some(listener) = listener {
            let supervisor = Supervisor::new(
                self.name(),
                self.service.tree_fn(),
                self.service.decl().io_uring,
                events.clone(),
                Some(BeforeExec {
                    listener,
                    numbers: traps,
                    rules,
                }),
            );
            supervision.meters.push(supervisor.meter().clone());
            supervision.current = Some(supervisor);
        }
        Ok(())
    }

    /// Puts `rules` in force on the running tree.
    pub(super) fn arm(
        &self,
        rules: &[Arc<ArmedSyscall>],
        events: &Arc<EventLog>,
    ) -> Result<Mechanism, HostError> {
        let mut supervision = self.supervision();
        if !self.service.is_alive() {
            let how = self.service.ended().map_or_else(
                || "is not running".to_owned(),
                |e| format!("has ended ({e})"),
            );
            return Err(HostError {
                message: format!(
                    "service `{}` {how}: no fault can be put in force on it",
                    self.name()
                ),
                help: Some("apply faults while it runs, or `restart()` it first".into()),
                blame: Blame::Test,
            });
        }
        let mechanism = self.arm_current(&mut supervision, rules, events)?;
        supervision.rules.extend(rules.iter().cloned());
        Ok(mechanism)
    }

    pub(super) fn arm_current(
        &self,
        supervision: &mut Supervision,
        rules: &[Arc<ArmedSyscall>],
        events: &Arc<EventLog>,
    ) -> Result<Mechanism, HostError> {
        if supervision.current.is_none() {
            let supervisor = Supervisor::new(
                self.name(),
                self.service.tree_fn(),
                self.service.decl().io_uring,
                events.clone(),
                None,
            );
            supervision.meters.push(supervisor.meter().clone());
            supervision.current = Some(supervisor);
        }
        match &supervision.current {
            Some(supervisor) => supervisor.arm(rules).map_err(|e| HostError {
                message: format!(
                    "the fault cannot be put in force on `{}`: {}",
                    self.name(),
                    e.message
                ),
                help: e.help,
                blame: Blame::Environment,
            }),
            None => unreachable!("it has just been made"),
        }
    }

    pub(super) fn lift(&self, id: u64) {
        let mut supervision = self.supervision();
        supervision.rules.retain(|r| r.id != id);
        supervision.in_kernel.retain(|r| r.id != id);
        if let Some(supervisor) = &supervision.current {
            supervisor.lift(id);
        }
    }

    /// Why a rule that was in force was not enforced, if that has happened.
    pub(super) fn unenforced(&self) -> Option<String> {
        let supervision = self.supervision();
        let now = supervision.current.as_ref().and_then(Supervisor::blindness);
        supervision.unenforced.clone().or(now)
    }

    pub(super) fn meter(&self) -> Option<MeterSnapshot> {
        let total = Meter::default();
        for meter in &self.supervision().meters {
            total.merge(&meter.snapshot());
        }
        (total.count() > 0).then(|| MeterSnapshot {
            name: self.name().to_owned(),
            protocol: String::new(),
            pairs: total.snapshot(),
        })
    }
}
