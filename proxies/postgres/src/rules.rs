//! The tables: what can be matched, what can be done to it, what a spec can send; and rules made ready for the proxy.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use faultbox_contract::doc::{Class, common};
use faultbox_contract::rule::nearest;
use faultbox_contract::{
    ActionDoc, ArgError, CheckedRule, Dialect, Glob, Kind, ParamDoc, ProtocolDoc,
};

use faultbox_sql::{self as sql, Matcher, Unit, Units};

use crate::answer::Rows;
use crate::codec;
use crate::sqlstate;
use crate::steps;

const SQL: sql::Dialect = sql::Dialect::Postgres;

/// PostgreSQL's whole face.
pub static DOC: ProtocolDoc = ProtocolDoc {
    name: "postgres",
    aliases: &["postgresql", "pg"],
    summary: "PostgreSQL's protocol v3: simple and extended queries, COPY, pipelining, LISTEN/NOTIFY, cancel, SCRAM",
    matchers: &[
        ParamDoc::opt(
            "query",
            Kind::Glob(Dialect::Text),
            "the statement, e.g. \"INSERT INTO orders*\": comments, white space, case and schemas do not matter",
        ),
        ParamDoc::opt(
            "table",
            Kind::Text,
            "a table that the statement names, e.g. \"orders\"",
        ),
        ParamDoc::opt(
            "verb",
            Kind::Text,
            "the statement's command, e.g. \"INSERT\"; \"CONNECT\" is the login",
        ),
        ParamDoc::opt(
            "database",
            Kind::Glob(Dialect::Text),
            "the session's database",
        ),
        ParamDoc::opt("user", Kind::Glob(Dialect::Text), "the session's user"),
        ParamDoc::opt(
            "application_name",
            Kind::Glob(Dialect::Text),
            "the session's application_name, as last set",
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
                    "SQLSTATE, by number (\"53100\") or condition name (\"disk_full\"); default \"XX000\"",
                ),
                ParamDoc::opt(
                    "message",
                    Kind::Text,
                    "default: the condition's name; of 25006 what the server says, which names the command",
                ),
                ParamDoc::opt(
                    "severity",
                    Kind::Choice(SEVERITIES),
                    "default \"ERROR\", or \"FATAL\" for a login and for codes that the server sends only so (57P01..57P05); FATAL and PANIC close the connection",
                ),
                ParamDoc::opt("detail", Kind::Text, "the error's DETAIL"),
                ParamDoc::opt("hint", Kind::Text, "the error's HINT"),
            ],
            summary: "the server's error; the statement never runs, and a transaction around it is aborted",
        },
        ActionDoc {
            name: "response",
            class: Class::Terminal,
            matched: true,
            params: &[ParamDoc::opt(
                "rows",
                Kind::List,
                "a list of dicts, column to value; default []",
            )],
            summary: "these rows; the statement never runs",
        },
        common::DELAY,
        ActionDoc {
            name: "drop",
            class: Class::Terminal,
            matched: true,
            params: &[],
            summary: "the connection is lost in mid-query (FIN without an answer); the statement never runs",
        },
        common::RESET,
        common::TRUNCATE,
        common::THROTTLE,
        common::CORRUPT,
    ],
    steps: steps::STEPS,
};

/// Severities that an error may have (manual, 20.8.2, "Message Severity Levels").
const SEVERITIES: &[&str] = &["ERROR", "FATAL", "PANIC"];

