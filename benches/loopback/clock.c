/* SPDX-License-Identifier: BSD-3-Clause */
#include "clock.h"

#define TEN(what) what what what what what what what what what what

double stamp_cost(void)
{
	enum { PAIRS = 20000 };
	uint64_t lowest = UINT64_MAX, sum = 0, counted = 0;
	for (int i = 0; i < PAIRS; i++) {
		uint64_t start = begin_stamp(), ticks = end_stamp() - start;
		if (ticks < lowest)
			lowest = ticks;
		/* An interrupt is not a part of the cost. */
		if (ticks <= 3 * lowest) {
			sum += ticks;
			counted++;
		}
	}
	return (double)sum / (double)counted;
}

double clock_ratio(void)
{
	enum { TURNS = 150 };
	uint64_t best = UINT64_MAX;
	for (int again = 0; again < 3; again++) {
		uint64_t value = 3;
		uint64_t start = begin_stamp();
		for (int i = 0; i < TURNS; i++)
			__asm__ volatile(TEN("imul %0, %0\n\t") : "+r"(value));
		uint64_t ticks = end_stamp() - start;
		if (ticks < best)
			best = ticks;
	}
	return 3.0 * 10 * TURNS / (double)best;
}

double block_ticks(void)
{
	enum { TURNS = 400 };
	uint64_t best = UINT64_MAX;
	for (int again = 0; again < 2; again++) {
		uint64_t start = begin_stamp();
		for (int i = 0; i < TURNS; i++)
			__asm__ volatile("add $1, %%rax\n\tadd $1, %%rcx\n\tadd $1, %%rdx\n\tadd $1, %%rsi\n\t"
					 "add $1, %%r8\n\tadd $1, %%r9\n\tadd $1, %%r10\n\tadd $1, %%r11\n\t"
					 "add $1, %%rax\n\tadd $1, %%rcx\n\tadd $1, %%rdx\n\tadd $1, %%rsi\n\t"
					 "add $1, %%r8\n\tadd $1, %%r9\n\tadd $1, %%r10\n\tadd $1, %%r11\n\t"
					 :
					 :
					 : "rax", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "cc");
		uint64_t ticks = end_stamp() - start;
		if (ticks < best)
			best = ticks;
	}
	return (double)best;
}
