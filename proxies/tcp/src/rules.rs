//! What can be matched on a TCP connection and what can be done to it.

use std::any::Any;
use std::sync::Arc;

use faultbox_contract::doc::{Class, common};
use faultbox_contract::{
    ActionDoc, ArgError, ArmedRule, CheckedRule, Dialect, Glob, Kind, ParamDoc, ProtocolDoc,
};

use crate::steps;

/// How many of the client's first bytes are remembered for `prefix=`.
pub const PREFIX_WINDOW: usize = 4096;

/// TCP's face.
pub static DOC: ProtocolDoc = ProtocolDoc {
    name: "tcp",
    aliases: &[],
    summary: "any byte stream: server-first or client-first, half-close, idle for ever",
    matchers: &[
        ParamDoc::opt(
            "prefix",
            Kind::Glob(Dialect::Text),
            "how the client's first bytes on the connection begin (of at most 4 KiB)",
        ),
        ParamDoc::opt(
            "direction",
            Kind::Choice(&["up", "down", "both"]),
            "client to server, server to client, or both; default: up for delay, down for throttle, truncate and corrupt, both for reset and drop",
        ),
    ],
    actions: &[
        common::DELAY,
        ActionDoc {
            name: "drop",
            class: Class::Terminal,
            matched: true,
            params: &[],
            summary: "a black hole: nothing arrives, and nobody is told; what was sent arrives when the rule is lifted",
        },
        ActionDoc {
            name: "reset",
            class: Class::Terminal,
            matched: true,
            params: &[],
            summary: "the connection is reset (RST) when bytes next flow",
        },
        ActionDoc {
            name: "truncate",
            class: Class::Terminal,
            matched: true,
            params: &[ParamDoc::req(
                "bytes",
                Kind::Int(0, i64::MAX),
                "how many bytes still arrive, counted from where the rule fires",
            )],
            summary: "the stream is cut after that many bytes and the connection closed",
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
            summary: "the stream trickles at this rate until the rule is lifted",
        },
        ActionDoc {
            name: "corrupt",
            class: Class::Modifier,
            matched: true,
            params: &[ParamDoc::opt(
                "offset",
                Kind::Int(0, i64::MAX),
                "which byte is inverted, counted from where the rule fires (default 0)",
            )],
            summary: "one byte of the stream is inverted",
        },
    ],
    steps: steps::DOCS,
};

/// One way through the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Client to server.
    Up,
    /// Server to client.
    Down,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Served by the engine.
    Delay,
    /// Served by the engine.
    Throttle,
    /// Hold everything back until the rule is lifted.
    Drop,
    /// Reset the connection.
    Reset,
    /// Cut after so many bytes.
    Truncate(u64),
    /// Invert the byte at this offset.
    Corrupt(u64),
}

/// A rule in the shape in which the proxy asks it.
#[derive(Debug)]
pub struct TcpRule {
    prefix: Option<Glob>,
    only: Option<Direction>,
    /// What happens when it fires.
    pub action: Action,
}

impl TcpRule {
    /// The compiled form of an armed rule of this protocol.
    pub fn of(rule: &ArmedRule) -> Option<&TcpRule> {
        rule.compiled.downcast_ref()
    }

    /// Does it select bytes in this direction, on a connection whose client began with `prefix`?
    pub fn matches(&self, direction: Direction, prefix: &[u8]) -> bool {
        self.only.is_none_or(|only| only == direction)
            && self
                .prefix
                .as_ref()
                .is_none_or(|glob| glob.matches_bytes(prefix))
    }
}

/// Turns a checked rule into a [`TcpRule`].
///
/// # Errors
/// A prefix that is not a usable glob.
pub fn compile(rule: &CheckedRule) -> Result<Arc<dyn Any + Send + Sync>, ArgError> {
    let count = |name| rule.int_of(name).unwrap_or(0).max(0) as u64;
    let (action, usual) = match rule.action.name {
        "throttle" => (Action::Throttle, Some(Direction::Down)),
        "drop" => (Action::Drop, None),
        "reset" => (Action::Reset, None),
        "truncate" => (Action::Truncate(count("bytes")), Some(Direction::Down)),
        "corrupt" => (Action::Corrupt(count("offset")), Some(Direction::Down)),
        _ => (Action::Delay, Some(Direction::Up)),
    };
    Ok(Arc::new(TcpRule {
        prefix: rule
            .text_of("prefix")
            .map(|p| Glob::new(&format!("{p}*"), Dialect::Text))
            .transpose()
            .map_err(|e| ArgError::new("prefix", e))?,
        only: match rule.text_of("direction") {
            Some("up") => Some(Direction::Up),
            Some("down") => Some(Direction::Down),
            Some(_) => None,
            None => usual,
        },
        action,
    }))
}
