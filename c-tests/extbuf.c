/* SPDX-License-Identifier: BSD-3-Clause */
/* Frames longer than an mbuf, with ext-buffer=1 and linear-buffer=1: one segment in a large buffer. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/frame.h"
#include "lib/pair.h"

#include <string.h>

#define JUMBO 9000
/* A queue has as many large buffers as descriptors, and `port_configure` sets up so many. */
#define LARGE_BUFFERS 256
/* An external buffer is at most this long, headroom included. */
#define LONGEST (UINT16_MAX - RTE_PKTMBUF_HEADROOM)

static struct pair pair;
static struct rte_mbuf *held[LARGE_BUFFERS + 64];

static bool
is_large(const struct rte_mbuf *mbuf)
{
	return RTE_MBUF_HAS_EXTBUF(mbuf) && mbuf->nb_segs == 1 && mbuf->next == NULL &&
	       mbuf->data_off == RTE_PKTMBUF_HEADROOM && mbuf->data_len == mbuf->pkt_len;
}

/* Passes a frame of the guest; NULL when it does not come, or is wrong. */
static struct rte_mbuf *
pass(uint32_t length, uint32_t seed)
{
	struct rte_mbuf *mbuf = frame_mbuf(pair.frontend_pool, length, seed, 0);

	if (!CHECK(mbuf != NULL, "no mbuf to send"))
		return NULL;
	mbuf = pair_pass(&pair, TO_HOST, 0, mbuf);
	if (!CHECK(mbuf != NULL, "%u bytes did not arrive", length))
		return NULL;
	if (!frame_matches(mbuf, length, seed)) {
		rte_pktmbuf_free(mbuf);
		return NULL;
	}
	return mbuf;
}

static void
each_layout(void (*body)(void), const char *devargs)
{
	for (int packed = 0; packed <= 1; packed++) {
		struct pair_options options = {.devargs = devargs, .packed = packed != 0};

		/* Frames of 64 KB in mbufs of 2 KB need a chain each of 33. */
		REQUIRE(pair_open(&pair, &options), "no pair, packed %d", packed);
		body();
		pair_close(&pair);
	}
}

static void
one_segment(void)
{
	static const uint32_t lengths[] = {2049, 4096, JUMBO, 30000, 62000};

	for (unsigned int i = 0; i < RTE_DIM(lengths); i++) {
		struct rte_mbuf *mbuf = pass(lengths[i], i);

		REQUIRE(mbuf != NULL, "nothing");
		CHECK(is_large(mbuf), "%u bytes: %u segments, flags %#" PRIx64, lengths[i],
		      mbuf->nb_segs, mbuf->ol_flags);
		CHECK(rte_pktmbuf_headroom(mbuf) == RTE_PKTMBUF_HEADROOM, "headroom");
		rte_pktmbuf_free(mbuf);
	}
	for (uint32_t length = 60; length <= 2048; length += 142) {
		struct rte_mbuf *mbuf = pass(length, length);

		REQUIRE(mbuf != NULL, "nothing");
		CHECK(!RTE_MBUF_HAS_EXTBUF(mbuf), "%u bytes fit the mbuf", length);
		rte_pktmbuf_free(mbuf);
	}
}

static void
long_frames_are_one_segment(void)
{
	each_layout(one_segment, ",ext-buffer=1");
}

static void
without_chains(void)
{
	struct rte_mbuf *mbuf = pass(JUMBO, 1);

	REQUIRE(mbuf != NULL, "nothing");
	CHECK(is_large(mbuf), "not one segment");
	rte_pktmbuf_free(mbuf);
}

static void
long_frames_are_one_segment_without_chains(void)
{
	each_layout(without_chains, ",ext-buffer=1,linear-buffer=1");
}

static void
dropped(void)
{
	struct rte_mbuf *mbuf = frame_mbuf(pair.frontend_pool, JUMBO, 1, 0);

	REQUIRE(mbuf != NULL && rte_eth_tx_burst(pair.frontend, 0, &mbuf, 1) == 1, "not sent");
	mbuf = pass(2048, 2);
	REQUIRE(mbuf != NULL, "the ring stopped");
	CHECK(mbuf->nb_segs == 1, "a chain");
	rte_pktmbuf_free(mbuf);
	if (!plugin_is_stock())
		CHECK(xstat(pair.backend, "rx_q0_drop_oversize") == 1, "not counted");
}

