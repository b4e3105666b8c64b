//! Busy loops: the cost of a system call, and of whatever looks at it.

use std::fs::OpenOptions;
use std::hint::black_box;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Calls pwrite(2) so often, and reports what one call took on average. A failed call ends the loop: a fault that should not match
/// must not change anything.
pub fn pwrite(file: &str, calls: u64) -> io::Result<Value> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(file)?;
    let block = [b'x'; 64];
    file.write_all_at(&block, 0)?;
    let began = Instant::now();
    for _ in 0..calls {
        file.write_all_at(&block, 0)?;
    }
    Ok(report(calls, began.elapsed()))
}

/// Calls getpid(2) so often: the call that does the least (the C library does not keep what it says).
pub fn getpid(calls: u64) -> Value {
    let began = Instant::now();
    for _ in 0..calls {
        black_box(std::process::id());
    }
    report(calls, began.elapsed())
}

fn report(calls: u64, took: Duration) -> Value {
    json!({
        "calls": calls,
        "per_call_us": took.as_secs_f64() * 1e6 / calls.max(1) as f64,
        "calls_per_s": calls as f64 / took.as_secs_f64(),
    })
}
