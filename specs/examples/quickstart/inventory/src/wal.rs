//! A write-ahead log: nothing is acknowledged before it is on disk.
//!
//! One record per line: the CRC-32 of the payload in hex, a space, the payload, a newline. A record counts once its line is whole and
//! its sum is right; [`Wal::open`] cuts off what follows the last such record, which is what a crash in mid-write leaves behind.
//!
//! After a failed *write* the log is cut back to the last good record and stays in use. After a failed *sync* it is not: the kernel may have
//! dropped the dirty pages and marked them clean, so that a second fsync succeeds without the data ("fsyncgate", 2018; PostgreSQL
//! panics for the same reason). The log then refuses every further append until the process has been restarted and has read back what
//! is really there.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// An open log.
#[derive(Debug)]
pub struct Wal {
    file: File,
    /// Where the next record goes: the end of the last one that is known to be whole.
    end: u64,
    poisoned: bool,
}

/// Why a record was not made durable.
#[derive(Debug)]
pub enum AppendError {
    /// The write failed; the log was cut back and stays usable.
    Write(io::Error),
    /// The sync failed: whether the record is on disk is unknown until a restart.
    Sync(io::Error),
    /// An earlier failure made the log unusable until a restart.
    Poisoned,
}

impl std::fmt::Display for AppendError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AppendError::Write(e) => write!(f, "the log could not be written: {e}"),
            AppendError::Sync(e) => write!(f, "the log could not be synced: {e}"),
            AppendError::Poisoned => {
                f.write_str("the log is read-only since an earlier failure; restart to recover")
            }
        }
    }
}

impl Wal {
    /// Opens the log, creating it if need be, and returns the payloads of all records in order.
    ///
    /// # Errors
    /// The file cannot be opened, read, cut back or synced.
    pub fn open(path: &Path) -> io::Result<(Wal, Vec<String>)> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut bytes = vec![];
        file.read_to_end(&mut bytes)?;
        let (records, end) = replay(&bytes);
        if end < bytes.len() as u64 {
            file.set_len(end)?;
            file.sync_all()?;
        }
        // The file's name must survive a crash too (fsync(2): "ensuring that the entry in the directory has also reached disk").
        match path.parent().filter(|p| !p.as_os_str().is_empty()) {
            Some(folder) => File::open(folder)?.sync_all()?,
            None => File::open(".")?.sync_all()?,
        }
        let wal = Wal {
            file,
            end,
            poisoned: false,
        };
        Ok((wal, records))
    }

    /// Appends one record and returns when it is on disk. `payload` holds no newline.
    ///
    /// # Errors
    /// See [`AppendError`]; after any of them the record must not be acknowledged.
    pub fn append(&mut self, payload: &str) -> Result<(), AppendError> {
        if self.poisoned {
            return Err(AppendError::Poisoned);
        }
        debug_assert!(!payload.contains('\n'));
        let line = format!("{:08x} {payload}\n", crc32(payload.as_bytes()));
        if let Err(e) = self.file.write_all_at(line.as_bytes(), self.end) {
            // Part of the line may be there. Without the cut, a shorter record written next would leave a rest behind it.
            self.poisoned = self.file.set_len(self.end).is_err();
            return Err(AppendError::Write(e));
        }
        if let Err(e) = self.file.sync_data() {
            self.poisoned = true;
            return Err(AppendError::Sync(e));
        }
        self.end += line.len() as u64;
        Ok(())
    }

    /// Has a failure made the log read-only?
    pub fn poisoned(&self) -> bool {
        self.poisoned
    }
}

/// The records at the start of `bytes`, and where the last of them ends.
fn replay(bytes: &[u8]) -> (Vec<String>, u64) {
    let mut records = vec![];
    let mut end = 0;
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let Some(payload) = record(line) else { break };
        records.push(payload);
        end += line.len() as u64;
    }
    (records, end)
}

fn record(line: &[u8]) -> Option<String> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (sum, payload) = line.split_once(' ')?;
    let sum = u32::from_str_radix(sum, 16).ok()?;
    (sum == crc32(payload.as_bytes())).then(|| payload.to_owned())
}

/// CRC-32 as in IEEE 802.3, reflected, bit by bit: records are a hundred bytes.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
        crc
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_crc32() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn records_survive_and_a_torn_tail_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wal");
        let (mut wal, records) = Wal::open(&path).unwrap();
        assert!(records.is_empty());
        wal.append("one").unwrap();
        wal.append("two").unwrap();
        drop(wal);
        let whole = std::fs::read(&path).unwrap();
        let second = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
        // A crash may leave any prefix of the second line.
        for cut in second..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut wal, records) = Wal::open(&path).unwrap();
            assert_eq!(records, ["one"], "cut at {cut}");
            wal.append("three").unwrap();
            assert_eq!(Wal::open(&path).unwrap().1, ["one", "three"]);
        }
    }

    #[test]
    fn a_flipped_bit_ends_the_replay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wal");
        let (mut wal, _) = Wal::open(&path).unwrap();
        wal.append("one").unwrap();
        wal.append("two").unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(Wal::open(&path).unwrap().1, ["one"]);
    }

    #[test]
    fn a_failed_write_is_not_acknowledged() {
        // /dev/full answers every write with ENOSPC, and cannot be cut back: the log must refuse to go on.
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut wal = Wal {
            file,
            end: 0,
            poisoned: false,
        };
        assert!(
            matches!(wal.append("one"), Err(AppendError::Write(e)) if e.kind() == io::ErrorKind::StorageFull)
        );
        assert!(matches!(wal.append("two"), Err(AppendError::Poisoned)));
    }
}
