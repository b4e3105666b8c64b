//! Descriptors that a child process is meant to have.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// Lets children that are started from now on inherit this descriptor, under the same number.
///
/// # Errors
/// What fcntl(2) says.
pub fn allow(fd: &impl AsFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

/// Takes over a descriptor that the parent process has left open for us, and keeps it from our own children.
///
/// # Errors
/// There is no such descriptor.
pub fn take(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: a plain number; the kernel tells whether it is a descriptor.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, as the call above has shown, and by the protocol between runner and worker nobody else in this process
    // knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn what_is_allowed_is_inherited_and_can_be_taken() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let read = |fd: RawFd| {
            std::process::Command::new("sh")
                .args(["-c", &format!("read line <&{fd} && echo $line")])
                .stderr(std::process::Stdio::null())
                .output()
                .unwrap()
                .stdout
        };
        let flag = |fd: &OwnedFd| fcntl(fd, FcntlArg::F_GETFD).unwrap();
        fcntl(&reader, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        nix::unistd::write(&writer, b"hello\n").unwrap();
        assert_eq!(read(reader.as_raw_fd()), b"");
        allow(&reader).unwrap();
        assert_eq!(read(reader.as_raw_fd()), b"hello\n");
        let taken = take(std::os::fd::IntoRawFd::into_raw_fd(reader)).unwrap();
        assert_eq!(flag(&taken), FdFlag::FD_CLOEXEC.bits());
    }

    #[test]
    fn what_is_not_there_cannot_be_taken() {
        for fd in [-1, 0, 2, 1_000_000] {
            assert_eq!(take(fd).unwrap_err().raw_os_error(), Some(libc::EBADF));
        }
    }
}
