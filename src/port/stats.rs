//! What a queue has counted since its last reset.
//!
//! Counters only grow, written by the poller alone. A reset notes where they stand, so it sticks
//! while a poller runs, and works from another process.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use crate::datapath::QueueCounters;
pub(super) use crate::datapath::add;

/// Bytes that a VLAN tag adds to a frame.
pub(super) const VLAN_TAG: u16 = 4;

/// Which counter of a queue.
pub(super) type Counter = fn(&QueueCounters) -> &AtomicU64;

/// The counters of a queue, in memory that all processes share. All zero is the fresh state.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct QueueStats {
    pub(super) counters: QueueCounters,
    /// Tags taken off received frames; the counters are from before that.
    pub(super) stripped_tags: AtomicU64,
    basic: Baseline,
    extended: QueueCounters,
}

/// Where the basic counters stood at their last reset.
#[derive(Debug, Default)]
#[repr(C)]
struct Baseline {
    packets: AtomicU64,
    bytes: AtomicU64,
    missed: AtomicU64,
}

/// The basic counters of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Basic {
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) missed: u64,
}

impl QueueStats {
    fn total(&self) -> Basic {
        // The tags first: then the bytes are those of at least as many frames.
        let tags = self.stripped_tags.load(Ordering::Acquire);
        let bytes = self.counters.bytes.load(Ordering::Relaxed);
        Basic {
            packets: self.counters.packets.load(Ordering::Relaxed),
            bytes: bytes.saturating_sub(tags.wrapping_mul(u64::from(VLAN_TAG))),
            missed: self.counters.missed.load(Ordering::Relaxed),
        }
    }

    /// The basic counters since their last reset.
    pub(super) fn basic(&self) -> Basic {
        let total = self.total();
        let since =
            |total: u64, base: &AtomicU64| total.saturating_sub(base.load(Ordering::Relaxed));
        Basic {
            packets: since(total.packets, &self.basic.packets),
            bytes: since(total.bytes, &self.basic.bytes),
            missed: since(total.missed, &self.basic.missed),
        }
    }

    /// Sets the basic counters back, and no others.
    pub(super) fn reset_basic(&self) {
        let total = self.total();
        self.basic.packets.store(total.packets, Ordering::Relaxed);
        self.basic.bytes.store(total.bytes, Ordering::Relaxed);
        self.basic.missed.store(total.missed, Ordering::Relaxed);
    }

    /// One of the extended counters since their last reset.
    pub(super) fn extended(&self, counter: Counter) -> u64 {
        let total = counter(&self.counters).load(Ordering::Relaxed);
        total.saturating_sub(counter(&self.extended).load(Ordering::Relaxed))
    }

    /// Sets the extended counters back, and not the basic ones.
    pub(super) fn reset_extended(&self, counters: impl Iterator<Item = Counter>) {
        for counter in counters {
            let total = counter(&self.counters).load(Ordering::Relaxed);
            counter(&self.extended).store(total, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(packets: u64, bytes: u64) -> QueueStats {
        let stats = QueueStats::default();
        add(&stats.counters.packets, packets);
        add(&stats.counters.bytes, bytes);
        stats
    }

    #[test]
    fn basic_bytes_are_those_after_the_tag_was_stripped() {
        let stats = received(2, 200);
        add(&stats.stripped_tags, 1);
        assert_eq!(
            stats.basic(),
            Basic {
                packets: 2,
                bytes: 196,
                missed: 0
            }
        );
    }

    #[test]
    fn a_reset_sticks_when_the_poller_goes_on_with_old_sums() {
        let stats = received(5, 500);
        let before = stats.counters.packets.load(Ordering::Relaxed);
        stats.reset_basic();
        // The poller had loaded its sum before the reset.
        stats.counters.packets.store(before + 1, Ordering::Relaxed);
        assert_eq!(stats.basic().packets, 1);
    }

    #[test]
    fn basic_and_extended_counters_are_reset_apart() {
        let stats = received(5, 500);
        let packets: Counter = |counters| &counters.packets;

        stats.reset_basic();
        assert_eq!(stats.extended(packets), 5);

        stats.reset_extended([packets].into_iter());
        add(&stats.counters.packets, 2);
        assert_eq!((stats.basic().packets, stats.extended(packets)), (2, 2));
    }
}
