//! Messages and names (RFC 1035, section 4), as far as rules, answers and the step need them.

use std::fmt::Write as _;

/// The header's length.
pub const HEADER: usize = 12;
/// The header's bit that tells a reply from a query.
pub const QR: u16 = 1 << 15;
/// Authoritative answer.
pub const AA: u16 = 1 << 10;
/// Truncated: ask again over TCP.
pub const TC: u16 = 1 << 9;
/// Recursion desired.
pub const RD: u16 = 1 << 8;
/// Recursion available.
pub const RA: u16 = 1 << 7;
/// Authentic data (RFC 4035).
pub const AD: u16 = 1 << 5;
/// Checking disabled (RFC 4035).
pub const CD: u16 = 1 << 4;
/// The four bits of the operation.
pub const OPCODE: u16 = 0xf << 11;
/// The four bits of the response code.
pub const RCODE: u16 = 0xf;

/// The class of all names of the internet (RFC 1035, section 3.2.4).
pub const IN: u16 = 1;
/// The class in which servers speak of themselves (RFC 4892).
pub const CHAOS: u16 = 3;

/// The type of the pseudo-record that carries EDNS (RFC 6891).
pub const OPT: u16 = 41;
/// The option with a client's and a server's cookie (RFC 7873).
pub const COOKIE: u16 = 10;

/// The longest name on the wire (RFC 1035, section 2.3.4).
const LONGEST_NAME: usize = 255;
/// The longest label.
const LONGEST_LABEL: usize = 63;

/// Why a message cannot be read, as a lower-case fragment.
pub type Malformed = &'static str;

/// A query, as far as rules look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The transaction's number.
    pub id: u16,
    /// The header's second word.
    pub flags: u16,
    /// The name asked for, in presentation form, without the last dot; "." is the root.
    pub name: String,
    /// The type asked for.
    pub kind: u16,
    /// The question as it came: a reply repeats it to the letter, because clients compare (RFC 5452, "0x20" case included).
    pub question: Vec<u8>,
    /// What the client understands beyond RFC 1035.
    pub edns: Option<Edns>,
}

/// The client's EDNS pseudo-record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edns {
    /// The largest datagram that it takes.
    pub size: u16,
    /// It wants DNSSEC records.
    pub dnssec_ok: bool,
    /// The whole cookie, if it has the server's part too.
    pub cookie: Option<Vec<u8>>,
}

/// Reads big-endian words, and never past the end.
pub struct Reader<'a> {
    /// The whole message: compressed names point into it.
    pub message: &'a [u8],
    /// Where reading goes on.
    pub at: usize,
}

impl<'a> Reader<'a> {
    /// Takes `n` bytes.
    ///
    /// # Errors
    /// There are fewer.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(n).ok_or("too short")?;
        let bytes = self.message.get(self.at..end).ok_or("too short")?;
        self.at = end;
        Ok(bytes)
    }

    /// Takes one byte.
    ///
    /// # Errors
    /// There is none.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    /// Takes a word.
    ///
    /// # Errors
    /// There is less.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Takes a double word.
    ///
    /// # Errors
    /// There is less.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from(self.u16()?) << 16 | u32::from(self.u16()?))
    }

    /// Takes a name, compressed or not, in presentation form without the last dot; "." is the root.
    ///
    /// # Errors
    /// It ends too early, is too long, or its pointers do not lead backwards.
    pub fn name(&mut self) -> Result<String, Malformed> {
        let mut text = String::new();
        let mut length = 1;
        let mut jumped: Option<usize> = None;
        let mut at = self.at;
        loop {
            let first = *self.message.get(at).ok_or("too short")?;
            match first >> 6 {
                0 => {
                    let n = usize::from(first);
                    at += 1;
                    if n == 0 {
                        break;
                    }
                    let label = self.message.get(at..at + n).ok_or("too short")?;
                    at += n;
                    length += n + 1;
                    if length > LONGEST_NAME {
                        return Err("a name of more than 255 bytes");
                    }
                    if !text.is_empty() {
                        text.push('.');
                    }
                    show_label(label, &mut text);
                }
                3 => {
                    let low = *self.message.get(at + 1).ok_or("too short")?;
                    let target = usize::from(first & 0x3f) << 8 | usize::from(low);
                    // Each pointer must lead further back than the last, so that this ends.
                    if target >= jumped.map_or(at, |j| j.min(at)) {
                        return Err("a name that points forward");
                    }
                    if jumped.is_none() {
                        self.at = at + 2;
                    }
                    jumped = Some(target);
                    at = target;
                }
                _ => return Err("a label of an unknown kind"),
            }
        }
        if jumped.is_none() {
            self.at = at;
        }
        if text.is_empty() {
            text.push('.');
        }
        Ok(text)
    }
}

/// A label as master files write it (RFC 1035, section 5.1): a dot inside it, and what cannot be printed, is escaped.
fn show_label(label: &[u8], text: &mut String) {
    for byte in label {
        match byte {
            b'.' | b'\\' | b'"' | b'(' | b')' | b';' | b'@' | b'$' => {
                text.push('\\');
                text.push(char::from(*byte));
            }
            0x21..=0x7e => text.push(char::from(*byte)),
            _ => {
                let _ = write!(text, "\\{byte:03}");
            }
        }
    }
}

