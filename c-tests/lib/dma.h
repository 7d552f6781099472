/* SPDX-License-Identifier: BSD-3-Clause */
/* A pair with copy engines (`dmas=`) for the queues of one direction. Every byte and the order are
 * compared, and all mbufs must come back. */
#ifndef NET_VHOST_DMA_H
#define NET_VHOST_DMA_H

#include "pair.h"

#define SKELETON "dma_skeleton"
/* More than a tick of the thread that looks after what is under way. */
#define SOON_MS 2000

/* Whose queues have engines. */
extern enum direction tested;
extern struct pair pair;

/* Makes DPDK's engine, if need be. */
bool skeleton_there(void);
/* Makes the pair, queue 0 with `engines`, such as "sw+dma_skeleton"; `more` goes behind `dmas=`. */
bool open_with_engines(struct pair_options options, const char *engines, const char *more);
/* Moves a flow in the tested direction. */
void expect_flow(struct flow flow);
/* A counter of a queue of that direction, "copies" or another behind `_dma_`. */
uint64_t counter(unsigned int queue, const char *what);
void expect_engine_worked(unsigned int queue);

/* Runs the cases that are the same in both directions. */
void run_directionless_cases(void);

#endif
