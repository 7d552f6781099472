/* SPDX-License-Identifier: BSD-3-Clause */
/* Operations on single queues: start and stop, what they are, what waits in them, power monitor. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/frame.h"
#include "lib/pair.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include <rte_lcore.h>
#include <rte_power_intrinsics.h>

#define QUEUES 2
#define RING 256

static struct pair pair;

static bool
open_layout(bool packed)
{
	return pair_open(&pair, &(struct pair_options){
					.queues = QUEUES, .ring_size = RING, .packed = packed});
}

static void
each_layout(void (*body)(void))
{
	for (int packed = 0; packed <= 1; packed++) {
		REQUIRE(open_layout(packed != 0), "no pair, packed %d", packed);
		body();
		pair_close(&pair);
	}
}

static bool
flows(enum direction direction, uint16_t queue)
{
	struct flow flow = {.direction = direction,
			    .queue = queue,
			    .first_length = 60,
			    .last_length = 200,
			    .count = 100};

	return pair_move(&pair, &flow) == flow.count;
}

static void
send_frames(uint16_t queue, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++) {
		struct rte_mbuf *mbuf = frame_mbuf(pair.frontend_pool, 100, i, 0);

		REQUIRE(mbuf != NULL && rte_eth_tx_burst(pair.frontend, queue, &mbuf, 1) == 1,
			"not sent");
	}
}

/* Takes frames that `send_frames` sent. */
static void
take_frames(uint16_t queue, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++) {
		struct rte_mbuf *mbuf = receive_one(pair.backend, queue, 2000);

		REQUIRE(mbuf != NULL, "frame %u of %u did not come", i, count);
		CHECK(frame_matches(mbuf, 100, i), "frame %u is another one", i);
		rte_pktmbuf_free(mbuf);
	}
}

static uint8_t
rx_state(uint16_t queue)
{
	struct rte_eth_rxq_info info;

	return rte_eth_rx_queue_info_get(pair.backend, queue, &info) == 0 ? info.queue_state
									  : UINT8_MAX;
}

static uint8_t
tx_state(uint16_t queue)
{
	struct rte_eth_txq_info info;

	return rte_eth_tx_queue_info_get(pair.backend, queue, &info) == 0 ? info.queue_state
									  : UINT8_MAX;
}

static void
stop_and_start(void)
{
	struct rte_mbuf *mbuf = frame_mbuf(pair.backend_pool, 100, 0, 0);

	REQUIRE(mbuf != NULL, "no mbuf");
	CHECK(rte_eth_dev_rx_queue_stop(pair.backend, 0) == 0, "stop rx");
	CHECK(rte_eth_dev_tx_queue_stop(pair.backend, 0) == 0, "stop tx");
	CHECK(rx_state(0) == RTE_ETH_QUEUE_STATE_STOPPED, "rx state");
	CHECK(tx_state(0) == RTE_ETH_QUEUE_STATE_STOPPED, "tx state");
	send_frames(0, 3);
	CHECK(receive_one(pair.backend, 0, 20) == NULL, "a stopped queue receives");
	CHECK(rte_eth_tx_burst(pair.backend, 0, &mbuf, 1) == 0, "a stopped queue sends");
	rte_pktmbuf_free(mbuf);
	CHECK(flows(TO_HOST, 1) && flows(TO_GUEST, 1), "the other queue stopped too");

	CHECK(rte_eth_dev_rx_queue_start(pair.backend, 0) == 0, "start rx");
	CHECK(rte_eth_dev_tx_queue_start(pair.backend, 0) == 0, "start tx");
	CHECK(rx_state(0) == RTE_ETH_QUEUE_STATE_STARTED, "rx state");
	CHECK(tx_state(0) == RTE_ETH_QUEUE_STATE_STARTED, "tx state");
	take_frames(0, 3);
	CHECK(flows(TO_HOST, 0) && flows(TO_GUEST, 0), "a started queue does nothing");

	/* A stopped queue starts with the port again, and with another frontend. */
	CHECK(rte_eth_dev_rx_queue_stop(pair.backend, 1) == 0, "stop rx");
	pair_close_frontend(&pair);
	REQUIRE(wait_for_link(pair.backend, false), "the link stays up");
	REQUIRE(pair_open_frontend(&pair), "no frontend");
	send_frames(1, 1);
	CHECK(receive_one(pair.backend, 1, 20) == NULL, "a stopped queue receives");
	CHECK(rte_eth_dev_stop(pair.backend) == 0, "stop");
	CHECK(rx_state(1) == RTE_ETH_QUEUE_STATE_STOPPED, "rx state");
	CHECK(rte_eth_dev_start(pair.backend) == 0, "start");
	take_frames(1, 1);
}

