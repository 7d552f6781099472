/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Cost of net_vhost's bursts, in core cycles per packet, one core, warm caches.
 *
 * One process has a net_vhost port and a virtio-user port on its socket. One lcore sends the same
 * packets round and round:
 *
 *     virtio-user tx_burst -> net_vhost rx_burst (timed) -> net_vhost tx_burst (timed)
 *                          -> virtio-user rx_burst
 *
 * Only the two net_vhost calls are timed, and an empty pair of time stamps is taken off. Time stamps
 * count a clock that does not change; the core's own clock is measured between batches by a chain of
 * dependent multiplications, 3 cycles each. At the end every byte of every packet is compared.
 *
 * usage: loopback PLUGIN|stock SIZE BURST RING MERGEABLE PACKED IN_ORDER SECONDS
 * prints one line of JSON.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <x86intrin.h>

#include <rte_bus_vdev.h>
#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#define MAX_BURST 256
#define BATCHES 4000

static uint64_t begin_stamp(void)
{
	_mm_lfence();
	uint64_t now = __rdtsc();
	_mm_lfence();
	return now;
}

static uint64_t end_stamp(void)
{
	unsigned int cpu;
	uint64_t now = __rdtscp(&cpu);
	_mm_lfence();
	return now;
}

/* Core cycles per tick of the time stamp counter, now. */
static double clock_ratio(void)
{
	enum { CHAIN = 3000 };
	uint64_t best = UINT64_MAX;
	for (int turn = 0; turn < 3; turn++) {
		uint64_t value = 3;
		uint64_t start = begin_stamp();
		for (int i = 0; i < CHAIN; i++)
			__asm__ volatile("imul %0, %0" : "+r"(value));
		uint64_t ticks = end_stamp() - start;
		if (ticks < best)
			best = ticks;
	}
	return 3.0 * CHAIN / (double)best;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static void die(const char *what)
{
	fprintf(stderr, "loopback: %s: %s\n", what, rte_strerror(rte_errno));
	exit(1);
}

static uint16_t start_port(const char *name, struct rte_mempool *pool, uint16_t ring)
{
	struct rte_eth_conf conf = { 0 };
	uint16_t port;
	if (rte_eth_dev_get_port_by_name(name, &port) != 0)
		die(name);
	if (rte_eth_dev_configure(port, 1, 1, &conf) != 0)
		die("configure");
	if (rte_eth_rx_queue_setup(port, 0, ring, SOCKET_ID_ANY, NULL, pool) != 0)
		die("rx queue");
	if (rte_eth_tx_queue_setup(port, 0, ring, SOCKET_ID_ANY, NULL) != 0)
		die("tx queue");
	if (rte_eth_dev_start(port) != 0)
		die("start");
	return port;
}

/* Byte `at` of packet `id`. The first 14 bytes are an Ethernet header to a unicast address. */
static uint8_t pattern(unsigned int id, unsigned int at)
{
	return at < 14 ? (uint8_t)(at * 2) : (uint8_t)(id * 31 + at * 7);
}

static bool same(const struct rte_mbuf *packet, unsigned int size)
{
	if (packet->pkt_len != size)
		return false;
	uint8_t id = 0;
	unsigned int at = 0;
	for (const struct rte_mbuf *seg = packet; seg != NULL; seg = seg->next) {
		const uint8_t *data = rte_pktmbuf_mtod(seg, const uint8_t *);
		for (unsigned int i = 0; i < seg->data_len; i++, at++) {
			if (at == 14)
				id = (uint8_t)(data[i] - 14 * 7);
			uint8_t want = at < 14 ? (uint8_t)(at * 2) : (uint8_t)(id + at * 7);
			if (data[i] != want)
				return false;
		}
	}
	return at == size;
}

int main(int argc, char **argv)
{
	if (argc != 9) {
		fprintf(stderr, "usage: %s PLUGIN|stock SIZE BURST RING MERGEABLE PACKED IN_ORDER SECONDS\n",
			argv[0]);
		return 2;
	}
	const char *plugin = argv[1];
	unsigned int size = atoi(argv[2]), burst = atoi(argv[3]), ring = atoi(argv[4]);
	int mergeable = atoi(argv[5]), packed = atoi(argv[6]), in_order = atoi(argv[7]);
	double seconds = atof(argv[8]);
	if (burst == 0 || burst > MAX_BURST || size < 60)
		return 2;

	char prefix[64], path[64], args[256];
	snprintf(prefix, sizeof(prefix), "loopback%d", getpid());
	snprintf(path, sizeof(path), "/run/%s.sock", prefix);
	char *eal[24];
	int n = 0;
	eal[n++] = argv[0];
	eal[n++] = "--no-pci";
	eal[n++] = "--no-telemetry";
	eal[n++] = "--log-level=error";
	eal[n++] = "-l";
	eal[n++] = "0";
	if (getenv("LOOPBACK_NO_HUGE") != NULL) {
		eal[n++] = "--no-huge";
		eal[n++] = "--no-shconf";
		eal[n++] = "-m";
		eal[n++] = "512";
	} else {
		eal[n++] = "--in-memory";
		eal[n++] = "--single-file-segments";
	}
	if (strcmp(plugin, "stock") != 0) {
		eal[n++] = "-d";
		eal[n++] = (char *)plugin;
	}
	if (rte_eal_init(n, eal) < 0)
		die("EAL");
	struct rte_mempool *pool =
		rte_pktmbuf_pool_create("pool", 4095, 256, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
	struct rte_mempool *peer_pool =
		rte_pktmbuf_pool_create("peer", 8191, 256, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
	if (pool == NULL || peer_pool == NULL)
		die("mempool");

	snprintf(args, sizeof(args), "iface=%s", path);
	if (rte_eal_hotplug_add("vdev", "net_vhost0", args) != 0)
		die("net_vhost0");
	uint16_t vhost = start_port("net_vhost0", pool, ring);
	snprintf(args, sizeof(args),
		 "path=%s,queue_size=%u,mrg_rxbuf=%d,packed_vq=%d,in_order=%d,mac=02:04:06:08:0a:0c", path,
		 ring, mergeable, packed, in_order);
	if (rte_eal_hotplug_add("vdev", "net_virtio_user0", args) != 0)
		die("net_virtio_user0");
	uint16_t guest = start_port("net_virtio_user0", peer_pool, ring);
	struct rte_eth_link link = { 0 };
	for (int i = 0; i < 300 && !link.link_status; i++) {
		rte_eth_link_get_nowait(vhost, &link);
		usleep(10000);
	}
	if (!link.link_status)
		die("no link");

	struct rte_mbuf *packets[MAX_BURST], *between[MAX_BURST];
	for (unsigned int i = 0; i < burst; i++) {
		packets[i] = rte_pktmbuf_alloc(peer_pool);
		struct rte_mbuf *last = packets[i];
		for (unsigned int at = 0; at < size; at++) {
			if (rte_pktmbuf_tailroom(last) == 0) {
				struct rte_mbuf *more = rte_pktmbuf_alloc(peer_pool);
				last->next = more;
				last = more;
				packets[i]->nb_segs++;
			}
			rte_pktmbuf_mtod(last, uint8_t *)[last->data_len++] = pattern(i, at);
			packets[i]->pkt_len++;
		}
	}

	static double rx_cost[BATCHES], tx_cost[BATCHES];
	int batches = 0;
	uint64_t overhead = UINT64_MAX;
	for (int i = 0; i < 1000; i++) {
		uint64_t start = begin_stamp(), ticks = end_stamp() - start;
		if (ticks < overhead)
			overhead = ticks;
	}
	uint64_t moved = 0, lost = 0, empty_ticks = 0, empty_polls = 0;
	uint64_t deadline = rte_rdtsc() + (uint64_t)(seconds * rte_get_tsc_hz());
	unsigned int have = burst;
	unsigned int per_batch = 4096 / burst + 1;
	bool warm = false;
	while (batches < BATCHES && rte_rdtsc() < deadline) {
		uint64_t rx_ticks = 0, tx_ticks = 0, rx_count = 0, tx_count = 0;
		double ratio = clock_ratio();
		for (unsigned int turn = 0; turn < per_batch; turn++) {
			unsigned int sent = 0;
			for (int tries = 0; sent < have && tries < 1000; tries++)
				sent += rte_eth_tx_burst(guest, 0, packets + sent, have - sent);
			uint64_t start = begin_stamp();
			unsigned int got = rte_eth_rx_burst(vhost, 0, between, burst);
			rx_ticks += end_stamp() - start - overhead;
			rx_count += got;
			if (got == 0)
				continue;
			start = begin_stamp();
			unsigned int back = rte_eth_tx_burst(vhost, 0, between, got);
			tx_ticks += end_stamp() - start - overhead;
			tx_count += back;
			for (unsigned int i = back; i < got; i++, lost++)
				rte_pktmbuf_free(between[i]);
			unsigned int received = 0;
			for (int tries = 0; received < back && tries < 1000; tries++)
				received += rte_eth_rx_burst(guest, 0, packets + received, back - received);
			have = received;
			moved += received;
			if (have < burst)
				break;
		}
		if (have < burst) {
			fprintf(stderr, "loopback: %u of %u packets came back\n", have, burst);
			return 1;
		}
		double now = clock_ratio();
		/* A batch during which the clock moved tells nothing. */
		if (warm && now / ratio < 1.03 && ratio / now < 1.03 && rx_count && tx_count) {
			rx_cost[batches] = (double)rx_ticks * ratio / rx_count;
			tx_cost[batches] = (double)tx_ticks * ratio / tx_count;
			batches++;
		}
		warm = true;
		for (int i = 0; i < 16; i++) {
			uint64_t start = begin_stamp();
			unsigned int got = rte_eth_rx_burst(vhost, 0, between, burst);
			empty_ticks += (uint64_t)((end_stamp() - start - overhead) * ratio);
			empty_polls++;
			if (got != 0)
				return 1;
		}
	}
	unsigned int bad = 0;
	for (unsigned int i = 0; i < have; i++)
		bad += !same(packets[i], size);
	if (bad != 0) {
		fprintf(stderr, "loopback: %u of %u packets differ\n", bad, have);
		return 1;
	}
	if (batches == 0) {
		fprintf(stderr, "loopback: no quiet batch\n");
		return 1;
	}
	qsort(rx_cost, batches, sizeof(double), by_value);
	qsort(tx_cost, batches, sizeof(double), by_value);
	printf("{\"size\":%u,\"burst\":%u,\"ring\":%u,\"mergeable\":%d,\"packed\":%d,\"in_order\":%d,"
	       "\"rx_p10\":%.1f,\"rx_median\":%.1f,\"tx_p10\":%.1f,\"tx_median\":%.1f,\"empty\":%.1f,"
	       "\"batches\":%d,\"packets\":%" PRIu64 "}\n",
	       size, burst, ring, mergeable, packed, in_order, rx_cost[batches / 10], rx_cost[batches / 2],
	       tx_cost[batches / 10], tx_cost[batches / 2], (double)empty_ticks / empty_polls, batches, moved);
	fflush(stdout);
	for (unsigned int i = 0; i < have; i++)
		rte_pktmbuf_free(packets[i]);
	rte_eth_dev_stop(guest);
	rte_eal_hotplug_remove("vdev", "net_virtio_user0");
	rte_eth_dev_stop(vhost);
	rte_eal_hotplug_remove("vdev", "net_vhost0");
	rte_eal_cleanup();
	unlink(path);
	return 0;
}
