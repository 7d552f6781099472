/* SPDX-License-Identifier: BSD-3-Clause */
/* How each case with a hostile frontend begins and ends. */
#ifndef NET_VHOST_HOSTILE_H
#define NET_VHOST_HOSTILE_H

#include "guest.h"

#define RING_SIZE 256
#define FRAME 100

/* The one guest of these programs, and the number of its last frame. */
extern struct guest guest;
extern uint32_t seed;

/* A port, and a connection that has said nothing yet. */
bool begin(void);
/* The same, after the handshake. */
bool begin_started(void);
/* A frame in each direction. */
void frame_passes(const char *when);
/* Whether the connection still gets answers. */
bool is_served(void);
/* Whatever the case did: a new frontend is served, then nothing is left open. */
void end(const char *when);

#endif
