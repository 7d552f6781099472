//! Names and order of the extended statistics.
//!
//! A block of the C driver's counters for each rx queue, then for each tx queue, as the installed
//! line of DPDK has it; then what this driver counts besides, in the same order of queues. Names do
//! not depend on a connection.
#![forbid(unsafe_code)]

use super::stats::{Counter, QueueStats};

/// A counter's name behind `rx_q<N>_` or `tx_q<N>_`, and where it is. `None`: always 0 here.
type Entry = (&'static str, Option<Counter>);

/// The C driver's block.
const STOCK: &[Entry] = &[
    ("good_packets", Some(|c| &c.packets)),
    ("good_bytes", Some(|c| &c.bytes)),
    ("multicast_packets", Some(|c| &c.multicast)),
    ("broadcast_packets", Some(|c| &c.broadcast)),
    ("undersize_packets", Some(|c| &c.sizes[0])),
    ("size_64_packets", Some(|c| &c.sizes[1])),
    ("size_65_127_packets", Some(|c| &c.sizes[2])),
    ("size_128_255_packets", Some(|c| &c.sizes[3])),
    ("size_256_511_packets", Some(|c| &c.sizes[4])),
    ("size_512_1023_packets", Some(|c| &c.sizes[5])),
    ("size_1024_1518_packets", Some(|c| &c.sizes[6])),
    ("size_1519_max_packets", Some(|c| &c.sizes[7])),
    ("guest_notifications", Some(|c| &c.guest_notifications)),
    #[cfg(not(dpdk_22_11))]
    ("guest_notifications_offloaded", None),
    #[cfg(not(dpdk_22_11))]
    (
        "guest_notifications_error",
        Some(|c| &c.guest_notifications_error),
    ),
    #[cfg(not(dpdk_22_11))]
    ("guest_notifications_suppressed", None),
    ("iotlb_hits", Some(|c| &c.iotlb_hits)),
    ("iotlb_misses", Some(|c| &c.iotlb_misses)),
    ("inflight_submitted", None),
    ("inflight_completed", None),
    #[cfg(not(dpdk_22_11))]
    ("mbuf_alloc_failed", Some(|c| &c.mbuf_alloc_failed)),
];

/// What an rx queue counts besides.
const RX_MORE: &[Entry] = &[
    #[cfg(dpdk_22_11)]
    (
        "guest_notifications_error",
        Some(|c| &c.guest_notifications_error),
    ),
    #[cfg(dpdk_22_11)]
    ("mbuf_alloc_failed", Some(|c| &c.mbuf_alloc_failed)),
    ("drop_bad_desc", Some(|c| &c.drop_bad_desc)),
    ("drop_short", Some(|c| &c.drop_short)),
    ("drop_oversize", Some(|c| &c.drop_oversize)),
    ("drop_no_mbuf", Some(|c| &c.drop_no_mbuf)),
];

/// What a tx queue counts besides.
const TX_MORE: &[Entry] = &[
    #[cfg(dpdk_22_11)]
    (
        "guest_notifications_error",
        Some(|c| &c.guest_notifications_error),
    ),
    ("drop_bad_desc", Some(|c| &c.drop_bad_desc)),
    ("drop_oversize", Some(|c| &c.drop_oversize)),
    ("drop_prepare", Some(|c| &c.drop_prepare)),
    ("drop_csum", Some(|c| &c.drop_csum)),
    ("drop_gso", Some(|c| &c.drop_gso)),
];

/// What copy engines did for a queue; on ports that have some.
const DMA: &[Entry] = &[
    ("dma_copies", Some(|c| &c.dma.copies)),
    ("dma_bytes", Some(|c| &c.dma.bytes)),
    ("dma_packets", Some(|c| &c.dma.packets)),
    (IN_FLIGHT, Some(|c| &c.dma.inflight)),
    ("dma_cpu_small", Some(|c| &c.dma.cpu_small)),
    ("dma_cpu_noroom", Some(|c| &c.dma.cpu_noroom)),
    ("dma_cpu_noaddr", Some(|c| &c.dma.cpu_noaddr)),
    ("dma_errors", Some(|c| &c.dma.errors)),
    ("dma_redone", Some(|c| &c.dma.redone)),
    ("dma_drains", Some(|c| &c.dma.drains)),
    ("dma_drain_timeouts", Some(|c| &c.dma.drain_timeouts)),
    ("dma_recoveries", Some(|c| &c.dma.recoveries)),
    ("dma_engine_dead", Some(|c| &c.dma.engine_dead)),
];

/// Goes up and down, so a reset does not touch it.
const IN_FLIGHT: &str = "dma_inflight";

/// The queues of a port, as far as its statistics depend on them.
#[derive(Clone, Copy)]
pub(super) struct Queues {
    pub(super) rx: u16,
    pub(super) tx: u16,
    /// The port was given copy engines.
    pub(super) dma: bool,
}

/// One extended statistic of a port.
#[derive(Clone, Copy)]
pub(super) struct Xstat {
    /// The queue receives.
    pub(super) rx: bool,
    /// Its number.
    pub(super) queue: u16,
    entry: Entry,
}

impl Xstat {
    /// The name as applications see it.
    pub(super) fn name(&self) -> String {
        let direction = if self.rx { "rx" } else { "tx" };
        format!("{direction}_q{}_{}", self.queue, self.entry.0)
    }

    /// The value; a queue that is not set up has counted nothing.
    pub(super) fn value(&self, stats: Option<&QueueStats>) -> u64 {
        match (stats, self.entry.1) {
            (Some(stats), Some(counter)) => stats.extended(counter),
            _ => 0,
        }
    }
}

/// All statistics of a port with such queues, in order.
pub(super) fn all(Queues { rx, tx, dma }: Queues) -> impl Iterator<Item = Xstat> {
    let (rx_queues, tx_queues) = (rx, tx);
    let dma: &[_] = if dma { DMA } else { &[] };
    let block = |rx, queue, entries: &'static [Entry]| {
        entries.iter().map(move |&entry| Xstat { rx, queue, entry })
    };
    let blocks =
        move |rx, queues, entries| (0..queues).flat_map(move |queue| block(rx, queue, entries));
    blocks(true, rx_queues, STOCK)
        .chain(blocks(false, tx_queues, STOCK))
        .chain(blocks(true, rx_queues, RX_MORE))
        .chain(blocks(false, tx_queues, TX_MORE))
        .chain(blocks(true, rx_queues, dma))
        .chain(blocks(false, tx_queues, dma))
}

