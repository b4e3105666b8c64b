//! SQL text → tokens.

mod mysql;
mod postgres;

use std::borrow::Cow;
use std::ops::Range;

use crate::Dialect;

/// What a token is, as far as matching cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A keyword or an identifier; its text is case-folded, and unquoted when quoting made no difference.
    Word,
    /// A string, bit string or number, as written.
    Literal,
    /// `$1`.
    Parameter,
    /// An operator or a mark.
    Mark,
}

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token<'a> {
    /// What it is.
    pub kind: Kind,
    /// Its text in canonical form.
    pub text: Cow<'a, str>,
    /// Where it stands in the source, in bytes.
    pub at: Range<usize>,
}

impl Token<'_> {
    /// Is it this mark?
    pub fn is(&self, mark: &str) -> bool {
        self.kind == Kind::Mark && self.text == mark
    }

    /// Its text, if it is a word.
    pub fn word(&self) -> Option<&str> {
        (self.kind == Kind::Word).then_some(&*self.text)
    }
}

/// Splits `sql` into tokens; comments and white space vanish. Whatever is unclosed reaches to the end.
pub fn tokens(sql: &str, dialect: Dialect) -> Vec<Token<'_>> {
    let mut out = vec![];
    let mut at = 0;
    while let Some((token, end)) = next(sql, at, dialect) {
        out.extend(token);
        at = end;
    }
    out
}

/// The token that begins at `at` (`None` for white space and comments), and where it ends; nothing at the end of the text.
pub fn next(sql: &str, at: usize, dialect: Dialect) -> Option<(Option<Token<'_>>, usize)> {
    match dialect {
        Dialect::Postgres => postgres::next(sql, at),
        Dialect::MySql(modes) => mysql::next(sql, at, modes),
    }
}

/// May a word begin with this byte? Any byte past ASCII is a letter to the server.
pub fn is_word_start(b: u8) -> bool {
    b.is_ascii_alphabetic() || b == b'_' || b >= 0x80
}

/// May a word go on with this byte?
pub fn is_word(b: u8) -> bool {
    is_word_start(b) || b.is_ascii_digit() || b == b'$'
}

/// A quoted text's length, both quotes included; a doubled quote is one inside.
fn quoted(bytes: &[u8], quote: u8, escapes: bool) -> usize {
    let mut i = 1;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' if escapes => i += 2,
            b if b == quote && bytes.get(i + 1) == Some(&quote) => i += 2,
            b if b == quote => return i + 1,
            _ => i += 1,
        }
    }
    bytes.len()
}
