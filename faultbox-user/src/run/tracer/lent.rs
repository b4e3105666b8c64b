//! Programs of tracepoints that the runner has loaded and the worker attaches and detaches, to see what they cost.

use std::ffi::CString;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use crate::sys::{inherit, tracepoint};

/// Programs by their tracepoints, and what keeps them attached.
#[derive(Default)]
pub(super) struct Lent {
    programs: Vec<(CString, OwnedFd)>,
    attached: Mutex<Vec<OwnedFd>>,
}

impl Lent {
    /// Takes over what the runner has left open.
    pub(super) fn take(programs: &[(String, RawFd)]) -> Result<Lent, String> {
        let one = |(name, fd): &(String, RawFd)| {
            let fd = inherit::take(*fd).map_err(|e| format!("program at `{name}`: {e}"))?;
            let name = CString::new(name.as_str()).map_err(|e| e.to_string())?;
            Ok((name, fd))
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
                let one = |(name, program): &(CString, OwnedFd)| {
                    tracepoint::attach(name, program)
                        .map_err(|e| format!("tracepoint {}: {e}", name.to_string_lossy()))
                };
                *attached = self.programs.iter().map(one).collect::<Result<_, _>>()?;
            }
            (true, false) => {}
            (false, _) => attached.clear(),
        }
        Ok(())
    }
}
