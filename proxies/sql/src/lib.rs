//! SQL matching: which statements a rule's `query=`, `table=` and `verb=` mean.
//!
//! A text is cut into statements, and a statement with CTEs, or with another one inside, into its parts; a rule matches when all its
//! matchers match one of these [units](Unit). What a unit is compared by is worked out when a rule first asks, and kept: see [`Sql`].

mod inner;
mod lex;
mod matcher;
mod pattern;
mod prepared;
mod relations;
mod session;
mod tables;
mod work;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use lex::{Kind, Token};
pub use matcher::{Matcher, event_fields, unanswerable};
pub use pattern::Pattern;
pub use prepared::{Named, begins_named, named};
pub use session::leaves_session_alone;
pub use tables::Table;
pub use work::{Statement, Work};

/// Whose SQL it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// PostgreSQL.
    Postgres,
    /// MySQL and MariaDB, in these modes.
    MySql(Modes),
}

impl Dialect {
    /// MySQL as it is without any mode set.
    pub const MYSQL: Dialect = Dialect::MySql(Modes {
        ansi_quotes: false,
        no_backslash_escapes: false,
    });

    fn is_mysql(self) -> bool {
        matches!(self, Dialect::MySql(_))
    }
}

/// The members of MySQL's `sql_mode` that decide where tokens begin and end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Modes {
    /// ANSI_QUOTES: text in double quotes is a name, not a string.
    pub ansi_quotes: bool,
    /// NO_BACKSLASH_ESCAPES: a backslash is a character like any other.
    pub no_backslash_escapes: bool,
}

/// How deep statements within statements are followed.
const DEPTH: usize = 16;

/// The text of a request, with what has been found out about it.
#[derive(Debug)]
pub struct Sql {
    text: Box<[u8]>,
    dialect: Dialect,
    /// Is there more of it, which nobody has seen?
    cut: bool,
    /// What it runs by a name.
    runs: Vec<Arc<Sql>>,
    units: OnceLock<Arc<Units>>,
}

impl Sql {
    /// Takes the text as it came, valid UTF-8 or not.
    pub fn new(text: &[u8], dialect: Dialect) -> Sql {
        Sql {
            text: text.into(),
            dialect,
            cut: false,
            runs: vec![],
            units: OnceLock::new(),
        }
    }

    /// The same text, which runs these: their units are its units, too.
    pub fn running(mut self, runs: Vec<Arc<Sql>>) -> Sql {
        self.runs = runs;
        self
    }

    /// The same text, which may be the beginning of a longer one.
    pub fn cut(mut self, cut: bool) -> Sql {
        self.cut = cut;
        self
    }

    /// May it be the beginning of a longer text?
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// The text, what is not UTF-8 replaced.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.text)
    }

    /// The units, taken from `cache` on first use.
    pub fn units(&self, cache: &Cache) -> &Arc<Units> {
        self.units.get_or_init(|| {
            let own = cache.units(&self.text, self.dialect);
            if self.runs.is_empty() {
                return own;
            }
            let mut all = vec![own];
            all.extend(self.runs.iter().map(|run| run.units(cache).clone()));
            Arc::new(Units {
                all: vec![],
                statements: all[0].statements,
                also: all,
                verdicts: Mutex::default(),
            })
        })
    }
}

/// The units of one text, and which rules have been found to match it.
#[derive(Debug)]
pub struct Units {
    all: Vec<Unit>,
    /// How many statements the text itself holds.
    statements: usize,
    /// Those of other texts behind them.
    also: Vec<Arc<Units>>,
    /// By rule. Short: rules that are gone are swept out when it grows past [`VERDICTS`].
    verdicts: Mutex<Vec<(u64, bool)>>,
}

/// How many rules' verdicts a text remembers.
const VERDICTS: usize = 32;

impl Units {
    /// Cuts `text` into its units.
    pub fn new(text: &str, dialect: Dialect) -> Units {
        let (all, statements) = units(text, dialect);
        Units {
            all,
            statements,
            also: vec![],
            verdicts: Mutex::default(),
        }
    }

    /// How many statements the text holds, what they run by a name not counted.
    pub fn statements(&self) -> usize {
        self.statements
    }

    /// The units.
    pub fn iter(&self) -> impl Iterator<Item = &Unit> {
        self.all
            .iter()
            .chain(self.also.iter().flat_map(|units| units.all.iter()))
    }

