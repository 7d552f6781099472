/* SPDX-License-Identifier: BSD-3-Clause */
#define _GNU_SOURCE /* memfd_create, accept4 */

#include "frontend.h"
#include "check.h"
#include "eal.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_FILES 64

static uint64_t more_protocol_features;

/* The memory of one ring: descriptors, then the two rings. */
struct place {
	uint64_t gpa, available_at, used_at, bytes;
};

static int
patience_ms(void)
{
	return run_is_slow() ? 20000 : 2000;
}

static bool
prepare(struct frontend *frontend)
{
	memset(frontend, 0, sizeof(*frontend));
	for (uint32_t i = 0; i < MAX_RINGS; i++)
		frontend->rings[i].kick = frontend->rings[i].call = -1;
	frontend->socket = -1;
	frontend->memory_file = memfd_create("guest", MFD_CLOEXEC);
	if (ftruncate(frontend->memory_file, 2 * REGION_SIZE) != 0)
		return false;
	frontend->memory = mmap(NULL, 2 * REGION_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
				frontend->memory_file, 0);
	return frontend->memory != MAP_FAILED;
}

static struct sockaddr_un
address_of(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	return address;
}

bool
frontend_connect(struct frontend *frontend, const char *path)
{
	const struct sockaddr_un address = address_of(path);
	uint64_t end = milliseconds_now() + (uint64_t)patience_ms();

	if (!prepare(frontend))
		return false;
	frontend->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	while (connect(frontend->socket, (const struct sockaddr *)&address, sizeof(address)) != 0) {
		if (milliseconds_now() >= end)
			return false;
		pause_briefly();
	}
	return true;
}

int
frontend_listen(const char *path)
{
	const struct sockaddr_un address = address_of(path);
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	unlink(path);
	if (bind(listener, (const struct sockaddr *)&address, sizeof(address)) == 0 &&
	    listen(listener, 1) == 0)
		return listener;
	close(listener);
	return -1;
}

void
frontend_disconnect(struct frontend *frontend)
{
	if (frontend->memory == NULL)
		return;
	for (uint32_t i = 0; i < MAX_RINGS; i++) {
		if (frontend->rings[i].kick >= 0)
			close(frontend->rings[i].kick);
		if (frontend->rings[i].call >= 0)
			close(frontend->rings[i].call);
	}
	close(frontend->socket);
	close(frontend->memory_file);
	munmap(frontend->memory, 2 * REGION_SIZE);
	memset(frontend, 0, sizeof(*frontend));
}

static bool
readable(int file)
{
	struct pollfd wait = {.fd = file, .events = POLLIN};

	return poll(&wait, 1, patience_ms()) == 1;
}

bool
frontend_accept(struct frontend *frontend, int listener)
{
	if (!prepare(frontend) || !readable(listener))
		return false;
	frontend->socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	return frontend->socket >= 0;
}

bool
frontend_hung_up(struct frontend *frontend)
{
	uint8_t rest[256];
	ssize_t count = 1;

	/* Answers to earlier messages may come before the end. */
	while (count > 0 && readable(frontend->socket))
		count = recv(frontend->socket, rest, sizeof(rest), MSG_DONTWAIT);
	return count <= 0;
}

bool
frontend_send(struct frontend *frontend, uint32_t request, uint32_t flags, const void *payload,
	      uint32_t size, const int *files, unsigned int file_count)
{
	struct message_header header = {
		.request = request, .flags = flags | MESSAGE_VERSION, .size = size};
	struct iovec parts[] = {
		{.iov_base = &header, .iov_len = sizeof(header)},
		{.iov_base = (void *)(uintptr_t)payload, .iov_len = size},
	};
	union {
		struct cmsghdr alignment;
		char bytes[CMSG_SPACE(MAX_FILES * sizeof(int))];
	} control = {0};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = size != 0 ? 2 : 1};

	if (file_count != 0) {
		struct cmsghdr *rights;

		message.msg_control = control.bytes;
		message.msg_controllen = CMSG_SPACE(file_count * sizeof(int));
		rights = CMSG_FIRSTHDR(&message);
		rights->cmsg_level = SOL_SOCKET;
		rights->cmsg_type = SCM_RIGHTS;
		rights->cmsg_len = CMSG_LEN(file_count * sizeof(int));
		memcpy(CMSG_DATA(rights), files, file_count * sizeof(int));
	}
	return sendmsg(frontend->socket, &message, MSG_NOSIGNAL) ==
	       (ssize_t)(sizeof(header) + size);
}

