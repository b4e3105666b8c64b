//! What can be matched in Kafka and what can be done to it: the tables, and rules compiled from them.

use std::any::Any;
use std::sync::Arc;

use faultbox_contract::doc::{Class, common};
use faultbox_contract::rule::nearest_hint;
use faultbox_contract::{
    ActionDoc, ArgError, ArmedRule, CheckedRule, Dialect, Glob, Kind, ParamDoc, ProtocolDoc,
};

use crate::codec::schema::{self, Api};
use crate::errors;
use crate::records::{Batch, Record};
use crate::steps;
use crate::subjects::{Subject, mentions};

/// Kafka's face.
pub static DOC: ProtocolDoc = ProtocolDoc {
    name: "kafka",
    aliases: &[],
    summary: "Kafka: produce, fetch, groups, transactions, in every version that brokers speak",
    matchers: &[
        ParamDoc::opt("topic", Kind::Glob(Dialect::Text), "the topic's name"),
        ParamDoc::opt(
            "api",
            Kind::Glob(Dialect::TextNoCase),
            "the request by Kafka's name for it: produce, fetch, metadata, join_group, … (default: those that move the topic's records, or that the group makes)",
        ),
        ParamDoc::opt(
            "key",
            Kind::Glob(Dialect::Text),
            "the key of a record that is produced or fetched",
        ),
        ParamDoc::opt(
            "client_id",
            Kind::Glob(Dialect::Text),
            "the client's name for itself",
        ),
        ParamDoc::opt("group", Kind::Glob(Dialect::Text), "the consumer group"),
        ParamDoc::opt(
            "partition",
            Kind::Int(0, i32::MAX as i64),
            "the partition's number",
        ),
    ],
    actions: &[
        ActionDoc {
            name: "error",
            class: Class::Terminal,
            matched: true,
            params: &[
                ParamDoc::opt(
                    "code",
                    Kind::Code,
                    "the error by name or number (default \"UNKNOWN_SERVER_ERROR\")",
                ),
                ParamDoc::opt(
                    "message",
                    Kind::Text,
                    "the text beside it, in the responses that have room for one (produce, create_topics, find_coordinator, …)",
                ),
            ],
            summary: "this error in the partition's slot of the answer; what the rule selects never reaches the broker",
        },
        common::DELAY,
        ActionDoc {
            name: "drop",
            class: Class::Terminal,
            matched: true,
            params: &[],
            summary: "message loss: the producer is told that the record is stored, and it is gone; with api=\"fetch\" it never arrives; any other request: the connection is closed without an answer",
        },
        ActionDoc {
            name: "duplicate",
            class: Class::Modifier,
            matched: true,
            params: &[],
            summary: "the produced record is stored, and arrives, twice",
        },
        common::RESET,
        common::TRUNCATE,
        common::THROTTLE,
        ActionDoc {
            name: "corrupt",
            class: Class::Modifier,
            matched: true,
            params: &[ParamDoc::opt(
                "offset",
                Kind::Int(0, i64::MAX),
                "which byte is flipped: of the fetched records, or of another reply's body (default 0)",
            )],
            summary: "one byte of the fetched records is inverted, so that their checksum is wrong; of another reply, one byte of its body",
        },
    ],
    steps: steps::DOCS,
};

/// A rule in the shape in which the proxy asks it.
#[derive(Debug)]
pub struct KafkaRule {
    /// A bit for each request that it can act on.
    apis: u128,
    topic: Option<Glob>,
    key: Option<Glob>,
    client_id: Option<Glob>,
    group: Option<Glob>,
    partition: Option<i32>,
    /// What happens when it fires.
    pub action: Action,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Served by the engine: `delay`, `throttle`.
    Engine,
    /// This error.
    Error(i16, Option<String>),
    /// The loss of records, or of the connection.
    Drop,
    /// Store records twice.
    Duplicate,
    /// Reset the connection.
    Reset,
    /// Cut the reply after so many bytes.
    Truncate(u64),
    /// Invert the byte at this place.
    Corrupt(u64),
}

