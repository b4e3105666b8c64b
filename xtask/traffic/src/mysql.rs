//! Orders of a customer, by a query with its own text each time.

use std::hint::black_box;

use bytes::BytesMut;
use faultbox_mysql::codec::{
    CHARSET_UTF8MB4, Column, HEADER, Reply, caps, column, column_count, header, kind, lenenc,
    put_command, query,
};

use crate::{Carrier, Said, Traffic};

/// A greeting with PROTOCOL_41, SECURE_CONNECTION, PLUGIN_AUTH and nothing else.
const GREETING: &[u8] = b"\x3e\0\0\0\x0a5.7\0\x01\0\0\0abcdefgh\0\x08\x82\x2d\x02\0\x08\0\x15\0\0\0\0\0\0\0\0\0\0ijklmnopqrst\0mysql_native\0";
/// PROTOCOL_41 and SECURE_CONNECTION: ann, without a password.
const LOGIN: &[u8] =
    b"\x25\0\0\x01\0\x82\0\0\0\0\0\x01\x2d\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0ann\0\0";
/// OK, autocommit.
const WELCOME: &[u8] = b"\x07\0\0\x02\0\0\0\x02\0\0\0";
const CAPABILITIES: u64 = caps::PROTOCOL_41 | caps::SECURE_CONNECTION;
const AUTOCOMMIT: u16 = 2;
const COM_QUERY: u8 = 3;

pub fn traffic() -> Traffic {
    Traffic {
        name: "mysql",
        protocol: faultbox_mysql::protocol(),
        carrier: Carrier::Stream,
        opening: vec![
            Said::Server(GREETING.to_vec()),
            Said::Client(LOGIN.to_vec()),
            Said::Server(WELCOME.to_vec()),
        ],
        exchange,
        decode,
        matcher: "query",
        pattern: |n| format!("INSERT INTO never_{n}*"),
    }
}

fn exchange(n: u32) -> (Vec<u8>, Vec<u8>) {
    let text = format!(
        "SELECT id, customer, total FROM orders WHERE customer = 'customer-{n:06}' AND state = 'open' ORDER BY id LIMIT 3"
    );
    let mut request = BytesMut::new();
    put_command(&mut request, COM_QUERY, text.as_bytes());
    let columns = ["id", "customer", "total"].map(|name| Column {
        name: name.into(),
        kind: kind::VAR_STRING,
        charset: CHARSET_UTF8MB4,
        length: 80,
        flags: 0,
        decimals: 0,
    });
    let rows = ["101", "102", "103"].map(|id| {
        let mut row = BytesMut::new();
        for value in [id, "customer-000001", "19.90"] {
            lenenc(&mut row, value.len() as u64);
            row.extend_from_slice(value.as_bytes());
        }
        row
    });
    let mut reply = Reply::new(1, CAPABILITIES, AUTOCOMMIT);
    reply.rows(&columns, rows);
    (request.to_vec(), reply.out.to_vec())
}

fn decode(request: &[u8], reply: &[u8]) {
    let command = header(request).expect("a packet");
    let text = query(&request[HEADER..HEADER + command.len], CAPABILITIES);
    black_box(text.expect("a query"));
    let mut rest = reply;
    let mut columns = None;
    while let Some(head) = header(rest) {
        let payload = &rest[HEADER..HEADER + head.len];
        match &mut columns {
            None => columns = Some(column_count(payload, CAPABILITIES).expect("a result").0),
            Some(0) => {}
            Some(left) => {
                *left -= 1;
                black_box(column(payload, CAPABILITIES).expect("a column"));
            }
        }
        rest = &rest[HEADER + head.len..];
    }
}