/// How many [`all`] gives.
pub(super) fn count(Queues { rx, tx, dma }: Queues) -> usize {
    let dma = if dma { DMA.len() } else { 0 };
    usize::from(rx) * (STOCK.len() + RX_MORE.len() + dma)
        + usize::from(tx) * (STOCK.len() + TX_MORE.len() + dma)
}

/// Every counter that a reset sets back.
pub(super) fn counters() -> impl Iterator<Item = Counter> {
    [STOCK, RX_MORE, TX_MORE, DMA]
        .into_iter()
        .flatten()
        .filter(|entry| entry.0 != IN_FLIGHT)
        .filter_map(|entry| entry.1)
}

#[cfg(test)]
mod tests {
    use super::super::stats::add;
    use super::*;

    fn queues(rx: u16, tx: u16) -> Queues {
        Queues { rx, tx, dma: false }
    }

    fn names(rx: u16, tx: u16) -> Vec<String> {
        all(queues(rx, tx)).map(|xstat| xstat.name()).collect()
    }

    #[test]
    fn the_block_of_a_queue_has_the_names_of_the_installed_line() {
        let mut expected = vec![
            "rx_q0_good_packets",
            "rx_q0_good_bytes",
            "rx_q0_multicast_packets",
            "rx_q0_broadcast_packets",
            "rx_q0_undersize_packets",
            "rx_q0_size_64_packets",
            "rx_q0_size_65_127_packets",
            "rx_q0_size_128_255_packets",
            "rx_q0_size_256_511_packets",
            "rx_q0_size_512_1023_packets",
            "rx_q0_size_1024_1518_packets",
            "rx_q0_size_1519_max_packets",
            "rx_q0_guest_notifications",
        ];
        if cfg!(not(dpdk_22_11)) {
            expected.extend([
                "rx_q0_guest_notifications_offloaded",
                "rx_q0_guest_notifications_error",
                "rx_q0_guest_notifications_suppressed",
            ]);
        }
        expected.extend([
            "rx_q0_iotlb_hits",
            "rx_q0_iotlb_misses",
            "rx_q0_inflight_submitted",
            "rx_q0_inflight_completed",
        ]);
        if cfg!(not(dpdk_22_11)) {
            expected.push("rx_q0_mbuf_alloc_failed");
        }
        assert_eq!(STOCK.len(), if cfg!(dpdk_22_11) { 17 } else { 21 });
        assert_eq!(names(1, 0)[..STOCK.len()], expected);
    }

    #[test]
    fn own_counters_stand_behind_all_blocks() {
        let names = names(2, 1);

        assert_eq!(names.len(), count(queues(2, 1)));
        assert_eq!(names[STOCK.len()], "rx_q1_good_packets");
        assert_eq!(names[2 * STOCK.len()], "tx_q0_good_packets");
        let own = &names[3 * STOCK.len()..];
        assert!(own[0].starts_with("rx_q0_"));
        assert!(own.contains(&"rx_q1_drop_bad_desc".into()));
        assert_eq!(own.last(), Some(&"tx_q0_drop_gso".into()));
    }

    #[test]
    fn ports_with_copy_engines_have_more_behind_all_others() {
        let with = Queues {
            dma: true,
            ..queues(1, 2)
        };
        let all: Vec<_> = all(with).map(|xstat| xstat.name()).collect();
        let plain = names(1, 2);
        assert_eq!(all.len(), count(with));
        assert_eq!(all[..plain.len()], plain);
        assert_eq!(all[plain.len()], "rx_q0_dma_copies");
        assert_eq!(all[plain.len() + DMA.len()], "tx_q0_dma_copies");
        assert_eq!(all.last(), Some(&"tx_q1_dma_engine_dead".into()));
    }

    #[test]
    fn what_goes_down_again_is_not_reset() {
        let stats = QueueStats::default();
        add(&stats.counters.dma.inflight, 3);
        add(&stats.counters.dma.copies, 3);
        stats.reset_extended(counters());
        assert_eq!(stats.extended(|c| &c.dma.inflight), 3);
        assert_eq!(stats.extended(|c| &c.dma.copies), 0);
    }

    #[test]
    fn no_name_is_used_twice_or_cut() {
        let names = names(128, 128);
        let unique: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
        assert!(names.iter().all(|name| name.len() < 64));
    }

    #[test]
    fn a_queue_that_is_not_set_up_counts_nothing() {
        assert!(all(queues(1, 1)).all(|xstat| xstat.value(None) == 0));
    }

    #[test]
    fn values_are_those_since_the_reset() {
        let stats = QueueStats::default();
        add(&stats.counters.sizes[1], 3);
        let mut all = all(queues(1, 0));
        let size_64 = all
            .find(|xstat| xstat.name() == "rx_q0_size_64_packets")
            .unwrap();
        assert_eq!(size_64.value(Some(&stats)), 3);

        stats.reset_extended(counters());

        assert_eq!(size_64.value(Some(&stats)), 0);
    }
}
