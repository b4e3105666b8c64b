//! Fixed traffic through each protocol's codec and proxy, and decisions of the supervisor, so that `cargo xtask instructions` can count what
//! each takes.
//!
//! Without an argument it lists its cases; `<protocol>/<way>` runs one, and says how many requests were counted. What is counted is told to
//! callgrind by names: everything inside [`lab::counted`], and every task of the runtime, since [`lab::counting_begins`].
//! Everything else, the client and the server among it, costs what it likes.
//!
//! Nothing here may depend on a clock, on another thread, or on what the kernel does at its leisure: one thread is client, proxy
//! and server, and on loopback a segment has arrived when its send(2) returns.

mod decisions;
mod lab;

use std::process::ExitCode;

use faultbox_traffic::Traffic;

/// How many non-matching rules are armed: more than specs have at a time, so that what each of them costs stands out.
const RULES: usize = 20;

/// What is done with a protocol's traffic.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// The codec alone, over the bytes of a request and of its reply.
    Codec,
    /// The proxy, with no rule.
    Unarmed,
    /// The proxy, with [`RULES`] that do not match.
    Armed,
}

const WAYS: &[(&str, Way)] = &[
    ("codec", Way::Codec),
    ("unarmed", Way::Unarmed),
    ("20-rules", Way::Armed),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let all = faultbox_traffic::all();
    match words.as_slice() {
        [] => {
            for traffic in &all {
                for (way, _) in WAYS {
                    println!("{}/{way}", traffic.name);
                }
            }
            for (way, _) in DECIDED {
                println!("{}/{way}", decisions::NAME);
            }
            ExitCode::SUCCESS
        }
        [case] => match find(&all, case).or_else(|| decided(case)) {
            Some(work) => {
                println!("{}", work());
                ExitCode::SUCCESS
            }
            None => {
                eprintln!("error: there is no case `{case}`");
                ExitCode::from(2)
            }
        },
        _ => {
            eprintln!("usage: faultbox-instructions [<protocol>/<way>]");
            ExitCode::from(2)
        }
    }
}

/// What a case does; it says how many requests were counted.
type Work<'a> = Box<dyn Fn() -> u32 + 'a>;

fn find<'a>(all: &'a [Traffic], case: &str) -> Option<Work<'a>> {
    let (name, way) = case.split_once('/')?;
    let traffic = all.iter().find(|t| t.name == name)?;
    let (_, way) = WAYS.iter().find(|(w, _)| *w == way)?;
    Some(Box::new(|| run(traffic, *way)))
}

/// The supervisor has no codec.
const DECIDED: &[(&str, usize)] = &[("unarmed", 0), ("20-rules", RULES)];

fn decided<'a>(case: &str) -> Option<Work<'a>> {
    let way = case.strip_prefix(decisions::NAME)?.strip_prefix('/')?;
    let (_, rules) = DECIDED.iter().find(|(w, _)| *w == way)?;
    Some(Box::new(|| decisions::run(*rules)))
}

/// How many requests were counted.
fn run(traffic: &Traffic, way: Way) -> u32 {
    match way {
        Way::Codec => lab::codec(traffic),
        Way::Unarmed => lab::proxy(traffic, 0),
        Way::Armed => lab::proxy(traffic, RULES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Traffic that a proxy does not understand would be forwarded unseen, and cost nothing: the lab refuses that.
    #[test]
    fn every_case_runs() {
        for traffic in faultbox_traffic::all() {
            for (_, way) in WAYS {
                assert_eq!(run(&traffic, *way), lab::COUNTED, "{}", traffic.name);
            }
        }
        for (_, rules) in DECIDED {
            assert_eq!(decisions::run(*rules), lab::COUNTED);
        }
    }

    #[test]
    fn cases_are_found_by_name() {
        let all = faultbox_traffic::all();
        assert!(find(&all, "http/codec").is_some());
        assert!(find(&all, "http/nothing").is_none() && find(&all, "http").is_none());
        assert!(decided("syscall/20-rules").is_some() && decided("syscall/codec").is_none());
    }
}
