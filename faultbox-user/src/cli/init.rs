//! `faultbox init`: a spec that loads and passes on any machine with Python, to start from.

use std::fs::{self, File};
use std::io::{self, Write};

use super::args::InitArgs;
use super::exit::Exit;
use super::output;
use super::problem::Problem;
use crate::report::text;

/// What is written.
const STARTER: &str = include_str!("starter.star");

/// Runs the command.
///
/// # Errors
/// There is a spec already, or the folder cannot be written.
pub fn run(args: &InitArgs) -> Result<Exit, Problem> {
    let path = args.dir.join("faultbox.star");
    let refused = |e: io::Error| match e.kind() {
        io::ErrorKind::AlreadyExists => Problem::usage(
            format!("{} exists already", path.display()),
            "it was left as it is; name another folder (`faultbox init DIR`) or move it away",
        ),
        _ => Problem::environment(
            format!("{} cannot be written: {e}", path.display()),
            "name a folder that may be written and has room",
        ),
    };
    fs::create_dir_all(&args.dir).map_err(|e| {
        Problem::environment(
            format!("folder {} cannot be made: {e}", args.dir.display()),
            "name a folder that exists, or one in a folder that may be written",
        )
    })?;
    // create_new: two that race, or a dangling link, never overwrite anything.
    let mut file = File::create_new(&path).map_err(refused)?;
    if let Err(e) = file.write_all(STARTER.as_bytes()) {
        // Half a spec would be taken for the user's own the next time.
        let _ = fs::remove_file(&path);
        return Err(refused(e));
    }
    let name = path.display().to_string();
    let name = name.strip_prefix("./").unwrap_or(&name);
    output::stdout(&format!(
        "wrote {name}\nrun it with: faultbox test{}\n",
        if name == "faultbox.star" {
            String::new()
        } else {
            format!(" {}", text::shell(name))
        }
    ))?;
    Ok(Exit::Passed)
}
