//! TLS on the interface: clients that verify every broker that they are told of, and rules that see the messages.

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use faultbox_contract::tls::Verify;
use faultbox_contract::{Arg, Endpoint, Tls};
use faultbox_engine::testing::Harness;
use faultbox_engine::tls::mint::Authority;
use faultbox_kafka::protocol;
use support::{Cluster, battery_with, skip};

const CLIENT: &str = "confluent_client.py";

fn text(s: &str) -> Arg {
    Arg::Str(s.into())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// A broker that is reached over TLS, a proxy before it with the same certificate, and the authority as a file.
struct Lab {
    cluster: Cluster,
    proxy: Harness,
    tls: Arc<Tls>,
    folder: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Lab {
        let authority = Authority::new().unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let identity = authority.issue(&names).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|f| folder.path().join(f));
        std::fs::write(ca, &authority.identity().chain).unwrap();
        std::fs::write(&cert, &identity.chain).unwrap();
        std::fs::write(&key, &identity.key).unwrap();
        let cluster = blocking(move || Cluster::tansu_behind_tls(&cert, &key)).await;
        let tls = Arc::new(Tls {
            shown: identity,
            issuer: Some(authority.identity().clone()),
            verify: Verify::Against(authority.identity().chain.clone()),
            names: names.to_vec(),
            client: None,
        });
        let mut proxies =
            Harness::start_cluster_with(protocol(), &cluster.brokers, Some(tls.clone()));
        Lab {
            proxy: proxies.remove(0),
            cluster,
            tls,
            folder,
        }
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// What librdkafka prints in this mode, over TLS.
    async fn client(&self, mode: &'static str, through: bool) -> String {
        let addr = match through {
            true => self.proxy.addr,
            false => self.cluster.brokers[0],
        };
        let ca = self.ca();
        blocking(move || battery_with(CLIENT, mode, addr, &[&ca])).await
    }

    /// librdkafka ends while it may still be connecting to a broker that it has just been told of: that is its own affair. Its end is a
    /// reset if it has not read everything.
    fn unexpected(&self) -> Vec<String> {
        let gone = [
            "it closed the connection during the handshake",
            "it reset the connection during the handshake",
        ];
        let events = self.proxy.events.all();
        let others = events
            .iter()
            .filter(|e| e.kind != "proxy" && gone.iter().all(|gone| e.fields["error"] != *gone));
        others
            .map(|e| format!("{}: {}", e.kind, e.fields))
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn librdkafka_verifies_and_hears_the_same() {
    if skip(&["tansu", "confluent-kafka"]) {
        return;
    }
    let lab = Lab::new().await;
    let direct = lab.client("battery", false).await;
    assert_eq!(lab.client("battery", true).await, direct);
    assert!(direct.lines().count() > 5, "{direct}");
    // The addresses that the broker told lead to the proxy again: nobody went past.
    assert!(lab.proxy.meter.count() > 100, "{}", lab.proxy.meter.count());
    assert_eq!(lab.unexpected(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_see_the_messages() {
    if skip(&["tansu", "confluent-kafka"]) {
        return;
    }
    let lab = Lab::new().await;
    for (topic, code) in [
        ("*-denied", "TOPIC_AUTHORIZATION_FAILED"),
        ("*-large", "RECORD_TOO_LARGE"),
    ] {
        lab.proxy
            .arm("error", &[("topic", text(topic)), ("code", text(code))]);
    }
    assert_eq!(
        lab.client("denied", true).await,
        "plain [0] (['1'], 1)\n\
         denied ['TOPIC_AUTHORIZATION_FAILED'] TOPIC_AUTHORIZATION_FAILED\n\
         large ['MSG_SIZE_TOO_LARGE']\n"
    );
    assert_eq!(lab.unexpected(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_and_probes_speak_tls() {
    if skip(&["tansu"]) {
        return;
    }
    let lab = Lab::new().await;
    let endpoint = |addr| Endpoint {
        kept: None,
        addr,
        host: "localhost".into(),
        env: Arc::default(),
        attempt: Duration::from_secs(30),
        addresses: Arc::default(),
        tls: Some(lab.tls.clone()),
    };
    protocol()
        .ready(endpoint(lab.cluster.brokers[0]))
        .await
        .unwrap();
    let step = async |name: &str, args: &[(&str, &str)]| {
        let args = args.iter().map(|(n, v)| ((*n).to_owned(), text(v)));
        let call = protocol().doc().check_step(name, vec![], args.collect());
        let step = protocol().step(endpoint(lab.proxy.addr), call.unwrap());
        step.await.unwrap()
    };
    let created = step("create_topic", &[("name", "orders")]).await;
    assert!(created.ok, "{created:?}");
    let args = [("topic", "orders"), ("value", "one")];
    let published = step("publish", &args).await;
    assert!(published.ok, "{published:?}");
    let consumed = step("consume", &[("topic", "orders"), ("group", "g")]).await;
    assert!(consumed.ok, "{consumed:?}");
    lab.proxy.arm("error", &[("topic", text("orders"))]);
    let published = step("publish", &args).await;
    assert_eq!(published.code, "UNKNOWN_SERVER_ERROR", "{published:?}");
    assert_eq!(lab.unexpected(), [""; 0]);
}