static void
linear_buffer_alone_drops_long_frames(void)
{
	each_layout(dropped, ",linear-buffer=1");
}

/* Takes `count` large frames, and holds them. */
static bool
hold(unsigned int count)
{
	for (unsigned int i = 0; i < count; i++) {
		held[i] = pass(JUMBO, i);
		if (held[i] == NULL)
			return false;
		if (!CHECK(is_large(held[i]), "frame %u has %u segments", i, held[i]->nb_segs))
			return false;
	}
	return true;
}

static void
exhausted(void)
{
	struct rte_mbuf *mbuf;

	if (beyond_stock())
		return;
	REQUIRE(hold(LARGE_BUFFERS), "nothing to hold");
	mbuf = pass(JUMBO, 1000);
	REQUIRE(mbuf != NULL, "nothing");
	CHECK(mbuf->nb_segs == 5 && !RTE_MBUF_HAS_EXTBUF(mbuf), "%u segments", mbuf->nb_segs);
	rte_pktmbuf_free(mbuf);
	/* Given back in any order, they can be had again. */
	for (unsigned int i = 0; i < LARGE_BUFFERS; i += 2)
		rte_pktmbuf_free(held[i]);
	for (unsigned int i = 1; i < LARGE_BUFFERS; i += 2)
		rte_pktmbuf_free(held[i]);
	REQUIRE(hold(LARGE_BUFFERS), "they did not come back");
	rte_pktmbuf_free_bulk(held, LARGE_BUFFERS);
}

static void
frames_are_chained_when_all_buffers_are_out(void)
{
	each_layout(exhausted, ",ext-buffer=1");
}

static void
without_chains_frames_are_dropped(void)
{
	struct rte_mbuf *mbuf;

	if (beyond_stock())
		return;
	REQUIRE(pair_open(&pair, &(struct pair_options){
					 .devargs = ",ext-buffer=1,linear-buffer=1"}),
		"no pair");
	REQUIRE(hold(LARGE_BUFFERS), "nothing to hold");
	mbuf = frame_mbuf(pair.frontend_pool, JUMBO, 77, 0);
	REQUIRE(mbuf != NULL && rte_eth_tx_burst(pair.frontend, 0, &mbuf, 1) == 1, "not sent");
	mbuf = pass(2048, 78);
	REQUIRE(mbuf != NULL, "the ring stopped");
	rte_pktmbuf_free(mbuf);
	CHECK(xstat(pair.backend, "rx_q0_drop_no_mbuf") == 1, "not counted");
	rte_pktmbuf_free(held[LARGE_BUFFERS - 1]);
	mbuf = pass(JUMBO, 79);
	REQUIRE(mbuf != NULL && is_large(mbuf), "no large frames any more");
	rte_pktmbuf_free(mbuf);
	rte_pktmbuf_free_bulk(held, LARGE_BUFFERS - 1);
	pair_close(&pair);
}

static void
buffers_outlive_the_port(void)
{
	struct rte_mempool *pool;
	size_t before, during;

	/* What the first life of a port leaves in EAL's heap for good. */
	REQUIRE(pair_open(&pair, &(struct pair_options){0}), "no pair");
	pair_close(&pair);
	REQUIRE(pair_open(&pair, &(struct pair_options){.devargs = ",ext-buffer=1"}), "no pair");
	REQUIRE(hold(40), "nothing to hold");
	pair_close_frontend(&pair);
	CHECK(vdev_detach(BACKEND) == 0, "the backend cannot be removed");
	pair.backend = NO_PORT;
	during = heap_in_use();
	for (unsigned int i = 0; i < 40; i++)
		CHECK(frame_matches(held[i], JUMBO, i), "frame %u changed", i);
	pool = pair.backend_pool;
	CHECK(rte_mempool_in_use_count(pool) == 40, "%u mbufs", rte_mempool_in_use_count(pool));
	rte_pktmbuf_free_bulk(held, 39);
	CHECK(frame_matches(held[39], JUMBO, 39), "the last frame changed");
	rte_pktmbuf_free(held[39]);
	before = heap_in_use();
	/* The buffers of a queue are one piece of memory, which goes with the last of them. */
	CHECK(during - before > 40 * JUMBO, "%zu bytes came back", during - before);
	pair_close(&pair);
}

