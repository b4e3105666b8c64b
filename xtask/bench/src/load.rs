//! Load, in a closed or an open loop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use example_http::{Decoder, Progress};
use faultbox_engine::timer::sleep_until;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

use crate::canned::{Client, Script};

/// When a connection sends its next request.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// As soon as it has the last one's answer.
    AtOnce,
    /// So long after it had that.
    After(Duration),
    /// This many a second over all connections, in turns, whether answers have come or not; a request that waits for its connection is
    /// timed from when it was due.
    PerSecond(u64),
}

/// Up to ten seconds, to three digits: what this reports is not finer.
pub fn histogram() -> Result<Histogram<u64>, String> {
    Histogram::new_with_bounds(1, 10_000_000_000, 3).map_err(|e| e.to_string())
}

/// What a report says of nanoseconds.
pub fn percentiles(times: &Histogram<u64>) -> Value {
    let at = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
    json!({"p50_us": at(0.5), "p99_us": at(0.99), "max_us": times.max() as f64 / 1000.0})
}

/// Not measured: connections are made, branch predictors and caches get warm.
const WARM_UP: u64 = 200;

/// How much.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// That are open at the same time.
    pub connections: u64,
    /// Over all of them.
    pub requests: u64,
    /// When the next one goes.
    pub pace: Pace,
}

/// GET over keep-alive connections.
pub fn http(addr: SocketAddr, path: &str, load: Load) -> Result<Value, String> {
    run(load, async move || {
        let stream = TcpStream::connect(addr).await.map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        Ok(Http {
            stream,
            request: format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\n\r\n"),
            decoder: Decoder::default(),
        })
    })
}

/// SELECT 1 as a simple query.
pub fn postgres(addr: SocketAddr, load: Load) -> Result<Value, String> {
    run(load, async move || {
        let config = format!(
            "host={} port={} user=postgres dbname=postgres sslmode=disable",
            addr.ip(),
            addr.port()
        );
        let (client, connection) = tokio_postgres::connect(&config, NoTls)
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        Ok(Postgres(client))
    })
}

/// GET of a value that each connection has set before.
pub fn redis(addr: SocketAddr, load: Load) -> Result<Value, String> {
    run(load, async move || {
        let stream = TcpStream::connect(addr).await.map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let mut redis = Redis(stream);
        let value = "x".repeat(VALUE);
        let set = format!("*3\r\n$3\r\nSET\r\n$5\r\nbench\r\n${VALUE}\r\n{value}\r\n");
        redis.exchange(set.as_bytes(), b"+OK\r\n".len()).await?;
        Ok(redis)
    })
}

/// What clients of a protocol say, to a server that answers as it does.
pub fn canned(script: Arc<Script>, addr: SocketAddr, load: Load) -> Result<Value, String> {
    run(load, async move || {
        let stream = TcpStream::connect(addr).await.map_err(|e| e.to_string())?;
        Client::open(stream, script.clone()).await
    })
}

/// Bytes in the value that is read.
const VALUE: usize = 64;

/// A connection that can ask one thing.
trait Ask: Send + 'static {
    fn ask(&mut self) -> impl Future<Output = Result<(), String>> + Send;
}

impl Ask for Client {
    async fn ask(&mut self) -> Result<(), String> {
        self.exchange().await
    }
}

struct Http {
    stream: TcpStream,
    request: String,
    decoder: Decoder,
}

impl Ask for Http {
    async fn ask(&mut self) -> Result<(), String> {
        self.stream
            .write_all(self.request.as_bytes())
            .await
            .map_err(|e| e.to_string())?;
        let mut chunk = [0; 4096];
        loop {
            match self.decoder.reply().map_err(|refused| refused.why)? {
                Progress::Done((200, _)) => return Ok(()),
                Progress::Done((status, _)) => return Err(format!("status {status}")),
                _ => match self.stream.read(&mut chunk).await {
                    Ok(0) => return Err("the server closed the connection".into()),
                    Ok(n) => self.decoder.push(&chunk[..n]),
                    Err(e) => return Err(e.to_string()),
                },
            }
        }
    }
}

