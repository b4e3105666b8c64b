//! Queries in datagrams.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use faultbox_contract::rule::Fired;
use faultbox_contract::{Arg, ArmedRule};
use faultbox_engine::{Datagrams, Origin, Outbox, Way};
use serde_json::{Value, json};

use crate::answer::{self, Carrier, Reply};
use crate::codec::{self, Query};
use crate::records;
use crate::rules::{Action, DnsRule};

type Flow = faultbox_engine::Flow<Memory>;

/// The proxy has no state of its own; flows have.
pub struct Proxy;

/// What is remembered of a client.
#[derive(Default)]
pub struct Memory {
    /// Something that is not DNS has been recorded.
    degraded: AtomicBool,
}

/// What becomes of a query when its delays are over.
pub enum Fate {
    /// It goes on.
    Pass,
    /// Nobody hears of it.
    Lost,
    /// The client gets this.
    Answered(Reply),
    /// The client gets a reply that is cut.
    Cut,
}

impl Fate {
    /// What the rules say.
    pub fn of(fired: &Fired) -> Fate {
        match fired
            .terminal
            .as_deref()
            .and_then(DnsRule::of)
            .map(|r| &r.action)
        {
            None | Some(Action::Delay) => Fate::Pass,
            Some(Action::Drop) => Fate::Lost,
            Some(Action::Reply(reply)) => Fate::Answered(reply.clone()),
            Some(Action::Truncate) => Fate::Cut,
        }
    }

    /// The message for the client, if it gets one from us.
    pub fn answer(&self, query: &Query, carrier: Carrier) -> Option<Vec<u8>> {
        match self {
            Fate::Answered(reply) => Some(answer::reply(query, reply, carrier)),
            Fate::Cut => Some(answer::truncated(query)),
            Fate::Pass | Fate::Lost => None,
        }
    }
}

/// Asks the rules about one query.
pub fn evaluate(origin: &Origin, query: &Query, carrier: Carrier) -> Fired {
    origin.host.rules.evaluate_with(
        |armed| {
            DnsRule::of(armed).is_some_and(|rule| rule.matches(query, carrier))
                && origin.admits(armed)
        },
        &*origin.host.sink,
        || {
            let transport = match carrier {
                Carrier::Datagram => "udp",
                Carrier::Stream => "tcp",
            };
            json!({"name": query.name, "type": records::type_name(query.kind), "transport": transport})
        },
        outcome,
    )
}

fn outcome(armed: &ArmedRule) -> Value {
    match DnsRule::of(armed).map(|r| &r.action) {
        Some(Action::Reply(reply)) => json!({"code": answer::code_name(reply.code)}),
        _ => Value::Null,
    }
}

impl Datagrams for Proxy {
    type Memory = Memory;

    fn looks(&self, flow: &Flow, way: Way) -> bool {
        way == Way::Up && !flow.origin.host.rules.is_empty()
    }

    fn handle(
        &self,
        flow: &Arc<Flow>,
        _way: Way,
        datagram: &[u8],
        read: Instant,
        out: &mut Outbox,
    ) {
        let query = match codec::query(datagram) {
            Ok(Some(query)) => query,
            Ok(None) => return out.pass(),
            Err(reason) => {
                if !flow.memory.degraded.swap(true, Ordering::Relaxed) {
                    flow.origin.degraded("client", reason);
                }
                return out.pass();
            }
        };
        let fired = evaluate(&flow.origin, &query, Carrier::Datagram);
        let fate = Fate::of(&fired);
        let delays: Vec<_> = fired
            .delays
            .iter()
            .filter_map(|armed| {
                let how_long = armed.rule.get("delay").and_then(Arg::as_duration)?;
                Some((armed.clone(), how_long))
            })
            .collect();
        if delays.is_empty() {
            match fate.answer(&query, Carrier::Datagram) {
                Some(answer) => flow.send(Way::Down, answer),
                None if matches!(fate, Fate::Pass) => out.pass(),
                None => {}
            }
            return;
        }
        let message = datagram.to_vec();
        flow.hold(delays, read, message.len(), move |flow| {
            match fate.answer(&query, Carrier::Datagram) {
                Some(answer) => flow.send(Way::Down, answer),
                None if matches!(fate, Fate::Pass) => flow.send(Way::Up, message),
                None => {}
            }
        });
    }
}
