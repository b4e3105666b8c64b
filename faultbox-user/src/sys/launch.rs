//! Starting a service's process with everything that must happen between fork and exec.

use std::ffi::CString;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use super::{descriptors, pidfd, seccomp};
use crate::plan::IoUring;

/// What a process is started with.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Absolute path of the program.
    pub program: &'a Path,
    /// argv[0] and the arguments.
    pub argv: &'a [String],
    /// The whole environment.
    pub env: &'a [(String, String)],
    /// The working directory.
    pub cwd: &'a Path,
    /// Standard output and standard error; standard input is /dev/null.
    pub stdout: BorrowedFd<'a>,
    /// See `stdout`.
    pub stderr: BorrowedFd<'a>,
    /// The user to become, with its groups.
    pub user: Option<Ids>,
    /// An open `cgroup.procs` of the cgroup to join before exec.
    pub cgroup_procs: Option<BorrowedFd<'a>>,
    /// With [`IoUring::Deny`], a static filter (it traps nothing) refuses with ENOSYS what would bypass syscall faults.
    pub io_uring: IoUring,
    /// Install a listener filter for these syscall numbers before exec: the fallback where ptrace is refused. Unless
    /// [`IoUring::Allow`] says otherwise it refuses what would bypass them.
    pub listen: Option<&'a [i64]>,
}

/// A user as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// A started process.
#[derive(Debug)]
pub struct Launched {
    /// Its process id.
    pub pid: i32,
    /// A pidfd on it.
    pub pidfd: OwnedFd,
    /// The listener, if one was asked for.
    pub listener: Option<OwnedFd>,
}

/// Starts the process; it leads a process group of its own and is killed with SIGKILL when the calling *thread* ends (PR_SET_PDEATHSIG), so call
/// this from a thread that lives as long as the service may.
///
/// Wait for its end with [`pidfd::wait_exit`] before reaping it: wait(2) alone would also report the stops of an arming in progress.
///
/// # Errors
/// Says which step failed ("exec /usr/bin/x: …", "chdir …"); no process is left behind.
pub fn launch(what: &Launch<'_>) -> io::Result<Launched> {
    let prepared = Prepared::new(what)?;
    let shared = SharedPage::new()?;
    // Its write end closes at exec or death, whichever comes first.
    let (mut alive, alive_in_child) = io::pipe()?;
    let blocked = BlockedSignals::new();
    // SAFETY: the child runs only `child`, which restricts itself to async-signal-safe calls.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        child(&prepared, &shared);
    }
    let error = io::Error::last_os_error();
    drop(blocked);
    drop(alive_in_child);
    if pid < 0 {
        return Err(io::Error::new(error.kind(), format!("fork: {error}")));
    }
    let child = Child(pid);
    let pidfd = pidfd::open(pid).map_err(|e| step_error("pidfd_open", &e))?;
    let listener = match what.listen {
        Some(_) => fetch_listener(&shared, pidfd.as_fd(), &mut alive)?,
        None => None,
    };
    // End of file: it has called exec, or is dead and has said why.
    let mut nothing = [0u8; 1];
    while let Err(e) = alive.read(&mut nothing) {
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    }
    if let Some((step, errno)) = shared.failure() {
        return Err(prepared.describe(step, errno));
    }
    std::mem::forget(child);
    Ok(Launched {
        pid,
        pidfd,
        listener,
    })
}

/// A child that has not got as far as exec: killed and reaped on the way out.
struct Child(i32);

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: values and null pointers only; the pid is our unreaped child's.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            while libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL) < 0
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
        }
    }
}

fn step_error(step: &str, error: &io::Error) -> io::Error {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    io::Error::new(error.kind(), format!("{step}: {text}"))
}

/// Takes the listener out of the child, which spins until this has happened: it is close-on-exec there.
fn fetch_listener(
    shared: &SharedPage,
    pidfd: BorrowedFd<'_>,
    alive: &mut PipeReader,
) -> io::Result<Option<OwnedFd>> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    loop {
        let fd = shared.words().listener.load(Ordering::Acquire);
        if fd >= 0 {
            let listener = pidfd::get_fd(pidfd, fd).map_err(|e| step_error("pidfd_getfd", &e))?;
            shared.words().taken.store(1, Ordering::Release);
            return Ok(Some(listener));
        }
        // It died before it got there: the failed step, if it is one, stands in the page.
        let mut fds = [PollFd::new(alive.as_fd(), PollFlags::POLLIN)];
        if matches!(poll(&mut fds, PollTimeout::ZERO), Ok(n) if n > 0) {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_micros(20));
    }
}

