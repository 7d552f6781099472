/* SPDX-License-Identifier: BSD-3-Clause */
/* Rx from mempools that are nearly dry, or whose caches hold less than a burst. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/frame.h"
#include "lib/pair.h"

#include <inttypes.h>

#define FRAME 100
#define MOST 64

static struct pair pair;
/* All mbufs of the backend's pool but for those that a case leaves there. */
static struct rte_mbuf *held[8192];
static unsigned int held_count;

/* The next frames of the guest; the seed of the first is `seed`. */
static bool
send_frames(unsigned int count, uint32_t seed)
{
	struct rte_mbuf *mbufs[MOST];
	unsigned int sent;

	for (unsigned int i = 0; i < count; i++)
		mbufs[i] = frame_mbuf(pair.frontend_pool, FRAME, seed + i, 0);
	sent = rte_eth_tx_burst(pair.frontend, 0, mbufs, (uint16_t)count);
	rte_pktmbuf_free_bulk(mbufs + sent, count - sent);
	return CHECK(sent == count, "%u of %u frames sent", sent, count);
}

/* One burst, whose first frame has the seed `seed`; the frames are held. */
static unsigned int
receive_frames(unsigned int burst, uint32_t seed)
{
	struct rte_mbuf *mbufs[MOST] = {0};
	unsigned int count = rte_eth_rx_burst(pair.backend, 0, mbufs, (uint16_t)burst);

	for (unsigned int i = 0; i < count; i++) {
		CHECK(frame_matches(mbufs[i], FRAME, seed + i), "frame %u", seed + i);
		held[held_count++] = mbufs[i];
	}
	return count;
}

static bool
drain_pool(void)
{
	held_count = 0;
	while (held_count < RTE_DIM(held) &&
	       (held[held_count] = rte_pktmbuf_alloc(pair.backend_pool)) != NULL)
		held_count++;
	return CHECK(rte_mempool_avail_count(pair.backend_pool) == 0, "%u mbufs are left",
		     rte_mempool_avail_count(pair.backend_pool));
}

/* So many mbufs are in the pool, which was dry. */
static bool
give_back(unsigned int count)
{
	held_count -= count;
	rte_pktmbuf_free_bulk(held + held_count, count);
	return CHECK(rte_mempool_avail_count(pair.backend_pool) == count, "%u mbufs are free",
		     rte_mempool_avail_count(pair.backend_pool));
}

static void
free_held(void)
{
	rte_pktmbuf_free_bulk(held, held_count);
	held_count = 0;
}

/* 64 frames wait, and there are mbufs for some of them. */
static void
fewer_mbufs_than_frames(bool packed, unsigned int free_mbufs)
{
	const char *const failures = "rx_q0_mbuf_alloc_failed";
	unsigned int count, more;

	REQUIRE(pair_open(&pair, &(struct pair_options){.packed = packed}), "no pair");
	REQUIRE(drain_pool() && give_back(free_mbufs), "no dry pool");
	REQUIRE(send_frames(MOST, 1), "not sent");
	count = receive_frames(MOST, 1);
	/* DPDK's driver takes 32 at a time. */
	CHECK(count >= 32, "%u frames with %u mbufs", count, free_mbufs);
	if (!plugin_is_stock()) {
		CHECK(count == free_mbufs, "%u frames with %u mbufs", count, free_mbufs);
		CHECK(xstat(pair.backend, failures) == 1, "%" PRIu64 " failures",
		      xstat(pair.backend, failures));
	}
	free_held();
	more = receive_frames(MOST, 1 + count);
	CHECK(more == MOST - count, "%u frames, then %u", count, more);
	free_held();
	pair_close(&pair);
}

static void
every_dry_pool(bool packed)
{
	const unsigned int step = run_is_slow() ? 18 : 3;

	for (unsigned int free_mbufs = 32; free_mbufs < MOST; free_mbufs += step)
		fewer_mbufs_than_frames(packed, free_mbufs);
}

static void
dry_pool(void)
{
	every_dry_pool(false);
}

static void
dry_pool_packed(void)
{
	every_dry_pool(true);
}

/* The last mbufs of a pool are all in the lcore's cache. */
static void
last_mbufs_are_in_the_cache(void)
{
	const struct rte_mempool_cache *cache;
	unsigned int count;

	REQUIRE(pair_open(&pair, &(struct pair_options){.backend_cache = 32}), "no pair");
	REQUIRE(drain_pool(), "no dry pool");
	/* So few that neither goes past the cache, nor makes it flush. */
	REQUIRE(give_back(32), "not given back");
	held_count -= 16;
	rte_pktmbuf_free_bulk(held + held_count, 16);
	cache = rte_mempool_default_cache(pair.backend_pool, rte_lcore_id());
	REQUIRE(cache->len == 48, "%u mbufs are in the cache", cache->len);
	REQUIRE(send_frames(40, 1), "not sent");
	count = receive_frames(40, 1);
	CHECK(count == 40, "%u of 40 frames", count);
	free_held();
	pair_close(&pair);
}

/* Bursts of all sizes through caches of all sizes: what is taken comes back. */
static void
small_caches(void)
{
	static const unsigned int caches[] = {1, 2, 5, 32, 63, 64, 512};

	for (unsigned int i = 0; i < RTE_DIM(caches); i++) {
		const struct pair_options options = {.backend_cache = caches[i]};

		REQUIRE(pair_open(&pair, &options), "no pair");
		for (unsigned int burst = 1; burst <= MOST; burst += run_is_slow() ? 9 : 1) {
			REQUIRE(send_frames(burst, 1), "not sent");
			CHECK(receive_frames(burst, 1) == burst, "burst of %u", burst);
			free_held();
		}
		pair_close(&pair);
	}
}

int
main(void)
{
	eal_start("pools");
	after_each_case(vdev_detach_all);
	run_case("frames come while there are mbufs for some", dry_pool, 20);
	run_case("the same from a packed ring", dry_pool_packed, 20);
	run_case("a burst may be larger than the cache that has the last mbufs",
		 last_mbufs_are_in_the_cache, 10);
	run_case("caches may be smaller than bursts", small_caches, 20);
	return eal_end();
}
