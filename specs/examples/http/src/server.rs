//! A server with one thread per connection.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::decode::{Decoder, Progress};
use crate::message::{Reply, Request};

/// Threads are cheap, but not free: more connections than this are answered with 503.
const MAX_CONNECTIONS: usize = 512;
/// A connection that is silent for so long is closed.
const IDLE: Duration = Duration::from_secs(60);

/// Answers requests until the process ends.
pub fn serve(
    listener: TcpListener,
    handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> ! {
    let handler = Arc::new(handler);
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of descriptors, or a fault: the listener itself is still good. Do not spin on it.
                crate::log(format_args!("accept: {e}"));
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
        };
        let slot = Slot::take(&open);
        let handler = handler.clone();
        let spawned = std::thread::Builder::new().spawn(move || {
            let result = match slot {
                Some(_slot) => converse(stream, handler.as_ref()),
                None => refuse(stream),
            };
            if let Err(e) = result {
                crate::log(format_args!("connection: {e}"));
            }
        });
        if let Err(e) = spawned {
            crate::log(format_args!("no thread for a connection: {e}"));
        }
    }
}

/// One of the [`MAX_CONNECTIONS`] places, given back on drop.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(open: &Arc<AtomicUsize>) -> Option<Slot> {
        let slot = Slot(open.clone());
        // On refusal the place just taken is given back by the drop of `slot`.
        (open.fetch_add(1, Ordering::Relaxed) < MAX_CONNECTIONS).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn refuse(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(&Reply::error(503, "too many connections").encode(false))
}

fn converse(
    mut stream: TcpStream,
    handler: &(impl Fn(&Request) -> Reply + ?Sized),
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE))?;
    let mut decoder = Decoder::default();
    let mut chunk = [0; 4096];
    loop {
        let request = loop {
            match decoder.request() {
                Ok(Progress::Done(request)) => break request,
                Ok(Progress::Continue) => stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?,
                Ok(Progress::More) => match stream.read(&mut chunk) {
                    Ok(0) if decoder.is_empty() => return Ok(()),
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(n) => decoder.push(&chunk[..n]),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    // Idle for too long: an ordinary end.
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(e) => return Err(e),
                },
                Err(refused) => {
                    let reply = Reply::error(refused.status, refused.why);
                    return stream.write_all(&reply.encode(false));
                }
            }
        };
        let reply = handler(&request);
        stream.write_all(&reply.encode(request.keep_alive))?;
        if !request.keep_alive {
            return Ok(());
        }
    }
}