/// Writes a name in presentation form, uncompressed. A last dot may be left out.
///
/// # Errors
/// What is wrong with it, as a lower-case fragment.
pub fn put_name(text: &str, out: &mut Vec<u8>) -> Result<(), String> {
    let begin = out.len();
    let mut rest = text.strip_suffix('.').filter(|r| !r.ends_with('\\'));
    if text == "." {
        out.push(0);
        return Ok(());
    }
    let mut bytes = rest.take().unwrap_or(text).bytes();
    let mut label: Vec<u8> = vec![];
    loop {
        let next = bytes.next();
        match next {
            None | Some(b'.') => {
                if label.is_empty() {
                    return Err(format!("`{text}` has an empty label"));
                }
                if label.len() > LONGEST_LABEL {
                    return Err(format!("`{text}` has a label of more than 63 bytes"));
                }
                out.push(label.len() as u8);
                out.append(&mut label);
                if next.is_none() {
                    break;
                }
            }
            Some(b'\\') => {
                let escaped = || format!("`{text}` ends in a lone `\\`");
                let first = bytes.next().ok_or_else(escaped)?;
                if !first.is_ascii_digit() {
                    label.push(first);
                    continue;
                }
                let digits = [first, bytes.next().unwrap_or(0), bytes.next().unwrap_or(0)];
                let number = std::str::from_utf8(&digits)
                    .ok()
                    .and_then(|d| d.parse::<u8>().ok());
                label.push(number.ok_or_else(|| {
                    format!("`{text}`: after `\\` stand three digits up to 255, or one character")
                })?);
            }
            Some(byte) => label.push(byte),
        }
    }
    out.push(0);
    if out.len() - begin > LONGEST_NAME {
        return Err(format!("`{text}` is longer than 255 bytes"));
    }
    Ok(())
}

/// Reads a query; `None` if the message is none that rules can speak of: a reply, or one without exactly one question.
///
/// # Errors
/// It is no DNS message.
pub fn query(message: &[u8]) -> Result<Option<Query>, Malformed> {
    let mut reader = Reader { message, at: 0 };
    let id = reader.u16()?;
    let flags = reader.u16()?;
    let questions = reader.u16()?;
    let others = u32::from(reader.u16()?) + u32::from(reader.u16()?);
    let additional = reader.u16()?;
    if flags & QR != 0 || questions != 1 {
        return Ok(None);
    }
    let name = reader.name()?;
    let kind = reader.u16()?;
    reader.u16()?;
    let question = message[HEADER..reader.at].to_vec();
    let mut edns = None;
    for i in 0..others + u32::from(additional) {
        let owner = reader.name()?;
        let kind = reader.u16()?;
        let class = reader.u16()?;
        let ttl = reader.u32()?;
        let length = usize::from(reader.u16()?);
        let data = reader.take(length)?;
        if i >= others && kind == OPT && owner == "." {
            edns = Some(Edns {
                size: class,
                dnssec_ok: ttl & (1 << 15) != 0,
                cookie: cookie(data)?,
            });
        }
    }
    Ok(Some(Query {
        id,
        flags,
        name,
        kind,
        question,
        edns,
    }))
}

/// The cookie among EDNS options, if it has both parts: 8 bytes are the client's, and 8 to 32 follow from the server (RFC 7873,
/// section 4).
fn cookie(options: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
    let mut reader = Reader {
        message: options,
        at: 0,
    };
    let mut found = None;
    while reader.at < options.len() {
        let code = reader.u16()?;
        let length = usize::from(reader.u16()?);
        let data = reader.take(length)?;
        if code == COOKIE && (16..=40).contains(&length) {
            found = Some(data.to_vec());
        }
    }
    Ok(found)
}

/// How a message stands in a byte stream: behind its length (RFC 1035, section 4.2.2). Counts without looking inside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Framing {
    /// What is left of the message at hand.
    left: usize,
    /// The first half of its length, if only that has come.
    half: Option<u8>,
}

impl Framing {
    /// Is a new message about to begin?
    pub fn at_boundary(&self) -> bool {
        self.left == 0 && self.half.is_none()
    }

    /// Goes past `bytes`; stops behind the message at hand if `one`. Returns how many bytes it went past.
    pub fn advance(&mut self, bytes: &[u8], one: bool) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            if self.left > 0 {
                let n = self.left.min(bytes.len() - at);
                self.left -= n;
                at += n;
            } else {
                match self.half.take() {
                    None => self.half = Some(bytes[at]),
                    Some(high) => self.left = usize::from(u16::from_be_bytes([high, bytes[at]])),
                }
                at += 1;
            }
            if one && self.at_boundary() {
                break;
            }
        }
        at
    }
}

/// The first message of a stream that stands at a boundary, without its length; `None` while it is incomplete.
pub fn first_message(bytes: &[u8]) -> Option<&[u8]> {
    let length = usize::from(u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]));
    bytes.get(2..2 + length)
}

/// A message behind its length. Messages have at most 65 535 bytes.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut out = Vec::with_capacity(message.len() + 2);
    out.extend(length.to_be_bytes());
    out.extend(&message[..usize::from(length)]);
    out
}
