//! The upstream that knows the prices, and the client that asks it.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use example_http::{Decoder, Progress, Reply, Request, encode_request};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::failure::Failure;

/// In cents.
const PRICES: [(&str, i64); 3] = [("shoes", 8900), ("shirt", 2500), ("hat", 1500)];

/// How long asking for a price may take, connecting included: less than the two seconds of the spec's slow connects, and long enough for a
/// machine that is busy with other things.
const TIMEOUT: Duration = Duration::from_millis(1900);

/// The upstream's side: `GET /api/v1/prices/<item>` → `{"item", "cents"}`.
pub fn answer(request: &Request) -> Reply {
    let item = request.path.strip_prefix("/api/v1/prices/");
    match (request.method.as_str(), item) {
        ("GET", Some(item)) => match PRICES.iter().find(|(name, _)| *name == item) {
            Some((item, cents)) => Reply::new(200, json!({"item": item, "cents": cents})),
            None => Reply::error(404, format!("there is no item `{item}`")),
        },
        _ => crate::not_found(),
    }
}

/// The client's side. Each question has a connection of its own.
pub struct Prices(pub SocketAddr);

impl Prices {
    /// What one `item` costs, in cents.
    pub async fn of(&self, item: &str) -> Result<i64, Failure> {
        let began = Instant::now();
        let asked = timeout(TIMEOUT, self.ask(item)).await;
        let (status, body) = match asked {
            // A thread that was held up sees the reply and the deadline at once; the deadline counts.
            _ if began.elapsed() >= TIMEOUT => return Err(Failure::Timeout("the price upstream")),
            Err(_) => return Err(Failure::Timeout("the price upstream")),
            Ok(Err(e)) if e.kind() == io::ErrorKind::TimedOut => {
                return Err(Failure::Timeout("the price upstream"));
            }
            Ok(Err(e)) => return Err(Failure::Upstream(e.to_string())),
            Ok(Ok(reply)) => reply,
        };
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        match (status, body["cents"].as_i64()) {
            (200, Some(cents)) => Ok(cents),
            (404, _) => Err(Failure::UnknownItem(item.to_owned())),
            (429, _) => Err(Failure::RateLimited),
            (status, _) => Err(Failure::Upstream(format!("it answered {status}"))),
        }
    }

    async fn ask(&self, item: &str) -> io::Result<(u16, Vec<u8>)> {
        // The item becomes part of a path, so only what needs no escaping goes on; nothing else is ever for sale.
        if !item.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Ok((404, vec![]));
        }
        let mut stream = TcpStream::connect(self.0).await?;
        let target = format!("/api/v1/prices/{item}");
        let request = encode_request("GET", &self.0.to_string(), &target, b"");
        stream.write_all(&request).await?;
        let mut decoder = Decoder::default();
        let mut chunk = [0; 4096];
        loop {
            match decoder.reply() {
                Ok(Progress::Done(reply)) => return Ok(reply),
                Ok(_) => match stream.read(&mut chunk).await? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    n => decoder.push(&chunk[..n]),
                },
                Err(refused) => return Err(io::Error::other(refused.why)),
            }
        }
    }
}
