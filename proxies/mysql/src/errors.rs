//! The server's errors by number and symbol, with their SQLSTATEs and messages.
//!
//! `errors.tsv` has those of MariaDB's errmsg.txt that a statement or a connection can meet, then MySQL's own (errors of 3000 and
//! up); "?" stands where the server fills something in. Of 1062 it is the text that servers send with it, which has another number (1586).

use std::sync::LazyLock;

/// One error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The server's number.
    pub code: u16,
    /// "ER_LOCK_DEADLOCK".
    pub symbol: &'static str,
    /// The SQLSTATE that goes with it.
    pub sqlstate: &'static str,
    /// The server's message.
    pub message: &'static str,
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let entry = |line: &'static str| {
        let mut fields = line.split('\t');
        Some(Entry {
            code: fields.next()?.parse().ok()?,
            symbol: fields.next()?,
            sqlstate: fields.next()?,
            message: fields.next()?,
        })
    };
    include_str!("errors.tsv")
        .lines()
        .filter_map(entry)
        .collect()
});

/// All of them, by number.
pub fn entries() -> &'static [Entry] {
    &ENTRIES
}

/// The error with this number.
pub fn by_code(code: u16) -> Option<&'static Entry> {
    let at = ENTRIES.binary_search_by_key(&code, |e| e.code).ok()?;
    ENTRIES.get(at)
}

/// The error with this symbol; case does not matter, and neither does the prefix.
pub fn by_symbol(symbol: &str) -> Option<&'static Entry> {
    let bare = |s: &str| s.to_ascii_uppercase().trim_start_matches("ER_").to_owned();
    let wanted = bare(symbol);
    ENTRIES.iter().find(|e| bare(e.symbol) == wanted)
}

/// Does the transaction end with this error, and not just the statement? So it is with deadlocks, a full lock table, branches of XA
/// that are rolled back, and a transaction that group replication refuses (`convert_error_code_to_mysql` in ha_innodb.cc).
pub fn rolls_back(code: u16) -> bool {
    matches!(code, 1206 | 1213 | 1613 | 1614 | 3101)
}

/// Does the server close the connection when it has said this?
pub fn closes(code: u16) -> bool {
    matches!(
        code,
        1040 | 1042 | 1043 | 1053 | 1080 | 1129 | 1130 | 1152..=1161 | 1184 | 1927 | 3169 | 4031
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole_and_in_order() {
        let lines = include_str!("errors.tsv").lines().count();
        assert_eq!(entries().len(), lines);
        assert!(entries().is_sorted_by(|a, b| a.code < b.code));
        for e in entries() {
            assert!(
                e.symbol.starts_with("ER_") && e.sqlstate.len() == 5,
                "{e:?}"
            );
            assert!(
                !e.message.is_empty() && !e.message.contains('%') && by_symbol(e.symbol) == Some(e),
                "{e:?}"
            );
        }
    }

    #[test]
    fn by_number_and_by_symbol() {
        let deadlock = by_symbol("er_lock_deadlock").unwrap();
        assert_eq!((deadlock.code, deadlock.sqlstate), (1213, "40001"));
        assert_eq!(by_symbol("DUP_ENTRY"), by_code(1062));
        assert_eq!(by_code(999), None);
    }
}
