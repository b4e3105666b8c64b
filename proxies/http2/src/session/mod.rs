//! What goes on over one connection, without any I/O: bytes from either side in, bytes for either side out.
//!
//! Frames go on verbatim until a rule takes a request away. From then on three things are no longer the client's and the server's
//! own: the header tables (a block that is kept back would leave the receiver's behind, so blocks of that direction are written
//! anew, without a table), the stream numbers (a stream that was held may be overtaken, and numbers must grow), and the windows
//! (bytes that are kept back are credited to their sender, bytes that a rule adds are taken out of the receiver's credit).

mod act;
mod frames;
mod greet;
mod lane;
mod numbers;
mod stream;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use faultbox_contract::ArmedRule;
use faultbox_contract::rule::Fired;
use faultbox_engine::{Added, Origin};

use crate::codec::hpack::{self, Field};
use crate::codec::{self, HEAD, Head, Malformed, SMALLEST_MAX_FRAME, flag, kind};
use crate::rules::Flavour;
use crate::upgrade::Hello;
use numbers::Numbers;
use stream::Stream;

/// The most that delays and throttles hold of one direction before reading more of it pauses. Windows bound what a peer may send,
/// but they may be 2 GiB.
const MOST_HELD: usize = 16 << 20;

/// How many streams that rules have ended are remembered for the frames that were under way: by then thousands of frames have
/// followed.
const MOST_ENDED: usize = 1024;

/// The most SETTINGS of a client that may wait for their acknowledgement; clients send one or two in all.
const MOST_ANNOUNCED: usize = 1024;

/// The most streams open at once. Servers allow hundreds.
const MOST_STREAMS: usize = 1 << 16;

/// The way a byte travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    Up = 0,
    /// From the server to the client.
    Down = 1,
}

impl Way {
    /// Who speaks, in events.
    pub fn source(self) -> &'static str {
        match self {
            Way::Up => "client",
            Way::Down => "upstream",
        }
    }

    fn back(self) -> Way {
        match self {
            Way::Up => Way::Down,
            Way::Down => Way::Up,
        }
    }
}

/// How a rule or a fatal error ends the connection, once everything has been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Reset both sides.
    Reset,
    /// Close both sides in good order.
    Close,
}

/// A delay to be started.
#[derive(Debug)]
pub struct Delay {
    /// Identifies it to [`Session::release`].
    pub token: u64,
    /// The rules, to be served one after another.
    pub rules: Vec<Arc<ArmedRule>>,
    /// When what is held was read.
    pub since: Instant,
}

/// One direction.
#[derive(Debug, Default)]
struct Side {
    /// Has the first SETTINGS gone by? Nothing may be said before it.
    started: bool,
    /// How many bytes of the current frame still go on as they are.
    pass: usize,
    /// How many bytes of the current frame are still kept back.
    skip: usize,
    /// Follows the source's header table.
    hpack: hpack::Decoder,
    /// Are blocks written anew?
    recode: bool,
    /// Has the sink been told to expect no table any more?
    told: bool,
    /// The largest frame that the sink has ever allowed.
    max_frame: usize,
    /// To be sent.
    out: BytesMut,
    /// What the proxy says itself; goes out between two frames.
    late: BytesMut,
    /// Bytes that delays and throttles hold.
    held: usize,
    /// Frames that they hold.
    waiting: usize,
}

/// A rule's body on its way to the client.
#[derive(Debug)]
struct Body {
    stream: u32,
    rest: Bytes,
    sent: i64,
    /// Is the client to be told that the rest of its request is not wanted?
    reset: bool,
}

/// A request or a reply that has just been let go: its time counts once it is written.
#[derive(Debug)]
struct Mark {
    stream: u32,
    since: Instant,
    injected: Duration,
    /// Of a reply: what the request's way has cost.
    reply: Option<Added>,
}

/// What to do with the bytes at the front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Wait for more.
    More,
    /// So many go on as they are; they need not be there yet.
    Pass(usize),
    /// So many are kept back; what stands for them is in `late`.
    Replace(usize),
}

