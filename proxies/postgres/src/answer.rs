//! `response(rows=[…])`: rows that no server has sent.

use bytes::BytesMut;
use faultbox_contract::Arg;
use faultbox_sql::{Place, Unit, Units};
use serde_json::{Map, Value};

use crate::codec::{self, Column};
use crate::encode::{encode, oid};
use crate::rules::Error;

/// A statement, as far as what answers it goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    verb: Box<str>,
    name: Box<str>,
    /// Does it return rows? `None` where the text does not tell.
    returns: Option<bool>,
    /// Does it exchange COPY data with the client?
    pub copies: bool,
}

impl Command {
    /// Of a text of one statement: no other is answered by rows.
    pub fn of(units: &Units) -> Command {
        let mut units = units.iter();
        let Some(first) = units.next() else {
            return Command::default();
        };
        // Behind an EXECUTE stands what it runs.
        let first = match first.verb() {
            "EXECUTE" => units.next().unwrap_or(first),
            _ => first,
        };
        let returns = match first.verb() {
            "SELECT" => Some(!first.says("into")),
            "VALUES" | "TABLE" | "FETCH" | "SHOW" | "EXPLAIN" => Some(true),
            "INSERT" | "UPDATE" | "DELETE" | "MERGE" => Some(first.says("returning")),
            // What a procedure returns, and what was prepared out of sight, the server knows.
            "CALL" | "EXECUTE" => None,
            _ => Some(false),
        };
        Command {
            verb: first.verb().into(),
            name: name(first).into(),
            returns,
            copies: first.verb() == "COPY" && (first.says("stdin") || first.says("stdout")),
        }
    }
}

/// The command as the server calls it, in its tags and errors (`CreateCommandTag` in utility.c): "CREATE TABLE". Of a SELECT that moves a
/// sequence it is the function, which is what refuses.
pub fn name(unit: &Unit) -> String {
    let says = |words: &str| unit.canonical().starts_with(words);
    match unit.verb() {
        // It is planned, and named, with the statement around it.
        verb if let Place::Cte(around) = unit.place()
            && (verb, &**around) != ("SELECT", "SELECT") =>
        {
            around.to_string()
        }
        verb @ ("CREATE" | "ALTER" | "DROP" | "DISCARD" | "REFRESH") => object_command(verb, unit),
        "COPY" if unit.says("from") => "COPY FROM".into(),
        "COPY" => "COPY TO".into(),
        "SELECT" if unit.says("into") => "SELECT INTO".into(),
        "SELECT" | "VALUES" => {
            let strength = ["no key update", "update", "key share", "share"];
            let locks = |s: &&&str| unit.canonical().contains(&format!(" for {s}"));
            let calls = |f: &&&str| {
                let call = format!("{f} (");
                let text = format!(" {}", unit.canonical().replace('.', " "));
                text.contains(&format!(" {call}"))
            };
            match (
                strength.iter().find(locks),
                ["nextval", "setval"].iter().find(calls),
            ) {
                (Some(strength), _) => format!("SELECT FOR {}", strength.to_ascii_uppercase()),
                (None, Some(function)) => format!("{function}()"),
                (None, None) => "SELECT".into(),
            }
        }
        verb @ ("GRANT" | "REVOKE") if !unit.says("on") => format!("{verb} ROLE"),
        "TRUNCATE" => "TRUNCATE TABLE".into(),
        "LOCK" => "LOCK TABLE".into(),
        "DECLARE" => "DECLARE CURSOR".into(),
        "CLOSE" => "CLOSE CURSOR".into(),
        "REASSIGN" => "REASSIGN OWNED".into(),
        "SECURITY" => "SECURITY LABEL".into(),
        "IMPORT" => "IMPORT FOREIGN SCHEMA".into(),
        "PREPARE" if says("prepare transaction") => "PREPARE TRANSACTION".into(),
        verb @ ("COMMIT" | "ROLLBACK") if unit.says("prepared") => format!("{verb} PREPARED"),
        verb => verb.to_owned(),
    }
}

/// The name of a command that makes, changes or removes objects: their kind belongs to it.
fn object_command(verb: &str, unit: &Unit) -> String {
    let between = |word: &&str| {
        matches!(
            *word,
            "or" | "replace"
                | "unique"
                | "temp"
                | "temporary"
                | "unlogged"
                | "global"
                | "local"
                | "recursive"
                | "trusted"
                | "procedural"
                | "constraint"
        )
    };
    let words = unit.canonical().split(' ').skip(1);
    let mut words = words.skip_while(between);
    let first = words.next().unwrap_or_default();
    let second = words.next().unwrap_or_default();
    // Kinds of two words and more, and of two names.
    let kind = match (first, second) {
        ("materialized", _) => "materialized view".into(),
        ("default", _) => "default privileges".into(),
        ("table", _) if verb == "CREATE" && unit.says("as") => "table as".into(),
        ("user" | "group", other) if other != "mapping" => "role".into(),
        ("foreign" | "user" | "access" | "event", second) => format!("{first} {second}"),
        ("operator", "class" | "family") => format!("{first} {second}"),
        ("text", _) => format!("text search {}", words.next().unwrap_or_default()),
        _ => first.into(),
    };
    format!("{verb} {kind}").to_ascii_uppercase()
}

