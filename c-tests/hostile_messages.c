/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Messages that keep no rule of the protocol. Whatever comes: the process lives, the message is
 * refused or its connection ends, no descriptor is left open, and the next frontend is served.
 */
#define _GNU_SOURCE /* memfd_create, pipe2 */

#include "lib/check.h"
#include "lib/eal.h"
#include "lib/hostile.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static void
half_a_message(void)
{
	static const uint8_t bytes[12 + 8] = {GET_FEATURES, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0};
	struct guest_options options = {.ring_size = RING_SIZE};
	struct frontend silent;

	for (size_t length = 1; length < sizeof(bytes); length += 5) {
		REQUIRE(begin(), "no port");
		silent = guest.frontend;
		CHECK(send(silent.socket, bytes, length, MSG_NOSIGNAL) == (ssize_t)length, "send");
		/* While that one is silent, the next is served. */
		REQUIRE(guest_connect(&guest), "a silent frontend keeps others away");
		frame_passes("beside a silent one");
		frontend_disconnect(&silent);
		frame_passes("after a silent one");
		end("after half a message");
	}
	/* And a silent one does not keep the port from closing. */
	REQUIRE(guest_open_port(&guest, &options), "no port");
	REQUIRE(frontend_connect(&guest.frontend, guest.path), "no connection");
	CHECK(send(guest.frontend.socket, bytes, 5, MSG_NOSIGNAL) == 5, "send");
	guest_close(&guest);
}

static void
byte_by_byte(void)
{
	const struct message_header header = {GET_FEATURES, MESSAGE_VERSION, 0};
	const struct message_header set = {SET_OWNER, MESSAGE_VERSION | MESSAGE_NEED_REPLY, 0};
	uint64_t value = 1;

	REQUIRE(begin(), "no port");
	for (size_t i = 0; i < sizeof(header); i++) {
		CHECK(send(guest.frontend.socket, (const uint8_t *)&header + i, 1, MSG_NOSIGNAL) == 1,
		      "send");
		pause_briefly();
	}
	CHECK(frontend_receive(&guest.frontend, GET_FEATURES, &value, sizeof(value)), "no answer");
	for (size_t i = 0; i < sizeof(set); i++) {
		CHECK(send(guest.frontend.socket, (const uint8_t *)&set + i, 1, MSG_NOSIGNAL) == 1,
		      "send");
		pause_briefly();
	}
	CHECK(frontend_receive(&guest.frontend, SET_OWNER, &value, sizeof(value)) && value == 0,
	      "no acknowledgement");
	end("byte by byte");
}

static void
unknown_messages(void)
{
	static const uint32_t requests[] = {0,  22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32,
					    33, 34, 35, 41, 42, 43, 44, 60, 255, 65536,
					    UINT32_MAX};

	REQUIRE(begin(), "no port");
	for (unsigned int i = 0; i < RTE_DIM(requests); i++) {
		CHECK(frontend_ask_u64(&guest.frontend, requests[i], 1) == 1, "message %u",
		      requests[i]);
		CHECK(is_served(), "after message %u", requests[i]);
	}
	/* Without a wish for an answer, the only way to tell is to hang up. */
	CHECK(frontend_send(&guest.frontend, 60, 0, NULL, 0, NULL, 0), "send");
	CHECK(frontend_hung_up(&guest.frontend), "still connected");
	end("unknown messages");
}

static void
wrong_sizes(void)
{
	static const uint32_t sizes[] = {5000, 1u << 20, UINT32_MAX};
	static const struct message_header cut[] = {
		{SET_FEATURES, MESSAGE_VERSION, 4},       {SET_VRING_NUM, MESSAGE_VERSION, 4},
		{SET_VRING_ADDR, MESSAGE_VERSION, 39},    {SET_MEM_TABLE, MESSAGE_VERSION, 4},
		{SET_VRING_KICK, MESSAGE_VERSION, 0},     {SET_STATUS, MESSAGE_VERSION, 7},
		{NET_SET_MTU, MESSAGE_VERSION, 1},        {SEND_RARP, MESSAGE_VERSION, 2},
		{GET_VRING_BASE, MESSAGE_VERSION, 4},     {SET_LOG_BASE, MESSAGE_VERSION, 8},
	};
	static const uint8_t zeros[64];

	for (unsigned int i = 0; i < RTE_DIM(sizes); i++) {
		const struct message_header header = {SET_FEATURES, MESSAGE_VERSION, sizes[i]};

		REQUIRE(begin(), "no port");
		CHECK(send(guest.frontend.socket, &header, sizeof(header), MSG_NOSIGNAL) ==
			      sizeof(header),
		      "send");
		CHECK(frontend_hung_up(&guest.frontend), "still connected after %u bytes",
		      sizes[i]);
		end("too large");
	}
	REQUIRE(begin(), "no port");
	for (unsigned int i = 0; i < RTE_DIM(cut); i++) {
		frontend_send(&guest.frontend, cut[i].request, 0, zeros, cut[i].size, NULL, 0);
		CHECK(frontend_hung_up(&guest.frontend), "message %u of %u bytes", cut[i].request,
		      cut[i].size);
		frontend_disconnect(&guest.frontend);
		REQUIRE(frontend_connect(&guest.frontend, guest.path), "no connection");
	}
	end("too short");
}

