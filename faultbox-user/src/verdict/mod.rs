//! From what happened to how a test ended. No I/O, no clock.

use std::time::Duration;

use faultbox_contract::duration;

use crate::events::{Asked, Losses, Untold};
use crate::plan::report::Blame;
use crate::plan::{Outcome, Reason, SpecPos};
use crate::spec::BodyVerdict;

/// How often one rule of an assumption fired over a whole test, all its applications together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultUse {
    /// The assumption's name.
    pub name: String,
    /// The rule as written.
    pub rule: String,
    /// The service or the interface that it is on.
    pub target: String,
    /// How many calls it decided, delayed or changed.
    pub hits: u64,
}

/// How the time of a test's body ran.
#[derive(Debug, Clone)]
pub enum Ending {
    /// It ended by itself.
    Ended(Box<BodyVerdict>),
    /// It was cancelled after this long, at this place.
    TimedOut(Duration, Option<SpecPos>),
    /// It was still running after as long as `expect_hang(after=)` says.
    StillHanging(Duration),
    /// The run was interrupted.
    Interrupted,
    /// Its code crashed us.
    Crashed(String),
}

/// All that decides.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// How the body ended.
    pub ending: Ending,
    /// `expect_hang(after=)`.
    pub expected_hang: Option<Duration>,
    /// Every rule that was in force.
    pub faults: Vec<FaultUse>,
    /// A fault of which a rule never fired turns a pass into `bypassed`.
    pub require_faults_fire: bool,
    /// How many assertions were evaluated.
    pub assertions: u64,
    /// Is the mere end without an error what is judged, as in a baseline or a cell with an expectation?
    pub judged_by_expectation: bool,
    /// What was lost.
    pub losses: Losses,
    /// What it may have meant, if only it could have been told.
    pub untold: Untold,
    /// What the test has asked for: from that it may have concluded something that it did not see.
    pub asked: Asked,
}

/// How a test ended, why, and what else there is to know.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The outcome.
    pub outcome: Outcome,
    /// Why, unless it passed.
    pub reason: Option<Reason>,
    /// Things that are no failure.
    pub notes: Vec<String>,
}

/// Decides one test.
pub fn decide(evidence: &Evidence) -> Verdict {
    let (mut outcome, mut reason) = by_ending(evidence);
    let mut notes = vec![];
    let (idle, partly) = idle(&evidence.faults);
    if outcome == Outcome::Passed {
        if evidence.require_faults_fire && !(idle.is_empty() && partly.is_empty()) {
            outcome = Outcome::Bypassed;
            let mut said = vec![];
            if !idle.is_empty() {
                said.push(format!("{} never fired", names("fault", &idle)));
            }
            said.extend(partly.iter().map(|rule| {
                format!(
                    "of fault `{}`, {} on {} never fired",
                    rule.name, rule.rule, rule.target
                )
            }));
            let mut why = Reason::new(said.join("; "), Blame::Test);
            why.help = Some(
                "the traffic of this test never met its matchers: check target, matchers and what the scenario does"
                    .into(),
            );
            reason = Some(why);
        } else if let Some(what) = missed(evidence) {
            outcome = Outcome::Inconclusive;
            reason = Some(Reason::new(what, Blame::Environment));
        }
    }
    if !idle.is_empty() && outcome != Outcome::Bypassed {
        notes.push(format!("{} never fired", names("fault", &idle)));
    }
    if evidence.assertions == 0 && !evidence.judged_by_expectation && outcome == Outcome::Passed {
        notes.push("it asserts nothing: it can only fail by an error".to_owned());
    }
    Verdict {
        outcome,
        reason,
        notes,
    }
}

/// What the test would have to know and does not, in words.
fn missed(evidence: &Evidence) -> Option<String> {
    let of_events = Asked {
        counts: false,
        ..evidence.asked
    };
    if let Some((n, why)) = evidence.losses.missed(of_events) {
        return Some(format!(
            "{n} events were lost, so what was not seen may still have happened: {why}"
        ));
    }
    if let Some(words) = evidence.untold.words() {
        return Some(format!(
            "{words}, so what `events()` returned may be too little"
        ));
    }
    let of_counts = Asked {
        counts: evidence.asked.counts,
        ..Asked::default()
    };
    let (n, why) = evidence.losses.missed(of_counts)?;
    Some(format!(
        "{n} system calls were not counted, so what `syscalls()` returned may be too few: {why}"
    ))
}

/// The assumptions of which nothing fired, and the rules that did not of those of which something did.
fn idle(faults: &[FaultUse]) -> (Vec<&str>, Vec<&FaultUse>) {
    let (mut whole, mut partly) = (vec![], vec![]);
    for rule in faults.iter().filter(|f| f.hits == 0) {
        if faults.iter().any(|f| f.name == rule.name && f.hits > 0) {
            partly.push(rule);
        } else if !whole.contains(&rule.name.as_str()) {
            whole.push(rule.name.as_str());
        }
    }
    (whole, partly)
}

