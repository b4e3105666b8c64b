//! Values of RESP: what rules answer with, what steps decode.

use serde_json::{Map, Number, Value as Json};

use crate::codec::{Malformed, number};

/// A value of RESP2 or RESP3.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `+OK`.
    Simple(String),
    /// `-ERR …`, or RESP3's `!`.
    Error(String),
    /// `:1`.
    Integer(i64),
    /// `$…`.
    Bulk(Vec<u8>),
    /// RESP3 `_`; RESP2 `$-1`.
    Null,
    /// RESP3 `_`; RESP2 `*-1`, what EXEC and BLPOP answer there.
    NullArray,
    /// `*…`.
    Array(Vec<Value>),
    /// RESP3 `,`; RESP2 a bulk string.
    Double(f64),
    /// RESP3 `#`; RESP2 1 or 0.
    Boolean(bool),
    /// RESP3 `(`; RESP2 a bulk string.
    BigNumber(String),
    /// RESP3 `=` with its three-letter format; RESP2 a bulk string without it.
    Verbatim([u8; 3], Vec<u8>),
    /// RESP3 `%`; RESP2 an array of names and values in turn.
    Map(Vec<(Value, Value)>),
    /// RESP3 `~`; RESP2 an array.
    Set(Vec<Value>),
    /// RESP3 `>`; RESP2 an array.
    Push(Vec<Value>),
}

/// Deeper than any server's reply; a bound on recursion.
const DEPTH: usize = 64;

impl Value {
    /// Writes the value as a server does that speaks this version, 2 or 3, to the client: what RESP2 lacks is downgraded.
    pub fn encode(&self, version: u8, out: &mut Vec<u8>) {
        let three = version >= 3;
        let line = |out: &mut Vec<u8>, kind: char, text: &str| {
            out.extend_from_slice(format!("{kind}{text}\r\n").as_bytes());
        };
        let bulk = |out: &mut Vec<u8>, kind: char, bytes: &[u8]| {
            out.extend_from_slice(format!("{kind}{}\r\n", bytes.len()).as_bytes());
            out.extend_from_slice(bytes);
            out.extend_from_slice(b"\r\n");
        };
        let list = |out: &mut Vec<u8>, kind: char, values: &[Value]| {
            out.extend_from_slice(format!("{kind}{}\r\n", values.len()).as_bytes());
            for value in values {
                value.encode(version, out);
            }
        };
        match self {
            Value::Simple(text) => line(out, '+', text),
            Value::Error(text) => line(out, '-', text),
            Value::Integer(n) => line(out, ':', &n.to_string()),
            Value::Bulk(bytes) => bulk(out, '$', bytes),
            Value::Null | Value::NullArray if three => line(out, '_', ""),
            Value::Null => line(out, '$', "-1"),
            Value::NullArray => line(out, '*', "-1"),
            Value::Array(values) => list(out, '*', values),
            Value::Double(n) if three => line(out, ',', &double(*n)),
            Value::Double(n) => bulk(out, '$', double(*n).as_bytes()),
            Value::Boolean(b) if three => line(out, '#', if *b { "t" } else { "f" }),
            Value::Boolean(b) => line(out, ':', if *b { "1" } else { "0" }),
            Value::BigNumber(digits) if three => line(out, '(', digits),
            Value::BigNumber(digits) => bulk(out, '$', digits.as_bytes()),
            Value::Verbatim(format, bytes) if three => {
                bulk(out, '=', &[&format[..], b":", bytes].concat());
            }
            Value::Verbatim(_, bytes) => bulk(out, '$', bytes),
            Value::Map(pairs) => {
                let (kind, count) = if three {
                    ('%', pairs.len())
                } else {
                    ('*', pairs.len() * 2)
                };
                line(out, kind, &count.to_string());
                for (name, value) in pairs {
                    name.encode(version, out);
                    value.encode(version, out);
                }
            }
            Value::Set(values) => list(out, if three { '~' } else { '*' }, values),
            Value::Push(values) => list(out, if three { '>' } else { '*' }, values),
        }
    }

    /// The value at the front of `buf`, and how long it is; `None` if it is not whole.
    ///
    /// # Errors
    /// Bytes that are no value.
    pub fn decode(buf: &[u8]) -> Result<Option<(Value, usize)>, Malformed> {
        decode(buf, DEPTH)
    }

