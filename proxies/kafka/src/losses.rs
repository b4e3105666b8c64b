//! Records that producers were told are stored, and that brokers have never seen.
//!
//! Two things must not give the loss away. Offsets: a lost batch is said to be where the next one would have gone, so the offsets
//! that a producer is told rise until it is told the truth again, as after an unclean leader election. Sequence numbers: an
//! idempotent producer counts its records (KIP-98), and a broker refuses a gap. What follows a lost record is therefore renumbered
//! on its way, for as long as that producer's epoch lasts, whether or not a rule is still armed.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::codec::Malformed;
use crate::records::{Batch, Record};

/// How many batches a producer may have under way to a partition (max.in.flight.requests.per.connection of an idempotent
/// producer is at most 5): a retry is one of so many, older losses are only counted.
const IN_FLIGHT: usize = 8;
/// So many records ahead, a producer has long forgotten a batch.
const FAR_BEHIND: i32 = 1 << 24;
/// How many producers' partitions are kept; the oldest is forgotten beyond.
const MOST_PRODUCERS: usize = 65_536;
/// Sequence numbers go from 0 to 2^31 - 1 and begin again.
const SEQUENCES: i32 = i32::MAX;

/// Where a batch goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The topic's name or id, as the producer says it.
    pub topic: Bytes,
    /// The partition.
    pub partition: i32,
}

/// What becomes of one batch.
#[derive(Debug, PartialEq)]
pub enum Fate {
    /// It goes on, renumbered perhaps, or without some of its records.
    Goes(Batch),
    /// It is lost: so many records. If it was lost before, and the producer only asks again, the offset that it was told.
    Lost(u32, Option<i64>),
}

/// The losses of one interface.
#[derive(Debug, Default)]
pub struct Losses {
    any: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    producers: HashMap<Producer, Lost>,
    order: VecDeque<Producer>,
    /// The offset after the last one that a producer was told, per partition.
    told: HashMap<Place, i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Producer {
    id: i64,
    epoch: i16,
    place: Place,
}

#[derive(Debug, Default)]
struct Lost {
    /// Records lost in batches that are no longer among the recent ones.
    earlier: u32,
    recent: VecDeque<Loss>,
}

#[derive(Debug)]
struct Loss {
    sequence: i32,
    /// How many records the batch had.
    count: u32,
    /// Which of them are lost; `None` for all.
    which: Option<Vec<usize>>,
    /// The offset that the producer was told.
    offset: Option<i64>,
}

impl Loss {
    fn lost(&self) -> u32 {
        self.which.as_ref().map_or(self.count, |w| w.len() as u32)
    }
}

impl Lost {
    /// How many records before this one the broker has not seen.
    fn before(&self, sequence: i32) -> u32 {
        let earlier = |l: &&Loss| {
            let ahead = sequence.wrapping_sub(l.sequence) & SEQUENCES;
            ahead > 0 && ahead < SEQUENCES / 2
        };
        let recent: u32 = self.recent.iter().filter(earlier).map(Loss::lost).sum();
        self.earlier.wrapping_add(recent)
    }

    /// Counts, from here on, what lies so far behind that no retry can be of it: the numbers begin again some day.
    fn settle(&mut self, sequence: i32) {
        let old = |l: &Loss| {
            let ahead = sequence.wrapping_sub(l.sequence) & SEQUENCES;
            (FAR_BEHIND..SEQUENCES / 2).contains(&ahead)
        };
        while self.recent.front().is_some_and(old)
            && let Some(loss) = self.recent.pop_front()
        {
            self.earlier = self.earlier.wrapping_add(loss.lost());
        }
    }

