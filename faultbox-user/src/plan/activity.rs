//! What a command or a service did, as the kernel saw it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::CallCount;

/// Calls, files, connections and processes, added up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Activity {
    /// Per system call, the most called first.
    pub calls: Vec<CallCount>,
    /// Per absolute path.
    pub files: BTreeMap<String, FileUse>,
    /// Opens of files that are not among `files`: their paths could not be read, or there were too many different ones.
    pub other_files: FileUse,
    /// Per address that the program wanted.
    pub peers: BTreeMap<String, PeerUse>,
    /// Connections to addresses that are not among `peers`, because there were too many different ones.
    pub other_peers: PeerUse,
    /// Programs run, by path; "others" if there were too many different ones.
    pub programs: BTreeMap<String, u64>,
    /// Processes that began.
    pub forks: u64,
    /// Processes that ended with another status than 0, by what: "exit 1", "SIGKILL".
    pub bad_ends: BTreeMap<String, u64>,
    /// Opened files whose paths nobody could tell any more; they are among `other_files`.
    pub lost_paths: u64,
    /// What was lost of all services of the same tests together.
    pub lost: Lost,
}

/// What the kernel's side has lost, by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Records that came faster than they could be read.
    pub unread: u64,
    /// Calls that were seen, and found no room in the table of counts.
    pub no_room: u64,
    /// Calls of threads that there was no memory to follow.
    pub no_memory: u64,
    /// Calls at which the kernel did not run the programs.
    pub not_run: u64,
}

impl Lost {
    /// Events that there would have been.
    pub fn records(&self) -> u64 {
        self.unread + self.no_memory + self.not_run
    }

    /// Calls that are missing in counts.
    pub fn counts(&self) -> u64 {
        self.no_room + self.no_memory + self.not_run
    }

    fn add(&mut self, other: Lost) {
        self.unread += other.unread;
        self.no_room += other.no_room;
        self.no_memory += other.no_memory;
        self.not_run += other.not_run;
    }
}

/// How a file was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileUse {
    /// Successfully.
    pub opened: u64,
    /// In vain.
    pub failed: u64,
}

/// What came of the connections to an address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerUse {
    /// Established.
    pub connected: u64,
    /// Not established.
    pub failed: u64,
    /// Ended.
    pub closed: u64,
    /// Payload sent on those that have been closed.
    pub sent_bytes: u64,
    /// Payload received on those that have been closed.
    pub received_bytes: u64,
}

impl FileUse {
    fn add(&mut self, other: FileUse) {
        self.opened += other.opened;
        self.failed += other.failed;
    }
}

impl PeerUse {
    fn add(&mut self, other: PeerUse) {
        self.connected += other.connected;
        self.failed += other.failed;
        self.closed += other.closed;
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
    }
}

/// What a call costs more when it is watched, measured beside the command on the same machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TraceCost {
    /// A call that is counted and timed, in nanoseconds.
    pub call_ns: f64,
    /// An open(2), whose path is streamed besides, in nanoseconds.
    pub open_ns: f64,
    /// By how many nanoseconds measurements of the same call differed.
    pub unsure_ns: f64,
}

impl TraceCost {
    /// Is a call's cost more than measurements of the same differ by?
    pub fn can_be_told(&self) -> bool {
        self.call_ns > self.unsure_ns
    }

    /// The most that it may be, as far as was measured.
    pub fn at_most(&self) -> TraceCost {
        let call_ns = self.call_ns + self.unsure_ns;
        TraceCost {
            call_ns,
            open_ns: self.open_ns.max(call_ns),
            ..*self
        }
    }

    /// The time that all of a command's calls took longer, in nanoseconds.
    pub fn total_ns(&self, activity: &Activity) -> f64 {
        let calls: u64 = activity.calls.iter().map(|c| c.count).sum();
        let opens = activity
            .files
            .values()
            .chain([&activity.other_files])
            .map(|f| f.opened + f.failed)
            .sum::<u64>()
            .min(calls);
        (calls - opens) as f64 * self.call_ns + opens as f64 * self.open_ns
    }
}

/// How many different paths or addresses are kept apart.
const MOST: usize = 10_000;

