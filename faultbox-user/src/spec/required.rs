//! What the code that a test reaches cannot do without, told from the text: so that a test which must end in an error for want of the
//! kernel's tracer does so before a service starts.
//!
//! Only what is plainly called counts. What this misses is an error when the test gets there.

use std::collections::{BTreeMap, BTreeSet};

use super::needs::{READERS, arguments, types, words};
use crate::events::FROM_KERNEL;

/// What a test cannot do without.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Events of a type that only the kernel sees, and the builtin that asks for them.
    Events(&'static str, &'static str),
    /// `svc.syscalls()`.
    Counts,
    /// `trace()`.
    Calls,
    /// `packet_loss()`.
    Loss,
}

impl Need {
    /// As the spec says it.
    pub fn text(&self) -> String {
        match self {
            Need::Events(reader, kind) => format!("{reader}(type={kind:?})"),
            Need::Counts => "syscalls()".to_owned(),
            Need::Calls => "trace()".to_owned(),
            Need::Loss => "packet_loss()".to_owned(),
        }
    }
}

/// A top-level definition: a function, or a name that is given a value.
#[derive(Debug, Default)]
struct Definition {
    /// What it plainly calls.
    needs: BTreeSet<Need>,
    /// The names in it, some of which may be other definitions'.
    names: BTreeSet<String>,
}

/// The definitions of all files of a spec.
#[derive(Debug, Default)]
pub(super) struct Definitions(BTreeMap<String, Definition>);

impl Definitions {
    /// Reads the texts of all files of a spec.
    pub(super) fn of(texts: &[String]) -> Definitions {
        let mut all = Definitions::default();
        for text in texts {
            let code = code(text);
            for (from, to) in statements(&code) {
                let Some(name) = defines(&code[from..to]) else {
                    continue;
                };
                // Two files may use a name for two things: either may be meant.
                let known = all.0.entry(name.to_owned()).or_default();
                read(known, &text[from..to], &code[from..to]);
            }
        }
        // A builtin of which the spec has its own is none.
        let own: BTreeSet<String> = all.0.keys().cloned().collect();
        for definition in all.0.values_mut() {
            definition.needs.retain(|need| {
                let builtin = match need {
                    Need::Events(reader, _) => reader,
                    Need::Calls => "trace",
                    Need::Loss => "packet_loss",
                    Need::Counts => return true,
                };
                !own.contains(builtin)
            });
        }
        all
    }

    /// What these functions need, and all that they name.
    pub(super) fn needs<'a>(&self, roots: impl Iterator<Item = &'a str>) -> BTreeSet<Need> {
        let mut found = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut todo: Vec<&str> = roots.collect();
        while let Some(name) = todo.pop() {
            if let Some(definition) = self.0.get(name)
                && seen.insert(name.to_owned())
            {
                found.extend(definition.needs.iter().cloned());
                todo.extend(definition.names.iter().map(String::as_str));
            }
        }
        found
    }
}

/// The text with spaces for what stands in comments and strings, byte for byte.
fn code(text: &str) -> String {
    let mut out = text.as_bytes().to_vec();
    let mut at = 0;
    let blank = |out: &mut Vec<u8>, from: usize, to: usize| {
        for byte in &mut out[from..to] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    };
    while at < out.len() {
        match out[at] {
            b'#' => {
                let end = text.as_bytes()[at..]
                    .iter()
                    .position(|b| *b == b'\n')
                    .map_or(out.len(), |n| at + n);
                blank(&mut out, at, end);
                at = end;
            }
            quote @ (b'"' | b'\'') => {
                let triple = [quote; 3];
                let mark: &[u8] = match text.as_bytes()[at..].starts_with(&triple) {
                    true => &triple,
                    false => &triple[..1],
                };
                let from = at + mark.len();
                let mut end = from;
                while end < out.len() && !text.as_bytes()[end..].starts_with(mark) {
                    end += if out[end] == b'\\' { 2 } else { 1 };
                }
                let end = end.min(out.len());
                blank(&mut out, from, end);
                at = end + mark.len();
            }
            _ => at += 1,
        }
    }
    // What was blanked, was so as a whole: from one ASCII character to another.
    String::from_utf8_lossy(&out).into_owned()
}

