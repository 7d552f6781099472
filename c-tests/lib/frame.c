/* SPDX-License-Identifier: BSD-3-Clause */
#include "frame.h"

#include <stdio.h>
#include <string.h>

#include <rte_ether.h>

/* "Local experimental" in the IEEE list: no stack looks into it. */
#define ETHERTYPE 0x88b5

void
frame_fill(uint8_t *bytes, uint32_t length, uint32_t seed)
{
	const struct rte_ether_hdr header = {
		.dst_addr = {{0x02, 0x11, 0x22, 0x33, 0x44, 0x55}},
		.src_addr = {{0x02, 0x66, 0x77, 0x88, 0x99, 0xaa}},
		.ether_type = rte_cpu_to_be_16(ETHERTYPE),
	};
	uint64_t state = 0x9e3779b97f4a7c15u * (seed + 1u) + length;

	for (uint32_t i = 0; i < length; i += sizeof(state)) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		memcpy(bytes + i, &state, RTE_MIN(sizeof(state), (size_t)(length - i)));
	}
	memcpy(bytes, &header, RTE_MIN(sizeof(header), (size_t)length));
}

struct rte_mbuf *
bytes_mbuf(struct rte_mempool *pool, const uint8_t *bytes, uint32_t length, uint16_t segment)
{
	struct rte_mbuf *head = rte_pktmbuf_alloc(pool), *last = head;
	uint32_t done = 0;

	while (last != NULL) {
		uint32_t room = rte_pktmbuf_tailroom(last);
		uint32_t part;

		if (segment != 0 && segment < room)
			room = segment;
		part = RTE_MIN(length - done, room);
		memcpy(rte_pktmbuf_mtod(last, uint8_t *), bytes + done, part);
		last->data_len = (uint16_t)part;
		done += part;
		if (done == length) {
			head->pkt_len = length;
			return head;
		}
		last->next = rte_pktmbuf_alloc(pool);
		last = last->next;
		head->nb_segs++;
	}
	if (head != NULL)
		rte_pktmbuf_free(head);
	return NULL;
}

struct rte_mbuf *
frame_mbuf(struct rte_mempool *pool, uint32_t length, uint32_t seed, uint16_t segment)
{
	static uint8_t bytes[FRAME_MAX];

	frame_fill(bytes, length, seed);
	return bytes_mbuf(pool, bytes, length, segment);
}

bool
frame_matches(const struct rte_mbuf *mbuf, uint32_t length, uint32_t seed)
{
	static uint8_t expected[FRAME_MAX];
	uint32_t done = 0;
	unsigned int segments = 0;

	if (mbuf->pkt_len != length) {
		printf("# frame %u has %u bytes, expected %u\n", seed, mbuf->pkt_len, length);
		return false;
	}
	frame_fill(expected, length, seed);
	for (const struct rte_mbuf *part = mbuf; part != NULL; part = part->next) {
		segments++;
		if (part->data_len > length - done) {
			printf("# frame %u: segment %u leads past the end\n", seed, segments);
			return false;
		}
		if (memcmp(rte_pktmbuf_mtod(part, uint8_t *), expected + done,
			   part->data_len) != 0) {
			printf("# frame %u of %u bytes differs in segment %u\n", seed, length,
			       segments);
			return false;
		}
		done += part->data_len;
	}
	if (done != length || segments != mbuf->nb_segs) {
		printf("# frame %u: %u of %u bytes in %u of %u segments\n", seed, done, length,
		       segments, mbuf->nb_segs);
		return false;
	}
	return true;
}
