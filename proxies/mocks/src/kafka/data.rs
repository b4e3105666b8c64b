//! Records and topics: produce, fetch, offsets, metadata.

use std::time::Duration;

use bytes::Bytes;
use faultbox_kafka::codec::{Request, Struct, Value as Field};
use faultbox_kafka::records::{Record, split};
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::log::code::UNKNOWN_TOPIC_OR_PARTITION;
use super::server::{NODE, Server, State, Verdict, describe};
use crate::calls;

/// How many records of one batch are recorded one by one: a load's batches must not drown a test's events.
const RECORDED: usize = 1000;

/// The records of a field, as far as they can be read.
fn records_of(bytes: &Bytes) -> Vec<Record> {
    split(bytes)
        .0
        .iter()
        .filter_map(|batch| batch.records().ok())
        .flatten()
        .collect()
}

/// A record as events and the spec's functions see it.
fn describe_record(record: &Record) -> Map<String, Value> {
    let text = |bytes: &Option<Bytes>| bytes.as_ref().map_or(Value::Null, |b| calls::text(b));
    let json = record
        .value
        .as_ref()
        .filter(|v| v.len() <= calls::KEPT)
        .and_then(|v| serde_json::from_slice(v).ok());
    let headers: Map<String, Value> = record
        .headers
        .iter()
        .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), text(value)))
        .collect();
    let mut map = Map::new();
    map.insert("key".into(), text(&record.key));
    map.insert("value".into(), text(&record.value));
    map.insert("json".into(), json.unwrap_or(Value::Null));
    map.insert("headers".into(), headers.into());
    map
}

/// A short form of a key or a value.
fn short(bytes: Option<&Bytes>) -> String {
    match bytes {
        None => "null".to_owned(),
        Some(b) => String::from_utf8_lossy(&b[..b.len().min(60)]).into_owned(),
    }
}

/// The number of a partition in a part of a request.
fn number(part: &Struct) -> i64 {
    part.int("partition").unwrap_or(-1)
}

impl Server {
    pub(super) async fn produce(&self, request: &Request) -> Struct {
        let version = request.version;
        let mut body = Struct::new(&request.api.response, version);
        for topic in request.body.list("topics") {
            let name = topic.text("topic");
            let verdict = self
                .verdict(request, &name, true, || {
                    let mut seen = describe(request, &name);
                    let records: Vec<Value> = topic
                        .list("partitions")
                        .iter()
                        .filter_map(|part| part.bytes("records"))
                        .flat_map(records_of)
                        .map(|record| describe_record(&record).into())
                        .collect();
                    seen.insert("records".into(), records.into());
                    seen.into()
                })
                .await;
            if !verdict.delay.is_zero() {
                tokio::time::sleep(verdict.delay).await;
            }
            body.push("topics", version, |item| {
                let mut item = item.with("topic", name.as_str());
                for part in topic.list("partitions") {
                    let records = part.bytes("records").cloned().unwrap_or_default();
                    let outcome = match verdict.error {
                        Some(code) => Err(code),
                        None => self.state().log.append(&name, number(part), &records),
                    };
                    self.record_produced(request, &name, number(part), &records, outcome, &verdict);
                    item.push("partitions", version, |slot| {
                        let slot = slot.with("partition", number(part));
                        match outcome {
                            Ok(offset) => {
                                slot.with("base_offset", offset).with("log_start_offset", 0)
                            }
                            Err(code) => slot.with("error_code", i64::from(code)),
                        }
                    });
                }
                item
            });
        }
        self.changed.notify_waiters();
        body
    }

    /// An event for each record.
    fn record_produced(
        &self,
        request: &Request,
        topic: &str,
        partition: i64,
        records: &Bytes,
        outcome: Result<i64, i16>,
        verdict: &Verdict,
    ) {
        for (i, record) in records_of(records).iter().take(RECORDED).enumerate() {
            let mut call = describe(request, topic);
            call.insert("partition".into(), partition.into());
            call.extend(describe_record(record));
            verdict.note(&mut call);
            let place = match outcome {
                Ok(base) => {
                    let offset = base + i64::try_from(i).unwrap_or_default();
                    call.insert("offset".into(), offset.into());
                    format!("@{offset}")
                }
                Err(code) => {
                    let name = faultbox_kafka::errors::name(code.into());
                    call.entry("error").or_insert_with(|| name.clone().into());
                    format!(" -> {name}")
                }
            };
            let text = format!(
                "PRODUCE {topic}[{partition}]{place} key={} value={}",
                short(record.key.as_ref()),
                short(record.value.as_ref())
            );
            call.insert("text".into(), text.into());
            self.calls.record(call);
        }
    }

