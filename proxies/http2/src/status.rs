//! gRPC's statuses: codes, and how a server says them in trailers (gRPC over HTTP/2, "Responses").

use bytes::Bytes;
use faultbox_contract::ArgError;
use faultbox_contract::rule::nearest;
use serde_json::Value;

use crate::codec::hpack::Field;
use crate::details;

/// The codes, by number.
pub const CODES: &[&str] = &[
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// What a client sees of a dying server, and what `error()` says by itself.
pub const UNAVAILABLE: u32 = 14;

/// A code's name; its number for codes that have none.
pub fn name(code: u32) -> String {
    CODES
        .get(code as usize)
        .map_or_else(|| code.to_string(), |n| (*n).to_owned())
}

/// The number of a code that a spec wrote, by name or number.
///
/// # Errors
/// A code that gRPC does not have, or OK, which is no error.
pub fn code_of(text: &str) -> Result<u32, ArgError> {
    let upper = text.to_ascii_uppercase();
    let found = match text.parse::<u32>() {
        Ok(number) => Some(number).filter(|n| (*n as usize) < CODES.len()),
        // Some libraries spell it with one L.
        Err(_) if upper == "CANCELED" => Some(1),
        Err(_) => CODES.iter().position(|c| *c == upper).map(|i| i as u32),
    };
    match found {
        Some(0) => Err(ArgError::new("code", "`code`: OK is no error")
            .hint("leave the rule out to let calls succeed")),
        Some(code) => Ok(code),
        None => {
            let list = CODES[1..].join(", ");
            let hint = match nearest(&upper, CODES) {
                Some(best) => format!("did you mean `{best}`? The codes are {list}"),
                None => format!("the codes are {list}, or 1 to 16"),
            };
            Err(ArgError::new("code", format!("`code`: gRPC has no code `{text}`")).hint(hint))
        }
    }
}

/// An error as trailers carry it.
#[derive(Debug, PartialEq)]
pub struct Status {
    /// The code's number.
    pub code: u32,
    fields: Vec<Field>,
}

impl Status {
    /// Puts a status together. `metadata` comes after it in the trailers; values of `-bin` names are base64 already.
    ///
    /// # Errors
    /// Details that cannot be encoded.
    pub fn new(
        code: u32,
        message: &str,
        details: &[Value],
        metadata: Vec<(String, String)>,
    ) -> Result<Status, ArgError> {
        let mut fields = vec![Field::new("grpc-status", code.to_string())];
        if !message.is_empty() {
            fields.push(Field::new("grpc-message", percent_encode(message)));
        }
        if !details.is_empty() {
            let bytes = details::encode(code, message, details)?;
            fields.push(Field::new("grpc-status-details-bin", base64(&bytes)));
        }
        fields.extend(
            metadata
                .into_iter()
                .map(|(n, v)| Field::new(n.to_ascii_lowercase(), v)),
        );
        Ok(Status { code, fields })
    }

    /// The status where nothing has been answered yet: "Trailers-Only".
    pub fn trailers_only(&self) -> Vec<Field> {
        let mut fields = vec![
            Field::new(":status", "200"),
            Field::new("content-type", "application/grpc"),
        ];
        fields.extend(self.fields.iter().cloned());
        fields
    }

    /// The status after the headers of a response.
    pub fn trailers(&self) -> Vec<Field> {
        self.fields.clone()
    }
}

/// A grpc-message: what is not printable ASCII, and `%`, is escaped.
fn percent_encode(message: &str) -> Bytes {
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out.into()
}

/// The reverse; what is not an escape stays as it is.
pub fn percent_decode(message: &[u8]) -> String {
    let mut out = Vec::with_capacity(message.len());
    let mut rest = message;
    while let Some((&byte, more)) = rest.split_first() {
        let escaped = (byte == b'%')
            .then(|| more.first_chunk::<2>())
            .flatten()
            .and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match escaped {
            Some(byte) => {
                out.push(byte);
                rest = &more[2..];
            }
            None => {
                out.push(byte);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Base64 without padding, as gRPC senders write binary metadata.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .chain([&0, &0])
            .take(3)
            .fold(0usize, |w, b| w << 8 | usize::from(*b));
        for i in 0..=chunk.len() {
            out.push(DIGITS[word >> (18 - 6 * i) & 63] as char);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_by_name_and_number() {
        assert_eq!(code_of("UNAVAILABLE"), Ok(14));
        assert_eq!(code_of("unavailable"), Ok(14));
        assert_eq!(code_of("8"), Ok(8));
        assert_eq!(code_of("CANCELED"), Ok(1));
        assert!(code_of("OK").is_err() && code_of("0").is_err() && code_of("17").is_err());
        let hint = code_of("UNAVAILBLE").unwrap_err().hint.unwrap();
        assert!(hint.starts_with("did you mean `UNAVAILABLE`?"), "{hint}");
        assert_eq!((name(14), name(99)), ("UNAVAILABLE".into(), "99".into()));
    }

    #[test]
    fn messages_survive_their_escapes() {
        for text in ["disk full", "100 % größer\n", "%41"] {
            assert_eq!(percent_decode(&percent_encode(text)), text);
        }
        assert_eq!(&percent_encode("a%b\n")[..], b"a%25b%0A");
        assert_eq!(percent_decode(b"50% off %zz %"), "50% off %zz %");
    }

    /// RFC 4648, section 10, less the padding.
    #[test]
    fn base64_of_the_rfc() {
        let cases = [
            ("", ""),
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg"),
            ("fooba", "Zm9vYmE"),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, coded) in cases {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
