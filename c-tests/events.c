/* SPDX-License-Identifier: BSD-3-Clause */
/* LSC and QUEUE_STATE: their order, the two exported functions, and callbacks that ask the port. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/pair.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define MAX_SEEN 256
#define SETTLE_MS 200

/* What a callback saw, one letter each: Q a queue's state, U link up, D link down. */
static char seen[MAX_SEEN + 1];
static atomic_uint seen_count;
static pthread_t lsc_thread;

/* What a callback that asks the port got. */
static atomic_uint asked, queue_events, failures;
static bool ask_the_port;

static struct pair pair;

static void
ask(uint16_t port)
{
	struct rte_eth_xstat values[512];
	struct rte_eth_vhost_queue_event event;
	struct rte_eth_stats stats;

	/* One that fails or hangs shows up; the values are not of interest. */
	if (rte_eth_xstats_get(port, values, RTE_DIM(values)) <= 0 ||
	    rte_eth_stats_get(port, &stats) != 0 || rte_eth_rx_queue_count(port, 0) < 0)
		failures++;
	rte_eth_dev_rx_intr_enable(port, 0);
	rte_eth_dev_rx_intr_disable(port, 0);
	get_vid(port);
	while (get_queue_event(port, &event) == 0)
		queue_events++;
	asked++;
}

static int
on_event(uint16_t port, enum rte_eth_event_type type, void *argument, void *result)
{
	unsigned int place;
	char letter = 'Q';

	(void)argument;
	(void)result;
	if (type == RTE_ETH_EVENT_INTR_LSC) {
		letter = link_is_up(port) ? 'U' : 'D';
		lsc_thread = pthread_self();
	}
	if (ask_the_port)
		ask(port);
	place = atomic_load(&seen_count);
	if (place < MAX_SEEN) {
		seen[place] = letter;
		atomic_store(&seen_count, place + 1);
	}
	return 0;
}

static void
forget_events(void)
{
	atomic_store(&seen_count, 0);
	memset(seen, 0, sizeof(seen));
}

/* Waits until so many events came, then a moment more for those that should not come. */
static const char *
events(unsigned int expected)
{
	WAIT_FOR(atomic_load(&seen_count) >= expected, 3000);
	WAIT_FOR(false, SETTLE_MS);
	return seen;
}

static bool
open_backend(const struct pair_options *options)
{
	bool good;

	forget_events();
	asked = queue_events = failures = 0;
	good = pair_open_backend(&pair, options);
	rte_eth_dev_callback_register(pair.backend, RTE_ETH_EVENT_INTR_LSC, on_event, NULL);
	rte_eth_dev_callback_register(pair.backend, RTE_ETH_EVENT_QUEUE_STATE, on_event, NULL);
	return good;
}

static unsigned int
count_letter(const char *text, char letter)
{
	unsigned int count = 0;

	for (; *text != '\0'; text++)
		count += *text == letter;
	return count;
}

/* Collects what get_queue_event tells; false when a vring was reported twice. */
static bool
collect(bool enabled[256], unsigned int *count)
{
	struct rte_eth_vhost_queue_event event;
	bool known[256] = {false};

	for (*count = 0; get_queue_event(pair.backend, &event) == 0; (*count)++) {
		unsigned int vring = 2u * event.queue_id + event.rx;

		if (vring >= 256 || known[vring])
			return false;
		known[vring] = true;
		enabled[vring] = event.enable;
	}
	return true;
}

static void
order_at_start(void)
{
	REQUIRE(open_backend(&(struct pair_options){.queues = 4}), "no backend");
	CHECK(events(0)[0] == '\0', "events without a frontend: %s", seen);
	REQUIRE(pair_open_frontend(&pair), "no frontend");
	events(9);
	/* Two rings make the device ready, so the link comes right after them or later. */
	CHECK(count_letter(seen, 'U') == 1 && count_letter(seen, 'D') == 0, "%s", seen);
	CHECK(count_letter(seen, 'Q') == 8, "%s", seen);
	CHECK(strncmp(seen, "QQ", 2) == 0, "the link before the rings: %s", seen);
	forget_events();
	pair_close_frontend(&pair);
	events(1);
	CHECK(count_letter(seen, 'D') == 1 && count_letter(seen, 'U') == 0, "%s", seen);
	pair_close(&pair);
}

static void
stop_and_start_are_silent(void)
{
	REQUIRE(open_backend(&(struct pair_options){0}), "no backend");
	REQUIRE(pair_open_frontend(&pair), "no frontend");
	events(3);
	forget_events();
	CHECK(rte_eth_dev_stop(pair.backend) == 0, "stop");
	CHECK(link_is_up(pair.backend), "stop took the link down");
	CHECK(rte_eth_dev_start(pair.backend) == 0, "start");
	CHECK(link_is_up(pair.backend), "start took the link down");
	CHECK(events(0)[0] == '\0', "events: %s", seen);
	pair_close(&pair);
}

static void
close_tells_the_caller(void)
{
	REQUIRE(open_backend(&(struct pair_options){0}), "no backend");
	REQUIRE(pair_open_frontend(&pair), "no frontend");
	events(3);
	forget_events();
	CHECK(rte_eth_dev_stop(pair.backend) == 0, "stop");
	CHECK(rte_eth_dev_close(pair.backend) == 0, "close");
	CHECK(strcmp(events(1), "D") == 0, "events: %s", seen);
	CHECK(pthread_equal(lsc_thread, pthread_self()), "another thread raised it");
	pair_close(&pair);
}

