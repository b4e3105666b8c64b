//! The requests of consumer groups.

use std::time::Duration;

use bytes::Bytes;
use faultbox_kafka::codec::{Request, Struct};
use std::time::Instant;

use super::groups::{Group, Join, Joined, State, code};
use super::server::{NODE, Server};

fn millis(body: &Struct, name: &str) -> Option<Duration> {
    let ms = u64::try_from(body.int(name)?).ok()?;
    Some(Duration::from_millis(ms))
}

/// An answer that says nothing but an error.
fn refused(request: &Request, code: i16) -> Struct {
    Struct::new(&request.api.response, request.version).with("error_code", i64::from(code))
}

fn set_code(part: &mut Struct, outcome: Result<(), i16>) {
    part.set("error_code", i64::from(outcome.err().unwrap_or(0)));
}

impl Server {
    fn with_group<R>(&self, name: &str, work: impl FnOnce(&mut Group) -> R) -> R {
        work(self.state().groups.entry(name.to_owned()).or_default())
    }

    pub(super) fn coordinator(&self, request: &Request, body: &mut Struct) {
        let (host, port) = self.host();
        let fill = |part: &mut Struct| {
            part.set("node_id", NODE);
            part.set("host", host.as_str());
            part.set("port", port);
        };
        if request.version < 4 {
            fill(body);
        }
        for part in body.list_mut("coordinators").into_iter().flatten() {
            fill(part);
        }
    }

