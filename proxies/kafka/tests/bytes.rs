//! What becomes of a reply's bytes, as real drivers see it: they connect anew and try again, or say so by errors of their own.

mod support;

use std::sync::Arc;

use faultbox_contract::Arg;
use faultbox_engine::testing::Harness;
use support::{Cluster, faulted, skip};

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// What the scripts meet on their topics, once each.
fn arm(proxy: &Harness, prefix: &str) {
    let once = |action: &str, topic: &str, api: &str, more: &[(&str, Arg)]| {
        let args = [
            ("topic", text(&format!("{prefix}-{topic}"))),
            ("api", text(api)),
            ("times", Arg::Int(1)),
        ];
        proxy.arm(action, &[&args[..], more].concat());
    };
    once("truncate", "cut", "produce", &[("bytes", Arg::Int(0))]);
    // In the middle of the reply: the driver has its head by then.
    once("truncate", "half", "produce", &[("bytes", Arg::Int(20))]);
    once("truncate", "sure", "produce", &[("bytes", Arg::Int(0))]);
    once("reset", "gone", "produce", &[]);
    once("drop", "dropped", "metadata", &[]);
    once("truncate", "cut-fetch", "fetch", &[("bytes", Arg::Int(70))]);
    once("throttle", "slow", "fetch", &[("rate", text("64KB/s"))]);
    // A reply of more than forty bytes.
    once(
        "throttle",
        "slow-told",
        "produce",
        &[("rate", text("20B/s"))],
    );
    once("corrupt", "wrong", "fetch", &[("offset", Arg::Int(45))]);
    // How many topics the reply tells of.
    once("corrupt", "told-wrong", "produce", &[]);
    once(
        "error",
        "words",
        "create_topics",
        &[
            ("code", text("POLICY_VIOLATION")),
            ("message", text("größer als erlaubt")),
        ],
    );
    once(
        "truncate",
        "cut-create",
        "create_topics",
        &[("bytes", Arg::Int(0))],
    );
}

/// The replies' bytes in a client: the script's output line by line, and which rules fired, in order.
async fn exact(script: &'static str, driver: &str, expected: &[&str], fired: &[&str]) {
    if skip(&[driver, "tansu"]) {
        return;
    }
    let cluster = blocking(Cluster::tansu).await;
    let mut proxies = Harness::start_cluster(faultbox_kafka::protocol(), &cluster.brokers);
    let proxy = Arc::new(proxies.remove(0));
    let arming = proxy.clone();
    let output =
        blocking(move || faulted(script, "bytes", arming.addr, |prefix| arm(&arming, prefix)))
            .await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines, expected, "\n{output}");
    let events = proxy.events.of_kind("proxy");
    let fields: Vec<_> = events.iter().map(|e| &e.fields).collect();
    let told: Vec<String> = fields
        .iter()
        .map(|f| {
            let topic = f["topic"].as_str().unwrap_or_default();
            let name = topic.split_once('-').map_or(topic, |(_, name)| name);
            format!("{} {name}", f["action"].as_str().unwrap_or_default())
        })
        .collect();
    assert_eq!(told, fired);
    assert_eq!(proxy.degradations(), [""; 0]);
    blocking(move || drop(cluster)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn librdkafka_meets_replies_that_are_cut_slow_and_wrong() {
    exact(
        "confluent_client.py",
        "confluent-kafka",
        &[
            "cut [1] (['1', '1'], 2)",
            "half [1] (['1', '1'], 2)",
            // The broker says that it has the first already, not where.
            "sure [None, 1] (['1', '2'], 2)",
            "gone [0] (['1'], 1)",
            "dropped [0] (['1'], 1)",
            "cut fetch (['1', '2'], 2)",
            "slow True 1 True",
            "slow told [0] True (['1'], 1)",
            "wrong (['_BAD_MSG'], ['1', '2'])",
            "told wrong ['_BAD_MSG'] (['1'], 1)",
            "words POLICY_VIOLATION größer als erlaubt",
            "cut create _TRANSPORT True",
        ],
        &[
            "truncate cut",
            "truncate half",
            "truncate sure",
            "reset gone",
            "drop dropped",
            "truncate cut-fetch",
            "throttle slow",
            "throttle slow-told",
            "corrupt wrong",
            "corrupt told-wrong",
            "error words",
            "truncate cut-create",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aiokafka_meets_replies_that_are_cut_slow_and_wrong() {
    exact(
        "aiokafka_client.py",
        "aiokafka",
        &[
            "cut [1] (['1', '1'], 2)",
            "half [1] (['1', '1'], 2)",
            "gone [0] (['1'], 1)",
            "dropped [0] (['1'], 1)",
            "cut fetch (['1', '2'], 2)",
            "slow True 1 True",
            "slow told [0] True (['1'], 1)",
            "wrong CorruptRecordException (['1', '2'], 2)",
        ],
        &[
            "truncate cut",
            "truncate half",
            "reset gone",
            "drop dropped",
            "truncate cut-fetch",
            "throttle slow",
            "throttle slow-told",
            "corrupt wrong",
        ],
    )
    .await;
}
