/* SPDX-License-Identifier: BSD-3-Clause */
/* Split rings as a driver may lawfully use them, with a driver that uses every freedom. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/frame.h"
#include "lib/guest.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define FRAME 100

static struct guest guest;
static uint32_t seed;

/* Puts a frame to memory and cuts header and frame to descriptors of these lengths. */
static void
offer_pieces(const uint32_t *pieces, unsigned int count, uint32_t length)
{
	uint64_t gpa = DATA_GPA;

	guest_put_frame(&guest, DATA_GPA, length, ++seed);
	for (unsigned int i = 0; i < count; i++) {
		ring_describe(guest.to_host, (uint16_t)i, gpa, pieces[i],
			      i + 1 < count ? DESC_NEXT : 0, (uint16_t)(i + 1));
		gpa += pieces[i];
	}
	ring_offer(guest.to_host, 0);
}

static void
expect_consumed(uint32_t head)
{
	struct used_entry entry = {0};

	REQUIRE(guest_take_used(guest.to_host, &entry, 1) == 1, "the chain was not given back");
	CHECK(entry.head == head && entry.length == 0, "head %u, length %u", entry.head,
	      entry.length);
}

static void
expect_host_receives(uint32_t length, uint32_t head)
{
	CHECK(guest_host_receives(&guest, length, seed), "%u bytes", length);
	expect_consumed(head);
}

static void
header_anywhere(void)
{
	static const uint32_t cuts[][8] = {
		{HEADER + FRAME},
		{HEADER, FRAME},
		{4, 4, 4, FRAME},
		{1, 11, FRAME},
		{5, 5, 5, FRAME - 3},
		{11, 1 + FRAME},
		{HEADER + 1, 1, FRAME - 2},
		{HEADER, 0, 50, 0, 50},
		{0, HEADER, FRAME},
	};
	static const unsigned int counts[] = {1, 2, 4, 3, 4, 2, 3, 5, 3};

	REQUIRE(guest_open(&guest, &(struct guest_options){0}), "no guest");
	for (unsigned int i = 0; i < RTE_DIM(cuts); i++) {
		offer_pieces(cuts[i], counts[i], FRAME);
		expect_host_receives(FRAME, 0);
	}
	guest_close(&guest);
}

static void
runts(void)
{
	REQUIRE(guest_open(&guest, &(struct guest_options){0}), "no guest");
	for (uint32_t length = 1; length < 20; length++) {
		guest_offer_frame(&guest, 3, DATA_GPA, length, ++seed);
		expect_host_receives(length, 3);
	}
	guest_close(&guest);
}

static void
long_chains(void)
{
	static uint32_t ones[1024];
	static const unsigned int lengths[] = {200, 255, 256, 257, 600, 1023, 1024};

	for (unsigned int i = 0; i < RTE_DIM(ones); i++)
		ones[i] = 1;
	REQUIRE(guest_open(&guest, &(struct guest_options){.ring_size = 1024}), "no guest");
	for (unsigned int i = 0; i < RTE_DIM(lengths); i++) {
		if (plugin_is_stock() && lengths[i] > 200)
			break;
		offer_pieces(ones, lengths[i], lengths[i] - HEADER);
		expect_host_receives(lengths[i] - HEADER, 0);
	}
	guest_close(&guest);
}

/* A table at `table` whose `count` entries each name one byte, and the descriptor for it. */
static void
offer_table(uint64_t table, unsigned int count)
{
	guest_put_frame(&guest, DATA_GPA, count - HEADER, ++seed);
	for (unsigned int i = 0; i < count; i++) {
		const struct descriptor entry = {
			.address = DATA_GPA + i,
			.length = 1,
			.flags = i + 1 < count ? DESC_NEXT : 0,
			.next = (uint16_t)(i + 1),
		};

		guest_write(&guest.frontend, table + i * sizeof(entry), &entry, sizeof(entry));
	}
	ring_describe(guest.to_host, 9, table, count * (uint32_t)sizeof(struct descriptor),
		      DESC_INDIRECT, 0);
	ring_offer(guest.to_host, 9);
}

static void
indirect_tables(void)
{
	REQUIRE(guest_open(&guest, &(struct guest_options){0}), "no guest");
	offer_table(DATA_GPA + 0x100000, 20);
	expect_host_receives(20 - HEADER, 9);
	offer_table(DATA_GPA + 0x100000, 256);
	expect_host_receives(256 - HEADER, 9);
	/* Across the border: half the table here, half there; then an entry cut in two. */
	offer_table(BORDER_GPA - 10 * sizeof(struct descriptor), 20);
	expect_host_receives(20 - HEADER, 9);
	offer_table(BORDER_GPA - 10 * sizeof(struct descriptor) - 8, 20);
	expect_host_receives(20 - HEADER, 9);
	guest_close(&guest);
}

