//! What the benchmarks need besides the engine. `cargo xtask bench` puts it together.
//!
//! Each load prints one line of JSON on standard output when it is done; times are in microseconds.

mod lab;
mod load;
mod pwrite;
mod relay;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;

use example_http::Reply;
use serde_json::json;

const USAGE: &str = "usage: faultbox-bench <what>

  relay LISTEN UPSTREAM                   a bare epoll splice relay: the least that any proxy costs
  serve LISTEN                            an HTTP server that answers at once
  http ADDR PATH CONNECTIONS REQUESTS     closed loop of GET PATH per connection; REQUESTS in all
  postgres ADDR CONNECTIONS REQUESTS      closed loop of SELECT 1 (simple query), user and database postgres
  redis ADDR CONNECTIONS REQUESTS         closed loop of GET of a 64-byte value
  pwrite FILE CALLS                       a busy loop of 64-byte pwrite(2) calls
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
        ["http", addr, path, connections, requests] => {
            let (connections, requests) = (parse(connections)?, parse(requests)?);
            load::http(parse(addr)?, path, connections, requests).map(|r| println!("{r}"))
        }
        ["postgres", addr, connections, requests] => {
            let (connections, requests) = (parse(connections)?, parse(requests)?);
            load::postgres(parse(addr)?, connections, requests).map(|report| println!("{report}"))
        }
        ["redis", addr, connections, requests] => {
            let (connections, requests) = (parse(connections)?, parse(requests)?);
            load::redis(parse(addr)?, connections, requests).map(|report| println!("{report}"))
        }
        ["pwrite", file, calls] => {
            let report = pwrite::run(file, parse(calls)?).map_err(|e| format!("{file}: {e}"))?;
            println!("{report}");
            Ok(())
        }
        ["lab", name, dir] => lab::run(name, Path::new(dir)),
        _ => Err("say what to do".into()),
    }
}

fn parse<T: FromStr>(word: &str) -> Result<T, String> {
    word.parse()
        .map_err(|_| format!("`{word}` is no {}", std::any::type_name::<T>()))
}

fn bind(word: &str) -> Result<TcpListener, String> {
    let addr: SocketAddr = parse(word)?;
    TcpListener::bind(addr).map_err(|e| format!("{addr}: {e}"))
}
