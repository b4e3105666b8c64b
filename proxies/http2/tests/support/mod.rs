//! A server and a client of another make (the h2 crate), with the proxy between them.

// Each test binary uses its part of this.
#![allow(dead_code)]

pub mod raw;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use faultbox_contract::Arg;
use faultbox_engine::testing::Harness;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

pub fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

pub fn int(i: i64) -> Arg {
    Arg::Int(i)
}

pub fn code_of(error: &h2::Error) -> Option<Reason> {
    error.reason()
}

/// A server that answers with what it was sent.
pub struct Echo {
    pub addr: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    task: AbortHandle,
}

impl Echo {
    /// The paths of the requests that have reached it.
    pub fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    pub fn stop(&self) {
        self.task.abort();
    }

    async fn start() -> Echo {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let log = seen.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                connections.spawn(serve(stream, log.clone()));
            }
        });
        Echo {
            addr,
            seen,
            task: task.abort_handle(),
        }
    }
}

async fn serve(stream: TcpStream, seen: Arc<Mutex<Vec<String>>>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    let mut streams = tokio::task::JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        seen.lock().unwrap().push(request.uri().path().to_owned());
        streams.spawn(async move {
            let _ = echo(request, respond).await;
        });
    }
}

async fn echo(
    request: Request<RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let grpc = head
        .headers
        .get("content-type")
        .is_some_and(|t| t == "application/grpc");
    let response = Response::builder()
        .status(200)
        .header("x-path", head.uri.path())
        .header(
            "content-type",
            if grpc {
                "application/grpc"
            } else {
                "text/plain"
            },
        )
        .header(
            "x-echo",
            head.headers
                .get("x-send")
                .cloned()
                .unwrap_or(HeaderValue::from_static("")),
        )
        .body(())
        .unwrap();
    let fan_out = head
        .headers
        .get("x-fan-out")
        .map(|n| n.to_str().unwrap().parse::<usize>().unwrap());
    let last = head.headers.contains_key("x-answer-last");
    let mut out = None;
    if !last {
        out = Some(respond.send_response(response.clone(), false)?);
    }
    let mut kept = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        if last || fan_out.is_some() {
            kept.extend_from_slice(&chunk);
        } else if let Some(out) = &mut out {
            send(out, chunk, false).await?;
        }
    }
    let mut out = match out {
        Some(out) => out,
        None => respond.send_response(response, false)?,
    };
    if let Some(size) = head.headers.get("x-size") {
        kept.resize(size.to_str().unwrap().parse().unwrap(), b'x');
    }
    let kept = kept.freeze();
    for _ in 0..fan_out.unwrap_or(usize::from(last)) {
        send(&mut out, kept.clone(), false).await?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("x-echo-bin", HeaderValue::from_static("AAEC"));
    out.send_trailers(trailers)
}

async fn send(out: &mut SendStream<Bytes>, mut bytes: Bytes, end: bool) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        out.reserve_capacity(bytes.len());
        let Some(room) = poll_fn(|cx| out.poll_capacity(cx)).await else {
            return Ok(());
        };
        let chunk = bytes.split_to(room?.min(bytes.len()));
        let last = bytes.is_empty();
        out.send_data(chunk, end && last)?;
    }
    Ok(())
}

/// A server, a proxy.
pub struct Lab {
    pub server: Echo,
    pub proxy: Harness,
}

impl Lab {
    pub async fn grpc() -> Lab {
        let server = Echo::start().await;
        let proxy = Harness::start(faultbox_http2::grpc(), server.addr);
        Lab { server, proxy }
    }

    pub async fn http2() -> Lab {
        let server = Echo::start().await;
        let proxy = Harness::start(faultbox_http2::http2(), server.addr);
        Lab { server, proxy }
    }

