//! The packet's way between the application's buffers and a virtqueue.
//!
//! One burst body a direction, made once for each set of negotiated features and chosen when the
//! ring starts ([`select_dequeue`], [`select_enqueue`]). The common packet (one descriptor, one
//! segment, nothing asked) has a short body in two passes: descriptors are read, checked, translated
//! and prefetched for the whole burst first, then data moves. Any other packet leaves in mid-burst, to a
//! middle body when it only has several descriptors or segments, else to the general one. Nothing here
//! blocks, logs or allocates per packet; drops are counted.

mod copy;
mod counters;
mod dequeue;
mod enqueue;
mod level;
mod logging;
mod mover;
mod offload;
mod offloaded;
mod packet;
mod select;
mod underway;

pub use counters::{DmaCounters, QueueCounters, SIZE_BINS, Tally, add};
pub use offloaded::{Dequeue, Direction, Enqueue, Offloaded};
pub use packet::{Checksum, Marks, Packet, PacketPool, Release, RxRules};
// What a packet is asked, in the words of the layer below.
pub use crate::virtio_net::{
    Asked, Datagram, Headers, Ip, Little, Transport, ip_checksum_is_right,
};
pub use select::{DequeueBurst, EnqueueBurst, select_dequeue, select_enqueue};

use crate::memory::Lookups;
use crate::virtqueue::{Notified, Notifier, Ring};
use logging::Logging;

/// The most packets that go through one pass of the short body.
const PASS: usize = 64;

/// `F`: the virtio-net header has 12 bytes, with `num_buffers`; otherwise 10.
const HEADER_12: u32 = 1;
/// `F`: a packet may be spread over several chains (`VIRTIO_NET_F_MRG_RXBUF`).
const MERGEABLE: u32 = 2;
/// `F`: the driver may ask for something in the header of a frame that it sends.
const OFFLOADS: u32 = 4;
/// `F`: chains of a burst come back in one used entry (`VIRTIO_F_IN_ORDER`).
const IN_ORDER: u32 = 8;

/// Bytes of the virtio-net header with features `F` (VIRTIO 1.2, 5.1.6).
const fn header_len(f: u32) -> usize {
    if f & HEADER_12 != 0 { 12 } else { 10 }
}

/// A number of packets of one pass, or of chains: at most [`PASS`], or the ring's size.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "see above")]
const fn count(packets: usize) -> u16 {
    packets as u16
}

/// Ends a burst: the driver sees what was given back, and is called when it wants to be.
#[inline(always)]
fn publish<R: Ring, L: Logging>(
    ring: &mut R,
    log: Option<L::Log<'_>>,
    notifier: &Notifier,
    lookups: Lookups,
    counters: &QueueCounters,
) {
    count_lookups(lookups, counters);
    tell::<_, L>(ring, log, notifier, counters);
}

/// Counts the translations of a burst.
#[inline(always)]
fn count_lookups(Lookups { hits, misses }: Lookups, counters: &QueueCounters) {
    if hits | misses != 0 {
        add(&counters.iotlb_hits, hits);
        add(&counters.iotlb_misses, misses);
    }
}

/// The driver sees what was given back, and is called when it wants to be.
#[inline(always)]
fn tell<R: Ring, L: Logging>(
    ring: &mut R,
    log: Option<L::Log<'_>>,
    notifier: &Notifier,
    counters: &QueueCounters,
) {
    // `select` chose the burst by the log.
    if !log.is_some_and(|log| L::publish(log, ring)) {
        return;
    }
    match notifier.notify(ring) {
        Notified::Called => add(&counters.guest_notifications, 1),
        Notified::Failed => add(&counters.guest_notifications_error, 1),
        Notified::Suppressed => {}
    }
}
