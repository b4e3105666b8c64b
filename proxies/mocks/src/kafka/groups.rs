//! Consumer groups by the classic protocol (KIP-62, KIP-345, KIP-394): who is a member, in which generation, who reads what.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;

/// How long the first members wait for others, so that those that start together share one generation.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Error codes (the protocol guide's list).
pub(super) mod code {
    pub(in super::super) const ILLEGAL_GENERATION: i16 = 22;
    pub(in super::super) const INCONSISTENT_GROUP_PROTOCOL: i16 = 23;
    pub(in super::super) const INVALID_GROUP_ID: i16 = 24;
    pub(in super::super) const UNKNOWN_MEMBER_ID: i16 = 25;
    pub(in super::super) const REBALANCE_IN_PROGRESS: i16 = 27;
    pub(in super::super) const NON_EMPTY_GROUP: i16 = 68;
    pub(in super::super) const GROUP_ID_NOT_FOUND: i16 = 69;
    pub(in super::super) const MEMBER_ID_REQUIRED: i16 = 79;
}

/// One member.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) instance: Option<Bytes>,
    pub(super) client_id: String,
    /// The ways of sharing that it knows, in its order, with what it says about itself.
    pub(super) protocols: Vec<(String, Bytes)>,
    session: Duration,
    rebalance: Duration,
    seen: Instant,
    /// It waits for an answer to its join or sync: no heartbeats come meanwhile.
    waits: bool,
    /// It has joined the generation that is in the making.
    joined: bool,
    /// Nobody has answered its join yet.
    joining: bool,
    pub(super) assignment: Bytes,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum State {
    #[default]
    Empty,
    /// Members join, until then or all have.
    Preparing {
        from: Instant,
        until: Instant,
    },
    /// The leader shares out.
    Completing,
    Stable,
}

/// One group.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) state: State,
    pub(super) generation: i64,
    pub(super) kind: String,
    pub(super) protocol: String,
    pub(super) leader: String,
    pub(super) members: BTreeMap<String, Member>,
    /// The ids given out that nobody has joined with yet.
    pending: HashSet<String>,
    /// What was committed, with the metadata.
    pub(super) offsets: HashMap<(String, i64), (i64, Option<Bytes>)>,
}

/// A join as asked.
#[derive(Debug)]
pub(super) struct Join {
    pub(super) member: String,
    pub(super) instance: Option<Bytes>,
    pub(super) client_id: String,
    pub(super) kind: String,
    pub(super) protocols: Vec<(String, Bytes)>,
    pub(super) session: Duration,
    pub(super) rebalance: Duration,
    /// Must a new member ask twice, so that one which gives up in between leaves nothing behind (KIP-394)?
    pub(super) twice: bool,
}

/// What becomes of a join at once.
#[derive(Debug, PartialEq)]
pub(super) enum Joined {
    /// It waits, as this member, for the generation after this one.
    Wait(String, i64),
    /// It is in the generation that there is.
    Now(String),
    /// It asks again with this id.
    Again(String),
}

impl Group {
    /// Takes a join.
    ///
    /// # Errors
    /// The code that a broker answers.
    pub(super) fn join(&mut self, join: Join, fresh: &str, now: Instant) -> Result<Joined, i16> {
        self.sweep(now);
        let shared = |p: &(String, Bytes)| {
            self.members
                .iter()
                .filter(|(id, _)| **id != join.member)
                .all(|(_, m)| m.protocols.iter().any(|(name, _)| *name == p.0))
        };
        if join.protocols.is_empty()
            || !join.protocols.iter().any(shared)
            || (!self.members.is_empty() && self.kind != join.kind)
        {
            return Err(code::INCONSISTENT_GROUP_PROTOCOL);
        }
        let mut id = join.member.clone();
        if id.is_empty() {
            id = fresh.to_owned();
            let same = |m: &Member| m.instance.is_some() && m.instance == join.instance;
            if let Some(old) = self.members.iter().find(|(_, m)| same(m)) {
                // A static member that comes back takes its own place.
                let old = old.0.clone();
                self.members.remove(&old);
            } else if join.twice && join.instance.is_none() {
                self.pending.insert(id.clone());
                return Ok(Joined::Again(id));
            }
        } else if !self.pending.remove(&id) && !self.members.contains_key(&id) {
            return Err(code::UNKNOWN_MEMBER_ID);
        }
        if let Some(member) = self.members.get_mut(&id)
            && self.state == State::Stable
            && self.leader != id
            && member.protocols == join.protocols
        {
            // It has only lost the answer.
            member.seen = now;
            return Ok(Joined::Now(id));
        }
        self.kind = join.kind;
        let first = self.members.is_empty();
        let assignment = self
            .members
            .get(&id)
            .map(|m| m.assignment.clone())
            .unwrap_or_default();
        let member = Member {
            instance: join.instance,
            client_id: join.client_id,
            protocols: join.protocols,
            session: join.session,
            rebalance: join.rebalance,
            seen: now,
            waits: true,
            joined: true,
            joining: true,
            assignment,
        };
        if !matches!(self.state, State::Preparing { .. }) {
            self.prepare(now, if first { FIRST_WAIT } else { Duration::ZERO });
        }
        self.members.insert(id.clone(), member);
        Ok(Joined::Wait(id, self.generation))
    }

