//! The proxy between a client and a broker that are both made here, message by message.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use faultbox_contract::Arg;
use faultbox_engine::testing::Harness;
use faultbox_kafka::codec::schema::{self, FETCH, LIST_OFFSETS, METADATA, PRODUCE};
use faultbox_kafka::codec::{Api, Reply, Request, Struct, Value, reply_head, request_head};
use faultbox_kafka::records::{self, Batch};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const DEADLINE: Duration = Duration::from_secs(60);
const ID: [u8; 16] = [7; 16];
/// Where the log of every partition ends.
const END: i64 = 40;

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

fn api(key: i16) -> &'static Api {
    schema::api(key).unwrap()
}

/// What a broker has been asked.
type Asked = Arc<Mutex<Vec<Request>>>;

/// A broker that answers everything, with a success of the shape that the request asks for.
async fn broker() -> (SocketAddr, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let asked = Asked::default();
    let seen = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer_all(stream, seen.clone()));
        }
    });
    (addr, asked)
}

async fn answer_all(mut stream: TcpStream, asked: Asked) {
    let mut inbox = BytesMut::new();
    loop {
        while let Ok(Some(head)) = request_head(&inbox) {
            if inbox.len() < head.len {
                break;
            }
            let message = inbox.split_to(head.len).freeze();
            let request = Request::decode(message).unwrap().unwrap();
            asked.lock().unwrap().push(request.clone());
            if head.answered {
                stream.write_all(&answer(&request).encode()).await.unwrap();
            }
        }
        if !matches!(stream.read_buf(&mut inbox).await, Ok(1..)) {
            return;
        }
    }
}

fn answer(request: &Request) -> Reply {
    let version = request.version;
    let mut reply = Reply::new(request.api, version, request.correlation);
    if request.api.key == METADATA {
        reply.body.push("brokers", version, |b| {
            b.with("node_id", 1)
                .with("host", "127.0.0.1")
                .with("port", 1)
        });
    }
    let topics: Vec<Struct> = match request.body.list("topics") {
        [] if request.api.key == METADATA
            && request.body.get("topics") == Some(&Value::List(None)) =>
        {
            let all = request.body.item("topics", version).unwrap();
            vec![
                all.with("topic", "orders")
                    .with("topic_id", Value::Uuid(ID)),
            ]
        }
        topics => topics.to_vec(),
    };
    for topic in topics {
        reply.body.push("topics", version, |mut t| {
            for name in ["topic", "topic_id"] {
                if let Some(value) = topic.get(name) {
                    t.set(name, value.clone());
                }
            }
            for partition in topic.list("partitions") {
                t.push("partitions", version, |p| {
                    p.with("partition", partition.int("partition").unwrap())
                        .with("base_offset", END)
                        .with("offset", END)
                        .with("error_code", 0)
                });
            }
            t
        });
    }
    reply
}

/// A client's end of a connection.
struct Client {
    stream: TcpStream,
    inbox: BytesMut,
}

impl Client {
    async fn connect(proxy: &Harness) -> Client {
        Client {
            stream: TcpStream::connect(proxy.addr).await.unwrap(),
            inbox: BytesMut::new(),
        }
    }

    async fn say(&mut self, request: &Request) {
        self.stream.write_all(&request.encode()).await.unwrap();
    }

    /// The next response's bytes, or `None` at the end.
    async fn hear(&mut self) -> Option<Bytes> {
        let hear = async {
            loop {
                if let Ok(Some((len, _))) = reply_head(&self.inbox)
                    && self.inbox.len() >= len
                {
                    return Some(self.inbox.split_to(len).freeze());
                }
                if !matches!(self.stream.read_buf(&mut self.inbox).await, Ok(1..)) {
                    return None;
                }
            }
        };
        tokio::time::timeout(DEADLINE, hear)
            .await
            .expect("an answer")
    }

    async fn ask(&mut self, request: &Request) -> Reply {
        self.say(request).await;
        let bytes = self.hear().await.expect("an answer");
        let reply = Reply::decode(request.api, request.version, bytes).unwrap();
        assert_eq!(reply.correlation, request.correlation);
        reply
    }
}

/// A produce request for these partitions of "orders", one record each.
fn produce(version: i16, correlation: i32, acks: i64, partitions: &[i64]) -> Request {
    let mut request = Request::new(api(PRODUCE), version, correlation);
    request.body.set("acks", acks);
    request.body.push("topics", version, |mut t| {
        t.set("topic", "orders");
        t.set("topic_id", Value::Uuid(ID));
        for partition in partitions {
            let batch = Batch::of(Some(b"k"), Some(b"v"), &[], 0);
            t.push("partitions", version, |p| {
                p.with("partition", *partition)
                    .with("records", Some(batch.bytes().clone()))
            });
        }
        t
    });
    request
}

