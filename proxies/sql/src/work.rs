//! What the steps `query`, `exec` and `tx` of a protocol that carries SQL are asked to do.

use faultbox_contract::{Arg, ArgError, CheckedStep};
use serde_json::Value;

use crate::leaves_session_alone;

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// One statement, for its rows.
    Query(Statement),
    /// A statement, for what it has done; without parameters it may be several.
    Exec(Statement),
    /// These statements, all or none.
    Transaction(Vec<Statement>),
}

/// A statement and its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// The text.
    pub sql: String,
    /// A value for each placeholder.
    pub params: Vec<Value>,
}

impl Work {
    /// What `call` asks for; `example` is a statement of `tx` with a placeholder, as the protocol's people write it.
    ///
    /// # Errors
    /// A statement of `tx` that is none.
    pub fn of(call: &CheckedStep, example: &str) -> Result<Work, ArgError> {
        let list = |name: &str| match call.get(name) {
            Some(Arg::Json(Value::Array(list))) => list.clone(),
            _ => vec![],
        };
        let one = || Statement {
            sql: call.text_of("sql").unwrap_or_default().to_owned(),
            params: list("params"),
        };
        Ok(match call.step.name {
            "query" => Work::Query(one()),
            "exec" => Work::Exec(one()),
            _ => {
                let statements = list("statements").into_iter().enumerate();
                let read = |(i, value)| {
                    statement(&value).ok_or_else(|| no_statement(i + 1, &value, example))
                };
                Work::Transaction(statements.map(read).collect::<Result<_, _>>()?)
            }
        })
    }

    /// Is the connection afterwards as it was before? Of statements that are not known for that, it is not.
    pub fn leaves_session_alone(&self) -> bool {
        match self {
            Work::Query(statement) | Work::Exec(statement) => leaves_session_alone(&statement.sql),
            Work::Transaction(statements) => {
                statements.iter().all(|s| leaves_session_alone(&s.sql))
            }
        }
    }
}

fn statement(value: &Value) -> Option<Statement> {
    let (sql, params) = match value {
        Value::String(sql) => (sql, &[][..]),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(sql)] => (sql, &[][..]),
            [Value::String(sql), Value::Array(params)] => (sql, params.as_slice()),
            _ => return None,
        },
        _ => return None,
    };
    Some(Statement {
        sql: sql.clone(),
        params: params.to_vec(),
    })
}

fn no_statement(number: usize, value: &Value, example: &str) -> ArgError {
    ArgError::new(
        "statements",
        format!("statement {number} of `tx` is neither a string nor a list [sql, params]: {value}"),
    )
    .hint(format!(
        "for example tx([\"DELETE FROM t\", [\"{example}\", [1]]])"
    ))
}