struct Postgres(tokio_postgres::Client);

impl Ask for Postgres {
    async fn ask(&mut self) -> Result<(), String> {
        let answer = self.0.simple_query("SELECT 1").await;
        answer.map(|_| ()).map_err(|e| e.to_string())
    }
}

struct Redis(TcpStream);

impl Redis {
    /// Sends a command whose answer has this many bytes.
    async fn exchange(&mut self, command: &[u8], answer: usize) -> Result<(), String> {
        let failed = |e: std::io::Error| e.to_string();
        self.0.write_all(command).await.map_err(failed)?;
        let mut heard = [0; 128];
        self.0
            .read_exact(&mut heard[..answer])
            .await
            .map_err(failed)?;
        match heard[0] {
            b'+' | b'$' => Ok(()),
            _ => Err(String::from_utf8_lossy(&heard[..answer]).into_owned()),
        }
    }
}

impl Ask for Redis {
    async fn ask(&mut self) -> Result<(), String> {
        // "$64", the value, and the ends of both lines.
        self.exchange(b"*2\r\n$3\r\nGET\r\n$5\r\nbench\r\n", 5 + VALUE + 2)
            .await
    }
}

/// One thread for all connections, so that the generator takes one CPU at most and leaves the other to what is measured.
fn run<C: Ask>(load: Load, connect: impl AsyncFn() -> Result<C, String>) -> Result<Value, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let connections = load.connections.max(1);
        let warm = Arc::new(Barrier::new(connections as usize + 1));
        let (mut tasks, mut turns) = (JoinSet::new(), vec![]);
        for _ in 0..connections {
            let connection = connect().await?;
            let (turn, dues) = unbounded_channel();
            turns.push(turn);
            let gate = Gate {
                pace: load.pace,
                dues,
                warm: warm.clone(),
            };
            tasks.spawn(measure(
                connection,
                WARM_UP / connections + 1,
                load.requests / connections + 1,
                gate,
            ));
        }
        warm.wait().await;
        if let Pace::PerSecond(rate) = load.pace {
            let rounds = load.requests / connections + 1;
            tasks.spawn(async move {
                let began = Instant::now();
                keep_time(rate, rounds, &turns).await;
                Ok((began, histogram()?))
            });
        }
        let mut all = histogram()?;
        let mut began: Option<Instant> = None;
        while let Some(done) = tasks.join_next().await {
            let (start, one) = done.map_err(|e| e.to_string())??;
            began = Some(began.map_or(start, |b| b.min(start)));
            all.add(one).map_err(|e| e.to_string())?;
        }
        let took = began.map_or(Duration::ZERO, |b| b.elapsed());
        let mut report = percentiles(&all);
        report["requests"] = json!(all.len());
        report["per_s"] = json!(all.len() as f64 / took.as_secs_f64());
        Ok(report)
    })
}

/// Tells each connection in turn when its next request is due.
async fn keep_time(rate: u64, rounds: u64, turns: &[UnboundedSender<Instant>]) {
    let began = Instant::now();
    let apart = Duration::from_secs(1) / u32::try_from(rate.max(1)).unwrap_or(u32::MAX);
    let mut due = began;
    for _ in 0..rounds {
        for turn in turns {
            sleep_until(due).await;
            // One that has failed says so itself.
            let _ = turn.send(due);
            due += apart;
        }
    }
}

/// What a connection waits for before it sends.
struct Gate {
    pace: Pace,
    dues: UnboundedReceiver<Instant>,
    warm: Arc<Barrier>,
}

impl Gate {
    /// Returns when the next request is due to be sent.
    async fn pass(&mut self) -> Option<Instant> {
        match self.pace {
            Pace::AtOnce => Some(Instant::now()),
            Pace::After(pause) => {
                sleep_until(Instant::now() + pause).await;
                Some(Instant::now())
            }
            Pace::PerSecond(_) => self.dues.recv().await,
        }
    }
}

