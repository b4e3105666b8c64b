//! Finding the byte of an answer that a corrupt rule inverts.

use crate::codec::HEADER;

/// Finds one byte of an answer's payload: the values of its rows one after another (COPY data counts as one value), then the tag
/// of its CommandComplete. An offset past the end means the last byte of that tag, so that the rule always does what it says.
#[derive(Debug)]
pub struct Corrupt {
    /// Payload bytes to pass before the one to invert.
    left: u64,
    done: bool,
    state: At,
}

/// Where in the stream of messages the walk stands.
#[derive(Debug, Clone, Copy)]
enum At {
    /// In a header, this many of its bytes seen.
    Header(usize, [u8; HEADER]),
    /// In bytes of the message that are no payload; how many, and how many of the message follow.
    Skip { n: usize, then: Then },
    /// In the length of a value of a DataRow: bytes seen, their value, what is left of the message.
    Length {
        seen: usize,
        value: u32,
        rest: usize,
    },
    /// In payload: bytes, then what is left of the message.
    Payload { n: usize, rest: usize },
    /// In a CommandComplete's tag, without its terminating zero.
    Tag { n: usize },
}

#[derive(Debug, Clone, Copy)]
enum Then {
    Header,
    Length(usize),
}

impl Corrupt {
    /// One that inverts the byte at this offset.
    pub fn new(offset: u64) -> Corrupt {
        Corrupt {
            left: offset,
            done: false,
            state: At::Header(0, [0; HEADER]),
        }
    }

    /// Passes along the next bytes of the answer.
    pub fn pass(&mut self, mut bytes: &mut [u8]) {
        while !self.done && !bytes.is_empty() {
            let taken = self.step(bytes);
            bytes = &mut bytes[taken..];
        }
    }

    /// Takes at least one byte.
    fn step(&mut self, bytes: &mut [u8]) -> usize {
        let available = bytes.len();
        match self.state {
            At::Header(seen, mut header) => {
                header[seen] = bytes[0];
                self.state = if seen + 1 == HEADER {
                    begin(header)
                } else {
                    At::Header(seen + 1, header)
                };
                1
            }
            At::Skip { n, then } => {
                let taken = n.min(available);
                self.state = match (n - taken, then) {
                    (0, Then::Header) => At::Header(0, [0; HEADER]),
                    (0, Then::Length(rest)) => length(rest),
                    (n, then) => At::Skip { n, then },
                };
                taken
            }
            At::Length { seen, value, rest } => {
                let value = value << 8 | u32::from(bytes[0]);
                let rest = rest.saturating_sub(1);
                self.state = match (seen + 1, value) {
                    (4, 0 | u32::MAX) => length(rest),
                    (4, n) => At::Payload {
                        n: (n as usize).min(rest),
                        rest: rest.saturating_sub(n as usize),
                    },
                    (seen, value) => At::Length { seen, value, rest },
                };
                if let At::Payload { n: 0, rest } = self.state {
                    self.state = length(rest);
                }
                1
            }
            At::Payload { n, rest } => {
                let taken = n.min(available);
                self.count(&mut bytes[..taken]);
                self.state = match n - taken {
                    0 => length(rest),
                    n => At::Payload { n, rest },
                };
                taken
            }
            At::Tag { n } => {
                let taken = n.min(available);
                self.count(&mut bytes[..taken]);
                if !self.done && taken == n {
                    bytes[taken - 1] = !bytes[taken - 1];
                    self.done = true;
                }
                self.state = match n - taken {
                    0 => At::Skip {
                        n: 1,
                        then: Then::Header,
                    },
                    n => At::Tag { n },
                };
                taken
            }
        }
    }

    fn count(&mut self, payload: &mut [u8]) {
        match usize::try_from(self.left)
            .ok()
            .and_then(|i| payload.get_mut(i))
        {
            Some(byte) => {
                *byte = !*byte;
                self.done = true;
            }
            None => self.left -= payload.len() as u64,
        }
    }
}

/// What follows a header.
fn begin(header: [u8; HEADER]) -> At {
    let len = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    let body = len.saturating_sub(4);
    match (header[0], body) {
        (_, 0) => At::Header(0, [0; HEADER]),
        // The number of values.
        (b'D', 3..) => At::Skip {
            n: 2,
            then: Then::Length(body - 2),
        },
        (b'd', n) => At::Payload { n, rest: 0 },
        (b'C', 2..) => At::Tag { n: body - 1 },
        (_, n) => At::Skip {
            n,
            then: Then::Header,
        },
    }
}

/// The next value of a DataRow of which `rest` bytes are left.
fn length(rest: usize) -> At {
    match rest {
        0 => At::Header(0, [0; HEADER]),
        // Too short for a length: whatever it is, it is not payload.
        1..4 => At::Skip {
            n: rest,
            then: Then::Header,
        },
        _ => At::Length {
            seen: 0,
            value: 0,
            rest,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use bytes::BytesMut;
    use proptest::prelude::*;

    fn answer() -> Vec<u8> {
        let mut out = BytesMut::new();
        codec::put_row_description(&mut out, &[]);
        codec::put_data_row(
            &mut out,
            &[Some(b"ab".into()), None, Some(vec![]), Some(b"c".into())],
        );
        codec::put_data_row(&mut out, &[Some(b"de".into())]);
        codec::put_command_complete(&mut out, "SELECT 2");
        out.to_vec()
    }

    fn changed(offset: u64, cuts: &[usize]) -> Vec<(usize, u8)> {
        let before = answer();
        let mut after = before.clone();
        let mut corrupt = Corrupt::new(offset);
        let mut rest = &mut after[..];
        for cut in cuts {
            let (now, later) = rest.split_at_mut((*cut).min(rest.len()));
            corrupt.pass(now);
            rest = later;
        }
        corrupt.pass(rest);
        (0..before.len())
            .filter(|&i| before[i] != after[i])
            .map(|i| (i, before[i]))
            .collect()
    }

    #[test]
    fn the_byte_at_the_offset_is_inverted_and_no_other() {
        for (offset, byte) in [
            (0, b'a'),
            (1, b'b'),
            (2, b'c'),
            (3, b'd'),
            (4, b'e'),
            (5, b'S'),
            (12, b'2'),
            (99, b'2'),
        ] {
            let changed = changed(offset, &[]);
            assert_eq!(changed.len(), 1, "{offset}");
            assert_eq!(changed[0].1, byte, "{offset}");
        }
    }

    proptest! {
        #[test]
        fn chunking_does_not_matter(offset in 0..20u64, cuts in proptest::collection::vec(1..9usize, 0..12)) {
            prop_assert_eq!(changed(offset, &cuts), changed(offset, &[]));
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), offset in 0..40u64) {
            Corrupt::new(offset).pass(&mut bytes);
        }
    }
}
