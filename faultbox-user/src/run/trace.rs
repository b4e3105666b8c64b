//! `faultbox trace -- COMMAND`: any command in a cgroup of its own, followed until its last process has ended.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::home::{Home, own_binary};
use super::isolation::cgroup;
use super::tracer::activity::{self, Lines, Tally};
use super::tracer::{self, Feature, Kernel, Watch, debug};
use super::{RunError, environment, internal};
use crate::events::Sink;
use crate::plan::{Activity, TraceCost};
use crate::sys::signals::{Arrived, Signals};

/// What to trace.
pub struct Traced<'a> {
    /// The absolute path of the program.
    pub program: &'a Path,
    /// Its name as written, and its arguments; not empty.
    pub command: &'a [OsString],
    /// Its standard output goes to ours; otherwise to standard error.
    pub own_stdout: bool,
    /// Where every single event goes, system calls included, as lines of JSON.
    pub events: Option<File>,
    /// Who hears what the programs in the kernel decide.
    pub listener: Option<debug::Listener>,
}

/// What came of it.
#[derive(Debug)]
pub struct Trace {
    /// What the command and all its descendants did.
    pub activity: Activity,
    /// What a shell would show as its status.
    pub status: u8,
    /// How it ended, if not with status 0: "exit 1", "SIGKILL".
    pub end: Option<String>,
    /// From its start to the end of its last process.
    pub took: Duration,
    /// What being watched cost; `None` if that could not be measured.
    pub cost: Option<TraceCost>,
    /// What could not be watched, a line each.
    pub notes: Vec<String>,
}

/// The slots in the kernel's tables.
const COMMAND: &str = "command";
const GAUGE: &str = "gauge";

/// How many calls a measurement makes, how many of them are timed as one, and how many measurements of each kind there are while watched; the fastest
/// counts, since whatever else the machine does only slows them. One of some hundred calls in a row is spared all of that soon.
const SPINS: u64 = 5_000;
const BATCH: u64 = 250;
const ROUNDS: usize = 2;

/// How often the end of the last process is looked for.
const TURN: Duration = Duration::from_millis(5);

/// How long processes may take to die of SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Runs the command and returns when its last process has ended, or when the user has had enough (a second signal).
///
/// # Errors
/// The kernel does not let commands be traced here, or the command does not start.
pub fn trace(mut what: Traced<'_>) -> Result<Trace, RunError> {
    let signals = Signals::install(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])
        .map_err(|e| internal(format!("cannot handle signals: {e}")))?;
    let exe = own_binary();
    let mut home = Home::create(&exe)?;
    let lines = what
        .events
        .take()
        .map(|file| Arc::new(Lines::to(file, COMMAND)));
    let listener = what.listener.take();
    let mut traced = follow(&what, lines.as_ref(), listener, &exe, &home, &signals);
    let left = home.close();
    if let Ok(trace) = &mut traced {
        trace.notes.extend(left);
    }
    if let (Some(lines), Ok(trace)) = (lines, &mut traced)
        && let Err(e) = lines.finish()
    {
        trace
            .notes
            .push(format!("not every event could be written: {e}"));
    }
    traced
}

/// What being watched costs here.
///
/// # Errors
/// The kernel does not let anything be traced here.
pub fn gauge() -> Result<Option<TraceCost>, RunError> {
    let exe = own_binary();
    let mut home = Home::create(&exe)?;
    let gauge = Gauge::new(&exe);
    let cost =
        prepare(&home, None, None).map(|prepared| gauge.cost(&prepared.gauge, prepared.kernel));
    // Whoever measures something has a run of its own, which says what it left.
    let _ = home.close();
    cost
}

/// The kernel's side, and two cgroups that it knows.
struct Prepared {
    kernel: Kernel,
    tally: Arc<Tally>,
    watch: Arc<Watch>,
    command: PathBuf,
    gauge: PathBuf,
}