static void
queues_stop_and_start(void)
{
	if (!beyond_stock())
		each_layout(stop_and_start);
}

static void
deferred_queues_wait(void)
{
	struct rte_eth_rxconf rx = {.rx_deferred_start = 1};
	struct rte_eth_txconf tx = {.tx_deferred_start = 1};
	struct rte_mbuf *mbuf;

	if (beyond_stock())
		return;
	REQUIRE(open_layout(false), "no pair");
	CHECK(rte_eth_dev_stop(pair.backend) == 0, "stop");
	CHECK(rte_eth_rx_queue_setup(pair.backend, 0, 512, SOCKET_ID_ANY, &rx,
				     pair.backend_pool) == 0 &&
		      rte_eth_tx_queue_setup(pair.backend, 0, 512, SOCKET_ID_ANY, &tx) == 0,
	      "queue setup");
	CHECK(rte_eth_dev_start(pair.backend) == 0, "start");
	CHECK(rx_state(0) == RTE_ETH_QUEUE_STATE_STOPPED, "rx state");
	CHECK(tx_state(0) == RTE_ETH_QUEUE_STATE_STOPPED, "tx state");
	mbuf = frame_mbuf(pair.backend_pool, 100, 0, 0);
	REQUIRE(mbuf != NULL, "no mbuf");
	CHECK(rte_eth_tx_burst(pair.backend, 0, &mbuf, 1) == 0, "sent");
	rte_pktmbuf_free(mbuf);
	CHECK(flows(TO_HOST, 1) && flows(TO_GUEST, 1), "the other queue waits too");
	CHECK(rte_eth_dev_rx_queue_start(pair.backend, 0) == 0, "start rx");
	CHECK(rte_eth_dev_tx_queue_start(pair.backend, 0) == 0, "start tx");
	CHECK(flows(TO_HOST, 0) && flows(TO_GUEST, 0), "a started queue does nothing");
	pair_close(&pair);
}

static void
queues_tell_how_they_were_set_up(void)
{
	struct rte_eth_rxconf rx_conf = {.rx_free_thresh = 7};
	struct rte_eth_txconf tx_conf = {.tx_rs_thresh = 9};
	struct rte_eth_rxq_info rx;
	struct rte_eth_txq_info tx;

	if (beyond_stock())
		return;
	REQUIRE(open_layout(false), "no pair");
	CHECK(rte_eth_dev_stop(pair.backend) == 0, "stop");
	CHECK(rte_eth_rx_queue_setup(pair.backend, 1, 1000, SOCKET_ID_ANY, &rx_conf,
				     pair.backend_pool) == 0 &&
		      rte_eth_tx_queue_setup(pair.backend, 1, 2000, SOCKET_ID_ANY, &tx_conf) == 0,
	      "queue setup");
	CHECK(rte_eth_dev_start(pair.backend) == 0, "start");
	REQUIRE(rte_eth_rx_queue_info_get(pair.backend, 1, &rx) == 0, "rxq info");
	CHECK(rx.mp == pair.backend_pool && rx.nb_desc == 1000 && rx.conf.rx_free_thresh == 7 &&
		      rx.scattered_rx == 1 && rx.rx_buf_size == 2048 &&
		      rx.queue_state == RTE_ETH_QUEUE_STATE_STARTED,
	      "rxq: %u descriptors, threshold %u, scattered %u, buffer %u", rx.nb_desc,
	      rx.conf.rx_free_thresh, rx.scattered_rx, rx.rx_buf_size);
	REQUIRE(rte_eth_tx_queue_info_get(pair.backend, 1, &tx) == 0, "txq info");
	CHECK(tx.nb_desc == 2000 && tx.conf.tx_rs_thresh == 9, "txq: %u descriptors", tx.nb_desc);
	CHECK(rte_eth_rx_queue_info_get(pair.backend, QUEUES, &rx) == -EINVAL, "no such queue");
	pair_close(&pair);
}

static bool
mode_is(bool packed, const char *also)
{
	struct rte_eth_burst_mode rx, tx;
	const char *layout = packed ? "packed ring" : "split ring";

	if (!CHECK(rte_eth_rx_burst_mode_get(pair.backend, 0, &rx) == 0 &&
			   rte_eth_tx_burst_mode_get(pair.backend, 0, &tx) == 0,
		   "burst mode"))
		return false;
	return CHECK(strncmp(rx.info, layout, strlen(layout)) == 0 &&
			     strstr(tx.info, also) != NULL && rx.flags != 0,
		     "rx: %s, tx: %s", rx.info, tx.info);
}

