/* SPDX-License-Identifier: BSD-3-Clause */
/* Which devargs make a port, which are refused, and what a port does with its socket's path. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/port.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <rte_dev.h>

#define DEVICE "net_vhost_devargs"
#define SOCKET_PATH_MAX 107

static struct rte_mempool *pool;

static void
expect_refused(const char *devargs)
{
	int result = rte_eal_hotplug_add("vdev", DEVICE, devargs);
	uint16_t port;

	CHECK(result != 0, "\"%s\" was accepted", devargs);
	CHECK(rte_eth_dev_get_port_by_name(DEVICE, &port) != 0, "\"%s\" made a port", devargs);
	if (result == 0)
		vdev_detach(DEVICE);
}

static void
expect_queues(const char *devargs, uint16_t queues)
{
	struct rte_eth_dev_info info = {0};
	uint16_t port = vdev_attach(DEVICE, "%s", devargs);

	if (CHECK(port != NO_PORT, "\"%s\" was refused", devargs)) {
		rte_eth_dev_info_get(port, &info);
		CHECK(info.max_rx_queues == queues && info.max_tx_queues == queues,
		      "\"%s\": %u and %u queues", devargs, info.max_rx_queues, info.max_tx_queues);
	}
	vdev_detach(DEVICE);
}

static void
accepted(void)
{
	expect_queues("iface=/tmp/x", 1);
	expect_queues("iface=/tmp/x,queues=2", 2);
	expect_queues("iface=/tmp/x,queues=0x3", 3);
	expect_queues("queues=128,iface=/tmp/x", 128);
	expect_queues("iface=/tmp/x,client=0,iommu-support=0,postcopy-support=0,tso=0,"
		      "linear-buffer=0,ext-buffer=0,legacy-ol-flags=0", 1);
	expect_queues("iface=/tmp/x,client=1,tso=1,linear-buffer=1,ext-buffer=1,legacy-ol-flags=1",
		      1);
}

static void
other_names(void)
{
	static const char *const names[] = {"net_vhost0", "net_vhost_x", "eth_vhost7"};

	for (unsigned int i = 0; i < RTE_DIM(names); i++) {
		struct rte_eth_dev_info info = {0};
		char name[RTE_ETH_NAME_MAX_LEN];
		uint16_t port = vdev_attach(names[i], "iface=/tmp/x");

		if (!CHECK(port != NO_PORT, "%s was refused", names[i]))
			continue;
		rte_eth_dev_info_get(port, &info);
		CHECK(strcmp(info.driver_name, "net_vhost") == 0, "%s has driver %s", names[i],
		      info.driver_name);
		rte_eth_dev_get_name_by_port(port, name);
		CHECK(strcmp(name, names[i]) == 0, "%s became %s", names[i], name);
		vdev_detach(names[i]);
	}
}

static void
refused(void)
{
	expect_refused("");
	expect_refused("queues=1");
	expect_refused("iface=/tmp/x,iface=/tmp/y");
	expect_refused("iface=/tmp/x,nonsense=1");
	expect_refused("iface=/tmp/x,queues");
}

static void
refused_values(void)
{
	static const char *const numbers[] = {"0",    "abc",   "",      "-1",   "129", "1025",
					      "65537", "2 3", "1x", "99999999999999999999"};
	static const char *const switches[] = {"client",        "iommu-support", "postcopy-support",
					       "tso",           "linear-buffer", "ext-buffer",
					       "legacy-ol-flags", "ptypes"};
	static const char *const not_switches[] = {"yes", "", "-1", "1x"};
	char text[256];

	if (beyond_stock())
		return;
	expect_refused("iface=");
	for (unsigned int i = 0; i < RTE_DIM(numbers); i++) {
		snprintf(text, sizeof(text), "iface=/tmp/x,queues=%s", numbers[i]);
		expect_refused(text);
	}
	for (unsigned int i = 0; i < RTE_DIM(switches); i++) {
		for (unsigned int j = 0; j < RTE_DIM(not_switches); j++) {
			snprintf(text, sizeof(text), "iface=/tmp/x,%s=%s", switches[i],
				 not_switches[j]);
			expect_refused(text);
		}
	}
}

static void
key_twice(void)
{
	struct rte_eth_dev_info info = {0};
	uint16_t port;

	if (beyond_stock())
		return;
	/* Either refused, or the last one counts; never ignored. */
	port = vdev_attach(DEVICE, "iface=/tmp/x,queues=2,queues=3");
	if (port == NO_PORT)
		return;
	rte_eth_dev_info_get(port, &info);
	CHECK(info.max_rx_queues == 3, "%u queues", info.max_rx_queues);
}

static void
long_paths(void)
{
	char path[256], text[300];
	size_t start;
	uint16_t port;

	if (beyond_stock())
		return;
	start = (size_t)snprintf(path, sizeof(path), "%s", socket_path("long"));
	memset(path + start, 'x', sizeof(path) - start);

	path[SOCKET_PATH_MAX + 1] = '\0';
	snprintf(text, sizeof(text), "iface=%s", path);
	expect_refused(text);

	path[SOCKET_PATH_MAX] = '\0';
	port = vdev_attach(DEVICE, "iface=%s", path);
	REQUIRE(port != NO_PORT, "a path of %d bytes was refused", SOCKET_PATH_MAX);
	CHECK(port_configure(port, &(struct port_config){.queues = 1, .pool = pool}) == 0,
	      "not configured");
	CHECK(file_exists(path), "no socket under the whole path");
	vdev_detach(DEVICE);
	CHECK(!file_exists(path), "the socket is still there");
}

