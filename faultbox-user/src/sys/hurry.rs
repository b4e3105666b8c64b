//! Getting a CPU at once, for moments in which others wait for us.

use std::marker::PhantomData;

use super::wake;

/// While it lives, the calling thread goes before all ordinary ones, and so does every thread that it starts (sched(7), SCHED_FIFO): a
/// thread that is new, or that was waited for, else gets a CPU only when its turn comes, among fifty busy ones after tens of
/// milliseconds. Where that is not allowed, it has the highest priority among ordinary ones; where that is not, either, this changes
/// nothing. For threads that sleep, and work only while somebody waits or just has.
#[derive(Debug)]
pub struct Hurry {
    before: Option<Before>,
    /// It is about the thread that made it.
    _here: PhantomData<*const ()>,
}

/// What the thread had.
#[derive(Debug)]
enum Before {
    /// A policy and its parameter.
    Policy(i32, libc::sched_param),
    /// A nice value.
    Nice(i32),
}

impl Hurry {
    /// Begins.
    pub fn begin() -> Hurry {
        Hurry {
            before: go_first().or_else(|| raise(wake::this_thread()).map(Before::Nice)),
            _here: PhantomData,
        }
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        match &self.before {
            // SAFETY: thread id 0 is the calling thread; the pointer is to a value that lives through the call. Giving priority up is
            // always allowed.
            Some(Before::Policy(policy, param)) => unsafe {
                libc::sched_setscheduler(0, *policy, param);
            },
            Some(Before::Nice(nice)) => restore(wake::this_thread(), *nice),
            None => {}
        }
    }
}

fn go_first() -> Option<Before> {
    // SAFETY: thread id 0 is the calling thread; the pointers are to values that live through the calls, and all-zero bytes are a valid
    // parameter.
    unsafe {
        let policy = libc::sched_getscheduler(0);
        let mut param: libc::sched_param = std::mem::zeroed();
        let known = policy >= 0 && libc::sched_getparam(0, &raw mut param) == 0;
        let mut first: libc::sched_param = std::mem::zeroed();
        first.sched_priority = 1;
        (known && libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) == 0)
            .then_some(Before::Policy(policy, param))
    }
}

/// Gives a thread the highest priority among ordinary ones, and returns the nice value that it had. None where that is refused, or nothing
/// to change.
pub fn raise(tid: i32) -> Option<i32> {
    let tid = tid as libc::id_t;
    // SAFETY: both take values only; errno tells a nice value of -1 from an error.
    unsafe {
        *libc::__errno_location() = 0;
        let nice = libc::getpriority(libc::PRIO_PROCESS, tid);
        if *libc::__errno_location() != 0 || nice == -20 {
            return None;
        }
        (libc::setpriority(libc::PRIO_PROCESS, tid, -20) == 0).then_some(nice)
    }
}

/// Takes that back.
pub fn restore(tid: i32, nice: i32) {
    // SAFETY: takes values only.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, tid as libc::id_t, nice) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> i32 {
        // SAFETY: takes a value only.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn it_is_over_when_it_is_over() {
        let before = policy();
        let hurry = Hurry::begin();
        let inherited = std::thread::spawn(policy).join().unwrap();
        assert_eq!(inherited, policy());
        let allowed = matches!(hurry.before, Some(Before::Policy(..)));
        assert_eq!(
            policy() == libc::SCHED_FIFO,
            allowed || before == libc::SCHED_FIFO
        );
        drop(hurry);
        assert_eq!(policy(), before);
    }
}
