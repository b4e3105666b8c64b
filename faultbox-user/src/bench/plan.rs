//! What a bench drives, and how.

use std::collections::BTreeSet;
use std::time::Duration;

use faultbox_contract::rule::{nearest, nearest_hint};
use serde::{Deserialize, Serialize};

use super::stats::LEAST_PAIRS;
use crate::plan::{Launch, SpecPos, TestDecl, TestKind};
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
    /// Instead of the proxy, which all calls then go around: what is in force on one of the sides.
    pub armed: Option<Armed>,
}

/// A fault on a service's system calls that traps them and never fires.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Armed {
    /// The service.
    pub service: String,
    /// A family of system calls, or one: "write".
    pub calls: String,
}

impl Subject {
    /// What the two sides are called: without and with what is measured.
    pub fn sides(&self) -> [&'static str; 2] {
        match self.armed {
            None => ["direct", "mediated"],
            Some(_) => ["unarmed", "armed"],
        }
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
    /// System calls (a family, or one) that a fault is armed on, to see what that costs.
    pub armed: Option<String>,
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
                if interface.proxy_addr.is_none() {
                    skip("it has no proxy, so nothing is added to it".to_owned());
                    continue;
                }
                for workload in &own {
                    if wanted(&path) || wanted(&workload.name) {
                        subjects.push(Subject {
                            name: path.clone(),
                            what: format!("workload {}", workload.name),
                            protocol: interface.protocol.to_owned(),
                            drive: Drive::Workload {
                                name: workload.name.clone(),
                                target: workload.target.clone(),
                            },
                            shape: wish.shape.unwrap_or(workload.shape),
                            armed: None,
                        });
                    }
                }
                if !own.is_empty() {
                    continue;
                }
                match probe(interface.protocol) {
                    Some(what) if wanted(&path) => subjects.push(Subject {
                        name: path.clone(),
                        what: what.to_owned(),
                        protocol: interface.protocol.to_owned(),
                        drive: Drive::Probe {
                            service: service.name.clone(),
                            interface: interface.name.clone(),
                        },
                        shape: wish.shape.unwrap_or(Shape::Closed { callers: 1 }),
                        armed: None,
                    }),
                    Some(_) => {}
                    None => skip(format!(
                        "{} has no request that every server answers; declare one: workload(\"{}\", fn, connections=1, target={path})",
                        interface.protocol, interface.name
                    )),
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
                    armed: None,
                });
            }
        }
        if let Some(calls) = &wish.armed {
            subjects = with_armed(spec, subjects, calls)?;
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
        match subject.armed {
            None => (self.rounds, self.block),
            Some(_) => (LEAST_ROUNDS, self.block * self.rounds / LEAST_ROUNDS),
        }
    }

    /// How long the blocks of all subjects take.
    pub fn duration(&self) -> Duration {
        self.block * self.blocks() * u32::try_from(self.subjects.len()).unwrap_or(u32::MAX)
    }

    /// The test that the bench is to the run.
    pub fn decl(&self) -> TestDecl {
        let beside = |subject: &Subject| match subject.armed {
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

/// The same with a subject behind each whose service's system calls can be trapped.
fn with_armed(
    spec: &LoadedSpec,
    subjects: Vec<Subject>,
    calls: &str,
) -> Result<Vec<Subject>, Unknown> {
    if system_calls(calls).is_empty() {
        let families: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
        return Err(Unknown {
            message: format!(
                "--armed {calls}: there is no system call of this name, and no family"
            ),
            help: nearest_hint(calls, &families),
        });
    }
    let mut all = vec![];
    for subject in subjects {
        let service = match &subject.drive {
            Drive::Probe { service, .. } => Some(service),
            Drive::Workload { target, .. } => target.as_ref().map(|(service, _)| service),
        };
        let local = service
            .and_then(|name| spec.topology().service(name))
            .filter(|s| matches!(s.launch, Launch::Binary { .. }));
        let armed = local.map(|service| Subject {
            what: format!("{}, {calls} trapped and not faulted", subject.what),
            armed: Some(Armed {
                service: service.name.clone(),
                calls: calls.to_owned(),
            }),
            ..subject.clone()
        });
        all.push(subject);
        all.extend(armed);
    }
    Ok(all)
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
