/* SPDX-License-Identifier: BSD-3-Clause */
/* Basic and extended statistics: names, order, and that they equal what was sent. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/frame.h"
#include "lib/guest.h"
#include "lib/pair.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_ether.h>
#include <rte_version.h>

/* The block of each queue, in the order of the DPDK line. */
static const char *const suffixes[] = {
	"good_packets",
	"good_bytes",
	"multicast_packets",
	"broadcast_packets",
	"undersize_packets",
	"size_64_packets",
	"size_65_127_packets",
	"size_128_255_packets",
	"size_256_511_packets",
	"size_512_1023_packets",
	"size_1024_1518_packets",
	"size_1519_max_packets",
	"guest_notifications",
#if RTE_VERSION >= RTE_VERSION_NUM(23, 11, 0, 0)
	"guest_notifications_offloaded",
	"guest_notifications_error",
	"guest_notifications_suppressed",
#endif
	"iotlb_hits",
	"iotlb_misses",
	"inflight_submitted",
	"inflight_completed",
#if RTE_VERSION >= RTE_VERSION_NUM(24, 3, 0, 0)
	"mbuf_alloc_failed",
#endif
};

/* ethdev's own eight, then three for each Rx queue and two for each Tx queue. */
#define GENERIC_XSTATS 8
#define MAX_XSTATS 1024

static struct pair pair;
static struct rte_eth_xstat_name names[MAX_XSTATS];
static struct rte_eth_xstat values[MAX_XSTATS];

static void
expect_block(unsigned int start, const char *kind, unsigned int queue)
{
	for (unsigned int i = 0; i < RTE_DIM(suffixes); i++) {
		char expected[RTE_ETH_XSTATS_NAME_SIZE];

		snprintf(expected, sizeof(expected), "%s_q%u_%s", kind, queue, suffixes[i]);
		CHECK(strcmp(names[start + i].name, expected) == 0, "%u is %s, expected %s",
		      start + i, names[start + i].name, expected);
	}
}

/* Names and values of a port with `queues` queues; returns how many there are. */
static int
expect_names(uint16_t port, unsigned int queues)
{
	unsigned int start = GENERIC_XSTATS + 5 * queues;
	int count = rte_eth_xstats_get_names(port, names, MAX_XSTATS);

	if (!CHECK(count >= (int)(start + 2 * queues * RTE_DIM(suffixes)), "%d names", count))
		return count;
	CHECK(rte_eth_xstats_get(port, values, MAX_XSTATS) == count, "names without values");
	for (unsigned int queue = 0; queue < queues; queue++) {
		expect_block(start + queue * RTE_DIM(suffixes), "rx", queue);
		expect_block(start + (queues + queue) * RTE_DIM(suffixes), "tx", queue);
	}
	for (int i = 0; i < count; i++) {
		for (int j = 0; j < i; j++)
			CHECK(strcmp(names[i].name, names[j].name) != 0, "%s twice", names[i].name);
		CHECK(plugin_is_stock() || values[i].id == (uint64_t)i, "%s has id %" PRIu64,
		      names[i].name, values[i].id);
	}
	return count;
}

static void
names_when_connected(void)
{
	REQUIRE(pair_open(&pair, &(struct pair_options){.queues = 2}), "no pair");
	expect_names(pair.backend, 2);
	pair_close(&pair);
}

static void
names_at_any_time(void)
{
	struct port_config config;
	int count;

	if (beyond_stock())
		return;
	REQUIRE(pair_open_backend(&pair, &(struct pair_options){.queues = 3}), "no backend");
	count = expect_names(pair.backend, 3);
	REQUIRE(pair_open_frontend(&pair), "no frontend");
	CHECK(expect_names(pair.backend, 3) == count, "the connection changed the names");
	rte_eth_dev_stop(pair.backend);
	CHECK(expect_names(pair.backend, 3) == count, "stop changed the names");
	pair_close_frontend(&pair);
	CHECK(expect_names(pair.backend, 3) == count, "the hang-up changed the names");
	config = pair_backend_config(&pair);
	config.queues = 1;
	CHECK(port_start(pair.backend, &config) == 0, "not reconfigured");
	expect_names(pair.backend, 1);
	pair_close(&pair);
}

