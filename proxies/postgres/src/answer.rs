//! `response(rows=[…])`: rows that no server has sent.

use bytes::BytesMut;
use faultbox_contract::Arg;
use serde_json::{Map, Value};

use crate::codec::{self, Column};
use crate::rules::Error;

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

/// The rows of a rule.
#[derive(Debug)]
pub struct Rows {
    rows: Vec<Map<String, Value>>,
    /// The columns that the rows themselves suggest, text format: for the simple protocol.
    columns: Vec<Column>,
}

impl Rows {
    /// Reads `rows=`.
    ///
    /// # Errors
    /// Anything but a list of dicts.
    pub fn new(rows: Option<&Arg>) -> Result<Rows, String> {
        let list = match rows {
            None => vec![],
            Some(Arg::Json(Value::Array(list))) => list.clone(),
            Some(other) => {
                return Err(format!(
                    "expected a list of dicts, got {}",
                    other.type_name()
                ));
            }
        };
        let rows: Vec<_> = list
            .into_iter()
            .enumerate()
            .map(|(i, row)| match row {
                Value::Object(row) => Ok(row),
                _ => Err(format!("row {} is not a dict of column to value", i + 1)),
            })
            .collect::<Result<_, _>>()?;
        // The number of columns is a u16 in RowDescription; the server's own limit is lower (MaxTupleAttributeNumber).
        let mut columns: Vec<Column> = vec![];
        for name in rows.iter().flat_map(Map::keys) {
            if !columns.iter().any(|c| c.name == *name) {
                columns.push(Column {
                    oid: type_of(rows.iter().filter_map(|r| r.get(name))),
                    name: name.clone(),
                    format: 0,
                });
            }
        }
        if columns.len() > 1600 {
            return Err(format!(
                "{} columns; PostgreSQL has at most 1600",
                columns.len()
            ));
        }
        Ok(Rows { rows, columns })
    }

    /// The whole answer in the simple protocol, up to ReadyForQuery.
    pub fn simple(&self, verb: &str) -> BytesMut {
        let mut out = BytesMut::new();
        if !self.columns.is_empty() || verb == "SELECT" {
            codec::put_row_description(&mut out, &self.columns);
        }
        // Text of a type that was chosen for these very values always encodes.
        let _ = self.put_rows(&mut out, &self.columns);
        codec::put_command_complete(&mut out, &self.tag(verb));
        out
    }

    /// The answer to an Execute, in the columns and formats that the server has described; `None` if the statement returns no rows,
    /// or nobody has asked.
    pub fn extended(&self, verb: &str, columns: Option<&[Column]>) -> BytesMut {
        let mut out = BytesMut::new();
        if let Some(columns) = columns
            && let Err(e) = self.put_rows(&mut out, columns)
        {
            let mut out = BytesMut::new();
            let error = Error::new(
                "ERROR",
                "22P02",
                &e,
                None,
                Some("change rows= of the armed response() rule"),
            );
            out.extend_from_slice(&error.message);
            return out;
        }
        codec::put_command_complete(&mut out, &self.tag(verb));
        out
    }

    fn tag(&self, verb: &str) -> String {
        match verb {
            "INSERT" => format!("INSERT 0 {}", self.rows.len()),
            "UPDATE" | "DELETE" | "MERGE" | "COPY" | "FETCH" | "MOVE" | "SELECT" => {
                format!("{verb} {}", self.rows.len())
            }
            "" | "VALUES" | "TABLE" => format!("SELECT {}", self.rows.len()),
            _ => verb.to_owned(),
        }
    }

    fn put_rows(&self, out: &mut BytesMut, columns: &[Column]) -> Result<(), String> {
        if columns.is_empty() && self.columns.is_empty() {
            return Ok(());
        }
        for row in &self.rows {
            if let Some(odd) = row.keys().find(|k| !columns.iter().any(|c| c.name == **k)) {
                let names: Vec<_> = columns.iter().map(|c| c.name.as_str()).collect();
                return Err(format!(
                    "response() gives a column \"{odd}\" that the statement does not have: {}",
                    names.join(", ")
                ));
            }
            let values = columns
                .iter()
                .map(|c| match row.get(&c.name) {
                    None | Some(Value::Null) => Ok(None),
                    Some(value) => encode(value, c).map(Some),
                })
                .collect::<Result<Vec<_>, _>>()?;
            codec::put_data_row(out, &values);
        }
        Ok(())
    }
}

/// The type that holds all of these values.
fn type_of<'a>(values: impl Iterator<Item = &'a Value>) -> u32 {
    let mut found = None;
    for value in values {
        let this = match value {
            Value::Null => continue,
            Value::Bool(_) => oid::BOOL,
            Value::Number(n) if n.is_i64() => oid::INT8,
            Value::Number(n) if n.is_u64() => oid::NUMERIC,
            Value::Number(_) => oid::FLOAT8,
            Value::String(_) => oid::TEXT,
            Value::Array(_) | Value::Object(_) => oid::JSON,
        };
        found = Some(match found {
            None => this,
            Some(before) if before == this => this,
            Some(oid::INT8 | oid::FLOAT8) if matches!(this, oid::INT8 | oid::FLOAT8) => oid::FLOAT8,
            Some(_) => oid::TEXT,
        });
    }
    found.unwrap_or(oid::TEXT)
}

