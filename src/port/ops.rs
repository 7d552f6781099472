//! The op table: for each entry a shim that finds the port, and turns errors into numbers.

mod queues;
mod statistics;

use core::ffi::c_int;
use core::ptr;
use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::life::Wanted;
use super::queue::RxQueue;
use super::shared;
use super::{Port, PortError};
use crate::dpdk::abi::{eth_dev_ops, rte_eth_dev};
use crate::dpdk::ethdev::{EthDev, QueueState};
use crate::dpdk::intr::RxInterrupts;
use crate::dpdk::sys::{
    RTE_ETH_RX_OFFLOAD_IPV4_CKSUM, RTE_ETH_RX_OFFLOAD_SCATTER, RTE_ETH_RX_OFFLOAD_TCP_CKSUM,
    RTE_ETH_RX_OFFLOAD_TCP_LRO, RTE_ETH_RX_OFFLOAD_UDP_CKSUM, RTE_ETH_RX_OFFLOAD_VLAN_STRIP,
    RTE_ETH_TX_OFFLOAD_IPV4_CKSUM, RTE_ETH_TX_OFFLOAD_MULTI_SEGS, RTE_ETH_TX_OFFLOAD_SCTP_CKSUM,
    RTE_ETH_TX_OFFLOAD_TCP_CKSUM, RTE_ETH_TX_OFFLOAD_TCP_TSO, RTE_ETH_TX_OFFLOAD_UDP_CKSUM,
    RTE_ETH_TX_OFFLOAD_UDP_TSO, RTE_ETH_TX_OFFLOAD_VLAN_INSERT, rte_eth_dev_info, rte_ether_addr,
};
use crate::dpdk::varying;
use crate::guard;
use crate::log::PORT;

#[cfg(not(dpdk_22_11))]
pub(super) use queues::tx_queue_count;
use queues::{
    get_monitor_addr, release_rx, release_tx, rx_burst_mode_get, rx_queue_intr_disable,
    rx_queue_intr_enable, rx_queue_release, rx_queue_setup, rx_queue_start, rx_queue_stop,
    rxq_info_get, tx_burst_mode_get, tx_done_cleanup, tx_queue_release, tx_queue_setup,
    tx_queue_start, tx_queue_stop, txq_info_get,
};
pub(super) use queues::{rx_descriptor_status, tx_descriptor_status};
pub(super) use statistics::Ops;
use statistics::{stats_reset, xstats_get, xstats_get_names, xstats_reset};

/// What ethdev calls for ports of this driver. Entries that are empty answer -ENOTSUP.
pub(super) static OPS: eth_dev_ops = {
    let mut ops = eth_dev_ops::EMPTY;
    ops.dev_configure = Some(dev_configure);
    ops.dev_start = Some(dev_start);
    ops.dev_stop = Some(dev_stop);
    ops.dev_close = Some(dev_close);
    ops.dev_infos_get = Some(dev_infos_get);
    ops.rx_queue_setup = Some(rx_queue_setup);
    ops.rx_queue_release = Some(rx_queue_release);
    ops.tx_queue_setup = Some(tx_queue_setup);
    ops.tx_queue_release = Some(tx_queue_release);
    ops.rx_queue_start = Some(rx_queue_start);
    ops.rx_queue_stop = Some(rx_queue_stop);
    ops.tx_queue_start = Some(tx_queue_start);
    ops.tx_queue_stop = Some(tx_queue_stop);
    ops.rxq_info_get = Some(rxq_info_get);
    ops.txq_info_get = Some(txq_info_get);
    ops.rx_burst_mode_get = Some(rx_burst_mode_get);
    ops.tx_burst_mode_get = Some(tx_burst_mode_get);
    ops.tx_done_cleanup = Some(tx_done_cleanup);
    ops.link_update = Some(link_update);
    ops.promiscuous_enable = Some(always_on);
    ops.promiscuous_disable = Some(always_on);
    ops.allmulticast_enable = Some(always_on);
    ops.allmulticast_disable = Some(always_on);
    ops.mac_addr_set = Some(mac_addr_set);
    ops.mtu_set = Some(mtu_set);
    ops.vlan_offload_set = Some(vlan_offload_set);
    ops.dev_supported_ptypes_get = Some(varying::supported_ptypes_get::<Ops>);
    ops.dev_ptypes_set = Some(ptypes_set);
    ops.stats_get = Some(varying::stats_get::<Ops>);
    ops.stats_reset = Some(stats_reset);
    ops.xstats_get = Some(xstats_get);
    ops.xstats_get_names = Some(xstats_get_names);
    ops.xstats_reset = Some(xstats_reset);
    ops.rx_queue_intr_enable = Some(rx_queue_intr_enable);
    ops.rx_queue_intr_disable = Some(rx_queue_intr_disable);
    ops.get_monitor_addr = Some(get_monitor_addr);
    ops.eth_dev_priv_dump = Some(priv_dump);
    ops
};

