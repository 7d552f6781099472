/* SPDX-License-Identifier: BSD-3-Clause */
/* Our public header means what DPDK's means. Most of it is proved when this program compiles. */
#include "lib/check.h"

#include <stdint.h>
#include <string.h>

#include "../include/rte_eth_vhost.h"
#include "header_facts.h"

bool cxx_event_enabled(const struct rte_eth_vhost_queue_event *event);

static void
same_layout(void)
{
	const struct header_facts *ours = &facts_of_ours, *dpdk = &facts_of_dpdk;

	CHECK(ours->size == dpdk->size && ours->size == 4, "%zu and %zu", ours->size, dpdk->size);
	CHECK(ours->alignment == dpdk->alignment, "%zu and %zu", ours->alignment, dpdk->alignment);
	CHECK(memcmp(ours, dpdk, sizeof(*ours)) == 0, "members differ");
}

static void
same_in_cxx(void)
{
	const struct rte_eth_vhost_queue_event event = {.queue_id = 7, .rx = true, .enable = true};
	const struct rte_eth_vhost_queue_event other = {.queue_id = 7, .rx = true, .enable = false};

	CHECK(cxx_event_enabled(&event) && !cxx_event_enabled(&other), "C++ reads another struct");
}

int
main(void)
{
	run_case("the event's layout is that of DPDK's header", same_layout, 5);
	run_case("C++ sees the same event", same_in_cxx, 5);
	return report();
}
