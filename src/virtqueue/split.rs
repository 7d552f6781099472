//! The split ring (VIRTIO 1.2, 2.7), device side.
//!
//! Indices run free in 16 bits. Chains are taken in order and given back in order, so one index
//! serves for both.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::chain::{ShortWalk, table_of_two};
use super::dirty::entries;
use super::ring::{Layout, Monitor, Ring, Run, Walk, Walked, no_ring};
use super::{
    Chain, RingConfig, RingWrites, VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT, VRING_USED_F_NO_NOTIFY,
};
use crate::memory::{
    AreaError, Descriptor, Fault, GuestRange, GuestTable, GuestTableEntries, GuestU16s,
    GuestU16sRun, GuestUsed, GuestUsedRun, GuestWord, MemoryTable, Translate, Uva,
};

/// A split ring that the device side has taken up.
#[derive(Debug)]
pub struct SplitRing {
    table: GuestTable,
    heads: GuestU16s,
    available_index: GuestWord,
    used: GuestUsed,
    used_index: GuestWord,
    /// Read: the driver's wish for calls.
    call_hint: CallHint,
    kicks: KickHint,
    size: u16,
    /// Next chain to take.
    next_available: u16,
    /// Next used element to write; ahead of what is published during a burst.
    next_used: u16,
    published: u16,
    /// What names the chains of this burst, when one element is to do it.
    batch: Option<u16>,
    /// `used.idx` as found, when it differed from the base that the frontend sent.
    resumed: Option<u16>,
    /// No call was decided yet since the ring started; the first one is unconditional, for the
    /// driver's event index may be of an earlier life.
    first_call: bool,
}

/// Where the driver says whether it wants calls.
#[derive(Debug)]
enum CallHint {
    /// `used_event`: call when this index has been used.
    Event(GuestWord),
    /// `flags` of the available ring.
    Flags(GuestWord),
}

/// Where we say whether we want kicks.
#[derive(Clone, Debug)]
enum KickHint {
    /// `avail_event`: kick when this index becomes available.
    Event(GuestWord),
    /// `flags` of the used ring.
    Flags(GuestWord),
}

impl SplitRing {
    /// Maps the three areas and takes up the ring at `config.base`.
    ///
    /// When `used.idx` differs from the base, the device side before us has gone on without telling
    /// the frontend (it was killed, say): what it published counts, and both indices start there.
    ///
    /// # Errors
    ///
    /// An area that is not wholly inside one region, or not aligned. A size that is no power of two
    /// counts as an unaligned area.
    pub fn map(config: RingConfig, memory: &Arc<MemoryTable>) -> Result<Self, AreaError> {
        let RingConfig { size, areas, .. } = config;
        let n = u64::from(size);
        let at = |start: Uva, offset: u64| Uva(start.0.wrapping_add(offset));
        // Each area must be in one region as a whole, event words included.
        let event = if config.event_idx { 2 } else { 0 };
        memory.area(areas.available, 4 + 2 * n + event)?;
        memory.area(areas.used, 4 + 8 * n + event)?;

        let used_index = GuestWord::map(memory, at(areas.used, 2))?;
        let found = used_index.load(Ordering::Acquire);
        let (call_hint, kicks) = if config.event_idx {
            (
                CallHint::Event(GuestWord::map(memory, at(areas.available, 4 + 2 * n))?),
                KickHint::Event(GuestWord::map(memory, at(areas.used, 4 + 8 * n))?),
            )
        } else {
            (
                CallHint::Flags(GuestWord::map(memory, areas.available)?),
                KickHint::Flags(GuestWord::map(memory, areas.used)?),
            )
        };
        Ok(Self {
            table: GuestTable::map(memory, areas.descriptors, size)?,
            heads: GuestU16s::map(memory, at(areas.available, 4), size)?,
            available_index: GuestWord::map(memory, at(areas.available, 2))?,
            used: GuestUsed::map(memory, at(areas.used, 4), size)?,
            used_index,
            call_hint,
            kicks,
            size,
            next_available: found,
            next_used: found,
            published: found,
            batch: None,
            resumed: (found != config.base).then_some(found),
            first_call: true,
        })
    }

    /// Where the ring really resumed, when that is not the base that the frontend sent.
    pub(super) fn resumed(&self) -> Option<u16> {
        self.resumed
    }

    /// Head of the `nth` waiting chain. Only after [`available`](Ring::available) told that there
    /// is one; otherwise the answer is an old head, which does no harm.
    #[inline(always)]
    fn head(&self, nth: u16) -> u16 {
        self.heads.get(self.next_available.wrapping_add(nth))
    }

    /// What other threads may look at.
    pub(super) fn view(&self) -> SplitView {
        SplitView {
            available_index: self.available_index.clone(),
            kicks: self.kicks.clone(),
            size: self.size,
        }
    }
}

/// Chains that wait, up to the end of the array of heads at most.
#[derive(Clone, Copy, Debug)]
pub struct SplitRun<'r> {
    heads: GuestU16sRun<'r>,
    table: GuestTableEntries<'r>,
    used: GuestUsedRun<'r>,
    used_index: &'r GuestWord,
}

