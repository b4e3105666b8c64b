//! The quickstart's orders API.
//!
//! - `POST /orders {"item": "widget", "quantity": 1}` reserves at the inventory → 201 `{"id", "item", "quantity"}`
//! - `GET /orders/<id>` → 200; answered from memory
//! - `GET /stock/<item>` asks the inventory → 200 `{"item", "left"}`
//! - `GET /health` → 200; says only that this process answers
//!
//! When the inventory fails, the caller gets 503; when it does not answer in time, 504. One case is handled wrongly, on purpose: see
//! [`Orders::create`].

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use example_http::{Args, CallError, Reply, Request, call, log, serve, usage};
use serde_json::{Value, json};

const USAGE: &str = "quickstart-orders [--listen HOST:PORT] [--inventory HOST:PORT]

  --listen     where to listen; default: FAULTBOX_ORDERS_HTTP_ADDR
  --inventory  where the inventory is; default: FAULTBOX_INVENTORY_HTTP_ADDR";

/// How long a call to the inventory may take, connecting included.
const INVENTORY_TIMEOUT: Duration = Duration::from_millis(1500);

fn main() {
    match run() {
        Ok(never) => match never {},
        Err(message) => usage(&message, USAGE),
    }
}

fn run() -> Result<std::convert::Infallible, String> {
    let args = Args::from_env(&["listen", "inventory"])?;
    let addr = args.addr("listen", "FAULTBOX_ORDERS_HTTP_ADDR")?;
    let inventory = args.addr("inventory", "FAULTBOX_INVENTORY_HTTP_ADDR")?;
    let listener = TcpListener::bind(addr).unwrap_or_else(|e| {
        log(format_args!("error: {addr}: {e}"));
        std::process::exit(1)
    });
    log(format_args!("orders on {addr}, inventory at {inventory}"));
    let orders = Orders {
        inventory,
        placed: Mutex::default(),
    };
    serve(listener, move |request| orders.answer(request))
}

struct Orders {
    inventory: SocketAddr,
    placed: Mutex<BTreeMap<u64, Value>>,
}

impl Orders {
    fn answer(&self, request: &Request) -> Reply {
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/health") => Reply::new(200, json!({"ok": true})),
            ("POST", "/orders") => self.create(&request.body),
            ("GET", path) if path.starts_with("/orders/") => self.get(&path["/orders/".len()..]),
            ("GET", path) if path.starts_with("/stock/") => self.stock(path),
            (_, "/health" | "/orders") => Reply::error(405, "this path has another method"),
            _ => Reply::error(404, "there is nothing here"),
        }
    }

    fn create(&self, body: &[u8]) -> Reply {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let (Some(item), Some(quantity @ 1..)) = (body["item"].as_str(), body["quantity"].as_u64())
        else {
            return Reply::error(
                400,
                "the body must be {\"item\": …, \"quantity\": at least 1}",
            );
        };
        let wanted = json!({"item": item, "quantity": quantity}).to_string();
        match self.ask("POST", "/reserve", wanted.as_bytes()) {
            Err(failure) => failure,
            Ok((status @ (404 | 409), reply)) => Reply::new(status, reply),
            Ok((500.., reply)) => inventory_failed(&reply),
            // The deliberate bug, which `bug.star` finds: all the rest counts as success, a 429 (rate limited) included. The
            // customer is told "201 Created", and nothing has been reserved. Naming 200 here would be right.
            Ok(_) => self.place(item, quantity),
        }
    }

    fn place(&self, item: &str, quantity: u64) -> Reply {
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        let id = placed.len() as u64 + 1;
        let order = json!({"id": id, "item": item, "quantity": quantity});
        placed.insert(id, order.clone());
        Reply::new(201, order)
    }

    fn get(&self, id: &str) -> Reply {
        let placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        match id.parse().ok().and_then(|id: u64| placed.get(&id)) {
            Some(order) => Reply::new(200, order.clone()),
            None => Reply::error(404, format!("there is no order `{id}`")),
        }
    }

    fn stock(&self, path: &str) -> Reply {
        match self.ask("GET", path, b"") {
            Err(failure) => failure,
            Ok((status @ (200 | 404), reply)) => Reply::new(status, reply),
            Ok((_, reply)) => inventory_failed(&reply),
        }
    }

    /// Asks the inventory; a call without a reply becomes what the customer is told.
    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Result<(u16, Value), Reply> {
        match call(self.inventory, method, path, body, INVENTORY_TIMEOUT) {
            Ok((status, body)) => Ok((status, serde_json::from_slice(&body).unwrap_or_default())),
            Err(e) => {
                log(format_args!("inventory: {method} {path}: {e}"));
                Err(match e {
                    CallError::Timeout => Reply::error(504, "the inventory did not answer in time"),
                    _ => Reply::error(503, format!("the inventory is unavailable: {e}")),
                })
            }
        }
    }
}

fn inventory_failed(reply: &Value) -> Reply {
    let why = reply["error"].as_str().unwrap_or("no reason given");
    Reply::error(503, format!("the inventory failed: {why}"))
}
