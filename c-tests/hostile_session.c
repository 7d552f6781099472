/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Frontends that come, go, hand over and change things as no other would. Whatever they do: the
 * process lives, no other port feels it, no descriptor is left open, the next one is served.
 */
#define _GNU_SOURCE /* memfd_create, pipe2 */

#include "lib/check.h"
#include "lib/eal.h"
#include "lib/hostile.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define OTHER_DEVICE "net_vhost1"

/* Runs bursts that would call; each returns at once whatever the descriptor is. */
static void
call_through(int file, const char *what)
{
	const uint64_t index = TO_HOST_RING;
	uint64_t start;

	CHECK(frontend_ask(&guest.frontend, SET_VRING_CALL, &index, sizeof(index), &file, 1) != -1,
	      "%s: hung up", what);
	WAIT_FOR(link_is_up(guest.port), 1000);
	start = milliseconds_now();
	for (int i = 0; i < 20; i++) {
		struct used_entry entry;

		guest_offer_frame(&guest, 7, DATA_GPA, FRAME, ++seed);
		CHECK(guest_host_receives(&guest, FRAME, seed), "%s: no frame", what);
		CHECK(guest_take_used(guest.to_host, &entry, 1) == 1, "%s: not given back", what);
	}
	CHECK(milliseconds_now() - start < 1000, "%s: the bursts waited", what);
}

static void
odd_call_descriptors(void)
{
	const uint64_t full = UINT64_MAX - 1;
	static uint8_t block[4096];
	int ends[2], file;

	signal(SIGPIPE, SIG_DFL);
	REQUIRE(begin_started(), "no guest");

	REQUIRE(pipe2(ends, O_CLOEXEC) == 0, "no pipe");
	close(ends[0]);
	call_through(ends[1], "a pipe without reader");
	close(ends[1]);

	REQUIRE(pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0, "no pipe");
	while (write(ends[1], block, sizeof(block)) > 0)
		;
	fcntl(ends[1], F_SETFL, 0);
	call_through(ends[1], "a full pipe");
	close(ends[0]);
	close(ends[1]);

	REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "no sockets");
	close(ends[0]);
	call_through(ends[1], "a socket without peer");
	close(ends[1]);

	file = eventfd(0, EFD_CLOEXEC);
	CHECK(write(file, &full, sizeof(full)) == sizeof(full), "not full");
	call_through(file, "an eventfd at its end");
	close(file);

	file = open("/dev/null", O_RDONLY | O_CLOEXEC);
	call_through(file, "a file to read only");
	close(file);

	file = memfd_create("call", MFD_CLOEXEC);
	call_through(file, "a file");
	close(file);

	file = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	call_through(file, "a directory");
	close(file);
	end("odd call descriptors");
}

static void
answers_nobody_reads(void)
{
	const struct message_header header = {GET_FEATURES, MESSAGE_VERSION, 0};
	struct port_config config = {.queues = 1};
	struct guest other;
	uint64_t start;

	REQUIRE(begin(), "no port");
	/* Until nothing more goes in: the port's thread waits to be rid of an answer. */
	fcntl(guest.frontend.socket, F_SETFL, O_NONBLOCK);
	for (uint64_t last = milliseconds_now(); milliseconds_now() - last < 100;) {
		if (send(guest.frontend.socket, &header, sizeof(header), MSG_NOSIGNAL) > 0)
			last = milliseconds_now();
		else
			pause_briefly();
	}
	/* Another port is served. */
	memset(&other, 0, sizeof(other));
	other.path = socket_path("other.sock");
	other.port = vdev_attach(OTHER_DEVICE, "iface=%s", other.path);
	CHECK(other.port != NO_PORT, "no other port");
	if (other.port != NO_PORT) {
		config.pool = guest.pool;
		CHECK(port_start(other.port, &config) == 0, "other start");
		CHECK(frontend_connect(&other.frontend, other.path) &&
			      frontend_start(&other.frontend, USUAL_FEATURES, 2, RING_SIZE) &&
			      wait_for_link(other.port, true),
		      "the other port is not served");
		frontend_disconnect(&other.frontend);
		CHECK(vdev_detach(OTHER_DEVICE) == 0, "other remove");
	}
	/* And this one closes in time. */
	start = milliseconds_now();
	CHECK(vdev_detach(DEVICE) == 0, "remove");
	CHECK(milliseconds_now() - start < 2000, "close took %d ms",
	      (int)(milliseconds_now() - start));
	guest.port = NO_PORT;
	guest_close(&guest);
}