static void
queue_event_walk(void)
{
	struct rte_eth_vhost_queue_event event = {.queue_id = 77, .rx = true, .enable = true};
	bool enabled[256] = {false};
	unsigned int count = 0;

	CHECK(get_queue_event(RTE_MAX_ETHPORTS, &event) == -1, "a port too far");
	CHECK(get_queue_event(UINT16_MAX, &event) == -1, "the last port");
	CHECK(get_queue_event(0, &event) == -1, "no port");
	REQUIRE(open_backend(&(struct pair_options){.queues = 2}), "no backend");
	CHECK(get_queue_event(pair.backend, &event) == -1, "an event without a frontend");
	CHECK(event.queue_id == 77 && event.rx && event.enable, "the event was written");
	REQUIRE(pair_open_frontend(&pair), "no frontend");
	events(5);
	CHECK(collect(enabled, &count), "a ring was told twice");
	CHECK(count == 4, "%u events", count);
	for (unsigned int vring = 0; vring < 4; vring++)
		CHECK(enabled[vring], "vring %u is not enabled", vring);
	CHECK(get_queue_event(pair.backend, &event) == -1, "one more event");
	/* A hang-up forgets them: the link's event tells it. */
	pair_close_frontend(&pair);
	REQUIRE(wait_for_link(pair.backend, false), "the link stays up");
	CHECK(get_queue_event(pair.backend, &event) == -1, "an event after the hang-up");
	REQUIRE(pair_open_frontend(&pair), "no second frontend");
	events(10);
	CHECK(collect(enabled, &count) && count == 4, "%u events the second time", count);
	pair_close(&pair);
	CHECK(get_queue_event(0, &event) == -1, "an event of a port that is gone");
}

static void
vid(void)
{
	CHECK(get_vid(RTE_MAX_ETHPORTS) == -1, "a port too far");
	CHECK(get_vid(UINT16_MAX) == -1, "the last port");
	CHECK(get_vid(0) == -1, "no port");
	REQUIRE(open_backend(&(struct pair_options){0}), "no backend");
	CHECK(get_vid(pair.backend) == -1, "vid %d without a frontend", get_vid(pair.backend));
	REQUIRE(pair_open_frontend(&pair), "no frontend");
	CHECK(get_vid(pair.backend) >= 0 && get_vid(pair.backend) < 1024, "vid %d",
	      get_vid(pair.backend));
	CHECK(get_vid(pair.frontend) == -1, "another driver's port has vid %d",
	      get_vid(pair.frontend));
	pair_close_frontend(&pair);
	REQUIRE(wait_for_link(pair.backend, false), "the link stays up");
	CHECK(get_vid(pair.backend) == -1, "vid %d after the hang-up", get_vid(pair.backend));
	pair_close(&pair);
}

static void
vid_between_setup_and_start(void)
{
	uint16_t port;

	if (beyond_stock())
		return;
	port = vdev_attach(BACKEND, "iface=%s", socket_path("vid"));
	REQUIRE(port != NO_PORT, "probe failed");
	CHECK(get_vid(port) == -1, "vid %d at probe", get_vid(port));
	pair.backend_pool = make_pool("vid", 1023, 2048);
	CHECK(port_configure(port, &(struct port_config){.queues = 1,
							 .pool = pair.backend_pool}) == 0,
	      "configure");
	CHECK(get_vid(port) == -1, "vid %d before start", get_vid(port));
	vdev_detach(BACKEND);
	rte_mempool_free(pair.backend_pool);
}

static void
callbacks_may_ask(void)
{
	if (beyond_stock())
		return;
	ask_the_port = true;
	REQUIRE(open_backend(&(struct pair_options){.queues = 4}), "no backend");
	for (int round = 0; round < 3; round++) {
		REQUIRE(pair_open_frontend(&pair), "no frontend");
		CHECK(pair_move(&pair, &(struct flow){.first_length = 60,
						      .last_length = 600,
						      .count = 500}) == 500,
		      "lost frames");
		pair_close_frontend(&pair);
		REQUIRE(wait_for_link(pair.backend, false), "the link stays up");
	}
	pair_close(&pair);
	ask_the_port = false;
	CHECK(asked >= 3 * 10 && failures == 0, "%u of %u questions failed", failures, asked);
	CHECK(queue_events >= 3 * 8, "%u queue events", queue_events);
}

int
main(void)
{
	eal_start("events");
	after_each_case(vdev_detach_all);
	run_case("rings come first, then the link", order_at_start, 10);
	run_case("port stop and start raise nothing", stop_and_start_are_silent, 10);
	run_case("close tells the thread that closes", close_tells_the_caller, 10);
	run_case("get_queue_event walks the changes once", queue_event_walk, 20);
	run_case("the vid lives as long as the connection", vid, 10);
	run_case("there is no vid between setup and start", vid_between_setup_and_start, 10);
	run_case("callbacks may ask the port", callbacks_may_ask, 20);
	return eal_end();
}
