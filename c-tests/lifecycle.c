/* SPDX-License-Identifier: BSD-3-Clause */
/* The life of a port as an application sees it, without and with a frontend. */
#define _GNU_SOURCE /* dladdr */

#include "lib/check.h"
#include "lib/eal.h"
#include "lib/pair.h"
#include "lib/port.h"

#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <rte_dev.h>
#include <rte_ether.h>

#define DEVICE "net_vhost0"

static struct rte_mempool *pool;
static struct pair pair;

static uint16_t
attach(const char *path, uint16_t queues)
{
	return vdev_attach(DEVICE, "iface=%s,queues=%u", path, queues);
}

static void
values_at_probe(void)
{
	const char *path = socket_path("probe");
	uint16_t port = attach(path, 2);
	struct rte_ether_addr mac;
	struct rte_eth_link link;
	struct rte_eth_dev_info info;
	uint16_t mtu = 0;

	REQUIRE(port != NO_PORT, "probe failed");
	CHECK(!file_exists(path), "the probe made a socket");
	CHECK(rte_eth_macaddr_get(port, &mac) == 0, "no MAC");
	CHECK(memcmp(mac.addr_bytes, "VHOST", 5) == 0 && mac.addr_bytes[5] == (port & 0xff),
	      "MAC " RTE_ETHER_ADDR_PRT_FMT, RTE_ETHER_ADDR_BYTES(&mac));
	CHECK(rte_eth_link_get_nowait(port, &link) == 0, "no link");
	CHECK(link.link_speed == RTE_ETH_SPEED_NUM_10G, "speed %u", link.link_speed);
	CHECK(link.link_duplex == RTE_ETH_LINK_FULL_DUPLEX, "half duplex");
	CHECK(link.link_autoneg == RTE_ETH_LINK_FIXED, "autonegotiated");
	CHECK(link.link_status == RTE_ETH_LINK_DOWN, "link up");
	CHECK(rte_eth_promiscuous_get(port) == 1, "not promiscuous");
	CHECK(rte_eth_allmulticast_get(port) == 1, "not all multicast");
	CHECK(rte_eth_promiscuous_enable(port) == 0, "promiscuous_enable");
	CHECK(rte_eth_allmulticast_enable(port) == 0, "allmulticast_enable");
	/* There is no filter: the stock driver refuses to do without one, ours has nothing to do. */
	CHECK(rte_eth_promiscuous_disable(port) == (plugin_is_stock() ? -ENOTSUP : 0),
	      "promiscuous_disable");
	CHECK(rte_eth_allmulticast_disable(port) == (plugin_is_stock() ? -ENOTSUP : 0),
	      "allmulticast_disable");
	CHECK(rte_eth_dev_get_mtu(port, &mtu) == 0 && mtu == RTE_ETHER_MTU, "MTU %u", mtu);
	CHECK(rte_eth_dev_info_get(port, &info) == 0, "no info");
	CHECK(info.nb_rx_queues == 2 && info.nb_tx_queues == 2, "%u and %u queues",
	      info.nb_rx_queues, info.nb_tx_queues);
	CHECK(*info.dev_flags == (RTE_ETH_DEV_INTR_LSC | RTE_ETH_DEV_AUTOFILL_QUEUE_XSTATS),
	      "flags %#x", *info.dev_flags);
}

