//! The beginning of a session: the server's greeting, the client's answer to it.

use bytes::{BufMut, BytesMut};

use super::{Body, Malformed, caps, lenenc, malformed};

/// The server's first packet ("Protocol::HandshakeV10").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// "10.11.19-MariaDB", "9.7.4".
    pub version: String,
    /// What `KILL` names.
    pub thread: u32,
    /// [`caps`].
    pub capabilities: u64,
    /// [`super::status`].
    pub status: u16,
    /// What a password is scrambled with; 20 bytes in all servers of this century.
    pub scramble: Vec<u8>,
    /// The authentication plugin that the scramble is for.
    pub plugin: String,
}

/// Reads the payload of the server's greeting.
///
/// # Errors
/// Not protocol 10.
pub fn greeting(payload: &[u8]) -> Result<Greeting, Malformed> {
    let mut body = Body(payload);
    match body.u8()? {
        10 => {}
        other => return malformed(format!("protocol version {other} (only 10 is known)")),
    }
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let version = text(body.cstr()?);
    let thread = body.u32()?;
    let mut scramble = body.take(8)?.to_vec();
    body.take(1)?;
    let mut capabilities = u64::from(body.u16()?);
    let mut greeting = Greeting {
        version,
        thread,
        capabilities,
        status: 0,
        scramble: scramble.clone(),
        plugin: "mysql_native_password".into(),
    };
    if body.0.is_empty() {
        return Ok(greeting);
    }
    // The default collation.
    body.take(1)?;
    greeting.status = body.u16()?;
    capabilities |= u64::from(body.u16()?) << 16;
    let length = usize::from(body.u8()?);
    let reserved = body.take(10)?;
    if capabilities & caps::MYSQL == 0 {
        let own = [reserved[6], reserved[7], reserved[8], reserved[9]];
        capabilities |= u64::from(u32::from_le_bytes(own)) << 32;
    }
    if capabilities & caps::SECURE_CONNECTION != 0 {
        let rest = body.take(length.saturating_sub(8).max(13).min(body.0.len()))?;
        scramble.extend(rest.strip_suffix(b"\0").unwrap_or(rest));
    }
    if capabilities & caps::PLUGIN_AUTH != 0 {
        greeting.plugin = text(body.cstr_or_rest());
    }
    Ok(Greeting {
        capabilities,
        scramble,
        ..greeting
    })
}

/// The client's answer to the greeting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// TLS begins right behind it ("Protocol::SSLRequest").
    Ssl,
    /// "Protocol::HandshakeResponse41".
    Session(Login),
}

/// Who asks for a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// What the client can do.
    pub capabilities: u64,
    /// The account's name.
    pub user: String,
    /// The default database; empty if none.
    pub database: String,
}

/// An SSLRequest has only what a HandshakeResponse41 begins with.
const SSL_REQUEST: usize = 32;

/// Reads the payload of the client's first packet.
///
/// # Errors
/// A client of before MySQL 4.1, or no client.
pub fn hello(payload: &[u8]) -> Result<Hello, Malformed> {
    let mut body = Body(payload);
    let mut capabilities = u64::from(body.u32()?);
    if capabilities & caps::PROTOCOL_41 == 0 {
        return malformed("a client that does not speak protocol 4.1");
    }
    // The longest packet, and the collation.
    body.take(5)?;
    let reserved = body.take(23)?;
    if capabilities & caps::MYSQL == 0 {
        let own = [reserved[19], reserved[20], reserved[21], reserved[22]];
        capabilities |= u64::from(u32::from_le_bytes(own)) << 32;
    }
    if capabilities & caps::SSL != 0 && payload.len() == SSL_REQUEST {
        return Ok(Hello::Ssl);
    }
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let user = text(body.cstr()?);
    if capabilities & caps::PLUGIN_AUTH_LENENC != 0 {
        body.lenenc_bytes()?;
    } else if capabilities & caps::SECURE_CONNECTION != 0 {
        let len = body.u8()?.into();
        body.take(len)?;
    } else {
        body.cstr()?;
    }
    let database = match capabilities & caps::CONNECT_WITH_DB {
        0 => String::new(),
        _ => text(body.cstr_or_rest()),
    };
    Ok(Hello::Session(Login {
        capabilities,
        user,
        database,
    }))
}

/// Reads the payload of a COM_CHANGE_USER.
///
/// # Errors
/// Fewer bytes than it has.
pub fn change_user(payload: &[u8], capabilities: u64) -> Result<Login, Malformed> {
    let mut body = Body(payload);
    body.take(1)?;
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let user = text(body.cstr()?);
    if capabilities & caps::SECURE_CONNECTION != 0 {
        let len = body.u8()?.into();
        body.take(len)?;
    } else {
        body.cstr()?;
    }
    Ok(Login {
        capabilities,
        user,
        database: text(body.cstr_or_rest()),
    })
}

/// An SSLRequest, which is also what a HandshakeResponse41 begins with.
pub fn put_ssl_request(out: &mut BytesMut, capabilities: u64) {
    out.put_u32_le(capabilities as u32);
    // The longest packet: what a server takes at most.
    out.put_u32_le(1 << 30);
    out.put_u8(super::CHARSET_UTF8MB4 as u8);
    out.put_bytes(0, 23);
}

/// Appends the payload of a HandshakeResponse41 with this answer of the plugin.
pub fn put_login(out: &mut BytesMut, login: &Login, plugin: &str, answer: &[u8]) {
    put_ssl_request(out, login.capabilities);
    out.put_slice(login.user.as_bytes());
    out.put_u8(0);
    lenenc(out, answer.len() as u64);
    out.put_slice(answer);
    if login.capabilities & caps::CONNECT_WITH_DB != 0 {
        out.put_slice(login.database.as_bytes());
        out.put_u8(0);
    }
    out.put_slice(plugin.as_bytes());
    out.put_u8(0);
}
