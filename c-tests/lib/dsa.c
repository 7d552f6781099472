/* SPDX-License-Identifier: BSD-3-Clause */
#define _GNU_SOURCE /* registers in ucontext */

#include "dsa.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <ucontext.h>
#include <unistd.h>

#define PAGE 4096
#define LINE_WORDS 8
#define LINES (PAGE / 64)
#define SUBMISSIONS 16

#define OPERATION_BATCH 1
#define OPERATION_MOVE 3
#define RECORD_IS_VALID 0x04
#define WANTS_RECORD 0x08
#define STATUS_SUCCESS 0x01
#define STATUS_MEMBER_FAILED 0x05
#define STATUS_OPERATION 0x10
#define STATUS_SIZE 0x13

static char directory[] = "/tmp/net_vhost_dsa.XXXXXX";
static enum dsa_way way;
static atomic_ullong *page = MAP_FAILED;
static int pipe_end = -1;
static pthread_t device;
static atomic_bool stop;

static atomic_uint copies, batches, failing_copy = UINT_MAX;
static atomic_uint failing_status, failing_done;
static atomic_bool lose_one, hold;
static unsigned int max_batch = 1024;

static void
need(bool holds, const char *what)
{
	if (holds)
		return;
	perror(what);
	printf("0 passed, 1 failed\n");
	exit(EXIT_FAILURE);
}

static const char *
path_of(const char *name)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	return path;
}

static void
write_file(const char *name, const char *text)
{
	FILE *file = fopen(path_of(name), "w");

	need(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0, name);
}

static void
make_device_file(void)
{
	const char *path = path_of("dev/wq0.0");
	int fd;

	if (way == DSA_PIPE) {
		need(mkfifo(path, 0600) == 0, "mkfifo");
		pipe_end = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		need(pipe_end >= 0, path);
		return;
	}
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	need(fd >= 0 && ftruncate(fd, PAGE) == 0, path);
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	need(page != MAP_FAILED, "mmap");
	close(fd);
}

/* The page as DPDK's driver sees it: nothing there, so that each write comes to `stand_in`. */
static uint8_t *portal;

/* The line of `page` that is at `address` for whoever writes to a portal. */
static atomic_ullong *
line_at(uint64_t address)
{
	uint64_t at = address - (uint64_t)(uintptr_t)portal;

	if (portal != NULL && at < PAGE)
		return &page[at / 64 * LINE_WORDS];
	return (atomic_ullong *)(uintptr_t)address;
}

/*
 * MOVDIR64B as DPDK and we use it: 66 [REX] 0f 38 f8 and one byte that names two registers. A
 * processor that lacks it raises SIGILL, any other SIGSEGV at the portal. It waits until the device
 * has taken what is in the line, as memory does not: DPDK's driver always writes to the same one.
 */
static void
stand_in(int signal_number, siginfo_t *info, void *context)
{
	static const int registers[16] = {
		REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
		REG_R8,	 REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
	};
	greg_t *saved = ((ucontext_t *)context)->uc_mcontext.gregs;
	const uint8_t *code = (const uint8_t *)saved[REG_RIP];
	unsigned int at = 1, rex = 0;
	atomic_ullong *line;
	const uint64_t *words;

	(void)info;
	if ((code[at] & 0xf0) == 0x40)
		rex = code[at++];
	if (code[0] != 0x66 || code[at] != 0x0f || code[at + 1] != 0x38 || code[at + 2] != 0xf8 ||
	    code[at + 3] >> 6 != 0 || (code[at + 3] & 7) == 4 || (code[at + 3] & 7) == 5) {
		signal(signal_number, SIG_DFL);
		return;
	}
	line = line_at((uint64_t)saved[registers[(code[at + 3] >> 3 & 7) | (rex & 4) << 1]]);
	words = (const uint64_t *)saved[registers[(code[at + 3] & 7) | (rex & 1) << 3]];
	while (atomic_load(line) != 0)
		sched_yield();
	for (unsigned int word = 1; word < LINE_WORDS; word++)
		atomic_store_explicit(&line[word], words[word], memory_order_relaxed);
	atomic_store(&line[0], words[0]);
	saved[REG_RIP] += at + 4;
}