static void
across_the_border(void)
{
	struct used_entry entry;

	REQUIRE(guest_open(&guest, &(struct guest_options){0}), "no guest");
	for (uint64_t before = 1; before < 200; before += 9) {
		const uint64_t gpa = BORDER_GPA - before;

		guest_offer_frame(&guest, 5, gpa, 1500, ++seed);
		expect_host_receives(1500, 5);
		ring_describe(guest.to_guest, 2, gpa, 2048, DESC_WRITE, 0);
		ring_offer(guest.to_guest, 2);
		CHECK(guest_host_sends(&guest, 1500, ++seed), "not sent");
		REQUIRE(guest_take_used(guest.to_guest, &entry, 1) == 1, "not given back");
		CHECK(entry.head == 2 && entry.length == HEADER + 1500, "head %u, length %u",
		      entry.head, entry.length);
		CHECK(guest_has_frame(&guest, gpa, 1500, seed, 1), "%" PRIu64 " before", before);
	}
	guest_close(&guest);
}

static void
write_flag_is_data_to_the_host(void)
{
	REQUIRE(guest_open(&guest, &(struct guest_options){0}), "no guest");
	guest_put_frame(&guest, DATA_GPA, FRAME, ++seed);
	ring_describe(guest.to_host, 1, DATA_GPA, HEADER + FRAME, DESC_WRITE, 0);
	ring_offer(guest.to_host, 1);
	expect_host_receives(FRAME, 1);
	guest_close(&guest);
}

static void
pass_both_ways(uint16_t ring_size)
{
	struct used_entry entry;

	/* More often than the ring has places. */
	for (uint32_t i = 0; i < 3u * RTE_MIN(ring_size, (uint16_t)64) + 3; i++) {
		uint16_t index = (uint16_t)(i % ring_size);

		guest_offer_frame(&guest, index, DATA_GPA, 60 + i, ++seed);
		expect_host_receives(60 + i, index);
		ring_describe(guest.to_guest, index, DATA_GPA, 2000, DESC_WRITE, 0);
		ring_offer(guest.to_guest, index);
		CHECK(guest_host_sends(&guest, 60 + i, ++seed), "not sent");
		REQUIRE(guest_take_used(guest.to_guest, &entry, 1) == 1, "not given back");
		CHECK(entry.head == index && entry.length == HEADER + 60 + i, "head %u, length %u",
		      entry.head, entry.length);
		CHECK(guest_has_frame(&guest, DATA_GPA, 60 + i, seed, 1), "frame %u", i);
	}
}

static void
every_ring_size(void)
{
	for (uint32_t size = plugin_is_stock() ? 2 : 1; size <= 32768; size *= 2) {
		REQUIRE(guest_open(&guest, &(struct guest_options){.ring_size = (uint16_t)size}),
			"size %u", size);
		pass_both_ways((uint16_t)size);
		guest_close(&guest);
		/* DPDK's own driver takes a second for each connection. */
		if (plugin_is_stock())
			size *= 8;
	}
}

static void
whole_ring_at_once(void)
{
	struct rte_mbuf *mbufs[256];
	unsigned int taken = 0;

	REQUIRE(guest_open(&guest, &(struct guest_options){0}), "no guest");
	for (int round = 0; round < 3; round++) {
		taken = 0;
		for (uint16_t i = 0; i < 256; i++)
			guest_offer_frame(&guest, i, DATA_GPA + 0x1000ull * i, 200u + i, i);
		WAIT_FOR((taken += rte_eth_rx_burst(guest.port, 0, mbufs + taken,
						    (uint16_t)(256 - taken))) == 256, 2000);
		REQUIRE(taken == 256, "%u of 256", taken);
		for (uint16_t i = 0; i < 256; i++) {
			CHECK(frame_matches(mbufs[i], 200u + i, i), "frame %u", i);
			expect_consumed(i);
		}
		rte_pktmbuf_free_bulk(mbufs, taken);
	}
	guest_close(&guest);
}

/* Offers `count` buffers of one length, one behind the other. */
static void
offer_buffers(unsigned int count, uint32_t length)
{
	for (unsigned int i = 0; i < count; i++) {
		ring_describe(guest.to_guest, (uint16_t)i, DATA_GPA + (uint64_t)i * length, length,
			      DESC_WRITE, 0);
		ring_offer(guest.to_guest, (uint16_t)i);
	}
}

