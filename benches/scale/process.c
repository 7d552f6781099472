/* SPDX-License-Identifier: BSD-3-Clause */
#include "scale.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <rte_malloc.h>

double seconds_now(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Of all threads. */
double cpu_seconds(void)
{
	struct rusage usage;
	getrusage(RUSAGE_SELF, &usage);
	return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
	       (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

void sleep_seconds(double seconds)
{
	double until = seconds_now() + seconds, left;
	while ((left = until - seconds_now()) > 0)
		usleep((useconds_t)(left * 1e6));
}

static unsigned long status_value(const char *name)
{
	char line[256];
	unsigned long value = 0;
	FILE *file = fopen("/proc/self/status", "r");
	if (file == NULL)
		die("no /proc/self/status");
	while (fgets(line, sizeof(line), file) != NULL)
		if (strncmp(line, name, strlen(name)) == 0)
			sscanf(line + strlen(name), ": %lu", &value);
	fclose(file);
	return value;
}

static unsigned int open_files(void)
{
	unsigned int count = 0;
	DIR *folder = opendir("/proc/self/fd");
	if (folder == NULL)
		die("no /proc/self/fd");
	while (readdir(folder) != NULL)
		count++;
	closedir(folder);
	/* `.`, `..` and the folder itself. */
	return count - 3;
}

static double phase_began, phase_cpu;

void begin_phase(void)
{
	phase_began = seconds_now();
	phase_cpu = cpu_seconds();
}

/* One line: what the process has now, and how long the phase took it. */
void print_state(const char *phase)
{
	double wall = phase_began > 0 ? seconds_now() - phase_began : 0;
	double cpu = phase_began > 0 ? cpu_seconds() - phase_cpu : 0;
	struct rte_malloc_socket_stats heap = { 0 };
	rte_malloc_get_socket_stats(0, &heap);
	printf("state phase=%s ms=%.3f cpu_ms=%.3f rss_kb=%lu heap_kb=%zu threads=%lu fds=%u\n", phase, wall * 1e3,
	       cpu * 1e3, status_value("VmRSS"), heap.heap_allocsz_bytes / 1024, status_value("Threads"),
	       open_files());
	fflush(stdout);
	begin_phase();
}
