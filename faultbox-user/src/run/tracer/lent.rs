//! Programs at system calls that the runner has loaded and the worker attaches and detaches, to see what they cost.

use std::ffi::CString;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use crate::sys::{inherit, tracepoint};

/// Programs, by their tracepoints if that is where they go, and what keeps them attached.
#[derive(Default)]
pub(super) struct Lent {
    programs: Vec<(Option<CString>, OwnedFd)>,
    attached: Mutex<Vec<OwnedFd>>,
}

impl Lent {
    /// Takes over what the runner has left open.
    pub(super) fn take(programs: &[(Option<String>, RawFd)]) -> Result<Lent, String> {
        let one = |(name, fd): &(Option<String>, RawFd)| {
            let fd = inherit::take(*fd).map_err(|e| format!("a program of {name:?}: {e}"))?;
            let name = name.as_deref().map(CString::new).transpose();
            Ok((name.map_err(|e| e.to_string())?, fd))
        };
        Ok(Lent {
            programs: programs.iter().map(one).collect::<Result<_, String>>()?,
            attached: Mutex::default(),
        })
    }

    /// Attaches all of them, or detaches them. The kernel detaches a program when its link is closed.
    pub(super) fn attach(&self, on: bool) -> Result<(), String> {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        match (on, attached.is_empty()) {
            (true, true) => {
                let one = |(name, program): &(Option<CString>, OwnedFd)| {
                    tracepoint::attach(name.as_deref(), program)
                        .map_err(|e| format!("the tracing of system calls: {e}"))
                };
                *attached = self.programs.iter().map(one).collect::<Result<_, _>>()?;
            }
            (true, false) => {}
            (false, _) => attached.clear(),
        }
        Ok(())
    }
}
