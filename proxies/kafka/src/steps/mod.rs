//! The steps of specs: what a producer, a consumer and an administrator would do, on connections of their own or on those that the
//! caller has kept.

mod client;
mod group;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use faultbox_contract::{Arg, ArgError, CheckedStep, Endpoint, Kind, ParamDoc, Response, StepDoc};
use serde_json::{Value as Json, json};

use crate::codec::Struct;
use crate::codec::schema::{FETCH, LIST_OFFSETS, PRODUCE};
use crate::records::{self, Batch, Record};
use client::{Client, Failure};

const TIMEOUT: ParamDoc = ParamDoc::opt(
    "timeout",
    Kind::Duration,
    "the longest to wait (default 30s)",
);
const TOPIC: ParamDoc = ParamDoc::req("topic", Kind::Text, "the topic");

/// The table.
pub const DOCS: &[StepDoc] = &[
    StepDoc {
        name: "publish",
        params: &[
            TOPIC,
            ParamDoc::req(
                "value",
                Kind::Body,
                "the record's value; a dict or a list is sent as JSON",
            ),
            ParamDoc::opt(
                "key",
                Kind::Bytes,
                "the record's key, which chooses the partition",
            ),
            ParamDoc::opt("headers", Kind::TextMap, "the record's headers"),
            ParamDoc::opt(
                "acks",
                Kind::ChoiceOrInt(&["all"]),
                "\"all\" (default), 1, or 0: no answer is waited for",
            ),
            ParamDoc::opt(
                "partition",
                Kind::Int(0, i32::MAX as i64),
                "the partition (default: by the key's hash; without a key, the first)",
            ),
            TIMEOUT,
        ],
        variadic: false,
        summary: "one record; `.data` has topic, partition and offset (None with acks=0)",
    },
    StepDoc {
        name: "consume",
        params: &[
            TOPIC,
            ParamDoc::opt(
                "group",
                Kind::Text,
                "a consumer group: begins where it left off, and commits what it returns",
            ),
            ParamDoc::opt("n", Kind::Int(1, 100_000), "how many records (default 1)"),
            TIMEOUT,
        ],
        variadic: false,
        summary: "records, from the beginning unless a group has been further; `.data` is the list of what came in time, each with topic, partition, offset, timestamp, key, value, headers; `.ok` if there were n",
    },
    StepDoc {
        name: "topics",
        params: &[TIMEOUT],
        variadic: false,
        summary: "`.data` is a dict of the topics' names to their numbers of partitions",
    },
    StepDoc {
        name: "create_topic",
        params: &[
            ParamDoc::req("name", Kind::Text, "the topic's name"),
            ParamDoc::opt(
                "partitions",
                Kind::Int(1, 100_000),
                "how many partitions (default 1)",
            ),
            TIMEOUT,
        ],
        variadic: false,
        summary: "a new topic, replicated once; `.data` is its name",
    },
];

/// The largest `.body`, and so roughly the most that a step's records may have together.
const MAX_DATA: usize = 64 << 20;

/// Carries out one step.
///
/// # Errors
/// A misuse that the tables cannot see.
pub async fn step(endpoint: Endpoint, call: CheckedStep) -> Result<Response, ArgError> {
    let limit = call.timeout();
    let start = Instant::now();
    let deadline = start + limit;
    let mut client = Client::of(&endpoint, deadline);
    let outcome = match call.step.name {
        "publish" => {
            let publication = Publication::of(&call)?;
            publish(&mut client, &publication).await
        }
        "consume" => consume(&mut client, &call, deadline).await,
        "topics" => topics(&mut client).await,
        _ => create_topic(&mut client, &call).await,
    };
    let mut response = match outcome {
        Ok(response) => {
            if response.ok {
                client.keep(&endpoint);
            }
            response
        }
        Err(failure) => failure.response(limit),
    };
    response.duration = start.elapsed();
    Ok(response)
}

/// A broker that answers Metadata, and knows of itself, is ready.
///
/// # Errors
/// Why it is not, yet.
pub async fn ready(endpoint: Endpoint) -> Result<(), String> {
    let mut client = Client::of(&endpoint, Instant::now() + endpoint.attempt);
    match client.metadata(None).await {
        Ok(metadata) if metadata.list("brokers").is_empty() => {
            Err("the cluster has no broker yet".into())
        }
        Ok(_) => {
            client.keep(&endpoint);
            Ok(())
        }
        Err(failure) => Err(failure.text(endpoint.attempt)),
    }
}

