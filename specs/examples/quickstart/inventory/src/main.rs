//! The quickstart's inventory: an HTTP service that acknowledges a reservation only when it is on disk.
//!
//! - `POST /reserve {"item": "widget", "quantity": 1}` → 200 `{"item", "left"}`; 404 unknown item; 409 too few; 507 disk full;
//!   503 the disk failed otherwise
//! - `GET /stock/<item>` → 200 `{"item", "left"}`
//! - `GET /health` → 200, with `"writable": false` after a failed sync

mod stock;
mod wal;

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use example_http::{Args, Reply, Request, log, serve, usage};
use serde_json::{Value, json};
use stock::{ReserveError, Stock};
use wal::AppendError;

const USAGE: &str =
    "quickstart-inventory [--listen HOST:PORT] [--wal FILE] [--stock item=count,item=count…]

  --listen  where to listen; default: FAULTBOX_INVENTORY_HTTP_ADDR
  --wal     the write-ahead log; default: inventory.wal in the temporary folder (TMPDIR)
  --stock   what an empty log starts from; default: widget=100,gadget=5";

fn main() {
    match run() {
        Ok(never) => match never {},
        Err(message) => usage(&message, USAGE),
    }
}

fn run() -> Result<std::convert::Infallible, String> {
    let args = Args::from_env(&["listen", "wal", "stock"])?;
    let addr = args.addr("listen", "FAULTBOX_INVENTORY_HTTP_ADDR")?;
    let initial = parse_stock(args.get("stock").unwrap_or("widget=100,gadget=5"))?;
    let path = args
        .get("wal")
        .map_or_else(|| std::env::temp_dir().join("inventory.wal"), PathBuf::from);
    let stock = Stock::open(&path, initial).unwrap_or_else(|e| fail(&e));
    let listener = TcpListener::bind(addr).unwrap_or_else(|e| fail(&format!("{addr}: {e}")));
    log(format_args!(
        "inventory on {addr}, log in {}",
        path.display()
    ));
    let stock = Mutex::new(stock);
    serve(listener, move |request| {
        // A panic while the lock was held cannot leave the stock half changed: the map is written last, in one step.
        let mut stock = stock.lock().unwrap_or_else(PoisonError::into_inner);
        answer(request, &mut stock)
    })
}

fn fail(message: &str) -> ! {
    log(format_args!("error: {message}"));
    std::process::exit(1)
}

fn parse_stock(text: &str) -> Result<HashMap<String, u64>, String> {
    text.split(',')
        .map(|pair| {
            let (item, count) = pair.split_once('=')?;
            Some((item.to_owned(), count.parse().ok()?))
        })
        .collect::<Option<_>>()
        .ok_or_else(|| format!("--stock: `{text}` is not item=count,item=count…"))
}

fn answer(request: &Request, stock: &mut Stock) -> Reply {
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/health") => Reply::new(200, json!({"ok": true, "writable": !stock.read_only()})),
        ("GET", path) if path.starts_with("/stock/") => {
            let item = &path["/stock/".len()..];
            match stock.left(item) {
                Some(left) => Reply::new(200, json!({"item": item, "left": left})),
                None => Reply::error(404, format!("there is no item `{item}`")),
            }
        }
        ("POST", "/reserve") => reserve(&request.body, stock),
        (_, "/health" | "/reserve") => Reply::error(405, "this path has another method"),
        _ => Reply::error(404, "there is nothing here"),
    }
}

fn reserve(body: &[u8], stock: &mut Stock) -> Reply {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let (Some(item), Some(quantity @ 1..)) = (body["item"].as_str(), body["quantity"].as_u64())
    else {
        return Reply::error(
            400,
            "the body must be {\"item\": …, \"quantity\": at least 1}",
        );
    };
    match stock.reserve(item, quantity) {
        Ok(left) => Reply::new(200, json!({"item": item, "left": left})),
        Err(ReserveError::Unknown) => Reply::error(404, format!("there is no item `{item}`")),
        Err(ReserveError::TooFew(left)) => {
            Reply::error(409, format!("only {left} of `{item}` left"))
        }
        Err(ReserveError::Log(e)) => {
            log(format_args!("reserve: {e}"));
            let full =
                matches!(&e, AppendError::Write(e) if e.kind() == std::io::ErrorKind::StorageFull);
            Reply::error(if full { 507 } else { 503 }, e.to_string())
        }
    }
}
