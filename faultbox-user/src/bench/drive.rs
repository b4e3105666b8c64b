//! In the worker: blocks with and without the proxy, in turns. The states of services have their own rounds, in [`states`](super::states).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use faultbox_contract::rule::RuleSpec;
use faultbox_contract::{Arg, duration};
use serde::{Deserialize, Serialize};

use super::cost::{self, Reading};
use super::machine::{Machine, Ticks};
use super::plan::{BLOCKS_PER_ROUND, Drive, Plan, Subject, Trial};
use super::stats::Pairs;
use crate::plan::{FaultPart, FaultSet, MeterSnapshot, Outcome, SpecPos, Topology};
use crate::run::fleet;
use crate::run::host::{Bypass, TestHost};
use crate::spec::{ArmId, BodyVerdict, Host, LoadedSpec, Transcript};
use crate::workload::{self, Done, Load, Summary};

/// The longest that a single probe may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How often a warm-up is begun in which no call was made.
const WARM_UPS: u32 = 10;
/// Characters of a failure that tell its kind.
const KIND: usize = 120;

/// What a worker has measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// Where.
    pub machine: Machine,
    /// In the order of the plan.
    pub subjects: Vec<Taken>,
}

/// One subject's blocks.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Taken {
    /// In the order taken; whole rounds only.
    pub blocks: Vec<Block>,
    /// What the proxies measured of themselves meanwhile, the warm-up not counted.
    pub inside: Vec<MeterSnapshot>,
    /// Which system calls were trapped, and why those.
    pub trapped: Option<String>,
    /// Why there are no (further) blocks.
    pub error: Option<String>,
    /// Why this machine cannot have it at all, and what would help.
    pub unavailable: Option<String>,
}

/// One stretch of load on one side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// Without what is measured: around the proxy, or with nothing armed?
    pub base: bool,
    /// Since the subject's first block.
    pub start: Duration,
    /// From its first call to its last answer.
    pub took: Duration,
    /// Latencies.
    pub pairs: Pairs,
    /// Calls that failed.
    pub failed: u64,
    /// By kind.
    pub errors: Vec<(String, u64)>,
    /// Calls of an open loop that were due and never begun.
    pub unsent: u64,
    /// The generator could not keep the rate.
    pub overloaded: bool,
    /// What faultbox took: the generator on both sides, the proxy on one.
    pub own: Reading,
    /// What each service took.
    pub services: Vec<(String, Reading)>,
}

impl Block {
    /// Calls.
    pub fn count(&self) -> u64 {
        self.pairs.iter().map(|(_, n)| n).sum()
    }
}

/// Carries a plan out; the result is a [`Measured`] as JSON.
pub fn drive(
    plan: &Plan,
    spec: &LoadedSpec,
    host: &Arc<TestHost>,
    transcript: &Transcript,
) -> BodyVerdict {
    let began = Instant::now();
    // It asserts nothing, and that is no reason for a note.
    transcript.assertions.fetch_add(1, Ordering::Relaxed);
    let (machine, ticks) = (Machine::this(), Ticks::now());
    let bench = Bench {
        plan,
        spec,
        host,
        transcript,
    };
    bench.trace_as_needed();
    let subjects = plan
        .groups()
        .flat_map(|group| match &group[0].state {
            None => vec![bench.subject(&group[0])],
            Some(state) => bench.states(group, state),
        })
        .collect();
    host.set_bypass(Bypass::None);
    let measured = Measured {
        machine: machine.since(ticks),
        subjects,
    };
    BodyVerdict {
        outcome: Outcome::Passed,
        reason: None,
        result: serde_json::to_value(measured).unwrap_or_default(),
        took: began.elapsed(),
    }
}

/// What is needed for driving.
pub(super) struct Bench<'a> {
    pub(super) plan: &'a Plan,
    pub(super) spec: &'a LoadedSpec,
    pub(super) host: &'a Arc<TestHost>,
    pub(super) transcript: &'a Transcript,
}

