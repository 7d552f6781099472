/* What bindgen reads of DPDK's public headers. clang checks here, against the headers that are
 * installed, the layouts and settings that src/dpdk/abi repeats in Rust. */

#include <rte_config.h>

#include <stddef.h>
#include <stdint.h>

#include <rte_dev.h>
#include <rte_devargs.h>
#include <rte_eal.h>
#include <rte_epoll.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_interrupts.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_malloc.h>
#include <rte_mbuf.h>
#include <rte_mbuf_dyn.h>
#include <rte_memory.h>
#include <rte_mempool.h>
#include <rte_net.h>
#include <rte_power_intrinsics.h>
#include <rte_telemetry.h>
#include <rte_thread.h>
#include <rte_vect.h>
#include <rte_vfio.h>
#include <rte_version.h>

/* A macro's value as a constant of a known type; build.rs takes the prefix off again. */
#define CONSTANT(type, name) static const type constant_##name = name

CONSTANT(uint16_t, RTE_MAX_ETHPORTS);
CONSTANT(uint32_t, RTE_MAX_LCORE);
CONSTANT(uint32_t, RTE_MAX_QUEUES_PER_PORT);
CONSTANT(uint32_t, RTE_MEMPOOL_CACHE_MAX_SIZE);
CONSTANT(uint16_t, RTE_PKTMBUF_HEADROOM);
CONSTANT(int32_t, SOCKET_ID_ANY);
CONSTANT(int32_t, RTE_VFIO_DEFAULT_CONTAINER_FD);
CONSTANT(uint32_t, RTE_MEMSEG_FLAG_DO_NOT_FREE);

CONSTANT(uint32_t, RTE_LOG_ERR);
CONSTANT(uint32_t, RTE_LOG_WARNING);
CONSTANT(uint32_t, RTE_LOG_NOTICE);
CONSTANT(uint32_t, RTE_LOG_INFO);
CONSTANT(uint32_t, RTE_LOG_DEBUG);

CONSTANT(uint32_t, RTE_ETH_SPEED_NUM_10G);
CONSTANT(uint64_t, RTE_ETH_RX_OFFLOAD_VLAN_STRIP);
CONSTANT(uint64_t, RTE_ETH_RX_OFFLOAD_IPV4_CKSUM);
CONSTANT(uint64_t, RTE_ETH_RX_OFFLOAD_UDP_CKSUM);
CONSTANT(uint64_t, RTE_ETH_RX_OFFLOAD_TCP_CKSUM);
CONSTANT(uint64_t, RTE_ETH_RX_OFFLOAD_TCP_LRO);
CONSTANT(uint64_t, RTE_ETH_RX_OFFLOAD_SCATTER);
CONSTANT(uint64_t, RTE_ETH_TX_OFFLOAD_VLAN_INSERT);
CONSTANT(uint64_t, RTE_ETH_TX_OFFLOAD_IPV4_CKSUM);
CONSTANT(uint64_t, RTE_ETH_TX_OFFLOAD_UDP_CKSUM);
CONSTANT(uint64_t, RTE_ETH_TX_OFFLOAD_TCP_CKSUM);
CONSTANT(uint64_t, RTE_ETH_TX_OFFLOAD_SCTP_CKSUM);
CONSTANT(uint64_t, RTE_ETH_TX_OFFLOAD_TCP_TSO);
CONSTANT(uint64_t, RTE_ETH_TX_OFFLOAD_UDP_TSO);
CONSTANT(uint64_t, RTE_ETH_TX_OFFLOAD_MULTI_SEGS);
CONSTANT(uint8_t, RTE_ETH_QUEUE_STATE_STOPPED);
CONSTANT(uint8_t, RTE_ETH_QUEUE_STATE_STARTED);
CONSTANT(int32_t, RTE_ETH_RX_DESC_AVAIL);
CONSTANT(int32_t, RTE_ETH_RX_DESC_DONE);
CONSTANT(int32_t, RTE_ETH_RX_DESC_UNAVAIL);
CONSTANT(int32_t, RTE_ETH_TX_DESC_FULL);
CONSTANT(int32_t, RTE_ETH_TX_DESC_DONE);
CONSTANT(int32_t, RTE_ETH_TX_DESC_UNAVAIL);
CONSTANT(uint64_t, RTE_ETH_BURST_FLAG_PER_QUEUE);
CONSTANT(uint32_t, RTE_ETH_DEV_INTR_LSC);
CONSTANT(uint32_t, RTE_ETH_DEV_AUTOFILL_QUEUE_XSTATS);

