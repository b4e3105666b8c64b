//! What can go wrong, and what the caller is told.

use example_http::Reply;
use serde_json::json;
use tokio_postgres::error::SqlState;

/// Why a request has no good answer.
#[derive(Debug)]
pub enum Failure {
    /// The upstream knows no such item.
    UnknownItem(String),
    /// The upstream has had enough of us.
    RateLimited,
    /// The upstream cannot be reached, or answers nonsense.
    Upstream(String),
    /// This did not answer in time.
    Timeout(&'static str),
    /// The database refused.
    Sql {
        /// SQLSTATE.
        code: SqlState,
        /// Its message.
        message: String,
    },
    /// The connection to the database could not be made, or broke.
    Connection(String),
}

impl Failure {
    /// May the same transaction simply be tried again? PostgreSQL's manual, section 13.5: 40001 and 40P01, nothing else.
    pub fn is_retryable(&self) -> bool {
        let Failure::Sql { code, .. } = self else {
            return false;
        };
        *code == SqlState::T_R_SERIALIZATION_FAILURE || *code == SqlState::T_R_DEADLOCK_DETECTED
    }

    /// The status, and an `error` and a `code` for the caller.
    pub fn reply(&self) -> Reply {
        let (status, code, error) = match self {
            Failure::UnknownItem(item) => (404, "", format!("there is no item `{item}`")),
            Failure::RateLimited => (429, "", "the price upstream limits our rate".into()),
            Failure::Upstream(why) => (503, "", format!("the price upstream: {why}")),
            Failure::Timeout(who) => (504, "", format!("{who} did not answer in time")),
            Failure::Sql { code, message } => (status_of(code), code.code(), message.clone()),
            Failure::Connection(why) => (
                503,
                SqlState::CONNECTION_FAILURE.code(),
                format!("the database: {why}"),
            ),
        };
        Reply::new(status, json!({"error": error, "code": code}))
    }
}

fn status_of(code: &SqlState) -> u16 {
    match (code.code(), code.code().get(..2).unwrap_or_default()) {
        ("53100", _) => 507, // disk_full
        ("57014", _) => 504, // query_canceled: our own cancel, or statement_timeout
        // Connection lost, transaction rolled back, out of resources, shutting down, I/O error: the next try may go well.
        (_, "08" | "40" | "53" | "57" | "58") => 503,
        (_, "23") => 409, // integrity constraint violation
        _ => 500,
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(e: tokio_postgres::Error) -> Failure {
        match e.as_db_error() {
            Some(db) => Failure::Sql {
                code: db.code().clone(),
                message: db.message().to_owned(),
            },
            None => {
                let cause = std::error::Error::source(&e).map(|c| format!(": {c}"));
                Failure::Connection(format!("{e}{}", cause.unwrap_or_default()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_become_statuses() {
        for (code, status) in [
            ("53100", 507),
            ("53300", 503),
            ("57P02", 503),
            ("57014", 504),
            ("58030", 503),
            ("40001", 503),
            ("23505", 409),
            ("XX000", 500),
        ] {
            let failure = Failure::Sql {
                code: SqlState::from_code(code),
                message: "m".into(),
            };
            let reply = failure.reply();
            assert_eq!(reply.status, status, "{code}");
            assert_eq!(reply.body["code"], code);
            assert_eq!(failure.is_retryable(), code == "40001");
        }
    }
}
