//! `query="INSERT INTO orders*"`: a glob on canonical text.

use faultbox_contract::{Dialect as GlobDialect, Glob};

use super::lex::{self, Kind};
use super::{Dialect, Unit};

/// A compiled `query=`.
///
/// The pattern is brought into the same canonical form as statements are, its wildcards left where they stand: a space next to
/// a `*` is as written, so that `orders*` is a prefix and `orders *` ends the word.
#[derive(Debug, Clone)]
pub struct Pattern {
    glob: Glob,
    /// Does it name a table with its schema? Then statements must, too.
    schemas: bool,
    /// Does it hold any point between names?
    qualified: bool,
}

impl Pattern {
    /// Compiles `pattern`.
    ///
    /// # Errors
    /// A broken glob, an empty pattern, or several statements in one, as a lower-case fragment.
    pub fn new(pattern: &str, dialect: Dialect) -> Result<Pattern, String> {
        let canonical = canonical(pattern, dialect)?;
        if canonical.text.is_empty() {
            return Err("the pattern is empty; leave it out to match every statement".into());
        }
        // A word also ends where the statement does.
        let text = match canonical.text.strip_suffix(" *") {
            Some(before) if !before.ends_with('\\') => format!("{before}{{, *}}"),
            _ => canonical.text,
        };
        Ok(Pattern {
            glob: Glob::new(&text, GlobDialect::Text)?,
            schemas: canonical.schemas,
            qualified: canonical.qualified,
        })
    }

    /// Does it match the unit, with or without what the pattern does not spell out?
    pub fn matches(&self, unit: &Unit) -> bool {
        let hit = |text: &Option<String>| text.as_deref().is_some_and(|t| self.glob.matches(t));
        self.glob.matches(&unit.canonical)
            || !self.schemas && hit(&unit.without_schemas)
            || !self.qualified && hit(&unit.unqualified)
    }
}

struct Canonical {
    text: String,
    schemas: bool,
    qualified: bool,
}

/// What stood last in the canonical pattern.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Nothing,
    Star,
    /// A word, a number, or a wildcard for part of one.
    Wordish,
    Mark,
    Point,
}

/// Brings a pattern into canonical form.
fn canonical(pattern: &str, dialect: Dialect) -> Result<Canonical, String> {
    let pattern = pattern.trim().trim_end_matches(';').trim_end();
    let bytes = pattern.as_bytes();
    let mut out = String::new();
    let (mut last, mut space) = (Last::Nothing, false);
    let (mut braces, mut at) = (0usize, 0);
    // The words so far, for telling a schema from an alias.
    let mut words: Vec<String> = vec![];
    let (mut schemas, mut qualified) = (false, false);
    while at < bytes.len() {
        let glue = |last: Last, this: Last, space: bool| match (last, this) {
            (Last::Nothing | Last::Point, _) | (_, Last::Point) => true,
            (Last::Star, _) | (_, Last::Star) | (Last::Wordish, Last::Wordish) => !space,
            _ => false,
        };
        let mut put = |this: Last, text: &str| {
            if !glue(last, this, space) {
                out.push(' ');
            }
            out.push_str(text);
            (last, space) = (this, false);
        };
        match bytes[at] {
            b'*' => {
                put(Last::Star, "*");
                at += 1;
            }
            b'?' => {
                put(Last::Wordish, "?");
                at += 1;
            }
            b'[' => {
                let end = class_end(bytes, at)
                    .ok_or_else(|| format!("pattern `{pattern}` has an unclosed `[`"))?;
                put(Last::Wordish, &pattern[at..end].to_ascii_lowercase());
                at = end;
            }
            b'{' => {
                put(Last::Wordish, "{");
                (braces, at, last) = (braces + 1, at + 1, Last::Nothing);
            }
            b',' if braces > 0 => {
                out.push(',');
                (at, last, space) = (at + 1, Last::Nothing, false);
            }
            b'}' if braces > 0 => {
                out.push('}');
                (braces, at, last, space) = (braces - 1, at + 1, Last::Wordish, false);
            }
            b'\\' => {
                let c = pattern[at + 1..]
                    .chars()
                    .next()
                    .ok_or_else(|| format!("pattern `{pattern}` ends in a lone `\\`"))?;
                let this = if c.is_ascii() && !lex::is_word(c as u8) {
                    Last::Mark
                } else {
                    Last::Wordish
                };
                put(this, &format!("\\{}", c.to_ascii_lowercase()));
                at += 1 + c.len_utf8();
            }
            b';' => {
                return Err(format!(
                    "pattern `{pattern}` holds several statements, but each statement is matched by itself"
                ));
            }
            _ => match lex::next(pattern, at, dialect) {
                Some((None, end)) => {
                    space = true;
                    at = end;
                }
                Some((Some(token), _)) => {
                    // An operator may run into a wildcard: `=*`.
                    let text = match token.kind {
                        Kind::Mark => {
                            let text = &*token.text;
                            let cut = text[1..].find(['*', '?']).map_or(text.len(), |n| n + 1);
                            text[..cut].to_owned()
                        }
                        _ => token.text.clone().into_owned(),
                    };
                    at = match token.kind {
                        Kind::Mark => at + text.len(),
                        _ => token.at.end,
                    };
                    if text == "." {
                        qualified = true;
                        // `into a.` — the word before the name says what it is.
                        schemas |= words.len() >= 2
                            && matches!(
                                words[words.len() - 2].as_str(),
                                "into"
                                    | "from"
                                    | "join"
                                    | "update"
                                    | "table"
                                    | "only"
                                    | "truncate"
                                    | "copy"
                                    | "using"
                                    | ","
                            );
                        put(Last::Point, ".");
                        continue;
                    }
                    match token.kind {
                        Kind::Mark => put(Last::Mark, &text),
                        // Wildcards stay wildcards within a literal.
                        _ => put(Last::Wordish, &text),
                    }
                    words.push(text);
                }
                None => break,
            },
        }
    }
    Ok(Canonical {
        text: out,
        schemas,
        qualified,
    })
}

