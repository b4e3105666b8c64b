//! From bytes to messages, without I/O: feed what has arrived, take what is whole.

use crate::message::Request;

/// Request line and headers together; what servers commonly allow.
const HEAD_CAP: usize = 16 * 1024;
/// The largest body either side reads: an order is a hundred bytes.
const BODY_CAP: usize = 1024 * 1024;
const MAX_HEADERS: usize = 64;

/// How far a message has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress<T> {
    /// It is whole.
    Done(T),
    /// More bytes are needed.
    More,
    /// More bytes are needed, and the client waits for `100 Continue` before it sends them. Said once per request.
    Continue,
}

/// What came is no HTTP that we take.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// The status that says so.
    pub status: u16,
    /// Why.
    pub why: &'static str,
}

const fn refused<T>(status: u16, why: &'static str) -> Result<T, Refused> {
    Err(Refused { status, why })
}

/// Bytes of a connection that have arrived and have not been used.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    continued: bool,
}

impl Decoder {
    /// Adds what has arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Is it between two messages?
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes the next request.
    ///
    /// # Errors
    /// See [`Refused`]; the connection cannot be used any further.
    pub fn request(&mut self) -> Result<Progress<Request>, Refused> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        let head_len = match parsed.parse(&self.bytes) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return self.partial(),
            Err(_) => return refused(400, "this is no HTTP/1.1 request"),
        };
        let head = Head::read(parsed.headers)?;
        if head.chunked {
            return refused(411, "a body needs a Content-Length");
        }
        let body_len = head.length.unwrap_or(0);
        if body_len > BODY_CAP {
            return refused(413, "the body is too large");
        }
        let target = parsed.path.unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = Request {
            method: parsed.method.unwrap_or_default().to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            body: vec![],
            keep_alive: !head.close && (parsed.version == Some(1) || head.keep),
        };
        if self.bytes.len() < head_len + body_len {
            return Ok(if head.expects_continue && !self.continued {
                self.continued = true;
                Progress::Continue
            } else {
                Progress::More
            });
        }
        self.continued = false;
        request.body = self.take(head_len, body_len);
        Ok(Progress::Done(request))
    }

    /// Takes the next reply: its status and body.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn reply(&mut self) -> Result<Progress<(u16, Vec<u8>)>, Refused> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        let head_len = match parsed.parse(&self.bytes) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return self.partial(),
            Err(_) => return refused(400, "this is no HTTP/1.1 reply"),
        };
        let status = parsed.code.unwrap_or_default();
        let head = Head::read(parsed.headers)?;
        let body_len = match head.length {
            Some(len) if len <= BODY_CAP && !head.chunked => len,
            None if !head.chunked && matches!(status, 204 | 304) => 0,
            _ => return refused(411, "the reply has no Content-Length within bounds"),
        };
        if self.bytes.len() < head_len + body_len {
            return Ok(Progress::More);
        }
        Ok(Progress::Done((status, self.take(head_len, body_len))))
    }

    fn partial<T>(&self) -> Result<Progress<T>, Refused> {
        if self.bytes.len() >= HEAD_CAP {
            return refused(431, "the headers are too large");
        }
        Ok(Progress::More)
    }

    fn take(&mut self, head_len: usize, body_len: usize) -> Vec<u8> {
        let body = self.bytes[head_len..head_len + body_len].to_vec();
        self.bytes.drain(..head_len + body_len);
        body
    }
}

/// The headers that decide how the message is framed.
#[derive(Debug, Default)]
struct Head {
    length: Option<usize>,
    chunked: bool,
    close: bool,
    keep: bool,
    expects_continue: bool,
}

impl Head {
    fn read(headers: &[httparse::Header<'_>]) -> Result<Head, Refused> {
        let mut head = Head::default();
        for header in headers {
            let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
            let lists = |word: &str| {
                value
                    .split(',')
                    .any(|v| v.trim().eq_ignore_ascii_case(word))
            };
            match header.name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    // `parse` alone would take "+1"; RFC 9110, section 8.6 allows digits only.
                    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
                    let Some(length) = value.parse().ok().filter(|_| digits) else {
                        return refused(400, "the Content-Length is no number");
                    };
                    if head.length.is_some_and(|other| other != length) {
                        return refused(400, "two Content-Lengths disagree");
                    }
                    head.length = Some(length);
                }
                "transfer-encoding" => head.chunked = true,
                "connection" => {
                    head.close |= lists("close");
                    head.keep |= lists("keep-alive");
                }
                "expect" => head.expects_continue = lists("100-continue"),
                _ => {}
            }
        }
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds one byte at a time: the decoder must not depend on how the bytes arrive.
    fn requests(bytes: &[u8]) -> Vec<Result<String, u16>> {
        let mut decoder = Decoder::default();
        let mut seen = vec![];
        for byte in bytes {
            decoder.push(&[*byte]);
            match decoder.request() {
                Ok(Progress::Done(r)) => {
                    let body = String::from_utf8_lossy(&r.body);
                    let text = format!("{} {} {body} {}", r.method, r.path, r.keep_alive);
                    seen.push(Ok(text));
                }
                Ok(Progress::More) => {}
                Ok(Progress::Continue) => seen.push(Ok("continue".into())),
                Err(refused) => {
                    seen.push(Err(refused.status));
                    return seen;
                }
            }
        }
        if !decoder.is_empty() {
            seen.push(Err(0));
        }
        seen
    }

    #[test]
    fn pipelined_requests_are_told_apart() {
        let seen = requests(
            b"POST /a?x=1 HTTP/1.1\r\nContent-Length: 2\r\n\r\nhiGET /b HTTP/1.0\r\n\r\nGET /c HTTP/1.1\r\nConnection: Close\r\n\r\n",
        );
        let expected = ["POST /a hi true", "GET /b  false", "GET /c  false"];
        assert_eq!(seen, expected.map(|s| Ok(s.to_owned())));
    }

    #[test]
    fn continue_is_said_once_per_request() {
        let one = "PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi";
        let expected = ["continue", "PUT / hi true", "continue", "PUT / hi true"];
        assert_eq!(
            requests(one.repeat(2).as_bytes()),
            expected.map(|s| Ok(s.to_owned()))
        );
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let length = |l: &str| format!("POST / HTTP/1.1\r\nContent-Length: {l}\r\n\r\nabc");
        for (bytes, status) in [
            ("\x16\x03\x01nonsense\r\n\r\n".to_owned(), 400),
            (length("+1"), 400),
            (length("1\r\nContent-Length: 2"), 400),
            (length("0\r\nTransfer-Encoding: chunked"), 411),
            (length("99999999"), 413),
            (length("5"), 0),
            ("POST / HT".to_owned(), 0),
            (
                format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(HEAD_CAP)),
                431,
            ),
        ] {
            assert_eq!(requests(bytes.as_bytes()), [Err(status)], "{bytes:?}");
        }
    }

    #[test]
    fn replies_need_a_length() {
        let reply = |bytes: &str| {
            let mut decoder = Decoder::default();
            decoder.push(bytes.as_bytes());
            decoder.reply()
        };
        let whole = reply("HTTP/1.1 507 x\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(whole, Ok(Progress::Done((507, b"ok".to_vec()))));
        let empty = reply("HTTP/1.1 204 x\r\n\r\n");
        assert_eq!(empty, Ok(Progress::Done((204, vec![]))));
        assert_eq!(reply("HTTP/1.1 200 OK\r\n\r\n").unwrap_err().status, 411);
        assert_eq!(reply("220 smtp.example\r\n").unwrap_err().status, 400);
    }
}
