/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * held PORT LENGTH GO RESULT: binds a UDP port, and returns. Datagrams then wait in the socket until the file
 * GO exists; they are checked, and the counts go to the file RESULT.
 */
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static uint32_t expected;

/* Little endian number, then a pattern that follows from it. */
static int
is_whole(const uint8_t *bytes, ssize_t length, uint32_t *number)
{
	if (length != (ssize_t)expected)
		return 0;
	memcpy(number, bytes, sizeof(*number));
	for (uint32_t i = sizeof(*number); i < expected; i++)
		if (bytes[i] != (uint8_t)(*number * 7 + (*number >> 8) + i * 31))
			return 0;
	return 1;
}

int
main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	int file = socket(AF_INET, SOCK_DGRAM, 0), room = 100 << 20;
	uint32_t good = 0, bad = 0, again = 0, next = 0, number;
	uint8_t bytes[8192];
	ssize_t length;
	FILE *result;

	if (argc != 5 || file < 0)
		return 2;
	address.sin_port = htons((uint16_t)atoi(argv[1]));
	expected = (uint32_t)atoi(argv[2]);
	if (setsockopt(file, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)) != 0 ||
	    bind(file, (struct sockaddr *)&address, sizeof(address)) != 0) {
		perror("held");
		return 1;
	}
	if (fork() != 0)
		return 0;
	while (access(argv[3], F_OK) != 0)
		usleep(50000);
	while ((length = recv(file, bytes, sizeof(bytes), MSG_DONTWAIT)) >= 0) {
		if (!is_whole(bytes, length, &number)) {
			bad++;
			continue;
		}
		good++;
		again += number < next;
		next = number + 1;
	}
	result = fopen("/held.part", "w");
	fprintf(result, "good %u bad %u again %u end", good, bad, again);
	fclose(result);
	return rename("/held.part", argv[4]);
}
