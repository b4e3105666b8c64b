//! HTTP/1.x framing: where messages begin and end. Nothing here copies or changes a byte.
//!
//! Heads are parsed by httparse, only as far as the framing needs (RFC 9112, 6.3). "Not enough bytes yet" is an ordinary outcome;
//! [`Malformed`] is for what no further byte can mend, and the proxy then stops looking and forwards raw.

mod glance;

use std::mem::MaybeUninit;
use std::ops::Range;

use memchr::memmem;

/// The most bytes that a head may take. Well above what servers accept by default (nginx 32 KiB, Node 16 KiB, Apache 8 KiB a
/// line), so that the server's own answer to an oversized head is what the client sees; below what would hurt per connection.
pub const MAX_HEAD: usize = 256 << 10;
/// The most header fields in one head; as above (Apache allows 100, Go and nginx go by bytes).
const MAX_FIELDS: usize = 2048;
/// Most heads have fewer fields; these take no memory.
const FEW_FIELDS: usize = 64;
/// The most bytes in a chunk's size line; extensions are rare and short (Node stops at 16 KiB).
const MAX_CHUNK_LINE: usize = 16 << 10;
/// The most bytes in a trailer section: the same as a head.
const MAX_TRAILERS: usize = MAX_HEAD;

/// Why bytes are not HTTP/1.x.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// After this many bytes; 0 is no body.
    Length(u64),
    /// With the last chunk and its trailers.
    Chunked,
    /// With the connection. Replies only.
    UntilClose,
}

/// What a request's head says about framing and the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestInfo {
    /// Bytes in the head, blank line included.
    pub len: usize,
    /// How the body ends.
    pub framing: Framing,
    /// How the reply is to be read.
    pub kind: RequestKind,
    /// Does the client wait for "100 Continue" before it sends the body?
    pub expects_continue: bool,
    /// Does it ask to leave HTTP (Upgrade)?
    pub upgrade: bool,
    /// May another request follow?
    pub keep_alive: bool,
    /// Is it HTTP/1.0?
    pub http10: bool,
}

/// What the method says about the reply (RFC 9112, 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RequestKind {
    /// The reply has no body.
    Head,
    /// A 2xx reply turns the connection into a tunnel.
    Connect,
    /// All others.
    #[default]
    Other,
}

/// What a reply's head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyInfo {
    /// Bytes in the head, blank line included.
    pub len: usize,
    /// The status code.
    pub status: u16,
    /// How the body ends.
    pub framing: Framing,
}

impl ReplyInfo {
    /// Is this an interim reply, with the final one still to come?
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }

    /// Does HTTP end here, for the connection to go on as something else?
    pub fn leaves_http(&self, kind: RequestKind) -> bool {
        self.status == 101 || (kind == RequestKind::Connect && (200..300).contains(&self.status))
    }
}

/// How closely a head is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// For its framing. Names and values of an ordinary head may be made of any bytes.
    Framing,
    /// As one that is to be understood: what is not HTTP in it makes it [`Malformed`].
    Whole,
}

/// Finds the end of a head that arrives in pieces, without parsing it anew for every piece.
#[derive(Debug, Default)]
pub struct HeadSearch {
    /// No head ends before here.
    from: usize,
    /// The length at the last attempt to parse.
    tried: usize,
}

impl HeadSearch {
    /// The head at the start of `bytes`, if it is complete.
    ///
    /// # Errors
    /// [`Malformed`] as soon as the bytes cannot become a request.
    pub fn request(&mut self, bytes: &[u8], look: Look) -> Result<Option<RequestInfo>, Malformed> {
        if self.may_glance(look)
            && let Some(seen) = glance::request(bytes)
        {
            return Ok(Some(seen));
        }
        self.search(bytes, scan_request)
    }

    /// The head at the start of `bytes`, if it is complete. `kind` is the request's.
    ///
    /// # Errors
    /// [`Malformed`] as soon as the bytes cannot become a reply.
    pub fn reply(
        &mut self,
        bytes: &[u8],
        kind: RequestKind,
        look: Look,
    ) -> Result<Option<ReplyInfo>, Malformed> {
        if self.may_glance(look)
            && let Some(seen) = glance::reply(bytes, kind)
        {
            return Ok(Some(seen));
        }
        self.search(bytes, |b| scan_reply(b, kind))
    }

    /// One glance at each head: one that comes in many pieces would be looked through for each.
    fn may_glance(&self, look: Look) -> bool {
        look == Look::Framing && self.tried == 0
    }

