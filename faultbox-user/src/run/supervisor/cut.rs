//! Cutting TCP between two services socket by socket, where eBPF cannot do it for all packets.
//!
//! A muted socket drops what arrives ([`mute`]), so muting the socket that receives cuts one direction of a connection that exists. A
//! connection that is only being made is cut by muting its socket before connect(2) goes on: the answer to its SYN is dropped, and as
//! far as the program can tell nobody is there. Both heal as they do when a cable is plugged in again: TCP sends again.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::sockets::{End, Sockets};
use crate::plan::Dest;
use crate::sys::{mute, socket};

/// How many cuts mute each socket, by inode: the last one to heal lets it hear again.
#[derive(Debug, Default)]
pub struct Muted(Mutex<HashMap<u64, u32>>);

/// One cut and the sockets that it has muted.
#[derive(Debug)]
pub struct Cut {
    all: Arc<Muted>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sockets: Vec<Socket>,
    /// Packets that sockets have dropped which hear again.
    dropped: u64,
}

#[derive(Debug)]
struct Socket {
    inode: u64,
    copy: OwnedFd,
    /// What it had dropped before.
    before: u64,
}

impl Socket {
    fn dropped(&self) -> u64 {
        mute::dropped(self.copy.as_fd()).saturating_sub(self.before)
    }
}

fn inode(socket: &OwnedFd) -> io::Result<u64> {
    let file = std::fs::File::from(socket.try_clone()?);
    Ok(file.metadata()?.ino())
}

impl Cut {
    /// A cut that has muted nothing yet.
    pub fn new(all: &Arc<Muted>) -> Cut {
        Cut {
            all: all.clone(),
            state: Mutex::default(),
        }
    }

    /// Mutes a socket until [`heal`](Cut::heal). The copy keeps the connection from being closed meanwhile, as a cut does: nobody could be told.
    ///
    /// # Errors
    /// The kernel refuses the filter.
    pub fn mute(&self, copy: OwnedFd) -> io::Result<()> {
        let inode = inode(&copy)?;
        let mut state = self.state();
        if state.sockets.iter().any(|s| s.inode == inode) {
            return Ok(()); // inherited by a second process
        }
        let before = mute::dropped(copy.as_fd());
        // Counted and muted at once, or another cut's end would come between.
        let mut counts = self.all.counts();
        mute::mute(copy.as_fd())?;
        *counts.entry(inode).or_default() += 1;
        drop(counts);
        state.sockets.push(Socket {
            inode,
            copy,
            before,
        });
        Ok(())
    }

    /// How many packets it has taken.
    pub fn dropped(&self) -> u64 {
        let state = self.state();
        state.dropped + state.sockets.iter().map(Socket::dropped).sum::<u64>()
    }

