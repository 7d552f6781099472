//! The packed ring (VIRTIO 1.2, 2.8), device side.
//!
//! Both sides run over one array of descriptors, each with a wrap counter that tells one turn from
//! the next. Sizes need not be powers of two. A chain is consecutive descriptors; its id stands in the
//! last one, and it is given back in the place of its first.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::chain::{ShortWalk, table_of_two};
use super::dirty::entries;
use super::ring::{Layout, Monitor, Ring, Run, Walk, Walked, no_ring};
use super::split::event_passed;
use super::{
    Chain, RingConfig, RingWrites, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED, VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE, VRING_PACKED_EVENT_FLAG_ENABLE,
};
use crate::memory::{
    AreaError, Descriptor, Fault, GuestPacked, GuestPackedRun, GuestRange, GuestWord, MemoryTable,
    Translate, Uva,
};

const WRAP: u16 = 1 << 15;

/// An index into the ring with its wrap counter in bit 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position(u16);

impl Position {
    #[inline(always)]
    fn index(self) -> u16 {
        self.0 & !WRAP
    }

    #[inline(always)]
    fn wrap(self) -> bool {
        self.0 & WRAP != 0
    }

    /// `slots` further on, which is at most one turn of a ring of `size`.
    #[inline(always)]
    fn after(self, slots: u16, size: u16) -> Self {
        let index = self.index().wrapping_add(slots);
        if index < size {
            Self(self.0 & WRAP | index)
        } else {
            Self(self.0 & WRAP ^ WRAP | index.wrapping_sub(size))
        }
    }

    /// The two wrap bits of a descriptor that the driver made available in this turn.
    #[inline(always)]
    fn available_bits(self) -> u16 {
        if self.wrap() {
            VRING_PACKED_DESC_F_AVAIL
        } else {
            VRING_PACKED_DESC_F_USED
        }
    }

    /// The two wrap bits of a descriptor that was used in this turn.
    #[inline(always)]
    fn used_bits(self) -> u16 {
        if self.wrap() { WRAP_BITS } else { 0 }
    }
}

const WRAP_BITS: u16 = VRING_PACKED_DESC_F_AVAIL | VRING_PACKED_DESC_F_USED;

/// The first descriptor that a burst gives back; written last, for the driver looks at it first.
#[derive(Clone, Copy, Debug)]
struct Withheld {
    at: Position,
    id: u16,
    len: u32,
}

/// A packed ring that the device side has taken up.
#[derive(Debug)]
pub struct PackedRing {
    descriptors: GuestPacked,
    call_hint: Suppression,
    kicks: Suppression,
    event_idx: bool,
    size: u16,
    /// Next descriptor to take.
    next_available: Position,
    /// Next place to give one back.
    next_used: Position,
    withheld: Option<Withheld>,
    /// `next_used` when calls were last decided.
    decided: Position,
    /// No call was decided yet since the ring started; the first one is unconditional.
    first_call: bool,
}

/// An event suppression structure (2.8.10): `off_wrap`, then `flags`.
#[derive(Clone, Debug)]
struct Suppression {
    off_wrap: GuestWord,
    flags: GuestWord,
}

impl Suppression {
    fn map(memory: &Arc<MemoryTable>, at: Uva) -> Result<Self, AreaError> {
        memory.area(at, 4)?;
        Ok(Self {
            off_wrap: GuestWord::map(memory, at)?,
            flags: GuestWord::map(memory, Uva(at.0.wrapping_add(2)))?,
        })
    }
}

impl PackedRing {
    /// Maps the ring and both event suppression structures, and takes it up at `config.base`.
    ///
    /// # Errors
    ///
    /// An area that is not wholly inside one region or not aligned, or a base outside the ring.
    pub fn map(config: RingConfig, memory: &Arc<MemoryTable>) -> Result<Self, AreaError> {
        let RingConfig { size, areas, .. } = config;
        let base = Position(config.base);
        if base.index() >= size {
            return Err(AreaError::Base {
                base: base.index(),
                size,
            });
        }
        Ok(Self {
            descriptors: GuestPacked::map(memory, areas.descriptors, size)?,
            call_hint: Suppression::map(memory, areas.available)?,
            kicks: Suppression::map(memory, areas.used)?,
            event_idx: config.event_idx,
            size,
            next_available: base,
            next_used: base,
            withheld: None,
            decided: base,
            first_call: true,
        })
    }

