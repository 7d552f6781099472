/* SPDX-License-Identifier: BSD-3-Clause */
#include "pair.h"
#include "check.h"
#include "eal.h"
#include "frame.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include <rte_malloc.h>

#define MAX_BURST 256
/* A flow that makes no progress for so long has failed. */
#define STALL_MS 2000
#define JUMBO_MTU 9216

static unsigned int
pool_size(const struct pair_options *options)
{
	unsigned int rings = 2u * options->queues * options->ring_size;

	return options->pool_size != 0 ? options->pool_size : rings + 4 * MAX_BURST + 1024;
}

struct port_config
pair_backend_config(const struct pair *pair)
{
	return (struct port_config){
		.queues = pair->options.queues,
		.pool = pair->backend_pool,
		.rx_offloads = pair->options.rx_offloads,
		.tx_offloads = pair->options.tx_offloads,
	};
}

bool
pair_open_backend(struct pair *pair, const struct pair_options *options)
{
	static unsigned int serial;
	char name[32];
	struct port_config config;

	memset(pair, 0, sizeof(*pair));
	pair->options = *options;
	pair->backend = pair->frontend = NO_PORT;
	if (pair->options.queues == 0)
		pair->options.queues = 1;
	if (pair->options.ring_size == 0)
		pair->options.ring_size = 256;
	if (pair->options.backend_room == 0)
		pair->options.backend_room = 2048;
	if (pair->options.backend_cache == 0)
		pair->options.backend_cache = USUAL_CACHE;
	if (pair->options.frontend_room == 0)
		pair->options.frontend_room = 2048;
	options = &pair->options;

	snprintf(name, sizeof(name), "host%u", serial);
	pair->backend_pool = make_cached_pool(name, pool_size(options), options->backend_cache,
					      options->backend_room);
	snprintf(name, sizeof(name), "guest%u", serial++);
	pair->frontend_pool = make_pool(name, pool_size(options), options->frontend_room);
	if (!CHECK(pair->backend_pool != NULL && pair->frontend_pool != NULL, "no memory for pools"))
		return false;

	pair->path = socket_path("pair.sock");
	pair->backend = vdev_attach(BACKEND, "iface=%s,queues=%u%s%s", pair->path, options->queues,
				    options->backend_connects ? ",client=1" : "",
				    options->devargs != NULL ? options->devargs : "");
	if (!CHECK(pair->backend != NO_PORT, "probe failed"))
		return false;
	config = pair_backend_config(pair);
	return CHECK(port_start(pair->backend, &config) == 0, "start failed");
}

bool
pair_open_frontend(struct pair *pair)
{
	const struct pair_options *options = &pair->options;
	struct port_config config = {
		.queues = options->queues,
		.descriptors = options->ring_size,
		.pool = pair->frontend_pool,
		.mtu = JUMBO_MTU,
		.rx_offloads = options->frontend_rx_offloads,
		.tx_offloads = options->frontend_tx_offloads | RTE_ETH_TX_OFFLOAD_MULTI_SEGS,
	};

	if (options->frontend_room < JUMBO_MTU)
		config.rx_offloads |= RTE_ETH_RX_OFFLOAD_SCATTER;

	/* virtio-user writes to its socket also when the backend has left. */
	signal(SIGPIPE, SIG_IGN);
	pair->frontend = vdev_attach(FRONTEND,
				     "path=%s,mac=02:00:00:00:00:01,queues=%u,queue_size=%u,packed_vq=%d,"
				     "mrg_rxbuf=%d,in_order=%d,vectorized=%d%s",
				     pair->path, options->queues, options->ring_size, options->packed,
				     !options->no_mergeable, options->in_order, options->vectorized,
				     options->backend_connects ? ",server=1" : "");
	if (!CHECK(pair->frontend != NO_PORT, "no virtio-user port"))
		return false;
	if (!CHECK(port_start(pair->frontend, &config) == 0, "virtio-user did not start"))
		return false;
	return CHECK(wait_for_link(pair->backend, true), "the backend's link stayed down");
}

bool
pair_open(struct pair *pair, const struct pair_options *options)
{
	return pair_open_backend(pair, options) && pair_open_frontend(pair);
}