/// What ethdev calls in a secondary process: only what looks at memory that all processes share. The
/// rest answers -ENOTSUP, since rings and gates are in the process that made the port.
pub(super) static SECONDARY_OPS: eth_dev_ops = {
    let mut table = eth_dev_ops::EMPTY;
    table.dev_close = OPS.dev_close;
    table.dev_infos_get = OPS.dev_infos_get;
    table.rxq_info_get = OPS.rxq_info_get;
    table.txq_info_get = OPS.txq_info_get;
    table.link_update = OPS.link_update;
    table.dev_supported_ptypes_get = OPS.dev_supported_ptypes_get;
    table.stats_get = OPS.stats_get;
    table.stats_reset = OPS.stats_reset;
    table.xstats_get = OPS.xstats_get;
    table.xstats_get_names = OPS.xstats_get_names;
    table.xstats_reset = OPS.xstats_reset;
    table.eth_dev_priv_dump = OPS.eth_dev_priv_dump;
    table
};

/// Runs one operation on the port behind `dev`, and logs why it failed.
///
/// # Safety
///
/// `dev` is a port that `probe` made, and this is one of ethdev's operations on it.
unsafe fn with_port(
    dev: *mut rte_eth_dev,
    op: impl FnOnce(EthDev, &Arc<Port>) -> Result<(), PortError>,
) -> c_int {
    guard::errno(|| {
        // SAFETY: allocated, and stays so during the operation (caller).
        let dev = unsafe { EthDev::from_ptr(dev) }.ok_or(PortError::Closed)?;
        // SAFETY: in an operation of the port (caller).
        let result = unsafe { shared::port_of(dev) }.and_then(|port| op(dev, &port));
        result.inspect_err(|error| log::error!(target: PORT, "{}: {error}", dev.name()))
    })
}

/// # Safety
///
/// As for all operations: called by ethdev, with a port of this driver.
unsafe extern "C" fn dev_configure(dev: *mut rte_eth_dev) -> c_int {
    // SAFETY: called by ethdev.
    unsafe { with_port(dev, configure) }
}

fn configure(dev: EthDev, port: &Arc<Port>) -> Result<(), PortError> {
    port.configure(wanted(dev))
}

/// What the application's configuration asks for.
fn wanted(dev: EthDev) -> Wanted {
    // SAFETY: in a control operation, and not kept.
    let offloads = unsafe { dev.conf() }.rxmode.offloads;
    Wanted {
        strip_vlan: offloads & RTE_ETH_RX_OFFLOAD_VLAN_STRIP != 0,
        marks_checksums: offloads & (RTE_ETH_RX_OFFLOAD_UDP_CKSUM | RTE_ETH_RX_OFFLOAD_TCP_CKSUM)
            != 0,
        check_ip: offloads & RTE_ETH_RX_OFFLOAD_IPV4_CKSUM != 0,
    }
}

/// Follows a change of the VLAN offloads while the port runs.
///
/// # Safety
///
/// See [`dev_configure`].
unsafe extern "C" fn vlan_offload_set(dev: *mut rte_eth_dev, _mask: c_int) -> c_int {
    let set = |dev: EthDev, port: &Arc<Port>| {
        port.adopt(wanted(dev));
        tell_rx_queues(dev, port);
        Ok(())
    };
    // SAFETY: called by ethdev.
    unsafe { with_port(dev, set) }
}

/// Follows which layers of a frame the application wants to hear of.
///
/// # Safety
///
/// See [`dev_configure`].
unsafe extern "C" fn ptypes_set(dev: *mut rte_eth_dev, layers: u32) -> c_int {
    let set = |dev: EthDev, port: &Arc<Port>| {
        if port.shared.types_frames {
            port.shared.typed_layers.store(layers, Ordering::Relaxed);
            tell_rx_queues(dev, port);
        }
        Ok(())
    };
    // SAFETY: called by ethdev.
    unsafe { with_port(dev, set) }
}

/// Tells the rx queues what the application wants.
fn tell_rx_queues(dev: EthDev, port: &Port) {
    for index in 0..dev.queue_counts().0 {
        // SAFETY: what rx queue setup stored.
        if let Some(queue) = unsafe { RxQueue::from_ptr(dev.rx_queue(index)) } {
            queue.adopt(&port.shared);
        }
    }
}

