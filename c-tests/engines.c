/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Traffic through one copy engine, named by the program's argument as `dmas=` names it, every byte
 * compared. Work queues are files with a thread behind them; a channel of I/OAT must be there.
 */
#include "lib/check.h"
#include "lib/dsa.h"
#include "lib/eal.h"
#include "lib/pair.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_malloc.h>
#include <rte_memory.h>
#include <rte_vfio.h>

#define SOON_MS 2000
/* Copies of a batch, unless somebody tells the kernel otherwise. */
#define KERNELS_BATCH 32

static struct pair pair;
static struct pair_options cell;
static const char *engine;
static bool emulated;

static uint64_t
counter_of(const char *queue, const char *what)
{
	char name[64];

	snprintf(name, sizeof(name), "%s_dma_%s", queue, what);
	return xstat(pair.backend, name);
}

static uint64_t
counter(const char *what)
{
	return counter_of("tx_q0", what);
}

static bool
open_pair_with(const char *queues)
{
	static char devargs[128];
	struct pair_options options = cell;

	snprintf(devargs, sizeof(devargs), ",dmas=[%s@%s],dmathr=256", queues, engine);
	options.devargs = devargs;
	return pair_open(&pair, &options);
}

static bool
open_pair(void)
{
	return open_pair_with("txq0");
}

static void
expect_flow(struct flow flow)
{
	flow.direction = TO_GUEST;
	CHECK(pair_move(&pair, &flow) == flow.count, "%s: burst %u, lengths %u to %u", engine,
	      flow.burst, flow.first_length, flow.last_length);
}

static void
expect_all_landed(void)
{
	WAIT_FOR(counter("inflight") == 0, SOON_MS);
	CHECK(counter("inflight") == 0, "%" PRIu64 " are under way", counter("inflight"));
}

static void
expect_no_trouble(void)
{
	expect_all_landed();
	CHECK(counter("copies") > 0, "%s was not used", engine);
	CHECK(counter("errors") == 0, "%" PRIu64 " errors", counter("errors"));
	CHECK(counter("engine_dead") == 0, "%s is dead", engine);
	CHECK(counter("drain_timeouts") == 0, "%" PRIu64 " drains", counter("drain_timeouts"));
}

static void
packets_arrive(void)
{
	static const unsigned int bursts[] = {1, 4, 32, 64, 256};

	REQUIRE(open_pair(), "no pair");
	for (unsigned int i = 0; i < RTE_DIM(bursts); i++)
		expect_flow((struct flow){.first_length = 60,
					  .last_length = 1518,
					  .count = 1459,
					  .burst = bursts[i],
					  .seed = i});
	expect_flow((struct flow){
		.first_length = 8990, .last_length = 9000, .count = 64, .burst = 8});
	expect_no_trouble();
	pair_close(&pair);
}

static void
run_cell(bool packed, bool no_mergeable)
{
	char name[128];

	cell = (struct pair_options){.packed = packed, .no_mergeable = no_mergeable};
	if (no_mergeable)
		cell.frontend_room = 9728;
	snprintf(name, sizeof(name), "%s: %s ring, %s", engine, packed ? "packed" : "split",
		 no_mergeable ? "not mergeable" : "mergeable");
	run_case(name, packets_arrive, 120);
	cell = (struct pair_options){0};
}

static void
port_stops_and_starts(void)
{
	REQUIRE(open_pair(), "no pair");
	for (unsigned int round = 0; round < 10; round++) {
		expect_flow((struct flow){
			.first_length = 1000, .last_length = 1500, .count = 500, .burst = 32});
		CHECK(rte_eth_dev_stop(pair.backend) == 0, "no stop");
		CHECK(rte_mempool_full(pair.backend_pool), "mbufs are out");
		CHECK(rte_eth_dev_start(pair.backend) == 0, "no start");
	}
	expect_no_trouble();
	pair_close(&pair);
}

