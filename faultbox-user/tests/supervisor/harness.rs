//! Services under test and what they are made of.
#![allow(dead_code)]

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use faultbox::events::{Event, EventLog};
use faultbox::plan::{Existing, IoUring, SyscallAction, SyscallRule};
use faultbox::run::supervisor::{
    ArmError, ArmedSyscall, BeforeExec, Mechanism, ProcessTree, Supervisor,
};
use faultbox::sys::launch::{Ids, Launch, launch};
use faultbox::sys::{names, pidfd, procfs};

/// Long enough for the slowest machine; only a hang gets there.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// `None`, with a loud line, where this machine refuses ptrace.
pub fn ptrace_allowed() -> Option<()> {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    if matches!(scope.trim(), "2" | "3") && !nix::unistd::geteuid().is_root() {
        eprintln!(
            "SKIPPED: ptrace is refused here (yama ptrace_scope {})",
            scope.trim()
        );
        return None;
    }
    Some(())
}

/// An executable that goes with the last who holds it.
#[derive(Clone)]
pub struct Built(Arc<Scratch>, String);

impl std::ops::Deref for Built {
    type Target = Path;

    fn deref(&self) -> &Path {
        Path::new(&self.1)
    }
}

impl AsRef<std::ffi::OsStr> for Built {
    fn as_ref(&self) -> &std::ffi::OsStr {
        self.1.as_ref()
    }
}

fn built(name: &str, make: impl FnOnce(&Path) -> Command) -> Built {
    let dir = scratch();
    let out = dir.join(name);
    let status = make(&out).status().expect("the compiler can be run");
    assert!(status.success(), "{name} does not compile");
    let path = out.to_str().unwrap().to_owned();
    Built(Arc::new(dir), path)
}

/// Compiles tests/programs/`name`.
pub fn compile_c(name: &str, flags: &[&str]) -> Built {
    built(name.trim_end_matches(".c"), |out| {
        let mut cc = Command::new("cc");
        cc.args(["-O1", "-g", "-Wall", "-o"])
            .arg(out)
            .arg(programs().join(name))
            .args(flags);
        cc
    })
}

/// Builds tests/programs/`name` without cgo; `None`, with a loud line, where there is no Go.
pub fn build_go(name: &str) -> Option<Built> {
    let go = which("go")?;
    let cache = scratch();
    Some(built(name.trim_end_matches(".go"), |out| {
        let mut build = Command::new(go);
        build
            .args(["build", "-o"])
            .arg(out)
            .arg(programs().join(name))
            .env("CGO_ENABLED", "0")
            .env("GO111MODULE", "off")
            .env("GOCACHE", cache.path());
        build
    }))
}

/// Whether to go on without `what` that is missing here: loudly on a laptop, never where everything has been installed.
pub fn skip(what: &str) {
    let all_is_installed = ["CI", "FAULTBOX_CLIENTS"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    assert!(!all_is_installed, "{what}, and CI skips nothing");
    eprintln!("SKIPPED, NOT PASSED: {what}");
}

/// A program of this machine; `None`, with a loud line, where there is none.
pub fn which(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path)
            .map(|d| d.join(name))
            .find(|p| p.is_file())
    });
    if found.is_none() {
        skip(&format!("there is no {name} on this machine"));
    }
    found
}

pub fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs")
}

/// A folder that goes when dropped.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// A folder of its own for each call, which other users may look into.
pub fn scratch() -> Scratch {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::Builder::new()
        .prefix("faultbox-supervisor-")
        .tempdir()
        .unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    Scratch(dir)
}

/// The counters that loop.c keeps.
pub struct Counters {
    path: PathBuf,
    _dir: Scratch,
    threads: usize,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    pub calls: i64,
    pub eio: i64,
    pub enospc: i64,
    pub bad: i64,
}

impl Counters {
    pub fn new(threads: usize) -> Counters {
        let dir = scratch();
        let path = dir.join("counters");
        std::fs::write(&path, vec![0; 64 * threads]).unwrap();
        Counters {
            path,
            _dir: dir,
            threads,
        }
    }

    pub fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    pub fn sum(&self) -> Sum {
        let bytes = std::fs::read(&self.path).unwrap();
        let mut sum = Sum::default();
        for thread in bytes.chunks_exact(64).take(self.threads) {
            let word = |i: usize| i64::from_ne_bytes(thread[i * 8..i * 8 + 8].try_into().unwrap());
            sum.calls += word(0);
            sum.eio += word(1);
            sum.enospc += word(2);
            sum.bad += word(3);
        }
        sum
    }
}

/// A launched process with its supervisor; killed at the end.
pub struct Service {
    pub pid: i32,
    pub pidfd: std::os::fd::OwnedFd,
    pub supervisor: Supervisor,
    pub log: Arc<EventLog>,
    pub out: PathBuf,
    _dir: Scratch,
    next: AtomicU64,
    tree: ProcessTree,
    _stay: std::sync::mpsc::Sender<()>,
}

#[derive(Default)]
pub struct Options<'a> {
    pub listen: Option<&'a [i64]>,
    pub user: Option<Ids>,
    pub env: Vec<(String, String)>,
    pub cwd: Option<PathBuf>,
    pub io_uring: IoUring,
}

impl Service {
    pub fn start(program: &Path, args: &[&str]) -> Service {
        Service::start_with(program, args, Options::default())
    }