static void
second_frontend_waits(void)
{
	struct guest second;
	uint64_t features;
	int vid;

	REQUIRE(begin_started(), "no guest");
	vid = get_vid(guest.port);
	second = guest;
	REQUIRE(frontend_connect(&second.frontend, guest.path), "no second connection");
	second.to_host = &second.frontend.rings[TO_HOST_RING];
	second.to_guest = &second.frontend.rings[TO_GUEST_RING];
	CHECK(frontend_get_u64(&second.frontend, GET_FEATURES, &features), "not answered");
	CHECK(frontend_start(&second.frontend, USUAL_FEATURES, 2, RING_SIZE), "no handshake");
	frame_passes("beside a second one");
	CHECK(get_vid(guest.port) == vid, "the second one took over");
	guest_offer_frame(&second, 7, DATA_GPA, FRAME, ++seed);
	CHECK(guest_host_receives_nothing(&guest), "the second one is polled");
	/* The first leaves: it is the second one's turn. */
	frontend_disconnect(&guest.frontend);
	guest.frontend = second.frontend;
	CHECK(guest_host_receives(&guest, FRAME, seed), "the second one never comes");
	CHECK(link_is_up(guest.port), "the link is down");
	end("second frontend");
}

static void
enable_after_get_vring_base(void)
{
	struct vring_state state = {.index = TO_HOST_RING, .value = 0};

	REQUIRE(begin_started(), "no guest");
	for (uint32_t index = 0; index < 2; index++) {
		state.index = index;
		CHECK(frontend_send(&guest.frontend, GET_VRING_BASE, 0, &state, sizeof(state), NULL,
				    0) &&
			      frontend_receive(&guest.frontend, GET_VRING_BASE, &state,
					       sizeof(state)),
		      "no answer");
	}
	CHECK(!link_is_up(guest.port), "the link stays up");
	for (uint32_t index = 0; index < 2; index++) {
		state = (struct vring_state){.index = index, .value = 1};
		frontend_ask(&guest.frontend, SET_VRING_ENABLE, &state, sizeof(state), NULL, 0);
	}
	guest_offer_frame(&guest, 7, DATA_GPA, FRAME, ++seed);
	CHECK(guest_host_receives_nothing(&guest), "a ring without addresses is polled");
	CHECK(!link_is_up(guest.port), "the link came back");
	/* With everything said again it starts again. */
	CHECK(frontend_set_ring(&guest.frontend, 0, RING_SIZE) &&
		      frontend_set_ring(&guest.frontend, 1, RING_SIZE),
	      "rings");
	CHECK(wait_for_link(guest.port, true), "the link stays down");
	frame_passes("rings said again");
	end("stopped rings");
}

static void
reset_while_running(void)
{
	REQUIRE(begin_started(), "no guest");
	CHECK(frontend_ask(&guest.frontend, RESET_OWNER, NULL, 0, NULL, 0) == 0, "reset");
	CHECK(!link_is_up(guest.port), "the link stays up");
	guest_offer_frame(&guest, 7, DATA_GPA, FRAME, ++seed);
	CHECK(guest_host_receives_nothing(&guest), "still polled");
	CHECK(frontend_start(&guest.frontend, USUAL_FEATURES, 2, RING_SIZE), "no new start");
	CHECK(wait_for_link(guest.port, true), "the link stays down");
	frame_passes("after a reset");
	end("reset");
}

static void
memory_replaced_under_traffic(void)
{
	struct frontend *frontend = &guest.frontend;
	uint64_t base;

	REQUIRE(begin_started(), "no guest");
	base = (uintptr_t)frontend->memory;
	for (uint64_t round = 0; round < 50; round++) {
		/* The same memory in another table: a bit less at the end each time. */
		const struct memory_table table = {
			.count = 2,
			.regions = {
				{MEMORY_GPA, REGION_SIZE, base + REGION_SIZE, REGION_SIZE},
				{BORDER_GPA, REGION_SIZE - 4096 * round, base, 0},
			},
		};
		const int files[] = {frontend->memory_file, frontend->memory_file};

		CHECK(frontend_ask(frontend, SET_MEM_TABLE, &table, 72, files, 2) == 0, "table");
		CHECK(link_is_up(guest.port), "the link went down");
		frame_passes("other memory");
	}
	end("memory replaced");
}

