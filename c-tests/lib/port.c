/* SPDX-License-Identifier: BSD-3-Clause */
#include "port.h"
#include "check.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_dev.h>

#define MAX_VDEVS 16
#define LINK_WAIT_MS 3000

static char attached[MAX_VDEVS][RTE_DEV_NAME_MAX_LEN];

static char *
find_vdev(const char *name)
{
	for (unsigned int i = 0; i < MAX_VDEVS; i++) {
		if (strcmp(attached[i], name) == 0)
			return attached[i];
	}
	return NULL;
}

uint16_t
vdev_attach(const char *name, const char *format, ...)
{
	char arguments[PATH_MAX];
	char *slot;
	va_list list;
	uint16_t port;

	va_start(list, format);
	vsnprintf(arguments, sizeof(arguments), format, list);
	va_end(list);
	if (rte_eal_hotplug_add("vdev", name, arguments) != 0)
		return NO_PORT;
	slot = find_vdev("");
	if (slot != NULL)
		snprintf(slot, RTE_DEV_NAME_MAX_LEN, "%s", name);
	return rte_eth_dev_get_port_by_name(name, &port) == 0 ? port : NO_PORT;
}

int
vdev_detach(const char *name)
{
	char *slot = find_vdev(name);
	uint16_t port;

	/* ethdev refuses to close a port that runs. */
	if (rte_eth_dev_get_port_by_name(name, &port) == 0)
		rte_eth_dev_stop(port);
	if (slot != NULL)
		slot[0] = '\0';
	return rte_eal_hotplug_remove("vdev", name);
}

void
vdev_detach_all(void)
{
	/* The last one first: a frontend leaves before its backend. */
	for (unsigned int i = MAX_VDEVS; i-- > 0;) {
		char name[RTE_DEV_NAME_MAX_LEN];

		if (attached[i][0] == '\0')
			continue;
		memcpy(name, attached[i], sizeof(name));
		vdev_detach(name);
	}
}

int
port_configure(uint16_t port, const struct port_config *config)
{
	uint16_t descriptors = config->descriptors != 0 ? config->descriptors : 256;
	struct rte_eth_conf conf = {
		.rxmode = {.offloads = config->rx_offloads, .mtu = config->mtu},
		.txmode = {.offloads = config->tx_offloads},
		.intr_conf = {.rxq = config->rx_interrupts},
	};
	int result = rte_eth_dev_configure(port, config->queues, config->queues, &conf);

	for (uint16_t queue = 0; result == 0 && queue < config->queues; queue++) {
		result = rte_eth_rx_queue_setup(port, queue, descriptors, SOCKET_ID_ANY, NULL,
						config->pool);
		if (result == 0)
			result = rte_eth_tx_queue_setup(port, queue, descriptors, SOCKET_ID_ANY,
							NULL);
	}
	return result;
}

int
port_start(uint16_t port, const struct port_config *config)
{
	int result = port_configure(port, config);

	return result != 0 ? result : rte_eth_dev_start(port);
}

bool
link_is_up(uint16_t port)
{
	struct rte_eth_link link = {0};

	return rte_eth_link_get_nowait(port, &link) == 0 && link.link_status == RTE_ETH_LINK_UP;
}

bool
wait_for_link(uint16_t port, bool up)
{
	WAIT_FOR(link_is_up(port) == up, LINK_WAIT_MS);
	return link_is_up(port) == up;
}

struct rte_mbuf *
receive_one(uint16_t port, uint16_t queue, unsigned int milliseconds)
{
	struct rte_mbuf *mbuf = NULL;
	uint16_t count = 0;

	/* Behind what it returns, a burst may leave anything in the array. */
	WAIT_FOR((count = rte_eth_rx_burst(port, queue, &mbuf, 1)) == 1, milliseconds);
	return count == 1 ? mbuf : NULL;
}

struct rte_mempool *
make_pool(const char *name, unsigned int count, uint16_t room)
{
	return make_cached_pool(name, count, USUAL_CACHE, room);
}

struct rte_mempool *
make_cached_pool(const char *name, unsigned int count, unsigned int cache, uint16_t room)
{
	return rte_pktmbuf_pool_create(name, count, cache, 0, RTE_PKTMBUF_HEADROOM + room,
				       SOCKET_ID_ANY);
}

static uint64_t
sum_xstats(uint16_t port, const char *text, bool whole_name)
{
	int count = rte_eth_xstats_get_names(port, NULL, 0);
	struct rte_eth_xstat_name *names;
	struct rte_eth_xstat *values;
	uint64_t sum = 0;
	bool found = false;

	if (count <= 0)
		return UINT64_MAX;
	names = calloc((size_t)count, sizeof(*names));
	values = calloc((size_t)count, sizeof(*values));
	if (names != NULL && values != NULL &&
	    rte_eth_xstats_get_names(port, names, (unsigned int)count) == count &&
	    rte_eth_xstats_get(port, values, (unsigned int)count) == count) {
		for (int i = 0; i < count; i++) {
			const char *name = names[i].name;

			if (whole_name ? strcmp(name, text) != 0 : strstr(name, text) == NULL)
				continue;
			sum += values[i].value;
			found = true;
		}
	}
	free(names);
	free(values);
	return found || !whole_name ? sum : UINT64_MAX;
}

uint64_t
xstat(uint16_t port, const char *name)
{
	return sum_xstats(port, name, true);
}

uint64_t
xstat_sum(uint16_t port, const char *part)
{
	return sum_xstats(port, part, false);
}
