/* SPDX-License-Identifier: BSD-3-Clause */
/* Frames whose every byte follows from their length and a seed. */
#ifndef NET_VHOST_FRAME_H
#define NET_VHOST_FRAME_H

#include <stdbool.h>
#include <stdint.h>

#include <rte_mbuf.h>
#include <rte_mempool.h>

#define FRAME_MAX 65535

/* Writes a unicast frame: an Ethernet header where it fits, then a pattern. */
void frame_fill(uint8_t *bytes, uint32_t length, uint32_t seed);

/* The same frame as an mbuf; `segment` limits the data of each mbuf (0: as much as fits). */
struct rte_mbuf *frame_mbuf(struct rte_mempool *pool, uint32_t length, uint32_t seed,
			    uint16_t segment);
/* An mbuf chain with these bytes. */
struct rte_mbuf *bytes_mbuf(struct rte_mempool *pool, const uint8_t *bytes, uint32_t length,
			    uint16_t segment);

/* True when the mbuf holds just this frame and its fields agree; says why not. */
bool frame_matches(const struct rte_mbuf *mbuf, uint32_t length, uint32_t seed);

#endif
