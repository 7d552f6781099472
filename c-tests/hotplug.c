/* SPDX-License-Identifier: BSD-3-Clause */
/* Ports and frontends that come and go by the thousand, and callbacks that close their port. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/guest.h"

#include <dirent.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#define FRAME_GPA DATA_GPA
#define FRAME_LENGTH 300
/* Memory that the allocators may keep for later, in bytes. A leak of 200 bytes a life is more. */
#define SLACK (256u << 10)
#define SETTLE_MS 200

static struct guest guest;
static uint32_t seed;

/* What a process has; a life must give all of it back. */
struct belongings {
	unsigned int descriptors, threads;
	size_t eal_heap, libc_heap, resident;
};

static unsigned int
threads_running(void)
{
	DIR *entries = opendir("/proc/self/task");
	unsigned int count = 0;

	if (entries == NULL)
		return 0;
	while (readdir(entries) != NULL)
		count++;
	closedir(entries);
	return count;
}

static size_t
resident_bytes(void)
{
	FILE *file = fopen("/proc/self/statm", "r");
	unsigned long size, resident = 0;

	if (file == NULL)
		return 0;
	if (fscanf(file, "%lu %lu", &size, &resident) != 2)
		resident = 0;
	fclose(file);
	return resident * (size_t)sysconf(_SC_PAGESIZE);
}

static struct belongings
belongings(void)
{
	/* Whatever is on its way out may leave first. */
	WAIT_FOR(false, SETTLE_MS);
	return (struct belongings){
		.descriptors = open_descriptors(),
		.threads = threads_running(),
		.eal_heap = heap_in_use(),
		.libc_heap = mallinfo2().uordblks,
		.resident = resident_bytes(),
	};
}

static void
expect_no_more_than(const struct belongings *before)
{
	struct belongings now;

	/* A thread may still be on its way out. */
	WAIT_FOR(open_descriptors() <= before->descriptors &&
			 threads_running() <= before->threads,
		 3000);
	now = belongings();
	CHECK(now.descriptors <= before->descriptors, "%u descriptors, then %u",
	      before->descriptors, now.descriptors);
	CHECK(now.threads <= before->threads, "%u threads, then %u", before->threads, now.threads);
	CHECK(now.eal_heap <= before->eal_heap, "EAL: %zu bytes, then %zu", before->eal_heap,
	      now.eal_heap);
	CHECK(now.libc_heap < before->libc_heap + SLACK, "heap: %zu bytes, then %zu",
	      before->libc_heap, now.libc_heap);
	/* A checker keeps what was freed. */
	CHECK(run_is_slow() || now.resident < before->resident + 4 * SLACK,
	      "resident: %zu bytes, then %zu", before->resident, now.resident);
}

/* One frame in each direction. */
static bool
exchange(void)
{
	struct used_entry used;

	seed += 2;
	ring_describe(guest.to_guest, 0, FRAME_GPA + 0x1000, 2048, DESC_WRITE, 0);
	ring_offer(guest.to_guest, 0);
	guest_offer_frame(&guest, 0, FRAME_GPA, FRAME_LENGTH, seed);
	return guest_host_receives(&guest, FRAME_LENGTH, seed) &&
	       guest_host_sends(&guest, FRAME_LENGTH, seed + 1) &&
	       guest_take_used(guest.to_guest, &used, 1) == 1 &&
	       guest_has_frame(&guest, FRAME_GPA + 0x1000, FRAME_LENGTH, seed + 1, 1);
}

static bool
live_with_a_frontend(void)
{
	bool good = guest_open(&guest, &(struct guest_options){0}) && exchange();

	/* The frontend leaves before or after its port. */
	if (seed % 4 == 0)
		frontend_disconnect(&guest.frontend);
	good = vdev_detach(DEVICE) == 0 && good;
	guest.port = NO_PORT;
	guest_close(&guest);
	return good;
}

static void
ports_leave_nothing_behind(void)
{
	const int rounds = run_is_slow() ? 20 : 1000;
	struct belongings before;

	/* What is made once for the process is made in the first rounds. */
	for (int i = 0; i < 10; i++)
		REQUIRE(live_with_a_frontend(), "round %d", i);
	before = belongings();
	for (int i = 0; i < rounds; i++)
		REQUIRE(live_with_a_frontend(), "round %d", i);
	expect_no_more_than(&before);
}

