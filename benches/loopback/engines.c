/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The calls that are timed when the port's queues have copy engines: one begins a burst, others give back
 * what the engines have copied. Calls that find nothing are not counted: the application has better to do
 * while the engines work. So it waits here, and most bursts come back in one piece.
 */
#include "loopback.h"

#include <stdio.h>

#include "clock.h"

/* For an engine that copies a gigabyte a second. */
static void wait_for_copies(const struct cell *cell)
{
	rte_delay_us_block(20 + cell->size * cell->burst / 1000);
}

static uint64_t landed_on_tx(const struct bench *bench, uint16_t queue)
{
	static uint64_t ids[MAX_QUEUES];
	char name[64];
	uint64_t value;
	snprintf(name, sizeof(name), "tx_q%u_good_packets", queue);
	if (ids[queue] == 0 && rte_eth_xstats_get_id_by_name(bench->vhost, name, &ids[queue]) != 0)
		die("%s: no such counter", name);
	if (rte_eth_xstats_get_by_id(bench->vhost, &ids[queue], &value, 1) != 1)
		die("%s cannot be read", name);
	return value;
}

static void timed_receive(const struct bench *bench, const struct cell *cell, uint16_t queue, struct rte_mbuf **packets,
		    struct sums *sums)
{
	uint16_t received = 0, burst = (uint16_t)cell->burst;
	uint64_t deadline = deadline_in(10);
	for (bool first = true; received < burst; first = false) {
		uint64_t start = begin_stamp();
		uint16_t now = rte_eth_rx_burst(bench->vhost, queue, packets + received, burst - received);
		uint64_t ticks = end_stamp() - start;
		received += now;
		if (first || now != 0) {
			sums->rx_ticks += ticks;
			sums->rx_calls++;
		}
		if (first && received < burst)
			wait_for_copies(cell);
		check_deadline(deadline, "packets are missing at the port");
	}
}

/* Whether all packets were given back in calls that count: a thread of the driver's may be faster. */
static bool timed_send(const struct bench *bench, const struct cell *cell, uint16_t queue, struct rte_mbuf **packets,
		 struct sums *sums)
{
	uint16_t burst = (uint16_t)cell->burst;
	uint64_t deadline = deadline_in(10), before = landed_on_tx(bench, queue);
	uint64_t start = begin_stamp();
	uint16_t sent = rte_eth_tx_burst(bench->vhost, queue, packets, burst);
	sums->tx_ticks += end_stamp() - start;
	sums->tx_calls++;
	if (sent != burst)
		die("%u of %u packets sent", sent, burst);
	uint64_t landed = landed_on_tx(bench, queue) - before;
	if (landed < burst)
		wait_for_copies(cell);
	while (landed_on_tx(bench, queue) - before < burst) {
		start = begin_stamp();
		int now = rte_eth_tx_done_cleanup(bench->vhost, queue, 0);
		uint64_t ticks = end_stamp() - start;
		if (now > 0) {
			landed += (unsigned int)now;
			sums->tx_ticks += ticks;
			sums->tx_calls++;
		}
		check_deadline(deadline, "copies do not end");
	}
	return landed == burst;
}

void engines_turn(const struct bench *bench, const struct cell *cell, uint16_t queue, bool check, struct sums *sums)
{
	struct rte_mbuf *packets[MAX_BURST];
	struct sums now = { 0 };
	timed_receive(bench, cell, queue, packets, &now);
	for (unsigned int i = 0; check && i < cell->burst; i++)
		check_received(bench->options.checksum, packets[i], cell->size);
	if (!timed_send(bench, cell, queue, packets, &now)) {
		sums->partial++;
		return;
	}
	sums->rx_ticks += now.rx_ticks;
	sums->rx_calls += now.rx_calls;
	sums->tx_ticks += now.tx_ticks;
	sums->tx_calls += now.tx_calls;
	sums->bursts++;
}