fn by_ending(evidence: &Evidence) -> (Outcome, Option<Reason>) {
    match &evidence.ending {
        Ending::Ended(body) => {
            let ended_well = matches!(body.outcome, Outcome::Passed | Outcome::Failed);
            if let Some(after) = evidence.expected_hang.filter(|_| ended_well) {
                let mut reason = Reason::new("it ended, and was expected to hang", Blame::Test);
                reason.expected = Some(format!("still running after {}", duration::show(after)));
                reason.actual = Some(format!("ended after {}", duration::show(body.took)));
                return (Outcome::Failed, Some(reason));
            }
            (body.outcome, body.reason.clone())
        }
        Ending::StillHanging(_) => (Outcome::Passed, None),
        Ending::TimedOut(limit, at) => {
            let at = at
                .as_ref()
                .map_or(String::new(), |pos| format!(", at {pos}"));
            let mut reason = Reason::new(
                format!("it did not end within {}{at}", duration::show(*limit)),
                Blame::Test,
            );
            reason.help = Some(
                "if it should hang, say `expect_hang(after=)`; if it needs longer, `timeout=`"
                    .into(),
            );
            (Outcome::Timeout, Some(reason))
        }
        Ending::Interrupted => (
            Outcome::Interrupted,
            Some(Reason::new("the run was interrupted", Blame::Environment)),
        ),
        // The language's own bound on what a value may hold (AlignedSize in starlark).
        Ending::Crashed(what) if what.contains("AlignedSize must not exceed") => {
            let mut reason = Reason::new(
                "a value of the spec outgrew the memory that the language gives one",
                Blame::Test,
            );
            reason.help = Some("a list holds at most some hundred million values".into());
            (Outcome::Error, Some(reason))
        }
        Ending::Crashed(what) => {
            let mut reason = Reason::new(format!("the worker panicked: {what}"), Blame::Internal);
            reason.help = Some("this is a bug in faultbox: please report it".into());
            (Outcome::Error, Some(reason))
        }
    }
}

/// Does a baseline that ended like this let its cells mean anything?
pub fn baseline_holds(outcome: Outcome) -> bool {
    outcome == Outcome::Passed
}

/// The reason of a cell that was not run.
pub fn invalid(baseline: &str, outcome: Outcome, why: Option<&Reason>) -> Reason {
    let mut reason = Reason::new(
        format!(
            "its baseline `{baseline}` {}, so it would say nothing",
            match outcome {
                Outcome::Failed => "failed",
                Outcome::Error => "could not be carried out",
                Outcome::Timeout => "did not end in time",
                Outcome::Interrupted => "was interrupted",
                _ => "did not pass",
            }
        ),
        why.map_or(Blame::Test, |r| r.blame),
    );
    reason.help = Some(match why {
        Some(why) => format!(
            "make the scenario pass without faults first: {}",
            why.message
        ),
        None => "make the scenario pass without faults first".to_owned(),
    });
    reason
}

/// What a whole run should be told: was there any test without a fault that passed, to show that the faulted ones mean anything?
/// `tests` are (had a fault in force, outcome).
pub fn suite_notes(tests: &[(bool, Outcome)]) -> Vec<String> {
    let faulted = tests.iter().any(|(fault, _)| *fault);
    let control = tests
        .iter()
        .any(|(fault, outcome)| !fault && *outcome == Outcome::Passed);
    if faulted && !control {
        vec!["no control: no test without a fault has passed, so nothing shows that the faults made the difference".to_owned()]
    } else {
        vec![]
    }
}

