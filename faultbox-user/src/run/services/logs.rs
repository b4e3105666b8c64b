//! Where a service's output goes: straight into a file that it appends to itself, so that output costs it nothing and nobody has to keep up.
//!
//! - Past [`CAP`] the file's oldest blocks are given back to the disk (a hole is punched), so a flood cannot fill it; the end stays readable.
//! - A stream that the spec observes has a file of its own, from which lines become events and go on into the log; the service never waits for
//!   that either.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use nix::unistd::geteuid;
use serde_json::json;

use crate::events::EventLog;

/// How much of a log is kept on disk. Enough to read hours of ordinary output, little enough for a CI machine's disk.
pub const CAP: u64 = 256 << 20;
/// The longest piece of a line that becomes an event or a report; what follows is cut off.
const LINE_CAP: usize = 4096;
/// The longest line in a [`Log::tail`].
const TAIL_LINE_CAP: usize = 400;
/// How far back a tail looks: 20 lines of an ordinary log, many times over.
const TAIL_BYTES: u64 = 64 << 10;
/// How much an observer reads at once.
const CHUNK: usize = 64 << 10;
/// How long the lines that a service has left may take to become events: some hundred thousand lines.
const LAST_LOOK: Duration = Duration::from_secs(3);

/// One service's log.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: Arc<OwnedFd>,
    reader: File,
    /// Where the kept part begins.
    punched: AtomicU64,
    trimmed: AtomicBool,
    cap: u64,
    observed: Vec<Observed>,
}

