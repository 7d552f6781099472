/* SPDX-License-Identifier: BSD-3-Clause */
/* A net_vhost port and, in the same process, a net_virtio_user port as its frontend. */
#ifndef NET_VHOST_PAIR_H
#define NET_VHOST_PAIR_H

#include "port.h"

#define BACKEND "net_vhost0"
#define FRONTEND "net_virtio_user0"

struct pair_options {
	uint16_t queues;          /* 0 stands for 1 */
	uint16_t ring_size;       /* 0 stands for 256 */
	bool packed, no_mergeable, in_order, vectorized;
	bool backend_connects;    /* client=1: the frontend listens */
	const char *devargs;      /* more of them for the backend, such as ",tso=1" */
	uint64_t rx_offloads, tx_offloads; /* of the backend */
	uint64_t frontend_rx_offloads, frontend_tx_offloads; /* decide what virtio-user negotiates */
	uint16_t backend_room;    /* data bytes of an mbuf; 0 stands for 2048 */
	uint16_t frontend_room;
	unsigned int pool_size;   /* mbufs a side; 0: enough for all rings */
	unsigned int backend_cache; /* mbufs in an lcore's cache; 0 stands for 128 */
};

struct pair {
	struct pair_options options;
	uint16_t backend, frontend;
	struct rte_mempool *backend_pool, *frontend_pool;
	const char *path;
};

/* Makes pools, backend and frontend, and waits for the link. */
bool pair_open(struct pair *pair, const struct pair_options *options);
/* In two steps, for tests that act between them. */
bool pair_open_backend(struct pair *pair, const struct pair_options *options);
bool pair_open_frontend(struct pair *pair);
/* Removes both ports; checks that all mbufs came back; frees the pools. */
void pair_close(struct pair *pair);
void pair_close_frontend(struct pair *pair);
struct port_config pair_backend_config(const struct pair *pair);

enum direction { TO_HOST, TO_GUEST };

struct flow {
	enum direction direction;
	uint16_t queue;
	uint32_t first_length, last_length; /* lengths run round from one to the other */
	unsigned int count;
	unsigned int burst;     /* frames for each call, 0 stands for 32 */
	uint16_t segment;       /* bytes for each mbuf sent, 0: as many as fit */
	uint32_t seed;
};

/* Moves the frames of a flow, checking each byte and the order; the number that came right. */
unsigned int pair_move(const struct pair *pair, const struct flow *flow);
uint32_t flow_length(const struct flow *flow, unsigned int index);

/* Sends one mbuf, which is consumed, and waits for what arrives; NULL when nothing does. */
struct rte_mbuf *pair_pass(const struct pair *pair, enum direction direction, uint16_t queue,
			   struct rte_mbuf *mbuf);

#endif