impl Run for SplitRun<'_> {
    const HIDDEN: bool = true;

    #[inline(always)]
    fn slots(self) -> u16 {
        self.heads.len()
    }

    #[inline(always)]
    fn peek(self, nth: usize) -> Option<(Descriptor, u16)> {
        let head = self.heads.get(nth)?;
        Some((self.table.get(head)?, head))
    }

    #[inline(always)]
    fn pair<'m>(
        self,
        first: Descriptor,
        memory: &mut impl Translate<'m>,
    ) -> Option<(Descriptor, Descriptor)> {
        let (first, second) = if first.flags & VRING_DESC_F_INDIRECT != 0 {
            let [first, second] = table_of_two(memory, first)?.map(Descriptor::from_words);
            if first.flags & VRING_DESC_F_NEXT == 0 || first.next != 1 {
                return None;
            }
            (first, second)
        } else {
            (first, self.table.get(first.next)?)
        };
        let more = second.flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT)
            | first.flags & VRING_DESC_F_INDIRECT;
        (more == 0).then_some((first, second))
    }

    #[inline(always)]
    fn prefetch_used(self, slots: u16) {
        let slots = usize::from(slots);
        // Eight elements share a line.
        for nth in (0..slots).step_by(8) {
            self.used.prefetch(nth);
        }
        self.used_index.prefetch_for_write();
    }

    #[inline(always)]
    fn put_used(self, nth: usize, id: u16, len: u32) {
        self.used.set(nth, id, len);
    }
}

impl Ring for SplitRing {
    type Run<'r> = SplitRun<'r>;

    #[inline(always)]
    fn of(layout: &mut Layout) -> Option<&mut Self> {
        match layout {
            Layout::Split(ring) => Some(ring),
            Layout::Packed(_) => no_ring(),
        }
    }

    #[inline(always)]
    fn size(&self) -> u16 {
        self.size
    }

    #[inline(always)]
    fn position(&self) -> u16 {
        self.next_available
    }

    fn position_after(&self, slots: u16) -> u16 {
        self.next_available.wrapping_add(slots)
    }

    fn slots_until(&self, position: u16) -> u16 {
        let slots = position.wrapping_sub(self.next_available);
        if slots <= self.size { slots } else { 0 }
    }

    fn slots_since(&self, position: u16) -> u16 {
        self.next_available.wrapping_sub(position).min(self.size)
    }

    #[inline(always)]
    fn has_available(&self) -> bool {
        self.available_index.load(Ordering::Acquire) != self.next_available
    }

    /// A driver that claims more than the ring holds is cut to its size.
    #[inline(always)]
    fn available(&self, most: u16) -> u16 {
        let index = self.available_index.load(Ordering::Acquire);
        let waiting = index.wrapping_sub(self.next_available);
        waiting.min(self.size).min(most)
    }

    #[inline(always)]
    fn ahead(&self, most: u16) -> u16 {
        let mask = self.size.wrapping_sub(1);
        let to_end = self.size.wrapping_sub(self.next_available & mask);
        self.available(most).min(to_end)
    }

    #[inline(always)]
    fn was_all(&self, told: u16, most: u16) -> bool {
        told < most && self.next_available & self.size.wrapping_sub(1) != 0
    }

