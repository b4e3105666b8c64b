//! Bytes ↔ messages: frames and their heads for all traffic, whole messages for what rules act on.
//!
//! Source: the Kafka protocol guide; KIP-482 (flexible versions), KIP-511 (ApiVersions' response header).

pub mod schema;
pub mod value;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use schema::Api;
pub use value::{Form, Struct, Value};

/// What cannot be Kafka's protocol, as a lower-case fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// The size that every message begins with.
pub const SIZE: usize = 4;
/// The largest key taken for a request's: Kafka 4.1 has fewer than 100 kinds.
const LARGEST_KEY: i16 = 255;
/// The newest version taken for a request's: the most that any kind has had is 18.
const LARGEST_VERSION: i16 = 127;
/// The longest head of a request: two strings of 32 KiB, and room for tagged fields.
const LONGEST_HEAD: usize = 256 << 10;
/// The key of ControlledShutdown, whose version 0 has no client id.
const CONTROLLED_SHUTDOWN: i16 = 7;

/// What is known of a request without decoding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHead {
    /// How many bytes the whole message has, its size included.
    pub len: usize,
    /// Which request it is.
    pub api: i16,
    /// In which version.
    pub version: i16,
    /// What the response will repeat.
    pub correlation: i32,
    /// Where the client's name stands in the message; empty if it has none.
    pub client_id: (usize, usize),
    /// Does it get a response? A produce request with `acks=0` gets none.
    pub answered: bool,
}

/// Reads the head of the request at the front; `None` if not all of it is there.
///
/// # Errors
/// Bytes that are no request.
pub fn request_head(bytes: &[u8]) -> Result<Option<RequestHead>, Malformed> {
    let Some(len) = frame(bytes, 8)? else {
        return Ok(None);
    };
    let message = &bytes[..len.min(bytes.len())];
    let mut rest = &message[SIZE..];
    if rest.len() < 8 {
        return Ok(None);
    }
    let (api, version, correlation) = (rest.get_i16(), rest.get_i16(), rest.get_i32());
    if !(0..=LARGEST_KEY).contains(&api) || !(0..=LARGEST_VERSION).contains(&version) {
        return Err(Malformed("no request of Kafka's protocol"));
    }
    let mut head = RequestHead {
        len,
        api,
        version,
        correlation,
        client_id: (0, 0),
        answered: true,
    };
    if api == CONTROLLED_SHUTDOWN && version == 0 {
        return Ok(Some(head));
    }
    let whole = message.len() == len;
    let mut more = || -> Option<()> {
        let length = short(&mut rest)?;
        let start = message.len() - rest.len();
        skip(&mut rest, length)?;
        head.client_id = (start, start + length);
        if api == schema::PRODUCE {
            let flexible = schema::api(api).is_some_and(|api| api.is_flexible(version));
            if flexible {
                skip_tags(&mut rest)?;
                let length = value::uvarint(&mut rest).ok()?;
                skip(&mut rest, (length as usize).saturating_sub(1))?;
            } else if version >= 3 {
                let length = short(&mut rest)?;
                skip(&mut rest, length)?;
            }
            if rest.len() < 2 {
                return None;
            }
            head.answered = rest.get_i16() != 0;
        }
        Some(())
    };
    match more() {
        Some(()) => Ok(Some(head)),
        None if whole => Err(Malformed("a request that is shorter than its head")),
        None if message.len() > LONGEST_HEAD => Err(Malformed("a request's head is too long")),
        None => Ok(None),
    }
}

/// How many bytes the message at the front has, its size included; `None` if the size is not all there.
fn frame(mut bytes: &[u8], least: i32) -> Result<Option<usize>, Malformed> {
    if bytes.len() < SIZE {
        return Ok(None);
    }
    // A TLS record's type and version (RFC 8446, 5.1), where a message of 369 MB would begin likewise.
    if bytes.starts_with(&[0x16, 0x03]) {
        return Err(Malformed("TLS, not plain text"));
    }
    match bytes.get_i32() {
        size if size >= least => Ok(Some(SIZE + size as usize)),
        _ => Err(Malformed("a size that no message has")),
    }
}

/// A length of two bytes; null counts as empty.
fn short(input: &mut &[u8]) -> Option<usize> {
    if input.len() < 2 {
        return None;
    }
    Some(usize::try_from(input.get_i16()).unwrap_or(0))
}

fn skip(input: &mut &[u8], length: usize) -> Option<()> {
    *input = input.get(length..)?;
    Some(())
}

fn skip_tags(input: &mut &[u8]) -> Option<()> {
    for _ in 0..value::uvarint(input).ok()? {
        value::uvarint(input).ok()?;
        let size = value::uvarint(input).ok()?;
        skip(input, size as usize)?;
    }
    Some(())
}

/// What is known of a response without decoding it: its length with the size, and whom it answers. `None` if that is not all there.
///
/// # Errors
/// Bytes that are no response.
pub fn reply_head(bytes: &[u8]) -> Result<Option<(usize, i32)>, Malformed> {
    let Some(len) = frame(bytes, 4)? else {
        return Ok(None);
    };
    let mut rest = &bytes[SIZE..];
    if rest.len() < 4 {
        return Ok(None);
    }
    Ok(Some((len, rest.get_i32())))
}

