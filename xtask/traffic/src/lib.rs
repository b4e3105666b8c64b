//! What each protocol's client and server say: as much as a real exchange has, and always the same.

mod dns;
mod http;
mod http2;
mod kafka;
mod mysql;
mod postgres;
mod redis;

use faultbox_contract::Protocol;

/// One protocol's traffic.
pub struct Traffic {
    /// How cases are called.
    pub name: &'static str,
    /// Whose proxy it goes through.
    pub protocol: &'static dyn Protocol,
    /// What carries it.
    pub carrier: Carrier,
    /// What comes before the first request.
    pub opening: Vec<Said>,
    /// The request of this number, and its reply.
    pub exchange: fn(u32) -> (Vec<u8>, Vec<u8>),
    /// Takes the bytes of a request and of its reply apart, by the codec's own functions.
    pub decode: fn(&[u8], &[u8]),
    /// The matcher of the rules that are armed.
    pub matcher: &'static str,
    /// A value for it that matches no request; each number has another.
    pub pattern: fn(usize) -> String,
}

/// What carries the traffic.
#[derive(Debug, Clone, Copy)]
pub enum Carrier {
    /// TCP.
    Stream,
    /// UDP.
    Datagrams,
}

/// What one side says at the beginning.
pub enum Said {
    /// By the client.
    Client(Vec<u8>),
    /// By the server.
    Server(Vec<u8>),
}

/// All of it.
pub fn all() -> Vec<Traffic> {
    vec![
        dns::traffic(),
        http::traffic(),
        http2::plain(),
        http2::grpc(),
        kafka::produce(),
        kafka::fetch(),
        mysql::traffic(),
        postgres::simple(),
        postgres::prepared(),
        redis::traffic(),
    ]
}
