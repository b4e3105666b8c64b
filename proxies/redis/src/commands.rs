//! The servers' own command table: names, and where each command's keys are.
//!
//! `commands.txt` is what COMMAND says of Redis 7.0, Redis 8.0 and Valkey 9.1, put together (a test compares it with the servers that
//! are there): a line per command or subcommand, its key specifications behind a tab, in the terms of
//! redis.io's "Command key specifications". A specification with the flag `not_key` (channels) is left out, and so is one that the
//! servers themselves call unknown.

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Where some keys of a command are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySpec {
    begin: Begin,
    find: Find,
}

/// Where the search for keys begins.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Begin {
    /// At this argument; the name is argument 0.
    Index(usize),
    /// Behind this word, looked for from that argument on; backwards if it is negative, counted from the end.
    Keyword(String, i64),
}

/// Which arguments are keys from there on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Find {
    /// Up to `last` (relative to the first, or if negative to the end), every `step`-th; of the arguments left, the `limit`-th part.
    Range { last: i64, step: i64, limit: i64 },
    /// As many as the argument at `count` says, from `first` on, every `step`-th.
    KeyNum { count: i64, first: i64, step: i64 },
}

/// Every command that the servers know: its name in capitals ("SET", "CONFIG SET"), and its keys.
pub fn table() -> &'static BTreeMap<&'static str, Vec<KeySpec>> {
    static TABLE: LazyLock<BTreeMap<&'static str, Vec<KeySpec>>> = LazyLock::new(|| {
        include_str!("commands.txt")
            .lines()
            .map(|line| {
                let (name, specs) = line.split_once('\t').unwrap_or((line, ""));
                (name, specs.split("; ").filter_map(parse).collect())
            })
            .collect()
    });
    &TABLE
}

fn parse(spec: &str) -> Option<KeySpec> {
    let words: Vec<&str> = spec.split(' ').collect();
    let (begin, find) = match words.as_slice() {
        ["index", at, find @ ..] => (Begin::Index(at.parse().ok()?), find),
        ["keyword", word, from, find @ ..] => {
            (Begin::Keyword((*word).into(), from.parse().ok()?), find)
        }
        _ => return None,
    };
    let [kind, a, b, c] = find else { return None };
    let (a, b, c) = (a.parse().ok()?, b.parse().ok()?, c.parse().ok()?);
    let find = match *kind {
        "range" => Find::Range {
            last: a,
            step: b,
            limit: c,
        },
        "keynum" => Find::KeyNum {
            count: a,
            first: b,
            step: c,
        },
        _ => return None,
    };
    Some(KeySpec { begin, find })
}

/// The command's full name in capitals: with its subcommand if it is one that has them.
pub fn full_name(name: &[u8], first: Option<&[u8]>) -> String {
    let upper = |word: &[u8]| String::from_utf8_lossy(word).to_ascii_uppercase();
    let name = upper(name);
    match first {
        Some(sub) if has_subcommands(&name) => format!("{name} {}", upper(sub)),
        _ => name,
    }
}

/// Does the command with this name (in capitals) have subcommands?
pub fn has_subcommands(name: &str) -> bool {
    let next = (
        std::ops::Bound::Excluded(name),
        std::ops::Bound::<&str>::Unbounded,
    );
    // Names sort a space before any letter, so a subcommand follows its command.
    let mut after = table().range::<str, _>(next);
    after
        .next()
        .and_then(|(other, _)| other.strip_prefix(name))
        .is_some_and(|rest| rest.starts_with(' '))
}

/// The keys of a command: which arguments they are, the name being argument 0. `args` is the name and what of the rest is known,
/// `argc` how many there are. Of a command that no table has (a module's), the first argument counts as its key.
pub fn keys(full_name: &str, args: &[impl AsRef<[u8]>], argc: usize) -> Vec<usize> {
    let args: Vec<&[u8]> = args.iter().map(AsRef::as_ref).collect();
    let mut found = match full_name {
        // Where the specification is incomplete, the servers' own code.
        "MIGRATE" => migrate(&args, argc),
        _ => match table().get(full_name) {
            Some(specs) => specs
                .iter()
                .flat_map(|spec| spec.keys(&args, argc))
                .collect(),
            // A subcommand that the table does not know.
            None if full_name.contains(' ') => vec![],
            None => vec![1],
        },
    };
    if full_name == "SORT" {
        found.extend(sort_store(&args));
    }
    found.retain(|i| *i < args.len());
    found
}

