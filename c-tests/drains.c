/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Messages that arrive while a copy engine copies, in both directions: each waits until nothing is
 * under way, and only so long. The engine is DPDK's dma_skeleton behind functions of this test, which
 * can hold it: then it neither begins nor reports a copy.
 */
#define _GNU_SOURCE /* memfd_create */

#include "lib/check.h"
#include "lib/eal.h"
#include "lib/frame.h"
#include "lib/hostile.h"

#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <rte_dmadev.h>
#include <rte_malloc.h>

/* Length of the frames that are under way. */
#define LENGTH 1500
/* Buffers are in the second region, rings in the first. */
#define TO_GUEST_DATA (BORDER_GPA + 0x100000)
#define TO_HOST_DATA (BORDER_GPA + 0x300000)
#define STEP 0x1000
/* The driver's patience with an engine that is a thread. */
#define PATIENCE_MS 2000
/* And the most that a message may take then, on a machine that has other work. */
#define BOUND_MS (3 * PATIENCE_MS)

#define IOTLB_MSG 22
#define IOTLB_UPDATE 2
#define IOTLB_INVALIDATE 3
#define PF_LOG_SHMFD (1ull << 1)
#define PF_BACKEND_REQ (1ull << 5)
#define PF_CONFIGURE_MEM_SLOTS (1ull << 15)
#define F_LOG_ALL (1ull << 26)
#define F_IOMMU_PLATFORM (1ull << 33)

struct iotlb_message {
	uint64_t iova, size, uaddr;
	uint8_t permissions, type, padding[6];
};

struct log_description {
	uint64_t size, offset;
};

struct single_region {
	uint64_t padding;
	struct memory_region region;
};

/* ---- The engine ---- */

static atomic_bool held;
static bool submit_is_owed;
static struct rte_dma_fp_object real;

static int
submit(void *device, uint16_t channel)
{
	if (!atomic_load(&held))
		return real.submit(device, channel);
	submit_is_owed = true;
	return 0;
}

/* Under the driver's lock, as all of these. */
static bool
is_held(void *device, uint16_t channel)
{
	if (atomic_load(&held))
		return true;
	if (submit_is_owed)
		real.submit(device, channel);
	submit_is_owed = false;
	return false;
}

static uint16_t
completed(void *device, uint16_t channel, uint16_t most, uint16_t *last, bool *error)
{
	*error = false;
	return is_held(device, channel) ? 0 : real.completed(device, channel, most, last, error);
}

static uint16_t
completed_status(void *device, uint16_t channel, uint16_t most, uint16_t *last,
		 enum rte_dma_status_code *status)
{
	return is_held(device, channel) ? 0 :
					  real.completed_status(device, channel, most, last, status);
}

/* Another engine for each case: one that was late is not used again. */
static const char *
make_engine(void)
{
	static char name[32];
	static unsigned int number;
	struct rte_dma_fp_object *object;
	int id;

	snprintf(name, sizeof(name), "dma_skeleton%u", number++);
	vdev_attach(name, "%s", "");
	id = rte_dma_get_dev_id_by_name(name);
	if (!CHECK(id >= 0, "no %s", name))
		return NULL;
	object = &rte_dma_fp_objs[id];
	real = *object;
	object->submit = submit;
	object->completed = completed;
	object->completed_status = completed_status;
	submit_is_owed = false;
	atomic_store(&held, false);
	return name;
}

/* Frames under way in each direction. */
static uint16_t frames;

static uint64_t
counter(const char *direction, const char *what)
{
	char name[64];

	snprintf(name, sizeof(name), "%s_q0_dma_%s", direction, what);
	return xstat(guest.port, name);
}

static uint64_t
both(const char *what)
{
	return counter("tx", what) + counter("rx", what);
}

/* ---- The messages ---- */

static bool
post(uint32_t request, const void *payload, uint32_t size, const int *files, unsigned int count)
{
	return frontend_send(&guest.frontend, request, MESSAGE_NEED_REPLY, payload, size, files, count);
}

static bool
acknowledged(uint32_t request)
{
	uint64_t answer = 1;

	return frontend_receive(&guest.frontend, request, &answer, sizeof(answer)) && answer == 0;
}

