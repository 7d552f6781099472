//! Operations on single queues.

use core::ffi::{c_int, c_uint, c_void};
use core::ptr::{self, NonNull};
use std::sync::Arc;

use super::with_port;
use crate::dpdk::abi::rte_eth_dev;
use crate::dpdk::eal;
use crate::dpdk::ethdev::{EthDev, QueueState};
use crate::dpdk::mempool::Mempool;
use crate::dpdk::sys::{
    RTE_ETH_BURST_FLAG_PER_QUEUE, RTE_ETH_RX_DESC_AVAIL, RTE_ETH_RX_DESC_DONE,
    RTE_ETH_RX_DESC_UNAVAIL, RTE_ETH_TX_DESC_DONE, RTE_ETH_TX_DESC_FULL, RTE_ETH_TX_DESC_UNAVAIL,
    rte_eth_burst_mode, rte_eth_rxconf, rte_eth_rxq_info, rte_eth_txconf, rte_eth_txq_info,
    rte_mempool, rte_power_monitor_cond,
};
use crate::guard;
use crate::port::queue::{RxQueue, RxSetup, TxQueue, TxSetup};
use crate::port::vring::Slot;
use crate::port::{Port, PortError};

/// # Safety
///
/// See [`dev_configure`](super::dev_configure); `pool` is a pool of pktmbufs, or null.
pub(super) unsafe extern "C" fn rx_queue_setup(
    dev: *mut rte_eth_dev,
    index: u16,
    descriptors: u16,
    socket: c_uint,
    conf: *const rte_eth_rxconf,
    pool: *mut rte_mempool,
) -> c_int {
    let setup = |dev: EthDev, port: &Arc<Port>| {
        // SAFETY: a pool that the application keeps as long as the queue (rte_eth_rx_queue_setup).
        let pool = unsafe { Mempool::from_ptr(pool) }.ok_or(PortError::NoPool)?;
        let setup = RxSetup {
            pool,
            descriptors,
            // SAFETY: null, or ethdev's own for the call.
            conf: unsafe { conf.as_ref() }.copied(),
        };
        let queue = RxQueue::create(port, index, socket.cast_signed(), setup)?;
        // SAFETY: in a control operation; what `rx_burst` expects.
        unsafe { dev.set_rx_queue(index, queue.as_ptr().cast()) };
        Ok(())
    };
    // SAFETY: called by ethdev.
    unsafe { with_port(dev, setup) }
}

/// # Safety
///
/// See [`dev_configure`](super::dev_configure).
pub(super) unsafe extern "C" fn tx_queue_setup(
    dev: *mut rte_eth_dev,
    index: u16,
    descriptors: u16,
    socket: c_uint,
    conf: *const rte_eth_txconf,
) -> c_int {
    let setup = |dev: EthDev, port: &Arc<Port>| {
        let setup = TxSetup {
            descriptors,
            // SAFETY: null, or ethdev's own for the call.
            conf: unsafe { conf.as_ref() }.copied(),
        };
        let queue = TxQueue::create(port, index, socket.cast_signed(), setup)?;
        // SAFETY: in a control operation; what `tx_burst` expects.
        unsafe { dev.set_tx_queue(index, queue.as_ptr().cast()) };
        Ok(())
    };
    // SAFETY: called by ethdev.
    unsafe { with_port(dev, setup) }
}

/// # Safety
///
/// See [`dev_configure`](super::dev_configure); nobody polls the queue.
pub(super) unsafe extern "C" fn rx_queue_release(dev: *mut rte_eth_dev, index: u16) {
    guard::catch((), || {
        // SAFETY: called by ethdev.
        if let Some(dev) = unsafe { EthDev::from_ptr(dev) } {
            // SAFETY: nobody polls the queue (caller).
            unsafe { release_rx(dev, index) };
        }
    });
}

/// # Safety
///
/// See [`dev_configure`](super::dev_configure); nobody sends on the queue.
pub(super) unsafe extern "C" fn tx_queue_release(dev: *mut rte_eth_dev, index: u16) {
    guard::catch((), || {
        // SAFETY: called by ethdev.
        if let Some(dev) = unsafe { EthDev::from_ptr(dev) } {
            // SAFETY: nobody sends on the queue (caller).
            unsafe { release_tx(dev, index) };
        }
    });
}

