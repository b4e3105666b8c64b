//! Syscall faults on real processes: arming, widening, decisions, restarts.
//!
//! These need ptrace of own children, which every ordinary machine allows; where it is refused they say so loudly.

#[path = "supervisor/harness.rs"]
mod harness;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use faultbox::plan::{Dest, Existing, FdClass, IoUring};
use faultbox::run::supervisor::Mechanism;
use faultbox_contract::{Dialect, Glob};
use harness::*;

const WRITE: &[&str] = &["write", "writev", "pwrite64", "pwritev", "pwritev2"];

#[test]
fn a_busy_process_is_armed_widened_and_lifted_without_losing_a_call() {
    let Some(()) = ptrace_allowed() else { return };
    let program = compile_c("loop.c", &["-pthread"]);
    let counters = Counters::new(50);
    let s = Service::start(&program, &[counters.path(), "50"]);
    s.until("threads run", || counters.sum().calls > 1000);
    let eio = s.rule("write", &["write", "pwrite64"], deny("EIO"));
    s.arm(&[&eio]);
    s.until("pwrite fails", || counters.sum().eio > 100);
    assert_eq!(counters.sum().bad, 0);
    s.lift(&eio);
    let after = counters.sum();
    s.until("calls go on", || counters.sum().calls > after.calls + 1000);
    // Threads may note what they were told before.
    assert!(counters.sum().eio <= after.eio + 50);
    let enospc = s.rule("fsync", &["fsync"], deny("ENOSPC"));
    s.arm(&[&enospc]);
    s.until("fsync fails", || counters.sum().enospc > 100);
    s.arm(&[&s.rule("write", &["write", "pwrite64"], deny("EIO"))]);
    s.until("pwrite fails again", || {
        counters.sum().eio > after.eio + 100
    });
    assert_eq!(counters.sum().bad, 0);
    assert!(s.supervisor.trapped() > 0);
}

#[test]
fn every_process_of_a_fork_storm_is_armed_and_widened() {
    let Some(()) = ptrace_allowed() else { return };
    let program = compile_c("forks.c", &["-pthread"]);
    let counters = Counters::new(3);
    let s = Service::start(&program, &[counters.path()]);
    s.until("the storm blows", || counters.sum().calls > 100);
    let eio = s.rule("write", &["pwrite64"], deny("EIO"));
    s.arm(&[&eio]);
    let before = counters.sum();
    s.until("calls are made", || {
        counters.sum().calls > before.calls + 200
    });
    let after = counters.sum();
    assert_eq!(after.bad, 0);
    // Counted one after the other, so a call may stand between the two numbers; not more than there are processes.
    let (calls, failed) = (after.calls - before.calls, after.eio - before.eio);
    assert!(
        (calls - failed).abs() <= 10,
        "{calls} calls, {failed} failed"
    );
    s.lift(&eio);
    s.arm(&[&s.rule("fsync", &["fsync", "close"], delay(Duration::ZERO))]);
    let lifted = counters.sum();
    s.until("it goes on", || counters.sum().calls > lifted.calls + 200);
    assert_eq!(counters.sum().bad, 0);
}

#[test]
fn every_thread_of_a_thread_storm_is_armed_and_widened() {
    let Some(()) = ptrace_allowed() else { return };
    let counters = Counters::new(4);
    let s = Service::start(&compile_c("threads.c", &["-pthread"]), &[counters.path()]);
    s.until("the storm blows", || counters.sum().calls > 100);
    s.arm(&[&s.rule("write", &["pwrite64"], deny("EIO"))]);
    let before = counters.sum();
    // Threads are created while others are being stopped, every time anew.
    for call in [
        "fsync", "umask", "getppid", "sync", "chdir", "rmdir", "unlink", "rename", "link", "chmod",
        "mkdir", "pause", "alarm", "times", "uname", "flock",
    ] {
        s.arm(&[&s.rule(call, &[call], deny("EIO"))]);
    }
    s.until("calls are made", || {
        counters.sum().calls > before.calls + 200
    });
    let after = counters.sum();
    let (calls, failed) = (after.calls - before.calls, after.eio - before.eio);
    assert!(
        (calls - failed).abs() <= 4,
        "{calls} calls, {failed} failed"
    );
    assert_eq!(after.bad, 0);
}

/// Lines of restart.c: name, result, errno, milliseconds.
fn outcomes(output: &str) -> Vec<(String, i64, i64, i64)> {
    output
        .lines()
        .filter_map(|l| {
            let mut words = l.split(' ');
            let name = words.next()?.to_owned();
            let mut number = || words.next()?.parse().ok();
            Some((name, number()?, number()?, number()?))
        })
        .collect()
}

