//! Values: JSON ↔ what text and binary rows and parameters hold ("Binary Protocol Value").

use bytes::{BufMut, BytesMut};
use serde_json::{Number, Value};

use crate::codec::{
    BINARY, Body, CHARSET_BINARY, CHARSET_UTF8MB4, Column, Malformed, UNSIGNED, kind, lenenc,
};

/// The text of a value; `None` is NULL.
pub fn text(value: &Value) -> Option<String> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(b) => u8::from(*b).to_string(),
        Value::String(s) => s.clone(),
        Value::Number(n) => n.to_string(),
        other => other.to_string(),
    })
}

/// A column that holds all of these values.
pub fn column_for<'a>(name: &str, values: impl Iterator<Item = &'a Value>) -> Column {
    let (mut bools, mut ints, mut numbers, mut longest, mut any) = (true, true, true, 0, false);
    for value in values.filter(|v| !v.is_null()) {
        any = true;
        bools &= value.is_boolean();
        ints &= value.is_i64() || value.is_u64() || value.is_boolean();
        numbers &= value.is_number() || value.is_boolean();
        longest = longest.max(text(value).map_or(0, |t| t.len()));
    }
    // Four bytes for each character of utf8mb4 is how servers count.
    let length = u32::try_from(longest.max(1))
        .unwrap_or(u32::MAX / 4)
        .saturating_mul(4);
    let (kind, length, decimals) = match (any, bools, ints, numbers) {
        (true, true, ..) => (kind::TINY, 1, 0),
        (true, _, true, _) => (kind::LONGLONG, 20, 0),
        (true, _, _, true) => (kind::DOUBLE, 23, 31),
        _ => (kind::VAR_STRING, length, 31),
    };
    let number = kind != kind::VAR_STRING;
    Column {
        name: name.to_owned(),
        kind,
        charset: if number {
            CHARSET_BINARY
        } else {
            CHARSET_UTF8MB4
        },
        length,
        flags: if number { BINARY } else { 0 },
        decimals,
    }
}

/// Appends a value of a binary row for this column; false if it does not fit. NULL is not a value.
pub fn put_binary(out: &mut BytesMut, value: &Value, column: &Column) -> bool {
    let int = || match value {
        Value::Bool(b) => Some(i128::from(*b)),
        Value::Number(n) => n.as_i64().map(i128::from).or(n.as_u64().map(i128::from)),
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    };
    let float = || match value {
        Value::Bool(b) => Some(f64::from(u8::from(*b))),
        Value::Number(n) => n.as_f64(),
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    };
    let bytes = |n: usize| {
        let (int, bits) = (int()?, 8 * n as u32);
        let fits = match column.flags & UNSIGNED {
            0 => (-(1i128 << (bits - 1))..1i128 << (bits - 1)).contains(&int),
            _ => (0..1i128 << bits).contains(&int),
        };
        fits.then(|| int.to_le_bytes()[..n].to_vec())
    };
    let encoded = match column.kind {
        kind::TINY => bytes(1),
        kind::SHORT | kind::YEAR => bytes(2),
        // Three bytes of range in four.
        kind::LONG | kind::INT24 => bytes(4),
        kind::LONGLONG => bytes(8),
        kind::FLOAT => float().map(|f| (f as f32).to_le_bytes().to_vec()),
        kind::DOUBLE => float().map(|f| f.to_le_bytes().to_vec()),
        kind::NULL => None,
        kind::DATE | kind::DATETIME | kind::TIMESTAMP => {
            value.as_str().and_then(date).map(with_length)
        }
        kind::TIME => value.as_str().and_then(time).map(with_length),
        kind::BIT => int().and_then(|i| u64::try_from(i).ok()).map(|i| {
            let width = usize::try_from(column.length.div_ceil(8))
                .unwrap_or(8)
                .clamp(1, 8);
            with_length(i.to_be_bytes()[8 - width..].to_vec())
        }),
        _ => {
            let Some(text) = text(value) else {
                return false;
            };
            lenenc(out, text.len() as u64);
            out.put_slice(text.as_bytes());
            return true;
        }
    };
    let Some(encoded) = encoded else {
        return false;
    };
    out.put_slice(&encoded);
    true
}

