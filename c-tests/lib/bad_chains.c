/* SPDX-License-Identifier: BSD-3-Clause */
#include "bad_chains.h"
#include "hostile.h"

#define UNMAPPED_GPA 0x1000ull
#define TABLE_GPA (DATA_GPA + 0x100000)

static uint32_t
offer(struct ring *ring, uint16_t head)
{
	ring_offer(ring, head);
	return head < ring->size ? head : NO_HEAD;
}

static uint32_t
one_descriptor(struct ring *ring, uint64_t gpa, uint32_t length, uint16_t flags)
{
	ring_describe(ring, 0, gpa, length, flags, 0);
	return offer(ring, 0);
}

static uint32_t
head_at_the_end(struct ring *ring, uint16_t flags)
{
	(void)flags;
	return offer(ring, RING_SIZE);
}

static uint32_t
head_far_outside(struct ring *ring, uint16_t flags)
{
	(void)flags;
	return offer(ring, UINT16_MAX);
}

static uint32_t
next_at_the_end(struct ring *ring, uint16_t flags)
{
	ring_describe(ring, 0, DATA_GPA, FRAME, flags | DESC_NEXT, RING_SIZE);
	return offer(ring, 0);
}

static uint32_t
next_far_outside(struct ring *ring, uint16_t flags)
{
	ring_describe(ring, 0, DATA_GPA, FRAME, flags | DESC_NEXT, UINT16_MAX);
	return offer(ring, 0);
}

static uint32_t
loop_of_one(struct ring *ring, uint16_t flags)
{
	ring_describe(ring, 3, DATA_GPA, 1, flags | DESC_NEXT, 3);
	return offer(ring, 3);
}

static uint32_t
loop_of_two(struct ring *ring, uint16_t flags)
{
	ring_describe(ring, 3, DATA_GPA, 1, flags | DESC_NEXT, 4);
	ring_describe(ring, 4, DATA_GPA, 1, flags | DESC_NEXT, 3);
	return offer(ring, 3);
}

static uint32_t
loop_of_nothing(struct ring *ring, uint16_t flags)
{
	ring_describe(ring, 3, DATA_GPA, 0, flags | DESC_NEXT, 4);
	ring_describe(ring, 4, DATA_GPA, 0, flags | DESC_NEXT, 3);
	return offer(ring, 3);
}

uint32_t
make_loop_of_whole_regions(struct ring *ring, uint16_t flags)
{
	ring_describe(ring, 3, MEMORY_GPA, 2 * REGION_SIZE, flags | DESC_NEXT, 3);
	return offer(ring, 3);
}

static uint32_t
address_zero(struct ring *ring, uint16_t flags)
{
	return one_descriptor(ring, 0, HEADER + FRAME, flags);
}

static uint32_t
address_unmapped(struct ring *ring, uint16_t flags)
{
	return one_descriptor(ring, UNMAPPED_GPA, HEADER + FRAME, flags);
}

static uint32_t
address_at_the_very_end(struct ring *ring, uint16_t flags)
{
	return one_descriptor(ring, MEMORY_END_GPA, HEADER + FRAME, flags);
}

static uint32_t
address_wraps(struct ring *ring, uint16_t flags)
{
	return one_descriptor(ring, UINT64_MAX - 10, HEADER + FRAME, flags);
}

static uint32_t
length_wraps(struct ring *ring, uint16_t flags)
{
	ring_describe(ring, 0, DATA_GPA, UINT32_MAX, flags | DESC_NEXT, 1);
	ring_describe(ring, 1, DATA_GPA, 2 + FRAME, flags, 0);
	return offer(ring, 0);
}

static uint32_t
partly_mapped(struct ring *ring, uint16_t flags)
{
	return one_descriptor(ring, MEMORY_END_GPA - 50, HEADER + FRAME, flags);
}

