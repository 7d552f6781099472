//! What the burst bodies ask of a ring, whatever its layout.
#![forbid(unsafe_code)]

use std::sync::atomic::{Ordering, fence};

use super::packed::PackedView;
use super::split::SplitView;
use super::{Chain, PackedRing, RingWrites, SplitRing};
use crate::memory::{Descriptor, GuestRange, Translate};

/// A running ring of either layout.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one per queue, and a burst should not follow one more pointer"
)]
pub enum Layout {
    /// VIRTIO 1.2, 2.7.
    Split(SplitRing),
    /// VIRTIO 1.2, 2.8.
    Packed(PackedRing),
}

/// A ring of the other layout. A call, for the compiler would merge `None` and the ring into one value
/// and carry that through the burst.
#[cold]
#[inline(never)]
pub(super) fn no_ring<'r, R>() -> Option<&'r mut R> {
    None
}

/// A chain that was walked to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// What gives it back.
    pub id: u16,
    /// Slots of the ring that it takes.
    pub slots: u16,
    /// Bytes of its buffers.
    pub bytes: u64,
}

/// What came of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// The driver has made nothing available there.
    Nothing,
    /// What an address of it means is not known yet; it must stay where it is.
    Miss {
        /// Slots of the ring that it takes, if it is whole.
        slots: u16,
    },
    /// All buffers are in the chain.
    Complete(Walked),
    /// An index, address or table that does not fit; it can only be given back.
    Malformed {
        /// What gives it back.
        id: u16,
        /// Slots of the ring that it takes.
        slots: u16,
    },
}

/// A ring, device side.
///
/// A *slot* is a step of the index that runs over what the driver makes available: a chain in a
/// split ring, a descriptor in a packed one. Chains are taken in order and given back in order.
/// What is given back becomes visible to the driver at [`publish_used`](Ring::publish_used).
pub trait Ring {
    /// What [`run`](Ring::run) gives.
    type Run<'r>: Run
    where
        Self: 'r;

    /// The ring of this layout in `layout`.
    fn of(layout: &mut Layout) -> Option<&mut Self>;

    /// Number of descriptors.
    fn size(&self) -> u16;

    /// Where the ring goes on, in the form of `SET_VRING_BASE`.
    fn position(&self) -> u16;

    /// Where the ring is `slots` further on, at most one turn.
    fn position_after(&self, slots: u16) -> u16;

    /// How many slots there are up to `position`; 0 when the ring has gone past it.
    fn slots_until(&self, position: u16) -> u16;

    /// The slots from `position`, where the ring was before, to its next one; no more than it has.
    fn slots_since(&self, position: u16) -> u16;

    /// Whether anything waits.
    fn has_available(&self) -> bool;

    /// Slots worth looking at, `most` at most. 0 when nothing waits; otherwise only the first slot
    /// of a packed ring is known to be available.
    fn available(&self, most: u16) -> u16;

    /// As [`available`](Ring::available), and not past the end of the ring's array.
    fn ahead(&self, most: u16) -> u16;

    /// Whether it is known, without another look, that nothing waited behind the slots that
    /// [`ahead`](Ring::ahead) told when asked for `most`, which are taken by now.
    fn was_all(&self, told: u16, most: u16) -> bool;

    /// The next `slots` slots, as many as [`ahead`](Ring::ahead) told, or fewer.
    fn run(&self, slots: u16) -> Self::Run<'_>;

    /// Takes the first `slots` slots of the run that [`run`](Ring::run) gives, which were given back
    /// with [`Run::put_used`]. What was said there of the first one is said here again, for that one
    /// may have to wait.
    fn end_run(&mut self, slots: u16, id: u16, len: u32);

