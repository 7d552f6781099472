/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Split rings as no driver may use them. Whatever the guest writes: the process lives, a bad chain
 * is given back unused and counted, and the ring goes on with the next good one. An argument is for
 * all ports: so it is with copy engines, too.
 */
#include "lib/bad_chains.h"
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/frame.h"
#include "lib/hostile.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

/* Descriptors for the good chains, apart from those the cases write. */
#define GOOD 250

/* Takes used entries until the good head comes; the bad one must have come before, unused. */
static void
expect_given_back(struct ring *ring, const char *name, uint32_t bad, uint32_t good,
		  uint32_t good_length)
{
	struct used_entry entry = {0};
	bool bad_seen = bad == NO_HEAD;

	for (;;) {
		if (!CHECK(guest_take_used(ring, &entry, 1) == 1, "%s: nothing more comes back",
			   name))
			return;
		if (entry.head == good)
			break;
		CHECK(entry.length == 0, "%s: head %u comes back with %u bytes", name, entry.head,
		      entry.length);
		bad_seen = bad_seen || entry.head == bad;
	}
	CHECK(bad_seen, "%s: the bad chain never comes back", name);
	CHECK(entry.length == good_length, "%s: the good chain has %u bytes", name, entry.length);
	CHECK(ring->used->index == ring->available->index, "%s: %u offered, %u given back", name,
	      ring->available->index, ring->used->index);
}

static void
try_to_host(const char *name, make_chain make)
{
	uint64_t drops = xstat_sum(guest.port, "rx_q0_drop");
	uint32_t bad = make(guest.to_host, 0);

	guest_offer_frame(&guest, GOOD, DATA_GPA + 0x10000, FRAME, ++seed);
	CHECK(guest_host_receives(&guest, FRAME, seed), "%s: the good frame does not come", name);
	expect_given_back(guest.to_host, name, bad, GOOD, 0);
	CHECK(xstat_sum(guest.port, "rx_q0_drop") == drops + 1, "%s: %" PRIu64 " drops counted",
	      name, xstat_sum(guest.port, "rx_q0_drop") - drops);
}

static void
try_to_guest(const char *name, make_chain make)
{
	const uint64_t gpa = DATA_GPA + 0x10000;
	uint64_t drops = xstat_sum(guest.port, "tx_q0_drop");
	uint32_t bad = make(guest.to_guest, DESC_WRITE);

	ring_describe(guest.to_guest, GOOD, gpa, 2000, DESC_WRITE, 0);
	ring_offer(guest.to_guest, GOOD);
	CHECK(guest_host_sends(&guest, FRAME, ++seed), "%s: the port takes nothing", name);
	expect_given_back(guest.to_guest, name, bad, GOOD, HEADER + FRAME);
	CHECK(guest_has_frame(&guest, gpa, FRAME, seed, 1), "%s", name);
	CHECK(xstat_sum(guest.port, "tx_q0_drop") == drops + 1, "%s: %" PRIu64 " drops counted",
	      name, xstat_sum(guest.port, "tx_q0_drop") - drops);
}

static void
to_host(void)
{
	REQUIRE(guest_open(&guest, &(struct guest_options){.ring_size = RING_SIZE}), "no guest");
	for (unsigned int i = 0; i < bad_chains_count; i++)
		try_to_host(bad_chains[i].name, bad_chains[i].make);
	for (unsigned int i = 0; i < bad_to_host_count; i++)
		try_to_host(bad_to_host[i].name, bad_to_host[i].make);
	guest_close(&guest);
}

static void
try_all_to_guest(uint64_t features)
{
	const struct guest_options options = {.ring_size = RING_SIZE, .features = features};

	REQUIRE(guest_open(&guest, &options), "no guest");
	for (unsigned int i = 0; i < bad_chains_count; i++)
		try_to_guest(bad_chains[i].name, bad_chains[i].make);
	for (unsigned int i = 0; i < bad_to_guest_count; i++)
		try_to_guest(bad_to_guest[i].name, bad_to_guest[i].make);
	guest_close(&guest);
}

static void
to_guest(void)
{
	try_all_to_guest(USUAL_FEATURES);
}

static void
to_guest_not_mergeable(void)
{
	try_all_to_guest(USUAL_FEATURES & ~F_MRG_RXBUF);
}