fn prepare(
    home: &Home,
    lines: Option<&Arc<Lines>>,
    listener: Option<debug::Listener>,
) -> Result<Prepared, RunError> {
    let refused = |why: String| {
        environment(
            format!("nothing can be traced here: {why}"),
            "`faultbox doctor` tells what is missing and how to get it",
        )
    };
    let kernel =
        tracer::load(home.cgroup.as_deref(), 1, &Feature::ALL, None, listener).map_err(refused)?;
    let missing = |feature| kernel.missing().iter().find(|(f, _)| *f == feature);
    if let Some((_, why)) = missing(Feature::Calls) {
        return Err(refused(why.clone()));
    }
    // Two below the run's, as a service's is.
    let group = home
        .cgroup
        .as_ref()
        .map(|run| run.join("0"))
        .unwrap_or_default();
    let (command, gauge) = (group.join(COMMAND), group.join(GAUGE));
    for path in [&group, &command, &gauge] {
        cgroup::create(path).map_err(|e| refused(format!("{}: {e}", path.display())))?;
    }
    let next = lines.map(|lines| -> (Arc<dyn Sink>, _) {
        let all = activity::STREAMS.into_iter().chain(["call"]).collect();
        (lines.clone(), all)
    });
    let tally = Arc::new(Tally::new(next));
    let watch = watch(&kernel, &tally, &command, &gauge, lines.is_some()).map_err(refused)?;
    Ok(Prepared {
        kernel,
        tally,
        watch,
        command,
        gauge,
    })
}

fn follow(
    what: &Traced<'_>,
    lines: Option<&Arc<Lines>>,
    listener: Option<debug::Listener>,
    exe: &Path,
    home: &Home,
    signals: &Signals,
) -> Result<Trace, RunError> {
    let gauge = Gauge::new(exe);
    let prepared = prepare(home, lines, listener)?;
    let notes = prepared
        .kernel
        .missing()
        .iter()
        .map(|(feature, why)| format!("no {}: {why}", feature.lost()))
        .collect();
    let began = Instant::now();
    let mut child = Command::new(exe);
    child
        .arg("__enter")
        .arg(&prepared.command)
        .arg(what.program)
        .args(what.command);
    if !what.own_stdout {
        child.stdout(std::io::stderr());
    }
    let child = child
        .spawn()
        .map_err(|e| environment(format!("cannot start a process: {e}"), "free some"))?;
    let (status, took) = wait(child, &prepared.command, signals, began)?;
    let activity = prepared.tally.settled(COMMAND, &prepared.watch);
    let cost = gauge.cost(&prepared.gauge, prepared.kernel);
    Ok(Trace {
        activity,
        status: status
            .code()
            .or_else(|| Some(128 + status.signal()?))
            .and_then(|n| u8::try_from(n).ok())
            .unwrap_or(u8::MAX),
        end: match (status.code(), status.signal()) {
            (Some(0), _) => None,
            (Some(code), _) => Some(format!("exit {code}")),
            (None, signal) => signal.map(|n| {
                Signal::try_from(n).map_or_else(|_| format!("signal {n}"), |s| s.as_str().into())
            }),
        },
        took,
        cost,
        notes,
    })
}

/// Makes the two cgroups known to the kernel.
fn watch(
    kernel: &Kernel,
    tally: &Arc<Tally>,
    command: &Path,
    gauge: &Path,
    calls: bool,
) -> Result<Arc<Watch>, String> {
    let share = kernel.share_here(0)?;
    let streams = activity::STREAMS.into_iter().collect();
    let watch = Watch::adopt(&share, 0, &[COMMAND, GAUGE], &streams, tally.clone())?;
    watch.service(COMMAND, command, calls, 0)?;
    watch.service(GAUGE, gauge, calls, 0)?;
    Ok(watch)
}

enum Word {
    Ended(std::io::Result<std::process::ExitStatus>),
    Signal(Arrived),
}

/// Waits for the command, and for what it leaves running.
fn wait(
    mut child: Child,
    group: &Path,
    signals: &Signals,
    began: Instant,
) -> Result<(std::process::ExitStatus, Duration), RunError> {
    let pid = Pid::from_raw(child.id() as i32);
    let (words, inbox) = channel();
    let told = words.clone();
    signals
        .follow(move |signal| told.send(Word::Signal(signal)).is_ok())
        .map_err(|e| internal(format!("cannot handle signals: {e}")))?;
    std::thread::spawn(move || {
        let _ = words.send(Word::Ended(child.wait()));
    });
    let mut status = None;
    let mut heard = 0;
    loop {
        if let Some(status) = status
            && (heard > 0 || cgroup::procs(group).is_empty())
        {
            let took = began.elapsed();
            cgroup::remove(group, KILL_PATIENCE);
            return Ok((status, took));
        }
        let word = match status {
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(_) => inbox.recv_timeout(TURN),
        };
        match word {
            Ok(Word::Ended(ended)) => {
                status = Some(ended.map_err(|e| internal(format!("cannot wait: {e}")))?);
            }
            Ok(Word::Signal(signal)) => {
                heard += 1;
                if heard > 1 {
                    cgroup::kill(group);
                } else if status.is_none() && !signal.from_terminal {
                    // What a terminal sends, the command has got, too.
                    let _ = kill(pid, signal.signal);
                }
            }
            Err(_) => {}
        }
    }
}

