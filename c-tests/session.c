/* SPDX-License-Identifier: BSD-3-Clause */
/* What messages do: answers, the link, the events, and settings that reach the port. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/frame.h"
#include "lib/guest.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <rte_arp.h>
#include <rte_ether.h>

#define MAX_SEEN 64
#define SETTLE_MS 100

static struct guest guest;

/* Q: a queue's state, U: link up, D: link down. */
static char seen[MAX_SEEN + 1];
static atomic_uint seen_count;

static int
on_event(uint16_t port, enum rte_eth_event_type type, void *argument, void *result)
{
	unsigned int place = atomic_load(&seen_count);

	(void)argument;
	(void)result;
	if (place < MAX_SEEN) {
		seen[place] = type == RTE_ETH_EVENT_QUEUE_STATE ? 'Q' : link_is_up(port) ? 'U' : 'D';
		atomic_store(&seen_count, place + 1);
	}
	return 0;
}

/* The events since the last call. */
static void
expect_events(const char *expected, const char *cause)
{
	WAIT_FOR(atomic_load(&seen_count) >= strlen(expected), 2000);
	WAIT_FOR(false, SETTLE_MS);
	CHECK(strcmp(seen, expected) == 0, "%s: events \"%s\", expected \"%s\"", cause, seen,
	      expected);
	atomic_store(&seen_count, 0);
	memset(seen, 0, sizeof(seen));
}

static bool
open_port(const struct guest_options *options)
{
	bool good = guest_open_port(&guest, options);

	atomic_store(&seen_count, 0);
	memset(seen, 0, sizeof(seen));
	rte_eth_dev_callback_register(guest.port, RTE_ETH_EVENT_INTR_LSC, on_event, NULL);
	rte_eth_dev_callback_register(guest.port, RTE_ETH_EVENT_QUEUE_STATE, on_event, NULL);
	return good;
}

static int
enable(uint32_t index, uint32_t value)
{
	const struct vring_state state = {.index = index, .value = value};

	return frontend_ask(&guest.frontend, SET_VRING_ENABLE, &state, sizeof(state), NULL, 0);
}

/* Events follow the answer, and come before the next message is read. */
static void
settle(void)
{
	uint64_t features;

	CHECK(frontend_get_u64(&guest.frontend, GET_FEATURES, &features), "no answer");
}

static uint32_t
get_vring_base(uint32_t index)
{
	struct vring_state state = {.index = index};

	CHECK(frontend_send(&guest.frontend, GET_VRING_BASE, 0, &state, sizeof(state), NULL, 0) &&
		      frontend_receive(&guest.frontend, GET_VRING_BASE, &state, sizeof(state)),
	      "no base");
	CHECK(state.index == index, "index %u", state.index);
	return state.value;
}

static void
expect_features(const char *devargs, uint64_t expected)
{
	uint64_t features = 0;

	REQUIRE(guest_open_port(&guest, &(struct guest_options){.devargs = devargs}), "no port");
	CHECK(frontend_connect(&guest.frontend, guest.path) &&
		      frontend_get_u64(&guest.frontend, GET_FEATURES, &features),
	      "no answer");
	/* At least what DPDK's driver offers for the same devargs. */
	CHECK((features & expected) == expected, "\"%s\": %#" PRIx64 " lacks %#" PRIx64, devargs,
	      features, expected & ~features);
	guest_close(&guest);
}

static void
feature_words(void)
{
	/* Of DPDK's word what needs no further means: no checksum, no segmentation. */
	const uint64_t always = 0xd7c668008;
	uint64_t features = 0;

	expect_features("", always);
	expect_features(",tso=1", always);
	expect_features(",linear-buffer=1", always);
	expect_features(",linear-buffer=1,ext-buffer=1,tso=1", always);
	/* What the devargs take away is away: frames that would not fit one mbuf. */
	REQUIRE(guest_open_port(&guest, &(struct guest_options){.devargs = ",linear-buffer=1"}),
		"no port");
	CHECK(frontend_connect(&guest.frontend, guest.path) &&
		      frontend_get_u64(&guest.frontend, GET_FEATURES, &features),
	      "no answer");
	CHECK((features & (1ull << 11 | 1ull << 12 | 1ull << 14)) == 0, "%#" PRIx64, features);
	guest_close(&guest);
}

static uint64_t
offered_protocol_features(const char *devargs)
{
	uint64_t features = 0;

	if (!guest_open_port(&guest, &(struct guest_options){.devargs = devargs}) ||
	    !frontend_connect(&guest.frontend, guest.path) ||
	    !frontend_get_u64(&guest.frontend, GET_PROTOCOL_FEATURES, &features))
		CHECK(false, "no answer");
	guest_close(&guest);
	return features;
}

