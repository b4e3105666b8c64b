//! A test's ring, made when somebody first needs it.
//!
//! Putting a ring where the programs find it waits until no program runs that could still see the old one (bpf(2),
//! `maybe_wait_bpf_programs` of the kernel): 10 to 20 ms, which a test that streams nothing need not spend.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{ArrayOfMaps, Map, MapData, RingBuf};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_RINGBUF;

use faultbox_ebpf_common::RINGS;

use super::watch::wrong;

/// The ring's size: 8 MiB hold 60 000 records of 128 bytes, or 25 000 that name a file: what a machine whose cores are all busy does
/// in the tenth of a second until the reader has its turn.
pub const RING_BYTES: u32 = 8 << 20;
/// The size of one that only hears of refused connects: 500 records.
pub const SMALL_RING_BYTES: u32 = 64 << 10;

/// The place of a ring, and the ring once there is one.
pub struct Stream {
    index: u32,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Where the programs look for rings. `None`: too many tests run at once for this one to have a place.
    places: Option<ArrayOfMaps<MapData, RingBuf<MapData>>>,
    ring: Option<RingBuf<MapData>>,
}

impl Stream {
    /// The place `index` of the map `places`, or no place at all.
    ///
    /// # Errors
    /// The map is not what it should be, as a lower-case fragment.
    pub fn new(place: Option<(u32, MapData)>) -> Result<Stream, String> {
        let index = place.as_ref().map_or(RINGS, |(index, _)| *index);
        let places = place
            .map(|(_, map)| ArrayOfMaps::try_from(Map::ArrayOfMaps(map)))
            .transpose()
            .map_err(|e| wrong("STREAMS", &e))?;
        Ok(Stream {
            index,
            inner: Mutex::new(Inner { places, ring: None }),
        })
    }

    /// Its place; losses are counted under it, too. All tests that have none count theirs under one behind the last.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Can there be a ring?
    pub fn is_possible(&self) -> bool {
        self.inner().places.is_some()
    }

    /// Makes the ring, of so many bytes, if it is not there yet. The descriptor to wait for records on, if it has just been made.
    ///
    /// # Errors
    /// No place, or no memory, as a lower-case fragment.
    pub fn open(&self, bytes: u32) -> Result<Option<OwnedFd>, String> {
        let mut inner = self.inner();
        if inner.ring.is_some() {
            return Ok(None);
        }
        let places = inner
            .places
            .as_mut()
            .ok_or("more tests run at once than there are rings")?;
        let ring = new_ring(bytes)?;
        let fd = ring
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| format!("ring: {e}"))?;
        places
            .set(self.index, &ring, 0)
            .map_err(|e| wrong("STREAMS", &e))?;
        inner.ring = Some(ring);
        Ok(Some(fd))
    }

    /// Hands out every record that has come in.
    pub fn drain(&self, mut record: impl FnMut(&[u8])) {
        let mut inner = self.inner();
        let Some(ring) = inner.ring.as_mut() else {
            return;
        };
        while let Some(item) = ring.next() {
            record(&item);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A ring of its own, which no object declares.
fn new_ring(bytes: u32) -> Result<RingBuf<MapData>, String> {
    let shape = aya_obj::Map::new_from_params(BPF_MAP_TYPE_RINGBUF as u32, 0, 0, bytes, 0);
    let data = MapData::create(shape, "faultbox_ring", None).map_err(|e| wrong("ring", &e))?;
    RingBuf::try_from(Map::RingBuf(data)).map_err(|e| wrong("ring", &e))
}
