/* SPDX-License-Identifier: BSD-3-Clause */
#define _GNU_SOURCE /* dladdr */
#include "loopback.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <rte_bus_vdev.h>
#include <rte_eal.h>
#include <rte_errno.h>

#define CACHE 256

void start_eal(const struct options *options)
{
	char cores[32], main_core[16];
	char *args[24];
	int count = 0;
	snprintf(cores, sizeof(cores), "%d,%d", options->control_core, options->measure_core);
	snprintf(main_core, sizeof(main_core), "%d", options->control_core);
	args[count++] = "loopback";
	args[count++] = "--no-pci";
	args[count++] = "--no-telemetry";
	args[count++] = "--log-level=error";
	args[count++] = "--iova-mode=va";
	args[count++] = "-l";
	args[count++] = cores;
	/* The driver's own threads go to processors that are no lcore, or else to the main lcore's. */
	args[count++] = "--main-lcore";
	args[count++] = main_core;
	if (getenv("NET_VHOST_NO_HUGE") != NULL) {
		args[count++] = "--no-huge";
		args[count++] = "--no-shconf";
		args[count++] = "-m";
		args[count++] = "512";
	} else {
		args[count++] = "--in-memory";
		args[count++] = "--single-file-segments";
	}
	if (options->plugin != NULL) {
		args[count++] = "-d";
		args[count++] = (char *)options->plugin;
	}
	if (rte_eal_init(count, args) < 0)
		die("EAL: %s", rte_strerror(rte_errno));
}

uint64_t deadline_in(double seconds)
{
	return rte_rdtsc() + (uint64_t)(seconds * (double)rte_get_tsc_hz());
}

void check_deadline(uint64_t deadline, const char *what)
{
	if (rte_rdtsc() > deadline)
		die("%s", what);
}

static struct rte_mempool *make_pool(const char *name, unsigned int size, bool large)
{
	uint16_t room = large ? RTE_PKTMBUF_HEADROOM + 9600 : RTE_MBUF_DEFAULT_BUF_SIZE;
	struct rte_mempool *pool =
		rte_pktmbuf_pool_create(name, size, CACHE, 0, room, (int)rte_socket_id());
	if (pool == NULL)
		die("%s: %s", name, rte_strerror(rte_errno));
	return pool;
}

static uint16_t start_port(const char *name, const struct options *options, struct rte_mempool *pool,
			   bool checksums, bool tags)
{
	struct rte_eth_conf conf = { 0 };
	struct rte_eth_dev_info info;
	uint16_t port;
	int error;
	if (rte_eth_dev_get_port_by_name(name, &port) != 0 || rte_eth_dev_info_get(port, &info) != 0)
		die("%s: no such port", name);
	if (checksums) {
		conf.rxmode.offloads = RTE_ETH_RX_OFFLOAD_UDP_CKSUM & info.rx_offload_capa;
		conf.txmode.offloads = RTE_ETH_TX_OFFLOAD_UDP_CKSUM & info.tx_offload_capa;
	}
	if (tags) {
		conf.rxmode.offloads |= RTE_ETH_RX_OFFLOAD_VLAN_STRIP;
		conf.txmode.offloads |= RTE_ETH_TX_OFFLOAD_VLAN_INSERT;
	}
	error = rte_eth_dev_configure(port, (uint16_t)options->queues, (uint16_t)options->queues, &conf);
	for (uint16_t queue = 0; error == 0 && queue < options->queues; queue++) {
		uint16_t ring = (uint16_t)options->ring;
		error = rte_eth_rx_queue_setup(port, queue, ring, SOCKET_ID_ANY, NULL, pool);
		if (error == 0)
			error = rte_eth_tx_queue_setup(port, queue, ring, SOCKET_ID_ANY, NULL);
	}
	if (error == 0)
		error = rte_eth_dev_start(port);
	if (error != 0)
		die("%s: %s", name, rte_strerror(-error));
	return port;
}

/* Both drivers have the same name; only the address of the burst function tells them apart. */
static void print_driver(uint16_t port)
{
	Dl_info info;
	if (dladdr((void *)rte_eth_fp_ops[port].rx_pkt_burst, &info) == 0)
		die("who serves the port?");
	printf("driver path=%s\n", info.dli_fname);
	fflush(stdout);
}

void start_ports(struct bench *bench)
{
	const struct options *options = &bench->options;
	bool jumbo = false;
	for (unsigned int i = 0; i < options->cell_count; i++)
		jumbo |= options->cells[i].size > 1518;
	bool large = jumbo && !options->mergeable;
	unsigned int segments = jumbo && options->mergeable ? 5 : 1;
	/* Receive rings are full of buffers, and a send ring keeps what was sent until it needs the room. */
	unsigned int held = options->ring * options->queues * (1 + segments) + options->parked * segments;
	/* Small pools stay in the caches, as far as the drivers let them. */
	bench->vhost_pool = make_pool("port", 2047, large);
	bench->guest_pool = make_pool("guest", rte_align32pow2(held + 1024) - 1, large);

	char args[256];
	if (options->vdev != NULL && rte_eal_hotplug_add("vdev", options->vdev, "") != 0)
		die("%s: %s", options->vdev, rte_strerror(rte_errno));
	snprintf(args, sizeof(args), "iface=%s,queues=%u%s", options->socket, options->queues,
		 options->devargs);
	if (rte_eal_hotplug_add("vdev", "net_vhost0", args) != 0)
		die("net_vhost0: %s", rte_strerror(rte_errno));
	bool offered = options->checksum >= UNUSED && options->checksum != SOFTWARE;
	bench->vhost = start_port("net_vhost0", options, bench->vhost_pool, offered,
				  options->checksum == VLAN);
	print_driver(bench->vhost);

	snprintf(args, sizeof(args),
		 "path=%s,queues=%u,queue_size=%u,mrg_rxbuf=%d,packed_vq=%d,in_order=%d,vectorized=%d,"
		 "mac=02:04:06:08:0a:0c",
		 options->socket, options->queues, options->ring, options->mergeable, options->packed,
		 options->in_order, options->vectorized);
	if (rte_eal_hotplug_add("vdev", "net_virtio_user0", args) != 0)
		die("net_virtio_user0: %s", rte_strerror(rte_errno));
	bench->guest = start_port("net_virtio_user0", options, bench->guest_pool,
				  options->checksum >= UNUSED && options->checksum != UNSUMMED, false);
	struct rte_eth_link link = { 0 };
	uint64_t deadline = deadline_in(10);
	while (rte_eth_link_get_nowait(bench->vhost, &link) == 0 && !link.link_status) {
		check_deadline(deadline, "the link stays down");
		usleep(1000);
	}
}
