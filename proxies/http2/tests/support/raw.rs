//! A client that says frames one by one.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A field that goes into no table.
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    assert!(name.len() < 127 && value.len() < 127);
    let mut out = vec![0, name.len() as u8];
    out.extend(name.as_bytes());
    out.push(value.len() as u8);
    out.extend(value.as_bytes());
    out
}

pub struct Raw(TcpStream);

impl Raw {
    /// Says the preface and these settings, and acknowledges the server's.
    pub async fn connect(addr: SocketAddr, settings: &[(u16, u32)]) -> Raw {
        let mut raw = Raw(TcpStream::connect(addr).await.unwrap());
        let mut payload = vec![];
        for (name, value) in settings {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        raw.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        raw.say(&frame(4, 0, 0, &payload)).await;
        raw.say(&frame(4, 1, 0, &[])).await;
        raw
    }

    /// The other end of such a connection.
    pub fn of(stream: TcpStream) -> Raw {
        Raw(stream)
    }

    /// Reads a client's preface.
    pub async fn preface(&mut self) {
        assert_eq!(self.bytes(24).await, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    }

    /// Reads so many bytes.
    pub async fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        tokio::time::timeout(PATIENCE, self.0.read_exact(&mut bytes))
            .await
            .expect("the bytes come")
            .unwrap();
        bytes
    }

    /// The streams that are refused before a PING of the other side comes.
    pub async fn refused_before_ping(&mut self, other: &mut Raw) -> Vec<u32> {
        other.say(&frame(6, 0, 0, b"a ping!!")).await;
        let mut refused = vec![];
        loop {
            let frame = self.next().await;
            match frame.kind {
                3 => refused.push(frame.stream),
                6 => return refused,
                kind => panic!("a frame of type {kind}"),
            }
        }
    }

    pub async fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    pub async fn get(&mut self, stream: u32, path: &str, fields: &[(&str, &str)]) {
        let mut block = vec![0x82, 0x86];
        block.extend(literal(":path", path));
        block.extend(literal(":authority", "x"));
        for (name, value) in fields {
            block.extend(literal(name, value));
        }
        self.say(&frame(1, 5, stream, &block)).await;
    }

    pub async fn window_update(&mut self, stream: u32, more: u32) {
        self.say(&frame(8, 0, stream, &more.to_be_bytes())).await;
    }

    /// The next frame; SETTINGS are passed over.
    pub async fn next(&mut self) -> Frame {
        loop {
            let frame = self.any().await;
            if frame.kind != 4 {
                return frame;
            }
        }
    }

    /// The next frame.
    pub async fn any(&mut self) -> Frame {
        let head = self.bytes(9).await;
        let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        Frame {
            kind: head[3],
            flags: head[4],
            stream,
            payload: self.bytes(length).await,
        }
    }

    /// Reads a stream to its end: how much DATA there was.
    pub async fn data_of(&mut self, stream: u32) -> usize {
        let mut got = 0;
        loop {
            let frame = self.next().await;
            if frame.stream == stream && frame.kind == 0 {
                got += frame.payload.len();
            }
            if frame.stream == stream && frame.kind < 2 && frame.flags & 1 != 0 {
                return got;
            }
        }
    }
}
