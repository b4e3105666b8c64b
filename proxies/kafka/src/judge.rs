//! Asking the rules: about requests by what they ask, about responses by what they bring.

use bytes::Bytes;
use faultbox_contract::rule::Fired;
use faultbox_contract::{ArmedRule, RuleSet};
use faultbox_engine::Origin;
use serde_json::{Map, Value as Json, json};

use crate::answer;
use crate::codec::schema::{FETCH, METADATA, PRODUCE};
use crate::codec::{Reply, Request, Struct};
use crate::errors;
use crate::records::{self, Batch};
use crate::rules::{Action, KafkaRule};
use crate::subjects::{self, Names, Subject};

/// Is any rule armed that could act on this request of this client?
pub fn concerned(origin: &Origin, api: i16, client_id: &[u8]) -> bool {
    let rules: &RuleSet = &origin.host.rules;
    !rules.is_empty()
        && rules.load().iter().any(|armed| {
            KafkaRule::of(armed).is_some_and(|rule| {
                rule.concerns(api)
                    && rule.admits(client_id)
                    && !(api == FETCH && rule.judges_fetched())
            }) && origin.admits(armed)
        })
}

/// Is any rule armed that judges what a fetch brings to this client?
pub fn judges_fetched(origin: &Origin, client_id: &[u8]) -> bool {
    let rules: &RuleSet = &origin.host.rules;
    !rules.is_empty()
        && rules.load().iter().any(|armed| {
            KafkaRule::of(armed).is_some_and(|rule| {
                rule.concerns(FETCH) && rule.admits(client_id) && rule.judges_fetched()
            }) && origin.admits(armed)
        })
}

/// Does any armed rule ask what the topics of this request are called?
pub fn asks_topics(origin: &Origin, api: i16) -> bool {
    origin.host.rules.load().iter().any(|armed| {
        KafkaRule::of(armed).is_some_and(|rule| rule.concerns(api) && rule.asks_topic())
    })
}

/// Is the rule one that waits for the response to this request? Requests for all topics do not name them.
pub fn waits(rule: &KafkaRule, request: &Request) -> bool {
    match request.api.key {
        FETCH => rule.judges_fetched(),
        METADATA => {
            matches!(rule.action, Action::Error(..)) && request.body.list("topics").is_empty()
        }
        _ => false,
    }
}

/// Asks every armed rule about a request.
pub fn request(request: &Request, origin: &Origin, names: &Names) -> Fired {
    let client_id = request.client_id.as_deref().unwrap_or_default();
    let first = |rule: &KafkaRule| {
        let mut first = None;
        subjects::visit(&request.body, names, &mut |subject, part| {
            if first.is_none() && rule.selects(subject) && selects_records(rule, part) {
                first = Some(subject.clone());
            }
        });
        first
    };
    let matches = |armed: &ArmedRule| {
        KafkaRule::of(armed).is_some_and(|rule| {
            rule.concerns(request.api.key)
                && rule.admits(client_id)
                && !waits(rule, request)
                && first(rule).is_some()
                && answerable(rule, request)
        }) && origin.admits(armed)
    };
    origin.host.rules.evaluate_with(
        matches,
        &*origin.host.sink,
        || json!({"api": request.api.name, "client_id": text(client_id)}),
        |armed| match KafkaRule::of(armed) {
            Some(rule) => outcome(rule, first(rule).as_ref()),
            None => Json::Null,
        },
    )
}

/// Does the rule find a record that it selects, if it asks for that?
fn selects_records(rule: &KafkaRule, part: &Struct) -> bool {
    !rule.asks_key()
        || part
            .bytes("records")
            .is_some_and(|content| rule.selects_any(&records::split(content).0))
}

/// A rule cannot act on a request whose answer has no place for its error.
fn answerable(rule: &KafkaRule, request: &Request) -> bool {
    match rule.action {
        Action::Error(code, _) => answer::error(request, code, None).is_some(),
        _ => true,
    }
}

