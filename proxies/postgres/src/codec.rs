//! Bytes ↔ messages of PostgreSQL's protocol 3 (manual, "Frontend/Backend Protocol", "Message Formats").
//!
//! Nothing here does I/O or keeps state. Incomplete input is an ordinary outcome (`None`); input that no valid peer sends is
//! [`Malformed`].

use bytes::{BufMut, BytesMut};

/// The longest start-up packet a server takes (`MAX_STARTUP_PACKET_LENGTH` in pqcomm.h).
pub const MAX_STARTUP: usize = 10_000;
/// The longest message a peer takes: `PQ_LARGE_MESSAGE_LIMIT` in libpq.h, one byte less than an allocation may have (1 GiB).
pub const MAX_MESSAGE: usize = (1 << 30) - 1;
/// How much of one message is looked at, and so held back until it is there. Statements longer than this are matched by their
/// beginning; the rest of such a message streams through.
pub const HEAD: usize = 1 << 20;

/// The code of an SSLRequest, in the place of a protocol version.
const SSL_REQUEST: u32 = 80_877_103;
/// The code of a GSSENCRequest.
const GSSENC_REQUEST: u32 = 80_877_104;
/// The code of a CancelRequest.
const CANCEL_REQUEST: u32 = 80_877_102;

/// Bytes that are not protocol 3; the text says why, a lower-case fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub String);

/// A packet without a type byte: what a client may say first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Startup {
    /// Asks for TLS; the server answers with one byte.
    Ssl,
    /// Asks for GSSAPI encryption; the server answers with one byte.
    GssEnc,
    /// Asks the server to cancel what another connection runs; no answer.
    Cancel(CancelKey),
    /// Begins a session.
    Session(Vec<(String, String)>),
    /// A TLS handshake without an SSLRequest before it (`sslnegotiation=direct`, PostgreSQL 17).
    DirectTls,
}

/// What identifies a session to a CancelRequest. Opaque: its length grew with protocol 3.2.
pub type CancelKey = Box<[u8]>;

/// Reads what stands at the front of `buf` before a session has begun: the packet and its length in bytes.
///
/// # Errors
/// Bytes that are no start-up packet.
pub fn startup(buf: &[u8]) -> Result<Option<(Startup, usize)>, Malformed> {
    // 0x16 is TLS's handshake record; as the first byte of a length it would mean a packet of 369 MB.
    if buf.first() == Some(&0x16) {
        return Ok(Some((Startup::DirectTls, 0)));
    }
    let Some(len) = buf.first_chunk().map(|l| u32::from_be_bytes(*l) as usize) else {
        return Ok(None);
    };
    if !(8..=MAX_STARTUP).contains(&len) {
        return Err(Malformed(format!(
            "a start-up packet of {len} bytes (8 to {MAX_STARTUP} are valid)"
        )));
    }
    let Some(packet) = buf.get(..len) else {
        return Ok(None);
    };
    let mut body = Body(&packet[4..]);
    let code = body.u32()?;
    let packet = match code {
        SSL_REQUEST => Startup::Ssl,
        GSSENC_REQUEST => Startup::GssEnc,
        CANCEL_REQUEST => Startup::Cancel(body.0.into()),
        _ if code >> 16 == 3 => {
            let mut parameters = vec![];
            while body.0.len() > 1 {
                let (name, value) = (body.cstr()?, body.cstr()?);
                let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
                parameters.push((text(name), text(value)));
            }
            Startup::Session(parameters)
        }
        _ => {
            return Err(Malformed(format!(
                "protocol version {}.{} (only 3 is known)",
                code >> 16,
                code & 0xffff
            )));
        }
    };
    Ok(Some((packet, len)))
}

/// Which peer a message comes from: the same type byte means different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Frontend,
    /// The server.
    Backend,
}

/// The type byte and the length of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The type byte.
    pub tag: u8,
    /// The whole message's length in bytes, header included.
    pub total: usize,
}

/// A header's length in bytes.
pub const HEADER: usize = 5;