static void
lookup_by_name(void)
{
	uint64_t id = 0, value = 1;

	if (beyond_stock())
		return;
	REQUIRE(pair_open(&pair, &(struct pair_options){.queues = 2}), "no pair");
	CHECK(pair_move(&pair, &(struct flow){.queue = 1,
					      .first_length = 100,
					      .last_length = 100,
					      .count = 9}) == 9,
	      "lost frames");
	CHECK(rte_eth_xstats_get_id_by_name(pair.backend, "rx_q1_size_65_127_packets", &id) == 0,
	      "no such name");
	CHECK(rte_eth_xstats_get_by_id(pair.backend, &id, &value, 1) == 1 && value == 9,
	      "value %" PRIu64, value);
	pair_close(&pair);
}

struct size_class {
	const char *suffix;
	uint32_t first, last;
};

static const struct size_class classes[] = {
	{"undersize_packets", 14, 63},
	{"size_64_packets", 64, 64},
	{"size_65_127_packets", 65, 127},
	{"size_128_255_packets", 128, 255},
	{"size_256_511_packets", 256, 511},
	{"size_512_1023_packets", 512, 1023},
	{"size_1024_1518_packets", 1024, 1518},
	{"size_1519_max_packets", 1519, 4000},
};

static void
expect_xstat(const char *kind, const char *suffix, uint64_t expected)
{
	char name[RTE_ETH_XSTATS_NAME_SIZE];

	snprintf(name, sizeof(name), "%s_%s", kind, suffix);
	CHECK(xstat(pair.backend, name) == expected, "%s is %" PRIu64 ", expected %" PRIu64, name,
	      xstat(pair.backend, name), expected);
}

static void
count_one_direction(enum direction direction, const char *kind)
{
	uint64_t packets = 0, bytes = 0;

	for (unsigned int i = 0; i < RTE_DIM(classes); i++) {
		/* The limits of a class and something between, 3 * (i + 1) frames in all. */
		for (unsigned int round = 0; round <= i; round++) {
			const uint32_t lengths[] = {classes[i].first,
						    (classes[i].first + classes[i].last) / 2,
						    classes[i].last};

			for (unsigned int j = 0; j < RTE_DIM(lengths); j++) {
				const struct flow flow = {.direction = direction,
							  .first_length = lengths[j],
							  .last_length = lengths[j],
							  .count = 1};

				CHECK(pair_move(&pair, &flow) == 1, "lost a frame");
				bytes += lengths[j];
				packets++;
			}
		}
	}
	for (unsigned int i = 0; i < RTE_DIM(classes); i++)
		expect_xstat(kind, classes[i].suffix, 3 * (i + 1));
	expect_xstat(kind, "good_packets", packets);
	expect_xstat(kind, "good_bytes", bytes);
	expect_xstat(kind, "multicast_packets", 0);
	expect_xstat(kind, "broadcast_packets", 0);
}

static void
size_classes(void)
{
	struct rte_eth_stats stats;

	REQUIRE(pair_open(&pair, &(struct pair_options){0}), "no pair");
	count_one_direction(TO_HOST, "rx_q0");
	count_one_direction(TO_GUEST, "tx_q0");
	/* virtio-user asks for no notification. */
	expect_xstat("rx_q0", "guest_notifications", 0);
	expect_xstat("tx_q0", "guest_notifications", 0);
	CHECK(rte_eth_stats_get(pair.backend, &stats) == 0, "no stats");
	CHECK(stats.ipackets == xstat(pair.backend, "rx_q0_good_packets") &&
		      stats.ibytes == xstat(pair.backend, "rx_q0_good_bytes"),
	      "received %" PRIu64 " packets, %" PRIu64 " bytes", stats.ipackets, stats.ibytes);
	CHECK(stats.opackets == xstat(pair.backend, "tx_q0_good_packets") &&
		      stats.obytes == xstat(pair.backend, "tx_q0_good_bytes"),
	      "sent %" PRIu64 " packets, %" PRIu64 " bytes", stats.opackets, stats.obytes);
	CHECK(stats.imissed == 0 && stats.ierrors == 0 && stats.oerrors == 0 &&
		      stats.rx_nombuf == 0,
	      "errors were counted");
	pair_close(&pair);
}

