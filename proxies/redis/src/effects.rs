//! Which byte of a reply a corrupt rule changes.

use crate::codec::{Payload, Reader};

/// What rules do to one command's reply on its way.
pub type Effects = faultbox_engine::Effects<Corrupt>;

/// Finds one byte of a reply's content: its strings, errors and numbers one after another. An offset past the end means the last byte
/// of the last of them, so that the rule does what it says whenever there is anything to corrupt.
#[derive(Debug)]
pub struct Corrupt {
    /// Content to pass before the byte.
    left: u64,
    done: bool,
    reader: Reader,
}

impl Corrupt {
    /// Looks for the byte at this offset of the content.
    pub fn new(offset: u64) -> Corrupt {
        Corrupt {
            left: offset,
            done: false,
            reader: Reader::following(),
        }
    }

    /// Changes it if it is among `bytes`, the next of the reply.
    pub fn pass(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while !self.done && at < bytes.len() {
            if self.reader.is_over() {
                self.reader = Reader::following();
            }
            let mut found = None;
            let left = &mut self.left;
            let read = self.reader.read(&bytes[at..], |payload: Payload| {
                let len = (payload.end - payload.start) as u64;
                if found.is_some() {
                } else if *left < len {
                    found = Some((payload.start + *left as usize, payload.kind));
                } else if payload.last && !payload.goes_on {
                    found = Some((payload.end - 1, payload.kind));
                } else {
                    *left -= len;
                }
            });
            if let Some((i, kind)) = found {
                let byte = &mut bytes[at + i];
                *byte = wrong(*byte, kind);
                self.done = true;
            }
            match read {
                Ok(n @ 1..) => at += n,
                _ => return,
            }
        }
    }
}

/// Another byte in its place, such that the framing stays what it was: lines end where they ended, and a number remains one.
fn wrong(byte: u8, kind: u8) -> u8 {
    match (kind, byte) {
        (b':' | b',' | b'(', b'0'..=b'9') => b'0' + b'9' - byte,
        (b'#', b't') => b'f',
        (b'#', _) => b't',
        (b'$' | b'=' | b'!', _) => !byte,
        (_, _) if matches!(!byte, b'\r' | b'\n') => byte ^ 1,
        _ => !byte,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REPLY: &[u8] = b"*4\r\n$2\r\nab\r\n$-1\r\n:47\r\n*1\r\n+cd\r\n";

    fn changed(offset: u64, cut: usize) -> Vec<(usize, u8)> {
        let mut after = REPLY.to_vec();
        let mut corrupt = Corrupt::new(offset);
        // Cut where the proxy would: in front of what is not whole.
        let mut reader = Reader::new();
        let cut = reader.skip(&REPLY[..cut]).unwrap();
        let (first, second) = after.split_at_mut(cut);
        corrupt.pass(first);
        corrupt.pass(second);
        (0..REPLY.len())
            .filter(|&i| REPLY[i] != after[i])
            .map(|i| (i, after[i]))
            .collect()
    }

    #[test]
    fn the_byte_at_the_offset_is_changed_and_no_other() {
        for (offset, at, byte) in [
            (0, 8, !b'a'),
            (1, 9, !b'b'),
            (2, 18, b'5'),
            (3, 19, b'2'),
            (4, 27, !b'c'),
            (5, 28, !b'd'),
            (99, 28, !b'd'),
        ] {
            assert_eq!(changed(offset, 0), [(at, byte)], "{offset}");
        }
        assert_eq!((wrong(0xf2, b'+'), wrong(0xf5, b'-')), (0xf3, 0xf4));
        assert_eq!((wrong(b't', b'#'), wrong(b'f', b'#')), (b'f', b't'));
    }

    #[test]
    fn of_several_replies_the_first_is_changed() {
        let mut bytes = *b"+a\r\n+b\r\n";
        Corrupt::new(9).pass(&mut bytes);
        assert_eq!(bytes, *b"+\x9e\r\n+b\r\n");
    }

    proptest! {
        #[test]
        fn chunking_does_not_matter(offset in 0..20u64, cut in 0..REPLY.len()) {
            prop_assert_eq!(changed(offset, cut), changed(offset, 0));
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), offset in 0..40u64) {
            Corrupt::new(offset).pass(&mut bytes);
        }
    }
}
