/* SPDX-License-Identifier: BSD-3-Clause */
/* Rx interrupts of a driver with an event index, which kicks only where it is asked to. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/guest.h"

#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>

#include <rte_pause.h>

#define RING 256 /* entries */
#define FRAME 100

static struct guest guest;
static int descriptor;

static bool
open_with_interrupts(void)
{
	const struct guest_options options = {.features = USUAL_FEATURES | F_EVENT_IDX};
	struct port_config config;

	if (!guest_open_port(&guest, &options))
		return false;
	config = (struct port_config){.queues = 1, .pool = guest.pool, .rx_interrupts = true};
	if (!CHECK(rte_eth_dev_stop(guest.port) == 0 && port_start(guest.port, &config) == 0,
		   "no Rx interrupts"))
		return false;
	descriptor = rte_eth_dev_rx_intr_ctl_q_get_fd(guest.port, 0);
	return CHECK(descriptor >= 0, "no descriptor") && guest_connect(&guest);
}

static bool
is_readable(int milliseconds)
{
	struct pollfd wait = {.fd = descriptor, .events = POLLIN};

	return poll(&wait, 1, milliseconds) == 1;
}

/* Offers `count` frames, and kicks if the device's event lies among them; whether it did. */
static bool
driver_sends(unsigned int count)
{
	struct ring *ring = guest.to_host;
	const uint16_t old = ring->available->index;
	uint16_t event, new;

	for (unsigned int i = 0; i < count; i++) {
		uint16_t index = (uint16_t)(old + i) % RING;

		ring_describe(ring, index, DATA_GPA, HEADER + FRAME, 0, 0);
		ring_offer(ring, index);
	}
	new = (uint16_t)(old + count);
	/* The buffers must be seen before the wish is read. */
	atomic_thread_fence(memory_order_seq_cst);
	event = *ring_avail_event(ring);
	if ((uint16_t)(new - event - 1) >= (uint16_t)(new - old))
		return false;
	eventfd_write(ring->kick, 1);
	return true;
}

static unsigned int
take_all(void)
{
	struct rte_mbuf *mbufs[32];
	unsigned int total = 0;
	uint16_t count;

	while ((count = rte_eth_rx_burst(guest.port, 0, mbufs, 32)) != 0) {
		rte_pktmbuf_free_bulk(mbufs, count);
		total += count;
	}
	return total;
}

static void
the_device_asks_for_one_kick(void)
{
	if (beyond_stock())
		return;
	REQUIRE(open_with_interrupts(), "no guest");
	for (unsigned int round = 0; round < 3u * RING; round++) {
		CHECK(rte_eth_dev_rx_intr_enable(guest.port, 0) == 0, "enable");
		CHECK(*ring_avail_event(guest.to_host) == guest.to_host->available->index,
		      "round %u: the event is %u", round, *ring_avail_event(guest.to_host));
		CHECK(!is_readable(0), "round %u: awake with nothing to do", round);
		CHECK(driver_sends(1), "round %u: no kick", round);
		CHECK(is_readable(2000), "round %u: no wake-up", round);
		/* One is enough. */
		CHECK(!driver_sends(2), "round %u: another kick", round);
		CHECK(rte_eth_dev_rx_intr_disable(guest.port, 0) == 0, "disable");
		CHECK(take_all() == 3, "round %u: not three frames", round);
	}
	guest_close(&guest);
}

static void
armed_with_frames_waiting(void)
{
	if (beyond_stock())
		return;
	REQUIRE(open_with_interrupts(), "no guest");
	for (unsigned int round = 0; round < 100; round++) {
		driver_sends(1 + round % 7);
		CHECK(rte_eth_dev_rx_intr_enable(guest.port, 0) == 0, "enable");
		CHECK(is_readable(2000), "round %u: sleeps beside a frame", round);
		CHECK(take_all() == 1 + round % 7, "round %u: not all frames", round);
	}
	guest_close(&guest);
}

static atomic_uint received;
static atomic_bool stop;

static void *
sleep_and_take(void *unused)
{
	while (!stop) {
		rte_eth_dev_rx_intr_enable(guest.port, 0);
		/* Longer than anybody waits: nothing but a kick helps. */
		if (!is_readable(20000))
			continue;
		rte_eth_dev_rx_intr_disable(guest.port, 0);
		received += take_all();
	}
	return unused;
}

/* The sleeper re-arms at any moment of the driver's; whatever happens, it hears of every frame. */
static void
flood(void)
{
	unsigned int rounds = run_is_slow() ? 200 : 20000;
	unsigned int sent = 0, kicks = 0, noise = 1;
	pthread_t thread;

	if (beyond_stock())
		return;
	received = 0;
	stop = false;
	REQUIRE(open_with_interrupts(), "no guest");
	REQUIRE(pthread_create(&thread, NULL, sleep_and_take, NULL) == 0, "no thread");
	for (unsigned int round = 0; round < rounds; round++) {
		unsigned int count = 1 + (noise >> 16) % 4;

		noise = noise * 1103515245 + 12345;
		kicks += driver_sends(count);
		sent += count;
		for (unsigned int pause = (noise >> 20) % 1024; pause > 0; pause--)
			rte_pause();
		if (round % 8 != 0)
			continue;
		WAIT_FOR(received == sent, 5000);
		if (!CHECK(received == sent, "%u of %u received", received, sent))
			break;
	}
	stop = true;
	eventfd_write(guest.to_host->kick, 1);
	pthread_join(thread, NULL);
	CHECK(kicks > 0 && kicks < sent, "%u kicks for %u frames", kicks, sent);
	guest_close(&guest);
}

int
main(void)
{
	eal_start("kicks");
	after_each_case(vdev_detach_all);
	run_case("the device asks for one kick at a time", the_device_asks_for_one_kick, 20);
	run_case("armed while frames wait, it wakes at once", armed_with_frames_waiting, 20);
	run_case("no wake-up is lost in a flood", flood, 60);
	return eal_end();
}
