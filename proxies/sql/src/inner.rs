//! Statements within statements: what an EXPLAIN ANALYZE, a cursor or a COPY runs, and what stands in parentheses.

use std::ops::Range;

use super::lex::Token;
use super::{Dialect, closing};

/// What a statement runs whose answer is not its own: `EXPLAIN ANALYZE …`, `DECLARE c CURSOR FOR …`, `COPY (…) TO …`.
pub fn ran(tokens: &[Token], dialect: Dialect) -> Option<Range<usize>> {
    let word = |i: usize| tokens.get(i).and_then(Token::word);
    let to_end = |at: usize| (at < tokens.len()).then_some(at..tokens.len());
    match word(0)? {
        "declare" if !dialect.is_mysql() => {
            // The name may be a word like any other: `DECLARE for CURSOR FOR …` is refused by the server.
            let cursor = tokens.iter().position(|t| t.word() == Some("cursor"))?;
            let query = (cursor..tokens.len()).find(|&i| word(i) == Some("for"))?;
            to_end(query + 1)
        }
        "copy" if !dialect.is_mysql() && tokens.get(1)?.is("(") => Some(2..closing(tokens, 1)?),
        _ => analyzed(tokens, dialect).and_then(to_end),
    }
}

/// Where the statement begins that an EXPLAIN runs; without ANALYZE none does.
pub fn analyzed(tokens: &[Token], dialect: Dialect) -> Option<usize> {
    let word = |i: usize| tokens.get(i).and_then(Token::word);
    let analyze = |w: Option<&str>| matches!(w, Some("analyze" | "analyse"));
    if dialect.is_mysql() {
        // MariaDB's own ANALYZE is one of a statement unless it is one of tables.
        let head = match word(0)? {
            "explain" | "describe" | "desc" if analyze(word(1)) => 2,
            "analyze" => 1,
            _ => return None,
        };
        let starts = |i: &usize| {
            tokens[*i].is("(")
                || matches!(
                    word(*i),
                    Some("select" | "insert" | "replace" | "update" | "delete" | "with" | "values")
                )
        };
        // FORMAT=JSON, INTO @plan, FOR DATABASE shop.
        let option = matches!(
            word(head),
            Some("format" | "extended" | "partitions" | "into" | "for")
        );
        return match option {
            true => (head..tokens.len()).find(starts),
            false => Some(head).filter(|at| *at < tokens.len() && starts(at)),
        };
    }
    if word(0) != Some("explain") {
        return None;
    }
    if tokens.get(1)?.is("(") && !matches!(word(2), Some("select" | "with" | "values" | "table")) {
        let close = closing(tokens, 1)?;
        // `ANALYZE off` and its like are no ANALYZE.
        let at = (2..close).find(|&i| analyze(word(i)))?;
        let value = tokens.get(at + 1).map(|t| t.text.to_ascii_lowercase());
        let off = matches!(
            value.as_deref(),
            Some("off" | "false" | "0" | "'off'" | "'false'")
        );
        return (!off).then_some(close + 1);
    }
    let options = (1..).take_while(|i| analyze(word(*i)) || word(*i) == Some("verbose"));
    let end = 1 + options.count();
    (1..end).any(|i| analyze(word(i))).then_some(end)
}

/// The statements in parentheses that a statement which begins with one is made of: `(SELECT …)`, `(SELECT …) UNION (SELECT …)`.
pub fn parenthesised(tokens: &[Token]) -> Vec<Range<usize>> {
    let mut found = vec![];
    let mut at = 0;
    while tokens.get(at).is_some_and(|t| t.is("(")) {
        let Some(close) = closing(tokens, at) else {
            break;
        };
        found.push(at + 1..close);
        at = close + 1;
        while matches!(
            tokens.get(at).and_then(Token::word),
            Some("union" | "except" | "intersect" | "minus" | "all" | "distinct")
        ) {
            at += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use crate::{Dialect, Units};

    fn check(dialect: Dialect, sql: &str, expected: &[&str]) {
        let units = Units::new(sql, dialect);
        let all: Vec<_> = units.iter().map(|u| u.canonical()).collect();
        assert_eq!(all[1..], *expected, "{sql}");
    }

    #[test]
    fn what_is_run_within_is_a_unit() {
        let pg = |sql: &str, expected: &[&str]| check(Dialect::Postgres, sql, expected);
        pg(
            "DECLARE c NO SCROLL CURSOR WITH HOLD FOR SELECT a FROM t",
            &["select a from t"],
        );
        pg(
            "DECLARE \"c\" CURSOR FOR (SELECT 1)",
            &["( select 1 )", "select 1"],
        );
        pg(
            "EXPLAIN ANALYZE INSERT INTO t VALUES (1)",
            &["insert into t values ( 1 )"],
        );
        pg("explain analyse verbose DELETE FROM t", &["delete from t"]);
        pg("EXPLAIN (COSTS off, ANALYZE) SELECT 1", &["select 1"]);
        pg("EXPLAIN (ANALYZE false) SELECT 1", &[]);
        pg("EXPLAIN (VERBOSE) SELECT 1", &[]);
        pg("EXPLAIN SELECT analyze FROM t", &[]);
        pg("EXPLAIN (SELECT analyze FROM t)", &[]);
        pg("ANALYZE t", &[]);
        pg("COPY (SELECT a FROM t) TO STDOUT", &["select a from t"]);
        pg("COPY t (a) FROM STDIN", &[]);
        pg(
            "(SELECT 1) UNION ALL (SELECT 2) ORDER BY 1",
            &["select 1", "select 2"],
        );
        pg("((SELECT 1))", &["( select 1 )", "select 1"]);
        pg(
            "EXPLAIN ANALYZE WITH x AS (DELETE FROM t RETURNING a) SELECT a FROM x",
            &[
                "with x as ( delete from t returning a ) select a from x",
                "delete from t returning a",
                "select a from x",
            ],
        );
        let my = |sql: &str, expected: &[&str]| check(Dialect::MYSQL, sql, expected);
        my("EXPLAIN ANALYZE SELECT 1", &["select 1"]);
        my("DESC ANALYZE FORMAT=TREE SELECT 1", &["select 1"]);
        my(
            "ANALYZE FORMAT=JSON UPDATE t SET a = 1",
            &["update t set a = 1"],
        );
        my("ANALYZE TABLE t", &[]);
        my("ANALYZE NO_WRITE_TO_BINLOG TABLE t", &[]);
        my("EXPLAIN SELECT 1", &[]);
        my("(SELECT 1) LIMIT 1", &["select 1"]);
        my(
            "SET STATEMENT max_statement_time=1 FOR (SELECT 1)",
            &["( select 1 )", "select 1"],
        );
    }

    #[test]
    fn broken_texts_have_no_parts() {
        for sql in [
            "(",
            "(SELECT 1",
            "EXPLAIN ANALYZE",
            "EXPLAIN (ANALYZE",
            "DECLARE c CURSOR FOR",
            "COPY (",
            "EXPLAIN",
        ] {
            check(Dialect::Postgres, sql, &[]);
            check(Dialect::MYSQL, sql, &[]);
        }
    }
}