/// # Safety
///
/// In a control operation, in which nobody polls the queue.
pub(super) unsafe fn release_rx(dev: EthDev, index: u16) {
    let queue = dev.rx_queue(index).cast::<RxQueue>();
    // SAFETY: in a control operation (caller).
    unsafe { dev.set_rx_queue(index, ptr::null_mut()) };
    if let Some(queue) = NonNull::new(queue) {
        // SAFETY: what queue setup made, unused from now on (caller).
        unsafe { RxQueue::destroy(queue) };
    }
}

/// # Safety
///
/// In a control operation, in which nobody sends on the queue.
pub(super) unsafe fn release_tx(dev: EthDev, index: u16) {
    let queue = dev.tx_queue(index).cast::<TxQueue>();
    // SAFETY: in a control operation (caller).
    unsafe { dev.set_tx_queue(index, ptr::null_mut()) };
    if let Some(queue) = NonNull::new(queue) {
        // SAFETY: what queue setup made, unused from now on (caller).
        unsafe { TxQueue::destroy(queue) };
    }
}

/// Sent mbufs are free when a burst returns, but for those that copy engines have. `free` is the
/// most to be freed; 0: all.
///
/// # Safety
///
/// Called by ethdev, with what tx queue setup stored.
pub(super) unsafe extern "C" fn tx_done_cleanup(queue: *mut c_void, free: u32) -> c_int {
    guard::catch(-libc::EFAULT, || {
        // SAFETY: what tx queue setup stored (caller).
        let queue = unsafe { TxQueue::from_ptr(queue) };
        let most = match free {
            0 => usize::MAX,
            most => most as usize,
        };
        let freed = queue
            .filter(|_| eal::is_primary())
            .and_then(TxQueue::lane)
            .map_or(0, |(_, lane)| lane.reap(most));
        c_int::try_from(freed).unwrap_or(c_int::MAX)
    })
}

/// # Safety
///
/// See [`dev_configure`](super::dev_configure).
pub(super) unsafe extern "C" fn rx_queue_intr_enable(dev: *mut rte_eth_dev, index: u16) -> c_int {
    // SAFETY: called by ethdev.
    unsafe { with_port(dev, |_, port| port.rx_interrupt(index, true)) }
}

/// # Safety
///
/// See [`dev_configure`](super::dev_configure).
pub(super) unsafe extern "C" fn rx_queue_intr_disable(dev: *mut rte_eth_dev, index: u16) -> c_int {
    // SAFETY: called by ethdev.
    unsafe { with_port(dev, |_, port| port.rx_interrupt(index, false)) }
}

/// # Safety
///
/// Called by ethdev, with what rx queue setup stored; `condition` is the caller's.
pub(super) unsafe extern "C" fn get_monitor_addr(
    queue: *mut c_void,
    condition: *mut rte_power_monitor_cond,
) -> c_int {
    guard::catch(-libc::EFAULT, || {
        // SAFETY: what rx queue setup stored (caller).
        let queue = unsafe { RxQueue::from_ptr(queue) };
        // SAFETY: the caller's struct.
        let condition = unsafe { condition.as_mut() };
        let (Some(queue), Some(condition)) = (queue, condition) else {
            return -libc::EINVAL;
        };
        if queue.under_way() != 0 {
            // Copies end without a word that could be watched.
            return -libc::EBUSY;
        }
        let Some(monitor) = queue.vring().monitor() else {
            return -libc::EINVAL;
        };
        condition.addr = monitor.word.cast_mut().cast();
        condition.size = 2;
        condition.fn_ = Some(nothing_new);
        condition.opaque[0] = monitor.value.into();
        condition.opaque[1] = monitor.mask.into();
        condition.opaque[2] = monitor.wake_on_match.into();
        0
    })
}

/// Whether an lcore may sleep on what the driver changes: 0, or -1 when a buffer waits.
///
/// # Safety
///
/// `opaque` is what [`get_monitor_addr`] wrote.
unsafe extern "C" fn nothing_new(value: u64, opaque: *const u64) -> c_int {
    // SAFETY: an array of at least three words (caller).
    let [expected, mask, wake_on_match] = unsafe { opaque.cast::<[u64; 3]>().read() };
    if (value & mask == expected) == (wake_on_match != 0) {
        -1
    } else {
        0
    }
}

