//! Seccomp filters and the listener's ioctls (seccomp(2), seccomp_unotify(2)).
//!
//! libseccomp builds the programs. It neither loads them, since that happens in other processes, nor serves their listener:
//! its wrapper blurs errors (a dead target becomes ECANCELED).

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{sock_filter, sock_fprog};
use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};

/// A call that carries this value as its sixth argument register passes every listener filter unseen: it is faultbox's own,
/// made by the child before exec or injected while arming. Random in its upper half, so that no program passes it by chance;
/// a multiple of 64 KiB, so that mmap takes it for an offset.
pub const EXEMPT: u64 = 0x5fb0_c3a1_7e29_0000;

/// What could bypass a filter on other calls, and is therefore refused with ENOSYS, as by a kernel without it: libraries then
/// fall back. Entry points of other architectures (int 0x80, x32) are refused beside these.
pub const BYPASSES: [&str; 3] = ["io_uring_setup", "io_uring_enter", "io_uring_register"];

/// A filter that notifies the listener of `numbers` and, where it must hold against them, refuses the [`BYPASSES`] by
/// itself; everything else passes. The kernel's per-call cache sees that calls not listed depend on nothing but their number,
/// and lets them pass without running the program.
///
/// # Errors
/// libseccomp refuses a number.
pub fn listener_program(numbers: &[i64], refuse_bypasses: bool) -> io::Result<Vec<sock_filter>> {
    compile(numbers, refuse_bypasses)
        .map_err(|e| io::Error::other(format!("libseccomp builds no filter: {e}")))
}

/// A filter that refuses the [`BYPASSES`], and traps nothing.
///
/// # Errors
/// As [`listener_program`].
pub fn static_program() -> io::Result<Vec<sock_filter>> {
    listener_program(&[], true)
}

/// Has libseccomp make the program, in its own memory: it goes to the kernel as bytes, by a forked child or by injection into
/// a running process, where no library call is possible.
fn compile(
    numbers: &[i64],
    refuse_bypasses: bool,
) -> Result<Vec<sock_filter>, Box<dyn std::error::Error>> {
    let refuse = ScmpAction::Errno(libc::ENOSYS);
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow)?;
    filter.set_act_badarch(if refuse_bypasses {
        refuse
    } else {
        ScmpAction::Allow
    })?;
    let mut refused = vec![];
    if refuse_bypasses {
        for name in BYPASSES {
            let call = ScmpSyscall::from_name(name)?;
            filter.add_rule(refuse, call)?;
            refused.push(i64::from(i32::from(call)));
        }
    }
    let not_ours = ScmpArgCompare::new(5, ScmpCompareOp::NotEqual, EXEMPT);
    for number in numbers.iter().filter(|n| !refused.contains(n)) {
        let call = ScmpSyscall::from(i32::try_from(*number)?);
        filter.add_rule_conditional(ScmpAction::Notify, call, &[not_ours])?;
    }
    // SAFETY: a constant name; the kernel returns a descriptor that nobody else owns, or -1.
    let mut file = unsafe {
        match libc::memfd_create(c"filter".as_ptr(), libc::MFD_CLOEXEC) {
            -1 => return Err(io::Error::last_os_error().into()),
            fd => File::from(OwnedFd::from_raw_fd(fd)),
        }
    };
    filter.export_bpf(&file)?;
    file.rewind()?;
    let mut bytes = vec![];
    file.read_to_end(&mut bytes)?;
    // struct sock_filter: code, jt, jf, k.
    Ok(bytes
        .chunks_exact(size_of::<sock_filter>())
        .map(|i| sock_filter {
            code: u16::from_ne_bytes([i[0], i[1]]),
            jt: i[2],
            jf: i[3],
            k: u32::from_ne_bytes([i[4], i[5], i[6], i[7]]),
        })
        .collect())
}

/// `struct sock_fprog` for a program that stands at `address` in the process that makes the call.
pub fn fprog(len: usize, address: u64) -> [u8; size_of::<sock_fprog>()] {
    let mut bytes = [0; size_of::<sock_fprog>()];
    bytes[..2].copy_from_slice(&(len as u16).to_ne_bytes());
    bytes[8..16].copy_from_slice(&address.to_ne_bytes());
    bytes
}

/// The program as the kernel reads it.
pub fn program_bytes(program: &[sock_filter]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for i in program {
        bytes.extend(i.code.to_ne_bytes());
        bytes.extend([i.jt, i.jf]);
        bytes.extend(i.k.to_ne_bytes());
    }
    bytes
}

