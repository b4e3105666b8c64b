//! How a connection comes to speak HTTP/2: by prior knowledge, or by HTTP/1.1's upgrade to h2c (RFC 7540, section 3.2).

use crate::codec::hpack::Field;
use crate::codec::{Malformed, PREFACE};
use crate::session::Way;

/// The most bytes of an HTTP/1.1 head that asks for the upgrade, or grants it.
const LARGEST_HEAD: usize = 64 << 10;
/// The most header fields of one.
const MOST_FIELDS: usize = 128;

/// What stands at the front before frames do.
#[derive(Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// Not complete yet.
    More,
    /// The request that asks for the upgrade, so many bytes with its body.
    Asked(usize),
    /// So many bytes of an interim answer.
    Pass(usize),
    /// The client's preface.
    Preface,
    /// "101 Switching Protocols", so many bytes: HTTP/2 from here on.
    Switched(usize),
}

/// How far the client has come.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has said nothing yet.
    #[default]
    Start,
    /// It has asked for the upgrade.
    Asked,
    /// The server has granted it.
    Granted,
    /// It has said the preface.
    Over,
}

/// The beginning of a connection.
#[derive(Debug, Default)]
pub struct Hello {
    stage: Stage,
}

impl Hello {
    /// Do frames come next from this side?
    pub fn is_over(&self, way: Way) -> bool {
        match way {
            Way::Up => self.stage == Stage::Over,
            // A server may say its SETTINGS before the client has said anything.
            Way::Down => self.stage != Stage::Asked,
        }
    }

    /// Looks at what stands at the front.
    ///
    /// # Errors
    /// What leads to no HTTP/2.
    pub fn next(&mut self, way: Way, bytes: &[u8]) -> Result<Upgrade, Malformed> {
        if bytes.is_empty() {
            return Ok(Upgrade::More);
        }
        if way == Way::Down {
            return self.reply(bytes);
        }
        let n = bytes.len().min(PREFACE.len());
        if bytes[..n] == PREFACE[..n] {
            if n < PREFACE.len() {
                return Ok(Upgrade::More);
            }
            self.stage = Stage::Over;
            return Ok(Upgrade::Preface);
        }
        if self.stage != Stage::Start {
            return Err(Malformed(
                "the upgrade to h2c is not followed by HTTP/2's preface",
            ));
        }
        let (head, body) = match request(bytes)? {
            Some(found) => found,
            None if bytes.len() > LARGEST_HEAD => {
                return Err(Malformed("it begins with neither a preface nor a request"));
            }
            None => return Ok(Upgrade::More),
        };
        self.stage = Stage::Asked;
        Ok(Upgrade::Asked(head + body))
    }

    fn reply(&mut self, bytes: &[u8]) -> Result<Upgrade, Malformed> {
        let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
        let mut reply = httparse::Response::new(&mut fields);
        match reply.parse(bytes) {
            Ok(httparse::Status::Complete(n)) => match reply.code {
                Some(101) => {
                    self.stage = Stage::Granted;
                    Ok(Upgrade::Switched(n))
                }
                Some(100..=199) => Ok(Upgrade::Pass(n)),
                _ => Err(Malformed("the server did not upgrade to HTTP/2")),
            },
            Ok(httparse::Status::Partial) if bytes.len() <= LARGEST_HEAD => Ok(Upgrade::More),
            _ => Err(Malformed("the answer to an upgrade is not HTTP/1.1")),
        }
    }
}

/// The length of an HTTP/1.1 request's head that asks for h2c, and of its body.
fn request(bytes: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    const NEITHER: Malformed = Malformed("it begins with neither a preface nor a request");
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(NEITHER),
    };
    let field = |name: &str| {
        request
            .headers
            .iter()
            .find(|h| h.name.eq_ignore_ascii_case(name))
            .and_then(|h| std::str::from_utf8(h.value).ok())
    };
    let asks = field("upgrade").is_some_and(|u| {
        u.split(',')
            .any(|protocol| protocol.trim().eq_ignore_ascii_case("h2c"))
    });
    if !asks || field("http2-settings").is_none() {
        return Err(Malformed("it is HTTP/1.1 that does not ask for h2c"));
    }
    if field("transfer-encoding").is_some() {
        return Err(Malformed(
            "the request that asks for h2c has a chunked body",
        ));
    }
    let body = match field("content-length") {
        Some(length) => length
            .trim()
            .parse()
            .map_err(|_| Malformed("the request that asks for h2c has a bad length"))?,
        None => 0,
    };
    Ok(Some((head, body)))
}

/// A request's head as HTTP/2 would have it.
pub fn fields(bytes: &[u8]) -> Vec<Field> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut headers);
    if request.parse(bytes).is_err() {
        return vec![];
    }
    let mut fields = vec![
        Field::new(":method", request.method.unwrap_or_default().to_owned()),
        Field::new(":path", request.path.unwrap_or_default().to_owned()),
    ];
    fields.extend(
        request
            .headers
            .iter()
            .map(|h| Field::new(h.name.to_ascii_lowercase(), h.value.to_vec())),
    );
    fields
}

/// An answer in HTTP/1.1 to a request that asks for the upgrade: a server need not grant it.
pub fn answer(fields: &[Field], body: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    let mut sized = false;
    for field in fields {
        if field.name == ":status"[..] {
            let status = std::str::from_utf8(&field.value).unwrap_or_default();
            let words = faultbox_engine::web::reason(status.parse().unwrap_or_default());
            out.extend_from_slice(format!("HTTP/1.1 {status} {words}\r\n").as_bytes());
            continue;
        }
        sized |= field.name == "content-length"[..];
        out.extend_from_slice(&field.name);
        out.extend_from_slice(b": ");
        out.extend_from_slice(&field.value);
        out.extend_from_slice(b"\r\n");
    }
    if !sized {
        out.extend_from_slice(b"content-length: 0\r\n");
    }
    out.extend_from_slice(b"connection: close\r\n\r\n");
    out.extend_from_slice(body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Way::{Down, Up};

    const ASK: &[u8] = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: 3\r\n\r\n";

    #[test]
    fn prior_knowledge() {
        let mut hello = Hello::default();
        assert!(hello.is_over(Down) && !hello.is_over(Up));
        for n in 0..PREFACE.len() {
            assert_eq!(hello.next(Up, &PREFACE[..n]), Ok(Upgrade::More));
        }
        assert_eq!(hello.next(Up, PREFACE), Ok(Upgrade::Preface));
        assert!(hello.is_over(Up) && hello.is_over(Down));
    }

    #[test]
    fn upgrade() {
        let mut hello = Hello::default();
        assert_eq!(hello.next(Up, &ASK[..40]), Ok(Upgrade::More));
        assert_eq!(hello.next(Up, ASK), Ok(Upgrade::Asked(ASK.len() + 3)));
        assert!(!hello.is_over(Down));
        let reply = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n";
        assert_eq!(hello.next(Down, &reply[..9]), Ok(Upgrade::More));
        assert_eq!(hello.next(Down, reply), Ok(Upgrade::Switched(reply.len())));
        assert!(hello.is_over(Down) && !hello.is_over(Up));
        assert_eq!(hello.next(Up, PREFACE), Ok(Upgrade::Preface));
    }

    #[test]
    fn what_leads_nowhere() {
        let refused: [&[u8]; 4] = [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01",
            b"PRI * HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
        ];
        for bytes in refused {
            assert!(Hello::default().next(Up, bytes).is_err());
        }
        let mut hello = Hello::default();
        hello.next(Up, ASK).unwrap();
        assert!(hello.next(Down, b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
