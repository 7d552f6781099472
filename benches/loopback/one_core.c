/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One lcore sends the same packets round and round:
 *
 *     virtio-user tx_burst -> net_vhost rx_burst (timed) -> net_vhost tx_burst (timed)
 *                          -> virtio-user rx_burst
 *
 * All caches are warm. The main lcore sleeps meanwhile: it may be the other half of the same core.
 */
#include "loopback.h"

#include <semaphore.h>
#include <stdlib.h>

#include <rte_launch.h>

static sem_t finished;

static void turn(const struct bench *bench, const struct cell *cell, struct packets *packets, bool check,
		 struct sums *sums)
{
	for (uint16_t queue = 0; queue < bench->options.queues; queue++) {
		peer_sends(bench, cell, queue, packets);
		vhost_turn(bench, cell, queue, check, sums);
		peer_receives(bench, cell, queue, packets);
	}
}

static void measure(const struct bench *bench, const struct cell *cell, struct batches *batches)
{
	/* All but one wait. Each set goes round as if it were alone. */
	unsigned int set_count = bench->options.parked / cell->burst + 1, set = 0;
	struct packets *sets = calloc(set_count, sizeof(*sets));
	if (sets == NULL)
		die("no memory");
	struct sums ignored = { 0 };
	unsigned int turns = 16;
	if (cell->size != 0) {
		for (unsigned int i = 0; i < set_count; i++)
			make_packets(bench, cell, &sets[i]);
		/* Twice around each ring, with a look at each packet. */
		for (unsigned int i = 0; i < 2 * bench->options.ring / cell->burst + 2; i++) {
			set = (set + 1) % set_count;
			turn(bench, cell, &sets[set], true, &ignored);
			check_packets(bench, cell, &sets[set]);
		}
		uint64_t start = rte_rdtsc();
		for (int i = 0; i < 64; i++)
			turn(bench, cell, &sets[set = (set + 1) % set_count], false, &ignored);
		uint64_t wanted = rte_get_tsc_hz() / 10000, took = (rte_rdtsc() - start) / 64;
		turns = (unsigned int)(wanted / RTE_MAX(took, UINT64_C(1))) + 1;
	}
	batches_start(batches);
	while (batches_go_on(batches)) {
		struct sums sums = { 0 };
		batches_begin(batches);
		for (unsigned int i = 0; i < turns; i++) {
			if (cell->size == 0)
				vhost_empty_polls(bench, cell, &sums);
			else
				turn(bench, cell, &sets[set = (set + 1) % set_count], false, &sums);
		}
		batches_end(batches, &sums, cell->size == 0 ? EMPTY_POLLS : cell->burst);
	}
	for (unsigned int i = 0; cell->size != 0 && i < set_count; i++) {
		check_packets(bench, cell, &sets[i]);
		free_packets(bench, cell, &sets[i]);
	}
	free(sets);
	batches_print(batches, cell);
}

static int on_the_measuring_core(void *argument)
{
	struct bench *bench = argument;
	struct batches *batches = batches_new(bench, false);
	for (unsigned int i = 0; i < bench->options.cell_count; i++)
		measure(bench, &bench->options.cells[i], batches);
	sem_post(&finished);
	return 0;
}

void one_core(struct bench *bench)
{
	sem_init(&finished, 0, 0);
	rte_eal_remote_launch(on_the_measuring_core, bench, (unsigned int)bench->options.measure_core);
	while (sem_wait(&finished) != 0)
		;
}