/// Flag sets for installing a listener filter, best first; a kernel that lacks a flag answers EINVAL.
/// WAIT_KILLABLE_RECV (5.19) keeps signals from aborting a call under decision, TSYNC_ESRCH (5.7) makes TSYNC and
/// NEW_LISTENER combine.
pub const LISTENER_FLAGS: [u64; 2] = [
    libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
        | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH
        | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH,
];

/// A trapped call.
#[derive(Debug, Clone, Copy)]
pub struct Notification {
    /// Names the call in [`Listener::send`].
    pub id: u64,
    /// The calling thread.
    pub tid: i32,
    /// The system call's number.
    pub nr: i64,
    /// Its arguments.
    pub args: [u64; 6],
}

/// What becomes of a trapped call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It runs.
    Continue,
    /// It fails with this positive errno.
    Fail(i32),
    /// It is made again from the start. Only for a thread on which a ptrace interrupt is pending: otherwise the program
    /// would see the kernel's internal -ERESTARTNOINTR.
    Restart,
}

/// -ERESTARTNOINTR (include/linux/errno.h): "restart the call, whatever signals come".
const ERESTARTNOINTR: i32 = 513;

/// SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (6.6): hand the CPU over instead of waking another one.
pub(super) const SYNC_WAKE_UP: u64 = 1;
/// SECCOMP_IOCTL_NOTIF_SET_FLAGS = SECCOMP_IOW(4, __u64).
pub(super) const NOTIF_SET_FLAGS: libc::Ioctl = 0x4008_2104;
/// SECCOMP_IOCTL_NOTIF_ID_VALID = SECCOMP_IOW(2, __u64), which early headers call IOR; kernels take both.
const NOTIF_ID_VALID: libc::Ioctl = 0x4008_2102;

/// The supervising end of a listener filter.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    sync_wake_up: bool,
}

/// `struct seccomp_notif` with room for what later kernels add to it.
#[repr(C, align(8))]
struct NotifBuffer([u8; 256]);

impl Listener {
    /// Takes over the listener.
    pub fn new(fd: OwnedFd) -> Listener {
        // SAFETY: the ioctl takes its argument by value. A kernel that does not know it answers an error and changes nothing.
        let sync_wake_up =
            unsafe { libc::ioctl(fd.as_raw_fd(), NOTIF_SET_FLAGS, SYNC_WAKE_UP) } == 0;
        Listener { fd, sync_wake_up }
    }

    /// Does the kernel switch to the supervisor directly?
    pub fn sync_wake_up(&self) -> bool {
        self.sync_wake_up
    }

    /// Takes the next trapped call; `None` if it went away meanwhile (its thread was killed or interrupted). Blocks unless
    /// poll(2) has said that there is one.
    ///
    /// # Errors
    /// What the kernel says, EINTR retried.
    pub fn recv(&self) -> io::Result<Option<Notification>> {
        let mut buffer = NotifBuffer([0; 256]);
        loop {
            // SAFETY: the buffer is writable, zeroed as the kernel demands, and larger than any known struct seccomp_notif.
            let rc = unsafe {
                libc::ioctl(
                    self.fd.as_raw_fd(),
                    libc::SECCOMP_IOCTL_NOTIF_RECV,
                    buffer.0.as_mut_ptr(),
                )
            };
            if rc == 0 {
                break;
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => buffer.0.fill(0),
                Some(libc::ENOENT) => return Ok(None),
                _ => return Err(error),
            }
        }
        let word =
            |at: usize| u64::from_ne_bytes(buffer.0[at..at + 8].try_into().expect("8 bytes"));
        let half =
            |at: usize| i32::from_ne_bytes(buffer.0[at..at + 4].try_into().expect("4 bytes"));
        // id, pid, flags, then struct seccomp_data: nr, arch, instruction_pointer, args[6].
        Ok(Some(Notification {
            id: word(0),
            tid: half(8),
            nr: i64::from(half(16)),
            args: std::array::from_fn(|i| word(32 + i * 8)),
        }))
    }

