//! Values of a spec, as a server sends them: in the text format, and in the binary one.

use serde_json::Value;

use crate::codec::Column;

/// Types by OID (`pg_type.dat`), as far as values from a spec can be encoded for them in binary.
pub mod oid {
    #![allow(missing_docs)] // the server's own names
    pub const BOOL: u32 = 16;
    pub const BYTEA: u32 = 17;
    pub const CHAR: u32 = 18;
    pub const NAME: u32 = 19;
    pub const INT8: u32 = 20;
    pub const INT2: u32 = 21;
    pub const INT4: u32 = 23;
    pub const TEXT: u32 = 25;
    pub const OID: u32 = 26;
    pub const JSON: u32 = 114;
    pub const XML: u32 = 142;
    pub const FLOAT4: u32 = 700;
    pub const FLOAT8: u32 = 701;
    pub const UNKNOWN: u32 = 705;
    pub const BPCHAR: u32 = 1042;
    pub const VARCHAR: u32 = 1043;
    pub const DATE: u32 = 1082;
    pub const TIMESTAMP: u32 = 1114;
    pub const TIMESTAMPTZ: u32 = 1184;
    pub const NUMERIC: u32 = 1700;
    pub const UUID: u32 = 2950;
    pub const JSONB: u32 = 3802;
}

/// Arrays, and what is in them.
const ARRAYS: &[(u32, u32)] = &[
    (143, oid::XML),
    (199, oid::JSON),
    (1000, oid::BOOL),
    (1001, oid::BYTEA),
    (1002, oid::CHAR),
    (1003, oid::NAME),
    (1005, oid::INT2),
    (1007, oid::INT4),
    (1009, oid::TEXT),
    (1014, oid::BPCHAR),
    (1015, oid::VARCHAR),
    (1016, oid::INT8),
    (1021, oid::FLOAT4),
    (1022, oid::FLOAT8),
    (1028, oid::OID),
    (1115, oid::TIMESTAMP),
    (1182, oid::DATE),
    (1185, oid::TIMESTAMPTZ),
    (1231, oid::NUMERIC),
    (2951, oid::UUID),
    (3807, oid::JSONB),
];

/// The most dimensions that an array has (`MAXDIM` in array.h).
const MOST_DIMENSIONS: usize = 6;

fn element_of(array: u32) -> Option<u32> {
    ARRAYS.iter().find(|(a, _)| *a == array).map(|(_, e)| *e)
}

/// The bytes of a value in this column.
///
/// # Errors
/// A value that its type does not hold, or a type that is not known here in binary.
pub fn encode(value: &Value, column: &Column) -> Result<Vec<u8>, String> {
    let encoded = match column.format {
        0 => text(value, column.oid).map(String::into_bytes),
        _ => binary(value, column.oid),
    };
    encoded.ok_or_else(|| {
        let format = if column.format == 0 { "text" } else { "binary" };
        format!(
            "response() cannot encode {value} for column \"{}\" (type {}) in the {format} format that the client asked for",
            column.name, column.oid
        )
    })
}

