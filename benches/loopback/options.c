/* SPDX-License-Identifier: BSD-3-Clause */
#include "loopback.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int one_of(const char *value, const char *const *names, int count)
{
	for (int i = 0; i < count; i++)
		if (strcmp(value, names[i]) == 0)
			return i;
	die("no such value: %s", value);
}

static unsigned int number(const char *value, unsigned int lowest, unsigned int highest)
{
	char *end;
	unsigned long result = strtoul(value, &end, 10);
	if (end == value || *end != '\0' || result < lowest || result > highest)
		die("%s: wants a number from %u to %u", value, lowest, highest);
	return (unsigned int)result;
}

/* SIZExBURST or SIZExBURSTxFLOW, with commas between. */
static void parse_cells(struct options *options, char *text)
{
	static const char *const flows[] = { "forward", "to-host", "to-guest" };
	char *save;
	for (char *word = strtok_r(text, ",", &save); word != NULL; word = strtok_r(NULL, ",", &save)) {
		if (options->cell_count == MAX_CELLS)
			die("more than %d cells", MAX_CELLS);
		struct cell *cell = &options->cells[options->cell_count++];
		char *rest, *size = strtok_r(word, "x", &rest), *burst = strtok_r(NULL, "x", &rest);
		char *flow = strtok_r(NULL, "x", &rest);
		if (burst == NULL)
			die("cells: wants SIZExBURST");
		cell->size = number(size, 0, 9216);
		cell->burst = number(burst, 1, MAX_BURST);
		if (cell->size != 0 && cell->size < 60)
			die("size %u: wants 0 or at least 60", cell->size);
		if (flow != NULL)
			cell->flow = one_of(flow, flows, 3);
	}
}

struct options parse_options(int argc, char **argv)
{
	static const char *const modes[] = { "one-core", "lock-step", "free-running", "instructions" };
	static const char *const checksums[] = { "plain", "vlan", "unused", "passed", "software",
						 "ip",	  "ipv6", "segments", "marks", "unsummed" };
	static char path[64];
	struct options options = { .ring = 256,
				   .mergeable = true,
				   .queues = 1,
				   .ms = 200,
				   .measure_core = 1,
				   .socket = path,
				   .devargs = "" };
	snprintf(path, sizeof(path), "/tmp/loopback%d.sock", getpid());
	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '=');
		if (value == NULL)
			die("%s: wants NAME=VALUE", argv[i]);
		*value++ = '\0';
		const char *name = argv[i];
		if (strcmp(name, "plugin") == 0)
			options.plugin = strcmp(value, "stock") == 0 ? NULL : value;
		else if (strcmp(name, "socket") == 0)
			options.socket = value;
		else if (strcmp(name, "devargs") == 0)
			options.devargs = value;
		else if (strcmp(name, "visits") == 0)
			options.visits = value;
		else if (strcmp(name, "vdev") == 0)
			options.vdev = value;
		else if (strcmp(name, "mode") == 0)
			options.mode = one_of(value, modes, 4);
		else if (strcmp(name, "checksum") == 0)
			options.checksum = one_of(value, checksums, RTE_DIM(checksums));
		else if (strcmp(name, "ring") == 0)
			options.ring = number(value, 64, 1024);
		else if (strcmp(name, "packed") == 0)
			options.packed = number(value, 0, 1);
		else if (strcmp(name, "mergeable") == 0)
			options.mergeable = number(value, 0, 1);
		else if (strcmp(name, "in_order") == 0)
			options.in_order = number(value, 0, 1);
		else if (strcmp(name, "vectorized") == 0)
			options.vectorized = number(value, 0, 1);
		else if (strcmp(name, "queues") == 0)
			options.queues = number(value, 1, MAX_QUEUES);
		else if (strcmp(name, "apart") == 0)
			options.apart = number(value, 0, 1);
		else if (strcmp(name, "parked") == 0)
			options.parked = number(value, 0, 4096);
		else if (strcmp(name, "ms") == 0)
			options.ms = number(value, 1, 1000000);
		else if (strcmp(name, "block") == 0)
			options.block = atof(value);
		else if (strcmp(name, "control") == 0)
			options.control_core = (int)number(value, 0, 1023);
		else if (strcmp(name, "measure") == 0)
			options.measure_core = (int)number(value, 0, 1023);
		else if (strcmp(name, "cells") == 0)
			parse_cells(&options, value);
		else
			die("no such option: %s", name);
	}
	options.engines = strstr(options.devargs, "dmas=") != NULL;
	if (options.control_core == options.measure_core)
		die("control and measure must differ");
	return options;
}