    pub(super) async fn join(&self, request: &Request) -> Struct {
        let body = &request.body;
        let name = body.text("group_id");
        if name.is_empty() {
            return refused(request, code::INVALID_GROUP_ID);
        }
        let session = millis(body, "session_timeout_ms").unwrap_or(Duration::from_secs(10));
        let client_id = request
            .client_id
            .as_ref()
            .map(|id| String::from_utf8_lossy(id).into_owned())
            .unwrap_or_default();
        let fresh = format!("{client_id}-{:08}", self.fresh());
        let join = Join {
            member: body.text("member_id"),
            instance: body.bytes("group_instance_id").cloned(),
            client_id,
            kind: body.text("protocol_type"),
            protocols: body
                .list("protocols")
                .iter()
                .map(|p| {
                    let metadata = p.bytes("metadata").cloned().unwrap_or_default();
                    (p.text("name"), metadata)
                })
                .collect(),
            session,
            // Before version 1 the session's time-out was for both.
            rebalance: millis(body, "rebalance_timeout_ms").unwrap_or(session),
            twice: request.version >= 4,
        };
        let joined = self.with_group(&name, |group| group.join(join, &fresh, Instant::now()));
        self.changed.notify_waiters();
        let (member, before) = match joined {
            Err(code) => return refused(request, code),
            Ok(Joined::Again(id)) => {
                return refused(request, code::MEMBER_ID_REQUIRED).with("member_id", id.as_str());
            }
            Ok(Joined::Now(id)) => {
                return self.with_group(&name, |group| generation(request, group, &id));
            }
            Ok(Joined::Wait(id, before)) => (id, before),
        };
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let now = Instant::now();
            let (answer, next, completed) = self.with_group(&name, |group| {
                let completed = group.complete(now);
                let answer = match group.members.contains_key(&member) {
                    // It was replaced, or was too late.
                    false => Some(refused(request, code::UNKNOWN_MEMBER_ID)),
                    true if group.generation > before
                        && !matches!(group.state, State::Preparing { .. }) =>
                    {
                        group.answered(&member);
                        Some(generation(request, group, &member))
                    }
                    true => None,
                };
                (answer, group.next_look(now), completed)
            });
            if completed {
                self.changed.notify_waiters();
            }
            if let Some(answer) = answer {
                return answer;
            }
            let _ = tokio::time::timeout_at(next.into(), changed).await;
        }
    }

    pub(super) async fn sync(&self, request: &Request) -> Struct {
        let body = &request.body;
        let (name, member) = (body.text("group_id"), body.text("member_id"));
        let wanted = body.int("generation_id").unwrap_or(-1);
        let mut shares: Option<Vec<(String, Bytes)>> = Some(
            body.list("assignments")
                .iter()
                .map(|a| {
                    let share = a.bytes("assignment").cloned().unwrap_or_default();
                    (a.text("member_id"), share)
                })
                .collect(),
        );
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let now = Instant::now();
            let mut shared = false;
            let (outcome, next) = self.with_group(&name, |group| {
                let outcome = match group.check(&member, wanted, now) {
                    Err(code) => Some(Err(code)),
                    Ok(()) => {
                        if group.state == State::Completing
                            && group.leader == member
                            && let Some(shares) = shares.take()
                        {
                            group.assign(shares);
                            shared = true;
                        }
                        match group.state {
                            State::Stable => Some(Ok(group
                                .members
                                .get(&member)
                                .map(|m| m.assignment.clone())
                                .unwrap_or_default())),
                            State::Completing => None,
                            _ => Some(Err(code::REBALANCE_IN_PROGRESS)),
                        }
                    }
                };
                group.wait(&member, outcome.is_none(), now);
                (outcome, group.next_look(now))
            });
            if shared {
                self.changed.notify_waiters();
            }
            match outcome {
                Some(Ok(share)) => {
                    let (kind, protocol) =
                        self.with_group(&name, |g| (g.kind.clone(), g.protocol.clone()));
                    return Struct::new(&request.api.response, request.version)
                        .with("protocol_type", kind.as_str())
                        .with("protocol_name", protocol.as_str())
                        .with("assignment", Some(share));
                }
                Some(Err(code)) => return refused(request, code),
                None => {
                    let _ = tokio::time::timeout_at(next.into(), changed).await;
                }
            }
        }
    }

    pub(super) fn heartbeat(&self, request: &Request, body: &mut Struct) {
        let asked = &request.body;
        let generation = asked.int("generation_id").unwrap_or(-1);
        let outcome = self.with_group(&asked.text("group_id"), |group| {
            group.beat(&asked.text("member_id"), generation, Instant::now())
        });
        set_code(body, outcome);
    }

    pub(super) fn leave(&self, request: &Request, body: &mut Struct) {
        let asked = &request.body;
        let name = asked.text("group_id");
        let now = Instant::now();
        if request.version < 3 {
            let outcome = self.with_group(&name, |group| {
                group.leave(&asked.text("member_id"), None, now)
            });
            set_code(body, outcome);
        }
        for member in asked.list("members") {
            let instance = member.bytes("group_instance_id");
            let id = member.text("member_id");
            let outcome = self.with_group(&name, |group| group.leave(&id, instance, now));
            body.push("members", request.version, |mut part| {
                part.set("member_id", id.as_str());
                part.set("group_instance_id", instance.cloned());
                set_code(&mut part, outcome);
                part
            });
        }
        self.changed.notify_waiters();
    }

    pub(super) fn commit(&self, request: &Request, body: &mut Struct) {
        let asked = &request.body;
        let member = asked.text("member_id");
        let generation = asked.int("generation_id_or_member_epoch").unwrap_or(-1);
        let outcome = self.with_group(&asked.text("group_id"), |group| {
            // Who is no member commits where nobody is one: a consumer with partitions of its own choice.
            let allowed = match member.is_empty() && generation < 0 {
                true if group.members.is_empty() => Ok(()),
                true => Err(code::UNKNOWN_MEMBER_ID),
                false => group.check(&member, generation, Instant::now()),
            };
            allowed.map(|()| {
                for topic in asked.list("topics") {
                    for part in topic.list("partitions") {
                        let place = (topic.text("topic"), part.int("partition").unwrap_or(-1));
                        let offset = part.int("committed_offset").unwrap_or(-1);
                        let metadata = part.bytes("committed_metadata").cloned();
                        group.offsets.insert(place, (offset, metadata));
                    }
                }
            })
        });
        for topic in body.list_mut("topics").into_iter().flatten() {
            for part in topic.list_mut("partitions").into_iter().flatten() {
                set_code(part, outcome);
            }
        }
    }

    pub(super) fn committed(&self, request: &Request, body: &mut Struct) {
        let version = request.version;
        if version < 8 {
            let name = request.body.text("group_id");
            let topics = asked_offsets(&request.body);
            *body = Struct::new(&request.api.response, version);
            self.with_group(&name, |group| offsets(body, version, group, topics));
            return;
        }
        *body = Struct::new(&request.api.response, version);
        for asked in request.body.list("groups") {
            let name = asked.text("group_id");
            body.push("groups", version, |mut part| {
                part.set("group_id", name.as_str());
                let topics = asked_offsets(asked);
                self.with_group(&name, |group| offsets(&mut part, version, group, topics));
                part
            });
        }
    }

    pub(super) fn describe_groups(&self, request: &Request, body: &mut Struct) {
        *body = Struct::new(&request.api.response, request.version);
        let version = request.version;
        for asked in request.body.list("groups") {
            let name = asked.text("group_id");
            let state = self.state();
            let group = state.groups.get(&name);
            body.push("groups", version, |mut part| {
                part.set("group_id", name.as_str());
                part.set("group_state", group.map_or("Dead", Group::state_name));
                let Some(group) = group else { return part };
                part.set("protocol_type", group.kind.as_str());
                part.set("protocol_data", group.protocol.as_str());
                for (id, member) in &group.members {
                    part.push("members", version, |m| {
                        let metadata = metadata(member, &group.protocol);
                        m.with("member_id", id.as_str())
                            .with("group_instance_id", member.instance.clone())
                            .with("client_id", member.client_id.as_str())
                            .with("client_host", "/127.0.0.1")
                            .with("member_metadata", Some(metadata))
                            .with("member_assignment", Some(member.assignment.clone()))
                    });
                }
                part
            });
        }
    }

    pub(super) fn list_groups(&self, request: &Request, body: &mut Struct) {
        *body = Struct::new(&request.api.response, request.version);
        for (name, group) in &self.state().groups {
            body.push("groups", request.version, |part| {
                part.with("group_id", name.as_str())
                    .with("protocol_type", group.kind.as_str())
                    .with("group_state", group.state_name())
            });
        }
    }

    pub(super) fn delete_groups(&self, body: &mut Struct) {
        let mut state = self.state();
        for part in body.list_mut("groups").into_iter().flatten() {
            let name = part.text("group_id");
            let outcome = match state.groups.get(&name) {
                None => Err(code::GROUP_ID_NOT_FOUND),
                Some(group) if !group.members.is_empty() => Err(code::NON_EMPTY_GROUP),
                Some(_) => {
                    state.groups.remove(&name);
                    Ok(())
                }
            };
            set_code(part, outcome);
        }
    }
}