    /// Lets every socket hear again that no other cut mutes.
    pub fn heal(&self) {
        let mut state = self.state();
        for socket in std::mem::take(&mut state.sockets) {
            state.dropped += socket.dropped();
            let mut counts = self.all.counts();
            let left = counts.get(&socket.inode).map_or(0, |n| n - 1);
            if left > 0 {
                counts.insert(socket.inode, left);
                continue;
            }
            counts.remove(&socket.inode);
            // It may be gone; then nobody hears anything.
            let _ = mute::unmute(socket.copy.as_fd());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.heal();
    }
}

impl Muted {
    fn counts(&self) -> MutexGuard<'_, HashMap<u64, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One direction of the connections that a client has to a server.
pub struct Direction<'s> {
    /// The client's sockets.
    pub client: &'s Sockets,
    /// Where the server is reached.
    pub server: &'s Dest,
    /// The sockets among which the far ends are: the server's, and those of its proxies.
    pub far: [&'s Sockets; 2],
    /// Packets to the server are cut.
    pub requests: bool,
    /// Packets to the client are cut.
    pub answers: bool,
}

impl Cut {
    /// Mutes the connections that exist; where requests are cut, tells of those whose far end nobody holds: not accepted yet, or accepted
    /// since the sockets were listed.
    ///
    /// # Errors
    /// A socket that cannot be looked at, or that the kernel does not let us mute, as a lower-case fragment.
    pub fn existing(&self, direction: &Direction) -> Result<Vec<SocketAddr>, String> {
        let mut all = [direction.client].into_iter().chain(direction.far);
        if let Some(e) = all.find_map(|sockets| sockets.unseen.as_ref()) {
            return Err(format!("a socket cannot be looked at: {e}"));
        }
        let mut missing = vec![];
        let refused = |e: io::Error| format!("a socket cannot be muted: {e}");
        let ours = direction
            .client
            .ends
            .iter()
            .filter(|end| direction.server.contains(end.peer));
        for end in ours {
            if direction.answers {
                self.mute(end.copy.try_clone().map_err(refused)?)
                    .map_err(refused)?;
            }
            if direction.requests {
                let far = direction
                    .far
                    .iter()
                    .flat_map(|sockets| &sockets.ends)
                    .find(|far| are_ends_of_one(far, end));
                match far {
                    Some(far) => self
                        .mute(far.copy.try_clone().map_err(refused)?)
                        .map_err(refused)?,
                    // Whoever has closed an end hears nothing any more.
                    None if socket::is_established(end.copy.as_fd()) => missing.push(end.peer),
                    None => {}
                }
            }
        }
        Ok(missing)
    }
}

fn are_ends_of_one(a: &End, b: &End) -> bool {
    same(a.local, b.peer) && same(a.peer, b.local)
}

fn same(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && a.ip().to_canonical() == b.ip().to_canonical()
}

#[cfg(test)]
mod tests {
    use super::super::sockets;
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    /// Does a byte written to one arrive at the other within this time?
    fn arrives(from: &mut TcpStream, to: &mut TcpStream, within: Duration) -> bool {
        from.write_all(b"x").unwrap();
        to.set_read_timeout(Some(within)).unwrap();
        to.read_exact(&mut [0]).is_ok()
    }

    #[test]
    fn one_direction_or_both_and_the_last_cut_decides() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = server.local_addr().unwrap();
        let mut client = TcpStream::connect(addr).unwrap();
        let (mut accepted, _) = server.accept().unwrap();
        let own = sockets::of(&[std::process::id() as i32]);
        let none = Sockets::default();
        let dest = Dest::Addrs(vec![addr]);
        let direction = |requests, answers| Direction {
            client: &own,
            server: &dest,
            far: [&own, &none],
            requests,
            answers,
        };
        let (soon, late) = (Duration::from_millis(30), Duration::from_secs(60));
        let all = Arc::<Muted>::default();
        let requests = Cut::new(&all);
        requests.existing(&direction(true, false)).unwrap();
        assert!(!arrives(&mut client, &mut accepted, soon));
        // Who delivers a packet on a loaded machine may have its turn later.
        let deadline = Instant::now() + Duration::from_secs(60);
        while requests.dropped() == 0 {
            assert!(Instant::now() < deadline, "nothing is ever dropped");
            std::thread::sleep(Duration::from_millis(1));
        }
        let both = Cut::new(&all);
        both.existing(&direction(true, true)).unwrap();
        requests.heal();
        assert!(!arrives(&mut accepted, &mut client, soon));
        assert!(!arrives(&mut client, &mut accepted, soon));
        both.heal();
        assert!(arrives(&mut client, &mut accepted, late));
        assert!(arrives(&mut accepted, &mut client, late));
        let strangers = Direction {
            far: [&none, &none],
            ..direction(true, false)
        };
        // Another test may hold a copy of it, too.
        let mut missing = Cut::new(&all).existing(&strangers).unwrap();
        missing.dedup();
        assert_eq!(missing, [addr]);
        // The copies, too: the connection is closed, or reset because of what has not been read.
        drop((own, accepted));
        let _ = client.read_to_end(&mut vec![]);
        let own = sockets::of(&[std::process::id() as i32]);
        let closed = Direction {
            client: &own,
            server: &dest,
            far: [&none, &none],
            requests: true,
            answers: false,
        };
        assert_eq!(Cut::new(&all).existing(&closed).unwrap(), []);
    }
}