async fn measure<C: Ask>(
    mut connection: C,
    warm_up: u64,
    requests: u64,
    mut gate: Gate,
) -> Result<(Instant, Histogram<u64>), String> {
    let mut warmed = Ok(());
    for _ in 0..warm_up {
        warmed = connection.ask().await;
        if warmed.is_err() {
            break;
        }
    }
    // Also one that fails is waited for.
    gate.warm.wait().await;
    warmed?;
    let mut times = histogram()?;
    let start = Instant::now();
    for _ in 0..requests {
        let Some(due) = gate.pass().await else {
            break;
        };
        connection.ask().await?;
        times.saturating_record(u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    Ok((start, times))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn closed(connections: u64, requests: u64) -> Load {
        Load {
            connections,
            requests,
            pace: Pace::AtOnce,
        }
    }

    #[test]
    fn values_are_read_and_errors_are_errors() {
        use std::io::{Read, Write};
        let serve = |get: &'static str| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let addr = listener.local_addr().unwrap();
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let mut buffer = [0; 256];
                    while let Ok(1..) = stream.read(&mut buffer) {
                        let answer = match &buffer[..2] {
                            b"*3" => "+OK\r\n",
                            _ => get,
                        };
                        stream.write_all(answer.as_bytes()).unwrap();
                    }
                }
            });
            addr
        };
        let value: &str = format!("$64\r\n{}\r\n", "x".repeat(VALUE)).leak();
        assert_eq!(redis(serve(value), closed(1, 50)).unwrap()["requests"], 51);
        let error: &str = format!("-ERR {}\r\n", "x".repeat(VALUE)).leak();
        assert!(redis(serve(error), closed(1, 50)).is_err());
    }

    #[test]
    fn every_request_is_counted_once_also_through_the_relay() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            example_http::serve(listener, |_| example_http::Reply::new(200, json!(1)))
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = listener.local_addr().unwrap();
        std::thread::spawn(move || crate::relay::run(&listener, server));
        for addr in [server, relay] {
            let report = http(addr, "/", closed(4, 96)).unwrap();
            assert_eq!(report["requests"], 100);
            assert!(report["p50_us"].as_f64() <= report["p99_us"].as_f64());
        }
    }

    #[test]
    fn every_protocols_traffic_is_answered_through_the_relay() {
        for traffic in faultbox_traffic::all() {
            if matches!(traffic.carrier, faultbox_traffic::Carrier::Datagrams) {
                assert!(crate::canned::find(traffic.name).is_err());
                continue;
            }
            let script = crate::canned::find(traffic.name).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let server = listener.local_addr().unwrap();
            let answers = script.clone();
            std::thread::spawn(move || crate::canned::serve(listener, answers));
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let relay = listener.local_addr().unwrap();
            std::thread::spawn(move || crate::relay::run(&listener, server));
            let report = canned(script, relay, closed(4, 96)).unwrap();
            assert_eq!(report["requests"], 100, "{}", traffic.name);
        }
    }

    #[test]
    fn an_open_loop_does_not_wait_for_a_server_that_stalls() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let asked = std::sync::atomic::AtomicU64::new(0);
        std::thread::spawn(move || {
            example_http::serve(listener, move |_| {
                // Half a second once, after the warm-up.
                if asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == WARM_UP + 10 {
                    std::thread::sleep(Duration::from_millis(500));
                }
                example_http::Reply::new(200, json!(1))
            })
        });
        let load = Load {
            connections: 1,
            requests: 200,
            pace: Pace::PerSecond(400),
        };
        let report = http(server, "/", load).unwrap();
        assert_eq!(report["requests"], 201);
        // All that were due meanwhile have waited, not only the one that was held.
        assert!(report["p50_us"].as_f64() > Some(1000.0), "{report}");
    }
}