/// One connection.
pub struct Session<'a> {
    origin: &'a Origin,
    flavour: Flavour,
    sides: [Side; 2],
    hello: Hello,
    /// How long the request for an upgrade is that rules have to do with.
    asking: Option<usize>,
    /// What is to be done to its answer, once that is HTTP/2.
    asked: Option<Fired>,
    streams: HashMap<u32, Stream, Numbers>,
    /// The client's number of streams that have another at the server.
    translated: HashMap<u32, u32, Numbers>,
    /// Streams that rules have ended, oldest first.
    ended: VecDeque<u32>,
    last_client: u32,
    last_server: u32,
    /// Is any of the three things named above no longer the peers' own?
    touched: bool,
    raw: bool,
    end: Option<End>,
    /// What is left of the client's window for the connection.
    window: i64,
    /// The client's window for new streams.
    initial_window: i64,
    /// What it shall be once the server has acknowledged it: only then does the client count by it (RFC 9113, section 6.5.3).
    announced: VecDeque<Option<i64>>,
    /// How much of the client's credit is owed to what rules have sent.
    debt: usize,
    /// Does the server's DATA wait until that debt leaves room for it?
    stalled: bool,
    bodies: VecDeque<Body>,
    delays: Vec<Delay>,
    holds: HashMap<u64, (u32, Way)>,
    next_token: u64,
    /// Streams with a throttled reply that waits.
    pacing: Vec<u32>,
    read: Instant,
    marks: Vec<Mark>,
}

