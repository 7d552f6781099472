/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A port with copy engines starts for the first time while its frontend is there already and sends
 * messages. Both threads then work on the same rings: the one gives them their engines, the other
 * stops, changes and starts them. Whoever comes last, each ring is the one that the frontend knows.
 */
#define _GNU_SOURCE /* memfd_create */

#include "lib/check.h"
#include "lib/eal.h"
#include "lib/frame.h"
#include "lib/hostile.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

/* Large, so that it takes a while to give them engines. */
#define LARGE_RING 32768

static atomic_bool go, started;
static unsigned int dice;

static unsigned int
roll(unsigned int sides)
{
	dice = dice * 1103515245u + 12345u;
	return (dice >> 16) % sides;
}

static void *
start_port(void *unused)
{
	(void)unused;
	while (!atomic_load(&go))
		rte_pause();
	CHECK(rte_eth_dev_start(guest.port) == 0, "no start");
	atomic_store(&started, true);
	return NULL;
}

static bool
enable(uint32_t index, uint32_t value)
{
	const struct vring_state state = {index, value};

	return frontend_ask(&guest.frontend, SET_VRING_ENABLE, &state, sizeof(state), NULL, 0) == 0;
}

static bool
change_call(uint32_t index)
{
	struct ring *ring = &guest.frontend.rings[index];
	const uint64_t which = index;

	close(ring->call);
	ring->call = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	return frontend_ask(&guest.frontend, SET_VRING_CALL, &which, sizeof(which), &ring->call, 1) == 0;
}

/* Other memory at the same addresses. Nothing was in the rings, and nothing is there. */
static bool
change_memory(void)
{
	struct frontend *frontend = &guest.frontend;
	const int file = memfd_create("guest", MFD_CLOEXEC);

	if (ftruncate(file, 2 * REGION_SIZE) != 0 ||
	    mmap(frontend->memory, 2 * REGION_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file,
		 0) == MAP_FAILED)
		return false;
	close(frontend->memory_file);
	frontend->memory_file = file;
	return frontend_set_memory(frontend) == 0;
}

static bool
base_is(uint32_t index, uint32_t expected)
{
	struct vring_state state = {.index = index};

	return frontend_send(&guest.frontend, GET_VRING_BASE, 0, &state, sizeof(state), NULL, 0) &&
	       frontend_receive(&guest.frontend, GET_VRING_BASE, &state, sizeof(state)) &&
	       CHECK(state.value == expected, "ring %u: %u, not %u", index, state.value, expected);
}

static bool
stop_and_start(uint32_t index)
{
	return base_is(index, 0) && frontend_set_ring(&guest.frontend, index, LARGE_RING);
}

/* Any message; each leaves rings that are set up. */
static bool
send_something(void)
{
	const uint32_t index = roll(2);

	switch (roll(4)) {
	case 0:
		return change_call(index);
	case 1:
		return enable(index, 0) && (roll(2) == 0 || enable(index, 1));
	case 2:
		return stop_and_start(index);
	default:
		return change_memory();
	}
}

static void
expect_calls(struct ring *ring, const char *when)
{
	uint64_t calls = 0;

	WAIT_FOR((calls = ring_calls(ring)) != 0, 1000);
	CHECK(calls != 0, "%s", when);
}

static void
expect_frames(const char *when)
{
	ring_calls(guest.to_guest);
	ring_calls(guest.to_host);
	frame_passes(when);
	expect_calls(guest.to_guest, when);
	expect_calls(guest.to_host, when);
}

/* A ring that is disabled belongs to the driver. */
static void
expect_nothing(void)
{
	const uint16_t to_guest = guest.to_guest->used->index, to_host = guest.to_host->used->index;
	struct rte_mbuf *mbuf = frame_mbuf(guest.pool, FRAME, ++seed, 0);

	ring_describe(guest.to_guest, 9, DATA_GPA + 0x20000, 2000, DESC_WRITE, 0);
	ring_offer(guest.to_guest, 9);
	guest_offer_frame(&guest, 9, DATA_GPA + 0x30000, FRAME, seed);
	CHECK(rte_eth_tx_burst(guest.port, 0, &mbuf, 1) == 0, "sent over a ring that is disabled");
	for (int look = 0; look < 20; look++) {
		struct rte_mbuf *received;

		CHECK(rte_eth_rx_burst(guest.port, 0, &received, 1) == 0, "received over such a ring");
	}
	CHECK(guest.to_guest->used->index == to_guest, "the ring to the guest was used");
	CHECK(guest.to_host->used->index == to_host, "the ring to the host was used");
	rte_pktmbuf_free(mbuf);
}

