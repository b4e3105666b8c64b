//! The client for specs: `query`, `exec`, `tx`, and the readiness probe; on tokio-postgres.

use std::error::Error as _;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use faultbox_contract::{ArgError, CheckedStep, Endpoint, Kind, ParamDoc, Response, StepDoc, Tls};
use faultbox_engine::tls::connect;
use faultbox_engine::{dial, is_quiet};
use faultbox_sql::{Statement, Work};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::codec;
use crate::formats::{Formatted, Wanted};
use crate::values::{Param, decode, is_binary};

/// How long the driver may take to read what is there.
const SETTLING: Duration = Duration::from_millis(50);

const SQL: ParamDoc = ParamDoc::req("sql", Kind::Text, "the statement");
const PARAMS: ParamDoc = ParamDoc::opt(
    "params",
    Kind::List,
    "values for $1, $2, …; each becomes what the server says the parameter is",
);
const TIMEOUT: ParamDoc = ParamDoc::opt(
    "timeout",
    Kind::Duration,
    "default \"30s\"; a step that passes it has code \"ETIMEDOUT\"",
);
const USER: ParamDoc = ParamDoc::opt(
    "user",
    Kind::Text,
    "default: the service's POSTGRES_USER, or \"postgres\"",
);
const PASSWORD: ParamDoc = ParamDoc::opt(
    "password",
    Kind::Text,
    "default: the service's POSTGRES_PASSWORD",
);
const DATABASE: ParamDoc = ParamDoc::opt(
    "database",
    Kind::Text,
    "default: the service's POSTGRES_DB, or the user's name",
);

/// What a spec can send.
pub const STEPS: &[StepDoc] = &[
    StepDoc {
        name: "query",
        params: &[SQL, PARAMS, TIMEOUT, USER, PASSWORD, DATABASE],
        variadic: false,
        summary: "runs one statement as a prepared statement; .data is the rows, a list of dicts",
    },
    StepDoc {
        name: "exec",
        params: &[SQL, PARAMS, TIMEOUT, USER, PASSWORD, DATABASE],
        variadic: false,
        summary: "runs a statement, or without params several; .data is {\"rows_affected\": n} of the last",
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
        summary: "runs the statements in one transaction and commits; the first error rolls back and is the result; .data has each one's rows or {\"rows_affected\": n}",
    },
];

/// Sends one operation, on a connection of its own or on the one that the caller has kept.
///
/// # Errors
/// A statement of `tx` that is none, or another number of parameters than the statement has.
pub async fn step(endpoint: Endpoint, call: CheckedStep) -> Result<Response, ArgError> {
    let work = Work::of(&call, "INSERT INTO t VALUES ($1)")?;
    let start = Instant::now();
    let timeout = call.timeout();
    let done = tokio::time::timeout(timeout, run(&endpoint, &call, &work)).await;
    let mut response = match done {
        Ok(Ok(data)) => Response {
            ok: true,
            body: data.to_string(),
            data,
            ..Response::default()
        },
        Ok(Err(Failure::Misuse(e))) => return Err(e),
        Ok(Err(Failure::Wire(response))) => *response,
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
    let probe = async {
        let session = Session::open(&endpoint, &config(&endpoint, None)).await?;
        match session.client.simple_query("SELECT 1").await {
            Ok(_) => {
                session.keep(&endpoint);
                Ok(())
            }
            Err(e) => Err(session.failure(e).await),
        }
    };
    match tokio::time::timeout(endpoint.attempt, probe).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(format!("{}: {}", e.code, e.error)),
        Err(_) => Err(format!(
            "no answer to SELECT 1 within {:?}",
            endpoint.attempt
        )),
    }
}

/// Why a step has no data.
enum Failure {
    Misuse(ArgError),
    Wire(Box<Response>),
}

impl From<Response> for Failure {
    fn from(response: Response) -> Failure {
        Failure::Wire(Box::new(response))
    }
}

async fn run(endpoint: &Endpoint, call: &CheckedStep, work: &Work) -> Result<Value, Failure> {
    let session = Session::open(endpoint, &config(endpoint, Some(call))).await?;
    let data = carry_out(&session, work).await?;
    if work.leaves_session_alone() {
        session.keep(endpoint);
    }
    Ok(data)
}

