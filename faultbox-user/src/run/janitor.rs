//! The janitor: a small process that outlives the run by a moment and removes whatever it left, even when the run was killed by SIGKILL.
//!
//! It holds the read end of a pipe whose only write end is the runner's. End of file means that the runner is gone, however it went.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::isolation::cgroup;
use super::procs;

/// How long the janitor tries to remove what resists, e.g. a process in uninterruptible sleep.
const PATIENCE: Duration = Duration::from_secs(20);
/// The file in the run's folder that tells the janitor what is the run's.
const INVENTORY: &str = "run.json";

/// The file in a worker's folder that names its network namespace.
const NETWORK: &str = "network";

/// Notes in its folder the network namespace that this worker has to itself.
///
/// # Errors
/// The folder cannot be written to.
pub fn note_network(scratch: &Path) -> io::Result<()> {
    let name = procs::network(std::process::id() as i32).unwrap_or_default();
    std::fs::write(scratch.join(NETWORK), name)
}

/// The network namespace that a worker has noted.
pub fn network_of(scratch: &Path) -> Option<String> {
    let name = std::fs::read_to_string(scratch.join(NETWORK)).ok()?;
    Some(name).filter(|n| !n.is_empty())
}

/// What belongs to a run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Inventory {
    /// The run's id.
    pub run: String,
    /// The run's cgroup, if it has one.
    pub cgroup: Option<PathBuf>,
}

/// The runner's side.
#[derive(Debug)]
pub struct Janitor {
    child: Child,
    _ready: BufReader<ChildStdout>,
    dir: PathBuf,
}

impl Janitor {
    /// Starts the janitor of the run that lives in `dir`, and waits until it has a session of its own, out of Ctrl-C's reach.
    ///
    /// # Errors
    /// The process cannot be started, or dies at once.
    pub fn start(exe: &Path, dir: &Path, inventory: &Inventory) -> io::Result<Janitor> {
        std::fs::write(dir.join(INVENTORY), serde_json::to_vec(inventory)?)?;
        let mut child = Command::new(exe)
            .arg("__janitor")
            .arg(dir)
            .env_remove(procs::RUN_MARKER)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut ready = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        if ready.read_line(&mut line)? == 0 {
            let _ = child.wait();
            return Err(io::Error::other("the janitor process ended at once"));
        }
        Ok(Janitor {
            child,
            _ready: ready,
            dir: dir.to_owned(),
        })
    }

    /// Lets it clean up and waits for it; if it has not, its work is done here. What is left then, in words.
    pub fn finish(mut self) -> Option<String> {
        drop(self.child.stdin.take());
        if self.child.wait().is_ok_and(|status| status.success()) {
            return None;
        }
        let swept = read_inventory(&self.dir).map(|inventory| sweep(&self.dir, &inventory));
        match swept {
            Ok(true) => None,
            Ok(false) => Some(format!(
                "not everything of this run could be removed: see {} and its processes",
                self.dir.display()
            )),
            Err(_) if !self.dir.exists() => None,
            Err(e) => Some(format!("{} could not be removed: {e}", self.dir.display())),
        }
    }
}

/// The janitor itself.
pub fn main(dir: &Path) -> ExitCode {
    // Fails only if this is a group leader already, and then Ctrl-C does not reach it either.
    let _ = nix::unistd::setsid();
    let inventory = match read_inventory(dir) {
        Ok(inventory) => inventory,
        Err(e) => {
            eprintln!("faultbox janitor: {}: {e}", dir.display());
            return ExitCode::from(70);
        }
    };
    println!("ready");
    let _ = io::stdout().flush();
    let mut rest = vec![];
    let _ = io::stdin().lock().read_to_end(&mut rest);
    if sweep(dir, &inventory) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(70)
    }
}

fn read_inventory(dir: &Path) -> io::Result<Inventory> {
    Ok(serde_json::from_slice(&std::fs::read(
        dir.join(INVENTORY),
    )?)?)
}

/// Kills and removes all that the inventory names, then the run's folder; says whether nothing is left.
fn sweep(dir: &Path, inventory: &Inventory) -> bool {
    if let Some(group) = &inventory.cgroup {
        cgroup::kill(group);
    }
    let mark = format!("{}={}", procs::RUN_MARKER, inventory.run);
    let networks: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|worker| network_of(&worker.path()))
        .collect();
    let mut clean = procs::kill_owned(&[mark], &networks, PATIENCE);
    if let Some(group) = &inventory.cgroup {
        clean &= cgroup::remove(group, PATIENCE);
    }
    // A killed process may still be creating a file in a folder that is being emptied.
    for _ in 0..50 {
        match std::fs::remove_dir_all(dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                std::thread::sleep(Duration::from_millis(20));
            }
            _ => return clean,
        }
    }
    false
}
