/* SPDX-License-Identifier: BSD-3-Clause */
/* Copy engines for rx queues (`dmas=[rxq0@…]`). Every byte and the order are compared, and all mbufs
 * must come back. */
#include "lib/check.h"
#include "lib/dma.h"
#include "lib/eal.h"
#include "lib/frame.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>

#include <rte_epoll.h>
#include <rte_interrupts.h>

/* Frames of a round, all for the engine. */
#define ROUND 32
#define LENGTH 1500

/* The guest sends a round of frames, `seed` and on. */
static bool
send_round(uint32_t seed)
{
	struct rte_mbuf *mbufs[ROUND];
	uint16_t sent;

	for (unsigned int i = 0; i < ROUND; i++) {
		mbufs[i] = frame_mbuf(pair.frontend_pool, LENGTH, seed + i, 0);
		if (!CHECK(mbufs[i] != NULL, "no mbuf"))
			return false;
	}
	sent = rte_eth_tx_burst(pair.frontend, 0, mbufs, ROUND);
	return CHECK(sent == ROUND, "%u were sent", sent);
}

/* Takes what is there of a round of which `from` frames were taken; how many were taken then. */
static unsigned int
take_some(uint32_t seed, unsigned int from)
{
	struct rte_mbuf *mbufs[ROUND];
	uint16_t got = rte_eth_rx_burst(pair.backend, 0, mbufs, (uint16_t)(ROUND - from));

	for (unsigned int i = 0; i < got; i++)
		CHECK(frame_matches(mbufs[i], LENGTH, seed + from + i), "frame %u", from + i);
	rte_pktmbuf_free_bulk(mbufs, got);
	return from + got;
}

static void
take_rest(uint32_t seed, unsigned int from)
{
	WAIT_FOR((from = take_some(seed, from)) == ROUND, SOON_MS);
	CHECK(from == ROUND, "%u of %u arrived", from, ROUND);
}

/* A single burst, and then the application is silent: the guest gets its buffers back, and what was
 * received waits. */
static void
nobody_polls(void)
{
	REQUIRE(skeleton_there(), "no dma_skeleton");
	REQUIRE(open_with_engines((struct pair_options){0}, SKELETON, ""), "no pair");
	for (unsigned int round = 0; round < 20; round++) {
		uint32_t seed = round * ROUND;
		unsigned int got;
		int waiting;

		REQUIRE(send_round(seed), "not sent");
		WAIT_FOR((waiting = rte_eth_rx_queue_count(pair.backend, 0)) == ROUND, SOON_MS);
		CHECK(waiting == ROUND, "%d wait", waiting);
		got = take_some(seed, 0);
		WAIT_FOR(counter(0, "inflight") == 0, SOON_MS);
		CHECK(counter(0, "inflight") == 0, "%" PRIu64 " are under way", counter(0, "inflight"));
		waiting = rte_eth_rx_queue_count(pair.backend, 0);
		CHECK(waiting == (int)(ROUND - got), "%d wait, and %u were taken", waiting, got);
		if (got < ROUND)
			CHECK(rte_eth_rx_descriptor_status(pair.backend, 0, 0) ==
				      RTE_ETH_RX_DESC_DONE,
			      "none is done");
		CHECK(rte_eth_rx_descriptor_status(pair.backend, 0, (uint16_t)(ROUND - got)) !=
			      RTE_ETH_RX_DESC_DONE,
		      "one more is done");
		take_rest(seed, got);
	}
	CHECK(counter(0, "packets") > 0, "no packets");
	expect_engine_worked(0);
	pair_close(&pair);
}

/* Copies are under way whenever the port stops: no mbuf is out then. What was not taken from the ring
 * is still there afterwards, so the flow goes on. */
