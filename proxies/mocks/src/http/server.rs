//! One connection after another request: read, choose, wait, answer.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use faultbox_http::codec::{
    Body, HeadSearch, Look, Malformed, RequestInfo, RequestKind, split_target, with_request,
};
use faultbox_http::rules::Answer;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Http, Request};
use crate::calls::Calls;
use crate::script::{Routes, Script};
use faultbox_contract::Arg;

/// The largest body that is taken. What tests send is small; a bound there must be.
const LARGEST: usize = 64 << 20;

/// Serves one connection until it ends.
pub(crate) async fn serve(mut stream: TcpStream, routes: Arc<Routes<Http>>, calls: Calls) {
    let mut buffer = BytesMut::new();
    loop {
        match read(&mut stream, &mut buffer).await {
            Ok(Some((info, request))) => {
                let bytes = answer(&routes, &calls, &info, &request).await;
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
                if !info.keep_alive {
                    break;
                }
            }
            Ok(None) => break,
            Err(Refused::Io) => return,
            Err(Refused::Because(status, why)) => {
                let bytes = plain(status, &why, false, true, false);
                let _ = stream.write_all(&bytes).await;
                break;
            }
        }
    }
    // Closed at once, what the client still sends would be answered with a reset, and that could overtake the answer.
    faultbox_engine::linger(stream).await;
}

/// Why a request is not served.
enum Refused {
    Io,
    Because(u16, String),
}

impl From<Malformed> for Refused {
    fn from(e: Malformed) -> Refused {
        Refused::Because(400, e.0.to_owned())
    }
}

impl From<io::Error> for Refused {
    fn from(_: io::Error) -> Refused {
        Refused::Io
    }
}

/// Reads one request; `None` at the end of the connection.
async fn read(
    stream: &mut TcpStream,
    buffer: &mut BytesMut,
) -> Result<Option<(RequestInfo, Request)>, Refused> {
    let mut search = HeadSearch::default();
    let info = loop {
        if let Some(info) = search.request(buffer, Look::Whole)? {
            break info;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = buffer.split_to(info.len);
    let mut request = with_request(&head, |request, _| {
        let (path, query) = split_target(request.path.unwrap_or("/"));
        Request {
            method: request.method.unwrap_or_default().to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            headers: request
                .headers
                .iter()
                .map(|h| {
                    (
                        h.name.to_owned(),
                        String::from_utf8_lossy(h.value).into_owned(),
                    )
                })
                .collect(),
            body: vec![],
        }
    })?
    .ok_or(Malformed("a head without an end"))?;
    let mut body = Body::new(info.framing);
    if info.expects_continue && !body.is_done() && buffer.is_empty() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    loop {
        let content = &mut request.body;
        let taken = body.advance(buffer, |range| content.extend_from_slice(&buffer[range]))?;
        let _ = buffer.split_to(taken);
        if body.is_done() {
            return Ok(Some((info, request)));
        }
        if request.body.len() > LARGEST {
            return Err(Refused::Because(413, "a body of more than 64 MiB".into()));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(Refused::Io);
        }
    }
}

async fn answer(
    routes: &Routes<Http>,
    calls: &Calls,
    info: &RequestInfo,
    request: &Request,
) -> Vec<u8> {
    let described = request.describe();
    let found = routes
        .find(request, true, || Value::Object(described.clone()))
        .await;
    let head = info.kind == RequestKind::Head;
    let (close, http10) = (!info.keep_alive, info.http10);
    let mut call = described;
    call.insert("route".into(), json!(found.route));
    let encode = |answer: &Answer| (answer.status, answer.encode(head, close, http10));
    let (status, bytes) = match (&found.reply, &found.failed) {
        (Some(reply), _) => encode(&reply.reply),
        (None, Some(why)) => {
            call.insert("error".into(), why.as_str().into());
            (500, plain(500, why, head, close, http10))
        }
        (None, None) => {
            let (status, bytes) = unrouted(routes, request, head, close, http10);
            (status, bytes)
        }
    };
    call.insert("status".into(), status.into());
    let text = format!("{} {} -> {status}", request.method, request.path);
    call.insert("text".into(), text.into());
    calls.record(call);
    if let Some(reply) = &found.reply
        && !reply.delay.is_zero()
    {
        tokio::time::sleep(reply.delay).await;
    }
    bytes
}

/// No route: 404, or 405 where the path has routes for other methods (RFC 9110, 15.5.6).
fn unrouted(
    routes: &Routes<Http>,
    request: &Request,
    head: bool,
    close: bool,
    http10: bool,
) -> (u16, Vec<u8>) {
    let mut methods = vec![];
    let mut over = false;
    routes.any(|pattern| {
        if pattern.on_path(request) {
            match pattern.methods() {
                Some(method) if !routes.script().selects(pattern, request) => {
                    methods.push(method.to_owned());
                }
                // The route is for this request, and its sequence has come to its end.
                _ => over = true,
            }
        }
        false
    });
    let (status, message) = match methods.is_empty() || over {
        true => (404, "no route for"),
        false => (405, "no route with this method for"),
    };
    let mut args = vec![
        ("status".to_owned(), Arg::Int(status.into())),
        (
            "json".to_owned(),
            Arg::Json(json!({"error": format!("{message} {} {}", request.method, request.path)})),
        ),
    ];
    if status == 405 {
        let allow = json!({"Allow": methods.join(", ")});
        args.push(("headers".to_owned(), Arg::Json(allow)));
    }
    match Http.reply(args) {
        Ok(answer) => (status, answer.encode(head, close, http10)),
        // A pattern of methods that no header can hold.
        Err(_) => (404, plain(404, message, head, close, http10)),
    }
}

/// An answer of the mock's own.
fn plain(status: u16, message: &str, head: bool, close: bool, http10: bool) -> Vec<u8> {
    let args = Map::from_iter([("error".to_owned(), message.into())]);
    Http.reply(vec![
        ("status".to_owned(), Arg::Int(status.into())),
        ("json".to_owned(), Arg::Json(args.into())),
    ])
    .map(|answer| answer.encode(head, close, http10))
    .unwrap_or_default()
}
