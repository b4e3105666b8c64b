//! Replies, as the server itself would write them.

use crate::codec::{self, Query};
use crate::records::{ANY, CNAME};

/// The largest datagram of a client without EDNS (RFC 1035, section 4.2.1).
const PLAIN_LIMIT: usize = 512;
/// What our replies say they take: what fits everywhere without fragments (DNS flag day 2020).
const OWN_SIZE: u16 = 1232;
/// The extended error "Other" (RFC 8914, section 4.1).
const EDE_OTHER: u16 = 0;
/// The option of an extended error.
const EDE: u16 = 15;

/// The response codes that have a name, by the registry of RFC 6895. Those past 15 need EDNS.
const CODES: &[(&str, u16)] = &[
    ("NOERROR", 0),
    ("FORMERR", 1),
    ("SERVFAIL", 2),
    ("NXDOMAIN", 3),
    ("NOTIMP", 4),
    ("REFUSED", 5),
    ("YXDOMAIN", 6),
    ("YXRRSET", 7),
    ("NXRRSET", 8),
    ("NOTAUTH", 9),
    ("NOTZONE", 10),
    ("BADVERS", 16),
    ("BADCOOKIE", 23),
];

/// SERVFAIL.
pub const SERVFAIL: u16 = 2;

/// The response code that a name or number stands for.
pub fn code_number(text: &str) -> Option<u16> {
    let upper = text.to_ascii_uppercase();
    match CODES.iter().find(|(name, _)| *name == upper) {
        Some((_, number)) => Some(*number),
        // Twelve bits with EDNS (RFC 6891, section 6.1.3).
        None => text.parse().ok().filter(|n| *n < 4096),
    }
}

/// The name of a response code.
pub fn code_name(number: u16) -> String {
    match CODES.iter().find(|(_, n)| *n == number) {
        Some((name, _)) => (*name).to_owned(),
        None => format!("RCODE{number}"),
    }
}

/// The names of the codes, for messages.
pub fn code_names() -> Vec<&'static str> {
    CODES.iter().map(|(name, _)| *name).collect()
}

/// A record of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The owner on the wire; `None`: the name that was asked for.
    pub owner: Option<Vec<u8>>,
    /// The type.
    pub kind: u16,
    /// Seconds.
    pub ttl: u32,
    /// The data.
    pub data: Vec<u8>,
}

/// What a reply says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    /// The response code.
    pub code: u16,
    /// The records to choose from.
    pub answers: Vec<Answer>,
    /// Text for people, sent as an extended error to clients with EDNS.
    pub message: Option<String>,
}

/// How a reply travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// In a datagram, which may be too small.
    Datagram,
    /// In a byte stream.
    Stream,
}

/// The reply to `query`. One that is too large for the client's datagrams is cut to nothing and says so, and the client asks again
/// over TCP.
pub fn reply(query: &Query, reply: &Reply, carrier: Carrier) -> Vec<u8> {
    let chosen: Vec<&Answer> = reply
        .answers
        .iter()
        .filter(|a| a.kind == query.kind || a.kind == CNAME || query.kind == ANY)
        .collect();
    let whole = write(query, reply.code, &chosen, reply.message.as_deref(), false);
    let limit = match (carrier, &query.edns) {
        (Carrier::Stream, _) => usize::from(u16::MAX),
        (Carrier::Datagram, None) => PLAIN_LIMIT,
        // A size below 512 means 512 (RFC 6891, section 6.2.3).
        (Carrier::Datagram, Some(edns)) => usize::from(edns.size).max(PLAIN_LIMIT),
    };
    match whole.len() <= limit {
        true => whole,
        false => truncated(query),
    }
}

/// The reply that makes a client ask again over TCP: no records, and the TC bit.
pub fn truncated(query: &Query) -> Vec<u8> {
    write(query, 0, &[], None, true)
}

fn write(
    query: &Query,
    code: u16,
    answers: &[&Answer],
    message: Option<&str>,
    cut: bool,
) -> Vec<u8> {
    let kept = query.flags & (codec::OPCODE | codec::RD | codec::CD);
    let tc = if cut { codec::TC } else { 0 };
    // A code past 15 has its upper bits in EDNS; a client without it cannot be told.
    let code = match (&query.edns, code) {
        (None, 16..) => SERVFAIL,
        (_, code) => code,
    };
    let flags = codec::QR | codec::RA | kept | tc | (code & codec::RCODE);
    let mut out = vec![];
    let mut put = |word: u16| out.extend(word.to_be_bytes());
    put(query.id);
    put(flags);
    put(1);
    put(u16::try_from(answers.len()).unwrap_or(u16::MAX));
    put(0);
    put(u16::from(query.edns.is_some()));
    out.extend(&query.question);
    for answer in answers.iter().take(usize::from(u16::MAX)) {
        match &answer.owner {
            // The question's name stands right behind the header.
            None => out.extend([0xc0, codec::HEADER as u8]),
            Some(name) => out.extend(name),
        }
        out.extend(answer.kind.to_be_bytes());
        // The class IN.
        out.extend([0, 1]);
        out.extend(answer.ttl.to_be_bytes());
        out.extend(
            u16::try_from(answer.data.len())
                .unwrap_or(u16::MAX)
                .to_be_bytes(),
        );
        out.extend(&answer.data);
    }
    // A query with EDNS gets a reply with EDNS (RFC 6891, section 7).
    if let Some(edns) = &query.edns {
        let mut options = vec![];
        let mut option = |code: u16, data: &[u8]| {
            options.extend(code.to_be_bytes());
            options.extend(u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes());
            options.extend(data);
        };
        if let Some(cookie) = &edns.cookie {
            option(codec::COOKIE, cookie);
        }
        if let Some(message) = message {
            let mut data = EDE_OTHER.to_be_bytes().to_vec();
            data.extend(message.bytes());
            option(EDE, &data);
        }
        out.push(0);
        out.extend(codec::OPT.to_be_bytes());
        out.extend(OWN_SIZE.to_be_bytes());
        out.extend([(code >> 4) as u8, 0]);
        out.extend((u16::from(edns.dnssec_ok) << 15).to_be_bytes());
        out.extend(
            u16::try_from(options.len())
                .unwrap_or(u16::MAX)
                .to_be_bytes(),
        );
        out.extend(options);
    }
    out
}