impl<'a> Session<'a> {
    /// Before the first byte.
    pub fn new(origin: &'a Origin, flavour: Flavour) -> Session<'a> {
        let side = || Side {
            max_frame: SMALLEST_MAX_FRAME,
            ..Side::default()
        };
        Session {
            origin,
            flavour,
            sides: [side(), side()],
            hello: Hello::default(),
            asking: None,
            asked: None,
            streams: HashMap::default(),
            translated: HashMap::default(),
            ended: VecDeque::new(),
            last_client: 0,
            last_server: 0,
            touched: false,
            raw: false,
            end: None,
            // RFC 9113, section 6.9.2.
            window: 65_535,
            initial_window: 65_535,
            announced: VecDeque::new(),
            debt: 0,
            stalled: false,
            bodies: VecDeque::new(),
            delays: vec![],
            holds: HashMap::new(),
            next_token: 0,
            pacing: vec![],
            read: Instant::now(),
            marks: vec![],
        }
    }

    /// What is to be written, in this direction.
    pub fn out(&mut self, way: Way) -> &mut BytesMut {
        &mut self.sides[way as usize].out
    }

    /// Has the connection come to an end that a rule or an error has given it?
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Is anything of this direction held back?
    pub fn waits(&self, way: Way) -> bool {
        self.side(way).waiting > 0
    }

    /// Is so much held back that no more should be read?
    pub fn is_full(&self, way: Way) -> bool {
        self.side(way).held > MOST_HELD
    }

    /// Does what the server has sent wait for the client's window?
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Does a delay hold the request for an upgrade? Then nothing more of the client is to be read.
    pub fn is_asking(&self) -> bool {
        self.asking.is_some()
    }

    /// Delays that have come up.
    pub fn take_delays(&mut self) -> Vec<Delay> {
        std::mem::take(&mut self.delays)
    }

    fn side(&self, way: Way) -> &Side {
        &self.sides[way as usize]
    }

    fn side_mut(&mut self, way: Way) -> &mut Side {
        &mut self.sides[way as usize]
    }

    fn armed(&self) -> bool {
        !self.origin.host.rules.is_empty()
    }

    /// Takes what has been read: all of it, but for what cannot be judged yet.
    pub fn feed(&mut self, way: Way, inbox: &mut BytesMut) {
        self.read = Instant::now();
        if way == Way::Down {
            self.stalled = false;
        }
        // What is in front of this goes on as it is.
        let mut at = 0;
        while self.end.is_none() {
            if self.raw {
                at = inbox.len();
                break;
            }
            let side = &mut self.sides[way as usize];
            let rest = inbox.len() - at;
            if side.pass > 0 {
                let n = side.pass.min(rest);
                side.pass -= n;
                at += n;
                if side.pass > 0 {
                    break;
                }
                continue;
            }
            if side.skip > 0 || (side.started && !side.late.is_empty()) {
                move_on(&mut side.out, inbox, &mut at);
                let n = side.skip.min(inbox.len());
                inbox.advance(n);
                side.skip -= n;
                if side.skip > 0 {
                    break;
                }
            }
            self.drain(way);
            let next = if self.hello.is_over(way) {
                self.frame(way, &mut inbox[at..])
            } else {
                self.greet(way, &inbox[at..])
            };
            match next {
                Ok(Next::More) => break,
                Ok(Next::Pass(n)) => self.side_mut(way).pass = n,
                Ok(Next::Replace(n)) => {
                    let side = &mut self.sides[way as usize];
                    move_on(&mut side.out, inbox, &mut at);
                    side.skip = n;
                }
                Err(malformed) => self.malformed(way, malformed),
            }
        }
        move_on(&mut self.sides[way as usize].out, inbox, &mut at);
        self.settle();
    }

    /// This direction is over: what is left in `inbox` is the beginning of something that will never be whole.
    pub fn finish(&mut self, way: Way, inbox: &mut BytesMut) {
        if self.touched {
            inbox.clear();
        }
        let mut at = inbox.len();
        move_on(&mut self.sides[way as usize].out, inbox, &mut at);
    }

    /// Puts what the proxy says itself between two frames, if this is such a place.
    fn drain(&mut self, way: Way) {
        let side = &mut self.sides[way as usize];
        if side.pass == 0 && side.started && !side.late.is_empty() {
            side.out.extend_from_slice(&side.late);
            side.late.clear();
        }
    }

    /// After anything has happened.
    fn settle(&mut self) {
        self.pump_bodies();
        self.drain(Way::Up);
        self.drain(Way::Down);
    }

    /// What came is not what the protocol says.
    fn malformed(&mut self, way: Way, why: Malformed) {
        let shown = if self.touched {
            format!("{}; the connection was ended", why.0)
        } else {
            format!("{}; forwarded unseen from here on", why.0)
        };
        self.origin.degraded(way.source(), &shown);
        if !self.touched {
            self.raw = true;
            // Without rules the proxy says nothing itself, but what is there belongs to what has been judged.
            for side in &mut self.sides {
                side.out.extend_from_slice(&side.late);
                side.late.clear();
            }
            return;
        }
        let why = format!("faultbox: {}", why.0);
        let last = self.last_client;
        for way in [Way::Up, Way::Down] {
            let last = if way == Way::Down { last } else { 0 };
            let side = &mut self.sides[way as usize];
            if side.pass == 0 {
                side.out.extend_from_slice(&side.late);
                codec::put_goaway(&mut side.out, last, 1, &why);
            }
        }
        self.end = Some(End::Close);
    }

    /// What has been let go is written: its time is known.
    pub fn written(&mut self) {
        // Taken and given back, so that its memory is used again.
        let mut marks = std::mem::take(&mut self.marks);
        for mark in marks.drain(..) {
            match mark.reply {
                Some(mut added) => {
                    added.way(mark.since, mark.injected);
                    added.record(&self.origin.host.meter);
                }
                None => {
                    if let Some(stream) = self.streams.get_mut(&mark.stream) {
                        stream.added.way(mark.since, mark.injected);
                    }
                }
            }
        }
        self.marks = marks;
    }

    /// The connection is over: what stays unanswered was a request all the same.
    pub fn close(&mut self) {
        for stream in self.streams.values() {
            if !stream.ours && !stream.replied && stream.server_id != 0 {
                stream.added.record(&self.origin.host.meter);
            }
        }
    }

    /// Finds the stream that a frame travelling this way is about; the client's number and the stream.
    fn lookup(&mut self, way: Way, id: u32) -> Option<(u32, &mut Stream)> {
        let own = match way {
            Way::Up => id,
            Way::Down => self.translated.get(&id).copied().unwrap_or(id),
        };
        let stream = self.streams.get_mut(&own)?;
        (way == Way::Up || stream.server_id == id).then_some((own, stream))
    }

    /// The number under which the receiver of this direction knows a stream.
    fn number(&self, way: Way, own: u32) -> u32 {
        match way {
            Way::Up => self.streams.get(&own).map_or(own, |s| s.server_id),
            Way::Down => own,
        }
    }

    /// Gives a stream its number at the server.
    fn open(&mut self, own: u32) -> u32 {
        let id = match self.last_server {
            0 => own,
            last => own.max(last + 2),
        };
        self.last_server = id;
        if id != own {
            self.translated.insert(id, own);
            self.touched = true;
        }
        if let Some(stream) = self.streams.get_mut(&own) {
            stream.server_id = id;
        }
        id
    }

    /// Notes that a direction of a stream is over, and forgets the stream if both are.
    fn done(&mut self, way: Way, own: u32) {
        let Some(stream) = self.streams.get_mut(&own) else {
            return;
        };
        stream.done[way as usize] = true;
        if stream.done == [true; 2] && !stream.waits(Way::Up) && !stream.waits(Way::Down) {
            self.forget(own);
        }
    }

    /// Nothing more is expected of a stream. What was under way passes as it is, unless the other side must not see it.
    fn forget(&mut self, own: u32) {
        let Some(stream) = self.streams.get_mut(&own) else {
            return;
        };
        if stream.ours || stream.server_id != own {
            if !stream.ours {
                stream.ours = true;
                self.ended.push_back(own);
            }
            self.trim();
        } else {
            self.streams.remove(&own);
        }
    }

    /// Forgets the oldest of the streams that rules have ended.
    fn trim(&mut self) {
        while self.ended.len() > MOST_ENDED {
            if let Some(old) = self.ended.pop_front()
                && let Some(stream) = self.streams.remove(&old)
            {
                self.translated.remove(&stream.server_id);
            }
        }
    }

    /// Bytes travelling this way are kept back: their sender gets them credited to its window for the connection.
    fn credit(&mut self, way: Way, bytes: usize) {
        if bytes > 0 {
            if way == Way::Down {
                self.window += bytes as i64;
            }
            codec::put_window_update(&mut self.side_mut(way.back()).late, 0, bytes);
        }
    }

    /// Writes a header block anew.
    fn put_fields(
        &mut self,
        way: Way,
        own: u32,
        fields: &[Field],
        end: bool,
        priority: Option<[u8; 5]>,
    ) {
        let id = self.number(way, own);
        let priority = priority.map(|p| self.translate_priority(p, id));
        let fragment = self.encode(way, fields);
        codec::put_block(
            &mut self.side_mut(way).late,
            id,
            end,
            priority,
            None,
            &fragment,
        );
    }

    /// Encodes a block without a table; the first one after the receiver's table has fallen behind says so.
    fn encode(&mut self, way: Way, fields: &[Field]) -> BytesMut {
        let side = self.side_mut(way);
        let mut fragment = BytesMut::new();
        if side.recode && !side.told {
            side.told = true;
            hpack::put_no_table(&mut fragment);
        }
        hpack::encode(fields, &mut fragment);
        fragment
    }

    /// A dependency names a stream as the server knows it; one that it does not know becomes the root.
    fn translate_priority(&self, mut priority: [u8; 5], of: u32) -> [u8; 5] {
        let [a, b, c, d, _] = priority;
        let word = u32::from_be_bytes([a, b, c, d]);
        let (exclusive, on) = (word & 0x8000_0000, word & 0x7fff_ffff);
        let there = match self.streams.get(&on) {
            Some(stream) => stream.server_id,
            None if self.translated.is_empty() => on,
            None => 0,
        };
        // RFC 9113, section 5.3.1: a stream cannot depend on itself.
        let there = if there == of { 0 } else { there };
        priority[..4].copy_from_slice(&(exclusive | there).to_be_bytes());
        priority
    }
}

/// Moves the bytes in front of `at` to the output; without copying if they are all there is.
fn move_on(out: &mut BytesMut, inbox: &mut BytesMut, at: &mut usize) {
    if *at == 0 {
        return;
    }
    if out.is_empty() && *at == inbox.len() {
        std::mem::swap(out, inbox);
    } else {
        out.extend_from_slice(&inbox[..*at]);
        inbox.advance(*at);
    }
    *at = 0;
}

/// Writes another stream number into every frame of a header block.
fn renumber(bytes: &mut [u8], id: u32) {
    let mut at = 0;
    while let Some(head) = Head::parse(&bytes[at..]) {
        bytes[at + 5..at + HEAD].copy_from_slice(&id.to_be_bytes());
        at += head.whole();
        if at >= bytes.len() {
            return;
        }
    }
}

/// Does this block, without fields being looked at, end its stream?
fn ends(head: Head) -> bool {
    matches!(head.kind, kind::HEADERS | kind::DATA) && head.has(flag::END_STREAM)
}
