//! A member of a consumer group, by the classic protocol: join, share the partitions out if it falls to us, sync, commit, leave.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::client::{ANY, Client, Failure};
use crate::codec::Struct;
use crate::codec::schema::FIND_COORDINATOR;

const OFFSET_COMMIT: i16 = 8;
const OFFSET_FETCH: i16 = 9;
const JOIN_GROUP: i16 = 11;
const HEARTBEAT: i16 = 12;
const LEAVE_GROUP: i16 = 13;
const SYNC_GROUP: i16 = 14;

/// When a member that has gone silent is given up: the least that brokers allow (`group.min.session.timeout.ms`), so that a step that
/// was cut off does not hold its partitions for long.
const SESSION_MS: i64 = 6000;
/// How long the others may take to join again.
const REBALANCE_MS: i64 = 10_000;
/// The pause before asking again for a coordinator that is not there yet.
const PAUSE: Duration = Duration::from_millis(200);

/// What a broker says while a group or its coordinator comes to be: COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE,
/// NOT_COORDINATOR.
const COMING: [i64; 3] = [14, 15, 16];
const REBALANCE_IN_PROGRESS: i64 = 27;
const MEMBER_ID_REQUIRED: i64 = 79;

/// A member of a group.
pub struct Member {
    group: String,
    topic: String,
    coordinator: i64,
    generation: i64,
    id: String,
    assigned: Vec<i64>,
    committed: HashMap<i64, i64>,
}

impl Member {
    /// Joins, and learns which partitions it has and how far the group has come in them.
    pub async fn join(client: &mut Client, group: &str, topic: &str) -> Result<Member, Failure> {
        let mut member = Member {
            group: group.to_owned(),
            topic: topic.to_owned(),
            coordinator: ANY,
            generation: -1,
            id: String::new(),
            assigned: vec![],
            committed: HashMap::new(),
        };
        // The topic decides how many partitions there are to share out.
        client.partitions(topic, false).await?;
        loop {
            match member.try_join(client).await {
                Err(Failure::Said(code, _)) if COMING.contains(&code) => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(Failure::Said(REBALANCE_IN_PROGRESS, _)) => {}
                Err(failure) => return Err(failure),
                Ok(()) => return Ok(member),
            }
        }
    }

    async fn try_join(&mut self, client: &mut Client) -> Result<(), Failure> {
        self.coordinator = self.find(client).await?;
        let joined = match self.join_once(client).await {
            Err(Failure::Said(MEMBER_ID_REQUIRED, id)) => {
                self.id = id;
                self.join_once(client).await?
            }
            joined => joined?,
        };
        self.generation = joined.int("generation_id").unwrap_or(-1);
        self.id = joined.text("member_id");
        let shares = match joined.text("leader") == self.id {
            true => self.share_out(client, &joined).await?,
            false => vec![],
        };
        self.sync(client, shares).await?;
        self.fetch_committed(client).await
    }

    async fn find(&self, client: &mut Client) -> Result<i64, Failure> {
        // Version 4 asks for many at once; one is enough.
        let (api, version) = client.choose(ANY, FIND_COORDINATOR, 0, 3).await?;
        let body = Struct::new(&api.request, version).with("key", &*self.group);
        let reply = client.ask(ANY, api, version, body).await?;
        Failure::check(&reply)?;
        Ok(client.note(&reply).await)
    }

    async fn join_once(&self, client: &mut Client) -> Result<Struct, Failure> {
        let (api, version) = client.choose(self.coordinator, JOIN_GROUP, 0, 5).await?;
        let mut subscription = BytesMut::new();
        // ConsumerProtocolSubscription version 0: the topics, and no user data.
        subscription.put_i16(0);
        subscription.put_i32(1);
        put_text(&mut subscription, &self.topic);
        subscription.put_i32(-1);
        let body = Struct::new(&api.request, version)
            .with("group_id", &*self.group)
            .with("session_timeout_ms", SESSION_MS)
            .with("rebalance_timeout_ms", REBALANCE_MS)
            .with("member_id", &*self.id)
            .with("protocol_type", "consumer")
            .with_item("protocols", version, |p| {
                p.with("name", "range")
                    .with("metadata", Some(subscription.freeze()))
            });
        let reply = client.ask(self.coordinator, api, version, body).await?;
        match reply.int("error_code") {
            // The id to come back with takes the message's place.
            Some(MEMBER_ID_REQUIRED) => {
                Err(Failure::Said(MEMBER_ID_REQUIRED, reply.text("member_id")))
            }
            _ => Failure::check(&reply).map(|()| reply),
        }
    }