static bool
receive_exactly(struct frontend *frontend, void *bytes, size_t size)
{
	size_t done = 0;

	while (done < size) {
		ssize_t count;

		if (!readable(frontend->socket))
			return false;
		count = recv(frontend->socket, (uint8_t *)bytes + done, size - done, 0);
		if (count <= 0)
			return false;
		done += (size_t)count;
	}
	return true;
}

bool
frontend_receive(struct frontend *frontend, uint32_t request, void *payload, uint32_t size)
{
	struct message_header header;

	return receive_exactly(frontend, &header, sizeof(header)) && header.request == request &&
	       header.flags == (MESSAGE_VERSION | MESSAGE_REPLY) && header.size == size &&
	       receive_exactly(frontend, payload, size);
}

int
frontend_ask(struct frontend *frontend, uint32_t request, const void *payload, uint32_t size,
	     const int *files, unsigned int file_count)
{
	uint64_t answer;

	if (!frontend_send(frontend, request, MESSAGE_NEED_REPLY, payload, size, files, file_count) ||
	    !frontend_receive(frontend, request, &answer, sizeof(answer)))
		return -1;
	return answer == 0 ? 0 : 1;
}

int
frontend_ask_u64(struct frontend *frontend, uint32_t request, uint64_t value)
{
	return frontend_ask(frontend, request, &value, sizeof(value), NULL, 0);
}

bool
frontend_get_u64(struct frontend *frontend, uint32_t request, uint64_t *value)
{
	return frontend_send(frontend, request, 0, NULL, 0, NULL, 0) &&
	       frontend_receive(frontend, request, value, sizeof(*value));
}

void
frontend_also_wants(uint64_t protocol_features)
{
	more_protocol_features = protocol_features;
}

bool
frontend_negotiate(struct frontend *frontend, uint64_t features)
{
	uint64_t offered, protocol = 0;

	if (!frontend_get_u64(frontend, GET_FEATURES, &offered) ||
	    frontend_ask(frontend, SET_OWNER, NULL, 0, NULL, 0) != 0)
		return false;
	frontend->features = features & offered;
	if ((frontend->features & F_PROTOCOL_FEATURES) != 0) {
		if (!frontend_get_u64(frontend, GET_PROTOCOL_FEATURES, &protocol))
			return false;
		protocol &= PF_MQ | PF_REPLY_ACK | PF_STATUS | PF_MTU | PF_RARP | more_protocol_features;
		frontend->protocol_features = protocol;
		if (frontend_ask_u64(frontend, SET_PROTOCOL_FEATURES, protocol) != 0)
			return false;
	}
	return frontend_ask_u64(frontend, SET_FEATURES, frontend->features) == 0;
}

int
frontend_set_memory(struct frontend *frontend)
{
	const uint64_t base = (uintptr_t)frontend->memory;
	const struct memory_table table = {
		.count = 2,
		.regions = {
			{MEMORY_GPA, REGION_SIZE, base + REGION_SIZE, REGION_SIZE},
			{BORDER_GPA, REGION_SIZE, base, 0},
		},
	};
	const int files[] = {frontend->memory_file, frontend->memory_file};

	return frontend_ask(frontend, SET_MEM_TABLE, &table,
			    8 + 2 * (uint32_t)sizeof(struct memory_region), files, 2);
}

uint8_t *
guest_memory(const struct frontend *frontend, uint64_t gpa)
{
	/* The two regions are swapped in the file. */
	return frontend->memory + (gpa - MEMORY_GPA + REGION_SIZE) % (2 * REGION_SIZE);
}

void
guest_write(const struct frontend *frontend, uint64_t gpa, const void *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++)
		*guest_memory(frontend, gpa + i) = ((const uint8_t *)bytes)[i];
}

void
guest_read(const struct frontend *frontend, uint64_t gpa, void *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++)
		((uint8_t *)bytes)[i] = *guest_memory(frontend, gpa + i);
}

static struct place
ring_place(uint32_t index)
{
	const uint64_t large = 0x100000, small = 0x4000;

	if (index < LARGE_RINGS)
		return (struct place){MEMORY_GPA + index * large, 0x80000, 0x91000, large};
	return (struct place){MEMORY_GPA + LARGE_RINGS * large + (index - LARGE_RINGS) * small,
			      0x1000, 0x2000, small};
}

