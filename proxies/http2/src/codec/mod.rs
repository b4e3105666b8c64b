//! HTTP/2 frames (RFC 9113, section 4 and 6): finding them, and writing the few that the proxy says itself.

pub mod hpack;
mod huffman;

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};

/// What a client says first (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame's head: length, type, flags, stream.
pub const HEAD: usize = 9;

/// The size of frames that every receiver takes (RFC 9113, section 4.2).
pub const SMALLEST_MAX_FRAME: usize = 16 << 10;

/// The most bytes of one header block, frame heads included. Servers refuse far less (nginx 32 KiB, Go 1 MiB).
pub const LARGEST_BLOCK: usize = 1 << 20;

/// The most CONTINUATION frames of one block. What fits into a block takes at most 64 of them at the usual frame size; more is the
/// "CONTINUATION flood" (CVE-2024-27316).
pub const MOST_CONTINUATIONS: usize = 128;

/// Frame types (RFC 9113, section 6).
pub mod kind {
    #![allow(missing_docs)]
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Frame flags.
pub mod flag {
    #![allow(missing_docs)]
    pub const ACK: u8 = 0x1;
    pub const END_STREAM: u8 = 0x1;
    pub const END_HEADERS: u8 = 0x4;
    pub const PADDED: u8 = 0x8;
    pub const PRIORITY: u8 = 0x20;
}

/// Settings (RFC 9113, section 6.5.2).
pub mod setting {
    #![allow(missing_docs)]
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
}

/// Error codes (RFC 9113, section 7), by number.
pub const ERROR_CODES: &[&str] = &[
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

/// The error codes that the proxy itself says.
pub mod code {
    #![allow(missing_docs)]
    pub const NO_ERROR: u32 = 0;
    pub const INTERNAL_ERROR: u32 = 2;
    pub const REFUSED_STREAM: u32 = 7;
    pub const CANCEL: u32 = 8;
}

/// Not HTTP/2; says why, as a lower-case fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// A frame's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The payload's length.
    pub len: usize,
    /// See [`kind`].
    pub kind: u8,
    /// See [`flag`].
    pub flags: u8,
    /// The stream; 0 is the connection.
    pub stream: u32,
}

impl Head {
    /// Reads a head; `None` if there are fewer than nine bytes.
    pub fn parse(bytes: &[u8]) -> Option<Head> {
        let b = bytes.get(..HEAD)?;
        Some(Head {
            len: (b[0] as usize) << 16 | (b[1] as usize) << 8 | b[2] as usize,
            kind: b[3],
            flags: b[4],
            stream: u32::from_be_bytes([b[5], b[6], b[7], b[8]]) & 0x7fff_ffff,
        })
    }

    /// Writes it.
    pub fn put(self, out: &mut BytesMut) {
        out.put_uint(self.len as u64, 3);
        out.put_u8(self.kind);
        out.put_u8(self.flags);
        out.put_u32(self.stream);
    }

    /// Is this flag set?
    pub fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The frame with its head.
    pub fn whole(self) -> usize {
        HEAD + self.len
    }

    /// Does the frame break the rules that need no context (RFC 9113, section 6)?
    ///
    /// # Errors
    /// Which one.
    pub fn check(self, max_frame: usize) -> Result<(), Malformed> {
        if self.len > max_frame {
            return Err(Malformed("a frame is larger than its receiver allows"));
        }
        let (wrong_size, wants_stream) = match self.kind {
            kind::DATA | kind::HEADERS | kind::CONTINUATION | kind::PUSH_PROMISE => {
                (false, Some(true))
            }
            kind::PRIORITY => (self.len != 5, Some(true)),
            kind::RST_STREAM => (self.len != 4, Some(true)),
            kind::SETTINGS => (
                !self.len.is_multiple_of(6) || (self.has(flag::ACK) && self.len != 0),
                Some(false),
            ),
            kind::PING => (self.len != 8, Some(false)),
            kind::GOAWAY => (self.len < 8, Some(false)),
            kind::WINDOW_UPDATE => (self.len != 4, None),
            _ => (false, None),
        };
        if wrong_size {
            return Err(Malformed("a frame has a size that its type does not allow"));
        }
        match wants_stream {
            Some(true) if self.stream == 0 => Err(Malformed("a stream's frame is on stream 0")),
            Some(false) if self.stream != 0 => {
                Err(Malformed("the connection's frame is on a stream"))
            }
            _ => Ok(()),
        }
    }
}

/// Where the content of a padded payload lies.
///
/// # Errors
/// More padding than payload.
pub fn content(head: Head, payload: &[u8]) -> Result<std::ops::Range<usize>, Malformed> {
    if !head.has(flag::PADDED) {
        return Ok(0..payload.len());
    }
    match payload.first() {
        Some(&pad) if usize::from(pad) < payload.len() => Ok(1..payload.len() - usize::from(pad)),
        _ => Err(Malformed("a frame has more padding than payload")),
    }
}

/// A whole header block: HEADERS or PUSH_PROMISE, with the CONTINUATION frames that belong to it.
#[derive(Debug)]
pub struct Block<'a> {
    /// The first frame's head.
    pub head: Head,
    /// The bytes of all its frames.
    pub whole: usize,
    /// What HPACK decodes.
    pub fragment: Cow<'a, [u8]>,
    /// Of HEADERS: dependency and weight, as sent.
    pub priority: Option<[u8; 5]>,
    /// Of PUSH_PROMISE: the stream to come.
    pub promised: u32,
}