    fn search<T>(
        &mut self,
        bytes: &[u8],
        scan: impl Fn(&[u8]) -> Result<Option<T>, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        if bytes.is_empty() {
            return Ok(None);
        }
        // Empty lines before the first line are allowed (RFC 9112, 2.2) and are not the end of anything.
        let lead = bytes
            .iter()
            .take_while(|b| matches!(b, b'\r' | b'\n'))
            .count();
        // Without an end in sight a parse can only tell that these bytes are no head at all. Trying at every doubling keeps
        // the work linear and still recognises a TLS hello or a binary protocol by its first packet.
        if has_head_end(bytes, self.from.max(lead)) || bytes.len() >= 2 * self.tried {
            self.tried = bytes.len();
            if let Some(found) = scan(bytes)? {
                *self = HeadSearch::default();
                return Ok(Some(found));
            }
        }
        self.from = bytes.len().saturating_sub(2);
        if bytes.len() > MAX_HEAD {
            return Err(Malformed("a head of more than 256 KiB"));
        }
        Ok(None)
    }
}

/// Is there a blank line at or after `from`?
fn has_head_end(bytes: &[u8], from: usize) -> bool {
    let rest = bytes.get(from..).unwrap_or_default();
    memchr::memchr_iter(b'\n', rest)
        .any(|i| matches!(&rest[i + 1..], [b'\n', ..] | [b'\r', b'\n', ..]))
}

fn reason(error: httparse::Error) -> Malformed {
    use httparse::Error;
    Malformed(match error {
        Error::HeaderName => "invalid byte in a header name",
        Error::HeaderValue => "invalid byte in a header value",
        Error::NewLine => "invalid line end",
        Error::Status => "invalid status line",
        Error::Token => "not an HTTP/1.x request line",
        Error::TooManyHeaders => "more than 2048 header fields",
        Error::Version => "not HTTP/1.0 or HTTP/1.1",
    })
}

/// Parses a request's head and hands it to `see`; `None` while it is incomplete.
///
/// # Errors
/// [`Malformed`] if it is not one.
pub fn with_request<T>(
    bytes: &[u8],
    see: impl Fn(&httparse::Request<'_, '_>, usize) -> T,
) -> Result<Option<T>, Malformed> {
    let mut few = [const { MaybeUninit::uninit() }; FEW_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut few) {
        Ok(httparse::Status::Complete(len)) => return Ok(Some(see(&request, len))),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {}
        Err(e) => return Err(reason(e)),
    }
    let mut many = vec![httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut many);
    match request.parse(bytes).map_err(reason)? {
        httparse::Status::Complete(len) => Ok(Some(see(&request, len))),
        httparse::Status::Partial => Ok(None),
    }
}

/// Parses a reply's head and hands it to `see`; `None` while it is incomplete. Forgives what clients forgive in servers.
///
/// # Errors
/// [`Malformed`] if it is not one.
pub fn with_reply<T>(
    bytes: &[u8],
    see: impl Fn(&httparse::Response<'_, '_>, usize) -> T,
) -> Result<Option<T>, Malformed> {
    let mut config = httparse::ParserConfig::default();
    config
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_multiple_spaces_in_response_status_delimiters(true);
    let mut few = [const { MaybeUninit::uninit() }; FEW_FIELDS];
    let mut reply = httparse::Response::new(&mut []);
    match config.parse_response_with_uninit_headers(&mut reply, bytes, &mut few) {
        Ok(httparse::Status::Complete(len)) => return Ok(Some(see(&reply, len))),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {}
        Err(e) => return Err(reason(e)),
    }
    let mut many = vec![httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut reply = httparse::Response::new(&mut many);
    match config.parse_response(&mut reply, bytes).map_err(reason)? {
        httparse::Status::Complete(len) => Ok(Some(see(&reply, len))),
        httparse::Status::Partial => Ok(None),
    }
}

/// The elements of a comma-separated header.
fn elements(value: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    value
        .split(|b| *b == b',')
        .map(|e| e.trim_ascii())
        .filter(|e| !e.is_empty())
}

/// Digits as the number that they are, if it is not too large; those of no digits are 0.
fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |n, digit| {
        let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
        n.checked_mul(10)?.checked_add(digit.into())
    })
}

/// The headers that decide about framing and the connection.
#[derive(Default)]
struct Hop {
    length: Option<u64>,
    /// Is "chunked" the last transfer coding? `None` without the header.
    chunked: Option<bool>,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    expects_continue: bool,
}

