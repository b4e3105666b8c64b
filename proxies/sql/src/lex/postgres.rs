//! The lexical rules of PostgreSQL's manual (4.1, "Lexical Structure").

use std::borrow::Cow;

use super::{Kind, Token, is_word, is_word_start, quoted};

/// The token that begins at `at` (`None` for white space and comments), and where it ends; nothing at the end of the text.
pub fn next(sql: &str, at: usize) -> Option<(Option<Token<'_>>, usize)> {
    let rest = &sql[at..];
    let bytes = rest.as_bytes();
    let first = *bytes.first()?;
    let token = |kind: Kind, len: usize| Token {
        kind,
        text: Cow::Borrowed(&rest[..len]),
        at: at..at + len,
    };
    let found = |kind, len: usize| Some((Some(token(kind, len)), at + len));
    match first {
        b' ' | b'\t' | b'\n' | b'\r' | b'\x0b' | b'\x0c' => {
            let len = bytes
                .iter()
                .take_while(|b| b.is_ascii_whitespace() || **b == b'\x0b')
                .count();
            Some((None, at + len))
        }
        b'-' if bytes.get(1) == Some(&b'-') => {
            let len = memchr::memchr2(b'\n', b'\r', bytes).unwrap_or(bytes.len());
            Some((None, at + len))
        }
        b'/' if bytes.get(1) == Some(&b'*') => Some((None, at + block_comment(bytes))),
        b'\'' => found(Kind::Literal, quoted(bytes, b'\'', false)),
        b'"' => {
            let len = quoted(bytes, b'"', false);
            let mut quoted = token(Kind::Word, len);
            if let Some(plain) = unquoted(&rest[..len]) {
                quoted.text = Cow::Borrowed(plain);
            }
            Some((Some(quoted), at + len))
        }
        b'$' => {
            if let Some(len) = dollar_quoted(rest) {
                return found(Kind::Literal, len);
            }
            let digits = bytes[1..].iter().take_while(|b| b.is_ascii_digit()).count();
            match digits {
                0 => found(Kind::Mark, 1),
                n => found(Kind::Parameter, 1 + n),
            }
        }
        b'0'..=b'9' => found(Kind::Literal, number(bytes)),
        b'.' if bytes.get(1).is_some_and(u8::is_ascii_digit) => found(Kind::Literal, number(bytes)),
        _ if is_word_start(first) => {
            let len = bytes.iter().take_while(|b| is_word(**b)).count();
            // E'', B'', X'', N'' and U&'', U&"": a prefix right before a quote belongs to the literal.
            let (prefix, quote) = match bytes.get(len) {
                Some(b'\'') if len == 1 && b"eEbBxXnN".contains(&first) => (1, b'\''),
                Some(b'&') if len == 1 && matches!(first, b'u' | b'U') => match bytes.get(2) {
                    Some(quote @ (b'\'' | b'"')) => (2, *quote),
                    _ => (0, 0),
                },
                _ => (0, 0),
            };
            if prefix > 0 {
                let escapes = matches!(first, b'e' | b'E');
                let len = prefix + quoted(&bytes[prefix..], quote, escapes);
                let kind = if quote == b'"' {
                    Kind::Word
                } else {
                    Kind::Literal
                };
                return found(kind, len);
            }
            let mut word = token(Kind::Word, len);
            if rest[..len].bytes().any(|b| b.is_ascii_uppercase()) {
                // The server folds ASCII only, whatever the encoding (downcase_identifier in scansup.c).
                word.text = Cow::Owned(rest[..len].to_ascii_lowercase());
            }
            Some((Some(word), at + len))
        }
        b':' if matches!(bytes.get(1), Some(b':' | b'=')) => found(Kind::Mark, 2),
        _ if is_operator(first) => found(Kind::Mark, operator(bytes)),
        _ => found(Kind::Mark, 1),
    }
}

fn is_operator(b: u8) -> bool {
    b"+-*/<>=~!@#%^&|`?".contains(&b)
}

/// An operator's length: it ends before a comment, and before a sign unless it holds a character that no SQL operator has.
fn operator(bytes: &[u8]) -> usize {
    let run = bytes.iter().take_while(|b| is_operator(**b)).count();
    let comment = |i: &usize| matches!(&bytes[*i..], [b'-', b'-', ..] | [b'/', b'*', ..]);
    let mut len = (1..run).find(comment).unwrap_or(run);
    let special = bytes[..len].iter().any(|b| b"~!@#%^&|`?".contains(b));
    while len > 1 && !special && matches!(bytes[len - 1], b'+' | b'-') {
        len -= 1;
    }
    len
}