    /// Begins a new generation: all must join again, but for those that wait for an answer: it is the last generation's, which is over, and
    /// they have nothing else to ask.
    fn prepare(&mut self, now: Instant, wait: Duration) {
        for member in self.members.values_mut() {
            member.joined = member.joining;
            member.waits = member.joining;
        }
        let patience = self.members.values().map(|m| m.rebalance).max();
        // A year is as good as for ever, and an instant cannot hold much more.
        let patience = patience
            .unwrap_or_default()
            .min(Duration::from_secs(31_536_000));
        self.state = State::Preparing {
            from: now + wait,
            until: now + patience.max(wait),
        };
    }

    /// Goes on to the next generation if all have joined or the time is up; did it?
    pub(super) fn complete(&mut self, now: Instant) -> bool {
        let State::Preparing { from, until } = self.state else {
            return false;
        };
        let all = self.members.values().all(|m| m.joined);
        if now < from || (!all && now < until) {
            return false;
        }
        self.members.retain(|_, m| m.joined);
        self.generation += 1;
        let Some(first) = self.members.values().next() else {
            self.state = State::Empty;
            return true;
        };
        let everybody_knows = |name: &str| {
            self.members
                .values()
                .all(|m| m.protocols.iter().any(|(n, _)| n == name))
        };
        self.protocol = first
            .protocols
            .iter()
            .map(|(name, _)| name)
            .find(|name| everybody_knows(name))
            .cloned()
            .unwrap_or_default();
        if !self.members.contains_key(&self.leader) {
            self.leader = self.members.keys().next().cloned().unwrap_or_default();
        }
        for member in self.members.values_mut() {
            member.waits = false;
            member.seen = now;
            member.assignment = Bytes::new();
        }
        self.state = State::Completing;
        true
    }

    /// The member's join is being answered.
    pub(super) fn answered(&mut self, member: &str) {
        if let Some(member) = self.members.get_mut(member) {
            member.joining = false;
        }
    }

    /// When waiting members should look again, if nothing happens before.
    pub(super) fn next_look(&self, now: Instant) -> Instant {
        let soon = now + Duration::from_millis(200);
        match self.state {
            State::Preparing { from, .. } if from > now => from.min(soon),
            State::Preparing { until, .. } => until.min(soon),
            _ => soon,
        }
    }

    /// Checks that it is a member's word, of this generation; hears from it.
    ///
    /// # Errors
    /// The code that a broker answers.
    pub(super) fn check(&mut self, member: &str, generation: i64, now: Instant) -> Result<(), i16> {
        self.sweep(now);
        let known = self
            .members
            .get_mut(member)
            .ok_or(code::UNKNOWN_MEMBER_ID)?;
        known.seen = now;
        match generation == self.generation {
            true => Ok(()),
            false => Err(code::ILLEGAL_GENERATION),
        }
    }

    /// A heartbeat.
    ///
    /// # Errors
    /// The code that a broker answers.
    pub(super) fn beat(&mut self, member: &str, generation: i64, now: Instant) -> Result<(), i16> {
        self.check(member, generation, now)?;
        match self.state {
            State::Preparing { .. } => Err(code::REBALANCE_IN_PROGRESS),
            _ => Ok(()),
        }
    }

    /// The leader shares out.
    pub(super) fn assign(&mut self, shares: Vec<(String, Bytes)>) {
        for (id, share) in shares {
            if let Some(member) = self.members.get_mut(&id) {
                member.assignment = share;
            }
        }
        self.state = State::Stable;
    }

    /// Marks that a member waits for its share, or no longer.
    pub(super) fn wait(&mut self, member: &str, waits: bool, now: Instant) {
        if let Some(member) = self.members.get_mut(member) {
            member.waits = waits;
            member.seen = now;
        }
    }

