//! HPACK (RFC 7541): a decoder that follows a peer's dynamic table, and an encoder that needs none.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Malformed, huffman};

/// The dynamic table's size before anybody says otherwise (RFC 9113, section 6.5.2).
const FIRST_SIZE: usize = 4096;

/// The largest dynamic table that is followed: a peer may offer 4 GiB, and no encoder in use takes more than 64 KiB.
const LARGEST_TABLE: usize = 1 << 20;

/// The most that the fields of one block may come to when they are decoded, by RFC 7541's measure: a block of a few kilobytes can
/// name a large field a thousand times.
const LARGEST_LIST: usize = 1 << 20;

/// What an entry costs besides its text (RFC 7541, section 4.1).
const OVERHEAD: usize = 32;

/// A header field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// In lower case, as HTTP/2 has it.
    pub name: Bytes,
    /// Any bytes.
    pub value: Bytes,
    /// Must it never be put into a table (RFC 7541, section 7.1.3)?
    pub sensitive: bool,
}

impl Field {
    /// A field that may be indexed.
    pub fn new(name: impl Into<Bytes>, value: impl Into<Bytes>) -> Field {
        Field {
            name: name.into(),
            value: value.into(),
            sensitive: false,
        }
    }
}

/// Follows one direction's dynamic table.
#[derive(Debug)]
pub struct Decoder {
    /// The newest entry first.
    table: VecDeque<(Bytes, Bytes)>,
    size: usize,
    max: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder {
            table: VecDeque::new(),
            size: 0,
            max: FIRST_SIZE,
        }
    }
}

impl Decoder {
    /// Decodes one block. Without `fields` only the table is kept up, which costs next to nothing where fields are indexed.
    ///
    /// # Errors
    /// What RFC 7541 forbids, or more than the limits of this module; the table is of no use afterwards.
    pub fn decode(
        &mut self,
        mut block: &[u8],
        mut fields: Option<&mut Vec<Field>>,
    ) -> Result<(), Malformed> {
        let mut total = 0;
        while let Some(&first) = block.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut block, 7)?;
                match &mut fields {
                    Some(fields) => {
                        let (name, value) = self.entry(index)?;
                        total += name.len() + value.len() + OVERHEAD;
                        fields.push(Field::new(name, value));
                    }
                    None => self.check_index(index)?,
                }
            } else if first & 0xe0 == 0x20 {
                let size = integer(&mut block, 5)?;
                if size > LARGEST_TABLE {
                    return Err(Malformed("a dynamic table is larger than 1 MiB"));
                }
                self.max = size;
                self.evict(size);
            } else {
                let indexed = first & 0x40 != 0;
                let index = integer(&mut block, if indexed { 6 } else { 4 })?;
                if !indexed && fields.is_none() {
                    if index == 0 {
                        string(&mut block)?;
                    } else {
                        self.check_index(index)?;
                    }
                    string(&mut block)?;
                    continue;
                }
                let name = match index {
                    0 => text(string(&mut block)?)?,
                    _ => self.entry(index)?.0,
                };
                let value = text(string(&mut block)?)?;
                total += name.len() + value.len() + OVERHEAD;
                if indexed {
                    self.insert(name.clone(), value.clone());
                }
                if let Some(fields) = &mut fields {
                    fields.push(Field {
                        name,
                        value,
                        sensitive: first & 0xf0 == 0x10,
                    });
                }
            }
            if total > LARGEST_LIST {
                return Err(Malformed("a header list is larger than 1 MiB"));
            }
        }
        Ok(())
    }

    fn check_index(&self, index: usize) -> Result<(), Malformed> {
        if index == 0 || index > STATIC.len() + self.table.len() {
            return Err(Malformed("a header block names an entry that is not there"));
        }
        Ok(())
    }

    fn entry(&self, index: usize) -> Result<(Bytes, Bytes), Malformed> {
        self.check_index(index)?;
        Ok(match STATIC.get(index - 1) {
            Some((name, value)) => (
                Bytes::from_static(name.as_bytes()),
                Bytes::from_static(value.as_bytes()),
            ),
            None => self.table[index - 1 - STATIC.len()].clone(),
        })
    }

    fn insert(&mut self, name: Bytes, value: Bytes) {
        let cost = name.len() + value.len() + OVERHEAD;
        // An entry that is larger than the table empties it (RFC 7541, section 4.4).
        self.evict(self.max.saturating_sub(cost));
        if cost <= self.max {
            self.size += cost;
            self.table.push_front((name, value));
        }
    }

    fn evict(&mut self, limit: usize) {
        while self.size > limit {
            let Some((name, value)) = self.table.pop_back() else {
                return;
            };
            self.size -= name.len() + value.len() + OVERHEAD;
        }
    }
}

