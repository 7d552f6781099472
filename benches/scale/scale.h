/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What net_vhost ports cost that move no packets. `cargo xtask bench --only idle` builds and runs it;
 * main.c has the usage.
 */
#ifndef SCALE_H
#define SCALE_H

#include <stdbool.h>
#include <stdint.h>

#include <rte_mempool.h>

#define MAX_PORTS 32

struct options {
	const char *plugin; /* NULL: the distribution's */
	char folder[64];    /* of the sockets */
	unsigned int ports; /* at the same time */
	bool connected;     /* with a frontend each */
	bool locked;        /* mlockall(2), as Open vSwitch does */
	unsigned int churn; /* open and close a port so often */
	bool interrupt;     /* sleep until packets come */
	int control_core;
	int measure_core;
};

__attribute__((noreturn, format(printf, 1, 2))) void die(const char *format, ...);

/* process.c */
double seconds_now(void);
double cpu_seconds(void);
void sleep_seconds(double seconds);
void begin_phase(void);
void print_state(const char *phase); /* and begins the next */

/* ports.c */
void start_eal(const struct options *options, bool frontends);
void port_open(const struct options *options, unsigned int number, struct rte_mempool *pool);
void port_close(unsigned int number);
bool port_has_link(unsigned int number);
uint16_t port_id(const char *name, unsigned int number);
struct rte_mempool *make_pool(unsigned int size);

/* frontends.c: a process of virtio-user ports, one for each of ours */
void frontends_start(const struct options *options);
void frontends_open(void);
void frontends_send(void); /* a packet every 10 ms, if this is about interrupts */
void frontends_close(void);

/* interrupt.c */
void interrupts(const struct options *options);

#endif
