//! What a bench drives, and how.

use std::collections::BTreeSet;
use std::time::Duration;

use faultbox_contract::duration;
use faultbox_contract::rule::{nearest, nearest_hint};
use serde::{Deserialize, Serialize};

use super::stats::LEAST_PAIRS;
use crate::plan::{Launch, ServiceDecl, SpecPos, TestDecl, TestKind};
use crate::spec::{FAMILIES, LoadedSpec, system_calls};
use crate::workload::Shape;

/// The test that a bench is to the run that carries it out. No test of a spec can have this name.
const TEST: &str = "bench";
/// Pairs of blocks that `--duration` is cut into, as far as it is long enough.
const ROUNDS: u32 = 25;
/// Rounds below which nothing could be concluded: each has one pair of blocks without the proxy, which tell the noise.
const LEAST_ROUNDS: u32 = LEAST_PAIRS as u32;
/// The shortest block: connections and caches must have come to rest in most of it.
const SHORTEST_BLOCK: Duration = Duration::from_millis(50);
/// Blocks in a round: without, with, with, without; and the next round the other way round.
pub const BLOCKS_PER_ROUND: u32 = 4;
/// How much longer than planned the blocks of a side may take in all while calls stall, however short they are.
const LEAST_SLACK: Duration = Duration::from_secs(5);
/// How long it may take to start a service anew for one block.
const RESTART: Duration = Duration::from_secs(30);
/// How long everything beside the blocks of one subject may take: connecting, and calls that were begun at a block's end.
const GRACE: Duration = Duration::from_secs(60);

/// All that a worker must know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What is driven, one after the other.
    pub subjects: Vec<Subject>,
    /// What the bench is tried out with.
    pub trial: Option<Trial>,
}

/// One thing that is measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// "db.pg", or a workload's name.
    pub name: String,
    /// What a call does: "SELECT 1", or the workload that it is.
    pub what: String,
    /// The protocol; empty for a workload over several interfaces.
    pub protocol: String,
    /// What is called.
    pub drive: Drive,
    /// Who calls, and when.
    pub shape: Shape,
    /// For how long it should be driven.
    pub asked: Duration,
    /// Rounds of [`BLOCKS_PER_ROUND`] blocks; see [`Subject::cut`].
    pub rounds: u32,
    /// The length of a block.
    pub block: Duration,
    /// Instead of the proxy, which all calls then go around: the state that the service is in on one of the sides. Subjects that differ
    /// in nothing else stand beside each other and are measured in the same rounds.
    pub state: Option<InState>,
}

/// A service in a state other than its native one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InState {
    /// The service.
    pub service: String,
    /// What a call does, whatever the state.
    pub request: String,
    /// What is done to it.
    pub state: State,
    /// The system calls that are trapped in it.
    pub calls: Calls,
}

/// Which system calls are trapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Calls {
    /// A family, or one, as the command line says.
    Asked(String),
    /// Those that the spec's faults on the service name.
    Declared(Vec<String>),
    /// The family that the service is seen to call most.
    Seen,
}

/// What is done to a service's system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The kernel counts them.
    Traced,
    /// They are trapped by a rule that matches none of them.
    Unmatched,
    /// They are trapped by a rule that fires on all of them and changes nothing.
    Armed,
}

impl State {
    /// All of them, in the order of what they cost.
    pub const ALL: [State; 3] = [State::Traced, State::Unmatched, State::Armed];

    /// Its name in every report.
    pub fn name(self) -> &'static str {
        match self {
            State::Traced => "traced",
            State::Unmatched => "unmatched",
            State::Armed => "armed",
        }
    }
}

impl Subject {
    /// What the two sides are called: without and with what is measured.
    pub fn sides(&self) -> [&'static str; 2] {
        match &self.state {
            None => ["direct", "mediated"],
            Some(state) => ["native", state.state.name()],
        }
    }

    /// Its name, with the workload and the state that it is about: an interface may have several.
    pub fn label(&self) -> String {
        let name = match &self.drive {
            Drive::Workload {
                name,
                target: Some(_),
            } => format!("{} ({name})", self.name),
            _ => self.name.clone(),
        };
        match &self.state {
            None => name,
            Some(state) => format!("{name} {}", state.state.name()),
        }
    }