    /// A client with a connection of its own.
    pub async fn client(&self) -> Client {
        let stream = TcpStream::connect(self.proxy.addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (send, mut connection) = h2::client::handshake(stream).await.unwrap();
        let ping = connection.ping_pong();
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        Client {
            send,
            ping: tokio::sync::Mutex::new(ping.unwrap()),
            task: task.abort_handle(),
        }
    }
}

pub struct Client {
    send: h2::client::SendRequest<Bytes>,
    ping: tokio::sync::Mutex<h2::PingPong>,
    task: AbortHandle,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
    pub trailers_only: bool,
}

impl Reply {
    /// The grpc-status, wherever it stands.
    pub fn code(&self) -> &str {
        match self.trailers.get("grpc-status") {
            Some(code) => code.to_str().unwrap(),
            None => self.header("grpc-status"),
        }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    pub fn trailer(&self, name: &str) -> &str {
        self.trailers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// The body's messages.
    pub fn messages(&self) -> Vec<Vec<u8>> {
        let mut rest = &self.body[..];
        let mut found = vec![];
        while !rest.is_empty() {
            let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
            found.push(rest[5..5 + length].to_vec());
            rest = &rest[5 + length..];
        }
        found
    }
}

/// Messages with their prefixes.
fn framed(messages: &[&[u8]]) -> Bytes {
    let mut out = BytesMut::new();
    for message in messages {
        out.put_u8(0);
        out.put_u32(message.len() as u32);
        out.put_slice(message);
    }
    out.freeze()
}

impl Client {
    pub async fn ping(&self) {
        self.ping
            .lock()
            .await
            .ping(h2::Ping::opaque())
            .await
            .unwrap();
    }

    /// A gRPC call; without `end` the request is left open.
    pub async fn call(
        &self,
        path: &str,
        messages: &[&[u8]],
        end: bool,
    ) -> Result<Reply, h2::Error> {
        self.exchange(
            "POST",
            path,
            framed(messages),
            end,
            &[("content-type", "application/grpc")],
        )
        .await
    }

    /// A call with a metadata field that comes back as "x-echo".
    pub async fn call_with(
        &self,
        path: &str,
        message: &[u8],
        sent: &str,
    ) -> Result<Reply, h2::Error> {
        let headers = [("content-type", "application/grpc"), ("x-send", sent)];
        self.exchange("POST", path, framed(&[message]), true, &headers)
            .await
    }

    /// The server repeats the message so many times.
    pub async fn fan_out(
        &self,
        path: &str,
        message: &[u8],
        times: usize,
    ) -> Result<Reply, h2::Error> {
        let times = times.to_string();
        let headers = [("content-type", "application/grpc"), ("x-fan-out", &times)];
        self.exchange("POST", path, framed(&[message]), true, &headers)
            .await
    }

    /// The server answers when it has read everything.
    pub async fn call_answering_last(
        &self,
        path: &str,
        messages: &[&[u8]],
    ) -> Result<Reply, h2::Error> {
        let headers = [("content-type", "application/grpc"), ("x-answer-last", "1")];
        self.exchange("POST", path, framed(messages), true, &headers)
            .await
    }

    /// A call whose reply is cut: the error, and how many bytes had come.
    pub async fn cut(&self, path: &str, message: &[u8]) -> (h2::Error, usize) {
        let mut send = self.send.clone().ready().await.unwrap();
        let request = request("POST", path, &[("content-type", "application/grpc")]);
        let (response, mut out) = send.send_request(request, false).unwrap();
        let writing = tokio::spawn({
            let bytes = framed(&[message]);
            async move { send_all(&mut out, bytes).await }
        });
        let mut body = response.await.unwrap().into_body();
        let mut got = 0;
        let error = loop {
            match body
                .data()
                .await
                .expect("the stream does not end in good order")
            {
                Ok(chunk) => {
                    got += chunk.len();
                    body.flow_control().release_capacity(chunk.len()).unwrap();
                }
                Err(e) => break e,
            }
        };
        let _ = writing.await;
        (error, got)
    }

    pub async fn request(&self, method: &str, path: &str, body: Bytes) -> Result<Reply, h2::Error> {
        self.exchange(method, path, body, true, &[]).await
    }

    async fn exchange(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
        end: bool,
        headers: &[(&str, &str)],
    ) -> Result<Reply, h2::Error> {
        let mut send = self.send.clone().ready().await?;
        let done = body.is_empty() && end;
        let (response, mut out) = send.send_request(request(method, path, headers), done)?;
        let writing = async {
            if !done {
                let _ = self::send(&mut out, body, end).await;
            }
            out
        };
        let reading = async {
            let (head, mut body) = response.await?.into_parts();
            let mut reply = Reply {
                status: head.status.as_u16(),
                trailers_only: body.is_end_stream(),
                headers: head.headers,
                ..Reply::default()
            };
            while let Some(chunk) = body.data().await {
                let chunk = chunk?;
                body.flow_control().release_capacity(chunk.len())?;
                reply.body.extend_from_slice(&chunk);
            }
            reply.trailers = body.trailers().await?.unwrap_or_default();
            Ok(reply)
        };
        let (mut writing, mut reading) = (std::pin::pin!(writing), std::pin::pin!(reading));
        tokio::select! {
            reply = &mut reading => reply,
            // The request's half must live as long as the reply comes: dropping it would cancel the stream.
            _out = &mut writing => reading.await,
        }
    }
}

async fn send_all(out: &mut SendStream<Bytes>, bytes: Bytes) -> Result<(), h2::Error> {
    send(out, bytes, true).await
}

fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://127.0.0.1:1{path}"))
        .header("x-tenant", "acme")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}
