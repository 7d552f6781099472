//! The buffers of descriptor chains: direct, indirect, or direct ones that end in a table (2.7.5.3).
//!
//! Every descriptor is read once. A walk takes at most as many steps as the ring has descriptors,
//! so a loop ends, and everything that does not fit the specification ends it as malformed. Steps
//! are also counted over a packet and over a burst: many long chains would hold an lcore for minutes.
#![forbid(unsafe_code)]

use super::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use crate::memory::{Descriptor, Fault, Gpa, GuestRange, Iova, Piece, Translate};

/// One buffer of a chain; inside the ring's memory table when the walk gave it, not more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Where it lies.
    pub addr: Gpa,
    /// Its length in bytes, never 0.
    pub len: u32,
    /// Whether the driver lets the device write it.
    pub writable: bool,
}

/// The most descriptors that are read for one packet, and after which a burst begins no other: the
/// longest chain, direct and indirect part. A packet of 64 KB in one-byte buffers needs that many.
const MAX_STEPS: u32 = 65_536;

/// The most buffers that are kept of one packet's chains.
const MAX_SEGMENTS: usize = 65_536 + 64;

/// Buffers of one or more chains. The room for them is made once, for a burst does not allocate; it
/// takes memory only as far as chains ever needed it, which is next to nothing with most drivers.
#[derive(Debug)]
pub struct Chain {
    /// Never longer than its capacity at the beginning.
    segments: Vec<Segment>,
    /// The chains that were put together, for a packet that takes several; as long at the most.
    heads: Vec<Reserved>,
    /// Descriptors read for this packet.
    steps: u32,
    /// Descriptors read for the packets before it in the burst.
    spent: u32,
}

/// One of the chains of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// What gives it back: its first descriptor, or its buffer id.
    pub id: u16,
    /// Slots of the ring that it takes.
    pub slots: u16,
    /// Bytes of all its buffers.
    pub bytes: u64,
}

impl Chain {
    /// Room for a packet's chains on a ring of `size`: as many chains as the ring has, with tables of
    /// 16 buffers each; twice the longest chain in any case, so that its buffers may cross regions.
    pub fn new(size: u16) -> Self {
        let size = usize::from(size);
        Self {
            segments: Vec::with_capacity((16 * size + 64).min(MAX_SEGMENTS)),
            heads: Vec::with_capacity(size),
            steps: 0,
            spent: 0,
        }
    }

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
    pub(super) fn step(&mut self) -> bool {
        self.steps = self.steps.saturating_add(1);
        self.steps <= MAX_STEPS
    }

    /// The chains that [`reserve`](Self::reserve) noted, in order.
    #[inline]
    pub fn heads(&self) -> &[Reserved] {
        &self.heads
    }

    /// Notes that a chain is part of the packet. There is room for as many as the ring has.
    #[inline]
    pub fn reserve(&mut self, chain: Reserved) {
        if self.heads.len() < self.heads.capacity() {
            self.heads.push(chain);
        }
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

    /// Appends the buffers of the table that `outer` names; how many bytes they have. A table holds at
    /// most as many entries as the ring, `limit`, and no further tables (2.7.5.3.1, 2.8.7).
    ///
    /// A split ring's table is followed by index like the ring's own; the entries of a packed ring's
    /// stand in order, all of them.
    ///
    /// # Errors
    ///
    /// Something does not fit, or must be waited for.
    pub(super) fn push_table<'m>(
        &mut self,
        memory: &mut impl Translate<'m>,
        outer: Descriptor,
        limit: u16,
        packed: bool,
    ) -> Result<u64, Fault> {
        let entries = outer.len / Descriptor::SIZE_U32;
        if entries == 0
            || entries > u32::from(limit)
            || !outer.len.is_multiple_of(Descriptor::SIZE_U32)
        {
            return Err(Fault::Malformed);
        }
        let mut bytes = 0;
        let mut index = 0;
        let mut missed = false;
        for nth in 1..=entries {
            if index >= entries || !self.step() {
                return Err(Fault::Malformed);
            }
            let offset = u64::from(index) * u64::from(Descriptor::SIZE_U32);
            let at = outer.addr.0.checked_add(offset).ok_or(Fault::Malformed)?;
            let descriptor = if packed {
                memory.packed_descriptor(Iova(at))?
            } else {
                memory.descriptor(Iova(at))?
            };
            if descriptor.flags & VRING_DESC_F_INDIRECT != 0 {
                return Err(Fault::Malformed);
            }
            match self.push(memory, descriptor) {
                Ok(more) => bytes += more,
                // On, to ask for the rest.
                Err(Fault::Miss) => missed = true,
                Err(Fault::Malformed) => return Err(Fault::Malformed),
            }
            let last = if packed {
                nth == entries
            } else {
                descriptor.flags & VRING_DESC_F_NEXT == 0
            };
            if last {
                return if missed { Err(Fault::Miss) } else { Ok(bytes) };
            }
            index = if packed { nth } else { descriptor.next.into() };
        }
        Err(Fault::Malformed)
    }