fn encode(value: &Value, column: &Column) -> Result<Vec<u8>, String> {
    match column.format {
        0 => Ok(text(value, column.oid).into_bytes()),
        _ => binary(value, column.oid).ok_or_else(|| {
            format!(
                "response() cannot encode {value} for column \"{}\" (type {}) in the binary format that the client asked for",
                column.name, column.oid
            )
        }),
    }
}

fn text(value: &Value, oid: u32) -> String {
    match value {
        // The server's output of boolean; but a JSON document says true.
        Value::Bool(b) if !matches!(oid, oid::JSON | oid::JSONB) => {
            if *b { "t" } else { "f" }.into()
        }
        Value::String(s) if !matches!(oid, oid::JSON | oid::JSONB) => s.clone(),
        other => other.to_string(),
    }
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
        oid::BOOL => vec![u8::from(value.as_bool()?)],
        oid::INT2 => i16::try_from(int()?).ok()?.to_be_bytes().into(),
        oid::INT4 => i32::try_from(int()?).ok()?.to_be_bytes().into(),
        oid::OID => u32::try_from(int()?).ok()?.to_be_bytes().into(),
        oid::INT8 => int()?.to_be_bytes().into(),
        oid::FLOAT4 => (float()? as f32).to_be_bytes().into(),
        oid::FLOAT8 => float()?.to_be_bytes().into(),
        oid::TEXT
        | oid::VARCHAR
        | oid::BPCHAR
        | oid::NAME
        | oid::CHAR
        | oid::XML
        | oid::UNKNOWN
        | oid::JSON => text(value, oid).into_bytes(),
        // jsonb_recv: a version, then the text.
        oid::JSONB => [b"\x01", text(value, oid).as_bytes()].concat(),
        oid::BYTEA => value.as_str()?.into(),
        oid::UUID => uuid(value.as_str()?)?,
        oid::NUMERIC => numeric(&text(value, oid))?,
        oid::DATE => i32::try_from(days(value.as_str()?)?)
            .ok()?
            .to_be_bytes()
            .into(),
        oid::TIMESTAMP | oid::TIMESTAMPTZ => micros(value.as_str()?)?.to_be_bytes().into(),
        _ => return None,
    })
}

fn uuid(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|b| !matches!(b, b'-' | b'{' | b'}'))
        .map(|b| (b as char).to_digit(16).map(|d| d as u8))
        .collect::<Option<_>>()?;
    (digits.len() == 32).then(|| digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect())
}

/// `numeric_recv`: groups of four decimal digits, the weight of the first, the sign, the display scale.
fn numeric(text: &str) -> Option<Vec<u8>> {
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

/// Days from 2000-01-01, PostgreSQL's epoch, to an ISO date of the proleptic Gregorian calendar.
fn days(text: &str) -> Option<i64> {
    let mut parts = text.splitn(3, '-').map(|p| p.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if !(1..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": days_from_civil; 730425 is 2000-01-01 counted from 0000-03-01.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 730_425)
}

/// Microseconds from 2000-01-01 00:00 to "2024-05-06 07:08:09.123456", with an optional offset from UTC.
fn micros(text: &str) -> Option<i64> {
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
    let seconds = days(date)? * 86_400 + hours * 3600 + minutes * 60 + seconds - offset;
    Some(seconds * 1_000_000 + fraction)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rows(value: Value) -> Rows {
        Rows::new(Some(&Arg::Json(value))).unwrap()
    }

    #[test]
    fn columns_and_types_come_from_the_rows() {
        let rows = rows(
            json!([{"id": 1, "n": 1}, {"id": 2, "n": 0.5, "t": "x"}, {"m": 1, "t": null}, {"m": "s"}]),
        );
        let types: Vec<_> = rows
            .columns
            .iter()
            .map(|c| (c.name.as_str(), c.oid))
            .collect();
        assert_eq!(
            types,
            [
                ("id", oid::INT8),
                ("n", oid::FLOAT8),
                ("t", oid::TEXT),
                ("m", oid::TEXT)
            ]
        );
        let out = rows.simple("SELECT");
        assert!(out.ends_with(b"C\0\0\0\x0dSELECT 4\0"));
        assert_eq!(out[0], b'T');
    }

    #[test]
    fn statements_without_rows_have_their_tag_only() {
        assert_eq!(
            &rows(json!([])).simple("INSERT")[..],
            b"C\0\0\0\x0fINSERT 0 0\0"
        );
        assert_eq!(
            &rows(json!([{}, {}])).extended("UPDATE", None)[..],
            b"C\0\0\0\x0dUPDATE 2\0"
        );
    }

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
        check(json!("2000-01-02"), oid::DATE, &[0, 0, 0, 1]);
        check(json!("1999-12-31"), oid::DATE, &[255; 4]);
        check(
            json!("2000-01-01 00:00:01.5"),
            oid::TIMESTAMP,
            &1_500_000i64.to_be_bytes(),
        );
        check(json!("2000-01-01T02:00:00+02"), oid::TIMESTAMPTZ, &[0; 8]);
        assert_eq!(binary(&json!(70000), oid::INT2), None);
        assert_eq!(binary(&json!("x"), oid::DATE), None);
    }

    #[test]
    fn what_does_not_fit_is_an_error_to_the_client() {
        let column = |name: &str, oid: u32| Column {
            name: name.into(),
            oid,
            format: 1,
        };
        for columns in [[column("other", oid::INT8)], [column("id", oid::DATE)]] {
            let out = rows(json!([{"id": 1}])).extended("SELECT", Some(&columns));
            assert_eq!(out[0], b'E');
        }
    }
}
