/* SPDX-License-Identifier: BSD-3-Clause */
/* Copy engines for tx queues (`dmas=`): a thread of the driver's own, and DPDK's dma_skeleton. Every
 * byte is compared, and all mbufs must come back. */
#include "lib/check.h"
#include "lib/dma.h"
#include "lib/eal.h"

#include <errno.h>
#include <stdio.h>

#include <rte_dmadev.h>

static void
expect_nothing_under_way(unsigned int queue)
{
	/* Nobody calls the driver but for statistics. */
	WAIT_FOR(counter(queue, "inflight") == 0, SOON_MS);
	CHECK(counter(queue, "inflight") == 0, "%" PRIu64 " are under way", counter(queue, "inflight"));
}

/* A single burst, and then the application is silent. */
static void
nobody_polls(void)
{
	REQUIRE(skeleton_there(), "no dma_skeleton");
	REQUIRE(open_with_engines((struct pair_options){0}, SKELETON, ""), "no pair");
	for (unsigned int round = 0; round < 20; round++) {
		struct rte_mbuf *mbufs[8];
		uint16_t sent;

		for (unsigned int i = 0; i < RTE_DIM(mbufs); i++)
			REQUIRE((mbufs[i] = rte_pktmbuf_alloc(pair.backend_pool)) != NULL, "no mbuf");
		for (unsigned int i = 0; i < RTE_DIM(mbufs); i++)
			REQUIRE(rte_pktmbuf_append(mbufs[i], 1500) != NULL, "no room");
		sent = rte_eth_tx_burst(pair.backend, 0, mbufs, RTE_DIM(mbufs));
		CHECK(sent == RTE_DIM(mbufs), "%u were sent", sent);
		for (unsigned int i = 0; i < RTE_DIM(mbufs); i++)
			rte_pktmbuf_free(receive_one(pair.frontend, 0, SOON_MS));
		expect_nothing_under_way(0);
	}
	CHECK(counter(0, "packets") == 20 * 8, "%" PRIu64 " packets", counter(0, "packets"));
	pair_close(&pair);
}

static void
done_cleanup(void)
{
	int freed = 0, none;

	REQUIRE(skeleton_there(), "no dma_skeleton");
	REQUIRE(open_with_engines((struct pair_options){0}, SKELETON, ""), "no pair");
	none = rte_eth_tx_done_cleanup(pair.backend, 0, 0);
	CHECK(none == 0, "%d were freed", none);
	for (unsigned int round = 0; round < 200 && freed == 0; round++) {
		struct rte_mbuf *mbufs[32];
		uint16_t sent;

		for (unsigned int i = 0; i < RTE_DIM(mbufs); i++) {
			REQUIRE((mbufs[i] = rte_pktmbuf_alloc(pair.backend_pool)) != NULL, "no mbuf");
			rte_pktmbuf_append(mbufs[i], 1500);
		}
		sent = rte_eth_tx_burst(pair.backend, 0, mbufs, RTE_DIM(mbufs));
		rte_pktmbuf_free_bulk(mbufs + sent, (unsigned int)(RTE_DIM(mbufs) - sent));
		for (uint64_t copies = counter(0, "inflight"); copies != 0 && freed == 0;
		     copies = counter(0, "inflight")) {
			int now = rte_eth_tx_done_cleanup(pair.backend, 0, 3);

			CHECK(now >= 0 && now <= 3, "%d were freed, 3 at most", now);
			freed += now;
		}
		for (struct rte_mbuf *mbuf; (mbuf = receive_one(pair.frontend, 0, 1)) != NULL;)
			rte_pktmbuf_free(mbuf);
	}
	/* The ticker may be faster, but not every time. */
	CHECK(freed > 0, "nothing was ever left to free");
	pair_close(&pair);
}

/* Copies are under way whenever the port stops, and all of them arrive. */
static void
stop_and_start_under_traffic(void)
{
	struct port_config config;

	REQUIRE(skeleton_there(), "no dma_skeleton");
	REQUIRE(open_with_engines((struct pair_options){0}, SKELETON "+sw", ""), "no pair");
	config = pair_backend_config(&pair);
	for (unsigned int round = 0; round < 30; round++) {
		struct rte_mbuf *mbufs[32];
		unsigned int arrived = 0;
		uint16_t sent;

		for (unsigned int i = 0; i < RTE_DIM(mbufs); i++)
			REQUIRE((mbufs[i] = rte_pktmbuf_alloc(pair.backend_pool)) != NULL, "no mbuf");
		for (unsigned int i = 0; i < RTE_DIM(mbufs); i++)
			rte_pktmbuf_append(mbufs[i], 1800);
		sent = rte_eth_tx_burst(pair.backend, 0, mbufs, RTE_DIM(mbufs));
		CHECK(sent == RTE_DIM(mbufs), "%u were sent", sent);
		CHECK(rte_eth_dev_stop(pair.backend) == 0, "no stop");
		CHECK(rte_mempool_full(pair.backend_pool), "mbufs are out while the port is stopped");
		for (struct rte_mbuf *mbuf; arrived < sent &&
		     (mbuf = receive_one(pair.frontend, 0, SOON_MS)) != NULL; arrived++)
			rte_pktmbuf_free(mbuf);
		CHECK(arrived == sent, "%u of %u arrived", arrived, sent);
		if (round % 2 == 0)
			CHECK(rte_eth_dev_start(pair.backend) == 0, "no start");
		else
			CHECK(port_start(pair.backend, &config) == 0, "no start with new queues");
	}
	expect_flow((struct flow){.first_length = 1000, .last_length = 1500, .count = 1000});
	pair_close(&pair);
}

