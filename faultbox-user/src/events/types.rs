//! What types of events there are, and which fields each can have: a filter on any other can never select anything.

use faultbox_contract::{Kind, ProtocolDoc};

/// What every event has.
pub const EVERY: &[&str] = &["seq", "time", "type", "service"];

/// The types of the events that only the kernel's tracer can see.
pub const FROM_KERNEL: &[&str] = &[
    "call",
    "open",
    "fork",
    "exec",
    "exit",
    "connect",
    "disconnect",
];

/// The types of those that are about system calls.
pub const SYSTEM_CALLS: &[&str] = &["call", "open"];

/// What an event may lack: it happened, and nobody can say more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// To which file.
    Path,
    /// With which errno it failed.
    Errno,
}

impl Lack {
    /// What this event lacks.
    pub fn of(event: &super::Event) -> Option<Lack> {
        let has = |field| event.fields.contains_key(field);
        let failed = || event.fields.get("ok").and_then(serde_json::Value::as_bool) == Some(false);
        match event.kind.as_str() {
            "open" | "exec" if !has("path") => Some(Lack::Path),
            "connect" if failed() && !has("errno") => Some(Lack::Errno),
            _ => None,
        }
    }

    /// The fields that it would have to tell.
    pub fn fields(self) -> &'static [&'static str] {
        match self {
            Lack::Path => &["path", "resolved"],
            Lack::Errno => &["errno"],
        }
    }
}

/// Every type with the fields that do not depend on a protocol.
const TYPES: &[(&str, &[&str])] = &[
    ("service_started", &["pid"]),
    ("service_ready", &["duration_ms"]),
    ("service_stopped", &["killed", "duration_ms"]),
    ("service_exited", &["status", "signal"]),
    ("service_daemonized", &["status", "signal"]),
    ("service_paused", &["pid"]),
    ("service_resumed", &["pid"]),
    ("service_killed", &["pid"]),
    ("service_restarted", &["pid"]),
    ("fault_armed", &["fault", "targets", "armed_us"]),
    ("fault_lifted", &["fault", "hits"]),
    ("supervisor_failed", &["error"]),
    (
        "syscall",
        &[
            "syscall",
            "fault",
            "action",
            "errno",
            "delay_ms",
            "label",
            "pid",
            "tid",
            "fd_class",
            "path",
            "peer",
            "mechanism",
            "local_port",
        ],
    ),
    ("connection_reset", &["fault", "pid", "fd", "peer"]),
    (
        "proxy",
        &["interface", "fault", "rule", "action", "delay_ms", "label"],
    ),
    ("proxy_accept_failed", &["interface", "upstream", "error"]),
    ("proxy_degraded", &["interface", "side", "peer", "reason"]),
    ("proxy_dial_failed", &["interface", "upstream", "error"]),
    ("proxy_failed", &["interface", "upstream", "error"]),
    ("proxy_flow_evicted", &["interface", "upstream", "error"]),
    ("proxy_overflow", &["interface", "error"]),
    ("proxy_tls_binding", &["interface", "peer", "error", "help"]),
    (
        "proxy_tls_failed",
        &["interface", "side", "peer", "server_name", "error"],
    ),
    (
        "proxy_tls_untrusted",
        &["interface", "upstream", "error", "help"],
    ),
    (
        "proxy_unanswered",
        &["interface", "fault", "rule", "action", "reason", "label"],
    ),
    ("mock_call", &["interface", "route", "error", "text"]),
    (
        "step",
        &["interface", "method", "ok", "status", "code", "duration_ms"],
    ),
    ("stdout", &["line"]),
    ("stderr", &["line"]),
    (
        "call",
        &[
            "syscall",
            "returned",
            "errno",
            "duration_us",
            "pid",
            "tid",
            "comm",
        ],
    ),
    (
        "open",
        &[
            "path",
            "resolved",
            "written",
            "returned",
            "errno",
            "duration_us",
            "pid",
            "tid",
            "comm",
        ],
    ),
    ("fork", &["child", "pid", "tid", "comm"]),
    ("exec", &["path", "pid", "tid", "comm"]),
    ("exit", &["code", "signal", "pid", "tid", "comm"]),
    (
        "connect",
        &[
            "ok",
            "peer",
            "interface",
            "via",
            "proto",
            "local_port",
            "errno",
            "injected",
            "pid",
            "tid",
            "comm",
        ],
    ),
    (
        "disconnect",
        &[
            "peer",
            "interface",
            "via",
            "proto",
            "local_port",
            "sent_bytes",
            "received_bytes",
            "pid",
            "tid",
            "comm",
        ],
    ),
];