static void
settings_while_running(void)
{
	const struct vring_state small = {.index = TO_HOST_RING, .value = 2};
	const struct vring_state base = {.index = TO_HOST_RING, .value = 40000};
	const uint64_t file_index = TO_HOST_RING;

	REQUIRE(begin_started(), "no guest");
	/* Refused or taken over with care: the answer is free, the process is not. */
	CHECK(frontend_ask(&guest.frontend, SET_VRING_NUM, &small, sizeof(small), NULL, 0) != -1,
	      "hung up");
	CHECK(frontend_ask(&guest.frontend, SET_VRING_BASE, &base, sizeof(base), NULL, 0) != -1,
	      "hung up");
	guest_host_receives_nothing(&guest);
	CHECK(frontend_ask_u64(&guest.frontend, SET_FEATURES, F_VERSION_1) != -1, "hung up");
	guest_host_receives_nothing(&guest);
	/* New descriptors, again and again: the old ones are closed. */
	for (int i = 0; i < 500; i++) {
		CHECK(frontend_ask(&guest.frontend, SET_VRING_KICK, &file_index, 8,
				   &guest.frontend.rings[1].kick, 1) == 0,
		      "kick");
		CHECK(frontend_ask(&guest.frontend, SET_VRING_CALL, &file_index, 8,
				   &guest.frontend.rings[1].call, 1) == 0,
		      "call");
	}
	end("settings while running");
}

/* Leaves after each number of steps of the handshake, by hang-up or because the port closes. */
static void
leaves_at_every_step(void)
{
	for (int port_closes = 0; port_closes < 2; port_closes++) {
		for (int steps = 0; steps < 8; steps++) {
			struct frontend *frontend = &guest.frontend;

			REQUIRE(begin(), "no port");
			if (steps > 0)
				frontend_negotiate(frontend, USUAL_FEATURES);
			if (steps > 1)
				frontend_set_memory(frontend);
			for (uint32_t index = 0; index < 2; index++) {
				const struct vring_state enable = {.index = index, .value = 1};

				if (steps > 2 + (int)index)
					frontend_set_ring(frontend, index, RING_SIZE);
				if (steps > 4 + (int)index)
					frontend_ask(frontend, SET_VRING_ENABLE, &enable,
						     sizeof(enable), NULL, 0);
			}
			if (steps > 6)
				frontend_ask_u64(frontend, SET_STATUS, STATUS_ALL);
			if (port_closes != 0) {
				CHECK(vdev_detach(DEVICE) == 0, "step %d", steps);
				CHECK(frontend_hung_up(frontend), "step %d", steps);
				guest.port = NO_PORT;
				guest_close(&guest);
			} else {
				end("left early");
			}
		}
	}
}

static void
many_connections(void)
{
	static struct frontend frontends[60];

	REQUIRE(begin(), "no port");
	frontend_disconnect(&guest.frontend);
	for (unsigned int i = 0; i < RTE_DIM(frontends); i++)
		REQUIRE(frontend_connect(&frontends[i], guest.path), "connection %u", i);
	REQUIRE(guest_connect(&guest), "not served");
	frame_passes("beside sixty");
	for (unsigned int i = 0; i < RTE_DIM(frontends); i++)
		frontend_disconnect(&frontends[i]);
	frame_passes("after sixty");
	end("many connections");
}

static void
skip_for_stock(void)
{
	beyond_stock();
}

int
main(void)
{
	eal_start("hostile_session");
	after_each_case(vdev_detach_all);
	if (plugin_is_stock()) {
		run_case("these are promises of this driver", skip_for_stock, 5);
		return eal_end();
	}
	run_case("odd call descriptors stop no burst", odd_call_descriptors, 20);
	run_case("answers that nobody reads block only their connection", answers_nobody_reads, 20);
	run_case("a second frontend waits for its turn", second_frontend_waits, 10);
	run_case("a stopped ring needs its addresses again", enable_after_get_vring_base, 10);
	run_case("a reset ends the link until all is said again", reset_while_running, 10);
	run_case("the memory table changes under traffic", memory_replaced_under_traffic, 20);
	run_case("settings of a running ring do no harm", settings_while_running, 20);
	run_case("either side may leave at every step", leaves_at_every_step, 30);
	run_case("sixty idle connections keep nobody away", many_connections, 20);
	return eal_end();
}