/// # Safety
///
/// See [`dev_configure`].
unsafe extern "C" fn dev_start(dev: *mut rte_eth_dev) -> c_int {
    // SAFETY: called by ethdev.
    unsafe { with_port(dev, start) }
}

fn start(dev: EthDev, port: &Arc<Port>) -> Result<(), PortError> {
    let (rx, tx) = dev.queue_counts();
    // SAFETY: in a control operation, and not kept.
    let wants_interrupts = unsafe { dev.conf() }.intr_conf.rxq() != 0;
    let interrupts = wants_interrupts.then(|| RxInterrupts::new(rx)).transpose();
    set_interrupts(dev, port, interrupts.map_err(PortError::Interrupts)?);
    tell_rx_queues(dev, port);
    if let Some(lanes) = &port.lanes {
        let port = Arc::downgrade(port);
        let wake = move |queue| {
            if let Some(port) = port.upgrade() {
                port.wake_if_owed(queue);
            }
        };
        lanes.open((rx, tx), wake)?;
    }
    queues::start_all(dev, port)?;
    port.start(rx, tx);
    Ok(())
}

fn set_interrupts(dev: EthDev, port: &Port, new: Option<RxInterrupts>) {
    port.interrupts.replace(&port.name, new, |vector| {
        let handle = vector.map_or(ptr::null_mut(), RxInterrupts::as_ptr);
        // SAFETY: in a control operation; the port keeps the handle until it replaces it.
        unsafe { dev.set_intr_handle(handle) };
    });
}

/// Says to ethdev that no queue runs.
fn set_queues_stopped(dev: EthDev) {
    let (rx, tx) = dev.queue_counts();
    for index in 0..rx {
        // SAFETY: in a control operation.
        unsafe { dev.set_rx_queue_state(index, QueueState::Stopped) };
    }
    for index in 0..tx {
        // SAFETY: in a control operation.
        unsafe { dev.set_tx_queue_state(index, QueueState::Stopped) };
    }
}

/// # Safety
///
/// See [`dev_configure`].
unsafe extern "C" fn dev_stop(dev: *mut rte_eth_dev) -> c_int {
    // SAFETY: called by ethdev.
    unsafe {
        with_port(dev, |dev, port| {
            port.stop();
            set_queues_stopped(dev);
            Ok(())
        })
    }
}

/// # Safety
///
/// See [`dev_configure`].
unsafe extern "C" fn dev_close(dev: *mut rte_eth_dev) -> c_int {
    guard::catch(-libc::EFAULT, || {
        // SAFETY: called by ethdev.
        if let Some(dev) = unsafe { EthDev::from_ptr(dev) } {
            // SAFETY: as above.
            unsafe { close(dev) };
        }
        0
    })
}

/// Ends the port behind `dev`, and frees what it had; a port that is closed, or of another process,
/// is left alone.
///
/// # Safety
///
/// Nobody polls the port's queues any more, as ethdev demands of `close`.
pub(super) unsafe fn close(dev: EthDev) {
    // SAFETY: in an operation of the port.
    let Ok(port) = (unsafe { shared::port_of(dev) }) else {
        return;
    };
    port.close();
    let (rx, tx) = dev.queue_counts();
    for index in 0..rx {
        // SAFETY: nobody polls the queue (caller).
        unsafe { release_rx(dev, index) };
    }
    for index in 0..tx {
        // SAFETY: nobody sends on the queue (caller).
        unsafe { release_tx(dev, index) };
    }
    set_interrupts(dev, &port, None);
    // SAFETY: in `close`; a second one finds no port.
    unsafe { shared::disown(dev, &port) };
}

