/* SPDX-License-Identifier: BSD-3-Clause */
/* Either side stops, starts, leaves and comes back while frames are on the way. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/frame.h"
#include "lib/pair.h"

#include <stdio.h>

#define IN_FLIGHT 64

static struct pair pair;
static uint32_t seed;

static void
move_on(uint16_t queue)
{
	for (int direction = TO_HOST; direction <= TO_GUEST; direction++) {
		const struct flow flow = {.direction = direction,
					  .queue = queue,
					  .first_length = 60,
					  .last_length = 2000,
					  .count = 2000,
					  .seed = seed += 2000};

		CHECK(pair_move(&pair, &flow) == flow.count, "queue %u", queue);
	}
}

/* Takes whatever waits on a port, until nothing came for a while. */
static unsigned int
drain(uint16_t port, uint16_t queue)
{
	struct rte_mbuf *mbufs[32];
	unsigned int drained = 0;
	int quiet = 0;

	while (quiet++ < 20) {
		uint16_t count = rte_eth_rx_burst(port, queue, mbufs, RTE_DIM(mbufs));

		rte_pktmbuf_free_bulk(mbufs, count);
		drained += count;
		if (count != 0)
			quiet = 0;
		pause_briefly();
	}
	return drained;
}

/* Leaves frames on the rings in both directions. */
static void
leave_in_flight(void)
{
	struct rte_mbuf *mbufs[IN_FLIGHT];
	uint16_t sent;

	for (int direction = TO_HOST; direction <= TO_GUEST; direction++) {
		bool to_host = direction == TO_HOST;

		for (unsigned int i = 0; i < IN_FLIGHT; i++)
			mbufs[i] = frame_mbuf(to_host ? pair.frontend_pool : pair.backend_pool,
					      200, i, 0);
		sent = rte_eth_tx_burst(to_host ? pair.frontend : pair.backend, 0, mbufs, IN_FLIGHT);
		rte_pktmbuf_free_bulk(mbufs + sent, IN_FLIGHT - sent);
	}
}

static void
port_stops_and_starts(void)
{
	REQUIRE(pair_open(&pair, &(struct pair_options){0}), "no pair");
	for (int round = 0; round < 5; round++) {
		move_on(0);
		leave_in_flight();
		CHECK(rte_eth_dev_stop(pair.backend) == 0, "stop");
		CHECK(rte_eth_dev_start(pair.backend) == 0, "start");
		/* What was on the ring is still there. */
		CHECK(drain(pair.backend, 0) == IN_FLIGHT, "frames to the host were lost");
		CHECK(drain(pair.frontend, 0) == IN_FLIGHT, "frames to the guest were lost");
	}
	move_on(0);
	pair_close(&pair);
}

static void
frontend_comes_back(void)
{
	REQUIRE(pair_open(&pair, &(struct pair_options){.queues = 2}), "no pair");
	for (int round = 0; round < 3; round++) {
		move_on(0);
		move_on(1);
		leave_in_flight();
		pair_close_frontend(&pair);
		REQUIRE(wait_for_link(pair.backend, false), "the link stays up");
		REQUIRE(pair_open_frontend(&pair), "round %d", round);
	}
	move_on(0);
	move_on(1);
	pair_close(&pair);
}

static void
frontend_comes_back_to_a_client(void)
{
	const struct pair_options options = {.backend_connects = true};

	if (beyond_stock())
		return;
	REQUIRE(pair_open(&pair, &options), "no pair");
	for (int round = 0; round < 3; round++) {
		move_on(0);
		pair_close_frontend(&pair);
		REQUIRE(wait_for_link(pair.backend, false), "the link stays up");
		REQUIRE(pair_open_frontend(&pair), "round %d", round);
	}
	move_on(0);
	pair_close(&pair);
}

static void
frontend_stops_and_starts(void)
{
	REQUIRE(pair_open(&pair, &(struct pair_options){0}), "no pair");
	for (int round = 0; round < 3; round++) {
		move_on(0);
		CHECK(rte_eth_dev_stop(pair.frontend) == 0, "stop");
		CHECK(rte_eth_dev_start(pair.frontend) == 0, "start");
	}
	move_on(0);
	pair_close(&pair);
}

static void
other_queue_counts_while_connected(void)
{
	static const uint16_t counts[] = {1, 4, 2, 4};

	REQUIRE(pair_open(&pair, &(struct pair_options){.queues = 4}), "no pair");
	for (unsigned int i = 0; i < RTE_DIM(counts); i++) {
		struct port_config config = pair_backend_config(&pair);

		config.queues = counts[i];
		CHECK(rte_eth_dev_stop(pair.backend) == 0, "stop");
		REQUIRE(port_start(pair.backend, &config) == 0, "%u queues", counts[i]);
		CHECK(link_is_up(pair.backend), "the link went down");
		for (uint16_t queue = 0; queue < counts[i]; queue++)
			move_on(queue);
	}
	pair_close(&pair);
}

static void
two_ports_at_once(void)
{
	const char *path = socket_path("second.sock");
	struct rte_mempool *pool = make_pool("second", 4095, 2048);
	const struct port_config config = {.queues = 1, .pool = pool};
	uint16_t second;

	REQUIRE(pool != NULL, "no pool");
	REQUIRE(pair_open(&pair, &(struct pair_options){0}), "no pair");
	second = vdev_attach("net_vhost1", "iface=%s", path);
	REQUIRE(second != NO_PORT && port_start(second, &config) == 0, "no second port");
	CHECK(vdev_attach("net_virtio_user1", "path=%s,mac=02:00:00:00:00:02", path) != NO_PORT,
	      "no second frontend");
	move_on(0);
	/* The first pair does not feel how the second one ends. */
	vdev_detach("net_vhost1");
	move_on(0);
	vdev_detach("net_virtio_user1");
	move_on(0);
	pair_close(&pair);
	rte_mempool_free(pool);
}

int
main(void)
{
	eal_start("restart");
	after_each_case(vdev_detach_all);
	run_case("the port stops and starts under traffic", port_stops_and_starts, 10);
	run_case("the frontend leaves and comes back", frontend_comes_back, 20);
	run_case("the frontend leaves a backend that connects", frontend_comes_back_to_a_client, 20);
	run_case("the frontend stops and starts", frontend_stops_and_starts, 10);
	run_case("other queue counts while connected", other_queue_counts_while_connected, 10);
	run_case("two ports do not disturb each other", two_ports_at_once, 20);
	return eal_end();
}
