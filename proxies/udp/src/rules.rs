//! What can be matched on a datagram and what can be done to it.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use faultbox_contract::doc::{Class, common};
use faultbox_contract::{
    ActionDoc, Arg, ArgError, ArmedRule, CheckedRule, Dialect, Glob, Kind, ParamDoc, ProtocolDoc,
};
use faultbox_engine::Way;

use crate::steps;

/// The most copies that `duplicate` makes, and the most datagrams that `reorder` lets overtake: past these, it is no network that
/// anybody has seen.
const MANY: i64 = 1000;

/// UDP's face.
pub static DOC: ProtocolDoc = ProtocolDoc {
    name: "udp",
    aliases: &[],
    summary: "any datagram protocol: loss, delay, duplicates, reordering",
    matchers: &[
        ParamDoc::opt(
            "prefix",
            Kind::Glob(Dialect::Text),
            "how the datagram begins",
        ),
        ParamDoc::opt(
            "direction",
            Kind::Choice(&["up", "down", "both"]),
            "client to server, server to client, or both; default: down for throttle, truncate and corrupt, up for the others",
        ),
    ],
    actions: &[
        ActionDoc {
            summary: "the datagram is held, then goes on; later ones overtake it",
            ..common::DELAY
        },
        ActionDoc {
            name: "drop",
            class: Class::Terminal,
            matched: true,
            params: &[],
            summary: "the datagram is lost, and nobody is told",
        },
        ActionDoc {
            name: "duplicate",
            class: Class::Modifier,
            matched: true,
            params: &[ParamDoc::opt(
                "copies",
                Kind::Int(1, MANY),
                "how many more times it arrives (default 1)",
            )],
            summary: "the datagram arrives more than once",
        },
        ActionDoc {
            name: "reorder",
            class: Class::Modifier,
            matched: true,
            params: &[
                ParamDoc::opt(
                    "past",
                    Kind::Int(1, MANY),
                    "how many later datagrams of its flow overtake it (default 1)",
                ),
                ParamDoc::opt(
                    "within",
                    Kind::Duration,
                    "the longest it waits for them (default 100ms)",
                ),
            ],
            summary: "the datagram arrives behind later ones, or late if there are none",
        },
        ActionDoc {
            name: "truncate",
            class: Class::Modifier,
            matched: true,
            params: &[ParamDoc::req(
                "bytes",
                Kind::Int(0, i64::MAX),
                "how many of its bytes arrive",
            )],
            summary: "the datagram arrives cut short",
        },
        ActionDoc {
            name: "throttle",
            class: Class::Modifier,
            matched: true,
            params: &[ParamDoc::req(
                "rate",
                Kind::Rate,
                "bytes per second at most, in each direction it applies to",
            )],
            summary: "a slow link for this client until the rule is lifted: datagrams queue, and what 256 KiB of queue cannot hold is lost",
        },
        ActionDoc {
            name: "corrupt",
            class: Class::Modifier,
            matched: true,
            params: &[ParamDoc::opt(
                "offset",
                Kind::Int(0, i64::MAX),
                "which byte is inverted (default 0); a shorter datagram passes intact",
            )],
            summary: "one byte of the datagram is inverted, and its checksum fits",
        },
    ],
    steps: steps::DOCS,
};

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Hold it.
    Delay(Duration),
    /// Lose it.
    Drop,
    /// So many more copies.
    Duplicate(usize),
    /// Behind so many others, or after so long.
    Reorder(usize, Duration),
    /// So many bytes are left.
    Truncate(usize),
    /// So many bytes per second.
    Throttle(u64),
    /// Invert the byte at this offset.
    Corrupt(usize),
}

/// A rule in the shape in which the proxy asks it.
#[derive(Debug)]
pub struct UdpRule {
    prefix: Option<Glob>,
    only: Option<Way>,
    /// What happens when it fires.
    pub action: Action,
}

impl UdpRule {
    /// The compiled form of an armed rule of this protocol.
    pub fn of(rule: &ArmedRule) -> Option<&UdpRule> {
        rule.compiled.downcast_ref()
    }

    /// Does it select this datagram?
    pub fn matches(&self, way: Way, datagram: &[u8]) -> bool {
        self.only.is_none_or(|only| only == way)
            && self
                .prefix
                .as_ref()
                .is_none_or(|glob| glob.matches_bytes(datagram))
    }
}

/// Turns a checked rule into a [`UdpRule`].
///
/// # Errors
/// A prefix that is not a usable glob.
pub fn compile(rule: &CheckedRule) -> Result<Arc<dyn Any + Send + Sync>, ArgError> {
    let count = |name, usual: i64| {
        usize::try_from(rule.int_of(name).unwrap_or(usual).max(0)).unwrap_or(usize::MAX)
    };
    let span = |name, usual| {
        rule.get(name)
            .and_then(Arg::as_duration)
            .unwrap_or(Duration::from_millis(usual))
    };
    let (action, usual) = match rule.action.name {
        "drop" => (Action::Drop, Way::Up),
        "duplicate" => (Action::Duplicate(count("copies", 1)), Way::Up),
        "reorder" => (
            Action::Reorder(count("past", 1), span("within", 100)),
            Way::Up,
        ),
        "truncate" => (Action::Truncate(count("bytes", 0)), Way::Down),
        "throttle" => (Action::Throttle(count("rate", 1).max(1) as u64), Way::Down),
        "corrupt" => (Action::Corrupt(count("offset", 0)), Way::Down),
        _ => (Action::Delay(span("delay", 0)), Way::Up),
    };
    Ok(Arc::new(UdpRule {
        prefix: rule
            .text_of("prefix")
            .map(|p| Glob::new(&format!("{p}*"), Dialect::Text))
            .transpose()
            .map_err(|e| ArgError::new("prefix", e))?,
        only: match rule.text_of("direction") {
            Some("up") => Some(Way::Up),
            Some("down") => Some(Way::Down),
            Some(_) => None,
            None => Some(usual),
        },
        action,
    }))
}
