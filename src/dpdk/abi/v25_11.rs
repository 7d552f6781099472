//! Layouts and signatures of DPDK 25.11.

use core::ffi::{c_int, c_uint, c_void};

use super::{
    Burst, BurstModeGet, DescriptorStatus, DevInfosGet, DevOp, FwVersionGet, GetMonitorAddr,
    LinkUpdate, MacAddrSet, MtuSet, PrivDump, PtypesSet, QueueOp, QueueRelease, RxQueueSetup,
    RxqInfoGet, TxDoneCleanup, TxQueueCount, TxQueueSetup, TxqInfoGet, Unused, VlanOffloadSet,
    XstatsGet, XstatsGetNames, rte_device, rte_eth_dev_data,
};
use crate::dpdk::sys::{rte_eth_conf, rte_eth_dev_info, rte_eth_stats, rte_intr_handle};
/// `stats_get`: the queues' counters have their own struct, null when only totals are wanted.
pub type StatsGet = Option<
    unsafe extern "C" fn(*mut rte_eth_dev, *mut rte_eth_stats, *mut eth_queue_stats) -> c_int,
>;
/// `rx_queue_count`: buffers that wait in a queue; negative is an error.
pub type RxQueueCount = Option<unsafe extern "C" fn(*mut c_void) -> c_int>;
/// `dev_supported_ptypes_get`: a list and its length.
pub type SupportedPtypesGet =
    Option<unsafe extern "C" fn(*mut rte_eth_dev, *mut usize) -> *const u32>;

/// Counters of the first 16 queues of each direction.
#[repr(C)]
pub struct eth_queue_stats {
    pub q_ipackets: [u64; 16],
    pub q_opackets: [u64; 16],
    pub q_ibytes: [u64; 16],
    pub q_obytes: [u64; 16],
    pub q_errors: [u64; 16],
}

layout!(eth_queue_stats, size 640, align 8 {
    q_ipackets @ 0, q_opackets @ 128, q_ibytes @ 256, q_obytes @ 384, q_errors @ 512,
});

/// One port, private to the process.
#[repr(C, align(64))]
pub struct rte_eth_dev {
    pub rx_pkt_burst: Burst,
    pub tx_pkt_burst: Burst,
    pub tx_pkt_prepare: Burst,
    pub rx_queue_count: RxQueueCount,
    pub rx_descriptor_status: DescriptorStatus,
    pub tx_queue_count: TxQueueCount,
    pub tx_descriptor_status: DescriptorStatus,
    pub recycle_tx_mbufs_reuse: Unused,
    pub recycle_rx_descriptors_refill: Unused,
    pub data: *mut rte_eth_dev_data,
    pub process_private: *mut c_void,
    pub dev_ops: *const eth_dev_ops,
    pub flow_fp_ops: *const c_void,
    pub device: *mut rte_device,
    pub intr_handle: *mut rte_intr_handle,
    pub link_intr_cbs: [*mut c_void; 2],
    pub post_rx_burst_cbs: [*mut c_void; 1024],
    pub pre_tx_burst_cbs: [*mut c_void; 1024],
    pub state: c_uint,
    pub security_ctx: *mut c_void,
}

layout!(rte_eth_dev, size 16576, align 64 {
    rx_pkt_burst @ 0,
    tx_pkt_burst @ 8,
    tx_pkt_prepare @ 16,
    rx_queue_count @ 24,
    rx_descriptor_status @ 32,
    tx_queue_count @ 40,
    tx_descriptor_status @ 48,
    recycle_tx_mbufs_reuse @ 56,
    recycle_rx_descriptors_refill @ 64,
    data @ 72,
    process_private @ 80,
    dev_ops @ 88,
    flow_fp_ops @ 96,
    device @ 104,
    intr_handle @ 112,
    link_intr_cbs @ 120,
    post_rx_burst_cbs @ 136,
    pre_tx_burst_cbs @ 8328,
    state @ 16520,
    security_ctx @ 16528,
});