    fn add(&mut self, loss: Loss) {
        self.recent.push_back(loss);
        if self.recent.len() > IN_FLIGHT
            && let Some(old) = self.recent.pop_front()
        {
            self.earlier = self.earlier.wrapping_add(old.lost());
        }
    }
}

impl Losses {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has an idempotent producer lost anything, so that what it sends must be renumbered?
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Decides about one batch. `loses` says which of its records a rule that has fired selects; `None` if none has.
    ///
    /// # Errors
    /// A batch that must be taken apart and cannot be.
    pub fn decide(
        &self,
        place: &Place,
        batch: &Batch,
        loses: Option<&Loses<'_>>,
    ) -> Result<Fate, Malformed> {
        let count = batch.count()?;
        let Some((id, epoch, sequence)) = batch.producer() else {
            let which = match loses {
                Some(loses) => loses.of(batch)?,
                None => return Ok(Fate::Goes(batch.clone())),
            };
            return Ok(match which {
                None => Fate::Lost(count, None),
                Some(which) => Fate::Goes(without(batch, &which)?),
            });
        };
        let producer = Producer {
            id,
            epoch,
            place: place.clone(),
        };
        let mut state = self.lock();
        if let Some(lost) = state.producers.get_mut(&producer) {
            lost.settle(sequence);
        }
        let same = |l: &&Loss| l.sequence == sequence && l.count == count;
        let known = state.producers.get(&producer);
        // The same again is the same again: whether a rule fires on a retry must not matter.
        let (which, new) = match known.and_then(|lost| lost.recent.iter().find(same)) {
            Some(loss) if loss.which.is_none() => return Ok(Fate::Lost(count, loss.offset)),
            Some(loss) => (loss.which.clone(), false),
            None => match loses {
                Some(loses) => (loses.of(batch)?, true),
                None => (Some(vec![]), false),
            },
        };
        let before = known.map_or(0, |lost| lost.before(sequence));
        if new && which.as_ref().is_none_or(|w| !w.is_empty()) {
            let loss = Loss {
                sequence,
                count,
                which: which.clone(),
                offset: None,
            };
            self.any.store(true, Ordering::Relaxed);
            state.lost(producer).add(loss);
        }
        drop(state);
        Ok(match which {
            None => Fate::Lost(count, None),
            Some(which) => {
                let left = match which.is_empty() {
                    true => batch.clone(),
                    false => without(batch, &which)?,
                };
                Fate::Goes(match before {
                    0 => left,
                    before => left.with_sequence(sequence.wrapping_sub(before as i32) & SEQUENCES),
                })
            }
        })
    }

    /// The offset to tell for a batch of so many records that has been lost, where the broker's log ends at `end`.
    pub fn tell(&self, place: &Place, batch: &Batch, count: u32, end: i64) -> i64 {
        let mut state = self.lock();
        let told = state.told.entry(place.clone()).or_insert(end);
        let offset = (*told).max(end);
        *told = offset + i64::from(count);
        if let Some((id, epoch, sequence)) = batch.producer() {
            let producer = Producer {
                id,
                epoch,
                place: place.clone(),
            };
            let lost = state.producers.get_mut(&producer);
            let same = |l: &&mut Loss| l.sequence == sequence;
            if let Some(loss) = lost.and_then(|lost| lost.recent.iter_mut().find(same)) {
                loss.offset = Some(offset);
            }
        }
        offset
    }
}

impl State {
    fn lost(&mut self, producer: Producer) -> &mut Lost {
        if !self.producers.contains_key(&producer) {
            if self.order.len() >= MOST_PRODUCERS
                && let Some(oldest) = self.order.pop_front()
            {
                self.producers.remove(&oldest);
            }
            self.order.push_back(producer.clone());
        }
        self.producers.entry(producer).or_default()
    }
}

/// Which records of a batch are to be lost.
pub struct Loses<'a>(pub Option<&'a dyn Fn(&Record) -> bool>);

impl Loses<'_> {
    /// Their places in the batch; `None` if it is all of them.
    fn of(&self, batch: &Batch) -> Result<Option<Vec<usize>>, Malformed> {
        let Some(loses) = self.0 else {
            return Ok(None);
        };
        let records = batch.records()?;
        let chosen = records.iter().enumerate().filter(|(_, r)| loses(r));
        let chosen: Vec<usize> = chosen.map(|(i, _)| i).collect();
        Ok((chosen.len() < records.len()).then_some(chosen))
    }
}