    /// Answers a call; `false` if it went away meanwhile.
    ///
    /// # Errors
    /// What the kernel says, EINTR retried.
    pub fn send(&self, id: u64, answer: Answer) -> io::Result<bool> {
        let (error, flags) = match answer {
            Answer::Continue => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
            Answer::Fail(errno) => (-errno, 0),
            Answer::Restart => (-ERESTARTNOINTR, 0),
        };
        let mut response = libc::seccomp_notif_resp {
            id,
            val: 0,
            error,
            flags,
        };
        loop {
            // SAFETY: `response` is a complete struct seccomp_notif_resp.
            let rc = unsafe {
                libc::ioctl(
                    self.fd.as_raw_fd(),
                    libc::SECCOMP_IOCTL_NOTIF_SEND,
                    &raw mut response,
                )
            };
            if rc == 0 {
                return Ok(true);
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::ENOENT) => return Ok(false),
                _ => return Err(error),
            }
        }
    }

    /// Is the call still waiting? To be asked after each look at its process: a number may have passed to another one.
    pub fn id_valid(&self, id: u64) -> bool {
        // SAFETY: the kernel reads eight bytes.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), NOTIF_ID_VALID, &raw const id) == 0 }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Installs `program` on the calling thread; with a listener flag the result is its descriptor.
///
/// # Errors
/// What the kernel says.
pub fn install_here(program: &[sock_filter], flags: u64) -> io::Result<Option<OwnedFd>> {
    let fprog = sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the program outlives the call, which only reads it.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const fprog,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: with NEW_LISTENER a successful call returns a descriptor that nobody else owns.
    Ok((flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0)
        .then(|| unsafe { OwnedFd::from_raw_fd(rc as i32) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AUDIT_ARCH_* of this architecture and of one that a program could switch to (include/uapi/linux/audit.h).
    #[cfg(target_arch = "x86_64")]
    const ARCHES: [u32; 2] = [0xc000_003e, 0x4000_0003];
    #[cfg(target_arch = "aarch64")]
    const ARCHES: [u32; 2] = [0xc000_00b7, 0x4000_0028];

    const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

    /// Runs a program as the kernel would.
    fn run(program: &[sock_filter], nr: u32, arch: u32, arg5: u64) -> u32 {
        let (mut pc, mut a) = (0usize, 0u32);
        loop {
            let i = program[pc];
            pc += 1;
            let mut jump = |holds| pc += usize::from(if holds { i.jt } else { i.jf });
            match u32::from(i.code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    // Offsets in struct seccomp_data.
                    a = match i.k {
                        0 => nr,
                        4 => arch,
                        56 => arg5 as u32,
                        60 => (arg5 >> 32) as u32,
                        other => panic!("loads from {other}"),
                    }
                }
                code if code == libc::BPF_JMP | libc::BPF_JEQ => jump(a == i.k),
                code if code == libc::BPF_JMP | libc::BPF_JGE => jump(a >= i.k),
                code if code == libc::BPF_JMP | libc::BPF_JGT => jump(a > i.k),
                code if code == libc::BPF_JMP | libc::BPF_JA => pc += i.k as usize,
                code if code == libc::BPF_RET => return i.k,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn a_listener_program_traps_what_it_lists_and_nothing_else() {
        let [native, foreign] = ARCHES;
        let uring = [425, 426, 427];
        for count in [0usize, 1, 2, 5, 255, 256, 400] {
            let numbers: Vec<i64> = (0..count as i64).map(|n| n * 2).collect();
            for refuse in [false, true] {
                let program = listener_program(&numbers, refuse).unwrap();
                assert!(program.len() < 4096, "{count}: {}", program.len());
                for nr in 0..900u32 {
                    let refused = refuse && uring.contains(&nr);
                    let passes = if refused {
                        REFUSE
                    } else {
                        libc::SECCOMP_RET_ALLOW
                    };
                    let want = if numbers.contains(&i64::from(nr)) && !refused {
                        libc::SECCOMP_RET_USER_NOTIF
                    } else {
                        passes
                    };
                    let of = |arch, arg5| run(&program, nr, arch, arg5);
                    assert_eq!(of(native, 0), want, "{count} {nr}");
                    assert_eq!(of(native, EXEMPT & 0xffff_ffff_0000_0000), want);
                    assert_eq!(of(native, EXEMPT | 1), want);
                    assert_eq!(of(native, EXEMPT), passes);
                    let other = if refuse {
                        REFUSE
                    } else {
                        libc::SECCOMP_RET_ALLOW
                    };
                    assert_eq!(of(foreign, 0), other);
                    #[cfg(target_arch = "x86_64")]
                    assert_eq!(run(&program, nr | 0x4000_0000, native, 0), other);
                }
                // What a tracer makes of a call that it cancels.
                assert_eq!(run(&program, u32::MAX, native, 0), libc::SECCOMP_RET_ALLOW);
            }
        }
    }

    #[test]
    fn the_static_program_refuses_what_would_bypass_the_others() {
        let program = static_program().unwrap();
        for name in BYPASSES {
            let number = i32::from(ScmpSyscall::from_name(name).unwrap()) as u32;
            assert_eq!(run(&program, number, ARCHES[0], 0), REFUSE);
        }
        assert_eq!(run(&program, 1, ARCHES[1], 0), REFUSE);
        assert_eq!(run(&program, 1, ARCHES[0], 0), libc::SECCOMP_RET_ALLOW);
    }
}