static void
stop_and_start_under_traffic(void)
{
	struct port_config config;

	REQUIRE(skeleton_there(), "no dma_skeleton");
	REQUIRE(open_with_engines((struct pair_options){0}, SKELETON "+sw", ""), "no pair");
	config = pair_backend_config(&pair);
	for (unsigned int round = 0; round < 30; round++) {
		REQUIRE(send_round(0), "not sent");
		take_some(0, 0);
		if (round % 3 == 2) {
			/* The queue alone. */
			CHECK(rte_eth_dev_rx_queue_stop(pair.backend, 0) == 0, "no queue stop");
			CHECK(rte_mempool_full(pair.backend_pool), "mbufs are out of a stopped queue");
			CHECK(rte_eth_dev_rx_queue_start(pair.backend, 0) == 0, "no queue start");
		} else {
			CHECK(rte_eth_dev_stop(pair.backend) == 0, "no stop");
			CHECK(rte_mempool_full(pair.backend_pool), "mbufs are out of a stopped port");
			if (round % 3 == 0)
				CHECK(rte_eth_dev_start(pair.backend) == 0, "no start");
			else
				CHECK(port_start(pair.backend, &config) == 0, "no start with new queues");
		}
		for (struct rte_mbuf *mbuf; (mbuf = receive_one(pair.backend, 0, 1)) != NULL;)
			rte_pktmbuf_free(mbuf);
		expect_flow(
			(struct flow){.first_length = 1000, .last_length = 1500, .count = 100});
	}
	expect_engine_worked(0);
	pair_close(&pair);
}

/* The frontend leaves while copies are under way: what was taken from it still arrives, whole. */
static void
frontend_leaves(void)
{
	REQUIRE(skeleton_there(), "no dma_skeleton");
	REQUIRE(open_with_engines((struct pair_options){0}, SKELETON, ""), "no pair");
	for (unsigned int round = 0; round < 10; round++) {
		uint64_t taken = xstat(pair.backend, "rx_q0_good_packets");
		unsigned int got, before;

		REQUIRE(send_round(0), "not sent");
		got = take_some(0, 0);
		pair_close_frontend(&pair);
		CHECK(wait_for_link(pair.backend, false), "the link stayed up");
		do {
			before = got;
			got = take_some(0, before);
		} while (got > before && got < ROUND);
		taken = xstat(pair.backend, "rx_q0_good_packets") - taken;
		CHECK(taken == got, "%" PRIu64 " were taken and %u arrived", taken, got);
		CHECK(rte_mempool_full(pair.backend_pool), "mbufs are out without a link");
		REQUIRE(pair_open_frontend(&pair), "no other frontend");
		expect_flow(
			(struct flow){.first_length = 1000, .last_length = 1500, .count = 300});
	}
	expect_engine_worked(0);
	pair_close(&pair);
}

/* Who goes to sleep with copies under way is woken for them. */
static void
nobody_sleeps_over_a_packet(void)
{
	struct pair_options options = {.devargs = ",dmas=[rxq0@dma_skeleton]"};
	struct port_config config;

	REQUIRE(skeleton_there(), "no dma_skeleton");
	REQUIRE(pair_open_backend(&pair, &options), "no backend");
	rte_eth_dev_stop(pair.backend);
	config = pair_backend_config(&pair);
	config.rx_interrupts = true;
	REQUIRE(port_start(pair.backend, &config) == 0, "no Rx interrupts");
	REQUIRE(pair_open_frontend(&pair), "no frontend");
	for (unsigned int round = 0; round < 60; round++) {
		struct pollfd sleeper = {.events = POLLIN};
		bool armed_first = round % 2 == 0;
		unsigned int got = 0;

		sleeper.fd = rte_eth_dev_rx_intr_ctl_q_get_fd(pair.backend, 0);
		/* Nothing waits, nothing was kept. */
		REQUIRE(send_round(0), "not sent");
		if (armed_first)
			CHECK(rte_eth_dev_rx_intr_enable(pair.backend, 0) == 0, "enable");
		got = take_some(0, got);
		if (!armed_first)
			CHECK(rte_eth_dev_rx_intr_enable(pair.backend, 0) == 0, "enable");
		while (got < ROUND) {
			int woken = poll(&sleeper, 1, SOON_MS);

			if (!CHECK(woken == 1, "asleep over %u of %u", ROUND - got, ROUND))
				break;
			CHECK(rte_eth_dev_rx_intr_disable(pair.backend, 0) == 0, "disable");
			got = take_some(0, got);
			CHECK(rte_eth_dev_rx_intr_enable(pair.backend, 0) == 0, "enable");
		}
		CHECK(rte_eth_dev_rx_intr_disable(pair.backend, 0) == 0, "disable");
	}
	expect_engine_worked(0);
	pair_close(&pair);
}