static void
device_info(void)
{
	const uint64_t checksums = RTE_ETH_RX_OFFLOAD_UDP_CKSUM | RTE_ETH_RX_OFFLOAD_TCP_CKSUM;
	const uint64_t tx_checksums = RTE_ETH_TX_OFFLOAD_UDP_CKSUM | RTE_ETH_TX_OFFLOAD_TCP_CKSUM;
	const uint64_t tx = RTE_ETH_TX_OFFLOAD_MULTI_SEGS | RTE_ETH_TX_OFFLOAD_VLAN_INSERT;
	/* The C driver does these, too, or could, and does not say so. */
	const uint64_t rx_more = RTE_ETH_RX_OFFLOAD_IPV4_CKSUM | RTE_ETH_RX_OFFLOAD_TCP_LRO |
				 RTE_ETH_RX_OFFLOAD_SCATTER;
	const uint64_t tx_more = RTE_ETH_TX_OFFLOAD_IPV4_CKSUM | RTE_ETH_TX_OFFLOAD_SCTP_CKSUM |
				 RTE_ETH_TX_OFFLOAD_TCP_TSO | RTE_ETH_TX_OFFLOAD_UDP_TSO;
	struct rte_eth_dev_info info;
	uint16_t port = attach(socket_path("info"), 5);

	REQUIRE(port != NO_PORT, "probe failed");
	REQUIRE(rte_eth_dev_info_get(port, &info) == 0, "no info");
	CHECK(strcmp(info.driver_name, "net_vhost") == 0, "driver %s", info.driver_name);
	CHECK(info.max_rx_queues == 5 && info.max_tx_queues == 5, "%u and %u queues",
	      info.max_rx_queues, info.max_tx_queues);
	CHECK(info.max_rx_pktlen == UINT32_MAX, "max_rx_pktlen %u", info.max_rx_pktlen);
	CHECK(info.min_rx_bufsize == 0, "min_rx_bufsize %u", info.min_rx_bufsize);
	CHECK(info.max_mac_addrs == 1, "max_mac_addrs %u", info.max_mac_addrs);
	CHECK(info.rx_offload_capa ==
		      (RTE_ETH_RX_OFFLOAD_VLAN_STRIP | checksums | (plugin_is_stock() ? 0 : rx_more)),
	      "Rx %#" PRIx64, info.rx_offload_capa);
	CHECK(info.tx_offload_capa == (tx | tx_checksums | (plugin_is_stock() ? 0 : tx_more)),
	      "Tx %#" PRIx64, info.tx_offload_capa);
	CHECK(info.rx_queue_offload_capa == 0 && info.tx_queue_offload_capa == 0,
	      "offloads for each queue");
	vdev_detach(DEVICE);

	port = vdev_attach(DEVICE, "iface=%s,legacy-ol-flags=1", socket_path("info"));
	REQUIRE(port != NO_PORT, "probe failed");
	REQUIRE(rte_eth_dev_info_get(port, &info) == 0, "no info");
	CHECK(info.rx_offload_capa == (RTE_ETH_RX_OFFLOAD_VLAN_STRIP |
				       (plugin_is_stock() ? 0 : RTE_ETH_RX_OFFLOAD_SCATTER)),
	      "legacy Rx %#" PRIx64, info.rx_offload_capa);
	CHECK(info.tx_offload_capa == tx, "legacy Tx %#" PRIx64, info.tx_offload_capa);
}

static void
served_by_the_plugin(void)
{
	uint16_t port = attach(socket_path("served"), 1);
	Dl_info where = {0};

	REQUIRE(port != NO_PORT, "probe failed");
	CHECK(port_start(port, &(struct port_config){.queues = 1, .pool = pool}) == 0, "start");
	CHECK(dladdr(*(void **)&rte_eth_fp_ops[port].rx_pkt_burst, &where) != 0, "no file");
	CHECK(where.dli_fname != NULL && strcmp(where.dli_fname, plugin_file()) == 0,
	      "rx_burst comes from %s", where.dli_fname);
}

static void
socket_file(void)
{
	const struct port_config config = {.queues = 1, .pool = pool};
	const char *path = socket_path("file");
	struct rte_eth_dev_info info;
	uint16_t port = attach(path, 1);

	REQUIRE(port != NO_PORT, "probe failed");
	CHECK(port_configure(port, &config) == 0, "configure");
	CHECK(file_exists(path), "no socket after configure");
	CHECK(port_configure(port, &config) == 0, "configure again");
	CHECK(rte_eth_dev_start(port) == 0, "start");
	CHECK(file_exists(path), "no socket after start");
	CHECK(rte_eth_dev_stop(port) == 0, "stop");
	CHECK(file_exists(path), "no socket after stop");
	CHECK(rte_eth_dev_start(port) == 0, "start again");
	CHECK(rte_eth_dev_stop(port) == 0, "stop again");
	CHECK(rte_eth_dev_close(port) == 0, "close");
	CHECK(!file_exists(path), "the socket is there after close");
	CHECK(rte_eth_dev_info_get(port, &info) == -ENODEV, "a closed port tells about itself");
	CHECK(rte_eth_dev_close(port) == -ENODEV, "closed twice");
	CHECK(vdev_detach(DEVICE) == 0, "remove after close");
}

static void
remove_at_every_stage(void)
{
	const struct port_config config = {.queues = 1, .pool = pool};
	const char *path = socket_path("stage");
	uint16_t first_port = NO_PORT;

	for (int stage = 0; stage < 5; stage++) {
		uint16_t port = attach(path, 1);

		REQUIRE(port != NO_PORT, "probe failed at stage %d", stage);
		if (stage == 0)
			first_port = port;
		CHECK(port == first_port, "port %u, then %u", first_port, port);
		if (stage >= 1)
			CHECK(port_configure(port, &config) == 0, "configure");
		if (stage >= 2)
			CHECK(rte_eth_dev_start(port) == 0, "start");
		if (stage >= 3)
			CHECK(rte_eth_dev_stop(port) == 0, "stop");
		if (stage == 4)
			CHECK(rte_eth_dev_close(port) == 0, "close");
		CHECK(vdev_detach(DEVICE) == 0, "remove at stage %d", stage);
		CHECK(!file_exists(path), "a socket stays after stage %d", stage);
	}
}