    /// The verdict of the rule with this id, from memory if it has been asked before.
    pub fn verdict(&self, rule: u64, judge: impl FnOnce(&Units) -> bool) -> bool {
        let lock = || self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, verdict)) = lock().iter().find(|(id, _)| *id == rule) {
            return *verdict;
        }
        let verdict = judge(self);
        let mut verdicts = lock();
        if verdicts.len() >= VERDICTS {
            // Ids grow: the oldest stand first.
            verdicts.drain(..VERDICTS / 2);
        }
        verdicts.push((rule, verdict));
        verdict
    }
}

/// One statement, or one that is part of another.
#[derive(Debug)]
pub struct Unit {
    source: Box<str>,
    canonical: String,
    /// The same without the schemas of its tables, if it names any.
    without_schemas: Option<String>,
    /// The same with every qualifier dropped, if there are more.
    unqualified: Option<String>,
    verb: Box<str>,
    place: Place,
    /// What the statement around it defines by WITH: not tables.
    ctes: Vec<Box<str>>,
    dialect: Dialect,
    tables: OnceLock<Vec<Table>>,
}

impl Unit {
    /// The canonical text: comments dropped, tokens one space apart (none around a point), words case-folded, literals kept.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// The command, upper case: "INSERT"; of a statement with CTEs, the main one's.
    pub fn verb(&self) -> &str {
        &self.verb
    }

    /// Where it stands in its statement.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Does this word (lower case) stand in it, outside of all parentheses?
    pub fn says(&self, word: &str) -> bool {
        let mut depth = 0usize;
        lex::tokens(&self.source, self.dialect).iter().any(|token| {
            match (token.is("("), token.is(")")) {
                (true, _) => depth += 1,
                (_, true) => depth = depth.saturating_sub(1),
                _ => return depth == 0 && token.word() == Some(word),
            }
            false
        })
    }

    /// Is this what ends a transaction and keeps what it has done? When it fails, the transaction is over all the same.
    pub fn commits(&self) -> bool {
        // Two-phase commit: its second half is a transaction of its own, and its first ends the session's.
        let begins = |words: &str| self.canonical.starts_with(words);
        match self.dialect {
            Dialect::Postgres => {
                &*self.verb == "COMMIT" && !begins("commit prepared")
                    || begins("prepare transaction ")
            }
            Dialect::MySql(_) => &*self.verb == "COMMIT",
        }
    }

    /// The tables it names, subqueries included, CTEs not.
    pub fn tables(&self) -> &[Table] {
        self.tables
            .get_or_init(|| tables::of(&self.source, &self.ctes, self.dialect))
    }
}

/// Where a unit stands in the statement that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// It is the whole of it, or what its answer comes from: the main part of one with CTEs, what stands in parentheses.
    Whole,
    /// A CTE of a statement of this command, as part of which it is run.
    Cte(Box<str>),
    /// It is run by one whose answer is another: EXPLAIN ANALYZE, a cursor, COPY.
    Ran,
}

/// Units by text, shared by the connections of a proxy: the same statement is analysed once, however many connections send it.
#[derive(Debug, Default)]
pub struct Cache(Mutex<Cached>);

#[derive(Debug, Default)]
struct Cached {
    by_text: HashMap<Dialect, HashMap<Box<[u8]>, Arc<Units>>>,
    bytes: usize,
}

/// The longest text that is cached: longer ones are bulk data that hardly come twice.
const CACHED_TEXT: usize = 16 << 10;
/// How much text is cached before the cache starts anew; with the analysis about five times as much memory.
const CACHED_BYTES: usize = 4 << 20;

impl Cache {
    fn units(&self, text: &[u8], dialect: Dialect) -> Arc<Units> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if text.len() <= CACHED_TEXT
            && let Some(units) = lock().by_text.get(&dialect).and_then(|t| t.get(text))
        {
            return units.clone();
        }
        let units = Arc::new(Units::new(&String::from_utf8_lossy(text), dialect));
        if text.len() <= CACHED_TEXT {
            let mut cached = lock();
            if cached.bytes + text.len() > CACHED_BYTES {
                *cached = Cached::default();
            }
            cached.bytes += text.len();
            let by_text = cached.by_text.entry(dialect).or_default();
            by_text.insert(text.into(), units.clone());
        }
        units
    }
}