impl Hop {
    fn of(headers: &[httparse::Header<'_>]) -> Result<Hop, Malformed> {
        let mut hop = Hop::default();
        for header in headers {
            hop.note(header.name.as_bytes(), header.value)?;
        }
        Ok(hop)
    }

    /// May this be one of them? Nearly all names have another length or begin otherwise, which is the quicker look.
    fn minds(name: &[u8]) -> bool {
        let first = name.first().map_or(0, u8::to_ascii_lowercase);
        matches!(
            (name.len(), first),
            (6, b'e') | (7, b'u') | (10 | 14, b'c') | (17, b't')
        )
    }

    fn note(&mut self, name: &[u8], value: &[u8]) -> Result<(), Malformed> {
        if !Hop::minds(name) {
            return Ok(());
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            if value.trim_ascii().is_empty() {
                return Err(Malformed("Content-Length is not a number"));
            }
            // A list of equal numbers is one number (RFC 9110, 8.6).
            for element in elements(value) {
                let number = number(element).ok_or(Malformed("Content-Length is not a number"))?;
                if self.length.is_some_and(|known| known != number) {
                    return Err(Malformed("two different Content-Length values"));
                }
                self.length = Some(number);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let last = elements(value).next_back().unwrap_or_default();
            self.chunked = Some(last.eq_ignore_ascii_case(b"chunked"));
        } else if name.eq_ignore_ascii_case(b"connection") {
            for element in elements(value) {
                self.close |= element.eq_ignore_ascii_case(b"close");
                self.keep_alive |= element.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade = true;
        } else if name.eq_ignore_ascii_case(b"expect") {
            self.expects_continue |=
                elements(value).any(|e| e.eq_ignore_ascii_case(b"100-continue"));
        }
        Ok(())
    }

    /// What these headers make of a request with a head of `len` bytes.
    fn request(
        self,
        len: usize,
        kind: RequestKind,
        http10: bool,
    ) -> Result<RequestInfo, Malformed> {
        let framing = match (self.chunked, self.length) {
            // Servers disagree about these two (RFC 9112, 6.1): each may see another end than the proxy would.
            (Some(_), Some(_)) => {
                return Err(Malformed(
                    "a request with both Content-Length and Transfer-Encoding",
                ));
            }
            (Some(_), None) if http10 => {
                return Err(Malformed("an HTTP/1.0 request with Transfer-Encoding"));
            }
            (Some(true), None) => Framing::Chunked,
            (Some(false), None) => {
                return Err(Malformed(
                    "a request whose last transfer coding is not chunked",
                ));
            }
            (None, length) => Framing::Length(length.unwrap_or(0)),
        };
        Ok(RequestInfo {
            len,
            framing,
            kind,
            expects_continue: self.expects_continue && !http10,
            upgrade: self.upgrade || kind == RequestKind::Connect,
            keep_alive: !self.close && (!http10 || self.keep_alive),
            http10,
        })
    }

    /// The same for the reply to a request of `kind`.
    fn reply(self, len: usize, status: u16, kind: RequestKind) -> ReplyInfo {
        let bodiless = kind == RequestKind::Head
            || status < 200
            || status == 204
            || status == 304
            || (kind == RequestKind::Connect && (200..300).contains(&status));
        let framing = match (self.chunked, self.length) {
            _ if bodiless => Framing::Length(0),
            (Some(true), _) => Framing::Chunked,
            (None, Some(length)) => Framing::Length(length),
            _ => Framing::UntilClose,
        };
        ReplyInfo {
            len,
            status,
            framing,
        }
    }
}

fn scan_request(bytes: &[u8]) -> Result<Option<RequestInfo>, Malformed> {
    with_request(bytes, |request, len| {
        let kind = match request.method {
            Some("HEAD") => RequestKind::Head,
            Some("CONNECT") => RequestKind::Connect,
            _ => RequestKind::Other,
        };
        Hop::of(request.headers)?.request(len, kind, request.version == Some(0))
    })?
    .transpose()
}

fn scan_reply(bytes: &[u8], kind: RequestKind) -> Result<Option<ReplyInfo>, Malformed> {
    with_reply(bytes, |reply, len| {
        Ok(Hop::of(reply.headers)?.reply(len, reply.code.unwrap_or(0), kind))
    })?
    .transpose()
}

/// Walks through a body that arrives in pieces.
#[derive(Debug, Clone)]
pub struct Body(State);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes are left.
    Length(u64),
    /// In a chunk's size line: the size so far, the bytes seen, whether the digits are over, and whether the last byte was CR.
    Size {
        size: u64,
        seen: usize,
        digits_over: bool,
        cr: bool,
    },
    /// In a chunk's data.
    Data(u64),
    /// In the line end after a chunk's data.
    DataEnd {
        cr: bool,
    },
    /// In the trailers: bytes in all, bytes in this line apart from its end, and whether the last byte was CR.
    Trailers {
        seen: usize,
        line: usize,
        cr: bool,
    },
    UntilClose,
    Done,
}

const SIZE: State = State::Size {
    size: 0,
    seen: 0,
    digits_over: false,
    cr: false,
};

/// A line of a chunked body's framing that ends with LF alone, or has a CR inside: some take it for the end of the line and some do
/// not, so what follows is not known to mean the same to the peer.
const LINE_END: Malformed = Malformed("a line of chunked framing does not end with CR LF");

impl Body {
    /// A body at its beginning.
    pub fn new(framing: Framing) -> Body {
        Body(match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(n) => State::Length(n),
            Framing::Chunked => SIZE,
            Framing::UntilClose => State::UntilClose,
        })
    }

    /// Is the body complete?
    pub fn is_done(&self) -> bool {
        self.0 == State::Done
    }

    /// Does it end with the connection?
    pub fn is_until_close(&self) -> bool {
        self.0 == State::UntilClose
    }

    /// Takes as much of `input` as belongs to this body and returns how much that is: all of it unless the body ends.
    /// `payload` is told which parts of `input` are the body's own bytes rather than framing.
    ///
    /// # Errors
    /// [`Malformed`] chunks. The state is then of no further use.
    pub fn advance(
        &mut self,
        input: &[u8],
        mut payload: impl FnMut(Range<usize>),
    ) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < input.len() {
            let rest = &input[at..];
            match self.0 {
                State::Done => break,
                State::UntilClose => {
                    payload(at..input.len());
                    at = input.len();
                }
                State::Length(left) | State::Data(left) => {
                    let n = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    if n > 0 {
                        payload(at..at + n);
                    }
                    at += n;
                    let left = left - n as u64;
                    self.0 = match self.0 {
                        State::Length(_) if left == 0 => State::Done,
                        State::Length(_) => State::Length(left),
                        _ if left == 0 => State::DataEnd { cr: false },
                        _ => State::Data(left),
                    };
                }
                State::Size {
                    size,
                    seen,
                    digits_over,
                    cr,
                } => {
                    at += 1;
                    if cr != (rest[0] == b'\n') {
                        return Err(LINE_END);
                    }
                    self.0 = size_line(rest[0], size, seen, digits_over)?;
                }
                State::DataEnd { cr } => {
                    at += 1;
                    self.0 = match (rest[0], cr) {
                        (b'\r', false) => State::DataEnd { cr: true },
                        (b'\n', true) => SIZE,
                        (b'\n', false) => return Err(LINE_END),
                        _ => return Err(Malformed("a chunk is longer than its size says")),
                    };
                }
                State::Trailers { seen, line, cr } => {
                    at += 1;
                    if seen >= MAX_TRAILERS {
                        return Err(Malformed("trailers of more than 256 KiB"));
                    }
                    let seen = seen + 1;
                    self.0 = match rest[0] {
                        byte if cr != (byte == b'\n') => return Err(LINE_END),
                        b'\n' if line == 0 => State::Done,
                        b'\n' => State::Trailers {
                            seen,
                            line: 0,
                            cr: false,
                        },
                        b'\r' => State::Trailers {
                            seen,
                            line,
                            cr: true,
                        },
                        _ => State::Trailers {
                            seen,
                            line: line + 1,
                            cr: false,
                        },
                    };
                }
            }
        }
        Ok(at)
    }
}