/// The steps between fork and exec, to name the one that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
enum Step {
    ProcessGroup = 1,
    Cgroup,
    Stdio,
    CloseOnExec,
    NoNewPrivs,
    StaticFilter,
    ListenerFilter,
    Groups,
    Gid,
    Uid,
    DeathSignal,
    Chdir,
    Exec,
}

impl Step {
    const ALL: [Step; 13] = [
        Step::ProcessGroup,
        Step::Cgroup,
        Step::Stdio,
        Step::CloseOnExec,
        Step::NoNewPrivs,
        Step::StaticFilter,
        Step::ListenerFilter,
        Step::Groups,
        Step::Gid,
        Step::Uid,
        Step::DeathSignal,
        Step::Chdir,
        Step::Exec,
    ];
}

/// What the child tells its parent, in memory they share: pipes would need calls that a listener filter may trap.
struct Words {
    /// The [`Step`] that failed, 0 for none.
    step: AtomicI32,
    errno: AtomicI32,
    /// The listener's number in the child, -1 before it is there.
    listener: AtomicI32,
    /// Set when the parent has the listener.
    taken: AtomicI32,
}

struct SharedPage(*mut Words);

impl SharedPage {
    fn new() -> io::Result<SharedPage> {
        // SAFETY: an anonymous mapping touches nothing that exists.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Words>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = SharedPage(page.cast());
        page.words().listener.store(-1, Ordering::Release);
        Ok(page)
    }

    fn words(&self) -> &Words {
        // SAFETY: the mapping is page-aligned, zeroed (valid for atomics), and lives as long as `self`.
        unsafe { &*self.0 }
    }

