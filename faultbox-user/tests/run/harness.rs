//! Runs the real command on small specs, and looks for what a run leaves behind.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use faultbox::run::procs;
use serde_json::Value;

/// Nothing here takes long; this only keeps a defect from hanging the suite.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with a spec in it, and a temporary folder that only its runs use.
pub struct Bench {
    pub dir: tempfile::TempDir,
    exe: PathBuf,
    unprivileged: bool,
}

impl Bench {
    pub fn new(spec: &str) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("faultbox.star"), spec).unwrap();
        fs::create_dir(dir.path().join("tmp")).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Bench {
            dir,
            exe: env!("CARGO_BIN_EXE_faultbox").into(),
            unprivileged: false,
        }
    }

    /// The same, run by `nobody`; `None`, loudly, where that cannot be had.
    pub fn as_nobody(spec: &str) -> Option<Bench> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs root to become nobody");
            return None;
        }
        let mut bench = Bench::new(spec);
        // The build's own folder may be closed to others.
        let exe = bench.dir.path().join("faultbox");
        // By another process: what is open for writing here, a child that another test is just starting has open, too (ETXTBSY in
        // execve(2)).
        let copied = Command::new("cp").arg(&bench.exe).arg(&exe).status();
        assert!(copied.unwrap().success());
        fs::set_permissions(&exe, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(bench.tmp(), fs::Permissions::from_mode(0o777)).unwrap();
        bench.exe = exe;
        bench.unprivileged = true;
        Some(bench)
    }

    pub fn tmp(&self) -> PathBuf {
        self.dir.path().join("tmp")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Waits until a service has made this file.
    #[track_caller]
    pub fn made(&self, name: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.path(name).exists() {
            assert!(Instant::now() < deadline, "{name} was never made");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn start(&self, args: &[&str]) -> Run {
        let mut command = if self.unprivileged {
            let mut c = Command::new("setpriv");
            c.args(["--reuid=65534", "--regid=65534", "--clear-groups"])
                .arg(&self.exe);
            c
        } else {
            Command::new(&self.exe)
        };
        let child = command
            .args(["test", "--format", "json"])
            .args(args)
            .current_dir(self.dir.path())
            .env("TMPDIR", self.tmp())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Run {
            child,
            tmp: self.tmp(),
        }
    }

    /// Runs to the end and checks that nothing is left.
    pub fn run(&self, args: &[&str]) -> Report {
        let report = self.start(args).finish();
        assert_empty(&self.tmp());
        report
    }
}

pub struct Run {
    pub child: Child,
    tmp: PathBuf,
}

/// What a run owned while it lived.
#[derive(Debug)]
pub struct Traces {
    pub id: String,
    networks: HashSet<PathBuf>,
    workers: Vec<i32>,
}

impl Traces {
    pub fn kill_workers(&self) {
        for worker in &self.workers {
            let worker = nix::unistd::Pid::from_raw(*worker);
            // One of them may have been a child of a worker's that was about to become a service, and is gone by now.
            let _ = nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// Waits until so many processes live in the run's networks that carry no marker.
    pub fn strangers(&self, count: usize) {
        let marks = [mark(&self.id)];
        let deadline = Instant::now() + PATIENCE;
        let found = || {
            let of_the_run = |p: &i32| network(*p).is_some_and(|n| self.networks.contains(&n));
            let unmarked = |p: &i32| !procs::carries(*p, &marks);
            procs::all()
                .into_iter()
                .filter(|p| of_the_run(p) && unmarked(p))
                .count()
        };
        while found() < count {
            assert!(Instant::now() < deadline, "they never came up");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Run {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Waits until at least `count` services of the run live, and notes what could be left behind.
    pub fn traces(&mut self, count: usize) -> Traces {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "the services never came up");
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the run ended early: {status}");
            }
            std::thread::sleep(Duration::from_millis(5));
            let Some(id) = entries(&self.tmp)
                .iter()
                .find_map(|n| n.strip_prefix("faultbox-").map(str::to_owned))
            else {
                continue;
            };
            let all = procs::marked(&[mark(&id)]);
            // What is neither has ended since it was listed.
            let workers = all.iter().copied().filter(|pid| is_worker(*pid)).collect();
            let services: Vec<i32> = all.into_iter().filter(|pid| is_service(*pid)).collect();
            if services.len() >= count {
                let networks = services.iter().filter_map(|p| network(*p)).collect();
                return Traces {
                    id,
                    networks,
                    workers,
                };
            }
        }
    }

    pub fn finish(self) -> Report {
        let pid = self.pid();
        let (sender, done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _ = sender.send(self.child.wait_with_output());
        });
        let Ok(output) = done.recv_timeout(PATIENCE) else {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
            panic!("the run does not end");
        };
        let output = output.unwrap();
        Report {
            code: output.status.code(),
            doc: serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn mark(id: &str) -> String {
    format!("{}={id}", procs::RUN_MARKER)
}

fn is_service(pid: i32) -> bool {
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|e| {
        String::from_utf8_lossy(&e)
            .split('\0')
            .any(|v| v.starts_with("FAULTBOX_SERVICE="))
    }) && !is_worker(pid)
}

fn is_worker(pid: i32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|c| String::from_utf8_lossy(&c).contains("__worker"))
}

fn network(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

fn entries(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

pub fn assert_empty(dir: &Path) {
    assert_eq!(
        entries(dir),
        Vec::<String>::new(),
        "left in {}",
        dir.display()
    );
}

/// Waits until no process, cgroup, network namespace or file of the run is left; fails if that does not come.
pub fn assert_gone(traces: &Traces, tmp: &Path) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let own = network(std::process::id() as i32);
        let processes = procs::marked(&[mark(&traces.id)]);
        let networks: Vec<i32> = procs::all()
            .into_iter()
            .filter(|p| {
                network(*p)
                    .is_some_and(|n| Some(&n) != own.as_ref() && traces.networks.contains(&n))
            })
            .collect();
        let cgroup = faultbox::run::isolation::cgroup::own()
            .map(|own| own.join(format!("faultbox-{}", traces.id)))
            .filter(|p| p.exists());
        let files = entries(tmp);
        if processes.is_empty() && networks.is_empty() && cgroup.is_none() && files.is_empty() {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "left: processes {processes:?}, in its networks {networks:?}, cgroup {cgroup:?}, files {files:?}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[derive(Debug)]
pub struct Report {
    pub code: Option<i32>,
    pub doc: Value,
    pub stderr: String,
}

impl Report {
    pub fn test(&self, name: &str) -> &Value {
        self.doc["tests"]
            .as_array()
            .and_then(|tests| tests.iter().find(|t| t["name"] == name))
            .unwrap_or_else(|| panic!("no test {name}: {self:?}"))
    }

    #[track_caller]
    pub fn expect(&self, name: &str, outcome: &str) -> &Value {
        let test = self.test(name);
        assert_eq!(test["outcome"], outcome, "{self:#?}");
        test
    }

    pub fn reason(&self, name: &str) -> String {
        self.test(name)["reason"].as_str().unwrap_or("").to_owned()
    }

    pub fn log(&self, test: &str, service: &str) -> Vec<String> {
        self.test(test)["logs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|l| l["service"] == service)
            .flat_map(|l| l["lines"].as_array().cloned().unwrap_or_default())
            .map(|l| l.as_str().unwrap_or("").to_owned())
            .collect()
    }
}