    /// Shares the partitions of every topic out among the members that want it, in ranges, as Kafka's range assignor does.
    async fn share_out(
        &self,
        client: &mut Client,
        joined: &Struct,
    ) -> Result<Vec<(Bytes, Bytes)>, Failure> {
        let mut wanted: BTreeMap<String, Vec<Bytes>> = BTreeMap::new();
        let mut shares: BTreeMap<Bytes, Vec<(String, Vec<i64>)>> = BTreeMap::new();
        for member in joined.list("members") {
            let id = member.bytes("member_id").cloned().unwrap_or_default();
            shares.insert(id.clone(), vec![]);
            let metadata = member.bytes("metadata").cloned().unwrap_or_default();
            for topic in topics_of(metadata).unwrap_or_default() {
                wanted.entry(topic).or_default().push(id.clone());
            }
        }
        for (topic, mut ids) in wanted {
            ids.sort();
            // A topic that others want and that is not there has nothing to share.
            let metadata = client.metadata(Some(&topic)).await?;
            let partitions = metadata
                .list("topics")
                .first()
                .map_or(0, |t| t.list("partitions").len());
            let (each, more) = (partitions / ids.len(), partitions % ids.len());
            let mut next = 0;
            for (i, id) in ids.into_iter().enumerate() {
                let end = next + each + usize::from(i < more);
                let range = (next as i64..end as i64).collect();
                next = end;
                shares.entry(id).or_default().push((topic.clone(), range));
            }
        }
        Ok(shares
            .into_iter()
            .map(|(id, share)| (id, assignment(&share)))
            .collect())
    }

    async fn sync(
        &mut self,
        client: &mut Client,
        shares: Vec<(Bytes, Bytes)>,
    ) -> Result<(), Failure> {
        let (api, version) = client.choose(self.coordinator, SYNC_GROUP, 0, 3).await?;
        let mut body = self.signed(Struct::new(&api.request, version));
        for (id, share) in shares {
            body.push("assignments", version, |a| {
                a.with("member_id", Some(id))
                    .with("assignment", Some(share))
            });
        }
        let reply = client.ask(self.coordinator, api, version, body).await?;
        Failure::check(&reply)?;
        let assignment = reply.bytes("assignment").cloned().unwrap_or_default();
        let assigned = partitions_of(assignment, &self.topic);
        self.assigned = assigned.ok_or(Failure::Malformed("an assignment that ends early"))?;
        Ok(())
    }

    /// A request's body with the group, the member and the generation in it.
    fn signed(&self, body: Struct) -> Struct {
        let mut body = body
            .with("group_id", &*self.group)
            .with("member_id", &*self.id);
        for name in ["generation_id", "generation_id_or_member_epoch"] {
            body.set(name, self.generation);
        }
        body
    }

    async fn fetch_committed(&mut self, client: &mut Client) -> Result<(), Failure> {
        let (api, version) = client.choose(self.coordinator, OFFSET_FETCH, 1, 7).await?;
        let mut body = Struct::new(&api.request, version).with("group_id", &*self.group);
        body.push("topics", version, |mut t| {
            t.set("topic", &*self.topic);
            for partition in &self.assigned {
                t.push("partitions", version, |p| p.with("partition", *partition));
            }
            t
        });
        let reply = client.ask(self.coordinator, api, version, body).await?;
        Failure::check(&reply)?;
        for part in reply
            .list("topics")
            .iter()
            .flat_map(|t| t.list("partitions"))
        {
            Failure::check(part)?;
            let (number, offset) = (part.int("partition"), part.int("committed_offset"));
            if let (Some(number), Some(offset @ 0..)) = (number, offset) {
                self.committed.insert(number, offset);
            }
        }
        Ok(())
    }

    /// Has it been given this partition?
    pub fn has(&self, partition: i64) -> bool {
        self.assigned.contains(&partition)
    }

    /// Where the group has come to in this partition; `None` if it has committed nothing.
    pub fn committed(&self, partition: i64) -> Option<i64> {
        self.committed.get(&partition).copied()
    }

