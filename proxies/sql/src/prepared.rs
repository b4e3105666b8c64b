//! SQL's own PREPARE, EXECUTE and DEALLOCATE: what is run by a name.

use super::lex::{self, Kind, Token};
use super::tables::unquote;
use super::{Dialect, closing, defines_routine, inner};

/// What a statement does with prepared statements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// Gives this text a name; `None` where it is not in the statement but in a variable.
    Prepare(String, Option<String>),
    /// Runs what has this name.
    Execute(String),
    /// Runs this text (MariaDB's EXECUTE IMMEDIATE).
    Run(String),
    /// Forgets what has this name.
    Deallocate(String),
    /// Forgets all names.
    DeallocateAll,
}

/// Does a text begin with a command that [`named`] knows? By its first bytes, without reading it.
pub fn begins_named(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    let word = |w: &[u8]| {
        text.get(..w.len())
            .is_some_and(|t| t.eq_ignore_ascii_case(w))
    };
    match text.first() {
        Some(b'p' | b'P') => word(b"prepare"),
        Some(b'e' | b'E') => word(b"execute") || word(b"explain"),
        Some(b'd' | b'D') => word(b"deallocate") || word(b"discard") || word(b"drop"),
        _ => false,
    }
}

/// What the statements of a text do with prepared ones, in order.
pub fn named(text: &str, dialect: Dialect) -> Vec<Named> {
    let tokens = lex::tokens(text, dialect);
    if dialect.is_mysql() && defines_routine(&tokens) {
        return vec![];
    }
    tokens
        .split(|t| t.is(";"))
        .filter_map(|tokens| one(text, tokens, dialect))
        .collect()
}

fn one(text: &str, tokens: &[Token], dialect: Dialect) -> Option<Named> {
    let word = |i: usize| tokens.get(i).and_then(Token::word);
    let name = |i: usize| word(i).map(unquote);
    let literal = |i: usize| match &tokens[i.min(tokens.len())..] {
        [only] if only.kind == Kind::Literal => unescaped(&only.text, dialect),
        _ => None,
    };
    match word(0)? {
        "prepare" => {
            let body = body(tokens, dialect)?;
            let prepared = match dialect {
                Dialect::Postgres => {
                    let (first, last) = (tokens.get(body)?, tokens.last()?);
                    Some(text[first.at.start..last.at.end].to_owned())
                }
                Dialect::MySql(_) => literal(body),
            };
            Some(Named::Prepare(name(1)?, prepared))
        }
        "execute" if dialect.is_mysql() && word(1) == Some("immediate") => {
            literal(2).map(Named::Run)
        }
        "execute" => name(1).map(Named::Execute),
        // Without ANALYZE nothing runs.
        "explain" => {
            let at = inner::analyzed(tokens, dialect)?;
            (word(at) == Some("execute"))
                .then(|| name(at + 1))
                .flatten()
                .map(Named::Execute)
        }
        "discard" => (word(1) == Some("all")).then_some(Named::DeallocateAll),
        first @ ("deallocate" | "drop") => {
            let at = match (first, word(1)) {
                (_, Some("prepare")) => 2,
                ("deallocate", _) => 1,
                _ => return None,
            };
            match word(at) {
                Some("all") if !dialect.is_mysql() => Some(Named::DeallocateAll),
                _ => name(at).map(Named::Deallocate),
            }
        }
        _ => None,
    }
}

/// Where what a PREPARE gives a name to begins: PREPARE itself does not run it.
pub fn body(tokens: &[Token], dialect: Dialect) -> Option<usize> {
    let word = |i: usize| tokens.get(i).and_then(Token::word);
    if word(0) != Some("prepare") {
        return None;
    }
    // PREPARE TRANSACTION 'x' has no AS.
    let at = match tokens.get(2)?.is("(") {
        true => closing(tokens, 2)? + 1,
        false => 2,
    };
    let before = if dialect.is_mysql() { "from" } else { "as" };
    (word(at) == Some(before)).then_some(at + 1)
}

