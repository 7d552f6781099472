/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The two calls that are timed.
 */
#include "loopback.h"

#include "clock.h"

void vhost_turn(const struct bench *bench, const struct cell *cell, uint16_t queue, bool check, struct sums *sums)
{
	struct rte_mbuf *packets[MAX_BURST];
	uint16_t burst = (uint16_t)cell->burst;
	uint64_t deadline = deadline_in(10);

	if (bench->options.engines) {
		engines_turn(bench, cell, queue, check, sums);
		return;
	}
	uint64_t start = begin_stamp();
	uint16_t received = rte_eth_rx_burst(bench->vhost, queue, packets, burst);
	uint64_t rx_ticks = end_stamp() - start;
	bool whole = received == burst;
	while (received < burst) {
		received += rte_eth_rx_burst(bench->vhost, queue, packets + received, burst - received);
		check_deadline(deadline, "packets are missing at the port");
	}
	for (uint16_t i = 0; check && i < burst; i++)
		check_received(bench->options.checksum, packets[i], cell->size);
	for (uint16_t i = 0; i < burst; i++)
		port_asks(bench, packets[i]);

	start = begin_stamp();
	uint16_t sent = rte_eth_tx_burst(bench->vhost, queue, packets, burst);
	uint64_t tx_ticks = end_stamp() - start;
	whole &= sent == burst;
	while (sent < burst) {
		sent += rte_eth_tx_burst(bench->vhost, queue, packets + sent, burst - sent);
		check_deadline(deadline, "the port does not send");
	}
	if (!whole) {
		sums->partial++;
		return;
	}
	sums->rx_ticks += rx_ticks;
	sums->tx_ticks += tx_ticks;
	sums->rx_calls++;
	sums->tx_calls++;
	sums->bursts++;
}

/* A single poll is shorter than the steps of some time stamp counters. */
void vhost_empty_polls(const struct bench *bench, const struct cell *cell, struct sums *sums)
{
	struct rte_mbuf *packets[MAX_BURST];
	unsigned int received = 0;
	uint64_t start = begin_stamp();
	for (int i = 0; i < EMPTY_POLLS; i++)
		received += rte_eth_rx_burst(bench->vhost, 0, packets, (uint16_t)cell->burst);
	sums->rx_ticks += end_stamp() - start;
	sums->rx_calls++;
	sums->bursts++;
	if (received != 0)
		die("an empty poll received %u packets", received);
}
