//! Bytes ↔ packets of the client/server protocol 10 ("MySQL Internals, Client/Server Protocol"; "MariaDB, Clients & Connectors,
//! Protocol").
//!
//! Nothing here does I/O or keeps state. Incomplete input is an ordinary outcome (`None`); input that no valid peer sends is
//! [`Malformed`].

mod body;
mod connect;
mod put;

pub use body::{Body, fixed};
pub use connect::{
    Greeting, Hello, Login, change_user, greeting, hello, put_login, put_ssl_request,
};
pub use put::{Reply, lenenc, packet, put_command};

/// A packet's header in bytes: three of length, one of sequence number.
pub const HEADER: usize = 4;
/// The longest payload of one packet. A message goes on in the next packet exactly if a packet is this long.
pub const MAX_PAYLOAD: usize = 0xff_ff_ff;
/// How much of one message is looked at, and so held back until it is there. Statements longer than this are matched by their
/// beginning; the rest of such a message streams through.
pub const HEAD: usize = 1 << 20;

/// Bytes that are not this protocol; the text says why, a lower-case fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub String);

pub(crate) fn malformed<T>(why: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed(why.into()))
}

/// What client and server can do (`CLIENT_…` in mysql_com.h). MariaDB's own follow in the upper half.
#[allow(missing_docs)] // the headers' own names
pub mod caps {
    /// Of MariaDB's servers and clients, absent: there it means MySQL (`CLIENT_LONG_PASSWORD`).
    pub const MYSQL: u64 = 1;
    pub const FOUND_ROWS: u64 = 1 << 1;
    pub const LONG_FLAG: u64 = 1 << 2;
    pub const CONNECT_WITH_DB: u64 = 1 << 3;
    pub const COMPRESS: u64 = 1 << 5;
    pub const LOCAL_FILES: u64 = 1 << 7;
    pub const PROTOCOL_41: u64 = 1 << 9;
    pub const SSL: u64 = 1 << 11;
    pub const TRANSACTIONS: u64 = 1 << 13;
    pub const SECURE_CONNECTION: u64 = 1 << 15;
    pub const MULTI_STATEMENTS: u64 = 1 << 16;
    pub const MULTI_RESULTS: u64 = 1 << 17;
    pub const PS_MULTI_RESULTS: u64 = 1 << 18;
    pub const PLUGIN_AUTH: u64 = 1 << 19;
    pub const PLUGIN_AUTH_LENENC: u64 = 1 << 21;
    pub const SESSION_TRACK: u64 = 1 << 23;
    pub const DEPRECATE_EOF: u64 = 1 << 24;
    pub const OPTIONAL_METADATA: u64 = 1 << 25;
    pub const ZSTD: u64 = 1 << 26;
    pub const QUERY_ATTRIBUTES: u64 = 1 << 27;
    pub const MARIADB_PROGRESS: u64 = 1 << 32;
    pub const MARIADB_EXTENDED_METADATA: u64 = 1 << 35;
    pub const MARIADB_CACHE_METADATA: u64 = 1 << 36;
}

/// The server's status flags (`SERVER_…` in mysql_com.h).
#[allow(missing_docs)]
pub mod status {
    pub const IN_TRANS: u16 = 1;
    pub const AUTOCOMMIT: u16 = 2;
    pub const MORE_RESULTS: u16 = 8;
    pub const CURSOR_EXISTS: u16 = 64;
    pub const LAST_ROW_SENT: u16 = 128;
    pub const NO_BACKSLASH_ESCAPES: u16 = 512;
    pub const STATE_CHANGED: u16 = 1 << 14;
    /// MariaDB's only; MySQL does not tell.
    pub const ANSI_QUOTES: u16 = 1 << 15;
}