static void
frontend_leaves(void)
{
	REQUIRE(open_pair(), "no pair");
	for (unsigned int round = 0; round < 5; round++) {
		expect_flow((struct flow){
			.first_length = 1000, .last_length = 1500, .count = 500, .burst = 32});
		pair_close_frontend(&pair);
		CHECK(wait_for_link(pair.backend, false), "the link stayed up");
		CHECK(rte_mempool_full(pair.backend_pool), "mbufs are out");
		REQUIRE(pair_open_frontend(&pair), "no other frontend");
	}
	expect_no_trouble();
	pair_close(&pair);
}

static void
packets_of_the_guest_arrive(void)
{
	REQUIRE(open_pair_with("rxq0"), "no pair");
	for (unsigned int round = 0; round < 3; round++) {
		struct flow flow = {.direction = TO_HOST,
				    .first_length = 60,
				    .last_length = 1518,
				    .count = 1459,
				    .burst = 32,
				    .seed = round};

		CHECK(pair_move(&pair, &flow) == flow.count, "%s: round %u", engine, round);
	}
	CHECK(counter_of("rx_q0", "copies") > 0, "%s was not used", engine);
	CHECK(counter_of("rx_q0", "errors") == 0, "%" PRIu64 " errors",
	      counter_of("rx_q0", "errors"));
	CHECK(counter_of("rx_q0", "cpu_noaddr") == 0, "%" PRIu64 " copies out of reach",
	      counter_of("rx_q0", "cpu_noaddr"));
	pair_close(&pair);
}

/* Bytes of EAL's memory that came and went. */
static size_t came, went;

static void
note_change(enum rte_mem_event event, const void *start, size_t length, void *unused)
{
	(void)start;
	(void)unused;
	if (event == RTE_MEM_EVENT_ALLOC)
		came += length;
	else
		went += length;
}

/* Takes EAL's memory until it has to get some more. */
static bool
use_up_memory(void **blocks, unsigned int count)
{
	size_t before = came;

	for (unsigned int i = 0; i < count && came == before; i++) {
		blocks[i] = rte_malloc(NULL, 4 << 20, 0);
		if (blocks[i] == NULL)
			return false;
	}
	return came != before;
}

static void
send_from_later_memory(void)
{
	struct rte_mempool *pool = pair.backend_pool;
	size_t before = came;
	struct rte_mempool *late = make_pool("late", 8191, pair.options.backend_room);
	uint64_t copies = counter("copies");

	REQUIRE(late != NULL, "no memory for a pool");
	CHECK(came > before, "the pool is where other things were");
	pair.backend_pool = late;
	expect_flow((struct flow){
		.first_length = 1000, .last_length = 1500, .count = 8000, .burst = 256});
	expect_all_landed();
	pair.backend_pool = pool;
	/* A burst may be more than an engine takes at a time; the rest is the CPU's. */
	CHECK(counter("copies") - copies >= 2000, "%" PRIu64 " copies", counter("copies") - copies);
	CHECK(rte_mempool_full(late), "mbufs are out");
	before = went;
	rte_mempool_free(late);
	CHECK(went > before, "its memory stayed");
}

static void
memory_that_comes_later_is_reached(void)
{
	static void *blocks[128];
	bool watched = rte_mem_event_callback_register("engines", note_change, NULL) == 0;

	if (!watched) {
		skip_case("all of EAL's memory is there from the start");
		return;
	}
	REQUIRE(open_pair(), "no pair");
	if (use_up_memory(blocks, RTE_DIM(blocks))) {
		/* What goes and comes again is other memory at the same addresses. */
		for (unsigned int round = 0; round < 3; round++)
			send_from_later_memory();
		CHECK(counter("cpu_noaddr") == 0, "%" PRIu64 " copies out of reach",
		      counter("cpu_noaddr"));
		expect_no_trouble();
	} else {
		skip_case("no more memory for EAL");
	}
	for (unsigned int i = 0; i < RTE_DIM(blocks); i++) {
		rte_free(blocks[i]);
		blocks[i] = NULL;
	}
	pair_close(&pair);
	rte_mem_event_callback_unregister("engines", NULL);
}

