/* SPDX-License-Identifier: BSD-3-Clause */
/* EAL with the plugin loaded by `-d`, as an application's user would do it. */
#ifndef NET_VHOST_EAL_H
#define NET_VHOST_EAL_H

#include <stdbool.h>
#include <stddef.h>

#include <rte_eth_vhost.h>

/*
 * Starts EAL on one lcore without PCI. NET_VHOST_PLUGIN names the plugin, or is `stock` for the
 * driver that is installed with DPDK. Memory comes from hugepages when enough are free, else
 * (or with NET_VHOST_NO_HUGE set) from ordinary pages. The program ends when EAL cannot start.
 * The tests go on in a child of this process, which cleans up and reports if they crash.
 */
void eal_start(const char *program);
/* The same, and EAL listens for telemetry clients. */
void eal_start_with_telemetry(const char *program);

/* Ends EAL. Returns `report()`; the directory of sockets goes with the process. */
int eal_end(void);

/* The plugin's file; with `stock`, the one in DPDK's driver directory. */
const char *plugin_file(void);
bool plugin_is_stock(void);

/* True for the cases that state more than DPDK's own driver promises; prints a skip then. */
bool beyond_stock(void);

/* The two public functions, out of the plugin's own file. */
extern int (*get_queue_event)(uint16_t port_id, struct rte_eth_vhost_queue_event *event);
extern int (*get_vid)(uint16_t port_id);

/* `name` inside a directory of this run; the text is valid until the eighth call after. */
const char *socket_path(const char *name);
bool file_exists(const char *path);

/* Open descriptors of this process, and bytes in use of all EAL heaps. */
unsigned int open_descriptors(void);
size_t heap_in_use(void);

/* True when the run is slowed down by a checker: fewer rounds are enough then. */
bool run_is_slow(void);

#endif
