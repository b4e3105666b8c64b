//! One HTTP/2 exchange.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;

use bytes::Bytes;
use faultbox_contract::Endpoint;
use faultbox_engine::{errno_name, has_ended, open};
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::codec::ERROR_CODES;

/// The largest reply body that a step keeps. A spec looks at bodies; to move bulk data, let a service do it.
const MAX_BODY: usize = 64 << 20;

/// A reply while it arrives.
#[derive(Debug, Default)]
pub struct Reply {
    /// The status; 0 before it has come.
    pub status: u16,
    /// Header fields, then trailers, in order.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// The last field of this name: trailers hide headers.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .rev()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    fn add(&mut self, map: &HeaderMap) {
        self.headers.extend(map.iter().map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.as_str().to_owned(), value)
        }));
    }
}

/// Why a reply is not whole.
#[derive(Debug)]
pub enum Broken {
    /// The connection could not be made, or broke.
    Io(io::Error),
    /// The connection was closed.
    Eof,
    /// The stream was reset with this code.
    Reset(Reason),
    /// The server ended the connection with GOAWAY and this code.
    GoAway(Reason),
    /// It is not HTTP/2.
    Malformed(String),
    /// More than a step keeps.
    TooLarge,
}

impl Broken {
    /// What a step's `.code` and `.error` say.
    pub fn describe(&self) -> (String, String) {
        let name = |reason: &Reason| {
            let code = u32::from(*reason);
            ERROR_CODES
                .get(code as usize)
                .map_or_else(|| code.to_string(), |n| (*n).to_owned())
        };
        match self {
            Broken::Io(e) => (errno_name(e), e.to_string()),
            Broken::Eof => (
                "EOF".into(),
                "the connection was closed before the answer was complete".into(),
            ),
            Broken::Reset(reason) => (
                name(reason),
                format!("the stream was reset: {}", name(reason)),
            ),
            Broken::GoAway(reason) => (
                name(reason),
                format!("the server ended the connection: GOAWAY {}", name(reason)),
            ),
            Broken::Malformed(why) => ("EPROTO".into(), format!("the answer is not HTTP/2: {why}")),
            Broken::TooLarge => (
                "EMSGSIZE".into(),
                "the answer's body is larger than the 64 MiB that a step keeps".into(),
            ),
        }
    }
}

impl From<h2::Error> for Broken {
    fn from(e: h2::Error) -> Broken {
        let reason = e.reason();
        match reason {
            Some(reason) if e.is_reset() => Broken::Reset(reason),
            // The client's own complaint, as opposed to the server's.
            Some(_) if e.is_library() => Broken::Malformed(e.to_string()),
            Some(reason) => Broken::GoAway(reason),
            None if e.is_io() => match e.into_io() {
                Some(e) if e.kind() == io::ErrorKind::BrokenPipe && e.raw_os_error().is_none() => {
                    Broken::Eof
                }
                Some(e) if e.kind() == io::ErrorKind::UnexpectedEof => Broken::Eof,
                Some(e) => Broken::Io(e),
                None => Broken::Eof,
            },
            None => Broken::Malformed(e.to_string()),
        }
    }
}

async fn handshake(
    stream: TcpStream,
) -> Result<(SendRequest<Bytes>, h2::client::Connection<TcpStream, Bytes>), Broken> {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(1 << 20)
        .initial_connection_window_size(4 << 20);
    Ok(builder.handshake(stream).await?)
}

/// Connects, over TLS if the interface has it, and runs `work` with a way to send requests.
///
/// # Errors
/// What `work` says, or why there is no connection.
pub async fn connected<T, Fut>(
    endpoint: &Endpoint,
    work: impl FnOnce(SendRequest<Bytes>) -> Fut,
) -> Result<T, Broken>
where
    Fut: Future<Output = Result<T, Broken>>,
{
    let stream = open(endpoint, &["h2"]).await.map_err(Broken::Io)?;
    let (send, connection) = handshake(stream).await?;
    let mut connection = pin!(connection);
    let mut work = pin!(work(send));
    tokio::select! {
        biased;
        done = &mut work => done,
        ended = &mut connection => match ended {
            // Its streams know better what has become of them, unless they have been told nothing.
            Ok(()) => work.await,
            Err(e) => match work.await {
                Err(Broken::Malformed(_)) => Err(e.into()),
                done => done,
            },
        },
    }
}

