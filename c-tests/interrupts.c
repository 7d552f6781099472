/* SPDX-License-Identifier: BSD-3-Clause */
/* Rx interrupts: one descriptor for each queue, which a frontend's kick makes readable. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/frame.h"
#include "lib/pair.h"

#include <poll.h>

#include <rte_interrupts.h>

#define QUEUES 2

static struct pair pair;
static int descriptors[QUEUES];

static bool
is_readable(uint16_t queue, int milliseconds)
{
	struct pollfd wait = {.fd = descriptors[queue], .events = POLLIN};

	return poll(&wait, 1, milliseconds) == 1 && (wait.revents & POLLIN) != 0;
}

static bool
open_with_interrupts(void)
{
	struct port_config config;

	if (!pair_open_backend(&pair, &(struct pair_options){.queues = QUEUES}))
		return false;
	rte_eth_dev_stop(pair.backend);
	config = pair_backend_config(&pair);
	config.rx_interrupts = true;
	if (!CHECK(port_start(pair.backend, &config) == 0, "no Rx interrupts"))
		return false;
	for (uint16_t queue = 0; queue < QUEUES; queue++) {
		descriptors[queue] = rte_eth_dev_rx_intr_ctl_q_get_fd(pair.backend, queue);
		if (!CHECK(descriptors[queue] >= 0, "queue %u has no descriptor", queue))
			return false;
	}
	return CHECK(descriptors[0] != descriptors[1], "one descriptor for two queues");
}

static void
send_one(uint16_t queue)
{
	struct rte_mbuf *mbuf = frame_mbuf(pair.frontend_pool, 100, queue, 0);

	CHECK(mbuf != NULL && rte_eth_tx_burst(pair.frontend, queue, &mbuf, 1) == 1, "not sent");
}

static void
take_one(uint16_t queue)
{
	struct rte_mbuf *mbuf = receive_one(pair.backend, queue, 2000);

	CHECK(mbuf != NULL && frame_matches(mbuf, 100, queue), "not received");
	rte_pktmbuf_free(mbuf);
}

static void
kick_wakes_its_queue(void)
{
	REQUIRE(open_with_interrupts(), "no backend");
	REQUIRE(pair_open_frontend(&pair), "no frontend");
	CHECK(rte_eth_dev_rx_intr_enable(pair.backend, 1) == 0, "enable");
	send_one(1);
	CHECK(is_readable(1, 2000), "no wake-up");
	CHECK(rte_eth_dev_rx_intr_disable(pair.backend, 1) == 0, "disable");
	take_one(1);
	CHECK(rte_eth_dev_rx_intr_disable(pair.backend, 0) == 0, "disable again");
	pair_close(&pair);
}

static void
descriptors_outlive_the_connection(void)
{
	REQUIRE(open_with_interrupts(), "no backend");
	for (int round = 0; round < 2; round++) {
		REQUIRE(pair_open_frontend(&pair), "no frontend");
		for (uint16_t queue = 0; queue < QUEUES; queue++) {
			CHECK(rte_eth_dev_rx_intr_ctl_q_get_fd(pair.backend, queue) ==
				      descriptors[queue],
			      "queue %u has another descriptor", queue);
			CHECK(rte_eth_dev_rx_intr_enable(pair.backend, queue) == 0, "enable");
			send_one(queue);
			CHECK(is_readable(queue, 2000), "no wake-up on queue %u", queue);
			take_one(queue);
		}
		pair_close_frontend(&pair);
		REQUIRE(wait_for_link(pair.backend, false), "the link stays up");
	}
	pair_close(&pair);
}

static void
armed_before_the_frontend_comes(void)
{
	if (beyond_stock())
		return;
	REQUIRE(open_with_interrupts(), "no backend");
	CHECK(rte_eth_dev_rx_intr_enable(pair.backend, 0) == 0, "enable");
	REQUIRE(pair_open_frontend(&pair), "no frontend");
	send_one(0);
	CHECK(is_readable(0, 2000), "the early request was lost");
	take_one(0);
	pair_close(&pair);
}

static void
idle_queue_sleeps_again(void)
{
	if (beyond_stock())
		return;
	REQUIRE(open_with_interrupts(), "no backend");
	REQUIRE(pair_open_frontend(&pair), "no frontend");
	for (int round = 0; round < 5; round++) {
		CHECK(rte_eth_dev_rx_intr_enable(pair.backend, 0) == 0, "enable");
		/* Armed anew, an old kick does not wake: a level-triggered sleeper can sleep. */
		CHECK(!is_readable(0, 20), "awake with nothing to do, round %d", round);
		send_one(0);
		CHECK(is_readable(0, 2000), "no wake-up, round %d", round);
		CHECK(rte_eth_dev_rx_intr_disable(pair.backend, 0) == 0, "disable");
		take_one(0);
	}
	pair_close(&pair);
}

static void
no_descriptor_without_asking(void)
{
	REQUIRE(pair_open_backend(&pair, &(struct pair_options){0}), "no backend");
	CHECK(rte_eth_dev_rx_intr_ctl_q_get_fd(pair.backend, 0) < 0, "a descriptor");
	pair_close(&pair);
}

int
main(void)
{
	eal_start("interrupts");
	after_each_case(vdev_detach_all);
	run_case("there is no descriptor unless asked for", no_descriptor_without_asking, 10);
	run_case("a kick wakes its queue", kick_wakes_its_queue, 10);
	run_case("the descriptors outlive the connection", descriptors_outlive_the_connection, 20);
	run_case("a queue armed early wakes", armed_before_the_frontend_comes, 10);
	run_case("an idle queue sleeps again", idle_queue_sleeps_again, 10);
	return eal_end();
}