/// Commands (`enum enum_server_command` in my_command.h).
#[allow(missing_docs)]
pub mod com {
    pub const QUIT: u8 = 0x01;
    pub const INIT_DB: u8 = 0x02;
    pub const QUERY: u8 = 0x03;
    pub const FIELD_LIST: u8 = 0x04;
    pub const PROCESS_INFO: u8 = 0x0a;
    pub const CHANGE_USER: u8 = 0x11;
    pub const BINLOG_DUMP: u8 = 0x12;
    pub const TABLE_DUMP: u8 = 0x13;
    pub const STMT_PREPARE: u8 = 0x16;
    pub const STMT_EXECUTE: u8 = 0x17;
    pub const STMT_SEND_LONG_DATA: u8 = 0x18;
    pub const STMT_CLOSE: u8 = 0x19;
    pub const STMT_RESET: u8 = 0x1a;
    pub const STMT_FETCH: u8 = 0x1c;
    pub const BINLOG_DUMP_GTID: u8 = 0x1e;
    pub const RESET_CONNECTION: u8 = 0x1f;
    pub const CLONE: u8 = 0x20;
    pub const SUBSCRIBE_GROUP_REPLICATION: u8 = 0x21;
    pub const MARIADB_BULK_EXECUTE: u8 = 0xfa;
}

/// Types of columns and parameters (`enum enum_field_types` in field_types.h).
#[allow(missing_docs)]
pub mod kind {
    pub const DECIMAL: u8 = 0;
    pub const TINY: u8 = 1;
    pub const SHORT: u8 = 2;
    pub const LONG: u8 = 3;
    pub const FLOAT: u8 = 4;
    pub const DOUBLE: u8 = 5;
    pub const NULL: u8 = 6;
    pub const TIMESTAMP: u8 = 7;
    pub const LONGLONG: u8 = 8;
    pub const INT24: u8 = 9;
    pub const DATE: u8 = 10;
    pub const TIME: u8 = 11;
    pub const DATETIME: u8 = 12;
    pub const YEAR: u8 = 13;
    pub const BIT: u8 = 16;
    pub const JSON: u8 = 245;
    pub const NEWDECIMAL: u8 = 246;
    pub const VAR_STRING: u8 = 253;
}

/// A packet's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The payload's length in bytes.
    pub len: usize,
    /// Counts the packets of an exchange; a command begins at 0.
    pub seq: u8,
}

/// Reads the header at the front of `buf`.
pub fn header(buf: &[u8]) -> Option<Header> {
    let [a, b, c, seq] = *buf.first_chunk::<HEADER>()?;
    Some(Header {
        len: u32::from_le_bytes([a, b, c, 0]) as usize,
        seq,
    })
}

/// What an OK says, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Rows touched.
    pub affected: u64,
    /// The last AUTO_INCREMENT value.
    pub insert_id: u64,
    /// [`status`].
    pub status: u16,
    /// The schema that the session has moved to, if the server tells (CLIENT_SESSION_TRACK).
    pub schema: Option<String>,
}

/// Reads the payload of an OK, be it one that stands for an EOF (first byte 0xfe). It may be cut: what follows the status is
/// read as far as it is there.
///
/// # Errors
/// Fewer bytes than an OK has.
pub fn ok(payload: &[u8], capabilities: u64) -> Result<Done, Malformed> {
    let mut body = Body(payload);
    body.take(1)?;
    let mut done = Done {
        affected: body.lenenc()?,
        insert_id: body.lenenc()?,
        status: body.u16()?,
        schema: None,
    };
    if done.status & status::STATE_CHANGED != 0 && capabilities & caps::SESSION_TRACK != 0 {
        done.schema = tracked_schema(body).unwrap_or_default();
    }
    Ok(done)
}

/// SESSION_TRACK_SCHEMA among the session's changes: warnings, info, then a list of (type, data).
fn tracked_schema(mut body: Body) -> Result<Option<String>, Malformed> {
    body.take(2)?;
    body.lenenc_bytes()?;
    let mut changes = Body(body.lenenc_bytes()?);
    while !changes.0.is_empty() {
        let kind = changes.take(1)?[0];
        let mut data = Body(changes.lenenc_bytes()?);
        if kind == 1 {
            let schema = data.lenenc_bytes()?;
            return Ok(Some(String::from_utf8_lossy(schema).into_owned()));
        }
    }
    Ok(None)
}

/// Reads the status in the payload of an EOF: 0xfe, warnings, status.
///
/// # Errors
/// Fewer bytes than an EOF has.
pub fn eof(payload: &[u8]) -> Result<u16, Malformed> {
    let mut body = Body(payload);
    body.take(3)?;
    body.u16()
}