/* All of them in one burst, each followed by a good frame: all good ones come, in order. */
static void
between_good_ones(void)
{
	unsigned int good = 0, received = 0;

	REQUIRE(guest_open(&guest, &(struct guest_options){.ring_size = RING_SIZE}), "no guest");
	for (unsigned int i = 0; i < bad_to_host_count; i++) {
		struct rte_mbuf *mbufs[32];
		uint16_t count;

		/* One table and one set of descriptors: a kind at a time, sixteen of each. */
		for (unsigned int j = 0; j < 16; j++) {
			bad_to_host[i].make(guest.to_host, 0);
			guest_offer_frame(&guest, (uint16_t)(GOOD - j), DATA_GPA + 0x10000 + 0x1000 * j,
					  FRAME, good++);
		}
		for (uint64_t end = milliseconds_now() + 2000;
		     received < good && milliseconds_now() < end;) {
			count = rte_eth_rx_burst(guest.port, 0, mbufs, RTE_DIM(mbufs));
			for (uint16_t k = 0; k < count; k++)
				CHECK(frame_matches(mbufs[k], FRAME, received++), "out of order");
			rte_pktmbuf_free_bulk(mbufs, count);
		}
		CHECK(received == good, "%s: %u of %u", bad_to_host[i].name, received, good);
	}
	guest_close(&guest);
}

/* A ring full of bad chains: one call ends, and the ring is free again. */
static void
nothing_but_bad_ones(void)
{
	struct used_entry entries[RING_SIZE];

	REQUIRE(guest_open(&guest, &(struct guest_options){.ring_size = RING_SIZE}), "no guest");
	for (int round = 0; round < 3; round++) {
		uint64_t drops = xstat_sum(guest.port, "rx_q0_drop");

		for (unsigned int i = 0; i < RING_SIZE; i++)
			make_loop_of_whole_regions(guest.to_host, 0);
		CHECK(guest_host_receives_nothing(&guest), "a frame out of nothing");
		CHECK(guest_take_used(guest.to_host, entries, RING_SIZE) == RING_SIZE,
		      "not all came back");
		CHECK(xstat_sum(guest.port, "rx_q0_drop") == drops + RING_SIZE,
		      "%" PRIu64 " drops", xstat_sum(guest.port, "rx_q0_drop") - drops);
	}
	try_to_host("after a full ring", bad_to_host[0].make);
	guest_close(&guest);
}

/* A frontend that starts afresh is served again; first comes what engines copied of the old one's. */
static bool
starts_afresh(void)
{
	struct rte_mbuf *mbufs[64];
	uint16_t count;

	frontend_disconnect(&guest.frontend);
	if (!CHECK(wait_for_link(guest.port, false), "the link stays up"))
		return false;
	while ((count = rte_eth_rx_burst(guest.port, 0, mbufs, RTE_DIM(mbufs))) > 0)
		rte_pktmbuf_free_bulk(mbufs, count);
	return guest_connect(&guest);
}

/* The guest claims more than the ring can hold: nobody knows what it meant, but nobody dies. */
static void
index_jumps(void)
{
	static const uint16_t jumps[] = {RING_SIZE + 1, 1000, 32768, UINT16_MAX};

	for (unsigned int i = 0; i < RTE_DIM(jumps); i++) {
		struct rte_mbuf *mbufs[64];
		struct rte_mbuf *mbuf;

		REQUIRE(guest_open(&guest, &(struct guest_options){.ring_size = RING_SIZE}),
			"no guest");
		for (uint16_t ring = 0; ring < 2; ring++) {
			struct ring *target = &guest.frontend.rings[ring];

			ring_describe(target, 0, DATA_GPA, 200, ring == 0 ? DESC_WRITE : 0, 0);
			target->available->index = (uint16_t)(target->available->index + jumps[i]);
		}
		for (int poll = 0; poll < 50; poll++) {
			uint16_t count = rte_eth_rx_burst(guest.port, 0, mbufs, RTE_DIM(mbufs));

			rte_pktmbuf_free_bulk(mbufs, count);
			mbuf = frame_mbuf(guest.pool, FRAME, 1, 0);
			if (rte_eth_tx_burst(guest.port, 0, &mbuf, 1) == 0)
				rte_pktmbuf_free(mbuf);
		}
		/* What engines copy may have been offered again. */
		CHECK(rte_eth_rx_queue_count(guest.port, 0) <= (*guest_devargs == '\0' ? 1 : 2) * RING_SIZE,
		      "%d wait", rte_eth_rx_queue_count(guest.port, 0));
		REQUIRE(starts_afresh(), "jump by %u", jumps[i]);
		guest_offer_frame(&guest, GOOD, DATA_GPA, FRAME, ++seed);
		CHECK(guest_host_receives(&guest, FRAME, seed), "jump by %u", jumps[i]);
		guest_close(&guest);
	}
}

