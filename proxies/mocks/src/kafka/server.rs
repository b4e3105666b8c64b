//! Connections: a request in, its answer out, in order; what the broker says about itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use faultbox_kafka::answer;
use faultbox_kafka::codec::{Reply, Request, Struct, request_head, schema};
use faultbox_kafka::errors;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::groups::Group;
use super::log::Log;
use super::{Kafka, Request as Asked};
use crate::calls::Calls;
use crate::script::Routes;

/// The largest request that is taken: brokers take 100 MiB (socket.request.max.bytes).
const LARGEST: usize = 100 << 20;
/// The broker's number.
pub(super) const NODE: i64 = 1;
/// UNSUPPORTED_VERSION.
const UNSUPPORTED: i64 = 35;

/// What the broker speaks: the newest versions that name topics by their names. Fetch begins where batches have today's format, into which
/// older producers' messages are brought; transactions are not among it.
const SPOKEN: &[(i16, i16, i16)] = &[
    (schema::PRODUCE, 0, 11),
    (schema::FETCH, 4, 12),
    (schema::LIST_OFFSETS, 1, 7),
    (schema::METADATA, 0, 9),
    (8, 0, 8),
    (9, 0, 8),
    (schema::FIND_COORDINATOR, 0, 4),
    (11, 0, 7),
    (12, 0, 4),
    (13, 0, 4),
    (14, 0, 5),
    (15, 0, 5),
    (16, 0, 4),
    (schema::API_VERSIONS, 0, 3),
    (19, 0, 6),
    (20, 0, 5),
    (22, 0, 4),
    (32, 0, 4),
    (37, 0, 3),
    (42, 0, 2),
    (schema::DESCRIBE_CLUSTER, 0, 0),
];

/// What all connections share.
pub(crate) struct Server {
    pub(super) routes: Arc<Routes<Kafka>>,
    pub(super) calls: Calls,
    /// Where clients are told that the broker is.
    pub(super) advertised: SocketAddr,
    state: Mutex<State>,
    /// Records have come, or a group has changed.
    pub(super) changed: Notify,
    ids: AtomicU64,
}

/// The broker's memory.
#[derive(Default)]
pub(super) struct State {
    pub(super) log: Log,
    pub(super) groups: BTreeMap<String, Group>,
    pub(super) producers: i64,
}

/// What the routes say about a part of a request.
pub(super) struct Verdict {
    /// An error's code.
    pub(super) error: Option<i16>,
    /// How long it takes.
    pub(super) delay: Duration,
    /// The route.
    pub(super) route: Option<String>,
    /// Why the spec's function gave no answer.
    pub(super) failed: Option<String>,
}