/// The units of a text: each statement, and the parts of it; and how many statements they are.
fn units(text: &str, dialect: Dialect) -> (Vec<Unit>, usize) {
    let tokens = lex::tokens(text, dialect);
    let mut out = vec![];
    let mut statements = 0;
    let mut rest = &tokens[..];
    while !rest.is_empty() {
        let end = match dialect.is_mysql() && defines_routine(rest) {
            true => rest.len(),
            false => rest.iter().position(|t| t.is(";")).unwrap_or(rest.len()),
        };
        statements += usize::from(end > 0);
        let within = Within {
            ctes: &[],
            place: Place::Whole,
            depth: DEPTH,
        };
        collect(text, &rest[..end], within, dialect, &mut out);
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    (out, statements)
}

/// What stands around tokens that are collected.
#[derive(Clone)]
struct Within<'a> {
    ctes: &'a [Box<str>],
    place: Place,
    /// How much deeper statements are followed.
    depth: usize,
}

/// Does a MySQL routine begin here whose body holds statements of its own, up to the end of the text?
fn defines_routine(tokens: &[Token]) -> bool {
    let kind = |t: &Token| {
        Some(match t.word()? {
            "procedure" | "function" | "trigger" | "event" => true,
            "table" | "view" | "index" | "user" | "role" | "database" | "schema" | "sequence"
            | "server" => false,
            _ => return None,
        })
    };
    tokens.first().and_then(Token::word) == Some("create")
        && tokens.iter().find_map(kind) == Some(true)
        && tokens.iter().any(|t| t.word() == Some("begin"))
}

fn collect(
    text: &str,
    tokens: &[Token],
    within: Within<'_>,
    dialect: Dialect,
    out: &mut Vec<Unit>,
) {
    // What a PREPARE gives a name to is run, and matched, by its EXECUTE.
    let tokens = &tokens[..prepared::body(tokens, dialect).unwrap_or(tokens.len())];
    let (Some(first), Some(last)) = (tokens.first(), tokens.last()) else {
        return;
    };
    let with = with_clause(tokens);
    let mut ctes = within.ctes.to_vec();
    let mut main = tokens;
    if let Some(with) = &with {
        ctes.extend(with.names.iter().cloned());
        main = &tokens[with.main..];
    }
    let verb: Box<str> = verb(main, dialect).into();
    out.push(Unit {
        source: text[first.at.start..last.at.end].into(),
        canonical: canonical(tokens, |_| false),
        without_schemas: stripped(tokens, &relations::qualifiers(tokens, dialect)),
        unqualified: stripped(tokens, &all_qualifiers(tokens)),
        verb: verb.clone(),
        place: within.place.clone(),
        ctes: ctes.clone(),
        dialect,
        tables: OnceLock::new(),
    });
    let Some(depth) = within.depth.checked_sub(1) else {
        return;
    };
    let mut inside = |tokens: &[Token], place: Place| {
        let within = Within {
            ctes: &ctes,
            place,
            depth,
        };
        collect(text, tokens, within, dialect, out);
    };
    if let Some(with) = with {
        // What is a CTE of an EXPLAIN's is run by the EXPLAIN, and so on outwards.
        let place = match &within.place {
            Place::Whole => Place::Cte(verb),
            outer => outer.clone(),
        };
        for body in with.bodies {
            inside(&tokens[body], place.clone());
        }
        inside(main, within.place);
    } else if dialect.is_mysql()
        && let Some(at) = with_settings(tokens)
    {
        inside(&tokens[at..], within.place);
    } else if let Some(ran) = inner::ran(tokens, dialect) {
        inside(&tokens[ran], Place::Ran);
    } else {
        for part in inner::parenthesised(tokens) {
            inside(&tokens[part], within.place.clone());
        }
    }
}

/// A WITH clause, as indices of tokens.
struct With {
    names: Vec<Box<str>>,
    bodies: Vec<Range<usize>>,
    main: usize,
}

