//! What filters of events may name: a type, a service or a field that does not exist is a mistake, not an event that did not happen.

use faultbox_contract::rule::nearest;
use faultbox_contract::{Dialect, Glob};

use crate::events::FROM_KERNEL;
use crate::spec::context::{RunState, World};
use crate::spec::problem::{Problem, one_of};

/// The types of events besides those of the kernel's tracer.
const TYPES: &[&str] = &[
    "service_started",
    "service_ready",
    "service_stopped",
    "service_exited",
    "service_daemonized",
    "service_paused",
    "service_resumed",
    "service_killed",
    "service_restarted",
    "fault_armed",
    "fault_lifted",
    "supervisor_failed",
    "syscall",
    "connection_reset",
    "proxy",
    "proxy_accept_failed",
    "proxy_degraded",
    "proxy_dial_failed",
    "proxy_failed",
    "proxy_flow_evicted",
    "proxy_overflow",
    "proxy_tls_binding",
    "proxy_tls_failed",
    "proxy_tls_untrusted",
    "mock_call",
    "step",
    "stdout",
    "stderr",
];

/// Fields of events, besides the names that protocols have for parts of requests and arguments of steps.
const FIELDS: &[&str] = &[
    "action",
    "alert",
    "api",
    "args",
    "armed_us",
    "body",
    "child",
    "client_id",
    "code",
    "comm",
    "command",
    "count",
    "delay_ms",
    "duration_ms",
    "duration_us",
    "errno",
    "error",
    "fault",
    "fd",
    "group",
    "headers",
    "hits",
    "interface",
    "json",
    "key",
    "killed",
    "label",
    "line",
    "local_port",
    "mechanism",
    "messages",
    "metadata",
    "method",
    "offset",
    "ok",
    "partition",
    "path",
    "peer",
    "pid",
    "proto",
    "query",
    "reason",
    "received_bytes",
    "returned",
    "route",
    "rule",
    "sent_bytes",
    "seq",
    "service",
    "side",
    "signal",
    "size",
    "status",
    "syscall",
    "targets",
    "text",
    "tid",
    "time",
    "topic",
    "type",
    "upstream",
    "value",
    "via",
];

/// The types of the kernel's events that `type=` selects.
///
/// # Errors
/// It selects no type at all.
pub(super) fn kernel_types(kind: &str) -> Result<Vec<&'static str>, Problem> {
    let glob = Glob::new(kind, Dialect::Text)
        .map_err(|e| Problem::param("type", format!("`type`: {e}")))?;
    let of = |types: &[&'static str]| -> Vec<&'static str> {
        types.iter().copied().filter(|t| glob.matches(t)).collect()
    };
    let from_kernel = of(FROM_KERNEL);
    if from_kernel.is_empty() && of(TYPES).is_empty() {
        let all: Vec<&str> = TYPES.iter().chain(FROM_KERNEL).copied().collect();
        return Err(
            Problem::param("type", format!("there is no event of type `{kind}`"))
                .help(one_of(kind, &all)),
        );
    }
    Ok(from_kernel)
}

/// Checks the value of `service=`.
///
/// # Errors
/// The spec has no such service.
pub(super) fn check_service(world: &World, text: &str) -> Result<(), Problem> {
    let service = Glob::new(text, Dialect::Text)
        .map_err(|e| Problem::param("service", format!("`service`: {e}")))?;
    let declared = world.declared();
    let names: Vec<&str> = declared
        .services
        .iter()
        .map(|s| s.decl.name.as_str())
        .collect();
    match names.iter().any(|name| service.matches(name)) {
        true => Ok(()),
        false => Err(
            Problem::param("service", format!("there is no service `{text}`"))
                .help(one_of(text, &names)),
        ),
    }
}

/// Checks the name of a field: it is one that events have, or have had in this test.
///
/// # Errors
/// No event has it.
pub(super) fn check_field(world: &World, run: &RunState, name: &str) -> Result<(), Problem> {
    if FIELDS.contains(&name) {
        return Ok(());
    }
    let mut known: Vec<&str> = FIELDS.to_vec();
    for protocol in world.protocols() {
        let doc = protocol.doc();
        let steps = doc.steps.iter().flat_map(|s| s.params);
        known.extend(doc.matchers.iter().chain(steps).map(|p| p.name));
    }
    let seen = |name: &str| {
        let mut events = run.host.events().since(0);
        events.any(|e| e.fields.contains_key(name))
    };
    if known.contains(&name) || seen(name) {
        return Ok(());
    }
    let help = match nearest(name, &known) {
        Some(best) => {
            format!("did you mean `{best}`? docs/language.md lists the fields of each type")
        }
        None => "docs/language.md lists the fields of each type".to_owned(),
    };
    Err(Problem::param(name, format!("no event has a field `{name}`")).help(help))
}
