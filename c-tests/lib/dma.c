/* SPDX-License-Identifier: BSD-3-Clause */
#include "dma.h"

#include "check.h"
#include "eal.h"

#include <inttypes.h>
#include <stdio.h>

#include <rte_dmadev.h>

enum direction tested;
struct pair pair;

static struct pair_options cell;
static const char *engine;

bool
skeleton_there(void)
{
	return vdev_attach(SKELETON, "%s", "") == NO_PORT &&
	       rte_dma_get_dev_id_by_name(SKELETON) >= 0;
}

bool
open_with_engines(struct pair_options options, const char *engines, const char *more)
{
	char devargs[128];

	snprintf(devargs, sizeof(devargs), ",dmas=[%sq0@%s]%s", tested == TO_GUEST ? "tx" : "rx",
		 engines, more);
	options.devargs = devargs;
	return pair_open(&pair, &options);
}

void
expect_flow(struct flow flow)
{
	flow.direction = tested;
	CHECK(pair_move(&pair, &flow) == flow.count, "burst %u, lengths %u to %u", flow.burst,
	      flow.first_length, flow.last_length);
}

uint64_t
counter(unsigned int queue, const char *what)
{
	char name[64];

	snprintf(name, sizeof(name), "%s_q%u_dma_%s", tested == TO_GUEST ? "tx" : "rx", queue, what);
	return xstat(pair.backend, name);
}

void
expect_engine_worked(unsigned int queue)
{
	CHECK(counter(queue, "copies") > 0, "no engine was used");
	CHECK(counter(queue, "errors") == 0, "%" PRIu64 " errors", counter(queue, "errors"));
	CHECK(counter(queue, "engine_dead") == 0, "an engine is dead");
	CHECK(counter(queue, "drain_timeouts") == 0, "%" PRIu64 " drains were late",
	      counter(queue, "drain_timeouts"));
}

static void
many_engines_of_one_queue(void)
{
	const char *engines = tested == TO_GUEST ? SKELETON ";txq0@sw:a+sw:b"
						 : SKELETON ";rxq0@sw:a+sw:b";

	REQUIRE(skeleton_there(), "no dma_skeleton");
	REQUIRE(open_with_engines((struct pair_options){0}, engines, ",dmathr=64"), "no pair");
	expect_flow((struct flow){.first_length = 60, .last_length = 1514, .count = 14550});
	expect_flow((struct flow){.first_length = 9000, .last_length = 9000, .count = 500});
	expect_engine_worked(0);
	pair_close(&pair);
}

static void
small_engine_ring(void)
{
	REQUIRE(skeleton_there(), "no dma_skeleton");
	REQUIRE(open_with_engines((struct pair_options){.ring_size = 1024}, SKELETON,
				  ",dma_ring_size=32,dmathr=64"),
		"no pair");
	expect_flow(
		(struct flow){.first_length = 60, .last_length = 1514, .count = 14550, .burst = 256});
	CHECK(counter(0, "cpu_noroom") > 0, "32 places were always enough");
	expect_engine_worked(0);
	pair_close(&pair);
}

static void
move_in_cell(void)
{
	static const unsigned int bursts[] = {1, 4, 32, 64, 256};
	struct flow back = {.direction = tested == TO_GUEST ? TO_HOST : TO_GUEST,
			    .first_length = 60,
			    .last_length = 1518,
			    .count = 500};

	REQUIRE(skeleton_there(), "no dma_skeleton");
	REQUIRE(open_with_engines(cell, engine, ",dmathr=256"), "no pair");
	for (unsigned int i = 0; i < RTE_DIM(bursts); i++)
		expect_flow((struct flow){.first_length = 60,
					  .last_length = 1518,
					  .count = run_is_slow() ? 2 * bursts[i] : 4560,
					  .burst = bursts[i],
					  .seed = i});
	/* Chains of descriptors, and of mbufs. */
	expect_flow(
		(struct flow){.first_length = 8990, .last_length = 9000, .count = 64, .burst = 8});
	expect_flow((struct flow){
		.first_length = 900, .last_length = 2100, .count = 300, .burst = 16, .segment = 500});
	CHECK(pair_move(&pair, &back) == back.count, "the other direction stands still");
	/* Nobody calls the driver but for statistics. */
	WAIT_FOR(counter(0, "inflight") == 0, SOON_MS);
	CHECK(counter(0, "inflight") == 0, "%" PRIu64 " are under way", counter(0, "inflight"));
	expect_engine_worked(0);
	pair_close(&pair);
}

static void
run_cell(uint16_t ring_size)
{
	char name[128];

	cell.ring_size = ring_size;
	snprintf(name, sizeof(name), "%s: %s ring of %u, %s%s", engine,
		 cell.packed ? "packed" : "split", ring_size,
		 cell.no_mergeable ? "not mergeable" : "mergeable", cell.in_order ? ", in order" : "");
	run_case(name, move_in_cell, 60);
}

void
run_directionless_cases(void)
{
	static const char *const engines[] = {"sw", SKELETON};

	run_case("a queue has many engines", many_engines_of_one_queue, 60);
	run_case("an engine with 32 places", small_engine_ring, 60);
	for (unsigned int i = 0; i < RTE_DIM(engines); i++) {
		engine = engines[i];
		for (unsigned int kind = 0; kind < 8; kind++) {
			cell = (struct pair_options){
				.packed = kind & 4,
				.no_mergeable = kind & 2,
				.in_order = kind & 1,
			};
			if (cell.no_mergeable)
				cell.frontend_room = 9728;
			run_cell(256);
			if (cell.packed)
				run_cell(255);
		}
	}
}