static void
page_faults_are_opt_in(void)
{
	CHECK((offered_protocol_features("") & PF_PAGEFAULT) == 0, "offered by default");
	CHECK((offered_protocol_features(",postcopy-support=1") & PF_PAGEFAULT) != 0,
	      "not offered");
}

static void
answers(void)
{
	struct frontend *frontend = &guest.frontend;
	uint64_t value = 0;

	REQUIRE(open_port(&(struct guest_options){0}), "no port");
	REQUIRE(frontend_connect(frontend, guest.path), "no connection");
	CHECK(frontend_get_u64(frontend, GET_PROTOCOL_FEATURES, &value) &&
		      (value & (PF_MQ | PF_RARP | PF_REPLY_ACK | PF_MTU | PF_STATUS)) ==
			      (PF_MQ | PF_RARP | PF_REPLY_ACK | PF_MTU | PF_STATUS),
	      "protocol features %#" PRIx64, value);
	CHECK(frontend_get_u64(frontend, GET_QUEUE_NUM, &value) && value == 128, "%" PRIu64, value);
	CHECK(frontend_negotiate(frontend, USUAL_FEATURES), "features");
	CHECK(frontend_ask_u64(frontend, SET_STATUS, 1) == 0, "status");
	CHECK(frontend_get_u64(frontend, GET_STATUS, &value) && value == 1, "status %" PRIu64,
	      value);
	CHECK(frontend_ask_u64(frontend, NET_SET_MTU, 67) == 1, "MTU 67");
	CHECK(frontend_ask_u64(frontend, NET_SET_MTU, 68) == 0, "MTU 68");
	CHECK(frontend_ask_u64(frontend, NET_SET_MTU, 65536) == 1, "MTU 65536");
	/* A ring that was never set up has a base of 0. */
	CHECK(get_vring_base(5) == 0, "base");
	guest_close(&guest);
}

static void
errors_without_need_reply_end_the_connection(void)
{
	const uint64_t mtu = 67;

	REQUIRE(open_port(&(struct guest_options){0}), "no port");
	REQUIRE(frontend_connect(&guest.frontend, guest.path), "no connection");
	CHECK(frontend_send(&guest.frontend, NET_SET_MTU, 0, &mtu, sizeof(mtu), NULL, 0), "send");
	CHECK(frontend_hung_up(&guest.frontend), "still connected");
	guest_close(&guest);
}

static void
events_of_messages(void)
{
	struct frontend *frontend = &guest.frontend;
	const uint64_t index = 0;

	REQUIRE(open_port(&(struct guest_options){.queues = 2}), "no port");
	REQUIRE(frontend_connect(frontend, guest.path), "no connection");
	REQUIRE(frontend_negotiate(frontend, USUAL_FEATURES), "features");
	REQUIRE(frontend_set_memory(frontend) == 0, "memory");
	for (uint32_t ring = 0; ring < 4; ring++)
		REQUIRE(frontend_set_ring(frontend, ring, 256), "ring %u", ring);
	expect_events("", "rings that are not enabled");
	CHECK(enable(0, 1) == 0, "enable");
	expect_events("Q", "vring 0 enabled");
	CHECK(enable(1, 1) == 0, "enable");
	expect_events("Q", "vring 1 enabled");
	CHECK(!link_is_up(guest.port) && get_vid(guest.port) == -1, "up without DRIVER_OK");
	CHECK(frontend_ask_u64(frontend, SET_STATUS, STATUS_ALL) == 0, "status");
	expect_events("U", "DRIVER_OK");
	CHECK(enable(2, 1) == 0 && enable(3, 1) == 0, "enable");
	expect_events("QQ", "the second pair");
	CHECK(enable(3, 1) == 0, "enable");
	expect_events("", "enabled again");
	CHECK(enable(0, 0) == 0, "disable");
	expect_events("Q", "disabled");
	CHECK(link_is_up(guest.port), "a disabled ring took the link down");
	CHECK(enable(0, 1) == 0, "enable");
	expect_events("Q", "enabled after all");
	CHECK(frontend_ask(frontend, SET_VRING_CALL, &index, sizeof(index), &frontend->rings[0].call,
			   1) == 0,
	      "call");
	expect_events("QQ", "another call descriptor");
	CHECK(frontend_ask(frontend, SET_VRING_KICK, &index, sizeof(index), &frontend->rings[0].kick,
			   1) == 0,
	      "kick");
	expect_events("QQ", "another kick descriptor");
	CHECK(frontend_set_memory(frontend) == 0, "memory");
	expect_events("", "the same memory");
	CHECK(frontend_ask_u64(frontend, SET_STATUS, 0) == 0, "status");
	expect_events("", "status 0");
	CHECK(link_is_up(guest.port), "status 0 took the link down");
	get_vring_base(0);
	CHECK(!link_is_up(guest.port), "the answer came before the link went down");
	expect_events("D", "GET_VRING_BASE");
	get_vring_base(1);
	expect_events("", "GET_VRING_BASE again");
	frontend_disconnect(frontend);
	expect_events("", "hang-up without a link");
	guest_close(&guest);
}

