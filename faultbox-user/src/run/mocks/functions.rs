//! The spec's functions behind a socket: a mock asks, a thread of the worker calls. Nothing here waits for the test's own code, nor that
//! for this: the spec is frozen, and each call has an evaluator of its own.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use faultbox_mocks::functions::{Outcome, Question};

use crate::spec::{LoadedSpec, Transcript};

/// As a test's own: the interpreter's frames are large. Only what is touched costs memory.
const STACK: usize = 64 << 20;
/// How long a mock may take to ask: it writes one line.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves the functions until the process ends.
///
/// # Errors
/// The socket cannot be made.
pub(super) fn serve(
    path: &Path,
    spec: Arc<LoadedSpec>,
    transcript: Arc<Transcript>,
) -> io::Result<()> {
    // The path of a socket has at most 107 bytes (unix(7)), that of a test's folder may have more: the folder's descriptor is short.
    let folder = File::open(path.parent().unwrap_or(path))?;
    let near = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()))
        .join(path.file_name().unwrap_or_default());
    let listener = UnixListener::bind(near)?;
    std::thread::Builder::new()
        .name("mock functions".to_owned())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                let (spec, transcript) = (spec.clone(), transcript.clone());
                // Without a thread the mock sees a closed connection, and says so.
                let _ = std::thread::Builder::new()
                    .stack_size(STACK)
                    .spawn(move || answer(&stream, &spec, &transcript));
            }
        })?;
    Ok(())
}

/// One question, one answer.
fn answer(stream: &UnixStream, spec: &LoadedSpec, transcript: &Transcript) -> Option<()> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    let question: Question = serde_json::from_str(&line).ok()?;
    let outcome: Outcome = spec.answer(question.function, &question.request, transcript);
    if let Err(why) = &outcome {
        // The client only sees a server's error: this is where the spec's author looks. Once is enough, however often it is asked.
        let text = format!("a mock's function failed: {why}");
        let mut prints = transcript
            .prints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !prints.contains(&text) {
            prints.push(text);
        }
    }
    let mut text = serde_json::to_string(&outcome).ok()?;
    text.push('\n');
    let mut stream = stream;
    stream.write_all(text.as_bytes()).ok()
}
