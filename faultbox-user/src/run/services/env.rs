//! The environment of services: a small base, then `FAULTBOX_*`, then what the spec says.
//!
//! The base is taken from the environment of `faultbox` itself: [`PASSED_ON`] and every `LC_*`, as far as they are set. PATH has a default.
//! HOME, USER and LOGNAME are those of `user=` where it is given. TMPDIR is a folder of the test's own, removed with it. Everything else is
//! left out, so that a test does not depend on the shell it was started from.

use std::collections::BTreeMap;
use std::path::Path;

use super::user::Account;
use crate::plan::{ServiceDecl, Topology};
use crate::run::procs;

/// What a service sees of the environment that `faultbox` was started with.
pub const PASSED_ON: [&str; 13] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "TZ",
    "LD_LIBRARY_PATH",
    "JAVA_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "XDG_RUNTIME_DIR",
];

/// The search path where none is set: what login(1) gives on Debian, for the superuser.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Which run and worker a process belongs to, as `NAME=value` pairs.
#[derive(Debug, Clone)]
pub struct Marks {
    /// The run's id.
    pub run: String,
    /// The worker's number.
    pub worker: u64,
}

impl Marks {
    /// The marks that every process of `service` carries, as they stand in its environment.
    pub fn of(&self, service: &str) -> Vec<String> {
        vec![
            format!("{}={}", procs::RUN_MARKER, self.run),
            format!("{}={}", procs::WORKER_MARKER, self.worker),
            format!("{}={service}", procs::SERVICE_MARKER),
        ]
    }
}

/// The whole environment of a service. `inherited` is that of `faultbox`.
pub fn build(
    inherited: impl IntoIterator<Item = (String, String)>,
    topology: &Topology,
    service: &ServiceDecl,
    account: Option<&Account>,
    tmp: &Path,
    marks: &Marks,
) -> Vec<(String, String)> {
    let mut env: BTreeMap<String, String> = inherited
        .into_iter()
        .filter(|(name, _)| PASSED_ON.contains(&name.as_str()) || name.starts_with("LC_"))
        .collect();
    env.entry("PATH".to_owned())
        .or_insert_with(|| DEFAULT_PATH.to_owned());
    env.insert("TMPDIR".to_owned(), tmp.to_string_lossy().into_owned());
    if let Some(account) = account {
        env.insert("HOME".to_owned(), account.home.clone());
        env.insert("USER".to_owned(), account.name.clone());
        env.insert("LOGNAME".to_owned(), account.name.clone());
        env.remove("XDG_RUNTIME_DIR");
    }
    env.extend(topology.env_for(&service.name));
    env.extend(service.env.clone());
    // Last, so that no spec can hide a process from the janitor.
    for mark in marks.of(&service.name) {
        if let Some((name, value)) = mark.split_once('=') {
            env.insert(name.to_owned(), value.to_owned());
        }
    }
    env.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Launch, SpecPos};

    #[test]
    fn base_then_faultbox_then_spec() {
        let service = ServiceDecl {
            name: "db".into(),
            launch: Launch::Remote,
            interfaces: vec![],
            args: vec![],
            env: BTreeMap::from([
                ("LANG".into(), "tlh".into()),
                ("FAULTBOX_RUN".into(), "forged".into()),
            ]),
            cwd: "/".into(),
            depends_on: vec![],
            health: None,
            ops: BTreeMap::new(),
            observe: vec![],
            stop_signal: 15,
            stop_timeout: std::time::Duration::ZERO,
            user: None,
            io_uring: crate::plan::IoUring::Auto,
            pos: SpecPos::default(),
        };
        let account = crate::run::services::user::resolve("0").unwrap();
        let inherited =
            [("SECRET", "x"), ("LANG", "C"), ("LC_TIME", "C")].map(|(n, v)| (n.into(), v.into()));
        let env = build(
            inherited,
            &Topology::default(),
            &service,
            Some(&account),
            Path::new("/t"),
            &Marks {
                run: "r".into(),
                worker: 3,
            },
        );
        let get = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(get("SECRET"), None);
        assert_eq!(get("LANG"), Some("tlh"));
        assert_eq!(get("LC_TIME"), Some("C"));
        assert_eq!(get("PATH"), Some(DEFAULT_PATH));
        assert_eq!(get("USER"), Some("root"));
        assert_eq!(get("TMPDIR"), Some("/t"));
        assert_eq!(get("FAULTBOX_RUN"), Some("r"));
        assert_eq!(get("FAULTBOX_WORKER"), Some("3"));
    }
}
