//! Names that the language has and this version does not. They are bound to nothing, so that Starlark refuses them when a spec is
//! loaded, in the bodies of functions too, and at their place.

/// What stands behind each name.
const NAMES: &[(&str, &str)] = &[
    (
        "partition_start",
        "a network partition between two services",
    ),
    ("partition_stop", "a network partition between two services"),
    ("monitor", "a check that runs as events arrive"),
    ("eventually", "a temporal property"),
    ("always", "a temporal property"),
    ("await_event", "waiting for an event"),
    ("await_stable", "waiting until nothing happens"),
    ("match", "matchers of events"),
    ("choose", "a choice among options"),
    ("assume", "a precondition of a run"),
    ("short", "a partial read or write"),
    ("torn", "a write of which a prefix lands"),
    ("lie", "an fsync that does not sync"),
];

/// What `name` would be, and what to do without it; `None` if it is no such name.
pub fn instead(name: &str) -> Option<String> {
    let (_, what) = NAMES.iter().find(|(n, _)| *n == name)?;
    let instead = match name {
        "eventually" | "await_event" => "assert_eventually(..., within=\"2s\") waits for an event",
        "always" | "monitor" | "await_stable" => {
            "assert_never(..., within=\"2s\") fails when an event comes"
        }
        "match" => "events(type=, service=, where=fn) finds events",
        "partition_start" => "fault_start(partition(a, b)) does it",
        "partition_stop" => "fault_stop(handle) ends what fault_start(partition(a, b)) returned",
        "assume" => "halt(reason) ends a test as neither passed nor failed",
        _ => "",
    };
    Some(match instead {
        "" => format!("it would be {what}"),
        instead => format!("it would be {what}; {instead}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_both_here_and_not() {
        for (name, _) in NAMES {
            assert!(
                crate::spec::builtins::globals()
                    .names()
                    .all(|n| n.as_str() != *name),
                "{name}"
            );
            assert!(instead(name).is_some());
        }
        assert_eq!(instead("service"), None);
    }
}
