//! The TCP sockets of a process tree, as copies (pidfd_getfd(2)).

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use crate::sys::{pidfd, procfs, socket};

/// One end of a connection.
pub struct End {
    /// Whose it is.
    pub pid: i32,
    /// Its number there.
    pub fd: i32,
    /// Our copy.
    pub copy: OwnedFd,
    /// Its own address.
    pub local: SocketAddr,
    /// The other end's.
    pub peer: SocketAddr,
}

/// What a tree of processes has open.
#[derive(Default)]
pub struct Sockets {
    /// Ends of connections, one per descriptor: inherited ones more than once.
    pub ends: Vec<End>,
    /// Where it listens.
    pub listening: HashSet<SocketAddr>,
    /// Why a socket that is there could not be looked at, if one could not.
    pub unseen: Option<io::Error>,
}

impl Sockets {
    /// Has one of its listening sockets accepted this end? It has that socket's port then.
    pub fn accepted(&self, end: &End) -> bool {
        self.listens_at(end.local.port())
    }

    /// Does it listen at this port?
    pub fn listens_at(&self, port: u16) -> bool {
        self.listening.iter().any(|at| at.port() == port)
    }
}

/// The TCP sockets of these processes. What goes while it is looked at is left out.
pub fn of(tree: &[i32]) -> Sockets {
    let mut found = Sockets::default();
    for &pid in tree {
        let Some(task) = procfs::live_thread(pid) else {
            continue;
        };
        let open = pidfd::open_thread(task).and_then(|thread| Ok((thread, procfs::fds(task)?)));
        let (process, fds) = match open {
            Ok(open) => open,
            Err(_) if procfs::live_thread(pid).is_none() => continue,
            Err(e) => {
                found.unseen = Some(e);
                continue;
            }
        };
        for fd in fds {
            let link = procfs::FdLink::new(task, fd);
            if !link
                .read()
                .is_ok_and(|l| l.to_string_lossy().starts_with("socket:"))
            {
                continue;
            }
            let copy = match pidfd::get_fd(process.as_fd(), fd) {
                Ok(copy) => copy,
                // Closed, or gone, meanwhile.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EBADF | libc::ESRCH)) => continue,
                Err(e) => {
                    found.unseen = Some(e);
                    continue;
                }
            };
            if !socket::is_stream(copy.as_fd()) {
                continue;
            }
            let Some(local) = socket::local(copy.as_fd()) else {
                continue; // not an IP socket
            };
            if socket::is_listening(copy.as_fd()) {
                found.listening.insert(local);
            } else if let Some(peer) = socket::peer(copy.as_fd()) {
                found.ends.push(End {
                    pid,
                    fd,
                    copy,
                    local,
                    peer,
                });
            }
        }
    }
    found
}