static void
frontends_leave_nothing_behind(void)
{
	const int rounds = run_is_slow() ? 20 : 1000;
	struct belongings before = {0};

	REQUIRE(guest_open_port(&guest, &(struct guest_options){0}), "no port");
	for (int i = 0; i < 10 + rounds; i++) {
		if (i == 10)
			before = belongings();
		REQUIRE(guest_connect(&guest) && exchange(), "round %d", i);
		frontend_disconnect(&guest.frontend);
		REQUIRE(wait_for_link(guest.port, false), "the link stays up in round %d", i);
	}
	expect_no_more_than(&before);
	guest_close(&guest);
}

/* Which event closes the port, and what came of it. */
static enum rte_eth_event_type closes_at;
static bool link_when_closing;
static atomic_int events_seen, events_to_let_pass, close_result;
static atomic_bool has_closed;
static pthread_t closer;

static int
close_the_port(uint16_t port, enum rte_eth_event_type type, void *argument, void *result)
{
	struct rte_eth_stats stats;

	(void)argument;
	(void)result;
	if (type != closes_at || atomic_load(&has_closed) ||
	    (type == RTE_ETH_EVENT_INTR_LSC && link_is_up(port) != link_when_closing) ||
	    atomic_fetch_add(&events_seen, 1) < atomic_load(&events_to_let_pass))
		return 0;
	closer = pthread_self();
	/* It may ask before. */
	if (rte_eth_stats_get(port, &stats) != 0)
		atomic_store(&close_result, 1);
	else if (rte_eth_dev_stop(port) != 0)
		atomic_store(&close_result, 2);
	else
		atomic_store(&close_result, rte_eth_dev_close(port));
	atomic_store(&has_closed, true);
	return 0;
}

static bool
close_at(enum rte_eth_event_type type, bool up, int pass)
{
	const char *path;

	closes_at = type;
	link_when_closing = up;
	atomic_store(&events_seen, 0);
	atomic_store(&events_to_let_pass, pass);
	atomic_store(&close_result, -1);
	atomic_store(&has_closed, false);
	if (!guest_open_port(&guest, &(struct guest_options){0}))
		return false;
	path = guest.path;
	rte_eth_dev_callback_register(guest.port, type, close_the_port, NULL);
	if (!CHECK(frontend_connect(&guest.frontend, path), "no connection"))
		return false;
	/* Fails somewhere: the port goes while it asks. */
	if (frontend_start(&guest.frontend, USUAL_FEATURES, 2, 256) &&
	    type == RTE_ETH_EVENT_INTR_LSC && !up && wait_for_link(guest.port, true))
		frontend_disconnect(&guest.frontend);
	WAIT_FOR(atomic_load(&has_closed), 3000);
	CHECK(atomic_load(&has_closed), "the event did not come");
	CHECK(atomic_load(&close_result) == 0, "result %d", atomic_load(&close_result));
	CHECK(!pthread_equal(closer, pthread_self()), "it was not the driver's thread");
	if (guest.frontend.memory != NULL)
		CHECK(frontend_hung_up(&guest.frontend), "the connection outlived its port");
	CHECK(!file_exists(path), "the socket outlived its port");
	return guest_close(&guest), true;
}

static void
callbacks_may_close(void)
{
	const int rounds = run_is_slow() ? 1 : 20;
	struct belongings before = {0};

	if (beyond_stock())
		return;
	for (int i = 0; i < 2 + rounds; i++) {
		if (i == 2)
			before = belongings();
		REQUIRE(close_at(RTE_ETH_EVENT_INTR_LSC, true, 0), "at link up");
		REQUIRE(close_at(RTE_ETH_EVENT_INTR_LSC, false, 0), "at link down");
		REQUIRE(close_at(RTE_ETH_EVENT_QUEUE_STATE, false, 0), "at the first queue");
		REQUIRE(close_at(RTE_ETH_EVENT_QUEUE_STATE, false, 1), "at the second queue");
	}
	expect_no_more_than(&before);
	/* And a port can be made as before. */
	REQUIRE(live_with_a_frontend(), "no new life");
}

int
main(void)
{
	eal_start("hotplug");
	after_each_case(vdev_detach_all);
	run_case("1000 ports with a frontend leave nothing behind", ports_leave_nothing_behind, 120);
	run_case("1000 frontends of a port leave nothing behind", frontends_leave_nothing_behind,
		 120);
	run_case("callbacks may close their port", callbacks_may_close, 60);
	return eal_end();
}