impl KafkaRule {
    /// The compiled form of an armed rule of this protocol.
    pub fn of(rule: &ArmedRule) -> Option<&KafkaRule> {
        rule.compiled.downcast_ref()
    }

    /// Can it act on this request at all?
    pub fn concerns(&self, api: i16) -> bool {
        bit(api) & self.apis != 0
    }

    /// Does this client's name match?
    pub fn admits(&self, client_id: &[u8]) -> bool {
        self.client_id
            .as_ref()
            .is_none_or(|g| g.matches_bytes(client_id))
    }

    /// Does it ask what a message is about?
    pub fn asks(&self) -> bool {
        self.asks_topic() || self.group.is_some()
    }

    /// Does it ask for a topic, a partition, or records?
    pub fn asks_topic(&self) -> bool {
        self.topic.is_some() || self.partition.is_some() || self.key.is_some()
    }

    /// Does it ask for records' keys?
    pub fn asks_key(&self) -> bool {
        self.key.is_some()
    }

    /// Is a fetch judged by what it brings? Whether a record is there, only the response tells.
    pub fn judges_fetched(&self) -> bool {
        self.key.is_some() || matches!(self.action, Action::Drop | Action::Corrupt(_))
    }

    /// Does it select this, its records aside?
    pub fn selects(&self, subject: &Subject) -> bool {
        let glob = |glob: &Option<Glob>, text: Option<&[u8]>| match glob {
            None => true,
            Some(glob) => text.is_some_and(|text| glob.matches_bytes(text)),
        };
        glob(&self.topic, subject.topic.as_deref())
            && glob(&self.group, subject.group.as_deref())
            && self.partition.is_none_or(|p| subject.partition == Some(p))
    }

    /// Does it select this record?
    pub fn selects_record(&self, record: &Record) -> bool {
        let key = |glob: &Glob| record.key.as_ref().is_some_and(|k| glob.matches_bytes(k));
        self.key.as_ref().is_none_or(key)
    }

    /// Does it select any record of these? A batch that cannot be read has no key that matches.
    pub fn selects_any(&self, batches: &[Batch]) -> bool {
        match self.key {
            None => !batches.is_empty(),
            Some(_) => batches.iter().any(|batch| {
                let records = batch.records().unwrap_or_default();
                records.iter().any(|r| self.selects_record(r))
            }),
        }
    }
}

fn bit(api: i16) -> u128 {
    1u128.checked_shl(api as u32).unwrap_or(0)
}

/// Turns a checked rule into a [`KafkaRule`].
///
/// # Errors
/// A name that is no request's or no error's, and matchers that can never match together.
pub fn compile(rule: &CheckedRule) -> Result<Arc<dyn Any + Send + Sync>, ArgError> {
    let glob = |name: &str| {
        rule.text_of(name)
            .map(|p| Glob::new(p, Dialect::Text).map_err(|e| ArgError::new(name, e)))
            .transpose()
    };
    let action = match rule.action.name {
        "error" => Action::Error(
            code(rule.text_of("code"))?,
            rule.text_of("message").map(str::to_owned),
        ),
        "drop" => Action::Drop,
        "duplicate" => Action::Duplicate,
        "reset" => Action::Reset,
        "truncate" => Action::Truncate(rule.int_of("bytes").unwrap_or(0) as u64),
        "corrupt" => Action::Corrupt(rule.int_of("offset").unwrap_or(0) as u64),
        _ => Action::Engine,
    };
    let compiled = KafkaRule {
        apis: apis(rule, &action)?,
        topic: glob("topic")?,
        key: glob("key")?,
        client_id: glob("client_id")?,
        group: glob("group")?,
        partition: rule.int_of("partition").map(|p| p as i32),
        action,
    };
    Ok(Arc::new(compiled))
}