/// (partition, error, offset) of each partition in a reply.
fn told(reply: &Reply) -> Vec<(i64, i64, i64)> {
    let topics = reply.body.list("topics").iter();
    let parts = topics.flat_map(|t| t.list("partitions"));
    let int = |p: &Struct, name: &str| p.int(name).unwrap_or(-99);
    let mut told: Vec<_> = parts
        .map(|p| {
            (
                int(p, "partition"),
                int(p, "error_code"),
                int(p, "base_offset"),
            )
        })
        .collect();
    told.sort_unstable();
    told
}

fn asked_for(asked: &Asked, key: i16) -> Vec<Request> {
    let mut all = asked.lock().unwrap().clone();
    all.retain(|r| r.api.key == key);
    all
}

fn partitions(request: &Request) -> Vec<i64> {
    let topics = request.body.list("topics").iter();
    let parts = topics.flat_map(|t| t.list("partitions"));
    parts.map(|p| p.int("partition").unwrap()).collect()
}

#[tokio::test]
async fn lost_partitions_are_kept_from_the_broker_and_told_to_be_stored() {
    for version in 0..=13 {
        let (addr, asked) = broker().await;
        let proxy = Harness::start(faultbox_kafka::protocol(), addr);
        let rule = proxy.arm(
            "drop",
            &[("topic", text("orders")), ("partition", Arg::Int(1))],
        );
        let mut client = Client::connect(&proxy).await;
        // Mixed, all lost twice, none lost.
        let reply = client.ask(&produce(version, 1, -1, &[0, 1, 2])).await;
        assert_eq!(
            told(&reply),
            [(0, 0, END), (1, 0, END), (2, 0, END)],
            "v{version}"
        );
        for next in [1, 2] {
            let reply = client.ask(&produce(version, 2, 1, &[1])).await;
            assert_eq!(told(&reply), [(1, 0, END + next)], "v{version}");
        }
        let reply = client.ask(&produce(version, 3, 1, &[0])).await;
        assert_eq!(told(&reply), [(0, 0, END)], "v{version}");
        let seen: Vec<_> = asked_for(&asked, PRODUCE).iter().map(partitions).collect();
        assert_eq!(seen, [vec![0, 2], vec![0]], "v{version}");
        assert_eq!(asked_for(&asked, LIST_OFFSETS).len(), 3, "v{version}");
        assert_eq!(rule.hits(), 3);
        assert_eq!(proxy.degradations(), [""; 0]);
    }
}

#[tokio::test]
async fn errors_stand_in_the_partitions_slots() {
    for version in 0..=13 {
        let (addr, asked) = broker().await;
        let proxy = Harness::start(faultbox_kafka::protocol(), addr);
        proxy.arm(
            "error",
            &[
                ("topic", text("orders")),
                ("partition", Arg::Int(1)),
                ("code", Arg::Int(19)),
            ],
        );
        let mut client = Client::connect(&proxy).await;
        let reply = client.ask(&produce(version, 1, -1, &[0, 1])).await;
        assert_eq!(told(&reply), [(0, 0, END), (1, 19, -1)], "v{version}");
        let reply = client.ask(&produce(version, 2, -1, &[1])).await;
        assert_eq!(told(&reply), [(1, 19, -1)], "v{version}");
        let seen: Vec<_> = asked_for(&asked, PRODUCE).iter().map(partitions).collect();
        assert_eq!(seen, [[0]], "v{version}");
    }
}

/// Is this error anywhere in a message?
fn says(body: &Struct, code: i64) -> bool {
    body.entries().any(|(field, value)| match value {
        Value::Int(i) => field.name == "error_code" && *i == code,
        Value::List(items) => items.iter().flatten().any(|item| says(item, code)),
        Value::Struct(inner) => inner.iter().any(|inner| says(inner, code)),
        _ => false,
    })
}

/// A request with one item in each list.
fn with_items(mut body: Struct, version: i16) -> Struct {
    let lists: Vec<_> = body
        .entries()
        .filter(|(_, value)| matches!(value, Value::List(_)))
        .map(|(field, _)| field.name)
        .collect();
    for list in lists {
        body.push(list, version, |item| with_items(item, version));
    }
    body
}

