/* SPDX-License-Identifier: BSD-3-Clause
 *
 * usage: scale NAME=VALUE...
 *
 *   plugin=PATH|stock     the driver; PATH is absolute
 *   ports=N connected=0   so many ports at once, with a frontend each or not
 *   locked=0              after mlockall(2)
 *   churn=N               instead: opens and closes a port N times
 *   interrupt=1           instead: sleeps until packets come
 *   control=0 measure=1   processors: of the frontends; of the ports
 *
 * Prints a line for each phase.
 */
#include "scale.h"

#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <rte_eal.h>

/* Processor time that an idle process takes. */
#define IDLE_SECONDS 2

static const char *folder;

static void remove_folder(void)
{
	struct dirent *entry;
	DIR *entries = folder == NULL ? NULL : opendir(folder);
	if (entries == NULL)
		return;
	while ((entry = readdir(entries)) != NULL)
		unlinkat(dirfd(entries), entry->d_name, 0);
	closedir(entries);
	rmdir(folder);
}

void die(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	fputs("scale: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	remove_folder();
	_exit(1);
}

static struct options parse_options(int argc, char **argv)
{
	struct options options = { .ports = 1, .measure_core = 1 };
	snprintf(options.folder, sizeof(options.folder), "/tmp/net-vhost-scale-%d", getpid());
	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '=');
		if (value == NULL)
			die("%s: wants NAME=VALUE", argv[i]);
		*value++ = '\0';
		if (strcmp(argv[i], "plugin") == 0)
			options.plugin = strcmp(value, "stock") == 0 ? NULL : value;
		else if (strcmp(argv[i], "ports") == 0)
			options.ports = (unsigned int)atoi(value);
		else if (strcmp(argv[i], "connected") == 0)
			options.connected = atoi(value);
		else if (strcmp(argv[i], "locked") == 0)
			options.locked = atoi(value);
		else if (strcmp(argv[i], "churn") == 0)
			options.churn = (unsigned int)atoi(value);
		else if (strcmp(argv[i], "interrupt") == 0)
			options.interrupt = atoi(value);
		else if (strcmp(argv[i], "control") == 0)
			options.control_core = atoi(value);
		else if (strcmp(argv[i], "measure") == 0)
			options.measure_core = atoi(value);
		else
			die("no such option: %s", argv[i]);
	}
	if (options.ports == 0 || options.ports > MAX_PORTS)
		die("ports: 1 to %d, as many as DPDK has numbers for", MAX_PORTS);
	return options;
}

static void idle(const char *phase)
{
	double cpu = cpu_seconds();
	sleep_seconds(IDLE_SECONDS);
	printf("idle phase=%s cpu_percent=%.3f\n", phase, (cpu_seconds() - cpu) / IDLE_SECONDS * 100);
	fflush(stdout);
}

static void churn(const struct options *options)
{
	start_eal(options, false);
	struct rte_mempool *pool = make_pool(1023);
	/* The first ones start threads and fill caches. */
	for (int i = 0; i < 3; i++) {
		port_open(options, 0, pool);
		port_close(0);
	}
	print_state("before");
	for (unsigned int i = 0; i < options->churn; i++) {
		port_open(options, 0, pool);
		port_close(0);
	}
	print_state("churned");
}

static bool all_links_are(const struct options *options, bool up)
{
	for (unsigned int i = 0; i < options->ports; i++)
		if (port_has_link(i) != up)
			return false;
	return true;
}

static void wait_for_links(const struct options *options, bool up)
{
	double deadline = seconds_now() + 120;
	while (!all_links_are(options, up)) {
		if (seconds_now() > deadline)
			die("links stay %s", up ? "down" : "up");
		sleep_seconds(0.001);
	}
}

static void many_ports(const struct options *options)
{
	start_eal(options, false);
	struct rte_mempool *pool = make_pool(1023);
	if (options->locked && mlockall(MCL_CURRENT | MCL_FUTURE) != 0)
		die("mlockall is not allowed");
	print_state("before");
	for (unsigned int i = 0; i < options->ports; i++)
		port_open(options, i, pool);
	print_state("started");
	idle("started");
	if (options->connected) {
		begin_phase();
		frontends_open();
		wait_for_links(options, true);
		print_state("connected");
		idle("connected");
		frontends_close();
		wait_for_links(options, false);
	}
	begin_phase();
	for (unsigned int i = 0; i < options->ports; i++)
		port_close(i);
	print_state("closed");
}

int main(int argc, char **argv)
{
	struct options options = parse_options(argc, argv);
	folder = options.folder;
	if (mkdir(folder, 0700) != 0)
		die("%s: cannot be made", folder);
	if (options.connected || options.interrupt)
		frontends_start(&options);
	if (options.interrupt)
		interrupts(&options);
	else if (options.churn != 0)
		churn(&options);
	else
		many_ports(&options);
	rte_eal_cleanup();
	remove_folder();
	return 0;
}