impl Server {
    /// A broker without topics.
    pub(crate) fn new(
        routes: Arc<Routes<Kafka>>,
        calls: Calls,
        advertised: SocketAddr,
    ) -> Arc<Server> {
        Arc::new(Server {
            routes,
            calls,
            advertised,
            state: Mutex::default(),
            changed: Notify::new(),
            ids: AtomicU64::new(1),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that nobody has had.
    pub(super) fn fresh(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Serves one connection until it ends.
    pub(crate) async fn serve(self: Arc<Server>, mut stream: TcpStream) {
        let mut buffer = BytesMut::new();
        loop {
            let message = match request_head(&buffer) {
                Ok(Some(head)) if head.len <= buffer.len() => buffer.split_to(head.len).freeze(),
                Ok(Some(head)) if head.len > LARGEST => break,
                Ok(_) => match stream.read_buf(&mut buffer).await {
                    Ok(1..) => continue,
                    _ => return,
                },
                // A broker closes the connection of whom it does not understand.
                Err(_) => break,
            };
            match self.answer(message).await {
                Some(reply) if !reply.is_empty() => {
                    if stream.write_all(&reply).await.is_err() {
                        return;
                    }
                }
                Some(_) => {}
                None => break,
            }
        }
        faultbox_engine::linger(stream).await;
    }

    /// The answer's bytes, none where no answer is due; `None` if the connection has to end.
    async fn answer(&self, message: Bytes) -> Option<Bytes> {
        let head = request_head(&message).ok()??;
        let spoken = SPOKEN
            .iter()
            .find(|(key, ..)| *key == head.api)
            .is_some_and(|(_, low, high)| (*low..=*high).contains(&head.version));
        if !spoken {
            // Only this one is answered all the same, for the client to learn what is spoken (KIP-511).
            if head.api != schema::API_VERSIONS {
                return None;
            }
            let mut reply = Reply::new(schema::api(head.api)?, 0, head.correlation);
            versions(&mut reply.body, 0);
            reply.body.set("error_code", UNSUPPORTED);
            return Some(reply.encode());
        }
        let request = Request::decode(message).ok()??;
        let body = self.respond(&request).await;
        if !head.answered {
            return Some(Bytes::new());
        }
        let mut reply = Reply::new(request.api, request.version, request.correlation);
        reply.body = body;
        Some(reply.encode())
    }

    async fn respond(&self, request: &Request) -> Struct {
        match request.api.name {
            // These decide topic by topic.
            "produce" => return self.produce(request).await,
            "fetch" => return self.fetch(request).await,
            "metadata" => return self.metadata(request).await,
            _ => {}
        }
        let subject = subject(&request.body);
        let verdict = self
            .verdict(
                request,
                &subject,
                !is_housekeeping(request.api.name),
                || describe(request, &subject).into(),
            )
            .await;
        if !is_housekeeping(request.api.name) {
            let mut call = describe(request, &subject);
            verdict.note(&mut call);
            let name = request.api.name.to_uppercase();
            call.insert("text".into(), format!("{name} {subject}").trim_end().into());
            self.calls.record(call);
        }
        if !verdict.delay.is_zero() {
            tokio::time::sleep(verdict.delay).await;
        }
        if let Some(code) = verdict.error {
            let message = verdict.failed.as_deref();
            return answer::error(request, code, message)
                .unwrap_or_else(|| answer::success(request));
        }
        let mut body = answer::success(request);
        match request.api.name {
            "api_versions" => versions(&mut body, request.version),
            "list_offsets" => self.list_offsets(request, &mut body),
            "create_topics" => self.create_topics(request, &mut body),
            "delete_topics" => self.delete_topics(&mut body),
            "create_partitions" => self.create_partitions(request, &mut body),
            "init_producer_id" => self.init_producer(request, &mut body),
            "find_coordinator" => self.coordinator(request, &mut body),
            "join_group" => return self.join(request).await,
            "sync_group" => return self.sync(request).await,
            "heartbeat" => self.heartbeat(request, &mut body),
            "leave_group" => self.leave(request, &mut body),
            "offset_commit" => self.commit(request, &mut body),
            "offset_fetch" => self.committed(request, &mut body),
            "describe_groups" => self.describe_groups(request, &mut body),
            "list_groups" => self.list_groups(request, &mut body),
            "delete_groups" => self.delete_groups(&mut body),
            "describe_cluster" => {
                body.set("cluster_id", "faultbox-mock");
                body.set("controller_id", NODE);
                let (host, port) = self.host();
                body.push("brokers", request.version, |b| {
                    b.with("broker_id", NODE)
                        .with("host", host.as_str())
                        .with("port", port)
                });
            }
            // Nothing is configured: describe_configs answers with empty lists.
            _ => {}
        }
        body
    }

    /// What the routes say about a request, or the part of it that is about `subject`.
    pub(super) async fn verdict(
        &self,
        request: &Request,
        subject: &str,
        or_default: bool,
        describe: impl FnOnce() -> Value + Send,
    ) -> Verdict {
        let asked = Asked {
            api: request.api.name,
            subject: subject.to_owned(),
        };
        let found = self.routes.find(&asked, or_default, describe).await;
        Verdict {
            error: match (&found.reply, &found.failed) {
                // UNKNOWN_SERVER_ERROR.
                (_, Some(_)) => Some(-1),
                (Some(reply), None) => reply.reply,
                (None, None) => None,
            },
            delay: found.reply.as_ref().map_or(Duration::ZERO, |r| r.delay),
            route: found.route,
            failed: found.failed,
        }
    }

    /// Where clients are told to go.
    pub(super) fn host(&self) -> (String, i64) {
        (
            self.advertised.ip().to_string(),
            self.advertised.port().into(),
        )
    }
}

impl Verdict {
    /// Puts what a route has said into the record of a call.
    pub(super) fn note(&self, call: &mut Map<String, Value>) {
        call.insert("route".into(), json!(self.route));
        if let Some(code) = self.error {
            let text = match &self.failed {
                Some(why) => why.clone(),
                None => errors::name(code.into()),
            };
            call.insert("error".into(), text.into());
        }
    }
}

/// What clients say all the time to find their way: it is not recorded, and a `default=` is not for it.
pub(super) fn is_housekeeping(api: &str) -> bool {
    matches!(
        api,
        "api_versions" | "metadata" | "find_coordinator" | "heartbeat" | "describe_cluster"
    )
}

/// What a request is about: a group, a key of a coordinator, or its first topic.
fn subject(body: &Struct) -> String {
    let named = |body: &Struct| {
        [
            "group_id",
            "key",
            "topic",
            "resource_name",
            "transactional_id",
        ]
        .iter()
        .map(|name| body.text(name))
        .find(|text| !text.is_empty())
    };
    named(body)
        .or_else(|| {
            ["topics", "groups", "coordinators", "resources"]
                .iter()
                .find_map(|list| named(body.list(list).first()?))
        })
        .unwrap_or_default()
}

/// A request as events and the spec's functions see it.
pub(super) fn describe(request: &Request, subject: &str) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("api".into(), request.api.name.into());
    let about = match request.body.get("group_id") {
        Some(_) => "group",
        None if request.api.name.ends_with("groups") => "group",
        None => "topic",
    };
    map.insert(about.into(), subject.into());
    let client = request.client_id.as_ref().map(|id| crate::calls::text(id));
    map.insert("client_id".into(), client.unwrap_or(Value::Null));
    map
}

fn versions(body: &mut Struct, version: i16) {
    for (key, low, high) in SPOKEN {
        body.push("api_keys", version, |item| {
            item.with("api_key", i64::from(*key))
                .with("min_version", i64::from(*low))
                .with("max_version", i64::from(*high))
        });
    }
}