/// The batch without the records at these places.
fn without(batch: &Batch, which: &[usize]) -> Result<Batch, Malformed> {
    if which.is_empty() {
        return Ok(batch.clone());
    }
    if !batch.is_current() {
        return Err(Malformed(
            "single records of a message set before Kafka 0.11 cannot be taken out",
        ));
    }
    let records = batch.records()?;
    let kept = records
        .iter()
        .enumerate()
        .filter(|(i, _)| !which.contains(i));
    let kept: Vec<&Record> = kept.map(|(_, r)| r).collect();
    Ok(batch.with_only(&kept, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            topic: "orders".into(),
            partition: 0,
        }
    }

    /// Ten records from sequence number `first` on.
    fn batch(first: i32) -> Batch {
        Batch::numbered(7, 0, first, 10)
    }

    const ALL: Loses<'static> = Loses(None);

    fn sequence(fate: Result<Fate, Malformed>) -> i32 {
        match fate.unwrap() {
            Fate::Goes(batch) => batch.producer().unwrap().2,
            lost => panic!("{lost:?}"),
        }
    }

    #[test]
    fn what_follows_a_loss_is_renumbered() {
        let losses = Losses::default();
        assert_eq!(sequence(losses.decide(&place(), &batch(0), None)), 0);
        assert!(!losses.any());
        for first in [10, 20] {
            let lost = losses.decide(&place(), &batch(first), Some(&ALL));
            assert_eq!(lost, Ok(Fate::Lost(10, None)));
        }
        assert!(losses.any());
        assert_eq!(sequence(losses.decide(&place(), &batch(30), None)), 10);
        // Retries: of what came before the loss, of what came after, and of the lost batch itself.
        assert_eq!(sequence(losses.decide(&place(), &batch(0), None)), 0);
        assert_eq!(sequence(losses.decide(&place(), &batch(30), None)), 10);
        assert_eq!(losses.tell(&place(), &batch(20), 10, 5), 5);
        let again = losses.decide(&place(), &batch(20), None);
        assert_eq!(again, Ok(Fate::Lost(10, Some(5))));
        // Another partition, and another epoch, begin anew.
        let other = Place {
            partition: 1,
            ..place()
        };
        assert_eq!(sequence(losses.decide(&other, &batch(30), None)), 30);
        let reborn = Batch::numbered(7, 1, 0, 10);
        assert_eq!(sequence(losses.decide(&place(), &reborn, None)), 0);
    }

    #[test]
    fn sequence_numbers_begin_again_after_the_largest() {
        let losses = Losses::default();
        let last = i32::MAX - 9;
        let lost = losses.decide(&place(), &batch(last), Some(&ALL));
        assert_eq!(lost, Ok(Fate::Lost(10, None)));
        assert_eq!(sequence(losses.decide(&place(), &batch(0), None)), last);
        // Once around, in large steps.
        for first in (0..i32::MAX - 10).step_by(1 << 22).skip(1) {
            let next = losses.decide(&place(), &batch(first), None);
            assert_eq!(sequence(next), first - 10);
        }
    }

    #[test]
    fn many_losses_are_counted_when_they_are_no_longer_remembered() {
        let losses = Losses::default();
        for i in 0..100 {
            losses.decide(&place(), &batch(i * 10), Some(&ALL)).unwrap();
        }
        assert_eq!(sequence(losses.decide(&place(), &batch(1000), None)), 0);
    }

    #[test]
    fn some_records_of_a_batch() {
        let losses = Losses::default();
        let third = |record: &Record| record.offset == 2;
        let some = Loses(Some(&third));
        for again in [Some(&some), None] {
            let Ok(Fate::Goes(left)) = losses.decide(&place(), &batch(0), again) else {
                panic!("it goes on")
            };
            assert_eq!(left.count(), Ok(9));
            assert_eq!(left.producer(), Some((7, 0, 0)));
            let offsets: Vec<_> = left.records().unwrap().iter().map(|r| r.offset).collect();
            assert_eq!(offsets, (0..9).collect::<Vec<_>>());
        }
        assert_eq!(sequence(losses.decide(&place(), &batch(10), None)), 9);
    }

    #[test]
    fn told_offsets_rise() {
        let losses = Losses::default();
        let anonymous = batch(0).anonymous();
        let tell = |end| losses.tell(&place(), &anonymous, 10, end);
        assert_eq!(
            [tell(100), tell(100), tell(105), tell(500)],
            [100, 110, 120, 500]
        );
    }
}
