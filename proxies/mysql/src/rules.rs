//! The tables: what can be matched, what can be done to it, what a spec can send; and rules made ready for the proxy.

use std::sync::Arc;

use faultbox_contract::doc::{Class, common};
use faultbox_contract::rule::nearest;
use faultbox_contract::{
    ActionDoc, ArgError, CheckedRule, Dialect as GlobDialect, Glob, Kind, ParamDoc, ProtocolDoc,
};
use faultbox_sql::{Dialect, Matcher, Unit, Units};

use crate::answer::Rows;
use crate::errors;
use crate::steps;

/// MySQL's and MariaDB's whole face.
pub static DOC: ProtocolDoc = ProtocolDoc {
    name: "mysql",
    aliases: &["mariadb"],
    summary: "MySQL's and MariaDB's protocol: text and binary, prepared statements, multi-results, LOAD DATA LOCAL, any authentication",
    matchers: &[
        ParamDoc::opt(
            "query",
            Kind::Glob(GlobDialect::Text),
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
            Kind::Glob(GlobDialect::Text),
            "the session's database, as last chosen",
        ),
        ParamDoc::opt("user", Kind::Glob(GlobDialect::Text), "the session's user"),
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
                    "the server's error, by number (1213) or symbol (\"ER_LOCK_DEADLOCK\"); default 1105",
                ),
                ParamDoc::opt(
                    "sqlstate",
                    Kind::Code,
                    "default: the one that goes with the code",
                ),
                ParamDoc::opt(
                    "message",
                    Kind::Text,
                    "default: the server's own, with \"?\" where it fills in what the proxy does not know",
                ),
            ],
            summary: "the server's error; the statement never runs, and a code that rolls the transaction back does so",
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

/// The commands that a statement can begin with (manuals, "SQL Statements"), for catching slips in `verb=`.
const VERBS: &[&str] = &[
    "ALTER",
    "ANALYZE",
    "BACKUP",
    "BEGIN",
    "BINLOG",
    "CACHE",
    "CALL",
    "CHANGE",
    "CHECK",
    "CHECKSUM",
    CONNECT,
    "COMMIT",
    "CREATE",
    "DEALLOCATE",
    "DELETE",
    "DO",
    "DROP",
    "EXECUTE",
    "EXPLAIN",
    "FLUSH",
    "GET",
    "GRANT",
    "HANDLER",
    "HELP",
    "IMPORT",
    "INSERT",
    "INSTALL",
    "KILL",
    "LOAD",
    "LOCK",
    "OPTIMIZE",
    "PREPARE",
    "PURGE",
    "RELEASE",
    "RENAME",
    "REPAIR",
    "REPLACE",
    "RESET",
    "RESIGNAL",
    "REVOKE",
    "ROLLBACK",
    "SAVEPOINT",
    "SELECT",
    "SET",
    "SHOW",
    "SHUTDOWN",
    "SIGNAL",
    "START",
    "STOP",
    "TABLE",
    "TRUNCATE",
    "UNINSTALL",
    "UNLOCK",
    "UPDATE",
    "USE",
    "VALUES",
    "WITH",
    "XA",
];

/// What `verb=` calls the login, which is no statement.
pub const CONNECT: &str = "CONNECT";

/// What the proxy finds in [`ArmedRule::compiled`](faultbox_contract::ArmedRule::compiled).
#[derive(Debug)]
pub struct Compiled {
    statements: Matcher,
    database: Option<Glob>,
    user: Option<Glob>,
    /// What is done to a matching request.
    pub action: Action,
}

/// What is done to a matching request.
#[derive(Debug)]
pub enum Action {
    /// Answer with this error.
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

/// An error that a rule sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The server's number.
    pub code: u16,
    /// The SQLSTATE.
    pub sqlstate: String,
    /// The message.
    pub message: String,
    /// Is it the server's own, whose gaps the statement may fill?
    own: bool,
}

