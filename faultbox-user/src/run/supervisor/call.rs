//! What a trapped call is about: which of its arguments are descriptors, paths and addresses, and what they resolve to.

use std::cell::Cell;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::plan::FdClass;
use crate::sys::procfs::{self, FdLink};
use crate::sys::seccomp::{Listener, Notification};
use crate::sys::shape::{self, Follow, PathArg, Peer, Shape};
use crate::sys::{memory, path, pidfd, socket};

use super::decide::Facts;

/// A trapped call with what has been found out about it so far.
pub(super) struct Call<'a> {
    pub(super) notification: Notification,
    listener: &'a Listener,
    class: Option<Option<FdClass>>,
    paths: Option<Vec<Vec<u8>>>,
    peers: Option<Vec<SocketAddr>>,
    /// A look at the process has failed.
    failed: Cell<bool>,
    blind: bool,
}

impl<'a> Call<'a> {
    pub(super) fn new(notification: Notification, listener: &'a Listener) -> Call<'a> {
        Call {
            notification,
            listener,
            class: None,
            paths: None,
            peers: None,
            failed: Cell::new(false),
            blind: false,
        }
    }

    /// The kind of object, if a rule has asked.
    pub(super) fn known_class(&self) -> Option<FdClass> {
        self.class.flatten()
    }

    /// The paths, if a rule has asked.
    pub(super) fn known_paths(&self) -> &[Vec<u8>] {
        self.paths.as_deref().unwrap_or(&[])
    }

    /// The peers, if a rule has asked.
    pub(super) fn known_peers(&self) -> &[SocketAddr] {
        self.peers.as_deref().unwrap_or(&[])
    }

    /// Has the process hidden what a rule asked for? Nothing can be said then about whether the rule means this call.
    pub(super) fn is_blind(&self) -> bool {
        self.blind
    }

    /// What a look at the process has brought, noting if it brought nothing.
    fn seen<T>(&self, found: std::io::Result<T>) -> Option<T> {
        self.failed.set(self.failed.get() | found.is_err());
        found.ok()
    }

    /// After a look: if it failed, is that because the process may not be looked at?
    fn check_sight(&mut self) {
        if self.failed.take() && procfs::is_hidden(self.notification.tid) {
            self.blind |= self.still_there();
        }
    }

    fn shape(&self) -> Shape {
        shape::of_number(self.notification.nr)
    }

    /// After each look at the process: is it still the one that made the call? If not, what was found belongs to somebody
    /// else, and no filter may match on it.
    fn still_there(&self) -> bool {
        self.listener.id_valid(self.notification.id)
    }

    /// The descriptor that the call works on; negative ones (mmap without a file) are none.
    fn fd(&self) -> Option<i32> {
        let fd = self.notification.args[self.shape().fd?] as i32;
        (fd >= 0).then_some(fd)
    }

    /// The file behind a mapping that the call works on.
    fn mapped(&self) -> Option<Vec<u8>> {
        let address = self.notification.args[self.shape().mapped?];
        let found = self.seen(procfs::mapped_file(self.notification.tid, address))?;
        found.map(|path| path.into_os_string().into_vec())
    }

    fn find_class(&self) -> Option<FdClass> {
        if self.shape().mapped.is_some() {
            return self.mapped().map(|_| FdClass::File);
        }
        let link = FdLink::new(self.notification.tid, self.fd()?);
        Some(class_of(&self.seen(std::fs::metadata(link.path()))?))
    }

    fn find_paths(&self) -> Vec<Vec<u8>> {
        let shape = self.shape();
        if shape.mapped.is_some() {
            return self.mapped().into_iter().collect();
        }
        if shape.paths.is_empty() {
            let path = self.fd().and_then(|fd| self.fd_path(fd));
            return path.into_iter().collect();
        }
        shape
            .paths
            .iter()
            .filter_map(|arg| self.resolve(*arg))
            .collect()
    }

    /// The path of an open file, as the process that has it open would write it.
    fn fd_path(&self, fd: i32) -> Option<Vec<u8>> {
        let link = FdLink::new(self.notification.tid, fd);
        let path = self.seen(link.read())?.into_os_string().into_vec();
        if path.first() != Some(&b'/') {
            return None; // socket:[…], pipe:[…], anon_inode:…
        }
        // The kernel marks a file that has lost its name; a name that really ends so still has a link count.
        if let Some(name) = path.strip_suffix(b" (deleted)")
            && std::fs::metadata(link.path()).is_ok_and(|m| m.nlink() == 0)
        {
            return Some(name.to_vec());
        }
        Some(path)
    }

    fn resolve(&self, arg: PathArg) -> Option<Vec<u8>> {
        let args = &self.notification.args;
        let tid = self.notification.tid;
        let dir = match arg.dir.map(|i| args[i] as i32) {
            None | Some(libc::AT_FDCWD) => None,
            Some(fd) => Some(fd),
        };
        let address = args[arg.path];
        let written = if address == 0 {
            vec![] // utimensat and execveat take a null path for the descriptor itself
        } else {
            let path = memory::read_path(tid, address);
            self.seen(path.ok_or(std::io::ErrorKind::NotFound.into()))?
        };
        if written.is_empty() {
            // AT_EMPTY_PATH; without that flag the call fails by itself.
            return self.fd_path(dir?);
        }
        let follow = match arg.follow {
            Follow::Always => true,
            Follow::Never => false,
            Follow::Unless(i, flag) => args[i] & flag == 0,
            Follow::If(i, flag) => args[i] & flag != 0,
            Follow::Open(i) => open_follows(args[i]),
            Follow::OpenHow(i) => {
                let mut flags = [0; 8];
                memory::read_exact(tid, args[i], &mut flags).ok()?;
                open_follows(u64::from_ne_bytes(flags))
            }
        };
        let written = Path::new(std::ffi::OsStr::from_bytes(&written));
        let path = path::resolve(tid, dir, written, follow);
        self.seen(path.ok_or(std::io::ErrorKind::NotFound.into()))
            .map(|p| p.into_os_string().into_vec())
    }

    fn find_peers(&self) -> Vec<SocketAddr> {
        let args = &self.notification.args;
        let tid = self.notification.tid;
        let mut peers = vec![];
        match self.shape().peer {
            Peer::None => return peers,
            Peer::Connected => {}
            Peer::Address(i) => peers.extend(read_address(tid, args[i], args[i + 1])),
            Peer::Message(i) => peers.extend(message_address(tid, args[i])),
            Peer::Messages(i, count) => {
                // UIO_MAXIOV is the most that the kernel looks at.
                for n in 0..args[count].min(1024) {
                    let Some(at) = args[i].checked_add(n * MMSGHDR_SIZE) else {
                        break;
                    };
                    peers.extend(message_address(tid, at));
                }
            }
        }
        if peers.is_empty() {
            let copy = self.copy_of_fd();
            let copy = self.seen(copy.ok_or(std::io::ErrorKind::NotFound.into()));
            peers.extend(copy.and_then(|s| socket::peer(s.as_fd())));
        }
        peers
    }

    /// A copy of the descriptor that it works on.
    pub(super) fn copy_of_fd(&self) -> Option<OwnedFd> {
        let fd = self.fd()?;
        let process = pidfd::open_thread(self.notification.tid).ok()?;
        pidfd::get_fd(process.as_fd(), fd).ok()
    }
}

impl Facts for Call<'_> {
    fn class(&mut self) -> Option<FdClass> {
        if self.class.is_none() {
            let found = self.find_class();
            self.class = Some(found.filter(|_| self.still_there()));
            self.check_sight();
        }
        self.class.flatten()
    }

