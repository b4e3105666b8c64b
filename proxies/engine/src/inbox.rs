//! A read buffer that grows under bulk transfer and shrinks when it is over.

use std::io;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::tcp::ReadHalf;

/// Enough for most requests in one read, small enough for ten thousand idle connections.
const SMALL: usize = 8 << 10;
/// Past this, larger reads no longer save time on loopback.
const LARGE: usize = 256 << 10;

/// What has been read from one side and not yet been forwarded.
#[derive(Debug)]
pub struct Inbox {
    /// The bytes; a user takes them from the front.
    pub bytes: BytesMut,
    want: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Inbox {
            bytes: BytesMut::new(),
            want: SMALL,
        }
    }
}

impl Inbox {
    /// Reads once, waiting until there is something; 0 means that the peer has closed its side. Reads at most 256 KiB, so that
    /// the buffer holds at most that much more than its user leaves in it. Dropping the future loses nothing.
    ///
    /// # Errors
    /// What read(2) says.
    pub async fn fill(&mut self, from: &mut ReadHalf<'_>) -> io::Result<usize> {
        let spare = self.bytes.capacity() - self.bytes.len();
        if self.bytes.is_empty() && self.bytes.capacity() > 4 * self.want {
            self.bytes = BytesMut::with_capacity(self.want);
        } else if spare < self.want / 2 {
            self.bytes.reserve(self.want);
        }
        let room = self.bytes.capacity() - self.bytes.len();
        let n = from.read_buf(&mut self.bytes).await?;
        if n == room {
            self.want = (self.want * 2).min(LARGE);
        } else if n < self.want / 8 {
            self.want = (self.want / 2).max(SMALL);
        }
        Ok(n)
    }
}
