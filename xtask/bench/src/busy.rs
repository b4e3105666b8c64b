//! A busy loop of pwrite(2): the cost of a system call, and of whatever looks at it.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use serde_json::{Value, json};

/// Calls pwrite(2) so often, and reports what one call took on average. A failed call ends the loop: a fault that should not match
/// must not change anything.
pub fn run(file: &str, calls: u64) -> io::Result<Value> {
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
    let took = began.elapsed();
    Ok(json!({
        "calls": calls,
        "per_call_us": took.as_secs_f64() * 1e6 / calls.max(1) as f64,
        "calls_per_s": calls as f64 / took.as_secs_f64(),
    }))
}
