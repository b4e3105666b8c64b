//! The steps of specs against real brokers, through the proxies.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use faultbox_contract::{Arg, Endpoint, Kept, Response};
use faultbox_engine::testing::{Harness, eventually, free_addr};
use serde_json::{Value as Json, json};
use support::{Cluster, skip};

const DEADLINE: Duration = Duration::from_secs(120);

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

fn endpoint(addr: SocketAddr) -> Endpoint {
    Endpoint {
        kept: None,
        addr,
        host: "127.0.0.1".into(),
        env: Arc::default(),
        attempt: Duration::from_secs(20),
        addresses: Arc::default(),
        tls: None,
    }
}

async fn step(addr: SocketAddr, name: &str, args: &[(&str, Arg)]) -> Response {
    step_of(endpoint(addr), name, args).await
}

async fn step_of(endpoint: Endpoint, name: &str, args: &[(&str, Arg)]) -> Response {
    let protocol = faultbox_kafka::protocol();
    let args = args.iter().map(|(n, a)| ((*n).to_owned(), a.clone()));
    let call = protocol
        .doc()
        .check_step(name, vec![], args.collect())
        .unwrap();
    tokio::time::timeout(DEADLINE, protocol.step(endpoint, call))
        .await
        .expect("a step ends")
        .unwrap()
}

fn values(response: &Response) -> Vec<Json> {
    let records = response.data.as_array().cloned().unwrap_or_default();
    records.iter().map(|r| r["value"].clone()).collect()
}