static void
pass_to(enum direction direction, const char *address)
{
	struct rte_mempool *sender =
		direction == TO_HOST ? pair.frontend_pool : pair.backend_pool;
	struct rte_mbuf *mbuf = frame_mbuf(sender, 100, 1, 0);

	REQUIRE(mbuf != NULL, "no mbuf");
	rte_ether_unformat_addr(address, rte_pktmbuf_mtod(mbuf, struct rte_ether_addr *));
	mbuf = pair_pass(&pair, direction, 0, mbuf);
	CHECK(mbuf != NULL, "lost the frame to %s", address);
	rte_pktmbuf_free(mbuf);
}

static void
group_addresses(void)
{
	REQUIRE(pair_open(&pair, &(struct pair_options){0}), "no pair");
	for (int direction = TO_HOST; direction <= TO_GUEST; direction++) {
		const char *kind = direction == TO_HOST ? "rx_q0" : "tx_q0";

		pass_to(direction, "ff:ff:ff:ff:ff:ff");
		pass_to(direction, "01:00:5e:00:00:01");
		pass_to(direction, "33:33:00:00:00:01");
		pass_to(direction, "02:00:00:00:00:01");
		expect_xstat(kind, "broadcast_packets", 1);
		expect_xstat(kind, "multicast_packets", 2);
		expect_xstat(kind, "good_packets", 4);
	}
	pair_close(&pair);
}

static void
move_some(unsigned int count)
{
	for (int direction = TO_HOST; direction <= TO_GUEST; direction++)
		CHECK(pair_move(&pair, &(struct flow){.direction = direction,
						      .first_length = 64,
						      .last_length = 64,
						      .count = count}) == count,
		      "lost frames");
}

static void
resets_are_apart(void)
{
	struct rte_eth_stats stats;

	REQUIRE(pair_open(&pair, &(struct pair_options){0}), "no pair");
	move_some(10);
	CHECK(rte_eth_stats_reset(pair.backend) == 0, "stats_reset");
	rte_eth_stats_get(pair.backend, &stats);
	CHECK(stats.ipackets == 0 && stats.ibytes == 0 && stats.opackets == 0 && stats.obytes == 0,
	      "basic statistics stay");
	expect_xstat("rx_q0", "good_packets", 10);
	expect_xstat("tx_q0", "size_64_packets", 10);
	move_some(5);
	CHECK(rte_eth_xstats_reset(pair.backend) == 0, "xstats_reset");
	expect_xstat("rx_q0", "good_packets", 0);
	expect_xstat("tx_q0", "size_64_packets", 0);
	rte_eth_stats_get(pair.backend, &stats);
	CHECK(stats.ipackets == 5 && stats.opackets == 5, "%" PRIu64 " and %" PRIu64,
	      stats.ipackets, stats.opackets);
	pair_close(&pair);
}

static void
counters_survive(void)
{
	struct rte_eth_stats stats;

	REQUIRE(pair_open(&pair, &(struct pair_options){0}), "no pair");
	move_some(10);
	rte_eth_dev_stop(pair.backend);
	REQUIRE(rte_eth_dev_start(pair.backend) == 0, "restart");
	move_some(10);
	pair_close_frontend(&pair);
	REQUIRE(pair_open_frontend(&pair), "no second frontend");
	move_some(10);
	rte_eth_stats_get(pair.backend, &stats);
	CHECK(stats.ipackets == 30 && stats.opackets == 30, "%" PRIu64 " and %" PRIu64,
	      stats.ipackets, stats.opackets);
	if (!plugin_is_stock()) {
		expect_xstat("rx_q0", "good_packets", 30);
		expect_xstat("tx_q0", "good_packets", 30);
	}
	pair_close(&pair);
}

static void
totals_of_eight_queues(void)
{
	struct rte_eth_stats stats;

	REQUIRE(pair_open(&pair, &(struct pair_options){.queues = 8}), "no pair");
	for (uint16_t queue = 0; queue < 8; queue++) {
		const struct flow flow = {
			.queue = queue, .first_length = 64, .last_length = 64, .count = 1u + queue};

		CHECK(pair_move(&pair, &flow) == flow.count, "lost frames");
	}
	rte_eth_stats_get(pair.backend, &stats);
	CHECK(stats.ipackets == 36 && stats.ibytes == 36 * 64, "%" PRIu64 " packets",
	      stats.ipackets);
	for (unsigned int queue = 0; queue < 8; queue++)
		CHECK(stats.q_ipackets[queue] == 1 + queue, "queue %u: %" PRIu64, queue,
		      stats.q_ipackets[queue]);
	pair_close(&pair);
}

