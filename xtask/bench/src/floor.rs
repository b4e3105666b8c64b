//! The least that tracing and trapping a call can cost on this machine: programs that do nothing, and a supervisor that decides nothing.
//! Each runs another program under it, as strace does.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

fn command(words: &[&str]) -> Result<Command, String> {
    let [program, args @ ..] = words else {
        return Err("say what to run".into());
    };
    let mut command = Command::new(program);
    command.args(args);
    Ok(command)
}

/// Becomes a program, while one that does nothing is attached to where all system calls begin and one to where they end.
pub fn tracepoints(words: &[&str]) -> Result<(), String> {
    let mut command = command(words)?;
    let attached = ["sys_enter", "sys_exit"].map(attach);
    for link in &attached {
        let link = link.as_ref().map_err(|e| format!("bpf: {e}"))?;
        // They are detached with the last descriptor, which is the program's then.
        fcntl(link, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|e| format!("fcntl: {e}"))?;
    }
    Err(format!("{}: {}", words[0], command.exec()))
}

/// linux/bpf.h.
const BPF_PROG_LOAD: i32 = 5;
const BPF_RAW_TRACEPOINT_OPEN: i32 = 17;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u64 = 17;

/// `r0 = 0` and `exit`, `struct bpf_insn` each.
static NOTHING: [u64; 2] = [0xb7, 0x95];

fn attach(tracepoint: &str) -> io::Result<OwnedFd> {
    const LICENSE: &CStr = c"GPL";
    let name = CString::new(tracepoint)?;
    // Two members of four bytes each are one of eight here, on the little-endian machines that this runs on.
    let program = bpf(
        BPF_PROG_LOAD,
        [
            BPF_PROG_TYPE_RAW_TRACEPOINT | (NOTHING.len() as u64) << 32,
            NOTHING.as_ptr() as u64,
            LICENSE.as_ptr() as u64,
        ],
    )?;
    let number = program.as_raw_fd() as u64;
    bpf(BPF_RAW_TRACEPOINT_OPEN, [name.as_ptr() as u64, number, 0])
}

/// bpf(2), with the first members of its attributes and the rest zero.
fn bpf(what: i32, members: [u64; 3]) -> io::Result<OwnedFd> {
    let mut attributes = [0u64; 16];
    attributes[..3].copy_from_slice(&members);
    // SAFETY: the attributes are as long as is said, and what they point to lives through the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            what,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    match i32::try_from(fd) {
        // SAFETY: both commands return a descriptor that nobody else owns.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

nix::ioctl_readwrite!(receive, b'!', 0, libc::seccomp_notif);
nix::ioctl_readwrite!(send, b'!', 1, libc::seccomp_notif_resp);
nix::ioctl_write_int_bad!(set_flags, 0x4008_2104);

/// SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP, linux/seccomp.h.
const SYNC_WAKE_UP: i32 = 1;
/// Where the program has its own filter's descriptor, for a moment.
const LISTENER: i32 = 100;

/// Runs a program whose pwrite(2) calls are all trapped, and lets each go on at once.
pub fn notified(words: &[&str]) -> Result<(), String> {
    let mut command = command(words)?;
    // SAFETY: the closure calls nothing but system calls, as must be between fork(2) and exec(2).
    unsafe { command.pre_exec(trap_pwrite) };
    let mut child = command.spawn().map_err(|e| format!("{}: {e}", words[0]))?;
    let listener = fetch(child.id()).map_err(|e| format!("pidfd_getfd: {e}"))?;
    // Older kernels do without.
    // SAFETY: takes a number.
    let _ = unsafe { set_flags(listener.as_raw_fd(), SYNC_WAKE_UP) };
    std::thread::spawn(move || answer(&listener));
    child.wait().map(drop).map_err(|e| format!("wait: {e}"))
}

/// Lets every call go on, until the process ends.
fn answer(listener: &OwnedFd) {
    loop {
        // SAFETY: all-zero bytes are a valid notification, and what the kernel wants to find there.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a whole notification.
        match unsafe { receive(listener.as_raw_fd(), &raw mut call) } {
            Ok(_) => {}
            // Whoever called was killed meanwhile.
            Err(Errno::EINTR | Errno::ENOENT) => continue,
            Err(_) => return,
        }
        let mut go_on = libc::seccomp_notif_resp {
            id: call.id,
            val: 0,
            error: 0,
            flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        };
        // SAFETY: the pointer is to a whole answer.
        let _ = unsafe { send(listener.as_raw_fd(), &raw mut go_on) };
    }
}

fn trap_pwrite() -> io::Result<()> {
    let statement = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    // The number of the call is the first thing in `struct seccomp_data`.
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            libc::SYS_pwrite64 as u32,
            0,
            1,
        ),
        statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_USER_NOTIF,
            0,
            0,
        ),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program is as long as it says and lives through the calls.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 {
            return Err(io::Error::last_os_error());
        }
        let listener = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        );
        // The copy outlives exec(2), so that it can be fetched.
        if listener < 0 || libc::dup2(listener as i32, LISTENER) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The filter's descriptor, out of the program.
fn fetch(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: neither call takes a pointer; each returns a descriptor that nobody else owns.
    unsafe {
        let program = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if program < 0 {
            return Err(io::Error::last_os_error());
        }
        let program = OwnedFd::from_raw_fd(program as i32);
        let listener = libc::syscall(libc::SYS_pidfd_getfd, program.as_raw_fd(), LISTENER, 0);
        match listener < 0 {
            true => Err(io::Error::last_os_error()),
            false => Ok(OwnedFd::from_raw_fd(listener as i32)),
        }
    }
}