    fn paths(&mut self) -> &[Vec<u8>] {
        if self.paths.is_none() {
            let found = self.find_paths();
            self.paths = Some(if self.still_there() { found } else { vec![] });
            self.check_sight();
        }
        self.paths.as_deref().unwrap_or(&[])
    }

    fn peers(&mut self) -> &[SocketAddr] {
        if self.peers.is_none() {
            let found = self.find_peers();
            self.peers = Some(if self.still_there() { found } else { vec![] });
            self.check_sight();
        }
        self.peers.as_deref().unwrap_or(&[])
    }
}

/// Does open(2) with these flags follow a symbolic link at the end? O_CREAT|O_EXCL does not.
fn open_follows(flags: u64) -> bool {
    let flags = flags as i32;
    let exclusive = libc::O_CREAT | libc::O_EXCL;
    flags & libc::O_NOFOLLOW == 0 && flags & exclusive != exclusive
}

/// sizeof(struct mmsghdr): a struct msghdr and an unsigned int, padded.
const MMSGHDR_SIZE: u64 = size_of::<libc::mmsghdr>() as u64;

fn read_address(tid: i32, address: u64, len: u64) -> Option<SocketAddr> {
    if address == 0 {
        return None;
    }
    let mut bytes = [0u8; 28]; // sizeof(struct sockaddr_in6)
    let len = (len as u32 as usize).min(bytes.len());
    memory::read_exact(tid, address, &mut bytes[..len]).ok()?;
    socket::parse_address(&bytes[..len])
}

fn message_address(tid: i32, address: u64) -> Option<SocketAddr> {
    // struct msghdr begins with msg_name (a pointer) and msg_namelen (an int).
    let mut head = [0u8; 12];
    memory::read_exact(tid, address, &mut head).ok()?;
    let (name, len) = head.split_at(8);
    read_address(
        tid,
        u64::from_ne_bytes(name.try_into().ok()?),
        u64::from(u32::from_ne_bytes(len.try_into().ok()?)),
    )
}

fn class_of(meta: &std::fs::Metadata) -> FdClass {
    let kind = meta.file_type();
    if kind.is_file() || kind.is_dir() || kind.is_block_device() {
        FdClass::File
    } else if kind.is_socket() {
        FdClass::Socket
    } else if kind.is_fifo() {
        FdClass::Pipe
    } else if kind.is_char_device() && is_tty(meta.rdev()) {
        FdClass::Tty
    } else {
        FdClass::Other
    }
}

/// Documentation/admin-guide/devices.txt: 4 and 5 are virtual and serial consoles and /dev/tty, 136 to 143 are pseudo-terminals.
fn is_tty(rdev: u64) -> bool {
    matches!(libc::major(rdev), 4 | 5 | 136..=143)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        let class = |path: &str| class_of(&std::fs::metadata(path).unwrap());
        assert_eq!(class("/etc/passwd"), FdClass::File);
        assert_eq!(class("/tmp"), FdClass::File);
        assert_eq!(class("/dev/null"), FdClass::Other);
        assert_eq!(class("/dev/ptmx"), FdClass::Tty);
    }

    #[test]
    fn links_are_followed_as_the_open_flags_say() {
        assert!(open_follows(0) && !open_follows(libc::O_NOFOLLOW as u64));
        assert!(!open_follows((libc::O_CREAT | libc::O_EXCL) as u64));
    }
}