/// What is between the quotes, if the same name could have been written without them (keywords aside).
fn unquoted(quoted: &str) -> Option<&str> {
    let plain = quoted.strip_prefix('"')?.strip_suffix('"')?;
    let lower = |b: u8| b == b'_' || b.is_ascii_lowercase();
    let fits = plain.bytes().next().is_some_and(lower)
        && plain
            .bytes()
            .all(|b| lower(b) || b.is_ascii_digit() || b == b'$');
    fits.then_some(plain)
}

/// The length of `$tag$ … $tag$`, if that is what stands here.
fn dollar_quoted(rest: &str) -> Option<usize> {
    let bytes = rest.as_bytes();
    let tag = bytes[1..]
        .iter()
        .take_while(|b| is_word(**b) && **b != b'$')
        .count();
    if bytes.get(1 + tag) != Some(&b'$') || bytes[1].is_ascii_digit() {
        return None;
    }
    let delimiter = &rest[..tag + 2];
    let inside = memchr::memmem::find(&bytes[delimiter.len()..], delimiter.as_bytes());
    Some(inside.map_or(bytes.len(), |n| n + 2 * delimiter.len()))
}

/// A block comment's length; block comments nest.
fn block_comment(bytes: &[u8]) -> usize {
    let (mut i, mut depth) = (2, 1);
    while i < bytes.len() {
        match &bytes[i..] {
            [b'*', b'/', ..] => {
                i += 2;
                depth -= 1;
                if depth == 0 {
                    return i;
                }
            }
            [b'/', b'*', ..] => {
                i += 2;
                depth += 1;
            }
            _ => i += 1,
        }
    }
    bytes.len()
}

/// A number's length: digits, a fraction, an exponent; `0x1f` and `1_000` too (PostgreSQL 16).
fn number(bytes: &[u8]) -> usize {
    let mut len = 0;
    while let Some(b) = bytes.get(len) {
        let exponent_sign = matches!(b, b'+' | b'-')
            && matches!(bytes[len - 1], b'e' | b'E')
            && !bytes.starts_with(b"0x")
            && bytes.get(len + 1).is_some_and(u8::is_ascii_digit);
        // `1..10` is PL/pgSQL's range, not a number with two points.
        let point =
            *b == b'.' && !bytes[..len].contains(&b'.') && bytes.get(len + 1) != Some(&b'.');
        if !(b.is_ascii_alphanumeric() || *b == b'_' || point || exponent_sign) {
            break;
        }
        len += 1;
    }
    len
}

#[cfg(test)]
mod tests {
    use super::super::tokens as split;
    use super::*;
    use crate::Dialect;
    use proptest::prelude::*;

    fn tokens(sql: &str) -> Vec<Token<'_>> {
        split(sql, Dialect::Postgres)
    }

    fn check(sql: &str, expected: &[&str]) {
        let texts: Vec<_> = tokens(sql).into_iter().map(|t| t.text).collect();
        assert_eq!(texts, expected, "{sql}");
    }

    #[test]
    fn lexical_rules() {
        check("SELECT  1\n", &["select", "1"]);
        check("a--c\nb/* x /* y */ z */c", &["a", "b", "c"]);
        check("'it''s' E'a\\'b' x'1F'", &["'it''s'", "E'a\\'b'", "x'1F'"]);
        check("$$a;b$$ $x$ $$ $x$ $1", &["$$a;b$$", "$x$ $$ $x$", "$1"]);
        check(
            r#""orders" "Orders" "a""b""#,
            &["orders", "\"Orders\"", "\"a\"\"b\""],
        );
        check(r#"U&"d\0061t" u&'x'"#, &[r#"U&"d\0061t""#, "u&'x'"]);
        check("a.b::int", &["a", ".", "b", "::", "int"]);
        check(
            "a=-1 b<-2 @-3",
            &["a", "=", "-", "1", "b", "<", "-", "2", "@-", "3"],
        );
        check(
            "1.5e-3 .5 0x1F 1-2",
            &["1.5e-3", ".5", "0x1F", "1", "-", "2"],
        );
        check("a->>'k' @> b", &["a", "->>", "'k'", "@>", "b"]);
        check("ÜBER größe", &["Über", "größe"]);
        check("'open", &["'open"]);
        check("1-- c\r2", &["1", "2"]);
    }

    proptest! {
        #[test]
        fn tokens_cover_any_text_without_panic(sql in "\\PC{0,40}") {
            let mut last = 0;
            for token in tokens(&sql) {
                prop_assert!(token.at.start >= last && token.at.end > token.at.start);
                last = token.at.end;
            }
        }

        #[test]
        fn quoting_characters_in_any_order_do_not_panic(sql in "['\"$\\\\eEuU&a1.*/\\-+; é\n]{0,24}") {
            let _ = tokens(&sql);
        }
    }
}
