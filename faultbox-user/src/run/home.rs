//! Where a run lives on the machine.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::isolation::cgroup;
use super::janitor::{Inventory, Janitor};
use super::{RunError, environment, internal};

/// What the run owns on this machine: a folder, a cgroup, and the janitor that removes both.
pub(super) struct Home {
    /// Unique on this machine.
    pub(super) id: String,
    /// The folder.
    pub(super) dir: PathBuf,
    /// The cgroup, where one could be made.
    pub(super) cgroup: Option<PathBuf>,
    janitor: Option<Janitor>,
}

impl Home {
    /// Makes it.
    ///
    /// # Errors
    /// No room for the folder, or the janitor does not start.
    pub(super) fn create(exe: &Path) -> Result<Home, RunError> {
        let no_dir = |e: io::Error| {
            environment(
                format!(
                    "cannot set up the run in {}: {e}",
                    std::env::temp_dir().display()
                ),
                "make room there, or set TMPDIR to a folder that can be written to",
            )
        };
        let dir = tempfile::Builder::new()
            .prefix("faultbox-")
            .rand_bytes(10)
            .tempdir()
            .map_err(no_dir)?;
        // Services that run as another user must get through to their TMPDIR.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711))
            .map_err(no_dir)?;
        let name = dir
            .path()
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        let id = name.trim_start_matches("faultbox-").to_owned();
        let cgroup = cgroup::own().map(|own| own.join(&name));
        let inventory = Inventory {
            run: id.clone(),
            cgroup: cgroup.clone(),
        };
        let janitor =
            Janitor::start(exe, dir.path(), &inventory).map_err(|e| match e.raw_os_error() {
                // No room, no processes, no descriptors: the machine's.
                Some(_) => no_dir(e),
                None => internal(format!("cannot start the janitor: {e}")),
            })?;
        // From here on the janitor removes the folder, and the cgroup if it comes to be.
        let dir = dir.keep();
        let cgroup = cgroup.filter(|path| cgroup::create(path).is_ok());
        Ok(Home {
            id,
            dir,
            cgroup,
            janitor: Some(janitor),
        })
    }

    /// Has the janitor remove it, and waits for that. What is left then, in words.
    #[must_use]
    pub(super) fn close(&mut self) -> Option<String> {
        self.janitor.take().and_then(Janitor::finish)
    }
}

/// This program, so that it can start itself again; still found when the file was replaced meanwhile.
pub(super) fn own_binary() -> PathBuf {
    match std::env::current_exe() {
        Ok(path) if path.is_file() => path,
        _ => PathBuf::from("/proc/self/exe"),
    }
}
