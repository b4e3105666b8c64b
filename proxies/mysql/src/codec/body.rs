//! Reading a payload from the front.

use super::{Malformed, kind, malformed};

/// A payload, or what is left of one.
#[derive(Debug, Clone, Copy)]
pub struct Body<'a>(pub &'a [u8]);

impl<'a> Body<'a> {
    /// The next `n` bytes.
    ///
    /// # Errors
    /// As of all of these: fewer bytes than that.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let Some((taken, rest)) = self.0.split_at_checked(n) else {
            return malformed("a packet shorter than its contents");
        };
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length-encoded integer ("Protocol::LengthEncodedInteger").
    ///
    /// # Errors
    /// NULL (0xfb) and 0xff besides, which are none.
    pub fn lenenc(&mut self) -> Result<u64, Malformed> {
        Ok(match self.u8()? {
            0xfc => self.u16()?.into(),
            0xfd => {
                let [a, b, c] = self.array()?;
                u32::from_le_bytes([a, b, c, 0]).into()
            }
            0xfe => self.u64()?,
            n @ (0xfb | 0xff) => return malformed(format!("0x{n:02x} as a length")),
            n => n.into(),
        })
    }

    /// A length-encoded string.
    pub fn lenenc_bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.lenenc()?;
        self.take(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// A value of a text row: `None` is NULL.
    pub fn text_value(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        if self.0.first() == Some(&0xfb) {
            self.take(1)?;
            return Ok(None);
        }
        self.lenenc_bytes().map(Some)
    }

    /// A value of a binary row or a parameter of this type, without its length; what it means is the type's matter.
    pub fn binary_value(&mut self, kind: u8) -> Result<&'a [u8], Malformed> {
        match fixed(kind) {
            Some(n) => self.take(n),
            None => self.lenenc_bytes(),
        }
    }

    /// Text and its terminating zero.
    pub fn cstr(&mut self) -> Result<&'a [u8], Malformed> {
        let Some(end) = memchr::memchr(0, self.0) else {
            return malformed("text without its terminating zero");
        };
        let text = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Ok(text)
    }

    /// Text up to a zero, or up to the end.
    pub fn cstr_or_rest(&mut self) -> &'a [u8] {
        let rest = std::mem::take(&mut self.0);
        match memchr::memchr(0, rest) {
            Some(end) => {
                self.0 = &rest[end + 1..];
                &rest[..end]
            }
            None => rest,
        }
    }
}

/// How many bytes a binary value of this type has; `None` if a length stands before it. Dates and times have a length of one byte,
/// which is a length-encoded integer, too.
pub fn fixed(kind: u8) -> Option<usize> {
    Some(match kind {
        kind::NULL => 0,
        kind::TINY => 1,
        kind::SHORT | kind::YEAR => 2,
        kind::LONG | kind::INT24 | kind::FLOAT => 4,
        kind::LONGLONG | kind::DOUBLE => 8,
        _ => return None,
    })
}
