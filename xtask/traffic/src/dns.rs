//! A stub resolver's queries.

use std::hint::black_box;

use faultbox_dns::codec::{put_name, query};

use crate::{Carrier, Traffic};

/// OPT: 1232 bytes, no options (RFC 6891).
const EDNS: &[u8] = b"\0\0\x29\x04\xd0\0\0\0\0\0\0";

pub fn traffic() -> Traffic {
    Traffic {
        name: "dns",
        protocol: faultbox_dns::protocol(),
        carrier: Carrier::Datagrams,
        opening: vec![],
        exchange,
        decode,
        matcher: "name",
        pattern: |n| format!("*.never-{n}.internal"),
    }
}

fn exchange(n: u32) -> (Vec<u8>, Vec<u8>) {
    let id = (n as u16).to_be_bytes();
    let mut question = vec![];
    put_name(
        &format!("orders-{:04}.prod.internal", n % 64),
        &mut question,
    )
    .expect("a name");
    // A, IN.
    question.extend(b"\0\x01\0\x01");
    let request = [&id, &b"\x01\0\0\x01\0\0\0\0\0\x01"[..], &question, EDNS].concat();
    let answer = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\0\0\x07";
    let reply = [
        &id,
        &b"\x81\x80\0\x01\0\x01\0\0\0\x01"[..],
        &question,
        answer,
        EDNS,
    ]
    .concat();
    (request, reply)
}

fn decode(request: &[u8], reply: &[u8]) {
    let asked = query(request).expect("a message");
    assert!(black_box(asked).is_some());
    // A reply is told by its header alone.
    assert_eq!(black_box(query(reply)), Ok(None));
}
