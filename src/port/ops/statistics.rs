//! Statistics, which any process may ask for: all of it is in shared memory.

use core::ffi::{c_int, c_uint, c_void};

use crate::dpdk::abi::rte_eth_dev;
use crate::dpdk::eal;
use crate::dpdk::ethdev::EthDev;
use crate::dpdk::sys::{
    RTE_PTYPE_L2_ETHER, RTE_PTYPE_L2_ETHER_MPLS, RTE_PTYPE_L2_ETHER_QINQ, RTE_PTYPE_L2_ETHER_VLAN,
    RTE_PTYPE_L3_IPV4, RTE_PTYPE_L3_IPV4_EXT, RTE_PTYPE_L3_IPV6, RTE_PTYPE_L3_IPV6_EXT,
    RTE_PTYPE_L4_FRAG, RTE_PTYPE_L4_SCTP, RTE_PTYPE_L4_TCP, RTE_PTYPE_L4_UDP, rte_eth_xstat,
    rte_eth_xstat_name,
};
use crate::dpdk::varying::{PortCounters, Ptypes, StatsWriter, VaryingOps};
use crate::guard;
use crate::port::queue::{RxQueue, TxQueue};
use crate::port::shared::shared_of;
use crate::port::stats::{Basic, QueueStats};
use crate::port::xstats;

/// The counters of an rx queue; `None` when it is not set up.
fn rx_stats<'op>(dev: EthDev, index: u16) -> Option<&'op QueueStats> {
    // SAFETY: what rx queue setup stored; ethdev keeps it during an operation.
    unsafe { RxQueue::from_ptr(dev.rx_queue(index)) }.map(|queue| &queue.stats)
}

/// The counters of a tx queue; `None` when it is not set up.
fn tx_stats<'op>(dev: EthDev, index: u16) -> Option<&'op QueueStats> {
    // SAFETY: what tx queue setup stored; ethdev keeps it during an operation.
    unsafe { TxQueue::from_ptr(dev.tx_queue(index)) }.map(|queue| &queue.stats)
}

/// All queues that are set up.
fn each_stats<'op>(dev: EthDev) -> impl Iterator<Item = &'op QueueStats> {
    let (rx, tx) = dev.queue_counts();
    let rx = (0..rx).filter_map(move |index| rx_stats(dev, index));
    rx.chain((0..tx).filter_map(move |index| tx_stats(dev, index)))
}

/// # Safety
///
/// See [`dev_configure`](super::dev_configure).
pub(super) unsafe extern "C" fn stats_reset(dev: *mut rte_eth_dev) -> c_int {
    // SAFETY: called by ethdev.
    unsafe { with_dev(dev, |dev| each_stats(dev).for_each(QueueStats::reset_basic)) }
}

/// # Safety
///
/// See [`dev_configure`](super::dev_configure).
pub(super) unsafe extern "C" fn xstats_reset(dev: *mut rte_eth_dev) -> c_int {
    let reset = |stats: &QueueStats| stats.reset_extended(xstats::counters());
    // SAFETY: called by ethdev.
    unsafe { with_dev(dev, |dev| each_stats(dev).for_each(reset)) }
}

/// Runs an operation that works in any process.
///
/// # Safety
///
/// See [`dev_configure`](super::dev_configure).
unsafe fn with_dev(dev: *mut rte_eth_dev, op: impl FnOnce(EthDev)) -> c_int {
    guard::catch(-libc::EFAULT, || {
        // SAFETY: called by ethdev.
        let Some(dev) = (unsafe { EthDev::from_ptr(dev) }) else {
            return -libc::ENODEV;
        };
        op(dev);
        0
    })
}

/// # Safety
///
/// See [`dev_configure`](super::dev_configure); `values` has `room` places, or is null.
pub(super) unsafe extern "C" fn xstats_get(
    dev: *mut rte_eth_dev,
    values: *mut rte_eth_xstat,
    room: c_uint,
) -> c_int {
    // SAFETY: called by ethdev.
    unsafe {
        fill(dev, values, room, |dev, id, xstat| {
            let stats = match xstat.rx {
                true => rx_stats(dev, xstat.queue),
                false => tx_stats(dev, xstat.queue),
            };
            rte_eth_xstat {
                id,
                value: xstat.value(stats),
            }
        })
    }
}

/// # Safety
///
/// See [`dev_configure`](super::dev_configure); `names` has `room` places, or is null.
pub(super) unsafe extern "C" fn xstats_get_names(
    dev: *mut rte_eth_dev,
    names: *mut rte_eth_xstat_name,
    room: c_uint,
) -> c_int {
    // SAFETY: called by ethdev.
    unsafe {
        fill(dev, names, room, |_, _, xstat| {
            let mut name = rte_eth_xstat_name { name: [0; 64] };
            guard::fill(&mut name.name, &xstat.name());
            name
        })
    }
}

