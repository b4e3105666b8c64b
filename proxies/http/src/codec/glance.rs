//! The heads that nearly all messages have, read no further than framing needs: while no rule is armed nobody asks for more, and finding
//! lines takes a quarter of what parsing them does.
//!
//! Only a head that leaves no doubt is read here: every line ends with CR LF, the first is of HTTP/1.0 or 1.1, each other has a name
//! without spaces, and a colon. About all else the answer is `None`, "ask the parser", which also knows what is wrong with it. Which other
//! bytes names and values are made of is not looked at.
//!
//! Lines are short: what follows takes eight bytes at a time, and is done before a search made for long texts has begun.

use memchr::memchr;

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
    let space = target.iter().position(|b| *b == b' ')?;
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
        let rest = bytes.get(at..)?;
        let colon = rest.iter().position(|b| *b <= b' ' || *b == b':')?;
        let name = &rest[..colon];
        if name.is_empty() && rest.starts_with(b"\r\n") {
            return Some((hop, at + 2));
        }
        // A line that begins with a space goes on with the one before it, and a name that ends with one is read in two ways.
        if name.is_empty() || rest[colon] != b':' {
            return None;
        }
        let value = &rest[colon + 1..];
        let end = line_end(value)?;
        if Hop::minds(name) {
            hop.note(name, &value[..end]).ok()?;
        }
        at += colon + 1 + end + 2;
    }
    None
}

/// Where the first line of `bytes` ends, if with CR LF.
fn line_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += control(&bytes[at..])?;
        match bytes[at..] {
            [b'\r', b'\n', ..] => return Some(at),
            [b'\r' | b'\n', ..] => return None,
            _ => at += 1,
        }
    }
}

/// The first control character of ASCII: CR and LF are two of them, and there are hardly any others in a head.
fn control(bytes: &[u8]) -> Option<usize> {
    const EACH: u64 = u64::from_ne_bytes([1; 8]);
    let (words, rest) = bytes.as_chunks::<8>();
    for (n, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // The top bit of each byte below 0x20; a borrow may set that of a byte behind one.
        let found = word.wrapping_sub(EACH * 0x20) & !word & (EACH * 0x80);
        if found != 0 {
            return Some(n * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    let at = rest.iter().position(|b| *b < 0x20)?;
    Some(bytes.len() - rest.len() + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_found_wherever_they_stand() {
        for len in 0..20 {
            for filler in [b' ', b'~', 0x7f, 0x80, 0xa0, 0xff] {
                assert_eq!(control(&vec![filler; len]), None);
                for at in 0..len {
                    let mut bytes = vec![filler; len];
                    bytes[at..].fill(0x1f);
                    assert_eq!(control(&bytes), Some(at), "{filler} {len}");
                    bytes[at..].fill(filler);
                    bytes[at] = b'\r';
                    assert_eq!(control(&bytes), Some(at), "{filler} {len}");
                }
            }
        }
    }

    #[test]
    fn a_line_may_have_tabs_and_ends_with_both_characters() {
        assert_eq!(line_end(b"a\tb\r\nc\r\n"), Some(3));
        for none in [&b"a\nb\r\n"[..], b"a\rb\r\n", b"a\r", b"a", b""] {
            assert_eq!(line_end(none), None);
        }
    }
}