/// Reads `WITH [RECURSIVE] name [(columns)] AS [[NOT] MATERIALIZED] (body) [SEARCH …|CYCLE …], … main`.
fn with_clause(tokens: &[Token]) -> Option<With> {
    let word = |i: usize| tokens.get(i).and_then(Token::word);
    if word(0) != Some("with") {
        return None;
    }
    let mut with = With {
        names: vec![],
        bodies: vec![],
        main: 0,
    };
    let mut i = if word(1) == Some("recursive") { 2 } else { 1 };
    loop {
        with.names.push(word(i)?.into());
        i += 1;
        if tokens.get(i)?.is("(") {
            i = closing(tokens, i)? + 1;
        }
        if word(i) != Some("as") {
            return None;
        }
        i += 1;
        while matches!(word(i), Some("not" | "materialized")) {
            i += 1;
        }
        if !tokens.get(i)?.is("(") {
            return None;
        }
        let close = closing(tokens, i)?;
        with.bodies.push(i + 1..close);
        i = close + 1;
        // SEARCH and CYCLE clauses hold no parentheses and no statement.
        if matches!(word(i), Some("search" | "cycle")) {
            let starts = |t: &Token| {
                matches!(
                    t.word(),
                    Some("select" | "insert" | "update" | "delete" | "merge" | "values")
                )
            };
            // Their lists of columns hold commas too: a comma ends the clause only before `name AS (`.
            let next_cte = |j: usize| {
                tokens[j].is(",")
                    && word(j + 2) == Some("as")
                    && tokens.get(j + 3).is_some_and(|t| t.is("("))
            };
            i = (i..tokens.len()).find(|&j| next_cte(j) || starts(&tokens[j]))?;
        }
        if tokens.get(i)?.is(",") {
            i += 1;
            continue;
        }
        with.main = i;
        return Some(with);
    }
}

/// Where the parenthesis that opens at `open` closes.
fn closing(tokens: &[Token], open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        if token.is("(") {
            depth += 1;
        } else if token.is(")") {
            depth = depth.checked_sub(1)?;
            if depth == 0 {
                return Some(i);
            }
        }
    }
    None
}

/// Where the statement of MariaDB's `SET STATEMENT max_statement_time = 1 FOR SELECT …` begins.
fn with_settings(tokens: &[Token]) -> Option<usize> {
    let word = |i: usize| tokens.get(i).and_then(Token::word);
    if word(0) != Some("set") || word(1) != Some("statement") {
        return None;
    }
    let at = tokens.iter().position(|t| t.word() == Some("for"))?;
    Some(at + 1)
}

/// The command of a statement, upper case; the words that the server treats as one command are one.
fn verb(tokens: &[Token], dialect: Dialect) -> String {
    let mut words = tokens
        .iter()
        .skip_while(|t| t.is("("))
        .map_while(Token::word);
    let word = words.next().unwrap_or_default();
    // START REPLICA and its like begin no transaction.
    if dialect.is_mysql() && word == "start" && words.next() != Some("transaction") {
        return "START".into();
    }
    canonical_verb(word, dialect)
}

/// A command's name as `verb=` compares it.
pub fn canonical_verb(word: &str, dialect: Dialect) -> String {
    let upper = word.to_ascii_uppercase();
    match (dialect, upper.as_str()) {
        (Dialect::Postgres, "START") => "BEGIN".into(),
        (Dialect::Postgres, "END") => "COMMIT".into(),
        (Dialect::Postgres, "ABORT") => "ROLLBACK".into(),
        (Dialect::MySql(_), "START" | "START TRANSACTION") => "BEGIN".into(),
        (Dialect::MySql(_), "DESC" | "DESCRIBE") => "EXPLAIN".into(),
        _ => upper,
    }
}

/// The canonical text of the tokens that are not skipped.
fn canonical(tokens: &[Token], skip: impl Fn(usize) -> bool) -> String {
    let mut out = String::new();
    let mut glue = true;
    for (i, token) in tokens.iter().enumerate() {
        if skip(i) {
            continue;
        }
        let point = token.is(".");
        if !glue && !point {
            out.push(' ');
        }
        out.push_str(&token.text);
        glue = point;
    }
    out
}

/// The canonical text without the tokens in `dropped`, if there are any.
fn stripped(tokens: &[Token], dropped: &[Range<usize>]) -> Option<String> {
    if dropped.is_empty() {
        return None;
    }
    let mut skip = vec![false; tokens.len()];
    for range in dropped {
        skip[range.clone()].fill(true);
    }
    Some(canonical(tokens, |i| skip[i]))
}

/// Every `a.` of an `a.b`: schemas, tables before columns, aliases.
fn all_qualifiers(tokens: &[Token]) -> Vec<Range<usize>> {
    (1..tokens.len())
        .filter(|&i| tokens[i].is(".") && tokens[i - 1].kind == Kind::Word)
        .map(|i| i - 1..i + 1)
        .collect()
}
