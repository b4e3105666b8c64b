//! A service that makes the syscall it is asked for and says what came of it: the target of the conformance specs.
//!
//! `GET /do?op=write&path=/tmp/x` answers 200 with `{"ok": true, "ret": 5, "errno": "", "ms": 0.02}`, or 503 with `"ok": false` and the errno's
//! name. `n=` repeats the call (the answer then counts: `"failed": 3, "ok_calls": 7, "pattern": "..x"`), `thread=1` makes it on a new thread,
//! `child=1` in a forked child. `GET /peer?...` forwards the query to the victim at `addr=`: how one service calls another.
//! `GET /pool/open?addr=` keeps a connection, `GET /pool/send` uses it.

mod calls;
mod http;

use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::time::Instant;

use serde_json::{Value, json};

use crate::http::{Query, Request};

/// The connection that `/pool/open` keeps.
static POOL: Mutex<Option<TcpStream>> = Mutex::new(None);

fn main() {
    let mut args = std::env::args().skip(1);
    let (mut listen, mut exit_after) = (None, None);
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .unwrap_or_else(|| usage(&format!("{arg} needs a value")))
        };
        match arg.as_str() {
            "--listen" => listen = Some(value()),
            "--print" => println!("{}", value()),
            "--exit" => exit_after = value().parse::<i32>().ok(),
            "--fork" => calls::daemonize(),
            "--ignore-sigterm" => calls::ignore_sigterm(),
            other => usage(&format!("unknown argument {other}")),
        }
    }
    if let Some(status) = exit_after {
        std::process::exit(status);
    }
    let listen = listen
        .or_else(|| std::env::var("FAULTBOX_VICTIM_HTTP_ADDR").ok())
        .unwrap_or_else(|| usage("no --listen and no FAULTBOX_VICTIM_HTTP_ADDR"));
    let listener = TcpListener::bind(&listen)
        .unwrap_or_else(|e| usage(&format!("cannot listen on {listen}: {e}")));
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || http::serve(stream, answer));
    }
}

fn usage(problem: &str) -> ! {
    eprintln!(
        "conformance-victim: {problem}\nusage: conformance-victim --listen ADDR [--print TEXT] [--exit STATUS] [--fork] [--ignore-sigterm]"
    );
    std::process::exit(2)
}

fn answer(request: &Request) -> (u16, Value) {
    let query = &request.query;
    match request.path.as_str() {
        "/health" => (200, json!({"ok": true})),
        "/do" => reply(perform(query)),
        "/peer" => match query
            .need("addr")
            .and_then(|addr| http::get(addr, &format!("/do?{}", query.without("addr"))))
        {
            Ok((status, body)) => (status, body),
            Err(e) => reply(Err(e)),
        },
        "/get" => match query
            .need("addr")
            .and_then(|addr| http::get(addr, query.need("target")?))
        {
            Ok((status, body)) => (200, json!({"ok": true, "status": status, "body": body})),
            Err(e) => reply(Err(e)),
        },
        "/env" => match query.need("name") {
            Ok(name) => (200, json!({"ok": true, "value": std::env::var(name).ok()})),
            Err(e) => reply(Err(e)),
        },
        "/cwd" => (
            200,
            json!({"ok": true, "value": std::env::current_dir().ok()}),
        ),
        "/filters" => (200, json!({"ok": true, "value": calls::seccomp_filters()})),
        "/pool/open" => reply(query.need("addr").and_then(|addr| {
            let stream = TcpStream::connect(addr).map_err(|e| calls::errno_name(&e))?;
            *POOL
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(stream);
            Ok(0)
        })),
        "/pool/send" => match POOL
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .as_mut()
        {
            None => (404, json!({"ok": false, "errno": "ENOTCONN"})),
            Some(stream) => match http::exchange(stream, "/health") {
                Ok((status, _)) => (status, json!({"ok": true})),
                Err(e) => reply(Err(e)),
            },
        },
        _ => (404, json!({"ok": false, "error": "no such path"})),
    }
}

fn reply(outcome: Result<i64, String>) -> (u16, Value) {
    match outcome {
        Ok(ret) => (200, json!({"ok": true, "ret": ret, "errno": ""})),
        Err(errno) => (503, json!({"ok": false, "ret": -1, "errno": errno})),
    }
}

fn perform(query: &Query) -> Result<i64, String> {
    if query.get("child").is_some() {
        return calls::in_child(|| once(query));
    }
    if query.get("thread").is_some() {
        return std::thread::scope(|scope| scope.spawn(|| once(query)).join())
            .unwrap_or_else(|_| Err("PANIC".into()));
    }
    match query.get("n") {
        None => once(query),
        Some(n) => {
            let n: usize = n.parse().map_err(|_| "EINVAL".to_owned())?;
            // The pattern is reported as the errno text, so that a spec can compare a whole sequence: "..x" is two successes and a failure.
            let pattern: String = (0..n)
                .map(|_| if once(query).is_ok() { '.' } else { 'x' })
                .collect();
            if pattern.contains('x') {
                Err(pattern)
            } else {
                Ok(n as i64)
            }
        }
    }
}

fn once(query: &Query) -> Result<i64, String> {
    let began = Instant::now();
    let outcome = calls::make(query.need("op")?, query);
    if query.get("time").is_some() {
        return outcome.map(|_| began.elapsed().as_millis() as i64);
    }
    outcome
}
