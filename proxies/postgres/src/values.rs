//! Values between PostgreSQL and JSON.
//!
//! Parameters go as text, which the server reads by what it takes them for. Results of the types that are known here come in binary,
//! the rest as the server's own text; integers, floats, booleans, text, JSON and arrays keep their types, everything else becomes the
//! text that psql would show. `numeric` is text too: a float would lose digits.

use serde_json::{Number, Value};
use tokio_postgres::Row;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{Format, FromSql, IsNull, Kind, ToSql, Type};

type BoxError = Box<dyn std::error::Error + Sync + Send>;

/// A parameter.
#[derive(Debug)]
pub struct Param<'a>(pub &'a Value);

impl ToSql for Param<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        if self.0.is_null() {
            return Ok(IsNull::Yes);
        }
        out.extend_from_slice(literal(self.0, ty).as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    fn to_sql_checked(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        self.to_sql(ty, out)
    }
}

/// The text that the server's input function of `ty` reads.
fn literal(value: &Value, ty: &Type) -> String {
    if matches!(*ty, Type::JSON | Type::JSONB) {
        return value.to_string();
    }
    match (value, ty.kind()) {
        (Value::String(s), _) => s.clone(),
        (Value::Array(items), Kind::Array(inner)) => {
            let item = |v: &Value| match v {
                Value::Null => "NULL".to_owned(),
                Value::Array(_) if !matches!(*inner, Type::JSON | Type::JSONB) => literal(v, ty),
                v => format!(
                    "\"{}\"",
                    literal(v, inner).replace('\\', "\\\\").replace('"', "\\\"")
                ),
            };
            format!(
                "{{{}}}",
                items.iter().map(item).collect::<Vec<_>>().join(",")
            )
        }
        (other, _) => other.to_string(),
    }
}

