/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Traffic through one copy engine, named by the program's argument as `dmas=` names it, every byte
 * compared. Work queues are files with a thread behind them; a channel of I/OAT must be there.
 */
#include "lib/check.h"
#include "lib/dsa.h"
#include "lib/eal.h"
#include "lib/pair.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define SOON_MS 2000

static struct pair pair;
static struct pair_options cell;
static const char *engine;
static bool emulated;

static uint64_t
counter(const char *what)
{
	char name[64];

	snprintf(name, sizeof(name), "tx_q0_dma_%s", what);
	return xstat(pair.backend, name);
}

static bool
open_pair(void)
{
	static char devargs[128];
	struct pair_options options = cell;

	snprintf(devargs, sizeof(devargs), ",dmas=[txq0@%s],dmathr=256", engine);
	options.devargs = devargs;
	return pair_open(&pair, &options);
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

int
main(int argc, char **argv)
{
	engine = argc > 1 ? argv[1] : "wq:wq0.0";
	if (strcmp(engine, "wq:wq0.0") == 0) {
		dsa_create(DSA_PIPE, "copies");
		emulated = true;
	} else if (strcmp(engine, "dmadev:wq0.0") == 0) {
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
		run_case("missing pages are made good", missing_pages_are_made_good, 60);
	run_cell(false, false);
	run_cell(false, true);
	run_cell(true, false);
	run_cell(true, true);
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
