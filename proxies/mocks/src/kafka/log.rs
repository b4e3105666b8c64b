//! The log: topics, their partitions, the batches in them.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::{Bytes, BytesMut};
use faultbox_kafka::records::{Batch, join, split};

/// What of a producer is remembered for each partition: brokers keep as many batches to recognise a retry by (KIP-98).
const REMEMBERED: usize = 5;
/// What all records together may take: more than a test sends, little enough for a CI machine.
const CAP: usize = 256 << 20;

/// Error codes (the protocol guide's list).
pub(super) mod code {
    pub(in super::super) const OFFSET_OUT_OF_RANGE: i16 = 1;
    pub(in super::super) const CORRUPT_MESSAGE: i16 = 2;
    pub(in super::super) const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
    pub(in super::super) const INVALID_TOPIC: i16 = 17;
    pub(in super::super) const TOPIC_ALREADY_EXISTS: i16 = 36;
    pub(in super::super) const INVALID_PARTITIONS: i16 = 37;
    pub(in super::super) const KAFKA_STORAGE_ERROR: i16 = 56;
}

/// One partition.
#[derive(Debug, Default)]
pub(super) struct Partition {
    batches: VecDeque<Batch>,
    next: i64,
    /// The last batches of each producer: their first sequence numbers and where they are.
    producers: HashMap<(i64, i16), VecDeque<(i32, i64)>>,
}

/// All topics.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) topics: BTreeMap<String, Vec<Partition>>,
    size: usize,
}

/// Is it a name that a topic may have?
fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !name.is_empty() && name.len() <= 249 && name.chars().all(fits) && name != "." && name != ".."
}

impl Log {
    /// Makes a topic.
    ///
    /// # Errors
    /// The code that a broker answers.
    pub(super) fn create(&mut self, name: &str, partitions: i64) -> Result<(), i16> {
        // More than any test needs, and a bound.
        let count = match partitions {
            -1 => 1,
            n @ 1..=10_000 => n,
            _ => return Err(code::INVALID_PARTITIONS),
        };
        if !is_name(name) {
            return Err(code::INVALID_TOPIC);
        }
        if self.topics.contains_key(name) {
            return Err(code::TOPIC_ALREADY_EXISTS);
        }
        let partitions = (0..count).map(|_| Partition::default()).collect();
        self.topics.insert(name.to_owned(), partitions);
        Ok(())
    }

    /// Removes a topic; was it there?
    pub(super) fn delete(&mut self, name: &str) -> bool {
        let Some(partitions) = self.topics.remove(name) else {
            return false;
        };
        let batches = partitions.iter().flat_map(|p| &p.batches);
        let freed = batches.map(|b| b.bytes().len()).sum::<usize>();
        self.size = self.size.saturating_sub(freed);
        true
    }

    /// A partition that is there.
    pub(super) fn partition(&mut self, topic: &str, number: i64) -> Result<&mut Partition, i16> {
        usize::try_from(number)
            .ok()
            .and_then(|at| self.topics.get_mut(topic)?.get_mut(at))
            .ok_or(code::UNKNOWN_TOPIC_OR_PARTITION)
    }

    /// Appends what a produce request brings to a partition; the offset of the first record.
    ///
    /// # Errors
    /// The code that a broker answers.
    pub(super) fn append(&mut self, topic: &str, number: i64, records: &Bytes) -> Result<i64, i16> {
        if self.size + records.len() > CAP {
            return Err(code::KAFKA_STORAGE_ERROR);
        }
        let (batches, rest) = split(records);
        if batches.is_empty() || !rest.is_empty() || batches.iter().any(|b| !b.checksum_holds()) {
            return Err(code::CORRUPT_MESSAGE);
        }
        let partition = self.partition(topic, number)?;
        let mut first = None;
        let mut added = 0;
        for batch in batches {
            for batch in modern(batch)? {
                let (at, new) = partition.append(&batch)?;
                first.get_or_insert(at);
                if new {
                    added += batch.bytes().len();
                }
            }
        }
        self.size += added;
        Ok(first.unwrap_or(-1))
    }
}

