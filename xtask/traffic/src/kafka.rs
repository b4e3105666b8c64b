//! A producer and a consumer of one topic.

use std::hint::black_box;

use bytes::Bytes;
use faultbox_kafka::codec::{Reply, Request, schema};
use faultbox_kafka::records::{Batch, join};

use crate::{Carrier, Traffic};

/// Their keys, and versions that brokers of the last years speak.
const PRODUCE: (i16, i16) = (0, 9);
const FETCH: (i16, i16) = (1, 12);
/// Records in a message.
const RECORDS: usize = 10;

pub fn produce() -> Traffic {
    Traffic {
        name: "kafka-produce",
        protocol: faultbox_kafka::protocol(),
        carrier: Carrier::Stream,
        opening: vec![],
        exchange: produce_exchange,
        decode: |request, reply| decode(PRODUCE, request, reply),
        matcher: "topic",
        pattern: |n| format!("never-{n}-*"),
    }
}

pub fn fetch() -> Traffic {
    Traffic {
        name: "kafka-fetch",
        exchange: fetch_exchange,
        decode: |request, reply| decode(FETCH, request, reply),
        ..produce()
    }
}

/// What is written and read.
fn records() -> Bytes {
    let value = "0123456789abcdef".repeat(6);
    let batches: Vec<Batch> = (0..RECORDS)
        .map(|i| {
            let key = format!("order-{i:04}");
            // Milliseconds; a fixed moment of 2026.
            let at = 1_767_225_600_000;
            Batch::of(Some(key.as_bytes()), Some(value.as_bytes()), &[], at)
        })
        .collect();
    join(&batches, b"")
}

fn api((key, _): (i16, i16)) -> &'static schema::Api {
    schema::api(key).expect("it is in the table")
}

fn produce_exchange(n: u32) -> (Vec<u8>, Vec<u8>) {
    let version = PRODUCE.1;
    let mut request = Request::new(api(PRODUCE), version, n as i32);
    request.body.set("acks", 1);
    request.body.set("timeout_ms", 30_000);
    request.body.push("topics", version, |topic| {
        topic
            .with("topic", "orders")
            .with_item("partitions", version, |p| {
                p.with("records", Some(records()))
            })
    });
    let mut reply = Reply::new(api(PRODUCE), version, n as i32);
    reply.body.push("topics", version, |topic| {
        topic
            .with("topic", "orders")
            .with_item("partitions", version, |p| {
                p.with("base_offset", i64::from(n) * RECORDS as i64)
            })
    });
    (request.encode().to_vec(), reply.encode().to_vec())
}

fn fetch_exchange(n: u32) -> (Vec<u8>, Vec<u8>) {
    let version = FETCH.1;
    let mut request = Request::new(api(FETCH), version, n as i32);
    request.body.push("topics", version, |topic| {
        topic
            .with("topic", "orders")
            .with_item("partitions", version, |p| p)
    });
    let mut reply = Reply::new(api(FETCH), version, n as i32);
    reply.body.push("topics", version, |topic| {
        topic
            .with("topic", "orders")
            .with_item("partitions", version, |p| {
                p.with("records", Some(records()))
            })
    });
    (request.encode().to_vec(), reply.encode().to_vec())
}

fn decode(which: (i16, i16), request: &[u8], reply: &[u8]) {
    let asked = Request::decode(Bytes::copy_from_slice(request)).expect("a request");
    assert!(black_box(asked).is_some());
    let said = Reply::decode(api(which), which.1, Bytes::copy_from_slice(reply));
    black_box(said.expect("a reply"));
}