/// Where a `[…]` that begins at `at` ends; a `]` right at its beginning is a member.
fn class_end(bytes: &[u8], at: usize) -> Option<usize> {
    let negated = matches!(bytes.get(at + 1), Some(b'!' | b'^'));
    let start = at + 1 + usize::from(negated);
    (start + 1..bytes.len())
        .find(|&i| bytes[i] == b']')
        .map(|i| i + 1)
}

#[cfg(test)]
mod tests {
    use super::super::Units;
    use super::*;
    use proptest::prelude::*;

    fn check(pattern: &str, yes: &[&str], no: &[&str]) {
        check_in(Dialect::Postgres, pattern, yes, no);
    }

    fn check_in(dialect: Dialect, pattern: &str, yes: &[&str], no: &[&str]) {
        let compiled = Pattern::new(pattern, dialect).unwrap();
        let matches = |sql: &str| Units::new(sql, dialect).iter().any(|u| compiled.matches(u));
        for sql in yes {
            assert!(matches(sql), "{pattern} should match {sql}: {compiled:?}");
        }
        for sql in no {
            assert!(
                !matches(sql),
                "{pattern} should not match {sql}: {compiled:?}"
            );
        }
    }

    #[test]
    fn as_the_manual_says() {
        check(
            "INSERT INTO orders*",
            &[
                "INSERT INTO orders VALUES (1)",
                "insert into orders (id) values ($1)",
                "insert  into\n\torders(id) values($1)",
                "/* app:shop */ INSERT INTO orders DEFAULT VALUES -- done",
                "INSERT INTO public.orders VALUES (1)",
                "INSERT INTO \"orders\" (\"id\") VALUES (1)",
                "INSERT INTO \"public\".\"orders\" VALUES (1)",
                "INSERT INTO orders_archive VALUES (1)",
                "BEGIN; INSERT INTO orders VALUES (1); COMMIT",
                "WITH x AS (SELECT 1) INSERT INTO orders SELECT * FROM x",
                "WITH ins AS (INSERT INTO orders VALUES (1) RETURNING id) SELECT * FROM ins",
            ],
            &[
                "INSERT INTO items VALUES ('INSERT INTO orders')",
                "INSERT INTO \"Orders\" VALUES (1)",
                "SELECT 'x'; -- INSERT INTO orders",
                "UPDATE orders SET a = 1",
                "SELECT $$INSERT INTO orders$$",
            ],
        );
    }

    #[test]
    fn where_words_end() {
        check(
            "INSERT INTO orders *",
            &[
                "INSERT INTO orders VALUES (1)",
                "INSERT INTO orders(id) VALUES (1)",
                "insert into orders",
            ],
            &["INSERT INTO orders_archive VALUES (1)"],
        );
        check(
            "INSERT INTO orders(*",
            &[
                "INSERT INTO orders (id) VALUES (1)",
                "INSERT INTO orders(id) VALUES (1)",
            ],
            &[
                "INSERT INTO orders VALUES (1)",
                "INSERT INTO orders_archive (id) VALUES (1)",
            ],
        );
        check("*orders*", &["select 1 from orders"], &["select 1"]);
        check("SELECT *", &["SELECT 1", "SELECT"], &["SELECTED 1"]);
        check("INSERT*", &["INSERT INTO a VALUES (1)"], &["SELECT 1"]);
    }

