//! HPACK's Huffman code (RFC 7541, appendix B). It is canonical: the lengths alone determine it.

use std::sync::LazyLock;

use super::Malformed;

/// The end of a string; never written out.
const EOS: usize = 256;
const LONGEST: usize = 30;

/// How many bits each byte takes, and last the end of a string.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// The code by length: the first code of that length, how many there are, and where their symbols begin.
struct Code {
    first: [u32; LONGEST + 1],
    count: [u32; LONGEST + 1],
    start: [usize; LONGEST + 1],
    symbols: Vec<u16>,
}

static CODE: LazyLock<Code> = LazyLock::new(|| {
    let mut code = Code {
        first: [0; LONGEST + 1],
        count: [0; LONGEST + 1],
        start: [0; LONGEST + 1],
        symbols: vec![],
    };
    let mut next = 0u32;
    for length in 1..=LONGEST {
        next <<= 1;
        code.first[length] = next;
        code.start[length] = code.symbols.len();
        for symbol in (0..=EOS).filter(|s| usize::from(LENGTHS[*s]) == length) {
            code.symbols.push(symbol as u16);
            next += 1;
        }
        code.count[length] = next - code.first[length];
    }
    code
});

/// Decodes a string.
///
/// # Errors
/// Padding that is not the beginning of the end of a string, or that end itself (RFC 7541, section 5.2).
pub fn decode(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    let table = &*CODE;
    let mut out = Vec::with_capacity(bytes.len() * 8 / 5);
    let (mut code, mut length) = (0u32, 0);
    for bit in bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |i| byte >> i & 1))
    {
        code = code << 1 | u32::from(bit);
        length += 1;
        let offset = code.wrapping_sub(table.first[length]);
        if offset < table.count[length] {
            let symbol = table.symbols[table.start[length] + offset as usize];
            match u8::try_from(symbol) {
                Ok(byte) => out.push(byte),
                Err(_) => return Err(Malformed("a Huffman string contains its own end")),
            }
            (code, length) = (0, 0);
        }
    }
    // What is left is padding: fewer than eight bits, all ones.
    if length > 7 || code != (1 << length) - 1 {
        return Err(Malformed("a Huffman string has bad padding"));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The encoder, for the test alone: the proxy writes plain strings.
    fn encode(text: &[u8]) -> Vec<u8> {
        let table = &*CODE;
        let (mut out, mut bits, mut n) = (vec![], 0u64, 0);
        for &byte in text {
            let length = usize::from(LENGTHS[usize::from(byte)]);
            let of_length = &table.symbols[table.start[length]..];
            let rank = of_length
                .iter()
                .position(|s| *s == u16::from(byte))
                .unwrap();
            bits = bits << length | u64::from(table.first[length] + rank as u32);
            n += length;
            while n >= 8 {
                n -= 8;
                out.push((bits >> n) as u8);
            }
        }
        if n > 0 {
            out.push((bits << (8 - n)) as u8 | ((1u16 << (8 - n)) - 1) as u8);
        }
        out
    }

    #[test]
    fn every_byte_goes_there_and_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)), Ok(all));
        assert_eq!(decode(&[]), Ok(vec![]));
    }

    /// RFC 7541, appendix C.4.1 and C.6.1.
    #[test]
    fn the_examples_of_the_rfc() {
        let cases: [(&[u8], &[u8]); 3] = [
            (
                &[
                    0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
                ],
                b"www.example.com",
            ),
            (&[0xae, 0xc3, 0x77, 0x1a, 0x4b], b"private"),
            (&[0x64, 0x02], b"302"),
        ];
        for (coded, text) in cases {
            assert_eq!(decode(coded).unwrap(), text);
            assert_eq!(encode(text), coded);
        }
    }

    #[test]
    fn bad_padding_is_malformed() {
        assert!(decode(&[0xff]).is_err(), "eight bits of padding");
        assert!(decode(&[0x00, 0x00]).is_err(), "zeros as padding");
        assert!(decode(&[0xff, 0xff, 0xff, 0xff]).is_err(), "the end itself");
    }
}
