//! The record of calls: a line of JSON for each, written before its answer goes out, so that whoever has the answer finds the call.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

/// How much of a body or a value is kept: the window that rules look at, too.
pub const KEPT: usize = 64 << 10;
/// The longest line that is written, and read.
pub const LONGEST: usize = 2 << 20;

/// Where calls of one interface go.
#[derive(Debug, Clone)]
pub struct Calls {
    file: Arc<File>,
    interface: Arc<str>,
}

impl Calls {
    /// Opens the file, to append.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open(path: &Path, interface: &str) -> io::Result<Calls> {
        Ok(Calls {
            file: Arc::new(OpenOptions::new().append(true).create(true).open(path)?),
            interface: interface.into(),
        })
    }

    /// Writes one call. A disk that is full costs the record, never the answer; the reader counts what it cannot read.
    pub fn record(&self, fields: Map<String, Value>) {
        let mut call = Map::new();
        call.insert("interface".into(), self.interface.to_string().into());
        call.extend(fields);
        let mut line = serde_json::to_string(&call).unwrap_or_default();
        if line.len() >= LONGEST {
            // The call is told all the same, without the fields that make it so long.
            call.retain(|_, value| value.to_string().len() <= KEPT);
            line = serde_json::to_string(&call).unwrap_or_default();
        }
        line.push('\n');
        // One write: lines of several threads do not mix (write(2), O_APPEND).
        if let Err(e) = (&*self.file).write_all(line.as_bytes()) {
            eprintln!("a call could not be recorded: {e}");
        }
    }
}

/// Bytes as an event shows them: text, cut at [`KEPT`].
pub fn text(bytes: &[u8]) -> Value {
    String::from_utf8_lossy(&bytes[..bytes.len().min(KEPT)])
        .into_owned()
        .into()
}