/// The rows of a rule.
#[derive(Debug)]
pub struct Rows {
    rows: Vec<Map<String, Value>>,
    /// The columns that the rows themselves suggest, text format: for the simple protocol.
    columns: Vec<Column>,
}

impl Rows {
    /// Reads `rows=`.
    ///
    /// # Errors
    /// Anything but a list of dicts.
    pub fn new(rows: Option<&Arg>) -> Result<Rows, String> {
        let list = match rows {
            None => vec![],
            Some(Arg::Json(Value::Array(list))) => list.clone(),
            Some(other) => {
                return Err(format!(
                    "expected a list of dicts, got {}",
                    other.type_name()
                ));
            }
        };
        let rows: Vec<_> = list
            .into_iter()
            .enumerate()
            .map(|(i, row)| match row {
                Value::Object(row) => Ok(row),
                _ => Err(format!("row {} is not a dict of column to value", i + 1)),
            })
            .collect::<Result<_, _>>()?;
        // The number of columns is a u16 in RowDescription; the server's own limit is lower (MaxTupleAttributeNumber).
        let mut columns: Vec<Column> = vec![];
        for name in rows.iter().flat_map(Map::keys) {
            if !columns.iter().any(|c| c.name == *name) {
                columns.push(Column {
                    oid: type_of(rows.iter().filter_map(|r| r.get(name))),
                    name: name.clone(),
                    format: 0,
                });
            }
        }
        if columns.len() > 1600 {
            return Err(format!(
                "{} columns; PostgreSQL has at most 1600",
                columns.len()
            ));
        }
        Ok(Rows { rows, columns })
    }

    /// The whole answer in the simple protocol, up to ReadyForQuery.
    pub fn simple(&self, command: &Command) -> BytesMut {
        let mut out = BytesMut::new();
        if command.returns.unwrap_or(!self.columns.is_empty()) {
            codec::put_row_description(&mut out, &self.columns);
            // Text of a type that was chosen for these very values always encodes.
            let _ = self.put_rows(&mut out, &self.columns);
        }
        codec::put_command_complete(&mut out, &self.tag(command));
        out
    }

    /// The answer to an Execute, in the columns and formats that the server has described; `None` if the statement returns no rows,
    /// or nobody has asked.
    pub fn extended(&self, command: &Command, columns: Option<&[Column]>) -> BytesMut {
        let mut out = BytesMut::new();
        if let Some(columns) = columns
            && let Err(e) = self.put_rows(&mut out, columns)
        {
            let mut out = BytesMut::new();
            let error = Error::new(
                "ERROR",
                "22P02",
                &e,
                None,
                Some("change rows= of the armed response() rule"),
            );
            out.extend_from_slice(&error.message);
            return out;
        }
        codec::put_command_complete(&mut out, &self.tag(command));
        out
    }

    fn tag(&self, command: &Command) -> String {
        match &*command.verb {
            "INSERT" => format!("INSERT 0 {}", self.rows.len()),
            verb @ ("UPDATE" | "DELETE" | "MERGE" | "COPY" | "FETCH" | "MOVE" | "SELECT") => {
                format!("{verb} {}", self.rows.len())
            }
            "" | "VALUES" | "TABLE" => format!("SELECT {}", self.rows.len()),
            _ if &*command.name == "CREATE TABLE AS" => format!("SELECT {}", self.rows.len()),
            _ => command.name.to_string(),
        }
    }

    fn put_rows(&self, out: &mut BytesMut, columns: &[Column]) -> Result<(), String> {
        if columns.is_empty() && self.columns.is_empty() {
            return Ok(());
        }
        for row in &self.rows {
            if let Some(odd) = row.keys().find(|k| !columns.iter().any(|c| c.name == **k)) {
                let names: Vec<_> = columns.iter().map(|c| c.name.as_str()).collect();
                return Err(format!(
                    "response() gives a column \"{odd}\" that the statement does not have: {}",
                    names.join(", ")
                ));
            }
            let values = columns
                .iter()
                .map(|c| match row.get(&c.name) {
                    None | Some(Value::Null) => Ok(None),
                    Some(value) => encode(value, c).map(Some),
                })
                .collect::<Result<Vec<_>, _>>()?;
            codec::put_data_row(out, &values);
        }
        Ok(())
    }
}

