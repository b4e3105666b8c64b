//! What the text of a spec tells beforehand about what its tests may do, so that what no test can ask for is not got ready.
//!
//! Comments and strings count as code: then something is got ready that nobody uses, never the other way round.

use std::collections::BTreeSet;

use super::syscalls;
use crate::events::FROM_KERNEL;

/// What the tests of a spec may do.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// Syscalls that calls in the code of tests may fault, on whatever service.
    pub(super) faulted: BTreeSet<&'static str>,
    /// The types of events out of the kernel that tests may ask for.
    pub(super) streams: BTreeSet<&'static str>,
    /// Tests may drop packets between services.
    pub(super) cuts_packets: bool,
    /// Tests may ask how often services make which system call.
    pub(super) counts_calls: bool,
}

/// The builtins that read events, and how many types each names when it names all that it wants.
pub(super) const READERS: &[(&str, usize)] = &[
    ("events", 1),
    ("assert_eventually", 1),
    ("assert_never", 1),
    ("assert_before", 2),
];

/// The builtins that drop packets.
const CUTTERS: &[&str] = &["partition", "packet_loss"];

/// What counts system calls: `svc.syscalls()`.
const COUNTERS: &[&str] = &["syscalls"];

impl Needs {
    /// Reads the texts of all files of a spec.
    pub(super) fn of(texts: &[String]) -> Needs {
        let mut needs = Needs::default();
        for text in texts {
            needs.faulted.extend(faulted(text));
            needs.streams.extend(streams(text));
            let says = |which: &[&str]| words(text).any(|(_, word)| which.contains(&word));
            needs.cuts_packets |= says(CUTTERS);
            needs.counts_calls |= says(COUNTERS);
        }
        needs
    }
}

/// Every word, and where it begins.
pub(super) fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .filter(|word| !word.is_empty())
        // A part of `text` begins where its address says.
        .map(|word| (word.as_ptr() as usize - text.as_ptr() as usize, word))
}

/// The syscalls that `key=deny(...)` and the like name anywhere in the text.
fn faulted(text: &str) -> BTreeSet<&'static str> {
    let mut calls = BTreeSet::new();
    for action in ["deny(", "delay(", "allow("] {
        for (at, _) in text.match_indices(action) {
            let before = text[..at].trim_end();
            let Some(before) = before.strip_suffix('=') else {
                continue;
            };
            let before = before.trim_end();
            let start = before
                .rfind(|c: char| !(c.is_alphanumeric() || c == '_'))
                .map_or(0, |n| n + 1);
            calls.extend(syscalls::named(&before[start..]));
        }
    }
    calls
}

/// The types of kernel events that calls in the text may ask for: all of them, as soon as one call does not name its type plainly.
fn streams(text: &str) -> BTreeSet<&'static str> {
    let mut found = BTreeSet::new();
    for (at, word) in words(text) {
        if word == "trace" {
            found.insert("call");
            continue;
        }
        let Some((_, wanted)) = READERS.iter().find(|(name, _)| *name == word) else {
            continue;
        };
        let arguments = arguments(&text[at + word.len()..]);
        let types = types(arguments);
        // The types of a reader among the arguments are not this one's.
        let nested = words(arguments).any(|(_, w)| READERS.iter().any(|(name, _)| *name == w));
        let plain = !nested
            && types.len() >= *wanted
            && !types.iter().any(|t| t.contains(['*', '?', '[', '{']));
        if !plain {
            return FROM_KERNEL.iter().copied().collect();
        }
        found.extend(FROM_KERNEL.iter().filter(|kind| types.contains(kind)));
    }
    found
}

/// The arguments of the call that begins here; nothing if it is none.
pub(super) fn arguments(rest: &str) -> &str {
    let Some(inner) = rest.trim_start().strip_prefix('(') else {
        return "";
    };
    let mut depth = 1;
    for (at, c) in inner.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &inner[..at];
        }
    }
    inner
}

/// The values of `type="..."` and `"type": "..."` among arguments.
pub(super) fn types(arguments: &str) -> Vec<&str> {
    words(arguments)
        .filter(|(_, word)| *word == "type")
        .filter_map(|(at, word)| {
            let rest =
                arguments[at + word.len()..].trim_start_matches(['"', '\'', ' ', '\n', '\t']);
            let rest = rest.strip_prefix(['=', ':'])?.trim_start();
            let quote = rest.chars().next().filter(|c| *c == '"' || *c == '\'')?;
            // `"open" if x else "exec"` and `"%s" % kind` name no type plainly.
            let (value, after) = rest[1..].split_once(quote)?;
            let after = after.trim_start();
            (after.is_empty() || after.starts_with([',', ')', '}'])).then_some(value)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_in_the_text() {
        let calls = faulted("fault(db, fsync = deny(\"EIO\"), run=f)\nx(connect=\n delay(1))");
        assert!(calls.contains("fdatasync") && calls.contains("connect"));
        assert!(!calls.contains("write"));
    }

    #[test]
    fn only_the_types_that_are_named_stream() {
        let of = |text: &str| streams(text).into_iter().collect::<Vec<_>>();
        assert_eq!(of("my_events(x)"), [""; 0]);
        assert_eq!(of("events(type=\"step\", service = a)"), [""; 0]);
        assert_eq!(
            of("len(events(service=str(a), type = 'connect'))"),
            ["connect"]
        );
        assert_eq!(
            of("assert_never(\n type=\"open\")\nassert_eventually(type=\"exit\")"),
            ["exit", "open"]
        );
        assert_eq!(
            of("assert_before(first={\"type\": \"exec\"}, then={\"type\": \"step\"})"),
            ["exec"]
        );
        assert_eq!(of("trace(db, syscalls=[\"open\"], run=f)"), ["call"]);
    }

    #[test]
    fn who_does_not_say_gets_all() {
        for text in [
            "events()",
            "all = events\n",
            "events(where=lambda e: e.type == \"open\")",
            "events(type=KIND)",
            "events(type=\"o*\")",
            "events(type=\"open\" if x else \"connect\")",
            "events(type=\"%s\" % kind)",
            "assert_never(where=lambda e: len(events(type=\"step\")) > 0)",
            "assert_before(first={\"type\": \"exec\"}, then=lambda e: True)",
        ] {
            assert_eq!(streams(text).len(), FROM_KERNEL.len(), "{text}");
        }
    }

    #[test]
    fn cuts_and_counts_in_the_text() {
        let of = |text: &str| Needs::of(&[text.to_owned()]);
        assert!(of("x(partition(a, b))").cuts_packets);
        assert!(!of("x(my_partition(a, b))").cuts_packets);
        assert!(of("db.syscalls().write").counts_calls);
        assert!(!of("db.syscall").counts_calls);
    }
}