void
dsa_limit_batches(unsigned int most)
{
	max_batch = most;
}

void
dsa_create(enum dsa_way chosen, const char *name)
{
	struct sigaction action = {.sa_sigaction = stand_in, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	char number[16];

	way = chosen;
	need(mkdtemp(directory) != NULL, directory);
	mkdir(path_of("dev"), 0700);
	mkdir(path_of("sys"), 0700);
	mkdir(path_of("sys/wq0.0"), 0700);
	mkdir(path_of("sys/dsa0"), 0700);
	write_file("sys/wq0.0/size", "16\n");
	snprintf(number, sizeof(number), "%u\n", max_batch);
	write_file("sys/wq0.0/max_batch_size", number);
	write_file("sys/wq0.0/type", "user\n");
	write_file("sys/wq0.0/name", name);
	write_file("sys/dsa0/numa_node", "0\n");
	write_file("sys/dsa0/version", "0x200\n");
	make_device_file();
	setenv("DSA_DEV_PATH", path_of("dev"), 1);
	setenv("DSA_SYSFS_PATH", path_of("sys"), 1);
	need(sigaction(SIGILL, &action, NULL) == 0, "sigaction");
	need(sigaction(SIGSEGV, &action, NULL) == 0, "sigaction");
}

/* Finds the portal that DPDK's driver has mapped, if any, and takes its memory away. */
static void
guard_portal(void)
{
	char line[PATH_MAX + 128];
	FILE *maps = fopen("/proc/self/maps", "r");

	need(maps != NULL, "maps");
	while (fgets(line, sizeof(line), maps) != NULL) {
		uint8_t *start = (uint8_t *)(uintptr_t)strtoull(line, NULL, 16);

		if (strstr(line, path_of("dev/wq0.0")) == NULL || start == (uint8_t *)page)
			continue;
		need(portal == NULL, "one portal");
		need(mprotect(start, PAGE, PROT_NONE) == 0, "mprotect");
		portal = start;
	}
	fclose(maps);
}

static void
record(const uint64_t *descriptor, uint8_t status, uint32_t completed)
{
	uint64_t flags = descriptor[0] >> 32;
	atomic_ullong *words = (atomic_ullong *)(uintptr_t)descriptor[1];

	if (!(flags & RECORD_IS_VALID) || (status == STATUS_SUCCESS && !(flags & WANTS_RECORD)))
		return;
	for (unsigned int word = 1; word < 4; word++)
		atomic_store_explicit(&words[word], 0, memory_order_relaxed);
	atomic_store(&words[0], status | (uint64_t)completed << 32);
}

static uint8_t
copy(const uint64_t *descriptor)
{
	unsigned int number = atomic_fetch_add(&copies, 1);
	uint32_t size = (uint32_t)descriptor[4], done = size;
	uint8_t status = STATUS_SUCCESS;

	if (size == 0) {
		status = STATUS_SIZE;
	} else if (number == atomic_load(&failing_copy)) {
		status = (uint8_t)atomic_load(&failing_status);
		done = atomic_load(&failing_done);
	}
	memcpy((void *)(uintptr_t)descriptor[3], (const void *)(uintptr_t)descriptor[2], done);
	record(descriptor, status, done);
	return status;
}

static void
execute(const uint64_t *descriptor)
{
	const uint64_t *list = (const uint64_t *)(uintptr_t)descriptor[2];
	uint8_t status = STATUS_SUCCESS;

	switch (descriptor[0] >> 56) {
	case OPERATION_MOVE:
		copy(descriptor);
		break;
	case OPERATION_BATCH:
		atomic_fetch_add(&batches, 1);
		for (uint32_t nth = 0; nth < (uint32_t)descriptor[4]; nth++) {
			if (copy(&list[nth * LINE_WORDS]) != STATUS_SUCCESS)
				status = STATUS_MEMBER_FAILED;
		}
		record(descriptor, status, (uint32_t)descriptor[4]);
		break;
	default:
		record(descriptor, STATUS_OPERATION, 0);
	}
}

/* Takes what is in a line; false when it is free. */
static bool
take_line(unsigned int nth, uint64_t *descriptor)
{
	atomic_ullong *line = &page[nth * LINE_WORDS];

	if (atomic_load(&line[0]) == 0)
		return false;
	for (unsigned int word = 0; word < LINE_WORDS; word++)
		descriptor[word] = atomic_load_explicit(&line[word], memory_order_relaxed);
	atomic_store(&line[0], 0);
	return true;
}

/* Our driver walks over the lines, DPDK's stays at the first. */
static bool
take_from_page(uint64_t *descriptor)
{
	static unsigned int next;

	if (!take_line(next, descriptor)) {
		next = 0;
		if (!take_line(next, descriptor))
			return false;
	}
	next = (next + 1) % LINES;
	return true;
}

/* Waits for work, at most for so long that `stop` is seen soon. */
static void
rest(void)
{
	struct pollfd waiting = {.fd = pipe_end, .events = POLLIN};

	if (way == DSA_PIPE)
		poll(&waiting, 1, 10);
	else
		usleep(5);
}

static void *
work(void *unused)
{
	static uint64_t waiting[SUBMISSIONS][LINE_WORDS];
	uint64_t descriptor[LINE_WORDS];
	unsigned int count = 0;

	(void)unused;
	/* A device does not wait for a processor of a busy machine. Without the right to say so, it
	 * mostly sleeps, which helps, too. */
	setpriority(PRIO_PROCESS, (id_t)gettid(), -20);
	while (!atomic_load(&stop)) {
		bool taken = way == DSA_PIPE ? read(pipe_end, descriptor, sizeof(descriptor)) ==
						       sizeof(descriptor)
					     : take_from_page(descriptor);

		if (!taken)
			rest();
		else if (!atomic_exchange(&lose_one, false))
			memcpy(waiting[count++], descriptor, sizeof(descriptor));
		if (count == SUBMISSIONS || !atomic_load(&hold)) {
			for (unsigned int nth = 0; nth < count; nth++)
				execute(waiting[nth]);
			count = 0;
		}
	}
	return NULL;
}

void
dsa_start(void)
{
	if (way == DSA_PAGE)
		guard_portal();
	need(pthread_create(&device, NULL, work, NULL) == 0, "pthread_create");
}

void
dsa_remove(void)
{
	static const char *const names[] = {
		"dev/wq0.0",	  "dev",
		"sys/wq0.0/size", "sys/wq0.0/max_batch_size",
		"sys/wq0.0/type", "sys/wq0.0/name",
		"sys/wq0.0",	  "sys/dsa0/numa_node",
		"sys/dsa0/version", "sys/dsa0",
		"sys",		  "",
	};

	atomic_store(&stop, true);
	pthread_join(device, NULL);
	for (unsigned int nth = 0; nth < sizeof(names) / sizeof(names[0]); nth++)
		remove(path_of(names[nth]));
	if (page != MAP_FAILED)
		munmap(page, PAGE);
	if (pipe_end >= 0)
		close(pipe_end);
}

void
dsa_fail_copy(unsigned int number, uint8_t status, uint32_t done)
{
	atomic_store(&failing_status, status);
	atomic_store(&failing_done, done);
	atomic_store(&failing_copy, atomic_load(&copies) + number);
}

void
dsa_hold(bool held)
{
	atomic_store(&hold, held);
}

void
dsa_lose_submission(void)
{
	atomic_store(&lose_one, true);
}

unsigned int
dsa_copies(void)
{
	return atomic_load(&copies);
}

unsigned int
dsa_batches(void)
{
	return atomic_load(&batches);
}