/// What a string of MySQL's holds.
fn unescaped(literal: &str, dialect: Dialect) -> Option<String> {
    let Dialect::MySql(modes) = dialect else {
        return None;
    };
    let quote = literal.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let inside = literal[1..].strip_suffix(quote)?;
    let mut out = String::new();
    let mut chars = inside.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if !modes.no_backslash_escapes => out.push(match chars.next()? {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                '0' => '\0',
                other => other,
            }),
            c if c == quote => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cache, Sql, Units};
    use std::sync::Arc;

    #[test]
    fn names_are_given_run_and_forgotten() {
        let check = |dialect, sql: &str, expected: &[Named]| {
            assert_eq!(named(sql, dialect), expected, "{sql}");
            assert!(begins_named(sql.as_bytes()), "{sql}");
        };
        let prepare = |n: &str, t: &str| Named::Prepare(n.into(), Some(t.into()));
        let execute = |n: &str| Named::Execute(n.into());
        let pg = |sql: &str, expected: &[Named]| check(Dialect::Postgres, sql, expected);
        pg(
            "prepare P (int, text) AS INSERT INTO orders VALUES ($1, 'x;y'); EXECUTE p (1, 'a')",
            &[
                prepare("p", "INSERT INTO orders VALUES ($1, 'x;y')"),
                execute("p"),
            ],
        );
        pg("PREPARE \"A b\" AS SELECT 1", &[prepare("A b", "SELECT 1")]);
        pg("PREPARE TRANSACTION 'x'", &[]);
        pg("EXPLAIN ANALYZE VERBOSE EXECUTE p(1)", &[execute("p")]);
        pg("EXPLAIN (ANALYZE, BUFFERS) EXECUTE p", &[execute("p")]);
        pg("EXPLAIN EXECUTE p", &[]);
        pg("DEALLOCATE PREPARE p", &[Named::Deallocate("p".into())]);
        pg("deallocate all", &[Named::DeallocateAll]);
        pg("DISCARD ALL", &[Named::DeallocateAll]);
        pg("DROP TABLE p", &[]);
        let my = |sql: &str, expected: &[Named]| check(Dialect::MYSQL, sql, expected);
        my(
            r"PREPARE p FROM 'INSERT INTO t VALUES (''a'', \'b\', ?)'",
            &[prepare("p", "INSERT INTO t VALUES ('a', 'b', ?)")],
        );
        my("PREPARE p FROM @sql", &[Named::Prepare("p".into(), None)]);
        my("EXECUTE p USING @a, @b", &[execute("p")]);
        my(
            "EXECUTE IMMEDIATE \"DELETE FROM t\"",
            &[Named::Run("DELETE FROM t".into())],
        );
        my("DROP PREPARE p", &[Named::Deallocate("p".into())]);
    }

    #[test]
    fn a_prepare_shows_its_name_and_no_more() {
        for (dialect, sql, canonical) in [
            (
                Dialect::Postgres,
                "PREPARE p (int) AS INSERT INTO orders VALUES ($1)",
                "prepare p ( int ) as",
            ),
            (
                Dialect::MYSQL,
                "PREPARE p FROM 'INSERT INTO orders VALUES (?)'",
                "prepare p from",
            ),
        ] {
            let units = Units::new(sql, dialect);
            let all: Vec<_> = units.iter().collect();
            assert_eq!(all.len(), 1);
            assert_eq!((all[0].verb(), all[0].canonical()), ("PREPARE", canonical));
            assert!(all[0].tables().is_empty());
        }
    }

    #[test]
    fn what_is_run_is_matched_with_what_runs_it() {
        let sql = |text: &str| Sql::new(text.as_bytes(), Dialect::Postgres);
        let prepared = Arc::new(sql("INSERT INTO orders VALUES ($1)"));
        let cache = Cache::default();
        let execute = sql("EXECUTE p (1)").running(vec![prepared]);
        let verbs: Vec<_> = execute.units(&cache).iter().map(|u| u.verb()).collect();
        assert_eq!(verbs, ["EXECUTE", "INSERT"]);
        // The same text means what the name means in another session.
        assert_eq!(sql("EXECUTE p (1)").units(&cache).iter().count(), 1);
    }
}