static void
too_many_descriptors(void)
{
	static const uint32_t requests[] = {GET_FEATURES,   SET_FEATURES,   SET_MEM_TABLE,
					    SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR,
					    SET_VRING_NUM,  SET_LOG_FD,     SET_BACKEND_REQ_FD,
					    GET_VRING_BASE, 31,             32,
					    SET_STATUS,     ADD_MEM_REG,    SET_LOG_BASE,
					    60};
	static const unsigned int counts[] = {1, 2, 8, 9, 40};
	static const uint8_t zeros[64];
	int files[40];

	REQUIRE(begin(), "no port");
	for (unsigned int i = 0; i < RTE_DIM(requests); i++) {
		for (unsigned int j = 0; j < RTE_DIM(counts); j++) {
			uint32_t size = requests[i] == SET_MEM_TABLE ? 40 : 8;

			for (unsigned int k = 0; k < RTE_DIM(files); k++)
				files[k] = guest.frontend.memory_file;
			frontend_ask(&guest.frontend, requests[i], zeros, size, files, counts[j]);
			/* It may have hung up: then a new connection goes on. */
			if (!is_served()) {
				frontend_disconnect(&guest.frontend);
				REQUIRE(frontend_connect(&guest.frontend, guest.path),
					"no connection");
			}
		}
	}
	end("too many descriptors");
}

static void
index_outside(void)
{
	static const uint32_t requests[] = {SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ENABLE,
					    GET_VRING_BASE, SET_VRING_ADDR};
	static const uint32_t indices[] = {256, 65536, 65537, 0x80000000, UINT32_MAX};

	REQUIRE(begin(), "no port");
	for (unsigned int i = 0; i < RTE_DIM(requests); i++) {
		for (unsigned int j = 0; j < RTE_DIM(indices); j++) {
			/* Both kinds of payload begin with the index. */
			const struct vring_addresses payload = {
				.index = indices[j],
				.flags = requests[i] == SET_VRING_NUM ? 2 : 0,
			};

			REQUIRE(frontend_set_memory(&guest.frontend) == 0, "memory");
			CHECK(frontend_ask(&guest.frontend, requests[i], &payload,
					   requests[i] == SET_VRING_ADDR ? sizeof(payload) : 8,
					   NULL, 0) == -1,
			      "message %u, index %u", requests[i], indices[j]);
			frontend_disconnect(&guest.frontend);
			REQUIRE(frontend_connect(&guest.frontend, guest.path), "no connection");
		}
	}
	end("index outside");
}

static void
bad_ring_values(void)
{
	static const uint32_t sizes[] = {0, 3, 255, 32769, 65536, UINT32_MAX};
	struct vring_state number = {.index = 0};

	REQUIRE(begin(), "no port");
	REQUIRE(frontend_negotiate(&guest.frontend, USUAL_FEATURES), "features");
	for (unsigned int i = 0; i < RTE_DIM(sizes); i++) {
		number.value = sizes[i];
		CHECK(frontend_ask(&guest.frontend, SET_VRING_NUM, &number, sizeof(number), NULL,
				   0) == 1,
		      "size %u", sizes[i]);
	}
	end("bad sizes");
}

/* Spoils one of the addresses of a ring; false when there are no more ways. */
static bool
spoil(unsigned int way, struct vring_addresses *addresses, uint64_t memory)
{
	switch (way) {
	case 0: addresses->descriptors = 0; break;
	case 1: addresses->available = UINT64_MAX - 100; break;
	case 2: addresses->used = memory + 2 * REGION_SIZE - 64; break;
	case 3: addresses->descriptors = memory + REGION_SIZE - 64; break;
	case 4: addresses->descriptors = UINT64_MAX - 15; break;
	case 5: addresses->used = 1; break;
	case 6: addresses->descriptors += 8; break;
	case 7: addresses->used += 1; break;
	default: return false;
	}
	return true;
}