    /// Rounds, and how long a block is: few and long where the service has to be started anew for each.
    pub fn cut(&self) -> (u32, Duration) {
        match self.state {
            None => (self.rounds, self.block),
            Some(_) => (LEAST_ROUNDS, self.block * self.rounds / LEAST_ROUNDS),
        }
    }

    /// How long its blocks take.
    pub fn duration(&self) -> Duration {
        self.block * (self.rounds * BLOCKS_PER_ROUND)
    }

    /// How much longer than planned the blocks of one side may take while calls stall: as long as they are themselves.
    pub fn slack(&self) -> Duration {
        (self.duration() / 2).max(LEAST_SLACK)
    }

    /// How many callers a side needs: no more than it makes calls.
    pub fn callers(&self) -> usize {
        let most = self.shape.callers();
        match self.shape.rate() {
            Some(rate) => {
                let calls = rate * (self.duration() + self.slack()).as_secs_f64();
                most.min(calls.ceil() as usize).max(1)
            }
            None => most,
        }
    }

    /// Cuts its time into blocks, each of which has a call at least.
    ///
    /// # Errors
    /// The rate is too low for that.
    fn plan(&mut self) -> Result<(), String> {
        let fit = |block: Duration| {
            let rounds = self.asked.as_nanos() / (block * BLOCKS_PER_ROUND).as_nanos().max(1);
            let rounds = u32::try_from(rounds).unwrap_or(ROUNDS);
            rounds.clamp(LEAST_ROUNDS, ROUNDS)
        };
        let gap = self.shape.rate().map_or(0.0, |rate| 1.0 / rate);
        // A nanosecond more, so that rounding does not take the call away.
        let gap = Duration::try_from_secs_f64(gap).unwrap_or(Duration::MAX / 1000);
        let shortest = SHORTEST_BLOCK.max(gap + Duration::from_nanos(1));
        let rounds = match shortest < self.asked {
            true => fit(shortest),
            false => LEAST_ROUNDS,
        };
        let block = (self.asked / (rounds * BLOCKS_PER_ROUND)).max(SHORTEST_BLOCK);
        if block < gap {
            let least = gap * (LEAST_ROUNDS * BLOCKS_PER_ROUND);
            return Err(format!(
                "at {}, a block of {} has less than one call; ask for a higher rate, or for --duration {}s",
                self.shape,
                duration::show(block),
                least.as_secs_f64().ceil()
            ));
        }
        (self.rounds, self.block) = (rounds, block);
        Ok(())
    }

    /// Are both about states of the same service under the same calls?
    pub fn is_beside(&self, other: &Subject) -> bool {
        self.state.is_some()
            && other.state.is_some()
            && (&self.name, &self.drive) == (&other.name, &other.drive)
    }
}

/// What is called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Drive {
    /// The protocol's own question whether the server is ready.
    Probe {
        /// The service.
        service: String,
        /// Its interface.
        interface: String,
    },
    /// A function of the spec.
    Workload {
        /// The workload.
        name: String,
        /// The interface that its steps go around the proxy of, in turns; `None`: all of them.
        target: Option<(String, String)>,
    },
}

/// What a bench is tried out with: an effect whose size is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trial {
    /// Both sides go around the proxy: there is nothing to find.
    Null,
    /// The proxy delays every request by this.
    Delay(Duration),
}

impl Trial {
    /// Reads "null" or "delay=300us".
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<Trial, String> {
        match text.split_once('=') {
            None if text == "null" => Ok(Trial::Null),
            Some(("delay", span)) => {
                faultbox_contract::duration::parse_duration(span).map(Trial::Delay)
            }
            _ => Err("write null or delay=300us".into()),
        }
    }
}

impl std::fmt::Display for Trial {
    /// As [`Trial::parse`] reads it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trial::Null => f.write_str("null"),
            Trial::Delay(span) => write!(f, "delay={}", duration::show(*span)),
        }
    }
}

/// An interface that is not measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// "db.pg".
    pub name: String,
    /// Why not, and what to do about it.
    pub reason: String,
}

/// What the command line says.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Interfaces and workloads by name; none: all.
    pub names: Vec<String>,
    /// Instead of what workloads say, and the default.
    pub shape: Option<Shape>,
    /// Per subject; `None`: what its workload says, or the default.
    pub duration: Option<Duration>,
    /// Measure the states of services too, with these system calls (a family, or one) trapped; empty: those that the spec or the service suggests.
    pub syscalls: Option<String>,
    /// See [`Plan::trial`].
    pub trial: Option<Trial>,
}

