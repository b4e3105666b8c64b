//! The tables: what can be matched, what can be done to it, what a spec can send; and rules made ready for the proxy.

use std::sync::Arc;

use faultbox_contract::doc::{Class, common};
use faultbox_contract::rule::nearest;
use faultbox_contract::{
    ActionDoc, Arg, ArgError, CheckedRule, Dialect, Glob, Kind, ParamDoc, ProtocolDoc,
};
use serde_json::Value as Json;

use crate::commands;
use crate::steps;
use crate::value::Value;

/// Redis' whole face.
pub static DOC: ProtocolDoc = ProtocolDoc {
    name: "redis",
    aliases: &["valkey", "resp"],
    summary: "Redis and Valkey: RESP2 and RESP3, inline commands, pipelines, MULTI, pub/sub, pushes, blocking commands, redirects",
    matchers: &[
        ParamDoc::opt(
            "command",
            Kind::Glob(Dialect::TextNoCase),
            "its name, or with its subcommand, e.g. \"SET\", \"CONFIG SET\", \"{LPOP,BLPOP}\"",
        ),
        ParamDoc::opt(
            "key",
            Kind::Glob(Dialect::Text),
            "any of its keys, found by the server's own command table, e.g. \"cart:*\"",
        ),
        ParamDoc::opt(
            "args",
            Kind::Glob(Dialect::Text),
            "what follows its name, one space between, e.g. \"* NX\"",
        ),
    ],
    actions: &[
        ActionDoc {
            name: "error",
            class: Class::Terminal,
            matched: true,
            params: &[ParamDoc::opt(
                "message",
                Kind::Text,
                "e.g. \"READONLY You can't write against a read only replica.\"; without a code word it gets \"ERR\"; default \"ERR injected error\"",
            )],
            summary: "this error; the command never runs, and a transaction around it is aborted (EXECABORT)",
        },
        ActionDoc {
            name: "response",
            class: Class::Terminal,
            matched: true,
            params: &[
                ParamDoc::opt(
                    "value",
                    Kind::JsonOrBytes,
                    "a string or bytes, a number, a bool, None, a list, a dict; default None",
                ),
                ParamDoc::opt(
                    "type",
                    Kind::Choice(TYPES),
                    "the value's RESP type, where the usual one for it will not do; \"simple\" is a status such as OK",
                ),
            ],
            summary: "this reply, in the connection's version of RESP; the command never runs",
        },
        common::DELAY,
        ActionDoc {
            name: "drop",
            class: Class::Terminal,
            matched: true,
            params: &[],
            summary: "no reply, and the connection stays; the command never runs",
        },
        common::RESET,
        common::TRUNCATE,
        common::THROTTLE,
        common::CORRUPT,
    ],
    steps: steps::STEPS,
};

const TYPES: &[&str] = &[
    "simple",
    "bulk",
    "integer",
    "double",
    "boolean",
    "null",
    "null_array",
    "array",
    "map",
    "set",
    "push",
    "verbatim",
    "big_number",
    "error",
];

/// What the proxy finds in [`ArmedRule::compiled`](faultbox_contract::ArmedRule::compiled).
#[derive(Debug)]
pub struct Compiled {
    command: Option<Glob>,
    key: Option<Glob>,
    args: Option<Glob>,
    /// What is done to a matching command.
    pub action: Action,
}

/// What is done to a matching command.
#[derive(Debug)]
pub enum Action {
    /// Answer with this error.
    Error(Arc<Error>),
    /// Answer with this value.
    Response(Arc<Value>),
    /// No answer.
    Drop,
    /// Reset.
    Reset,
    /// Cut the reply after that many bytes.
    Truncate(u64),
    /// Invert the byte at this offset of the reply's payload.
    Corrupt(u64),
    /// Delays and throttles are the engine's: it reads them from the rule itself.
    Engine,
}

/// An error that a rule sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(String);

