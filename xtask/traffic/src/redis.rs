//! A session store: written and read in turns.

use std::hint::black_box;

use faultbox_redis::codec::{Front, Reader, front, put_command};

use crate::{Carrier, Traffic};

pub fn traffic() -> Traffic {
    Traffic {
        name: "redis",
        protocol: faultbox_redis::protocol(),
        carrier: Carrier::Stream,
        opening: vec![],
        exchange,
        decode,
        matcher: "key",
        pattern: |n| format!("never:{n}:*"),
    }
}

fn exchange(n: u32) -> (Vec<u8>, Vec<u8>) {
    let key = format!("session:{:08}", n / 2);
    let value = "0123456789abcdef".repeat(8);
    let mut request = vec![];
    let reply = if n.is_multiple_of(2) {
        put_command(&mut request, &["SET", &key, &value, "EX", "3600"]);
        "+OK\r\n".to_owned()
    } else {
        put_command(&mut request, &["GET", &key]);
        format!("${}\r\n{value}\r\n", value.len())
    };
    (request, reply.into())
}

fn decode(request: &[u8], reply: &[u8]) {
    let Ok(Front::Command(head)) = front(request) else {
        panic!("a command");
    };
    black_box(head.args(request, head.argc).expect("arguments"));
    let mut reader = Reader::new();
    let read = reader.read(reply, |payload| {
        black_box(payload);
    });
    assert!(reader.is_over() && read == Ok(reply.len()));
}
