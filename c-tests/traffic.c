/* SPDX-License-Identifier: BSD-3-Clause */
/* Frames in both directions between a net_vhost port and virtio-user, byte for byte. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/frame.h"
#include "lib/pair.h"

#include <stdio.h>

/* virtio-user drops what it receives without a whole Ethernet header. */
#define SHORTEST_TO_GUEST 14

static struct pair pair;

static void
expect_flow(struct flow flow)
{
	CHECK(pair_move(&pair, &flow) == flow.count, "burst %u, lengths %u to %u, segments of %u",
	      flow.burst, flow.first_length, flow.last_length, flow.segment);
}

/* Every length once, in both directions. */
static void
move_all_lengths(uint32_t longest)
{
	uint32_t first = run_is_slow() ? longest - 200 : 1;

	expect_flow((struct flow){.direction = TO_HOST,
				  .first_length = first,
				  .last_length = longest,
				  .count = longest - first + 1});
	first = RTE_MAX(first, (uint32_t)SHORTEST_TO_GUEST);
	expect_flow((struct flow){.direction = TO_GUEST,
				  .first_length = first,
				  .last_length = longest,
				  .count = longest - first + 1});
}

static void
every_length_mergeable(void)
{
	REQUIRE(pair_open(&pair, &(struct pair_options){0}), "no pair");
	move_all_lengths(9000);
	pair_close(&pair);
}

static void
every_length_not_mergeable(void)
{
	const struct pair_options options = {
		.no_mergeable = true,
		.frontend_room = 9728,
	};

	REQUIRE(pair_open(&pair, &options), "no pair");
	move_all_lengths(9000);
	pair_close(&pair);
}

static void
every_length_into_one_large_mbuf(void)
{
	const struct pair_options options = {.backend_room = 9728, .frontend_room = 9728};

	REQUIRE(pair_open(&pair, &options), "no pair");
	move_all_lengths(9000);
	pair_close(&pair);
}

static void
small_mbufs_on_both_sides(void)
{
	const struct pair_options options = {
		.backend_room = 256,
		.frontend_room = 256,
		.pool_size = 8192,
	};

	REQUIRE(pair_open(&pair, &options), "no pair");
	move_all_lengths(9000);
	pair_close(&pair);
}

static void
every_burst_size(void)
{
	REQUIRE(pair_open(&pair, &(struct pair_options){.ring_size = 1024}), "no pair");
	for (unsigned int burst = 1; burst <= 256; burst++) {
		unsigned int count = 3 * burst;

		expect_flow((struct flow){.direction = TO_HOST,
					  .first_length = 60,
					  .last_length = 300,
					  .count = count,
					  .burst = burst});
		expect_flow((struct flow){.direction = TO_GUEST,
					  .first_length = 60,
					  .last_length = 300,
					  .count = count,
					  .burst = burst});
	}
	pair_close(&pair);
}

static void
many_times_round(const struct pair_options *options)
{
	unsigned int rounds = run_is_slow() ? 3 : 300;
	unsigned int count;

	REQUIRE(pair_open(&pair, options), "no pair");
	/* A ring's 16-bit index wraps after 65536 chains. */
	count = rounds * 256;
	expect_flow((struct flow){.direction = TO_HOST,
				  .first_length = 60,
				  .last_length = 130,
				  .count = count});
	expect_flow((struct flow){.direction = TO_GUEST,
				  .first_length = 60,
				  .last_length = 130,
				  .count = count});
	pair_close(&pair);
}

static void
ring_index_wraps(void)
{
	many_times_round(&(struct pair_options){0});
}

static void
ring_index_wraps_large_ring(void)
{
	many_times_round(&(struct pair_options){.ring_size = 1024});
}

static void
ring_index_wraps_small_ring(void)
{
	many_times_round(&(struct pair_options){.ring_size = 32});
}

static void
ring_index_wraps_not_mergeable(void)
{
	many_times_round(&(struct pair_options){.no_mergeable = true, .frontend_room = 9728});
}

static void
ring_index_wraps_in_order(void)
{
	many_times_round(&(struct pair_options){.in_order = true});
}

static void
ring_index_wraps_vectorized(void)
{
	many_times_round(&(struct pair_options){
		.no_mergeable = true, .in_order = true, .vectorized = true, .frontend_room = 9728});
}

static void
ring_index_wraps_client(void)
{
	if (beyond_stock())
		return;
	many_times_round(&(struct pair_options){.backend_connects = true});
}