CONSTANT(uint64_t, RTE_MBUF_F_RX_VLAN);
CONSTANT(uint64_t, RTE_MBUF_F_RX_VLAN_STRIPPED);
CONSTANT(uint64_t, RTE_MBUF_F_RX_IP_CKSUM_BAD);
CONSTANT(uint64_t, RTE_MBUF_F_RX_IP_CKSUM_GOOD);
CONSTANT(uint64_t, RTE_MBUF_F_RX_IP_CKSUM_NONE);
CONSTANT(uint64_t, RTE_MBUF_F_RX_IP_CKSUM_MASK);
CONSTANT(uint64_t, RTE_MBUF_F_RX_L4_CKSUM_BAD);
CONSTANT(uint64_t, RTE_MBUF_F_RX_L4_CKSUM_GOOD);
CONSTANT(uint64_t, RTE_MBUF_F_RX_L4_CKSUM_NONE);
CONSTANT(uint64_t, RTE_MBUF_F_RX_L4_CKSUM_MASK);
CONSTANT(uint64_t, RTE_MBUF_F_RX_LRO);
CONSTANT(uint64_t, RTE_MBUF_F_TX_VLAN);
CONSTANT(uint64_t, RTE_MBUF_F_TX_IPV4);
CONSTANT(uint64_t, RTE_MBUF_F_TX_IPV6);
CONSTANT(uint64_t, RTE_MBUF_F_TX_IP_CKSUM);
CONSTANT(uint64_t, RTE_MBUF_F_TX_L4_MASK);
CONSTANT(uint64_t, RTE_MBUF_F_TX_TCP_CKSUM);
CONSTANT(uint64_t, RTE_MBUF_F_TX_UDP_CKSUM);
CONSTANT(uint64_t, RTE_MBUF_F_TX_SCTP_CKSUM);
CONSTANT(uint64_t, RTE_MBUF_F_TX_TCP_SEG);
CONSTANT(uint64_t, RTE_MBUF_F_TX_UDP_SEG);
CONSTANT(uint64_t, RTE_MBUF_F_TX_TUNNEL_MASK);
CONSTANT(uint64_t, RTE_MBUF_F_TX_OUTER_IPV4);
CONSTANT(uint64_t, RTE_MBUF_F_TX_OUTER_IPV6);
CONSTANT(uint64_t, RTE_MBUF_F_TX_OUTER_IP_CKSUM);
CONSTANT(uint64_t, RTE_MBUF_F_TX_OUTER_UDP_CKSUM);
CONSTANT(uint64_t, RTE_MBUF_F_INDIRECT);
CONSTANT(uint64_t, RTE_MBUF_F_EXTERNAL);
CONSTANT(uint32_t, RTE_PKTMBUF_POOL_F_PINNED_EXT_BUF);

