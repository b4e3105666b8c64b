//! What a bench drives, and how.

use std::collections::BTreeSet;
use std::time::Duration;

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
/// How long it may take to start a service anew for one block.
const RESTART: Duration = Duration::from_secs(30);
/// How long everything beside the blocks of one subject may take: connecting, and calls that were begun at a block's end.
const GRACE: Duration = Duration::from_secs(60);

/// All that a worker must know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What is driven, one after the other.
    pub subjects: Vec<Subject>,
    /// Rounds of [`BLOCKS_PER_ROUND`] blocks; see [`Plan::of_subject`].
    pub rounds: u32,
    /// The length of a block.
    pub block: Duration,
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

    /// Its name, with the state that it is about.
    pub fn label(&self) -> String {
        match &self.state {
            None => self.name.clone(),
            Some(state) => format!("{} {}", self.name, state.state.name()),
        }
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
        let longest = workloads.iter().filter_map(|w| w.duration).max();
        let duration = wish.duration.or(longest).unwrap_or(DURATION);
        let rounds = duration.as_nanos() / (SHORTEST_BLOCK * BLOCKS_PER_ROUND).as_nanos();
        let rounds = u32::try_from(rounds)
            .unwrap_or(ROUNDS)
            .clamp(LEAST_ROUNDS, ROUNDS);
        let plan = Plan {
            subjects,
            rounds,
            block: (duration / (rounds * BLOCKS_PER_ROUND)).max(SHORTEST_BLOCK),
            trial: wish.trial,
        };
        Ok((plan, skipped))
    }

    /// Blocks per subject, the warm-up not counted.
    pub fn blocks(&self) -> u32 {
        self.rounds * BLOCKS_PER_ROUND
    }

    /// Rounds of a subject, and how long a block of it is: few and long where the service has to be started anew for each.
    pub fn of_subject(&self, subject: &Subject) -> (u32, Duration) {
        match subject.state {
            None => (self.rounds, self.block),
            Some(_) => (LEAST_ROUNDS, self.block * self.rounds / LEAST_ROUNDS),
        }
    }

    /// How long the blocks of all subjects take.
    pub fn duration(&self) -> Duration {
        let each = self.block * self.blocks();
        self.groups()
            .map(|group| match group[0].state {
                None => each,
                // The native blocks are common to all of them.
                Some(_) => each / 2 * (u32::try_from(group.len()).unwrap_or(u32::MAX) + 1),
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

    /// The test that the bench is to the run.
    pub fn decl(&self) -> TestDecl {
        let beside = |subject: &Subject| match subject.state {
            None => GRACE + self.block * 2,
            Some(_) => GRACE + RESTART * (LEAST_ROUNDS * BLOCKS_PER_ROUND),
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
    }
}
