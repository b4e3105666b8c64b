//! What the benchmarks need besides the engine. `cargo xtask bench` puts it together.
//!
//! Each load prints one line of JSON on standard output when it is done; times are in microseconds.

mod busy;
mod canned;
mod floor;
mod lab;
mod load;
mod relay;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use example_http::Reply;
use load::{Load, Pace};
use serde_json::json;

const USAGE: &str = "usage: faultbox-bench <what>

  relay LISTEN UPSTREAM                   a bare epoll splice relay: the least that any proxy costs
  serve LISTEN                            an HTTP server that answers at once
  http ADDR PATH CONNECTIONS REQUESTS [PACE]  GET PATH; REQUESTS over all connections
  postgres ADDR CONNECTIONS REQUESTS [PACE]   SELECT 1 (simple query), user and database postgres
  redis ADDR CONNECTIONS REQUESTS [PACE]      GET of a 64-byte value
  canned TRAFFIC ADDR CONNECTIONS REQUESTS [PACE]  what a client of that protocol says, the answers compared
                                          PACE: each connection's next at once when the last one is answered (default); so long
                                          after that (1000us); or so many a second over all of them (10000/s)
  pwrite FILE CALLS                       a busy loop of 64-byte pwrite(2) calls
  tracepoints -- COMMAND                  runs it while programs that do nothing are attached to where all system calls begin and end
  notified -- COMMAND                     runs it with every pwrite(2) trapped, and lets each go on at once
  canned-server TRAFFIC SERVICE           answers it, at FAULTBOX_<SERVICE>_MAIN_ADDR
  lab NAME DIR                            a service that measures from the inside, at FAULTBOX_<NAME>_HTTP_ADDR; files go to DIR";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn run(words: &[&str]) -> Result<(), String> {
    match words {
        ["relay", listen, upstream] => {
            let listener = bind(listen)?;
            relay::run(&listener, parse(upstream)?).map_err(|e| format!("relay: {e}"))
        }
        ["serve", listen] => {
            example_http::serve(bind(listen)?, |_| Reply::new(200, json!({"ok": true})))
        }
        ["http", addr, path, rest @ ..] => {
            load::http(parse(addr)?, path, load_of(rest)?).map(|r| println!("{r}"))
        }
        ["postgres", addr, rest @ ..] => {
            load::postgres(parse(addr)?, load_of(rest)?).map(|r| println!("{r}"))
        }
        ["redis", addr, rest @ ..] => {
            load::redis(parse(addr)?, load_of(rest)?).map(|r| println!("{r}"))
        }
        ["canned", traffic, addr, rest @ ..] => {
            let load = load::canned(canned::find(traffic)?, parse(addr)?, load_of(rest)?);
            load.map(|r| println!("{r}"))
        }
        ["canned-server", traffic, service] => {
            let variable = format!("FAULTBOX_{}_MAIN_ADDR", service.to_uppercase());
            let addr = std::env::var(&variable).map_err(|_| format!("{variable} is not set"))?;
            canned::serve(bind(&addr)?, canned::find(traffic)?)
        }
        ["pwrite", file, calls] => {
            let report = busy::pwrite(file, parse(calls)?).map_err(|e| format!("{file}: {e}"))?;
            println!("{report}");
            Ok(())
        }
        ["tracepoints", "--", command @ ..] => floor::tracepoints(command),
        ["notified", "--", command @ ..] => floor::notified(command),
        ["lab", name, dir] => lab::run(name, Path::new(dir)),
        _ => Err("say what to do".into()),
    }
}

fn load_of(words: &[&str]) -> Result<Load, String> {
    let (connections, requests, pace) = match words {
        [connections, requests] => (connections, requests, Pace::AtOnce),
        [connections, requests, pace] => {
            let pace = if let Some(pause) = pace.strip_suffix("us") {
                Pace::After(Duration::from_micros(parse(pause)?))
            } else if let Some(rate) = pace.strip_suffix("/s") {
                Pace::PerSecond(parse(rate)?)
            } else {
                return Err(format!("`{pace}` is no pace"));
            };
            (connections, requests, pace)
        }
        _ => return Err("say how many connections and requests".into()),
    };
    Ok(Load {
        connections: parse(connections)?,
        requests: parse(requests)?,
        pace,
    })
}

fn parse<T: FromStr>(word: &str) -> Result<T, String> {
    word.parse()
        .map_err(|_| format!("`{word}` is no {}", std::any::type_name::<T>()))
}

fn bind(word: &str) -> Result<TcpListener, String> {
    let addr: SocketAddr = parse(word)?;
    TcpListener::bind(addr).map_err(|e| format!("{addr}: {e}"))
}
