//! Attaching a loaded program to a tracepoint, or to the function that it was loaded for: BPF_RAW_TRACEPOINT_OPEN of bpf(2).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

const RAW_TRACEPOINT_OPEN: libc::c_int = 17;

/// The part of `union bpf_attr` that the command reads.
#[repr(C)]
struct Attr {
    name: u64,
    program: u32,
    padding: u32,
}

/// Runs `program` at every passage of a raw tracepoint of the machine, or without a name of its own function, for as long as what is returned is open.
///
/// # Errors
/// What bpf(2) says.
pub fn attach(name: Option<&CStr>, program: &impl AsFd) -> io::Result<OwnedFd> {
    let attr = Attr {
        name: name.map_or(0, |name| name.as_ptr() as u64),
        program: program.as_fd().as_raw_fd() as u32,
        padding: 0,
    };
    // SAFETY: the kernel reads as many bytes of `attr` as it is told, and the name that it points to up to its NUL; both outlive the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            RAW_TRACEPOINT_OPEN,
            &raw const attr,
            size_of::<Attr>(),
        )
    };
    match libc::c_int::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us (close-on-exec, as all of bpf(2)'s are).
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_program_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = attach(Some(c"sys_enter"), &file).unwrap_err();
        let expected = [libc::EBADF, libc::EINVAL, libc::EPERM, libc::ENOSYS];
        assert!(
            error.raw_os_error().is_some_and(|e| expected.contains(&e)),
            "{error}"
        );
    }
}