/// An ERR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// The server's own number.
    pub code: u16,
    /// The SQLSTATE; "HY000" if there is none.
    pub sqlstate: String,
    /// The message.
    pub message: String,
}

/// The number that marks a report of progress (MariaDB, CLIENT_PROGRESS): not the end of anything.
pub const PROGRESS: u16 = 0xffff;

/// Reads the payload of an ERR.
///
/// # Errors
/// Fewer bytes than an ERR has.
pub fn err(payload: &[u8]) -> Result<ServerError, Malformed> {
    let mut body = Body(payload);
    body.take(1)?;
    let code = body.u16()?;
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let mut sqlstate = "HY000".to_owned();
    if body.0.first() == Some(&b'#') && body.0.len() >= 6 {
        sqlstate = text(&body.take(6)?[1..]);
    }
    Ok(ServerError {
        code,
        sqlstate,
        message: text(body.0),
    })
}

/// What answers a COM_STMT_PREPARE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrepareOk {
    /// The statement's id.
    pub id: u32,
    /// How many columns its rows have.
    pub columns: u16,
    /// How many parameters it takes.
    pub params: u16,
    /// Do definitions of both follow?
    pub metadata: bool,
}

/// Reads the payload of the OK that answers a COM_STMT_PREPARE.
///
/// # Errors
/// Fewer bytes than it has.
pub fn prepare_ok(payload: &[u8], capabilities: u64) -> Result<PrepareOk, Malformed> {
    let mut body = Body(payload);
    body.take(1)?;
    let (id, columns, params) = (body.u32()?, body.u16()?, body.u16()?);
    // A filler and the warnings.
    body.take(3)?;
    let metadata = capabilities & caps::OPTIONAL_METADATA == 0 || body.0.first() != Some(&0);
    Ok(PrepareOk {
        id,
        columns,
        params,
        metadata,
    })
}

/// A column's definition, as far as its values' encoding needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name, or alias.
    pub name: String,
    /// [`kind`].
    pub kind: u8,
    /// The collation's number; 63 is binary.
    pub charset: u16,
    /// The longest value in bytes.
    pub length: u32,
    /// `NOT_NULL_FLAG` and the like.
    pub flags: u16,
    /// Digits after the point; 31 or 0x1f when they vary.
    pub decimals: u8,
}

/// `UNSIGNED_FLAG`.
pub const UNSIGNED: u16 = 32;
/// `BINARY_FLAG`.
pub const BINARY: u16 = 128;
/// The number of the collation `binary`.
pub const CHARSET_BINARY: u16 = 63;
/// The number of the collation `utf8mb4_general_ci`, which every server has.
pub const CHARSET_UTF8MB4: u16 = 45;

/// Reads the payload of a column's definition.
///
/// # Errors
/// Fewer bytes than it has.
pub fn column(payload: &[u8], capabilities: u64) -> Result<Column, Malformed> {
    let mut body = Body(payload);
    // Catalogue, schema, table and its original name.
    for _ in 0..4 {
        body.lenenc_bytes()?;
    }
    let name = String::from_utf8_lossy(body.lenenc_bytes()?).into_owned();
    // The original name.
    body.lenenc_bytes()?;
    if capabilities & caps::MARIADB_EXTENDED_METADATA != 0 {
        body.lenenc_bytes()?;
    }
    // The length of what follows, always 12.
    body.lenenc()?;
    Ok(Column {
        name,
        charset: body.u16()?,
        length: body.u32()?,
        kind: body.take(1)?[0],
        flags: body.u16()?,
        decimals: body.take(1)?[0],
    })
}

/// How many columns a result has, and whether their definitions follow.
///
/// # Errors
/// Fewer bytes than it has, or more columns than a server sends (MAX_FIELDS is 4096).
pub fn column_count(payload: &[u8], capabilities: u64) -> Result<(u64, bool), Malformed> {
    let mut body = Body(payload);
    let count = body.lenenc()?;
    if count == 0 || count > 1 << 16 {
        return malformed(format!("a result of {count} columns"));
    }
    let optional = capabilities & (caps::OPTIONAL_METADATA | caps::MARIADB_CACHE_METADATA) != 0;
    let follow = !(optional && body.0.first() == Some(&0));
    Ok((count, follow))
}

