/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Instructions per packet, exact and the same on a busy machine: another process steps the main lcore
 * through the two bursts, one instruction at a time. No performance counters are needed.
 */
#include "loopback.h"

#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static struct {
	uint64_t stepping;
	uint64_t steps;
} *volatile shared;

/* The next instruction and those after it are counted until `end_counting`. */
static inline __attribute__((always_inline)) void begin_counting(void)
{
	shared->steps = 0;
	__atomic_store_n(&shared->stepping, 1, __ATOMIC_RELEASE);
	__asm__ volatile("int3" : : : "memory");
}

static inline __attribute__((always_inline)) uint64_t end_counting(void)
{
	__atomic_store_n(&shared->stepping, 0, __ATOMIC_RELEASE);
	return __atomic_load_n(&shared->steps, __ATOMIC_ACQUIRE);
}

/* How often each address was stepped to. */
static struct {
	uintptr_t address;
	uint64_t count;
} visits[1 << 16];

static void note(pid_t child)
{
	const size_t mask = RTE_DIM(visits) - 1;
	long address = ptrace(PTRACE_PEEKUSER, child, offsetof(struct user_regs_struct, rip), NULL);
	size_t slot = (uintptr_t)address * 0x9e3779b97f4a7c15u >> 48 & mask;
	while (visits[slot].count != 0 && visits[slot].address != (uintptr_t)address)
		slot = (slot + 1) & mask;
	visits[slot].address = (uintptr_t)address;
	visits[slot].count++;
}

/* Writes a line for each address: the file and the offset in it, and the count. */
static void write_visits(pid_t child, const char *path)
{
	char name[64], line[4096];
	FILE *out = fopen(path, "w");
	if (out == NULL)
		die("%s cannot be written", path);
	snprintf(name, sizeof(name), "/proc/%d/maps", (int)child);
	FILE *maps = fopen(name, "r");
	if (maps == NULL)
		die("%s cannot be read", name);
	while (fgets(line, sizeof(line), maps) != NULL) {
		uintptr_t from, to, offset;
		char rights[8], file[3072];
		if (sscanf(line, "%lx-%lx %7s %lx %*s %*s %3071s", &from, &to, rights, &offset, file) != 5 ||
		    rights[2] != 'x')
			continue;
		for (size_t i = 0; i < RTE_DIM(visits); i++)
			if (visits[i].count != 0 && visits[i].address >= from && visits[i].address < to)
				fprintf(out, "%s %lx %lu\n", file, visits[i].address - from + offset,
					visits[i].count);
	}
	fclose(maps);
	fclose(out);
}

/* Steps the child, which has just started, to its end. */
static void trace(pid_t child, const char *visits_path)
{
	int status;
	bool first = true;
	while (waitpid(child, &status, 0) == child) {
		if (WIFEXITED(status))
			_exit(WEXITSTATUS(status));
		if (WIFSIGNALED(status))
			die("died of signal %d", WTERMSIG(status));
		int signal = WSTOPSIG(status);
		if (first && ptrace(PTRACE_SETOPTIONS, child, NULL, PTRACE_O_TRACEEXIT) != 0)
			die("cannot see the end of the child");
		first = false;
		if (status >> 8 == (SIGTRAP | PTRACE_EVENT_EXIT << 8) && visits_path != NULL)
			write_visits(child, visits_path);
		bool stepping = __atomic_load_n(&shared->stepping, __ATOMIC_ACQUIRE);
		shared->steps += stepping && signal == SIGTRAP;
		if (stepping && signal == SIGTRAP && visits_path != NULL)
			note(child);
		/* Its other signals are its own business. */
		uintptr_t pass_on = signal == SIGTRAP || signal == SIGSTOP ? 0 : (uintptr_t)signal;
		if (ptrace(stepping ? PTRACE_SINGLESTEP : PTRACE_CONT, child, NULL, pass_on) != 0)
			die("cannot go on stepping");
	}
	die("lost the child");
}

/* Before EAL starts. The parent never returns. */
void instructions_start(const char *visits_path)
{
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		die("no shared memory");
	pid_t child = fork();
	if (child < 0)
		die("no process");
	if (child != 0)
		trace(child, visits_path);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
		die("ptrace is not allowed");
	raise(SIGSTOP);
}

static void counted_turn(const struct bench *bench, const struct cell *cell, uint64_t *rx, uint64_t *tx)
{
	struct rte_mbuf *packets[MAX_BURST];
	uint16_t burst = (uint16_t)cell->burst;
	begin_counting();
	uint16_t received = rte_eth_rx_burst(bench->vhost, 0, packets, burst);
	*rx = end_counting();
	/* What lands on tx is not counted: under a debugger the driver's own thread is always faster. */
	if (bench->options.engines && received == 0) {
		begin_counting();
		received = rte_eth_rx_burst(bench->vhost, 0, packets, burst);
		*rx += end_counting();
	}
	if (received != (cell->size == 0 ? 0 : burst))
		die("%u of %u packets received", received, burst);
	if (cell->size == 0)
		return;
	for (uint16_t i = 0; i < burst; i++)
		port_asks(bench, packets[i]);
	begin_counting();
	uint16_t sent = rte_eth_tx_burst(bench->vhost, 0, packets, burst);
	*tx = end_counting();
	if (sent != burst)
		die("%u of %u packets sent", sent, burst);
}

static void count(const struct bench *bench, const struct cell *cell)
{
	enum { TURNS = 2 };
	struct packets packets;
	struct sums ignored = { 0 };
	uint64_t rx = UINT64_MAX, tx = UINT64_MAX, empty, rx_now = 0, tx_now = 0;
	begin_counting();
	empty = end_counting();
	if (cell->size != 0) {
		make_packets(bench, cell, &packets);
		/* Until caches of objects and translations are filled. */
		for (unsigned int i = 0; i < 2 * bench->options.ring / cell->burst + 2; i++) {
			peer_sends(bench, cell, 0, &packets);
			vhost_turn(bench, cell, 0, true, &ignored);
			peer_receives(bench, cell, 0, &packets);
		}
	}
	for (int i = 0; i < TURNS; i++) {
		if (cell->size != 0)
			peer_sends(bench, cell, 0, &packets);
		counted_turn(bench, cell, &rx_now, &tx_now);
		if (cell->size != 0)
			peer_receives(bench, cell, 0, &packets);
		rx = RTE_MIN(rx, rx_now);
		tx = RTE_MIN(tx, tx_now);
	}
	double divisor = cell->size == 0 ? 1 : cell->burst;
	double of_rx = (double)(rx - empty) / divisor, of_tx = (double)(tx - empty) / divisor;
	printf("cell size=%u burst=%u rx_p10=%.1f rx_median=%.1f", cell->size, cell->burst, of_rx, of_rx);
	if (cell->size != 0) {
		check_packets(bench, cell, &packets);
		free_packets(bench, cell, &packets);
		printf(" tx_p10=%.1f tx_median=%.1f", of_tx, of_tx);
	}
	printf(" batches=%d dropped=0 noisy=0 place=near\n", TURNS);
	fflush(stdout);
}

void instructions(struct bench *bench)
{
	if (bench->options.queues != 1)
		die("counts instructions of one queue only");
	for (unsigned int i = 0; i < bench->options.cell_count; i++)
		count(bench, &bench->options.cells[i]);
}
