/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The frontends live in another process, which is told by single bytes what to do and answers each.
 */
#include "scale.h"

#include <poll.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <rte_bus_vdev.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

static int wire;
static pid_t child;

static void tell(int file, char what)
{
	if (write(file, &what, 1) != 1)
		die("the other process is gone");
}

static void hear(int file, char what)
{
	char heard = 0;
	if (read(file, &heard, 1) != 1 || heard != what)
		die("the other process failed");
}

static void open_one(const struct options *options, unsigned int number, struct rte_mempool *pool)
{
	char name[32], args[128];
	struct rte_eth_conf conf = { 0 };
	snprintf(name, sizeof(name), "net_virtio_user%u", number);
	snprintf(args, sizeof(args), "path=%s/%u.sock,queue_size=256", options->folder, number);
	if (rte_eal_hotplug_add("vdev", name, args) != 0)
		die("%s: %s", name, rte_strerror(rte_errno));
	uint16_t port = port_id("net_virtio_user", number);
	if (rte_eth_dev_configure(port, 1, 1, &conf) != 0 ||
	    rte_eth_rx_queue_setup(port, 0, 256, SOCKET_ID_ANY, NULL, pool) != 0 ||
	    rte_eth_tx_queue_setup(port, 0, 256, SOCKET_ID_ANY, NULL) != 0 || rte_eth_dev_start(port) != 0)
		die("%s does not start", name);
}

static void send_now_and_then(uint16_t port, struct rte_mempool *pool, int until)
{
	struct pollfd told = { .fd = until, .events = POLLIN };
	hear(until, 's');
	while (poll(&told, 1, 10) == 0) {
		struct rte_mbuf *packet = rte_pktmbuf_alloc(pool);
		if (packet == NULL)
			die("the pool is empty");
		char *data = rte_pktmbuf_append(packet, 64);
		double now = seconds_now();
		rte_memcpy(data + 16, &now, sizeof(now));
		if (rte_eth_tx_burst(port, 0, &packet, 1) != 1)
			rte_pktmbuf_free(packet);
	}
}

static void frontends_process(const struct options *options, int file)
{
	unsigned int count = options->interrupt ? 1 : options->ports;
	hear(file, 'o');
	start_eal(options, true);
	struct rte_mempool *pool = make_pool(count * 512 + 255);
	for (unsigned int i = 0; i < count; i++)
		open_one(options, i, pool);
	tell(file, 'o');
	if (options->interrupt)
		send_now_and_then(port_id("net_virtio_user", 0), pool, file);
	hear(file, 'c');
	for (unsigned int i = 0; i < count; i++)
		rte_eth_dev_stop(port_id("net_virtio_user", i));
	/* The kernel hangs up. */
	_exit(0);
}

/* Before EAL starts: both processes start their own. */
void frontends_start(const struct options *options)
{
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
		die("no socket pair");
	child = fork();
	if (child < 0)
		die("no process");
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(pair[0]);
		frontends_process(options, pair[1]);
	}
	close(pair[1]);
	wire = pair[0];
}

void frontends_open(void)
{
	tell(wire, 'o');
	hear(wire, 'o');
}

void frontends_send(void)
{
	tell(wire, 's');
}

void frontends_close(void)
{
	tell(wire, 'c');
	if (waitpid(child, NULL, 0) != child)
		die("no frontends");
}
