/* SPDX-License-Identifier: BSD-3-Clause */
#include "guest.h"
#include "check.h"
#include "eal.h"
#include "frame.h"

#include <stdio.h>
#include <string.h>

const char *guest_devargs = "";

#define PATIENCE_MS 2000
#define QUIET_MS 30

bool
guest_open_port(struct guest *guest, const struct guest_options *options)
{
	static struct rte_mempool *pool;
	struct port_config config;

	memset(guest, 0, sizeof(*guest));
	guest->options = *options;
	if (guest->options.features == 0)
		guest->options.features = USUAL_FEATURES;
	if (guest->options.ring_size == 0)
		guest->options.ring_size = 256;
	if (guest->options.queues == 0)
		guest->options.queues = 1;
	if (pool == NULL)
		pool = make_pool("guest", 8191, 2048);
	guest->pool = pool;
	guest->path = socket_path("guest.sock");
	guest->to_guest = &guest->frontend.rings[TO_GUEST_RING];
	guest->to_host = &guest->frontend.rings[TO_HOST_RING];
	guest->port = vdev_attach(DEVICE, "iface=%s,queues=%u%s", guest->path,
				  guest->options.queues,
				  options->devargs != NULL ? options->devargs : guest_devargs);
	config = (struct port_config){.queues = guest->options.queues, .pool = pool};
	return CHECK(pool != NULL, "no memory") && CHECK(guest->port != NO_PORT, "probe failed") &&
	       CHECK(port_start(guest->port, &config) == 0, "start failed");
}

bool
guest_connect(struct guest *guest)
{
	return CHECK(frontend_connect(&guest->frontend, guest->path), "no connection") &&
	       CHECK(frontend_start(&guest->frontend, guest->options.features,
				    2u * guest->options.queues, guest->options.ring_size),
		     "the handshake failed") &&
	       CHECK(wait_for_link(guest->port, true), "the link stays down");
}

bool
guest_open(struct guest *guest, const struct guest_options *options)
{
	return guest_open_port(guest, options) && guest_connect(guest);
}

void
guest_close(struct guest *guest)
{
	frontend_disconnect(&guest->frontend);
	if (guest->port != NO_PORT)
		CHECK(vdev_detach(DEVICE) == 0, "the port cannot be removed");
	CHECK(rte_mempool_full(guest->pool), "%u of %u mbufs came back",
	      rte_mempool_avail_count(guest->pool), guest->pool->size);
}

void
guest_put_frame(struct guest *guest, uint64_t gpa, uint32_t length, uint32_t seed)
{
	static uint8_t bytes[HEADER + FRAME_MAX];

	memset(bytes, 0, HEADER);
	frame_fill(bytes + HEADER, length, seed);
	guest_write(&guest->frontend, gpa, bytes, HEADER + length);
}

void
guest_offer_frame(struct guest *guest, uint16_t index, uint64_t gpa, uint32_t length, uint32_t seed)
{
	guest_put_frame(guest, gpa, length, seed);
	ring_describe(guest->to_host, index, gpa, HEADER + length, 0, 0);
	ring_offer(guest->to_host, index);
}

bool
guest_host_receives(struct guest *guest, uint32_t length, uint32_t seed)
{
	struct rte_mbuf *mbuf = receive_one(guest->port, 0, PATIENCE_MS);
	bool right;

	if (mbuf == NULL)
		return false;
	right = frame_matches(mbuf, length, seed);
	rte_pktmbuf_free(mbuf);
	return right;
}

bool
guest_host_receives_nothing(struct guest *guest)
{
	struct rte_mbuf *mbuf = receive_one(guest->port, 0, QUIET_MS);

	rte_pktmbuf_free(mbuf);
	return mbuf == NULL;
}

unsigned int
guest_take_used(struct ring *ring, struct used_entry *entries, unsigned int count)
{
	unsigned int taken = 0;

	for (uint64_t end = milliseconds_now() + PATIENCE_MS;
	     taken < count && milliseconds_now() < end;) {
		if (ring_take(ring, &entries[taken]))
			taken++;
		else
			pause_briefly();
	}
	return taken;
}

bool
guest_host_sends(struct guest *guest, uint32_t length, uint32_t seed)
{
	struct rte_mbuf *mbuf = frame_mbuf(guest->pool, length, seed, 0);
	bool sent = false;

	if (mbuf == NULL)
		return false;
	WAIT_FOR((sent = rte_eth_tx_burst(guest->port, 0, &mbuf, 1) == 1), PATIENCE_MS);
	if (!sent)
		rte_pktmbuf_free(mbuf);
	return sent;
}

bool
guest_has_frame(struct guest *guest, uint64_t gpa, uint32_t length, uint32_t seed, uint16_t buffers)
{
	static uint8_t seen[HEADER + FRAME_MAX], expected[HEADER + FRAME_MAX];

	memset(expected, 0, HEADER);
	memcpy(expected + HEADER - sizeof(buffers), &buffers, sizeof(buffers));
	frame_fill(expected + HEADER, length, seed);
	guest_read(&guest->frontend, gpa, seen, HEADER + length);
	if (memcmp(seen, expected, HEADER) != 0)
		printf("# frame %u: header %02x %02x .. %02x %02x, expected %u buffers\n", seed,
		       seen[0], seen[1], seen[10], seen[11], buffers);
	else if (memcmp(seen, expected, HEADER + length) != 0)
		printf("# frame %u of %u bytes differs\n", seed, length);
	return memcmp(seen, expected, HEADER + length) == 0;
}
