/* SPDX-License-Identifier: BSD-3-Clause */
#define _GNU_SOURCE /* dladdr, CPU sets */

#include "eal.h"
#include "check.h"

#include <dirent.h>
#include <dlfcn.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <rte_eal.h>
#include <rte_malloc.h>

#define MEGABYTES_HUGE 320
#define MEGABYTES_PLAIN 512
#define HUGEPAGES_NEEDED 200

int (*get_queue_event)(uint16_t port_id, struct rte_eth_vhost_queue_event *event);
int (*get_vid)(uint16_t port_id);

static char plugin[PATH_MAX];
static char directory[] = "/tmp/net_vhost.XXXXXX";
/* EAL's own, in memory that the supervising parent sees. */
static char *runtime_directory;

static void
give_up(const char *what, const char *detail)
{
	printf("# %s: %s\n0 passed, 1 failed\n", what, detail);
	exit(EXIT_FAILURE);
}

bool
plugin_is_stock(void)
{
	const char *given = getenv("NET_VHOST_PLUGIN");

	return given != NULL && strcmp(given, "stock") == 0;
}

bool
beyond_stock(void)
{
	if (plugin_is_stock())
		skip_case("a promise of this driver, not of DPDK's own");
	return plugin_is_stock();
}

bool
run_is_slow(void)
{
	return getenv("NET_VHOST_SLOW") != NULL;
}

static long
free_hugepages(void)
{
	FILE *file = fopen("/proc/meminfo", "r");
	char line[128];
	long pages = 0, kilobytes = 0;

	if (file == NULL)
		return 0;
	while (fgets(line, sizeof(line), file) != NULL) {
		sscanf(line, "HugePages_Free: %ld", &pages);
		sscanf(line, "Hugepagesize: %ld", &kilobytes);
	}
	fclose(file);
	return kilobytes == 2048 ? pages : 0;
}

static void
remove_directory(void)
{
	DIR *entries = opendir(directory);
	const struct dirent *entry;

	while (entries != NULL && (entry = readdir(entries)) != NULL) {
		if (entry->d_name[0] == '.')
			continue;
		unlink(socket_path(entry->d_name));
	}
	if (entries != NULL)
		closedir(entries);
	rmdir(directory);
}

/*
 * The tests run in a child, so that somebody is left to clean up and to report when they crash.
 * Only the child comes back.
 */
static void
supervise(void)
{
	char *runtime = mmap(NULL, PATH_MAX, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
			     0);
	pid_t child;
	int status = 0;

	if (runtime == MAP_FAILED || mkdtemp(directory) == NULL)
		give_up("no directory for sockets", directory);
	runtime_directory = runtime;
	fflush(stdout);
	child = fork();
	if (child < 0)
		give_up("no process for the tests", "fork");
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		return;
	}
	waitpid(child, &status, 0);
	remove_directory();
	/* EAL leaves its own directory behind, empty. */
	if (runtime[0] != '\0')
		rmdir(runtime);
	if (WIFSIGNALED(status)) {
		printf("# signal %d ended the tests\n0 passed, 1 failed\n", WTERMSIG(status));
		exit(EXIT_FAILURE);
	}
	exit(WEXITSTATUS(status));
}

/* The handle of the file that EAL has loaded; it was opened by that very path. */
static void
find_functions(void)
{
	void *handle = dlopen(plugin_is_stock() ? "librte_net_vhost.so" : plugin,
			      RTLD_NOW | RTLD_NOLOAD);
	void *function;
	Dl_info where;

	if (handle == NULL && plugin_is_stock()) {
		/* Loaded by its versioned name: ask for the symbol wherever it is. */
		handle = dlopen(NULL, RTLD_NOW);
	}
	if (handle == NULL)
		give_up("EAL did not load the plugin", plugin);
	function = dlsym(handle, "rte_eth_vhost_get_queue_event");
	if (function == NULL)
		give_up("no such symbol", "rte_eth_vhost_get_queue_event");
	*(void **)&get_queue_event = function;
	if (dladdr(function, &where) == 0 || where.dli_fname == NULL)
		give_up("unknown file behind", "rte_eth_vhost_get_queue_event");
	if (plugin_is_stock())
		snprintf(plugin, sizeof(plugin), "%s", where.dli_fname);
	else if (strcmp(where.dli_fname, plugin) != 0)
		give_up("the symbol comes from another file", where.dli_fname);
	function = dlsym(handle, "rte_eth_vhost_get_vid_from_port_id");
	if (function == NULL)
		give_up("no such symbol", "rte_eth_vhost_get_vid_from_port_id");
	*(void **)&get_vid = function;
}

