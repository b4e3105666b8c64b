//! Bytes that nobody has thought of, in both directions at once, through whole sessions: with no rule armed they pass unchanged;
//! with rules armed every session still ends; nothing panics.

use std::sync::LazyLock;

use bytes::Bytes;
use faultbox_engine::testing::fuzz;
use faultbox_kafka::codec::{Reply, Request, schema};
use faultbox_kafka::protocol;
use faultbox_kafka::records::Batch;
use proptest::collection::vec;
use proptest::prelude::*;

/// Whole messages of either side, which chunks cut up, repeat and mix with bytes of none.
static REQUESTS: LazyLock<Vec<Bytes>> = LazyLock::new(|| {
    let mut all = vec![Bytes::from_static(b"\0\0\0\x08\0\x12\0\0\0\0\0\x01")];
    for (key, version) in [
        (0, 2),
        (0, 3),
        (0, 9),
        (1, 4),
        (1, 12),
        (1, 13),
        (3, 0),
        (3, 12),
        (10, 4),
        (12, 4),
        (17, 0),
        (17, 1),
        (18, 3),
    ] {
        let api = schema::api(key).expect("it is in the table");
        for acks in [0, 1] {
            let mut request = Request::new(api, version, all.len() as i32 % 4);
            request.body.set("acks", acks);
            request.body.push("topics", version, |t| {
                t.with("topic", "orders")
                    .with_item("partitions", version, |p| {
                        p.with(
                            "records",
                            Some(Batch::of(Some(b"k"), Some(b"v"), &[], 0).bytes().clone()),
                        )
                    })
            });
            all.push(request.encode());
        }
    }
    all
});

static REPLIES: LazyLock<Vec<Bytes>> = LazyLock::new(|| {
    let mut all = vec![Bytes::from_static(b"\0\0\0\x04\0\0\0\x01")];
    for (key, version) in [
        (0, 2),
        (0, 3),
        (0, 9),
        (1, 4),
        (1, 12),
        (2, 1),
        (3, 0),
        (3, 12),
        (10, 4),
        (12, 4),
    ] {
        let api = schema::api(key).expect("it is in the table");
        for correlation in [0, 1, 2, 3, i32::MIN + 1] {
            let mut reply = Reply::new(api, version, correlation);
            reply.body.push("topics", version, |t| {
                t.with("topic", "orders")
                    .with_item("partitions", version, |p| {
                        p.with(
                            "records",
                            Some(Batch::of(Some(b"k"), Some(b"v"), &[], 0).bytes().clone()),
                        )
                    })
            });
            all.push(reply.encode());
        }
    }
    all
});

fn chunks(pieces: &'static [Bytes]) -> impl Strategy<Value = Vec<Vec<u8>>> {
    let piece = prop_oneof![
        12 => proptest::sample::select(pieces).prop_map(|b| b.to_vec()),
        1 => (proptest::sample::select(pieces), any::<proptest::sample::Index>()).prop_map(|(b, at)| b[..at.index(b.len())].to_vec()),
        1 => vec(any::<u8>(), 0..30),
    ];
    let stream = vec(piece, 0..6).prop_map(|pieces| pieces.concat());
    (stream, vec(any::<proptest::sample::Index>(), 0..6)).prop_map(|(stream, cuts)| {
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        cuts.windows(2)
            .map(|w| stream[w[0]..w[1]].to_vec())
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn without_rules_everything_passes_unchanged(client in chunks(&REQUESTS), broker in chunks(&REPLIES)) {
        fuzz::body(protocol(), &fuzz::encode(0, &client, &broker));
    }

    #[test]
    fn with_rules_every_session_ends(client in chunks(&REQUESTS), broker in chunks(&REPLIES), which in 0..RULES.len()) {
        fuzz::session(protocol(), client, broker, |proxy| fuzz::arm(proxy, RULES[which]));
    }
}

#[test]
fn the_corpus_passes() {
    assert!(fuzz::corpus(protocol()) > 0);
}

/// Rules with numbers as text.
const RULES: &[(&str, &[(&str, &str)])] = &[
    ("error", &[("topic", "nothing-like-it")]),
    ("error", &[("topic", "orders")]),
    ("error", &[("code", "6")]),
    ("drop", &[("topic", "orders")]),
    ("drop", &[("key", "k")]),
    ("drop", &[("api", "fetch")]),
    ("drop", &[("api", "fetch"), ("key", "k")]),
    ("drop", &[("api", "metadata")]),
    ("duplicate", &[]),
    ("delay", &[("delay", "1ms")]),
    ("reset", &[("api", "heartbeat")]),
    ("truncate", &[("bytes", "5")]),
    ("throttle", &[("rate", "100KB/s")]),
    ("corrupt", &[("offset", "1")]),
];
