//! An orders service as many run it: HTTP in front, a pool of PostgreSQL connections with prepared statements behind, and an upstream
//! that knows the prices. `orders-service pricing` is that upstream.
//!
//! - `POST /orders {"item": "shoes", "quantity": 1}` asks the upstream for the price, then stores the order → 201
//! - `GET /orders/<id>` → 200 or 404
//! - `GET /api/v1/orders` → 200, the newest hundred
//! - `GET /search?q=sho` → 200, the orders whose item contains the text
//! - `GET /health` → 200 if the database answers, else 503
//!
//! How failures become statuses stands in [`failure`].

mod database;
mod failure;
mod orders;
mod pool;
mod pricing;
mod server;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use example_http::{Args, Reply, log, usage};
use tokio::net::TcpListener;

const USAGE: &str = "orders-service api [--listen HOST:PORT] [--database URL] [--pricing HOST:PORT]
       orders-service pricing [--listen HOST:PORT]

  --listen    where to listen; default: FAULTBOX_API_HTTP_ADDR or FAULTBOX_PRICING_HTTP_ADDR
  --database  a PostgreSQL connection string; default: DATABASE_URL
  --pricing   where the upstream is; default: FAULTBOX_PRICING_HTTP_ADDR";

#[tokio::main]
async fn main() {
    let mut words = std::env::args().skip(1);
    let result = match words.next().as_deref() {
        Some("api") => api(words).await,
        Some("pricing") => pricing_upstream(words).await,
        _ => Err("say `api` or `pricing`".to_owned()),
    };
    match result {
        Ok(never) => match never {},
        Err(message) => usage(&message, USAGE),
    }
}

async fn api(words: impl Iterator<Item = String>) -> Result<Infallible, String> {
    let args = Args::parse(words, &["listen", "database", "pricing"])?;
    let addr = args.addr("listen", "FAULTBOX_API_HTTP_ADDR")?;
    let upstream = args.addr("pricing", "FAULTBOX_PRICING_HTTP_ADDR")?;
    let url = match (args.get("database"), std::env::var("DATABASE_URL")) {
        (Some(url), _) => url.to_owned(),
        (None, Ok(url)) => url,
        (None, Err(_)) => return Err("neither --database nor DATABASE_URL is set".into()),
    };
    let config = url
        .parse()
        .map_err(|e| format!("the database's connection string: {e}"))?;
    let pool = database::open(config).await.unwrap_or_else(|e| fail(&e));
    let listener = listen(addr).await;
    log(format_args!("orders on {addr}, prices from {upstream}"));
    let orders = Arc::new(orders::Orders {
        pool,
        prices: pricing::Prices(upstream),
    });
    server::serve(listener, move |request| {
        let orders = orders.clone();
        async move { orders.answer(&request).await }
    })
    .await
}

async fn pricing_upstream(words: impl Iterator<Item = String>) -> Result<Infallible, String> {
    let args = Args::parse(words, &["listen"])?;
    let addr = args.addr("listen", "FAULTBOX_PRICING_HTTP_ADDR")?;
    let listener = listen(addr).await;
    log(format_args!("prices on {addr}"));
    server::serve(listener, |request| async move { pricing::answer(&request) }).await
}

async fn listen(addr: SocketAddr) -> TcpListener {
    TcpListener::bind(addr)
        .await
        .unwrap_or_else(|e| fail(&format!("{addr}: {e}")))
}

fn fail(message: &str) -> ! {
    log(format_args!("error: {message}"));
    std::process::exit(1)
}

/// No handler knows this method and path.
fn not_found() -> Reply {
    Reply::error(404, "there is nothing here")
}
