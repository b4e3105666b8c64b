//! An order is made, over HTTP/2 and over gRPC: header fields from the table after the first time, as every client sends them.

use std::hint::black_box;

use bytes::BytesMut;
use faultbox_http2::codec::hpack::Decoder;
use faultbox_http2::codec::{Head, block, kind, put_block, put_data, put_window_update};

use crate::{Carrier, Said, Traffic};

/// RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// SETTINGS: no push, 100 streams.
const CLIENT_SETTINGS: &[u8] = b"\0\0\x0c\x04\0\0\0\0\0\0\x02\0\0\0\0\0\x03\0\0\0\x64";
/// SETTINGS: 100 streams; and the acknowledgement of the client's.
const SERVER_SETTINGS: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64\0\0\0\x04\x01\0\0\0\0";
const ACKNOWLEDGEMENT: &[u8] = b"\0\0\0\x04\x01\0\0\0\0";
/// The largest frame that anybody may send by default (RFC 9113, section 6.5.2).
const MAX_FRAME: usize = 1 << 14;
/// A message of gRPC: not compressed, 40 bytes.
const MESSAGE: &[u8] = b"\0\0\0\0\x28\x0a\x03hat\x10\x01\x1a\x1f0123456789abcdef0123456789abcde";

/// A header field by its place in the static table, or by a name that goes into the dynamic one.
enum Field {
    /// Name and value stand in the static table.
    Static(u8),
    /// The name does, the value goes into the dynamic table.
    Named(u8, &'static str),
    /// Both go into the dynamic table.
    Both(&'static str, &'static str),
}

use Field::{Both, Named, Static};

/// `POST`, `http`, `/shop.Orders/Create`, and what grpc-go sends.
const GRPC: &[Field] = &[
    Static(3),
    Static(6),
    Named(4, "/shop.Orders/Create"),
    Named(1, "orders.internal:50051"),
    Named(31, "application/grpc"),
    Named(58, "grpc-go/1.70.0"),
    Both("te", "trailers"),
    Both("grpc-accept-encoding", "gzip"),
    Both("authorization-tenant", "ann"),
];
/// 200.
const GRPC_REPLY: &[Field] = &[Static(8), Named(31, "application/grpc")];
const GRPC_TRAILERS: &[Field] = &[Both("grpc-status", "0"), Both("grpc-message", "")];

/// `GET`, `http`, `/orders`, and what a browser sends.
const PLAIN: &[Field] = &[
    Static(2),
    Static(6),
    Named(4, "/orders?expand=items"),
    Named(1, "orders.internal:8080"),
    Named(58, "curl/8.9.1"),
    Named(19, "application/json"),
    Named(23, "Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.x"),
];
const PLAIN_REPLY: &[Field] = &[
    Static(8),
    Named(31, "application/json"),
    Named(54, "nghttpd"),
    Named(33, "Thu, 01 Jan 2026 00:00:00 GMT"),
];

pub fn grpc() -> Traffic {
    Traffic {
        name: "grpc",
        protocol: faultbox_http2::grpc(),
        carrier: Carrier::Stream,
        opening: opening(),
        exchange: grpc_exchange,
        decode,
        matcher: "method",
        pattern: |n| format!("/never.Service{n}/*"),
    }
}

pub fn plain() -> Traffic {
    Traffic {
        name: "http2",
        protocol: faultbox_http2::http2(),
        carrier: Carrier::Stream,
        opening: opening(),
        exchange: plain_exchange,
        decode,
        matcher: "path",
        pattern: |n| format!("/never/{n}/*"),
    }
}

fn opening() -> Vec<Said> {
    vec![
        Said::Client([PREFACE, CLIENT_SETTINGS].concat()),
        Said::Server(SERVER_SETTINGS.to_vec()),
        Said::Client(ACKNOWLEDGEMENT.to_vec()),
    ]
}

/// HPACK of these fields: literally with indexing the first time, afterwards by their places in the table. `later` is how many entries
/// the same direction has put behind them.
fn fields(fields: &[Field], first: bool, later: usize) -> Vec<u8> {
    let mut out = vec![];
    let text = |out: &mut Vec<u8>, text: &str| {
        out.push(u8::try_from(text.len()).expect("short"));
        out.extend(text.as_bytes());
    };
    let dynamic = fields.iter().filter(|f| !matches!(f, Static(_))).count();
    let mut place = 0;
    for field in fields {
        if let (Named(..) | Both(..), false) = (field, first) {
            place += 1;
            // 61 entries are static, and the newest of the others comes first (RFC 7541, section 2.3.3).
            let index = 62 + later + dynamic - place;
            out.push(0x80 | u8::try_from(index).expect("a small table"));
            continue;
        }
        match field {
            Static(index) => out.push(0x80 | index),
            Named(index, value) => {
                out.push(0x40 | index);
                text(&mut out, value);
            }
            Both(name, value) => {
                out.push(0x40);
                text(&mut out, name);
                text(&mut out, value);
            }
        }
    }
    out
}

fn grpc_exchange(n: u32) -> (Vec<u8>, Vec<u8>) {
    let (stream, first) = (2 * n + 1, n == 0);
    let mut request = BytesMut::new();
    let block = fields(GRPC, first, 0);
    put_block(&mut request, stream, false, None, None, &block);
    put_data(&mut request, stream, MESSAGE, true);
    let mut reply = BytesMut::new();
    put_window_update(&mut reply, 0, MESSAGE.len());
    let block = fields(GRPC_REPLY, first, GRPC_TRAILERS.len());
    put_block(&mut reply, stream, false, None, None, &block);
    put_data(&mut reply, stream, MESSAGE, false);
    let block = fields(GRPC_TRAILERS, first, 0);
    put_block(&mut reply, stream, true, None, None, &block);
    // What the client has read of the reply before.
    if !first {
        put_window_update(&mut request, 0, MESSAGE.len());
    }
    (request.to_vec(), reply.to_vec())
}

fn plain_exchange(n: u32) -> (Vec<u8>, Vec<u8>) {
    const BODY: &[u8] = &[b'x'; 400];
    let (stream, first) = (2 * n + 1, n == 0);
    let mut request = BytesMut::new();
    put_block(
        &mut request,
        stream,
        true,
        None,
        None,
        &fields(PLAIN, first, 0),
    );
    if !first {
        put_window_update(&mut request, 0, BODY.len());
    }
    let mut reply = BytesMut::new();
    let block = fields(PLAIN_REPLY, first, 0);
    put_block(&mut reply, stream, false, None, None, &block);
    put_data(&mut reply, stream, BODY, true);
    (request.to_vec(), reply.to_vec())
}

fn decode(request: &[u8], reply: &[u8]) {
    for mut rest in [request, reply] {
        // A table of its own for each: what is counted must not depend on the order of the requests.
        let mut table = Decoder::default();
        while let Some(head) = Head::parse(rest) {
            head.check(MAX_FRAME).expect("a frame");
            if head.kind == kind::HEADERS {
                let block = block(rest, MAX_FRAME)
                    .expect("a block")
                    .expect("a whole one");
                let mut fields = vec![];
                // Entries of an earlier request are not in this table.
                let _ = black_box(table.decode(&block.fragment, Some(&mut fields)));
            }
            rest = &rest[head.whole()..];
        }
    }
}
