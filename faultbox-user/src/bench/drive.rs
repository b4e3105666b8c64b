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
use crate::workload::line::Blocked;
use crate::workload::tally::UNSENT;
use crate::workload::{self, Done, Line, Shape, Turns, is_silence};

/// The longest that a single probe may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How often a warm-up is begun in which no call was made.
const WARM_UPS: u32 = 10;
/// For how long the generator calls nothing at all, to see how fast it could.
const IDLING: Duration = Duration::from_millis(100);
/// How long after refused calls the death of a service may take to be known.
const NEWS: Duration = Duration::from_millis(100);
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
    /// What the generator does when there is nothing to wait for.
    pub generator: Option<Idling>,
    /// Which system calls were trapped, and why those.
    pub trapped: Option<String>,
    /// Why there are no (further) blocks.
    pub error: Option<String>,
    /// Why this machine cannot have it at all, and what would help.
    pub unavailable: Option<String>,
}

/// The generator alone, in a closed loop of the same callers, with calls that do nothing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Idling {
    /// Calls a second.
    pub rate: f64,
    /// CPU time a call, in microseconds.
    pub cpu_us: f64,
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
    /// Calls that were made and that nobody answered.
    pub unanswered: u64,
    /// How much longer it took than planned, because calls stalled or were too many. What was due meanwhile is among its calls.
    pub overrun: Duration,
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

    /// Calls that were begun.
    pub fn made(&self) -> u64 {
        self.count().saturating_sub(self.unsent)
    }

    /// Calls that somebody answered, be it with an error.
    pub fn answered(&self) -> u64 {
        self.made().saturating_sub(self.unanswered)
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
        // A job that is done is no service that dies.
        gone: dead(host).map(|(name, _)| name).collect(),
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
    /// Services that had ended before anything was measured.
    gone: Vec<String>,
}

/// Services that have ended by themselves, and how.
fn dead(host: &TestHost) -> impl Iterator<Item = (String, String)> {
    let ended = |m: &Arc<crate::run::host::Managed>| {
        Some((m.service.decl().name.clone(), m.service.ended()?))
    };
    host.services().iter().filter_map(ended)
}

