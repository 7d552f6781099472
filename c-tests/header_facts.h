/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What one rte_eth_vhost.h says, as numbers. `header_ours.c` includes ours and `header_dpdk.c` the
 * one that is installed with DPDK; each then includes this file, and `header.c` compares.
 */
#ifndef NET_VHOST_HEADER_FACTS_H
#define NET_VHOST_HEADER_FACTS_H

#include <stddef.h>

struct header_facts {
	size_t size, alignment;
	size_t queue_id_offset, queue_id_size;
	size_t rx_offset, rx_size;
	size_t enable_offset, enable_size;
};

extern const struct header_facts facts_of_ours, facts_of_dpdk;

#ifdef FACTS_NAME
const struct header_facts FACTS_NAME = {
	.size = sizeof(struct rte_eth_vhost_queue_event),
	.alignment = _Alignof(struct rte_eth_vhost_queue_event),
	.queue_id_offset = offsetof(struct rte_eth_vhost_queue_event, queue_id),
	.queue_id_size = sizeof(((struct rte_eth_vhost_queue_event *)0)->queue_id),
	.rx_offset = offsetof(struct rte_eth_vhost_queue_event, rx),
	.rx_size = sizeof(((struct rte_eth_vhost_queue_event *)0)->rx),
	.enable_offset = offsetof(struct rte_eth_vhost_queue_event, enable),
	.enable_size = sizeof(((struct rte_eth_vhost_queue_event *)0)->enable),
};

/* Members by type, and prototypes by exact type: a difference does not compile. */
_Static_assert(_Generic(((struct rte_eth_vhost_queue_event *)0)->queue_id, uint16_t: 1, default: 0),
	       "queue_id");
_Static_assert(_Generic(((struct rte_eth_vhost_queue_event *)0)->rx, _Bool: 1, default: 0), "rx");
_Static_assert(_Generic(((struct rte_eth_vhost_queue_event *)0)->enable, _Bool: 1, default: 0),
	       "enable");
_Static_assert(_Generic(&rte_eth_vhost_get_queue_event,
			int (*)(uint16_t, struct rte_eth_vhost_queue_event *): 1,
			default: 0),
	       "rte_eth_vhost_get_queue_event");
_Static_assert(_Generic(&rte_eth_vhost_get_vid_from_port_id, int (*)(uint16_t): 1, default: 0),
	       "rte_eth_vhost_get_vid_from_port_id");
#endif

#endif