static bool
disable(uint32_t ring)
{
	const struct vring_state state = {.index = ring};

	return post(SET_VRING_ENABLE, &state, sizeof(state), NULL, 0);
}

static bool
disable_to_guest(void)
{
	return disable(TO_GUEST_RING);
}

static bool
disable_to_host(void)
{
	return disable(TO_HOST_RING);
}

static bool
get_base(uint32_t ring)
{
	const struct vring_state state = {.index = ring};

	return frontend_send(&guest.frontend, GET_VRING_BASE, 0, &state, sizeof(state), NULL, 0);
}

static bool
get_base_to_guest(void)
{
	return get_base(TO_GUEST_RING);
}

static bool
get_base_to_host(void)
{
	return get_base(TO_HOST_RING);
}

static bool
base_is_right(uint32_t request)
{
	struct vring_state state = {0};

	return frontend_receive(&guest.frontend, request, &state, sizeof(state)) &&
	       CHECK(state.value == frames, "%u", state.value);
}

/* One region more, so that it is another table. */
static bool
other_memory(void)
{
	const uint64_t base = (uintptr_t)guest.frontend.memory;
	const struct memory_table table = {
		.count = 3,
		.regions = {
			{MEMORY_GPA, REGION_SIZE, base + REGION_SIZE, REGION_SIZE},
			{BORDER_GPA, REGION_SIZE, base, 0},
			{MEMORY_END_GPA, 0x200000, 0x10000000, 0},
		},
	};
	const int more = memfd_create("more", MFD_CLOEXEC);
	const int files[] = {guest.frontend.memory_file, guest.frontend.memory_file, more};
	bool sent = ftruncate(more, 0x200000) == 0 &&
		    post(SET_MEM_TABLE, &table, 8 + 3 * (uint32_t)sizeof(struct memory_region), files, 3);

	close(more);
	return sent;
}

static bool
remove_region(void)
{
	const struct single_region removed = {
		.region = {BORDER_GPA, REGION_SIZE, (uintptr_t)guest.frontend.memory, 0}};

	return post(REM_MEM_REG, &removed, sizeof(removed), NULL, 0);
}

static bool
set_log(void)
{
	const struct log_description description = {.size = MEMORY_END_GPA / 4096 / 8};
	const int file = memfd_create("log", MFD_CLOEXEC);
	bool sent = ftruncate(file, (off_t)description.size) == 0 &&
		    post(SET_LOG_BASE, &description, sizeof(description), &file, 1);

	close(file);
	return sent;
}

static bool
start_logging(void)
{
	const uint64_t features = guest.frontend.features | F_LOG_ALL;

	return post(SET_FEATURES, &features, sizeof(features), NULL, 0);
}

/* This one is answered with nothing. */
static bool
answered_empty(uint32_t request)
{
	return frontend_receive(&guest.frontend, request, NULL, 0);
}

static bool
log_is_ready(void)
{
	return set_log() && answered_empty(SET_LOG_BASE);
}

static bool
logging_is_on(void)
{
	return log_is_ready() && start_logging() && acknowledged(SET_FEATURES);
}

static bool
invalidate(void)
{
	const struct iotlb_message message = {
		.iova = BORDER_GPA, .size = REGION_SIZE, .type = IOTLB_INVALIDATE};

	return post(IOTLB_MSG, &message, sizeof(message), NULL, 0);
}

static bool
translate(uint64_t iova, uint64_t gpa)
{
	const struct iotlb_message message = {.iova = iova,
					      .size = REGION_SIZE,
					      .uaddr = (uintptr_t)guest_memory(&guest.frontend, gpa),
					      .permissions = 3,
					      .type = IOTLB_UPDATE};

	return post(IOTLB_MSG, &message, sizeof(message), NULL, 0) && acknowledged(IOTLB_MSG);
}

/* I/O virtual addresses are guest-physical ones; the messages about rings name those of the frontend. */
static bool
translations_are_known(void)
{
	const uint64_t base = (uintptr_t)guest.frontend.memory;
	int channel[2];
	bool sent;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel) != 0)
		return false;
	sent = post(SET_BACKEND_REQ_FD, NULL, 0, &channel[1], 1) && acknowledged(SET_BACKEND_REQ_FD);
	close(channel[1]);
	sent = sent && translate(base, BORDER_GPA) && translate(base + REGION_SIZE, MEMORY_GPA) &&
	       translate(MEMORY_GPA, MEMORY_GPA) && translate(BORDER_GPA, BORDER_GPA);
	close(channel[0]);
	return sent && wait_for_link(guest.port, true);
}

