//! The heads that nearly all messages have, read no further than framing needs: while no rule is armed nobody asks for more, and finding
//! lines takes a quarter of what parsing them does.
//!
//! Only a head that leaves no doubt is read here: every line ends with CR LF, the first is of HTTP/1.0 or 1.1, each other has a name and
//! a colon. About all else the answer is `None`, "ask the parser", which also knows what is wrong with it. Which bytes names and values
//! are made of is not looked at.

use memchr::{memchr, memchr2};

use super::{Hop, ReplyInfo, RequestInfo, RequestKind};

/// As many fields as the parser takes without asking for memory; more are rare.
const FIELDS: usize = 64;

/// The request head at the start of `bytes`; the same as the parser finds.
pub fn request(bytes: &[u8]) -> Option<RequestInfo> {
    let end = line_end(bytes)?;
    let line = &bytes[..end];
    let (target, http10) = match line.split_last_chunk::<9>()? {
        (target, b" HTTP/1.1") => (target, false),
        (target, b" HTTP/1.0") => (target, true),
        _ => return None,
    };
    let space = memchr(b' ', target)?;
    let (method, target) = (&target[..space], &target[space + 1..]);
    if method.is_empty() || target.is_empty() || memchr(b' ', target).is_some() {
        return None;
    }
    let kind = match method {
        b"HEAD" => RequestKind::Head,
        b"CONNECT" => RequestKind::Connect,
        _ if method.iter().all(u8::is_ascii_alphabetic) => RequestKind::Other,
        _ => return None,
    };
    let (hop, len) = fields(bytes, end + 2)?;
    hop.request(len, kind, http10).ok()
}

/// The reply head at the start of `bytes`; see [`request`].
pub fn reply(bytes: &[u8], kind: RequestKind) -> Option<ReplyInfo> {
    let end = line_end(bytes)?;
    let line = &bytes[..end];
    let rest = line
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| line.strip_prefix(b"HTTP/1.0 "))?;
    let (digits, rest) = rest.split_first_chunk::<3>()?;
    if !digits.iter().all(u8::is_ascii_digit) || !matches!(rest, [] | [b' ', ..]) {
        return None;
    }
    let status = digits.iter().fold(0, |n, d| n * 10 + u16::from(d - b'0'));
    let (hop, len) = fields(bytes, end + 2)?;
    Some(hop.reply(len, status, kind))
}

/// What the fields from `at` on say, and where the head ends.
fn fields(bytes: &[u8], mut at: usize) -> Option<(Hop, usize)> {
    let mut hop = Hop::default();
    for _ in 0..=FIELDS {
        let rest = &bytes[at..];
        let end = line_end(rest)?;
        at += end + 2;
        if end == 0 {
            return Some((hop, at));
        }
        let line = &rest[..end];
        let colon = memchr(b':', line)?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        // A line that begins with a space goes on with the one before it, and a name that ends with one is read in two ways.
        if matches!(name, [] | [b' ' | b'\t', ..] | [.., b' ' | b'\t']) {
            return None;
        }
        hop.note(name, value).ok()?;
    }
    None
}

/// Where the first line of `bytes` ends, if with CR LF.
fn line_end(bytes: &[u8]) -> Option<usize> {
    let end = memchr2(b'\r', b'\n', bytes)?;
    bytes[end..].starts_with(b"\r\n").then_some(end)
}
