//! The proxy: moves the bytes of one connection between the sockets and its [`Session`].

use std::io;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use faultbox_contract::clock;
use faultbox_engine::{Conn, Inbox, Origin, gone, linger, reset, serve_delays, timer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;
use tokio::task::JoinSet;

use crate::rules::Flavour;
use crate::session::{End, Session, Way};

/// Once so much waits to be written, nothing more is read: a slow reader slows its writer down.
const HIGH: usize = 256 << 10;

/// An output buffer that has grown past this is given back when it is empty.
const KEEP: usize = 64 << 10;

/// The longest that a connection which a rule has ended waits for its last words to be taken.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How the connection ends.
enum Outcome {
    /// Both sides have closed in good order.
    Closed,
    /// Either side was reset, or a rule says so.
    Reset,
    /// The proxy closes, in good order, after what it has said.
    Linger,
}

/// Serves one connection to its end.
pub async fn run(conn: Conn, flavour: Flavour) {
    let Conn {
        mut client,
        mut upstream,
        origin,
    } = conn;
    match relay(&mut client, &mut upstream, &origin, flavour).await {
        Outcome::Closed => {}
        Outcome::Reset => {
            reset(client);
            reset(upstream);
        }
        Outcome::Linger => {
            drop(upstream);
            linger(client).await;
        }
    }
}

/// What is known of one direction's sockets.
#[derive(Debug, Default)]
struct Direction {
    inbox: Inbox,
    /// The source has closed its side.
    ended: bool,
    /// The source was reset.
    gone: bool,
    /// The FIN has been passed on.
    shut: bool,
    /// The sink takes no more.
    dead: bool,
}

async fn relay(
    client: &mut TcpStream,
    upstream: &mut TcpStream,
    origin: &Origin,
    flavour: Flavour,
) -> Outcome {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = upstream.split();
    let mut session = Session::new(origin, flavour);
    let (mut up, mut down) = (Direction::default(), Direction::default());
    let mut delays: JoinSet<(u64, Duration)> = JoinSet::new();
    let outcome = loop {
        // The server's end first: what a client is owed does not wait for a server that does not read.
        let written = write(&to_client, session.out(Way::Down));
        if written.is_err() {
            break Outcome::Reset;
        }
        if up.dead {
            session.out(Way::Up).clear();
        } else if write(&to_server, session.out(Way::Up)).is_err() {
            // What it said before may still be under way.
            up.dead = true;
            continue;
        }
        session.written();
        let said = session.out(Way::Down).is_empty();
        if let Some(end) = session.end() {
            let last = async {
                let _ = send_all(&to_client, session.out(Way::Down)).await;
            };
            let _ = clock::timeout(LAST_WORDS, last).await;
            break match end {
                End::Reset => Outcome::Reset,
                End::Close => Outcome::Linger,
            };
        }
        if down.gone && said {
            break Outcome::Reset;
        }
        if up.ended && !up.shut && !session.waits(Way::Up) && session.out(Way::Up).is_empty() {
            up.shut = true;
            up.dead |= to_server.shutdown().await.is_err();
        }
        if down.ended && !down.shut && !session.waits(Way::Down) && said {
            down.shut = true;
            if to_client.shutdown().await.is_err() {
                break Outcome::Reset;
            }
        }
        // With both sides closed nobody waits for what a delay still holds.
        if down.shut && (up.ended || up.dead) {
            break if up.dead {
                Outcome::Reset
            } else {
                Outcome::Closed
            };
        }
        for delay in session.take_delays() {
            delays.spawn(async move {
                let injected = serve_delays(&delay.rules, delay.since).await;
                (delay.token, injected)
            });
        }
        let up_waits = session.out(Way::Up).len();
        let down_waits = session.out(Way::Down).len();
        let room = down_waits < HIGH;
        let read_client = !up.ended
            && room
            && up_waits < HIGH
            && !session.is_asking()
            && !session.is_full(Way::Up);
        let read_server = !down.ended
            && !down.gone
            && room
            && up_waits < 2 * HIGH
            && !session.is_stalled()
            && !session.is_full(Way::Down);
        let tick = session.next_tick(Instant::now());
        tokio::select! {
            read = up.inbox.fill(&mut from_client), if read_client => match read {
                Ok(0) => {
                    up.ended = true;
                    session.finish(Way::Up, &mut up.inbox.bytes);
                }
                Ok(_) => session.feed(Way::Up, &mut up.inbox.bytes),
                Err(_) => break Outcome::Reset,
            },
            read = down.inbox.fill(&mut from_server), if read_server => match read {
                Ok(0) => {
                    down.ended = true;
                    session.finish(Way::Down, &mut down.inbox.bytes);
                }
                Ok(_) => session.feed(Way::Down, &mut down.inbox.bytes),
                Err(_) => {
                    // What it said before it died still arrives.
                    down.gone = true;
                    session.finish(Way::Down, &mut down.inbox.bytes);
                }
            },
            ready = to_client.as_ref().writable(), if down_waits > 0 => if ready.is_err() {
                break Outcome::Reset;
            },
            ready = to_server.as_ref().writable(), if up_waits > 0 => up.dead |= ready.is_err(),
            Some(done) = delays.join_next(), if !delays.is_empty() => if let Ok((token, injected)) = done {
                session.release(token, injected);
                if session.is_asking() {
                    session.feed(Way::Up, &mut up.inbox.bytes);
                }
            },
            () = until(tick), if tick.is_some() => session.tick(Instant::now()),
            // Nobody else would notice, because nothing is read from it meanwhile.
            () = gone(to_client.as_ref()), if !read_client => break Outcome::Reset,
        }
        // The client may have made room for what waits for its window.
        if session.is_stalled() {
            session.feed(Way::Down, &mut down.inbox.bytes);
        }
    };
    session.close();
    outcome
}

async fn until(tick: Option<Instant>) {
    if let Some(at) = tick {
        timer::sleep_until(at).await;
    }
}

/// Writes as much as is taken at once.
fn write(to: &WriteHalf<'_>, out: &mut BytesMut) -> io::Result<()> {
    let much = out.len() > KEEP;
    while !out.is_empty() {
        match to.try_write(out) {
            Ok(n) => out.advance(n),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e),
        }
    }
    if much {
        *out = BytesMut::new();
    }
    Ok(())
}

async fn send_all(to: &WriteHalf<'_>, out: &mut BytesMut) -> io::Result<()> {
    faultbox_engine::send(to.as_ref(), out).await
}