/// What a driver does for ethdev. Entries that this driver leaves empty have no name here.
#[repr(C)]
pub struct eth_dev_ops {
    pub dev_configure: DevOp,
    pub dev_start: DevOp,
    pub dev_stop: DevOp,
    _gap0: [Unused; 2],
    pub dev_close: DevOp,
    _gap1: [Unused; 1],
    pub link_update: LinkUpdate,
    _gap2: [Unused; 4],
    pub promiscuous_enable: DevOp,
    pub promiscuous_disable: DevOp,
    pub allmulticast_enable: DevOp,
    pub allmulticast_disable: DevOp,
    _gap3: [Unused; 2],
    pub mac_addr_set: MacAddrSet,
    _gap4: [Unused; 1],
    pub mtu_set: MtuSet,
    pub stats_get: StatsGet,
    pub stats_reset: DevOp,
    pub xstats_get: XstatsGet,
    pub xstats_reset: DevOp,
    pub xstats_get_names: XstatsGetNames,
    _gap5: [Unused; 1],
    pub dev_infos_get: DevInfosGet,
    pub rxq_info_get: RxqInfoGet,
    pub txq_info_get: TxqInfoGet,
    _gap6: [Unused; 1],
    pub rx_burst_mode_get: BurstModeGet,
    pub tx_burst_mode_get: BurstModeGet,
    pub fw_version_get: FwVersionGet,
    pub dev_supported_ptypes_get: SupportedPtypesGet,
    pub dev_ptypes_set: PtypesSet,
    _gap7: [Unused; 3],
    pub vlan_offload_set: VlanOffloadSet,
    _gap8: [Unused; 1],
    pub rx_queue_start: QueueOp,
    pub rx_queue_stop: QueueOp,
    pub tx_queue_start: QueueOp,
    pub tx_queue_stop: QueueOp,
    pub rx_queue_setup: RxQueueSetup,
    pub rx_queue_release: QueueRelease,
    pub rx_queue_intr_enable: QueueOp,
    pub rx_queue_intr_disable: QueueOp,
    pub tx_queue_setup: TxQueueSetup,
    pub tx_queue_release: QueueRelease,
    pub tx_done_cleanup: TxDoneCleanup,
    _gap9: [Unused; 53],
    pub get_monitor_addr: GetMonitorAddr,
    _gap10: [Unused; 6],
    pub eth_dev_priv_dump: PrivDump,
    _gap11: [Unused; 11],
}

layout!(eth_dev_ops, size 992, align 8 {
    dev_configure @ 0,
    dev_start @ 8,
    dev_stop @ 16,
    dev_close @ 40,
    link_update @ 56,
    promiscuous_enable @ 96,
    promiscuous_disable @ 104,
    allmulticast_enable @ 112,
    allmulticast_disable @ 120,
    mac_addr_set @ 144,
    mtu_set @ 160,
    stats_get @ 168,
    stats_reset @ 176,
    xstats_get @ 184,
    xstats_reset @ 192,
    xstats_get_names @ 200,
    dev_infos_get @ 216,
    rxq_info_get @ 224,
    txq_info_get @ 232,
    rx_burst_mode_get @ 248,
    tx_burst_mode_get @ 256,
    fw_version_get @ 264,
    dev_supported_ptypes_get @ 272,
    dev_ptypes_set @ 280,
    vlan_offload_set @ 312,
    rx_queue_start @ 328,
    rx_queue_stop @ 336,
    tx_queue_start @ 344,
    tx_queue_stop @ 352,
    rx_queue_setup @ 360,
    rx_queue_release @ 368,
    rx_queue_intr_enable @ 376,
    rx_queue_intr_disable @ 384,
    tx_queue_setup @ 392,
    tx_queue_release @ 400,
    tx_done_cleanup @ 408,
    get_monitor_addr @ 840,
    eth_dev_priv_dump @ 896,
});

layout!(rte_eth_dev_data, size 6144, align 64 {
    rx_queues @ 64,
    tx_queues @ 72,
    nb_rx_queues @ 80,
    nb_tx_queues @ 82,
    dev_private @ 96,
    dev_link @ 104,
    dev_conf @ 112,
    mtu @ 2392,
    mac_addrs @ 2408,
    port_id @ 3448,
    rx_queue_state @ 3451,
    tx_queue_state @ 4475,
    dev_flags @ 5500,
    numa_node @ 5504,
    flags @ 3450,
});
layout!(rte_eth_conf, size 2280, align 8 {});
layout!(rte_eth_stats, size 64, align 8 {});
layout!(rte_eth_dev_info, size 376, align 8 {
    driver_name @ 8,
    max_rx_pktlen @ 40,
    max_rx_queues @ 48,
    max_tx_queues @ 50,
    max_mac_addrs @ 52,
    rx_offload_capa @ 72,
    tx_offload_capa @ 80,
});
