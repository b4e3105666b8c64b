//! Answers made from their requests, and put into the broker's.

use bytes::Bytes;

use crate::codec::schema::{Field, Kind};
use crate::codec::{Request, Struct, Value};

/// What an answer repeats of its request, so that the client knows what it is about.
const REPEATED: &[&str] = &[
    "topic",
    "topic_id",
    "partition",
    "group_id",
    "transactional_id",
    "key",
    "member_id",
    "resource_type",
    "resource_name",
    "feature",
    "entity",
    "entity_type",
    "entity_name",
];

/// An error in every slot for it that belongs to what the request asks: in the partition's where there are partitions, else in
/// the topic's or the group's, else the response's own. `None` if this version has no slot.
pub fn error(request: &Request, code: i16, message: Option<&str>) -> Option<Struct> {
    let mut body = Struct::new(&request.api.response, request.version);
    let slot = Slot {
        version: request.version,
        code: code.into(),
        message,
        whole_group: is_of_group(request, code),
    };
    let placed = slot.fill(&request.body, &mut body) || slot.fill_alone(&mut body);
    placed.then_some(body)
}

/// The same shape with no error in it.
pub fn success(request: &Request) -> Struct {
    error(request, 0, None).unwrap_or_else(|| Struct::new(&request.api.response, request.version))
}

/// OffsetFetch says in a partition's slot only what is wrong with that partition; clients raise what they do not expect there.
pub fn is_of_group(request: &Request, code: i16) -> bool {
    // UNKNOWN_TOPIC_OR_PARTITION, TOPIC_AUTHORIZATION_FAILED, UNSTABLE_OFFSET_COMMIT.
    request.api.name == "offset_fetch" && request.version >= 2 && ![0, 3, 29, 88].contains(&code)
}

struct Slot<'a> {
    version: i16,
    code: i64,
    message: Option<&'a str>,
    /// Does the error concern a group as a whole?
    whole_group: bool,
}

impl Slot<'_> {
    /// Fills `into`, the answer to what `asked` asks; was there a slot?
    fn fill(&self, asked: &Struct, into: &mut Struct) -> bool {
        repeat(asked, into);
        let mut placed = false;
        let lists: Vec<&'static str> = into
            .entries()
            .filter(|(field, _)| answers(field) && !(self.whole_group && field.name == "topics"))
            .map(|(field, _)| field.name)
            .collect();
        for list in lists {
            for item in asked.list(list) {
                into.push(list, self.version, |mut answer| {
                    placed |= self.fill(item, &mut answer);
                    answer
                });
            }
        }
        if !placed && self.put(into) {
            placed = true;
            // A fetch brings no records then, which is not the same as null.
            into.set("records", Some(Bytes::new()));
        }
        placed
    }
}

impl Slot<'_> {
    /// The error itself, if there is a place for it, and what is said of it.
    fn put(&self, into: &mut Struct) -> bool {
        let placed = into.set("error_code", self.code);
        if let Some(message) = self.message.filter(|_| placed) {
            into.set("error_message", message);
        }
        placed
    }

    /// Fills an answer that says nothing of what was asked, where a response has no other place for an error.
    fn fill_alone(&self, into: &mut Struct) -> bool {
        let lists = into
            .entries()
            .filter(|(field, _)| answers(field) && field.name == "results" && !self.whole_group);
        let Some(list) = lists.map(|(field, _)| field.name).next() else {
            return false;
        };
        let mut placed = false;
        into.push(list, self.version, |mut answer| {
            placed = self.put(&mut answer);
            answer
        });
        placed
    }
}

/// Is this a list of answers, one for each thing asked? The members of a group are not: what goes wrong concerns all of it.
fn answers(field: &Field) -> bool {
    match &field.kind {
        Kind::List(inner) => {
            field.name != "members" && inner.iter().any(|f| f.name == "error_code" || answers(f))
        }
        _ => false,
    }
}

fn repeat(asked: &Struct, into: &mut Struct) {
    for name in REPEATED {
        // A client may ask by id or by name: what it left out is not known here either.
        let Some(value) = asked.get(name) else {
            continue;
        };
        if let Some(slot) = into.get_mut(name) {
            match (value, slot) {
                (Value::List(Some(items)), Value::List(Some(into_items))) => {
                    // Both sides have the same plain fields here.
                    into_items.clone_from(items);
                }
                (value, slot)
                    if std::mem::discriminant(value) == std::mem::discriminant(&*slot) =>
                {
                    *slot = value.clone();
                }
                _ => {}
            }
        }
    }
}

/// Puts one answer into another: an item that is there already takes the other's items, the rest is appended.
pub fn merge(into: &mut Struct, mut other: Struct) {
    for (field, value) in other.entries_mut() {
        let Value::List(Some(items)) = value else {
            continue;
        };
        let items = std::mem::take(items);
        let Some(Value::List(there)) = into.get_mut(field.name) else {
            continue;
        };
        let there = there.get_or_insert_default();
        for item in items {
            match there.iter_mut().find(|found| is_same(found, &item)) {
                Some(found) => merge(found, item),
                None => there.push(item),
            }
        }
    }
}

/// Are both about the same thing?
fn is_same(one: &Struct, other: &Struct) -> bool {
    let mut compared = false;
    for name in REPEATED {
        if let (Some(one), Some(other)) = (one.get(name), other.get(name)) {
            if one != other {
                return false;
            }
            compared = true;
        }
    }
    compared
}

/// The bytes of a topic's name or id, whichever the message says.
pub fn identity(topic: &Struct) -> Bytes {
    match (topic.uuid("topic_id"), topic.bytes("topic")) {
        (_, Some(name)) if !name.is_empty() => name.clone(),
        (Some(id), _) => Bytes::copy_from_slice(&id),
        _ => Bytes::new(),
    }
}