/* The frontend leaves while copies are under way, and another comes. */
static void
frontend_leaves(void)
{
	REQUIRE(skeleton_there(), "no dma_skeleton");
	REQUIRE(open_with_engines((struct pair_options){0}, SKELETON, ""), "no pair");
	for (unsigned int round = 0; round < 10; round++) {
		struct rte_mbuf *mbufs[32];
		uint16_t sent;

		expect_flow(
			(struct flow){.first_length = 1000, .last_length = 1500, .count = 300});
		for (unsigned int i = 0; i < RTE_DIM(mbufs); i++)
			REQUIRE((mbufs[i] = rte_pktmbuf_alloc(pair.backend_pool)) != NULL, "no mbuf");
		for (unsigned int i = 0; i < RTE_DIM(mbufs); i++)
			rte_pktmbuf_append(mbufs[i], 1800);
		sent = rte_eth_tx_burst(pair.backend, 0, mbufs, RTE_DIM(mbufs));
		rte_pktmbuf_free_bulk(mbufs + sent, (unsigned int)(RTE_DIM(mbufs) - sent));
		pair_close_frontend(&pair);
		CHECK(wait_for_link(pair.backend, false), "the link stayed up");
		CHECK(rte_mempool_full(pair.backend_pool), "mbufs are out without a link");
		REQUIRE(pair_open_frontend(&pair), "no other frontend");
	}
	expect_engine_worked(0);
	pair_close(&pair);
}

static void
many_queues_on_one_engine(void)
{
	const struct pair_options options = {.queues = 4,
					     .devargs = ",dmas=[txq0-2@dma_skeleton],dmathr=0"};

	REQUIRE(skeleton_there(), "no dma_skeleton");
	REQUIRE(pair_open(&pair, &options), "no pair");
	for (unsigned int round = 0; round < 3; round++) {
		for (uint16_t queue = 0; queue < 4; queue++)
			expect_flow((struct flow){.queue = queue,
							   .first_length = 60,
							   .last_length = 1514,
							   .count = 1455,
							   .seed = 1000u * queue});
	}
	for (unsigned int queue = 0; queue < 3; queue++)
		expect_engine_worked(queue);
	CHECK(counter(3, "copies") == 0, "queue 3 has no engine");
	pair_close(&pair);
}

static int
start_with(const char *dmas)
{
	struct port_config config = {.queues = 1};
	struct rte_mempool *pool = make_pool("start", 1024, 2048);
	int result = -EINVAL;
	uint16_t port;

	config.pool = pool;
	port = vdev_attach(BACKEND, "iface=%s,dmas=%s", socket_path("start.sock"), dmas);
	if (CHECK(port != NO_PORT, "%s: probe failed", dmas))
		result = port_start(port, &config);
	CHECK(vdev_detach(BACKEND) == 0, "the port cannot be removed");
	rte_mempool_free(pool);
	return result;
}