impl Error {
    /// The server's own error of this number.
    pub fn of_code(code: u16) -> Error {
        let known = errors::by_code(code);
        Error {
            code,
            sqlstate: known.map_or("HY000", |e| e.sqlstate).into(),
            message: known.map_or("injected error", |e| e.message).into(),
            own: true,
        }
    }

    /// The same error about a statement in this database, if its message names the table.
    pub fn about(&self, unit: &Unit, database: &str) -> Option<Error> {
        if !self.own || !matches!(self.code, 1114 | 1146) {
            return None;
        }
        let table = unit.tables().first()?;
        let message = match self.code {
            1114 => format!("The table '{}' is full", table.name),
            _ => {
                let schema = table.schema.as_deref().unwrap_or(database);
                format!("Table '{schema}.{}' doesn't exist", table.name)
            }
        };
        Some(Error {
            message,
            ..self.clone()
        })
    }
}

/// What is known about the session that a request comes on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The account's name.
    pub user: String,
    /// The default database; empty if none.
    pub database: String,
}

impl Compiled {
    /// Does a statement match?
    pub fn matches(&self, id: u64, facts: &Facts, units: &Units) -> bool {
        self.admits(facts) && self.statements.matches(id, units)
    }

    /// Does a login match? Only if the rule asks for logins.
    pub fn matches_login(&self, facts: &Facts) -> bool {
        self.statements.verb() == Some(CONNECT) && self.admits(facts)
    }

    /// The first of these statements that the rule means.
    pub fn first<'a>(&self, units: &'a Units) -> Option<&'a Unit> {
        self.statements.first(units)
    }

    fn admits(&self, facts: &Facts) -> bool {
        let fits = |glob: &Option<Glob>, text: &str| glob.as_ref().is_none_or(|g| g.matches(text));
        fits(&self.database, &facts.database) && fits(&self.user, &facts.user)
    }
}

/// Makes a checked rule ready.
///
/// # Errors
/// What the tables cannot say: an unknown error, rows that are no dicts, a pattern of several statements.
pub fn compile(rule: &CheckedRule) -> Result<Compiled, ArgError> {
    let refuse = |arg: &'static str| move |e: String| ArgError::new(arg, format!("`{arg}`: {e}"));
    let glob = |arg: &'static str| {
        rule.text_of(arg)
            .map(|text| Glob::new(text, GlobDialect::Text).map_err(refuse(arg)))
            .transpose()
    };
    let unsigned = |arg: &str| {
        rule.int_of(arg)
            .and_then(|n| u64::try_from(n).ok())
            .unwrap_or_default()
    };
    let action = match rule.action.name {
        "error" => Action::Error(Arc::new(error(rule)?)),
        "response" => Action::Response(Arc::new(
            Rows::new(rule.get("rows")).map_err(refuse("rows"))?,
        )),
        "drop" => Action::Drop,
        "reset" => Action::Reset,
        "truncate" => Action::Truncate(unsigned("bytes")),
        "corrupt" => Action::Corrupt(unsigned("offset")),
        _ => Action::Engine,
    };
    let statements = Matcher::of(rule, Dialect::MYSQL, VERBS)?;
    if statements.verb() == Some(CONNECT) {
        check_login(rule)?;
    }
    Ok(Compiled {
        statements,
        database: glob("database")?,
        user: glob("user")?,
        action,
    })
}