/// Starts or stops the rx queue `index` and says so to ethdev.
fn switch_rx(dev: EthDev, port: &Port, index: u16, on: bool) -> Result<(), PortError> {
    port.switch_rx(index, on)?;
    // SAFETY: in a control operation.
    unsafe { dev.set_rx_queue_state(index, state(on)) };
    Ok(())
}

/// The same for a tx queue.
fn switch_tx(dev: EthDev, port: &Port, index: u16, on: bool) -> Result<(), PortError> {
    port.switch_tx(index, on)?;
    // SAFETY: in a control operation.
    unsafe { dev.set_tx_queue_state(index, state(on)) };
    Ok(())
}

fn state(on: bool) -> QueueState {
    if on {
        QueueState::Started
    } else {
        QueueState::Stopped
    }
}

/// Starts all queues but those that the application wants to start itself.
pub(super) fn start_all(dev: EthDev, port: &Port) -> Result<(), PortError> {
    let (rx, tx) = dev.queue_counts();
    for index in 0..rx {
        // SAFETY: what rx queue setup stored.
        let queue = unsafe { RxQueue::from_ptr(dev.rx_queue(index)) };
        let deferred = queue.is_some_and(RxQueue::starts_deferred);
        switch_rx(dev, port, index, !deferred)?;
    }
    for index in 0..tx {
        // SAFETY: what tx queue setup stored.
        let queue = unsafe { TxQueue::from_ptr(dev.tx_queue(index)) };
        let deferred = queue.is_some_and(TxQueue::starts_deferred);
        switch_tx(dev, port, index, !deferred)?;
    }
    Ok(())
}

/// # Safety
///
/// See [`dev_configure`](super::dev_configure).
pub(super) unsafe extern "C" fn rx_queue_start(dev: *mut rte_eth_dev, index: u16) -> c_int {
    // SAFETY: called by ethdev.
    unsafe { with_port(dev, |dev, port| switch_rx(dev, port, index, true)) }
}

/// # Safety
///
/// See [`dev_configure`](super::dev_configure).
pub(super) unsafe extern "C" fn rx_queue_stop(dev: *mut rte_eth_dev, index: u16) -> c_int {
    // SAFETY: called by ethdev.
    unsafe { with_port(dev, |dev, port| switch_rx(dev, port, index, false)) }
}

/// # Safety
///
/// See [`dev_configure`](super::dev_configure).
pub(super) unsafe extern "C" fn tx_queue_start(dev: *mut rte_eth_dev, index: u16) -> c_int {
    // SAFETY: called by ethdev.
    unsafe { with_port(dev, |dev, port| switch_tx(dev, port, index, true)) }
}

/// # Safety
///
/// See [`dev_configure`](super::dev_configure).
pub(super) unsafe extern "C" fn tx_queue_stop(dev: *mut rte_eth_dev, index: u16) -> c_int {
    // SAFETY: called by ethdev.
    unsafe { with_port(dev, |dev, port| switch_tx(dev, port, index, false)) }
}

/// # Safety
///
/// See [`dev_configure`](super::dev_configure); `info` is ethdev's, zeroed.
pub(super) unsafe extern "C" fn rxq_info_get(
    dev: *mut rte_eth_dev,
    index: u16,
    info: *mut rte_eth_rxq_info,
) {
    guard::catch((), || {
        // SAFETY: called by ethdev.
        let Some(dev) = (unsafe { EthDev::from_ptr(dev) }) else {
            return;
        };
        // SAFETY: what rx queue setup stored.
        let queue = unsafe { RxQueue::from_ptr(dev.rx_queue(index)) };
        // SAFETY: ethdev's struct, ours during the call.
        if let (Some(queue), Some(info)) = (queue, unsafe { info.as_mut() }) {
            queue.describe(info);
        }
    });
}

/// # Safety
///
/// See [`dev_configure`](super::dev_configure); `info` is ethdev's, zeroed.
pub(super) unsafe extern "C" fn txq_info_get(
    dev: *mut rte_eth_dev,
    index: u16,
    info: *mut rte_eth_txq_info,
) {
    guard::catch((), || {
        // SAFETY: called by ethdev.
        let Some(dev) = (unsafe { EthDev::from_ptr(dev) }) else {
            return;
        };
        // SAFETY: what tx queue setup stored.
        let queue = unsafe { TxQueue::from_ptr(dev.tx_queue(index)) };
        // SAFETY: ethdev's struct, ours during the call.
        if let (Some(queue), Some(info)) = (queue, unsafe { info.as_mut() }) {
            queue.describe(info);
        }
    });
}

