//! Stopping threads of other processes, and making them call the kernel (ptrace(2)).
//!
//! Stops are recognised by their siginfo, not by wait(2): the run may be waiting for the same children in other threads, and
//! neither must take the other's news.

use std::io;
use std::time::{Duration, Instant};

use super::seccomp::EXEMPT;
use super::{hurry, memory, procfs};

/// Why a traced thread stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// At our request, or with its process stopped by a stop signal: on its way back to user space, where it may be
    /// detached or made to call the kernel.
    Trap,
    /// It has created a thread or process, which is traced from its first instruction on.
    Spawned(i32),
    /// At a system call's entry or exit.
    Syscall,
    /// A signal is about to be delivered.
    Signal(i32),
}

fn ptrace(request: u32, tid: i32, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: every caller passes pointers that are valid for what `request` does with them, or plain values. glibc declares
    // ptrace variadic with pointer-sized arguments.
    let rc = unsafe {
        libc::ptrace(
            request as _,
            tid,
            address as *mut libc::c_void,
            data as *mut libc::c_void,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Begins to trace thread `tid` without stopping it; what it creates is traced from the start.
/// Everything traced is let go when the calling thread ends.
///
/// # Errors
/// EPERM if it is traced already, dead, or not ours to trace; ESRCH.
pub fn seize(tid: i32) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE;
    ptrace(libc::PTRACE_SEIZE, tid, 0, options as usize)
}

/// Asks a seized thread to stop.
///
/// # Errors
/// ESRCH if it is gone.
pub fn interrupt(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// Why `tid` stands still; `None` if it runs, sleeps in the kernel, or is gone.
pub fn stop(tid: i32) -> Option<Stop> {
    // SAFETY: all-zero bytes are a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    ptrace(libc::PTRACE_GETSIGINFO, tid, 0, &raw mut info as usize).ok()?;
    Some(match info.si_code >> 8 {
        libc::PTRACE_EVENT_STOP => Stop::Trap,
        libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE
            if info.si_signo == libc::SIGTRAP =>
        {
            let mut child: libc::c_ulong = 0;
            ptrace(libc::PTRACE_GETEVENTMSG, tid, 0, &raw mut child as usize).ok()?;
            Stop::Spawned(child as i32)
        }
        _ if info.si_signo == libc::SIGTRAP && info.si_code == libc::SIGTRAP | 0x80 => {
            Stop::Syscall
        }
        _ => Stop::Signal(info.si_signo),
    })
}

/// Lets a stopped thread go on, delivering `signal` unless 0.
///
/// # Errors
/// ESRCH if it is gone or not stopped.
pub fn resume(tid: i32, signal: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_CONT, tid, 0, signal as usize)
}

/// Lets a thread that stands at another stop go on to [`Stop::Trap`]. The kernel forgets a pending [`interrupt`] at any stop,
/// so one that came just before this stop has to be asked for again, or the thread would run on for ever.
///
/// # Errors
/// ESRCH if it is gone or not stopped.
pub fn resume_to_trap(tid: i32, signal: i32) -> io::Result<()> {
    interrupt(tid)?;
    resume(tid, signal)
}

/// Lets a stopped thread go for good. One whose process a stop signal has stopped stays stopped.
///
/// # Errors
/// ESRCH if it is gone or not stopped.
pub fn detach(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_DETACH, tid, 0, 0)
}

/// Undoes what the stop itself has done to a call that the kernel never restarts (epoll_wait, a socket with a timeout:
/// signal(7)): it would return EINTR although no signal came. The thread must be in [`Stop::Trap`], having just stopped.
///
/// # Errors
/// ESRCH if the thread is gone.
pub fn hide_interruption(tid: i32) -> io::Result<()> {
    let mut registers = registers(tid)?;
    if machine::was_interrupted(&registers)
        && machine::after_syscall(&registers).is_some_and(|after| at_instruction(tid, after))
        // Where a handler is about to run, EINTR is what the program is owed.
        && !procfs::signal_pending(tid)
    {
        machine::restart(&mut registers);
        set_registers(tid, &registers)?;
    }
    Ok(())
}

type Registers = libc::user_regs_struct;

fn registers(tid: i32) -> io::Result<Registers> {
    // SAFETY: all-zero bytes are a valid register set.
    let mut registers: Registers = unsafe { std::mem::zeroed() };
    let mut iov = libc::iovec {
        iov_base: (&raw mut registers).cast(),
        iov_len: size_of::<Registers>(),
    };
    ptrace(
        libc::PTRACE_GETREGSET,
        tid,
        libc::NT_PRSTATUS as usize,
        &raw mut iov as usize,
    )?;
    Ok(registers)
}

fn set_registers(tid: i32, registers: &Registers) -> io::Result<()> {
    let mut iov = libc::iovec {
        iov_base: std::ptr::from_ref(registers).cast_mut().cast(),
        iov_len: size_of::<Registers>(),
    };
    ptrace(
        libc::PTRACE_SETREGSET,
        tid,
        libc::NT_PRSTATUS as usize,
        &raw mut iov as usize,
    )
}

/// The machine's side of a system call.
#[cfg(target_arch = "x86_64")]
mod machine {
    use super::Registers;

    /// `syscall`
    pub(super) const INSTRUCTION: &[u8] = &[0x0f, 0x05];

    /// Where the thread's last instruction was a system call: the address after it.
    pub(super) fn after_syscall(r: &Registers) -> Option<u64> {
        ((r.orig_rax as i64) >= 0).then_some(r.rip)
    }

    pub(super) fn prepare(saved: &Registers, site: u64, nr: i64, args: &[u64; 6]) -> Registers {
        let mut r = *saved;
        r.rip = site;
        r.rax = nr as u64;
        // No call is in progress, so the kernel has none to restart on the way out.
        r.orig_rax = u64::MAX;
        (r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9) =
            (args[0], args[1], args[2], args[3], args[4], args[5]);
        r
    }

    pub(super) fn result(r: &Registers) -> i64 {
        r.rax as i64
    }

    /// The call that the kernel will make again: its number and arguments. ERESTARTSYS to ERESTART_RESTARTBLOCK (include/linux/errno.h).
    pub(super) fn interrupted(r: &Registers) -> Option<(i64, [u64; 6])> {
        let again = r.orig_rax as i64 >= 0 && (-516..=-512).contains(&(r.rax as i64));
        again.then_some((r.orig_rax as i64, [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9]))
    }

    /// Has a call just ended with EINTR?
    pub(super) fn was_interrupted(r: &Registers) -> bool {
        r.orig_rax as i64 >= 0 && r.rax as i64 == i64::from(-libc::EINTR)
    }

    /// -ERESTARTNOINTR: the kernel makes the call again on the way out.
    pub(super) fn restart(r: &mut Registers) {
        r.rax = -513i64 as u64;
    }
}

/// The machine's side of a system call.
#[cfg(target_arch = "aarch64")]
mod machine {
    use super::Registers;

    /// `svc #0`
    pub(super) const INSTRUCTION: &[u8] = &[0x01, 0x00, 0x00, 0xd4];

    /// The kernel rewinds the program counter before the stop, so that it stands on the call itself when one is restarted.
    pub(super) fn after_syscall(r: &Registers) -> Option<u64> {
        Some(r.pc + 4)
    }

    pub(super) fn prepare(saved: &Registers, site: u64, nr: i64, args: &[u64; 6]) -> Registers {
        let mut r = *saved;
        r.pc = site;
        r.regs[8] = nr as u64;
        r.regs[..6].copy_from_slice(args);
        r
    }

    pub(super) fn result(r: &Registers) -> i64 {
        r.regs[0] as i64
    }

    /// The call that it stands at: one that was interrupted, as a thread hardly ever stops just before one by chance.
    pub(super) fn interrupted(r: &Registers) -> Option<(i64, [u64; 6])> {
        let mut args = [0; 6];
        args.copy_from_slice(&r.regs[..6]);
        Some((r.regs[8] as i64, args))
    }

    /// The first argument has given way to the result, so the call cannot be made again from here; the program sees EINTR,
    /// as after any stop signal.
    pub(super) fn was_interrupted(_: &Registers) -> bool {
        false
    }

    pub(super) fn restart(_: &mut Registers) {}
}

/// Does the thread, which must be stopped, stand at a system call that it will go on with?
pub fn in_syscall(tid: i32) -> bool {
    let Ok(registers) = registers(tid) else {
        return false;
    };
    machine::after_syscall(&registers).is_some_and(|after| at_instruction(tid, after))
}

/// The call that the thread, which must be stopped, was interrupted in and makes again: its number and arguments.
pub fn interrupted_call(tid: i32) -> Option<(i64, [u64; 6])> {
    let registers = registers(tid).ok()?;
    let call = machine::interrupted(&registers)?;
    let after = machine::after_syscall(&registers)?;
    at_instruction(tid, after).then_some(call)
}

fn at_instruction(tid: i32, after: u64) -> bool {
    let len = machine::INSTRUCTION.len();
    let mut bytes = [0u8; 4];
    memory::read_exact(tid, after.wrapping_sub(len as u64), &mut bytes[..len]).is_ok()
        && &bytes[..len] == machine::INSTRUCTION
}

/// The address of a system call instruction in process `pid`: in its vDSO, which every program has, static or not.
///
/// # Errors
/// Not found, or the process is gone.
pub fn syscall_site(pid: i32) -> io::Result<u64> {
    let find = |start: u64, len: usize| {
        let mut code = vec![0; len];
        let n = memory::read(pid, start, &mut code).ok()?;
        let step = if cfg!(target_arch = "aarch64") { 4 } else { 1 };
        (0..n.saturating_sub(machine::INSTRUCTION.len() - 1))
            .step_by(step)
            .find(|at| code[*at..].starts_with(machine::INSTRUCTION))
            .map(|at| start + at as u64)
    };
    if let Ok(vdso) = procfs::vdso(pid)
        && let Some(site) = find(vdso, 8192)
    {
        return Ok(site);
    }
    procfs::executable_maps(pid)?
        .into_iter()
        // The largest text segments end within this; a page would do for most.
        .find_map(|(start, len)| find(start, len.min(64 << 20) as usize))
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

/// How long an injected call may take. None of those made here sleeps, so this is for a thread that gets no CPU.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// A stopped thread that is made to call the kernel, and is put back as it was at the end.
///
/// Its signals stay blocked meanwhile (the mask is the tracer's to set), so that no handler runs on borrowed registers.
#[derive(Debug)]
pub struct Injection {
    tid: i32,
    site: u64,
    saved: Registers,
    mask: u64,
    /// Its nice value, if that was raised: everything else in its process waits for it.
    nice: Option<i32>,
}

impl Injection {
    /// Borrows thread `tid`, which must be in [`Stop::Trap`]; `site` is [`syscall_site`].
    ///
    /// # Errors
    /// ESRCH if the thread is gone.
    pub fn begin(tid: i32, site: u64) -> io::Result<Injection> {
        let saved = registers(tid)?;
        let mut mask = 0u64;
        ptrace(
            libc::PTRACE_GETSIGMASK,
            tid,
            size_of::<u64>(),
            &raw mut mask as usize,
        )?;
        let all = u64::MAX;
        ptrace(
            libc::PTRACE_SETSIGMASK,
            tid,
            size_of::<u64>(),
            &raw const all as usize,
        )?;
        Ok(Injection {
            tid,
            site,
            saved,
            mask,
            nice: hurry::raise(tid),
        })
    }

    /// Makes one call, exempt from listener filters, and returns what the kernel returned (a negative errno on failure).
    ///
    /// # Errors
    /// The thread is gone or does not come back.
    pub fn call(&mut self, nr: i64, args: [u64; 5]) -> io::Result<i64> {
        let args = [args[0], args[1], args[2], args[3], args[4], EXEMPT];
        set_registers(
            self.tid,
            &machine::prepare(&self.saved, self.site, nr, &args),
        )?;
        self.run_to_syscall_stop()?; // entry
        self.run_to_syscall_stop()?; // exit
        Ok(machine::result(&registers(self.tid)?))
    }

    /// Puts the thread back as it was, in [`Stop::Trap`].
    ///
    /// # Errors
    /// The thread is gone or does not come back.
    pub fn end(self) -> io::Result<()> {
        // Only a trap on the way to user space is followed by the kernel's restart logic, which a call interrupted by our
        // first stop still waits for. It must stand there, not at the injected call's exit, when its registers return.
        resume_to_trap(self.tid, 0)?;
        loop {
            match self.wait()? {
                Stop::Trap => break,
                Stop::Signal(signal) => resume_to_trap(self.tid, signal)?,
                Stop::Spawned(_) | Stop::Syscall => resume_to_trap(self.tid, 0)?,
            }
        }
        if let Some(nice) = self.nice {
            hurry::restore(self.tid, nice);
        }
        set_registers(self.tid, &self.saved)?;
        ptrace(
            libc::PTRACE_SETSIGMASK,
            self.tid,
            size_of::<u64>(),
            &raw const self.mask as usize,
        )
    }

    fn run_to_syscall_stop(&self) -> io::Result<()> {
        let go = |signal: i32| ptrace(libc::PTRACE_SYSCALL, self.tid, 0, signal as usize);
        go(0)?;
        loop {
            match self.wait()? {
                Stop::Syscall => return Ok(()),
                // SIGSTOP cannot be blocked; delivering it makes a group stop, which outlasts the injection.
                Stop::Signal(signal) => go(signal)?,
                Stop::Trap | Stop::Spawned(_) => go(0)?,
            }
        }
    }

    fn wait(&self) -> io::Result<Stop> {
        let deadline = Instant::now() + CALL_DEADLINE;
        for round in 1u32.. {
            if let Some(stop) = stop(self.tid) {
                return Ok(stop);
            }
            if round.is_multiple_of(64) && procfs::is_dead(self.tid) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            if Instant::now() > deadline {
                return Err(io::Error::from(io::ErrorKind::TimedOut));
            }
            pause();
        }
        Err(io::Error::from(io::ErrorKind::TimedOut))
    }
}

/// Gives the traced thread time to reach its next stop.
pub fn pause() {
    std::thread::sleep(Duration::from_micros(10));
}
