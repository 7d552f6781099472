//! The burst for what was negotiated, chosen once, when the ring starts.
#![forbid(unsafe_code)]

use super::dequeue::dequeue_burst;
use super::enqueue::enqueue_burst;
use super::logging::{Logged, Logging, Unlogged};
use super::offloaded::{Bodies, bodies};
use super::{HEADER_12, IN_ORDER, MERGEABLE, OFFLOADS, PacketPool, QueueCounters, Release};
use crate::memory::{Physical, Space, Translated};
use crate::virtio_net::{
    VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF,
    driver_asks,
};
use crate::virtqueue::{Layout, PackedRing, Ring, SplitRing, Virtqueue};

/// Takes packets out of a virtqueue: how many of the array were filled.
pub type DequeueBurst<P> =
    fn(&mut Virtqueue, &mut P, &mut [<P as Release>::Packet], &QueueCounters) -> usize;

/// Puts packets into a virtqueue: how many of the array were taken and released.
pub type EnqueueBurst<P> =
    fn(&mut Virtqueue, &mut P, &[<P as Release>::Packet], &QueueCounters) -> usize;

/// What the burst bodies must know of `features`.
fn flags(features: u64) -> u32 {
    let has = |bit: u32| features & (1 << bit) != 0;
    let mergeable = has(VIRTIO_NET_F_MRG_RXBUF);
    let header_12 = mergeable || has(VIRTIO_F_VERSION_1) || has(VIRTIO_F_RING_PACKED);
    let mut flags = 0;
    if header_12 {
        flags |= HEADER_12;
    }
    if mergeable {
        flags |= MERGEABLE;
    }
    if driver_asks(features) {
        flags |= OFFLOADS;
    }
    // No driver has the one without the other; if one did, entry by entry is right too.
    if header_12 && has(VIRTIO_F_IN_ORDER) {
        flags |= IN_ORDER;
    }
    flags
}

/// The burst that dequeues from `vq`.
pub fn select_dequeue<P: PacketPool>(vq: &Virtqueue) -> DequeueBurst<P> {
    type Behind = Translated<false>;
    match (&vq.ring, &vq.lookaside) {
        (Layout::Split(_), None) => dequeue::<SplitRing, Physical, P>(vq),
        (Layout::Packed(_), None) => dequeue::<PackedRing, Physical, P>(vq),
        (Layout::Split(_), Some(_)) => dequeue::<SplitRing, Behind, P>(vq),
        (Layout::Packed(_), Some(_)) => dequeue::<PackedRing, Behind, P>(vq),
    }
}

fn dequeue<R: Ring, S: Space, P: PacketPool>(vq: &Virtqueue) -> DequeueBurst<P> {
    match &vq.log {
        None => dequeue_noting::<R, S, Unlogged, P>(vq.features()),
        Some(_) => dequeue_noting::<R, S, Logged, P>(vq.features()),
    }
}

/// Both of these.
const IN_ORDER_12: u32 = IN_ORDER | HEADER_12;
/// Both of these.
const OFFLOADS_12: u32 = OFFLOADS | HEADER_12;

fn dequeue_noting<R: Ring, S: Space, L: Logging, P: PacketPool>(features: u64) -> DequeueBurst<P> {
    // Mergeable buffers only matter on the way to the guest.
    match flags(features) & (HEADER_12 | IN_ORDER | OFFLOADS) {
        0 => dequeue_burst::<R, S, L, P, 0>,
        OFFLOADS => dequeue_burst::<R, S, L, P, OFFLOADS>,
        HEADER_12 => dequeue_burst::<R, S, L, P, HEADER_12>,
        IN_ORDER_12 => dequeue_burst::<R, S, L, P, IN_ORDER_12>,
        OFFLOADS_12 => dequeue_burst::<R, S, L, P, OFFLOADS_12>,
        _ => dequeue_burst::<R, S, L, P, { IN_ORDER_12 | OFFLOADS }>,
    }
}

/// The burst that enqueues to `vq`.
pub fn select_enqueue<P: Release>(vq: &Virtqueue) -> EnqueueBurst<P> {
    type Behind = Translated<true>;
    match (&vq.ring, &vq.lookaside) {
        (Layout::Split(_), None) => enqueue::<SplitRing, Physical, P>(vq),
        (Layout::Packed(_), None) => enqueue::<PackedRing, Physical, P>(vq),
        (Layout::Split(_), Some(_)) => enqueue::<SplitRing, Behind, P>(vq),
        (Layout::Packed(_), Some(_)) => enqueue::<PackedRing, Behind, P>(vq),
    }
}

fn enqueue<R: Ring, S: Space, P: Release>(vq: &Virtqueue) -> EnqueueBurst<P> {
    match &vq.log {
        None => enqueue_noting::<R, S, Unlogged, P>(vq.features()),
        Some(_) => enqueue_noting::<R, S, Logged, P>(vq.features()),
    }
}

fn enqueue_noting<R: Ring, S: Space, L: Logging, P: Release>(features: u64) -> EnqueueBurst<P> {
    // On that way it is the packets that ask. Used entries have lengths there, so each chain needs
    // its own.
    match flags(features) & (HEADER_12 | MERGEABLE) {
        0 => enqueue_burst::<R, S, L, P, 0>,
        HEADER_12 => enqueue_burst::<R, S, L, P, HEADER_12>,
        _ => enqueue_burst::<R, S, L, P, { HEADER_12 | MERGEABLE }>,
    }
}

/// The same for a virtqueue with copy engines.
pub(super) fn select_offloaded<P: Release>(vq: &Virtqueue) -> Bodies<P> {
    type Behind = Translated<true>;
    let plain = select_enqueue::<P>(vq);
    match (&vq.ring, &vq.lookaside) {
        (Layout::Split(_), None) => offloaded::<SplitRing, Physical, P>(vq, plain),
        (Layout::Packed(_), None) => offloaded::<PackedRing, Physical, P>(vq, plain),
        (Layout::Split(_), Some(_)) => offloaded::<SplitRing, Behind, P>(vq, plain),
        (Layout::Packed(_), Some(_)) => offloaded::<PackedRing, Behind, P>(vq, plain),
    }
}

fn offloaded<R: Ring, S: Space, P: Release>(vq: &Virtqueue, plain: EnqueueBurst<P>) -> Bodies<P> {
    match &vq.log {
        None => offloaded_noting::<R, S, Unlogged, P>(vq.features(), plain),
        Some(_) => offloaded_noting::<R, S, Logged, P>(vq.features(), plain),
    }
}

fn offloaded_noting<R: Ring, S: Space, L: Logging, P: Release>(
    features: u64,
    plain: EnqueueBurst<P>,
) -> Bodies<P> {
    match flags(features) & (HEADER_12 | MERGEABLE) {
        0 => bodies::<R, S, L, P, 0>(plain),
        HEADER_12 => bodies::<R, S, L, P, HEADER_12>(plain),
        _ => bodies::<R, S, L, P, { HEADER_12 | MERGEABLE }>(plain),
    }
}
