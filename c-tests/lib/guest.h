/* SPDX-License-Identifier: BSD-3-Clause */
/* A net_vhost port whose guest is the test itself: `frontend.h` over a port of its own. */
#ifndef NET_VHOST_GUEST_H
#define NET_VHOST_GUEST_H

#include "frontend.h"
#include "port.h"

#define DEVICE "net_vhost0"
/* Bytes of the virtio-net header with VERSION_1 or mergeable buffers. */
#define HEADER 12
#define USUAL_FEATURES (F_VERSION_1 | F_MRG_RXBUF | F_INDIRECT | F_PROTOCOL_FEATURES | F_MQ)

/* vring indices of the first pair, named from the host's side. */
#define TO_GUEST_RING 0
#define TO_HOST_RING 1

struct guest_options {
	uint64_t features;     /* 0 stands for USUAL_FEATURES */
	uint16_t ring_size;    /* 0 stands for 256 */
	uint16_t queues;       /* 0 stands for 1 */
	const char *devargs;
};

struct guest {
	uint16_t port;
	struct frontend frontend;
	struct ring *to_host, *to_guest;
	const char *path;
	struct rte_mempool *pool;
	struct guest_options options;
};

/* Arguments of all ports whose options have none; empty at first. */
extern const char *guest_devargs;

/* Port, connection, handshake, link. The pool is made once for the process. */
bool guest_open(struct guest *guest, const struct guest_options *options);
/* The port alone; and a frontend that does the handshake again. */
bool guest_open_port(struct guest *guest, const struct guest_options *options);
bool guest_connect(struct guest *guest);
/* Ends both; checks that all mbufs came back. */
void guest_close(struct guest *guest);

/* Describes one buffer with header and frame at `gpa`, in descriptor `index`, and offers it. */
void guest_offer_frame(struct guest *guest, uint16_t index, uint64_t gpa, uint32_t length,
		       uint32_t seed);
/* Writes header and frame to guest memory, without a descriptor. */
void guest_put_frame(struct guest *guest, uint64_t gpa, uint32_t length, uint32_t seed);
/* Polls the port until a frame comes: true when it is this one. */
bool guest_host_receives(struct guest *guest, uint32_t length, uint32_t seed);
/* True when nothing comes within a moment. */
bool guest_host_receives_nothing(struct guest *guest);
/* Waits until `count` used entries came on a ring; notes the last ones. */
unsigned int guest_take_used(struct ring *ring, struct used_entry *entries, unsigned int count);

/* Sends a frame of the host until the port takes it. */
bool guest_host_sends(struct guest *guest, uint32_t length, uint32_t seed);
/* True when guest memory at `gpa` has a header for `buffers` buffers and this frame. */
bool guest_has_frame(struct guest *guest, uint64_t gpa, uint32_t length, uint32_t seed,
		     uint16_t buffers);

#endif