static bool
reset(void)
{
	return post(RESET_OWNER, NULL, 0, NULL, 0);
}

static bool
hang_up(void)
{
	return shutdown(guest.frontend.socket, SHUT_RDWR) == 0;
}

static bool
link_goes_down(uint32_t request)
{
	(void)request;
	WAIT_FOR(!link_is_up(guest.port), BOUND_MS);
	return CHECK(!link_is_up(guest.port), "the link stays up");
}

struct message {
	const char *name;
	uint32_t request;
	/* Sends it, and takes the answer. */
	bool (*post)(void);
	bool (*answered)(uint32_t request);
	/* Rings that it concerns. */
	bool to_guest, to_host;
	/* Of the handshake; and what comes before any packet. */
	uint64_t features, protocol_features;
	const char *devargs;
	bool (*prepare)(void);
};

static const struct message messages[] = {
	{.name = "SET_VRING_ENABLE 0, to the guest",
	 .request = SET_VRING_ENABLE,
	 .post = disable_to_guest,
	 .answered = acknowledged,
	 .to_guest = true},
	{.name = "SET_VRING_ENABLE 0, to the host",
	 .request = SET_VRING_ENABLE,
	 .post = disable_to_host,
	 .answered = acknowledged,
	 .to_host = true},
	{.name = "GET_VRING_BASE, to the guest",
	 .request = GET_VRING_BASE,
	 .post = get_base_to_guest,
	 .answered = base_is_right,
	 .to_guest = true},
	{.name = "GET_VRING_BASE, to the host",
	 .request = GET_VRING_BASE,
	 .post = get_base_to_host,
	 .answered = base_is_right,
	 .to_host = true},
	{.name = "SET_MEM_TABLE",
	 .request = SET_MEM_TABLE,
	 .post = other_memory,
	 .answered = acknowledged,
	 .to_guest = true,
	 .to_host = true},
	{.name = "REM_MEM_REG",
	 .request = REM_MEM_REG,
	 .post = remove_region,
	 .answered = acknowledged,
	 .to_guest = true,
	 .to_host = true,
	 .protocol_features = PF_CONFIGURE_MEM_SLOTS},
	{.name = "SET_LOG_BASE",
	 .request = SET_LOG_BASE,
	 .post = set_log,
	 .answered = answered_empty,
	 .to_guest = true,
	 .to_host = true,
	 .protocol_features = PF_LOG_SHMFD,
	 .prepare = logging_is_on},
	{.name = "SET_FEATURES",
	 .request = SET_FEATURES,
	 .post = start_logging,
	 .answered = acknowledged,
	 .to_guest = true,
	 .to_host = true,
	 .protocol_features = PF_LOG_SHMFD,
	 .prepare = log_is_ready},
	{.name = "IOTLB invalidation",
	 .request = IOTLB_MSG,
	 .post = invalidate,
	 .answered = acknowledged,
	 .to_guest = true,
	 .to_host = true,
	 .features = F_IOMMU_PLATFORM,
	 .protocol_features = PF_BACKEND_REQ,
	 .devargs = ",iommu-support=1",
	 .prepare = translations_are_known},
	{.name = "RESET_OWNER",
	 .request = RESET_OWNER,
	 .post = reset,
	 .answered = acknowledged,
	 .to_guest = true,
	 .to_host = true},
	{.name = "hang-up",
	 .post = hang_up,
	 .answered = link_goes_down,
	 .to_guest = true,
	 .to_host = true},
};

/* ---- The cases ---- */

static const struct message *message;
static bool stalls;

static bool
connect_guest(void)
{
	frontend_also_wants(message->protocol_features);
	if (!CHECK(frontend_connect(&guest.frontend, guest.path), "no connection") ||
	    !CHECK(frontend_start(&guest.frontend, guest.options.features, 2, RING_SIZE),
		   "the handshake failed"))
		return false;
	frontend_also_wants(0);
	if (message->prepare != NULL && !CHECK(message->prepare(), "the preparation failed"))
		return false;
	return CHECK(wait_for_link(guest.port, true), "the link stays down");
}