/* Arguments are kept: EAL holds on to some of them. */
static char argument_texts[24][PATH_MAX];
static char *arguments[RTE_DIM(argument_texts)];
static int argument_count;

static void
add_argument(const char *format, ...)
{
	char *text = argument_texts[argument_count];
	va_list list;

	va_start(list, format);
	vsnprintf(text, PATH_MAX, format, list);
	va_end(list);
	arguments[argument_count++] = text;
}

/* One lcore that may run on any processor this process may use. */
static void
add_lcores(void)
{
	char list[256] = "";
	size_t used = 0;
	cpu_set_t allowed;

	CPU_ZERO(&allowed);
	sched_getaffinity(0, sizeof(allowed), &allowed);
	for (int cpu = 0; cpu < CPU_SETSIZE && used + 8 < sizeof(list); cpu++) {
		if (CPU_ISSET(cpu, &allowed))
			used += (size_t)snprintf(list + used, sizeof(list) - used, "%s%d",
						 used != 0 ? "," : "", cpu);
	}
	add_argument("--lcores=0@(%s)", list);
}

static bool telemetry;

void
eal_start_with_telemetry(const char *program)
{
	telemetry = true;
	eal_start(program);
}

void
eal_start(const char *program)
{
	const char *given = getenv("NET_VHOST_PLUGIN");
	const char *iova = getenv("NET_VHOST_IOVA");
	bool huge = getenv("NET_VHOST_NO_HUGE") == NULL && free_hugepages() >= HUGEPAGES_NEEDED;

	if (given == NULL)
		give_up("set NET_VHOST_PLUGIN", "path of librte_net_vhost.so, or `stock`");
	if (!plugin_is_stock() && realpath(given, plugin) == NULL)
		give_up("no such plugin", given);
	supervise();

	add_argument("%s", program);
	add_argument("--file-prefix=%s-%d", program, (int)getpid());
	add_lcores();
	if (getenv("NET_VHOST_PCI") == NULL)
		add_argument("--no-pci");
	if (!telemetry)
		add_argument("--no-telemetry");
	add_argument("--iova-mode=%s", iova != NULL ? iova : "va");
	if (getenv("NET_VHOST_VERBOSE") == NULL) {
		add_argument("--log-level=*:error");
		add_argument("--log-level=lib.vhost.*:critical");
	}
	if (huge) {
		/* One file for all of it: a frontend may hand over eight regions only. */
		add_argument("--in-memory");
		add_argument("--single-file-segments");
		add_argument("-m%d", MEGABYTES_HUGE);
	} else {
		add_argument("--no-huge");
		add_argument("--no-shconf");
		add_argument("-m%d", MEGABYTES_PLAIN);
	}
	if (!plugin_is_stock())
		add_argument("-d%s", plugin);
	if (rte_eal_init(argument_count, arguments) < 0)
		give_up("EAL did not start", huge ? "with hugepages" : "without hugepages");
	snprintf(runtime_directory, PATH_MAX, "%s", rte_eal_get_runtime_dir());
	find_functions();
	printf("# plugin %s, memory from %s\n", plugin, huge ? "hugepages" : "ordinary pages");
}

int
eal_end(void)
{
	rte_eal_cleanup();
	return report();
}

const char *
plugin_file(void)
{
	return plugin;
}

const char *
socket_path(const char *name)
{
	static char paths[8][PATH_MAX];
	static unsigned int next;
	char *path = paths[next++ % 8];

	snprintf(path, PATH_MAX, "%s/%s", directory, name);
	return path;
}

bool
file_exists(const char *path)
{
	struct stat status;

	return lstat(path, &status) == 0;
}

unsigned int
open_descriptors(void)
{
	DIR *entries = opendir("/proc/self/fd");
	unsigned int count = 0;

	if (entries == NULL)
		return 0;
	while (readdir(entries) != NULL)
		count++;
	closedir(entries);
	return count;
}

size_t
heap_in_use(void)
{
	struct rte_malloc_socket_stats stats;
	size_t sum = 0;

	for (int socket = 0; socket < RTE_MAX_NUMA_NODES; socket++) {
		if (rte_malloc_get_socket_stats(socket, &stats) == 0)
			sum += stats.heap_allocsz_bytes;
	}
	return sum;
}
