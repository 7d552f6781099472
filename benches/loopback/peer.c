/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The virtio-user side. It is never timed.
 */
#include "loopback.h"

#include <string.h>

/* Then the virtio-net header does not fit before the data, and gets a descriptor of its own. */
static void without_headroom(struct rte_mbuf *packet)
{
	memmove(packet->buf_addr, rte_pktmbuf_mtod(packet, const void *), packet->data_len);
	packet->data_off = 0;
}

void peer_sends(const struct bench *bench, const struct cell *cell, uint16_t queue, struct packets *packets)
{
	uint64_t deadline = deadline_in(10);
	unsigned int sent = 0;
	for (unsigned int i = 0; bench->options.apart && i < cell->burst; i++)
		without_headroom(packets->of[queue][i]);
	while ((sent += rte_eth_tx_burst(bench->guest, queue, packets->of[queue] + sent,
					 (uint16_t)(cell->burst - sent))) < cell->burst)
		check_deadline(deadline, "the guest's ring takes no whole burst");
}

void peer_receives(const struct bench *bench, const struct cell *cell, uint16_t queue, struct packets *packets)
{
	uint64_t deadline = deadline_in(10);
	unsigned int received = 0;
	while ((received += rte_eth_rx_burst(bench->guest, queue, packets->of[queue] + received,
					     (uint16_t)(cell->burst - received))) < cell->burst)
		check_deadline(deadline, "packets are missing on the guest's side");
	for (unsigned int i = 0; i < cell->burst; i++)
		guest_asks(bench->options.checksum, packets->of[queue][i]);
}