/// # Safety
///
/// See [`dev_configure`](super::dev_configure); `mode` is ethdev's.
pub(super) unsafe extern "C" fn rx_burst_mode_get(
    dev: *mut rte_eth_dev,
    index: u16,
    mode: *mut rte_eth_burst_mode,
) -> c_int {
    // SAFETY: called by ethdev.
    unsafe {
        burst_mode(dev, mode, |port| {
            Some(port.rx.get(usize::from(index))?.mode())
        })
    }
}

/// # Safety
///
/// See [`dev_configure`](super::dev_configure); `mode` is ethdev's.
pub(super) unsafe extern "C" fn tx_burst_mode_get(
    dev: *mut rte_eth_dev,
    index: u16,
    mode: *mut rte_eth_burst_mode,
) -> c_int {
    // SAFETY: called by ethdev.
    unsafe {
        burst_mode(dev, mode, |port| {
            Some(port.tx.get(usize::from(index))?.mode())
        })
    }
}

/// # Safety
///
/// See [`dev_configure`](super::dev_configure); `mode` is ethdev's.
unsafe fn burst_mode(
    dev: *mut rte_eth_dev,
    mode: *mut rte_eth_burst_mode,
    text: impl FnOnce(&Port) -> Option<String>,
) -> c_int {
    let fill = |_, port: &Arc<Port>| {
        // SAFETY: ethdev's struct, ours during the call.
        let mode = unsafe { mode.as_mut() }.ok_or(PortError::Closed)?;
        mode.flags = RTE_ETH_BURST_FLAG_PER_QUEUE;
        guard::fill(&mut mode.info, &text(port).unwrap_or_default());
        Ok(())
    };
    // SAFETY: called by ethdev.
    unsafe { with_port(dev, fill) }
}

/// What became of the descriptor `offset` behind the one that is received next.
///
/// # Safety
///
/// Called by ethdev, with what rx queue setup stored.
pub(in crate::port) unsafe extern "C" fn rx_descriptor_status(
    queue: *mut c_void,
    offset: u16,
) -> c_int {
    guard::catch(-libc::EFAULT, || {
        // SAFETY: what rx queue setup stored (caller).
        match unsafe { RxQueue::from_ptr(queue) }.map(|queue| queue.slot(offset)) {
            Some(Slot::Waits) => RTE_ETH_RX_DESC_DONE,
            Some(Slot::Empty) => RTE_ETH_RX_DESC_AVAIL,
            Some(Slot::NoRing) => RTE_ETH_RX_DESC_UNAVAIL,
            Some(Slot::Beyond) | None => -libc::EINVAL,
        }
    })
}

/// What became of the descriptor `offset` behind the one that is sent next: one that the driver
/// gave a buffer can be used, any other is not emptied yet.
///
/// # Safety
///
/// Called by ethdev, with what tx queue setup stored.
pub(in crate::port) unsafe extern "C" fn tx_descriptor_status(
    queue: *mut c_void,
    offset: u16,
) -> c_int {
    guard::catch(-libc::EFAULT, || {
        // SAFETY: what tx queue setup stored (caller).
        match unsafe { TxQueue::from_ptr(queue) }.map(|queue| queue.vring().slot(offset)) {
            Some(Slot::Waits) => RTE_ETH_TX_DESC_DONE,
            Some(Slot::Empty) => RTE_ETH_TX_DESC_FULL,
            Some(Slot::NoRing) => RTE_ETH_TX_DESC_UNAVAIL,
            Some(Slot::Beyond) | None => -libc::EINVAL,
        }
    })
}

/// Places of the ring that cannot be sent to: the driver gave no buffer there.
///
/// # Safety
///
/// Called by ethdev, with what tx queue setup stored.
#[cfg(not(dpdk_22_11))]
pub(in crate::port) unsafe extern "C" fn tx_queue_count(queue: *mut c_void) -> c_int {
    guard::catch(-libc::EFAULT, || {
        // SAFETY: what tx queue setup stored (caller).
        let queue = unsafe { TxQueue::from_ptr(queue) };
        queue.map_or(-libc::EINVAL, |queue| queue.vring().without_buffer().into())
    })
}
