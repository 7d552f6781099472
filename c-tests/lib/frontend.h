/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A vhost-user frontend and the driver of split rings, both written down bare: each message and
 * each descriptor is what the test makes it. It shares nothing with virtio-user.
 */
#ifndef NET_VHOST_FRONTEND_H
#define NET_VHOST_FRONTEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Messages, by the numbers of the vhost-user specification. */
enum request {
	GET_FEATURES = 1,
	SET_FEATURES = 2,
	SET_OWNER = 3,
	RESET_OWNER = 4,
	SET_MEM_TABLE = 5,
	SET_LOG_BASE = 6,
	SET_LOG_FD = 7,
	SET_VRING_NUM = 8,
	SET_VRING_ADDR = 9,
	SET_VRING_BASE = 10,
	GET_VRING_BASE = 11,
	SET_VRING_KICK = 12,
	SET_VRING_CALL = 13,
	SET_VRING_ERR = 14,
	GET_PROTOCOL_FEATURES = 15,
	SET_PROTOCOL_FEATURES = 16,
	GET_QUEUE_NUM = 17,
	SET_VRING_ENABLE = 18,
	SEND_RARP = 19,
	NET_SET_MTU = 20,
	SET_BACKEND_REQ_FD = 21,
	GET_MAX_MEM_SLOTS = 36,
	ADD_MEM_REG = 37,
	REM_MEM_REG = 38,
	SET_STATUS = 39,
	GET_STATUS = 40,
};

#define MESSAGE_VERSION 0x1u
#define MESSAGE_REPLY 0x4u
#define MESSAGE_NEED_REPLY 0x8u
#define VRING_NO_FD 0x100u

#define F_MTU (1ull << 3)
#define F_MRG_RXBUF (1ull << 15)
#define F_MQ (1ull << 22)
#define F_INDIRECT (1ull << 28)
#define F_EVENT_IDX (1ull << 29)
#define F_PROTOCOL_FEATURES (1ull << 30)
#define F_VERSION_1 (1ull << 32)

#define PF_MQ (1ull << 0)
#define PF_RARP (1ull << 2)
#define PF_REPLY_ACK (1ull << 3)
#define PF_MTU (1ull << 4)
#define PF_PAGEFAULT (1ull << 8)
#define PF_STATUS (1ull << 16)

#define STATUS_ALL 0x0f /* up to DRIVER_OK */

#define DESC_NEXT 1u
#define DESC_WRITE 2u
#define DESC_INDIRECT 4u

struct message_header {
	uint32_t request, flags, size;
};

struct vring_state {
	uint32_t index, value;
};

struct vring_addresses {
	uint32_t index, flags;
	uint64_t descriptors, used, available, log;
};

struct memory_region {
	uint64_t gpa, size, uva, offset;
};

struct memory_table {
	uint32_t count, padding;
	struct memory_region regions[8];
};

struct descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t flags, next;
};

struct used_entry {
	uint32_t head, length;
};

struct available_ring {
	uint16_t flags, index;
	uint16_t heads[];
};

struct used_ring {
	uint16_t flags, index;
	struct used_entry entries[];
};

/*
 * Guest memory: two regions, adjacent for the guest and swapped in their file, so that whatever
 * lies across their border has to be cut there.
 */
#define REGION_SIZE 0x800000ull
#define MEMORY_GPA 0x40000000ull
#define BORDER_GPA (MEMORY_GPA + REGION_SIZE)
#define MEMORY_END_GPA (MEMORY_GPA + 2 * REGION_SIZE)
/* Room for buffers, behind the rings. */
#define DATA_GPA (MEMORY_GPA + 0x400000)
/* The first rings may have 32768 entries, the others 256. */
#define LARGE_RINGS 3
#define MAX_RINGS 64

struct ring {
	uint16_t size;
	struct descriptor *descriptors;
	struct available_ring *available;
	volatile struct used_ring *used;
	uint16_t taken;   /* used entries seen */
	int kick, call;
};

struct frontend {
	int socket;
	uint64_t features, protocol_features;
	int memory_file;
	uint8_t *memory;
	struct ring rings[MAX_RINGS];
};

/* Connection. Each wait ends after two seconds. */
bool frontend_connect(struct frontend *frontend, const char *path);
/* The other way round: the backend connects to a listening socket. */
int frontend_listen(const char *path);
bool frontend_accept(struct frontend *frontend, int listener);
void frontend_disconnect(struct frontend *frontend);
bool frontend_hung_up(struct frontend *frontend);

/* Messages: raw, with the answer, and with an acknowledgement (0, 1; -1: hung up or silent). */
bool frontend_send(struct frontend *frontend, uint32_t request, uint32_t flags, const void *payload,
		   uint32_t size, const int *files, unsigned int file_count);
bool frontend_receive(struct frontend *frontend, uint32_t request, void *payload, uint32_t size);
int frontend_ask(struct frontend *frontend, uint32_t request, const void *payload, uint32_t size,
		 const int *files, unsigned int file_count);
int frontend_ask_u64(struct frontend *frontend, uint32_t request, uint64_t value);
bool frontend_get_u64(struct frontend *frontend, uint32_t request, uint64_t *value);

/* What `frontend_negotiate` asks for from now on, beside the usual. */
void frontend_also_wants(uint64_t protocol_features);

/* The steps of a normal start, each acknowledged. */
bool frontend_negotiate(struct frontend *frontend, uint64_t features);
int frontend_set_memory(struct frontend *frontend);
bool frontend_set_ring(struct frontend *frontend, uint32_t index, uint16_t size);
struct vring_addresses frontend_ring_addresses(const struct frontend *frontend, uint32_t index);
/* All of it: features, memory, `rings` rings of this size, enabled, DRIVER_OK. */
bool frontend_start(struct frontend *frontend, uint64_t features, uint32_t rings, uint16_t size);

/* Guest memory at an address; the pointer is good up to the region's end. */
uint8_t *guest_memory(const struct frontend *frontend, uint64_t gpa);
void guest_write(const struct frontend *frontend, uint64_t gpa, const void *bytes, size_t length);
void guest_read(const struct frontend *frontend, uint64_t gpa, void *bytes, size_t length);

/* The driver's side of a ring. */
void ring_describe(struct ring *ring, uint16_t index, uint64_t gpa, uint32_t length, uint16_t flags,
		   uint16_t next);
void ring_offer(struct ring *ring, uint16_t head);
/* The next used entry, if there is one. */
bool ring_take(struct ring *ring, struct used_entry *entry);
/* Event index words: the driver's wish, and the device's. */
volatile uint16_t *ring_used_event(struct ring *ring);
volatile const uint16_t *ring_avail_event(const struct ring *ring);
/* Reads and clears the call's counter: how often the backend called. */
uint64_t ring_calls(struct ring *ring);

#endif