/* A ring that cannot be mapped keeps the link down, and does no harm. */
static void
bad_ring_addresses(void)
{
	struct frontend *frontend = &guest.frontend;
	struct vring_addresses addresses;
	bool refused;

	REQUIRE(begin(), "no port");
	addresses = frontend_ring_addresses(frontend, 1);
	CHECK(frontend_negotiate(frontend, USUAL_FEATURES), "features");
	CHECK(frontend_ask(frontend, SET_VRING_ADDR, &addresses, sizeof(addresses), NULL, 0) == 1,
	      "addresses without memory");
	for (unsigned int way = 0;; way++) {
		frontend_disconnect(frontend);
		REQUIRE(frontend_connect(frontend, guest.path), "no connection");
		addresses = frontend_ring_addresses(frontend, 1);
		if (!spoil(way, &addresses, (uintptr_t)frontend->memory))
			break;
		CHECK(frontend_negotiate(frontend, USUAL_FEATURES), "features");
		CHECK(frontend_set_memory(frontend) == 0, "memory");
		CHECK(frontend_set_ring(frontend, 0, RING_SIZE), "ring 0");
		CHECK(frontend_set_ring(frontend, 1, RING_SIZE), "ring 1");
		/* Refused at once, or the ring never becomes ready. */
		refused = frontend_ask(frontend, SET_VRING_ADDR, &addresses, sizeof(addresses), NULL,
				       0) != 0;
		for (uint32_t index = 0; index < 2; index++) {
			const struct vring_state enable = {.index = index, .value = 1};

			frontend_ask(frontend, SET_VRING_ENABLE, &enable, sizeof(enable), NULL, 0);
		}
		frontend_ask_u64(frontend, SET_STATUS, STATUS_ALL);
		WAIT_FOR(link_is_up(guest.port), 50);
		CHECK(refused || !link_is_up(guest.port), "addresses spoilt in way %u are good enough", way);
		guest_host_receives_nothing(&guest);
	}
	end("bad addresses");
}

static void
bad_memory_tables(void)
{
	struct frontend *frontend = &guest.frontend;
	const struct memory_region good = {MEMORY_GPA, REGION_SIZE, 0x10000000, 0};
	const struct memory_region bad[] = {
		{MEMORY_GPA, 0, 0x10000000, 0},
		{MEMORY_GPA, UINT64_MAX, 0x10000000, 0},
		{MEMORY_GPA, REGION_SIZE, 0x10000000, UINT64_MAX - 4095},
		{MEMORY_GPA, REGION_SIZE, UINT64_MAX - 4095, 0},
		{UINT64_MAX - 4095, REGION_SIZE, 0x10000000, 0},
		{MEMORY_GPA, 3 * REGION_SIZE, 0x10000000, 0},
		{MEMORY_GPA, REGION_SIZE, 0x10000000, 2 * REGION_SIZE - 4096},
		{MEMORY_GPA, 1ull << 62, 0x10000000, 0},
	};
	int files[9], pipe_ends[2], empty;
	struct memory_table table;

	REQUIRE(begin(), "no port");
	CHECK(frontend_negotiate(frontend, USUAL_FEATURES), "features");
	for (unsigned int i = 0; i < RTE_DIM(bad); i++) {
		table = (struct memory_table){.count = 1, .regions = {bad[i]}};
		CHECK(frontend_ask(frontend, SET_MEM_TABLE, &table, 40, &frontend->memory_file,
				   1) == 1,
		      "region %u", i);
		CHECK(is_served(), "after region %u", i);
	}
	/* Counts that do not fit the descriptors, or the message. */
	for (unsigned int i = 0; i < RTE_DIM(files); i++)
		files[i] = frontend->memory_file;
	table = (struct memory_table){.count = 2, .regions = {good, good}};
	CHECK(frontend_ask(frontend, SET_MEM_TABLE, &table, 72, files, 1) != 0, "one for two");
	frontend_disconnect(frontend);
	REQUIRE(frontend_connect(frontend, guest.path), "no connection");
	files[0] = files[1] = frontend->memory_file;
	table.count = 1;
	CHECK(frontend_ask(frontend, SET_MEM_TABLE, &table, 40, files, 2) != 0, "two for one");
	frontend_disconnect(frontend);
	REQUIRE(frontend_connect(frontend, guest.path), "no connection");
	table.count = UINT32_MAX;
	CHECK(frontend_ask(frontend, SET_MEM_TABLE, &table, 40, &frontend->memory_file, 1) != 0,
	      "four billion regions");
	frontend_disconnect(frontend);
	REQUIRE(frontend_connect(frontend, guest.path), "no connection");

	/* Files that are not memory, or less of it than the table says. */
	table = (struct memory_table){.count = 1, .regions = {good}};
	REQUIRE(pipe2(pipe_ends, O_CLOEXEC) == 0, "no pipe");
	CHECK(frontend_ask(frontend, SET_MEM_TABLE, &table, 40, pipe_ends, 1) == 1, "a pipe");
	close(pipe_ends[0]);
	close(pipe_ends[1]);
	empty = memfd_create("empty", MFD_CLOEXEC);
	CHECK(frontend_ask(frontend, SET_MEM_TABLE, &table, 40, &empty, 1) == 1, "an empty file");
	CHECK(ftruncate(empty, REGION_SIZE - 4096) == 0, "no file");
	CHECK(frontend_ask(frontend, SET_MEM_TABLE, &table, 40, &empty, 1) == 1, "a short file");
	close(empty);
	/* Regions that overlap for the guest. */
	table = (struct memory_table){.count = 2, .regions = {good, good}};
	table.regions[1].gpa += 4096;
	table.regions[1].uva += 2 * REGION_SIZE;
	files[0] = files[1] = frontend->memory_file;
	CHECK(frontend_ask(frontend, SET_MEM_TABLE, &table, 72, files, 2) == 1, "overlap");
	end("bad memory");
}