static void
merged_buffers(void)
{
	struct used_entry entries[256];
	const unsigned int needed = (HEADER + 3000 + 99) / 100;

	REQUIRE(guest_open(&guest, &(struct guest_options){0}), "no guest");
	offer_buffers(needed + 5, 100);
	CHECK(guest_host_sends(&guest, 3000, ++seed), "not sent");
	REQUIRE(guest_take_used(guest.to_guest, entries, needed) == needed, "too few buffers");
	CHECK(guest_has_frame(&guest, DATA_GPA, 3000, seed, (uint16_t)needed), "frame");
	for (unsigned int i = 0; i < needed; i++) {
		uint32_t expected = i + 1 < needed ? 100 : HEADER + 3000 - 100 * (needed - 1);

		CHECK(entries[i].head == i && entries[i].length == expected,
		      "entry %u: head %u, length %u", i, entries[i].head, entries[i].length);
	}
	/* Too few are left for the next one: it waits, whole. */
	{
		struct rte_mbuf *mbuf = frame_mbuf(guest.pool, 3000, 1, 0);

		CHECK(rte_eth_tx_burst(guest.port, 0, &mbuf, 1) == 0, "sent a part");
		CHECK(!ring_take(guest.to_guest, entries), "a buffer was used");
		rte_pktmbuf_free(mbuf);
	}
	/* And a small one after it takes the first of them. */
	CHECK(guest_host_sends(&guest, 60, ++seed), "not sent");
	REQUIRE(guest_take_used(guest.to_guest, entries, 1) == 1, "no buffer");
	CHECK(entries[0].head == needed && entries[0].length == HEADER + 60, "head %u, length %u",
	      entries[0].head, entries[0].length);
	guest_close(&guest);
}

static void
chained_buffers(void)
{
	struct used_entry entry;

	REQUIRE(guest_open(&guest, &(struct guest_options){
				.features = USUAL_FEATURES & ~F_MRG_RXBUF}),
		"no guest");
	/* The header lies across three descriptors, the frame across many. */
	for (uint16_t i = 0; i < 100; i++)
		ring_describe(guest.to_guest, i, DATA_GPA + 5u * i, 5,
			      DESC_WRITE | (i < 99 ? DESC_NEXT : 0), (uint16_t)(i + 1));
	ring_offer(guest.to_guest, 0);
	CHECK(guest_host_sends(&guest, 300, ++seed), "not sent");
	REQUIRE(guest_take_used(guest.to_guest, &entry, 1) == 1, "not given back");
	CHECK(entry.head == 0 && entry.length == HEADER + 300, "head %u, length %u", entry.head,
	      entry.length);
	CHECK(guest_has_frame(&guest, DATA_GPA, 300, seed, plugin_is_stock() ? 0 : 1), "frame");
	guest_close(&guest);
}

static void
indirect_buffers(void)
{
	const uint64_t table = BORDER_GPA - 24;
	const struct descriptor entries[] = {
		{DATA_GPA, 4, DESC_WRITE | DESC_NEXT, 2},
		{DATA_GPA + 200, 2000, DESC_WRITE, 0},
		{DATA_GPA + 4, 196, DESC_WRITE | DESC_NEXT, 1},
	};
	struct used_entry entry;

	REQUIRE(guest_open(&guest, &(struct guest_options){0}), "no guest");
	guest_write(&guest.frontend, table, entries, sizeof(entries));
	ring_describe(guest.to_guest, 7, table, sizeof(entries), DESC_INDIRECT, 0);
	ring_offer(guest.to_guest, 7);
	CHECK(guest_host_sends(&guest, 1500, ++seed), "not sent");
	REQUIRE(guest_take_used(guest.to_guest, &entry, 1) == 1, "not given back");
	CHECK(entry.head == 7 && entry.length == HEADER + 1500, "head %u, length %u", entry.head,
	      entry.length);
	CHECK(guest_has_frame(&guest, DATA_GPA, 1500, seed, 1), "frame");
	guest_close(&guest);
}