/// A login is no statement: it has no text, and its answer no rows.
fn check_login(rule: &CheckedRule) -> Result<(), ArgError> {
    if let Some(arg) = ["query", "table"]
        .into_iter()
        .find(|a| rule.get(a).is_some())
    {
        return Err(ArgError::new(
            arg,
            format!("`{arg}`: a login (verb=\"CONNECT\") has no statement"),
        )
        .hint("match logins by user= and database="));
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

fn error(rule: &CheckedRule) -> Result<Error, ArgError> {
    let given = rule.text_of("code").unwrap_or("1105");
    let mut error = match (given.parse::<u32>(), errors::by_symbol(given)) {
        (Ok(code), _) => Error::of_code(in_range(code)?),
        (_, Some(known)) => Error::of_code(known.code),
        _ => return Err(unknown(given)),
    };
    if let Some(sqlstate) = rule.text_of("sqlstate") {
        let valid = sqlstate.len() == 5
            && sqlstate
                .bytes()
                .all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
        if !valid
            || ["00", "01", "02"]
                .iter()
                .any(|class| sqlstate.starts_with(class))
        {
            return Err(ArgError::new(
                "sqlstate",
                format!("`sqlstate`: \"{sqlstate}\" is not the SQLSTATE of an error"),
            )
            .hint(
                "five digits and capitals, e.g. \"40001\"; classes 00, 01 and 02 are no errors",
            ));
        }
        error.sqlstate = sqlstate.to_owned();
    }
    if let Some(message) = rule.text_of("message") {
        error.message = message.to_owned();
        error.own = false;
    }
    Ok(error)
}

/// Numbers below 1000 are the system's, those of 2000 to 2999 are made by client libraries, and 65535 is a report of progress.
fn in_range(code: u32) -> Result<u16, ArgError> {
    let refuse = |why: &str| ArgError::new("code", format!("`code`: {code} {why}"));
    match code {
        2000..3000 => Err(refuse(
            "is an error that clients make themselves, which no server sends",
        )
        .hint("a lost connection (2006, 2013) is drop() or reset()")),
        1000..65535 => Ok(code as u16),
        _ => Err(refuse("is no error of a server").hint("they are 1000 to 1999 and 3000 to 65534")),
    }
}

fn unknown(given: &str) -> ArgError {
    let symbols: Vec<&str> = errors::entries().iter().map(|e| e.symbol).collect();
    let error = ArgError::new(
        "code",
        format!("`code`: \"{given}\" is neither a number nor a known symbol"),
    );
    let known = if given.to_ascii_uppercase().starts_with("ER_") {
        nearest(given, &symbols)
    } else {
        nearest(&format!("ER_{given}"), &symbols)
    };
    match known {
        Some(best) => error.hint(format!("did you mean \"{best}\"?")),
        None => error.hint("a number (1213) or a symbol (\"ER_LOCK_DEADLOCK\"); the manuals, \"Server Error Message Reference\", list them"),
    }
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
        rule.matches(1, &Facts::default(), &Units::new(sql, Dialect::MYSQL))
    }

    fn refusal(action: &str, args: &[(&str, Arg)]) -> ArgError {
        compiled(action, args).map(|_| ()).unwrap_err()
    }

    fn error_of(args: &[(&str, Arg)]) -> (u16, String, String) {
        match compiled("error", args).unwrap().action {
            Action::Error(e) => (e.code, e.sqlstate.clone(), e.message.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn errors_are_the_servers_own() {
        let own =
            |code: u16, state: &str, message: &str| (code, state.to_owned(), message.to_owned());
        assert_eq!(error_of(&[]), own(1105, "HY000", "Unknown error"));
        let deadlock = own(
            1213,
            "40001",
            "Deadlock found when trying to get lock; try restarting transaction",
        );
        assert_eq!(error_of(&[("code", Arg::Int(1213))]), deadlock);
        assert_eq!(error_of(&[("code", text("ER_LOCK_DEADLOCK"))]), deadlock);
        assert_eq!(error_of(&[("code", text("lock_deadlock"))]), deadlock);
        assert_eq!(
            error_of(&[
                ("code", Arg::Int(45000)),
                ("sqlstate", text("45000")),
                ("message", text("no"))
            ]),
            own(45000, "45000", "no")
        );
    }

    #[test]
    fn the_servers_messages_name_the_table_of_the_statement() {
        let said = |code: i64, sql: &str| {
            let rule = compiled("error", &[("code", Arg::Int(code))]).unwrap();
            let Action::Error(error) = &rule.action else {
                panic!("{rule:?}")
            };
            let units = Units::new(sql, Dialect::MYSQL);
            let about = error.about(rule.first(&units).unwrap(), "shop");
            about.map_or(error.message.clone(), |e| e.message)
        };
        assert_eq!(
            said(1146, "SELECT * FROM orders"),
            "Table 'shop.orders' doesn't exist"
        );
        assert_eq!(
            said(1146, "SELECT * FROM other.orders"),
            "Table 'other.orders' doesn't exist"
        );
        assert_eq!(
            said(1114, "INSERT INTO shop.orders VALUES (1)"),
            "The table 'orders' is full"
        );
        assert_eq!(said(1146, "SELECT 1"), "Table '?.?' doesn't exist");
        assert_eq!(
            said(1005, "CREATE TABLE t (a INT)"),
            "Can't create table `?`.`?` (errno: ?)"
        );
        assert_eq!(
            said(1062, "INSERT INTO t VALUES (1)"),
            "Duplicate entry '?' for key '?'"
        );
        let own = compiled(
            "error",
            &[("code", Arg::Int(1146)), ("message", text("no"))],
        )
        .unwrap();
        let Action::Error(error) = &own.action else {
            panic!("{own:?}")
        };
        let units = Units::new("SELECT * FROM t", Dialect::MYSQL);
        assert_eq!(error.about(own.first(&units).unwrap(), "shop"), None);
    }

    #[test]
    fn matchers_go_together_on_one_unit() {
        let rule = compiled(
            "drop",
            &[("verb", text("insert")), ("table", text("Orders"))],
        )
        .unwrap();
        assert!(hits(&rule, "INSERT INTO `shop`.`orders` SELECT 1"));
        assert!(!hits(&rule, "SELECT * FROM orders"));
        assert!(!hits(
            &rule,
            "INSERT INTO items VALUES (1); DELETE FROM orders"
        ));
        let begin = compiled("delay", &[("verb", text("BEGIN")), ("delay", Arg::Int(1))]).unwrap();
        assert!(hits(&begin, "start transaction with consistent snapshot"));
        assert!(!hits(&begin, "START REPLICA"));
    }

    #[test]
    fn a_login_is_matched_only_by_rules_that_ask_for_it() {
        let facts = Facts {
            user: "app".into(),
            database: "shop".into(),
        };
        let login = compiled("error", &[("verb", text("connect")), ("user", text("a*"))]).unwrap();
        assert!(login.matches_login(&facts) && !hits(&login, "SELECT 1"));
        assert!(
            !compiled("error", &[("user", text("a*"))])
                .unwrap()
                .matches_login(&facts)
        );
        let e = refusal("response", &[("verb", text("CONNECT"))]);
        assert!(e.message.contains("does nothing to a login"), "{e}");
        let e = refusal("drop", &[("verb", text("CONNECT")), ("table", text("t"))]);
        assert!(e.message.contains("has no statement"), "{e}");
    }

    #[test]
    fn misuse_says_what_to_do() {
        let e = refusal("error", &[("code", text("ER_LOCK_DEADLOK"))]);
        assert!(e.hint.unwrap().contains("\"ER_LOCK_DEADLOCK\""));
        let e = refusal("error", &[("code", text("dup_enrty"))]);
        assert!(e.hint.unwrap().contains("\"ER_DUP_ENTRY\""));
        let e = refusal("error", &[("code", Arg::Int(2013))]);
        assert!(e.hint.unwrap().contains("drop()"));
        assert!(
            refusal("error", &[("code", Arg::Int(5))])
                .message
                .contains("no error of a server")
        );
        assert!(
            refusal("error", &[("sqlstate", text("00000"))])
                .message
                .contains("not the SQLSTATE")
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
    }
}
