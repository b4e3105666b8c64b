//! The worker's main thread: it starts every process and reaps every child.
//!
//! Both belong to one thread that lives as long as the worker: a service is killed when the *thread* that started it ends (prctl(2),
//! PR_SET_PDEATHSIG). It never waits for "any child": such a wait would also take the ptrace stops that the supervisor is waiting for. It waits
//! for exactly the processes whose pidfd says that they have ended, and for inherited orphans that are zombies.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use crate::plan::IoUring;
use crate::run::procs;
use crate::sys::launch::{Ids, Launch, launch};

/// How often logs are looked at and orphans reaped while nothing happens.
const TICK: Duration = Duration::from_millis(100);

/// A process to start; everything it needs, owned.
#[derive(Debug)]
pub struct Recipe {
    /// Absolute path.
    pub program: PathBuf,
    /// With argv[0].
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// The working directory.
    pub cwd: PathBuf,
    /// Standard output.
    pub stdout: Arc<OwnedFd>,
    /// Standard error.
    pub stderr: Arc<OwnedFd>,
    /// The user to become.
    pub user: Option<Ids>,
    /// The cgroup to join.
    pub cgroup: Option<PathBuf>,
    /// See [`Launch::io_uring`].
    pub io_uring: IoUring,
    /// See [`Launch::listen`].
    pub listen: Option<Vec<i64>>,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status.
    Status(i32),
    /// By this signal.
    Signal(&'static str),
    /// Somebody else has taken its status.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Status(status) => write!(f, "exited with status {status}"),
            Exit::Signal(signal) => write!(f, "killed by {signal}"),
            Exit::Unknown => write!(f, "ended"),
        }
    }
}

/// A process that has been started.
#[derive(Debug)]
pub struct Started {
    /// Its process id.
    pub pid: i32,
    /// The listener, if one was asked for.
    pub listener: Option<OwnedFd>,
}

type OnExit = Box<dyn FnOnce(i32, Exit) + Send>;
type OnTick = Box<dyn FnMut() + Send>;

enum Request {
    Start(Box<Recipe>, OnExit, Sender<io::Result<Started>>),
    EveryTick(OnTick),
    Close,
}

/// A handle for other threads.
#[derive(Clone)]
pub struct Nursery {
    requests: Sender<Request>,
    wake: Arc<OwnedFd>,
}

/// What the main thread runs.
pub struct Ward {
    requests: Receiver<Request>,
    woken: OwnedFd,
    // Kept so that the pipe never reads as closed.
    _wake: Arc<OwnedFd>,
}

/// A handle and what serves it.
///
/// # Errors
/// No descriptor is left.
pub fn new() -> io::Result<(Nursery, Ward)> {
    let (woken, wake) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK)?;
    let wake = Arc::new(wake);
    let (sender, requests) = channel();
    let ward = Ward {
        requests,
        woken,
        _wake: wake.clone(),
    };
    Ok((
        Nursery {
            requests: sender,
            wake,
        },
        ward,
    ))
}

impl Nursery {
    /// Starts a process. `on_exit` is called with its pid on the main thread once it has ended, perhaps before this returns; it must be quick.
    ///
    /// # Errors
    /// As [`launch`]; or the main thread has closed.
    pub fn start(
        &self,
        recipe: Recipe,
        on_exit: impl FnOnce(i32, Exit) + Send + 'static,
    ) -> io::Result<Started> {
        let (reply, answer) = channel();
        self.ask(Request::Start(Box::new(recipe), Box::new(on_exit), reply));
        answer
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the worker is closing")))
    }

    /// Has something done ten times a second on the main thread; it must be quick.
    pub fn every_tick(&self, what: impl FnMut() + Send + 'static) {
        self.ask(Request::EveryTick(Box::new(what)));
    }

    /// Ends [`Ward::run`].
    pub fn close(&self) {
        self.ask(Request::Close);
    }