/// Reads the block whose first frame is at the front; `None` if it is not complete.
///
/// # Errors
/// Frames of something else within the block, or more than the limits of this module.
pub fn block(bytes: &[u8], max_frame: usize) -> Result<Option<Block<'_>>, Malformed> {
    let Some(head) = Head::parse(bytes) else {
        return Ok(None);
    };
    if head.whole() > LARGEST_BLOCK {
        return Err(Malformed("a header block is larger than 1 MiB"));
    }
    let Some(payload) = bytes.get(HEAD..head.whole()) else {
        return Ok(None);
    };
    let mut range = content(head, payload)?;
    let short = Malformed("a header frame is too short for its flags");
    let mut priority = None;
    let mut promised = 0;
    if head.kind == kind::PUSH_PROMISE {
        let id = payload[range.clone()].first_chunk::<4>().ok_or(short)?;
        promised = u32::from_be_bytes(*id) & 0x7fff_ffff;
        range.start += 4;
    } else if head.has(flag::PRIORITY) {
        priority = Some(*payload[range.clone()].first_chunk::<5>().ok_or(short)?);
        range.start += 5;
    }
    let mut fragment = Cow::Borrowed(&payload[range]);
    let mut whole = head.whole();
    let mut ended = head.has(flag::END_HEADERS);
    let mut continuations = 0;
    while !ended {
        let Some(next) = Head::parse(&bytes[whole..]) else {
            return Ok(None);
        };
        if next.kind != kind::CONTINUATION || next.stream != head.stream {
            return Err(Malformed("a header block is interrupted by another frame"));
        }
        next.check(max_frame)?;
        continuations += 1;
        if continuations > MOST_CONTINUATIONS {
            return Err(Malformed("a header block has too many CONTINUATION frames"));
        }
        if whole + next.whole() > LARGEST_BLOCK {
            return Err(Malformed("a header block is larger than 1 MiB"));
        }
        let Some(more) = bytes.get(whole + HEAD..whole + next.whole()) else {
            return Ok(None);
        };
        fragment.to_mut().extend_from_slice(more);
        whole += next.whole();
        ended = next.has(flag::END_HEADERS);
    }
    Ok(Some(Block {
        head,
        whole,
        fragment,
        priority,
        promised,
    }))
}

/// The settings of a SETTINGS payload.
pub fn settings(payload: &[u8]) -> impl Iterator<Item = (u16, u32)> {
    payload.chunks_exact(6).map(|s| {
        (
            u16::from_be_bytes([s[0], s[1]]),
            u32::from_be_bytes([s[2], s[3], s[4], s[5]]),
        )
    })
}

/// Writes a header block in as many frames as it takes. `promised` makes it a PUSH_PROMISE.
pub fn put_block(
    out: &mut BytesMut,
    stream: u32,
    end_stream: bool,
    priority: Option<[u8; 5]>,
    promised: Option<u32>,
    fragment: &[u8],
) {
    let mut lead = BytesMut::new();
    let mut flags = 0;
    if let Some(id) = promised {
        lead.put_u32(id);
    }
    if let Some(priority) = priority {
        lead.put_slice(&priority);
        flags |= flag::PRIORITY;
    }
    if end_stream {
        flags |= flag::END_STREAM;
    }
    let first = fragment.len().min(SMALLEST_MAX_FRAME - lead.len());
    let mut rest = &fragment[first..];
    Head {
        len: lead.len() + first,
        kind: if promised.is_some() {
            kind::PUSH_PROMISE
        } else {
            kind::HEADERS
        },
        flags: flags
            | if rest.is_empty() {
                flag::END_HEADERS
            } else {
                0
            },
        stream,
    }
    .put(out);
    out.put_slice(&lead);
    out.put_slice(&fragment[..first]);
    while !rest.is_empty() {
        let n = rest.len().min(SMALLEST_MAX_FRAME);
        Head {
            len: n,
            kind: kind::CONTINUATION,
            flags: if n == rest.len() {
                flag::END_HEADERS
            } else {
                0
            },
            stream,
        }
        .put(out);
        out.put_slice(&rest[..n]);
        rest = &rest[n..];
    }
}

/// Writes content as DATA frames that every receiver takes; at least one, if only to say that the stream ends.
pub fn put_data(out: &mut BytesMut, stream: u32, mut content: &[u8], end_stream: bool) {
    loop {
        let n = content.len().min(SMALLEST_MAX_FRAME);
        let last = n == content.len();
        Head {
            len: n,
            kind: kind::DATA,
            flags: if last && end_stream {
                flag::END_STREAM
            } else {
                0
            },
            stream,
        }
        .put(out);
        out.put_slice(&content[..n]);
        content = &content[n..];
        if last {
            return;
        }
    }
}

/// Writes a RST_STREAM.
pub fn put_rst_stream(out: &mut BytesMut, stream: u32, code: u32) {
    put_word(out, kind::RST_STREAM, stream, code);
}

/// Writes a WINDOW_UPDATE, if there is anything to add.
pub fn put_window_update(out: &mut BytesMut, stream: u32, more: usize) {
    if more > 0 {
        put_word(out, kind::WINDOW_UPDATE, stream, more as u32);
    }
}

fn put_word(out: &mut BytesMut, kind: u8, stream: u32, word: u32) {
    Head {
        len: 4,
        kind,
        flags: 0,
        stream,
    }
    .put(out);
    out.put_u32(word);
}

/// Writes a GOAWAY with its reason as debug data.
pub fn put_goaway(out: &mut BytesMut, last: u32, code: u32, why: &str) {
    Head {
        len: 8 + why.len(),
        kind: kind::GOAWAY,
        flags: 0,
        stream: 0,
    }
    .put(out);
    out.put_u32(last);
    out.put_u32(code);
    out.put_slice(why.as_bytes());
}
