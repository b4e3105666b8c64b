//! What becomes of one call under the rules in force. Pure: facts come in through [`Facts`], counters are the rules' own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::plan::{FdClass, SyscallAction};
use crate::sys::names;

use super::ArmedSyscall;

/// The rules in force, by system call. Immutable: arming and lifting replace it as a whole.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Indexed by system call number; in each, the most recently applied rule first.
    by_number: Vec<Vec<Arc<ArmedSyscall>>>,
}

impl Table {
    pub(super) fn new(rules: &[Arc<ArmedSyscall>]) -> Table {
        let mut by_number: Vec<Vec<Arc<ArmedSyscall>>> = vec![];
        for rule in rules {
            for number in numbers(rule) {
                let index = number as usize;
                if by_number.len() <= index {
                    by_number.resize_with(index + 1, Vec::new);
                }
                by_number[index].push(rule.clone());
            }
        }
        for rules in &mut by_number {
            rules.sort_by_key(|r| std::cmp::Reverse(r.id));
        }
        Table { by_number }
    }

    /// The rules on call `nr`, the most recently applied first.
    pub(super) fn rules(&self, nr: i64) -> &[Arc<ArmedSyscall>] {
        usize::try_from(nr)
            .ok()
            .and_then(|nr| self.by_number.get(nr))
            .map_or(&[], Vec::as_slice)
    }
}

/// The numbers of the calls that a rule is about, on this architecture.
pub(super) fn numbers(rule: &ArmedSyscall) -> impl Iterator<Item = i64> {
    rule.rule
        .syscalls
        .iter()
        .filter_map(|name| names::syscall_number(name))
}

/// What filters may ask about a call; each answer is looked up at most once, and only when asked.
pub(super) trait Facts {
    /// The kind of object behind its descriptor; `None` if it carries none.
    fn class(&mut self) -> Option<FdClass>;
    /// The resolved absolute paths it is about: none, one, or both of a pair.
    fn paths(&mut self) -> &[Vec<u8>];
    /// The peers it is about.
    fn peers(&mut self) -> &[SocketAddr];
}

/// What was decided. Reused from call to call, so that deciding allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Decision {
    /// Delays to serve, with how long each lasts.
    pub(super) delays: Vec<(Arc<ArmedSyscall>, Duration)>,
    /// The deny that decides, once the delays are over.
    pub(super) deny: Option<(Arc<ArmedSyscall>, i32)>,
    /// The exception that applied.
    pub(super) allow: Option<Arc<ArmedSyscall>>,
    /// Cuts that the call's socket falls under.
    pub(super) mutes: Vec<Arc<ArmedSyscall>>,
}

impl Decision {
    fn clear(&mut self) {
        self.delays.clear();
        self.deny = None;
        self.allow = None;
        self.mutes.clear();
    }

    /// Did nothing fire?
    pub(super) fn is_empty(&self) -> bool {
        self.delays.is_empty()
            && self.deny.is_none()
            && self.allow.is_none()
            && self.mutes.is_empty()
    }
}

/// Decides one call: every matching delay is served, the most recently applied deny decides, and an allow shields the call
/// from what was applied before it.
///
/// Every matching rule's trigger is asked exactly once, overruled or not, so that no rule's draws depend on other rules.
pub(super) fn decide(rules: &[Arc<ArmedSyscall>], facts: &mut dyn Facts, decision: &mut Decision) {
    decision.clear();
    for rule in rules {
        if !matches(rule, facts) || !rule.trigger.decide() {
            continue;
        }
        // An exception is one from faults on calls; the network is not there all the same.
        if decision.allow.is_some() && rule.cut.is_none() {
            rule.count_shadowed();
            continue;
        }
        match &rule.rule.action {
            SyscallAction::Deny { errno, .. } => {
                if decision.deny.is_some() {
                    rule.count_shadowed();
                } else {
                    decision.deny = Some((rule.clone(), *errno));
                }
            }
            SyscallAction::Delay { duration, jitter } => {
                let lasts = rule.jittered(*duration, *jitter);
                decision.delays.push((rule.clone(), lasts));
            }
            SyscallAction::Allow => decision.allow = Some(rule.clone()),
            SyscallAction::Mute => decision.mutes.push(rule.clone()),
        }
    }
}