static void
burst_mode_tells_the_layout(void)
{
	struct rte_eth_burst_mode mode;

	if (beyond_stock())
		return;
	for (int packed = 0; packed <= 1; packed++) {
		REQUIRE(pair_open_backend(&pair, &(struct pair_options){.packed = packed != 0}),
			"no backend");
		CHECK(rte_eth_rx_burst_mode_get(pair.backend, 0, &mode) == 0 &&
			      strcmp(mode.info, "no ring") == 0,
		      "without a frontend: %s", mode.info);
		REQUIRE(pair_open_frontend(&pair), "no frontend");
		mode_is(packed != 0, "mergeable buffers");
		pair_close(&pair);
	}
}

static void
descriptors(void)
{
	struct rte_mbuf *mbufs[32];
	unsigned int sent = 0;
	uint16_t count;

	/* The link comes with the first queue's rings; the second one's are a little later. */
	WAIT_FOR(rte_eth_tx_descriptor_status(pair.backend, 1, 0) == RTE_ETH_TX_DESC_DONE &&
			 rte_eth_rx_descriptor_status(pair.backend, 1, 0) == RTE_ETH_RX_DESC_AVAIL,
		 2000);
	for (unsigned int round = 0; round < 2 * RING; round += 5) {
		CHECK(rte_eth_rx_descriptor_status(pair.backend, 1, 0) == RTE_ETH_RX_DESC_AVAIL,
		      "something waits");
		send_frames(1, 5);
		for (uint16_t i = 0; i < 5; i++)
			CHECK(rte_eth_rx_descriptor_status(pair.backend, 1, i) ==
				      RTE_ETH_RX_DESC_DONE,
			      "frame %u does not wait, round %u", i, round);
		CHECK(rte_eth_rx_queue_count(pair.backend, 1) >= 5, "count");
		take_frames(1, 5);
	}
	CHECK(rte_eth_rx_descriptor_status(pair.backend, 1, RING - 1) == RTE_ETH_RX_DESC_AVAIL,
	      "the last one");
	CHECK(rte_eth_rx_descriptor_status(pair.backend, 1, RING) == -EINVAL, "behind the ring");

	CHECK(rte_eth_tx_descriptor_status(pair.backend, 1, 0) == RTE_ETH_TX_DESC_DONE, "full");
	CHECK(rte_eth_tx_descriptor_status(pair.backend, 1, RING) == -EINVAL, "behind the ring");
	for (;;) {
		struct rte_mbuf *mbuf = frame_mbuf(pair.backend_pool, 100, sent, 0);

		REQUIRE(mbuf != NULL, "no mbuf");
		if (rte_eth_tx_burst(pair.backend, 1, &mbuf, 1) == 1) {
			sent++;
			continue;
		}
		rte_pktmbuf_free(mbuf);
		break;
	}
	CHECK(sent > 0 && sent <= RING, "%u sent", sent);
	CHECK(rte_eth_tx_descriptor_status(pair.backend, 1, 0) == RTE_ETH_TX_DESC_FULL,
	      "room that no burst found");
	/* The guest takes the frames, and gives new buffers for them. */
	do {
		count = rte_eth_rx_burst(pair.frontend, 1, mbufs, 32);
		rte_pktmbuf_free_bulk(mbufs, count);
	} while (count != 0);
	CHECK(rte_eth_tx_descriptor_status(pair.backend, 1, 0) == RTE_ETH_TX_DESC_DONE, "full");
}

static void
descriptors_tell_what_waits(void)
{
	if (!beyond_stock())
		each_layout(descriptors);
}

static void
descriptors_without_a_ring(void)
{
	if (beyond_stock())
		return;
	REQUIRE(pair_open_backend(&pair, &(struct pair_options){0}), "no backend");
	CHECK(rte_eth_rx_descriptor_status(pair.backend, 0, 0) == RTE_ETH_RX_DESC_UNAVAIL, "rx");
	CHECK(rte_eth_tx_descriptor_status(pair.backend, 0, 0) == RTE_ETH_TX_DESC_UNAVAIL, "tx");
	pair_close(&pair);
}

/* What a sleeping core's hardware would read and decide: true when it may sleep. */
static bool
may_sleep(uint16_t queue)
{
	struct rte_power_monitor_cond condition;
	uint64_t value;

	if (!CHECK(rte_eth_get_monitor_addr(pair.backend, queue, &condition) == 0, "no address"))
		return false;
	if (!CHECK(condition.size == 2 && condition.fn != NULL, "size %u", condition.size))
		return false;
	value = *(volatile uint16_t *)condition.addr;
	return condition.fn(value, condition.opaque) == 0;
}

