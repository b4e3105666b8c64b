//! Finds the tokens of a call in its source text, so that a message can underline the very argument it is about.
//!
//! The text has been parsed by Starlark already, so brackets balance; this scanner only has to know strings, comments and nesting.

use std::ops::Range;

/// One argument of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgToken {
    /// The keyword, if it has one.
    pub name: Option<(String, Range<usize>)>,
    /// Its value.
    pub value: Range<usize>,
}

/// A call's tokens, as byte ranges of the text that was scanned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallTokens {
    /// What is called: `a.b.c` of `a.b.c(x)`.
    pub callee: Range<usize>,
    /// Its arguments, in order.
    pub args: Vec<ArgToken>,
}

impl CallTokens {
    /// Scans `text`, which starts at a call and may run on past it.
    pub fn scan(text: &str) -> Option<CallTokens> {
        let (open, close) = last_group(text)?;
        let callee = trim(text, 0..open);
        let args = split(text, open + 1..close)
            .into_iter()
            .map(|range| argument(text, range))
            .collect();
        Some(CallTokens { callee, args })
    }

    /// The argument with this keyword.
    pub fn named(&self, name: &str) -> Option<&ArgToken> {
        self.args
            .iter()
            .find(|a| a.name.as_ref().is_some_and(|(n, _)| n == name))
    }

    /// The n-th argument without a keyword.
    pub fn positional(&self, n: usize) -> Option<&ArgToken> {
        self.args.iter().filter(|a| a.name.is_none()).nth(n)
    }
}

/// The n-th element of the list, tuple or dict (then: its key) that stands at `range`.
pub fn element(text: &str, range: Range<usize>, n: usize) -> Option<Range<usize>> {
    let body = text.get(range.clone())?;
    if !body.starts_with(['[', '(', '{']) {
        return None;
    }
    let end = group_end(text, range.start)?;
    let items = split(text, range.start + 1..end);
    let item = items.get(n)?.clone();
    if body.starts_with('{') {
        let colon = find_top(text, item.clone(), b':')?;
        return Some(trim(text, item.start..colon));
    }
    Some(item)
}

/// The value of the n-th entry of the dict that stands at `range`.
pub fn entry(text: &str, range: Range<usize>, n: usize) -> Option<Range<usize>> {
    if !text.get(range.clone())?.starts_with('{') {
        return None;
    }
    let end = group_end(text, range.start)?;
    let item = split(text, range.start + 1..end).get(n)?.clone();
    let colon = find_top(text, item.clone(), b':')?;
    Some(trim(text, colon + 1..item.end))
}

/// The outermost bracketed group that ends the text: of `a(1).b(2)`, the last one.
fn last_group(text: &str) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    let mut found = None;
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'(' => {
                let end = group_end(text, i)?;
                found = Some((i, end));
                i = end + 1;
            }
            b'[' | b'{' => i = group_end(text, i)? + 1,
            b'"' | b'\'' => i = string_end(text, i),
            b'#' => i = line_end(text, i),
            _ => i += 1,
        }
    }
    found
}

/// Where the group that opens at `open` closes.
fn group_end(text: &str, open: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut depth = 0usize;
    let mut i = open;
    while i < bytes.len() {
        match bytes[i] {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(i);
                }
            }
            b'"' | b'\'' => {
                i = string_end(text, i);
                continue;
            }
            b'#' => {
                i = line_end(text, i);
                continue;
            }
            _ => {}
        }
        i += 1;
    }
    None
}

/// Just past the string literal that starts at `start`.
fn string_end(text: &str, start: usize) -> usize {
    let bytes = text.as_bytes();
    let quote = bytes[start];
    let triple = bytes[start..].starts_with(&[quote; 3]);
    // In a raw string a backslash still keeps the quote after it from ending the string, so both kinds scan alike.
    let mut i = start + if triple { 3 } else { 1 };
    while i < bytes.len() {
        if bytes[i] == b'\\' {
            i += 2;
        } else if triple && bytes[i..].starts_with(&[quote; 3]) {
            return i + 3;
        } else if !triple && bytes[i] == quote {
            return i + 1;
        } else {
            i += 1;
        }
    }
    bytes.len()
}

fn line_end(text: &str, start: usize) -> usize {
    text[start..].find('\n').map_or(text.len(), |n| start + n)
}

/// The first `wanted` in `range` that is in no bracket, string or comment.
fn find_top(text: &str, range: Range<usize>, wanted: u8) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut i = range.start;
    while i < range.end {
        match bytes[i] {
            b if b == wanted => return Some(i),
            // The commas between a lambda's parameters are its own, and so is its colon.
            b'l' if is_word(text, i, "lambda") => {
                i = find_top(text, i + "lambda".len()..range.end, b':')? + 1;
            }
            b'(' | b'[' | b'{' => i = group_end(text, i)? + 1,
            b'"' | b'\'' => i = string_end(text, i),
            b'#' => i = line_end(text, i),
            _ => i += 1,
        }
    }
    None
}