async fn cluster(start: fn() -> Cluster) -> Cluster {
    tokio::task::spawn_blocking(start).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producers_and_a_consumers_day() {
    if skip(&["tansu"]) {
        return;
    }
    let cluster = cluster(Cluster::tansu).await;
    let proxy = Harness::start_cluster(faultbox_kafka::protocol(), &cluster.brokers).remove(0);
    let addr = proxy.addr;
    assert_eq!(
        faultbox_kafka::protocol().ready(endpoint(addr)).await,
        Ok(())
    );
    let made = step(
        addr,
        "create_topic",
        &[("name", text("t")), ("partitions", Arg::Int(3))],
    )
    .await;
    assert!(made.ok, "{made:?}");
    let again = step(addr, "create_topic", &[("name", text("t"))]).await;
    assert_eq!(
        (again.ok, again.code.as_str()),
        (false, "TOPIC_ALREADY_EXISTS")
    );
    assert_eq!(step(addr, "topics", &[]).await.data, json!({"t": 3}));
    let sent = step(
        addr,
        "publish",
        &[
            ("topic", text("t")),
            ("value", Arg::Json(json!({"id": 1}))),
            ("key", text("abc")),
            ("headers", Arg::Json(json!({"h": "1"}))),
        ],
    )
    .await;
    // murmur2("abc") is 479470107, and that is 0 modulo 3.
    assert_eq!(
        sent.data,
        json!({"topic": "t", "partition": 0, "offset": 0}),
        "{sent:?}"
    );
    let quick = step(
        addr,
        "publish",
        &[
            ("topic", text("t")),
            ("value", text("q")),
            ("acks", Arg::Int(0)),
            ("partition", Arg::Int(2)),
        ],
    )
    .await;
    assert!(quick.ok && quick.data["offset"].is_null(), "{quick:?}");
    let read = step(addr, "consume", &[("topic", text("t")), ("n", Arg::Int(2))]).await;
    assert!(read.ok, "{read:?}");
    let record = &read
        .data
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["partition"] == 0)
        .unwrap();
    assert_eq!(
        (&record["key"], &record["headers"]),
        (&json!("abc"), &json!({"h": "1"}))
    );
    let mut all = values(&read);
    all.sort_by_key(Json::to_string);
    assert_eq!(all, ["q", "{\"id\":1}"]);
    // A group goes on where it left off.
    let member = |n| {
        let args = [
            ("topic", text("t")),
            ("group", text("g")),
            ("n", Arg::Int(n)),
            ("timeout", text("40s")),
        ];
        async move { step(addr, "consume", &args).await }
    };
    let first = member(2).await;
    assert!(first.ok, "{first:?}");
    step(
        addr,
        "publish",
        &[("topic", text("t")), ("value", text("more"))],
    )
    .await;
    assert_eq!(values(&member(1).await), ["more"]);
    // Long enough for those that there are.
    let none = step(
        addr,
        "consume",
        &[
            ("topic", text("t")),
            ("n", Arg::Int(9)),
            ("timeout", text("10s")),
        ],
    )
    .await;
    assert_eq!(
        (none.ok, none.code.as_str(), values(&none).len()),
        (false, "ETIMEDOUT", 3)
    );
    let absent = step(
        addr,
        "publish",
        &[
            ("topic", text("t")),
            ("value", text("x")),
            ("partition", Arg::Int(9)),
        ],
    )
    .await;
    assert_eq!(absent.code, "UNKNOWN_TOPIC_OR_PARTITION");
    assert_eq!(proxy.events.all().len(), 0, "{:?}", proxy.events.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_three_is_reached_through_its_proxies() {
    if skip(&["confluent-kafka"]) {
        return;
    }
    let cluster = cluster(Cluster::mock).await;
    let proxies = Harness::start_cluster(faultbox_kafka::protocol(), &cluster.brokers);
    let addr = proxies[0].addr;
    for partition in 0..4 {
        let args = [
            ("topic", text("s")),
            ("value", text(&partition.to_string())),
            ("partition", Arg::Int(partition)),
        ];
        let sent = step(addr, "publish", &args).await;
        assert!(sent.ok, "{sent:?}");
    }
    let read = step(addr, "consume", &[("topic", text("s")), ("n", Arg::Int(4))]).await;
    let mut all = values(&read);
    all.sort_by_key(Json::to_string);
    assert_eq!(all, ["0", "1", "2", "3"], "{read:?}");
    // The partitions have more leaders than the one that was asked first.
    eventually("more than one proxy was asked", || {
        proxies.iter().filter(|p| p.meter.count() > 0).count() > 1
    })
    .await;
}

/// A caller that goes on publishing asks once what its broker speaks and who leads, as a producer does, and again when it was told off.
#[tokio::test(flavor = "multi_thread")]
async fn callers_keep_their_connections() {
    if skip(&["tansu"]) {
        return;
    }
    let cluster = cluster(Cluster::tansu).await;
    let proxy = Harness::start_cluster(faultbox_kafka::protocol(), &cluster.brokers).remove(0);
    let named = [("name", text("kept"))];
    assert!(step(proxy.addr, "create_topic", &named).await.ok);
    let requests = async |n: u64| {
        let what = format!("{n} requests");
        eventually(&what, || proxy.meter.count() == n).await;
    };
    // What the broker speaks, who the controller is, the creation.
    requests(3).await;

    let caller = Endpoint {
        kept: Some(Kept::default()),
        ..endpoint(proxy.addr)
    };
    let record = [("topic", text("kept")), ("value", text("v"))];
    let publish = || step_of(caller.clone(), "publish", &record);
    for offset in 0..10 {
        let sent = publish().await;
        assert_eq!(sent.data["offset"], json!(offset), "{sent:?}");
    }
    // Versions and metadata, and ten records.
    requests(3 + 12).await;
    let rule = proxy.arm(
        "error",
        &[
            ("topic", text("kept")),
            ("code", text("NOT_LEADER_OR_FOLLOWER")),
        ],
    );
    assert_eq!(publish().await.code, "NOT_LEADER_OR_FOLLOWER");
    proxy.rules.lift(rule.id);
    for offset in 10..12 {
        let sent = publish().await;
        assert_eq!(sent.data["offset"], json!(offset), "{sent:?}");
    }
    requests(3 + 13 + 4).await;
    let all = [("topic", text("kept")), ("n", Arg::Int(12))];
    let read = step_of(caller.clone(), "consume", &all).await;
    assert_eq!(values(&read).len(), 12);
}

#[tokio::test]
async fn a_dead_broker_looks_dead() {
    let nobody = free_addr();
    let refused = step(nobody, "topics", &[]).await;
    assert_eq!((refused.ok, refused.code.as_str()), (false, "ECONNREFUSED"));
    let proxy = Harness::start(faultbox_kafka::protocol(), nobody);
    let reset = step(proxy.addr, "topics", &[]).await;
    assert_eq!((reset.ok, reset.code.as_str()), (false, "ECONNRESET"));
    assert!(
        faultbox_kafka::protocol()
            .ready(endpoint(nobody))
            .await
            .is_err()
    );
}