static void
monitor(void)
{
	struct rte_power_monitor_cond condition;
	uint64_t value;

	for (unsigned int round = 0; round < 3 * RING + 7; round++) {
		REQUIRE(may_sleep(0), "awake with nothing to do, round %u", round);
		/* The condition of an idle queue is what a sleeper looks at until a frame comes. */
		REQUIRE(rte_eth_get_monitor_addr(pair.backend, 0, &condition) == 0, "no address");
		send_frames(0, 1);
		value = *(volatile uint16_t *)condition.addr;
		REQUIRE(condition.fn(value, condition.opaque) != 0, "sleeps on, round %u", round);
		REQUIRE(!may_sleep(0), "lies down beside a frame, round %u", round);
		take_frames(0, 1);
	}
}

static void
monitored_address_changes_with_each_frame(void)
{
	each_layout(monitor);
}

/* Lines of /proc/self/maps that are files, as the guest's memory is. */
static unsigned int
mapped_files(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned long inode;
	unsigned int count = 0;
	char line[512];

	while (maps != NULL && fgets(line, sizeof(line), maps) != NULL)
		if (sscanf(line, "%*s %*s %*s %*s %lu", &inode) == 1 && inode != 0)
			count++;
	if (maps != NULL)
		fclose(maps);
	return count;
}

static void
hang_up(void)
{
	pair_close_frontend(&pair);
	REQUIRE(wait_for_link(pair.backend, false), "the link stays up");
}

static void
monitor_dies_with_the_ring(void)
{
	struct rte_power_monitor_cond condition, none;
	unsigned int files;

	REQUIRE(pair_open_backend(&pair, &(struct pair_options){.queues = QUEUES}), "no backend");
	files = mapped_files();

	REQUIRE(pair_open_frontend(&pair), "no frontend");
	CHECK(rte_eth_get_monitor_addr(pair.backend, 0, &condition) == 0, "no address");
	hang_up();
	/* Whoever was given the address may look at it yet. */
	if (!plugin_is_stock())
		CHECK(*(volatile uint16_t *)condition.addr != 0xabcd, "a sleeper would crash");
	CHECK(rte_eth_get_monitor_addr(pair.backend, 0, &none) != 0,
	      "an address of memory that is gone");
	WAIT_FOR(mapped_files() == files, 2000);
	CHECK(mapped_files() == files, "the guest's memory stays mapped");

	REQUIRE(pair_open_frontend(&pair), "no frontend");
	CHECK(rte_eth_get_monitor_addr(pair.backend, 0, &condition) == 0, "no address");
	hang_up();
	if (!plugin_is_stock())
		CHECK(mapped_files() > files, "a sleeper would crash");
	CHECK(rte_eth_dev_stop(pair.backend) == 0, "stop");
	WAIT_FOR(mapped_files() == files, 2000);
	CHECK(mapped_files() == files, "a stopped port keeps the guest's memory");
	pair_close(&pair);
}

static atomic_bool stop_asking;

static void *
ask(void *argument)
{
	unsigned int *asked = argument;
	struct rte_eth_burst_mode mode;
	struct rte_eth_rxq_info info;

	while (!stop_asking) {
		for (uint16_t queue = 0; queue < QUEUES; queue++) {
			rte_eth_rx_descriptor_status(pair.backend, queue, *asked % (2 * RING));
			rte_eth_tx_descriptor_status(pair.backend, queue, *asked % (2 * RING));
			rte_eth_rx_queue_count(pair.backend, queue);
			rte_eth_rx_burst_mode_get(pair.backend, queue, &mode);
			rte_eth_rx_queue_info_get(pair.backend, queue, &info);
		}
		(*asked)++;
	}
	return NULL;
}

static void
questions_disturb_no_burst(void)
{
	unsigned int asked = 0;
	pthread_t thread;

	if (beyond_stock())
		return;
	for (int packed = 0; packed <= 1; packed++) {
		REQUIRE(open_layout(packed != 0), "no pair");
		stop_asking = false;
		REQUIRE(pthread_create(&thread, NULL, ask, &asked) == 0, "no thread");
		for (int round = 0; round < (run_is_slow() ? 2 : 8); round++) {
			for (uint16_t queue = 0; queue < QUEUES; queue++) {
				CHECK(flows(TO_HOST, queue), "to host, queue %u", queue);
				CHECK(flows(TO_GUEST, queue), "to guest, queue %u", queue);
			}
			pair_close_frontend(&pair);
			CHECK(wait_for_link(pair.backend, false), "the link stays up");
			if (!CHECK(pair_open_frontend(&pair), "no frontend"))
				break;
		}
		stop_asking = true;
		pthread_join(thread, NULL);
		pair_close(&pair);
	}
	CHECK(asked > 10, "asked %u times only", asked);
}