    #[inline(always)]
    fn at(&self, nth: u16) -> Position {
        self.next_available.after(nth, self.size)
    }

    /// Writes the descriptor at `at` as a used one.
    #[inline(always)]
    fn write_used(&self, at: Position, id: u16, len: u32) {
        let flags = at.used_bits() | written(len);
        self.descriptors.set_used(at.index(), id, len, flags);
    }

    /// The memory of the ring.
    pub(super) fn descriptors(&self) -> GuestRange<'_> {
        self.descriptors.range()
    }

    /// What other threads may look at.
    pub(super) fn view(&self) -> PackedView {
        PackedView {
            descriptors: self.descriptors.clone(),
            kicks: self.kicks.clone(),
            event_idx: self.event_idx,
            size: self.size,
        }
    }
}

/// Whether `flags` are those of a descriptor that is available at `at`.
#[inline(always)]
fn is_available(flags: u16, at: Position) -> bool {
    flags & WRAP_BITS == at.available_bits()
}

/// Flags of a used descriptor but for its marks: the length has a meaning for the driver only beside
/// this flag (2.8.6).
#[inline(always)]
fn written(len: u32) -> u16 {
    if len != 0 { VRING_DESC_F_WRITE } else { 0 }
}

/// Descriptors up to the end of the ring at most, so that they are all in one turn.
#[derive(Clone, Copy, Debug)]
pub struct PackedRun<'r> {
    descriptors: GuestPackedRun<'r>,
    /// Marks of those that are available.
    available: u16,
    /// Marks of those that are used.
    used: u16,
}

impl Run for PackedRun<'_> {
    const HIDDEN: bool = false;

    #[inline(always)]
    fn slots(self) -> u16 {
        self.descriptors.len()
    }

    #[inline(always)]
    fn peek(self, nth: usize) -> Option<(Descriptor, u16)> {
        let descriptor = self.descriptors.get(nth)?;
        let available = descriptor.flags & WRAP_BITS == self.available;
        available.then_some((descriptor, descriptor.next))
    }

    #[inline(always)]
    fn pair<'m>(
        self,
        first: Descriptor,
        memory: &mut impl Translate<'m>,
    ) -> Option<(Descriptor, Descriptor)> {
        // Without a table the second one has a slot of its own.
        if first.flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT) != VRING_DESC_F_INDIRECT {
            return None;
        }
        let [first, second] = table_of_two(memory, first)?.map(Descriptor::from_packed_words);
        let more = (first.flags | second.flags) & VRING_DESC_F_INDIRECT;
        (more == 0).then_some((first, second))
    }

    #[inline(always)]
    fn prefetch_used(self, _slots: u16) {
        // The lines were read as descriptors.
    }

    #[inline(always)]
    fn put_used(self, nth: usize, id: u16, len: u32) {
        // The driver looks at the first one first, so that is written last, in `publish_used`.
        if nth != 0 {
            self.descriptors
                .set_used(nth, id, len, self.used | written(len));
        }
    }
}

impl Ring for PackedRing {
    type Run<'r> = PackedRun<'r>;

    #[inline(always)]
    fn of(layout: &mut Layout) -> Option<&mut Self> {
        match layout {
            Layout::Packed(ring) => Some(ring),
            Layout::Split(_) => no_ring(),
        }
    }

    #[inline(always)]
    fn size(&self) -> u16 {
        self.size
    }

    #[inline(always)]
    fn position(&self) -> u16 {
        self.next_available.0
    }

    fn position_after(&self, slots: u16) -> u16 {
        self.at(slots).0
    }

    fn slots_until(&self, position: u16) -> u16 {
        let (here, there) = (self.next_available, Position(position));
        let turn = if here.wrap() == there.wrap() {
            0
        } else {
            self.size
        };
        let slots = (there.index().wrapping_add(turn)).wrapping_sub(here.index());
        if slots <= self.size { slots } else { 0 }
    }

    fn slots_since(&self, position: u16) -> u16 {
        let (there, here) = (Position(position), self.next_available);
        let turn = if here.wrap() == there.wrap() {
            0
        } else {
            self.size
        };
        // Without a turn, and yet behind: it was more than one.
        let slots = (here.index().wrapping_add(turn)).wrapping_sub(there.index());
        slots.min(self.size)
    }