fn with_length(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.insert(0, bytes.len() as u8);
    bytes
}

/// "2024-02-29", "2024-02-29 12:30:00.5", with a T as well.
fn date(text: &str) -> Option<Vec<u8>> {
    let (day, clock) = match text.split_once([' ', 'T']) {
        Some((day, clock)) => (day, Some(clock)),
        None => (text, None),
    };
    let mut parts = day.split('-');
    let year: u16 = parts.next()?.parse().ok()?;
    let month: u8 = parts.next()?.parse().ok().filter(|m| *m <= 12)?;
    let day: u8 = parts.next()?.parse().ok().filter(|d| *d <= 31)?;
    if parts.next().is_some() {
        return None;
    }
    let mut out = year.to_le_bytes().to_vec();
    out.extend([month, day]);
    if let Some(clock) = clock {
        let (hours, rest) = clock_of(clock)?;
        out.push(u8::try_from(hours).ok().filter(|h| *h < 24)?);
        out.extend(rest);
    }
    Some(out)
}

/// "[-]12:30:00.5"; more than 24 hours are days.
fn time(text: &str) -> Option<Vec<u8>> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (1, rest),
        None => (0, text),
    };
    let (hours, rest) = clock_of(text)?;
    let mut out = vec![negative];
    out.extend((hours / 24).to_le_bytes());
    out.push((hours % 24) as u8);
    out.extend(rest);
    Some(out)
}

/// Hours, then minutes, seconds and, if there are any, microseconds as they are encoded.
fn clock_of(text: &str) -> Option<(u32, Vec<u8>)> {
    let mut parts = text.split(':');
    let hours = parts.next()?.parse().ok()?;
    let minutes: u8 = parts.next()?.parse().ok().filter(|m| *m < 60)?;
    let (seconds, fraction) = parts
        .next()
        .unwrap_or("0")
        .split_once('.')
        .unwrap_or_else(|| (text.split(':').nth(2).unwrap_or("0"), ""));
    let seconds: u8 = seconds.parse().ok().filter(|s| *s < 60)?;
    if parts.next().is_some() || fraction.len() > 6 {
        return None;
    }
    let mut out = vec![minutes, seconds];
    if !fraction.is_empty() {
        let micros: u32 = format!("{fraction:0<6}").parse().ok()?;
        out.extend(micros.to_le_bytes());
    }
    Some((hours, out))
}

/// A value of a text row. DECIMAL stays text, because a float would lose digits.
pub fn from_text(raw: &[u8], column: &Column) -> Value {
    let as_text = || readable(raw, column);
    let text = String::from_utf8_lossy(raw);
    match column.kind {
        kind::TINY | kind::SHORT | kind::LONG | kind::LONGLONG | kind::INT24 | kind::YEAR => text
            .parse::<i64>()
            .map(Value::from)
            .or_else(|_| text.parse::<u64>().map(Value::from))
            .unwrap_or_else(|_| as_text()),
        kind::FLOAT | kind::DOUBLE => text
            .parse::<f64>()
            .ok()
            .and_then(Number::from_f64)
            .map_or_else(as_text, Value::Number),
        _ => as_text(),
    }
}