/// Reads the header at the front of `buf`.
///
/// # Errors
/// A type that this side never sends, or a length that no message has.
pub fn header(buf: &[u8], side: Side) -> Result<Option<Header>, Malformed> {
    let Some(&tag) = buf.first() else {
        return Ok(None);
    };
    let known: &[u8] = match side {
        Side::Frontend => b"QPBDECSHXFdcfp",
        Side::Backend => b"RSKZTDCEINAGHWdc123nstVv",
    };
    if !known.contains(&tag) {
        return Err(Malformed(format!("a message of unknown type 0x{tag:02x}")));
    }
    let Some(len) = buf[1..].first_chunk().map(|l| u32::from_be_bytes(*l)) else {
        return Ok(None);
    };
    if len < 4 || len as usize > MAX_MESSAGE {
        return Err(Malformed(format!(
            "a message '{}' with a length of {len} (4 to {MAX_MESSAGE} are valid)",
            tag as char
        )));
    }
    Ok(Some(Header {
        tag,
        total: 1 + len as usize,
    }))
}

/// A statement or a portal, as Describe and Close name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object<'a> {
    /// A prepared statement.
    Statement(&'a [u8]),
    /// A portal.
    Portal(&'a [u8]),
}

/// Reads the body of a Query: the statement's text. A body cut at [`HEAD`] gives the text's beginning.
pub fn query(body: &[u8]) -> &[u8] {
    Body(body).cstr_or_rest()
}

/// Reads the body of a Parse: the statement's name and its text, which may be cut at [`HEAD`].
///
/// # Errors
/// A name without its end.
pub fn parse(body: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let mut body = Body(body);
    Ok((body.cstr()?, body.cstr_or_rest()))
}

/// The body of a Bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind<'a> {
    /// The portal that is made.
    pub portal: &'a [u8],
    /// The prepared statement it is made from.
    pub statement: &'a [u8],
    /// The formats of the results: none means all text, one stands for all; `None` when the message is too long to see.
    pub formats: Option<Vec<u16>>,
}

/// Reads the body of a Bind, which may be cut at [`HEAD`].
///
/// # Errors
/// A name without its end.
pub fn bind(body: &[u8]) -> Result<Bind<'_>, Malformed> {
    let mut body = Body(body);
    let (portal, statement) = (body.cstr()?, body.cstr()?);
    let formats = || -> Result<Vec<u16>, Malformed> {
        let formats = body.u16()?;
        body.take(2 * usize::from(formats))?;
        for _ in 0..body.u16()? {
            // A length of -1 is NULL.
            if let Ok(len) = usize::try_from(body.i32()?) {
                body.take(len)?;
            }
        }
        (0..body.u16()?).map(|_| body.u16()).collect()
    };
    Ok(Bind {
        portal,
        statement,
        formats: { formats }().ok(),
    })
}

/// Reads the body of a Describe or a Close.
///
/// # Errors
/// Neither a statement nor a portal, or a name without its end.
pub fn object(body: &[u8]) -> Result<Object<'_>, Malformed> {
    let mut body = Body(body);
    match body.take(1)? {
        b"S" => Ok(Object::Statement(body.cstr()?)),
        b"P" => Ok(Object::Portal(body.cstr()?)),
        other => Err(Malformed(format!(
            "neither a statement nor a portal but 0x{:02x}",
            other[0]
        ))),
    }
}

/// Reads the body of an Execute: the portal's name.
///
/// # Errors
/// A name without its end.
pub fn execute(body: &[u8]) -> Result<&[u8], Malformed> {
    Body(body).cstr()
}

/// Reads the body of a ParameterStatus: name and value.
///
/// # Errors
/// Text without its end.
pub fn parameter_status(body: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let mut body = Body(body);
    Ok((body.cstr()?, body.cstr()?))
}

/// One column of a RowDescription, as far as encoding a value for it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type.
    pub oid: u32,
    /// 0 is text, 1 is binary.
    pub format: u16,
}

/// Reads the body of a RowDescription.
///
/// # Errors
/// Fewer bytes than it says.
pub fn row_description(body: &[u8]) -> Result<Vec<Column>, Malformed> {
    let mut body = Body(body);
    (0..body.u16()?)
        .map(|_| {
            let name = String::from_utf8_lossy(body.cstr()?).into_owned();
            // The table's OID and the column's number.
            body.take(6)?;
            let oid = body.u32()?;
            // The type's size and modifier.
            body.take(6)?;
            Ok(Column {
                name,
                oid,
                format: body.u16()?,
            })
        })
        .collect()
}