/// The commands that a statement can begin with (manual, "SQL Commands"), for catching slips in `verb=`.
const VERBS: &[&str] = &[
    "ALTER",
    "ANALYZE",
    "BEGIN",
    "CALL",
    "CHECKPOINT",
    "CLOSE",
    "CLUSTER",
    "COMMENT",
    "COMMIT",
    CONNECT,
    "COPY",
    "CREATE",
    "DEALLOCATE",
    "DECLARE",
    "DELETE",
    "DISCARD",
    "DO",
    "DROP",
    "EXECUTE",
    "EXPLAIN",
    "FETCH",
    "GRANT",
    "IMPORT",
    "INSERT",
    "LISTEN",
    "LOAD",
    "LOCK",
    "MERGE",
    "MOVE",
    "NOTIFY",
    "PREPARE",
    "REASSIGN",
    "REFRESH",
    "REINDEX",
    "RELEASE",
    "RESET",
    "REVOKE",
    "ROLLBACK",
    "SAVEPOINT",
    "SECURITY",
    "SELECT",
    "SET",
    "SHOW",
    "TABLE",
    "TRUNCATE",
    "UNLISTEN",
    "UPDATE",
    "VACUUM",
    "VALUES",
];

/// What `verb=` calls the login, which is no statement.
pub const CONNECT: &str = "CONNECT";

/// What the proxy finds in [`ArmedRule::compiled`](faultbox_contract::ArmedRule::compiled).
#[derive(Debug)]
pub struct Compiled {
    statements: Matcher,
    database: Option<Glob>,
    user: Option<Glob>,
    application_name: Option<Glob>,
    /// What is done to a matching request.
    pub action: Action,
}

/// What is done to a matching request.
#[derive(Debug)]
pub enum Action {
    /// Answer with this ErrorResponse.
    Error(Arc<Error>),
    /// Answer with these rows.
    Response(Arc<Rows>),
    /// Close without an answer.
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

/// An ErrorResponse that a rule sends.
#[derive(Debug)]
pub struct Error {
    /// The whole message.
    pub message: Bytes,
    /// The SQLSTATE.
    pub code: Box<str>,
    /// Does the connection end with it?
    pub fatal: bool,
    /// How it is written anew for each statement, if its message names the command.
    names_command: Option<Box<Fields>>,
}

/// What an error says besides its code and its message.
#[derive(Debug, Clone)]
struct Fields {
    severity: String,
    detail: Option<String>,
    hint: Option<String>,
}

impl Error {
    /// Builds the message: S V C M, then D and H if given.
    pub fn new(
        severity: &str,
        code: &str,
        message: &str,
        detail: Option<&str>,
        hint: Option<&str>,
    ) -> Error {
        let mut fields = vec![
            (b'S', severity),
            (b'V', severity),
            (b'C', code),
            (b'M', message),
        ];
        fields.extend(detail.map(|d| (b'D', d)));
        fields.extend(hint.map(|h| (b'H', h)));
        let mut out = BytesMut::new();
        codec::error_response(&mut out, &fields);
        Error {
            message: out.freeze(),
            code: code.into(),
            fatal: severity != "ERROR",
            names_command: None,
        }
    }

    /// The same error about a command of this name, if it says which it is about.
    pub fn about(&self, command: &str) -> Option<Error> {
        let fields = self.names_command.as_deref()?;
        // PreventCommandIfReadOnly and PreventCommandDuringRecovery in utility.c: some change nothing that a read-only transaction must leave
        // alone, and cannot be done on a standby all the same (`ClassifyUtilityCommandAsReadOnly`).
        let where_not = match command {
            "VACUUM"
            | "ANALYZE"
            | "CLUSTER"
            | "REINDEX"
            | "LISTEN"
            | "NOTIFY"
            | "LOCK TABLE"
            | "PREPARE TRANSACTION"
            | "COMMIT PREPARED"
            | "ROLLBACK PREPARED" => "during recovery",
            _ => "in a read-only transaction",
        };
        let message = format!("cannot execute {command} {where_not}");
        let (detail, hint) = (fields.detail.as_deref(), fields.hint.as_deref());
        Some(Error::new(
            &fields.severity,
            &self.code,
            &message,
            detail,
            hint,
        ))
    }
}

/// What is known about the session that a request comes on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The start-up packet's `user`.
    pub user: String,
    /// The start-up packet's `database`; the user's name if it has none.
    pub database: String,
    /// As in the start-up packet, then as the server reports it.
    pub application_name: String,
}

