/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Runs in a guest: counts the frames that come in on a NIC and are larger than its MTU allows, and
 * how many of these have no mark that says how to cut them.
 *
 *	gso-marks eth0 1500 &     until SIGTERM, then prints `large N unmarked N`
 */
#include <arpa/inet.h>
#include <linux/ethtool.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static volatile sig_atomic_t ended;

static void end(int signal)
{
	(void)signal;
	ended = 1;
}

static int check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

int main(int argc, char **argv)
{
	static unsigned char frame[sizeof(struct virtio_net_hdr) + 70000];
	const struct virtio_net_hdr *header = (const void *)frame;
	unsigned int large = 0, unmarked = 0;
	int yes = 1, room = 32 << 20;

	if (argc != 3) {
		fprintf(stderr, "usage: gso-marks NIC MTU\n");
		return 2;
	}
	/* No SA_RESTART: the signal must end a read that waits. */
	struct sigaction action = { .sa_handler = end };
	sigaction(SIGTERM, &action, NULL);

	int fd = check(socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL)), "socket");
	/* What the guest's own stack merges would carry a mark in any case. */
	struct ethtool_value merging = { .cmd = ETHTOOL_SGRO, .data = 0 };
	struct ifreq request = { .ifr_data = (void *)&merging };
	strncpy(request.ifr_name, argv[1], IFNAMSIZ - 1);
	check(ioctl(fd, SIOCETHTOOL, &request), "ETHTOOL_SGRO");
	check(setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &yes, sizeof(yes)), "PACKET_VNET_HDR");
	check(setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)), "SO_RCVBUFFORCE");
	struct sockaddr_ll address = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(ETH_P_ALL),
		.sll_ifindex = if_nametoindex(argv[1]),
	};
	check(bind(fd, (struct sockaddr *)&address, sizeof(address)), "bind");

	size_t limit = sizeof(*header) + ETH_HLEN + strtoul(argv[2], NULL, 10);
	while (!ended) {
		struct sockaddr_ll from = { 0 };
		socklen_t length = sizeof(from);
		ssize_t got = recvfrom(fd, frame, sizeof(frame), 0, (struct sockaddr *)&from, &length);

		if (got < 0 || from.sll_pkttype == PACKET_OUTGOING || (size_t)got <= limit)
			continue;
		large++;
		if (header->gso_type == VIRTIO_NET_HDR_GSO_NONE || header->gso_size == 0)
			unmarked++;
	}
	printf("large %u unmarked %u\n", large, unmarked);
	return 0;
}