/// The bytes of a column, whatever its type.
struct Raw<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, BoxError> {
        Ok(Raw(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// The value of the column at `i`.
pub fn decode(row: &Row, i: usize) -> Value {
    match row.try_get::<_, Option<Raw>>(i) {
        Ok(Some(Raw(raw))) => {
            let ty = row.columns()[i].type_();
            match is_binary(ty) {
                true => value(ty, raw),
                false => as_text(ty, &String::from_utf8_lossy(raw)),
            }
        }
        _ => Value::Null,
    }
}

/// Is a result of this type to come in binary? Only if that format is known here.
pub fn is_binary(ty: &Type) -> bool {
    match ty.kind() {
        Kind::Array(inner) => is_binary(inner),
        Kind::Domain(inner) => is_binary(inner),
        Kind::Enum(_) => true,
        _ => matches!(
            *ty,
            Type::BOOL
                | Type::INT2
                | Type::INT4
                | Type::INT8
                | Type::OID
                | Type::XID
                | Type::CID
                | Type::FLOAT4
                | Type::FLOAT8
                | Type::JSON
                | Type::JSONB
                | Type::NUMERIC
                | Type::BYTEA
                | Type::UUID
                | Type::DATE
                | Type::TIME
                | Type::TIMETZ
                | Type::TIMESTAMP
                | Type::TIMESTAMPTZ
                | Type::INTERVAL
                | Type::INET
                | Type::CIDR
                | Type::VOID
                // Their binary format is their text.
                | Type::TEXT
                | Type::VARCHAR
                | Type::BPCHAR
                | Type::NAME
                | Type::CHAR
                | Type::UNKNOWN
                | Type::XML
        ),
    }
}

/// What the server has written; an array is a list of such.
fn as_text(ty: &Type, text: &str) -> Value {
    let Kind::Array(inner) = ty.kind() else {
        return text.into();
    };
    // pg_type's typdelim: a comma of all types but one. Lower bounds other than 1 stand before: `[0:1]={a,b}`.
    let delimiter = if *inner == Type::BOX { ';' } else { ',' };
    let mut rest = &text[text.find('{').unwrap_or_default()..];
    elements(&mut rest, delimiter).unwrap_or_else(|| text.into())
}

/// Reads one level of `array_out`.
fn elements(rest: &mut &str, delimiter: char) -> Option<Value> {
    let mut items: Vec<Value> = vec![];
    *rest = rest.strip_prefix('{')?;
    loop {
        match rest.chars().next()? {
            '}' if items.is_empty() => {}
            '{' => items.push(elements(rest, delimiter)?),
            '"' => {
                let mut item = String::new();
                let mut chars = rest[1..].char_indices();
                loop {
                    match chars.next()? {
                        (_, '\\') => item.push(chars.next()?.1),
                        (at, '"') => {
                            *rest = &rest[1 + at + 1..];
                            break;
                        }
                        (_, c) => item.push(c),
                    }
                }
                items.push(item.into());
            }
            _ => {
                let (item, after) = rest.split_at(rest.find([delimiter, '}'])?);
                *rest = after;
                items.push(match item {
                    "NULL" => Value::Null,
                    item => item.into(),
                });
            }
        }
        let mut chars = rest.chars();
        let next = chars.next()?;
        *rest = chars.as_str();
        match next {
            '}' => return Some(Value::Array(items)),
            c if c == delimiter => {}
            _ => return None,
        }
    }
}

fn value(ty: &Type, raw: &[u8]) -> Value {
    known(ty, raw).unwrap_or_else(|| match std::str::from_utf8(raw) {
        Ok(text) if !text.contains(|c: char| c.is_control() && !c.is_whitespace()) => text.into(),
        _ => hex(raw).into(),
    })
}

/// The value, if this is a type whose binary format is known here.
fn known(ty: &Type, raw: &[u8]) -> Option<Value> {
    let mut r = Reader(raw);
    Some(match *ty {
        Type::BOOL => Value::Bool(r.take::<1>()? != [0]),
        Type::INT2 => i16::from_be_bytes(r.take()?).into(),
        Type::INT4 => r.i32()?.into(),
        Type::INT8 => r.i64()?.into(),
        Type::OID | Type::XID | Type::CID => (r.i32()? as u32).into(),
        Type::FLOAT4 => {
            // By its own digits: 0.1f32 widened would be 0.10000000149011612.
            let f = f32::from_be_bytes(r.take()?);
            float(f.to_string().parse().ok()?, f)
        }
        Type::FLOAT8 => {
            let f = f64::from_be_bytes(r.take()?);
            float(f, f)
        }
        Type::JSON => serde_json::from_slice(raw).ok()?,
        Type::JSONB => serde_json::from_slice(raw.get(1..)?).ok()?,
        Type::NUMERIC => numeric(&mut r)?.into(),
        Type::BYTEA => hex(raw).into(),
        Type::UUID => {
            let h = hex(&r.take::<16>()?);
            let h = &h[2..];
            format!(
                "{}-{}-{}-{}-{}",
                &h[..8],
                &h[8..12],
                &h[12..16],
                &h[16..20],
                &h[20..]
            )
            .into()
        }
        Type::DATE => match r.i32()? {
            i32::MAX => "infinity".into(),
            i32::MIN => "-infinity".into(),
            days => date(days.into()).into(),
        },
        Type::TIME => clock(r.i64()?).into(),
        Type::TIMETZ => {
            let time = clock(r.i64()?);
            format!("{time}{}", offset(-r.i32()?)).into()
        }
        Type::TIMESTAMP => timestamp(r.i64()?, "").into(),
        // The server prints these in the session's time zone; here it is always UTC.
        Type::TIMESTAMPTZ => timestamp(r.i64()?, "+00").into(),
        Type::INTERVAL => {
            let (micros, days, months) = (r.i64()?, r.i32()?, r.i32()?);
            interval(months, days, micros).into()
        }
        Type::INET | Type::CIDR => address(&mut r, *ty == Type::CIDR)?.into(),
        Type::VOID => Value::Null,
        _ => match ty.kind() {
            Kind::Array(inner) => array(inner, &mut r)?,
            Kind::Domain(inner) => value(inner, raw),
            _ => return None,
        },
    })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn i16(&mut self) -> Option<i16> {
        self.take().map(i16::from_be_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.take().map(i32::from_be_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.take().map(i64::from_be_bytes)
    }
}

/// JSON has no NaN and no infinity: those are text.
fn float(f: f64, shown: impl std::fmt::Display) -> Value {
    Number::from_f64(f).map_or_else(
        || shown.to_string().replace("inf", "Infinity").into(),
        Value::Number,
    )
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::from("\\x");
    for byte in bytes {
        out.push_str(&format!("{byte:02x}"));
    }
    out
}

/// `numeric_send`: number of digit groups, weight of the first, sign, display scale, groups of four decimal digits.
fn numeric(r: &mut Reader) -> Option<String> {
    let (groups, weight, sign, scale) = (r.i16()?, r.i16()?, r.i16()? as u16, r.i16()?);
    match sign {
        0xC000 => return Some("NaN".into()),
        0xD000 => return Some("Infinity".into()),
        0xF000 => return Some("-Infinity".into()),
        _ => {}
    }
    let groups: Vec<i16> = (0..groups).map(|_| r.i16()).collect::<Option<_>>()?;
    let group = |i: i32| {
        usize::try_from(i)
            .ok()
            .and_then(|i| groups.get(i))
            .copied()
            .unwrap_or(0)
    };
    let mut whole = String::new();
    for i in 0..=i32::from(weight) {
        whole.push_str(&format!("{:04}", group(i)));
    }
    let whole = whole.trim_start_matches('0');
    let mut fraction = String::new();
    let mut i = i32::from(weight) + 1;
    while fraction.len() < usize::try_from(scale).ok()? {
        fraction.push_str(&if i < 0 {
            "0000".into()
        } else {
            format!("{:04}", group(i))
        });
        i += 1;
    }
    fraction.truncate(usize::try_from(scale).ok()?);
    let minus = if sign == 0x4000 { "-" } else { "" };
    let whole = if whole.is_empty() { "0" } else { whole };
    let point = if fraction.is_empty() { "" } else { "." };
    Some(format!("{minus}{whole}{point}{fraction}"))
}

/// `array_send`: dimensions, has-nulls, element type, (length, lower bound) per dimension, elements.
fn array(inner: &Type, r: &mut Reader) -> Option<Value> {
    let dimensions = r.i32()?;
    r.take::<8>()?;
    let lengths: Vec<usize> = (0..dimensions)
        .map(|_| {
            let length = usize::try_from(r.i32()?).ok()?;
            r.i32()?;
            Some(length)
        })
        .collect::<Option<_>>()?;
    fn level(inner: &Type, lengths: &[usize], r: &mut Reader) -> Option<Value> {
        let Some((length, deeper)) = lengths.split_first() else {
            let n = r.i32()?;
            return match usize::try_from(n) {
                Err(_) => Some(Value::Null),
                Ok(n) => Some(value(inner, r.bytes(n)?)),
            };
        };
        (0..*length).map(|_| level(inner, deeper, r)).collect()
    }
    match lengths.is_empty() {
        true => Some(Value::Array(vec![])),
        false => level(inner, &lengths, r),
    }
}

/// The ISO date so many days after 2000-01-01; years before 1 as PostgreSQL writes them.
fn date(days: i64) -> String {
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": civil_from_days; 730425 is 2000-01-01 from 0000-03-01.
    let z = days + 730_425;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year + era * 400 + i64::from(month <= 2);
    match year {
        1.. => format!("{year:04}-{month:02}-{day:02}"),
        _ => format!("{:04}-{month:02}-{day:02} BC", 1 - year),
    }
}

fn clock(micros: i64) -> String {
    let seconds = micros / 1_000_000;
    let clock = format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    );
    match micros % 1_000_000 {
        0 => clock,
        rest => format!("{clock}.{}", format!("{rest:06}").trim_end_matches('0')),
    }
}

fn timestamp(micros: i64, zone: &str) -> String {
    const DAY: i64 = 86_400_000_000;
    match micros {
        i64::MAX => "infinity".into(),
        i64::MIN => "-infinity".into(),
        _ => {
            let date = date(micros.div_euclid(DAY));
            let (date, era) = date.split_at(date.find(" BC").unwrap_or(date.len()));
            format!("{date} {}{zone}{era}", clock(micros.rem_euclid(DAY)))
        }
    }
}

fn offset(seconds: i32) -> String {
    let sign = if seconds < 0 { '-' } else { '+' };
    let minutes = seconds.unsigned_abs() / 60;
    match minutes % 60 {
        0 => format!("{sign}{:02}", minutes / 60),
        rest => format!("{sign}{:02}:{rest:02}", minutes / 60),
    }
}

/// An interval in PostgreSQL's own style: "1 year 2 mons 3 days 04:05:06".
fn interval(months: i32, days: i32, micros: i64) -> String {
    let mut parts = vec![];
    // A part that is not negative says so behind one that is (EncodeInterval in datetime.c).
    let mut negative = false;
    let mut part = |n: i64, unit: &str| {
        if n != 0 {
            let plus = if negative && n > 0 { "+" } else { "" };
            parts.push(format!("{plus}{n} {unit}{}", if n == 1 { "" } else { "s" }));
            negative = n < 0;
        }
    };
    part((months / 12).into(), "year");
    part((months % 12).into(), "mon");
    part(days.into(), "day");
    if micros != 0 || parts.is_empty() {
        let sign = match (micros < 0, negative) {
            (true, _) => "-",
            (false, true) => "+",
            (false, false) => "",
        };
        parts.push(format!("{sign}{}", clock(micros.saturating_abs())));
    }
    parts.join(" ")
}

/// `network_send`: family, prefix length, is-cidr, number of address bytes, address.
fn address(r: &mut Reader, cidr: bool) -> Option<String> {
    let [_, bits, _, len] = r.take::<4>()?;
    let ip: std::net::IpAddr = match len {
        4 => r.take::<4>()?.into(),
        16 => r.take::<16>()?.into(),
        _ => return None,
    };
    let whole = if len == 4 { 32 } else { 128 };
    Some(if bits == whole && !cidr {
        ip.to_string()
    } else {
        format!("{ip}/{bits}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn parameters_as_text() {
        let check =
            |value: Value, ty: &Type, expected: &str| assert_eq!(literal(&value, ty), expected);
        check(json!(1), &Type::INT4, "1");
        check(json!(true), &Type::BOOL, "true");
        check(json!("it's"), &Type::TEXT, "it's");
        check(json!([1, null, 2]), &Type::INT4_ARRAY, r#"{"1",NULL,"2"}"#);
        check(
            json!(["a\"b\\", "c"]),
            &Type::TEXT_ARRAY,
            r#"{"a\"b\\","c"}"#,
        );
        check(json!([[1], [2]]), &Type::INT4_ARRAY, r#"{{"1"},{"2"}}"#);
        check(json!([1, "x"]), &Type::JSONB, r#"[1,"x"]"#);
        check(json!("x"), &Type::JSON, "\"x\"");
        check(json!({"a": 1}), &Type::TEXT, r#"{"a":1}"#);
    }

    #[test]
    fn dates_and_intervals() {
        assert_eq!(date(0), "2000-01-01");
        assert_eq!(date(-1), "1999-12-31");
        assert_eq!(date(59), "2000-02-29");
        assert_eq!(date(8947), "2024-06-30");
        assert_eq!(timestamp(-1, ""), "1999-12-31 23:59:59.999999");
        assert_eq!(timestamp(1_500_000, "+00"), "2000-01-01 00:00:01.5+00");
        assert_eq!(
            interval(14, 3, 14_706_000_000),
            "1 year 2 mons 3 days 04:05:06"
        );
        assert_eq!(interval(0, 0, -1_000_000), "-00:00:01");
        assert_eq!(interval(0, 0, 0), "00:00:00");
        assert_eq!(
            interval(-13, 2, 3_000_000),
            "-1 years -1 mons +2 days 00:00:03"
        );
        assert_eq!(interval(0, -1, 3_000_000), "-1 days +00:00:03");
    }

    #[test]
    fn arrays_as_the_server_writes_them() {
        let check =
            |text: &str, ty: &Type, expected: Value| assert_eq!(as_text(ty, text), expected);
        check("{}", &Type::MONEY_ARRAY, json!([]));
        check(
            r#"{$1.00,NULL,"$1,000.00"}"#,
            &Type::MONEY_ARRAY,
            json!(["$1.00", null, "$1,000.00"]),
        );
        check(
            r#"[0:1]={{"a\"b\\",x},{"",y}}"#,
            &Type::TS_VECTOR_ARRAY,
            json!([["a\"b\\", "x"], ["", "y"]]),
        );
        check(
            "{(1,1),(0,0);(3,3),(2,2)}",
            &Type::BOX_ARRAY,
            json!(["(1,1),(0,0)", "(3,3),(2,2)"]),
        );
        check("{open", &Type::MONEY_ARRAY, json!("{open"));
        check("(1,2)", &Type::POINT, json!("(1,2)"));
    }

    proptest! {
        #[test]
        fn no_text_makes_an_array_panic(text in "[{}\"\\\\,; aé=\\[\\]:]{0,16}") {
            let _ = as_text(&Type::MONEY_ARRAY, &text);
        }

        #[test]
        fn no_bytes_make_it_panic(raw in proptest::collection::vec(any::<u8>(), 0..48), i in 0..12usize) {
            let types = [
                Type::BOOL, Type::INT8, Type::FLOAT4, Type::JSONB, Type::NUMERIC, Type::DATE, Type::TIMESTAMPTZ,
                Type::TIMETZ, Type::INTERVAL, Type::INET, Type::INT4_ARRAY, Type::UUID,
            ];
            let _ = value(&types[i], &raw);
        }
    }
}