void
pair_close_frontend(struct pair *pair)
{
	CHECK(vdev_detach(FRONTEND) == 0, "the frontend cannot be removed");
	pair->frontend = NO_PORT;
}

static void
check_and_free(struct rte_mempool *pool, const char *side)
{
	if (pool == NULL)
		return;
	CHECK(rte_mempool_full(pool), "%s: %u of %u mbufs came back", side,
	      rte_mempool_avail_count(pool), pool->size);
	rte_mempool_free(pool);
}

void
pair_close(struct pair *pair)
{
	if (pair->frontend != NO_PORT)
		pair_close_frontend(pair);
	if (pair->backend != NO_PORT)
		CHECK(vdev_detach(BACKEND) == 0, "the backend cannot be removed");
	check_and_free(pair->backend_pool, "backend");
	check_and_free(pair->frontend_pool, "frontend");
}

uint32_t
flow_length(const struct flow *flow, unsigned int index)
{
	return flow->first_length + index % (flow->last_length - flow->first_length + 1);
}

/* Takes what has arrived; the number of frames, or the whole flow's when one was wrong. */
static unsigned int
receive(uint16_t port, const struct flow *flow, unsigned int arrived, unsigned int *right)
{
	struct rte_mbuf *mbufs[MAX_BURST];
	unsigned int burst = flow->burst != 0 ? flow->burst : 32;
	uint16_t count = rte_eth_rx_burst(port, flow->queue, mbufs, (uint16_t)burst);

	for (uint16_t i = 0; i < count; i++) {
		unsigned int index = arrived + i;

		if (index < flow->count &&
		    frame_matches(mbufs[i], flow_length(flow, index), flow->seed + index))
			(*right)++;
	}
	rte_pktmbuf_free_bulk(mbufs, count);
	return count;
}

unsigned int
pair_move(const struct pair *pair, const struct flow *flow)
{
	uint16_t from = flow->direction == TO_HOST ? pair->frontend : pair->backend;
	uint16_t to = flow->direction == TO_HOST ? pair->backend : pair->frontend;
	struct rte_mempool *pool =
		flow->direction == TO_HOST ? pair->frontend_pool : pair->backend_pool;
	unsigned int burst = flow->burst != 0 ? flow->burst : 32;
	unsigned int sent = 0, arrived = 0, right = 0, made = 0;
	struct rte_mbuf *waiting[MAX_BURST];
	uint64_t deadline = milliseconds_now() + STALL_MS;

	while (arrived < flow->count && milliseconds_now() < deadline) {
		uint16_t accepted, taken;

		/* `waiting` holds the frames from `sent` to `made`. */
		while (made < flow->count && made - sent < burst) {
			struct rte_mbuf *mbuf = frame_mbuf(pool, flow_length(flow, made),
							   flow->seed + made, flow->segment);

			if (mbuf == NULL)
				break;
			waiting[made++ - sent] = mbuf;
		}
		accepted = rte_eth_tx_burst(from, flow->queue, waiting, (uint16_t)(made - sent));
		memmove(waiting, waiting + accepted, (made - sent - accepted) * sizeof(*waiting));
		sent += accepted;
		taken = (uint16_t)receive(to, flow, arrived, &right);
		arrived += taken;
		/* Without progress the control threads may need the processor. */
		if (accepted != 0 || taken != 0)
			deadline = milliseconds_now() + STALL_MS;
		else
			pause_briefly();
		if (right < arrived)
			break;
	}
	rte_pktmbuf_free_bulk(waiting, made - sent);
	if (right < flow->count)
		printf("# %s queue %u: %u of %u frames right, %u sent\n",
		       flow->direction == TO_HOST ? "to host" : "to guest", flow->queue, right,
		       flow->count, sent);
	return right;
}

struct rte_mbuf *
pair_pass(const struct pair *pair, enum direction direction, uint16_t queue, struct rte_mbuf *mbuf)
{
	uint16_t from = direction == TO_HOST ? pair->frontend : pair->backend;
	uint16_t to = direction == TO_HOST ? pair->backend : pair->frontend;
	bool sent = false;

	WAIT_FOR((sent = rte_eth_tx_burst(from, queue, &mbuf, 1) == 1), STALL_MS);
	if (!sent) {
		rte_pktmbuf_free(mbuf);
		return NULL;
	}
	return receive_one(to, queue, STALL_MS);
}