static void
a_clone_keeps_its_buffer(void)
{
	struct rte_mbuf *mbuf, *clone;

	REQUIRE(pair_open(&pair, &(struct pair_options){.devargs = ",ext-buffer=1"}), "no pair");
	mbuf = pass(JUMBO, 5);
	REQUIRE(mbuf != NULL, "nothing");
	clone = rte_pktmbuf_clone(mbuf, pair.backend_pool);
	REQUIRE(clone != NULL, "no clone");
	rte_pktmbuf_free(mbuf);
	if (!plugin_is_stock()) {
		REQUIRE(hold(LARGE_BUFFERS - 1), "nothing to hold");
		rte_pktmbuf_free_bulk(held, LARGE_BUFFERS - 1);
	}
	CHECK(frame_matches(clone, JUMBO, 5), "the clone changed");
	rte_pktmbuf_free(clone);
	pair_close(&pair);
}

static void
a_queue_set_up_again_has_new_buffers(void)
{
	struct port_config config;

	REQUIRE(pair_open(&pair, &(struct pair_options){.devargs = ",ext-buffer=1"}), "no pair");
	config = pair_backend_config(&pair);
	for (int round = 0; round < 3; round++) {
		REQUIRE(hold(20), "nothing to hold, round %d", round);
		CHECK(rte_eth_dev_stop(pair.backend) == 0, "stop");
		REQUIRE(port_start(pair.backend, &config) == 0, "start");
		for (unsigned int i = 0; i < 20; i++)
			CHECK(frame_matches(held[i], JUMBO, i), "frame %u changed", i);
		rte_pktmbuf_free_bulk(held, 20);
	}
	pair_close(&pair);
}

static void
large_buffers_go_back_to_the_guest(void)
{
	struct rte_mbuf *mbuf;

	REQUIRE(pair_open(&pair, &(struct pair_options){.devargs = ",ext-buffer=1",
							 .tx_offloads = RTE_ETH_TX_OFFLOAD_VLAN_INSERT}),
		"no pair");
	mbuf = pass(JUMBO, 9);
	REQUIRE(mbuf != NULL, "nothing");
	mbuf = pair_pass(&pair, TO_GUEST, 0, mbuf);
	REQUIRE(mbuf != NULL, "not sent back");
	CHECK(frame_matches(mbuf, JUMBO, 9), "another frame");
	rte_pktmbuf_free(mbuf);
	if (!plugin_is_stock()) {
		mbuf = pass(JUMBO, 10);
		REQUIRE(mbuf != NULL, "nothing");
		mbuf->ol_flags |= RTE_MBUF_F_TX_VLAN;
		mbuf->vlan_tci = 42;
		mbuf = pair_pass(&pair, TO_GUEST, 0, mbuf);
		REQUIRE(mbuf != NULL, "not sent with a tag");
		CHECK(mbuf->pkt_len == JUMBO + RTE_VLAN_HLEN, "%u bytes", mbuf->pkt_len);
		rte_pktmbuf_free(mbuf);
	}
	pair_close(&pair);
}

int
main(void)
{
	eal_start("extbuf");
	after_each_case(vdev_detach_all);
	run_case("a long frame is one segment", long_frames_are_one_segment, 30);
	run_case("a long frame is one segment, chains forbidden",
		 long_frames_are_one_segment_without_chains, 30);
	run_case("linear-buffer alone drops long frames", linear_buffer_alone_drops_long_frames, 30);
	run_case("frames are chained when all buffers are out",
		 frames_are_chained_when_all_buffers_are_out, 60);
	run_case("frames are dropped when all buffers are out, chains forbidden",
		 without_chains_frames_are_dropped, 60);
	run_case("buffers outlive queue and port", buffers_outlive_the_port, 30);
	run_case("a clone keeps its buffer", a_clone_keeps_its_buffer, 60);
	run_case("a queue set up again has new buffers", a_queue_set_up_again_has_new_buffers, 30);
	run_case("large buffers go back to the guest", large_buffers_go_back_to_the_guest, 30);
	return eal_end();
}
