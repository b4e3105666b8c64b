//! Signals as bytes in a pipe, so that ordinary code can wait for them.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Where the handler writes; -1 while there is no [`Signals`].
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// While it lives, the chosen signals do not kill this process but arrive at [`reader`](Signals::reader).
#[derive(Debug)]
pub struct Signals {
    before: Vec<(Signal, SigAction)>,
    reader: OwnedFd,
    _writer: OwnedFd,
}

/// A signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// Which.
    pub signal: Signal,
    /// Did the terminal send it, to all in the foreground, and not somebody to this process?
    pub from_terminal: bool,
}

/// In a byte, beside the signal's number: the kernel sent it (SI_KERNEL), which for SIGINT means the terminal.
const BY_KERNEL: u8 = 0x80;

extern "C" fn on_signal(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // Only what signal-safety(7) allows: an atomic load and write(2), with errno put back.
    let errno = Errno::last_raw();
    // SAFETY: SA_SIGINFO was asked for, so the kernel hands in a siginfo for the length of the call.
    let by_kernel = unsafe { (*info).si_code } == libc::SI_KERNEL;
    let byte = [signal as u8 | if by_kernel { BY_KERNEL } else { 0 }];
    // SAFETY: the buffer lives on this stack for the whole call. The descriptor is -1 (EBADF) or the pipe's: `drop` puts the handlers
    // back before it closes the pipe.
    unsafe { libc::write(PIPE.load(Ordering::Relaxed), byte.as_ptr().cast(), 1) };
    Errno::set_raw(errno);
}

impl Signals {
    /// Takes the signals over. One at a time per process.
    ///
    /// # Errors
    /// There is one already, or no descriptor is left.
    pub fn install(signals: &[Signal]) -> io::Result<Signals> {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        // A handler must never block, however many signals come.
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        PIPE.compare_exchange(-1, writer.as_raw_fd(), Ordering::SeqCst, Ordering::SeqCst)
            .map_err(|_| io::Error::other("signals are taken over already"))?;
        let mut taken = Signals {
            before: vec![],
            reader,
            _writer: writer,
        };
        let action = SigAction::new(
            SigHandler::SigAction(on_signal),
            SaFlags::SA_RESTART | SaFlags::SA_SIGINFO,
            SigSet::empty(),
        );
        for signal in signals {
            // SAFETY: `on_signal` is async-signal-safe, as argued there.
            let before = unsafe { sigaction(*signal, &action) }?;
            taken.before.push((*signal, before));
        }
        Ok(taken)
    }

    /// Tells each signal on a thread of its own, until `told` has enough (says false) or the signals are given back.
    ///
    /// # Errors
    /// No descriptor or thread is left.
    pub fn follow(&self, mut told: impl FnMut(Arrived) -> bool + Send + 'static) -> io::Result<()> {
        let mut reader = self.reader()?;
        let listen = move || {
            let mut byte = [0];
            while matches!(reader.read(&mut byte), Ok(1)) {
                // What was installed as a signal comes back as one.
                let Ok(signal) = Signal::try_from(i32::from(byte[0] & !BY_KERNEL)) else {
                    continue;
                };
                let from_terminal = byte[0] & BY_KERNEL != 0;
                let arrived = Arrived {
                    signal,
                    from_terminal,
                };
                if !told(arrived) {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(listen)
            .map(|_| ())
    }

    /// One byte per signal; ends when the signals are given back.
    ///
    /// # Errors
    /// No descriptor is left.
    fn reader(&self) -> io::Result<File> {
        Ok(self.reader.try_clone()?.into())
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for (signal, before) in &self.before {
            // SAFETY: the action was in force before, so its handler is as valid as it was then.
            let _ = unsafe { sigaction(*signal, before) };
        }
        PIPE.store(-1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn signals_arrive_as_bytes() {
        let signals = Signals::install(&[Signal::SIGWINCH]).unwrap();
        assert!(Signals::install(&[]).is_err());
        let mut reader = signals.reader().unwrap();
        nix::sys::signal::raise(Signal::SIGWINCH).unwrap();
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        assert_eq!(i32::from(byte[0]), Signal::SIGWINCH as i32);
        drop(signals);
        assert_eq!(reader.read(&mut byte).unwrap(), 0);
    }
}