impl Bench<'_> {
    fn subject(&self, subject: &Subject) -> Taken {
        let mut taken = Taken::default();
        let armed = match self.plan.trial {
            Some(Trial::Delay(span)) => match self.delay(subject, span) {
                Ok(id) => Some(id),
                Err(e) => {
                    taken.error = Some(e);
                    return taken;
                }
            },
            _ => None,
        };
        if let Err(e) = self.rounds(subject, &mut taken) {
            taken.error = Some(e);
        }
        taken.keep_whole_rounds();
        if let Some(id) = armed {
            self.host.lift(id);
        }
        taken
    }

    fn rounds(&self, subject: &Subject, taken: &mut Taken) -> Result<(), String> {
        for base in [true, false] {
            self.warm_up(subject, base, self.plan.block)?;
        }
        let before = self.host.interface_meters();
        let start = Instant::now();
        for round in 0..self.plan.of_subject(subject).0 {
            // A drift of the machine hits both sides alike, whatever its direction.
            let first = round % 2 == 0;
            for base in [first, !first, !first, first] {
                taken.blocks.push(self.block(subject, base, start)?);
            }
        }
        taken.inside = since(&before, self.host.interface_meters());
        Ok(())
    }

    /// Calls that do not count.
    pub(super) fn warm_up(
        &self,
        subject: &Subject,
        base: bool,
        span: Duration,
    ) -> Result<(), String> {
        self.take_way(subject, base);
        let mut warm = self.load(subject, Load::new(subject.shape, span))?;
        for _ in 1..WARM_UPS {
            // On a machine whose cores are all busy, the callers may not have had a turn yet.
            if warm.count == 0 {
                warm = self.load(subject, Load::new(subject.shape, span))?;
            }
        }
        if warm.count > warm.failed {
            return Ok(());
        }
        let kinds: Vec<&str> = warm.errors.iter().map(|(kind, _)| &**kind).collect();
        Err(match kinds.as_slice() {
            [] => "no call was made".to_owned(),
            kinds => format!("every call failed: {}", kinds.join("; ")),
        })
    }

    /// Sends what follows through the proxy or around it.
    fn take_way(&self, subject: &Subject, base: bool) {
        let around = base || subject.state.is_some() || self.plan.trial == Some(Trial::Null);
        self.host.set_bypass(match (&subject.drive, around) {
            (_, false) => Bypass::None,
            (Drive::Workload { target: None, .. }, true) => Bypass::All,
            (Drive::Probe { service, interface }, true) => {
                Bypass::One(service.clone(), interface.clone())
            }
            (
                Drive::Workload {
                    target: Some((service, interface)),
                    ..
                },
                true,
            ) => Bypass::One(service.clone(), interface.clone()),
        });
    }

    pub(super) fn block(
        &self,
        subject: &Subject,
        base: bool,
        start: Instant,
    ) -> Result<Block, String> {
        self.take_way(subject, base);
        let (_, span) = self.plan.of_subject(subject);
        let load = Load {
            interval: span,
            ..Load::new(subject.shape, span)
        };
        let (own, services) = (cost::own(), self.services());
        let began = start.elapsed();
        let summary = self.load(subject, load)?;
        let spent = |now: Reading, before: Reading| Reading {
            cpu: now.cpu.saturating_sub(before.cpu),
            memory: now.memory,
        };
        let services = self
            .services()
            .into_iter()
            .zip(services)
            .map(|((name, now), (_, before))| (name, spent(now, before)))
            .collect();
        Ok(Block {
            base,
            start: began,
            took: summary.took,
            pairs: summary
                .latency
                .iter_recorded()
                .map(|v| (v.value_iterated_to(), v.count_at_value()))
                .collect(),
            failed: summary.failed,
            errors: summary.errors,
            unsent: summary.unsent,
            overloaded: summary.overloaded,
            own: spent(cost::own(), own),
            services,
        })
    }

    fn load(&self, subject: &Subject, load: Load) -> Result<Summary, String> {
        match &subject.drive {
            Drive::Probe { service, interface } => {
                // Each caller waits for its own answers, so that none takes part in the proxies' threads.
                let caller = || -> Box<dyn FnMut() -> Done> {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build();
                    Box::new(move || {
                        let answer = match &runtime {
                            Ok(runtime) => {
                                runtime.block_on(self.host.probe(service, interface, ATTEMPT))
                            }
                            Err(e) => Err(e.to_string()),
                        };
                        match answer {
                            Ok(()) => Done::Ok,
                            Err(e) => Done::Failed(e.chars().take(KIND).collect()),
                        }
                    })
                };
                workload::drive(load, &caller)
                    .map_err(|e| format!("no thread could be started: {e}"))
            }
            Drive::Workload { name, .. } => {
                let host: Arc<dyn Host> = self.host.clone();
                self.spec
                    .run_workload(name, load, host, self.transcript)
                    .map_err(|reason| reason.message)
            }
        }
    }

    fn services(&self) -> Vec<(String, Reading)> {
        let of = |m: &Arc<crate::run::host::Managed>| {
            (m.service.decl().name.clone(), cost::service(&m.service))
        };
        self.host.services().iter().map(of).collect()
    }

    /// Puts a delay in force on every proxy that the subject goes through.
    fn delay(&self, subject: &Subject, span: Duration) -> Result<ArmId, String> {
        let topology: &Topology = self.spec.topology();
        let one = match &subject.drive {
            Drive::Probe { service, interface } => Some((service, interface)),
            Drive::Workload { target, .. } => target.as_ref().map(|(s, i)| (s, i)),
        };
        let mut parts = vec![];
        for service in &topology.services {
            for interface in service.interfaces.iter().filter(|i| i.proxy_addr.is_some()) {
                if one.is_some_and(|one| one != (&service.name, &interface.name)) {
                    continue;
                }
                let rule = RuleSpec {
                    action: "delay".to_owned(),
                    args: vec![("delay".to_owned(), Arg::Str(duration::show(span)))],
                };
                let protocol = fleet::protocol(interface.protocol).ok_or("no such protocol")?;
                let rule = protocol.doc().check_rule(&rule).map_err(|e| e.message)?;
                parts.push(FaultPart::Protocol {
                    service: service.name.clone(),
                    interface: interface.name.clone(),
                    rule: Arc::new(rule),
                    origin: "trial".to_owned(),
                });
            }
        }
        let fault = FaultSet {
            name: "trial".to_owned(),
            parts,
            description: String::new(),
            pos: SpecPos::default(),
        };
        self.host.arm(&fault).map_err(|e| e.message)
    }
}