    #[inline(always)]
    fn run(&self, slots: u16) -> SplitRun<'_> {
        // The two indices are one and the same; if they were not, a run would end where one of them
        // is at its end.
        let used = self.used.run(self.next_used, slots);
        SplitRun {
            heads: self.heads.run(self.next_available, used.len()),
            table: self.table.entries(),
            used,
            used_index: &self.used_index,
        }
    }

    #[inline(always)]
    fn end_run(&mut self, slots: u16, _id: u16, _len: u32) {
        // All elements are written, and wait for the index.
        self.next_used = self.next_used.wrapping_add(slots);
        self.take(slots);
    }

    fn walk<'m>(&self, nth: u16, chain: &mut Chain, memory: &mut impl Translate<'m>) -> Walk {
        let id = self.head(nth);
        let malformed = Walk::Malformed { id, slots: 1 };
        let complete = |bytes| {
            Walk::Complete(Walked {
                id,
                slots: 1,
                bytes,
            })
        };
        // Behind something that must be waited for the walk goes on, to ask for the rest.
        let mut missed = false;
        let miss = Walk::Miss { slots: 1 };
        let mut bytes = 0;
        let mut index = id;
        for _ in 0..self.size {
            if !chain.step() {
                return malformed;
            }
            let Some(descriptor) = self.table.get(index) else {
                return malformed;
            };
            if descriptor.flags & VRING_DESC_F_INDIRECT != 0 {
                // A table ends the chain; NEXT beside INDIRECT has no meaning (2.7.5.3.1).
                return match chain.push_table(memory, descriptor, self.size, false) {
                    Ok(more) if !missed => complete(bytes + more),
                    Ok(_) | Err(Fault::Miss) => miss,
                    Err(Fault::Malformed) => malformed,
                };
            }
            match chain.push(memory, descriptor) {
                Ok(len) => bytes += len,
                Err(Fault::Miss) => missed = true,
                Err(Fault::Malformed) => return malformed,
            }
            if descriptor.flags & VRING_DESC_F_NEXT == 0 {
                return if missed { miss } else { complete(bytes) };
            }
            index = descriptor.next;
        }
        malformed
    }

    #[inline(always)]
    fn walk_short<'m>(
        &self,
        nth: u16,
        memory: &mut impl Translate<'m>,
        take: impl FnMut(GuestRange<'m>),
    ) -> Option<Walked> {
        let id = self.head(nth);
        let table = self.table.entries();
        let mut walk = ShortWalk::new(memory, take);
        let mut index = id;
        loop {
            let descriptor = table.get(index)?;
            if descriptor.flags & VRING_DESC_F_INDIRECT != 0 {
                walk.table(descriptor, self.size, false)?;
                break;
            }
            walk.buffer(descriptor)?;
            if descriptor.flags & VRING_DESC_F_NEXT == 0 {
                break;
            }
            index = descriptor.next;
        }
        Some(Walked {
            id,
            slots: 1,
            bytes: walk.bytes,
        })
    }

    #[inline(always)]
    fn take(&mut self, slots: u16) {
        self.next_available = self.next_available.wrapping_add(slots);
    }

    #[inline(always)]
    fn push_used(&mut self, id: u16, _slots: u16, len: u32) {
        self.used.set(self.next_used, id, len);
        self.next_used = self.next_used.wrapping_add(1);
    }

    #[inline(always)]
    fn push_batch(&mut self, id: u16, slots: u16) {
        self.batch = Some(id);
        self.next_used = self.next_used.wrapping_add(slots);
    }

    fn writes(&self) -> RingWrites {
        let given_back = self.next_used.wrapping_sub(self.published);
        let (now, last) = match self.batch {
            Some(_) => (0, 1),
            None => (given_back, 0),
        };
        let first = self.published & self.size.wrapping_sub(1);
        // `flags` and `idx` stand before them.
        let entries = |count| entries((4, 8, self.size), first, count);
        let [last, _] = entries(last);
        RingWrites {
            entries: entries(now),
            last: [last, 2..4],
        }
    }

    #[inline(always)]
    fn publish_used(&mut self) -> bool {
        if self.published == self.next_used {
            return false;
        }
        if let Some(id) = self.batch.take() {
            self.used.set(self.published, id, 0);
        }
        // Release: the elements, and the data they tell of, before the index (2.7.8.2).
        self.used_index.store(self.next_used, Ordering::Release);
        true
    }

    #[inline(always)]
    fn wanted_call(&mut self) -> bool {
        let old = self.published;
        self.published = self.next_used;
        match &self.call_hint {
            CallHint::Event(event) => {
                let event = event.load(Ordering::Relaxed);
                let first = std::mem::replace(&mut self.first_call, false);
                first | event_passed(event, self.next_used, old)
            }
            CallHint::Flags(flags) => {
                flags.load(Ordering::Relaxed) & VRING_AVAIL_F_NO_INTERRUPT == 0
            }
        }
    }
}

/// Whether going from `old` to `new` passed `event` (2.7.7.2: `vring_need_event`).
#[inline(always)]
pub(super) fn event_passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// The part of a split ring that any thread may look at while an lcore polls it.
#[derive(Clone, Debug)]
pub struct SplitView {
    available_index: GuestWord,
    kicks: KickHint,
    size: u16,
}

impl SplitView {
    /// Number of slots.
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// How many chains wait for a device side that takes `next_available` next.
    pub fn available(&self, next_available: u16) -> u16 {
        let index = self.available_index.load(Ordering::Relaxed);
        index.wrapping_sub(next_available).min(self.size)
    }

    /// Whether the `nth` chain from `next_available` on waits; `None` when the ring has no such
    /// place.
    pub(super) fn waits(&self, next_available: u16, nth: u16) -> Option<bool> {
        (nth < self.size).then(|| nth < self.available(next_available))
    }

    /// The index that the driver changes when it makes a chain available: nothing new as long as it
    /// equals `next_available` in the bits of the ring's size.
    pub(super) fn monitor(&self, next_available: u16) -> Monitor {
        let mask = self.size.wrapping_sub(1);
        Monitor {
            word: self.available_index.as_ptr(),
            mask,
            value: next_available & mask,
            wake_on_match: false,
        }
    }

    /// Tells the driver whether to kick (2.7.10). `next_available` is what is taken next.
    ///
    /// With `VIRTIO_F_EVENT_IDX` there is no "off": the driver kicks once when it passes the last
    /// index that was asked for.
    pub fn want_kicks(&self, wanted: bool, next_available: u16) {
        match &self.kicks {
            KickHint::Event(event) => {
                if wanted {
                    event.store(next_available, Ordering::Relaxed);
                }
            }
            KickHint::Flags(flags) => {
                let value = if wanted { 0 } else { VRING_USED_F_NO_NOTIFY };
                flags.store(value, Ordering::Relaxed);
            }
        }
        // The wish must be visible before the caller looks for chains once more (2.7.10.1).
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;
