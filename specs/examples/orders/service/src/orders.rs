//! The API.

use std::time::Duration;

use example_http::{Reply, Request};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_postgres::{IsolationLevel, Row};

use crate::failure::Failure;
use crate::pool::{Connection, Pool};
use crate::pricing::Prices;

/// How long the database part of a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often a transaction that lost against another is tried.
const ATTEMPTS: u32 = 5;

/// What every request needs.
pub struct Orders {
    /// The database.
    pub pool: Pool,
    /// The upstream.
    pub prices: Prices,
}

impl Orders {
    /// Answers one request.
    pub async fn answer(&self, request: &Request) -> Reply {
        let answer = match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/health") => self.health().await,
            ("GET", "/api/v1/orders") => self.newest().await,
            ("GET", "/search") => self.search(request.parameter("q")).await,
            ("POST", "/orders") => self.create(&request.body).await,
            ("GET", path) if path.starts_with("/orders/") => {
                self.by_id(&path["/orders/".len()..]).await
            }
            (_, "/health" | "/api/v1/orders" | "/search" | "/orders") => {
                Ok(Reply::error(405, "this path has another method"))
            }
            _ => Ok(crate::not_found()),
        };
        answer.unwrap_or_else(|failure| {
            example_http::log(format_args!(
                "{} {}: {failure:?}",
                request.method, request.path
            ));
            failure.reply()
        })
    }

    async fn health(&self) -> Result<Reply, Failure> {
        self.with_connection(async |connection| {
            Ok(connection.client.simple_query("SELECT 1").await?)
        })
        .await?;
        Ok(Reply::new(200, json!({"ok": true})))
    }

    async fn create(&self, body: &[u8]) -> Result<Reply, Failure> {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let (Some(item), Some(quantity @ 1..=1_000_000)) =
            (body["item"].as_str(), body["quantity"].as_i64())
        else {
            let shape = "the body must be {\"item\": …, \"quantity\": 1 to 1000000}";
            return Ok(Reply::error(400, shape));
        };
        let cents = self.prices.of(item).await?.saturating_mul(quantity);
        let id = self
            .with_connection(async |connection| {
                let mut attempt = 1;
                loop {
                    match store(connection, item, quantity, cents).await {
                        Err(failure) if failure.is_retryable() && attempt < ATTEMPTS => {
                            // 10, 20, 40 … ms: long enough for the winner to finish.
                            tokio::time::sleep(Duration::from_millis(5 << attempt)).await;
                            attempt += 1;
                        }
                        other => return other,
                    }
                }
            })
            .await?;
        Ok(Reply::new(
            201,
            json!({"id": id, "item": item, "quantity": quantity, "cents": cents}),
        ))
    }

    async fn by_id(&self, id: &str) -> Result<Reply, Failure> {
        let missing = || Reply::error(404, format!("there is no order `{id}`"));
        let Ok(number) = id.parse::<i64>() else {
            return Ok(missing());
        };
        let row = self
            .with_connection(async |c| {
                Ok(c.client.query_opt(&c.statements.by_id, &[&number]).await?)
            })
            .await?;
        Ok(row.map_or_else(missing, |row| Reply::new(200, order(&row))))
    }

    async fn newest(&self) -> Result<Reply, Failure> {
        let rows = self
            .with_connection(async |c| Ok(c.client.query(&c.statements.newest, &[]).await?))
            .await?;
        Ok(list(&rows))
    }

    async fn search(&self, text: Option<String>) -> Result<Reply, Failure> {
        let Some(text) = text else {
            return Ok(Reply::error(400, "say what to search for: /search?q=…"));
        };
        let rows = self
            .with_connection(async |c| Ok(c.client.query(&c.statements.search, &[&text]).await?))
            .await?;
        Ok(list(&rows))
    }

    /// Runs `work` on a pooled connection, within [`TIMEOUT`]. The connection goes back if the work went well or the server refused it:
    /// after an error answer a connection is as good as before, for [`store`] rolls back what it began.
    async fn with_connection<T>(
        &self,
        work: impl AsyncFnOnce(&mut Connection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut lease = self.pool.get().await?;
        let worked = timeout(TIMEOUT, work(lease.connection()?)).await;
        let result = worked.map_err(|_| Failure::Timeout("the database"))?;
        if matches!(result, Ok(_) | Err(Failure::Sql { .. })) {
            lease.give_back();
        }
        result
    }
}

/// Stores an order and counts the demand, both or neither.
async fn store(
    connection: &mut Connection,
    item: &str,
    quantity: i64,
    cents: i64,
) -> Result<i64, Failure> {
    let Connection { client, statements } = connection;
    // Dropped without a commit, it sends ROLLBACK before whatever comes next on this connection.
    let transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::Serializable)
        .start()
        .await?;
    let row = transaction
        .query_one(&statements.insert, &[&item, &quantity, &cents])
        .await?;
    transaction
        .execute(&statements.demand, &[&item, &quantity])
        .await?;
    transaction.commit().await?;
    Ok(row.get("id"))
}

fn order(row: &Row) -> Value {
    json!({
        "id": row.get::<_, i64>("id"),
        "item": row.get::<_, &str>("item"),
        "quantity": row.get::<_, i64>("quantity"),
        "cents": row.get::<_, i64>("cents"),
    })
}

fn list(rows: &[Row]) -> Reply {
    let orders: Vec<Value> = rows.iter().map(order).collect();
    Reply::new(200, json!({ "orders": orders }))
}
