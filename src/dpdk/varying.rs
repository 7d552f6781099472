//! The callbacks whose C signature is not the same in all lines, as one trait.

use core::ffi::{c_int, c_void};
use core::ptr::NonNull;

#[cfg(dpdk_25_11)]
use super::abi::eth_queue_stats;
use super::abi::rte_eth_dev;
use super::ethdev::EthDev;
use super::sys::rte_eth_stats;

/// What a driver answers where the lines ask differently. The functions below turn it into entries
/// of the op table.
pub trait VaryingOps {
    /// Packet types that rx of a port tells.
    fn ptypes(dev: EthDev) -> &'static Ptypes;

    /// Fills in the port's counters and, where there is room, those of its queues.
    ///
    /// # Safety
    ///
    /// Called by ethdev, with a live port.
    unsafe fn stats_get(dev: EthDev, stats: StatsWriter) -> c_int;

    /// Buffers that wait in an rx queue.
    ///
    /// # Safety
    ///
    /// Called by ethdev; `queue` is what rx queue setup stored.
    unsafe fn rx_queue_count(queue: *mut c_void) -> u16;
}

/// A list of packet types. An older line wants it to end with `RTE_PTYPE_UNKNOWN` (0), which is no
/// part of it.
pub struct Ptypes(&'static [u32]);

impl Ptypes {
    /// The list in `types`, whose last is 0.
    pub const fn ending_with_0(types: &'static [u32]) -> Self {
        assert!(matches!(types, [.., 0]));
        Self(types)
    }
}

/// Queues of each direction that have a place in the basic counters, in all lines.
const QUEUES: usize = 16;

/// Where a port's counters go. ethdev zeroes them before it asks.
pub struct StatsWriter {
    port: NonNull<rte_eth_stats>,
    #[cfg(dpdk_25_11)]
    queues: Option<NonNull<eth_queue_stats>>,
}

/// Sums over all queues of a port.
#[derive(Clone, Copy, Debug, Default)]
pub struct PortCounters {
    /// Received packets.
    pub ipackets: u64,
    /// Sent packets.
    pub opackets: u64,
    /// Received bytes.
    pub ibytes: u64,
    /// Sent bytes.
    pub obytes: u64,
    /// Packets that were not received for want of room.
    pub imissed: u64,
    /// Packets that were received with errors.
    pub ierrors: u64,
    /// Packets that were not sent.
    pub oerrors: u64,
    /// mbufs that could not be allocated on rx.
    pub rx_nombuf: u64,
}

impl StatsWriter {
    /// Sets the sums.
    pub fn port(&mut self, counters: PortCounters) {
        // SAFETY: ethdev's struct, ours for the call.
        let port = unsafe { self.port.as_mut() };
        port.ipackets = counters.ipackets;
        port.opackets = counters.opackets;
        port.ibytes = counters.ibytes;
        port.obytes = counters.obytes;
        port.imissed = counters.imissed;
        port.ierrors = counters.ierrors;
        port.oerrors = counters.oerrors;
        port.rx_nombuf = counters.rx_nombuf;
    }

    /// Sets the counters of one rx queue; only the first 16 have a place.
    pub fn rx_queue(&mut self, index: u16, packets: u64, bytes: u64, errors: u64) {
        let index = usize::from(index);
        if let Some(queues) = self.queues()
            && index < QUEUES
        {
            queues.q_ipackets[index] = packets;
            queues.q_ibytes[index] = bytes;
            queues.q_errors[index] = errors;
        }
    }

    /// Sets the counters of one tx queue; only the first 16 have a place.
    pub fn tx_queue(&mut self, index: u16, packets: u64, bytes: u64) {
        let index = usize::from(index);
        if let Some(queues) = self.queues()
            && index < QUEUES
        {
            queues.q_opackets[index] = packets;
            queues.q_obytes[index] = bytes;
        }
    }

    #[cfg(not(dpdk_25_11))]
    fn queues(&mut self) -> Option<&mut rte_eth_stats> {
        // SAFETY: ethdev's struct, ours for the call.
        Some(unsafe { self.port.as_mut() })
    }

    #[cfg(dpdk_25_11)]
    fn queues(&mut self) -> Option<&mut eth_queue_stats> {
        // SAFETY: ethdev's struct, ours for the call.
        self.queues
            .as_mut()
            .map(|queues| unsafe { queues.as_mut() })
    }
}

/// `eth_dev_ops::stats_get`.
///
/// # Safety
///
/// For ethdev only.
pub unsafe extern "C" fn stats_get<T: VaryingOps>(
    dev: *mut rte_eth_dev,
    stats: *mut rte_eth_stats,
    #[cfg(dpdk_25_11)] queues: *mut eth_queue_stats,
) -> c_int {
    // SAFETY: ethdev passes the live port that it was asked about.
    let dev = unsafe { EthDev::from_ptr(dev) };
    let (Some(dev), Some(port)) = (dev, NonNull::new(stats)) else {
        return -libc::EINVAL;
    };
    let writer = StatsWriter {
        port,
        #[cfg(dpdk_25_11)]
        queues: NonNull::new(queues),
    };
    // SAFETY: called by ethdev.
    unsafe { T::stats_get(dev, writer) }
}

/// What `rte_eth_dev::rx_queue_count` returns.
#[cfg(dpdk_25_11)]
type Count = c_int;
#[cfg(not(dpdk_25_11))]
type Count = u32;

/// `rte_eth_dev::rx_queue_count`.
///
/// # Safety
///
/// For ethdev only.
pub unsafe extern "C" fn rx_queue_count<T: VaryingOps>(queue: *mut c_void) -> Count {
    // SAFETY: called by ethdev with the queue.
    Count::from(unsafe { T::rx_queue_count(queue) })
}

/// `eth_dev_ops::dev_supported_ptypes_get`: up to 23.11 the list ends with 0.
///
/// # Safety
///
/// For ethdev only.
#[cfg(dpdk_22_11)]
pub unsafe extern "C" fn supported_ptypes_get<T: VaryingOps>(dev: *mut rte_eth_dev) -> *const u32 {
    // SAFETY: ethdev passes the live port that it was asked about.
    match unsafe { EthDev::from_ptr(dev) } {
        Some(dev) => T::ptypes(dev).0.as_ptr(),
        None => core::ptr::null(),
    }
}

/// `eth_dev_ops::dev_supported_ptypes_get`: a list and its length.
///
/// # Safety
///
/// For ethdev only.
#[cfg(not(dpdk_22_11))]
pub unsafe extern "C" fn supported_ptypes_get<T: VaryingOps>(
    dev: *mut rte_eth_dev,
    count: *mut usize,
) -> *const u32 {
    // SAFETY: ethdev passes the live port that it was asked about.
    let Some(dev) = (unsafe { EthDev::from_ptr(dev) }) else {
        return core::ptr::null();
    };
    let Ptypes(types) = T::ptypes(dev);
    // SAFETY: ethdev's own variable.
    unsafe { *count = types.len() - 1 };
    types.as_ptr()
}