fn matches(rule: &ArmedSyscall, facts: &mut dyn Facts) -> bool {
    let rule = &rule.rule;
    rule.on.is_none_or(|on| facts.class() == Some(on))
        && rule
            .path
            .as_ref()
            .is_none_or(|glob| facts.paths().iter().any(|p| glob.matches_bytes(p)))
        && rule
            .dest
            .as_ref()
            .is_none_or(|dest| facts.peers().iter().any(|p| dest.contains(*p)))
}

/// A call about which everything is known already.
#[derive(Debug, Default)]
struct Known {
    class: Option<FdClass>,
    paths: Vec<Vec<u8>>,
    peers: Vec<SocketAddr>,
}

impl Facts for Known {
    fn class(&mut self) -> Option<FdClass> {
        self.class
    }
    fn paths(&mut self) -> &[Vec<u8>] {
        &self.paths
    }
    fn peers(&mut self) -> &[SocketAddr] {
        &self.peers
    }
}

#[doc(hidden)]
/// Decisions without a kernel: what is left of a trapped call's cost when its receipt, its answer and the look at the process are taken
/// away. `cargo xtask instructions` counts it.
#[derive(Debug)]
pub struct Rehearsal {
    table: Table,
    call: Known,
    decision: Decision,
}

impl Rehearsal {
    /// Calls on an open file at `path` under these rules.
    pub fn new(rules: &[Arc<ArmedSyscall>], path: &[u8]) -> Rehearsal {
        Rehearsal {
            table: Table::new(rules),
            call: Known {
                class: Some(FdClass::File),
                paths: vec![path.to_owned()],
                peers: vec![],
            },
            decision: Decision::default(),
        }
    }

    /// Decides about such a call of this number: is it left alone?
    pub fn passes(&mut self, nr: i64) -> bool {
        decide(self.table.rules(nr), &mut self.call, &mut self.decision);
        self.decision.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Dest, Existing, SyscallRule};
    use faultbox_contract::{Dialect, Glob, TriggerSpec};

    fn rule(
        id: u64,
        action: SyscallAction,
        change: impl FnOnce(&mut SyscallRule),
    ) -> Arc<ArmedSyscall> {
        let mut rule = SyscallRule {
            key: "write".to_owned(),
            syscalls: vec!["write", "pwrite64"],
            action,
            trigger: TriggerSpec::default(),
            path: None,
            on: None,
            dest: None,
            existing: Existing::Keep,
            label: None,
            text: String::new(),
        };
        change(&mut rule);
        Arc::new(ArmedSyscall::new(id, format!("f{id}"), Arc::new(rule), 7))
    }

    fn deny(errno: i32) -> SyscallAction {
        SyscallAction::Deny { errno, name: "E" }
    }

    fn delay(ms: u64, jitter: u64) -> SyscallAction {
        SyscallAction::Delay {
            duration: Duration::from_millis(ms),
            jitter: Duration::from_millis(jitter),
        }
    }

    fn decided(rules: &[Arc<ArmedSyscall>], facts: &mut Known) -> Decision {
        let table = Table::new(rules);
        let mut decision = Decision::default();
        decide(table.rules(libc::SYS_write), facts, &mut decision);
        decision
    }

    #[test]
    fn delays_add_up_and_the_last_deny_decides() {
        let rules = [
            rule(1, deny(5), |_| {}),
            rule(2, delay(10, 0), |_| {}),
            rule(3, deny(28), |_| {}),
            rule(4, delay(20, 0), |_| {}),
        ];
        let d = decided(&rules, &mut Known::default());
        assert_eq!(d.deny.as_ref().unwrap().1, 28);
        let total: Duration = d.delays.iter().map(|(_, t)| *t).sum();
        assert_eq!(total, Duration::from_millis(30));
        assert_eq!(
            rules
                .iter()
                .map(|r| (r.hits(), r.shadowed()))
                .collect::<Vec<_>>(),
            [(0, 1), (1, 0), (1, 0), (1, 0)]
        );
    }