    fn failure(&self) -> Option<(Step, i32)> {
        let step = self.words().step.load(Ordering::Acquire);
        let step = Step::ALL.into_iter().find(|s| *s as i32 == step)?;
        Some((step, self.words().errno.load(Ordering::Acquire)))
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` has mapped; no reference outlives `self`.
        unsafe { libc::munmap(self.0.cast(), size_of::<Words>()) };
    }
}

/// All signals blocked, so that no handler of the parent runs in the child before its dispositions are reset.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn new() -> BlockedSignals {
        // SAFETY: sigset_t is plain data; both sets live on this stack.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut old: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
            BlockedSignals(old)
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: restores a mask that the kernel gave us.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut());
        }
    }
}

/// Everything the child needs, allocated before the fork.
struct Prepared<'a> {
    what: &'a Launch<'a>,
    program: CString,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    cwd: CString,
    null: std::fs::File,
    static_filter: Option<Vec<libc::sock_filter>>,
    listener_filter: Option<Vec<libc::sock_filter>>,
    parent: i32,
    fd_limit: i32,
    descriptors: libc::rlimit,
    /// What `argv` and `envp` point into.
    _strings: Vec<CString>,
}

impl<'a> Prepared<'a> {
    fn new(what: &'a Launch<'a>) -> io::Result<Prepared<'a>> {
        let c_string = |bytes: &[u8], part: &str| {
            CString::new(bytes).map_err(|_| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("{part} contains a NUL byte"),
                )
            })
        };
        let mut strings = vec![];
        let mut argv = vec![];
        for arg in what.argv {
            let arg = c_string(arg.as_bytes(), "an argument")?;
            argv.push(arg.as_ptr());
            strings.push(arg);
        }
        argv.push(std::ptr::null());
        let mut envp = vec![];
        for (key, value) in what.env {
            let entry = c_string(format!("{key}={value}").as_bytes(), "the environment")?;
            envp.push(entry.as_ptr());
            strings.push(entry);
        }
        envp.push(std::ptr::null());
        let descriptors = descriptors::given()?;
        Ok(Prepared {
            program: c_string(what.program.as_os_str().as_bytes(), "the program's path")?,
            cwd: c_string(what.cwd.as_os_str().as_bytes(), "the working directory")?,
            argv,
            envp,
            null: std::fs::OpenOptions::new()
                .read(true)
                .open("/dev/null")
                .map_err(|e| step_error("open /dev/null", &e))?,
            static_filter: (what.io_uring == IoUring::Deny)
                .then(seccomp::static_program)
                .transpose()?,
            listener_filter: what
                .listen
                .map(|numbers| seccomp::listener_program(numbers, what.io_uring != IoUring::Allow))
                .transpose()?,
            parent: std::process::id() as i32,
            fd_limit: descriptors.rlim_max.min(1 << 16) as i32,
            descriptors,
            what,
            _strings: strings,
        })
    }

    fn describe(&self, step: Step, errno: i32) -> io::Error {
        let error = io::Error::from_raw_os_error(errno);
        let name = match step {
            Step::ProcessGroup => "setpgid".to_owned(),
            Step::Cgroup => "join the cgroup".to_owned(),
            Step::Stdio => "redirect standard streams".to_owned(),
            Step::CloseOnExec => "close_range".to_owned(),
            Step::NoNewPrivs => "prctl(PR_SET_NO_NEW_PRIVS)".to_owned(),
            Step::StaticFilter => "install the io_uring filter".to_owned(),
            Step::ListenerFilter => "install the listener filter".to_owned(),
            Step::Groups => "setgroups".to_owned(),
            Step::Gid => format!("setgid {}", self.what.user.as_ref().map_or(0, |u| u.gid)),
            Step::Uid => format!("setuid {}", self.what.user.as_ref().map_or(0, |u| u.uid)),
            Step::DeathSignal => "prctl(PR_SET_PDEATHSIG)".to_owned(),
            Step::Chdir => format!("chdir {}", self.what.cwd.display()),
            Step::Exec => format!("exec {}", self.what.program.display()),
        };
        step_error(&name, &error)
    }
}

/// The child's side. From the fork on only async-signal-safe calls; from the listener filter on only calls that are exempt from it.
fn child(prepared: &Prepared<'_>, shared: &SharedPage) -> ! {
    let what = prepared.what;
    let result = || -> Result<(), (Step, i32)> {
        let check = |step: Step, rc: i64| {
            if rc < 0 {
                Err((step, io::Error::last_os_error().raw_os_error().unwrap_or(0)))
            } else {
                Ok(rc)
            }
        };
        die_with_parent(prepared.parent).map_err(|e| (Step::DeathSignal, e))?;
        // SAFETY: plain values.
        let led = unsafe { libc::setpgid(0, 0) };
        check(Step::ProcessGroup, i64::from(led))?;
        if let Some(procs) = what.cgroup_procs {
            // SAFETY: writes one byte of a static string; "0" stands for the writer.
            let written = unsafe { libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) };
            check(Step::Cgroup, written as i64)?;
        }
        reset_signals();
        redirect(prepared).map_err(|e| (Step::Stdio, e))?;
        close_on_exec(prepared.fd_limit).map_err(|e| (Step::CloseOnExec, e))?;
        // SAFETY: a live structure. Lowering what it has is refused to nobody (setrlimit(2)).
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const prepared.descriptors) };
        if prepared.static_filter.is_some() || prepared.listener_filter.is_some() {
            install_filters(prepared, shared)?;
        }
        if let Some(user) = &what.user {
            // SAFETY: the pointer and length describe a live slice of gid_t.
            check(Step::Groups, unsafe {
                exempt(
                    libc::SYS_setgroups,
                    [
                        user.groups.len() as i64,
                        user.groups.as_ptr() as i64,
                        0,
                        0,
                        0,
                    ],
                )
            })?;
            // SAFETY: plain values. The raw calls change this thread only, and it is the only one.
            check(Step::Gid, unsafe {
                exempt(
                    libc::SYS_setresgid,
                    [
                        i64::from(user.gid),
                        i64::from(user.gid),
                        i64::from(user.gid),
                        0,
                        0,
                    ],
                )
            })?;
            // SAFETY: as above.
            check(Step::Uid, unsafe {
                exempt(
                    libc::SYS_setresuid,
                    [
                        i64::from(user.uid),
                        i64::from(user.uid),
                        i64::from(user.uid),
                        0,
                        0,
                    ],
                )
            })?;
        }
        // Again: a change of user clears it (prctl(2)).
        die_with_parent(prepared.parent).map_err(|e| (Step::DeathSignal, e))?;
        // SAFETY: a C string that outlives the call.
        check(Step::Chdir, unsafe {
            exempt(libc::SYS_chdir, [prepared.cwd.as_ptr() as i64, 0, 0, 0, 0])
        })?;
        // SAFETY: C strings and null-terminated arrays of them, all alive.
        check(Step::Exec, unsafe {
            exempt(
                libc::SYS_execve,
                [
                    prepared.program.as_ptr() as i64,
                    prepared.argv.as_ptr() as i64,
                    prepared.envp.as_ptr() as i64,
                    0,
                    0,
                ],
            )
        })?;
        Ok(())
    };
    if let Err((step, errno)) = result() {
        shared.words().errno.store(errno, Ordering::Release);
        shared.words().step.store(step as i32, Ordering::Release);
    }
    loop {
        // SAFETY: ends the process without running anything of the parent's.
        unsafe { exempt(libc::SYS_exit_group, [127, 0, 0, 0, 0]) };
    }
}

/// A raw system call that passes every listener filter.
///
/// # Safety
/// As for the call itself.
unsafe fn exempt(nr: i64, args: [i64; 5]) -> i64 {
    // SAFETY: the caller's promise.
    unsafe {
        libc::syscall(
            nr,
            args[0],
            args[1],
            args[2],
            args[3],
            args[4],
            seccomp::EXEMPT,
        )
    }
}

/// Default dispositions and an empty mask: what a program may expect to start with.
fn reset_signals() {
    // Zeros are SIG_DFL, no flags, an empty mask, whatever the architecture's order of fields; longer than any.
    let default = [0u64; 8];
    let empty = 0u64;
    // Raw calls, since glibc's keep the signals that it uses itself from being set. Numbers that cannot be set answer EINVAL.
    // SAFETY: both structures are alive and only read.
    unsafe {
        for signal in 1..=64 {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                0,
                size_of::<u64>(),
            );
        }
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const empty,
            0,
            size_of::<u64>(),
        );
    }
}

/// Ties this process's life to the thread that forked it.
fn die_with_parent(parent: i32) -> Result<(), i32> {
    // SAFETY: plain values.
    let rc = unsafe {
        exempt(
            libc::SYS_prctl,
            [
                i64::from(libc::PR_SET_PDEATHSIG),
                i64::from(libc::SIGKILL),
                0,
                0,
                0,
            ],
        )
    };
    if rc < 0 {
        return Err(last_errno());
    }
    // The parent may have died before that took effect.
    // SAFETY: plain values.
    if unsafe { exempt(libc::SYS_getppid, [0; 5]) } != i64::from(parent) {
        return Err(libc::ESRCH);
    }
    Ok(())
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn redirect(prepared: &Prepared<'_>) -> Result<(), i32> {
    let mut sources: [RawFd; 3] = [
        prepared.null.as_raw_fd(),
        prepared.what.stdout.as_raw_fd(),
        prepared.what.stderr.as_raw_fd(),
    ];
    for source in &mut sources {
        // Out of the way of 0, 1 and 2, which the next loop overwrites.
        // SAFETY: plain values.
        *source = unsafe { libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, 3) };
        if *source < 0 {
            return Err(last_errno());
        }
    }
    for (target, source) in sources.into_iter().enumerate() {
        // SAFETY: plain values; dup2 clears close-on-exec on the new descriptor.
        if unsafe { libc::dup2(source, target as i32) } < 0 {
            return Err(last_errno());
        }
    }
    Ok(())
}

fn close_on_exec(limit: i32) -> Result<(), i32> {
    // SAFETY: plain values.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if rc == 0 {
        return Ok(());
    }
    match last_errno() {
        // Before 5.11.
        libc::ENOSYS | libc::EINVAL => {
            for fd in 3..limit {
                // SAFETY: plain values; EBADF for numbers not in use.
                unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
            Ok(())
        }
        errno => Err(errno),
    }
}

fn install_filters(prepared: &Prepared<'_>, shared: &SharedPage) -> Result<(), (Step, i32)> {
    let install = |program: &[libc::sock_filter], flags: u64| -> i64 {
        let fprog = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_ptr().cast_mut(),
        };
        // SAFETY: the program outlives the call, which only reads it.
        unsafe {
            exempt(
                libc::SYS_seccomp,
                [
                    i64::from(libc::SECCOMP_SET_MODE_FILTER),
                    flags as i64,
                    &raw const fprog as i64,
                    0,
                    0,
                ],
            )
        }
    };
    let with_privilege = |program: &[libc::sock_filter], flags: u64| -> i64 {
        let rc = install(program, flags);
        if rc >= 0 || last_errno() != libc::EACCES {
            return rc;
        }
        // A plain user may filter itself only if exec can never raise its privileges again.
        // SAFETY: plain values.
        unsafe {
            exempt(
                libc::SYS_prctl,
                [i64::from(libc::PR_SET_NO_NEW_PRIVS), 1, 0, 0, 0],
            )
        };
        install(program, flags)
    };
    if let Some(program) = &prepared.static_filter
        && with_privilege(program, 0) < 0
    {
        return Err((Step::StaticFilter, last_errno()));
    }
    if let Some(program) = &prepared.listener_filter {
        let mut fd = -1;
        for flags in seccomp::LISTENER_FLAGS {
            fd = with_privilege(program, flags);
            if fd >= 0 || last_errno() != libc::EINVAL {
                break;
            }
        }
        if fd < 0 {
            return Err((Step::ListenerFilter, last_errno()));
        }
        shared.words().listener.store(fd as i32, Ordering::Release);
        // No call here: any might be trapped, and nobody answers yet. The parent takes the listener within microseconds.
        while shared.words().taken.load(Ordering::Acquire) == 0 {
            std::hint::spin_loop();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn start(
        program: &str,
        argv: &[&str],
        change: impl FnOnce(&mut Launch<'_>),
    ) -> (io::Result<Launched>, String) {
        let out = tempfile::NamedTempFile::new().unwrap();
        let file = File::create(out.path()).unwrap();
        let argv: Vec<String> = argv.iter().map(|s| (*s).to_string()).collect();
        let mut what = Launch {
            program: Path::new(program),
            argv: &argv,
            env: &[("A".to_owned(), "b".to_owned())],
            cwd: Path::new("/tmp"),
            stdout: file.as_fd(),
            stderr: file.as_fd(),
            user: None,
            cgroup_procs: None,
            io_uring: IoUring::Auto,
            listen: None,
        };
        change(&mut what);
        let launched = launch(&what);
        if let Ok(launched) = &launched {
            assert!(pidfd::wait_exit(launched.pidfd.as_fd(), Duration::from_secs(60)).unwrap());
            nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(launched.pid), None).unwrap();
        }
        (launched, std::fs::read_to_string(out.path()).unwrap())
    }

    #[test]
    fn a_program_starts_clean() {
        let seccomp =
            super::super::procfs::status_field(std::process::id() as i32, "Seccomp").unwrap();
        let script = "pwd; echo $A; ls /proc/self/fd | wc -l; grep -E 'SigIgn|SigBlk|Seccomp:' /proc/self/status; ps -o pgid= -p $$ 2>/dev/null | tr -d ' '";
        let (launched, out) = start("/bin/sh", &["sh", "-c", script], |_| {});
        let pid = launched.unwrap().pid;
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines[..2], ["/tmp", "b"]);
        // 0, 1, 2 and the directory that ls reads.
        assert_eq!(lines[2], "4", "{out}");
        for line in &lines[3..5] {
            assert!(line.ends_with("0000000000000000"), "{line}");
        }
        assert_eq!(lines[5].split_whitespace().last(), Some(seccomp.as_str()));
        if let Some(group) = lines.get(6) {
            assert_eq!(*group, pid.to_string());
        }
    }

    #[test]
    fn failures_name_their_step() {
        let (missing, _) = start("/nonexistent/x", &["x"], |_| {});
        assert_eq!(
            missing.unwrap_err().to_string(),
            "exec /nonexistent/x: No such file or directory"
        );
        let (missing, _) = start("/bin/true", &["true"], |l| {
            l.cwd = Path::new("/nonexistent")
        });
        assert_eq!(
            missing.unwrap_err().to_string(),
            "chdir /nonexistent: No such file or directory"
        );
        let (refused, _) = start("/etc/passwd", &["x"], |_| {});
        assert_eq!(
            refused.unwrap_err().to_string(),
            "exec /etc/passwd: Permission denied"
        );
        let (nul, _) = start("/bin/true", &["a\0b"], |_| {});
        assert_eq!(
            nul.unwrap_err().to_string(),
            "an argument contains a NUL byte"
        );
    }
}