/* What an engine must be is known when the port starts, not before. */
static void
engines_are_opened_at_start(void)
{
	struct rte_dma_conf conf = {.nb_vchans = 1};
	struct rte_dma_vchan_conf vchan = {.direction = RTE_DMA_DIR_MEM_TO_MEM, .nb_desc = 1024};
	int result, id;

	result = start_with("[txq0@no_such_engine]");
	CHECK(result == -ENODEV, "an engine that is not there: %d", result);
	result = start_with("[txq0@" SKELETON "]");
	CHECK(result == -ENODEV, "one that comes too late: %d", result);
	result = start_with("[txq0@ioat:00:1f.7]");
	CHECK(result == -ENODEV, "a function that is not there: %d", result);
	REQUIRE(skeleton_there(), "no dma_skeleton");
	result = start_with("[txq0@" SKELETON "#0]");
	CHECK(result == -ENODEV, "a channel that nobody has set up: %d", result);
	for (unsigned int round = 0; round < 3; round++) {
		result = start_with("[txq0@" SKELETON "]");
		CHECK(result == 0, "one that is there: %d", result);
	}
	result = start_with("[txq0@" SKELETON "+sw],dma-ring-size=1000000");
	CHECK(result == 0, "more copies than any can have: %d", result);
	result = start_with("[rxq0@" SKELETON ";txq0@" SKELETON "#0]");
	CHECK(result == -EBUSY, "one by two names: %d", result);
	id = rte_dma_get_dev_id_by_name(SKELETON);
	REQUIRE(rte_dma_configure((int16_t)id, &conf) == 0, "no configure");
	REQUIRE(rte_dma_vchan_setup((int16_t)id, 0, &vchan) == 0, "no channel");
	result = start_with("[txq0@" SKELETON "#0]");
	CHECK(result == -ENODEV, "one that is not started: %d", result);
	REQUIRE(rte_dma_start((int16_t)id) == 0, "no start");
	result = start_with("[txq0@" SKELETON "#1]");
	CHECK(result == -ENODEV, "one that the device does not have: %d", result);
	result = start_with("[txq0@" SKELETON "]");
	CHECK(result == -EBUSY, "one that the application has: %d", result);
	result = start_with("[txq0@" SKELETON "#0]");
	CHECK(result == 0, "a channel that it leaves to the driver: %d", result);
	CHECK(rte_dma_stop((int16_t)id) == 0, "it was not left running");
}

/* The application's own channel, which is not at its beginning. */
static void
shared_channel(void)
{
	struct rte_dma_conf conf = {.nb_vchans = 1};
	struct rte_dma_vchan_conf vchan = {.direction = RTE_DMA_DIR_MEM_TO_MEM, .nb_desc = 256};
	uint8_t from[64] = {1, 2, 3}, to[64];
	uint16_t last;
	bool error;
	int id;

	REQUIRE(skeleton_there(), "no dma_skeleton");
	id = rte_dma_get_dev_id_by_name(SKELETON);
	REQUIRE(rte_dma_configure((int16_t)id, &conf) == 0, "no configure");
	REQUIRE(rte_dma_vchan_setup((int16_t)id, 0, &vchan) == 0, "no channel");
	REQUIRE(rte_dma_start((int16_t)id) == 0, "no start");
	for (unsigned int i = 0; i < 1000; i++) {
		rte_dma_copy((int16_t)id, 0, (rte_iova_t)(uintptr_t)from, (rte_iova_t)(uintptr_t)to,
			     sizeof(to), RTE_DMA_OP_FLAG_SUBMIT);
		WAIT_FOR(rte_dma_completed((int16_t)id, 0, 1, &last, &error) == 1, SOON_MS);
	}
	REQUIRE(open_with_engines((struct pair_options){0}, SKELETON "#0", ""), "no pair");
	expect_flow((struct flow){.first_length = 1000, .last_length = 1500, .count = 5000});
	expect_engine_worked(0);
	pair_close(&pair);
	CHECK(rte_dma_stop((int16_t)id) == 0, "it was not left running");
}

static void
devargs_are_strict(void)
{
	static const char *const bad[] = {
		"dmas", "dmas=", "dmas=[]", "dmas=[txq0]", "dmas=[txq1@sw]", "dmas=[txd0@sw]",
		"dmas=[txq0:0000:00:04.0]", "dmas=[txq0@sw", "dmas=[txq0@sw=1]", "dmas=txq0@sw,dmathr=x",
		"dma-ring-size=0", "dma_ring_size=many",
	};

	for (unsigned int i = 0; i < RTE_DIM(bad); i++)
		CHECK(vdev_attach(BACKEND, "iface=%s,%s", socket_path("bad.sock"), bad[i]) == NO_PORT,
		      "%s makes a port", bad[i]);
}

static void
statistics_only_with_engines(void)
{
	REQUIRE(pair_open(&pair, &(struct pair_options){0}), "no pair");
	CHECK(xstat(pair.backend, "tx_q0_dma_copies") == UINT64_MAX, "a port without engines has it");
	pair_close(&pair);
}

int
main(void)
{
	eal_start("dma");
	tested = TO_GUEST;
	after_each_case(vdev_detach_all);
	if (plugin_is_stock()) {
		printf("1..0 # skipped: stock has no engines\n");
		eal_end();
		return EXIT_SKIPPED;
	}
	run_case("devargs are checked", devargs_are_strict, 10);
	run_case("engines are opened at start", engines_are_opened_at_start, 10);
	run_case("a channel of the application's is used where it stands", shared_channel, 20);
	run_case("only ports with engines count copies", statistics_only_with_engines, 10);
	run_case("packets arrive when nobody polls", nobody_polls, 30);
	run_case("tx_done_cleanup frees what was copied", done_cleanup, 60);
	run_case("a port stops and starts under traffic", stop_and_start_under_traffic, 60);
	run_case("a frontend leaves under traffic", frontend_leaves, 60);
	run_case("one engine serves many queues", many_queues_on_one_engine, 60);
	run_directionless_cases();
	return eal_end();
}
