//! What a rule's `query=`, `table=` and `verb=` mean together.

use faultbox_contract::rule::nearest;
use faultbox_contract::{ArgError, CheckedRule};
use serde_json::{Value, json};

use crate::{Dialect, Pattern, Place, Sql, Table, Unit, Units, canonical_verb};

/// The statements that a rule means; all of them, if it says nothing of statements.
#[derive(Debug)]
pub struct Matcher {
    query: Option<Pattern>,
    table: Option<Table>,
    verb: Option<String>,
}

impl Matcher {
    /// Reads a rule; `verbs` are the commands that a statement can begin with, for catching slips in `verb=`.
    ///
    /// # Errors
    /// A pattern of several statements, a table that is none, an unknown command.
    pub fn of(rule: &CheckedRule, dialect: Dialect, verbs: &[&str]) -> Result<Matcher, ArgError> {
        let refuse =
            |arg: &'static str| move |e: String| ArgError::new(arg, format!("`{arg}`: {e}"));
        Ok(Matcher {
            query: rule
                .text_of("query")
                .map(|text| Pattern::new(text, dialect))
                .transpose()
                .map_err(refuse("query"))?,
            table: rule
                .text_of("table")
                .map(|text| Table::named(text, dialect))
                .transpose()
                .map_err(refuse("table"))?,
            verb: rule
                .text_of("verb")
                .map(|text| verb(text, dialect, verbs))
                .transpose()?,
        })
    }

    /// The command that it asks for, in capitals.
    pub fn verb(&self) -> Option<&str> {
        self.verb.as_deref()
    }

    /// Must a statement be looked at?
    pub fn reads_sql(&self) -> bool {
        self.query.is_some() || self.table.is_some() || self.verb.is_some()
    }

    /// Does the rule of this id mean one of these?
    pub fn matches(&self, id: u64, units: &Units) -> bool {
        !self.reads_sql() || units.verdict(id, |units| self.judge(units))
    }

    fn judge(&self, units: &Units) -> bool {
        self.first(units).is_some()
    }

    /// The first of these that the rule means: where a string of several statements stops.
    pub fn first<'a>(&self, units: &'a Units) -> Option<&'a Unit> {
        units.iter().find(|unit| {
            self.verb.as_ref().is_none_or(|v| v == unit.verb())
                && self.query.as_ref().is_none_or(|q| q.matches(unit))
                && self
                    .table
                    .as_ref()
                    .is_none_or(|t| unit.tables().iter().any(|named| t.means(named)))
        })
    }
}

/// The most characters of a statement that an event shows.
const SHOWN: usize = 200;

/// What events say of a request: who asks for what.
pub fn event_fields(user: &str, database: &str, sql: Option<&Sql>) -> Value {
    let mut fields = json!({"user": user, "database": database});
    if let Some(sql) = sql {
        let text = sql.text();
        let end = text.char_indices().nth(SHOWN).map_or(text.len(), |c| c.0);
        fields["query"] = text[..end].into();
    }
    fields
}

/// Why rows must not stand for the answer to a text of which this unit is what a rule means: what else it does would silently not be
/// done.
pub fn unanswerable(sql: &Sql, units: &Units, meant: Option<&Unit>) -> Option<&'static str> {
    let first = units.iter().next();
    let is_first = |unit: &Unit| first.is_some_and(|first| std::ptr::eq(first, unit));
    // Behind a name, what an EXPLAIN ANALYZE runs stands alone.
    let explains = first.is_some_and(|first| first.verb() == "EXPLAIN");
    match meant {
        _ if units.statements() > 1 => {
            Some("the string holds several statements, and rows would stand for all of them")
        }
        _ if sql.is_cut() => {
            Some("the string is too long to see whether it holds other statements, too")
        }
        Some(unit) if *unit.place() == Place::Ran || explains && !is_first(unit) => Some(
            "the statement is run inside another (EXPLAIN ANALYZE, DECLARE CURSOR or COPY), whose answer is not its rows",
        ),
        _ => None,
    }
}

fn verb(text: &str, dialect: Dialect, verbs: &[&str]) -> Result<String, ArgError> {
    let verb = canonical_verb(text.trim(), dialect);
    if verbs.contains(&verb.as_str()) {
        return Ok(verb);
    }
    let error = ArgError::new("verb", format!("`verb`: \"{text}\" is not an SQL command"));
    Err(match nearest(&verb, verbs) {
        Some(best) => error.hint(format!("did you mean \"{best}\"?")),
        None => {
            error.hint("the first word of a statement, e.g. \"INSERT\"; for more words use query=")
        }
    })
}