impl Compiled {
    /// Does a login match? Only if the rule asks for logins.
    pub fn matches_login(&self, facts: &Facts) -> bool {
        self.statements.verb() == Some(CONNECT) && self.admits(facts)
    }

    fn admits(&self, facts: &Facts) -> bool {
        let fits = |glob: &Option<Glob>, text: &str| glob.as_ref().is_none_or(|g| g.matches(text));
        fits(&self.database, &facts.database)
            && fits(&self.user, &facts.user)
            && fits(&self.application_name, &facts.application_name)
    }

    /// Does a request match? `units` are its statements; a function call by its protocol message has none.
    pub fn matches(&self, id: u64, facts: &Facts, units: Option<&Units>) -> bool {
        self.admits(facts)
            && match units {
                Some(units) => self.statements.matches(id, units),
                None => !self.statements.reads_sql(),
            }
    }

    /// The first of these statements that the rule means.
    pub fn first<'a>(&self, units: &'a Units) -> Option<&'a Unit> {
        self.statements.first(units)
    }
}

/// Makes a checked rule ready.
///
/// # Errors
/// What the tables cannot say: an unknown SQLSTATE, rows that are no dicts, a pattern of several statements.
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
    let statements = Matcher::of(rule, SQL, VERBS)?;
    let login = statements.verb() == Some(CONNECT);
    if login {
        check_login(rule)?;
    }
    let action = match rule.action.name {
        "error" => Action::Error(Arc::new(error(rule, login)?)),
        "response" => Action::Response(Arc::new(
            Rows::new(rule.get("rows")).map_err(refuse("rows"))?,
        )),
        "drop" => Action::Drop,
        "reset" => Action::Reset,
        "truncate" => Action::Truncate(unsigned("bytes")),
        "corrupt" => Action::Corrupt(unsigned("offset")),
        _ => Action::Engine,
    };
    Ok(Compiled {
        statements,
        database: glob("database")?,
        user: glob("user")?,
        application_name: glob("application_name")?,
        action,
    })
}

/// A login is no statement: it has no text, its answer no rows, and an error ends it.
fn check_login(rule: &CheckedRule) -> Result<(), ArgError> {
    if let Some(arg) = ["query", "table"]
        .into_iter()
        .find(|a| rule.get(a).is_some())
    {
        return Err(ArgError::new(
            arg,
            format!("`{arg}`: a login (verb=\"CONNECT\") has no statement"),
        )
        .hint("match logins by user=, database= and application_name="));
    }
    if rule.text_of("severity") == Some("ERROR") {
        return Err(ArgError::new(
            "severity",
            "`severity`: what refuses a login (verb=\"CONNECT\") is never \"ERROR\"",
        )
        .hint("leave it out: it is \"FATAL\", and the connection is closed"));
    }
    match rule.action.name {
        "error" | "delay" | "drop" | "reset" => Ok(()),
        other => Err(ArgError::new(
            "verb",
            format!("`verb`: `{other}` does nothing to a login (verb=\"CONNECT\")"),
        )
        .hint("a login takes error, delay, drop and reset")),
    }
}

