//! Driver-private structs of DPDK, which its installed headers do not have.
//!
//! Structs that are the same in all lines stand here, the others in a file per line, and every
//! size and offset that the driver relies on is asserted at compile time. `wrapper.h` lets clang
//! check the public ones against the installed headers.

#![allow(
    non_camel_case_types,
    reason = "C's names, so that they can be looked up in DPDK"
)]
#![allow(
    missing_docs,
    reason = "fields are described by DPDK's ethdev_driver.h and dev_driver.h"
)]

use core::ffi::{c_char, c_int, c_uint, c_void};

use super::sys::{
    rte_devargs, rte_eth_burst_mode, rte_eth_conf, rte_eth_dev_info, rte_eth_event_type,
    rte_eth_rxconf, rte_eth_rxq_info, rte_eth_txconf, rte_eth_txq_info, rte_eth_xstat,
    rte_eth_xstat_name, rte_ether_addr, rte_mbuf_ext_shared_info, rte_mempool,
    rte_power_monitor_cond,
};

/// Asserts size, alignment and offsets of a struct at compile time.
macro_rules! layout {
    ($type:ty, size $size:literal, align $align:literal { $($field:ident @ $offset:literal),* $(,)? }) => {
        const _: () = {
            assert!(size_of::<$type>() == $size, concat!("size of ", stringify!($type)));
            assert!(align_of::<$type>() == $align, concat!("alignment of ", stringify!($type)));
            $(assert!(
                core::mem::offset_of!($type, $field) == $offset,
                concat!("offset of ", stringify!($type), ".", stringify!($field))
            );)*
        };
    };
}

#[cfg(dpdk_22_11)]
#[path = "v22_11.rs"]
mod line;
#[cfg(dpdk_24_11)]
#[path = "v24_11.rs"]
mod line;
#[cfg(dpdk_25_11)]
#[path = "v25_11.rs"]
mod line;

pub use line::*;

/// An entry of an op table that this driver never fills.
pub type Unused = Option<unsafe extern "C" fn()>;
/// Burst and prepare functions.
pub type Burst = Option<unsafe extern "C" fn(*mut c_void, *mut *mut rte_mbuf, u16) -> u16>;
/// Any operation on a port that takes nothing else.
pub type DevOp = Option<unsafe extern "C" fn(*mut rte_eth_dev) -> c_int>;
/// An operation on a queue of a port.
pub type QueueOp = Option<unsafe extern "C" fn(*mut rte_eth_dev, u16) -> c_int>;
/// Descriptors of a tx queue that are in use; since 24.03.
#[cfg(not(dpdk_22_11))]
pub type TxQueueCount = Option<unsafe extern "C" fn(*mut c_void) -> c_int>;
/// What became of a descriptor of a queue.
pub type DescriptorStatus = Option<unsafe extern "C" fn(*mut c_void, u16) -> c_int>;
pub type QueueRelease = Option<unsafe extern "C" fn(*mut rte_eth_dev, u16)>;
pub type LinkUpdate = Option<unsafe extern "C" fn(*mut rte_eth_dev, c_int) -> c_int>;
pub type MacAddrSet = Option<unsafe extern "C" fn(*mut rte_eth_dev, *mut rte_ether_addr) -> c_int>;
pub type MtuSet = Option<unsafe extern "C" fn(*mut rte_eth_dev, u16) -> c_int>;
pub type XstatsGet =
    Option<unsafe extern "C" fn(*mut rte_eth_dev, *mut rte_eth_xstat, c_uint) -> c_int>;
pub type XstatsGetNames =
    Option<unsafe extern "C" fn(*mut rte_eth_dev, *mut rte_eth_xstat_name, c_uint) -> c_int>;
pub type DevInfosGet =
    Option<unsafe extern "C" fn(*mut rte_eth_dev, *mut rte_eth_dev_info) -> c_int>;
pub type RxqInfoGet = Option<unsafe extern "C" fn(*mut rte_eth_dev, u16, *mut rte_eth_rxq_info)>;
pub type TxqInfoGet = Option<unsafe extern "C" fn(*mut rte_eth_dev, u16, *mut rte_eth_txq_info)>;
pub type BurstModeGet =
    Option<unsafe extern "C" fn(*mut rte_eth_dev, u16, *mut rte_eth_burst_mode) -> c_int>;
pub type FwVersionGet = Option<unsafe extern "C" fn(*mut rte_eth_dev, *mut c_char, usize) -> c_int>;
pub type VlanOffloadSet = Option<unsafe extern "C" fn(*mut rte_eth_dev, c_int) -> c_int>;
pub type RxQueueSetup = Option<
    unsafe extern "C" fn(
        *mut rte_eth_dev,
        u16,
        u16,
        c_uint,
        *const rte_eth_rxconf,
        *mut rte_mempool,
    ) -> c_int,
>;
pub type TxQueueSetup = Option<
    unsafe extern "C" fn(*mut rte_eth_dev, u16, u16, c_uint, *const rte_eth_txconf) -> c_int,
>;
pub type TxDoneCleanup = Option<unsafe extern "C" fn(*mut c_void, u32) -> c_int>;
pub type GetMonitorAddr =
    Option<unsafe extern "C" fn(*mut c_void, *mut rte_power_monitor_cond) -> c_int>;
pub type PtypesSet = Option<unsafe extern "C" fn(*mut rte_eth_dev, u32) -> c_int>;
pub type PrivDump = Option<unsafe extern "C" fn(*mut rte_eth_dev, *mut libc::FILE) -> c_int>;
pub type VdevProbe = unsafe extern "C" fn(*mut rte_vdev_device) -> c_int;

