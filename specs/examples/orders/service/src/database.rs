//! Making the database ready at start.

use std::time::{Duration, Instant};

use tokio_postgres::{Config, NoTls};

use crate::failure::Failure;
use crate::pool::Pool;

/// How long to wait for the database at start.
const PATIENCE: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
    SET client_min_messages = warning;
    CREATE TABLE IF NOT EXISTS orders (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        item text NOT NULL,
        quantity bigint NOT NULL CHECK (quantity > 0),
        cents bigint NOT NULL
    );
    CREATE TABLE IF NOT EXISTS demand (item text PRIMARY KEY, quantity bigint NOT NULL);";

/// Creates what is missing and opens the pool.
///
/// # Errors
/// The database did not come up in time, or refused.
pub async fn open(mut config: Config) -> Result<Pool, String> {
    config
        .application_name("orders-service")
        .connect_timeout(Duration::from_secs(2));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let failure = match try_open(&config).await {
            Ok(pool) => return Ok(pool),
            Err(failure) => failure,
        };
        // 57P03 is "the database system is starting up".
        let starting = match &failure {
            Failure::Connection(_) => true,
            Failure::Sql { code, .. } => code.code() == "57P03",
            _ => false,
        };
        if !starting || Instant::now() > deadline {
            return Err(format!("the database: {}", failure.reply().body["error"]));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn try_open(config: &Config) -> Result<Pool, Failure> {
    let (client, connection) = config.connect(NoTls).await?;
    let driver = tokio::spawn(connection);
    client.batch_execute(SCHEMA).await?;
    drop(client);
    // The connection ends when its client is gone; wait for it, so that it is not one more in the server.
    let _ = driver.await;
    Pool::open(config.clone()).await
}
