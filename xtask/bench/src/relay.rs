//! A bare relay: one thread, epoll, splice(2) through a pipe per direction. It parses nothing, measures nothing and has no rules: the
//! least that a proxy in user space costs, and so the yardstick for ours.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, splice};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::pipe2;

/// What a pipe holds by default (pipe(7)).
const PIPE: usize = 64 * 1024;
const LISTENER: u64 = u64::MAX;

/// One way of a connection.
struct Way {
    into: OwnedFd,
    out: OwnedFd,
    /// Bytes in the pipe.
    held: usize,
    /// The source has ended.
    ended: bool,
    /// ... and the destination has been told.
    done: bool,
}

impl Way {
    fn new() -> io::Result<Way> {
        let (out, into) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        Ok(Way {
            into,
            out,
            held: 0,
            ended: false,
            done: false,
        })
    }

    /// Moves what can be moved without waiting.
    fn pump(&mut self, from: &TcpStream, to: &TcpStream) -> io::Result<()> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        while !self.done {
            if self.held == 0 && !self.ended {
                match splice(from, None, &self.into, None, PIPE, flags) {
                    Ok(0) => self.ended = true,
                    Ok(n) => self.held = n,
                    Err(Errno::EAGAIN) => return Ok(()),
                    Err(e) => return Err(e.into()),
                }
            }
            if self.held > 0 {
                match splice(&self.out, None, to, None, self.held, flags) {
                    Ok(n) => self.held -= n,
                    Err(Errno::EAGAIN) => return Ok(()),
                    Err(e) => return Err(e.into()),
                }
            } else if self.ended {
                // The peer may have gone already; then there is nobody to tell.
                let _ = to.shutdown(Shutdown::Write);
                self.done = true;
            }
        }
        Ok(())
    }
}

struct Pair {
    client: TcpStream,
    server: TcpStream,
    up: Way,
    down: Way,
}

impl Pair {
    /// Is the connection still of use?
    fn pump(&mut self) -> bool {
        let up = self.up.pump(&self.client, &self.server);
        let down = self.down.pump(&self.server, &self.client);
        up.is_ok() && down.is_ok() && !(self.up.done && self.down.done)
    }
}

/// Relays until the process ends.
pub fn run(listener: &TcpListener, upstream: SocketAddr) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut pairs: Vec<Option<Pair>> = vec![];
    let mut events = [EpollEvent::empty(); 256];
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        for event in &events[..count] {
            match event.data() {
                LISTENER => accept(listener, upstream, &epoll, &mut pairs),
                // An event of a pair that went in this very batch may find its successor; pumping that does no harm.
                index => {
                    let slot = usize::try_from(index).ok().and_then(|i| pairs.get_mut(i));
                    if let Some(slot) = slot
                        && slot.as_mut().is_some_and(|pair| !pair.pump())
                    {
                        *slot = None;
                    }
                }
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    upstream: SocketAddr,
    epoll: &Epoll,
    pairs: &mut Vec<Option<Pair>>,
) {
    while let Ok((client, _)) = listener.accept() {
        let index = pairs
            .iter()
            .position(Option::is_none)
            .unwrap_or(pairs.len());
        match connect(client, upstream, epoll, index as u64) {
            Ok(pair) if index == pairs.len() => pairs.push(Some(pair)),
            Ok(pair) => pairs[index] = Some(pair),
            Err(e) => eprintln!("{upstream}: {e}"),
        }
    }
}

fn connect(client: TcpStream, upstream: SocketAddr, epoll: &Epoll, index: u64) -> io::Result<Pair> {
    let server = TcpStream::connect(upstream)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        // Edge-triggered: every event is answered by pumping until nothing moves.
        let interest = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        epoll.add(stream.as_fd(), EpollEvent::new(interest, index))?;
    }
    Ok(Pair {
        client,
        server,
        up: Way::new()?,
        down: Way::new()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn bytes_pass_in_order_and_half_close_stays() {
        let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = upstream.local_addr().unwrap();
        let echo = std::thread::spawn(move || {
            let (mut stream, _) = upstream.accept().unwrap();
            let mut all = vec![];
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = listener.local_addr().unwrap();
        std::thread::spawn(move || run(&listener, target));
        // More than pipes and socket buffers hold, so that it has to wait both ways.
        let sent: Vec<u8> = (0..16_000_000_u32).map(|i| (i % 251) as u8).collect();
        let mut stream = TcpStream::connect(relay).unwrap();
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut back = vec![];
        stream.read_to_end(&mut back).unwrap();
        assert!(back == sent, "{} bytes came back", back.len());
        echo.join().unwrap();
    }
}
