/* SPDX-License-Identifier: BSD-3-Clause */
/* Every way of ours to write a chain that cannot be used. */
#ifndef NET_VHOST_BAD_CHAINS_H
#define NET_VHOST_BAD_CHAINS_H

#include "frontend.h"

/* The head was not an index of the ring. */
#define NO_HEAD UINT32_MAX

/* Writes descriptors with these flags added, offers a head, and tells which. */
typedef uint32_t (*make_chain)(struct ring *ring, uint16_t flags);

struct bad_chain {
	const char *name;
	make_chain make;
};

/* For both directions, and for one. They write to the memory of `guest` (hostile.h). */
extern const struct bad_chain bad_chains[], bad_to_host[], bad_to_guest[];
extern const unsigned int bad_chains_count, bad_to_host_count, bad_to_guest_count;

uint32_t make_loop_of_whole_regions(struct ring *ring, uint16_t flags);

#endif
