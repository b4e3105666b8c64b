//! Connections and calls.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use faultbox_http2::codec::hpack::Field;
use faultbox_http2::status::{self, Status};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;

use super::{Grpc, Messages, Reply, Request, health, put_message, reflection};
use crate::calls::Calls;
use crate::script::Routes;

/// The largest message that is taken: what tests send is small; a bound there must be.
const LARGEST: usize = 64 << 20;
/// How many messages of one call are recorded.
const RECORDED: usize = 1000;

/// gRPC's codes that the mock itself answers with.
mod code {
    pub(super) const UNKNOWN: u32 = 2;
    pub(super) const RESOURCE_EXHAUSTED: u32 = 8;
    pub(super) const UNIMPLEMENTED: u32 = 12;
    pub(super) const INTERNAL: u32 = 13;
}

/// What all connections share.
pub(crate) struct Server {
    routes: Arc<Routes<Grpc>>,
    calls: Calls,
}

/// Why a call ends without the reply that was meant.
enum Failure {
    /// The client has gone.
    Gone,
    /// It is told so.
    Refused(u32, String),
}

impl Server {
    /// A server of these routes.
    pub(crate) fn new(routes: Arc<Routes<Grpc>>, calls: Calls) -> Arc<Server> {
        Arc::new(Server { routes, calls })
    }

    /// Serves one connection until it ends.
    pub(crate) async fn serve(self: Arc<Server>, stream: TcpStream) {
        let Ok(mut connection) = h2::server::handshake(stream).await else {
            return;
        };
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(self.clone().call(request, respond));
        }
    }

    async fn call(
        self: Arc<Server>,
        request: http::Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let mut incoming = Incoming {
            from: body,
            buffer: BytesMut::new(),
        };
        let asked = Request {
            method: path.clone(),
        };
        let routed = self.routes.selects_any(&asked);
        let outcome = if !routed && reflection::is_reflection(&path) {
            self.reflect(&mut incoming, &mut respond).await
        } else if !routed && let Some(name) = health::method(&path) {
            check_health(name, &mut incoming, &mut respond).await
        } else {
            self.answer(&asked, &head.headers, &mut incoming, &mut respond)
                .await
        };
        if let Err(Failure::Refused(code, message)) = outcome {
            let _ = refuse(&mut respond, code, &message);
        }
    }

    /// A call that routes are for.
    async fn answer(
        &self,
        asked: &Request,
        headers: &HeaderMap,
        incoming: &mut Incoming,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<(), Failure> {
        let script = self.routes.script();
        let method = script.method(&asked.method);
        let (mut messages, mut size) = (vec![], 0);
        let refused = loop {
            match incoming.next().await {
                Ok(Some(message)) => {
                    size += message.len();
                    if messages.len() < RECORDED {
                        messages.push(Grpc::decode(method.as_ref(), &message));
                    }
                }
                Ok(None) => break None,
                Err(Failure::Gone) => return Err(Failure::Gone),
                Err(refused) => break Some(refused),
            }
        };
        let mut call = describe(asked, headers, &messages, size);
        let found = self.routes.find(asked, true, || call.clone().into()).await;
        call.insert("route".into(), json!(found.route));
        let encoded = match (&refused, &found.failed, &found.reply) {
            (Some(Failure::Refused(code, why)), ..) => Err((*code, why.clone())),
            (_, Some(why), _) => Err((code::UNKNOWN, why.clone())),
            (_, None, Some(ready)) => script
                .encode(method.as_ref(), &ready.reply)
                .map(|bytes| (ready, bytes))
                .map_err(|why| (code::INTERNAL, why)),
            (_, None, None) => Err((
                code::UNIMPLEMENTED,
                format!("no route for {}", asked.method),
            )),
        };
        let number = match &encoded {
            Ok((ready, _)) => ready.reply.status.code,
            Err((number, why)) => {
                call.insert("error".into(), why.as_str().into());
                *number
            }
        };
        let code = match number {
            0 => "OK".to_owned(),
            n => status::name(n),
        };
        call.insert("status".into(), number.into());
        call.insert("text".into(), format!("{} -> {code}", asked.method).into());
        call.insert("code".into(), code.into());
        self.calls.record(call);
        let (ready, bytes) = encoded.map_err(|(code, why)| Failure::Refused(code, why))?;
        if !ready.delay.is_zero() {
            tokio::time::sleep(ready.delay).await;
        }
        send(respond, &ready.reply, bytes).await
    }

    /// Questions and answers, until the client has no more.
    async fn reflect(
        &self,
        incoming: &mut Incoming,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<(), Failure> {
        let Some(pool) = &self.routes.script().pool else {
            return Err(Failure::Refused(
                code::UNIMPLEMENTED,
                "the mock has no descriptors= to tell of".into(),
            ));
        };
        let mut to = begin(respond, &[])?;
        while let Some(question) = incoming.next().await? {
            let Some(answer) = reflection::answer(pool, &question) else {
                break;
            };
            let mut out = BytesMut::new();
            put_message(&mut out, &answer);
            say(&mut to, out.freeze()).await?;
        }
        end(&mut to, &success()?)
    }
}

async fn check_health(
    name: &str,
    incoming: &mut Incoming,
    respond: &mut SendResponse<Bytes>,
) -> Result<(), Failure> {
    while incoming.next().await?.is_some() {}
    let mut to = begin(respond, &[])?;
    say(&mut to, health::serving()).await?;
    if name == "Watch" {
        // It never changes: the stream stays until the client ends it.
        let _ = std::future::poll_fn(|cx| to.poll_reset(cx)).await;
        return Err(Failure::Gone);
    }
    end(&mut to, &success()?)
}

/// A call as events and the spec's functions see it.
fn describe(
    asked: &Request,
    headers: &HeaderMap,
    messages: &[Value],
    size: usize,
) -> Map<String, Value> {
    let mut metadata = Map::new();
    for (name, value) in headers {
        metadata.insert(
            name.as_str().to_owned(),
            crate::calls::text(value.as_bytes()),
        );
    }
    let mut map = Map::new();
    map.insert("method".into(), asked.method.as_str().into());
    map.insert("metadata".into(), metadata.into());
    map.insert(
        "json".into(),
        messages.first().cloned().unwrap_or(Value::Null),
    );
    map.insert("messages".into(), messages.to_vec().into());
    map.insert("size".into(), size.into());
    map
}

/// The client's messages.
struct Incoming {
    from: RecvStream,
    buffer: BytesMut,
}

impl Incoming {
    /// The next one; `None` after the last.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some([compressed, length @ ..]) = self.buffer.first_chunk::<5>() {
                if *compressed != 0 {
                    return Err(Failure::Refused(
                        code::UNIMPLEMENTED,
                        "the mock takes no compressed messages".into(),
                    ));
                }
                let length = u32::from_be_bytes(*length) as usize;
                if length > LARGEST {
                    return Err(Failure::Refused(
                        code::RESOURCE_EXHAUSTED,
                        "a message of more than 64 MiB".into(),
                    ));
                }
                if self.buffer.len() >= 5 + length {
                    self.buffer.advance(5);
                    return Ok(Some(self.buffer.split_to(length).freeze()));
                }
            }
            match self.from.data().await {
                None => return Ok(None),
                Some(Err(_)) => return Err(Failure::Gone),
                Some(Ok(chunk)) => {
                    let _ = self.from.flow_control().release_capacity(chunk.len());
                    self.buffer.extend_from_slice(&chunk);
                }
            }
        }
    }
}