static void
short_header_without_version_1(void)
{
	struct used_entry entry;
	uint8_t bytes[10 + FRAME] = {0}, seen[10 + FRAME];

	REQUIRE(guest_open(&guest, &(struct guest_options){.features = F_PROTOCOL_FEATURES}),
		"no guest");
	frame_fill(bytes + 10, FRAME, ++seed);
	guest_write(&guest.frontend, DATA_GPA, bytes, sizeof(bytes));
	ring_describe(guest.to_host, 0, DATA_GPA, sizeof(bytes), 0, 0);
	ring_offer(guest.to_host, 0);
	expect_host_receives(FRAME, 0);
	memset(guest_memory(&guest.frontend, DATA_GPA), 0xff, 2000);
	ring_describe(guest.to_guest, 0, DATA_GPA, 2000, DESC_WRITE, 0);
	ring_offer(guest.to_guest, 0);
	CHECK(guest_host_sends(&guest, FRAME, seed), "not sent");
	REQUIRE(guest_take_used(guest.to_guest, &entry, 1) == 1, "not given back");
	CHECK(entry.length == sizeof(bytes), "length %u", entry.length);
	guest_read(&guest.frontend, DATA_GPA, seen, sizeof(seen));
	CHECK(memcmp(seen, bytes, sizeof(bytes)) == 0, "header or frame differ");
	guest_close(&guest);
}

/* A burst of `count` frames of the host into as many buffers. */
static void
host_sends_burst(unsigned int count)
{
	struct used_entry entries[32];
	struct rte_mbuf *mbufs[32];

	for (unsigned int i = 0; i < count; i++) {
		mbufs[i] = frame_mbuf(guest.pool, FRAME, i, 0);
		ring_describe(guest.to_guest, (uint16_t)i, DATA_GPA + 2000ull * i, 2000, DESC_WRITE,
			      0);
		ring_offer(guest.to_guest, (uint16_t)i);
	}
	CHECK(rte_eth_tx_burst(guest.port, 0, mbufs, (uint16_t)count) == count, "not all sent");
	CHECK(guest_take_used(guest.to_guest, entries, count) == count, "not all arrived");
}

static void
calls_without_event_index(void)
{
	uint64_t before;

	REQUIRE(guest_open(&guest, &(struct guest_options){0}), "no guest");
	ring_calls(guest.to_guest);
	before = xstat(guest.port, "tx_q0_guest_notifications");
	host_sends_burst(4);
	host_sends_burst(4);
	CHECK(ring_calls(guest.to_guest) == 2, "not one call for each burst");
	CHECK(xstat(guest.port, "tx_q0_guest_notifications") == before + 2, "%" PRIu64,
	      xstat(guest.port, "tx_q0_guest_notifications"));
	guest.to_guest->available->flags = 1;
	host_sends_burst(4);
	CHECK(ring_calls(guest.to_guest) == 0, "a call that was not wanted");
	guest.to_guest->available->flags = 0;
	host_sends_burst(1);
	CHECK(ring_calls(guest.to_guest) == 1, "no call");
	/* The other direction calls, too. */
	ring_calls(guest.to_host);
	guest_offer_frame(&guest, 0, DATA_GPA, FRAME, ++seed);
	expect_host_receives(FRAME, 0);
	CHECK(ring_calls(guest.to_host) == 1, "no call for a buffer given back");
	guest_close(&guest);
}

/* A frontend that polls and whose driver forgets to say so. */
static void
calls_without_a_descriptor(void)
{
	const char *const errors = "rx_q0_guest_notifications_error";

	if (beyond_stock())
		return;
	REQUIRE(guest_open(&guest, &(struct guest_options){0}), "no guest");
	CHECK(frontend_ask_u64(&guest.frontend, SET_VRING_CALL, TO_HOST_RING | VRING_NO_FD) == 0,
	      "not taken");
	for (uint16_t flags = 0; flags < 2; flags++) {
		guest.to_host->available->flags = flags;
		guest_offer_frame(&guest, 0, DATA_GPA, FRAME, ++seed);
		expect_host_receives(FRAME, 0);
		CHECK(xstat(guest.port, errors) == 1, "%" PRIu64 " errors",
		      xstat(guest.port, errors));
	}
	guest_close(&guest);
}

static void
calls_with_event_index(void)
{
	REQUIRE(guest_open(&guest, &(struct guest_options){
				.features = USUAL_FEATURES | F_EVENT_IDX}),
		"no guest");
	/* The start itself may call. The first burst after it does so in any case. */
	ring_calls(guest.to_guest);
	*ring_used_event(guest.to_guest) = 100;
	host_sends_burst(4);
	CHECK(ring_calls(guest.to_guest) == 1, "no first call");
	host_sends_burst(4);
	CHECK(ring_calls(guest.to_guest) == 0, "a call before the event");
	*ring_used_event(guest.to_guest) = 8;
	host_sends_burst(1);
	CHECK(ring_calls(guest.to_guest) == 1, "no call at the event");
	host_sends_burst(1);
	CHECK(ring_calls(guest.to_guest) == 0, "a call after the event");
	*ring_used_event(guest.to_guest) = 25;
	host_sends_burst(30);
	CHECK(ring_calls(guest.to_guest) == 1, "no call for a burst over the event");
	guest_close(&guest);
}

