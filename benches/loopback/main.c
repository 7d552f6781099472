/* SPDX-License-Identifier: BSD-3-Clause
 *
 * usage: loopback NAME=VALUE...
 *
 *   plugin=PATH|stock   the driver; PATH is absolute
 *   mode=one-core|lock-step|free-running|instructions
 *   cells=SIZExBURST[xFLOW],...   size 0 is an empty poll; flows: forward, to-host, to-guest
 *   ring=256 packed=0 mergeable=1 in_order=0 vectorized=0 queues=1
 *   checksum=plain|vlan|unused|passed|software|ip|ipv6|segments|marks|unsummed   see loopback.h
 *   parked=0            so many packets wait on the guest's side, whose buffers are cold then; one-core only
 *   apart=0             the header of each of the guest's packets has a descriptor of its own
 *   devargs=,dmas=[txq0@dma_skeleton] vdev=dma_skeleton   more for the port, and a device to make first;
 *                       with engines all calls that move packets count, see engines.c
 *   ms=200              for each cell
 *   control=0 measure=1 the processors; only the bursts of the port run on `measure` in lock step
 *   visits=FILE         of the counted instructions: file, offset in it, how often; one a line
 *   block=N             core cycles of the block when the neighbour is quiet, as printed by other runs
 *
 * Prints a line for each cell: core cycles or instructions per packet, or millions of packets per second.
 */
#include "loopback.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

/* The memory is anonymous, so the socket is all that must go. */
static const char *socket_path;

void die(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	fputs("loopback: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	if (socket_path != NULL)
		unlink(socket_path);
	_exit(1);
}

int main(int argc, char **argv)
{
	struct bench bench = { .options = parse_options(argc, argv) };
	if (bench.options.mode == INSTRUCTIONS)
		instructions_start(bench.options.visits);
	socket_path = bench.options.socket;
	start_eal(&bench.options);
	if (bench.options.cell_count == 0)
		die("no cells");
	start_ports(&bench);
	switch (bench.options.mode) {
	case ONE_CORE:
		one_core(&bench);
		break;
	case LOCK_STEP:
		lock_step(&bench);
		break;
	case FREE_RUNNING:
		free_running(&bench);
		break;
	case INSTRUCTIONS:
		instructions(&bench);
		break;
	}
	/* Ports are not closed: some versions of virtio-user free packets twice that are still under way. */
	unlink(socket_path);
	fflush(NULL);
	_exit(0);
}
