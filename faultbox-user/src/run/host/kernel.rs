//! What the kernel knows of a test, and the connects that it refuses by itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use faultbox_ebpf_common::{RINGS, want};

use super::{Managed, TestHost};
use crate::plan::report::Blame;
use crate::plan::{CutDecl, Launch, ServiceDecl, SyscallAction, SyscallRule, Topology};
use crate::run::supervisor::{ArmedSyscall, Mechanism, sever};
use crate::run::tracer::{Feature, Watch};
use crate::spec::{HostError, Need};

/// Can the kernel decide this rule by itself? It answers every connect to certain addresses with an errno; it knows no counters and
/// no sockets but IP ones.
fn fits_kernel(rule: &SyscallRule) -> bool {
    rule.syscalls == ["connect"]
        && matches!(rule.action, SyscallAction::Deny { .. })
        && rule.trigger.is_always()
        && rule.dest.is_some()
        && rule.path.is_none()
        && rule.on.is_none()
}

/// Tells the kernel about the services and their proxies, before the first service starts.
///
/// # Errors
/// A service without a cgroup, or no room in the kernel's tables, as a lower-case fragment.
pub fn introduce(
    watch: &Arc<Watch>,
    topology: &Topology,
    services: &[Arc<Managed>],
) -> Result<(), String> {
    for managed in services {
        let service = &managed.service;
        let cgroup = service
            .cgroup()
            .ok_or_else(|| format!("service `{}` has no cgroup", service.decl().name))?;
        watch.service(&service.decl().name, cgroup, false, spared(service.decl()))?;
    }
    for service in &topology.services {
        for interface in &service.interfaces {
            watch.interface(&service.name, interface, interface.addr)?;
        }
    }
    Ok(())
}

/// What is not streamed of a service. A mock dials nobody: connections that it makes carry its own TLS.
pub fn spared(decl: &ServiceDecl) -> u32 {
    match decl.launch {
        Launch::Mock { .. } => want::CONNECT,
        _ => 0,
    }
}

/// What drops packets.
const LOSS: [Feature; 3] = [Feature::Packets, Feature::Sockets, Feature::Dial];

/// Whose programs see events of this type.
pub(super) fn seen_by(kind: &str) -> Feature {
    match kind {
        "fork" | "exec" | "exit" => Feature::Processes,
        "connect" | "disconnect" => Feature::Sockets,
        _ => Feature::Calls,
    }
}

/// Can anything be streamed to this test? Where it cannot, what happens would be taken for what never does.
pub(super) fn streaming(watch: &Watch, what: &str) -> Result<(), HostError> {
    match watch.streams() {
        true => Ok(()),
        false => Err(HostError {
            message: format!(
                "{what} needs a place to stream to, and more tests run at once than there are: {RINGS}"
            ),
            help: Some(format!("run fewer at a time: --jobs {RINGS}")),
            blame: Blame::Environment,
        }),
    }
}

impl TestHost {
    /// Is all there that a test cannot do without?
    ///
    /// # Errors
    /// What is not, as an error that can be shown.
    pub fn provides(&self, needs: &BTreeSet<Need>) -> Result<(), HostError> {
        for need in needs {
            let features: &[Feature] = match need {
                Need::Events(_, kind) => &[seen_by(kind)],
                Need::Counts | Need::Calls => &[Feature::Calls],
                Need::Loss => &LOSS,
            };
            let watch = self.seeing(&need.text(), features)?;
            if matches!(need, Need::Events(..) | Need::Calls) {
                streaming(watch, &need.text())?;
            }
        }
        Ok(())
    }

    /// The programs that drop packets and, if it rejects, refuse connections.
    pub(super) fn packets(&self, cut: &CutDecl) -> Result<&Arc<Watch>, HostError> {
        let mut features = LOSS.to_vec();
        features.extend(cut.reject.then_some(Feature::Refuse));
        self.seeing(&cut.text, &features)
    }

    /// The kernel's side, if it has what `what` needs.
    pub(super) fn seeing(
        &self,
        what: &str,
        features: &[Feature],
    ) -> Result<&Arc<Watch>, HostError> {
        let why = match &self.watch {
            Ok(watch) if features.iter().all(|f| watch.has(*f)) => return Ok(watch),
            Ok(_) => self
                .missing
                .iter()
                .find(|(feature, _)| features.contains(feature))
                .map_or("its programs could not be attached", |(_, why)| {
                    why.as_str()
                }),
            Err(why) => why,
        };
        Err(HostError {
            message: format!("{what} needs eBPF: {why}"),
            help: Some("`faultbox doctor` tells how to get it".into()),
            blame: Blame::Environment,
        })
    }

    /// Lets the kernel refuse, if it can decide all of the service's connects; says whether it does.
    fn refuse_in_kernel(&self, managed: &Managed, rules: &[Arc<ArmedSyscall>]) -> bool {
        let watch = self.watch.as_ref().ok();
        let Some(watch) =
            watch.filter(|w| w.has(Feature::Dial) && w.has(Feature::Refuse) && w.streams())
        else {
            return false;
        };
        let mut supervision = managed.supervision();
        // What seccomp decides comes first, so a rule of its own on connect would come before ours whatever the order applied.
        let mixed = supervision
            .rules
            .iter()
            .any(|r| r.rule.syscalls.contains(&"connect"));
        if mixed || !managed.service.is_alive() || !rules.iter().all(|r| fits_kernel(&r.rule)) {
            return false;
        }
        for (at, rule) in rules.iter().enumerate() {
            if let Err(why) = watch.refuse(managed.name(), rule) {
                for done in &rules[..at] {
                    watch.admit(done.id);
                }
                self.note(format!(
                    "{} on {} is enforced by seccomp, not in the kernel, and every connect of the service takes microseconds longer: {why}",
                    rule.rule.text,
                    managed.name()
                ));
                return false;
            }
        }
        supervision.in_kernel.extend(rules.iter().cloned());
        drop(supervision);
        for rule in rules.iter().filter(|r| sever::applies(r)) {
            let tree = managed.service.tree();
            let dest = rule.rule.dest.as_ref();
            sever::sever(managed.name(), &tree, dest, &rule.fault, &self.events);
        }
        true
    }

    /// Puts syscall rules in force by the cheapest mechanism that is sound.
    pub(super) fn arm_syscalls(
        &self,
        managed: &Managed,
        rules: &[Arc<ArmedSyscall>],
    ) -> Result<Mechanism, HostError> {
        if self.refuse_in_kernel(managed, rules) {
            return Ok(Mechanism::InKernel);
        }
        // Rules on connect that only the supervisor can decide take those along that the kernel decides.
        let connects = rules.iter().any(|r| r.rule.syscalls.contains(&"connect"));
        let moved = match connects {
            true => std::mem::take(&mut managed.supervision().in_kernel),
            false => vec![],
        };
        let all: Vec<_> = moved.iter().chain(rules).cloned().collect();
        let armed = managed.arm(&all, &self.events);
        match (&armed, self.watch()) {
            (Ok(_), Some(watch)) => moved.iter().for_each(|rule| watch.admit(rule.id)),
            _ => managed.supervision().in_kernel.extend(moved),
        }
        armed
    }
}