fn done(data: Json) -> Response {
    let body = match &data {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    };
    Response {
        ok: true,
        data,
        body,
        ..Response::default()
    }
}

/// One record to publish.
struct Publication {
    topic: String,
    key: Option<Vec<u8>>,
    value: Vec<u8>,
    headers: Vec<(String, String)>,
    acks: i64,
    partition: Option<i64>,
}

impl Publication {
    fn of(call: &CheckedStep) -> Result<Publication, ArgError> {
        let bytes = |arg: &Arg| match arg {
            Arg::Bytes(b) => b.clone(),
            Arg::Str(s) => s.clone().into_bytes(),
            other => other.to_json().to_string().into_bytes(),
        };
        let acks = match call.get("acks") {
            None | Some(Arg::Str(_)) => -1,
            Some(acks) => acks.as_int().unwrap_or(-1),
        };
        if acks > 1 {
            return Err(ArgError::new("acks", format!("Kafka has no acks={acks}"))
                .hint("it takes \"all\", 1 or 0"));
        }
        let headers = match call.get("headers") {
            Some(Arg::Json(Json::Object(map))) => map
                .iter()
                .map(|(n, v)| (n.clone(), v.as_str().unwrap_or_default().to_owned()))
                .collect(),
            _ => vec![],
        };
        Ok(Publication {
            topic: call.text_of("topic").unwrap_or_default().to_owned(),
            key: call.get("key").map(bytes),
            value: call.get("value").map(bytes).unwrap_or_default(),
            headers,
            acks,
            partition: call.get("partition").and_then(Arg::as_int),
        })
    }
}

async fn publish(client: &mut Client, what: &Publication) -> Result<Response, Failure> {
    let partitions = client.known_partitions(&what.topic).await?;
    let count = partitions.len() as u32;
    let partition = match (what.partition, &what.key) {
        (Some(chosen), _) => chosen,
        (None, Some(key)) => i64::from((murmur2(key) & 0x7fff_ffff) % count.max(1)),
        (None, None) => 0,
    };
    let leader = partitions
        .iter()
        .find(|p| p.number == partition)
        .map(|p| p.leader)
        .ok_or_else(|| {
            let why = format!("topic {} has {count} partitions", what.topic);
            Failure::Said(3, why)
        })?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_millis() as i64;
    let batch = Batch::of(what.key.as_deref(), Some(&what.value), &what.headers, now);
    let (api, version) = client.choose(leader, PRODUCE, 3, 12).await?;
    let body = Struct::new(&api.request, version)
        .with("acks", what.acks)
        .with("timeout_ms", client.left_ms())
        .with_item("topics", version, |topic| {
            topic
                .with("topic", what.topic.as_str())
                .with_item("partitions", version, |p| {
                    p.with("partition", partition)
                        .with("records", Some(batch.bytes().clone()))
                })
        });
    if what.acks == 0 {
        client.tell(leader, api, version, body).await?;
        let data = json!({"topic": what.topic, "partition": partition, "offset": null});
        return Ok(done(data));
    }
    let reply = client.ask(leader, api, version, body).await?;
    let answer = reply
        .list("topics")
        .first()
        .and_then(|t| t.list("partitions").first());
    let answer = answer.ok_or(Failure::Malformed(
        "a produce response without the partition",
    ))?;
    Failure::check(answer)?;
    Ok(done(json!({
        "topic": what.topic,
        "partition": partition,
        "offset": answer.int("base_offset"),
    })))
}

