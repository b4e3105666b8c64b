//! The formats before Kafka 0.11 (magic 0 and 1): messages one by one, or wrapped, compressed, in another.

use bytes::{Buf, Bytes};

use super::{Raw, Record, compression, part};
use crate::codec::Malformed;

/// The records of one message: itself, or those that it wraps.
///
/// # Errors
/// What is no message of these formats.
pub fn records(message: &Bytes) -> Result<Vec<Record>, Malformed> {
    let mut records = vec![];
    let codec = read(&mut message.clone(), &mut records)?;
    if codec == 0 {
        return Ok(records);
    }
    // One level: Kafka wraps no deeper.
    let inner = records
        .pop()
        .and_then(|wrapper| wrapper.value)
        .unwrap_or_default();
    let mut inner = compression::decompress(codec, &inner)?;
    while !inner.is_empty() {
        if read(&mut inner, &mut records)? != 0 {
            return Err(Malformed(
                "a compressed message within a compressed message",
            ));
        }
    }
    Ok(records)
}

/// Takes one message off the front; its codec.
fn read(from: &mut Bytes, into: &mut Vec<Record>) -> Result<i16, Malformed> {
    const SHORT: Malformed = Malformed("a message set ends in the middle of a message");
    if from.len() < 12 {
        return Err(SHORT);
    }
    let (offset, size) = (from.get_i64(), from.get_i32());
    let mut body = part(from, size.into())?.ok_or(SHORT)?;
    if body.len() < 6 {
        return Err(SHORT);
    }
    body.advance(4);
    let (magic, attributes) = (body.get_u8(), body.get_u8());
    let timestamp = match magic {
        0 => -1,
        1 if body.len() >= 8 => body.get_i64(),
        _ => return Err(Malformed("a message of an unknown format")),
    };
    let mut bytes = || {
        if body.len() < 4 {
            return Err(SHORT);
        }
        let length = body.get_i32();
        part(&mut body, length.into())
    };
    into.push(Record {
        offset,
        timestamp,
        key: bytes()?,
        value: bytes()?,
        headers: vec![],
        raw: Raw::default(),
    });
    Ok(i16::from(attributes & 0x07))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{BufMut, BytesMut};

    fn message(magic: u8, codec: u8, key: Option<&[u8]>, value: &[u8]) -> Bytes {
        let mut body = BytesMut::new();
        body.put_slice(&[0, 0, 0, 0, magic, codec]);
        if magic == 1 {
            body.put_i64(5);
        }
        body.put_i32(key.map_or(-1, |k| k.len() as i32));
        body.put_slice(key.unwrap_or_default());
        body.put_i32(value.len() as i32);
        body.put_slice(value);
        let mut out = BytesMut::new();
        out.put_i64(3);
        out.put_i32(body.len() as i32);
        out.put_slice(&body);
        out.freeze()
    }

    #[test]
    fn plain_and_wrapped() {
        for magic in [0, 1] {
            let one = message(magic, 0, Some(b"k"), b"one");
            let records = super::records(&one).unwrap();
            assert_eq!(records.len(), 1);
            assert_eq!(records[0].key.as_deref(), Some(&b"k"[..]));
            let two = [&one[..], &message(magic, 0, None, b"two")].concat();
            let packed = snap::raw::Encoder::new().compress_vec(&two).unwrap();
            let records = super::records(&message(magic, 2, None, &packed)).unwrap();
            let values: Vec<_> = records.iter().map(|r| r.value.clone().unwrap()).collect();
            assert_eq!(values, ["one", "two"]);
            for cut in 0..one.len() {
                assert!(super::records(&one.slice(..cut)).is_err(), "{cut}");
            }
        }
    }
}