    /// Appends the buffer of `descriptor`, unless it is empty; its length.
    ///
    /// Every buffer is looked up in `memory` to its end, piece by piece where it crosses regions.
    ///
    /// # Errors
    ///
    /// A byte of it is not there, or must be waited for.
    #[inline]
    pub(super) fn push<'m>(
        &mut self,
        memory: &mut impl Translate<'m>,
        descriptor: Descriptor,
    ) -> Result<u64, Fault> {
        let Descriptor {
            addr, len, flags, ..
        } = descriptor;
        let writable = flags & VRING_DESC_F_WRITE != 0;
        let piece = memory.piece(addr, len as usize)?;
        if piece.len != len as usize {
            return self.push_pieces(memory, descriptor);
        }
        // Even an empty buffer must not have an address from nowhere; but it is none.
        if len != 0 {
            self.append(Segment {
                addr: piece.gpa,
                len,
                writable,
            })?;
        }
        Ok(len.into())
    }

    #[inline]
    fn append(&mut self, segment: Segment) -> Result<(), Fault> {
        if self.segments.len() == self.segments.capacity() {
            return Err(Fault::Malformed);
        }
        self.segments.push(segment);
        Ok(())
    }

    /// [`push`](Self::push) of a buffer that crosses regions.
    #[cold]
    fn push_pieces<'m>(
        &mut self,
        memory: &mut impl Translate<'m>,
        descriptor: Descriptor,
    ) -> Result<u64, Fault> {
        let mut at = descriptor.addr;
        let mut left = descriptor.len;
        while left > 0 {
            let Piece { gpa, len } = memory.piece(at, left as usize)?;
            let len = u32::try_from(len).map_err(|_| Fault::Malformed)?;
            self.append(Segment {
                addr: gpa,
                len,
                writable: descriptor.flags & VRING_DESC_F_WRITE != 0,
            })?;
            left -= len;
            let next = at.0.checked_add(u64::from(len));
            at = Iova(next.ok_or(Fault::Malformed)?);
        }
        Ok(descriptor.len.into())
    }
}

/// The most descriptors that a [`ShortWalk`] reads: a table of a frame of 64 KB in pages and some more.
pub const SHORT_WALK: usize = 32;

/// A walk along a chain whose buffers go where they are needed, without a [`Chain`]. Whatever is not
/// simple ends it with `None`, and is for [`Ring::walk`](super::Ring::walk).
pub(super) struct ShortWalk<'w, T, V> {
    memory: &'w mut T,
    take: V,
    /// Descriptors that may be read. A chain that loops has no end in these either.
    steps: usize,
    /// Bytes of all buffers.
    pub(super) bytes: u64,
}

impl<'w, 'm, T: Translate<'m>, V: FnMut(GuestRange<'m>)> ShortWalk<'w, T, V> {
    /// At the beginning of a chain; `take` gets its buffers, but for empty ones.
    #[inline(always)]
    pub(super) fn new(memory: &'w mut T, take: V) -> Self {
        Self {
            memory,
            take,
            steps: SHORT_WALK,
            bytes: 0,
        }
    }

    /// The buffer of `descriptor`.
    #[inline(always)]
    pub(super) fn buffer(&mut self, descriptor: Descriptor) -> Option<()> {
        self.steps = self.steps.checked_sub(1)?;
        let len = descriptor.len as usize;
        let range = self.memory.known(descriptor.addr, len)?;
        self.bytes = self.bytes.wrapping_add(len as u64);
        if len != 0 {
            (self.take)(range);
        }
        Some(())
    }

    /// The buffers of the table that `outer` names, with the rules of [`Chain::push_table`].
    #[inline(always)]
    pub(super) fn table(&mut self, outer: Descriptor, limit: u16, packed: bool) -> Option<()> {
        let entries = outer.len / Descriptor::SIZE_U32;
        if entries > u32::from(limit) || !outer.len.is_multiple_of(Descriptor::SIZE_U32) {
            return None;
        }
        let table = self.memory.known_table(outer.addr, outer.len as usize)?;
        let mut nth = 0_u32;
        loop {
            let words = table.descriptor_words(nth as usize)?;
            let descriptor = if packed {
                Descriptor::from_packed_words(words)
            } else {
                Descriptor::from_words(words)
            };
            if descriptor.flags & VRING_DESC_F_INDIRECT != 0 {
                return None;
            }
            self.buffer(descriptor)?;
            let next = nth.wrapping_add(1);
            let last = if packed {
                next == entries
            } else {
                descriptor.flags & VRING_DESC_F_NEXT == 0
            };
            if last {
                return Some(());
            }
            nth = if packed { next } else { descriptor.next.into() };
        }
    }
}

/// The words of both descriptors in the table that `outer` names, when there are two.
#[inline(always)]
pub(super) fn table_of_two<'m>(
    memory: &mut impl Translate<'m>,
    outer: Descriptor,
) -> Option<[[u64; 2]; 2]> {
    if outer.len != 2 * Descriptor::SIZE_U32 {
        return None;
    }
    let table = memory.known_table(outer.addr, 2 * Descriptor::SIZE)?;
    Some([table.descriptor_words(0)?, table.descriptor_words(1)?])
}