    /// Says that it is still there. A rebalance is left to the others: this member is about to leave.
    pub async fn heartbeat(&mut self, client: &mut Client) -> Result<(), Failure> {
        let (api, version) = client.choose(self.coordinator, HEARTBEAT, 0, 3).await?;
        let body = self.signed(Struct::new(&api.request, version));
        let reply = client.ask(self.coordinator, api, version, body).await?;
        match Failure::check(&reply) {
            Err(Failure::Said(REBALANCE_IN_PROGRESS, _)) => Ok(()),
            other => other,
        }
    }

    /// Commits how far it has come, if that is to count, and leaves, so that the others need not wait.
    pub async fn leave(
        self,
        client: &mut Client,
        next: &[(i64, i64)],
        commit: bool,
    ) -> Result<(), Failure> {
        let committed = match commit {
            true => self.commit(client, next).await,
            false => Ok(()),
        };
        let (api, version) = client.choose(self.coordinator, LEAVE_GROUP, 0, 2).await?;
        let body = self.signed(Struct::new(&api.request, version));
        let left = client.ask(self.coordinator, api, version, body).await;
        committed?;
        Failure::check(&left?)
    }

    async fn commit(&self, client: &mut Client, next: &[(i64, i64)]) -> Result<(), Failure> {
        if next.is_empty() {
            return Ok(());
        }
        let (api, version) = client.choose(self.coordinator, OFFSET_COMMIT, 1, 7).await?;
        let mut body = self.signed(Struct::new(&api.request, version));
        body.push("topics", version, |mut t| {
            t.set("topic", &*self.topic);
            for (partition, offset) in next {
                t.push("partitions", version, |p| {
                    p.with("partition", *partition)
                        .with("committed_offset", *offset)
                        .with("committed_metadata", "")
                });
            }
            t
        });
        let reply = client.ask(self.coordinator, api, version, body).await?;
        for part in reply
            .list("topics")
            .iter()
            .flat_map(|t| t.list("partitions"))
        {
            Failure::check(part)?;
        }
        Ok(())
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_i16(text.len() as i16);
    out.put_slice(text.as_bytes());
}

fn text(from: &mut Bytes) -> Option<String> {
    let length = (from.len() >= 2).then(|| from.get_i16())?;
    let length = usize::try_from(length).ok()?;
    let bytes = (length <= from.len()).then(|| from.split_to(length))?;
    String::from_utf8(bytes.to_vec()).ok()
}

fn number(from: &mut Bytes) -> Option<i32> {
    (from.len() >= 4).then(|| from.get_i32())
}

/// The topics of a ConsumerProtocolSubscription, in whatever version: they come first.
fn topics_of(mut subscription: Bytes) -> Option<Vec<String>> {
    let _version = (subscription.len() >= 2).then(|| subscription.get_i16())?;
    let count = number(&mut subscription)?;
    (0..count).map(|_| text(&mut subscription)).collect()
}

/// A ConsumerProtocolAssignment, version 0, without user data.
fn assignment(share: &[(String, Vec<i64>)]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(0);
    out.put_i32(share.len() as i32);
    for (topic, partitions) in share {
        put_text(&mut out, topic);
        out.put_i32(partitions.len() as i32);
        for partition in partitions {
            out.put_i32(*partition as i32);
        }
    }
    out.put_i32(-1);
    out.freeze()
}

/// The partitions of one topic in a ConsumerProtocolAssignment; none if it is empty, as that of a member without a share is.
fn partitions_of(mut assignment: Bytes, topic: &str) -> Option<Vec<i64>> {
    if assignment.is_empty() {
        return Some(vec![]);
    }
    let _version = (assignment.len() >= 2).then(|| assignment.get_i16())?;
    let mut found = vec![];
    for _ in 0..number(&mut assignment)? {
        let same = text(&mut assignment)? == topic;
        for _ in 0..number(&mut assignment)? {
            let partition = number(&mut assignment)?;
            if same {
                found.push(partition.into());
            }
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_says_whose_partitions_are_whose() {
        let share = [("a".to_owned(), vec![0, 1]), ("b".to_owned(), vec![7])];
        let bytes = assignment(&share);
        assert_eq!(partitions_of(bytes.clone(), "a"), Some(vec![0, 1]));
        assert_eq!(partitions_of(bytes.clone(), "b"), Some(vec![7]));
        assert_eq!(partitions_of(bytes.clone(), "c"), Some(vec![]));
        // Without user data, the last four bytes.
        for cut in 1..bytes.len() - 4 {
            assert_eq!(partitions_of(bytes.slice(..cut), "a"), None, "{cut}");
        }
    }
}