fn metadata(member: &super::groups::Member, protocol: &str) -> Bytes {
    member
        .protocols
        .iter()
        .find(|(name, _)| name == protocol)
        .map(|(_, metadata)| metadata.clone())
        .unwrap_or_default()
}

/// The answer to a join: the generation, and for the leader who is in it.
fn generation(request: &Request, group: &Group, member: &str) -> Struct {
    let mut body = Struct::new(&request.api.response, request.version)
        .with("generation_id", group.generation)
        .with("protocol_type", group.kind.as_str())
        .with("protocol_name", group.protocol.as_str())
        .with("leader", group.leader.as_str())
        .with("member_id", member);
    if group.leader == member {
        for (id, member) in &group.members {
            body.push("members", request.version, |m| {
                m.with("member_id", id.as_str())
                    .with("group_instance_id", member.instance.clone())
                    .with("metadata", Some(metadata(member, &group.protocol)))
            });
        }
    }
    body
}

/// The partitions that are asked for; `None`: all.
fn asked_offsets(asked: &Struct) -> Option<Vec<(String, i64)>> {
    use faultbox_kafka::codec::Value;
    match asked.get("topics") {
        Some(Value::List(Some(topics))) => Some(
            topics
                .iter()
                .flat_map(|topic| {
                    let name = topic.text("topic");
                    topic
                        .list("partitions")
                        .iter()
                        .map(move |p| (name.clone(), p.int("partition").unwrap_or(-1)))
                })
                .collect(),
        ),
        _ => None,
    }
}

fn offsets(body: &mut Struct, version: i16, group: &Group, asked: Option<Vec<(String, i64)>>) {
    let mut places = asked.unwrap_or_else(|| group.offsets.keys().cloned().collect());
    places.sort();
    let mut topics: Vec<(String, Vec<i64>)> = vec![];
    for (topic, partition) in places {
        match topics.last_mut() {
            Some((last, parts)) if *last == topic => parts.push(partition),
            _ => topics.push((topic, vec![partition])),
        }
    }
    for (topic, parts) in topics {
        body.push("topics", version, |mut item| {
            item.set("topic", topic.as_str());
            for partition in parts {
                let known = group.offsets.get(&(topic.clone(), partition));
                item.push("partitions", version, |part| {
                    let (offset, metadata) = known.cloned().unwrap_or((-1, None));
                    part.with("partition", partition)
                        .with("committed_offset", offset)
                        .with("metadata", Some(metadata.unwrap_or_default()))
                });
            }
            item
        });
    }
}
