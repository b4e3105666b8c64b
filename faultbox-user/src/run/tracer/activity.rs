//! Records added up instead of kept: what each service did, in the memory that its different files and peers take.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Watch;
use crate::events::{Lost, Sink};
use crate::plan::{Activity, FileUse, PeerUse};

/// Writes each record as a line of JSON.
pub struct Lines {
    /// Whose records are written: others are a measurement's.
    of: &'static str,
    to: Mutex<BufWriter<File>>,
    /// Why a line could not be written: the first time.
    failed: Mutex<Option<io::Error>>,
}

impl Lines {
    /// Lines into a file, about this service.
    pub fn to(file: File, of: &'static str) -> Lines {
        Lines {
            of,
            to: Mutex::new(BufWriter::with_capacity(1 << 16, file)),
            failed: Mutex::default(),
        }
    }

    /// Writes what is still in memory.
    ///
    /// # Errors
    /// Whatever first kept a line from being written.
    pub fn finish(&self) -> io::Result<()> {
        let flushed = self
            .to
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .flush();
        let failed = self
            .failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        failed.map_or(flushed, Err)
    }
}

impl Sink for Lines {
    fn record(&self, kind: &str, service: Option<&str>, fields: Value) {
        if service != Some(self.of) {
            return;
        }
        let line = serde_json::json!({"type": kind, "fields": fields});
        let written = writeln!(
            self.to.lock().unwrap_or_else(PoisonError::into_inner),
            "{line}"
        );
        if let Err(e) = written {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert(e);
        }
    }

    fn lost_before(&self, _: Lost) {}
}

/// How long connections may take to end after their processes; on one machine it is no time, unless the peer keeps its side open.
const CLOSING: Duration = Duration::from_millis(500);

/// The types of events that make up an [`Activity`].
pub const STREAMS: [&str; 6] = ["open", "fork", "exec", "exit", "connect", "disconnect"];

/// Adds records up per service, and passes on what somebody else wants to have, too.
pub struct Tally {
    services: Mutex<BTreeMap<String, Activity>>,
    /// Who else gets the records of these types.
    next: Option<(Arc<dyn Sink>, Vec<&'static str>)>,
}

impl Tally {
    /// An empty one; `next` gets the records of the types beside it, whatever becomes of the others.
    pub fn new(next: Option<(Arc<dyn Sink>, Vec<&'static str>)>) -> Tally {
        Tally {
            services: Mutex::default(),
            next,
        }
    }

    /// What `service` has done so far, its calls and what was lost included.
    pub fn of(&self, service: &str, watch: &Watch) -> Activity {
        watch.drain();
        Activity {
            calls: watch.calls(service),
            lost: watch.lost(),
            ..self.lock().get(service).cloned().unwrap_or_default()
        }
    }

    /// The same for a service whose processes have all ended: connections that they left closing are given a moment to end.
    pub fn settled(&self, service: &str, watch: &Watch) -> Activity {
        let deadline = Instant::now() + CLOSING;
        loop {
            let activity = self.of(service, watch);
            let open: u64 = activity
                .peers
                .values()
                .chain([&activity.other_peers])
                .map(|p| p.connected.saturating_sub(p.closed))
                .sum();
            if open == 0 || Instant::now() >= deadline {
                return activity;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Activity>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Tally {
    fn record(&self, kind: &str, service: Option<&str>, fields: Value) {
        if let Some(service) = service {
            let mut services = self.lock();
            if !services.contains_key(service) {
                services.insert(service.to_owned(), Activity::default());
            }
            if let Some(activity) = services.get_mut(service) {
                add(activity, kind, &fields);
            }
        }
        if let Some((next, kinds)) = &self.next {
            // What is no stream of the kernel's is a fault's hit, which everybody is told.
            if kinds.contains(&kind) || !STREAMS.contains(&kind) {
                next.record(kind, service, fields);
            }
        }
    }

    fn lost_before(&self, total: Lost) {
        if let Some((next, _)) = &self.next {
            next.lost_before(total);
        }
    }
}

fn add(activity: &mut Activity, kind: &str, fields: &Value) {
    let text = |name: &str| fields[name].as_str();
    let number = |name: &str| fields[name].as_u64().unwrap_or(0);
    match kind {
        "open" => {
            let failed = u64::from(!fields["errno"].is_null());
            let opened = 1 - failed;
            activity.lost_paths += u64::from(text("path").is_none());
            activity.file(text("path"), FileUse { opened, failed });
        }
        "connect" => {
            let connected = u64::from(fields["ok"] == true);
            let seen = PeerUse {
                connected,
                failed: 1 - connected,
                ..PeerUse::default()
            };
            activity.peer(text("peer").unwrap_or("?"), seen);
        }
        "disconnect" => {
            let seen = PeerUse {
                closed: 1,
                sent_bytes: number("sent_bytes"),
                received_bytes: number("received_bytes"),
                ..PeerUse::default()
            };
            activity.peer(text("peer").unwrap_or("?"), seen);
        }
        "fork" => activity.forks += 1,
        "exec" => activity.program(text("path").unwrap_or("?"), 1),
        "exit" => {
            let end = match (text("signal"), number("code")) {
                (Some(signal), _) => signal.to_owned(),
                (None, 0) => return,
                (None, code) => format!("exit {code}"),
            };
            *activity.bad_ends.entry(end).or_default() += 1;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::EventLog;
    use serde_json::json;

    #[test]
    fn records_add_up_and_go_on_to_who_wants_them() {
        let log = Arc::new(EventLog::default());
        let tally = Tally::new(Some((log.clone(), vec!["exit"])));
        for (kind, fields) in [
            ("open", json!({"path": "/etc/hosts"})),
            ("open", json!({"path": "/etc/hosts", "errno": "ENOENT"})),
            ("open", json!({})),
            ("connect", json!({"peer": "127.0.0.1:5432", "ok": true})),
            ("connect", json!({"peer": "127.0.0.1:5432", "ok": false})),
            (
                "disconnect",
                json!({"peer": "127.0.0.1:5432", "sent_bytes": 7, "received_bytes": 9}),
            ),
            ("fork", json!({})),
            ("exec", json!({"path": "/bin/true"})),
            ("exit", json!({"code": 0})),
            ("exit", json!({"code": 3})),
            ("exit", json!({"signal": "SIGKILL"})),
            ("syscall", json!({"fault": "f"})),
        ] {
            tally.record(kind, Some("db"), fields);
        }
        let got = tally.lock()["db"].clone();
        let file = FileUse {
            opened: 1,
            failed: 1,
        };
        assert_eq!(got.files["/etc/hosts"], file);
        assert_eq!((got.other_files.opened, got.lost_paths), (1, 1));
        let peer = PeerUse {
            connected: 1,
            failed: 1,
            closed: 1,
            sent_bytes: 7,
            received_bytes: 9,
        };
        assert_eq!(got.peers["127.0.0.1:5432"], peer);
        assert_eq!((got.forks, got.programs["/bin/true"]), (1, 1));
        assert_eq!(
            got.bad_ends.keys().collect::<Vec<_>>(),
            ["SIGKILL", "exit 3"]
        );
        let kinds: Vec<String> = log.since(0).map(|e| e.kind.clone()).collect();
        assert_eq!(kinds, ["exit", "exit", "exit", "syscall"]);
    }
}