/// The statement's text in the payload of a COM_QUERY, command byte included; the payload may be cut at [`HEAD`].
///
/// # Errors
/// Attributes (CLIENT_QUERY_ATTRIBUTES) that cannot be read.
pub fn query(payload: &[u8], capabilities: u64) -> Result<&[u8], Malformed> {
    let mut body = Body(payload);
    body.take(1)?;
    if capabilities & caps::QUERY_ATTRIBUTES == 0 {
        return Ok(body.0);
    }
    let count = usize::try_from(body.lenenc()?).unwrap_or(usize::MAX);
    // The number of sets of them, always 1.
    body.lenenc()?;
    if count > 0 {
        let nulls = body.take(count.div_ceil(8))?;
        if body.take(1)? != [1] {
            return malformed("attributes of a query without their types");
        }
        let mut kinds = vec![];
        for _ in 0..count {
            kinds.push(body.take(2)?[0]);
            body.lenenc_bytes()?;
        }
        for (i, kind) in kinds.into_iter().enumerate() {
            if nulls[i / 8] >> (i % 8) & 1 == 0 {
                body.binary_value(kind)?;
            }
        }
    }
    Ok(body.0)
}

/// A COM_STMT_EXECUTE or COM_STMT_BULK_EXECUTE, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execute {
    /// The statement's id; [`LAST_PREPARED`] in MariaDB is the one prepared last.
    pub id: u32,
    /// Where the types of its parameters stand in the payload, or would: the server remembers them from one execution to the next.
    pub types: std::ops::Range<usize>,
    /// Where the flag stands that says whether they are there, and its value when they are.
    pub flag: (usize, u8),
}

/// The id by which MariaDB's clients mean the statement they have just asked to be prepared.
pub const LAST_PREPARED: u32 = u32::MAX;

/// The statement's id in a command that begins with one.
///
/// # Errors
/// Fewer bytes than that.
pub fn statement_id(payload: &[u8]) -> Result<u32, Malformed> {
    let mut body = Body(payload);
    body.take(1)?;
    body.u32()
}

/// Reads the payload of a COM_STMT_EXECUTE of a statement with `params` parameters; `None` if it has no parameters.
///
/// # Errors
/// Fewer bytes than it has.
pub fn execute(
    payload: &[u8],
    params: u16,
    capabilities: u64,
) -> Result<Option<Execute>, Malformed> {
    let at = |body: &Body| payload.len() - body.0.len();
    let id = statement_id(payload)?;
    let mut body = Body(payload.get(5..).unwrap_or_default());
    let flags = body.take(1)?[0];
    // The number of iterations, always 1.
    body.take(4)?;
    let mut count = usize::from(params);
    let attributes = capabilities & caps::QUERY_ATTRIBUTES != 0;
    // PARAMETER_COUNT_AVAILABLE
    if attributes && (count > 0 || flags & 8 != 0) {
        count = usize::try_from(body.lenenc()?).unwrap_or(usize::MAX);
    }
    if count == 0 {
        return Ok(None);
    }
    body.take(count.div_ceil(8))?;
    let flag = at(&body);
    let bound = body.take(1)?[0] == 1;
    let start = at(&body);
    if bound {
        for _ in 0..count {
            body.take(2)?;
            if attributes {
                body.lenenc_bytes()?;
            }
        }
    }
    Ok(Some(Execute {
        id,
        types: start..at(&body),
        flag: (flag, 1),
    }))
}

/// Reads the payload of a COM_STMT_BULK_EXECUTE of a statement with `params` parameters.
///
/// # Errors
/// Fewer bytes than it has.
pub fn bulk_execute(payload: &[u8], params: u16) -> Result<Execute, Malformed> {
    let id = statement_id(payload)?;
    let mut body = Body(payload.get(5..).unwrap_or_default());
    let flags = body.u16()?;
    // STMT_BULK_FLAG_CLIENT_SEND_TYPES
    let sent = flags & 128 != 0;
    let len = if sent { 2 * usize::from(params) } else { 0 };
    body.take(len)?;
    Ok(Execute {
        id,
        types: 7..7 + len,
        flag: (5, flags as u8 | 128),
    })
}

#[cfg(test)]
mod tests;