/// A value of a binary row, without its length.
///
/// # Errors
/// A date or a time that is none.
pub fn from_binary(raw: &[u8], column: &Column) -> Result<Value, Malformed> {
    let unsigned = column.flags & UNSIGNED != 0;
    let mut body = Body(raw);
    Ok(match column.kind {
        kind::NULL => Value::Null,
        kind::TINY if unsigned => body.u8()?.into(),
        kind::TINY => (body.u8()? as i8).into(),
        kind::SHORT | kind::YEAR if unsigned => body.u16()?.into(),
        kind::SHORT | kind::YEAR => (body.u16()? as i16).into(),
        kind::LONG | kind::INT24 if unsigned => body.u32()?.into(),
        kind::LONG | kind::INT24 => (body.u32()? as i32).into(),
        kind::LONGLONG if unsigned => body.u64()?.into(),
        kind::LONGLONG => (body.u64()? as i64).into(),
        kind::FLOAT => {
            // The shortest decimal of the four bytes, as the text protocol has it: 0.1, not 0.10000000149.
            let float = f32::from_bits(body.u32()?);
            float
                .to_string()
                .parse::<f64>()
                .ok()
                .and_then(Number::from_f64)
                .map_or(Value::Null, Value::Number)
        }
        kind::DOUBLE => {
            Number::from_f64(f64::from_bits(body.u64()?)).map_or(Value::Null, Value::Number)
        }
        kind::DATE | kind::DATETIME | kind::TIMESTAMP => date_text(body, column)?.into(),
        kind::TIME => time_text(body, column)?.into(),
        _ => readable(raw, column),
    })
}

/// Text if it is some; JSON parsed; BIT as a number; other bytes as the mysql client shows them: 0x and hexadecimal digits.
fn readable(raw: &[u8], column: &Column) -> Value {
    if column.kind == kind::BIT && raw.len() <= 8 {
        return raw.iter().fold(0u64, |n, b| n << 8 | u64::from(*b)).into();
    }
    match std::str::from_utf8(raw) {
        Ok(text) if column.kind == kind::JSON => {
            serde_json::from_str(text).unwrap_or_else(|_| text.into())
        }
        Ok(text) => text.into(),
        Err(_) => {
            let hex: String = raw.iter().map(|b| format!("{b:02X}")).collect();
            format!("0x{hex}").into()
        }
    }
}

fn date_text(mut body: Body, column: &Column) -> Result<String, Malformed> {
    let whole = !body.0.is_empty();
    let (year, month, day) = match whole {
        true => (body.u16()?, body.u8()?, body.u8()?),
        false => (0, 0, 0),
    };
    let date = format!("{year:04}-{month:02}-{day:02}");
    if column.kind == kind::DATE {
        return Ok(date);
    }
    Ok(format!("{date} {}", clock_text(body, 0, column)?))
}

fn time_text(mut body: Body, column: &Column) -> Result<String, Malformed> {
    let (mut sign, mut days) = ("", 0);
    if !body.0.is_empty() {
        sign = if body.u8()? == 1 { "-" } else { "" };
        days = body.u32()?;
    }
    Ok(format!("{sign}{}", clock_text(body, days, column)?))
}

fn clock_text(mut body: Body, days: u32, column: &Column) -> Result<String, Malformed> {
    let (hour, minute, second) = match body.0.is_empty() {
        true => (0, 0, 0),
        false => (body.u8()?, body.u8()?, body.u8()?),
    };
    let micros = if body.0.is_empty() { 0 } else { body.u32()? };
    let hours = u64::from(days) * 24 + u64::from(hour);
    let mut out = format!("{hours:02}:{minute:02}:{second:02}");
    let digits = usize::from(column.decimals);
    if (1..=6).contains(&digits) {
        out += &format!(".{micros:06}")[..=digits];
    }
    Ok(out)
}