/// What the gauge calls: what does the least, and what has a path.
const GAUGED: [&str; 2] = ["getppid", "open"];

/// What calls take, watched and before anybody was: a tracepoint in use sends every process's calls a longer way, so that one that is not
/// watched meanwhile is no measure.
struct Gauge<'a> {
    exe: &'a Path,
    /// Of each of [`GAUGED`], in nanoseconds, as often as it was measured.
    plain: [Vec<f64>; GAUGED.len()],
    watched: [Vec<f64>; GAUGED.len()],
}

impl<'a> Gauge<'a> {
    /// Measures once; nothing must be attached yet.
    fn new(exe: &'a Path) -> Gauge<'a> {
        let mut gauge = Gauge {
            exe,
            plain: Default::default(),
            watched: Default::default(),
        };
        gauge.spin(None);
        gauge
    }

    /// Measures each call, in this cgroup or where this process is.
    fn spin(&mut self, group: Option<&Path>) {
        for (at, call) in GAUGED.iter().enumerate() {
            let mut command = Command::new(self.exe);
            if let Some(group) = group {
                command
                    .arg("__enter")
                    .arg(group)
                    .arg(self.exe)
                    .arg(self.exe);
            }
            let output = command
                .args(["__spin", call, &SPINS.to_string()])
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .output();
            let told = output.ok().and_then(|output| {
                let text = String::from_utf8(output.stdout).ok()?;
                text.trim().parse::<f64>().ok()
            });
            match group {
                Some(_) => self.watched[at].extend(told),
                None => self.plain[at].extend(told),
            }
        }
    }

    /// Measures in the watched cgroup, then once more without anything attached: what has become slower meanwhile shows as doubt.
    fn cost(mut self, group: &Path, kernel: Kernel) -> Option<TraceCost> {
        for _ in 0..ROUNDS {
            self.spin(Some(group));
        }
        drop(kernel);
        self.spin(None);
        let (call_ns, unsure_ns) = self.added(0)?;
        Some(TraceCost {
            call_ns,
            // Each open comes with a close, which costs what any call costs.
            open_ns: (self.added(1)?.0 - call_ns).max(call_ns),
            unsure_ns,
        })
    }

    /// How much longer a call takes, and by how much measurements of the same differ.
    fn added(&self, at: usize) -> Option<(f64, f64)> {
        let bounds = |all: &[f64]| {
            let least = all.iter().copied().reduce(f64::min)?;
            let most = all.iter().copied().reduce(f64::max)?;
            Some((least, most - least))
        };
        let (plain, watched) = (bounds(&self.plain[at])?, bounds(&self.watched[at])?);
        Some(((watched.0 - plain.0).max(0.0), plain.1.max(watched.1)))
    }
}

/// The body of `__enter CGROUP PROGRAM ARGV…`: this process joins the cgroup and becomes the program.
pub fn enter(group: &Path, command: &[OsString]) -> ExitCode {
    // cgroups(7): "0" means whoever writes.
    if let Err(e) = std::fs::write(group.join("cgroup.procs"), "0") {
        eprintln!("error: cannot join {}: {e}", group.display());
        return ExitCode::from(126);
    }
    let [program, name, args @ ..] = command else {
        return ExitCode::from(126);
    };
    let error = Command::new(program).arg0(name).args(args).exec();
    eprintln!(
        "error: cannot run {}: {error}",
        PathBuf::from(name).display()
    );
    // What shells say for a program that is there and cannot be run.
    ExitCode::from(126)
}

/// The body of `__spin CALL COUNT`: prints how many nanoseconds one call takes where nothing else delays it.
pub fn spin(call: &str, count: u64) -> ExitCode {
    let mut fastest = f64::MAX;
    let mut left = count;
    while left > 0 {
        let batch = left.min(BATCH);
        let began = Instant::now();
        for _ in 0..batch {
            match call {
                "open" => drop(std::fs::File::open("/dev/null")),
                _ => {
                    nix::unistd::getppid();
                }
            }
        }
        fastest = fastest.min(began.elapsed().as_nanos() as f64 / batch as f64);
        left -= batch;
    }
    println!("{fastest}");
    ExitCode::SUCCESS
}