/// # Safety
///
/// See [`dev_configure`]; `info` is the caller's.
unsafe extern "C" fn dev_infos_get(dev: *mut rte_eth_dev, info: *mut rte_eth_dev_info) -> c_int {
    const RX_OFFLOADS: u64 = RTE_ETH_RX_OFFLOAD_IPV4_CKSUM
        | RTE_ETH_RX_OFFLOAD_UDP_CKSUM
        | RTE_ETH_RX_OFFLOAD_TCP_CKSUM
        | RTE_ETH_RX_OFFLOAD_TCP_LRO;
    const TX_OFFLOADS: u64 = RTE_ETH_TX_OFFLOAD_IPV4_CKSUM
        | RTE_ETH_TX_OFFLOAD_UDP_CKSUM
        | RTE_ETH_TX_OFFLOAD_TCP_CKSUM
        | RTE_ETH_TX_OFFLOAD_SCTP_CKSUM
        | RTE_ETH_TX_OFFLOAD_TCP_TSO
        | RTE_ETH_TX_OFFLOAD_UDP_TSO;
    guard::errno(|| {
        // SAFETY: called by ethdev.
        let dev = unsafe { EthDev::from_ptr(dev) }.ok_or(PortError::Closed)?;
        // SAFETY: in an operation of the port.
        let shared = unsafe { shared::shared_of(dev) }.ok_or(PortError::Closed)?;
        // SAFETY: ethdev's struct, ours during the call.
        let info = unsafe { info.as_mut() }.ok_or(PortError::Closed)?;
        info.max_mac_addrs = 1;
        info.max_rx_pktlen = u32::MAX;
        info.max_rx_queues = shared.queues;
        info.max_tx_queues = shared.queues;
        info.min_rx_bufsize = 0;
        info.max_lro_pkt_size = u32::MAX;
        info.rx_offload_capa = RTE_ETH_RX_OFFLOAD_VLAN_STRIP;
        if shared.chains() {
            info.rx_offload_capa |= RTE_ETH_RX_OFFLOAD_SCATTER;
        }
        info.tx_offload_capa = RTE_ETH_TX_OFFLOAD_MULTI_SEGS | RTE_ETH_TX_OFFLOAD_VLAN_INSERT;
        if shared.checksums() {
            info.rx_offload_capa |= RX_OFFLOADS;
            info.tx_offload_capa |= TX_OFFLOADS;
        }
        Ok::<_, PortError>(())
    })
}

/// The session writes the link when it changes.
///
/// # Safety
///
/// See [`dev_configure`].
unsafe extern "C" fn link_update(_dev: *mut rte_eth_dev, _wait: c_int) -> c_int {
    0
}

/// A port without a filter: every frame of the guest is received, whatever is asked for.
///
/// # Safety
///
/// See [`dev_configure`].
unsafe extern "C" fn always_on(_dev: *mut rte_eth_dev) -> c_int {
    0
}

/// A port has no filter, so its address is only a name; ethdev keeps it.
///
/// # Safety
///
/// See [`dev_configure`].
unsafe extern "C" fn mac_addr_set(_dev: *mut rte_eth_dev, _address: *mut rte_ether_addr) -> c_int {
    0
}

/// # Safety
///
/// See [`dev_configure`].
unsafe extern "C" fn mtu_set(dev: *mut rte_eth_dev, mtu: u16) -> c_int {
    // SAFETY: called by ethdev.
    unsafe { with_port(dev, |_, port| port.check_mtu(mtu)) }
}

/// # Safety
///
/// See [`dev_configure`]; `file` is open.
unsafe extern "C" fn priv_dump(dev: *mut rte_eth_dev, file: *mut libc::FILE) -> c_int {
    guard::errno(|| {
        // SAFETY: called by ethdev.
        let dev = unsafe { EthDev::from_ptr(dev) }.ok_or(PortError::Closed)?;
        // SAFETY: in an operation of the port.
        let shared = unsafe { shared::shared_of(dev) }.ok_or(PortError::Closed)?;
        let text = CString::new(shared.dump()).unwrap_or_default();
        // SAFETY: an open file (caller) and a string.
        unsafe { libc::fputs(text.as_ptr(), file) };
        Ok::<_, PortError>(())
    })
}

#[cfg(test)]
mod tests {
    use super::SECONDARY_OPS;

    /// They follow a pointer into the heap of the process that made the port, or free its memory.
    #[test]
    fn a_secondary_has_no_operation_that_needs_the_primarys_heap() {
        let ops = &SECONDARY_OPS;
        assert!(ops.get_monitor_addr.is_none());
        assert!(ops.tx_done_cleanup.is_none());
        assert!(ops.dev_configure.is_none() && ops.dev_start.is_none() && ops.dev_stop.is_none());
        assert!(ops.rx_queue_setup.is_none() && ops.tx_queue_setup.is_none());
        assert!(ops.rx_queue_release.is_none() && ops.tx_queue_release.is_none());
        assert!(ops.rx_queue_intr_enable.is_none() && ops.rx_queue_intr_disable.is_none());
        assert!(ops.rx_burst_mode_get.is_none() && ops.tx_burst_mode_get.is_none());
        assert!(ops.stats_get.is_some() && ops.xstats_get.is_some());
        assert!(ops.dev_close.is_some() && ops.dev_infos_get.is_some());
    }
}