/* ethdev has places for 16 queues; the totals know no such limit. */
static void
totals_beyond_sixteen_queues(void)
{
	const uint16_t queue = 19;
	struct ring *to_guest, *to_host;
	struct rte_eth_stats stats;
	struct rte_mbuf *mbuf;
	struct guest guest;

	if (beyond_stock())
		return;
	REQUIRE(guest_open(&guest, &(struct guest_options){.queues = queue + 1}), "no guest");
	to_guest = &guest.frontend.rings[2 * queue];
	to_host = &guest.frontend.rings[2 * queue + 1];

	guest_put_frame(&guest, DATA_GPA, 100, 1);
	ring_describe(to_host, 0, DATA_GPA, HEADER + 100, 0, 0);
	ring_offer(to_host, 0);
	mbuf = receive_one(guest.port, queue, 2000);
	CHECK(mbuf != NULL, "nothing received");
	rte_pktmbuf_free(mbuf);

	ring_describe(to_guest, 0, DATA_GPA, HEADER + 200, DESC_WRITE, 0);
	ring_offer(to_guest, 0);
	mbuf = frame_mbuf(guest.pool, 200, 2, 0);
	WAIT_FOR(rte_eth_tx_burst(guest.port, queue, &mbuf, 1) == 1, 2000);

	CHECK(rte_eth_stats_get(guest.port, &stats) == 0, "no stats");
	CHECK(stats.ipackets == 1 && stats.ibytes == 100, "received %" PRIu64 " packets, %" PRIu64
	      " bytes", stats.ipackets, stats.ibytes);
	CHECK(stats.opackets == 1 && stats.obytes == 200, "sent %" PRIu64 " packets, %" PRIu64
	      " bytes", stats.opackets, stats.obytes);
	guest_close(&guest);
}

static void
queue_count(void)
{
	struct rte_mbuf *mbufs[40];
	unsigned int taken = 0;

	REQUIRE(pair_open(&pair, &(struct pair_options){0}), "no pair");
	CHECK(rte_eth_rx_queue_count(pair.backend, 0) == 0, "something waits");
	for (unsigned int i = 0; i < RTE_DIM(mbufs); i++)
		mbufs[i] = frame_mbuf(pair.frontend_pool, 100, i, 0);
	CHECK(rte_eth_tx_burst(pair.frontend, 0, mbufs, RTE_DIM(mbufs)) == RTE_DIM(mbufs),
	      "not sent");
	CHECK(rte_eth_rx_queue_count(pair.backend, 0) == RTE_DIM(mbufs), "%d wait",
	      rte_eth_rx_queue_count(pair.backend, 0));
	WAIT_FOR((taken += rte_eth_rx_burst(pair.backend, 0, mbufs + taken,
					    (uint16_t)(30 - taken))) == 30, 2000);
	CHECK(rte_eth_rx_queue_count(pair.backend, 0) == 10, "%d wait after 30",
	      rte_eth_rx_queue_count(pair.backend, 0));
	WAIT_FOR((taken += rte_eth_rx_burst(pair.backend, 0, mbufs + taken,
					    (uint16_t)(40 - taken))) == 40, 2000);
	CHECK(rte_eth_rx_queue_count(pair.backend, 0) == 0, "something waits after all");
	rte_pktmbuf_free_bulk(mbufs, taken);
	pair_close(&pair);
}

int
main(void)
{
	eal_start("stats");
	after_each_case(vdev_detach_all);
	run_case("xstats have their names and order", names_when_connected, 5);
	run_case("xstats answer at any time, under the same names", names_at_any_time, 10);
	run_case("xstats can be looked up by name", lookup_by_name, 5);
	run_case("size classes count what was moved", size_classes, 10);
	run_case("multicast and broadcast are counted apart", group_addresses, 10);
	run_case("basic and extended statistics are reset apart", resets_are_apart, 10);
	run_case("counters survive stop and reconnect", counters_survive, 10);
	run_case("totals sum all queues", totals_of_eight_queues, 10);
	run_case("totals sum more queues than ethdev has places for", totals_beyond_sixteen_queues,
		 10);
	run_case("rx_queue_count tells what waits", queue_count, 10);
	return eal_end();
}