fn success() -> Result<Status, Failure> {
    Status::new(0, "", &[], vec![]).map_err(|e| Failure::Refused(code::INTERNAL, e.message))
}

/// Fields as the h2 crate takes them; what is no header is left out.
fn map(fields: impl IntoIterator<Item = (Bytes, Bytes)>) -> HeaderMap {
    fields
        .into_iter()
        .filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(&name).ok()?;
            Some((name, HeaderValue::from_maybe_shared(value).ok()?))
        })
        .collect()
}

fn pairs(fields: Vec<Field>) -> impl Iterator<Item = (Bytes, Bytes)> {
    fields.into_iter().map(|f| (f.name, f.value))
}

/// The head of a response with messages.
fn begin(
    respond: &mut SendResponse<Bytes>,
    headers: &[(String, String)],
) -> Result<SendStream<Bytes>, Failure> {
    let mut response = Response::new(());
    let all = headers
        .iter()
        .map(|(n, v)| (Bytes::from(n.to_ascii_lowercase()), Bytes::from(v.clone())));
    *response.headers_mut() = map(all);
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    respond
        .send_response(response, false)
        .map_err(|_| Failure::Gone)
}

/// Sends bytes as fast as the client takes them.
async fn say(to: &mut SendStream<Bytes>, mut bytes: Bytes) -> Result<(), Failure> {
    while !bytes.is_empty() {
        to.reserve_capacity(bytes.len());
        let room = std::future::poll_fn(|cx| to.poll_capacity(cx)).await;
        let Some(Ok(room)) = room else {
            return Err(Failure::Gone);
        };
        let chunk = bytes.split_to(room.min(bytes.len()));
        to.send_data(chunk, false).map_err(|_| Failure::Gone)?;
    }
    Ok(())
}

/// The status, after the messages.
fn end(to: &mut SendStream<Bytes>, status: &Status) -> Result<(), Failure> {
    to.send_trailers(map(pairs(status.trailers())))
        .map_err(|_| Failure::Gone)
}

async fn send(
    respond: &mut SendResponse<Bytes>,
    reply: &Reply,
    bytes: Bytes,
) -> Result<(), Failure> {
    if matches!(reply.messages, Messages::None) && reply.headers.is_empty() {
        return trailers_only(respond, &reply.status);
    }
    let mut to = begin(respond, &reply.headers)?;
    say(&mut to, bytes).await?;
    end(&mut to, &reply.status)
}

/// A status where nothing else is said: in the head ("Trailers-Only").
fn trailers_only(respond: &mut SendResponse<Bytes>, status: &Status) -> Result<(), Failure> {
    let mut response = Response::new(());
    let fields = status.trailers_only();
    *response.headers_mut() = map(pairs(fields).filter(|(name, _)| !name.starts_with(b":")));
    respond
        .send_response(response, true)
        .map(drop)
        .map_err(|_| Failure::Gone)
}

fn refuse(respond: &mut SendResponse<Bytes>, code: u32, message: &str) -> Result<(), Failure> {
    let status = Status::new(code, message, &[], vec![])
        .map_err(|e| Failure::Refused(code::INTERNAL, e.message))?;
    trailers_only(respond, &status)
}