/// A parameter as COM_STMT_EXECUTE sends it: its type, is it unsigned, its value.
pub fn parameter(value: &Value) -> (u8, bool, BytesMut) {
    let mut out = BytesMut::new();
    match value {
        Value::Null => return (kind::NULL, false, out),
        Value::Bool(b) => {
            out.put_u8((*b).into());
            return (kind::TINY, false, out);
        }
        Value::Number(n) => {
            if let Some(i) = n.as_i64() {
                out.put_i64_le(i);
                return (kind::LONGLONG, false, out);
            }
            if let Some(u) = n.as_u64() {
                out.put_u64_le(u);
                return (kind::LONGLONG, true, out);
            }
            out.put_f64_le(n.as_f64().unwrap_or_default());
            return (kind::DOUBLE, false, out);
        }
        _ => {}
    }
    let text = text(value).unwrap_or_default();
    lenenc(&mut out, text.len() as u64);
    out.put_slice(text.as_bytes());
    (kind::VAR_STRING, false, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn column(kind: u8, flags: u16, decimals: u8) -> Column {
        Column {
            name: "c".into(),
            kind,
            charset: CHARSET_UTF8MB4,
            length: 64,
            flags,
            decimals,
        }
    }

    #[test]
    fn binary_values_come_back() {
        for (value, kind, flags, decimals) in [
            (json!(-5), kind::TINY, 0, 0),
            (json!(250), kind::TINY, UNSIGNED, 0),
            (json!(-30000), kind::SHORT, 0, 0),
            (json!(1 << 30), kind::LONG, 0, 0),
            (json!(i64::MIN), kind::LONGLONG, 0, 0),
            (json!(u64::MAX), kind::LONGLONG, UNSIGNED, 0),
            (json!(0.1), kind::FLOAT, 0, 31),
            (json!(0.1), kind::DOUBLE, 0, 31),
            (json!("12.50"), kind::NEWDECIMAL, 0, 2),
            (json!("2024-02-29"), kind::DATE, 0, 0),
            (json!("2024-02-29 01:02:03"), kind::DATETIME, 0, 0),
            (json!("2024-02-29 01:02:03.50"), kind::DATETIME, 0, 2),
            (json!("-30:00:01"), kind::TIME, 0, 0),
            (json!("00:00:00.000001"), kind::TIME, 0, 6),
            (json!({"a": [1, null]}), kind::JSON, 0, 0),
            (json!(5), kind::BIT, 0, 0),
            (json!("größe"), kind::VAR_STRING, 0, 0),
        ] {
            let column = column(kind, flags, decimals);
            let mut out = BytesMut::new();
            assert!(put_binary(&mut out, &value, &column), "{value} as {kind}");
            let mut body = Body(&out);
            let raw = body.binary_value(kind).unwrap();
            assert!(body.0.is_empty(), "{value} as {kind}");
            assert_eq!(from_binary(raw, &column).unwrap(), value, "{kind}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (value, kind) in [
            (json!(128), kind::TINY),
            (json!("x"), kind::LONG),
            (json!("2024-13-01"), kind::DATE),
            (json!("10:61:00"), kind::TIME),
            (json!(5), kind::DATETIME),
        ] {
            let mut out = BytesMut::new();
            assert!(
                !put_binary(&mut out, &value, &column(kind, 0, 0)),
                "{value} as {kind}"
            );
            assert!(out.is_empty());
        }
    }

    #[test]
    fn columns_suit_their_values() {
        let kind_of = |values: &[Value]| column_for("c", values.iter()).kind;
        assert_eq!(kind_of(&[json!(1), json!(null)]), kind::LONGLONG);
        assert_eq!(kind_of(&[json!(1), json!(0.5)]), kind::DOUBLE);
        assert_eq!(kind_of(&[json!(true)]), kind::TINY);
        assert_eq!(kind_of(&[json!(1), json!("a")]), kind::VAR_STRING);
        assert_eq!(kind_of(&[json!(null)]), kind::VAR_STRING);
    }

    #[test]
    fn bytes_that_are_no_text_are_hexadecimal() {
        assert_eq!(from_text(b"\xff\x00", &column(252, 0, 0)), json!("0xFF00"));
        assert_eq!(
            from_text(
                b"18446744073709551615",
                &column(kind::LONGLONG, UNSIGNED, 0)
            ),
            json!(u64::MAX)
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(raw in proptest::collection::vec(any::<u8>(), 0..20), kind: u8, flags: u16, decimals: u8) {
            let column = column(kind, flags, decimals);
            let _ = from_binary(&raw, &column);
            let _ = from_text(&raw, &column);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[-0-9:. T]{0,30}", kind: u8) {
            put_binary(&mut BytesMut::new(), &Value::from(text), &column(kind, 0, 0));
        }
    }
}