/* EAL's container maps nothing while it has no device. */
static void
the_container_is_not_eals(void)
{
	static char page[4096] __rte_aligned(4096);
	uint64_t at = (uintptr_t)page;

	REQUIRE(open_pair(), "no pair");
	expect_flow((struct flow){
		.first_length = 1000, .last_length = 1500, .count = 500, .burst = 32});
	expect_no_trouble();
	CHECK(counter("cpu_noaddr") == 0, "%" PRIu64 " copies out of reach", counter("cpu_noaddr"));
	CHECK(rte_vfio_container_dma_map(RTE_VFIO_DEFAULT_CONTAINER_FD, at, at, sizeof(page)) != 0,
	      "EAL's has a device");
	pair_close(&pair);
}

/* Of each container that is set up from now on. */
static bool
limit_mappings(unsigned int count)
{
	FILE *file = fopen("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "w");

	if (file == NULL)
		return false;
	fprintf(file, "%u", count);
	return fclose(file) == 0;
}

static void
an_engine_without_its_memory_fails_the_start(void)
{
	struct port_config config = {.queues = 1, .pool = make_pool("alone", 1023, 2048)};
	uint16_t port = vdev_attach(BACKEND, "iface=%s,dmas=[txq0@%s]", socket_path("alone.sock"),
				    engine);

	REQUIRE(port != NO_PORT && config.pool != NULL, "no port");
	REQUIRE(limit_mappings(1), "no limit");
	CHECK(port_start(port, &config) == -ENODEV, "it started");
	limit_mappings(65535);
	CHECK(rte_eth_dev_start(port) == 0, "it does not start with room for mappings");
	CHECK(vdev_detach(BACKEND) == 0, "the port cannot be removed");
	rte_mempool_free(config.pool);
}

static void
missing_pages_are_made_good(void)
{
	REQUIRE(open_pair(), "no pair");
	for (unsigned int round = 0; round < 20; round++) {
		dsa_fail_copy(round * 3, 0x03, 100 * (round % 10));
		expect_flow((struct flow){
			.first_length = 1000, .last_length = 1500, .count = 501, .burst = 32});
	}
	expect_all_landed();
	CHECK(counter("engine_dead") == 0, "%s is dead", engine);
	pair_close(&pair);
}

/* Bursts go to an engine that has not finished those before, and takes one burst at a time. */
static void
an_engine_has_more_than_a_batch(void)
{
	struct rte_mbuf *mbufs[KERNELS_BATCH];
	unsigned int bursts = 4, arrived = 0;

	REQUIRE(open_pair(), "no pair");
	dsa_hold(true);
	for (unsigned int nth = 0; nth < bursts; nth++) {
		uint16_t sent;

		for (unsigned int i = 0; i < RTE_DIM(mbufs); i++) {
			REQUIRE((mbufs[i] = rte_pktmbuf_alloc(pair.backend_pool)) != NULL, "no mbuf");
			rte_pktmbuf_append(mbufs[i], 1500);
		}
		sent = rte_eth_tx_burst(pair.backend, 0, mbufs, RTE_DIM(mbufs));
		CHECK(sent == RTE_DIM(mbufs), "%u were sent", sent);
	}
	CHECK(counter("copies") == bursts * RTE_DIM(mbufs), "the engine has %" PRIu64,
	      counter("copies"));
	CHECK(counter("cpu_noroom") == 0, "no room for %" PRIu64, counter("cpu_noroom"));
	dsa_hold(false);
	for (struct rte_mbuf *mbuf; arrived < bursts * RTE_DIM(mbufs) &&
	     (mbuf = receive_one(pair.frontend, 0, SOON_MS)) != NULL; arrived++)
		rte_pktmbuf_free(mbuf);
	CHECK(arrived == bursts * RTE_DIM(mbufs), "%u arrived", arrived);
	expect_no_trouble();
	pair_close(&pair);
}

/* Last, since it is dead then for good. */
static void
a_lost_submission_ends_the_engine_only(void)
{
	REQUIRE(open_pair(), "no pair");
	dsa_lose_submission();
	expect_flow((struct flow){
		.first_length = 1000, .last_length = 1500, .count = 501, .burst = 32});
	expect_flow((struct flow){
		.first_length = 1000, .last_length = 1500, .count = 501, .burst = 32});
	expect_all_landed();
	CHECK(counter("engine_dead") == 1, "%" PRIu64 " engines are dead", counter("engine_dead"));
	CHECK(counter("redone") > 0, "nobody did what was lost");
	pair_close(&pair);
}

#define VFIO "/dev/vfio/vfio"
#define HIDDEN "/dev/vfio/hidden"
/* Fewer than DPDK's memory has pages. */
#define FEW_MAPPINGS 100

/*
 * EAL's container does not do: it finds no VFIO when it starts, it may not have as many mappings as
 * its memory has pages, or the IOMMU is narrow.
 */
static int
run_in_own_container(const char *reason)
{
	bool hidden = strcmp(reason, "hidden") == 0, limited = strcmp(reason, "limited") == 0;

	if (hidden && rename(VFIO, HIDDEN) != 0)
		return EXIT_FAILURE;
	/* Each page is a mapping then. */
	if (limited)
		setenv("NET_VHOST_IOVA", "pa", 1);
	eal_start("engines");
	if (hidden && rename(HIDDEN, VFIO) != 0)
		return EXIT_FAILURE;
	if (limited && !limit_mappings(FEW_MAPPINGS))
		return EXIT_FAILURE;
	after_each_case(vdev_detach_all);
	printf("# EAL's container is %s\n", reason);
	run_case("the container is not EAL's", the_container_is_not_eals, 60);
	run_case("packets of the guest arrive", packets_of_the_guest_arrive, 60);
	run_case("memory that comes later is reached", memory_that_comes_later_is_reached, 60);
	run_case("a port stops and starts", port_stops_and_starts, 60);
	if (limited)
		run_case("an engine without its memory fails the start",
			 an_engine_without_its_memory_fails_the_start, 60);
	return eal_end();
}

int
main(int argc, char **argv)
{
	const char *own = getenv("NET_VHOST_OWN_CONTAINER");

	engine = argc > 1 ? argv[1] : "wq:wq0.0";
	if (own != NULL)
		return run_in_own_container(own);
	if (strcmp(engine, "wq:wq0.0") == 0) {
		dsa_create(DSA_PIPE, "copies");
		emulated = true;
	} else if (strcmp(engine, "dmadev:wq0.0") == 0) {
		dsa_limit_batches(KERNELS_BATCH);
		dsa_create(DSA_PAGE, "dpdk_copies");
		emulated = true;
	}
	eal_start("engines");
	if (plugin_is_stock()) {
		printf("1..0 # skipped: stock has no engines\n");
		eal_end();
		return EXIT_SKIPPED;
	}
	if (emulated)
		dsa_start();
	after_each_case(vdev_detach_all);
	if (emulated)
		run_case("an engine has more than a batch", an_engine_has_more_than_a_batch, 60);
	if (emulated)
		run_case("missing pages are made good", missing_pages_are_made_good, 60);
	run_cell(false, false);
	run_cell(false, true);
	run_cell(true, false);
	run_cell(true, true);
	run_case("packets of the guest arrive", packets_of_the_guest_arrive, 60);
	run_case("memory that comes later is reached", memory_that_comes_later_is_reached, 60);
	run_case("a port stops and starts", port_stops_and_starts, 60);
	run_case("a frontend leaves and another comes", frontend_leaves, 60);
	/* DPDK's driver cannot stop its queue. */
	if (strcmp(engine, "wq:wq0.0") == 0)
		run_case("a lost submission ends the engine only",
			 a_lost_submission_ends_the_engine_only, 60);
	if (emulated)
		dsa_remove();
	return eal_end();
}
