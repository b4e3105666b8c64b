//! Losing what is produced: what is kept from the broker, and what the producer is told instead.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::answer;
use crate::codec::schema::{LIST_OFFSETS, api};
use crate::codec::{Malformed, Reply, Request, Struct, Value};
use crate::losses::{Fate, Loses, Losses, Place};
use crate::records::{self, Batch};
use crate::rules::KafkaRule;
use crate::subjects::{self, Names};

/// ListOffsets' word for the end of the log.
const LATEST: i64 = -1;
/// The version in which the proxy asks: understood by brokers from 0.10.1 to 4.1.
const ASKED_IN: i16 = 1;

/// The batches of one request that are lost.
#[derive(Debug)]
pub struct Loss {
    /// The request's answer, with a success for each of them; the offsets are still to be told.
    success: Reply,
    batches: Vec<LostBatch>,
    /// Where their logs end, or what the broker says is wrong with them.
    ends: Mutex<Vec<End>>,
}

/// A topic, a partition, and the end of its log or the broker's error.
type End = (Bytes, i32, Result<i64, i64>);

#[derive(Debug)]
struct LostBatch {
    place: Place,
    topic: Option<Bytes>,
    batch: Batch,
    count: u32,
    /// The offset that the producer was told before.
    told: Option<i64>,
}

/// What is left of a request.
pub struct Remainder {
    /// What the broker gets; `None` if nothing is left.
    pub request: Option<Request>,
    /// What it does not get.
    pub loss: Option<Loss>,
    /// Is anything different from what the client has sent?
    pub changed: bool,
}

/// Takes out of a produce request what the rule that has fired selects, and what has been lost before.
///
/// # Errors
/// A batch that must be taken apart and cannot be.
pub fn take_out(
    request: &Request,
    rule: Option<&KafkaRule>,
    losses: &Losses,
    names: &Names,
) -> Result<Remainder, Malformed> {
    let (mut rest, mut lost_part) = (request.clone(), request.clone());
    let mut batches = vec![];
    let mut changed = false;
    let mut failed = None;
    // The walks below meet the same things in the same order.
    let mut fates = vec![];
    subjects::visit(&request.body, names, &mut |subject, part| {
        let fate = decide(subject, part, rule, losses, &mut batches);
        fates.push(fate.unwrap_or_else(|e| {
            failed = Some(e);
            None
        }));
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let mut at = fates.iter();
    let left = subjects::retain(&mut rest.body, names, &mut |_, part| match at.next() {
        Some(Some(left)) if left.is_empty() => false,
        Some(Some(left)) => {
            changed |= part.bytes("records") != Some(left);
            part.set("records", Some(left.clone()));
            true
        }
        _ => true,
    });
    let mut at = fates.iter();
    let any = subjects::retain(
        &mut lost_part.body,
        names,
        &mut |_, _| matches!(at.next(), Some(Some(left)) if left.is_empty()),
    );
    let loss = any.then(|| {
        let mut success = Reply::new(request.api, request.version, request.correlation);
        success.body = answer::success(&lost_part);
        Loss {
            success,
            batches,
            ends: Mutex::default(),
        }
    });
    Ok(Remainder {
        changed: changed || loss.is_some(),
        request: left.then_some(rest),
        loss,
    })
}

/// What is left of one partition's records: `None` if they are as they were, empty if all of them are lost.
fn decide(
    subject: &subjects::Subject,
    part: &Struct,
    rule: Option<&KafkaRule>,
    losses: &Losses,
    lost: &mut Vec<LostBatch>,
) -> Result<Option<Bytes>, Malformed> {
    let Some(content) = part.bytes("records").filter(|r| !r.is_empty()) else {
        return Ok(None);
    };
    let selects = |record: &records::Record| rule.is_some_and(|r| r.selects_record(record));
    let loses = rule.filter(|r| r.selects(subject)).map(|rule| {
        let selects: &dyn Fn(&records::Record) -> bool = &selects;
        Loses(rule.asks_key().then_some(selects))
    });
    let place = Place {
        topic: match (&subject.topic_id, &subject.topic) {
            (Some(id), _) => Bytes::copy_from_slice(id),
            (None, name) => Bytes::copy_from_slice(name.as_deref().unwrap_or_default()),
        },
        partition: subject.partition.unwrap_or(-1),
    };
    let (batches, tail) = records::split(content);
    let mut left = vec![];
    for batch in batches {
        match losses.decide(&place, &batch, loses.as_ref())? {
            Fate::Goes(batch) => left.push(batch),
            Fate::Lost(count, told) => lost.push(LostBatch {
                place: place.clone(),
                topic: subject.topic.clone(),
                batch,
                count,
                told,
            }),
        }
    }
    Ok(Some(records::join(&left, &tail)))
}

impl Loss {
    /// The question where the partitions' logs end; `None` if that need not be asked.
    pub fn question(&self, correlation: i32) -> Option<Request> {
        let mut request = Request::new(api(LIST_OFFSETS)?, ASKED_IN, correlation);
        // A consumer's question, not a replica's.
        request.body.set("replica_id", LATEST);
        let mut any = false;
        for lost in self.batches.iter().filter(|lost| lost.told.is_none()) {
            let Some(name) = lost.topic.clone() else {
                continue;
            };
            any = true;
            request.body.push("topics", ASKED_IN, |topic| {
                topic
                    .with("topic", Some(name))
                    .with_item("partitions", ASKED_IN, |partition| {
                        partition
                            .with("partition", i64::from(lost.place.partition))
                            .with("timestamp", LATEST)
                    })
            });
        }
        any.then_some(request)
    }

    /// Takes the broker's answer to that.
    ///
    /// # Errors
    /// A response that is none.
    pub fn learn(&self, message: Bytes) -> Result<(), Malformed> {
        let Some(api) = api(LIST_OFFSETS) else {
            return Ok(());
        };
        let reply = Reply::decode(api, ASKED_IN, message)?;
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        for topic in reply.body.list("topics") {
            for partition in topic.list("partitions") {
                let end = match partition.int("error_code") {
                    Some(0) | None => Ok(partition.int("offset").unwrap_or(0)),
                    Some(code) => Err(code),
                };
                ends.push((
                    topic.bytes("topic").cloned().unwrap_or_default(),
                    partition.int("partition").unwrap_or(-1) as i32,
                    end,
                ));
            }
        }
        Ok(())
    }

    /// What the producer is told. What the broker says is wrong with a partition, it hears too: a leader that has moved is no
    /// matter of ours.
    pub fn tell(&self, losses: &Losses) -> Reply {
        let mut reply = self.success.clone();
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        for lost in &self.batches {
            let same = |(topic, partition, _): &&End| {
                *partition == lost.place.partition && Some(topic) == lost.topic.as_ref()
            };
            let end = ends.iter().find(same).map_or(Ok(0), |(_, _, end)| *end);
            let told = match (lost.told, end) {
                (Some(told), _) => Ok(told),
                (None, Ok(end)) => Ok(losses.tell(&lost.place, &lost.batch, lost.count, end)),
                (None, Err(code)) => Err(code),
            };
            let Some(slot) = slot(&mut reply.body, &lost.place) else {
                continue;
            };
            match told {
                // The first batch of a partition says where its records begin.
                Ok(offset) if slot.int("base_offset") == Some(-1) => {
                    slot.set("base_offset", offset);
                }
                Ok(_) => {}
                Err(code) => {
                    slot.set("error_code", code);
                }
            }
        }
        reply
    }
}

/// The partition's place in a produce response.
fn slot<'a>(body: &'a mut Struct, place: &Place) -> Option<&'a mut Struct> {
    let topics = body.list_mut("topics")?;
    let topic = topics
        .iter_mut()
        .find(|t| answer::identity(t) == place.topic)?;
    let same = |p: &&mut Struct| p.int("partition") == Some(place.partition.into());
    topic.list_mut("partitions")?.iter_mut().find(same)
}