static uint32_t
second_one_unmapped(struct ring *ring, uint16_t flags)
{
	ring_describe(ring, 0, DATA_GPA, HEADER, flags | DESC_NEXT, 1);
	ring_describe(ring, 1, UNMAPPED_GPA, FRAME, flags, 0);
	return offer(ring, 0);
}

static uint32_t
no_bytes(struct ring *ring, uint16_t flags)
{
	return one_descriptor(ring, DATA_GPA, 0, flags);
}

static uint32_t
no_bytes_and_unmapped(struct ring *ring, uint16_t flags)
{
	return one_descriptor(ring, UNMAPPED_GPA, 0, flags);
}

static uint32_t
shorter_than_the_header(struct ring *ring, uint16_t flags)
{
	return one_descriptor(ring, DATA_GPA, HEADER - 1, flags);
}

static uint32_t
part_of_the_header_in_pieces(struct ring *ring, uint16_t flags)
{
	for (uint16_t i = 0; i < 3; i++)
		ring_describe(ring, i, DATA_GPA, 3, flags | (i < 2 ? DESC_NEXT : 0),
			      (uint16_t)(i + 1));
	return offer(ring, 0);
}

static uint32_t
header_alone(struct ring *ring, uint16_t flags)
{
	return one_descriptor(ring, DATA_GPA, HEADER, flags);
}

static uint32_t
header_alone_in_pieces(struct ring *ring, uint16_t flags)
{
	for (uint16_t i = 0; i < 3; i++)
		ring_describe(ring, i, DATA_GPA, 4, flags | (i < 2 ? DESC_NEXT : 0),
			      (uint16_t)(i + 1));
	return offer(ring, 0);
}

static uint32_t
offer_table(struct ring *ring, const struct descriptor *entries, size_t bytes)
{
	guest_write(&guest.frontend, TABLE_GPA, entries, bytes);
	ring_describe(ring, 6, TABLE_GPA, (uint32_t)bytes, DESC_INDIRECT, 0);
	return offer(ring, 6);
}

static uint32_t
table_of_no_bytes(struct ring *ring, uint16_t flags)
{
	(void)flags;
	ring_describe(ring, 6, TABLE_GPA, 0, DESC_INDIRECT, 0);
	return offer(ring, 6);
}

static uint32_t
table_shorter_than_an_entry(struct ring *ring, uint16_t flags)
{
	(void)flags;
	ring_describe(ring, 6, TABLE_GPA, 15, DESC_INDIRECT, 0);
	return offer(ring, 6);
}

static uint32_t
table_longer_than_the_ring(struct ring *ring, uint16_t flags)
{
	(void)flags;
	ring_describe(ring, 6, TABLE_GPA, (RING_SIZE + 1) * 16, DESC_INDIRECT, 0);
	return offer(ring, 6);
}

static uint32_t
table_of_four_gigabytes(struct ring *ring, uint16_t flags)
{
	(void)flags;
	ring_describe(ring, 6, TABLE_GPA, UINT32_MAX - 15, DESC_INDIRECT, 0);
	return offer(ring, 6);
}

static uint32_t
table_unmapped(struct ring *ring, uint16_t flags)
{
	(void)flags;
	ring_describe(ring, 6, UNMAPPED_GPA, 64, DESC_INDIRECT, 0);
	return offer(ring, 6);
}

static uint32_t
table_partly_mapped(struct ring *ring, uint16_t flags)
{
	const struct descriptor entry = {DATA_GPA, 1, flags | DESC_NEXT, 1};

	guest_write(&guest.frontend, MEMORY_END_GPA - sizeof(entry), &entry, sizeof(entry));
	ring_describe(ring, 6, MEMORY_END_GPA - sizeof(entry), 64, DESC_INDIRECT, 0);
	return offer(ring, 6);
}

static uint32_t
table_in_a_table(struct ring *ring, uint16_t flags)
{
	const struct descriptor entry = {TABLE_GPA, 16, flags | DESC_INDIRECT, 0};

	return offer_table(ring, &entry, sizeof(entry));
}

