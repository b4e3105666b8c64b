//! Resource records: their types by name, and their data as text.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::codec::{Malformed, Reader, put_name};

/// The types that have a name here, by the registry of RFC 6895; the others are TYPEn (RFC 3597).
const TYPES: &[(&str, u16)] = &[
    ("A", 1),
    ("NS", 2),
    ("CNAME", 5),
    ("SOA", 6),
    ("PTR", 12),
    ("HINFO", 13),
    ("MX", 15),
    ("TXT", 16),
    ("AAAA", 28),
    ("SRV", 33),
    ("NAPTR", 35),
    ("DNAME", 39),
    ("OPT", 41),
    ("DS", 43),
    ("SSHFP", 44),
    ("RRSIG", 46),
    ("NSEC", 47),
    ("DNSKEY", 48),
    ("NSEC3", 50),
    ("NSEC3PARAM", 51),
    ("TLSA", 52),
    ("CDS", 59),
    ("CDNSKEY", 60),
    ("SVCB", 64),
    ("HTTPS", 65),
    ("SPF", 99),
    ("IXFR", 251),
    ("AXFR", 252),
    ("ANY", 255),
    ("URI", 256),
    ("CAA", 257),
];

/// A (RFC 1035).
pub const A: u16 = 1;
/// NS (RFC 1035).
pub const NS: u16 = 2;
/// CNAME (RFC 1035).
pub const CNAME: u16 = 5;
/// TXT (RFC 1035).
pub const TXT: u16 = 16;
/// AAAA (RFC 3596).
pub const AAAA: u16 = 28;
/// The question for all types (RFC 8482).
pub const ANY: u16 = 255;

/// The type that a name or number stands for: "A", "aaaa", "TYPE65", "65".
pub fn type_number(text: &str) -> Option<u16> {
    let upper = text.to_ascii_uppercase();
    if let Some((_, number)) = TYPES.iter().find(|(name, _)| *name == upper) {
        return Some(*number);
    }
    upper.strip_prefix("TYPE").unwrap_or(&upper).parse().ok()
}

/// The name of a type.
pub fn type_name(number: u16) -> String {
    match TYPES.iter().find(|(_, n)| *n == number) {
        Some((name, _)) => (*name).to_owned(),
        None => format!("TYPE{number}"),
    }
}

/// The types whose data [`encode`] can write.
pub const WRITABLE: &[&str] = &[
    "A", "AAAA", "CAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT",
];

/// A record's data from its text, as master files write it: "192.0.2.1", "10 mail.example.com". A TXT is all of the text.
///
/// # Errors
/// What is wrong with it, as a lower-case fragment.
pub fn encode(kind: u16, text: &str) -> Result<Vec<u8>, String> {
    let name = type_name(kind);
    let mut out = vec![];
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let exactly = |n: usize, what: &str| match words.len() == n {
        true => Ok(()),
        false => Err(format!("the data of {name} is {what}, not `{text}`")),
    };
    match name.as_str() {
        "A" => {
            let ip: Ipv4Addr = text
                .trim()
                .parse()
                .map_err(|_| format!("`{text}` is no IPv4 address"))?;
            out.extend(ip.octets());
        }
        "AAAA" => {
            let ip: Ipv6Addr = text
                .trim()
                .parse()
                .map_err(|_| format!("`{text}` is no IPv6 address"))?;
            out.extend(ip.octets());
        }
        "CNAME" | "NS" | "PTR" => {
            exactly(1, "a name")?;
            put_name(words[0], &mut out)?;
        }
        "MX" => {
            exactly(2, "a preference and a name")?;
            put_number::<u16>(words[0], &mut out)?;
            put_name(words[1], &mut out)?;
        }
        "SRV" => {
            exactly(4, "priority, weight, port and a name")?;
            for word in &words[..3] {
                put_number::<u16>(word, &mut out)?;
            }
            put_name(words[3], &mut out)?;
        }
        "SOA" => {
            exactly(7, "two names and five numbers")?;
            put_name(words[0], &mut out)?;
            put_name(words[1], &mut out)?;
            for word in &words[2..] {
                put_number::<u32>(word, &mut out)?;
            }
        }
        "CAA" => {
            let mut parts = text.trim().splitn(3, ' ');
            let (Some(flags), Some(tag), Some(value)) = (parts.next(), parts.next(), parts.next())
            else {
                return Err(format!(
                    "the data of CAA is flags, a tag and a value, not `{text}`"
                ));
            };
            put_number::<u8>(flags, &mut out)?;
            put_string(tag.as_bytes(), &mut out);
            out.extend(value.trim_matches('"').bytes());
        }
        "TXT" => {
            if text.is_empty() {
                out.push(0);
            }
            // A string has at most 255 bytes; longer text is several of them, which readers join (RFC 7208, section 3.3).
            for part in text.as_bytes().chunks(255) {
                put_string(part, &mut out);
            }
        }
        _ => {
            return Err(format!(
                "records of type {name} cannot be written; those that can are {}",
                WRITABLE.join(", ")
            ));
        }
    }
    if out.len() > usize::from(u16::MAX) {
        return Err(format!("the data of {name} has more than 65535 bytes"));
    }
    Ok(out)
}