/// For how long a subject is driven that does not say.
pub const DURATION: Duration = Duration::from_secs(10);

/// Something asked for that the spec does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unknown {
    /// A lower-case fragment.
    pub message: String,
    /// What there is.
    pub help: String,
}

/// What the readiness probe of a protocol asks, if it is a request at all.
pub fn probe(protocol: &str) -> Option<&'static str> {
    Some(match protocol {
        "http" | "http2" => "GET /",
        "grpc" => "health check",
        "postgres" | "mysql" => "SELECT 1",
        "redis" => "PING",
        "kafka" => "metadata",
        "dns" => "NS of the root",
        _ => return None,
    })
}

impl Plan {
    /// What of the spec is driven, and what is not.
    ///
    /// # Errors
    /// A name that the spec does not have.
    pub fn of(spec: &LoadedSpec, wish: &Wish) -> Result<(Plan, Vec<Skipped>), Unknown> {
        if let Some(calls) = wish.syscalls.as_deref().filter(|c| !c.is_empty()) {
            check_calls(calls)?;
        }
        let mut known: Vec<String> = vec![];
        let (mut subjects, mut skipped) = (vec![], vec![]);
        let workloads = spec.workloads();
        let asked = |own: Option<Duration>| wish.duration.or(own).unwrap_or(DURATION);
        let wanted = |name: &str| wish.names.is_empty() || wish.names.iter().any(|n| n == name);
        for service in &spec.topology().services {
            for interface in &service.interfaces {
                let path = format!("{}.{}", service.name, interface.name);
                known.push(path.clone());
                let own: Vec<_> = workloads
                    .iter()
                    .filter(|w| {
                        w.target
                            .as_ref()
                            .is_some_and(|(s, i)| *s == service.name && *i == interface.name)
                    })
                    .collect();
                let mut skip = |reason: String| {
                    if wanted(&path) {
                        skipped.push(Skipped {
                            name: path.clone(),
                            reason,
                        });
                    }
                };
                let mut driven = vec![];
                for workload in &own {
                    if wanted(&path) || wanted(&workload.name) {
                        driven.push(Subject {
                            name: path.clone(),
                            what: format!("workload {}", workload.name),
                            protocol: interface.protocol.to_owned(),
                            drive: Drive::Workload {
                                name: workload.name.clone(),
                                target: workload.target.clone(),
                            },
                            shape: wish.shape.unwrap_or(workload.shape),
                            asked: asked(workload.duration),
                            rounds: 0,
                            block: Duration::ZERO,
                            state: None,
                        });
                    }
                }
                match probe(interface.protocol) {
                    _ if !own.is_empty() => {}
                    Some(what) if wanted(&path) => driven.push(Subject {
                        name: path.clone(),
                        what: what.to_owned(),
                        protocol: interface.protocol.to_owned(),
                        drive: Drive::Probe {
                            service: service.name.clone(),
                            interface: interface.name.clone(),
                        },
                        shape: wish.shape.unwrap_or(Shape::Closed { callers: 1 }),
                        asked: asked(None),
                        rounds: 0,
                        block: Duration::ZERO,
                        state: None,
                    }),
                    Some(_) => {}
                    None if interface.proxy_addr.is_some() || wish.syscalls.is_some() => {
                        skip(format!(
                            "{} has no request that every server answers; declare one: workload(\"{}\", fn, connections=1, target={path})",
                            interface.protocol, interface.name
                        ));
                    }
                    None => {}
                }
                if interface.proxy_addr.is_none() {
                    skip("it has no proxy, so nothing is added to it".to_owned());
                }
                for subject in driven {
                    let states = wish
                        .syscalls
                        .as_deref()
                        .map(|calls| states(spec, service, &subject, calls));
                    if interface.proxy_addr.is_some() {
                        subjects.push(subject);
                    }
                    match states {
                        Some(Ok(states)) => subjects.extend(states),
                        Some(Err(reason)) => skipped.push(Skipped {
                            name: format!("{path} (system calls)"),
                            reason,
                        }),
                        None => {}
                    }
                }
            }
        }
        for workload in &workloads {
            known.push(workload.name.clone());
            if workload.target.is_none() && wanted(&workload.name) {
                subjects.push(Subject {
                    name: workload.name.clone(),
                    what: format!("workload {}", workload.name),
                    protocol: String::new(),
                    drive: Drive::Workload {
                        name: workload.name.clone(),
                        target: None,
                    },
                    shape: wish.shape.unwrap_or(workload.shape),
                    asked: asked(workload.duration),
                    rounds: 0,
                    block: Duration::ZERO,
                    state: None,
                });
                if wish.syscalls.is_some() {
                    skipped.push(Skipped {
                        name: format!("{} (system calls)", workload.name),
                        reason: format!(
                            "no service is its own to be put into states; name one: workload(\"{}\", …, target=service.interface)",
                            workload.name
                        ),
                    });
                }
            }
        }
        if let Some(name) = wish.names.iter().find(|n| !known.contains(n)) {
            return Err(unknown(name, &known));
        }
        let mut planned: Vec<Subject> = vec![];
        for mut subject in subjects {
            match subject.plan() {
                Ok(()) => planned.push(subject),
                Err(reason) => skipped.push(Skipped {
                    name: subject.label(),
                    reason,
                }),
            }
        }
        let plan = Plan {
            subjects: planned,
            trial: wish.trial,
        };
        Ok((plan, skipped))
    }

