//! The one glob dialect of the spec language.
//!
//! `*` any run of characters, `?` one character, `[abc]` and `[a-z]` (`[!abc]` negated), `{a,b}`, `\` escapes. Where paths are
//! matched, `*` and `?` stay within a segment and `**` crosses; in HTTP paths a trailing `*` matches the rest of the path.
//! Patterns are compiled to an automaton whose matching time is linear in the text, so no pattern can stall a proxy.

use std::fmt;

/// What the pattern is matched against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Any text: `*` matches everything, line breaks included.
    Text,
    /// The same, letter case ignored (ASCII).
    TextNoCase,
    /// A file path: `*` within a segment, `**` across; `**/` also matches no segment at all, `dir/**` everything below `dir`.
    Path,
    /// An HTTP path: as [`Dialect::Path`], but a trailing `*` matches the rest.
    HttpPath,
}

/// A compiled pattern.
#[derive(Clone)]
pub struct Glob {
    pattern: String,
    dialect: Dialect,
    regex: regex::bytes::Regex,
}

impl Glob {
    /// Compiles `pattern`.
    ///
    /// # Errors
    /// An unclosed `[` or `{`, a trailing `\`, or a pattern too large to compile; as a lower-case fragment.
    pub fn new(pattern: &str, dialect: Dialect) -> Result<Glob, String> {
        let source = translate(pattern, dialect)?;
        let regex = regex::bytes::RegexBuilder::new(&source)
            .unicode(true)
            .dot_matches_new_line(true)
            .case_insensitive(dialect == Dialect::TextNoCase)
            .size_limit(1 << 20)
            .build()
            .map_err(|_| format!("pattern `{pattern}` is not a usable glob"))?;
        Ok(Glob {
            pattern: pattern.to_owned(),
            dialect,
            regex,
        })
    }

    /// Does the whole of `text` match?
    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text.as_bytes())
    }

    /// Does the whole of `bytes` match? Bytes that are not UTF-8 match `*` and `**` only.
    pub fn matches_bytes(&self, bytes: &[u8]) -> bool {
        self.regex.is_match(bytes)
    }

    /// The pattern as written.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Glob({:?}, {:?})", self.pattern, self.dialect)
    }
}

impl PartialEq for Glob {
    fn eq(&self, other: &Self) -> bool {
        self.pattern == other.pattern && self.dialect == other.dialect
    }
}

