//! The HTTP server: one task per connection.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use example_http::{Decoder, Progress, Reply, Request, log};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// A connection that is silent for so long is closed.
const IDLE: Duration = Duration::from_secs(60);

/// Answers requests until the process ends.
pub async fn serve<F: Future<Output = Reply> + Send>(
    listener: TcpListener,
    handler: impl Fn(Request) -> F + Clone + Send + Sync + 'static,
) -> Result<Infallible, String> {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let handler = handler.clone();
                tokio::spawn(async move {
                    if let Err(e) = converse(stream, handler).await {
                        log(format_args!("connection: {e}"));
                    }
                });
            }
            Err(e) => {
                // Out of descriptors, or a fault: the listener itself is still good. Do not spin on it.
                log(format_args!("accept: {e}"));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn converse<F: Future<Output = Reply>>(
    mut stream: TcpStream,
    handler: impl Fn(Request) -> F,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut decoder = Decoder::default();
    let mut chunk = [0; 4096];
    loop {
        let request = loop {
            match decoder.request() {
                Ok(Progress::Done(request)) => break request,
                Ok(Progress::Continue) => {
                    stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
                }
                Ok(Progress::More) => match timeout(IDLE, stream.read(&mut chunk)).await {
                    Err(_) => return Ok(()),
                    Ok(Ok(0)) if decoder.is_empty() => return Ok(()),
                    Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(Ok(n)) => decoder.push(&chunk[..n]),
                    Ok(Err(e)) => return Err(e),
                },
                Err(refused) => {
                    let reply = Reply::error(refused.status, refused.why);
                    return stream.write_all(&reply.encode(false)).await;
                }
            }
        };
        let keep_alive = request.keep_alive;
        let reply = handler(request).await;
        stream.write_all(&reply.encode(keep_alive)).await?;
        if !keep_alive {
            return Ok(());
        }
    }
}