/// The value's text, whether it fits a type or not.
fn plain(value: &Value) -> String {
    match value {
        Value::Bool(b) => if *b { "t" } else { "f" }.into(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

fn text(value: &Value, oid: u32) -> Option<String> {
    match (oid, value) {
        (oid::JSON | oid::JSONB, _) => Some(value.to_string()),
        (oid::BOOL, _) => boolean(value).map(|b| plain(&Value::Bool(b))),
        (oid::BYTEA, _) => {
            let mut out = "\\x".to_owned();
            for byte in bytes(value)? {
                out.push_str(&format!("{byte:02x}"));
            }
            Some(out)
        }
        (
            oid::INT2
            | oid::INT4
            | oid::INT8
            | oid::OID
            | oid::FLOAT4
            | oid::FLOAT8
            | oid::NUMERIC
            | oid::UUID
            | oid::DATE
            | oid::TIMESTAMP
            | oid::TIMESTAMPTZ,
            _,
        ) => binary(value, oid).map(|_| plain(value)),
        (_, Value::Array(items)) if !is_text(oid) => {
            // Of a type that is not known here it can only be an array, of an enumeration for example.
            let element = element_of(oid).unwrap_or(oid::UNKNOWN);
            dimensions(items, element)?;
            array_text(items, element)
        }
        // As psql writes an array.
        (_, Value::String(s)) if element_of(oid).is_some() => {
            s.starts_with(['{', '[']).then(|| s.clone())
        }
        _ if element_of(oid).is_some() => None,
        _ => Some(plain(value)),
    }
}

fn is_text(oid: u32) -> bool {
    matches!(
        oid,
        oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME | oid::CHAR | oid::XML | oid::UNKNOWN
    )
}

fn binary(value: &Value, oid: u32) -> Option<Vec<u8>> {
    let int = || match value {
        Value::Number(n) => n.as_i64(),
        Value::String(s) => s.parse().ok(),
        _ => None,
    };
    let float = || match value {
        Value::Number(n) => n.as_f64(),
        Value::String(s) => s.parse().ok(),
        _ => None,
    };
    Some(match oid {
        oid::BOOL => vec![u8::from(boolean(value)?)],
        oid::INT2 => i16::try_from(int()?).ok()?.to_be_bytes().into(),
        oid::INT4 => i32::try_from(int()?).ok()?.to_be_bytes().into(),
        oid::OID => u32::try_from(int()?).ok()?.to_be_bytes().into(),
        oid::INT8 => int()?.to_be_bytes().into(),
        oid::FLOAT4 => (float()? as f32).to_be_bytes().into(),
        oid::FLOAT8 => float()?.to_be_bytes().into(),
        // jsonb_recv: a version, then the text.
        oid::JSONB => [b"\x01", value.to_string().as_bytes()].concat(),
        oid::JSON => value.to_string().into_bytes(),
        oid::BYTEA => bytes(value)?,
        oid::UUID => uuid(value.as_str()?)?,
        oid::NUMERIC if matches!(value, Value::Number(_) | Value::String(_)) => {
            numeric(&plain(value))?
        }
        oid::DATE => days(value.as_str()?)?.to_be_bytes().into(),
        oid::TIMESTAMP | oid::TIMESTAMPTZ => micros(value.as_str()?)?.to_be_bytes().into(),
        _ if is_text(oid) => plain(value).into_bytes(),
        _ => array_binary(value.as_array()?, element_of(oid)?)?,
    })
}

fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(b) => Some(*b),
        Value::String(s) => match s.as_str() {
            "t" | "true" => Some(true),
            "f" | "false" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// What a bytea holds: `\x00ff` as the server writes it, any other text as it is.
fn bytes(value: &Value) -> Option<Vec<u8>> {
    let text = value.as_str()?;
    match text.strip_prefix("\\x") {
        Some(digits) => hex(digits.bytes()),
        None => Some(text.into()),
    }
}

fn hex(digits: impl Iterator<Item = u8>) -> Option<Vec<u8>> {
    let digits: Vec<u8> = digits
        .map(|b| (b as char).to_digit(16).map(|d| d as u8))
        .collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty()
        .then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// The lengths of an array's dimensions; `None` for what is no array: rows of different lengths, values beside lists.
fn dimensions(items: &[Value], element: u32) -> Option<Vec<usize>> {
    let nested = items.iter().filter(|i| i.is_array()).count();
    // A list within an array of documents is a document.
    if nested == 0 || matches!(element, oid::JSON | oid::JSONB) {
        return Some(vec![items.len()]);
    }
    let mut inner = items
        .iter()
        .map(|i| dimensions(i.as_array().filter(|i| !i.is_empty())?, element));
    let first = inner.next()??;
    let alike = inner.all(|i| i.as_ref() == Some(&first));
    (alike && first.len() < MOST_DIMENSIONS).then(|| [vec![items.len()], first].concat())
}

/// `array_out`: quoted is what would be read as something else.
fn array_text(items: &[Value], element: u32) -> Option<String> {
    let item = |value: &Value| match value {
        Value::Null => Some("NULL".into()),
        Value::Array(inner) if !matches!(element, oid::JSON | oid::JSONB) => {
            array_text(inner, element)
        }
        value => text(value, element).map(|text| {
            let odd = |c: char| c.is_ascii_whitespace() || "\x0b\"\\{},".contains(c);
            match text.is_empty() || text.eq_ignore_ascii_case("null") || text.contains(odd) {
                true => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
                false => text,
            }
        }),
    };
    let items: Vec<String> = items.iter().map(item).collect::<Option<_>>()?;
    Some(format!("{{{}}}", items.join(",")))
}

/// `array_recv`: dimensions, has-nulls, element type, (length, lower bound) per dimension, elements.
fn array_binary(items: &[Value], element: u32) -> Option<Vec<u8>> {
    fn put(out: &mut Vec<u8>, items: &[Value], depth: usize, element: u32) -> Option<()> {
        for item in items {
            match item {
                Value::Array(inner) if depth > 1 => put(out, inner, depth - 1, element)?,
                Value::Null => out.extend((-1i32).to_be_bytes()),
                item => {
                    let bytes = binary(item, element)?;
                    out.extend(i32::try_from(bytes.len()).ok()?.to_be_bytes());
                    out.extend(bytes);
                }
            }
        }
        Some(())
    }
    let lengths = match items {
        [] => vec![],
        items => dimensions(items, element)?,
    };
    let mut elements = vec![];
    put(&mut elements, items, lengths.len(), element)?;
    let mut out = vec![];
    out.extend(u32::try_from(lengths.len()).ok()?.to_be_bytes());
    // Readers go by the elements' own lengths; that there may be NULLs is always true.
    out.extend(1u32.to_be_bytes());
    out.extend(element.to_be_bytes());
    for length in lengths {
        out.extend(u32::try_from(length).ok()?.to_be_bytes());
        out.extend(1u32.to_be_bytes());
    }
    out.extend(elements);
    Some(out)
}

fn uuid(text: &str) -> Option<Vec<u8>> {
    let digits = text.bytes().filter(|b| !matches!(b, b'-' | b'{' | b'}'));
    hex(digits).filter(|bytes| bytes.len() == 16)
}

/// `numeric_recv`: groups of four decimal digits, the weight of the first, the sign, the display scale.
fn numeric(text: &str) -> Option<Vec<u8>> {
    let special: Option<u16> = match text {
        "NaN" => Some(0xC000),
        "Infinity" => Some(0xD000),
        "-Infinity" => Some(0xF000),
        _ => None,
    };
    if let Some(sign) = special {
        return Some([[0; 2], [0; 2], sign.to_be_bytes(), [0; 2]].concat());
    }
    let text = without_exponent(text)?;
    let text = text.as_str();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.len() + fraction.len() == 0 || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let pad = (4 - whole.len() % 4) % 4;
    let mut padded = "0".repeat(pad) + whole + fraction;
    padded.push_str(&"0".repeat((4 - fraction.len() % 4) % 4));
    let mut weight = i16::try_from((whole.len() + pad) / 4).ok()? - 1;
    let mut groups: Vec<u16> = padded
        .as_bytes()
        .chunks(4)
        .map(|c| c.iter().fold(0, |n, d| n * 10 + u16::from(d - b'0')))
        .collect();
    while groups.last() == Some(&0) {
        groups.pop();
    }
    while groups.first() == Some(&0) {
        groups.remove(0);
        weight -= 1;
    }
    if groups.is_empty() {
        weight = 0;
    }
    let sign: u16 = if negative && !groups.is_empty() {
        0x4000
    } else {
        0
    };
    let mut out = vec![];
    out.extend(u16::try_from(groups.len()).ok()?.to_be_bytes());
    out.extend(weight.to_be_bytes());
    out.extend(sign.to_be_bytes());
    out.extend(u16::try_from(fraction.len()).ok()?.to_be_bytes());
    groups.iter().for_each(|g| out.extend(g.to_be_bytes()));
    Some(out)
}

/// A decimal number's digits, its point where an exponent puts it.
fn without_exponent(text: &str) -> Option<String> {
    let Some((mantissa, exponent)) = text.split_once(['e', 'E']) else {
        return Some(text.to_owned());
    };
    let exponent: i32 = exponent.parse().ok().filter(|e| (-400..=400).contains(e))?;
    let (sign, digits) = match mantissa.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", mantissa),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let zeros = "0".repeat(exponent.unsigned_abs() as usize);
    let (digits, point) = match exponent {
        0.. => {
            let digits = format!("{whole}{fraction}{zeros}");
            (digits, whole.len() + zeros.len())
        }
        _ => (format!("{zeros}{whole}{fraction}"), whole.len()),
    };
    let (whole, fraction) = digits.split_at_checked(point)?;
    let fraction = fraction.trim_end_matches('0');
    let whole = if whole.is_empty() { "0" } else { whole };
    let point = if fraction.is_empty() { "" } else { "." };
    Some(format!("{sign}{whole}{point}{fraction}"))
}

/// Days from 2000-01-01, PostgreSQL's epoch, to an ISO date of the proleptic Gregorian calendar; the server's ends of time are beyond it.
fn days(text: &str) -> Option<i32> {
    match text {
        "infinity" => Some(i32::MAX),
        "-infinity" => Some(i32::MIN),
        _ => i32::try_from(civil_days(text)?).ok(),
    }
}

fn civil_days(text: &str) -> Option<i64> {
    let (text, before_christ) = match text.strip_suffix(" BC") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let mut parts = text.splitn(3, '-').map(|p| p.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if !(1..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // There is no year 0.
    let year = if before_christ { 1 - year } else { year };
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": days_from_civil; 730425 is 2000-01-01 counted from 0000-03-01.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 730_425)
}

/// Microseconds from 2000-01-01 00:00 to "2024-05-06 07:08:09.123456", with an optional offset from UTC.
fn micros(text: &str) -> Option<i64> {
    match text {
        "infinity" => return Some(i64::MAX),
        "-infinity" => return Some(i64::MIN),
        _ => {}
    }
    let (text, era) = match text.strip_suffix(" BC") {
        Some(rest) => (rest, " BC"),
        None => (text, ""),
    };
    let (date, time) = text.split_once([' ', 'T']).unwrap_or((text, "00:00:00"));
    let zone = time.find(['+', '-', 'Z']).unwrap_or(time.len());
    let (time, zone) = time.split_at(zone);
    let offset = match zone.strip_prefix(['+', '-']) {
        None => 0,
        Some(hours) => {
            let (hours, minutes) = match hours.split_once(':') {
                Some((h, m)) => (h, m),
                None => hours.split_at_checked(2)?,
            };
            let minutes: i64 = if minutes.is_empty() {
                0
            } else {
                minutes.parse().ok()?
            };
            let seconds = hours.parse::<i64>().ok()? * 3600 + minutes * 60;
            if zone.starts_with('-') {
                -seconds
            } else {
                seconds
            }
        }
    };
    let mut parts = time.splitn(3, ':');
    let (hours, minutes): (i64, i64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let (seconds, fraction) = match parts.next().unwrap_or("0").split_once('.') {
        Some((s, f)) => (s.parse::<i64>().ok()?, f.to_owned()),
        None => (
            time.splitn(3, ':').nth(2).unwrap_or("0").parse().ok()?,
            String::new(),
        ),
    };
    let fraction: i64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    let seconds =
        civil_days(&format!("{date}{era}"))? * 86_400 + hours * 3600 + minutes * 60 + seconds
            - offset;
    Some(seconds * 1_000_000 + fraction)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn binary_formats() {
        let check = |value: Value, oid: u32, expected: &[u8]| {
            assert_eq!(
                binary(&value, oid).as_deref(),
                Some(expected),
                "{value} as {oid}"
            );
        };
        check(json!(5), oid::INT2, &[0, 5]);
        check(json!(-1), oid::INT8, &[255; 8]);
        check(json!({"a": 1}), oid::JSONB, b"\x01{\"a\":1}");
        check(
            json!("12345.6"),
            oid::NUMERIC,
            &[0, 3, 0, 1, 0, 0, 0, 1, 0, 1, 0x09, 0x29, 0x17, 0x70],
        );
        check(
            json!(-0.001),
            oid::NUMERIC,
            &[0, 1, 255, 255, 0x40, 0, 0, 3, 0, 10],
        );
        check(json!(0), oid::NUMERIC, &[0; 8]);
        check(json!("NaN"), oid::NUMERIC, &[0, 0, 0, 0, 0xC0, 0, 0, 0]);
        check(json!(1e20), oid::NUMERIC, &[0, 1, 0, 5, 0, 0, 0, 0, 0, 1]);
        check(json!("2000-01-02"), oid::DATE, &[0, 0, 0, 1]);
        check(json!("1999-12-31"), oid::DATE, &[255; 4]);
        check(json!("infinity"), oid::DATE, &[0x7f, 255, 255, 255]);
        check(
            json!("2000-01-01 00:00:01.5"),
            oid::TIMESTAMP,
            &1_500_000i64.to_be_bytes(),
        );
        check(json!("2000-01-01T02:00:00+02"), oid::TIMESTAMPTZ, &[0; 8]);
        check(json!("\\x00ff"), oid::BYTEA, &[0, 255]);
        check(json!("plain"), oid::BYTEA, b"plain");
        let one = [0, 0, 0, 1];
        let int2s = [
            &one[..],
            &one,
            &[0, 0, 0, 21],
            &[0, 0, 0, 2],
            &one,
            &[0, 0, 0, 2, 0, 7],
            &[255; 4],
        ];
        check(json!([7, null]), 1005, &int2s.concat());
        check(
            json!([]),
            1005,
            &[&[0; 4][..], &one, &[0, 0, 0, 21]].concat(),
        );
    }

    #[test]
    fn text_formats() {
        let check = |value: Value, oid: u32, expected: &str| {
            assert_eq!(
                text(&value, oid).as_deref(),
                Some(expected),
                "{value} as {oid}"
            );
        };
        check(json!(true), oid::BOOL, "t");
        check(json!("false"), oid::BOOL, "f");
        check(json!("x"), oid::JSON, "\"x\"");
        check(json!("\\x00FF"), oid::BYTEA, "\\x00ff");
        check(json!("ab"), oid::BYTEA, "\\x6162");
        check(json!([1, 2, null]), 1007, "{1,2,NULL}");
        check(json!([[1, 2], [3, 4]]), 1007, "{{1,2},{3,4}}");
        check(json!([]), 1007, "{}");
        check(
            json!(["a", "b c", "", "null", "q\"\\", "{", null]),
            1009,
            r#"{a,"b c","","null","q\"\\","{",NULL}"#,
        );
        check(json!([true, false]), 1000, "{t,f}");
        check(json!([{"a": [1]}]), 3807, r#"{"{\"a\":[1]}"}"#);
        check(json!("{1,2}"), 1007, "{1,2}");
        // An enumeration's array has an OID of its database's.
        check(json!(["new", "paid"]), 16_500, "{new,paid}");
        check(json!("0044-03-15 BC"), oid::DATE, "0044-03-15 BC");
    }

    #[test]
    fn what_does_not_fit_its_type_is_no_value_of_it_in_either_format() {
        for (value, oid) in [
            (json!(70000), oid::INT2),
            (json!(1.5), oid::INT8),
            (json!("seven"), oid::INT4),
            (json!([1]), oid::INT4),
            (json!(1), oid::BOOL),
            (json!("x"), oid::DATE),
            (json!("x"), oid::NUMERIC),
            (json!(true), oid::NUMERIC),
            (json!("\\x0"), oid::BYTEA),
            (json!("\\xzz"), oid::BYTEA),
            (json!(7), oid::BYTEA),
            (json!("a0eebc99"), oid::UUID),
            (json!(["x"]), 1007),
            (json!([[1], [2, 3]]), 1007),
            (json!([[1], 2]), 1007),
            (json!([[], []]), 1007),
            (json!(7), 1007),
        ] {
            assert_eq!(text(&value, oid), None, "{value} as {oid}");
            assert_eq!(binary(&value, oid), None, "{value} as {oid}");
        }
    }
}