/// The hash by which Kafka's own producer chooses partitions: MurmurHash2 (A. Appleby), seeded as in Kafka's Utils.murmur2.
fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ key.len() as u32;
    let mut words = key.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    for (i, byte) in rest.iter().enumerate() {
        hash ^= u32::from(*byte) << (8 * i);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

async fn topics(client: &mut Client) -> Result<Response, Failure> {
    let metadata = client.metadata(None).await?;
    let topics = metadata.list("topics").iter();
    let topics = topics.filter(|t| t.int("is_internal") != Some(1));
    let named = topics.map(|t| (t.text("topic"), Json::from(t.list("partitions").len())));
    Ok(done(Json::Object(named.collect())))
}

async fn create_topic(client: &mut Client, call: &CheckedStep) -> Result<Response, Failure> {
    let name = call.text_of("name").unwrap_or_default();
    let partitions = call.get("partitions").and_then(Arg::as_int).unwrap_or(1);
    let controller = client.controller().await?;
    let (api, version) = client.choose(controller, 19, 0, 5).await?;
    let body = Struct::new(&api.request, version)
        .with("timeout_ms", client.left_ms())
        .with_item("topics", version, |topic| {
            topic
                .with("topic", name)
                .with("num_partitions", partitions)
                .with("replication_factor", 1)
        });
    let reply = client.ask(controller, api, version, body).await?;
    for topic in reply.list("topics") {
        Failure::check(topic)?;
    }
    Ok(done(name.into()))
}

/// How long a broker waits for records before it answers that there are none.
const LONG_POLL: Duration = Duration::from_millis(500);
/// What one fetch may bring.
const FETCH_BYTES: i64 = 4 << 20;

async fn consume(
    client: &mut Client,
    call: &CheckedStep,
    deadline: Instant,
) -> Result<Response, Failure> {
    let topic = call.text_of("topic").unwrap_or_default().to_owned();
    let wanted = call.get("n").and_then(Arg::as_int).unwrap_or(1) as usize;
    let mut member = match call.text_of("group") {
        Some(group) => Some(group::Member::join(client, group, &topic).await?),
        None => None,
    };
    let partitions = client.partitions(&topic, false).await?;
    let mut from = vec![];
    for partition in partitions {
        let assigned = member.as_ref().is_none_or(|m| m.has(partition.number));
        if !assigned {
            continue;
        }
        let committed = member.as_ref().and_then(|m| m.committed(partition.number));
        let offset = match committed {
            Some(offset) => offset,
            None => earliest(client, &topic, &partition).await?,
        };
        from.push((partition, offset));
    }
    let mut found: Vec<(i64, Record)> = vec![];
    let mut size = 0;
    let outcome = loop {
        if found.len() >= wanted || from.is_empty() && member.is_none() {
            break Ok(());
        }
        if deadline.saturating_duration_since(Instant::now()) < LONG_POLL / 2 {
            break Ok(());
        }
        if let Some(member) = &mut member {
            match member.heartbeat(client).await {
                Ok(()) => {}
                Err(failure) => break Err(failure),
            }
        }
        match fetch(client, &topic, &mut from, wanted - found.len()).await {
            Ok(records) => {
                size += records.iter().map(|(_, r)| weight(r)).sum::<usize>();
                found.extend(records);
                if size > MAX_DATA {
                    break Err(Failure::TooLarge);
                }
            }
            // What has come is worth telling, if the time is up in the middle of a poll.
            Err(Failure::Late) => break Ok(()),
            Err(failure) => break Err(failure),
        }
    };
    if let Some(member) = member {
        let next: Vec<(i64, i64)> = from.iter().map(|(p, o)| (p.number, *o)).collect();
        client.extend(Duration::from_secs(1));
        let left = member.leave(client, &next, outcome.is_ok()).await;
        outcome?;
        left?;
    } else {
        outcome?;
    }
    let records: Vec<Json> = found.iter().map(|(p, r)| show(&topic, *p, r)).collect();
    let complete = records.len() >= wanted;
    let count = records.len();
    let mut response = done(Json::Array(records));
    if !complete {
        response.ok = false;
        response.code = "ETIMEDOUT".into();
        response.error = format!(
            "{count} of {wanted} records within {}",
            faultbox_contract::duration::show(call.timeout())
        );
    }
    Ok(response)
}

fn weight(record: &Record) -> usize {
    let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
    length(&record.key) + length(&record.value)
}

/// The first offset that is still there.
async fn earliest(
    client: &mut Client,
    topic: &str,
    partition: &client::Partition,
) -> Result<i64, Failure> {
    let (api, version) = client.choose(partition.leader, LIST_OFFSETS, 1, 6).await?;
    let body = Struct::new(&api.request, version)
        .with("replica_id", -1)
        .with_item("topics", version, |t| {
            t.with("topic", topic)
                .with_item("partitions", version, |p| {
                    // -2 is ListOffsets' word for the beginning of the log.
                    p.with("partition", partition.number).with("timestamp", -2)
                })
        });
    let reply = client.ask(partition.leader, api, version, body).await?;
    let answer = reply
        .list("topics")
        .first()
        .and_then(|t| t.list("partitions").first());
    let answer = answer.ok_or(Failure::Malformed("offsets without the partition"))?;
    Failure::check(answer)?;
    Ok(answer.int("offset").unwrap_or(0).max(0))
}

/// Asks each leader once for what its partitions have, and moves the offsets on.
async fn fetch(
    client: &mut Client,
    topic: &str,
    from: &mut [(client::Partition, i64)],
    most: usize,
) -> Result<Vec<(i64, Record)>, Failure> {
    let mut found = vec![];
    let mut leaders: Vec<i64> = from.iter().map(|(p, _)| p.leader).collect();
    leaders.sort_unstable();
    leaders.dedup();
    if leaders.is_empty() {
        tokio::time::sleep(LONG_POLL).await;
    }
    for leader in leaders {
        let (api, version) = client.choose(leader, FETCH, 4, 12).await?;
        let mut body = Struct::new(&api.request, version)
            .with("replica_id", -1)
            .with("max_wait_ms", LONG_POLL.as_millis() as i64)
            .with("min_bytes", 1)
            .with("max_bytes", FETCH_BYTES);
        body.push("topics", version, |mut t| {
            t.set("topic", topic);
            for (partition, offset) in from.iter().filter(|(p, _)| p.leader == leader) {
                t.push("partitions", version, |p| {
                    p.with("partition", partition.number)
                        .with("fetch_offset", *offset)
                        .with("partition_max_bytes", FETCH_BYTES)
                });
            }
            t
        });
        let reply = client.ask(leader, api, version, body).await?;
        Failure::check(&reply)?;
        for part in reply
            .list("topics")
            .iter()
            .flat_map(|t| t.list("partitions"))
        {
            Failure::check(part)?;
            let number = part.int("partition");
            let Some((_, offset)) = from.iter_mut().find(|(p, _)| Some(p.number) == number) else {
                continue;
            };
            let content = part.bytes("records").cloned().unwrap_or_default();
            take(&content, offset, number.unwrap_or(0), most, &mut found)?;
        }
    }
    Ok(found)
}

/// Takes records from a fetched partition until there are enough, and moves the offset on.
fn take(
    content: &Bytes,
    offset: &mut i64,
    partition: i64,
    most: usize,
    found: &mut Vec<(i64, Record)>,
) -> Result<(), Failure> {
    for batch in records::split(content).0 {
        if !batch.checksum_holds() {
            return Err(Failure::Said(2, "the records' checksum is wrong".into()));
        }
        if !batch.is_control() {
            for record in batch.records().map_err(|m| Failure::Malformed(m.0))? {
                if found.len() >= most {
                    return Ok(());
                }
                // A batch is fetched whole, whichever of its records was asked for.
                if record.offset >= *offset {
                    *offset = record.offset + 1;
                    found.push((partition, record));
                }
            }
        }
        *offset = (*offset).max(batch.next_offset());
    }
    Ok(())
}

fn show(topic: &str, partition: i64, record: &Record) -> Json {
    let text = |bytes: &Option<Bytes>| match bytes {
        Some(bytes) => Json::from(String::from_utf8_lossy(bytes).into_owned()),
        None => Json::Null,
    };
    let headers = record.headers.iter();
    let headers = headers.map(|(n, v)| (String::from_utf8_lossy(n).into_owned(), text(v)));
    json!({
        "topic": topic,
        "partition": partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "key": text(&record.key),
        "value": text(&record.value),
        "headers": Json::Object(headers.collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_chosen_as_kafkas_producer_does() {
        // Vectors of Kafka's own UtilsTest.
        for (key, hash) in [
            ("21", -973932308i32),
            ("foobar", -790332482),
            ("a-little-bit-long-string", -985981536),
            ("a-little-bit-longer-string", -1486304829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58897971,
            ),
            ("abc", 479470107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }
}
