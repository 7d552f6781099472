/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Where is the other processor now? In a virtual machine two processors can be two cores in one second and
 * two hyper-threads of one core in the next, and lines that move between cores in the one case do not move
 * at all in the other. So the measuring side asks, before and after each batch: with the peer at work, does
 * a block of additions take longer than with a silent one? And how long does an answer take?
 */
#include "loopback.h"

#include <rte_pause.h>

#include "clock.h"

/* Slower by this much: the two share a core. Half of the throughput would be 2.0. */
#define SHARED_RATIO 1.4
/* Two cores below one last-level cache answer within about 100 ns, others take 300 and more. */
#define FAR_NS 250

static struct {
	uint64_t asked __rte_cache_aligned; /* odd: the peer shall work */
	uint64_t heard __rte_cache_aligned; /* what it has understood */
} question;

/* For the peer, in each of its waiting loops. */
void answer_neighbour(void)
{
	uint64_t asked = __atomic_load_n(&question.asked, __ATOMIC_ACQUIRE);
	if (asked == __atomic_load_n(&question.heard, __ATOMIC_RELAXED))
		return;
	__atomic_store_n(&question.heard, asked, __ATOMIC_RELEASE);
	while (asked % 2 == 1) {
		block_ticks();
		asked = __atomic_load_n(&question.asked, __ATOMIC_ACQUIRE);
	}
	__atomic_store_n(&question.heard, asked, __ATOMIC_RELEASE);
}

static void ask(uint64_t step)
{
	uint64_t asked = question.asked + step;
	__atomic_store_n(&question.asked, asked, __ATOMIC_RELEASE);
	uint64_t deadline = deadline_in(10);
	while (__atomic_load_n(&question.heard, __ATOMIC_ACQUIRE) != asked)
		check_deadline(deadline, "the peer does not answer");
}

enum place neighbour_place(void)
{
	double silent = block_ticks();
	ask(1);
	double busy = block_ticks();
	ask(1);
	if (busy > SHARED_RATIO * silent)
		return SHARED;
	uint64_t shortest = UINT64_MAX;
	for (int i = 0; i < 16; i++) {
		uint64_t start = rte_rdtsc();
		ask(2);
		shortest = RTE_MIN(shortest, rte_rdtsc() - start);
	}
	return shortest * 1000000000 / rte_get_tsc_hz() > FAR_NS ? FAR : NEAR;
}