/* The rings lie in guest memory like any buffer: a chain may name them, and gains nothing. */
static void
chains_over_the_rings(void)
{
	struct rte_mbuf *mbuf;
	struct rte_mbuf *mbufs[32];

	REQUIRE(guest_open(&guest, &(struct guest_options){.ring_size = RING_SIZE}), "no guest");
	ring_describe(guest.to_guest, 0, MEMORY_GPA, 0x100000, DESC_WRITE, 0);
	for (int i = 0; i < 8; i++) {
		ring_offer(guest.to_guest, 0);
		ring_describe(guest.to_host, 0, MEMORY_GPA, 0x200000, 0, 0);
		ring_offer(guest.to_host, 0);
		mbuf = frame_mbuf(guest.pool, 9000, (uint32_t)i, 0);
		if (rte_eth_tx_burst(guest.port, 0, &mbuf, 1) == 0)
			rte_pktmbuf_free(mbuf);
		rte_pktmbuf_free_bulk(mbufs,
				      rte_eth_rx_burst(guest.port, 0, mbufs, RTE_DIM(mbufs)));
	}
	REQUIRE(starts_afresh(), "no new start");
	guest_offer_frame(&guest, GOOD, DATA_GPA, FRAME, ++seed);
	CHECK(guest_host_receives(&guest, FRAME, seed), "no frame");
	guest_close(&guest);
}

/* A frame of many megabytes: it cannot be an mbuf's, and is dropped. */
static void
frame_larger_than_an_mbuf_can_say(void)
{
	REQUIRE(guest_open(&guest, &(struct guest_options){.ring_size = RING_SIZE}), "no guest");
	ring_describe(guest.to_host, 0, MEMORY_GPA, 2 * REGION_SIZE, DESC_NEXT, 1);
	for (uint16_t i = 1; i < 200; i++)
		ring_describe(guest.to_host, i, MEMORY_GPA, 2 * REGION_SIZE,
			      i < 199 ? DESC_NEXT : 0, (uint16_t)(i + 1));
	ring_offer(guest.to_host, 0);
	guest_offer_frame(&guest, GOOD, DATA_GPA + 0x10000, FRAME, ++seed);
	CHECK(guest_host_receives(&guest, FRAME, seed), "the good frame does not come");
	expect_given_back(guest.to_host, "very large", 0, GOOD, 0);
	CHECK(xstat_sum(guest.port, "rx_q0_drop") == 1, "not counted");
	guest_close(&guest);
}

/* Without mbufs the chain waits for the next poll. */
static void
empty_pool_keeps_the_chain(void)
{
	static struct rte_mbuf *taken[8192];
	unsigned int count = 0;

	REQUIRE(guest_open(&guest, &(struct guest_options){.ring_size = RING_SIZE}), "no guest");
	while (count < RTE_DIM(taken) && (taken[count] = rte_pktmbuf_alloc(guest.pool)) != NULL)
		count++;
	guest_offer_frame(&guest, GOOD, DATA_GPA, FRAME, ++seed);
	CHECK(guest_host_receives_nothing(&guest), "a frame without an mbuf");
	rte_pktmbuf_free_bulk(taken, count);
	CHECK(guest_host_receives(&guest, FRAME, seed), "the frame was lost");
	guest_close(&guest);
}

/* A chained frame that needs more mbufs than there are is dropped, and the ring goes on. */
static void
pool_ends_in_the_middle(void)
{
	static struct rte_mbuf *taken[8192];
	unsigned int count = 0;
	uint64_t drops;

	REQUIRE(guest_open(&guest, &(struct guest_options){.ring_size = RING_SIZE}), "no guest");
	while (count < RTE_DIM(taken) && (taken[count] = rte_pktmbuf_alloc(guest.pool)) != NULL)
		count++;
	/* Two are left for a frame of five. */
	REQUIRE(count > 2, "no mbufs");
	rte_pktmbuf_free(taken[--count]);
	rte_pktmbuf_free(taken[--count]);
	drops = xstat_sum(guest.port, "rx_q0_drop");
	guest_offer_frame(&guest, GOOD, DATA_GPA, 9000, ++seed);
	CHECK(guest_host_receives_nothing(&guest), "more mbufs than there are");
	CHECK(xstat_sum(guest.port, "rx_q0_drop") == drops + 1, "%" PRIu64 " drops",
	      xstat_sum(guest.port, "rx_q0_drop") - drops);
	rte_pktmbuf_free_bulk(taken, count);
	guest_offer_frame(&guest, GOOD - 1, DATA_GPA, FRAME, ++seed);
	CHECK(guest_host_receives(&guest, FRAME, seed), "the ring does not go on");
	guest_close(&guest);
}