    /// A member goes.
    ///
    /// # Errors
    /// It was none.
    pub(super) fn leave(
        &mut self,
        member: &str,
        instance: Option<&Bytes>,
        now: Instant,
    ) -> Result<(), i16> {
        let id = match instance {
            Some(_) => self
                .members
                .iter()
                .find(|(_, m)| m.instance.as_ref() == instance)
                .map(|(id, _)| id.clone()),
            None => Some(member.to_owned()),
        };
        let gone = id.is_some_and(|id| self.members.remove(&id).is_some());
        if !gone {
            return Err(code::UNKNOWN_MEMBER_ID);
        }
        self.changed(now);
        Ok(())
    }

    /// Forgets members that have not been heard of for their session's time-out.
    pub(super) fn sweep(&mut self, now: Instant) {
        let before = self.members.len();
        self.members
            .retain(|_, m| m.waits || now.saturating_duration_since(m.seen) <= m.session);
        if self.members.len() < before {
            self.changed(now);
        }
    }

    /// The members are other ones: those that are left share anew.
    fn changed(&mut self, now: Instant) {
        if self.members.is_empty() {
            self.state = State::Empty;
            self.generation += 1;
        } else if !matches!(self.state, State::Preparing { .. }) {
            self.prepare(now, Duration::ZERO);
        }
    }

    /// The state's name, as DescribeGroups says it.
    pub(super) fn state_name(&self) -> &'static str {
        match self.state {
            State::Empty => "Empty",
            State::Preparing { .. } => "PreparingRebalance",
            State::Completing => "CompletingRebalance",
            State::Stable => "Stable",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(member: &str, twice: bool) -> Join {
        Join {
            member: member.to_owned(),
            instance: None,
            client_id: "c".to_owned(),
            kind: "consumer".to_owned(),
            protocols: vec![("range".to_owned(), Bytes::from_static(b"m"))],
            session: Duration::from_secs(10),
            rebalance: Duration::from_secs(20),
            twice,
        }
    }

    #[test]
    fn two_members_share_one_generation_after_the_other() {
        let (mut group, now) = (Group::default(), Instant::now());
        assert_eq!(
            group.join(join("", true), "a", now),
            Ok(Joined::Again("a".into()))
        );
        assert_eq!(
            group.join(join("x", true), "-", now),
            Err(code::UNKNOWN_MEMBER_ID)
        );
        assert_eq!(
            group.join(join("a", true), "-", now),
            Ok(Joined::Wait("a".into(), 0))
        );
        assert!(!group.complete(now));
        let later = now + FIRST_WAIT;
        assert!(group.complete(later));
        group.answered("a");
        assert_eq!((group.generation, group.leader.as_str()), (1, "a"));
        group.assign(vec![("a".into(), Bytes::from_static(b"all"))]);
        assert_eq!(group.beat("a", 1, later), Ok(()));
        // A second one comes: the first must join again.
        assert_eq!(
            group.join(join("", false), "b", later),
            Ok(Joined::Wait("b".into(), 1))
        );
        assert!(!group.complete(later));
        assert_eq!(group.beat("a", 1, later), Err(code::REBALANCE_IN_PROGRESS));
        assert_eq!(
            group.join(join("a", true), "-", later),
            Ok(Joined::Wait("a".into(), 1))
        );
        assert!(group.complete(later));
        group.answered("a");
        group.answered("b");
        assert_eq!((group.generation, group.members.len()), (2, 2));
        assert_eq!(group.beat("a", 1, later), Err(code::ILLEGAL_GENERATION));
        // The second one falls silent.
        let late = later + Duration::from_secs(11);
        group.wait("a", false, late);
        assert_eq!(group.beat("a", 2, late), Err(code::REBALANCE_IN_PROGRESS));
        assert_eq!(group.members.len(), 1);
        group.leave("a", None, late).unwrap();
        assert_eq!(group.state_name(), "Empty");
    }

    #[test]
    fn whose_answer_is_overtaken_by_the_next_generation_is_in_that_one() {
        let (mut group, now) = (Group::default(), Instant::now());
        for id in ["a", "b"] {
            group.join(join("", false), id, now).unwrap();
        }
        let later = now + FIRST_WAIT;
        assert!(group.complete(later));
        // Only the first has had its answer when a third one comes.
        group.answered("a");
        group.join(join("", false), "c", later).unwrap();
        assert!(!group.complete(later), "the first must join again");
        group.join(join("a", false), "-", later).unwrap();
        assert!(group.complete(later), "the second asks already");
        assert_eq!((group.generation, group.members.len()), (2, 3));
    }
}