#[test]
fn interrupted_waits_end_as_they_would_have() {
    let Some(()) = ptrace_allowed() else { return };
    let program = compile_c("restart.c", &["-pthread"]);
    let s = Service::start(&program, &[]);
    // Late in the waits of nine seconds, so that one that begins anew ends long after the others, and long before their end: on a loaded
    // machine either side takes its time.
    std::thread::sleep(Duration::from_secs(6));
    // A call that none of the threads makes while it waits.
    s.arm(&[&s.rule("fsync", &["fsync"], deny("EIO"))]);
    let out = s.finished();
    let found = outcomes(&out);
    assert_eq!(found.len(), 9, "{out}");
    for (name, rc, errno, ms) in found {
        let (want_rc, want_errno, low) = match name.as_str() {
            "wait_futex" => (-1, i64::from(libc::ETIMEDOUT), 8990),
            "recv_timed" => (-1, i64::from(libc::EAGAIN), 8990),
            "read_pipe" | "accept_one" => (1, 0, 6000),
            _ => (0, 0, 8990),
        };
        assert_eq!((rc, errno), (want_rc, want_errno), "{name}: {out}");
        // The upper bound only tells a wait that began anew (and ends after fifteen seconds) from one that went on, for those that can.
        assert!(
            ms >= low && (name == "recv_timed" || ms < 13_500),
            "{name}: {out}"
        );
    }
}

#[test]
fn interrupted_waits_survive_widening() {
    let Some(()) = ptrace_allowed() else { return };
    let program = compile_c("restart.c", &["-pthread"]);
    let s = Service::start(&program, &[]);
    std::thread::sleep(Duration::from_millis(100));
    for call in ["fsync", "fdatasync", "getppid", "umask"] {
        s.arm(&[&s.rule(call, &[call], deny("EIO"))]);
        std::thread::sleep(Duration::from_millis(100));
    }
    let out = s.finished();
    for (name, rc, errno, _) in outcomes(&out) {
        assert_ne!(errno, i64::from(libc::EINTR), "{name} {rc}: {out}");
    }
    assert!(out.ends_with("done\n"));
}