static void
event_index_wraps(void)
{
	uint64_t calls = 0;

	REQUIRE(guest_open(&guest, &(struct guest_options){
				.features = USUAL_FEATURES | F_EVENT_IDX}),
		"no guest");
	ring_calls(guest.to_guest);
	/* 65536 buffers and some: each burst over the event calls, once round and on. */
	for (unsigned int burst = 0; burst < 2100; burst++) {
		*ring_used_event(guest.to_guest) = (uint16_t)(guest.to_guest->taken + 10);
		host_sends_burst(32);
		calls += ring_calls(guest.to_guest);
	}
	CHECK(calls == 2100, "%" PRIu64 " calls", calls);
	guest_close(&guest);
}

static void
ring_starts_in_the_middle(void)
{
	const struct vring_state base = {.index = TO_HOST_RING, .value = 65530};
	struct vring_state answer = {.index = TO_HOST_RING};
	struct frontend *frontend = &guest.frontend;

	REQUIRE(guest_open_port(&guest, &(struct guest_options){0}), "no port");
	REQUIRE(frontend_connect(frontend, guest.path), "no connection");
	REQUIRE(frontend_negotiate(frontend, USUAL_FEATURES), "features");
	REQUIRE(frontend_set_memory(frontend) == 0, "memory");
	for (uint32_t index = 0; index < 2; index++)
		REQUIRE(frontend_set_ring(frontend, index, 256), "ring");
	CHECK(frontend_ask(frontend, SET_VRING_BASE, &base, sizeof(base), NULL, 0) == 0, "base");
	guest.to_host->available->index = 65530;
	guest.to_host->used->index = 65530;
	guest.to_host->taken = 65530;
	for (uint32_t index = 0; index < 2; index++) {
		const struct vring_state enable = {.index = index, .value = 1};

		CHECK(frontend_ask(frontend, SET_VRING_ENABLE, &enable, sizeof(enable), NULL, 0) == 0,
		      "enable");
	}
	CHECK(frontend_ask_u64(frontend, SET_STATUS, STATUS_ALL) == 0, "status");
	REQUIRE(wait_for_link(guest.port, true), "the link stays down");
	for (uint32_t i = 0; i < 20; i++) {
		guest_offer_frame(&guest, (uint16_t)i, DATA_GPA, FRAME, ++seed);
		expect_host_receives(FRAME, i);
	}
	CHECK(frontend_send(frontend, GET_VRING_BASE, 0, &answer, sizeof(answer), NULL, 0) &&
		      frontend_receive(frontend, GET_VRING_BASE, &answer, sizeof(answer)),
	      "no answer");
	CHECK(answer.index == TO_HOST_RING && answer.value == 14, "base %u", answer.value);
	CHECK(!link_is_up(guest.port), "the link stays up");
	guest_close(&guest);
}

int
main(void)
{
	eal_start("ring");
	after_each_case(vdev_detach_all);
	run_case("the header may lie anywhere in a chain", header_anywhere, 10);
	run_case("runts pass as they are", runts, 10);
	run_case("a chain may be as long as the ring", long_chains, 10);
	run_case("indirect tables are followed, also across regions", indirect_tables, 10);
	run_case("buffers may lie across regions", across_the_border, 20);
	run_case("a device-writable buffer to the host is data", write_flag_is_data_to_the_host, 10);
	run_case("rings of 1 to 32768 entries work", every_ring_size, 30);
	run_case("a full ring is taken in order", whole_ring_at_once, 10);
	run_case("a frame spreads over mergeable buffers", merged_buffers, 10);
	run_case("a frame spreads over a chain", chained_buffers, 10);
	run_case("a frame goes into an indirect table", indirect_buffers, 10);
	run_case("without VERSION_1 the header has 10 bytes", short_header_without_version_1, 10);
	run_case("one call for each burst", calls_without_event_index, 10);
	run_case("a call that cannot be made is counted", calls_without_a_descriptor, 10);
	run_case("the event index decides about calls", calls_with_event_index, 10);
	run_case("the event index wraps", event_index_wraps, 15);
	run_case("a ring starts and ends at its base", ring_starts_in_the_middle, 10);
	return eal_end();
}
