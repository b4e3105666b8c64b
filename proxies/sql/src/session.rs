//! Which statements leave a session as they found it.

/// Words with which a statement begins that touches rows and nothing else.
const ROWS: [&str; 10] = [
    "select", "insert", "update", "delete", "merge", "replace", "with", "values", "table", "show",
];
/// What makes a session's state of even such a statement: settings, variables, locks that outlive the transaction, temporary tables.
const STATE: [&str; 5] = ["set_config", "advisory", "get_lock", "temp", "@"];

/// Can the next user of the connection not tell that this ran? Says no wherever it is not certain.
pub fn leaves_session_alone(sql: &str) -> bool {
    let sql = sql.trim().trim_end_matches(';').to_ascii_lowercase();
    let word = sql.split(|c: char| !c.is_ascii_alphabetic()).next();
    // Of several statements any may begin a transaction.
    word.is_some_and(|word| ROWS.contains(&word))
        && !sql.contains(';')
        && !STATE.iter().any(|state| sql.contains(state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_touches_rows_alone() {
        for sql in [
            "SELECT 1",
            " insert into t values ($1) ;",
            "WITH x AS (SELECT 1) SELECT * FROM x",
        ] {
            assert!(leaves_session_alone(sql), "{sql}");
        }
        for sql in [
            "",
            "BEGIN",
            "SET search_path = a",
            "SELECT 1; BEGIN",
            "SELECT pg_advisory_lock(1)",
            "SELECT 1 INTO @a",
            "SELECT * INTO TEMP t FROM u",
            "selection",
            "/* */ SELECT 1",
        ] {
            assert!(!leaves_session_alone(sql), "{sql}");
        }
    }
}
