//! The burst for what was negotiated, chosen once, when the ring starts.
#![forbid(unsafe_code)]

use super::dequeue::dequeue_burst;
use super::enqueue::enqueue_burst;
use super::level::{Baseline, Level};
use super::logging::{Logged, Logging, Unlogged};
use super::offloaded::{Dequeue, Enqueue};
use super::{HEADER_12, IN_ORDER, MERGEABLE, OFFLOADS, PacketPool, QueueCounters, Release};
use crate::memory::{Physical, Space, Translated};
use crate::virtio_net::{
    VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF,
    driver_asks,
};
use crate::virtqueue::{Layout, PackedRing, Ring, SplitRing, Virtqueue};

/// Takes packets out of a virtqueue: how many of the array were filled.
pub type DequeueBurst<P> =
    fn(&mut Virtqueue, &P, &mut [<P as Release>::Packet], &QueueCounters) -> usize;

/// Puts packets into a virtqueue: how many of the array were taken and released.
pub type EnqueueBurst<P> =
    fn(&mut Virtqueue, &P, &[<P as Release>::Packet], &QueueCounters) -> usize;

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

/// The burst that dequeues from `vq`; the application allows vectors of `simd_bits`.
pub fn select_dequeue<P: PacketPool>(vq: &Virtqueue, simd_bits: u16) -> DequeueBurst<P> {
    match (&vq.log, &vq.lookaside) {
        (None, None) => dequeue_on::<Physical, P>(vq, simd_bits),
        (None, Some(_)) => dequeue_on::<Translated<false>, P>(vq, simd_bits),
        (Some(_), None) => dequeue_of::<Physical, Logged, Baseline, P>(vq),
        (Some(_), Some(_)) => dequeue_of::<Translated<false>, Logged, Baseline, P>(vq),
    }
}

fn dequeue_on<S: Space, P: PacketPool>(vq: &Virtqueue, simd_bits: u16) -> DequeueBurst<P> {
    #[cfg(target_arch = "x86_64")]
    if super::level::has_avx2(simd_bits) {
        return dequeue_of::<S, Unlogged, super::level::Avx2, P>(vq);
    }
    let _ = simd_bits;
    dequeue_of::<S, Unlogged, Baseline, P>(vq)
}

fn dequeue_of<S: Space, L: Logging, V: Level, P: PacketPool>(vq: &Virtqueue) -> DequeueBurst<P> {
    match &vq.ring {
        Layout::Split(_) => dequeue::<SplitRing, S, L, V, P>(vq.features()),
        Layout::Packed(_) => dequeue::<PackedRing, S, L, V, P>(vq.features()),
    }
}

/// Both of these.
const IN_ORDER_12: u32 = IN_ORDER | HEADER_12;
/// Both of these.
const OFFLOADS_12: u32 = OFFLOADS | HEADER_12;

fn dequeue<R: Ring, S: Space, L: Logging, V: Level, P: PacketPool>(
    features: u64,
) -> DequeueBurst<P> {
    // Mergeable buffers only matter on the way to the guest.
    match flags(features) & (HEADER_12 | IN_ORDER | OFFLOADS) {
        0 => dequeue_burst::<R, S, L, V, P, 0>,
        OFFLOADS => dequeue_burst::<R, S, L, V, P, OFFLOADS>,
        HEADER_12 => dequeue_burst::<R, S, L, V, P, HEADER_12>,
        IN_ORDER_12 => dequeue_burst::<R, S, L, V, P, IN_ORDER_12>,
        OFFLOADS_12 => dequeue_burst::<R, S, L, V, P, OFFLOADS_12>,
        _ => dequeue_burst::<R, S, L, V, P, { IN_ORDER_12 | OFFLOADS }>,
    }
}

/// The burst that enqueues to `vq`; `simd_bits` as for [`select_dequeue`].
pub fn select_enqueue<P: Release>(vq: &Virtqueue, simd_bits: u16) -> EnqueueBurst<P> {
    match (&vq.log, &vq.lookaside) {
        (None, None) => enqueue_on::<Physical, P>(vq, simd_bits),
        (None, Some(_)) => enqueue_on::<Translated<true>, P>(vq, simd_bits),
        (Some(_), None) => enqueue_of::<Physical, Logged, Baseline, P>(vq),
        (Some(_), Some(_)) => enqueue_of::<Translated<true>, Logged, Baseline, P>(vq),
    }
}