    pub fn start_with(program: &Path, args: &[&str], options: Options<'_>) -> Service {
        let dir = scratch();
        let out = dir.join("out");
        let mut argv = vec![program.to_str().unwrap().to_owned()];
        argv.extend(args.iter().map(|s| (*s).to_owned()));
        let file = File::create(&out).unwrap();
        let mut env = options.env.clone();
        env.push(("PATH".to_owned(), std::env::var("PATH").unwrap()));
        env.push(("HOME".to_owned(), "/tmp".to_owned()));
        // The launching thread must outlive the service: the kernel kills it with that thread.
        let (stay, wait) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let program = program.to_owned();
        let listen = options.listen.map(<[i64]>::to_vec);
        let (user, cwd) = (
            options.user.clone(),
            options.cwd.clone().unwrap_or("/tmp".into()),
        );
        let numbers = listen.clone();
        std::thread::spawn(move || {
            let launched = launch(&Launch {
                program: &program,
                argv: &argv,
                env: &env,
                cwd: &cwd,
                stdout: file.as_fd(),
                stderr: file.as_fd(),
                user,
                cgroup_procs: None,
                io_uring: options.io_uring,
                listen: listen.as_deref(),
            });
            tell.send(launched).unwrap();
            let _ = wait.recv();
        });
        let launched = told.recv().unwrap().unwrap();
        let log = Arc::new(EventLog::default());
        let pid = launched.pid;
        let tree: ProcessTree = Arc::new(move || descendants(pid));
        let listener = launched.listener.map(|listener| BeforeExec {
            listener,
            numbers: numbers.unwrap(),
            rules: vec![],
        });
        let supervisor =
            Supervisor::new("svc", tree.clone(), options.io_uring, log.clone(), listener);
        Service {
            pid,
            pidfd: launched.pidfd,
            supervisor,
            log,
            out,
            _dir: dir,
            next: AtomicU64::new(1),
            tree,
            _stay: stay,
        }
    }

    pub fn rule(
        &self,
        key: &str,
        syscalls: &[&'static str],
        action: SyscallAction,
    ) -> Arc<ArmedSyscall> {
        self.rule_with(key, syscalls, action, |_| {})
    }

    pub fn rule_with(
        &self,
        key: &str,
        syscalls: &[&'static str],
        action: SyscallAction,
        change: impl FnOnce(&mut SyscallRule),
    ) -> Arc<ArmedSyscall> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut rule = SyscallRule {
            key: key.to_owned(),
            syscalls: syscalls.to_vec(),
            action,
            trigger: Default::default(),
            path: None,
            on: None,
            dest: None,
            existing: Existing::Keep,
            label: None,
            text: key.to_owned(),
        };
        change(&mut rule);
        Arc::new(ArmedSyscall::new(
            id,
            format!("{key}{id}"),
            Arc::new(rule),
            42,
        ))
    }

    pub fn try_arm(&self, rules: &[&Arc<ArmedSyscall>]) -> Result<Mechanism, ArmError> {
        let rules: Vec<_> = rules.iter().map(|r| (*r).clone()).collect();
        self.supervisor.arm(&rules)
    }

    #[track_caller]
    pub fn arm(&self, rules: &[&Arc<ArmedSyscall>]) {
        let began = Instant::now();
        if let Err(e) = self.try_arm(rules) {
            panic!(
                "{} ({:?}); the program said: {}",
                e.message,
                e.help,
                self.output()
            );
        }
        eprintln!("armed in {:?}", began.elapsed());
    }

    pub fn lift(&self, rule: &ArmedSyscall) {
        self.supervisor.lift(rule.id);
    }

    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.out).unwrap_or_default()).into_owned()
    }

    pub fn running(&self) -> bool {
        !procfs::is_dead(self.pid)
    }

    pub fn syscall_events(&self) -> Vec<Arc<Event>> {
        self.log.since(0).filter(|e| e.kind == "syscall").collect()
    }

    /// Waits for something that must come true.
    #[track_caller]
    pub fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition() {
            assert!(
                Instant::now() < deadline,
                "never: {what}; the program said: {}",
                self.output()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the program's end and returns what it said.
    #[track_caller]
    pub fn finished(&self) -> String {
        assert!(
            pidfd::wait_exit(self.pidfd.as_fd(), DEADLINE).unwrap(),
            "it does not end; it said: {}",
            self.output()
        );
        self.output()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for pid in (self.tree)() {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        let _ = pidfd::wait_exit(self.pidfd.as_fd(), DEADLINE);
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(self.pid), None);
    }
}

/// The process and all it has forked, by /proc: what a cgroup would list.
pub fn descendants(root: i32) -> Vec<i32> {
    let mut found = vec![];
    let mut open = vec![root];
    while let Some(pid) = open.pop() {
        if procfs::live_thread(pid).is_none() || found.contains(&pid) {
            continue;
        }
        found.push(pid);
        for tid in procfs::threads(pid) {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/children"))
                .unwrap_or_default();
            open.extend(
                children
                    .split_whitespace()
                    .filter_map(|p| p.parse::<i32>().ok()),
            );
        }
    }
    found
}

pub fn deny(name: &str) -> SyscallAction {
    let (errno, name) = names::errno(name).unwrap();
    SyscallAction::Deny { errno, name }
}

pub fn delay(duration: Duration) -> SyscallAction {
    SyscallAction::Delay {
        duration,
        jitter: Duration::ZERO,
    }
}

pub fn numbers(names: &[&str]) -> Vec<i64> {
    names
        .iter()
        .map(|n| faultbox::sys::names::syscall_number(n).unwrap())
        .collect()
}