static void
port_is_on_the_node_of_its_ring(void)
{
	if (beyond_stock())
		return;
	REQUIRE(open_layout(false), "no pair");
	/* Virtio-user's memory is of this process. */
	CHECK(rte_eth_dev_socket_id(pair.backend) >= 0 || rte_socket_count() == 1, "node %d",
	      rte_eth_dev_socket_id(pair.backend));
	pair_close(&pair);
}

static void
any_mtu_and_any_frame(void)
{
	struct pair_options options = {.ring_size = 1024};
	struct flow flow = {.first_length = 65400, .last_length = 65535, .count = 136, .burst = 4};
	uint16_t mtu;

	for (int packed = 0; packed <= 1; packed++) {
		options.packed = packed != 0;
		REQUIRE(pair_open(&pair, &options), "no pair");
		if (!plugin_is_stock()) {
			CHECK(rte_eth_dev_set_mtu(pair.backend, UINT16_MAX) == 0, "MTU 65535");
			CHECK(rte_eth_dev_get_mtu(pair.backend, &mtu) == 0 && mtu == UINT16_MAX,
			      "MTU %u", mtu);
		}
		flow.direction = TO_HOST;
		CHECK(pair_move(&pair, &flow) == flow.count, "to host, packed %d", packed);
		flow.direction = TO_GUEST;
		CHECK(pair_move(&pair, &flow) == flow.count, "to guest, packed %d", packed);
		pair_close(&pair);
	}
}

/* A tagged frame of the guest: the tag it still has when it arrives, or what was stripped. */
static void
vlan_strip_is(bool on)
{
	uint8_t bytes[100];
	struct rte_mbuf *mbuf;

	frame_fill(bytes, sizeof(bytes), 1);
	memcpy(bytes + 12, (const uint8_t[]){0x81, 0x00, 0x00, 0x2a}, 4);
	mbuf = bytes_mbuf(pair.frontend_pool, bytes, sizeof(bytes), 0);
	REQUIRE(mbuf != NULL, "no mbuf");
	mbuf = pair_pass(&pair, TO_HOST, 0, mbuf);
	REQUIRE(mbuf != NULL, "nothing came");
	CHECK(mbuf->pkt_len == (on ? 96 : 100), "%u bytes", mbuf->pkt_len);
	CHECK(((mbuf->ol_flags & RTE_MBUF_F_RX_VLAN_STRIPPED) != 0) == on &&
		      mbuf->vlan_tci == (on ? 42 : 0),
	      "flags %#llx, tag %u", (unsigned long long)mbuf->ol_flags, mbuf->vlan_tci);
	rte_pktmbuf_free(mbuf);
}

static void
vlan_strip_is_switched_while_it_runs(void)
{
	if (beyond_stock())
		return;
	REQUIRE(open_layout(false), "no pair");
	vlan_strip_is(false);
	CHECK(rte_eth_dev_set_vlan_offload(pair.backend, RTE_ETH_VLAN_STRIP_OFFLOAD) == 0, "on");
	vlan_strip_is(true);
	CHECK(rte_eth_dev_set_vlan_offload(pair.backend, 0) == 0, "off");
	vlan_strip_is(false);
	pair_close(&pair);
}

int
main(void)
{
	eal_start("queues");
	after_each_case(vdev_detach_all);
	run_case("a queue stops and starts alone", queues_stop_and_start, 30);
	run_case("a deferred queue waits for its start", deferred_queues_wait, 30);
	run_case("a queue tells how it was set up", queues_tell_how_they_were_set_up, 10);
	run_case("the burst mode tells the layout", burst_mode_tells_the_layout, 20);
	run_case("descriptors tell what waits", descriptors_tell_what_waits, 20);
	run_case("there are no descriptors without a ring", descriptors_without_a_ring, 10);
	run_case("the monitored address changes with each frame",
		 monitored_address_changes_with_each_frame, 20);
	run_case("the monitored address dies with the ring", monitor_dies_with_the_ring, 10);
	run_case("questions disturb no burst", questions_disturb_no_burst, 60);
	run_case("VLAN strip is switched while it runs", vlan_strip_is_switched_while_it_runs, 10);
	run_case("the port is on the node of its ring", port_is_on_the_node_of_its_ring, 10);
	run_case("any MTU, and frames of 64 KB", any_mtu_and_any_frame, 30);
	return eal_end();
}