/// Fills an array with something of each extended statistic, if it has room for all; their number
/// in any case.
///
/// # Safety
///
/// See [`dev_configure`](super::dev_configure); `out` has `room` places, or is null.
unsafe fn fill<T>(
    dev: *mut rte_eth_dev,
    out: *mut T,
    room: c_uint,
    make: impl Fn(EthDev, u64, xstats::Xstat) -> T,
) -> c_int {
    guard::catch(-libc::EFAULT, || {
        // SAFETY: called by ethdev.
        let Some(dev) = (unsafe { EthDev::from_ptr(dev) }) else {
            return -libc::ENODEV;
        };
        let (rx, tx) = dev.queue_counts();
        // SAFETY: in an operation of the port.
        let dma = unsafe { shared_of(dev) }.is_some_and(|shared| shared.dma);
        let queues = xstats::Queues { rx, tx, dma };
        let count = xstats::count(queues);
        if !out.is_null() && room as usize >= count {
            for (index, (id, xstat)) in (0..).zip(xstats::all(queues)).enumerate() {
                // SAFETY: below `count`, so within the caller's array.
                let place = unsafe { out.add(index) };
                // SAFETY: as above.
                unsafe { place.write(make(dev, id, xstat)) };
            }
        }
        c_int::try_from(count).unwrap_or(c_int::MAX)
    })
}

/// What DPDK's parser tells of a frame below tunnels, in all lines.
const FOUND: &Ptypes = &Ptypes::ending_with_0(&[
    RTE_PTYPE_L2_ETHER,
    RTE_PTYPE_L2_ETHER_VLAN,
    RTE_PTYPE_L2_ETHER_QINQ,
    RTE_PTYPE_L2_ETHER_MPLS,
    RTE_PTYPE_L3_IPV4,
    RTE_PTYPE_L3_IPV4_EXT,
    RTE_PTYPE_L3_IPV6,
    RTE_PTYPE_L3_IPV6_EXT,
    RTE_PTYPE_L4_FRAG,
    RTE_PTYPE_L4_SCTP,
    RTE_PTYPE_L4_TCP,
    RTE_PTYPE_L4_UDP,
    0,
]);

/// What the lines of DPDK ask in different ways.
pub(in crate::port) struct Ops;

impl VaryingOps for Ops {
    fn ptypes(dev: EthDev) -> &'static Ptypes {
        const NONE: &Ptypes = &Ptypes::ending_with_0(&[0]);
        // SAFETY: in an operation of the port.
        match unsafe { shared_of(dev) } {
            Some(shared) if shared.types_frames => FOUND,
            // Frames with an offload mark have a type, others have not: nothing to rely on.
            _ => NONE,
        }
    }

    unsafe fn stats_get(dev: EthDev, mut stats: StatsWriter) -> c_int {
        guard::catch(-libc::EFAULT, || {
            let (rx, tx) = dev.queue_counts();
            let mut sum = PortCounters::default();
            for index in 0..rx {
                let Basic { packets, bytes, .. } = rx_stats(dev, index)
                    .map(QueueStats::basic)
                    .unwrap_or_default();
                sum.ipackets = sum.ipackets.wrapping_add(packets);
                sum.ibytes = sum.ibytes.wrapping_add(bytes);
                stats.rx_queue(index, packets, bytes, 0);
            }
            for index in 0..tx {
                let Basic {
                    packets,
                    bytes,
                    missed,
                } = tx_stats(dev, index)
                    .map(QueueStats::basic)
                    .unwrap_or_default();
                sum.opackets = sum.opackets.wrapping_add(packets);
                sum.obytes = sum.obytes.wrapping_add(bytes);
                // 22.11's driver leaves this counter alone.
                if cfg!(not(dpdk_22_11)) {
                    sum.oerrors = sum.oerrors.wrapping_add(missed);
                }
                stats.tx_queue(index, packets, bytes);
            }
            stats.port(sum);
            0
        })
    }

    unsafe fn rx_queue_count(queue: *mut c_void) -> u16 {
        guard::catch(0, || {
            // SAFETY: what rx queue setup stored (caller).
            let queue = unsafe { RxQueue::from_ptr(queue) };
            // The vrings of a port are in the process that made it.
            queue
                .filter(|_| eal::is_primary())
                .map_or(0, RxQueue::waiting)
        })
    }
}