    /// How long the blocks of all subjects take.
    pub fn duration(&self) -> Duration {
        self.groups()
            .map(|group| match group[0].state {
                None => group[0].duration(),
                // The native blocks are common to all of them.
                Some(_) => {
                    group[0].duration() / 2 * (u32::try_from(group.len()).unwrap_or(u32::MAX) + 1)
                }
            })
            .sum()
    }

    /// Subjects that are measured in the same rounds.
    pub fn groups(&self) -> impl Iterator<Item = &[Subject]> {
        self.subjects.chunk_by(Subject::is_beside)
    }

    /// Must tracing be a thing to turn on and off?
    pub fn traces(&self) -> bool {
        let states = self.subjects.iter().filter_map(|s| s.state.as_ref());
        states.map(|s| s.state).any(|s| s == State::Traced)
    }

    /// What is measured for longer than was asked for, because less would tell nothing.
    pub fn lengthened(&self) -> Vec<String> {
        let longer = |subject: &Subject| {
            (subject.duration() > subject.asked + subject.asked / 100).then(|| {
                format!(
                    "{} is measured for {}, not {}: {} blocks of {} are the least of which anything can be concluded",
                    subject.label(),
                    duration::show(subject.duration()),
                    duration::show(subject.asked),
                    subject.rounds * BLOCKS_PER_ROUND,
                    duration::show(subject.block),
                )
            })
        };
        // The states of a service are cut from the same time.
        let plain = self.subjects.iter().filter(|s| s.state.is_none());
        plain.filter_map(longer).collect()
    }

    /// The test that the bench is to the run.
    pub fn decl(&self) -> TestDecl {
        let beside = |subject: &Subject| match subject.state {
            None => GRACE + subject.block * 2 + subject.slack() * 2,
            Some(_) => GRACE + RESTART * (LEAST_ROUNDS * BLOCKS_PER_ROUND) + subject.slack() * 2,
        };
        TestDecl {
            name: TEST.to_owned(),
            kind: TestKind::Function,
            timeout: self.duration() + self.subjects.iter().map(beside).sum::<Duration>(),
            baseline: None,
            require_faults_fire: false,
            pos: SpecPos::default(),
        }
    }
}

fn check_calls(calls: &str) -> Result<(), Unknown> {
    if !system_calls(calls).is_empty() {
        return Ok(());
    }
    let families: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
    Err(Unknown {
        message: format!("--syscalls={calls}: there is no system call of this name, and no family"),
        help: nearest_hint(calls, &families),
    })
}