fn code(text: Option<&str>) -> Result<i16, ArgError> {
    match text.map(errors::resolve) {
        None => Ok(-1),
        Some(Some(0)) => Err(ArgError::new("code", "0 is Kafka's code for success")
            .hint("to lose a record without an error, use drop(topic=…)")),
        Some(Some(code)) => Ok(code),
        Some(None) => {
            let text = text.unwrap_or_default();
            Err(
                ArgError::new("code", format!("Kafka has no error `{text}`")).hint(
                    match faultbox_contract::rule::nearest(text, &errors::names()) {
                        Some(best) => format!("did you mean `{best}`?"),
                        None => {
                            "it takes a name such as \"NOT_LEADER_OR_FOLLOWER\", or a number".into()
                        }
                    },
                ),
            )
        }
    }
}

/// Which requests a rule can act on.
fn apis(rule: &CheckedRule, action: &Action) -> Result<u128, ArgError> {
    let has = |name: &str| rule.get(name).is_some();
    let records = bit(schema::PRODUCE) | bit(schema::FETCH);
    let mut chosen = match rule.text_of("api") {
        Some(pattern) => {
            let glob =
                Glob::new(pattern, Dialect::TextNoCase).map_err(|e| ArgError::new("api", e))?;
            let named = of(|api| glob.matches(api.name));
            if named == 0 {
                let names: Vec<_> = schema::apis().map(|api| api.name).collect();
                let message = format!("Kafka has no request `{pattern}`");
                return Err(ArgError::new("api", message).hint(nearest_hint(pattern, &names)));
            }
            named
        }
        None if matches!(action, Action::Drop | Action::Duplicate) => bit(schema::PRODUCE),
        None if has("group") => u128::MAX,
        None if has("topic") || has("partition") || has("key") => records,
        None => u128::MAX,
    };
    let mut only = |what: &str, which: u128, why: String| {
        chosen &= which;
        match chosen {
            0 => Err(ArgError::new(what, why)),
            _ => Ok(()),
        }
    };
    if *action == Action::Duplicate {
        let why =
            "only what is produced can be duplicated: a consumer skips offsets that it has seen";
        only("api", bit(schema::PRODUCE), why.into())?;
    }
    if has("key") {
        let why = "only produce and fetch carry records, and so keys";
        only("key", records, why.into())?;
    }
    for (matcher, fields) in [
        ("topic", &["topic", "topic_id", "resource_name"][..]),
        ("partition", &["partition"]),
        ("group", &["group_id", "key"]),
    ] {
        if has(matcher) {
            let says = |api: &Api| fields.iter().any(|f| mentions(&api.request, f));
            let why = format!("no request that this rule can act on has a {matcher}");
            only(matcher, of(says), why)?;
        }
    }
    if matches!(action, Action::Error(..)) {
        let slot = |api: &Api| has_slot(&api.response);
        only(
            "api",
            of(slot),
            "these responses have no place for an error".into(),
        )?;
    }
    // Of several requests, some may have no room for it; of those of a rule that none has, nobody would ever see the text.
    if matches!(action, Action::Error(_, Some(_)))
        && chosen & of(|api| has_room(&api.response)) == 0
    {
        let why = "these responses have no room for a text beside the error";
        return Err(ArgError::new("message", why)
            .hint("leave it out: clients know the error by its code, and word it themselves"));
    }
    Ok(chosen)
}

fn of(which: impl Fn(&Api) -> bool) -> u128 {
    let chosen = schema::apis().filter(|api| which(api));
    chosen.fold(0, |bits, api| bits | bit(api.key))
}

fn has_slot(fields: &[schema::Field]) -> bool {
    fields.iter().any(|field| match &field.kind {
        schema::Kind::List(inner) => has_slot(inner),
        _ => field.name == "error_code",
    })
}

