//! Results as text. The driver asks for all of them in binary, and of most types only the server knows what that means: extensions',
//! composites, ranges. So the formats that its Bind asks for are put right on the way out.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::codec::{self, HEADER, Side};

/// The formats that the next Bind is to ask for, a column each, if not those that the driver asks for.
#[derive(Debug, Clone, Default)]
pub struct Wanted(Arc<Mutex<Option<Vec<u16>>>>);

impl Wanted {
    /// Sets them, or takes them back.
    pub fn set(&self, formats: Option<Vec<u16>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = formats;
    }

    fn take(&self) -> Option<Vec<u16>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A driver's connection, whose Binds ask for what is [`Wanted`].
#[derive(Debug)]
pub struct Formatted {
    stream: TcpStream,
    wanted: Wanted,
    /// Has the start-up packet, which has no type, gone by?
    begun: bool,
    /// What the driver has written of a message that is not whole yet.
    held: BytesMut,
    /// Whole messages, on their way.
    out: BytesMut,
}

impl Formatted {
    /// Before the driver has said anything.
    pub fn new(stream: TcpStream, wanted: Wanted) -> Formatted {
        Formatted {
            stream,
            wanted,
            begun: false,
            held: BytesMut::new(),
            out: BytesMut::new(),
        }
    }

    /// Moves what is whole from the one buffer to the other.
    fn pass(&mut self) {
        loop {
            let total = match self.begun {
                false => self
                    .held
                    .first_chunk()
                    .map(|l| u32::from_be_bytes(*l) as usize),
                true => match codec::header(&self.held, Side::Frontend) {
                    Ok(header) => header.map(|h| h.total),
                    // Not for us to judge.
                    Err(_) => Some(self.held.len()),
                },
            };
            let Some(total) = total.filter(|t| (1..=self.held.len()).contains(t)) else {
                return;
            };
            let message = self.held.split_to(total);
            let is_bind = std::mem::replace(&mut self.begun, true) && message[0] == b'B';
            match is_bind.then(|| self.wanted.take()).flatten() {
                Some(formats) => put_formats(&mut self.out, &message, &formats),
                None => self.out.extend_from_slice(&message),
            }
        }
    }

    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(n);
        }
        Poll::Ready(Ok(()))
    }
}

/// Appends a Bind with other formats of its results, which stand at its end.
fn put_formats(out: &mut BytesMut, message: &[u8], formats: &[u16]) {
    let body = &message[HEADER..];
    let asked = codec::bind(body).ok().and_then(|bind| bind.formats);
    let Some(end) = asked.and_then(|asked| body.len().checked_sub(2 + 2 * asked.len())) else {
        return out.extend_from_slice(message);
    };
    codec::message(out, b'B', |out| {
        out.put_slice(&body[..end]);
        out.put_u16(u16::try_from(formats.len()).unwrap_or(u16::MAX));
        formats.iter().for_each(|format| out.put_u16(*format));
    });
}

impl AsyncRead for Formatted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Formatted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.drain(cx))?;
        this.held.extend_from_slice(buf);
        this.pass();
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.drain(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.drain(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_asks_for_other_formats() {
        let mut bind = BytesMut::new();
        let body = b"p\0s\0\0\x01\0\x01\0\x01\0\0\0\x02ab\0\x01\0\x01";
        codec::message(&mut bind, b'B', |out| out.put_slice(body));
        let mut out = BytesMut::new();
        put_formats(&mut out, &bind, &[1, 0, 1]);
        assert_eq!(
            codec::header(&out, Side::Frontend).unwrap().unwrap().total,
            out.len()
        );
        let read = codec::bind(&out[HEADER..]).unwrap();
        assert_eq!((read.portal, read.statement), (&b"p"[..], &b"s"[..]));
        assert_eq!(read.formats, Some(vec![1, 0, 1]));
        assert!(out.windows(2).any(|w| w == b"ab"));
    }
}
