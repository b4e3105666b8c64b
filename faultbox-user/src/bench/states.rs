//! In the worker: a service in states, without any proxy. Native, traced, with calls trapped and not faulted, with all of them faulted in a way that
//! changes nothing.
//!
//! No process gets rid of a filter, so the service is started anew for every block, whatever the state. Tracing slows the whole machine, so
//! it is on in its own blocks only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faultbox_contract::{Dialect, Glob, TriggerSpec};

use super::drive::{Bench, Block, Taken, since};
use super::plan::{Calls, InState, State, Subject, Trial};
use crate::plan::{
    CallCount, Existing, FaultPart, FaultSet, MeterSnapshot, SpecPos, SyscallAction, SyscallRule,
};
use crate::run::tracer::{self, Feature, Watch};
use crate::spec::{ArmId, FAMILIES, Host, HostError, ProcessFault, system_calls};
use crate::sys::names;
use crate::workload::Line;
use crate::workload::line::Position;

/// Calls before each block of a fresh process.
const WARM_UP: Duration = Duration::from_millis(200);
/// A path that no call names.
const NOWHERE: &str = "/faultbox/bench/never";
/// What is trapped of a service of which nothing is known.
const FALLBACK: &str = "write";

/// What is trapped.
struct Trap {
    calls: Vec<&'static str>,
    /// As a spec would write it: "write", or several.
    key: String,
    /// Where it comes from.
    why: &'static str,
}