/// Sends one request and reads its reply as far as it comes.
///
/// # Errors
/// Why it is not whole.
pub async fn exchange(
    endpoint: &Endpoint,
    request: Request<()>,
    body: Bytes,
    reply: &mut Reply,
) -> Result<(), Broken> {
    if endpoint.kept.is_none() {
        return connected(endpoint, |send| ask(send, request, body, reply)).await;
    }
    let connection = match endpoint
        .take_kept::<Connection>("")
        .filter(Connection::is_open)
    {
        Some(connection) => connection,
        None => Connection::open(endpoint).await?,
    };
    let done = ask(connection.send.clone(), request, body, reply).await;
    match done {
        Ok(()) => endpoint.keep("", connection),
        Err(_) => connection.driver.abort(),
    }
    done
}

/// A connection that the caller keeps, and the task that drives it; that ends once nobody can send any more.
struct Connection {
    send: SendRequest<Bytes>,
    /// A duplicate of the socket that the driver holds.
    socket: OwnedFd,
    driver: JoinHandle<()>,
}

impl Connection {
    async fn open(endpoint: &Endpoint) -> Result<Connection, Broken> {
        let stream = open(endpoint, &["h2"]).await.map_err(Broken::Io)?;
        let socket = stream.as_fd().try_clone_to_owned().map_err(Broken::Io)?;
        let (send, connection) = handshake(stream).await?;
        let driver = tokio::spawn(async move {
            // Those that wait for answers hear of its end.
            let _ = connection.await;
        });
        Ok(Connection {
            send,
            socket,
            driver,
        })
    }

    fn is_open(&self) -> bool {
        !self.driver.is_finished() && !has_ended(&self.socket)
    }
}

async fn ask(
    send: SendRequest<Bytes>,
    request: Request<()>,
    body: Bytes,
    reply: &mut Reply,
) -> Result<(), Broken> {
    let mut send = send.ready().await?;
    let (response, stream) = send.send_request(request, body.is_empty())?;
    // Both at once: a server may answer before it has read all of a body.
    let mut reading = pin!(receive(response, reply));
    let mut writing = pin!(send_all(stream, body));
    tokio::select! {
        biased;
        done = &mut reading => return done,
        // A failed write is not the outcome: the reply may be on its way, and if not, the read fails too.
        _ = &mut writing => {}
    }
    reading.await
}

/// Sends a body as the windows allow.
///
/// # Errors
/// The stream has ended.
pub async fn send_all(mut stream: SendStream<Bytes>, mut body: Bytes) -> Result<(), Broken> {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let room = match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(room) => room?,
            None => return Err(Broken::Eof),
        };
        let chunk = body.split_to(room.min(body.len()));
        let end = body.is_empty();
        stream.send_data(chunk, end)?;
    }
    Ok(())
}

async fn receive(response: ResponseFuture, reply: &mut Reply) -> Result<(), Broken> {
    let (head, mut body) = response.await?.into_parts();
    reply.status = head.status.as_u16();
    reply.add(&head.headers);
    while let Some(chunk) = next_chunk(&mut body).await? {
        reply.body.extend_from_slice(&chunk);
        if reply.body.len() > MAX_BODY {
            return Err(Broken::TooLarge);
        }
    }
    if let Some(trailers) = body.trailers().await? {
        reply.add(&trailers);
    }
    Ok(())
}

/// The next bytes of a body, with their room given back to the sender; `None` at its end.
///
/// # Errors
/// The stream has ended otherwise.
pub async fn next_chunk(body: &mut RecvStream) -> Result<Option<Bytes>, Broken> {
    let Some(chunk) = body.data().await else {
        return Ok(None);
    };
    let chunk = chunk?;
    body.flow_control().release_capacity(chunk.len())?;
    Ok(Some(chunk))
}
