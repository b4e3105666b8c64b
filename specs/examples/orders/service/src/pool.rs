//! A small pool of connections, each with its statements prepared.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use example_http::log;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_postgres::{Client, Config, NoTls, Statement};

use crate::failure::Failure;

/// Connections at most. A handful is plenty for one service (PostgreSQL's own rule of thumb is twice the cores).
const SIZE: usize = 4;
/// How long a request waits for a free connection, and how long connecting and preparing may take.
const WAIT: Duration = Duration::from_secs(2);

/// The statements, prepared once per connection.
pub struct Statements {
    /// `$1` item, `$2` quantity, `$3` cents → id
    pub insert: Statement,
    /// `$1` item, `$2` quantity
    pub demand: Statement,
    /// `$1` id → id, item, quantity, cents
    pub by_id: Statement,
    /// → the same, newest first
    pub newest: Statement,
    /// `$1` text → the same
    pub search: Statement,
}

impl Statements {
    async fn prepare(client: &Client) -> Result<Statements, tokio_postgres::Error> {
        let orders = "SELECT id, item, quantity, cents FROM orders";
        let escaped = r"replace(replace(replace($1::text, '\', '\\'), '%', '\%'), '_', '\_')";
        Ok(Statements {
            insert: client
                .prepare("INSERT INTO orders (item, quantity, cents) VALUES ($1, $2, $3) RETURNING id")
                .await?,
            demand: client
                .prepare(
                    "INSERT INTO demand (item, quantity) VALUES ($1, $2)
                     ON CONFLICT (item) DO UPDATE SET quantity = demand.quantity + EXCLUDED.quantity",
                )
                .await?,
            by_id: client.prepare(&format!("{orders} WHERE id = $1")).await?,
            newest: client
                .prepare(&format!("{orders} ORDER BY id DESC LIMIT 100"))
                .await?,
            search: client
                .prepare(&format!(
                    "{orders} WHERE item ILIKE '%' || {escaped} || '%' ORDER BY id DESC LIMIT 100"
                ))
                .await?,
        })
    }
}

/// A connection that is ready for use.
pub struct Connection {
    /// The driver's handle.
    pub client: Client,
    /// What has been prepared on it.
    pub statements: Statements,
}

/// Hands out connections, and opens new ones in place of those that broke.
pub struct Pool {
    config: Config,
    idle: Mutex<Vec<Connection>>,
    places: Semaphore,
}

impl Pool {
    /// A pool with all its connections open.
    pub async fn open(config: Config) -> Result<Pool, Failure> {
        let pool = Pool {
            config,
            idle: Mutex::default(),
            places: Semaphore::new(SIZE),
        };
        for _ in 0..SIZE {
            let connection = connect(&pool.config).await?;
            pool.lock().push(connection);
        }
        Ok(pool)
    }

    /// A connection for one request: an idle one that is still alive, else a new one.
    pub async fn get(&self) -> Result<Lease<'_>, Failure> {
        let place = timeout(WAIT, self.places.acquire())
            .await
            .map_err(|_| Failure::Timeout("the connection pool"))?
            .map_err(|_| Failure::Connection("the pool is closed".into()))?;
        while let Some(connection) = self.pop() {
            if !connection.client.is_closed() {
                return Ok(self.lease(place, connection));
            }
        }
        let connection = timeout(WAIT, connect(&self.config))
            .await
            .map_err(|_| Failure::Timeout("the database"))??;
        Ok(self.lease(place, connection))
    }

    fn lease<'a>(&'a self, place: SemaphorePermit<'a>, connection: Connection) -> Lease<'a> {
        Lease {
            pool: self,
            connection: Some(connection),
            _place: place,
        }
    }

    fn pop(&self) -> Option<Connection> {
        self.lock().pop()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection on loan. It goes back by [`Lease::give_back`] only: one that is dropped, because its request was cancelled or failed in
/// mid-transaction, is cancelled on the server and closed, for nobody knows what state it is in.
pub struct Lease<'a> {
    pool: &'a Pool,
    connection: Option<Connection>,
    _place: SemaphorePermit<'a>,
}

impl Lease<'_> {
    /// Returns the connection to the pool.
    pub fn give_back(mut self) {
        if let Some(connection) = self.connection.take().filter(|c| !c.client.is_closed()) {
            self.pool.lock().push(connection);
        }
    }

    /// The connection, for what needs it exclusively.
    pub fn connection(&mut self) -> Result<&mut Connection, Failure> {
        self.connection
            .as_mut()
            .ok_or_else(|| Failure::Connection("the lease has ended".into()))
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take()
            && !connection.client.is_closed()
        {
            let cancel = connection.client.cancel_token();
            tokio::spawn(async move {
                // Best effort: closing the connection does not stop a statement that is running on the server.
                let _ = timeout(WAIT, cancel.cancel_query(NoTls)).await;
            });
        }
    }
}

async fn connect(config: &Config) -> Result<Connection, Failure> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        if let Err(e) = connection.await {
            log(format_args!("database connection: {e}"));
        }
    });
    let statements = Statements::prepare(&client).await?;
    Ok(Connection { client, statements })
}