/// Reads an integer with a prefix of so many bits (RFC 7541, section 5.1).
fn integer(block: &mut &[u8], bits: u32) -> Result<usize, Malformed> {
    let cut = Malformed("a header block ends in the middle of a field");
    let mask = (1usize << bits) - 1;
    let (&first, mut rest) = block.split_first().ok_or(cut)?;
    let mut value = usize::from(first) & mask;
    if value == mask {
        for shift in (0..).step_by(7) {
            // Four more bytes are 256 MiB: past every limit, and far from overflow.
            if shift > 21 {
                return Err(Malformed("a header block has a number out of bounds"));
            }
            let (&byte, more) = rest.split_first().ok_or(cut)?;
            rest = more;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *block = rest;
    Ok(value)
}

/// Reads a string as it stands: is it in Huffman code, and its bytes.
fn string<'a>(block: &mut &'a [u8]) -> Result<(bool, &'a [u8]), Malformed> {
    let coded = block.first().is_some_and(|b| b & 0x80 != 0);
    let len = integer(block, 7)?;
    if len > block.len() {
        return Err(Malformed("a header block ends in the middle of a field"));
    }
    let (text, rest) = block.split_at(len);
    *block = rest;
    Ok((coded, text))
}

fn text((coded, bytes): (bool, &[u8])) -> Result<Bytes, Malformed> {
    if coded {
        huffman::decode(bytes).map(Bytes::from)
    } else {
        Ok(Bytes::copy_from_slice(bytes))
    }
}

/// Writes fields so that any decoder reads them, whatever its dynamic table holds: from the static table, or literally.
pub fn encode<'a>(fields: impl IntoIterator<Item = &'a Field>, out: &mut BytesMut) {
    for field in fields {
        let named = STATIC.iter().position(|(n, _)| n.as_bytes() == field.name);
        let whole = STATIC
            .iter()
            .position(|(n, v)| n.as_bytes() == field.name && v.as_bytes() == field.value);
        match whole.filter(|_| !field.sensitive) {
            Some(i) => put_integer(out, 0x80, 7, i + 1),
            None => {
                let first = if field.sensitive { 0x10 } else { 0 };
                put_integer(out, first, 4, named.map_or(0, |i| i + 1));
                if named.is_none() {
                    put_string(out, &field.name);
                }
                put_string(out, &field.value);
            }
        }
    }
}

/// Says that the dynamic table is not used any more (RFC 7541, section 6.3); allowed at the beginning of a block only.
pub fn put_no_table(out: &mut BytesMut) {
    put_integer(out, 0x20, 5, 0);
}

fn put_string(out: &mut BytesMut, text: &[u8]) {
    put_integer(out, 0, 7, text.len());
    out.put_slice(text);
}