fn translate(pattern: &str, dialect: Dialect) -> Result<String, String> {
    let path = matches!(dialect, Dialect::Path | Dialect::HttpPath);
    let chars: Vec<char> = pattern.chars().collect();
    // `(?s-u:.)` is any byte: text that is not UTF-8 still matches a star.
    let (any, one) = if path {
        ("(?s-u:[^/])", "[^/]")
    } else {
        ("(?s-u:.)", ".")
    };
    let mut out = String::from(r"\A");
    let mut depth = 0usize;
    let mut i = 0;
    while i < chars.len() {
        match chars[i] {
            '*' => {
                let run = chars[i..].iter().take_while(|c| **c == '*').count();
                let end = i + run;
                if path && run >= 2 {
                    let at_segment = i == 0 || chars[i - 1] == '/';
                    if at_segment && chars.get(end) == Some(&'/') {
                        out.push_str("(?:(?s-u:.)*/)?");
                        i = end + 1;
                        continue;
                    }
                    out.push_str("(?s-u:.)*");
                } else if dialect == Dialect::HttpPath && end == chars.len() {
                    out.push_str("(?s-u:.)*");
                } else {
                    out.push_str(any);
                    out.push('*');
                }
                i = end;
                continue;
            }
            '?' => out.push_str(one),
            '[' => {
                let negated = matches!(chars.get(i + 1), Some('!' | '^'));
                let start = i + 1 + usize::from(negated);
                // A `]` that stands first is a member, as in every shell.
                let close = (start + 1..chars.len())
                    .find(|&j| chars[j] == ']')
                    .ok_or_else(|| format!("pattern `{pattern}` has an unclosed `[`"))?;
                out.push_str(if negated { "[^" } else { "[" });
                if negated && path {
                    out.push('/');
                }
                for (j, c) in chars[start..close].iter().enumerate() {
                    let is_range = *c == '-' && j != 0 && start + j + 1 != close;
                    if !is_range && !c.is_alphanumeric() {
                        out.push('\\');
                    }
                    out.push(*c);
                }
                out.push(']');
                i = close;
            }
            '{' => {
                depth += 1;
                out.push_str("(?:");
            }
            '}' if depth > 0 => {
                depth -= 1;
                out.push(')');
            }
            ',' if depth > 0 => out.push('|'),
            '\\' => {
                i += 1;
                let c = chars
                    .get(i)
                    .ok_or_else(|| format!("pattern `{pattern}` ends in a lone `\\`"))?;
                out.push_str(&regex::escape(&c.to_string()));
            }
            c => out.push_str(&regex::escape(&c.to_string())),
        }
        i += 1;
    }
    if depth > 0 {
        return Err(format!("pattern `{pattern}` has an unclosed `{{`"));
    }
    out.push_str(r"\z");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(dialect: Dialect, pattern: &str, yes: &[&str], no: &[&str]) {
        let glob = Glob::new(pattern, dialect).unwrap();
        for text in yes {
            assert!(glob.matches(text), "{pattern} should match {text}");
        }
        for text in no {
            assert!(!glob.matches(text), "{pattern} should not match {text}");
        }
    }

    #[test]
    fn text() {
        check(
            Dialect::Text,
            "INSERT INTO orders*",
            &["INSERT INTO orders VALUES\n(1)", "INSERT INTO orders"],
            &["insert into orders", " INSERT INTO orders"],
        );
        check(Dialect::TextNoCase, "get", &["GET", "get"], &["gets"]);
        check(Dialect::Text, "a?c", &["abc", "aéc"], &["ac"]);
        check(Dialect::Text, "{a,b}[0-9]", &["a1", "b9"], &["c1", "ab"]);
        check(Dialect::Text, r"\*[!x]", &["*y"], &["*x", "yy"]);
    }

    #[test]
    fn paths() {
        check(
            Dialect::Path,
            "/data/*",
            &["/data/a"],
            &["/data/a/b", "/data"],
        );
        check(
            Dialect::Path,
            "**/pg_wal/**",
            &["/var/pg_wal/0001", "pg_wal/x", "/a/pg_wal/b/c"],
            &["/var/pg_walx/1"],
        );
        check(
            Dialect::Path,
            "/tmp/**",
            &["/tmp/a", "/tmp/a/b"],
            &["/tmpx/a"],
        );
        check(
            Dialect::HttpPath,
            "/orders*",
            &["/orders", "/orders/1", "/orders/1/items"],
            &["/order"],
        );
        check(Dialect::HttpPath, "/api/*", &["/api/v1/orders"], &["/apix"]);
        check(
            Dialect::HttpPath,
            "/api/*/orders",
            &["/api/v1/orders"],
            &["/api/v1/x/orders"],
        );
    }

    #[test]
    fn broken_patterns_say_so() {
        for bad in ["[abc", "{a,b", "x\\"] {
            assert!(Glob::new(bad, Dialect::Text).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_escaped_text_matches_itself(text in "\\PC{0,24}", pattern in "\\PC{0,24}") {
            for dialect in [Dialect::Text, Dialect::TextNoCase, Dialect::Path, Dialect::HttpPath] {
                let _ = Glob::new(&pattern, dialect).map(|g| g.matches(&text));
                let escaped: String = text.chars().flat_map(|c| ['\\', c]).collect();
                prop_assert!(Glob::new(&escaped, dialect).unwrap().matches(&text));
            }
        }
    }
}
