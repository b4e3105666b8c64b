//! Redis: a keyspace in memory that answers the common commands, and routes that answer instead of it:
//! `"GET user:*": reply(value="x")`, `"SET": reply(error="READONLY …")`.

mod hashes;
mod keys;
mod lists;
mod pubsub;
mod server;
mod sets;
mod sorted;
mod store;
mod strings;

use faultbox_contract::{Arg, ArgError, Kind, ParamDoc, RuleSpec};
use faultbox_redis::commands;
use faultbox_redis::rules::{self, Action, Command, Compiled};
use faultbox_redis::value::Value;
use serde_json::Map;

use crate::script::Script;

pub(crate) use server::Server;

/// The protocol's part of a route.
#[derive(Debug)]
pub struct Redis;

/// What a route sends.
#[derive(Debug)]
pub struct Reply {
    /// `None`: what the keyspace answers.
    pub value: Option<Value>,
}

static KEYWORDS: &[ParamDoc] = &[
    ParamDoc::opt(
        "value",
        Kind::JsonOrBytes,
        "a string or bytes, a number, a bool, None, a list, a dict",
    ),
    ParamDoc::opt(
        "type",
        Kind::Text,
        "the value's RESP type, where the usual one for it will not do; \"simple\" is a status such as OK",
    ),
    ParamDoc::opt(
        "error",
        Kind::Text,
        "an error, e.g. \"READONLY You can't write against a read only replica.\"",
    ),
];

/// A `response` or an `error` rule with these keywords.
fn rule(action: &str, args: Vec<(String, Arg)>) -> Result<Compiled, ArgError> {
    let checked = rules::DOC.check_rule(&RuleSpec {
        action: action.into(),
        args,
    })?;
    rules::compile(&checked)
}

impl Script for Redis {
    // A route selects commands just as a rule does.
    type Pattern = Compiled;
    type Request = Command;
    type Reply = Reply;

    fn name(&self) -> &'static str {
        "redis"
    }

    fn shorthand(&self) -> Option<&'static str> {
        Some("value")
    }

    fn keywords(&self) -> &'static [ParamDoc] {
        KEYWORDS
    }

    fn pattern(&self, text: &str) -> Result<Compiled, ArgError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ArgError::new("", "a route without a command")
                .hint("a route is written \"GET user:*\", or \"GET\" whatever its arguments"));
        }
        let words: Vec<&str> = text.splitn(3, ' ').collect();
        let container = commands::has_subcommands(&words[0].to_ascii_uppercase());
        let (command, rest) = match words.as_slice() {
            [name, sub, rest @ ..] if container => (
                format!("{name} {sub}"),
                // The subcommand is an argument, too.
                rest.first().map(|r| format!("* {r}")),
            ),
            [name, ..] => (
                (*name).to_owned(),
                text.split_once(' ')
                    .map(|(_, rest)| rest.trim_start().to_owned()),
            ),
            [] => (text.to_owned(), None),
        };
        let mut args = vec![("command".to_owned(), Arg::Str(command))];
        if let Some(rest) = rest {
            args.push(("args".to_owned(), Arg::Str(rest)));
        }
        rule("response", args)
    }

    fn reply(&self, args: Vec<(String, Arg)>) -> Result<Reply, ArgError> {
        let error = args.iter().position(|(name, _)| name == "error");
        let compiled = match error {
            None if args.is_empty() => return Ok(Reply { value: None }),
            None => rule("response", args)?,
            Some(_) if args.len() > 1 => {
                return Err(ArgError::new(
                    "error",
                    "a reply is a value or an error, not both",
                ));
            }
            Some(at) => rule("error", vec![("message".to_owned(), args[at].1.clone())])?,
        };
        let value = match &compiled.action {
            Action::Error(error) => error.value(),
            Action::Response(value) => (**value).clone(),
            _ => return Err(ArgError::new("value", "this is no reply")),
        };
        Ok(Reply { value: Some(value) })
    }

    fn selects(&self, pattern: &Compiled, request: &Command) -> bool {
        pattern.matches(request)
    }
}

/// What [`describe`] tells of a call.
pub(crate) const CALL_FIELDS: &[&str] = &["command", "args", "key"];

/// A command as events and the spec's functions see it.
fn describe(command: &Command) -> Map<String, serde_json::Value> {
    let mut map = Map::new();
    map.insert("command".into(), command.name.as_str().into());
    // The arguments without the name, which may be of two words.
    let named = command.name.split(' ').count();
    let args: Vec<serde_json::Value> = command
        .args
        .iter()
        .skip(named)
        .map(|arg| crate::calls::text(arg))
        .collect();
    map.insert("args".into(), args.into());
    let key = command.keys.first().and_then(|at| command.args.get(*at));
    map.insert(
        "key".into(),
        key.map_or(serde_json::Value::Null, |key| crate::calls::text(key)),
    );
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str]) -> Command {
        server::command(words.iter().map(|w| w.as_bytes().to_vec()).collect())
    }

    #[test]
    fn patterns() {
        let selects = |pattern: &str, words: &[&str]| {
            Redis.selects(&Redis.pattern(pattern).unwrap(), &command(words))
        };
        assert!(selects("GET user:*", &["get", "user:1"]));
        assert!(!selects("GET user:*", &["get", "cart:1"]));
        assert!(selects("SET", &["SET", "a", "b"]));
        assert!(selects(
            "CONFIG GET maxmemory",
            &["config", "get", "maxmemory"]
        ));
        assert!(selects("{LPUSH,RPUSH} q *", &["RPUSH", "q", "x"]));
        for bad in ["", "GTE k", "GET [", "CONFIG GTE"] {
            assert!(Redis.pattern(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn replies() {
        let reply = |name: &str, arg| Redis.reply(vec![(name.to_owned(), arg)]).unwrap().value;
        assert_eq!(
            reply("value", Arg::Str("x".into())),
            Some(Value::Bulk(b"x".to_vec()))
        );
        assert_eq!(reply("value", Arg::None), Some(Value::Null));
        assert_eq!(
            reply("error", Arg::Str("busy".into())),
            Some(Value::Error("ERR busy".into()))
        );
        assert_eq!(Redis.reply(vec![]).unwrap().value, None);
        let both = ["value", "error"].map(|n| (n.to_owned(), Arg::Str("x".into())));
        assert!(Redis.reply(both.to_vec()).is_err());
    }
}