impl Bench<'_> {
    /// Measures all states of a service in the same rounds. `first` is what the first of the subjects says about its state.
    pub(super) fn states(&self, subjects: &[Subject], first: &InState) -> Vec<Taken> {
        let mut taken = vec![Taken::default(); subjects.len()];
        if let Err(e) = self.states_into(subjects, first, &mut taken) {
            for taken in taken.iter_mut().filter(|t| t.unavailable.is_none()) {
                taken.error = Some(e.clone());
            }
        }
        for taken in &mut taken {
            taken.keep_whole_rounds();
        }
        self.trace_as_needed();
        taken
    }

    /// Calls are counted if the spec asks for counts, as in any other run.
    pub(super) fn trace_as_needed(&self) {
        // What cannot be had is missed by who asks for it.
        let _ = self.trace(tracer::needed(self.spec).contains(&Feature::Calls));
    }

    fn states_into(
        &self,
        subjects: &[Subject],
        first: &InState,
        taken: &mut [Taken],
    ) -> Result<(), String> {
        let all = subjects.iter().zip(taken.iter_mut());
        if let Some(why) = self.never_native(&first.service) {
            for (_, taken) in all {
                taken.unavailable = Some(why.clone());
            }
            return Ok(());
        }
        // Nobody's calls are counted in the native blocks, this bench's warm-up excepted.
        let seen = self.seen(&subjects[0], first)?;
        let trap = Trap::choose(&first.calls, seen.as_deref().ok());
        let trappable = self.try_out(&subjects[0], first, &trap)?;
        let mut sides: Vec<Option<usize>> = vec![None];
        for (at, (subject, taken)) in all.enumerate() {
            let state = subject.state.as_ref().map_or(State::Armed, |s| s.state);
            let why = match state {
                State::Traced => seen.as_ref().err(),
                State::Unmatched | State::Armed => {
                    taken.trapped = Some(trap.told(seen.as_deref().ok()));
                    trappable.as_ref().err()
                }
            };
            match why {
                Some(why) => taken.unavailable = Some(why.clone()),
                None => sides.push(Some(at)),
            }
        }
        if sides.len() == 1 {
            return Ok(());
        }
        let generator = self.idling(subjects[0].shape.callers())?;
        for taken in taken.iter_mut() {
            taken.generator = generator;
        }
        let start = Instant::now();
        // Each side's schedule, and what it may take longer. Callers are made anew with the service: their connections end with it.
        let mut sides_at = BTreeMap::new();
        for round in 0..subjects[0].cut().0 {
            for side in order(&sides, round) {
                let subject = &subjects[side.unwrap_or(0)];
                let at = sides_at
                    .entry(side)
                    .or_insert_with(|| (Position::default(), subject.slack()));
                let (block, inside) = self.fresh_block(subject, first, side, &trap, start, at)?;
                match side {
                    Some(at) => {
                        merge(&mut taken[at].inside, inside);
                        taken[at].blocks.push(block);
                    }
                    // It is what each of the others is compared with.
                    None => {
                        for at in sides.iter().flatten() {
                            taken[*at].blocks.push(block.clone());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Why a service is never without a filter, if it is not.
    fn never_native(&self, service: &str) -> Option<String> {
        let mut services = self.host.services().iter();
        let managed = services.find(|m| m.service.decl().name == service)?;
        managed.listen.as_ref().map(|_| {
            format!(
                "ptrace is refused here, so {service} has a filter from its start, and there is no native run to compare with; `faultbox doctor` tells how to get it"
            )
        })
    }

    fn restart(&self, service: &str) -> Result<(), String> {
        self.host
            .process(service, ProcessFault::Restart)
            .map_err(|e| e.message)
    }

    /// The kernel's side, if it can be told to count calls and not to.
    fn counting(&self) -> Result<&Watch, String> {
        let why = match self.host.watch() {
            Some(watch) if watch.has(Feature::Calls) => return Ok(watch),
            Some(_) => "the programs that count system calls could not be attached".to_owned(),
            None => self.host.blind().unwrap_or_default(),
        };
        Err(format!(
            "no eBPF: {why}; `faultbox doctor` tells how to get it"
        ))
    }

    fn trace(&self, on: bool) -> Result<(), String> {
        self.counting()?.attach_lent(on)
    }

    /// What the service calls under the load; the inner error is why nobody can see it.
    fn seen(
        &self,
        subject: &Subject,
        state: &InState,
    ) -> Result<Result<Vec<CallCount>, String>, String> {
        if let Err(why) = self.trace(true) {
            return Ok(Err(why));
        }
        let before = self.host.calls(&state.service).unwrap_or_default();
        let warm = self.warmed(subject, WARM_UP * 2);
        let after = self.host.calls(&state.service).unwrap_or_default();
        self.trace(false)?;
        warm?;
        let earlier = |name: &str| {
            before
                .iter()
                .find(|c| c.name == name)
                .map_or(0, |c| c.count)
        };
        let fresh = after.into_iter().map(|c| CallCount {
            count: c.count.saturating_sub(earlier(&c.name)),
            ..c
        });
        Ok(Ok(fresh.filter(|c| c.count > 0).collect()))
    }

    /// Traps calls of a fresh process once; the inner error is why that cannot be had here.
    fn try_out(
        &self,
        subject: &Subject,
        state: &InState,
        trap: &Trap,
    ) -> Result<Result<(), String>, String> {
        self.restart(&state.service)?;
        match self.arm(state, State::Unmatched, trap) {
            Err(e) => Ok(Err(match e.help {
                Some(help) => format!("{}; {help}", e.message),
                None => e.message,
            })),
            Ok(id) => {
                let warm = self.warmed(subject, WARM_UP);
                self.host.lift(id);
                warm.map(Ok)
            }
        }
    }

    /// A block of a process that has just been started, with what its supervisor has measured of itself.
    fn fresh_block(
        &self,
        subject: &Subject,
        first: &InState,
        side: Option<usize>,
        trap: &Trap,
        start: Instant,
        (position, slack): &mut (Position, Duration),
    ) -> Result<(Block, Vec<MeterSnapshot>), String> {
        let state = side.and(subject.state.as_ref()).map(|s| s.state);
        let state = state.filter(|_| self.plan.trial != Some(Trial::Null));
        self.restart(&first.service)?;
        let mut fault = None;
        match state {
            None => {}
            Some(State::Traced) => self.trace(true)?,
            Some(state) => fault = Some(self.arm(first, state, trap).map_err(|e| e.message)?),
        }
        let base = side.is_none();
        let line = Line::new(subject.shape);
        let block = self.manned(subject, &[&line], || {
            line.seek(*position);
            self.warm_up(subject, &line, true, WARM_UP)?;
            let before = self.host.syscall_meters();
            let block = self.block(subject, &line, base, start, slack)?;
            *position = line.position();
            Ok((block, since(&before, self.host.syscall_meters())))
        });
        if state == Some(State::Traced) {
            self.trace(false)?;
        }
        if let Some(id) = fault {
            self.host.lift(id);
        }
        block
    }

    /// Calls that do not count, of callers that are there for nothing else.
    fn warmed(&self, subject: &Subject, span: Duration) -> Result<(), String> {
        let line = Line::new(subject.shape);
        self.manned(subject, &[&line], || {
            self.warm_up(subject, &line, true, span)
        })
    }

    fn arm(&self, service: &InState, state: State, trap: &Trap) -> Result<ArmId, HostError> {
        let (action, path) = match state {
            State::Armed => {
                let duration = match self.plan.trial {
                    Some(Trial::Delay(span)) => span,
                    _ => Duration::ZERO,
                };
                let jitter = Duration::ZERO;
                (SyscallAction::Delay { duration, jitter }, None)
            }
            _ => (
                SyscallAction::Allow,
                Glob::new(NOWHERE, Dialect::Path)
                    .map(Some)
                    .map_err(|e| HostError {
                        message: e,
                        help: None,
                        blame: crate::plan::report::Blame::Internal,
                    })?,
            ),
        };
        let rule = SyscallRule {
            key: trap.key.clone(),
            syscalls: trap.calls.clone(),
            action,
            trigger: TriggerSpec::default(),
            path,
            on: None,
            dest: None,
            existing: Existing::Keep,
            label: None,
            text: format!("{} ({})", trap.key, state.name()),
        };
        self.host.arm(&FaultSet {
            name: "bench".to_owned(),
            parts: vec![FaultPart::Syscall {
                service: service.service.clone(),
                rule: Arc::new(rule),
                origin: "bench".to_owned(),
            }],
            description: String::new(),
            pos: SpecPos::default(),
        })
    }
}

/// The sides of a round, each twice: forth and back, so that a drift of the machine hits all alike; begun with another in every round, so
/// that none is always next to the same.
fn order(sides: &[Option<usize>], round: u32) -> Vec<Option<usize>> {
    let mut forth = sides.to_vec();
    forth.rotate_left(round as usize % sides.len());
    let back: Vec<_> = forth.iter().rev().copied().collect();
    forth.extend(back);
    forth
}

fn merge(into: &mut Vec<MeterSnapshot>, more: Vec<MeterSnapshot>) {
    for meter in more {
        let Some(sum) = into.iter_mut().find(|m| m.name == meter.name) else {
            into.push(meter);
            continue;
        };
        let mut pairs: BTreeMap<u64, u64> = sum.pairs.drain(..).collect();
        for (value, count) in meter.pairs {
            *pairs.entry(value).or_default() += count;
        }
        sum.pairs = pairs.into_iter().collect();
    }
}

impl Trap {
    fn choose(calls: &Calls, seen: Option<&[CallCount]>) -> Trap {
        let of = |key: &str, why| Trap {
            calls: system_calls(key),
            key: key.to_owned(),
            why,
        };
        match calls {
            Calls::Asked(key) => of(key, "asked for"),
            Calls::Declared(declared) => Trap {
                // Families are expanded already; some calls have the name of one.
                calls: names::syscalls()
                    .map(|(name, _)| name)
                    .filter(|name| declared.iter().any(|d| d == name))
                    .collect(),
                key: in_families(declared),
                why: "what the spec's faults name",
            },
            Calls::Seen => match seen.and_then(busiest) {
                Some(family) => of(family, "what it calls most"),
                None => of(FALLBACK, "for want of a better guess"),
            },
        }
    }

    /// For the report.
    fn told(&self, seen: Option<&[CallCount]>) -> String {
        let made = |c: &CallCount| self.calls.contains(&c.name.as_str());
        match seen {
            Some(seen) if !seen.iter().any(made) => format!(
                "{} ({}; the load makes no such call: --syscalls=CALLS names others)",
                self.key, self.why
            ),
            _ => format!("{} ({})", self.key, self.why),
        }
    }
}

/// The family that the most calls belong to.
fn busiest(seen: &[CallCount]) -> Option<&'static str> {
    let calls = |members: &[&str]| -> u64 {
        let members = seen.iter().filter(|c| members.contains(&c.name.as_str()));
        members.map(|c| c.count).sum()
    };
    // Of equal ones the first: `write` before its part `send`.
    let families = FAMILIES.iter().rev().map(|(name, m)| (calls(m), *name));
    let (count, family) = families.max_by_key(|(count, _)| *count)?;
    (count > 0).then_some(family)
}

/// Names of calls, with families in the place of all of their members.
fn in_families(names: &[String]) -> String {
    let mut left: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut told = vec![];
    for (family, _) in FAMILIES {
        let members = system_calls(family);
        if !members.is_empty() && members.iter().all(|m| left.contains(m)) {
            left.retain(|name| !members.contains(name));
            told.push(*family);
        }
    }
    told.extend(left);
    told.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(calls: &[(&str, u64)]) -> Vec<CallCount> {
        let one = |(name, count): &(&str, u64)| CallCount {
            name: (*name).to_owned(),
            count: *count,
            errors: 0,
            total_ns: 0,
            pairs: vec![],
        };
        calls.iter().map(one).collect()
    }

    #[test]
    fn every_side_is_twice_in_a_round_and_a_drift_cancels() {
        let sides = [None, Some(0), Some(1), Some(2)];
        for round in 0..8 {
            let order = order(&sides, round);
            for side in sides {
                let at: Vec<usize> = (0..8).filter(|i| order[*i] == side).collect();
                assert_eq!(at.iter().sum::<usize>(), 7, "{order:?}");
            }
            // With the native blocks alone, each state has its neighbours in pairs.
            for state in 0..3 {
                let both: Vec<_> = order
                    .iter()
                    .filter(|s| s.is_none() || **s == Some(state))
                    .collect();
                assert!(both[0] != both[1] && both[2] != both[3] && both.len() == 4);
            }
        }
        assert_eq!(order(&sides, 0)[0], None);
        assert_eq!(order(&sides, 2)[0], Some(1));
    }

    #[test]
    fn what_is_trapped() {
        let calls = seen(&[
            ("epoll_wait", 90),
            ("sendto", 50),
            ("write", 20),
            ("read", 60),
        ]);
        let chosen = Trap::choose(&Calls::Seen, Some(&calls));
        assert_eq!(chosen.told(Some(&calls)), "write (what it calls most)");
        assert!(chosen.calls.contains(&"sendto"));
        let blind = Trap::choose(&Calls::Seen, None);
        assert_eq!(blind.told(None), "write (for want of a better guess)");
        let names = [
            "fsync",
            "fdatasync",
            "sync_file_range",
            "msync",
            "syncfs",
            "sync",
            "mkdir",
        ];
        let declared = Calls::Declared(names.map(str::to_owned).into());
        let declared = Trap::choose(&declared, Some(&calls));
        assert_eq!(declared.calls.len(), names.len());
        let told = declared.told(Some(&calls));
        assert!(
            told.starts_with("fsync, mkdir (what the spec's faults name; the load makes no"),
            "{told}"
        );
        assert_eq!(
            Trap::choose(&Calls::Asked("openat".to_owned()), None).calls,
            ["openat"]
        );
    }

    #[test]
    fn meters_of_several_blocks_add_up() {
        let meter = |pairs: &[(u64, u64)]| MeterSnapshot {
            name: "api".to_owned(),
            protocol: String::new(),
            pairs: pairs.to_vec(),
        };
        let mut all = vec![];
        merge(&mut all, vec![meter(&[(5, 1), (9, 2)])]);
        merge(&mut all, vec![meter(&[(7, 1), (9, 1)])]);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].pairs, [(5, 1), (7, 1), (9, 3)]);
    }
}
