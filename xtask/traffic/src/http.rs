//! A JSON API: an order is read.

use std::hint::black_box;

use faultbox_http::codec::{Body, HeadSearch, Look, RequestKind};

use crate::{Carrier, Traffic};

pub fn traffic() -> Traffic {
    Traffic {
        name: "http",
        protocol: faultbox_http::protocol(),
        carrier: Carrier::Stream,
        opening: vec![],
        exchange,
        decode,
        matcher: "path",
        pattern: |n| format!("/never/{n}/*"),
    }
}

fn exchange(n: u32) -> (Vec<u8>, Vec<u8>) {
    let request = format!(
        "GET /orders/{n:06}?expand=items HTTP/1.1\r\n\
         host: orders.internal:8080\r\n\
         user-agent: python-requests/2.32.3\r\n\
         accept-encoding: gzip, deflate\r\n\
         accept: application/json\r\n\
         connection: keep-alive\r\n\
         x-request-id: 5f0c2a1e-7d3b-4c1f-9a55-0000{n:08}\r\n\
         authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.x\r\n\r\n"
    );
    let item = r#"{"item":"hat","quantity":1,"price":"19.90"}"#;
    let body = format!(r#"{{"id":{n:06},"items":[{}]}}"#, [item; 8].join(","));
    let reply = format!(
        "HTTP/1.1 200 OK\r\n\
         server: nginx/1.22.1\r\n\
         date: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
         content-type: application/json\r\n\
         content-length: {}\r\n\
         connection: keep-alive\r\n\r\n{body}",
        body.len()
    );
    (request.into(), reply.into())
}

fn decode(request: &[u8], reply: &[u8]) {
    let asked = HeadSearch::default().request(request, Look::Framing);
    let asked = asked.expect("a request").expect("a whole one");
    black_box(asked);
    let said = HeadSearch::default().reply(reply, RequestKind::Other, Look::Framing);
    let said = said.expect("a reply").expect("a whole one");
    let mut body = Body::new(said.framing);
    let taken = body.advance(&reply[said.len..], |part| {
        black_box(part);
    });
    assert_eq!(taken.expect("a body"), reply.len() - said.len);
}
