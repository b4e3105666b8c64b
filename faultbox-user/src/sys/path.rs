//! Paths as another process resolves them.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

/// Is it a file that somebody may execute?
pub fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// The absolute path, in the view of thread `tid`, that `path` means there: relative to descriptor `dir` (or its working
/// directory), symbolic links resolved, the last one only if `follow`. What does not exist yet is named by its folder's
/// path and its own name; `None` if even the starting folder is gone.
pub fn resolve(tid: i32, dir: Option<i32>, path: &Path, follow: bool) -> Option<PathBuf> {
    let own = own_links(tid, path);
    let path = own.as_deref().unwrap_or(path);
    let root = format!("/proc/{tid}/root");
    let base = if path.is_absolute() {
        open_path(None, Path::new(&root), libc::O_DIRECTORY).ok()?
    } else {
        let base = match dir {
            None => format!("/proc/{tid}/cwd"),
            Some(fd) => format!("/proc/{tid}/fd/{fd}"),
        };
        open_path(None, Path::new(&base), libc::O_DIRECTORY).ok()?
    };
    let open = |path: &Path, flags: i32| {
        if path.is_absolute() {
            open_in_root(base.as_fd(), path, flags)
        } else {
            open_path(Some(base.as_fd()), path, flags)
        }
    };
    let nofollow = if follow { 0 } else { libc::O_NOFOLLOW };
    if let Ok(found) = open(path, nofollow) {
        return name_of(&found, &root);
    }
    // It does not exist (yet), or a part of it may not be entered.
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    if let Some(Component::Normal(name)) = path.components().next_back() {
        // A link that leads nowhere names what open(2) would create.
        if follow
            && let Ok(link) = open(path, libc::O_NOFOLLOW)
            && let Some(target) = read_link_at(&link)
        {
            let target = parent.join(target);
            let parent = target.parent().unwrap_or(Path::new("."));
            if let (Ok(folder), Some(name)) = (open(parent, 0), target.file_name()) {
                return Some(name_of(&folder, &root)?.join(name));
            }
        }
        if let Ok(folder) = open(parent, 0) {
            return Some(name_of(&folder, &root)?.join(name));
        }
    }
    let start = if path.is_absolute() {
        PathBuf::from("/")
    } else {
        name_of(&base, &root)?
    };
    Some(lexical(&start, path))
}

/// /proc/self and its like mean the caller; seen from here they must name it.
fn own_links(tid: i32, path: &Path) -> Option<PathBuf> {
    let bytes = path.as_os_str().as_bytes();
    let of_caller = |rest: &[u8]| {
        let mut own = format!("/proc/{tid}/").into_bytes();
        own.extend_from_slice(rest);
        Some(PathBuf::from(OsStr::from_bytes(&own)))
    };
    for prefix in [&b"/proc/self/"[..], b"/proc/thread-self/"] {
        if let Some(rest) = bytes.strip_prefix(prefix) {
            return of_caller(rest);
        }
    }
    if let Some(number) = bytes.strip_prefix(b"/dev/fd/") {
        return of_caller(&[b"fd/", number].concat());
    }
    match bytes {
        b"/dev/stdin" => of_caller(b"fd/0"),
        b"/dev/stdout" => of_caller(b"fd/1"),
        b"/dev/stderr" => of_caller(b"fd/2"),
        _ => None,
    }
}

/// `path` as it would be written from `start`, without looking at any file: `..` takes back the part before it.
pub fn lexical(start: &Path, path: &Path) -> PathBuf {
    let mut out = start.to_owned();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::Normal(name) => out.push(name),
            _ => {}
        }
    }
    out
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// O_PATH: no permission on the object itself is needed, no FIFO blocks, no device is touched.
fn open_path(base: Option<BorrowedFd<'_>>, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let base = base.map_or(libc::AT_FDCWD, |b| b.as_raw_fd());
    // SAFETY: a C string that outlives the call.
    let fd = unsafe { libc::openat(base, path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC | flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// As [`open_path`], with `root` for the root of absolute paths and links (openat2(2), RESOLVE_IN_ROOT).
fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: all-zero bytes are a valid open_how.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC | flags) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT;
    // SAFETY: the C string and the structure outlive the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    if fd >= 0 {
        // SAFETY: the kernel has just returned this descriptor.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    }
    match io::Error::last_os_error() {
        // Magic links (/proc/<pid>/fd/…) are refused in a root; they name an object, not a path within it.
        e if matches!(e.raw_os_error(), Some(libc::EXDEV | libc::ELOOP)) => {
            open_path(None, Path::new(OsStr::from_bytes(path.as_bytes())), flags)
        }
        e => Err(e),
    }
}

fn own_name(fd: &OwnedFd) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Where the descriptor's object is, below the root of the process it is looked up for.
fn name_of(fd: &OwnedFd, root: &str) -> Option<PathBuf> {
    let name = own_name(fd).ok()?;
    let root = std::fs::read_link(root).ok()?;
    match name.strip_prefix(&root) {
        Ok(below) => Some(Path::new("/").join(below)),
        Err(_) => Some(name),
    }
}

fn read_link_at(link: &OwnedFd) -> Option<PathBuf> {
    let mut target = [0u8; 4096];
    // SAFETY: an empty path means the descriptor itself; the buffer and its length describe writable memory.
    let n = unsafe {
        libc::readlinkat(
            link.as_raw_fd(),
            c"".as_ptr(),
            target.as_mut_ptr().cast(),
            target.len(),
        )
    };
    let n = usize::try_from(n).ok()?;
    Some(PathBuf::from(OsStr::from_bytes(&target[..n])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn resolves_as_the_kernel_would() {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).unwrap();
        let tid = std::process::id() as i32;
        fs::create_dir(dir.join("real")).unwrap();
        fs::write(dir.join("real/file"), "").unwrap();
        symlink("real", dir.join("link")).unwrap();
        symlink("file", dir.join("real/alias")).unwrap();
        symlink("nowhere", dir.join("real/dangling")).unwrap();
        let of = |path: &str, follow| resolve(tid, None, &dir.join(path), follow).unwrap();
        assert_eq!(of("link/file", true), dir.join("real/file"));
        assert_eq!(of("link/../real/./file", true), dir.join("real/file"));
        assert_eq!(of("link/alias", true), dir.join("real/file"));
        assert_eq!(of("link/alias", false), dir.join("real/alias"));
        assert_eq!(of("link/new", true), dir.join("real/new"));
        assert_eq!(of("link/dangling", true), dir.join("real/nowhere"));
        assert_eq!(of("link/dangling", false), dir.join("real/dangling"));
        assert_eq!(of("no/such/../thing", true), dir.join("no/thing"));
        let folder = fs::File::open(dir.join("link")).unwrap();
        let relative = |path: &str| resolve(tid, Some(folder.as_raw_fd()), Path::new(path), true);
        assert_eq!(relative("alias"), Some(dir.join("real/file")));
        assert_eq!(relative("../real/new"), Some(dir.join("real/new")));
        assert_eq!(
            resolve(tid, None, Path::new("."), true),
            fs::canonicalize(".").ok()
        );
        let file = fs::File::open(dir.join("real/file")).unwrap();
        let by_fd = format!("/proc/self/fd/{}", file.as_raw_fd());
        assert_eq!(
            resolve(tid, None, Path::new(&by_fd), true),
            Some(dir.join("real/file"))
        );
    }
}
