//! Record batches: what a produce request brings and a fetch response carries.
//!
//! Batches are looked at, and changed, by the fields of their heads alone, unless a rule asks for keys: then the records are
//! decompressed. Source: the Kafka documentation, "Record Batch"; KIP-98.

mod compression;
mod legacy;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::codec::Malformed;

/// Where a batch's fields stand.
mod at {
    pub const LENGTH: usize = 8;
    pub const MAGIC: usize = 16;
    pub const CRC: usize = 17;
    pub const ATTRIBUTES: usize = 21;
    pub const LAST_DELTA: usize = 23;
    pub const PRODUCER_ID: usize = 43;
    pub const PRODUCER_EPOCH: usize = 51;
    pub const SEQUENCE: usize = 53;
    pub const COUNT: usize = 57;
    pub const RECORDS: usize = 61;
}

/// What stands before the length counts: the offset and the length itself.
const PREFIX: usize = 12;
/// Bits of the attributes.
const CODEC: i16 = 0x07;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

/// One batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch(Bytes);

/// One record of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its offset, as far as its batch knows: a produced one's is not assigned yet.
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value.
    pub value: Option<Bytes>,
    /// Its headers, in order.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
    /// From the timestamp's delta on without the offset's: what a batch that is made of chosen records repeats.
    raw: Raw,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Raw {
    attributes: u8,
    timestamp_delta: i64,
    offset_delta: i64,
    rest: Bytes,
}

/// Splits a field of records into batches, the old formats' messages among them. The last one may be cut off, as fetch responses
/// do it; it is left out, and what it had is the second part.
pub fn split(records: &Bytes) -> (Vec<Batch>, Bytes) {
    let mut rest = records.clone();
    let mut batches = vec![];
    loop {
        let Some(length) = rest.get(at::LENGTH..PREFIX).map(|mut b| b.get_i32()) else {
            return (batches, rest);
        };
        let whole = usize::try_from(length).map_or(usize::MAX, |l| l + PREFIX);
        if whole > rest.len() || whole <= at::MAGIC {
            return (batches, rest);
        }
        batches.push(Batch(rest.split_to(whole)));
    }
}

impl Batch {
    /// Is it of the format since Kafka 0.11 (magic 2)?
    pub fn is_current(&self) -> bool {
        self.0[at::MAGIC] == 2 && self.0.len() >= at::RECORDS
    }

    fn short(&self, at: usize) -> i16 {
        (&self.0[at..]).get_i16()
    }

    fn int(&self, at: usize) -> i32 {
        (&self.0[at..]).get_i32()
    }

    fn long(&self, at: usize) -> i64 {
        (&self.0[at..]).get_i64()
    }

    /// The batch's bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The offset of its first record, once a broker has assigned it.
    pub fn base_offset(&self) -> i64 {
        self.long(0)
    }

    /// The offset after its last record.
    pub fn next_offset(&self) -> i64 {
        match self.is_current() {
            true => self.base_offset() + i64::from(self.int(at::LAST_DELTA)) + 1,
            false => self.base_offset() + 1,
        }
    }

    /// Is it a transaction's marker?
    pub fn is_control(&self) -> bool {
        self.is_current() && self.short(at::ATTRIBUTES) & CONTROL != 0
    }

    /// Is it part of a transaction?
    pub fn is_transactional(&self) -> bool {
        self.is_current() && self.short(at::ATTRIBUTES) & TRANSACTIONAL != 0
    }

    /// Its compression's number in the attributes.
    pub fn codec(&self) -> i16 {
        match self.is_current() {
            true => self.short(at::ATTRIBUTES) & CODEC,
            false => i16::from(self.0.get(at::MAGIC + 1).copied().unwrap_or(0)) & CODEC,
        }
    }

    /// The producer's id and epoch and the first record's sequence number, if the producer is idempotent.
    pub fn producer(&self) -> Option<(i64, i16, i32)> {
        let id = self.is_current().then(|| self.long(at::PRODUCER_ID))?;
        (id >= 0).then(|| (id, self.short(at::PRODUCER_EPOCH), self.int(at::SEQUENCE)))
    }

    /// Is its checksum right? That of the old formats is not looked at.
    pub fn checksum_holds(&self) -> bool {
        !self.is_current() || self.int(at::CRC) as u32 == crc32c::crc32c(&self.0[at::ATTRIBUTES..])
    }

