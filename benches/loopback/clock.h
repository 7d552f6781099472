/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Time stamps count a clock that does not change; the core's own clock does. A chain of dependent
 * multiplications takes 3 core cycles a link on every x86 server core since 2010 and tells how many core
 * cycles a tick is now. (Dependent additions would not do: some cores remove them at rename.)
 *
 * A block of independent additions tells whether somebody else uses the other hyper-thread of this core:
 * it then takes up to twice as many core cycles, while the chain takes no longer.
 */
#ifndef CLOCK_H
#define CLOCK_H

#include <stdint.h>
#include <x86intrin.h>

static inline uint64_t begin_stamp(void)
{
	_mm_lfence();
	uint64_t now = __rdtsc();
	_mm_lfence();
	return now;
}

static inline uint64_t end_stamp(void)
{
	unsigned int cpu;
	uint64_t now = __rdtscp(&cpu);
	_mm_lfence();
	return now;
}

/* Ticks that an empty pair of stamps takes, on average: some cores count ticks in steps of 20 and more. */
double stamp_cost(void);

/* Core cycles per tick, now. */
double clock_ratio(void);

/* Ticks of the block, now. */
double block_ticks(void);

#endif
