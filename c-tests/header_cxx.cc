// SPDX-License-Identifier: BSD-3-Clause
// Our header as C++, before and after DPDK's own declarations of nothing: it stands alone.
#include "../include/rte_eth_vhost.h"
#include "../include/rte_eth_vhost.h"

#include <type_traits>

static_assert(std::is_same<decltype(&rte_eth_vhost_get_queue_event),
			   int (*)(uint16_t, struct rte_eth_vhost_queue_event *)>::value,
	      "rte_eth_vhost_get_queue_event");
static_assert(std::is_same<decltype(&rte_eth_vhost_get_vid_from_port_id), int (*)(uint16_t)>::value,
	      "rte_eth_vhost_get_vid_from_port_id");
static_assert(std::is_standard_layout<rte_eth_vhost_queue_event>::value &&
		      sizeof(rte_eth_vhost_queue_event) == 4,
	      "rte_eth_vhost_queue_event");

// The names are C names: these link against the plugin's symbols, called from header.c.
extern "C" bool cxx_event_enabled(const rte_eth_vhost_queue_event *event);

extern "C" bool
cxx_event_enabled(const rte_eth_vhost_queue_event *event)
{
	return event->rx && event->enable && event->queue_id == 7;
}
