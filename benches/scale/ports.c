/* SPDX-License-Identifier: BSD-3-Clause */
#include "scale.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <rte_bus_vdev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

void start_eal(const struct options *options, bool frontends)
{
	char core[16], *args[24];
	int count = 0;
	snprintf(core, sizeof(core), "%d", frontends ? options->control_core : options->measure_core);
	args[count++] = "scale";
	args[count++] = "--no-pci";
	args[count++] = "--no-telemetry";
	/* virtio-user complains that it got no MAC address. */
	args[count++] = frontends ? "--log-level=critical" : "--log-level=error";
	args[count++] = "-l";
	args[count++] = core;
	if (getenv("NET_VHOST_NO_HUGE") != NULL) {
		args[count++] = "--no-huge";
		args[count++] = "--no-shconf";
		args[count++] = "-m";
		args[count++] = "128";
	} else {
		args[count++] = "--in-memory";
		args[count++] = "--single-file-segments";
	}
	if (options->plugin != NULL && !frontends) {
		args[count++] = "-d";
		args[count++] = (char *)options->plugin;
	}
	if (rte_eal_init(count, args) < 0)
		die("EAL: %s", rte_strerror(rte_errno));
}

struct rte_mempool *make_pool(unsigned int size)
{
	struct rte_mempool *pool =
		rte_pktmbuf_pool_create("pool", size, 0, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
	if (pool == NULL)
		die("mempool: %s", rte_strerror(rte_errno));
	return pool;
}

uint16_t port_id(const char *name, unsigned int number)
{
	char full[32];
	uint16_t port;
	snprintf(full, sizeof(full), "%s%u", name, number);
	if (rte_eth_dev_get_port_by_name(full, &port) != 0)
		die("%s: no such port", full);
	return port;
}

void port_open(const struct options *options, unsigned int number, struct rte_mempool *pool)
{
	char name[32], args[128];
	struct rte_eth_conf conf = { .intr_conf.rxq = options->interrupt };
	snprintf(name, sizeof(name), "net_vhost%u", number);
	snprintf(args, sizeof(args), "iface=%s/%u.sock", options->folder, number);
	if (rte_eal_hotplug_add("vdev", name, args) != 0)
		die("%s: %s", name, rte_strerror(rte_errno));
	uint16_t port = port_id("net_vhost", number);
	int error = rte_eth_dev_configure(port, 1, 1, &conf);
	if (error == 0)
		error = rte_eth_rx_queue_setup(port, 0, 256, SOCKET_ID_ANY, NULL, pool);
	if (error == 0)
		error = rte_eth_tx_queue_setup(port, 0, 256, SOCKET_ID_ANY, NULL);
	if (error == 0)
		error = rte_eth_dev_start(port);
	if (error != 0)
		die("%s: %s", name, rte_strerror(-error));
}

void port_close(unsigned int number)
{
	char name[32];
	snprintf(name, sizeof(name), "net_vhost%u", number);
	rte_eth_dev_stop(port_id("net_vhost", number));
	if (rte_eal_hotplug_remove("vdev", name) != 0)
		die("%s does not go: %s", name, rte_strerror(rte_errno));
}

bool port_has_link(unsigned int number)
{
	struct rte_eth_link link = { 0 };
	rte_eth_link_get_nowait(port_id("net_vhost", number), &link);
	return link.link_status;
}