impl Activity {
    /// Notes an opened file, or one that could not be; `None`: its path could not be read.
    pub fn file(&mut self, path: Option<&str>, seen: FileUse) {
        match path {
            Some(path) if self.files.contains_key(path) || self.files.len() < MOST => {
                self.files.entry(path.to_owned()).or_default().add(seen);
            }
            _ => self.other_files.add(seen),
        }
    }

    /// Notes what came of a connection to `peer`.
    pub fn peer(&mut self, peer: &str, seen: PeerUse) {
        if self.peers.contains_key(peer) || self.peers.len() < MOST {
            self.peers.entry(peer.to_owned()).or_default().add(seen);
        } else {
            self.other_peers.add(seen);
        }
    }

    /// Notes that a program was run.
    pub fn program(&mut self, path: &str, times: u64) {
        let known = self.programs.contains_key(path) || self.programs.len() < MOST;
        let path = if known { path } else { "others" };
        *self.programs.entry(path.to_owned()).or_default() += times;
    }

    /// Adds what the same service did in another test.
    pub fn merge(&mut self, other: &Activity) {
        for calls in &other.calls {
            match self.calls.iter_mut().find(|c| c.name == calls.name) {
                Some(known) => known.merge(calls),
                None => self.calls.push(calls.clone()),
            }
        }
        self.calls
            .sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.name.cmp(&b.name)));
        for (path, seen) in &other.files {
            self.file(Some(path), *seen);
        }
        for (peer, seen) in &other.peers {
            self.peer(peer, *seen);
        }
        self.other_files.add(other.other_files);
        self.other_peers.add(other.other_peers);
        for (path, n) in &other.programs {
            self.program(path, *n);
        }
        for (end, n) in &other.bad_ends {
            *self.bad_ends.entry(end.clone()).or_default() += n;
        }
        self.forks += other.forks;
        self.lost_paths += other.lost_paths;
        self.lost.add(other.lost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(n: u64) -> FileUse {
        FileUse {
            opened: n,
            failed: 0,
        }
    }

    #[test]
    fn many_different_files_do_not_fill_memory() {
        let mut activity = Activity::default();
        for i in 0..MOST + 5 {
            activity.file(Some(&format!("/f{i}")), opened(1));
        }
        activity.file(Some("/f0"), opened(1));
        activity.file(None, opened(1));
        assert_eq!(activity.files.len(), MOST);
        assert_eq!(activity.files["/f0"], opened(2));
        assert_eq!(activity.other_files, opened(6));
    }

    #[test]
    fn two_tests_add_up() {
        let call = |name: &str, count: u64| CallCount {
            name: name.into(),
            count,
            errors: 1,
            total_ns: 10,
            pairs: vec![(100, count)],
        };
        let mut one = Activity {
            calls: vec![call("read", 5), call("write", 2)],
            ..Activity::default()
        };
        one.peer(
            "127.0.0.1:1",
            PeerUse {
                connected: 1,
                ..PeerUse::default()
            },
        );
        let mut two = one.clone();
        two.calls = vec![call("write", 9)];
        one.merge(&two);
        let counts: Vec<(&str, u64, u64)> = one
            .calls
            .iter()
            .map(|c| (c.name.as_str(), c.count, c.errors))
            .collect();
        assert_eq!(counts, [("write", 11, 2), ("read", 5, 1)]);
        assert_eq!(one.calls[0].pairs, [(100, 11)]);
        assert_eq!(one.peers["127.0.0.1:1"].connected, 2);
    }

    #[test]
    fn the_cost_is_what_each_call_costs() {
        let cost = TraceCost {
            call_ns: 100.0,
            open_ns: 1_000.0,
            unsure_ns: 150.0,
        };
        assert!(!cost.can_be_told());
        assert_eq!(cost.at_most().call_ns, 250.0);
        let mut activity = Activity {
            calls: vec![CallCount {
                name: "openat".into(),
                count: 10,
                errors: 0,
                total_ns: 0,
                pairs: vec![],
            }],
            ..Activity::default()
        };
        let opened = FileUse {
            opened: 2,
            failed: 1,
        };
        activity.file(Some("/x"), opened);
        assert_eq!(cost.total_ns(&activity), 7.0 * 100.0 + 3.0 * 1_000.0);
    }
}
