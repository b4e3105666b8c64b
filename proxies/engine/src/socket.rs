//! The little that proxies need from sockets beyond reading and writing.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use faultbox_contract::clock;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;

/// Dials `addr` with TCP_NODELAY.
///
/// # Errors
/// What connect(2) says.
pub async fn dial(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr).await?;
    // Without it the second small write of a batch would wait for the peer's delayed ACK (40 ms).
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Closes the connection with a RST: with SO_LINGER 0 close(2) discards what is unsent and resets (socket(7)).
pub fn reset(stream: TcpStream) {
    // Fails only if the peer has closed already, and then there is nobody left to reset.
    let _ = stream.set_zero_linger();
}

/// Completes when the peer has reset the connection; an orderly close does not count. Consumes nothing.
pub async fn gone(stream: &TcpStream) {
    loop {
        match stream.ready(Interest::ERROR).await {
            Ok(ready) if !ready.is_error() => {}
            _ => return,
        }
    }
}

/// Completes when there is something to read, be it the end; consumes nothing.
pub async fn heard(stream: &TcpStream) {
    // Readiness alone may be what is left of an earlier read.
    let _ = stream.peek(&mut [0]).await;
}

/// Is the connection open, with nothing to read? One that was kept for later may have been closed meanwhile, or sent what answers nothing.
pub fn is_quiet(stream: &impl AsFd) -> bool {
    // The runtime knows of a close only once it has looked; the kernel knows at once.
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(stream.as_fd().as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN)
}

/// Has the peer closed or reset the connection, whatever may still be there to read?
pub fn has_ended(stream: &impl AsFd) -> bool {
    // POLLHUP and POLLERR need not be asked for (poll(2)).
    let end = PollFlags::from_bits_retain(libc::POLLRDHUP);
    let mut fds = [PollFd::new(stream.as_fd(), end)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|events| events > 0)
}

/// Does this error of a read or a write say that the peer is gone?
pub fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
    )
}

/// What the system calls this error ("ECONNREFUSED"), for a step's `code`; "EIO" for errors that are not the system's.
pub fn errno_name(error: &io::Error) -> String {
    let errno = match (error.raw_os_error(), error.kind()) {
        (Some(raw), _) => Errno::from_raw(raw),
        (None, io::ErrorKind::TimedOut) => Errno::ETIMEDOUT,
        (None, io::ErrorKind::BrokenPipe) => Errno::EPIPE,
        (None, io::ErrorKind::ConnectionReset) => Errno::ECONNRESET,
        // A peer that does not keep to its protocol, TLS for one.
        (None, io::ErrorKind::InvalidData) => Errno::EPROTO,
        (None, _) => Errno::EIO,
    };
    format!("{errno:?}")
}

/// Writes all of `bytes`.
///
/// # Errors
/// What write(2) says; some of the bytes may have gone out.
pub async fn send(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.try_write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes all of `bytes`, which came from `from`; gives up when `from` is reset while `to` does not read: nobody else would
/// notice, because nothing is read from `from` meanwhile.
///
/// # Errors
/// What write(2) says, or `ConnectionAborted` when `from` is gone.
pub async fn send_watching(to: &TcpStream, bytes: &[u8], from: &TcpStream) -> io::Result<()> {
    let n = match to.try_write(bytes) {
        Ok(n) if n == bytes.len() => return Ok(()),
        Ok(n) => n,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
        Err(e) => return Err(e),
    };
    tokio::select! {
        biased;
        sent = send(to, &bytes[n..]) => sent,
        () = gone(from) => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

/// The longest that [`linger`] waits for the peer to close.
const LINGER: Duration = Duration::from_secs(5);
/// The most that [`linger`] discards; a peer that sends on regardless is reset, as any server does.
const LINGER_BYTES: u64 = 64 << 20;

/// Closes in good order: sends a FIN, then reads and discards until the peer closes too. Closing with unread bytes would send a
/// RST, which may overtake the last reply in the peer's hands (RFC 9112, 9.6).
pub async fn linger(mut stream: TcpStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut discarded = 0;
    let mut waste = [0; 4096];
    let drained = clock::timeout(LINGER, async {
        while discarded < LINGER_BYTES {
            match stream.read(&mut waste).await {
                Ok(0) | Err(_) => return,
                Ok(n) => discarded += n as u64,
            }
        }
    });
    let _ = drained.await;
}