/// Where each top-level statement begins and ends.
fn statements(code: &str) -> Vec<(usize, usize)> {
    let mut begins = vec![];
    let (mut depth, mut at) = (0i32, 0);
    for line in code.split_inclusive('\n') {
        let first = line.chars().next().unwrap_or(' ');
        if depth == 0 && !first.is_whitespace() {
            begins.push(at);
        }
        for c in line.chars() {
            match c {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = (depth - 1).max(0),
                _ => {}
            }
        }
        at += line.len();
    }
    let ends: Vec<usize> = begins.iter().skip(1).copied().chain([code.len()]).collect();
    begins.into_iter().zip(ends).collect()
}

/// The name that a statement defines.
fn defines(statement: &str) -> Option<&str> {
    if let Some(rest) = statement.strip_prefix("def ") {
        return words(rest).next().map(|(_, word)| word);
    }
    let (_, name) = words(statement).next().filter(|(at, _)| *at == 0)?;
    let rest = statement[name.len()..].trim_start();
    (rest.starts_with('=') && !rest.starts_with("==")).then_some(name)
}

/// Reads one statement; `code` is `text` without what is none.
fn read(definition: &mut Definition, text: &str, code: &str) {
    for (at, word) in words(code) {
        let (before, after) = (&code[..at], &code[at + word.len()..]);
        let method = before.trim_end().ends_with('.');
        let called = after.trim_start().starts_with('(');
        if method {
            if word == "syscalls" && called {
                definition.needs.insert(Need::Counts);
            }
            continue;
        }
        // A keyword's name, or a variable's own.
        let after = after.trim_start();
        if !after.starts_with('=') || after.starts_with("==") {
            definition.names.insert(word.to_owned());
        }
        if !called {
            continue;
        }
        match word {
            "trace" => drop(definition.needs.insert(Need::Calls)),
            "packet_loss" => drop(definition.needs.insert(Need::Loss)),
            _ => {}
        }
        if let Some((reader, _)) = READERS.iter().find(|(name, _)| *name == word) {
            // The brackets are those of the code; what stands in quotes, of the text.
            let inside = arguments(&code[at + word.len()..]);
            let from = inside.as_ptr() as usize - code.as_ptr() as usize;
            let asked = types(&text[from..from + inside.len()]);
            let kinds = FROM_KERNEL.iter().filter(|kind| asked.contains(kind));
            let needs = kinds.map(|kind| Need::Events(reader, kind));
            definition.needs.extend(needs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, root: &str) -> Vec<String> {
        let needs = Definitions::of(&[text.to_owned()]).needs([root].into_iter());
        needs.iter().map(Need::text).collect()
    }

    #[test]
    fn a_test_needs_what_it_reaches() {
        let text = r#"
lossy = fault_assumption("lossy", faults = [
    packet_loss(a, b, probability = 0.1),
])

def helper(n):
    assert_never(
        type = "open", path = "/x (y)")  # )
    return n

def test_deep():
    if helper(1):
        db.syscalls()["fsync"]

def test_plain():
    assert_eventually(type = "step", within = "1s")
    log(trace = 1, helper = 2)
    x.trace("a"); x.helper()
    "packet_loss(a, b)" # packet_loss(a, b)

def test_lossy():
    fault(lossy, run = lambda: trace(db, run = f))
"#;
        assert_eq!(
            of(text, "test_deep"),
            ["assert_never(type=\"open\")", "syscalls()"]
        );
        assert_eq!(of(text, "test_plain"), [""; 0]);
        assert_eq!(of(text, "test_lossy"), ["trace()", "packet_loss()"]);
        assert_eq!(of(text, "no_such_function"), [""; 0]);
    }

    #[test]
    fn what_is_not_plain_is_not_needed() {
        for body in [
            "events()",
            "events(type = kind)",
            "events(type = \"*\")",
            "events",
            "assert_never(where = lambda e: e.type == \"open\")",
            "'''\nevents(type=\"open\")\n'''",
            "'\\'events(type=\"open\")'",
        ] {
            assert_eq!(
                of(&format!("def test_x():\n    {body}\n"), "test_x"),
                [""; 0],
                "{body}"
            );
        }
        let own = "def trace(x):\n    return x\n\ndef test_x():\n    trace(1)\n";
        assert_eq!(of(own, "test_x"), [""; 0]);
        assert_eq!(
            of(
                "def test_x():\n  é = 'é'; assert_never(type = \"é\")",
                "test_x"
            ),
            [""; 0]
        );
    }
}
