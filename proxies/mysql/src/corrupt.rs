//! Finding the byte of an answer that a corrupt rule inverts.
//!
//! It counts the bytes of the rows' values, one after another, without their lengths. An answer that ends before the byte has come
//! has its last packet changed instead, so that the rule always does what it says: the count of affected rows in an OK, the count
//! of warnings in an EOF, the first letter of the message in an ERR.

use std::sync::Arc;

use crate::codec::{Column, fixed};

/// What a packet of an answer holds.
#[derive(Debug, Clone)]
pub enum Piece {
    /// No values, and more follows.
    Other,
    /// A row as text.
    TextRow,
    /// A row in binary, of these columns.
    BinaryRow(Arc<Vec<Column>>),
    /// The answer's last packet: OK, EOF or ERR.
    Last,
}

/// One byte to be found.
#[derive(Debug)]
pub struct Corrupt {
    /// Bytes of values to pass before it.
    left: u64,
    done: bool,
    at: At,
    binary: Option<Binary>,
}

#[derive(Debug)]
enum At {
    /// In a packet without values.
    Nothing,
    /// In what stands before a binary row's values; so many bytes of it have come.
    Nulls(usize),
    /// Where a value begins.
    Value,
    /// In a value's length: bytes to come, how far the next is shifted, the length so far.
    Length { left: u32, shift: u32, n: u64 },
    /// In a value; so many bytes to come.
    Bytes(u64),
    /// In the last packet: bytes of it that have come, and is it an ERR?
    Last { seen: usize, error: bool },
}

#[derive(Debug)]
struct Binary {
    columns: Arc<Vec<Column>>,
    nulls: Vec<u8>,
    next: usize,
}

impl Corrupt {
    /// One that inverts the byte at this offset.
    pub fn new(offset: u64) -> Corrupt {
        Corrupt {
            left: offset,
            done: false,
            at: At::Nothing,
            binary: None,
        }
    }

    /// A message begins.
    pub fn begin(&mut self, piece: &Piece) {
        self.binary = None;
        self.at = match piece {
            Piece::Other => At::Nothing,
            Piece::TextRow => At::Value,
            Piece::BinaryRow(columns) => {
                self.binary = Some(Binary {
                    columns: columns.clone(),
                    nulls: vec![],
                    next: 0,
                });
                At::Nulls(0)
            }
            Piece::Last => At::Last {
                seen: 0,
                error: false,
            },
        };
    }

    /// Passes along the next bytes of the message's payload.
    pub fn pass(&mut self, mut payload: &mut [u8]) {
        while !self.done && !payload.is_empty() {
            let taken = self.step(payload);
            payload = &mut payload[taken..];
        }
    }

    /// Takes at least one byte.
    fn step(&mut self, payload: &mut [u8]) -> usize {
        let byte = payload[0];
        match self.at {
            At::Nothing => return payload.len(),
            At::Nulls(seen) => {
                let Some(binary) = &mut self.binary else {
                    return payload.len();
                };
                // The first byte is the row's own.
                if seen > 0 {
                    binary.nulls.push(byte);
                }
                let map = (binary.columns.len() + 9) / 8;
                self.at = if seen < map {
                    At::Nulls(seen + 1)
                } else {
                    At::Value
                };
                if seen == map {
                    self.next_binary();
                }
            }
            At::Value => {
                // Of a text row; a binary one's next value has been looked up.
                self.at = match byte {
                    0xfb => At::Value,
                    0xfc => length(2),
                    0xfd => length(3),
                    0xfe => length(8),
                    n => self.bytes(n.into()),
                };
            }
            At::Length { left, shift, n } => {
                let n = n | u64::from(byte) << shift;
                self.at = match left {
                    1 => self.bytes(n),
                    _ => At::Length {
                        left: left - 1,
                        shift: shift + 8,
                        n,
                    },
                };
            }
            At::Bytes(n) => {
                let here = usize::try_from(n).map_or(payload.len(), |n| n.min(payload.len()));
                self.count(&mut payload[..here]);
                self.at = self.bytes(n - here as u64);
                return here;
            }
            At::Last { seen, error } => {
                let changed = match (seen, byte) {
                    // The message of an ERR stands behind its number and SQLSTATE.
                    _ if error => (seen >= 9).then_some(!byte),
                    (0, _) => None,
                    // What begins with 0xfc, 0xfd or 0xfe is longer than a byte, and must stay so.
                    (1, 0..=0x7f) => Some(byte ^ 0x7f),
                    (1, 0x80..=0xfa) => Some(byte ^ 0x80),
                    (1, _) => None,
                    _ => Some(!byte),
                };
                if let Some(changed) = changed {
                    payload[0] = changed;
                    self.done = true;
                }
                self.at = At::Last {
                    seen: seen + 1,
                    error: error || seen == 0 && byte == 0xff,
                };
            }
        }
        1
    }