fn error(rule: &CheckedRule, login: bool) -> Result<Error, ArgError> {
    let given = rule.text_of("code").unwrap_or("XX000");
    let Some(code) = sqlstate::resolve(given) else {
        let names: Vec<&str> = sqlstate::CONDITIONS.iter().map(|(_, name)| *name).collect();
        let error = ArgError::new(
            "code",
            format!("`code`: \"{given}\" is neither a SQLSTATE nor a condition name"),
        );
        let table = "PostgreSQL's manual, appendix A, lists them";
        return Err(match nearest(given, &names) {
            Some(best) => error.hint(format!("did you mean \"{best}\"? {table}")),
            None => error.hint(format!(
                "five digits and capitals (\"53100\") or a name (\"disk_full\"); {table}"
            )),
        });
    };
    if sqlstate::is_completion(code) {
        return Err(ArgError::new(
            "code",
            format!("`code`: {code} says success or warning, which no error carries"),
        )
        .hint("errors begin at class 03, e.g. \"40001\" (serialization_failure)"));
    }
    let severity = rule.text_of("severity").unwrap_or(match code {
        "57P01" | "57P02" | "57P03" | "57P04" | "57P05" => "FATAL",
        _ if login => "FATAL",
        _ => "ERROR",
    });
    let by_name =
        || sqlstate::name_of(code).map_or_else(|| "injected error".into(), |n| n.replace('_', " "));
    let message = rule.text_of("message").map_or_else(by_name, str::to_owned);
    let (detail, hint) = (rule.text_of("detail"), rule.text_of("hint"));
    let mut error = Error::new(severity, code, &message, detail, hint);
    if code == "25006" && rule.text_of("message").is_none() {
        error.names_command = Some(Box::new(Fields {
            severity: severity.into(),
            detail: detail.map(str::to_owned),
            hint: hint.map(str::to_owned),
        }));
    }
    Ok(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use faultbox_contract::{Arg, RuleSpec};

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

    fn hits(rule: &Compiled, sql: &str) -> bool {
        rule.matches(1, &Facts::default(), Some(&Units::new(sql, SQL)))
    }

    fn refusal(action: &str, args: &[(&str, Arg)]) -> ArgError {
        compiled(action, args).map(|_| ()).unwrap_err()
    }

    #[test]
    fn an_error_has_the_fields_a_server_sends() {
        let rule = compiled(
            "error",
            &[
                ("code", text("disk_full")),
                ("detail", text("d")),
                ("hint", text("h")),
            ],
        )
        .unwrap();
        let Action::Error(error) = rule.action else {
            panic!("{rule:?}")
        };
        assert_eq!(
            &error.message[..],
            b"E\0\0\0\x2bSERROR\0VERROR\0C53100\0Mdisk full\0Dd\0Hh\0\0"
        );
        assert!(!error.fatal);
        let fatal = |args: &[(&str, Arg)]| match compiled("error", args).unwrap().action {
            Action::Error(e) => e.fatal,
            other => panic!("{other:?}"),
        };
        assert!(fatal(&[("code", text("admin_shutdown"))]));
        assert!(fatal(&[("severity", text("PANIC"))]));
        assert!(!fatal(&[
            ("code", text("57P01")),
            ("severity", text("ERROR"))
        ]));
        assert!(!fatal(&[("code", Arg::Int(40001))]));
    }

    #[test]
    fn matchers_go_together_on_one_unit() {
        let rule = compiled(
            "drop",
            &[("verb", text("insert")), ("table", text("orders"))],
        )
        .unwrap();
        assert!(hits(&rule, "INSERT INTO shop.orders SELECT 1"));
        assert!(hits(
            &rule,
            "WITH x AS (INSERT INTO orders VALUES (1)) SELECT 1"
        ));
        assert!(!hits(&rule, "SELECT * FROM orders"));
        assert!(!hits(
            &rule,
            "INSERT INTO items VALUES (1); DELETE FROM orders"
        ));
        assert!(!rule.matches(1, &Facts::default(), None));
        let begin = compiled("delay", &[("verb", text("BEGIN")), ("delay", Arg::Int(1))]).unwrap();
        assert!(hits(
            &begin,
            "start transaction isolation level serializable"
        ));
    }

    #[test]
    fn sessions_are_matched_without_a_statement() {
        let rule = compiled(
            "reset",
            &[("user", text("app*")), ("database", text("shop"))],
        )
        .unwrap();
        let facts = |user: &str, database: &str| Facts {
            user: user.into(),
            database: database.into(),
            ..Facts::default()
        };
        assert!(rule.matches(1, &facts("app_rw", "shop"), None));
        assert!(!rule.matches(1, &facts("bob", "shop"), None));
        assert!(!rule.matches(1, &facts("app", "other"), None));
    }

    #[test]
    fn logins_are_matched_by_rules_that_ask_for_them() {
        let connect = ("verb", text("CONNECT"));
        let rule = compiled(
            "error",
            &[
                connect.clone(),
                ("user", text("app*")),
                ("code", text("53300")),
            ],
        )
        .unwrap();
        let facts = |user: &str| Facts {
            user: user.into(),
            ..Facts::default()
        };
        assert!(rule.matches_login(&facts("app_rw")) && !rule.matches_login(&facts("bob")));
        assert!(!rule.matches(1, &facts("app_rw"), None) && !hits(&rule, "SELECT 1"));
        assert!(matches!(&rule.action, Action::Error(e) if e.fatal));
        assert!(!compiled("error", &[]).unwrap().matches_login(&facts("app")));
        for (action, arg) in [
            ("error", ("query", text("SELECT*"))),
            ("error", ("table", text("t"))),
            ("error", ("severity", text("ERROR"))),
            ("throttle", ("rate", text("1KB/s"))),
            ("response", ("user", text("app"))),
        ] {
            let e = refusal(action, &[connect.clone(), arg]);
            assert!(e.message.contains("CONNECT"), "{e}");
        }
    }

    #[test]
    fn a_read_only_server_names_the_command() {
        let said = |args: &[(&str, Arg)], sql: &str| {
            let mut all = vec![("code", text("25006"))];
            all.extend_from_slice(args);
            let Action::Error(error) = compiled("error", &all).unwrap().action else {
                panic!("an error");
            };
            let units = Units::new(sql, SQL);
            let about = error.about(&crate::answer::name(units.iter().next().unwrap()));
            String::from_utf8_lossy(&about.map_or(error.message.clone(), |e| e.message))
                .into_owned()
        };
        for (sql, command) in [
            ("WITH x AS (SELECT 1) INSERT INTO t SELECT 1", "INSERT"),
            ("create unlogged table t (id int)", "CREATE TABLE"),
            ("TRUNCATE t", "TRUNCATE TABLE"),
            ("COPY t FROM STDIN", "COPY FROM"),
            ("SELECT 1 FROM t FOR UPDATE", "SELECT FOR UPDATE"),
            ("SELECT 1 FROM t FOR KEY SHARE", "SELECT FOR KEY SHARE"),
        ] {
            let message = format!("Mcannot execute {command} in a read-only transaction\0Hh");
            let said = said(&[("hint", text("h"))], sql);
            assert!(said.contains(&message), "{said}");
        }
        assert!(said(&[("message", text("m"))], "TRUNCATE t").contains("Mm\0"));
    }

    #[test]
    fn misuse_says_what_to_do() {
        let e = refusal("error", &[("code", text("disk_ful"))]);
        assert!(e.hint.unwrap().contains("\"disk_full\""));
        assert!(
            refusal("error", &[("code", Arg::Int(5))])
                .message
                .contains("neither")
        );
        assert!(
            refusal("error", &[("code", text("00000"))])
                .message
                .contains("success")
        );
        let e = refusal("drop", &[("verb", text("INSRT"))]);
        assert_eq!(e.hint.unwrap(), "did you mean \"INSERT\"?");
        assert!(
            refusal("drop", &[("table", text("a b"))])
                .message
                .contains("name of a table")
        );
        assert!(
            refusal("drop", &[("query", text("a; b"))])
                .message
                .contains("several")
        );
        let rows = Arg::Json(serde_json::json!([1]));
        assert!(
            refusal("response", &[("rows", rows)])
                .message
                .contains("dict")
        );
        let e = refusal("error", &[("severity", text("BAD"))]);
        assert!(e.message.contains("\"FATAL\""), "{e}");
    }
}
