//! Reading JSON: as much as it takes to understand `faultbox test --format json`.

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// Any number.
    Number(f64),
    /// A string.
    Text(String),
    /// A list.
    List(Vec<Json>),
    /// An object, in order.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Parses a whole document.
    pub fn parse(text: &str) -> Option<Json> {
        let mut rest = text.trim_start();
        let value = value(&mut rest, 0)?;
        rest.trim_start().is_empty().then_some(value)
    }

    /// A member of an object.
    pub fn get(&self, name: &str) -> Option<&Json> {
        match self {
            Json::Object(members) => members.iter().find(|(n, _)| n == name).map(|(_, v)| v),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The elements, if it is a list.
    pub fn list(&self) -> &[Json] {
        match self {
            Json::List(list) => list,
            _ => &[],
        }
    }
}

/// Deeper nesting than this is no document of ours; the bound keeps the recursion off the end of the stack.
const MAX_DEPTH: usize = 100;

fn value(rest: &mut &str, depth: usize) -> Option<Json> {
    if depth > MAX_DEPTH {
        return None;
    }
    *rest = rest.trim_start();
    match rest.as_bytes().first()? {
        b'{' => {
            let mut members = vec![];
            sequence(rest, '}', |rest| {
                let name = string(rest)?;
                eat(rest, ":")?;
                members.push((name, value(rest, depth + 1)?));
                Some(())
            })?;
            Some(Json::Object(members))
        }
        b'[' => {
            let mut list = vec![];
            sequence(rest, ']', |rest| {
                list.push(value(rest, depth + 1)?);
                Some(())
            })?;
            Some(Json::List(list))
        }
        b'"' => string(rest).map(Json::Text),
        b't' => eat(rest, "true").map(|()| Json::Bool(true)),
        b'f' => eat(rest, "false").map(|()| Json::Bool(false)),
        b'n' => eat(rest, "null").map(|()| Json::Null),
        _ => {
            let end = rest
                .find(|c: char| !matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E'))
                .unwrap_or(rest.len());
            let number = rest[..end].parse().ok()?;
            *rest = &rest[end..];
            Some(Json::Number(number))
        }
    }
}

fn sequence<'a>(
    rest: &mut &'a str,
    close: char,
    mut item: impl FnMut(&mut &'a str) -> Option<()>,
) -> Option<()> {
    *rest = rest[1..].trim_start();
    if let Some(after) = rest.strip_prefix(close) {
        *rest = after;
        return Some(());
    }
    loop {
        item(rest)?;
        *rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix(close) {
            *rest = after;
            return Some(());
        }
        eat(rest, ",")?;
        *rest = rest.trim_start();
    }
}

fn eat(rest: &mut &str, word: &str) -> Option<()> {
    *rest = rest.trim_start().strip_prefix(word)?;
    Some(())
}

fn string(rest: &mut &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = rest.strip_prefix('"')?.chars();
    loop {
        match chars.next()? {
            '"' => break,
            '\\' => out.push(match chars.next()? {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                'b' => '\u{8}',
                'f' => '\u{c}',
                'u' => escaped(&mut chars)?,
                other => other,
            }),
            c => out.push(c),
        }
    }
    *rest = chars.as_str();
    Some(out)
}

/// What follows `\u`, surrogate pairs included.
fn escaped(chars: &mut std::str::Chars<'_>) -> Option<char> {
    fn unit(chars: &mut std::str::Chars<'_>) -> Option<u16> {
        let (hex, rest) = chars.as_str().split_at_checked(4)?;
        *chars = rest.chars();
        u16::from_str_radix(hex, 16).ok()
    }
    let first = unit(chars)?;
    if !(0xD800..0xDC00).contains(&first) {
        return char::from_u32(u32::from(first));
    }
    *chars = chars.as_str().strip_prefix("\\u")?.chars();
    char::decode_utf16([first, unit(chars)?]).next()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_read() {
        let json = Json::parse(r#" {"a": [1, -2.5e1, {"b": null}], "c\n": "x\u00e9\ud83d\ude00\"", "d": true, "e": {}, "f": []} "#)
            .unwrap();
        assert_eq!(json.get("a").unwrap().list()[1], Json::Number(-25.0));
        assert_eq!(json.get("c\n").unwrap().text(), Some("xé😀\""));
        assert_eq!(json.get("d"), Some(&Json::Bool(true)));
        assert_eq!(json.get("f").unwrap().list(), []);
    }

    #[test]
    fn what_is_no_document_is_refused() {
        for wrong in [
            "",
            "{",
            "[1,]",
            "{\"a\" 1}",
            "\"\\ud800\"",
            "tru",
            "1 2",
            "[1",
            "\"",
        ] {
            assert_eq!(Json::parse(wrong), None, "{wrong}");
        }
        assert_eq!(Json::parse(&"[".repeat(100_000)), None);
    }
}