    /// How many records it has.
    ///
    /// # Errors
    /// A compressed batch of an old format that does not decompress.
    pub fn count(&self) -> Result<u32, Malformed> {
        match self.is_current() {
            true => Ok(u32::try_from(self.int(at::COUNT)).unwrap_or(0)),
            false => legacy::records(&self.0).map(|records| records.len() as u32),
        }
    }

    /// The records themselves.
    ///
    /// # Errors
    /// A codec that Kafka does not have, and bytes that are no records.
    pub fn records(&self) -> Result<Vec<Record>, Malformed> {
        if !self.is_current() {
            return legacy::records(&self.0);
        }
        let content = self.0.slice(at::RECORDS..);
        let mut content = match self.codec() {
            0 => content,
            codec => compression::decompress(codec, &content)?,
        };
        let base_time = self.long(27);
        let count = self.count()? as usize;
        // No record is shorter than seven bytes.
        let mut records = Vec::with_capacity(count.min(content.len() / 7 + 1));
        for _ in 0..count {
            records.push(record(&mut content, self.base_offset(), base_time)?);
        }
        Ok(records)
    }

    /// The same batch with a new sequence number.
    #[must_use]
    pub fn with_sequence(&self, sequence: i32) -> Batch {
        self.changed(|b| b[at::SEQUENCE..][..4].copy_from_slice(&sequence.to_be_bytes()))
    }

    /// The same records from a producer that is neither idempotent nor transactional, so that a broker takes them a second time.
    #[must_use]
    pub fn anonymous(&self) -> Batch {
        if self.producer().is_none() {
            return self.clone();
        }
        let attributes = self.short(at::ATTRIBUTES) & !TRANSACTIONAL;
        self.changed(|b| {
            b[at::ATTRIBUTES..][..2].copy_from_slice(&attributes.to_be_bytes());
            // The id, the epoch and the sequence number are all -1 then.
            b[at::PRODUCER_ID..at::COUNT].fill(0xff);
        })
    }

    /// A batch in its place that has nothing to read: a transaction's marker, over the same offsets. Every client steps over
    /// those; over the empty batches that the log cleaner leaves behind, not every one does.
    #[must_use]
    pub fn passed_over(&self) -> Batch {
        let last = self.int(at::LAST_DELTA);
        let mut body = BytesMut::new();
        // No attributes, no time of its own; the last offset of the batch.
        body.put_slice(&[0, 0]);
        put_varint(&mut body, last.into());
        // The key: version 0, type 1 (commit). The value: version 0, coordinator epoch 0.
        put_counted(&mut body, Some(&[0, 0, 0, 1]));
        put_counted(&mut body, Some(&[0; 6]));
        put_varint(&mut body, 0);
        let mut content = BytesMut::new();
        put_varint(&mut content, body.len() as i64);
        content.put_slice(&body);
        self.rebuilt(&content, 1, last).changed(|b| {
            // Of no producer, so that it ends nobody's transaction.
            b[at::PRODUCER_ID..at::COUNT].fill(0xff);
            b[at::ATTRIBUTES..][..2].copy_from_slice(&CONTROL.to_be_bytes());
        })
    }

    /// The same batch with only those of `records` (its own) that are chosen. With `renumber` they follow one another, as
    /// a broker wants them from a producer; without it they keep their offsets, as the log cleaner leaves them.
    #[must_use]
    pub fn with_only(&self, records: &[&Record], renumber: bool) -> Batch {
        let mut content = BytesMut::new();
        for (i, record) in records.iter().enumerate() {
            let delta = match renumber {
                true => i as i64,
                false => record.raw.offset_delta,
            };
            let mut body = BytesMut::with_capacity(record.raw.rest.len() + 16);
            body.put_u8(record.raw.attributes);
            put_varint(&mut body, record.raw.timestamp_delta);
            put_varint(&mut body, delta);
            body.put_slice(&record.raw.rest);
            put_varint(&mut content, body.len() as i64);
            content.put_slice(&body);
        }
        let last = match renumber {
            true => records.len() as i32 - 1,
            false => self.int(at::LAST_DELTA),
        };
        self.rebuilt(&content, records.len() as i32, last)
    }