static void
events_without_status(void)
{
	struct frontend *frontend = &guest.frontend;
	uint64_t offered;

	REQUIRE(open_port(&(struct guest_options){0}), "no port");
	REQUIRE(frontend_connect(frontend, guest.path), "no connection");
	CHECK(frontend_get_u64(frontend, GET_FEATURES, &offered), "features");
	CHECK(frontend_ask_u64(frontend, SET_PROTOCOL_FEATURES, PF_REPLY_ACK) == 0, "protocol");
	CHECK(frontend_ask_u64(frontend, SET_FEATURES, USUAL_FEATURES & offered) == 0, "features");
	frontend->features = USUAL_FEATURES & offered;
	CHECK(frontend_set_memory(frontend) == 0, "memory");
	REQUIRE(frontend_set_ring(frontend, 0, 256) && frontend_set_ring(frontend, 1, 256), "rings");
	CHECK(enable(0, 1) == 0 && enable(1, 1) == 0, "enable");
	expect_events("QQU", "both rings without status");
	frontend_disconnect(frontend);
	expect_events("D", "hang-up");
	guest_close(&guest);
}

/* A frontend of before protocol features: the kick descriptor enables its ring. */
static void
events_of_an_old_frontend(void)
{
	REQUIRE(open_port(&(struct guest_options){.features = F_MRG_RXBUF}), "no port");
	REQUIRE(guest_connect(&guest), "no guest");
	expect_events("QQU", "kicks");
	guest_offer_frame(&guest, 0, DATA_GPA, 100, 1);
	CHECK(guest_host_receives(&guest, 100, 1), "no frame");
	CHECK(frontend_ask(&guest.frontend, RESET_OWNER, NULL, 0, NULL, 0) == 0, "reset");
	expect_events("D", "RESET_OWNER");
	guest_close(&guest);
}

static void
queue_events_beyond_the_queues(void)
{
	struct rte_eth_vhost_queue_event event;
	unsigned int told = 0;
	bool known[8] = {false};

	REQUIRE(open_port(&(struct guest_options){.queues = 2}), "no port");
	REQUIRE(frontend_connect(&guest.frontend, guest.path), "no connection");
	CHECK(frontend_start(&guest.frontend, USUAL_FEATURES, 8, 256), "no handshake");
	CHECK(wait_for_link(guest.port, true), "the link stays down");
	WAIT_FOR(atomic_load(&seen_count) >= 9, 2000);
	while (get_queue_event(guest.port, &event) == 0 && told < 9) {
		unsigned int vring = 2u * event.queue_id + event.rx;

		CHECK(vring < 8 && !known[vring] && event.enable, "vring %u", vring);
		known[vring % 8] = true;
		told++;
	}
	CHECK(told == 8, "%u events", told);
	/* Twice between two questions: nothing to tell. */
	CHECK(enable(5, 0) == 0 && enable(5, 1) == 0, "enable");
	settle();
	CHECK(get_queue_event(guest.port, &event) == -1, "a change that was undone");
	CHECK(enable(5, 0) == 0, "disable");
	settle();
	CHECK(get_queue_event(guest.port, &event) == 0 && event.queue_id == 2 && event.rx &&
		      !event.enable,
	      "vring 5 was not told");
	guest_close(&guest);
}

static void
mtu_comes_with_the_link(void)
{
	uint16_t mtu = 0;

	REQUIRE(open_port(&(struct guest_options){0}), "no port");
	REQUIRE(frontend_connect(&guest.frontend, guest.path), "no connection");
	CHECK(frontend_ask_u64(&guest.frontend, NET_SET_MTU, 3000) == 0, "MTU");
	CHECK(frontend_start(&guest.frontend, USUAL_FEATURES | F_MTU, 2, 256), "no handshake");
	CHECK(wait_for_link(guest.port, true), "the link stays down");
	CHECK(rte_eth_dev_get_mtu(guest.port, &mtu) == 0 && mtu == 3000, "MTU %u", mtu);
	guest_close(&guest);
}

