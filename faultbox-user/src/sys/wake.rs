//! Waiting for listeners, commands and the clock at once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// An event counter that wakes a thread out of [`poll`] (eventfd(2)).
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// A fresh one.
    ///
    /// # Errors
    /// What the kernel says: too many descriptors.
    pub fn new() -> io::Result<Waker> {
        // SAFETY: plain values.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this descriptor.
        Ok(Waker(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Wakes the thread that polls.
    pub fn wake(&self) {
        let one = 1u64;
        // SAFETY: eight bytes, as eventfd demands. It can only fail when it is set already.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Makes it quiet again.
    pub fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: eight bytes, as eventfd demands; non-blocking.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The descriptors to wait for, kept between waits.
#[derive(Debug, Default)]
pub struct PollSet(Vec<libc::pollfd>);

impl PollSet {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds one; its index is the number of those added before. The caller keeps it open until the next `clear`.
    pub fn push(&mut self, fd: BorrowedFd<'_>) {
        self.0.push(libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        });
    }

    /// Waits until one is ready, or for `timeout` (`None`: without limit), to the nanosecond (ppoll(2)). A signal ends the wait early.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(|t| libc::timespec {
            tv_sec: t.as_secs() as libc::time_t,
            tv_nsec: t.subsec_nanos().into(),
        });
        let pointer = timeout
            .as_ref()
            .map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the array, its length and the timeout are valid; no mask is given.
        let rc = unsafe {
            libc::ppoll(
                self.0.as_mut_ptr(),
                self.0.len() as libc::nfds_t,
                pointer,
                std::ptr::null(),
            )
        };
        if rc >= 0 {
            return Ok(());
        }
        for fd in &mut self.0 {
            fd.revents = 0;
        }
        match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            e => Err(e),
        }
    }

    /// Is there something to read from the descriptor at `index`?
    pub fn readable(&self, index: usize) -> bool {
        self.0[index].revents & libc::POLLIN != 0
    }

    /// Is its other end gone?
    pub fn hung_up(&self, index: usize) -> bool {
        self.0[index].revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0
    }
}

/// Makes the calling thread's timers exact: without this each may be 50 µs late (PR_SET_TIMERSLACK).
pub fn exact_timers() {
    // SAFETY: plain values.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1, 0, 0, 0) };
}

/// The calling thread's id.
pub fn this_thread() -> i32 {
    // SAFETY: takes nothing.
    unsafe { libc::gettid() }
}