    /// The head with other records, uncompressed.
    fn rebuilt(&self, content: &[u8], count: i32, last_delta: i32) -> Batch {
        let mut b = BytesMut::with_capacity(at::RECORDS + content.len());
        b.put_slice(&self.0[..at::RECORDS]);
        b.put_slice(content);
        let attributes = self.short(at::ATTRIBUTES) & !CODEC;
        let length = (b.len() - PREFIX) as i32;
        b[at::LENGTH..][..4].copy_from_slice(&length.to_be_bytes());
        b[at::ATTRIBUTES..][..2].copy_from_slice(&attributes.to_be_bytes());
        b[at::LAST_DELTA..][..4].copy_from_slice(&last_delta.to_be_bytes());
        b[at::COUNT..][..4].copy_from_slice(&count.to_be_bytes());
        Batch(sealed(b))
    }

    fn changed(&self, change: impl FnOnce(&mut [u8])) -> Batch {
        let mut b = BytesMut::from(&self.0[..]);
        change(&mut b);
        Batch(sealed(b))
    }

    /// A batch of ours: one record, now.
    pub fn of(
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(String, String)],
        now: i64,
    ) -> Batch {
        let mut body = BytesMut::new();
        // No attributes, and the first of its batch in time and offset.
        body.put_slice(&[0, 0, 0]);
        put_counted(&mut body, key);
        put_counted(&mut body, value);
        put_varint(&mut body, headers.len() as i64);
        for (name, value) in headers {
            put_counted(&mut body, Some(name.as_bytes()));
            put_counted(&mut body, Some(value.as_bytes()));
        }
        let mut b = BytesMut::zeroed(at::RECORDS);
        put_varint(&mut b, body.len() as i64);
        b.put_slice(&body);
        let length = (b.len() - PREFIX) as i32;
        b[at::LENGTH..][..4].copy_from_slice(&length.to_be_bytes());
        // The leader's epoch is the broker's to fill in.
        b[12..16].fill(0xff);
        b[at::MAGIC] = 2;
        for time in [27, 35] {
            b[time..time + 8].copy_from_slice(&now.to_be_bytes());
        }
        b[at::PRODUCER_ID..at::COUNT].fill(0xff);
        b[at::COUNT..][..4].copy_from_slice(&1i32.to_be_bytes());
        Batch(sealed(b))
    }
}

#[cfg(test)]
impl Batch {
    /// So many records of an idempotent producer.
    pub fn numbered(id: i64, epoch: i16, sequence: i32, count: i32) -> Batch {
        let one = Batch::of(Some(b"key"), Some(b"value"), &[], 0);
        let record = one.records().unwrap().remove(0);
        let batch = one.with_only(&vec![&record; count as usize], true);
        batch.changed(|b| {
            b[at::PRODUCER_ID..][..8].copy_from_slice(&id.to_be_bytes());
            b[at::PRODUCER_EPOCH..][..2].copy_from_slice(&epoch.to_be_bytes());
            b[at::SEQUENCE..][..4].copy_from_slice(&sequence.to_be_bytes());
        })
    }
}

/// Fills the checksum in: CRC-32C of everything from the attributes on.
fn sealed(mut batch: BytesMut) -> Bytes {
    let crc = crc32c::crc32c(&batch[at::ATTRIBUTES..]);
    batch[at::CRC..][..4].copy_from_slice(&crc.to_be_bytes());
    batch.freeze()
}

/// Puts batches together again.
pub fn join<'a>(batches: impl IntoIterator<Item = &'a Batch>, rest: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    for batch in batches {
        out.put_slice(&batch.0);
    }
    out.put_slice(rest);
    out.freeze()
}

fn record(content: &mut Bytes, base: i64, base_time: i64) -> Result<Record, Malformed> {
    let length = varint(content)?;
    let mut body = part(content, length)?.ok_or(SHORT)?;
    if body.is_empty() {
        return Err(SHORT);
    }
    let attributes = body.get_u8();
    let timestamp_delta = varint(&mut body)?;
    let offset_delta = varint(&mut body)?;
    let rest = body.clone();
    let key = counted(&mut body)?;
    let value = counted(&mut body)?;
    let mut headers = vec![];
    for _ in 0..varint(&mut body)? {
        let name = counted(&mut body)?.unwrap_or_default();
        headers.push((name, counted(&mut body)?));
    }
    Ok(Record {
        offset: base.wrapping_add(offset_delta),
        timestamp: base_time.wrapping_add(timestamp_delta),
        key,
        value,
        headers,
        raw: Raw {
            attributes,
            timestamp_delta,
            offset_delta,
            rest,
        },
    })
}

const SHORT: Malformed = Malformed("a record batch ends in the middle of a record");