    /// The value as JSON: strings with invalid UTF-8 replaced, sets and pushes as lists, maps as dicts (as lists of pairs if a
    /// name is no string or number), big numbers as text.
    pub fn to_json(&self) -> Json {
        let text = |b: &[u8]| Json::from(String::from_utf8_lossy(b).into_owned());
        let list = |values: &[Value]| values.iter().map(Value::to_json).collect();
        match self {
            Value::Simple(s) | Value::Error(s) | Value::BigNumber(s) => s.as_str().into(),
            Value::Integer(n) => (*n).into(),
            Value::Bulk(bytes) | Value::Verbatim(_, bytes) => text(bytes),
            Value::Null | Value::NullArray => Json::Null,
            Value::Array(values) | Value::Set(values) | Value::Push(values) => list(values),
            // JSON has no infinities; the server's words for them.
            Value::Double(n) => {
                Number::from_f64(*n).map_or_else(|| double(*n).into(), Json::Number)
            }
            Value::Boolean(b) => (*b).into(),
            Value::Map(pairs) => {
                let name = |value: &Value| match value.to_json() {
                    Json::String(s) => Some(s),
                    Json::Number(n) => Some(n.to_string()),
                    _ => None,
                };
                let dict: Option<Map<String, Json>> = pairs
                    .iter()
                    .map(|(k, v)| Some((name(k)?, v.to_json())))
                    .collect();
                dict.map_or_else(
                    || {
                        pairs
                            .iter()
                            .map(|(k, v)| Json::from(vec![k.to_json(), v.to_json()]))
                            .collect()
                    },
                    Json::Object,
                )
            }
        }
    }
}

/// A double as servers write one.
fn double(n: f64) -> String {
    match n {
        n if n.is_nan() => "nan".into(),
        n if n.is_infinite() => if n > 0.0 { "inf" } else { "-inf" }.into(),
        n => n.to_string(),
    }
}

fn decode(buf: &[u8], depth: usize) -> Result<Option<(Value, usize)>, Malformed> {
    let Some(end) = memchr::memchr(b'\n', buf) else {
        return Ok(None);
    };
    let next = end + 1;
    let line = buf[..end].strip_suffix(b"\r").unwrap_or(&buf[..end]);
    let (kind, line) = match line.split_first() {
        Some((kind, line)) if depth > 0 => (*kind, line),
        _ => return Err(Malformed("no value, or one nested too deep".into())),
    };
    let text = || String::from_utf8_lossy(line).into_owned();
    let bad = || Malformed(format!("\"{}\"", line.escape_ascii()));
    let value = match kind {
        b'+' => Value::Simple(text()),
        b'-' => Value::Error(text()),
        b':' => Value::Integer(number(line).ok_or_else(bad)?),
        b'_' => Value::Null,
        b'#' => Value::Boolean(line == b"t"),
        b',' => Value::Double(text().parse().map_err(|_| bad())?),
        b'(' => Value::BigNumber(text()),
        b'$' | b'=' | b'!' => {
            let len = number(line).ok_or_else(bad)?;
            let Ok(len) = usize::try_from(len) else {
                return Ok(Some((Value::Null, next)));
            };
            let whole = next.checked_add(len).and_then(|n| n.checked_add(2));
            let Some(whole) = whole.filter(|n| *n <= buf.len()) else {
                return Ok(None);
            };
            let bytes = &buf[next..next + len];
            let value = match (kind, bytes) {
                (b'$', _) => Value::Bulk(bytes.to_vec()),
                (b'=', [a, b, c, b':', rest @ ..]) => Value::Verbatim([*a, *b, *c], rest.to_vec()),
                (b'=', _) => return Err(bad()),
                _ => Value::Error(String::from_utf8_lossy(bytes).into_owned()),
            };
            return Ok(Some((value, whole)));
        }
        b'*' | b'~' | b'>' | b'%' | b'|' => {
            let count = number(line).ok_or_else(bad)?;
            let Ok(count) = usize::try_from(count) else {
                return Ok(Some((Value::NullArray, next)));
            };
            return elements(kind, count, buf, next, depth);
        }
        _ => return Err(Malformed(format!("no value begins with 0x{kind:02x}"))),
    };
    Ok(Some((value, next)))
}