static void
close_before_configure(void)
{
	uint16_t port = attach(socket_path("early"), 1);

	REQUIRE(port != NO_PORT, "probe failed");
	CHECK(rte_eth_dev_close(port) == 0, "close");
	CHECK(vdev_detach(DEVICE) == 0, "remove");
}

static void
most_queues(void)
{
	uint16_t port = attach(socket_path("many"), 128);

	REQUIRE(port != NO_PORT, "probe failed");
	CHECK(port_start(port, &(struct port_config){.queues = 128, .pool = pool}) == 0, "start");
	CHECK(rte_eth_dev_stop(port) == 0, "stop");
}

static void
mtu(void)
{
	uint16_t port = attach(socket_path("mtu"), 1), value = 0;

	if (beyond_stock())
		return;
	REQUIRE(port != NO_PORT, "probe failed");
	CHECK(port_start(port, &(struct port_config){.queues = 1, .pool = pool}) == 0, "start");
	CHECK(rte_eth_dev_set_mtu(port, 9000) == 0, "9000");
	CHECK(rte_eth_dev_get_mtu(port, &value) == 0 && value == 9000, "MTU %u", value);
	CHECK(rte_eth_dev_set_mtu(port, 67) != 0, "67");
	CHECK(rte_eth_dev_get_mtu(port, &value) == 0 && value == 9000, "MTU %u after 67", value);
	CHECK(rte_eth_dev_set_mtu(port, 68) == 0, "68");
}

static void
answers_without_a_frontend(void)
{
	struct rte_mbuf *mbuf = rte_pktmbuf_alloc(pool), *sent = mbuf, *received = NULL;
	struct rte_ether_addr address = {{2, 0, 0, 0, 0, 7}}, seen;
	struct rte_power_monitor_cond condition;
	struct rte_eth_stats stats;
	uint16_t port = attach(socket_path("alone"), 1);

	REQUIRE(port != NO_PORT && mbuf != NULL, "probe failed");
	CHECK(port_start(port, &(struct port_config){.queues = 1, .pool = pool}) == 0, "start");
	rte_pktmbuf_append(mbuf, 64);
	CHECK(rte_eth_tx_burst(port, 0, &sent, 1) == 0, "sent to nobody");
	CHECK(sent == mbuf && rte_mbuf_refcnt_read(mbuf) == 1 && mbuf->pkt_len == 64,
	      "the mbuf was touched");
	CHECK(rte_eth_rx_burst(port, 0, &received, 1) == 0, "received from nobody");
	CHECK(rte_eth_rx_queue_count(port, 0) == 0, "something waits");
	CHECK(rte_eth_tx_done_cleanup(port, 0, 0) == 0, "tx_done_cleanup");
	if (!plugin_is_stock())
		CHECK(rte_eth_dev_default_mac_addr_set(port, &address) == 0 &&
			      rte_eth_macaddr_get(port, &seen) == 0 &&
			      rte_is_same_ether_addr(&seen, &address),
		      "the address stays");
	CHECK(rte_eth_get_monitor_addr(port, 0, &condition) == -EINVAL, "monitor address");
	CHECK(rte_eth_stats_get(port, &stats) == 0, "stats");
	CHECK(stats.opackets == 0 && stats.oerrors == 0 && stats.ipackets == 0,
	      "a burst without a frontend was counted");
	rte_pktmbuf_free(mbuf);
}

/* The lines of the dump, in the order of DPDK's own driver; newer ones may stand behind. */
static void
dump_tells_the_state(void)
{
	static const char *const names[] = {
		"iface_name", "flags",   "disable_flags", "features",   "max_queues", "vid",
		"started",    "dev_attached", "vlan_strip",    "rx_sw_csum", "tx_sw_csum"};
	uint16_t port = attach(socket_path("dump"), 3);
	char text[4096] = "", *line = text;
	FILE *file = fmemopen(text, sizeof(text), "w");

	if (beyond_stock())
		return;
	REQUIRE(port != NO_PORT && file != NULL, "probe failed");
	CHECK(rte_eth_dev_priv_dump(port, file) == 0, "dump");
	fclose(file);
	CHECK(strstr(text, socket_path("dump")) != NULL, "no path in: %s", text);
	CHECK(strstr(text, "max_queues: 3\n") != NULL && strstr(text, "vid: -1\n") != NULL, "%s",
	      text);
	for (unsigned int i = 0; i < RTE_DIM(names); i++) {
		size_t length = strlen(names[i]);

		CHECK(strncmp(line, names[i], length) == 0 && strncmp(line + length, ": ", 2) == 0,
		      "no %s in: %s", names[i], line);
		line = strchr(line, '\n');
		REQUIRE(line != NULL, "the dump ends at %s", names[i]);
		line++;
	}
}

