//! Buffers for batches of datagrams.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// How many datagrams are read by one system call: past this, larger batches no longer save time on loopback.
pub(super) const BATCH: usize = 32;
/// More than the largest datagram has (65 507 bytes over IPv4, 65 527 over IPv6: udp(7)), so that none is ever cut.
pub(super) const SLOT: usize = 64 << 10;

/// What one system call has read. Memory that no datagram has touched costs nothing.
#[derive(Debug)]
pub(super) struct Arena {
    pub(super) bytes: Vec<u8>,
    pub(super) lengths: [usize; BATCH],
    pub(super) peers: [Option<SocketAddr>; BATCH],
    pub(super) filled: usize,
    /// How many to ask for next.
    pub(super) expected: usize,
    outbox: Option<Outbox>,
}

impl Arena {
    fn new() -> Arena {
        Arena {
            bytes: vec![0; BATCH * SLOT],
            lengths: [0; BATCH],
            peers: [None; BATCH],
            filled: 0,
            expected: BATCH,
            outbox: Some(Outbox::default()),
        }
    }

    /// How many datagrams there are.
    pub(super) fn len(&self) -> usize {
        self.filled
    }

    /// Where one came from; `None` on a connected socket.
    pub(super) fn peer(&self, i: usize) -> Option<SocketAddr> {
        self.peers[i]
    }

    /// One datagram's bytes.
    pub(super) fn datagram(&self, i: usize) -> &[u8] {
        &self.bytes[i * SLOT..i * SLOT + self.lengths[i]]
    }

    /// The outbox that belongs to this arena, emptied.
    pub(super) fn take_outbox(&mut self) -> Outbox {
        let mut outbox = self.outbox.take().unwrap_or_default();
        outbox.items.clear();
        outbox
    }

    /// Keeps the outbox for the next batch.
    pub(super) fn keep_outbox(&mut self, outbox: Outbox) {
        self.outbox = Some(outbox);
    }
}

/// What goes on, in order.
#[derive(Debug, Default)]
pub struct Outbox {
    items: Vec<Item>,
    now: usize,
}

#[derive(Debug)]
enum Item {
    /// A datagram of the arena, as it came.
    Slot(usize),
    /// Another one.
    Own(Vec<u8>),
}

impl Outbox {
    /// The datagram at hand goes on as it came.
    pub fn pass(&mut self) {
        self.items.push(Item::Slot(self.now));
    }

    /// Another datagram goes on in its place, or besides.
    pub fn push(&mut self, datagram: Vec<u8>) {
        self.items.push(Item::Own(datagram));
    }

    /// Sets which datagram is at hand.
    pub(super) fn at(&mut self, slot: usize) {
        self.now = slot;
    }

    /// All of `slots` go on as they came.
    pub(super) fn pass_all(&mut self, slots: Range<usize>) {
        self.items.extend(slots.map(Item::Slot));
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// The bytes of the i-th.
    pub(super) fn bytes<'a>(&'a self, arena: &'a Arena, i: usize) -> &'a [u8] {
        match &self.items[i] {
            Item::Slot(slot) => arena.datagram(*slot),
            Item::Own(datagram) => datagram,
        }
    }
}

/// Arenas that are not in use: as many as there ever were tasks reading at the same time, which is at most a few per thread.
#[derive(Debug, Default)]
pub(super) struct Arenas(Mutex<Vec<Arena>>);

impl Arenas {
    pub(super) fn take(&self) -> Arena {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(Arena::new)
    }

    pub(super) fn give_back(&self, arena: Arena) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(arena);
    }
}
