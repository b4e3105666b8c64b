//! Where a statement names its tables, by its tokens alone: for statements that the parser does not know, for patterns, and for
//! dropping schemas.

use std::ops::Range;

use super::Dialect;
use super::lex::{Kind, Token};

/// What introduces a name, which decides what a parenthesis after it means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Intro {
    /// FROM, JOIN, USING: `name(` is a function.
    Source,
    /// INTO, UPDATE, TABLE, COPY …: `name(` is a table with its columns.
    Target,
}

/// One level of parentheses.
#[derive(Clone, Copy)]
struct Level {
    /// Does a FROM here belong to a query (and not to `extract(year FROM t)`)?
    query: bool,
    /// Does a comma here go on to another table?
    list: Option<Intro>,
}

/// The names of tables among `tokens`: the tokens of each, points included.
pub fn relations(tokens: &[Token], dialect: Dialect) -> Vec<Range<usize>> {
    let mysql = dialect.is_mysql();
    let word = |i: usize| tokens.get(i).and_then(Token::word);
    let mut found = vec![];
    let mut levels = vec![];
    let mut level = Level {
        query: true,
        list: None,
    };
    let mut expect: Option<Intro> = None;
    let mut i = 0;
    while i < tokens.len() {
        let token = &tokens[i];
        if token.is("(") {
            levels.push(level);
            let query = matches!(
                word(i + 1),
                Some(
                    "select"
                        | "with"
                        | "values"
                        | "insert"
                        | "update"
                        | "delete"
                        | "merge"
                        | "table"
                )
            ) || tokens.get(i + 1).is_some_and(|t| t.is("(")) && level.query;
            // FROM (a JOIN b …): still names of tables.
            let joined = expect == Some(Intro::Source) && !query && !is_using_columns(tokens, i);
            level = Level {
                query: query || joined,
                list: joined.then_some(Intro::Source),
            };
            if !joined {
                expect = None;
            }
        } else if token.is(")") {
            level = levels.pop().unwrap_or(Level {
                query: true,
                list: None,
            });
            expect = None;
        } else if token.is(",") {
            expect = level.list;
        } else if let Some(name) = token.word() {
            if let Some(intro) = expect {
                if matches!(
                    name,
                    "only"
                        | "lateral"
                        | "if"
                        | "not"
                        | "exists"
                        | "table"
                        | "concurrently"
                        | "temp"
                        | "temporary"
                        | "unlogged"
                        | "rows"
                ) || mysql && is_modifier(name)
                {
                    i += 1;
                    continue;
                }
                let end = name_end(tokens, i);
                let function = intro == Intro::Source && tokens.get(end).is_some_and(|t| t.is("("));
                let none = match name {
                    "select" | "values" | "stdin" | "stdout" => true,
                    "dual" | "outfile" | "dumpfile" => mysql,
                    _ => false,
                };
                if !function && !none {
                    found.push(i..end);
                }
                expect = None;
                i = end;
                continue;
            }
            if level.query {
                expect = introduces(tokens, i, name)
                    .or_else(|| introduces_in_mysql(tokens, i, name).filter(|_| mysql));
                if let Some(intro) = expect {
                    // These take one table; the others, and UPDATE in MySQL, may go on after a comma.
                    let one = matches!(
                        name,
                        "into" | "copy" | "insert" | "replace" | "on" | "handler"
                    ) || name == "update" && !mysql;
                    level.list = (!one).then_some(intro);
                } else if ends_list(name) {
                    level.list = None;
                }
            }
        } else {
            expect = None;
        }
        i += 1;
    }
    found
}

/// The schema part of each table's name, its last point included.
pub fn qualifiers(tokens: &[Token], dialect: Dialect) -> Vec<Range<usize>> {
    relations(tokens, dialect)
        .into_iter()
        .filter(|name| name.len() > 1)
        .map(|name| name.start..name.end - 1)
        .collect()
}

