//! The client for specs: `query`, `exec`, `tx`, and the readiness probe.

use std::time::Instant;

use faultbox_contract::{ArgError, CheckedStep, Endpoint, Kind, ParamDoc, Response, StepDoc};
use faultbox_sql::{Statement, Work};
use serde_json::{Value, json};

use crate::client::{Account, Client, Failure, Outcome};

const SQL: ParamDoc = ParamDoc::req("sql", Kind::Text, "the statement");
const PARAMS: ParamDoc = ParamDoc::opt(
    "params",
    Kind::List,
    "values for each `?`; with any, the statement is a prepared one",
);
const TIMEOUT: ParamDoc = ParamDoc::opt(
    "timeout",
    Kind::Duration,
    "default \"30s\"; a step that passes it has code \"ETIMEDOUT\"",
);
const USER: ParamDoc = ParamDoc::opt(
    "user",
    Kind::Text,
    "default: the service's MYSQL_USER or MARIADB_USER, or \"root\"",
);
const PASSWORD: ParamDoc = ParamDoc::opt(
    "password",
    Kind::Text,
    "default: the service's MYSQL_PASSWORD or MARIADB_PASSWORD; of root, …_ROOT_PASSWORD",
);
const DATABASE: ParamDoc = ParamDoc::opt(
    "database",
    Kind::Text,
    "default: the service's MYSQL_DATABASE or MARIADB_DATABASE, or none",
);

/// What a spec can send.
pub const STEPS: &[StepDoc] = &[
    StepDoc {
        name: "query",
        params: &[SQL, PARAMS, TIMEOUT, USER, PASSWORD, DATABASE],
        variadic: false,
        summary: "runs one statement; .data is the rows, a list of dicts",
    },
    StepDoc {
        name: "exec",
        params: &[SQL, PARAMS, TIMEOUT, USER, PASSWORD, DATABASE],
        variadic: false,
        summary: "runs a statement, or without params several; .data is {\"rows_affected\": n, \"last_insert_id\": n} of the last",
    },
    StepDoc {
        name: "tx",
        params: &[
            ParamDoc::req(
                "statements",
                Kind::List,
                "each a string, or a list [sql, params]",
            ),
            TIMEOUT,
            USER,
            PASSWORD,
            DATABASE,
        ],
        variadic: false,
        summary: "runs the statements in one transaction and commits; the first error rolls back and is the result; .data has each one's rows or {\"rows_affected\": n, \"last_insert_id\": n}",
    },
];

/// Sends one operation, on a connection of its own or on the one that the caller has kept.
///
/// # Errors
/// A statement of `tx` that is none, or another number of parameters than the statement has.
pub async fn step(endpoint: Endpoint, call: CheckedStep) -> Result<Response, ArgError> {
    let work = Work::of(&call, "INSERT INTO t VALUES (?)")?;
    let account = account(&endpoint, Some(&call));
    let start = Instant::now();
    let timeout = call.timeout();
    let run = async {
        let mut client = client(&endpoint, &account).await?;
        let data = run(&mut client, &work).await?;
        leave(client, &endpoint, &account, work.leaves_session_alone()).await;
        Ok(data)
    };
    let mut response = match tokio::time::timeout(timeout, run).await {
        Ok(Ok(data)) => Response {
            ok: true,
            body: data.to_string(),
            data,
            ..Response::default()
        },
        Ok(Err(Failure::Parameters(wanted, given))) => {
            return Err(ArgError::new(
                "params",
                format!(
                    "`params`: the statement has {wanted} parameters, but {given} values were given"
                ),
            ));
        }
        Ok(Err(failure)) => response_of(failure),
        Err(_) => Response::failure("ETIMEDOUT", format!("no answer within {timeout:?}")),
    };
    response.duration = start.elapsed();
    Ok(response)
}

/// Asks `SELECT 1`.
///
/// # Errors
/// What the server or the network says.
pub async fn ready(endpoint: Endpoint) -> Result<(), String> {
    let account = account(&endpoint, None);
    let probe = async {
        let mut client = client(&endpoint, &account).await?;
        client.query("SELECT 1").await?;
        leave(client, &endpoint, &account, true).await;
        Ok(())
    };
    match tokio::time::timeout(endpoint.attempt, probe).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(failure)) => {
            let response = response_of(failure);
            Err(format!("{}: {}", response.code, response.error))
        }
        Err(_) => Err(format!(
            "no answer to SELECT 1 within {:?}",
            endpoint.attempt
        )),
    }
}