    #[test]
    fn allow_shields_from_what_was_applied_before() {
        let rules = [
            rule(1, deny(5), |_| {}),
            rule(2, delay(10, 0), |_| {}),
            rule(3, SyscallAction::Allow, |_| {}),
            rule(4, delay(20, 0), |_| {}),
        ];
        let d = decided(&rules, &mut Known::default());
        assert!(d.deny.is_none() && d.allow.is_some());
        assert_eq!(d.delays.len(), 1);
        assert_eq!(
            (
                rules[0].shadowed(),
                rules[1].shadowed(),
                rules[3].shadowed()
            ),
            (1, 1, 0)
        );
        // An exception that its trigger holds back shields from nothing.
        let rules = [
            rule(1, deny(5), |_| {}),
            rule(2, SyscallAction::Allow, |r| r.trigger.nth = Some(2)),
        ];
        assert!(decided(&rules, &mut Known::default()).deny.is_some());
        assert!(decided(&rules, &mut Known::default()).deny.is_none());
    }

    #[test]
    fn filters_need_what_they_ask_about() {
        let file = || rule(1, deny(5), |r| r.on = Some(FdClass::File));
        let path = || {
            rule(1, deny(5), |r| {
                r.path = Some(Glob::new("/d/**", Dialect::Path).unwrap())
            })
        };
        let dest = || {
            rule(1, deny(5), |r| {
                r.dest = Some(Dest::Addrs(vec!["127.0.0.1:80".parse().unwrap()]));
            })
        };
        for rule in [file(), path(), dest()] {
            assert!(decided(std::slice::from_ref(&rule), &mut Known::default()).is_empty());
            assert_eq!(rule.trigger.matched(), 0);
            let mut facts = Known {
                class: Some(FdClass::File),
                paths: vec![b"/x".to_vec(), b"/d/y".to_vec()],
                peers: vec!["[::ffff:127.0.0.1]:80".parse().unwrap()],
            };
            assert!(decided(&[rule], &mut facts).deny.is_some());
        }
    }

    #[test]
    fn other_rules_do_not_change_a_rules_draws() {
        let some = |r: &mut SyscallRule| r.trigger.probability = Some(0.3);
        let draws = |others: &[Arc<ArmedSyscall>]| -> Vec<bool> {
            let mine = rule(5, deny(5), some);
            let rules: Vec<_> = others.iter().cloned().chain([mine.clone()]).collect();
            (0..200)
                .map(|_| {
                    let before = mine.trigger.fired();
                    decided(&rules, &mut Known::default());
                    mine.trigger.fired() > before
                })
                .collect()
        };
        let alone = draws(&[]);
        assert_eq!(
            draws(&[
                rule(9, SyscallAction::Allow, |_| {}),
                rule(8, deny(28), some)
            ]),
            alone
        );
    }

    #[test]
    fn jitter_stays_within_bounds_and_repeats() {
        let lengths = || -> Vec<Duration> {
            let rules = [rule(1, delay(10, 4), |_| {})];
            (0..500)
                .map(|_| decided(&rules, &mut Known::default()).delays[0].1)
                .collect()
        };
        let first = lengths();
        assert_eq!(first, lengths());
        let (low, high) = (first.iter().min().unwrap(), first.iter().max().unwrap());
        assert!(
            *low >= Duration::from_millis(6) && *low < Duration::from_millis(7),
            "{low:?}"
        );
        assert!(
            *high <= Duration::from_millis(14) && *high > Duration::from_millis(13),
            "{high:?}"
        );
        // More jitter than delay is cut off at zero.
        let rules = [rule(1, delay(1, 100), |_| {})];
        assert!((0..100).any(|_| decided(&rules, &mut Known::default()).delays[0].1.is_zero()));
    }
}