fn enqueue_on<S: Space, P: Release>(vq: &Virtqueue, simd_bits: u16) -> EnqueueBurst<P> {
    #[cfg(target_arch = "x86_64")]
    if super::level::has_avx2(simd_bits) {
        return enqueue_of::<S, Unlogged, super::level::Avx2, P>(vq);
    }
    let _ = simd_bits;
    enqueue_of::<S, Unlogged, Baseline, P>(vq)
}

fn enqueue_of<S: Space, L: Logging, V: Level, P: Release>(vq: &Virtqueue) -> EnqueueBurst<P> {
    match &vq.ring {
        Layout::Split(_) => enqueue::<SplitRing, S, L, V, P>(vq.features()),
        Layout::Packed(_) => enqueue::<PackedRing, S, L, V, P>(vq.features()),
    }
}

fn enqueue<R: Ring, S: Space, L: Logging, V: Level, P: Release>(features: u64) -> EnqueueBurst<P> {
    // On that way it is the packets that ask. Used entries have lengths there, so each chain needs
    // its own.
    match flags(features) & (HEADER_12 | MERGEABLE) {
        0 => enqueue_burst::<R, S, L, V, P, 0>,
        HEADER_12 => enqueue_burst::<R, S, L, V, P, HEADER_12>,
        _ => enqueue_burst::<R, S, L, V, P, { HEADER_12 | MERGEABLE }>,
    }
}

/// The same for a virtqueue with copy engines.
pub(super) fn select_offloaded<P: Release>(vq: &Virtqueue, simd_bits: u16) -> Enqueue<P> {
    let plain = select_enqueue::<P>(vq, simd_bits);
    match (&vq.log, &vq.lookaside) {
        (None, None) => offloaded_of::<Physical, Unlogged, P>(vq, plain),
        (None, Some(_)) => offloaded_of::<Translated<true>, Unlogged, P>(vq, plain),
        (Some(_), None) => offloaded_of::<Physical, Logged, P>(vq, plain),
        (Some(_), Some(_)) => offloaded_of::<Translated<true>, Logged, P>(vq, plain),
    }
}

fn offloaded_of<S: Space, L: Logging, P: Release>(
    vq: &Virtqueue,
    plain: EnqueueBurst<P>,
) -> Enqueue<P> {
    match &vq.ring {
        Layout::Split(_) => offloaded::<SplitRing, S, L, P>(vq.features(), plain),
        Layout::Packed(_) => offloaded::<PackedRing, S, L, P>(vq.features(), plain),
    }
}

fn offloaded<R: Ring, S: Space, L: Logging, P: Release>(
    features: u64,
    plain: EnqueueBurst<P>,
) -> Enqueue<P> {
    match flags(features) & (HEADER_12 | MERGEABLE) {
        0 => Enqueue::of::<R, S, L, 0>(plain),
        HEADER_12 => Enqueue::of::<R, S, L, HEADER_12>(plain),
        _ => Enqueue::of::<R, S, L, { HEADER_12 | MERGEABLE }>(plain),
    }
}

/// The bodies for frames from a virtqueue with copy engines.
pub(super) fn select_incoming<P: PacketPool>(vq: &Virtqueue, simd_bits: u16) -> Dequeue<P> {
    let plain = select_dequeue::<P>(vq, simd_bits);
    match (&vq.log, &vq.lookaside) {
        (None, None) => incoming_of::<Physical, Unlogged, P>(vq, plain),
        (None, Some(_)) => incoming_of::<Translated<false>, Unlogged, P>(vq, plain),
        (Some(_), None) => incoming_of::<Physical, Logged, P>(vq, plain),
        (Some(_), Some(_)) => incoming_of::<Translated<false>, Logged, P>(vq, plain),
    }
}

fn incoming_of<S: Space, L: Logging, P: PacketPool>(
    vq: &Virtqueue,
    plain: DequeueBurst<P>,
) -> Dequeue<P> {
    match &vq.ring {
        Layout::Split(_) => incoming_on::<SplitRing, S, L, P>(vq.features(), plain),
        Layout::Packed(_) => incoming_on::<PackedRing, S, L, P>(vq.features(), plain),
    }
}

fn incoming_on<R: Ring, S: Space, L: Logging, P: PacketPool>(
    features: u64,
    plain: DequeueBurst<P>,
) -> Dequeue<P> {
    // The rest costs little beside a doorbell, so it is asked for while the burst runs.
    let flags = flags(features);
    match flags & HEADER_12 {
        0 => Dequeue::of::<R, S, L, 0>(plain, flags),
        _ => Dequeue::of::<R, S, L, HEADER_12>(plain, flags),
    }
}
