//! The front of a buffer on its way on: as far as a protocol has understood it, or decided about it.

use std::io;

use bytes::BytesMut;
use tokio::net::TcpStream;

use crate::pump::End;
use crate::socket::{send, send_watching};

/// Sends the first `n` bytes and takes them off.
///
/// # Errors
/// `SinkGone`.
pub async fn send_front(to: &TcpStream, bytes: &mut BytesMut, n: usize) -> Result<(), End> {
    if n == 0 {
        return Ok(());
    }
    let sent = send(to, &bytes[..n]).await;
    take(bytes, n);
    sent.map_err(|_| End::SinkGone)
}

/// The same for bytes that came from `from`; see [`send_watching`].
///
/// # Errors
/// `SinkGone`, or `SourceGone` when `from` is.
pub async fn send_front_watching(
    to: &TcpStream,
    bytes: &mut BytesMut,
    n: usize,
    from: &TcpStream,
) -> Result<(), End> {
    if n == 0 {
        return Ok(());
    }
    let sent = send_watching(to, &bytes[..n], from).await;
    take(bytes, n);
    sent.map_err(|e| match e.kind() {
        io::ErrorKind::ConnectionAborted => End::SourceGone,
        _ => End::SinkGone,
    })
}

/// Takes the first `n` bytes off; the usual case, all of them, keeps the buffer in one piece.
fn take(bytes: &mut BytesMut, n: usize) {
    if n == bytes.len() {
        bytes.clear();
    } else {
        let _ = bytes.split_to(n);
    }
}
