//! What filters of events may name: a type, a service or a field that does not exist is a mistake, not an event that did not happen.

use std::sync::Arc;

use faultbox_contract::{Dialect, Glob, ProtocolDoc};

use super::mock_calls;
use crate::events::types;
use crate::plan::{Launch, ServiceDecl};
use crate::spec::context::World;
use crate::spec::problem::{Problem, one_of};

/// The types of events that `type=` selects.
///
/// # Errors
/// It selects none.
pub(super) fn types(kind: &str) -> Result<Vec<&'static str>, Problem> {
    let glob = Glob::new(kind, Dialect::Text)
        .map_err(|e| Problem::param("type", format!("`type`: {e}")))?;
    let selected: Vec<&str> = types::all().filter(|t| glob.matches(t)).collect();
    if selected.is_empty() {
        let all: Vec<&str> = types::all().collect();
        return Err(
            Problem::param("type", format!("there is no event of type `{kind}`"))
                .help(one_of(kind, &all)),
        );
    }
    Ok(selected)
}

/// The services that `service=` selects.
///
/// # Errors
/// The spec has none such.
pub(super) fn services(world: &World, text: &str) -> Result<Vec<Arc<ServiceDecl>>, Problem> {
    let service = Glob::new(text, Dialect::Text)
        .map_err(|e| Problem::param("service", format!("`service`: {e}")))?;
    let declared = world.declared();
    let selected: Vec<_> = declared
        .services
        .iter()
        .filter(|s| service.matches(&s.decl.name))
        .map(|s| s.decl.clone())
        .collect();
    if selected.is_empty() {
        let all = declared.services.iter().map(|s| s.decl.name.as_str());
        return Err(
            Problem::param("service", format!("there is no service `{text}`"))
                .help(one_of(text, &all.collect::<Vec<_>>())),
        );
    }
    Ok(selected)
}

/// Checks that somebody sees what is asked for, if that is only what services print.
///
/// # Errors
/// No service that is meant has such a stream observed.
pub(super) fn check_streams(
    types: &[&str],
    services: &[Arc<ServiceDecl>],
    named: Option<&str>,
) -> Result<(), Problem> {
    let printed = |t: &&str| matches!(*t, "stdout" | "stderr");
    let seen = services
        .iter()
        .any(|s| s.observe.iter().any(|o| types.contains(&o.as_str())));
    if seen || !types.iter().all(printed) {
        return Ok(());
    }
    let streams: Vec<String> = types.iter().map(|t| format!("\"{t}\"")).collect();
    let whose = match named {
        Some(name) => format!("of service `{name}`"),
        None => "of any service".to_owned(),
    };
    Err(Problem::param(
        "type",
        format!("nobody observes `{}` {whose}", types.join("` or `")),
    )
    .help(format!(
        "say observe=[{}] where the service is declared: its lines become events then",
        streams.join(", ")
    )))
}

/// The fields that events of these types can have, about these services or any.
pub(super) fn fields(
    world: &World,
    types: &[&str],
    named: Option<&[Arc<ServiceDecl>]>,
) -> Vec<&'static str> {
    let spoken = |kind: &str| -> Vec<&'static ProtocolDoc> {
        let Some(services) = named else {
            return world.protocols().map(|p| p.doc()).collect();
        };
        let meant = services
            .iter()
            .filter(|s| kind != mock_calls::KIND || is_mock(s));
        let interfaces = meant.flat_map(|s| &s.interfaces);
        interfaces
            .filter_map(|i| Some(world.protocol(i.protocol)?.doc()))
            .collect()
    };
    types
        .iter()
        .flat_map(|kind| types::fields(kind, &spoken(kind)))
        .collect()
}

/// Checks the name of a field: events can have it.
///
/// # Errors
/// No event that is meant can; `what` says which they are.
pub(super) fn check_field(name: &str, fields: &[&'static str], what: &str) -> Result<(), Problem> {
    let mut known = types::EVERY.to_vec();
    known.extend(fields);
    known.sort_unstable();
    known.dedup();
    match known.contains(&name) {
        true => Ok(()),
        false => Err(
            Problem::param(name, format!("no {what} has a field `{name}`"))
                .help(one_of(name, &known)),
        ),
    }
}

/// Is it a mock?
pub(super) fn is_mock(service: &ServiceDecl) -> bool {
    matches!(service.launch, Launch::Mock { .. })
}