/// The caller's own connection with this account, or a new one.
async fn client(endpoint: &Endpoint, account: &Account) -> Result<Client, Failure> {
    match endpoint
        .take_kept::<Client>(&account.key())
        .filter(Client::is_idle)
    {
        Some(client) => Ok(client),
        None => Client::connect(endpoint, account).await,
    }
}

/// Keeps a connection for the caller's next step, or takes its leave.
async fn leave(client: Client, endpoint: &Endpoint, account: &Account, reusable: bool) {
    match reusable && endpoint.kept.is_some() {
        true => endpoint.keep(&account.key(), client),
        false => client.quit().await,
    }
}

async fn run(client: &mut Client, work: &Work) -> Result<Value, Failure> {
    match work {
        Work::Query(statement) => {
            Ok(rows(outcomes(client, statement).await?).map_or_else(|| json!([]), Value::Array))
        }
        Work::Exec(statement) => match result(outcomes(client, statement).await?) {
            Value::Array(rows) => Ok(json!({"rows_affected": rows.len(), "last_insert_id": 0})),
            done => Ok(done),
        },
        Work::Transaction(statements) => {
            client.query("START TRANSACTION").await?;
            let mut results = vec![];
            for statement in statements {
                match outcomes(client, statement).await {
                    Ok(outcomes) => results.push(result(outcomes)),
                    Err(failure) => {
                        // What matters is why it failed; a connection that is lost has rolled back by itself.
                        let _ = client.query("ROLLBACK").await;
                        return Err(failure);
                    }
                }
            }
            client.query("COMMIT").await?;
            Ok(Value::Array(results))
        }
    }
}

/// Runs a statement.
async fn outcomes(client: &mut Client, statement: &Statement) -> Result<Vec<Outcome>, Failure> {
    match statement.params.as_slice() {
        [] => client.query(&statement.sql).await,
        params => client.execute(&statement.sql, params).await,
    }
}

/// The rows of the last outcome that has some: a CALL ends with an OK behind what its procedure has selected.
fn rows(outcomes: Vec<Outcome>) -> Option<Vec<Value>> {
    outcomes
        .into_iter()
        .rev()
        .find_map(|outcome| match outcome {
            Outcome::Rows(rows) => Some(rows),
            Outcome::Done(_) => None,
        })
}

/// The last outcome: its rows, or what was done.
fn result(outcomes: Vec<Outcome>) -> Value {
    match outcomes.into_iter().next_back() {
        Some(Outcome::Rows(rows)) => Value::Array(rows),
        Some(Outcome::Done(done)) => {
            json!({"rows_affected": done.affected, "last_insert_id": done.insert_id})
        }
        None => Value::Null,
    }
}

fn account(endpoint: &Endpoint, call: Option<&CheckedStep>) -> Account {
    let given = |keyword: &str| call.and_then(|c| c.text_of(keyword)).map(str::to_owned);
    let env = |name: &str| {
        ["MYSQL", "MARIADB"].iter().find_map(|brand| {
            let value = endpoint.env.get(&format!("{brand}_{name}"));
            value.filter(|v| !v.is_empty()).cloned()
        })
    };
    let user = given("user")
        .or_else(|| env("USER"))
        .unwrap_or_else(|| "root".into());
    let password = match user.as_str() {
        "root" => env("ROOT_PASSWORD"),
        _ => env("PASSWORD"),
    };
    Account {
        password: given("password").or(password).unwrap_or_default(),
        database: given("database")
            .or_else(|| env("DATABASE"))
            .unwrap_or_default(),
        user,
    }
}

/// A server's error has its number, with the SQLSTATE as a header; a lost connection the system's name for it, or "2013"
/// (CR_SERVER_LOST) for an orderly close.
fn response_of(failure: Failure) -> Response {
    match failure {
        Failure::Server(error) => Response {
            headers: vec![("sqlstate".into(), error.sqlstate)],
            ..Response::failure(error.code.to_string(), error.message)
        },
        Failure::Io(error) => {
            Response::failure(faultbox_engine::errno_name(&error), error.to_string())
        }
        Failure::Closed => Response::failure("2013", "the server closed the connection"),
        // CR_MALFORMED_PACKET
        Failure::Protocol(why) => Response::failure("2027", why),
        Failure::Parameters(..) => Response::failure("2027", "parameters"),
    }
}