/// So many bytes off the front; `None` for a negative length, which is null.
fn part(from: &mut Bytes, length: i64) -> Result<Option<Bytes>, Malformed> {
    match usize::try_from(length) {
        Err(_) => Ok(None),
        Ok(length) if length <= from.len() => Ok(Some(from.split_to(length))),
        Ok(_) => Err(SHORT),
    }
}

/// Bytes behind their length.
fn counted(from: &mut Bytes) -> Result<Option<Bytes>, Malformed> {
    let length = varint(from)?;
    part(from, length)
}

fn put_counted(out: &mut BytesMut, bytes: Option<&[u8]>) {
    put_varint(out, bytes.map_or(-1, |b| b.len() as i64));
    out.put_slice(bytes.unwrap_or_default());
}

/// A signed number of up to 64 bits, zigzag-encoded.
fn varint(from: &mut Bytes) -> Result<i64, Malformed> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        if from.is_empty() {
            return Err(SHORT);
        }
        let byte = from.get_u8();
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte < 0x80 {
            return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    Err(Malformed("a number in a record is longer than 64 bits"))
}

fn put_varint(out: &mut BytesMut, value: i64) {
    let mut value = ((value << 1) ^ (value >> 63)) as u64;
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_out_as_it_went_in() {
        let headers = [("trace".to_owned(), "7".to_owned())];
        let batch = Batch::of(Some(b"k"), Some(b"value"), &headers, 1234);
        let records = batch.records().unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].key.as_deref(), Some(&b"k"[..]));
        assert_eq!(records[0].value.as_deref(), Some(&b"value"[..]));
        assert_eq!(records[0].timestamp, 1234);
        assert_eq!(
            records[0].headers,
            [("trace".into(), Some(Bytes::from_static(b"7")))]
        );
        assert!(batch.checksum_holds() && batch.producer().is_none() && !batch.is_control());
        assert_eq!(batch.next_offset(), 1);
        let null = Batch::of(None, None, &[], 0).records().unwrap();
        assert_eq!((&null[0].key, &null[0].value), (&None, &None));
    }

    #[test]
    fn changed_batches_stay_valid() {
        let batch = Batch::of(None, Some(b"v"), &[], 0).changed(|b| {
            b[at::PRODUCER_ID..][..8].copy_from_slice(&77i64.to_be_bytes());
            b[at::PRODUCER_EPOCH..][..2].copy_from_slice(&3i16.to_be_bytes());
            b[at::SEQUENCE..][..4].copy_from_slice(&9i32.to_be_bytes());
            b[at::ATTRIBUTES + 1] = 0x10;
        });
        assert_eq!(batch.producer(), Some((77, 3, 9)));
        assert!(batch.is_transactional());
        let moved = batch.with_sequence(5);
        assert_eq!(moved.producer(), Some((77, 3, 5)));
        let again = batch.anonymous();
        assert!(again.producer().is_none() && !again.is_transactional());
        assert_eq!(again.records().unwrap().len(), 1);
        let empty = Batch::numbered(77, 0, 0, 10).passed_over();
        assert_eq!((empty.is_control(), empty.next_offset()), (true, 10));
        assert_eq!(empty.records().unwrap()[0].offset, 9);
        assert!(empty.producer().is_none());
        for changed in [&batch, &moved, &again, &empty] {
            assert!(changed.checksum_holds());
        }
    }

    #[test]
    fn a_batch_that_is_cut_off_stays_behind() {
        let one = Batch::of(None, Some(b"one"), &[], 0);
        let two = Batch::of(None, Some(b"two"), &[], 0);
        let joined = join([&one, &two], &[]);
        for cut in 0..joined.len() {
            let (whole, rest) = split(&joined.slice(..cut));
            assert_eq!(whole.len(), usize::from(cut >= one.0.len()), "{cut}");
            assert_eq!(join(&whole, &rest), joined[..cut]);
        }
        assert_eq!(split(&joined), (vec![one, two], Bytes::new()));
    }

    #[test]
    fn numbers_of_any_size() {
        for value in [0, 1, -1, 63, -64, 64, i64::MAX, i64::MIN] {
            let mut out = BytesMut::new();
            put_varint(&mut out, value);
            assert_eq!(varint(&mut out.freeze()), Ok(value));
        }
        assert!(varint(&mut Bytes::from_static(&[0xff; 11])).is_err());
    }
}
