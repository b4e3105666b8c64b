//! One service's life: from its start to the end of the last process of its tree.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use faultbox_contract::Transport;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use nix::unistd::Pid;
use serde_json::json;

use super::env::Marks;
use super::logs::Log;
use super::nursery::{Exit, Nursery, Recipe};
use super::user::Account;
use crate::events::EventLog;
use crate::plan::report::Blame;
use crate::plan::{Launch, Reason, ServiceDecl};
use crate::run::fleet;
use crate::run::home::own_binary;
use crate::run::isolation::cgroup;
use crate::run::procs;

/// How long killed processes may take to be gone: they may first have to write out a core or leave the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// What a service is started with, beyond its declaration.
#[derive(Debug)]
pub struct Surroundings {
    /// The user it becomes.
    pub account: Option<Account>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Its cgroup, if there are any.
    pub cgroup: Option<PathBuf>,
    /// Its log.
    pub log: Arc<Log>,
    /// What its processes carry.
    pub marks: Marks,
}

/// A service that runs on this machine.
pub struct Service {
    decl: Arc<ServiceDecl>,
    program: PathBuf,
    with: Surroundings,
    nursery: Nursery,
    events: Arc<EventLog>,
    life: Arc<Life>,
}

#[derive(Default)]
struct Life {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Counts starts, so that a late word about an earlier process is told apart.
    generation: u64,
    /// The leader of the tree, while this generation has one.
    pid: Option<i32>,
    exit: Option<Exit>,
    /// The leader has ended well and left processes behind: a daemon.
    daemon: bool,
    /// Its end is wanted.
    stopping: bool,
    paused: bool,
}

impl Life {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The leader's pid, and whether it still means that process.
    fn leader(&self) -> Option<(i32, bool)> {
        let state = self.lock();
        Some((state.pid?, state.exit.is_none()))
    }
}

/// How a stop went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Nothing was running.
    Already,
    /// It ended when asked.
    Asked,
    /// It had to be killed.
    Killed,
}

impl Service {
    /// A service that is not started yet; `None` if it runs elsewhere.
    pub fn new(
        decl: Arc<ServiceDecl>,
        with: Surroundings,
        nursery: Nursery,
        events: Arc<EventLog>,
    ) -> Option<Service> {
        let program = match &decl.launch {
            Launch::Binary {
                resolved: Some(program),
                ..
            } => program.clone(),
            Launch::Mock { .. } => own_binary(),
            Launch::Binary { resolved: None, .. } | Launch::Remote => return None,
        };
        Some(Service {
            program,
            decl,
            with,
            nursery,
            events,
            life: Arc::default(),
        })
    }

    /// What the spec says about it.
    pub fn decl(&self) -> &Arc<ServiceDecl> {
        &self.decl
    }

    /// Its cgroup, if there are any.
    pub fn cgroup(&self) -> Option<&std::path::Path> {
        self.with.cgroup.as_deref()
    }

    /// Its log.
    pub fn log(&self) -> &Arc<Log> {
        &self.with.log
    }

    /// Starts the process; returns as soon as it runs, with the listener if a filter for some calls, `listen`, was to be installed before.
    ///
    /// # Errors
    /// Its port is taken, or the program cannot be run.
    pub fn start(&self, listen: Option<Vec<i64>>) -> Result<Option<OwnedFd>, Reason> {
        for interface in &self.decl.interfaces {
            self.check_port(&interface.name, interface.protocol, interface.addr)?;
        }
        let generation = {
            let mut state = self.life.lock();
            let generation = state.generation + 1;
            *state = State {
                generation,
                ..State::default()
            };
            generation
        };
        let mut argv = vec![self.program.to_string_lossy().into_owned()];
        argv.extend(self.decl.args.iter().cloned());
        let recipe = Recipe {
            program: self.program.clone(),
            argv,
            env: self.with.env.clone(),
            cwd: self.decl.cwd.clone(),
            stdout: self.with.log.stream("stdout"),
            stderr: self.with.log.stream("stderr"),
            user: self.with.account.as_ref().map(|a| a.ids.clone()),
            cgroup: self.with.cgroup.clone(),
            io_uring: self.decl.io_uring,
            listen,
        };
        let started = self
            .nursery
            .start(recipe, self.on_exit(generation))
            .map_err(|e| self.cannot_start(&e))?;
        {
            let mut state = self.life.lock();
            state.pid = Some(started.pid);
        }
        self.life.changed.notify_all();
        self.events.record(
            "service_started",
            Some(&self.decl.name),
            json!({"pid": started.pid}),
        );
        Ok(started.listener)
    }