    /// Appends the buffers of the chain at the `nth` slot to `chain`. Those before a fault stay
    /// there.
    fn walk<'m>(&self, nth: u16, chain: &mut Chain, memory: &mut impl Translate<'m>) -> Walk;

    /// The same for a chain of at most [`SHORT_WALK`](super::SHORT_WALK) descriptors, each buffer of
    /// which lies side by side and is known: `take` gets them, but for empty ones. `None`: it is none of
    /// these, whatever it is, and what `take` got means nothing.
    fn walk_short<'m>(
        &self,
        nth: u16,
        memory: &mut impl Translate<'m>,
        take: impl FnMut(GuestRange<'m>),
    ) -> Option<Walked>;

    /// Takes the next `slots` slots.
    fn take(&mut self, slots: u16);

    /// Gives a chain back with `len` bytes written.
    fn push_used(&mut self, id: u16, slots: u16, len: u32);

    /// Gives a chain back with nothing written, and all before it in this burst with it: one entry
    /// names the last of them, at the place of the first (`VIRTIO_F_IN_ORDER`; 2.7.9, 2.8.9). A burst
    /// gives back in this way alone, or not at all.
    fn push_batch(&mut self, id: u16, slots: u16);

    /// What was written to the ring since the last [`publish_used`](Ring::publish_used), and what that
    /// will write.
    fn writes(&self) -> RingWrites;

    /// Makes all that was given back visible to the driver; whether there was anything.
    fn publish_used(&mut self) -> bool;

    /// Whether the driver wants a call for what was published since this was last asked.
    ///
    /// One full fence: what was published must be visible before the driver's wish is read, or both
    /// sides could miss each other.
    #[inline(always)]
    fn wants_call(&mut self) -> bool {
        fence(Ordering::SeqCst);
        self.wanted_call()
    }

    /// As [`wants_call`](Ring::wants_call) for a driver that cannot be called: without the fence, a
    /// wish may be seen late.
    fn wanted_call(&mut self) -> bool;
}

/// Slots that stand side by side, for the short burst bodies.
pub trait Run: Copy {
    /// What [`put_used`](Run::put_used) writes is not seen before [`Ring::publish_used`], so that it
    /// may come before the data.
    const HIDDEN: bool;

    /// Number of slots.
    fn slots(self) -> u16;

    /// The descriptor at the `nth` slot, read once, with the id that gives its chain back when it is
    /// the whole chain. `None` when it is not available, or outside the table.
    fn peek(self, nth: usize) -> Option<(Descriptor, u16)>;

    /// The two descriptors of the chain that begins with `first`, which a slot has, when it takes no other
    /// slot and these are all, or all of its table. Of rings of two descriptors at least.
    fn pair<'m>(
        self,
        first: Descriptor,
        memory: &mut impl Translate<'m>,
    ) -> Option<(Descriptor, Descriptor)>;

    /// Asks to own the lines where the first `slots` slots are given back.
    fn prefetch_used(self, slots: u16);

    /// Gives the chain back that is the `nth` slot, with `len` bytes written. The first one may wait
    /// for [`Ring::end_run`].
    fn put_used(self, nth: usize, id: u16, len: u32);
}

/// How to see that a buffer became available without polling: `word & mask` against `value`.
#[derive(Clone, Copy, Debug)]
pub struct Monitor {
    /// The word to watch.
    pub word: *const u16,
    /// The bits that matter.
    pub mask: u16,
    /// Compared with those bits.
    pub value: u16,
    /// A buffer waits when they are equal; otherwise when they differ.
    pub wake_on_match: bool,
}

/// The part of a ring that any thread may look at while an lcore polls it.
#[derive(Clone, Debug)]
pub enum RingView {
    /// Of a split ring.
    Split(SplitView),
    /// Of a packed ring.
    Packed(PackedView),
}

impl RingView {
    /// Number of slots.
    pub fn size(&self) -> u16 {
        match self {
            Self::Split(view) => view.size(),
            Self::Packed(view) => view.size(),
        }
    }

    /// Slots that wait for a device side that goes on at `position`.
    pub fn available(&self, position: u16) -> u16 {
        match self {
            Self::Split(view) => view.available(position),
            Self::Packed(view) => view.available(position),
        }
    }

    /// Whether the `nth` slot from `position` on waits; `None` when the ring has fewer slots.
    pub fn waits(&self, position: u16, nth: u16) -> Option<bool> {
        match self {
            Self::Split(view) => view.waits(position, nth),
            Self::Packed(view) => view.waits(position, nth),
        }
    }

    /// What the driver changes when it makes a buffer available (`get_monitor_addr`).
    pub fn monitor(&self, position: u16) -> Monitor {
        match self {
            Self::Split(view) => view.monitor(position),
            Self::Packed(view) => view.monitor(position),
        }
    }

    /// Tells the driver whether to kick. When this returns, the wish is visible to it, so one more
    /// look at the ring misses nothing.
    pub fn want_kicks(&self, wanted: bool, position: u16) {
        match self {
            Self::Split(view) => view.want_kicks(wanted, position),
            Self::Packed(view) => view.want_kicks(wanted, position),
        }
    }
}
