/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Batches of about 100 us, each with the core's clock and the state of its neighbour before and after.
 */
#include "loopback.h"

#include <stdio.h>
#include <stdlib.h>

#include "clock.h"

#define MOST 20000
/* Fewer than this tell nothing; a cell then takes up to four times as long. */
#define ENOUGH 40
#define CLOCK_TOLERANCE 1.03

struct batch {
	double rx, tx; /* core cycles per packet */
	double block;  /* core cycles of the block, the worse of before and after */
	enum place place; /* of the peer */
};

struct batches {
	struct batch of[MOST];
	unsigned int count;
	bool has_peer;
	unsigned int moved; /* batches during which the clock or the peer's place changed */
	double stamp_cost;
	double lowest_block;
	uint64_t started, ms, packets, partial, timed;
	double ratio, block; /* when the batch began */
	enum place place;
};

struct batches *batches_new(const struct bench *bench, bool has_peer)
{
	struct batches *batches = calloc(1, sizeof(*batches));
	if (batches == NULL)
		die("out of memory");
	batches->lowest_block = bench->options.block > 0 ? bench->options.block : 1e18;
	batches->has_peer = has_peer;
	batches->ms = bench->options.ms;
	for (int i = 0; i < 1000; i++)
		clock_ratio();
	batches->stamp_cost = stamp_cost();
	return batches;
}

void batches_start(struct batches *batches)
{
	batches->count = batches->moved = 0;
	batches->packets = batches->partial = batches->timed = 0;
	batches->started = rte_rdtsc();
}

static bool is_quiet(const struct batches *batches, const struct batch *batch)
{
	return batch->block <= batches->lowest_block * BLOCK_TOLERANCE;
}

static unsigned int quiet(const struct batches *batches, enum place place)
{
	unsigned int count = 0;
	for (unsigned int i = 0; i < batches->count; i++)
		count += batches->of[i].place == place && is_quiet(batches, &batches->of[i]);
	return count;
}

bool batches_go_on(struct batches *batches)
{
	if (batches->count == MOST)
		return false;
	uint64_t ms = (rte_rdtsc() - batches->started) * 1000 / rte_get_tsc_hz();
	if (ms < batches->ms)
		return true;
	return ms < 4 * batches->ms && quiet(batches, NEAR) < ENOUGH && quiet(batches, FAR) < ENOUGH;
}

void batches_begin(struct batches *batches)
{
	batches->ratio = clock_ratio();
	batches->block = block_ticks() * batches->ratio;
	batches->place = batches->has_peer ? neighbour_place() : NEAR;
}

void batches_end(struct batches *batches, const struct sums *sums, unsigned int packets_per_burst)
{
	double ratio = clock_ratio(), block = block_ticks() * ratio;
	batches->partial += sums->partial;
	batches->timed += sums->bursts;
	batches->packets += sums->bursts * packets_per_burst;
	if (sums->bursts == 0)
		return;
	enum place place = batches->has_peer ? neighbour_place() : NEAR;
	if (ratio > batches->ratio * CLOCK_TOLERANCE || batches->ratio > ratio * CLOCK_TOLERANCE ||
	    place != batches->place) {
		batches->moved++;
		return;
	}
	double per_packet = (ratio + batches->ratio) / 2 / (double)(sums->bursts * packets_per_burst);
	struct batch *batch = &batches->of[batches->count++];
	batch->rx = ((double)sums->rx_ticks - batches->stamp_cost * (double)sums->rx_calls) * per_packet;
	batch->tx = ((double)sums->tx_ticks - batches->stamp_cost * (double)sums->tx_calls) * per_packet;
	batch->place = place;
	batch->block = RTE_MAX(block, batches->block);
	double lowest = RTE_MIN(block, batches->block);
	batches->lowest_block = RTE_MIN(batches->lowest_block, lowest);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static void print_place(const struct batches *batches, const struct cell *cell, enum place place)
{
	static const char *const names[PLACES] = { "near", "far", "shared" };
	static double rx[MOST], tx[MOST];
	unsigned int count = 0, dropped = 0;
	/* With no quiet moment the numbers are poor, and marked so. */
	bool noisy = quiet(batches, place) < ENOUGH / 4;
	for (unsigned int i = 0; i < batches->count; i++) {
		const struct batch *batch = &batches->of[i];
		if (batch->place != place)
			continue;
		if (!noisy && !is_quiet(batches, batch)) {
			dropped++;
			continue;
		}
		rx[count] = batch->rx;
		tx[count++] = batch->tx;
	}
	if (count == 0)
		return;
	qsort(rx, count, sizeof(double), by_value);
	qsort(tx, count, sizeof(double), by_value);
	printf("cell size=%u burst=%u rx_p10=%.2f rx_median=%.2f", cell->size, cell->burst, rx[count / 10],
	       rx[count / 2]);
	if (cell->size != 0)
		printf(" tx_p10=%.2f tx_median=%.2f", tx[count / 10], tx[count / 2]);
	printf(" batches=%u dropped=%u noisy=%d place=%s\n", count, dropped, noisy, names[place]);
}

void batches_print(struct batches *batches, const struct cell *cell)
{
	if (batches->count == 0)
		die("no batch of %u bytes, burst %u: the clock moved in %u, %" PRIu64 " bursts were partial",
		    cell->size, cell->burst, batches->moved, batches->partial);
	for (enum place place = NEAR; place < PLACES; place++)
		print_place(batches, cell, place);
	printf("cell-end packets=%" PRIu64 " partial=%" PRIu64 " moved=%u block=%.0f mhz=%.0f\n",
	       batches->packets, batches->partial, batches->moved, batches->lowest_block,
	       clock_ratio() * (double)rte_get_tsc_hz() / 1e6);
	fflush(stdout);
}
