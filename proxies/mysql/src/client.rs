//! A client on this crate's own codec: connect, authenticate, text and prepared statements.

use std::io::{self, Read};

use bytes::{Buf, BufMut, BytesMut};
use faultbox_contract::Endpoint;
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::codec::{
    self, Body, Column, Done, HEADER, Login, MAX_PAYLOAD, Malformed, ServerError, caps, com, status,
};
use crate::{scramble, values};

/// The longest message that is read: the most that `max_allowed_packet` can be.
const LONGEST: usize = 1 << 30;

/// What goes wrong.
#[derive(Debug)]
pub enum Failure {
    /// The server says so.
    Server(ServerError),
    /// The system says so.
    Io(io::Error),
    /// The server has closed in good order instead of answering.
    Closed,
    /// The server says what this client does not understand.
    Protocol(String),
    /// Another number of parameters than the statement has: wanted, given.
    Parameters(usize, usize),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Failure {
        Failure::Protocol(malformed.0)
    }
}

/// Who connects.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// Its name.
    pub user: String,
    /// Its password; empty if none.
    pub password: String,
    /// The default database; empty if none.
    pub database: String,
}

impl Account {
    /// Tells connections apart.
    pub fn key(&self) -> String {
        format!("{:?}", (&self.user, &self.password, &self.database))
    }
}

/// What one statement has come to.
#[derive(Debug)]
pub enum Outcome {
    /// Rows, as JSON.
    Rows(Vec<Value>),
    /// None.
    Done(Done),
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    buf: BytesMut,
    /// The number of the next packet.
    seq: u8,
    capabilities: u64,
    encrypted: bool,
}

impl Client {
    /// Connects and authenticates.
    ///
    /// # Errors
    /// What the network or the server says, or a plugin that is not known here.
    pub async fn connect(endpoint: &Endpoint, account: &Account) -> Result<Client, Failure> {
        let stream = faultbox_engine::dial(endpoint.addr).await?;
        let mut client = Client {
            stream,
            buf: BytesMut::new(),
            seq: 0,
            capabilities: 0,
            encrypted: false,
        };
        let first = client.message().await?;
        if first.first() == Some(&0xff) {
            return Err(Failure::Server(codec::err(&first)?));
        }
        let greeting = codec::greeting(&first)?;
        let mut wanted = caps::MYSQL
            | caps::LONG_FLAG
            | caps::PROTOCOL_41
            | caps::TRANSACTIONS
            | caps::SECURE_CONNECTION
            | caps::MULTI_STATEMENTS
            | caps::MULTI_RESULTS
            | caps::PS_MULTI_RESULTS
            | caps::PLUGIN_AUTH
            | caps::PLUGIN_AUTH_LENENC
            | caps::DEPRECATE_EOF;
        if !account.database.is_empty() {
            wanted |= caps::CONNECT_WITH_DB;
        }
        if endpoint.tls.is_some() {
            if greeting.capabilities & caps::SSL == 0 {
                return Err(Failure::Protocol(
                    "the interface has tls=, but the server speaks no TLS".into(),
                ));
            }
            wanted |= caps::SSL;
        }
        // MariaDB leaves the first flag out; both sides must have it here for the upper half to be nobody's.
        client.capabilities = wanted & (greeting.capabilities | caps::MYSQL);
        let login = Login {
            capabilities: client.capabilities,
            user: account.user.clone(),
            database: account.database.clone(),
        };
        let mut client = client.encrypt(endpoint).await?;
        let known = matches!(
            greeting.plugin.as_str(),
            "mysql_native_password" | "caching_sha2_password"
        );
        let plugin = if known {
            greeting.plugin.as_str()
        } else {
            "mysql_native_password"
        };
        let answer = proof(plugin, account, &greeting.scramble)?;
        let mut payload = BytesMut::new();
        codec::put_login(&mut payload, &login, plugin, &answer);
        client.send(&payload).await?;
        client
            .authenticate(account, plugin.to_owned(), greeting.scramble)
            .await?;
        Ok(client)
    }

    /// Asks for TLS if the interface has it, and goes on within.
    async fn encrypt(mut self, endpoint: &Endpoint) -> Result<Client, Failure> {
        let Some(tls) = &endpoint.tls else {
            return Ok(self);
        };
        let mut request = BytesMut::new();
        codec::put_ssl_request(&mut request, self.capabilities);
        self.send(&request).await?;
        let host = &endpoint.host;
        self.stream = faultbox_engine::tls::connect(self.stream, tls, host, &[]).await?;
        self.encrypted = true;
        Ok(self)
    }

