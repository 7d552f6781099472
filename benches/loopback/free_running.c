/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Two lcores, each as fast as it can: packets per second at the port, in windows of 2 ms.
 */
#include "loopback.h"

#include <stdio.h>
#include <stdlib.h>

#include <rte_launch.h>
#include <rte_pause.h>

#define MOST_WINDOWS 2000

static struct {
	uint64_t cell __rte_cache_aligned; /* the cell that the port's side runs, from 1 */
	uint64_t stop __rte_cache_aligned; /* the cell that is to end */
	uint64_t idle __rte_cache_aligned; /* the cell in which the peer sends no more */
	uint64_t done __rte_cache_aligned; /* the cell in which the port sends no more */
} shared;

static uint64_t read_word(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static void write_word(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
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
	static double rates[MOST_WINDOWS];
	static const char *const flows[] = { "forward", "to-host", "to-guest" };
	unsigned int count = 0;
	uint64_t window = rte_get_tsc_hz() / 500, packets = 0;
	/* The first windows warm up. */
	unsigned int wanted = RTE_MIN(bench->options.ms / 2 + 1, (unsigned int)MOST_WINDOWS), warm = 10;
	uint64_t start = rte_rdtsc();
	while (count < wanted) {
		uint64_t moved = 0, now;
		/* Few enough calls that the clock's cost does not show. */
		for (int i = 0; i < 32; i++)
			moved += vhost_burst(bench, cell);
		packets += moved;
		now = rte_rdtsc();
		if (now - start < window)
			continue;
		if (warm > 0)
			warm--;
		else
			rates[count++] = (double)packets * (double)rte_get_tsc_hz() / (double)(now - start) / 1e6;
		packets = 0;
		start = now;
	}
	write_word(&shared.stop, number);
	while (read_word(&shared.idle) < number)
		vhost_burst(bench, cell);
	while (cell->flow == TO_HOST && vhost_burst(bench, cell) != 0)
		;
	write_word(&shared.done, number);
	qsort(rates, count, sizeof(double), by_value);
	if (rates[count / 2] == 0)
		die("no packets moved");
	printf("cell size=%u burst=%u flow=%s mpps_p10=%.3f mpps_median=%.3f mpps_p90=%.3f batches=%u\n",
	       cell->size, cell->burst, flows[cell->flow], rates[count / 10], rates[count / 2],
	       rates[count * 9 / 10], count);
	fflush(stdout);
}

static int on_the_measuring_core(void *argument)
{
	const struct bench *bench = argument;
	for (unsigned int i = 0; i < bench->options.cell_count; i++) {
		while (read_word(&shared.cell) < i + 1)
			rte_pause();
		vhost_cell(bench, &bench->options.cells[i], i + 1);
	}
	return 0;
}

/* Sends what it received, from a fixed number of packets; at the end each must be there, and unchanged. */
static void forwarding_peer(const struct bench *bench, const struct cell *cell, uint64_t number)
{
	struct rte_mbuf *packets[MAX_BURST] = { NULL };
	unsigned int under_way = cell->size > 1518 ? 32 : 128, have = 0;
	bool seen[MAX_BURST] = { false };
	for (; have < under_way; have++)
		packets[have] = make_packet(bench->guest_pool, cell->size, have);
	while (read_word(&shared.stop) < number) {
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
		unsigned int id = packet_id(packets[i]);
		if (id >= under_way || seen[id])
			die("packet %u came twice, or from nowhere", id);
		seen[id] = true;
		check_payload(packets[i], cell->size, id);
		rte_pktmbuf_free(packets[i]);
	}
	write_word(&shared.idle, number);
}

static void one_way_peer(const struct bench *bench, const struct cell *cell, uint64_t number)
{
	struct rte_mbuf *packets[MAX_BURST];
	uint16_t burst = (uint16_t)cell->burst, count;
	while (read_word(&shared.stop) < number) {
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

void free_running(struct bench *bench)
{
	rte_eal_remote_launch(on_the_measuring_core, bench, (unsigned int)bench->options.measure_core);
	for (unsigned int i = 0; i < bench->options.cell_count; i++) {
		const struct cell *cell = &bench->options.cells[i];
		write_word(&shared.cell, i + 1);
		if (cell->flow == FORWARD)
			forwarding_peer(bench, cell, i + 1);
		else
			one_way_peer(bench, cell, i + 1);
	}
	rte_eal_wait_lcore((unsigned int)bench->options.measure_core);
}
