/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Cost of net_vhost's bursts: one process with a net_vhost port and a virtio-user port on its socket.
 * `cargo xtask bench` builds and runs it; main.c has the usage.
 */
#ifndef LOOPBACK_H
#define LOOPBACK_H

#include <stdbool.h>
#include <stdint.h>

#include <rte_cycles.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#define MAX_BURST 256
#define MAX_QUEUES 8
#define MAX_CELLS 64

enum mode { ONE_CORE, LOCK_STEP, FREE_RUNNING, INSTRUCTIONS };

/* What the packets ask for. */
enum checksum {
	PLAIN,    /* nothing; no checksums negotiated */
	VLAN,     /* the port strips a tag on rx, and inserts one on tx */
	UNUSED,   /* the UDP checksum: negotiated, no packet asks */
	PASSED,   /* each packet asks, the port passes it on */
	SOFTWARE, /* each packet asks, the port computes it on rx since the application did not offer to */
	IP,       /* as PASSED, and the port makes the checksum of the IPv4 header */
	IPV6,     /* as PASSED, over IPv6 */
	SEGMENTS, /* as PASSED, in two segments: headers and payload */
	MARKS,    /* the port sends packets with the marks with which it received them, and nothing asked */
	UNSUMMED, /* the guest takes no packets without checksum: the port computes it on tx */
};

/* Which way the packets go in the free-running mode. */
enum flow { FORWARD, TO_HOST, TO_GUEST };

/* Where the peer's processor is. */
enum place {
	NEAR,   /* another core below the same last-level cache */
	FAR,    /* another core further away */
	SHARED, /* the other hyper-thread of this core */
	PLACES,
};

struct cell {
	unsigned int size; /* 0: an empty poll */
	unsigned int burst;
	enum flow flow;
};

struct options {
	const char *plugin; /* NULL: the distribution's */
	const char *socket;
	const char *devargs; /* more of the port's, beginning with a comma */
	bool engines;        /* which give the port's queues copy engines */
	const char *vdev;    /* another device that is made first; NULL: none */
	const char *visits;  /* where to write what was counted; NULL: nowhere */
	enum mode mode;
	enum checksum checksum;
	unsigned int ring;
	bool packed;
	bool mergeable;
	bool in_order;
	bool vectorized;
	unsigned int queues;
	bool apart; /* the guest's virtio-net headers lie apart from its packets */
	unsigned int parked; /* so many packets wait on the guest's side; one-core only */
	unsigned int ms;    /* per cell */
	double block;       /* see clock.h; 0: not known yet */
	int control_core;
	int measure_core;
	struct cell cells[MAX_CELLS];
	unsigned int cell_count;
};

struct bench {
	struct options options;
	uint16_t vhost, guest;
	struct rte_mempool *vhost_pool, *guest_pool;
};

/* All packets of one turn, queue by queue. */
struct packets {
	struct rte_mbuf *of[MAX_QUEUES][MAX_BURST];
};

__attribute__((noreturn, format(printf, 1, 2))) void die(const char *format, ...);

/* options.c */
struct options parse_options(int argc, char **argv);

/* ports.c */
void start_eal(const struct options *options);
void start_ports(struct bench *bench);
uint64_t deadline_in(double seconds);
void check_deadline(uint64_t deadline, const char *what);

/* packets.c */
void make_packets(const struct bench *bench, const struct cell *cell, struct packets *packets);
void free_packets(const struct bench *bench, const struct cell *cell, struct packets *packets);
void check_packets(const struct bench *bench, const struct cell *cell, const struct packets *packets);
void check_payload(enum checksum checksum, const struct rte_mbuf *packet, unsigned int size, unsigned int id);
unsigned int packet_id(enum checksum checksum, const struct rte_mbuf *packet);
struct rte_mbuf *make_packet(enum checksum checksum, struct rte_mempool *pool, unsigned int size,
			     unsigned int id);
void touch_packet(struct rte_mbuf *packet);
void guest_asks(enum checksum checksum, struct rte_mbuf *packet);
void port_asks(const struct bench *bench, struct rte_mbuf *packet);
void check_received(enum checksum checksum, const struct rte_mbuf *packet, unsigned int size);

/* peer.c */
void peer_sends(const struct bench *bench, const struct cell *cell, uint16_t queue, struct packets *packets);
void peer_receives(const struct bench *bench, const struct cell *cell, uint16_t queue, struct packets *packets);

/* timed.c */
#define EMPTY_POLLS 64
struct sums {
	uint64_t rx_ticks, tx_ticks;
	uint64_t rx_calls, tx_calls; /* that took these ticks, a pair of stamps each */
	uint64_t bursts;  /* that were timed */
	uint64_t partial; /* that were not whole and therefore not counted */
};
void vhost_turn(const struct bench *bench, const struct cell *cell, uint16_t queue, bool check, struct sums *sums);
void vhost_empty_polls(const struct bench *bench, const struct cell *cell, struct sums *sums);

/* engines.c */
void engines_turn(const struct bench *bench, const struct cell *cell, uint16_t queue, bool check, struct sums *sums);

/* neighbour.c */
void answer_neighbour(void);
enum place neighbour_place(void);

/* batches.c */
/* A block that takes longer than the quickest by this much has company on its core. */
#define BLOCK_TOLERANCE 1.06
struct batches;
struct batches *batches_new(const struct bench *bench, bool has_peer);
void batches_start(struct batches *batches);
bool batches_go_on(struct batches *batches);
void batches_begin(struct batches *batches);
void batches_end(struct batches *batches, const struct sums *sums, unsigned int packets_per_burst);
void batches_print(struct batches *batches, const struct cell *cell);

/* The modes, one file each. */
void one_core(struct bench *bench);
void lock_step(struct bench *bench);
void free_running(struct bench *bench);
void instructions_start(const char *visits_path);
void instructions(struct bench *bench);

#endif