static bool
put_copies_under_way(struct rte_mempool *pool)
{
	static struct rte_mbuf *mbufs[RING_SIZE];
	uint16_t count;

	for (uint16_t nth = 0; nth < frames; nth++) {
		ring_describe(guest.to_guest, nth, TO_GUEST_DATA + nth * STEP, 2048, DESC_WRITE, 0);
		ring_offer(guest.to_guest, nth);
		guest_offer_frame(&guest, nth, TO_HOST_DATA + nth * STEP, LENGTH, 100u + nth);
		mbufs[nth] = frame_mbuf(pool, LENGTH, nth, 0);
		if (!CHECK(mbufs[nth] != NULL, "no mbuf"))
			return false;
	}
	atomic_store(&held, true);
	count = rte_eth_tx_burst(guest.port, 0, mbufs, frames);
	if (!CHECK(count == frames, "%u were sent", count))
		return false;
	count = rte_eth_rx_burst(guest.port, 0, mbufs, frames);
	return CHECK(count == 0, "%u were received", count) &&
	       CHECK(counter("tx", "inflight") == frames, "%" PRIu64, counter("tx", "inflight")) &&
	       CHECK(counter("rx", "inflight") == frames, "%" PRIu64, counter("rx", "inflight"));
}

static void
expect_frames_in_the_guest(void)
{
	static struct used_entry entries[RING_SIZE];

	CHECK(counter("tx", "inflight") == 0, "%" PRIu64, counter("tx", "inflight"));
	CHECK(guest_take_used(guest.to_guest, entries, frames) == frames, "not all are used");
	for (uint16_t nth = 0; nth < frames; nth++) {
		CHECK(entries[nth].head == nth, "%u is %u", nth, entries[nth].head);
		CHECK(guest_has_frame(&guest, TO_GUEST_DATA + nth * STEP, LENGTH, nth, 1), "%u", nth);
	}
}

static void
expect_frames_in_the_host(void)
{
	static struct used_entry entries[RING_SIZE];

	CHECK(counter("rx", "inflight") == 0, "%" PRIu64, counter("rx", "inflight"));
	CHECK(guest_take_used(guest.to_host, entries, frames) == frames, "not all are used");
	for (uint16_t nth = 0; nth < frames; nth++) {
		CHECK(entries[nth].head == nth, "%u is %u", nth, entries[nth].head);
		/* They are here already, whatever has become of the ring. */
		CHECK(guest_host_receives(&guest, LENGTH, 100u + nth), "%u", nth);
	}
}

static bool
open_guest(void)
{
	static char devargs[96];
	const char *engine = make_engine();

	if (engine == NULL)
		return false;
	snprintf(devargs, sizeof(devargs), "%s,dmas=[txq0@%s;rxq0@%s],dmathr=0",
		 message->devargs != NULL ? message->devargs : "", engine, engine);
	return guest_open_port(&guest, &(struct guest_options){
					       .features = USUAL_FEATURES | message->features,
					       .devargs = devargs}) &&
	       connect_guest();
}