#[test]
fn a_stopped_process_stays_stopped() {
    let Some(()) = ptrace_allowed() else { return };
    let dir = scratch();
    let file = dir.join("f");
    let s = Service::start(&compile_c("write.c", &[]), &[file.to_str().unwrap()]);
    s.until("it runs", || s.output() == "ok\n");
    let pid = nix::unistd::Pid::from_raw(s.pid);
    let state = || faultbox::sys::procfs::state(s.pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    s.until("it is stopped", || state() == Some('T'));
    s.arm(&[&s.rule("write", WRITE_FILE, deny("EIO"))]);
    s.until("it is stopped again", || state() == Some('T'));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!((state(), s.output().as_str()), (Some('T'), "ok\n"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    s.until("it fails", || s.output() == "ok\nInput/output error\n");
}

/// pwrite alone: the program still has to be able to say what it sees.
const WRITE_FILE: &[&str] = &["pwrite64"];

/// Arms, sees the failure arrive, lifts, sees it end.
fn fails_and_recovers(
    s: &Service,
    calls: &'static [&'static str],
    failure: &str,
    on: Option<FdClass>,
) {
    s.until("it runs", || s.output().contains("ok"));
    let rule = s.rule_with("write", calls, deny("EIO"), |r| r.on = on);
    s.arm(&[&rule]);
    s.until("the failure arrives", || s.output().contains(failure));
    assert!(rule.hits() > 0);
    s.lift(&rule);
    s.until("it recovers", || s.output().trim_end().ends_with("ok"));
    assert!(s.running());
}

#[test]
fn static_binaries() {
    let Some(()) = ptrace_allowed() else { return };
    let dir = scratch();
    let file = dir.join("f");
    let program = compile_c("write.c", &["-static"]);
    let s = Service::start(&program, &[file.to_str().unwrap()]);
    fails_and_recovers(&s, WRITE_FILE, "Input/output error", None);
}

#[test]
fn python_node_java_and_go_see_their_own_exceptions() {
    let Some(()) = ptrace_allowed() else { return };
    let source = |name: &str| programs().join(name).to_str().unwrap().to_owned();
    // Each says what it sees through a socket pair's worth of calls other than those denied on files; so deny on files only.
    let run = |program: &Path, args: &[&str], failure: &str| {
        let dir = scratch();
        let file = dir.join("data");
        let args: Vec<&str> = args
            .iter()
            .copied()
            .chain([file.to_str().unwrap()])
            .collect();
        let s = Service::start(program, &args);
        s.until("it runs", || s.output().contains("ok"));
        let glob = Glob::new("**/data", Dialect::Path).unwrap();
        let rule = s.rule_with("write", WRITE, deny("EIO"), |r| {
            r.path = Some(glob);
            r.on = Some(FdClass::File);
        });
        s.arm(&[&rule]);
        s.until("the failure arrives", || s.output().contains(failure));
        s.lift(&rule);
        s.until("it recovers", || s.output().trim_end().ends_with("ok"));
        let events = s.syscall_events();
        assert_eq!(events.len() as u64, rule.hits());
        assert_eq!(events[0].fields["path"], file.to_str().unwrap());
        assert_eq!(events[0].fields["errno"], "EIO");
        assert_eq!(events[0].fields["fd_class"], "file");
        assert!(s.running());
    };
    if let Some(python) = which("python3") {
        run(&python, &[&source("write.py")], "OSError 5");
    }
    if let Some(node) = which("node") {
        run(&node, &[&source("write.js")], "EIO");
    }
    if let Some(java) = which("java") {
        run(
            &java,
            &[&source("Write.java")],
            "IOException: Input/output error",
        );
    }
    if let Some(program) = build_go("write.go") {
        run(&program, &[], "input/output error");
    }
}

#[test]
fn delays_last_and_are_cut_short_by_lifting() {
    let Some(()) = ptrace_allowed() else { return };
    let counters = Counters::new(2);
    let s = Service::start(&compile_c("loop.c", &["-pthread"]), &[counters.path(), "2"]);
    s.until("threads run", || counters.sum().calls > 1000);
    let slow = s.rule("fsync", &["fsync"], delay(Duration::from_secs(3600)));
    s.arm(&[&slow]);
    s.until("both sleep", || slow.hits() == 2);
    let stuck = counters.sum();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(counters.sum().calls, stuck.calls);
    // Widening while they sleep: they go on sleeping, and are not counted again.
    let eio = s.rule("write", &["pwrite64"], deny("EIO"));
    s.arm(&[&eio]);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!((slow.hits(), counters.sum().calls), (2, stuck.calls));
    s.lift(&slow);
    s.until("they wake", || counters.sum().calls > stuck.calls + 1000);
    assert_eq!(slow.hits(), 2);
    let sum = counters.sum();
    assert!(sum.bad == 0 && sum.eio > 0, "{sum:?}");
}

#[test]
fn a_short_delay_goes_on_across_widening() {
    let Some(()) = ptrace_allowed() else { return };
    let counters = Counters::new(1);
    let s = Service::start(&compile_c("loop.c", &["-pthread"]), &[counters.path(), "1"]);
    s.until("it runs", || counters.sum().calls > 1000);
    // Long, since an arming takes its time on a loaded machine.
    let lasts = Duration::from_secs(3);
    let slow = s.rule_with("fsync", &["fsync"], delay(lasts), |r| {
        r.trigger.times = Some(1)
    });
    let began = Instant::now();
    s.arm(&[&slow]);
    s.until("it sleeps", || slow.hits() == 1);
    let stuck = counters.sum().calls;
    for call in ["getppid", "umask", "sync"] {
        std::thread::sleep(Duration::from_millis(100));
        s.arm(&[&s.rule(call, &[call], deny("EIO"))]);
    }
    let calls = counters.sum().calls;
    assert!(began.elapsed() >= lasts || calls == stuck);
    s.until("it goes on", || counters.sum().calls > stuck);
    assert!(began.elapsed() >= lasts, "{:?}", began.elapsed());
    assert_eq!((slow.hits(), counters.sum().bad), (1, 0));
}

#[test]
fn draws_are_exact_for_the_number_of_matches() {
    let Some(()) = ptrace_allowed() else { return };
    let counters = Counters::new(8);
    let s = Service::start(&compile_c("loop.c", &["-pthread"]), &[counters.path(), "8"]);
    s.until("threads run", || counters.sum().calls > 1000);
    let some = s.rule_with("write", &["pwrite64"], deny("EIO"), |r| {
        r.trigger.probability = Some(0.2);
    });
    s.arm(&[&some]);
    s.until("many match", || some.trigger.matched() > 5000);
    s.lift(&some);
    let (matched, fired) = (some.trigger.matched(), some.hits());
    let again = faultbox_contract::Trigger::new(some.rule.trigger.clone(), 42);
    let expected = (0..matched).filter(|_| again.decide()).count() as u64;
    assert_eq!(fired, expected);
    s.until("all have noted it", || counters.sum().eio as u64 == fired);
}

#[test]
fn filters_select_by_kind_path_and_peer() {
    let Some(()) = ptrace_allowed() else { return };
    let Some(python) = which("python3") else {
        return;
    };
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let scratch_dir = scratch();
    let dir = std::fs::canonicalize(scratch_dir.path()).unwrap();
    let port = |l: &TcpListener| l.local_addr().unwrap().port().to_string();
    let s = Service::start_with(
        &python,
        &[
            programs().join("calls.py").to_str().unwrap(),
            &port(&server),
            &port(&other),
        ],
        Options {
            cwd: Some(dir.clone()),
            ..Options::default()
        },
    );
    // The program makes one round of calls for each line on its socket, and answers with what each said.
    let (mut control, _) = server.accept().unwrap();
    let mut round = || -> String {
        control.write_all(b"go\n").unwrap();
        let mut reply = vec![];
        let mut byte = [0];
        while byte != *b"\n" {
            control.read_exact(&mut byte).unwrap();
            reply.push(byte[0]);
        }
        String::from_utf8(reply).unwrap().trim().to_owned()
    };
    let all_ok = "file=0 pipe=0 rename=0 unlink=0 stat=0 connect=0 connect2=0 link=0 mkdir=0";
    assert_eq!(round(), all_ok);
    let path = |pattern: &str| Some(Glob::new(pattern, Dialect::Path).unwrap());
    let mut check = |key: &str,
                     calls: &[&'static str],
                     change: &dyn Fn(&mut faultbox::plan::SyscallRule),
                     failing: &[&str]| {
        let rule = s.rule_with(key, calls, deny("EIO"), |r| change(r));
        s.arm(&[&rule]);
        let reply = round();
        for word in reply.split(' ') {
            let (name, errno) = word.split_once('=').unwrap();
            assert_eq!(errno == "5", failing.contains(&name), "{key}: {reply}");
        }
        s.lift(&rule);
    };
    let any = |_: &mut faultbox::plan::SyscallRule| {};
    let _ = any;
    check(
        "on file",
        &["write"],
        &|r| r.on = Some(FdClass::File),
        &["file"],
    );
    check(
        "on pipe",
        &["write"],
        &|r| r.on = Some(FdClass::Pipe),
        &["pipe"],
    );
    check("on tty", &["write"], &|r| r.on = Some(FdClass::Tty), &[]);
    check(
        "write path",
        &["write"],
        &|r| r.path = path("**/data/file"),
        &["file"],
    );
    check(
        "other path",
        &["write"],
        &|r| r.path = path("/nowhere/**"),
        &[],
    );
    let renames = &["rename", "renameat", "renameat2"];
    check(
        "rename from",
        renames,
        &|r| r.path = path("**/data/old"),
        &["rename"],
    );
    check(
        "rename to",
        renames,
        &|r| r.path = path("**/data/new"),
        &["rename"],
    );
    // Through a symbolic link, relative, to what does not exist yet.
    check(
        "mkdir",
        &["mkdir", "mkdirat"],
        &|r| r.path = path(&format!("{}/data/made", dir.display())),
        &["mkdir"],
    );
    check(
        "stat",
        &["stat", "newfstatat", "statx"],
        &|r| r.path = path("**/data/file"),
        &["stat"],
    );
    check(
        "unlink",
        &["unlink", "unlinkat"],
        &|r| r.path = path("**/data/gone"),
        &["unlink"],
    );
    check(
        "link",
        &["link", "linkat"],
        &|r| r.path = path("**/data/second"),
        &["link"],
    );
    let dest = |l: &TcpListener| Some(Dest::Addrs(vec![l.local_addr().unwrap()]));
    check(
        "connect",
        &["connect"],
        &|r| r.dest = dest(&other),
        &["connect", "connect2"],
    );
    check(
        "connect elsewhere",
        &["connect"],
        &|r| {
            r.dest = Some(Dest::Cidr {
                net: "10.0.0.0".parse().unwrap(),
                prefix: 8,
            })
        },
        &[],
    );
    check(
        "write to peer",
        &["write", "sendto"],
        &|r| r.dest = dest(&other),
        &[],
    );
    assert_eq!(round(), all_ok);
}

#[test]
fn existing_connections_are_severed_when_asked() {
    let Some(()) = ptrace_allowed() else { return };
    let Some(python) = which("python3") else {
        return;
    };
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let script = "import socket,sys\n\
        l=socket.socket(); l.bind(('127.0.0.1',0)); l.listen()\n\
        s=socket.create_connection(('127.0.0.1',int(sys.argv[1])))\n\
        s.sendall(b'%d\\n'%l.getsockname()[1])\n\
        a,_=l.accept()\n\
        try: s.recv(1)\n\
        except OSError as e: a.sendall(b'%d\\n'%e.errno)\n\
        a.recv(1)\n";
    let port = server.local_addr().unwrap().port().to_string();
    let s = Service::start(&python, &["-c", script, &port]);
    let (mut upstream, _) = server.accept().unwrap();
    let line = |stream: &mut TcpStream| {
        let mut text = String::new();
        let mut byte = [0];
        while stream.read(&mut byte).is_ok_and(|n| n == 1) && byte != *b"\n" {
            text.push(byte[0] as char);
        }
        text
    };
    let own: u16 = line(&mut upstream).parse().unwrap();
    let mut client = TcpStream::connect(("127.0.0.1", own)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let rule = s.rule_with("connect", &["connect"], deny("ECONNREFUSED"), |r| {
        r.existing = Existing::Reset
    });
    s.arm(&[&rule]);
    // What it made is reset at both ends, what it accepted lives.
    assert_eq!(line(&mut client), libc::ECONNRESET.to_string());
    assert_eq!(
        upstream.read(&mut [0]).unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    assert!(s.log.since(0).any(|e| e.kind == "connection_reset"));
}

/// The filter before exec traps even what the loader and the child's last steps themselves call.
fn before_exec(program: &Path, args: &[&str]) -> Service {
    let listed = numbers(&[
        "read", "write", "openat", "close", "execve", "pwrite64", "mmap", "prctl", "chdir", "fstat",
    ]);
    Service::start_with(
        program,
        args,
        Options {
            listen: Some(&listed),
            ..Options::default()
        },
    )
}

#[test]
fn a_filter_before_exec_serves_where_it_covers() {
    for flags in [&[][..], &["-static"]] {
        let dir = scratch();
        let file = dir.join("f");
        let s = before_exec(&compile_c("write.c", flags), &[file.to_str().unwrap()]);
        s.until("it runs", || s.output().contains("ok"));
        let rule = s.rule("write", WRITE_FILE, deny("EIO"));
        assert_eq!(s.try_arm(&[&rule]).unwrap(), Mechanism::BeforeExec);
        s.until("it fails", || s.output().contains("Input/output error"));
        s.lift(&rule);
        s.until("it recovers", || s.output().trim_end().ends_with("ok"));
        // What it does not cover needs ptrace, and widens it.
        let Some(()) = ptrace_allowed() else { return };
        let sleepy = s.rule(
            "nanosleep",
            &["nanosleep", "clock_nanosleep"],
            deny("EINTR"),
        );
        assert_eq!(s.try_arm(&[&sleepy]).unwrap(), Mechanism::Armed);
        s.until("it is hit", || sleepy.hits() > 10);
        assert!(s.running());
    }
}

#[test]
fn plain_users_can_be_armed_and_started_with_a_filter() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root can start a service as another user");
        return;
    }
    let user = Some(faultbox::sys::launch::Ids {
        uid: 65534,
        gid: 65534,
        groups: vec![65534],
    });
    let dir = scratch();
    let program = dir.join("write");
    // By another process: what is open for writing here, a child that another test is just starting has open, too (ETXTBSY in
    // execve(2)).
    let copied = Command::new("cp")
        .arg(&*compile_c("write.c", &[]))
        .arg(&program)
        .status();
    assert!(copied.unwrap().success());
    nix::unistd::chown(dir.path(), Some(65534.into()), Some(65534.into())).unwrap();
    let file = dir.join("f");
    let listed = numbers(&["pwrite64", "setresuid", "execve"]);
    for listen in [None, Some(&listed[..])] {
        let s = Service::start_with(
            &program,
            &[file.to_str().unwrap()],
            Options {
                listen,
                user: user.clone(),
                ..Options::default()
            },
        );
        fails_and_recovers(&s, WRITE_FILE, "Input/output error", None);
        assert_eq!(
            faultbox::sys::procfs::status_field(s.pid, "Uid").unwrap(),
            "65534\t65534\t65534\t65534"
        );
    }
}

fn with_io_uring(io_uring: IoUring, args: &[&str]) -> Service {
    let options = Options {
        io_uring,
        ..Options::default()
    };
    let s = Service::start_with(&compile_c("uring.c", &[]), args, options);
    s.until("it says something", || s.output().ends_with('\n'));
    s
}

/// The runner's own filters, if any, are the service's too.
fn filters(pid: i32) -> (String, String) {
    let field = |key| faultbox::sys::procfs::status_field(pid, key).unwrap_or_default();
    (field("Seccomp"), field("Seccomp_filters"))
}

#[test]
fn a_service_without_faults_carries_no_filter_and_may_use_io_uring() {
    let own = filters(std::process::id() as i32);
    for io_uring in [IoUring::Auto, IoUring::Allow] {
        let s = with_io_uring(io_uring, &[]);
        assert_eq!(filters(s.pid), own, "{io_uring:?}");
    }
    let s = with_io_uring(IoUring::Deny, &[]);
    assert_eq!(filters(s.pid).0, "2");
    assert!(s.output().starts_with("38\n"));
    let ours: u32 = own.1.parse().unwrap_or(0);
    assert_eq!(filters(s.pid).1, (ours + 1).to_string());
}

/// Does this kernel have io_uring, for us? Some containers refuse it.
fn io_uring_here(s: &Service) -> bool {
    let here = s.output().starts_with("0\n");
    if !here {
        eprintln!("SKIPPED: io_uring_setup answers {}", s.output());
    }
    here
}

#[test]
fn io_uring_is_refused_from_the_first_fault_on() {
    let Some(()) = ptrace_allowed() else { return };
    let s = with_io_uring(IoUring::Auto, &[]);
    if !io_uring_here(&s) {
        return;
    }
    s.arm(&[&s.rule("fsync", &["fsync"], deny("EIO"))]);
    s.until("it is refused", || s.output().contains("\n38\n38\n"));
    assert!(!s.output().trim_end().ends_with("\n0"));
    let error = s
        .try_arm(&[&s.rule("uring", &["io_uring_setup"], deny("EPERM"))])
        .unwrap_err();
    assert!(
        error.message.contains("`io_uring_setup` is refused"),
        "{error}"
    );

    let s = with_io_uring(IoUring::Allow, &[]);
    s.arm(&[&s.rule("fsync", &["fsync"], deny("EIO"))]);
    let before = s.output().len();
    s.until("it goes on", || s.output().len() > before + 10);
    assert!(!s.output().contains("38"), "{}", s.output());
    let rule = s.rule("uring", &["io_uring_setup"], deny("EPERM"));
    s.arm(&[&rule]);
    s.until("it can be faulted", || s.output().ends_with("\n1\n"));
}

#[test]
fn a_ring_that_exists_already_is_named() {
    let Some(()) = ptrace_allowed() else { return };
    let s = with_io_uring(IoUring::Auto, &["keep"]);
    if !io_uring_here(&s) {
        return;
    }
    let rule = s.rule("fsync", &["fsync"], deny("EIO"));
    let error = s.try_arm(&[&rule]).unwrap_err();
    assert!(
        error.message.contains(&format!("process {} (", s.pid))
            && error.message.contains("uses io_uring (descriptor "),
        "{error}"
    );
    assert!(error.help.unwrap().contains("io_uring=\"deny\""));
    assert!(s.supervisor.armed_syscalls().is_empty());
    assert_eq!(filters(s.pid), filters(std::process::id() as i32));
    assert!(s.running());

    let s = with_io_uring(IoUring::Allow, &["keep"]);
    s.arm(&[&s.rule("fsync", &["fsync"], deny("EIO"))]);
}

#[test]
fn threads_with_different_filters_of_their_own_are_all_armed_also_the_sleeping() {
    let Some(()) = ptrace_allowed() else { return };
    let s = Service::start(&compile_c("diverged.c", &["-pthread"]), &[]);
    s.until("it is up", || s.output() == "up\nup\n");
    let main = format!("/proc/{}/syscall", s.pid);
    let waits = faultbox::sys::names::syscall_number("epoll_wait")
        .or(faultbox::sys::names::syscall_number("epoll_pwait"));
    s.until("it waits", || {
        let now = std::fs::read_to_string(&main).unwrap_or_default();
        now.split(' ').next().and_then(|nr| nr.parse().ok()) == waits
    });
    let rule = s.rule("fsync", &["fsync"], deny("EIO"));
    s.arm(&[&rule]);
    let pid = nix::unistd::Pid::from_raw(s.pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).unwrap();
    let expected = format!("woken 1 fsync -1 errno {}\n", libc::EIO);
    s.until("it is woken", || s.output().ends_with(&expected));
    assert_eq!(rule.hits(), 1);
}

#[test]
fn a_process_whose_first_thread_has_ended_is_faulted_all_the_same() {
    let Some(()) = ptrace_allowed() else { return };
    let s = Service::start(&compile_c("leader.c", &["-pthread"]), &[]);
    s.until("its first thread has ended", || {
        faultbox::sys::procfs::state(s.pid) == Some('Z') && s.output().contains('0')
    });
    let (random, other) = (
        s.rule("getrandom", &["getrandom"], deny("EIO")),
        s.rule("fsync", &["fsync"], deny("EIO")),
    );
    s.arm(&[&random]);
    let expected = format!("{}\n", libc::EIO);
    s.until("it fails", || s.output().ends_with(&expected));
    s.arm(&[&other]);
    s.lift(&random);
    s.until("it recovers", || s.output().ends_with("0\n0\n"));
    assert!(
        !s.output().contains(&libc::ENOSYS.to_string()),
        "{}",
        s.output()
    );
}

#[test]
fn a_process_that_its_own_filter_kills_is_no_success() {
    let Some(()) = ptrace_allowed() else { return };
    let s = Service::start(&compile_c("touchy.c", &[]), &[]);
    s.until("it is up", || s.output() == "up\n");
    let error = s
        .try_arm(&[&s.rule("write", WRITE, deny("EIO"))])
        .unwrap_err();
    assert!(error.message.contains("has one of its own"), "{error}");
    assert!(s.supervisor.armed_syscalls().is_empty());
}

#[test]
fn arming_something_else_cuts_no_transfer_short_and_counts_no_call_twice() {
    let Some(()) = ptrace_allowed() else { return };
    let s = Service::start(&compile_c("pipes.c", &["-pthread"]), &[]);
    let second = s.rule_with("read", &["read"], deny("EIO"), |r| {
        r.on = Some(FdClass::Pipe);
        r.trigger.nth = Some(2);
    });
    std::thread::sleep(Duration::from_millis(500));
    s.arm(&[&second]);
    std::thread::sleep(Duration::from_millis(500));
    s.arm(&[&s.rule("uname", &["uname"], deny("EIO"))]);
    let out = s.finished();
    // Which read of which thread is the second is the scheduler's business; the first of all was under way, and counts once.
    assert!(out.contains("read 1: 1 0\n"), "{out}");
    assert_eq!(second.hits(), 1, "{out}");
    assert!(out.ends_with("done\n"), "{out}");
}

#[test]
fn a_blocked_write_is_not_cut_short_by_the_first_arming() {
    let Some(()) = ptrace_allowed() else { return };
    let s = Service::start(&compile_c("pipes.c", &["-pthread"]), &[]);
    std::thread::sleep(Duration::from_millis(800));
    s.arm(&[&s.rule("fsync", &["fsync"], deny("EIO"))]);
    let out = s.finished();
    assert!(out.contains("written 1000000\n"), "{out}");
}

#[test]
fn a_process_with_a_listener_of_its_own_is_named() {
    let Some(()) = ptrace_allowed() else { return };
    let s = Service::start(&compile_c("sandbox.c", &[]), &[]);
    s.until("it is up", || s.output() == "up\n");
    let error = s
        .try_arm(&[&s.rule("write", WRITE, deny("EIO"))])
        .unwrap_err();
    assert!(
        error.message.contains(&format!("process {} (", s.pid))
            && error.message.contains("listener of its own"),
        "{error}"
    );
    assert!(s.supervisor.armed_syscalls().is_empty());
    assert!(s.running());
}

#[test]
fn a_dead_service_cannot_be_armed() {
    let s = Service::start(Path::new("/bin/true"), &[]);
    s.finished();
    let error = s
        .try_arm(&[&s.rule("write", WRITE, deny("EIO"))])
        .unwrap_err();
    assert!(error.message.contains("no running process"), "{error}");
}

/// A PostgreSQL of its own, as an unprivileged user; `None`, loudly, where there is none to run.
struct Postgres {
    dir: Scratch,
    bin: std::path::PathBuf,
    service: Option<Service>,
}

impl Postgres {
    fn start() -> Option<Postgres> {
        let bin = std::fs::read_dir("/usr/lib/postgresql")
            .ok()
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path().join("bin"))
            .find(|p| p.join("postgres").is_file());
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED, NOT PASSED: needs root to start PostgreSQL as nobody");
            return None;
        }
        let Some(bin) = bin else {
            skip("there is no PostgreSQL on this machine");
            return None;
        };
        let dir = scratch();
        nix::unistd::chown(dir.path(), Some(65534.into()), Some(65534.into())).unwrap();
        let mut postgres = Postgres {
            dir,
            bin,
            service: None,
        };
        let data = postgres.dir.join("data");
        let made = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(postgres.bin.join("initdb"))
            .args(["-A", "trust", "-U", "postgres", "-N", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let socket = format!("unix_socket_directories={}", postgres.dir.path().display());
        let args = [
            "-D",
            data.to_str().unwrap(),
            "-c",
            "listen_addresses=",
            "-c",
            &socket,
        ];
        let user = Some(faultbox::sys::launch::Ids {
            uid: 65534,
            gid: 65534,
            groups: vec![65534],
        });
        let service = Service::start_with(
            &postgres.bin.join("postgres"),
            &args,
            Options {
                user,
                ..Options::default()
            },
        );
        postgres.service = Some(service);
        postgres
            .service()
            .until("it answers", || postgres.sql("select 1").is_ok());
        Some(postgres)
    }

    fn service(&self) -> &Service {
        self.service.as_ref().unwrap()
    }

    fn sql(&self, sql: &str) -> Result<String, String> {
        let out = self
            .client("psql")
            .args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
        if out.status.success() {
            Ok(text(&out.stdout))
        } else {
            Err(text(&out.stderr))
        }
    }

    fn client(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        command
            .env("PGHOST", self.dir.path())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Before its folder.
        self.service = None;
    }
}

#[test]
fn postgres_backends_are_faulted_while_clients_stay_connected() {
    let Some(()) = ptrace_allowed() else { return };
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let s = postgres.service();
    let load = postgres
        .client("pgbench")
        .args(["-i", "-s", "1", "-q"])
        .output()
        .unwrap();
    assert!(
        load.status.success(),
        "{}",
        String::from_utf8_lossy(&load.stderr)
    );
    let count = || {
        postgres
            .sql("select count(*) from pgbench_history")
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let mut bench = postgres
        .client("pgbench")
        .args(["-c", "8", "-j", "2", "-T", "600"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    s.until("transactions commit", || count() > 50);
    // Nothing fails: the first arming and a widening are invisible to eight busy clients.
    s.arm(&[&s.rule_with(
        "write",
        &["write", "pwrite64", "pwritev", "writev"],
        deny("ENOSPC"),
        |r| r.path = Some(Glob::new("/nowhere/**", Dialect::Path).unwrap()),
    )]);
    s.arm(&[
        &s.rule_with("fsync", &["fsync", "fdatasync"], deny("EIO"), |r| {
            r.path = Some(Glob::new("/nowhere/**", Dialect::Path).unwrap())
        }),
    ]);
    let before = count();
    s.until("transactions go on", || count() > before + 50);
    assert!(
        bench.try_wait().unwrap().is_none(),
        "the clients stay connected"
    );
    // What comes now fails transactions, as it should, and pgbench gives up a client whose transaction has failed.
    let _ = bench.kill();
    let _ = bench.wait();
    // A full disk: a statement that needs new pages fails with the server's own error, and the session lives.
    let full = s.rule_with(
        "write",
        &["write", "pwrite64", "pwritev", "writev"],
        deny("ENOSPC"),
        |r| {
            r.on = Some(FdClass::File);
            r.path = Some(Glob::new("**/base/**", Dialect::Path).unwrap());
        },
    );
    s.arm(&[&full]);
    let error = postgres
        .sql("create table big as select g, repeat('x', 500) from generate_series(1, 300000) g")
        .unwrap_err();
    assert!(error.contains("No space left on device"), "{error}");
    assert!(full.hits() > 0);
    s.lift(&full);
    assert_eq!(postgres.sql("select 1").unwrap(), "1");
    // A WAL that cannot be flushed: PostgreSQL panics rather than lie.
    let wal = s.rule_with("fsync", &["fsync", "fdatasync"], deny("EIO"), |r| {
        r.path = Some(Glob::new("**/pg_wal/**", Dialect::Path).unwrap())
    });
    s.arm(&[&wal]);
    assert!(postgres.sql("create table small ()").is_err());
    s.until("it panics", || s.output().contains("PANIC"));
    assert!(s.output().contains("Input/output error"), "{}", s.output());
}