    #[test]
    fn white_space_and_case() {
        check(
            "select id, total from orders where id=$1",
            &[
                "SELECT id,total FROM orders WHERE id = $1",
                "SELECT o.id, o.total FROM orders WHERE id = $1;",
                "SELECT \"id\", \"total\" FROM \"orders\" WHERE \"id\"=$1",
            ],
            &["SELECT id, total FROM orders WHERE id = $2"],
        );
        check(
            "* WHERE name = 'Bob*'",
            &["SELECT 1 FROM a WHERE name='Bobby'"],
            &["SELECT 1 FROM a WHERE name='bobby'"],
        );
        check("SELECT 'a  b'", &["select 'a  b'"], &["select 'a b'"]);
        check(
            "SELECT count(\\*) FROM orders",
            &["select count( * ) from orders"],
            &["select count(x) from orders"],
        );
        check(
            "SELECT count(*) FROM orders",
            &["select count(*) from orders", "select count(x) from orders"],
            &[],
        );
        check(
            "* id=?",
            &["select 1 from a where id = 5"],
            &["select 1 from a where id = 55"],
        );
        check(
            "* id=*",
            &["select 1 from a where id=55"],
            &["select 1 from a where ix=5"],
        );
        check(
            "{INSERT,UPDATE} *",
            &["insert into a values (1)", "UPDATE a SET x=1"],
            &["delete from a"],
        );
        check(
            "SELECT * FROM t_[0-9]",
            &["select a from t_7"],
            &["select a from t_x", "select a from t_77"],
        );
    }

    #[test]
    fn schemas_count_when_the_pattern_has_one() {
        check(
            "INSERT INTO audit.orders*",
            &[
                "INSERT INTO audit.orders VALUES (1)",
                "INSERT INTO \"audit\" . orders VALUES (1)",
            ],
            &[
                "INSERT INTO orders VALUES (1)",
                "INSERT INTO public.orders VALUES (1)",
            ],
        );
        check(
            "SELECT o.id FROM orders*",
            &[
                "SELECT o.id FROM orders o",
                "SELECT o.id FROM public.orders o",
            ],
            &["SELECT p.id FROM orders p", "SELECT id FROM orders"],
        );
        check(
            "SELECT now()",
            &["SELECT pg_catalog.now()"],
            &["SELECT now() + '1d'"],
        );
    }

    #[test]
    fn mysql_quotes_and_comments_differently() {
        let check =
            |pattern: &str, yes: &[&str], no: &[&str]| check_in(Dialect::MYSQL, pattern, yes, no);
        check(
            "INSERT INTO orders*",
            &[
                "INSERT INTO `shop`.`Orders` (`id`) VALUES (?)",
                "insert /*!40000 into */ orders values (1) # done",
                "SET STATEMENT max_statement_time=1 FOR INSERT INTO orders VALUES (1)",
                "BEGIN NOT ATOMIC INSERT INTO x VALUES (1); INSERT INTO orders VALUES (1); END",
                "SELECT 'it\\'s'; INSERT INTO orders VALUES (1)",
            ],
            &[
                "SELECT \"x; INSERT INTO orders\"",
                "CREATE PROCEDURE p() BEGIN INSERT INTO x VALUES (1); INSERT INTO orders VALUES (1); END",
                "-- INSERT INTO orders\nSELECT 1",
            ],
        );
        check(
            "SELECT * FROM orders WHERE name = 'x'",
            &["SELECT * FROM `orders` WHERE `name`='x'"],
            &["SELECT * FROM `orders` WHERE `name`='y'"],
        );
    }

    #[test]
    fn misuse_says_so() {
        for (pattern, why) in [
            ("", "empty"),
            ("  ;", "empty"),
            ("BEGIN; INSERT*", "several statements"),
            ("SELECT [a", "unclosed `[`"),
            ("SELECT {a", "unclosed `{`"),
            ("SELECT \\", "lone"),
        ] {
            let e = Pattern::new(pattern, Dialect::Postgres).unwrap_err();
            assert!(e.contains(why), "{pattern}: {e}");
        }
    }

    proptest! {
        #[test]
        fn no_pattern_and_no_text_make_it_panic(pattern in "\\PC{0,24}", sql in "\\PC{0,40}") {
            for dialect in [Dialect::Postgres, Dialect::MYSQL] {
                if let Ok(pattern) = Pattern::new(&pattern, dialect) {
                    for unit in Units::new(&sql, dialect).iter() {
                        pattern.matches(unit);
                        unit.tables();
                    }
                }
            }
        }

        #[test]
        fn white_space_and_comments_never_matter(words in proptest::collection::vec("[a-z]{1,6}|[0-9]{1,3}|[(),=]|'[A-Z ]{0,3}'", 1..12), gaps in proptest::collection::vec(0..4usize, 12)) {
            let mut loose = String::new();
            for (word, gap) in words.iter().zip(&gaps) {
                loose.push_str(word);
                loose.push_str([" ", "\n\t", " /* x */ ", "--c\n"][*gap]);
            }
            let exact = Pattern::new(&words.join(" "), Dialect::Postgres).unwrap();
            for unit in Units::new(&loose, Dialect::Postgres).iter().take(1) {
                prop_assert!(exact.matches(unit), "{:?} {:?}", exact, unit);
            }
        }
    }
}
