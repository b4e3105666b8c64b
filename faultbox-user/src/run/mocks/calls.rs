//! A mock's calls on their way from its file to the test's events.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use faultbox_mocks::calls::LONGEST;
use memchr::memchr;
use serde_json::Value;

use crate::events::EventLog;

/// How much is read at once.
const CHUNK: usize = 64 << 10;
/// How often the file is looked at while nobody asks.
const PAUSE: Duration = Duration::from_millis(5);

/// One mock's calls. The mock writes a line before it answers, so whoever has the answer finds the call here; reading costs it nothing.
#[derive(Debug)]
pub struct Calls {
    service: String,
    file: File,
    events: Arc<EventLog>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    read: u64,
    line: Vec<u8>,
}

impl Calls {
    /// Creates the file.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn create(path: &Path, service: &str, events: &Arc<EventLog>) -> io::Result<Calls> {
        std::fs::write(path, "")?;
        Ok(Calls {
            service: service.to_owned(),
            file: File::open(path)?,
            events: events.clone(),
            state: Mutex::default(),
        })
    }

    /// Turns what has come since the last time into events. Cheap when there is nothing.
    pub fn drain(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Up to where it is now: a mock under load must not hold the reader for ever.
        let size = self.file.metadata().map_or(0, |m| m.len());
        let mut chunk = vec![];
        while state.read < size {
            chunk.resize(CHUNK, 0);
            let Ok(n @ 1..) = self.file.read_at(&mut chunk, state.read) else {
                return;
            };
            state.read += n as u64;
            let mut rest = &chunk[..n];
            while let Some(end) = memchr(b'\n', rest) {
                state.line.extend_from_slice(&rest[..end]);
                rest = &rest[end + 1..];
                let line = std::mem::take(&mut state.line);
                match serde_json::from_slice(&line) {
                    Ok(Value::Object(fields)) => {
                        self.events
                            .record("mock_call", Some(&self.service), fields.into());
                    }
                    // A disk that was full in the middle of a line.
                    _ => self.events.lose(1),
                }
            }
            if state.line.len() + rest.len() <= LONGEST {
                state.line.extend_from_slice(rest);
            }
        }
    }
}

/// Drains on a thread of its own, so that events have the time at which they happened, about.
pub fn follow(calls: Vec<Arc<Calls>>) {
    if calls.is_empty() {
        return;
    }
    std::thread::spawn(move || {
        // The thread ends with the process, which is the test's.
        loop {
            for one in &calls {
                one.drain();
            }
            std::thread::sleep(PAUSE);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn lines_become_events_once_they_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("calls");
        let events = Arc::new(EventLog::default());
        let calls = Calls::create(&path, "mock", &events).unwrap();
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap();
        file.write_all(b"{\"path\":\"/a\"}\n{\"pa").unwrap();
        calls.drain();
        assert_eq!(events.since(0).count(), 1);
        file.write_all(b"th\":\"/b\"}\nnonsense\n").unwrap();
        calls.drain();
        calls.drain();
        let seen: Vec<_> = events.since(0).collect();
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[1].fields["path"], "/b");
        assert_eq!((seen[1].kind.as_str(), events.dropped()), ("mock_call", 1));
    }
}
