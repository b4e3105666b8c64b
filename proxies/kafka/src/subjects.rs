//! What a message is about: its topics, partitions and groups, wherever its version has them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::codec::schema::{Field, Kind};
use crate::codec::{Struct, Value};

/// The lists whose items are what a message is about.
const LISTS: &[&str] = &[
    "topics",
    "partitions",
    "groups",
    "coordinators",
    "transactions",
    "resources",
];

/// How many topics' ids are remembered; a cluster under test has fewer.
const MOST_NAMES: usize = 100_000;

/// A resource that is a topic, among those of DescribeConfigs and AlterConfigs.
const TOPIC_RESOURCE: i64 = 2;
/// A key that is a group's, in FindCoordinator.
const GROUP_KEY: i64 = 0;

/// The names of topics by their ids (KIP-516): newer requests say only the id.
#[derive(Debug, Default)]
pub struct Names(Mutex<HashMap<[u8; 16], Bytes>>);

impl Names {
    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 16], Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name, if it is known.
    pub fn get(&self, id: &[u8; 16]) -> Option<Bytes> {
        self.lock().get(id).cloned()
    }

    /// Learns from the body of a Metadata response.
    pub fn learn(&self, metadata: &Struct) {
        let mut names = self.lock();
        for topic in metadata.list("topics") {
            if let (Some(id), Some(name)) = (topic.uuid("topic_id"), topic.bytes("topic"))
                && names.len() < MOST_NAMES
            {
                // Not a slice of the response, which would be kept whole.
                names.insert(id, Bytes::copy_from_slice(name));
            }
        }
    }
}

/// One thing that a message is about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Subject {
    /// The topic's name.
    pub topic: Option<Bytes>,
    /// Its id, where the message says that.
    pub topic_id: Option<[u8; 16]>,
    /// The partition.
    pub partition: Option<i32>,
    /// The consumer group.
    pub group: Option<Bytes>,
    /// Are the keys within a transaction's, not a group's?
    foreign_keys: bool,
}

impl Subject {
    /// A whole topic.
    pub fn of_topic(topic: Option<Bytes>) -> Subject {
        Subject {
            topic,
            ..Subject::default()
        }
    }

    /// The same with what this structure adds.
    fn within(&self, part: &Struct, names: &Names) -> Subject {
        let mut subject = self.clone();
        if let Some(id) = part.uuid("topic_id") {
            subject.topic_id = Some(id);
            subject.topic = names.get(&id);
        }
        if let Some(name) = part.bytes("topic") {
            subject.topic = Some(name.clone());
        }
        if part.int("resource_type") == Some(TOPIC_RESOURCE) {
            subject.topic = part.bytes("resource_name").cloned();
        }
        if let Some(partition) = part.int("partition") {
            subject.partition = Some(partition as i32);
        }
        if let Some(group) = part.bytes("group_id") {
            subject.group = Some(group.clone());
        }
        subject.foreign_keys |= part.int("key_type").is_some_and(|t| t != GROUP_KEY);
        if let Some(key) = part.bytes("key").filter(|_| !subject.foreign_keys) {
            subject.group = Some(key.clone());
        }
        subject
    }
}

/// Visits everything that a message is about, with the innermost structure that says it.
pub fn visit<'a>(body: &'a Struct, names: &Names, see: &mut dyn FnMut(&Subject, &'a Struct)) {
    walk(body, &Subject::default(), names, see);
}

fn walk<'a>(
    part: &'a Struct,
    outer: &Subject,
    names: &Names,
    see: &mut dyn FnMut(&Subject, &'a Struct),
) {
    let subject = outer.within(part, names);
    let mut innermost = true;
    for (field, value) in part.entries() {
        if LISTS.contains(&field.name)
            && let Value::List(Some(items)) = value
            && !items.is_empty()
        {
            innermost = false;
            for item in items {
                walk(item, &subject, names, see);
            }
        }
    }
    if innermost {
        see(&subject, part);
    }
}

/// Keeps only what `keep` wants of all that a message is about; is anything left?
pub fn retain(
    body: &mut Struct,
    names: &Names,
    keep: &mut dyn FnMut(&Subject, &mut Struct) -> bool,
) -> bool {
    prune(body, &Subject::default(), names, keep)
}

fn prune(
    part: &mut Struct,
    outer: &Subject,
    names: &Names,
    keep: &mut dyn FnMut(&Subject, &mut Struct) -> bool,
) -> bool {
    let subject = outer.within(part, names);
    let (mut innermost, mut left) = (true, false);
    for (field, value) in part.entries_mut() {
        if LISTS.contains(&field.name)
            && let Value::List(Some(items)) = value
            && !items.is_empty()
        {
            innermost = false;
            items.retain_mut(|item| prune(item, &subject, names, keep));
            left |= !items.is_empty();
        }
    }
    match innermost {
        true => keep(&subject, part),
        false => left,
    }
}

/// Does a message with these fields say this anywhere, in whatever version?
pub fn mentions(fields: &[Field], name: &str) -> bool {
    fields.iter().any(|field| match &field.kind {
        _ if field.name == name => true,
        Kind::List(inner) | Kind::Bare(inner) if LISTS.contains(&field.name) => {
            mentions(inner, name)
        }
        _ => false,
    })
}

/// The ids in a message whose names are not known.
pub fn unnamed(body: &Struct, names: &Names) -> bool {
    let mut unnamed = false;
    visit(body, names, &mut |subject, _| {
        unnamed |= subject.topic_id.is_some() && subject.topic.is_none();
    });
    unnamed
}