impl Taken {
    /// Half a round would give one side the better part of the machine.
    pub(super) fn keep_whole_rounds(&mut self) {
        let round = BLOCKS_PER_ROUND as usize;
        let whole = self.blocks.len() / round * round;
        self.blocks.truncate(whole);
    }
}

/// What was recorded after `before`.
pub(super) fn since(before: &[MeterSnapshot], after: Vec<MeterSnapshot>) -> Vec<MeterSnapshot> {
    let earlier: BTreeMap<&str, BTreeMap<u64, u64>> = before
        .iter()
        .map(|m| (m.name.as_str(), m.pairs.iter().copied().collect()))
        .collect();
    let fresh = |mut meter: MeterSnapshot| {
        if let Some(earlier) = earlier.get(meter.name.as_str()) {
            for (value, count) in &mut meter.pairs {
                *count -= earlier.get(value).copied().unwrap_or(0).min(*count);
            }
        }
        meter.pairs.retain(|(_, count)| *count > 0);
        meter
    };
    let all = after.into_iter().map(fresh);
    all.filter(|m| !m.pairs.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_meter_recorded_meanwhile() {
        let meter = |name: &str, pairs: &[(u64, u64)]| MeterSnapshot {
            name: name.to_owned(),
            protocol: "http".to_owned(),
            pairs: pairs.to_vec(),
        };
        let before = [meter("a", &[(10, 2), (20, 1)]), meter("b", &[(5, 1)])];
        let after = vec![
            meter("a", &[(10, 5), (20, 1), (30, 1)]),
            meter("b", &[(5, 1)]),
            meter("c", &[(7, 7)]),
        ];
        let fresh: Vec<_> = since(&before, after)
            .into_iter()
            .map(|m| (m.name, m.pairs))
            .collect();
        assert_eq!(
            fresh,
            [
                ("a".to_owned(), vec![(10, 3), (30, 1)]),
                ("c".to_owned(), vec![(7, 7)])
            ]
        );
    }
}