    /// What comes after a length, or after part of a value.
    fn bytes(&mut self, n: u64) -> At {
        if n > 0 {
            return At::Bytes(n);
        }
        self.at = At::Value;
        self.next_binary();
        std::mem::replace(&mut self.at, At::Nothing)
    }

    /// In a binary row, goes to the next value that is not NULL.
    fn next_binary(&mut self) {
        let Some(binary) = &mut self.binary else {
            return;
        };
        loop {
            let i = binary.next;
            let Some(column) = binary.columns.get(i) else {
                self.at = At::Nothing;
                return;
            };
            binary.next += 1;
            let null = binary
                .nulls
                .get((i + 2) / 8)
                .is_some_and(|b| b >> ((i + 2) % 8) & 1 == 1);
            match fixed(column.kind) {
                _ if null => {}
                Some(0) => {}
                Some(n) => {
                    self.at = At::Bytes(n as u64);
                    return;
                }
                None => {
                    self.at = At::Value;
                    return;
                }
            }
        }
    }

    fn count(&mut self, values: &mut [u8]) {
        match usize::try_from(self.left)
            .ok()
            .and_then(|i| values.get_mut(i))
        {
            Some(byte) => {
                *byte = !*byte;
                self.done = true;
            }
            None => self.left -= values.len() as u64,
        }
    }
}

fn length(bytes: u32) -> At {
    At::Length {
        left: bytes,
        shift: 0,
        n: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::kind;
    use crate::values::column_for;
    use proptest::prelude::*;

    fn columns() -> Arc<Vec<Column>> {
        let kinds = [
            kind::LONG,
            kind::VAR_STRING,
            kind::NULL,
            kind::DATE,
            kind::TINY,
        ];
        Arc::new(
            kinds
                .map(|kind| Column {
                    kind,
                    ..column_for("c", [].iter())
                })
                .into(),
        )
    }

    /// Packets, and the bytes of their values.
    fn answer() -> Vec<(Piece, Vec<u8>)> {
        vec![
            (Piece::Other, b"\x05".into()),
            (Piece::TextRow, b"\x02ab\xfb\x00\xfc\x01\x00c".into()),
            // The fourth column is NULL.
            (Piece::BinaryRow(columns()), b"\0\x20defg\x02hij".into()),
            (Piece::Last, b"\0\x03\0\x02\0".into()),
        ]
    }

    fn changed(offset: u64, cut: usize) -> Vec<(usize, usize)> {
        let mut corrupt = Corrupt::new(offset);
        let mut found = vec![];
        for (p, (piece, before)) in answer().into_iter().enumerate() {
            let mut after = before.clone();
            corrupt.begin(&piece);
            after.chunks_mut(cut).for_each(|chunk| corrupt.pass(chunk));
            found.extend(
                (0..before.len())
                    .filter(|&i| before[i] != after[i])
                    .map(|i| (p, i)),
            );
        }
        found
    }

    #[test]
    fn the_byte_at_the_offset_is_inverted_and_no_other() {
        for (offset, place) in [
            (0, (1, 1)),
            (1, (1, 2)),
            (2, (1, 8)),
            (3, (2, 2)),
            (6, (2, 5)),
            (7, (2, 7)),
            (8, (2, 8)),
            (9, (2, 9)),
            (10, (3, 1)),
            (99, (3, 1)),
        ] {
            assert_eq!(changed(offset, 100), [place], "{offset}");
        }
    }

    #[test]
    fn last_packets_stay_well_formed() {
        for (before, after) in [
            (&b"\0\x01\0\x02\0\0\0"[..], &b"\0\x7e\0\x02\0\0\0"[..]),
            (b"\0\xfc\x01\x02\0\x02\0", b"\0\xfc\xfe\x02\0\x02\0"),
            (b"\0\xfa\0", b"\0\x7a\0"),
            (b"\xfe\0\0\x02\0", b"\xfe\x7f\0\x02\0"),
            (b"\xff\x15\x04#28000No", b"\xff\x15\x04#28000\xb1o"),
        ] {
            let mut bytes = before.to_vec();
            let mut corrupt = Corrupt::new(5);
            corrupt.begin(&Piece::Last);
            corrupt.pass(&mut bytes);
            assert_eq!(bytes, after);
        }
    }

    proptest! {
        #[test]
        fn chunking_does_not_matter(offset in 0..14u64, cut in 1..7usize) {
            prop_assert_eq!(changed(offset, cut), changed(offset, 100));
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..60), offset in 0..40u64, which in 0..4usize) {
            let mut corrupt = Corrupt::new(offset);
            corrupt.begin(&answer()[which].0);
            corrupt.pass(&mut bytes);
        }
    }
}