impl eth_dev_ops {
    /// A table in which ethdev finds nothing: every operation answers -ENOTSUP.
    pub const EMPTY: Self = {
        // SAFETY: all fields are optional function pointers, for which null is `None`.
        unsafe { core::mem::zeroed() }
    };
}

/// Links of a TAILQ entry. `previous` points at the `next` of the entry before, or at the head.
#[repr(C)]
pub struct TailqEntry<T> {
    pub next: *mut T,
    pub previous: *mut *mut T,
}

#[repr(C)]
pub struct rte_driver {
    pub next: TailqEntry<rte_driver>,
    pub name: *const c_char,
    pub alias: *const c_char,
}

#[repr(C)]
pub struct rte_device {
    pub next: TailqEntry<rte_device>,
    pub name: *const c_char,
    pub bus_info: *const c_char,
    pub driver: *const rte_driver,
    pub bus: *const c_void,
    pub numa_node: c_int,
    pub devargs: *mut rte_devargs,
}

#[repr(C)]
pub struct rte_vdev_device {
    pub next: TailqEntry<rte_vdev_device>,
    pub device: rte_device,
}

#[repr(C)]
pub struct rte_vdev_driver {
    pub next: TailqEntry<rte_vdev_driver>,
    pub driver: rte_driver,
    pub probe: Option<VdevProbe>,
    pub remove: Option<VdevProbe>,
    pub dma_map: Unused,
    pub dma_unmap: Unused,
    pub drv_flags: u32,
}

layout!(rte_driver, size 32, align 8 { next @ 0, name @ 16, alias @ 24 });
layout!(rte_device, size 64, align 8 {
    name @ 16, bus_info @ 24, driver @ 32, bus @ 40, numa_node @ 48, devargs @ 56,
});
layout!(rte_vdev_device, size 80, align 8 { next @ 0, device @ 16 });
layout!(rte_vdev_driver, size 88, align 8 {
    next @ 0, driver @ 16, probe @ 48, remove @ 56, dma_map @ 64, dma_unmap @ 72, drv_flags @ 80,
});

/// The part of a port that all processes share. Only `rte_eth_conf` changes between the lines.
#[repr(C, align(64))]
pub struct rte_eth_dev_data {
    pub name: [c_char; 64],
    pub rx_queues: *mut *mut c_void,
    pub tx_queues: *mut *mut c_void,
    pub nb_rx_queues: u16,
    pub nb_tx_queues: u16,
    _sriov: [u8; 6],
    pub dev_private: *mut c_void,
    /// `struct rte_eth_link`, which ethdev exchanges as one word.
    pub dev_link: u64,
    pub dev_conf: rte_eth_conf,
    pub mtu: u16,
    pub min_rx_buf_size: u32,
    pub rx_mbuf_alloc_failed: u64,
    pub mac_addrs: *mut rte_ether_addr,
    _mac_pool_sel: [u64; 128],
    _hash_mac_addrs: *mut rte_ether_addr,
    pub port_id: u16,
    /// Bits: promiscuous, scattered_rx, all_multicast, dev_started, lro, dev_configured,
    /// flow_configured.
    pub flags: u8,
    pub rx_queue_state: [u8; 1024],
    pub tx_queue_state: [u8; 1024],
    pub dev_flags: u32,
    pub numa_node: c_int,
    _rest: [u8; 600],
}

/// A packet buffer; the same in all lines. Unions of the header are one plain word here.
#[repr(C, align(64))]
pub struct rte_mbuf {
    pub buf_addr: *mut c_void,
    pub buf_iova: u64,
    pub data_off: u16,
    pub refcnt: u16,
    pub nb_segs: u16,
    pub port: u16,
    pub ol_flags: u64,
    pub packet_type: u32,
    pub pkt_len: u32,
    pub data_len: u16,
    pub vlan_tci: u16,
    pub hash: [u32; 2],
    pub vlan_tci_outer: u16,
    pub buf_len: u16,
    pub pool: *mut rte_mempool,
    pub next: *mut rte_mbuf,
    pub tx_offload: u64,
    pub shinfo: *mut rte_mbuf_ext_shared_info,
    pub priv_size: u16,
    pub timesync: u16,
    pub dynfield1: [u32; 9],
}

layout!(rte_mbuf, size 128, align 64 {
    buf_addr @ 0, buf_iova @ 8, data_off @ 16, refcnt @ 18, nb_segs @ 20, port @ 22, ol_flags @ 24,
    packet_type @ 32, pkt_len @ 36, data_len @ 40, vlan_tci @ 42, hash @ 44, vlan_tci_outer @ 52,
    buf_len @ 54, pool @ 56, next @ 64, tx_offload @ 72, shinfo @ 80, priv_size @ 88,
    timesync @ 90, dynfield1 @ 92,
});

unsafe extern "C" {
    pub static mut rte_eth_devices: [rte_eth_dev; super::sys::RTE_MAX_ETHPORTS as usize];

    pub fn rte_eth_dev_allocate(name: *const c_char) -> *mut rte_eth_dev;
    pub fn rte_eth_dev_allocated(name: *const c_char) -> *mut rte_eth_dev;
    pub fn rte_eth_dev_attach_secondary(name: *const c_char) -> *mut rte_eth_dev;
    pub fn rte_eth_dev_probing_finish(dev: *mut rte_eth_dev);
    pub fn rte_eth_dev_release_port(dev: *mut rte_eth_dev) -> c_int;
    pub fn rte_eth_dev_callback_process(
        dev: *mut rte_eth_dev,
        event: rte_eth_event_type,
        answer: *mut c_void,
    ) -> c_int;

    pub fn rte_vdev_register(driver: *mut rte_vdev_driver);
}
