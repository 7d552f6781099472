//! Walks of descriptor chains: direct, indirect, or direct ones that end in a table (2.7.5.3).
//!
//! Every descriptor is read once. A walk takes at most as many steps as the ring has descriptors,
//! so a loop ends, and everything that does not fit the specification ends it as malformed. Steps
//! are also counted over a packet and over a burst: many long chains would hold an lcore for minutes.
#![forbid(unsafe_code)]

use super::{SplitRing, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use crate::memory::{Cursor, Descriptor, Gpa};

/// One buffer of a chain; inside the ring's memory table when the walk gave it, not more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it lies.
    pub addr: Gpa,
    /// Its length in bytes, never 0.
    pub len: u32,
    /// Whether the driver lets the device write it.
    pub writable: bool,
}

/// The most buffers that are kept of one packet's chains: twice the longest chain, so that buffers
/// may cross regions, and little enough that a hostile driver cannot make us hoard memory.
const MAX_SEGMENTS: usize = 65_536;

/// The most descriptors that are read for one packet, and after which a burst begins no other: the
/// longest chain, direct and indirect part. A packet of 64 KB in one-byte buffers needs that many.
const MAX_STEPS: u32 = 65_536;

/// What came of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// The whole chain was walked; this many bytes.
    Complete(u64),
    /// An index, address or table that does not fit; the chain can only be given back.
    Malformed,
}

/// Buffers of one or more chains, kept from burst to burst for its allocation.
#[derive(Debug, Default)]
pub struct Chain {
    segments: Vec<Segment>,
    /// The chains that were put together, for a packet that takes several.
    heads: Vec<Reserved>,
    /// Descriptors read for this packet.
    steps: u32,
    /// Descriptors read for the packets before it in the burst.
    spent: u32,
}

/// One of the chains of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Its first descriptor.
    pub head: u16,
    /// Bytes of all its buffers.
    pub bytes: u64,
}

impl Chain {
    /// Begins a burst: no step was taken yet.
    #[inline]
    pub fn begin_burst(&mut self) {
        self.clear();
        self.spent = 0;
    }

    /// Forgets all buffers; the next chains are another packet's.
    #[inline]
    pub fn clear(&mut self) {
        self.segments.clear();
        self.heads.clear();
        self.spent = self.spent.saturating_add(self.steps);
        self.steps = 0;
    }

    /// Whether this burst has read so many descriptors that it should end.
    #[inline]
    pub fn exhausted(&self) -> bool {
        self.spent.saturating_add(self.steps) >= MAX_STEPS
    }

    /// Counts a descriptor; whether the packet may have it.
    #[inline]
    fn step(&mut self) -> bool {
        self.steps = self.steps.saturating_add(1);
        self.steps <= MAX_STEPS
    }

    /// The chains that [`reserve`](Self::reserve) noted, in order.
    #[inline]
    pub fn heads(&self) -> &[Reserved] {
        &self.heads
    }

    /// Notes that the chain at `head` is part of the packet.
    #[inline]
    pub fn reserve(&mut self, head: u16, bytes: u64) {
        self.heads.push(Reserved { head, bytes });
    }

    /// The buffers, in order.
    #[inline]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Number of buffers.
    #[inline]
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// Whether there are no buffers.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Appends the buffers of the chain at `head`; empty ones are left out. On a malformed chain
    /// the buffers before the fault stay appended.
    ///
    /// Every buffer is looked up in `memory` to its end, piece by piece where it crosses regions.
    pub fn walk(&mut self, ring: &SplitRing, memory: &mut Cursor<'_>, head: u16) -> Walk {
        let mut bytes = 0;
        let mut index = head;
        for _ in 0..ring.size() {
            if !self.step() {
                return Walk::Malformed;
            }
            let Some(descriptor) = ring.descriptor(index) else {
                return Walk::Malformed;
            };
            if descriptor.flags & VRING_DESC_F_INDIRECT != 0 {
                // A table ends the chain; NEXT beside INDIRECT has no meaning (2.7.5.3.1).
                return match self.walk_indirect(memory, descriptor, ring.size()) {
                    Walk::Complete(more) => Walk::Complete(bytes + more),
                    Walk::Malformed => Walk::Malformed,
                };
            }
            let Some(len) = self.push(memory, descriptor) else {
                return Walk::Malformed;
            };
            bytes += len;
            if descriptor.flags & VRING_DESC_F_NEXT == 0 {
                return Walk::Complete(bytes);
            }
            index = descriptor.next;
        }
        Walk::Malformed
    }

    /// Walks the table that `outer` names. It is followed by index like the ring's own table, and
    /// holds at most as many entries as the ring (2.7.5.3.1).
    fn walk_indirect(&mut self, memory: &mut Cursor<'_>, outer: Descriptor, limit: u16) -> Walk {
        let entries = outer.len / Descriptor::SIZE_U32;
        if entries == 0
            || entries > u32::from(limit)
            || !outer.len.is_multiple_of(Descriptor::SIZE_U32)
        {
            return Walk::Malformed;
        }
        let mut bytes = 0;
        let mut index = 0;
        for _ in 0..entries {
            if u32::from(index) >= entries || !self.step() {
                return Walk::Malformed;
            }
            let offset = u64::from(index) * u64::from(Descriptor::SIZE_U32);
            let Some(at) = outer.addr.0.checked_add(offset) else {
                return Walk::Malformed;
            };
            let Some(descriptor) = memory.descriptor(Gpa(at)) else {
                return Walk::Malformed;
            };
            if descriptor.flags & VRING_DESC_F_INDIRECT != 0 {
                return Walk::Malformed;
            }
            let Some(len) = self.push(memory, descriptor) else {
                return Walk::Malformed;
            };
            bytes += len;
            if descriptor.flags & VRING_DESC_F_NEXT == 0 {
                return Walk::Complete(bytes);
            }
            index = descriptor.next;
        }
        Walk::Malformed
    }

    /// Appends the buffer of `descriptor`; `None` when a byte of it is not mapped.
    fn push(&mut self, memory: &mut Cursor<'_>, descriptor: Descriptor) -> Option<u64> {
        let Descriptor {
            addr, len, flags, ..
        } = descriptor;
        let writable = flags & VRING_DESC_F_WRITE != 0;
        let mut at = addr;
        let mut left = len;
        if left == 0 {
            // Even an empty buffer must not have an address from nowhere.
            memory.piece(at, 0)?;
        }
        while left > 0 {
            let piece = u32::try_from(memory.piece(at, left as usize)?.len()).ok()?;
            if self.segments.len() >= MAX_SEGMENTS {
                return None;
            }
            self.segments.push(Segment {
                addr: at,
                len: piece,
                writable,
            });
            left -= piece;
            at = Gpa(at.0.checked_add(u64::from(piece))?);
        }
        Some(u64::from(len))
    }
}
