//! Kafka: one broker with its log in memory, consumer groups among it, and routes that answer instead of it:
//! `"PRODUCE orders": [reply(error="NOT_LEADER_OR_FOLLOWER"), reply()]`.

mod data;
mod groups;
mod log;
mod member;
mod server;

use faultbox_contract::rule::nearest;
use faultbox_contract::{Arg, ArgError, Dialect, Glob, Kind, ParamDoc};
use faultbox_kafka::codec::schema;
use faultbox_kafka::errors;

use crate::script::Script;

pub(crate) use server::Server;

/// The protocol's part of a route.
#[derive(Debug)]
pub struct Kafka;

/// `"PRODUCE orders*"`: a request's name, and what it is about.
#[derive(Debug)]
pub struct Pattern {
    api: Glob,
    subject: Option<Glob>,
}

/// A request about one topic or group.
#[derive(Debug)]
pub struct Request {
    /// "produce".
    pub api: &'static str,
    /// The topic's or the group's name.
    pub subject: String,
}

/// What the server tells of a call: `server::describe`, `data::describe_record`, and of fetched records how many there were.
pub(crate) const CALL_FIELDS: &[&str] = &[
    "api",
    "topic",
    "group",
    "client_id",
    "partition",
    "offset",
    "count",
    "key",
    "value",
    "json",
    "headers",
];

static KEYWORDS: &[ParamDoc] = &[ParamDoc::opt(
    "error",
    Kind::Code,
    "an error code by name or number, e.g. \"NOT_LEADER_OR_FOLLOWER\"",
)];

impl Script for Kafka {
    type Pattern = Pattern;
    type Request = Request;
    // The code of an error; without one the broker answers.
    type Reply = Option<i16>;

    fn name(&self) -> &'static str {
        "kafka"
    }

    fn shorthand(&self) -> Option<&'static str> {
        None
    }

    fn keywords(&self) -> &'static [ParamDoc] {
        KEYWORDS
    }

    fn pattern(&self, text: &str) -> Result<Pattern, ArgError> {
        let (api, subject) = match text.trim().split_once(' ') {
            Some((api, subject)) => (api, Some(subject.trim_start())),
            None => (text.trim(), None),
        };
        let glob = |text, dialect| Glob::new(text, dialect).map_err(|e| ArgError::new("", e));
        // An api's glob must fit one that there is, so that a slip does not stay unseen.
        let api = glob(api, Dialect::TextNoCase)?;
        let names: Vec<&str> = (0..=i16::from(u8::MAX))
            .filter_map(schema::api)
            .map(|api| api.name)
            .collect();
        if !names.iter().any(|name| api.matches(name)) {
            let error = ArgError::new(
                "",
                format!("`{text}`: Kafka has no request \"{}\"", api.pattern()),
            );
            return Err(match nearest(api.pattern(), &names) {
                Some(best) => error.hint(format!("did you mean \"{}\"?", best.to_uppercase())),
                None => error.hint(
                    "a route is written \"PRODUCE orders\", \"FETCH orders*\", or \"JOIN_GROUP workers\"",
                ),
            });
        }
        Ok(Pattern {
            api,
            subject: subject.map(|s| glob(s, Dialect::Text)).transpose()?,
        })
    }

    fn reply(&self, args: Vec<(String, Arg)>) -> Result<Option<i16>, ArgError> {
        let Some(text) = args.iter().find_map(|(_, arg)| arg.as_str()) else {
            return Ok(None);
        };
        match errors::resolve(text) {
            Some(0) => Ok(None),
            Some(code) => Ok(Some(code)),
            None => {
                let error = ArgError::new("error", format!("Kafka has no error \"{text}\""));
                Err(match nearest(text, &errors::names()) {
                    Some(best) => error.hint(format!("did you mean \"{best}\"?")),
                    None => error.hint("e.g. \"NOT_LEADER_OR_FOLLOWER\", \"REQUEST_TIMED_OUT\""),
                })
            }
        }
    }

    fn selects(&self, pattern: &Pattern, request: &Request) -> bool {
        pattern.api.matches(request.api)
            && pattern
                .subject
                .as_ref()
                .is_none_or(|glob| glob.matches(&request.subject))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_and_replies() {
        let selects = |pattern: &str, api, subject: &str| {
            let request = Request {
                api,
                subject: subject.to_owned(),
            };
            Kafka.selects(&Kafka.pattern(pattern).unwrap(), &request)
        };
        assert!(selects("PRODUCE orders", "produce", "orders"));
        assert!(!selects("PRODUCE orders", "produce", "other"));
        assert!(selects("fetch", "fetch", "any"));
        assert!(selects("*_GROUP w*", "join_group", "workers"));
        assert!(Kafka.pattern("PRODUEC x").is_err());
        let reply = |text: &str| Kafka.reply(vec![("error".into(), Arg::Str(text.into()))]);
        assert_eq!(reply("NOT_LEADER_OR_FOLLOWER").unwrap(), Some(6));
        assert_eq!(reply("7").unwrap(), Some(7));
        assert!(reply("NOT_A_CODE").is_err());
        assert_eq!(Kafka.reply(vec![]).unwrap(), None);
    }
}
