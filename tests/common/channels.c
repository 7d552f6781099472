/* SPDX-License-Identifier: BSD-3-Clause */
/* channels INTERFACE COUNT: how many queue pairs its driver uses, as with `ethtool -L`. */
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

int
main(int argc, char **argv)
{
	struct ethtool_channels channels = {.cmd = ETHTOOL_GCHANNELS};
	struct ifreq request = {0};
	int file = socket(AF_INET, SOCK_DGRAM, 0);

	if (argc != 3 || file < 0)
		return 2;
	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", argv[1]);
	request.ifr_data = (void *)&channels;
	if (ioctl(file, SIOCETHTOOL, &request) != 0) {
		perror("ETHTOOL_GCHANNELS");
		return 1;
	}
	channels.cmd = ETHTOOL_SCHANNELS;
	channels.combined_count = (unsigned int)atoi(argv[2]);
	if (ioctl(file, SIOCETHTOOL, &request) != 0) {
		perror("ETHTOOL_SCHANNELS");
		return 1;
	}
	return 0;
}
