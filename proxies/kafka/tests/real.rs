//! The proxy in front of real brokers, driven by real clients: invisible without rules, exact with them.

mod support;

use std::sync::Arc;

use faultbox_contract::Arg;
use faultbox_engine::testing::Harness;
use support::{Cluster, battery, faults, skip};

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

/// A proxy for each broker, each of which knows where the others are.
fn proxies(cluster: &Cluster) -> Vec<Harness> {
    Harness::start_cluster(faultbox_kafka::protocol(), &cluster.brokers)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// A client's own battery prints the same through the proxies as directly, and nothing was degraded or faulted.
async fn same(script: &'static str, mode: &'static str, driver: &str) {
    if skip(&[driver, "tansu", "confluent-kafka"]) {
        return;
    }
    let cluster = blocking(match mode {
        "cluster" => Cluster::mock,
        _ => Cluster::tansu,
    })
    .await;
    let proxies = proxies(&cluster);
    let (direct, through) = (cluster.brokers[0], proxies[0].addr);
    let (direct, through) = blocking(move || {
        (
            battery(script, mode, direct),
            battery(script, mode, through),
        )
    })
    .await;
    assert_eq!(direct, through);
    assert!(direct.lines().count() >= 2, "{direct}");
    for proxy in &proxies {
        assert_eq!(proxy.events.all().len(), 0, "{:?}", proxy.events.all());
        // Every broker was asked through its proxy: nobody went past.
        assert!(proxy.meter.count() > 0, "{script} went past a proxy");
    }
    println!("{direct}");
}

/// Arms what the clients' scripts of this folder expect on their topics.
fn arm(proxy: &Harness, prefix: &str) {
    let topic = |name: &str| ("topic", text(&format!("{prefix}-{name}")));
    proxy.arm("drop", &[topic("lost"), ("every", Arg::Int(2))]);
    proxy.arm("drop", &[topic("whole")]);
    proxy.arm(
        "error",
        &[
            topic("leader"),
            ("api", text("produce")),
            ("code", text("NOT_LEADER_OR_FOLLOWER")),
            ("times", Arg::Int(2)),
        ],
    );
    proxy.arm(
        "error",
        &[topic("large"), ("code", text("RECORD_TOO_LARGE"))],
    );
    proxy.arm(
        "error",
        &[
            topic("denied"),
            ("code", text("TOPIC_AUTHORIZATION_FAILED")),
        ],
    );
    proxy.arm("duplicate", &[topic("twice")]);
    // What the first fetch that finds records brings never arrives; what comes after does.
    proxy.arm(
        "drop",
        &[
            topic("unseen"),
            ("api", text("fetch")),
            ("times", Arg::Int(1)),
        ],
    );
    proxy.arm(
        "corrupt",
        &[
            topic("corrupt"),
            ("api", text("fetch")),
            ("offset", Arg::Int(45)),
        ],
    );
    proxy.arm("drop", &[topic("keyed"), ("key", text("bad*"))]);
    proxy.arm(
        "delay",
        &[
            topic("slow"),
            ("api", text("fetch")),
            ("delay", text("1s")),
            ("times", Arg::Int(1)),
        ],
    );
    proxy.arm("reset", &[topic("gone"), ("api", text("produce"))]);
}

/// Faults arrive in a client as its own behaviour: the script's output, line by line.
async fn exact(script: &'static str, driver: &str, expected: &[&str]) {
    if skip(&[driver, "tansu"]) {
        return;
    }
    let cluster = blocking(Cluster::tansu).await;
    let proxy = Arc::new(proxies(&cluster).remove(0));
    let arming = proxy.clone();
    let output = blocking(move || faults(script, arming.addr, |prefix| arm(&arming, prefix))).await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines, expected, "\n{output}");
    assert_eq!(proxy.degradations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn librdkafka_passes() {
    same("confluent_client.py", "battery", "confluent-kafka").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn librdkafka_passes_on_a_cluster_of_three() {
    same("confluent_client.py", "cluster", "confluent-kafka").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aiokafka_passes() {
    same("aiokafka_client.py", "battery", "aiokafka").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aiokafka_passes_on_a_cluster_of_three() {
    same("aiokafka_client.py", "cluster", "aiokafka").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafkajs_passes() {
    same("kafkajs_client.js", "battery", "kafkajs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_python_passes() {
    same("kafka_python_client.py", "battery", "kafka-python").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn librdkafka_and_faults() {
    exact(
        "confluent_client.py",
        "confluent-kafka",
        &[
            "lost [0, 1, 1, 2, 2, 3] (['1', '3', '5'], 3)",
            "whole [0, 1, 2] ([], -1001)",
            "leader [0] (['1'], 1)",
            "large ['MSG_SIZE_TOO_LARGE']",
            "denied ['TOPIC_AUTHORIZATION_FAILED'] TOPIC_AUTHORIZATION_FAILED",
            "twice [0] (['1', '1'], 2)",
            "unseen (['new'], 3)",
            "corrupt _BAD_MSG",
            "keyed (['to be seen', 'good record'], 2)",
            "slow True",
            "gone ['_MSG_TIMED_OUT']",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aiokafka_and_faults() {
    exact(
        "aiokafka_client.py",
        "aiokafka",
        &[
            "lost [0, 1, 1, 2] (['1', '3'], 2)",
            "leader [0] (['1'], 1)",
            "large ['MessageSizeTooLargeError']",
            "unseen (['new'], 2)",
            "keyed (['good'], 1)",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafkajs_and_faults() {
    exact(
        "kafkajs_client.js",
        "kafkajs",
        &[
            r#"lost [0,1,1,2] ["1","3"]"#,
            r#"leader [0] ["1"]"#,
            r#"large ["MESSAGE_TOO_LARGE"]"#,
            r#"unseen ["new"]"#,
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_python_and_faults() {
    exact(
        "kafka_python_client.py",
        "kafka-python",
        &[
            "lost [0, 1, 1, 2] (['1', '3'], 2)",
            "leader [0] (['1'], 1)",
            "large ['MessageSizeTooLargeError']",
            "unseen (['new'], 2)",
        ],
    )
    .await;
}