    #[inline(always)]
    fn has_available(&self) -> bool {
        let at = self.next_available;
        let flags = self.descriptors.flags(at.index());
        flags.is_some_and(|flags| is_available(flags, at))
    }

    #[inline(always)]
    fn available(&self, most: u16) -> u16 {
        if self.has_available() {
            self.size.min(most)
        } else {
            0
        }
    }

    #[inline(always)]
    fn ahead(&self, most: u16) -> u16 {
        self.available(most)
            .min(self.size.wrapping_sub(self.next_available.index()))
    }

    #[inline(always)]
    fn was_all(&self, _told: u16, _most: u16) -> bool {
        false
    }

    #[inline(always)]
    fn run(&self, slots: u16) -> PackedRun<'_> {
        let at = self.next_available;
        PackedRun {
            descriptors: self.descriptors.run(at.index(), slots),
            available: at.available_bits(),
            used: at.used_bits(),
        }
    }

    #[inline(always)]
    fn end_run(&mut self, slots: u16, id: u16, len: u32) {
        // A run is given back where it was taken.
        debug_assert_eq!(self.next_available, self.next_used);
        let next = self.next_available.after(slots, self.size);
        // The first as ever, then over the others.
        self.push_used(id, slots, len);
        self.next_available = next;
        self.next_used = next;
    }

    fn walk<'m>(&self, nth: u16, chain: &mut Chain, memory: &mut impl Translate<'m>) -> Walk {
        let mut bytes = 0;
        let mut id = 0;
        let mut fits = true;
        let mut missed = false;
        let mut slots = 0;
        loop {
            let at = self.at(nth.wrapping_add(slots));
            let Some(descriptor) = self.descriptors.get(at.index()) else {
                return Walk::Malformed { id, slots };
            };
            // The driver makes the first descriptor of a chain available last, so one that is not
            // available behind it is no part of it.
            if !is_available(descriptor.flags, at) {
                return match slots {
                    0 => Walk::Nothing,
                    _ => Walk::Malformed { id, slots },
                };
            }
            slots += 1;
            id = descriptor.next;
            let more = if !chain.step() || !fits {
                Err(Fault::Malformed)
            } else if descriptor.flags & VRING_DESC_F_INDIRECT != 0 {
                chain.push_table(memory, descriptor, self.size, true)
            } else {
                chain.push(memory, descriptor)
            };
            match more {
                Ok(more) => bytes += more,
                // Walk on: all of its descriptors go back.
                Err(Fault::Malformed) => fits = false,
                // Walk on, to ask for the rest.
                Err(Fault::Miss) => missed = true,
            }
            let last = descriptor.flags & VRING_DESC_F_NEXT == 0;
            if last && fits {
                return match missed {
                    true => Walk::Miss { slots },
                    false => Walk::Complete(Walked { id, slots, bytes }),
                };
            }
            if last || slots == self.size || nth.wrapping_add(slots) >= self.size {
                return Walk::Malformed { id, slots };
            }
        }
    }

    #[inline(always)]
    fn walk_short<'m>(
        &self,
        nth: u16,
        memory: &mut impl Translate<'m>,
        take: impl FnMut(GuestRange<'m>),
    ) -> Option<Walked> {
        let mut walk = ShortWalk::new(memory, take);
        let mut slots = 0_u16;
        loop {
            let nth = nth.wrapping_add(slots);
            if nth >= self.size {
                return None;
            }
            let at = self.at(nth);
            let descriptor = self.descriptors.get(at.index())?;
            if !is_available(descriptor.flags, at) {
                return None;
            }
            slots = slots.wrapping_add(1);
            if descriptor.flags & VRING_DESC_F_INDIRECT != 0 {
                walk.table(descriptor, self.size, true)?;
            } else {
                walk.buffer(descriptor)?;
            }
            if descriptor.flags & VRING_DESC_F_NEXT == 0 {
                return Some(Walked {
                    id: descriptor.next,
                    slots,
                    bytes: walk.bytes,
                });
            }
        }
    }

    #[inline(always)]
    fn take(&mut self, slots: u16) {
        self.next_available = self.next_available.after(slots, self.size);
    }

    #[inline(always)]
    fn push_used(&mut self, id: u16, slots: u16, len: u32) {
        let at = self.next_used;
        if self.withheld.is_none() {
            self.withheld = Some(Withheld { at, id, len });
        } else {
            self.write_used(at, id, len);
        }
        self.next_used = at.after(slots, self.size);
    }

    #[inline(always)]
    fn push_batch(&mut self, id: u16, slots: u16) {
        let next = self.next_used;
        let at = self.withheld.map_or(next, |first| first.at);
        self.withheld = Some(Withheld { at, id, len: 0 });
        self.next_used = next.after(slots, self.size);
    }

    /// Of a chain only the first descriptor is written, but they are all in this: they share pages.
    fn writes(&self) -> RingWrites {
        let Some(Withheld { at, .. }) = self.withheld else {
            return RingWrites::default();
        };
        let (from, to) = (at.index(), self.next_used.index());
        let count = if at.wrap() == self.next_used.wrap() {
            to.wrapping_sub(from)
        } else {
            to.wrapping_add(self.size).wrapping_sub(from)
        };
        RingWrites {
            entries: entries((0, 16, self.size), from, count),
            last: entries((0, 16, self.size), from, 1),
        }
    }

    #[inline(always)]
    fn publish_used(&mut self) -> bool {
        let Some(first) = self.withheld.take() else {
            return false;
        };
        self.write_used(first.at, first.id, first.len);
        true
    }

    #[inline(always)]
    fn wanted_call(&mut self) -> bool {
        let old = std::mem::replace(&mut self.decided, self.next_used);
        let new = self.next_used;
        let first = std::mem::replace(&mut self.first_call, false);
        let flags = self.call_hint.flags.load(Ordering::Acquire) & 3;
        if flags != VRING_PACKED_EVENT_FLAG_DESC || !self.event_idx {
            return flags != VRING_PACKED_EVENT_FLAG_DISABLE;
        }
        let event = Position(self.call_hint.off_wrap.load(Ordering::Relaxed));
        // As distances from where this turn of `new` began; what lies in the turn before is
        // negative, and wraps as the comparison does.
        let from_new = |position: Position| {
            if position.wrap() == new.wrap() {
                position.index()
            } else {
                position.index().wrapping_sub(self.size)
            }
        };
        first | event_passed(from_new(event), new.index(), from_new(old))
    }
}

