/* SPDX-License-Identifier: BSD-3-Clause */
#include "hostile.h"
#include "check.h"
#include "eal.h"

struct guest guest;
uint32_t seed;

static unsigned int descriptors_before;

bool
begin(void)
{
	bool good = guest_open_port(&guest, &(struct guest_options){.ring_size = RING_SIZE});

	descriptors_before = open_descriptors();
	return good && CHECK(frontend_connect(&guest.frontend, guest.path), "no connection");
}

bool
begin_started(void)
{
	if (!begin())
		return false;
	frontend_disconnect(&guest.frontend);
	return guest_connect(&guest);
}

void
frame_passes(const char *when)
{
	struct used_entry entry;

	guest_offer_frame(&guest, 7, DATA_GPA, FRAME, ++seed);
	CHECK(guest_host_receives(&guest, FRAME, seed), "%s: no frame to the host", when);
	CHECK(guest_take_used(guest.to_host, &entry, 1) == 1, "%s: not given back", when);
	ring_describe(guest.to_guest, 7, DATA_GPA + 0x10000, 2000, DESC_WRITE, 0);
	ring_offer(guest.to_guest, 7);
	CHECK(guest_host_sends(&guest, FRAME, ++seed), "%s: not sent", when);
	CHECK(guest_take_used(guest.to_guest, &entry, 1) == 1, "%s: no buffer used", when);
	CHECK(guest_has_frame(&guest, DATA_GPA + 0x10000, FRAME, seed, 1), "%s", when);
}

bool
is_served(void)
{
	uint64_t features;

	return frontend_get_u64(&guest.frontend, GET_FEATURES, &features) && features != 0;
}

void
end(const char *when)
{
	frontend_disconnect(&guest.frontend);
	WAIT_FOR(!link_is_up(guest.port), 2000);
	if (guest_connect(&guest))
		frame_passes(when);
	frontend_disconnect(&guest.frontend);
	WAIT_FOR(open_descriptors() == descriptors_before, 2000);
	CHECK(open_descriptors() == descriptors_before, "%s: %u descriptors, then %u", when,
	      descriptors_before, open_descriptors());
	guest_close(&guest);
}