/// Ends lines however the measuring ends: their callers are waited for.
struct Closing<'a>(&'a [&'a Line]);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        for line in self.0 {
            line.stop();
        }
    }
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
        taken.generator = self.idling(subject.shape.callers())?;
        let [base, other] = [(); 2].map(|()| Line::new(subject.shape));
        let lines = [&other, &base];
        self.manned(subject, &lines, || {
            for around in [true, false] {
                self.warm_up(subject, lines[usize::from(around)], around, subject.block)?;
            }
            let before = self.host.interface_meters();
            let start = Instant::now();
            let mut slack = [subject.slack(); 2];
            for round in 0..subject.cut().0 {
                // A drift of the machine hits both sides alike, whatever its direction.
                let first = round % 2 == 0;
                for base in [first, !first, !first, first] {
                    let side = usize::from(base);
                    let block = self.block(subject, lines[side], base, start, &mut slack[side])?;
                    taken.blocks.push(block);
                }
            }
            taken.inside = since(&before, self.host.interface_meters());
            if taken.blocks.iter().any(|b| b.unanswered > 0) {
                std::thread::sleep(NEWS);
                self.all_alive()?;
            }
            Ok(())
        })
    }

    /// Has callers on lines while `conduct` runs. They and their connections stay as long.
    pub(super) fn manned<R>(
        &self,
        subject: &Subject,
        lines: &[&Line],
        conduct: impl FnOnce() -> Result<R, String>,
    ) -> Result<R, String> {
        std::thread::scope(|scope| {
            let callers: Vec<_> = lines
                .iter()
                .map(|line| scope.spawn(move || self.call_on(subject, line)))
                .collect();
            let result = {
                let _closing = Closing(lines);
                conduct()
            };
            let mut ended = Ok(());
            for thread in callers {
                match thread.join() {
                    Ok(end) => ended = ended.and(end),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            // What ended the callers is why nothing could be measured.
            ended.and(result)
        })
    }

    /// Calls that do not count.
    pub(super) fn warm_up(
        &self,
        subject: &Subject,
        line: &Line,
        base: bool,
        span: Duration,
    ) -> Result<(), String> {
        self.take_way(subject, base);
        let from = line.position();
        let warm = || {
            let mut slack = Duration::ZERO;
            self.blocked(line, span, &mut slack).map(|b| b.summary)
        };
        let mut last = warm()?;
        for _ in 1..WARM_UPS {
            // On a machine whose cores are all busy, the callers may not have had a turn yet.
            if last.count == last.unsent {
                last = warm()?;
            }
        }
        line.seek(from);
        if last.count > last.failed {
            return Ok(());
        }
        if last.answered == 0 {
            std::thread::sleep(NEWS);
        }
        // What there was no time for says nothing of the service.
        let kinds = last.errors.iter().map(|(kind, _)| &**kind);
        let kinds: Vec<&str> = kinds.filter(|kind| *kind != UNSENT).collect();
        let failed = match kinds.as_slice() {
            [] => "no call was made".to_owned(),
            kinds => format!("every call failed: {}", kinds.join("; ")),
        };
        Err(match self.all_alive() {
            Ok(()) => failed,
            Err(why) => format!("{why}; {failed}"),
        })
    }

    /// A block that counts for nothing yet.
    fn blocked(
        &self,
        line: &Line,
        span: Duration,
        slack: &mut Duration,
    ) -> Result<Blocked, String> {
        // Who ended it says why; see `manned`.
        line.block(span, slack)
            .ok_or_else(|| "its callers have ended".to_owned())
    }

    /// A service that dies makes figures of what nobody answers.
    fn all_alive(&self) -> Result<(), String> {
        let died = dead(self.host).find(|(name, _)| !self.gone.contains(name));
        died.map_or(Ok(()), |(name, how)| {
            Err(format!(
                "{name} did not live to the end of the bench: it {how}"
            ))
        })
    }

    /// What the generator makes of calls that do nothing.
    pub(super) fn idling(&self, callers: usize) -> Result<Option<Idling>, String> {
        let line = Line::new(Shape::Closed { callers });
        let caller = || -> Box<dyn FnMut() -> Done> { Box::new(|| Done::Ok) };
        let lines = [&line];
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| workload::man(&line, callers, &caller));
            let closing = Closing(&lines);
            let before = cost::own().cpu;
            let mut slack = Duration::ZERO;
            let blocked = line.block(IDLING, &mut slack);
            let cpu = cost::own().cpu.saturating_sub(before);
            drop(closing);
            if let Ok(Err(e)) = thread.join() {
                return Err(no_thread(&e));
            }
            let calls = blocked.filter(|b| b.summary.count > 0);
            Ok(calls.map(|b| Idling {
                rate: b.summary.rate,
                cpu_us: cpu.as_secs_f64() * 1e6 / b.summary.count as f64,
            }))
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
        line: &Line,
        base: bool,
        start: Instant,
        slack: &mut Duration,
    ) -> Result<Block, String> {
        self.take_way(subject, base);
        let (_, span) = subject.cut();
        let (own, services) = (cost::own(), self.services());
        let began = start.elapsed();
        let Blocked { summary, overrun } = self.blocked(line, span, slack)?;
        self.all_alive()?;
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
            unanswered: summary.count - summary.unsent - summary.answered,
            overrun,
            overloaded: summary.overloaded,
            own: spent(cost::own(), own),
            services,
        })
    }

    /// Makes calls whenever it is time on the line, until it is over.
    fn call_on(&self, subject: &Subject, line: &Line) -> Result<(), String> {
        let callers = subject.callers();
        let ended = match &subject.drive {
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
                            Err(e) => refused(&e),
                        }
                    })
                };
                workload::man(line, callers, &caller).map_err(|e| no_thread(&e))
            }
            Drive::Workload { name, .. } => {
                let host: Arc<dyn Host> = self.host.clone();
                self.spec
                    .run_workload(name, (line, callers), host, self.transcript)
                    .map_err(|reason| reason.message)
            }
        };
        // Whoever conducts must not wait for callers that are not there.
        line.stop();
        ended
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

fn no_thread(e: &std::io::Error) -> String {
    format!("no thread could be started: {e}")
}

/// What came of a probe that failed. Protocols tell it in words, some with the code first.
fn refused(why: &str) -> Done {
    let kind: String = why.chars().take(KIND).collect();
    let code = why.split(|c: char| !c.is_ascii_alphanumeric()).next();
    let silent = code.is_some_and(is_silence)
        || ["os error ", "no answer", "no reply"]
            .iter()
            .any(|w| why.contains(w));
    match silent {
        true => Done::Unanswered(kind),
        false => Done::Failed(kind),
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
    fn a_probe_that_nobody_answers() {
        for why in [
            "ECONNREFUSED",
            "ECONNRESET: reset",
            "Connection refused (os error 111)",
            "EOF",
        ] {
            assert!(matches!(refused(why), Done::Unanswered(_)), "{why}");
        }
        for why in [
            "GET / answered 500 Internal Server Error",
            "57P03: starting up",
        ] {
            assert!(matches!(refused(why), Done::Failed(_)), "{why}");
        }
    }

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