static void
many_queues_and_both_directions_on_one_engine(void)
{
	const struct pair_options options = {
		.queues = 4,
		.devargs = ",dmas=[rxq0-2@dma_skeleton;txq*@dma_skeleton],dmathr=0",
	};

	REQUIRE(skeleton_there(), "no dma_skeleton");
	REQUIRE(pair_open(&pair, &options), "no pair");
	for (unsigned int round = 0; round < 3; round++) {
		for (uint16_t queue = 0; queue < 4; queue++)
			for (enum direction direction = TO_HOST; direction <= TO_GUEST; direction++) {
				struct flow flow = {.direction = direction,
						    .queue = queue,
						    .first_length = 60,
						    .last_length = 1514,
						    .count = 1455,
						    .seed = 1000u * queue};

				CHECK(pair_move(&pair, &flow) == flow.count, "direction %d",
				      direction);
			}
	}
	for (unsigned int queue = 0; queue < 3; queue++)
		expect_engine_worked(queue);
	CHECK(counter(3, "copies") == 0, "rx queue 3 has no engine");
	pair_close(&pair);
}

/* Frames that fit no mbuf come in large buffers, which an engine fills, too. */
static void
large_buffers(void)
{
	REQUIRE(skeleton_there(), "no dma_skeleton");
	REQUIRE(open_with_engines((struct pair_options){0}, SKELETON,
				  ",linear-buffer=1,ext-buffer=1"),
		"no pair");
	for (unsigned int burst = 4; burst <= 16; burst *= 2)
		expect_flow((struct flow){.first_length = 1400,
						  .last_length = 9000,
						  .count = 1000,
						  .burst = burst});
	expect_engine_worked(0);
	pair_close(&pair);
}

/* Fewer mbufs than frames: chains wait in the ring for those that come back. */
static void
small_pool(void)
{
	static struct rte_mbuf *held[65536];
	unsigned int count = 0;

	REQUIRE(skeleton_there(), "no dma_skeleton");
	REQUIRE(open_with_engines((struct pair_options){0}, SKELETON, ""), "no pair");
	while (rte_mempool_avail_count(pair.backend_pool) > ROUND / 2 && count < RTE_DIM(held))
		REQUIRE((held[count++] = rte_pktmbuf_alloc(pair.backend_pool)) != NULL, "no mbuf");
	for (unsigned int round = 0; round < 50; round++) {
		uint32_t seed = round * ROUND;

		REQUIRE(send_round(seed), "not sent");
		take_rest(seed, 0);
	}
	CHECK(xstat(pair.backend, "rx_q0_mbuf_alloc_failed") > 0, "there were always enough");
	rte_pktmbuf_free_bulk(held, count);
	expect_engine_worked(0);
	pair_close(&pair);
}

int
main(void)
{
	eal_start("dma_rx");
	tested = TO_HOST;
	after_each_case(vdev_detach_all);
	if (plugin_is_stock()) {
		printf("1..0 # skipped: stock has no engines\n");
		eal_end();
		return EXIT_SKIPPED;
	}
	run_case("buffers come back when nobody polls", nobody_polls, 30);
	run_case("a port and a queue stop and start under traffic", stop_and_start_under_traffic, 60);
	run_case("a frontend leaves under traffic", frontend_leaves, 60);
	run_case("nobody sleeps over a packet", nobody_sleeps_over_a_packet, 60);
	run_case("one engine serves both directions", many_queues_and_both_directions_on_one_engine,
		 60);
	run_case("long frames come in large buffers", large_buffers, 60);
	run_case("a pool with few mbufs", small_pool, 60);
	run_directionless_cases();
	return eal_end();
}
