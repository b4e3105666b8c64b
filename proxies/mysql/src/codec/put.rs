//! Writing packets.

use bytes::{BufMut, BytesMut};

use super::{Column, MAX_PAYLOAD, caps, status};

/// Appends a length-encoded integer.
pub fn lenenc(out: &mut BytesMut, n: u64) {
    match n {
        0..=0xfa => out.put_u8(n as u8),
        0xfb..=0xffff => {
            out.put_u8(0xfc);
            out.put_u16_le(n as u16);
        }
        0x1_0000..=0xff_ffff => {
            out.put_u8(0xfd);
            out.put_uint_le(n, 3);
        }
        _ => {
            out.put_u8(0xfe);
            out.put_u64_le(n);
        }
    }
}

/// Appends a message in as many packets as it takes; `seq` is the first one's number, and then the next one's.
pub fn packet(out: &mut BytesMut, seq: &mut u8, payload: &[u8]) {
    let mut rest = payload;
    loop {
        let (now, later) = rest.split_at(rest.len().min(MAX_PAYLOAD));
        out.put_uint_le(now.len() as u64, 3);
        out.put_u8(*seq);
        out.put_slice(now);
        *seq = seq.wrapping_add(1);
        rest = later;
        // A full packet says that another follows, be it an empty one.
        if now.len() < MAX_PAYLOAD {
            return;
        }
    }
}

/// Appends a command.
pub fn put_command(out: &mut BytesMut, command: u8, argument: &[u8]) {
    let mut payload = Vec::with_capacity(1 + argument.len());
    payload.push(command);
    payload.extend_from_slice(argument);
    packet(out, &mut 0, &payload);
}

/// An answer as a server would write it.
#[derive(Debug)]
pub struct Reply {
    /// What has been written.
    pub out: BytesMut,
    /// The next packet's number.
    pub seq: u8,
    /// What client and server have agreed on.
    pub capabilities: u64,
    /// The session's status.
    pub status: u16,
}

impl Reply {
    /// An answer whose first packet has this number.
    pub fn new(seq: u8, capabilities: u64, session: u16) -> Reply {
        Reply {
            out: BytesMut::new(),
            seq,
            capabilities,
            // What was true of the last answer only.
            status: session
                & (status::IN_TRANS
                    | status::AUTOCOMMIT
                    | status::NO_BACKSLASH_ESCAPES
                    | status::ANSI_QUOTES),
        }
    }

    /// Appends a message.
    pub fn packet(&mut self, payload: &[u8]) {
        packet(&mut self.out, &mut self.seq, payload);
    }

    fn has(&self, capability: u64) -> bool {
        self.capabilities & capability != 0
    }

    /// Appends an ERR.
    pub fn err(&mut self, code: u16, sqlstate: &str, message: &str) {
        let mut payload = BytesMut::new();
        payload.put_u8(0xff);
        payload.put_u16_le(code);
        payload.put_u8(b'#');
        payload.put_slice(sqlstate.as_bytes());
        payload.put_slice(message.as_bytes());
        self.packet(&payload);
    }

    /// Appends an OK.
    pub fn ok(&mut self, affected: u64) {
        self.done(0, affected);
    }

    fn done(&mut self, first: u8, affected: u64) {
        let mut payload = BytesMut::new();
        payload.put_u8(first);
        lenenc(&mut payload, affected);
        lenenc(&mut payload, 0);
        payload.put_u16_le(self.status);
        payload.put_u16_le(0);
        self.packet(&payload);
    }

    /// Appends what ends the rows.
    fn end(&mut self) {
        if self.has(caps::DEPRECATE_EOF) {
            self.done(0xfe, 0);
        } else {
            self.eof();
        }
    }

    fn eof(&mut self) {
        let mut payload = [0xfe, 0, 0, 0, 0];
        payload[3..].copy_from_slice(&self.status.to_le_bytes());
        self.packet(&payload);
    }

    /// Appends a result: the columns' definitions, the rows, their end.
    pub fn rows<R: AsRef<[u8]>>(&mut self, columns: &[Column], rows: impl IntoIterator<Item = R>) {
        let mut count = BytesMut::new();
        lenenc(&mut count, columns.len() as u64);
        if self.has(caps::OPTIONAL_METADATA | caps::MARIADB_CACHE_METADATA) {
            count.put_u8(1);
        }
        self.packet(&count);
        for column in columns {
            self.column(column);
        }
        if !self.has(caps::DEPRECATE_EOF) {
            self.eof();
        }
        for row in rows {
            self.packet(row.as_ref());
        }
        self.end();
    }

    fn column(&mut self, column: &Column) {
        let mut payload = BytesMut::new();
        let mut text = |text: &[u8]| {
            lenenc(&mut payload, text.len() as u64);
            payload.put_slice(text);
        };
        text(b"def");
        // Of no schema and no table: true of any computed value.
        for _ in 0..3 {
            text(b"");
        }
        text(column.name.as_bytes());
        text(b"");
        if self.has(caps::MARIADB_EXTENDED_METADATA) {
            text(b"");
        }
        payload.put_u8(12);
        payload.put_u16_le(column.charset);
        payload.put_u32_le(column.length);
        payload.put_u8(column.kind);
        payload.put_u16_le(column.flags);
        payload.put_u8(column.decimals);
        payload.put_u16_le(0);
        self.packet(&payload);
    }
}