/// The integers that records hold, big-endian.
trait Number: std::str::FromStr {
    fn put(self, out: &mut Vec<u8>);
}

impl Number for u8 {
    fn put(self, out: &mut Vec<u8>) {
        out.push(self);
    }
}

impl Number for u16 {
    fn put(self, out: &mut Vec<u8>) {
        out.extend(self.to_be_bytes());
    }
}

impl Number for u32 {
    fn put(self, out: &mut Vec<u8>) {
        out.extend(self.to_be_bytes());
    }
}

fn put_number<N: Number>(word: &str, out: &mut Vec<u8>) -> Result<(), String> {
    let number: N = word
        .parse()
        .map_err(|_| format!("`{word}` is not a number that fits"))?;
    number.put(out);
    Ok(())
}

/// A string behind its length; it has at most 255 bytes.
fn put_string(bytes: &[u8], out: &mut Vec<u8>) {
    let length = bytes.len().min(255);
    out.push(length as u8);
    out.extend(&bytes[..length]);
}

/// A record as the step shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The owner.
    pub name: String,
    /// The type.
    pub kind: u16,
    /// The class; for OPT, the datagram size.
    pub class: u16,
    /// Seconds.
    pub ttl: u32,
    /// The data as text.
    pub data: String,
}

/// Reads a record.
///
/// # Errors
/// It ends too early, or a name in it is malformed.
pub fn read(reader: &mut Reader<'_>) -> Result<Record, Malformed> {
    let name = reader.name()?;
    let kind = reader.u16()?;
    let class = reader.u16()?;
    let ttl = reader.u32()?;
    let length = usize::from(reader.u16()?);
    let begin = reader.at;
    let raw = reader.take(length)?;
    let mut inside = Reader {
        message: reader.message,
        at: begin,
    };
    let data = match decode(kind, raw, &mut inside) {
        // Data of another length than its type has is not read past its end.
        Ok(text) if inside.at <= begin + length => text,
        Ok(_) => return Err("a record longer than it says"),
        Err(e) => return Err(e),
    };
    Ok(Record {
        name,
        kind,
        class,
        ttl,
        data,
    })
}

fn decode(kind: u16, raw: &[u8], reader: &mut Reader<'_>) -> Result<String, Malformed> {
    Ok(match type_name(kind).as_str() {
        "A" => {
            let octets = <[u8; 4]>::try_from(raw).map_err(|_| "an A record without 4 bytes")?;
            Ipv4Addr::from(octets).to_string()
        }
        "AAAA" => {
            let octets =
                <[u8; 16]>::try_from(raw).map_err(|_| "an AAAA record without 16 bytes")?;
            Ipv6Addr::from(octets).to_string()
        }
        "CNAME" | "NS" | "PTR" | "DNAME" => reader.name()?,
        "MX" => format!("{} {}", reader.u16()?, reader.name()?),
        "SRV" => {
            let (priority, weight, port) = (reader.u16()?, reader.u16()?, reader.u16()?);
            format!("{priority} {weight} {port} {}", reader.name()?)
        }
        "SOA" => {
            let (server, mailbox) = (reader.name()?, reader.name()?);
            let mut text = format!("{server} {mailbox}");
            for _ in 0..5 {
                text.push_str(&format!(" {}", reader.u32()?));
            }
            text
        }
        "TXT" | "SPF" => {
            let mut strings = Reader {
                message: raw,
                at: 0,
            };
            let mut all = vec![];
            while strings.at < raw.len() {
                let n = strings.u8()?;
                all.extend(strings.take(usize::from(n))?);
            }
            String::from_utf8_lossy(&all).into_owned()
        }
        "CAA" => {
            let mut parts = Reader {
                message: raw,
                at: 0,
            };
            let flags = parts.u8()?;
            let n = parts.u8()?;
            let tag = String::from_utf8_lossy(parts.take(usize::from(n))?).into_owned();
            let value = String::from_utf8_lossy(&raw[parts.at..]);
            format!("{flags} {tag} \"{value}\"")
        }
        // RFC 3597, section 5.
        _ => {
            let hex: String = raw.iter().map(|b| format!("{b:02x}")).collect();
            format!("\\# {} {hex}", raw.len()).trim_end().to_owned()
        }
    })
}
