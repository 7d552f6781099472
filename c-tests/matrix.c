/* SPDX-License-Identifier: BSD-3-Clause */
/* Every kind of ring that virtio-user can have, byte for byte: layout, mergeable buffers, order,
 * the frontend's vector functions, and sizes that are no powers of two. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/pair.h"

#include <stdio.h>

static struct pair pair;
static struct pair_options cell;

static void
expect_flow(struct flow flow)
{
	for (int direction = TO_HOST; direction <= TO_GUEST; direction++) {
		flow.direction = direction;
		CHECK(pair_move(&pair, &flow) == flow.count, "%s, burst %u, lengths %u to %u",
		      direction == TO_HOST ? "to the host" : "to the guest", flow.burst,
		      flow.first_length, flow.last_length);
	}
}

/* virtio-user's vector function for this kind receives eight frames at a time, never fewer. */
static bool
receives_by_eight(void)
{
	return cell.vectorized && !cell.packed && cell.no_mergeable && !cell.in_order;
}

static void
move_in_cell(void)
{
	static const unsigned int bursts[] = {1, 4, 32, 64, 256};

	REQUIRE(pair_open(&pair, &cell), "no pair");
	for (unsigned int i = receives_by_eight() ? 2 : 0; i < RTE_DIM(bursts); i++)
		expect_flow((struct flow){.first_length = 60,
					  .last_length = 1518,
					  .count = run_is_slow() ? 2 * bursts[i] : 4560,
					  .burst = bursts[i],
					  .seed = i});
	expect_flow((struct flow){.first_length = 8990, .last_length = 9000, .count = 64, .burst = 8});
	/* Small frames, often enough to go round any of the rings several times. */
	expect_flow((struct flow){.first_length = 60, .last_length = 70, .count = 5000});
	pair_close(&pair);
}

static void
run_cell(uint16_t ring_size)
{
	char name[128];

	cell.ring_size = ring_size;
	snprintf(name, sizeof(name), "%s ring of %u, %s%s%s", cell.packed ? "packed" : "split",
		 ring_size, cell.no_mergeable ? "not mergeable" : "mergeable",
		 cell.in_order ? ", in order" : "", cell.vectorized ? ", vectors" : "");
	run_case(name, move_in_cell, 20);
}

int
main(void)
{
	eal_start("matrix");
	after_each_case(vdev_detach_all);
	for (unsigned int kind = 0; kind < 16; kind++) {
		cell = (struct pair_options){
			.packed = kind & 8,
			.no_mergeable = kind & 4,
			.in_order = kind & 2,
			.vectorized = kind & 1,
		};
		if (cell.no_mergeable)
			cell.frontend_room = 9728;
		run_cell(256);
		run_cell(1024);
		/* virtio-user's vector functions want powers of two. */
		if (cell.packed && !cell.vectorized) {
			run_cell(255);
			run_cell(1025);
		}
	}
	return eal_end();
}