CONSTANT(uint32_t, RTE_PTYPE_L2_ETHER);
CONSTANT(uint32_t, RTE_PTYPE_L2_ETHER_VLAN);
CONSTANT(uint32_t, RTE_PTYPE_L2_ETHER_QINQ);
CONSTANT(uint32_t, RTE_PTYPE_L2_ETHER_MPLS);
CONSTANT(uint32_t, RTE_PTYPE_L3_IPV4);
CONSTANT(uint32_t, RTE_PTYPE_L3_IPV4_EXT);
CONSTANT(uint32_t, RTE_PTYPE_L3_IPV6);
CONSTANT(uint32_t, RTE_PTYPE_L3_IPV6_EXT);
CONSTANT(uint32_t, RTE_PTYPE_ALL_MASK);
CONSTANT(uint32_t, RTE_PTYPE_L2_MASK);
CONSTANT(uint32_t, RTE_PTYPE_L3_MASK);
CONSTANT(uint32_t, RTE_PTYPE_L4_MASK);
CONSTANT(uint32_t, RTE_PTYPE_L4_TCP);
CONSTANT(uint32_t, RTE_PTYPE_L4_UDP);
CONSTANT(uint32_t, RTE_PTYPE_L4_SCTP);
CONSTANT(uint32_t, RTE_PTYPE_L4_FRAG);

CONSTANT(uint32_t, RTE_INTR_INSTANCE_F_PRIVATE);
CONSTANT(uint32_t, RTE_INTR_INSTANCE_F_SHARED);
CONSTANT(int32_t, RTE_INTR_VEC_RXTX_OFFSET);
CONSTANT(uint32_t, RTE_MAX_RXTX_INTR_VEC_ID);

/* Settings of DPDK's build that move fields of driver-private structs. */
_Static_assert(RTE_MAX_QUEUES_PER_PORT == 1024, "rte_eth_dev has another size");
#ifdef RTE_ETHDEV_QUEUE_STAT_CNTRS /* always 16 since 25.11 */
_Static_assert(RTE_ETHDEV_QUEUE_STAT_CNTRS == 16, "rte_eth_stats has another size");
#endif
_Static_assert(RTE_CACHE_LINE_SIZE == 64, "structs have another alignment");
#ifdef RTE_LIBRTE_MEMPOOL_DEBUG
#error "DPDK was built with RTE_LIBRTE_MEMPOOL_DEBUG: objects carry cookies that this driver leaves stale"
#endif
#ifdef RTE_LIBRTE_MEMPOOL_STATS
#error "DPDK was built with RTE_LIBRTE_MEMPOOL_STATS, which this driver does not keep"
#endif

/* rte_mbuf is written in Rust (abi/mod.rs), since bindgen names its unions differently per line. */
#define FIELD_AT(type, field, offset) \
	_Static_assert(offsetof(struct type, field) == offset, #type "." #field " moved")

FIELD_AT(rte_mbuf, buf_addr, 0);
FIELD_AT(rte_mbuf, buf_iova, 8);
FIELD_AT(rte_mbuf, data_off, 16);
FIELD_AT(rte_mbuf, refcnt, 18);
FIELD_AT(rte_mbuf, nb_segs, 20);
FIELD_AT(rte_mbuf, port, 22);
FIELD_AT(rte_mbuf, ol_flags, 24);
FIELD_AT(rte_mbuf, packet_type, 32);
FIELD_AT(rte_mbuf, pkt_len, 36);
FIELD_AT(rte_mbuf, data_len, 40);
FIELD_AT(rte_mbuf, vlan_tci, 42);
FIELD_AT(rte_mbuf, hash, 44);
FIELD_AT(rte_mbuf, vlan_tci_outer, 52);
FIELD_AT(rte_mbuf, buf_len, 54);
FIELD_AT(rte_mbuf, pool, 56);
FIELD_AT(rte_mbuf, next, 64);
FIELD_AT(rte_mbuf, tx_offload, 72);
FIELD_AT(rte_mbuf, shinfo, 80);
FIELD_AT(rte_mbuf, priv_size, 88);
_Static_assert(sizeof(struct rte_mbuf) == 128, "rte_mbuf has another size");

_Static_assert(sizeof(struct rte_eth_link) == 8, "rte_eth_link has another size");
FIELD_AT(rte_eth_link, link_speed, 0);
