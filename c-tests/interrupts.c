/* SPDX-License-Identifier: BSD-3-Clause */
/* Rx interrupts: one descriptor for each queue, which a frontend's kick makes readable. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/frame.h"
#include "lib/pair.h"

#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include <rte_cycles.h>
#include <rte_epoll.h>
#include <rte_pause.h>
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
open_layout(bool packed)
{
	struct port_config config;

	if (!pair_open_backend(&pair, &(struct pair_options){.queues = QUEUES, .packed = packed}))
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

static bool
open_with_interrupts(void)
{
	return open_layout(false);
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

/* An application that sleeps until a packet comes, in a thread of its own. */
struct sleeper {
	bool edge;        /* waits by EAL's edge-triggered epoll, else by poll(2) */
	bool looks_twice; /* polls the queue once more between arming and sleeping */
	atomic_uint received, wrong, wakes;
	atomic_bool ready, stop;
	pthread_t thread;
};

static unsigned int
take_all(struct sleeper *sleeper)
{
	struct rte_mbuf *mbufs[32];
	unsigned int total = 0;
	uint16_t count;

	while ((count = rte_eth_rx_burst(pair.backend, 0, mbufs, 32)) != 0) {
		for (uint16_t i = 0; i < count; i++) {
			if (mbufs[i]->pkt_len != 100)
				sleeper->wrong++;
		}
		rte_pktmbuf_free_bulk(mbufs, count);
		sleeper->received += count;
		total += count;
	}
	return total;
}

/* Sleeps for at most a moment, so that the thread can be told to end. */
static bool
wait_for_kick(const struct sleeper *sleeper)
{
	struct rte_epoll_event event;

	if (!sleeper->edge)
		return is_readable(0, 100);
	return rte_epoll_wait(RTE_EPOLL_PER_THREAD, &event, 1, 100) == 1;
}

static void *
sleep_and_take(void *argument)
{
	struct sleeper *sleeper = argument;

	if (sleeper->edge)
		CHECK(rte_eth_dev_rx_intr_ctl_q(pair.backend, 0, RTE_EPOLL_PER_THREAD,
						RTE_INTR_EVENT_ADD, NULL) == 0,
		      "no event");
	rte_eth_dev_rx_intr_enable(pair.backend, 0);
	sleeper->ready = true;
	while (!sleeper->stop) {
		if (sleeper->looks_twice && take_all(sleeper) != 0) {
			rte_eth_dev_rx_intr_enable(pair.backend, 0);
			continue;
		}
		if (!wait_for_kick(sleeper))
			continue;
		sleeper->wakes++;
		rte_eth_dev_rx_intr_disable(pair.backend, 0);
		take_all(sleeper);
		rte_eth_dev_rx_intr_enable(pair.backend, 0);
	}
	if (sleeper->edge)
		rte_eth_dev_rx_intr_ctl_q(pair.backend, 0, RTE_EPOLL_PER_THREAD,
					  RTE_INTR_EVENT_DEL, NULL);
	return NULL;
}

static uint64_t
microseconds_of_cpu(const struct sleeper *sleeper)
{
	struct timespec spent = {0};
	clockid_t clock;

	if (pthread_getcpuclockid(sleeper->thread, &clock) == 0)
		clock_gettime(clock, &spent);
	return (uint64_t)spent.tv_sec * 1000000 + (uint64_t)spent.tv_nsec / 1000;
}

/* Sends frames one by one, and each of them only when the one before was taken. */
static void
each_frame_wakes(struct sleeper *sleeper, unsigned int frames)
{
	unsigned int received = sleeper->received, wakes = sleeper->wakes;

	for (unsigned int i = 0; i < frames; i++) {
		send_one(0);
		WAIT_FOR(sleeper->received > received + i, 2000);
		REQUIRE(sleeper->received == received + i + 1, "frame %u: %u received", i,
			sleeper->received - received);
		/* Long enough for it to lie down again, most of the time. */
		if (i % 4 == 0)
			rte_delay_us_sleep(200);
	}
	CHECK(sleeper->wakes > wakes, "it never slept");
	CHECK(sleeper->wrong == 0, "%u wrong frames", sleeper->wrong);
}

static void
nobody_wakes(const struct sleeper *sleeper, const char *when)
{
	uint64_t before, spent;
	unsigned int wakes;

	rte_delay_us_sleep(50000);
	before = microseconds_of_cpu(sleeper);
	wakes = sleeper->wakes;
	rte_delay_us_sleep(300000);
	spent = microseconds_of_cpu(sleeper) - before;
	CHECK(sleeper->wakes == wakes, "%s: %u wake-ups for nothing", when, sleeper->wakes - wakes);
	CHECK(spent < (run_is_slow() ? 100000 : 10000), "%s: %" PRIu64 " us of CPU", when, spent);
}