/// What an event says of one rule.
fn outcome(rule: &KafkaRule, subject: Option<&Subject>) -> Json {
    let mut fields = Map::new();
    if let Some(subject) = subject {
        if let Some(topic) = &subject.topic {
            fields.insert("topic".into(), text(topic).into());
        }
        if let Some(partition) = subject.partition {
            fields.insert("partition".into(), partition.into());
        }
        if let Some(group) = &subject.group {
            fields.insert("group".into(), text(group).into());
        }
    }
    if let Action::Error(code, _) = &rule.action {
        fields.insert("code".into(), errors::name((*code).into()).into());
    }
    Json::Object(fields)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Asks every rule that waits for responses about one.
pub fn reply(reply: &Reply, client_id: &[u8], origin: &Origin, names: &Names) -> Fired {
    let first = |rule: &KafkaRule| first_of(rule, reply, names);
    let matches = |armed: &ArmedRule| {
        KafkaRule::of(armed).is_some_and(|rule| {
            let waits = match reply.api.key {
                FETCH => rule.judges_fetched(),
                _ => matches!(rule.action, Action::Error(..)),
            };
            waits && rule.concerns(reply.api.key) && rule.admits(client_id) && first(rule).is_some()
        }) && origin.admits(armed)
    };
    origin.host.rules.evaluate_with(
        matches,
        &*origin.host.sink,
        || json!({"api": reply.api.name, "client_id": text(client_id)}),
        |armed| match KafkaRule::of(armed) {
            Some(rule) => outcome(rule, first(rule).as_ref()),
            None => Json::Null,
        },
    )
}

/// The first thing of a response that the rule selects.
fn first_of(rule: &KafkaRule, reply: &Reply, names: &Names) -> Option<Subject> {
    let mut first = None;
    subjects::visit(&reply.body, names, &mut |subject, part| {
        let fits = || match reply.api.key {
            FETCH => rule.selects_any(&data(part).0),
            _ => true,
        };
        if first.is_none() && subject.topic.is_some() && rule.selects(subject) && fits() {
            first = Some(subject.clone());
        }
    });
    first
}

/// The batches of records that a partition of a fetch response brings, without transactions' markers, and those among them that
/// rules cannot take records out of.
fn data(part: &Struct) -> (Vec<Batch>, bool) {
    let content = part.bytes("records").cloned().unwrap_or_default();
    let (mut batches, _) = records::split(&content);
    batches.retain(|b| !b.is_control() && b.count() != Ok(0));
    let old = batches.iter().any(|b| !b.is_current());
    (batches, old)
}

/// Does the fetch response bring batches of a format before Kafka 0.11? They have no way to say that records are not there.
pub fn brings_old(reply: &Reply) -> bool {
    let mut old = false;
    subjects::visit(&reply.body, &Names::default(), &mut |_, part| {
        old |= data(part).1
    });
    old
}

/// Changes a response as one rule says that has fired on it.
pub fn act(reply: &mut Reply, rule: &KafkaRule, names: &Names) {
    let fetch = reply.api.key == FETCH;
    let topics = reply.body.list_mut("topics");
    if !fetch {
        // A topic that has failed has no partitions to tell of.
        if let Action::Error(code, _) = rule.action {
            for topic in topics.into_iter().flatten() {
                let subject = Subject::of_topic(topic.bytes("topic").cloned());
                if rule.selects(&subject) {
                    topic.set("error_code", i64::from(code));
                    if let Some(partitions) = topic.list_mut("partitions") {
                        partitions.clear();
                    }
                }
            }
        }
        return;
    }
    let mut corrupt = match rule.action {
        Action::Corrupt(offset) => Some(offset),
        _ => None,
    };
    subjects::retain(&mut reply.body, names, &mut |subject, part| {
        if rule.selects(subject) && rule.selects_any(&data(part).0) {
            match &rule.action {
                Action::Error(code, _) => {
                    part.set("error_code", i64::from(*code));
                    part.set("records", Some(Bytes::new()));
                }
                Action::Drop => {
                    let content = part.bytes("records").cloned().unwrap_or_default();
                    part.set("records", Some(dropped(rule, &content)));
                }
                Action::Corrupt(_) => {
                    if let Some(offset) = corrupt.take() {
                        let content = part.bytes("records").cloned().unwrap_or_default();
                        part.set("records", Some(flipped(&content, offset)));
                    }
                }
                _ => {}
            }
        }
        true
    });
}

/// The records without those that are dropped. The batches keep their offsets, so that the consumer goes on after them and commits
/// the same offsets as ever.
fn dropped(rule: &KafkaRule, content: &Bytes) -> Bytes {
    let (batches, rest) = records::split(content);
    let left: Vec<Batch> = batches
        .iter()
        .map(|batch| {
            if !batch.is_current() || batch.is_control() {
                return batch.clone();
            }
            if !rule.asks_key() {
                return batch.passed_over();
            }
            match batch.records() {
                Ok(records) if records.iter().any(|r| rule.selects_record(r)) => {
                    let kept = records.iter().filter(|r| !rule.selects_record(r));
                    let kept: Vec<_> = kept.collect();
                    match kept.is_empty() {
                        true => batch.passed_over(),
                        false => batch.with_only(&kept, false),
                    }
                }
                _ => batch.clone(),
            }
        })
        .collect();
    records::join(&left, &rest)
}

/// Where a batch's checksum begins to count.
const CHECKED: usize = 21;

/// The records with one byte inverted. The first byte is the first that the checksum covers: a broken frame would be no corruption
/// that a disk or a network leaves behind.
fn flipped(content: &Bytes, offset: u64) -> Bytes {
    let mut bytes = content.to_vec();
    let at = usize::try_from(offset)
        .ok()
        .and_then(|o| o.checked_add(CHECKED));
    if let Some(byte) = at.and_then(|at| bytes.get_mut(at)) {
        *byte ^= 0xff;
    }
    bytes.into()
}

/// What of a request goes on, and the rule's answer to the rest.
pub struct Split {
    /// What the broker gets; `None` if nothing is left of it.
    pub rest: Option<Request>,
    /// The answer to what it does not get.
    pub answer: Struct,
}

/// Splits a request on which an error has fired.
pub fn split(request: &Request, rule: &KafkaRule, names: &Names) -> Option<Split> {
    let Action::Error(code, message) = &rule.action else {
        return None;
    };
    let fits =
        |subject: &Subject, part: &Struct| rule.selects(subject) && selects_records(rule, part);
    let whole = answer::is_of_group(request, *code);
    let (mut rest, mut part) = (request.clone(), request.clone());
    let left = !whole && subjects::retain(&mut rest.body, names, &mut |s, p| !fits(s, p));
    if left {
        subjects::retain(&mut part.body, names, &mut |s, p| fits(s, p));
    }
    Some(Split {
        answer: answer::error(&part, *code, message.as_deref())?,
        rest: left.then_some(rest),
    })
}

/// Does the request get no response, so that nothing can be told?
pub fn is_unanswered(request: &Request) -> bool {
    request.api.key == PRODUCE && request.body.int("acks") == Some(0)
}