struct vring_addresses
frontend_ring_addresses(const struct frontend *frontend, uint32_t index)
{
	const struct place place = ring_place(index);
	const uint64_t uva = (uintptr_t)guest_memory(frontend, place.gpa);

	return (struct vring_addresses){
		.index = index,
		.descriptors = uva,
		.available = uva + place.available_at,
		.used = uva + place.used_at,
	};
}

bool
frontend_set_ring(struct frontend *frontend, uint32_t index, uint16_t size)
{
	const struct vring_state number = {.index = index, .value = size};
	const struct vring_state base = {.index = index, .value = 0};
	const struct vring_addresses addresses = frontend_ring_addresses(frontend, index);
	const uint64_t file_index = index;
	struct ring *ring = &frontend->rings[index];
	const struct place place = ring_place(index);
	uint8_t *memory = guest_memory(frontend, place.gpa);

	memset(memory, 0, place.bytes);
	if (ring->kick < 0)
		ring->kick = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (ring->call < 0)
		ring->call = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	ring->size = size;
	ring->taken = 0;
	ring->descriptors = (void *)memory;
	ring->available = (void *)(memory + place.available_at);
	ring->used = (void *)(memory + place.used_at);
	return frontend_ask(frontend, SET_VRING_NUM, &number, sizeof(number), NULL, 0) == 0 &&
	       frontend_ask(frontend, SET_VRING_BASE, &base, sizeof(base), NULL, 0) == 0 &&
	       frontend_ask(frontend, SET_VRING_ADDR, &addresses, sizeof(addresses), NULL, 0) == 0 &&
	       frontend_ask(frontend, SET_VRING_CALL, &file_index, sizeof(file_index), &ring->call,
			    1) == 0 &&
	       frontend_ask(frontend, SET_VRING_KICK, &file_index, sizeof(file_index), &ring->kick,
			    1) == 0;
}

bool
frontend_start(struct frontend *frontend, uint64_t features, uint32_t rings, uint16_t size)
{
	if (!frontend_negotiate(frontend, features) || frontend_set_memory(frontend) != 0)
		return false;
	for (uint32_t index = 0; index < rings; index++) {
		if (!frontend_set_ring(frontend, index, size))
			return false;
	}
	for (uint32_t index = 0; index < rings; index++) {
		const struct vring_state enable = {.index = index, .value = 1};

		if ((frontend->features & F_PROTOCOL_FEATURES) != 0 &&
		    frontend_ask(frontend, SET_VRING_ENABLE, &enable, sizeof(enable), NULL, 0) != 0)
			return false;
	}
	return (frontend->protocol_features & PF_STATUS) == 0 ||
	       frontend_ask_u64(frontend, SET_STATUS, STATUS_ALL) == 0;
}

void
ring_describe(struct ring *ring, uint16_t index, uint64_t gpa, uint32_t length, uint16_t flags,
	      uint16_t next)
{
	ring->descriptors[index] = (struct descriptor){gpa, length, flags, next};
}

void
ring_offer(struct ring *ring, uint16_t head)
{
	uint16_t index = ring->available->index;

	ring->available->heads[index & (ring->size - 1)] = head;
	__atomic_store_n(&ring->available->index, (uint16_t)(index + 1), __ATOMIC_RELEASE);
}

bool
ring_take(struct ring *ring, struct used_entry *entry)
{
	if (__atomic_load_n(&ring->used->index, __ATOMIC_ACQUIRE) == ring->taken)
		return false;
	entry->head = ring->used->entries[ring->taken & (ring->size - 1)].head;
	entry->length = ring->used->entries[ring->taken & (ring->size - 1)].length;
	ring->taken++;
	return true;
}

volatile uint16_t *
ring_used_event(struct ring *ring)
{
	return &ring->available->heads[ring->size];
}

volatile const uint16_t *
ring_avail_event(const struct ring *ring)
{
	return (volatile const uint16_t *)&ring->used->entries[ring->size];
}

uint64_t
ring_calls(struct ring *ring)
{
	uint64_t calls = 0;

	return read(ring->call, &calls, sizeof(calls)) == sizeof(calls) ? calls : 0;
}
