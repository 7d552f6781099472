/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Two lcores, each as fast as it can: packets per second at the port, in windows of 2 ms. A window during
 * which one of the two did not run does not count.
 */
#include "loopback.h"

#include <stdio.h>
#include <stdlib.h>

#include <rte_launch.h>
#include <rte_pause.h>

#include "clock.h"

#define MOST_WINDOWS 2000
#define ENOUGH_WINDOWS 20

static struct {
	uint64_t go __rte_cache_aligned;   /* the cell that both run, from 1 */
	uint64_t stop __rte_cache_aligned; /* the cell that is to end */
	uint64_t idle __rte_cache_aligned; /* the cell in which the peer sends no more */
	uint64_t done __rte_cache_aligned; /* the cell in which the port sends no more */
	uint64_t gaps __rte_cache_aligned; /* how often the peer did not run */
	uint64_t alive;                    /* when it last ran */
} shared;

static uint64_t read_word(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static void write_word(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
}

/* More than 100 us between two looks at the clock: somebody else had the processor. */
static bool was_away(uint64_t before, uint64_t now)
{
	return now > before && now - before > rte_get_tsc_hz() / 10000;
}

/* For the peer, in each turn of its loops. */
static void note_gaps(uint64_t *last, unsigned int *turn)
{
	if (++*turn % 16 != 0)
		return;
	uint64_t now = rte_rdtsc();
	if (*last != 0 && was_away(*last, now))
		write_word(&shared.gaps, shared.gaps + 1);
	*last = now;
	write_word(&shared.alive, now);
}

/* One burst through the port; how many packets it moved. */
static unsigned int vhost_burst(const struct bench *bench, const struct cell *cell)
{
	struct rte_mbuf *packets[MAX_BURST];
	uint16_t burst = (uint16_t)cell->burst, count, sent = 0;
	uint64_t deadline;
	switch (cell->flow) {
	case FORWARD:
		count = rte_eth_rx_burst(bench->vhost, 0, packets, burst);
		if (count == 0)
			return 0;
		/* Nothing is dropped: the peer wants its packets back. */
		deadline = deadline_in(10);
		while ((sent += rte_eth_tx_burst(bench->vhost, 0, packets + sent, count - sent)) < count)
			check_deadline(deadline, "the port does not send");
		return count;
	case TO_HOST:
		count = rte_eth_rx_burst(bench->vhost, 0, packets, burst);
		rte_pktmbuf_free_bulk(packets, count);
		return count;
	case TO_GUEST:
		if (rte_pktmbuf_alloc_bulk(bench->vhost_pool, packets, burst) != 0)
			return 0;
		for (uint16_t i = 0; i < burst; i++) {
			packets[i]->pkt_len = cell->size;
			packets[i]->data_len = (uint16_t)cell->size;
		}
		sent = rte_eth_tx_burst(bench->vhost, 0, packets, burst);
		rte_pktmbuf_free_bulk(packets + sent, burst - sent);
		return sent;
	}
	return 0;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static void vhost_cell(const struct bench *bench, const struct cell *cell, uint64_t number)
{
	static struct {
		double rate;
		bool whole;
	} windows[MOST_WINDOWS];
	static double rates[MOST_WINDOWS];
	static const char *const flows[] = { "forward", "to-host", "to-guest" };
	static const char *const places[PLACES] = { "near", "far", "shared" };
	unsigned int count = 0, all = 0, good = 0;
	uint64_t window = rte_get_tsc_hz() / 500, packets = 0, gaps = 0;
	/* The first windows warm up. */
	unsigned int wanted = RTE_MIN(bench->options.ms / 2 + 1, MOST_WINDOWS / 4u), warm = 10;
	enum place place = neighbour_place();
	double block = block_ticks() * clock_ratio();
	write_word(&shared.go, number);
	uint64_t start = rte_rdtsc(), last = start, peer_gaps = read_word(&shared.gaps);
	while (count < wanted || (good < ENOUGH_WINDOWS && count < 4 * wanted)) {
		/* Few enough looks at the clock that they do not show. */
		for (int i = 0; i < 16; i++)
			packets += vhost_burst(bench, cell);
		uint64_t now = rte_rdtsc();
		gaps += was_away(last, now);
		last = now;
		if (now - start < window)
			continue;
		uint64_t seen = read_word(&shared.gaps);
		if (warm > 0) {
			warm--;
		} else {
			double seconds = (double)(now - start) / (double)rte_get_tsc_hz();
			windows[count].rate = (double)packets / seconds / 1e6;
			windows[count].whole = gaps == 0 && seen == peer_gaps &&
					       !was_away(read_word(&shared.alive), now);
			good += windows[count++].whole;
		}
		packets = gaps = 0;
		peer_gaps = seen;
		start = now;
	}
	write_word(&shared.stop, number);
	while (read_word(&shared.idle) < number)
		vhost_burst(bench, cell);
	while (cell->flow == TO_HOST && vhost_burst(bench, cell) != 0)
		;
	write_word(&shared.done, number);
	/* The peer waits for the next cell by now, or does soon. */
	bool moved = neighbour_place() != place;
	block = RTE_MAX(block, block_ticks() * clock_ratio());
	bool noisy = good < ENOUGH_WINDOWS ||
		     (bench->options.block > 0 && block > bench->options.block * BLOCK_TOLERANCE);
	for (unsigned int i = 0; i < count; i++)
		if (windows[i].whole || good < ENOUGH_WINDOWS)
			rates[all++] = windows[i].rate;
	qsort(rates, all, sizeof(double), by_value);
	if (rates[all - 1] == 0)
		die("no packets moved");
	printf("cell size=%u burst=%u flow=%s mpps_p10=%.3f mpps_median=%.3f mpps_p90=%.3f batches=%u "
	       "noisy=%d place=%s\n",
	       cell->size, cell->burst, flows[cell->flow], rates[all / 10], rates[all / 2],
	       rates[all * 9 / 10], all, noisy, moved ? "moved" : places[place]);
	fflush(stdout);
}

static int on_the_measuring_core(void *argument)
{
	const struct bench *bench = argument;
	for (int i = 0; i < 1000; i++)
		clock_ratio();
	for (unsigned int i = 0; i < bench->options.cell_count; i++)
		vhost_cell(bench, &bench->options.cells[i], i + 1);
	write_word(&shared.go, bench->options.cell_count + 1);
	return 0;
}

/* Sends what it received, from a fixed number of packets; at the end each must be there, and unchanged. */
static void forwarding_peer(const struct bench *bench, const struct cell *cell, uint64_t number)
{
	struct rte_mbuf *packets[MAX_BURST] = { NULL };
	unsigned int under_way = cell->size > 1518 ? 32 : 128, have = 0;
	bool seen[MAX_BURST] = { false };
	uint64_t last = 0;
	unsigned int turn = 0;
	for (; have < under_way; have++)
		packets[have] = make_packet(bench->options.checksum, bench->guest_pool, cell->size, have);
	while (read_word(&shared.stop) < number) {
		note_gaps(&last, &turn);
		uint16_t sent = rte_eth_tx_burst(bench->guest, 0, packets, (uint16_t)have);
		have -= sent;
		for (unsigned int i = 0; i < have; i++)
			packets[i] = packets[i + sent];
		have += rte_eth_rx_burst(bench->guest, 0, packets + have,
					 (uint16_t)RTE_MIN(cell->burst, under_way - have));
	}
	uint64_t deadline = deadline_in(10);
	while (have < under_way) {
		have += rte_eth_rx_burst(bench->guest, 0, packets + have, (uint16_t)(under_way - have));
		check_deadline(deadline, "packets are missing on the guest's side");
	}
	for (unsigned int i = 0; i < have; i++) {
		unsigned int id = packet_id(bench->options.checksum, packets[i]);
		if (id >= under_way || seen[id])
			die("packet %u came twice, or from nowhere", id);
		seen[id] = true;
		check_payload(bench->options.checksum, packets[i], cell->size, id);
		rte_pktmbuf_free(packets[i]);
	}
	write_word(&shared.idle, number);
}

static void one_way_peer(const struct bench *bench, const struct cell *cell, uint64_t number)
{
	struct rte_mbuf *packets[MAX_BURST];
	uint16_t burst = (uint16_t)cell->burst, count;
	uint64_t last = 0;
	unsigned int turn = 0;
	while (read_word(&shared.stop) < number) {
		note_gaps(&last, &turn);
		if (cell->flow == TO_GUEST) {
			count = rte_eth_rx_burst(bench->guest, 0, packets, burst);
			rte_pktmbuf_free_bulk(packets, count);
			continue;
		}
		if (rte_pktmbuf_alloc_bulk(bench->guest_pool, packets, burst) != 0)
			continue;
		for (uint16_t i = 0; i < burst; i++) {
			packets[i]->pkt_len = cell->size;
			packets[i]->data_len = (uint16_t)cell->size;
		}
		count = rte_eth_tx_burst(bench->guest, 0, packets, burst);
		rte_pktmbuf_free_bulk(packets + count, burst - count);
	}
	write_word(&shared.idle, number);
	/* Nothing may be left for the next cell. */
	do {
		bool last = read_word(&shared.done) >= number;
		count = rte_eth_rx_burst(bench->guest, 0, packets, burst);
		rte_pktmbuf_free_bulk(packets, count);
		if (last && count == 0)
			return;
	} while (true);
}

static void await_go(uint64_t number)
{
	while (read_word(&shared.go) < number) {
		answer_neighbour();
		rte_pause();
	}
}

void free_running(struct bench *bench)
{
	rte_eal_remote_launch(on_the_measuring_core, bench, (unsigned int)bench->options.measure_core);
	for (unsigned int i = 0; i < bench->options.cell_count; i++) {
		const struct cell *cell = &bench->options.cells[i];
		await_go(i + 1);
		if (cell->flow == FORWARD)
			forwarding_peer(bench, cell, i + 1);
		else
			one_way_peer(bench, cell, i + 1);
	}
	await_go(bench->options.cell_count + 1);
	rte_eal_wait_lcore((unsigned int)bench->options.measure_core);
}