async fn carry_out(session: &Session, work: &Work) -> Result<Value, Failure> {
    match work {
        Work::Query(statement) => match session.run(statement).await? {
            Value::Array(rows) => Ok(Value::Array(rows)),
            _ => Ok(json!([])),
        },
        Work::Exec(statement) if statement.params.is_empty() => {
            Ok(json!({"rows_affected": session.simple(&statement.sql).await?}))
        }
        Work::Exec(statement) => match session.run(statement).await? {
            Value::Array(rows) => Ok(json!({"rows_affected": rows.len()})),
            affected => Ok(affected),
        },
        Work::Transaction(statements) => {
            session.simple("BEGIN").await?;
            let mut results = vec![];
            for statement in statements {
                match session.run(statement).await {
                    Ok(result) => results.push(result),
                    Err(failure) => {
                        // What matters is why it failed; a connection that is lost has rolled back by itself.
                        let _ = session.client.simple_query("ROLLBACK").await;
                        return Err(failure);
                    }
                }
            }
            session.simple("COMMIT").await?;
            Ok(Value::Array(results))
        }
    }
}

fn config(endpoint: &Endpoint, call: Option<&CheckedStep>) -> Config {
    let get = |keyword: &str, variable: &str| {
        let given = call.and_then(|c| c.text_of(keyword)).map(str::to_owned);
        given.or_else(|| {
            endpoint
                .env
                .get(variable)
                .filter(|v| !v.is_empty())
                .cloned()
        })
    };
    let user = get("user", "POSTGRES_USER").unwrap_or_else(|| "postgres".into());
    let mut config = Config::new();
    // TLS, if any, is on already.
    config.ssl_mode(SslMode::Disable);
    config.application_name("faultbox");
    config.dbname(get("database", "POSTGRES_DB").unwrap_or_else(|| user.clone()));
    config.user(user);
    if let Some(password) = get("password", "POSTGRES_PASSWORD") {
        config.password(password);
    }
    config
}

/// A connection, and the task that drives it.
struct Session {
    client: Client,
    /// Who asks for what database: what makes it differ from others.
    key: String,
    /// The formats that the driver's next Bind asks for.
    wanted: Wanted,
    /// A duplicate of the socket that the driver holds.
    socket: OwnedFd,
    driver: std::sync::Mutex<Option<JoinHandle<Result<(), tokio_postgres::Error>>>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        // Dropping the client says Terminate; the driver ends by itself once that is sent.
        if let Ok(mut driver) = self.driver.lock() {
            driver.take();
        }
    }
}

