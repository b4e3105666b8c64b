//! Orders of a customer: as a simple query with its own text each time, and prepared once.

use std::hint::black_box;

use bytes::{BufMut, BytesMut};
use faultbox_postgres::codec::{
    Column, HEADER, Side, bind, execute, header, message, object, put_command_complete, put_cstr,
    put_data_row, put_execute, put_query, put_row_description, query, row_description,
};

use crate::{Carrier, Said, Traffic};

/// StartupMessage of the user ann.
const HELLO: &[u8] = b"\0\0\0\x12\0\x03\0\0user\0ann\0\0";
/// AuthenticationOk, BackendKeyData, ReadyForQuery.
const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x01\0\0\0\x02Z\0\0\0\x05I";
const STATEMENT: &str =
    "SELECT id, customer, total FROM orders WHERE customer = $1 AND state = $2 ORDER BY id LIMIT 3";

pub fn simple() -> Traffic {
    Traffic {
        name: "postgres-simple",
        protocol: faultbox_postgres::protocol(),
        carrier: Carrier::Stream,
        opening: vec![Said::Client(HELLO.to_vec()), Said::Server(WELCOME.to_vec())],
        exchange: simple_exchange,
        decode,
        matcher: "query",
        pattern: |n| format!("INSERT INTO never_{n}*"),
    }
}

pub fn prepared() -> Traffic {
    let mut parse = BytesMut::new();
    message(&mut parse, b'P', |body| {
        put_cstr(body, b"s1");
        put_cstr(body, STATEMENT.as_bytes());
        body.put_u16(0);
    });
    message(&mut parse, b'S', |_| ());
    let mut traffic = Traffic {
        name: "postgres-prepared",
        exchange: prepared_exchange,
        ..simple()
    };
    traffic.opening.push(Said::Client(parse.to_vec()));
    let parsed = b"1\0\0\0\x04Z\0\0\0\x05I";
    traffic.opening.push(Said::Server(parsed.to_vec()));
    traffic
}

fn simple_exchange(n: u32) -> (Vec<u8>, Vec<u8>) {
    let text = STATEMENT
        .replace("$1", &format!("'customer-{n:06}'"))
        .replace("$2", "'open'");
    let mut request = BytesMut::new();
    put_query(&mut request, &text);
    let mut reply = BytesMut::new();
    put_result(&mut reply);
    (request.to_vec(), reply.to_vec())
}

fn prepared_exchange(n: u32) -> (Vec<u8>, Vec<u8>) {
    let mut request = BytesMut::new();
    message(&mut request, b'B', |body| {
        put_cstr(body, b"");
        put_cstr(body, b"s1");
        // All in text.
        body.put_u16(0);
        body.put_u16(2);
        for value in [format!("customer-{n:06}"), "open".to_owned()] {
            body.put_u32(value.len() as u32);
            body.put_slice(value.as_bytes());
        }
        body.put_u16(0);
    });
    message(&mut request, b'D', |body| {
        body.put_u8(b'P');
        put_cstr(body, b"");
    });
    put_execute(&mut request, "");
    message(&mut request, b'S', |_| ());
    let mut reply = BytesMut::new();
    message(&mut reply, b'2', |_| ());
    put_result(&mut reply);
    (request.to_vec(), reply.to_vec())
}

/// Columns, three rows, their end, and the session's state.
fn put_result(out: &mut BytesMut) {
    let columns = [("id", 20), ("customer", 25), ("total", 1700)].map(|(name, oid)| Column {
        name: name.into(),
        oid,
        format: 0,
    });
    put_row_description(out, &columns);
    for id in ["101", "102", "103"] {
        let values = [id, "customer-000001", "19.90"];
        put_data_row(out, &values.map(|v| Some(v.into())));
    }
    put_command_complete(out, "SELECT 3");
    message(out, b'Z', |body| body.put_u8(b'I'));
}

fn decode(request: &[u8], reply: &[u8]) {
    for (mut rest, side) in [(request, Side::Frontend), (reply, Side::Backend)] {
        while let Some(head) = header(rest, side).expect("a message") {
            let body = &rest[HEADER..head.total];
            match (side, head.tag) {
                (Side::Frontend, b'Q') => drop(black_box(query(body))),
                (Side::Frontend, b'B') => drop(black_box(bind(body).expect("a Bind"))),
                (Side::Frontend, b'D') => drop(black_box(object(body).expect("a Describe"))),
                (Side::Frontend, b'E') => drop(black_box(execute(body).expect("an Execute"))),
                (Side::Backend, b'T') => drop(black_box(row_description(body).expect("columns"))),
                _ => {}
            }
            rest = &rest[head.total..];
        }
    }
}