/// The part of a packed ring that any thread may look at while an lcore polls it.
#[derive(Clone, Debug)]
pub struct PackedView {
    descriptors: GuestPacked,
    kicks: Suppression,
    event_idx: bool,
    size: u16,
}

impl PackedView {
    /// Number of slots.
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Descriptors that wait for a device side that takes `position` next.
    pub fn available(&self, position: u16) -> u16 {
        let waits = |nth: &u16| self.waits(position, *nth) == Some(true);
        let count = (0..self.size).take_while(waits).count();
        u16::try_from(count).unwrap_or(self.size)
    }

    /// Whether the `nth` descriptor from `position` on waits; `None` when the ring has fewer.
    pub(super) fn waits(&self, position: u16, nth: u16) -> Option<bool> {
        if nth >= self.size {
            return None;
        }
        let at = Position(position).after(nth, self.size);
        let flags = self.descriptors.flags(at.index());
        Some(flags.is_some_and(|flags| is_available(flags, at)))
    }

    /// The flags of the descriptor that is taken next.
    pub(super) fn monitor(&self, position: u16) -> Monitor {
        let at = Position(position);
        Monitor {
            word: self.descriptors.flags_ptr(at.index()),
            mask: WRAP_BITS,
            value: at.available_bits(),
            wake_on_match: true,
        }
    }

    /// Tells the driver whether to kick (2.8.10).
    pub fn want_kicks(&self, wanted: bool, position: u16) {
        let flags = match (wanted, self.event_idx) {
            (false, _) => VRING_PACKED_EVENT_FLAG_DISABLE,
            (true, false) => VRING_PACKED_EVENT_FLAG_ENABLE,
            (true, true) => {
                self.kicks.off_wrap.store(position, Ordering::Relaxed);
                VRING_PACKED_EVENT_FLAG_DESC
            }
        };
        // Release: the position before the flag that makes it count.
        self.kicks.flags.store(flags, Ordering::Release);
        // The wish must be visible before the caller looks for buffers once more.
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;
