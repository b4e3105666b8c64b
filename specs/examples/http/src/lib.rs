//! The few lines of HTTP/1.1 that the example services share: messages and a decoder that does no I/O, a blocking server with one
//! thread per connection, and a blocking client that keeps one deadline over connect, send and receive. Small on purpose; a real
//! service would use a framework.

mod args;
mod client;
mod decode;
mod message;
mod server;

pub use args::{Args, usage};
pub use client::{CallError, call};
pub use decode::{Decoder, Progress, Refused};
pub use message::{Reply, Request, encode_request};
pub use server::serve;

use std::fmt::Display;
use std::io::Write;

/// Writes one line to standard error. Unlike `eprintln!` it does not panic when that fails: a full disk under the log must not
/// take the service down.
pub fn log(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
