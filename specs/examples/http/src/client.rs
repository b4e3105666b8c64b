//! A client: one connection per call, one deadline over all of it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::decode::{Decoder, Progress};
use crate::message::encode_request;

/// Why a call got no reply.
#[derive(Debug)]
pub enum CallError {
    /// The deadline passed, in whichever phase.
    Timeout,
    /// The connection could not be made, or broke.
    Io(io::Error),
    /// What came back is no HTTP reply.
    Malformed(&'static str),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CallError::Timeout => f.write_str("timed out"),
            CallError::Io(e) => write!(f, "{e}"),
            CallError::Malformed(why) => f.write_str(why),
        }
    }
}

impl From<io::Error> for CallError {
    fn from(e: io::Error) -> CallError {
        match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => CallError::Timeout,
            _ => CallError::Io(e),
        }
    }
}

/// Sends one request and returns the reply's status and body, all within `timeout`.
///
/// # Errors
/// Whatever kept the reply from arriving whole and in time.
pub fn call(
    addr: SocketAddr,
    method: &str,
    path: &str,
    body: &[u8],
    timeout: Duration,
) -> Result<(u16, Vec<u8>), CallError> {
    let deadline = Instant::now() + timeout;
    let stream = TcpStream::connect_timeout(&addr, timeout)?;
    stream.set_nodelay(true)?;
    let mut stream = Within { stream, deadline };
    stream.write_all(&encode_request(method, &addr.to_string(), path, body))?;
    let mut decoder = Decoder::default();
    let mut chunk = [0; 4096];
    loop {
        match decoder.reply() {
            Ok(Progress::Done(reply)) => return Ok(reply),
            Ok(_) => match stream.read(&mut chunk) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(n) => decoder.push(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            },
            Err(refused) => return Err(CallError::Malformed(refused.why)),
        }
    }
}

/// A stream whose every read and write has what is left of the deadline, so that a peer that trickles cannot stretch it.
struct Within {
    stream: TcpStream,
    deadline: Instant,
}

impl Within {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Within {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(out)
    }
}

impl Write for Within {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Calls a peer that answers with `chunks`, one every 100 ms, and then closes.
    fn against(chunks: &'static [&'static str], timeout_ms: u64) -> Result<(u16, Vec<u8>), String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let peer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            for chunk in chunks {
                std::thread::sleep(Duration::from_millis(100));
                let _ = stream.write_all(chunk.as_bytes());
            }
        });
        let answer = call(addr, "GET", "/", b"", Duration::from_millis(timeout_ms));
        peer.join().unwrap();
        answer.map_err(|e| format!("{e:?}"))
    }

    #[test]
    fn replies_and_failures() {
        let whole = against(
            &["HTTP/1.1 507 x\r\nContent-", "Length: 2\r\n\r\nok"],
            60_000,
        );
        assert_eq!(whole.unwrap(), (507, b"ok".to_vec()));
        let slow = &["H", "T", "T", "P", "/", "1", ".", "1"];
        assert_eq!(against(slow, 250).unwrap_err(), "Timeout");
        let cut = against(
            &["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"],
            60_000,
        );
        assert!(cut.unwrap_err().contains("UnexpectedEof"));
        assert!(
            against(&["220 smtp.example\r\n"], 60_000)
                .unwrap_err()
                .contains("Malformed")
        );
    }

    #[test]
    fn a_dead_peer_is_refused() {
        let addr = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let answer = call(addr, "GET", "/", b"", Duration::from_secs(60));
        assert!(
            matches!(answer, Err(CallError::Io(e)) if e.kind() == io::ErrorKind::ConnectionRefused)
        );
    }
}