fn put_integer(out: &mut BytesMut, first: u8, bits: u32, value: usize) {
    let mask = (1usize << bits) - 1;
    if value < mask {
        out.put_u8(first | value as u8);
        return;
    }
    out.put_u8(first | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// RFC 7541, appendix A.
const STATIC: &[(&str, &str)] = &[
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap())
            .collect()
    }

    fn decoded(decoder: &mut Decoder, block: &[u8]) -> Vec<(String, String)> {
        let mut fields = vec![];
        decoder.decode(block, Some(&mut fields)).unwrap();
        let text = |b: &Bytes| String::from_utf8(b.to_vec()).unwrap();
        fields
            .iter()
            .map(|f| (text(&f.name), text(&f.value)))
            .collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect()
    }

    const REQUEST: &[(&str, &str)] = &[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "www.example.com"),
    ];

    /// RFC 7541, appendix C.3 and C.4: the same three requests, without and with Huffman code.
    #[test]
    fn the_examples_of_the_rfc() {
        let with = |more: &[(&str, &str)]| pairs(&[REQUEST, more].concat());
        let plain = [
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ];
        let coded = [
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ];
        for blocks in [plain, coded] {
            let mut decoder = Decoder::default();
            assert_eq!(decoded(&mut decoder, &hex(blocks[0])), with(&[]));
            assert_eq!(
                decoded(&mut decoder, &hex(blocks[1])),
                with(&[("cache-control", "no-cache")])
            );
            let third = [
                (":method", "GET"),
                (":scheme", "https"),
                (":path", "/index.html"),
                (":authority", "www.example.com"),
                ("custom-key", "custom-value"),
            ];
            assert_eq!(decoded(&mut decoder, &hex(blocks[2])), pairs(&third));
            assert_eq!((decoder.size, decoder.table.len()), (164, 3));
        }
    }

    /// RFC 7541, appendix C.5 with a table of 256 bytes: entries are evicted.
    #[test]
    fn following_and_decoding_leave_the_same_table() {
        let blocks = [
            "3fe1014803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e1768747470733a2f2f7777772e6578616d706c652e636f6d",
            "4803333037c1c0bf",
        ];
        let (mut decoding, mut following) = (Decoder::default(), Decoder::default());
        for block in blocks.map(hex) {
            decoding.decode(&block, Some(&mut vec![])).unwrap();
            following.decode(&block, None).unwrap();
            assert_eq!(decoding.table, following.table);
        }
        assert_eq!((decoding.max, decoding.size), (256, 222));
        assert_eq!(&decoding.table[0].1[..], b"307");
    }

    #[test]
    fn what_is_encoded_is_decoded_by_anybody() {
        let fields = [
            Field::new(":status", "200"),
            Field::new(":status", "429"),
            Field::new("content-type", "application/grpc"),
            Field::new("x-long", "y".repeat(70_000)),
            Field::new("bin", &b"\x00\xff"[..]),
            Field {
                sensitive: true,
                ..Field::new("authorization", "secret")
            },
        ];
        let mut out = BytesMut::new();
        put_no_table(&mut out);
        encode(&fields, &mut out);
        let mut decoder = Decoder::default();
        let mut back = vec![];
        decoder.decode(&out, Some(&mut back)).unwrap();
        assert_eq!(back, fields);
        assert!(decoder.table.is_empty() && decoder.max == 0);
    }

    #[test]
    fn what_the_rfc_forbids_is_malformed() {
        for block in [
            "80",             // index 0
            "be",             // the first dynamic entry of an empty table
            "ffffffffffff00", // a number without end
            "400a6375",       // a name that is cut
            "4081ff",         // a value that is missing
            "40",
            "3fffffff7f", // a table of 256 MiB
        ] {
            assert!(
                Decoder::default().decode(&hex(block), None).is_err(),
                "{block}"
            );
            assert!(
                Decoder::default()
                    .decode(&hex(block), Some(&mut vec![]))
                    .is_err(),
                "{block}"
            );
        }
    }

    #[test]
    fn a_block_cannot_grow_without_bound() {
        let mut bomb = BytesMut::new();
        bomb.put_slice(&[0x40, 1, b'x']);
        put_string(&mut bomb, &[b'y'; 4000]);
        bomb.extend(std::iter::repeat_n(0xbe, 1000));
        assert!(Decoder::default().decode(&bomb, None).is_ok());
        assert!(Decoder::default().decode(&bomb, Some(&mut vec![])).is_err());
    }
}