/// The type that holds all of these values.
fn type_of<'a>(values: impl Iterator<Item = &'a Value>) -> u32 {
    let mut found = None;
    for value in values {
        let this = match value {
            Value::Null => continue,
            Value::Bool(_) => oid::BOOL,
            Value::Number(n) if n.is_i64() => oid::INT8,
            Value::Number(n) if n.is_u64() => oid::NUMERIC,
            Value::Number(_) => oid::FLOAT8,
            Value::String(_) => oid::TEXT,
            Value::Array(_) | Value::Object(_) => oid::JSON,
        };
        found = Some(match found {
            None => this,
            Some(before) if before == this => this,
            Some(oid::INT8 | oid::FLOAT8) if matches!(this, oid::INT8 | oid::FLOAT8) => oid::FLOAT8,
            Some(_) => oid::TEXT,
        });
    }
    found.unwrap_or(oid::TEXT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rows(value: Value) -> Rows {
        Rows::new(Some(&Arg::Json(value))).unwrap()
    }

    fn command(sql: &str) -> Command {
        Command::of(&Units::new(sql, faultbox_sql::Dialect::Postgres))
    }

    #[test]
    fn columns_and_types_come_from_the_rows() {
        let rows = rows(
            json!([{"id": 1, "n": 1}, {"id": 2, "n": 0.5, "t": "x"}, {"m": 1, "t": null}, {"m": "s"}]),
        );
        let types: Vec<_> = rows
            .columns
            .iter()
            .map(|c| (c.name.as_str(), c.oid))
            .collect();
        assert_eq!(
            types,
            [
                ("id", oid::INT8),
                ("n", oid::FLOAT8),
                ("t", oid::TEXT),
                ("m", oid::TEXT)
            ]
        );
        let out = rows.simple(&command("SELECT 1"));
        assert!(out.ends_with(b"C\0\0\0\x0dSELECT 4\0"));
        assert_eq!(out[0], b'T');
    }

    #[test]
    fn statements_without_rows_have_their_tag_only() {
        for (sql, tag) in [
            ("INSERT INTO t VALUES (1)", "INSERT 0 2"),
            ("UPDATE t SET a = (SELECT 1)", "UPDATE 2"),
            ("SELECT a INTO u FROM t", "SELECT 2"),
            ("COPY t FROM '/tmp/x'", "COPY 2"),
            ("CREATE UNIQUE INDEX i ON t (a)", "CREATE INDEX"),
            ("CREATE TABLE t AS SELECT 1", "SELECT 2"),
            ("CREATE TABLE t (a int)", "CREATE TABLE"),
            ("CREATE USER u", "CREATE ROLE"),
            ("CREATE USER MAPPING FOR u SERVER s", "CREATE USER MAPPING"),
            (
                "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO u",
                "ALTER DEFAULT PRIVILEGES",
            ),
            ("GRANT a TO b", "GRANT ROLE"),
            ("GRANT SELECT ON a TO b", "GRANT"),
            (
                "CREATE OR REPLACE FUNCTION f() RETURNS int",
                "CREATE FUNCTION",
            ),
            ("DROP MATERIALIZED VIEW v", "DROP MATERIALIZED VIEW"),
            ("TRUNCATE t", "TRUNCATE TABLE"),
            ("START TRANSACTION", "BEGIN"),
        ] {
            let two = rows(json!([{"id": 1}, {"id": 2}]));
            let expected = [
                b"C".as_slice(),
                &(tag.len() as u32 + 5).to_be_bytes(),
                tag.as_bytes(),
                b"\0",
            ]
            .concat();
            assert_eq!(two.simple(&command(sql)), expected, "{sql}");
            assert_eq!(two.extended(&command(sql), None), expected, "{sql}");
        }
    }

    #[test]
    fn statements_that_return_rows_describe_them_though_there_are_none() {
        for (sql, tag) in [
            ("SELECT 1", "SELECT 0"),
            ("(SELECT 1) UNION SELECT 2", "SELECT 0"),
            ("VALUES (1)", "SELECT 0"),
            ("TABLE t", "SELECT 0"),
            ("WITH x AS (SELECT 1) SELECT * FROM x", "SELECT 0"),
            ("INSERT INTO t VALUES (1) RETURNING id", "INSERT 0 0"),
            ("DELETE FROM t RETURNING *", "DELETE 0"),
            ("FETCH ALL FROM c", "FETCH 0"),
            ("SHOW server_version", "SHOW"),
            ("EXPLAIN DELETE FROM t", "EXPLAIN"),
        ] {
            let out = rows(json!([])).simple(&command(sql));
            assert!(out.starts_with(b"T\0\0\0\x06\0\0C"), "{sql}");
            assert!(out.ends_with(format!("{tag}\0").as_bytes()), "{sql}");
        }
        // A RETURNING within is not the statement's.
        let within = command("WITH x AS (DELETE FROM t RETURNING id) UPDATE u SET a = 1");
        assert!(rows(json!([])).simple(&within).starts_with(b"C"));
        // Of a procedure only the rows can tell.
        assert!(
            rows(json!([]))
                .simple(&command("CALL p()"))
                .starts_with(b"C")
        );
        let out = rows(json!([{"a": 1}])).simple(&command("CALL p()"));
        assert!(out.starts_with(b"T") && out.ends_with(b"CALL\0"));
    }

    #[test]
    fn what_does_not_fit_is_an_error_to_the_client() {
        let column = |name: &str, oid: u32| Column {
            name: name.into(),
            oid,
            format: 1,
        };
        for columns in [[column("other", oid::INT8)], [column("id", oid::DATE)]] {
            let out = rows(json!([{"id": 1}])).extended(&command("SELECT 1"), Some(&columns));
            assert_eq!(out[0], b'E');
        }
    }
}