impl KeySpec {
    fn keys(&self, args: &[&[u8]], argc: usize) -> Vec<usize> {
        let Some(begin) = self.begin(args, argc) else {
            return vec![];
        };
        let (begin, argc) = (begin as i64, argc as i64);
        let (first, last, step) = match self.find {
            Find::Range { last, step, .. } if last >= 0 => {
                (Some(begin), begin.saturating_add(last), step)
            }
            Find::Range { last, step, limit } => {
                let last = match limit {
                    0 => argc + last,
                    limit => begin + (argc - begin) / limit + last,
                };
                (Some(begin), last, step)
            }
            Find::KeyNum { count, first, step } => {
                let said = usize::try_from(begin + count)
                    .ok()
                    .and_then(|i| args.get(i))
                    .and_then(|arg| crate::codec::number(arg))
                    .filter(|n| *n > 0);
                let first = begin + first;
                let last = said.map(|n| first.saturating_add((n - 1).saturating_mul(step)));
                (said.map(|_| first), last.unwrap_or_default(), step)
            }
        };
        let Some(first) = first else { return vec![] };
        // A count past the end is an error of the client's; the server says so.
        let last = last.min(argc - 1);
        (first..=last)
            .step_by(step.max(1) as usize)
            .map(|i| i as usize)
            .collect()
    }

    fn begin(&self, args: &[&[u8]], argc: usize) -> Option<usize> {
        let (word, from) = match &self.begin {
            Begin::Index(at) => return Some(*at),
            Begin::Keyword(word, from) => (word.as_bytes(), *from),
        };
        let is_word = |i: &usize| {
            args.get(*i)
                .is_some_and(|arg| arg.eq_ignore_ascii_case(word))
        };
        let at = match usize::try_from(from) {
            Ok(from) => (from..argc).find(is_word),
            Err(_) => {
                let from = usize::try_from(argc as i64 + from).ok()?;
                (1..=from).rev().find(is_word)
            }
        };
        at.map(|i| i + 1)
    }
}

/// MIGRATE's key is its third argument, unless that is empty: then KEYS lists them (migrateGetKeys in the servers' db.c).
fn migrate(args: &[&[u8]], argc: usize) -> Vec<usize> {
    let mut i = 6;
    while i < args.len() {
        let is = |word: &str| args[i].eq_ignore_ascii_case(word.as_bytes());
        if is("KEYS") {
            return match args[3].is_empty() {
                true => (i + 1..argc).collect(),
                false => vec![],
            };
        }
        // A password that reads KEYS is none.
        i += if is("AUTH2") {
            3
        } else if is("AUTH") {
            2
        } else {
            1
        };
    }
    vec![3]
}

/// What SORT's STORE names; the last one counts (sortGetKeys in the servers' db.c).
fn sort_store(args: &[&[u8]]) -> Option<usize> {
    let (mut i, mut store) = (2, None);
    while i < args.len() {
        let is = |word: &str| args[i].eq_ignore_ascii_case(word.as_bytes());
        i += if is("LIMIT") {
            3
        } else if is("GET") || is("BY") {
            2
        } else if is("STORE") {
            store = Some(i + 1);
            2
        } else {
            1
        };
    }
    store
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys_of(line: &str) -> Vec<String> {
        let args: Vec<&str> = line.split(' ').collect();
        let first = args.get(1).map(|a| a.as_bytes());
        let name = full_name(args[0].as_bytes(), first);
        keys(&name, &args, args.len())
            .into_iter()
            .map(|i| args[i].to_owned())
            .collect()
    }

    #[test]
    fn every_line_of_the_table_is_understood() {
        for line in include_str!("commands.txt").lines() {
            let (name, specs) = line.split_once('\t').unwrap_or((line, ""));
            let wanted = specs.split("; ").filter(|s| !s.is_empty()).count();
            assert_eq!(table()[name].len(), wanted, "{line}");
        }
        assert!(table().len() > 400);
    }

    #[test]
    fn names() {
        assert_eq!(full_name(b"config", Some(b"set")), "CONFIG SET");
        assert_eq!(full_name(b"Set", Some(b"config")), "SET");
        assert_eq!(full_name(b"config", None), "CONFIG");
        for (name, has) in [
            ("CONFIG", true),
            ("GET", false),
            ("X", false),
            ("XINFO", true),
            ("SET", false),
        ] {
            assert_eq!(has_subcommands(name), has, "{name}");
        }
    }

    #[test]
    fn keys_that_move() {
        for (line, keys) in [
            ("get k", &["k"][..]),
            ("mset a 1 b 2", &["a", "b"]),
            ("del a b c", &["a", "b", "c"]),
            ("eval s 2 a b c", &["a", "b"]),
            ("eval s 0 a", &[]),
            ("eval s -1 a", &[]),
            ("eval s 9223372036854775807 a", &["a"]),
            ("xread count 2 streams a b 0 0", &["a", "b"]),
            ("xreadgroup group g c streams s >", &["s"]),
            ("zunionstore d 2 a b weights 1 2", &["d", "a", "b"]),
            ("migrate h 1 k 0 5", &["k"]),
            ("migrate h 1  0 5 auth keys keys a b", &["a", "b"]),
            ("sort l by w store x limit 0 store store d", &["l", "d"]),
            ("object encoding k", &["k"]),
            ("georadius g 1 2 3 km store d", &["g", "d"]),
            ("json.set k . 1", &["k"]),
            ("spublish c m", &[]),
            ("ping k", &[]),
            ("get", &[]),
            ("config what k", &[]),
        ] {
            assert_eq!(keys_of(line), keys, "{line}");
        }
    }
}