static void
sleep_through_a_life(bool packed, bool edge, bool looks_twice)
{
	struct sleeper sleeper = {.edge = edge, .looks_twice = looks_twice};
	unsigned int frames = run_is_slow() ? 20 : 200;

	REQUIRE(open_layout(packed), "no backend");
	REQUIRE(pthread_create(&sleeper.thread, NULL, sleep_and_take, &sleeper) == 0, "no thread");
	WAIT_FOR(sleeper.ready, 2000);
	nobody_wakes(&sleeper, "without a frontend");
	for (int round = 0; round < 2; round++) {
		if (!CHECK(pair_open_frontend(&pair), "no frontend"))
			break;
		each_frame_wakes(&sleeper, frames);
		nobody_wakes(&sleeper, "idle");
		pair_close_frontend(&pair);
		CHECK(wait_for_link(pair.backend, false), "the link stays up");
		nobody_wakes(&sleeper, "after the frontend left");
	}
	sleeper.stop = true;
	pthread_join(sleeper.thread, NULL);
	pair_close(&pair);
}

static void
edge_triggered(void)
{
	for (int packed = 0; packed <= 1; packed++)
		sleep_through_a_life(packed != 0, true, true);
}

static void
level_triggered(void)
{
	if (beyond_stock())
		return;
	for (int packed = 0; packed <= 1; packed++)
		sleep_through_a_life(packed != 0, false, true);
}

static void
without_a_second_look(void)
{
	if (beyond_stock())
		return;
	for (int packed = 0; packed <= 1; packed++) {
		sleep_through_a_life(packed != 0, true, false);
		sleep_through_a_life(packed != 0, false, false);
	}
}

static void
armed_with_frames_waiting(void)
{
	if (beyond_stock())
		return;
	for (int packed = 0; packed <= 1; packed++) {
		REQUIRE(open_layout(packed != 0), "no backend");
		REQUIRE(pair_open_frontend(&pair), "no frontend");
		CHECK(rte_eth_dev_rx_intr_disable(pair.backend, 0) == 0, "disable");
		send_one(0);
		CHECK(rte_eth_dev_rx_intr_enable(pair.backend, 0) == 0, "enable");
		CHECK(is_readable(0, 2000), "sleeps beside a frame, packed %d", packed);
		take_one(0);
		CHECK(rte_eth_dev_rx_intr_enable(pair.backend, 0) == 0, "enable");
		CHECK(!is_readable(0, 20), "awake with nothing to do, packed %d", packed);
		pair_close(&pair);
	}
}

/* Frames in bursts at odd moments: whatever the two sides do meanwhile, all of them are taken. */
static void
flood(bool packed, bool edge, bool looks_twice)
{
	struct sleeper sleeper = {.edge = edge, .looks_twice = looks_twice};
	unsigned int rounds = run_is_slow() ? 200 : 5000;
	unsigned int sent = 0, noise = 1;

	REQUIRE(open_layout(packed), "no backend");
	REQUIRE(pair_open_frontend(&pair), "no frontend");
	REQUIRE(pthread_create(&sleeper.thread, NULL, sleep_and_take, &sleeper) == 0, "no thread");
	for (unsigned int round = 0; round < rounds; round++) {
		noise = noise * 1103515245 + 12345;
		for (unsigned int i = 0; i <= (noise >> 16) % 4; i++, sent++)
			send_one(0);
		for (unsigned int pause = (noise >> 20) % 4096; pause > 0; pause--)
			rte_pause();
		if (round % 8 != 0)
			continue;
		WAIT_FOR(sleeper.received == sent, 2000);
		if (!CHECK(sleeper.received == sent, "%u of %u received", sleeper.received, sent))
			break;
	}
	sleeper.stop = true;
	pthread_join(sleeper.thread, NULL);
	pair_close(&pair);
}

static void
flood_of_frames(void)
{
	for (int packed = 0; packed <= 1; packed++) {
		flood(packed != 0, true, true);
		if (plugin_is_stock())
			continue;
		flood(packed != 0, false, false);
		flood(packed != 0, true, false);
	}
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
	run_case("armed while frames wait, it wakes at once", armed_with_frames_waiting, 10);
	run_case("an edge-triggered sleeper wakes for each frame", edge_triggered, 60);
	run_case("a level-triggered sleeper wakes for each frame", level_triggered, 60);
	run_case("a sleeper needs no second look", without_a_second_look, 60);
	run_case("no wake-up is lost in a flood", flood_of_frames, 60);
	return eal_end();
}