/// What the proxies tell of the requests on which rules have fired.
const PROXIED: &[(&str, &[&str])] = &[
    ("http", &["method", "path", "status"]),
    ("http2", WEB),
    ("grpc", WEB),
    ("postgres", SQL),
    ("mysql", SQL),
    (
        "kafka",
        &["api", "client_id", "topic", "partition", "group", "code"],
    ),
    ("redis", &["command", "args", "key", "code"]),
    ("tcp", BYTES),
    ("udp", BYTES),
    // `type` is the event's own.
    ("dns", &["name", "transport", "code"]),
];
const WEB: &[&str] = &["method", "path", "status", "code", "messages", "rst"];
const SQL: &[&str] = &["user", "database", "query", "code", "sqlstate"];
const BYTES: &[&str] = &["direction", "bytes"];

/// All types.
pub fn all() -> impl Iterator<Item = &'static str> {
    TYPES.iter().map(|(name, _)| *name)
}

/// The fields that an event of this type can have, about interfaces of these protocols, besides those that [every event](EVERY) has.
pub fn fields(kind: &str, protocols: &[&'static ProtocolDoc]) -> Vec<&'static str> {
    let own = TYPES.iter().filter(|(name, _)| *name == kind);
    let mut fields: Vec<&str> = own.flat_map(|(_, fields)| fields.iter().copied()).collect();
    for doc in protocols {
        match kind {
            "step" => fields.extend(arguments(doc)),
            "proxy" => {
                let told = PROXIED.iter().filter(|(name, _)| *name == doc.name);
                fields.extend(told.flat_map(|(_, fields)| fields.iter().copied()));
            }
            "mock_call" => fields.extend(faultbox_mocks::call_fields(doc.name)),
            _ => {}
        }
    }
    fields.sort_unstable();
    fields.dedup();
    fields
}

/// The arguments of steps that an event can show: what is checked into something else than text, a number or a truth value is left out.
fn arguments(doc: &'static ProtocolDoc) -> impl Iterator<Item = &'static str> {
    let params = doc.steps.iter().flat_map(|step| step.params);
    params
        .filter(|p| !matches!(p.kind, Kind::Duration | Kind::Rate))
        .map(|p| p.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_protocol_has_its_fields() {
        for protocol in faultbox_fleet::all() {
            let name = protocol.doc().name;
            assert!(PROXIED.iter().any(|(n, _)| *n == name), "{name}");
        }
        for name in faultbox_mocks::PROTOCOLS {
            assert!(!faultbox_mocks::call_fields(name).is_empty(), "{name}");
        }
    }

    #[test]
    fn every_type_is_there_once() {
        let names: Vec<&str> = all().collect();
        for (i, name) in names.iter().enumerate() {
            assert!(!names[..i].contains(name), "{name}");
        }
        assert!(FROM_KERNEL.iter().all(|t| names.contains(t)));
    }

    #[test]
    fn fields_are_those_of_the_type_and_the_protocol() {
        let docs: Vec<_> = faultbox_fleet::all().iter().map(|p| p.doc()).collect();
        let http = docs.iter().filter(|d| d.name == "http").copied();
        let http: Vec<_> = http.collect();
        let has = |kind: &str, docs: &[&'static ProtocolDoc], name: &str| {
            fields(kind, docs).contains(&name)
        };
        assert!(has("step", &http, "path") && !has("step", &http, "sql"));
        assert!(has("step", &docs, "sql") && !has("step", &docs, "line"));
        assert!(has("mock_call", &http, "json") && !has("mock_call", &http, "key"));
        assert!(has("proxy", &http, "status") && !has("proxy", &http, "query"));
        assert!(has("stdout", &[], "line") && !has("stdout", &docs, "path"));
    }
}