static void
segmented_mbufs(void)
{
	static const uint16_t segments[] = {1, 7, 12, 64, 255, 1000};

	REQUIRE(pair_open(&pair, &(struct pair_options){.pool_size = 16384}), "no pair");
	for (unsigned int i = 0; i < RTE_DIM(segments); i++) {
		/* An mbuf counts its segments in 16 bits; virtio-user takes a ring's worth. */
		uint32_t longest = RTE_MIN(9000u, 100u * segments[i]);

		expect_flow((struct flow){.direction = TO_HOST,
					  .first_length = longest - 40,
					  .last_length = longest,
					  .count = 120,
					  .segment = segments[i]});
		expect_flow((struct flow){.direction = TO_GUEST,
					  .first_length = longest - 40,
					  .last_length = longest,
					  .count = 120,
					  .segment = segments[i]});
	}
	pair_close(&pair);
}

static void
move_on_all_queues(uint16_t queues)
{
	REQUIRE(pair_open(&pair, &(struct pair_options){.queues = queues}), "no pair");
	for (uint16_t queue = 0; queue < queues; queue++) {
		char name[32];

		/* The first pair makes the link; the others become ready after it. */
		expect_flow((struct flow){.direction = TO_HOST,
					  .queue = queue,
					  .first_length = 60,
					  .last_length = 1514,
					  .count = 1500 + queue,
					  .seed = 1000u * queue});
		expect_flow((struct flow){.direction = TO_GUEST,
					  .queue = queue,
					  .first_length = 60,
					  .last_length = 1514,
					  .count = 1400 + queue,
					  .seed = 1000u * queue});
		snprintf(name, sizeof(name), "rx_q%u_good_packets", queue);
		CHECK(xstat(pair.backend, name) == 1500u + queue, "%s is %" PRIu64, name,
		      xstat(pair.backend, name));
		snprintf(name, sizeof(name), "tx_q%u_good_packets", queue);
		CHECK(xstat(pair.backend, name) == 1400u + queue, "%s is %" PRIu64, name,
		      xstat(pair.backend, name));
	}
	pair_close(&pair);
}

static void
two_queues(void)
{
	move_on_all_queues(2);
}

static void
eight_queues(void)
{
	move_on_all_queues(8);
}

/* What a call for nothing has for an array does not matter. */
static void
bursts_of_nothing(void)
{
	for (int packed = 0; packed <= 1; packed++) {
		REQUIRE(pair_open(&pair, &(struct pair_options){.packed = packed != 0}), "no pair");
		/* A frame is there that could be taken. */
		for (unsigned int i = 0; i < 3; i++) {
			struct rte_mbuf *mbuf = frame_mbuf(pair.frontend_pool, 100, i, 0);

			REQUIRE(mbuf != NULL && rte_eth_tx_burst(pair.frontend, 0, &mbuf, 1) == 1,
				"not sent");
			CHECK(rte_eth_rx_burst(pair.backend, 0, NULL, 0) == 0, "something came");
			CHECK(rte_eth_tx_burst(pair.backend, 0, NULL, 0) == 0, "something went");
			mbuf = receive_one(pair.backend, 0, 2000);
			REQUIRE(mbuf != NULL, "the frame did not come");
			CHECK(frame_matches(mbuf, 100, i), "another frame");
			rte_pktmbuf_free(mbuf);
		}
		pair_close(&pair);
	}
}

int
main(void)
{
	eal_start("traffic");
	after_each_case(vdev_detach_all);
	run_case("every length passes with mergeable buffers", every_length_mergeable, 10);
	run_case("every length passes without mergeable buffers", every_length_not_mergeable, 10);
	run_case("every length passes into one large mbuf", every_length_into_one_large_mbuf, 10);
	run_case("every length passes between pools of small mbufs", small_mbufs_on_both_sides, 10);
	run_case("mbufs of many segments pass", segmented_mbufs, 10);
	run_case("every burst size passes", every_burst_size, 10);
	run_case("a burst of nothing needs no array", bursts_of_nothing, 10);
	run_case("the ring index wraps, 256 entries", ring_index_wraps, 10);
	run_case("the ring index wraps, 1024 entries", ring_index_wraps_large_ring, 10);
	run_case("the ring index wraps, 32 entries", ring_index_wraps_small_ring, 10);
	run_case("the ring index wraps, not mergeable", ring_index_wraps_not_mergeable, 10);
	run_case("the ring index wraps, in order", ring_index_wraps_in_order, 10);
	run_case("the ring index wraps, vectorized frontend", ring_index_wraps_vectorized, 10);
	run_case("the ring index wraps, backend connects", ring_index_wraps_client, 15);
	run_case("two queues carry their own frames", two_queues, 10);
	run_case("eight queues carry their own frames", eight_queues, 10);
	return eal_end();
}