impl Error {
    /// From a message: one that begins with no code word gets "ERR", and line breaks become spaces, as in the server.
    pub fn new(message: &str) -> Error {
        let message = message.strip_prefix('-').unwrap_or(message);
        let message = message.replace(['\r', '\n'], " ");
        let word = message.split(' ').next().unwrap_or_default();
        let is_code = word.len() > 1
            && word.starts_with(|c: char| c.is_ascii_uppercase())
            && word
                .chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || matches!(c, '_' | '-'));
        Error(match is_code {
            true => message,
            false => format!("ERR {message}"),
        })
    }

    /// Its first word.
    pub fn code(&self) -> &str {
        self.0.split(' ').next().unwrap_or_default()
    }

    /// What the client gets.
    pub fn value(&self) -> Value {
        Value::Error(self.0.clone())
    }

    /// What the client gets when it is EXEC that fails: the server discards the transaction and says why (execCommandAbort in its
    /// multi.c). A redirection discards it too, and goes out as it is.
    pub fn of_exec(&self) -> Value {
        match self.code() {
            "EXECABORT" | "MOVED" | "ASK" | "CROSSSLOT" | "TRYAGAIN" | "CLUSTERDOWN" => {
                self.value()
            }
            _ => Value::Error(format!(
                "EXECABORT Transaction discarded because of: {}",
                self.0
            )),
        }
    }
}

/// A command as rules see it.
#[derive(Debug)]
pub struct Command {
    /// "SET", "CONFIG SET": in capitals.
    pub name: String,
    /// Its name and arguments, as far as they are known.
    pub args: Vec<Vec<u8>>,
    /// Which of them are keys.
    pub keys: Vec<usize>,
}

impl Compiled {
    /// Could a command with this name match?
    pub fn names(&self, full_name: &str) -> bool {
        let Some(glob) = &self.command else {
            return true;
        };
        glob.matches(full_name)
            || full_name
                .split_once(' ')
                .is_some_and(|(name, _)| glob.matches(name))
    }

    /// Does the command match?
    pub fn matches(&self, command: &Command) -> bool {
        let is_key = |glob: &Glob| {
            command
                .keys
                .iter()
                .any(|i| glob.matches_bytes(&command.args[*i]))
        };
        self.names(&command.name)
            && self.key.as_ref().is_none_or(is_key)
            && self
                .args
                .as_ref()
                .is_none_or(|glob| glob.matches_bytes(&command.args[1..].join(&b' ')))
    }
}

/// Makes a checked rule ready.
///
/// # Errors
/// What the tables cannot say: a command that no server has, a value that its type cannot hold.
pub fn compile(rule: &CheckedRule) -> Result<Compiled, ArgError> {
    let refuse = |arg: &'static str| move |e: String| ArgError::new(arg, format!("`{arg}`: {e}"));
    let glob = |arg: &'static str| {
        rule.text_of(arg)
            .map(|text| Glob::new(text, Dialect::Text).map_err(refuse(arg)))
            .transpose()
    };
    let unsigned = |arg: &str| {
        rule.int_of(arg)
            .and_then(|n| u64::try_from(n).ok())
            .unwrap_or_default()
    };
    let action = match rule.action.name {
        "error" => Action::Error(Arc::new(Error::new(
            rule.text_of("message").unwrap_or("injected error"),
        ))),
        "response" => Action::Response(Arc::new(response(rule).map_err(refuse("value"))?)),
        "drop" => Action::Drop,
        "reset" => Action::Reset,
        "truncate" => Action::Truncate(unsigned("bytes")),
        "corrupt" => Action::Corrupt(unsigned("offset")),
        _ => Action::Engine,
    };
    Ok(Compiled {
        command: rule.text_of("command").map(command).transpose()?,
        key: glob("key")?,
        args: glob("args")?,
        action,
    })
}

fn command(pattern: &str) -> Result<Glob, ArgError> {
    let words: Vec<&str> = pattern.split_whitespace().collect();
    let pattern = words.join(" ");
    let name = pattern.to_ascii_uppercase();
    let known = commands::table();
    // A module's commands have a dot in their names, and a glob may mean anything.
    let literal = !pattern.contains(['*', '?', '[', '{', '\\', '.']);
    if literal && !known.contains_key(name.as_str()) {
        let names: Vec<&str> = known.keys().copied().collect();
        let error = ArgError::new(
            "command",
            format!("`command`: no server has a command \"{pattern}\""),
        );
        let glob = format!(
            "a command of a newer server is meant by a glob: \"[{}]{}\"",
            &name[..name.chars().next().map_or(0, char::len_utf8)],
            name.chars().skip(1).collect::<String>()
        );
        return Err(match nearest(&name, &names) {
            Some(best) => error.hint(format!("did you mean \"{best}\"?")),
            None => error.hint(glob),
        });
    }
    Glob::new(&pattern, Dialect::TextNoCase)
        .map_err(|e| ArgError::new("command", format!("`command`: {e}")))
}

