//! Events past the memory's share, on disk: one JSON array per line in a file without a name, so that nothing is left behind.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::Event;

/// One index entry per so many events: a reader skips at most so many lines.
const STRIDE: u64 = 1024;
/// What one test may put on disk: millions of events, and little enough for a CI machine that runs several tests at once.
const CAP: u64 = 1 << 30;
/// Lines are gathered to this size before they are written.
const BUFFER: usize = 64 << 10;

/// The spilled part of a log. What is not written when it is dropped need not be: the file has no name.
#[derive(Debug)]
pub struct Spill {
    file: Arc<File>,
    written: u64,
    buffer: Vec<u8>,
    count: u64,
    /// (sequence number, offset) of every [`STRIDE`]th event.
    index: Vec<(u64, u64)>,
}

impl Spill {
    /// An empty one in `dir`.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(dir: &Path) -> io::Result<Spill> {
        Ok(Spill {
            file: Arc::new(tempfile::tempfile_in(dir)?),
            written: 0,
            buffer: vec![],
            count: 0,
            index: vec![],
        })
    }

    /// Appends one event.
    ///
    /// # Errors
    /// The disk is full, or the file has reached [`CAP`]. Earlier events stay readable.
    pub fn push(&mut self, event: &Event) -> io::Result<()> {
        if self.written >= CAP {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let offset = self.written + self.buffer.len() as u64;
        let before = self.buffer.len();
        let nanos = u64::try_from(event.time.as_nanos()).unwrap_or(u64::MAX);
        let line = (event.seq, nanos, &event.kind, &event.service, &event.fields);
        serde_json::to_writer(&mut self.buffer, &line)?;
        self.buffer.push(b'\n');
        if self.buffer.len() >= BUFFER
            && let Err(e) = self.flush()
        {
            self.buffer.truncate(before);
            return Err(e);
        }
        if self.count.is_multiple_of(STRIDE) {
            self.index.push((event.seq, offset));
        }
        self.count += 1;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        // At a fixed offset, so that what a failed attempt has left is overwritten by the next.
        self.file.write_all_at(&self.buffer, self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Everything recorded after `seq` so far. It is read when it is asked for, and the log may go on growing meanwhile.
    pub fn since(&self, seq: u64) -> Option<impl Iterator<Item = Event> + use<>> {
        let at = self.index.partition_point(|(first, _)| *first <= seq + 1);
        let (_, offset) = self.index.get(at.saturating_sub(1))?;
        let disk = Section {
            file: self.file.clone(),
            at: (*offset).min(self.written),
            end: self.written,
        };
        let skip = usize::try_from(offset.saturating_sub(self.written)).unwrap_or(usize::MAX);
        // What is not written yet: a buffer full at most.
        let memory = self.buffer.get(skip..).unwrap_or_default().to_vec();
        let lines = BufReader::with_capacity(BUFFER, disk).lines();
        let more = io::Cursor::new(memory).lines();
        Some(
            lines
                .map_while(Result::ok)
                .chain(more.map_while(Result::ok))
                .filter_map(|line| parse(&line))
                .filter(move |event| event.seq > seq),
        )
    }
}

fn parse(line: &str) -> Option<Event> {
    let (seq, nanos, kind, service, fields): (
        u64,
        u64,
        String,
        Option<String>,
        Map<String, Value>,
    ) = serde_json::from_str(line).ok()?;
    Some(Event {
        seq,
        time: Duration::from_nanos(nanos),
        kind,
        service,
        fields,
    })
}

/// A part of a file, read without moving its cursor.
struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl io::Read for Section {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end - self.at)
            .unwrap_or(usize::MAX)
            .min(into.len());
        let n = self.file.read_at(&mut into[..most], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
