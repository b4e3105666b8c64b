//! From a target, rules and keywords to a [`FaultSet`].

use std::sync::Arc;

use faultbox_contract::{Arg, CheckedRule, RuleSpec};
use starlark::codemap::FileSpan;
use starlark::values::Value;

use super::context::World;
use super::convert::kind_of;
use super::locate::pos_of;
use super::problem::{Place, Problem};
use super::syscalls;
use super::values::action::{Action, Level};
use super::values::assumption::Assumption;
use super::values::interface::InterfaceValue;
use super::values::service::ServiceValue;
use crate::plan::{FaultPart, FaultSet, Launch};

/// What a fault is aimed at.
#[derive(Debug, Clone, Copy)]
pub enum Target<'v> {
    /// The syscall level.
    Service(&'v ServiceValue),
    /// The protocol level.
    Interface(&'v InterfaceValue),
}

impl<'v> Target<'v> {
    /// A service or an interface of one.
    ///
    /// # Errors
    /// Anything else; an interface that belongs to no service.
    pub fn read(place: Place, value: Value<'v>) -> Result<Target<'v>, Problem> {
        if let Some(service) = ServiceValue::from_value(value) {
            return Ok(Target::Service(service));
        }
        if let Some(interface) = InterfaceValue::from_value(value) {
            if interface.service.is_none() {
                return Err(Problem::new(
                    place,
                    format!(
                        "interface `{}` belongs to no service yet, so no fault can be put on it",
                        interface.decl.name
                    ),
                )
                .help("target the service's interface: `svc.<name>`"));
            }
            return Ok(Target::Interface(interface));
        }
        Err(Problem::new(
            place,
            format!(
                "a fault's target is a service or an interface, not {}",
                kind_of(value)
            ),
        )
        .help("a service (db) takes syscall faults, an interface (db.pg) takes rules"))
    }
}

/// The parts of one fault.
///
/// # Errors
/// Rules on a service, syscall keywords on an interface or a remote service, and whatever the tables refuse.
pub fn parts<'v>(
    world: &World,
    origin: &str,
    target: Target<'v>,
    rules: &[(Place, Value<'v>)],
    keywords: &[(String, Value<'v>)],
) -> Result<Vec<FaultPart>, Problem> {
    match target {
        Target::Service(service) => {
            if let Some((place, rule)) = rules.first() {
                let name = &service.decl.name;
                let example = service
                    .decl
                    .interfaces
                    .first()
                    .map_or("svc.<interface>".to_owned(), |i| {
                        format!("{name}.{}", i.name)
                    });
                let word = Action::from_value(*rule).map_or("rule", |a| a.name);
                return Err(Problem::new(
                    place.clone(),
                    format!("a protocol rule (`{word}`) needs an interface as its target, and {name} is a service"),
                )
                .help(format!("target an interface: `{example}`")));
            }
            syscall_parts(origin, service, keywords)
        }
        Target::Interface(interface) => {
            if let Some((key, _)) = keywords.first() {
                let service = interface.service.as_deref().unwrap_or_default();
                return Err(Problem::keyword(
                    key,
                    format!(
                        "a syscall fault (`{key}=`) needs a service as its target, and {} is an interface",
                        interface.path()
                    ),
                )
                .help(format!(
                    "target the service `{service}`, or give protocol rules: rules=[error(...)]"
                )));
            }
            rules
                .iter()
                .map(|(place, rule)| protocol_part(world, origin, interface, place, *rule))
                .collect()
        }
    }
}

fn syscall_parts(
    origin: &str,
    service: &ServiceValue,
    keywords: &[(String, Value)],
) -> Result<Vec<FaultPart>, Problem> {
    keywords
        .iter()
        .map(|(key, value)| {
            let action = Action::from_value(*value).ok_or_else(|| {
                Problem::param(
                    key,
                    format!(
                        "`{key}`: expected deny(...), delay(...) or allow(...), got {}",
                        kind_of(*value)
                    ),
                )
                .help(match value.unpack_str() {
                    Some(errno) if crate::sys::names::errno(errno).is_some() => {
                        format!("write it as {key}=deny({errno:?})")
                    }
                    _ => format!("such as {key}=deny(\"EIO\") or {key}=delay(\"500ms\")"),
                })
            })?;
            if action.level == Level::Protocol {
                return Err(Problem::param(
                    key,
                    format!("`{}` is a protocol rule, not a syscall fault", action.name),
                )
                .help("syscall keywords take deny, delay and allow; rules go into rules=[...] on an interface"));
            }
            if let Launch::Mock { .. } = service.decl.launch {
                return Err(Problem::keyword(
                    key,
                    format!(
                        "service {} is a mock, which makes no syscalls of its own to fault",
                        service.decl.name
                    ),
                )
                .help(match service.decl.interfaces.first() {
                    Some(interface) => format!(
                        "put protocol rules on its interfaces: fault({0}.{1}, error(...), run=...), or fault the service that calls it",
                        service.decl.name, interface.name
                    ),
                    None => "put protocol rules on its interfaces".to_owned(),
                }));
            }
            if service.decl.launch == Launch::Remote {
                return Err(Problem::keyword(
                    key,
                    format!(
                        "service {} is remote, so its syscalls are out of reach",
                        service.decl.name
                    ),
                )
                .help("put protocol rules on its interfaces, or run the service here with binary="));
            }
            Ok(FaultPart::Syscall {
                service: service.decl.name.clone(),
                rule: syscalls::rule(&service.decl, key, action)?,
                origin: origin.to_owned(),
            })
        })
        .collect()
}

fn protocol_part(
    world: &World,
    origin: &str,
    interface: &InterfaceValue,
    place: &Place,
    value: Value,
) -> Result<FaultPart, Problem> {
    let Some(action) = Action::from_value(value) else {
        return Err(Problem::new(
            place.clone(),
            format!(
                "a rule is error(...), response(...), delay(...), ..., not {}",
                kind_of(value)
            ),
        ));
    };
    if action.level == Level::Syscall {
        return Err(Problem::new(
            place.clone(),
            format!(
                "`{}` is a syscall fault, and {} is an interface",
                action.name,
                interface.path()
            ),
        )
        .help(format!(
            "target the service and name the syscalls: write={action}; rules on {} are {}",
            interface.doc.name,
            interface
                .doc
                .actions
                .iter()
                .map(|a| a.name)
                .collect::<Vec<_>>()
                .join(", ")
        )));
    }
    if interface.decl.proxy_addr.is_none() {
        return Err(Problem::new(
            place.clone(),
            format!(
                "{} has no proxy, so no rule can act on it",
                interface.path()
            ),
        )
        .help("take proxy=False off the interface"));
    }
    let rule = check_rule(world, interface, action).map_err(|p| p.at(&action.site))?;
    Ok(FaultPart::Protocol {
        service: interface.service.clone().unwrap_or_default(),
        interface: interface.decl.name.clone(),
        rule: Arc::new(rule),
        origin: origin.to_owned(),
    })
}

fn check_rule(
    world: &World,
    interface: &InterfaceValue,
    action: &Action,
) -> Result<CheckedRule, Problem> {
    let args: Vec<(String, Arg)> = action
        .args
        .iter()
        .map(|a| {
            // `delay("2s", path=...)`: the positional duration is what the tables call `delay`.
            let name = match a.name.as_str() {
                "duration" if action.name == "delay" => "delay",
                name => name,
            };
            (name.to_owned(), a.value.clone())
        })
        .collect();
    let unknown = |message: &str| message.contains("has no keyword");
    let refuse = |e: faultbox_contract::ArgError| {
        let place = match e.arg {
            None => Place::Call,
            Some(arg) if unknown(&e.message) => Place::Keyword(arg),
            Some(arg) if arg == "delay" && action.args.iter().all(|a| a.name != "delay") => {
                Place::Positional(0)
            }
            Some(arg) => Place::Param(arg),
        };
        let label = if unknown(&e.message) {
            "unknown keyword"
        } else {
            ""
        };
        Problem {
            help: e.hint,
            ..Problem::new(place, e.message).label(label)
        }
    };
    let rule = interface
        .doc
        .check_rule(&RuleSpec {
            action: action.name.to_owned(),
            args,
        })
        .map_err(refuse)?;
    if let Some(source) = &rule.source
        && world.service(source).is_none()
    {
        let services: Vec<String> = world
            .declared()
            .services
            .iter()
            .map(|s| s.decl.name.clone())
            .collect();
        let names: Vec<&str> = services.iter().map(String::as_str).collect();
        return Err(
            Problem::param("source", format!("there is no service `{source}`"))
                .help(super::problem::one_of(source, &names)),
        );
    }
    // What the tables cannot say, the protocol does: an unknown SQLSTATE, keywords that exclude each other.
    if let Some(protocol) = world.protocol(interface.doc.name) {
        protocol.compile(&rule).map_err(refuse)?;
    }
    Ok(rule)
}

/// A fault from the arguments of `fault()`, `fault_start()` and `fault_all()`: an assumption, or a target with what is to happen to it.
///
/// # Errors
/// As [`parts`]; an assumption together with more; nothing to do.
pub fn direct<'v>(
    world: &World,
    site: &FileSpan,
    place: Place,
    target: Value<'v>,
    rules: &[(Place, Value<'v>)],
    keywords: &[(String, Value<'v>)],
) -> Result<Arc<FaultSet>, Problem> {
    if let Some(assumption) = Assumption::from_value(target) {
        if let Some((key, _)) = keywords.first() {
            return Err(Problem::keyword(
                key,
                format!("{assumption} says already what happens, so `{key}=` cannot be added"),
            )
            .help("compose two with fault_assumption(..., faults=[a, b]), or apply both"));
        }
        if let Some((place, _)) = rules.first() {
            return Err(Problem::new(
                place.clone(),
                format!("{assumption} says already what happens, so no rule can be added"),
            )
            .help("compose two with fault_assumption(..., faults=[a, b]), or apply both"));
        }
        return Ok(assumption.fault.clone());
    }
    let aim = Target::read(place, target)?;
    let (path, words) = match aim {
        Target::Service(s) => (
            s.decl.name.clone(),
            keywords.iter().map(|(k, _)| k.clone()).collect::<Vec<_>>(),
        ),
        Target::Interface(i) => (
            i.path(),
            rules
                .iter()
                .filter_map(|(_, r)| Action::from_value(*r).map(|a| a.name.to_owned()))
                .collect(),
        ),
    };
    if rules.is_empty() && keywords.is_empty() {
        return Err(
            Problem::call("this fault says nothing about what happens").help(match aim {
                Target::Service(_) => "add a syscall keyword: write=deny(\"EIO\")",
                Target::Interface(_) => "add a rule: error(...), response(...), delay(...)",
            }),
        );
    }
    let name = format!("{path}.{}", words.join("+"));
    let parts = parts(world, &name, aim, rules, keywords)?;
    Ok(Arc::new(FaultSet {
        name,
        parts,
        description: String::new(),
        pos: pos_of(site),
    }))
}

/// What a fault touches: services, and "service.interface".
pub fn targets(fault: &FaultSet) -> std::collections::BTreeSet<String> {
    fault
        .parts
        .iter()
        .flat_map(|p| match p {
            FaultPart::Syscall { service, .. } => vec![service.clone()],
            FaultPart::Cut { rule, .. } => vec![rule.ends.0.clone(), rule.ends.1.clone()],
            FaultPart::Protocol {
                service, interface, ..
            } => vec![format!("{service}.{interface}")],
        })
        .collect()
}