fn elements(
    kind: u8,
    count: usize,
    buf: &[u8],
    mut at: usize,
    depth: usize,
) -> Result<Option<(Value, usize)>, Malformed> {
    let pairs = matches!(kind, b'%' | b'|');
    let mut values = vec![];
    for _ in 0..count.saturating_mul(if pairs { 2 } else { 1 }) {
        let Some((value, n)) = decode(&buf[at..], depth - 1)? else {
            return Ok(None);
        };
        values.push(value);
        at += n;
    }
    if kind == b'|' {
        // An attribute is about the value that follows, and no part of it.
        let about = decode(&buf[at..], depth - 1)?;
        return Ok(about.map(|(value, n)| (value, at + n)));
    }
    let value = match kind {
        b'*' => Value::Array(values),
        b'~' => Value::Set(values),
        b'>' => Value::Push(values),
        _ => {
            let mut values = values.into_iter();
            let mut pairs = vec![];
            while let (Some(name), Some(value)) = (values.next(), values.next()) {
                pairs.push((name, value));
            }
            Value::Map(pairs)
        }
    };
    Ok(Some((value, at)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn encoded(value: &Value, version: u8) -> String {
        let mut out = vec![];
        value.encode(version, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_resp2_lacks_is_downgraded() {
        for (value, three, two) in [
            (Value::Null, "_\r\n", "$-1\r\n"),
            (Value::NullArray, "_\r\n", "*-1\r\n"),
            (Value::Double(1.5), ",1.5\r\n", "$3\r\n1.5\r\n"),
            (
                Value::Double(f64::NEG_INFINITY),
                ",-inf\r\n",
                "$4\r\n-inf\r\n",
            ),
            (Value::Boolean(true), "#t\r\n", ":1\r\n"),
            (Value::BigNumber("12".into()), "(12\r\n", "$2\r\n12\r\n"),
            (
                Value::Verbatim(*b"txt", b"ab".to_vec()),
                "=6\r\ntxt:ab\r\n",
                "$2\r\nab\r\n",
            ),
            (
                Value::Map(vec![(Value::Simple("a".into()), Value::Boolean(false))]),
                "%1\r\n+a\r\n#f\r\n",
                "*2\r\n+a\r\n:0\r\n",
            ),
            (
                Value::Set(vec![Value::Integer(1)]),
                "~1\r\n:1\r\n",
                "*1\r\n:1\r\n",
            ),
            (Value::Push(vec![]), ">0\r\n", "*0\r\n"),
        ] {
            assert_eq!(encoded(&value, 3), three);
            assert_eq!(encoded(&value, 2), two);
        }
    }

    #[test]
    fn attributes_are_no_part_of_the_value() {
        let bytes = b"|1\r\n+ttl\r\n:3\r\n$1\r\nv\r\n";
        let decoded = Value::decode(bytes).unwrap();
        assert_eq!(decoded, Some((Value::Bulk(b"v".to_vec()), bytes.len())));
    }

    #[test]
    fn json_keeps_types() {
        let value = Value::Map(vec![
            (Value::Simple("n".into()), Value::Double(0.5)),
            (Value::Integer(2), Value::Set(vec![Value::Null])),
        ]);
        assert_eq!(value.to_json(), json!({"n": 0.5, "2": [null]}));
        assert_eq!(Value::Double(f64::INFINITY).to_json(), json!("inf"));
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            "[a-z ]{0,8}".prop_map(Value::Simple),
            "[A-Z ]{0,8}".prop_map(Value::Error),
            any::<i64>().prop_map(Value::Integer),
            proptest::collection::vec(any::<u8>(), 0..12).prop_map(Value::Bulk),
            Just(Value::Null),
            (-1e9..1e9f64).prop_map(Value::Double),
            any::<bool>().prop_map(Value::Boolean),
            "[1-9][0-9]{0,30}".prop_map(Value::BigNumber),
            proptest::collection::vec(any::<u8>(), 0..9).prop_map(|b| Value::Verbatim(*b"txt", b)),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            let list = proptest::collection::vec(inner.clone(), 0..4);
            prop_oneof![
                list.clone().prop_map(Value::Array),
                list.clone().prop_map(Value::Set),
                list.prop_map(Value::Push),
                proptest::collection::vec((inner.clone(), inner), 0..3).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(value in values(), cut in 0..200usize) {
            let mut bytes = vec![];
            value.encode(3, &mut bytes);
            prop_assert_eq!(Value::decode(&bytes).unwrap(), Some((value.clone(), bytes.len())));
            prop_assert_eq!(Value::decode(&bytes[..cut.min(bytes.len() - 1)]).unwrap(), None);
            let mut two = vec![];
            value.encode(2, &mut two);
            let (_, n) = Value::decode(&two).unwrap().unwrap();
            prop_assert_eq!(n, two.len());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Value::decode(&bytes).map(|v| v.map(|(v, _)| v.to_json()));
        }
    }
}