    pub(super) async fn fetch(&self, request: &Request) -> Struct {
        let mut verdicts = vec![];
        for topic in request.body.list("topics") {
            let name = topic.text("topic");
            let verdict = self
                .verdict(request, &name, true, || describe(request, &name).into())
                .await;
            if !verdict.delay.is_zero() {
                tokio::time::sleep(verdict.delay).await;
            }
            verdicts.push(verdict);
        }
        let wait = request.body.int("max_wait_ms").unwrap_or(0);
        let least = request.body.int("min_bytes").unwrap_or(0);
        let wait = Duration::from_millis(u64::try_from(wait).unwrap_or(0));
        let deadline = Instant::now() + wait;
        loop {
            // Before looking: what comes between looking and waiting must not be missed.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let (body, size, settled) = self.fetched(request, &verdicts);
            let enough = i64::try_from(size).unwrap_or(i64::MAX) >= least;
            if enough || settled || Instant::now() >= deadline {
                self.record_fetched(request, &body);
                return body;
            }
            let _ = tokio::time::timeout_at(deadline, changed).await;
        }
    }

    /// What there is now: the answer, its size, and whether waiting is no use.
    fn fetched(&self, request: &Request, verdicts: &[Verdict]) -> (Struct, usize, bool) {
        let version = request.version;
        let mut body = Struct::new(&request.api.response, version);
        let mut left = usize::try_from(request.body.int("max_bytes").unwrap_or(i64::MAX))
            .unwrap_or(usize::MAX);
        let (mut size, mut settled) = (0, false);
        let mut state = self.state();
        for (topic, verdict) in request.body.list("topics").iter().zip(verdicts) {
            let name = topic.text("topic");
            body.push("topics", version, |item| {
                let mut item = item.with("topic", name.as_str());
                for part in topic.list("partitions") {
                    let most = usize::try_from(part.int("partition_max_bytes").unwrap_or(0))
                        .unwrap_or(0)
                        .min(left);
                    let from = part.int("fetch_offset").unwrap_or(0);
                    let found = match verdict.error {
                        Some(code) => Err(code),
                        None if left == 0 => Ok((Bytes::new(), -1)),
                        None => state
                            .log
                            .partition(&name, number(part))
                            .and_then(|p| Ok((p.read(from, most)?, p.end()))),
                    };
                    item.push("partitions", version, |slot| {
                        let slot = slot.with("partition", number(part));
                        match found {
                            Ok((records, end)) => {
                                size += records.len();
                                left = left.saturating_sub(records.len());
                                slot.with("high_watermark", end)
                                    .with("last_stable_offset", end)
                                    .with("log_start_offset", 0)
                                    .with("records", Some(records))
                            }
                            Err(code) => {
                                settled = true;
                                slot.with("error_code", i64::from(code))
                                    .with("records", Some(Bytes::new()))
                            }
                        }
                    });
                }
                item
            });
        }
        settled |= request.body.list("topics").is_empty();
        (body, size, settled)
    }

    /// An event for each partition that records were fetched from, or that was refused.
    fn record_fetched(&self, request: &Request, body: &Struct) {
        let asked = request.body.list("topics").iter().zip(body.list("topics"));
        for (asked, topic) in asked {
            let name = topic.text("topic");
            let parts = asked
                .list("partitions")
                .iter()
                .zip(topic.list("partitions"));
            for (from, part) in parts {
                let bytes = part.bytes("records").cloned().unwrap_or_default();
                let error = part.int("error_code").unwrap_or(0);
                if bytes.is_empty() && error == 0 {
                    continue;
                }
                let count: u32 = split(&bytes)
                    .0
                    .iter()
                    .filter_map(|batch| batch.count().ok())
                    .sum();
                let offset = from.int("fetch_offset").unwrap_or(0);
                let mut call = describe(request, &name);
                call.insert("partition".into(), number(part).into());
                call.insert("offset".into(), offset.into());
                call.insert("count".into(), count.into());
                let mut text = format!("FETCH {name}[{}]@{offset}", number(part));
                if error == 0 {
                    text.push_str(&format!(" {count} records"));
                } else {
                    let code = faultbox_kafka::errors::name(error);
                    text.push_str(&format!(" -> {code}"));
                    call.insert("error".into(), code.into());
                }
                call.insert("text".into(), text.into());
                self.calls.record(call);
            }
        }
    }

    pub(super) fn list_offsets(&self, request: &Request, body: &mut Struct) {
        let mut state = self.state();
        let asked = request.body.list("topics");
        let Some(topics) = body.list_mut("topics") else {
            return;
        };
        for (asked, topic) in asked.iter().zip(topics) {
            let name = topic.text("topic");
            let Some(parts) = topic.list_mut("partitions") else {
                continue;
            };
            for (asked, part) in asked.list("partitions").iter().zip(parts) {
                match state.log.partition(&name, number(asked)) {
                    Err(code) => {
                        part.set("error_code", i64::from(code));
                    }
                    Ok(partition) => {
                        // -1 is the end, -2 the beginning (KIP-79).
                        let (time, offset) = match asked.int("timestamp").unwrap_or(-1) {
                            -2 => (-1, 0),
                            time @ 0.. => partition.at(time).unwrap_or((-1, -1)),
                            _ => (-1, partition.end()),
                        };
                        part.set("timestamp", time);
                        part.set("offset", offset);
                        part.set("leader_epoch", 0);
                    }
                }
            }
        }
    }