static void
directory_comes_later(void)
{
	const struct port_config config = {.queues = 1, .pool = pool};
	const char *parent = socket_path("later"), *path = socket_path("later/socket");
	uint16_t port = vdev_attach(DEVICE, "iface=%s", path);

	REQUIRE(port != NO_PORT, "probe failed");
	CHECK(port_configure(port, &config) != 0, "configured without a directory");
	REQUIRE(mkdir(parent, 0755) == 0, "no directory");
	CHECK(port_configure(port, &config) == 0, "not configured with a directory");
	CHECK(file_exists(path), "no socket");
	vdev_detach(DEVICE);
	CHECK(rmdir(parent) == 0, "the directory is not empty: %s", strerror(errno));
}

static void
plain_file_stays(void)
{
	const struct port_config config = {.queues = 1, .pool = pool};
	const char *path = socket_path("file");
	int file = open(path, O_CREAT | O_WRONLY, 0644);
	uint16_t port;

	if (beyond_stock()) {
		close(file);
		return;
	}
	REQUIRE(file >= 0, "no file");
	close(file);
	port = vdev_attach(DEVICE, "iface=%s", path);
	REQUIRE(port != NO_PORT, "probe failed");
	CHECK(port_configure(port, &config) != 0, "configured over a plain file");
	vdev_detach(DEVICE);
	CHECK(file_exists(path), "the file is gone");
}

static int
listen_at(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int listener = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) != 0 ||
	    listen(listener, 1) != 0) {
		close(listener);
		return -1;
	}
	return listener;
}

static void
stale_socket_is_replaced(void)
{
	const struct port_config config = {.queues = 1, .pool = pool};
	const char *path = socket_path("stale");
	uint16_t port;
	int listener;

	if (beyond_stock())
		return;
	listener = listen_at(path);
	REQUIRE(listener >= 0, "no listener");
	close(listener);
	port = vdev_attach(DEVICE, "iface=%s", path);
	REQUIRE(port != NO_PORT, "probe failed");
	CHECK(port_configure(port, &config) == 0, "a stale socket is in the way");
	vdev_detach(DEVICE);
	CHECK(!file_exists(path), "the socket is still there");
}

static void
live_socket_stays(void)
{
	const struct port_config config = {.queues = 1, .pool = pool};
	const char *path = socket_path("live");
	uint16_t port;
	int listener;

	if (beyond_stock())
		return;
	listener = listen_at(path);
	REQUIRE(listener >= 0, "no listener");
	port = vdev_attach(DEVICE, "iface=%s", path);
	CHECK(port != NO_PORT, "probe failed");
	CHECK(port_configure(port, &config) != 0, "configured over a socket in use");
	vdev_detach(DEVICE);
	CHECK(file_exists(path), "the other's socket is gone");
	close(listener);
}

static void
one_path_one_port(void)
{
	const struct port_config config = {.queues = 1, .pool = pool};
	const char *path = socket_path("shared");
	uint16_t first, second;

	if (beyond_stock())
		return;
	first = vdev_attach("net_vhost_first", "iface=%s", path);
	second = vdev_attach("net_vhost_second", "iface=%s", path);
	REQUIRE(first != NO_PORT && second != NO_PORT, "probe failed");
	CHECK(port_configure(first, &config) == 0, "first");
	CHECK(port_configure(second, &config) != 0, "both ports have %s", path);
	vdev_detach("net_vhost_second");
	CHECK(file_exists(path), "the second port removed the first one's socket");
	vdev_detach("net_vhost_first");
	CHECK(!file_exists(path), "the socket is still there");
}

static void
client_leaves_the_path_alone(void)
{
	const struct port_config config = {.queues = 1, .pool = pool};
	const char *path = socket_path("peer");
	uint16_t port = vdev_attach(DEVICE, "iface=%s,client=1", path);

	REQUIRE(port != NO_PORT, "probe failed");
	CHECK(port_start(port, &config) == 0, "a client does not start without its peer");
	CHECK(!file_exists(path), "a client made a file");
	vdev_detach(DEVICE);
}

int
main(void)
{
	eal_start("devargs");
	pool = make_pool("devargs", 1023, 2048);
	after_each_case(vdev_detach_all);
	run_case("valid devargs make a port", accepted, 5);
	run_case("other device names and the alias bind", other_names, 5);
	run_case("missing, doubled and unknown keys are refused", refused, 5);
	run_case("values that mean nothing are refused", refused_values, 5);
	run_case("a key given twice is never ignored", key_twice, 5);
	run_case("the whole path is used, or refused", long_paths, 5);
	run_case("the socket's directory may come later", directory_comes_later, 5);
	run_case("a plain file at the path stays", plain_file_stays, 5);
	run_case("a stale socket is replaced", stale_socket_is_replaced, 5);
	run_case("a socket in use stays", live_socket_stays, 5);
	run_case("a path belongs to one port", one_path_one_port, 5);
	run_case("a client makes no file", client_leaves_the_path_alone, 5);
	return eal_end();
}
