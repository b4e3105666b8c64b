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
    // Where privileges are, UPDATE and FROM are other things.
    if let Some("grant" | "revoke") = word(0) {
        return granted(tokens);
    }
    if let (false, Some(at)) = (mysql, maintained(tokens)) {
        (i, expect, level.list) = (at, Some(Intro::Target), Some(Intro::Target));
    }
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
            if name == "like" && copies_definition(tokens, i, levels.len()) {
                expect = Some(Intro::Target);
            } else if level.query {
                expect = introduces(tokens, i, name)
                    .or_else(|| introduces_in_mysql(tokens, i, name).filter(|_| mysql));
                if let Some(intro) = expect {
                    // These take one table; the others, and UPDATE in MySQL, may go on after a comma.
                    let one = matches!(
                        name,
                        "into" | "copy" | "view" | "insert" | "replace" | "on" | "handler"
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
        // CLUSTER t USING i names an index.
        "using" => yes(
            !is_using_columns(tokens, i + 1) && tokens[0].word() != Some("cluster"),
            Intro::Source,
        ),
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
        "truncate" | "lock" | "copy" => yes(opens, Intro::Target),
        "view" => yes(tokens[0].word() == Some("refresh"), Intro::Target),
        "on" => yes(is_of_table(&tokens[..i]), Intro::Target),
        _ => None,
    }
}

/// Do these words begin the definition of what belongs to a table, which an ON names next?
fn is_of_table(before: &[Token]) -> bool {
    let mut words = before.iter().map_while(Token::word);
    let begins = matches!(words.next(), Some("create" | "drop" | "alter"));
    let is_modifier = |w: &&str| matches!(*w, "or" | "replace" | "unique" | "constraint");
    let kind = words.find(|w| !is_modifier(w));
    // Of an event trigger it is an event, of a rule's definition a command.
    let kinds = ["index", "trigger", "policy"];
    begins
        && (kind.is_some_and(|k| kinds.contains(&k))
            || kind == Some("rule") && before[0].word() != Some("create"))
        && !before.iter().any(|t| t.word() == Some("on"))
}

/// Where the tables of VACUUM, ANALYZE and CLUSTER begin, behind their options.
fn maintained(tokens: &[Token]) -> Option<usize> {
    let word = |i: usize| tokens.get(i).and_then(Token::word);
    let command = word(0).filter(|w| matches!(*w, "vacuum" | "analyze" | "cluster"))?;
    let mut at = match tokens.get(1)?.is("(") {
        true => tokens.iter().position(|t| t.is(")"))? + 1,
        false => 1,
    };
    while let Some("full" | "freeze" | "verbose" | "analyze") = word(at) {
        at += 1;
    }
    // An index of a table, as it was written before PostgreSQL 8.4.
    let on = name_end(tokens, at.min(tokens.len()));
    match (command, word(on)) {
        ("cluster", Some("on")) => Some(on + 1),
        _ => Some(at),
    }
}

/// The tables of GRANT … ON and REVOKE … ON; of another kind of object none.
fn granted(tokens: &[Token]) -> Vec<Range<usize>> {
    let word = |i: usize| tokens.get(i).and_then(Token::word);
    let mut found = vec![];
    let Some(on) = tokens.iter().position(|t| t.word() == Some("on")) else {
        return found;
    };
    let mut at = match word(on + 1) {
        Some("table") => on + 2,
        Some(
            "all" | "database" | "domain" | "foreign" | "function" | "language" | "large"
            | "parameter" | "procedure" | "routine" | "schema" | "sequence" | "tablespace" | "type"
            | "package",
        ) => return found,
        _ => on + 1,
    };
    while word(at).is_some_and(|w| !matches!(w, "to" | "from")) {
        let end = name_end(tokens, at);
        // MySQL's `shop.*` is a database.
        if !tokens.get(end).is_some_and(|t| t.is(".")) {
            found.push(at..end);
        }
        if !tokens.get(end).is_some_and(|t| t.is(",")) {
            break;
        }
        at = end + 1;
    }
    found
}

/// Is the LIKE at `i`, within so many parentheses, that of CREATE TABLE x (LIKE t)? MySQL's may do without the parentheses.
fn copies_definition(tokens: &[Token], i: usize, depth: usize) -> bool {
    let creates = tokens[0].word() == Some("create");
    let is_table = |t: &Token| t.word() == Some("table");
    let Some(table) = tokens[..i].iter().take(4).position(is_table) else {
        return false;
    };
    let mut name = table + 1;
    while tokens
        .get(name)
        .is_some_and(|t| matches!(t.word(), Some("if" | "not" | "exists")))
    {
        name += 1;
    }
    let begins = || name_end(tokens, name) == i;
    let within = || depth == 1 && (tokens[i - 1].is("(") || tokens[i - 1].is(","));
    creates && (depth == 0 && begins() || within())
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
        "tables" if word(0) == Some("flush") => {
            // FLUSH TABLES WITH READ LOCK, FLUSH TABLES FOR EXPORT.
            let some = !matches!(word(i + 1), None | Some("with" | "for"));
            some.then_some(Intro::Target)
        }
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