/// A whole request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Which request it is.
    pub api: &'static Api,
    /// In which version.
    pub version: i16,
    /// What the response will repeat.
    pub correlation: i32,
    /// The client's name for itself.
    pub client_id: Option<Bytes>,
    /// What it asks.
    pub body: Struct,
    tags: Bytes,
    tail: Bytes,
}

impl Request {
    /// A request of ours in which every field has its default.
    pub fn new(api: &'static Api, version: i16, correlation: i32) -> Request {
        Request {
            api,
            version,
            correlation,
            client_id: Some(Bytes::from_static(b"faultbox")),
            body: Struct::new(&api.request, version),
            tags: Bytes::new(),
            tail: Bytes::new(),
        }
    }

    /// Reads a whole message, its size included. `None` if the table does not have this request in this version.
    ///
    /// # Errors
    /// A body that is not as the table says.
    pub fn decode(mut message: Bytes) -> Result<Option<Request>, Malformed> {
        let Some(head) = request_head(&message)? else {
            return Err(Malformed("a request in pieces"));
        };
        let Some(api) = schema::api(head.api).filter(|api| api.knows(head.version)) else {
            return Ok(None);
        };
        message.advance(SIZE + 8);
        let form = form(api, head.version);
        let client_id = match message.get_i16() {
            -1 => None,
            length => Some(message.split_to(usize::try_from(length).unwrap_or(0))),
        };
        let tags = match form.flexible {
            true => split_tags(&mut message)?,
            false => Bytes::new(),
        };
        let body = value::decode(&api.request, form, &mut message)?;
        Ok(Some(Request {
            api,
            version: head.version,
            correlation: head.correlation,
            client_id,
            body,
            tags,
            tail: message,
        }))
    }

    /// The message, its size included.
    pub fn encode(&self) -> Bytes {
        let form = form(self.api, self.version);
        let mut out = BytesMut::new();
        out.put_i32(0);
        out.put_i16(self.api.key);
        out.put_i16(self.version);
        out.put_i32(self.correlation);
        match &self.client_id {
            None => out.put_i16(-1),
            Some(name) => {
                out.put_i16(name.len() as i16);
                out.put_slice(name);
            }
        }
        if form.flexible {
            put_tags(&self.tags, &mut out);
        }
        value::encode(&self.body, form, &mut out);
        out.put_slice(&self.tail);
        sized(out)
    }
}

/// A whole response.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// Which request it answers.
    pub api: &'static Api,
    /// In which version.
    pub version: i16,
    /// The request's.
    pub correlation: i32,
    /// What it says.
    pub body: Struct,
    tags: Bytes,
    /// What follows the body. Nothing should, and clients do not look.
    tail: Bytes,
}

impl Reply {
    /// A response in which every field has its default.
    pub fn new(api: &'static Api, version: i16, correlation: i32) -> Reply {
        Reply {
            api,
            version,
            correlation,
            body: Struct::new(&api.response, version),
            tags: Bytes::new(),
            tail: Bytes::new(),
        }
    }

    /// Reads a whole message, its size included.
    ///
    /// # Errors
    /// A body that is not as the table says.
    pub fn decode(api: &'static Api, version: i16, mut message: Bytes) -> Result<Reply, Malformed> {
        if reply_head(&message)?.is_none_or(|(len, _)| len != message.len()) {
            return Err(Malformed("a response in pieces"));
        }
        message.advance(SIZE);
        let correlation = message.get_i32();
        let tags = match api.reply_header_is_flexible(version) {
            true => split_tags(&mut message)?,
            false => Bytes::new(),
        };
        let body = value::decode(&api.response, form(api, version), &mut message)?;
        Ok(Reply {
            api,
            version,
            correlation,
            body,
            tags,
            tail: message,
        })
    }

    /// The message, its size included.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_i32(0);
        out.put_i32(self.correlation);
        if self.api.reply_header_is_flexible(self.version) {
            put_tags(&self.tags, &mut out);
        }
        value::encode(&self.body, form(self.api, self.version), &mut out);
        out.put_slice(&self.tail);
        sized(out)
    }
}

/// The form of this version's bodies.
pub fn form(api: &Api, version: i16) -> Form {
    Form {
        version,
        flexible: api.is_flexible(version),
    }
}

/// Splits a header's tagged fields off, unread; empty if there are none.
fn split_tags(message: &mut Bytes) -> Result<Bytes, Malformed> {
    let mut rest = &message[..];
    skip_tags(&mut rest).ok_or(Malformed("a header's tagged fields do not end"))?;
    let length = message.len() - rest.len();
    let tags = message.split_to(length);
    Ok(if tags == NO_TAGS { Bytes::new() } else { tags })
}

fn put_tags(tags: &Bytes, out: &mut BytesMut) {
    match tags.is_empty() {
        true => out.put_slice(NO_TAGS),
        false => out.put_slice(tags),
    }
}

/// A header's tagged fields when there are none: their number.
const NO_TAGS: &[u8] = &[0];

/// Fills the size in.
fn sized(mut message: BytesMut) -> Bytes {
    let size = (message.len() - SIZE) as i32;
    message[..SIZE].copy_from_slice(&size.to_be_bytes());
    message.freeze()
}
