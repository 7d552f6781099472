/* SPDX-License-Identifier: BSD-3-Clause */
/* The telemetry commands, asked over EAL's socket as any client does. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/guest.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <rte_eal.h>

static struct guest guest;

/* Lines of DPDK differ in the blanks behind colons and commas. */
static void
drop_blanks(char *text)
{
	char *to = text, before = '\0';

	for (const char *from = text; *from != '\0'; before = *from++) {
		if (*from != ' ' || (before != ':' && before != ','))
			*to++ = *from;
	}
	*to = '\0';
}

/* The answer to one command, without blanks; empty when there is none. */
static const char *
ask(const char *command)
{
	static char answer[16384];
	const struct timeval patience = {.tv_sec = 2};
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int client = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	ssize_t length = 0;

	answer[0] = '\0';
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/dpdk_telemetry.v2",
		 rte_eal_get_runtime_dir());
	setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	/* A greeting comes first. */
	if (CHECK(connect(client, (struct sockaddr *)&address, sizeof(address)) == 0,
		  "nobody listens at %s", address.sun_path) &&
	    recv(client, answer, sizeof(answer), 0) > 0 &&
	    send(client, command, strlen(command), 0) > 0)
		length = recv(client, answer, sizeof(answer) - 1, 0);
	answer[length > 0 ? length : 0] = '\0';
	drop_blanks(answer);
	close(client);
	return answer;
}

static void
expect(const char *command, const char *part)
{
	const char *answer = ask(command);

	CHECK(strstr(answer, part) != NULL, "%s: %s lacks %s", command, answer, part);
}

/* A text with the port's number in it; valid until the eighth call after. */
static const char *
with_port(const char *format)
{
	static char texts[8][64];
	static unsigned int next;
	char *text = texts[next++ % 8];

	snprintf(text, sizeof(texts[0]), format, guest.port);
	return text;
}

static void
a_port_from_first_to_last(void)
{
	const char *info;

	if (beyond_stock())
		return;
	expect("/net_vhost/list", "{\"/net_vhost/list\":{}}");
	REQUIRE(guest_open_port(&guest, &(struct guest_options){.queues = 2}), "no port");
	info = with_port("/net_vhost/info,%u");
	expect("/net_vhost/list", "\"name\":\"net_vhost0\"");
	expect("/net_vhost/list", guest.path);
	expect("/net_vhost/list", "\"state\":\"no_frontend\"");
	expect(info, "\"state\":\"no_frontend\"");
	expect(info, "\"state_about\":\"nobody has connected");
	expect(info, "\"queue_pairs\":2,\"queue_pairs_ready\":0");

	REQUIRE(frontend_connect(&guest.frontend, guest.path), "no connection");
	WAIT_FOR(strstr(ask(info), "\"handshake\"") != NULL, 2000);
	expect(info, "\"state\":\"handshake\"");
	expect(info, "\"frontends\":1,\"peer_pid\":");
	frontend_disconnect(&guest.frontend);

	REQUIRE(guest_connect(&guest), "no guest");
	expect(info, "\"state\":\"up\"");
	expect(info, "VIRTIO_NET_F_MRG_RXBUF");
	WAIT_FOR(strstr(ask(info), "\"queue_pairs_ready\":2") != NULL, 2000);
	expect(info, "\"queue_pairs_ready\":2");
	ring_describe(guest.to_guest, 0, DATA_GPA, 2048, DESC_WRITE, 0);
	ring_offer(guest.to_guest, 0);
	guest_offer_frame(&guest, 0, DATA_GPA + 4096, 100, 1);
	expect(with_port("/net_vhost/queue,%u,0"), "\"waiting\":1");
	expect(with_port("/net_vhost/queue,%u,0"), "\"guest_buffers\":1,\"without_buffer\":255");
	expect(with_port("/net_vhost/queue,%u,1"), "\"waiting\":0");

	CHECK(rte_eth_dev_stop(guest.port) == 0, "not stopped");
	expect(info, "\"state\":\"stopped\"");
	guest_close(&guest);
	expect("/net_vhost/list", "{}");
}

static void
nothing_there(void)
{
	static const char *const commands[] = {
		"/net_vhost/info", "/net_vhost/info,", "/net_vhost/info,7", "/net_vhost/info,-1",
		"/net_vhost/info,x", "/net_vhost/info,65536", "/net_vhost/queue,0", "/net_vhost/queue,0,9",
		"/net_vhost/queue,,",
	};

	if (beyond_stock())
		return;
	REQUIRE(guest_open_port(&guest, &(struct guest_options){0}), "no port");
	for (unsigned int i = 0; i < RTE_DIM(commands); i++)
		expect(commands[i], ":null}");
	guest_close(&guest);
}

/* Asked again and again while a port comes and goes. */
static void
asked_while_ports_come_and_go(void)
{
	if (beyond_stock())
		return;
	for (int i = 0; i < (run_is_slow() ? 3 : 30); i++) {
		const char *path = socket_path("go.sock");
		struct sockaddr_un address = {.sun_family = AF_UNIX};
		int client = socket(AF_UNIX, SOCK_SEQPACKET, 0);
		char answer[16384];

		snprintf(address.sun_path, sizeof(address.sun_path), "%s/dpdk_telemetry.v2",
			 rte_eal_get_runtime_dir());
		REQUIRE(connect(client, (struct sockaddr *)&address, sizeof(address)) == 0, "client");
		for (int n = 0; n < 20; n++)
			send(client, "/net_vhost/list", strlen("/net_vhost/list"), 0);
		guest.port = vdev_attach(DEVICE, "iface=%s", path);
		REQUIRE(guest.port != NO_PORT, "no port");
		send(client, "/net_vhost/info,0", strlen("/net_vhost/info,0"), 0);
		CHECK(vdev_detach(DEVICE) == 0, "not removed");
		for (int n = 0; n < 22; n++)
			CHECK(recv(client, answer, sizeof(answer), 0) > 0, "no answer");
		close(client);
	}
}

int
main(void)
{
	eal_start_with_telemetry("telemetry");
	after_each_case(vdev_detach_all);
	run_case("a port tells what it waits for, and what it has", a_port_from_first_to_last, 20);
	run_case("what is not there is answered with null", nothing_there, 10);
	run_case("ports may come and go meanwhile", asked_while_ports_come_and_go, 20);
	return eal_end();
}