/// Is there a text beside an error?
fn has_room(fields: &[schema::Field]) -> bool {
    let has = |name: &str| fields.iter().any(|f| f.name == name);
    (has("error_code") && has("error_message"))
        || fields.iter().any(|field| match &field.kind {
            schema::Kind::List(inner) => has_room(inner),
            _ => false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use faultbox_contract::{Arg, RuleSpec};

    fn rule(action: &str, args: &[(&str, &str)]) -> Result<Arc<dyn Any + Send + Sync>, ArgError> {
        let arg = |text: &str| {
            text.parse()
                .map_or_else(|_| Arg::Str(text.into()), Arg::Int)
        };
        let args = args.iter().map(|(n, a)| ((*n).to_owned(), arg(a)));
        let spec = RuleSpec {
            action: action.into(),
            args: args.collect(),
        };
        compile(&DOC.check_rule(&spec)?)
    }

    fn acts_on(action: &str, args: &[(&str, &str)]) -> Vec<&'static str> {
        let compiled = rule(action, args).unwrap();
        let compiled: &KafkaRule = compiled.downcast_ref().unwrap();
        let concerned = schema::apis().filter(|api| compiled.concerns(api.key));
        concerned.map(|api| api.name).collect()
    }

    #[test]
    fn a_rule_acts_on_what_its_matchers_mean() {
        assert_eq!(acts_on("drop", &[("topic", "orders")]), ["produce"]);
        assert_eq!(
            acts_on("drop", &[("topic", "o*"), ("api", "fetch")]),
            ["fetch"]
        );
        assert_eq!(acts_on("error", &[("topic", "o")]), ["produce", "fetch"]);
        assert_eq!(acts_on("duplicate", &[]), ["produce"]);
        assert_eq!(
            acts_on("error", &[("api", "{Produce,metadata}")]),
            ["produce", "metadata"]
        );
        let group = acts_on("error", &[("group", "g")]);
        for api in [
            "join_group",
            "heartbeat",
            "offset_commit",
            "find_coordinator",
        ] {
            assert!(group.contains(&api), "{group:?}");
        }
        assert!(!group.contains(&"produce") && !group.contains(&"metadata"));
        assert_eq!(
            acts_on(
                "error",
                &[("group", "g"), ("topic", "t"), ("api", "offset_*")]
            ),
            ["offset_commit", "offset_fetch", "offset_delete"]
        );
        assert_eq!(
            acts_on("delay", &[("delay", "1")]).len(),
            schema::apis().count()
        );
    }

    #[test]
    fn a_misuse_is_told() {
        let refused = |action, args: &[(&str, &str)]| {
            let error = rule(action, args).unwrap_err();
            format!(
                "{}: {}; {}",
                error.arg.unwrap(),
                error.message,
                error.hint.unwrap_or_default()
            )
        };
        let said = refused("error", &[("api", "prodcue")]);
        assert!(
            said.starts_with("api: Kafka has no request `prodcue`; did you mean `produce`?"),
            "{said}"
        );
        let said = refused("error", &[("code", "NOT_LEADER")]);
        assert!(
            said.starts_with("code: Kafka has no error `NOT_LEADER`"),
            "{said}"
        );
        assert!(refused("error", &[("code", "0")]).contains("drop(topic=…)"));
        for api in ["fetch", "metadata", "{fetch,heartbeat}"] {
            let said = refused("error", &[("api", api), ("message", "disk full")]);
            assert!(
                said.starts_with("message: these responses have no room"),
                "{said}"
            );
        }
        // Produce's has, and the fetches of the topic fail by the code alone.
        let both = [("topic", "o"), ("message", "disk full")];
        assert_eq!(acts_on("error", &both), ["produce", "fetch"]);
        assert!(
            refused("duplicate", &[("api", "fetch")]).starts_with("api: only what is produced")
        );
        assert!(
            refused("drop", &[("api", "heartbeat"), ("topic", "o")])
                .starts_with("topic: no request")
        );
        assert!(
            refused("error", &[("api", "metadata"), ("key", "k")]).starts_with("key: only produce")
        );
        assert!(refused("drop", &[("group", "g")]).starts_with("group: no request"));
    }

    #[test]
    fn codes_by_name_by_number_and_by_their_old_names() {
        for (text, code) in [
            ("NOT_LEADER_OR_FOLLOWER", 6),
            ("not_leader_for_partition", 6),
            ("RECORD_TOO_LARGE", 10),
            ("-1", -1),
            ("38", 38),
        ] {
            let compiled = rule("error", &[("code", text)]).unwrap();
            let compiled: &KafkaRule = compiled.downcast_ref().unwrap();
            assert_eq!(compiled.action, Action::Error(code, None), "{text}");
        }
    }
}