fn names(what: &str, list: &[&str]) -> String {
    let quoted: Vec<String> = list.iter().map(|n| format!("`{n}`")).collect();
    match quoted.as_slice() {
        [one] => format!("{what} {one}"),
        many => format!("{what}s {}", many.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(outcome: Outcome) -> Ending {
        Ending::Ended(Box::new(BodyVerdict {
            outcome,
            reason: (outcome != Outcome::Passed).then(|| Reason::new("why", Blame::Test)),
            result: serde_json::Value::Null,
            took: Duration::from_millis(7),
        }))
    }

    fn evidence(ending: Ending) -> Evidence {
        Evidence {
            ending,
            expected_hang: None,
            faults: vec![],
            require_faults_fire: false,
            assertions: 1,
            judged_by_expectation: false,
            losses: Losses::default(),
            untold: Untold::default(),
            asked: Asked::default(),
        }
    }

    fn idle() -> Vec<FaultUse> {
        vec![rule("a", 0), rule("b", 3), rule("a", 0)]
    }

    fn rule(name: &str, hits: u64) -> FaultUse {
        FaultUse {
            name: name.into(),
            rule: "error(path=\"/x\")".into(),
            target: "api.http".into(),
            hits,
        }
    }

    #[test]
    fn the_body_decides_first() {
        for outcome in [
            Outcome::Passed,
            Outcome::Failed,
            Outcome::Error,
            Outcome::Halted,
        ] {
            let v = decide(&evidence(body(outcome)));
            assert_eq!(v.outcome, outcome);
            assert_eq!(v.reason.is_none(), outcome == Outcome::Passed);
            assert!(v.notes.is_empty());
        }
    }

    #[test]
    fn idle_faults_are_told_and_may_be_required() {
        let mut e = evidence(body(Outcome::Passed));
        e.faults = idle();
        let v = decide(&e);
        assert_eq!(v.outcome, Outcome::Passed);
        assert_eq!(v.notes, ["fault `a` never fired"]);
        e.require_faults_fire = true;
        let v = decide(&e);
        assert_eq!(v.outcome, Outcome::Bypassed);
        assert_eq!(v.reason.unwrap().message, "fault `a` never fired");
        assert!(v.notes.is_empty());
        e.ending = body(Outcome::Failed);
        let v = decide(&e);
        assert_eq!((v.outcome, v.notes.len()), (Outcome::Failed, 1));
    }

    #[test]
    fn each_rule_of_a_required_fault_must_fire() {
        let mut e = evidence(body(Outcome::Passed));
        e.faults = vec![rule("a", 2), rule("a", 0)];
        let v = decide(&e);
        assert_eq!((v.outcome, v.notes.len()), (Outcome::Passed, 0));
        e.require_faults_fire = true;
        let v = decide(&e);
        assert_eq!(v.outcome, Outcome::Bypassed);
        let message = v.reason.unwrap().message;
        assert_eq!(
            message,
            "of fault `a`, error(path=\"/x\") on api.http never fired"
        );
        e.faults.push(rule("b", 0));
        let message = decide(&e).reason.unwrap().message;
        assert!(
            message.starts_with("fault `b` never fired; of fault `a`"),
            "{message}"
        );
    }

    #[test]
    fn hangs() {
        let after = Duration::from_secs(2);
        let mut e = evidence(Ending::StillHanging(after));
        e.expected_hang = Some(after);
        assert_eq!(decide(&e).outcome, Outcome::Passed);
        e.ending = body(Outcome::Passed);
        let v = decide(&e);
        assert_eq!(v.outcome, Outcome::Failed);
        assert_eq!(v.reason.unwrap().actual.unwrap(), "ended after 7ms");
        e.ending = body(Outcome::Error);
        assert_eq!(decide(&e).outcome, Outcome::Error);
        let v = decide(&evidence(Ending::TimedOut(after, None)));
        assert_eq!(v.outcome, Outcome::Timeout);
        assert_eq!(v.reason.unwrap().message, "it did not end within 2s");
    }

    #[test]
    fn lost_events_and_missing_assertions() {
        let mut e = evidence(body(Outcome::Passed));
        e.losses.before.unread = 1;
        assert_eq!(decide(&e).outcome, Outcome::Passed);
        e.asked.events = true;
        let v = decide(&e);
        assert_eq!(v.outcome, Outcome::Inconclusive);
        assert_eq!(
            v.reason.unwrap().message,
            "1 events were lost, so what was not seen may still have happened: 1 came faster than they could be read"
        );
        e.ending = body(Outcome::Failed);
        assert_eq!(decide(&e).outcome, Outcome::Failed);
        let mut e = evidence(body(Outcome::Passed));
        e.untold.paths = 2;
        assert_eq!(decide(&e).outcome, Outcome::Inconclusive);
        let mut e = evidence(body(Outcome::Passed));
        e.losses.before.no_room = 3;
        e.asked.events = true;
        assert_eq!(decide(&e).outcome, Outcome::Passed);
        e.asked.counts = true;
        let message = decide(&e).reason.unwrap().message;
        assert!(
            message.starts_with("3 system calls were not counted"),
            "{message}"
        );
        let mut e = evidence(body(Outcome::Passed));
        e.assertions = 0;
        assert_eq!(decide(&e).notes.len(), 1);
        e.judged_by_expectation = true;
        assert!(decide(&e).notes.is_empty());
    }

    #[test]
    fn a_suite_needs_a_control() {
        let (pass, fail) = (Outcome::Passed, Outcome::Failed);
        assert_eq!(suite_notes(&[(true, pass)]).len(), 1);
        assert_eq!(suite_notes(&[(true, pass), (false, fail)]).len(), 1);
        assert!(suite_notes(&[(true, fail), (false, pass)]).is_empty());
        assert!(suite_notes(&[(false, fail)]).is_empty());
    }
}