impl Session {
    async fn open(endpoint: &Endpoint, config: &Config) -> Result<Session, Response> {
        let key = format!(
            "{:?}",
            (
                config.get_user(),
                config.get_dbname(),
                config.get_password()
            )
        );
        if let Some(session) = endpoint.take_kept::<Session>(&key)
            && session.settles().await
        {
            return Ok(session);
        }
        let stream = dial(endpoint.addr).await.map_err(|e| io_failure(&e))?;
        let stream = match &endpoint.tls {
            None => stream,
            Some(tls) => encrypt(stream, tls, &endpoint.host)
                .await
                .map_err(|e| io_failure(&e))?,
        };
        let socket = stream
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| io_failure(&e))?;
        let wanted = Wanted::default();
        let (client, connection) = config
            .connect_raw(Formatted::new(stream, wanted.clone()), NoTls)
            .await
            .map_err(|e| failure(&e))?;
        Ok(Session {
            client,
            key,
            wanted,
            socket,
            driver: std::sync::Mutex::new(Some(tokio::spawn(connection))),
        })
    }

    /// Is the connection open, with nothing said on it that answers nothing? The driver closes each statement behind its last use, and
    /// what the server says to that may be on its way still.
    async fn settles(&self) -> bool {
        let deadline = Instant::now() + SETTLING;
        loop {
            if self.client.is_closed() {
                return false;
            }
            if is_quiet(&self.socket) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            // The driver is another task of this runtime.
            tokio::task::yield_now().await;
        }
    }

    /// Leaves the connection to the caller's next step.
    fn keep(self, endpoint: &Endpoint) {
        endpoint.keep(&self.key.clone(), self);
    }

    /// The rows of a statement that has columns, or {"rows_affected": n}.
    async fn run(&self, statement: &Statement) -> Result<Value, Failure> {
        let prepared = match self.client.prepare(&statement.sql).await {
            Ok(prepared) => prepared,
            Err(e) => return Err(self.failure(e).await.into()),
        };
        let (given, wanted) = (statement.params.len(), prepared.params().len());
        if given != wanted {
            return Err(Failure::Misuse(ArgError::new(
                "params",
                format!(
                    "`params`: the statement has {wanted} parameters, but {given} values were given"
                ),
            )));
        }
        let params: Vec<Param> = statement.params.iter().map(Param).collect();
        let params = params
            .iter()
            .map(|p| p as _)
            .collect::<Vec<&(dyn tokio_postgres::types::ToSql + Sync)>>();
        if prepared.columns().is_empty() {
            return match self.client.execute(&prepared, &params).await {
                Ok(n) => Ok(json!({"rows_affected": n})),
                Err(e) => Err(self.failure(e).await.into()),
            };
        }
        let columns = prepared.columns().iter();
        let formats = columns.map(|c| u16::from(is_binary(c.type_()))).collect();
        self.wanted.set(Some(formats));
        let rows = self.client.query(&prepared, &params).await;
        // Where it was refused before there was a Bind.
        self.wanted.set(None);
        let rows = match rows {
            Ok(rows) => rows,
            Err(e) => return Err(self.failure(e).await.into()),
        };
        let row = |row: &tokio_postgres::Row| -> Value {
            let cell = |(i, column): (usize, &tokio_postgres::Column)| {
                (column.name().to_owned(), decode(row, i))
            };
            Value::Object(
                row.columns()
                    .iter()
                    .enumerate()
                    .map(cell)
                    .collect::<Map<_, _>>(),
            )
        };
        Ok(rows.iter().map(row).collect())
    }

    /// Runs statements by the simple protocol; the number of rows that the last one touched.
    async fn simple(&self, sql: &str) -> Result<u64, Failure> {
        match self.client.simple_query(sql).await {
            Ok(messages) => Ok(messages
                .iter()
                .rev()
                .find_map(|m| match m {
                    SimpleQueryMessage::CommandComplete(n) => Some(*n),
                    _ => None,
                })
                .unwrap_or(0)),
            Err(e) => Err(self.failure(e).await.into()),
        }
    }

    /// What an error means. That the connection is gone is all that the client knows; why, its driver knows.
    async fn failure(&self, error: tokio_postgres::Error) -> Response {
        let driver = self.driver.lock().ok().and_then(|mut d| d.take());
        if let (true, Some(driver)) = (error.is_closed(), driver)
            && let Ok(Ok(Err(why))) = tokio::time::timeout(Duration::from_secs(1), driver).await
        {
            return failure(&why);
        }
        failure(&error)
    }
}

/// Asks for TLS, as libpq's sslmode=require does; the stream that comes back is plain.
async fn encrypt(mut stream: TcpStream, tls: &Arc<Tls>, host: &str) -> io::Result<TcpStream> {
    let mut request = BytesMut::new();
    codec::put_ssl_request(&mut request);
    stream.write_all(&request).await?;
    let mut answer = [0];
    stream.read_exact(&mut answer).await?;
    match answer[0] {
        b'S' => connect(stream, tls, host, &[]).await,
        b'N' => Err(io::Error::other(
            "the interface has tls=, but the server speaks no TLS (ssl=off)",
        )),
        _ => Err(io::Error::other("the server refuses connections just now")),
    }
}

/// A server's error has its SQLSTATE and message; a lost connection the system's name for it, or "08006" for an orderly close.
fn failure(error: &tokio_postgres::Error) -> Response {
    if let Some(db) = error.as_db_error() {
        let detail = db.detail().map(|d| format!(" ({d})")).unwrap_or_default();
        return Response::failure(db.code().code(), format!("{}{detail}", db.message()));
    }
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return io_failure(io);
        }
        source = cause.source();
    }
    if error.is_closed() {
        return Response::failure("08006", "the server closed the connection");
    }
    let cause = error.source().map(|c| format!(": {c}")).unwrap_or_default();
    Response::failure("08P01", format!("{error}{cause}"))
}

fn io_failure(error: &std::io::Error) -> Response {
    let code = match error.raw_os_error() {
        Some(_) => faultbox_engine::errno_name(error),
        // Not the system's error but the driver's: the stream ended in the middle of a message.
        None => "08006".into(),
    };
    Response::failure(code, error.to_string())
}