    /// Says what the server's authentication plugin asks, until it is content.
    async fn authenticate(
        &mut self,
        account: &Account,
        mut plugin: String,
        mut scramble: Vec<u8>,
    ) -> Result<(), Failure> {
        loop {
            let message = self.message().await?;
            match message.first() {
                Some(0x00) => return Ok(()),
                Some(0xff) => return Err(Failure::Server(codec::err(&message)?)),
                Some(0xfe) => {
                    let mut body = Body(&message[1..]);
                    plugin = String::from_utf8_lossy(body.cstr()?).into_owned();
                    scramble = body.0.strip_suffix(b"\0").unwrap_or(body.0).to_vec();
                    let answer = proof(&plugin, account, &scramble)?;
                    self.send(&answer).await?;
                }
                // caching_sha2_password: 3 is a hit in the server's cache, 4 asks for the password itself.
                Some(0x01) if message.get(1) == Some(&3) => {}
                Some(0x01) if message.get(1) == Some(&4) && plugin == "caching_sha2_password" => {
                    if self.encrypted {
                        let password = [account.password.as_bytes(), b"\0"].concat();
                        self.send(&password).await?;
                        continue;
                    }
                    self.send(&[2]).await?;
                    let key = self.message().await?;
                    let pem = String::from_utf8_lossy(key.get(1..).unwrap_or_default());
                    let mut seed = [0; scramble::HASH];
                    std::fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
                    let answer = scramble::rsa(account.password.as_bytes(), &scramble, &pem, seed)
                        .ok_or_else(|| {
                            Failure::Protocol("the server's public key cannot be read".into())
                        })?;
                    self.send(&answer).await?;
                }
                _ => {
                    return Err(Failure::Protocol(format!(
                        "{plugin} asks for more than this client knows"
                    )));
                }
            }
        }
    }

    /// Runs statements as text; what each has come to.
    ///
    /// # Errors
    /// What the network or the server says.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Outcome>, Failure> {
        self.command(com::QUERY, sql.as_bytes()).await?;
        self.outcomes(false).await
    }

    /// Prepares one statement, runs it, and forgets it.
    ///
    /// # Errors
    /// As [`Client::query`], or another number of parameters than the statement has.
    pub async fn execute(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Outcome>, Failure> {
        self.command(com::STMT_PREPARE, sql.as_bytes()).await?;
        let message = self.answer().await?;
        let prepared = codec::prepare_ok(&message, self.capabilities)?;
        for definitions in [prepared.params, prepared.columns] {
            // An EOF stands behind each list that is there, where EOFs are not deprecated.
            let eof = definitions > 0 && self.capabilities & caps::DEPRECATE_EOF == 0;
            for _ in 0..u32::from(definitions) + u32::from(eof) {
                self.message().await?;
            }
        }
        let wanted = usize::from(prepared.params);
        if wanted != params.len() {
            return Err(Failure::Parameters(wanted, params.len()));
        }
        let mut argument = BytesMut::new();
        argument.put_u32_le(prepared.id);
        // No cursor, one iteration.
        argument.put_u8(0);
        argument.put_u32_le(1);
        if !params.is_empty() {
            let mut nulls = vec![0u8; params.len().div_ceil(8)];
            let (mut types, mut data) = (BytesMut::new(), BytesMut::new());
            for (i, param) in params.iter().enumerate() {
                let (kind, unsigned, value) = values::parameter(param);
                if param.is_null() {
                    nulls[i / 8] |= 1 << (i % 8);
                }
                types.put_slice(&[kind, if unsigned { 0x80 } else { 0 }]);
                data.put_slice(&value);
            }
            argument.put_slice(&nulls);
            argument.put_u8(1);
            argument.put_slice(&types);
            argument.put_slice(&data);
        }
        self.command(com::STMT_EXECUTE, &argument).await?;
        let outcomes = self.outcomes(true).await?;
        self.command(com::STMT_CLOSE, &prepared.id.to_le_bytes())
            .await?;
        Ok(outcomes)
    }

    /// Can it be asked something: is it open, with no answer left unread?
    pub fn is_idle(&self) -> bool {
        self.buf.is_empty() && faultbox_engine::is_quiet(&self.stream)
    }

    /// Says goodbye; whether the server hears it does not matter.
    pub async fn quit(mut self) {
        let _ = self.command(com::QUIT, &[]).await;
        let _ = self.stream.shutdown().await;
    }

    async fn outcomes(&mut self, binary: bool) -> Result<Vec<Outcome>, Failure> {
        let mut outcomes = vec![];
        loop {
            let message = self.answer().await?;
            if message.first() == Some(&0x00) {
                let done = codec::ok(&message, self.capabilities)?;
                let more = done.status & status::MORE_RESULTS != 0;
                outcomes.push(Outcome::Done(done));
                if more {
                    continue;
                }
                return Ok(outcomes);
            }
            if message.first() == Some(&0xfb) {
                // CLIENT_LOCAL_FILES was not offered.
                return Err(Failure::Protocol("the server asks for a file".into()));
            }
            let (count, _) = codec::column_count(&message, self.capabilities)?;
            let mut columns = vec![];
            for _ in 0..count {
                let definition = self.message().await?;
                columns.push(codec::column(&definition, self.capabilities)?);
            }
            if self.capabilities & caps::DEPRECATE_EOF == 0 {
                self.message().await?;
            }
            let (rows, more) = self.rows(&columns, binary).await?;
            outcomes.push(Outcome::Rows(rows));
            if !more {
                return Ok(outcomes);
            }
        }
    }

    async fn rows(
        &mut self,
        columns: &[Column],
        binary: bool,
    ) -> Result<(Vec<Value>, bool), Failure> {
        let mut rows = vec![];
        loop {
            let message = self.answer().await?;
            let end = message.first() == Some(&0xfe) && message.len() < MAX_PAYLOAD;
            if end && self.capabilities & caps::DEPRECATE_EOF != 0 {
                let done = codec::ok(&message, self.capabilities)?;
                return Ok((rows, done.status & status::MORE_RESULTS != 0));
            }
            if end && message.len() < 9 {
                return Ok((rows, codec::eof(&message)? & status::MORE_RESULTS != 0));
            }
            rows.push(if binary {
                binary_row(&message, columns)?
            } else {
                text_row(&message, columns)?
            });
        }
    }

    async fn command(&mut self, command: u8, argument: &[u8]) -> Result<(), Failure> {
        let mut out = BytesMut::new();
        codec::put_command(&mut out, command, argument);
        // A long command has more than one packet.
        self.seq = ((1 + argument.len()) / MAX_PAYLOAD) as u8 + 1;
        Ok(self.stream.write_all(&out).await?)
    }

    async fn send(&mut self, payload: &[u8]) -> Result<(), Failure> {
        let mut out = BytesMut::new();
        codec::packet(&mut out, &mut self.seq, payload);
        Ok(self.stream.write_all(&out).await?)
    }

    /// The next message, if it is no ERR.
    async fn answer(&mut self) -> Result<BytesMut, Failure> {
        let message = self.message().await?;
        match message.first() {
            Some(0xff) => Err(Failure::Server(codec::err(&message)?)),
            _ => Ok(message),
        }
    }

    /// The payload of the next message.
    async fn message(&mut self) -> Result<BytesMut, Failure> {
        let mut whole = BytesMut::new();
        loop {
            self.fill(HEADER).await?;
            let Some(header) = codec::header(&self.buf) else {
                return Err(Failure::Closed);
            };
            if header.seq != self.seq {
                return Err(Failure::Protocol(format!(
                    "packet {} where {} is due",
                    header.seq, self.seq
                )));
            }
            self.seq = self.seq.wrapping_add(1);
            self.fill(HEADER + header.len).await?;
            self.buf.advance(HEADER);
            let part = self.buf.split_to(header.len);
            if header.len < MAX_PAYLOAD && whole.is_empty() {
                return Ok(part);
            }
            whole.unsplit(part);
            if whole.len() > LONGEST {
                return Err(Failure::Protocol(format!(
                    "a message of more than {LONGEST} bytes"
                )));
            }
            if header.len < MAX_PAYLOAD {
                return Ok(whole);
            }
        }
    }

    async fn fill(&mut self, n: usize) -> Result<(), Failure> {
        while self.buf.len() < n {
            self.buf.reserve((n - self.buf.len()).max(8 << 10));
            if self.stream.read_buf(&mut self.buf).await? == 0 {
                return Err(Failure::Closed);
            }
        }
        Ok(())
    }
}

