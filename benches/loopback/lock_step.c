/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Two lcores in turn: the peer touches every line of a burst, sends it and says so; the port's side does
 * its two timed calls and says so; the peer takes the burst back. So each call finds its lines in the other
 * core's cache, and each burst is whole. (Two lcores that run freely punish the faster driver: it polls
 * more often and sees smaller bursts.)
 */
#include "loopback.h"

#include <rte_launch.h>
#include <rte_pause.h>

/* Each word has a cache line of its own. */
static struct {
	uint64_t sent __rte_cache_aligned;  /* turns that the peer has begun */
	uint64_t moved __rte_cache_aligned; /* turns that the port's side has finished */
	uint64_t last __rte_cache_aligned;  /* the turn after which the cell ends */
	uint64_t ready __rte_cache_aligned; /* cells that the peer has left */
} steps;

static uint64_t read_step(const uint64_t *step)
{
	return __atomic_load_n(step, __ATOMIC_ACQUIRE);
}

static void write_step(uint64_t *step, uint64_t value)
{
	__atomic_store_n(step, value, __ATOMIC_RELEASE);
}

static void await_step(const uint64_t *step, uint64_t value)
{
	while (read_step(step) < value)
		rte_pause();
}

static void peer_awaits(const uint64_t *step, uint64_t value)
{
	while (read_step(step) < value) {
		answer_neighbour();
		rte_pause();
	}
}

static unsigned int checked_turns(const struct bench *bench, const struct cell *cell)
{
	return 2 * bench->options.ring / cell->burst + 2;
}

static void peer_cell(const struct bench *bench, const struct cell *cell, uint64_t *turn)
{
	struct packets packets;
	uint64_t checked = *turn + checked_turns(bench, cell);
	make_packets(bench, cell, &packets);
	do {
		for (uint16_t queue = 0; queue < bench->options.queues; queue++) {
			for (unsigned int i = 0; i < cell->burst; i++)
				touch_packet(packets.of[queue][i]);
			peer_sends(bench, cell, queue, &packets);
		}
		write_step(&steps.sent, ++*turn);
		peer_awaits(&steps.moved, *turn);
		for (uint16_t queue = 0; queue < bench->options.queues; queue++)
			peer_receives(bench, cell, queue, &packets);
		if (*turn <= checked)
			check_packets(bench, cell, &packets);
	} while (*turn < read_step(&steps.last));
	check_packets(bench, cell, &packets);
	free_packets(bench, cell, &packets);
}

static void vhost_turns(const struct bench *bench, const struct cell *cell, unsigned int turns, bool check,
			uint64_t *turn, struct sums *sums)
{
	for (unsigned int i = 0; i < turns; i++) {
		await_step(&steps.sent, ++*turn);
		for (uint16_t queue = 0; queue < bench->options.queues; queue++)
			vhost_turn(bench, cell, queue, check, sums);
		write_step(&steps.moved, *turn);
	}
}

static void vhost_cell(const struct bench *bench, const struct cell *cell, struct batches *batches, uint64_t *turn)
{
	struct sums ignored = { 0 };
	unsigned int turns = 16;
	if (cell->size != 0) {
		vhost_turns(bench, cell, checked_turns(bench, cell), true, turn, &ignored);
		uint64_t start = rte_rdtsc();
		vhost_turns(bench, cell, 64, false, turn, &ignored);
		uint64_t wanted = rte_get_tsc_hz() / 10000, took = (rte_rdtsc() - start) / 64;
		turns = (unsigned int)(wanted / RTE_MAX(took, UINT64_C(1))) + 1;
	}
	batches_start(batches);
	while (batches_go_on(batches)) {
		struct sums sums = { 0 };
		batches_begin(batches);
		if (cell->size == 0)
			for (unsigned int i = 0; i < turns; i++)
				vhost_empty_polls(bench, cell, &sums);
		else
			vhost_turns(bench, cell, turns, false, turn, &sums);
		batches_end(batches, &sums, cell->size == 0 ? EMPTY_POLLS : cell->burst);
	}
	if (cell->size != 0) {
		write_step(&steps.last, *turn + 1);
		vhost_turns(bench, cell, 1, false, turn, &ignored);
	}
	batches_print(batches, cell);
}

static int on_the_measuring_core(void *argument)
{
	struct bench *bench = argument;
	struct batches *batches = batches_new(bench, true);
	uint64_t turn = 0;
	for (unsigned int i = 0; i < bench->options.cell_count; i++) {
		vhost_cell(bench, &bench->options.cells[i], batches, &turn);
		/* The peer leaves a cell only then, and must not take the next one's turns for this one's. */
		write_step(&steps.ready, i + 1);
	}
	return 0;
}

void lock_step(struct bench *bench)
{
	uint64_t turn = 0;
	rte_eal_remote_launch(on_the_measuring_core, bench, (unsigned int)bench->options.measure_core);
	for (unsigned int i = 0; i < bench->options.cell_count; i++) {
		const struct cell *cell = &bench->options.cells[i];
		write_step(&steps.last, UINT64_MAX);
		if (cell->size != 0)
			peer_cell(bench, cell, &turn);
		peer_awaits(&steps.ready, i + 1);
	}
	rte_eal_wait_lcore((unsigned int)bench->options.measure_core);
}
