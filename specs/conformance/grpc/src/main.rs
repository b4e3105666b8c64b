//! A gRPC service for the conformance specs: `orders.OrderService` with calls of every kind, on the h2 crate, and reflection (v1), so
//! that specs can call it without a descriptor file. It has no health service: readiness must do without.
//!
//! Usage: `conformance-grpc HOST:PORT`.

mod orders;
mod reflection;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};

/// A gRPC status.
pub struct Status {
    code: u8,
    message: &'static str,
}

/// UNIMPLEMENTED, as every server answers for a method that it does not have.
pub const UNIMPLEMENTED: Status = Status {
    code: 12,
    message: "no such method",
};
/// INVALID_ARGUMENT.
pub const INVALID: Status = Status {
    code: 3,
    message: "the request cannot be decoded",
};
/// NOT_FOUND.
pub const NOT_FOUND: Status = Status {
    code: 5,
    message: "no such order",
};
/// The client has gone.
const GONE: Status = Status {
    code: 1,
    message: "cancelled",
};

fn main() {
    let Some(addr) = std::env::args().nth(1) else {
        eprintln!("usage: conformance-grpc HOST:PORT");
        std::process::exit(2);
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let listener = match TcpListener::bind(&addr).await {
            Ok(listener) => listener,
            Err(e) => {
                eprintln!("{addr}: {e}");
                std::process::exit(1);
            }
        };
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        }
    });
}

async fn serve(stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(call(request, respond));
    }
}

/// One call's two directions.
pub struct Call {
    from: RecvStream,
    buffer: BytesMut,
    to: SendStream<Bytes>,
}

impl Call {
    /// The next message of the client; `None` after its last.
    pub async fn next<M: prost::Message + Default>(&mut self) -> Result<Option<M>, Status> {
        loop {
            if let Some(head) = self.buffer.first_chunk::<5>() {
                let [_, length @ ..] = *head;
                let length = u32::from_be_bytes(length) as usize;
                if self.buffer.len() >= 5 + length {
                    self.buffer.advance(5);
                    let message = self.buffer.split_to(length);
                    return M::decode(message).map(Some).map_err(|_| INVALID);
                }
            }
            match self.from.data().await {
                None => return Ok(None),
                Some(Err(_)) => return Err(GONE),
                Some(Ok(chunk)) => {
                    let _ = self.from.flow_control().release_capacity(chunk.len());
                    self.buffer.extend_from_slice(&chunk);
                }
            }
        }
    }

    /// The only message of a client that sends one.
    pub async fn only<M: prost::Message + Default>(&mut self) -> Result<M, Status> {
        self.next().await?.ok_or(INVALID)
    }

    /// Sends a message.
    pub async fn say<M: prost::Message>(&mut self, message: &M) -> Result<(), Status> {
        let mut bytes = BytesMut::new();
        bytes.put_u8(0);
        bytes.put_u32(message.encoded_len() as u32);
        message.encode(&mut bytes).map_err(|_| INVALID)?;
        let mut bytes = bytes.freeze();
        while !bytes.is_empty() {
            self.to.reserve_capacity(bytes.len());
            let room = std::future::poll_fn(|cx| self.to.poll_capacity(cx)).await;
            let Some(Ok(room)) = room else {
                return Err(GONE);
            };
            let chunk = bytes.split_to(room.min(bytes.len()));
            self.to.send_data(chunk, false).map_err(|_| GONE)?;
        }
        Ok(())
    }
}

async fn call(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let path = request.uri().path().to_owned();
    let response = Response::builder()
        .header("content-type", "application/grpc")
        .body(())
        .expect("a constant response");
    let Ok(to) = respond.send_response(response, false) else {
        return;
    };
    let mut call = Call {
        from: request.into_body(),
        buffer: BytesMut::new(),
        to,
    };
    let outcome = match path.rsplit_once('/') {
        Some(("/orders.OrderService", method)) => orders::call(method, &mut call).await,
        Some(("/grpc.reflection.v1.ServerReflection", "ServerReflectionInfo")) => {
            reflection::call(&mut call).await
        }
        _ => Err(UNIMPLEMENTED),
    };
    let mut trailers = HeaderMap::new();
    let (code, message) = match outcome {
        Ok(()) => (0, ""),
        Err(status) => (status.code, status.message),
    };
    trailers.insert("grpc-status", HeaderValue::from(u16::from(code)));
    if !message.is_empty() {
        trailers.insert("grpc-message", HeaderValue::from_static(message));
    }
    let _ = call.to.send_trailers(trailers);
}
