//! The lexical rules of MySQL's manual (9, "Language Structure") and MariaDB's.

use std::borrow::Cow;

use super::{Kind, Token, is_word, is_word_start, quoted};
use crate::Modes;

/// The token that begins at `at` (`None` for white space and comments), and where it ends; nothing at the end of the text.
pub fn next(sql: &str, at: usize, modes: Modes) -> Option<(Option<Token<'_>>, usize)> {
    let rest = &sql[at..];
    let bytes = rest.as_bytes();
    let first = *bytes.first()?;
    let token = |kind: Kind, len: usize| Token {
        kind,
        text: Cow::Borrowed(&rest[..len]),
        at: at..at + len,
    };
    let found = |kind, len: usize| Some((Some(token(kind, len)), at + len));
    let escapes = !modes.no_backslash_escapes;
    match first {
        b' ' | b'\t' | b'\n' | b'\r' | b'\x0b' | b'\x0c' => {
            let len = bytes
                .iter()
                .take_while(|b| b.is_ascii_whitespace() || **b == b'\x0b')
                .count();
            Some((None, at + len))
        }
        b'#' => Some((None, at + line(bytes))),
        // Two dashes begin a comment only before white space: 5--1 is 6.
        b'-' if bytes.get(1) == Some(&b'-')
            && bytes.get(2).is_none_or(|b| *b <= b' ' || *b == 0x7f) =>
        {
            Some((None, at + line(bytes)))
        }
        b'/' if bytes.get(1) == Some(&b'*') => Some((None, at + comment(bytes))),
        // What closes a comment whose contents count; elsewhere the two cannot stand together.
        b'*' if bytes.get(1) == Some(&b'/') => Some((None, at + 2)),
        b'\'' => found(Kind::Literal, quoted(bytes, b'\'', escapes)),
        b'"' if !modes.ansi_quotes => found(Kind::Literal, quoted(bytes, b'"', escapes)),
        b'"' | b'`' => {
            let len = quoted(bytes, first, false);
            let mut name = token(Kind::Word, len);
            name.text = unquoted(&rest[..len], first);
            Some((Some(name), at + len))
        }
        b'?' => found(Kind::Parameter, 1),
        b'.' if bytes.get(1).is_some_and(u8::is_ascii_digit) => {
            let len = 1 + digits(&bytes[1..]);
            found(Kind::Literal, len + exponent(&bytes[len..]))
        }
        b'0'..=b'9' => match number(bytes) {
            0 => Some((Some(word(rest, at)), at + word_len(bytes))),
            len => found(Kind::Literal, len),
        },
        _ if is_word_start(first) || first == b'$' => {
            // N'', X'', B'': a prefix right before a quote belongs to the literal.
            if b"bBxXnN".contains(&first) && bytes.get(1) == Some(&b'\'') {
                return found(Kind::Literal, 1 + quoted(&bytes[1..], b'\'', escapes));
            }
            Some((Some(word(rest, at)), at + word_len(bytes)))
        }
        _ => found(Kind::Mark, operator(rest)),
    }
}

/// The length of what is left of a line.
fn line(bytes: &[u8]) -> usize {
    memchr::memchr(b'\n', bytes).unwrap_or(bytes.len())
}

/// The length of a comment, which does not nest; of one whose contents are executed (`/*!`, `/*!50101`, `/*M!`), of its opening.
fn comment(bytes: &[u8]) -> usize {
    let opening = match bytes {
        [_, _, b'!', ..] => 3,
        [_, _, b'M', b'!', ..] => 4,
        _ => 0,
    };
    if opening > 0 {
        return opening + digits(&bytes[opening..]).min(6);
    }
    memchr::memmem::find(&bytes[2..], b"*/").map_or(bytes.len(), |n| n + 4)
}

fn digits(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| b.is_ascii_digit()).count()
}

fn word_len(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| is_word(**b)).count()
}

fn word(rest: &str, at: usize) -> Token<'_> {
    let text = &rest[..word_len(rest.as_bytes())];
    Token {
        kind: Kind::Word,
        at: at..at + text.len(),
        text: folded(text),
    }
}

/// Whether names that differ in case are the same is the server's file system's to say; a pattern takes them for the same.
fn folded(text: &str) -> Cow<'_, str> {
    match text.bytes().any(|b| b.is_ascii_uppercase()) {
        true => Cow::Owned(text.to_ascii_lowercase()),
        false => Cow::Borrowed(text),
    }
}

/// A quoted name, folded; without its quotes if it could have been written without them (keywords aside).
fn unquoted(text: &str, quote: u8) -> Cow<'_, str> {
    let quote = quote as char;
    let plain = text
        .strip_prefix(quote)
        .and_then(|t| t.strip_suffix(quote))
        .filter(|t| !t.is_empty() && t.bytes().all(is_word))
        .filter(|t| !t.bytes().all(|b| b.is_ascii_digit()));
    match plain {
        Some(plain) => folded(plain),
        // One way of quoting for all modes.
        None if quote == '"' => Cow::Owned(text.to_ascii_lowercase().replace('"', "`")),
        None => folded(text),
    }
}