/// The produce request that stores what the rule selects a second time, by nobody in particular; `None` if it selects nothing.
///
/// # Errors
/// A batch that must be taken apart and cannot be.
pub fn again(
    request: &Request,
    rule: &KafkaRule,
    names: &Names,
    correlation: i32,
) -> Result<Option<Request>, Malformed> {
    let mut copy = request.clone();
    copy.correlation = correlation;
    if let Some(Value::Bytes(id)) = copy.body.get_mut("transactional_id") {
        *id = None;
    }
    // The copy is answered where the client's own is, and to us alone.
    let acks = request.body.int("acks").unwrap_or(1);
    copy.body.set("acks", if acks == 0 { 0 } else { 1 });
    let mut failed = None;
    let any = subjects::retain(&mut copy.body, names, &mut |subject, part| match selected(
        subject, part, rule,
    ) {
        Ok(Some(records)) => part.set("records", Some(records)),
        Ok(None) => false,
        Err(e) => {
            failed = Some(e);
            false
        }
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(any.then_some(copy)),
    }
}

fn selected(
    subject: &subjects::Subject,
    part: &Struct,
    rule: &KafkaRule,
) -> Result<Option<Bytes>, Malformed> {
    let Some(content) = part.bytes("records").filter(|_| rule.selects(subject)) else {
        return Ok(None);
    };
    let mut copies = vec![];
    for batch in records::split(content).0 {
        if !rule.asks_key() {
            copies.push(batch.anonymous());
            continue;
        }
        let records = batch.records()?;
        let chosen: Vec<_> = records.iter().filter(|r| rule.selects_record(r)).collect();
        if !batch.is_current() && !chosen.is_empty() {
            return Err(Malformed(
                "a message set before Kafka 0.11 cannot be sent in parts",
            ));
        }
        if !chosen.is_empty() {
            copies.push(batch.with_only(&chosen, true).anonymous());
        }
    }
    Ok((!copies.is_empty()).then(|| records::join(&copies, &[])))
}