static uint32_t
table_leads_outside(struct ring *ring, uint16_t flags)
{
	const struct descriptor entries[] = {
		{DATA_GPA, 1, flags | DESC_NEXT, 2},
		{DATA_GPA, 1, flags, 0},
	};

	return offer_table(ring, entries, sizeof(entries));
}

static uint32_t
table_loops(struct ring *ring, uint16_t flags)
{
	const struct descriptor entries[] = {
		{DATA_GPA, 1, flags | DESC_NEXT, 1},
		{DATA_GPA, 1, flags | DESC_NEXT, 0},
	};

	return offer_table(ring, entries, sizeof(entries));
}

static uint32_t
table_names_unmapped_memory(struct ring *ring, uint16_t flags)
{
	const struct descriptor entry = {UNMAPPED_GPA, HEADER + FRAME, flags, 0};

	return offer_table(ring, &entry, sizeof(entry));
}

static uint32_t
table_too_short_for_the_header(struct ring *ring, uint16_t flags)
{
	const struct descriptor entry = {DATA_GPA, HEADER - 1, flags, 0};

	return offer_table(ring, &entry, sizeof(entry));
}

static uint32_t
not_for_writing(struct ring *ring, uint16_t flags)
{
	(void)flags;
	return one_descriptor(ring, DATA_GPA, 2000, 0);
}

static uint32_t
second_one_not_for_writing(struct ring *ring, uint16_t flags)
{
	(void)flags;
	ring_describe(ring, 0, DATA_GPA, 50, DESC_WRITE | DESC_NEXT, 1);
	ring_describe(ring, 1, DATA_GPA + 50, 2000, 0, 0);
	return offer(ring, 0);
}

static uint32_t
table_not_for_writing(struct ring *ring, uint16_t flags)
{
	const struct descriptor entry = {DATA_GPA, 2000, 0, 0};

	(void)flags;
	return offer_table(ring, &entry, sizeof(entry));
}

const struct bad_chain bad_chains[] = {
	{"head at the end", head_at_the_end},
	{"head far outside", head_far_outside},
	{"next at the end", next_at_the_end},
	{"next far outside", next_far_outside},
	{"loop of one", loop_of_one},
	{"loop of two", loop_of_two},
	{"loop of nothing", loop_of_nothing},
	{"loop of whole regions", make_loop_of_whole_regions},
	{"address zero", address_zero},
	{"address unmapped", address_unmapped},
	{"address at the very end", address_at_the_very_end},
	{"address wraps", address_wraps},
	{"length wraps", length_wraps},
	{"partly mapped", partly_mapped},
	{"second one unmapped", second_one_unmapped},
	{"no bytes", no_bytes},
	{"no bytes and unmapped", no_bytes_and_unmapped},
	{"table of no bytes", table_of_no_bytes},
	{"table shorter than an entry", table_shorter_than_an_entry},
	{"table longer than the ring", table_longer_than_the_ring},
	{"table of four gigabytes", table_of_four_gigabytes},
	{"table unmapped", table_unmapped},
	{"table partly mapped", table_partly_mapped},
	{"table in a table", table_in_a_table},
	{"table leads outside", table_leads_outside},
	{"table loops", table_loops},
	{"table names unmapped memory", table_names_unmapped_memory},
};

const struct bad_chain bad_to_host[] = {
	{"shorter than the header", shorter_than_the_header},
	{"part of the header in pieces", part_of_the_header_in_pieces},
	{"header alone", header_alone},
	{"header alone, in pieces", header_alone_in_pieces},
	{"table too short for the header", table_too_short_for_the_header},
};

const struct bad_chain bad_to_guest[] = {
	{"not for writing", not_for_writing},
	{"second one not for writing", second_one_not_for_writing},
	{"table not for writing", table_not_for_writing},
};

const unsigned int bad_chains_count = RTE_DIM(bad_chains);
const unsigned int bad_to_host_count = RTE_DIM(bad_to_host);
const unsigned int bad_to_guest_count = RTE_DIM(bad_to_guest);