#[tokio::test]
async fn every_request_in_every_version_can_fail() {
    for one in schema::apis() {
        for version in one.oldest..=one.newest {
            let (addr, asked) = broker().await;
            let proxy = Harness::start(faultbox_kafka::protocol(), addr);
            let rule = proxy.arm("error", &[("api", text(one.name)), ("code", Arg::Int(41))]);
            let mut request = Request::new(one, version, 5);
            request.body = with_items(request.body, version);
            request.body.set("acks", 1);
            let mut client = Client::connect(&proxy).await;
            let reply = client.ask(&request).await;
            assert!(says(&reply.body, 41), "{} v{version}: {reply:?}", one.name);
            assert_eq!(rule.hits(), 1, "{} v{version}", one.name);
            // Only the broker knows the brokers that Metadata tells of.
            let reached = usize::from(one.key == METADATA);
            assert_eq!(
                asked.lock().unwrap().len(),
                reached,
                "{} v{version}",
                one.name
            );
            if one.key == METADATA {
                assert_eq!(reply.body.list("brokers").len(), 1);
            }
        }
    }
}

/// What stands beside this error, wherever in a message there is room for a text.
fn texts(body: &Struct, code: i64, found: &mut Vec<String>) {
    if body.int("error_code") == Some(code) && body.get("error_message").is_some() {
        found.push(body.text("error_message"));
    }
    for (_, value) in body.entries() {
        if let Value::List(Some(items)) = value {
            items.iter().for_each(|item| texts(item, code, found));
        }
    }
}

/// A message that is accepted is told, in the newest version of everything; of the rest it is refused.
#[tokio::test]
async fn an_errors_message_is_told_or_refused() {
    let (mut told, mut refused) = (vec![], vec![]);
    for one in schema::apis() {
        let (addr, _) = broker().await;
        let proxy = Harness::start(faultbox_kafka::protocol(), addr);
        let args = [
            ("api", text(one.name)),
            ("code", Arg::Int(41)),
            ("message", text("not today")),
        ];
        if let Err(e) = proxy.try_arm("error", &args) {
            assert_eq!(e.arg.as_deref(), Some("message"), "{}: {e}", one.name);
            refused.push(one.name);
            continue;
        }
        let mut client = Client::connect(&proxy).await;
        for items in [true, false] {
            let mut request = Request::new(one, one.newest, 5);
            if items {
                request.body = with_items(request.body, one.newest);
            }
            request.body.set("acks", 1);
            let reply = client.ask(&request).await;
            let mut found = vec![];
            texts(&reply.body, 41, &mut found);
            let all = found.iter().all(|t| t == "not today");
            assert!(all, "{}: {found:?}", one.name);
            // Of nothing that was asked, not every response has a place for an error.
            assert!(!items || !found.is_empty(), "{}: {reply:?}", one.name);
        }
        told.push(one.name);
    }
    for name in [
        "produce",
        "create_topics",
        "find_coordinator",
        "create_acls",
    ] {
        assert!(told.contains(&name), "{told:?}");
    }
    for name in ["fetch", "metadata", "heartbeat"] {
        assert!(refused.contains(&name), "{refused:?}");
    }
}

#[tokio::test]
async fn answers_keep_the_order_of_pipelined_requests() {
    let (addr, asked) = broker().await;
    let proxy = Harness::start(faultbox_kafka::protocol(), addr);
    proxy.arm(
        "error",
        &[("api", text("heartbeat")), ("every", Arg::Int(2))],
    );
    let mut client = Client::connect(&proxy).await;
    let mut batch = vec![];
    for number in 0..300 {
        let key = [METADATA, 12, 12][number as usize % 3];
        batch.extend_from_slice(&Request::new(api(key), 1, number).encode());
    }
    client.stream.write_all(&batch).await.unwrap();
    for number in 0..300 {
        let bytes = client.hear().await.unwrap();
        assert_eq!(reply_head(&bytes).unwrap().unwrap().1, number);
    }
    assert_eq!((proxy.fired(), asked.lock().unwrap().len()), (100, 200));
    assert!(proxy.meter.count() >= 300);
}

#[tokio::test]
async fn without_acks_nothing_is_told() {
    let (addr, asked) = broker().await;
    let proxy = Harness::start(faultbox_kafka::protocol(), addr);
    let lost = proxy.arm(
        "drop",
        &[("topic", text("orders")), ("partition", Arg::Int(1))],
    );
    let mut client = Client::connect(&proxy).await;
    client.say(&produce(9, 1, 0, &[0, 1])).await;
    client.say(&produce(9, 2, 0, &[1])).await;
    // What is answered comes next, and nothing before it.
    client.ask(&Request::new(api(METADATA), 1, 3)).await;
    let seen: Vec<_> = asked_for(&asked, PRODUCE).iter().map(partitions).collect();
    assert_eq!(seen, [[0]]);
    assert_eq!((lost.hits(), asked_for(&asked, LIST_OFFSETS).len()), (2, 0));
    // A broker tells an error by closing.
    proxy.arm(
        "error",
        &[("topic", text("orders")), ("partition", Arg::Int(2))],
    );
    client.say(&produce(9, 4, 0, &[2])).await;
    assert_eq!(client.hear().await, None);
}