fn proof(plugin: &str, account: &Account, scramble: &[u8]) -> Result<Vec<u8>, Failure> {
    let password = account.password.as_bytes();
    match plugin {
        "mysql_native_password" => Ok(scramble::native(password, scramble)),
        "caching_sha2_password" => Ok(scramble::sha2(password, scramble)),
        // Only where it must be told in the clear, which is nowhere that a spec should log in.
        other => Err(Failure::Protocol(format!(
            "the account `{}` uses the plugin {other}; steps speak mysql_native_password and caching_sha2_password",
            account.user
        ))),
    }
}

fn text_row(payload: &[u8], columns: &[Column]) -> Result<Value, Failure> {
    let mut body = Body(payload);
    let mut row = Map::new();
    for column in columns {
        let value = body.text_value()?;
        let value = value.map_or(Value::Null, |raw| values::from_text(raw, column));
        row.insert(column.name.clone(), value);
    }
    Ok(Value::Object(row))
}

fn binary_row(payload: &[u8], columns: &[Column]) -> Result<Value, Failure> {
    let mut body = Body(payload);
    body.take(1)?;
    let nulls = body.take((columns.len() + 9) / 8)?;
    let mut row = Map::new();
    for (i, column) in columns.iter().enumerate() {
        let null = nulls[(i + 2) / 8] >> ((i + 2) % 8) & 1 == 1;
        let value = match null {
            true => Value::Null,
            false => values::from_binary(body.binary_value(column.kind)?, column)?,
        };
        row.insert(column.name.clone(), value);
    }
    Ok(Value::Object(row))
}
