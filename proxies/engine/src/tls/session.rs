//! A TLS connection over a socket: handshake, and records in and out.

use std::io::{self, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::{AlertDescription, Connection, Error};
use tokio::net::TcpStream;

use crate::socket::{is_reset, send};

/// How much of a handshake is read at once: certificates of usual size in one go.
const READ: usize = 8 << 10;

/// Why a handshake came to nothing.
#[derive(Debug)]
pub(super) enum Broken {
    /// The peer was reset.
    Reset,
    /// The peer closed in good order, without a word.
    Closed,
    /// The peer said why.
    Alert(AlertDescription),
    /// What the peer said is not for us; it has been told.
    Ours(Error),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Broken::Reset => f.write_str("it reset the connection during the handshake"),
            Broken::Closed => f.write_str("it closed the connection during the handshake"),
            Broken::Alert(alert) => write!(f, "it refused with the alert {}", name(*alert)),
            Broken::Ours(error) => write!(f, "{error}"),
        }
    }
}

/// An alert's name as RFC 8446, section 6 writes it.
pub(super) fn name(alert: AlertDescription) -> String {
    let mut out = String::new();
    let mut low = false;
    for c in format!("{alert:?}").chars() {
        if c.is_ascii_uppercase() && low {
            out.push('_');
        }
        low = c.is_ascii_lowercase();
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// A connection in the hands of rustls, and its socket. The lock is never held across a wait.
pub(super) struct Session {
    conn: Mutex<Connection>,
    pub(super) wire: TcpStream,
    /// Records that came in the wake of the handshake.
    pub(super) early: Vec<u8>,
}

impl Session {
    pub(super) fn new(conn: impl Into<Connection>, wire: TcpStream) -> Session {
        let mut conn = conn.into();
        // Every batch is written out before the next is read.
        conn.set_buffer_limit(None);
        Session {
            conn: Mutex::new(conn),
            wire,
            early: vec![],
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Connection> {
        self.conn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes through the handshake, beginning with what was read before.
    pub(super) async fn handshake(&mut self, read: &[u8]) -> Result<(), Broken> {
        let gone = |e: &io::Error| match is_reset(e) {
            true => Broken::Reset,
            false => Broken::Closed,
        };
        let mut buf = vec![0; READ];
        self.feed(read);
        loop {
            let (processed, out, handshaking) = {
                let mut conn = self.lock();
                let processed = conn.process_new_packets();
                let out = drain(&mut conn);
                (processed, out, conn.is_handshaking())
            };
            let sent = send(&self.wire, &out).await;
            match processed {
                Err(Error::AlertReceived(alert)) => return Err(Broken::Alert(alert)),
                Err(error) => return Err(Broken::Ours(error)),
                Ok(_) => {}
            }
            if !handshaking {
                return Ok(());
            }
            // A peer that no longer listens may have said why before.
            let n = match (self.read(&mut buf).await, sent) {
                (Ok(0), Ok(())) => return Err(Broken::Closed),
                (Ok(0), Err(e)) | (Err(e), _) => return Err(gone(&e)),
                (Ok(n), _) => n,
            };
            self.feed(&buf[..n]);
        }
    }

    /// Gives rustls what belongs to the handshake, and keeps the rest. Errors come out again where packets are next processed.
    fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let mut conn = self.conn.lock().unwrap_or_else(PoisonError::into_inner);
            if !conn.is_handshaking() {
                self.early.extend_from_slice(bytes);
                return;
            }
            // Reading fails when more is buffered than any handshake needs; that is refused as soon as it is processed.
            if conn.read_tls(&mut bytes).is_err() || conn.process_new_packets().is_err() {
                return;
            }
        }
    }

    /// Reads once; 0 is the end.
    pub(super) async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.wire.try_read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wire.readable().await?,
                other => return other,
            }
        }
    }

    /// Opens records, complete or not, and adds their plain text to `plain`. Returns whether the peer has said that it says no more
    /// (close_notify).
    pub(super) fn open(&self, mut records: &[u8], plain: &mut Vec<u8>) -> Result<bool, Error> {
        let mut conn = self.lock();
        loop {
            let state = conn.process_new_packets();
            // What came before a bad record is good.
            let mut reader = conn.reader();
            let mut chunk = [0; 16 << 10];
            while let Ok(n @ 1..) = reader.read(&mut chunk) {
                plain.extend_from_slice(&chunk[..n]);
            }
            let closed = state?.peer_has_closed();
            if closed || records.is_empty() {
                return Ok(closed);
            }
            conn.read_tls(&mut records)
                .map_err(|e| Error::General(e.to_string()))?;
        }
    }

    /// Seals plain text into records.
    pub(super) fn seal(&self, plain: &[u8], records: &mut Vec<u8>) -> Result<(), Error> {
        let mut conn = self.lock();
        conn.writer()
            .write_all(plain)
            .map_err(|e| Error::General(e.to_string()))?;
        drain_into(&mut conn, records);
        Ok(())
    }

    /// What is still to be said, an alert or a close_notify included.
    pub(super) fn pending(&self) -> Vec<u8> {
        drain(&mut self.lock())
    }
}

fn drain(conn: &mut Connection) -> Vec<u8> {
    let mut out = vec![];
    drain_into(conn, &mut out);
    out
}

fn drain_into(conn: &mut Connection, out: &mut Vec<u8>) {
    while conn.wants_write() {
        // Writing to memory fails never, and takes everything.
        if conn.write_tls(out).is_err() {
            return;
        }
    }
}