    fn ask(&self, request: Request) {
        let _ = self.requests.send(request);
        // A full pipe wakes just as well.
        let _ = nix::unistd::write(self.wake.as_fd(), &[0]);
    }
}

struct Child {
    pid: i32,
    pidfd: OwnedFd,
    on_exit: Option<OnExit>,
}

impl Ward {
    /// Serves until [`Nursery::close`].
    pub fn run(self) {
        let mut children: Vec<Child> = vec![];
        let mut ticks: Vec<OnTick> = vec![];
        let mut next_tick = Instant::now() + TICK;
        loop {
            let mut fds = vec![PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
            fds.extend(
                children
                    .iter()
                    .map(|c| PollFd::new(c.pidfd.as_fd(), PollFlags::POLLIN)),
            );
            // Rounded up: a poll that ends a little early would turn in a circle.
            let left =
                next_tick.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            let _ = poll(
                &mut fds,
                PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO),
            );
            let ended: Vec<bool> = fds[1..]
                .iter()
                .map(|fd| fd.revents().is_some_and(|r| !r.is_empty()))
                .collect();
            drop(fds);
            // However much happens in between.
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                reap_orphans(&children);
                for tick in &mut ticks {
                    tick();
                }
            }
            let mut ended = ended.into_iter();
            children.retain_mut(|child| {
                if !ended.next().unwrap_or(false) {
                    return true;
                }
                let exit = reap(child.pidfd.as_fd());
                if let Some(on_exit) = child.on_exit.take() {
                    on_exit(child.pid, exit);
                }
                false
            });
            let mut drain = [0u8; 256];
            while matches!(nix::unistd::read(self.woken.as_fd(), &mut drain), Ok(n) if n > 0) {}
            while let Ok(request) = self.requests.try_recv() {
                match request {
                    Request::Start(recipe, on_exit, reply) => {
                        let _ = reply.send(start(&recipe).map(|(started, pidfd)| {
                            children.push(Child {
                                pid: started.pid,
                                pidfd,
                                on_exit: Some(on_exit),
                            });
                            started
                        }));
                    }
                    Request::EveryTick(tick) => ticks.push(tick),
                    Request::Close => return,
                }
            }
        }
    }
}

fn start(recipe: &Recipe) -> io::Result<(Started, OwnedFd)> {
    let cgroup = match &recipe.cgroup {
        Some(path) => Some(
            std::fs::OpenOptions::new()
                .write(true)
                .open(path.join("cgroup.procs"))
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?,
        ),
        None => None,
    };
    let launched = launch(&Launch {
        program: &recipe.program,
        argv: &recipe.argv,
        env: &recipe.env,
        cwd: &recipe.cwd,
        stdout: recipe.stdout.as_fd(),
        stderr: recipe.stderr.as_fd(),
        user: recipe.user.clone(),
        cgroup_procs: cgroup.as_ref().map(AsFd::as_fd),
        io_uring: recipe.io_uring,
        listen: recipe.listen.as_deref(),
    })?;
    Ok((
        Started {
            pid: launched.pid,
            listener: launched.listener,
        },
        launched.pidfd,
    ))
}

fn reap(pidfd: BorrowedFd<'_>) -> Exit {
    loop {
        return match waitid(Id::PIDFd(pidfd), WaitPidFlag::WEXITED) {
            Ok(WaitStatus::Exited(_, status)) => Exit::Status(status),
            Ok(WaitStatus::Signaled(_, signal, _)) => Exit::Signal(signal.as_str()),
            Err(Errno::EINTR) => continue,
            // The supervisor, which traces it from this same process, was first.
            _ => Exit::Unknown,
        };
    }
}

/// Orphans of the services become this process's children, as it is a subreaper; nobody else buries them.
fn reap_orphans(children: &[Child]) {
    let own = std::process::id();
    let list =
        std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
    for pid in list.split_ascii_whitespace().filter_map(|p| p.parse().ok()) {
        if children.iter().all(|c| c.pid != pid) && procs::stat(pid).is_some_and(|s| s.state == 'Z')
        {
            let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
        }
    }
}