    pub(super) async fn metadata(&self, request: &Request) -> Struct {
        let version = request.version;
        let mut body = Struct::new(&request.api.response, version);
        let (host, port) = self.host();
        body.push("brokers", version, |b| {
            b.with("node_id", NODE)
                .with("host", host.as_str())
                .with("port", port)
        });
        body.set("cluster_id", "faultbox-mock");
        body.set("controller_id", NODE);
        // Null is all, and so is none in version 0.
        let all = match request.body.get("topics") {
            Some(Field::List(Some(items))) => version == 0 && items.is_empty(),
            _ => true,
        };
        let create = request.body.int("allow_auto_topic_creation").unwrap_or(1) != 0;
        let names: Vec<String> = match all {
            true => self.state().log.topics.keys().cloned().collect(),
            false => request
                .body
                .list("topics")
                .iter()
                .map(|topic| topic.text("topic"))
                .collect(),
        };
        for name in names {
            let verdict = self
                .verdict(request, &name, false, || describe(request, &name).into())
                .await;
            if !verdict.delay.is_zero() {
                tokio::time::sleep(verdict.delay).await;
            }
            let outcome = match verdict.error {
                Some(code) => Err(code),
                None => topic_size(&mut self.state(), &name, create),
            };
            body.push("topics", version, |item| {
                let mut item = item.with("topic", name.as_str());
                match outcome {
                    Err(code) => {
                        item.set("error_code", i64::from(code));
                    }
                    Ok(count) => {
                        for at in 0..i64::try_from(count).unwrap_or(0) {
                            item.push("partitions", version, |part| {
                                part.with("partition", at)
                                    .with("leader_id", NODE)
                                    .with("leader_epoch", 0)
                                    .with_item("replica_nodes", version, |n| n.with("item", NODE))
                                    .with_item("isr_nodes", version, |n| n.with("item", NODE))
                            });
                        }
                    }
                }
                item
            });
        }
        body
    }

    pub(super) fn create_topics(&self, request: &Request, body: &mut Struct) {
        let only_checked = request.body.int("validate_only").unwrap_or(0) != 0;
        let mut state = self.state();
        let Some(answers) = body.list_mut("topics") else {
            return;
        };
        for (topic, answer) in request.body.list("topics").iter().zip(answers) {
            let name = topic.text("topic");
            let count = match topic.list("assignments").len() {
                0 => topic.int("num_partitions").unwrap_or(-1),
                n => i64::try_from(n).unwrap_or(i64::MAX),
            };
            let there = state.log.topics.contains_key(&name);
            match state.log.create(&name, count) {
                Ok(()) => {
                    let made = state.log.topics.get(&name).map_or(0, Vec::len);
                    answer.set("num_partitions", i64::try_from(made).unwrap_or(0));
                    answer.set("replication_factor", 1);
                }
                Err(code) => {
                    answer.set("error_code", i64::from(code));
                }
            }
            if only_checked && !there {
                state.log.topics.remove(&name);
            }
        }
    }

    pub(super) fn delete_topics(&self, body: &mut Struct) {
        let mut state = self.state();
        for answer in body.list_mut("topics").into_iter().flatten() {
            if !state.log.delete(&answer.text("topic")) {
                answer.set("error_code", i64::from(UNKNOWN_TOPIC_OR_PARTITION));
            }
        }
    }

    pub(super) fn create_partitions(&self, request: &Request, body: &mut Struct) {
        let mut state = self.state();
        let asked = request.body.list("topics");
        for (topic, answer) in asked
            .iter()
            .zip(body.list_mut("topics").into_iter().flatten())
        {
            let wanted = usize::try_from(topic.int("count").unwrap_or(0)).unwrap_or(0);
            let code = match state.log.topics.get_mut(&topic.text("topic")) {
                None => UNKNOWN_TOPIC_OR_PARTITION,
                Some(parts) if wanted <= parts.len() || wanted > 10_000 => {
                    super::log::code::INVALID_PARTITIONS
                }
                Some(parts) => {
                    parts.resize_with(wanted, Default::default);
                    0
                }
            };
            answer.set("error_code", i64::from(code));
        }
    }

    pub(super) fn init_producer(&self, request: &Request, body: &mut Struct) {
        if request.body.bytes("transactional_id").is_some() {
            // TRANSACTIONAL_ID_AUTHORIZATION_FAILED: clients give up at once, rather than look for a coordinator for ever.
            body.set("error_code", 53);
            return;
        }
        let mut state = self.state();
        state.producers += 1;
        body.set("producer_id", state.producers);
        body.set("producer_epoch", 0);
    }
}

/// How many partitions a topic has; one that is not there is made if the client wants that.
fn topic_size(state: &mut State, name: &str, create: bool) -> Result<usize, i16> {
    if create && !state.log.topics.contains_key(name) {
        state.log.create(name, -1)?;
    }
    state
        .log
        .topics
        .get(name)
        .map(Vec::len)
        .ok_or(UNKNOWN_TOPIC_OR_PARTITION)
}