static void
features_not_offered(void)
{
	uint64_t offered;

	REQUIRE(begin(), "no port");
	REQUIRE(frontend_get_u64(&guest.frontend, GET_FEATURES, &offered), "no features");
	for (unsigned int bit = 0; bit < 64; bit++) {
		if ((offered >> bit & 1) == 0)
			CHECK(frontend_ask_u64(&guest.frontend, SET_FEATURES, 1ull << bit) == 1,
			      "bit %u", bit);
	}
	REQUIRE(frontend_get_u64(&guest.frontend, GET_PROTOCOL_FEATURES, &offered), "no features");
	for (unsigned int bit = 0; bit < 64; bit++) {
		if ((offered >> bit & 1) == 0)
			CHECK(frontend_ask_u64(&guest.frontend, SET_PROTOCOL_FEATURES,
					       1ull << bit) == 1,
			      "protocol bit %u", bit);
	}
	end("features");
}

/* Messages, sizes, indices and descriptors by chance, from a fixed start. */
static void
messages_by_chance(void)
{
	const int rounds = run_is_slow() ? 300 : 3000;

	srandom(20240229);
	REQUIRE(begin(), "no port");
	for (int i = 0; i < rounds; i++) {
		uint64_t payload[12];
		int files[3] = {guest.frontend.memory_file, guest.frontend.memory_file,
				guest.frontend.memory_file};
		struct rte_mbuf *mbufs[8];

		for (unsigned int j = 0; j < RTE_DIM(payload); j++)
			payload[j] = (uint64_t)random() % 5 == 0
					     ? (uint64_t)random() << 33 ^ (uint64_t)random()
					     : (uint64_t)random() % 4;
		if (random() % 3 == 0)
			frontend_set_ring(&guest.frontend, (uint32_t)random() % 4, RING_SIZE);
		if (random() % 9 == 0)
			frontend_set_memory(&guest.frontend);
		if (!frontend_send(&guest.frontend, (uint32_t)random() % 42,
				   random() % 2 == 0 ? MESSAGE_NEED_REPLY : 0, payload,
				   random() % 4 == 0 ? (uint32_t)random() % sizeof(payload) : 8,
				   files, (unsigned int)random() % 3) ||
		    !is_served()) {
			frontend_disconnect(&guest.frontend);
			REQUIRE(frontend_connect(&guest.frontend, guest.path), "message %d", i);
		}
		rte_pktmbuf_free_bulk(mbufs,
				      rte_eth_rx_burst(guest.port, 0, mbufs, RTE_DIM(mbufs)));
	}
	end("by chance");
}

static void
skip_for_stock(void)
{
	beyond_stock();
}

int
main(void)
{
	eal_start("hostile_messages");
	after_each_case(vdev_detach_all);
	if (plugin_is_stock()) {
		run_case("these are promises of this driver", skip_for_stock, 5);
		return eal_end();
	}
	run_case("half a message holds up nobody", half_a_message, 20);
	run_case("a message may come byte by byte", byte_by_byte, 10);
	run_case("unknown messages are refused", unknown_messages, 10);
	run_case("wrong sizes end the connection", wrong_sizes, 20);
	run_case("descriptors too many are closed", too_many_descriptors, 30);
	run_case("a ring index outside ends the connection", index_outside, 20);
	run_case("bad ring sizes are refused", bad_ring_values, 10);
	run_case("bad ring addresses keep the link down", bad_ring_addresses, 20);
	run_case("bad memory tables are refused", bad_memory_tables, 20);
	run_case("features that were not offered are refused", features_not_offered, 10);
	run_case("messages by chance leave the port usable", messages_by_chance, 40);
	return eal_end();
}