/// Does this very word stand at `at`?
fn is_word(text: &str, at: usize, word: &str) -> bool {
    let name = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let bytes = text.as_bytes();
    bytes[at..].starts_with(word.as_bytes())
        && !name(bytes.get(at + word.len()))
        && (at == 0 || !name(bytes.get(at - 1)))
}

/// The comma-separated pieces of `range`, without surrounding blanks and comments; empty pieces are left out.
fn split(text: &str, range: Range<usize>) -> Vec<Range<usize>> {
    let mut pieces = vec![];
    let mut start = range.start;
    loop {
        let end = find_top(text, start..range.end, b',');
        let piece = trim(text, start..end.unwrap_or(range.end));
        if !piece.is_empty() {
            pieces.push(piece);
        }
        match end {
            Some(comma) => start = comma + 1,
            None => return pieces,
        }
    }
}

/// `range` without blanks and comments at its ends.
fn trim(text: &str, mut range: Range<usize>) -> Range<usize> {
    let bytes = text.as_bytes();
    while range.start < range.end {
        match bytes[range.start] {
            b if b.is_ascii_whitespace() || b == b'\\' => range.start += 1,
            b'#' => range.start = line_end(text, range.start).min(range.end),
            _ => break,
        }
    }
    // A comment after the value: the value ends at the last byte that is in no comment.
    let mut end = range.start;
    let mut i = range.start;
    while i < range.end {
        match bytes[i] {
            b'#' => i = line_end(text, i),
            b'"' | b'\'' => {
                i = string_end(text, i);
                end = i;
            }
            b => {
                i += 1;
                if !b.is_ascii_whitespace() {
                    end = i;
                }
            }
        }
    }
    range.start..end.min(range.end)
}

fn argument(text: &str, range: Range<usize>) -> ArgToken {
    let body = &text[range.clone()];
    let word = body
        .find(|c: char| !(c.is_alphanumeric() || c == '_'))
        .unwrap_or(body.len());
    let after = body[word..].trim_start();
    if word > 0 && after.starts_with('=') && !after.starts_with("==") {
        let equals = range.start + word + (body.len() - word - after.len());
        ArgToken {
            name: Some((body[..word].to_owned(), range.start..range.start + word)),
            value: trim(text, equals + 1..range.end),
        }
    } else {
        ArgToken {
            name: None,
            value: range,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> String {
        let tokens = CallTokens::scan(text).unwrap();
        let mut out = vec![text[tokens.callee].to_owned()];
        for arg in tokens.args {
            let name = arg.name.map(|(n, r)| {
                assert_eq!(n, text[r]);
                n
            });
            out.push(format!(
                "{}<{}>",
                name.unwrap_or_default(),
                &text[arg.value]
            ));
        }
        out.join(" ")
    }

    #[test]
    fn arguments() {
        assert_eq!(
            show(r#"service("db", "/bin/x", env={"A": "b,c)"}, x = f(1, 2))"#),
            r#"service <"db"> <"/bin/x"> env<{"A": "b,c)"}> x<f(1, 2)>"#
        );
        assert_eq!(
            show("f(\n  # a, comment (\n  a == b, # and = another\n  k=\"#\" # last\n)"),
            "f <a == b> k<\"#\">"
        );
        assert_eq!(show("a(1).b(c = '\\')')"), "a(1).b c<'\\')'>");
        assert_eq!(
            show("f(r\"\\\", \"\"\"x\"),\"\"\")"),
            "f <r\"\\\", \"\"\"x\"),\"\"\">"
        );
        assert_eq!(show("f()"), "f");
        assert_eq!(
            show("f(x=lambda a, b=(1, 2): (a, b), y=lambda: 1)"),
            "f x<lambda a, b=(1, 2): (a, b)> y<lambda: 1>"
        );
    }

    #[test]
    fn elements() {
        let text = r#"f(x=[a, (b, c), "d,e"], y={(p, q): 1, r: 2})"#;
        let tokens = CallTokens::scan(text).unwrap();
        let at = |name: &str, n| {
            element(text, tokens.named(name).unwrap().value.clone(), n).map(|r| &text[r])
        };
        assert_eq!(at("x", 1), Some("(b, c)"));
        assert_eq!(at("x", 2), Some("\"d,e\""));
        assert_eq!(at("x", 3), None);
        assert_eq!(at("y", 0), Some("(p, q)"));
        assert_eq!(at("y", 1), Some("r"));
        let dict = tokens.named("y").unwrap().value.clone();
        assert_eq!(entry(text, dict, 1).map(|r| &text[r]), Some("2"));
    }
}