/// One byte of a chunk's size line: hex digits, then anything (extensions) up to the line feed.
fn size_line(byte: u8, size: u64, seen: usize, digits_over: bool) -> Result<State, Malformed> {
    if seen >= MAX_CHUNK_LINE {
        return Err(Malformed("a chunk size line of more than 16 KiB"));
    }
    let digit = (byte as char).to_digit(16).filter(|_| !digits_over);
    match (digit, byte) {
        (Some(digit), _) => {
            let size = size
                .checked_mul(16)
                .and_then(|s| s.checked_add(digit.into()))
                .ok_or(Malformed("a chunk size beyond 64 bits"))?;
            Ok(State::Size {
                size,
                seen: seen + 1,
                digits_over,
                cr: false,
            })
        }
        (None, _) if seen == 0 => Err(Malformed("a chunk without a size")),
        (None, b'\n') if size == 0 => Ok(State::Trailers {
            seen: 0,
            line: 0,
            cr: false,
        }),
        (None, b'\n') => Ok(State::Data(size)),
        (None, b'\r' | b';' | b' ' | b'\t') => Ok(State::Size {
            size,
            seen: seen + 1,
            digits_over: true,
            cr: byte == b'\r',
        }),
        (None, _) if digits_over => Ok(State::Size {
            size,
            seen: seen + 1,
            digits_over,
            cr: false,
        }),
        (None, _) => Err(Malformed("a chunk size that is not hexadecimal")),
    }
}

/// The path and the raw query of a request target in any of its forms (RFC 9112, 3.2).
pub fn split_target(target: &str) -> (&str, &str) {
    let origin = match memmem::find(target.as_bytes(), b"://") {
        Some(scheme) if !target.starts_with('/') => {
            let authority = &target[scheme + 3..];
            match authority.find(['/', '?']) {
                Some(i) => &authority[i..],
                None => "/",
            }
        }
        _ => target,
    };
    match origin.split_once('?') {
        Some(("", query)) => ("/", query),
        Some((path, query)) => (path, query),
        None => (origin, ""),
    }
}
