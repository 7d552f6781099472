/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A DSA work queue that is files and a thread: `wq0.0`, where DPDK's driver and ours find it.
 * Addresses are the process's own, as with shared virtual memory.
 */
#ifndef NET_VHOST_DSA_H
#define NET_VHOST_DSA_H

#include <stdbool.h>
#include <stdint.h>

/* How descriptors reach the queue. */
enum dsa_way {
	/* A page to map, for MOVDIR64B, which a signal handler does, whatever the processor has. */
	DSA_PAGE,
	/* A pipe: it can be written, not mapped. */
	DSA_PIPE,
};

/* Batches of at most so many copies, not 1024. Call it before `dsa_create`. */
void dsa_limit_batches(unsigned int most);
/* Makes the files, and tells drivers by environment. Call it before EAL starts. `name` decides who
 * takes the queue: DPDK's bus wants it to begin with `dpdk_`. */
void dsa_create(enum dsa_way way, const char *name);
/* Starts the device. Call it when EAL has started. */
void dsa_start(void);
/* Stops it and removes the files. */
void dsa_remove(void);

/* The copy with this number, from now on and from 0, ends with `status`, when `done` bytes are
 * written. One at a time. */
void dsa_fail_copy(unsigned int number, uint8_t status, uint32_t done);
/* Whether the device takes submissions and does not begin with them: 16 at most. */
void dsa_hold(bool held);
/* The next submission is lost. */
void dsa_lose_submission(void);

/* Copies, and batches, since the start. */
unsigned int dsa_copies(void);
unsigned int dsa_batches(void);

#endif