#[tokio::test]
async fn a_fetch_session_ends_where_rules_must_see_what_is_asked() {
    let (addr, asked) = broker().await;
    let proxy = Harness::start(faultbox_kafka::protocol(), addr);
    let fetch = |epoch: i64, partitions: &[i64]| {
        let mut request = Request::new(api(FETCH), 11, 7);
        request.body.set("session_id", 99);
        request.body.set("session_epoch", epoch);
        request.body.push("topics", 11, |mut t| {
            t.set("topic", "orders");
            for partition in partitions {
                t.push("partitions", 11, |p| p.with("partition", *partition));
            }
            t
        });
        request
    };
    let mut client = Client::connect(&proxy).await;
    assert_eq!(
        client.ask(&fetch(5, &[])).await.body.int("error_code"),
        Some(0)
    );
    let rule = proxy.arm(
        "error",
        &[
            ("topic", text("orders")),
            ("partition", Arg::Int(1)),
            ("api", text("fetch")),
            ("code", Arg::Int(6)),
        ],
    );
    // FETCH_SESSION_ID_NOT_FOUND, and then everything by name.
    assert_eq!(
        client.ask(&fetch(6, &[])).await.body.int("error_code"),
        Some(70)
    );
    let reply = client.ask(&fetch(0, &[0, 1])).await;
    assert_eq!(told(&reply), [(0, 0, -99), (1, 6, -99)]);
    let last = asked_for(&asked, FETCH).pop().unwrap();
    assert_eq!(
        (last.body.int("session_epoch"), last.body.int("session_id")),
        (Some(-1), Some(0))
    );
    assert_eq!(partitions(&last), [0]);
    assert_eq!((rule.hits(), asked_for(&asked, FETCH).len()), (1, 2));
    proxy.rules.lift(rule.id);
    client.ask(&fetch(1, &[])).await;
    assert_eq!(
        asked_for(&asked, FETCH)
            .pop()
            .unwrap()
            .body
            .int("session_epoch"),
        Some(1)
    );
}

#[tokio::test]
async fn duplicates_are_sent_again_and_answered_once() {
    let (addr, asked) = broker().await;
    let proxy = Harness::start(faultbox_kafka::protocol(), addr);
    proxy.arm(
        "duplicate",
        &[("topic", text("orders")), ("partition", Arg::Int(1))],
    );
    let mut client = Client::connect(&proxy).await;
    for version in [3, 9, 13] {
        asked.lock().unwrap().clear();
        let reply = client.ask(&produce(version, 1, -1, &[0, 1])).await;
        assert_eq!(told(&reply), [(0, 0, END), (1, 0, END)]);
        client.ask(&Request::new(api(METADATA), 1, 2)).await;
        let seen = asked_for(&asked, PRODUCE);
        assert_eq!(
            seen.iter().map(partitions).collect::<Vec<_>>(),
            [vec![0, 1], vec![1]]
        );
        let copy = seen[1].body.list("topics")[0].list("partitions")[0]
            .bytes("records")
            .unwrap();
        assert!(records::split(copy).0[0].producer().is_none());
    }
}

#[tokio::test]
async fn a_rule_acts_on_the_next_request_of_a_live_connection() {
    let (addr, _) = broker().await;
    let proxy = Harness::start(faultbox_kafka::protocol(), addr);
    let mut client = Client::connect(&proxy).await;
    let heartbeat = |n| Request::new(api(12), 4, n);
    assert_eq!(
        client.ask(&heartbeat(1)).await.body.int("error_code"),
        Some(0)
    );
    let rule = proxy.arm(
        "error",
        &[
            ("api", text("heartbeat")),
            ("code", text("REBALANCE_IN_PROGRESS")),
        ],
    );
    assert_eq!(
        client.ask(&heartbeat(2)).await.body.int("error_code"),
        Some(27)
    );
    proxy.rules.lift(rule.id);
    assert_eq!(
        client.ask(&heartbeat(3)).await.body.int("error_code"),
        Some(0)
    );
    // A delay ends when it is lifted.
    let rule = proxy.arm("delay", &[("delay", text("1h"))]);
    client.say(&heartbeat(4)).await;
    while rule.hits() == 0 {
        tokio::task::yield_now().await;
    }
    proxy.rules.lift(rule.id);
    client.hear().await.expect("the delay is over");
    let event = &proxy.events.of_kind("proxy")[0].fields;
    assert_eq!(
        (&event["api"], &event["code"], &event["client_id"]),
        (
            &"heartbeat".into(),
            &"REBALANCE_IN_PROGRESS".into(),
            &"faultbox".into()
        )
    );
}
