//! Hashing of stream numbers. They grow by two, and a connection has [`super::MOST_STREAMS`] at most: what the standard hash is for, that
//! strangers cannot choose collisions, is of no use here, and every frame is looked up.

use std::hash::{BuildHasherDefault, Hasher};

/// For maps by stream number.
pub(super) type Numbers = BuildHasherDefault<Multiplied>;

#[derive(Default)]
pub(super) struct Multiplied(u64);

impl Hasher for Multiplied {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32((*byte).into());
        }
    }

    fn write_u32(&mut self, number: u32) {
        // 2^64 / golden ratio (Knuth, The Art of Computer Programming, section 6.4): spreads numbers in a row over the upper bits, which
        // the table looks at besides the lower ones.
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        // Odd numbers times an odd one have odd products: the lower bits alone would use every second place.
        self.0.rotate_left(32)
    }
}