/// A message's body, read from the front.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self
            .0
            .split_at_checked(n)
            .ok_or_else(|| Malformed("a message shorter than its contents".into()))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        let b = self.take(2)?;
        Ok(u16::from_be_bytes([b[0], b[1]]))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        let b = self.take(4)?;
        Ok(u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn i32(&mut self) -> Result<i32, Malformed> {
        self.u32().map(|n| n as i32)
    }

    fn cstr(&mut self) -> Result<&'a [u8], Malformed> {
        let end = memchr::memchr(0, self.0)
            .ok_or_else(|| Malformed("text without its terminating zero".into()))?;
        let text = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Ok(text)
    }

    fn cstr_or_rest(&mut self) -> &'a [u8] {
        let rest = self.0;
        self.cstr().unwrap_or(rest)
    }
}

/// Appends a message: its type, its length, and the body that `body` writes.
pub fn message(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let at = out.len();
    out.put_u32(0);
    body(out);
    let len = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

/// Appends text and its terminating zero; a zero inside ends the text, as it would for any reader.
pub fn put_cstr(out: &mut BytesMut, text: &[u8]) {
    out.put_slice(text.split(|b| *b == 0).next().unwrap_or_default());
    out.put_u8(0);
}

/// Appends an ErrorResponse with these fields (type byte, text), in this order.
pub fn error_response(out: &mut BytesMut, fields: &[(u8, &str)]) {
    message(out, b'E', |out| {
        for (kind, text) in fields {
            out.put_u8(*kind);
            put_cstr(out, text.as_bytes());
        }
        out.put_u8(0);
    });
}

/// Appends a RowDescription.
pub fn put_row_description(out: &mut BytesMut, columns: &[Column]) {
    message(out, b'T', |out| {
        out.put_u16(u16::try_from(columns.len()).unwrap_or(u16::MAX));
        for column in columns {
            put_cstr(out, column.name.as_bytes());
            // Not a table's column; a size that varies; no modifier: true of any computed value.
            out.put_slice(&[0; 6]);
            out.put_u32(column.oid);
            out.put_i16(-1);
            out.put_i32(-1);
            out.put_u16(column.format);
        }
    });
}

/// Appends a DataRow; `None` is NULL.
pub fn put_data_row(out: &mut BytesMut, values: &[Option<Vec<u8>>]) {
    message(out, b'D', |out| {
        out.put_u16(u16::try_from(values.len()).unwrap_or(u16::MAX));
        for value in values {
            match value {
                None => out.put_i32(-1),
                Some(value) => {
                    out.put_i32(i32::try_from(value.len()).unwrap_or(i32::MAX));
                    out.put_slice(value);
                }
            }
        }
    });
}

/// Appends a CommandComplete.
pub fn put_command_complete(out: &mut BytesMut, tag: &str) {
    message(out, b'C', |out| put_cstr(out, tag.as_bytes()));
}

/// Appends an SSLRequest.
pub fn put_ssl_request(out: &mut BytesMut) {
    out.put_u32(8);
    out.put_u32(SSL_REQUEST);
}

/// Appends a Query.
pub fn put_query(out: &mut BytesMut, sql: &str) {
    message(out, b'Q', |out| put_cstr(out, sql.as_bytes()));
}

/// Appends an Execute of all rows of a portal.
pub fn put_execute(out: &mut BytesMut, portal: &str) {
    message(out, b'E', |out| {
        put_cstr(out, portal.as_bytes());
        out.put_u32(0);
    });
}

/// Appends a Parse of a statement without parameters.
pub fn put_parse(out: &mut BytesMut, name: &str, sql: &str) {
    message(out, b'P', |out| {
        put_cstr(out, name.as_bytes());
        put_cstr(out, sql.as_bytes());
        out.put_u16(0);
    });
}

/// Appends a Bind of a statement without parameters, its results as text.
pub fn put_bind(out: &mut BytesMut, portal: &str, statement: &str) {
    message(out, b'B', |out| {
        put_cstr(out, portal.as_bytes());
        put_cstr(out, statement.as_bytes());
        // No formats of parameters, no parameters, no formats of results.
        out.put_slice(&[0; 6]);
    });
}

/// Appends a Close of a prepared statement.
pub fn put_close_statement(out: &mut BytesMut, name: &str) {
    message(out, b'C', |out| {
        out.put_u8(b'S');
        put_cstr(out, name.as_bytes());
    });
}

/// Appends a Close of a portal.
pub fn put_close_portal(out: &mut BytesMut, portal: &str) {
    message(out, b'C', |out| {
        out.put_u8(b'P');
        put_cstr(out, portal.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let mut out = (8 + body.len() as u32).to_be_bytes().to_vec();
        out.extend(code.to_be_bytes());
        out.extend(body);
        out
    }

    #[test]
    fn startup_packets() {
        let session = packet(196_608, b"user\0ann\0database\0shop\0\0");
        for cut in 0..session.len() {
            assert_eq!(startup(&session[..cut]), Ok(None), "{cut}");
        }
        let parameters = vec![
            ("user".into(), "ann".into()),
            ("database".into(), "shop".into()),
        ];
        assert_eq!(
            startup(&session),
            Ok(Some((Startup::Session(parameters), session.len())))
        );
        assert_eq!(
            startup(&packet(SSL_REQUEST, b"")),
            Ok(Some((Startup::Ssl, 8)))
        );
        assert_eq!(
            startup(&packet(GSSENC_REQUEST, b"")),
            Ok(Some((Startup::GssEnc, 8)))
        );
        assert_eq!(
            startup(&packet(CANCEL_REQUEST, &[1; 8])),
            Ok(Some((Startup::Cancel([1; 8].into()), 16)))
        );
        assert_eq!(startup(b"\x16\x03\x01"), Ok(Some((Startup::DirectTls, 0))));
    }

    #[test]
    fn what_is_no_startup_packet_says_why() {
        for (bytes, why) in [
            (&b"GET / HTTP/1.1\r\n"[..], "bytes"),
            (&packet(131_072, b""), "protocol version 2.0"),
            (&[0, 0, 0, 7], "7 bytes"),
            (&packet(196_608, b"user\0ann"), "terminating zero"),
        ] {
            let e = startup(bytes).unwrap_err();
            assert!(e.0.contains(why), "{e:?}");
        }
    }

    #[test]
    fn headers() {
        assert_eq!(header(b"", Side::Frontend), Ok(None));
        assert_eq!(header(b"Q\0\0\0", Side::Frontend), Ok(None));
        let sync = Header {
            tag: b'S',
            total: 5,
        };
        assert_eq!(header(b"S\0\0\0\x04rest", Side::Frontend), Ok(Some(sync)));
        assert!(header(b"S\0\0\0\x03", Side::Frontend).is_err());
        assert!(header(b"S\xff\xff\xff\xff", Side::Frontend).is_err());
        assert!(header(b"S\x40\0\0\0", Side::Frontend).is_err());
        // A type that only the other side sends is refused at the first byte.
        assert!(header(b"Z", Side::Frontend).is_err());
        assert!(header(b"Q", Side::Backend).is_err());
        assert!(header(b" ", Side::Backend).is_err());
    }

    #[test]
    fn bind_bodies() {
        let body = b"p\0s\0\0\x01\0\x01\0\x02\0\0\0\x02ab\xff\xff\xff\xff\0\x01\0\x01";
        let bound = bind(body).unwrap();
        assert_eq!(
            (bound.portal, bound.statement, bound.formats),
            (&b"p"[..], &b"s"[..], Some(vec![1]))
        );
        // Cut in the parameters: the names are still there.
        assert_eq!(bind(&body[..13]).unwrap().formats, None);
        assert!(bind(b"p\0s").is_err());
    }

    #[test]
    fn written_messages_read_back() {
        let mut out = BytesMut::new();
        let columns = vec![Column {
            name: "id".into(),
            oid: 23,
            format: 0,
        }];
        put_row_description(&mut out, &columns);
        let h = header(&out, Side::Backend).unwrap().unwrap();
        assert_eq!((h.tag, h.total), (b'T', out.len()));
        assert_eq!(row_description(&out[HEADER..]), Ok(columns));

        let mut out = BytesMut::new();
        put_query(&mut out, "SELECT 1\0; cut");
        assert_eq!(&out[..], b"Q\0\0\0\x0dSELECT 1\0");
        assert_eq!(query(&out[HEADER..]), b"SELECT 1");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = startup(&bytes);
            let _ = header(&bytes, Side::Frontend);
            let _ = header(&bytes, Side::Backend);
            let _ = (query(&bytes), parse(&bytes), bind(&bytes), object(&bytes), execute(&bytes));
            let _ = (row_description(&bytes), parameter_status(&bytes));
        }
    }
}
