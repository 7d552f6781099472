/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Whether the work queue of lib/dsa is one: DPDK's own driver uses it. What our driver is tried
 * against is then not only our own reading of the device.
 */
#include "lib/check.h"
#include "lib/dsa.h"
#include "lib/eal.h"

#include <string.h>

#include <rte_dmadev.h>
#include <rte_malloc.h>

#define LENGTH 1000
#define MOST 64
#define ROUNDS 2000

static int16_t queue;
static uint8_t *from, *to;

static void
fill(void)
{
	for (unsigned int at = 0; at < MOST * LENGTH; at++)
		from[at] = (uint8_t)(at % 251 + 1);
	memset(to, 0, MOST * LENGTH);
}

static bool
arrived(unsigned int nth)
{
	return memcmp(from + nth * LENGTH, to + nth * LENGTH, LENGTH) == 0;
}

/* Stages copies from `first` and starts them. */
static void
burst(unsigned int copies)
{
	for (unsigned int nth = 0; nth < copies; nth++) {
		int result = rte_dma_copy(queue, 0, (uintptr_t)(from + nth * LENGTH),
					  (uintptr_t)(to + nth * LENGTH), LENGTH, 0);

		REQUIRE(result >= 0, "copy %u of %u: %d", nth, copies, result);
	}
	CHECK(rte_dma_submit(queue, 0) == 0, "submit");
}

/* Waits for completions without error; how many there were. */
static unsigned int
complete(unsigned int copies, bool *error)
{
	unsigned int done = 0;
	uint16_t last;

	*error = false;
	WAIT_FOR((done += rte_dma_completed(queue, 0, MOST, &last, error)) >= copies || *error,
		 5000);
	return done;
}

static void
driver_takes_the_queue(void)
{
	struct rte_dma_info info;

	queue = (int16_t)rte_dma_get_dev_id_by_name("wq0.0");
	REQUIRE(queue >= 0, "no dmadev wq0.0");
	REQUIRE(rte_dma_info_get(queue, &info) == 0, "no info");
	CHECK((info.dev_capa & RTE_DMA_CAPA_OPS_COPY) != 0, "%#llx",
	      (unsigned long long)info.dev_capa);
	CHECK((info.dev_capa & RTE_DMA_CAPA_SVA) != 0, "%#llx", (unsigned long long)info.dev_capa);
	CHECK(rte_dma_configure(queue, &(struct rte_dma_conf){.nb_vchans = 1}) == 0, "configure");
	CHECK(rte_dma_vchan_setup(queue, 0,
				  &(struct rte_dma_vchan_conf){.direction = RTE_DMA_DIR_MEM_TO_MEM,
							       .nb_desc = 256}) == 0,
	      "vchan");
	CHECK(rte_dma_start(queue) == 0, "start");
}

static void
bursts_of_all_lengths_arrive(void)
{
	unsigned int before = dsa_copies(), sum = 0;
	bool error;

	for (unsigned int round = 0; round < ROUNDS; round++) {
		unsigned int copies = 1 + round % MOST;

		fill();
		burst(copies);
		REQUIRE(complete(copies, &error) == copies && !error, "round %u", round);
		for (unsigned int nth = 0; nth < copies; nth++)
			REQUIRE(arrived(nth), "copy %u of round %u", nth, round);
		sum += copies;
	}
	CHECK(dsa_copies() - before == sum, "%u of %u", dsa_copies() - before, sum);
	CHECK(dsa_batches() > ROUNDS / 2, "%u batches", dsa_batches());
}

static void
a_page_fault_in_a_batch_is_reported_where_it_was(void)
{
	enum rte_dma_status_code status[8] = {0};
	uint16_t last, count = 0;
	bool error;

	fill();
	dsa_fail_copy(3, 0x03, LENGTH / 2);
	burst(8);
	CHECK(complete(8, &error) == 3 && error, "error %d", error);
	WAIT_FOR((count = rte_dma_completed_status(queue, 0, 8, &last, status)) > 0, 1000);
	REQUIRE(count == 5, "%u statuses", count);
	CHECK(status[0] == RTE_DMA_STATUS_PAGE_FAULT, "%d", status[0]);
	for (unsigned int nth = 1; nth < 5; nth++)
		CHECK(status[nth] == RTE_DMA_STATUS_SUCCESSFUL, "%u: %d", nth, status[nth]);
	CHECK(!arrived(3) && arrived(4) && arrived(7), "the wrong copy failed");
}

static void
a_failed_copy_alone_is_reported(void)
{
	enum rte_dma_status_code status = RTE_DMA_STATUS_SUCCESSFUL;
	uint16_t last, count = 0;
	bool error;

	dsa_fail_copy(0, 0x13, 0);
	burst(1);
	CHECK(complete(1, &error) == 0 && error, "error %d", error);
	WAIT_FOR((count = rte_dma_completed_status(queue, 0, 1, &last, &status)) > 0, 1000);
	CHECK(count == 1 && status == RTE_DMA_STATUS_INVALID_LENGTH, "%u, %d", count, status);
	burst(2);
	CHECK(complete(2, &error) == 2 && !error, "it does not go on");
}

static void
a_lost_submission_never_completes_and_stop_does_not_mind(void)
{
	uint16_t last;
	bool error = false;

	dsa_lose_submission();
	burst(1);
	WAIT_FOR(rte_dma_completed(queue, 0, 1, &last, &error) != 0, 200);
	CHECK(rte_dma_completed(queue, 0, 1, &last, &error) == 0 && !error, "it completed");
	CHECK(rte_dma_stop(queue) == 0, "stop");
}

int
main(void)
{
	dsa_create(DSA_PAGE, "dpdk_copies");
	eal_start("dsa_device");
	dsa_start();
	from = rte_malloc(NULL, MOST * LENGTH, 64);
	to = rte_malloc(NULL, MOST * LENGTH, 64);
	run_case("DPDK's driver takes the queue", driver_takes_the_queue, 10);
	run_case("bursts of all lengths arrive", bursts_of_all_lengths_arrive, 50);
	run_case("a page fault in a batch is reported where it was",
		 a_page_fault_in_a_batch_is_reported_where_it_was, 10);
	run_case("a failed copy alone is reported", a_failed_copy_alone_is_reported, 10);
	run_case("a lost submission never completes, and stop does not mind",
		 a_lost_submission_never_completes_and_stop_does_not_mind, 10);
	rte_free(from);
	rte_free(to);
	dsa_remove();
	return eal_end();
}
