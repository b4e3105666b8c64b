//! `response(rows=[…])`: rows that no server has sent.

use bytes::{BufMut, BytesMut};
use faultbox_contract::Arg;
use faultbox_sql::Units;
use serde_json::{Map, Value};

use crate::codec::{Column, Reply, lenenc};
use crate::values;

/// The rows of a rule.
#[derive(Debug)]
pub struct Rows {
    rows: Vec<Map<String, Value>>,
    /// The columns that the rows themselves suggest.
    columns: Vec<Column>,
}

/// The most columns that a result has (`MAX_FIELDS` in sql_const.h).
const MOST_COLUMNS: usize = 4096;

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
        let mut names: Vec<&str> = vec![];
        for name in rows.iter().flat_map(Map::keys) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        if names.len() > MOST_COLUMNS {
            return Err(format!(
                "{} columns; a server has at most {MOST_COLUMNS}",
                names.len()
            ));
        }
        let column =
            |name: &&str| values::column_for(name, rows.iter().filter_map(|r| r.get(*name)));
        let columns = names.iter().map(column).collect();
        Ok(Rows { rows, columns })
    }

    /// Answers a COM_QUERY of a statement that returns rows or does not.
    pub fn text(&self, reply: &mut Reply, returns: bool) {
        if !returns {
            return reply.ok(self.rows.len() as u64);
        }
        let none = [values::column_for("NULL", [].iter())];
        // A result has at least one column, though it may have no rows.
        let columns = if self.columns.is_empty() {
            &none[..]
        } else {
            &self.columns
        };
        let rows = self.rows.iter().map(|row| {
            let mut out = BytesMut::new();
            for column in columns {
                match row.get(&column.name).and_then(values::text) {
                    None => out.put_u8(0xfb),
                    Some(text) => {
                        lenenc(&mut out, text.len() as u64);
                        out.put_slice(text.as_bytes());
                    }
                }
            }
            out
        });
        reply.rows(columns, rows);
    }

    /// Answers a COM_STMT_EXECUTE, in the columns that the server has described, if it has any.
    pub fn binary(&self, reply: &mut Reply, described: &[Column], returns: bool) {
        if described.is_empty() && !returns {
            return reply.ok(self.rows.len() as u64);
        }
        let none = [values::column_for("NULL", [].iter())];
        let columns = match (described, &self.columns[..]) {
            ([], []) => &none,
            ([], own) => own,
            (described, _) => described,
        };
        match self
            .rows
            .iter()
            .map(|row| encode(row, columns))
            .collect::<Result<Vec<_>, _>>()
        {
            Ok(rows) => reply.rows(columns, rows),
            // ER_TRUNCATED_WRONG_VALUE_FOR_FIELD
            Err(why) => reply.err(
                1366,
                "22007",
                &format!("{why}; change rows= of the armed response() rule"),
            ),
        }
    }
}

/// A binary row.
fn encode(row: &Map<String, Value>, columns: &[Column]) -> Result<BytesMut, String> {
    if let Some(name) = row.keys().find(|k| columns.iter().all(|c| c.name != **k)) {
        return Err(format!("the statement has no column `{name}`"));
    }
    // Two bits of the map of NULLs are left free.
    let mut nulls = vec![0u8; (columns.len() + 9) / 8];
    let mut out = BytesMut::new();
    for (i, column) in columns.iter().enumerate() {
        match row.get(&column.name) {
            None | Some(Value::Null) => nulls[(i + 2) / 8] |= 1 << ((i + 2) % 8),
            Some(value) if values::put_binary(&mut out, value, column) => {}
            Some(value) => {
                return Err(format!("{value} does not fit the column `{}`", column.name));
            }
        }
    }
    let mut packet = BytesMut::from(&[0u8][..]);
    packet.put_slice(&nulls);
    packet.put_slice(&out);
    Ok(packet)
}

/// Does a text of one statement return rows?
pub fn returns_rows(units: &Units) -> bool {
    // Behind an EXECUTE stands what it runs.
    let mut units = units.iter();
    let first = units.next();
    // MariaDB's SET STATEMENT … FOR is answered by what follows.
    let runs = first.filter(|unit| matches!(unit.verb(), "EXECUTE" | "SET"));
    runs.and_then(|_| units.next())
        .or(first)
        .is_some_and(|unit| {
            matches!(
                unit.verb(),
                "SELECT"
                    | "SHOW"
                    | "EXPLAIN"
                    | "TABLE"
                    | "VALUES"
                    | "ANALYZE"
                    | "CHECK"
                    | "CHECKSUM"
                    | "OPTIMIZE"
                    | "REPAIR"
                    | "HANDLER"
                    | "HELP"
                    | "CALL"
                    | "EXECUTE"
            ) || unit.canonical().contains(" returning ")
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{caps, kind};
    use faultbox_sql::Dialect;
    use serde_json::json;

    fn rows(value: Value) -> Rows {
        Rows::new(Some(&Arg::Json(value))).unwrap()
    }

    fn packets(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut out = vec![];
        while let Some(header) = crate::codec::header(bytes) {
            assert_eq!(usize::from(header.seq), out.len() + 1);
            out.push(bytes[4..4 + header.len].to_vec());
            bytes = &bytes[4 + header.len..];
        }
        out
    }

    #[test]
    fn text_rows_with_and_without_eof() {
        let rows = rows(json!([{"id": 7, "name": null}, {"id": 8, "name": "x"}]));
        let mut reply = Reply::new(1, 0, 2);
        rows.text(&mut reply, true);
        let old = packets(&reply.out);
        assert_eq!(old[0], [2]);
        assert_eq!(old[3], [0xfe, 0, 0, 2, 0]);
        assert_eq!(old[4], b"\x017\xfb");
        assert_eq!(old[5], b"\x018\x01x");
        assert_eq!(old[6], [0xfe, 0, 0, 2, 0]);
        let mut reply = Reply::new(1, caps::DEPRECATE_EOF, 2);
        rows.text(&mut reply, true);
        let new = packets(&reply.out);
        assert_eq!((new.len(), &new[5][..]), (6, &[0xfe, 0, 0, 2, 0, 0, 0][..]));
        let mut reply = Reply::new(1, 0, 2);
        rows.text(&mut reply, false);
        assert_eq!(packets(&reply.out), [[0, 2, 0, 2, 0, 0, 0]]);
    }

    #[test]
    fn binary_rows_in_the_columns_described() {
        let rows = rows(json!([{"id": 7}]));
        let described: Vec<Column> = [("id", kind::SHORT), ("x", kind::LONG)]
            .map(|(name, kind)| Column {
                kind,
                ..values::column_for(name, [].iter())
            })
            .into();
        let mut reply = Reply::new(1, caps::DEPRECATE_EOF, 2);
        rows.binary(&mut reply, &described, true);
        assert_eq!(packets(&reply.out)[3], [0, 0b1000, 7, 0]);
        let mut reply = Reply::new(1, 0, 2);
        rows.binary(&mut reply, &described[1..], true);
        let error = crate::codec::err(&packets(&reply.out)[0]).unwrap();
        assert_eq!(error.code, 1366);
        assert!(error.message.contains("no column `id`"), "{error:?}");
    }

    #[test]
    fn what_returns_rows() {
        let returns = |sql: &str| returns_rows(&Units::new(sql, Dialect::MYSQL));
        assert!(returns("SELECT 1") && returns("WITH x AS (SELECT 1) SELECT * FROM x"));
        assert!(
            returns("INSERT INTO t VALUES (1) RETURNING id")
                && !returns("INSERT INTO t VALUES (1)")
        );
    }
}