impl Log {
    /// Creates `<dir>/<service>.log`, and a file under `scratch` for each stream in `observe`.
    ///
    /// # Errors
    /// A file cannot be created.
    pub fn create(
        dir: &Path,
        scratch: &Path,
        service: &str,
        observe: &[String],
        events: &Arc<EventLog>,
    ) -> io::Result<Log> {
        let path = dir.join(format!("{}.log", file_name(service)));
        let file = create_appending(&path)?;
        let reader = File::open(&path)?;
        let observed = observe
            .iter()
            .map(|stream| {
                let raw = scratch.join(format!("{}.{stream}", file_name(service)));
                let into = create_appending(&raw)?;
                Ok(Observed {
                    stream: stream.clone(),
                    service: service.to_owned(),
                    reader: File::open(&raw)?,
                    path: raw,
                    into: Arc::new(into.into()),
                    log: file.try_clone()?,
                    events: events.clone(),
                    state: Mutex::default(),
                    until: Mutex::default(),
                    lag: CAP,
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Log {
            path,
            file: Arc::new(file.into()),
            reader,
            punched: AtomicU64::new(0),
            trimmed: AtomicBool::new(false),
            cap: CAP,
            observed,
        })
    }

    /// What a process gets as its `stream` ("stdout" or "stderr").
    pub fn stream(&self, stream: &str) -> Arc<OwnedFd> {
        self.observed
            .iter()
            .find(|o| o.stream == stream)
            .map_or_else(|| self.file.clone(), |o| o.into.clone())
    }

    /// The folder of a file of this log that can no longer grow, for want of room on its disk.
    pub fn full(&self) -> Option<&Path> {
        let observed = self.observed.iter().map(|o| o.path.as_path());
        let mut folders = observed
            .chain([self.path.as_path()])
            .filter_map(Path::parent);
        folders.find(|folder| {
            statvfs(*folder).is_ok_and(|disk| match geteuid().is_root() {
                // What file systems keep back is for it.
                true => disk.blocks_free() == 0,
                false => disk.blocks_available() == 0,
            })
        })
    }

    /// Turns what observed streams have brought since the last call into events. Cheap when there is nothing.
    pub fn drain(&self) {
        for observed in &self.observed {
            observed.drain(false);
        }
    }

    /// The same, and takes what comes after the last newline as a line: for when the service has ended. What cannot be read within
    /// [`LAST_LOOK`] is counted as lost: nobody waits for minutes for the rest of a flood.
    pub fn finish(&self) {
        for observed in &self.observed {
            *observed.lock_until() = Some(Instant::now() + LAST_LOOK);
            observed.drain(true);
            *observed.lock_until() = None;
        }
    }

    /// Gives the oldest blocks back to the disk once the log is past its cap.
    pub fn trim(&self) {
        let Ok(size) = self.reader.metadata().map(|m| m.len()) else {
            return;
        };
        let from = self.punched.load(Ordering::Relaxed);
        // Half the cap at a time, so that the work is rare; whole pages, because a hole is made of them.
        let until = (size.saturating_sub(self.cap / 2)) & !0xfff;
        if size - from.min(size) <= self.cap || until <= from {
            return;
        }
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if fallocate(&*self.file, mode, 0, until as i64).is_err() {
            // A file system without holes: start over. The next append goes to the new end.
            let _ = nix::unistd::ftruncate(&*self.file, 0);
            self.punched.store(0, Ordering::Relaxed);
            self.trimmed.store(true, Ordering::Relaxed);
            return;
        }
        self.trimmed.store(true, Ordering::Relaxed);
        self.punched.store(until, Ordering::Relaxed);
    }

    /// Was anything given back?
    pub fn trimmed(&self) -> bool {
        self.trimmed.load(Ordering::Relaxed)
    }

    /// The log's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last `count` lines, each cut to a sane length, control characters made visible.
    pub fn tail(&self, count: usize) -> Vec<String> {
        let Ok(size) = self.reader.metadata().map(|m| m.len()) else {
            return vec![];
        };
        let from = size
            .saturating_sub(TAIL_BYTES)
            .max(self.punched.load(Ordering::Relaxed));
        let mut bytes = vec![0; usize::try_from(size - from.min(size)).unwrap_or(0)];
        let read = read_up_to(&self.reader, &mut bytes, from);
        bytes.truncate(read);
        let mut lines: Vec<&[u8]> = bytes
            .strip_suffix(b"\n")
            .unwrap_or(&bytes)
            .split(|b| *b == b'\n')
            .collect();
        if from > 0 && lines.len() > 1 {
            // Its beginning is missing.
            lines.remove(0);
        }
        if bytes.is_empty() {
            return vec![];
        }
        let skip = lines.len().saturating_sub(count);
        lines[skip..]
            .iter()
            .map(|l| show_line(l, TAIL_LINE_CAP))
            .collect()
    }
}

fn create_appending(path: &Path) -> io::Result<File> {
    // Truncated by hand: O_TRUNC does not go with append in OpenOptions.
    let file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)?;
    file.set_len(0)?;
    Ok(file)
}

/// A name that is safe as one component of a path.
pub fn file_name(name: &str) -> String {
    let safe: String = name
        .chars()
        .map(|c| if c == '/' || c.is_control() { '_' } else { c })
        .collect();
    // NAME_MAX is 255 bytes; room is left for suffixes.
    let cut = safe.floor_char_boundary(200);
    match &safe[..cut] {
        "" | "." | ".." => "_".to_owned(),
        safe => safe.to_owned(),
    }
}

fn read_up_to(file: &File, into: &mut [u8], at: u64) -> usize {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    done
}

fn show_line(line: &[u8], cap: usize) -> String {
    let cut = &line[..line.len().min(cap)];
    let mut text: String = String::from_utf8_lossy(cut.strip_suffix(b"\r").unwrap_or(cut))
        .chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect();
    if cut.len() < line.len() {
        text.push_str(&format!("… ({} bytes more)", line.len() - cut.len()));
    }
    text
}

/// A stream whose lines become events.
#[derive(Debug)]
struct Observed {
    path: PathBuf,
    stream: String,
    service: String,
    into: Arc<OwnedFd>,
    reader: File,
    log: File,
    events: Arc<EventLog>,
    state: Mutex<Tail>,
    /// From when on lines are only counted. Whoever reads just then obeys it, too.
    until: Mutex<Option<Instant>>,
    /// How far the service may be ahead: what it has written and nobody has read is on disk.
    lag: u64,
}

#[derive(Debug, Default)]
struct Tail {
    /// How much has been read.
    read: u64,
    /// How much has been given back to the disk.
    freed: u64,
    /// The line so far, at most [`LINE_CAP`] bytes of it.
    line: Vec<u8>,
    /// How many bytes of the line did not fit.
    cut: usize,
}

impl Observed {
    fn lock_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drain(&self, last: bool) {
        let mut tail = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chunk = vec![];
        // Up to where it is now: a service that writes faster than this reads must not hold the reader for ever.
        let size = self.reader.metadata().map_or(0, |m| m.len());
        while tail.read < size {
            let ahead = self
                .reader
                .metadata()
                .map_or(0, |m| m.len())
                .saturating_sub(tail.read);
            if ahead > self.lag {
                // How many lines that were, nobody knows: one at least.
                tail.read += ahead - self.lag / 2;
                tail.line.clear();
                tail.cut = 0;
                self.events.lose(1);
                self.free(&mut tail);
            }
            chunk.resize(CHUNK, 0);
            let Ok(n) = self.reader.read_at(&mut chunk, tail.read) else {
                break;
            };
            if n == 0 {
                break;
            }
            tail.read += n as u64;
            // A full disk costs the log, never the event.
            let _ = (&self.log).write_all(&chunk[..n]);
            let mut rest = &chunk[..n];
            if self
                .lock_until()
                .is_some_and(|until| Instant::now() >= until)
            {
                let lines = memchr::memchr_iter(b'\n', rest).count();
                self.events.lose(lines as u64);
                tail.line.clear();
                tail.cut = 0;
                rest = &[];
            }
            while !rest.is_empty() {
                let before = rest;
                // Searches by machine words, unlike `split`.
                let length = rest.skip_until(b'\n').unwrap_or(before.len());
                let piece = &before[..length];
                let (text, whole) = match piece.strip_suffix(b"\n") {
                    Some(text) => (text, true),
                    None => (piece, false),
                };
                let fits = text.len().min(LINE_CAP - tail.line.len());
                tail.line.extend_from_slice(&text[..fits]);
                tail.cut += text.len() - fits;
                if whole {
                    self.emit(&mut tail);
                }
            }
            // 16 MiB at a time.
            if tail.read - tail.freed > 16 << 20 {
                self.free(&mut tail);
            }
        }
        if last && !tail.line.is_empty() {
            self.emit(&mut tail);
        }
    }

    /// Gives back what has been read: it is not needed again.
    fn free(&self, tail: &mut Tail) {
        let until = tail.read & !0xfff;
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let _ = fallocate(self.into.as_fd(), mode, 0, until as i64);
        tail.freed = until;
    }

    fn emit(&self, tail: &mut Tail) {
        let mut line = show_line(&tail.line, LINE_CAP);
        if tail.cut > 0 {
            line.push_str(&format!("… ({} bytes more)", tail.cut));
        }
        tail.line.clear();
        tail.cut = 0;
        self.events
            .record(&self.stream, Some(&self.service), json!({"line": line}));
    }
}

/// Drains observed streams on a thread of its own until `stop` is set.
pub fn follow(logs: Vec<Arc<Log>>, stop: Arc<AtomicBool>) {
    if logs.iter().all(|l| l.observed.is_empty()) {
        return;
    }
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            for log in &logs {
                log.drain();
            }
            // Monitors and `await_event` see a line this much late at most; `events()` drains before it answers.
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(observe: &[&str]) -> (tempfile::TempDir, Arc<EventLog>, Log) {
        let dir = tempfile::tempdir().unwrap();
        let events = Arc::new(EventLog::default());
        let observe: Vec<String> = observe.iter().map(|s| (*s).to_owned()).collect();
        let log = Log::create(dir.path(), dir.path(), "db", &observe, &events).unwrap();
        (dir, events, log)
    }

    fn write(fd: &OwnedFd, bytes: &[u8]) {
        File::from(fd.try_clone().unwrap())
            .write_all(bytes)
            .unwrap();
    }

    #[test]
    fn tails_are_short_whatever_the_log() {
        let (_dir, _, log) = log(&[]);
        assert!(log.tail(5).is_empty());
        let out = log.stream("stdout");
        write(&out, b"one\r\ntwo\n\x1b[31mthree");
        assert_eq!(log.tail(2), ["two", "\u{fffd}[31mthree"]);
        write(&out, &vec![b'x'; 1 << 20]);
        let tail = log.tail(5);
        assert_eq!(tail.len(), 1);
        assert!(
            tail[0].len() < 500 && tail[0].ends_with("bytes more)"),
            "{tail:?}"
        );
    }

    #[test]
    fn a_flood_gives_its_beginning_back() {
        use std::os::unix::fs::MetadataExt;
        let (_dir, _, mut log) = log(&[]);
        log.cap = 1 << 20;
        let out = log.stream("stderr");
        for _ in 0..64 {
            write(&out, &[b'y'; 65536]);
            log.trim();
        }
        write(&out, b"\nthe end\n");
        log.trim();
        assert!(log.trimmed());
        assert!(std::fs::metadata(log.path()).unwrap().blocks() * 512 <= 2 << 20);
        assert_eq!(log.tail(1), ["the end"]);
    }

    #[test]
    fn lines_that_come_too_fast_are_counted_as_lost() {
        let (_dir, events, mut log) = log(&["stdout"]);
        let out = log.stream("stdout");
        // Too late to look at them all.
        write(&out, &b"y\n".repeat(1000));
        *log.observed[0].lock_until() = Some(Instant::now());
        log.drain();
        assert_eq!((events.since(0).count(), events.dropped()), (0, 1000));
        assert_eq!(log.tail(2), ["y", "y"]);
        // In time again.
        write(&out, b"seen\n");
        log.finish();
        assert_eq!(events.since(0).last().unwrap().fields["line"], "seen");
        // Too far ahead.
        log.observed[0].lag = 1 << 20;
        write(&out, &b"z\n".repeat(1 << 20));
        log.drain();
        assert!(events.dropped() > 1000);
        assert!(events.since(0).count() <= 1 << 19);
        write(&out, b"the end\n");
        log.drain();
        assert_eq!(events.since(0).last().unwrap().fields["line"], "the end");
    }

    #[test]
    fn observed_lines_become_events_and_stay_in_the_log() {
        let (_dir, events, log) = log(&["stdout"]);
        write(&log.stream("stdout"), b"ready\nhal");
        write(&log.stream("stderr"), b"noise\n");
        log.drain();
        write(&log.stream("stdout"), b"f\n");
        write(&log.stream("stdout"), &vec![b'z'; 3 * CHUNK]);
        log.drain();
        assert_eq!(events.since(0).count(), 2);
        log.finish();
        let seen: Vec<_> = events.since(0).collect();
        assert_eq!(seen.len(), 3);
        assert_eq!(
            (seen[1].kind.as_str(), &seen[1].fields["line"]),
            ("stdout", &json!("half"))
        );
        let long = seen[2].fields["line"].as_str().unwrap();
        assert!(long.len() < LINE_CAP + 40 && long.ends_with("bytes more)"));
        assert_eq!(
            std::fs::metadata(log.path()).unwrap().len(),
            ("ready\nhalf\nnoise\n".len() + 3 * CHUNK) as u64
        );
    }

    #[test]
    fn names_are_safe_as_paths() {
        assert_eq!(file_name("../a\n"), ".._a_");
        assert_eq!(file_name(".."), "_");
        assert_eq!(file_name(&"é".repeat(300)).len(), 200);
    }
}