/* What was offered meanwhile comes when the rings are enabled. */
static void
expect_what_was_offered(void)
{
	struct used_entry entry;

	CHECK(guest_host_receives(&guest, FRAME, seed), "no frame to the host");
	CHECK(guest_take_used(guest.to_host, &entry, 1) == 1 && entry.head == 9, "not given back");
	CHECK(guest_host_sends(&guest, FRAME, ++seed), "not sent");
	CHECK(guest_take_used(guest.to_guest, &entry, 1) == 1 && entry.head == 9, "no buffer used");
	CHECK(guest_has_frame(&guest, DATA_GPA + 0x20000, FRAME, seed, 1), "another frame");
}

static bool
open_guest(void)
{
	const struct port_config config = {.queues = 1, .pool = guest.pool};

	guest.port = vdev_attach(DEVICE, "iface=%s,dmas=[txq0@sw;rxq0@sw],dmathr=0", guest.path);
	return CHECK(guest.port != NO_PORT, "no port") &&
	       CHECK(port_configure(guest.port, &config) == 0, "not configured") &&
	       CHECK(frontend_connect(&guest.frontend, guest.path), "no connection") &&
	       CHECK(frontend_start(&guest.frontend, USUAL_FEATURES, 2, LARGE_RING), "no handshake");
}

/* Ends with as many messages behind the start as `after`. */
static void
start_in_a_storm(unsigned int before, unsigned int after)
{
	pthread_t starter;

	atomic_store(&go, false);
	atomic_store(&started, false);
	REQUIRE(pthread_create(&starter, NULL, start_port, NULL) == 0, "no thread");
	for (unsigned int nth = 0; !atomic_load(&started); nth++) {
		if (nth == before)
			atomic_store(&go, true);
		CHECK(send_something(), "a message failed");
	}
	pthread_join(starter, NULL);
	for (unsigned int nth = 0; nth < after; nth++)
		CHECK(send_something(), "a message failed");
}

static void
one_life(unsigned int round)
{
	dice = round;
	REQUIRE(open_guest(), "round %u", round);
	start_in_a_storm(roll(4), roll(3));
	for (uint32_t index = 0; index < 2; index++)
		CHECK(enable(index, 1), "not enabled");
	REQUIRE(wait_for_link(guest.port, true), "the link stays down");
	expect_frames("after the start");
	for (uint32_t index = 0; index < 2; index++)
		CHECK(enable(index, 0), "not disabled");
	expect_nothing();
	for (uint32_t index = 0; index < 2; index++)
		CHECK(enable(index, 1), "not enabled");
	expect_what_was_offered();
	expect_frames("enabled again");
	for (uint32_t index = 0; index < 2; index++)
		CHECK(base_is(index, 3), "no base");
	guest_close(&guest);
}

static void
port_starts_while_messages_arrive(void)
{
	const unsigned int rounds = run_is_slow() ? 10 : 100;

	guest.pool = make_pool("starts", 1023, 2048);
	guest.path = socket_path("guest.sock");
	guest.to_guest = &guest.frontend.rings[TO_GUEST_RING];
	guest.to_host = &guest.frontend.rings[TO_HOST_RING];
	REQUIRE(guest.pool != NULL, "no memory");
	for (unsigned int round = 1; round <= rounds; round++)
		one_life(round);
	rte_mempool_free(guest.pool);
}

int
main(void)
{
	eal_start("starts");
	after_each_case(vdev_detach_all);
	if (plugin_is_stock()) {
		printf("1..0 # skipped: stock has no engines\n");
		eal_end();
		return EXIT_SKIPPED;
	}
	run_case("a port starts while messages of its frontend arrive", port_starts_while_messages_arrive,
		 120);
	return eal_end();
}