    fn on_exit(&self, generation: u64) -> impl FnOnce(i32, Exit) + Send + 'static {
        let (life, events, name) = (
            self.life.clone(),
            self.events.clone(),
            self.decl.name.clone(),
        );
        let (cgroup, marks) = (
            self.with.cgroup.clone(),
            self.with.marks.of(&self.decl.name),
        );
        move |pid, exit| {
            let mut state = life.lock();
            if state.generation != generation {
                return;
            }
            state.pid = Some(pid);
            let stopping = state.stopping;
            if exit == Exit::Status(0) && !stopping {
                let left = live_tree(cgroup.as_deref(), Some((pid, false)), &marks);
                state.daemon = !left.is_empty();
            }
            let daemon = state.daemon;
            state.exit = Some(exit.clone());
            drop(state);
            life.changed.notify_all();
            if stopping {
                return;
            }
            let (status, signal) = match &exit {
                Exit::Status(status) => (json!(status), json!(null)),
                Exit::Signal(signal) => (json!(null), json!(signal)),
                Exit::Unknown => (json!(null), json!(null)),
            };
            let kind = if daemon {
                "service_daemonized"
            } else {
                "service_exited"
            };
            events.record(
                kind,
                Some(&name),
                json!({"status": status, "signal": signal}),
            );
        }
    }

    fn cannot_start(&self, e: &io::Error) -> Reason {
        let mut reason = Reason::new(
            format!("service `{}` cannot be started: {e}", self.decl.name),
            Blame::Environment,
        );
        reason.help = start_help(e, &self.program, &self.decl.cwd);
        reason
    }

    /// The port must be free, or the service would fail with less to say, and steps would talk to a stranger.
    fn check_port(&self, interface: &str, protocol: &str, addr: SocketAddr) -> Result<(), Reason> {
        let transport = fleet::protocol(protocol).map_or(Transport::Tcp, |p| p.transport());
        // Any failure but EADDRINUSE is the service's to report: it binds in its own way.
        let taken = |kind| try_bind(addr, kind) == Err(nix::errno::Errno::EADDRINUSE);
        let inode = if transport.has_tcp() && taken(SockType::Stream) {
            procs::tcp_inode(addr, true)
        } else if transport.has_udp() && taken(SockType::Datagram) {
            procs::udp_inode(addr)
        } else {
            return Ok(());
        };
        let holder = inode.and_then(|inode| {
            procs::all()
                .into_iter()
                .find(|pid| procs::holds_socket(*pid, inode))
        });
        let who = match holder {
            Some(pid) if pid == std::process::id() as i32 => "a proxy of this very test".to_owned(),
            Some(pid) => format!(
                "`{}` (pid {pid})",
                procs::name(pid).unwrap_or_else(|| "?".to_owned())
            ),
            None => "another process".to_owned(),
        };
        let mut reason = Reason::new(
            format!(
                "port {} of {}.{interface} is already taken by {who}",
                addr.port(),
                self.decl.name
            ),
            Blame::Environment,
        );
        reason.help =
            Some("stop it, or give the interface another port; `port=0` takes a free one".into());
        Err(reason)
    }

    /// Its process id, while it runs; of a daemon, the process that started it is gone and its pid means nothing.
    pub fn pid(&self) -> Option<i32> {
        let state = self.life.lock();
        state.pid.filter(|_| state.exit.is_none())
    }

    /// Does any process of it live?
    pub fn is_alive(&self) -> bool {
        let (exited, daemon) = {
            let state = self.life.lock();
            if state.pid.is_none() {
                return false;
            }
            (state.exit.is_some(), state.daemon)
        };
        !exited || (daemon && !self.tree().is_empty())
    }

    /// How it ended by itself, if it did.
    pub fn ended(&self) -> Option<String> {
        let (exit, daemon) = {
            let state = self.life.lock();
            if state.stopping {
                return None;
            }
            (state.exit.clone()?, state.daemon)
        };
        if daemon {
            return self
                .tree()
                .is_empty()
                .then(|| "its last process ended".to_owned());
        }
        Some(exit.to_string())
    }

    /// Waits until it has ended, `until`, or it changes in another way.
    pub fn wait_change(&self, until: Instant) {
        let state = self.life.lock();
        if state.exit.is_none() || state.daemon {
            let left = until.saturating_duration_since(Instant::now());
            let _ = self
                .life
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The live processes of its tree.
    pub fn tree(&self) -> Vec<i32> {
        live_tree(
            self.with.cgroup.as_deref(),
            self.life.leader(),
            &self.with.marks.of(&self.decl.name),
        )
    }

    /// The same as a function of its own, for the supervisor.
    pub fn tree_fn(&self) -> crate::run::supervisor::ProcessTree {
        let (life, cgroup, marks) = (
            self.life.clone(),
            self.with.cgroup.clone(),
            self.with.marks.of(&self.decl.name),
        );
        Arc::new(move || live_tree(cgroup.as_deref(), life.leader(), &marks))
    }

    /// Stops or continues every process of the tree. Repeated until nothing new turns up: they may be forking.
    pub fn pause(&self, pause: bool) {
        let signal = if pause {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        };
        self.life.lock().paused = pause;
        let mut done = vec![];
        loop {
            let new: Vec<i32> = self
                .tree()
                .into_iter()
                .filter(|p| !done.contains(p))
                .collect();
            if new.is_empty() {
                return;
            }
            for pid in new {
                let _ = kill(Pid::from_raw(pid), signal);
                done.push(pid);
            }
        }
    }

    /// Kills the whole tree and waits until it is gone; its end counts as its own.
    pub fn kill(&self) {
        self.kill_tree();
    }

    /// Asks it to stop, waits as long as it may take, then kills what is left. Returns when no process of it lives.
    pub fn stop(&self) -> Stopped {
        let began = Instant::now();
        let leader = {
            let mut state = self.life.lock();
            let Some(pid) = state.pid else {
                return Stopped::Already;
            };
            state.stopping = state.exit.is_none() || state.daemon;
            state.exit.is_none().then_some(pid)
        };
        if leader.is_none() && self.tree().is_empty() {
            return Stopped::Already;
        }
        let deadline = began + self.decl.stop_timeout;
        let signal = Signal::try_from(self.decl.stop_signal).unwrap_or(Signal::SIGTERM);
        if let Some(pid) = leader {
            // The group, as a terminal does: a shell script's children get it too.
            let _ = killpg(Pid::from_raw(pid), signal);
        }
        if self.life.lock().paused {
            self.pause(false);
        }
        let gone = self.wait_gone(deadline, signal);
        if !gone {
            self.kill_tree();
        }
        self.with.log.finish();
        self.events.record(
            "service_stopped",
            Some(&self.decl.name),
            json!({"killed": !gone, "duration_ms": began.elapsed().as_secs_f64() * 1e3}),
        );
        if gone {
            Stopped::Asked
        } else {
            Stopped::Killed
        }
    }

    /// Waits for the leader, then for the rest of the tree, which is asked in its turn once the leader is gone.
    fn wait_gone(&self, deadline: Instant, signal: Signal) -> bool {
        if !self.wait_leader(deadline) {
            return false;
        }
        let mut asked = false;
        let mut pause = Duration::from_micros(500);
        loop {
            let left = self.tree();
            if left.is_empty() {
                return true;
            }
            if !asked {
                asked = true;
                for pid in left {
                    let _ = kill(Pid::from_raw(pid), signal);
                }
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    fn wait_leader(&self, deadline: Instant) -> bool {
        let mut state = self.life.lock();
        while state.exit.is_none() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            state = self
                .life
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    fn kill_tree(&self) {
        let deadline = Instant::now() + KILL_PATIENCE;
        loop {
            if let Some(cgroup) = &self.with.cgroup {
                cgroup::kill(cgroup);
            }
            let left = self.tree();
            for pid in &left {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            let reaped = self.wait_leader(Instant::now() + Duration::from_millis(5));
            if (reaped && left.is_empty()) || Instant::now() >= deadline {
                return;
            }
        }
    }
}

/// What to do about a program that did not start, by the step that failed.
fn start_help(e: &io::Error, program: &Path, cwd: &Path) -> Option<String> {
    let (program, cwd) = (program.display(), cwd.display());
    let in_cwd = e.to_string().starts_with("chdir ");
    match e.kind() {
        io::ErrorKind::PermissionDenied if in_cwd => Some(format!(
            "make its working directory {cwd}, and the folders above it, accessible for the user it runs as, or give it another by cwd="
        )),
        io::ErrorKind::PermissionDenied => Some(format!(
            "make {program} executable, and its folders accessible, for the user it runs as"
        )),
        io::ErrorKind::NotFound if in_cwd => {
            Some(format!("check that its working directory {cwd} exists"))
        }
        io::ErrorKind::NotFound => Some(format!(
            "check that {program} and its interpreter (the `#!` line) exist, and its working directory {cwd}"
        )),
        _ => None,
    }
}

fn live_tree(
    cgroup: Option<&std::path::Path>,
    leader: Option<(i32, bool)>,
    marks: &[String],
) -> Vec<i32> {
    match (cgroup, leader) {
        (Some(path), _) => cgroup::procs(path),
        (None, Some((pid, valid))) => procs::descendants(pid, valid, marks),
        (None, None) => vec![],
    }
}

/// Binds as a server would, without listening, and lets go.
fn try_bind(addr: SocketAddr, kind: SockType) -> nix::Result<()> {
    let family = if addr.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if kind == SockType::Stream {
        // Connections of an earlier test that still linger are no obstacle; a listener is (socket(7), SO_REUSEADDR).
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_is_about_the_step_that_failed() {
        let help = |kind: io::ErrorKind, text: &str| {
            let e = io::Error::new(kind, text.to_owned());
            start_help(
                &e,
                Path::new("/opt/db/run.sh"),
                Path::new("/srv/closed/audit"),
            )
            .unwrap_or_default()
        };
        let denied = io::ErrorKind::PermissionDenied;
        let cwd = help(denied, "chdir /srv/closed/audit: Permission denied");
        assert!(
            cwd.contains("/srv/closed/audit") && cwd.contains("cwd="),
            "{cwd}"
        );
        assert!(!cwd.contains("run.sh"), "{cwd}");
        let exec = help(denied, "exec /opt/db/run.sh: Permission denied");
        assert!(exec.starts_with("make /opt/db/run.sh executable"), "{exec}");
        let gone = help(
            io::ErrorKind::NotFound,
            "chdir /srv/closed/audit: No such file or directory",
        );
        assert!(!gone.contains("run.sh"), "{gone}");
    }
}
