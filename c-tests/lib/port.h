/* SPDX-License-Identifier: BSD-3-Clause */
/* Ports made and removed by hotplug, and the whole set-up of one. */
#ifndef NET_VHOST_PORT_H
#define NET_VHOST_PORT_H

#include <stdbool.h>
#include <stdint.h>

#include <rte_ethdev.h>
#include <rte_mempool.h>

#define NO_PORT RTE_MAX_ETHPORTS

/* Probes a vdev; NO_PORT when that fails or makes no port. Removed after the case at the latest. */
uint16_t vdev_attach(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));
int vdev_detach(const char *name);
void vdev_detach_all(void);

struct port_config {
	uint16_t queues;
	uint16_t descriptors;      /* a ring; 0 stands for 256 */
	struct rte_mempool *pool;  /* for all Rx queues */
	uint64_t rx_offloads;
	uint64_t tx_offloads;
	uint32_t mtu;              /* 0 stands for ethdev's default */
	bool rx_interrupts;
};

/* Configures the port and sets up all queues: 0 or the error of the call that failed. */
int port_configure(uint16_t port, const struct port_config *config);
/* The same, then starts it. */
int port_start(uint16_t port, const struct port_config *config);

bool link_is_up(uint16_t port);
/* Waits for the link, three seconds at most; true when it came. */
bool wait_for_link(uint16_t port, bool up);

/* Polls until one mbuf comes; NULL when none does within that time. */
struct rte_mbuf *receive_one(uint16_t port, uint16_t queue, unsigned int milliseconds);

/* A pool of `count` mbufs of `room` data bytes beside the headroom. */
struct rte_mempool *make_pool(const char *name, unsigned int count, uint16_t room);
/* Mbufs in an lcore's cache of such a pool. */
#define USUAL_CACHE 128
/* The same with another cache. */
struct rte_mempool *make_cached_pool(const char *name, unsigned int count, unsigned int cache,
				     uint16_t room);

/* Value of one extended statistic; UINT64_MAX when there is none of this name. */
uint64_t xstat(uint16_t port, const char *name);
/* Sum of all extended statistics whose name contains `part`. */
uint64_t xstat_sum(uint16_t port, const char *part);

#endif
