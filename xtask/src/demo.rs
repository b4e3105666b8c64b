//! `cargo xtask demo`: from a fresh machine to a table of scenarios × faults.

use std::process::{Command, Stdio};
use std::time::Instant;

use crate::specs;
use crate::{Error, Result};
use crate::{run, setup};

/// Installs what is missing, builds, runs the quickstart.
pub fn run() -> Result {
    setup::for_build()?;
    specs::build_quickstart()?;

    let began = Instant::now();
    println!(
        "\nAn orders API over an inventory with a write-ahead log, and seven ways for the world to fail it:\n"
    );
    if faultbox("specs/examples/quickstart/faultbox.star")? != Some(0) {
        return Err(Error::new("the quickstart should pass and did not")
            .help("`target/release/faultbox doctor` tells what this machine does not allow"));
    }

    println!(
        "\nNow one more: the inventory answers 429, \"too many requests\". THIS CELL FAILS, AS IT SHOULD:\n"
    );
    let found = faultbox("specs/examples/quickstart/bug.star")?;
    if found != Some(1) {
        return Err(Error::new(
            "the quickstart's deliberate bug should have failed one cell, and did not",
        ));
    }
    println!(
        "
That is a real bug, put there to be found: the orders API takes every answer below 500 that it does not know for success.
The customer is told \"201 Created\", and nothing has been reserved. No test without a fault would have shown it.
It stands in specs/examples/quickstart/orders/src/main.rs, `create`. Mend it (place the order for `Ok((200, _))`, and let
`Ok((_, reply))` be `inventory_failed(&reply)`), and run

  cargo build --release --package quickstart-orders
  target/release/faultbox test specs/examples/quickstart/bug.star

Both runs took {:.1} s. `cargo install --profile dist --path faultbox-user` puts faultbox on your PATH. Next: specs/examples/quickstart/faultbox.star is short, and docs/language.md tells the rest.",
        began.elapsed().as_secs_f64()
    );
    Ok(true)
}

/// Runs a spec for a person to read; returns faultbox's exit code.
fn faultbox(spec: &str) -> Result<Option<i32>> {
    let mut command = Command::new(specs::faultbox());
    command.current_dir(run::root()).args(["test", spec]);
    run::say(&command);
    let status = command
        .stdin(Stdio::null())
        .status()
        .map_err(|e| run::cannot_run(&command, &e))?;
    Ok(status.code())
}