static void
mtu_stays_unless_told(void)
{
	uint16_t mtu = 0;

	if (beyond_stock())
		return;
	REQUIRE(open_port(&(struct guest_options){.features = USUAL_FEATURES | F_MTU}), "no port");
	REQUIRE(guest_connect(&guest), "no guest");
	CHECK(rte_eth_dev_get_mtu(guest.port, &mtu) == 0 && mtu == RTE_ETHER_MTU, "MTU %u", mtu);
	guest_close(&guest);
}

static void
rarp_comes_first(void)
{
	static const struct rte_ether_addr mac = {{0x52, 0x54, 0, 0x12, 0x34, 0x56}};
	struct {
		struct rte_ether_hdr ether;
		struct rte_arp_hdr arp;
	} __attribute__((packed, aligned(2))) expected = {
		.ether = {
			.dst_addr = {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
			.src_addr = mac,
			.ether_type = RTE_BE16(RTE_ETHER_TYPE_RARP),
		},
		.arp = {
			.arp_hardware = RTE_BE16(RTE_ARP_HRD_ETHER),
			.arp_protocol = RTE_BE16(RTE_ETHER_TYPE_IPV4),
			.arp_hlen = RTE_ETHER_ADDR_LEN,
			.arp_plen = 4,
			.arp_opcode = RTE_BE16(RTE_ARP_OP_REVREQUEST),
			.arp_data = {.arp_sha = mac, .arp_tha = mac},
		},
	};
	struct rte_mbuf *mbuf;
	uint64_t payload = 0;

	REQUIRE(open_port(&(struct guest_options){0}), "no port");
	REQUIRE(guest_connect(&guest), "no guest");
	memcpy(&payload, &mac, sizeof(mac));
	CHECK(frontend_ask_u64(&guest.frontend, SEND_RARP, payload) == 0, "RARP");
	settle();
	guest_offer_frame(&guest, 0, DATA_GPA, 100, 1);
	mbuf = receive_one(guest.port, 0, 2000);
	REQUIRE(mbuf != NULL, "no frame");
	CHECK(mbuf->pkt_len == 64, "%u bytes", mbuf->pkt_len);
	CHECK(memcmp(rte_pktmbuf_mtod(mbuf, void *), &expected, sizeof(expected)) == 0,
	      "not the RARP frame");
	rte_pktmbuf_free(mbuf);
	CHECK(guest_host_receives(&guest, 100, 1), "no frame after it");
	CHECK(guest_host_receives_nothing(&guest), "a second RARP frame");
	CHECK(xstat(guest.port, "rx_q0_broadcast_packets") == 1, "not counted");
	guest_close(&guest);
}

/* When the answer is here, nobody touches the ring any more. */
static void
disabled_ring_is_left_alone(void)
{
	struct rte_mbuf *mbuf;
	struct used_entry entry;

	REQUIRE(guest_open(&guest, &(struct guest_options){0}), "no guest");
	ring_describe(guest.to_guest, 0, DATA_GPA + 0x10000, 2000, DESC_WRITE, 0);
	ring_offer(guest.to_guest, 0);
	CHECK(enable(TO_GUEST_RING, 0) == 0 && enable(TO_HOST_RING, 0) == 0, "disable");
	guest_offer_frame(&guest, 0, DATA_GPA, 100, 1);
	CHECK(guest_host_receives_nothing(&guest), "a disabled ring is polled");
	mbuf = rte_pktmbuf_alloc(guest.pool);
	REQUIRE(mbuf != NULL && rte_pktmbuf_append(mbuf, 60) != NULL, "no mbuf");
	CHECK(rte_eth_tx_burst(guest.port, 0, &mbuf, 1) == 0, "a disabled ring takes frames");
	CHECK(!ring_take(guest.to_host, &entry) && !ring_take(guest.to_guest, &entry), "used");
	rte_pktmbuf_free(mbuf);
	CHECK(enable(TO_GUEST_RING, 1) == 0 && enable(TO_HOST_RING, 1) == 0, "enable");
	CHECK(guest_host_receives(&guest, 100, 1), "the frame was lost");
	CHECK(guest_host_sends(&guest, 100, 2), "not sent");
	CHECK(guest_has_frame(&guest, DATA_GPA + 0x10000, 100, 2, 1), "not arrived");
	guest_close(&guest);
}

static void
twenty_queues(void)
{
	const uint16_t queues = 20;
	struct rte_eth_stats stats;

	REQUIRE(guest_open(&guest, &(struct guest_options){.queues = queues}), "no guest");
	for (uint16_t queue = 0; queue < queues; queue++) {
		struct ring *ring = &guest.frontend.rings[2 * queue + 1];
		struct rte_mbuf *mbuf;

		guest_put_frame(&guest, DATA_GPA, 100, queue);
		ring_describe(ring, 0, DATA_GPA, HEADER + 100, 0, 0);
		ring_offer(ring, 0);
		mbuf = receive_one(guest.port, queue, 2000);
		REQUIRE(mbuf != NULL, "nothing on queue %u", queue);
		CHECK(frame_matches(mbuf, 100, queue), "queue %u", queue);
		rte_pktmbuf_free(mbuf);
	}
	rte_eth_stats_get(guest.port, &stats);
	CHECK(stats.ipackets == (plugin_is_stock() ? 16u : queues), "%" PRIu64 " packets",
	      stats.ipackets);
	guest_close(&guest);
}

/* The backend connects, and connects again when the frontend has left. */
static void
backend_connects(void)
{
	const char *path = socket_path("guest.sock");
	int listener;

	if (beyond_stock())
		return;
	REQUIRE(open_port(&(struct guest_options){.devargs = ",client=1"}), "no port");
	CHECK(!link_is_up(guest.port), "up without a peer");
	listener = frontend_listen(path);
	REQUIRE(listener >= 0, "no listener");
	for (int round = 0; round < 5; round++) {
		REQUIRE(frontend_accept(&guest.frontend, listener), "no connection %d", round);
		REQUIRE(frontend_start(&guest.frontend, USUAL_FEATURES, 2, 256), "no handshake");
		REQUIRE(wait_for_link(guest.port, true), "the link stays down");
		guest_offer_frame(&guest, 0, DATA_GPA, 100, 1);
		CHECK(guest_host_receives(&guest, 100, 1), "no frame");
		if (round == 2) {
			/* The frontend's process ends, and a new one listens at the same place. */
			close(listener);
			listener = frontend_listen(path);
			REQUIRE(listener >= 0, "no listener");
		}
		frontend_disconnect(&guest.frontend);
		REQUIRE(wait_for_link(guest.port, false), "the link stays up");
	}
	guest_close(&guest);
	CHECK(file_exists(path), "a client removed its peer's socket");
	close(listener);
}

/* The port forgets a connection at once, and serves the next without delay. */
static void
no_delay(void)
{
	uint64_t start;

	if (beyond_stock())
		return;
	start = milliseconds_now();
	for (int i = 0; i < 10; i++) {
		REQUIRE(guest_open(&guest, &(struct guest_options){0}), "no guest");
		REQUIRE(vdev_detach(DEVICE) == 0, "remove");
		CHECK(frontend_hung_up(&guest.frontend), "not told");
		guest.port = NO_PORT;
		guest_close(&guest);
	}
	CHECK(run_is_slow() || milliseconds_now() - start < 1000, "ten lives took %d ms",
	      (int)(milliseconds_now() - start));
}

int
main(void)
{
	eal_start("session");
	after_each_case(vdev_detach_all);
	run_case("the offered features are those of the devargs", feature_words, 20);
	run_case("questions are answered", answers, 10);
	run_case("an error that cannot be told ends the connection",
		 errors_without_need_reply_end_the_connection, 10);
	run_case("messages raise their events and no more", events_of_messages, 20);
	run_case("without status the rings make the link", events_without_status, 10);
	run_case("postcopy is offered when it was asked for", page_faults_are_opt_in, 10);
	run_case("without protocol features the kick enables", events_of_an_old_frontend, 10);
	run_case("queue events are told once, also beyond the queues",
		 queue_events_beyond_the_queues, 10);
	run_case("the frontend's MTU comes with the link", mtu_comes_with_the_link, 10);
	run_case("without one the MTU stays", mtu_stays_unless_told, 10);
	run_case("a RARP frame comes first", rarp_comes_first, 10);
	run_case("a disabled ring is left alone", disabled_ring_is_left_alone, 10);
	run_case("totals sum all of twenty queues", twenty_queues, 10);
	run_case("a backend that connects comes back", backend_connects, 20);
	run_case("connections begin and end without delay", no_delay, 10);
	return eal_end();
}