/// A number's length; 0 if it is the beginning of a name, as in `2fa`.
fn number(bytes: &[u8]) -> usize {
    if let [b'0', b'x' | b'X' | b'b' | b'B', next, ..] = bytes
        && next.is_ascii_hexdigit()
    {
        let len = 2 + bytes[2..]
            .iter()
            .take_while(|b| b.is_ascii_hexdigit())
            .count();
        return if bytes.get(len).copied().is_some_and(is_word) {
            0
        } else {
            len
        };
    }
    let mut len = digits(bytes);
    if bytes.get(len) == Some(&b'.') {
        len += 1 + digits(&bytes[len + 1..]);
        return len + exponent(&bytes[len..]);
    }
    len += exponent(&bytes[len..]);
    if bytes.get(len).copied().is_some_and(is_word) {
        0
    } else {
        len
    }
}

fn exponent(bytes: &[u8]) -> usize {
    let sign = match bytes {
        [b'e' | b'E', b'+' | b'-', ..] => 2,
        [b'e' | b'E', ..] => 1,
        _ => return 0,
    };
    match digits(&bytes[sign..]) {
        0 => 0,
        n => sign + n,
    }
}

/// Operators of more than one character, longer ones first.
const OPERATORS: &[&str] = &[
    "<=>", "->>", "<=", ">=", "<>", "!=", "<<", ">>", "||", "&&", ":=", "->", "@@",
];

fn operator(rest: &str) -> usize {
    OPERATORS
        .iter()
        .find(|o| rest.starts_with(**o))
        .map_or(1, |o| o.len())
}

#[cfg(test)]
mod tests {
    use super::super::tokens;
    use crate::{Dialect, Modes};
    use proptest::prelude::*;

    fn check_in(modes: Modes, sql: &str, expected: &[&str]) {
        let tokens = tokens(sql, Dialect::MySql(modes));
        let texts: Vec<_> = tokens.into_iter().map(|t| t.text).collect();
        assert_eq!(texts, expected, "{sql}");
    }

    fn check(sql: &str, expected: &[&str]) {
        check_in(Modes::default(), sql, expected);
    }

    #[test]
    fn lexical_rules() {
        check("SELECT  1\n", &["select", "1"]);
        check("a # c\nb -- d\n-- \nc--1", &["a", "b", "c", "-", "-", "1"]);
        check("a/* x /* y */b", &["a", "b"]);
        check(
            "a/*!50101 b */ /*M!100100 c*/ /*!d*/",
            &["a", "b", "c", "d"],
        );
        check("/*+ MAX_EXECUTION_TIME(1) */ a", &["a"]);
        check(
            r#"'it''s' 'a\'b' "x""y" N'z' x'1F'"#,
            &["'it''s'", r"'a\'b'", r#""x""y""#, "N'z'", "x'1F'"],
        );
        check(
            "`Orders` `a b` `A``B` `1`",
            &["orders", "`a b`", "`a``b`", "`1`"],
        );
        check("shop.`Orders`", &["shop", ".", "orders"]);
        check(
            "1.5e-3 .5 0x1F 1e5 2fa 1-2 1.",
            &["1.5e-3", ".5", "0x1F", "1e5", "2fa", "1", "-", "2", "1."],
        );
        check(
            "a<=>b c->>'$.x' @@sql_mode @v:=1",
            &[
                "a", "<=>", "b", "c", "->>", "'$.x'", "@@", "sql_mode", "@", "v", ":=", "1",
            ],
        );
        check("id=? AND $x", &["id", "=", "?", "and", "$x"]);
        check("'open", &["'open"]);
        check("größe", &["größe"]);
    }

    #[test]
    fn modes_change_what_quotes_and_backslashes_mean() {
        let ansi = Modes {
            ansi_quotes: true,
            ..Modes::default()
        };
        check_in(ansi, r#""Orders" "a b""#, &["orders", "`a b`"]);
        let plain = Modes {
            no_backslash_escapes: true,
            ..Modes::default()
        };
        check_in(plain, r"'a\' b", &[r"'a\'", "b"]);
    }

    proptest! {
        #[test]
        fn tokens_cover_any_text_without_panic(sql in "\\PC{0,40}", ansi_quotes: bool, no_backslash_escapes: bool) {
            let mut last = 0;
            for token in tokens(&sql, Dialect::MySql(Modes { ansi_quotes, no_backslash_escapes })) {
                prop_assert!(token.at.start >= last && token.at.end > token.at.start);
                last = token.at.end;
            }
        }

        #[test]
        fn quoting_characters_in_any_order_do_not_panic(sql in "['\"`$\\\\eExXM!a01.*/\\-+#; é\n]{0,24}") {
            let _ = tokens(&sql, Dialect::MYSQL);
        }
    }
}
