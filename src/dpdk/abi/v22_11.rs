//! Layouts and signatures of DPDK 22.11.

use core::ffi::{c_int, c_uint, c_void};

use super::{
    Burst, BurstModeGet, DescriptorStatus, DevInfosGet, DevOp, FwVersionGet, GetMonitorAddr,
    LinkUpdate, MacAddrSet, MtuSet, PrivDump, PtypesSet, QueueOp, QueueRelease, RxQueueSetup,
    RxqInfoGet, TxDoneCleanup, TxQueueSetup, TxqInfoGet, Unused, VlanOffloadSet, XstatsGet,
    XstatsGetNames, rte_device, rte_eth_dev_data,
};
use crate::dpdk::sys::{rte_eth_conf, rte_eth_dev_info, rte_eth_stats, rte_intr_handle};
/// `stats_get`: the queues' counters are part of the port's.
pub type StatsGet = Option<unsafe extern "C" fn(*mut rte_eth_dev, *mut rte_eth_stats) -> c_int>;
/// `rx_queue_count`: buffers that wait in a queue.
pub type RxQueueCount = Option<unsafe extern "C" fn(*mut c_void) -> u32>;
/// `dev_supported_ptypes_get`: a list that ends with 0.
pub type SupportedPtypesGet = Option<unsafe extern "C" fn(*mut rte_eth_dev) -> *const u32>;

/// One port, private to the process.
#[repr(C, align(64))]
pub struct rte_eth_dev {
    pub rx_pkt_burst: Burst,
    pub tx_pkt_burst: Burst,
    pub tx_pkt_prepare: Burst,
    pub rx_queue_count: RxQueueCount,
    pub rx_descriptor_status: DescriptorStatus,
    pub tx_descriptor_status: DescriptorStatus,
    pub data: *mut rte_eth_dev_data,
    pub process_private: *mut c_void,
    pub dev_ops: *const eth_dev_ops,
    pub device: *mut rte_device,
    pub intr_handle: *mut rte_intr_handle,
    pub link_intr_cbs: [*mut c_void; 2],
    pub post_rx_burst_cbs: [*mut c_void; 1024],
    pub pre_tx_burst_cbs: [*mut c_void; 1024],
    pub state: c_uint,
    pub security_ctx: *mut c_void,
}

layout!(rte_eth_dev, size 16512, align 64 {
    rx_pkt_burst @ 0,
    tx_pkt_burst @ 8,
    tx_pkt_prepare @ 16,
    rx_queue_count @ 24,
    rx_descriptor_status @ 32,
    tx_descriptor_status @ 40,
    data @ 48,
    process_private @ 56,
    dev_ops @ 64,
    device @ 72,
    intr_handle @ 80,
    link_intr_cbs @ 88,
    post_rx_burst_cbs @ 104,
    pre_tx_burst_cbs @ 8296,
    state @ 16488,
    security_ctx @ 16496,
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
    _gap2: [Unused; 1],
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
    pub rx_burst_mode_get: BurstModeGet,
    pub tx_burst_mode_get: BurstModeGet,
    pub fw_version_get: FwVersionGet,
    pub dev_supported_ptypes_get: SupportedPtypesGet,
    pub dev_ptypes_set: PtypesSet,
    _gap6: [Unused; 3],
    pub vlan_offload_set: VlanOffloadSet,
    _gap7: [Unused; 1],
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
    _gap8: [Unused; 49],
    pub get_monitor_addr: GetMonitorAddr,
    _gap9: [Unused; 6],
    pub eth_dev_priv_dump: PrivDump,
    _gap10: [Unused; 8],
}

layout!(eth_dev_ops, size 904, align 8 {
    dev_configure @ 0,
    dev_start @ 8,
    dev_stop @ 16,
    dev_close @ 40,
    link_update @ 56,
    promiscuous_enable @ 72,
    promiscuous_disable @ 80,
    allmulticast_enable @ 88,
    allmulticast_disable @ 96,
    mac_addr_set @ 120,
    mtu_set @ 136,
    stats_get @ 144,
    stats_reset @ 152,
    xstats_get @ 160,
    xstats_reset @ 168,
    xstats_get_names @ 176,
    dev_infos_get @ 192,
    rxq_info_get @ 200,
    txq_info_get @ 208,
    rx_burst_mode_get @ 216,
    tx_burst_mode_get @ 224,
    fw_version_get @ 232,
    dev_supported_ptypes_get @ 240,
    dev_ptypes_set @ 248,
    vlan_offload_set @ 280,
    rx_queue_start @ 296,
    rx_queue_stop @ 304,
    tx_queue_start @ 312,
    tx_queue_stop @ 320,
    rx_queue_setup @ 328,
    rx_queue_release @ 336,
    rx_queue_intr_enable @ 344,
    rx_queue_intr_disable @ 352,
    tx_queue_setup @ 360,
    tx_queue_release @ 368,
    tx_done_cleanup @ 376,
    get_monitor_addr @ 776,
    eth_dev_priv_dump @ 832,
});

layout!(rte_eth_dev_data, size 6144, align 64 {
    rx_queues @ 64,
    tx_queues @ 72,
    nb_rx_queues @ 80,
    nb_tx_queues @ 82,
    dev_private @ 96,
    dev_link @ 104,
    dev_conf @ 112,
    mtu @ 2384,
    mac_addrs @ 2400,
    port_id @ 3440,
    rx_queue_state @ 3443,
    tx_queue_state @ 4467,
    dev_flags @ 5492,
    numa_node @ 5496,
    flags @ 3442,
});
layout!(rte_eth_conf, size 2272, align 8 {});
layout!(rte_eth_stats, size 704, align 8 {});
layout!(rte_eth_dev_info, size 376, align 8 {
    driver_name @ 8,
    max_rx_pktlen @ 36,
    max_rx_queues @ 44,
    max_tx_queues @ 46,
    max_mac_addrs @ 48,
    rx_offload_capa @ 72,
    tx_offload_capa @ 80,
});