static int
note_new_port(uint16_t port, enum rte_eth_event_type type, void *seen, void *answer)
{
	(void)answer;
	if (type == RTE_ETH_EVENT_NEW)
		*(uint16_t *)seen = port;
	return 0;
}

static void
new_port_is_announced(void)
{
	uint16_t seen = NO_PORT, port;

	CHECK(rte_eth_dev_callback_register(RTE_ETH_ALL, RTE_ETH_EVENT_NEW, note_new_port, &seen) == 0,
	      "callback");
	port = attach(socket_path("new"), 1);
	CHECK(port != NO_PORT && seen == port, "port %u, announced %u", port, seen);
	rte_eth_dev_callback_unregister(RTE_ETH_ALL, RTE_ETH_EVENT_NEW, note_new_port, &seen);
}

/* One turn of a whole life; for the leak checks. */
static bool
live_once(const char *path)
{
	uint16_t port = attach(path, 2);

	return port != NO_PORT &&
	       port_start(port, &(struct port_config){.queues = 2, .pool = pool}) == 0 &&
	       rte_eth_dev_stop(port) == 0 && vdev_detach(DEVICE) == 0;
}

static void
nothing_leaks_alone(void)
{
	const char *path = socket_path("leak");
	int rounds = run_is_slow() ? 20 : 200;
	unsigned int descriptors;
	size_t heap;

	/* What is made once for the process is made in the first rounds. */
	for (int i = 0; i < 3; i++)
		REQUIRE(live_once(path), "round %d", i);
	descriptors = open_descriptors();
	heap = heap_in_use();
	for (int i = 0; i < rounds; i++)
		REQUIRE(live_once(path), "round %d", i);
	CHECK(open_descriptors() == descriptors, "%u descriptors, then %u", descriptors,
	      open_descriptors());
	CHECK(heap_in_use() == heap, "%zu bytes, then %zu", heap, heap_in_use());
}

static void
nothing_leaks_connected(void)
{
	/* DPDK's own driver takes a second for each connection. */
	int rounds = plugin_is_stock() || run_is_slow() ? 2 : 20;
	unsigned int descriptors;
	size_t heap;

	for (int i = 0; i < 2; i++) {
		REQUIRE(pair_open(&pair, &(struct pair_options){.queues = 2}), "no pair");
		pair_close(&pair);
	}
	descriptors = open_descriptors();
	heap = heap_in_use();
	for (int i = 0; i < rounds; i++) {
		REQUIRE(pair_open(&pair, &(struct pair_options){.queues = 2}), "round %d", i);
		pair_close(&pair);
	}
	WAIT_FOR(open_descriptors() == descriptors, 3000);
	CHECK(open_descriptors() == descriptors, "%u descriptors, then %u", descriptors,
	      open_descriptors());
	CHECK(heap_in_use() == heap, "%zu bytes, then %zu", heap, heap_in_use());
}

int
main(void)
{
	eal_start("lifecycle");
	pool = make_pool("lifecycle", 1023, 2048);
	after_each_case(vdev_detach_all);
	run_case("a fresh port has its values", values_at_probe, 5);
	run_case("dev_info tells what the port can do", device_info, 5);
	run_case("the plugin serves the port", served_by_the_plugin, 5);
	run_case("the socket lives from configure to close", socket_file, 5);
	run_case("a port can be removed at every stage", remove_at_every_stage, 5);
	run_case("a port can be closed before configure", close_before_configure, 5);
	run_case("128 queue pairs start", most_queues, 5);
	run_case("the MTU can be set", mtu, 5);
	run_case("a dump tells the state", dump_tells_the_state, 10);
	run_case("a new port is announced", new_port_is_announced, 10);
	run_case("every call answers without a frontend", answers_without_a_frontend, 5);
	run_case("200 lives leave nothing behind", nothing_leaks_alone, 30);
	run_case("lives with a frontend leave nothing behind", nothing_leaks_connected, 30);
	rte_mempool_free(pool);
	return eal_end();
}
