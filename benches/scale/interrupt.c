/* SPDX-License-Identifier: BSD-3-Clause
 *
 * An application that sleeps until a packet comes: how much processor time it takes when none comes and
 * when one comes every 10 ms, and how long a packet waits.
 */
#include "scale.h"

#include <stdio.h>
#include <stdlib.h>

#include <rte_epoll.h>
#include <rte_ethdev.h>
#include <rte_interrupts.h>
#include <rte_mbuf.h>

#define MOST 4096

static double waits[MOST];
static unsigned int wakes, received;

static unsigned int take_all(uint16_t port)
{
	struct rte_mbuf *packets[32];
	unsigned int total = 0;
	uint16_t count;
	while ((count = rte_eth_rx_burst(port, 0, packets, 32)) != 0) {
		double now = seconds_now(), sent;
		for (uint16_t i = 0; i < count; i++) {
			rte_memcpy(&sent, rte_pktmbuf_mtod_offset(packets[i], char *, 16), sizeof(sent));
			if (received < MOST)
				waits[received++] = now - sent;
		}
		rte_pktmbuf_free_bulk(packets, count);
		total += count;
	}
	return total;
}

static void sleep_and_take(uint16_t port, double seconds)
{
	double until = seconds_now() + seconds;
	wakes = received = 0;
	while (seconds_now() < until) {
		struct rte_epoll_event event;
		rte_eth_dev_rx_intr_enable(port, 0);
		/* What came before that would not wake us. */
		if (take_all(port) != 0)
			continue;
		if (rte_epoll_wait(RTE_EPOLL_PER_THREAD, &event, 1, 500) == 1)
			wakes++;
		rte_eth_dev_rx_intr_disable(port, 0);
		take_all(port);
	}
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static void print_phase(const char *phase, double seconds, double cpu)
{
	qsort(waits, received, sizeof(double), by_value);
	printf("interrupt phase=%s cpu_percent=%.3f wakes=%u packets=%u wait_us=%.1f\n", phase,
	       cpu / seconds * 100, wakes, received, received == 0 ? 0 : waits[received / 2] * 1e6);
	fflush(stdout);
}

void interrupts(const struct options *options)
{
	enum { SECONDS = 3 };
	start_eal(options, false);
	struct rte_mempool *pool = make_pool(1023);
	port_open(options, 0, pool);
	uint16_t port = port_id("net_vhost", 0);
	frontends_open();
	double deadline = seconds_now() + 30;
	while (!port_has_link(0)) {
		if (seconds_now() > deadline)
			die("no link");
		sleep_seconds(0.001);
	}
	if (rte_eth_dev_rx_intr_ctl_q(port, 0, RTE_EPOLL_PER_THREAD, RTE_INTR_EVENT_ADD, NULL) != 0)
		die("no Rx interrupts");
	/* Whatever the connection left in the event descriptor. */
	sleep_and_take(port, 0.2);
	double cpu = cpu_seconds();
	sleep_and_take(port, SECONDS);
	print_phase("idle", SECONDS, cpu_seconds() - cpu);
	frontends_send();
	cpu = cpu_seconds();
	sleep_and_take(port, SECONDS);
	print_phase("sparse", SECONDS, cpu_seconds() - cpu);
	frontends_close();
	port_close(0);
}