/// The states of the service behind a subject, or why it has none.
fn states(
    spec: &LoadedSpec,
    service: &ServiceDecl,
    subject: &Subject,
    asked: &str,
) -> Result<Vec<Subject>, String> {
    if !matches!(service.launch, Launch::Binary { .. }) {
        return Err(format!(
            "{} is no process of a binary that is started here, so nobody can trace it or trap its calls",
            service.name
        ));
    }
    let declared = spec.faulted_syscalls(&service.name);
    let calls = match (asked, declared.is_empty()) {
        ("", true) => Calls::Seen,
        ("", false) => Calls::Declared(declared.into_iter().map(str::to_owned).collect()),
        (asked, _) => Calls::Asked(asked.to_owned()),
    };
    let of = |state: State| Subject {
        what: format!("{}, {} {}", subject.what, service.name, state.name()),
        state: Some(InState {
            service: service.name.clone(),
            request: subject.what.clone(),
            state,
            calls: calls.clone(),
        }),
        ..subject.clone()
    };
    Ok(State::ALL.map(of).into())
}

fn unknown(name: &str, known: &[String]) -> Unknown {
    let names: BTreeSet<&str> = known.iter().map(String::as_str).collect();
    let names: Vec<&str> = names.into_iter().collect();
    let list = match names.as_slice() {
        [] => "the spec has no interface and no workload".to_owned(),
        names => format!("there are {}", names.join(", ")),
    };
    if name.is_empty() {
        return Unknown {
            message: "--interface: the name is empty".to_owned(),
            help: list,
        };
    }
    Unknown {
        message: format!("--interface {name}: the spec has no interface or workload of this name"),
        help: match nearest(name, &names) {
            Some(best) => format!("did you mean {best}? {list}"),
            None => list,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trials() {
        assert_eq!(Trial::parse("null"), Ok(Trial::Null));
        let delay = Trial::Delay(Duration::from_micros(300));
        assert_eq!(Trial::parse("delay=300us"), Ok(delay));
        assert!(Trial::parse("delay").is_err() && Trial::parse("delay=3").is_err());
    }

    #[test]
    fn names_that_are_not_there() {
        let known = ["api.http".to_owned(), "db.pg".to_owned()];
        let error = unknown("db.gp", &known);
        assert_eq!(error.help, "did you mean db.pg? there are api.http, db.pg");
        assert!(unknown("x", &[]).help.contains("no interface"));
        assert!(unknown("", &known).message.ends_with("the name is empty"));
    }

    fn cut(shape: Shape, ms: u64) -> Result<(u32, u128), String> {
        let mut subject = Subject {
            shape,
            asked: Duration::from_millis(ms),
            ..crate::bench::analysis::tests::subject()
        };
        subject.plan()?;
        Ok((subject.rounds, subject.block.as_millis()))
    }

    #[test]
    fn a_block_has_a_call_at_least() {
        let rate = |rate| Shape::Open { rate, callers: 64 };
        let closed = Shape::Closed { callers: 1 };
        assert_eq!(cut(closed, 10_000), Ok((25, 100)));
        assert_eq!(cut(rate(500.0), 10_000), Ok((25, 100)));
        // Fewer and longer ones for fewer calls.
        assert_eq!(cut(rate(4.0), 10_000), Ok((9, 277)));
        assert_eq!(cut(rate(2.5), 10_000), Ok((6, 416)));
        let refused = cut(rate(0.001), 10_000).unwrap_err();
        assert!(
            refused.contains("a higher rate, or for --duration 24000s"),
            "{refused}"
        );
        assert!(cut(rate(1e-300), 10_000).is_err());
        // The least of which anything can be concluded.
        assert_eq!(cut(closed, 600), Ok((6, 50)));
    }

    #[test]
    fn what_is_measured_for_longer_is_said() {
        let planned = |ms| {
            let mut subject = Subject {
                shape: Shape::Closed { callers: 1 },
                asked: Duration::from_millis(ms),
                ..crate::bench::analysis::tests::subject()
            };
            subject.plan().unwrap();
            Plan {
                subjects: vec![subject],
                trial: None,
            }
        };
        assert_eq!(planned(10_000).lengthened(), [""; 0]);
        assert_eq!(
            planned(100).lengthened(),
            [
                "api.http is measured for 1.2s, not 100ms: 24 blocks of 50ms are the least of which anything can be concluded"
            ]
        );
    }

    #[test]
    fn labels_tell_workloads_apart() {
        let mut subject = crate::bench::analysis::tests::subject();
        assert_eq!(subject.label(), "api.http");
        subject.drive = Drive::Workload {
            name: "gets".to_owned(),
            target: Some(("api".to_owned(), "http".to_owned())),
        };
        assert_eq!(subject.label(), "api.http (gets)");
    }
}