/// Does this word introduce the name of a table, here?
fn introduces(tokens: &[Token], i: usize, name: &str) -> Option<Intro> {
    let before = i.checked_sub(1).and_then(|j| tokens[j].word());
    let opens = i == 0
        || tokens[i - 1].is("(")
        || matches!(before, Some("explain" | "analyze" | "verbose" | "as"));
    let yes = |holds: bool, intro| holds.then_some(intro);
    match name {
        // IS [NOT] DISTINCT FROM compares.
        "from" => yes(before != Some("distinct"), Intro::Source),
        // Not MySQL's USE INDEX FOR JOIN.
        "join" => yes(before != Some("for"), Intro::Source),
        "using" => yes(!is_using_columns(tokens, i + 1), Intro::Source),
        "into" => Some(Intro::Target),
        // Not FOR UPDATE, DO UPDATE, ON UPDATE.
        "update" => yes(
            !matches!(
                before,
                Some("for" | "key" | "do" | "on" | "then" | "or" | "before" | "after" | "of")
            ),
            Intro::Target,
        ),
        "table" => yes(opens || before.is_some(), Intro::Target),
        "truncate" | "lock" | "copy" | "vacuum" | "refresh" => yes(opens, Intro::Target),
        _ => None,
    }
}

/// Does this word stand between a command of MySQL's and its table?
fn is_modifier(name: &str) -> bool {
    matches!(
        name,
        "into" | "ignore" | "low_priority" | "high_priority" | "delayed" | "quick" | "tables"
    )
}

/// What introduces the name of a table in MySQL besides.
fn introduces_in_mysql(tokens: &[Token], i: usize, name: &str) -> Option<Intro> {
    let word = |i: usize| tokens.get(i).and_then(Token::word);
    let before = |wanted: &str| tokens[..i].iter().any(|t| t.word() == Some(wanted));
    // Not the functions of these names.
    let command = i == 0 || word(i - 1) == Some("explain");
    match name {
        "straight_join" => Some(Intro::Source),
        "insert" | "replace" if command || tokens[i - 1].is("(") => tokens
            .get(i + 1)
            .is_some_and(|t| !t.is("("))
            .then_some(Intro::Target),
        "handler" if i == 0 => Some(Intro::Target),
        "describe" | "desc" | "explain" if i == 0 => {
            let statement = matches!(
                word(1)?,
                "select"
                    | "insert"
                    | "update"
                    | "delete"
                    | "replace"
                    | "with"
                    | "table"
                    | "extended"
                    | "partitions"
                    | "format"
                    | "analyze"
                    | "for"
            );
            (!statement).then_some(Intro::Target)
        }
        "to" if word(0) == Some("rename") => Some(Intro::Target),
        "on" if matches!(word(0), Some("create" | "drop")) && before("index") => {
            Some(Intro::Target)
        }
        _ => None,
    }
}

/// Is the parenthesis at `i` the columns of JOIN … USING (a, b)?
fn is_using_columns(tokens: &[Token], i: usize) -> bool {
    tokens.get(i).is_some_and(|t| t.is("("))
        && i > 0
        && tokens[i - 1].word() == Some("using")
        && !matches!(
            tokens.get(i + 1).and_then(Token::word),
            Some("select" | "values" | "with" | "table")
        )
}

/// Does this word end a list of tables?
fn ends_list(name: &str) -> bool {
    matches!(
        name,
        "where"
            | "group"
            | "having"
            | "order"
            | "limit"
            | "offset"
            | "window"
            | "union"
            | "intersect"
            | "except"
            | "returning"
            | "set"
            | "fetch"
            | "for"
            | "select"
            | "values"
            | "when"
            | "with"
            | "in"
    )
}

/// Where the name that begins at `start` ends: `a`, `a.b`, `a.b.c`.
fn name_end(tokens: &[Token], start: usize) -> usize {
    let mut end = start + 1;
    while tokens.get(end).is_some_and(|t| t.is("."))
        && tokens.get(end + 1).is_some_and(|t| t.kind == Kind::Word)
    {
        end += 2;
    }
    end
}