static atomic_bool writing;

/* Writes nonsense over the descriptors and rings, as fast as it can. */
static void *
write_nonsense(void *argument)
{
	uint32_t state = 12345;

	(void)argument;
	while (atomic_load(&writing)) {
		for (unsigned int i = 0; i < 2; i++) {
			struct ring *ring = &guest.frontend.rings[i];
			struct descriptor *entry;

			state = state * 1664525 + 1013904223;
			entry = &ring->descriptors[state >> 24];
			entry->address = (state & 0x300) != 0
						 ? MEMORY_GPA + (state & (2 * REGION_SIZE - 1))
						 : state;
			entry->length = (state & 0x1000) != 0 ? state >> 20 : state;
			entry->flags = (state >> 13) & 7;
			entry->next = (state >> 9) & 0x1ff;
			ring->available->heads[(state >> 3) & (RING_SIZE - 1)] =
				(state >> 11) & 0x1ff;
			ring->available->index += (state >> 7) & 3;
			ring->available->flags = (state >> 5) & 1;
		}
	}
	return NULL;
}

/* What is checked is not what is used, unless it was read once. */
static void
memory_changes_while_it_is_read(void)
{
	uint64_t end = milliseconds_now() + 2000;
	pthread_t writer;

	REQUIRE(guest_open(&guest, &(struct guest_options){.ring_size = RING_SIZE}), "no guest");
	atomic_store(&writing, true);
	REQUIRE(pthread_create(&writer, NULL, write_nonsense, NULL) == 0, "no thread");
	while (milliseconds_now() < end) {
		struct rte_mbuf *mbufs[32];

		rte_pktmbuf_free_bulk(mbufs,
				      rte_eth_rx_burst(guest.port, 0, mbufs, RTE_DIM(mbufs)));
		mbufs[0] = frame_mbuf(guest.pool, 1500, 1, 0);
		if (mbufs[0] != NULL && rte_eth_tx_burst(guest.port, 0, mbufs, 1) == 0)
			rte_pktmbuf_free(mbufs[0]);
	}
	atomic_store(&writing, false);
	pthread_join(writer, NULL);
	REQUIRE(starts_afresh(), "no new start");
	guest_offer_frame(&guest, GOOD, DATA_GPA, FRAME, ++seed);
	CHECK(guest_host_receives(&guest, FRAME, seed), "no frame");
	guest_close(&guest);
}

static void
skip_for_stock(void)
{
	beyond_stock();
}

int
main(int argc, char **argv)
{
	if (argc > 1)
		guest_devargs = argv[1];
	eal_start("hostile_ring");
	after_each_case(vdev_detach_all);
	if (plugin_is_stock()) {
		run_case("these are promises of this driver", skip_for_stock, 5);
		return eal_end();
	}
	run_case("a bad chain to the host is dropped, and the ring goes on", to_host, 30);
	run_case("a bad buffer for the guest is dropped, and the ring goes on", to_guest, 30);
	run_case("the same without mergeable buffers", to_guest_not_mergeable, 30);
	run_case("good frames between bad ones all come", between_good_ones, 10);
	run_case("a ring full of bad chains is given back", nothing_but_bad_ones, 20);
	run_case("an index that jumps harms nobody else", index_jumps, 30);
	run_case("chains over the rings harm nobody else", chains_over_the_rings, 10);
	run_case("a frame larger than an mbuf can say is dropped",
		 frame_larger_than_an_mbuf_can_say, 10);
	run_case("an empty pool keeps the chain", empty_pool_keeps_the_chain, 10);
	run_case("memory may change while it is read", memory_changes_while_it_is_read, 20);
	run_case("a pool that ends in the middle drops the frame", pool_ends_in_the_middle, 10);
	return eal_end();
}