/// The reply that `response` asks for.
fn response(rule: &CheckedRule) -> Result<Value, String> {
    let value = rule.get("value").cloned().unwrap_or(Arg::None);
    let Some(kind) = rule.text_of("type") else {
        return Ok(match value {
            Arg::Bytes(bytes) => Value::Bulk(bytes),
            value => usual(value.to_json()),
        });
    };
    let json = value.to_json();
    let one_line = |text: &str| match text.contains(['\r', '\n']) {
        true => Err(format!("type \"{kind}\" holds no line breaks")),
        false => Ok(text.to_owned()),
    };
    let list = |values: &[Json]| values.iter().cloned().map(usual).collect();
    Ok(match (kind, &json) {
        ("simple", Json::String(text)) => Value::Simple(one_line(text)?),
        ("error", Json::String(text)) => Error::new(text).value(),
        ("bulk", Json::String(_)) => match value {
            Arg::Bytes(bytes) => Value::Bulk(bytes),
            _ => usual(json),
        },
        ("bulk", Json::Number(n)) => Value::Bulk(n.to_string().into()),
        ("verbatim", Json::String(text)) => Value::Verbatim(*b"txt", text.clone().into()),
        ("integer", Json::Number(n)) => Value::Integer(n.as_i64().ok_or("no 64-bit integer")?),
        ("boolean", Json::Bool(b)) => Value::Boolean(*b),
        ("double", Json::Number(n)) => Value::Double(n.as_f64().ok_or("no double")?),
        ("double", Json::String(text)) if matches!(text.as_str(), "inf" | "-inf" | "nan") => {
            Value::Double(text.parse().map_err(|_| "no double")?)
        }
        ("big_number", Json::String(text)) if is_integer(text) => Value::BigNumber(text.clone()),
        ("big_number", Json::Number(n)) if n.is_i64() || n.is_u64() => {
            Value::BigNumber(n.to_string())
        }
        ("null", Json::Null) => Value::Null,
        ("null_array", Json::Null) => Value::NullArray,
        ("array", Json::Array(values)) => Value::Array(list(values)),
        ("set", Json::Array(values)) => Value::Set(list(values)),
        ("push", Json::Array(values)) => Value::Push(list(values)),
        ("map", Json::Object(_)) => usual(json),
        _ => return Err(format!("{json} does not fit type \"{kind}\"")),
    })
}

fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// The RESP value that a JSON value usually is.
fn usual(json: Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(b) => Value::Boolean(b),
        Json::Number(n) => match n.as_i64() {
            Some(n) => Value::Integer(n),
            // More than an integer of RESP holds, and more than a double holds exactly.
            None if n.is_u64() => Value::BigNumber(n.to_string()),
            None => Value::Double(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::Bulk(text.into()),
        Json::Array(values) => Value::Array(values.into_iter().map(usual).collect()),
        Json::Object(map) => Value::Map(
            map.into_iter()
                .map(|(name, value)| (Value::Bulk(name.into()), usual(value)))
                .collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faultbox_contract::RuleSpec;
    use serde_json::json;

    fn compiled(action: &str, args: &[(&str, Arg)]) -> Result<Compiled, ArgError> {
        let spec = RuleSpec {
            action: action.into(),
            args: args
                .iter()
                .map(|(n, a)| ((*n).to_owned(), a.clone()))
                .collect(),
        };
        compile(&DOC.check_rule(&spec)?)
    }

    fn text(s: &str) -> Arg {
        Arg::Str(s.into())
    }

    fn refusal(action: &str, args: &[(&str, Arg)]) -> ArgError {
        compiled(action, args).map(|_| ()).unwrap_err()
    }

    fn hits(rule: &[(&str, Arg)], line: &str) -> bool {
        let args: Vec<Vec<u8>> = line.split(' ').map(|w| w.as_bytes().to_vec()).collect();
        let name = commands::full_name(&args[0], args.get(1).map(Vec::as_slice));
        let keys = commands::keys(&name, &args, args.len());
        compiled("drop", rule)
            .unwrap()
            .matches(&Command { name, args, keys })
    }

    #[test]
    fn commands_are_matched_by_name_and_subcommand() {
        let command = |pattern: &str| [("command", text(pattern))];
        for (pattern, line, hit) in [
            ("set", "SET k v", true),
            ("SET", "set k v", true),
            ("SET", "SETEX k 1 v", false),
            ("CONFIG", "config set a b", true),
            ("config  set", "CONFIG SET a b", true),
            ("CONFIG SET", "CONFIG GET a", false),
            ("CONFIG *", "CONFIG GET a", true),
            ("{LPOP,BLPOP}", "blpop k 0", true),
            ("*", "anything at all", true),
            ("JSON.SET", "json.set k . 1", true),
        ] {
            assert_eq!(hits(&command(pattern), line), hit, "{pattern}: {line}");
        }
    }

    #[test]
    fn keys_and_arguments_are_matched_together() {
        assert!(hits(&[("key", text("b*"))], "MGET a1 b1"));
        assert!(!hits(&[("key", text("v"))], "SET k v"));
        assert!(hits(&[("args", text("* NX"))], "SET k v NX"));
        assert!(!hits(&[("args", text("* NX"))], "SET k v"));
        assert!(hits(
            &[("key", text("k")), ("command", text("SET"))],
            "SET k v"
        ));
        assert!(!hits(&[("key", text("*"))], "PING"));
    }

    #[test]
    fn a_message_gets_a_code_word() {
        for (message, line) in [
            ("no", "ERR no"),
            ("READONLY You can't", "READONLY You can't"),
            ("-LOADING x", "LOADING x"),
            ("I failed", "ERR I failed"),
            ("Bad thing", "ERR Bad thing"),
            ("OOM", "OOM"),
            ("ERR a\r\nb", "ERR a  b"),
        ] {
            assert_eq!(Error::new(message).value(), Value::Error(line.into()));
        }
        assert_eq!(Error::new("MOVED 1 h:2").code(), "MOVED");
        assert_eq!(
            Error::new("no").of_exec(),
            Value::Error("EXECABORT Transaction discarded because of: ERR no".into())
        );
    }

    #[test]
    fn values_have_their_usual_type_or_the_one_asked_for() {
        let value = |args: &[(&str, Arg)]| match compiled("response", args).unwrap().action {
            Action::Response(value) => Arc::unwrap_or_clone(value),
            other => panic!("{other:?}"),
        };
        assert_eq!(value(&[]), Value::Null);
        assert_eq!(
            value(&[("value", text("OK")), ("type", text("simple"))]),
            Value::Simple("OK".into())
        );
        assert_eq!(
            value(&[("value", Arg::Bytes(vec![0xff]))]),
            Value::Bulk(vec![0xff])
        );
        assert_eq!(
            value(&[("value", Arg::Json(json!([1, 0.5, {"a": true}])))]),
            Value::Array(vec![
                Value::Integer(1),
                Value::Double(0.5),
                Value::Map(vec![(Value::Bulk(b"a".to_vec()), Value::Boolean(true))]),
            ])
        );
        assert_eq!(value(&[("type", text("null_array"))]), Value::NullArray);
        for (bad, kind) in [
            (text("a\r\nb"), "simple"),
            (text("x"), "integer"),
            (text("12x"), "big_number"),
            (Arg::Int(1), "set"),
        ] {
            let e = refusal("response", &[("value", bad), ("type", text(kind))]);
            assert!(e.message.contains(kind), "{e}");
        }
    }

    #[test]
    fn a_command_that_no_server_has_is_refused() {
        let hint = |pattern: &str| refusal("drop", &[("command", text(pattern))]).hint.unwrap();
        assert_eq!(hint("SETT"), "did you mean \"SET\"?");
        assert_eq!(hint("config sat"), "did you mean \"CONFIG SET\"?");
        assert!(hint("FROBNICATE").contains("[F]ROBNICATE"));
        assert!(compiled("drop", &[("command", text("[F]ROBNICATE"))]).is_ok());
    }
}