static void
arrives_while_copies_are_under_way(void)
{
	uint64_t began, took;
	struct pollfd answer = {.events = POLLIN};

	REQUIRE(open_guest(), "no guest");
	REQUIRE(put_copies_under_way(guest.pool), "nothing is under way");
	began = milliseconds_now();
	REQUIRE(message->post(), "not sent");
	WAIT_FOR(both("drains") > 0, PATIENCE_MS);
	answer.fd = guest.frontend.socket;
	if (!stalls) {
		CHECK(both("drains") > 0, "nobody waits for the copies");
		if (message->request != 0)
			CHECK(poll(&answer, 1, 0) == 0, "answered while copies are under way");
		atomic_store(&held, false);
	}
	if (message->request != 0)
		poll(&answer, 1, BOUND_MS);
	CHECK(message->answered(message->request), "no answer, or a refusal");
	took = milliseconds_now() - began;
	CHECK(took < BOUND_MS, "it took %" PRIu64 " ms", took);
	if (stalls)
		CHECK(took > PATIENCE_MS / 2, "it took only %" PRIu64 " ms", took);
	if (message->to_guest)
		expect_frames_in_the_guest();
	if (message->to_host)
		expect_frames_in_the_host();
	CHECK((both("engine_dead") != 0) == stalls, "%" PRIu64 " are dead", both("engine_dead"));
	/* The watchdog may have seen first that it stalls. */
	CHECK(stalls || both("drain_timeouts") == 0, "%" PRIu64 " late", both("drain_timeouts"));
	CHECK((both("redone") != 0) == stalls, "%" PRIu64 " redone", both("redone"));
	atomic_store(&held, false);

	/* Whatever it was, the next frontend is served. */
	frontend_disconnect(&guest.frontend);
	WAIT_FOR(!link_is_up(guest.port), BOUND_MS);
	for (struct rte_mbuf *mbuf; (mbuf = receive_one(guest.port, 0, 1)) != NULL;)
		rte_pktmbuf_free(mbuf);
	if (CHECK(connect_guest(), "no other frontend"))
		frame_passes(message->name);
	guest_close(&guest);
}

static void *
release_when_waited_for(void *unused)
{
	(void)unused;
	WAIT_FOR(both("drains") > 0, PATIENCE_MS);
	if (!stalls)
		atomic_store(&held, false);
	return NULL;
}

/* The pool of what was sent goes with the port's stop, and its memory becomes something else. */
static void
pool_goes_after_the_port_has_stopped(void)
{
	const size_t size = 1 << 20;
	struct rte_mempool *pool = make_pool("leaving", 1023, 2048);
	pthread_t waiter;
	void *filling;

	REQUIRE(pool != NULL, "no pool");
	REQUIRE(open_guest(), "no guest");
	REQUIRE(put_copies_under_way(pool), "nothing is under way");
	REQUIRE(pthread_create(&waiter, NULL, release_when_waited_for, NULL) == 0, "no thread");
	CHECK(rte_eth_dev_stop(guest.port) == 0, "no stop");
	CHECK(rte_mempool_full(pool), "mbufs are out while the port is stopped");
	CHECK(rte_mempool_full(guest.pool), "received mbufs are out while the port is stopped");
	rte_mempool_free(pool);
	filling = rte_malloc(NULL, size, 0);
	if (CHECK(filling != NULL, "no memory"))
		memset(filling, 0xee, size);
	pthread_join(waiter, NULL);
	expect_frames_in_the_guest();
	CHECK((both("engine_dead") != 0) == stalls, "%" PRIu64 " are dead", both("engine_dead"));
	atomic_store(&held, false);
	rte_free(filling);
	CHECK(rte_eth_dev_start(guest.port) == 0, "no start");
	guest.to_host->taken = guest.to_host->used->index;
	frame_passes("started again");
	guest_close(&guest);
}

int
main(void)
{
	/* One, some, and all that the rings hold. */
	static const uint16_t fills[] = {1, 8, RING_SIZE};
	static const struct message nothing = {0};

	eal_start("drains");
	after_each_case(vdev_detach_all);
	if (plugin_is_stock()) {
		printf("1..0 # skipped: stock has no engines\n");
		eal_end();
		return EXIT_SKIPPED;
	}
	for (unsigned int nth = 0; nth < RTE_DIM(messages); nth++) {
		char name[96];

		message = &messages[nth];
		stalls = false;
		for (unsigned int fill = 0; fill < RTE_DIM(fills); fill++) {
			frames = fills[fill];
			snprintf(name, sizeof(name), "%s waits for %u copies that are under way",
				 message->name, frames);
			run_case(name, arrives_while_copies_are_under_way, 30);
		}
		stalls = true;
		frames = 8;
		snprintf(name, sizeof(name), "%s does not wait long for an engine that stalls",
			 message->name);
		run_case(name, arrives_while_copies_are_under_way, 30);
	}
	message = &nothing;
	stalls = false;
	run_case("a pool goes after the port has stopped", pool_goes_after_the_port_has_stopped, 30);
	stalls = true;
	run_case("a pool goes after the port has stopped with an engine that stalls",
		 pool_goes_after_the_port_has_stopped, 30);
	return eal_end();
}