/// A batch of an old format as batches of the current one, in which everything is kept and fetched.
fn modern(batch: Batch) -> Result<Vec<Batch>, i16> {
    if batch.is_current() {
        return Ok(vec![batch]);
    }
    let records = batch.records().map_err(|_| code::CORRUPT_MESSAGE)?;
    Ok(records
        .iter()
        .map(|r| {
            Batch::of(
                r.key.as_deref(),
                r.value.as_deref(),
                &[],
                r.timestamp.max(0),
            )
        })
        .collect())
}

impl Partition {
    /// Where the next record will be.
    pub(super) fn end(&self) -> i64 {
        self.next
    }

    /// Appends a batch of the current format, unless it is there already; where it is, and whether it is new.
    fn append(&mut self, batch: &Batch) -> Result<(i64, bool), i16> {
        let base = self.next;
        if let Some((id, epoch, sequence)) = batch.producer() {
            let known = self.producers.entry((id, epoch)).or_default();
            // A retry of a batch whose answer got lost.
            if let Some((_, at)) = known.iter().find(|(s, _)| *s == sequence) {
                return Ok((*at, false));
            }
            known.push_back((sequence, base));
            if known.len() > REMEMBERED {
                known.pop_front();
            }
        }
        let span = batch.next_offset() - batch.base_offset();
        if span < 1 {
            return Err(code::CORRUPT_MESSAGE);
        }
        let mut bytes = BytesMut::from(&batch.bytes()[..]);
        bytes[..8].copy_from_slice(&base.to_be_bytes());
        // The leader's epoch. Neither it nor the offset is covered by the checksum.
        bytes[12..16].copy_from_slice(&0i32.to_be_bytes());
        let (kept, _) = split(&bytes.freeze());
        self.batches.extend(kept);
        self.next = base + span;
        Ok((base, true))
    }

    /// The batches from this offset on, as many as fit; one at least.
    ///
    /// # Errors
    /// The code that a broker answers.
    pub(super) fn read(&self, from: i64, most: usize) -> Result<Bytes, i16> {
        if !(0..=self.next).contains(&from) {
            return Err(code::OFFSET_OUT_OF_RANGE);
        }
        let first = self.batches.partition_point(|b| b.next_offset() <= from);
        let mut size = 0;
        let chosen: Vec<&Batch> = self
            .batches
            .range(first..)
            .take_while(|batch| {
                let fits = size == 0 || size + batch.bytes().len() <= most;
                size += batch.bytes().len();
                fits
            })
            .collect();
        Ok(join(chosen, &[]))
    }

    /// The first record at this time or later: its time and offset.
    pub(super) fn at(&self, time: i64) -> Option<(i64, i64)> {
        self.batches
            .iter()
            .filter_map(|batch| batch.records().ok())
            .flatten()
            .find(|record| record.timestamp >= time)
            .map(|record| (record.timestamp, record.offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_is_read() {
        let mut log = Log::default();
        log.create("t", 2).unwrap();
        assert_eq!(log.create("t", 1), Err(code::TOPIC_ALREADY_EXISTS));
        assert_eq!(log.create("a b", 1), Err(code::INVALID_TOPIC));
        let one = |value: &[u8]| Batch::of(None, Some(value), &[], 5).bytes().clone();
        assert_eq!(log.append("t", 1, &one(b"a")), Ok(0));
        assert_eq!(log.append("t", 1, &one(b"b")), Ok(1));
        assert_eq!(
            log.append("t", 2, &one(b"b")),
            Err(code::UNKNOWN_TOPIC_OR_PARTITION)
        );
        assert_eq!(
            log.append("t", 0, &Bytes::from_static(b"?")),
            Err(code::CORRUPT_MESSAGE)
        );
        let partition = log.partition("t", 1).unwrap();
        let (batches, rest) = split(&partition.read(1, 1).unwrap());
        assert!(rest.is_empty());
        let record = &batches[0].records().unwrap()[0];
        assert_eq!(
            (record.offset, record.value.as_deref()),
            (1, Some(&b"b"[..]))
        );
        assert_eq!(partition.read(2, 100).unwrap(), Bytes::new());
        assert_eq!(partition.read(3, 100), Err(code::OFFSET_OUT_OF_RANGE));
        assert_eq!(partition.at(5), Some((5, 0)));
        assert_eq!(partition.at(6), None);
    }
}
