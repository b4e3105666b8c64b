//! Other processes' memory (process_vm_readv(2)).

use std::io;

fn iovec(address: u64, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: len,
    }
}

/// Reads up to `buffer.len()` bytes at `address` of process `pid`; fewer where its mapping ends.
///
/// # Errors
/// EFAULT if nothing is mapped there, ESRCH, EPERM.
pub fn read(pid: i32, address: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let local = iovec(buffer.as_mut_ptr() as u64, buffer.len());
    let remote = iovec(address, buffer.len());
    // SAFETY: `local` covers exactly `buffer`; the remote address is checked by the kernel.
    let n = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(n as usize)
}

/// Reads exactly `buffer.len()` bytes.
///
/// # Errors
/// As [`read`]; a short read is EFAULT.
pub fn read_exact(pid: i32, address: u64, buffer: &mut [u8]) -> io::Result<()> {
    if read(pid, address, buffer)? == buffer.len() {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EFAULT))
    }
}

/// Writes all of `bytes` at `address` of process `pid`.
///
/// # Errors
/// EFAULT if that is not all mapped and writable, ESRCH, EPERM.
pub fn write_all(pid: i32, address: u64, bytes: &[u8]) -> io::Result<()> {
    let local = iovec(bytes.as_ptr() as u64, bytes.len());
    let remote = iovec(address, bytes.len());
    // SAFETY: `local` covers exactly `bytes` and is only read; the remote address is checked by the kernel.
    let n = unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
    match n {
        n if n < 0 => Err(io::Error::last_os_error()),
        n if n as usize == bytes.len() => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EFAULT)),
    }
}

/// The longest path the kernel takes, terminator included (PATH_MAX).
const PATH_MAX: usize = 4096;

/// Reads the path at `address` of process `pid`, without its terminator; `None` if it is not readable or too long.
/// Reads page by page, since a string may stand at the very end of a mapping.
pub fn read_path(pid: i32, address: u64) -> Option<Vec<u8>> {
    let mut path = Vec::new();
    while path.len() < PATH_MAX {
        let at = address.checked_add(path.len() as u64)?;
        let mut page = [0u8; 512];
        // 512 divides every page size, so that a chunk which ends on its multiple never straddles two pages.
        let room = 512 - (at % 512) as usize;
        read_exact(pid, at, &mut page[..room]).ok()?;
        if let Some(end) = page[..room].iter().position(|b| *b == 0) {
            path.extend_from_slice(&page[..end]);
            return Some(path);
        }
        path.extend_from_slice(&page[..room]);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_itself() {
        let pid = std::process::id() as i32;
        let mut target = *b"hello\0world";
        write_all(pid, target.as_mut_ptr() as u64, b"jello").unwrap();
        assert_eq!(
            read_path(pid, std::hint::black_box(&target).as_ptr() as u64).unwrap(),
            b"jello"
        );
        assert!(read_path(pid, 8).is_none());
        let long = vec![b'x'; 5000];
        assert!(read_path(pid, long.as_ptr() as u64).is_none());
    }
}
